//! What has happened. Events are the only way state changes and the only truth that is kept.

use std::sync::Arc;

use crate::failure::Failure;
use crate::ids::{
    AttemptNo, CommitId, Epoch, Incarnation, LeaseId, QuestionId, RunId, TaskIx, TaskKey, WorkerId,
};
use crate::plan::RunSpec;
use crate::pool::PoolEvent;
use crate::question::Asking;
use crate::state::RunImage;
use crate::time::{Span, Timestamp};
use crate::worker::Offer;

/// An event with its place in history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// Gapless per run, from 1; for events of no run, the coordinator's own sequence.
    pub seq: u64,
    pub at: Timestamp,
    pub kind: EventKind,
}

/// What a lease is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Work {
    /// One attempt of a task.
    Attempt { task: TaskIx, attempt: AttemptNo },
    /// The verify of an attempt's commit.
    Verify { task: TaskIx, attempt: AttemptNo },
    /// The verify of the integrated commit.
    FinalVerify,
}

/// What an attempt made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// A published commit.
    Commit(CommitId),
    /// Explicitly nothing: the task's commit is its base.
    NoChange,
    /// The run has no repository.
    NoRepository,
}

/// Consumption that an attempt reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    pub input_tokens: u64,
    pub output_tokens: u64,
    /// Millionths of a US dollar.
    pub cost_micros: u64,
    /// Time the agent's process ran.
    pub run_ms: u64,
}

/// Who asked for something, for people.
pub type Actor = Arc<str>;

/// How it is known that nothing of a lease runs any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeaseEnd {
    /// The worker confirmed that the process tree is gone: by a result, by giving the lease back,
    /// by saying that it stopped, or by no longer holding it.
    Confirmed,
    /// TTL and grace passed in silence.
    Expired,
    /// The grant never reached the worker; nothing had begun.
    NeverStarted,
    /// A newer incarnation of the worker no longer holds it.
    Superseded,
}

/// How a run ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RunOutcome {
    Succeeded,
    /// Some task failed, or nothing could be integrated; the failure says which.
    Failed(Failure),
    Cancelled {
        by: Actor,
    },
}

/// Result of merging commits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MergeConflict {
    /// Tasks whose changes meet: the one being merged and, where it can be told, the other.
    pub tasks: Vec<TaskIx>,
    /// Files in conflict, bounded in number by the shell.
    pub files: Vec<Box<str>>,
    /// What git said, bounded.
    pub detail: Box<str>,
}

/// What was seen when a worker was chosen. It tells people why work ran where it did, and decides
/// nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Placement {
    /// Slots that the worker had free, the one that was taken included; 0 when nothing is known, as
    /// of leases granted before this was recorded.
    pub free: u32,
    /// Workers that had a slot free, this one included.
    pub available: u32,
    /// Of those, how many were looked at first, since they had as many or more slots free, and did
    /// not fit or were passed by a verify that had come to nothing.
    pub passed: u32,
    /// It has the conversation that goes on.
    pub continues: bool,
    /// A dependency ran on its host.
    pub near: bool,
}

