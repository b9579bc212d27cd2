//! Pools of processes beside the coordinator: each allocation is one worker.
//!
//! The processes outlive a killed coordinator; the next one finds them by what was kept of each.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;

use coordinator_core::AllocationId;
use coordinator_core::pool::Policy;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use muster_connect::private_file;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tracing::{info, warn};

use super::folder;
use super::provider::{Error, Known, Order, OrderName, Provider, Sighted, Sighting};
use crate::auth::make_private_folder;

/// End of the name of the file that is kept of a process.
const PROCESS: &str = ".process";
/// What the workers of a pool print.
const LOG: &str = "workers.log";
const KEPT_BYTES_MAX: u64 = 4096;

/// What workers of a local pool are started with.
#[derive(Clone, Debug)]
pub struct Processes {
    pub pool: Arc<str>,
    /// The coordinator's home.
    pub home: PathBuf,
    pub home_id: Arc<str>,
    /// Name of this host.
    pub host: Box<str>,
    /// This program.
    pub executable: PathBuf,
    pub policy: Policy,
    /// Further arguments of each worker.
    pub worker_args: Vec<String>,
}

/// What is kept of a process, so that the next coordinator finds it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    first: u64,
    index: u32,
    pid: i32,
    /// When it began, in the system's ticks since boot: ids of processes are used again.
    begun: u64,
}

impl Processes {
    fn folder(&self) -> PathBuf {
        folder(&self.home, &self.pool)
    }

    fn spawn(&self, order: &Order, index: u32) -> std::io::Result<Sighting> {
        let place = usize::try_from(index).unwrap_or(usize::MAX);
        let token = order
            .tokens
            .get(place)
            .ok_or(std::io::ErrorKind::NotFound)?;
        make_private_folder(&self.folder())?;
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder().join(LOG))?;
        let mut command = Command::new(&self.executable);
        command
            .arg("worker")
            .arg("--address-file")
            .arg(muster_connect::AddressFile::path(&self.home))
            .arg("--token-file")
            .arg(token)
            .args(offer(&self.policy))
            .args(&self.worker_args)
            // Its state is in a numbered folder below, which with the pool makes its name.
            .env("MUSTER_HOME", self.folder())
            .env("MUSTER_ALLOCATION", &*self.pool)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0);
        let mut child = command.spawn()?;
        let external: Box<str> = AllocationId(order.first.0.saturating_add(u64::from(index)))
            .to_string()
            .into();
        let pid = child.id().and_then(|id| i32::try_from(id).ok());
        let kept = pid.and_then(|pid| Some((pid, begun(pid)?)));
        let shown = external.clone();
        tokio::spawn(async move {
            let ended = child.wait().await;
            let ended = ended.map_or_else(|error| error.to_string(), |how| how.to_string());
            info!(
                allocation = &*shown,
                ended, "a worker of a local pool has ended"
            );
        });
        if let Some((pid, begun)) = kept {
            let kept = Kept {
                first: order.first.0,
                index,
                pid,
                begun,
            };
            let text = serde_json::to_vec(&kept)?;
            private_file::replace(&self.path(&external), &text)?;
        }
        Ok(Sighting {
            external,
            name: order.name(),
            index,
            state: Sighted::Queued,
        })
    }

    fn path(&self, external: &str) -> PathBuf {
        self.folder().join(format!("{external}{PROCESS}"))
    }

    fn kept(&self, external: &str) -> Option<Kept> {
        let bytes = private_file::read_bounded(&self.path(external), KEPT_BYTES_MAX).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    fn listed(&self) -> std::io::Result<Vec<Sighting>> {
        let mut found = vec![];
        let files = match std::fs::read_dir(self.folder()) {
            Ok(files) => files,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
            Err(error) => return Err(error),
        };
        for file in files {
            let name = file?.file_name();
            let external = name.to_str().and_then(|name| name.strip_suffix(PROCESS));
            let Some(external) = external else {
                continue;
            };
            let Some(kept) = self.kept(external) else {
                continue;
            };
            let state = if kept.lives() {
                Sighted::Running {
                    host: self.host.clone(),
                }
            } else {
                // Its allocation's end is told with this list; nobody asks for it again.
                drop(std::fs::remove_file(self.path(external)));
                let log = self.folder().join(LOG);
                Sighted::Ended {
                    detail: format!("its process has ended, see {}", log.display()).into(),
                }
            };
            found.push(Sighting {
                external: external.into(),
                name: OrderName {
                    home: (*self.home_id).into(),
                    pool: (*self.pool).into(),
                    first: AllocationId(kept.first),
                },
                index: kept.index,
                state,
            });
        }
        Ok(found)
    }

    fn signal(&self, external: &str) {
        if let Some(kept) = self.kept(external).filter(Kept::lives)
            && let Some(pid) = Pid::from_raw(kept.pid)
            && let Err(error) = kill_process(pid, Signal::TERM)
        {
            warn!(allocation = external, error = %error, "failed to ask a worker to leave");
        }
    }
}

impl Kept {
    fn lives(&self) -> bool {
        begun(self.pid) == Some(self.begun)
    }
}

/// Gives when a process began; `None` when it is not there or has ended and is not buried yet.
fn begun(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Its name stands in parentheses and may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    let begun = fields.nth(18)?;
    (state != "Z").then(|| begun.parse().ok())?
}

/// Gives the options with which a worker offers what its pool's policy says.
pub(super) fn offer(policy: &Policy) -> Vec<OsString> {
    let idle = policy.idle_timeout.ms().saturating_mul(4).max(600_000) / 1_000;
    let mut arguments: Vec<OsString> = vec![
        "--slots".into(),
        policy.template.slots.to_string().into(),
        // A coordinator that never comes back must not leave it there for ever.
        "--idle-exit".into(),
        format!("{idle}s").into(),
    ];
    for label in &policy.template.labels {
        arguments.extend(["--label".into(), OsString::from(&**label)]);
    }
    for (name, amount) in &policy.template.resources {
        arguments.extend(["--resource".into(), format!("{name}={amount}").into()]);
    }
    arguments
}

impl Provider for Processes {
    fn start<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, Result<Vec<Sighting>, Error>> {
        async move {
            let mut started = vec![];
            for index in 0..order.count {
                match self.spawn(order, index) {
                    Ok(sighting) => started.push(sighting),
                    Err(error) if started.is_empty() => {
                        return Err(Error::Refused(format!("cannot start a worker: {error}")));
                    }
                    // The rest is found to be missing, and started again.
                    Err(error) => {
                        warn!(pool = &*self.pool, error = %error, "failed to start a worker");
                        break;
                    }
                }
            }
            Ok(started)
        }
        .boxed()
    }

    fn list<'a>(&'a self, _: &'a [Known]) -> BoxFuture<'a, Result<Vec<Sighting>, Error>> {
        let listed = self.listed();
        let listed = listed.map_err(|error| {
            Error::Unclear(format!("cannot read {}: {error}", self.folder().display()))
        });
        futures::future::ready(listed).boxed()
    }

    fn end<'a>(&'a self, externals: &'a [Box<str>]) -> BoxFuture<'a, Result<(), Error>> {
        for external in externals {
            self.signal(external);
        }
        futures::future::ready(Ok(())).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_of_its_number() {
        let own = i32::try_from(std::process::id()).unwrap();
        let begun = begun(own).unwrap();
        let kept = |begun| Kept {
            first: 1,
            index: 0,
            pid: own,
            begun,
        };
        assert!(kept(begun).lives());
        assert!(!kept(begun + 1).lives());
    }
}
