//! Event kinds from the core to their form.

use coordinator_core::{EventKind, Timestamp};

use super::{KindV1, LeaseEndV1, OutcomeV1, PlacementV1, RunOutcomeV1, UsageV1, WorkV1};
use crate::store::form::plan::{FailureV1, OfferV1, RunSpecV1, text};
use crate::store::form::question::asking;
use crate::store::form::run::{ConflictV1, RunV1};

impl<'a> From<&'a EventKind> for KindV1<'a> {
    fn from(kind: &'a EventKind) -> Self {
        match kind {
            EventKind::CoordinatorStarted { epoch } => Self::CoordinatorStarted { epoch: epoch.0 },
            EventKind::WorkerJoined {
                worker,
                incarnation,
                offer,
            } => Self::WorkerJoined {
                worker: text(worker.as_str()),
                incarnation: incarnation.0,
                offer: OfferV1::from(&**offer),
            },
            EventKind::WorkerDraining {
                worker,
                draining,
                by,
            } => Self::WorkerDraining {
                worker: text(worker.as_str()),
                draining: *draining,
                by: text(by),
            },
            EventKind::WorkerForgotten { worker } => Self::WorkerForgotten {
                worker: text(worker.as_str()),
            },
            EventKind::RunSubmitted {
                run,
                spec,
                key,
                digest,
            } => Self::RunSubmitted {
                run: run.0,
                spec: RunSpecV1::from(&**spec),
                key: key.as_ref().map(text),
                digest: text(digest),
            },
            EventKind::CancelRequested { run, by, reason } => Self::CancelRequested {
                run: run.0,
                by: text(by),
                reason: text(reason),
            },
            EventKind::IntegrationStarted { run } => Self::IntegrationStarted { run: run.0 },
            EventKind::IntegrationMerged { run, commit } => Self::IntegrationMerged {
                run: run.0,
                commit: text(commit.as_str()),
            },
            EventKind::RunEnded { run, outcome } => Self::RunEnded {
                run: run.0,
                outcome: RunOutcomeV1::from(outcome),
            },
            EventKind::RunArchived { run } => Self::RunArchived { run: run.0 },
            EventKind::IntegrationConflicted { run, conflict } => Self::IntegrationConflicted {
                run: run.0,
                conflict: ConflictV1::from(conflict),
            },
            EventKind::RunReopened {
                run,
                generation,
                by,
            } => Self::RunReopened {
                run: run.0,
                generation: *generation,
                by: text(by),
            },
            EventKind::RunReloaded { run, image } => Self::RunReloaded {
                run: run.0,
                image: Box::new(RunV1::from(&image.run)),
            },
            EventKind::TaskBasing { task } => Self::TaskBasing {
                run: task.run.0,
                task: task.task.0,
            },
            EventKind::TaskReady {
                task,
                base,
                not_before,
            } => Self::TaskReady {
                run: task.run.0,
                task: task.task.0,
                base: base.as_ref().map(|base| text(base.as_str())),
                not_before: not_before.ms(),
            },
            EventKind::TaskSucceeded { task, outcome } => Self::TaskSucceeded {
                run: task.run.0,
                task: task.task.0,
                outcome: OutcomeV1::from(outcome),
            },
            EventKind::TaskFailed { task, failure } => Self::TaskFailed {
                run: task.run.0,
                task: task.task.0,
                failure: FailureV1::from(failure),
            },
            EventKind::TaskSkipped { task, because } => Self::TaskSkipped {
                run: task.run.0,
                task: task.task.0,
                because: because.0,
            },
            EventKind::TaskCancelled { task, by, reason } => Self::TaskCancelled {
                run: task.run.0,
                task: task.task.0,
                by: text(by),
                reason: text(reason),
            },
            EventKind::TaskAborted { task, reason } => Self::TaskAborted {
                run: task.run.0,
                task: task.task.0,
                reason: text(reason),
            },
            EventKind::TaskReopened {
                task,
                generation,
                by,
            } => Self::TaskReopened {
                run: task.run.0,
                task: task.task.0,
                generation: *generation,
                by: text(by),
            },
            EventKind::LeaseGranted {
                run,
                lease,
                work,
                worker,
                incarnation,
                ttl,
                placement,
            } => Self::LeaseGranted {
                run: run.0,
                lease: lease.0,
                work: WorkV1::from(*work),
                worker: text(worker.as_str()),
                incarnation: incarnation.0,
                ttl: ttl.ms(),
                placement: PlacementV1::from(*placement),
            },
            EventKind::WorkStarted { run, lease } => Self::WorkStarted {
                run: run.0,
                lease: lease.0,
            },
            EventKind::AttemptSucceeded {
                run,
                lease,
                outcome,
                usage,
                summary,
            } => Self::AttemptSucceeded {
                run: run.0,
                lease: lease.0,
                outcome: OutcomeV1::from(outcome),
                usage: UsageV1::from(*usage),
                summary: text(summary),
            },
            EventKind::AttemptFailed {
                run,
                lease,
                failure,
                usage,
                retry_at,
                blames_host,
            } => Self::AttemptFailed {
                run: run.0,
                lease: lease.0,
                failure: FailureV1::from(failure),
                usage: UsageV1::from(*usage),
                retry_at: retry_at.map(Timestamp::ms),
                blames_host: *blames_host,
            },
            EventKind::VerifyPassed { run, lease } => Self::VerifyPassed {
                run: run.0,
                lease: lease.0,
            },
            EventKind::VerifyFailed {
                run,
                lease,
                failure,
                retry_at,
            } => Self::VerifyFailed {
                run: run.0,
                lease: lease.0,
                failure: FailureV1::from(failure),
                retry_at: retry_at.map(Timestamp::ms),
            },
            EventKind::VerifyLost {
                run,
                lease,
                failure,
                retry_at,
            } => Self::VerifyLost {
                run: run.0,
                lease: lease.0,
                failure: FailureV1::from(failure),
                retry_at: retry_at.map(Timestamp::ms),
            },
            EventKind::LeaseRevoked { run, lease } => Self::LeaseRevoked {
                run: run.0,
                lease: lease.0,
            },
            EventKind::LeaseClosed { run, lease, end } => Self::LeaseClosed {
                run: run.0,
                lease: lease.0,
                end: LeaseEndV1::from(*end),
            },
            EventKind::QuestionAsked {
                run,
                lease,
                question,
                number,
                asking: asked,
            } => Self::QuestionAsked {
                run: run.0,
                lease: lease.0,
                question: question.0,
                text: text(&asked.title),
                number: *number,
                asking: asking(asked),
            },
            EventKind::QuestionAnswered {
                run,
                question,
                choice,
                text: said,
                by,
            } => Self::QuestionAnswered {
                run: run.0,
                question: question.0,
                answer: text(choice),
                by: text(by),
                text: text(said),
            },
            EventKind::QuestionClosed {
                run,
                lease,
                question,
                number,
                choice,
                by,
            } => Self::QuestionClosed {
                run: run.0,
                lease: lease.0,
                question: question.0,
                number: *number,
                choice: text(choice),
                by: text(by),
            },
            EventKind::ConversationOpened {
                run,
                lease,
                conversation,
                software,
            } => Self::ConversationOpened {
                run: run.0,
                lease: lease.0,
                conversation: text(conversation),
                software: text(software),
            },
            EventKind::Pool(event) => Self::Pool {
                event: event.into(),
            },
            EventKind::TaskParked {
                run,
                lease,
                question,
            } => Self::TaskParked {
                run: run.0,
                lease: lease.0,
                question: question.0,
            },
        }
    }
}
