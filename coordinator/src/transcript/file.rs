//! The form of a transcript file: records of length, checksum and an encoded event.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use muster_proto::v1::agent_event::Kind;
use muster_proto::v1::{AgentEvent, OutputTruncated};
use prost::Message as _;

use super::{Error, Position, mend};

/// Length (4 bytes) and checksum (4 bytes) before each event.
pub(super) const HEADER: usize = 8;
/// An event's bytes; a longer length is damage.
pub(super) const EVENT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// What one read takes from the file.
const CHUNK: usize = 256 * 1024;

/// An open transcript that is appended to.
#[derive(Debug)]
pub(super) struct Transcript {
    file: File,
    /// Number of the last event.
    pub(super) last: u64,
    pub(super) bytes: u64,
    pub(super) truncated: bool,
}

pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        action,
        path,
        source,
    }
}

impl Transcript {
    /// Opens or makes a transcript. A torn end is cut off; one that is damaged before its end is set
    /// aside whole, and its sound records stay.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(io("make", folder))?;
        }
        let mut position = end(path)?;
        let is_longer = |found: std::fs::Metadata| found.len() > position.offset;
        if std::fs::metadata(path).is_ok_and(is_longer) && mend::look(path)?.is_damaged() {
            let aside = mend::beside(path);
            tracing::error!(path = %path.display(), aside = %aside.display(), "a transcript is damaged; it is set aside and its sound events stay");
            mend::mend(path, &aside)?;
            position = end(path)?;
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            // What agents print is as confidential as what they work on.
            .mode(0o600)
            .open(path)
            .map_err(io("open", path))?;
        file.set_len(position.offset).map_err(io("cut", path))?;
        Ok(Self {
            file,
            last: position.number,
            bytes: position.offset,
            truncated: false,
        })
    }

    /// Appends an event; one too large for any reader leaves a note of its size instead.
    pub(super) fn append(&mut self, path: &Path, event: &AgentEvent) -> Result<(), Error> {
        let mut body = event.encode_to_vec();
        if body.len() > EVENT_BYTES_MAX - HEADER {
            let bytes = body.len() as u64;
            let note = AgentEvent {
                kind: Some(Kind::OutputTruncated(OutputTruncated { bytes })),
                ..*event
            };
            body = note.encode_to_vec();
        }
        let mut record = Vec::with_capacity(HEADER + body.len());
        encode(&mut record, &body);
        self.file
            .write_all(&record)
            .map_err(io("append to", path))?;
        self.bytes += record.len() as u64;
        self.last = event.number;
        Ok(())
    }

    pub(super) fn sync(&self, path: &Path) -> Result<(), Error> {
        self.file.sync_data().map_err(io("sync", path))
    }
}

/// Writes one record in its form.
pub(super) fn encode(out: &mut Vec<u8>, body: &[u8]) {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&checksum(body));
    out.extend_from_slice(body);
}

fn checksum(body: &[u8]) -> [u8; 4] {
    let hash = blake3::hash(body);
    let [a, b, c, d, ..] = *hash.as_bytes();
    [a, b, c, d]
}

/// Finds where the sound beginning of a transcript ends.
fn end(path: &Path) -> Result<Position, Error> {
    let mut position = Position::default();
    while !read_on(path, &mut position, CHUNK)?.is_empty() {}
    Ok(position)
}

pub(super) fn read(path: &Path, after: u64, bytes: usize) -> Result<Vec<AgentEvent>, Error> {
    let mut position = Position::default();
    let mut found = Vec::new();
    loop {
        let mut events = read_on(path, &mut position, CHUNK)?;
        if events.is_empty() {
            return Ok(found);
        }
        events.retain(|event| event.number > after);
        found.append(&mut events);
        if found
            .iter()
            .map(|event: &AgentEvent| event.encoded_len())
            .sum::<usize>()
            >= bytes
        {
            return Ok(found);
        }
    }
}

