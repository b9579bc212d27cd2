//! What sessions of workers say about themselves, for as long as they last.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coordinator_core::WorkerId;

/// The last word of each connected worker; clones share them.
#[derive(Debug)]
pub(super) struct BySession<T>(Arc<Mutex<BTreeMap<WorkerId, Said<T>>>>);

#[derive(Debug)]
struct Said<T> {
    /// Whose message told it.
    session: u64,
    what: T,
}

impl<T> Clone for BySession<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for BySession<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Clone> BySession<T> {
    /// Notes what a session says, in place of what was said before.
    pub(super) fn note(&self, worker: &WorkerId, session: u64, what: T) {
        self.lock().insert(worker.clone(), Said { session, what });
    }

    /// Forgets what a session told, once it has ended.
    pub(super) fn forget(&self, worker: &WorkerId, session: u64) {
        let mut known = self.lock();
        if known
            .get(worker)
            .is_some_and(|known| known.session <= session)
        {
            known.remove(worker);
        }
    }

    /// Gives the last word of each connected worker.
    pub(super) fn told(&self) -> BTreeMap<WorkerId, T> {
        let known = self.lock();
        let told = known.iter();
        told.map(|(worker, said)| (worker.clone(), said.what.clone()))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<WorkerId, Said<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
