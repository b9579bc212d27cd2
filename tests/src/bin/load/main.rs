//! Loads and abuses a coordinator, and says how it bears that.
//!
//! A real `coordinator serve` runs in a process of its own, on a home in a temporary folder; workers,
//! watchers and abusers are simulated in this process, but talk to it over real TLS connections. Work
//! takes time and nothing else. Watchers and abusers, the crowd, have less urgent threads than honest
//! workers and the coordinator: elsewhere they are on other machines, and what is measured is what
//! they do to the coordinator, not how they push aside on this machine whoever measures. Figures are
//! printed; only a broken promise makes this program fail:
//! a panic, a wrong answer, an honest client that was not served, memory or descriptors above what
//! is stated.

mod abuse;
mod fleet;
mod report;
mod site;
mod watchers;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Parser, Subcommand};
use muster_tests::figures::{Machine, Taken, busy, percentile, spread};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinSet;

use fleet::{Fleet, Habit};
use report::Report;
use site::{Sampler, Site, wide_plan};
use watchers::Watched;

/// The most that one heartbeat in a hundred may take: half of the interval between two, and a twelfth
/// of the time that a lease lives without one.
const BEAT_MAX: Duration = Duration::from_secs(5);
/// Resident memory of a coordinator with its runs, and what each connection and watch adds.
const RESIDENT_KIB: u64 = 256 * 1024;
const PER_CONNECTION_KIB: u64 = 64;
/// How much less urgent than anything else the crowd's threads are.
const CROWD_NICENESS: i32 = 5;
/// How long the workers are measured before the watchers come.
const ALONE: Duration = Duration::from_secs(10);
/// Descriptors besides those of connections.
const DESCRIPTORS: u64 = 200;

/// Loads and abuses a coordinator.
#[derive(Clone, Debug, Parser)]
#[command(name = "load")]
struct Arguments {
    #[command(subcommand)]
    mode: Mode,
    /// Print one JSON document instead of lines
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Clone, Debug, Subcommand)]
enum Mode {
    /// Many workers and watchers at once
    Fleet(FleetMode),
    /// Hostile clients of every kind, one after the other, beside an honest fleet
    ///
    /// While each goes on, honest workers must do a third of what they did just before, one of their
    /// heartbeats in a hundred may take two seconds, and the coordinator may take 256 MiB more, and 1.5
    /// KiB for each task that it has admitted: what it accepts it keeps in memory, a million live tasks
    /// of all runs at most. Where other programs use more than a fifth of the machine a time that is
    /// missed is told and not judged: who waits for a core says nothing about the coordinator. Memory,
    /// descriptors, panics and wrong answers are always judged.
    Abuse(AbuseMode),
}

#[derive(Clone, Debug, clap::Args)]
struct FleetMode {
    /// Workers, each with a connection of its own
    #[arg(long, default_value_t = 1_000)]
    workers: usize,
    /// Watchers of the runs that they work on
    #[arg(long, default_value_t = 10_000)]
    watchers: usize,
    /// Runs; every one has the same share of the watchers, each of which is sent all its events
    #[arg(long, default_value_t = 10)]
    runs: usize,
    /// Watchers that share one connection
    #[arg(long, default_value_t = 4)]
    watchers_per_connection: usize,
    /// How long one attempt takes, in milliseconds
    #[arg(long, default_value_t = 20_000)]
    work_ms: u64,
    /// How long to measure, once everybody is connected
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Kill and restart the coordinator at the end, and wait until all workers are welcome again
    #[arg(long)]
    restart: bool,
}

