//! Soaks Muster: real coordinators, workers and git, while every part is killed, frozen, cut off and
//! started again at random; then everything must have ended as it had to, with nothing left over.
//!
//! The faults follow a seed and are written to a log with their times. What they hit depends on what
//! runs at that moment, so a failure may need several runs of its seed to come back.
//!
//! This process is the subreaper of all that it starts. However it ends, short of being killed
//! itself, nothing of it goes on.

mod evidence;
mod faults;
mod leftovers;
mod load;
mod plan;
mod processes;
mod report;
mod verdict;
mod world;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use muster_tests::cluster::{Cluster, Options, Programs};
use muster_tests::interrupt;
use muster_tests::proxy::Proxy;
use muster_tests::repository::Repository;
use muster_tests::wait::{self, SOON};
use rustix::process::{Signal, getpid, set_child_subreaper};

use crate::verdict::Judge;
use crate::world::{Expected, Part, Parts, Worker, World};

/// Attempts at once of each worker.
const SLOTS: u32 = 2;
/// How long everything that was submitted may take to end once nothing disturbs it: a task may have
/// to wait for a lease to run out, several times, with growing pauses.
const SETTLING: Duration = Duration::from_secs(240);

/// Kills, freezes, cuts off and restarts every part of Muster at random while it works, then checks
/// that nothing was lost, nothing was done twice, and nothing is left over.
#[derive(Clone, Debug, Parser)]
#[command(name = "soak")]
struct Arguments {
    /// How long faults are made; then everything is left alone until it has ended
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Decides all faults and plans
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Milliseconds between two faults
    #[arg(long, default_value_t = 1_000, value_name = "MS", value_parser = clap::value_parser!(u64).range(10..))]
    fault_every: u64,
    /// Workers, about: operators add and remove some
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..100))]
    workers: u64,
    /// Runs that are under way at once
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..1_000))]
    runs: u64,
    /// Keep the folder also when nothing has failed
    #[arg(long)]
    keep: bool,
    /// Print the figures as one JSON object
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = soak(&arguments);
    // Whatever happened, nothing goes on.
    for seen in processes::end_all() {
        report::complain(&format!("cannot be ended: {}", seen.shown()));
    }
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            report::complain(&format!("error: {error:#}"));
            ExitCode::from(2)
        }
    }
}

/// Makes a worker with a state folder of its own. Every second one has its own way to the
/// coordinator, that can be cut.
fn worker(cluster: &Cluster, number: usize) -> Result<Worker> {
    let name = format!("w{number}");
    let link = if number.is_multiple_of(3) {
        None
    } else {
        Some(Proxy::start(cluster.address().parse()?)?)
    };
    let address = link
        .as_ref()
        .map_or_else(|| cluster.address(), |link| link.address().to_string());
    let program = cluster.worker(&name, &address, SLOTS)?;
    let state = program.folder.join("state");
    Ok(Worker {
        part: Part::new(&name, program),
        link,
        cut_until: None,
        wanted: true,
        state,
    })
}

/// Tells whether processes that have no mark can be found: only where trees get control groups.
fn finds_naked() -> bool {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .iter()
        .any(|folder| {
            let probe = Path::new(folder).join(format!("muster-soak-probe-{}", std::process::id()));
            let made = std::fs::create_dir(&probe).is_ok();
            let kills = probe.join("cgroup.kill").exists();
            if made {
                // An empty group can always be removed.
                let _ = std::fs::remove_dir(&probe);
            }
            made && kills
        })
}

