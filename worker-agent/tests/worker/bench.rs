//! A worker, a fake coordinator and a real repository.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use muster_proto::v1::{AttemptWork, Empty, GitSource, Grant, VerifyWork, Work, report, work};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use worker_agent::{Coordinator, Ended, Error, Options, Repositories, StateDir, Wish};

use super::fake::Fake;

const LIMIT: Duration = Duration::from_secs(30);

pub(crate) struct Bench {
    pub(crate) fake: Fake,
    pub(crate) folder: TempDir,
    /// Commit that tasks start from.
    pub(crate) base: String,
}

/// A worker with threads of its own; its supervisors and agents are real processes.
pub(crate) struct Worker {
    wish: watch::Sender<Wish>,
    task: JoinHandle<Result<Ended, Error>>,
    runtime: Option<Runtime>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Bench {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let remote = folder.path().join("demo.git");
        let seed = folder.path().join("seed");
        git(folder.path(), &["init", "-q", "--bare", "demo.git"]);
        git(
            &remote,
            &["config", "uploadpack.allowAnySHA1InWant", "true"],
        );
        git(folder.path(), &["init", "-q", "-b", "main", "seed"]);
        std::fs::write(seed.join("file"), "base\n").unwrap();
        git(&seed, &["add", "."]);
        git(&seed, &["commit", "-q", "-m", "base"]);
        git(&seed, &["push", "-q", remote.to_str().unwrap(), "main"]);
        let base = git(&seed, &["rev-parse", "HEAD"]);
        Self {
            fake: Fake::start().await,
            folder,
            base,
        }
    }

    pub(crate) fn options(&self) -> Options {
        Options {
            coordinator: Coordinator::Address(self.fake.address.clone()),
            token: self.fake.token.clone(),
            slots: 2,
            state: StateDir::At(self.state()),
            labels: vec!["os=linux".into()],
            resources: [("cpus".to_owned(), 4)].into(),
            pool: String::new(),
            allocation: None,
            idle_exit: None,
            change_bytes_max: 256_000_000,
            disk_bytes_max: 50_000_000_000,
            disk_reserve_bytes: 0,
            secrets: Vec::new(),
            cache_bytes_max: 20_000_000_000,
            ends_at: None,
            hand_over: Duration::from_secs(120),
            disk_patience: Duration::from_secs(900),
            executable: env!("CARGO_BIN_EXE_worker-agent").into(),
            repositories: Repositories::Below(format!("file://{}", self.folder.path().display())),
            wip_interval: Some(Duration::from_millis(50)),
            agents: BTreeMap::new(),
            approvals: worker_agent::ApprovalPolicy::default(),
        }
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub(crate) fn worker(&self) -> Worker {
        Worker::start(self.options())
    }

    /// Gives an attempt of a task.
    pub(crate) fn attempt(&self, lease: u64, document: &Value) -> Grant {
        let own = |kind: &str| format!("refs/muster/{kind}/r/t/{lease}");
        self.grant(
            lease,
            document,
            work::Kind::Attempt(AttemptWork { attempt: 1 }),
            GitSource {
                repository: "demo".into(),
                read_ref: "refs/heads/main".into(),
                commit: self.base.clone(),
                attempt_ref: own("attempts"),
                wip_ref: own("wip"),
                salvage_ref: own("salvage"),
                base: self.base.clone(),
            },
        )
    }

    pub(crate) fn run(&self, lease: u64, script: &str) -> Grant {
        self.attempt(
            lease,
            &json!({"name": "t", "agent": {"name": "command", "kind": "command"}, "run": script}),
        )
    }

    pub(crate) fn verify(&self, lease: u64, commands: &[&str]) -> Grant {
        self.grant(
            lease,
            &json!({"name": "t", "verify": commands, "verify_timeout_ms": 60_000}),
            work::Kind::Verify(VerifyWork { attempt: 1 }),
            GitSource {
                repository: "demo".into(),
                read_ref: "refs/heads/main".into(),
                commit: self.base.clone(),
                base: self.base.clone(),
                ..GitSource::default()
            },
        )
    }

    fn grant(&self, lease: u64, document: &Value, kind: work::Kind, source: GitSource) -> Grant {
        Grant {
            lease,
            run: "r".into(),
            task: "t".into(),
            work: Some(Work { kind: Some(kind) }),
            credential: "secret".into(),
            source: Some(source),
            document: document.to_string().into_bytes(),
            context: br#"{"prompt":"do it"}"#.to_vec(),
            ..Grant::default()
        }
    }

    /// Reads a file of a commit or ref in the remote repository; `None` if there is none.
    pub(crate) fn remote_file(&self, revision: &str, path: &str) -> Option<String> {
        let output = Command::new("git")
            .args(["-C", self.folder.path().join("demo.git").to_str()?, "show"])
            .arg(format!("{revision}:{path}"))
            .output()
            .unwrap();
        output
            .status
            .success()
            .then(|| String::from_utf8(output.stdout).unwrap())
    }

    pub(crate) fn remote(&self, arguments: &[&str]) -> String {
        git(&self.folder.path().join("demo.git"), arguments)
    }

    /// Waits until the worker keeps nothing of a lease any more.
    pub(crate) async fn forgotten(&self, lease: u64) {
        let path = self.state().join("leases").join(lease.to_string());
        until(&format!("{} to go", path.display()), || {
            (!path.exists()).then_some(())
        })
        .await;
    }
}

impl Worker {
    pub(crate) fn start(options: Options) -> Self {
        let (wish, wishes) = watch::channel(Wish::Work);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        Self {
            wish,
            task: runtime.spawn(worker_agent::run(options, wishes)),
            runtime: Some(runtime),
        }
    }

    pub(crate) fn wish(&self, wish: Wish) {
        self.wish.send_replace(wish);
    }

    pub(crate) async fn ended(mut self) -> Result<Ended, Error> {
        tokio::time::timeout(LIMIT, &mut self.task)
            .await
            .expect("the worker to end")
            .unwrap()
    }

    /// Ends the worker as a crash would: all its tasks stop where they are.
    pub(crate) async fn crash(mut self) {
        let runtime = self.runtime.take();
        tokio::task::spawn_blocking(move || drop(runtime))
            .await
            .unwrap();
    }
}

/// Waits until a condition gives a value.
pub(crate) async fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let met = async {
        loop {
            if let Some(met) = condition() {
                return met;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, met)
        .await
        .unwrap_or_else(|_| panic!("not in time: {what}"))
}

pub(crate) fn stopped() -> report::Kind {
    report::Kind::Stopped(Empty {})
}

fn git(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args(["-c", "user.name=T", "-c", "user.email=t@localhost", "-C"])
        .arg(folder)
        .args(arguments)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "git {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
