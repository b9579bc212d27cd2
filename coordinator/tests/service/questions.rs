//! Agents ask, people answer, and the answers reach the agents.

use muster_proto::v1;
use muster_proto::v1::coordinator_message::Kind as Heard;
use muster_proto::v1::operator_service_client::OperatorServiceClient;
use muster_proto::v1::report::Kind as Report;
use tonic::Code;

use super::world::{Worker, World, done};

const ONE: &str = "name: p\ntasks:\n  - {name: a, run: 'true', agent: command}\n";

fn asked(number: u32) -> Option<Report> {
    let choice = |id: &str, effect: v1::ChoiceEffect| v1::Choice {
        id: id.to_owned(),
        label: format!("The {id}"),
        effect: effect.into(),
        rule: String::new(),
    };
    Some(Report::Asked(v1::Question {
        number,
        kind: "command".to_owned(),
        title: "May I?".to_owned(),
        detail: "rm -r build".to_owned(),
        choices: vec![
            choice("yes", v1::ChoiceEffect::AllowOnce),
            choice("no", v1::ChoiceEffect::Deny),
        ],
        ..v1::Question::default()
    }))
}

fn closed(number: u32) -> Option<Report> {
    Some(Report::QuestionClosed(v1::QuestionClosed {
        question: number,
        choice: "yes".to_owned(),
        by: String::new(),
        earlier: String::new(),
    }))
}

fn yes(id: &str) -> v1::AnswerQuestionRequest {
    v1::AnswerQuestionRequest {
        id: id.to_owned(),
        text: "but quickly".to_owned(),
        ..v1::AnswerQuestionRequest::default()
    }
}

async fn questions(world: &World) -> Vec<v1::OpenQuestion> {
    let request = v1::ListQuestionsRequest::default();
    let listed = world.operator.clone().list_questions(request).await;
    listed.unwrap().into_inner().questions
}

async fn answers(worker: &mut Worker) -> Vec<v1::LeaseAnswers> {
    loop {
        if let Heard::Answers(answers) = worker.hear().await.unwrap() {
            return answers.leases;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_reaches_the_agent_in_each_session_until_it_has_it() {
    let world = World::start().await;
    let mut worker = Worker::join(&world, "w").await;
    let run = world.submit(ONE, "k").await.unwrap();
    let grant = worker.grant().await;
    let lease = grant.lease;
    let verdicts = worker
        .report(vec![
            (lease, Some(Report::Started(v1::Empty {}))),
            (lease, asked(3)),
            (lease, asked(3)),
        ])
        .await;
    let recorded = v1::ReportVerdict::Recorded;
    let already = v1::ReportVerdict::AlreadyRecorded;
    assert_eq!(verdicts, [recorded, recorded, already]);

    let open = questions(&world).await;
    assert_eq!(open.len(), 1);
    let id = open[0].id.clone();
    assert_eq!((&*open[0].run, &*open[0].task), (&*run, "a"));
    assert_eq!(open[0].lease, lease);
    assert_eq!(open[0].question.as_ref().unwrap().detail, "rm -r build");
    let task = world.get(&run).await.tasks.remove(0);
    assert_eq!(task.asks, format!("{id}: May I?"));

    let mut operator = world.operator.clone();
    let said = operator.answer_question(yes(&id)).await.unwrap();
    assert_eq!(said.into_inner().choice.unwrap().id, "yes");
    let told = answers(&mut worker).await;
    let by = told[0].answers[0].by.clone();
    assert!(by.starts_with("admin token "), "{by}");
    let expected = v1::LeaseAnswers {
        lease,
        answers: vec![v1::Answer {
            question: 3,
            choice: "yes".to_owned(),
            text: "but quickly".to_owned(),
            name: id.clone(),
            by,
        }],
    };
    assert_eq!(told, std::slice::from_ref(&expected));
    assert!(questions(&world).await.is_empty());

    // The first message may have been lost.
    let (token, _) = world.token("worker").await;
    let mut hello = Worker::hello("w");
    hello.held_leases = vec![lease];
    let mut again = Worker::open(world.channel(&token).await, hello).await;
    assert!(matches!(again.hear().await.unwrap(), Heard::Welcome(_)));
    assert_eq!(answers(&mut again).await, [expected]);
    assert_eq!(again.report(vec![(lease, closed(3))]).await, [recorded]);

    let refused = operator.answer_question(v1::AnswerQuestionRequest {
        choice: "no".to_owned(),
        ..yes(&id)
    });
    let refused = refused.await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("was answered before: yes by"));
    again.report(vec![(lease, done())]).await;
    world.until(&run, |run| run.state == "succeeded").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn viewers_see_questions_and_do_not_answer_them() {
    let world = World::start().await;
    let mut worker = Worker::join(&world, "w").await;
    world.submit(ONE, "k").await.unwrap();
    let lease = worker.grant().await.lease;
    worker.report(vec![(lease, asked(1))]).await;
    let id = questions(&world).await.remove(0).id;
    let (token, _) = world.token("viewer").await;
    let mut viewer = OperatorServiceClient::new(world.channel(&token).await);
    let request = v1::ListQuestionsRequest::default();
    let listed = viewer.list_questions(request).await.unwrap().into_inner();
    assert_eq!(listed.questions.len(), 1);
    let refused = viewer.answer_question(yes(&id)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);

    let mut operator = world.operator.clone();
    for (wrong, code) in [
        (yes("Q99"), Code::NotFound),
        (yes("x"), Code::InvalidArgument),
        (
            v1::AnswerQuestionRequest {
                choice: "maybe".to_owned(),
                ..yes(&id)
            },
            Code::InvalidArgument,
        ),
        (
            v1::AnswerQuestionRequest {
                effect: v1::ChoiceEffect::AllowSession.into(),
                ..yes(&id)
            },
            Code::InvalidArgument,
        ),
        (
            v1::AnswerQuestionRequest {
                text: "a".repeat(5_000),
                ..yes(&id)
            },
            Code::InvalidArgument,
        ),
    ] {
        let refused = operator.answer_question(wrong).await.unwrap_err();
        assert_eq!(refused.code(), code, "{}", refused.message());
    }
    let unknown = v1::ListQuestionsRequest {
        run: "none".to_owned(),
    };
    let refused = operator.list_questions(unknown).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert_eq!(questions(&world).await.len(), 1);
}
