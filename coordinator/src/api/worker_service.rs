//! The session with a worker: one stream each way.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coordinator_core::command::{Heartbeat, Hello, Report};
use coordinator_core::event::{Outcome, Usage, Work};
use coordinator_core::{
    Command, Epoch, Failure, FailureClass, Incarnation, LeaseId, Reply, Span, WorkerId, limits,
};
use futures::{Stream, StreamExt as _, stream};
use muster_git::RefName;
use muster_proto::FEATURE_RESUME;
use muster_proto::v1::coordinator_message::Kind as Say;
use muster_proto::v1::worker_message::Kind as Heard;
use muster_proto::v1::worker_service_server::WorkerService;
use muster_proto::v1::{self, CoordinatorMessage, ProtocolVersion, WorkerMessage};
use prost::Message;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

use super::agents::{self, Agents};
use super::convert;
use super::door::{Door, Key};
use super::grants::Grants;
use super::limits::{
    FOREIGN_LEASES_PER_SESSION, HELLOS_PER_SECOND, SESSIONS, STALE_REPORTS_PER_SESSION,
    WORKER_STALL,
};
use super::operator_service::ended;
use super::outbound::{Outbound, Pace, Told};
use super::places::Connection;
use super::status;
use super::troubles::Troubles;
use crate::auth::{Authenticator, Identity};
use crate::engine::{Handle, SESSION_QUEUE, ToSession};
use crate::git::names;
use crate::git::repositories::Repositories;
use crate::transcript::{self, Place, Transcripts};

/// How long a new stream may take to say hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// Unacknowledged event bytes a worker may send.
const EVENT_WINDOW_BYTES: u64 = 4 * 1024 * 1024;
/// Unacknowledged reports a worker may send.
const REPORT_WINDOW: u32 = 1_024;
/// Event batches that wait for the disk; the worker's event window bounds their bytes.
const EVENT_QUEUE: usize = 1_024;
/// Pause after the disk refused events.
const STORE_AGAIN: Duration = Duration::from_secs(1);
/// Leases whose transcript a session remembers.
const PLACES_MAX: usize = 4_096;
/// Leases one message may name: what a worker can hold, and as much again on its way out.
const LEASES_PER_MESSAGE: usize = 2 * limits::SLOTS_PER_WORKER as usize;
/// Bytes of a worker's identity.
const WORKER_ID_BYTES: usize = 200;
/// Refs that are looked up at once for one batch of reports; each costs a git process.
const REFS_READ_AT_ONCE: usize = 4;
/// Bytes of grants after which another message is begun. One grant is some megabytes at the most,
/// so a message stays well below the protocol's bound.
const GRANT_BYTES: usize = 4 * 1024 * 1024;

/// Serves workers.
pub struct Workers {
    inner: Arc<Inner>,
}

/// What workers are told in their welcome.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    pub epoch: Epoch,
    pub heartbeat_interval: Span,
    pub lease_ttl: Span,
}

struct Inner {
    engine: Handle,
    terms: Terms,
    transcripts: Transcripts,
    grants: Grants,
    repositories: Repositories,
    credentials: Arc<Authenticator>,
    sessions: AtomicU64,
    places: Arc<Semaphore>,
    hellos: Mutex<BTreeMap<Key, Pace>>,
    joins: Mutex<Told>,
    troubles: Troubles,
    agents: Agents,
    ending: CancellationToken,
}

