//! Forms of a task as it stands.

use coordinator_core::event::Outcome;
use coordinator_core::question::{PastQuestion, Question};
use coordinator_core::state::{
    Attempt, AttemptEnd, Conversation, History, Parked, Task, TaskState,
};
use coordinator_core::time::Span;
use coordinator_core::{AttemptNo, Failure, LeaseId, QuestionId, TaskIx, Timestamp, WorkerId};
use serde::{Deserialize, Serialize};

use super::Error;
use super::event::{OutcomeV1, UsageV1};
use super::plan::{FailureV1, Text, boxed, commit, is_zero, shared, text};
use super::question::{PastV1, QuestionV1};
use super::run::VerifyPhaseV1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TaskV1<'a> {
    name: Text<'a>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    dependencies: Vec<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    dependents: Vec<u32>,
    height: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    priority: i16,
    profile: u16,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    paths: Vec<Text<'a>>,
    state: StateV1<'a>,
    generation: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    history: Option<HistoryV1<'a>>,
}

impl<'a> From<&'a Task> for TaskV1<'a> {
    fn from(task: &'a Task) -> Self {
        Self {
            name: text(&task.name),
            dependencies: task.dependencies.iter().map(|ix| ix.0).collect(),
            dependents: task.dependents.iter().map(|ix| ix.0).collect(),
            height: task.height,
            priority: task.priority,
            profile: task.profile,
            paths: task.paths.iter().map(text).collect(),
            state: StateV1::from(&task.state),
            generation: task.generation,
            history: task.history.as_deref().map(HistoryV1::from),
        }
    }
}

impl TaskV1<'_> {
    /// Reads the task of a run with so many profiles and tasks.
    pub(super) fn into_task(self, profiles: usize, tasks: usize) -> Result<Task, Error> {
        if usize::from(self.profile) >= profiles {
            return Err(Error::Range {
                field: "tasks.profile",
                value: u64::from(self.profile),
            });
        }
        Ok(Task {
            name: shared(&self.name),
            dependencies: indexes("tasks.dependencies", self.dependencies, tasks)?,
            dependents: indexes("tasks.dependents", self.dependents, tasks)?,
            height: self.height,
            priority: self.priority,
            profile: self.profile,
            paths: self.paths.iter().map(shared).collect(),
            state: self.state.try_into()?,
            generation: self.generation,
            history: self
                .history
                .map(|history| History::try_from(history).map(Box::new))
                .transpose()?,
        })
    }
}

fn indexes(field: &'static str, form: Vec<u32>, tasks: usize) -> Result<Box<[TaskIx]>, Error> {
    form.into_iter()
        .map(|ix| {
            if (ix as usize) < tasks {
                Ok(TaskIx(ix))
            } else {
                Err(Error::Range {
                    field,
                    value: u64::from(ix),
                })
            }
        })
        .collect()
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum StateV1<'a> {
    Blocked {
        unmet: u32,
    },
    Basing {
        since: u64,
    },
    Ready {
        since: u64,
        not_before: u64,
    },
    Leased {
        attempt: u32,
        lease: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        awaiting: Option<QuestionV1<'a>>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        awaiting_more: Vec<QuestionV1<'a>>,
    },
    Verifying {
        attempt: u32,
        verify: VerifyPhaseV1,
    },
    Parked {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        question: Option<QuestionV1<'a>>,
        resume: u32,
        affinity: Text<'a>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        more: Vec<QuestionV1<'a>>,
    },
    Succeeded {
        outcome: OutcomeV1<'a>,
        at: u64,
    },
    Failed {
        failure: FailureV1<'a>,
        at: u64,
    },
    Cancelled {
        by: Text<'a>,
        reason: Text<'a>,
        at: u64,
    },
    Aborted {
        reason: Text<'a>,
        at: u64,
    },
    Skipped {
        because: u32,
        at: u64,
    },
}

impl<'a> From<&'a TaskState> for StateV1<'a> {
    fn from(state: &'a TaskState) -> Self {
        match state {
            TaskState::Blocked { unmet } => Self::Blocked { unmet: *unmet },
            TaskState::Basing { since } => Self::Basing { since: since.ms() },
            TaskState::Ready { since, not_before } => Self::Ready {
                since: since.ms(),
                not_before: not_before.ms(),
            },
            TaskState::Leased {
                attempt,
                lease,
                awaiting,
            } => Self::Leased {
                attempt: attempt.0,
                lease: lease.0,
                awaiting: awaiting.first().map(QuestionV1::from),
                awaiting_more: awaiting.iter().skip(1).map(QuestionV1::from).collect(),
            },
            TaskState::Verifying { attempt, verify } => Self::Verifying {
                attempt: attempt.0,
                verify: VerifyPhaseV1::from(verify),
            },
            TaskState::Parked(parked) => Self::Parked {
                question: parked.questions.first().map(QuestionV1::from),
                resume: parked.resume.0,
                affinity: text(parked.affinity.as_str()),
                more: parked
                    .questions
                    .iter()
                    .skip(1)
                    .map(QuestionV1::from)
                    .collect(),
            },
            TaskState::Succeeded { outcome, at } => Self::Succeeded {
                outcome: OutcomeV1::from(outcome),
                at: at.ms(),
            },
            TaskState::Failed { failure, at } => Self::Failed {
                failure: FailureV1::from(&**failure),
                at: at.ms(),
            },
            TaskState::Cancelled { by, reason, at } => Self::Cancelled {
                by: text(by),
                reason: text(reason),
                at: at.ms(),
            },
            TaskState::Aborted { reason, at } => Self::Aborted {
                reason: text(reason),
                at: at.ms(),
            },
            TaskState::Skipped { because, at } => Self::Skipped {
                because: because.0,
                at: at.ms(),
            },
        }
    }
}

