use std::time::Duration;

use serde_json::json;

use super::*;
use crate::agent::scripted::Scripted;
use crate::document::AskMode;

fn dialogue(schema: Option<Value>, ask: AskMode) -> Dialogue {
    let subject = Subject {
        opening: Opening {
            prompt: "do it".to_owned(),
            output_schema: schema,
            ..Opening::default()
        },
        policy: ApprovalPolicy {
            ask,
            ..ApprovalPolicy::default()
        },
        grounds: Grounds {
            work: "/w".into(),
            folder: "/w".into(),
            skills: "/lease/skills".into(),
        },
        answered: Vec::new(),
        leases: Leases {
            folder: "/leases".into(),
            own: 10,
        },
    };
    Dialogue::new(Box::new(Scripted::default()), subject).unwrap()
}

fn asking() -> Dialogue {
    let mut dialogue = dialogue(None, AskMode::Always);
    dialogue.open();
    dialogue
}

fn sent(acts: &[Act]) -> Vec<&str> {
    let lines = acts.iter().filter_map(|act| match act {
        Act::Send(line) => Some(line.as_str()),
        _ => None,
    });
    lines.collect()
}

fn reports(acts: &[Act]) -> Vec<&'static str> {
    let names = acts.iter().filter_map(|act| match act {
        Act::Report(report::Kind::Asked(_)) => Some("asked"),
        Act::Report(report::Kind::QuestionClosed(_)) => Some("closed"),
        Act::Report(report::Kind::SessionOpened(_)) => Some("session"),
        _ => None,
    });
    names.collect()
}

fn answer(question: u32, choice: &str) -> BTreeMap<u32, Answer> {
    let answer = Answer {
        question,
        choice: choice.to_owned(),
        ..Answer::default()
    };
    [(question, answer)].into()
}

fn failed(dialogue: Dialogue) -> (String, String) {
    let failure = dialogue.into_result().unwrap().unwrap_err();
    (failure.class, failure.message)
}

#[test]
fn a_turn_that_completes_is_the_end() {
    let mut dialogue = dialogue(None, AskMode::Never);
    assert_eq!(sent(&dialogue.open()), ["prompt \"do it\""]);
    assert_eq!(reports(&dialogue.heard(b"session s1 m\n")), ["session"]);
    dialogue.heard(b"usage m 10 4 5 1\nusage m 20 0 6 0\n");
    let acts = dialogue.heard(b"say well\ndone\ndone again\nfail refusal x\n");
    assert_eq!(acts.last(), Some(&Act::Over));
    assert!(acts.contains(&Act::CloseInput));
    let usage = dialogue.usage();
    assert_eq!((usage.input_tokens, usage.cached_input_tokens), (30, 4));
    assert_eq!((usage.output_tokens, usage.reasoning_tokens), (11, 1));
    assert_eq!(dialogue.exited(&End::Exited { code: 1 }, b""), []);
    assert_eq!(dialogue.into_result().unwrap().unwrap().message, "well");
}

#[test]
fn a_question_waits_for_its_answer_and_takes_none_that_it_did_not_offer() {
    let mut dialogue = asking();
    assert_eq!(reports(&dialogue.heard(b"ask command make\n")), ["asked"]);
    assert!(dialogue.is_waiting());
    assert_eq!(dialogue.answers(&answer(2, "allow")), []);
    let wrong = dialogue.answers(&answer(1, "always"));
    assert!(matches!(&wrong[..], [Act::Note(_)]), "{wrong:?}");
    assert!(dialogue.is_waiting());
    let right = dialogue.answers(&answer(1, "allow"));
    assert_eq!(sent(&right), ["answer 1 allow \"\""]);
    assert_eq!(reports(&right), ["closed"]);
    assert!(!dialogue.is_waiting());
    assert_eq!(dialogue.answers(&answer(1, "deny")), []);
}

#[test]
fn a_question_that_the_agent_forgets_is_closed() {
    let mut dialogue = asking();
    dialogue.heard(b"ask command make\nask command test\n");
    assert_eq!(reports(&dialogue.heard(b"withdraw 1\n")), ["closed"]);
    assert_eq!(reports(&dialogue.heard(b"withdraw 1\n")), [""; 0]);
    assert_eq!(reports(&dialogue.heard(b"done\n")), ["closed"]);
    assert!(!dialogue.is_waiting());
}

