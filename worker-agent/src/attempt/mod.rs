//! The work of one lease, from its grant to its report.

mod allowance;
mod bounds;
mod capture;
mod converse;
mod dialogue;
mod earlier;
mod environment;
mod folder;
mod given;
mod hiding;
mod launch;
mod leftover;
pub mod machine;
mod meter;
mod needs;
mod overheard;
mod policy;
pub(crate) mod prompt;
mod publish;
mod records;
mod runner;
mod scribe;
mod talk;
mod verify;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use muster_git::{Cache, Git, Identity};
use muster_proto::v1::{Answer, report};
use tokio::sync::{mpsc, watch};

use crate::clock::Boottime;
use crate::departure::HandOver;
use crate::disk::Disk;
use crate::document::ApprovalPolicy;
use crate::options::Repositories;
use crate::secrets::Secret;
use crate::session::link::Access;

pub(crate) use folder::{DELETED, LeaseFolder};
pub use leftover::Error as LeftoverError;
pub(crate) use leftover::find;
pub use policy::{allows_nothing, denies_nothing};
pub(crate) use runner::Runner;

/// What all leases of a worker share.
#[derive(Debug)]
pub(crate) struct Site {
    /// Calls [`crate::supervisor::dispatch`].
    pub(crate) executable: PathBuf,
    /// Folders of leases.
    pub(crate) leases: PathBuf,
    /// Where edits go that the coordinator does not take.
    pub(crate) kept: PathBuf,
    /// Name of this host, for people.
    pub(crate) host: String,
    pub(crate) git: Git,
    pub(crate) cache: Cache,
    pub(crate) repositories: Repositories,
    /// Who commits.
    pub(crate) identity: Identity,
    /// How the coordinator is reached; `None` outside a session.
    pub(crate) access: watch::Receiver<Option<Access>>,
    pub(crate) told: mpsc::Sender<FromLease>,
    /// Of all of this.
    pub(crate) disk: Disk,
    /// Most bytes of new and changed files in one result.
    pub(crate) change_bytes_max: u64,
    /// Most bytes on disk of a lease's work tree and temporary files, unless its task says otherwise.
    pub(crate) disk_bytes_max: u64,
    /// What tasks may have of this host's secrets.
    pub(crate) secrets: Vec<Secret>,
    /// How often edits of running agents are kept, unless as usual.
    pub(crate) wip_interval: Option<Duration>,
    /// How agents are started here, by name.
    pub(crate) agents: BTreeMap<String, Vec<String>>,
    /// What its operator says about questions of agents.
    pub(crate) approvals: ApprovalPolicy,
}

/// What a lease tells its worker.
#[derive(Debug)]
pub(crate) enum FromLease {
    /// A word for the coordinator.
    Report { lease: u64, kind: report::Kind },
    /// Events up to this number are on disk.
    Events { lease: u64, last: u64 },
    /// Its folder holds nothing unpublished and gets no more events.
    Finished { lease: u64 },
}

/// Why a lease's work is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The lease is over: its edits are kept for people.
    Salvage,
    /// The worker leaves: the lease is given back.
    Leave,
    /// The worker's machine goes away: the lease is given back, and soon.
    HandOver(HandOver),
}

/// What a worker tells a lease.
#[derive(Clone, Debug)]
pub(crate) struct Orders {
    /// When its processes must be gone.
    pub(crate) deadline: Boottime,
    pub(crate) stop: Option<Stop>,
    /// What people said to questions of its agent, by number of the question.
    pub(crate) answers: Arc<BTreeMap<u32, Answer>>,
}
