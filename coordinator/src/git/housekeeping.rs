//! Repacks hosted repositories while nobody writes to them.
//!
//! Every push leaves loose objects or a pack, and every attempt a ref; after some thousand of them
//! git looks through folders instead of working. Nothing is ever dropped here: a commit without a
//! ref may be known to the journal. Objects only move from many files into few, the largest packs
//! stay as they are, and git finds an object again whose file has moved, so that fetches and pushes
//! go on meanwhile.

use std::path::Path;
use std::time::Duration;

use muster_git::{GitError, Repository};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::repositories::Repositories;
use super::repository;

/// When a coordinator looks for the first time: the runs that it has come back for go first.
const FIRST_LOOK: Duration = Duration::from_secs(60);
/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(600);
/// From how many packs, or loose objects, on a repository is repacked: as git itself would.
const PACKS_MAX: usize = 50;
const LOOSE_MAX: usize = 6_700;
/// From how many refs in files of their own on they are packed.
const LOOSE_REFS_MAX: usize = 1_000;
/// Each pack is at least so many times as large as all smaller ones together.
const GEOMETRIC_FACTOR: u32 = 2;
/// How long a repack may take; one that takes longer is begun anew later.
const REPACK_MAX: Duration = Duration::from_secs(3_600);

/// Looks after all repositories of a home until cancelled.
pub async fn run(repositories: Repositories, ending: CancellationToken) {
    let mut pause = FIRST_LOOK;
    loop {
        tokio::select! {
            () = ending.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = LOOK_EVERY;
        let folder = repository::folder(repositories.home());
        for name in names(&folder) {
            let looked = tokio::select! {
                () = ending.cancelled() => return,
                looked = look_after(&repositories, &name) => looked,
            };
            match looked {
                Ok(true) => info!(repository = name, "a repository was repacked"),
                Ok(false) => {}
                Err(error) => {
                    warn!(error = %error, repository = name, "cannot repack; later again");
                }
            }
        }
    }
}

/// Lists the repositories in a folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter(|name| !name.starts_with('.'))
        .filter_map(|name| Some(name.strip_suffix(".git")?.to_owned()))
        .collect()
}

/// Repacks one repository if it needs that and nobody writes to it; tells whether it did.
///
/// # Errors
/// Git fails. Nothing is lost then; what a killed git left goes when nobody writes.
pub(crate) async fn look_after(repositories: &Repositories, name: &str) -> Result<bool, GitError> {
    let Ok(repository) = repositories.open(name).await else {
        return Ok(false);
    };
    let folder = repository.folder().to_owned();
    let counting = tokio::task::spawn_blocking(move || Clutter::of(&folder));
    let clutter = counting.await.unwrap_or_default();
    if !clutter.is_too_much() {
        return Ok(false);
    }
    let Some(writing) = repositories.writers().enter_idle(name) else {
        return Ok(false);
    };
    repack(&repository, &clutter).await?;
    writing.done();
    Ok(true)
}

async fn repack(repository: &Repository, clutter: &Clutter) -> Result<(), GitError> {
    if clutter.refs > LOOSE_REFS_MAX {
        let pack = repository.command().args(["pack-refs", "--all"]);
        pack.run_ok().await?;
    }
    repository
        .command()
        .args(["repack", "-d", "-q", "-l"])
        .arg(format!("--geometric={GEOMETRIC_FACTOR}"))
        .timeout(REPACK_MAX)
        .run_ok()
        .await?;
    Ok(())
}

/// Files that a repository could do with fewer of.
#[derive(Debug, Default)]
struct Clutter {
    packs: usize,
    loose: usize,
    refs: usize,
}

impl Clutter {
    fn of(folder: &Path) -> Self {
        let names = |folder: &Path| -> Vec<String> {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
            names.collect()
        };
        let objects = folder.join("objects");
        let packs = names(&objects.join("pack"));
        let fans = names(&objects);
        let fans = fans.iter().filter(|name| name.len() == 2);
        let mut folders = vec![folder.join("refs")];
        let mut refs = 0;
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                    Ok(_) => refs += 1,
                    Err(_) => {}
                }
            }
        }
        Self {
            packs: packs.iter().filter(|name| name.ends_with(".pack")).count(),
            loose: fans.map(|fan| names(&objects.join(fan)).len()).sum(),
            refs,
        }
    }

    fn is_too_much(&self) -> bool {
        self.packs > PACKS_MAX || self.loose > LOOSE_MAX || self.refs > LOOSE_REFS_MAX
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use muster_git::{
        CommitTime, Expected, Git, Identity, ObjectFormat, ObjectId, RefName, RefUpdate, Update,
    };

    use super::*;

    async fn objects(repository: &Repository) -> BTreeSet<String> {
        let listed = repository
            .command()
            .args([
                "cat-file",
                "--batch-all-objects",
                "--batch-check=%(objectname)",
            ])
            .run_ok();
        let listed = listed.await.unwrap().text();
        listed.lines().map(str::to_owned).collect()
    }

    async fn commit(repository: &Repository, number: u64) -> ObjectId {
        let blob = repository.command().args(["hash-object", "-w", "--stdin"]);
        let blob = blob
            .stdin(number.to_string())
            .run_ok()
            .await
            .unwrap()
            .text();
        let tree = repository.command().arg("mktree");
        let tree = tree.stdin(format!("100644 blob {blob}\tfile\n"));
        let tree = ObjectId::parse(&tree.run_ok().await.unwrap().text()).unwrap();
        let ada = Identity::new("Ada", "ada@muster.invalid").unwrap();
        let time = CommitTime::from_unix_seconds(1_800_000_000 + number);
        repository
            .commit_tree(tree, &[], "A commit", &ada, time)
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn an_idle_repository_is_repacked_and_loses_nothing() {
        let home = tempfile::tempdir().unwrap();
        let git = Git::find().await.unwrap();
        let repositories = Repositories::new(git, home.path().to_owned());
        let repository = repositories
            .ready("site", ObjectFormat::Sha1)
            .await
            .unwrap();
        assert_eq!(names(&repository::folder(home.path())), ["site"]);
        assert!(!look_after(&repositories, "site").await.unwrap());
        let mut updates = Vec::new();
        for number in 0..(PACKS_MAX as u64 + 1) {
            let id = commit(&repository, number).await;
            // Some have a name, and some are known to the journal alone.
            if number % 2 == 0 {
                updates.push(RefUpdate {
                    name: RefName::parse(&format!("refs/muster/attempts/r/t/{number}")).unwrap(),
                    new: Some(id),
                    expected: Expected::Absent,
                });
            }
            let pack = repository.command().args(["pack-objects", "-q"]);
            let pack = pack.arg(repository.folder().join("objects/pack/pack"));
            pack.stdin(format!("{id}\n")).run_ok().await.unwrap();
        }
        assert_eq!(
            repository.update_refs(&updates).await.unwrap(),
            Update::Done
        );
        let before = objects(&repository).await;
        let writing = repositories.writers().enter("site").await;
        assert!(
            !look_after(&repositories, "site").await.unwrap(),
            "somebody writes"
        );
        writing.done();
        assert!(look_after(&repositories, "site").await.unwrap());
        let clutter = Clutter::of(repository.folder());
        assert!(clutter.packs < 5 && clutter.loose == 0, "{clutter:?}");
        assert_eq!(objects(&repository).await, before);
        let refs = repository.list_refs("refs/muster/attempts").await.unwrap();
        assert_eq!(refs.len(), updates.len());
        assert!(!look_after(&repositories, "site").await.unwrap());
    }
}
