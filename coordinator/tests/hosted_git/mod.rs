//! The hosted git remote, used by the real git client.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroU32;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::serve::ListenerExt as _;
use base64::Engine as _;
use coordinator::auth::Identity;
use coordinator::git::hook::SUBCOMMAND;
use coordinator::git::host::{GitHost, Options, PUSH_BYTES_MAX};
use coordinator::git::policy::{Fence, Refusal, Scope};
use coordinator::git::refs::{AttemptName, ParsedRef, TaskName};
use coordinator::git::repository::HostedRepository;
use coordinator::git::writers::Writers;
use futures::future::{BoxFuture, FutureExt as _};
use muster_connect::TokenId;
use muster_git::{Git, ObjectFormat};

mod fencing;
mod hostility;

const EXECUTABLE: &str = env!("CARGO_BIN_EXE_coordinator");
const DEADLINE: Duration = Duration::from_secs(20);

fn attempt(task: &str, number: u32) -> AttemptName {
    let number = NonZeroU32::new(number).unwrap();
    TaskName::new("run", task).unwrap().attempt(number)
}

/// What the fake fence answers; tests change it while pushes run.
#[derive(Default)]
struct FakeFence {
    leases: Mutex<HashMap<u64, Scope>>,
    /// How often a scope is still given; endless when absent.
    scopes_left: Mutex<Option<u32>>,
    /// How often refs may still move; endless when absent.
    moves_left: Mutex<Option<u32>>,
    /// Whether the question if refs may move gets no answer.
    hangs: AtomicBool,
}

impl Fence for FakeFence {
    fn scope<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Scope, Refusal>> {
        let answer = || {
            one_less(&self.scopes_left)?;
            match identity {
                Identity::Lease(lease) => {
                    let leases = self.leases.lock().unwrap();
                    leases.get(lease).cloned().ok_or(Refusal::LeaseEnded)
                }
                Identity::WorkerSession {
                    worker,
                    incarnation,
                } => Ok(Scope::Salvage {
                    worker: worker.clone(),
                    incarnation: *incarnation,
                    attempts: vec![attempt("api", 1)],
                    reads: Vec::new(),
                }),
                Identity::Operator { .. } | Identity::Admin { .. } => Ok(Scope::Operator),
                Identity::Viewer { .. } => Ok(Scope::Viewer),
                Identity::Worker { .. } | Identity::Allocation(_) => Err(Refusal::NoAccess),
            }
        };
        futures::future::ready(answer()).boxed()
    }

    fn still_live<'a>(&'a self, _: &'a Scope) -> BoxFuture<'a, Result<(), Refusal>> {
        if self.hangs.load(Ordering::Acquire) {
            return futures::future::pending().boxed();
        }
        futures::future::ready(one_less(&self.moves_left)).boxed()
    }
}

fn one_less(left: &Mutex<Option<u32>>) -> Result<(), Refusal> {
    if let Some(left) = left.lock().unwrap().as_mut() {
        *left = left.checked_sub(1).ok_or(Refusal::LeaseEnded)?;
    }
    Ok(())
}

/// Stands for the coordinator's authentication: the user name says who it is.
async fn authenticate(mut request: Request, next: Next) -> axum::response::Response {
    let token = TokenId::from_bytes([7; 8]);
    let identity = request
        .headers()
        .get("authorization")
        .and_then(|value| value.to_str().ok()?.strip_prefix("Basic "))
        .and_then(|value| base64::prelude::BASE64_STANDARD.decode(value).ok())
        .and_then(|value| String::from_utf8(value).ok())
        .and_then(|value| match value.split_once(':')?.0 {
            "operator" => Some(Identity::Operator { token }),
            "viewer" => Some(Identity::Viewer { token }),
            "worker" => Some(Identity::WorkerSession {
                worker: "w".to_owned(),
                incarnation: 1,
            }),
            lease => Some(Identity::Lease(lease.strip_prefix("lease-")?.parse().ok()?)),
        });
    if let Some(identity) = identity {
        request.extensions_mut().insert(identity);
    }
    next.run(request).await
}

/// A hosted remote with one repository, and a clone-like work folder for the client.
///
/// Lease 1 is attempt 1 of `api`, lease 2 is attempt 2 of it and sees attempt 1, lease 3 is attempt
/// 1 of `other`, lease 4 verifies attempt 1 of `api`.
struct World {
    folder: tempfile::TempDir,
    home: PathBuf,
    address: SocketAddr,
    fence: Arc<FakeFence>,
    host: GitHost,
    bare: HostedRepository,
}

struct Done {
    success: bool,
    out: String,
    err: String,
}

impl World {
    async fn start() -> Self {
        Self::start_in("home", PUSH_BYTES_MAX).await
    }

    async fn start_in(home: &str, push_bytes_max: u64) -> Self {
        let world = Self::start_bare(home, EXECUTABLE, push_bytes_max).await;
        world.operator_pushes("HEAD:refs/muster/source/run").ok();
        for task in ["api", "other"] {
            let base = format!("refs/muster/base/run/{task}");
            world.in_bare(&["update-ref", &base, &world.head()]).ok();
        }
        world
    }

