//! Who may keep a connection: strangers give way to each other, viewers and workers to operators.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::limits::{REFUSALS_PER_CONNECTION, STALLED_PER_CONNECTION};
use crate::auth::Identity;

/// All places for connections of one port.
///
/// A connection begins as a stranger. When strangers have no place left the one that has been there
/// longest goes, so that a client that shows its credential at once gets in however many others
/// say nothing. Of those who are known, operators and admins always find room: a tenth of all places,
/// and as many as strangers may take, are kept free of viewers and workers, and viewers never take
/// more than six tenths.
#[derive(Debug)]
pub(super) struct Places {
    all: Arc<Semaphore>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Places of everybody but operators and admins.
    common: Arc<Semaphore>,
    common_max: usize,
    viewers: Arc<Semaphore>,
    viewers_max: usize,
    strangers_max: usize,
    strangers: Mutex<Strangers>,
}

#[derive(Debug, Default)]
struct Strangers {
    next: u64,
    /// The oldest first.
    present: BTreeMap<u64, CancellationToken>,
}

/// A connection as its requests see it, in their extensions.
#[derive(Clone, Debug)]
pub(super) struct Connection(Arc<Standing>);

#[derive(Debug)]
struct Standing {
    shared: Arc<Shared>,
    number: u64,
    /// The stranger has to go.
    evicted: CancellationToken,
    cut: CancellationToken,
    is_authenticated: AtomicBool,
    changed: Notify,
    refusals: AtomicU32,
    /// Responses that have not ended.
    open: AtomicUsize,
    /// Those of them of which the client takes nothing.
    stalled: AtomicUsize,
    /// When its client took a part of a download last.
    taken: Mutex<Option<Instant>>,
    kept: Mutex<Vec<OwnedSemaphorePermit>>,
}

/// A response of a connection, until it ends.
#[derive(Debug)]
pub(super) struct OpenResponse(Connection);

/// A response of a connection of which the client takes nothing.
#[derive(Debug)]
pub(super) struct Stalled(Connection);

/// No place of that kind is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: all {max} places are taken; try again later")]
pub(super) struct Full {
    what: &'static str,
    max: usize,
}

impl Places {
    pub(super) fn new(connections_max: usize, strangers_max: usize) -> Self {
        let reserved = (connections_max / 10).max(strangers_max);
        let common_max = connections_max.saturating_sub(reserved).max(1);
        let viewers_max = (connections_max / 10 * 6).clamp(1, common_max);
        let shared = Shared {
            common: Arc::new(Semaphore::new(common_max)),
            common_max,
            viewers: Arc::new(Semaphore::new(viewers_max)),
            viewers_max,
            strangers_max,
            strangers: Mutex::default(),
        };
        Self {
            all: Arc::new(Semaphore::new(connections_max)),
            shared: Arc::new(shared),
        }
    }

