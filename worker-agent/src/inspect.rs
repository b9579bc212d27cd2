//! What is on a worker's disk, read without changing anything: for the audit.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use muster_connect::{CaCertificate, Fingerprint, private_file};
use muster_proto::v1::{Grant, Report};

use crate::attempt::LeaseFolder;
use crate::frames::FrameReader;
use crate::identity::{self, IDENTITY};
use crate::session::link;
use crate::{outbox, spool, supervisor};

/// A file of records: what of it is sound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// Sound records at its beginning.
    pub count: u64,
    /// Where they end.
    pub sound_bytes: u64,
    /// Length of the file.
    pub bytes: u64,
    /// What follows the sound records is the beginning of one more, or nothing.
    pub is_torn: bool,
}

impl Records {
    /// Tells whether something follows the sound records that is not just a half-written one.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.sound_bytes < self.bytes && !self.is_torn
    }
}

/// A launch of a lease.
#[derive(Debug)]
pub struct Launch {
    /// Its folder.
    pub folder: PathBuf,
    /// The word that its processes carry; `None` if it was never told what to do.
    pub mark: io::Result<Option<String>>,
    /// Its report is there.
    pub is_over: bool,
    /// A supervisor holds its lock.
    pub is_supervised: bool,
    /// The cgroup that was made for it and is still there.
    pub cgroup: Option<PathBuf>,
}

/// The folder of a lease.
#[derive(Debug)]
pub struct Lease {
    /// Its number.
    pub lease: u64,
    /// Its folder.
    pub folder: PathBuf,
    /// What it is for, without its secret; `None` if the folder was not made completely.
    pub grant: io::Result<Option<Grant>>,
    /// Its events; `None` if there is no such file.
    pub events: io::Result<Option<Records>>,
    /// Number of the last event.
    pub last_event: u64,
    /// Its launches, oldest first.
    pub launches: Vec<Launch>,
    /// It has a checkout with something that may not be published.
    pub holds_edits: bool,
    /// Where its repository borrows objects from, and that is not there.
    pub borrows_from_nowhere: Option<PathBuf>,
}

/// A worker's folder.
#[derive(Debug)]
pub struct Worker {
    /// The folder.
    pub folder: PathBuf,
    /// The worker's stable id; `None` before its first start.
    pub id: io::Result<Option<String>>,
    /// A worker runs on it.
    pub is_running: bool,
    /// Its reports' file; `None` if there is none.
    pub outbox: io::Result<Option<Records>>,
    /// Reports without an acknowledgement.
    pub pending: Vec<Report>,
    /// Leases that have folders.
    pub leases: Vec<Lease>,
    /// Edits that could not be published.
    pub kept: Vec<PathBuf>,
    /// Folders that are being deleted.
    pub deleted: Vec<PathBuf>,
    /// What was set aside when the folder met another coordinator.
    pub others: Vec<PathBuf>,
    /// Files that were being written when their process was killed.
    pub unfinished: Vec<PathBuf>,
}

/// Finds the workers' folders in a state folder: that folder itself, or those numbered in it.
///
/// # Errors
/// The folder cannot be read.
pub fn workers(state: &Path) -> io::Result<Vec<PathBuf>> {
    if state.join(IDENTITY).exists() || state.join("leases").exists() {
        return Ok(vec![state.to_owned()]);
    }
    let mut found: Vec<PathBuf> = list(state)?
        .into_iter()
        .filter(|path| path.join(IDENTITY).exists())
        .collect();
    found.sort_unstable();
    Ok(found)
}

