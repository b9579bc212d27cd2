//! What agents said: one append-only file a lease, outside the journal.
//!
//! A record is acknowledged to its worker only after a sync that covers it; syncs are grouped over
//! everything that waits. Events are numbered within their lease, so a repeat is recognised and
//! stored once, and a gap is noted.
//!
//! A file begins with a record that has number 0 and says whose it is, as its path below the
//! transcripts' folder, and which worker held the lease: a file that was put under another's name is
//! found by an audit, and usage is counted for its worker. Files of earlier formats, which say less or
//! nothing, are read and continued as they are.

mod digest;
mod file;
pub mod mend;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coordinator_core::LeaseId;
use coordinator_core::event::Work;
use muster_proto::v1::agent_event::Kind;
use muster_proto::v1::{AgentEvent, OutputTruncated};

pub use digest::Digest;
pub(crate) use file::Heading;
pub use writer::{Appended, Transcripts, Writes};

/// Bytes that one lease's transcript may take. Workers bound their spools below it; what a
/// misbehaving one sends beyond is acknowledged and dropped, with one truncation record.
pub const TRANSCRIPT_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// How long somebody who follows waits for an agent's last words once its lease is over: they come
/// behind the worker's report.
pub const LAST_WORDS: Duration = Duration::from_secs(3);

/// Phase with which workers end a lease's events.
const LAST_PHASE: &str = "reported";

/// Tells whether a worker ends a lease's events with this one.
#[must_use]
pub fn is_last(event: &AgentEvent) -> bool {
    matches!(&event.kind, Some(Kind::Phase(phase)) if phase.name == LAST_PHASE)
}

/// Why a transcript could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the transcript writer has ended")]
    Stopped,
}

/// Which file: where a lease's events belong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub run: Arc<str>,
    /// Empty for the final verify.
    pub task: Arc<str>,
    pub work: Work,
    pub lease: LeaseId,
}

impl Place {
    /// Gives the file's path under the transcripts' folder. Names have been checked to be single,
    /// harmless path components when the run was submitted.
    pub(crate) fn path(&self, root: &Path) -> PathBuf {
        let name = match self.work {
            Work::Attempt { attempt, .. } => format!("attempt-{attempt}-{}.events", self.lease),
            Work::Verify { attempt, .. } => format!("verify-{attempt}-{}.events", self.lease),
            Work::FinalVerify => format!("final-verify-{}.events", self.lease),
        };
        let run = root.join(&*self.run);
        match self.work {
            Work::FinalVerify => run.join(name),
            Work::Attempt { .. } | Work::Verify { .. } => {
                run.join("tasks").join(&*self.task).join(name)
            }
        }
    }
}

/// Gives the lease that a transcript's name is for; `None` for a file of another name.
pub(crate) fn lease_of(path: &Path) -> Option<LeaseId> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".events")?;
    let (_, number) = stem.rsplit_once("-L")?;
    number.parse().ok().map(LeaseId)
}

/// Reads events of a transcript after a number, at most about `bytes` of them.
///
/// A transcript that does not exist (yet) has no events. Meant for blocking threads.
///
/// # Errors
/// The file cannot be read. A torn end is not an error: it was never acknowledged.
pub fn read(
    root: &Path,
    place: &Place,
    after: u64,
    bytes: usize,
) -> Result<Vec<AgentEvent>, Error> {
    file::read(&place.path(root), after, bytes)
}

/// Where a transcript's reader continues: a hint that saves reading from the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub(crate) offset: u64,
    /// Number of the last event before `offset`.
    pub number: u64,
}

/// Reads on from a position, which is moved behind what was read.
///
/// # Errors
/// As [`read`].
pub fn read_on(
    root: &Path,
    place: &Place,
    position: &mut Position,
    bytes: usize,
) -> Result<Vec<AgentEvent>, Error> {
    file::read_on(&place.path(root), position, bytes)
}

/// Reads on from a position in a file, as [`read_on`].
pub(crate) fn read_file_on(
    path: &Path,
    position: &mut Position,
    bytes: usize,
) -> Result<Vec<AgentEvent>, Error> {
    file::read_on(path, position, bytes)
}

/// Reads what a transcript's file says of itself.
pub(crate) fn heading(path: &Path) -> Result<Heading, Error> {
    file::read_heading(path)
}

/// Lists the leases of an attempt or verify that have a transcript, oldest first.
///
/// # Errors
/// The folder cannot be read.
pub fn leases(root: &Path, run: &str, task: &str, work: Work) -> Result<Vec<LeaseId>, Error> {
    let lease = LeaseId(0);
    let place = Place {
        run: Arc::from(run),
        task: Arc::from(task),
        work,
        lease,
    };
    let path = place.path(root);
    let (Some(folder), Some(name)) = (
        path.parent(),
        path.file_name().and_then(|name| name.to_str()),
    ) else {
        return Ok(Vec::new());
    };
    let prefix = name.trim_end_matches("0.events");
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(Error::Io {
                action: "list",
                path: folder.to_owned(),
                source,
            });
        }
    };
    let mut leases: Vec<LeaseId> = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name();
            let number = name
                .to_str()?
                .strip_prefix(prefix)?
                .strip_suffix(".events")?;
            number.parse().ok().map(LeaseId)
        })
        .collect();
    leases.sort_unstable();
    Ok(leases)
}

/// Notes that events up to a number are not there; nobody knows how large they were.
fn missing(number: u64, at_ms: u64) -> AgentEvent {
    let kind = Some(Kind::OutputTruncated(OutputTruncated { bytes: 0 }));
    AgentEvent {
        number,
        at_ms,
        kind,
    }
}
