//! Folders in which a backup is made, or a home restored, and what killed processes leave of them.
//!
//! Such a folder holds secrets. Its maker holds its lock for as long as it lives, so one without a
//! holder is left over: the next backup or restore to the same place removes it, an audit of a home
//! names those beside it, and `doctor --repair` removes these.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use tempfile::TempDir;

use super::{Error, UNFINISHED, files, io as failed};

/// How often a folder is made anew that somebody took for a leftover in the moment between its
/// making and its locking.
const TRIES: u32 = 10;

/// A folder that is being filled; it is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Unfinished {
    folder: TempDir,
    _lock: Option<File>,
}

impl Unfinished {
    /// Makes an empty folder beside the one that is to be, on the same file system.
    pub(super) fn begin(name: &Path) -> Result<Self, Error> {
        let parent = files::parent(name);
        files::folder(parent)?;
        let mut tried = 1;
        loop {
            let folder = tempfile::Builder::new()
                .prefix(UNFINISHED)
                .permissions(fs::Permissions::from_mode(0o700))
                .tempdir_in(parent)
                .map_err(failed("make a folder in", parent))?;
            match lock(folder.path()) {
                Ok(lock) if is_still(folder.path(), &lock) => {
                    let lock = Some(lock);
                    return Ok(Self {
                        folder,
                        _lock: lock,
                    });
                }
                // Somebody is about to remove it.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // A file system without locks: nothing can be locked there by others either, and
                // what cannot be locked is not taken for left over.
                Err(_) => {
                    return Ok(Self {
                        folder,
                        _lock: None,
                    });
                }
            }
            if tried == TRIES {
                return Err(failed("keep a new folder in", parent)(
                    io::ErrorKind::WouldBlock.into(),
                ));
            }
            tried += 1;
        }
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Gives the folder its real name.
    pub(super) fn publish(self, name: &Path) -> Result<(), Error> {
        files::publish(self.path(), name)?;
        // Its name is another now.
        drop(self.folder.keep());
        Ok(())
    }
}

/// Lists what killed backups and restores of this user have left beside a folder.
#[must_use]
pub fn leftovers(name: &Path) -> Vec<PathBuf> {
    let name = fs::canonicalize(name).unwrap_or_else(|_| name.to_owned());
    let entries = fs::read_dir(files::parent(&name)).into_iter().flatten();
    let user = rustix::process::getuid().as_raw();
    let is_ours = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.as_encoded_bytes());
        name.is_some_and(|name| name.starts_with(UNFINISHED.as_bytes()))
            && fs::symlink_metadata(path).is_ok_and(|found| found.is_dir() && found.uid() == user)
    };
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    // The lock is let go at once: it only shows that nobody has it.
    found.retain(|path| is_ours(path) && lock(path).is_ok());
    found.sort_unstable();
    found
}

/// Removes a leftover.
///
/// # Errors
/// `WouldBlock` when it is being filled after all, else the disk's.
pub fn remove(path: &Path) -> io::Result<()> {
    let _lock = lock(path)?;
    fs::remove_dir_all(path)
}

/// Removes what killed backups and restores have left beside a folder; gives what it was.
///
/// # Errors
/// A leftover cannot be removed; those before it are.
pub fn tidy(name: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut removed = Vec::new();
    for path in leftovers(name) {
        match remove(&path) {
            Ok(()) => removed.push(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(failed("remove what was left in", &path)(error)),
        }
    }
    Ok(removed)
}

fn lock(folder: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::DIRECTORY;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(i32::try_from(flags.bits()).unwrap_or_default())
        .open(folder)?;
    flock(&opened, FlockOperation::NonBlockingLockExclusive)?;
    Ok(opened)
}

/// Tells whether a locked folder still has its name.
fn is_still(folder: &Path, lock: &File) -> bool {
    let named = fs::symlink_metadata(folder);
    let held = lock.metadata();
    matches!((named, held), (Ok(named), Ok(held)) if named.ino() == held.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_one_leaves_is_named_and_removed_and_what_is_being_made_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join("backup");
        let left = folder.path().join(format!("{UNFINISHED}x1"));
        fs::create_dir(&left).unwrap();
        fs::write(left.join("secret.key"), "secret").unwrap();
        // Of the name alone nothing follows.
        fs::write(folder.path().join(format!("{UNFINISHED}file")), "").unwrap();
        std::os::unix::fs::symlink(&left, folder.path().join(format!("{UNFINISHED}link"))).unwrap();
        let making = Unfinished::begin(&name).unwrap();
        assert_eq!(leftovers(&name), std::slice::from_ref(&left));
        let refused = remove(making.path()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(tidy(&name).unwrap(), std::slice::from_ref(&left));
        assert!(!left.exists() && making.path().exists());
        making.publish(&name).unwrap();
        assert!(name.exists() && leftovers(&name).is_empty());
    }
}
