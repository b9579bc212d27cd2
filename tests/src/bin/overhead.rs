//! Measures what Muster adds to a coding agent: the time from a lease to the agent's first call of its
//! model, beside that of the bare program, and the memory that the worker takes for each running attempt.
//!
//! The programs are the real ones, where they are; their provider is on this host and made up. Figures are
//! printed and never judged.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use muster_tests::cluster::{Cluster, Programs};
use muster_tests::fakes::{Anthropic, OpenAi};
use muster_tests::figures::spread;
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
    /// Calls that were made.
    fn calls(&self) -> usize;
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

    fn calls(&self) -> usize {
        self.provider.served().len()
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

    fn calls(&self) -> usize {
        self.provider.served().len()
    }

    fn bare(&self, folder: &Path) -> Command {
        let mut command = Command::new(&self.program);
        let output = ["-p", "--output-format", "stream-json", "--verbose"];
        command.args(output).args(["--", SHORT]).current_dir(folder);
        command
    }
}

fn measure(arguments: &Arguments) -> Result<()> {
    let here = std::env::current_exe().context("find this program")?;
    let folder = here.parent().unwrap_or(Path::new("."));
    let programs = Programs {
        coordinator: folder.join("coordinator-under-test"),
        worker_agent: folder.join("worker-agent-under-test"),
        forward: folder.join("forward"),
        source: PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".."),
    };
    ensure!(
        programs.worker_agent.exists(),
        "no worker beside this program; build it first: `cargo build -p muster-tests --bins`"
    );
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
    memory(subject, &cluster, mine.path(), id, arguments.attempts)
}

/// Waits for another call than the first `before`.
fn first_call(subject: &dyn Subject, before: usize) -> Result<()> {
    let deadline = Instant::now() + wait::LONG;
    while subject.calls() <= before {
        if Instant::now() > deadline {
            bail!("{} did not call its model", subject.kind());
        }
        // Fine enough for figures of tenths of a second, and leaves the core to what is measured.
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn start_bare(subject: &dyn Subject, folder: &Path) -> Result<Duration> {
    let before = subject.calls();
    let began = Instant::now();
    let mut child = subject
        .bare(folder)
        .envs(subject.variables())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start the bare program")?;
    first_call(subject, before)?;
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
    let before = subject.calls();
    let run = cluster.submit(&plan)?;
    first_call(subject, before)?;
    let called = SystemTime::now();
    let status = cluster.ended(&run)?;
    let attempt = status.attempts("t0")?.last().context("no attempt")?;
    let granted = attempt["granted_at"].as_str().context("no grant")?;
    let granted: jiff::Timestamp = granted.parse()?;
    Ok(called.duration_since(granted.into()).unwrap_or_default())
}

/// Prints what the worker and its supervisors take for each attempt that runs.
fn memory(
    subject: &dyn Subject,
    cluster: &Cluster,
    folder: &Path,
    worker: i32,
    attempts: u32,
) -> Result<()> {
    let idle = ours(worker)?;
    let plan = plan(cluster, subject, folder, ENDLESS, attempts)?;
    let before = subject.calls();
    let run = cluster.submit(&plan)?;
    for more in 0..attempts as usize {
        first_call(subject, before + more)?;
    }
    let busy = ours(worker)?;
    cluster.ask(["cancel", &run])?.success()?;
    cluster.ended(&run)?;
    let each = busy.saturating_sub(idle) / u64::from(attempts);
    say(&format!(
        "{}: worker with its supervisors: {idle} KiB idle, {busy} KiB with {attempts} attempts: {each} KiB each",
        subject.kind()
    ));
    Ok(())
}

/// Proportional memory of a worker and of what it has started of itself: not of agents.
fn ours(worker: i32) -> Result<u64> {
    let name = std::fs::read_link(format!("/proc/{worker}/exe"))?;
    let mut sum = 0;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let is_ours = std::fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == name);
        if !is_ours {
            continue;
        }
        let rollup = std::fs::read_to_string(entry.path().join("smaps_rollup")).unwrap_or_default();
        let line = rollup.lines().find(|line| line.starts_with("Pss:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        sum += kib.unwrap_or_default();
    }
    Ok(sum)
}
