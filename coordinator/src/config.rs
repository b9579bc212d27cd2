//! The configuration of a coordinator: defaults, then `config.toml` in the home, then `MUSTER_*`
//! variables, then options of the command line.

mod file;
mod pools;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coordinator_core::Span;
use coordinator_core::state::LeaseClocks;
use muster_git::without_users;
use serde::Serialize;

use crate::git::mirror::MirrorSettings;
use crate::ledger::prices::{self, Prices};
use crate::plan::{AgentDefinition, Duration, Problems};
use crate::pool::settings::{PoolKind, PoolSettings};

/// Name of the file in the home.
pub const FILE_NAME: &str = "config.toml";
/// Where `serve` listens unless told otherwise: only programs of this machine reach it there.
pub const LISTEN_DEFAULT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7733);
/// What the log holds unless told otherwise.
pub const LOG_DEFAULT: &str = "info";

/// Two may get lost before a lease ends.
const HEARTBEATS: u64 = 3;
/// However long leases live, this is how soon a dead worker shows in lists.
const HEARTBEAT_MS_MAX: u64 = 10_000;
/// More processes on one machine are a typing error.
pub(crate) const SLOTS_MAX: u32 = 4096;

/// The settings that hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where `serve` listens.
    pub listen: SocketAddr,
    /// Attempts and verifies that the local workers of `run` take at once.
    pub slots: u32,
    /// What the log holds, as a filter of the `tracing` kind: `info`, `coordinator=debug,warn`.
    pub log: String,
    /// How long a lease lives without a heartbeat, and how long after that its work is given away.
    pub clocks: LeaseClocks,
    /// How often workers are to give a sign of life; at most a third of the lease's life.
    pub heartbeat_interval: Span,
    /// Agents that every plan may name, besides the built-in ones.
    pub agents: BTreeMap<String, AgentDefinition>,
    /// Where branches are copied to, by the names of hosted repositories.
    pub mirrors: BTreeMap<String, MirrorSettings>,
    /// What models cost.
    pub prices: Prices,
    /// Where workers come from, by name.
    pub pools: BTreeMap<Arc<str>, PoolSettings>,
}

impl Config {
    /// Where the coordinator of a `run` listens: any free port of this machine, unless it has pools
    /// whose workers are on others; these dial what `serve` would have.
    #[must_use]
    pub fn listen_of_run(&self) -> SocketAddr {
        let elsewhere = |pool: &PoolSettings| match pool.kind {
            PoolKind::Slurm(_) | PoolKind::Ec2(_) => true,
            PoolKind::External | PoolKind::Local { .. } => false,
        };
        match self.pools.values().any(elsewhere) {
            true => self.listen,
            false => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        }
    }
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "from")]
pub enum Origin {
    /// Nobody has said anything else.
    Default,
    /// Nobody has said anything else, and this is what was so at a time.
    #[serde(rename = "default")]
    AsOf {
        /// The day.
        date: &'static str,
    },
    /// The configuration file.
    File {
        /// The file.
        name: PathBuf,
        /// The line of its key, counted from 1.
        line: u32,
    },
    /// This variable of the environment.
    Environment {
        /// The variable.
        name: &'static str,
    },
    /// This option of the command line.
    Flag {
        /// The option.
        name: &'static str,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => formatter.write_str("default"),
            Self::AsOf { date } => write!(formatter, "default of {date}"),
            Self::File { name, line } => write!(formatter, "{}:{line}", name.display()),
            Self::Environment { name } => write!(formatter, "${name}"),
            Self::Flag { name } => formatter.write_str(name),
        }
    }
}

/// One setting for people: its name, its value as text, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// Key, as in the file.
    pub key: String,
    /// Value as text.
    pub value: String,
    /// Where it came from.
    #[serde(flatten)]
    pub origin: Origin,
}

/// The settings and where each came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// The same for people, in the order of the documentation.
    pub shown: Vec<Shown>,
}

/// What the command line says itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flags {
    /// `--listen`
    pub listen: Option<SocketAddr>,
    /// `--slots`
    pub slots: Option<u32>,
}

