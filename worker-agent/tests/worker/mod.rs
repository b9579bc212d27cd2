//! A worker from its hello to its goodbye, with a fake coordinator and real processes.

mod attempts;
mod bench;
mod command_line;
mod conversations;
mod fake;
mod handover;
mod sessions;
