use muster_proto::v1::{FileChange, TurnEnd};

use super::*;
use crate::agent::conversation::{ErrorClass, Recorded};

fn played(recording: &str) -> Player {
    let mut player = Player::new(machine(json!({})), &opening());
    player.play(recording);
    player
}

/// A short word for everything that is told.
fn word(kind: &Kind) -> String {
    match kind {
        Kind::SessionOpened(session) => format!("session {} {}", session.model, session.software),
        Kind::Message(delta) => format!("say {}", delta.text),
        Kind::Reasoning(delta) => format!("think {}", delta.text),
        Kind::CommandStarted(command) => format!("run {} in {}", command.command, command.folder),
        Kind::CommandOutput(output) => format!("out {}", String::from_utf8_lossy(&output.data)),
        Kind::CommandEnded(ended) => format!("ran {:?} {}", ended.exit_code, ended.declined),
        Kind::Usage(usage) => format!("usage {} {}", usage.input_tokens, usage.output_tokens),
        Kind::TodoList(list) => {
            let items = list.items.iter();
            let items: Vec<_> = items
                .map(|item| format!("{}={}", item.text, item.status))
                .collect();
            format!("plan {}", items.join(" "))
        }
        other => format!("{other:?}"),
    }
}

#[test]
fn a_turn_is_told_as_it_happens() {
    let player = played(TURN);
    let words: Vec<String> = player.told().into_iter().map(word).collect();
    assert_eq!(
        words,
        [
            "session gpt-5.5 codex 0.169.0",
            "think thinking about the file",
            "say I will w",
            "say rite the",
            "say  file.",
            "run echo hi > out.txt && cat out.txt in /home/user/repo",
            "out pyenv: cannot rehash: /home/user isn't writable\n",
            "out hi\n",
            "ran Some(0) false",
            "usage 1000 40",
            "say Done: wr",
            "say ote out.",
            "say txt",
            "usage 2000 10",
        ]
    );
    let expected = Turn {
        end: TurnEnd::Completed,
        message: "Done: wrote out.txt".into(),
        ..Turn::default()
    };
    assert_eq!(player.ended(), [&expected]);
    let started = &player.sent("turn/start")[0]["params"];
    assert_eq!(started["input"][0]["text"], "please [[write]]");
    assert_eq!(started["threadId"], "01a1fb6e-fae6-78b1-abaa-9d3c7da1eaaf");
}

#[test]
fn what_is_decided_is_answered_and_a_stop_ends_the_turn() {
    let player = played(APPROVALS);
    let asked: Vec<&Question> = player
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::Ask(question) => Some(question),
            _ => None,
        })
        .collect();
    assert_eq!(asked.len(), 3);
    assert_eq!(asked[0].kind, "command");
    assert_eq!(asked[0].detail, "touch /home/user/escalated && echo made");
    assert_eq!(asked[0].reason, "need to write outside");
    assert_eq!(asked[0].folder, "/home/user/repo");
    let effects: Vec<_> = asked[0]
        .choices
        .iter()
        .map(|choice| choice.effect())
        .collect();
    use ChoiceEffect as E;
    assert_eq!(
        effects,
        // What Codex would remember for good is not offered.
        [E::AllowOnce, E::DenyAndStop, E::Deny]
    );
    let answers: Vec<Value> = player
        .steps
        .iter()
        .filter_map(sent)
        .filter(|message| message.get("result").is_some())
        .collect();
    let expected = [
        json!({"id": 0, "result": {"decision": "accept"}}),
        json!({"id": 1, "result": {"decision": "decline"}}),
        json!({"id": 2, "result": {"decision": "cancel"}}),
    ];
    assert_eq!(answers, expected);
    let ends: Vec<TurnEnd> = player.ended().iter().map(|turn| turn.end).collect();
    use TurnEnd as T;
    assert_eq!(ends, [T::Completed, T::Completed, T::Interrupted]);
    // Of an interrupted turn commands may go on.
    assert_eq!(player.sent("thread/backgroundTerminals/clean").len(), 1);
    assert_eq!(player.usage(), [5000, 2000, 250, 100, 5]);
}

#[test]
fn errors_have_their_classes_and_every_call_counts_once() {
    let player = played(ERRORS);
    let ended: Vec<_> = player
        .ended()
        .iter()
        .map(|turn| {
            turn.error
                .as_ref()
                .map(|error| (error.class, error.http_status))
        })
        .collect();
    use ErrorClass as E;
    let expected = [
        None,
        None,
        Some((E::RateLimit, Some(429))),
        Some((E::ProviderError, None)),
        Some((E::Authentication, Some(401))),
        Some((E::InvalidRequest, None)),
        Some((E::ContextWindow, None)),
        Some((E::UsageLimit, None)),
        Some((E::RateLimit, None)),
        Some((E::ProviderCapacity, None)),
        Some((E::Transport, None)),
        Some((E::AgentError, None)),
    ];
    assert_eq!(ended, expected);
    let retries: Vec<_> = player
        .told()
        .into_iter()
        .filter_map(|kind| match kind {
            Kind::Retry(retry) => Some((retry.attempt, retry.error.clone().unwrap().class)),
            _ => None,
        })
        .collect();
    let expected = [
        "rate_limit",
        "provider_error",
        "authentication",
        "rate_limit",
        "transport",
    ];
    let retried: Vec<&str> = retries.iter().map(|(_, class)| class.as_str()).collect();
    assert_eq!(retried, expected);
    assert!(retries.iter().all(|(attempt, _)| *attempt == 1));
    // Two turns of two calls and one that wrote the context anew were served to their end.
    assert_eq!(player.usage(), [5000, 2000, 250, 100, 5]);
}

