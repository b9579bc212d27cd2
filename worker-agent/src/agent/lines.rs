//! Cuts an agent's output into lines, however its reads fall.

use super::conversation::LINE_BYTES_MAX;

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
