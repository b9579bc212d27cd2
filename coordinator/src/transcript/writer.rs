//! The thread that appends to transcripts and syncs them in groups.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coordinator_core::LeaseId;
use muster_proto::v1::AgentEvent;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::warn;

use super::file::Transcript;
use super::{Error, Place, Position, TRANSCRIPT_BYTES_MAX, missing};
use crate::ledger::{Entry, Grown, Inbox};

/// Appends that may wait; senders wait beyond it, and with them their worker's event window.
const QUEUE: usize = 1_024;
/// Appends that share one group of syncs.
const GROUP_MAX: usize = 256;
/// Files kept open between groups.
const OPEN_MAX: usize = 512;
/// Transcripts whose end is remembered; beyond it all are forgotten, and looked for again.
const ENDS_MAX: usize = 65_536;

/// What became of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Number of the last event that is safely on disk.
    pub stored: u64,
}

struct Append {
    place: Place,
    worker: String,
    events: Vec<AgentEvent>,
    answer: oneshot::Sender<Result<Appended, Error>>,
}

/// Handle of the transcripts; cheap to clone.
#[derive(Clone)]
pub struct Transcripts {
    root: Arc<Path>,
    appends: mpsc::Sender<Append>,
    grown: watch::Sender<u64>,
    ends: Arc<Mutex<Ends>>,
}

impl Transcripts {
    /// Starts the writer's thread over a folder. It ends when the last handle is dropped.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(root: PathBuf) -> Result<Self, Error> {
        Self::start_with(root, None)
    }

    /// Starts the writer's thread, which tells a ledger of usage that is safely on disk.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(crate) fn start_with(root: PathBuf, ledger: Option<Inbox>) -> Result<Self, Error> {
        let (appends, inbox) = mpsc::channel(QUEUE);
        let grown = watch::Sender::new(0);
        let root: Arc<Path> = root.into();
        let ends: Arc<Mutex<Ends>> = Arc::default();
        let writer = Writer {
            root: root.clone(),
            open: BTreeMap::new(),
            grown: grown.clone(),
            ends: ends.clone(),
            ledger,
            unsaid: BTreeMap::new(),
        };
        std::thread::Builder::new()
            .name("transcripts".into())
            .spawn(move || writer.run(inbox))
            .map_err(|source| Error::Io {
                action: "start the writer of",
                path: root.to_path_buf(),
                source,
            })?;
        Ok(Self {
            root,
            appends,
            grown,
            ends,
        })
    }

    /// Appends events; answers after they are safely on disk. Events that are there already are
    /// skipped, so repeating is harmless; without events it only says what is there.
    ///
    /// What lies in a gap of the numbers is lost. Workers ask what is there before they send anything
    /// in a session, and send again what they still have, so a gap is what their own disk has lost
    /// too. It is noted and what follows is stored, since refusing it would only make the worker
    /// send it again without end.
    ///
    /// # Errors
    /// The disk.
    pub async fn append(
        &self,
        place: Place,
        worker: &str,
        events: Vec<AgentEvent>,
    ) -> Result<Appended, Error> {
        let (answer, result) = oneshot::channel();
        self.appends
            .send(Append {
                place,
                worker: worker.to_owned(),
                events,
                answer,
            })
            .await
            .map_err(|_| Error::Stopped)?;
        result.await.map_err(|_| Error::Stopped)?
    }

    /// Gives the folder, for readers.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Signals that some transcript has grown.
    #[must_use]
    pub fn grown(&self) -> watch::Receiver<u64> {
        self.grown.subscribe()
    }

    /// Gives the number of a transcript's last event, if somebody has written it or read it to its
    /// end lately: whoever has that need not open the file. If nobody has, gives what
    /// [`Transcripts::read_to_end`] wants to know after reading it.
    pub fn end(&self, lease: LeaseId) -> Result<u64, Writes> {
        let ends = lock(&self.ends);
        ends.of.get(&lease).copied().ok_or(ends.writes)
    }

    /// Notes that a transcript was read to its end, unless anything was written since `before`.
    pub fn read_to_end(&self, lease: LeaseId, number: u64, before: Writes) {
        let mut ends = lock(&self.ends);
        if ends.writes == before {
            ends.note(lease, number);
        }
    }
}

/// How often anything was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writes(u64);

/// Where transcripts end.
#[derive(Debug, Default)]
struct Ends {
    writes: Writes,
    of: BTreeMap<LeaseId, u64>,
}

