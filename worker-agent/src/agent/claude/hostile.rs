//! The machine, fed with what no program of good will writes.

use muster_proto::v1::activity::Kind;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::tests::{SAMPLES, begun, heard, played, sent, told};
use crate::agent::conversation::Conversation as _;
use crate::agent::lines::{Line, Lines};

#[test]
fn memory_is_bounded_whatever_the_program_asks_and_begins() {
    let mut machine = begun();
    let mut denied = 0;
    for number in 0..10_000 {
        let ask = json!({"type": "control_request", "request_id": number.to_string(),
            "request": {"subtype": "can_use_tool", "tool_name": "Bash", "input": {"command": "x"}}});
        denied += sent(&machine.line(ask.to_string().as_bytes())).len();
        let uses = json!({"type": "assistant", "message": {"id": number.to_string(), "content": [
            {"type": "tool_use", "id": number.to_string(), "name": "Bash", "input": {}}],
            "stop_reason": "x", "model": number.to_string(), "usage": {"input_tokens": 1}}});
        machine.line(uses.to_string().as_bytes());
        let start = json!({"type": "stream_event", "parent_tool_use_id": number.to_string(),
            "event": {"type": "message_start", "message": {"usage": {"input_tokens": 1}}}});
        machine.line(start.to_string().as_bytes());
    }
    assert_eq!(denied, 10_000 - 64);
    assert!(format!("{machine:?}").len() < 200_000);
}

#[test]
fn key_order_means_nothing() {
    for (name, text) in SAMPLES {
        // A value that is read and written again has its keys in another order.
        let sorted: Vec<String> = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap().to_string())
            .collect();
        let steps = heard(&mut begun(), sorted.iter().map(|line| line.as_bytes()));
        assert_eq!(steps, played(name), "{name}");
    }
}

#[test]
fn lines_of_megabytes_are_read() {
    let text = "é".repeat(1 << 20);
    let line = json!({"type": "assistant", "message": {"id": "m", "content": [
        {"type": "text", "text": text}]}});
    let steps = begun().line(line.to_string().as_bytes());
    let said = told(&steps).into_iter().map(|kind| match kind {
        Kind::Message(delta) => delta.text,
        other => panic!("{other:?}"),
    });
    assert_eq!(said.collect::<String>(), text);
}

fn news() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        Just("not JSON at all".to_owned()),
        Just("{\"type\":\"something_new\",\"a\":[1,{}]}".to_owned()),
        Just("{\"type\":\"system\",\"subtype\":\"new\"}".to_owned()),
        Just("[1,2]".to_owned()),
        Just(format!(
            "{{\"type\":\"new\",\"text\":\"{}\"}}",
            "x".repeat(1_200_000)
        )),
        "\\PC{0,40}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn cuts_and_news_change_nothing(
        which in 0..SAMPLES.len(),
        cuts in proptest::collection::vec(1_usize..5_000, 1..50),
        news in proptest::collection::vec((any::<prop::sample::Index>(), news()), 0..5),
    ) {
        let (name, text) = SAMPLES[which];
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        for (at, new) in news {
            lines.insert(at.index(lines.len() + 1), new);
        }
        let mut bytes = lines.join("\n").into_bytes();
        bytes.push(b'\n');
        let mut cutter = Lines::default();
        let mut machine = begun();
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
        prop_assert_eq!(steps, played(name));
    }

    #[test]
    fn no_change_of_any_byte_panics(
        which in 0..SAMPLES.len(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
    ) {
        let mut bytes = SAMPLES[which].1.as_bytes().to_vec();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        heard(&mut begun(), bytes.split(|byte| *byte == b'\n'));
    }

    #[test]
    fn no_value_in_any_place_panics(
        which in 0..SAMPLES.len(),
        at in any::<prop::sample::Index>(),
        value in prop_oneof![
            Just(Value::Null), Just(json!(-1)), Just(json!(1e300)), Just(json!([])),
            Just(json!({"a": 1})), Just(json!("é")), Just(json!(u64::MAX)), Just(json!(true)),
        ],
    ) {
        let lines: Vec<Value> = SAMPLES[which].1.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let mut machine = begun();
        for mut line in lines {
            let mut places = Vec::new();
            visit(&line, String::new(), &mut places);
            let place = places[at.index(places.len())].clone();
            if let Some(target) = line.pointer_mut(&place) {
                *target = value.clone();
            }
            heard(&mut machine, [line.to_string().as_bytes()]);
        }
    }
}

/// Collects the places of all values within one.
fn visit(value: &Value, place: String, places: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                let key = key.replace('~', "~0").replace('/', "~1");
                visit(inner, format!("{place}/{key}"), places);
            }
        }
        Value::Array(items) => {
            for (number, inner) in items.iter().enumerate() {
                visit(inner, format!("{place}/{number}"), places);
            }
        }
        _ => {}
    }
    places.push(place);
}