/// Why there is no configuration to go by.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is there but cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("{0}")]
    File(Problems),
    /// A value makes no sense.
    #[error("{origin}: `{key}` is {value:?}: {reason}")]
    Value {
        /// Which setting.
        key: &'static str,
        /// What was given.
        value: String,
        /// By whom.
        origin: Origin,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads the configuration of `home`; a missing file is an empty one.
///
/// # Errors
/// The file or a variable holds something that makes no sense.
pub fn load(home: &Path, flags: Flags) -> Result<Loaded, Error> {
    load_with(home, flags, |name| std::env::var_os(name))
}

fn load_with(
    home: &Path,
    flags: Flags,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Loaded, Error> {
    let path = home.join(FILE_NAME);
    let mut file = file::read(&path)?;
    let text_of = |name: &'static str| {
        variable(name)
            .filter(|value| !value.is_empty())
            .map(|value| {
                (
                    value.to_string_lossy().into_owned(),
                    Origin::Environment { name },
                )
            })
    };
    let in_file = |line| Origin::File {
        name: path.clone(),
        line,
    };
    let pick = |flag: Option<(String, Origin)>,
                name,
                placed: Option<file::Placed<String>>,
                default: String| {
        flag.or_else(|| text_of(name))
            .or_else(|| placed.map(|placed| (placed.value, in_file(placed.line))))
            .unwrap_or((default, Origin::Default))
    };
    let mut shown = Vec::new();

    let flag = flags
        .listen
        .map(|listen| (listen.to_string(), Origin::Flag { name: "--listen" }));
    let (value, origin) = pick(
        flag,
        "MUSTER_LISTEN",
        file.take("listen"),
        LISTEN_DEFAULT.to_string(),
    );
    let listen = value.parse().map_err(|_| Error::Value {
        key: "listen",
        value: value.clone(),
        origin: origin.clone(),
        reason: "an address and a port are needed, such as 127.0.0.1:7733 or [::]:7733".to_owned(),
    })?;
    shown.push(entry("listen", value, origin));

    let flag = flags
        .slots
        .map(|slots| (slots.to_string(), Origin::Flag { name: "--slots" }));
    let placed = file.take("slots");
    let (value, origin) = pick(flag, "MUSTER_SLOTS", placed, cores().to_string());
    let slots = value
        .parse()
        .ok()
        .filter(|slots| *slots <= SLOTS_MAX)
        .ok_or_else(|| Error::Value {
            key: "slots",
            value: value.clone(),
            origin: origin.clone(),
            reason: format!("a number from 0 to {SLOTS_MAX} is needed"),
        })?;
    shown.push(entry("slots", value, origin));

    let (log, origin) = pick(None, "MUSTER_LOG", file.take("log"), LOG_DEFAULT.to_owned());
    if let Err(error) = tracing_subscriber::EnvFilter::builder().parse(&log) {
        return Err(Error::Value {
            key: "log",
            value: log,
            origin,
            reason: format!("a filter is needed, such as info or coordinator=debug,warn ({error})"),
        });
    }
    shown.push(entry("log", log.clone(), origin));

    let usual = LeaseClocks::default();
    let mut span = |key: &'static str, name, default: Span| {
        let (value, origin) = pick(None, name, file.take(key), written(default));
        let parsed = Duration::parse(&value).filter(|length| length.0.ms() > 0);
        let length = parsed.ok_or_else(|| Error::Value {
            key,
            value: value.clone(),
            origin: origin.clone(),
            reason: "a length of time is needed, such as 30s or 2m".to_owned(),
        })?;
        shown.push(entry(key, value, origin));
        Ok::<_, Error>(length.0)
    };
    let ttl = span("lease-ttl", "MUSTER_LEASE_TTL", usual.ttl)?;
    let grace = span("lease-grace", "MUSTER_LEASE_GRACE", usual.grace)?;
    let heartbeat_usual = Span::from_ms((ttl.ms() / HEARTBEATS).clamp(1, HEARTBEAT_MS_MAX));
    let heartbeat_interval = span(
        "heartbeat-interval",
        "MUSTER_HEARTBEAT_INTERVAL",
        heartbeat_usual,
    )?;
    if heartbeat_interval.ms() > ttl.ms() / HEARTBEATS {
        let shown = shown.pop().map(|shown| (shown.value, shown.origin));
        let (value, origin) = shown.unwrap_or((String::new(), Origin::Default));
        return Err(Error::Value {
            key: "heartbeat-interval",
            value,
            origin,
            reason: format!(
                "it must fit {HEARTBEATS} times into lease-ttl, which is {}",
                written(ttl)
            ),
        });
    }

    let mut agents = BTreeMap::new();
    for (name, placed) in file.agents {
        let AgentDefinition { kind, command, env } = &placed.value;
        let what = match command {
            Some(words) => format!("{}: {}", kind.as_str(), words.join(" ")),
            None => kind.as_str().to_owned(),
        };
        shown.push(Shown {
            key: format!("agents.{name}"),
            value: what,
            origin: in_file(placed.line),
        });
        // Values may be tokens that somebody wrote down in the wrong place.
        shown.extend(env.keys().map(|variable| Shown {
            key: format!("agents.{name}.env.{variable}"),
            value: "(set)".to_owned(),
            origin: in_file(placed.line),
        }));
        agents.insert(name, placed.value);
    }
    let mut mirrors = BTreeMap::new();
    for (name, placed) in file.mirrors {
        let origin = in_file(placed.line);
        let key = |key: &str| format!("mirrors.{name}.{key}");
        shown.push(entry(
            &key("url"),
            without_users(&placed.value.url),
            origin.clone(),
        ));
        if let Some(path) = &placed.value.credential_file {
            let value = path.display().to_string();
            shown.push(entry(&key("credential-file"), value, origin));
        }
        mirrors.insert(name, placed.value);
    }
    let mut prices = Prices::default();
    let said: BTreeSet<String> = file.prices.keys().map(|model| prices::key(model)).collect();
    for (model, price) in prices::built_in() {
        if !said.contains(&prices::key(model)) {
            let date = prices::BUILT_IN_DATE;
            let key = format!("prices.{model}");
            shown.push(entry(&key, price.to_string(), Origin::AsOf { date }));
        }
    }
    for (model, placed) in file.prices {
        let key = format!("prices.{model}");
        let origin = in_file(placed.line);
        shown.push(entry(&key, placed.value.to_string(), origin));
        prices.set(&model, placed.value);
    }
    let mut pools = BTreeMap::new();
    for (name, pool) in file.pools {
        for said in pool.said {
            let origin = said.line.map_or(Origin::Default, in_file);
            let key = format!("pools.{name}.{}", said.key);
            shown.push(entry(&key, said.value, origin));
        }
        pools.insert(name, pool.settings);
    }
    let config = Config {
        pools,
        listen,
        slots,
        log,
        clocks: LeaseClocks { ttl, grace },
        heartbeat_interval,
        agents,
        mirrors,
        prices,
    };
    Ok(Loaded { config, shown })
}

