//! Records in append-only files: a length, a checksum, the bytes.
//!
//! A file that was cut at any byte loads as the records before the cut. Of one that a disk has
//! damaged, what was hit is missing; the file as it was is kept beside it.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes of length and checksum before each record.
const HEADER_BYTES: usize = 8;
/// Longest record: a report or an event is far below; a longer length is damage.
pub const RECORD_BYTES_MAX: usize = 1 << 20;

/// What is hashed at most to tell a torn end from a damaged length: a fraction of a second.
const SEARCH_BYTES_MAX: usize = 128 << 20;

/// An append-only file of records, readable by its owner alone.
///
/// A disk that refused a sync may have thrown away what was to be written and take the next sync
/// all the same, as PostgreSQL found in 2018. So after a refused sync what it was for is cut off,
/// and written and synced once more.
#[derive(Debug)]
pub struct FrameFile {
    file: File,
    path: PathBuf,
    /// Pushed, not written.
    pending: Vec<u8>,
    /// Written, not synced.
    unsynced: Vec<u8>,
    /// End of the last record that was written.
    bytes: u64,
    /// Something lies behind that end which must go before anything is written.
    ragged: bool,
    #[cfg(test)]
    pub faults: Faults,
}

/// How many calls a test lets fail.
#[cfg(test)]
#[derive(Debug, Default)]
pub struct Faults {
    pub writes: u32,
    pub cuts: u32,
    pub syncs: u32,
}

#[cfg(test)]
impl Faults {
    fn hit(left: &mut u32) -> io::Result<()> {
        match left.checked_sub(1) {
            Some(fewer) => {
                *left = fewer;
                Err(io::Error::from(io::ErrorKind::StorageFull))
            }
            None => Ok(()),
        }
    }
}

impl FrameFile {
    /// Opens or creates the file, hands every sound record to `each`, and cuts off what follows
    /// the last sound one. If that is more than a write leaves that was cut off, the file is first
    /// copied to the same name with `.damaged-<n>` behind it.
    pub fn open(path: &Path, mut each: impl FnMut(Vec<u8>)) -> Result<Self, Error> {
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .map_err(Error::file("open", path))?;
        let mut reader = FrameReader::of(&file, path)?;
        while let Some(record) = reader.next_record()? {
            each(record);
        }
        let bytes = reader.offset();
        if !is_torn(&file, bytes).map_err(Error::file("read", path))? {
            let aside = set_aside(path)?;
            tracing::warn!(
                file = %path.display(), offset = bytes, aside = %aside.display(),
                "a file is damaged and was set aside; it goes on before the damage"
            );
        }
        file.set_len(bytes)
            .map_err(Error::file("cut the damaged end of", path))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            pending: Vec::new(),
            unsynced: Vec::new(),
            bytes,
            ragged: false,
            #[cfg(test)]
            faults: Faults::default(),
        })
    }

    /// Adds a record; it is written by the next [`FrameFile::write`].
    ///
    /// Records above [`RECORD_BYTES_MAX`] are refused, since no reader would take them.
    pub fn push(&mut self, record: &[u8]) -> Result<(), Error> {
        if record.len() > RECORD_BYTES_MAX {
            return Err(Error::TooLong {
                path: self.path.clone(),
                bytes: record.len(),
            });
        }
        encode(&mut self.pending, record);
        Ok(())
    }

    /// Writes what was pushed. After an error it is still pending, and of it nothing is in the
    /// file by the next write.
    pub fn write(&mut self) -> Result<(), Error> {
        self.trim()?;
        if let Err(source) = self.write_pending() {
            // A half-written record would hide everything written after it.
            self.ragged = true;
            let error = Error::file("write", &self.path)(source);
            self.trim_if_possible();
            return Err(error);
        }
        self.bytes += self.pending.len() as u64;
        self.unsynced.append(&mut self.pending);
        Ok(())
    }

    /// Makes what was written stay after a crash of the host. After an error what was written
    /// since the last sync is pending again.
    pub fn sync(&mut self) -> Result<(), Error> {
        if let Err(source) = self.sync_file() {
            self.bytes -= self.unsynced.len() as u64;
            self.unsynced.append(&mut self.pending);
            std::mem::swap(&mut self.pending, &mut self.unsynced);
            self.ragged = true;
            let error = Error::file("sync", &self.path)(source);
            self.trim_if_possible();
            return Err(error);
        }
        self.unsynced.clear();
        Ok(())
    }

    /// Forgets what is pending.
    pub fn forget_pending(&mut self) {
        self.pending.clear();
    }

    /// Cuts off what must not be there.
    fn trim(&mut self) -> Result<(), Error> {
        if self.ragged {
            self.cut().map_err(Error::file("cut", &self.path))?;
            self.ragged = false;
        }
        Ok(())
    }

    /// As [`FrameFile::trim`], at once: whoever opens the file after a crash should not find it.
    fn trim_if_possible(&mut self) {
        if let Err(error) = self.trim() {
            let error = crate::failure::chain(&error);
            tracing::warn!(
                error,
                "cannot cut a file yet; it is cut before the next write"
            );
        }
    }

    fn write_pending(&mut self) -> io::Result<()> {
        #[cfg(test)]
        if let Err(error) = Faults::hit(&mut self.faults.writes) {
            // As a disk does that becomes full.
            let half = self.pending.len() / 2;
            self.file.write_all(&self.pending[..half])?;
            return Err(error);
        }
        self.file.write_all(&self.pending)
    }

    fn cut(&mut self) -> io::Result<()> {
        #[cfg(test)]
        Faults::hit(&mut self.faults.cuts)?;
        self.file.set_len(self.bytes)
    }

    fn sync_file(&mut self) -> io::Result<()> {
        #[cfg(test)]
        Faults::hit(&mut self.faults.syncs)?;
        self.file.sync_data()
    }

    /// Bytes in the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Reads records in order; remembers where the next one begins.
