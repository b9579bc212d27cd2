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
use tokio_util::sync::CancellationToken;
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

/// Asks a worker that an earlier coordinator on this home had started to leave, if it still runs.
fn stop_inherited(options: &Options) {
    let Ok(mut lock) = std::fs::File::open(options.state_dir().join("lock")) else {
        return;
    };
    let held = matches!(lock.try_lock(), Err(std::fs::TryLockError::WouldBlock));
    let mut text = String::new();
    if held
        && lock.read_to_string(&mut text).is_ok()
        && let Some(id) = text.trim().parse().ok().and_then(Pid::from_raw)
        && let Err(error) = kill_process(id, Signal::TERM)
    {
        warn!(error = %error, "failed to ask the local worker to leave");
    }
}

/// Keeps a local worker running until `ending`; asks it to leave then if `leave` is set.
pub async fn run(options: Options, ending: CancellationToken, leave: CancellationToken) {
    let mut pause = PAUSE;
    loop {
        let begun = tokio::time::Instant::now();
        match options.command().spawn() {
            Ok(mut child) => {
                tokio::select! {
                    () = ending.cancelled() => {
                        if leave.is_cancelled() {
                            stop(&mut child).await;
                        }
                        return;
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
            () = ending.cancelled() => {
                if leave.is_cancelled() {
                    stop_inherited(&options);
                }
                return;
            }
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Asks a worker to leave, and leaves it alone if it takes too long: it holds work.
async fn stop(child: &mut Child) {
    if let Some(id) = child.id().and_then(|id| i32::try_from(id).ok())
        && let Some(id) = Pid::from_raw(id)
        && let Err(error) = kill_process(id, Signal::TERM)
    {
        warn!(error = %error, "failed to ask the local worker to leave");
    }
    if tokio::time::timeout(LEAVE, child.wait()).await.is_err() {
        warn!("the local worker has not left yet; it goes on by itself until its leases end");
    }
}
