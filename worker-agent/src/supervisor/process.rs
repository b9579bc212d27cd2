//! The worker's side: starting a supervisor, steering it, hearing from it.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use super::cgroup::Cgroup;
use super::launch::Launch;
use super::leftover::{Leftover, leftover, lost};
use super::protocol::{Lines, Notice, Order};
use super::report::{Containment, ExitReport, ExitStatus, LostTree};
use super::{Error, GUARD_SUBCOMMAND, files};
use crate::clock::{self, Boottime};

/// How often a supervisor that should have ended is waked, in case somebody stopped it.
const NUDGE_INTERVAL: Duration = Duration::from_secs(5);

/// How long the lock of a supervisor that has ended may still look held, by a child that was
/// between fork and exec.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Is something that happened to a supervised launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The agent runs.
    Started {
        /// Process id of its main process.
        pid: i32,
        /// What holds its tree together.
        containment: Containment,
    },
    /// The agent has written this many bytes so far, dropped ones included.
    Output {
        /// Bytes since the start.
        bytes: u64,
    },
    /// The agent's main process ended; its descendants are being ended.
    Exited(ExitStatus),
    /// The supervisor has ended: [`SupervisedProcess::wait`] returns without waiting.
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Orders {
    deadline: Boottime,
    stop: Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    NotAsked,
    Asked,
}

/// What is known of the launch; the events are the differences between two looks at it, so a
/// listener that is late misses no fact and delays nobody.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Known {
    started: Option<(i32, Containment)>,
    bytes: u64,
    exited: Option<ExitStatus>,
}

/// Steers a supervisor; clones steer the same one. Never waits, and never fails: to a supervisor
/// that has ended there is nothing more to say.
#[derive(Debug, Clone)]
pub struct Control {
    orders: Arc<watch::Sender<Orders>>,
}

impl Control {
    /// Moves the deadline, also to an earlier moment. Of several not yet delivered the last counts.
    pub fn renew(&self, deadline: Boottime) {
        self.orders.send_modify(|orders| orders.deadline = deadline);
    }

    /// Asks for the tree to be ended. Repeating it changes nothing.
    pub fn stop(&self) {
        self.orders.send_modify(|orders| orders.stop = Stop::Asked);
    }
}

/// Is a launch under a supervisor, seen from the worker.
///
/// Dropping it, and all clones of its [`Control`], ends the tree as the worker's death would.
#[derive(Debug)]
pub struct SupervisedProcess {
    control: Control,
    known: watch::Receiver<Known>,
    told: Known,
    told_gone: bool,
    task: JoinHandle<Result<ExitReport, Error>>,
}

impl SupervisedProcess {
    /// Starts a supervisor for a launch. `executable` is one that calls
    /// [`dispatch`](super::dispatch); `dir` exists, is absolute, and belongs to this launch alone.
    ///
    /// # Errors
    /// Nothing runs then. The folder cannot be used for another launch if `launch.json` is in it.
    /// That the *agent* cannot be started is no error here but an end of the launch.
    pub async fn spawn(executable: &Path, launch: Launch, dir: &Path) -> Result<Self, Error> {
        launch.validate()?;
        let launched = Orders {
            deadline: launch.deadline,
            stop: Stop::NotAsked,
        };
        let overdue_after = launch.term_grace() + NUDGE_INTERVAL;
        let owned = dir.to_owned();
        let complaints = tokio::task::spawn_blocking(move || {
            if owned.join(files::LAUNCH).exists() {
                return Err(Error::Used(owned));
            }
            let path = owned.join(files::COMPLAINTS);
            let complaints = OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(&path)
                .map_err(Error::file("open", &path))?;
            launch.store(&owned)?;
            Ok(complaints)
        })
        .await
        .map_err(Error::system("write the launch"))??;

        let child = Command::new(executable)
            .arg(GUARD_SUBCOMMAND)
            .arg("--dir")
            .arg(dir)
            // The worker's environment may hold secrets, and the supervisor needs nothing of it.
            .env_clear()
            // What is typed at the worker's terminal is not for the supervisor.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(complaints)
            .spawn()
            .map_err(Error::system("start a supervisor"))?;
        let (orders, orders_seen) = watch::channel(launched);
        let (knowing, known) = watch::channel(Known::default());
        let talk = Talk {
            child,
            launched,
            orders: orders_seen,
            knowing,
            dir: dir.to_owned(),
            overdue_after,
        };
        Ok(Self {
            control: Control {
                orders: Arc::new(orders),
            },
            known,
            told: Known::default(),
            told_gone: false,
            task: tokio::spawn(talk.run()),
        })
    }

    /// Returns a handle that renews and stops.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Moves the deadline; see [`Control::renew`].
    pub fn renew(&self, deadline: Boottime) {
        self.control.renew(deadline);
    }

    /// Asks for the tree to be ended; see [`Control::stop`].
    pub fn stop(&self) {
        self.control.stop();
    }

