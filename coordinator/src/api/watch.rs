//! Following a run: its journal events and what its agents say, under one cursor.
//!
//! A cursor names the last journal event and, for each lease whose transcript may still grow, the
//! last agent event: `17;9:1200;12:4` is journal event 17, event 1200 of lease 9, event 4 of 12.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use coordinator_core::LeaseId;
use coordinator_core::event::{LeaseEnd, Work};
use muster_proto::v1::watch_run_response::Item;
use muster_proto::v1::{TaskAgentEvent, WatchRunResponse};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tonic::Status;

use super::convert;
use super::feed::{Entry, Feed, Head, LeaseNews, Watcher};
use super::frames::{self, Stretch};
use super::limits::{AGENTS_PACE, FAREWELL, WATCH_BATCH_BYTES};
use super::places::Connection;
use super::runs::Runs;
use super::slow;
use crate::transcript::{self, LAST_WORDS, Place, Position};

/// How long a watch that resumes waits for the events before its cursor.
const CATCH_UP: Duration = Duration::from_secs(10);
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

    /// Tells whether it names nothing but a journal event.
    fn is_plain(&self) -> bool {
        self.leases.values().all(|number| *number == 0)
    }

    fn text(&self) -> String {
        let mut text = self.seq.to_string();
        // Of those that have said nothing yet the journal tells.
        for (lease, number) in self.leases.iter().filter(|(_, number)| **number > 0) {
            // A text takes everything.
            let _ = write!(text, ";{}:{number}", lease.0);
        }
        text
    }
}

/// Where a watch's responses go, some at a time and ready to be sent.
pub(super) type Out = mpsc::Sender<Result<Bytes, Status>>;

/// What one watch wants.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub run: String,
    pub cursor: Cursor,
    /// The cursor is only the number of a journal event: what leases that had closed by then have
    /// said came before it. A cursor of ours names what may still be to come.
    pub from_event: bool,
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
/// One that takes nothing is given up, and loses its connection if that is of no use to it.
pub(super) async fn follow(runs: Runs, wish: Wish, out: Out, connection: Option<Connection>) {
    if let Err(status) = Watch::run(runs, wish, &out).await {
        slow::end(status, &out, FAREWELL, connection.as_ref()).await;
    }
}

/// Responses that are sent together.
enum Ready {
    Nothing,
    /// Those of all watchers.
    Shared(Stretch),
    /// This watcher's own.
    Own(BytesMut),
}

struct Watch<'a> {
    runs: Runs,
    feed: Arc<Feed>,
    cursor: Cursor,
    followed: BTreeMap<LeaseId, Followed>,
    agent_events: bool,
    out: &'a Out,
    /// What is sent with the next batch.
    ready: Ready,
    _counted: Watcher,
    /// Held while `ready` is filled, and never while something is waited for.
    turn: Option<OwnedSemaphorePermit>,
}

