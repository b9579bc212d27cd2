//! Deadlines that have passed.

use std::collections::BTreeSet;

use super::Decision;
use super::attempt::{fail, lost, revoked, run_failed, task_failed};
use crate::event::{EventKind, LeaseEnd, Usage};
use crate::failure::{Failure, FailureClass};
use crate::ids::{LeaseId, QuestionId, RunId, TaskKey};
use crate::index::{Timer, unanswered};
use crate::limits;
use crate::state::{RunPhase, State, TaskState};
use crate::time::Timestamp;

/// Handles what is due, at most [`limits::TIMERS_PER_TICK`] of it; the rest is due at once again.
pub(super) fn tick(state: &State, now: Timestamp) -> Decision {
    let mut events = vec![];
    // A lease that fell silent can have other timers that are due: it is lost once, by the first.
    let mut gone = BTreeSet::new();
    let due = state.index.timers.iter().take_while(|(at, _)| *at <= now);
    for (_, timer) in due.take(limits::TIMERS_PER_TICK) {
        match timer {
            Timer::Lease(lease) => expire(state, now, *lease, &mut gone, &mut events),
            Timer::Timeout(lease) => time_out(state, now, *lease, &mut gone, &mut events),
            Timer::Task(task) => task_due(state, now, *task, &mut gone, &mut events),
            Timer::Run(run) => run_due(state, *run, &mut events),
            Timer::Forget(worker) => {
                let mut leases = state.leases_of_worker(worker);
                if leases.next().is_none() {
                    let worker = worker.clone();
                    events.push(EventKind::WorkerForgotten { worker });
                }
            }
        }
    }
    Decision::done(events)
}

fn expire(
    state: &State,
    now: Timestamp,
    lease: LeaseId,
    gone: &mut BTreeSet<LeaseId>,
    events: &mut Vec<EventKind>,
) {
    if let Some(lease) = state.lease(lease).filter(|lease| gone.insert(lease.id)) {
        let text = format!("worker {} fell silent", lease.worker);
        lost(state, lease, now, &text, LeaseEnd::Expired, events);
    }
}

/// Revokes the lease of work that takes too long. One that is silent as well has expired instead.
fn time_out(
    state: &State,
    now: Timestamp,
    lease: LeaseId,
    gone: &mut BTreeSet<LeaseId>,
    events: &mut Vec<EventKind>,
) {
    let held = state.lease(lease);
    let Some((held, run)) = held.and_then(|held| Some((held, state.run(held.run)?))) else {
        return;
    };
    if held.expires_at <= now {
        expire(state, now, lease, gone, events);
        return;
    }
    let text = "the time limit has passed and the worker did not end the work";
    let failure = Failure::new(FailureClass::TimedOut, text);
    fail(run, held, now, failure, Usage::default(), events);
    events.push(revoked(held));
}

fn task_due(
    state: &State,
    now: Timestamp,
    key: TaskKey,
    gone: &mut BTreeSet<LeaseId>,
    events: &mut Vec<EventKind>,
) {
    let Some((run, task)) = state
        .run(key.run)
        .and_then(|run| Some((run, run.task(key.task)?)))
    else {
        return;
    };
    let failure = match &task.state {
        TaskState::Basing { .. } => Failure::new(
            FailureClass::Internal,
            format!("the base was not made in {}", limits::GIT_STEP_DEADLINE),
        ),
        TaskState::Ready { .. } => Failure::new(
            FailureClass::NotPlaced,
            format!("no fitting worker in {}", limits::QUEUE_DEADLINE),
        ),
        TaskState::Verifying { .. } => Failure::new(
            FailureClass::NotPlaced,
            format!(
                "no fitting worker for the verify in {}",
                limits::QUEUE_DEADLINE
            ),
        ),
        TaskState::Parked(parked) => Failure::new(
            FailureClass::TimedOut,
            format!(
                "{} was not answered in {} days",
                unanswered(&parked.questions).map_or(QuestionId(0), |question| question.id),
                limits::QUESTION_DEADLINE.ms() / (24 * 3_600_000)
            ),
        ),
        TaskState::Leased {
            lease, awaiting, ..
        } => {
            let lease = state.lease(*lease);
            let (Some(lease), Some(question)) = (lease, unanswered(awaiting)) else {
                return;
            };
            if lease.expires_at <= now {
                expire(state, now, lease.id, gone, events);
            } else {
                events.push(EventKind::TaskParked {
                    run: key.run,
                    lease: lease.id,
                    question: question.id,
                });
                events.push(revoked(lease));
            }
            return;
        }
        TaskState::Blocked { .. }
        | TaskState::Succeeded { .. }
        | TaskState::Failed { .. }
        | TaskState::Cancelled { .. }
        | TaskState::Aborted { .. }
        | TaskState::Skipped { .. } => return,
    };
    events.push(task_failed(run, key.task, failure));
}

fn run_due(state: &State, id: RunId, events: &mut Vec<EventKind>) {
    let Some(run) = state.run(id) else {
        return;
    };
    let failure = match &run.phase {
        RunPhase::Integrating { .. } => Failure::new(
            FailureClass::Internal,
            format!(
                "the integration was not made in {}",
                limits::GIT_STEP_DEADLINE
            ),
        ),
        RunPhase::Verifying { .. } => Failure::new(
            FailureClass::NotPlaced,
            format!(
                "no fitting worker for the final verify in {}",
                limits::QUEUE_DEADLINE
            ),
        ),
        RunPhase::Active | RunPhase::Ended { .. } => return,
    };
    events.push(run_failed(run, failure));
}
