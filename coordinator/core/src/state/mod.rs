//! What the coordinator knows: a durable part that replay rebuilds, and a volatile part.
//!
//! Fields of [`Run`], [`Task`], [`Lease`] and [`Worker`] are public to be read; only this crate
//! gets them mutably, since [`State`] keeps them private.

mod read;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::event::{Actor, MergeConflict, Outcome, RunOutcome, Usage, Work};
use crate::failure::Failure;
use crate::ids::{
    AllocationId, AttemptNo, CommitId, Epoch, Incarnation, LeaseId, QuestionId, RunId, TaskIx,
    WorkerId,
};
use crate::index::{Index, LeaseEntry, RunEntry, WorkerEntry};
use crate::limits;
use crate::plan::{IntegrateSpec, Profile, Source};
use crate::pool::{Allocation, Policy, Pool};
use crate::question::{PastQuestion, Question};
use crate::time::{Span, Timestamp};
use crate::worker::Offer;

/// A run that is live (not archived).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    pub id: RunId,
    pub name: Arc<str>,
    pub plan: Arc<str>,
    pub source: Option<Source>,
    pub integrate: Option<IntegrateSpec>,
    pub max_parallel: Option<std::num::NonZeroU32>,
    pub submitted_by: Actor,
    pub submitted_at: Timestamp,
    pub key: Option<Arc<str>>,
    pub digest: Arc<str>,
    /// Distinct settings; tasks name them by index.
    pub profiles: Vec<Profile>,
    pub tasks: Vec<Task>,
    pub phase: RunPhase,
    /// Grows with every retry that reopens the run's integration.
    pub generation: u32,
    /// Sequence number of the run's last event.
    pub last_seq: u64,
    pub cancel: Option<CancelRequest>,
    /// The last integration conflict, for people.
    pub conflict: Option<MergeConflict>,
}

/// A wish to end a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CancelRequest {
    pub by: Actor,
    pub reason: Box<str>,
    pub at: Timestamp,
}

/// Where a run stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RunPhase {
    /// Tasks are worked on.
    Active,
    /// All tasks succeeded; the integration branch's commit is being made since `since`.
    Integrating { since: Timestamp },
    /// The integrated commit waits for its verify or is verified.
    Verifying {
        commit: CommitId,
        verify: VerifyPhase,
    },
    /// `integrated` is the integration branch's commit, if the run got that far.
    Ended {
        outcome: RunOutcome,
        integrated: Option<CommitId>,
        at: Timestamp,
    },
}

/// A task of a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Task {
    pub name: Arc<str>,
    pub dependencies: Box<[TaskIx]>,
    /// Tasks that depend on this one.
    pub dependents: Box<[TaskIx]>,
    /// Length of the longest chain of tasks that starts here: what is on the critical path goes first.
    pub height: u32,
    pub priority: i16,
    /// Index into [`Run::profiles`].
    pub profile: u16,
    pub paths: Box<[Arc<str>]>,
    pub state: TaskState,
    /// Grows with every retry by an operator.
    pub generation: u32,
    /// What happened so far; boxed since most tasks of a large run have not begun.
    pub history: Option<Box<History>>,
}

/// Attempts of a task and what counts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct History {
    /// The base all attempts of this generation start from; set when the task is ready, for tasks
    /// without dependencies only when the first attempt is granted.
    pub base: Option<CommitId>,
    /// In order; numbers go on across generations.
    pub attempts: Vec<Attempt>,
    /// Counted failures in this generation.
    pub counted: u32,
    /// Uncounted failures in this generation, those by the model's provider and by machines that
    /// went away left out.
    pub crashes: u32,
    /// Failures by the model's provider in this generation.
    pub deferrals: u32,
    /// Attempts that were cut off because their machine went away, in this generation.
    pub departures: u32,
    /// The last failure of this generation, with the output the next attempt gets.
    pub last_failure: Option<Failure>,
}

