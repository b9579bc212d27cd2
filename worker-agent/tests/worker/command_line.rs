//! The executable as people and pools start it.

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tonic::Status;

use muster_proto::v1::Grant;

use super::bench::{Bench, until};

fn start(bench: &Bench) -> Child {
    start_in(bench, &bench.state())
}

fn start_in(bench: &Bench, state: &Path) -> Child {
    described(bench, state).spawn().unwrap()
}

fn described(bench: &Bench, state: &Path) -> Command {
    let token = bench.folder.path().join("token");
    std::fs::write(&token, bench.fake.token.reveal()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_worker-agent"));
    command
        .args([
            "--coordinator",
            &bench.fake.address,
            "--slots",
            "3",
            "--label",
            "gpu",
        ])
        .arg("--token-file")
        .arg(token)
        .arg("--state-dir")
        .arg(state)
        .stderr(Stdio::piped());
    command
}

async fn ended(mut child: Child) -> (Option<i32>, String) {
    let status = until("the worker to end", || child.try_wait().unwrap()).await;
    let mut text = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    (status.code(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn it_joins_with_a_token_alone_and_ends_on_term() {
    let bench = Bench::new().await;
    let child = start(&bench);
    let hello = bench
        .fake
        .until("a hello", |state| state.hellos.first().cloned())
        .await;
    assert_eq!(
        (hello.slots, hello.labels.as_slice()),
        (3, &["gpu".to_owned()][..])
    );
    bench
        .fake
        .until("a heartbeat", |state| (state.heartbeat > 0).then_some(()))
        .await;
    Command::new("kill")
        .arg(child.id().to_string())
        .status()
        .unwrap();
    let (code, text) = ended(child).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(bench.fake.with(|state| state.goodbye.is_some()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_has_its_own_exit_code_and_says_why() {
    let bench = Bench::new().await;
    bench
        .fake
        .with(|state| state.refusal = Some(Status::unauthenticated("it was revoked")));
    let (code, text) = ended(start(&bench)).await;
    assert_eq!(code, Some(3), "{text}");
    assert!(text.contains("it was revoked"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_in_use_is_an_error_that_another_start_may_not_meet() {
    let bench = Bench::new().await;
    let _worker = bench.worker();
    bench
        .fake
        .until("a hello", |state| state.hellos.first().cloned())
        .await;
    let (code, text) = ended(start(&bench)).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("--state-dir"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_cannot_hold_its_state_is_wrong_usage_and_says_what_to_name_instead() {
    let bench = Bench::new().await;
    let file = bench.folder.path().join("file");
    std::fs::write(&file, "not a folder").unwrap();
    // Root may write anywhere but here.
    for place in [file.clone(), file.join("below"), "/sys/muster".into()] {
        let (code, text) = ended(start_in(&bench, &place)).await;
        assert_eq!(code, Some(2), "{text}");
        let wanted = [&*place.to_string_lossy(), "name a folder", "--state-dir"];
        for wanted in wanted {
            assert!(text.contains(wanted), "{text}");
        }
    }
    assert_eq!(std::fs::read_to_string(file).unwrap(), "not a folder");
    assert!(bench.fake.with(|state| state.hellos.is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_of_the_machine_that_is_over_or_no_time_is_wrong_usage() {
    let bench = Bench::new().await;
    for (end, said) in [("@1000000000", "is over"), ("tonight", "write it as")] {
        let mut command = described(&bench, &bench.state());
        let child = command.args(["--ends-at", end]).spawn().unwrap();
        let (code, text) = ended(child).await;
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains(said), "{text}");
    }
}

/// An agent that says so once it runs, and the place of its process id.
fn endless(bench: &Bench, lease: u64) -> (Grant, std::path::PathBuf) {
    let pid_file = bench.folder.path().join(format!("pid-{lease}"));
    let script = format!("echo ready; echo $$ > {}; sleep 600", pid_file.display());
    let mut grant = bench.run(lease, &script);
    grant.source = None;
    (grant, pid_file)
}

async fn process_of(pid_file: &Path) -> std::path::PathBuf {
    let pid = until("the agent", || {
        let pid = std::fs::read_to_string(pid_file).ok()?;
        pid.trim().parse::<u32>().ok()
    });
    format!("/proc/{}", pid.await).into()
}

fn signal(name: &str, child: &Child) {
    let id = child.id().to_string();
    assert!(
        Command::new("kill")
            .args([name, &id])
            .status()
            .unwrap()
            .success()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_leaves_no_agent_and_its_next_start_says_the_rest() {
    let bench = Bench::new().await;
    let mut child = start(&bench);
    let (grant, pid_file) = endless(&bench, 7);
    bench.fake.with(|state| state.acks_events = false);
    bench.fake.grant(grant).await;
    let process = process_of(&pid_file).await;
    signal("-KILL", &child);
    child.wait().unwrap();
    until("the agent to end", || (!process.exists()).then_some(())).await;
    bench.fake.with(|state| state.acks_events = true);
    let mut child = start(&bench);
    let hello = bench
        .fake
        .until("a hello", |state| state.hellos.get(1).cloned())
        .await;
    assert_eq!(hello.held_leases, [0; 0]);
    bench.forgotten(7).await;
    assert_eq!(bench.fake.with(|state| state.output(7)), "ready\n");
    signal("-TERM", &child);
    child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_of_a_frozen_worker_end_before_its_leases_do() {
    let bench = Bench::new().await;
    bench.fake.with(|state| state.ttl = Duration::from_secs(3));
    let mut child = start(&bench);
    let (grant, pid_file) = endless(&bench, 7);
    bench.fake.grant(grant).await;
    let process = process_of(&pid_file).await;
    signal("-STOP", &child);
    let frozen = Instant::now();
    until("the agent to end", || (!process.exists()).then_some(())).await;
    assert!(
        frozen.elapsed() < Duration::from_secs(3),
        "{:?}",
        frozen.elapsed()
    );
    signal("-CONT", &child);
    assert_eq!(bench.fake.last_word(7).await, super::bench::stopped());
    signal("-TERM", &child);
    child.wait().unwrap();
}
