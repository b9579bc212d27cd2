//! Measures what Muster adds to a coding agent: the time from a lease to the agent's first call of its
//! model, beside that of the bare program, and the memory that the worker takes for each running attempt,
//! beside that of the agent.
//!
//! The programs are the real ones, where they are; their provider is on this host and made up. Figures are
//! printed and never judged: they are of the profile that this program was built with, and of a machine
//! that should have nothing else to do.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use muster_tests::cluster::{Cluster, Programs};
use muster_tests::fakes::{Anthropic, OpenAi, Served};
use muster_tests::figures::{percentile, spread};
use muster_tests::repository::Repository;
use muster_tests::{agents, wait};

/// Measures what Muster adds to a coding agent.
#[derive(Debug, Parser)]
#[command(name = "overhead")]
struct Arguments {
    /// Starts of each kind that are measured; their order alternates.
    #[arg(long, default_value_t = 10)]
    times: usize,
    /// Attempts at once of which memory is measured
    #[arg(long, default_value_t = 4)]
    attempts: u32,
}

const KEY: &str = "sk-made-up";
/// A prompt that is answered at once, and one whose answer never ends.
const SHORT: &str = "[[say:hello]]";
const ENDLESS: &str = "[[fault:hang always]]";

fn main() -> ExitCode {
    match measure(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("overhead: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// An agent with its provider.
trait Subject {
    fn kind(&self) -> &'static str;
    /// Variables that lead the worker's, or the bare, program to the provider.
    fn variables(&self) -> Vec<(String, String)>;
    /// Calls that its provider has heard.
    fn served(&self) -> Vec<Served>;
    /// The bare program with a prompt.
    fn bare(&self, folder: &Path) -> Command;
}

struct Codex {
    program: PathBuf,
    home: PathBuf,
    provider: OpenAi,
}

impl Subject for Codex {
    fn kind(&self) -> &'static str {
        "codex"
    }

    fn variables(&self) -> Vec<(String, String)> {
        [
            ("CODEX_BIN", self.program.display().to_string()),
            ("CODEX_HOME", self.home.display().to_string()),
            ("OPENAI_API_KEY", KEY.to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    fn served(&self) -> Vec<Served> {
        self.provider.served()
    }

    fn bare(&self, folder: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["exec", "--json", "--skip-git-repo-check", "-C"]);
        command.arg(folder).args(["--", SHORT]);
        command
    }
}

struct Claude {
    program: PathBuf,
    home: PathBuf,
    provider: Anthropic,
}

impl Subject for Claude {
    fn kind(&self) -> &'static str {
        "claude"
    }

    fn variables(&self) -> Vec<(String, String)> {
        let mut variables = self.provider.settings();
        variables.push(("CLAUDE_BIN".to_owned(), self.program.display().to_string()));
        variables.push((
            "CLAUDE_CONFIG_DIR".to_owned(),
            self.home.display().to_string(),
        ));
        variables
    }

    fn served(&self) -> Vec<Served> {
        self.provider.served()
    }

    fn bare(&self, folder: &Path) -> Command {
        let mut command = Command::new(&self.program);
        let output = ["-p", "--output-format", "stream-json", "--verbose"];
        command.args(output).args(["--", SHORT]).current_dir(folder);
        command
    }
}

fn measure(arguments: &Arguments) -> Result<()> {
    let programs = Programs::beside_this()?;
    // Codex makes no helpers of itself in a home below the system's temporary folder.
    let homes = tempfile::Builder::new()
        .prefix("muster-overhead-")
        .tempdir_in("/var/tmp")?;
    match agents::codex(&programs.source) {
        Ok(program) => {
            let provider = OpenAi::start()?;
            let home = homes.path().join("codex");
            provider.write_settings(&home)?;
            compare(
                &Codex {
                    program,
                    home,
                    provider,
                },
                &programs,
                arguments,
            )?;
        }
        Err(why) => say(&why),
    }
    match agents::claude(&programs.source) {
        Ok(program) => {
            let provider = Anthropic::start()?;
            let home = homes.path().join("claude");
            std::fs::create_dir_all(&home)?;
            compare(
                &Claude {
                    program,
                    home,
                    provider,
                },
                &programs,
                arguments,
            )?;
        }
        Err(why) => say(&why),
    }
    Ok(())
}

fn compare(subject: &dyn Subject, programs: &Programs, arguments: &Arguments) -> Result<()> {
    let kind = subject.kind();
    let mut cluster = Cluster::new(programs, None)?;
    let mine = Repository::foreign(&cluster.folder().join("user/app"), &cluster.logs(), 30)?;
    cluster.serve()?;
    let mut worker = cluster.worker(kind, &cluster.address(), arguments.attempts)?;
    for (name, value) in subject.variables() {
        worker = worker.var(&name, value);
    }
    let worker = cluster.start_described(&worker, kind)?;
    let id = worker.id()?.as_raw_nonzero().get();
    // The first start of each is of caches that are empty.
    start_bare(subject, mine.path())?;
    start_leased(subject, &cluster, mine.path())?;
    let (mut bare, mut leased) = (Vec::new(), Vec::new());
    for _ in 0..arguments.times {
        bare.push(start_bare(subject, mine.path())?);
        leased.push(start_leased(subject, &cluster, mine.path())?);
    }
    say(&format!(
        "{kind}: start of the bare program to its first call: {}",
        spread(&mut bare)
    ));
    say(&format!(
        "{kind}: lease to its first call:                     {}",
        spread(&mut leased)
    ));
    let (bare, leased) = (percentile(&bare, 50), percentile(&leased, 50));
    let (differs, by) = match leased.checked_sub(bare) {
        Some(more) => ("more", more),
        None => ("less", bare.saturating_sub(leased)),
    };
    say(&format!(
        "{kind}: the median lease, workspace included, takes {by:.2?} {differs} than the bare program"
    ));
    memory(subject, &cluster, mine.path(), id, arguments.attempts)
}

/// Gives how many conversations have called with a prompt. Calls are not counted: an agent may make
/// some beside its turn, and makes one again that broke off.
fn callers(subject: &dyn Subject, prompt: &str) -> usize {
    let served = subject.served();
    let scenario = prompt.trim_matches(['[', ']']);
    let callers = served.iter().filter(|call| call.scenario == scenario);
    let callers: BTreeSet<&str> = callers.map(|call| call.conversation.as_str()).collect();
    callers.len()
}

/// Waits until so many conversations have called.
fn called(subject: &dyn Subject, prompt: &str, by: usize) -> Result<()> {
    let deadline = Instant::now() + wait::LONG;
    while callers(subject, prompt) < by {
        if Instant::now() > deadline {
            bail!("{} did not call its model", subject.kind());
        }
        // Fine enough for figures of tenths of a second, and leaves the core to what is measured.
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn start_bare(subject: &dyn Subject, folder: &Path) -> Result<Duration> {
    let before = callers(subject, SHORT);
    let began = Instant::now();
    let mut child = subject
        .bare(folder)
        .envs(subject.variables())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start the bare program")?;
    called(subject, SHORT, before + 1)?;
    let took = began.elapsed();
    child.wait()?;
    Ok(took)
}

fn plan(
    cluster: &Cluster,
    subject: &dyn Subject,
    folder: &Path,
    prompt: &str,
    tasks: u32,
) -> Result<PathBuf> {
    let mut text = format!(
        "repo: {}\ndefaults: {{ agent: {}, change: optional, timeout: 10m }}\ntasks:\n",
        folder.display(),
        subject.kind()
    );
    for task in 0..tasks {
        text.push_str(&format!("  - {{ name: t{task}, prompt: '{prompt}' }}\n"));
    }
    cluster.write_plan("overhead.yaml", &text)
}

fn start_leased(subject: &dyn Subject, cluster: &Cluster, folder: &Path) -> Result<Duration> {
    let plan = plan(cluster, subject, folder, SHORT, 1)?;
    let before = callers(subject, SHORT);
    let run = cluster.submit(&plan)?;
    called(subject, SHORT, before + 1)?;
    let called_at = SystemTime::now();
    let status = cluster.ended(&run)?;
    let attempt = status.attempts("t0")?.last().context("no attempt")?;
    let granted = attempt["granted_at"].as_str().context("no grant")?;
    let granted: jiff::Timestamp = granted.parse()?;
    let took = called_at.duration_since(granted.into());
    took.context("the clock of this host was set back")
}

/// Prints what the worker, with guards and supervisors, and its agents take for each attempt that runs.
fn memory(
    subject: &dyn Subject,
    cluster: &Cluster,
    folder: &Path,
    worker: i32,
    attempts: u32,
) -> Result<()> {
    // The last attempt's processes may be on their way out.
    let deadline = Instant::now() + wait::LONG;
    let idle = loop {
        let taken = Memory::of(worker)?;
        if taken.processes == 1 {
            break taken;
        }
        ensure!(
            Instant::now() < deadline,
            "the worker does not come to rest"
        );
        std::thread::sleep(Duration::from_millis(10));
    };
    let plan = plan(cluster, subject, folder, ENDLESS, attempts)?;
    let run = cluster.submit(&plan)?;
    called(subject, ENDLESS, usize::try_from(attempts)?)?;
    let busy = Memory::of(worker)?;
    cluster.ask(["cancel", &run])?.success()?;
    cluster.ended(&run)?;
    let each = |kib: u64| kib / u64::from(attempts.max(1));
    say(&format!(
        "{}: worker {} KiB idle; with {attempts} attempts {} KiB, guards and supervisors included: {} KiB each, beside {} KiB of each agent",
        subject.kind(),
        idle.ours_kib,
        busy.ours_kib,
        each(busy.ours_kib.saturating_sub(idle.ours_kib)),
        each(busy.others_kib),
    ));
    Ok(())
}

/// What a worker and all its descendants take: proportional memory, in which what several share is
/// counted once.
#[derive(Default)]
struct Memory {
    /// The worker's program: itself, guards and supervisors.
    ours_kib: u64,
    /// Any other program: agents and what they start.
    others_kib: u64,
    processes: usize,
}

impl Memory {
    fn of(worker: i32) -> Result<Self> {
        let program = std::fs::read_link(format!("/proc/{worker}/exe"))?;
        let mut taken = Self::default();
        for process in tree(worker)? {
            let folder = PathBuf::from(format!("/proc/{process}"));
            let read = std::fs::read_link(folder.join("exe"))
                .and_then(|exe| Ok((exe, std::fs::read_to_string(folder.join("smaps_rollup"))?)));
            let (exe, rollup) = match read {
                Ok(read) => read,
                // It has ended meanwhile.
                Err(_) if !folder.exists() => continue,
                Err(error) => return Err(error).context(format!("read memory of {process}")),
            };
            let line = rollup.lines().find(|line| line.starts_with("Pss:"));
            let kib = line.and_then(|line| line.split_whitespace().nth(1));
            let kib: u64 = kib.context("the kernel tells no memory")?.parse()?;
            taken.processes += 1;
            if exe == program {
                taken.ours_kib += kib;
            } else {
                taken.others_kib += kib;
            }
        }
        Ok(taken)
    }
}

/// Gives a process and all its descendants.
fn tree(root: i32) -> Result<Vec<i32>> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        let Some(process) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One that has ended meanwhile has no line.
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // Behind the name, which may hold anything, come the state and the parent.
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| {
            let parent = rest.split_whitespace().nth(1)?;
            parent.parse().ok()
        });
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(process);
        }
    }
    let mut tree = vec![root];
    let mut next = 0;
    while let Some(process) = tree.get(next) {
        let more = children.remove(process).unwrap_or_default();
        tree.extend(more);
        next += 1;
    }
    Ok(tree)
}
