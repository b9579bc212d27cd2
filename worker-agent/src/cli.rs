//! The command line of a worker; also a hidden subcommand of the coordinator's executable.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::document::{ApprovalPolicy, AskMode};
use crate::failure::chain;
use crate::identity::StateDir;
use crate::options::{
    CACHE_BYTES_MAX, CHANGE_BYTES_MAX, Coordinator, DISK_BYTES_MAX, Options, Repositories, Wish,
};
use crate::secrets::Secret;
use crate::worker;

/// Exit code of a worker that the coordinator refuses: starting it again would not help.
pub const EXIT_REFUSED: u8 = 3;
/// Exit code of a worker that was started with something wrong.
const EXIT_USAGE: u8 = 2;
/// Exit code of a worker that was told a third time to end.
const EXIT_AT_ONCE: i32 = 130;
/// More processes on one machine are a typing error.
const SLOTS_MAX: u32 = 4_096;
const AFTER_HELP: &str = "\
Examples:
  worker-agent --coordinator host:7733 --token-file worker.token --slots 4
  worker-agent --coordinator host:7733 --token-file gpu.token --pool gpu \\
      --label gpu=a100 --resource gpus=2 --idle-exit 10m

Exit codes:
    0  it was drained or left as it was told to
    1  an error that another start may not meet, such as a folder for its state that is in use
    2  wrong usage: an option, the token file, or a folder for its state that cannot be one
    3  the coordinator refuses it: starting it again would not help
  130  ended at once by a third signal";
/// Units of sizes, largest first.
const SIZE_UNITS: [(&str, u64); 4] = [
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];
/// Pool managers may remove a variable's value by setting it to nothing.
const ALLOCATION_VARIABLES: [&str; 2] = ["MUSTER_ALLOCATION", "SLURM_JOB_ID"];

