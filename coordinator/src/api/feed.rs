//! What watchers of one run share: its events are read and made ready once, however many watch.
//!
//! A task reads what was committed and tells all watchers how far the run has come; they take the
//! events, ready to be sent, from chunks of [`EVENTS_PER_CHUNK`]. Chunks that nobody asked for lately
//! are forgotten and read again when a watcher starts at the beginning.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use coordinator_core::event::{LeaseEnd, Work};
use coordinator_core::state::Run;
use coordinator_core::{Event, EventKind, LeaseId, RunId, TaskIx};
use muster_proto::v1::watch_run_response::Item;
use muster_proto::v1::{JournalEvent, WatchRunResponse};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;

use super::frames::{self, Stretch};
use super::limits::{
    CHUNKS_PER_FEED, CHUNKS_PER_READ, EVENT_JSON_BYTES, EVENTS_PER_CHUNK, FEED_PACE,
    FEED_PACE_PER_WATCHER, WATCH_BATCH_BYTES, WATCHERS_AT_WORK,
};
use super::{convert, event_text, status};
use crate::engine::{Handle, Readers};
use crate::store::form;

/// The feeds of all runs that are watched; cheap to clone.
#[derive(Clone)]
pub struct Feeds {
    engine: Handle,
    readers: Readers,
    feeds: Arc<Mutex<BTreeMap<RunId, Weak<Feed>>>>,
    turns: Arc<Semaphore>,
    /// Held by each watcher of any run.
    everybody: Arc<()>,
    opening: Arc<tokio::sync::Mutex<()>>,
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// Its last event that watchers can have.
    pub seq: u64,
    /// It has ended, and its last event is not behind `seq`.
    pub ended: bool,
}

/// What a watcher has to know of an event besides its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeaseNews {
    None,
    Granted(LeaseId, Work),
    Closed(LeaseId, LeaseEnd),
}

/// An event, ready to be sent.
#[derive(Debug)]
pub(super) struct Entry {
    pub seq: u64,
    pub lease: LeaseNews,
    /// The response of a watch whose cursor names no lease.
    pub response: Stretch,
    item_at: usize,
}

impl Entry {
    fn new(seq: u64, lease: LeaseNews, response: Stretch) -> Self {
        Self {
            seq,
            lease,
            response,
            item_at: frames::item_at(seq.to_string()),
        }
    }

    /// The event as a part of any response.
    pub(super) fn item(&self) -> Bytes {
        self.response.bytes().split_off(self.item_at)
    }
}

