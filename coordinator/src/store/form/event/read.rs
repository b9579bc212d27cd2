//! Event kinds from their form to the core.

use std::sync::Arc;

use coordinator_core::event::MergeConflict;
use coordinator_core::plan::RunSpec;
use coordinator_core::state::{Run, RunImage};
use coordinator_core::time::Span;
use coordinator_core::worker::Offer;
use coordinator_core::{
    Epoch, EventKind, Failure, Incarnation, LeaseId, QuestionId, RunId, TaskIx, TaskKey, Timestamp,
    WorkerId,
};

use super::KindV1;
use crate::store::form::Error;
use crate::store::form::plan::{boxed, commit, shared};
use crate::store::form::question::asking_of;

impl TryFrom<KindV1<'_>> for EventKind {
    type Error = Error;

    fn try_from(form: KindV1<'_>) -> Result<Self, Error> {
        Ok(match form {
            KindV1::CoordinatorStarted { epoch } => Self::CoordinatorStarted {
                epoch: Epoch(epoch),
            },
            KindV1::WorkerJoined {
                worker,
                incarnation,
                offer,
            } => Self::WorkerJoined {
                worker: WorkerId::new(&worker),
                incarnation: Incarnation(incarnation),
                offer: Arc::new(Offer::from(&offer)),
            },
            KindV1::WorkerDraining {
                worker,
                draining,
                by,
            } => Self::WorkerDraining {
                worker: WorkerId::new(&worker),
                draining,
                by: shared(&by),
            },
            KindV1::WorkerForgotten { worker } => Self::WorkerForgotten {
                worker: WorkerId::new(&worker),
            },
            KindV1::RunSubmitted {
                run,
                spec,
                key,
                digest,
            } => Self::RunSubmitted {
                run: RunId(run),
                spec: Arc::new(RunSpec::try_from(spec)?),
                key: key.as_ref().map(shared),
                digest: shared(&digest),
            },
            KindV1::CancelRequested { run, by, reason } => Self::CancelRequested {
                run: RunId(run),
                by: shared(&by),
                reason: boxed(reason),
            },
            KindV1::IntegrationStarted { run } => Self::IntegrationStarted { run: RunId(run) },
            KindV1::IntegrationMerged { run, commit: id } => Self::IntegrationMerged {
                run: RunId(run),
                commit: commit(&id),
            },
            KindV1::RunEnded { run, outcome } => Self::RunEnded {
                run: RunId(run),
                outcome: outcome.try_into()?,
            },
            KindV1::RunArchived { run } => Self::RunArchived { run: RunId(run) },
            KindV1::IntegrationConflicted { run, conflict } => Self::IntegrationConflicted {
                run: RunId(run),
                conflict: MergeConflict::from(conflict),
            },
            KindV1::RunReopened {
                run,
                generation,
                by,
            } => Self::RunReopened {
                run: RunId(run),
                generation,
                by: shared(&by),
            },
            KindV1::RunReloaded { run, image } => Self::RunReloaded {
                run: RunId(run),
                image: Arc::new(RunImage {
                    run: Run::try_from(*image)?,
                }),
            },
            KindV1::TaskBasing { run, task } => Self::TaskBasing {
                task: key(run, task),
            },
            KindV1::TaskReady {
                run,
                task,
                base,
                not_before,
            } => Self::TaskReady {
                task: key(run, task),
                base: base.as_ref().map(commit),
                not_before: Timestamp::from_ms(not_before),
            },
            KindV1::TaskSucceeded { run, task, outcome } => Self::TaskSucceeded {
                task: key(run, task),
                outcome: outcome.into(),
            },
            KindV1::TaskFailed { run, task, failure } => Self::TaskFailed {
                task: key(run, task),
                failure: Failure::try_from(failure)?,
            },
            KindV1::TaskSkipped { run, task, because } => Self::TaskSkipped {
                task: key(run, task),
                because: TaskIx(because),
            },
            KindV1::TaskCancelled {
                run,
                task,
                by,
                reason,
            } => Self::TaskCancelled {
                task: key(run, task),
                by: shared(&by),
                reason: boxed(reason),
            },
            KindV1::TaskAborted { run, task, reason } => Self::TaskAborted {
                task: key(run, task),
                reason: boxed(reason),
            },
            KindV1::TaskReopened {
                run,
                task,
                generation,
                by,
            } => Self::TaskReopened {
                task: key(run, task),
                generation,
                by: shared(&by),
            },
            KindV1::LeaseGranted {
                run,
                lease,
                work,
                worker,
                incarnation,
                ttl,
                placement,
            } => Self::LeaseGranted {
                run: RunId(run),
                lease: LeaseId(lease),
                work: work.into(),
                worker: WorkerId::new(&worker),
                incarnation: Incarnation(incarnation),
                ttl: Span::from_ms(ttl),
                placement: placement.into(),
            },
            KindV1::WorkStarted { run, lease } => Self::WorkStarted {
                run: RunId(run),
                lease: LeaseId(lease),
            },
            KindV1::AttemptSucceeded {
                run,
                lease,
                outcome,
                usage,
                summary,
            } => Self::AttemptSucceeded {
                run: RunId(run),
                lease: LeaseId(lease),
                outcome: outcome.into(),
                usage: usage.into(),
                summary: boxed(summary),
            },
            KindV1::AttemptFailed {
                run,
                lease,
                failure,
                usage,
                retry_at,
                blames_host,
            } => Self::AttemptFailed {
                run: RunId(run),
                lease: LeaseId(lease),
                failure: Failure::try_from(failure)?,
                usage: usage.into(),
                retry_at: retry_at.map(Timestamp::from_ms),
                blames_host,
            },
            KindV1::VerifyPassed { run, lease } => Self::VerifyPassed {
                run: RunId(run),
                lease: LeaseId(lease),
            },
            KindV1::VerifyFailed {
                run,
                lease,
                failure,
                retry_at,
            } => Self::VerifyFailed {
                run: RunId(run),
                lease: LeaseId(lease),
                failure: Failure::try_from(failure)?,
                retry_at: retry_at.map(Timestamp::from_ms),
            },
            KindV1::VerifyLost {
                run,
                lease,
                failure,
                retry_at,
            } => Self::VerifyLost {
                run: RunId(run),
                lease: LeaseId(lease),
                failure: Failure::try_from(failure)?,
                retry_at: retry_at.map(Timestamp::from_ms),
            },
            KindV1::LeaseRevoked { run, lease } => Self::LeaseRevoked {
                run: RunId(run),
                lease: LeaseId(lease),
            },
            KindV1::LeaseClosed { run, lease, end } => Self::LeaseClosed {
                run: RunId(run),
                lease: LeaseId(lease),
                end: end.into(),
            },
            KindV1::QuestionAsked {
                run,
                lease,
                question,
                text,
                number,
                asking,
            } => Self::QuestionAsked {
                run: RunId(run),
                lease: LeaseId(lease),
                question: QuestionId(question),
                number,
                asking: asking_of(text, asking)?,
            },
            KindV1::QuestionAnswered {
                run,
                question,
                answer,
                by,
                text,
            } => Self::QuestionAnswered {
                run: RunId(run),
                question: QuestionId(question),
                choice: boxed(answer),
                text: boxed(text),
                by: shared(&by),
            },
            KindV1::QuestionClosed {
                run,
                lease,
                question,
                number,
                choice,
                by,
            } => Self::QuestionClosed {
                run: RunId(run),
                lease: LeaseId(lease),
                question: QuestionId(question),
                number,
                choice: boxed(choice),
                by: shared(&by),
            },
            KindV1::ConversationOpened {
                run,
                lease,
                conversation,
                software,
            } => Self::ConversationOpened {
                run: RunId(run),
                lease: LeaseId(lease),
                conversation: boxed(conversation),
                software: boxed(software),
            },
            KindV1::TaskParked {
                run,
                lease,
                question,
            } => Self::TaskParked {
                run: RunId(run),
                lease: LeaseId(lease),
                question: QuestionId(question),
            },
            KindV1::Pool { event } => Self::Pool(event.try_into()?),
            KindV1::Newer => {
                return Err(Error::NewerEvent);
            }
        })
    }
}

fn key(run: u64, task: u32) -> TaskKey {
    TaskKey {
        run: RunId(run),
        task: TaskIx(task),
    }
}
