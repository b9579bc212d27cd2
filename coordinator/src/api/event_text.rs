//! One line for people about each journal event.

use coordinator_core::event::{LeaseEnd, Outcome, RunOutcome, Work};
use coordinator_core::{EventKind, Failure, FailureClass, LeaseId, TaskIx};

/// What an event is about, besides its run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Subject {
    pub task: Option<TaskIx>,
    pub attempt: Option<u32>,
    /// The lease that the event opens or names.
    pub lease: Option<LeaseId>,
}

/// Tells which task, attempt and lease an event names itself; a lease's task is the caller's to know.
#[must_use]
pub(super) fn subject(kind: &EventKind) -> Subject {
    let of = |task| Subject {
        task: Some(task),
        ..Subject::default()
    };
    match kind {
        EventKind::TaskBasing { task }
        | EventKind::TaskReady { task, .. }
        | EventKind::TaskSucceeded { task, .. }
        | EventKind::TaskFailed { task, .. }
        | EventKind::TaskSkipped { task, .. }
        | EventKind::TaskCancelled { task, .. }
        | EventKind::TaskAborted { task, .. }
        | EventKind::TaskReopened { task, .. } => of(task.task),
        EventKind::LeaseGranted { lease, work, .. } => match work {
            Work::Attempt { task, attempt } | Work::Verify { task, attempt } => Subject {
                task: Some(*task),
                attempt: Some(attempt.0),
                lease: Some(*lease),
            },
            Work::FinalVerify => Subject {
                lease: Some(*lease),
                ..Subject::default()
            },
        },
        EventKind::WorkStarted { lease, .. }
        | EventKind::AttemptSucceeded { lease, .. }
        | EventKind::AttemptFailed { lease, .. }
        | EventKind::VerifyPassed { lease, .. }
        | EventKind::VerifyFailed { lease, .. }
        | EventKind::VerifyLost { lease, .. }
        | EventKind::LeaseRevoked { lease, .. }
        | EventKind::LeaseClosed { lease, .. }
        | EventKind::QuestionAsked { lease, .. }
        | EventKind::QuestionClosed { lease, .. }
        | EventKind::ConversationOpened { lease, .. }
        | EventKind::TaskParked { lease, .. } => Subject {
            lease: Some(*lease),
            ..Subject::default()
        },
        EventKind::CoordinatorStarted { .. }
        | EventKind::WorkerJoined { .. }
        | EventKind::WorkerDraining { .. }
        | EventKind::WorkerForgotten { .. }
        | EventKind::RunSubmitted { .. }
        | EventKind::CancelRequested { .. }
        | EventKind::IntegrationStarted { .. }
        | EventKind::IntegrationMerged { .. }
        | EventKind::IntegrationConflicted { .. }
        | EventKind::RunEnded { .. }
        | EventKind::RunReopened { .. }
        | EventKind::RunArchived { .. }
        | EventKind::RunReloaded { .. }
        | EventKind::Pool(_)
        | EventKind::QuestionAnswered { .. } => Subject::default(),
    }
}

