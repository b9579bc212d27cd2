//! What is checked of the files before SQLite may touch them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use crate::store::Error;

/// Refuses a folder on a network file system.
pub(super) fn refuse_network(folder: &Path) -> Result<(), Error> {
    match crate::file_system::network(folder) {
        Ok(None) => Ok(()),
        Ok(Some(kind)) => Err(Error::NetworkFileSystem {
            path: folder.to_owned(),
            kind,
        }),
        Err(source) => Err(file("tell the file system of", folder, source)),
    }
}

/// Gives the path of the write-ahead log of a database.
pub(super) fn wal_of(main: &Path) -> PathBuf {
    let mut path = main.as_os_str().to_owned();
    path.push("-wal");
    PathBuf::from(path)
}

/// Checks that no part of the main file is missing.
///
/// SQLite itself would fill what is missing with zeros, or take an empty file for a new database
/// and delete the log. A page behind the file's end is legitimate only while the log holds it.
pub(super) fn refuse_cut(main: &Path) -> Result<(), Error> {
    let mut opened = File::open(main).map_err(|source| file("open", main, source))?;
    let found = opened
        .metadata()
        .map_err(|source| file("measure", main, source))?
        .len();
    let mut header = [0; 100];
    let read = read_up_to(&mut opened, &mut header).map_err(|source| file("read", main, source))?;
    if read < header.len() {
        return Err(Error::Cut {
            path: main.to_owned(),
            found,
            wanted: header.len() as u64,
        });
    }
    if !header.starts_with(b"SQLite format 3\0") {
        return Err(Error::Foreign(main.to_owned()));
    }
    let page = match u64::from(be16(&header, 16)) {
        1 => 65_536,
        size => size,
    };
    if page < 512 {
        return Err(Error::Foreign(main.to_owned()));
    }
    let log = Log::read(&wal_of(main), page)?;
    let pages = log
        .pages_after_commit
        .unwrap_or(u64::from(be32(&header, 28)));
    let missing = (found / page + 1..=pages).find(|number| !log.pages.contains(number));
    match missing {
        None => Ok(()),
        Some(_) => Err(Error::Cut {
            path: main.to_owned(),
            found,
            wanted: pages * page,
        }),
    }
}

/// Pages in a write-ahead log. Their checksums are SQLite's business.
#[derive(Default)]
struct Log {
    pages: BTreeSet<u64>,
    /// Size of the database in pages as the last commit in the log states it.
    pages_after_commit: Option<u64>,
}

impl Log {
    fn read(path: &Path, page: u64) -> Result<Self, Error> {
        let failed = |source| file("read", path, source);
        let opened = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            opened => opened.map_err(failed)?,
        };
        let mut reader = BufReader::new(opened);
        let mut header = [0; 32];
        let mut log = Self::default();
        if read_up_to(&mut reader, &mut header).map_err(failed)? < header.len() {
            return Ok(log);
        }
        let salts = header.get(16..24);
        let mut frame = [0; 24];
        let mut uncommitted = Vec::new();
        loop {
            let read = read_up_to(&mut reader, &mut frame).map_err(failed)?;
            // A frame of another salt is left over from before the log was begun anew.
            if read < frame.len() || frame.get(8..16) != salts {
                return Ok(log);
            }
            uncommitted.push(u64::from(be32(&frame, 0)));
            let size = u64::from(be32(&frame, 4));
            if size > 0 {
                log.pages.extend(uncommitted.drain(..));
                log.pages_after_commit = Some(size);
            }
            reader
                .seek_relative(i64::try_from(page).unwrap_or(i64::MAX))
                .map_err(failed)?;
        }
    }
}

fn read_up_to(reader: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut read = 0;
    while let Some(rest) = buffer.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(count) => read += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    bytes
        .get(at..at + 2)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u16::from_be_bytes)
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u32::from_be_bytes)
}

/// Makes a change of a folder's entries durable.
pub(super) fn sync_folder(folder: &Path) -> Result<(), Error> {
    File::open(folder)
        .and_then(|opened| opened.sync_all())
        .map_err(|source| file("sync", folder, source))
}

pub(super) fn file(doing: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::File {
        doing,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_tells_the_reason_and_the_way_out() {
        let error = Error::NetworkFileSystem {
            path: PathBuf::from("/home/ann/muster"),
            kind: "nfs".to_owned(),
        };
        let message = error.to_string();
        assert!(
            message.contains("(nfs)") && message.contains("MUSTER_HOME"),
            "{message}"
        );
    }
}
