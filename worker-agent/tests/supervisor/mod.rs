//! The attempt supervisor, with real processes.

mod bench;
mod deaths;
mod ends;
mod lease;
mod output;
mod trees;
