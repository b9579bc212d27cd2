//! The coordinator of Muster.

pub mod api;
pub mod app;
pub mod audit;
pub mod auth;
pub mod backup;
mod causes;
pub mod cli;
pub mod config;
pub mod engine;
mod file_system;
pub mod git;
pub mod home;
pub mod ledger;
pub mod output;
pub mod plan;
pub mod pool;
pub mod store;
pub mod transcript;

/// Name and version of this program, for peers and people.
pub const SOFTWARE: &str = concat!("coordinator ", env!("CARGO_PKG_VERSION"));
