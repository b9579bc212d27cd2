//! What became of a launch whose worker or supervisor was lost.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use super::cgroup::Cgroup;
use super::launch::{Launch, Mark};
use super::report::{Containment, End, ExitReport, LostTree, OutputBytes};
use super::spool::{Content, OutputReader};
use super::{Error, files, tree};
use crate::clock;

/// How often to look again.
const PAUSE: Duration = Duration::from_millis(20);

/// How long processes that got KILL may take to end before they count as remaining.
const SWEEP_TIME: Duration = Duration::from_secs(5);

/// How much of a supervisor's last words is worth a line in the log.
const COMPLAINTS_BYTES: u64 = 2048;

/// Is what is left of a launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leftover {
    /// Its supervisor or guard lives, and is ending the tree if its worker is gone.
    Running,
    /// It ended, or never began and no longer can; no process of it is left.
    Ended(ExitReport),
    /// Its supervisor was lost and processes of it withstand KILL. Asking again may help.
    Unconfirmed,
}

/// Finds out what became of the launch in a folder, waiting up to `patience` for its supervisor.
///
/// Where the supervisor was lost this kills what it left and writes the report in its stead, so
/// asking again gives the same answer. No supervisor that is still on its way can start anything
/// in the folder afterwards.
///
/// # Errors
/// Fails if the folder's files cannot be used; nothing is then known about the processes.
pub async fn leftover(dir: &Path, patience: Duration) -> Result<Leftover, Error> {
    let until = clock::now().after(patience);
    let mut locks = Vec::new();
    for name in files::LOCKS {
        let lock = files::open_lock(dir, name)?;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if clock::now() >= until => {
                    return Ok(Leftover::Running);
                }
                Err(TryLockError::WouldBlock) => tokio::time::sleep(PAUSE).await,
                Err(TryLockError::Error(source)) => {
                    return Err(Error::file("lock", &dir.join(name))(source));
                }
            }
        }
        locks.push(lock);
    }
    // From here on no supervisor can begin; the locks are held until the report stands.
    if let Some(report) = ExitReport::load(dir)? {
        return Ok(Leftover::Ended(report));
    }
    let cgroup = Cgroup::find(dir);
    if let Some(launch) = Launch::load(dir)?
        && sweep(&launch.mark, cgroup.as_ref()).await? == LostTree::Remains
    {
        return Ok(Leftover::Unconfirmed);
    }
    let report = lost(dir, LostTree::Gone, cgroup.as_ref());
    if let Some(cgroup) = &cgroup {
        cgroup.remove();
    }
    report.store(dir)?;
    Ok(Leftover::Ended(report))
}

/// Says what there is to say about a launch whose supervisor was lost.
pub(super) fn lost(dir: &Path, tree: LostTree, cgroup: Option<&Cgroup>) -> ExitReport {
    tracing::warn!(
        folder = %dir.display(),
        said = complaints(dir),
        "a supervisor ended without a report"
    );
    ExitReport {
        end: End::SupervisorLost { tree },
        containment: match cgroup {
            Some(_) => Containment::Cgroup,
            None => Containment::Subreaper,
        },
        times: None,
        output: spooled(dir),
    }
}

/// Reads the last words of a supervisor: empty if it was killed, a panic or an error if it failed.
fn complaints(dir: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(dir.join(files::COMPLAINTS))?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(COMPLAINTS_BYTES)))?;
        let mut said = Vec::new();
        file.take(COMPLAINTS_BYTES).read_to_end(&mut said)?;
        Ok(said)
    };
    let said = read().unwrap_or_default();
    String::from_utf8_lossy(&said).trim().to_owned()
}

/// Counts what a lost supervisor had stored, up to where the spool is torn or damaged.
fn spooled(dir: &Path) -> OutputBytes {
    let mut count = OutputBytes::default();
    let Ok(mut spool) = OutputReader::open(dir, 0) else {
        return count;
    };
    while let Ok(Some(record)) = spool.next_record() {
        match record.content {
            Content::Output { bytes, .. } => count.stored += bytes.len() as u64,
            Content::Truncated { dropped } => count.dropped += dropped,
        }
    }
    count
}

/// Kills everything that carries the mark or is in the cgroup, until nothing is or time is up.
async fn sweep(mark: &Mark, cgroup: Option<&Cgroup>) -> Result<LostTree, Error> {
    let until = clock::now().after(SWEEP_TIME);
    let mut clean = 0;
    loop {
        if let Some(cgroup) = cgroup {
            cgroup.kill();
        }
        let found = tree::marked(mark)?;
        tree::kill_each(&found);
        if found.is_empty() && cgroup.is_none_or(Cgroup::is_empty) {
            // Twice, because a process that is just executing another program has no environment.
            clean += 1;
            if clean == 2 {
                return Ok(LostTree::Gone);
            }
        } else {
            clean = 0;
        }
        if clock::now() >= until {
            return Ok(LostTree::Remains);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_supervisors_last_words_is_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(complaints(dir.path()), "");
        let words = format!("{}it cannot go on\n", "x".repeat(5000));
        std::fs::write(dir.path().join(files::COMPLAINTS), words).unwrap();
        let said = complaints(dir.path());
        assert!(
            said.starts_with('x') && said.ends_with("it cannot go on"),
            "{said}"
        );
        assert!(said.len() <= 2048);
    }
}
