//! Whether the disk of a worker's state can be worked on.
//!
//! A worker whose disk is full is the fastest of all at failing: it would take every task and hand
//! it back. So it offers no slot from the first sign of trouble until something could be written.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use muster_git::Cache;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::clock::{self, Boottime};
use crate::failure::chain;

/// How often the disk is looked at.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Room, in bytes, below which a worker begins no new work: enough for reports, spools and the
/// commits of what runs.
pub const FREE_BYTES_MIN: u64 = 16 << 20;
/// The cache on a worker's own disk gives way before attempts have less room than this part of it, or than
/// so many bytes, whichever is less. What a repository needs in the cache is known when it is fetched, and
/// then others go for it; what attempts write is known to nobody.
const CACHE_LEAVES_PART: u64 = 10;
const CACHE_LEAVES_BYTES: u64 = 2 << 30;
/// How often the cache is asked to give way on a disk where that has not helped.
const GIVE_WAY_EVERY: Duration = Duration::from_secs(10);
/// Folder in it of edits that the coordinator could not take.
pub(crate) const KEPT: &str = "kept";
/// What is written and synced to find out whether the disk works again.
const PROBE_BYTES: usize = 64 * 1024;
/// Name of that file.
const PROBE: &str = "disk-probe";

/// Tells what is the matter with a disk, and hears of signs of it; clones share everything.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    folder: Arc<Path>,
    cache: Arc<Path>,
    wanted: Arc<AtomicU64>,
    trouble: Arc<watch::Sender<Option<String>>>,
    suspected: Arc<Notify>,
    free: Arc<watch::Sender<u64>>,
}

impl Disk {
    /// Watches the disks of a worker's folder and of its cache, which may be another; [`Disk::watch`]
    /// has to run for that.
    pub(crate) fn new(folder: PathBuf, cache: PathBuf) -> Self {
        Self {
            folder: folder.into(),
            cache: cache.into(),
            wanted: Arc::new(AtomicU64::new(FREE_BYTES_MIN)),
            trouble: Arc::new(watch::Sender::new(None)),
            suspected: Arc::default(),
            free: Arc::new(watch::Sender::new(u64::MAX)),
        }
    }

    /// Looks at once, so that nothing is offered before the first look; tells what is the matter.
    pub(crate) fn look_now(&self) -> Option<String> {
        self.note_free();
        let trouble = look(&self.folder, false)
            .and_then(|()| look_at_cache(&self.cache))
            .err()?
            .to_string();
        self.set(Some(&trouble));
        Some(trouble)
    }

    /// Wants so many bytes free in the worker's folder; the cache gives way for them if it is on the same
    /// disk.
    pub(crate) fn want(&self, bytes: u64) {
        self.wanted.store(bytes, Ordering::Relaxed);
    }

    /// Lets the cache give way to attempts, and to what its own disk has to have free. Tells whether that
    /// was not enough.
    async fn make_room(self, cache: Cache) -> bool {
        let Some(wanted) = self.lacking().await else {
            return false;
        };
        if let Err(error) = cache.make_room(wanted).await {
            tracing::warn!(error = chain(&error), "the cache cannot make room");
        }
        self.lacking().await.is_some()
    }

    /// How many bytes the cache's disk should have free, if it has less.
    async fn lacking(&self) -> Option<u64> {
        let this = self.clone();
        // On a thread of its own: a disk that hangs holds nobody up.
        let looked = tokio::task::spawn_blocking(move || this.lacks());
        looked.await.ok().flatten()
    }

    fn lacks(&self) -> Option<u64> {
        let (own, found) = (room(&self.folder).ok()?, room(&self.cache).ok()?);
        let device = |folder: &Path| std::fs::metadata(folder).map(|found| found.dev()).ok();
        let mut wanted = FREE_BYTES_MIN;
        if device(&self.folder) == device(&self.cache) {
            let left = (own.all / CACHE_LEAVES_PART).min(CACHE_LEAVES_BYTES);
            wanted = self.wanted.load(Ordering::Relaxed).max(left);
        }
        (found.bytes < wanted).then_some(wanted)
    }

