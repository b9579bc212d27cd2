//! Answers of the shell that merges: bases of tasks and integrations of runs.

use super::attempt::{name, run_failed, task_failed};
use super::{Decision, head, tail};
use crate::command::{GitStepFailure, Rejection};
use crate::event::{EventKind, MergeConflict, RunOutcome};
use crate::failure::{Failure, FailureClass};
use crate::ids::{CommitId, RunId, TaskKey};
use crate::limits;
use crate::state::{Run, RunPhase, State, TaskState};
use crate::time::Timestamp;

pub(super) fn base_made(
    state: &State,
    now: Timestamp,
    key: TaskKey,
    generation: u32,
    result: &Result<CommitId, GitStepFailure>,
) -> Result<Decision, Rejection> {
    let run = state.run(key.run).ok_or(Rejection::StepStale)?;
    let task = run.task(key.task).ok_or(Rejection::StepStale)?;
    if task.generation != generation || !matches!(task.state, TaskState::Basing { .. }) {
        return Err(Rejection::StepStale);
    }
    let event = match result {
        Ok(commit) => EventKind::TaskReady {
            task: key,
            base: Some(commit.clone()),
            not_before: now,
        },
        Err(GitStepFailure::Conflict(conflict)) => {
            let class = FailureClass::BaseConflict;
            let what = "the dependencies do not merge";
            task_failed(run, key.task, conflicted(run, class, what, conflict))
        }
        Err(GitStepFailure::Error(text)) => {
            task_failed(run, key.task, broken("making the base failed", text))
        }
    };
    Ok(Decision::done(vec![event]))
}

pub(super) fn integration_made(
    state: &State,
    id: RunId,
    generation: u32,
    result: &Result<CommitId, GitStepFailure>,
) -> Result<Decision, Rejection> {
    let run = state.run(id).ok_or(Rejection::StepStale)?;
    if run.generation != generation || !matches!(run.phase, RunPhase::Integrating { .. }) {
        return Err(Rejection::StepStale);
    }
    let events = match result {
        Ok(commit) => {
            let mut events = vec![EventKind::IntegrationMerged {
                run: id,
                commit: commit.clone(),
            }];
            if run.final_verify().is_none() {
                events.push(EventKind::RunEnded {
                    run: id,
                    outcome: RunOutcome::Succeeded,
                });
            }
            events
        }
        Err(GitStepFailure::Conflict(conflict)) => {
            let conflict = bounded(conflict);
            let class = FailureClass::IntegrationConflict;
            let failure = conflicted(run, class, "the tasks do not merge", &conflict);
            vec![
                EventKind::IntegrationConflicted { run: id, conflict },
                run_failed(run, failure),
            ]
        }
        Err(GitStepFailure::Error(text)) => {
            vec![run_failed(run, broken("integrating failed", text))]
        }
    };
    Ok(Decision::done(events))
}

fn bounded(conflict: &MergeConflict) -> MergeConflict {
    let files = conflict.files.iter().take(limits::CONFLICT_ITEMS);
    let tasks = conflict.tasks.iter().take(limits::CONFLICT_ITEMS);
    MergeConflict {
        tasks: tasks.copied().collect(),
        files: files.map(|file| head(file, limits::PATH_BYTES)).collect(),
        detail: tail(&conflict.detail, limits::FAILURE_OUTPUT_BYTES),
    }
}

/// Says which tasks meet in which files.
fn conflicted(run: &Run, class: FailureClass, what: &str, conflict: &MergeConflict) -> Failure {
    let tasks: Vec<_> = conflict
        .tasks
        .iter()
        .take(8)
        .map(|ix| name(run, *ix))
        .collect();
    let files: Vec<_> = conflict.files.iter().take(16).map(|file| &**file).collect();
    let more = conflict.files.len().saturating_sub(files.len());
    let mut text = format!(
        "{what}: {} meet in {}",
        tasks.join(" and "),
        files.join(", ")
    );
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    Failure {
        class,
        message: head(&text, limits::FAILURE_MESSAGE_BYTES),
        output: tail(&conflict.detail, limits::FAILURE_OUTPUT_BYTES),
        retry_after: None,
    }
}

fn broken(what: &str, text: &str) -> Failure {
    let message = head(&format!("{what}: {text}"), limits::FAILURE_MESSAGE_BYTES);
    Failure::new(FailureClass::Internal, message)
}