/// The kinds of events.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EventKind {
    // --- the coordinator and its workers ---
    CoordinatorStarted {
        epoch: Epoch,
    },
    WorkerJoined {
        worker: WorkerId,
        incarnation: Incarnation,
        offer: Arc<Offer>,
    },
    WorkerDraining {
        worker: WorkerId,
        draining: bool,
        by: Actor,
    },
    WorkerForgotten {
        worker: WorkerId,
    },

    // --- runs ---
    RunSubmitted {
        run: RunId,
        spec: Arc<RunSpec>,
        /// Makes a repeated submission harmless.
        key: Option<Arc<str>>,
        /// Digest of the plan as submitted: the same key with another digest is refused.
        digest: Arc<str>,
    },
    CancelRequested {
        run: RunId,
        by: Actor,
        reason: Box<str>,
    },
    IntegrationStarted {
        run: RunId,
    },
    /// The integration branch's commit is made and, when there is a final verify, waits for it.
    IntegrationMerged {
        run: RunId,
        commit: CommitId,
    },
    RunEnded {
        run: RunId,
        outcome: RunOutcome,
    },
    /// The run left memory; its history and final image are in the archive.
    RunArchived {
        run: RunId,
    },
    /// The succeeded tasks do not merge; [`EventKind::RunEnded`] follows in the same batch.
    IntegrationConflicted {
        run: RunId,
        conflict: MergeConflict,
    },
    /// An ended run is active again. The events that reopen its tasks follow in the same batch.
    RunReopened {
        run: RunId,
        generation: u32,
        by: Actor,
    },
    /// An archived run came back, to be retried.
    RunReloaded {
        run: RunId,
        image: Arc<RunImage>,
    },

    // --- tasks ---
    /// All dependencies have succeeded and the base is to be merged. The event's time is the
    /// merge commit's time, so that a repeated merge gives the same commit id.
    TaskBasing {
        task: TaskKey,
    },
    /// The task can be leased. `base` is absent only in runs without a repository.
    TaskReady {
        task: TaskKey,
        base: Option<CommitId>,
        not_before: Timestamp,
    },
    TaskSucceeded {
        task: TaskKey,
        outcome: Outcome,
    },
    TaskFailed {
        task: TaskKey,
        failure: Failure,
    },
    TaskSkipped {
        task: TaskKey,
        because: TaskIx,
    },
    TaskCancelled {
        task: TaskKey,
        by: Actor,
        reason: Box<str>,
    },
    /// Ended by the system because the run ends.
    TaskAborted {
        task: TaskKey,
        reason: Box<str>,
    },
    /// A new generation: the task goes back to the start.
    TaskReopened {
        task: TaskKey,
        generation: u32,
        by: Actor,
    },

    // --- leases ---
    LeaseGranted {
        run: RunId,
        lease: LeaseId,
        work: Work,
        worker: WorkerId,
        incarnation: Incarnation,
        ttl: Span,
        /// Why this worker; for people alone.
        placement: Placement,
    },
    /// The agent (or the first verify command) has started.
    WorkStarted {
        run: RunId,
        lease: LeaseId,
    },
    AttemptSucceeded {
        run: RunId,
        lease: LeaseId,
        outcome: Outcome,
        usage: Usage,
        summary: Box<str>,
    },
    /// `retry_at` is when the task is ready again; `None` means that the task fails.
    AttemptFailed {
        run: RunId,
        lease: LeaseId,
        failure: Failure,
        usage: Usage,
        retry_at: Option<Timestamp>,
        /// Whether it speaks against the worker's host, which was left before it had done much; `None`
        /// where that was not recorded yet, and is to be found from the event's time.
        blames_host: Option<bool>,
    },
    VerifyPassed {
        run: RunId,
        lease: LeaseId,
    },
    /// A counted failure of the attempt (or, for the final verify, of the run).
    VerifyFailed {
        run: RunId,
        lease: LeaseId,
        failure: Failure,
        retry_at: Option<Timestamp>,
    },
    /// The verifier was lost or could not begin: the verify is repeated, not the attempt.
    /// `retry_at` `None` means that the limit of such losses is reached.
    VerifyLost {
        run: RunId,
        lease: LeaseId,
        failure: Failure,
        retry_at: Option<Timestamp>,
    },
    /// The task no longer waits for this lease (cancelled), but its processes may still live.
    LeaseRevoked {
        run: RunId,
        lease: LeaseId,
    },
    /// The lease is over: nothing of it runs any more. Every lease ends with this event, also after
    /// a result; only [`LeaseEnd::NeverStarted`] by itself puts the work back into its queue.
    LeaseClosed {
        run: RunId,
        lease: LeaseId,
        end: LeaseEnd,
    },

    // --- pools ---
    Pool(PoolEvent),

    // --- questions to people ---
    QuestionAsked {
        run: RunId,
        lease: LeaseId,
        question: QuestionId,
        /// From 1 within the attempt, as its agent counts.
        number: u32,
        asking: Arc<Asking>,
    },
    QuestionAnswered {
        run: RunId,
        question: QuestionId,
        choice: Box<str>,
        text: Box<str>,
        by: Actor,
    },
    /// The agent does not wait any more: it has its answer, or goes on without one.
    QuestionClosed {
        run: RunId,
        lease: LeaseId,
        question: QuestionId,
        number: u32,
        /// Empty if it was given none.
        choice: Box<str>,
        by: Actor,
    },
    /// The agent has a conversation that a later attempt can go on with.
    ConversationOpened {
        run: RunId,
        lease: LeaseId,
        /// As the agent names it.
        conversation: Box<str>,
        software: Box<str>,
    },
    /// The lease was given up while the question waits. Uncounted; the next attempt continues it.
    TaskParked {
        run: RunId,
        lease: LeaseId,
        question: QuestionId,
    },
}

