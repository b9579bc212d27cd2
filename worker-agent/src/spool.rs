//! What happens in a lease, numbered and on disk until the coordinator has it.

use std::path::{Path, PathBuf};

use muster_proto::v1::{
    Activity, AgentEvent, Capture, Output, OutputTruncated, activity, agent_event,
};
use prost::Message as _;

use crate::clock;
use crate::frames::{Error, FrameFile, FrameReader};

/// Bytes of output kept for each lease; what comes after is counted and dropped.
pub const OUTPUT_BYTES_MAX: u64 = 64 << 20;
/// Bytes kept beyond that for phases and notes, so that output can never crowd them out.
const RESERVE_BYTES: u64 = 8 << 20;
/// Events of what was consumed; a call of a model takes seconds, so no honest lease comes near.
const USAGES_MAX: u64 = 100_000;

/// How an activity is accounted for.
enum Weight {
    /// There may be any number of it.
    Chatter,
    /// There are few, and people need them.
    Milestone,
    /// It is what the ledger counts.
    Usage,
}

fn weight(activity: &Activity) -> Weight {
    use activity::Kind;
    match activity.kind {
        Some(Kind::Usage(_)) => Weight::Usage,
        Some(
            Kind::SessionOpened(_)
            | Kind::TurnBegan(_)
            | Kind::TurnEnded(_)
            | Kind::Retry(_)
            | Kind::Question(_)
            | Kind::QuestionClosed(_)
            | Kind::Error(_)
            | Kind::Structured(_),
        ) => Weight::Milestone,
        _ => Weight::Chatter,
    }
}

/// Up to where an agent's own output has been taken into the spool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Which launch of the lease.
    pub launch: u32,
    /// Position in its output, as the supervisor counts.
    pub position: u64,
}

impl Taken {
    /// Gives up to where the output of a launch was taken.
    pub fn of(self, launch: u32) -> u64 {
        match launch.cmp(&self.launch) {
            // One after the other, each to its end.
            std::cmp::Ordering::Less => u64::MAX,
            std::cmp::Ordering::Equal => self.position,
            std::cmp::Ordering::Greater => 0,
        }
    }
}

/// The writing end of a lease's events.
#[derive(Debug)]
pub struct Spool {
    file: FrameFile,
    last: u64,
    /// Of output that is told as it is.
    taken: Taken,
    /// Of raw lines: they are gathered first, so they may be behind.
    captured: Taken,
    output_bytes: u64,
    output_bytes_max: u64,
    reserve_bytes: u64,
    dropped: u64,
    truncation_told: bool,
    usages: u64,
}

impl Spool {
    /// Opens or creates a spool; one that was cut goes on after its last sound event.
    pub fn open(path: &Path, output_bytes_max: u64) -> Result<Self, Error> {
        let mut last = 0;
        let (mut taken, mut captured) = (Taken::default(), Taken::default());
        let (mut output_bytes, mut reserve_bytes, mut truncation_told) = (0, 0, false);
        let mut usages = 0;
        let file = FrameFile::open(path, |record| {
            let bytes = record.len() as u64;
            let Some((event, at)) = decode(&record) else {
                return;
            };
            last = event.number;
            match event.kind {
                Some(agent_event::Kind::Output(output)) => {
                    taken = at;
                    output_bytes += output.data.len() as u64;
                }
                Some(agent_event::Kind::OutputTruncated(_)) => truncation_told = true,
                Some(agent_event::Kind::Capture(capture)) => {
                    captured = at;
                    output_bytes += capture.deflated.len() as u64;
                }
                Some(agent_event::Kind::Activity(activity)) => match weight(&activity) {
                    Weight::Chatter => output_bytes += activity.encoded_len() as u64,
                    Weight::Milestone => reserve_bytes += bytes,
                    Weight::Usage => usages += 1,
                },
                _ => reserve_bytes += bytes,
            }
        })?;
        Ok(Self {
            file,
            last,
            taken,
            captured,
            output_bytes,
            output_bytes_max,
            reserve_bytes,
            dropped: 0,
            truncation_told,
            usages,
        })
    }

    /// Adds output that ends at `taken`; beyond the bound it is counted and dropped.
    pub fn output(&mut self, mut output: Output, taken: Taken) -> Result<(), Error> {
        let room = self.output_bytes_max.saturating_sub(self.output_bytes);
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        self.taken = taken;
        if output.data.len() > room {
            self.dropped += (output.data.len() - room) as u64;
            output.data.truncate(room);
        }
        if !output.data.is_empty() {
            self.output_bytes += output.data.len() as u64;
            self.push(agent_event::Kind::Output(output))?;
        }
        // The first drop is told at once; the rest as one sum when the launch has ended.
        if self.dropped > 0 && !self.truncation_told {
            self.tell_truncation()?;
        }
        Ok(())
    }

