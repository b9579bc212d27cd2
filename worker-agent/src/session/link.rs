//! The stream that carries the session: connects, says hello, passes messages on, and tries again.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::Stream;
use muster_connect::{
    AddressFile, AddressFileError, Bearer, BootstrapError, CaCertificate, CaError, Endpoint,
    EndpointError, bootstrap_ca,
};
use muster_proto::FEATURE_RESUME;
use muster_proto::MESSAGE_BYTES_MAX;
use muster_proto::v1::worker_service_client::WorkerServiceClient;
use muster_proto::v1::{
    AgentOffer, CoordinatorMessage, Hello, ProtocolVersion, Welcome, WorkerMessage,
    coordinator_message, worker_message,
};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Status, Streaming};

use super::machine::Machine;
use super::reconnect::Reconnect;
use crate::clock;
use crate::identity::{Allocation, Identity};
use crate::options::{Coordinator, Options};

/// Bounds fetching the CA, which is the first thing a new worker does.
const BOOTSTRAP_LIMIT: Duration = Duration::from_secs(15);
/// Bounds the time from the hello to the welcome.
const WELCOME_LIMIT: Duration = Duration::from_secs(30);
/// Messages that wait for the connection besides events. Reports are bounded by their window and
/// heartbeats by their interval; a connection this far behind is dead.
const URGENT_WAITING_MAX: usize = 4_096;
/// Batches of events that wait for the connection: one on its way, one ready.
const EVENTS_WAITING_MAX: usize = 1;
/// Bounds of what a coordinator may ask for.
const HEARTBEAT_INTERVAL_MIN: Duration = Duration::from_millis(20);
const HEARTBEAT_INTERVAL_MAX: Duration = Duration::from_secs(3_600);
/// A coordinator that answers none of this many heartbeats is taken for gone.
const HEARTBEATS_UNANSWERED: u32 = 3;
/// Added to that, for intervals so short that the answer itself takes longer.
const SILENCE_MIN: Duration = Duration::from_secs(10);
/// But never more than this part of a lease's life: after packets were lost TCP waits twice as long
/// each time before it tries again, and would let leases run out on a path that is long whole
/// again, where a new connection comes through at once.
const SILENCE_SHARE_OF_TTL: u32 = 2;

pub(crate) const CA: &str = "ca.pem";
/// What this program calls itself on the wire.
pub(crate) const SOFTWARE: &str = concat!("worker-agent ", env!("CARGO_PKG_VERSION"));

/// What happens to the session.
pub(crate) enum LinkEvent {
    /// It began.
    Up(Box<Up>),
    /// The coordinator says something.
    Message(coordinator_message::Kind),
    /// It ended; another attempt follows.
    Down,
}

/// A session that began.
pub(crate) struct Up {
    pub(crate) welcome: Welcome,
    pub(crate) access: Access,
    pub(crate) outgoing: Outgoing,
}

/// How repositories of the coordinator are reached.
#[derive(Clone)]
pub(crate) struct Access {
    pub(crate) address: String,
    pub(crate) ca_file: PathBuf,
    /// Lets edits of stopped leases be pushed to salvage refs.
    pub(crate) session_credential: String,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Access");
        debug
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// Where messages for the coordinator go.
pub(crate) struct Outgoing {
    urgent: mpsc::Sender<WorkerMessage>,
    pub(crate) events: mpsc::Sender<WorkerMessage>,
    cut: CancellationToken,
    _heartbeats: DropGuard,
}

impl Outgoing {
    /// Says something ahead of waiting events. A connection that takes nothing any more is cut,
    /// so that everything is said again in the next session.
    pub(crate) fn say(&self, kind: worker_message::Kind) {
        if !send(&self.urgent, kind) {
            self.cut.cancel();
        }
    }
}

fn send(urgent: &mpsc::Sender<WorkerMessage>, kind: worker_message::Kind) -> bool {
    urgent.try_send(WorkerMessage { kind: Some(kind) }).is_ok()
}

/// Connects again and again until the coordinator refuses this worker for good.
pub(crate) struct Link {
    options: Options,
    worker: String,
    host: String,
    incarnation: u64,
    folder: PathBuf,
    agents: Vec<AgentOffer>,
    machine: Arc<Mutex<Machine>>,
    events: mpsc::Sender<LinkEvent>,
    /// Once cancelled, no further session is begun.
    no_more: CancellationToken,
}

impl Link {
    pub(crate) fn new(
        options: Options,
        identity: &Identity,
        agents: Vec<AgentOffer>,
        machine: Arc<Mutex<Machine>>,
        events: mpsc::Sender<LinkEvent>,
        no_more: CancellationToken,
    ) -> Self {
        Self {
            host: host_told(&identity.host, options.allocation.as_ref()),
            options,
            worker: identity.worker.clone(),
            incarnation: identity.incarnation,
            folder: identity.folder.clone(),
            agents,
            machine,
            events,
            no_more,
        }
    }

