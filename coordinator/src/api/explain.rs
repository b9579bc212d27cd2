//! Why a task is not running.

use std::collections::BTreeMap;

use coordinator_core::event::Work;
use coordinator_core::explain::explain;
use coordinator_core::state::{Run, TaskState};
use coordinator_core::{State, TaskKey, Timestamp, WorkerId};
use muster_proto::v1::ExplainTaskResponse;
use tonic::Status;

use super::view;

/// Workers in trouble that an explanation names.
const TROUBLES_NAMED: usize = 3;

/// Explains a task of a live run.
#[must_use]
pub(super) fn live(
    state: &State,
    now: Timestamp,
    key: TaskKey,
    troubles: &BTreeMap<WorkerId, String>,
) -> ExplainTaskResponse {
    let explanation = explain(state, now, key);
    let mut reasons = vec![explanation.to_string()];
    let mut remedies: Vec<String> = explanation.help().into_iter().collect();
    let concerned = concerning(state, key, troubles);
    for (worker, what) in concerned.iter().take(TROUBLES_NAMED) {
        reasons.push(format!("worker {worker} takes nothing new: {what}"));
    }
    if let Some(more) = concerned.len().checked_sub(TROUBLES_NAMED + 1) {
        let more = more + 1;
        reasons.push(format!(
            "so it is with {more} more: see `coordinator workers`"
        ));
    }
    if !concerned.is_empty() {
        remedies.push("mend what those workers complain about".to_owned());
    }
    ExplainTaskResponse {
        state: state
            .task(key)
            .map(view::task_state)
            .unwrap_or_default()
            .to_owned(),
        reasons,
        remedies,
    }
}

/// Finds the troubles that matter for a task: of the worker that has it or, where none has, of all.
fn concerning<'a>(
    state: &State,
    key: TaskKey,
    troubles: &'a BTreeMap<WorkerId, String>,
) -> Vec<(&'a WorkerId, &'a String)> {
    let waits = state.task(key).is_some_and(|task| {
        matches!(
            task.state,
            TaskState::Ready { .. } | TaskState::Leased { .. } | TaskState::Verifying { .. }
        )
    });
    if troubles.is_empty() || !waits {
        return Vec::new();
    }
    let holder = state.leases_of_run(key.run).find(|lease| match lease.work {
        Work::Attempt { task, .. } | Work::Verify { task, .. } => task == key.task,
        Work::FinalVerify => false,
    });
    let all = troubles.iter();
    all.filter(|(worker, _)| holder.is_none_or(|lease| lease.worker == **worker))
        .collect()
}

/// Explains a task of an archived run, in which nothing moves any more.
///
/// # Errors
/// `NOT_FOUND` when the run has no such task.
pub(super) fn archived(run: &Run, name: &str) -> Result<ExplainTaskResponse, Status> {
    let task = run
        .tasks
        .iter()
        .find(|task| *task.name == *name)
        .ok_or_else(|| Status::not_found(format!("no task {name:?} in run {}", run.name)))?;
    let retry = format!("`coordinator retry {} {name}` opens it again", run.name);
    let (reason, remedy) = match &task.state {
        TaskState::Succeeded { .. } => ("it succeeded".to_owned(), None),
        TaskState::Failed { failure, .. } => (
            format!("it failed: {} ({})", failure.message, failure.class),
            Some(retry),
        ),
        TaskState::Skipped { because, .. } => {
            let because = run
                .task(*because)
                .map(|task| task.name.to_string())
                .unwrap_or_default();
            let remedy = format!(
                "`coordinator retry {} {because}` opens both again",
                run.name
            );
            (
                format!("it was skipped: {because} did not succeed"),
                Some(remedy),
            )
        }
        TaskState::Cancelled { by, .. } => (format!("it was cancelled by {by}"), Some(retry)),
        TaskState::Aborted { reason, .. } => (format!("it was aborted: {reason}"), Some(retry)),
        TaskState::Blocked { .. }
        | TaskState::Basing { .. }
        | TaskState::Ready { .. }
        | TaskState::Leased { .. }
        | TaskState::Verifying { .. }
        | TaskState::Parked(_) => ("the run had ended before it began".to_owned(), Some(retry)),
    };
    Ok(ExplainTaskResponse {
        state: view::task_state(task).to_owned(),
        reasons: vec![reason],
        remedies: remedy.into_iter().collect(),
    })
}
