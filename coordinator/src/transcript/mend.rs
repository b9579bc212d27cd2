//! Transcripts that a fault has damaged: what of one is sound, and how the rest is set aside.
//!
//! A record that was being written when its process or machine died is *torn*: it is the last one,
//! its end is missing, and nobody was told that it is kept. Anything else that does not read is
//! *damage*: a disk that has forgotten, a hand that has edited. What lies behind it may be sound.

use std::fs;
use std::io::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use muster_proto::v1::agent_event::Kind;
use muster_proto::v1::{AgentEvent, OutputTruncated};
use prost::Message as _;

use super::file::{EVENT_BYTES_MAX, HEADER, encode, heading, io, parse, record_length};
use super::{Error, TRANSCRIPT_BYTES_MAX};

/// Bytes that are hashed while the next sound record is looked for; a file that was made to be
/// slow costs no more.
const SEARCH_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Bytes of the longest file that is looked through: the bound of a transcript's events, and the
/// last of them, twice.
const FILE_BYTES_MAX: u64 = 2 * (TRANSCRIPT_BYTES_MAX + EVENT_BYTES_MAX as u64);

/// How a transcript's bytes end, or where they do not read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flaw {
    /// The last record is half written.
    Torn { at: u64, bytes: u64 },
    /// Bytes that are no record, with sound records or nothing behind them.
    Damaged { at: u64, bytes: u64 },
}

/// What a transcript holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Look {
    /// Whose it says that it is, as its path below the transcripts' folder.
    pub of: Option<String>,
    /// Sound events.
    pub events: u64,
    /// Number of the last of them.
    pub last: u64,
    pub bytes: u64,
    pub flaws: Vec<Flaw>,
    /// Numbers that are missing without a note of it: the events before and behind.
    pub gaps: Vec<(u64, u64)>,
}

impl Look {
    /// Tells whether anything but a torn end is wrong.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        let damaged = |flaw: &Flaw| matches!(flaw, Flaw::Damaged { .. });
        self.flaws.iter().any(damaged)
    }
}

/// Looks through a transcript's file to its very end.
///
/// # Errors
/// The file cannot be read, or is none that this program has written: no file, or far too long.
pub fn look(path: &Path) -> Result<Look, Error> {
    look_at_each(path, |_| {})
}

/// Looks through a transcript's file, and at each of its sound events.
///
/// # Errors
/// As [`look`].
pub(crate) fn look_at_each(path: &Path, mut each: impl FnMut(&AgentEvent)) -> Result<Look, Error> {
    let bytes = whole(path)?;
    Ok(walk(&bytes, |event, _| each(event)))
}

/// Reads a transcript. A pipe would be waited for without end, and a file of any length would not
/// fit into memory.
fn whole(path: &Path) -> Result<Vec<u8>, Error> {
    let found = fs::metadata(path).map_err(io("look at", path))?;
    let refused = |what| io("read", path)(std::io::Error::other(what));
    if !found.is_file() {
        return Err(refused("it is no file".to_owned()));
    }
    if found.len() > FILE_BYTES_MAX {
        let what = format!("it has {} bytes, more than any transcript", found.len());
        return Err(refused(what));
    }
    fs::read(path).map_err(io("read", path))
}

/// Replaces a transcript by its sound records, with a note where some are missing. What it was is
/// kept whole under `aside`, which must be in the same file system.
///
/// # Errors
/// The disk; the transcript is then as it was.
pub fn mend(path: &Path, aside: &Path) -> Result<Look, Error> {
    let bytes = whole(path)?;
    let mut whole = Vec::with_capacity(bytes.len());
    if let Some((_, size)) = heading(&bytes) {
        whole.extend_from_slice(bytes.get(..size).unwrap_or_default());
    }
    let mut last = 0;
    let found = walk(&bytes, |event, record| {
        if event.number > last + 1 && !matches!(event.kind, Some(Kind::OutputTruncated(_))) {
            let note = AgentEvent {
                number: event.number - 1,
                at_ms: event.at_ms,
                kind: Some(Kind::OutputTruncated(OutputTruncated { bytes: 0 })),
            };
            encode(&mut whole, &note.encode_to_vec());
        }
        last = event.number;
        whole.extend_from_slice(bytes.get(record).unwrap_or_default());
    });
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut fresh = tempfile::Builder::new()
        .prefix(".muster-")
        .tempfile_in(folder)
        .map_err(io("make a file beside", path))?;
    fresh
        .write_all(&whole)
        .and_then(|()| fresh.as_file().sync_all())
        .map_err(io("write beside", path))?;
    fs::hard_link(path, aside).map_err(io("set aside", path))?;
    fresh
        .persist(path)
        .map_err(|error| io("replace", path)(error.error))?;
    Ok(found)
}