    /// Notes that something could not be done there. The disk counts as unusable at once and
    /// until it has shown the opposite.
    pub(crate) fn suspect(&self, what: &str) {
        self.set(Some(what));
        self.suspected.notify_one();
    }

    /// As [`Disk::suspect`], if an error looks like it. Tells whether it does.
    pub(crate) fn suspect_if_sign(&self, error: &str) -> bool {
        let is_sign = is_sign(error);
        if is_sign {
            self.suspect(error);
        }
        is_sign
    }

    /// Waits until the disk can be worked on.
    pub(crate) async fn usable(&self) {
        // Fails only when nobody could tell any more.
        let _ = self.trouble().wait_for(Option::is_none).await;
    }

    /// Bytes that are free in the worker's folder, now and whenever that changes.
    pub(crate) fn free(&self) -> watch::Receiver<u64> {
        self.free.subscribe()
    }

    fn note_free(&self) {
        if let Ok(room) = room(&self.folder) {
            self.free.send_if_modified(|free| {
                let changed = *free != room.bytes;
                *free = room.bytes;
                changed
            });
        }
    }

    /// What is the matter, now and whenever that changes.
    pub(crate) fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.subscribe()
    }

    /// Looks at the disk again and again until it is dropped; `lender` is the cache.
    pub(crate) async fn watch(self, lender: Cache, every: Duration) {
        let mut gave_way: Option<Boottime> = None;
        // Beside the looks: it may delete gigabytes, and what is the matter is told meanwhile.
        let mut giving: JoinSet<bool> = JoinSet::new();
        loop {
            if let Some(lacks) = giving.try_join_next() {
                gave_way = lacks.unwrap_or(true).then(clock::now);
            }
            // Never each second: it looks at all that is kept.
            if giving.is_empty()
                && gave_way.is_none_or(|at| clock::now() >= at.after(GIVE_WAY_EVERY))
            {
                giving.spawn(self.clone().make_room(lender.clone()));
            }
            let (folder, cache) = (Arc::clone(&self.folder), Arc::clone(&self.cache));
            let in_trouble = self.trouble.borrow().is_some();
            let this = self.clone();
            // On a thread of its own: a disk that hangs holds nobody up.
            let looked = tokio::task::spawn_blocking(move || {
                this.note_free();
                look(&folder, in_trouble).and_then(|()| look_at_cache(&cache))
            })
            .await;
            match looked {
                Ok(Ok(())) if in_trouble => self.set(None),
                // Nothing was written, so what was suspected meanwhile stands.
                Ok(Ok(())) => {}
                Ok(Err(error)) => self.set(Some(&error.to_string())),
                // It only fails when the worker ends.
                Err(_) => return,
            }
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = self.suspected.notified() => {
                    // Not at once: what failed a moment ago mostly fails again.
                    tokio::time::sleep(every).await;
                }
            }
        }
    }

    fn set(&self, trouble: Option<&str>) {
        self.trouble.send_if_modified(|known| {
            let changed = known.is_some() != trouble.is_some();
            if changed {
                let folder = self.folder.display();
                match trouble {
                    Some(what) => tracing::error!(
                        state = %folder,
                        what,
                        "the disk cannot be worked on; taking nothing new until it can: free some space or mend it"
                    ),
                    None => tracing::info!(state = %folder, "the disk can be worked on again"),
                }
            }
            *known = trouble.map(str::to_owned);
            changed
        });
    }
}

/// Tells whether an error, told with everything that caused it, came from a disk: our own are told
/// in the system's words, and git speaks English to us.
pub(crate) fn is_sign(error: &str) -> bool {
    let words = [
        "No space left on device",
        "Disk quota exceeded",
        "Read-only file system",
        "Input/output error",
    ];
    words.iter().any(|words| error.contains(words))
}

/// Room that is left on a disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) bytes: u64,
    /// Bytes of the whole disk.
    pub(crate) all: u64,
    /// Files that can be made; `None` where they are not counted.
    pub(crate) files: Option<u64>,
}