pub(super) fn read_on(
    path: &Path,
    position: &mut Position,
    bytes: usize,
) -> Result<Vec<AgentEvent>, Error> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(io("open", path)(source)),
    };
    file.seek(SeekFrom::Start(position.offset))
        .map_err(io("seek in", path))?;
    let wanted = bytes.clamp(HEADER, EVENT_BYTES_MAX);
    let mut buffer = Vec::new();
    read_up_to(&mut file, &mut buffer, wanted).map_err(io("read", path))?;
    // The first record may be longer than what was asked for.
    if let Some(length) = record_length(&buffer)
        && buffer.len() < HEADER + length
        && length <= EVENT_BYTES_MAX
    {
        let missing = HEADER + length - buffer.len();
        read_up_to(&mut file, &mut buffer, missing).map_err(io("read", path))?;
    }
    let mut events = Vec::new();
    let mut rest = buffer.as_slice();
    while let Some((event, size)) = parse(rest) {
        // Numbers only grow; anything else was not written by us.
        if event.number <= position.number {
            break;
        }
        position.number = event.number;
        position.offset += size as u64;
        events.push(event);
        rest = rest.get(size..).unwrap_or_default();
    }
    Ok(events)
}

fn read_up_to(file: &mut File, buffer: &mut Vec<u8>, bytes: usize) -> std::io::Result<()> {
    file.take(bytes as u64).read_to_end(buffer).map(|_| ())
}

pub(super) fn record_length(bytes: &[u8]) -> Option<usize> {
    let length: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(length)).ok()
}

/// Parses one whole record; `None` when it is torn or damaged.
pub(super) fn parse(bytes: &[u8]) -> Option<(AgentEvent, usize)> {
    let length = record_length(bytes)?;
    let body = bytes.get(HEADER..HEADER.checked_add(length)?)?;
    if bytes.get(4..HEADER)? != checksum(body) {
        return None;
    }
    Some((AgentEvent::decode(body).ok()?, HEADER + length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: u64) -> AgentEvent {
        AgentEvent {
            number,
            at_ms: 7,
            kind: Some(Kind::Note(format!("note {number}"))),
        }
    }

    fn written(path: &Path, count: u64) -> Vec<u8> {
        let mut transcript = Transcript::open(path).unwrap();
        for number in 1..=count {
            transcript.append(path, &event(number)).unwrap();
        }
        transcript.sync(path).unwrap();
        std::fs::read(path).unwrap()
    }

    #[test]
    fn a_transcript_cut_at_any_byte_loads_a_prefix_and_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.events");
        let whole = written(&path, 4);
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let transcript = Transcript::open(&path).unwrap();
            let numbers: Vec<u64> = read(&path, 0, usize::MAX)
                .unwrap()
                .iter()
                .map(|event| event.number)
                .collect();
            assert_eq!(numbers, (1..=transcript.last).collect::<Vec<_>>());
            assert!(transcript.last < 4);
        }
    }

    #[test]
    fn a_flipped_bit_ends_the_transcript_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.events");
        let mut whole = written(&path, 3);
        let middle = whole.len() / 2;
        whole[middle] ^= 1;
        std::fs::write(&path, &whole).unwrap();
        assert!(read(&path, 0, usize::MAX).unwrap().len() < 3);
    }

    #[test]
    fn an_event_too_large_to_be_read_again_hides_none_behind_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.events");
        let mut transcript = Transcript::open(&path).unwrap();
        for (number, length) in [
            (1, 1),
            (2, EVENT_BYTES_MAX + 1),
            (3, EVENT_BYTES_MAX - 64),
            (4, 1),
        ] {
            let large = AgentEvent {
                kind: Some(Kind::Note("x".repeat(length))),
                ..event(number)
            };
            transcript.append(&path, &large).unwrap();
        }
        let read = read(&path, 0, usize::MAX).unwrap();
        let numbers: Vec<u64> = read.iter().map(|event| event.number).collect();
        assert_eq!(numbers, [1, 2, 3, 4]);
        assert!(matches!(read[1].kind, Some(Kind::OutputTruncated(_))));
        assert_eq!(Transcript::open(&path).unwrap().last, 4);
    }

    #[test]
    fn reading_continues_where_it_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.events");
        written(&path, 3);
        let mut position = Position::default();
        let mut numbers = Vec::new();
        loop {
            let events = read_on(&path, &mut position, 1).unwrap();
            if events.is_empty() {
                break;
            }
            numbers.extend(events.iter().map(|event| event.number));
        }
        assert_eq!(numbers, [1, 2, 3]);
    }
}
