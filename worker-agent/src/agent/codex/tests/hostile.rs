use proptest::prelude::*;

use super::*;
use crate::agent::lines::{Line, Lines};

/// What the program wrote, as bytes.
fn output(recording: &str) -> Vec<u8> {
    let lines = recording.lines().filter_map(|line| line.strip_prefix("< "));
    lines
        .flat_map(|line| [line.as_bytes(), b"\n"].concat())
        .collect()
}

/// Steps of a conversation that hears pieces of a stream.
fn heard<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Step> {
    let mut machine = machine(json!({}));
    let mut lines = Lines::default();
    let mut steps = machine.open(&opening());
    for piece in pieces {
        for line in lines.push(piece) {
            steps.extend(match line {
                Line::Whole(line) => machine.line(&line),
                Line::Overlong(beginning) => machine.overlong(&beginning),
            });
        }
    }
    steps
}

fn cut(bytes: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
    let mut pieces = Vec::new();
    let mut rest = bytes;
    for length in cuts.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, after) = rest.split_at((*length).min(rest.len()));
        pieces.push(piece.to_vec());
        rest = after;
    }
    pieces
}

fn recordings() -> [&'static str; 7] {
    [TURN, APPROVALS, ERRORS, RESUME, PLAN, QUESTIONS, KILLED]
}

#[test]
fn a_stream_that_comes_byte_by_byte_is_understood_alike() {
    for recording in recordings() {
        let bytes = output(recording);
        let whole = heard([bytes.as_slice()]);
        assert_eq!(heard(bytes.chunks(1)), whole);
    }
}

#[test]
fn giant_lines_and_unknown_events_change_nothing() {
    let bytes = output(TURN);
    let whole = heard([bytes.as_slice()]);
    let news = json!({"method": "later/event", "params": {"threadId": "x", "deep": [[[{}]]]}});
    let output = json!({"method": "item/later", "params": {"text": "x".repeat(1_200_000)}});
    let overlong = "y".repeat(crate::agent::conversation::LINE_BYTES_MAX + 1);
    let deep = "[".repeat(100_000);
    let mut mixed = Vec::new();
    for (at, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
        mixed.extend_from_slice(line);
        let noise = match at % 5 {
            0 => news.to_string(),
            1 if at < 10 => output.to_string(),
            2 if at < 5 => overlong.clone(),
            3 => deep.clone(),
            _ => "\u{1b}[31mERROR\u{1b}[0m not a message".to_owned(),
        };
        mixed.extend_from_slice(noise.as_bytes());
        mixed.push(b'\n');
    }
    assert_eq!(heard(mixed.chunks(65_536)), whole);
}

#[test]
fn a_giant_output_in_one_line_is_understood() {
    let mut player = Player::new(machine(json!({})), &opening());
    for line in TURN.lines().filter(|line| line.starts_with('<')).take(5) {
        player.hear(line.split_at(2).1);
    }
    let item = json!({"type": "commandExecution", "id": "big", "status": "completed",
        "exitCode": 0, "aggregatedOutput": "z".repeat(1_100_000)});
    let line = json!({"method": "item/completed", "params": {"item": item,
        "threadId": "01a1fb6e-fae6-78b1-abaa-9d3c7da1eaaf"}});
    player.hear(&line.to_string());
    let told = player.told();
    let [Kind::CommandOutput(output), Kind::CommandEnded(_)] = told[told.len() - 2..] else {
        panic!("{told:?}");
    };
    assert_eq!(output.data.len(), 65_536);
}

#[test]
fn memory_stays_bounded_whatever_is_asked() {
    let mut player = Player::new(machine(json!({})), &opening());
    for line in TURN.lines().filter(|line| line.starts_with('<')).take(5) {
        player.hear(line.split_at(2).1);
    }
    for id in 0..1_000 {
        let params = json!({"command": "x".repeat(10_000), "itemId": "i",
            "threadId": "01a1fb6e-fae6-78b1-abaa-9d3c7da1eaaf"});
        let method = "item/commandExecution/requestApproval";
        player.hear(&json!({"method": method, "id": id, "params": params}).to_string());
    }
    assert_eq!(player.open.len(), 64);
    assert!(format!("{:?}", player.machine).len() < 8_000_000);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn cuts_change_nothing(
        which in 0_usize..6,
        cuts in proptest::collection::vec(1_usize..3_000, 1..12),
    ) {
        let bytes = output(recordings()[which]);
        let pieces = cut(&bytes, &cuts);
        prop_assert_eq!(
            heard(pieces.iter().map(Vec::as_slice)),
            heard([bytes.as_slice()])
        );
    }

    #[test]
    fn a_damaged_stream_is_no_reason_to_panic(
        which in 0_usize..6,
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..40),
    ) {
        let mut bytes = output(recordings()[which]);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let ends = heard([bytes.as_slice()]);
        let turns = ends.iter().filter(|step| matches!(step, Step::TurnEnded(_)));
        // It hears one turn; the later ones of a recording were begun by nobody.
        prop_assert!(turns.count() <= 1);
    }
}
