//! Following a run: its journal events and what its agents say, under one cursor.
//!
//! A cursor names the last journal event and, for each lease whose transcript may still grow, the
//! last agent event: `17;9:1200;12:4` is journal event 17, event 1200 of lease 9, event 4 of 12.

use std::collections::BTreeMap;
use std::sync::Arc;

use coordinator_core::event::{LeaseEnd, Work};
use coordinator_core::{Event, EventKind, LeaseId, RunId, TaskIx};
use muster_proto::v1::watch_run_response::Item;
use muster_proto::v1::{JournalEvent, TaskAgentEvent, WatchRunResponse};
use tokio::sync::mpsc;
use tonic::Status;

use super::convert;
use super::event_text;
use super::runs::Runs;
use super::status;
use crate::store::form;
use crate::transcript::{self, LAST_WORDS, Place, Position};

/// Journal events read at once.
const EVENTS_PER_READ: usize = 512;
/// Bytes of agent events read at once from one transcript.
const AGENT_BYTES_PER_READ: usize = 256 * 1024;
/// Closed leases whose late events are still shown.
const CLOSED_MAX: usize = 64;

/// Where a watch stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    pub seq: u64,
    pub leases: BTreeMap<LeaseId, u64>,
}

impl Cursor {
    /// Reads a cursor; empty text is the beginning.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when the text is not a cursor.
    pub(super) fn parse(text: &str) -> Result<Self, Status> {
        let bad = || Status::invalid_argument("cursor: not a cursor of this service");
        if text.is_empty() {
            return Ok(Self::default());
        }
        let mut parts = text.split(';');
        let seq = parts
            .next()
            .and_then(|seq| seq.parse().ok())
            .ok_or_else(bad)?;
        let mut leases = BTreeMap::new();
        for part in parts {
            let (lease, number) = part.split_once(':').ok_or_else(bad)?;
            let lease = lease.parse().map(LeaseId).map_err(|_| bad())?;
            leases.insert(lease, number.parse().map_err(|_| bad())?);
        }
        Ok(Self { seq, leases })
    }

    fn text(&self) -> String {
        let mut text = self.seq.to_string();
        for (lease, number) in &self.leases {
            text.push_str(&format!(";{}:{number}", lease.0));
        }
        text
    }
}

/// What one watch wants.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub run: String,
    pub cursor: Cursor,
    pub agent_events: bool,
    pub follow_after_end: bool,
}

struct Followed {
    place: Place,
    position: Position,
    closed: bool,
    /// Its worker has ended it, and will end its events too.
    speaks: bool,
}

/// Follows one run until it has ended and everything was sent, or the watcher goes.
pub(super) async fn follow(
    runs: Runs,
    wish: Wish,
    out: mpsc::Sender<Result<WatchRunResponse, Status>>,
) {
    if let Err(status) = Watch::run(runs, wish, &out).await {
        // The watcher may have gone.
        drop(out.send(Err(status)).await);
    }
}

struct Watch<'a> {
    runs: Runs,
    run: RunId,
    name: Arc<str>,
    tasks: Arc<[Arc<str>]>,
    cursor: Cursor,
    followed: BTreeMap<LeaseId, Followed>,
    /// The task and attempt of each lease that was seen, so that later events can name them.
    /// Task and attempt of each lease, and whether it is to verify.
    subjects: BTreeMap<LeaseId, (Option<TaskIx>, Option<u32>, bool)>,
    agent_events: bool,
    out: &'a mpsc::Sender<Result<WatchRunResponse, Status>>,
}

