//! The folder that holds all state of one coordinator, and the lock that makes it the only one.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// File in a home that its coordinator holds a lock on.
pub(crate) const LOCK: &str = "coordinator.lock";

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
        Ok(Self { path, _lock: lock })
    }

    /// Gives the folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
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
