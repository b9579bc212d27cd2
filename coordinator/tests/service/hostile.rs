//! Workers that lie, repeat themselves, or are no longer welcome.

use std::path::Path;

use muster_proto::v1;
use muster_proto::v1::coordinator_message::Kind as Heard;
use muster_proto::v1::operator_service_client::OperatorServiceClient;
use tonic::Code;

use super::world::{Worker, World, done, events_of, within};

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
            assert!(message.contains("1.0"), "{message}");
        }
    }
}
