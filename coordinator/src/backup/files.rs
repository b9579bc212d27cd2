//! Copying, listing, hashing and syncing plain files.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::manifest::Entry;
use super::{Error, io};

/// Bytes taken at once.
const CHUNK: usize = 256 * 1024;

/// Makes a folder and those above it (0700).
pub(super) fn folder(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io("make", path))
}

/// Copies a file as long as it is now into a new one (0600) and gives its checksum and length;
/// `None` when there is none. Links are not followed.
pub(super) fn copy(from: &Path, to: &Path) -> Result<Option<(blake3::Hash, u64)>, Error> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(no_follow())
        .open(from);
    let source = match opened {
        Ok(source) => source,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io("open", from)(error)),
    };
    let length = source.metadata().map_err(io("measure", from))?.len();
    if let Some(parent) = to.parent() {
        folder(parent)?;
    }
    let mut target = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .map_err(io("create", to))?;
    // One that is appended to meanwhile would otherwise be followed for as long as it grows.
    let mut source = source.take(length);
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; CHUNK];
    let mut copied = 0;
    loop {
        let read = source.read(&mut buffer).map_err(io("read", from))?;
        let Some(chunk) = buffer.get(..read).filter(|chunk| !chunk.is_empty()) else {
            return Ok(Some((hasher.finalize(), copied)));
        };
        hasher.update(chunk);
        target.write_all(chunk).map_err(io("write", to))?;
        copied += chunk.len() as u64;
    }
}

/// Gives checksum and length of a plain file. Links are not followed.
pub(super) fn sum(path: &Path) -> Result<(blake3::Hash, u64), Error> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(no_follow())
        .open(path)
        .map_err(io("open", path))?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file).map_err(io("read", path))?;
    Ok((hasher.finalize(), hasher.count()))
}

/// Lists all plain files below a folder, sorted; a folder that is not there has none. Sockets and
/// pipes are left out: a home has none that matter.
///
/// # Errors
/// [`Error::Link`]: what a link stands for would be missing in the copy, or lie outside of it.
pub(super) fn list(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(io("list", &folder)(error)),
        };
        for entry in entries {
            let entry = entry.map_err(io("list", &folder))?;
            let kind = entry.file_type().map_err(io("look at", &entry.path()))?;
            if kind.is_symlink() {
                return Err(Error::Link(entry.path()));
            } else if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Describes every file below a folder.
pub(super) fn describe(root: &Path) -> Result<Vec<Entry>, Error> {
    list(root)?
        .into_iter()
        .map(|path| {
            let (sum, bytes) = sum(&path)?;
            let below = path.strip_prefix(root).unwrap_or(&path);
            let name = below
                .to_str()
                .ok_or_else(|| io("name", &path)(ErrorKind::InvalidFilename.into()))?;
            Ok(Entry {
                path: name.to_owned(),
                bytes,
                sum: sum.to_hex().to_string(),
            })
        })
        .collect()
}

/// Compares every file with its description.
pub(super) fn compare(root: &Path, entries: &[Entry]) -> Result<(), Error> {
    for entry in entries {
        let path = root.join(entry.relative().unwrap_or_default());
        let found = match sum(&path) {
            Ok(found) => found,
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return Err(damaged(&path, "is missing"));
            }
            Err(error) => return Err(error),
        };
        same(&path, found, entry)?;
    }
    Ok(())
}

/// Insists that a file is what its description says.
pub(super) fn same(path: &Path, found: (blake3::Hash, u64), entry: &Entry) -> Result<(), Error> {
    let (sum, bytes) = found;
    if bytes != entry.bytes {
        let what = format!("has {bytes} bytes instead of {}", entry.bytes);
        return Err(damaged(path, &what));
    }
    if *sum.to_hex() != *entry.sum {
        return Err(damaged(path, "is not what was saved: its checksum differs"));
    }
    Ok(())
}

fn damaged(path: &Path, what: &str) -> Error {
    Error::Damaged {
        path: path.to_owned(),
        what: what.to_owned(),
    }
}

/// Makes everything below a folder stay after a crash of the host: one sync of its file system
/// instead of one for each of many small files.
pub(super) fn sync(root: &Path) -> Result<(), Error> {
    let opened = File::open(root).map_err(io("open", root))?;
    rustix::fs::syncfs(&opened).map_err(|errno| io("sync", root)(errno.into()))
}

/// Gives a folder its real name, which must be free or that of an empty folder, for good.
pub(super) fn publish(unfinished: &Path, name: &Path) -> Result<(), Error> {
    match fs::rename(unfinished, name) {
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {
            return Err(Error::NotEmpty(name.to_owned()));
        }
        Err(error) if error.kind() == ErrorKind::ResourceBusy => {
            return Err(Error::MountPoint(name.to_owned()));
        }
        renamed => renamed.map_err(io("give the whole folder its name", name))?,
    }
    let parent = parent(name);
    File::open(parent)
        .and_then(|opened| opened.sync_all())
        .map_err(io("sync", parent))
}

/// Refuses a name that is taken by anything but an empty folder. A link to one, and one that
/// another file system is mounted on, are refused too: no folder could take their name.
pub(super) fn must_be_free(name: &Path) -> Result<(), Error> {
    if let Ok(found) = fs::symlink_metadata(name) {
        if found.is_symlink() {
            return Err(Error::Link(name.to_owned()));
        }
        let around = fs::metadata(parent(name));
        if found.is_dir() && around.is_ok_and(|around| around.dev() != found.dev()) {
            return Err(Error::MountPoint(name.to_owned()));
        }
    }
    match fs::read_dir(name) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotADirectory => {
            Err(Error::NotEmpty(name.to_owned()))
        }
        Err(error) => Err(io("look at", name)(error)),
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(Error::NotEmpty(name.to_owned())),
        },
    }
}

/// Refuses a new folder inside another one, also by way of links.
pub(super) fn must_be_outside(name: &Path, other: &Path) -> Result<(), Error> {
    let other = fs::canonicalize(other).map_err(io("look at", other))?;
    let full = std::path::absolute(name).map_err(io("look at", name))?;
    // What is not there yet has no real path, but the folders above it have.
    let above = full
        .ancestors()
        .find_map(|folder| fs::canonicalize(folder).ok());
    if above.is_some_and(|above| above.starts_with(&other)) {
        return Err(Error::Inside {
            path: name.to_owned(),
            of: other,
        });
    }
    Ok(())
}

pub(super) fn parent(name: &Path) -> &Path {
    match name.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn no_follow() -> i32 {
    i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or_default()
}
