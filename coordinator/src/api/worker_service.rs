//! The session with a worker: one stream each way.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use coordinator_core::command::{Heartbeat, Hello};
use coordinator_core::{Command, Epoch, Incarnation, LeaseId, Reply, Span, WorkerId, limits};
use futures::Stream;
use muster_connect::TokenId;
use muster_proto::v1::coordinator_message::Kind as Say;
use muster_proto::v1::worker_message::Kind as Heard;
use muster_proto::v1::worker_service_server::WorkerService;
use muster_proto::v1::{self, CoordinatorMessage, ProtocolVersion, WorkerMessage};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

use super::convert;
use super::grants::Grants;
use super::status;
use crate::auth::{Authenticator, Identity, Unverified};
use crate::engine::{Handle, SESSION_QUEUE, ToSession};
use crate::transcript::{Place, Transcripts};

/// How long a new stream may take to say hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// Unacknowledged event bytes a worker may send.
const EVENT_WINDOW_BYTES: u64 = 4 * 1024 * 1024;
/// Unacknowledged reports a worker may send.
const REPORT_WINDOW: u32 = 1_024;
/// Messages towards the worker that wait for its connection.
const OUTBOUND: usize = 64;
/// Event batches that wait for the disk; the worker's event window bounds their bytes.
const EVENT_QUEUE: usize = 1_024;
/// Leases whose transcript a session remembers.
const PLACES_MAX: usize = 4_096;
/// Leases one message may name: what a worker can hold, and as much again on its way out.
const LEASES_PER_MESSAGE: usize = 2 * limits::SLOTS_PER_WORKER as usize;
/// Bytes of a worker's identity.
const WORKER_ID_BYTES: usize = 200;

/// Serves workers.
pub struct Workers {
    inner: Arc<Inner>,
}

/// What workers are told about time.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub heartbeat_interval: Span,
    pub lease_ttl: Span,
}

struct Inner {
    engine: Handle,
    epoch: Epoch,
    timing: Timing,
    transcripts: Transcripts,
    grants: Grants,
    credentials: Arc<Authenticator>,
    sessions: AtomicU64,
    ending: CancellationToken,
}

impl Workers {
    /// Makes the service; sessions end when `ending` is cancelled.
    #[must_use]
    pub fn new(
        engine: Handle,
        epoch: Epoch,
        timing: Timing,
        transcripts: Transcripts,
        grants: Grants,
        credentials: Arc<Authenticator>,
        ending: CancellationToken,
    ) -> Self {
        let sessions = AtomicU64::new(1);
        let inner = Inner {
            engine,
            epoch,
            timing,
            transcripts,
            grants,
            credentials,
            sessions,
            ending,
        };
        Self {
            inner: Arc::new(inner),
        }
    }
}

type Outbound = mpsc::Sender<Result<CoordinatorMessage, Status>>;

#[tonic::async_trait]
impl WorkerService for Workers {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<CoordinatorMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (pool, token) = match request.extensions().get::<Identity>() {
            Some(Identity::Worker { pool, token }) => (pool.clone(), *token),
            Some(_) => {
                return Err(Status::permission_denied(
                    "this token is not a worker's join token",
                ));
            }
            None => return Err(Status::unauthenticated("no token")),
        };
        let mut inbound = request.into_inner();
        let (out, outbound) = mpsc::channel(OUTBOUND);
        let inner = self.inner.clone();
        tokio::spawn(async move {
            let served = tokio::select! {
                () = inner.ending.cancelled() => Err(Status::unavailable("the coordinator is stopping")),
                served = serve(&inner, &pool, token, &mut inbound, &out) => served,
            };
            if let Err(status) = served {
                // The worker may have gone already.
                drop(out.send(Err(status)).await);
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outbound))))
    }
}

struct Session {
    worker: WorkerId,
    incarnation: Incarnation,
    number: u64,
    /// What the worker has proven itself with; a session ends with its token.
    token: TokenId,
}

