//! The spool of an agent's output: append-only, readable up to any byte at which it was cut.
//!
//! A record is `length u32 | checksum u32 | kind u8 | boottime u64 | wall u64 | payload`, numbers
//! in little-endian order. The checksum (CRC-32) covers everything but itself, so a torn or
//! zero-filled tail is told from a record. Nothing is synced before the end: what a crash of the
//! *host* cuts off is dropped, the death of any process loses nothing.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::report::OutputBytes;
use super::{Error, files};
use crate::clock::{self, Boottime};

/// Largest payload of one record; the capacity of a pipe, so one read is one record.
pub const RECORD_BYTES_MAX: usize = 64 << 10;

const HEADER_BYTES: usize = 4 + 4 + 1 + 8 + 8;
const KIND_STDOUT: u8 = 1;
const KIND_STDERR: u8 = 2;
const KIND_TRUNCATED: u8 = 3;

/// Names a stream of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Is what one record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The agent wrote these bytes; they may be cut inside a line or a character.
    Output {
        /// Where it wrote them.
        stream: Stream,
        /// At most [`RECORD_BYTES_MAX`].
        bytes: Vec<u8>,
    },
    /// The agent wrote more, which was dropped; always the last record.
    Truncated {
        /// How many bytes.
        dropped: u64,
    },
}

/// Is one record with the moment it was read from the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// For measuring.
    pub at: Boottime,
    /// For showing: milliseconds since 1970.
    pub wall_ms: u64,
    /// What happened.
    pub content: Content,
}

/// Writes the spool of one launch.
#[derive(Debug)]
pub(crate) struct SpoolWriter {
    file: File,
    path: PathBuf,
    /// Length of the file up to the last whole record.
    length: u64,
    limit: u64,
    count: OutputBytes,
}

impl SpoolWriter {
    /// Creates the spool; fails if there is one already.
    pub(crate) fn create(dir: &Path, limit: u64) -> Result<Self, Error> {
        let path = dir.join(files::OUTPUT);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(Error::file("create", &path))?;
        Ok(Self {
            file,
            path,
            length: 0,
            limit,
            count: OutputBytes::default(),
        })
    }

    pub(super) fn count(&self) -> OutputBytes {
        self.count
    }

    /// Stores bytes of the agent as far as limit and disk allow, and counts the rest as dropped.
    ///
    /// After the first dropped byte nothing more is stored: what is kept is a beginning of what
    /// was written, without holes.
    pub(crate) fn append(&mut self, stream: Stream, bytes: &[u8]) {
        let kind = match stream {
            Stream::Stdout => KIND_STDOUT,
            Stream::Stderr => KIND_STDERR,
        };
        for bytes in bytes.chunks(RECORD_BYTES_MAX) {
            let room = match self.count.dropped {
                0 => usize::try_from(self.limit - self.count.stored).unwrap_or(usize::MAX),
                _ => 0,
            };
            let (kept, dropped) = bytes.split_at(room.min(bytes.len()));
            let stored = kept.is_empty() || self.write(kind, kept).is_ok();
            let kept = kept.len() as u64;
            self.count.dropped += dropped.len() as u64;
            // A full disk must not stop the draining, without which the agent would hang.
            if stored {
                self.count.stored += kept;
            } else {
                self.count.dropped += kept;
            }
        }
    }

    /// Ends the spool with a record of what was dropped, if anything was, and syncs it.
    pub(super) fn finish(&mut self) -> Result<(), Error> {
        if self.count.dropped > 0 {
            self.write(KIND_TRUNCATED, &self.count.dropped.to_le_bytes())
                .map_err(Error::file("end", &self.path))?;
        }
        self.file
            .sync_data()
            .map_err(Error::file("sync", &self.path))
    }

    fn write(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        let record = encode(kind, clock::now(), clock::wall_millis(), payload);
        match self.file.write_all_at(&record, self.length) {
            Ok(()) => {
                self.length += record.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Half a record would hide the ones after it.
                self.file.set_len(self.length)?;
                Err(error)
            }
        }
    }
}