#[derive(Debug)]
pub struct FrameReader<R> {
    input: R,
    path: PathBuf,
    offset: u64,
    ended: bool,
}

/// What stands where a record should.
enum Found {
    Sound(Vec<u8>),
    /// A record of this size that is not what was written.
    Damaged(u64),
    Nothing,
}

impl FrameReader<BufReader<File>> {
    /// Reads the file from `offset` on, which must be where a record begins.
    pub fn open(path: &Path, offset: u64) -> Result<Self, Error> {
        let mut file = File::open(path).map_err(Error::file("open", path))?;
        file.seek(SeekFrom::Start(offset))
            .map_err(Error::file("read", path))?;
        Ok(Self {
            input: BufReader::with_capacity(64 * 1024, file),
            path: path.to_owned(),
            offset,
            ended: false,
        })
    }
}

impl<'a> FrameReader<BufReader<&'a File>> {
    fn of(mut file: &'a File, path: &Path) -> Result<Self, Error> {
        file.seek(SeekFrom::Start(0))
            .map_err(Error::file("read", path))?;
        Ok(Self {
            input: BufReader::with_capacity(64 * 1024, file),
            path: path.to_owned(),
            offset: 0,
            ended: false,
        })
    }
}

impl<R: Read> FrameReader<R> {
    /// Returns the next sound record; `None` at the end, and at damage that hides where the next
    /// record begins. A damaged record with a sound one right behind it is left out.
    pub fn next_record(&mut self) -> Result<Option<Vec<u8>>, Error> {
        if self.ended {
            return Ok(None);
        }
        let mut size = 0;
        for _ in 0..2 {
            match self.record()? {
                Found::Sound(record) => {
                    self.offset += size + (HEADER_BYTES + record.len()) as u64;
                    return Ok(Some(record));
                }
                Found::Damaged(damaged) => size += damaged,
                Found::Nothing => break,
            }
        }
        // Where the reader stands is no place of a record any more.
        self.ended = true;
        Ok(None)
    }

