//! Where workers come from.

pub mod local;
pub mod provider;
pub mod settings;
