//! Machines that go away: everything is given back, and others go on with it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use muster_proto::v1::{Drain, Failure, Grant, activity, coordinator_message, report};
use serde_json::json;
use worker_agent::{Ended, Options, Wish};

use super::bench::{Bench, Worker, until};

fn given_back(kind: report::Kind) -> Failure {
    match kind {
        report::Kind::GivenBack(failure) => failure,
        other => panic!("{other:?}"),
    }
}

/// An agent that has begun, and a place for its process id.
fn agent(bench: &Bench, lease: u64, rest: &str) -> (Grant, PathBuf) {
    let pid = bench.folder.path().join(format!("pid-{lease}"));
    let script = format!(
        "read -r prompt; echo session s{lease} model-1; echo half > file; echo $$ > {0}.new; \
         mv {0}.new {0}; {rest}",
        pid.display()
    );
    let document = json!({
        "name": "t", "agent": {"name": "scripted", "kind": "scripted"}, "run": script,
        "prompt": "do it",
    });
    (bench.attempt(lease, &document), pid)
}

async fn process_of(pid: &Path) -> PathBuf {
    let pid = until("the agent", || std::fs::read_to_string(pid).ok()).await;
    Path::new("/proc").join(pid.trim())
}

fn options(bench: &Bench, hand_over: u64) -> Options {
    Options {
        hand_over: Duration::from_secs(hand_over),
        // So that what is at the ref was kept at the end.
        wip_interval: Some(Duration::from_secs(600)),
        ..bench.options()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notice_interrupts_agents_keeps_their_edits_and_gives_everything_back() {
    let bench = Bench::new().await;
    let worker = Worker::start(options(&bench, 120));
    // It takes its leave in good manners, and a child of it does not.
    let rest = "(trap '' TERM; sleep 600) & read -r word; echo usage m 7 0 1 0; echo say \"$word\"; \
                echo last > late; echo interrupted; sleep 600";
    let (grant, pid) = agent(&bench, 7, rest);
    bench.fake.grant(grant).await;
    let verifying = bench.folder.path().join("verifying");
    let command = format!("touch {}; sleep 600", verifying.display());
    bench.fake.grant(bench.verify(8, &[&command])).await;
    let process = process_of(&pid).await;
    until("the verify", || verifying.exists().then_some(())).await;

    let began = Instant::now();
    worker.wish(Wish::HandOver);
    assert_eq!(worker.ended().await.unwrap(), Ended::HandedOver);
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );
    assert!(!process.exists());
    for lease in [7, 8] {
        let failure = given_back(bench.fake.last_word(lease).await);
        let said = (failure.class.as_str(), failure.message.as_str());
        assert_eq!(said, ("preempted", "the worker's machine is taken away"));
        assert!(
            !bench
                .state()
                .join("leases")
                .join(lease.to_string())
                .exists()
        );
    }
    let kept = |file| bench.remote_file("refs/muster/wip/r/t/7", file);
    assert_eq!(kept("file").as_deref(), Some("half\n"));
    assert_eq!(kept("late").as_deref(), Some("last\n"));
    bench.fake.with(|state| {
        assert_eq!(state.goodbye.as_deref(), Some("its machine goes away"));
        let activities = state.activities(7);
        let cancelled = |kind: &activity::Kind| {
            matches!(kind, activity::Kind::Message(said) if said.text == "cancel")
        };
        assert!(activities.iter().any(cancelled), "{activities:?}");
        // The ledger reads transcripts: what was consumed is there, and once, although the report
        // of what is given back tells nothing of it.
        let usages = activities.iter().filter_map(|kind| match kind {
            activity::Kind::Usage(usage) => Some(usage.input_tokens),
            _ => None,
        });
        assert_eq!(usages.collect::<Vec<_>>(), [7]);
        let opened = |kind: &Option<report::Kind>| {
            matches!(kind, Some(report::Kind::SessionOpened(opened)) if opened.id == "s7")
        };
        assert!(state.reports.iter().any(|report| opened(&report.kind)));
        // What it knows since the notice, it tells.
        let left = state.time_left.last().copied().flatten().unwrap();
        assert!(left <= Duration::from_secs(120), "{left:?}");
        assert_eq!(state.time_left[0], None);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_machine_ends_hands_over_by_itself_before() {
    let bench = Bench::new().await;
    let began = worker_agent::clock::now();
    let ends = began.after(Duration::from_secs(17));
    let worker = Worker::start(Options {
        ends_at: Some(ends),
        ..options(&bench, 15)
    });
    let (grant, pid) = agent(&bench, 7, "trap '' TERM; while :; do sleep 1; done");
    bench.fake.grant(grant).await;
    let process = process_of(&pid).await;
    assert_eq!(worker.ended().await.unwrap(), Ended::HandedOver);
    assert!(worker_agent::clock::now() < ends, "it ended too late");
    assert!(!process.exists());
    let failure = given_back(bench.fake.last_word(7).await);
    assert_eq!(failure.class, "walltime", "{}", failure.message);
    let kept = bench.remote_file("refs/muster/wip/r/t/7", "file");
    assert_eq!(kept.as_deref(), Some("half\n"));
    bench.fake.with(|state| {
        let hello = &state.hellos[0];
        let seconds = |time: &Option<_>| {
            let time = (*time).map(Duration::try_from);
            time.unwrap().unwrap().as_secs()
        };
        assert!((15..=17).contains(&seconds(&hello.time_left)));
        assert_eq!(seconds(&hello.hand_over), 15);
        assert!(state.time_left[0].unwrap() <= Duration::from_secs(17));
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_is_being_published_is_not_given_back() {
    let bench = Bench::new().await;
    let worker = Worker::start(options(&bench, 60));
    let (remote, away) = (
        bench.folder.path().join("demo.git"),
        bench.folder.path().join("away.git"),
    );
    let ready = bench.folder.path().join("ready");
    let go = bench.folder.path().join("go");
    let script = format!(
        "echo done > file; touch {}; while [ ! -e {} ]; do sleep 0.02; done",
        ready.display(),
        go.display()
    );
    bench.fake.grant(bench.run(7, &script)).await;
    until("the agent", || ready.exists().then_some(())).await;
    std::fs::rename(&remote, &away).unwrap();
    std::fs::write(&go, "").unwrap();
    bench
        .fake
        .until("it publishes", |state| {
            let events = state.events.get(&7)?;
            let publishes = |kind: &muster_proto::v1::agent_event::Kind| {
                matches!(kind, muster_proto::v1::agent_event::Kind::Phase(phase)
                    if phase.name == "publishing")
            };
            let mut kinds = events.iter().filter_map(|event| event.kind.as_ref());
            kinds.any(publishes).then_some(())
        })
        .await;
    worker.wish(Wish::HandOver);
    bench
        .fake
        .until("the notice is told", |state| {
            state.time_left.last()?.is_some().then_some(())
        })
        .await;
    std::fs::rename(&away, &remote).unwrap();
    assert_eq!(worker.ended().await.unwrap(), Ended::HandedOver);
    let last = bench.fake.last_word(7).await;
    assert!(matches!(last, report::Kind::Succeeded(_)), "{last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_ends_in_time_although_nothing_can_be_kept() {
    let bench = Bench::new().await;
    let worker = Worker::start(options(&bench, 10));
    let (grant, pid) = agent(&bench, 7, "sleep 600");
    bench.fake.grant(grant).await;
    let process = process_of(&pid).await;
    let remote = bench.folder.path().join("demo.git");
    std::fs::rename(&remote, bench.folder.path().join("away.git")).unwrap();
    let began = Instant::now();
    worker.wish(Wish::HandOver);
    let failure = given_back(bench.fake.last_word(7).await);
    assert_eq!(failure.class, "preempted");
    assert!(!process.exists());
    assert_eq!(worker.ended().await.unwrap(), Ended::HandedOver);
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_to_leave_finishes_what_it_holds_and_ends() {
    let bench = Bench::new().await;
    let worker = bench.worker();
    let go = bench.folder.path().join("go");
    let script = format!("while [ ! -e {} ]; do sleep 0.02; done", go.display());
    bench.fake.grant(bench.run(7, &script)).await;
    bench
        .fake
        .until("the attempt", |state| {
            let mut of_lease = state.reports.iter().filter(|report| report.lease == 7);
            of_lease.next().map(|_| ())
        })
        .await;
    let leave = coordinator_message::Kind::Drain(Drain { leave: true });
    bench.fake.say(leave).await;
    // One that crossed it.
    bench.fake.grant(bench.run(8, "true")).await;
    given_back(bench.fake.last_word(8).await);
    std::fs::write(&go, "").unwrap();
    assert_eq!(worker.ended().await.unwrap(), Ended::Drained);
    let last = bench.fake.last_word(7).await;
    assert!(matches!(last, report::Kind::Succeeded(_)), "{last:?}");
    assert!(bench.fake.with(|state| state.goodbye.is_some()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_worker_waits_for_its_time_and_ends_well() {
    let bench = Bench::new().await;
    let worker = Worker::start(Options {
        idle_exit: Some(Duration::from_secs(1)),
        ..bench.options()
    });
    let began = Instant::now();
    bench.fake.grant(bench.run(7, "sleep 1.5")).await;
    bench.fake.last_word(7).await;
    assert_eq!(worker.ended().await.unwrap(), Ended::Idle);
    assert!(
        began.elapsed() > Duration::from_millis(2_500),
        "{:?}",
        began.elapsed()
    );
    let goodbye = bench.fake.with(|state| state.goodbye.clone());
    assert_eq!(goodbye.as_deref(), Some("nothing to do"));
}

/// Sends a signal to an agent, its supervisor and its guard at once.
fn signal_tree(name: &str, agent: &Path) {
    let parent_of = |process: &Path| {
        let stat = std::fs::read_to_string(process.join("stat")).unwrap();
        let (_, rest) = stat.rsplit_once(") ").unwrap();
        Path::new("/proc").join(rest.split(' ').nth(1).unwrap())
    };
    let supervisor = parent_of(agent);
    let guard = parent_of(&supervisor);
    let ids = [agent, &supervisor, &guard].map(|process| process.file_name().unwrap());
    let sent = std::process::Command::new("kill")
        .arg(name)
        .args(ids)
        .status();
    assert!(sent.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_to_all_processes_of_a_machine_costs_no_attempt_its_work() {
    // What a batch system sends before the end, and what it sends at the end.
    for (signal, wish, expected) in [
        ("-USR1", Wish::HandOver, Ended::HandedOver),
        ("-TERM", Wish::Drain, Ended::Drained),
    ] {
        let bench = Bench::new().await;
        let worker = Worker::start(options(&bench, 60));
        let (talks, talks_pid) = agent(&bench, 7, "read -r never");
        bench.fake.grant(talks).await;
        let pid = bench.folder.path().join("pid-8");
        let script = format!(
            "echo half > file; echo $$ > {0}.new; mv {0}.new {0}; while :; do sleep 0.1; done",
            pid.display()
        );
        bench.fake.grant(bench.run(8, &script)).await;
        let agents = [process_of(&talks_pid).await, process_of(&pid).await];
        for agent in &agents {
            signal_tree(signal, agent);
        }
        worker.wish(wish);
        assert_eq!(worker.ended().await.unwrap(), expected, "{signal}");
        for lease in [7, 8] {
            let failure = given_back(bench.fake.last_word(lease).await);
            assert_eq!(failure.class, "preempted", "{signal} {lease}");
            let kept = bench.remote_file(&format!("refs/muster/wip/r/t/{lease}"), "file");
            assert_eq!(kept.as_deref(), Some("half\n"), "{signal} {lease}");
        }
    }
}
