//! Places for requests: so many at once, of which no credential has all, and so many that wait.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// The longest wait for a place; a client that waits longer had better come again.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// The most requests that wait for a place: each holds a stream and some KiB.
const WAITING_MAX: usize = 1_024;

/// The most of them that come with one credential.
const WAITING_EACH_MAX: usize = WAITING_MAX / 4;

/// Places of one kind; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Rooms {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    what: &'static str,
    places: Arc<Semaphore>,
    places_max: usize,
    waiting: Semaphore,
    each_max: usize,
    wait_max: Duration,
    held: Mutex<BTreeMap<String, Held>>,
}

/// What one credential has.
#[derive(Debug)]
struct Held {
    /// Requests that have a place or wait for one.
    requests: usize,
    places: Arc<Semaphore>,
}

/// A place that is taken, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    inner: Arc<Inner>,
    credential: String,
    _permits: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

/// Why no place was had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Full {
    #[error("{what}: {WAITING_EACH_MAX} of this credential wait for their turn already")]
    Credential { what: &'static str },
    #[error("{what}: {WAITING_MAX} wait for their turn already; try again later")]
    Waiting { what: &'static str },
    #[error("{what}: all {places_max} places are taken; try again")]
    Places {
        what: &'static str,
        places_max: usize,
    },
}

impl Rooms {
    /// Makes places for `what`, at most `each_max` of them for one credential.
    pub(super) fn new(what: &'static str, places_max: usize, each_max: usize) -> Self {
        let inner = Inner {
            what,
            places: Arc::new(Semaphore::new(places_max)),
            places_max,
            waiting: Semaphore::new(WAITING_MAX),
            each_max,
            wait_max: WAIT_MAX,
            held: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Waits for a place.
    pub(super) async fn place(&self, credential: String) -> Result<Place, Full> {
        let Inner {
            what, places_max, ..
        } = *self.inner;
        let waiting = self.inner.waiting.try_acquire();
        let _waiting = waiting.map_err(|_| Full::Waiting { what })?;
        let held = self.inner.hold(credential);
        let (mut place, own) = held.ok_or(Full::Credential { what })?;
        let permits = async {
            let own = own.acquire_owned().await.ok()?;
            let common = Arc::clone(&self.inner.places).acquire_owned().await.ok()?;
            Some((own, common))
        };
        let permits = timeout(self.inner.wait_max, permits).await.ok().flatten();
        place._permits = Some(permits.ok_or(Full::Places { what, places_max })?);
        Ok(place)
    }
}

impl Inner {
    fn hold(self: &Arc<Self>, credential: String) -> Option<(Place, Arc<Semaphore>)> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let own = held.entry(credential.clone()).or_insert_with(|| Held {
            requests: 0,
            places: Arc::new(Semaphore::new(self.each_max)),
        });
        if own.requests >= self.each_max + WAITING_EACH_MAX {
            return None;
        }
        own.requests += 1;
        let places = Arc::clone(&own.places);
        let place = Place {
            inner: Arc::clone(self),
            credential,
            _permits: None,
        };
        Some((place, places))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self
            .inner
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = held.get_mut(&self.credential) {
            own.requests -= 1;
            if own.requests == 0 {
                held.remove(&self.credential);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two places, of which one credential has one.
    fn rooms(wait_max: Duration) -> Rooms {
        let mut rooms = Rooms::new("pushes", 2, 1);
        Arc::get_mut(&mut rooms.inner).unwrap().wait_max = wait_max;
        rooms
    }

    #[tokio::test]
    async fn no_credential_has_all_places_and_whoever_waits_too_long_is_told() {
        let rooms = rooms(Duration::from_millis(50));
        let first = rooms.place("a".to_owned()).await.unwrap();
        let refused = rooms.place("a".to_owned()).await.unwrap_err();
        assert!(matches!(refused, Full::Places { .. }), "{refused}");
        let _second = rooms.place("b".to_owned()).await.unwrap();
        assert!(rooms.place("c".to_owned()).await.is_err());
        drop(first);
        rooms.place("a".to_owned()).await.unwrap();
        assert_eq!(rooms.inner.held.lock().unwrap().len(), 1, "only b has one");
    }

    #[tokio::test]
    async fn no_credential_fills_the_queue() {
        // Whoever waits does so for the whole test, however slow the machine is.
        let rooms = rooms(WAIT_MAX);
        let _first = rooms.place("a".to_owned()).await.unwrap();
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 0..WAITING_EACH_MAX {
            let rooms = rooms.clone();
            waiting.spawn(async move { rooms.place("a".to_owned()).await });
        }
        let requests = || rooms.inner.held.lock().unwrap()["a"].requests;
        while requests() < 1 + WAITING_EACH_MAX {
            tokio::task::yield_now().await;
        }
        let refused = rooms.place("a".to_owned()).await.unwrap_err();
        assert_eq!(refused, Full::Credential { what: "pushes" });
        rooms.place("b".to_owned()).await.unwrap();
    }
}