fn soak(arguments: &Arguments) -> Result<bool> {
    set_child_subreaper(Some(getpid())).context("become a subreaper")?;
    let programs = Programs::beside_this()?;
    let mut cluster = Cluster::new(&programs, Some(Options::short_leases()))?;
    cluster.keep();
    let folder = cluster.folder().to_owned();
    let script = folder.join("task.sh");
    std::fs::write(&script, include_str!("task.sh"))?;
    let repository = folder.join("project");
    Repository::foreign(&repository, &cluster.logs(), 40)?;

    let mut workers = Vec::new();
    for number in 1..=usize::try_from(arguments.workers)? {
        workers.push(worker(&cluster, number)?);
    }
    let parts = Parts {
        coordinator: Part::new("coordinator", cluster.server()),
        coordinator_wanted: true,
        workers,
    };
    let world = Arc::new(World::new(cluster, parts, arguments.seed)?);
    let interrupted = Arc::new(AtomicBool::new(false));
    let (ends, told) = (Arc::clone(&world), Arc::clone(&interrupted));
    interrupt::then(move || {
        told.store(true, Ordering::SeqCst);
        ends.end();
    })?;
    report::say(
        arguments.json,
        &format!(
            "soak of {} s, seed {}, a fault every {} ms; everything is in {}",
            arguments.seconds,
            arguments.seed,
            arguments.fault_every,
            folder.display()
        ),
    );

    let observer = Arc::clone(&world);
    let observing = std::thread::spawn(move || observer.observe());
    let directed = Arc::clone(&world);
    let every = Duration::from_millis(arguments.fault_every);
    let directing = std::thread::spawn(move || faults::Director::new(&directed, every).direct());
    let ended = phases(arguments, &world, script, repository);
    world.end();
    for thread in [observing, directing] {
        ensure!(thread.join().is_ok(), "a thread of the soak panicked");
    }
    if let Err(error) = &ended {
        world.fail(format!("{error:#}"));
    }
    leftovers::processes(&world);
    if interrupted.load(Ordering::SeqCst) {
        bail!("interrupted; what there was is in {}", folder.display());
    }
    let ledger = evidence::ledger(&world.ledger)?;
    leftovers::files(&world, &ledger);
    // Once more with nobody at work, when nothing may be excused.
    if let Err(error) = leftovers::audit(&world) {
        world.fail(format!("at rest: {error:#}"));
    }
    let figures = ended.unwrap_or_default();
    let clean = report::print(arguments, &world, &figures)?;
    if clean && !arguments.keep {
        let folders = world.cluster.folders();
        for folder in folders {
            // What stays in the system's temporary folder harms nobody.
            let _ = std::fs::remove_dir_all(folder);
        }
    } else {
        report::complain(&format!("kept: {}", folder.display()));
    }
    Ok(clean)
}