impl TryFrom<StateV1<'_>> for TaskState {
    type Error = Error;

    fn try_from(form: StateV1<'_>) -> Result<Self, Error> {
        Ok(match form {
            StateV1::Blocked { unmet } => Self::Blocked { unmet },
            StateV1::Basing { since } => Self::Basing {
                since: Timestamp::from_ms(since),
            },
            StateV1::Ready { since, not_before } => Self::Ready {
                since: Timestamp::from_ms(since),
                not_before: Timestamp::from_ms(not_before),
            },
            StateV1::Leased {
                attempt,
                lease,
                awaiting,
                awaiting_more,
            } => Self::Leased {
                attempt: AttemptNo(attempt),
                lease: LeaseId(lease),
                awaiting: questions(awaiting.into_iter().chain(awaiting_more))?,
            },
            StateV1::Verifying { attempt, verify } => Self::Verifying {
                attempt: AttemptNo(attempt),
                verify: verify.into(),
            },
            StateV1::Parked {
                question,
                resume,
                affinity,
                more,
            } => Self::Parked(Box::new(Parked {
                questions: questions(question.into_iter().chain(more))?,
                resume: AttemptNo(resume),
                affinity: WorkerId::new(&affinity),
            })),
            StateV1::Succeeded { outcome, at } => Self::Succeeded {
                outcome: outcome.into(),
                at: Timestamp::from_ms(at),
            },
            StateV1::Failed { failure, at } => Self::Failed {
                failure: Box::new(Failure::try_from(failure)?),
                at: Timestamp::from_ms(at),
            },
            StateV1::Cancelled { by, reason, at } => Self::Cancelled {
                by: shared(&by),
                reason: boxed(reason),
                at: Timestamp::from_ms(at),
            },
            StateV1::Aborted { reason, at } => Self::Aborted {
                reason: boxed(reason),
                at: Timestamp::from_ms(at),
            },
            StateV1::Skipped { because, at } => Self::Skipped {
                because: TaskIx(because),
                at: Timestamp::from_ms(at),
            },
        })
    }
}

fn questions<'a>(forms: impl Iterator<Item = QuestionV1<'a>>) -> Result<Vec<Question>, Error> {
    forms.map(Question::try_from).collect()
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConversationV1<'a> {
    id: Text<'a>,
    software: Text<'a>,
    host: Text<'a>,
    nth: u32,
}

impl<'a> From<&'a Conversation> for ConversationV1<'a> {
    fn from(conversation: &'a Conversation) -> Self {
        Self {
            id: text(&conversation.id),
            software: text(&conversation.software),
            host: text(&conversation.host),
            nth: conversation.nth,
        }
    }
}

impl From<ConversationV1<'_>> for Conversation {
    fn from(form: ConversationV1<'_>) -> Self {
        Self {
            id: boxed(form.id),
            software: boxed(form.software),
            host: shared(&form.host),
            nth: form.nth,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HistoryV1<'a> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base: Option<Text<'a>>,
    attempts: Vec<AttemptV1<'a>>,
    #[serde(default, skip_serializing_if = "is_zero")]
    counted: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    crashes: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    deferrals: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    departures: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_failure: Option<FailureV1<'a>>,
}

impl<'a> From<&'a History> for HistoryV1<'a> {
    fn from(history: &'a History) -> Self {
        Self {
            base: history.base.as_ref().map(|id| text(id.as_str())),
            attempts: history.attempts.iter().map(AttemptV1::from).collect(),
            counted: history.counted,
            crashes: history.crashes,
            deferrals: history.deferrals,
            departures: history.departures,
            last_failure: history.last_failure.as_ref().map(FailureV1::from),
        }
    }
}