#[test]
fn an_agent_that_asks_without_end_fails() {
    let mut dialogue = asking();
    let acts = dialogue.heard("ask command x\n".repeat(OPEN_MAX + 1).as_bytes());
    assert_eq!(acts.last(), Some(&Act::Over));
    assert!(!dialogue.is_waiting());
    let (class, message) = failed(dialogue);
    assert_eq!(class, "agent_error");
    assert!(message.contains("32 questions at once"), "{message}");
}

#[test]
fn what_rules_answer_may_be_asked_without_end() {
    let mut dialogue = dialogue(None, AskMode::Never);
    dialogue.open();
    let acts = dialogue.heard("ask command x\n".repeat(ASKED_MAX + 1).as_bytes());
    assert_eq!(sent(&acts).len(), ASKED_MAX + 1);
    assert!(!acts.contains(&Act::Over));
}

#[test]
fn a_turn_that_was_stopped_by_an_answer_ends_as_denied_however_it_ends() {
    for end in [
        "interrupted",
        "fail authentication x",
        "done",
        "say on its way",
    ] {
        let mut dialogue = asking();
        dialogue.heard(b"ask command make\n");
        let stop = Answer {
            name: "Q12".to_owned(),
            by: "ann".to_owned(),
            text: "not here".to_owned(),
            ..answer(1, "stop").remove(&1).unwrap()
        };
        let told = dialogue.answers(&[(1, stop)].into());
        assert_eq!(sent(&told), ["answer 1 stop \"not here\""]);
        dialogue.heard(format!("{end}\n").as_bytes());
        dialogue.exited(&End::Exited { code: 0 }, b"");
        let expected = ("denied", "stopped by ann's answer to Q12: not here");
        let (class, message) = failed(dialogue);
        assert_eq!((class.as_str(), message.as_str()), expected, "{end}");
    }
}

#[test]
fn the_policy_answers_before_people_and_what_it_said_is_told() {
    let mut dialogue = dialogue(None, AskMode::Never);
    dialogue.open();
    let acts = dialogue.heard(b"ask command make\n");
    assert_eq!(sent(&acts), ["answer 1 allow \"\""]);
    assert_eq!(reports(&acts), [""; 0]);
    let closed = acts.iter().find_map(|act| match act {
        Act::Tell(Activity {
            kind: Some(activity::Kind::QuestionClosed(closed)),
            ..
        }) => Some(closed.by.as_str()),
        _ => None,
    });
    assert_eq!(closed, Some("policy"));
}

#[test]
fn a_structured_answer_is_checked_and_asked_for_again() {
    let schema =
        json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}});
    let mut dialogue = dialogue(Some(schema), AskMode::Never);
    dialogue.open();
    let acts = dialogue.heard(b"done no json\n");
    assert!(sent(&acts)[0].contains("not JSON"), "{acts:?}");
    let acts = dialogue.heard(b"done {\"n\": \"one\"}\n");
    assert!(sent(&acts)[0].contains("/n"), "{acts:?}");
    let acts = dialogue.heard(b"say x\njson {\"n\": 1}\ndone\n");
    assert_eq!(acts.last(), Some(&Act::Over));
    let said = dialogue.into_result().unwrap().unwrap();
    assert_eq!(said.structured, Some(json!({"n": 1})));
}

#[test]
fn repairs_are_bounded() {
    let mut dialogue = dialogue(Some(json!({"type": "integer"})), AskMode::Never);
    dialogue.open();
    let mut prompts = 0;
    for _ in 0..10 {
        prompts += sent(&dialogue.heard(b"done \"x\"\n")).len();
    }
    assert_eq!(prompts, 2);
    assert_eq!(failed(dialogue).0, "output_invalid");
}

#[test]
fn json_may_have_a_fence() {
    assert_eq!(unfenced("```json\n{\"a\": 1}\n```\n"), "{\"a\": 1}");
    assert_eq!(unfenced(" [1] "), "[1]");
    assert_eq!(unfenced("```"), "```");
}

