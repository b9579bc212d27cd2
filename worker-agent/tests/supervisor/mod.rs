//! The attempt supervisor, with real processes.

mod bench;
mod ends;