    /// Returns the next event; `None` after [`Event::Gone`]. Several outputs may come as one.
    /// Dropping the future loses no event.
    pub async fn next_event(&mut self) -> Option<Event> {
        loop {
            let known = *self.known.borrow_and_update();
            if let (Some((pid, containment)), None) = (known.started, self.told.started) {
                self.told.started = known.started;
                return Some(Event::Started { pid, containment });
            }
            if known.bytes != self.told.bytes {
                self.told.bytes = known.bytes;
                return Some(Event::Output { bytes: known.bytes });
            }
            if let (Some(status), None) = (known.exited, self.told.exited) {
                self.told.exited = known.exited;
                return Some(Event::Exited(status));
            }
            if self.told_gone {
                return None;
            }
            // The sender goes when the supervisor's end is settled.
            if self.known.changed().await.is_err() && *self.known.borrow() == self.told {
                self.told_gone = true;
                return Some(Event::Gone);
            }
        }
    }

    /// Waits until no process of the launch is left, however long that takes, and says how it
    /// ended. If the supervisor was lost this sweeps up after it and says so in the report, also
    /// whether that succeeded.
    ///
    /// # Errors
    /// Fails if the folder's files cannot be used; nothing is then known about the processes, and
    /// [`leftover`] may be asked again.
    pub async fn wait(self) -> Result<ExitReport, Error> {
        self.task
            .await
            .map_err(Error::system("hear from a supervisor"))?
    }
}

/// Is the task that talks with one supervisor until it has ended.
struct Talk {
    child: Child,
    launched: Orders,
    orders: watch::Receiver<Orders>,
    knowing: watch::Sender<Known>,
    dir: PathBuf,
    overdue_after: Duration,
}

impl Talk {
    async fn run(mut self) -> Result<ExitReport, Error> {
        self.talk()
            .await
            .map_err(Error::system("hear from a supervisor"))?;
        let group = self.group();
        let mut nudge = interval(NUDGE_INTERVAL);
        loop {
            // The supervisor has ended, so its guard has only to clean up and end, and may be stopped.
            tokio::select! {
                _ = nudge.tick() => wake(group),
                ended = self.child.wait() => {
                    ended.map_err(Error::system("wait for a supervisor"))?;
                    break;
                }
            }
        }
        match leftover(&self.dir, LOCK_PATIENCE).await? {
            Leftover::Ended(report) => Ok(report),
            Leftover::Running | Leftover::Unconfirmed => Ok(lost(
                &self.dir,
                LostTree::Remains,
                Cgroup::find(&self.dir).as_ref(),
            )),
        }
    }

    /// Passes orders on and news back until the supervisor closes its end.
    async fn talk(&mut self) -> io::Result<()> {
        let mut stdin = self.child.stdin.take();
        let Some(mut stdout) = self.child.stdout.take() else {
            return Ok(());
        };
        // What the launch says, which is not always what the orders say by now.
        let mut sent = self.launched;
        let mut lines = Lines::default();
        let mut buffer = [0; 4096];
        let mut nudge = interval(NUDGE_INTERVAL);
        nudge.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changed = self.orders.changed(), if stdin.is_some() => {
                    let orders = *self.orders.borrow_and_update();
                    let passed = match (&mut stdin, changed) {
                        (Some(stdin), Ok(())) => pass_on(stdin, sent, orders).await,
                        // Nobody steers any more: closing the pipe ends the tree.
                        (_, Err(_)) | (None, _) => Err(io::ErrorKind::BrokenPipe.into()),
                    };
                    sent = orders;
                    self.nudge(orders);
                    if passed.is_err() {
                        stdin = None;
                    }
                }
                read = stdout.read(&mut buffer) => match read? {
                    0 => return Ok(()),
                    read => {
                        for line in lines.push(buffer.get(..read).unwrap_or_default()) {
                            self.take_in(&line);
                        }
                    }
                },
                _ = nudge.tick() => self.nudge(sent),
            }
        }
    }

    fn take_in(&self, line: &str) {
        let Some(notice) = Notice::parse(line) else {
            return;
        };
        self.knowing.send_modify(|known| match notice {
            Notice::Started { pid, containment } => known.started = Some((pid, containment)),
            Notice::Output(bytes) => known.bytes = bytes,
            Notice::Exited(status) => known.exited = Some(status),
            // The report says it, once it has been read.
            Notice::Gone => {}
        });
    }

    /// Wakes a supervisor that is overdue: one that was stopped cannot keep its deadline.
    fn nudge(&self, orders: Orders) {
        let overdue = clock::now() >= orders.deadline.after(self.overdue_after);
        if overdue || orders.stop == Stop::Asked {
            wake(self.group());
        }
    }

    /// Gives the process group of guard and supervisor; `None` once the guard was waited for.
    fn group(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.child.id()?).ok()?)
    }
}

/// Wakes the processes of a group whose leader has not been waited for, so that its id is its own;
/// does nothing to those that run.
fn wake(group: Option<Pid>) {
    if let Some(group) = group {
        // An error means that they have ended.
        let _ = kill_process_group(group, Signal::CONT);
    }
}

/// Writes what changed between two states of the orders.
async fn pass_on(stdin: &mut ChildStdin, sent: Orders, orders: Orders) -> io::Result<()> {
    let mut text = String::new();
    if orders.deadline != sent.deadline {
        text.push_str(&Order::Renew(orders.deadline).to_string());
    }
    if orders.stop != sent.stop {
        text.push_str(&Order::Stop.to_string());
    }
    stdin.write_all(text.as_bytes()).await
}
