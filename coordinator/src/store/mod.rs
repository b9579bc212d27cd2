//! What is kept: the journal of committed batches, snapshots, the archive and the tasks' specs.
//!
//! The journal is the truth. Everything else is derived from it or stands beside it: snapshots
//! shorten a start, the archive and the runs' histories let journal rows go, and specs are too
//! large for the state. One [`Store`] writes, driven from one thread; any number of [`Reader`]s
//! read from others and never hold the writer up.
//!
//! A history is gapless from a run's first event to its last, whether the events still stand in
//! the journal or were already moved out of it, before and after archiving.

pub mod form;
pub mod memory;
pub mod sqlite;

#[cfg(test)]
mod agreement;
#[cfg(test)]
mod contract;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use coordinator_core::event::RunOutcome;
use coordinator_core::state::{Image, Run, RunImage, RunPhase, TaskState};
use coordinator_core::{Epoch, Event, RunId, TaskIx, Timestamp};

/// Most events that one [`Reader::run_events`] gives: bounds what a request can make us hold.
pub const EVENTS_PER_READ_MAX: usize = 4_096;
/// Batches in which [`Reader::pool_events`] looks.
pub const POOL_BATCHES: usize = 8_192;
/// Most summaries that one [`Reader::archived_runs`] gives.
pub const SUMMARIES_PER_READ_MAX: usize = 1_000;

/// Number of a committed batch, gapless from 1; 0 stands before the first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct BatchSeq(pub u64);

impl BatchSeq {
    /// Gives the number of the batch after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for BatchSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch {}", self.0)
    }
}

/// A committed batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    pub epoch: Epoch,
    /// When it was decided.
    pub at: Timestamp,
    pub events: Vec<Event>,
}

/// A state as it was behind a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// The last batch that the image contains.
    pub upto: BatchSeq,
    /// When that batch was decided.
    pub at: Timestamp,
    pub image: Image,
}

/// Where the kept state stands. The batches after the snapshot come from [`Store::replay`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Loaded {
    pub snapshot: Option<Snapshot>,
    /// Number that the next batch gets.
    pub next: BatchSeq,
    /// The epoch that was claimed last; 0 on a fresh store.
    pub epoch: Epoch,
}

impl Loaded {
    /// Gives the batch after which replay begins.
    #[must_use]
    pub fn upto(&self) -> BatchSeq {
        self.snapshot
            .as_ref()
            .map_or(BatchSeq::default(), |snapshot| snapshot.upto)
    }
}

/// Whether work that is done in bounded steps is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Call again; commits may go in between.
    More,
    Done,
}

/// An archived run at a glance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Summary {
    pub run: RunId,
    pub name: Arc<str>,
    pub plan: Arc<str>,
    pub outcome: RunOutcome,
    pub submitted_by: Arc<str>,
    pub submitted_at: Timestamp,
    pub ended_at: Timestamp,
    /// Sequence number of the last event that the archived image contains.
    pub last_seq: u64,
    pub tasks: TaskCounts,
}

/// How many tasks of a run ended how.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TaskCounts {
    pub succeeded: u32,
    pub failed: u32,
    pub cancelled: u32,
    pub aborted: u32,
    pub skipped: u32,
    /// Tasks in no final state.
    pub unfinished: u32,
}

impl Summary {
    /// Sums up a run; `None` if it has not ended.
    #[must_use]
    pub fn of(run: &Run) -> Option<Self> {
        let RunPhase::Ended { outcome, at, .. } = &run.phase else {
            return None;
        };
        let mut tasks = TaskCounts::default();
        for task in &run.tasks {
            let count = match task.state {
                TaskState::Succeeded { .. } => &mut tasks.succeeded,
                TaskState::Failed { .. } => &mut tasks.failed,
                TaskState::Cancelled { .. } => &mut tasks.cancelled,
                TaskState::Aborted { .. } => &mut tasks.aborted,
                TaskState::Skipped { .. } => &mut tasks.skipped,
                TaskState::Blocked { .. }
                | TaskState::Basing { .. }
                | TaskState::Ready { .. }
                | TaskState::Leased { .. }
                | TaskState::Verifying { .. }
                | TaskState::Parked(_) => &mut tasks.unfinished,
            };
            *count += 1;
        }
        Some(Self {
            run: run.id,
            name: Arc::clone(&run.name),
            plan: Arc::clone(&run.plan),
            outcome: outcome.clone(),
            submitted_by: Arc::clone(&run.submitted_by),
            submitted_at: run.submitted_at,
            ended_at: *at,
            last_seq: run.last_seq,
            tasks,
        })
    }
}