/// Leases tasks from a coordinator and runs agents.
///
/// The first TERM or INT drains: nothing new is taken and what is held is finished. The second
/// stops the agents, keeps their edits and gives their tasks back. The third ends at once.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = AFTER_HELP)]
pub struct WorkerArgs {
    /// Where the coordinator is.
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "MUSTER_COORDINATOR",
        required_unless_present = "address_file"
    )]
    coordinator: Option<String>,
    /// File that says where the local coordinator is; read again at each connection. It comes
    /// before `--coordinator`, which a person's environment may set.
    #[arg(long, value_name = "FILE", hide = true)]
    address_file: Option<PathBuf>,
    /// File with the join token.
    #[arg(long, value_name = "FILE", env = "MUSTER_TOKEN_FILE")]
    token_file: PathBuf,
    /// Attempts and verifies to hold at once.
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = slots)]
    slots: u32,
    /// Folder for the worker's state.
    ///
    /// Default: the node's scratch in a Slurm job, else the first free place in the `worker`
    /// folder of MUSTER_HOME or of the platform's state folder.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Label that tasks can ask for; may be repeated.
    #[arg(long = "label", value_name = "KEY[=VALUE]", value_parser = label)]
    labels: Vec<String>,
    /// Amount that tasks can ask for, such as `cpus=4`; may be repeated.
    #[arg(long = "resource", value_name = "NAME=AMOUNT", value_parser = resource)]
    resources: Vec<(String, u64)>,
    /// Pool that the token must be for.
    #[arg(long, value_name = "POOL", default_value = "")]
    pool: String,
    /// End after holding nothing for so long, such as `90s`, `10m` or `2h`.
    #[arg(long, value_name = "DURATION", visible_alias = "ephemeral", value_parser = duration)]
    idle_exit: Option<Duration>,
    /// How often the unfinished edits of a running attempt are kept with the coordinator.
    #[arg(long, value_name = "DURATION", value_parser = wip_interval, default_value = "45s")]
    wip_interval: Duration,
    /// How an agent is started here: NAME=PROGRAM or NAME='PROGRAM ARGUMENT …'; may be repeated.
    ///
    /// NAME is a built-in agent, or one that plans or the coordinator declare. It adds no name: of what
    /// nobody declares nothing is started. Words are separated by spaces.
    #[arg(long = "agent", value_name = "NAME=COMMAND", value_parser = agent)]
    agents: Vec<(String, Vec<String>)>,
    /// What agents ask that no plan answers here: nothing, changes outside of the work tree, or all.
    ///
    /// The stricter of this and a task's own `approvals` holds; with `outside` or `always` the plan's
    /// `allow` counts for nothing.
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = Approvals::Never)]
    approvals: Approvals,
    /// Commands of agents that begin with these words are allowed without a person; may be repeated.
    #[arg(long = "allow-command", value_name = "WORDS")]
    allow: Vec<String>,
    /// Commands of agents that begin with these words are denied, whatever plans allow; may be repeated.
    #[arg(long = "deny-command", value_name = "WORDS")]
    deny: Vec<String>,
    /// Most bytes of new and changed files in the result of one attempt, such as `800MB` or `2GB`.
    ///
    /// An attempt that leaves more fails as `change_too_large`, and what it left is kept on the
    /// worker. Ignored files do not count.
    #[arg(long, value_name = "SIZE", env = "MUSTER_CHANGE_LIMIT", value_parser = size,
        default_value_t = Size(CHANGE_BYTES_MAX))]
    change_limit: Size,
    /// Most bytes that the cache of repositories, shared by the workers of a host, takes on disk.
    ///
    /// Beyond it, repositories that were not used for longest go. What a workspace needs is never
    /// removed.
    #[arg(long, value_name = "SIZE", env = "MUSTER_CACHE_LIMIT", value_parser = size,
        default_value_t = Size(CACHE_BYTES_MAX))]
    cache_limit: Size,
    /// Most bytes that an attempt's work tree and temporary files may take on disk.
    ///
    /// A task's own `disk` can be less, and never more. Looked at every few seconds, so it is no quota. An attempt that takes more is stopped and
    /// fails as `disk_allowance`.
    #[arg(long, value_name = "SIZE", env = "MUSTER_DISK_LIMIT", value_parser = size,
        default_value_t = Size(DISK_BYTES_MAX))]
    disk_limit: Size,
    /// Value that tasks may have as a variable: NAME=FILE, NAME=env:VARIABLE, or NAME alone for the
    /// variable of that name; may be repeated.
    ///
    /// Tasks ask for it under `secrets` or `env`. It is looked up when a task starts and masked in
    /// whatever the task prints. Nothing that is not listed here is given to any task.
    #[arg(
        long = "secret",
        value_name = "NAME[=PLACE]",
        env = "MUSTER_SECRETS",
        value_delimiter = ','
    )]
    secrets: Vec<Secret>,
    /// End, and so give up the leases held, after the disk of the state has failed for so long.
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = duration)]
    disk_patience: Duration,
}

/// A number of bytes, written as people write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = SIZE_UNITS
            .iter()
            .find(|(_, bytes)| self.0 != 0 && self.0.is_multiple_of(*bytes));
        match unit {
            Some((name, bytes)) => write!(out, "{}{name}", self.0 / bytes),
            None => write!(out, "{}B", self.0),
        }
    }
}

/// Runs a worker as the arguments say, from a `main` without a runtime.
///
/// The executable must call [`crate::supervisor::dispatch`] before anything else.
pub fn main(arguments: WorkerArgs) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let ended = match runtime {
        Ok(runtime) => {
            let ended = runtime.block_on(run(arguments));
            // A disk that hangs must not keep a worker that has nothing more to say.
            runtime.shutdown_timeout(Duration::from_secs(5));
            ended
        }
        Err(error) => Err(Failed {
            text: format!("cannot start threads: {error}"),
            code: 1,
        }),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed { text, code }) => {
            // If there is no standard error there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "error: {text}");
            ExitCode::from(code)
        }
    }
}

struct Failed {
    text: String,
    code: u8,
}

