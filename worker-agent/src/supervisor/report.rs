//! How a supervised tree ended.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Error, files};

/// Says how the agent's main process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// It exited with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

/// Says who ended the tree before it ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopCause {
    /// The lease's deadline passed without a renewal.
    Deadline,
    /// The worker asked for it.
    Request,
    /// The worker closed its end of the control pipe, which is what its death does.
    WorkerGone,
    /// Somebody sent TERM to the supervisor.
    Signal,
}

/// Says why the agent could not be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum ExecFailure {
    /// There is no such program, or no interpreter for it.
    NotFound,
    /// It may not be executed.
    PermissionDenied,
    /// The working folder cannot be entered.
    WorkingFolder {
        /// What the kernel said.
        message: String,
    },
    /// Anything else: a wrong format, too many arguments, no process to be had.
    Other {
        /// What the kernel said.
        message: String,
    },
}

/// Says whether the processes of a lost supervisor are known to be gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LostTree {
    /// No process with the tree's mark is left, nor any in its cgroup.
    ///
    /// Without a cgroup, and if the guard was lost as well, one kind of process escapes this test:
    /// one that left its parent *and* wiped or hid its environment before both were killed.
    Gone,
    /// Some were seen and withstood KILL until the time was up.
    Remains,
}

/// Says how a launch ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum End {
    /// The main process exited by itself.
    Exited {
        /// Its exit code.
        code: i32,
    },
    /// The main process was killed, but not by the supervisor.
    Signalled {
        /// The signal's number.
        signal: i32,
    },
    /// The program never ran.
    ExecFailed {
        /// Why.
        reason: ExecFailure,
    },
    /// The supervisor ended the tree.
    Stopped {
        /// On whose behalf.
        by: StopCause,
        /// What became of the main process; `None` if it had not been started.
        status: Option<ExitStatus>,
    },
    /// The supervisor itself was killed.
    SupervisorLost {
        /// What is known about the processes it left.
        tree: LostTree,
    },
}

/// Says whether the tree had a cgroup of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Containment {
    /// It had; not even a process that hides can outlive it.
    Cgroup,
    /// It had none: no cgroup2, or none this user may divide.
    Subreaper,
}

/// Counts bytes of output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputBytes {
    /// Bytes kept in the spool.
    pub stored: u64,
    /// Bytes read from the agent and dropped, because the limit was reached or the disk refused.
    pub dropped: u64,
}

/// Says when a launch began and how long it took, time asleep included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// Wall clock in milliseconds since 1970 when the supervisor began.
    pub began_unix_ms: u64,
    /// Milliseconds from then until the main process ended; `None` if it never ran.
    pub ran_ms: Option<u64>,
    /// Milliseconds from the beginning until no process was left.
    pub gone_ms: u64,
}

/// Is the last word on a launch.
///
/// Where a supervisor wrote it, no process of the tree was left: it is not written before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitReport {
    /// How it ended.
    #[serde(flatten)]
    pub end: End,
    /// What held the tree together.
    pub containment: Containment,
    /// When; `None` if the supervisor was lost and could not tell.
    pub times: Option<Times>,
    /// How much the agent wrote.
    pub output: OutputBytes,
}

impl ExitReport {
    pub(super) fn store(&self, dir: &Path) -> Result<(), Error> {
        files::write_json(&dir.join(files::EXIT), self)
    }

    /// Takes the room that the report will need.
    pub(super) fn reserve(dir: &Path) -> Result<files::Reserved, Error> {
        files::Reserved::create(&dir.join(files::EXIT))
    }

    pub(super) fn load(dir: &Path) -> Result<Option<Self>, Error> {
        files::read_json(&dir.join(files::EXIT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_survives_its_file() {
        let status = Some(ExitStatus::Signal(15));
        let ends = [
            End::Exited { code: 3 },
            End::Signalled { signal: 11 },
            End::ExecFailed {
                reason: ExecFailure::NotFound,
            },
            End::ExecFailed {
                reason: ExecFailure::Other {
                    message: "m".into(),
                },
            },
            End::Stopped {
                by: StopCause::WorkerGone,
                status,
            },
            End::Stopped {
                by: StopCause::Deadline,
                status: None,
            },
            End::SupervisorLost {
                tree: LostTree::Gone,
            },
        ];
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(ExitReport::load(dir.path()).unwrap(), None);
        for end in ends {
            let report = ExitReport {
                end,
                containment: Containment::Subreaper,
                times: Some(Times {
                    began_unix_ms: 1,
                    ran_ms: Some(2),
                    gone_ms: 3,
                }),
                output: OutputBytes {
                    stored: 4,
                    dropped: 5,
                },
            };
            report.store(dir.path()).unwrap();
            assert_eq!(ExitReport::load(dir.path()).unwrap(), Some(report));
        }
    }
}
