//! The form of a transcript file: records of length, checksum and an encoded event.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use muster_proto::v1::agent_event::Kind;
use muster_proto::v1::{AgentEvent, OutputTruncated};
use prost::Message as _;
use tracing::{error, warn};

use super::{Error, Position, mend};

/// Length (4 bytes) and checksum (4 bytes) before each event.
pub(super) const HEADER: usize = 8;
/// An event's bytes; a longer length is damage.
pub(super) const EVENT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Begins the note of the first record; the rest of it is whose transcript it is, and on a line of
/// its own which worker said it.
const HEADING: &str = "muster transcript 3: ";
/// The same without the worker, as it was written before usage was counted.
const HEADING_WITHOUT_WORKER: &str = "muster transcript 2: ";

/// Whose a transcript is, by its own first record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heading {
    /// Its path below the transcripts' folder.
    pub(crate) of: Option<String>,
    /// The worker that held the lease.
    pub(crate) worker: Option<String>,
}
/// What one read takes from the file.
pub(super) const CHUNK: usize = 256 * 1024;

/// An open transcript that is appended to.
#[derive(Debug)]
pub(super) struct Transcript {
    file: File,
    /// Number of the last event.
    pub(super) last: u64,
    pub(super) bytes: u64,
    pub(super) truncated: bool,
    /// What was so at the last sync.
    synced: (u64, u64, bool),
    /// The file holds more than that, which was taken back.
    ragged: bool,
    /// What was read of it before may not be in it any more.
    pub(super) rewritten: bool,
    #[cfg(test)]
    pub(super) refused_syncs: u32,
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
    /// Opens or makes a transcript. A torn end, which was never acknowledged, is cut off.
    ///
    /// Other damage is a disk's: the file is set aside as it is, under the same name with
    /// `.damaged-<n>` behind it, and its sound records stay.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(io("make", folder))?;
        }
        let mut position = end(path)?;
        let mut rewritten = false;
        let is_longer = |found: std::fs::Metadata| found.len() > position.offset;
        if std::fs::metadata(path).is_ok_and(is_longer) && mend::look(path)?.is_damaged() {
            let aside = mend::beside(path);
            error!(
                transcript = %path.display(), offset = position.offset, aside = %aside.display(),
                "a transcript is damaged; it is set aside and its sound events stay"
            );
            mend::mend(path, &aside)?;
            rewritten = true;
            position = end(path)?;
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(io("open", path))?;
        file.set_len(position.offset).map_err(io("cut", path))?;
        Ok(Self {
            file,
            last: position.number,
            bytes: position.offset,
            truncated: false,
            synced: (position.number, position.offset, false),
            ragged: false,
            rewritten,
            #[cfg(test)]
            refused_syncs: 0,
        })
    }

    /// Takes back what was not synced. After a refused sync nobody knows what reached the disk, and
    /// a later one that succeeds proves nothing: it has to be written anew.
    pub(super) fn take_back(&mut self, path: &Path) {
        (self.last, self.bytes, self.truncated) = self.synced;
        self.ragged = true;
        self.rewritten = true;
        self.trim_if_possible(path);
    }

    fn trim_if_possible(&mut self, path: &Path) {
        if let Err(error) = self.trim(path) {
            warn!(error = %error, "cannot cut a transcript yet; it is cut before the next write");
        }
    }

    fn trim(&mut self, path: &Path) -> Result<(), Error> {
        if self.ragged {
            self.file.set_len(self.bytes).map_err(io("cut", path))?;
            self.ragged = false;
        }
        Ok(())
    }

    /// Tells whether the file alone says what is in this transcript.
    pub(super) fn is_tidy(&self) -> bool {
        !self.ragged && !self.rewritten
    }

    /// Appends an event; one too large for any reader leaves a note of its size instead. Tells whether
    /// it is there itself.
    pub(super) fn append(&mut self, path: &Path, event: &AgentEvent) -> Result<bool, Error> {
        self.trim(path)?;
        let mut body = event.encode_to_vec();
        let fits = body.len() <= EVENT_BYTES_MAX - HEADER;
        if !fits {
            let bytes = body.len() as u64;
            let note = AgentEvent {
                kind: Some(Kind::OutputTruncated(OutputTruncated { bytes })),
                ..*event
            };
            body = note.encode_to_vec();
        }
        let mut record = Vec::with_capacity(HEADER + body.len());
        encode(&mut record, &body);
        if let Err(error) = self.file.write_all(&record) {
            // Half a record would hide those behind it.
            self.ragged = true;
            self.trim_if_possible(path);
            return Err(io("append to", path)(error));
        }
        self.bytes += record.len() as u64;
        self.last = event.number;
        Ok(fits)
    }

    /// Begins an empty file with a record that says whose it is.
    pub(super) fn begin(&mut self, path: &Path, of: &Path, worker: &str) -> Result<(), Error> {
        let event = AgentEvent {
            number: 0,
            at_ms: 0,
            kind: Some(Kind::Note(format!("{HEADING}{}\n{worker}", of.display()))),
        };
        self.append(path, &event).map(|_| ())
    }

    pub(super) fn sync(&mut self, path: &Path) -> Result<(), Error> {
        #[cfg(test)]
        if self.refused_syncs > 0 {
            self.refused_syncs -= 1;
            return Err(io("sync", path)(std::io::Error::other("as a test asked")));
        }
        self.file.sync_data().map_err(io("sync", path))?;
        self.synced = (self.last, self.bytes, self.truncated);
        Ok(())
    }
}

