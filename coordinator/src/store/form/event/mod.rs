//! Forms of batches and events.

mod read;
mod write;

use coordinator_core::event::{LeaseEnd, Outcome, Placement, RunOutcome, Usage, Work};
use coordinator_core::{AttemptNo, Epoch, Event, Failure, TaskIx, Timestamp};
use serde::{Deserialize, Serialize};

use super::Error;
use super::plan::{FailureV1, OfferV1, RunSpecV1, Text, commit, is_zero, shared, text};
use super::pool::PoolEventV1;
use super::question::AskingV1;
use super::run::{ConflictV1, RunV1};
use crate::store::Batch;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BatchV1<'a> {
    epoch: u64,
    at: u64,
    events: Vec<EventV1<'a>>,
}

impl<'a> BatchV1<'a> {
    pub(super) fn new(epoch: Epoch, at: Timestamp, events: &'a [Event]) -> Self {
        Self {
            epoch: epoch.0,
            at: at.ms(),
            events: events.iter().map(EventV1::from).collect(),
        }
    }
}

impl TryFrom<BatchV1<'_>> for Batch {
    type Error = Error;

    fn try_from(form: BatchV1<'_>) -> Result<Self, Error> {
        Ok(Self {
            epoch: Epoch(form.epoch),
            at: Timestamp::from_ms(form.at),
            events: form
                .events
                .into_iter()
                .map(Event::try_from)
                .collect::<Result<_, _>>()?,
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventV1<'a> {
    seq: u64,
    at: u64,
    ev: KindV1<'a>,
}

impl<'a> From<&'a Event> for EventV1<'a> {
    fn from(event: &'a Event) -> Self {
        Self {
            seq: event.seq,
            at: event.at.ms(),
            ev: KindV1::from(&event.kind),
        }
    }
}

impl TryFrom<EventV1<'_>> for Event {
    type Error = Error;

    fn try_from(form: EventV1<'_>) -> Result<Self, Error> {
        Ok(Self {
            seq: form.seq,
            at: Timestamp::from_ms(form.at),
            kind: form.ev.try_into()?,
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "k", rename_all = "snake_case", deny_unknown_fields)]
enum KindV1<'a> {
    CoordinatorStarted {
        epoch: u64,
    },
    WorkerJoined {
        worker: Text<'a>,
        incarnation: u64,
        offer: OfferV1<'a>,
    },
    WorkerDraining {
        worker: Text<'a>,
        draining: bool,
        by: Text<'a>,
    },
    WorkerForgotten {
        worker: Text<'a>,
    },
    RunSubmitted {
        run: u64,
        spec: RunSpecV1<'a>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<Text<'a>>,
        digest: Text<'a>,
    },
    CancelRequested {
        run: u64,
        by: Text<'a>,
        reason: Text<'a>,
    },
    IntegrationStarted {
        run: u64,
    },
    IntegrationMerged {
        run: u64,
        commit: Text<'a>,
    },
    RunEnded {
        run: u64,
        outcome: RunOutcomeV1<'a>,
    },
    RunArchived {
        run: u64,
    },
    IntegrationConflicted {
        run: u64,
        conflict: ConflictV1<'a>,
    },
    RunReopened {
        run: u64,
        generation: u32,
        by: Text<'a>,
    },
    RunReloaded {
        run: u64,
        image: Box<RunV1<'a>>,
    },
    TaskBasing {
        run: u64,
        task: u32,
    },
    TaskReady {
        run: u64,
        task: u32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        base: Option<Text<'a>>,
        not_before: u64,
    },
    TaskSucceeded {
        run: u64,
        task: u32,
        outcome: OutcomeV1<'a>,
    },
    TaskFailed {
        run: u64,
        task: u32,
        failure: FailureV1<'a>,
    },
    TaskSkipped {
        run: u64,
        task: u32,
        because: u32,
    },
    TaskCancelled {
        run: u64,
        task: u32,
        by: Text<'a>,
        reason: Text<'a>,
    },
    TaskAborted {
        run: u64,
        task: u32,
        reason: Text<'a>,
    },
    TaskReopened {
        run: u64,
        task: u32,
        generation: u32,
        by: Text<'a>,
    },
    LeaseGranted {
        run: u64,
        lease: u64,
        work: WorkV1,
        worker: Text<'a>,
        incarnation: u64,
        ttl: u64,
        #[serde(default, skip_serializing_if = "PlacementV1::is_unknown")]
        placement: PlacementV1,
    },
    WorkStarted {
        run: u64,
        lease: u64,
    },
    AttemptSucceeded {
        run: u64,
        lease: u64,
        outcome: OutcomeV1<'a>,
        #[serde(default, skip_serializing_if = "is_zero")]
        usage: UsageV1,
        summary: Text<'a>,
    },
    AttemptFailed {
        run: u64,
        lease: u64,
        failure: FailureV1<'a>,
        #[serde(default, skip_serializing_if = "is_zero")]
        usage: UsageV1,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_at: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        blames_host: Option<bool>,
    },
    VerifyPassed {
        run: u64,
        lease: u64,
    },
    VerifyFailed {
        run: u64,
        lease: u64,
        failure: FailureV1<'a>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_at: Option<u64>,
    },
    VerifyLost {
        run: u64,
        lease: u64,
        failure: FailureV1<'a>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_at: Option<u64>,
    },
    LeaseRevoked {
        run: u64,
        lease: u64,
    },
    LeaseClosed {
        run: u64,
        lease: u64,
        end: LeaseEndV1,
    },
    QuestionAsked {
        run: u64,
        lease: u64,
        question: u64,
        /// Its title.
        text: Text<'a>,
        #[serde(default, skip_serializing_if = "is_zero")]
        number: u32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        asking: Option<AskingV1<'a>>,
    },
    QuestionAnswered {
        run: u64,
        question: u64,
        /// The choice.
        answer: Text<'a>,
        by: Text<'a>,
        #[serde(default, skip_serializing_if = "str::is_empty")]
        text: Text<'a>,
    },
    QuestionClosed {
        run: u64,
        lease: u64,
        question: u64,
        number: u32,
        #[serde(default, skip_serializing_if = "str::is_empty")]
        choice: Text<'a>,
        #[serde(default, skip_serializing_if = "str::is_empty")]
        by: Text<'a>,
    },
    ConversationOpened {
        run: u64,
        lease: u64,
        conversation: Text<'a>,
        #[serde(default, skip_serializing_if = "str::is_empty")]
        software: Text<'a>,
    },
    Pool {
        event: PoolEventV1<'a>,
    },
    TaskParked {
        run: u64,
        lease: u64,
        question: u64,
    },
    /// A kind this program does not know. Only ever read.
    #[serde(other, skip_serializing)]
    Newer,
}

/// Free slots, workers with a free slot, those of them that were passed over, and whether a
/// conversation goes on there; left out when nothing is known.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct PlacementV1(
    u32,
    u32,
    u32,
    bool,
    /// A dependency ran there.
    #[serde(default, skip_serializing_if = "is_zero")]
    bool,
);

