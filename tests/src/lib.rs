//! Real coordinators and workers for tests that need more than one process.
//!
//! Everything that a test starts is ended when its value is dropped, also when the test fails.

pub mod agents;
pub mod clocks;
pub mod cluster;
pub mod cutoff;
pub mod dice;
pub mod disk;
pub mod ec2;
pub mod fakes;
pub mod figures;
pub mod files;
pub mod history;
pub mod hosts;
pub mod interrupt;
pub mod login;
pub mod picture;
pub mod process;
pub mod proxy;
pub mod repository;
pub mod run;
pub mod shim;
pub mod slurm;
pub mod terminal;
pub mod traces;
pub mod wait;

pub use cluster::{Cluster, Options, Programs};
pub use process::{Output, Process};
pub use run::RunStatus;