/// Finds the caches of workers in a state folder.
#[must_use]
pub fn caches(state: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let shared = state.join("cache");
    let of_worker = workers(state).unwrap_or_default();
    let roots = of_worker.iter().map(|worker| worker.join("cache"));
    for root in std::iter::once(shared).chain(roots) {
        for path in list(&root).unwrap_or_default() {
            if is_repository(&path) {
                found.push(path);
            } else {
                let below = list(&path).unwrap_or_default();
                found.extend(below.into_iter().filter(|path| is_repository(path)));
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

fn is_repository(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "git") && path.is_dir()
}

/// Looks at a worker's folder.
///
/// # Errors
/// The folder cannot be listed.
pub fn look(folder: &Path) -> io::Result<Worker> {
    let is_running = is_locked(&folder.join(identity::LOCK));
    let (outbox, pending) = match outbox::read(&folder.join(outbox::NAME)) {
        Ok((found, pending)) => (Ok(found), pending),
        Err(error) => (Err(error), Vec::new()),
    };
    let leases = folder.join("leases");
    let (mut found, mut deleted, mut unfinished) = (Vec::new(), Vec::new(), Vec::new());
    if leases.exists() {
        for number in LeaseFolder::list(&leases)? {
            found.push(lease(&leases, number, is_running));
        }
        for path in list(&leases)? {
            if name(&path).starts_with(crate::attempt::DELETED) {
                deleted.push(path);
            }
        }
    }
    let mut others = Vec::new();
    for path in list(folder)? {
        if name(&path).starts_with("other-coordinator-") {
            others.push(path);
        } else if name(&path).starts_with(".muster-") {
            unfinished.push(path);
        }
    }
    let kept = folder.join(crate::disk::KEPT);
    Ok(Worker {
        folder: folder.to_owned(),
        id: identity::worker_of(folder),
        is_running,
        outbox,
        pending,
        leases: found,
        kept: list(&kept).unwrap_or_default(),
        deleted,
        others,
        unfinished,
    })
}

fn lease(leases: &Path, number: u64, is_running: bool) -> Lease {
    let folder = LeaseFolder::of(leases, number);
    let mut last_event = 0;
    let events = records(&folder.events(), |record| {
        if let Some((event, _)) = spool::decode(record) {
            last_event = event.number;
        }
    });
    let launches = folder.launches().unwrap_or_default();
    let launches = launches.into_iter().map(|launch| {
        let folder = folder.launch(launch);
        let is_over = supervisor::is_over(&folder);
        let locks = supervisor::locks_of(&folder);
        Launch {
            mark: supervisor::mark_of(&folder).map_err(io::Error::other),
            is_over,
            // A supervisor that is just beginning must find its lock free; only a running worker
            // starts one.
            is_supervised: !is_over && (is_running || locks.iter().any(|lock| is_locked(lock))),
            cgroup: supervisor::cgroup_of(&folder),
            folder,
        }
    });
    let workspace = folder.workspace();
    Lease {
        lease: number,
        folder: leases.join(number.to_string()),
        grant: folder.grant(),
        events,
        last_event,
        launches: launches.collect(),
        holds_edits: workspace.join("work").exists() && !folder.is_published(),
        borrows_from_nowhere: borrows_from_nowhere(&workspace.join("control.git")),
    }
}

/// Reads the sound beginning of a file of records; `None` if there is no such file.
pub(crate) fn records(path: &Path, mut each: impl FnMut(&[u8])) -> io::Result<Option<Records>> {
    let bytes = match std::fs::metadata(path) {
        Ok(found) => found.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut reader = FrameReader::open(path, 0).map_err(io::Error::other)?;
    let mut found = Records {
        bytes,
        ..Records::default()
    };
    while let Some(record) = reader.next_record().map_err(io::Error::other)? {
        found.count += 1;
        each(&record);
    }
    found.sound_bytes = reader.offset();
    // A file that grew meanwhile has more than it was measured to have.
    found.bytes = found.bytes.max(found.sound_bytes);
    found.is_torn = is_torn(path, found.sound_bytes)?;
    Ok(Some(found))
}

/// Tells whether what follows is the beginning of a record, a hole, or nothing.
fn is_torn(path: &Path, from: u64) -> io::Result<bool> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut rest = Vec::new();
    let most = crate::frames::RECORD_BYTES_MAX as u64 + 16;
    file.take(most).read_to_end(&mut rest)?;
    let Some(length) = rest.first_chunk::<4>() else {
        return Ok(true);
    };
    let length = u32::from_le_bytes(*length) as usize;
    let cut = length <= crate::frames::RECORD_BYTES_MAX && rest.len() < 8 + length;
    Ok(cut || rest.iter().all(|byte| *byte == 0))
}

/// Gives where a repository borrows objects from, if that is not there.
#[must_use]
pub fn borrows_from_nowhere(repository: &Path) -> Option<PathBuf> {
    let list = std::fs::read_to_string(repository.join("objects/info/alternates")).ok()?;
    list.lines()
        .map(|line| repository.join("objects").join(line))
        .find(|place| !place.is_dir())
}

/// Tells whether somebody holds a lock, without taking it from anybody.
fn is_locked(path: &Path) -> bool {
    let Ok(file) = File::open(path) else {
        return false;
    };
    // Shared, and let go at once as the file is closed.
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        found.push(entry?.path());
    }
    found.sort_unstable();
    Ok(found)
}

fn name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// A process that says by its environment that it belongs to an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// The word that the processes of one launch share.
    pub mark: String,
    /// `MUSTER_RUN`, as far as it says so.
    pub run: Option<String>,
    /// `MUSTER_TASK`.
    pub task: Option<String>,
    /// `MUSTER_ATTEMPT`.
    pub attempt: Option<u32>,
    /// Fingerprint of the coordinator that its worker has joined, as far as that can be told.
    pub coordinator: Option<Fingerprint>,
    /// Its command line, shortened.
    pub command: String,
}

/// Bytes of a command line that are shown.
const COMMAND_BYTES_MAX: usize = 200;

/// Tells which coordinator the worker has joined in whose folder a file of a lease is.
fn joined(file: &Path) -> Option<Fingerprint> {
    let worker = file.parent()?.parent()?.parent()?;
    let ca = CaCertificate::read(&worker.join(link::CA)).ok()?;
    Some(ca.fingerprint())
}

/// Finds all processes of this host that carry a launch's mark and whose environment may be read.
#[must_use]
pub fn processes() -> Vec<Process> {
    let mut found = Vec::new();
    for path in list(Path::new("/proc")).unwrap_or_default() {
        let Ok(pid) = name(&path).parse() else {
            continue;
        };
        let Ok(environment) = private_file::read_bounded(&path.join("environ"), 8 << 20) else {
            continue;
        };
        let variable = |wanted: &str| {
            environment.split(|byte| *byte == 0).find_map(|entry| {
                let value = entry.strip_prefix(wanted.as_bytes())?.strip_prefix(b"=")?;
                Some(String::from_utf8_lossy(value).into_owned())
            })
        };
        let Some(mark) = variable(supervisor::MARK_VARIABLE) else {
            continue;
        };
        let command = std::fs::read(path.join("cmdline")).unwrap_or_default();
        let command = command.get(..COMMAND_BYTES_MAX).unwrap_or(&command);
        found.push(Process {
            pid,
            mark,
            run: variable("MUSTER_RUN"),
            task: variable("MUSTER_TASK"),
            attempt: variable("MUSTER_ATTEMPT").and_then(|number| number.parse().ok()),
            coordinator: variable("MUSTER_CONTEXT_FILE").and_then(|path| joined(Path::new(&path))),
            command: String::from_utf8_lossy(command)
                .replace('\0', " ")
                .trim()
                .to_owned(),
        });
    }
    found
}
