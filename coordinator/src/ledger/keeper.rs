//! The thread that writes the ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use coordinator_core::LeaseId;
use tracing::{info, warn};

use super::database::{Database, is_spoiled};
use super::{Error, Grown, Lag, Message, beside};
use crate::causes::chain;
use crate::transcript::lease_of;

/// How long usage waits for more, to be written with it.
const GATHER: Duration = Duration::from_millis(100);
/// How long a mark waits that has moved over output alone.
const GATHER_MARKS: Duration = Duration::from_secs(5);
/// Leases that wait to be written, whatever the time.
const LEASES_MAX: usize = 512;
/// Rows that wait to be written, whatever the time.
const ROWS_MAX: usize = 8_192;
/// Pause after the disk has refused, and between two looks at all transcripts.
const PAUSE: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 5_000 });
/// Whenever nothing comes.
const IDLE: Duration = Duration::from_secs(3_600);

/// Owner of the ledger's file.
pub(super) struct Keeper {
    path: Arc<Path>,
    /// Folder of the transcripts.
    root: PathBuf,
    missed: Arc<AtomicBool>,
    lag: Lag,
    database: Option<Database>,
    waiting: BTreeMap<LeaseId, Grown>,
    rows: usize,
    /// When what waits is written.
    due: Option<Instant>,
    /// When all transcripts are looked at; then what waits is in them.
    look_at: Option<Instant>,
}

impl Keeper {
    pub(super) fn new(path: Arc<Path>, root: PathBuf, missed: Arc<AtomicBool>, lag: Lag) -> Self {
        Self {
            // At once, so that a home has all its files when its coordinator answers.
            database: Database::open(&path).ok(),
            path,
            root,
            missed,
            lag,
            waiting: BTreeMap::new(),
            rows: 0,
            due: None,
            look_at: Some(Instant::now()),
        }
    }

    /// Works until nobody can send any more, or it is closed.
    pub(super) fn run(mut self, inbox: &Receiver<Message>) {
        loop {
            self.look_if_due();
            let until = [self.due, self.look_at].into_iter().flatten().min();
            let patience = until.map_or(IDLE, |until| {
                until.saturating_duration_since(Instant::now())
            });
            match inbox.recv_timeout(patience) {
                Ok(Message::Grown(grown)) => self.wait_with(*grown),
                Ok(Message::Settle(done)) => {
                    self.look_if_due();
                    self.write();
                    // Whoever asked may have lost patience.
                    let _ = done.send(());
                }
                Ok(Message::Close(done)) => {
                    self.write();
                    self.database = None;
                    let _ = done.send(());
                    return;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.write();
                    return;
                }
            }
            let full = self.waiting.len() >= LEASES_MAX || self.rows >= ROWS_MAX;
            if full || self.due.is_some_and(|due| Instant::now() >= due) {
                self.write();
            }
        }
    }

    /// Keeps news until they are written, merged with what waits of the same lease.
    fn wait_with(&mut self, grown: Grown) {
        let gather = if grown.entries.is_empty() {
            GATHER_MARKS
        } else {
            GATHER
        };
        let due = Instant::now() + gather;
        self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
        self.rows += grown.entries.len();
        match self.waiting.get_mut(&grown.lease) {
            None => {
                self.waiting.insert(grown.lease, grown);
            }
            Some(before) => before.go_on(grown),
        }
    }

    fn write(&mut self) {
        self.due = None;
        self.rows = 0;
        let waiting = std::mem::take(&mut self.waiting);
        // Before the transcripts were looked at, nobody knows what to add to.
        let Some(database) = self.database.as_mut().filter(|_| self.look_at.is_none()) else {
            return;
        };
        if let Err(error) = database.take(&self.root, waiting.values()) {
            self.lag_behind(&error);
        }
    }

    /// Looks at all transcripts if that is due, or if news were missed.
    fn look_if_due(&mut self) {
        if self.missed.swap(false, Ordering::AcqRel) && self.look_at.is_none() {
            self.lag
                .set(Some("more came than it could write at once".to_owned()));
            self.look_at = Some(Instant::now());
        }
        if self.look_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        match self.catch_up() {
            Ok(()) => {
                self.look_at = None;
                self.lag.set(None);
            }
            Err(error) => self.lag_behind(&error),
        }
    }

