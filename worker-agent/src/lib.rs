//! The worker agent: leases tasks from a coordinator, runs agents under supervisors, publishes
//! their work.

mod agent;
pub mod attempt;
pub mod checks;
pub mod cli;
pub mod clock;
mod departure;
mod disk;
mod doctor;
mod document;
#[cfg(feature = "ec2")]
mod ec2;
mod failure;
pub mod frames;
#[cfg(test)]
mod golden;
mod identity;
pub mod inspect;
mod mask;
mod options;
pub mod outbox;
mod secrets;
pub mod session;
pub mod spool;
pub mod supervisor;
#[doc(hidden)]
pub mod trial;
mod worker;

pub use attempt::{LeftoverError, allows_nothing, denies_nothing};
pub use departure::HandOver;
pub use disk::FREE_BYTES_MIN;
pub use document::{ApprovalPolicy, AskMode};
pub use frames::Error as FilesError;
pub use identity::{Allocation, Error as IdentityError, StateDir, host_name};
pub use options::{Coordinator, Ended, Options, Repositories, Wish};
pub use secrets::Secret;
pub use session::LinkError;
pub use worker::{Error, run};
