//! What every command knows: the home, the coordinator to talk to, and where to print.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::arguments::Global;
use super::client::{Client, Trouble, Whereabouts};
use super::error::{CliError, Kind, Result};
use super::logging;
use super::summary::quoted;
use crate::app::{self, App};
use crate::config::{self, Config, Flags, Loaded};
use crate::engine;
use crate::home;
use crate::output::Output;
use crate::pool::local::Parting;

/// How long a coordinator that holds the home may take until it can be reached.
const START_MAX: Duration = Duration::from_secs(15);
const START_PAUSE: Duration = Duration::from_millis(100);

/// What every command knows.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) home: PathBuf,
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
            Some(home) => home.clone(),
            None => config::default_home().ok_or_else(|| {
                CliError::user("there is no folder for Muster's state: HOME is not set")
                    .hint("set MUSTER_HOME, or give `--home PATH`")
            })?,
        };
        let home = std::path::absolute(&home).map_err(|error| {
            CliError::new(Kind::User, error).while_doing(format!("use {}", home.display()))
        })?;
        let whereabouts = match (&global.coordinator, &global.token_file) {
            (Some(address), Some(token_file)) => Whereabouts::Address {
                address: address.clone(),
                token_file: token_file.clone(),
            },
            _ => Whereabouts::Home(home.clone()),
        };
        let program = program(global, &whereabouts);
        Ok(Self {
            home,
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
        config::load(&self.home, flags).map_err(|error| {
            CliError::new(Kind::Config, error)
                .hint("`coordinator config check` shows each value and where it came from")
        })
    }

    /// Connects to the coordinator that runs.
    pub(crate) async fn client(&self) -> Result<Client> {
        logging::client();
        Ok(self.connect().await?)
    }

    /// Connects to a coordinator that stays; one that another command has opened to read is waited
    /// out.
    pub(crate) async fn connect(&self) -> Result<Client, Trouble> {
        let deadline = tokio::time::Instant::now() + START_MAX;
        loop {
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
        logging::client();
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
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
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
            said.while_doing(format!("the coordinator of {home} ended, since nothing may be said that is not on disk"))
                .hint(format!(
                    "free some space on the disk of {home}, or mend it, and start the coordinator again: it goes on where it was"
                ))
        } else {
            said.while_doing(format!("the coordinator of {home} ended"))
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
            executable,
        };
        match Box::pin(App::start(options)).await {
            Ok(app) => Ok(Started::Own(Box::new(app))),
            Err(app::Error::Home(home::Error::InUse { pid, .. })) => Ok(Started::InUse { pid }),
            // These say themselves what to do.
            Err(error @ (app::Error::Server(_) | app::Error::Git(_))) => {
                Err(CliError::new(Kind::User, error).while_doing(what()))
            }
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
