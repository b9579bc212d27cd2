//! Workers that lie, repeat themselves, or are no longer welcome.

use std::path::Path;

use muster_proto::v1;
use muster_proto::v1::coordinator_message::Kind as Heard;
use muster_proto::v1::operator_service_client::OperatorServiceClient;
use muster_proto::v1::worker_message::Kind as Said;
use muster_proto::v1::worker_service_client::WorkerServiceClient;
use tonic::Code;

use super::world::{Worker, World, done, events_of, made_commit, within};

/// What a session is told once it is ended.
async fn ended(worker: &mut Worker) -> tonic::Status {
    loop {
        if let Err(ended) = worker.hear().await {
            return ended;
        }
    }
}

const ONE: &str = "name: p\ntasks:\n  - {name: a, run: 'true', agent: command}\n";
const TWO: &str = "name: p\ntasks:\n  - {name: a, run: 'true', agent: command}\n  - {name: b, run: 'true', agent: command}\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_report_is_refused_without_the_others_of_its_batch() {
    let world = World::start().await;
    world.submit(TWO, "key").await.unwrap();
    let mut worker = Worker::join(&world, "w").await;
    let grants = worker.grants().await;
    let senseless = Some(v1::report::Kind::Succeeded(v1::Succeeded::default()));
    let verdicts = worker
        .report(vec![
            (grants[0].lease, senseless),
            (grants[0].lease, None),
            (grants[1].lease, done()),
        ])
        .await;
    use v1::ReportVerdict::{Recorded, Stale};
    assert_eq!(verdicts, [Stale, Stale, Recorded]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_ends_the_session_that_it_opened() {
    let world = World::start().await;
    let (token, id) = world.token("worker").await;
    let mut worker = Worker::open(world.channel(&token).await, Worker::hello("w")).await;
    assert!(matches!(worker.hear().await.unwrap(), Heard::Welcome(_)));
    worker.beat(Vec::new()).await;
    assert!(matches!(worker.hear().await.unwrap(), Heard::Renewal(_)));
    let revoke = v1::RevokeTokenRequest { id };
    world.operator.clone().revoke_token(revoke).await.unwrap();
    worker.beat(Vec::new()).await;
    let ended = worker.hear().await.unwrap_err();
    assert_eq!(ended.code(), Code::Unauthenticated);
    world.submit(ONE, "key").await.unwrap();
    let mut operator = world.operator.clone();
    let workers = within(operator.list_workers(v1::ListWorkersRequest {}))
        .await
        .unwrap()
        .into_inner()
        .workers;
    assert_eq!(workers[0].leases, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_ends_a_session_that_sends_no_heartbeat() {
    let world = World::start().await;
    let (token, id) = world.token("worker").await;
    let mut worker = Worker::open(world.channel(&token).await, Worker::hello("w")).await;
    assert!(matches!(worker.hear().await.unwrap(), Heard::Welcome(_)));
    let revoke = v1::RevokeTokenRequest { id };
    world.operator.clone().revoke_token(revoke).await.unwrap();
    assert_eq!(ended(&mut worker).await.code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_ends_the_watch_that_it_asked_for() {
    let world = World::start().await;
    let run = world.submit(ONE, "key").await.unwrap();
    let (token, id) = world.token("viewer").await;
    let mut viewer = OperatorServiceClient::new(world.channel(&token).await);
    let request = v1::WatchRunRequest {
        run,
        ..v1::WatchRunRequest::default()
    };
    let mut stream = within(viewer.watch_run(request))
        .await
        .unwrap()
        .into_inner();
    let revoke = v1::RevokeTokenRequest { id };
    world.operator.clone().revoke_token(revoke).await.unwrap();
    let ended = loop {
        if let Err(ended) = within(stream.message()).await {
            break ended;
        }
    };
    assert_eq!(ended.code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_leases_that_never_were_leave_no_trace() {
    let world = World::start().await;
    let run = world.submit(TWO, "key").await.unwrap();
    let mut worker = Worker::join(&world, "w").await;
    let grants = worker.grants().await;
    worker.report(vec![(grants[0].lease, done())]).await;
    let attempt = 1;
    let mut lease = 4_242_000;
    for kind in [
        v1::work::Kind::Attempt(v1::AttemptWork { attempt }),
        v1::work::Kind::Verify(v1::VerifyWork { attempt }),
        v1::work::Kind::FinalVerify(v1::Empty {}),
    ] {
        for run in [&run, "../../outside", "", "/"] {
            lease += 1;
            let forged = v1::LeaseEvents {
                lease,
                run: run.to_owned(),
                work: Some(v1::Work { kind: Some(kind) }),
                ..events_of(&grants[0])
            };
            worker.notes(forged, &[1]).await;
        }
    }
    let mut found = Vec::new();
    files(world.folder.path(), &mut found);
    let forged: Vec<&String> = found.iter().filter(|name| name.contains("4242")).collect();
    assert!(forged.is_empty(), "{forged:?}");
}

fn files(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        found.push(path.display().to_string());
        if path.is_dir() {
            files(&path, found);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_kept_after_the_end_of_their_lease_and_of_their_run() {
    let world = World::start().await;
    let run = world.submit(ONE, "key").await.unwrap();
    let mut worker = Worker::join(&world, "w").await;
    let grant = worker.grant().await;
    worker.notes(events_of(&grant), &[1]).await;
    worker.report(vec![(grant.lease, done())]).await;
    world.until(&run, |run| run.archived).await;
    let mut again = Worker::join(&world, "w").await;
    again.notes(events_of(&grant), &[1, 2]).await;
    let request = v1::ReadLogRequest {
        run,
        task: "a".to_owned(),
        ..v1::ReadLogRequest::default()
    };
    let log = world.operator.clone().read_log(request).await.unwrap();
    let mut log = log.into_inner();
    let mut numbers = Vec::new();
    while let Some(part) = within(log.message()).await.unwrap() {
        numbers.extend(part.events.iter().map(|event| event.number));
    }
    assert_eq!(numbers, [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_a_verify_that_was_repeated_gets_each_event_once() {
    let world = World::start().await;
    let plan =
        "name: p\nrepo: .\ntasks:\n  - {name: a, run: 'true', agent: command, verify: ['true']}\n";
    let run = world.submit_with_repository(plan, "key").await;
    let mut worker = Worker::join(&world, "w").await;
    let grant = worker.grant().await;
    let commit = world.publish(&grant);
    let report = vec![(grant.lease, made_commit(&commit))];
    worker.report(report).await;
    let first = worker.grant().await;
    worker.notes(events_of(&first), &[1, 2, 3]).await;
    let request = v1::ReadLogRequest {
        run: run.clone(),
        task: "a".to_owned(),
        verify: true,
        ..v1::ReadLogRequest::default()
    };
    let follow = v1::ReadLogRequest {
        follow: true,
        ..request.clone()
    };
    let following = world.operator.clone().read_log(follow).await.unwrap();
    let failure = v1::Failure {
        class: "workspace".to_owned(),
        ..v1::Failure::default()
    };
    let failed = v1::report::Kind::Failed(v1::Failed {
        failure: Some(failure),
        usage: None,
    });
    worker.report(vec![(first.lease, Some(failed))]).await;
    let second = worker.grant().await;
    assert!(second.lease > first.lease);
    worker.notes(events_of(&second), &[1, 2]).await;
    let passed = v1::report::Kind::VerifyPassed(v1::Empty {});
    worker.report(vec![(second.lease, Some(passed))]).await;

    let (one, two) = (first.lease, second.lease);
    let all = [(one, 1), (one, 2), (one, 3), (two, 1), (two, 2)];
    assert_eq!(taken(following.into_inner()).await, all);
    world.until(&run, |run| run.archived).await;
    for (after_lease, after, behind) in [
        (0, 0, 0),
        // As those ask who know of no leases.
        (0, 2, 2),
        (one, 2, 2),
        (one, 3, 3),
        (two, 0, 3),
        (two, 1, 4),
        (two, 2, 5),
        (two + 1, 0, 5),
    ] {
        let request = v1::ReadLogRequest {
            after,
            after_lease,
            ..request.clone()
        };
        let log = world.operator.clone().read_log(request).await.unwrap();
        assert_eq!(
            taken(log.into_inner()).await,
            all[behind..],
            "{after_lease}:{after}"
        );
    }
}

/// Takes all that a log sends, as leases and numbers.
async fn taken(mut log: tonic::Streaming<v1::ReadLogResponse>) -> Vec<(u64, u64)> {
    let mut taken = Vec::new();
    while let Some(part) = within(log.message()).await.unwrap() {
        taken.extend(part.events.iter().map(|event| (part.lease, event.number)));
    }
    taken
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_asks_is_told_what_is_there_and_no_more_when_the_home_is_an_older_one() {
    let mut world = World::start().await;
    world.submit(ONE, "key").await.unwrap();
    let mut worker = Worker::join(&world, "w").await;
    let grant = worker.grant().await;
    assert_eq!(worker.notes(events_of(&grant), &[]).await, 0);
    assert_eq!(worker.notes(events_of(&grant), &[1, 2]).await, 2);
    let transcripts = world.folder.path().join("home/transcripts");
    let saved = world.folder.path().join("saved");
    let copy = |from: &Path, to: &Path| {
        let copied = std::process::Command::new("cp")
            .arg("-a")
            .args([from, to])
            .status();
        assert!(copied.unwrap().success());
    };
    copy(&transcripts, &saved);
    assert_eq!(worker.notes(events_of(&grant), &[3, 4]).await, 4);
    drop(worker);
    world.stop().await;
    std::fs::remove_dir_all(&transcripts).unwrap();
    copy(&saved, &transcripts);
    world.restart().await;
    let mut again = Worker::join(&world, "w").await;
    assert_eq!(again.notes(events_of(&grant), &[]).await, 2);
    assert_eq!(again.notes(events_of(&grant), &[3, 4]).await, 4);
    // Of a lease that is not its own nothing is wanted.
    let other = v1::LeaseEvents {
        lease: 99,
        ..events_of(&grant)
    };
    assert_eq!(again.notes(other, &[]).await, u64::MAX);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_an_older_session_leaves_the_newer_one_alone() {
    let world = World::start().await;
    let mut older = Worker::join(&world, "w").await;
    let mut newer = Worker::join(&world, "w").await;
    loop {
        match older.hear().await {
            Ok(_) => {}
            Err(ended) => {
                assert_eq!(ended.code(), Code::Aborted);
                break;
            }
        }
    }
    drop(older);
    world.submit(ONE, "key").await.unwrap();
    newer.beat(Vec::new()).await;
    assert_eq!(newer.grant().await.task, "a");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_major_version_is_refused_with_both_named_and_another_minor_works() {
    let world = World::start().await;
    let (token, _) = world.token("worker").await;
    let channel = world.channel(&token).await;
    for (major, minor) in [(1, 99), (2, 0), (0, 0)] {
        let hello = v1::Hello {
            version: Some(v1::ProtocolVersion {
                major,
                minor,
                ..v1::ProtocolVersion::default()
            }),
            ..Worker::hello("w")
        };
        let answer = Worker::open(channel.clone(), hello).await.hear().await;
        if major == 1 {
            assert!(matches!(answer, Ok(Heard::Welcome(_))));
        } else {
            let refused = answer.unwrap_err();
            assert_eq!(refused.code(), Code::FailedPrecondition);
            let message = refused.message();
            assert!(message.contains(&format!("{major}.{minor}")), "{message}");
            assert!(message.contains("speaks 1.1"), "{message}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_in_tells_whether_a_worker_would_be_let_in_and_lets_nobody_in() {
    let world = World::start().await;
    let (token, _) = world.token("worker").await;
    let mut client = WorkerServiceClient::new(world.channel(&token).await);
    let request = |minor, pool: &str| v1::CheckInRequest {
        version: Some(v1::ProtocolVersion {
            major: 1,
            minor,
            ..v1::ProtocolVersion::default()
        }),
        pool: pool.to_owned(),
    };
    for minor in [0, 1, 2] {
        let answer = client.check_in(request(minor, "")).await.unwrap();
        let answer = answer.into_inner();
        assert!(answer.now.is_some_and(|now| now.seconds > 1_767_225_600));
        let named = client.check_in(request(minor, &answer.pool)).await;
        assert_eq!(named.unwrap().into_inner().pool, answer.pool);
    }
    let other = client.check_in(request(1, "other")).await.unwrap_err();
    assert_eq!(other.code(), Code::PermissionDenied);
    assert!(other.message().contains("other"), "{}", other.message());
    let unknown = client.check_in(v1::CheckInRequest::default()).await;
    let unknown = unknown.unwrap_err();
    assert_eq!(unknown.code(), Code::FailedPrecondition);
    let (viewer, _) = world.token("viewer").await;
    let mut client = WorkerServiceClient::new(world.channel(&viewer).await);
    let refused = client.check_in(request(1, "")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_reports_leases_of_others_without_end_is_sent_away_by_name() {
    let world = World::start().await;
    let mut worker = Worker::join(&world, "w").await;
    let mut lease = 1_000;
    let refused = loop {
        let reports = (0..1_000).map(|_| {
            lease += 1;
            v1::Report {
                number: lease,
                lease,
                kind: done(),
            }
        });
        let reports = reports.collect();
        worker.say(Said::Reports(v1::ReportBatch { reports })).await;
        match worker.hear().await {
            Ok(_) => {}
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("reports"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_sends_events_of_leases_it_never_had_is_sent_away_by_name() {
    let world = World::start().await;
    world.submit(ONE, "key").await.unwrap();
    let mut worker = Worker::join(&world, "w").await;
    let grant = worker.grant().await;
    let leases = (0..50).map(|index| v1::LeaseEvents {
        lease: 1_000_000 + index,
        events: vec![v1::AgentEvent {
            number: 1,
            ..v1::AgentEvent::default()
        }],
        ..events_of(&grant)
    });
    let leases = leases.collect();
    worker.say(Said::Events(v1::EventBatch { leases })).await;
    let refused = ended(&mut worker).await;
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("events"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_with_too_many_tasks_is_refused_by_name_and_leaves_nothing() {
    let world = World::start().await;
    let mut plan = "name: p\ntasks:\n".to_owned();
    for task in 0..=coordinator_core::limits::TASKS_PER_RUN {
        plan.push_str(&format!("- {{name: t{task}, run: x}}\n"));
    }
    let refused = world.submit(&plan, "key").await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("200000"), "{refused}");
    let mut operator = world.operator.clone();
    let listed = operator.list_runs(v1::ListRunsRequest::default()).await;
    assert!(listed.unwrap().into_inner().runs.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_plans_may_be_large_requests() {
    let world = World::start().await;
    let request = v1::CancelRequest {
        run: "x".to_owned(),
        reason: "x".repeat(1 << 20),
        ..v1::CancelRequest::default()
    };
    let refused = world.operator.clone().cancel(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange);
    let plan = format!(
        "name: p\ntasks:\n- {{name: a, run: '{}'}}\n",
        "x".repeat(300_000)
    );
    let judged = world.submit(&plan, "key").await;
    assert!(
        !judged.is_err_and(|refused| refused.code() == Code::OutOfRange),
        "a plan has more room"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_shown_page_by_page() {
    let world = World::start().await;
    let run = world.submit(TWO, "key").await.unwrap();
    let mut operator = world.operator.clone();
    let mut request = v1::GetRunRequest {
        run,
        limit: 1,
        ..v1::GetRunRequest::default()
    };
    let mut names = Vec::new();
    loop {
        let response = operator
            .get_run(request.clone())
            .await
            .unwrap()
            .into_inner();
        let page = response.run.unwrap();
        assert_eq!(page.state, "active");
        names.extend(page.tasks.into_iter().map(|task| task.name));
        if response.next_page_token.is_empty() {
            break;
        }
        request.page_token = response.next_page_token;
    }
    assert_eq!(names, ["a", "b"]);
    request.page_token = "x".to_owned();
    let refused = operator.get_run(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_watchers_of_a_run_get_every_event_once_and_none_the_whole_plan() {
    let world = World::start().await;
    let mut plan = "name: p\ntasks:\n".to_owned();
    for task in 0..1_000 {
        plan.push_str(&format!("- {{name: t{task}, run: x, labels: [nobody]}}\n"));
    }
    let run = world.submit(&plan, "key").await.unwrap();
    world.cancel(&run).await;
    let mut watchers = tokio::task::JoinSet::new();
    for after_seq in [0, 0, 0, 500, 1_500] {
        let mut operator = world.operator.clone();
        let request = v1::WatchRunRequest {
            run: run.clone(),
            after_seq,
            agent_events: after_seq == 500,
            ..v1::WatchRunRequest::default()
        };
        watchers.spawn(async move {
            let mut stream = operator.watch_run(request).await.unwrap().into_inner();
            let mut last = after_seq;
            while let Some(response) = within(stream.message()).await.unwrap() {
                let Some(v1::watch_run_response::Item::Journal(event)) = response.item else {
                    continue;
                };
                assert_eq!(event.seq, last + 1);
                assert!(event.json.len() < 64 * 1024, "{} bytes", event.json.len());
                last = event.seq;
            }
            last
        });
    }
    let ends = watchers.join_all().await;
    assert!(
        ends[0] > 2_000 && ends.iter().all(|end| *end == ends[0]),
        "{ends:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_that_read_nothing_hold_up_no_other() {
    let world = World::start().await;
    let mut plan = "name: p\ntasks:\n".to_owned();
    for task in 0..1_000 {
        plan.push_str(&format!("- {{name: t{task}, run: x, labels: [nobody]}}\n"));
    }
    let run = world.submit(&plan, "key").await.unwrap();
    world.cancel(&run).await;
    let (token, _) = world.token("viewer").await;
    let mut deaf = OperatorServiceClient::new(world.channel(&token).await);
    let request = v1::WatchRunRequest {
        run,
        agent_events: true,
        ..v1::WatchRunRequest::default()
    };
    let mut unread = Vec::new();
    for _ in 0..50 {
        unread.push(within(deaf.watch_run(request.clone())).await.unwrap());
    }
    let watching = world.operator.clone().watch_run(request).await;
    let mut stream = watching.unwrap().into_inner();
    let mut count = 0;
    while within(stream.message()).await.unwrap().is_some() {
        count += 1;
    }
    assert!(count > 2_000, "{count}");
}
