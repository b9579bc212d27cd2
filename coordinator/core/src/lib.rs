//! Every decision of the coordinator, and nothing else.
//!
//! The crate is pure: it has no clock, no randomness, no I/O and no async. Shells hand it
//! [`Command`]s together with the current [`Timestamp`] and carry out what it decided. State
//! changes only through [`Event`]s, which the engine persists before anybody hears of them.

pub mod command;
pub mod event;
pub mod failure;
pub mod ids;
pub mod limits;
pub mod plan;
pub mod state;
pub mod time;
pub mod worker;

pub use command::{Command, Rejection, Reply};
pub use event::{Event, EventKind};
pub use failure::{Failure, FailureClass};
pub use ids::{
    AttemptNo, CommitId, Epoch, Incarnation, LeaseId, QuestionId, RunId, TaskIx, TaskKey, WorkerId,
};
pub use time::{Span, Timestamp};
