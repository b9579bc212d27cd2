//! Pools of processes beside the coordinator: each allocation is one worker.
//!
//! The processes outlive a killed coordinator; the next one finds them by what was kept of each. That is
//! kept before a process is started, and completed once it is there: what a coordinator that was killed
//! in between has started is found by its token's path, which nothing else is started with.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
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
    /// Absent from what is kept before the process is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    /// When it began, in the system's ticks since boot: ids of processes are used again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    begun: Option<u64>,
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
        let external: Box<str> = AllocationId(order.first.0.saturating_add(u64::from(index)))
            .to_string()
            .into();
        make_private_folder(&self.folder())?;
        let mut kept = Kept {
            first: order.first.0,
            index,
            pid: None,
            begun: None,
        };
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
        self.keep(&external, &kept)?;
        let spawned = command.spawn();
        let mut child = spawned.inspect_err(|_| {
            drop(std::fs::remove_file(self.path(&external)));
        })?;
        kept.pid = child.id().and_then(|id| i32::try_from(id).ok());
        kept.begun = kept.pid.and_then(begun);
        let shown = external.clone();
        tokio::spawn(async move {
            let ended = child.wait().await;
            let ended = ended.map_or_else(|error| error.to_string(), |how| how.to_string());
            info!(
                allocation = &*shown,
                ended, "a worker of a local pool has ended"
            );
        });
        if let Err(error) = self.keep(&external, &kept) {
            warn!(allocation = &*external, error = %error, "failed to keep which process it is");
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

    fn keep(&self, external: &str, kept: &Kept) -> std::io::Result<()> {
        let text = serde_json::to_vec(kept)?;
        private_file::replace(&self.path(external), &text)
    }

    /// Reads what was kept of a process, and completes it if that was cut off and it is there.
    fn kept(&self, external: &str) -> Option<Kept> {
        let bytes = private_file::read_bounded(&self.path(external), KEPT_BYTES_MAX).ok()?;
        let mut kept: Kept = serde_json::from_slice(&bytes).ok()?;
        if kept.pid.is_none()
            && let Some((begun, pid)) = started_with(&self.token(external))
        {
            (kept.pid, kept.begun) = (Some(pid), Some(begun));
            if let Err(error) = self.keep(external, &kept) {
                warn!(allocation = external, error = %error, "failed to keep which process it is");
            }
        }
        Some(kept)
    }

    fn token(&self, external: &str) -> PathBuf {
        self.folder().join(format!("{external}.token"))
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
            if kept.pid.is_none() {
                // It was never started, or may just be about to: whoever ordered it finds it missing.
                if !self.token(external).exists() {
                    drop(std::fs::remove_file(self.path(external)));
                }
                continue;
            }
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
            && let Some(pid) = kept.pid.and_then(Pid::from_raw)
            && let Err(error) = kill_process(pid, Signal::TERM)
        {
            warn!(allocation = external, error = %error, "failed to ask a worker to leave");
        }
    }
}

impl Kept {
    fn lives(&self) -> bool {
        self.begun.is_some() && self.pid.and_then(begun) == self.begun
    }
}

