//! The `worker-agent` executable.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

/// Leases tasks from a Muster coordinator and runs coding agents.
#[derive(Debug, Parser)]
#[command(name = "worker-agent", version, max_term_width = 80)]
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
        .with_ansi(may_colour())
        .init();
    worker_agent::cli::main(arguments.worker)
}

/// Tells whether the log may be coloured, as <https://no-color.org> has it.
fn may_colour() -> bool {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    std::io::stderr().is_terminal()
        && set("NO_COLOR").is_none()
        && set("TERM").is_none_or(|term| term != "dumb")
}
