//! What is checked of the files before SQLite may touch them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use crate::store::Error;

/// Magic numbers of network file systems, as `statfs` gives them. On these, locks or shared memory
/// do not hold between hosts, or a sync does not reach a disk.
const NETWORK: [(u64, &str); 14] = [
    (0x6969, "nfs"),
    (0x517B, "smb"),
    (0xFE53_4D42, "smb2"),
    (0xFF53_4D42, "cifs"),
    (0x0BD0_0BD0, "lustre"),
    (0x4750_4653, "gpfs"),
    (0x00C3_6400, "ceph"),
    (0x1983_0326, "beegfs"),
    (0x5346_414F, "afs"),
    (0x6B41_4653, "afs"),
    (0x7375_7245, "coda"),
    (0x2003_0528, "orangefs"),
    (0xAAD7_AAEA, "panfs"),
    (0x0102_1997, "9p"),
];
const FUSE: u64 = 0x6573_5546;
/// FUSE file systems that keep their files on a local disk. Any other may be a network's.
const FUSE_LOCAL: [&str; 6] = [
    "fuseblk",
    "fuse.fuse-overlayfs",
    "fuse.gocryptfs",
    "fuse.encfs",
    "fuse.ntfs-3g",
    "fuse.mergerfs",
];

/// Refuses a folder on a network file system.
pub(super) fn refuse_network(folder: &Path) -> Result<(), Error> {
    let folder = fs::canonicalize(folder).map_err(|source| file("find", folder, source))?;
    let stat = rustix::fs::statfs(&folder)
        .map_err(|errno| file("tell the file system of", &folder, errno.into()))?;
    #[expect(clippy::cast_sign_loss, reason = "only the low 32 bits mean something")]
    let magic = stat.f_type as u64 & 0xFFFF_FFFF;
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    match network_kind(magic, &folder, mounts) {
        Some(kind) => Err(Error::NetworkFileSystem { path: folder, kind }),
        None => Ok(()),
    }
}

/// Names the network file system that a magic number stands for; `None` for a local one.
fn network_kind(magic: u64, folder: &Path, mounts: impl FnOnce() -> String) -> Option<String> {
    if magic == FUSE {
        let kind = mount_kind(&mounts(), folder).unwrap_or_else(|| "fuse".to_owned());
        return (!FUSE_LOCAL.contains(&kind.as_str())).then_some(kind);
    }
    NETWORK
        .iter()
        .find(|(number, _)| *number == magic)
        .map(|(_, name)| (*name).to_owned())
}

/// Finds the type of the mount that holds a folder in the text of `mountinfo`.
fn mount_kind(mounts: &str, folder: &Path) -> Option<String> {
    mounts
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let point = unescape(before.split(' ').nth(4)?);
            let kind = after.split(' ').next()?;
            folder
                .starts_with(&point)
                .then(|| (point.as_os_str().len(), kind.to_owned()))
        })
        // Of equal mount points the later one lies on top, and `max_by_key` takes the last.
        .max_by_key(|(length, _)| *length)
        .map(|(_, kind)| kind)
}

/// Undoes the octal escapes of `mountinfo`.
fn unescape(point: &str) -> PathBuf {
    PathBuf::from(
        point
            .replace("\\040", " ")
            .replace("\\011", "\t")
            .replace("\\012", "\n")
            .replace("\\134", "\\"),
    )
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

    const MOUNTS: &str = "\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 21 0:40 / /home rw - fuse.sshfs ann@host: rw
31 30 0:41 / /home/ann/a\\040b rw master:3 - fuse.fuse-overlayfs x rw
32 21 0:42 / /scratch rw - fuse.juicefs y rw
";

    fn kind(magic: u64, folder: &str) -> Option<String> {
        network_kind(magic, Path::new(folder), || MOUNTS.to_owned())
    }

    #[test]
    fn network_file_systems_are_known_by_their_magic_numbers() {
        assert_eq!(kind(0x6969, "/srv").as_deref(), Some("nfs"));
        assert_eq!(kind(0x0BD0_0BD0, "/srv").as_deref(), Some("lustre"));
        for local in [0xEF53, 0x0102_1994, 0x9123_683E, 0x5846_5342, 0x794C_7630] {
            assert_eq!(kind(local, "/srv"), None, "{local:#x}");
        }
    }

    #[test]
    fn fuse_is_a_network_unless_its_mount_is_known_to_be_local() {
        assert_eq!(kind(FUSE, "/home/ann").as_deref(), Some("fuse.sshfs"));
        assert_eq!(kind(FUSE, "/home/ann/a b/c"), None);
        assert_eq!(kind(FUSE, "/scratch/x").as_deref(), Some("fuse.juicefs"));
        let unknown = network_kind(FUSE, Path::new("/x"), String::new);
        assert_eq!(unknown.as_deref(), Some("fuse"));
    }

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
