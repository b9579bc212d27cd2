//! The `worker-agent` executable.

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = worker_agent::supervisor::dispatch(std::env::args_os()) {
        return code;
    }
    ExitCode::FAILURE
}
