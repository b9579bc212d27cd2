//! What breaks off, hangs up or lies.

use super::*;

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
    let start = Instant::now();
    while lock.exists() {
        assert!(start.elapsed() < DEADLINE, "the lock stays");
        tokio::task::yield_now().await;
    }
    assert_eq!(world.refs(), [""; 0]);

    world.fence.hangs.store(false, Ordering::Release);
    world.push("lease-1", &[target]).ok();
    assert_eq!(
        world.refs(),
        [format!("refs/muster/wip/run/api/1 {commit}")]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_git_left_of_a_push_is_removed_without_a_start() {
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
        .spawn()
        .unwrap();
    let start = Instant::now();
    while !lock.exists() {
        assert!(start.elapsed() < DEADLINE, "git did not ask");
        tokio::task::yield_now().await;
    }
    for receiver in receivers(world.bare.path()) {
        rustix::process::kill_process(receiver, rustix::process::Signal::KILL).unwrap();
    }
    world.fence.hangs.store(false, Ordering::Release);
    assert!(!client.wait().unwrap().success());
    let start = Instant::now();
    while lock.exists() {
        assert!(start.elapsed() < DEADLINE, "the lock is still there");
        tokio::task::yield_now().await;
    }
    world.push("lease-1", &[target]).ok();
    assert_eq!(
        world.refs(),
        [format!("refs/muster/wip/run/api/1 {commit}")]
    );
}

/// The processes that receive pushes into a repository.
fn receivers(repository: &Path) -> Vec<rustix::process::Pid> {
    let repository = repository.canonicalize().unwrap();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).into_owned();
        let is_here =
            std::fs::read_link(entry.path().join("cwd")).is_ok_and(|folder| folder == repository);
        if words.contains("receive-pack\0") && is_here {
            let pid = entry.file_name().to_str().unwrap().parse().unwrap();
            found.extend(rustix::process::Pid::from_raw(pid));
        }
    }
    assert!(!found.is_empty(), "nobody receives");
    found
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