impl Ends {
    fn note(&mut self, lease: LeaseId, number: u64) {
        if self.of.len() >= ENDS_MAX {
            self.of.clear();
        }
        self.of.insert(lease, number);
    }

    fn written(&mut self, lease: LeaseId, stored: Option<u64>) {
        self.writes.0 += 1;
        match stored {
            Some(stored) => self.note(lease, stored),
            // Nobody knows what is there now.
            None => drop(self.of.remove(&lease)),
        }
    }
}

fn lock(ends: &Mutex<Ends>) -> MutexGuard<'_, Ends> {
    // The map is only touched by short steps that cannot panic half-way.
    ends.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Writer {
    root: Arc<Path>,
    open: BTreeMap<Place, Transcript>,
    grown: watch::Sender<u64>,
    ends: Arc<Mutex<Ends>>,
    ledger: Option<Inbox>,
    /// What was appended and the ledger was not told yet, since no sync has covered it.
    unsaid: BTreeMap<Place, Grown>,
}

impl Writer {
    fn run(mut self, mut inbox: mpsc::Receiver<Append>) {
        while let Some(first) = inbox.blocking_recv() {
            let mut group = vec![first];
            while group.len() < GROUP_MAX
                && let Ok(next) = inbox.try_recv()
            {
                group.push(next);
            }
            self.write(group);
            if self.open.len() > OPEN_MAX {
                self.open.retain(|_, transcript| !transcript.is_tidy());
            }
        }
    }

    fn write(&mut self, group: Vec<Append>) {
        let mut written = Vec::with_capacity(group.len());
        for append in group {
            let result = self.append(&append.place, &append.worker, append.events);
            written.push((append.place, append.answer, result));
        }
        let mut synced: BTreeMap<Place, bool> = BTreeMap::new();
        for (place, _, result) in &written {
            // One that was only asked for may not even be there.
            if result.is_ok() && !synced.contains_key(place) && self.open.contains_key(place) {
                let path = place.path(&self.root);
                let done = self.open.get_mut(place).is_some_and(|transcript| {
                    let synced = transcript.sync(&path);
                    if synced.is_err() {
                        transcript.take_back(&path);
                    }
                    synced.is_ok()
                });
                synced.insert(place.clone(), done);
            }
        }
        for (place, done) in &synced {
            self.tell_ledger(place, *done);
        }
        let failed: Vec<Place> = synced
            .iter()
            .filter(|(_, done)| !**done)
            .map(|(place, _)| place.clone())
            .collect();
        for (place, answer, result) in written {
            let result = match result {
                Ok(_) if failed.contains(&place) => Err(Error::Io {
                    action: "sync",
                    path: place.path(&self.root),
                    source: std::io::Error::other("the disk refused the sync"),
                }),
                other => other,
            };
            let stored = result.as_ref().ok().map(|appended| appended.stored);
            lock(&self.ends).written(place.lease, stored);
            // A session that has gone will send its events again.
            drop(answer.send(result));
        }
        self.grown.send_modify(|count| *count += 1);
    }

    /// Passes on what a sync has covered; what it refused was taken back and never was.
    fn tell_ledger(&mut self, place: &Place, is_synced: bool) {
        let (Some(ledger), Some(mut grown)) = (&self.ledger, self.unsaid.remove(place)) else {
            return;
        };
        if let Some(transcript) = self.open.get_mut(place).filter(|_| is_synced) {
            grown.rewritten = std::mem::take(&mut transcript.rewritten);
            ledger.grown(grown);
        }
    }

