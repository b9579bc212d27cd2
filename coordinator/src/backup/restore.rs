//! Puts a backup back as a home.

use std::fs::File;
use std::path::Path;

use coordinator_core::Epoch;
use muster_connect::private_file;
use muster_git::Git;
use rustix::fs::{FlockOperation, flock};

use super::manifest::Manifest;
use super::unfinished::Unfinished;
use super::{Error, Figures, HOME, check, files, io};
use crate::app::JOURNAL;
use crate::auth::home_id;
use crate::home::LOCK;
use crate::pool;
use crate::store::sqlite;

/// A home that was put back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// When the backup was made.
    pub made_at: String,
    pub figures: Figures,
    /// The epoch that the next start adds one to.
    pub epoch: Epoch,
    /// What the pools had; `None` when none ever had anything.
    pub allocations: Option<usize>,
}

/// What a restored home is to the pools of the one that was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// A copy: that one may still run. Its allocations are neither listed nor ended, and their
    /// workers cannot join here.
    Copy,
    /// Its successor: that one is gone for good. Allocations that the backup knows go on, others of
    /// that name are ended.
    Successor,
}

/// Puts a backup back as a home that is not there yet, or is empty.
///
/// Every checksum is compared before anything is written, and everything is read again as it was
/// when the backup was made. The home gets its name when all of it is on disk.
///
/// # Errors
/// Whatever it is, there is no new home. The backup is only read.
pub async fn restore(backup: &Path, home: &Path, claim: Claim) -> Result<Restored, Error> {
    let manifest = Manifest::read(backup)?;
    let saved = backup.join(HOME);
    files::compare(&saved, &manifest.files)?;
    must_be_unused(home)?;
    files::must_be_outside(home, backup)?;
    files::must_be_free(home)?;
    let git = Git::find().await?;

    let unfinished = Unfinished::begin(home)?;
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
    check::repositories(&git, fresh, &journal).await?;
    let now = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default();
    let (_, random) = uuid::Uuid::new_v4().as_u64_pair();
    let floor = floor(now, journal.last_id.max(journal.figures.epoch), random);
    let epoch = sqlite::restored(&fresh.join(JOURNAL), floor)?;
    if claim == Claim::Copy {
        home_id::renew(fresh).map_err(io("name", fresh))?;
        let mark = fresh.join(pool::DISOWNS);
        private_file::replace(&mark, b"").map_err(io("write", &mark))?;
    }
    files::sync(fresh)?;
    unfinished.publish(home)?;
    Ok(Restored {
        made_at: manifest.made_at,
        figures: manifest.figures,
        epoch,
        allocations: journal.allocations,
    })
}

/// How far a restore goes beyond all that is known: more ids than any life gives.
const STRIDE: u64 = 1 << 40;

/// Gives the epoch, and with it the first id, of a home put back from a backup.
///
/// Two lives must not give one id. One is the life that was lost, which went on from the largest
/// number that the backup knows: a whole stride beyond that it has never come. The other is a home
/// put back from the same backup, now or before: the clock tells them apart while it only goes
/// forward, and where it was set back, the random part does, unless two of 2^40 values lie closer
/// together than the ids that one life gives (for a million ids, two chances in a million).
///
/// Each restore of a restored home adds a stride at least, so that numbers stay below 2^53, which
/// JSON's readers can hold, for four thousand of them in a row.
fn floor(now_ms: u64, known: u64, random: u64) -> u64 {
    now_ms
        .max(known)
        .saturating_add(STRIDE)
        .saturating_add(random % STRIDE)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restored_home_begins_beyond_the_lost_life_also_when_the_clock_was_set_back() {
        let (now, earlier) = (1_763_000_000_000, 1_000);
        let first = floor(now, 7, 1);
        assert!(first > now + STRIDE);
        // A backup of that life, put back under a clock that stands in 1970.
        let second = floor(earlier, first + 1_000_000, 0);
        assert!(second >= first + 1_000_000 + STRIDE);
        // The same backup twice, under one clock.
        assert_ne!(floor(earlier, 7, 5), floor(earlier, 7, 6));
        assert!(floor(earlier, 7, u64::MAX) < Epoch::RESTORED.0 << 2);
    }
}
