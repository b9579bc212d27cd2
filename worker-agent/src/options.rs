//! What a worker is started with.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use muster_connect::Token;

use crate::clock::Boottime;
use crate::document::ApprovalPolicy;
use crate::identity::{Allocation, StateDir};
use crate::secrets::Secret;

/// What a worker is started with; for a check without a token, `T` is what there is instead.
#[derive(Clone, Debug)]
pub struct Options<T = Token> {
    /// Where its coordinator is.
    pub coordinator: Coordinator,
    /// What it joins with; its pool is the worker's.
    pub token: T,
    /// Attempts and verifies held at once, 1 to 4,096.
    pub slots: u32,
    /// Where its state is.
    pub state: StateDir,
    /// `key` or `key=value`.
    pub labels: Vec<String>,
    /// Amounts by name, such as `cpus`.
    pub resources: BTreeMap<String, u64>,
    /// The pool it expects to be in; the token's when empty.
    pub pool: String,
    /// The allocation it runs in, such as a Slurm job.
    pub allocation: Option<Allocation>,
    /// It ends by itself after holding nothing for so long.
    pub idle_exit: Option<Duration>,
    /// When its machine goes away, if that is known.
    pub ends_at: Option<Boottime>,
    /// How long before that, or after a notice, it gives back what it holds.
    pub hand_over: Duration,
    /// It ends when it has held leases on a failing disk for so long.
    pub disk_patience: Duration,
    /// An executable that calls [`crate::supervisor::dispatch`] first.
    pub executable: PathBuf,
    /// Where repositories are.
    pub repositories: Repositories,
    /// Most bytes of new and changed files in one result.
    pub change_bytes_max: u64,
    /// Most bytes that the cache of repositories holds, apart from what is in use.
    pub cache_bytes_max: u64,
    /// Most bytes on disk of an attempt's work tree and temporary files; a task may say less, and not
    /// more. Looked at every few seconds.
    pub disk_bytes_max: u64,
    /// Bytes that are kept free for each attempt: another is taken only while the disk has room for it and
    /// for what the others may still take. None when zero.
    pub disk_reserve_bytes: u64,
    /// Values that tasks may have.
    pub secrets: Vec<Secret>,
    /// How often edits of running agents are kept at their WIP ref; as usual when absent.
    pub wip_interval: Option<Duration>,
    /// How agents are started here, by name; else as plan, coordinator and host say.
    pub agents: BTreeMap<String, Vec<String>>,
    /// Which questions of agents are answered without a person, whatever tasks say.
    pub approvals: ApprovalPolicy,
}

/// Most bytes of new and changed files in one result unless said otherwise: more than people review,
/// less than fills a repository for good by accident.
pub(crate) const CHANGE_BYTES_MAX: u64 = 256_000_000;
/// Most bytes that a host's cache of repositories holds unless said otherwise.
pub(crate) const CACHE_BYTES_MAX: u64 = 20_000_000_000;

/// Most bytes on disk of an attempt's work tree and temporary files unless said otherwise: more than
/// builds need, less than fills most disks.
pub(crate) const DISK_BYTES_MAX: u64 = 50_000_000_000;

/// Where a coordinator is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Coordinator {
    /// At `host:port`.
    Address(String),
    /// Where the address file of this home says, which is read again at each connection.
    Home(PathBuf),
}

/// Where repositories are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repositories {
    /// On the coordinator's port, as `/git/<name>.git`.
    Hosted,
    /// At `<base>/<name>.git`, without credentials; for tests of a worker alone.
    Below(String),
}

/// What a worker is asked by those who started it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    /// Work.
    #[default]
    Work,
    /// Take nothing new, finish what is held, then end.
    Drain,
    /// The machine goes away: stop what is held, keep its edits, give it back, and end in time.
    HandOver,
    /// Stop what is held, keep its edits, give it back, and end.
    Leave,
}

/// Why a worker ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was drained and owes nothing.
    Drained,
    /// It has held nothing for as long as it was to wait.
    Idle,
    /// It gave back what it held, since its machine goes away.
    HandedOver,
    /// It was told to leave.
    Left,
}
