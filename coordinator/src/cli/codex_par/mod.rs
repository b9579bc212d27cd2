//! The files of codex-par, for people and scripts that know them: `run --dir` writes them,
//! `status --dir`, `tail` and `clean` read and remove them.
//!
//! They are a projection: the coordinator's journal and transcripts are the truth, and nothing of
//! Muster ever reads these files back into a run.

mod commands;
mod layout;
mod record;
mod show;
mod stream;

pub(crate) use commands::{clean, status, tail};
pub(crate) use layout::Folder;
pub(crate) use record::Recorder;
