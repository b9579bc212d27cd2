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
use futures::future::{BoxFuture, FutureExt as _};
use muster_connect::TokenId;
use muster_git::{Git, ObjectFormat};

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
                Identity::Worker { .. } => Err(Refusal::NoAccess),
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

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_is_published_once() {
    let world = World::start().await;
    let first = world.commit("first");
    let target = "HEAD:refs/muster/attempts/run/api/1";
    world.push("lease-1", &[target]).ok();
    let published = [format!("refs/muster/attempts/run/api/1 {first}")];
    assert_eq!(world.refs(), published);
    world.push("lease-1", &[target]).ok();

    world.commit("second");
    let again = world.push("lease-1", &["--force", target]);
    again.refused("(already published: this ref is created once and never moves)");
    assert_eq!(world.refs(), published);
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_work_may_be_replaced() {
    let world = World::start().await;
    let target = "HEAD:refs/muster/wip/run/api/1";
    world.commit("first");
    world.push("lease-1", &[target]).ok();
    world.git(&["reset", "--quiet", "--hard", "HEAD~1"]).ok();
    let second = world.commit("second");
    world.push("lease-1", &["--force", target]).ok();
    assert_eq!(
        world.refs(),
        [format!("refs/muster/wip/run/api/1 {second}")]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn refs_of_others_are_refused_and_the_whole_push_with_them() {
    let world = World::start().await;
    world.commit("first");
    for foreign in [
        "refs/muster/attempts/run/other/1",
        "refs/muster/attempts/run/api/2",
        "refs/muster/wip/run/other/1",
        "refs/muster/base/run/api",
        "refs/muster/source/next",
        "refs/heads/muster/run/tasks/api",
        "refs/heads/muster/run/integration",
        "refs/heads/main",
        "refs/tags/v1",
    ] {
        let own = "HEAD:refs/muster/attempts/run/api/1";
        let push = world.push("lease-1", &["--force", own, &format!("HEAD:{foreign}")]);
        assert!(
            push.err.contains("(another ref of this push was refused)"),
            "{}",
            push.err
        );
        push.refused("(this credential may not write this ref)");
        assert_eq!(world.refs(), [""; 0], "{foreign}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_deletes_nothing() {
    let world = World::start().await;
    world.commit("first");
    world
        .push("lease-1", &["HEAD:refs/muster/wip/run/api/1"])
        .ok();
    let before = world.refs();
    let deletion = world.push("lease-1", &[":refs/muster/wip/run/api/1"]);
    deletion.refused("refs are never deleted by a push");
    assert_eq!(world.refs(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_ended_is_told_so_at_the_first_request() {
    let world = World::start().await;
    world.commit("first");
    world.fence.leases.lock().unwrap().remove(&1);
    let push = world.push("lease-1", &["HEAD:refs/muster/attempts/run/api/1"]);
    push.refused("the lease has ended");
    assert_eq!(world.refs(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_ends_before_the_upload_is_refused_before_git_is_started() {
    let world = World::start().await;
    let commit = world.commit("first");
    *world.fence.scopes_left.lock().unwrap() = Some(1);
    let push = world.push("lease-1", &["HEAD:refs/muster/attempts/run/api/1"]);
    push.refused("the lease has ended");
    assert_eq!(world.refs(), [""; 0]);
    assert!(
        !world.in_bare(&["cat-file", "-e", &commit]).success,
        "objects were stored"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_ends_during_the_upload_moves_no_ref() {
    let world = World::start().await;
    world.commit("first");
    *world.fence.moves_left.lock().unwrap() = Some(0);
    let targets = [
        "HEAD:refs/muster/attempts/run/api/1",
        "HEAD:refs/muster/wip/run/api/1",
    ];
    let push = world.push("lease-1", &targets);
    assert_eq!(
        push.err.matches("(the lease has ended").count(),
        2,
        "{}",
        push.err
    );
    push.refused("[remote rejected]");
    assert_eq!(world.refs(), [""; 0]);

    // Both or none: had git asked for each ref, the second would be refused.
    *world.fence.moves_left.lock().unwrap() = Some(1);
    world.push("lease-1", &targets).ok();
    assert_eq!(world.refs().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_edit_is_kept_once_by_its_workers_session() {
    let world = World::start().await;
    world.commit("first");
    let target = "HEAD:refs/muster/salvage/run/api/1";
    world
        .push("lease-1", &[target])
        .refused("may not write this ref");
    world
        .push("worker", &["HEAD:refs/muster/salvage/run/other/1"])
        .refused("may not write");
    world.push("worker", &[target]).ok();
    world.commit("second");
    world.push("worker", &[target]).refused("already published");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_brings_the_source_of_a_run_once_and_nothing_else() {
    let world = World::start().await;
    world.commit("first");
    world.operator_pushes("HEAD:refs/muster/source/next").ok();
    world.commit("second");
    world
        .operator_pushes("HEAD:refs/muster/source/next")
        .refused("already published");
    world
        .operator_pushes("HEAD:refs/heads/main")
        .refused("may not write this ref");
    world
        .operator_pushes("HEAD:refs/muster/source/a.lockx/b")
        .refused("may not write this ref");
}

#[tokio::test(flavor = "multi_thread")]
async fn verifiers_and_viewers_write_nothing() {
    let world = World::start().await;
    for user in ["lease-4", "viewer"] {
        let push = world.push(user, &["HEAD:refs/muster/attempts/run/api/1"]);
        push.refused("this credential only reads");
    }
    assert_eq!(world.refs(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_reads_its_base_and_its_own_work_only() {
    let world = World::start().await;
    let base = world.head();
    world.commit("of api");
    world
        .push("lease-1", &["HEAD:refs/muster/attempts/run/api/1"])
        .ok();
    world.git(&["reset", "--quiet", "--hard", &base]).ok();
    let of_other = world.commit("of other");
    world
        .push("lease-3", &["HEAD:refs/muster/attempts/run/other/1"])
        .ok();

    let attempt_of_api = "refs/muster/attempts/run/api/1";
    let base_of_api = "refs/muster/base/run/api";
    assert_eq!(world.seen_by("lease-1"), [attempt_of_api, base_of_api]);
    assert_eq!(world.seen_by("lease-2"), [attempt_of_api, base_of_api]);
    assert_eq!(world.seen_by("lease-4"), [attempt_of_api]);
    assert_eq!(world.seen_by("viewer").len(), 5);

    let reader = world.folder.path().join("reader");
    world
        .git(&["init", "--quiet", reader.to_str().unwrap()])
        .ok();
    for version in ["0", "1", "2"] {
        let version = format!("protocol.version={version}");
        let fetch = |user: &str, what: &str| {
            world.run(
                &reader,
                &["-c", &version, "fetch", "--quiet", &world.url(user), what],
            )
        };
        fetch("lease-1", base_of_api).ok();
        for user in ["lease-1", "lease-2", "lease-4"] {
            assert!(!fetch(user, &of_other).success, "{user} with {version}");
            assert!(
                !fetch(user, "refs/muster/attempts/run/other/1").success,
                "{user}"
            );
        }
    }
    assert!(!world.run(&reader, &["cat-file", "-e", &of_other]).success);
    world
        .run(
            &reader,
            &["fetch", "--quiet", &world.url("viewer"), &of_other],
        )
        .ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_push_arrives_whole_and_a_refused_one_is_told_why() {
    let world = World::start().await;
    let mut state = 1_u64;
    let noise: Vec<u8> = (0..4 << 20)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        })
        .collect();
    std::fs::write(world.work().join("noise"), noise).unwrap();
    let commit = world.commit("large");
    world
        .push("lease-1", &["HEAD:refs/muster/attempts/run/api/2"])
        .refused("may not write");
    assert!(!world.in_bare(&["cat-file", "-e", &commit]).success);
    world
        .push("lease-1", &["HEAD:refs/muster/attempts/run/api/1"])
        .ok();
    world.in_bare(&["rev-list", "--objects", &commit]).ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_above_the_limit_is_refused_with_the_reason() {
    let world = World::start_in("home", 2_000).await;
    let noise: String = (0..2_000_u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_string())
        .collect();
    std::fs::write(world.work().join("noise"), noise).unwrap();
    world.commit("large");
    let push = world.push("lease-1", &["HEAD:refs/muster/attempts/run/api/1"]);
    push.refused("maximum allowed size");
    assert_eq!(world.refs(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_with_a_long_path_still_fences() {
    let world = World::start_in(&"long/".repeat(30), PUSH_BYTES_MAX).await;
    assert!(world.home.as_os_str().len() > 108);
    world.commit("first");
    *world.fence.moves_left.lock().unwrap() = Some(0);
    let target = "HEAD:refs/muster/attempts/run/api/1";
    world
        .push("lease-1", &[target])
        .refused("the lease has ended");
    *world.fence.moves_left.lock().unwrap() = None;
    world.push("lease-1", &[target]).ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_whose_hook_cannot_run_is_refused() {
    let world = World::start_bare("home", "/nonexistent", PUSH_BYTES_MAX).await;
    let push = world.operator_pushes("HEAD:refs/muster/source/next");
    push.refused("(git failed at the coordinator; see if the ref is there, and try again)");
    assert_eq!(world.refs(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_of_an_unknown_push_is_refused() {
    let world = World::start().await;
    let hook = |socket: &Path| {
        let mut child = Command::new(EXECUTABLE)
            .arg(SUBCOMMAND)
            .env("MUSTER_HOOK_SOCKET", socket)
            .env("MUSTER_HOOK_PUSH", "guessed")
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let update = format!("{0} {0} refs/muster/source/x\n", "1".repeat(40));
        child
            .stdin
            .take()
            .unwrap()
            .write_all(update.as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let answered = hook(&world.home.join("git-hooks/socket"));
    assert_eq!(
        answered,
        "muster: this credential gives no access to this repository\n"
    );
    let unanswered = hook(&world.home.join("nothing"));
    assert!(
        unanswered.starts_with("muster: cannot ask the coordinator"),
        "{unanswered}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_not_gits_are_refused() {
    let world = World::start().await;
    let lease = as_user("lease-1");
    let lease = lease.as_str();
    let push = "/git/site.git/git-receive-pack";
    let fetch = "/git/site.git/git-upload-pack";
    let refs = "/git/site.git/info/refs?service=git-upload-pack";
    type Case<'a> = (&'a str, &'a str, &'a [&'a str], &'a [u8], u16);
    let cases: &[Case] = &[
        ("GET", refs, &[lease], b"", 200),
        ("GET", refs, &[], b"", 401),
        ("POST", push, &[], b"0000", 401),
        ("POST", push, &[lease], b"0000", 200),
        ("POST", push, &[lease], b"garbage", 400),
        ("POST", push, &[lease], b"00", 400),
        ("POST", push, &[lease], b"", 400),
        ("POST", push, &[lease], &[0xff; 4_096], 400),
        (
            "POST",
            push,
            &[lease, "content-encoding: gzip"],
            b"0000",
            415,
        ),
        (
            "POST",
            fetch,
            &[lease, "content-encoding: br"],
            b"0000",
            415,
        ),
        ("GET", "/git/site.git/info/refs", &[lease], b"", 403),
        (
            "GET",
            "/git/site.git/info/refs?service=git-upload-archive",
            &[lease],
            b"",
            403,
        ),
        ("GET", "/git/site.git/HEAD", &[lease], b"", 404),
        (
            "GET",
            "/git/site.git/objects/info/packs",
            &[lease],
            b"",
            404,
        ),
        (
            "GET",
            "/git/none.git/info/refs?service=git-upload-pack",
            &[lease],
            b"",
            404,
        ),
        (
            "GET",
            "/git/site/info/refs?service=git-upload-pack",
            &[lease],
            b"",
            404,
        ),
        (
            "GET",
            "/git/..%2Fsite.git/info/refs?service=git-upload-pack",
            &[lease],
            b"",
            404,
        ),
        (
            "GET",
            "/git/../repos/site.git/info/refs?service=git-upload-pack",
            &[lease],
            b"",
            404,
        ),
    ];
    for (method, path, headers, body, status) in cases {
        let answer = world.raw(method, path, headers, body);
        assert_eq!(answer, *status, "{method} {path} {headers:?}");
    }
    assert_eq!(world.refs(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn git_is_ended_when_the_client_goes_away() {
    let world = World::start().await;
    let head = world.head();
    let zero = "0".repeat(40);
    let update = format!("{zero} {head} refs/muster/wip/run/api/1\0 report-status");
    let body = format!("{:04x}{update}0000PACK", update.len() + 4);
    let lease = as_user("lease-1");
    let path = "/git/site.git/git-receive-pack";
    let mut stream = world.open("POST", path, &[&lease], 1_000);
    stream.write_all(body.as_bytes()).unwrap();
    world.until_running(1).await;
    drop(stream);
    world.until_running(0).await;
    assert_eq!(world.refs(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_whose_client_went_away_leaves_no_process_and_no_lock() {
    let world = World::start().await;
    let commit = world.commit("first");
    world.fence.hangs.store(true, Ordering::Release);
    let target = "HEAD:refs/muster/wip/run/api/1";
    let lock = world.bare.path().join("refs/muster/wip/run/api/1.lock");
    let mut client = Command::new("git")
        .args([
            "-C",
            world.work().to_str().unwrap(),
            "push",
            &world.url("lease-1"),
            target,
        ])
        .env("no_proxy", "127.0.0.1")
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    let start = Instant::now();
    while !lock.exists() {
        assert!(start.elapsed() < DEADLINE, "git did not ask");
        tokio::task::yield_now().await;
    }
    let group = rustix::process::Pid::from_child(&client);
    rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
    client.wait().unwrap();
    world.until_running(0).await;
    assert!(!lock.exists());
    assert_eq!(world.refs(), [""; 0]);

    world.fence.hangs.store(false, Ordering::Release);
    world.push("lease-1", &[target]).ok();
    assert_eq!(
        world.refs(),
        [format!("refs/muster/wip/run/api/1 {commit}")]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_of_another_task_cannot_be_claimed_by_their_id() {
    let world = World::start().await;
    let base = world.head();
    let of_api = world.commit("of api");
    world
        .push("lease-1", &["HEAD:refs/muster/attempts/run/api/1"])
        .ok();
    let before = world.refs();

    let target = "refs/muster/wip/run/other/1";
    let message = "commits of this repository that this credential may not read";
    world
        .push("lease-3", &[&format!("{of_api}:{target}")])
        .refused(message);
    let on_top = world.commit("on top");
    world
        .push("lease-3", &[&format!("{on_top}:{target}")])
        .refused(message);
    assert_eq!(world.refs(), before);

    world
        .push("lease-2", &[&format!("{on_top}:refs/muster/wip/run/api/2")])
        .ok();
    world.push("lease-3", &[&format!("{base}:{target}")]).ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_fetch_request_is_understood() {
    let world = World::start().await;
    let reader = world.folder.path().join("reader");
    world
        .git(&["init", "--quiet", reader.to_str().unwrap()])
        .ok();
    for _ in 0..60 {
        let commit = ["commit", "--quiet", "--allow-empty", "--message", "own"];
        world.run(&reader, &commit).ok();
    }
    let fetch = Command::new("git")
        .args([
            "-C",
            reader.to_str().unwrap(),
            "fetch",
            &world.url("lease-1"),
        ])
        .arg("refs/muster/base/run/api")
        .env("no_proxy", "127.0.0.1")
        .env("GIT_TRACE_CURL", "1")
        .output()
        .unwrap();
    let trace = String::from_utf8_lossy(&fetch.stderr);
    assert!(fetch.status.success(), "{trace}");
    assert!(
        trace.to_lowercase().contains("content-encoding: gzip"),
        "{trace}"
    );
}
