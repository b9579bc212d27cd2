//! The machine, fed with what no agent of good will writes.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::tests::{OPENCODE, heard, opened, played};
use crate::agent::conversation::{Conversation as _, Step};
use crate::agent::lines::{Line, Lines};

#[test]
fn key_order_means_nothing() {
    let sorted: Vec<String> = OPENCODE
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap().to_string())
        .collect();
    let steps = heard(&mut opened(), sorted.iter().map(|line| line.as_bytes()));
    assert_eq!(steps, played());
}

#[test]
fn memory_is_bounded_whatever_the_agent_asks_and_begins() {
    let mut machine = opened();
    heard(&mut machine, OPENCODE.lines().take(2).map(str::as_bytes));
    let session = "ses_e048fc38bffehi98NrQkxV7HkI";
    let mut sent = 0;
    for number in 0..10_000 {
        let ask = json!({"id": number, "method": "session/request_permission", "params": {
            "toolCall": {"toolCallId": "c"}, "options": []}});
        let steps = machine.line(ask.to_string().as_bytes());
        sent += steps
            .iter()
            .filter(|step| matches!(step, Step::Send(_)))
            .count();
        let call = json!({"method": "session/update", "params": {"sessionId": session, "update": {
            "sessionUpdate": "tool_call", "toolCallId": number.to_string()}}});
        machine.line(call.to_string().as_bytes());
        let text = json!({"method": "session/update", "params": {"sessionId": session, "update": {
            "sessionUpdate": "agent_message_chunk", "content": {"text": "x".repeat(100)}}}});
        machine.line(text.to_string().as_bytes());
    }
    assert_eq!(sent, 10_000 - 64);
    assert!(format!("{machine:?}").len() < 300_000);
}

fn news() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        Just("not JSON at all".to_owned()),
        Just(r#"{"jsonrpc":"2.0","method":"session/update","params":{}}"#.to_owned()),
        Just(r#"{"jsonrpc":"2.0","id":77,"result":{}}"#.to_owned()),
        Just(format!(
            r#"{{"method":"new","params":"{}"}}"#,
            "x".repeat(1_200_000)
        )),
        "\\PC{0,40}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn cuts_and_news_change_nothing(
        cuts in proptest::collection::vec(1_usize..5_000, 1..50),
        news in proptest::collection::vec((any::<prop::sample::Index>(), news()), 0..5),
    ) {
        let mut lines: Vec<String> = OPENCODE.lines().map(str::to_owned).collect();
        for (at, new) in news {
            lines.insert(at.index(lines.len() + 1), new);
        }
        let mut bytes = lines.join("\n").into_bytes();
        bytes.push(b'\n');
        let mut cutter = Lines::default();
        let mut machine = opened();
        let mut steps = Vec::new();
        let mut rest = bytes.as_slice();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (part, after) = rest.split_at((*cut).min(rest.len()));
            for line in cutter.push(part) {
                let Line::Whole(line) = line else { panic!("{line:?}") };
                steps.extend(heard(&mut machine, [line.as_slice()]));
            }
            rest = after;
        }
        prop_assert_eq!(steps, played());
    }

    #[test]
    fn no_change_of_any_byte_panics(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
    ) {
        let mut bytes = OPENCODE.as_bytes().to_vec();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        heard(&mut opened(), bytes.split(|byte| *byte == b'\n'));
    }
}