/// The writing side: one per store, driven from one thread.
///
/// Every method is one transaction (or, where it says so, several) that has either happened
/// durably when it returns `Ok`, or, after an error, may or may not have happened but never in
/// part. After an error of [`Store::append`] the state in memory cannot be trusted to match; the
/// one way on is to load again.
pub trait Store: Send {
    /// Finds the newest snapshot that can be read, and where the journal ends.
    ///
    /// # Errors
    /// A store that cannot be read, or snapshots that are all damaged.
    fn load(&mut self) -> Result<Loaded, Error>;

    /// Gives all batches after `after` to `visit`, in order and without a gap.
    ///
    /// # Errors
    /// A damaged or missing batch; `visit` has then seen only sound batches before it.
    fn replay(
        &mut self,
        after: BatchSeq,
        visit: &mut dyn FnMut(BatchSeq, Batch),
    ) -> Result<(), Error>;

    /// Takes a new epoch, larger than any before. Whoever holds an older one can write no more.
    /// To be called before any write.
    ///
    /// # Errors
    /// The database's own; the epoch may then be used up, which harms nothing.
    fn claim_epoch(&mut self) -> Result<Epoch, Error>;

    /// Commits a batch with a full sync, if `expected` is the journal's next number and `epoch`
    /// the newest epoch.
    ///
    /// # Errors
    /// [`Error::Fenced`], [`Error::Conflict`] and [`Error::Gap`]: nothing has happened. Any other:
    /// it may or may not have happened.
    fn append(
        &mut self,
        expected: BatchSeq,
        epoch: Epoch,
        at: Timestamp,
        events: &[Event],
    ) -> Result<(), Error>;

    /// Keeps the state as it was behind `upto`, reads it back and compares; only then it counts.
    /// The newest two that count are kept. Repeating it is harmless.
    ///
    /// # Errors
    /// [`Error::NoSuchBatch`], and [`Error::NotVerified`] if what was read back is not what was
    /// written: earlier snapshots then stay as they were.
    fn snapshot(&mut self, upto: BatchSeq, image: &Image) -> Result<(), Error>;

    /// Removes journal rows behind the older of two verified snapshots, a bounded number at a
    /// time. The events of runs are first moved into the runs' histories, in the same transaction.
    /// With fewer than two snapshots nothing is removed.
    ///
    /// # Errors
    /// The database's own, or a damaged batch: nothing of this step has happened.
    fn truncate(&mut self) -> Result<Progress, Error>;

    /// Keeps an ended run's final image and its complete history, a bounded number of events at a
    /// time; the run shows in the archive only when all is there. Repeating it is harmless, and a
    /// run that was retried is archived anew under the same id.
    ///
    /// # Errors
    /// [`Error::NotEnded`], [`Error::ArchivedLater`], or [`Error::HistoryEnds`] if the journal does
    /// not hold the run's events up to its image.
    fn archive(&mut self, image: &RunImage) -> Result<Progress, Error>;

    /// Keeps the specs of a run's tasks under a key of the caller's, in the order of the tasks.
    /// To be called before the run is admitted; replaces what the key held.
    ///
    /// # Errors
    /// The database's own: the key holds what it held before, or what was given.
    fn put_specs(&mut self, key: &str, specs: &[Vec<u8>]) -> Result<(), Error>;

    /// Forgets the specs of all other keys: those of submissions that were never admitted.
    ///
    /// # Errors
    /// The database's own: nothing or all has been forgotten.
    fn delete_specs_except(&mut self, keys: &[&str]) -> Result<(), Error>;

    /// Opens a reader for another thread.
    ///
    /// # Errors
    /// The database's own.
    fn reader(&self) -> Result<Box<dyn Reader>, Error>;
}