    /// Runs until an error that trying again would not cure.
    pub(crate) async fn run(self) -> Error {
        let mut reconnect = Reconnect::new();
        for number in 1.. {
            let (was_up, error) = self.session(number).await;
            if was_up {
                reconnect.succeeded();
                if self.events.send(LinkEvent::Down).await.is_err() {
                    return Error::Abandoned;
                }
            }
            if self.no_more.is_cancelled() {
                return Error::Abandoned;
            }
            if error.is_final() {
                return error;
            }
            let pause = reconnect.pause();
            tracing::warn!(
                error = crate::failure::chain(&error),
                pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
                "no session with the coordinator; trying again"
            );
            tokio::time::sleep(pause).await;
        }
        Error::Abandoned
    }

    /// One session, from the connection to its end; tells whether it began.
    async fn session(&self, number: u64) -> (bool, Error) {
        let (mut stream, up, cut) = match self.begin(number).await {
            Ok(begun) => begun,
            Err(error) => return (false, error),
        };
        let silence = silence_max(&up.welcome);
        if self.events.send(LinkEvent::Up(Box::new(up))).await.is_err() {
            return (true, Error::Abandoned);
        }
        loop {
            let message = tokio::select! {
                () = cut.cancelled() => return (true, Error::Stuck),
                message = tokio::time::timeout(silence, stream.message()) => message,
            };
            let kind = match message {
                Err(_) => return (true, Error::Silent { silence }),
                Ok(Err(status)) => return (true, broken(status)),
                Ok(Ok(None)) => return (true, Error::Closed),
                // A kind that this version does not know.
                Ok(Ok(Some(CoordinatorMessage { kind: None }))) => continue,
                Ok(Ok(Some(CoordinatorMessage { kind: Some(kind) }))) => kind,
            };
            if self.events.send(LinkEvent::Message(kind)).await.is_err() {
                return (true, Error::Abandoned);
            }
        }
    }

    async fn begin(
        &self,
        number: u64,
    ) -> Result<(Streaming<CoordinatorMessage>, Up, CancellationToken), Error> {
        let endpoint = endpoint(&self.options, &self.folder).await?;
        let channel = endpoint
            .authorized(Bearer::token(&self.options.token)?)
            .await?;
        let mut client = WorkerServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let (urgent, urgent_waiting) = mpsc::channel(URGENT_WAITING_MAX);
        let (events, events_waiting) = mpsc::channel(EVENTS_WAITING_MAX);
        send(&urgent, worker_message::Kind::Hello(self.hello(number)));
        let outgoing = ordered(urgent_waiting, events_waiting);
        let first = async {
            let response = client.session(outgoing).await.map_err(refused)?;
            let mut stream = response.into_inner();
            let first = stream.message().await.map_err(refused)?;
            Ok::<_, Error>((stream, first.ok_or(Error::Closed)?))
        };
        let (stream, first) = tokio::time::timeout(WELCOME_LIMIT, first)
            .await
            .map_err(|_| Error::NoWelcome)??;
        let Some(coordinator_message::Kind::Welcome(welcome)) = first.kind else {
            return Err(Error::NoWelcome);
        };
        let version = welcome.version.clone().unwrap_or_default();
        if !version.is_compatible() {
            return Err(Error::Version {
                ours: muster_proto::PROTOCOL_MAJOR,
                theirs: version.major,
                software: version.software,
            });
        }
        let interval = heartbeat_interval(&welcome);
        let cut = CancellationToken::new();
        let stop_heartbeats = CancellationToken::new();
        tokio::spawn(heartbeats(
            Arc::clone(&self.machine),
            urgent.clone(),
            interval,
            stop_heartbeats.clone(),
        ));
        let up = Up {
            access: Access {
                address: endpoint.address().to_owned(),
                ca_file: self.folder.join(CA),
                session_credential: welcome.session_credential.clone(),
            },
            welcome,
            outgoing: Outgoing {
                urgent,
                events,
                cut: cut.clone(),
                _heartbeats: stop_heartbeats.drop_guard(),
            },
        };
        Ok((stream, up, cut))
    }

