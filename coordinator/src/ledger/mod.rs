//! What model agents have consumed, for questions that no single transcript answers.
//!
//! Transcripts are the truth: usage is an event among others, numbered within its lease and stored
//! once. The ledger is a projection of them in a file of its own (`usage.db` in the home), one row for
//! each such event, keyed by lease and event number. For each lease it knows up to where its transcript
//! was read, and that mark moves in the transaction that adds the rows; so nothing counts twice,
//! whatever is sent again and whoever is killed between two steps. A ledger that was deleted, or left
//! out of a backup, is made anew from the transcripts and is the same.
//!
//! It is written behind the transcripts, by a thread of its own that the engine never waits for. When
//! its disk takes nothing, or more comes than it can write, it lags, says so, and catches up from the
//! transcripts later.
//!
//! Tokens are kept and not their price: what a price was is settled when somebody asks.

mod database;
mod keeper;
pub mod prices;
mod query;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coordinator_core::LeaseId;
use coordinator_core::event::Work;
use muster_proto::v1::AgentEvent;
use muster_proto::v1::activity::Kind as Doing;
use muster_proto::v1::agent_event::Kind;
use tokio::sync::Semaphore;

pub(crate) use database::{Beside, Checker};
pub use query::{Filter, Group, GroupBy, Sums, Usage};

use crate::transcript::{Place, Position};

/// File of the ledger in the home.
pub const FILE_NAME: &str = "usage.db";
/// News that may wait for the ledger's thread; what comes beyond is read from the transcripts later.
const QUEUE: usize = 4_096;
/// Questions that are answered at once.
const READS: usize = 2;
/// Most tokens of one event that are believed: a worker that claims more is broken or lies, and sums
/// of such claims would not fit their column.
const TOKENS_MAX: u64 = 10_000_000_000;
/// The same for an agent's own reckoning: a hundred thousand dollars.
const COST_MICROS_MAX: u64 = 100_000_000_000;
/// What a column holds at the most.
const COLUMN_MAX: u64 = i64::MAX.cast_unsigned();
/// Bytes of a model's name that are kept.
const MODEL_BYTES_MAX: usize = 200;

/// Why the ledger cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {doing} the ledger of usage")]
    Database {
        doing: &'static str,
        #[source]
        source: rusqlite::Error,
    },
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Transcript(#[from] crate::transcript::Error),
    #[error("the ledger of usage is of another form")]
    Form,
}

/// What one event says was consumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Number of the event in its lease.
    pub(crate) number: u64,
    /// By the worker's clock, in milliseconds since 1970.
    pub(crate) at_ms: u64,
    pub(crate) turn: u32,
    pub(crate) model: String,
    /// All input, with what was read from and written to a cache.
    pub(crate) input: u64,
    pub(crate) cached: u64,
    pub(crate) cache_write: u64,
    /// All output, with reasoning.
    pub(crate) output: u64,
    pub(crate) reasoning: u64,
    /// Calls of the model; 0 if the agent did not say.
    pub(crate) calls: u32,
    /// Further calls, of which the agent did not say what they consumed.
    pub(crate) unknown_calls: u32,
    /// What the agent reckons itself, in millionths of a dollar.
    pub(crate) cost_micros: Option<u64>,
}

impl Entry {
    /// Reads an event; `None` if it is about something else.
    pub(crate) fn of(event: &AgentEvent) -> Option<Self> {
        let Some(Kind::Activity(activity)) = &event.kind else {
            return None;
        };
        let Some(Doing::Usage(usage)) = &activity.kind else {
            return None;
        };
        let tokens = |count: u64| count.min(TOKENS_MAX);
        Some(Self {
            number: event.number.min(COLUMN_MAX),
            at_ms: event.at_ms.min(COLUMN_MAX),
            turn: activity.turn,
            model: clipped(&usage.model),
            input: tokens(usage.input_tokens),
            cached: tokens(usage.cached_input_tokens),
            cache_write: tokens(usage.cache_write_tokens),
            output: tokens(usage.output_tokens),
            reasoning: tokens(usage.reasoning_tokens),
            calls: usage.calls,
            unknown_calls: usage.unknown_calls,
            cost_micros: usage.cost_micros.map(|cost| cost.min(COST_MICROS_MAX)),
        })
    }
}

fn clipped(model: &str) -> String {
    let mut end = model.len().min(MODEL_BYTES_MAX);
    while !model.is_char_boundary(end) {
        end -= 1;
    }
    model.get(..end).unwrap_or_default().to_owned()
}

/// What a lease was for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) run: String,
    /// Empty for the final verify.
    pub(crate) task: String,
    pub(crate) work: WorkKind,
    /// 0 for the final verify.
    pub(crate) attempt: u32,
    /// Empty if its transcript does not say.
    pub(crate) worker: String,
}

/// The kinds of work, as they are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkKind {
    Attempt,
    Verify,
    FinalVerify,
}

impl WorkKind {
    const ALL: [Self; 3] = [Self::Attempt, Self::Verify, Self::FinalVerify];