impl<'a> Watch<'a> {
    async fn run(
        runs: Runs,
        wish: Wish,
        out: &'a mpsc::Sender<Result<WatchRunResponse, Status>>,
    ) -> Result<(), Status> {
        let (run, name, tasks) = runs.identify(&wish.run).await?;
        let mut news = runs.engine().notices().run(run);
        let mut grown = runs.transcripts().grown();
        let mut watch = Watch {
            runs,
            run,
            name,
            tasks,
            cursor: Cursor {
                seq: 0,
                leases: wish.cursor.leases.clone(),
            },
            followed: BTreeMap::new(),
            subjects: BTreeMap::new(),
            agent_events: wish.agent_events,
            out,
        };
        watch.catch_up(&wish.cursor).await?;
        let mut last_words = None;
        loop {
            news.mark_unchanged();
            grown.mark_unchanged();
            // Asked before reading: what is committed afterwards makes the signal change.
            let ended = watch.runs.has_ended(run).await?;
            let mut sent = watch.journal().await?;
            sent |= watch.agents().await?;
            if sent {
                continue;
            }
            if ended && !wish.follow_after_end {
                let until =
                    *last_words.get_or_insert_with(|| tokio::time::Instant::now() + LAST_WORDS);
                if !watch.waits_for_words() || tokio::time::Instant::now() >= until {
                    return Ok(());
                }
            }
            tokio::select! {
                changed = news.changed() => {
                    if changed.is_err() {
                        // Nobody was watching for a moment, so the signal was forgotten.
                        news = watch.runs.engine().notices().run(run);
                    }
                }
                changed = grown.changed(), if watch.agent_events => {
                    if changed.is_err() {
                        return Err(Status::unavailable("the coordinator is stopping"));
                    }
                }
                () = tokio::time::sleep(LAST_WORDS), if last_words.is_some() => {}
                () = out.closed() => return Ok(()),
            }
        }
    }

    /// Tells whether an agent whose lease is closed has not said its last yet.
    fn waits_for_words(&self) -> bool {
        self.followed
            .values()
            .any(|followed| followed.closed && followed.speaks)
    }

    /// Learns from the events before the cursor which leases it names, without sending them.
    async fn catch_up(&mut self, cursor: &Cursor) -> Result<(), Status> {
        while self.cursor.seq < cursor.seq {
            let events = self.read(self.cursor.seq.saturating_add(1)).await?;
            if events.is_empty() {
                break;
            }
            for event in events {
                if event.seq > cursor.seq {
                    break;
                }
                self.cursor.seq = event.seq;
                self.learn(&event);
            }
        }
        self.cursor.seq = cursor.seq;
        if self.agent_events {
            let followed = &self.followed;
            self.cursor
                .leases
                .retain(|lease, _| followed.contains_key(lease));
        }
        Ok(())
    }

    async fn read(&self, from: u64) -> Result<Vec<Event>, Status> {
        let run = self.run;
        self.runs
            .readers()
            .read(move |reader| reader.run_events(run, from, EVENTS_PER_READ))
            .await
            .map_err(status::of_read)
    }

    /// Remembers what a lease is about, and whether its transcript is to be followed.
    fn learn(&mut self, event: &Event) {
        let EventKind::LeaseGranted { lease, work, .. } = event.kind else {
            if let EventKind::LeaseClosed { lease, end, .. } = event.kind
                && let Some(followed) = self.followed.get_mut(&lease)
            {
                followed.closed = true;
                followed.speaks &= end == LeaseEnd::Confirmed;
            }
            return;
        };
        let subject = event_text::subject(&event.kind);
        let verifies = !matches!(work, Work::Attempt { .. });
        self.subjects
            .insert(lease, (subject.task, subject.attempt, verifies));
        if !self.agent_events {
            return;
        }
        let task = match work {
            Work::Attempt { task, .. } | Work::Verify { task, .. } => self.task_name(task),
            Work::FinalVerify => Arc::from(""),
        };
        let place = Place {
            run: self.name.clone(),
            task,
            work,
            lease,
        };
        let followed = Followed {
            place,
            position: Position::default(),
            closed: false,
            speaks: true,
        };
        self.followed.insert(lease, followed);
        self.cursor.leases.entry(lease).or_insert(0);
    }

    fn task_name(&self, task: TaskIx) -> Arc<str> {
        let ix = usize::try_from(task.0).unwrap_or(usize::MAX);
        self.tasks.get(ix).cloned().unwrap_or_else(|| Arc::from(""))
    }

    /// Sends the journal events that are new; what an agent said comes before its lease's end.
    async fn journal(&mut self) -> Result<bool, Status> {
        // Behind the largest number there is nothing, and its own event was seen.
        let events = match self.cursor.seq.checked_add(1) {
            Some(from) => self.read(from).await?,
            None => Vec::new(),
        };
        let sent = !events.is_empty();
        for event in events {
            if let EventKind::LeaseClosed { lease, .. } = event.kind {
                self.agent(lease).await?;
            }
            self.learn(&event);
            self.cursor.seq = event.seq;
            let item = self.journal_item(&event)?;
            self.send(Item::Journal(item)).await?;
        }
        self.forget_old();
        Ok(sent)
    }

