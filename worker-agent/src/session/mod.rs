//! The worker's conversation with its coordinator.

pub(crate) mod link;
pub mod machine;
mod reconnect;

pub use link::Error as LinkError;
