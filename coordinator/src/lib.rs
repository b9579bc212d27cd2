//! The coordinator of Muster.

pub mod api;
pub mod auth;
pub mod git;
pub mod plan;
