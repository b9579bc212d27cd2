//! The command line of a worker; also a hidden subcommand of the coordinator's executable.

mod entry;
mod values;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::checks::{Check, Verdict};
use crate::clock::{self, Boottime};
use crate::doctor;
use crate::document::{ApprovalPolicy, AskMode};
use crate::failure::chain;
use crate::identity::{Allocation, StateDir};
use crate::options::{
    CACHE_BYTES_MAX, CHANGE_BYTES_MAX, Coordinator, DISK_BYTES_MAX, Options, Repositories, Wish,
};
use crate::secrets::Secret;
use crate::worker;

use values::{
    Size, agent, allowed, denied, duration, hand_over, label, moment, resource, since_1970, size,
    slots, wip_interval,
};

/// Exit code of a worker that the coordinator refuses: starting it again would not help.
pub const EXIT_REFUSED: u8 = 3;
/// Exit code of a worker that was started with something wrong.
const EXIT_USAGE: u8 = 2;
/// Exit code of a worker that was told a third time to end.
const EXIT_AT_ONCE: i32 = 130;
const AFTER_HELP: &str = "\
Examples:
  worker-agent --coordinator host:7733 --token-file worker.token --slots 4
  worker-agent --coordinator host:7733 --token-file worker.token --check
  worker-agent --coordinator host:7733 --token-file gpu.token --pool gpu \\
      --label gpu=a100 --resource gpus=2 --idle-exit 10m

Exit codes:
    0  it was drained, idle, or left as it was told to
    1  an error that another start may not meet, such as a folder for its state that is in use;
       with --check, something does not work
    2  wrong usage: an option, the token file, or a folder for its state that cannot be one;
       or what no wait mends, such as a git that is missing
    3  the coordinator refuses it: starting it again would not help
  130  ended at once by a third signal";
/// Leases tasks from a coordinator and runs agents.
///
/// The first TERM or INT drains: nothing new is taken and what is held is finished. The second
/// stops the agents, keeps their edits and gives their tasks back. The third ends at once. USR1 says
/// that the machine goes away: as the second TERM, within the time of `--hand-over`.
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
    #[arg(
        long,
        value_name = "FILE",
        env = "MUSTER_TOKEN_FILE",
        required_unless_present = "ec2"
    )]
    token_file: Option<PathBuf>,
    /// This machine is an EC2 instance of `--pool`: join as what its instance profile proves it to be,
    /// without a token, and hand over when the instance is about to be taken away.
    ///
    /// Asks the metadata service, version 2, for that. Needs `--ca-file` and `--pool`.
    #[arg(
        long,
        requires = "ca_file",
        requires = "pool",
        conflicts_with = "token_file"
    )]
    ec2: bool,
    /// File with the certificate of the coordinator's authority (`ca.pem` in its home); with `--ec2`,
    /// since a join token names it itself.
    #[arg(long, value_name = "FILE", requires = "ec2")]
    ca_file: Option<PathBuf>,
    /// Attempts and verifies to hold at once.
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = slots)]
    slots: u32,
    /// When this machine goes away: an RFC 3339 time, or `@` and seconds since 1970.
    ///
    /// In a Slurm job, SLURM_JOB_END_TIME if that is set. `--hand-over` before it the worker stops its
    /// agents, keeps their edits with the coordinator, gives its tasks back and ends; others go on
    /// with them.
    #[arg(long, value_name = "TIME", env = "MUSTER_ENDS_AT", value_parser = moment)]
    ends_at: Option<Timestamp>,
    /// How long before the machine goes away, or after USR1, all of that may take.
    #[arg(long, value_name = "DURATION", env = "MUSTER_HAND_OVER", value_parser = hand_over,
        default_value = "2m")]
    hand_over: Duration,
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
    #[arg(long = "allow-command", value_name = "WORDS", value_parser = allowed)]
    allow: Vec<String>,
    /// Commands of agents that begin with these words are denied, whatever plans allow; may be repeated.
    #[arg(long = "deny-command", value_name = "WORDS", value_parser = denied)]
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
    /// Beyond it, and where attempts on the same disk would have too little room, repositories that were
    /// not used for longest go. What a workspace needs is never removed.
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
    /// Room on disk that each attempt is to find, at most --disk-limit; 0B keeps none.
    ///
    /// Nothing new is taken while the disk lacks it for another attempt besides what those that run may
    /// still take of theirs, and `coordinator workers` and `explain` say so.
    #[arg(long, value_name = "SIZE", env = "MUSTER_DISK_RESERVE", value_parser = size,
        default_value_t = Size(0))]
    disk_reserve: Size,
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
    /// Look whether a worker with these options could do its work here, say so, and end.
    ///
    /// Nothing is leased, and the coordinator is asked whether it takes the token. A worker that starts
    /// makes the quick ones of these checks itself.
    #[arg(long)]
    check: bool,
    /// With --check: say it as JSON.
    #[arg(long, requires = "check")]
    json: bool,
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
    let usage = |text| Failed {
        text,
        code: EXIT_USAGE,
    };
    if arguments.check {
        let json = arguments.json;
        let way_in = arguments.way_in();
        let options = arguments.options(way_in, None).map_err(usage)?;
        return say(&doctor::all(&options).await, json);
    }
    let interrupt = signal(SignalKind::interrupt()).map_err(|error| Failed::of(&error))?;
    let terminate = signal(SignalKind::terminate()).map_err(|error| Failed::of(&error))?;
    let notice = signal(SignalKind::user_defined1()).map_err(|error| Failed::of(&error))?;
    let (wish, wishes) = watch::channel(Wish::Work);
    tokio::spawn(noticed(notice, wish.clone()));
    tokio::spawn(listen(interrupt, terminate, wish.clone()));
    let Some(entry) = arguments.entry(&wish, wishes.clone()).await? else {
        return Ok(());
    };
    let entry::Entry { token, allocation } = entry;
    let options = arguments.options(token, allocation).map_err(usage)?;
    begin(&doctor::at_start(&options).await)?;
    match worker::run(options, wishes).await {
        Ok(ended) => {
            tracing::info!(?ended, "worker ends");
            Ok(())
        }
        Err(error) => Err(Failed::of_worker(&error)),
    }
}

