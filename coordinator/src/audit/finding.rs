//! What an audit finds: what is wrong, where, how bad it is, and what can be done about it.

use std::fmt;
use std::path::{Path, PathBuf};

use coordinator_core::state::RunImage;
use serde::Serialize;

use crate::store::BatchSeq;

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Something is lost, or two things contradict each other.
    Damage,
    /// Something killed or gone has left something behind. Nothing is lost by it.
    Leftover,
    /// Worth knowing; nothing is wrong.
    Note,
}

impl Level {
    /// Gives the word for people and programs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Damage => "damage",
            Self::Leftover => "leftover",
            Self::Note => "note",
        }
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $level:ident, $advice:expr;)*) => {
        /// The kinds of findings. Their names are stable: scripts may rely on them.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Code {
            $($(#[$doc])* $name,)*
        }

        impl Code {
            /// Every code there is.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Gives the stable name.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// Tells how bad it is.
            #[must_use]
            pub const fn level(self) -> Level {
                match self {
                    $(Self::$name => Level::$level,)*
                }
            }

            /// Says what to do where `doctor --repair` cannot mend it.
            #[must_use]
            pub const fn advice(self) -> &'static str {
                match self {
                    $(Self::$name => $advice,)*
                }
            }
        }
    };
}

/// For what only an older copy has.
const RESTORE: &str =
    "keep a copy of the home, then restore it from a backup: see `coordinator restore --help`";
/// For contradictions that no fault of a disk explains.
const REPORT: &str =
    "keep a copy of the home and report it: Muster promises that this cannot happen";
/// For what a worker settles by itself.
const START_WORKER: &str =
    "start that worker again: it settles what it has left before it says hello";
const NOTHING: &str = "nothing needs to be done";

