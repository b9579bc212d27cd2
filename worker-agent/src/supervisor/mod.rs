//! The supervisor of one attempt (or one verify command): a process of its own that owns the
//! agent's process tree and the lease's deadline.
//!
//! A worker can be killed, frozen or suspended at any moment, and its agents must still be
//! stopped in time. So the worker runs none itself. It starts this executable again with a hidden
//! subcommand; that process is *subreaper* of the agent, so that whatever the agent starts, and
//! however it detaches it, ends up as a child of the supervisor and can be ended and counted. The
//! worker renews the deadline over a pipe. When the deadline passes, when the worker asks, or when
//! the pipe ends because the worker did, the supervisor ends the tree: TERM, grace, KILL, until
//! nothing is left. Only then does it write its report: **a report by a supervisor means that no
//! process of the tree exists.**
//!
//! ```text
//! worker ── renew, stop ──▶ supervisor ──▶ shim, which becomes the agent ──▶ its processes
//!        ◀─ started, output, exited, gone    │
//!                                            ▼  agent.out (spool), exit.json, supervisor.lock
//! ```
//!
//! What if the supervisor itself is killed? The kernel kills the agent's main process with it
//! (PDEATHSIG), and the *guard* the rest: a process between worker and supervisor that does nothing
//! else, inherits whatever a lost supervisor leaves, and wakes one that was stopped. Where the guard
//! was lost as well, the worker, or the next one, sweeps by cgroup and by [`MARK_VARIABLE`].
//!
//! A folder serves one launch, and nothing in it is ever deleted here.

mod cgroup;
mod ending;
mod error;
mod exec;
mod files;
mod guard;
mod input;
mod launch;
mod leftover;
mod notices;
mod process;
mod protocol;
mod report;
mod signals;
mod spool;
mod supervise;
mod tree;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub use error::Error;
pub use input::{hide_input, open_input};
pub use launch::{CgroupUse, Input, Launch, MARK_VARIABLE, Mark, TERM_GRACE};
pub use leftover::{Leftover, leftover};
pub use process::{Control, Event, SupervisedProcess};
pub use report::{
    Containment, End, ExecFailure, ExitReport, ExitStatus, LostTree, OutputBytes, StopCause, Times,
};
#[cfg(test)]
pub(crate) use spool::SpoolWriter;
pub use spool::{Content, OutputReader, RECORD_BYTES_MAX, Record, Stream};

/// Tells whether a folder's launch is known to be over.
pub(crate) fn is_over(dir: &Path) -> bool {
    dir.join(files::EXIT).exists()
}

/// Gives the word that the processes of a folder's launch carry; `None` if none was begun.
pub(crate) fn mark_of(dir: &Path) -> Result<Option<String>, Error> {
    let launch = Launch::load(dir)?;
    Ok(launch.map(|launch| launch.mark.as_str().to_owned()))
}

/// Gives the files that a folder's guard and supervisor lock for as long as they live.
pub(crate) fn locks_of(dir: &Path) -> [PathBuf; 2] {
    files::LOCKS.map(|name| dir.join(name))
}

/// Gives the cgroup of a folder's launch, if it is still there.
pub(crate) fn cgroup_of(dir: &Path) -> Option<PathBuf> {
    cgroup::Cgroup::find(dir).map(|cgroup| cgroup.path().to_owned())
}

const GUARD_SUBCOMMAND: &str = "supervise-guard";
const SUPERVISE_SUBCOMMAND: &str = "supervise";
const EXEC_SUBCOMMAND: &str = "supervise-exec";

/// Runs one of the hidden subcommands if the arguments name it, and returns the exit code;
/// `None` if they do not.
///
/// Every executable that starts supervisors must call this first in `main`, while there is one
/// thread, and before it reads any configuration.
pub fn dispatch(arguments: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let mut arguments = arguments.into_iter().skip(1);
    let subcommand = arguments.next()?;
    match subcommand.to_str()? {
        EXEC_SUBCOMMAND => Some(exec::main()),
        GUARD_SUBCOMMAND => Some(main(arguments, guard::run)),
        SUPERVISE_SUBCOMMAND => Some(main(arguments, |dir| {
            supervise::run(dir).map(|()| ExitCode::SUCCESS)
        })),
        _ => None,
    }
}

/// Is a guard or a supervisor process: takes `--dir DIR`. A supervisor ends with success once the
/// tree is gone and the report is written; a guard ends as its supervisor did.
fn main(
    arguments: impl IntoIterator<Item = OsString>,
    run: impl FnOnce(&Path) -> Result<ExitCode, Error>,
) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let complaint = match &arguments[..] {
        [option, dir] if option == "--dir" => match run(Path::new(dir)) {
            Ok(code) => return code,
            Err(error) => chain(&error),
        },
        _ => "usage: supervise --dir DIR".to_owned(),
    };
    // Standard error is a file in the folder; if that is full there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "{complaint}");
    ExitCode::FAILURE
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
