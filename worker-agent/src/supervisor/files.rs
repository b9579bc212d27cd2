//! The files of a supervised folder, and how they are read and written whole.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::NamedTempFile;

use super::Error;

/// What the supervisor is to do; written by the worker before it starts one.
pub(super) const LAUNCH: &str = "launch.json";
/// Locked by the supervisor for as long as it lives.
pub(super) const LOCK: &str = "supervisor.lock";
/// Locked by the guard for as long as it lives.
pub(super) const GUARD_LOCK: &str = "guard.lock";
/// All locks of a launch, in the order in which they are taken.
pub(super) const LOCKS: [&str; 2] = [GUARD_LOCK, LOCK];
/// How it ended; exists only once no process of the tree is left.
pub(super) const EXIT: &str = "exit.json";
/// Spool of what the agent wrote.
pub(super) const OUTPUT: &str = "agent.out";
/// Pipe to the agent's standard input; exists only if it has one.
pub(super) const INPUT: &str = "agent.in";
/// Path of the tree's cgroup; exists only if there is one.
pub(super) const CGROUP: &str = "cgroup";
/// What the supervisor itself complained about.
pub(super) const COMPLAINTS: &str = "supervisor.err";

/// Prompts and environments are bounded far below this; more is not ours.
const JSON_BYTES_MAX: u64 = 16 << 20;

/// A report has about 500 bytes; the messages in it come from the kernel.
const RESERVED_BYTES: u64 = 4096;

/// Opens a lock file, creating it where needed; takes no lock.
pub(super) fn open_lock(dir: &Path, name: &str) -> Result<File, Error> {
    let path = dir.join(name);
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(Error::file("open", &path))
}

/// Reads a JSON file; `None` if there is no such file.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::file("open", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(JSON_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(Error::file("read", path))?;
    if bytes.len() as u64 > JSON_BYTES_MAX {
        return Err(Error::TooLarge {
            path: path.to_owned(),
            limit: JSON_BYTES_MAX,
        });
    }
    let value = serde_json::from_slice(&bytes).map_err(|source| Error::Format {
        path: path.to_owned(),
        source,
    })?;
    Ok(Some(value))
}

/// Writes a JSON file; see [`Reserved`].
pub(super) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), Error> {
    Reserved::create(path)?.write(value)
}

/// Is room on the disk for one JSON file, taken while there was some: an agent that fills the disk
/// cannot keep its own end from being written.
///
/// The file is readable by its owner alone, appears whole or not at all, and stays after a crash
/// of the host. On an error the old content, or absence, stands.
#[derive(Debug)]
pub(super) struct Reserved {
    file: NamedTempFile,
    path: PathBuf,
}

impl Reserved {
    pub(super) fn create(path: &Path) -> Result<Self, Error> {
        // It has mode 0600 and a fresh name, and is removed unless it replaces the path.
        let file = NamedTempFile::new_in(parent(path)).map_err(Error::file("create", path))?;
        match fallocate(file.as_file(), FallocateFlags::empty(), 0, RESERVED_BYTES) {
            // Some file systems cannot promise room; then it is taken when it is needed.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(error) => return Err(Error::file("reserve room for", path)(error.into())),
        }
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    pub(super) fn write<T: Serialize>(self, value: &T) -> Result<(), Error> {
        let path = &self.path;
        let bytes = serde_json::to_vec_pretty(value).map_err(|source| Error::Format {
            path: path.clone(),
            source,
        })?;
        let file = self.file.as_file();
        file.write_all_at(&bytes, 0)
            .map_err(Error::file("write", path))?;
        file.set_len(bytes.len() as u64)
            .map_err(Error::file("write", path))?;
        file.sync_all().map_err(Error::file("sync", path))?;
        self.file
            .persist(path)
            .map_err(|error| Error::file("replace", path)(error.error))?;
        File::open(parent(path))
            .and_then(|parent| parent.sync_all())
            .map_err(Error::file("sync the folder of", path))
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}
