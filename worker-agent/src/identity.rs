//! Who a worker is, and the folder that is its alone.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_connect::private_file;
use serde::{Deserialize, Serialize};

use crate::clock;

pub(crate) const LOCK: &str = "lock";
/// How long a lock that is about to be let go is waited for, and how often it is looked at.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// Folder of what workers share.
const CACHE: &str = "cache";
pub(crate) const IDENTITY: &str = "identity.json";
/// Format of everything in a worker's folder: spools, outbox, folders of leases. Grows with every
/// change that an older program could not live with.
const FORMAT: u32 = 1;
const IDENTITY_BYTES_MAX: u64 = 16 * 1024;
/// Workers of one user on one host; more is a mistake of the starter.
const PLACES_MAX: u32 = 4_096;
/// Lives of one allocation that are told apart; batch systems hold a job that was begun so often.
const RESTARTS_MAX: u32 = 1_000;
/// Longest host name and allocation in a worker's id; with its other parts the id stays below the
/// wire's 200 bytes.
const PART_BYTES_MAX: usize = 80;

/// Where workers keep their state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateDir {
    /// Exactly this folder.
    At(PathBuf),
    /// The first free of the numbered folders in this one.
    Within(PathBuf),
    /// As [`StateDir::Within`], in an allocation's scratch: nobody comes back to it when the
    /// allocation is over, and not every system empties it.
    Scratch(PathBuf),
}

impl StateDir {
    /// Finds the default: node-local scratch in an allocation, else the `worker` folder in
    /// `MUSTER_HOME` or in the platform's state folder.
    pub fn find(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        if let (Some(allocation), Some(scratch)) = (
            variable("SLURM_JOB_ID"),
            variable("SLURM_TMPDIR").or_else(|| variable("TMPDIR")),
        ) {
            let name = format!("muster-{}", plain(&allocation));
            return Ok(Self::Scratch(Path::new(&scratch).join(name).join("worker")));
        }
        let home = variable("MUSTER_HOME").map(PathBuf::from);
        let state = || variable("XDG_STATE_HOME").map(|state| Path::new(&state).join("muster"));
        let user = || variable("HOME").map(|home| Path::new(&home).join(".local/state/muster"));
        let home = home.or_else(state).or_else(user).ok_or(Error::NoHome)?;
        Ok(Self::Within(home.join("worker")))
    }
}

/// The allocation that a worker runs in, such as a Slurm job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocation {
    /// Tells it from all others on the same host that may live at the same time.
    pub name: String,
    /// How often it was begun again under that name: a job that was requeued keeps its id.
    pub restarts: u32,
    /// It is a whole machine, known to its pool by that name: images give many one host name.
    pub is_machine: bool,
}

impl Allocation {
    /// Finds what the environment says: MUSTER_ALLOCATION, else the Slurm job and, where several
    /// tasks of it run, which of them this is.
    pub(crate) fn find(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        // Pool managers may remove a variable's value by setting it to nothing.
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let of_slurm = || {
            // Each task of an array has a job id of its own.
            let job = variable("SLURM_JOB_ID")?;
            let task = variable("SLURM_PROCID").filter(|task| task != "0");
            Some(task.map_or(job.clone(), |task| format!("{job}.t{task}")))
        };
        let restarts = variable("SLURM_RESTART_COUNT").and_then(|count| count.parse().ok());
        Some(Self {
            name: variable("MUSTER_ALLOCATION").or_else(of_slurm)?,
            restarts: restarts.unwrap_or(0),
            is_machine: false,
        })
    }
}

/// Ids that a worker can have.
struct Ids {
    /// Host and allocation.
    prefix: String,
    restarts: u32,
}

impl Ids {
    /// Gives the id of a worker whose folder is new.
    ///
    /// In an allocation that was begun again, an earlier life's folder may be lost, and with it the
    /// number of its start and the word that its processes are gone. So it is another worker, and
    /// what the earlier one held runs out by itself.
    fn new_at(&self, place: &str) -> String {
        self.of_life(self.restarts, place)
    }

    /// Tells whether a folder is one of this worker's, of this life of its allocation or an earlier
    /// one.
    fn are_of(&self, worker: &str, place: &str) -> bool {
        (0..=self.restarts).any(|life| self.of_life(life, place) == worker)
    }

    fn of_life(&self, life: u32, place: &str) -> String {
        let prefix = &self.prefix;
        match life {
            0 => format!("{prefix}-{place}"),
            life => format!("{prefix}.r{life}-{place}"),
        }
    }
}

