//! The wrapper on real repositories in temporary folders.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod caching;
mod commands;
mod everyday;
mod hostility;
mod merging;
mod refs;
mod remotes;
mod snapshots;
mod world;
