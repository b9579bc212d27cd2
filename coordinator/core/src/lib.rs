//! Every decision of the coordinator, and nothing else.
//!
//! The crate is pure: it has no clock, no randomness, no I/O and no async. Shells hand it
//! [`Command`]s together with the current [`Timestamp`] and carry out what it decided. State
//! changes only through [`Event`]s, which the engine persists before anybody hears of them.

mod backoff;
pub mod batch;
mod build;
pub mod command;
mod decide;
pub mod effects;
pub mod event;
mod evolve;
pub mod explain;
pub mod failure;
pub mod ids;
mod index;
pub mod invariants;
pub mod limits;
pub mod plan;
pub mod pool;
pub mod question;
mod recovery;
mod resume;
mod schedule;
mod settle;
pub mod state;
pub mod time;
pub mod validate;
pub mod worker;

pub use batch::{Batch, Journal};
pub use command::{Command, Rejection, Reply};
pub use decide::{Decision, Step, Touch, decide, step};
pub use effects::{Effect, GitStep, WakeReason, due, effects, git_work, next_wakeup};
pub use event::{Event, EventKind};
pub use failure::{Failure, FailureClass};
pub use ids::{
    AllocationId, AttemptNo, CommitId, Epoch, Incarnation, LeaseId, QuestionId, RunId, TaskIx,
    TaskKey, WorkerId,
};
pub use index::Timer;
pub use recovery::ReplayError;
pub use schedule::{promote, schedule};
pub use settle::settle;
pub use settle::{base_commits, integration_commits};
pub use state::State;
pub use time::{Span, Timestamp};
pub use validate::validate;

#[cfg(test)]
mod tests;