/// Says what checks have found.
fn say(checks: &[Check], json: bool) -> Result<(), Failed> {
    let text = match json {
        true => doctor::json(checks) + "\n",
        false => doctor::text(checks),
    };
    // Whoever closes the pipe wants no more of it.
    let _ = std::io::stdout().write_all(text.as_bytes());
    match doctor::is_ready(checks) {
        true => Ok(()),
        false => Err(Failed {
            text: "a worker could not do its work here".to_owned(),
            code: 1,
        }),
    }
}

/// Tells the log what is not as it should be; fails for what no wait mends.
fn begin(checks: &[Check]) -> Result<(), Failed> {
    for check in checks {
        let Check { name, found, .. } = check;
        let advice = &check.advice;
        match check.verdict {
            Verdict::Ok => {}
            Verdict::Fail if !doctor::may_pass(check) => {
                return Err(Failed {
                    text: format!("{name}: {found}; {advice}"),
                    code: EXIT_USAGE,
                });
            }
            Verdict::Warn | Verdict::Fail => {
                tracing::warn!(
                    check = name,
                    found,
                    advice,
                    "the machine is not as it should be"
                );
            }
        }
    }
    Ok(())
}

/// Turns signals into wishes; each one is a stronger wish.
async fn listen(mut interrupt: Signal, mut terminate: Signal, wish: watch::Sender<Wish>) {
    for stronger in [Wish::Drain, Wish::Leave] {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        wish_for(&wish, stronger);
    }
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    // Supervisors notice that their worker is gone, and end its agents.
    std::process::exit(EXIT_AT_ONCE);
}

/// Waits for the notice that the machine goes away; another one says nothing new.
async fn noticed(mut notice: Signal, wish: watch::Sender<Wish>) {
    loop {
        if notice.recv().await.is_none() {
            return;
        }
        wish_for(&wish, Wish::HandOver);
    }
}

