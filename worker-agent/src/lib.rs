//! worker-agent

pub mod clock;
pub mod supervisor;
