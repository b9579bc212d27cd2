//! What a worker offers and what a task needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::ids::AllocationId;
use crate::time::Span;

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
    /// How long the work will take, by its plan; zero when that is not known. Work is not given to a
    /// machine that goes away before.
    pub expected: Span,
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
    /// The allocation whose credential it joined with.
    pub allocation: Option<AllocationId>,
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "agent {}", self.agent)?;
        if let Some(pool) = &self.pool {
            write!(f, ", pool {pool}")?;
        }
        for label in &self.labels {
            write!(f, ", label {label}")?;
        }
        for (name, amount) in &self.resources {
            write!(f, ", {amount} {name}")?;
        }
        if self.expected > Span::ZERO {
            write!(f, ", {} s", self.expected.ms() / 1_000)?;
        }
        Ok(())
    }
}
