//! Why a task is not running.

use coordinator_core::explain::explain;
use coordinator_core::state::{Run, TaskState};
use coordinator_core::{State, TaskKey, Timestamp};
use muster_proto::v1::ExplainTaskResponse;
use tonic::Status;

use super::view;

/// Explains a task of a live run.
#[must_use]
pub(super) fn live(state: &State, now: Timestamp, key: TaskKey) -> ExplainTaskResponse {
    let explanation = explain(state, now, key);
    ExplainTaskResponse {
        state: state
            .task(key)
            .map(view::task_state)
            .unwrap_or_default()
            .to_owned(),
        reasons: vec![explanation.to_string()],
        remedies: explanation.help().into_iter().collect(),
    }
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
