//! Whole worlds of Muster on a simulated clock.
//!
//! A world is the real core and the real session machine of workers, between models of everything
//! else: store, network, supervisors, agents, the git remote, disks, operators. A [`Scenario`]
//! says what will happen; [`run`] lets it happen and checks after each step what must be true.
//! The same scenario gives the same story, to the byte.

mod carrier;
mod check;
mod cluster;
mod coordinator;
pub mod coverage;
mod facts;
mod generate;
mod host;
mod lease;
mod leases;
mod liar;
mod merges;
mod net;
mod operator;
mod plan;
mod pools;
mod power;
pub mod progress;
mod questions;
mod random;
pub mod ranges;
mod reference;
pub mod regressions;
mod remote;
pub mod runner;
pub mod scenario;
mod sessions;
pub mod shrink;
mod special;
mod store;
mod story;
mod supervisor;
mod wire;
mod world;

use std::fmt;

pub use scenario::Scenario;

/// Looks on while a world runs. The one that does nothing costs nothing.
pub trait Watch {
    /// Takes one line of the story, at a simulated time.
    fn line(&mut self, at_ms: u64, line: fmt::Arguments<'_>);
    /// Tells whether lines are wanted; they are not even put together otherwise.
    fn wants_lines(&self) -> bool;
    /// Notes that the core was in a state of this kind when a command of this kind came.
    fn met(&mut self, state: &'static str, command: &'static str);
}

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unwatched;

impl Watch for Unwatched {
    fn line(&mut self, _at_ms: u64, _line: fmt::Arguments<'_>) {}

    fn wants_lines(&self) -> bool {
        false
    }

    fn met(&mut self, _state: &'static str, _command: &'static str) {}
}

/// What became of a world in which everything was as it must be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ended {
    /// Things that happened one after the other.
    pub steps: u64,
    pub simulated_ms: u64,
    /// Of the whole trace: equal scenarios have equal digests.
    pub digest: u64,
    pub counts: Counts,
}

/// How much of what a world had.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    pub runs: u64,
    pub tasks: u64,
    /// Commands that the core was given.
    pub commands: u64,
    /// Events that were journaled.
    pub events: u64,
    pub leases: u64,
    /// Leases that ended in silence.
    pub expired: u64,
    /// Faults that came to happen.
    pub faults: u64,
    /// Starts of the coordinator after the first.
    pub restarts: u64,
    /// What operators asked for.
    pub requests: u64,
    pub lies: u64,
    /// Faults that came to happen, by their kinds.
    pub by_fault: [u64; scenario::FAULTS.len()],
}

impl Counts {
    /// Gives the counts with their names, for sums and people.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let Self {
            runs,
            tasks,
            commands,
            events,
            leases,
            expired,
            faults,
            restarts,
            requests,
            lies,
            by_fault,
        } = *self;
        [
            ("runs", runs),
            ("tasks", tasks),
            ("commands", commands),
            ("events", events),
            ("leases", leases),
            ("expired", expired),
            ("faults", faults),
            ("restarts", restarts),
            ("requests", requests),
            ("lies", lies),
        ]
        .into_iter()
        .chain(scenario::FAULTS.into_iter().zip(by_fault))
    }
}

/// Something that must never be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("at {at_ms} ms: {rule}: {what}")]
pub struct Violation {
    pub at_ms: u64,
    /// Names what must always be true.
    pub rule: &'static str,
    /// Says how it was not.
    pub what: String,
}

/// Lets everything in a scenario happen, and checks after each step.
///
/// # Errors
/// The first thing that must never be.
pub fn run(scenario: &Scenario, watch: &mut dyn Watch) -> Result<Ended, Violation> {
    world::World::new(scenario, watch).run()
}

#[cfg(test)]
mod tests;
