//! The worker's conversation with its coordinator.

pub(crate) mod machine;
