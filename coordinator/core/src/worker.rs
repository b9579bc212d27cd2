//! What a worker offers and what a task needs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a task needs of a worker. Tasks of a run share equal requirements.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Requirement {
    /// Name of the agent, such as `command` or `codex`.
    pub agent: Arc<str>,
    /// Only workers of this pool.
    pub pool: Option<Arc<str>>,
    /// Labels the worker must carry, as `key` or `key=value`.
    pub labels: BTreeSet<Arc<str>>,
    /// Countable resources the task occupies while it runs, such as `cpus`, `memory_mib`, `gpus`.
    pub resources: BTreeMap<Arc<str>, u64>,
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