    fn lag_behind(&mut self, error: &Error) {
        let reason = chain(error);
        warn!(
            error = reason,
            "the ledger of usage cannot be written; it catches up from the transcripts later"
        );
        self.lag.set(Some(reason));
        self.look_at = Some(Instant::now() + PAUSE);
    }

    /// Reads all transcripts on from where the ledger has read them.
    ///
    /// # Errors
    /// The first one, after all that could be read was.
    pub(super) fn catch_up(&mut self) -> Result<(), Error> {
        match self.catch_up_once() {
            Err(error) if is_spoiled(&error) => {
                warn!(
                    error = chain(&error),
                    "the ledger of usage is damaged or of another version; it is made anew"
                );
                self.database = None;
                for end in ["", "-wal", "-shm"] {
                    remove(&beside(&self.path, end))?;
                }
                self.catch_up_once()
            }
            other => other,
        }
    }

    fn catch_up_once(&mut self) -> Result<(), Error> {
        let mut database = match self.database.take() {
            Some(database) => database,
            None => Database::open(&self.path)?,
        };
        let read = self.read_all(&mut database);
        // Kept open on a full disk: closing would give room back, which the journal would take as a sign
        // that all is well.
        if !read.as_ref().is_err_and(is_spoiled) {
            self.database = Some(database);
        }
        read
    }

    fn read_all(&self, database: &mut Database) -> Result<(), Error> {
        let begun = Instant::now();
        let mut gone = database.leases()?;
        let (mut seen, mut first) = (BTreeSet::new(), None);
        let (files, listed) = transcripts(&self.root);
        for path in files {
            let Some(lease) = lease_of(&path) else {
                continue;
            };
            gone.remove(&lease);
            // Of two files for one lease at least one was put there by hand: the audit says so.
            if !seen.insert(lease) {
                continue;
            }
            match database.read_on(&self.root, lease, &path) {
                Ok(()) => {}
                Err(error @ Error::Database { .. }) => return Err(error),
                Err(error) => {
                    first.get_or_insert(error);
                }
            }
        }
        // A folder that could not be read may hold them.
        if listed.is_ok() {
            for lease in gone.keys() {
                database.forget(*lease)?;
            }
        }
        info!(
            transcripts = seen.len(),
            milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            "the ledger of usage has caught up with the transcripts"
        );
        match first {
            Some(error) => Err(error),
            None => listed,
        }
    }
}

impl Grown {
    /// Adds what came later.
    fn go_on(&mut self, later: Self) {
        self.rewritten |= later.rewritten;
        if later.from == self.to && !later.rewritten {
            self.entries.extend(later.entries);
        } else {
            // What is between is only in the transcript.
            self.entries.clear();
            self.is_whole = false;
        }
        self.to = later.to;
    }
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != ErrorKind::NotFound => Err(Error::Io {
            action: "remove",
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// Lists all transcripts, as paths below their folder, and says whether that is all of them.
fn transcripts(root: &Path) -> (Vec<PathBuf>, Result<(), Error>) {
    let (mut files, mut folders, mut result) = (Vec::new(), vec![root.to_owned()], Ok(()));
    while let Some(folder) = folders.pop() {
        let failed = |source| Error::Io {
            action: "list",
            path: folder.clone(),
            source,
        };
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => {
                result = Err(failed(error));
                continue;
            }
        };
        for entry in entries {
            match entry.and_then(|entry| Ok((entry.file_type()?, entry.path()))) {
                Ok((kind, path)) if kind.is_dir() => folders.push(path),
                Ok((kind, path)) if kind.is_file() => {
                    if let Ok(below) = path.strip_prefix(root) {
                        files.push(below.to_owned());
                    }
                }
                // Neither a link nor a pipe is a transcript.
                Ok(_) => {}
                Err(error) => result = Err(failed(error)),
            }
        }
    }
    files.sort_unstable();
    (files, result)
}
