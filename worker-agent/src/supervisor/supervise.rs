//! The supervisor process: one thread, one loop around `poll`.
//!
//! It waits for six things: output of the agent, lines of the worker, ended children, the next
//! moment at which something is due, the shim's answer, and room for its own words. None of them
//! can make it wait for another, so a worker that is frozen or an agent that floods does not
//! delay the deadline.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, getpid, set_child_subreaper, wait as wait_any};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use super::cgroup::Cgroup;
use super::ending::{Ending, Progress};
use super::exec::{Answer, Request};
use super::launch::{CgroupUse, Input, Launch, MARK_VARIABLE};
use super::notices::Notices;
use super::protocol::{Lines, Notice, Order};
use super::report::{Containment, End, ExecFailure, ExitReport, ExitStatus, StopCause, Times};
use super::signals::Signals;
use super::spool::{SpoolWriter, Stream};
use super::{EXEC_SUBCOMMAND, Error, files};
use crate::clock::{self, Boottime};
use crate::mask::Masker;

/// What may lie in a pipe after its last writer is gone: the largest an ordinary user can make.
const PIPE_BYTES_MAX: usize = 1 << 20;

/// Output taken at once, which becomes one event: as much as a line of 64 kbit/s carries in two
/// seconds, so that a heartbeat hardly waits behind it.
const READ_BYTES: usize = 16 << 10;

/// Children reaped before the loop looks at anything else: a storm of forks must not hold it.
const REAP_MAX: usize = 1024;

/// Supervises the launch that lies in the folder, until no process of it is left.
///
/// # Errors
/// Fails without having started anything if the folder is in use, was used, or holds no sound
/// launch. A later failure ends this process and with it, by the kernel's hand, the agent's main
/// process; the worker then sweeps.
pub(super) fn run(dir: &Path) -> Result<(), Error> {
    set_child_subreaper(Some(getpid())).map_err(Error::system("become a subreaper"))?;
    let lock = files::open_lock(dir, files::LOCK)?;
    lock.try_lock().map_err(|_| Error::Held(dir.to_owned()))?;
    if ExitReport::load(dir)?.is_some() {
        return Err(Error::Used(dir.to_owned()));
    }
    let launch = Launch::load(dir)?.ok_or(Error::InvalidLaunch("there is no launch.json"))?;
    let mut told = launch.clone();
    told.env.clear();
    told.unseen.clear();
    let supervisor = Supervisor::new(dir, launch)?;
    // From here on nobody reads the environment any more, and the agent could: it may hold secrets that
    // the agent hides from the commands it runs. A disk that is too full for this takes no new work soon.
    let _ = told.store(dir);
    // The lock is held until the last word is written.
    supervisor.run()
}

/// Is where the agent's main process stands.
#[derive(Debug)]
enum Main {
    NotStarted,
    Starting {
        pid: Pid,
        answer: UnixStream,
        said: Vec<u8>,
    },
    Running {
        pid: Pid,
    },
    Ended,
}

/// Is why the tree is being ended.
#[derive(Debug)]
enum Cause {
    Exited(ExitStatus),
    ExecFailed(ExecFailure),
    Stopped(StopCause),
}

/// Says whether this process has children, which tells whether it has descendants: as their
/// subreaper it inherits each one whose parent ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Children {
    Some,
    None,
}

#[derive(Debug, Clone, Copy)]
enum Source {
    Signals,
    Timer,
    Control,
    Answer,
    Output(usize),
    Notices,
}

struct Supervisor {
    dir: PathBuf,
    launch: Launch,
    deadline: Boottime,
    signals: Signals,
    timer: OwnedFd,
    /// `None` once the worker has closed it.
    control: Option<io::Stdin>,
    lines: Lines,
    asked: Option<StopCause>,
    notices: Notices,
    main: Main,
    status: Option<ExitStatus>,
    containment: Containment,
    cgroup: Option<Cgroup>,
    /// `None` once the agent and all its children have closed it.
    outputs: Vec<Option<(Stream, OwnedFd)>>,
    /// One for each output: none of them ends in the middle of another's value.
    maskers: Vec<(Stream, Masker)>,
    buffer: Box<[u8; READ_BYTES]>,
    /// Bytes that the agent has written.
    written: u64,
    spool: SpoolWriter,
    report: files::Reserved,
    ending: Option<(Cause, Ending)>,
    began: Boottime,
    began_unix_ms: u64,
    ran_ms: Option<u64>,
}

