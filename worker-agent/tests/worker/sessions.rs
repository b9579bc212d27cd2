//! What outlives a session, a worker, and a coordinator that is away.

use muster_proto::v1::{Grant, GrantBatch, coordinator_message, report};
use tonic::Status;
use worker_agent::{Ended, Error, Wish};

use super::bench::{Bench, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_says_who_the_worker_is() {
    let bench = Bench::new().await;
    let worker = bench.worker();
    let first = bench
        .fake
        .until("a hello", |state| state.hellos.first().cloned())
        .await;
    assert_eq!(
        (first.slots, first.labels.as_slice()),
        (2, &["os=linux".to_owned()][..])
    );
    assert_eq!(first.resources.get("cpus"), Some(&4));
    assert_eq!(first.agents[0].name, "command");
    assert_eq!(first.sandbox_levels, ["none"]);
    worker.wish(Wish::Drain);
    assert_eq!(worker.ended().await.unwrap(), Ended::Drained);
    let worker = bench.worker();
    let second = bench
        .fake
        .until("a hello", |state| state.hellos.get(1).cloned())
        .await;
    assert_eq!(second.worker, first.worker);
    assert!(second.incarnation > first.incarnation);
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_grant_is_given_back() {
    let bench = Bench::new().await;
    let _worker = bench.worker();
    bench
        .fake
        .until("heartbeats", |state| (state.heartbeat > 1).then_some(()))
        .await;
    // Its time has passed: it names a heartbeat, but no TTL.
    let grant = Grant {
        heartbeat_seq: 1,
        ..bench.run(7, "true")
    };
    let grants = vec![grant];
    bench
        .fake
        .say(coordinator_message::Kind::Grants(GrantBatch { grants }))
        .await;
    let kind = bench.fake.last_word(7).await;
    assert!(matches!(kind, report::Kind::GivenBack(_)), "{kind:?}");
    assert!(!bench.state().join("leases/7").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_session_loses_no_event_and_doubles_none() {
    let bench = Bench::new().await;
    let _worker = bench.worker();
    let (go, end) = (
        bench.folder.path().join("go"),
        bench.folder.path().join("end"),
    );
    let script = format!(
        "seq -f 'line %g' 1 150; while [ ! -e {} ]; do sleep 0.02; done; \
         seq -f 'line %g' 151 300; while [ ! -e {} ]; do sleep 0.02; done",
        go.display(),
        end.display()
    );
    bench.fake.grant(bench.run(7, &script)).await;
    let said = |line: &'static str| {
        bench.fake.until(line, move |state| {
            state.output(7).contains(line).then_some(())
        })
    };
    said("line 150\n").await;
    bench.fake.with(|state| state.acks_events = false);
    std::fs::write(&go, "").unwrap();
    said("line 300\n").await;
    bench.fake.cut();
    std::fs::write(&end, "").unwrap();
    bench.fake.with(|state| state.acks_events = true);
    let kind = bench.fake.last_word(7).await;
    assert!(matches!(kind, report::Kind::Succeeded(_)), "{kind:?}");
    bench.forgotten(7).await;
    let expected: String = (1..=300).map(|line| format!("line {line}\n")).collect();
    bench.fake.with(|state| {
        assert_eq!(state.output(7), expected);
        assert_eq!(state.hellos[1].held_leases, [7]);
        assert_eq!(state.finals(7).len(), 1);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_survives_a_coordinator_that_is_away_and_reports_afterwards() {
    let bench = Bench::new().await;
    let _worker = bench.worker();
    bench.fake.with(|state| state.acks_reports = false);
    bench.fake.grant(bench.run(7, "echo x > file")).await;
    bench.fake.last_word(7).await;
    bench.fake.cut();
    bench.fake.with(|state| state.acks_reports = true);
    bench.forgotten(7).await;
    let finals = bench
        .fake
        .with(|state| state.finals(7).into_iter().cloned().collect::<Vec<_>>());
    assert_eq!(finals.len(), 2, "said again since it was not acknowledged");
    assert_eq!(finals[0], finals[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_worker_reports_a_finished_result_once() {
    let bench = Bench::new().await;
    let worker = bench.worker();
    bench.fake.with(|state| {
        state.acks_reports = false;
        state.acks_events = false;
    });
    bench
        .fake
        .grant(bench.run(7, "echo said; echo x > file"))
        .await;
    let before = bench.fake.last_word(7).await;
    worker.crash().await;
    bench.fake.with(|state| {
        state.acks_reports = true;
        state.acks_events = true;
        state.reports.clear();
    });
    let worker = bench.worker();
    bench.forgotten(7).await;
    bench.fake.with(|state| {
        assert_eq!(state.hellos.last().unwrap().held_leases, [7]);
        assert_eq!(state.finals(7), [&before]);
        assert_eq!(state.output(7), "said\n");
    });
    worker.wish(Wish::Drain);
    worker.ended().await.unwrap();
    let _worker = bench.worker();
    bench
        .fake
        .until("a third hello", |state| state.hellos.get(2).cloned())
        .await;
    assert_eq!(bench.fake.with(|state| state.finals(7).len()), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_worker_does_not_hold_unfinished_work_but_salvages_it() {
    let bench = Bench::new().await;
    let worker = bench.worker();
    let pid_file = bench.folder.path().join("pid");
    let script = format!(
        "echo half > file; echo said; echo $$ > {}; sleep 600",
        pid_file.display()
    );
    bench.fake.grant(bench.run(7, &script)).await;
    let pid = until("the agent", || {
        let pid = std::fs::read_to_string(&pid_file).ok()?;
        pid.trim().parse::<u32>().ok()
    })
    .await;
    worker.crash().await;
    let _worker = bench.worker();
    let hello = bench
        .fake
        .until("a hello", |state| state.hellos.get(1).cloned())
        .await;
    assert_eq!(hello.held_leases, [0; 0]);
    assert!(
        !std::path::Path::new(&format!("/proc/{pid}")).exists(),
        "gone before the hello"
    );
    bench.forgotten(7).await;
    assert_eq!(
        bench
            .remote_file("refs/muster/salvage/r/t/7", "file")
            .unwrap(),
        "half\n"
    );
    bench.fake.with(|state| {
        assert!(state.finals(7).is_empty());
        assert_eq!(state.output(7), "said\n");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_restarted_while_it_salvages_pushes_the_same_commit_again() {
    let bench = Bench::new().await;
    let worker = bench.worker();
    let started = bench.folder.path().join("started");
    let script = format!("echo half > file; touch {}; sleep 600", started.display());
    bench.fake.grant(bench.run(7, &script)).await;
    until("the agent", || started.exists().then_some(())).await;
    worker.crash().await;
    // The next incarnation cannot push, and is killed before it can.
    let (remote, away) = (
        bench.folder.path().join("demo.git"),
        bench.folder.path().join("away.git"),
    );
    std::fs::rename(&remote, &away).unwrap();
    let worker = bench.worker();
    let note = bench.state().join("leases/7/salvage");
    let noted = until("a commit", || std::fs::read_to_string(&note).ok()).await;
    worker.crash().await;
    std::fs::rename(&away, &remote).unwrap();
    // A commit that was made again would have another time.
    let second = || {
        let now = std::time::SystemTime::now();
        now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
    };
    let made = second();
    until("the next second", || (second() > made).then_some(())).await;
    let _worker = bench.worker();
    bench.forgotten(7).await;
    let pushed = bench.remote(&["rev-parse", "refs/muster/salvage/r/t/7"]);
    assert_eq!(pushed, noted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_worker_finishes_what_it_holds_and_takes_nothing_new() {
    let bench = Bench::new().await;
    let worker = bench.worker();
    let go = bench.folder.path().join("go");
    let script = format!(
        "echo x > file; while [ ! -e {} ]; do sleep 0.02; done",
        go.display()
    );
    bench.fake.grant(bench.run(7, &script)).await;
    bench
        .fake
        .until("the start", |state| {
            (!state.reports.is_empty()).then_some(())
        })
        .await;
    worker.wish(Wish::Drain);
    // Granted before it was told: it learns of the wish within a turn of its loop.
    let mut lease = 8;
    loop {
        bench.fake.grant(bench.run(lease, "true")).await;
        if matches!(
            bench.fake.last_word(lease).await,
            report::Kind::GivenBack(_)
        ) {
            break;
        }
        lease += 1;
    }
    std::fs::write(&go, "").unwrap();
    let kind = bench.fake.last_word(7).await;
    assert!(matches!(kind, report::Kind::Succeeded(_)), "{kind:?}");
    assert_eq!(worker.ended().await.unwrap(), Ended::Drained);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_leaves_keeps_edits_and_gives_its_leases_back() {
    let bench = Bench::new().await;
    let worker = bench.worker();
    bench
        .fake
        .grant(bench.run(7, "echo half > file; echo ready; sleep 600"))
        .await;
    bench
        .fake
        .until("output", |state| {
            state.output(7).contains("ready").then_some(())
        })
        .await;
    worker.wish(Wish::Leave);
    let report::Kind::GivenBack(failure) = bench.fake.last_word(7).await else {
        panic!("not given back");
    };
    assert_eq!(failure.class, "preempted");
    assert_eq!(
        bench.remote_file("refs/muster/wip/r/t/7", "file").unwrap(),
        "half\n"
    );
    assert_eq!(worker.ended().await.unwrap(), Ended::Left);
    let goodbye = bench
        .fake
        .until("a goodbye", |state| state.goodbye.clone())
        .await;
    assert_eq!(goodbye, "told to leave");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_worker_ends_with_the_reason() {
    let bench = Bench::new().await;
    let refusals = [
        Status::unauthenticated("unknown token"),
        Status::permission_denied("wrong pool"),
        Status::failed_precondition("protocol versions do not match"),
    ];
    for refusal in refusals {
        let message = refusal.message().to_owned();
        bench.fake.with(|state| state.refusal = Some(refusal));
        match bench.worker().ended().await {
            Err(Error::Refused(error)) => {
                assert!(error.to_string().contains(&message), "{error}");
            }
            other => panic!("not refused: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unavailable_coordinator_is_tried_again() {
    let bench = Bench::new().await;
    bench
        .fake
        .with(|state| state.refusal = Some(Status::unavailable("starting")));
    let _worker = bench.worker();
    bench
        .fake
        .until("hellos", |state| (state.hellos.len() > 2).then_some(()))
        .await;
    bench.fake.with(|state| state.refusal = None);
    bench
        .fake
        .until("a session", |state| (state.heartbeat > 0).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_of_another_coordinator_are_set_aside() {
    let first = Bench::new().await;
    let worker = first.worker();
    first
        .fake
        .grant(first.run(7, "echo ready; sleep 600"))
        .await;
    first
        .fake
        .until("output", |state| {
            state.output(7).contains("ready").then_some(())
        })
        .await;
    worker.crash().await;
    let second = Bench::new().await;
    let mut options = second.options();
    options.state = first.options().state;
    let _worker = super::bench::Worker::start(options);
    second.fake.grant(second.run(7, "echo x > file")).await;
    let kind = second.fake.last_word(7).await;
    assert!(matches!(kind, report::Kind::Succeeded(_)), "{kind:?}");
}