codes! {
    // --- the journal ---
    /// The journal cannot be opened or read at all.
    JournalUnreadable = "journal-unreadable", Damage, RESTORE;
    /// SQLite finds its own file damaged.
    JournalDamaged = "journal-damaged", Damage, RESTORE;
    /// A batch does not decode.
    BatchUnreadable = "batch-unreadable", Damage, RESTORE;
    /// Batches are missing.
    BatchMissing = "batch-missing", Damage, RESTORE;
    /// The index of runs says something else than the batches.
    IndexDiffers = "index-differs", Damage, RESTORE;
    /// A batch is of an earlier start than the one before it, or of one that was never claimed.
    EpochFell = "epoch-fell", Damage, REPORT;
    /// A batch was decided before the one before it.
    TimeFell = "time-fell", Damage, REPORT;
    /// Events of a run are missing or double.
    EventGap = "event-gap", Damage, RESTORE;
    /// A row of a run's history does not decode or is not what it says.
    HistoryDamaged = "history-damaged", Damage, RESTORE;
    /// The history and the journal hold different events under one number.
    HistoryDiffers = "history-differs", Damage, REPORT;
    /// An event does not follow from what came before.
    ReplayContradicts = "replay-contradicts", Damage, RESTORE;
    /// The state that the journal leads to breaks a promise.
    InvariantBroken = "invariant-broken", Damage, REPORT;
    /// A snapshot does not decode.
    SnapshotDamaged = "snapshot-damaged", Damage, RESTORE;
    /// A snapshot is not what the journal leads to.
    SnapshotDiffers = "snapshot-differs", Damage, REPORT;
    /// A snapshot was never finished.
    SnapshotUnfinished = "snapshot-unfinished", Note, "the next snapshot removes it";
    /// An archived run does not decode or contradicts itself.
    ArchiveDamaged = "archive-damaged", Damage, RESTORE;
    /// An archived run is not what its events lead to.
    ArchiveDiffers = "archive-differs", Damage, REPORT;
    /// A run left memory, and the archive does not have it.
    ArchiveMissing = "archive-missing", Damage, RESTORE;
    /// Documents of a run's tasks are missing.
    DocumentsMissing = "documents-missing", Damage, RESTORE;
    /// Documents are kept of a run that is not known.
    DocumentsOfNoRun = "documents-of-no-run", Note, "a submission was not finished; nothing needs to be done";

    // --- what counts once ---
    /// A lease was granted twice, or with a number that is not larger than those before.
    LeaseTwice = "lease-twice", Damage, REPORT;
    /// An attempt was leased twice.
    AttemptTwice = "attempt-twice", Damage, REPORT;
    /// A lease ended twice, or one ended that was never granted.
    LeaseClosedTwice = "lease-closed-twice", Damage, REPORT;
    /// A lease was granted, has no end, and is not open.
    LeaseWithoutEnd = "lease-without-end", Damage, REPORT;
    /// A result counted that was not its lease's only one.
    ResultTwice = "result-twice", Damage, REPORT;
    /// A task has two accepted results in one generation.
    AcceptedTwice = "accepted-twice", Damage, REPORT;

    // --- refs and objects ---
    /// Git cannot read the refs of a hosted repository.
    RefsUnreadable = "refs-unreadable", Damage, "see what git says about it; the objects may be sound";
    /// The hosted repository of a run is not there or cannot be read.
    RepositoryMissing = "repository-missing", Damage, RESTORE;
    /// No run is known that uses a hosted repository.
    RepositoryUnused = "repository-unused", Note, NOTHING;
    /// Git finds objects damaged.
    ObjectsDamaged = "objects-damaged", Damage, "fetch the objects from a clone into the hosted repository, or restore it from a backup";
    /// A commit that counts is not there.
    CommitMissing = "commit-missing", Damage, "fetch the commit from a clone into the hosted repository, or restore it from a backup";
    /// A commit that counts lacks something that it refers to.
    CommitIncomplete = "commit-incomplete", Damage, "fetch the commit from a clone into the hosted repository, or restore it from a backup";
    /// A ref points to nothing.
    RefBroken = "ref-broken", Damage, "fetch the commit from a clone into the hosted repository, or restore it from a backup";
    /// A ref that the journal vouches for is not there.
    RefMissing = "ref-missing", Damage, "the commit is missing too: see its own finding";
    /// A ref is not what the journal says.
    RefDiffers = "ref-differs", Damage, "the commit that the journal names is missing: see its own finding";
    /// A branch that people fetch is not there.
    BranchMissing = "branch-missing", Damage, "the commit is missing too: see its own finding";
    /// A branch that people fetch is not what the journal says.
    BranchDiffers = "branch-differs", Damage, "the commit that the journal names is missing: see its own finding";
    /// A branch of a live run lags behind the journal.
    BranchBehind = "branch-behind", Leftover, "a coordinator that runs on the home moves it";
    /// A ref belongs to no run, task or attempt.
    RefUnknown = "ref-unknown", Damage, "look at what it holds, and remove it by hand";
    /// The source of a submission that was not finished.
    SourceOfNoRun = "source-of-no-run", Note, "a submission was not finished; nothing needs to be done";
    /// A ref that an earlier repair moved away.
    RefLost = "ref-lost", Note, "look at what it holds; remove it by hand when it is of no use";
    /// A killed git has left a lock, half-received objects or a half-made repository.
    GitLeftover = "git-leftover", Leftover, "the next start of a coordinator removes it";

    // --- transcripts ---
    /// A transcript cannot be read.
    TranscriptUnreadable = "transcript-unreadable", Damage, RESTORE;
    /// A transcript is damaged before its end.
    TranscriptDamaged = "transcript-damaged", Damage, RESTORE;
    /// The last record of a transcript is half written; it was never acknowledged.
    TranscriptTorn = "transcript-torn", Note, "the next event cuts it off";
    /// Events of a transcript are missing, and it does not say so.
    TranscriptGap = "transcript-gap", Damage, RESTORE;
    /// A transcript belongs to no lease.
    TranscriptOfNoLease = "transcript-of-no-lease", Damage, "look at it, and remove it by hand";
    /// A transcript is under the name of another.
    TranscriptSwapped = "transcript-swapped", Damage, "stop the coordinator, and give each transcript the name that it says it has, below `transcripts/`";
    /// An attempt reported a result, and nothing of what it said is there.
    TranscriptMissing = "transcript-missing", Damage, "it was removed, or its worker's disk was lost before it was sent: start that worker if its disk is there, else look for it in a backup";
    /// A transcript has events that its worker does not know.
    TranscriptAhead = "transcript-ahead", Damage, "the worker's disk has lost events that were sent: check it";
    /// The damaged part of a transcript, kept when the rest was mended.
    TranscriptSetAside = "transcript-set-aside", Note, "remove it by hand when it is of no use";
    /// The ledger of usage says something else than the transcripts.
    UsageDiffers = "usage-differs", Damage, "remove `usage.db` by hand while no coordinator runs: the next start makes it anew";
    /// The ledger of usage cannot be read.
    UsageUnreadable = "usage-unreadable", Damage, "remove `usage.db` by hand while no coordinator runs: the next start makes it anew";
    /// A file that Muster did not make.
    FileUnknown = "file-unknown", Note, "look at it, and remove it by hand";

    // --- workers' disks ---
    /// A worker's folder, or a file in it, cannot be read.
    WorkerUnreadable = "worker-unreadable", Damage, "see whether the folder is right and readable";
    /// Reports are damaged before the end of their file.
    OutboxDamaged = "outbox-damaged", Damage, "the worker goes on after its last sound report; what it had not said is lost";
    /// The last record of a worker's file is half written; it was never sent.
    RecordTorn = "record-torn", Note, "the worker cuts it off when it starts";
    /// A report waits for its acknowledgement, and the journal has closed its lease.
    ReportLeft = "report-left", Leftover, START_WORKER;
    /// Events of a lease are damaged before the end of their file.
    SpoolDamaged = "spool-damaged", Damage, "the worker goes on after the last sound event; what it had not sent is lost";
    /// What a lease was for cannot be read.
    GrantUnreadable = "grant-unreadable", Damage, "look for edits in the lease's folder, and move it away by hand";
    /// A worker holds a lease that the journal does not know, or knows otherwise.
    LeaseUnknown = "lease-unknown", Damage, "the home may be older than the worker's folder: look for edits in it, and start that worker once";
    /// The folder of a closed lease is still there.
    LeaseLeft = "lease-left", Leftover, START_WORKER;
    /// What a supervisor was told cannot be read.
    LaunchUnreadable = "launch-unreadable", Damage, START_WORKER;
    /// A process of a closed lease still runs.
    ProcessLeft = "process-left", Leftover, "start that worker again, which ends it, or end it by hand";
    /// The cgroup of a closed lease is still there.
    CgroupLeft = "cgroup-left", Leftover, START_WORKER;
    /// A repository borrows objects from a place that is not there.
    BorrowingBroken = "borrowing-broken", Damage, "put the cache back, or look for edits in the work tree beside it";
    /// Git finds a cache damaged.
    CacheDamaged = "cache-damaged", Damage, "stop the host's workers and remove the cache: it is fetched anew";
    /// A killed git has left something in a cache.
    CacheLeftover = "cache-leftover", Leftover, "stop the host's workers and remove it";
    /// A folder was to be deleted, and is not yet.
    DeletionUnfinished = "deletion-unfinished", Leftover, START_WORKER;
    /// Edits that could not be published.
    EditsKept = "edits-kept", Note, "look at them, and remove the folder by hand when they are of no use";
    /// Leases of another coordinator that the folder was used with before.
    OtherCoordinator = "other-coordinator", Note, "remove it by hand when it is of no use";

    // --- the home ---
    /// A secret can be read by others.
    ModeOpen = "mode-open", Damage, "chmod it by hand";
    /// A secret is missing or the store of tokens is damaged.
    SecretsDamaged = "secrets-damaged", Damage, RESTORE;
    /// A file that was being written when its process was killed.
    FileUnfinished = "file-unfinished", Leftover, "remove it by hand";
    /// Half of a backup or of a restored home, with secrets in it.
    BackupUnfinished = "backup-unfinished", Leftover, "remove the folder by hand: it holds secrets";
    /// The address file names a coordinator that does not run.
    AddressStale = "address-stale", Leftover, "the next coordinator replaces it";
    /// The disk is nearly full.
    DiskFull = "disk-full", Damage, "make room: a coordinator that cannot write stops";
    /// What an earlier repair moved away.
    Repaired = "repaired", Note, "look at it, and remove it by hand when it is of no use";
}