/// Finds the oldest process of this user that was started with a join token, and when it began.
fn started_with(token: &Path) -> Option<(u64, i32)> {
    let own = rustix::process::getuid().as_raw();
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let found = processes.filter_map(|process| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        // Somebody else's may be called anything.
        (process.metadata().ok()?.uid() == own).then_some(())?;
        let line = std::fs::read(process.path().join("cmdline")).ok()?;
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        let named = [&b"--token-file"[..], token.as_os_str().as_bytes()];
        let is_it = words.windows(2).any(|pair| pair == named);
        is_it.then_some(())?;
        Some((begun(pid)?, pid))
    });
    found.min()
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
            pid: Some(own),
            begun: Some(begun),
        };
        assert!(kept(begun).lives());
        assert!(!kept(begun + 1).lives());
    }

    const NOTED: &str = "noted";

    /// A pool whose workers note what was kept of them when they began, and wait for their end.
    fn pool(home: &Path) -> (Processes, Order) {
        use std::os::unix::fs::PermissionsExt as _;
        let program = home.join("muster");
        let text = format!(
            "#!/bin/sh\ntrap 'exit 0' TERM\ncat \"$MUSTER_HOME/A7.process\" > {}\n\
             while :; do sleep 0.01; done\n",
            home.join(NOTED).display()
        );
        std::fs::write(&program, text).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        make_private_folder(&home.join("pools")).unwrap();
        let pool = Processes {
            pool: "near".into(),
            home: home.to_owned(),
            home_id: "3f9a1c20".into(),
            host: "here".into(),
            executable: program,
            policy: Policy {
                priority: 0,
                min: 0,
                max: 1,
                template: coordinator_core::worker::Offer::default(),
                agents: None,
                workers: 1,
                idle_timeout: coordinator_core::Span::from_secs(300),
                backlog: 1,
                burst: 1,
                join_timeout: coordinator_core::Span::from_secs(300),
                walltime: None,
                failures_max: 1,
                quarantine: false,
                stays: false,
            },
            worker_args: vec![],
        };
        make_private_folder(&pool.folder()).unwrap();
        let token = pool.token("A7");
        std::fs::write(&token, "").unwrap();
        let order = Order {
            pool: "near".into(),
            home: "3f9a1c20".into(),
            first: AllocationId(7),
            known: vec![],
            count: 1,
            tokens: vec![token],
            exclude: vec![],
        };
        (pool, order)
    }

    async fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
        while !holds() {
            assert!(tokio::time::Instant::now() < deadline, "{what}");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_process_is_found_though_its_coordinator_was_killed_as_it_started_it() {
        let home = tempfile::tempdir().unwrap();
        let (pool, order) = pool(home.path());
        pool.start(&order).await.unwrap();
        let noted = || std::fs::read_to_string(home.path().join(NOTED)).unwrap_or_default();
        until("it has begun", || noted().ends_with('}')).await;
        let states = |listed: Vec<Sighting>| {
            let states = listed.into_iter().map(|sighting| sighting.state);
            states.collect::<Vec<_>>()
        };
        let runs = [Sighted::Running {
            host: "here".into(),
        }];
        let whole = std::fs::read(pool.path("A7")).unwrap();
        assert_eq!(states(pool.listed().unwrap()), runs);

        // What a killed coordinator leaves, and what a process may find when it begins.
        let intent = "{\"first\":7,\"index\":0}";
        std::fs::write(pool.path("A7"), intent).unwrap();
        assert_eq!(states(pool.listed().unwrap()), runs);
        assert_eq!(std::fs::read(pool.path("A7")).unwrap(), whole);
        std::fs::write(pool.path("A7"), intent).unwrap();
        pool.end(&["A7".into()]).await.unwrap();
        until("it has ended", || {
            !matches!(
                states(pool.listed().unwrap())[..],
                [Sighted::Running { .. }]
            )
        })
        .await;

        // One that was never started is not spoken of, and forgotten with its token.
        std::fs::write(pool.path("A7"), intent).unwrap();
        assert_eq!(states(pool.listed().unwrap()), []);
        assert!(pool.path("A7").exists());
        std::fs::remove_file(pool.token("A7")).unwrap();
        assert_eq!(states(pool.listed().unwrap()), []);
        assert!(!pool.path("A7").exists());
    }

    #[tokio::test]
    async fn what_is_kept_of_a_process_is_there_before_the_process() {
        let home = tempfile::tempdir().unwrap();
        let (mut pool, order) = pool(home.path());
        let whole = pool.executable.clone();
        pool.executable = home.path().join("missing");
        assert!(matches!(pool.start(&order).await, Err(Error::Refused(_))));
        assert!(!pool.path("A7").exists(), "nothing was started");
        pool.executable = whole;
        pool.start(&order).await.unwrap();
        let noted = || std::fs::read_to_string(home.path().join(NOTED)).unwrap_or_default();
        until("it has begun", || !noted().is_empty()).await;
        assert!(noted().starts_with("{\"first\":7"), "{}", noted());
        pool.end(&["A7".into()]).await.unwrap();
        until("it has ended", || {
            !matches!(
                &pool.listed().unwrap()[..],
                [Sighting {
                    state: Sighted::Running { .. },
                    ..
                }]
            )
        })
        .await;
    }
}
