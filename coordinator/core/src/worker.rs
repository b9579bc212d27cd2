//! What a worker offers and what a task needs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a task needs of a worker. Tasks of a run share equal requirements.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Requirement {
    /// Kind of the agent, such as `command` or `codex`.
    pub agent: Arc<str>,
    /// The agent of that kind that it is, if a plan or the coordinator's configuration declares it.
    pub declared: Option<DeclaredAgent>,
    /// Only workers of this pool.
    pub pool: Option<Arc<str>>,
    /// Labels the worker must carry, as `key` or `key=value`.
    pub labels: BTreeSet<Arc<str>>,
    /// Countable resources the task occupies while it runs, such as `cpus`, `memory_mib`, `gpus`.
    pub resources: BTreeMap<Arc<str>, u64>,
}

/// An agent that is declared under a name of its own. Workers look for its program on their hosts:
/// which have it nobody knows before.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DeclaredAgent {
    /// How it is driven, as in [`Requirement::agent`].
    pub kind: Arc<str>,
    /// Its name, under which a worker may say how it is started there.
    pub name: Arc<str>,
    /// Its program as it is declared; empty for the kind's own.
    pub program: Arc<str>,
}

/// What a worker offers, stated in its hello.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Offer {
    pub pool: Arc<str>,
    /// Attempts and verifies it can hold at once.
    pub slots: u32,
    pub labels: BTreeSet<Arc<str>>,
    /// Total of each countable resource; a resource that is absent is not offered.
    pub resources: BTreeMap<Arc<str>, u64>,
    /// Agents it can start.
    pub agents: BTreeSet<Arc<str>>,
    /// Host name, for people.
    pub host: Arc<str>,
}