    fn record(&mut self) -> Result<Found, Error> {
        let mut header = [0; HEADER_BYTES];
        if !self.fill(&mut header)? {
            return Ok(Found::Nothing);
        }
        let Some((length, check)) = read_header(header) else {
            return Ok(Found::Nothing);
        };
        let mut record = vec![0; length];
        if !self.fill(&mut record)? {
            return Ok(Found::Nothing);
        }
        if checksum(&record) != check {
            return Ok(Found::Damaged((HEADER_BYTES + length) as u64));
        }
        Ok(Found::Sound(record))
    }

    /// Where the next record begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<bool, Error> {
        match self.input.read_exact(buffer) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(source) => Err(Error::file("read", &self.path)(source)),
        }
    }
}

/// Reads length and checksum; `None` for a length that no record has.
fn read_header(header: [u8; HEADER_BYTES]) -> Option<(usize, [u8; 4])> {
    let [a, b, c, d, check @ ..] = header;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    (length <= RECORD_BYTES_MAX).then_some((length, check))
}

/// Tells whether what follows a place is what a write leaves that was cut off: a part of one
/// record, or a hole of zeros.
fn is_torn(mut file: &File, offset: u64) -> io::Result<bool> {
    file.seek(SeekFrom::Start(offset))?;
    let mut rest = Vec::new();
    // A record that was cut off is shorter than a whole one.
    let most = (HEADER_BYTES + RECORD_BYTES_MAX) as u64;
    file.take(most + 1).read_to_end(&mut rest)?;
    if rest.iter().all(|byte| *byte == 0) {
        return Ok(io::copy(&mut file, &mut io::sink())? == 0 || rest.len() as u64 <= most);
    }
    let Some((header, body)) = rest.split_first_chunk::<HEADER_BYTES>() else {
        return Ok(true);
    };
    let is_cut = read_header(*header).is_some_and(|(length, _)| length > body.len());
    // A damaged length can claim that the file is too short as well.
    Ok(is_cut && !holds_record(&rest))
}

/// Tells whether a whole record stands anywhere in these bytes but at their beginning. Says so too
/// when it would take too long to be sure.
fn holds_record(bytes: &[u8]) -> bool {
    let mut effort = SEARCH_BYTES_MAX;
    for at in 1..bytes.len() {
        let rest = bytes.get(at..).unwrap_or_default();
        let Some((header, body)) = rest.split_first_chunk::<HEADER_BYTES>() else {
            return false;
        };
        let Some((length, check)) = read_header(*header) else {
            continue;
        };
        let Some(record) = body.get(..length).filter(|record| !record.is_empty()) else {
            continue;
        };
        if length > effort || checksum(record) == check {
            return true;
        }
        effort -= length;
    }
    false
}

/// Copies a file to the first free name beside it, for good.
fn set_aside(path: &Path) -> Result<PathBuf, Error> {
    for number in 1_u64.. {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".damaged-{number}"));
        let aside = PathBuf::from(name);
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&aside);
        match made {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => {
                made.and_then(|mut made| {
                    io::copy(&mut File::open(path)?, &mut made)?;
                    made.sync_all()
                })
                .map_err(Error::file("set aside what is damaged as", &aside))?;
                return Ok(aside);
            }
        }
    }
    Ok(path.to_owned())
}

/// Writes one record in its framed form.
pub fn encode(out: &mut Vec<u8>, record: &[u8]) {
    let length = u32::try_from(record.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&checksum(record));
    out.extend_from_slice(record);
}

fn checksum(record: &[u8]) -> [u8; 4] {
    // The length is part of it, so that zeros (a hole left by a crash) are not a sound record.
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(record.len() as u64).to_le_bytes());
    hasher.update(record);
    let mut check = [0; 4];
    hasher.finalize_xof().fill(&mut check);
    check
}

/// Why an append-only file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A record is longer than readers take.
    #[error("a record of {bytes} bytes is too long for {}", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
}

impl Error {
    pub fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File {
            doing,
            path: path.to_owned(),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(path: &Path) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        FrameFile::open(path, |record| records.push(record)).unwrap();
        records
    }