/// Faults, rest, questions, end.
fn phases(
    arguments: &Arguments,
    world: &Arc<World>,
    script: PathBuf,
    repository: PathBuf,
) -> Result<verdict::Figures> {
    wait::until_true("the coordinator answers", SOON, || {
        Ok(world.over()
            || world
                .call(&["status"])
                .is_some_and(|output| output.code() == 0))
    })?;
    let submitter = load::Submitter {
        world: Arc::clone(world),
        repository,
        script,
        naked: finds_naked(),
        at_once: arguments.runs,
    };
    let submitting = std::thread::spawn(move || submitter.submit_all());
    let operator = load::Operator {
        world: Arc::clone(world),
        workers: usize::try_from(arguments.workers)?,
        another: {
            let world = Arc::clone(world);
            Box::new(move |number| worker(&world.cluster, number))
        },
    };
    let operating = std::thread::spawn(move || operator.interfere());
    let until = Instant::now() + Duration::from_secs(arguments.seconds);
    while Instant::now() < until && world.faulting() {
        std::thread::sleep(Duration::from_millis(50));
    }
    world.stop_faults();
    world.note("no more faults");
    report::say(
        arguments.json,
        "no more faults; waiting until everything ends",
    );
    // Removed workers come back, to hand in what they may have left.
    for worker in &mut world.parts().workers {
        worker.wanted = true;
    }
    let settling = Instant::now();
    for (what, thread) in [("operators", operating), ("runs", submitting)] {
        while !thread.is_finished() {
            ensure!(!world.over(), "interrupted");
            if settling.elapsed() > SETTLING {
                bail!(
                    "hang: {what} have not ended {SETTLING:?} after the last fault; {}",
                    unfinished(world)
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        ensure!(thread.join().is_ok(), "a thread of the soak panicked");
    }
    // Operators may have opened some again.
    wait::until_true("all runs have ended", SETTLING, || {
        Ok(world.over() || unfinished(world).is_empty())
    })
    .with_context(|| format!("hang: {}", unfinished(world)))?;
    if let Err(error) = leftovers::wait_for_idle_workers(world, SOON) {
        world.fail(format!("{error:#}"));
    }
    world.note("everything has ended");
    report::say(
        arguments.json,
        &format!(
            "everything has ended {:.1} s after the last fault; checking",
            settling.elapsed().as_secs_f64()
        ),
    );

    let ledger = evidence::ledger(&world.ledger)?;
    let submitted = world.known().runs.clone();
    let mut judge = Judge::new(world, &ledger);
    for run in &submitted {
        ensure!(!world.over(), "interrupted");
        let told = evidence::told(world, run)?;
        judge.run(&told)?;
        judge.transcripts(&told)?;
    }
    only_submitted(world)?;
    leftovers::zombies(world);
    let figures = judge.figures;
    if let Err(error) = leftovers::audit(world) {
        world.fail(format!("{error:#}"));
    }
    if let Err(error) = end_parts(world) {
        world.fail(format!("hang: {error:#}"));
    }
    Ok(figures)
}

/// Says which runs have not ended, and why; empty if there are none.
fn unfinished(world: &World) -> String {
    let Some(output) = world.call(&["status", "--json", "--limit", "100000"]) else {
        return "`status` does not answer".to_owned();
    };
    let Ok(listed) = output.json() else {
        return format!("`status` said {}", output.err);
    };
    let list = listed.as_array().or_else(|| listed["runs"].as_array());
    let live = list.into_iter().flatten().filter(|run| {
        !["succeeded", "failed", "cancelled"].contains(&run["state"].as_str().unwrap_or("?"))
    });
    live.map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Each run is one that somebody submitted, and the other way round.
fn only_submitted(world: &World) -> Result<()> {
    let listed = world
        .insist(&["status", "--json", "--limit", "100000"])?
        .json()?;
    let list = listed.as_array().or_else(|| listed["runs"].as_array());
    let mut there: Vec<String> = list
        .into_iter()
        .flatten()
        .filter_map(|run| run["run"].as_str().map(str::to_owned))
        .collect();
    let mut submitted: Vec<String> = {
        let known = world.known();
        known.runs.iter().map(|run| run.run.clone()).collect()
    };
    there.sort();
    submitted.sort();
    if there != submitted {
        world.fail(format!(
            "twice: the coordinator has the runs {there:?}, submitted were {submitted:?}"
        ));
    }
    Ok(())
}

/// Tells workers and then the coordinator to end, and insists that they do.
fn end_parts(world: &World) -> Result<()> {
    let ended = |of_workers: bool| {
        let mut parts = world.parts();
        let parts = &mut *parts;
        let mut all = std::iter::once(&mut parts.coordinator)
            .chain(parts.workers.iter_mut().map(|worker| &mut worker.part));
        all.all(|part| (part.name == "coordinator") == of_workers || part.process.is_none())
    };
    for worker in &mut world.parts().workers {
        worker.wanted = false;
        worker.part.expected = Expected::Ending;
        worker.part.signal(Signal::TERM);
    }
    wait::until_true("workers that were told to end have ended", SOON, || {
        Ok(ended(true))
    })?;
    {
        let mut parts = world.parts();
        parts.coordinator.expected = Expected::Ending;
        parts.coordinator_wanted = false;
        parts.coordinator.signal(Signal::TERM);
        world.note("the coordinator is told to end");
    }
    wait::until_true(
        "the coordinator that was told to end has ended",
        SOON,
        || Ok(ended(false)),
    )
}