    /// Adds what a model agent did. What people need to know, and what was consumed, comes from a
    /// reserve; the rest counts as output.
    pub fn activity(&mut self, activity: Activity) -> Result<(), Error> {
        let bytes = activity.encoded_len() as u64;
        match weight(&activity) {
            Weight::Milestone => return self.lifecycle(agent_event::Kind::Activity(activity)),
            Weight::Usage if self.usages >= USAGES_MAX => return Ok(()),
            Weight::Usage => self.usages += 1,
            Weight::Chatter => {
                if !self.has_room(bytes)? {
                    return Ok(());
                }
            }
        }
        self.push(agent_event::Kind::Activity(activity))?;
        Ok(())
    }

    /// Adds raw lines that end at `taken`.
    pub fn capture(&mut self, capture: Capture, taken: Taken) -> Result<(), Error> {
        self.captured = taken;
        if self.has_room(capture.deflated.len() as u64)? {
            self.push(agent_event::Kind::Capture(capture))?;
        }
        Ok(())
    }

    /// How many events of what was consumed there are.
    pub fn usages(&self) -> u64 {
        self.usages
    }

    fn has_room(&mut self, bytes: u64) -> Result<bool, Error> {
        if self.output_bytes + bytes <= self.output_bytes_max {
            self.output_bytes += bytes;
            return Ok(true);
        }
        self.dropped += bytes;
        if !self.truncation_told {
            self.tell_truncation()?;
        }
        Ok(false)
    }

    /// Counts output that was dropped before it came here, and tells the sum.
    pub fn end_of_output(&mut self, dropped_before: u64) -> Result<(), Error> {
        self.dropped += dropped_before;
        if self.dropped > 0 {
            self.tell_truncation()?;
        }
        Ok(())
    }

    /// Adds a phase or a note; beyond the reserve, which no honest lease reaches, it is dropped.
    pub fn lifecycle(&mut self, kind: agent_event::Kind) -> Result<(), Error> {
        if self.reserve_bytes >= RESERVE_BYTES {
            return Ok(());
        }
        self.reserve_bytes += self.push(kind)?;
        Ok(())
    }

    /// Writes and syncs; returns the number of the last event, which may now be sent.
    pub fn sync(&mut self) -> Result<u64, Error> {
        self.file.write()?;
        self.file.sync()?;
        Ok(self.last)
    }

    /// The number of the last event.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Up to where output was taken that is told as it is.
    pub fn taken(&self) -> Taken {
        self.taken
    }

    /// Up to where output was taken as raw lines of a conversation.
    pub fn captured(&self) -> Taken {
        self.captured
    }

    fn tell_truncation(&mut self) -> Result<(), Error> {
        let bytes = std::mem::take(&mut self.dropped);
        self.truncation_told = true;
        self.push(agent_event::Kind::OutputTruncated(OutputTruncated {
            bytes,
        }))?;
        Ok(())
    }

    fn push(&mut self, kind: agent_event::Kind) -> Result<u64, Error> {
        let taken = match kind {
            agent_event::Kind::Capture(_) => self.captured,
            _ => self.taken,
        };
        let event = AgentEvent {
            number: self.last + 1,
            at_ms: clock::wall_millis(),
            kind: Some(kind),
        };
        let mut record = Vec::with_capacity(12 + event.encoded_len());
        record.extend_from_slice(&taken.launch.to_le_bytes());
        record.extend_from_slice(&taken.position.to_le_bytes());
        // A vector grows as needed, so this cannot fail.
        let _ = event.encode(&mut record);
        self.file.push(&record)?;
        self.last += 1;
        Ok(record.len() as u64)
    }
}

pub(crate) fn decode(record: &[u8]) -> Option<(AgentEvent, Taken)> {
    let (launch, rest) = record.split_first_chunk::<4>()?;
    let (position, event) = rest.split_first_chunk::<8>()?;
    let taken = Taken {
        launch: u32::from_le_bytes(*launch),
        position: u64::from_le_bytes(*position),
    };
    Some((AgentEvent::decode(event).ok()?, taken))
}

/// The sending end of a lease's events; reads only what was synced.
#[derive(Debug)]
pub struct SpoolReader {
    path: PathBuf,
    /// End of batches that were read and are not acknowledged: last number, offset behind it.
    read: std::collections::VecDeque<(u64, u64)>,
    acknowledged: (u64, u64),
}