impl Failed {
    fn of(error: &dyn std::error::Error) -> Self {
        Self {
            text: chain(error),
            code: 1,
        }
    }

    fn of_worker(error: &worker::Error) -> Self {
        let said = Self::of(error);
        match error {
            worker::Error::Refused(_) => Self {
                code: EXIT_REFUSED,
                ..said
            },
            worker::Error::Identity(error) => Self {
                text: match error.way_out() {
                    Some(way_out) => format!("{}; {way_out}", said.text),
                    None => said.text,
                },
                code: if error.is_lasting() { EXIT_USAGE } else { 1 },
            },
            _ => said,
        }
    }
}

async fn run(arguments: WorkerArgs) -> Result<(), Failed> {
    let options = arguments.options().map_err(|text| Failed {
        text,
        code: EXIT_USAGE,
    })?;
    let interrupt = signal(SignalKind::interrupt()).map_err(|error| Failed::of(&error))?;
    let terminate = signal(SignalKind::terminate()).map_err(|error| Failed::of(&error))?;
    let (wish, wishes) = watch::channel(Wish::Work);
    tokio::spawn(listen(interrupt, terminate, wish));
    match worker::run(options, wishes).await {
        Ok(ended) => {
            tracing::info!(?ended, "worker ends");
            Ok(())
        }
        Err(error) => Err(Failed::of_worker(&error)),
    }
}

/// Turns signals into wishes; each one is a stronger wish.
async fn listen(mut interrupt: Signal, mut terminate: Signal, wish: watch::Sender<Wish>) {
    for stronger in [Wish::Drain, Wish::Leave] {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        wish.send_replace(stronger);
    }
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    // Supervisors notice that their worker is gone, and end its agents.
    std::process::exit(EXIT_AT_ONCE);
}

/// When a person is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Approvals {
    /// Only where the task says so
    Never,
    /// About what is not a change within the work tree
    Outside,
    /// About everything
    Always,
}

impl WorkerArgs {
    fn options(self) -> Result<Options, String> {
        let token = muster_connect::read_token_file(&self.token_file).map_err(|e| chain(&e))?;
        let coordinator = match (self.coordinator, self.address_file) {
            (_, Some(file)) => {
                let home = file.parent().unwrap_or(Path::new("."));
                Coordinator::Home(home.to_owned())
            }
            (Some(address), None) => {
                muster_connect::check_address(&address)
                    .map_err(|error| format!("{error}, such as host:7733"))?;
                Coordinator::Address(address)
            }
            (None, None) => return Err("name the coordinator with --coordinator".to_owned()),
        };
        let variable = |name: &str| std::env::var(name).ok();
        let state = match self.state_dir {
            Some(folder) => StateDir::At(folder),
            None => StateDir::find(variable).map_err(|error| chain(&error))?,
        };
        let set = |name: &&str| variable(name).filter(|value| !value.is_empty());
        let mut resources = BTreeMap::new();
        for (name, amount) in self.resources {
            if resources.insert(name.clone(), amount).is_some() {
                return Err(format!("--resource {name} is given twice"));
            }
        }
        let mut agents = BTreeMap::new();
        for (name, command) in self.agents {
            if agents.insert(name.clone(), command).is_some() {
                return Err(format!("--agent {name} is given twice"));
            }
        }
        Ok(Options {
            coordinator,
            token,
            slots: self.slots,
            state,
            labels: self.labels,
            resources,
            pool: self.pool,
            allocation: ALLOCATION_VARIABLES.iter().find_map(set),
            idle_exit: self.idle_exit,
            disk_patience: self.disk_patience,
            // Still this program after its file was replaced by a newer one.
            executable: PathBuf::from("/proc/self/exe"),
            repositories: Repositories::Hosted,
            change_bytes_max: self.change_limit.0,
            cache_bytes_max: self.cache_limit.0,
            disk_bytes_max: self.disk_limit.0,
            secrets: self.secrets,
            wip_interval: Some(self.wip_interval),
            agents,
            approvals: ApprovalPolicy {
                ask: match self.approvals {
                    Approvals::Never => AskMode::Never,
                    Approvals::Outside => AskMode::Outside,
                    Approvals::Always => AskMode::Always,
                },
                allow: self.allow,
                deny: self.deny,
            },
        })
    }
}

