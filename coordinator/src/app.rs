//! A whole coordinator: builds its parts in order and owns the order in which they end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use coordinator_core::Span;
use coordinator_core::state::LeaseClocks;
use muster_connect::{AddressFile, read_token_file};
use muster_git::Git;
use muster_proto::MESSAGE_BYTES_MAX;
use muster_proto::v1::join_service_server::JoinServiceServer;
use muster_proto::v1::operator_service_server::OperatorServiceServer;
use muster_proto::v1::worker_service_server::WorkerServiceServer;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::api::feed::Feeds;
use crate::api::grants::Grants;
use crate::api::join::Joins;
use crate::api::operator_service::{About, Operators};
use crate::api::plans::{self, Plans};
use crate::api::pools::Pools;
use crate::api::runs::Runs;
use crate::api::submit::Submissions;
use crate::api::usage::Meter;
use crate::api::worker_service::{Terms, Workers};
use crate::api::{self, Gate, OpenPath, Server, server_config};
use crate::auth::{Authenticator, NewToken, Role};
use crate::engine::{self, Handle, Readers};
use crate::git::fence::EngineFence;
use crate::git::host::{self, GitHost};
use crate::git::mirror::{self, MirrorSettings, Mirrors};
use crate::git::projection::Projection;
use crate::git::repositories::Repositories;
use crate::home::{self, Home};
use crate::ledger::Ledger;
use crate::ledger::prices::Prices;
use crate::plan::AgentDefinition;
use crate::pool::carry::Standings;
use crate::pool::local::{self, Parting};
use crate::pool::settings::PoolSettings;
use crate::pool::{self, Surroundings};
use crate::store;
use crate::store::sqlite::SqliteStore;
use crate::transcript::{self, Transcripts};

/// How long the engine may take to commit its last batch.
const ENGINE_ENDS: Duration = Duration::from_secs(20);
/// How long mirrors may take for the last branches.
const MIRRORS_END: Duration = Duration::from_secs(10);
/// Largest message a worker may send: twice its event window.
const WORKER_MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Largest claim of a machine that nobody knows yet.
const CLAIM_BYTES_MAX: usize = 32 * 1024;
/// Where plans come in, which are the only large requests.
/// Readers of the store that serve requests, and as many that serve the fleet.
const READERS: usize = 4;
/// Readers of those who watch, who share what was read.
const FEED_READERS: usize = 1;
const SUBMIT: &str = "/muster.v1.OperatorService/SubmitRun";
const WATCH: &str = "/muster.v1.OperatorService/WatchRun";
/// File of the journal in the home.
pub(crate) const JOURNAL: &str = "journal.db";
/// Tokens that every home has: the local administrator's and the local worker's.
const OWN_TOKENS: usize = 2;
/// Pool of the workers that the coordinator starts itself.
pub const LOCAL_POOL: &str = "local";

/// Why the coordinator runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Until it is told to end.
    Serve,
    /// Inside `run`, until its last run has ended.
    Embedded,
    /// Inside a command that reads what the home holds, for a moment; no place to submit to.
    Read,
}

/// What a coordinator is started with.
#[derive(Clone, Debug)]
pub struct Options {
    pub home: PathBuf,
    pub listen: SocketAddr,
    pub mode: Mode,
    /// Slots of the local worker; 0 starts none.
    pub local_slots: u32,
    /// How long leases live.
    pub clocks: LeaseClocks,
    /// How often workers are to give a sign of life; a third of the TTL at the most.
    pub heartbeat_interval: Span,
    /// Agents that the configuration declares.
    pub agents: BTreeMap<String, AgentDefinition>,
    /// Where branches are copied to, by the names of hosted repositories.
    pub mirrors: BTreeMap<String, MirrorSettings>,
    /// What models cost.
    pub prices: Prices,
    /// Pools that the configuration declares.
    pub pools: BTreeMap<Arc<str>, PoolSettings>,
    /// This program: what git's hook and the local worker run.
    pub executable: PathBuf,
}

