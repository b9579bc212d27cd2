//! The `coordinator` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    // First, before anything else is read: git runs this once for each push.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|first| first == coordinator::git::hook::SUBCOMMAND)
    {
        return coordinator::git::hook::hook_main();
    }
    // Supervisors need a process that has one thread still.
    if let Some(code) = worker_agent::supervisor::dispatch(std::env::args_os()) {
        return code;
    }
    if let Some(code) = coordinator::cli::worker::dispatch(std::env::args_os()) {
        return code;
    }
    coordinator::cli::main()
}
