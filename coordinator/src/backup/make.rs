//! Makes a backup.

use std::path::Path;

use muster_git::Git;

use super::manifest::Manifest;
use super::promises::Promises;
use super::unfinished::Unfinished;
use super::{Error, Figures, HOME, check, files, repository};
use crate::app::JOURNAL;
use crate::auth::home_id;
use crate::config;
use crate::git::repository as hosted;
use crate::pool;
use crate::store::sqlite;
use crate::transcript;

/// The certificate authority, the key that all credentials hang on, tokens of this machine, and
/// the configuration. Which of them a home has depends on what it was used for.
const SMALL_FILES: [&str; 6] = [
    "secret.key",
    home_id::FILE,
    pool::DISOWNS,
    "admin.token",
    "local-worker.token",
    config::FILE_NAME,
];
const TLS: &str = "tls";
const TOKENS: &str = "tokens.db";
const TRANSCRIPTS: &str = "transcripts";

/// Makes a backup of a home, verifies it, and gives it its name; gives what it holds.
///
/// The home is only read, and may be in use. The backup holds its secrets, and only its owner can
/// read it.
///
/// # Errors
/// Whatever it is, nothing is left under the backup's name, and the home is as before. A process
/// that is killed leaves a folder beside it whose name begins with `.muster-unfinished-`, which
/// [`super::tidy`] removes.
pub async fn make(home: &Path, backup: &Path) -> Result<Figures, Error> {
    if !home.join(JOURNAL).is_file() {
        return Err(Error::NoHome(home.to_owned()));
    }
    files::must_be_outside(backup, home)?;
    files::must_be_free(backup)?;
    let git = Git::find().await?;
    let unfinished = Unfinished::begin(backup)?;
    let copy = unfinished.path().join(HOME);
    files::folder(&copy)?;

    // The order matters: see the module's documentation.
    sqlite::copy(&home.join(JOURNAL), &copy.join(JOURNAL))?;
    let journal = check::journal(&copy)?;
    let mut figures = journal.figures.clone();
    copy_keys(home, &copy)?;
    for path in files::list(&home.join(TRANSCRIPTS))? {
        // One of a later lease than the journal's is of an attempt that will be made again.
        if transcript::lease_of(&path).is_some_and(|lease| !journal.knows(lease)) {
            continue;
        }
        let below = path.strip_prefix(home).unwrap_or(&path);
        let to = copy.join(below);
        files::copy(&path, &to)?;
        figures.transcripts += 1;
        let is_sound = || transcript::mend::look(&to).is_ok_and(|look| !look.is_damaged());
        if transcript::lease_of(&path).is_some() && !is_sound() {
            figures.damaged_transcripts += 1;
        }
    }
    let nothing = Promises::default();
    for name in repository::list(home)? {
        let folder = format!("{name}.git");
        figures.refs += repository::copy(
            &git,
            (
                &hosted::folder(home).join(&folder),
                &hosted::folder(&copy).join(&folder),
            ),
            &name,
            journal.promises.get(&name).unwrap_or(&nothing),
        )
        .await?;
        figures.repositories += 1;
    }

    figures.commits = check::repositories(&git, &copy, &journal).await?;
    let entries = files::describe(&copy)?;
    figures.files = entries.len();
    figures.bytes = entries.iter().map(|entry| entry.bytes).sum();
    let manifest = Manifest {
        made_by: env!("CARGO_PKG_VERSION").to_owned(),
        made_at: jiff::Timestamp::now().to_string(),
        figures,
        files: entries,
    };
    manifest.write(unfinished.path())?;
    files::sync(unfinished.path())?;
    files::compare(&copy, &Manifest::read(unfinished.path())?.files)?;
    unfinished.publish(backup)?;
    Ok(manifest.figures)
}

fn copy_keys(home: &Path, copy: &Path) -> Result<(), Error> {
    for name in SMALL_FILES {
        files::copy(&home.join(name), &copy.join(name))?;
    }
    for path in files::list(&home.join(TLS))? {
        let below = path.strip_prefix(home).unwrap_or(&path);
        files::copy(&path, &copy.join(below))?;
    }
    if home.join(TOKENS).exists() {
        sqlite::copy(&home.join(TOKENS), &copy.join(TOKENS))?;
        sqlite::check(&copy.join(TOKENS))?;
    }
    Ok(())
}
