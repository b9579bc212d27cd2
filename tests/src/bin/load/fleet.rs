//! Honest workers: real sessions over connections of their own, whose attempts only take time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use muster_proto::v1;
use muster_proto::v1::coordinator_message::Kind as Heard;
use muster_proto::v1::worker_message::Kind as Said;
use muster_proto::v1::worker_service_client::WorkerServiceClient;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use crate::site::{Door, PATIENCE};

/// Sessions that are being opened at once, so that handshakes are not all that is done.
const JOINING: usize = 64;

/// What one session is to do.
#[derive(Clone, Debug)]
pub(crate) struct Habit {
    /// How long an attempt takes.
    pub(crate) work: Duration,
    /// How often it gives a sign of life; the coordinator's own wish if absent.
    pub(crate) beat: Option<Duration>,
}

/// What all workers have seen since they were last asked.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// From offering a free slot to the grant that fills it.
    pub(crate) grants: Vec<Duration>,
    /// From a heartbeat to its answer.
    pub(crate) beats: Vec<Duration>,
    /// From a report to its acknowledgement.
    pub(crate) reports: Vec<Duration>,
    pub(crate) done: usize,
    /// Reports of work that the coordinator took for another's, or did not know.
    pub(crate) stale: usize,
    /// Sessions that ended and were opened again.
    pub(crate) reconnects: usize,
    pub(crate) last_error: Option<String>,
}

#[derive(Clone)]
pub(crate) struct Fleet {
    inner: Arc<Inner>,
}

struct Inner {
    door: Arc<Door>,
    habit: Habit,
    seen: Mutex<Seen>,
    connected: AtomicUsize,
    /// Held from the first byte to the welcome.
    joining: Semaphore,
}