fn entry(key: &str, value: String, origin: Origin) -> Shown {
    Shown {
        key: key.to_owned(),
        value,
        origin,
    }
}

/// Writes a length of time in the largest unit that fits it.
fn written(length: Span) -> String {
    let ms = length.ms();
    match ms {
        _ if ms == 0 || !ms.is_multiple_of(1_000) => format!("{ms}ms"),
        _ if !ms.is_multiple_of(60_000) => format!("{}s", ms / 1_000),
        _ => format!("{}m", ms / 60_000),
    }
}

/// Gives the number of cores that this process may use.
#[must_use]
pub fn cores() -> u32 {
    std::thread::available_parallelism()
        .map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(SLOTS_MAX))
        .min(SLOTS_MAX)
}

/// Gives the folder that holds all state unless `MUSTER_HOME` or `--home` says otherwise:
/// `$XDG_STATE_HOME/muster`, else `~/.local/state/muster`.
///
/// `None` if the environment names neither.
#[must_use]
pub fn default_home() -> Option<PathBuf> {
    let folder = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    folder("XDG_STATE_HOME")
        .or_else(|| folder("HOME").map(|home| home.join(".local/state")))
        .map(|state| state.join("muster"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::AgentKind;

    fn home_with(text: &str) -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join(FILE_NAME), text).unwrap();
        home
    }

    fn none(_: &str) -> Option<OsString> {
        None
    }

    #[test]
    fn a_home_without_a_file_has_the_defaults() {
        let home = tempfile::tempdir().unwrap();
        let loaded = load_with(home.path(), Flags::default(), none).unwrap();
        assert_eq!(loaded.config.listen, LISTEN_DEFAULT);
        assert_eq!(loaded.config.slots, cores());
        assert!(
            loaded
                .shown
                .iter()
                .all(|shown| matches!(shown.origin, Origin::Default | Origin::AsOf { .. }))
        );
    }

    #[test]
    fn flags_win_over_variables_and_variables_over_the_file() {
        let home = home_with("listen = \"127.0.0.1:1\"\nslots = 1\nlog = \"debug\"\n");
        let variable = |name: &str| {
            (name == "MUSTER_SLOTS" || name == "MUSTER_LISTEN").then(|| match name {
                "MUSTER_SLOTS" => "2".into(),
                _ => "127.0.0.1:2".into(),
            })
        };
        let flags = Flags {
            slots: Some(3),
            ..Flags::default()
        };
        let Loaded { config, shown } = load_with(home.path(), flags, variable).unwrap();
        assert_eq!((config.listen.port(), config.slots), (2, 3));
        assert_eq!(config.log, "debug");
        let origins: Vec<String> = shown.iter().map(|shown| shown.origin.to_string()).collect();
        let file = home.path().join(FILE_NAME).display().to_string();
        let third = format!("{file}:3");
        assert_eq!(origins[..3], ["$MUSTER_LISTEN", "--slots", third.as_str()]);
    }

    #[test]
    fn a_run_listens_for_this_machine_alone_unless_its_pools_have_workers_elsewhere() {
        let listen = |pool: &str| {
            let home = home_with(&format!("listen = \"0.0.0.0:7733\"\n{pool}"));
            let loaded = load_with(home.path(), Flags::default(), none).unwrap();
            loaded.config.listen_of_run().to_string()
        };
        assert_eq!(listen(""), "127.0.0.1:0");
        let near = "[pools.near]\nkind = \"local\"\nmax = 1\n";
        assert_eq!(listen(near), "127.0.0.1:0");
        let jobs = "[pools.gpu]\nkind = \"slurm\"\nmax = 1\ntime = \"1h\"\ndirectory = \"/s\"\n";
        assert_eq!(listen(jobs), "0.0.0.0:7733");
    }

    #[test]
    fn agents_are_a_program_or_a_list() {
        let home = home_with(
            "[agents.lint]\nkind = \"command\"\ncommand = [\"lint\", \"--fix\"]\n\
             [agents.big]\nkind = \"codex\"\ncommand = \"codex-big\"\n",
        );
        let config = load_with(home.path(), Flags::default(), none)
            .unwrap()
            .config;
        assert_eq!(
            config.agents["lint"].command.as_deref(),
            Some(&["lint".to_owned(), "--fix".to_owned()][..])
        );
        assert_eq!(config.agents["big"].kind, AgentKind::Codex);
    }

    #[test]
    fn prices_are_built_in_with_their_date_and_a_file_may_say_otherwise() {
        let home = home_with(
            "[prices.\"GPT 5.4\"]\ninput = 3\nreasoning = 0.000001\n\
             [prices.\"my-model\"]\ninput = \"0.1\"\noutput = 0.25\ncached-input = 0\n",
        );
        let Loaded { config, shown } = load_with(home.path(), Flags::default(), none).unwrap();
        let price = |model| config.prices.find(model).unwrap().to_string();
        assert_eq!(
            price("gpt-5.4"),
            "input 3, cached-input 0.25, cache-write 2.5, output 15, reasoning 0.000001 more"
        );
        assert_eq!(
            price("My_Model"),
            "input 0.1, cached-input 0, cache-write 0.1, output 0.25"
        );
        assert!(config.prices.find("her-model").is_none());
        let of = |key: &str| {
            let shown = shown.iter().find(|shown| shown.key == key);
            shown.map(|shown| shown.origin.to_string())
        };
        assert_eq!(of("prices.gpt-5.4"), None);
        let file = home.path().join(FILE_NAME).display().to_string();
        assert_eq!(of("prices.GPT 5.4"), Some(format!("{file}:1")));
        let date = format!("default of {}", prices::BUILT_IN_DATE);
        assert_eq!(of("prices.gpt-5"), Some(date));
    }

    #[test]
    fn the_user_part_of_a_mirrors_address_is_used_and_not_shown() {
        let home = home_with("[mirrors.app]\nurl = \"https://tok3n@host/app.git\"\n");
        let Loaded { config, shown } = load_with(home.path(), Flags::default(), none).unwrap();
        assert_eq!(config.mirrors["app"].url, "https://tok3n@host/app.git");
        let said = format!("{shown:?} {config:?}");
        assert!(said.contains("https://***@host/app.git"), "{said}");
        assert!(!said.contains("tok3n"), "{said}");
    }

    #[test]
    fn pools_have_defaults_and_each_value_is_shown_with_its_origin() {
        let home = home_with(
            "[pools.near]\nkind = \"local\"\nmax = 3\nslots = 2\n\
             [pools.lab]\nkind = \"external\"\nlabels = [\"site=lab\"]\n\
             [pools.big]\nkind = \"slurm\"\nmin = 1\nmax = 40\npriority = -2\n\
             time = \"4h\"\ncpus = 8\nmemory = \"16 GiB\"\ndirectory = \"/shared/muster\"\n\
             resources = { gpus = 2, memory = \"8 GiB\" }\nsetup = [\"export KEY=s3cret\"]\n",
        );
        let Loaded { config, shown } = load_with(home.path(), Flags::default(), none).unwrap();
        let near = &config.pools["near"].policy;
        assert_eq!((near.min, near.max, near.template.slots), (0, 3, 2));
        assert_eq!((near.backlog, near.burst, near.failures_max), (4, 10, 3));
        assert_eq!(near.idle_timeout, Span::from_secs(300));
        assert_eq!(near.join_timeout, Span::from_secs(600));
        let lab = &config.pools["lab"].policy;
        assert_eq!(lab.max, 0);
        assert!(lab.template.labels.contains("site=lab"));
        let big = &config.pools["big"].policy;
        assert_eq!((big.min, big.priority), (1, -2));
        assert_eq!(big.walltime, Some(Span::from_secs(4 * 3600 - 120)));
        let resources: Vec<_> = big.template.resources.iter().collect();
        let resources: Vec<_> = resources.iter().map(|(name, n)| (&***name, **n)).collect();
        assert_eq!(
            resources,
            [("cpus", 8), ("gpus", 2), ("memory_mib", 8 * 1024)]
        );
        let of = |key: &str| {
            let shown = shown.iter().find(|shown| shown.key == key).unwrap();
            let origin = shown.origin.to_string();
            let origin = origin.rsplit('/').next().unwrap_or_default();
            format!("{} {origin}", shown.value)
        };
        assert_eq!(of("pools.near.max"), "3 config.toml:3");
        assert_eq!(of("pools.near.idle-timeout"), "5m default");
        assert_eq!(of("pools.big.quarantine"), "true default");
        assert_eq!(of("pools.big.time"), "4h config.toml:13");
        let said = format!("{shown:?}");
        assert!(!said.contains("s3cret"), "{said}");
    }

    #[test]
    fn a_value_that_makes_no_sense_is_told_with_its_origin() {
        let home = home_with("\nlisten = \"here\"\n");
        let error = load_with(home.path(), Flags::default(), none).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("config.toml:2: `listen` is \"here\": an address"),
            "{text}"
        );

        let home = home_with("log = \"a=b=c\"\n");
        assert!(load_with(home.path(), Flags::default(), none).is_err());

        let home = home_with("lease-ttl = \"6s\"\nheartbeat-interval = \"5s\"\n");
        let error = load_with(home.path(), Flags::default(), none).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("config.toml:2: `heartbeat-interval` is \"5s\": it must fit 3 times"),
            "{text}"
        );

        let variable = |name: &str| (name == "MUSTER_SLOTS").then(|| "many".into());
        let error = load_with(home_with("").path(), Flags::default(), variable).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("$MUSTER_SLOTS: `slots` is \"many\": a number"),
            "{text}"
        );
    }
}
