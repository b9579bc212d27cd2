//! Records in append-only files: a length, a checksum, the bytes.
//!
//! A file that was cut at any byte loads as the records before the cut.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes of length and checksum before each record.
const HEADER_BYTES: usize = 8;
/// Longest record: a report or an event is far below; a longer length is damage.
pub const RECORD_BYTES_MAX: usize = 1 << 20;

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
    /// the last sound one.
    pub fn open(path: &Path, mut each: impl FnMut(Vec<u8>)) -> Result<Self, Error> {
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .map_err(Error::file("open", path))?;
        let mut reader = FrameReader::of(&file, path)?;
        while let Some(record) = reader.next()? {
            each(record);
        }
        let bytes = reader.offset();
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
        })
    }
}

impl<R: Read> FrameReader<R> {
    /// Returns the next sound record; `None` at the end or at the first damage.
    pub fn next(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let mut header = [0; HEADER_BYTES];
        if !self.fill(&mut header)? {
            return Ok(None);
        }
        let [a, b, c, d, check @ ..] = header;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if length > RECORD_BYTES_MAX {
            return Ok(None);
        }
        let mut record = vec![0; length];
        if !self.fill(&mut record)? || checksum(&record) != check {
            return Ok(None);
        }
        self.offset += (HEADER_BYTES + length) as u64;
        Ok(Some(record))
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
