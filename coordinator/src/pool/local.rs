//! The local pool: a worker process of this very executable beside the coordinator.
//!
//! The worker is a process of its own, so that it outlives a killed coordinator: it keeps its
//! attempts, and the next coordinator on the home finds it again through the address file. A
//! worker that is still there holds its state folder's lock; a second one then ends at once, and
//! is started again only when the first is gone.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tracing::{info, warn};

/// A worker whose coordinator never comes back ends by itself; one that is merely idle is started
/// again.
const IDLE_EXIT: &str = "15m";
/// First pause before a worker that ended is started again; doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_secs(1);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A worker that ran for longer had started well.
const HEALTHY: Duration = Duration::from_secs(60);
/// How long a worker may take to leave after it was asked to.
const LEAVE: Duration = Duration::from_secs(20);

/// How often a worker that is not our child is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// What the local worker is started with.
#[derive(Clone, Debug)]
pub struct Options {
    pub home: PathBuf,
    pub executable: PathBuf,
    /// File with the join token of the local pool.
    pub token_file: PathBuf,
    pub slots: u32,
}

impl Options {
    fn state_dir(&self) -> PathBuf {
        self.home.join("worker").join("0")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.executable);
        command
            .arg("worker")
            .arg("--address-file")
            .arg(muster_connect::AddressFile::path(&self.home))
            .arg("--token-file")
            .arg(&self.token_file)
            .arg("--slots")
            .arg(self.slots.to_string())
            .arg("--state-dir")
            .arg(self.state_dir())
            .arg("--idle-exit")
            .arg(IDLE_EXIT)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // A group of its own: an interrupt in the terminal is the coordinator's to handle.
            .process_group(0);
        match std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.home.join("worker.log"))
        {
            Ok(log) => command.stderr(log),
            Err(_) => command.stderr(Stdio::null()),
        };
        command
    }
}

/// What becomes of the local worker when its coordinator ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parting {
    /// It goes on, and meets the next coordinator on this home.
    Keep,
    /// It finishes what it holds, and ends.
    Drain,
    /// It ends its agents, keeps their edits and gives their tasks back.
    Stop,
}

impl Parting {
    /// The signals that say so to a worker, which takes each for a stronger wish. They differ,
    /// since the second of two alike is lost when the first has not been taken yet.
    fn signals(self) -> &'static [Signal] {
        match self {
            Self::Keep => &[],
            Self::Drain => &[Signal::TERM],
            Self::Stop => &[Signal::TERM, Signal::INT],
        }
    }
}

/// Keeps a local worker running until told how to part with it.
pub async fn run(options: Options, mut parting: watch::Receiver<Option<Parting>>) {
    let mut pause = PAUSE;
    loop {
        let begun = tokio::time::Instant::now();
        match options.command().spawn() {
            Ok(mut child) => {
                tokio::select! {
                    how = told(&mut parting) => {
                        let own = child.id();
                        part(&mut child, how).await;
                        // Ours had nothing to hold if another one was there before it.
                        return part_with_inherited(&options, how, own).await;
                    }
                    ended = child.wait() => {
                        let ended = ended.map_or_else(|error| error.to_string(), |how| how.to_string());
                        info!(ended, "the local worker has ended");
                    }
                }
            }
            Err(error) => warn!(error = %error, "failed to start the local worker"),
        }
        pause = if begun.elapsed() > HEALTHY {
            PAUSE
        } else {
            (pause * 2).min(PAUSE_MAX)
        };
        tokio::select! {
            how = told(&mut parting) => return part_with_inherited(&options, how, None).await,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn told(parting: &mut watch::Receiver<Option<Parting>>) -> Parting {
    match parting.wait_for(Option::is_some).await {
        Ok(how) => how.unwrap_or(Parting::Keep),
        // The coordinator is gone without a word.
        Err(_) => Parting::Keep,
    }
}

fn terminate(id: Pid, how: Parting) {
    for signal in how.signals() {
        if let Err(error) = kill_process(id, *signal) {
            warn!(error = %error, "failed to ask the local worker to leave");
        }
    }
}

/// Parts with our own worker, and leaves it alone if that takes too long: it holds work.
async fn part(child: &mut Child, how: Parting) {
    if how == Parting::Keep {
        return;
    }
    if let Some(id) = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw)
    {
        terminate(id, how);
    }
    if tokio::time::timeout(LEAVE, child.wait()).await.is_err() {
        warn!("the local worker has not left yet; it goes on by itself until its leases end");
    }
}

/// Parts with a worker that an earlier coordinator on this home had started, if it still runs and
/// is not our `own`, and leaves it alone if that takes too long.
async fn part_with_inherited(options: &Options, how: Parting, own: Option<u32>) {
    if how == Parting::Keep {
        return;
    }
    let Ok(mut lock) = std::fs::File::open(options.state_dir().join("lock")) else {
        return;
    };
    let mut text = String::new();
    if is_held(&lock)
        && lock.read_to_string(&mut text).is_ok()
        && let Some(id) = text.trim().parse().ok().and_then(Pid::from_raw)
        && own.and_then(|own| i32::try_from(own).ok()) != Some(id.as_raw_nonzero().get())
    {
        terminate(id, how);
        let gone = async {
            while is_held(&lock) {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(LEAVE, gone).await.is_err() {
            warn!("the earlier local worker has not left yet; it goes on until its leases end");
        }
    }
}

/// Tells whether a worker holds the lock of the state folder.
fn is_held(lock: &std::fs::File) -> bool {
    match lock.try_lock() {
        // It was for looking only: the next worker must get it.
        Ok(()) => {
            drop(lock.unlock());
            false
        }
        Err(error) => matches!(error, std::fs::TryLockError::WouldBlock),
    }
}