impl Supervisor {
    fn new(dir: &Path, launch: Launch) -> Result<Self, Error> {
        let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC)
            .map_err(Error::system("make a timer"))?;
        Ok(Self {
            dir: dir.to_owned(),
            deadline: launch.deadline,
            signals: Signals::install()?,
            timer,
            control: Some(io::stdin()),
            lines: Lines::default(),
            asked: None,
            notices: Notices::new(io::stdout()),
            main: Main::NotStarted,
            status: None,
            containment: Containment::Subreaper,
            cgroup: match launch.cgroup {
                CgroupUse::IfPossible => Cgroup::create(dir, &launch.mark)?,
                CgroupUse::Never => None,
            },
            outputs: Vec::new(),
            maskers: [Stream::Stdout, Stream::Stderr]
                .map(|stream| (stream, Masker::new(launch.mask())))
                .into(),
            buffer: Box::new([0; READ_BYTES]),
            written: 0,
            spool: SpoolWriter::create(dir, launch.output_bytes_max)?,
            report: ExitReport::reserve(dir)?,
            ending: None,
            began: clock::now(),
            began_unix_ms: clock::wall_millis(),
            ran_ms: None,
            launch,
        })
    }

    fn run(mut self) -> Result<(), Error> {
        // A worker that died after it started us must not get an agent nobody asked for.
        while self
            .control
            .as_ref()
            .is_some_and(|control| readable(control.as_fd()))
        {
            self.read_control();
        }
        match self.stop_cause(clock::now()) {
            Some(by) => self.end(Cause::Stopped(by))?,
            None => self.start()?,
        }
        loop {
            let children = self.reap()?;
            let now = clock::now();
            if self.ending.is_none()
                && let Some(by) = self.stop_cause(now)
            {
                self.end(Cause::Stopped(by))?;
            }
            if let Some((_, ending)) = &mut self.ending
                && ending.proceed(children, now, &self.launch.mark, self.cgroup.as_ref())?
                    == Progress::Gone
            {
                break;
            }
            self.notices.flush(now);
            self.wait()?;
        }
        self.conclude()
    }

    fn stop_cause(&self, now: Boottime) -> Option<StopCause> {
        if self.signals.terminated() {
            Some(StopCause::Signal)
        } else if now >= self.deadline {
            // Before the worker's own wishes: what it says now, it says too late.
            Some(StopCause::Deadline)
        } else {
            self.asked
        }
    }

    /// Starts the shim and hands it its request.
    fn start(&mut self) -> Result<(), Error> {
        match self.try_start() {
            Ok(()) => Ok(()),
            Err(error) => {
                let message = error.to_string();
                self.end(Cause::ExecFailed(ExecFailure::Other { message }))
            }
        }
    }

    fn try_start(&mut self) -> io::Result<()> {
        let (mut ours, theirs) = UnixStream::pair()?;
        // Through /proc, so that replacing the executable while it runs does not matter.
        let mut child = Command::new("/proc/self/exe")
            .arg0("worker-agent")
            .arg(EXEC_SUBCOMMAND)
            .env_clear()
            // From the first instruction on it can be found.
            .env(MARK_VARIABLE, self.launch.mark.as_str())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        self.outputs = vec![
            child.stdout.take().map(|fd| (Stream::Stdout, fd.into())),
            child.stderr.take().map(|fd| (Stream::Stderr, fd.into())),
        ];
        let mut env = self.launch.env.clone();
        env.insert(
            MARK_VARIABLE.to_owned(),
            self.launch.mark.as_str().to_owned(),
        );
        let request = Request {
            argv: self.launch.argv.clone(),
            cwd: self.launch.cwd.clone(),
            env,
            cgroup: self.cgroup.as_ref().map(|cgroup| cgroup.path().to_owned()),
            input: match self.launch.input {
                Input::Nothing => None,
                Input::Pipe => Some(self.dir.join(files::INPUT)),
            },
            supervisor: getpid().as_raw_nonzero().get(),
        };
        let request = serde_json::to_vec(&request)?;
        // A shim that ended already will be reaped, and its status says what happened.
        let _ = ours
            .write_all(&request)
            .and_then(|()| ours.shutdown(Shutdown::Write));
        self.main = Main::Starting {
            pid: Pid::from_child(&child),
            answer: ours,
            said: Vec::new(),
        };
        Ok(())
    }

    /// Takes in what the shim has said when it has said everything, and notes the start.
    fn settle_start(&mut self) -> Option<ExecFailure> {
        let Main::Starting { pid, said, .. } = &self.main else {
            return None;
        };
        let (pid, answer) = (*pid, Answer::parse(said));
        self.main = match answer.failure {
            None => Main::Running { pid },
            // The shim's own exit means nothing.
            Some(_) => Main::Ended,
        };
        self.containment = answer.containment;
        if self.containment == Containment::Subreaper
            && let Some(cgroup) = self.cgroup.take()
        {
            // An empty cgroup must not later look like proof that nothing runs.
            cgroup.discard(&self.dir);
        }
        if answer.failure.is_none() {
            let pid = pid.as_raw_nonzero().get();
            self.notices.say(Notice::Started {
                pid,
                containment: self.containment,
            });
        }
        answer.failure
    }

    /// Collects ended children. Sees to it that the end of the main process ends the tree.
    fn reap(&mut self) -> Result<Children, Error> {
        for _ in 0..REAP_MAX {
            match wait_any(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let code = status.exit_status().map(ExitStatus::Code);
                    let signal = status.terminating_signal().map(ExitStatus::Signal);
                    if let Some(status) = code.or(signal) {
                        self.child_ended(pid, status)?;
                    }
                }
                Ok(None) => return Ok(Children::Some),
                Err(Errno::CHILD) => return Ok(Children::None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(Error::system("wait for children")(error)),
            }
        }
        // There may be more: come back before sleeping.
        self.signals.wake();
        Ok(Children::Some)
    }

    fn child_ended(&mut self, ended: Pid, status: ExitStatus) -> Result<(), Error> {
        match &mut self.main {
            Main::Starting { pid, answer, said } if *pid == ended => {
                // It held the other end, so this does not wait.
                let _ = answer.read_to_end(said);
            }
            Main::Running { pid } if *pid == ended => {}
            Main::NotStarted | Main::Starting { .. } | Main::Running { .. } | Main::Ended => {
                return Ok(());
            }
        }
        let failure = self.settle_start();
        self.main = Main::Ended;
        let cause = match failure {
            Some(failure) => Cause::ExecFailed(failure),
            None => {
                self.status = Some(status);
                self.ran_ms = Some(self.elapsed_ms());
                self.notices.say(Notice::Exited(status));
                match self.signals.terminated() {
                    // Whoever told this process to end has told the agent too.
                    true => Cause::Stopped(StopCause::Signal),
                    false => Cause::Exited(status),
                }
            }
        };
        self.end(cause)
    }

    /// Begins to end the tree, once: the first cause counts.
    fn end(&mut self, cause: Cause) -> Result<(), Error> {
        if self.ending.is_none() {
            let grace_from = match &cause {
                // One that passed while this process was frozen or its host asleep has taken the
                // grace with it: the coordinator may have given the work to somebody else.
                Cause::Stopped(StopCause::Deadline) => self.deadline,
                Cause::Exited(_) | Cause::ExecFailed(_) | Cause::Stopped(_) => clock::now(),
            };
            let kill_at = grace_from.after(self.launch.term_grace());
            self.ending = Some((cause, Ending::begin(kill_at, &self.launch.mark)?));
        }
        Ok(())
    }

    /// Sleeps until something happens or is due, and takes it in.
    fn wait(&mut self) -> Result<(), Error> {
        let due = match &self.ending {
            Some((_, ending)) => ending.due(),
            None => self.deadline,
        };
        self.arm(self.notices.due().map_or(due, |notice| due.min(notice)))?;
        for source in self.ready()? {
            match source {
                Source::Signals => self.signals.clear(),
                Source::Timer | Source::Notices => {}
                Source::Control => self.read_control(),
                Source::Answer => self.read_answer()?,
                Source::Output(index) => drop(self.read_output(index)),
            }
        }
        Ok(())
    }

    /// Sets the one timer. It runs on CLOCK_BOOTTIME, so a deadline that passes while the laptop
    /// sleeps is noticed at waking; a timeout of `poll` would only go on counting.
    fn arm(&self, due: Boottime) -> Result<(), Error> {
        let time = Itimerspec {
            it_interval: Timespec::default(),
            // Zero would disarm it.
            it_value: due.max(Boottime::from_millis(1)).to_timespec(),
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &time)
            .map(drop)
            .map_err(Error::system("set a timer"))
    }

    /// Sleeps until one of the sources has something and returns those that have.
    fn ready(&self) -> Result<Vec<Source>, Error> {
        let mut sources = vec![
            (Source::Signals, self.signals.as_fd(), PollFlags::IN),
            (Source::Timer, self.timer.as_fd(), PollFlags::IN),
        ];
        if let Some(control) = &self.control {
            sources.push((Source::Control, control.as_fd(), PollFlags::IN));
        }
        if let Main::Starting { answer, .. } = &self.main {
            sources.push((Source::Answer, answer.as_fd(), PollFlags::IN));
        }
        for (index, output) in self.outputs.iter().enumerate() {
            if let Some((_, fd)) = output {
                sources.push((Source::Output(index), fd.as_fd(), PollFlags::IN));
            }
        }
        if let Some(fd) = self.notices.waiting() {
            sources.push((Source::Notices, fd, PollFlags::OUT));
        }
        let mut fds: Vec<PollFd<'_>> = sources
            .iter()
            .map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
            .collect();
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(Error::system("wait for something to happen")(error)),
        }
        let ready = sources
            .iter()
            .zip(&fds)
            .filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|((source, _, _), _)| *source).collect())
    }

    /// Reads what the worker says; only called when there is something, or its end.
    fn read_control(&mut self) {
        let Some(control) = &self.control else { return };
        let mut buffer = [0; 4096];
        match rustix::io::read(control, &mut buffer) {
            Ok(read @ 1..) => {
                for line in self.lines.push(buffer.get(..read).unwrap_or_default()) {
                    match Order::parse(&line) {
                        Some(Order::Renew(deadline)) => self.deadline = deadline,
                        Some(Order::Stop) => {
                            self.asked.get_or_insert(StopCause::Request);
                        }
                        None => {}
                    }
                }
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Ok(0) | Err(_) => {
                self.control = None;
                self.asked.get_or_insert(StopCause::WorkerGone);
            }
        }
    }

    fn read_answer(&mut self) -> Result<(), Error> {
        let Main::Starting { answer, said, .. } = &mut self.main else {
            return Ok(());
        };
        let mut buffer = [0; 4096];
        match answer.read(&mut buffer) {
            Ok(read @ 1..) => said.extend_from_slice(buffer.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => {
                if let Some(failure) = self.settle_start() {
                    self.end(Cause::ExecFailed(failure))?;
                }
            }
        }
        Ok(())
    }

    /// Reads one piece of output; only called when there is some, or its end. Returns its length.
    fn read_output(&mut self, index: usize) -> usize {
        let Some(output) = self.outputs.get_mut(index) else {
            return 0;
        };
        let Some((stream, fd)) = output else { return 0 };
        match rustix::io::read(fd, &mut self.buffer[..]) {
            Ok(read @ 1..) => {
                let bytes = self.buffer.get(..read).unwrap_or_default();
                match self.maskers.get_mut(index) {
                    // What is dropped needs no mask.
                    Some((_, masker)) if self.spool.count().dropped == 0 => {
                        self.spool.append(*stream, &masker.push(bytes));
                    }
                    _ => self.spool.append(*stream, bytes),
                }
                self.written += read as u64;
                self.notices.output(self.written);
                read
            }
            Err(Errno::INTR | Errno::AGAIN) => 0,
            Ok(0) | Err(_) => {
                *output = None;
                0
            }
        }
    }

    /// Says the last words; no process of the tree is left.
    fn conclude(mut self) -> Result<(), Error> {
        let gone_ms = self.elapsed_ms();
        for index in 0..self.outputs.len() {
            let mut left = PIPE_BYTES_MAX;
            while left > 0
                && let Some(Some((_, fd))) = self.outputs.get(index)
                && readable(fd.as_fd())
            {
                left = left.saturating_sub(self.read_output(index).max(1));
            }
        }
        for (stream, masker) in &mut self.maskers {
            self.spool.append(*stream, &masker.finish());
        }
        // A full disk must not hide the end as well; the counts are in the report too.
        let _ = self.spool.finish();
        if let Some(cgroup) = &self.cgroup {
            cgroup.remove();
        }
        let end = match self.ending.take() {
            // As above, and the agent was faster.
            Some((Cause::Exited(status), _))
                if status != ExitStatus::Code(0) && self.signals.terminated() =>
            {
                End::Stopped {
                    by: StopCause::Signal,
                    status: self.status,
                }
            }
            Some((Cause::Exited(ExitStatus::Code(code)), _)) => End::Exited { code },
            Some((Cause::Exited(ExitStatus::Signal(signal)), _)) => End::Signalled { signal },
            Some((Cause::ExecFailed(reason), _)) => End::ExecFailed { reason },
            Some((Cause::Stopped(by), _)) => End::Stopped {
                by,
                status: self.status,
            },
            // The loop ends only after an ending.
            None => return Ok(()),
        };
        let report = ExitReport {
            end,
            containment: self.containment,
            times: Some(Times {
                began_unix_ms: self.began_unix_ms,
                ran_ms: self.ran_ms,
                gone_ms,
            }),
            output: self.spool.count(),
        };
        self.report.write(&report)?;
        self.notices.say_output();
        self.notices.say(Notice::Gone);
        self.notices.flush(clock::now());
        Ok(())
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(clock::now().since(self.began).as_millis()).unwrap_or(u64::MAX)
    }
}

/// Says whether a read would return at once, with bytes or with the end.
fn readable(fd: BorrowedFd<'_>) -> bool {
    let mut ready = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    matches!(poll(&mut ready, Some(&Timespec::default())), Ok(1))
}
