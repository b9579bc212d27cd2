//! Workers and supervisors that die or freeze.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use worker_agent::supervisor::{
    CgroupUse, End, Error, ExitStatus, Leftover, LostTree, MARK_VARIABLE, StopCause, leftover,
};

use super::bench::{Bench, EXECUTABLE, PATIENCE, alive, ended, started, until, until_ended};
use super::trees::{kill, with_variable};

/// Starts a worker of its own process that others can kill and stop.
fn worker(bench: &Bench, script: &str, ttl: Duration) -> Child {
    Command::new(env!("CARGO_BIN_EXE_hold-lease"))
        .args([EXECUTABLE.as_ref(), bench.dir().as_os_str()])
        .args([&ttl.as_millis().to_string(), script])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// The agent of the tests below: it and its daemon are deaf to TERM.
const STUBBORN: &str = "trap '' TERM; \
    (setsid sh -c 'trap \"\" TERM; echo $$ > daemon; while :; do sleep 600; done' &) ; \
    echo $$ > agent; while :; do sleep 600; done";

#[tokio::test]
async fn the_death_of_the_worker_ends_the_tree() {
    let bench = Bench::new();
    let mut worker = worker(&bench, STUBBORN, Duration::from_secs(600));
    let (agent, daemon) = (bench.pid("agent"), bench.pid("daemon"));
    assert_eq!(
        leftover(bench.dir(), Duration::ZERO).await.unwrap(),
        Leftover::Running
    );
    worker.kill().unwrap();
    worker.wait().unwrap();
    let Leftover::Ended(report) = leftover(bench.dir(), PATIENCE).await.unwrap() else {
        panic!("it does not end")
    };
    let status = Some(ExitStatus::Signal(9));
    assert_eq!(
        report.end,
        End::Stopped {
            by: StopCause::WorkerGone,
            status
        }
    );
    assert!(!alive(agent) && !alive(daemon));
}

#[tokio::test]
async fn a_stopped_worker_does_not_hold_up_the_deadline() {
    let bench = Bench::new();
    let mut worker = worker(&bench, STUBBORN, Duration::from_secs(1));
    let (agent, daemon) = (bench.pid("agent"), bench.pid("daemon"));
    kill("-STOP", worker.id().try_into().unwrap());
    until_ended(agent);
    until_ended(daemon);
    let report = match leftover(bench.dir(), PATIENCE).await.unwrap() {
        Leftover::Ended(report) => report,
        other => panic!("{other:?}"),
    };
    assert!(
        matches!(
            report.end,
            End::Stopped {
                by: StopCause::Deadline,
                ..
            }
        ),
        "{report:?}"
    );
    worker.kill().unwrap();
    worker.wait().unwrap();
}

#[tokio::test]
async fn a_stopped_worker_does_not_block_a_flood_of_output() {
    let bench = Bench::new();
    let script = "echo > ready; while ! [ -e go ]; do sleep 0.01; done; \
        head -c 5000000 /dev/zero; echo > flooded; while :; do sleep 600; done";
    let mut worker = worker(&bench, script, Duration::from_secs(600));
    bench.told("ready");
    kill("-STOP", worker.id().try_into().unwrap());
    fs::write(bench.dir().join("go"), "").unwrap();
    bench.told("flooded");
    worker.kill().unwrap();
    worker.wait().unwrap();
    assert!(matches!(
        leftover(bench.dir(), PATIENCE).await.unwrap(),
        Leftover::Ended(_)
    ));
}

#[tokio::test]
async fn dropping_every_handle_ends_the_tree() {
    let bench = Bench::new();
    let mut process = bench
        .spawn(bench.launch("while :; do sleep 0.05; done"))
        .await;
    let agent = started(&mut process).await;
    drop(process);
    let report = match leftover(bench.dir(), PATIENCE).await.unwrap() {
        Leftover::Ended(report) => report,
        other => panic!("{other:?}"),
    };
    let status = Some(ExitStatus::Signal(15));
    assert_eq!(
        report.end,
        End::Stopped {
            by: StopCause::WorkerGone,
            status
        }
    );
    assert!(!alive(agent));
}

#[tokio::test]
async fn term_to_the_supervisor_ends_the_tree_and_a_terminals_signals_do_not() {
    let bench = Bench::new();
    let script = "trap 'exit 9' TERM; echo > ready; while :; do sleep 0.05; done";
    let mut process = bench.spawn(bench.launch(script)).await;
    let agent = started(&mut process).await;
    bench.told("ready");
    let supervisor = bench.parent_of(agent);
    kill("-INT", supervisor);
    kill("-HUP", supervisor);
    kill("-TERM", supervisor);
    let status = Some(ExitStatus::Code(9));
    assert_eq!(
        ended(process).await.end,
        End::Stopped {
            by: StopCause::Signal,
            status
        }
    );
}

#[tokio::test]
async fn a_stopped_supervisor_is_waked_when_it_is_needed() {
    let bench = Bench::new();
    let mut process = bench
        .spawn(bench.launch("while :; do sleep 0.05; done"))
        .await;
    let agent = started(&mut process).await;
    kill("-STOP", bench.parent_of(agent));
    process.stop();
    let report = ended(process).await;
    assert!(
        matches!(
            report.end,
            End::Stopped {
                by: StopCause::Request,
                ..
            }
        ),
        "{report:?}"
    );
}

#[tokio::test]
async fn supervisor_and_agent_leave_the_group_of_the_worker() {
    let bench = Bench::new();
    let mut process = bench
        .spawn(bench.launch("while :; do sleep 0.05; done"))
        .await;
    let agent = started(&mut process).await;
    let supervisor = bench.parent_of(agent);
    let group_and_session = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<i32> = stat
            .rsplit(") ")
            .next()
            .unwrap()
            .split(' ')
            .skip(2)
            .take(2)
            .map(|field| field.parse().unwrap())
            .collect();
        (fields[0], fields[1])
    };
    // Of the guard, with which it is waked.
    assert_eq!(group_and_session(supervisor).0, bench.parent_of(supervisor));
    assert_eq!(group_and_session(agent), (agent, agent));
    process.stop();
    ended(process).await;
}

