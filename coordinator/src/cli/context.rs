//! What every command knows: the home, the coordinator to talk to, and where to print.

use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::arguments::Global;
use super::client::{Client, Trouble, Whereabouts};
use super::error::{CliError, Kind, Result};
use super::summary::quoted;
use super::{logging, show};
use crate::api;
use crate::app::{self, App};
use crate::config::{self, Config, Flags, Loaded, Origin};
use crate::engine;
use crate::home;
use crate::output::Output;
use crate::pool::local::Parting;
use crate::store;

/// How long a coordinator that holds the home may take until it can be reached.
const START_MAX: Duration = Duration::from_secs(15);
const START_PAUSE: Duration = Duration::from_millis(100);

/// What every command knows.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) home: PathBuf,
    /// Who named the home.
    pub(crate) home_origin: Origin,
    pub(crate) whereabouts: Whereabouts,
    pub(crate) output: Output,
    /// This program and the options that lead to the coordinator, to be typed again.
    pub(crate) program: String,
}

/// A coordinator for the length of one command.
pub(crate) struct Session {
    pub(crate) client: Client,
    /// Started for this command alone.
    own: Option<App>,
}

/// What became of the wish to start a coordinator.
pub(crate) enum Started {
    Own(Box<App>),
    /// Another process holds the home.
    InUse {
        pid: Option<u32>,
    },
}

/// The coordinator of a home.
pub(crate) enum Host {
    /// Another process runs it.
    Theirs(Box<Client>),
    Own(Box<App>),
}

impl Context {
    pub(crate) fn new(global: &Global, output: Output) -> Result<Self> {
        let home = match &global.home {
            Some(home) if home.as_os_str().is_empty() => {
                return Err(CliError::user("the path of the home is empty")
                    .hint("give `--home PATH`, or set MUSTER_HOME to one, or leave both away"));
            }
            Some(home) => home.clone(),
            None => config::default_home().ok_or_else(|| {
                CliError::user("there is no folder for Muster's state: HOME is not set")
                    .hint("set MUSTER_HOME, or give `--home PATH`")
            })?,
        };
        let home = std::path::absolute(&home).map_err(|error| {
            CliError::new(Kind::User, error)
                .while_doing(format!("use {} as the home", home.display()))
                .hint("`--home PATH` or MUSTER_HOME names another")
        })?;
        let whereabouts = match (&global.coordinator, &global.token_file) {
            (Some(address), Some(token_file)) => Whereabouts::Address {
                address: address.clone(),
                token_file: token_file.clone(),
            },
            _ => Whereabouts::Home(home.clone()),
        };
        let program = program(global, &whereabouts);
        let home_origin = home_origin(global.home.as_deref(), std::env::var_os("MUSTER_HOME"));
        Ok(Self {
            home,
            home_origin,
            whereabouts,
            output,
            program,
        })
    }

    /// Gives the home if the coordinator to talk to is the one of that home.
    pub(crate) fn local_home(&self) -> Option<&Path> {
        match &self.whereabouts {
            Whereabouts::Home(home) => Some(home),
            Whereabouts::Address { .. } => None,
        }
    }

    /// Reads the configuration.
    pub(crate) fn config(&self, flags: Flags) -> Result<Loaded> {
        home::nearest_folder(&self.home).map_err(of_home)?;
        config::load(&self.home, flags).map_err(|error| match error {
            config::Error::File(problems) => {
                let count = show::counted(problems.list.len() + problems.omitted, "problem");
                let findings = problems.to_string();
                CliError::new(
                    Kind::Config,
                    anyhow::Error::msg(format!("{} has {count}", problems.file)),
                )
                .findings(findings)
                .hint("`coordinator help config` lists all keys with their defaults")
            }
            error @ config::Error::Value { .. } => CliError::new(Kind::Config, error)
                .hint("`coordinator help config` lists all keys with their defaults"),
            error @ config::Error::Read { .. } => CliError::new(Kind::Config, error)
                .hint("it must be a file that you may read; without one all defaults hold"),
        })
    }

    /// Connects to the coordinator that runs.
    pub(crate) async fn client(&self) -> Result<Client> {
        logging::client(self.output.talk_paint);
        Ok(self.connect().await?)
    }

    /// Connects to a coordinator that stays; one that another command has opened to read is waited
    /// out.
    pub(crate) async fn connect(&self) -> Result<Client, Trouble> {
        let deadline = tokio::time::Instant::now() + START_MAX;
        loop {
            if let Whereabouts::Home(home) = &self.whereabouts {
                home::nearest_folder(home).map_err(of_home)?;
            }
            let client = Client::connect(&self.whereabouts).await?;
            if !client.is_passing() {
                return Ok(client);
            }
            if tokio::time::Instant::now() > deadline {
                return Err(Trouble::Other(CliError::connection(format!(
                    "another command reads {} and does not end",
                    self.home.display()
                ))));
            }
            tokio::time::sleep(START_PAUSE).await;
        }
    }

