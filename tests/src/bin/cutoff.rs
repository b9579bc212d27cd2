//! Measures when the agents of a worker that is cut off end, and when its task is given away.
//!
//! Real coordinators and workers run on this machine, each worker behind a fault proxy. For every
//! case the program prints the end of the agent's last process as the kernel tells it, the time of
//! the next grant as the coordinator's journal has it, and the gap between them, in seconds since
//! the worker was cut off. It ends with an error when a promise was broken.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use muster_tests::clocks;
use muster_tests::cluster::{Options, Programs};
use muster_tests::cutoff::{Case, Coordinator, Length, Loss, Network, measure};
use muster_tests::hosts;

/// Measures workers that are cut off, sleep, or see the wall clock jump, for shorter and for longer
/// than the TTL of their leases.
#[derive(Clone, Debug, Parser)]
#[command(name = "cutoff")]
struct Arguments {
    /// Milliseconds that a lease lives without renewal
    #[arg(long, default_value_t = 6_000)]
    ttl: u64,
    /// Milliseconds that the coordinator waits beyond that
    #[arg(long, default_value_t = 2_000)]
    grace: u64,
    /// Milliseconds between heartbeats
    #[arg(long, default_value_t = 1_000)]
    heartbeat: u64,
    /// How often everything is measured
    #[arg(long, default_value_t = 1)]
    rounds: u32,
}

#[expect(
    clippy::print_stdout,
    reason = "the figures are what this program is for"
)]
fn say(line: &str) {
    println!("{line}");
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let terms = Options {
        lease_ttl: Duration::from_millis(arguments.ttl),
        lease_grace: Duration::from_millis(arguments.grace),
        heartbeat_interval: Duration::from_millis(arguments.heartbeat),
    };
    let programs = Programs::beside_this()?;
    say(&format!(
        "TTL {:?}, grace {:?}, a heartbeat every {:?}; times are since the worker was cut off",
        terms.lease_ttl, terms.lease_grace, terms.heartbeat_interval
    ));
    let without_clocks = clocks::missing(&programs.source);
    let without_hosts = hosts::missing_filter();
    for _ in 0..arguments.rounds {
        for (coordinator, cases) in worlds(without_clocks.is_none()) {
            for figures in measure(&programs, terms, Network::Proxies, coordinator, &cases)? {
                say(&figures.to_string());
            }
        }
        if without_hosts.is_none() {
            let undisturbed = Coordinator::Undisturbed;
            for figures in measure(&programs, terms, Network::Hosts, undisturbed, &cuts())? {
                say(&format!("packets between hosts: {figures}"));
            }
        }
    }
    if let Some(why) = without_clocks {
        say(&format!(
            "not measured: wall clocks that jump, and lids: {why}"
        ));
    }
    if let Some(why) = without_hosts {
        say(&format!(
            "not measured: packets dropped between hosts: {why}"
        ));
    }
    Ok(ExitCode::SUCCESS)
}

const CUTS: [Loss; 3] = [Loss::BothWays, Loss::Up, Loss::Down];

/// All combinations of losses, lengths, and wall clocks that jump or do not.
fn of(losses: &[Loss], walls: &[bool]) -> Vec<Case> {
    let mut cases = Vec::new();
    for loss in losses {
        for length in [Length::Shorter, Length::Longer] {
            if *loss == Loss::None && length == Length::Longer {
                continue;
            }
            cases.extend(walls.iter().map(|wall_jumps| Case {
                loss: *loss,
                length,
                wall_jumps: *wall_jumps,
            }));
        }
    }
    cases
}

fn cuts() -> Vec<Case> {
    of(&CUTS, &[false])
}

/// What is measured at once, by what happens to the coordinator meanwhile.
fn worlds(clocks: bool) -> Vec<(Coordinator, Vec<Case>)> {
    let mut worlds = vec![(Coordinator::Undisturbed, cuts())];
    if clocks {
        let with_none = [Loss::None, Loss::BothWays, Loss::Up, Loss::Down];
        worlds.push((Coordinator::Undisturbed, of(&with_none, &[true])));
        worlds.push((Coordinator::WallJumps, of(&with_none, &[false])));
        worlds.push((Coordinator::Undisturbed, of(&[Loss::Lid], &[false, true])));
        for length in [Length::Shorter, Length::Longer] {
            worlds.push((Coordinator::Lid(length), of(&[Loss::None], &[false])));
        }
    }
    worlds
}