/// Looks at the room that is left to this user.
pub(crate) fn room(folder: &Path) -> io::Result<Room> {
    let found = rustix::fs::statvfs(folder)?;
    Ok(Room {
        bytes: found.f_bavail.saturating_mul(found.f_frsize),
        all: found.f_blocks.saturating_mul(found.f_frsize),
        // Some file systems do not count files, and say that there is room for none.
        files: (found.f_files > 0).then_some(found.f_favail),
    })
}

/// Looks at the room that is left; after trouble, also tries to write.
fn look(folder: &Path, in_trouble: bool) -> io::Result<()> {
    let room = room(folder)?;
    let free = room.bytes;
    if free < FREE_BYTES_MIN {
        let kept = kept_in(folder);
        return Err(io::Error::other(format!(
            "only {free} bytes are free, of {FREE_BYTES_MIN} that are needed{kept}"
        )));
    }
    if room.files == Some(0) {
        return Err(io::Error::other("there is no room for another file"));
    }
    if in_trouble { probe(folder) } else { Ok(()) }
}

/// Looks at the room for the cache, if it is there.
fn look_at_cache(cache: &Path) -> io::Result<()> {
    match room(cache) {
        Ok(room) if room.bytes < FREE_BYTES_MIN => Err(io::Error::other(format!(
            "only {} bytes are free for the cache in {}, of {FREE_BYTES_MIN} that are needed",
            room.bytes,
            cache.display()
        ))),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        // What is missing is made when it is needed.
        _ => Ok(()),
    }
}

/// Names what only a person can make room of: edits that nobody could take.
fn kept_in(folder: &Path) -> String {
    let kept = folder.join(KEPT);
    match std::fs::read_dir(&kept).map(Iterator::count) {
        Ok(count) if count > 0 => format!(
            "; unpublished edits of attempts ({count}) are kept in {}: take from them what you \
             want, then delete them",
            kept.display()
        ),
        _ => String::new(),
    }
}

fn probe(folder: &Path) -> io::Result<()> {
    let path = folder.join(PROBE);
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)?;
    file.write_all(&[0x5A; PROBE_BYTES])?;
    file.sync_all()?;
    std::fs::remove_file(&path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_suspected_disk_is_unusable_until_it_has_been_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let git = muster_git::Git::find().await.unwrap();
        let cache = Cache::open(&git, &folder.path().join("cache"))
            .await
            .unwrap();
        let disk = Disk::new(state.clone(), cache.root().to_owned());
        let mut trouble = disk.trouble();
        disk.suspect("cannot write");
        assert_eq!(trouble.borrow_and_update().as_deref(), Some("cannot write"));
        let watching = tokio::spawn(disk.clone().watch(cache, Duration::from_millis(1)));
        // The folder is not there: nothing can be written, and that is found again and again.
        while trouble.borrow().as_deref() == Some("cannot write") {
            tokio::task::yield_now().await;
        }
        assert!(trouble.borrow().is_some());
        std::fs::create_dir(&state).unwrap();
        trouble.wait_for(Option::is_none).await.unwrap();
        assert_eq!(std::fs::read_dir(&state).unwrap().count(), 0);
        watching.abort();
    }

    #[test]
    fn errors_of_disks_are_known_by_the_systems_words() {
        let full = io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
        assert!(is_sign(&full.to_string()));
        let broken = io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error());
        assert!(is_sign(&broken.to_string()));
        assert!(is_sign("git: fatal: write error: No space left on device"));
        assert!(!is_sign("fatal: the remote end hung up unexpectedly"));
    }

    #[test]
    fn edits_that_nobody_could_take_are_named_where_there_is_no_room() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(kept_in(folder.path()), "");
        std::fs::create_dir_all(folder.path().join("kept/r-t-1-7/work")).unwrap();
        let said = kept_in(folder.path());
        let place = folder.path().join("kept");
        assert!(
            said.contains(&format!("(1) are kept in {}", place.display())),
            "{said}"
        );
    }

    #[test]
    fn room_is_asked_for_before_something_fails() {
        let folder = tempfile::tempdir().unwrap();
        assert!(look(folder.path(), false).is_ok());
        // This file system has no room at all.
        assert!(look(Path::new("/proc"), false).is_err());
    }
}
