//! Soaks a pool of EC2 instances: a real coordinator drives a group, real workers run on its instances,
//! and everything between them fails at random: the interface and its answers, instances, notices,
//! networks, the coordinator. Then all work must have been done, each task accepted once, and nothing may
//! be left that costs money.
//!
//! The faults follow a seed and are printed with their times. What they hit depends on what runs at that
//! moment, so a failure may need several runs of its seed to come back.

mod faults;
mod verdict;
mod world;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use muster_tests::cluster::Programs;
use muster_tests::{ec2, interrupt};

use crate::faults::Director;
use crate::world::World;

/// How long all runs may take to end once nothing disturbs them, and then the group to be empty: an
/// instance that hangs is found out by its deadline, and worked around with growing pauses.
const SETTLING: Duration = Duration::from_secs(400);
/// Between two looks at what is still under way.
const PAUSE: Duration = Duration::from_millis(500);

/// Fails everything around a pool of EC2 instances at random while it works, then checks that nothing
/// was lost, nothing was counted twice, and nothing is left that costs money.
#[derive(Clone, Debug, Parser)]
#[command(name = "cloud-soak")]
struct Arguments {
    /// How long faults are made; then everything is left alone until it has ended
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Decides all faults and plans
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Milliseconds between two faults, on average
    #[arg(long, default_value_t = 1_500, value_name = "MS", value_parser = clap::value_parser!(u64).range(10..))]
    fault_every: u64,
    /// Instances at once
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=20))]
    instances: u64,
    /// Runs that are under way at once
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..100))]
    runs: u64,
    /// Keep the folder also when nothing has failed
    #[arg(long)]
    keep: bool,
}

/// Prints a line.
#[expect(clippy::print_stdout, reason = "it is what this program is for")]
fn say(line: &str) {
    println!("{line}");
}

/// Prints a line about a failure.
#[expect(clippy::print_stderr, reason = "there is nobody else to tell")]
fn complain(line: &str) {
    eprintln!("{line}");
}

/// Nothing could be tried on this machine.
const NOT_HERE: u8 = 3;
/// As shells say it.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let missing = Programs::beside_this()
        .map(|programs| ec2::missing(&programs.source).or_else(ec2::missing_terraform));
    if let Ok(Some(why)) = missing {
        say(&format!("SKIPPED: no cloud can be soaked here: {why}"));
        return ExitCode::from(NOT_HERE);
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    match soak(&arguments, &interrupted) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(_) if interrupted.load(Ordering::SeqCst) => ExitCode::from(INTERRUPTED),
        Err(error) => {
            complain(&format!("error: {error:#}"));
            ExitCode::from(2)
        }
    }
}

fn soak(arguments: &Arguments, interrupted: &Arc<AtomicBool>) -> Result<bool> {
    let programs = Programs::beside_this()?;
    let told = Arc::clone(interrupted);
    interrupt::then(move || told.store(true, Ordering::SeqCst))?;
    let mut world = World::new(&programs, arguments, Arc::clone(interrupted))?;
    world.say(&format!(
        "soak of {} s, seed {}, a fault every {} ms; everything is in {}",
        arguments.seconds,
        arguments.seed,
        arguments.fault_every,
        world.cluster.folder().display()
    ));
    let failures = match phases(arguments, &mut world) {
        Ok(failures) => failures,
        Err(error) if world.check_interrupt().is_err() => return Err(error),
        Err(error) => {
            let story = format!("{}\n{}", world.cluster.story(), world.cloud.story());
            vec![format!("{error:#}\n{story}")]
        }
    };
    world.print_figures();
    for failure in &failures {
        complain(&format!("FAILED: {failure}"));
    }
    if arguments.keep || !failures.is_empty() {
        world.cluster.keep();
        complain(&format!("kept: {}", world.cluster.folder().display()));
    }
    say(&format!(
        "soak of a cloud, seed {}: {}",
        arguments.seed,
        match failures.len() {
            0 => "no failure".to_owned(),
            many => format!("{many} failed"),
        }
    ));
    Ok(failures.is_empty())
}

/// Faults, rest, questions, end; gives what is not as it should be.
fn phases(arguments: &Arguments, world: &mut World) -> Result<Vec<String>> {
    let until = Instant::now() + Duration::from_secs(arguments.seconds);
    let every = Duration::from_millis(arguments.fault_every);
    let mut director = Director::new(arguments.seed, every);
    world.submit()?;
    while Instant::now() < until {
        world.check_interrupt()?;
        director.act(world)?;
        world.resume_if_paused()?;
        if world.under_way()? < arguments.runs {
            world.submit()?;
        }
    }
    director.rest(world)?;
    world.say("no more faults; waiting until everything ends");
    let rest = Instant::now();
    let mut failures = Vec::new();
    loop {
        world.check_interrupt()?;
        world.resume_if_paused()?;
        if world.under_way()? == 0 {
            let seconds = rest.elapsed().as_secs_f64();
            world.say(&format!(
                "all runs have ended {seconds:.1} s after the last fault"
            ));
            break;
        }
        if rest.elapsed() > SETTLING {
            let shown = world.ask(&["pool", "show", "build"])?.out;
            failures.push(format!(
                "hang: runs have not ended after {SETTLING:?}: {shown}"
            ));
            break;
        }
        std::thread::sleep(PAUSE);
    }
    while let Some(left) = world.left()? {
        world.check_interrupt()?;
        if rest.elapsed() > SETTLING {
            failures.push(format!("cost: {left} after {SETTLING:?}"));
            break;
        }
        std::thread::sleep(PAUSE);
    }
    if failures.is_empty() {
        let seconds = rest.elapsed().as_secs_f64();
        world.say(&format!(
            "the group is empty {seconds:.1} s after the last fault"
        ));
    }
    failures.extend(verdict::judge(world)?);
    Ok(failures)
}