#[tokio::test]
async fn the_death_of_the_supervisor_kills_the_agent_and_the_rest_is_swept() {
    for cgroup in [CgroupUse::Never, CgroupUse::IfPossible] {
        let bench = Bench::new();
        let mut launch = bench.launch(&format!("echo hello; {STUBBORN}"));
        launch.cgroup = cgroup;
        let variable = format!("{MARK_VARIABLE}={}", launch.mark.as_str());
        let mut process = bench.spawn(launch).await;
        let agent = started(&mut process).await;
        let daemon = bench.pid("daemon");
        bench.told("agent");
        until("the output", || (bench.contents().len() == 1).then_some(()));
        kill("-KILL", bench.parent_of(agent));
        let report = ended(process).await;
        assert_eq!(
            report.end,
            End::SupervisorLost {
                tree: LostTree::Gone
            }
        );
        assert_eq!(report.output.stored, 6);
        assert!(!alive(agent) && !alive(daemon));
        assert_eq!(with_variable(&variable), Vec::<String>::new());
        assert_eq!(
            leftover(bench.dir(), PATIENCE).await.unwrap(),
            Leftover::Ended(report)
        );
    }
}

/// As the tests above have it, and a daemon without any environment.
const NAKED: &str = "(setsid env -i sh -c 'trap \"\" TERM; echo $$ > naked; \
    while :; do sleep 600; done' &) ;";

#[tokio::test]
async fn what_a_supervisor_leaves_is_ended_at_once_though_its_worker_is_stopped() {
    let bench = Bench::new();
    let script = format!("{NAKED} {STUBBORN}");
    let mut worker = worker(&bench, &script, Duration::from_secs(600));
    let tree = ["agent", "daemon", "naked"].map(|name| bench.pid(name));
    let [agent, ..] = tree;
    kill("-STOP", worker.id().try_into().unwrap());
    kill("-KILL", bench.parent_of(agent));
    for pid in tree {
        until_ended(pid);
    }
    worker.kill().unwrap();
    worker.wait().unwrap();
    let found = leftover(bench.dir(), PATIENCE).await.unwrap();
    assert!(matches!(found, Leftover::Ended(_)), "{found:?}");
}

#[tokio::test]
async fn a_supervisor_without_its_guard_keeps_the_deadline() {
    let bench = Bench::new();
    let mut worker = worker(&bench, STUBBORN, Duration::from_secs(3));
    let (agent, daemon) = (bench.pid("agent"), bench.pid("daemon"));
    kill("-KILL", bench.parent_of(bench.parent_of(agent)));
    kill("-STOP", worker.id().try_into().unwrap());
    assert_eq!(
        leftover(bench.dir(), Duration::ZERO).await.unwrap(),
        Leftover::Running
    );
    until_ended(agent);
    until_ended(daemon);
    let found = leftover(bench.dir(), PATIENCE).await.unwrap();
    let Leftover::Ended(report) = found else {
        panic!("{found:?}")
    };
    let by = StopCause::Deadline;
    assert!(
        matches!(report.end, End::Stopped { by: is, .. } if is == by),
        "{report:?}"
    );
    worker.kill().unwrap();
    worker.wait().unwrap();
}