#[test]
fn a_program_that_ends_in_mid_turn_has_crashed() {
    for (end, part) in [
        (End::Exited { code: 0 }, "exit code 0"),
        (End::Signalled { signal: 9 }, "signal 9"),
    ] {
        let mut dialogue = asking();
        dialogue.heard(b"ask command x\nsay working");
        let acts = dialogue.exited(&end, b"");
        assert_eq!(reports(&acts), ["closed"]);
        let (class, message) = failed(dialogue);
        assert_eq!(class, "agent_crashed");
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_failure_keeps_its_class_and_what_the_provider_wished() {
    let mut dialogue = asking();
    dialogue.heard(b"fail rate_limit after 30 slow down\n");
    let failure = dialogue.into_result().unwrap().unwrap_err();
    assert_eq!(failure.class, "rate_limit");
    let after: Duration = failure.retry_after.unwrap().try_into().unwrap();
    assert_eq!(after, Duration::from_secs(30));
}

#[test]
fn a_schema_that_is_none_is_refused_before_anything_runs() {
    let subject = Subject {
        opening: Opening {
            output_schema: Some(json!({"type": 7})),
            ..Opening::default()
        },
        policy: ApprovalPolicy::default(),
        grounds: Grounds {
            work: "/w".into(),
            folder: "/w".into(),
            skills: "/lease/skills".into(),
        },
        answered: Vec::new(),
        leases: Leases {
            folder: "/leases".into(),
            own: 10,
        },
    };
    let refused = Dialogue::new(Box::new(Scripted::default()), subject).unwrap_err();
    assert_eq!(refused.class, "invalid_request");
}

#[test]
fn what_a_person_answered_an_earlier_attempt_is_given_once() {
    let mut dialogue = asking();
    let asked = dialogue.heard(b"ask command make /leases/9/workspace/work/a\n");
    let question = asked.into_iter().find_map(|act| match act {
        Act::Report(report::Kind::Asked(question)) => Some(question),
        _ => None,
    });
    let mut again = asking();
    again.subject.answered = vec![AnsweredQuestion {
        question,
        answer: Some(Answer {
            name: "Q7".to_owned(),
            ..answer(1, "session").remove(&1).unwrap()
        }),
        by: "ann".to_owned(),
        lease: 9,
    }];
    assert_eq!(reports(&again.heard(b"ask command other\n")), ["asked"]);
    let given = again.heard(b"ask command make /leases/10/workspace/work/a\n");
    assert_eq!(sent(&given), ["answer 2 session \"\""]);
    let told = given.iter().find_map(|act| match act {
        Act::Report(report::Kind::QuestionClosed(closed)) => Some(closed),
        _ => None,
    });
    let told = told.expect("it is handed over once");
    assert_eq!((told.earlier.as_str(), told.by.as_str()), ("Q7", "ann"));
    let once_more = again.heard(b"ask command make /leases/10/workspace/work/a\n");
    assert_eq!(reports(&once_more), ["asked"]);
}

#[test]
fn an_answer_is_for_the_same_change_of_the_same_place_only() {
    let leases = Leases {
        folder: "/leases".into(),
        own: 10,
    };
    for (text, expected) in [
        ("cat /leases/9/a", "cat /leases/10/a"),
        ("cat /leases/99/a", "cat /leases/99/a"),
        ("cat /leases/8/a", "cat /leases/8/a"),
    ] {
        assert_eq!(leases.moved(text, 9), expected);
    }
    let mut first = asking();
    let long = format!("ask command {}\n", "x".repeat(20_000));
    let asked = first.heard(long.as_bytes()).into_iter();
    let question = asked.into_iter().find_map(|act| match act {
        Act::Report(report::Kind::Asked(question)) => Some(question),
        _ => None,
    });
    let mut again = asking();
    again.subject.answered = vec![AnsweredQuestion {
        question,
        answer: answer(1, "allow").remove(&1),
        ..AnsweredQuestion::default()
    }];
    assert_eq!(reports(&again.heard(long.as_bytes())), ["asked"]);
}
