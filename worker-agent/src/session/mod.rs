//! The worker's conversation with its coordinator.

pub(crate) mod link;
pub(crate) mod machine;
mod reconnect;

pub use link::Error as LinkError;