/// Says what has happened. `task` names a task; the task an event is about stands before the line.
#[must_use]
pub(super) fn text(kind: &EventKind, task: impl Fn(TaskIx) -> String) -> String {
    match kind {
        EventKind::CoordinatorStarted { epoch } => format!("the coordinator started ({epoch})"),
        EventKind::WorkerJoined { worker, .. } => format!("worker {worker} joined"),
        EventKind::WorkerDraining {
            worker,
            draining: true,
            by,
        } => {
            format!("worker {worker} is drained by {by}")
        }
        EventKind::WorkerDraining {
            worker,
            draining: false,
            by,
        } => {
            format!("worker {worker} is no longer drained, says {by}")
        }
        EventKind::Pool(event) => event.to_string(),
        EventKind::WorkerForgotten { worker } => format!("worker {worker} is forgotten"),
        EventKind::RunSubmitted { spec, .. } => {
            let count = spec.tasks.len();
            let plural = if count == 1 { "" } else { "s" };
            format!("submitted by {}: {count} task{plural}", spec.submitted_by)
        }
        EventKind::CancelRequested { by, reason, .. } => {
            format!("to be cancelled, says {by}{}", after_colon(reason))
        }
        EventKind::IntegrationStarted { .. } => "all tasks have succeeded; integrating".to_owned(),
        EventKind::IntegrationMerged { commit, .. } => {
            format!("integrated as {}", short(commit.as_str()))
        }
        EventKind::IntegrationConflicted { conflict, .. } => {
            let tasks: Vec<String> = conflict.tasks.iter().map(|&ix| task(ix)).collect();
            format!(
                "{} do not merge: {}",
                tasks.join(" and "),
                conflict.files.join(", ")
            )
        }
        EventKind::RunEnded { outcome, .. } => match outcome {
            RunOutcome::Succeeded => "the run succeeded".to_owned(),
            RunOutcome::Failed(failure) => format!("the run failed: {}", failed(failure)),
            RunOutcome::Cancelled { by } => format!("the run was cancelled by {by}"),
        },
        EventKind::RunReopened { by, generation, .. } => {
            format!("reopened by {by} (generation {generation})")
        }
        EventKind::RunArchived { .. } => "archived".to_owned(),
        EventKind::RunReloaded { .. } => "taken back from the archive".to_owned(),
        EventKind::TaskBasing { .. } => "dependencies have succeeded; merging its base".to_owned(),
        EventKind::TaskReady { .. } => "ready".to_owned(),
        EventKind::TaskSucceeded { outcome, .. } => format!("succeeded{}", made(outcome)),
        EventKind::TaskFailed { failure, .. } => format!("failed: {}", failed(failure)),
        EventKind::TaskSkipped { because, .. } => {
            format!("skipped: {} did not succeed", task(*because))
        }
        EventKind::TaskCancelled { by, reason, .. } => {
            format!("cancelled by {by}{}", after_colon(reason))
        }
        EventKind::TaskAborted { reason, .. } => format!("aborted{}", after_colon(reason)),
        EventKind::TaskReopened { by, generation, .. } => {
            format!("reopened by {by} (generation {generation})")
        }
        EventKind::LeaseGranted { work, worker, .. } => match work {
            Work::Attempt { attempt, .. } => format!("attempt {attempt} leased to {worker}"),
            Work::Verify { attempt, .. } => {
                format!("verify of attempt {attempt} leased to {worker}")
            }
            Work::FinalVerify => format!("final verify leased to {worker}"),
        },
        EventKind::WorkStarted { .. } => "started".to_owned(),
        EventKind::AttemptSucceeded { outcome, .. } => format!("attempt done{}", made(outcome)),
        EventKind::AttemptFailed {
            failure, retry_at, ..
        } => {
            format!(
                "attempt failed: {}{}",
                failed(failure),
                retried(retry_at.is_some())
            )
        }
        EventKind::VerifyPassed { .. } => "verified".to_owned(),
        EventKind::VerifyFailed {
            failure, retry_at, ..
        } => {
            format!(
                "verify failed: {}{}",
                failed(failure),
                retried(retry_at.is_some())
            )
        }
        EventKind::VerifyLost {
            failure, retry_at, ..
        } => {
            let again = if retry_at.is_some() {
                "; verifying again"
            } else {
                ""
            };
            let what = match failure.class {
                FailureClass::WorkerLost | FailureClass::Preempted | FailureClass::Walltime => {
                    "was lost"
                }
                _ => "came to no verdict",
            };
            format!("the verify {what}: {}{again}", failed(failure))
        }
        EventKind::LeaseRevoked { .. } => "its processes are being stopped".to_owned(),
        EventKind::LeaseClosed { end, .. } => match end {
            LeaseEnd::Confirmed => "the lease is closed".to_owned(),
            LeaseEnd::Expired => "the lease expired in silence".to_owned(),
            LeaseEnd::NeverStarted => "the lease never began".to_owned(),
            LeaseEnd::Superseded => "the worker restarted without this lease".to_owned(),
        },
        EventKind::QuestionAsked {
            question, asking, ..
        } => format!("asks ({question}): {}", asking.title),
        EventKind::QuestionAnswered {
            question,
            choice,
            by,
            ..
        } => format!("{question} was answered by {by}: {choice}"),
        EventKind::QuestionClosed {
            question,
            choice,
            by,
            ..
        } => match (&**choice, &**by) {
            ("", _) => format!("does not wait for an answer to {question} any more"),
            (choice, "") => format!("has its answer to {question}: {choice}"),
            (choice, by) => format!("has its answer to {question}: {choice}, by {by}"),
        },
        EventKind::ConversationOpened { software, .. } if software.is_empty() => {
            "its agent has begun a conversation".to_owned()
        }
        EventKind::ConversationOpened { software, .. } => {
            format!("{software} has begun a conversation")
        }
        EventKind::TaskParked { question, .. } => format!("parked until {question} is answered"),
    }
}

fn failed(failure: &Failure) -> String {
    format!("{} ({})", failure.message, failure.class)
}

fn retried(again: bool) -> &'static str {
    if again { "; will be tried again" } else { "" }
}

fn made(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Commit(commit) => format!(" as {}", short(commit.as_str())),
        Outcome::NoChange => " without a change".to_owned(),
        Outcome::NoRepository => String::new(),
    }
}

fn after_colon(reason: &str) -> String {
    if reason.is_empty() {
        String::new()
    } else {
        format!(": {reason}")
    }
}

fn short(commit: &str) -> &str {
    super::convert::clip(commit, 12)
}