impl SpoolReader {
    /// Reads the spool at `path` from its beginning.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            read: std::collections::VecDeque::new(),
            acknowledged: (0, 0),
        }
    }

    /// Returns the events after `after` and up to `last`, as many as fit into `bytes_max`, but at
    /// least one if there is one. What was acknowledged is read again when it is asked for: it stays
    /// on disk until its lease is dropped.
    pub fn read(
        &mut self,
        after: u64,
        last: u64,
        bytes_max: usize,
    ) -> Result<Vec<AgentEvent>, Error> {
        while self.read.back().is_some_and(|(number, _)| *number > after) {
            self.read.pop_back();
        }
        let beginning = (0, 0);
        let before = [self.read.back(), Some(&self.acknowledged)];
        let before = before.into_iter().flatten().find(|(to, _)| *to <= after);
        let (_, offset) = *before.unwrap_or(&beginning);
        let mut reader = FrameReader::open(&self.path, offset)?;
        let mut events = Vec::new();
        let mut bytes = 0;
        let mut end = offset;
        while let Some(record) = reader.next_record()? {
            let Some((event, _)) = decode(&record) else {
                break;
            };
            bytes += event.encoded_len();
            if event.number > last || (!events.is_empty() && bytes > bytes_max) {
                break;
            }
            end = reader.offset();
            if event.number > after {
                events.push(event);
            }
        }
        if let Some(event) = events.last() {
            self.read.push_back((event.number, end));
        }
        Ok(events)
    }

    /// Notes that the coordinator has everything up to `number`.
    pub fn acknowledged(&mut self, number: u64) {
        while let Some(batch) = self.read.front()
            && batch.0 <= number
        {
            self.acknowledged = *batch;
            self.read.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::v1::Stream;

    use super::*;

    fn output(text: &str) -> Output {
        Output {
            stream: Stream::Stdout.into(),
            data: text.as_bytes().to_vec(),
        }
    }

    fn at(position: u64) -> Taken {
        Taken {
            launch: 1,
            position,
        }
    }

    fn note(text: &str) -> agent_event::Kind {
        agent_event::Kind::Note(text.into())
    }

    fn kinds(path: &Path) -> Vec<agent_event::Kind> {
        let events = SpoolReader::new(path)
            .read(0, u64::MAX, usize::MAX)
            .unwrap();
        events.into_iter().filter_map(|event| event.kind).collect()
    }

    #[test]
    fn output_beyond_the_bound_becomes_one_number_and_notes_still_fit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let mut spool = Spool::open(&path, 5).unwrap();
        spool.output(output("abcdefg"), at(7)).unwrap();
        spool.output(output("xyz"), at(10)).unwrap();
        spool.lifecycle(note("n")).unwrap();
        spool.end_of_output(4).unwrap();
        assert_eq!(spool.sync().unwrap(), 4);
        let truncated = |bytes| agent_event::Kind::OutputTruncated(OutputTruncated { bytes });
        assert_eq!(
            kinds(&path),
            [
                agent_event::Kind::Output(output("abcde")),
                truncated(2),
                note("n"),
                truncated(7),
            ]
        );
    }

    #[test]
    fn a_spool_cut_at_any_byte_goes_on_after_its_last_sound_event() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let mut spool = Spool::open(&path, 100).unwrap();
        for position in 1..=4 {
            spool.output(output("ab"), at(position)).unwrap();
        }
        spool.sync().unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let mut spool = Spool::open(&path, 100).unwrap();
            let kept = spool.last();
            assert_eq!(spool.taken().position, kept);
            spool.lifecycle(note("after")).unwrap();
            assert_eq!(spool.sync().unwrap(), kept + 1);
            assert_eq!(kinds(&path).len() as u64, kept + 1);
        }
    }

    #[test]
    fn raw_lines_that_are_behind_other_output_do_not_take_it_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let mut spool = Spool::open(&path, 100).unwrap();
        spool.output(output("complaint"), at(90)).unwrap();
        spool.capture(Capture::default(), at(50)).unwrap();
        spool.lifecycle(note("n")).unwrap();
        spool.sync().unwrap();
        let spool = Spool::open(&path, 100).unwrap();
        assert_eq!((spool.taken(), spool.captured()), (at(90), at(50)));
        let of = |launch| (spool.taken().of(launch), spool.captured().of(launch));
        assert_eq!(of(0), (u64::MAX, u64::MAX));
        assert_eq!(of(1), (90, 50));
        assert_eq!(of(2), (0, 0));
    }

    #[test]
    fn a_reader_goes_back_to_what_was_not_acknowledged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let mut spool = Spool::open(&path, 1000).unwrap();
        for position in 1..=5 {
            spool.output(output("0123456789"), at(position)).unwrap();
        }
        spool.sync().unwrap();
        let mut reader = SpoolReader::new(&path);
        let numbers = |events: Vec<AgentEvent>| -> Vec<u64> {
            events.into_iter().map(|event| event.number).collect()
        };
        assert_eq!(numbers(reader.read(0, 5, 1).unwrap()), [1]);
        assert_eq!(numbers(reader.read(1, 3, 1000).unwrap()), [2, 3]);
        reader.acknowledged(1);
        assert_eq!(numbers(reader.read(1, 5, 1000).unwrap()), [2, 3, 4, 5]);
        reader.acknowledged(3);
        assert_eq!(numbers(reader.read(4, 5, 1000).unwrap()), [5]);
        assert_eq!(numbers(reader.read(5, 5, 1000).unwrap()), [0; 0]);
        // The coordinator's home was put back from a backup.
        assert_eq!(numbers(reader.read(0, 5, 1000).unwrap()), [1, 2, 3, 4, 5]);
    }
}
