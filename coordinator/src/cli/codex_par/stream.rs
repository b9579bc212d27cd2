//! What a stream of `codex exec --json` tells of a task, line by line.
//!
//! Lines that are no JSON, of unknown types or too long are counted as events and tell nothing
//! else: other programs may stand in for codex.

use serde_json::Value;

use crate::output::one_line;

/// A longer line is counted but not looked into; codex cuts a command's output at about as much.
const LINE_BYTES_MAX: usize = 2 * 1024 * 1024;
const ACTION_CHARS: usize = 120;
/// Programs that only show files.
const READERS: [&str; 9] = [
    "bat", "cat", "head", "less", "more", "nl", "sed", "tail", "view",
];

/// What was seen so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) session: Option<String>,
    pub(crate) events: u64,
    pub(crate) input_tokens: u64,
    pub(crate) output_tokens: u64,
    pub(crate) files_read: u64,
    pub(crate) commands_run: u64,
    pub(crate) last_action: Option<String>,
    pub(crate) last_message: Option<String>,
    pub(crate) error: Option<String>,
    unfinished: Vec<u8>,
    /// The unfinished line is too long.
    skipping: bool,
}

/// Something worth a line in `tail`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Session(String),
    Read(String),
    Exec(String),
    Message(String),
    Tokens { input: u64, output: u64 },
    Error(String),
}

impl Tally {
    /// Takes the next bytes, cut anywhere.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Vec<Seen> {
        let mut seen = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (piece, false),
            };
            if self.unfinished.len() + text.len() > LINE_BYTES_MAX {
                self.skipping = true;
                self.unfinished.clear();
            }
            if !self.skipping {
                self.unfinished.extend_from_slice(text);
            }
            if ends {
                let line = std::mem::take(&mut self.unfinished);
                if std::mem::take(&mut self.skipping) || !line.trim_ascii().is_empty() {
                    self.events += 1;
                    seen.extend(self.line(&line));
                }
            }
        }
        seen
    }

    fn line(&mut self, line: &[u8]) -> Option<Seen> {
        let event: Value = serde_json::from_slice(line).ok()?;
        let text = |key: &str| event.get(key).and_then(Value::as_str);
        match text("type")? {
            "thread.started" => {
                let session = one_line(text("thread_id")?);
                self.session = Some(session.clone());
                Some(Seen::Session(session))
            }
            "turn.completed" => {
                let usage = event.get("usage")?;
                let count = |key| usage.get(key).and_then(Value::as_u64).unwrap_or(0);
                // Codex counts for the whole conversation: the last one is the sum.
                self.input_tokens = count("input_tokens");
                self.output_tokens = count("output_tokens");
                Some(Seen::Tokens {
                    input: self.input_tokens,
                    output: self.output_tokens,
                })
            }
            "turn.failed" => {
                let message = event.pointer("/error/message").and_then(Value::as_str)?;
                self.failed(message)
            }
            "error" => self.failed(text("message")?),
            "item.started" => self.started(event.get("item")?),
            "item.completed" => self.completed(event.get("item")?),
            _ => None,
        }
    }

    fn failed(&mut self, message: &str) -> Option<Seen> {
        let message = one_line(message);
        self.error = Some(message.clone());
        Some(Seen::Error(message))
    }

    fn started(&mut self, item: &Value) -> Option<Seen> {
        if item.get("type")?.as_str()? != "command_execution" {
            return None;
        }
        let command = plain_command(item.get("command")?.as_str()?);
        self.commands_run += 1;
        let first = command.split_whitespace().next().unwrap_or_default();
        let reads = READERS.contains(&first);
        let command = short(command);
        self.last_action = Some(command.clone());
        if reads {
            self.files_read += 1;
            return Some(Seen::Read(command));
        }
        Some(Seen::Exec(command))
    }

    fn completed(&mut self, item: &Value) -> Option<Seen> {
        let text = |key: &str| item.get(key).and_then(Value::as_str);
        match text("type")? {
            "agent_message" => {
                let message = text("text")?;
                self.last_message = Some(message.to_owned());
                let shown = short(message);
                self.last_action = Some(shown.clone());
                Some(Seen::Message(shown))
            }
            "file_change" => {
                let changes = item.get("changes")?.as_array()?;
                let path = changes.first()?.get("path")?.as_str()?;
                self.last_action = Some(short(&format!("edit {path}")));
                None
            }
            _ => None,
        }
    }
}

/// Takes the shell around a command away: `/bin/bash -lc 'cat x'` is `cat x`.
fn plain_command(command: &str) -> &str {
    let inner = ["-lc ", "-c "]
        .iter()
        .find_map(|flag| command.split_once(flag))
        .filter(|(shell, _)| shell.trim_end().ends_with("sh"))
        .map_or(command, |(_, inner)| inner);
    inner.trim().trim_matches(['\'', '"'])
}

fn short(text: &str) -> String {
    let line = one_line(text);
    if line.chars().count() <= ACTION_CHARS {
        return line;
    }
    let mut cut: String = line.chars().take(ACTION_CHARS - 1).collect();
    cut.push('…');
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = r#"{"type":"thread.started","thread_id":"01a1"}
{"type":"turn.started"}
{"type":"item.started","item":{"id":"i","type":"command_execution","command":"/bin/bash -lc 'cat a.txt'","status":"in_progress"}}
{"type":"item.completed","item":{"id":"i","type":"command_execution","command":"/bin/bash -lc 'cat a.txt'","exit_code":0,"status":"completed"}}
{"type":"item.started","item":{"id":"j","type":"command_execution","command":"make","status":"in_progress"}}
{"type":"error","message":"Reconnecting... 1/1"}
not json
{"type":"item.completed","item":{"id":"k","type":"agent_message","text":"Done: wrote\nout.txt"}}
{"type":"turn.completed","usage":{"input_tokens":3000,"cached_input_tokens":900,"output_tokens":50}}
"#;

    #[test]
    fn a_stream_is_understood_wherever_it_is_cut() {
        let mut whole = Tally::default();
        let seen = whole.take(STREAM.as_bytes());
        assert_eq!(
            seen,
            [
                Seen::Session("01a1".into()),
                Seen::Read("cat a.txt".into()),
                Seen::Exec("make".into()),
                Seen::Error("Reconnecting... 1/1".into()),
                Seen::Message("Done: wrote out.txt".into()),
                Seen::Tokens {
                    input: 3000,
                    output: 50
                },
            ]
        );
        assert_eq!(
            (whole.events, whole.files_read, whole.commands_run),
            (9, 1, 2)
        );
        assert_eq!(whole.last_message.as_deref(), Some("Done: wrote\nout.txt"));
        for cut in 0..STREAM.len() {
            let mut pieces = Tally::default();
            let (first, second) = STREAM.as_bytes().split_at(cut);
            let mut seen_in_pieces = pieces.take(first);
            seen_in_pieces.extend(pieces.take(second));
            assert_eq!(seen_in_pieces, seen, "cut at {cut}");
            assert_eq!(pieces, whole, "cut at {cut}");
        }
    }

    #[test]
    fn a_line_without_end_takes_no_more_room_than_its_bound() {
        let mut tally = Tally::default();
        for _ in 0..40 {
            tally.take(&[b'x'; 100_000]);
            assert!(tally.unfinished.len() <= LINE_BYTES_MAX);
        }
        let seen = tally.take(b"\n{\"type\":\"thread.started\",\"thread_id\":\"t\"}\n");
        assert_eq!(seen, [Seen::Session("t".into())]);
        assert_eq!(tally.events, 2);
    }
}