/// What stands at a place of the file.
enum Found {
    Sound(AgentEvent, u64),
    /// A record of this size that is not what was written.
    Damaged(u64),
    /// The file ends before a record does.
    Nothing,
}

fn record_at(file: &File, offset: u64) -> std::io::Result<Found> {
    let fill = |buffer: &mut [u8], at| match file.read_exact_at(buffer, at) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    };
    let mut record = vec![0; HEADER];
    if !fill(&mut record, offset)? {
        return Ok(Found::Nothing);
    }
    let length = record_length(&record).unwrap_or(usize::MAX);
    if length > EVENT_BYTES_MAX {
        return Ok(Found::Damaged(HEADER as u64));
    }
    record.resize(HEADER + length, 0);
    if !fill(&mut record, offset)? {
        return Ok(Found::Nothing);
    }
    Ok(match parse(&record) {
        Some((event, size)) => Found::Sound(event, size as u64),
        None => Found::Damaged(record.len() as u64),
    })
}

/// Finds the record behind a damaged one; `None` unless a sound one of a later number stands right
/// where the damaged one says that it ends.
fn behind_damage(file: &File, position: &Position) -> std::io::Result<Option<(AgentEvent, u64)>> {
    let Found::Damaged(size) = record_at(file, position.offset)? else {
        return Ok(None);
    };
    let next = position.offset + size;
    Ok(match record_at(file, next)? {
        // The damaged one had a number of its own.
        // That of the first record is none that an event has.
        Found::Sound(event, size)
            if event.number > position.number + u64::from(position.offset > 0) =>
        {
            Some((event, next + size))
        }
        Found::Sound(..) | Found::Damaged(_) | Found::Nothing => None,
    })
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

/// Reads on from a place, about so many bytes. Behind a damaged record it goes on, with a note.
pub(super) fn read_on(
    path: &Path,
    position: &mut Position,
    bytes: usize,
) -> Result<Vec<AgentEvent>, Error> {
    let mut events = read_sound(path, position, bytes)?;
    if !events.is_empty() {
        return Ok(events);
    }
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(events),
        Err(source) => return Err(io("open", path)(source)),
    };
    if let Some((event, end)) = behind_damage(&file, position).map_err(io("read", path))? {
        // What is lost is shown as such, and hides nothing behind it.
        let number = event.number - 1;
        if number > position.number {
            events.push(super::missing(number, event.at_ms));
        }
        *position = Position {
            offset: end,
            number: event.number,
        };
        events.push(event);
    }
    Ok(events)
}