    fn append(
        &mut self,
        place: &Place,
        worker: &str,
        events: Vec<AgentEvent>,
    ) -> Result<Appended, Error> {
        let path = place.path(&self.root);
        if !self.open.contains_key(place) {
            if events.is_empty() && !path.exists() {
                return Ok(Appended { stored: 0 });
            }
            self.open.insert(place.clone(), Transcript::open(&path)?);
        }
        let Some(transcript) = self.open.get_mut(place) else {
            return Err(Error::Stopped);
        };
        let from = Position {
            offset: transcript.bytes,
            number: transcript.last,
        };
        if transcript.bytes == 0 && !events.is_empty() {
            transcript.begin(&path, &place.path(Path::new("")), worker)?;
        }
        let mut written = Ok(true);
        let mut entries = Vec::new();
        for event in events {
            if event.number <= transcript.last {
                continue;
            }
            // Beyond the bound numbers are not stored, so a gap cannot be told any more.
            let full = transcript.bytes >= TRANSCRIPT_BYTES_MAX;
            let before = event.number - 1;
            if !full && before != transcript.last {
                warn!(lease = %place.lease, from = transcript.last, to = event.number, "events are missing");
                written = transcript.append(&path, &missing(before, event.at_ms));
            }
            if written.is_err() {
                break;
            }
            if !full {
                written = transcript.append(&path, &event);
                if matches!(written, Ok(true)) {
                    entries.extend(Entry::of(&event));
                }
            } else {
                let number = event.number;
                if !transcript.truncated {
                    transcript.truncated = true;
                    written = transcript.append(&path, &missing(number, event.at_ms));
                }
                transcript.last = number;
            }
            if written.is_err() {
                break;
            }
        }
        let stored = transcript.last;
        if self.ledger.is_some() && transcript.bytes > from.offset {
            let grown = self.unsaid.entry(place.clone());
            let grown = grown.or_insert_with(|| Grown::new(place, worker, from));
            grown.entries.append(&mut entries);
            grown.to = Position {
                offset: transcript.bytes,
                number: stored,
            };
        }
        written.map(|_| Appended { stored })
    }
}

#[cfg(test)]
mod tests {
    use coordinator_core::event::Work;
    use coordinator_core::{AttemptNo, LeaseId, TaskIx};
    use muster_proto::v1::agent_event::Kind;

    use super::*;
    use crate::transcript;

    fn place() -> Place {
        Place {
            run: "r".into(),
            task: "t".into(),
            work: Work::Attempt {
                task: TaskIx(0),
                attempt: AttemptNo(1),
            },
            lease: LeaseId(9),
        }
    }

    fn notes(numbers: std::ops::RangeInclusive<u64>) -> Vec<AgentEvent> {
        numbers
            .map(|number| AgentEvent {
                number,
                at_ms: 0,
                kind: Some(Kind::Note("x".into())),
            })
            .collect()
    }

    #[tokio::test]
    async fn repeated_events_are_stored_once() {
        let folder = tempfile::tempdir().unwrap();
        let transcripts = Transcripts::start(folder.path().to_owned()).unwrap();
        transcripts
            .append(place(), "w", notes(1..=3))
            .await
            .unwrap();
        let answer = transcripts
            .append(place(), "w", notes(2..=5))
            .await
            .unwrap();
        assert_eq!(answer, Appended { stored: 5 });
        let read = transcript::read(folder.path(), &place(), 0, usize::MAX).unwrap();
        let numbers: Vec<u64> = read.iter().map(|event| event.number).collect();
        assert_eq!(numbers, [1, 2, 3, 4, 5]);
    }

    #[tokio::test]
    async fn a_gap_is_noted_and_what_follows_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let transcripts = Transcripts::start(folder.path().to_owned()).unwrap();
        transcripts
            .append(place(), "w", notes(1..=1))
            .await
            .unwrap();
        let answer = transcripts
            .append(place(), "w", notes(4..=5))
            .await
            .unwrap();
        assert_eq!(answer, Appended { stored: 5 });
        let read = transcript::read(folder.path(), &place(), 0, usize::MAX).unwrap();
        let numbers: Vec<u64> = read.iter().map(|event| event.number).collect();
        assert_eq!(numbers, [1, 3, 4, 5]);
        assert!(matches!(read[1].kind, Some(Kind::OutputTruncated(_))));
    }

    #[tokio::test]
    async fn a_worker_learns_what_is_there_before_it_sends_and_nothing_is_made_for_the_question() {
        let folder = tempfile::tempdir().unwrap();
        let transcripts = Transcripts::start(folder.path().to_owned()).unwrap();
        let ask = || transcripts.append(place(), "w", Vec::new());
        assert_eq!(ask().await.unwrap(), Appended { stored: 0 });
        assert!(!place().path(folder.path()).exists());
        transcripts
            .append(place(), "w", notes(1..=3))
            .await
            .unwrap();
        assert_eq!(ask().await.unwrap(), Appended { stored: 3 });
    }

    #[tokio::test]
    async fn the_transcripts_of_an_attempt_are_found_by_their_leases() {
        let folder = tempfile::tempdir().unwrap();
        let transcripts = Transcripts::start(folder.path().to_owned()).unwrap();
        transcripts
            .append(place(), "w", notes(1..=1))
            .await
            .unwrap();
        let found = transcript::leases(folder.path(), "r", "t", place().work).unwrap();
        assert_eq!(found, [LeaseId(9)]);
    }
}