impl Fleet {
    pub(crate) fn new(door: Arc<Door>, habit: Habit) -> Self {
        let inner = Inner {
            door,
            habit,
            seen: Mutex::default(),
            connected: AtomicUsize::new(0),
            joining: Semaphore::new(JOINING),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Lets so many more workers begin; they come back whenever they lose their session.
    pub(crate) fn join(&self, name: &str, count: usize, tasks: &mut JoinSet<()>) {
        for index in 0..count {
            let (inner, name) = (Arc::clone(&self.inner), format!("{name}-{index}"));
            tasks.spawn(async move {
                let mut reports = 0;
                loop {
                    let ended = session(&inner, &name, &mut reports).await;
                    {
                        let mut seen = inner.seen();
                        seen.reconnects += 1;
                        seen.last_error = ended.err().map(|error| format!("{error:#}"));
                    }
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            });
        }
    }

    pub(crate) fn connected(&self) -> usize {
        self.inner.connected.load(Ordering::Relaxed)
    }

    /// Waits until so many are welcome.
    pub(crate) async fn until_connected(&self, count: usize) -> Result<Duration> {
        let begun = Instant::now();
        while self.connected() < count {
            if begun.elapsed() > PATIENCE {
                bail!(
                    "{} of {count} workers are welcome after {PATIENCE:?}; last error: {:?}",
                    self.connected(),
                    self.inner.seen().last_error
                );
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(begun.elapsed())
    }

    /// Gives what was seen since the last call.
    pub(crate) fn take(&self) -> Seen {
        std::mem::take(&mut *self.inner.seen())
    }
}

impl Inner {
    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a session as connected while it lives.
struct Connected<'a>(&'a AtomicUsize);

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(crate) fn hello(name: &str, slots: u32) -> v1::Hello {
    v1::Hello {
        version: Some(v1::ProtocolVersion::current("load")),
        worker: name.to_owned(),
        incarnation: 1,
        host: name.to_owned(),
        slots,
        agents: vec![v1::AgentOffer {
            name: "command".to_owned(),
            ..v1::AgentOffer::default()
        }],
        sandbox_levels: vec!["none".to_owned()],
        ..v1::Hello::default()
    }
}

pub(crate) fn success(number: u64, lease: u64) -> v1::Report {
    let outcome = v1::Outcome {
        kind: Some(v1::outcome::Kind::NoRepository(v1::Empty {})),
    };
    let succeeded = v1::Succeeded {
        outcome: Some(outcome),
        ..v1::Succeeded::default()
    };
    v1::Report {
        number,
        lease,
        kind: Some(v1::report::Kind::Succeeded(succeeded)),
    }
}

/// One session with one slot, from hello until the stream breaks.
async fn session(inner: &Inner, name: &str, reports: &mut u64) -> Result<()> {
    let joining = inner.joining.acquire().await;
    let channel = inner.door.channel(&inner.door.worker).await?;
    let mut client = WorkerServiceClient::new(channel);
    let (out, messages) = mpsc::channel::<v1::WorkerMessage>(64);
    let say = async |kind: Said| {
        out.send(v1::WorkerMessage { kind: Some(kind) })
            .await
            .context("the session has ended")
    };
    say(Said::Hello(hello(name, 1))).await?;
    let mut stream = client
        .session(ReceiverStream::new(messages))
        .await?
        .into_inner();
    let Some(Heard::Welcome(welcome)) = stream.message().await?.and_then(|message| message.kind)
    else {
        bail!("no welcome");
    };
    drop(joining);
    let wish = welcome.heartbeat_interval.context("no interval")?;
    let interval = inner.habit.beat.unwrap_or(Duration::try_from(wish)?);
    inner.connected.fetch_add(1, Ordering::Relaxed);
    let _connected = Connected(&inner.connected);
    let mut clock = tokio::time::interval(interval);
    let mut beat = 0;
    let mut beats: VecDeque<(u64, Instant)> = VecDeque::new();
    let mut reported: BTreeMap<u64, Instant> = BTreeMap::new();
    let mut held: Option<(u64, Instant)> = None;
    let mut free_since: Option<Instant> = None;
    loop {
        let due = held.map(|(_, until)| tokio::time::Instant::from_std(until));
        let is_busy = due.is_some();
        let due = tokio::time::sleep_until(due.unwrap_or_else(tokio::time::Instant::now));
        let heard = tokio::select! {
            heard = stream.message() => heard?,
            _ = clock.tick() => None,
            () = due, if is_busy => {
                let Some((lease, _)) = held.take() else { continue };
                *reports += 1;
                reported.insert(*reports, Instant::now());
                say(Said::Reports(v1::ReportBatch { reports: vec![success(*reports, lease)] })).await?;
                free_since = Some(Instant::now());
                None
            }
        };
        let Some(heard) = heard else {
            beat += 1;
            beats.push_back((beat, Instant::now()));
            let heartbeat = v1::Heartbeat {
                seq: beat,
                free_slots: u32::from(held.is_none()),
                held_leases: held.iter().map(|(lease, _)| *lease).collect(),
                ..v1::Heartbeat::default()
            };
            say(Said::Heartbeat(heartbeat)).await?;
            continue;
        };
        let now = Instant::now();
        match heard.kind {
            Some(Heard::Renewal(renewal)) => {
                while let Some((seq, sent)) = beats.pop_front() {
                    if seq == renewal.seq {
                        inner.seen().beats.push(now - sent);
                        break;
                    }
                }
            }
            Some(Heard::Grants(grants)) => {
                for grant in grants.grants {
                    if let Some(since) = free_since.take() {
                        inner.seen().grants.push(now - since);
                    }
                    held = Some((grant.lease, now + inner.habit.work));
                }
            }
            Some(Heard::ReportAcks(acks)) => {
                let mut seen = inner.seen();
                for ack in acks.acks {
                    if ack.verdict() == v1::ReportVerdict::Stale {
                        seen.stale += 1;
                    } else {
                        seen.done += 1;
                    }
                    seen.reports
                        .extend(reported.remove(&ack.number).map(|sent| now - sent));
                }
            }
            Some(Heard::Stop(stop)) => {
                if held.is_some_and(|(lease, _)| stop.leases.contains(&lease)) {
                    held = None;
                }
            }
            Some(_) => {}
            None => bail!("an empty message"),
        }
    }
}
