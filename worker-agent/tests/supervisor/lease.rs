//! The deadline, and who may move it.

use std::time::Duration;

use worker_agent::clock::{self, Boottime};
use worker_agent::supervisor::{End, Event, ExitStatus, StopCause};

use super::bench::{Bench, alive, ended, event, started};

const FOR_EVER: &str = "while :; do sleep 0.05; done";

#[tokio::test]
async fn a_deadline_that_nobody_moves_ends_the_tree() {
    let bench = Bench::new();
    let mut launch = bench.launch(FOR_EVER);
    launch.deadline = clock::now().after(Duration::from_millis(400));
    let deadline = launch.deadline;
    let mut process = bench.spawn(launch).await;
    let pid = started(&mut process).await;
    let report = ended(process).await;
    assert!(clock::now() >= deadline);
    let status = Some(ExitStatus::Signal(15));
    assert_eq!(
        report.end,
        End::Stopped {
            by: StopCause::Deadline,
            status
        }
    );
    assert!(!alive(pid));
}

#[tokio::test]
async fn renewals_extend_the_deadline() {
    let bench = Bench::new();
    let mut launch = bench.launch("for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.1; echo; done");
    launch.deadline = clock::now().after(Duration::from_millis(500));
    let first = launch.deadline;
    let mut process = bench.spawn(launch).await;
    // Each line of output renews for less time than the whole takes.
    while let Some(event) = process.next_event().await {
        if let Event::Output { .. } = event {
            process.renew(clock::now().after(Duration::from_secs(20)));
        }
    }
    assert!(clock::now() > first);
    assert_eq!(ended(process).await.end, End::Exited { code: 0 });
}

#[tokio::test]
async fn a_deadline_can_be_moved_closer() {
    let bench = Bench::new();
    let mut process = bench.spawn(bench.launch(FOR_EVER)).await;
    started(&mut process).await;
    process.control().renew(clock::now());
    let report = ended(process).await;
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
}

// As when a laptop wakes up: the grace was part of the lease, and that is over.
#[tokio::test]
async fn a_tree_whose_deadline_passed_long_ago_gets_no_grace() {
    let bench = Bench::new();
    let script = "trap '' TERM; echo > deaf; while :; do sleep 0.05; done";
    let mut process = bench.spawn(bench.launch(script)).await;
    started(&mut process).await;
    bench.told("deaf");
    let asleep = clock::now().as_millis().saturating_sub(60_000);
    let woke = std::time::Instant::now();
    process.control().renew(Boottime::from_millis(asleep));
    let report = ended(process).await;
    let status = Some(ExitStatus::Signal(9));
    assert_eq!(
        report.end,
        End::Stopped {
            by: StopCause::Deadline,
            status
        }
    );
    let grace = bench.launch(script).term_grace_ms;
    assert!(woke.elapsed() < Duration::from_millis(grace));
}

#[tokio::test]
async fn a_launch_whose_deadline_has_passed_never_runs() {
    let bench = Bench::new();
    let mut launch = bench.launch("echo ran > ran");
    launch.deadline = clock::now();
    let mut process = bench.spawn(launch).await;
    event(&mut process, |event| match event {
        Event::Gone => Some(()),
        Event::Started { .. } | Event::Output { .. } | Event::Exited(_) => panic!("{event:?}"),
    })
    .await;
    let report = ended(process).await;
    assert_eq!(
        report.end,
        End::Stopped {
            by: StopCause::Deadline,
            status: None
        }
    );
    assert!(!bench.dir().join("ran").exists());
}

// With a second thread, because this one waits for files while orders are passed on.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_first_cause_counts() {
    let bench = Bench::new();
    let script = "trap 'echo > asked' TERM; echo > ready; \
        while ! [ -e asked ] || ! [ -e moved ]; do sleep 0.02; done; exit 4";
    let mut process = bench.spawn(bench.launch(script)).await;
    started(&mut process).await;
    bench.told("ready");
    process.stop();
    bench.told("asked");
    process.renew(clock::now());
    std::fs::write(bench.dir().join("moved"), "\n").unwrap();
    let report = ended(process).await;
    let status = Some(ExitStatus::Code(4));
    assert_eq!(
        report.end,
        End::Stopped {
            by: StopCause::Request,
            status
        }
    );
}
