//! The `worker-agent` executable.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

/// Leases tasks from a Muster coordinator and runs coding agents.
#[derive(Debug, Parser)]
#[command(name = "worker-agent", version)]
struct Arguments {
    #[command(flatten)]
    worker: worker_agent::cli::WorkerArgs,
}

fn main() -> ExitCode {
    if let Some(code) = worker_agent::supervisor::dispatch(std::env::args_os()) {
        return code;
    }
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("MUSTER_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    worker_agent::cli::main(arguments.worker)
}
