use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

const HOSTILE: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}x\r\n\u{202e}y\u{9b}z";

fn doing(kind: Kind) -> v1::Activity {
    v1::Activity {
        turn: 2,
        kind: Some(kind),
    }
}

fn delta(item: &str, text: &str) -> v1::TextDelta {
    v1::TextDelta {
        item: item.to_owned(),
        text: text.to_owned(),
    }
}

fn error(text: &str) -> v1::AgentError {
    v1::AgentError {
        class: "rate_limit".to_owned(),
        message: text.to_owned(),
        http_status: 429,
        retry_after: Some(prost_types::Duration {
            seconds: 3,
            nanos: 500_000_000,
        }),
    }
}

/// One of each kind; `text` stands wherever an agent may put something.
fn each(text: &str) -> Vec<v1::Activity> {
    let text = || text.to_owned();
    let kinds = vec![
        Kind::SessionOpened(v1::SessionOpened {
            id: text(),
            model: "gpt-5.4".to_owned(),
            software: text(),
            resumed: true,
        }),
        Kind::TurnBegan(v1::Empty {}),
        Kind::Reasoning(delta("r", &text())),
        Kind::Message(delta("m", &text())),
        Kind::CommandStarted(v1::CommandStarted {
            item: "c".to_owned(),
            command: text(),
            folder: text(),
        }),
        Kind::CommandOutput(v1::CommandOutput {
            item: "c".to_owned(),
            data: format!("{}\nok\n", text()).into_bytes(),
        }),
        Kind::CommandEnded(v1::CommandEnded {
            item: "c".to_owned(),
            exit_code: Some(1),
            declined: false,
        }),
        Kind::CommandEnded(v1::CommandEnded {
            item: "d".to_owned(),
            exit_code: None,
            declined: true,
        }),
        Kind::FileChange(v1::FileChange {
            item: "f".to_owned(),
            path: text(),
            change: "rename".to_owned(),
            former_path: text(),
            diff: format!("@@ -1 +1 @@\n-\told\n+{}\n", text()),
            declined: false,
        }),
        Kind::ToolCall(v1::ToolCall {
            item: "t".to_owned(),
            server: text(),
            tool: "search".to_owned(),
            arguments: "{\"q\": [1, 2]}".to_owned(),
            status: "started".to_owned(),
            result: String::new(),
        }),
        Kind::ToolCall(v1::ToolCall {
            item: "t".to_owned(),
            server: text(),
            tool: "search".to_owned(),
            arguments: text(),
            status: "failed".to_owned(),
            result: text(),
        }),
        Kind::TodoList(v1::TodoList {
            items: ["completed", "in_progress", "pending"]
                .map(|status| v1::TodoItem {
                    text: text(),
                    status: status.to_owned(),
                })
                .into(),
        }),
        Kind::Usage(v1::ModelUsage {
            model: text(),
            input_tokens: 10,
            output_tokens: 2,
            calls: 1,
            ..v1::ModelUsage::default()
        }),
        Kind::Retry(v1::RetryNotice {
            attempt: 2,
            attempts_max: 5,
            delay: Some(prost_types::Duration {
                seconds: 1,
                nanos: 250_000_000,
            }),
            error: Some(error(&text())),
        }),
        Kind::Question(v1::Question {
            number: 1,
            kind: "command".to_owned(),
            title: text(),
            detail: format!("{}\nsecond", text()),
            reason: text(),
            folder: text(),
            choices: vec![v1::Choice {
                id: "yes".to_owned(),
                label: text(),
                effect: v1::ChoiceEffect::AllowOnce.into(),
                rule: String::new(),
            }],
            paths: vec![text()],
        }),
        Kind::QuestionClosed(v1::QuestionClosed {
            question: 1,
            choice: String::new(),
            by: text(),
            earlier: String::new(),
        }),
        Kind::Error(error(&text())),
        Kind::Structured(v1::Structured {
            json: "{\"answer\": 42}".to_owned(),
        }),
        Kind::TurnEnded(v1::TurnEnded {
            end: v1::TurnEnd::Failed.into(),
            message: text(),
        }),
    ];
    kinds.into_iter().map(doing).collect()
}

fn lines(activities: &[v1::Activity]) -> Vec<String> {
    let mut talk = Lines::default();
    let mut lines: Vec<_> = activities
        .iter()
        .flat_map(|activity| talk.take(activity))
        .collect();
    lines.extend(talk.end());
    lines.into_iter().map(|(_, line)| line).collect()
}

#[test]
fn each_kind_is_shown_to_people_and_whole_to_programs() {
    let mut text = lines(&each("some text")).join("\n");
    text.push_str("\n\n");
    for activity in each("some text") {
        let _ = writeln!(text, "{}", json(&activity));
    }
    insta::assert_snapshot!(text);
}

#[test]
fn what_flows_comes_in_pieces_and_is_whole_lines() {
    let say = |item: &str, text: &str| doing(Kind::Message(delta(item, text)));
    let think = |item: &str, text: &str| doing(Kind::Reasoning(delta(item, text)));
    let said = lines(&[
        say("1", "I wi"),
        say("1", "ll look\nand th"),
        say("1", "en\n\n"),
        think("2", "hm"),
        think("2", "m"),
        say("3", "Done"),
        say("4", "."),
    ]);
    assert_eq!(said, ["I will look", "and then", "~ hmm", "Done", "."]);
}

#[test]
fn nothing_of_what_an_agent_runs_and_changes_is_hidden() {
    let hidden = "rm -r ~\r\u{1b}[2Kls\nid";
    let seen = "rm -r ~␍␛[2Kls␊id";
    let run = doing(Kind::CommandStarted(v1::CommandStarted {
        command: hidden.to_owned(),
        ..v1::CommandStarted::default()
    }));
    assert_eq!(lines(&[run]), [format!("$ {seen}")]);
    let asked = doing(Kind::Question(v1::Question {
        number: 1,
        title: hidden.to_owned(),
        detail: "  rm\r  ls".to_owned(),
        ..v1::Question::default()
    }));
    let said = lines(&[asked]);
    assert_eq!(said[0], format!("? question 1: {seen}"));
    assert_eq!(said[1], "    rm␍  ls");
}

#[test]
fn long_things_are_cut_for_people_and_whole_for_programs() {
    let change = Kind::FileChange(v1::FileChange {
        path: "a".repeat(5_000),
        diff: "+x\n".repeat(500),
        ..v1::FileChange::default()
    });
    let change = doing(change);
    let said = lines(std::slice::from_ref(&change));
    assert_eq!(said.len(), 1 + DETAIL_LINES + 1);
    assert!(said[DETAIL_LINES + 1].contains("460 more"), "{said:?}");
    assert_eq!(json(&change)["diff"].as_str().unwrap().len(), 1_500);
    let endless = doing(Kind::Message(delta("m", &"x".repeat(100_000))));
    let said = lines(&[endless.clone(), endless]);
    assert!(said.iter().all(|line| line.len() <= LINE_BYTES));
}

fn is_harmless(line: &str) -> bool {
    line == crate::output::harmless(line) && !line.contains(['\n', '\t'])
}

#[test]
fn nothing_that_an_agent_says_has_power_over_a_terminal() {
    for line in lines(&each(HOSTILE)) {
        assert!(is_harmless(&line), "{line:?}");
    }
}

proptest! {
    #[test]
    fn whatever_an_agent_says_is_harmless_lines(text in "(\\PC|[\0-\u{ff}]|\u{202e}|\n|\r\n){0,60}") {
        for line in lines(&each(&text)) {
            prop_assert!(is_harmless(&line), "{line:?}");
        }
    }
}