async fn serve(
    inner: &Arc<Inner>,
    pool: &str,
    token: TokenId,
    inbound: &mut Streaming<WorkerMessage>,
    out: &Outbound,
) -> Result<(), Status> {
    let first = tokio::time::timeout(HELLO_DEADLINE, inbound.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no hello within ten seconds"))??;
    let Some(Heard::Hello(hello)) = first.and_then(|message| message.kind) else {
        return Err(Status::invalid_argument("a session begins with hello"));
    };
    let (to_session, mut orders) = mpsc::channel(SESSION_QUEUE);
    let session = open(inner, pool, token, hello, to_session, out).await?;
    info!(worker = %session.worker, session = session.number, pool, "a worker has joined");
    let (events, queue) = mpsc::channel(EVENT_QUEUE);
    let mut storing = Storing(tokio::spawn(store_events(
        inner.clone(),
        session.worker.clone(),
        queue,
        out.clone(),
    )));
    let result = loop {
        tokio::select! {
            stored = &mut storing.0 => break stored.unwrap_or(Ok(())),
            heard = inbound.message() => match heard {
                Ok(Some(message)) => match hear(inner, &session, message, &events, out).await {
                    Ok(true) => {}
                    Ok(false) => break Ok(()),
                    Err(status) => break Err(status),
                },
                Ok(None) => break Ok(()),
                Err(status) => {
                    debug!(worker = %session.worker, %status, "the worker's stream broke");
                    break Ok(());
                }
            },
            order = orders.recv() => match order {
                Some(order) => {
                    if let Err(status) = obey(inner, &session, order, out).await {
                        break Err(status);
                    }
                }
                // The engine has given the session to a newer stream, or has ended.
                None => break Err(Status::aborted("the session was replaced by a newer one")),
            },
        }
    };
    let closed = Command::SessionClosed {
        worker: session.worker.clone(),
        incarnation: session.incarnation,
        session: session.number,
    };
    // An older session's end is refused, and an ended engine needs no news.
    drop(inner.engine.command(closed).await);
    info!(worker = %session.worker, session = session.number, "a worker's session has ended");
    result
}

/// The task that stores a session's events; it ends with the session.
struct Storing(JoinHandle<Result<(), Status>>);

impl Drop for Storing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn open(
    inner: &Arc<Inner>,
    pool: &str,
    token: TokenId,
    hello: v1::Hello,
    to_session: mpsc::Sender<ToSession>,
    out: &Outbound,
) -> Result<Session, Status> {
    let theirs = hello.version.clone().unwrap_or_default();
    if !theirs.is_compatible() {
        return Err(status::incompatible(&theirs));
    }
    let name = &hello.worker;
    if name.is_empty() || name.len() > WORKER_ID_BYTES || name.chars().any(char::is_control) {
        return Err(Status::invalid_argument(
            "hello.worker: not usable as an identity",
        ));
    }
    at_most(
        "hello.held_leases",
        hello.held_leases.len(),
        LEASES_PER_MESSAGE,
    )?;
    let offer = convert::offer_of(&hello, pool)?;
    let session = Session {
        worker: WorkerId::new(name),
        incarnation: Incarnation(hello.incarnation),
        number: inner.sessions.fetch_add(1, Ordering::Relaxed),
        token,
    };
    let said = Hello {
        worker: session.worker.clone(),
        incarnation: session.incarnation,
        session: session.number,
        offer: Arc::new(offer),
        held: hello.held_leases.iter().copied().map(LeaseId).collect(),
        draining: hello.draining,
    };
    let reply = inner
        .engine
        .open(said, to_session)
        .await
        .map_err(status::of)?;
    let Reply::Welcome { verdicts } = reply else {
        return Err(Status::internal("hello was answered with something else"));
    };
    let credential = inner
        .credentials
        .credentials()
        .session(session.worker.as_str(), session.incarnation.0)
        .map_err(|error| Status::invalid_argument(format!("hello.worker: {error}")))?;
    let welcome = v1::Welcome {
        version: Some(ProtocolVersion::current(crate::SOFTWARE)),
        epoch: inner.epoch.0,
        session: session.number,
        heartbeat_interval: Some(convert::duration(inner.timing.heartbeat_interval)),
        lease_ttl: Some(convert::duration(inner.timing.lease_ttl)),
        verdicts: verdicts
            .into_iter()
            .map(|(lease, is)| convert::verdict(lease, is))
            .collect(),
        event_window_bytes: EVENT_WINDOW_BYTES,
        report_window: REPORT_WINDOW,
        session_credential: credential,
    };
    say(out, Say::Welcome(welcome)).await?;
    Ok(session)
}

/// Tells a worker whose token has ended meanwhile so, and one whose token cannot be looked up to
/// come back.
fn refused(why: &Unverified) -> Status {
    match why {
        Unverified::Unknown | Unverified::Expired { .. } | Unverified::Revoked { .. } => {
            Status::unauthenticated(why.to_string())
        }
        Unverified::Store(_) => Status::unavailable("the tokens cannot be read now"),
    }
}

/// Refuses a message that holds more of something than the protocol allows.
fn at_most(what: &str, count: usize, count_max: usize) -> Result<(), Status> {
    if count > count_max {
        let message = format!("{what}: {count} in one message, at most {count_max} are taken");
        return Err(Status::resource_exhausted(message));
    }
    Ok(())
}

async fn say(out: &Outbound, kind: Say) -> Result<(), Status> {
    out.send(Ok(CoordinatorMessage { kind: Some(kind) }))
        .await
        .map_err(|_| Status::cancelled("the worker has gone"))
}

/// Takes one message in; false when the worker has said goodbye.
async fn hear(
    inner: &Arc<Inner>,
    session: &Session,
    message: WorkerMessage,
    events: &mpsc::Sender<v1::EventBatch>,
    out: &Outbound,
) -> Result<bool, Status> {
    match message.kind {
        Some(Heard::Heartbeat(heartbeat)) => {
            inner
                .credentials
                .tokens()
                .is_live(session.token, jiff::Timestamp::now())
                .map_err(|why| refused(&why))?;
            at_most(
                "heartbeat.held_leases",
                heartbeat.held_leases.len(),
                LEASES_PER_MESSAGE,
            )?;
            let command = Command::Heartbeat(Heartbeat {
                worker: session.worker.clone(),
                incarnation: session.incarnation,
                session: session.number,
                seq: heartbeat.seq,
                held: heartbeat.held_leases.into_iter().map(LeaseId).collect(),
                free_slots: heartbeat.free_slots,
                draining: heartbeat.draining,
            });
            let reply = inner.engine.command(command).await.map_err(status::of)?;
            if let Reply::Renewed { seq, verdicts } = reply {
                let verdicts = verdicts
                    .into_iter()
                    .map(|(lease, is)| convert::verdict(lease, is))
                    .collect();
                say(out, Say::Renewal(v1::Renewal { seq, verdicts })).await?;
            }
        }
        Some(Heard::Reports(batch)) => reports(inner, session, batch, out).await?,
        // A closed queue means that storing has failed; the session ends with that error.
        Some(Heard::Events(batch)) => drop(events.send(batch).await),
        Some(Heard::Goodbye(goodbye)) => {
            info!(worker = %session.worker, reason = convert::clip(&goodbye.reason, 200), "a worker leaves");
            return Ok(false);
        }
        Some(Heard::Hello(_)) => {
            return Err(Status::invalid_argument("a session has only one hello"));
        }
        // A newer worker may say what this version does not know.
        None => debug!(worker = %session.worker, "a message of an unknown kind"),
    }
    Ok(true)
}

async fn reports(
    inner: &Arc<Inner>,
    session: &Session,
    batch: v1::ReportBatch,
    out: &Outbound,
) -> Result<(), Status> {
    let count_max = usize::try_from(REPORT_WINDOW).unwrap_or(usize::MAX);
    at_most("reports", batch.reports.len(), count_max)?;
    let mut waiting = Vec::with_capacity(batch.reports.len());
    for report in batch.reports {
        let number = report.number;
        let (lease, report) = convert::report_of(report)?;
        let command = Command::Report {
            worker: session.worker.clone(),
            lease,
            report,
        };
        waiting.push((
            number,
            lease,
            inner.engine.enqueue(command).await.map_err(status::of)?,
        ));
    }
    let mut acks = Vec::with_capacity(waiting.len());
    for (number, lease, answer) in waiting {
        let verdict = match answer.await {
            Ok(Ok(Reply::Report(answer))) => convert::report_verdict(answer),
            Ok(Ok(_)) => {
                return Err(Status::internal(
                    "a report was answered with something else",
                ));
            }
            Ok(Err(rejection)) => {
                warn!(worker = %session.worker, %lease, error = %rejection, "refused a report");
                v1::ReportVerdict::Stale
            }
            Err(_) => return Err(Status::unavailable("the coordinator is stopping")),
        };
        acks.push(v1::ReportAck {
            number,
            verdict: verdict.into(),
        });
    }
    say(out, Say::ReportAcks(v1::ReportAcks { acks })).await
}

/// Stores events apart from the session's other messages, so that a slow disk delays no heartbeat.
async fn store_events(
    inner: Arc<Inner>,
    worker: WorkerId,
    mut queue: mpsc::Receiver<v1::EventBatch>,
    out: Outbound,
) -> Result<(), Status> {
    // Where the events of each lease go, once looked up.
    let mut places: BTreeMap<LeaseId, Option<Place>> = BTreeMap::new();
    while let Some(batch) = queue.recv().await {
        at_most("events.leases", batch.leases.len(), LEASES_PER_MESSAGE)?;
        let mut acks = Vec::with_capacity(batch.leases.len());
        for of_lease in batch.leases {
            let lease = LeaseId(of_lease.lease);
            let place = match places.get(&lease) {
                Some(place) => place.clone(),
                None => {
                    if places.len() >= PLACES_MAX {
                        places.clear();
                    }
                    let place = inner.grants.place(&worker, &of_lease).await?;
                    places.insert(lease, place.clone());
                    place
                }
            };
            let number = store_lease(&inner, &worker, lease, place, of_lease.events).await?;
            acks.push(v1::EventAck {
                lease: lease.0,
                number,
            });
        }
        say(&out, Say::EventAcks(v1::EventAcks { acks })).await?;
    }
    Ok(())
}

/// Stores the events of one lease and gives the number up to which the worker may forget them.
async fn store_lease(
    inner: &Inner,
    worker: &WorkerId,
    lease: LeaseId,
    place: Option<Place>,
    events: Vec<v1::AgentEvent>,
) -> Result<u64, Status> {
    let last = events.last().map_or(0, |event| event.number);
    let Some(place) = place else {
        warn!(%worker, %lease, "took events of a lease that is not the worker's, and dropped them");
        return Ok(last);
    };
    match inner.transcripts.append(place, events).await {
        Ok(appended) => Ok(appended.stored),
        Err(error @ crate::transcript::Error::Gap { .. }) => {
            Err(Status::invalid_argument(error.to_string()))
        }
        Err(error) => {
            warn!(%worker, %lease, error = %error, "failed to store events");
            Err(Status::unavailable("events cannot be stored now"))
        }
    }
}

/// Passes the engine's orders on to the worker.
async fn obey(
    inner: &Arc<Inner>,
    session: &Session,
    order: ToSession,
    out: &Outbound,
) -> Result<(), Status> {
    match order {
        ToSession::Grants(facts) => {
            let mut grants = Vec::with_capacity(facts.len());
            for facts in facts {
                let lease = facts.lease;
                match inner.grants.message(facts).await {
                    Ok(grant) => grants.push(grant),
                    Err(error) => {
                        // The lease is on record and will run out; saying so keeps it visible.
                        warn!(worker = %session.worker, %lease, error = %error, "failed to write a grant");
                    }
                }
            }
            say(out, Say::Grants(v1::GrantBatch { grants })).await
        }
        ToSession::Stop(leases) => {
            let leases = leases.into_iter().map(|lease| lease.0).collect();
            say(out, Say::Stop(v1::StopLeases { leases })).await
        }
        ToSession::Drain(true) => say(out, Say::Drain(v1::Drain {})).await,
        // The next heartbeat's renewal shows that the drain was taken back.
        ToSession::Drain(false) => Ok(()),
    }
}