    #[test]
    fn a_file_cut_at_any_byte_loads_the_records_before_the_cut_and_takes_new_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let records: Vec<Vec<u8>> = vec![b"one".to_vec(), Vec::new(), vec![0; 40]];
        let mut whole = Vec::new();
        let mut ends = Vec::new();
        for record in &records {
            encode(&mut whole, record);
            ends.push(whole.len());
        }
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let kept = ends.iter().filter(|end| **end <= cut).count();
            let mut file = FrameFile::open(&path, |_| ()).unwrap();
            file.push(b"next").unwrap();
            file.write().unwrap();
            let mut wanted = records[..kept].to_vec();
            wanted.push(b"next".to_vec());
            assert_eq!(load(&path), wanted, "cut at {cut}");
        }
    }

    /// Whatever byte is flipped, only the record that it hit is missing, or the file as it was is
    /// kept; and what is written next is read.
    #[test]
    fn a_flipped_byte_anywhere_loses_nothing_but_what_it_hit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let records: Vec<Vec<u8>> = (0..4_u8).map(|number| vec![number; 9]).collect();
        let mut whole = Vec::new();
        records.iter().for_each(|record| encode(&mut whole, record));
        let size = whole.len() / records.len();
        let aside = folder.path().join("log.damaged-1");
        for place in 0..whole.len() {
            let mut spoiled = whole.clone();
            spoiled[place] ^= 0x10;
            std::fs::write(&path, &spoiled).unwrap();
            let mut file = FrameFile::open(&path, |_| ()).unwrap();
            file.push(b"next").unwrap();
            file.write().unwrap();
            let hit = place / size;
            let found = load(&path);
            assert_eq!(found.last().unwrap(), b"next", "at {place}");
            assert!(found.starts_with(&records[..hit]), "at {place}: {found:?}");
            let others = records.iter().filter(|record| **record != records[hit]);
            let kept = std::fs::read(&aside).is_ok_and(|aside| aside == spoiled);
            let is_last = hit + 1 == records.len();
            assert!(
                kept || is_last || others.clone().all(|record| found.contains(record)),
                "at {place}: {found:?}"
            );
            drop(std::fs::remove_file(&aside));
        }
    }

    #[test]
    fn a_hole_of_zeros_or_a_flipped_bit_ends_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut whole = Vec::new();
        encode(&mut whole, b"kept");
        let end = whole.len();
        whole.extend_from_slice(&[0; 64]);
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(load(&path), vec![b"kept".to_vec()]);
        whole.truncate(end);
        encode(&mut whole, b"flipped");
        *whole.last_mut().unwrap() ^= 1;
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(load(&path), vec![b"kept".to_vec()]);
    }

    #[test]
    fn what_a_refused_sync_was_for_is_written_once_more_and_not_believed_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut file = FrameFile::open(&path, |_| ()).unwrap();
        file.push(b"kept").unwrap();
        file.write().unwrap();
        file.sync().unwrap();
        file.push(b"doubtful").unwrap();
        file.write().unwrap();
        file.push(b"later").unwrap();
        file.faults.syncs = 1;
        file.sync().unwrap_err();
        assert_eq!(load(&path), [b"kept".to_vec()]);
        // A sync without a write would prove nothing.
        file.write().unwrap();
        file.sync().unwrap();
        let all = [b"kept".to_vec(), b"doubtful".to_vec(), b"later".to_vec()];
        assert_eq!(load(&path), all);
    }

    #[test]
    fn half_a_record_that_could_not_be_cut_off_hides_none_behind_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut file = FrameFile::open(&path, |_| ()).unwrap();
        file.push(b"first").unwrap();
        (file.faults.writes, file.faults.cuts) = (1, 2);
        file.write().unwrap_err();
        file.write().unwrap_err();
        file.write().unwrap();
        file.sync().unwrap();
        assert_eq!(load(&path), [b"first".to_vec()]);
    }
}
