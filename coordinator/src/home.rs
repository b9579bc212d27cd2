//! The folder that holds all state of one coordinator, and the lock that makes it the only one.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use muster_connect::private_file;
use rustix::fs::{FlockOperation, flock};

/// File whose lock makes a coordinator the only one of its home.
pub(crate) const LOCK: &str = "coordinator.lock";

/// Bytes below which the journal is in danger, on a disk of so many: a share of a small one.
pub(crate) fn room_needed(disk_bytes: u64) -> u64 {
    (256 << 20).min(disk_bytes / 10)
}

/// Everything that a start makes in a home before it has succeeded.
const MADE_BY_A_START: [&str; 20] = [
    LOCK,
    "address.json",
    "admin.token",
    "coordinator.log",
    "git-hooks",
    "journal.db",
    "journal.db-new",
    "journal.db-new-shm",
    "journal.db-new-wal",
    "journal.db-shm",
    "journal.db-wal",
    "local-worker.token",
    "repos",
    "secret.key",
    "tls",
    "tokens.db",
    "tokens.db-shm",
    "tokens.db-wal",
    "transcripts",
    "worker.log",
];
/// What the worker beside an embedded coordinator makes.
const MADE_BY_A_WORKER: &str = "worker";
/// The lock file is replaced only by a start that failed; more often means something else.
const LOCK_TRIES: u32 = 100;

/// A home that this process owns, until it is dropped.
#[derive(Debug)]
pub struct Home {
    path: PathBuf,
    /// What to undo when it is dropped before it is kept, or after it was given up.
    begun: Option<Begun>,
    kept: bool,
    _lock: File,
}

/// What was made for a home in which nothing was before, but perhaps its configuration.
#[derive(Debug)]
struct Begun {
    /// Folders that were not there, the innermost first.
    folders: Vec<PathBuf>,
}

/// Why a home cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("another coordinator{} uses {}", pid.map(|pid| format!(" (process {pid})")).unwrap_or_default(), path.display())]
    InUse { path: PathBuf, pid: Option<u32> },
    #[error("{} is not a folder, and a home is one", .0.display())]
    NotAFolder(PathBuf),
    #[error(
        "{} lies on a network file system ({kind}), which cannot keep a journal safe: SQLite shares \
         memory and locks between processes there, and neither holds between machines",
        path.display()
    )]
    NetworkFileSystem { path: PathBuf, kind: String },
}

/// Looks whether a home can be where it is wanted, before anything is made for it.
///
/// # Errors
/// [`Error::NotAFolder`] for a file, also on the way; [`Error::NetworkFileSystem`].
pub fn check_place(path: &Path) -> Result<(), Error> {
    let Some(there) = nearest_folder(path)? else {
        return Ok(());
    };
    match crate::file_system::network(there) {
        Ok(Some(kind)) => Err(Error::NetworkFileSystem {
            path: path.to_owned(),
            kind,
        }),
        // What cannot be told is found out by whoever writes there.
        Ok(None) | Err(_) => Ok(()),
    }
}

/// Gives the home, or the folder nearest above it that is there.
///
/// # Errors
/// [`Error::NotAFolder`] for a file, also on the way.
pub fn nearest_folder(path: &Path) -> Result<Option<&Path>, Error> {
    for there in path.ancestors() {
        let found = match std::fs::metadata(there) {
            Ok(found) => found,
            // A file on the way is found further up.
            Err(error) if is_absent(&error) => continue,
            Err(source) => {
                return Err(Error::Io {
                    action: "look at",
                    path: there.to_owned(),
                    source,
                });
            }
        };
        if !found.is_dir() {
            return Err(Error::NotAFolder(there.to_owned()));
        }
        return Ok(Some(there));
    }
    Ok(None)
}

fn is_absent(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory)
}

impl Home {
    /// Makes the folder if it is not there (0700) and takes its lock.
    ///
    /// If nothing was in the folder, everything that a start makes there is removed again when this
    /// is dropped before [`Home::keep`]: a start that fails leaves no trace.
    ///
    /// # Errors
    /// [`Error::InUse`] when another coordinator has it, with that one's process id; those of
    /// [`check_place`]; what the system says.
    pub fn own(path: &Path) -> Result<Self, Error> {
        check_place(path)?;
        let absent = path.ancestors().take_while(|folder| !folder.exists());
        let folders: Vec<PathBuf> = absent.map(Path::to_owned).collect();
        let made = Self::take(path, folders.clone());
        if made.is_err() {
            remove_folders(&folders);
        }
        made
    }