#[test]
fn a_change_of_files_comes_with_its_diff() {
    let player = played(ERRORS);
    let change = player.told().into_iter().find_map(|kind| match kind {
        Kind::FileChange(change) => Some(change),
        _ => None,
    });
    let expected = FileChange {
        item: "call_patch_0".into(),
        path: "patched.txt".into(),
        change: "add".into(),
        former_path: String::new(),
        diff: "--- /dev/null\n+++ /home/user/repo/patched.txt\n@@ -0,0 +1,1 @@\n\
               +hello from apply_patch\n"
            .into(),
        declined: false,
    };
    assert_eq!(change, Some(&expected));
}

#[test]
fn a_conversation_that_is_gone_on_with_counts_only_its_own_calls() {
    let mut player = Player::new(
        machine(json!({})),
        &Opening {
            resume: Some("01a1fe25-84bf-7323-ad2f-dc7d462d4466".into()),
            ..opening()
        },
    );
    player.play(RESUME);
    let resumed = player.told().into_iter().find_map(|kind| match kind {
        Kind::SessionOpened(session) => Some(session.resumed),
        _ => None,
    });
    assert_eq!(resumed, Some(true));
    assert_eq!(player.usage(), [1000, 400, 50, 20, 1]);
    assert_eq!(player.ended()[0].message, "OK x");
}

#[test]
fn a_plan_is_told_and_a_review_gives_its_findings() {
    let mut player = Player::new(machine(json!({})), &opening());
    player.play(PLAN.split("> {\"id\":5,").next().unwrap());
    let plans: Vec<String> = player
        .told()
        .into_iter()
        .filter(|kind| matches!(kind, Kind::TodoList(_)))
        .map(word)
        .collect();
    assert_eq!(
        plans,
        [
            "plan A=in_progress B=pending",
            "plan A=completed B=completed"
        ]
    );

    let mut player = Player::new(machine(json!({"kind": "review"})), &opening());
    let opened = PLAN
        .lines()
        .filter(|line| line.starts_with('<'))
        .take_while(|line| {
            // Up to the answer to `thread/start`.
            !line.contains("\"id\":3,")
        });
    for line in opened {
        player.hear(line.split_at(2).1);
    }
    let review = &player.sent("review/start")[0];
    assert_eq!(
        review["params"]["target"],
        json!({"type": "uncommittedChanges"})
    );
    let rest = PLAN.split("> {\"id\":5,").nth(1).unwrap().lines().skip(1);
    for line in rest {
        player.hear(&line.split_at(2).1.replace("{\"id\":5,", "{\"id\":3,"));
    }
    assert_eq!(player.ended()[0].message, "OK");
}

#[test]
fn files_tools_and_permissions_are_asked_about_too() {
    let player = played(QUESTIONS);
    let kinds: Vec<(&str, &str)> = player
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::Ask(question) => Some((question.kind.as_str(), question.title.as_str())),
            _ => None,
        })
        .collect();
    let expected = [
        ("command", "touch q"),
        ("file_change", "patched.txt"),
        ("permission", "need net"),
    ];
    assert_eq!(kinds, expected);
    let granted = player
        .steps
        .iter()
        .filter_map(sent)
        .find(|message| message["id"] == 2 && message.get("result").is_some());
    assert_eq!(
        granted.unwrap()["result"],
        json!({"permissions": {"network": {"enabled": true}}, "scope": "turn"})
    );
    let declined = player
        .told()
        .into_iter()
        .any(|kind| matches!(kind, Kind::FileChange(change) if change.declined));
    assert!(declined);
}

#[test]
fn a_call_counts_though_codex_is_killed_before_it_gives_notice_of_it() {
    let mut player = played(KILLED);
    assert_eq!(player.usage(), [4000, 1600, 200, 80, 4]);
    let started = &player.sent("thread/start")[0]["params"];
    assert_eq!(started["experimentalRawEvents"], true);
    // Its own file is asked all the same, and adds what it alone knows.
    let records = player.machine.records();
    assert_eq!(records.len(), 1);
    assert!(records[0].file.to_string_lossy().ends_with(".jsonl"));
    let record = |turn: &str, input: u64| {
        let line = json!({"type": records[0].word, "payload": {
            "thread_id": "01a1fedf-a6ee-7320-a2e0-290702043b22", "turn_id": turn,
            "usage": {"input_tokens": input, "cached_input_tokens": 400, "output_tokens": 50,
                "reasoning_output_tokens": 20}}});
        line.to_string()
    };
    let last = "01a1fedf-a901-7562-9326-e5c7f9d28bd1";
    let unknown = player.machine.recorded(&Recorded::End);
    assert_eq!(unknown, []);
    for (line, calls) in [
        (record("01a1fedf-a707-7d22-a254-e732afec2015", 77), 4),
        (record(last, 1000), 4),
        (record(last, 1000), 5),
        ("{".to_owned(), 5),
    ] {
        let found = Recorded::Line(line.clone().into_bytes());
        let steps = player.machine.recorded(&found);
        player.take(steps);
        assert_eq!(player.usage()[4], calls, "{line}");
    }
}