fn encode(kind: u8, at: Boottime, wall_ms: u64, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len())
        .unwrap_or(u32::MAX)
        .to_le_bytes();
    let mut checked = Vec::with_capacity(HEADER_BYTES + payload.len());
    checked.extend_from_slice(&length);
    checked.extend_from_slice(&[0; 4]);
    checked.push(kind);
    checked.extend_from_slice(&at.as_millis().to_le_bytes());
    checked.extend_from_slice(&wall_ms.to_le_bytes());
    checked.extend_from_slice(payload);
    let checksum = crc32(&[&length, &checked[8..]]).to_le_bytes();
    checked[4..8].copy_from_slice(&checksum);
    checked
}

/// Reads a spool from an offset, also while it is being written.
#[derive(Debug)]
pub struct OutputReader {
    file: File,
    path: PathBuf,
    offset: u64,
}

impl OutputReader {
    /// Opens the spool of a supervised folder at an offset that an earlier reader returned, or 0.
    ///
    /// # Errors
    /// Fails if there is no spool: the supervisor has not come that far.
    pub fn open(dir: &Path, offset: u64) -> Result<Self, Error> {
        let path = dir.join(files::OUTPUT);
        let file = File::open(&path).map_err(Error::file("open", &path))?;
        Ok(Self { file, path, offset })
    }

    /// Returns where the next record begins: just behind the last one returned.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the next record; `None` if no whole one is there (yet), and asking again later is
    /// right for as long as the supervisor lives.
    ///
    /// # Errors
    /// [`Error::Damaged`] where the bytes are no record; the offset stays, and so does the error.
    pub fn next_record(&mut self) -> Result<Option<Record>, Error> {
        let mut header = [0; HEADER_BYTES];
        if !self.fill(&mut header, self.offset)? {
            return Ok(None);
        }
        let [l0, l1, l2, l3, c0, c1, c2, c3, kind, times @ ..] = header;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let checksum = u32::from_le_bytes([c0, c1, c2, c3]);
        if length > RECORD_BYTES_MAX {
            return Err(self.damaged());
        }
        let mut payload = vec![0; length];
        if !self.fill(&mut payload, self.offset + HEADER_BYTES as u64)? {
            return Ok(None);
        }
        if crc32(&[&header[..4], &header[8..], &payload]) != checksum {
            return Err(self.damaged());
        }
        let (at, wall) = times.split_at(8);
        let record = Record {
            at: Boottime::from_millis(number(at)),
            wall_ms: number(wall),
            content: match (kind, length) {
                (KIND_STDOUT, _) => Content::Output {
                    stream: Stream::Stdout,
                    bytes: payload,
                },
                (KIND_STDERR, _) => Content::Output {
                    stream: Stream::Stderr,
                    bytes: payload,
                },
                (KIND_TRUNCATED, 8) => Content::Truncated {
                    dropped: number(&payload),
                },
                _ => return Err(self.damaged()),
            },
        };
        self.offset += (HEADER_BYTES + length) as u64;
        Ok(Some(record))
    }

    /// Fills the buffer from a position; `false` if the file ends before.
    fn fill(&self, buffer: &mut [u8], position: u64) -> Result<bool, Error> {
        match self.file.read_exact_at(buffer, position) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(Error::file("read", &self.path)(error)),
        }
    }

    fn damaged(&self) -> Error {
        Error::Damaged {
            path: self.path.clone(),
            offset: self.offset,
        }
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ 0xEDB8_8320
            } else {
                crc >> 1
            };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