    /// Gives the stable name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Attempt => "attempt",
            Self::Verify => "verify",
            Self::FinalVerify => "final_verify",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// A transcript that has grown, up to where a sync has covered it.
#[derive(Clone, Debug)]
pub(crate) struct Grown {
    lease: LeaseId,
    owner: Owner,
    /// The file, below the transcripts' folder.
    path: PathBuf,
    from: Position,
    pub(crate) to: Position,
    pub(crate) entries: Vec<Entry>,
    /// What was in the file before may not be there any more.
    pub(crate) rewritten: bool,
    /// The entries are all there are between the two positions.
    is_whole: bool,
}

impl Grown {
    /// Begins with nothing.
    pub(crate) fn new(place: &Place, worker: &str, from: Position) -> Self {
        let (work, attempt) = match place.work {
            Work::Attempt { attempt, .. } => (WorkKind::Attempt, attempt.0),
            Work::Verify { attempt, .. } => (WorkKind::Verify, attempt.0),
            Work::FinalVerify => (WorkKind::FinalVerify, 0),
        };
        Self {
            lease: place.lease,
            owner: Owner {
                run: place.run.to_string(),
                task: place.task.to_string(),
                work,
                attempt,
                worker: worker.to_owned(),
            },
            path: place.path(Path::new("")),
            from,
            to: from,
            entries: Vec::new(),
            rewritten: false,
            is_whole: true,
        }
    }
}

enum Message {
    Grown(Box<Grown>),
    /// Somebody wants to know when all that came before is in the ledger.
    Settle(Sender<()>),
    Close(Sender<()>),
}

/// Where the writer of transcripts leaves its news. It never waits.
#[derive(Clone)]
pub(crate) struct Inbox {
    messages: SyncSender<Message>,
    missed: Arc<AtomicBool>,
}

impl Inbox {
    /// Tells of a transcript that has grown.
    pub(crate) fn grown(&self, grown: Grown) {
        match self.messages.try_send(Message::Grown(Box::new(grown))) {
            Ok(()) => {}
            // It is in the transcript.
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.missed.store(true, Ordering::Release);
            }
        }
    }
}

/// Why the ledger is behind its transcripts; `None` if it is not, or only by moments.
#[derive(Clone, Default)]
struct Lag(Arc<Mutex<Option<String>>>);

impl Lag {
    fn set(&self, reason: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    fn get(&self) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Handle of the ledger; cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    path: Arc<Path>,
    inbox: Inbox,
    lag: Lag,
    reads: Arc<Semaphore>,
}

impl Ledger {
    /// Starts the ledger's thread over a home. It catches up with the transcripts by itself.
    ///
    /// # Errors
    /// The thread cannot be started. A ledger that cannot be opened is no error: it lags.
    pub fn start(home: &Path) -> Result<Self, std::io::Error> {
        let (messages, inbox) = sync_channel(QUEUE);
        let missed = Arc::new(AtomicBool::new(false));
        let lag = Lag::default();
        // Until it has looked.
        lag.set(Some("it is catching up with the transcripts".to_owned()));
        let path: Arc<Path> = home.join(FILE_NAME).into();
        let keeper = keeper::Keeper::new(
            path.clone(),
            home.join("transcripts"),
            missed.clone(),
            lag.clone(),
        );
        std::thread::Builder::new()
            .name("ledger".into())
            .spawn(move || keeper.run(&inbox))?;
        Ok(Self {
            path,
            inbox: Inbox { messages, missed },
            lag,
            reads: Arc::new(Semaphore::new(READS)),
        })
    }

    /// Gives what the writer of transcripts talks to.
    pub(crate) fn inbox(&self) -> Inbox {
        self.inbox.clone()
    }

    /// Waits until everything that was synced before is in the ledger, at most so long; gives why it
    /// is not.
    pub async fn settle(&self, patience: Duration) -> Option<String> {
        let messages = self.inbox.messages.clone();
        let settled = tokio::task::spawn_blocking(move || {
            let (done, settled) = std::sync::mpsc::channel();
            messages.try_send(Message::Settle(done)).is_ok()
                && settled.recv_timeout(patience).is_ok()
        });
        match settled.await {
            Ok(true) => self.lag.get(),
            Ok(false) | Err(_) => {
                let busy = || "it is catching up with the transcripts".to_owned();
                Some(self.lag.get().unwrap_or_else(busy))
            }
        }
    }

    /// Tells whether it is known to be behind, so that waiting would not help soon.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.lag.get().is_some()
    }

    /// Sums up what fits a filter, by groups.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub async fn usage(&self, filter: Filter, by: GroupBy, limit: usize) -> Result<Usage, Error> {
        let _room = self.reads.acquire().await;
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || {
            if !path.exists() {
                return Ok(Usage::default());
            }
            let connection = database::open_to_read(&path, Beside::Writer)?;
            query::usage(&connection, &filter, by, limit)
        });
        read.await.unwrap_or_else(|error| {
            Err(Error::Io {
                action: "read",
                path: self.path.to_path_buf(),
                source: std::io::Error::other(error),
            })
        })
    }

    /// Writes what has come and ends the thread.
    pub async fn close(&self) {
        let messages = self.inbox.messages.clone();
        let closed = tokio::task::spawn_blocking(move || {
            let (done, closed) = std::sync::mpsc::channel();
            // One that cannot write leaves it to the next start.
            messages.send(Message::Close(done)).is_ok() && closed.recv().is_ok()
        });
        // It fails only if it panicked.
        drop(closed.await);
    }
}

/// Makes a home's ledger what its transcripts say, while nobody else writes either.
///
/// # Errors
/// The disk.
pub(crate) fn rebuild(home: &Path) -> Result<(), Error> {
    let mut keeper = keeper::Keeper::new(
        home.join(FILE_NAME).into(),
        home.join("transcripts"),
        Arc::default(),
        Lag::default(),
    );
    keeper.catch_up()
}

/// Names the ledger's files in a home: the database, and what SQLite keeps beside it.
pub(crate) fn files(home: &Path) -> [PathBuf; 3] {
    let path = home.join(FILE_NAME);
    ["", "-wal", "-shm"].map(|end| beside(&path, end))
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}
