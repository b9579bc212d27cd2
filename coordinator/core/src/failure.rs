//! Why something failed, and the two questions that every failure answers.
//!
//! The split into "may it be retried?" and "does it count against the task's retries?" is
//! Ballista's; the separate crash limit for failures that do not count is HyperQueue's.

use std::fmt;

use crate::time::Span;

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
    /// The provider does not know the agent, or does not let it in: nobody is logged in on the worker.
    Authentication,
    /// The provider takes no more calls of this account for now.
    RateLimit,
    /// The provider is overloaded.
    ProviderCapacity,
    /// The provider failed to answer (its status was in the five hundreds).
    ProviderError,
    /// The provider could not be reached, or the connection broke.
    Transport,
    /// What the account may use is used up until a later time.
    UsageLimit,
    /// The request itself is wrong: no such model, a setting that the provider does not take, an image
    /// or a folder that is not there.
    InvalidRequest,
    /// The conversation is longer than the model can read.
    ContextWindow,
    /// The model declined the task.
    Refusal,
    /// The agent's program ended in the middle of its work.
    AgentCrashed,
    /// The agent reported an error that has no class of its own.
    AgentError,
    /// The structured answer does not fit its schema, after repairs.
    OutputInvalid,
    /// The agent said that it was done and changed nothing, though a change was asked for.
    NoChange,
    /// A person, or the task's own rules, denied what the agent asked for and stopped it.
    Denied,
}

impl FailureClass {
    /// Every class, for tables and tests.
    pub const ALL: [Self; 31] = [
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
        Self::Authentication,
        Self::RateLimit,
        Self::ProviderCapacity,
        Self::ProviderError,
        Self::Transport,
        Self::UsageLimit,
        Self::InvalidRequest,
        Self::ContextWindow,
        Self::Refusal,
        Self::AgentCrashed,
        Self::AgentError,
        Self::OutputInvalid,
        Self::NoChange,
        Self::Denied,
    ];