    fn hello(&self, number: u64) -> Hello {
        let machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        Hello {
            version: Some(ProtocolVersion {
                features: vec![FEATURE_RESUME.to_owned()],
                ..ProtocolVersion::current(SOFTWARE)
            }),
            worker: self.worker.clone(),
            incarnation: self.incarnation,
            host: self.host.clone(),
            slots: self.options.slots,
            labels: self.options.labels.clone(),
            resources: self.options.resources.clone(),
            agents: self.agents.clone(),
            sandbox_levels: vec!["none".to_owned()],
            held_leases: machine.held(),
            draining: machine.is_draining(),
            pool: self.options.pool.clone(),
            number,
            time_left: machine
                .time_left(clock::now())
                .and_then(|left| left.try_into().ok()),
            hand_over: self.options.hand_over.try_into().ok(),
        }
    }
}

fn heartbeat_interval(welcome: &Welcome) -> Duration {
    let interval = welcome.heartbeat_interval;
    let interval = interval.and_then(|interval| Duration::try_from(interval).ok());
    interval
        .unwrap_or_default()
        .clamp(HEARTBEAT_INTERVAL_MIN, HEARTBEAT_INTERVAL_MAX)
}

/// How long a coordinator may say nothing before another connection is tried.
fn silence_max(welcome: &Welcome) -> Duration {
    let interval = heartbeat_interval(welcome);
    let patient = interval * HEARTBEATS_UNANSWERED + SILENCE_MIN;
    let ttl = welcome.lease_ttl;
    let ttl = ttl.and_then(|ttl| Duration::try_from(ttl).ok());
    let in_time = ttl
        .filter(|ttl| !ttl.is_zero())
        .map_or(patient, |ttl| ttl / SILENCE_SHARE_OF_TTL);
    // Each heartbeat has its answer; sooner than the next there is nothing to miss.
    patient.min(in_time).max(interval)
}

/// Sends heartbeats on their own clock, whatever the rest of the worker is busy with.
async fn heartbeats(
    machine: Arc<Mutex<Machine>>,
    urgent: mpsc::Sender<WorkerMessage>,
    interval: Duration,
    stop: CancellationToken,
) {
    let mut timer = tokio::time::interval(interval);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The first is sent by whoever takes the welcome.
    timer.tick().await;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = timer.tick() => {}
        }
        // Numbered and queued under one lock, so that they are sent in order.
        let mut machine = machine.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(heartbeat) = machine.heartbeat(clock::now()) {
            send(&urgent, worker_message::Kind::Heartbeat(heartbeat));
        }
    }
}

/// One stream of two queues, of which events wait for everything else.
fn ordered(
    urgent: mpsc::Receiver<WorkerMessage>,
    events: mpsc::Receiver<WorkerMessage>,
) -> impl Stream<Item = WorkerMessage> + Send + 'static {
    futures::stream::unfold((urgent, events), |(mut urgent, mut events)| async move {
        let message = tokio::select! {
            biased;
            message = urgent.recv() => message?,
            Some(message) = events.recv() => message,
        };
        Some((message, (urgent, events)))
    })
}

/// Tells whether the folder's worker has joined another coordinator before.
pub(crate) fn knows_another_coordinator(options: &Options, folder: &Path) -> bool {
    CaCertificate::read(&folder.join(CA)).is_ok_and(|ca| ca.fingerprint() != options.token.ca)
}

/// Finds the coordinator and its certificate, fetching that by the token's fingerprint if needed.
async fn endpoint(options: &Options, folder: &Path) -> Result<Endpoint, Error> {
    let stored = folder.join(CA);
    let address = match &options.coordinator {
        Coordinator::Address(address) => address.clone(),
        Coordinator::Home(home) => AddressFile::read(home)?.address,
    };
    if let Ok(ca) = CaCertificate::read(&stored)
        && ca.fingerprint() == options.token.ca
    {
        return Ok(Endpoint::new(&address, ca)?);
    }
    let ca = bootstrap_ca(&address, options.token.ca, BOOTSTRAP_LIMIT).await?;
    ca.write(&stored)?;
    Ok(Endpoint::new(&address, ca)?)
}

/// Judges the end of a session that had begun: the coordinator takes this worker, in principle.
fn broken(status: Status) -> Error {
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => refused(status),
        _ => Error::Broken { source: status },
    }
}