    fn take(path: &Path, folders: Vec<PathBuf>) -> Result<Self, Error> {
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
        let was_new = std::fs::read_dir(&path)
            .map_err(io("look into the home"))?
            .all(|entry| entry.is_ok_and(|entry| entry.file_name() == crate::config::FILE_NAME));
        let mut lock = locked(&path)?;
        let home = Self {
            begun: was_new.then_some(Begun { folders }),
            kept: false,
            path,
            _lock: lock.try_clone().map_err(io("lock the home"))?,
        };
        let written = lock
            .set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()));
        written.map_err(io("write into the home"))?;
        // Whoever was writing them had the lock, and is gone.
        for folder in [home.path.clone(), home.path.join("tls")] {
            if folder.exists() {
                private_file::remove_unfinished(&folder).map_err(io("tidy the home"))?;
            }
        }
        Ok(home)
    }

    /// Keeps what was made: the coordinator has started.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// Lets everything in a home that was empty be removed when this is dropped, the local worker's
    /// state too: the coordinator has ended and its home holds nothing that anybody wanted kept.
    pub fn give_up(&mut self) {
        self.kept = false;
    }

    /// Tells whether nothing was there before this start.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.begun.is_some()
    }

    /// Gives the folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Home {
    /// Undoes a start that failed in a home that was empty, while it is still locked.
    fn drop(&mut self) {
        let Some(Begun { folders }) = self.begun.take().filter(|_| !self.kept) else {
            return;
        };
        // What cannot be removed is found by the next start, which goes on with it.
        for name in MADE_BY_A_START.into_iter().chain([MADE_BY_A_WORKER]) {
            let path = self.path.join(name);
            let _ = match std::fs::symlink_metadata(&path) {
                Ok(found) if found.is_dir() => std::fs::remove_dir_all(&path),
                Ok(_) => std::fs::remove_file(&path),
                Err(_) => Ok(()),
            };
        }
        remove_folders(&folders);
    }
}

/// Removes folders that hold nothing, the innermost first.
fn remove_folders(folders: &[PathBuf]) {
    for folder in folders {
        if std::fs::remove_dir(folder).is_err() {
            return;
        }
    }
}

/// Opens and locks the lock file.
///
/// A start that fails removes its lock file before it lets go of it, so whoever gets a lock looks
/// whether the file is still the one that others find.
fn locked(home: &Path) -> Result<File, Error> {
    let path = home.join(LOCK);
    let io = |action, source| Error::Io {
        action,
        path: path.clone(),
        source,
    };
    for _ in 0..LOCK_TRIES {
        let mut lock = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|error| io("open", error))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                // Only for the message: what cannot be read is left out.
                drop(lock.read_to_string(&mut text));
                return Err(Error::InUse {
                    path: home.to_owned(),
                    pid: text.trim().parse().ok(),
                });
            }
            Err(error) => return Err(io("lock", error.into())),
        }
        let held = lock.metadata().map_err(|error| io("look at", error))?;
        let found = std::fs::metadata(&path);
        if found.is_ok_and(|found| (found.dev(), found.ino()) == (held.dev(), held.ino())) {
            return Ok(lock);
        }
    }
    Err(Error::InUse {
        path: home.to_owned(),
        pid: None,
    })
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
        let mut owned = Home::own(path).unwrap();
        owned.keep();
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
    fn a_start_that_fails_leaves_no_trace_where_nothing_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/muster");
        let home = Home::own(&path).unwrap();
        std::fs::create_dir(path.join("tls")).unwrap();
        std::fs::write(path.join("tls/ca.key"), "key").unwrap();
        drop(home);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);

        let mut home = Home::own(&path).unwrap();
        home.keep();
        std::fs::create_dir_all(path.join("worker/0")).unwrap();
        home.give_up();
        drop(home);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);

        let mut home = Home::own(&path).unwrap();
        home.keep();
        drop(home);
        assert!(path.join(LOCK).exists());
        std::fs::write(path.join("journal.db"), "much").unwrap();
        let mut home = Home::own(&path).unwrap();
        assert!(!home.is_new());
        home.give_up();
        drop(home);
        assert!(path.join("journal.db").exists());
    }

    #[test]
    fn a_start_that_fails_leaves_what_others_have_put_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("home");
        let home = Home::own(&path).unwrap();
        std::fs::write(path.join("config.toml"), "").unwrap();
        drop(home);
        let left: Vec<_> = std::fs::read_dir(&path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["config.toml"]);
    }

    #[test]
    fn a_file_is_no_home_nor_is_anything_below_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        for path in [file.clone(), file.join("home/deep")] {
            let refused = Home::own(&path).unwrap_err();
            assert!(
                matches!(&refused, Error::NotAFolder(found) if *found == file),
                "{refused}"
            );
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
