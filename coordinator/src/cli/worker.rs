//! The hidden `coordinator worker`: the worker agent in this executable, which the local pool starts.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

/// The hidden subcommand. It is no command of the program's own: its options are the worker agent's.
pub const SUBCOMMAND: &str = "worker";

/// Leases tasks from a coordinator and runs agents.
#[derive(Debug, Parser)]
#[command(name = "coordinator worker", version)]
struct WorkerProgram {
    #[command(flatten)]
    worker: worker_agent::cli::WorkerArgs,
}

/// Under this name the executable is the worker agent: machines that get it from their coordinator
/// call it so.
const OWN_NAME: &str = "worker-agent";

/// Runs the worker agent if the arguments name it, and returns the exit code; `None` if they do not.
pub fn dispatch(arguments: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let mut arguments = arguments.into_iter().peekable();
    let name = arguments.peek().map(PathBuf::from);
    if name.is_none_or(|path| path.file_name() != Some(OWN_NAME.as_ref())) {
        arguments.next();
        if *arguments.peek()? != *SUBCOMMAND {
            return None;
        }
    }
    let program = WorkerProgram::parse_from(arguments);
    let filter = EnvFilter::try_from_env("MUSTER_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // Its log goes to a file or to a cluster's own: text that a person greps.
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        .init();
    Some(worker_agent::cli::main(program.worker))
}