impl<'a> Watch<'a> {
    async fn run(runs: Runs, wish: Wish, out: &'a Out) -> Result<(), Status> {
        let feed = runs.feed(&wish.run).await?;
        let mut head = feed.head();
        let mut grown = runs.transcripts().grown();
        let mut watch = Watch {
            runs,
            _counted: feed.join(),
            feed,
            cursor: Cursor {
                seq: 0,
                leases: wish.cursor.leases.clone(),
            },
            followed: BTreeMap::new(),
            agent_events: wish.agent_events,
            out,
            ready: Ready::Nothing,
            turn: None,
        };
        watch.catch_up(&wish.cursor, &mut head).await?;
        if wish.from_event {
            watch.forget_closed(0);
        }
        let mut last_words = None;
        loop {
            grown.mark_unchanged();
            let Head { seq, ended } = *head.borrow_and_update();
            watch.journal(seq).await?;
            watch.agents().await?;
            watch.flush().await?;
            if ended && !wish.follow_after_end {
                let until =
                    *last_words.get_or_insert_with(|| tokio::time::Instant::now() + LAST_WORDS);
                if !watch.waits_for_words() || tokio::time::Instant::now() >= until {
                    return Ok(());
                }
            }
            if watch.agent_events {
                // Every agent of every run wakes it.
                tokio::time::sleep(AGENTS_PACE).await;
            }
            tokio::select! {
                changed = head.changed() => {
                    if changed.is_err() {
                        return Err(Status::unavailable("the run's events cannot be read now"));
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
    async fn catch_up(
        &mut self,
        cursor: &Cursor,
        head: &mut watch::Receiver<Head>,
    ) -> Result<(), Status> {
        while self.agent_events && self.cursor.seq < cursor.seq {
            let entries = self.feed.after(self.cursor.seq).await?;
            for entry in entries {
                if entry.seq <= cursor.seq {
                    self.cursor.seq = entry.seq;
                    self.learn(entry.lease);
                } else {
                    self.cursor.seq = cursor.seq;
                }
            }
            if self.cursor.seq >= cursor.seq {
                break;
            }
            let ended = |head: &Head| head.ended || head.seq > self.cursor.seq;
            match tokio::time::timeout(CATCH_UP, head.wait_for(ended)).await {
                Ok(Ok(head)) if head.seq > self.cursor.seq => {}
                // The cursor is of a future that a backup has not, or made up.
                _ => break,
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

    /// Remembers which transcripts are to be followed.
    fn learn(&mut self, news: LeaseNews) {
        let (lease, work) = match news {
            LeaseNews::None => return,
            LeaseNews::Closed(lease, end) => {
                if let Some(followed) = self.followed.get_mut(&lease) {
                    followed.closed = true;
                    followed.speaks &= end == LeaseEnd::Confirmed;
                }
                return;
            }
            LeaseNews::Granted(lease, work) => (lease, work),
        };
        if !self.agent_events {
            return;
        }
        let task = match work {
            Work::Attempt { task, .. } | Work::Verify { task, .. } => self.feed.task_name(task),
            Work::FinalVerify => Arc::from(""),
        };
        let place = Place {
            run: self.feed.name.clone(),
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

    /// Sends the journal events up to `upto`; what an agent said comes before its lease's end.
    async fn journal(&mut self, upto: u64) -> Result<(), Status> {
        while self.cursor.seq < upto {
            self.turn = None;
            if !self.agent_events && self.cursor.is_plain() {
                let found = self.feed.responses_after(self.cursor.seq).await?;
                let Some((responses, last)) = found else {
                    return Ok(());
                };
                self.cursor.seq = last;
                self.share(&responses).await?;
                continue;
            }
            let entries = self.feed.after(self.cursor.seq).await?;
            if entries.is_empty() {
                return Ok(());
            }
            for entry in entries {
                if let LeaseNews::Closed(lease, _) = entry.lease {
                    self.agent(lease).await?;
                }
                self.learn(entry.lease);
                self.cursor.seq = entry.seq;
                self.event(&entry).await?;
            }
            self.forget_old();
        }
        Ok(())
    }

    async fn agents(&mut self) -> Result<(), Status> {
        for lease in self.followed.keys().copied().collect::<Vec<_>>() {
            self.agent(lease).await?;
        }
        Ok(())
    }

    /// Sends what is new in one transcript.
    async fn agent(&mut self, lease: LeaseId) -> Result<(), Status> {
        loop {
            let Some(followed) = self.followed.get(&lease) else {
                return Ok(());
            };
            let (place, mut position) = (followed.place.clone(), followed.position);
            let before = match self.runs.transcripts().end(lease) {
                Ok(end) if end <= position.number => return Ok(()),
                Ok(_) => None,
                Err(writes) => Some(writes),
            };
            self.turn = None;
            let read_place = place.clone();
            let (events, position) = self
                .runs
                .read_transcript(move |root| {
                    let events =
                        transcript::read_on(root, &read_place, &mut position, AGENT_BYTES_PER_READ);
                    events.map(|events| (events, position))
                })
                .await?;
            if let Some(followed) = self.followed.get_mut(&lease) {
                followed.position = position;
            }
            if events.is_empty() {
                if let Some(before) = before {
                    let transcripts = self.runs.transcripts();
                    transcripts.read_to_end(lease, position.number, before);
                }
                return Ok(());
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
                let item = TaskAgentEvent {
                    task: place.task.to_string(),
                    work: Some(convert::work(place.work)),
                    lease: lease.0,
                    event: Some(event),
                };
                let response = WatchRunResponse {
                    cursor: self.cursor.text(),
                    item: Some(Item::Agent(item)),
                };
                self.own(|out| frames::put(&response, out)).await?;
            }
            // Agent events may be large.
            self.flush().await?;
        }
    }

    /// Sends a journal event under this watch's cursor.
    async fn event(&mut self, entry: &Entry) -> Result<(), Status> {
        if self.cursor.is_plain() {
            return self.share(&entry.response).await;
        }
        let cursor = self.cursor.text();
        self.own(|out| frames::put_item(cursor, &entry.item(), out))
            .await
    }

    /// Sends what other watchers are sent too.
    async fn share(&mut self, responses: &Stretch) -> Result<(), Status> {
        if let Ready::Shared(ready) = &mut self.ready
            && ready.extend(responses, WATCH_BATCH_BYTES)
        {
            return Ok(());
        }
        self.flush().await?;
        self.turn = self.feed.turn().await;
        self.ready = Ready::Shared(responses.clone());
        Ok(())
    }

    /// Sends what is only for this watcher.
    async fn own(&mut self, put: impl FnOnce(&mut BytesMut)) -> Result<(), Status> {
        if let Ready::Own(ready) = &mut self.ready
            && ready.len() < WATCH_BATCH_BYTES
        {
            put(ready);
            return Ok(());
        }
        self.flush().await?;
        self.turn = self.feed.turn().await;
        let mut ready = BytesMut::new();
        put(&mut ready);
        self.ready = Ready::Own(ready);
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Status> {
        self.turn = None;
        let batch = match std::mem::replace(&mut self.ready, Ready::Nothing) {
            Ready::Nothing => return Ok(()),
            Ready::Shared(responses) => responses.bytes(),
            Ready::Own(responses) => responses.freeze(),
        };
        slow::offer(batch, self.out, "watch", "resume at the last cursor").await
    }

    /// Keeps the cursor short: transcripts of leases that closed long ago do not grow any more.
    fn forget_old(&mut self) {
        self.forget_closed(CLOSED_MAX);
    }

    /// Forgets the leases that have closed, but for the newest.
    fn forget_closed(&mut self, kept: usize) {
        let closed: Vec<LeaseId> = self
            .followed
            .iter()
            .filter(|(_, followed)| followed.closed)
            .map(|(lease, _)| *lease)
            .collect();
        for lease in closed.iter().take(closed.len().saturating_sub(kept)) {
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
        assert_eq!(Cursor::parse("17;9:0;12:4").unwrap().text(), "17;12:4");
        assert_eq!(Cursor::parse("").unwrap(), Cursor::default());
    }

    #[test]
    fn a_foreign_cursor_is_refused() {
        for text in ["x", "1;", "1;2", "1;a:b", "-1"] {
            assert!(Cursor::parse(text).is_err(), "{text}");
        }
    }
}
