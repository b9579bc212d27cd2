//! What people ask: submissions, lists, watches, retries, roles.

use std::collections::BTreeSet;

use coordinator::app::{App, Options};
use coordinator::pool::local::Parting;
use muster_proto::v1;
use muster_proto::v1::operator_service_client::OperatorServiceClient;
use muster_proto::v1::watch_run_response::Item;
use tonic::Code;

use super::world::{Worker, World, done, events_of, options, within};

const ONE: &str = "name: p\ntasks:\n  - {name: a, run: 'true', agent: command}\n";

#[tokio::test(flavor = "multi_thread")]
async fn every_run_is_on_some_page_of_the_list() {
    let world = World::start().await;
    let mut runs = BTreeSet::new();
    for key in ["1", "2", "3", "4", "5"] {
        let run = world.submit(ONE, key).await.unwrap();
        if key != "5" {
            world.cancel(&run).await;
            world.until(&run, |run| run.archived).await;
        }
        runs.insert(run);
    }
    let mut listed = BTreeSet::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListRunsRequest {
            limit: 2,
            page_token,
        };
        let page = world.operator.clone().list_runs(request).await.unwrap();
        let page = page.into_inner();
        listed.extend(page.runs.into_iter().map(|run| run.run));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(listed, runs);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_plans_under_one_key_the_admitted_one_keeps_its_documents() {
    let world = World::start().await;
    let mut worker = Worker::join(&world, "w").await;
    for key in 0..12 {
        let key = format!("key-{key}");
        let plan = |script: &str| ONE.replace("true", script);
        let (first, second) = (plan("first"), plan("second"));
        let (first, second) = tokio::join!(world.submit(&first, &key), world.submit(&second, &key));
        let admitted = match (&first, &second) {
            (Ok(_), Err(refused)) => {
                assert_eq!(refused.code(), Code::AlreadyExists);
                "first"
            }
            (Err(_), Ok(_)) => "second",
            other => panic!("exactly one is admitted: {other:?}"),
        };
        worker.beat(Vec::new()).await;
        let grant = worker.grant().await;
        let document = String::from_utf8(grant.document.clone()).unwrap();
        assert!(document.contains(admitted), "{admitted}: {document}");
        worker.report(vec![(grant.lease, done())]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_that_do_not_fit_one_message_come_in_several() {
    let world = World::start().await;
    let mut worker = Worker::join(&world, "w").await;
    let prompt = "\"".repeat(1_000_000);
    let mut plan = "name: p\ntasks:\n".to_owned();
    for task in 0..17 {
        plan.push_str(&format!(
            "  - name: t{task}\n    agent: command\n    run: 'true'\n    prompt: |\n      {prompt}\n"
        ));
    }
    let run = world.submit(&plan, "key").await.unwrap();
    let mut bytes = 0;
    let mut held = Vec::new();
    while held.len() < 16 {
        for grant in worker.grants().await {
            bytes += grant.document.len() + grant.context.len();
            held.push(grant.lease);
        }
    }
    assert!(bytes > 60_000_000, "{bytes}");
    assert_eq!(world.get(&run).await.tasks.len(), 17);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_stays_used_over_archiving_and_restarts() {
    let mut world = World::start().await;
    let run = world.submit(ONE, "key").await.unwrap();
    assert_eq!(world.submit(ONE, "key").await.unwrap(), run);
    world.cancel(&run).await;
    world.until(&run, |run| run.archived).await;
    world.restart().await;
    assert_eq!(world.submit(ONE, "key").await.unwrap(), run);
    assert!(world.get(&run).await.archived);
    let other = ONE.replace("true", "false");
    let refused = world.submit(&other, "key").await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archived_run_is_retried_with_its_documents_and_goes_on_counting() {
    let world = World::start().await;
    let mut runs = Vec::new();
    for key in 0..12 {
        let run = world.submit(ONE, &format!("key-{key}")).await.unwrap();
        world.cancel(&run).await;
        let last = world.until(&run, |run| run.archived).await.last_seq;
        runs.push((run, last));
    }
    // Not before: a lease that it holds keeps a cancelled run out of the archive.
    let mut worker = Worker::join(&world, "w").await;
    for (key, (run, last)) in runs.into_iter().enumerate() {
        let retry = v1::RetryRequest {
            run: run.clone(),
            task: if key % 2 == 0 { "a" } else { "" }.to_owned(),
        };
        world.operator.clone().retry(retry).await.unwrap();
        let grant = worker.grant().await;
        assert!(!grant.document.is_empty());
        worker.report(vec![(grant.lease, done())]).await;
        let run = world
            .until(&run, |run| run.archived && run.state == "succeeded")
            .await;
        assert!(run.last_seq > last);
        if key == 0 {
            let (seqs, _) = watch(&world, &run.run, 0).await;
            let all: Vec<u64> = (1..).take(seqs.len()).collect();
            assert_eq!(seqs, all);
            assert!(seqs.len() as u64 >= run.last_seq);
        }
    }
}

/// Watches a run to its end: the numbers of journal and of agent events, in order.
async fn watch(world: &World, run: &str, after_seq: u64) -> (Vec<u64>, Vec<u64>) {
    let request = v1::WatchRunRequest {
        run: run.to_owned(),
        after_seq,
        agent_events: true,
        ..v1::WatchRunRequest::default()
    };
    let stream = world.operator.clone().watch_run(request).await.unwrap();
    let mut stream = stream.into_inner();
    let (mut seqs, mut numbers) = (Vec::new(), Vec::new());
    while let Some(response) = within(stream.message()).await.unwrap() {
        match response.item.unwrap() {
            Item::Journal(event) => seqs.push(event.seq),
            Item::Agent(event) => numbers.push(event.event.unwrap().number),
        }
    }
    (seqs, numbers)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_from_behind_the_end_shows_nothing_and_ends() {
    let world = World::start().await;
    let run = world.submit(ONE, "key").await.unwrap();
    world.cancel(&run).await;
    world.until(&run, |run| run.archived).await;
    assert_eq!(watch(&world, &run, u64::MAX).await, (vec![], vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_shows_what_an_agent_said_last_though_its_report_came_first() {
    let world = World::start().await;
    let run = world.submit(ONE, "key").await.unwrap();
    let mut worker = Worker::join(&world, "w").await;
    let grant = worker.grant().await;
    let watching = watch(&world, &run, 0);
    let working = async {
        worker.notes(events_of(&grant), &[1]).await;
        worker.report(vec![(grant.lease, done())]).await;
        world.until(&run, |run| run.archived).await;
        worker.notes(events_of(&grant), &[2]).await;
        let ended = v1::AgentEvent {
            number: 3,
            at_ms: 0,
            kind: Some(v1::agent_event::Kind::Phase(v1::Phase {
                name: "reported".to_owned(),
                detail: String::new(),
            })),
        };
        let events = v1::LeaseEvents {
            events: vec![ended],
            ..events_of(&grant)
        };
        let leases = vec![events];
        let kind = v1::worker_message::Kind::Events(v1::EventBatch { leases });
        worker.say(kind).await;
    };
    let ((_, numbers), ()) = tokio::join!(watching, working);
    assert_eq!(numbers, [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_from_an_event_shows_no_words_of_leases_that_had_closed_by_then() {
    let world = World::start().await;
    let run = world.submit(ONE, "key").await.unwrap();
    let mut worker = Worker::join(&world, "w").await;
    let grant = worker.grant().await;
    worker.notes(events_of(&grant), &[1, 2]).await;
    worker.report(vec![(grant.lease, done())]).await;
    let last = world.until(&run, |run| run.archived).await.last_seq;
    let (seqs, numbers) = watch(&world, &run, last).await;
    assert!(seqs.iter().all(|seq| *seq > last), "{seqs:?}");
    assert_eq!(numbers, [0; 0]);
    // From before the lease was granted all of it is news.
    let (_, numbers) = watch(&world, &run, 1).await;
    assert_eq!(numbers, [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_from_the_last_event_shows_at_once_what_a_silent_agent_has_said() {
    let world = World::start().await;
    let run = world.submit(ONE, "key").await.unwrap();
    let mut worker = Worker::join(&world, "w").await;
    let grant = worker.grant().await;
    worker.notes(events_of(&grant), &[1]).await;
    let request = v1::WatchRunRequest {
        run: run.clone(),
        after_seq: world.get(&run).await.last_seq,
        agent_events: true,
        ..v1::WatchRunRequest::default()
    };
    let begun = std::time::Instant::now();
    let stream = world.operator.clone().watch_run(request).await.unwrap();
    let first = within(stream.into_inner().message()).await.unwrap();
    assert!(matches!(first.unwrap().item, Some(Item::Agent(_))));
    // A cursor of a lost future is waited for; this one is of now.
    assert!(begun.elapsed() < std::time::Duration::from_secs(8));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_may_do_what_its_name_says_and_no_more() {
    let world = World::start().await;
    world.submit(ONE, "key").await.unwrap();
    let rank = |role: &str| match role {
        "viewer" => 1,
        "operator" => 2,
        "admin" => 3,
        _ => 0,
    };
    for role in ["worker", "viewer", "operator", "admin"] {
        let (token, _) = world.token(role).await;
        let mut client = OperatorServiceClient::new(world.channel(&token).await);
        macro_rules! codes {
            ($($needed:literal $call:ident($request:ident)),* $(,)?) => {
                vec![$((
                    stringify!($call),
                    rank($needed),
                    client.$call(v1::$request::default()).await.err().map(|status| status.code()),
                )),*]
            };
        }
        let codes = codes![
            "viewer" get_info(GetInfoRequest),
            "operator" prepare_run(PrepareRunRequest),
            "operator" submit_run(SubmitRunRequest),
            "viewer" get_run(GetRunRequest),
            "viewer" list_runs(ListRunsRequest),
            "viewer" watch_run(WatchRunRequest),
            "viewer" read_log(ReadLogRequest),
            "viewer" get_diff(GetDiffRequest),
            "viewer" get_conflicts(GetConflictsRequest),
            "viewer" explain_task(ExplainTaskRequest),
            "viewer" get_usage(GetUsageRequest),
            "operator" cancel(CancelRequest),
            "operator" retry(RetryRequest),
            "viewer" list_workers(ListWorkersRequest),
            "operator" drain_worker(DrainWorkerRequest),
            "viewer" list_pools(ListPoolsRequest),
            "viewer" plan_pools(PlanPoolsRequest),
            "operator" pause_pool(PausePoolRequest),
            "operator" resume_pool(ResumePoolRequest),
            "admin" forget_pool(ForgetPoolRequest),
            "admin" create_token(CreateTokenRequest),
            "admin" list_tokens(ListTokensRequest),
            "admin" revoke_token(RevokeTokenRequest),
            "admin" shutdown(ShutdownRequest),
        ];
        for (call, needed, code) in codes {
            let refused = code == Some(Code::PermissionDenied);
            assert_eq!(refused, rank(role) < needed, "{role}: {call}: {code:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_agents_have_used_is_told_once_through_replays_and_restarts() {
    let mut world = World::start().await;
    let plan = "{name: p, tasks: [{name: a, run: 'true', agent: command}]}";
    let run = world.submit(plan, "k").await.unwrap();
    let mut worker = Worker::join(&world, "w").await;
    let grant = worker.grant().await;
    let used = |number: u64, model: &str| v1::AgentEvent {
        number,
        at_ms: 1_000 * number,
        kind: Some(v1::agent_event::Kind::Activity(v1::Activity {
            turn: 1,
            kind: Some(v1::activity::Kind::Usage(v1::ModelUsage {
                model: model.to_owned(),
                input_tokens: 1_000,
                cached_input_tokens: 400,
                output_tokens: 10,
                calls: 1,
                ..v1::ModelUsage::default()
            })),
        })),
    };
    let tell = |events| v1::LeaseEvents {
        events,
        ..events_of(&grant)
    };
    let first = vec![used(1, "gpt-5.4"), used(2, "no-such-model")];
    assert_eq!(worker.events(tell(first.clone())).await, 2);
    assert_eq!(worker.events(tell(first)).await, 2);
    let total = |world: &World, request: v1::GetUsageRequest| {
        let mut operator = world.operator.clone();
        async move {
            let used = operator.get_usage(request).await.unwrap().into_inner();
            (used.groups, used.total.unwrap(), used.behind)
        }
    };
    let by_call = v1::GetUsageRequest {
        run: Some(run.clone()),
        group_by: v1::UsageGroupBy::Call.into(),
        ..v1::GetUsageRequest::default()
    };
    let (groups, all, behind) = total(&world, by_call.clone()).await;
    assert_eq!(behind, "");
    let of = |group: &v1::UsageGroup| (group.event, group.lease, group.worker.clone());
    let worker_id = groups[0].worker.clone();
    assert!(worker_id.as_deref().is_some_and(|id| !id.is_empty()));
    assert_eq!(
        of(&groups[0]),
        (Some(1), Some(grant.lease), worker_id.clone())
    );
    assert_eq!(of(&groups[1]), (Some(2), Some(grant.lease), worker_id));
    // 600 at 2.5, 400 at 0.25 and 10 at 15 dollars a million; nobody knows the other's.
    assert_eq!(groups[0].cost_nanos, Some(1_750_000));
    assert_eq!(groups[1].cost_nanos, None);
    assert_eq!(all.sums.unwrap().input_tokens, 2_000);
    assert_eq!((all.models.len(), all.cost_nanos), (2, Some(1_750_000)));
    assert_eq!(all.unpriced_models, ["no-such-model"]);
    let shown = world
        .until(&run, |run| run.usage.is_some())
        .await
        .usage
        .unwrap();
    assert_eq!(shown.sums, all.sums);

    world.restart().await;
    let mut worker = Worker::join(&world, "w").await;
    let again = vec![
        used(1, "gpt-5.4"),
        used(2, "no-such-model"),
        used(3, "gpt-5.4"),
    ];
    assert_eq!(worker.events(tell(again)).await, 3);
    let (groups, all, _) = total(&world, by_call).await;
    assert_eq!((groups.len(), all.sums.unwrap().events), (3, 3));
    let nothing = v1::GetUsageRequest {
        run: Some("r-none".to_owned()),
        ..v1::GetUsageRequest::default()
    };
    assert_eq!(total(&world, nothing).await.0, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_at_its_last_step_leaves_nothing_running() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    // The address file cannot replace a folder.
    std::fs::create_dir_all(home.join("address.json/x")).unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let options = Options {
        listen: address,
        ..options(&home)
    };
    assert!(App::start(options.clone()).await.is_err());
    std::fs::remove_dir_all(home.join("address.json")).unwrap();
    // The port is free again once the server has ended.
    let again = async {
        loop {
            match App::start(options.clone()).await {
                Ok(app) => return app,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    within(again).await.stop(Parting::Keep).await.unwrap();
}