    /// Takes a new connection in, and tells whether another stranger had to go for it; `None` when
    /// all places are taken by those who are known.
    pub(super) fn enter(&self) -> Option<(Connection, bool)> {
        let mut strangers = self.shared.lock();
        let mut has_evicted = false;
        while strangers.present.len() >= self.shared.strangers_max {
            let (_, oldest) = strangers.present.pop_first()?;
            oldest.cancel();
            has_evicted = true;
        }
        let place = Arc::clone(&self.all).try_acquire_owned().ok()?;
        let number = strangers.next;
        strangers.next += 1;
        let evicted = CancellationToken::new();
        strangers.present.insert(number, evicted.clone());
        let standing = Standing {
            shared: Arc::clone(&self.shared),
            number,
            evicted,
            cut: CancellationToken::new(),
            is_authenticated: AtomicBool::new(false),
            changed: Notify::new(),
            refusals: AtomicU32::new(0),
            open: AtomicUsize::new(0),
            stalled: AtomicUsize::new(0),
            taken: Mutex::default(),
            kept: Mutex::new(vec![place]),
        };
        Some((Connection(Arc::new(standing)), has_evicted))
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Strangers> {
        self.strangers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// Notes that a request on this connection carried a valid credential.
    ///
    /// # Errors
    /// Connections of that kind have no place left; this one stays a stranger's.
    pub(super) fn authenticated(&self, identity: &Identity) -> Result<(), Full> {
        let standing = &*self.0;
        if standing.is_authenticated.load(Ordering::Acquire) {
            return Ok(());
        }
        let shared = &standing.shared;
        let take = |from: &Arc<Semaphore>, what, max| {
            let taken = Arc::clone(from).try_acquire_owned();
            taken.map_err(|_| Full { what, max })
        };
        let mut taken = Vec::new();
        match identity {
            Identity::Operator { .. } | Identity::Admin { .. } => {}
            Identity::Viewer { .. } => {
                let (what, max) = ("connections of viewers", shared.viewers_max);
                taken.push(take(&shared.viewers, what, max)?);
                let what = "connections of viewers and workers";
                taken.push(take(&shared.common, what, shared.common_max)?);
            }
            Identity::Worker { .. }
            | Identity::Allocation(_)
            | Identity::Lease(_)
            | Identity::WorkerSession { .. } => {
                let what = "connections of viewers and workers";
                taken.push(take(&shared.common, what, shared.common_max)?);
            }
        }
        if !standing.is_authenticated.swap(true, Ordering::AcqRel) {
            shared.lock().present.remove(&standing.number);
            standing.kept().append(&mut taken);
            standing.changed.notify_one();
        }
        Ok(())
    }

    /// Notes that a request carried no valid credential; after too many the connection ends.
    pub(super) fn refused(&self) {
        let before = self.0.refusals.fetch_add(1, Ordering::Relaxed);
        if before.saturating_add(1) >= REFUSALS_PER_CONNECTION {
            self.0.changed.notify_one();
        }
    }

    /// Waits until the connection is no stranger's any more, or is one that guesses.
    pub(super) async fn when_changed(&self) {
        self.0.changed.notified().await;
    }

    pub(super) fn is_authenticated(&self) -> bool {
        self.0.is_authenticated.load(Ordering::Acquire)
    }

    /// Notes that the client takes a part of a download, which may take longer than a stranger's time.
    pub(super) fn takes(&self) {
        *self.0.taken() = Some(Instant::now());
    }

    /// Gives when it did so last.
    pub(super) fn taken_at(&self) -> Option<Instant> {
        *self.0.taken()
    }

    /// Counts a response until it has ended.
    pub(super) fn respond(&self) -> OpenResponse {
        self.0.open.fetch_add(1, Ordering::Relaxed);
        OpenResponse(self.clone())
    }

    /// Counts a response as one of which the client takes nothing.
    pub(super) fn stall(&self) -> Stalled {
        self.0.stalled.fetch_add(1, Ordering::Relaxed);
        Stalled(self.clone())
    }

    /// Ends the connection with everything that waits for it.
    pub(super) fn cut(&self) {
        self.0.cut.cancel();
    }

    #[cfg(test)]
    pub(super) fn stalled(&self) -> usize {
        self.0.stalled.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(super) fn is_cut(&self) -> bool {
        self.0.cut.is_cancelled()
    }

    /// Waits until the connection has to go: it was cut, or a newer stranger needs its place.
    pub(super) async fn when_over(&self) {
        tokio::select! {
            () = self.0.cut.cancelled() => return,
            () = self.0.evicted.cancelled() => {}
        }
        if self.is_authenticated() {
            // Its credential came just in time.
            self.0.cut.cancelled().await;
        }
    }
}

impl Stalled {
    /// Ends the connection if the client takes nothing of too many responses, or of any: what waits
    /// for it would stay in memory as long as it likes. True if the connection ends.
    ///
    /// A client that forgets one watch keeps the others: that of a frozen window must not end the
    /// rest of a dashboard.
    pub(super) fn cut_if_deaf(&self) -> bool {
        let standing = &self.0.0;
        let stalled = standing.stalled.load(Ordering::Relaxed);
        let is_deaf =
            stalled > STALLED_PER_CONNECTION || stalled >= standing.open.load(Ordering::Relaxed);
        if is_deaf {
            self.0.cut();
        }
        is_deaf
    }
}

impl Drop for OpenResponse {
    fn drop(&mut self) {
        self.0.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        self.0.0.stalled.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Standing {
    fn taken(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<OwnedSemaphorePermit>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.shared.lock().present.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn viewer() -> Identity {
        let token = muster_connect::TokenId::from_bytes([1; 8]);
        Identity::Viewer { token }
    }

    fn admin() -> Identity {
        let token = muster_connect::TokenId::from_bytes([2; 8]);
        Identity::Admin { token }
    }

    #[test]
    fn a_newcomer_takes_the_place_of_the_stranger_that_waited_longest() {
        let places = Places::new(100, 2);
        let (oldest, _) = places.enter().unwrap();
        let (known, _) = places.enter().unwrap();
        known.authenticated(&viewer()).unwrap();
        let (younger, _) = places.enter().unwrap();
        let (_newest, has_evicted) = places.enter().unwrap();
        assert!(has_evicted);
        assert!(oldest.0.evicted.is_cancelled());
        assert!(!known.0.evicted.is_cancelled() && !younger.0.evicted.is_cancelled());
    }

    #[test]
    fn viewers_and_workers_leave_room_for_operators() {
        let places = Places::new(20, 2);
        let mut inside = Vec::new();
        let mut enter = |identity: &Identity| {
            let (connection, _) = places.enter().unwrap();
            let outcome = connection.authenticated(identity);
            inside.push(connection);
            outcome
        };
        for _ in 0..12 {
            enter(&viewer()).unwrap();
        }
        let full = enter(&viewer()).unwrap_err();
        assert_eq!(full.what, "connections of viewers");
        for _ in 0..6 {
            enter(&Identity::Lease(1)).unwrap();
        }
        let full = enter(&Identity::Lease(1)).unwrap_err();
        assert_eq!(full.what, "connections of viewers and workers");
        inside.truncate(18);
        let (operator, _) = places.enter().unwrap();
        operator.authenticated(&admin()).unwrap();
    }

    #[test]
    fn a_place_is_free_again_when_its_connection_is_gone() {
        let places = Places::new(1, 1);
        for _ in 0..3 {
            let (connection, _) = places.enter().unwrap();
            connection.authenticated(&viewer()).unwrap();
            assert!(places.enter().is_none());
        }
    }
}
