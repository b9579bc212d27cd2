//! The store in memory, for tests: same rules, faults on demand.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coordinator_core::event::EventKind;
use coordinator_core::state::{Image, RunImage};
use coordinator_core::{Epoch, Event, RunId, TaskIx, Timestamp};

use super::{
    Batch, BatchSeq, EVENTS_PER_READ_MAX, Error, Loaded, POOL_BATCHES, Progress, Reader,
    SUMMARIES_PER_READ_MAX, Snapshot, Store, Summary, Which, follows, runs_of,
};

/// How an append goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nothing is written.
    Lost,
    /// The batch is written all the same, as when the machine fails right after the sync.
    Torn,
}

/// A store that lives as long as one of its handles. A clone is another handle on the same
/// store, as another process would have one: it has to claim an epoch of its own.
pub struct MemoryStore {
    kept: Arc<Mutex<Kept>>,
    epoch: Epoch,
}

#[derive(Default)]
struct Kept {
    epoch: Epoch,
    journal: BTreeMap<BatchSeq, Batch>,
    /// Number of the last batch that was ever appended.
    last: BatchSeq,
    history: BTreeMap<RunId, Vec<Event>>,
    /// Newest last.
    snapshots: VecDeque<Snapshot>,
    archive: BTreeMap<RunId, (Summary, RunImage)>,
    specs: BTreeMap<String, Vec<Vec<u8>>>,
    faults: VecDeque<Fault>,
    refused_archives: u32,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Clone for MemoryStore {
    fn clone(&self) -> Self {
        Self {
            kept: Arc::clone(&self.kept),
            epoch: Epoch(0),
        }
    }
}

impl MemoryStore {
    /// Makes an empty store.
    #[must_use]
    pub fn new() -> Self {
        Self {
            kept: Arc::default(),
            epoch: Epoch(0),
        }
    }

    /// Makes the next append that is not refused fail; several calls fail as many appends.
    pub fn fail_next_append(&self, fault: Fault) {
        self.kept().faults.push_back(fault);
    }

    /// Makes the next archiving of a run fail.
    pub fn refuse_next_archive(&self) {
        self.kept().refused_archives += 1;
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        lock(&self.kept)
    }

    fn fenced(&self) -> Result<MutexGuard<'_, Kept>, Error> {
        let kept = self.kept();
        kept.fence(self.epoch)?;
        Ok(kept)
    }
}

/// Every change is made whole before the lock is let go, so a poisoned lock holds sound data.
fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kept {
    fn fence(&self, given: Epoch) -> Result<(), Error> {
        let held = self.epoch;
        if held == given && given > Epoch(0) {
            Ok(())
        } else {
            Err(Error::Fenced { given, held })
        }
    }

    /// Copies a run's events up to a sequence number from the journal into its history.
    fn move_history(&mut self, run: RunId, upto: u64) -> Result<u64, Error> {
        let history = self.history.entry(run).or_default();
        let mut last = history.last().map_or(0, |event| event.seq);
        for event in self.journal.values().flat_map(|batch| &batch.events) {
            if event.kind.run() == Some(run) && event.seq > last && event.seq <= upto {
                follows(run, last, event.seq)?;
                last = event.seq;
                history.push(event.clone());
            }
        }
        Ok(last)
    }
}

impl Store for MemoryStore {
    fn load(&mut self) -> Result<Loaded, Error> {
        let kept = self.kept();
        Ok(Loaded {
            snapshot: kept.snapshots.back().cloned(),
            next: kept.last.next(),
            epoch: kept.epoch,
        })
    }

    fn replay(
        &mut self,
        after: BatchSeq,
        visit: &mut dyn FnMut(BatchSeq, Batch),
    ) -> Result<(), Error> {
        let kept = self.kept();
        let mut expected = after.next();
        while expected <= kept.last {
            let batch = kept
                .journal
                .get(&expected)
                .ok_or(Error::NoSuchBatch(expected))?;
            visit(expected, batch.clone());
            expected = expected.next();
        }
        Ok(())
    }

    fn claim_epoch(&mut self) -> Result<Epoch, Error> {
        let epoch = {
            let mut kept = self.kept();
            kept.epoch = Epoch(kept.epoch.0.saturating_add(1));
            kept.epoch
        };
        self.epoch = epoch;
        Ok(epoch)
    }

    fn append(
        &mut self,
        expected: BatchSeq,
        epoch: Epoch,
        at: Timestamp,
        events: &[Event],
    ) -> Result<(), Error> {
        runs_of(events)?;
        let mut kept = self.kept();
        kept.fence(epoch)?;
        let next = kept.last.next();
        if next != expected {
            return Err(Error::Conflict { expected, next });
        }
        let fault = kept.faults.pop_front();
        if fault == Some(Fault::Lost) {
            return Err(Error::Injected);
        }
        let batch = Batch {
            epoch,
            at,
            events: events.to_vec(),
        };
        kept.journal.insert(expected, batch);
        kept.last = expected;
        match fault {
            Some(Fault::Torn) => Err(Error::Injected),
            Some(Fault::Lost) | None => Ok(()),
        }
    }

    fn snapshot(&mut self, upto: BatchSeq, image: &Image) -> Result<(), Error> {
        let mut kept = self.fenced()?;
        if kept.snapshots.iter().any(|snapshot| snapshot.upto == upto) {
            return Ok(());
        }
        let at = kept.journal.get(&upto).ok_or(Error::NoSuchBatch(upto))?.at;
        kept.snapshots.push_back(Snapshot {
            upto,
            at,
            image: image.clone(),
        });
        kept.snapshots
            .make_contiguous()
            .sort_by_key(|snapshot| snapshot.upto);
        while kept.snapshots.len() > 2 {
            kept.snapshots.pop_front();
        }
        Ok(())
    }