/// Begins the end of the names of transcripts that were set aside.
pub(crate) const SET_ASIDE: &str = ".damaged-";

/// Names where a damaged transcript is kept beside the mended one.
pub(super) fn beside(path: &Path) -> PathBuf {
    let mut number = 1;
    loop {
        let mut name = path.as_os_str().to_owned();
        name.push(format!("{SET_ASIDE}{number}"));
        let name = PathBuf::from(name);
        if !name.exists() {
            return name;
        }
        number += 1;
    }
}

/// Goes through all sound records in order, with where they are.
fn walk(bytes: &[u8], mut each: impl FnMut(&AgentEvent, Range<usize>)) -> Look {
    let mut look = Look {
        bytes: bytes.len() as u64,
        ..Look::default()
    };
    let mut at = 0;
    let mut budget = SEARCH_BYTES_MAX;
    if let Some((heading, size)) = heading(bytes) {
        look.of = heading.of;
        at = size;
    }
    while at < bytes.len() {
        let rest = bytes.get(at..).unwrap_or_default();
        match sound(rest, look.last) {
            Some((event, size)) => {
                let noted = matches!(event.kind, Some(Kind::OutputTruncated(_)));
                if event.number != look.last + 1 && !noted {
                    look.gaps.push((look.last, event.number));
                }
                look.events += 1;
                look.last = event.number;
                each(&event, at..at + size);
                at += size;
            }
            None => {
                let next = next_sound(rest, look.last, &mut budget);
                let lost = next.unwrap_or(rest.len());
                let (place, count) = (at as u64, lost as u64);
                look.flaws.push(if next.is_none() && is_torn(rest) {
                    Flaw::Torn {
                        at: place,
                        bytes: count,
                    }
                } else {
                    Flaw::Damaged {
                        at: place,
                        bytes: count,
                    }
                });
                at += lost;
            }
        }
    }
    look
}

/// Parses a record whose number follows.
fn sound(bytes: &[u8], last: u64) -> Option<(AgentEvent, usize)> {
    parse(bytes).filter(|(event, _)| event.number > last)
}

/// Finds the next sound record behind one that is not.
fn next_sound(bytes: &[u8], last: u64, budget: &mut usize) -> Option<usize> {
    // Mostly the body is damaged and its length is right. Not looking inside also means that no
    // agent can bring its own events by printing what looks like them.
    if let Some(length) = record_length(bytes)
        && let Some(behind) = bytes.get(HEADER + length..)
        && sound(behind, last).is_some()
    {
        return Some(HEADER + length);
    }
    for at in 1..bytes.len() {
        let rest = bytes.get(at..).unwrap_or_default();
        let Some(length) = record_length(rest) else {
            break;
        };
        if length > EVENT_BYTES_MAX || HEADER + length > rest.len() {
            continue;
        }
        if *budget < length {
            break;
        }
        *budget -= length;
        let Some((event, size)) = sound(rest, last) else {
            continue;
        };
        let behind = rest.get(size..).unwrap_or_default();
        if behind.is_empty() || is_torn(behind) || sound(behind, event.number).is_some() {
            return Some(at);
        }
    }
    None
}

