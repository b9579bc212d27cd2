//! Everything of the coordinator that needs its executable or real programs beside it.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

mod audit;
mod command_line;
mod hosted_git;
mod pools;
mod service;
mod slurm;