fn slots(text: &str) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|slots| (1..=SLOTS_MAX).contains(slots))
        .ok_or_else(|| format!("a whole number from 1 to {SLOTS_MAX} is needed"))
}

fn label(text: &str) -> Result<String, String> {
    let key = text.split('=').next().unwrap_or_default();
    if key.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(
            "write it as key or key=value, without spaces: plans ask for no other".to_owned(),
        );
    }
    Ok(text.to_owned())
}

fn resource(text: &str) -> Result<(String, u64), String> {
    let (name, amount) = text.split_once('=').ok_or("write it as name=amount")?;
    if name.is_empty() {
        return Err("the name is missing".to_owned());
    }
    let amount = amount
        .parse()
        .map_err(|_| format!("{amount:?} is not a whole number"))?;
    Ok((name.to_owned(), amount))
}

fn size(text: &str) -> Result<Size, String> {
    const HOW: &str = "write it as 500kB, 800MB or 2GB";
    let digits = text.trim_end_matches(|character: char| !character.is_ascii_digit());
    let number: u64 = digits.parse().map_err(|_| HOW.to_owned())?;
    let unit = text.get(digits.len()..).unwrap_or_default().trim();
    let known = SIZE_UNITS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit));
    let (_, bytes) = known.ok_or(HOW)?;
    number
        .checked_mul(*bytes)
        .map(Size)
        .ok_or_else(|| "that is more than any disk has".to_owned())
}

fn wip_interval(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|interval| {
        let allowed = Duration::from_secs(1)..=Duration::from_secs(600);
        let checked = allowed.contains(&interval).then_some(interval);
        checked.ok_or_else(|| "from 1s to 10m is allowed".to_owned())
    })
}

fn agent(text: &str) -> Result<(String, Vec<String>), String> {
    let (name, command) = text.split_once('=').unwrap_or_default();
    let command: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
    if name.is_empty() || command.is_empty() {
        return Err("write it as NAME=PROGRAM, such as codex=/opt/codex/bin/codex".to_owned());
    }
    Ok((name.to_owned(), command))
}

fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let number: u64 = digits
        .parse()
        .map_err(|_| "write it as 90s, 10m or 2h".to_owned())?;
    let unit = match text.get(digits.len()..) {
        Some("s") => 1,
        Some("m") => 60,
        Some("h") => 3_600,
        Some("d") => 86_400,
        _ => return Err("write it as 90s, 10m or 2h".to_owned()),
    };
    Ok(Duration::from_secs(number.saturating_mul(unit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_those_that_plans_can_ask_for() {
        assert_eq!(label("gpu=a100"), Ok("gpu=a100".to_owned()));
        for wrong in ["", "=a", "a b", "a\u{1b}[31m"] {
            assert!(label(wrong).unwrap_err().contains("key=value"), "{wrong:?}");
        }
    }

    #[test]
    fn sizes_need_a_unit() {
        assert_eq!(size("800MB"), Ok(Size(800_000_000)));
        assert_eq!(size("2 gb"), Ok(Size(2_000_000_000)));
        for wrong in ["", "5", "MB", "5x", "-1MB", "1.5GB", "99999999999999999GB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert_eq!(Size(256_000_000).to_string(), "256MB");
        assert_eq!(Size(1_500).to_string(), "1500B");
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7_200)));
        for wrong in ["", "5", "m", "5x", "-1s", "1.5h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn resources_are_named_amounts() {
        assert_eq!(resource("cpus=4"), Ok(("cpus".to_owned(), 4)));
        for wrong in ["cpus", "=4", "cpus=four", "cpus=-1"] {
            assert!(resource(wrong).is_err(), "{wrong}");
        }
    }
}
