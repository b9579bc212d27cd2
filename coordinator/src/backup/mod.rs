//! Backups of a home, and what puts one back.
//!
//! A backup is a folder: `manifest` and, under `home`, what cannot be made again. It is read from
//! the home's files beside a coordinator that runs, or without one: everything in a home is either
//! a SQLite database, which gives each reader one moment of itself, or only ever grows. So neither
//! a service of the coordinator nor a pause of it is needed, and a home whose coordinator no longer
//! starts can be saved too.
//!
//! # Why the parts fit together
//!
//! The journal is copied **first**. Whatever it says is there by then: a commit is in its
//! repository, and a record in its transcript, before the event that speaks of it is committed. The
//! rest is copied after it and never loses anything: objects are never collected (`gc.auto` is 0), a
//! repack that moves them into other files while they are copied is seen, and transcripts are appended
//! to. What is newer than the journal would harm in one place only: an
//! attempt that the journal does not know may have published a ref, and the same attempt number
//! will be given again. So refs are taken as the journal has them ([`promises`]): those it names
//! get the commit that it names, those of attempts it does not know stay behind, and what it says
//! nothing about (work in progress, salvage) is kept. Objects are all copied, so that also what no
//! ref reaches any more is there. Transcripts of leases that the journal does not know stay behind
//! too: the attempts that they are of are made again.
//!
//! # What becomes of workers and runs
//!
//! A restored home goes on from the moment of the backup: what was accepted after it is done
//! again. Workers may still hold leases of the lost life. A lease that the backup knows is kept,
//! and so is its work. One granted later is unknown, and its worker is told to stop; its number is
//! never given again, since [`Epoch::RESTORED`] puts the ids of a restored home beyond any that the
//! lost life can have given, also when one backup is put back twice or the clock was set back. Of a
//! lease that the backup knows, the worker sends again whatever output the backup lacks and its disk
//! still has; what it has not any more (the lease was over, and its folder is gone) is lost. Such a worker's credential
//! opens nothing, its report counts for nothing, and its unfinished edits stay on its own disk.
//!
//! [`Epoch::RESTORED`]: coordinator_core::Epoch::RESTORED
//!
//! # What becomes of pools
//!
//! Nobody can tell a copy from a successor. A copy of a home that still runs must neither end that
//! one's allocations nor take its own for them, so a restored home has a name of its own, and lets go
//! of the inventory when it starts. One that takes the other's place keeps both: see [`Claim`].
//!
//! # What is not in a backup
//!
//! Logs, the address file, locks, hooks (all made again), and the folders of local workers: theirs
//! is the same standing as that of workers elsewhere, whose disks the coordinator does not see.

mod check;
mod files;
mod make;
mod manifest;
mod promises;
mod repository;
mod restore;
#[cfg(test)]
mod tests;
mod unfinished;

use std::path::{Path, PathBuf};

use muster_git::GitError;

use crate::{engine, store};

pub use make::make;
pub use manifest::{FORMAT, Manifest};
pub use restore::{Claim, Restored, restore};
pub use unfinished::{leftovers, remove, tidy};

/// Folder in a backup that has the form of a home.
const HOME: &str = "home";
/// File in a backup that says what must be in it.
const MANIFEST: &str = "manifest";
/// How the folder begins in which a backup is made, or a home restored: under its real name there
/// is only ever a whole one.
const UNFINISHED: &str = ".muster-unfinished-";

/// What a backup holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Figures {
    /// The coordinator's last start before the backup.
    pub epoch: u64,
    /// The last batch that the journal holds.
    pub last_batch: u64,
    pub live_runs: usize,
    pub archived_runs: usize,
    pub repositories: usize,
    pub refs: usize,
    /// Commits that the journal names; all are there, with everything that they refer to.
    pub commits: usize,
    pub transcripts: usize,
    /// Transcripts in which something is damaged; they are saved as they are.
    #[serde(default)]
    pub damaged_transcripts: usize,
    pub files: usize,
    pub bytes: u64,
}

/// Why a backup could not be made or put back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{} holds no coordinator's state: there is no {} in it", .0.display(), crate::app::JOURNAL)]
    NoHome(PathBuf),
    #[error("{} is there already; name a folder that is not, or is empty", .0.display())]
    NotEmpty(PathBuf),
    #[error("{} is inside {}; name a folder outside of it", path.display(), of.display())]
    Inside { path: PathBuf, of: PathBuf },
    #[error("{} is a link, and none is followed here: use the real folder or file", .0.display())]
    Link(PathBuf),
    #[error("{} is a mount point; name a folder that is not there yet below it", .0.display())]
    MountPoint(PathBuf),
    #[error("a coordinator{} runs on {}", pid.map(|pid| format!(" (process {pid})")).unwrap_or_default(), path.display())]
    InUse { path: PathBuf, pid: Option<u32> },
    #[error("{} is not a backup of Muster", .0.display())]
    Foreign(PathBuf),
    #[error(
        "the backup was made by Muster {made_by} in format {found}; this one reads up to format \
         {FORMAT}: use that or a newer Muster"
    )]
    NewerFormat { made_by: String, found: u32 },
    #[error("the backup is damaged: {} {what}", path.display())]
    Damaged { path: PathBuf, what: String },
    #[error(
        "{repository}.git lacks commit {commit}, which the journal names: {what}; what is lost \
         cannot be saved, copy the home as it is if you need the rest"
    )]
    MissingCommit {
        repository: String,
        commit: String,
        what: String,
    },
    /// What an audit would find in the copy too.
    #[error("{code}: {place}: {what}{}", and_more(*more))]
    Unsound {
        /// Of the finding.
        code: &'static str,
        place: String,
        what: String,
        /// Findings besides.
        more: usize,
    },
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("the journal cannot be replayed")]
    Replay(#[from] engine::Fatal),
    #[error(transparent)]
    Git(#[from] GitError),
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
}

fn and_more(count: usize) -> String {
    match count {
        0 => String::new(),
        count => format!("; and {count} more"),
    }
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        action,
        path,
        source,
    }
}