impl Workers {
    /// Makes the service; sessions end when `ending` is cancelled.
    #[must_use]
    pub fn new(
        engine: Handle,
        terms: Terms,
        transcripts: Transcripts,
        grants: Grants,
        repositories: Repositories,
        credentials: Arc<Authenticator>,
        ending: CancellationToken,
    ) -> Self {
        let sessions = AtomicU64::new(1);
        let inner = Inner {
            engine,
            terms,
            transcripts,
            grants,
            repositories,
            credentials,
            sessions,
            places: Arc::new(Semaphore::new(SESSIONS)),
            hellos: Mutex::default(),
            joins: Mutex::new(Told::joins()),
            troubles: Troubles::default(),
            agents: Agents::default(),
            ending,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// What workers say is the matter with them.
    #[must_use]
    pub fn troubles(&self) -> Troubles {
        self.inner.troubles.clone()
    }

    /// What they have found on their hosts.
    #[must_use]
    pub fn agents(&self) -> Agents {
        self.inner.agents.clone()
    }
}

#[tonic::async_trait]
impl WorkerService for Workers {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<CoordinatorMessage, Status>> + Send>>;

    async fn check_in(
        &self,
        request: Request<v1::CheckInRequest>,
    ) -> Result<Response<v1::CheckInResponse>, Status> {
        let identity = request.extensions().get::<Identity>().cloned();
        let door = Door::find(&self.inner.engine, identity).await?;
        self.inner.may_say_hello(door.key)?;
        door.check_in(request.into_inner()).map(Response::new)
    }

    async fn session(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let identity = request.extensions().get::<Identity>().cloned();
        let door = Door::find(&self.inner.engine, identity).await?;
        let place = self.inner.places.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "sessions: {SESSIONS} are open, and no more are served; try again later"
            ))
        })?;
        let connection = request.extensions().get::<Connection>().cloned();
        let mut inbound = request.into_inner();
        let (out, outbound) = Outbound::open(WORKER_STALL);
        let inner = self.inner.clone();
        tokio::spawn(async move {
            let _place = place;
            let served = tokio::select! {
                () = inner.ending.cancelled() => Err(Status::unavailable("the coordinator is stopping")),
                served = serve(&inner, &door, &mut inbound, &out) => served,
            };
            if let Err(status) = served
                && !out.end(status).await
                && let Some(connection) = connection
            {
                // What waits for it would stay in memory as long as it likes.
                connection.cut();
            }
        });
        Ok(Response::new(Box::pin(outbound)))
    }
}

impl Inner {
    /// Refuses a hello of a token that was used too often lately.
    fn may_say_hello(&self, key: Key) -> Result<(), Status> {
        let mut hellos = self.hellos.lock().unwrap_or_else(PoisonError::into_inner);
        if hellos
            .entry(key)
            .or_insert_with(Pace::of_hellos)
            .take(Instant::now())
        {
            return Ok(());
        }
        Err(Status::resource_exhausted(format!(
            "hellos: this join token is used for more than {HELLOS_PER_SECOND} a second"
        )))
    }
}

impl Inner {
    /// Tells whether a worker's coming or going is logged, and how many before it were not.
    fn tells(&self) -> Option<u64> {
        let mut joins = self.joins.lock().unwrap_or_else(PoisonError::into_inner);
        joins.tell(Instant::now())
    }
}

struct Session {
    worker: WorkerId,
    incarnation: Incarnation,
    number: u64,
    /// What opened it.
    key: Key,
    /// The worker begins with unfinished edits and still compares its result with the base. One that
    /// does not say so begins anew.
    resumes: bool,
    /// How long before its machine goes away it stops its work.
    hand_over: Span,
}

impl Session {
    /// Tells the engine that the session has ended.
    async fn close(&self, engine: &Handle) {
        let closed = Command::SessionClosed {
            worker: self.worker.clone(),
            incarnation: self.incarnation,
            session: self.number,
        };
        // An older session's end is refused, and an ended engine needs no news.
        drop(engine.command(closed).await);
    }
}