    /// Connects to the coordinator that runs, or opens the home for this command alone.
    ///
    /// So what a past `run` has left can be read and taken home without a running coordinator. One
    /// opened here has no workers: nothing begins to run because someone reads a log.
    pub(crate) async fn session(&self) -> Result<Session> {
        logging::client(self.output.talk_paint);
        let is_home = self.home.join(app::JOURNAL).exists();
        match self.connect().await {
            Err(Trouble::NotRunning(_)) if is_home => {}
            Ok(client) => return Ok(Session { client, own: None }),
            Err(trouble) => return Err(trouble.into()),
        }
        let config = self.config(Flags::default())?.config;
        match self.connect_or_start(app::Mode::Read, 0, config).await? {
            Host::Theirs(client) => Ok(Session {
                client: *client,
                own: None,
            }),
            Host::Own(app) => Ok(Session {
                client: Client::connect(&self.whereabouts).await?,
                own: Some(*app),
            }),
        }
    }

    /// Connects to the coordinator that holds the home, or starts one in this process.
    pub(crate) async fn connect_or_start(
        &self,
        mode: app::Mode,
        local_slots: u32,
        config: Config,
    ) -> Result<Host> {
        let deadline = tokio::time::Instant::now() + START_MAX;
        let listen = match mode {
            app::Mode::Embedded => config.listen_of_run(),
            app::Mode::Serve | app::Mode::Read => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        };
        loop {
            match self.connect().await {
                Ok(client) => return Ok(Host::Theirs(Box::new(client))),
                Err(Trouble::NotRunning(_)) => {}
                Err(trouble) => return Err(trouble.into()),
            }
            match self
                .start(mode, listen, local_slots, config.clone())
                .await?
            {
                Started::Own(app) => return Ok(Host::Own(app)),
                // It is starting, or ending.
                Started::InUse { .. } if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(START_PAUSE).await;
                }
                Started::InUse { pid } => {
                    return Err(self.in_use(pid).hint("it does not answer: see its log"));
                }
            }
        }
    }

    /// Says that another process holds the home.
    pub(crate) fn in_use(&self, pid: Option<u32>) -> CliError {
        let process = pid
            .map(|pid| format!(" (process {pid})"))
            .unwrap_or_default();
        CliError::user(format!(
            "another coordinator{process} uses {}",
            self.home.display()
        ))
    }

    /// Says why a coordinator of this process could not go on.
    pub(crate) fn could_not_go_on(&self, error: engine::Fatal) -> CliError {
        let home = self.home.display();
        let is_write = matches!(error, engine::Fatal::Append(_));
        let said = CliError::internal(error);
        if is_write {
            said.within(format!("the coordinator of {home} ended, since nothing may be said that is not on disk"))
                .hint(format!(
                    "free some space on the disk of {home}, or mend it, and start the coordinator again: it goes on where it was"
                ))
        } else {
            said.within(format!("the coordinator of {home} ended"))
        }
    }

    /// Starts a coordinator in this process.
    pub(crate) async fn start(
        &self,
        mode: app::Mode,
        listen: SocketAddr,
        local_slots: u32,
        config: Config,
    ) -> Result<Started> {
        let what = || format!("start a coordinator on {}", self.home.display());
        if mode == app::Mode::Embedded && local_slots > 0 {
            room_to_work(&self.home).map_err(|error| error.while_doing(what()))?;
        }
        let executable = std::env::current_exe()
            .map_err(|error| CliError::internal(error).while_doing(what()))?;
        let options = app::Options {
            home: self.home.clone(),
            listen,
            mode,
            local_slots,
            clocks: config.clocks,
            heartbeat_interval: config.heartbeat_interval,
            agents: config.agents,
            mirrors: config.mirrors,
            pools: config.pools,
            prices: config.prices,
            executable,
        };
        match Box::pin(App::start(options)).await {
            Ok(app) => Ok(Started::Own(Box::new(app))),
            Err(app::Error::Home(home::Error::InUse { pid, .. })) => Ok(Started::InUse { pid }),
            Err(app::Error::Home(error)) => Err(of_home(error).while_doing(what())),
            Err(error @ app::Error::Server(api::ServerError::Bind { .. })) => {
                Err(CliError::new(Kind::User, error).while_doing(what()).hint(
                    "`--listen` takes an address of this machine, which `ip address` shows, or \
                     0.0.0.0 or [::] for all of them, and a port above 1023",
                ))
            }
            Err(error) if is_full(&error) => Err(CliError::new(Kind::User, error)
                .while_doing(what())
                .hint(full_disk(&self.home))),
            // These say themselves what to do.
            Err(error @ (app::Error::Server(_) | app::Error::Git(_) | app::Error::Auth(_))) => {
                Err(CliError::new(Kind::User, error).while_doing(what()))
            }
            Err(app::Error::Store(
                error @ (store::Error::NewerFormat { .. }
                | store::Error::Foreign(_)
                | store::Error::NetworkFileSystem { .. }),
            )) => Err(CliError::new(Kind::User, error)
                .while_doing(what())
                .hint("nothing was changed; `--home PATH` or MUSTER_HOME names another home")),
            Err(error) if is_damage(&error) => {
                Err(CliError::internal(error).while_doing(what()).hint(
                    "`coordinator restore FROM --home NEW` puts a backup into a new home; \
                         keep this one, much of it may be whole",
                ))
            }
            Err(error) => Err(CliError::internal(error)
                .while_doing(what())
                .hint(format!("`{} doctor` checks this machine", self.program))),
        }
    }
}

