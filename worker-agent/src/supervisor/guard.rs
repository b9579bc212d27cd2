//! The guard: the process between a worker and a supervisor.
//!
//! A supervisor can be killed like everything else, and its worker, which would sweep after it, may
//! be frozen at that moment. So a worker starts a guard, and the guard starts the supervisor. It is
//! a subreaper too: whatever a lost supervisor leaves becomes the guard's children, also what has
//! wiped its environment, and is killed at once. A supervisor that somebody stopped is waked at
//! once, since it could not keep its deadline.
//!
//! A guard decides nothing and knows no deadline, so its own loss changes nothing as long as the
//! supervisor lives. Only when both are lost, and the worker as well, does a tree outlive its lease:
//! until the worker goes on or starts again, which sweeps.

use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process, set_child_subreaper, setsid,
    wait as wait_any,
};

use super::cgroup::Cgroup;
use super::ending::{Ending, Progress};
use super::launch::{Launch, Mark};
use super::signals::Signals;
use super::supervise::Children;
use super::{Error, SUPERVISE_SUBCOMMAND, files};
use crate::clock;

/// Guards a supervisor of the folder's launch to its end, and ends what it left if it was lost.
/// Gives the exit code of the supervisor, which is also that of a loss.
///
/// # Errors
/// Fails without having started anything if the folder is in use or holds no sound launch. A later
/// failure leaves the supervisor alone with its tree.
pub(super) fn run(dir: &Path) -> Result<ExitCode, Error> {
    // Fails where the worker has already given this process a group of its own, which does as well.
    let _ = setsid();
    set_child_subreaper(Some(getpid())).map_err(Error::system("become a subreaper"))?;
    let lock = files::open_lock(dir, files::GUARD_LOCK)?;
    lock.try_lock().map_err(|_| Error::Held(dir.to_owned()))?;
    let mark = Launch::load(dir)?
        .ok_or(Error::InvalidLaunch("there is no launch.json"))?
        .mark;
    let mut guard = Guard {
        signals: Signals::install()?,
        supervisor: start(dir)?,
        ended: None,
    };
    let code = guard.watch()?;
    guard.end_rest(dir, &mark)?;
    Ok(code)
}

/// Starts the supervisor, which takes over what this process was given to talk with the worker.
fn start(dir: &Path) -> Result<Pid, Error> {
    let child = Command::new("/proc/self/exe")
        .arg(SUPERVISE_SUBCOMMAND)
        .arg("--dir")
        .arg(dir)
        .spawn()
        .map_err(Error::system("start a supervisor"))?;
    // The worker has to see the supervisor's end of the pipes close, not ours.
    let nothing = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(Error::file("open", Path::new("/dev/null")))?;
    rustix::stdio::dup2_stdin(&nothing).map_err(Error::system("leave a pipe"))?;
    rustix::stdio::dup2_stdout(&nothing).map_err(Error::system("leave a pipe"))?;
    Ok(Pid::from_child(&child))
}

struct Guard {
    signals: Signals,
    supervisor: Pid,
    /// How the supervisor ended.
    ended: Option<WaitStatus>,
}

impl Guard {
    /// Waits until the supervisor has ended; wakes it whenever it is stopped.
    fn watch(&mut self) -> Result<ExitCode, Error> {
        let mut passed_on = false;
        loop {
            self.signals.clear();
            let _ = self.reap()?;
            if let Some(status) = self.ended {
                let code = status
                    .exit_status()
                    .and_then(|code| u8::try_from(code).ok());
                return Ok(code.map_or(ExitCode::FAILURE, ExitCode::from));
            }
            if self.signals.terminated() && !passed_on {
                passed_on = true;
                self.tell(Signal::TERM);
            }
            self.sleep(None)?;
        }
    }

    /// Kills what is left below this process, or carries the mark, until nothing is; that is nothing
    /// unless the supervisor was lost.
    fn end_rest(&mut self, dir: &Path, mark: &Mark) -> Result<(), Error> {
        if self.reap()? == Children::None && super::is_over(dir) {
            return Ok(());
        }
        let cgroup = Cgroup::find(dir);
        let mut ending = Ending::at_once();
        loop {
            self.signals.clear();
            let children = self.reap()?;
            let now = clock::now();
            if ending.proceed(children, now, mark, cgroup.as_ref())? == Progress::Gone {
                return Ok(());
            }
            self.sleep(Some(ending.due().since(clock::now())))?;
        }
    }

    /// Collects what has happened to children.
    fn reap(&mut self) -> Result<Children, Error> {
        loop {
            match wait_any(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
                Ok(Some((pid, status))) if pid == self.supervisor => {
                    if status.stopped() {
                        self.tell(Signal::CONT);
                    } else {
                        self.ended = Some(status);
                    }
                }
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => return Ok(Children::Some),
                Err(Errno::CHILD) => return Ok(Children::None),
                Err(error) => return Err(Error::system("wait for children")(error)),
            }
        }
    }

    fn tell(&self, signal: Signal) {
        // It has not been waited for, so the id is its own.
        let _ = kill_process(self.supervisor, signal);
    }

    /// Sleeps until a signal comes or the time is up.
    fn sleep(&self, time: Option<Duration>) -> Result<(), Error> {
        let time = time.map(|time| Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: time.subsec_nanos().into(),
        });
        let mut signals = [PollFd::from_borrowed_fd(
            self.signals.as_fd(),
            PollFlags::IN,
        )];
        match poll(&mut signals, time.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(Error::system("wait for something to happen")(error)),
        }
    }
}
