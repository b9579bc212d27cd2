//! Cuts an agent's output into lines, however its reads fall.

use serde_json::{Map, Value};

use super::conversation::{AgentError, ErrorClass, LINE_BYTES_MAX};

/// Bytes of a line that is too long which are given all the same.
const BEGINNING_BYTES: usize = 1 << 10;

/// A line, or what is given of one that is too long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// Without its end.
    Whole(Vec<u8>),
    /// Its beginning.
    Overlong(Vec<u8>),
}

/// Keeps the beginning of a line until its end comes; never more than [`LINE_BYTES_MAX`].
#[derive(Debug, Default)]
pub(crate) struct Lines {
    partial: Vec<u8>,
    /// The line in progress is too long and is skipped to its end.
    skipping: bool,
}

impl Lines {
    /// Takes more bytes; returns the lines that they complete. Empty lines are left out.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<Line> {
        let mut lines = Vec::new();
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            let (line, after) = rest.split_at(end);
            self.keep(line, &mut lines);
            rest = after.get(1..).unwrap_or_default();
            self.skipping = false;
            let mut line = std::mem::take(&mut self.partial);
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            if !line.is_empty() {
                lines.push(Line::Whole(line));
            }
        }
        self.keep(rest, &mut lines);
        lines
    }

    fn keep(&mut self, part: &[u8], lines: &mut Vec<Line>) {
        if self.skipping {
            return;
        }
        if self.partial.len() + part.len() <= LINE_BYTES_MAX {
            self.partial.extend_from_slice(part);
            return;
        }
        self.skipping = true;
        let mut beginning = std::mem::take(&mut self.partial);
        beginning.extend(part.iter().take(BEGINNING_BYTES));
        beginning.truncate(BEGINNING_BYTES);
        lines.push(Line::Overlong(beginning));
    }
}

/// Reads the members of a JSON object that stand whole at the beginning of a line; `None` if it is no
/// object, so that the line is noise.
pub(crate) fn members(beginning: &[u8]) -> Option<Map<String, Value>> {
    let text = String::from_utf8_lossy(beginning);
    let mut rest = text.trim_start().strip_prefix('{')?;
    let mut found = Map::new();
    while let Some((Value::String(key), after)) = first_value(rest)
        && let Some(after) = after.strip_prefix(':')
        && let Some((value, after)) = first_value(after)
        // A number that ends the text may go on.
        && let Some(after) = after.strip_prefix(',')
    {
        found.insert(key, value);
        rest = after;
    }
    Some(found)
}

/// Reads a value at the beginning of a text; gives what stands behind it.
fn first_value(text: &str) -> Option<(Value, &str)> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter();
    let value = values.next()?.ok()?;
    let rest = text.get(values.byte_offset()..)?;
    Some((value, rest.trim_start()))
}

/// Tells that a line was too long to be understood.
pub(crate) fn too_long(what: &str) -> AgentError {
    let max = LINE_BYTES_MAX >> 20;
    AgentError {
        class: ErrorClass::AgentError,
        message: format!("{what} is longer than {max} MiB"),
        http_status: None,
        retry_after: None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn whole(text: &str) -> Line {
        Line::Whole(text.into())
    }

    proptest! {
        #[test]
        fn cuts_change_nothing(cuts in proptest::collection::vec(1_usize..7, 1..20)) {
            let text = b"one\n\ntwo\r\nthree\nunfinished";
            let mut lines = Lines::default();
            let mut found = Vec::new();
            let mut rest = &text[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (part, after) = rest.split_at((*cut).min(rest.len()));
                found.extend(lines.push(part));
                rest = after;
            }
            prop_assert_eq!(found, [whole("one"), whole("two"), whole("three")]);
        }
    }

    #[test]
    fn of_the_beginning_of_an_object_its_whole_members_are_read() {
        for (beginning, expected) in [
            (
                r#"{"a":1,"b":{"c":[2]}, "d" : "e,f" ,"g":"h"#,
                json!({"a": 1, "b": {"c": [2]}, "d": "e,f"}),
            ),
            (r#" {"a":12"#, json!({})),
            (r#"{"a"#, json!({})),
            ("{{{", json!({})),
        ] {
            let found = members(beginning.as_bytes()).map(Value::Object);
            assert_eq!(found, Some(expected), "{beginning}");
        }
        assert_eq!(members(b"[1,"), None);
        assert_eq!(members(b"\xff{"), None);
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped_to_its_end() {
        let mut lines = Lines::default();
        let long = vec![b'x'; LINE_BYTES_MAX / 2 + 1];
        assert_eq!(lines.push(b"a\n"), [whole("a")]);
        assert_eq!(lines.push(&long), []);
        assert_eq!(
            lines.push(&long),
            [Line::Overlong(vec![b'x'; BEGINNING_BYTES])]
        );
        assert_eq!(lines.push(&long), []);
        assert_eq!(lines.push(b"\nb\n"), [whole("b")]);
    }
}