/// Somebody who watches.
#[derive(Debug)]
pub(super) struct Watcher(#[expect(dead_code, reason = "it is counted")] Arc<()>);

/// The events of one run.
pub(super) struct Feed {
    run: RunId,
    pub name: Arc<str>,
    tasks: Vec<Arc<str>>,
    readers: Readers,
    /// Of the watchers of all runs.
    turns: Arc<Semaphore>,
    everybody: Arc<()>,
    head: watch::Receiver<Head>,
    /// What each lease is about, so that events that only name a lease can be understood.
    subjects: Mutex<BTreeMap<LeaseId, Subject>>,
    chunks: Mutex<Chunks>,
    /// Held while a forgotten chunk is read again, so that many who want it read it once.
    reading: tokio::sync::Mutex<()>,
    _ends_with_last_watcher: DropGuard,
}

#[derive(Clone, Copy, Debug)]
struct Subject {
    task: Option<TaskIx>,
    attempt: Option<u32>,
    verifies: bool,
}

#[derive(Default)]
struct Chunks {
    kept: BTreeMap<u64, Chunk>,
    uses: u64,
}

#[derive(Default)]
struct Chunk {
    entries: Vec<Arc<Entry>>,
    used: u64,
}

impl Feeds {
    /// Makes the feeds. `readers` should not be those of the fleet, which has to go on when
    /// everybody watches.
    #[must_use]
    pub fn new(engine: Handle, readers: Readers) -> Self {
        Self {
            engine,
            readers,
            feeds: Arc::default(),
            turns: Arc::new(Semaphore::new(WATCHERS_AT_WORK)),
            everybody: Arc::default(),
            opening: Arc::default(),
        }
    }

    /// Waits until nobody else is about to make a feed.
    pub(super) async fn opening(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.opening).lock_owned().await
    }

    /// Gives the feed of a run that is watched already.
    pub(super) fn known(&self, run: RunId) -> Option<Arc<Feed>> {
        self.lock().get(&run).and_then(Weak::upgrade)
    }

    /// Gives the feed of a run.
    pub(super) fn of(&self, run: RunId, name: Arc<str>, tasks: Vec<Arc<str>>) -> Arc<Feed> {
        let mut feeds = self.lock();
        if let Some(feed) = feeds.get(&run).and_then(Weak::upgrade) {
            return feed;
        }
        feeds.retain(|_, feed| feed.strong_count() > 0);
        let (head, seen) = watch::channel(Head::default());
        let unwatched = CancellationToken::new();
        let feed = Arc::new(Feed {
            run,
            name,
            tasks,
            readers: self.readers.clone(),
            turns: Arc::clone(&self.turns),
            everybody: Arc::clone(&self.everybody),
            head: seen,
            subjects: Mutex::default(),
            chunks: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
            _ends_with_last_watcher: unwatched.clone().drop_guard(),
        });
        feeds.insert(run, Arc::downgrade(&feed));
        let (engine, weak) = (self.engine.clone(), Arc::downgrade(&feed));
        tokio::spawn(async move {
            tokio::select! {
                () = unwatched.cancelled() => {}
                // Its watchers see that `head` is gone.
                result = drive(&engine, &weak, &head) => if let Err(error) = result {
                    tracing::warn!(%run, error = error.message(), "watchers of a run are sent away");
                },
            }
        });
        feed
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<RunId, Weak<Feed>>> {
        self.feeds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads what is committed as long as somebody watches.
async fn drive(
    engine: &Handle,
    feed: &Weak<Feed>,
    head: &watch::Sender<Head>,
) -> Result<(), Status> {
    let Some(run) = feed.upgrade().map(|feed| feed.run) else {
        return Ok(());
    };
    let mut news = engine.notices().run(run);
    loop {
        news.mark_unchanged();
        // Asked before reading: what is committed afterwards makes the signal change.
        let ended = engine
            .query(move |state, _| state.run(run).is_none_or(Run::is_ended))
            .await
            .map_err(status::of)?;
        let mut came = false;
        loop {
            let Some(feed) = feed.upgrade() else {
                return Ok(());
            };
            let seq = head.borrow().seq;
            let entries = feed.read(seq.saturating_add(1)).await?;
            let Some(last) = entries.last().map(|entry| entry.seq) else {
                break;
            };
            feed.keep(entries);
            came = true;
            head.send_replace(Head {
                seq: last,
                ended: false,
            });
        }
        if came {
            // The run may have been opened again since it was asked whether it has ended.
            let watchers = feed.upgrade().map_or(0, |feed| feed.watchers());
            tokio::time::sleep(pace(watchers)).await;
            continue;
        }
        head.send_if_modified(|head| std::mem::replace(&mut head.ended, ended) != ended);
        if news.changed().await.is_err() {
            return Err(Status::unavailable("the coordinator is stopping"));
        }
    }
}

/// Gives the time until the next look at a run, when so many watch this one or another.
fn pace(watchers: usize) -> Duration {
    let watchers = u32::try_from(watchers).unwrap_or(u32::MAX);
    FEED_PACE.saturating_add(FEED_PACE_PER_WATCHER.saturating_mul(watchers))
}

/// Joins the responses that lie together with the first one; `None` without any.
fn joined(entries: &[Arc<Entry>]) -> Option<(Stretch, u64)> {
    let (first, others) = entries.split_first()?;
    let mut stretch = first.response.clone();
    let joins = |entry: &&Arc<Entry>| stretch.extend(&entry.response, WATCH_BATCH_BYTES);
    let last = others.iter().take_while(joins).last();
    let last = last.map_or(first.seq, |last| last.seq);
    Some((stretch, last))
}

fn chunk_of(seq: u64) -> u64 {
    seq.saturating_sub(1) / EVENTS_PER_CHUNK
}

impl Feed {
    /// Tells how far the run has come, and when it comes further.
    pub(super) fn head(&self) -> watch::Receiver<Head> {
        self.head.clone()
    }

    /// Waits for a watcher's turn to make what it sends next. Whoever has one must not wait for its
    /// client.
    pub(super) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.turns).acquire_owned().await.ok()
    }

    /// Counts somebody among those who watch.
    pub(super) fn join(&self) -> Watcher {
        Watcher(Arc::clone(&self.everybody))
    }

    /// Counts who watches any run, and the runs with them.
    fn watchers(&self) -> usize {
        Arc::strong_count(&self.everybody)
    }

    pub(super) fn task_name(&self, task: TaskIx) -> Arc<str> {
        let ix = usize::try_from(task.0).unwrap_or(usize::MAX);
        self.tasks.get(ix).cloned().unwrap_or_else(|| Arc::from(""))
    }

    /// Gives the events after `seq`, up to the end of their chunk; none when there are none yet.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(super) async fn after(&self, seq: u64) -> Result<Vec<Arc<Entry>>, Status> {
        let found = self.take_after(seq, <[_]>::to_vec).await?;
        Ok(found.unwrap_or_default())
    }

    /// Gives some responses after `seq`, and the number of the last one's event; `None` when there
    /// are none yet.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(super) async fn responses_after(&self, seq: u64) -> Result<Option<(Stretch, u64)>, Status> {
        Ok(self.take_after(seq, joined).await?.flatten())
    }

    /// Takes something of the events after `seq`, of which there is at least one.
    async fn take_after<T>(
        &self,
        seq: u64,
        take: impl Fn(&[Arc<Entry>]) -> T,
    ) -> Result<Option<T>, Status> {
        if seq >= self.head.borrow().seq {
            return Ok(None);
        }
        if let Some(found) = self.take_kept(seq, &take) {
            return Ok(Some(found));
        }
        let _reading = self.reading.lock().await;
        if let Some(found) = self.take_kept(seq, &take) {
            return Ok(Some(found));
        }
        let from = chunk_of(seq.saturating_add(1)) * EVENTS_PER_CHUNK;
        let upto = self.head.borrow().seq;
        let mut entries = self.read(from.saturating_add(1)).await?;
        // What the driver has not announced yet it will add itself.
        entries.retain(|entry| entry.seq <= upto);
        self.keep(entries.clone());
        entries.retain(|entry| entry.seq > seq);
        entries.truncate(usize::try_from(EVENTS_PER_CHUNK).unwrap_or(usize::MAX));
        Ok((!entries.is_empty()).then(|| take(&entries)))
    }

    fn take_kept<T>(&self, seq: u64, take: impl Fn(&[Arc<Entry>]) -> T) -> Option<T> {
        let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        chunks.uses += 1;
        let uses = chunks.uses;
        let chunk = chunks.kept.get_mut(&chunk_of(seq.saturating_add(1)))?;
        chunk.used = uses;
        let first = chunk.entries.first()?.seq;
        // The driver's newest chunk may lack its beginning when that was forgotten meanwhile.
        let skip = seq.saturating_add(1).checked_sub(first)?;
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let found = chunk.entries.get(skip..);
        found.filter(|found| !found.is_empty()).map(take)
    }

    /// Keeps entries, which follow each other, in their chunks.
    fn keep(&self, entries: Vec<Arc<Entry>>) {
        let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        chunks.uses += 1;
        let uses = chunks.uses;
        for entry in entries {
            let chunk = chunks.kept.entry(chunk_of(entry.seq)).or_default();
            chunk.used = uses;
            let next = chunk.entries.last().map(|last| last.seq + 1);
            match next {
                Some(next) if next == entry.seq => chunk.entries.push(entry),
                // It is there already.
                Some(next) if next > entry.seq && chunk.holds(entry.seq) => {}
                Some(_) => chunk.entries = vec![entry],
                None => chunk.entries.push(entry),
            }
        }
        while chunks.kept.len() > CHUNKS_PER_FEED {
            let oldest = chunks.kept.iter().min_by_key(|(_, chunk)| chunk.used);
            let Some(oldest) = oldest.map(|(number, _)| *number) else {
                return;
            };
            chunks.kept.remove(&oldest);
        }
    }

    /// Reads from `from` on, some chunks at once.
    async fn read(&self, from: u64) -> Result<Vec<Arc<Entry>>, Status> {
        let run = self.run;
        // Events of one commit lie together, and a plan's first commit has as many as it has tasks:
        // reading a few costs as much as reading some thousand.
        let upto = (chunk_of(from) + CHUNKS_PER_READ) * EVENTS_PER_CHUNK;
        let count = usize::try_from(upto.saturating_sub(from) + 1).unwrap_or(usize::MAX);
        let events = self
            .readers
            .read(move |reader| reader.run_events(run, from, count))
            .await
            .map_err(status::of_read)?;
        let mut entries = Vec::with_capacity(events.len());
        // A buffer is of one chunk, so that it goes when that is forgotten.
        for events in events.chunk_by(|one, next| chunk_of(one.seq) == chunk_of(next.seq)) {
            let mut made = BytesMut::new();
            let mut parts = Vec::with_capacity(events.len());
            for event in events.iter().take_while(|event| event.seq <= upto) {
                let from = made.len();
                let (item, lease) = self.item(event)?;
                let response = WatchRunResponse {
                    cursor: event.seq.to_string(),
                    item: Some(Item::Journal(item)),
                };
                frames::put(&response, &mut made);
                parts.push((event.seq, lease, from..made.len()));
            }
            let made = made.freeze();
            entries.extend(parts.into_iter().map(|(seq, lease, part)| {
                let response = Stretch::new(made.clone(), part.start, part.end);
                Arc::new(Entry::new(seq, lease, response))
            }));
        }
        Ok(entries)
    }

    fn item(&self, event: &Event) -> Result<(JournalEvent, LeaseNews), Status> {
        let mut subject = event_text::subject(&event.kind);
        let mut text = event_text::text(&event.kind, |task| self.task_name(task).to_string());
        let lease = match event.kind {
            EventKind::LeaseGranted { lease, work, .. } => LeaseNews::Granted(lease, work),
            EventKind::LeaseClosed { lease, end, .. } => LeaseNews::Closed(lease, end),
            _ => LeaseNews::None,
        };
        let mut subjects = self.subjects.lock().unwrap_or_else(PoisonError::into_inner);
        if let LeaseNews::Granted(lease, work) = lease {
            let about = Subject {
                task: subject.task,
                attempt: subject.attempt,
                verifies: !matches!(work, Work::Attempt { .. }),
            };
            subjects.insert(lease, about);
        }
        if let Some(lease) = subject.lease
            && let Some(about) = subjects.get(&lease)
        {
            subject.task = about.task;
            subject.attempt = about.attempt;
            if about.verifies && matches!(event.kind, EventKind::WorkStarted { .. }) {
                text = "verify started".to_owned();
            }
        }
        drop(subjects);
        let mut json = form::event_json(event).map_err(|error| status::internal(&error))?;
        if json.len() > EVENT_JSON_BYTES {
            // A run's first event holds its whole plan.
            let omitted = serde_json::json!({
                "seq": event.seq,
                "kind": event.kind.name(),
                "omitted_bytes": json.len(),
            });
            json = omitted.to_string();
        }
        let item = JournalEvent {
            seq: event.seq,
            at: Some(convert::timestamp(event.at)),
            kind: event.kind.name().to_owned(),
            task: subject.task.map(|task| self.task_name(task).to_string()),
            attempt: subject.attempt,
            json,
            text,
        };
        Ok((item, lease))
    }
}

impl Chunk {
    fn holds(&self, seq: u64) -> bool {
        self.entries.first().is_some_and(|first| first.seq <= seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_watch_the_longer_they_are_left_alone() {
        assert_eq!(pace(0), FEED_PACE);
        assert!(pace(10_000) >= Duration::from_millis(500));
        assert!(pace(usize::MAX) >= pace(20_000));
    }
}
