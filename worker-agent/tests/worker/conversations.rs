//! Agents that are talked with: the scripted one, under real supervisors.

use std::time::Duration;

use muster_proto::v1::coordinator_message::Kind as Say;
use muster_proto::v1::{
    Answer, Answers, EarlierAttempt, Grant, LeaseAnswers, Outcome, PastCommand, Resume, TurnEnd,
    activity, outcome, report,
};
use serde_json::{Value, json};

use super::bench::Bench;

fn task(script: &str, more: &Value) -> Value {
    let mut task = json!({
        "name": "t", "agent": {"name": "scripted", "kind": "scripted"}, "run": script, "prompt": "do it",
    });
    if let (Value::Object(task), Value::Object(more)) = (&mut task, more) {
        task.extend(more.clone());
    }
    task
}

fn grant(bench: &Bench, lease: u64, script: &str, more: &Value) -> Grant {
    bench.attempt(lease, &task(script, more))
}

fn class_of(kind: report::Kind) -> (String, String) {
    match kind {
        report::Kind::Failed(failed) => {
            let failure = failed.failure.unwrap();
            (failure.class, failure.message)
        }
        other => panic!("{other:?}"),
    }
}

fn answers(lease: u64, question: u32, choice: &str) -> Say {
    let answer = Answer {
        question,
        choice: choice.to_owned(),
        text: "because".to_owned(),
        name: format!("Q{question}"),
        by: "ann".to_owned(),
    };
    Say::Answers(Answers {
        leases: vec![LeaseAnswers {
            lease,
            answers: vec![answer],
        }],
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_ends_in_a_published_commit_with_what_was_said_and_consumed() {
    let bench = Bench::new().await;
    let _worker = bench.worker();
    let script = r#"read -r prompt; echo "$prompt" > prompt; echo session s1 model-1
        echo usage model-1 100 40 20 5; echo say working; echo usage model-1 50 0 10 0
        echo done all good; cat > rest; echo late > late"#;
    bench.fake.grant(grant(&bench, 7, script, &json!({}))).await;
    let report::Kind::Succeeded(succeeded) = bench.fake.last_word(7).await else {
        panic!("it failed");
    };
    assert_eq!(succeeded.summary, "all good");
    let usage = succeeded.usage.unwrap();
    assert_eq!((usage.input_tokens, usage.cached_input_tokens), (150, 40));
    assert_eq!((usage.output_tokens, usage.reasoning_tokens), (30, 5));
    let Some(Outcome {
        kind: Some(outcome::Kind::Commit(commit)),
    }) = succeeded.outcome
    else {
        panic!("no commit");
    };
    // Its input was closed, and it was waited for.
    assert_eq!(bench.remote_file(&commit, "late").unwrap(), "late\n");
    assert_eq!(
        bench.remote_file(&commit, "prompt").unwrap(),
        "prompt \"do it\"\n"
    );
    bench.forgotten(7).await;
    bench.fake.with(|state| {
        let consumed = |kind: &activity::Kind| match kind {
            activity::Kind::Usage(usage) => Some(usage.input_tokens),
            _ => None,
        };
        let activities = state.activities(7);
        assert_eq!(
            activities.iter().filter_map(consumed).collect::<Vec<_>>(),
            [100, 50]
        );
        assert!(activities.iter().any(|kind| matches!(
            kind, activity::Kind::TurnEnded(turn) if turn.end() == TurnEnd::Completed
        )));
        let sessions = state.reports.iter().filter(|report| {
            matches!(&report.kind, Some(report::Kind::SessionOpened(session)) if session.id == "s1")
        });
        assert_eq!(sessions.count(), 1);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_reaches_the_agent_and_no_clock_runs_meanwhile() {
    let bench = Bench::new().await;
    let _worker = bench.worker();
    let script = r#"read -r prompt; echo ask command make; read -r answer
        echo "$answer" > answer; echo done"#;
    let limits =
        json!({"approvals": {"ask": "always"}, "idle_timeout_ms": 400, "timeout_ms": 1_500});
    bench.fake.grant(grant(&bench, 7, script, &limits)).await;
    let asked = bench.fake.until("the question", |state| {
        state.reports.iter().find_map(|report| match &report.kind {
            Some(report::Kind::Asked(question)) => Some(question.title.clone()),
            _ => None,
        })
    });
    assert_eq!(asked.await, "make");
    // Longer than both limits, as heartbeats count.
    let now = bench.fake.with(|state| state.heartbeat);
    bench
        .fake
        .until("two seconds of heartbeats", |state| {
            (state.heartbeat > now + 20).then_some(())
        })
        .await;
    bench.fake.say(answers(7, 1, "allow")).await;
    // As every session is told until the question is closed.
    bench.fake.say(answers(7, 1, "deny")).await;
    let report::Kind::Succeeded(succeeded) = bench.fake.last_word(7).await else {
        panic!("it failed");
    };
    let Some(outcome::Kind::Commit(commit)) = succeeded.outcome.unwrap().kind else {
        panic!("no commit");
    };
    let answer = bench.remote_file(&commit, "answer").unwrap();
    assert_eq!(answer, "answer 1 allow \"because\"\n");
    let closed = bench.fake.with(|state| {
        let closed = state
            .reports
            .iter()
            .filter_map(|report| match &report.kind {
                Some(report::Kind::QuestionClosed(closed)) => Some(closed.choice.clone()),
                _ => None,
            });
        closed.collect::<Vec<_>>()
    });
    assert_eq!(closed, ["allow"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_without_end_is_interrupted_first_and_leaves_nothing() {
    let bench = Bench::new().await;
    let _worker = bench.worker();
    let script = r#"read -r prompt; sleep 600 & echo $! > "$TMPDIR/../child"
        read -r word; echo usage m 1 0 1 0; echo say "$word"; echo interrupted; sleep 600"#;
    let limits = json!({"timeout_ms": 1_000});
    bench.fake.grant(grant(&bench, 7, script, &limits)).await;
    let (class, message) = class_of(bench.fake.last_word(7).await);
    assert_eq!(class, "timed_out", "{message}");
    bench.forgotten(7).await;
    let activities = bench.fake.with(|state| state.activities(7));
    let told = |wanted: &str| {
        activities
            .iter()
            .any(|kind| matches!(kind, activity::Kind::Message(delta) if delta.text == wanted))
    };
    assert!(told("cancel"), "{activities:?}");
    assert!(
        activities
            .iter()
            .any(|kind| matches!(kind, activity::Kind::Usage(_)))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_ends_in_mid_turn_has_crashed_and_its_complaint_is_told() {
    let bench = Bench::new().await;
    let _worker = bench.worker();
    let script = "read -r prompt; echo say working; echo out of memory >&2; exit 0";
    bench.fake.grant(grant(&bench, 7, script, &json!({}))).await;
    let (class, message) = class_of(bench.fake.last_word(7).await);
    assert_eq!(
        (class.as_str(), message.as_str()),
        ("agent_crashed", "out of memory")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_says_done_but_changed_nothing_has_not_succeeded_where_a_change_was_asked_for()
 {
    let bench = Bench::new().await;
    let _worker = bench.worker();
    let script = "read -r prompt; echo done I changed everything";
    bench
        .fake
        .grant(grant(&bench, 7, script, &json!({"change": "required"})))
        .await;
    let (class, _) = class_of(bench.fake.last_word(7).await);
    assert_eq!(class, "no_change");
    bench.fake.grant(grant(&bench, 8, script, &json!({}))).await;
    let last = bench.fake.last_word(8).await;
    assert!(matches!(last, report::Kind::Succeeded(_)), "{last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_does_not_end_after_its_last_word_is_ended() {
    let bench = Bench::new().await;
    let _worker = bench.worker();
    let script = "read -r prompt; echo done; trap '' TERM; while :; do sleep 600; done";
    let began = std::time::Instant::now();
    bench.fake.grant(grant(&bench, 7, script, &json!({}))).await;
    let last = bench.fake.last_word(7).await;
    assert!(matches!(last, report::Kind::Succeeded(_)), "{last:?}");
    assert!(began.elapsed() >= Duration::from_secs(5));
    bench.forgotten(7).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_lines_are_kept_both_ways() {
    use muster_proto::v1::{Direction, agent_event::Kind};
    let bench = Bench::new().await;
    let _worker = bench.worker();
    let script = "read -r prompt; echo say hello; echo done";
    bench.fake.grant(grant(&bench, 7, script, &json!({}))).await;
    bench.fake.last_word(7).await;
    bench.forgotten(7).await;
    let directions = bench.fake.with(|state| {
        let events = state.events.get(&7).into_iter().flatten();
        let captures = events.filter_map(|event| match &event.kind {
            Some(Kind::Capture(capture)) => Some((capture.direction(), capture.bytes)),
            _ => None,
        });
        captures.collect::<Vec<_>>()
    });
    let bytes = |wanted: Direction| {
        let of_it = directions
            .iter()
            .filter(|(direction, _)| *direction == wanted);
        of_it.map(|(_, bytes)| bytes).sum::<u64>()
    };
    assert_eq!(bytes(Direction::ToAgent), "prompt \"do it\"\n".len() as u64);
    assert_eq!(
        bytes(Direction::FromAgent),
        "say hello\ndone\n".len() as u64
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_consumed_is_told_once_though_the_worker_is_killed_in_mid_turn() {
    let consumed = |activities: Vec<activity::Kind>| -> Vec<u64> {
        let usages = activities.into_iter().filter_map(|kind| match kind {
            activity::Kind::Usage(usage) => Some(usage.input_tokens),
            _ => None,
        });
        usages.collect()
    };
    let bench = Bench::new().await;
    let worker = bench.worker();
    // The last call of the model is told while the supervisor ends the agent.
    let script = r#"trap 'echo usage m 4 0 1 0; exit 0' TERM; read -r prompt
        echo usage m 1 0 1 0; echo usage m 2 0 1 0; while :; do sleep 0.05; done"#;
    bench.fake.grant(grant(&bench, 7, script, &json!({}))).await;
    bench
        .fake
        .until("two calls", |state| {
            (consumed(state.activities(7)).len() == 2).then_some(())
        })
        .await;
    worker.crash().await;
    let _worker = bench.worker();
    bench.forgotten(7).await;
    let all = bench.fake.with(|state| consumed(state.activities(7)));
    assert_eq!(all, [1, 2, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_task_names_and_is_not_there_fails_it_by_its_name() {
    let bench = Bench::new().await;
    let _worker = bench.worker();
    let script = "read -r prompt; echo done";
    let nowhere = json!({"name": "mine", "kind": "acp", "command": ["/nonexistent/agent", "acp"]});
    for (lease, more, class, says) in [
        (
            7,
            json!({"images": ["./no.png"]}),
            "invalid_request",
            ["no.png", "`images`"],
        ),
        (
            8,
            json!({"add_dirs": ["/no/such/folder"]}),
            "invalid_request",
            ["/no/such/folder", "`add_dirs`"],
        ),
        (
            9,
            json!({"agent": nowhere, "run": null}),
            "agent_unavailable",
            ["`/nonexistent/agent`", "`--agent mine=COMMAND`"],
        ),
    ] {
        bench.fake.grant(grant(&bench, lease, script, &more)).await;
        let (found, message) = class_of(bench.fake.last_word(lease).await);
        assert_eq!(found, class, "{message}");
        for say in says {
            assert!(message.contains(say), "{message}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_told_of_an_attempt_that_failed_and_can_look_at_its_commit() {
    let bench = Bench::new().await;
    let name = "refs/muster/attempts/r/t/1";
    let tree = [
        "commit-tree",
        "main^{tree}",
        "-p",
        "main",
        "-m",
        "first try",
    ];
    let commit = bench.remote(&tree);
    bench.remote(&["update-ref", name, &commit]);
    let _worker = bench.worker();
    let script = format!(
        "read -r prompt; echo \"$prompt\" > prompt; git show -s --format=%s {commit} > shown; echo done"
    );
    let mut grant = grant(&bench, 7, &script, &json!({}));
    grant.earlier.push(EarlierAttempt {
        attempt: 1,
        r#ref: name.to_owned(),
        commit: commit.clone(),
        said: "It does not build.".to_owned(),
        ..EarlierAttempt::default()
    });
    // What is not there keeps nobody from work.
    grant.earlier.push(EarlierAttempt {
        r#ref: "refs/muster/attempts/r/t/0".to_owned(),
        commit: "0123456789012345678901234567890123456789".to_owned(),
        ..EarlierAttempt::default()
    });
    bench.fake.grant(grant).await;
    let report::Kind::Succeeded(succeeded) = bench.fake.last_word(7).await else {
        panic!("it failed");
    };
    let Some(outcome::Kind::Commit(made)) = succeeded.outcome.and_then(|outcome| outcome.kind)
    else {
        panic!("no commit");
    };
    let shown = bench.remote_file(&made, "shown").unwrap();
    assert_eq!(shown, "first try\n");
    let prompt = bench.remote_file(&made, "prompt").unwrap();
    assert!(prompt.contains("> It does not build."), "{prompt}");
    assert!(prompt.contains(&commit), "{prompt}");
    let output = bench.remote(&["log", "--format=%s", &made]);
    assert!(
        !output.contains("first try"),
        "it began from the base: {output}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_conversation_is_on_another_host_begins_anew_and_that_is_said() {
    let bench = Bench::new().await;
    let _worker = bench.worker();
    let script = "read -r prompt; echo \"$prompt\" > prompt; echo done";
    let mut grant = grant(&bench, 7, script, &json!({}));
    grant.resume = Some(Resume {
        attempt: 1,
        session: "s1".to_owned(),
        host: "elsewhere".to_owned(),
        ..Resume::default()
    });
    grant.earlier.push(EarlierAttempt {
        attempt: 1,
        commands: vec![PastCommand {
            command: "make".to_owned(),
            ..PastCommand::default()
        }],
        ..EarlierAttempt::default()
    });
    bench.fake.grant(grant).await;
    let report::Kind::Succeeded(succeeded) = bench.fake.last_word(7).await else {
        panic!("it failed");
    };
    let Some(outcome::Kind::Commit(made)) = succeeded.outcome.and_then(|outcome| outcome.kind)
    else {
        panic!("no commit");
    };
    let prompt = bench.remote_file(&made, "prompt").unwrap();
    assert!(prompt.contains("> (end not known) make"), "{prompt}");
    assert!(!prompt.contains("You were cut off"), "{prompt}");
    bench.forgotten(7).await;
    let notes = bench.fake.with(|state| state.notes(7));
    assert_eq!(
        notes,
        [
            "attempt 1 was cut off and its conversation is on the host elsewhere: begun anew, with a \
          summary of it"
        ]
    );
}
