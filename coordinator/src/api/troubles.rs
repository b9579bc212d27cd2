//! What is the matter with workers, in their own words: shown to people, and decides nothing, since a
//! worker in trouble offers no slots anyway.

use std::collections::BTreeMap;

use coordinator_core::WorkerId;
use coordinator_core::limits::TEXT_BYTES;

use super::by_session::BySession;
use super::convert;

/// Troubles of connected workers; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Troubles(BySession<String>);

impl Troubles {
    /// Notes what a heartbeat says; nothing is the matter if that is empty.
    pub(super) fn note(&self, worker: &WorkerId, session: u64, what: &str) {
        if what.is_empty() {
            return self.forget(worker, session);
        }
        let what = convert::clip(what, TEXT_BYTES).to_owned();
        self.0.note(worker, session, what);
    }

    /// Forgets what a session told, once it has ended.
    pub(super) fn forget(&self, worker: &WorkerId, session: u64) {
        self.0.forget(worker, session);
    }

    /// Tells what is the matter with whom.
    pub(super) fn told(&self) -> BTreeMap<WorkerId, String> {
        self.0.told()
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