/// Tells whether bytes at the end of a file are the beginning of a record, or a hole.
fn is_torn(rest: &[u8]) -> bool {
    let cut = match record_length(rest) {
        Some(length) => length <= EVENT_BYTES_MAX && rest.len() < HEADER + length,
        None => true,
    };
    cut || rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::super::file::Transcript;
    use super::*;

    fn event(number: u64) -> AgentEvent {
        AgentEvent {
            number,
            at_ms: 7,
            kind: Some(Kind::Note(format!("note {number}"))),
        }
    }

    fn written(path: &Path, numbers: &[u64]) -> Vec<u8> {
        let mut transcript = Transcript::open(path).unwrap();
        for number in numbers {
            transcript.append(path, &event(*number)).unwrap();
        }
        fs::read(path).unwrap()
    }

    fn numbers(path: &Path) -> Vec<u64> {
        let events = super::super::file::read(path, 0, usize::MAX).unwrap();
        events.iter().map(|event| event.number).collect()
    }

    #[test]
    fn a_flipped_bit_costs_one_record_wherever_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.events");
        let whole = written(&path, &[1, 2, 3, 4]);
        let size = whole.len() / 4;
        for at in size..3 * size {
            for bit in [0x01, 0x80] {
                let mut bytes = whole.clone();
                bytes[at] ^= bit;
                let look = walk(&bytes, |_, _| {});
                assert_eq!(look.events, 3, "byte {at}");
                assert!(look.is_damaged(), "byte {at}");
            }
        }
    }

    #[test]
    fn a_cut_end_is_torn_and_no_damage() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.events");
        let whole = written(&path, &[1, 2]);
        for cut in whole.len() / 2 + 1..whole.len() {
            let look = walk(&whole[..cut], |_, _| {});
            assert!(matches!(look.flaws[..], [Flaw::Torn { .. }]), "{cut}");
            assert_eq!(look.last, 1);
        }
        let mut hole = whole;
        hole.extend([0; 40]);
        let look = walk(&hole, |_, _| {});
        assert!(matches!(look.flaws[..], [Flaw::Torn { bytes: 40, .. }]));
    }

    #[test]
    fn what_is_no_transcript_is_neither_waited_for_nor_read_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.events");
        let long = fs::File::create(&path).unwrap();
        long.set_len(FILE_BYTES_MAX + 1).unwrap();
        let refused = look(&path);
        assert!(
            matches!(&refused, Err(Error::Io { source, .. }) if source.to_string().contains("more than any")),
            "{refused:?}"
        );
        let pipe = folder.path().join("pipe.events");
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, mode).unwrap();
        assert!(look(&pipe).is_err());
    }

    #[test]
    fn a_gap_without_a_note_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.events");
        written(&path, &[1, 4]);
        assert_eq!(look(&path).unwrap().gaps, [(1, 4)]);
    }

    #[test]
    fn a_mended_transcript_keeps_what_is_sound_and_the_original_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.events");
        let mut bytes = written(&path, &[1, 2, 3, 4]);
        let size = bytes.len() / 4;
        bytes[size + HEADER + 3] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let aside = folder.path().join("aside");
        mend(&path, &aside).unwrap();
        assert_eq!(numbers(&path), [1, 2, 3, 4]);
        let events = super::super::file::read(&path, 0, usize::MAX).unwrap();
        assert!(matches!(events[1].kind, Some(Kind::OutputTruncated(_))));
        assert_eq!(fs::read(&aside).unwrap(), bytes);
        assert!(look(&path).unwrap().flaws.is_empty());
    }

    #[test]
    fn going_on_with_a_damaged_transcript_loses_nothing_behind_the_damage() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.events");
        let mut bytes = written(&path, &[1, 2, 3]);
        bytes[HEADER + 3] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let mut transcript = Transcript::open(&path).unwrap();
        assert_eq!(transcript.last, 3);
        transcript.append(&path, &event(4)).unwrap();
        assert_eq!(numbers(&path), [1, 2, 3, 4]);
        assert_eq!(fs::read(beside_of(&path)).unwrap(), bytes);
    }

    fn beside_of(path: &Path) -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(".damaged-1");
        name.into()
    }

    #[test]
    fn what_an_agent_prints_is_not_taken_for_records() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.events");
        let mut forged = Vec::new();
        encode(&mut forged, &event(7).encode_to_vec());
        encode(&mut forged, &event(8).encode_to_vec());
        let mut transcript = Transcript::open(&path).unwrap();
        let printed = AgentEvent {
            kind: Some(Kind::Output(muster_proto::v1::Output {
                data: forged,
                ..Default::default()
            })),
            ..event(1)
        };
        transcript.append(&path, &printed).unwrap();
        transcript.append(&path, &event(2)).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        bytes[HEADER] ^= 1;
        let look = walk(&bytes, |_, _| {});
        assert_eq!((look.events, look.last), (1, 2));
    }
}