/// Why a coordinator could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Home(#[from] home::Error),
    #[error("cannot open the state")]
    Store(#[from] store::Error),
    #[error(transparent)]
    Engine(#[from] engine::Fatal),
    #[error("cannot set up authentication")]
    Auth(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error(transparent)]
    Server(#[from] api::ServerError),
    #[error(transparent)]
    Git(#[from] muster_git::GitError),
    #[error("cannot serve git repositories")]
    Host(#[from] host::StartError),
    #[error(transparent)]
    Transcript(#[from] transcript::Error),
    #[error("cannot {action}")]
    Io {
        action: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A running coordinator.
pub struct App {
    home: Home,
    mode: Mode,
    auth: Arc<Authenticator>,
    address: SocketAddr,
    engine: Handle,
    engine_thread: Option<JoinHandle<Result<(), engine::Fatal>>>,
    /// Ends services, reconcilers and streams.
    ending: CancellationToken,
    /// Ends the port, after the streams.
    port: CancellationToken,
    /// Tells the local worker's keeper how to part with it.
    parting: watch::Sender<Option<Parting>>,
    keeper: Option<tokio::task::JoinHandle<()>>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    has_pools: bool,
    ledger: Ledger,
    /// What is known of the mirrors, and how often branches were moved; none that only reads.
    mirrors: Option<(Mirrors, watch::Receiver<u64>)>,
}

impl App {
    /// Starts a coordinator on a home.
    ///
    /// # Errors
    /// The home is in use or of a newer version, a part of it is damaged, the address is taken, or
    /// git is missing or too old. Nothing of this start goes on then, and a home in which nothing
    /// was is as it was before.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let mut home = Home::own(&options.home)?;
        let git = Git::find().await?;
        let auth = Authenticator::open(home.path()).map_err(|error| Error::Auth(error.into()))?;
        let store = SqliteStore::open(&home.path().join(JOURNAL))?;
        let readers = Readers::open(&store, READERS)?;
        // Of their own, so that no number of viewers keeps grants and pushes waiting.
        let (fleet_readers, feed_readers) = (
            Readers::open(&store, READERS)?,
            Readers::open(&store, FEED_READERS)?,
        );
        let tls = server_config(auth.clone()).map_err(|error| Error::Auth(error.into()))?;
        // Before anything is journaled: an address that is taken must leave no trace.
        let server = Server::bind(api::Options::new(options.listen), tls)?;
        let address = server.address();
        let engine_options = engine::Options {
            clocks: options.clocks,
            ..engine::Options::default()
        };
        let engine::Started {
            handle: engine,
            epoch,
            thread,
        } = engine::start(Box::new(store), engine_options)?;
        let ledger = Ledger::start(home.path()).map_err(|source| Error::Io {
            action: "start the thread that keeps the ledger of usage",
            source: source.into(),
        })?;
        let transcripts =
            Transcripts::start_with(home.path().join("transcripts"), Some(ledger.inbox()))?;

        let ending = CancellationToken::new();
        let port = CancellationToken::new();
        // What was begun ends with a start that fails further down.
        let undo = [&ending, &port].map(|token| token.clone().drop_guard());
        let shutdown = CancellationToken::new();
        let tasks = TaskTracker::new();
        let repositories = Repositories::new(git.clone(), home.path().to_owned());
        let projection = Projection::new(engine.clone(), readers.clone(), repositories.clone());
        let fence = Arc::new(EngineFence::new(
            engine.clone(),
            fleet_readers.clone(),
            projection.clone(),
        ));
        let git_options = host::Options {
            git,
            home: home.path().to_owned(),
            executable: options.executable.clone(),
            push_bytes_max: host::PUSH_BYTES_MAX,
            writers: repositories.writers().clone(),
        };
        let git_host = GitHost::start(git_options, fence).await?;
        tasks.spawn(crate::git::merges::run(
            engine.clone(),
            repositories.clone(),
            ending.clone(),
        ));
        let copied = Mirrors::new(&options.mirrors);
        let moved = projection.moved();
        if options.mode != Mode::Read {
            for (name, settings) in &options.mirrors {
                tasks.spawn(mirror::run(
                    name.clone(),
                    settings.clone(),
                    repositories.clone(),
                    copied.clone(),
                    moved.clone(),
                    ending.clone(),
                ));
            }
        }
        tasks.spawn(projection.run(ending.clone()));
        tasks.spawn(crate::git::housekeeping::run(
            repositories.clone(),
            ending.clone(),
        ));

        let feeds = Feeds::new(engine.clone(), feed_readers);
        let runs = Runs::new(engine.clone(), readers.clone(), transcripts.clone(), feeds);
        let submissions = Submissions::new(
            engine.clone(),
            readers,
            repositories.clone(),
            Arc::new(options.agents.clone()),
        )
        .map_err(|source| Error::Io {
            action: "start the thread that reads plans",
            source: source.into(),
        })?;
        let about = About {
            epoch,
            address: address.to_string(),
            mode: match options.mode {
                Mode::Serve => "serve",
                Mode::Embedded => "run",
                Mode::Read => "read",
            },
        };
        let operators = Operators::new(
            runs,
            submissions,
            repositories.clone(),
            auth.clone(),
            about,
            shutdown.clone(),
            ending.clone(),
        );
        let grants = Grants::new(
            engine.clone(),
            fleet_readers,
            auth.clone(),
            repositories.clone(),
            &transcripts,
        );
        let terms = Terms {
            epoch,
            heartbeat_interval: options.heartbeat_interval,
            lease_ttl: options.clocks.ttl,
        };
        let workers = Workers::new(
            engine.clone(),
            terms,
            transcripts,
            grants,
            repositories,
            auth.clone(),
            ending.clone(),
        );
        let pools = match options.mode {
            Mode::Read => &BTreeMap::new(),
            Mode::Serve | Mode::Embedded => &options.pools,
        };
        let standings = Standings::default();
        let operators = operators
            .with_troubles(workers.troubles())
            .with_agents(workers.agents())
            .with_mirrors(copied.clone())
            .with_meter(Meter::new(ledger.clone(), options.prices.clone()))
            .with_pools(Pools::new(pools, standings.clone()));
        let joins = Joins::new(engine.clone(), auth.clone());
        #[cfg(feature = "ec2")]
        let joins = joins.with_callers(
            Box::pin(pool::ec2::Callers::new(
                pools,
                auth.ca().certificate().fingerprint(),
            ))
            .await
            .map_err(|error| Error::Io {
                action: "prepare for EC2 instances",
                source: error.into(),
            })?,
        );
        let program = api::program::router(options.executable.clone());
        let router = router(operators, workers, joins, &git_host).map_err(|error| Error::Io {
            action: "describe the services",
            source: error.into(),
        })?;
        let guarded = Gate::new(auth.clone())
            .open(OpenPath::Below(api::join::PATH))
            .open(OpenPath::Below(api::program::PATH))
            .guard(router.merge(program));
        tasks.spawn({
            let port = port.clone();
            async move {
                let stopped = server.run(guarded, port).await;
                if stopped.cut > 0 {
                    warn!(cut = stopped.cut, "cut connections that did not end");
                }
            }
        });

        let (parting, told) = watch::channel(None);
        let mut keeper = None;
        if options.local_slots > 0 {
            let token_file = local_token(&auth, home.path())?;
            let local = local::Options {
                home: home.path().to_owned(),
                executable: options.executable.clone(),
                token_file,
                slots: options.local_slots,
            };
            keeper = Some(tokio::spawn(local::run(local, told)));
        }
        let around = Surroundings {
            engine: engine.clone(),
            auth: auth.clone(),
            home: home.path().to_owned(),
            executable: options.executable.clone(),
            address: for_machines(address),
        };
        if options.mode != Mode::Read {
            let disowned = pool::disown(&engine, home.path()).await;
            disowned.map_err(|source| Error::Io {
                action: "let the allocations of the home go that this one was restored from",
                source,
            })?;
            let started = pool::start(pools, &around, &standings, &tasks, &ending).await;
            started.map_err(|error| Error::Io {
                action: "start the pools",
                source: error.into(),
            })?;
        }
        let ca_path = auth.ca().certificate_path().to_owned();
        let here = AddressFile {
            address: reachable(address).to_string(),
            ca_path,
        };
        here.write(home.path()).map_err(|error| Error::Io {
            action: "write the address file",
            source: error.into(),
        })?;
        home.keep();
        for guard in undo {
            // Gives the token back, which has its owner already.
            drop(guard.disarm());
        }
        info!(%address, home = %home.path().display(), "the coordinator serves");
        Ok(Self {
            home,
            mode: options.mode,
            auth,
            address,
            engine,
            engine_thread: Some(thread),
            ending,
            port,
            parting,
            keeper,
            shutdown,
            tasks,
            has_pools: !pools.is_empty(),
            ledger,
            mirrors: (options.mode != Mode::Read).then_some((copied, moved)),
        })
    }

    /// Gives the address it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gives the home.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Lets no new lease begin; what runs goes on.
    pub async fn drain(&self) {
        // An ended engine grants nothing either.
        drop(self.engine.hold(true).await);
    }

    /// Waits until no lease is open.
    pub async fn drained(&self) {
        self.wait(|state| state.leases().len() == 0).await;
    }

    /// Waits until no run is live any more.
    pub async fn finished(&self) {
        self.wait(|state| state.runs().len() == 0).await;
    }

    /// Gives the mirrors a moment for the branches that have just moved; one that is slow gets them
    /// at the next start.
    pub async fn mirrored(&self) {
        if let Some((mirrors, moved)) = &self.mirrors {
            let version = *moved.borrow();
            drop(tokio::time::timeout(MIRRORS_END, mirrors.looked(version)).await);
        }
    }

    /// Waits until an admin asks for the end, or the engine cannot go on.
    pub async fn asked_to_end(&self) {
        let mut check = tokio::time::interval(Duration::from_millis(500));
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                _ = check.tick() => {
                    if self.engine_thread.as_ref().is_none_or(JoinHandle::is_finished) {
                        return;
                    }
                }
            }
        }
    }

    async fn wait(&self, reached: fn(&coordinator_core::State) -> bool) {
        let mut committed = self.engine.notices().committed();
        loop {
            committed.mark_unchanged();
            match self.engine.query(move |state, _| reached(state)).await {
                Ok(true) | Err(_) => return,
                Ok(false) => {}
            }
            if committed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Tells whether this coordinator was started for a run that did not come to be, on a home that
    /// was made for it: nothing there is worth a folder that somebody would wonder about.
    async fn was_for_nothing(&self) -> bool {
        if self.mode != Mode::Embedded || !self.home.is_new() {
            return false;
        }
        // A token that a person has made may be in use elsewhere already.
        let tokens = self.auth.tokens().list();
        if !tokens.is_ok_and(|tokens| tokens.len() <= OWN_TOKENS) {
            return false;
        }
        // An engine that does not answer cannot say that it holds nothing.
        let had_runs = self.engine.query(|state, _| state.has_had_runs()).await;
        matches!(had_runs, Ok(false))
    }

    /// Scales its pools to zero if it is the coordinator of a `run` and they are not to be kept:
    /// nobody would end them later. Gives the allocations that stay all the same, for people. What
    /// has work stays, and the next coordinator of the home finds it again.
    pub async fn empty_pools(&self, parting: Parting) -> Vec<String> {
        if self.mode != Mode::Embedded || parting == Parting::Keep || !self.has_pools {
            return vec![];
        }
        pool::empty(&self.engine).await
    }

    /// Ends the coordinator: the local worker first as `parting` says, then streams, reconcilers
    /// and the port, and the engine after its last commit. A home that was made for one command
    /// goes with it, unless a run was admitted.
    ///
    /// # Errors
    /// The reason for which the engine had ended by itself.
    pub async fn stop(mut self, parting: Parting) -> Result<(), engine::Fatal> {
        // While the port is open, so that the worker's last words are heard.
        self.parting.send_replace(Some(parting));
        if let Some(keeper) = self.keeper.take() {
            // It only fails when it panicked; there is no worker to wait for then.
            drop(keeper.await);
        }
        self.mirrored().await;
        self.ending.cancel();
        self.port.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        // Behind the port's end: nobody can submit any more.
        if self.was_for_nothing().await {
            self.home.give_up();
        }
        if tokio::time::timeout(ENGINE_ENDS, self.engine.stop())
            .await
            .is_err()
        {
            warn!("the engine did not end in time");
        }
        self.ledger.close().await;
        // Clients that find no file say that no coordinator runs; one that stays only costs them a
        // refused connection.
        drop(std::fs::remove_file(AddressFile::path(self.home.path())));
        match self.engine_thread.take() {
            Some(thread) => match tokio::task::spawn_blocking(move || thread.join()).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) | Err(_) => Err(engine::Fatal::Panicked),
            },
            None => Ok(()),
        }
    }
}

/// The address that clients on this machine dial: an unspecified one stands for loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let mut dialled = address;
    if address.ip().is_unspecified() {
        dialled.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    dialled
}

/// The address that other machines dial: an unspecified one stands for this host's name.
fn for_machines(address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        format!("{}:{}", worker_agent::host_name(), address.port())
    } else {
        address.to_string()
    }
}

fn router(
    operators: Operators,
    workers: Workers,
    joins: Joins,
    git_host: &GitHost,
) -> Result<Router, tonic_reflection::server::Error> {
    let operators = Arc::new(operators);
    let plans = OperatorServiceServer::from_arc(operators.clone())
        .max_decoding_message_size(api::limits::SUBMISSION_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let watches = Router::new()
        .route(WATCH, axum::routing::post(api::watch_route::watch_run))
        .with_state(Arc::clone(&operators));
    let operators = OperatorServiceServer::from_arc(operators)
        .max_decoding_message_size(api::limits::REQUEST_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let workers = WorkerServiceServer::new(workers)
        .max_decoding_message_size(WORKER_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(muster_proto::v1::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let (_health_reporter, health) = tonic_health::server::health_reporter();
    let services = tonic::service::Routes::new(operators)
        .add_service(workers)
        .add_service(JoinServiceServer::new(joins).max_decoding_message_size(CLAIM_BYTES_MAX))
        .add_service(reflection)
        .add_service(health);
    let plans =
        Router::new()
            .route_service(SUBMIT, plans)
            .layer(axum::middleware::from_fn_with_state(
                Arc::new(Plans::default()),
                plans::admit,
            ));
    Ok(services
        .into_axum_router()
        .merge(plans)
        .merge(watches)
        .merge(git_host.router()))
}

/// Makes the join token of the local pool, unless there is one that still opens the door.
fn local_token(auth: &Authenticator, home: &Path) -> Result<PathBuf, Error> {
    let path = home.join("local-worker.token");
    let io = |source: Box<dyn std::error::Error + Send + Sync>| Error::Io {
        action: "make the local worker's token",
        source,
    };
    let now = jiff::Timestamp::now();
    if let Ok(token) = read_token_file(&path)
        && auth.tokens().is_live(token.id, now).is_ok()
    {
        return Ok(path);
    }
    let new = NewToken {
        role: Role::Worker {
            pool: LOCAL_POOL.to_owned(),
        },
        name: "the coordinator's local worker".to_owned(),
        expires: None,
    };
    let token = auth
        .create_token(&new, now)
        .map_err(|error| io(error.into()))?;
    muster_connect::private_file::replace(&path, format!("{}\n", token.reveal()).as_bytes())
        .map_err(|error| io(error.into()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_machines_dial_this_hosts_name_where_all_addresses_are_listened_on() {
        let of = |listens: &str| for_machines(listens.parse().unwrap());
        let named = format!("{}:7733", worker_agent::host_name());
        assert_eq!(of("0.0.0.0:7733"), named);
        assert_eq!(of("[::]:7733"), named);
        assert_eq!(of("192.0.2.7:7733"), "192.0.2.7:7733");
        assert_eq!(of("127.0.0.1:7733"), "127.0.0.1:7733");
    }
}
