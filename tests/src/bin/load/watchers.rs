//! Watchers of runs: honest ones, which read everything and count, and those that never read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use muster_connect::AuthorizedChannel;
use muster_proto::v1;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic_prost::ProstCodec;

use crate::site::Door;

/// Connections that are being opened at once, so that handshakes are not all that is done.
const JOINING: usize = 32;
/// How often a connection is tried.
const TRIES: u32 = 5;

/// The part of a response that is looked at: with ten thousand watchers in one process, what is
/// measured would otherwise be how fast this process makes strings.
#[derive(Clone, PartialEq, prost::Message)]
struct Response {
    #[prost(message, optional, tag = "2")]
    journal: Option<Event>,
}

/// The same of a journal event.
#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Event {
    #[prost(uint64, tag = "1")]
    seq: u64,
    #[prost(message, optional, tag = "2")]
    at: Option<prost_types::Timestamp>,
}

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

/// Opens watchers of a run's events behind `after`, so many on each connection.
pub(crate) fn watch(
    door: &Arc<Door>,
    (run, after): (&str, u64),
    count: usize,
    on_each: usize,
    watched: &Arc<Watched>,
    tasks: &mut JoinSet<()>,
) {
    let joining = Arc::new(Semaphore::new(JOINING));
    let mut left = count;
    while left > 0 {
        let streams = left.min(on_each.max(1));
        left -= streams;
        let (door, run, watched) = (Arc::clone(door), run.to_owned(), Arc::clone(watched));
        let joining = Arc::clone(&joining);
        tasks.spawn(async move {
            let permit = joining.acquire().await;
            let opened = open(&door).await;
            drop(permit);
            let Ok(viewer) = opened else {
                note(&watched, opened.err().map(|error| format!("{error:#}")));
                return;
            };
            watched.connections.fetch_add(1, Ordering::Relaxed);
            let mut streams: JoinSet<()> = (0..streams)
                .map(|_| {
                    let (viewer, run) = (viewer.clone(), run.clone());
                    let watched = Arc::clone(&watched);
                    async move {
                        let ended = follow(viewer, run, after, &watched).await;
                        note(&watched, ended.err().map(|error| format!("{error:#}")));
                    }
                })
                .collect();
            while streams.join_next().await.is_some() {}
        });
    }
}

/// Opens a connection, again if it was turned away.
async fn open(door: &Door) -> Result<AuthorizedChannel> {
    let mut tries = 0;
    loop {
        tries += 1;
        match door.channel(&door.viewer).await {
            Err(_) if tries < TRIES => tokio::time::sleep(Duration::from_millis(200)).await,
            opened => return opened,
        }
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

async fn follow(
    viewer: AuthorizedChannel,
    run: String,
    mut last: u64,
    watched: &Watched,
) -> Result<()> {
    let request = v1::WatchRunRequest {
        run,
        after_seq: last,
        ..v1::WatchRunRequest::default()
    };
    let mut client = Grpc::new(viewer);
    client.ready().await?;
    let path = PathAndQuery::from_static("/muster.v1.OperatorService/WatchRun");
    let codec = ProstCodec::<v1::WatchRunRequest, Response>::default();
    let stream = client.server_streaming(tonic::Request::new(request), path, codec);
    let mut stream = stream.await?.into_inner();
    watched.open.fetch_add(1, Ordering::Relaxed);
    while let Some(response) = stream.message().await? {
        let Some(event) = response.journal else {
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