impl EventKind {
    /// Gives the run whose history the event belongs to; `None` for the coordinator's own.
    #[must_use]
    pub fn run(&self) -> Option<RunId> {
        match self {
            Self::CoordinatorStarted { .. }
            | Self::WorkerJoined { .. }
            | Self::WorkerDraining { .. }
            | Self::WorkerForgotten { .. }
            | Self::Pool(_) => None,
            Self::RunSubmitted { run, .. }
            | Self::CancelRequested { run, .. }
            | Self::IntegrationStarted { run }
            | Self::IntegrationMerged { run, .. }
            | Self::IntegrationConflicted { run, .. }
            | Self::RunEnded { run, .. }
            | Self::RunReopened { run, .. }
            | Self::RunArchived { run }
            | Self::RunReloaded { run, .. }
            | Self::LeaseGranted { run, .. }
            | Self::WorkStarted { run, .. }
            | Self::AttemptSucceeded { run, .. }
            | Self::AttemptFailed { run, .. }
            | Self::VerifyPassed { run, .. }
            | Self::VerifyFailed { run, .. }
            | Self::VerifyLost { run, .. }
            | Self::LeaseRevoked { run, .. }
            | Self::LeaseClosed { run, .. }
            | Self::QuestionAsked { run, .. }
            | Self::QuestionAnswered { run, .. }
            | Self::QuestionClosed { run, .. }
            | Self::ConversationOpened { run, .. }
            | Self::TaskParked { run, .. } => Some(*run),
            Self::TaskBasing { task }
            | Self::TaskReady { task, .. }
            | Self::TaskSucceeded { task, .. }
            | Self::TaskFailed { task, .. }
            | Self::TaskSkipped { task, .. }
            | Self::TaskCancelled { task, .. }
            | Self::TaskAborted { task, .. }
            | Self::TaskReopened { task, .. } => Some(task.run),
        }
    }

    /// Gives the stable name used in logs, on the wire and in JSON.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::CoordinatorStarted { .. } => "coordinator_started",
            Self::WorkerJoined { .. } => "worker_joined",
            Self::WorkerDraining { .. } => "worker_draining",
            Self::WorkerForgotten { .. } => "worker_forgotten",
            Self::RunSubmitted { .. } => "run_submitted",
            Self::CancelRequested { .. } => "cancel_requested",
            Self::IntegrationStarted { .. } => "integration_started",
            Self::IntegrationMerged { .. } => "integration_merged",
            Self::RunEnded { .. } => "run_ended",
            Self::RunArchived { .. } => "run_archived",
            Self::IntegrationConflicted { .. } => "integration_conflicted",
            Self::RunReopened { .. } => "run_reopened",
            Self::RunReloaded { .. } => "run_reloaded",
            Self::TaskBasing { .. } => "task_basing",
            Self::TaskReady { .. } => "task_ready",
            Self::TaskSucceeded { .. } => "task_succeeded",
            Self::TaskFailed { .. } => "task_failed",
            Self::TaskSkipped { .. } => "task_skipped",
            Self::TaskCancelled { .. } => "task_cancelled",
            Self::TaskAborted { .. } => "task_aborted",
            Self::TaskReopened { .. } => "task_reopened",
            Self::LeaseGranted { .. } => "lease_granted",
            Self::WorkStarted { .. } => "work_started",
            Self::AttemptSucceeded { .. } => "attempt_succeeded",
            Self::AttemptFailed { .. } => "attempt_failed",
            Self::VerifyPassed { .. } => "verify_passed",
            Self::VerifyFailed { .. } => "verify_failed",
            Self::VerifyLost { .. } => "verify_lost",
            Self::LeaseRevoked { .. } => "lease_revoked",
            Self::LeaseClosed { .. } => "lease_closed",
            Self::QuestionAsked { .. } => "question_asked",
            Self::QuestionAnswered { .. } => "question_answered",
            Self::QuestionClosed { .. } => "question_closed",
            Self::ConversationOpened { .. } => "conversation_opened",
            Self::TaskParked { .. } => "task_parked",
            Self::Pool(event) => event.name(),
        }
    }
}