/// Finds a record from which on about so many bytes are left. What stands before it is neither read nor
/// checked; where it says nothing that could be true this is the beginning.
pub(super) fn near_end(path: &Path, bytes: u64) -> Result<Position, Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Position::default()),
        Err(source) => return Err(io("open", path)(source)),
    };
    let size = file.metadata().map_err(io("read", path))?.len();
    let mut file = std::io::BufReader::with_capacity(CHUNK, file);
    let mut offset = 0;
    while size.saturating_sub(offset) > bytes {
        let mut header = [0; HEADER];
        file.read_exact(&mut header).map_err(io("read", path))?;
        let length = record_length(&header).unwrap_or(usize::MAX);
        let next = offset.saturating_add((HEADER as u64).saturating_add(length as u64));
        let (true, Ok(length)) = (next <= size, i64::try_from(length)) else {
            return Ok(Position::default());
        };
        file.seek_relative(length).map_err(io("read", path))?;
        offset = next;
    }
    // Whatever number is there is larger.
    Ok(Position { offset, number: 0 })
}

fn read_sound(
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
    if position.offset == 0
        && let Some((_, size)) = heading(rest)
    {
        position.offset = size as u64;
        rest = rest.get(size..).unwrap_or_default();
        if rest.is_empty() {
            return read_sound(path, position, bytes);
        }
    }
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

/// Finds where the sound beginning of a transcript ends.
fn end(path: &Path) -> Result<Position, Error> {
    let mut position = Position::default();
    while !read_sound(path, &mut position, CHUNK)?.is_empty() {}
    Ok(position)
}

fn read_up_to(file: &mut File, buffer: &mut Vec<u8>, bytes: usize) -> std::io::Result<()> {
    file.take(bytes as u64).read_to_end(buffer).map(|_| ())
}

pub(super) fn record_length(bytes: &[u8]) -> Option<usize> {
    let length: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(length)).ok()
}

/// Parses the record that says whose transcript it is; `None` if the file begins with another.
pub(super) fn heading(bytes: &[u8]) -> Option<(Heading, usize)> {
    let (event, size) = parse(bytes).filter(|(event, _)| event.number == 0)?;
    let mut heading = Heading::default();
    if let Some(Kind::Note(note)) = event.kind {
        if let Some((of, worker)) = note
            .strip_prefix(HEADING)
            .and_then(|rest| rest.split_once('\n'))
        {
            heading.of = Some(of.to_owned());
            heading.worker = Some(worker.to_owned());
        } else {
            let of = note.strip_prefix(HEADING_WITHOUT_WORKER);
            heading.of = of.map(str::to_owned);
        }
    }
    Some((heading, size))
}