    fn journal_item(&self, event: &Event) -> Result<JournalEvent, Status> {
        let mut subject = event_text::subject(&event.kind);
        let mut text = event_text::text(&event.kind, |task| self.task_name(task).to_string());
        if let Some(lease) = subject.lease
            && let Some((task, attempt, verifies)) = self.subjects.get(&lease)
        {
            subject.task = *task;
            subject.attempt = *attempt;
            if *verifies && matches!(event.kind, EventKind::WorkStarted { .. }) {
                text = "verify started".to_owned();
            }
        }
        Ok(JournalEvent {
            seq: event.seq,
            at: Some(convert::timestamp(event.at)),
            kind: event.kind.name().to_owned(),
            task: subject.task.map(|task| self.task_name(task).to_string()),
            attempt: subject.attempt,
            json: form::event_json(event).map_err(|error| status::internal(&error))?,
            text,
        })
    }

    async fn agents(&mut self) -> Result<bool, Status> {
        let mut sent = false;
        for lease in self.followed.keys().copied().collect::<Vec<_>>() {
            sent |= self.agent(lease).await?;
        }
        Ok(sent)
    }

    /// Sends what is new in one transcript.
    async fn agent(&mut self, lease: LeaseId) -> Result<bool, Status> {
        let mut sent = false;
        loop {
            let Some(followed) = self.followed.get(&lease) else {
                return Ok(sent);
            };
            let (place, mut position) = (followed.place.clone(), followed.position);
            let root = self.runs.transcripts().root().to_owned();
            let read_place = place.clone();
            let (events, position) = tokio::task::spawn_blocking(move || {
                let events =
                    transcript::read_on(&root, &read_place, &mut position, AGENT_BYTES_PER_READ);
                events.map(|events| (events, position))
            })
            .await
            .map_err(|error| status::internal(&error))?
            .map_err(|error| status::internal(&error))?;
            if let Some(followed) = self.followed.get_mut(&lease) {
                followed.position = position;
            }
            if events.is_empty() {
                return Ok(sent);
            }
            if events.iter().any(transcript::is_last)
                && let Some(followed) = self.followed.get_mut(&lease)
            {
                followed.speaks = false;
            }
            for event in events {
                let last = self.cursor.leases.entry(lease).or_insert(0);
                if event.number <= *last {
                    continue;
                }
                *last = event.number;
                sent = true;
                let item = TaskAgentEvent {
                    task: place.task.to_string(),
                    work: Some(convert::work(place.work)),
                    lease: lease.0,
                    event: Some(event),
                };
                self.send(Item::Agent(item)).await?;
            }
        }
    }

    async fn send(&self, item: Item) -> Result<(), Status> {
        let response = WatchRunResponse {
            cursor: self.cursor.text(),
            item: Some(item),
        };
        self.out
            .send(Ok(response))
            .await
            .map_err(|_| Status::cancelled("the watcher has gone"))
    }

    /// Keeps the cursor short: transcripts of leases that closed long ago do not grow any more.
    fn forget_old(&mut self) {
        let closed: Vec<LeaseId> = self
            .followed
            .iter()
            .filter(|(_, followed)| followed.closed)
            .map(|(lease, _)| *lease)
            .collect();
        for lease in closed.iter().take(closed.len().saturating_sub(CLOSED_MAX)) {
            self.followed.remove(lease);
            self.cursor.leases.remove(lease);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_back_what_it_wrote() {
        for text in ["0", "17", "17;9:1200;12:4"] {
            assert_eq!(Cursor::parse(text).unwrap().text(), text);
        }
        assert_eq!(Cursor::parse("").unwrap(), Cursor::default());
    }

    #[test]
    fn a_foreign_cursor_is_refused() {
        for text in ["x", "1;", "1;2", "1;a:b", "-1"] {
            assert!(Cursor::parse(text).is_err(), "{text}");
        }
    }
}