/// Looks whether a worker could have this folder for its state, apart from another worker that may have
/// it now; takes and changes nothing.
pub(crate) fn look(state: &StateDir) -> Result<(), Error> {
    let (StateDir::At(folder) | StateDir::Within(folder)) = state else {
        // Another name is chosen for one that is not ours.
        return Ok(());
    };
    if !folder.exists() {
        return Ok(());
    }
    check_owner(folder)?;
    match state {
        StateDir::At(folder) => stored(folder).map(drop),
        _ => Ok(()),
    }
}

/// Tells where workers keep what they share.
pub(crate) fn cache_of(state: &StateDir, host: &str) -> PathBuf {
    match state {
        StateDir::At(folder) => folder.join(CACHE),
        StateDir::Within(base) | StateDir::Scratch(base) => base.join(CACHE).join(plain(host)),
    }
}

/// A worker's identity; its folder stays locked for as long as this lives.
#[derive(Debug)]
pub(crate) struct Identity {
    /// Stable id: host, allocation, and place on the host.
    pub(crate) worker: String,
    /// Name of the host.
    pub(crate) host: String,
    /// Number of this start; larger than that of any earlier one.
    pub(crate) incarnation: u64,
    /// The folder that is this worker's alone.
    pub(crate) folder: PathBuf,
    /// Where workers of this host keep what they share.
    pub(crate) shared: PathBuf,
    /// The folder of all workers of the allocation, if it is in a scratch.
    scratch: Option<PathBuf>,
    _lock: File,
}

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    worker: String,
    incarnation: u64,
    #[serde(default = "first_format")]
    format: u32,
    #[serde(default)]
    written_by: String,
}

/// The only format without a number.
const fn first_format() -> u32 {
    1
}

impl Identity {
    /// Takes a free folder and stores the new incarnation, durably, before it returns.
    pub(crate) fn take(
        state: &StateDir,
        host: &str,
        allocation: Option<&Allocation>,
    ) -> Result<Self, Error> {
        let host = plain(host);
        let name = allocation.map(|allocation| plain(&allocation.name));
        let ids = Ids {
            prefix: match name.filter(|name| !name.is_empty()) {
                Some(name) => format!("{host}-{name}"),
                None => host.clone(),
            },
            restarts: allocation.map_or(0, |allocation| allocation.restarts.min(RESTARTS_MAX)),
        };
        match state {
            StateDir::At(folder) => {
                create_private(folder)?;
                check_owner(folder)?;
                let folder = folder
                    .canonicalize()
                    .map_err(Error::file("find the absolute path of", folder))?;
                let place = &place_of(&folder);
                let lock = lock_patiently(&folder)?.ok_or_else(|| Error::Taken(folder.clone()))?;
                let shared = folder.join(CACHE);
                let known = stored(&folder)?.map(|stored| stored.worker);
                let worker = known
                    .filter(|known| ids.are_of(known, place))
                    .unwrap_or_else(|| ids.new_at(place));
                Self::begin(folder, shared, worker, host, lock)
            }
            StateDir::Within(base) | StateDir::Scratch(base) => {
                let is_scratch = matches!(state, StateDir::Scratch(_));
                let moved = match base.parent() {
                    Some(parent) if is_scratch => elsewhere(parent)?,
                    _ => None,
                };
                let base = match (&moved, base.file_name()) {
                    (Some(parent), Some(name)) => &parent.join(name),
                    _ => base,
                };
                create_private(base)?;
                check_owner(base)?;
                if is_scratch {
                    check_ours(base)?;
                }
                let base = base
                    .canonicalize()
                    .map_err(Error::file("find the absolute path of", base))?;
                for place in 1..=PLACES_MAX {
                    let folder = base.join(place.to_string());
                    create_private(&folder)?;
                    let Some(lock) = lock(&folder)? else {
                        continue;
                    };
                    // In a home shared by hosts, a folder stays with the host that began it: its
                    // leftovers can be confirmed only there.
                    let place = match &moved {
                        // Others of the allocation have places of that number elsewhere.
                        Some(_) => place_of(&folder),
                        None => place.to_string(),
                    };
                    let worker = match stored(&folder)?.map(|stored| stored.worker) {
                        None => ids.new_at(&place),
                        Some(known) if ids.are_of(&known, &place) => known,
                        Some(_) => continue,
                    };
                    let shared = base.join(CACHE).join(&host);
                    let mut identity = Self::begin(folder, shared, worker, host, lock)?;
                    if is_scratch {
                        identity.scratch = Some(base);
                    }
                    return Ok(identity);
                }
                Err(Error::NoPlace(base))
            }
        }
    }