/// One attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attempt {
    pub number: AttemptNo,
    pub generation: u32,
    pub lease: LeaseId,
    pub worker: WorkerId,
    pub granted_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    pub end: Option<AttemptEnd>,
    /// Time it waited for people until it last went on; not part of its time limit.
    pub paused: Span,
    /// When it began to wait for people, if it waits now.
    pub waiting_since: Option<Timestamp>,
    /// Its questions that are closed, in the order in which they were.
    pub asked: Vec<PastQuestion>,
    /// The earlier attempt whose unfinished edits and conversation it goes on from.
    pub continues: Option<AttemptNo>,
    /// What its agent goes on with, if the attempt is lost.
    pub conversation: Option<Conversation>,
    pub usage: Usage,
    /// One line or so in the agent's words.
    pub summary: Box<str>,
}

/// An agent's own conversation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conversation {
    /// As the agent names it.
    pub id: Box<str>,
    /// Program and version of the agent.
    pub software: Box<str>,
    /// Host of the worker that has it on its disk.
    pub host: Arc<str>,
    /// The how manieth of its attempt, from 1.
    pub nth: u32,
}

/// How an attempt ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AttemptEnd {
    /// The attempt itself ended well; its verify may still fail.
    Made(Outcome),
    /// As above, and its verify (if any) passed.
    Succeeded(Outcome),
    Failed(Failure),
    /// Its verify failed.
    VerifyFailed {
        outcome: Outcome,
        failure: Failure,
    },
    Cancelled,
    /// Given up while questions wait. The next attempt continues this one with the answers.
    Parked {
        /// The one that has waited longest.
        question: QuestionId,
        /// The choice that was made last, once all have an answer.
        answer: Option<Box<str>>,
    },
    /// The grant did not reach its worker, or came back before anything began.
    NeverStarted,
}

/// Where a task stands. Final states are final for their generation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TaskState {
    Blocked {
        unmet: u32,
    },
    Basing {
        since: Timestamp,
    },
    Ready {
        since: Timestamp,
        not_before: Timestamp,
    },
    Leased {
        attempt: AttemptNo,
        lease: LeaseId,
        /// Questions that are not closed, in the order in which they were asked.
        awaiting: Vec<Question>,
    },
    /// The attempt's outcome waits for its verify or is verified.
    Verifying {
        attempt: AttemptNo,
        verify: VerifyPhase,
    },
    Parked(Box<Parked>),
    Succeeded {
        outcome: Outcome,
        at: Timestamp,
    },
    Failed {
        failure: Box<Failure>,
        at: Timestamp,
    },
    Cancelled {
        by: Actor,
        reason: Box<str>,
        at: Timestamp,
    },
    Aborted {
        reason: Box<str>,
        at: Timestamp,
    },
    Skipped {
        because: TaskIx,
        at: Timestamp,
    },
}

/// Where a verify stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VerifyPhase {
    /// Wants a lease.
    Waiting {
        since: Timestamp,
        not_before: Timestamp,
        lost: u32,
    },
    Leased {
        lease: LeaseId,
        lost: u32,
    },
}

/// A task that waits for a person and holds neither lease nor slot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parked {
    /// In the order in which they were asked; at least one has no answer.
    pub questions: Vec<Question>,
    /// Attempt whose conversation and edits the next one continues.
    pub resume: AttemptNo,
    /// Worker that ran it, preferred for going on.
    pub affinity: WorkerId,
}

/// A lease that is not closed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease {
    pub id: LeaseId,
    pub run: RunId,
    pub work: Work,
    pub worker: WorkerId,
    pub incarnation: Incarnation,
    pub granted_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub ttl: Span,
    /// Nobody waits for its result any more; kept until its processes are surely gone.
    pub revoked: bool,
    /// Volatile: when the coordinator gives it up.
    pub expires_at: Timestamp,
}

/// A worker that has said hello and is not forgotten.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Worker {
    pub id: WorkerId,
    pub incarnation: Incarnation,
    pub offer: Arc<Offer>,
    /// An operator wants it drained.
    pub draining: bool,
    /// Volatile part.
    pub link: Link,
}

