//! Measures the coordinator: how long a hop takes, how many tasks a second it can take through its
//! journal, and what a waiting task costs in memory.
//!
//! A whole coordinator runs in this process, on a home in a temporary folder (set `TMPDIR` to choose
//! the disk); workers are simulated, but talk to it over real TLS connections. They do nothing, so
//! what is measured is the coordinator alone. Figures are printed and never judged.

mod measure;
mod slow_disk;
mod worker;

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};

/// Measures the coordinator.
#[derive(Clone, Debug, Parser)]
#[command(name = "bench")]
struct Arguments {
    /// Only this part, in this process
    #[arg(long, value_enum)]
    part: Option<Part>,
    /// Tasks of the chain whose hops are measured
    #[arg(long, default_value_t = 500)]
    hops: usize,
    /// Tasks of the throughput part
    #[arg(long, default_value_t = 20_000)]
    tasks: usize,
    /// Workers of the throughput part
    #[arg(long, default_value_t = 16)]
    workers: usize,
    /// Slots of each worker
    #[arg(long, default_value_t = 64)]
    slots: u32,
    /// Waiting tasks of the memory part
    #[arg(long, default_value_t = 100_000)]
    waiting: usize,
    /// Compare hops and throughput with a disk each of whose syncs takes so long
    #[arg(long, value_name = "MILLISECONDS")]
    sync_delay_ms: Option<u64>,
    /// Print bare figures, for a process that compares them
    #[arg(long, hide = true)]
    figures: bool,
    /// Most seconds a part may take
    #[arg(long, default_value_t = 120)]
    seconds: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Hops,
    Throughput,
    Memory,
}

const PARTS: [(Part, &str); 3] = [
    (Part::Hops, "hops"),
    (Part::Throughput, "throughput"),
    (Part::Memory, "memory"),
];

#[expect(
    clippy::print_stdout,
    reason = "the figures are what this program is for"
)]
fn say(line: &str) {
    println!("{line}");
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(part) = arguments.part {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        let deadline = Duration::from_secs(arguments.seconds);
        let measured = runtime.block_on(async {
            tokio::time::timeout(deadline, Box::pin(measure::part(part, &arguments))).await
        });
        match measured {
            Ok(measured) if arguments.figures => {
                for (name, value) in measured?.figures {
                    say(&format!("{name} {value}"));
                }
            }
            Ok(measured) => measured?.lines.iter().for_each(|line| say(line)),
            Err(_) => say(&format!("{part:?}: not done after {deadline:?}")),
        }
        return Ok(ExitCode::SUCCESS);
    }
    for line in machine()? {
        say(&line);
    }
    if let Some(delay) = arguments.sync_delay_ms {
        let lines = slow_disk::compare(&arguments, Duration::from_millis(delay))?;
        lines.iter().for_each(|line| say(line));
        return Ok(ExitCode::SUCCESS);
    }
    for (_, name) in PARTS {
        // Each part has a process of its own, so that none inherits another's memory.
        let program = std::env::current_exe().context("find this program")?;
        let status = Command::new(program)
            .args(["--part", name])
            .args(std::env::args_os().skip(1))
            .stdin(Stdio::null())
            .status()?;
        anyhow::ensure!(status.success(), "the part {name} failed: {status}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Says what figures depend on.
fn machine() -> Result<Vec<String>> {
    let field = |file: &str, key: &str| -> String {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let line = text
            .lines()
            .find(|line| line.starts_with(key))
            .unwrap_or_default();
        line.split_once(':')
            .map_or("?", |(_, value)| value.trim())
            .to_owned()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let profile = if cfg!(debug_assertions) {
        "debug: figures are several times worse"
    } else {
        "release"
    };
    let folder = std::env::temp_dir();
    Ok(vec![
        format!(
            "machine: {cores} cores, {}, {}",
            field("/proc/cpuinfo", "model name"),
            field("/proc/meminfo", "MemTotal")
        ),
        format!(
            "load before: {}",
            load.split(' ').take(3).collect::<Vec<_>>().join(" ")
        ),
        format!("build: {profile}"),
        format!("disk: {} under {}", sync_cost(&folder)?, folder.display()),
    ])
}

/// Measures what one durable write of a page costs: the floor of every commit.
fn sync_cost(folder: &Path) -> Result<String> {
    use std::io::Write as _;
    let mut file = tempfile::tempfile_in(folder)?;
    let mut times = Vec::new();
    for _ in 0..50 {
        let begun = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        times.push(begun.elapsed());
    }
    Ok(format!(
        "a synced 4 KiB write takes {}",
        muster_tests::figures::spread(&mut times)
    ))
}
