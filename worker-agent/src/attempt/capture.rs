//! Raw lines of a conversation, compressed for the transcript.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::DeflateEncoder;
use muster_proto::v1::{Capture, Direction};

use crate::spool::Taken;

/// Bytes that are gathered before they are compressed: enough for it to pay, few enough to come soon.
const FULL_BYTES: usize = 64 << 10;

/// Gathers what was said in each direction, in order.
#[derive(Debug)]
pub(crate) struct Recorder {
    /// Runs of one direction, and up to where the agent's output is in them and those before.
    runs: Vec<(Direction, Vec<u8>, Taken)>,
    bytes: usize,
    /// Up to where the agent's output is in it.
    taken: Taken,
}

impl Recorder {
    pub(crate) fn new(taken: Taken) -> Self {
        Self {
            runs: Vec::new(),
            bytes: 0,
            taken,
        }
    }

    /// Adds output of the agent that ends at `taken`.
    pub(crate) fn push(&mut self, direction: Direction, bytes: &[u8], taken: Taken) {
        self.taken = taken;
        self.add(direction, bytes);
    }

    /// Adds what was written to the agent.
    pub(crate) fn push_sent(&mut self, bytes: &[u8]) {
        self.add(Direction::ToAgent, bytes);
    }

    fn add(&mut self, direction: Direction, bytes: &[u8]) {
        self.bytes += bytes.len();
        match self.runs.last_mut() {
            Some((last, run, taken)) if *last == direction => {
                run.extend_from_slice(bytes);
                *taken = self.taken;
            }
            _ => self.runs.push((direction, bytes.to_vec(), self.taken)),
        }
    }

    /// Tells whether enough was gathered.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= FULL_BYTES
    }

    /// Compresses and gives what was gathered.
    pub(crate) fn take(&mut self) -> Vec<(Capture, Taken)> {
        self.bytes = 0;
        let runs = std::mem::take(&mut self.runs);
        let captures = runs.into_iter().filter_map(|(direction, bytes, taken)| {
            let capture = Capture {
                deflated: deflate(&bytes)?,
                bytes: bytes.len() as u64,
                direction: direction.into(),
            };
            Some((capture, taken))
        });
        captures.collect()
    }
}

fn deflate(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    // Writing to memory cannot fail.
    encoder.write_all(bytes).ok()?;
    encoder.finish().ok()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::DeflateDecoder;

    use super::*;

    #[test]
    fn what_was_said_comes_back_in_order() {
        let at = |position| Taken {
            launch: 1,
            position,
        };
        let mut recorder = Recorder::new(at(0));
        recorder.push_sent(b"prompt\n");
        recorder.push(Direction::FromAgent, b"a\n", at(9));
        recorder.push(Direction::FromAgent, b"b\n", at(18));
        let taken = recorder.take();
        let read = |capture: &Capture| {
            let mut text = String::new();
            DeflateDecoder::new(&capture.deflated[..])
                .read_to_string(&mut text)
                .unwrap();
            assert_eq!(text.len() as u64, capture.bytes);
            (capture.direction(), text)
        };
        let said: Vec<_> = taken.iter().map(|(capture, _)| read(capture)).collect();
        assert_eq!(
            said,
            [
                (Direction::ToAgent, "prompt\n".to_owned()),
                (Direction::FromAgent, "a\nb\n".to_owned())
            ]
        );
        let ends: Vec<_> = taken.iter().map(|(_, taken)| *taken).collect();
        assert_eq!(ends, [at(0), at(18)]);
        assert_eq!(recorder.take(), []);
    }
}