    fn begin(
        folder: PathBuf,
        shared: PathBuf,
        worker: String,
        host: String,
        lock: File,
    ) -> Result<Self, Error> {
        let before = stored(&folder)?.map_or(0, |stored| stored.incarnation);
        let incarnation = before.saturating_add(1).max(clock::wall_millis());
        let stored = Stored {
            worker,
            incarnation,
            format: FORMAT,
            written_by: env!("CARGO_PKG_VERSION").to_owned(),
        };
        // Whoever was writing them had the lock, and is gone.
        private_file::remove_unfinished(&folder).map_err(Error::file("tidy", &folder))?;
        let path = folder.join(IDENTITY);
        let bytes = serde_json::to_vec_pretty(&stored)
            .map_err(io::Error::from)
            .map_err(Error::file("write", &path))?;
        private_file::replace(&path, &bytes).map_err(Error::file("write", &path))?;
        create_private(&shared)?;
        Ok(Self {
            worker: stored.worker,
            host,
            incarnation,
            folder,
            shared,
            scratch: None,
            _lock: lock,
        })
    }

    /// Removes what a worker that owes nothing leaves in an allocation's scratch; the last one there
    /// removes what they have shared. Elsewhere all stays for the next start.
    pub(crate) fn leave(self) {
        let Some(base) = self.scratch else {
            return;
        };
        let removed = std::fs::remove_dir_all(&self.folder).and_then(|()| {
            let mut others = std::fs::read_dir(&base)?.flatten();
            if others.any(|other| other.file_name() != CACHE) {
                return Ok(());
            }
            std::fs::remove_dir_all(base.join(CACHE))?;
            std::fs::remove_dir(&base)
        });
        match removed {
            // Whatever else is there was put there by others.
            Ok(()) => drop(base.parent().map(std::fs::remove_dir)),
            Err(error) => {
                let folder = base.display();
                tracing::warn!(error = %error, "{folder} could not be removed");
            }
        }
    }
}

/// Name of this host; in a Slurm job the node's, since several nodes may be one machine's.
pub fn host_name() -> String {
    if let Ok(node) = std::env::var("SLURMD_NODENAME")
        && std::env::var_os("SLURM_JOB_ID").is_some()
        && !node.is_empty()
    {
        return node;
    }
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy();
    match name.split('.').next() {
        Some(short) if !short.is_empty() => short.to_owned(),
        _ => "localhost".to_owned(),
    }
}

/// Takes the lock of the one folder that will do, waiting a moment for it: a process that was just
/// killed holds its locks until the system has buried it, and one that is just being started has a
/// copy of its parent's until it is itself.
fn lock_patiently(folder: &Path) -> Result<Option<File>, Error> {
    let until = clock::now().after(LOCK_PATIENCE);
    loop {
        let taken = lock(folder)?;
        if taken.is_some() || clock::now() >= until {
            return Ok(taken);
        }
        std::thread::sleep(LOCK_PAUSE);
    }
}

/// Takes the folder's lock and leaves the process id in it, for whoever wants this worker to leave.
fn lock(folder: &Path) -> Result<Option<File>, Error> {
    let path = folder.join(LOCK);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(Error::file("open", &path))?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0)
                .and_then(|()| writeln!(file, "{}", std::process::id()))
                .map_err(Error::file("write", &path))?;
            Ok(Some(file))
        }
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(source)) => Err(Error::file("lock", &path)(source)),
    }
}

fn stored(folder: &Path) -> Result<Option<Stored>, Error> {
    let path = folder.join(IDENTITY);
    match private_file::read_bounded(&path, IDENTITY_BYTES_MAX) {
        Ok(bytes) => {
            let stored: Stored = serde_json::from_slice(&bytes).map_err(|source| {
                let path = path.clone();
                Error::Garbled { path, source }
            })?;
            if stored.format > FORMAT {
                return Err(Error::NewerFormat {
                    folder: folder.to_owned(),
                    written_by: stored.written_by.chars().take(40).collect(),
                    found: stored.format,
                });
            }
            Ok(Some(stored))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::file("read", &path)(source)),
    }
}

/// Reads which worker a folder belongs to; `None` before its first start.
pub(crate) fn worker_of(folder: &Path) -> io::Result<Option<String>> {
    let stored = stored(folder).map_err(io::Error::other)?;
    Ok(stored.map(|stored| stored.worker))
}