/// Judges the answer to a hello.
fn refused(status: Status) -> Error {
    match status.code() {
        Code::Unauthenticated => Error::Unauthenticated {
            message: status.message().to_owned(),
        },
        Code::PermissionDenied => Error::Forbidden {
            message: status.message().to_owned(),
        },
        Code::InvalidArgument | Code::FailedPrecondition | Code::Unimplemented => Error::Refused {
            message: status.message().to_owned(),
        },
        _ => Error::Broken { source: status },
    }
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The coordinator does not know the token.
    #[error(
        "the coordinator does not accept this token: {message}; make a new one with `coordinator \
         token create`"
    )]
    Unauthenticated {
        /// What it said.
        message: String,
    },
    /// The token does not let this worker join.
    #[error("the token does not let this worker join: {message}")]
    Forbidden {
        /// What it said.
        message: String,
    },
    /// The coordinator cannot use this worker as it is.
    #[error("the coordinator refuses this worker: {message}")]
    Refused {
        /// What it said.
        message: String,
    },
    /// The two speak different protocols.
    #[error(
        "the coordinator ({software}) speaks protocol {theirs} and this worker protocol {ours}; \
         update the older one"
    )]
    Version {
        /// Our major version.
        ours: u32,
        /// Theirs.
        theirs: u32,
        /// Their name and version.
        software: String,
    },
    /// The stream broke.
    #[error("hear from the coordinator: {} ({:?})", source.message(), source.code())]
    Broken {
        /// What tonic said.
        source: Status,
    },
    /// The coordinator closed the stream.
    #[error("the coordinator closed the session")]
    Closed,
    /// The first answer was something else or did not come.
    #[error("the coordinator did not answer the hello with a welcome")]
    NoWelcome,
    /// The coordinator stopped answering.
    #[error("the coordinator has said nothing for {silence:?}")]
    Silent {
        /// For how long.
        silence: Duration,
    },
    /// The connection takes no messages any more.
    #[error("the connection takes no messages any more")]
    Stuck,
    /// The worker's own loop has ended.
    #[error("the worker is ending")]
    Abandoned,
    /// There is no address, or no connection.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The local coordinator's address is not known.
    #[error(transparent)]
    AddressFile(#[from] AddressFileError),
    /// The certificate could not be fetched.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// The certificate could not be stored.
    #[error(transparent)]
    Ca(#[from] CaError),
}

impl Error {
    /// Tells whether trying again would give the same answer.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Unauthenticated { .. }
            | Self::Forbidden { .. }
            | Self::Refused { .. }
            | Self::Version { .. }
            | Self::Abandoned
            | Self::Ca(_)
            | Self::Endpoint(EndpointError::Address { .. } | EndpointError::Credential)
            | Self::Bootstrap(BootstrapError::WrongCoordinator { .. }) => true,
            Self::Broken { .. }
            | Self::Closed
            | Self::NoWelcome
            | Self::Silent { .. }
            | Self::Stuck
            | Self::Endpoint(_)
            | Self::AddressFile(_)
            | Self::Bootstrap(_) => false,
        }
    }
}

/// Gives the name under which the coordinator knows the machine: it quarantines machines by that, and
/// tells by it which allocation a worker is on.
fn host_told(host: &str, allocation: Option<&Allocation>) -> String {
    let machine = allocation.filter(|allocation| allocation.is_machine);
    machine.map_or(host, |machine| &machine.name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_of_one_image_are_told_by_their_own_names() {
        let of = |name: &str, is_machine| Allocation {
            name: name.to_owned(),
            restarts: 0,
            is_machine,
        };
        assert_eq!(host_told("debian", Some(&of("i-1", true))), "i-1");
        assert_eq!(host_told("node3", Some(&of("4711", false))), "node3");
        assert_eq!(host_told("laptop", None), "laptop");
    }

    fn welcome(interval: Duration, ttl: Duration) -> Welcome {
        Welcome {
            heartbeat_interval: interval.try_into().ok(),
            lease_ttl: ttl.try_into().ok(),
            ..Welcome::default()
        }
    }

    #[test]
    fn silence_is_borne_for_no_more_than_half_of_a_leases_life() {
        let seconds = Duration::from_secs;
        let usual = welcome(seconds(10), seconds(60));
        assert_eq!(silence_max(&usual), seconds(30));
        let short = welcome(seconds(1), seconds(6));
        assert_eq!(silence_max(&short), seconds(3));
        let long = welcome(seconds(10), seconds(3_600));
        assert_eq!(silence_max(&long), seconds(40));
        // Senseless ones do not make it reconnect without end.
        let unknown = welcome(seconds(1), Duration::ZERO);
        assert_eq!(silence_max(&unknown), seconds(13));
        let inverted = welcome(seconds(10), seconds(5));
        assert_eq!(silence_max(&inverted), seconds(10));
    }
}
