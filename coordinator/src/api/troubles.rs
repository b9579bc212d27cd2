//! What is the matter with workers, in their own words: shown to people, and decides nothing, since a
//! worker in trouble offers no slots anyway.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coordinator_core::WorkerId;
use coordinator_core::limits::TEXT_BYTES;

use super::convert;

/// Troubles of connected workers; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Troubles(Arc<Mutex<BTreeMap<WorkerId, Trouble>>>);

#[derive(Debug)]
struct Trouble {
    /// Whose heartbeat told it.
    session: u64,
    what: String,
}

impl Troubles {
    /// Notes what a heartbeat says; nothing is the matter if that is empty.
    pub(super) fn note(&self, worker: &WorkerId, session: u64, what: &str) {
        if what.is_empty() {
            return self.forget(worker, session);
        }
        let what = convert::clip(what, TEXT_BYTES).to_owned();
        self.lock()
            .insert(worker.clone(), Trouble { session, what });
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

    /// Tells what is the matter with whom.
    pub(super) fn told(&self) -> BTreeMap<WorkerId, String> {
        let known = self.lock();
        let told = known.iter();
        told.map(|(worker, trouble)| (worker.clone(), trouble.what.clone()))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<WorkerId, Trouble>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_session_told_goes_with_it_and_not_with_an_older_one() {
        let troubles = Troubles::default();
        let worker = WorkerId::new("w");
        let told = || troubles.told().into_values().collect::<Vec<_>>();
        troubles.note(&worker, 2, "its disk is full");
        troubles.forget(&worker, 1);
        assert_eq!(told(), ["its disk is full"]);
        troubles.note(&worker, 2, "");
        assert!(told().is_empty());
        troubles.note(&worker, 2, &"x".repeat(TEXT_BYTES + 1));
        assert_eq!(told()[0].len(), TEXT_BYTES);
        troubles.forget(&worker, 2);
        assert!(told().is_empty());
    }
}
