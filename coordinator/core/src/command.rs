//! What the core is asked, what it answers, and how it refuses.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::event::{Actor, MergeConflict, Outcome, Usage};
use crate::failure::Failure;
use crate::ids::{
    AttemptNo, CommitId, Incarnation, LeaseId, QuestionId, RunId, TaskIx, TaskKey, WorkerId,
};
use crate::plan::RunSpec;
use crate::pool::PoolCommand;
use crate::question::Asking;
use crate::state::RunImage;
use crate::time::Span;
use crate::worker::{DeclaredAgent, Offer};

/// A request to the core. Whatever a worker, user or file can put into it is checked here.
#[derive(Clone, Debug)]
pub enum Command {
    /// Submits a run. Repeating it with the same key and digest gives the same run.
    Submit {
        spec: Arc<RunSpec>,
        key: Option<Arc<str>>,
        digest: Arc<str>,
    },
    Cancel {
        target: Target,
        by: Actor,
        reason: Box<str>,
    },
    /// Opens a new generation of a final task that did not succeed and of everything that was
    /// skipped because of it; for a run, of all such tasks (and of a failed integration).
    Retry { target: Target, by: Actor },
    Drain {
        worker: WorkerId,
        draining: bool,
        by: Actor,
    },
    /// A person's word on a question of an agent. Repeating it changes nothing.
    Answer {
        question: QuestionId,
        /// Id of one of the question's own choices.
        choice: Box<str>,
        /// For the agent: why, or what it asked for.
        text: Box<str>,
        by: Actor,
    },

    /// First message of a worker's session.
    Hello(Hello),
    /// Renews leases; volatile.
    Heartbeat(Heartbeat),
    /// The stream of this session is gone. Proves nothing about the work.
    SessionClosed {
        worker: WorkerId,
        incarnation: Incarnation,
        session: u64,
    },
    /// The worker of this session holds nothing and ends. What it was granted meanwhile it will never
    /// begin.
    Goodbye {
        worker: WorkerId,
        incarnation: Incarnation,
        session: u64,
    },
    /// A worker's word about one of its leases.
    Report {
        worker: WorkerId,
        lease: LeaseId,
        report: Report,
    },

    /// The shell merged the base of a task.
    BaseMade {
        task: TaskKey,
        generation: u32,
        result: Result<CommitId, GitStepFailure>,
    },
    /// The shell merged all succeeded tasks.
    IntegrationMade {
        run: RunId,
        generation: u32,
        result: Result<CommitId, GitStepFailure>,
    },
    /// The archive holds the run as it was after its event `last_seq`; it may leave memory, unless
    /// something has happened to it since.
    Archived { run: RunId, last_seq: u64 },
    /// An archived run comes back so that it can be retried.
    Reload { image: Arc<RunImage> },
    /// About pools and what they consist of.
    Pool(PoolCommand),
    /// Time has passed.
    Tick,
}

/// What an operator points at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    Run(RunId),
    Task(TaskKey),
}

/// Why merging did not give a commit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GitStepFailure {
    Conflict(MergeConflict),
    /// The step failed for a reason of its own (disk, damaged repository) and was already
    /// repeated by the shell.
    Error(Box<str>),
}

/// First message of a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    pub worker: WorkerId,
    pub incarnation: Incarnation,
    /// Number the shell gives to the stream; only grows.
    pub session: u64,
    /// Number the worker gives to its hello; only grows within an incarnation. A stream that the
    /// worker has given up may be delivered late, behind the one that replaced it; what its hello
    /// says is then no longer so. 0 from workers that do not count.
    pub number: u64,
    pub offer: Arc<Offer>,
    /// Leases whose work or unacknowledged result the worker still has. All process trees of
    /// leases of older incarnations are gone: the worker has made sure before it says hello.
    pub held: Vec<LeaseId>,
    /// The worker takes nothing new.
    pub draining: bool,
    /// How long its machine will still be there, if that is known.
    pub time_left: Option<Span>,
}

/// A sign of life.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Heartbeat {
    pub worker: WorkerId,
    pub incarnation: Incarnation,
    pub session: u64,
    /// Number of this heartbeat within the session; grants and renewals name it.
    pub seq: u64,
    /// Leases it holds.
    pub held: Vec<LeaseId>,
    /// Leases it could take now; never more than its slots.
    pub free_slots: u32,
    pub draining: bool,
    /// How long its machine will still be there, if that is known.
    pub time_left: Option<Span>,
    /// Which declared agents it has and which it lacks, of all that it was asked for; `None` if it
    /// says nothing about that.
    pub looked: Option<BTreeMap<DeclaredAgent, bool>>,
}

/// A worker's word about a lease.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Report {
    Started,
    /// The attempt ended well; its commit is published.
    Succeeded {
        outcome: Outcome,
        usage: Usage,
        summary: Box<str>,
    },
    /// The attempt or verify ended badly, in the worker's judgement of the class.
    Failed {
        failure: Failure,
        usage: Usage,
    },
    VerifyPassed,
    /// The worker gives the lease back: the grant came too late or the worker is ending; its
    /// process tree is gone and nothing counts.
    GivenBack {
        failure: Failure,
    },
    /// The process tree of a lease that was to stop is gone.
    Stopped,
    /// The agent waits for a person.
    Asked {
        /// From 1 within the attempt.
        number: u32,
        asking: Arc<Asking>,
    },
    /// It does not wait any more.
    QuestionClosed {
        number: u32,
        /// Id of the choice that it was given; empty if it was given none.
        choice: Box<str>,
        /// A user, `policy` or `agent`.
        by: Box<str>,
        /// The question of an earlier attempt whose answer it was given.
        earlier: Option<QuestionId>,
    },
    /// It has a conversation that can be gone on with.
    ConversationOpened {
        /// As the agent names it.
        id: Box<str>,
        software: Box<str>,
    },
}