/// Where a finding is. Whatever is known is there.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize)]
pub struct Place {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
}

impl Place {
    /// A place in a run.
    #[must_use]
    pub fn run(name: &str) -> Self {
        Self {
            run: Some(name.to_owned()),
            ..Self::default()
        }
    }

    /// A batch of the journal.
    #[must_use]
    pub fn batch(seq: BatchSeq) -> Self {
        Self {
            batch: Some(seq.0),
            ..Self::default()
        }
    }

    /// A file or folder.
    #[must_use]
    pub fn file(path: &Path) -> Self {
        Self {
            file: Some(path.to_owned()),
            ..Self::default()
        }
    }

    /// A hosted repository.
    #[must_use]
    pub fn repository(name: &str) -> Self {
        Self {
            repository: Some(name.to_owned()),
            ..Self::default()
        }
    }

    /// Adds a task.
    #[must_use]
    pub fn of_task(mut self, task: &str) -> Self {
        self.task = Some(task.to_owned());
        self
    }

    /// Adds an attempt.
    #[must_use]
    pub fn of_attempt(mut self, attempt: u32) -> Self {
        self.attempt = Some(attempt);
        self
    }

    /// Adds a lease.
    #[must_use]
    pub fn of_lease(mut self, lease: u64) -> Self {
        self.lease = Some(lease);
        self
    }

