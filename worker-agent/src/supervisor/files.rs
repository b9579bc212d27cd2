//! The files of a supervised folder, and how they are read and written whole.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Error;

/// What the supervisor is to do; written by the worker before it starts one.
pub(super) const LAUNCH: &str = "launch.json";
/// Locked by the supervisor for as long as it lives.
pub(super) const LOCK: &str = "supervisor.lock";
/// How it ended; exists only once no process of the tree is left.
pub(super) const EXIT: &str = "exit.json";
/// Spool of what the agent wrote.
pub(super) const OUTPUT: &str = "agent.out";
/// Path of the tree's cgroup; exists only if there is one.
pub(super) const CGROUP: &str = "cgroup";
/// What the supervisor itself complained about.
pub(super) const COMPLAINTS: &str = "supervisor.err";

/// Prompts and environments are bounded far below this; more is not ours.
const JSON_BYTES_MAX: u64 = 16 << 20;

/// Opens the lock file, creating it where needed; takes no lock.
pub(super) fn open_lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join(LOCK);
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

/// Writes a JSON file, readable by its owner alone, that appears whole or not at all and stays
/// after a crash of the host. On an error the old content, or absence, stands.
pub(super) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), Error> {
    let bytes = serde_json::to_vec_pretty(value).map_err(|source| Error::Format {
        path: path.to_owned(),
        source,
    })?;
    let parent = path.parent().unwrap_or(Path::new("."));
    // A fresh name with mode 0600, removed again if anything below fails.
    let mut file = tempfile::NamedTempFile::new_in(parent).map_err(Error::file("write", path))?;
    file.write_all(&bytes).map_err(Error::file("write", path))?;
    file.as_file()
        .sync_all()
        .map_err(Error::file("sync", path))?;
    file.persist(path)
        .map_err(|error| Error::file("replace", path)(error.error))?;
    File::open(parent)
        .and_then(|parent| parent.sync_all())
        .map_err(Error::file("sync the folder of", path))
}