/// The reading side: sees what is committed and never holds the writer up.
pub trait Reader: Send {
    /// Gives a run's events from a sequence number on, in order, of live and archived runs alike;
    /// at most `limit` and [`EVENTS_PER_READ_MAX`]. Empty behind the last event and for runs that
    /// are not known.
    ///
    /// # Errors
    /// The database's own, or damaged events.
    fn run_events(&mut self, run: RunId, from: u64, limit: usize) -> Result<Vec<Event>, Error>;

    /// Gives what happened to pools lately, in order: the last `limit` events at most, as far as they
    /// are among the last [`POOL_BATCHES`] of the journal and still stand there.
    ///
    /// # Errors
    /// The database's own, or damaged events.
    fn pool_events(&mut self, limit: usize) -> Result<Vec<Event>, Error>;

    /// Finds an archived run. A run that was reloaded since is still found, as it was then.
    ///
    /// # Errors
    /// The database's own, or a damaged summary.
    fn archived(&mut self, which: Which<'_>) -> Result<Option<Summary>, Error>;

    /// Gives archived runs, newest submission first, that were submitted before a run; at most
    /// `limit` and [`SUMMARIES_PER_READ_MAX`].
    ///
    /// # Errors
    /// The database's own, or a damaged summary.
    fn archived_runs(&mut self, before: Option<RunId>, limit: usize)
    -> Result<Vec<Summary>, Error>;

    /// Gives an archived run's final image.
    ///
    /// # Errors
    /// The database's own, or a damaged image.
    fn archived_image(&mut self, run: RunId) -> Result<Option<RunImage>, Error>;

    /// Gives the spec of a task.
    ///
    /// # Errors
    /// The database's own.
    fn spec(&mut self, key: &str, task: TaskIx) -> Result<Option<Vec<u8>>, Error>;
}

/// What an archived run is asked for by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which<'a> {
    Id(RunId),
    Name(&'a str),
}

/// Why the store refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another coordinator has taken over.
    #[error("write with {given} refused: the store belongs to {held}")]
    Fenced { given: Epoch, held: Epoch },
    #[error("append of {expected} refused: the journal's next is {next}")]
    Conflict { expected: BatchSeq, next: BatchSeq },
    /// Our own promise is broken: events of a run are missing or double.
    #[error("event {found} of {run} where event {expected} must follow")]
    Gap {
        run: RunId,
        expected: u64,
        found: u64,
    },
    #[error("the events of {run} end with {last}, its image is as of event {wanted}")]
    HistoryEnds { run: RunId, last: u64, wanted: u64 },
    #[error("{0} is not in the journal")]
    NoSuchBatch(BatchSeq),
    #[error("the snapshot behind {0} reads back differently than it was written")]
    NotVerified(BatchSeq),
    #[error("{0} cannot be archived before it has ended")]
    NotEnded(RunId),
    #[error("{run} is already archived as of event {held}, later than event {given}")]
    ArchivedLater { run: RunId, held: u64, given: u64 },
    #[error("{what} cannot be read")]
    Form { what: Place, source: form::Error },
    #[error(
        "{0} is damaged: its checksum does not match; `coordinator restore` puts a backup into a \
         new home"
    )]
    Damaged(Place),
    #[error(
        "the state was written by Muster {written_by} in format {found}; this one reads up to \
         format {known}: start that or a newer Muster"
    )]
    NewerFormat {
        written_by: String,
        found: i64,
        known: i64,
    },
    #[error("{} is not a journal of Muster", .0.display())]
    Foreign(PathBuf),
    #[error("{} is damaged: {found}; `coordinator restore` puts a backup into a new home", path.display())]
    Inconsistent { path: PathBuf, found: String },
    #[error(
        "{} lies on a network file system ({kind}), which cannot keep a journal safe: set \
         MUSTER_HOME to a folder on a local disk",
        path.display()
    )]
    NetworkFileSystem { path: PathBuf, kind: String },
    #[error(
        "{} is cut: {found} bytes are left of {wanted}; `coordinator restore FROM --home NEW` puts \
         a backup into a new home, and a MUSTER_HOME that is not there yet begins anew",
        path.display()
    )]
    Cut {
        path: PathBuf,
        found: u64,
        wanted: u64,
    },
    #[error(
        "{} is missing though its log (-wal) is there; `coordinator restore FROM --home NEW` puts \
         a backup into a new home, and a MUSTER_HOME that is not there yet begins anew",
        .0.display()
    )]
    MainMissing(PathBuf),
    #[error("failed to {doing} {}", path.display())]
    File {
        doing: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("failed to {doing}")]
    Database {
        doing: &'static str,
        source: rusqlite::Error,
    },
    #[error("number {0} does not fit the database")]
    Number(u64),
    /// Only of [`memory::MemoryStore`].
    #[error("failed as a test asked for")]
    Injected,
}

