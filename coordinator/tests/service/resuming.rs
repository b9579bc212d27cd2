//! Attempts that were cut off, and grants that go on from them.

use muster_proto::v1;
use muster_proto::v1::coordinator_message::Kind as Heard;
use muster_proto::v1::report::Kind as Report;

use super::world::{Worker, World, git};

const ONE: &str =
    "name: p\nrepo: .\ntasks:\n  - {name: a, agent: codex, prompt: do it, retries: 3}\n";

async fn join(world: &World, features: &[&str]) -> Worker {
    let (token, _) = world.token("worker").await;
    let mut hello = Worker::hello("w");
    hello.agents[0].name = "codex".to_owned();
    let version = hello.version.get_or_insert_default();
    version.features = features.iter().map(|name| (*name).to_owned()).collect();
    let mut worker = Worker::open(world.channel(&token).await, hello).await;
    assert!(matches!(worker.hear().await.unwrap(), Heard::Welcome(_)));
    worker.beat(Vec::new()).await;
    worker
}

/// Pushes unfinished edits under a grant.
fn snapshot(world: &World, grant: &v1::Grant) -> String {
    let source = grant.source.as_ref().unwrap();
    let work = world.work();
    git(&work, &["checkout", "-q", "--detach", &source.commit]);
    std::fs::write(work.join("half"), &source.wip_ref).unwrap();
    git(&work, &["add", "."]);
    git(&work, &["commit", "-q", "-m", &source.wip_ref]);
    let pushed = world.push(
        &grant.credential,
        &source.repository,
        &format!("HEAD:{}", source.wip_ref),
    );
    pushed.unwrap();
    git(&work, &["rev-parse", "HEAD"])
}

fn failed(class: &str) -> Option<Report> {
    Some(Report::Failed(v1::Failed {
        failure: Some(v1::Failure {
            class: class.to_owned(),
            message: "cut off".to_owned(),
            ..v1::Failure::default()
        }),
        usage: None,
    }))
}

fn opened(id: &str) -> Option<Report> {
    Some(Report::SessionOpened(v1::SessionOpened {
        id: id.to_owned(),
        software: "codex 0.30".to_owned(),
        ..v1::SessionOpened::default()
    }))
}

fn asked() -> Option<Report> {
    Some(Report::Asked(v1::Question {
        number: 1,
        title: "May I?".to_owned(),
        choices: vec![v1::Choice {
            id: "yes".to_owned(),
            effect: v1::ChoiceEffect::AllowOnce.into(),
            ..v1::Choice::default()
        }],
        ..v1::Question::default()
    }))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_was_cut_off_goes_on_with_its_edits_its_conversation_and_its_answers() {
    let world = World::start().await;
    world.submit_with_repository(ONE, "key").await;
    let mut worker = join(&world, &[muster_proto::FEATURE_RESUME]).await;
    let first = worker.grant().await;
    assert_eq!(first.resume, None);
    let base = first.source.clone().unwrap().base;
    let edits = snapshot(&world, &first);
    worker
        .report(vec![(first.lease, opened("c-1")), (first.lease, asked())])
        .await;
    let mut operator = world.operator.clone();
    let request = v1::ListQuestionsRequest::default();
    let listed = operator.list_questions(request).await.unwrap().into_inner();
    let yes = v1::AnswerQuestionRequest {
        id: listed.questions[0].id.clone(),
        ..v1::AnswerQuestionRequest::default()
    };
    operator.answer_question(yes).await.unwrap();
    worker
        .report(vec![(first.lease, failed("worker_lost"))])
        .await;

    let second = worker.grant().await;
    let source = second.source.clone().unwrap();
    assert_eq!((&source.commit, &source.base), (&edits, &base));
    assert_eq!(source.read_ref, first.source.clone().unwrap().wip_ref);
    let resume = second.resume.clone().unwrap();
    assert_eq!((resume.attempt, &*resume.session), (1, "c-1"));
    assert_eq!((&*resume.worker, &*resume.host), ("w", "w"));
    let answered = &resume.answered[0];
    assert_eq!(answered.question.as_ref().unwrap().title, "May I?");
    assert_eq!(answered.answer.as_ref().unwrap().choice, "yes");
    let context: serde_json::Value = serde_json::from_slice(&second.context).unwrap();
    let goes_on = &context["goes_on_from"];
    assert_eq!(goes_on["attempt"], 1);
    assert_eq!(goes_on["conversation"], "c-1");
    assert_eq!(goes_on["edits"]["commit"], edits.as_str());
    assert_eq!(goes_on["answered"][0]["choice"], "yes");

    // Cut off before it had edited anything: the earlier edits are still the newest.
    worker
        .report(vec![(second.lease, failed("transport"))])
        .await;
    worker.beat(Vec::new()).await;
    let third = worker.grant().await;
    assert_eq!(third.source.clone().unwrap().commit, edits);
    assert_eq!(third.resume.clone().unwrap().attempt, 2);
    assert_eq!(third.resume.clone().unwrap().session, "c-1");
    let later = snapshot(&world, &third);
    worker
        .report(vec![(third.lease, failed("preempted"))])
        .await;
    worker.beat(Vec::new()).await;
    let fourth = worker.grant().await;
    assert_eq!(fourth.source.clone().unwrap().commit, later);

    // What failed by its own work begins anew.
    worker
        .report(vec![(fourth.lease, failed("agent_failed"))])
        .await;
    worker.beat(Vec::new()).await;
    let fifth = worker.grant().await;
    assert_eq!(fifth.resume, None);
    assert_eq!(fifth.source.unwrap().commit, base);
    let context: serde_json::Value = serde_json::from_slice(&fifth.context).unwrap();
    assert!(context["goes_on_from"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_does_not_know_how_to_go_on_begins_anew() {
    let world = World::start().await;
    world.submit_with_repository(ONE, "key").await;
    let mut worker = join(&world, &[]).await;
    let first = worker.grant().await;
    let base = first.source.clone().unwrap().base;
    snapshot(&world, &first);
    worker
        .report(vec![
            (first.lease, opened("c-1")),
            (first.lease, failed("worker_lost")),
        ])
        .await;
    worker.beat(Vec::new()).await;
    let second = worker.grant().await;
    assert_eq!(second.resume, None);
    assert_eq!(second.source.unwrap().commit, base);
}