    async fn start_bare(home: &str, executable: &str, push_bytes_max: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join(home);
        let git = Git::find().await.unwrap();
        let fence = Arc::new(FakeFence::default());
        for (lease, scope) in [
            (1, (attempt("api", 1), Vec::new())),
            (
                2,
                (
                    attempt("api", 2),
                    vec![ParsedRef::Attempt(attempt("api", 1))],
                ),
            ),
            (3, (attempt("other", 1), Vec::new())),
        ] {
            let (attempt, reads) = scope;
            let scope = Scope::Attempt {
                lease,
                attempt,
                reads,
            };
            fence.leases.lock().unwrap().insert(lease, scope);
        }
        let verify = Scope::Verify {
            lease: 4,
            reads: vec![ParsedRef::Attempt(attempt("api", 1))],
        };
        fence.leases.lock().unwrap().insert(4, verify);

        let options = Options {
            git: git.clone(),
            home: home.clone(),
            executable: executable.into(),
            push_bytes_max,
            writers: Writers::new(home.clone()),
        };
        let host = GitHost::start(options, fence.clone()).await.unwrap();
        let sha1 = ObjectFormat::Sha1;
        let bare = HostedRepository::open_or_init(&git, &home, "site", sha1).await;
        let bare = bare.unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
        let router = host.router().layer(from_fn(authenticate));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });

        let world = Self {
            folder,
            home,
            address,
            fence,
            host,
            bare,
        };
        let work = world.work();
        std::fs::create_dir(&work).unwrap();
        world
            .git(&["init", "--quiet", "--initial-branch=main"])
            .ok();
        world.commit("base");
        world
    }

    fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    fn run(&self, folder: &Path, args: &[&str]) -> Done {
        let output = Command::new("git")
            .arg("-C")
            .arg(folder)
            .args(args)
            .env("HOME", self.folder.path())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("LC_ALL", "C")
            .env("no_proxy", "127.0.0.1")
            .envs(["GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"].map(|name| (name, "Tester")))
            .envs(["GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"].map(|name| (name, "t@example.org")))
            .output()
            .unwrap();
        Done {
            success: output.status.success(),
            out: String::from_utf8_lossy(&output.stdout).trim().to_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    fn git(&self, args: &[&str]) -> Done {
        self.run(&self.work(), args)
    }

    fn in_bare(&self, args: &[&str]) -> Done {
        self.run(self.bare.path(), args)
    }

    /// Commits a new file and gives the commit's id.
    fn commit(&self, name: &str) -> String {
        std::fs::write(self.work().join(name), name).unwrap();
        self.git(&["add", "--all"]).ok();
        self.git(&["commit", "--quiet", "--message", name]).ok();
        self.head()
    }

    fn head(&self) -> String {
        self.git(&["rev-parse", "HEAD"]).ok()
    }

    fn url(&self, user: &str) -> String {
        format!("http://{user}:secret@{}/git/site.git", self.address)
    }

    fn push(&self, user: &str, args: &[&str]) -> Done {
        let url = self.url(user);
        let refspecs = args.iter().copied();
        self.git(
            &["push", &url]
                .into_iter()
                .chain(refspecs)
                .collect::<Vec<_>>(),
        )
    }

    fn operator_pushes(&self, refspec: &str) -> Done {
        self.push("operator", &[refspec])
    }

    /// All refs of the hosted repository but those that every world starts with.
    fn refs(&self) -> Vec<String> {
        let all = self.in_bare(&["for-each-ref", "--format=%(refname) %(objectname)"]);
        all.ok()
            .lines()
            .filter(|line| !line.contains("/base/") && !line.contains("/source/run "))
            .map(str::to_owned)
            .collect()
    }

    fn seen_by(&self, user: &str) -> Vec<String> {
        let seen = self.git(&["ls-remote", &self.url(user)]).ok();
        let names = seen.lines().filter_map(|line| line.split_once('\t'));
        names.map(|(_, name)| name.to_owned()).collect()
    }

    /// Sends raw HTTP and gives the status line's code.
    fn raw(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> u16 {
        let mut stream = self.open(method, path, headers, body.len());
        stream.write_all(body).unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[9..]).parse().unwrap()
    }

    fn open(&self, method: &str, path: &str, headers: &[&str], length: usize) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let headers: String = headers
            .iter()
            .map(|header| format!("{header}\r\n"))
            .collect();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n{headers}\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream
    }

    async fn until_running(&self, count: usize) {
        let start = Instant::now();
        while self.host.running() != count {
            assert!(
                start.elapsed() < DEADLINE,
                "{} still run",
                self.host.running()
            );
            tokio::task::yield_now().await;
        }
    }
}

impl Done {
    #[track_caller]
    fn ok(self) -> String {
        assert!(self.success, "{}", self.err);
        self.out
    }

    #[track_caller]
    fn refused(self, message: &str) {
        assert!(!self.success, "succeeded");
        assert!(self.err.contains(message), "{}", self.err);
    }
}

fn as_user(name: &str) -> String {
    let credential = base64::prelude::BASE64_STANDARD.encode(format!("{name}:secret"));
    format!("authorization: Basic {credential}")
}
