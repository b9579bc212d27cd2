//! Keeping the cache of a host within its limit.
//!
//! What was used longest ago goes first. A repository stays while anything borrows objects from it:
//! a workspace that is being made, one in which an agent works, and one that was kept because its
//! edits could not be published. Who borrows is read from the disk each time, in the folders of all
//! workers that share the cache, since a worker that was killed cannot say so.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::cache::{COMPLETE, in_use_of, lock_of};
use crate::error::{GitError, megabytes};
use crate::lock::HostLock;

/// Folder of the cache in which workers note where their state is.
const USERS: &str = "users";
/// How deep below a worker's state the repositories of its workspaces lie:
/// `other-coordinator-N/leases/N/workspace/control.git`.
const DEPTH_MAX: usize = 5;
/// Begins the names of repositories that are being deleted.
const DELETED: &str = "deleted-";
/// Longest note of a worker, in bytes; paths are shorter.
const NOTE_BYTES_MAX: u64 = 64 << 10;

/// One repository of the cache.
#[derive(Debug)]
struct Kept {
    folder: PathBuf,
    bytes: u64,
    used: SystemTime,
}

/// When enough was deleted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    /// The cache holds no more bytes than this.
    Holds(u64),
    /// Its disk has this many bytes free.
    Free(u64),
}

impl Bound {
    /// Tells whether a cache that holds so many bytes is within it.
    fn is_met(self, root: &Path, held: u64) -> io::Result<bool> {
        Ok(match self {
            Self::Holds(bytes_max) => held <= bytes_max,
            Self::Free(bytes_min) => free(root)? >= bytes_min,
        })
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Holds(bytes) => write!(out, "{} or less of it", megabytes(bytes)),
            Self::Free(bytes) => write!(out, "{} free on its disk", megabytes(bytes)),
        }
    }
}

/// Bytes that are free on a disk for this user.
pub(crate) fn free(root: &Path) -> io::Result<u64> {
    let found = rustix::fs::statvfs(root)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Notes that workspaces below `folder` may borrow from the cache at `root`.
pub(crate) fn register(root: &Path, folder: &Path) -> Result<(), GitError> {
    let users = root.join(USERS);
    let fail = |error| GitError::file("note a user of the cache in", &users)(error);
    std::fs::create_dir_all(&users).map_err(fail)?;
    let bytes = folder.as_os_str().as_bytes();
    let note = users.join(blake3::hash(bytes).to_hex().as_str());
    // A disk that is full meanwhile leaves an empty one.
    if std::fs::metadata(&note).is_ok_and(|found| found.len() == bytes.len() as u64) {
        return Ok(());
    }
    std::fs::write(&note, bytes).map_err(fail)
}

/// Deletes what was used longest ago until the rest is within its bound, or all of it is borrowed
/// from.
///
/// If it cannot be known who borrows, nothing is deleted.
pub(crate) fn trim(root: &Path, bound: Bound) -> Result<(), GitError> {
    // Whoever is at it does the same.
    match HostLock::try_acquire(&lock(root))? {
        Some(_lock) => trim_alone(root, bound),
        None => Ok(()),
    }
}

/// Held by whoever deletes.
pub(crate) fn lock(root: &Path) -> PathBuf {
    root.join("trim.lock")
}

/// As [`trim`]; the caller holds the [`lock`].
pub(crate) fn trim_alone(root: &Path, bound: Bound) -> Result<(), GitError> {
    let fail = |error| GitError::file("trim the cache", root)(error);
    let mut kept = repositories(root).map_err(fail)?;
    let mut bytes: u64 = kept.iter().map(|repository| repository.bytes).sum();
    kept.sort_by_key(|repository| repository.used);
    for repository in kept {
        if bound.is_met(root, bytes).map_err(fail)? {
            return Ok(());
        }
        let folder = &repository.folder;
        // Nobody fetches into it, and nobody is about to borrow.
        let (Some(_fetching), Some(_using)) = (
            HostLock::try_acquire(&lock_of(folder))?,
            HostLock::try_acquire(&in_use_of(folder))?,
        ) else {
            continue;
        };
        if lenders(root).map_err(fail)?.contains(folder) {
            continue;
        }
        tracing::info!(
            path = %folder.display(),
            size = megabytes(repository.bytes),
            wanted = %bound,
            "the cache takes too much; deleting what was not used for longest"
        );
        // In one step, so that a half of it is never borrowed from.
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let deleted = root.join(format!("{DELETED}{name}"));
        remove(&deleted).map_err(fail)?;
        std::fs::rename(folder, &deleted).map_err(fail)?;
        remove(&deleted).map_err(fail)?;
        bytes -= repository.bytes;
    }
    // A disk may be full of other things, and whoever looks at it says so.
    if let Bound::Holds(bytes_max) = bound
        && bytes > bytes_max
    {
        tracing::warn!(
            size = megabytes(bytes),
            limit = megabytes(bytes_max),
            "the cache is above its limit, and all of it is in use"
        );
    }
    Ok(())
}

/// Lists what is complete; deletes what an earlier trim was interrupted in.
fn repositories(root: &Path) -> io::Result<Vec<Kept>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root)? {
        let folder = entry?.path();
        let name = folder.file_name().unwrap_or_default();
        if name.as_bytes().starts_with(DELETED.as_bytes()) {
            remove(&folder)?;
        } else if let Ok(complete) = folder.join(COMPLETE).metadata() {
            found.push(Kept {
                bytes: bytes_of(&folder)?,
                used: complete.modified()?,
                folder,
            });
        }
    }
    Ok(found)
}

/// Finds the repositories from which any workspace of any registered worker borrows.
fn lenders(root: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let users = match std::fs::read_dir(root.join(USERS)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        users => users?,
    };
    for user in users {
        let note = user?.path();
        if note.metadata()?.len() > NOTE_BYTES_MAX {
            return Err(io::Error::other("a note about its users is damaged"));
        }
        let state = PathBuf::from(std::ffi::OsString::from_vec(std::fs::read(&note)?));
        match state.symlink_metadata() {
            // That worker was removed with all it had.
            Err(error) if error.kind() == io::ErrorKind::NotFound => std::fs::remove_file(&note)?,
            Err(error) => return Err(error),
            Ok(_) => lenders_below(&state, &mut found)?,
        }
    }
    Ok(found)
}

fn lenders_below(state: &Path, found: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    let mut folders = vec![(state.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            // It went meanwhile, and nothing borrows from within it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            if name == "control.git" {
                let alternates = entry.path().join("objects/info/alternates");
                match std::fs::read(alternates) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    text => found.extend(text?.split(|byte| *byte == b'\n').filter_map(lender)),
                }
            } else if name != "work" && depth < DEPTH_MAX && entry.file_type()?.is_dir() {
                folders.push((entry.path(), depth + 1));
            }
        }
    }
    Ok(())
}

/// Gives the repository to whose objects a line of alternates points.
fn lender(line: &[u8]) -> Option<PathBuf> {
    let path = PathBuf::from(std::ffi::OsString::from_vec(line.to_vec()));
    path.parent()
        .filter(|_| !line.is_empty())
        .map(Path::to_owned)
}

/// Adds up the files of a folder, in bytes.
fn bytes_of(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                // A file may go while a fetch tidies up.
                bytes += entry.metadata().map_or(0, |found| found.len());
            }
        }
    }
    Ok(bytes)
}

fn remove(folder: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