impl TryFrom<HistoryV1<'_>> for History {
    type Error = Error;

    fn try_from(form: HistoryV1<'_>) -> Result<Self, Error> {
        Ok(Self {
            base: form.base.as_ref().map(commit),
            attempts: form
                .attempts
                .into_iter()
                .map(Attempt::try_from)
                .collect::<Result<_, _>>()?,
            counted: form.counted,
            crashes: form.crashes,
            deferrals: form.deferrals,
            departures: form.departures,
            last_failure: form.last_failure.map(Failure::try_from).transpose()?,
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AttemptV1<'a> {
    number: u32,
    generation: u32,
    lease: u64,
    worker: Text<'a>,
    granted_at: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    started_at: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ended_at: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    end: Option<AttemptEndV1<'a>>,
    #[serde(default, skip_serializing_if = "is_zero")]
    usage: UsageV1,
    #[serde(default, skip_serializing_if = "is_zero")]
    paused: u64,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    summary: Text<'a>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    waiting_since: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    asked: Vec<PastV1<'a>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    conversation: Option<ConversationV1<'a>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    continues: Option<u32>,
}

impl<'a> From<&'a Attempt> for AttemptV1<'a> {
    fn from(attempt: &'a Attempt) -> Self {
        Self {
            number: attempt.number.0,
            generation: attempt.generation,
            lease: attempt.lease.0,
            worker: text(attempt.worker.as_str()),
            granted_at: attempt.granted_at.ms(),
            started_at: attempt.started_at.map(Timestamp::ms),
            ended_at: attempt.ended_at.map(Timestamp::ms),
            end: attempt.end.as_ref().map(AttemptEndV1::from),
            usage: UsageV1::from(attempt.usage),
            paused: attempt.paused.ms(),
            summary: text(&attempt.summary),
            waiting_since: attempt.waiting_since.map(Timestamp::ms),
            asked: attempt.asked.iter().map(PastV1::from).collect(),
            conversation: attempt.conversation.as_ref().map(ConversationV1::from),
            continues: attempt.continues.map(|number| number.0),
        }
    }
}

impl TryFrom<AttemptV1<'_>> for Attempt {
    type Error = Error;

    fn try_from(form: AttemptV1<'_>) -> Result<Self, Error> {
        Ok(Self {
            number: AttemptNo(form.number),
            generation: form.generation,
            lease: LeaseId(form.lease),
            worker: WorkerId::new(&form.worker),
            granted_at: Timestamp::from_ms(form.granted_at),
            started_at: form.started_at.map(Timestamp::from_ms),
            ended_at: form.ended_at.map(Timestamp::from_ms),
            end: form.end.map(AttemptEnd::try_from).transpose()?,
            usage: form.usage.into(),
            paused: Span::from_ms(form.paused),
            summary: boxed(form.summary),
            waiting_since: form.waiting_since.map(Timestamp::from_ms),
            asked: form
                .asked
                .into_iter()
                .map(PastQuestion::try_from)
                .collect::<Result<_, _>>()?,
            conversation: form.conversation.map(Conversation::from),
            continues: form.continues.map(AttemptNo),
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum AttemptEndV1<'a> {
    Made(OutcomeV1<'a>),
    Succeeded(OutcomeV1<'a>),
    Failed(FailureV1<'a>),
    VerifyFailed {
        outcome: OutcomeV1<'a>,
        failure: FailureV1<'a>,
    },
    Cancelled,
    Parked {
        question: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        answer: Option<Text<'a>>,
    },
    NeverStarted,
}

impl<'a> From<&'a AttemptEnd> for AttemptEndV1<'a> {
    fn from(end: &'a AttemptEnd) -> Self {
        match end {
            AttemptEnd::Made(outcome) => Self::Made(OutcomeV1::from(outcome)),
            AttemptEnd::Succeeded(outcome) => Self::Succeeded(OutcomeV1::from(outcome)),
            AttemptEnd::Failed(failure) => Self::Failed(FailureV1::from(failure)),
            AttemptEnd::VerifyFailed { outcome, failure } => Self::VerifyFailed {
                outcome: OutcomeV1::from(outcome),
                failure: FailureV1::from(failure),
            },
            AttemptEnd::Cancelled => Self::Cancelled,
            AttemptEnd::Parked { question, answer } => Self::Parked {
                question: question.0,
                answer: answer.as_ref().map(text),
            },
            AttemptEnd::NeverStarted => Self::NeverStarted,
        }
    }
}

impl TryFrom<AttemptEndV1<'_>> for AttemptEnd {
    type Error = Error;

    fn try_from(form: AttemptEndV1<'_>) -> Result<Self, Error> {
        Ok(match form {
            AttemptEndV1::Made(outcome) => Self::Made(Outcome::from(outcome)),
            AttemptEndV1::Succeeded(outcome) => Self::Succeeded(Outcome::from(outcome)),
            AttemptEndV1::Failed(failure) => Self::Failed(Failure::try_from(failure)?),
            AttemptEndV1::VerifyFailed { outcome, failure } => Self::VerifyFailed {
                outcome: Outcome::from(outcome),
                failure: Failure::try_from(failure)?,
            },
            AttemptEndV1::Cancelled => Self::Cancelled,
            AttemptEndV1::Parked { question, answer } => Self::Parked {
                question: QuestionId(question),
                answer: answer.map(boxed),
            },
            AttemptEndV1::NeverStarted => Self::NeverStarted,
        })
    }
}