/// Wishes for something unless something stronger was wished for before.
fn wish_for(wish: &watch::Sender<Wish>, new: Wish) {
    wish.send_if_modified(|wish| {
        let is_stronger = new > *wish;
        *wish = new.max(*wish);
        is_stronger
    });
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
    fn coordinator(&self) -> Result<Coordinator, String> {
        match (&self.coordinator, &self.address_file) {
            (_, Some(file)) => {
                let home = file.parent().unwrap_or(Path::new("."));
                Ok(Coordinator::Home(home.to_owned()))
            }
            (Some(address), None) => {
                muster_connect::check_address(address)
                    .map_err(|error| format!("{error}, such as host:7733"))?;
                Ok(Coordinator::Address(address.clone()))
            }
            (None, None) => Err("name the coordinator with --coordinator".to_owned()),
        }
    }

    fn options<T>(self, token: T, allocation: Option<Allocation>) -> Result<Options<T>, String> {
        let coordinator = self.coordinator()?;
        let variable = |name: &str| std::env::var(name).ok();
        let state = match self.state_dir {
            Some(folder) => StateDir::At(folder),
            None => StateDir::find(variable).map_err(|error| chain(&error))?,
        };
        let now = Timestamp::now();
        let ends_at = match self.ends_at {
            Some(end) if end <= now => {
                return Err(format!("--ends-at {end} is over; name a time to come"));
            }
            Some(end) => Some(end),
            None => slurm_end(&variable),
        };
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
            allocation,
            ends_at: ends_at.map(|end| on_boottime(end, now)),
            hand_over: self.hand_over,
            idle_exit: self.idle_exit,
            disk_patience: self.disk_patience,
            // Still this program after its file was replaced by a newer one.
            executable: PathBuf::from("/proc/self/exe"),
            repositories: Repositories::Hosted,
            change_bytes_max: self.change_limit.0,
            cache_bytes_max: self.cache_limit.0,
            disk_bytes_max: self.disk_limit.0,
            disk_reserve_bytes: self.disk_reserve.0.min(self.disk_limit.0),
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

/// When the Slurm job ends that this runs in, if Slurm says so; older ones do not.
fn slurm_end(variable: &impl Fn(&str) -> Option<String>) -> Option<Timestamp> {
    variable("SLURM_JOB_ID").filter(|job| !job.is_empty())?;
    let end = variable("SLURM_JOB_END_TIME")?.parse().ok()?;
    since_1970(end)
}

/// Gives a moment of the wall clock on the clock that all deadlines are kept by: what the wall clock
/// does later changes nothing.
fn on_boottime(moment: Timestamp, now: Timestamp) -> Boottime {
    let wait = moment.duration_since(now);
    clock::now().after(Duration::try_from(wait).unwrap_or_default())
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
    fn rules_that_no_command_fits_are_refused() {
        assert_eq!(denied("./y.sh -f"), Ok("./y.sh -f".to_owned()));
        assert_eq!(allowed("git log 'x'"), Ok("git log 'x'".to_owned()));
        for wrong in ["", " ", "curl | sh", "rm; ls", "$HOME/x", "a\nb", "a > b"] {
            for checked in [denied(wrong), allowed(wrong)] {
                assert!(checked.unwrap_err().contains("one command"), "{wrong:?}");
            }
        }
        let quoted = denied("rm 'a b'").unwrap_err();
        assert!(quoted.contains("\"'\""), "{quoted}");
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
    fn the_end_of_a_machine_is_a_time_in_words_or_in_seconds() {
        let expected = Timestamp::from_second(1_795_284_000);
        let told = moment("@1795284000").unwrap();
        assert_eq!(Ok(told), expected.map_err(|_| ()));
        assert_eq!(moment(&told.to_string()), Ok(told));
        for wrong in ["", "@", "@x", "1795284000", "18:00", "@99999999999999999"] {
            assert!(
                moment(wrong).unwrap_err().contains("write it as"),
                "{wrong}"
            );
        }
        let in_an_hour = told + jiff::SignedDuration::from_hours(1);
        let wait = on_boottime(in_an_hour, told).since(clock::now());
        assert!(wait > Duration::from_secs(3_590) && wait <= Duration::from_secs(3_600));
        assert!(on_boottime(told, in_an_hour) <= clock::now());
    }

    #[test]
    fn a_slurm_job_that_knows_its_end_tells_it() {
        let set = |known: &'static [(&str, &str)]| {
            slurm_end(&|name: &str| {
                let found = known.iter().find(|(set, _)| *set == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(set(&[]), None);
        assert_eq!(set(&[("SLURM_JOB_ID", "7")]), None);
        assert_eq!(
            set(&[("SLURM_JOB_ID", ""), ("SLURM_JOB_END_TIME", "5")]),
            None
        );
        assert_eq!(
            set(&[("SLURM_JOB_ID", "7"), ("SLURM_JOB_END_TIME", "soon")]),
            None
        );
        let known = set(&[("SLURM_JOB_ID", "7"), ("SLURM_JOB_END_TIME", "1795284000")]);
        assert_eq!(known, moment("@1795284000").ok());
    }

    #[test]
    fn a_weaker_wish_changes_nothing() {
        let (wish, wishes) = watch::channel(Wish::Work);
        for (new, expected) in [
            (Wish::HandOver, Wish::HandOver),
            (Wish::Drain, Wish::HandOver),
            (Wish::Leave, Wish::Leave),
            (Wish::HandOver, Wish::Leave),
        ] {
            wish_for(&wish, new);
            assert_eq!(*wishes.borrow(), expected);
        }
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