#[derive(Clone, Debug, clap::Args)]
struct AbuseMode {
    /// Honest workers
    #[arg(long, default_value_t = 50)]
    workers: usize,
    /// How long each abuse goes on
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Only these; all if none is named
    names: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = runtimes().and_then(|(runtime, crowd)| {
        let done = runtime.block_on(run(&arguments, crowd.handle()));
        // What is blocked in an abuse must not keep the program from ending.
        crowd.shutdown_background();
        runtime.shutdown_background();
        done
    });
    match done {
        Ok(report) => {
            report.print(arguments.json);
            if report.broken().is_empty() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            report::complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Makes the runtime of those who are measured, and that of the crowd.
fn runtimes() -> Result<(Runtime, Runtime)> {
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    let lower = || {
        if let Err(error) = rustix::process::nice(CROWD_NICENESS) {
            report::complain(&format!("the crowd is as urgent as all others: {error}"));
        }
    };
    let mut crowd = Builder::new_multi_thread();
    let crowd = crowd.enable_all().on_thread_start(lower).build()?;
    Ok((runtime, crowd))
}

async fn run(arguments: &Arguments, crowd: &Handle) -> Result<Report> {
    raise_descriptors()?;
    match &arguments.mode {
        Mode::Fleet(mode) => Box::pin(run_fleet(mode, crowd)).await,
        Mode::Abuse(mode) => Box::pin(abuse::run(mode, crowd)).await,
    }
}

/// Takes as many file descriptors as this process may have; the coordinator inherits it.
fn raise_descriptors() -> Result<()> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised)?;
    Ok(())
}

/// Says how many times longer something took.
fn ratio(time: Duration, usual: Duration) -> String {
    format!(
        "{:.1} times",
        time.as_secs_f64() / usual.as_secs_f64().max(0.000_001)
    )
}

async fn run_fleet(mode: &FleetMode, crowd: &Handle) -> Result<Report> {
    let mut report = Report::new("fleet");
    let mut site = Site::start().await?;
    let start = site.taken()?;
    let sampler = Sampler::start(site.process.clone());
    let rate = (mode.workers as u64 * 1_000).div_ceil(mode.work_ms.max(1));
    let tasks = usize::try_from(rate * (mode.seconds + 120))? + mode.workers;
    let many = mode.runs.max(1);
    let mut runs = Vec::new();
    for _ in 0..many {
        runs.push(
            site.door
                .submit(wide_plan(tasks.div_ceil(many), ""))
                .await?,
        );
    }
    let mut tasks = JoinSet::new();
    let habit = Habit {
        work: Duration::from_millis(mode.work_ms),
        beat: None,
    };
    let fleet = Fleet::new(site.door.clone(), habit);
    fleet.join("fleet", mode.workers, &mut tasks);
    let joined = fleet.until_connected(mode.workers).await?;
    report.say(
        "workers welcome",
        format!("{} in {joined:.2?}", mode.workers),
    );
    // What happened while they joined is not measured.
    drop(fleet.take());
    let before = site.taken()?;
    tokio::time::sleep(ALONE).await;
    let with_workers = site.taken()?;
    let mut alone = fleet.take();
    report.say("heartbeat answered, no watchers", spread(&mut alone.beats));
    report.say(
        "grant after a free slot, no watchers",
        spread(&mut alone.grants),
    );
    report.say(
        "coordinator, no watchers",
        busy(&before, &with_workers, ALONE),
    );
    let watched = std::sync::Arc::new(Watched::default());
    let begun = Instant::now();
    let on_each = mode.watchers_per_connection;
    for (index, run) in runs.iter().enumerate() {
        let after = site.door.last_seq(run).await?;
        let count = (mode.watchers + many - 1 - index) / many;
        let (door, run) = (&site.door, (run.as_str(), after));
        let _crowd = crowd.enter();
        watchers::watch(door, run, count, on_each, &watched, &mut tasks);
    }
    let open = || watched.open.load(std::sync::atomic::Ordering::Relaxed);
    while open() < mode.watchers && begun.elapsed() < Duration::from_secs(120) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    report.say(
        "watchers open",
        format!("{} in {:.2?}", open(), begun.elapsed()),
    );
    report.expect(
        open() == mode.watchers,
        format!(
            "only {} of {} watchers were served: {:?}",
            open(),
            mode.watchers,
            watched.last_error()
        ),
    );
    let connections = mode.workers
        + watched
            .connections
            .load(std::sync::atomic::Ordering::Relaxed);
    report.say("connections", connections.to_string());
    // What happened while they joined is not measured.
    drop((fleet.take(), watched.take_lags()));
    let events_before = watched.events.load(std::sync::atomic::Ordering::Relaxed);
    let (before, own_before) = (site.taken()?, Taken::by("self")?);
    let machine = Machine::now()?;
    let begun = Instant::now();
    tokio::time::sleep(Duration::from_secs(mode.seconds)).await;
    let over = begun.elapsed();
    let took = over.as_secs_f64();
    let (after, own_after) = (site.taken()?, Taken::by("self")?);
    let ours = after.processor - before.processor + own_after.processor - own_before.processor;
    let others = Machine::now()?.others_since(&machine, ours);
    let mut seen = fleet.take();
    let events = watched.events.load(std::sync::atomic::Ordering::Relaxed) - events_before;
    report.say("grant after a free slot", spread(&mut seen.grants));
    report.say("heartbeat answered", spread(&mut seen.beats));
    report.say("report acknowledged", spread(&mut seen.reports));
    report.say("tasks a second", format!("{:.1}", seen.done as f64 / took));
    report.say(
        "events delivered a second",
        format!("{:.0}", events as f64 / took),
    );
    report.say(
        "event's delay at a watcher",
        spread(&mut watched.take_lags()),
    );
    report.say("coordinator", busy(&before, &after, over));
    report.say("this program", busy(&own_before, &own_after, over));
    report.say(
        "other programs",
        format!("{:.0} % of the machine", others * 100.0),
    );
    report.say(
        "heartbeat's p99 against no watchers",
        ratio(percentile(&seen.beats, 99), percentile(&alone.beats, 99)),
    );
    report.say_taken("coordinator at start", &start);
    report.say_taken("with workers", &with_workers);
    report.say_taken("at end", &after);
    let per_worker = with_workers.resident_kib.saturating_sub(start.resident_kib) as f64;
    report.say(
        "KiB a worker",
        format!("{:.1}", per_worker / mode.workers.max(1) as f64),
    );
    let per_watcher = after.resident_kib.saturating_sub(with_workers.resident_kib) as f64;
    report.say(
        "KiB a watcher",
        format!("{:.1}", per_watcher / mode.watchers.max(1) as f64),
    );
    let beats = percentile(&seen.beats, 99);
    report.expect_in_time(
        others,
        beats < BEAT_MAX,
        format!("a heartbeat in a hundred was answered after {beats:.2?}"),
    );
    let peak = sampler.stop();
    report.say_taken("peak", &peak);
    let resident_max = RESIDENT_KIB + PER_CONNECTION_KIB * (connections + mode.watchers) as u64;
    report.expect(
        peak.resident_kib < resident_max,
        format!("more than {} MiB resident", resident_max / 1024),
    );
    report.expect(
        peak.descriptors < connections as u64 + DESCRIPTORS,
        format!("{} descriptors", peak.descriptors),
    );
    report.expect(
        seen.stale == 0,
        format!("{} reports of live work were called stale", seen.stale),
    );
    report.expect(
        seen.reconnects == 0,
        format!("{} sessions broke: {:?}", seen.reconnects, seen.last_error),
    );
    let wrong = watched.wrong.load(std::sync::atomic::Ordering::Relaxed);
    report.expect(
        wrong == 0,
        format!("{wrong} events came in wrong order, twice or not at all"),
    );
    let broken = watched.broken.load(std::sync::atomic::Ordering::Relaxed);
    // One that gets no core answers no keep-alive either.
    report.expect_in_time(
        others,
        broken == 0,
        format!("{broken} watches broke: {:?}", watched.last_error()),
    );
    if mode.restart {
        let begun = Instant::now();
        site.restart()?;
        let up = begun.elapsed();
        // Nobody counts as connected until the old sessions were seen to be gone.
        fleet.until_connected(mode.workers).await?;
        report.say(
            "after a kill",
            format!(
                "answers after {up:.2?}, all {} workers welcome after {:.2?}",
                mode.workers,
                begun.elapsed()
            ),
        );
    }
    if let Err(error) = site.check() {
        report.expect(false, format!("{error:#}"));
    }
    tasks.abort_all();
    Ok(report)
}
