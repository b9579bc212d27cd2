//! Why something failed, and the two questions that every failure answers.
//!
//! The split into "may it be retried?" and "does it count against the task's retries?" is
//! Ballista's; the separate crash limit for failures that do not count is HyperQueue's.

use std::fmt;

/// Typed cause of a failure.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FailureClass {
    /// The agent ended and said that it could not do the task (for a program: a non-zero exit).
    AgentFailed,
    /// The agent's program could not be started: not found, not executable.
    AgentUnavailable,
    /// A verify command failed on the attempt's commit.
    VerifyFailed,
    /// The task's own time limit, from start to finish, has passed.
    TimedOut,
    /// The agent was silent for longer than its idle limit.
    Stalled,
    /// The lease ran out, or a newer incarnation of the worker no longer holds it.
    WorkerLost,
    /// The worker was taken away by its pool: preemption or an interruption notice.
    Preempted,
    /// The worker's allocation reached its time limit.
    Walltime,
    /// The worker could not prepare the workspace (disk, fetch, checkout).
    Workspace,
    /// The attempt's commit could not be made or pushed.
    Publish,
    /// The attempt's change exceeds a limit (size, count).
    ChangeTooLarge,
    /// The commits of the task's dependencies do not merge.
    BaseConflict,
    /// The succeeded tasks of the run do not merge.
    IntegrationConflict,
    /// No worker could be found for the task within its queue deadline.
    NotPlaced,
    /// A step of the coordinator's own (merging, moving a ref) failed beyond its retries.
    Internal,
    /// Workspace and temporary files took more disk than the task or its worker allows.
    DiskAllowance,
    /// The worker does not have, or does not hand out, a secret that the task asks for.
    SecretUnavailable,
}

impl FailureClass {
    /// Every class, for tables and tests.
    pub const ALL: [Self; 17] = [
        Self::AgentFailed,
        Self::AgentUnavailable,
        Self::VerifyFailed,
        Self::TimedOut,
        Self::Stalled,
        Self::WorkerLost,
        Self::Preempted,
        Self::Walltime,
        Self::Workspace,
        Self::Publish,
        Self::ChangeTooLarge,
        Self::BaseConflict,
        Self::IntegrationConflict,
        Self::NotPlaced,
        Self::Internal,
        Self::DiskAllowance,
        Self::SecretUnavailable,
    ];

    /// Tells whether another attempt could end differently.
    #[must_use]
    pub const fn retryable(self) -> bool {
        match self {
            Self::AgentFailed
            | Self::VerifyFailed
            | Self::TimedOut
            | Self::Stalled
            | Self::DiskAllowance
            | Self::WorkerLost
            | Self::Preempted
            | Self::Walltime
            | Self::Workspace
            | Self::Publish
            | Self::AgentUnavailable => true,
            Self::ChangeTooLarge
            | Self::BaseConflict
            | Self::IntegrationConflict
            | Self::NotPlaced
            | Self::Internal
            | Self::SecretUnavailable => false,
        }
    }

    /// Tells whether the failure uses up one of the task's retries.
    ///
    /// Those that do not are bounded by [`crate::limits::CRASH_LIMIT`] instead, since a task can
    /// be what kills its worker.
    #[must_use]
    pub const fn counts(self) -> bool {
        match self {
            Self::AgentFailed
            | Self::VerifyFailed
            | Self::TimedOut
            | Self::Stalled
            | Self::DiskAllowance
            | Self::ChangeTooLarge => true,
            Self::AgentUnavailable
            | Self::WorkerLost
            | Self::Preempted
            | Self::Walltime
            | Self::Workspace
            | Self::Publish
            | Self::BaseConflict
            | Self::IntegrationConflict
            | Self::NotPlaced
            | Self::Internal
            | Self::SecretUnavailable => false,
        }
    }

    /// Gives the stable name used in the journal, on the wire and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AgentFailed => "agent_failed",
            Self::AgentUnavailable => "agent_unavailable",
            Self::VerifyFailed => "verify_failed",
            Self::TimedOut => "timed_out",
            Self::Stalled => "stalled",
            Self::WorkerLost => "worker_lost",
            Self::Preempted => "preempted",
            Self::Walltime => "walltime",
            Self::Workspace => "workspace",
            Self::Publish => "publish",
            Self::ChangeTooLarge => "change_too_large",
            Self::BaseConflict => "base_conflict",
            Self::IntegrationConflict => "integration_conflict",
            Self::NotPlaced => "not_placed",
            Self::Internal => "internal",
            Self::DiskAllowance => "disk_allowance",
            Self::SecretUnavailable => "secret_unavailable",
        }
    }

    /// Finds a class by its stable name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }
}

impl fmt::Display for FailureClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A failure: its class, one line for people, and the end of the output that shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    pub class: FailureClass,
    /// One line; bounded by [`crate::limits::FAILURE_MESSAGE_BYTES`].
    pub message: Box<str>,
    /// End of the output of what failed; empty when there is none. Bounded by
    /// [`crate::limits::FAILURE_OUTPUT_BYTES`]; handed to the next attempt.
    pub output: Box<str>,
}

impl Failure {
    /// Makes a failure without output.
    #[must_use]
    pub fn new(class: FailureClass, message: impl Into<Box<str>>) -> Self {
        Self {
            class,
            message: message.into(),
            output: "".into(),
        }
    }
}
