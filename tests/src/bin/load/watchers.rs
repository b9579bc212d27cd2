//! Watchers of runs: honest ones, which read everything and count, and those that never read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use muster_proto::v1;
use muster_proto::v1::watch_run_response::Item;
use tokio::task::JoinSet;

use crate::site::Door;

/// Every so manyth event's delay is kept.
const LAG_EVERY: u64 = 16;

/// What all watchers have seen.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    pub(crate) open: AtomicUsize,
    pub(crate) connections: AtomicUsize,
    pub(crate) events: AtomicU64,
    /// Events that came twice, out of order, or after a gap.
    pub(crate) wrong: AtomicU64,
    pub(crate) broken: AtomicU64,
    /// From an event's own time to when a watcher had it.
    lags: Mutex<Vec<Duration>>,
    last_error: Mutex<Option<String>>,
}

impl Watched {
    pub(crate) fn take_lags(&self) -> Vec<Duration> {
        std::mem::take(&mut *self.lags.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn last_error(&self) -> Option<String> {
        self.last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Opens watchers of `run`, so many on each connection.
pub(crate) fn watch(
    door: &Arc<Door>,
    run: &str,
    count: usize,
    on_each: usize,
    watched: &Arc<Watched>,
    tasks: &mut JoinSet<()>,
) {
    let mut left = count;
    while left > 0 {
        let streams = left.min(on_each.max(1));
        left -= streams;
        let (door, run, watched) = (Arc::clone(door), run.to_owned(), Arc::clone(watched));
        tasks.spawn(async move {
            let opened = door.viewer().await;
            let Ok(viewer) = opened else {
                note(&watched, opened.err().map(|error| format!("{error:#}")));
                return;
            };
            watched.connections.fetch_add(1, Ordering::Relaxed);
            let mut streams: JoinSet<()> = (0..streams)
                .map(|_| {
                    let (mut viewer, run) = (viewer.clone(), run.clone());
                    let watched = Arc::clone(&watched);
                    async move {
                        let ended = follow(&mut viewer, run, &watched).await;
                        note(&watched, ended.err().map(|error| format!("{error:#}")));
                    }
                })
                .collect();
            while streams.join_next().await.is_some() {}
        });
    }
}

fn note(watched: &Watched, error: Option<String>) {
    if let Some(error) = error {
        watched.broken.fetch_add(1, Ordering::Relaxed);
        *watched
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(error);
    }
}

async fn follow(viewer: &mut crate::site::Operator, run: String, watched: &Watched) -> Result<()> {
    // From now on, as one that comes back: what was before is not what is measured.
    let get = v1::GetRunRequest {
        run: run.clone(),
        limit: 1,
        ..v1::GetRunRequest::default()
    };
    let found = viewer.get_run(get).await?.into_inner().run;
    let mut last = found.map_or(0, |run| run.last_seq);
    let request = v1::WatchRunRequest {
        run,
        after_seq: last,
        ..v1::WatchRunRequest::default()
    };
    let mut stream = viewer.watch_run(request).await?.into_inner();
    watched.open.fetch_add(1, Ordering::Relaxed);
    while let Some(response) = stream.message().await? {
        let Some(Item::Journal(event)) = response.item else {
            continue;
        };
        if event.seq != last + 1 {
            watched.wrong.fetch_add(1, Ordering::Relaxed);
        }
        last = event.seq;
        let count = watched.events.fetch_add(1, Ordering::Relaxed);
        if count.is_multiple_of(LAG_EVERY)
            && let Some(at) = event.at.and_then(|at| SystemTime::try_from(at).ok())
        {
            let lag = SystemTime::now().duration_since(at).unwrap_or_default();
            watched
                .lags
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(lag);
        }
    }
    Ok(())
}
