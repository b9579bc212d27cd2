//! Puts a backup back as a home.

use std::fs::File;
use std::path::Path;

use coordinator_core::Epoch;
use muster_git::Git;
use rustix::fs::{FlockOperation, flock};

use super::manifest::Manifest;
use super::{Error, Figures, HOME, check, files, io};
use crate::app::JOURNAL;
use crate::home::LOCK;
use crate::store::sqlite;

/// A home that was put back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// When the backup was made.
    pub made_at: String,
    pub figures: Figures,
    /// The epoch that the next start adds one to.
    pub epoch: Epoch,
}

/// Puts a backup back as a home that is not there yet, or is empty.
///
/// Every checksum is compared before anything is written, and everything is read again as it was
/// when the backup was made. The home gets its name when all of it is on disk.
///
/// # Errors
/// Whatever it is, there is no new home. The backup is only read.
pub async fn restore(backup: &Path, home: &Path) -> Result<Restored, Error> {
    let manifest = Manifest::read(backup)?;
    let saved = backup.join(HOME);
    files::compare(&saved, &manifest.files)?;
    must_be_unused(home)?;
    files::must_be_outside(home, backup)?;
    files::must_be_free(home)?;
    let git = Git::find().await?;

    let unfinished = files::unfinished(home)?;
    let fresh = unfinished.path();
    for entry in &manifest.files {
        let below = entry.relative().unwrap_or_default();
        let copied = files::copy(&saved.join(&below), &fresh.join(&below))?;
        let found = copied.ok_or_else(|| Error::Damaged {
            path: saved.join(&below),
            what: "is missing".to_owned(),
        })?;
        files::same(&fresh.join(&below), found, entry)?;
    }
    // Git takes a folder without these for none of its own, and empty ones are in no manifest.
    for repository in super::repository::list(fresh)? {
        let folder = crate::git::repository::folder(fresh).join(format!("{repository}.git"));
        for name in ["objects/info", "objects/pack", "refs/heads"] {
            files::folder(&folder.join(name))?;
        }
    }
    let journal = check::journal(fresh)?;
    let told = &manifest.figures;
    if (journal.figures.epoch, journal.figures.last_batch) != (told.epoch, told.last_batch) {
        return Err(Error::Damaged {
            path: saved.join(JOURNAL),
            what: "is of another moment than the manifest".to_owned(),
        });
    }
    check::repositories(&git, fresh, &journal.promises).await?;
    let now = jiff::Timestamp::now().as_millisecond();
    let epoch = sqlite::restored(&fresh.join(JOURNAL), u64::try_from(now).unwrap_or_default())?;
    files::sync(fresh)?;
    files::publish(fresh, home)?;
    // Its name is another now.
    drop(unfinished.keep());
    Ok(Restored {
        made_at: manifest.made_at,
        figures: manifest.figures,
        epoch,
    })
}

/// Refuses a home that a coordinator holds, with that one's process id.
fn must_be_unused(home: &Path) -> Result<(), Error> {
    let path = home.join(LOCK);
    let lock = match File::open(&path) {
        Ok(lock) => lock,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io("open", &path)(error)),
    };
    match flock(&lock, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::InUse {
            path: home.to_owned(),
            pid: std::fs::read_to_string(&path)
                .ok()
                .and_then(|text| text.trim().parse().ok()),
        }),
        Err(errno) => Err(io("lock", &path)(errno.into())),
    }
}
