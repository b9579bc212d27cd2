//! The shim that becomes the agent.
//!
//! Between fork and exec a few things must happen inside the new process: it asks to be killed
//! with its supervisor, leaves the terminal's session, joins its cgroup. Doing them in a program
//! of its own needs no unsafe code, and a failure of the last step, the exec, can be reported for
//! what it is instead of as exit code 127.
//!
//! Its standard input is a socket to the supervisor. It reads one [`Request`] to the end of
//! input, answers with a line that says what contains it, and on failure with a second line that
//! says why. A successful exec closes the socket and says nothing more.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use rustix::process::{Signal, getppid, set_parent_process_death_signal, setsid};
use serde::{Deserialize, Serialize};

use super::cgroup;
use super::report::{Containment, ExecFailure};

/// Opening a pipe that nobody writes to would wait for ever.
const NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();

/// Is what the shim is to become.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) argv: Vec<String>,
    pub(super) cwd: PathBuf,
    pub(super) env: BTreeMap<String, String>,
    pub(super) cgroup: Option<PathBuf>,
    /// Pipe to read; nothing if absent.
    pub(super) input: Option<PathBuf>,
    /// Process id of the supervisor.
    pub(super) supervisor: i32,
}

/// Is what the shim has said.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) containment: Containment,
    pub(super) failure: Option<ExecFailure>,
}

impl Answer {
    /// Understands everything the shim said until it closed the socket. A shim that was killed
    /// before it said anything did not fail to execute: how it ended is told by its exit status.
    pub(super) fn parse(said: &[u8]) -> Self {
        let mut lines = said.split(|&byte| byte == b'\n');
        let containment = lines
            .next()
            .and_then(|line| serde_json::from_slice(line).ok());
        let failure = lines
            .next()
            .and_then(|line| serde_json::from_slice(line).ok());
        Self {
            containment: containment.unwrap_or(Containment::Subreaper),
            failure,
        }
    }
}

/// Becomes the agent; returns only if that failed, after having said so.
pub(super) fn main() -> ExitCode {
    // A copy that closes itself at exec, because standard input becomes /dev/null before it.
    let Ok(socket) = io::stdin().as_fd().try_clone_to_owned() else {
        return ExitCode::FAILURE;
    };
    let mut socket = UnixStream::from(socket);
    let failure = become_agent(&mut socket);
    // Nobody is left to be told if this fails.
    let _ = say(&mut socket, &failure);
    ExitCode::from(127)
}

fn become_agent(socket: &mut UnixStream) -> ExecFailure {
    match prepare(socket) {
        Ok(request) => {
            if let Err(error) = std::env::set_current_dir(&request.cwd) {
                return ExecFailure::WorkingFolder {
                    message: error.to_string(),
                };
            }
            let [program, arguments @ ..] = &request.argv[..] else {
                return ExecFailure::Other {
                    message: "there is no program".to_owned(),
                };
            };
            // It does not wait: the worker has opened it, or is gone, and then so is the supervisor soon.
            let input = request.input.as_ref().map_or(Ok(Stdio::null()), |path| {
                let pipe = File::options()
                    .read(true)
                    .custom_flags(NONBLOCK)
                    .open(path)?;
                rustix::io::ioctl_fionbio(&pipe, false)?;
                Ok::<_, io::Error>(Stdio::from(pipe))
            });
            let input = match input {
                Ok(input) => input,
                Err(error) => {
                    let message = format!("its input cannot be opened: {error}");
                    return ExecFailure::Other { message };
                }
            };
            let error = Command::new(program)
                .args(arguments)
                .env_clear()
                .envs(&request.env)
                .stdin(input)
                .exec();
            match error.kind() {
                io::ErrorKind::NotFound => ExecFailure::NotFound,
                io::ErrorKind::PermissionDenied => ExecFailure::PermissionDenied,
                _ => ExecFailure::Other {
                    message: error.to_string(),
                },
            }
        }
        Err(error) => ExecFailure::Other {
            message: error.to_string(),
        },
    }
}

/// Reads the request and does everything but the exec.
fn prepare(socket: &mut UnixStream) -> io::Result<Request> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut request = Vec::new();
    socket.read_to_end(&mut request)?;
    let request: Request = serde_json::from_slice(&request)?;
    // It may have died before the line above asked the kernel to tell.
    if getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(request.supervisor) {
        return Err(io::Error::other("the supervisor has ended"));
    }
    setsid()?;
    let joined = request
        .cgroup
        .as_deref()
        .is_some_and(|path| cgroup::join(path).is_ok());
    say(
        socket,
        if joined {
            &Containment::Cgroup
        } else {
            &Containment::Subreaper
        },
    )?;
    Ok(request)
}

fn say<T: Serialize>(socket: &mut UnixStream, what: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    socket.write_all(&line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_shim_says_is_understood() {
        let answer = |said: &[u8]| {
            let answer = Answer::parse(said);
            (answer.containment, answer.failure)
        };
        assert_eq!(answer(b""), (Containment::Subreaper, None));
        assert_eq!(answer(b"\"cgroup\"\n"), (Containment::Cgroup, None));
        assert_eq!(
            answer(b"\"subreaper\"\n{\"why\":\"not_found\"}\n"),
            (Containment::Subreaper, Some(ExecFailure::NotFound))
        );
    }
}