    /// Adds a ref.
    #[must_use]
    pub fn at_ref(mut self, name: &str) -> Self {
        self.reference = Some(name.to_owned());
        self
    }

    /// Adds a file.
    #[must_use]
    pub fn at_file(mut self, path: &Path) -> Self {
        self.file = Some(path.to_owned());
        self
    }

    /// Adds a worker.
    #[must_use]
    pub fn of_worker(mut self, worker: &str) -> Self {
        self.worker = Some(worker.to_owned());
        self
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = Vec::new();
        parts.extend(self.run.as_ref().map(|run| format!("run {run}")));
        parts.extend(self.task.as_ref().map(|task| format!("task {task}")));
        parts.extend(self.attempt.map(|attempt| format!("attempt {attempt}")));
        parts.extend(self.lease.map(|lease| format!("lease L{lease}")));
        parts.extend(self.batch.map(|batch| format!("batch {batch}")));
        parts.extend(
            self.worker
                .as_ref()
                .map(|worker| format!("worker {worker}")),
        );
        parts.extend(
            self.repository
                .as_ref()
                .map(|name| format!("repository {name}")),
        );
        parts.extend(self.reference.clone());
        parts.extend(self.file.as_ref().map(|path| path.display().to_string()));
        f.write_str(&parts.join(", "))
    }
}

/// How `doctor --repair` mends a finding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Repair {
    /// Takes a file's or folder's permissions away from everybody but the owner.
    Chmod { path: PathBuf, mode: u32 },
    /// Moves a file or folder away from where it disturbs.
    SetAside { path: PathBuf },
    /// Removes half of a backup or of a restored home, unless it is being made.
    RemoveUnfinished { path: PathBuf },
    /// Keeps every sound record of a transcript and says where records are missing.
    MendTranscript { path: PathBuf },
    /// Makes the ledger of usage anew from the transcripts.
    RebuildUsage,
    /// Forgets a snapshot; what it holds follows from an older one and the journal.
    DropSnapshot { upto: BatchSeq },
    /// Puts a run into the archive as its events have left it.
    Archive { image: Box<RunImage> },
    /// Makes a ref what the journal says. What it was is kept under another name.
    SetRef {
        repository: String,
        name: String,
        commit: String,
        found: Option<String>,
    },
    /// Moves a ref out of the way, to a name under which it is kept.
    LoseRef {
        repository: String,
        name: String,
        found: String,
    },
}

/// Something that an audit has found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    pub code: Code,
    /// Boxed, since most findings live in lists and places are wide.
    pub place: Box<Place>,
    pub what: String,
    pub repair: Option<Repair>,
    /// What to do about it here, where that is not what the kind of finding says.
    next: Option<&'static str>,
}

impl Finding {
    /// Makes a finding that nothing mends.
    #[must_use]
    pub fn new(code: Code, place: Place, what: impl fmt::Display) -> Self {
        Self {
            code,
            place: Box::new(place),
            what: what.to_string(),
            repair: None,
            next: None,
        }
    }

    /// Says what to do about it here.
    #[must_use]
    pub fn advising(mut self, next: &'static str) -> Self {
        self.next = Some(next);
        self
    }

    /// Says how it is mended.
    #[must_use]
    pub fn mended_by(mut self, repair: Repair) -> Self {
        self.repair = Some(repair);
        self
    }

    /// Says what to do about it.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        match self.repair {
            Some(_) => "`coordinator doctor --repair` mends it",
            None => self.next.unwrap_or_else(|| self.code.advice()),
        }
    }

    /// Tells whether two looks have found the same.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.code == other.code && self.place == other.place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_name_of_its_own_and_says_what_to_do() {
        let names: std::collections::BTreeSet<_> =
            Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        assert!(Code::ALL.iter().all(|code| !code.advice().is_empty()));
    }
}
