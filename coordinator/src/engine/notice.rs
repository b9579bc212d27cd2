//! Level-triggered signals that something was committed; listeners look for themselves.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use coordinator_core::RunId;
use tokio::sync::watch;

/// Signals of the engine. A signal carries a number that only grows, never the news itself, so
/// that a slow listener costs nothing and misses nothing.
#[derive(Debug)]
pub struct Notices {
    git_work: watch::Sender<u64>,
    projection: watch::Sender<u64>,
    committed: watch::Sender<u64>,
    workers: watch::Sender<u64>,
    pools: watch::Sender<u64>,
    runs: Mutex<BTreeMap<RunId, watch::Sender<u64>>>,
}

impl Default for Notices {
    fn default() -> Self {
        Self {
            git_work: watch::Sender::new(0),
            projection: watch::Sender::new(0),
            committed: watch::Sender::new(0),
            workers: watch::Sender::new(0),
            pools: watch::Sender::new(0),
            runs: Mutex::default(),
        }
    }
}

impl Notices {
    /// Signals that merges may be wanted.
    #[must_use]
    pub fn git_work(&self) -> watch::Receiver<u64> {
        self.git_work.subscribe()
    }

    /// Signals that refs may differ from the journal.
    #[must_use]
    pub fn projection(&self) -> watch::Receiver<u64> {
        self.projection.subscribe()
    }

    /// Signals any commit.
    #[must_use]
    pub fn committed(&self) -> watch::Receiver<u64> {
        self.committed.subscribe()
    }

    /// Signals that a worker came, went or changed.
    #[must_use]
    pub fn workers(&self) -> watch::Receiver<u64> {
        self.workers.subscribe()
    }

    /// Signals that what is wanted of pools may have changed.
    #[must_use]
    pub fn pools(&self) -> watch::Receiver<u64> {
        self.pools.subscribe()
    }

    /// Signals that a run has new events; the number is its last sequence number.
    #[must_use]
    pub fn run(&self, run: RunId) -> watch::Receiver<u64> {
        self.lock()
            .entry(run)
            .or_insert_with(|| watch::Sender::new(0))
            .subscribe()
    }

    pub(super) fn announce_git_work(&self) {
        self.git_work.send_modify(|count| *count += 1);
    }

    pub(super) fn announce_projection(&self) {
        self.projection.send_modify(|count| *count += 1);
    }

    pub(super) fn announce_commit(&self) {
        self.committed.send_modify(|count| *count += 1);
    }

    pub(super) fn announce_workers(&self) {
        self.workers.send_modify(|count| *count += 1);
    }

    pub(super) fn announce_pools(&self) {
        self.pools.send_modify(|count| *count += 1);
    }

    /// Wakes the watchers of a run and forgets runs that nobody watches.
    pub(super) fn announce_run(&self, run: RunId, seq: u64) {
        let mut runs = self.lock();
        if let Some(sender) = runs.get(&run) {
            if sender.receiver_count() == 0 {
                runs.remove(&run);
            } else {
                sender.send_replace(seq);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<RunId, watch::Sender<u64>>> {
        // The map is only touched by the short functions above, none of which can panic half-way.
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
