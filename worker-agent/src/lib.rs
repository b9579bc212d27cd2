//! The worker agent: leases tasks from a coordinator, runs agents under supervisors, publishes
//! their work.

pub mod clock;
mod failure;
mod frames;
mod outbox;
mod session;
mod spool;
pub mod supervisor;