    fn truncate(&mut self) -> Result<Progress, Error> {
        let mut kept = self.fenced()?;
        if kept.snapshots.len() < 2 {
            return Ok(Progress::Done);
        }
        let Some(floor) = kept.snapshots.front().map(|snapshot| snapshot.upto) else {
            return Ok(Progress::Done);
        };
        let mut ends = BTreeMap::new();
        for (_, batch) in kept.journal.range(..=floor) {
            for (run, _, last) in runs_of(&batch.events)? {
                ends.insert(run, last);
            }
        }
        for (run, last) in ends {
            kept.move_history(run, last)?;
        }
        kept.journal.retain(|seq, _| *seq > floor);
        Ok(Progress::Done)
    }

    fn archive(&mut self, image: &RunImage) -> Result<Progress, Error> {
        let run = image.run.id;
        let summary = Summary::of(&image.run).ok_or(Error::NotEnded(run))?;
        let mut kept = self.fenced()?;
        if let Some(left) = kept.refused_archives.checked_sub(1) {
            kept.refused_archives = left;
            return Err(Error::Injected);
        }
        let given = image.run.last_seq;
        if let Some((before, _)) = kept.archive.get(&run)
            && before.last_seq > given
        {
            let held = before.last_seq;
            return Err(Error::ArchivedLater { run, held, given });
        }
        let last = kept.move_history(run, given)?;
        if last < given {
            return Err(Error::HistoryEnds {
                run,
                last,
                wanted: given,
            });
        }
        kept.archive.insert(run, (summary, image.clone()));
        Ok(Progress::Done)
    }

    fn put_specs(&mut self, key: &str, specs: &[Vec<u8>]) -> Result<(), Error> {
        self.fenced()?.specs.insert(key.to_owned(), specs.to_vec());
        Ok(())
    }

    fn delete_specs_except(&mut self, keys: &[&str]) -> Result<(), Error> {
        self.fenced()?
            .specs
            .retain(|key, _| keys.contains(&key.as_str()));
        Ok(())
    }

    fn reader(&self) -> Result<Box<dyn Reader>, Error> {
        Ok(Box::new(MemoryReader {
            kept: Arc::clone(&self.kept),
        }))
    }
}

struct MemoryReader {
    kept: Arc<Mutex<Kept>>,
}

impl Reader for MemoryReader {
    fn run_events(&mut self, run: RunId, from: u64, limit: usize) -> Result<Vec<Event>, Error> {
        let kept = lock(&self.kept);
        let history = kept.history.get(&run).map_or(&[][..], Vec::as_slice);
        let moved = history.last().map_or(0, |event| event.seq);
        let journal = kept
            .journal
            .values()
            .flat_map(|batch| &batch.events)
            .filter(|event| event.kind.run() == Some(run) && event.seq > moved);
        Ok(history
            .iter()
            .chain(journal)
            .filter(|event| event.seq >= from)
            .take(limit.min(EVENTS_PER_READ_MAX))
            .cloned()
            .collect())
    }

    fn pool_events(&mut self, limit: usize) -> Result<Vec<Event>, Error> {
        let kept = lock(&self.kept);
        let batches = kept.journal.values().rev().take(POOL_BATCHES);
        let events = batches.flat_map(|batch| batch.events.iter().rev());
        let pools = events.filter(|event| matches!(event.kind, EventKind::Pool(_)));
        let mut events: Vec<Event> = pools.take(limit).cloned().collect();
        events.reverse();
        Ok(events)
    }

    fn archived(&mut self, which: Which<'_>) -> Result<Option<Summary>, Error> {
        let kept = lock(&self.kept);
        Ok(kept
            .archive
            .values()
            .map(|(summary, _)| summary)
            .find(|summary| match which {
                Which::Id(run) => summary.run == run,
                Which::Name(name) => &*summary.name == name,
            })
            .cloned())
    }

    fn archived_runs(
        &mut self,
        before: Option<RunId>,
        limit: usize,
    ) -> Result<Vec<Summary>, Error> {
        let kept = lock(&self.kept);
        Ok(kept
            .archive
            .values()
            .rev()
            .map(|(summary, _)| summary)
            .filter(|summary| before.is_none_or(|before| summary.run < before))
            .take(limit.min(SUMMARIES_PER_READ_MAX))
            .cloned()
            .collect())
    }

    fn archived_image(&mut self, run: RunId) -> Result<Option<RunImage>, Error> {
        let kept = lock(&self.kept);
        Ok(kept.archive.get(&run).map(|(_, image)| image.clone()))
    }

    fn spec(&mut self, key: &str, task: TaskIx) -> Result<Option<Vec<u8>>, Error> {
        let kept = lock(&self.kept);
        Ok(kept
            .specs
            .get(key)
            .and_then(|specs| specs.get(task.0 as usize))
            .cloned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_append_leaves_nothing_and_a_torn_one_all() {
        let mut store = MemoryStore::new();
        let epoch = store.claim_epoch().unwrap();
        let append = |store: &mut MemoryStore, seq| {
            store.append(BatchSeq(seq), epoch, Timestamp::from_ms(seq), &[])
        };
        append(&mut store, 1).unwrap();
        store.fail_next_append(Fault::Lost);
        assert!(matches!(append(&mut store, 2), Err(Error::Injected)));
        append(&mut store, 2).unwrap();
        store.fail_next_append(Fault::Torn);
        assert!(matches!(append(&mut store, 3), Err(Error::Injected)));
        assert!(matches!(append(&mut store, 3), Err(Error::Conflict { .. })));
        assert_eq!(store.load().unwrap().next, BatchSeq(4));
    }
}
