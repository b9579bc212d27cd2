//! Where workers come from.

pub mod local;