async fn serve(
    inner: &Arc<Inner>,
    door: &Door,
    inbound: &mut Streaming<WorkerMessage>,
    out: &Outbound,
) -> Result<(), Status> {
    let first = tokio::time::timeout(HELLO_DEADLINE, inbound.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no hello within ten seconds"))??;
    let Some(Heard::Hello(hello)) = first.and_then(|message| message.kind) else {
        return Err(Status::invalid_argument("a session begins with hello"));
    };
    inner.may_say_hello(door.key)?;
    let (to_session, mut orders) = mpsc::channel(SESSION_QUEUE);
    let session = open(inner, door, hello, to_session, out).await?;
    let pool = &*door.pool;
    if let Some(untold) = inner.tells() {
        info!(worker = %session.worker, session = session.number, pool, untold, "a worker has joined");
    }
    let (events, queue) = mpsc::channel(EVENT_QUEUE);
    let mut storing = Storing(tokio::spawn(store_events(
        inner.clone(),
        session.worker.clone(),
        queue,
        out.clone(),
    )));
    let mut pace = Pace::of_messages();
    let mut stale = 0;
    // Heartbeats look too; this ends one that sends none.
    let pace_of_checks = Duration::from_millis(inner.terms.heartbeat_interval.ms());
    let gone = ended(&inner.credentials, door.key.token(), pace_of_checks);
    tokio::pin!(gone);
    let result = loop {
        tokio::select! {
            status = &mut gone => break Err(status),
            stored = &mut storing.0 => break stored.unwrap_or(Ok(())),
            heard = inbound.message() => match heard {
                Ok(Some(message)) => {
                    match hear(inner, &session, message, &events, &mut stale, out).await {
                        Ok(true) => pace.wait().await,
                        Ok(false) => break Ok(()),
                        Err(status) => break Err(status),
                    }
                }
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
    inner.troubles.forget(&session.worker, session.number);
    inner.agents.forget(&session.worker, session.number);
    session.close(&inner.engine).await;
    if let Some(untold) = inner.tells() {
        info!(worker = %session.worker, session = session.number, untold, "a worker's session has ended");
    }
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
    door: &Door,
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
    let offer = convert::offer_of(&hello, &door.pool, door.allocation())?;
    let session = Session {
        worker: WorkerId::new(name),
        incarnation: Incarnation(hello.incarnation),
        number: inner.sessions.fetch_add(1, Ordering::Relaxed),
        key: door.key,
        hand_over: hello.hand_over.as_ref().map_or(Span::ZERO, convert::span),
        resumes: theirs.features.iter().any(|name| name == FEATURE_RESUME),
    };
    let credential = inner
        .credentials
        .credentials()
        .session(session.worker.as_str(), session.incarnation.0)
        .map_err(|error| Status::invalid_argument(format!("hello.worker: {error}")))?;
    let said = Hello {
        worker: session.worker.clone(),
        incarnation: session.incarnation,
        session: session.number,
        number: hello.number,
        offer: Arc::new(offer),
        held: hello.held_leases.iter().copied().map(LeaseId).collect(),
        draining: hello.draining,
        time_left: convert::time_for_work(hello.time_left.as_ref(), session.hand_over),
    };
    let offers = v1::AgentsFound {
        offers: hello.agents,
        ..v1::AgentsFound::default()
    };
    let reply = inner
        .engine
        .open(said, to_session)
        .await
        .map_err(status::of)?;
    inner.agents.note(&session.worker, session.number, &offers);
    let Reply::Welcome { verdicts } = reply else {
        return Err(Status::internal("hello was answered with something else"));
    };
    let welcome = v1::Welcome {
        version: Some(ProtocolVersion::current(crate::SOFTWARE)),
        epoch: inner.terms.epoch.0,
        session: session.number,
        heartbeat_interval: Some(convert::duration(inner.terms.heartbeat_interval)),
        lease_ttl: Some(convert::duration(inner.terms.lease_ttl)),
        verdicts: verdicts
            .into_iter()
            .map(|(lease, is)| convert::verdict(lease, is))
            .collect(),
        event_window_bytes: EVENT_WINDOW_BYTES,
        report_window: REPORT_WINDOW,
        session_credential: credential,
    };
    if let Err(status) = out.say(Say::Welcome(welcome)).await {
        session.close(&inner.engine).await;
        return Err(status);
    }
    Ok(session)
}

/// Refuses a message that holds more of something than the protocol allows.
fn at_most(what: &str, count: usize, count_max: usize) -> Result<(), Status> {
    if count > count_max {
        let message = format!("{what}: {count} in one message, at most {count_max} are taken");
        return Err(Status::resource_exhausted(message));
    }
    Ok(())
}

/// Takes one message in; false when the worker has said goodbye.
async fn hear(
    inner: &Arc<Inner>,
    session: &Session,
    message: WorkerMessage,
    events: &mpsc::Sender<v1::EventBatch>,
    stale: &mut usize,
    out: &Outbound,
) -> Result<bool, Status> {
    match message.kind {
        Some(Heard::Heartbeat(heartbeat)) => {
            at_most(
                "heartbeat.held_leases",
                heartbeat.held_leases.len(),
                LEASES_PER_MESSAGE,
            )?;
            session.key.still_welcome(&inner.credentials)?;
            let trouble = &heartbeat.trouble;
            inner
                .troubles
                .note(&session.worker, session.number, trouble);
            let mut looked = None;
            if let Some(found) = &heartbeat.agents {
                looked = Some(agents::looked(found)?);
                inner.agents.note(&session.worker, session.number, found);
            }
            let command = Command::Heartbeat(Heartbeat {
                worker: session.worker.clone(),
                incarnation: session.incarnation,
                session: session.number,
                seq: heartbeat.seq,
                held: heartbeat.held_leases.into_iter().map(LeaseId).collect(),
                free_slots: heartbeat.free_slots,
                draining: heartbeat.draining,
                time_left: convert::time_for_work(heartbeat.time_left.as_ref(), session.hand_over),
                looked,
            });
            let reply = inner.engine.command(command).await.map_err(status::of)?;
            if let Reply::Renewed { seq, verdicts } = reply {
                let verdicts = verdicts
                    .into_iter()
                    .map(|(lease, is)| convert::verdict(lease, is))
                    .collect();
                out.say(Say::Renewal(v1::Renewal { seq, verdicts })).await?;
            }
        }
        Some(Heard::Reports(batch)) => {
            *stale += reports(inner, session, batch, out).await?;
            if *stale > STALE_REPORTS_PER_SESSION {
                return Err(Status::resource_exhausted(format!(
                    "reports: more than {STALE_REPORTS_PER_SESSION} were about leases that this \
                     worker does not hold"
                )));
            }
        }
        // A closed queue means that storing has failed; the session ends with that error.
        Some(Heard::Events(batch)) => drop(events.send(batch).await),
        Some(Heard::Goodbye(goodbye)) => {
            info!(worker = %session.worker, reason = convert::clip(&goodbye.reason, 200), "a worker leaves");
            let goodbye = Command::Goodbye {
                worker: session.worker.clone(),
                incarnation: session.incarnation,
                session: session.number,
            };
            // It is refused if a newer session has taken over: then that one's word counts.
            drop(inner.engine.command(goodbye).await);
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

/// Records reports and acknowledges them; gives how many were about leases of others.
async fn reports(
    inner: &Arc<Inner>,
    session: &Session,
    batch: v1::ReportBatch,
    out: &Outbound,
) -> Result<usize, Status> {
    let count_max = usize::try_from(REPORT_WINDOW).unwrap_or(usize::MAX);
    at_most("reports", batch.reports.len(), count_max)?;
    let checked: Vec<_> = stream::iter(batch.reports)
        .map(|report| checked(inner, &session.worker, report))
        .buffered(REFS_READ_AT_ONCE)
        .collect()
        .await;
    let mut acks = Vec::with_capacity(checked.len());
    let mut waiting = Vec::with_capacity(checked.len());
    for checked in checked {
        let (number, lease, report) = checked?;
        let Some(report) = report else {
            // Ending the session would only make the worker say the same again.
            acks.push(v1::ReportAck {
                number,
                verdict: v1::ReportVerdict::Stale.into(),
            });
            continue;
        };
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
    let stale = v1::ReportVerdict::Stale as i32;
    let stale = acks.iter().filter(|ack| ack.verdict == stale).count();
    out.say(Say::ReportAcks(v1::ReportAcks { acks })).await?;
    Ok(stale)
}

/// Reads a report, absent when it is malformed. A success whose commit was not published under
/// the attempt's own ref is a failure: what workers claim is compared with what they pushed.
///
/// # Errors
/// The engine has ended, or the repository cannot be read now.
async fn checked(
    inner: &Arc<Inner>,
    worker: &WorkerId,
    report: v1::Report,
) -> Result<(u64, LeaseId, Option<Report>), Status> {
    let (number, lease) = (report.number, LeaseId(report.lease));
    let (lease, report) = match convert::report_of(report) {
        Ok(report) => report,
        Err(error) => {
            warn!(%worker, %lease, error = error.message(), "took no notice of a malformed report");
            return Ok((number, lease, None));
        }
    };
    let Report::Succeeded {
        outcome: Outcome::Commit(commit),
        usage,
        ..
    } = &report
    else {
        return Ok((number, lease, Some(report)));
    };
    let Some((repository, name)) = published_at(inner, worker.clone(), lease).await? else {
        return Ok((number, lease, Some(report)));
    };
    let name = RefName::parse(&name).map_err(|error| status::internal(&error))?;
    let repository = inner.repositories.open(&repository).await?;
    let found = repository.read_ref(&name).await.map_err(|error| {
        warn!(%worker, %lease, error = %error, "failed to look for a published commit");
        Status::unavailable("published commits cannot be looked for now")
    })?;
    if found.is_some_and(|found| found.to_string() == commit.as_str()) {
        return Ok((number, lease, Some(report)));
    }
    warn!(%worker, %lease, %commit, "a worker reported a commit that it did not publish");
    let text = format!("the worker reported commit {commit}, which is not what it published");
    let failed = Report::Failed {
        failure: Failure::new(FailureClass::Publish, text),
        usage: *usage,
    };
    Ok((number, lease, Some(failed)))
}

/// Gives the repository and the ref under which a worker's live attempt publishes.
async fn published_at(
    inner: &Arc<Inner>,
    worker: WorkerId,
    lease: LeaseId,
) -> Result<Option<(String, String)>, Status> {
    inner
        .engine
        .query(move |state, _| {
            let held = state.lease(lease).filter(|held| held.worker == worker)?;
            let run = state.run(held.run)?;
            let Work::Attempt { task, attempt } = held.work else {
                return None;
            };
            let name = names::attempt(&run.name, &run.task(task)?.name, attempt.0);
            Some((run.source.as_ref()?.repository.to_string(), name))
        })
        .await
        .map_err(status::of)
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
    let mut foreign = 0;
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
                    if place.is_none() {
                        foreign += 1;
                        if foreign > FOREIGN_LEASES_PER_SESSION {
                            return Err(Status::resource_exhausted(format!(
                                "events: they are of more than {FOREIGN_LEASES_PER_SESSION} leases \
                                 that never were this worker's"
                            )));
                        }
                        warn!(%worker, %lease, "drops events of a lease that is not the worker's");
                    }
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
        out.say(Say::EventAcks(v1::EventAcks { acks })).await?;
    }
    Ok(())
}

/// Stores the events of one lease, if there are any, and gives the number up to which they are here.
///
/// While the disk takes nothing they wait here, and with them, by its window, their worker: ending
/// the session would only make it send all of them again, and keep its heartbeats from us.
async fn store_lease(
    inner: &Inner,
    worker: &WorkerId,
    lease: LeaseId,
    place: Option<Place>,
    events: Vec<v1::AgentEvent>,
) -> Result<u64, Status> {
    let Some(place) = place else {
        // Also the answer to the question up to where they are wanted.
        return Ok(events.last().map_or(u64::MAX, |event| event.number));
    };
    let mut told = false;
    loop {
        match inner
            .transcripts
            .append(place.clone(), worker.as_str(), events.clone())
            .await
        {
            Ok(appended) => return Ok(appended.stored),
            Err(error @ transcript::Error::Io { .. }) => {
                if !told {
                    let reason = std::error::Error::source(&error).map(ToString::to_string);
                    warn!(%worker, %lease, error = %error, reason, "events cannot be stored; trying again until the disk takes them");
                    told = true;
                }
                tokio::time::sleep(STORE_AGAIN).await;
            }
            Err(transcript::Error::Stopped) => {
                return Err(Status::unavailable("events cannot be stored now"));
            }
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
            for mut facts in facts {
                let lease = facts.lease;
                facts.resume = facts.resume.filter(|_| session.resumes);
                match inner.grants.message(facts).await {
                    Ok(grant) => grants.push(grant),
                    Err(error) => {
                        warn!(worker = %session.worker, %lease, error = %error, "failed to write a grant");
                        unwritten(inner, session, lease, &error).await?;
                    }
                }
                let bytes: usize = grants.iter().map(Message::encoded_len).sum();
                if bytes >= GRANT_BYTES {
                    let grants = std::mem::take(&mut grants);
                    out.say(Say::Grants(v1::GrantBatch { grants })).await?;
                }
            }
            if grants.is_empty() {
                return Ok(());
            }
            out.say(Say::Grants(v1::GrantBatch { grants })).await
        }
        ToSession::Stop(leases) => {
            let leases = leases.into_iter().map(|lease| lease.0).collect();
            out.say(Say::Stop(v1::StopLeases { leases })).await
        }
        ToSession::Answers(facts) => {
            let mut leases: BTreeMap<LeaseId, Vec<v1::Answer>> = BTreeMap::new();
            for facts in facts {
                leases.entry(facts.lease).or_default().push(v1::Answer {
                    question: facts.number,
                    choice: facts.choice.into(),
                    text: facts.text.into(),
                    name: facts.id.to_string(),
                    by: facts.by.to_string(),
                });
            }
            let leases = leases.into_iter().map(|(lease, answers)| v1::LeaseAnswers {
                lease: lease.0,
                answers,
            });
            let leases = leases.collect();
            out.say(Say::Answers(v1::Answers { leases })).await
        }
        ToSession::Look(wanted) => {
            let agents = wanted.iter().map(agents::to_wire).collect();
            out.say(Say::LookFor(v1::LookFor { agents })).await
        }
    }
}

/// Fails a lease whose grant could not be written, so that its task says why it does not run.
async fn unwritten(
    inner: &Arc<Inner>,
    session: &Session,
    lease: LeaseId,
    error: &Status,
) -> Result<(), Status> {
    let text = format!("the grant could not be written: {}", error.message());
    let report = Report::Failed {
        failure: Failure::new(FailureClass::Workspace, text),
        usage: Usage::default(),
    };
    let command = Command::Report {
        worker: session.worker.clone(),
        lease,
        report,
    };
    inner
        .engine
        .command(command)
        .await
        .map(|_| ())
        .map_err(status::of)
}