fn crc32(parts: &[&[u8]]) -> u32 {
    let bytes = parts.iter().flat_map(|part| part.iter());
    !bytes.fold(!0, |crc: u32, byte| {
        CRC_TABLE[usize::from(crc as u8 ^ byte)] ^ crc >> 8
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(dir: &Path) -> Result<Vec<Content>, Error> {
        let mut reader = OutputReader::open(dir, 0)?;
        let mut contents = Vec::new();
        while let Some(record) = reader.next_record()? {
            contents.push(record.content);
        }
        Ok(contents)
    }

    fn output(stream: Stream, bytes: &[u8]) -> Content {
        Content::Output {
            stream,
            bytes: bytes.to_vec(),
        }
    }

    #[test]
    fn the_checksum_is_the_common_one() {
        assert_eq!(crc32(&[b"1234", b"56789"]), 0xCBF4_3926);
    }

    #[test]
    fn a_spool_cut_at_any_byte_loads_a_prefix() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = SpoolWriter::create(dir.path(), 12).unwrap();
        spool.append(Stream::Stdout, b"hello");
        spool.append(Stream::Stderr, b"\xff\xfe");
        spool.append(Stream::Stdout, b"0123456789");
        spool.finish().unwrap();
        let whole = contents(dir.path()).unwrap();
        assert_eq!(
            whole,
            [
                output(Stream::Stdout, b"hello"),
                output(Stream::Stderr, b"\xff\xfe"),
                output(Stream::Stdout, b"01234"),
                Content::Truncated { dropped: 5 },
            ]
        );

        let bytes = std::fs::read(dir.path().join(files::OUTPUT)).unwrap();
        let mut seen = 0;
        for cut in 0..bytes.len() {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join(files::OUTPUT), &bytes[..cut]).unwrap();
            let prefix = contents(dir.path()).unwrap();
            assert!(
                whole.starts_with(&prefix) && prefix.len() < whole.len(),
                "cut at {cut}"
            );
            assert!(prefix.len() >= seen, "cut at {cut}");
            seen = prefix.len();
        }
        assert_eq!(seen, 3);
    }

    #[test]
    fn a_changed_byte_is_noticed_wherever_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = SpoolWriter::create(dir.path(), 100).unwrap();
        spool.append(Stream::Stdout, b"first");
        spool.append(Stream::Stdout, b"second");
        let path = dir.path().join(files::OUTPUT);
        let bytes = std::fs::read(&path).unwrap();
        for i in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[i] ^= 0x40;
            std::fs::write(&path, &bytes).unwrap();
            // A length that grew can look like a record that is still being written.
            let loaded = contents(dir.path());
            assert!(
                loaded.as_ref().map_or(true, |c| c.len() < 2),
                "byte {i}: {loaded:?}"
            );
        }
    }

    #[test]
    fn a_tail_of_zeros_is_damage_and_the_records_before_it_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = SpoolWriter::create(dir.path(), 100).unwrap();
        spool.append(Stream::Stdout, b"first");
        spool.file.set_len(spool.length + 4096).unwrap();
        let mut reader = OutputReader::open(dir.path(), 0).unwrap();
        assert!(reader.next_record().unwrap().is_some());
        let end = reader.offset();
        assert!(
            matches!(reader.next_record(), Err(Error::Damaged { offset, .. }) if offset == end)
        );
    }

    #[test]
    fn a_reader_continues_where_another_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = SpoolWriter::create(dir.path(), 100).unwrap();
        spool.append(Stream::Stdout, b"first");
        let mut reader = OutputReader::open(dir.path(), 0).unwrap();
        reader.next_record().unwrap().unwrap();
        assert_eq!(reader.next_record().unwrap(), None);
        spool.append(Stream::Stderr, b"second");
        let mut later = OutputReader::open(dir.path(), reader.offset()).unwrap();
        let record = later.next_record().unwrap().unwrap();
        assert_eq!(record.content, output(Stream::Stderr, b"second"));
        assert_eq!(reader.next_record().unwrap(), Some(record));
    }

    #[test]
    fn nothing_is_stored_after_the_first_dropped_byte() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = SpoolWriter::create(dir.path(), 0).unwrap();
        spool.append(Stream::Stdout, b"a");
        spool.limit = 100;
        spool.append(Stream::Stdout, b"b");
        assert_eq!(
            spool.count(),
            OutputBytes {
                stored: 0,
                dropped: 2
            }
        );
    }
}