#[tokio::test]
async fn a_stopped_supervisor_keeps_the_deadline_though_its_worker_is_stopped_too() {
    let bench = Bench::new();
    let mut worker = worker(&bench, STUBBORN, Duration::from_secs(3));
    let (agent, daemon) = (bench.pid("agent"), bench.pid("daemon"));
    kill("-STOP", worker.id().try_into().unwrap());
    kill("-STOP", bench.parent_of(agent));
    until_ended(agent);
    until_ended(daemon);
    let found = leftover(bench.dir(), PATIENCE).await.unwrap();
    assert!(matches!(found, Leftover::Ended(_)), "{found:?}");
    worker.kill().unwrap();
    worker.wait().unwrap();
}

#[tokio::test]
async fn a_stopped_guard_does_not_hide_the_death_of_its_supervisor() {
    let bench = Bench::new();
    let mut process = bench.spawn(bench.launch(STUBBORN)).await;
    let agent = started(&mut process).await;
    let daemon = bench.pid("daemon");
    let supervisor = bench.parent_of(agent);
    kill("-STOP", bench.parent_of(supervisor));
    kill("-KILL", supervisor);
    let tree = LostTree::Gone;
    assert_eq!(ended(process).await.end, End::SupervisorLost { tree });
    assert!(!alive(agent) && !alive(daemon));
}

#[tokio::test]
async fn worker_guard_and_supervisor_may_all_die_and_the_next_worker_sweeps() {
    let bench = Bench::new();
    let mut worker = worker(&bench, STUBBORN, Duration::from_secs(600));
    let (agent, daemon) = (bench.pid("agent"), bench.pid("daemon"));
    let supervisor = bench.parent_of(agent);
    let guard = bench.parent_of(supervisor);
    // Stopped first, so that none does anything about the others' death.
    kill("-STOP", worker.id().try_into().unwrap());
    kill("-KILL", guard);
    kill("-KILL", supervisor);
    until_ended(agent);
    assert!(alive(daemon));
    worker.kill().unwrap();
    worker.wait().unwrap();
    let found = leftover(bench.dir(), PATIENCE).await.unwrap();
    let Leftover::Ended(report) = found else {
        panic!("{found:?}")
    };
    assert_eq!(
        report.end,
        End::SupervisorLost {
            tree: LostTree::Gone
        }
    );
    assert!(!alive(daemon));
}

#[tokio::test]
async fn nothing_can_be_launched_from_a_folder_that_was_given_up() {
    let bench = Bench::new();
    // The worker died before its supervisor came up, and the next worker was faster.
    let found = leftover(bench.dir(), Duration::ZERO).await.unwrap();
    let Leftover::Ended(report) = found else {
        panic!("{found:?}")
    };
    assert_eq!(
        report.end,
        End::SupervisorLost {
            tree: LostTree::Gone
        }
    );
    let launch = bench.launch("echo ran > ran");
    fs::write(
        bench.dir().join("launch.json"),
        serde_json::to_vec(&launch).unwrap(),
    )
    .unwrap();
    let late = Command::new(EXECUTABLE)
        .args(["supervise", "--dir"])
        .arg(bench.dir())
        .stdin(Stdio::piped())
        .output()
        .unwrap();
    assert!(!late.status.success());
    assert!(
        String::from_utf8(late.stderr)
            .unwrap()
            .contains("already been used")
    );
    assert!(!bench.dir().join("ran").exists());
}

#[tokio::test]
async fn a_supervisor_whose_worker_has_died_already_starts_nothing() {
    let bench = Bench::new();
    let launch = bench.launch("echo ran > ran");
    fs::write(
        bench.dir().join("launch.json"),
        serde_json::to_vec(&launch).unwrap(),
    )
    .unwrap();
    let late = Command::new(EXECUTABLE)
        .args(["supervise", "--dir"])
        .arg(bench.dir())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(late.status.success());
    let found = leftover(bench.dir(), Duration::ZERO).await.unwrap();
    let Leftover::Ended(report) = found else {
        panic!("{found:?}")
    };
    assert_eq!(
        report.end,
        End::Stopped {
            by: StopCause::WorkerGone,
            status: None
        }
    );
    assert!(!bench.dir().join("ran").exists());
}

#[tokio::test]
async fn a_folder_serves_one_launch() {
    let bench = Bench::new();
    bench.run("true").await;
    let again = worker_agent::supervisor::SupervisedProcess::spawn(
        Path::new(EXECUTABLE),
        bench.launch("true"),
        bench.dir(),
    )
    .await;
    assert!(matches!(again, Err(Error::Used(_))), "{again:?}");
}
