//! Who writes to hosted repositories now, so that what a killed git has left can be removed while
//! nobody does.
//!
//! Git removes its locks and half-received packs unless it is killed; then they stay, and a lock
//! refuses every later move of its ref. Whether a file is left over or in use is known only when no
//! git of ours works in the repository, so after one that did not end well the next moment of rest
//! is used.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use super::repository;

/// All writers of a home's repositories; clones share them.
#[derive(Clone, Debug)]
pub struct Writers {
    home: Arc<Path>,
    gates: Arc<Mutex<BTreeMap<String, Arc<Gate>>>>,
}

/// One repository.
#[derive(Debug)]
struct Gate {
    folder: PathBuf,
    /// Shared by writers, held alone while it is cleaned.
    room: Arc<RwLock<()>>,
    /// A writer has ended in a way that may have left something.
    is_littered: AtomicBool,
}

/// One git, or several in a row, that may write to a repository. Dropping it without
/// [`done`](Self::done) says that it may have left something.
#[derive(Debug)]
pub struct Writing {
    gate: Arc<Gate>,
    place: Option<OwnedRwLockReadGuard<()>>,
    is_done: bool,
}

impl Writers {
    /// Watches over the repositories of a home.
    #[must_use]
    pub fn new(home: PathBuf) -> Self {
        Self {
            home: home.into(),
            gates: Arc::default(),
        }
    }

    /// Announces somebody who writes to the repository of a name; waits while it is being cleaned.
    pub async fn enter(&self, name: &str) -> Writing {
        let gate = self.gate(name);
        let place = Arc::clone(&gate.room).read_owned().await;
        Writing {
            gate,
            place: Some(place),
            is_done: false,
        }
    }

    /// Announces somebody who tidies a repository, unless anybody writes to it just now. Others may
    /// come while it does.
    pub(super) fn enter_idle(&self, name: &str) -> Option<Writing> {
        let gate = self.gate(name);
        let alone = Arc::clone(&gate.room).try_write_owned().ok()?;
        Some(Writing {
            gate,
            place: Some(alone.downgrade()),
            is_done: false,
        })
    }

    fn gate(&self, name: &str) -> Arc<Gate> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        let gate = gates.entry(name.to_owned()).or_insert_with(|| {
            Arc::new(Gate {
                folder: repository::folder(&self.home).join(format!("{name}.git")),
                room: Arc::default(),
                is_littered: AtomicBool::new(false),
            })
        });
        Arc::clone(gate)
    }
}

impl Writing {
    /// Every git of this writer has ended by itself, and so has left nothing.
    pub fn done(mut self) {
        self.is_done = true;
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if !self.is_done {
            self.gate.is_littered.store(true, Ordering::SeqCst);
        }
        drop(self.place.take());
        // Without a runtime the coordinator has ended, and the next one cleans when it starts.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if !self.gate.is_littered.load(Ordering::SeqCst) {
            return;
        }
        // If somebody else writes, the last of them comes here too.
        if let Ok(alone) = Arc::clone(&self.gate.room).try_write_owned() {
            let gate = Arc::clone(&self.gate);
            runtime.spawn_blocking(move || gate.clean(&alone));
        }
    }
}

impl Gate {
    fn clean(&self, _alone: &OwnedRwLockWriteGuard<()>) {
        match repository::clean_one(&self.folder) {
            Ok(()) => self.is_littered.store(false, Ordering::SeqCst),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "what a killed git left is not removed yet");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// A home with one repository, in which a lock lies.
    fn home() -> (tempfile::TempDir, PathBuf) {
        let home = tempfile::tempdir().unwrap();
        let folder = repository::folder(home.path()).join("site.git");
        for inside in [
            "refs/heads",
            "objects/pack",
            "objects/tmp_objdir-incoming-x",
        ] {
            std::fs::create_dir_all(folder.join(inside)).unwrap();
        }
        let lock = folder.join("refs/heads/main.lock");
        std::fs::write(&lock, "").unwrap();
        (home, lock)
    }

    #[tokio::test]
    async fn what_a_writer_left_is_removed_when_the_last_one_has_ended() {
        let (home, lock) = home();
        let writers = Writers::new(home.path().to_owned());
        let (killed, other) = (writers.enter("site").await, writers.enter("site").await);
        drop(killed);
        assert!(lock.exists(), "the other may hold it");
        other.done();
        let begun = Instant::now();
        while lock.exists() {
            assert!(begun.elapsed() < Duration::from_secs(10));
            tokio::task::yield_now().await;
        }
        // Whoever comes next waits until everything is gone.
        writers.enter("site").await.done();
        let incoming = home.path().join("repos/site.git/objects");
        assert_eq!(std::fs::read_dir(incoming).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn nothing_is_touched_after_writers_that_ended_well() {
        let (home, lock) = home();
        let writers = Writers::new(home.path().to_owned());
        writers.enter("site").await.done();
        let gate = Arc::clone(&writers.gates.lock().unwrap()["site"]);
        // Behind a cleaning, if there were one.
        drop(gate.room.write().await);
        assert!(lock.exists());
    }
}
