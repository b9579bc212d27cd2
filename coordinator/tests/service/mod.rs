//! The services of a whole coordinator, spoken to over TLS by a worker and a client that a test
//! leads.

mod hostile;
mod joining;
mod operators;
mod questions;
mod refs;
mod resuming;
pub(crate) mod world;
