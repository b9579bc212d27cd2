//! Events as lines of a story.

use std::fmt;

use coordinator_core::event::Work;
use coordinator_core::pool::PoolEvent;
use coordinator_core::{Event, EventKind};

use crate::scenario::Moment;

struct Told<'e>(&'e Event);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Event { seq, kind, .. } = self.0;
        if let Some(run) = kind.run() {
            write!(f, "{run} ")?;
        }
        write!(f, "#{seq} {}", kind.name())?;
        match kind {
            EventKind::CoordinatorStarted { epoch } => write!(f, " {epoch}"),
            EventKind::WorkerJoined {
                worker,
                incarnation,
                offer,
            } => write!(f, " {worker} start {incarnation} slots {}", offer.slots),
            EventKind::WorkerDraining {
                worker, draining, ..
            } => write!(f, " {worker} {draining}"),
            EventKind::WorkerForgotten { worker } => write!(f, " {worker}"),
            EventKind::Pool(event) => write!(f, ": {event}"),
            EventKind::RunSubmitted { spec, .. } => write!(f, " {} tasks", spec.tasks.len()),
            EventKind::RunEnded { outcome, .. } => write!(f, " {outcome:?}"),
            EventKind::TaskBasing { task } => write!(f, " {}", task.task),
            EventKind::TaskReady {
                task, not_before, ..
            } => write!(f, " {} not before {not_before}", task.task),
            EventKind::TaskSucceeded { task, outcome } => {
                write!(f, " {} {outcome:?}", task.task)
            }
            EventKind::TaskFailed { task, failure } => {
                write!(f, " {} {}: {}", task.task, failure.class, failure.message)
            }
            EventKind::TaskSkipped { task, because } => write!(f, " {} by {because}", task.task),
            EventKind::TaskCancelled { task, .. }
            | EventKind::TaskAborted { task, .. }
            | EventKind::TaskReopened { task, .. } => write!(f, " {}", task.task),
            EventKind::LeaseGranted {
                lease,
                work,
                worker,
                ..
            } => match work {
                Work::Attempt { task, attempt } => {
                    write!(f, " {lease} to {worker}: attempt {attempt} of {task}")
                }
                Work::Verify { task, attempt } => {
                    write!(
                        f,
                        " {lease} to {worker}: verify of attempt {attempt} of {task}"
                    )
                }
                Work::FinalVerify => write!(f, " {lease} to {worker}: final verify"),
            },
            EventKind::AttemptFailed {
                lease,
                failure,
                retry_at,
                ..
            }
            | EventKind::VerifyFailed {
                lease,
                failure,
                retry_at,
                ..
            }
            | EventKind::VerifyLost {
                lease,
                failure,
                retry_at,
                ..
            } => write!(f, " {lease} {}, again {retry_at:?}", failure.class),
            EventKind::WorkStarted { lease, .. }
            | EventKind::AttemptSucceeded { lease, .. }
            | EventKind::VerifyPassed { lease, .. }
            | EventKind::LeaseRevoked { lease, .. }
            | EventKind::QuestionAsked { lease, .. }
            | EventKind::QuestionClosed { lease, .. }
            | EventKind::TaskParked { lease, .. } => write!(f, " {lease}"),
            EventKind::LeaseClosed { lease, end, .. } => write!(f, " {lease} {end:?}"),
            _ => Ok(()),
        }
    }
}

/// Tells an event in a line.
pub(crate) fn event(event: &Event) -> impl fmt::Display {
    Told(event)
}

/// Gives the kind of moment that an event is.
pub(crate) fn moment(kind: &EventKind) -> Option<Moment> {
    use coordinator_core::event::LeaseEnd;
    Some(match kind {
        EventKind::RunSubmitted { .. } => Moment::Submitted,
        EventKind::LeaseGranted { work, .. } => match work {
            Work::Attempt { .. } => Moment::Granted,
            Work::Verify { .. } => Moment::Verifying,
            Work::FinalVerify => Moment::FinalVerifying,
        },
        EventKind::WorkStarted { .. } => Moment::Started,
        EventKind::AttemptSucceeded { .. } => Moment::Made,
        EventKind::AttemptFailed { .. } | EventKind::VerifyFailed { .. } => Moment::Failed,
        EventKind::LeaseClosed {
            end: LeaseEnd::Expired,
            ..
        } => Moment::Expired,
        EventKind::TaskBasing { .. } => Moment::Basing,
        EventKind::IntegrationStarted { .. } => Moment::Integrating,
        EventKind::RunEnded { .. } => Moment::Ended,
        EventKind::RunArchived { .. } => Moment::Archived,
        EventKind::LeaseRevoked { .. } => Moment::Revoked,
        EventKind::QuestionAsked { .. } => Moment::Asked,
        EventKind::QuestionAnswered { .. } => Moment::Answered,
        EventKind::RunReloaded { .. } => Moment::Reloaded,
        EventKind::IntegrationMerged { .. } => Moment::Merged,
        EventKind::Pool(PoolEvent::AllocationsWanted { .. }) => Moment::Wanted,
        EventKind::Pool(PoolEvent::AllocationEnding { .. }) => Moment::AllocationEnding,
        _ => return None,
    })
}