/// Tells who named the home; an option wins over the variable.
fn home_origin(given: Option<&Path>, variable: Option<OsString>) -> Origin {
    match given {
        None => Origin::Default,
        Some(home) if variable.is_some_and(|variable| variable == home) => Origin::Environment {
            name: "MUSTER_HOME",
        },
        Some(_) => Origin::Flag { name: "--home" },
    }
}

/// Says why a home cannot be used, and what to do.
pub(crate) fn of_home(error: home::Error) -> CliError {
    const ANOTHER: &str = "`--home PATH` or MUSTER_HOME names another folder";
    let hint = match &error {
        home::Error::NetworkFileSystem { .. } => {
            "name a folder on a disk of this machine with `--home PATH` or MUSTER_HOME".to_owned()
        }
        home::Error::Io { path, .. } if is_full(&error) => full_disk(path),
        home::Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            format!("it must be a folder that you may write; {ANOTHER}")
        }
        home::Error::Io { source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            format!("it must be on a disk that can be written; {ANOTHER}")
        }
        home::Error::Io { .. } | home::Error::NotAFolder(_) => ANOTHER.to_owned(),
        home::Error::InUse { .. } => {
            "one home has one coordinator: stop that one, or use another `--home`".to_owned()
        }
    };
    CliError::new(Kind::User, error).hint(hint)
}

pub(crate) fn full_disk(path: &Path) -> String {
    format!(
        "the disk of {} is full: free some space there (`df -h` shows it), or use another `--home`",
        path.display()
    )
}

/// Refuses a home on whose disk the worker beside the coordinator would begin nothing: a run there
/// would wait for ever. Nothing is made for that.
fn room_to_work(home: &Path) -> Result<()> {
    let there = home::nearest_folder(home).map_err(of_home)?;
    // A disk that does not tell is found out by whoever writes there.
    let Some(Ok(found)) = there.map(rustix::fs::statvfs) else {
        return Ok(());
    };
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    // Nor do file systems of the kernel's own.
    if free >= worker_agent::FREE_BYTES_MIN || found.f_blocks == 0 {
        return Ok(());
    }
    Err(CliError::user(format!(
        "the disk of {} is nearly full: {} KiB are free, and below {} MiB no task is begun",
        home.display(),
        free >> 10,
        worker_agent::FREE_BYTES_MIN >> 20
    ))
    .hint("free some space there (`df -h` shows it), or use another `--home`"))
}

/// Tells whether a full disk, or a used-up quota, is the cause.
pub(crate) fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return matches!(
                error.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            );
        }
        if let Some(rusqlite::Error::SqliteFailure(error, _)) = error.downcast_ref() {
            // On a full disk the memory that readers share cannot be made either.
            return error.code == rusqlite::ErrorCode::DiskFull
                || error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE;
        }
        next = error.source();
    }
    false
}

/// Tells whether the journal is damaged, so that only a backup helps.
fn is_damage(error: &app::Error) -> bool {
    match error {
        app::Error::Store(error) | app::Error::Engine(engine::Fatal::Load(error)) => {
            error.is_damage()
        }
        app::Error::Engine(engine::Fatal::Journal(_)) => true,
        _ => false,
    }
}

/// Writes how this program was called, and what it must be told to find the same coordinator.
fn program(global: &Global, whereabouts: &Whereabouts) -> String {
    let called = std::env::args_os().next().unwrap_or_default();
    let called = called.to_string_lossy();
    let name = if called.contains('/') {
        quoted(&called)
    } else {
        "coordinator".to_owned()
    };
    match whereabouts {
        Whereabouts::Address {
            address,
            token_file,
        } => {
            let token_file = quoted(&token_file.to_string_lossy());
            format!(
                "{name} --coordinator {} --token-file {token_file}",
                quoted(address)
            )
        }
        Whereabouts::Home(home) => {
            let usual = std::env::var_os("MUSTER_HOME")
                .map(PathBuf::from)
                .or_else(config::default_home);
            if global.home.is_some() && global.home != usual {
                format!("{name} --home {}", quoted(&home.to_string_lossy()))
            } else {
                name
            }
        }
    }
}

impl Session {
    /// Tells whether the coordinator was opened for this command.
    pub(crate) const fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// Ends the coordinator if it was opened for this command.
    pub(crate) async fn close(self) {
        let Self { client, own } = self;
        drop(client);
        if let Some(app) = own {
            // Everything was read; what could not be closed in order is recovered on the next start.
            drop(app.stop(Parting::Keep).await);
        }
    }
}