impl PlacementV1 {
    fn is_unknown(&self) -> bool {
        self.0 == 0
    }
}

impl From<Placement> for PlacementV1 {
    fn from(placement: Placement) -> Self {
        Self(
            placement.free,
            placement.available,
            placement.passed,
            placement.continues,
            placement.near,
        )
    }
}

impl From<PlacementV1> for Placement {
    fn from(PlacementV1(free, available, passed, continues, near): PlacementV1) -> Self {
        Self {
            free,
            available,
            passed,
            continues,
            near,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum WorkV1 {
    Attempt { task: u32, attempt: u32 },
    Verify { task: u32, attempt: u32 },
    FinalVerify,
}

impl From<Work> for WorkV1 {
    fn from(work: Work) -> Self {
        match work {
            Work::Attempt { task, attempt } => Self::Attempt {
                task: task.0,
                attempt: attempt.0,
            },
            Work::Verify { task, attempt } => Self::Verify {
                task: task.0,
                attempt: attempt.0,
            },
            Work::FinalVerify => Self::FinalVerify,
        }
    }
}

impl From<WorkV1> for Work {
    fn from(form: WorkV1) -> Self {
        match form {
            WorkV1::Attempt { task, attempt } => Self::Attempt {
                task: TaskIx(task),
                attempt: AttemptNo(attempt),
            },
            WorkV1::Verify { task, attempt } => Self::Verify {
                task: TaskIx(task),
                attempt: AttemptNo(attempt),
            },
            WorkV1::FinalVerify => Self::FinalVerify,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum OutcomeV1<'a> {
    Commit(Text<'a>),
    NoChange,
    NoRepository,
}

impl<'a> From<&'a Outcome> for OutcomeV1<'a> {
    fn from(outcome: &'a Outcome) -> Self {
        match outcome {
            Outcome::Commit(commit) => Self::Commit(text(commit.as_str())),
            Outcome::NoChange => Self::NoChange,
            Outcome::NoRepository => Self::NoRepository,
        }
    }
}

impl From<OutcomeV1<'_>> for Outcome {
    fn from(form: OutcomeV1<'_>) -> Self {
        match form {
            OutcomeV1::Commit(id) => Self::Commit(commit(&id)),
            OutcomeV1::NoChange => Self::NoChange,
            OutcomeV1::NoRepository => Self::NoRepository,
        }
    }
}

#[derive(Serialize, Deserialize, Default, PartialEq)]
#[serde(deny_unknown_fields)]
pub(super) struct UsageV1 {
    input_tokens: u64,
    output_tokens: u64,
    cost_micros: u64,
    run_ms: u64,
}

impl From<Usage> for UsageV1 {
    fn from(usage: Usage) -> Self {
        Self {
            input_tokens: usage.input_tokens,
            output_tokens: usage.output_tokens,
            cost_micros: usage.cost_micros,
            run_ms: usage.run_ms,
        }
    }
}

impl From<UsageV1> for Usage {
    fn from(form: UsageV1) -> Self {
        Self {
            input_tokens: form.input_tokens,
            output_tokens: form.output_tokens,
            cost_micros: form.cost_micros,
            run_ms: form.run_ms,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum LeaseEndV1 {
    Confirmed,
    Expired,
    NeverStarted,
    Superseded,
}

impl From<LeaseEnd> for LeaseEndV1 {
    fn from(end: LeaseEnd) -> Self {
        match end {
            LeaseEnd::Confirmed => Self::Confirmed,
            LeaseEnd::Expired => Self::Expired,
            LeaseEnd::NeverStarted => Self::NeverStarted,
            LeaseEnd::Superseded => Self::Superseded,
        }
    }
}

impl From<LeaseEndV1> for LeaseEnd {
    fn from(form: LeaseEndV1) -> Self {
        match form {
            LeaseEndV1::Confirmed => Self::Confirmed,
            LeaseEndV1::Expired => Self::Expired,
            LeaseEndV1::NeverStarted => Self::NeverStarted,
            LeaseEndV1::Superseded => Self::Superseded,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum RunOutcomeV1<'a> {
    Succeeded,
    Failed(FailureV1<'a>),
    Cancelled { by: Text<'a> },
}

impl<'a> From<&'a RunOutcome> for RunOutcomeV1<'a> {
    fn from(outcome: &'a RunOutcome) -> Self {
        match outcome {
            RunOutcome::Succeeded => Self::Succeeded,
            RunOutcome::Failed(failure) => Self::Failed(FailureV1::from(failure)),
            RunOutcome::Cancelled { by } => Self::Cancelled { by: text(by) },
        }
    }
}

impl TryFrom<RunOutcomeV1<'_>> for RunOutcome {
    type Error = Error;

    fn try_from(form: RunOutcomeV1<'_>) -> Result<Self, Error> {
        Ok(match form {
            RunOutcomeV1::Succeeded => Self::Succeeded,
            RunOutcomeV1::Failed(failure) => Self::Failed(Failure::try_from(failure)?),
            RunOutcomeV1::Cancelled { by } => Self::Cancelled { by: shared(&by) },
        })
    }
}
