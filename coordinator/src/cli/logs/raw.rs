//! The lines of an agent's protocol, as they were captured.

use std::borrow::Cow;
use std::io::Read as _;

use flate2::read::DeflateDecoder;
use muster_proto::v1;
use muster_proto::v1::agent_event::Kind;

use crate::cli::arguments::RawWhich;
use crate::output::harmless;

/// Bytes of one capture that are written. What a worker gathers is far less, and a few bytes can be
/// made to grow to gigabytes.
const CAPTURE_BYTES_MAX: u64 = 64 << 20;
/// Bytes written at once.
const CHUNK: usize = 64 << 10;

/// Writes captured lines, of both directions with a mark, or of one of them exactly.
#[derive(Debug)]
pub(super) struct Raw {
    which: RawWhich,
    /// A terminal gets nothing that has power over it.
    to_terminal: bool,
    /// Where the last line has not ended: its direction.
    in_line: Option<v1::Direction>,
}

impl Raw {
    pub(super) fn new(which: RawWhich, to_terminal: bool) -> Self {
        Self {
            which,
            to_terminal,
            in_line: None,
        }
    }

    /// Writes what an event holds; gives what was wrong with it, for the person.
    pub(super) fn event<E>(
        &mut self,
        event: &v1::AgentEvent,
        mut write: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Option<String>, E> {
        let Some(Kind::Capture(capture)) = &event.kind else {
            return Ok(None);
        };
        let direction = capture.direction();
        let wanted = match self.which {
            RawWhich::Both => true,
            RawWhich::From => direction == v1::Direction::FromAgent,
            RawWhich::To => direction == v1::Direction::ToAgent,
        };
        if !wanted {
            return Ok(None);
        }
        let bound = capture.bytes.min(CAPTURE_BYTES_MAX);
        // One more tells that there would be more.
        let mut inflated = DeflateDecoder::new(capture.deflated.as_slice()).take(bound + 1);
        let (mut left, mut chunk) = (bound, vec![0; CHUNK]);
        let number = event.number;
        loop {
            let read = match inflated.read(&mut chunk) {
                Ok(read) => read,
                Err(error) => {
                    return Ok(Some(format!("event {number} cannot be inflated: {error}")));
                }
            };
            let known = read.min(usize::try_from(left).unwrap_or(usize::MAX));
            left -= known as u64;
            self.write(
                direction,
                chunk.get(..known).unwrap_or_default(),
                &mut write,
            )?;
            if known < read {
                return Ok(Some(format!(
                    "event {number} holds more than the {bound} bytes that are believed of it; the \
                     rest is left out"
                )));
            }
            if read == 0 {
                return Ok(None);
            }
        }
    }

    fn write<E>(
        &mut self,
        direction: v1::Direction,
        bytes: &[u8],
        write: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if bytes.is_empty() {
            return Ok(());
        }
        let plain: Cow<'_, [u8]> = if self.to_terminal {
            let text = String::from_utf8_lossy(bytes);
            Cow::Owned(harmless(&text).into_owned().into_bytes())
        } else {
            Cow::Borrowed(bytes)
        };
        if self.which != RawWhich::Both {
            return write(&plain);
        }
        let mark: &[u8] = match direction {
            v1::Direction::ToAgent => b"> ",
            v1::Direction::FromAgent | v1::Direction::Unspecified => b"< ",
        };
        let mut marked = Vec::with_capacity(plain.len() + 64);
        for line in plain.split_inclusive(|byte| *byte == b'\n') {
            if self.in_line != Some(direction) {
                if self.in_line.is_some() {
                    marked.push(b'\n');
                }
                marked.extend_from_slice(mark);
            }
            marked.extend_from_slice(line);
            self.in_line = (!line.ends_with(b"\n")).then_some(direction);
        }
        write(&marked)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::DeflateEncoder;

    use super::*;

    fn capture(direction: v1::Direction, text: &[u8]) -> v1::AgentEvent {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(text).unwrap();
        v1::AgentEvent {
            number: 7,
            at_ms: 0,
            kind: Some(Kind::Capture(v1::Capture {
                deflated: encoder.finish().unwrap(),
                bytes: text.len() as u64,
                direction: direction.into(),
            })),
        }
    }

    fn written(raw: &mut Raw, events: &[v1::AgentEvent]) -> (Vec<u8>, Vec<String>) {
        let (mut out, mut said) = (Vec::new(), Vec::new());
        for event in events {
            let told = raw.event(event, |bytes| {
                out.extend_from_slice(bytes);
                Ok::<_, Infallible>(())
            });
            said.extend(told.unwrap());
        }
        (out, said)
    }

    #[test]
    fn both_directions_are_marked_and_one_of_them_is_exact() {
        use v1::Direction::{FromAgent, ToAgent};
        let events = [
            capture(ToAgent, b"{\"id\":1}\n"),
            capture(FromAgent, b"{\"a\":\"\xff"),
            capture(FromAgent, b"b\"}\nhalf"),
            capture(ToAgent, b"{\"id\":2}\n"),
        ];
        let of = |which| written(&mut Raw::new(which, false), &events).0;
        let both = of(RawWhich::Both);
        assert_eq!(
            both,
            b"> {\"id\":1}\n< {\"a\":\"\xffb\"}\n< half\n> {\"id\":2}\n"
        );
        assert_eq!(of(RawWhich::From), b"{\"a\":\"\xffb\"}\nhalf");
        assert_eq!(of(RawWhich::To), b"{\"id\":1}\n{\"id\":2}\n");
    }

    #[test]
    fn a_terminal_gets_nothing_with_power_over_it() {
        let event = capture(v1::Direction::FromAgent, b"\x1b[2Jx\xff\n");
        let shown = written(&mut Raw::new(RawWhich::Both, true), &[event]).0;
        assert_eq!(
            String::from_utf8(shown).unwrap(),
            "< \u{241b}[2Jx\u{fffd}\n"
        );
    }

    #[test]
    fn what_grows_beyond_its_word_or_does_not_inflate_is_told_and_bounded() {
        let mut bomb = capture(v1::Direction::FromAgent, &vec![0; 8 << 20]);
        if let Some(Kind::Capture(capture)) = &mut bomb.kind {
            assert!(capture.deflated.len() < 10_000);
            capture.bytes = 1_000;
        }
        let mut nonsense = capture(v1::Direction::FromAgent, b"x");
        if let Some(Kind::Capture(capture)) = &mut nonsense.kind {
            capture.deflated = vec![0xff; 20];
        }
        let mut raw = Raw::new(RawWhich::From, false);
        let (out, said) = written(&mut raw, &[bomb, nonsense]);
        assert_eq!(out.len(), 1_000);
        assert_eq!(said.len(), 2);
        assert!(said[0].contains("1000 bytes"), "{said:?}");
        assert!(said[1].contains("cannot be inflated"), "{said:?}");
    }

    #[test]
    fn a_bomb_that_tells_its_size_is_bounded_too() {
        let mut bomb = capture(v1::Direction::FromAgent, &vec![0; 65 << 20]);
        if let Some(Kind::Capture(capture)) = &mut bomb.kind {
            capture.bytes = u64::MAX;
        }
        let mut count = 0;
        let told = Raw::new(RawWhich::From, false).event(&bomb, |bytes| {
            count += bytes.len() as u64;
            Ok::<_, Infallible>(())
        });
        assert_eq!(count, CAPTURE_BYTES_MAX);
        assert!(told.unwrap().is_some());
    }
}
