//! A person ends a run or a task.

use super::attempt::revoked;
use super::{Decision, head};
use crate::command::{Rejection, Reply, Target};
use crate::event::{Actor, EventKind, RunOutcome};
use crate::ids::{LeaseId, RunId, TaskKey};
use crate::limits;
use crate::state::{RunPhase, State, TaskState, VerifyPhase};

pub(super) fn cancel(
    state: &State,
    target: Target,
    by: &Actor,
    reason: &str,
) -> Result<Decision, Rejection> {
    let reason = head(reason, limits::TEXT_BYTES);
    match target {
        Target::Run(run) => cancel_run(state, run, by, &reason),
        Target::Task(task) => cancel_task(state, task, by, reason),
    }
}

fn cancel_run(state: &State, id: RunId, by: &Actor, reason: &str) -> Result<Decision, Rejection> {
    let run = state.run(id).ok_or(Rejection::UnknownTarget)?;
    if let RunPhase::Ended { outcome, .. } = &run.phase {
        if matches!(outcome, RunOutcome::Cancelled { .. }) {
            return Ok(Decision::new(vec![], Reply::Touched { tasks: 0 }));
        }
        return Err(Rejection::NotNow("the run has ended".into()));
    }
    let mut events = vec![EventKind::CancelRequested {
        run: id,
        by: by.clone(),
        reason: reason.into(),
    }];
    let live = state.leases_of_run(id).filter(|lease| !lease.revoked);
    events.extend(live.map(revoked));
    let mut tasks = 0;
    for (task, _) in run.indexed().filter(|(_, task)| !task.state.is_final()) {
        tasks += 1;
        events.push(EventKind::TaskCancelled {
            task: TaskKey { run: id, task },
            by: by.clone(),
            reason: reason.into(),
        });
    }
    events.push(EventKind::RunEnded {
        run: id,
        outcome: RunOutcome::Cancelled { by: by.clone() },
    });
    Ok(Decision::new(events, Reply::Touched { tasks }))
}

fn cancel_task(
    state: &State,
    key: TaskKey,
    by: &Actor,
    reason: Box<str>,
) -> Result<Decision, Rejection> {
    let task = state.task(key).ok_or(Rejection::UnknownTarget)?;
    let lease: Option<LeaseId> = match &task.state {
        TaskState::Blocked { .. }
        | TaskState::Basing { .. }
        | TaskState::Ready { .. }
        | TaskState::Parked(_)
        | TaskState::Verifying {
            verify: VerifyPhase::Waiting { .. },
            ..
        } => None,
        TaskState::Leased { lease, .. }
        | TaskState::Verifying {
            verify: VerifyPhase::Leased { lease, .. },
            ..
        } => Some(*lease),
        TaskState::Cancelled { .. } => {
            return Ok(Decision::new(vec![], Reply::Touched { tasks: 0 }));
        }
        TaskState::Succeeded { .. }
        | TaskState::Failed { .. }
        | TaskState::Aborted { .. }
        | TaskState::Skipped { .. } => {
            let text = format!(
                "task {} cannot be cancelled: its state is {}",
                task.name,
                task.state.name()
            );
            return Err(Rejection::NotNow(text.into()));
        }
    };
    let lease = lease.and_then(|lease| state.lease(lease));
    let mut events: Vec<EventKind> = lease.into_iter().map(revoked).collect();
    events.push(EventKind::TaskCancelled {
        task: key,
        by: by.clone(),
        reason,
    });
    Ok(Decision::new(events, Reply::Touched { tasks: 1 }))
}