/// Reads the record that says whose transcript a file is; one that says nothing gives nothing.
pub(super) fn read_heading(path: &Path) -> Result<Heading, Error> {
    let file = File::open(path).map_err(io("open", path))?;
    let found = match record_at(&file, 0).map_err(io("read", path))? {
        Found::Sound(event, _) if event.number == 0 => {
            let mut record = Vec::new();
            encode(&mut record, &event.encode_to_vec());
            heading(&record)
        }
        Found::Sound(..) | Found::Damaged(_) | Found::Nothing => None,
    };
    Ok(found.map(|(heading, _)| heading).unwrap_or_default())
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
    use std::path::PathBuf;

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
    fn what_a_refused_sync_was_for_is_not_believed_and_is_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.events");
        let mut transcript = Transcript::open(&path).unwrap();
        transcript.append(&path, &event(1)).unwrap();
        transcript.sync(&path).unwrap();
        transcript.append(&path, &event(2)).unwrap();
        transcript.refused_syncs = 1;
        transcript.sync(&path).unwrap_err();
        transcript.take_back(&path);
        assert_eq!(transcript.last, 1);
        assert_eq!(Transcript::open(&path).unwrap().last, 1);
        transcript.append(&path, &event(2)).unwrap();
        transcript.sync(&path).unwrap();
        assert_eq!(read(&path, 0, usize::MAX).unwrap().len(), 2);
    }

    fn numbers(path: &Path) -> Vec<u64> {
        let events = read(path, 0, usize::MAX).unwrap();
        events.iter().map(|event| event.number).collect()
    }

    fn is_note(event: &AgentEvent) -> bool {
        matches!(event.kind, Some(Kind::OutputTruncated(_)))
    }

    fn aside(path: &Path) -> PathBuf {
        PathBuf::from(format!("{}.damaged-1", path.display()))
    }

    /// Whatever byte is flipped: nothing is invented, nothing sound before it is hidden, nothing is
    /// deleted, and what is appended next is read.
    #[test]
    fn a_flipped_byte_anywhere_costs_no_more_than_what_it_hit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.events");
        let whole = written(&path, 4);
        let size = whole.len() / 4;
        for place in 0..whole.len() {
            let mut spoiled = whole.clone();
            spoiled[place] ^= 0x10;
            std::fs::write(&path, &spoiled).unwrap();
            let hit = place / size;
            for found in read(&path, 0, usize::MAX).unwrap() {
                assert!(
                    found == event(found.number) || is_note(&found),
                    "at {place}: {found:?}"
                );
            }
            let mut transcript = Transcript::open(&path).unwrap();
            let kept = std::fs::read(&path).unwrap();
            let all_there =
                kept == spoiled || std::fs::read(aside(&path)).is_ok_and(|aside| aside == spoiled);
            // The last record with a length that reaches behind the end is a torn one.
            let looks_torn = place % size < 4 && hit == 3 && kept == whole[..3 * size];
            assert!(all_there || looks_torn, "at {place}");
            transcript.append(&path, &event(9)).unwrap();
            let numbers = numbers(&path);
            let before: Vec<u64> = (1..=hit as u64).collect();
            assert!(numbers.starts_with(&before), "at {place}: {numbers:?}");
            assert_eq!(numbers.last(), Some(&9), "at {place}");
            if place % size >= 4 && hit < 3 {
                assert_eq!(numbers, [1, 2, 3, 4, 9], "at {place}");
            }
            drop(std::fs::remove_file(aside(&path)));
        }
    }

    #[test]
    fn a_hole_of_zeros_at_the_end_is_a_torn_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.events");
        let mut whole = written(&path, 2);
        let length = whole.len();
        whole.extend_from_slice(&[0; 700]);
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(Transcript::open(&path).unwrap().bytes, length as u64);
        assert!(!aside(&path).exists());
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

    #[test]
    fn a_first_record_says_whose_it_is_and_readers_do_not_see_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.events");
        let of = Path::new("r/tasks/t/a.events");
        let mut transcript = Transcript::open(&path).unwrap();
        transcript.begin(&path, of, "builder-1").unwrap();
        transcript.sync(&path).unwrap();
        assert_eq!(numbers(&path), [0; 0]);
        let heading = read_heading(&path).unwrap();
        assert_eq!(heading.of.as_deref(), of.to_str());
        assert_eq!(heading.worker.as_deref(), Some("builder-1"));
        let mut transcript = Transcript::open(&path).unwrap();
        assert_eq!(transcript.last, 0);
        for number in 1..=2 {
            transcript.append(&path, &event(number)).unwrap();
        }
        let mut position = Position::default();
        for wanted in 1..=2 {
            let read = read_on(&path, &mut position, 1).unwrap();
            assert_eq!(read, [event(wanted)]);
        }
        let whole = std::fs::read(&path).unwrap();
        let named = mend::look(&path).unwrap();
        assert_eq!(named.of.as_deref(), of.to_str());
        assert_eq!((named.events, named.is_damaged()), (2, false));
        // Whatever hits it, the events are what they were.
        let (_, size) = super::heading(&whole).unwrap();
        for place in 0..size {
            let mut spoiled = whole.clone();
            spoiled[place] ^= 0x10;
            std::fs::write(&path, &spoiled).unwrap();
            assert_eq!(Transcript::open(&path).unwrap().last, 2, "at {place}");
            assert_eq!(numbers(&path), [1, 2], "at {place}");
            std::fs::remove_file(aside(&path)).unwrap();
        }
    }
}
