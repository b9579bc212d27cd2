//! The configuration of a coordinator: defaults, then `config.toml` in the home, then `MUSTER_*`
//! variables, then options of the command line.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use coordinator_core::Span;
use coordinator_core::state::LeaseClocks;
use muster_connect::private_file;
use serde::{Deserialize, Serialize};

use crate::plan::{AgentDefinition, AgentKind, Duration};

/// Name of the file in the home.
pub const FILE_NAME: &str = "config.toml";
/// Where `serve` listens unless told otherwise: only programs of this machine reach it there.
pub const LISTEN_DEFAULT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7733);
/// What the log holds unless told otherwise.
pub const LOG_DEFAULT: &str = "info";

const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Two may get lost before a lease ends.
const HEARTBEATS: u64 = 3;
/// However long leases live, this is how soon a dead worker shows in lists.
const HEARTBEAT_MS_MAX: u64 = 10_000;
/// More processes on one machine are a typing error.
const SLOTS_MAX: u32 = 4096;

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
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "from", content = "name")]
pub enum Origin {
    /// Nobody has said anything else.
    Default,
    /// The configuration file.
    File(PathBuf),
    /// This variable of the environment.
    Environment(&'static str),
    /// This option of the command line.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => formatter.write_str("default"),
            Self::File(path) => write!(formatter, "{}", path.display()),
            Self::Environment(name) => write!(formatter, "${name}"),
            Self::Flag(name) => formatter.write_str(name),
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
    /// The file is not what it should be; the text names line and column.
    #[error("the configuration file {} is wrong: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        what: String,
    },
    /// A value makes no sense.
    #[error("{key} = {value:?} (from {origin}): {reason}")]
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

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    listen: Option<String>,
    slots: Option<u32>,
    log: Option<String>,
    lease_ttl: Option<String>,
    lease_grace: Option<String>,
    heartbeat_interval: Option<String>,
    #[serde(default)]
    agents: BTreeMap<String, FileAgent>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileAgent {
    kind: AgentKind,
    command: Option<Program>,
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "a program, or a list of a program and its arguments"
)]
enum Program {
    Alone(String),
    WithArguments(Vec<String>),
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
    let file = read(&path)?;
    let text_of = |name: &'static str| {
        variable(name)
            .filter(|value| !value.is_empty())
            .map(|value| {
                (
                    value.to_string_lossy().into_owned(),
                    Origin::Environment(name),
                )
            })
    };
    let pick = |flag: Option<(String, Origin)>, name, in_file: Option<String>, default: String| {
        flag.or_else(|| text_of(name))
            .or_else(|| in_file.map(|value| (value, Origin::File(path.clone()))))
            .unwrap_or((default, Origin::Default))
    };
    let mut shown = Vec::new();

    let flag = flags
        .listen
        .map(|listen| (listen.to_string(), Origin::Flag("--listen")));
    let (value, origin) = pick(
        flag,
        "MUSTER_LISTEN",
        file.listen,
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
        .map(|slots| (slots.to_string(), Origin::Flag("--slots")));
    let in_file = file.slots.map(|slots| slots.to_string());
    let (value, origin) = pick(flag, "MUSTER_SLOTS", in_file, cores().to_string());
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

    let (log, origin) = pick(None, "MUSTER_LOG", file.log, LOG_DEFAULT.to_owned());
    if let Err(error) = tracing_subscriber::EnvFilter::builder().parse(&log) {
        return Err(Error::Value {
            key: "log",
            value: log,
            origin,
            reason: error.to_string(),
        });
    }
    shown.push(entry("log", log.clone(), origin));

    let usual = LeaseClocks::default();
    let mut span = |key: &'static str, name, in_file, default: Span| {
        let (value, origin) = pick(None, name, in_file, written(default));
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
    let ttl = span("lease-ttl", "MUSTER_LEASE_TTL", file.lease_ttl, usual.ttl)?;
    let grace = span(
        "lease-grace",
        "MUSTER_LEASE_GRACE",
        file.lease_grace,
        usual.grace,
    )?;
    let heartbeat_usual = Span::from_ms((ttl.ms() / HEARTBEATS).clamp(1, HEARTBEAT_MS_MAX));
    let heartbeat_interval = span(
        "heartbeat-interval",
        "MUSTER_HEARTBEAT_INTERVAL",
        file.heartbeat_interval,
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
                "it must fit {HEARTBEATS} times into lease-ttl, {} ms",
                ttl.ms()
            ),
        });
    }

    let mut agents = BTreeMap::new();
    for (name, FileAgent { kind, command }) in file.agents {
        let command = command.map(|program| match program {
            Program::Alone(program) => vec![program],
            Program::WithArguments(words) => words,
        });
        let what = match &command {
            Some(words) => format!("{}: {}", kind.as_str(), words.join(" ")),
            None => kind.as_str().to_owned(),
        };
        if command
            .as_ref()
            .is_some_and(|words| words.first().is_none_or(String::is_empty))
        {
            return Err(Error::File {
                path,
                what: format!("agents.{name}.command is empty"),
            });
        }
        shown.push(Shown {
            key: format!("agents.{name}"),
            value: what,
            origin: Origin::File(path.clone()),
        });
        agents.insert(name, AgentDefinition { kind, command });
    }
    let config = Config {
        listen,
        slots,
        log,
        clocks: LeaseClocks { ttl, grace },
        heartbeat_interval,
        agents,
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

fn read(path: &Path) -> Result<File, Error> {
    let bytes = match private_file::read_bounded(path, FILE_BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(File::default()),
        Err(source) => {
            let path = path.to_owned();
            return Err(Error::Read { path, source });
        }
    };
    let wrong = |what: String| Error::File {
        path: path.to_owned(),
        what,
    };
    let text = std::str::from_utf8(&bytes).map_err(|error| wrong(error.to_string()))?;
    toml::from_str(text).map_err(|error| wrong(error.to_string().trim_end().to_owned()))
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
                .all(|shown| shown.origin == Origin::Default)
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
        assert_eq!(origins[..3], ["$MUSTER_LISTEN", "--slots", file.as_str()]);
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
    fn what_is_wrong_with_a_configuration_is_said_with_its_place() {
        let home = home_with("slots = 2\nslot = 3\n");
        let error = load_with(home.path(), Flags::default(), none).unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
        assert!(
            error.to_string().contains("unknown field `slot`"),
            "{error}"
        );

        let home = home_with("listen = \"here\"\n");
        let error = load_with(home.path(), Flags::default(), none).unwrap_err();
        assert!(
            error.to_string().contains("listen = \"here\" (from /"),
            "{error}"
        );

        let home = home_with("log = \"a=b=c\"\n");
        assert!(load_with(home.path(), Flags::default(), none).is_err());
    }
}
