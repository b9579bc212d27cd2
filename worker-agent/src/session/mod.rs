//! The worker's conversation with its coordinator.

pub(crate) mod link;
pub mod machine;
mod reconnect;
mod reserve;
mod window;

pub use link::Error as LinkError;
pub(crate) use link::SOFTWARE;