impl Error {
    /// Tells whether it is the disk that refuses, for which the one who keeps it can do something.
    #[must_use]
    pub fn is_of_disk(&self) -> bool {
        use rusqlite::ErrorCode;
        match self {
            Self::Database {
                source: rusqlite::Error::SqliteFailure(failure, _),
                ..
            } => matches!(
                failure.code,
                ErrorCode::DiskFull
                    | ErrorCode::SystemIoFailure
                    | ErrorCode::ReadOnly
                    | ErrorCode::CannotOpen
            ),
            Self::File { .. } => true,
            _ => false,
        }
    }

    /// Tells whether what is kept is damaged, so that only a backup helps.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        use rusqlite::{Error as Sqlite, ErrorCode};
        match self {
            Self::Damaged(_)
            | Self::Cut { .. }
            | Self::MainMissing(_)
            | Self::Foreign(_)
            | Self::Inconsistent { .. }
            | Self::NoSuchBatch(_)
            | Self::Gap { .. }
            | Self::HistoryEnds { .. } => true,
            Self::Form { source, .. } => !matches!(
                source,
                form::Error::NewerForm { .. }
                    | form::Error::NewerEvent
                    | form::Error::Unknown { .. }
            ),
            Self::Database { source, .. } => match source {
                Sqlite::SqliteFailure(failure, _) => matches!(
                    failure.code,
                    ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown
                ),
                // A table, a row or a value is not what we made it.
                _ => true,
            },
            _ => false,
        }
    }

    /// Tells whether the same write may succeed a little later: the disk is full or busy.
    ///
    /// An operation that failed is not of that kind. After a refused sync nobody knows what reached
    /// the disk, and one that succeeds afterwards proves nothing, as PostgreSQL found in 2018.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        use rusqlite::ErrorCode;
        match self {
            Self::Database {
                source: rusqlite::Error::SqliteFailure(failure, _),
                ..
            } => matches!(
                failure.code,
                ErrorCode::DatabaseBusy
                    | ErrorCode::DatabaseLocked
                    | ErrorCode::DiskFull
                    | ErrorCode::OutOfMemory
            ),
            _ => false,
        }
    }
}

/// A row that an error is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    Batch(BatchSeq),
    Snapshot(BatchSeq),
    History(RunId),
    Archive(RunId),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Batch(batch) => write!(f, "{batch} of the journal"),
            Self::Snapshot(batch) => write!(f, "the snapshot behind {batch}"),
            Self::History(run) => write!(f, "the history of {run}"),
            Self::Archive(run) => write!(f, "the archived {run}"),
        }
    }
}

/// Checks that each run's events follow one another, and tells where each run's begin and end.
fn runs_of(events: &[Event]) -> Result<Vec<(RunId, u64, u64)>, Error> {
    let mut runs = std::collections::BTreeMap::<RunId, (u64, u64)>::new();
    for event in events {
        let Some(run) = event.kind.run() else {
            continue;
        };
        let (_, last) = runs
            .entry(run)
            .or_insert((event.seq, event.seq.saturating_sub(1)));
        follows(run, *last, event.seq)?;
        *last = event.seq;
    }
    Ok(runs
        .into_iter()
        .map(|(run, (first, last))| (run, first, last))
        .collect())
}

/// Checks that an event comes right behind the last one of its run.
fn follows(run: RunId, last: u64, found: u64) -> Result<(), Error> {
    let expected = last.saturating_add(1);
    if found == expected {
        Ok(())
    } else {
        Err(Error::Gap {
            run,
            expected,
            found,
        })
    }
}