/// Creates a folder, and those it is in, for this user alone.
pub(crate) fn create_private(folder: &Path) -> Result<(), Error> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(Error::file("create the folder", folder))
}

/// Names the place of a worker by its folder: two workers with folders of their own must not share an id
/// on one host.
fn place_of(folder: &Path) -> String {
    let place = blake3::hash(folder.as_os_str().as_encoded_bytes()).to_hex();
    place.get(..8).unwrap_or_default().to_owned()
}

/// Makes an allocation's folder in a scratch to which everybody can write. Whoever guessed its name and
/// took it must not keep the allocation from work: the folder has another name then, which is given.
fn elsewhere(folder: &Path) -> Result<Option<PathBuf>, Error> {
    match create_private(folder).and_then(|()| check_ours(folder)) {
        Ok(()) => return Ok(None),
        Err(error) if std::fs::symlink_metadata(folder).is_err() => return Err(error),
        Err(error) => {
            tracing::warn!(error = %error, "a scratch folder is taken, and another name chosen");
        }
    }
    let (random, _) = uuid::Uuid::new_v4().as_u64_pair();
    let mut other = folder.as_os_str().to_owned();
    other.push(format!("-{:08x}", random >> 32));
    let other = PathBuf::from(other);
    // Never one that is there.
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(&other)
        .map_err(Error::file("create the folder", &other))?;
    Ok(Some(other))
}

/// Refuses a folder that somebody else made, as they can in a scratch folder that all users share.
fn check_owner(folder: &Path) -> Result<(), Error> {
    let found = std::fs::metadata(folder).map_err(Error::file("look at", folder))?;
    if found.uid() == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(Error::NotOurs(folder.to_owned()))
}

/// Refuses a folder that somebody else has made, or that is a link to one.
fn check_ours(folder: &Path) -> Result<(), Error> {
    let found = std::fs::symlink_metadata(folder).map_err(Error::file("look at", folder))?;
    if found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(Error::NotOurs(folder.to_owned()))
}

fn plain(text: &str) -> String {
    let plain = |character: &char| character.is_ascii_alphanumeric() || "._-".contains(*character);
    text.chars().filter(plain).take(PART_BYTES_MAX).collect()
}

/// Why a worker could not get its folder.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No variable says where state belongs.
    #[error("neither MUSTER_HOME nor HOME is set; name a folder with --state-dir")]
    NoHome,
    /// Another worker runs there.
    #[error("another worker uses {}; name another folder with --state-dir", .0.display())]
    Taken(PathBuf),
    /// Somebody else owns the folder.
    #[error("{} belongs to another user; name another folder with --state-dir", .0.display())]
    NotOurs(PathBuf),
    /// Something else has written into the file, or its disk has lost it.
    #[error("cannot understand {}; move it away: the worker makes it anew, with the same id", path.display())]
    Garbled {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// All places are taken.
    #[error("all {PLACES_MAX} places in {} are taken by other workers or hosts", .0.display())]
    NoPlace(PathBuf),
    /// A newer program has left it.
    #[error(
        "{} was written by Muster {written_by} in format {found}; this one reads up to format \
         {FORMAT}: start that or a newer Muster, or name another folder with --state-dir",
        folder.display()
    )]
    NewerFormat {
        /// The worker's folder.
        folder: PathBuf,
        /// Version of the program.
        written_by: String,
        /// Its format.
        found: u32,
    },
    /// The file system refused.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// Tells whether only a person can mend it: another start alone would find the same.
    pub(crate) fn is_lasting(&self) -> bool {
        use io::ErrorKind::{
            AlreadyExists, IsADirectory, NotADirectory, PermissionDenied, ReadOnlyFilesystem,
        };
        match self {
            Self::NoHome | Self::NotOurs(_) | Self::Garbled { .. } | Self::NewerFormat { .. } => {
                true
            }
            Self::Taken(_) | Self::NoPlace(_) => false,
            Self::File { source, .. } => matches!(
                source.kind(),
                AlreadyExists
                    | IsADirectory
                    | NotADirectory
                    | PermissionDenied
                    | ReadOnlyFilesystem
            ),
        }
    }

    /// Says what to do, where the message does not.
    pub(crate) fn way_out(&self) -> Option<&'static str> {
        let Self::File { source, .. } = self else {
            return None;
        };
        Some(match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "free some space there, or name a folder on another disk with --state-dir"
            }
            _ => "name a folder that you may write with --state-dir",
        })
    }

    fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File {
            doing,
            path: path.to_owned(),
            source,
        }
    }
}

#[cfg(test)]
mod tests;