/// What a command is answered with. Leaves the process only after its events are committed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    Done,
    Submitted {
        run: RunId,
        /// False when the key had already been used for this plan.
        fresh: bool,
    },
    /// Verdict for each held lease; leases of the worker that are not named are not its own.
    Welcome {
        verdicts: BTreeMap<LeaseId, Verdict>,
    },
    /// Answer to a heartbeat: which leases were renewed, which must stop.
    Renewed {
        seq: u64,
        verdicts: BTreeMap<LeaseId, Verdict>,
    },
    /// Answer to a report.
    Report(ReportAnswer),
    /// How many tasks a cancel or retry touched.
    Touched {
        tasks: usize,
    },
}

/// May the worker go on with a lease?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    Keep,
    /// End its processes, keep its unfinished edits (salvage), say `Stopped`.
    Stop,
}

/// What became of a report.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReportAnswer {
    Recorded,
    /// The same result had been recorded before; nothing counted twice.
    AlreadyRecorded,
    /// The lease is not this worker's live lease: recorded as refused, never applied.
    Stale,
}

/// Refusal of a command; nothing has changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Rejection {
    #[error("{0}")]
    InvalidPlan(#[from] PlanError),
    #[error("no run or task of that id is live")]
    UnknownTarget,
    #[error("no worker is called {0}")]
    UnknownWorker(WorkerId),
    #[error("no pool is called {0:?}")]
    UnknownPool(Arc<str>),
    #[error("no question {0} is known; it may be of a run that has ended")]
    UnknownQuestion(QuestionId),
    /// An answer that the question does not take.
    #[error("{0}")]
    Answer(Box<str>),
    #[error("the idempotency key was used for another plan, as run {run}")]
    KeyReused { run: Arc<str> },
    #[error("a run named {0} exists")]
    RunNameTaken(Arc<str>),
    /// An older incarnation or a session that was replaced.
    #[error(
        "worker {worker} has a newer session: it was started again, or another machine has its host name \
         and state folder, as a copy of its disk has; give one of the two another --state-dir or host name"
    )]
    SessionSuperseded { worker: WorkerId },
    /// The request arrived for a state in which it makes no sense, such as retrying a succeeded task.
    #[error("{0}")]
    NotNow(Box<str>),
    #[error("limit reached: {limit} (at most {max})")]
    Limit { limit: &'static str, max: u64 },
    /// A shell's answer about a step that is no longer wanted.
    #[error("the step is no longer wanted")]
    StepStale,
}

impl Rejection {
    /// Gives the stable code used on the wire and in logs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::InvalidPlan(_) => "INVALID_PLAN",
            Self::UnknownTarget => "UNKNOWN_TARGET",
            Self::UnknownWorker(_) => "UNKNOWN_WORKER",
            Self::UnknownPool(_) => "UNKNOWN_POOL",
            Self::UnknownQuestion(_) => "UNKNOWN_QUESTION",
            Self::Answer(_) => "INVALID_ANSWER",
            Self::KeyReused { .. } => "KEY_REUSED",
            Self::RunNameTaken(_) => "RUN_NAME_TAKEN",
            Self::SessionSuperseded { .. } => "SESSION_SUPERSEDED",
            Self::NotNow(_) => "NOT_NOW",
            Self::Limit { .. } => "LIMIT",
            Self::StepStale => "STEP_STALE",
        }
    }
}

/// Shows a cycle; of a long one its begin, since a plan may be one cycle of all its tasks.
fn shown_cycle(names: &[String]) -> String {
    let shown = names
        .get(..names.len().min(20))
        .unwrap_or_default()
        .join(" → ");
    match names.len().checked_sub(20) {
        // Back to where it began.
        None | Some(0) => match names.first() {
            Some(first) => format!("{shown} → {first}"),
            None => shown,
        },
        Some(more) => format!("{shown} → … ({more} more)"),
    }
}

/// What is wrong with a plan, with the tasks it concerns so that a shell can name their lines.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlanError {
    #[error("a plan needs at least one task")]
    Empty,
    #[error("task name {name:?} is not usable: {reason}")]
    BadName {
        task: TaskIx,
        name: Box<str>,
        reason: &'static str,
    },
    #[error("task name {name:?} is used twice; names must differ in more than case")]
    DuplicateName {
        task: TaskIx,
        first: TaskIx,
        name: Box<str>,
    },
    #[error("task {name:?} depends on {dependency:?}, which is not in the plan")]
    UnknownDependency {
        task: TaskIx,
        name: Box<str>,
        dependency: Box<str>,
        suggestion: Option<Box<str>>,
    },
    #[error("task {name:?} depends on {dependency:?} twice")]
    DoubleDependency {
        task: TaskIx,
        name: Box<str>,
        dependency: Box<str>,
    },
    /// The cycle's tasks in order; the last depends on the first.
    #[error("tasks depend on each other in a cycle: {}", shown_cycle(names))]
    Cycle {
        tasks: Vec<TaskIx>,
        names: Vec<String>,
    },
    #[error("task {name:?}: path {path:?} is not usable: {reason}")]
    BadPath {
        task: TaskIx,
        name: Box<str>,
        path: Box<str>,
        reason: &'static str,
    },
    #[error("too many: {limit} (at most {max})")]
    Limit {
        task: Option<TaskIx>,
        limit: &'static str,
        max: u64,
    },
}

/// Attempt of a task, as a place in a history.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct AttemptKey {
    pub task: TaskKey,
    pub attempt: AttemptNo,
}
