//! The coordinator of Muster.

pub mod api;
pub mod app;
pub mod auth;
pub mod cli;
pub mod config;
pub mod git;
pub mod output;
pub mod plan;
