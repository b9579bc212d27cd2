//! coordinator

pub mod git;
