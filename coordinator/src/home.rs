//! The folder that holds all state of one coordinator, and the lock that makes it the only one.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use muster_connect::private_file;
use rustix::fs::{FlockOperation, flock};

/// File whose lock makes a coordinator the only one of its home.
pub(crate) const LOCK: &str = "coordinator.lock";

/// Bytes below which the journal is in danger, on a disk of so many: a share of a small one.
pub(crate) fn room_needed(disk_bytes: u64) -> u64 {
    (256 << 20).min(disk_bytes / 10)
}

/// A home that this process owns, until it is dropped.
#[derive(Debug)]
pub struct Home {
    path: PathBuf,
    _lock: File,
}

/// Why a home cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("another coordinator{} uses {}", pid.map(|pid| format!(" (process {pid})")).unwrap_or_default(), path.display())]
    InUse { path: PathBuf, pid: Option<u32> },
}

impl Home {
    /// Makes the folder if it is not there (0700) and takes its lock.
    ///
    /// # Errors
    /// [`Error::InUse`] when another coordinator has it, with that one's process id.
    pub fn own(path: &Path) -> Result<Self, Error> {
        let named = path.to_owned();
        let io = |action| {
            let path = named.clone();
            move |source| Error::Io {
                action,
                path,
                source,
            }
        };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(io("make the home"))?;
        let path = std::fs::canonicalize(path).map_err(io("find the home"))?;
        // Transcripts, journal and repositories lie below: nobody else is to read them, also where
        // the folder was made by hand.
        let mode = std::fs::metadata(&path)
            .map_err(io("look at the home"))?
            .permissions()
            .mode();
        if mode & 0o077 != 0 {
            let private = std::fs::Permissions::from_mode(0o700);
            std::fs::set_permissions(&path, private).map_err(io("make the home private"))?;
        }
        let lock_path = path.join(LOCK);
        let lock_io = |action| {
            let path = lock_path.clone();
            move |source| Error::Io {
                action,
                path,
                source,
            }
        };
        let mut lock = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&lock_path)
            .map_err(lock_io("open"))?;
        if let Err(error) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(lock_io("lock")(error.into()));
            }
            let mut text = String::new();
            // Only for the message: what cannot be read is left out.
            drop(lock.read_to_string(&mut text));
            return Err(Error::InUse {
                path,
                pid: text.trim().parse().ok(),
            });
        }
        lock.set_len(0).map_err(lock_io("write"))?;
        lock.rewind().map_err(lock_io("write"))?;
        writeln!(lock, "{}", std::process::id()).map_err(lock_io("write"))?;
        // Whoever was writing them had the lock, and is gone.
        for folder in [path.clone(), path.join("tls")] {
            if folder.exists() {
                private_file::remove_unfinished(&folder).map_err(io("tidy the home"))?;
            }
        }
        Ok(Self { path, _lock: lock })
    }

    /// Gives the folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A home in which no coordinator can start as long as this lives. Nothing is changed for it.
#[derive(Debug)]
pub struct Quiet {
    _lock: Option<File>,
}

/// Keeps coordinators from starting on a home; `None` if one has it.
///
/// Several may keep a home quiet at once. A coordinator that wants to start meanwhile finds the
/// home in use.
///
/// # Errors
/// The lock cannot be looked at.
pub fn quiet(path: &Path) -> Result<Option<Quiet>, Error> {
    let lock_path = path.join(LOCK);
    let io = |action, source| Error::Io {
        action,
        path: lock_path.clone(),
        source,
    };
    let lock = match File::open(&lock_path) {
        Ok(lock) => lock,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Some(Quiet { _lock: None }));
        }
        Err(error) => return Err(io("open", error)),
    };
    match flock(&lock, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(Some(Quiet { _lock: Some(lock) })),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(io("lock", error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_has_one_owner_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("home");
        let owned = Home::own(&path).unwrap();
        let refused = Home::own(&path);
        assert!(
            matches!(refused, Err(Error::InUse { pid, .. }) if pid == Some(std::process::id()))
        );
        drop(owned);
        // A process that another test is just starting has a copy of the lock until it is another
        // program.
        let begun = std::time::Instant::now();
        while Home::own(&path).is_err() {
            assert!(begun.elapsed() < std::time::Duration::from_secs(10));
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_home_that_is_kept_quiet_is_in_use_and_unchanged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        assert!(quiet(path).unwrap().is_some());
        assert_eq!(std::fs::read_dir(path).unwrap().count(), 0);
        let owned = Home::own(path).unwrap();
        assert!(quiet(path).unwrap().is_none());
        drop(owned);
        let begun = std::time::Instant::now();
        let first = loop {
            if let Some(first) = quiet(path).unwrap() {
                break first;
            }
            assert!(begun.elapsed() < std::time::Duration::from_secs(10));
            std::thread::yield_now();
        };
        let _second = quiet(path).unwrap().unwrap();
        assert!(matches!(Home::own(path), Err(Error::InUse { .. })));
        drop(first);
    }

    #[test]
    fn a_start_removes_files_that_a_killed_coordinator_was_writing() {
        let folder = tempfile::tempdir().unwrap();
        let half = folder.path().join(".muster-x1y2z3");
        std::fs::write(&half, "half").unwrap();
        let _home = Home::own(folder.path()).unwrap();
        assert!(!half.exists());
    }

    #[test]
    fn a_home_that_others_could_read_is_made_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("home");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let _home = Home::own(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