    /// Tells whether another attempt could end differently.
    ///
    /// Whoever pays for attempts should pay for none that must end alike: a login that is missing
    /// and a request that the provider refuses are a person's to put right, and `retry` goes on.
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
            | Self::AgentUnavailable
            | Self::RateLimit
            | Self::ProviderCapacity
            | Self::ProviderError
            | Self::Transport
            | Self::UsageLimit
            | Self::ContextWindow
            | Self::Refusal
            | Self::AgentCrashed
            | Self::AgentError
            | Self::OutputInvalid
            | Self::NoChange => true,
            Self::ChangeTooLarge
            | Self::BaseConflict
            | Self::IntegrationConflict
            | Self::NotPlaced
            | Self::Internal
            | Self::SecretUnavailable
            | Self::Authentication
            | Self::InvalidRequest
            | Self::Denied => false,
        }
    }

    /// Tells whether the failure uses up one of the task's retries: those that the agent's own work
    /// led to, and that cost what a whole attempt costs.
    ///
    /// Those that do not are bounded by [`crate::limits::PROVIDER_LIMIT`] if it was the provider's
    /// fault ([`Self::is_providers`]), by [`crate::limits::DEPARTURE_LIMIT`] if a machine went away
    /// ([`Self::leaves`]), else by [`crate::limits::CRASH_LIMIT`], since a task can be
    /// what kills its worker.
    #[must_use]
    pub const fn counts(self) -> bool {
        match self {
            Self::AgentFailed
            | Self::VerifyFailed
            | Self::TimedOut
            | Self::Stalled
            | Self::DiskAllowance
            | Self::ChangeTooLarge
            | Self::ContextWindow
            | Self::Refusal
            | Self::AgentCrashed
            | Self::AgentError
            | Self::OutputInvalid
            | Self::NoChange => true,
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
            | Self::SecretUnavailable
            | Self::Authentication
            | Self::RateLimit
            | Self::ProviderCapacity
            | Self::ProviderError
            | Self::Transport
            | Self::UsageLimit
            | Self::InvalidRequest
            | Self::Denied => false,
        }
    }

    /// Tells whether the provider of the model kept the agent from its work for a while. The task
    /// had no part in it, so waiting helps: patiently, and longer than for a worker that was lost.
    #[must_use]
    pub const fn is_providers(self) -> bool {
        matches!(
            self,
            Self::RateLimit
                | Self::ProviderCapacity
                | Self::ProviderError
                | Self::Transport
                | Self::UsageLimit
        )
    }

    /// Tells whether the next attempt goes on where this one was, if its agent can: the work was cut
    /// off, and nothing speaks against it. Every other failure is begun anew.
    #[must_use]
    pub const fn resumes(self) -> bool {
        matches!(self, Self::WorkerLost | Self::Preempted | Self::Walltime) || self.is_providers()
    }

    /// Tells whether the worker goes away with it, so that nobody waits for it.
    #[must_use]
    pub const fn leaves(self) -> bool {
        matches!(self, Self::Preempted | Self::Walltime)
    }

    /// Tells whether such a failure of an attempt that had hardly begun speaks against its host: what
    /// a task's own program says about its work never does.
    #[must_use]
    pub const fn may_be_the_hosts(self) -> bool {
        matches!(
            self,
            Self::AgentUnavailable
                | Self::Workspace
                | Self::AgentCrashed
                | Self::WorkerLost
                | Self::DiskAllowance
        )
    }

    /// Says what a person can do about it, as one line; `None` where trying again is all there is.
    #[must_use]
    pub const fn remedy(self) -> Option<&'static str> {
        Some(match self {
            Self::Authentication => {
                "log the agent in on the worker (or give the task its key as a secret)"
            }
            Self::InvalidRequest => "correct the task's model or settings",
            Self::UsageLimit => "wait until the account may be used again, or use another",
            Self::ContextWindow => "split the task, or give it a model that reads more",
            Self::Refusal => "put the task in other words, or give it another model",
            Self::OutputInvalid => "ease the task's output schema, or give it another model",
            Self::NoChange => {
                "say in the prompt what is to change, or in the plan that nothing has to"
            }
            Self::RateLimit | Self::ProviderCapacity => "run fewer of its agents at once",
            Self::Transport => "see that the worker reaches the provider",
            Self::AgentUnavailable => "install the agent on the worker",
            Self::SecretUnavailable => "give the worker the secret",
            Self::Denied => {
                "retry the task to let it ask again, or say in the prompt what it may do"
            }
            Self::AgentFailed
            | Self::VerifyFailed
            | Self::TimedOut
            | Self::Stalled
            | Self::WorkerLost
            | Self::Preempted
            | Self::Walltime
            | Self::Workspace
            | Self::Publish
            | Self::ChangeTooLarge
            | Self::BaseConflict
            | Self::IntegrationConflict
            | Self::NotPlaced
            | Self::Internal
            | Self::DiskAllowance
            | Self::ProviderError
            | Self::AgentCrashed
            | Self::AgentError => return None,
        })
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
            Self::Authentication => "authentication",
            Self::RateLimit => "rate_limit",
            Self::ProviderCapacity => "provider_capacity",
            Self::ProviderError => "provider_error",
            Self::Transport => "transport",
            Self::UsageLimit => "usage_limit",
            Self::InvalidRequest => "invalid_request",
            Self::ContextWindow => "context_window",
            Self::Refusal => "refusal",
            Self::AgentCrashed => "agent_crashed",
            Self::AgentError => "agent_error",
            Self::OutputInvalid => "output_invalid",
            Self::NoChange => "no_change",
            Self::Denied => "denied",
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
    /// What the provider asked for: not to be called again for so long. Honoured up to
    /// [`crate::limits::RETRY_AFTER_MAX`] if the task is tried again.
    pub retry_after: Option<Span>,
}

impl Failure {
    /// Makes a failure without output.
    #[must_use]
    pub fn new(class: FailureClass, message: impl Into<Box<str>>) -> Self {
        Self {
            class,
            message: message.into(),
            output: "".into(),
            retry_after: None,
        }
    }
}
