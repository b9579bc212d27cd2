//! A lock between processes of one host.

use std::fs::{File, OpenOptions};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::GitError;

/// Holds a lock file; dropping it, or the end of the process, lets the next one in.
#[derive(Debug)]
pub(crate) struct HostLock(#[expect(dead_code, reason = "held for its drop")] File);

impl HostLock {
    /// Waits for the lock on a thread of its own, so that no async thread waits.
    ///
    /// The file is created if it is missing and never deleted: two processes must never hold locks
    /// on two files of one name.
    pub(crate) async fn acquire(path: &Path) -> Result<Self, GitError> {
        Self::waiting(path, FlockOperation::LockExclusive).await
    }

    async fn waiting(path: &Path, how: FlockOperation) -> Result<Self, GitError> {
        let path = path.to_owned();
        let blocked = path.clone();
        let waiting = tokio::task::spawn_blocking(move || Self::acquire_blocking(&path, how));
        waiting.await.unwrap_or_else(|panicked| {
            Err(GitError::file("lock", blocked)(std::io::Error::other(
                panicked,
            )))
        })
    }

    /// Shares the lock with others who share it; waits for one who has it alone, who never has it
    /// for longer than a deletion takes.
    pub(crate) async fn acquire_shared(path: &Path) -> Result<Self, GitError> {
        Self::waiting(path, FlockOperation::LockShared).await
    }

    /// Takes the lock unless somebody holds it.
    pub(crate) fn try_acquire(path: &Path) -> Result<Option<Self>, GitError> {
        let file = Self::open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self(file))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(GitError::file("lock", path)(error.into())),
        }
    }

    fn open(path: &Path) -> Result<File, GitError> {
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(GitError::file("open the lock file", path))
    }

    fn acquire_blocking(path: &Path, how: FlockOperation) -> Result<Self, GitError> {
        let file = Self::open(path)?;
        loop {
            match flock(&file, how) {
                Ok(()) => return Ok(Self(file)),
                Err(Errno::INTR) => {}
                Err(error) => return Err(GitError::file("lock", path)(error.into())),
            }
        }
    }
}
