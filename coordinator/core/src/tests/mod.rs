//! Scenarios and properties of the whole core, on a world of simulated workers.

mod batching;
mod deadlines;
mod declared;
mod explaining;
mod failing;
mod pools;
mod properties;
mod questions;
mod reports;
mod resuming;
mod retrying;
mod running;
mod scheduling;
mod sessions;
mod starting;
mod submitting;
pub(crate) mod world;
