//! What a run is made of, as the core needs it. Prompts, programs and environments stay outside.

use std::num::NonZeroU32;
use std::sync::Arc;

use crate::ids::CommitId;
use crate::time::Span;
use crate::worker::Requirement;

/// A submitted run, before validation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunSpec {
    /// Name people and refs use; made by the shell, unique among live and archived runs.
    pub name: Arc<str>,
    /// Name in the plan file.
    pub plan: Arc<str>,
    /// Repository and base commit; `None` for a run without a repository.
    pub source: Option<Source>,
    /// Whether and how the results are integrated; always `None` without a repository.
    pub integrate: Option<IntegrateSpec>,
    /// Attempts and verifies of this run that may run at once.
    pub max_parallel: Option<NonZeroU32>,
    /// In plan order.
    pub tasks: Vec<TaskSpec>,
    /// Who submitted it, for people.
    pub submitted_by: Arc<str>,
}

/// Where a run's code comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Source {
    /// Name of the hosted repository.
    pub repository: Arc<str>,
    pub base: CommitId,
}

/// How a run is integrated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IntegrateSpec {
    /// Checks of the integrated commit, if there are any.
    pub verify: Option<VerifySpec>,
}

/// A verify: its time limit and what it needs. The commands are the shell's.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct VerifySpec {
    pub timeout: Span,
    pub requirement: Requirement,
}

/// A task as submitted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TaskSpec {
    pub name: Arc<str>,
    /// Names of the tasks that must succeed first.
    pub depends_on: Vec<Arc<str>>,
    /// Higher goes first within the run; default 0.
    pub priority: i16,
    /// Claimed paths, relative to the repository's root; tasks with overlapping claims never run
    /// at the same time.
    pub paths: Vec<Arc<str>>,
    /// Shared settings; equal profiles are kept once a run.
    pub profile: Profile,
}

/// Settings that many tasks of a run have in common.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Profile {
    pub requirement: Requirement,
    /// Counted attempts after the first.
    pub retries: u32,
    /// Time limit of an attempt, from start to finish.
    pub timeout: Span,
    /// Checks of the attempt's commit, if there are any.
    pub verify: Option<VerifySpec>,
    /// First retry delay; doubles, with jitter, up to [`crate::limits::BACKOFF_MAX`].
    pub backoff: Span,
    /// Its agent can go on with a conversation that was cut off.
    pub resumes: bool,
    /// It would rather run on a host where one of its dependencies ran, whose checkout is warm.
    pub near: bool,
}