/// Volatile: the worker's session as it is now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Link {
    /// No stream since then (or since the coordinator's start).
    Down { since: Timestamp },
    Up {
        session: u64,
        /// Last heartbeat: what grants and renewals name.
        heartbeat: u64,
        heard_at: Timestamp,
        free_slots: u32,
        /// The worker itself wants to take nothing new.
        draining: bool,
    },
}

/// A complete run as plain data: for snapshots and the archive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunImage {
    pub run: Run,
}

/// Everything durable as plain data: for snapshots.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    pub epoch: Epoch,
    pub last_seq: u64,
    pub next_run: RunId,
    pub next_lease: LeaseId,
    pub next_question: QuestionId,
    pub next_allocation: AllocationId,
    pub pools: BTreeMap<Arc<str>, Pool>,
    pub allocations: Vec<Allocation>,
    pub workers: Vec<Worker>,
    pub runs: Vec<Run>,
    pub leases: Vec<Lease>,
    /// Idempotency keys of live and recently archived runs.
    pub keys: BTreeMap<Arc<str>, KeyUse>,
}

/// What an idempotency key was used for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyUse {
    pub run: RunId,
    pub name: Arc<str>,
    pub digest: Arc<str>,
}

/// How long leases live; the coordinator's configuration, not part of what is journaled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseClocks {
    /// Time a lease lives without renewal. Each lease keeps the one it was granted with.
    pub ttl: Span,
    /// How long after the TTL the coordinator waits, so that the worker has surely stopped first.
    pub grace: Span,
}

impl Default for LeaseClocks {
    fn default() -> Self {
        Self {
            ttl: limits::LEASE_TTL,
            grace: limits::LEASE_GRACE,
        }
    }
}

/// Everything the coordinator knows. Changes only through events, and through touches of its
/// volatile part (links of workers, renewals of leases).
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct State {
    pub(crate) epoch: Epoch,
    /// When the coordinator was started last; not in images, after which a start follows.
    pub(crate) started_at: Timestamp,
    pub(crate) last_seq: u64,
    pub(crate) next_run: RunId,
    pub(crate) next_lease: LeaseId,
    pub(crate) next_question: QuestionId,
    pub(crate) next_allocation: AllocationId,
    pub(crate) pools: BTreeMap<Arc<str>, Pool>,
    pub(crate) allocations: BTreeMap<AllocationId, Allocation>,
    pub(crate) runs: BTreeMap<RunId, RunEntry>,
    pub(crate) leases: BTreeMap<LeaseId, LeaseEntry>,
    pub(crate) workers: BTreeMap<WorkerId, WorkerEntry>,
    pub(crate) keys: BTreeMap<Arc<str>, KeyUse>,
    pub(crate) index: Index,
    pub(crate) clocks: LeaseClocks,
    /// How pools are to be run; the coordinator's configuration.
    pub(crate) policies: BTreeMap<Arc<str>, Policy>,
    /// Runs archived lately, the last one at the end, with the last event of their image: one that was
    /// read from the archive before the run went on is not taken for it. Volatile: what was read does
    /// not outlive the coordinator's process either.
    pub(crate) archived: VecDeque<(RunId, u64)>,
}

/// Gives when the work of a lease has taken too long, by the coordinator's count; `None` while it
/// waits for a person and once nobody waits for its result.
pub(crate) fn timeout_at(run: &Run, lease: &Lease) -> Option<Timestamp> {
    if lease.revoked {
        return None;
    }
    let begin = lease.started_at.unwrap_or(lease.granted_at);
    let limit = match lease.work {
        Work::Attempt { task, .. } => {
            let history = run.task(task)?;
            let attempt = history.attempts().last();
            if attempt.is_some_and(|attempt| attempt.waiting_since.is_some()) {
                return None;
            }
            let paused = attempt.map_or(Span::ZERO, |attempt| attempt.paused);
            run.profile(task)?.timeout + paused
        }
        Work::Verify { task, .. } => run.profile(task)?.verify.as_ref()?.timeout,
        Work::FinalVerify => run.final_verify()?.timeout,
    };
    Some(begin + limit + limits::TIMEOUT_MARGIN)
}
