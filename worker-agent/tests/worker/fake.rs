//! A coordinator that does what a test tells it to, over real TLS.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::Stream;
use muster_connect::{CaCertificate, Secret, TLS_NAME, Token, TokenId};
use muster_proto::v1::coordinator_message::Kind as Say;
use muster_proto::v1::worker_message::Kind as Heard;
use muster_proto::v1::worker_service_server::{WorkerService, WorkerServiceServer};
use muster_proto::v1::{
    AgentEvent, CheckInRequest, CheckInResponse, CoordinatorMessage, EventAck, EventAcks, Grant,
    GrantBatch, Hello, LeaseVerdict, ProtocolVersion, Renewal, Report, ReportAck, ReportAcks,
    ReportVerdict, StopLeases, Verdict, Welcome, WorkerMessage, report,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

const LIMIT: Duration = Duration::from_secs(30);

/// What the coordinator was told and what it does.
pub(crate) struct State {
    pub(crate) hellos: Vec<Hello>,
    pub(crate) reports: Vec<Report>,
    /// Events by lease, each number once.
    pub(crate) events: BTreeMap<u64, Vec<AgentEvent>>,
    pub(crate) goodbye: Option<String>,
    pub(crate) heartbeat: u64,
    /// How long its machine will still be there, as heartbeats told one after the other.
    pub(crate) time_left: Vec<Option<Duration>>,
    pub(crate) stopped: BTreeSet<u64>,
    pub(crate) ttl: Duration,
    pub(crate) acks_reports: bool,
    pub(crate) acks_events: bool,
    pub(crate) renews: bool,
    /// Answer to every hello instead of a welcome.
    pub(crate) refusal: Option<Status>,
    session: Option<mpsc::Sender<Result<CoordinatorMessage, Status>>>,
    cut: Option<watch::Sender<bool>>,
}

impl State {
    /// The last words about a lease, in the order in which they came.
    pub(crate) fn finals(&self, lease: u64) -> Vec<&report::Kind> {
        let of_lease = self.reports.iter().filter(|report| report.lease == lease);
        let kinds = of_lease.filter_map(|report| report.kind.as_ref());
        kinds
            .filter(|kind| {
                !matches!(
                    kind,
                    report::Kind::Started(_)
                        | report::Kind::Asked(_)
                        | report::Kind::QuestionClosed(_)
                        | report::Kind::SessionOpened(_)
                )
            })
            .collect()
    }

    /// What a lease's agent did.
    pub(crate) fn activities(&self, lease: u64) -> Vec<muster_proto::v1::activity::Kind> {
        use muster_proto::v1::agent_event::Kind;
        let events = self.events.get(&lease).into_iter().flatten();
        let activities = events.filter_map(|event| match &event.kind {
            Some(Kind::Activity(activity)) => activity.kind.clone(),
            _ => None,
        });
        activities.collect()
    }

    /// What people are told of a lease.
    pub(crate) fn notes(&self, lease: u64) -> Vec<String> {
        use muster_proto::v1::agent_event::Kind;
        let events = self.events.get(&lease).into_iter().flatten();
        let notes = events.filter_map(|event| match &event.kind {
            Some(Kind::Note(note)) => Some(note.clone()),
            _ => None,
        });
        notes.collect()
    }

    /// What processes of a lease wrote.
    pub(crate) fn output(&self, lease: u64) -> String {
        use muster_proto::v1::agent_event::Kind;
        let events = self.events.get(&lease).into_iter().flatten();
        let pieces = events.filter_map(|event| match &event.kind {
            Some(Kind::Output(output)) => Some(output.data.clone()),
            _ => None,
        });
        String::from_utf8(pieces.flatten().collect()).unwrap()
    }
}

/// The coordinator; ends with the value.
pub(crate) struct Fake {
    pub(crate) address: String,
    pub(crate) token: Token,
    state: Arc<Mutex<State>>,
    changed: Arc<watch::Sender<u64>>,
    task: JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    pub(crate) async fn start() -> Self {
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let ca_certificate = ca.self_signed(&ca_key).unwrap();
        let fingerprint = CaCertificate::from_der(ca_certificate.der().as_ref()).fingerprint();
        let issuer = Issuer::new(ca, ca_key);
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![TLS_NAME.to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &issuer).unwrap();
        let chain = format!("{}{}", leaf.pem(), ca_certificate.pem());
        let tls = ServerTlsConfig::new().identity(Identity::from_pem(chain, key.serialize_pem()));

        let state = Arc::new(Mutex::new(State {
            hellos: Vec::new(),
            reports: Vec::new(),
            events: BTreeMap::new(),
            goodbye: None,
            heartbeat: 0,
            time_left: Vec::new(),
            stopped: BTreeSet::new(),
            ttl: Duration::from_secs(60),
            acks_reports: true,
            acks_events: true,
            renews: true,
            refusal: None,
            session: None,
            cut: None,
        }));
        let changed = Arc::new(watch::channel(0).0);
        let service = Service {
            state: Arc::clone(&state),
            changed: Arc::clone(&changed),
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = Server::builder()
            .tls_config(tls)
            .unwrap()
            .add_service(WorkerServiceServer::new(service))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let task = tokio::spawn(async move { server.await.unwrap() });
        let token = Token {
            id: TokenId::from_bytes([1; 8]),
            secret: Secret::from_bytes([2; 32]),
            ca: fingerprint,
        };
        Self {
            address,
            token,
            state,
            changed,
            task,
        }
    }

    /// Looks at or changes what it knows and does.
    pub(crate) fn with<T>(&self, what: impl FnOnce(&mut State) -> T) -> T {
        what(&mut self.state.lock().unwrap())
    }

    /// Waits until a condition gives a value.
    pub(crate) async fn until<T>(
        &self,
        what: &str,
        mut condition: impl FnMut(&mut State) -> Option<T>,
    ) -> T {
        let mut changed = self.changed.subscribe();
        let met = async {
            loop {
                changed.borrow_and_update();
                if let Some(met) = self.with(&mut condition) {
                    return met;
                }
                changed.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(LIMIT, met).await {
            Ok(met) => met,
            Err(_) => self
                .with(|state| panic!("not within {LIMIT:?}: {what}; reports: {:?}", state.reports)),
        }
    }

    /// Waits for the last word about a lease.
    pub(crate) async fn last_word(&self, lease: u64) -> report::Kind {
        let what = format!("the end of lease {lease}");
        self.until(&what, |state| {
            state.finals(lease).last().map(|kind| (*kind).clone())
        })
        .await
    }

    /// Waits for a session, then grants.
    pub(crate) async fn grant(&self, grant: Grant) {
        let seq = self.until("a heartbeat", |state| {
            (state.session.is_some() && state.heartbeat > 0).then_some(state.heartbeat)
        });
        let heartbeat_seq = seq.await;
        let ttl = self.with(|state| state.ttl.try_into().ok());
        let grants = vec![Grant {
            heartbeat_seq,
            ttl,
            ..grant
        }];
        self.say(Say::Grants(GrantBatch { grants })).await;
    }

    pub(crate) async fn stop(&self, lease: u64) {
        self.with(|state| state.stopped.insert(lease));
        let leases = vec![lease];
        self.say(Say::Stop(StopLeases { leases })).await;
    }

    pub(crate) async fn say(&self, kind: Say) {
        let session = self.with(|state| state.session.clone()).expect("a session");
        let message = CoordinatorMessage { kind: Some(kind) };
        session.send(Ok(message)).await.unwrap();
    }

    /// Breaks the session.
    pub(crate) fn cut(&self) {
        let cut = self.with(|state| {
            state.session = None;
            state.cut.take()
        });
        cut.expect("a session").send_replace(true);
    }
}

#[derive(Clone)]
struct Service {
    state: Arc<Mutex<State>>,
    changed: Arc<watch::Sender<u64>>,
}

#[tonic::async_trait]
impl WorkerService for Service {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<CoordinatorMessage, Status>> + Send>>;

    async fn check_in(
        &self,
        _: Request<CheckInRequest>,
    ) -> Result<Response<CheckInResponse>, Status> {
        Err(Status::unimplemented("a coordinator of protocol 1.0"))
    }

    async fn session(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut heard = request.into_inner();
        let (out, said) = mpsc::channel(64);
        let (cut, mut is_cut) = watch::channel(false);
        let service = self.clone();
        tokio::spawn(async move {
            loop {
                let message = tokio::select! {
                    message = heard.message() => message,
                    _ = is_cut.changed() => Err(Status::unavailable("cut")),
                };
                if *is_cut.borrow() {
                    let _ = out.send(Err(Status::unavailable("cut"))).await;
                    return;
                }
                let Ok(Some(WorkerMessage { kind: Some(kind) })) = message else {
                    return;
                };
                let answer = service.hear(kind, &out, &cut);
                service.changed.send_modify(|changes| *changes += 1);
                if let Some(answer) = answer {
                    let answer = answer.map(|kind| CoordinatorMessage { kind: Some(kind) });
                    if out.send(answer).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(said))))
    }
}

impl Service {
    fn hear(
        &self,
        kind: Heard,
        out: &mpsc::Sender<Result<CoordinatorMessage, Status>>,
        cut: &watch::Sender<bool>,
    ) -> Option<Result<Say, Status>> {
        let mut state = self.state.lock().unwrap();
        let state = &mut *state;
        let verdicts = |state: &State, held: &[u64]| -> Vec<LeaseVerdict> {
            let verdict = |lease: &u64| LeaseVerdict {
                lease: *lease,
                verdict: match state.stopped.contains(lease) {
                    true => Verdict::Stop.into(),
                    false => Verdict::Keep.into(),
                },
            };
            held.iter().map(verdict).collect()
        };
        match kind {
            Heard::Hello(hello) => {
                let held = hello.held_leases.clone();
                state.hellos.push(hello);
                if let Some(refusal) = state.refusal.clone() {
                    return Some(Err(refusal));
                }
                state.heartbeat = 0;
                state.session = Some(out.clone());
                state.cut = Some(cut.clone());
                Some(Ok(Say::Welcome(Welcome {
                    version: Some(ProtocolVersion::current("fake")),
                    epoch: 1,
                    session: state.hellos.len() as u64,
                    heartbeat_interval: Duration::from_millis(100).try_into().ok(),
                    lease_ttl: state.ttl.try_into().ok(),
                    verdicts: verdicts(state, &held),
                    event_window_bytes: 64 * 1024,
                    report_window: 4,
                    session_credential: "session".into(),
                })))
            }
            Heard::Heartbeat(heartbeat) => {
                assert_eq!(heartbeat.seq, state.heartbeat + 1, "heartbeats in order");
                state.heartbeat = heartbeat.seq;
                let time_left = heartbeat.time_left;
                state
                    .time_left
                    .push(time_left.map(|left| left.try_into().unwrap()));
                let verdicts = match state.renews {
                    true => verdicts(state, &heartbeat.held_leases),
                    false => Vec::new(),
                };
                let seq = heartbeat.seq;
                Some(Ok(Say::Renewal(Renewal { seq, verdicts })))
            }
            Heard::Reports(batch) => {
                let ack = |report: &Report| ReportAck {
                    number: report.number,
                    verdict: ReportVerdict::Recorded.into(),
                };
                let acks = batch.reports.iter().map(ack).collect();
                state.reports.extend(batch.reports);
                state
                    .acks_reports
                    .then_some(Ok(Say::ReportAcks(ReportAcks { acks })))
            }
            Heard::Events(batch) => {
                let mut acks = Vec::new();
                for of_lease in batch.leases {
                    let stored = state.events.entry(of_lease.lease).or_default();
                    for event in of_lease.events {
                        let next = stored.len() as u64 + 1;
                        assert!(event.number <= next, "a gap before {}", event.number);
                        match usize::try_from(event.number - 1)
                            .ok()
                            .and_then(|i| stored.get(i))
                        {
                            Some(known) => assert_eq!(*known, event, "changed its mind"),
                            None => stored.push(event),
                        }
                    }
                    acks.push(EventAck {
                        lease: of_lease.lease,
                        number: stored.len() as u64,
                    });
                }
                state
                    .acks_events
                    .then_some(Ok(Say::EventAcks(EventAcks { acks })))
            }
            Heard::Goodbye(goodbye) => {
                state.goodbye = Some(goodbye.reason);
                None
            }
        }
    }
}
