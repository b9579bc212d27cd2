//! Where the work of tasks does not merge, for whoever asks.

use coordinator_core::failure::FailureClass;
use coordinator_core::state::{Run, Task, TaskState};
use coordinator_core::{CommitId, TaskIx, base_commits, integration_commits};
use muster_git::{Hunk, ObjectId, Side, Stage};
use muster_proto::v1;
use tonic::Status;

use super::runs::Runs;
use super::status;
use crate::git::conflicts::{Answer, Explainer, Met, Question};

/// Works out where the work of a run's tasks does not merge.
///
/// # Errors
/// `NOT_FOUND` for a run or task that is not there; `FAILED_PRECONDITION` when all that was merged
/// has merged.
pub(super) async fn of(
    runs: &Runs,
    explainer: &Explainer,
    request: &v1::GetConflictsRequest,
) -> Result<v1::GetConflictsResponse, Status> {
    let task = request.task.clone();
    let (question, base_of) = runs
        .read(&request.run, move |run, _| question(run, &task))
        .await??;
    let answer = explainer.ask(question.clone()).await?;
    let answer = answer.ok_or_else(|| Status::failed_precondition("all of it merges"))?;
    Ok(shown(&question, answer, base_of))
}

fn question(run: &Run, name: &str) -> Result<(Question, String), Status> {
    let source = run
        .source
        .as_ref()
        .ok_or_else(|| Status::failed_precondition("the run has no repository"))?;
    let named = match name {
        "" => None,
        name => Some(
            run.indexed()
                .find(|(_, task)| *task.name == *name)
                .ok_or_else(|| {
                    Status::not_found(format!("no task {name:?} in run {}", run.name))
                })?,
        ),
    };
    let (commits, suspects, base_of) = match (named, &run.conflict) {
        (Some((ix, task)), _) if has_no_base(task) => {
            (base_commits(run, ix), Vec::new(), task.name.to_string())
        }
        (Some((ix, _)), Some(conflict)) if conflict.tasks.contains(&ix) => (
            integration_commits(run),
            conflict.tasks.clone(),
            String::new(),
        ),
        (None, Some(conflict)) => (
            integration_commits(run),
            conflict.tasks.clone(),
            String::new(),
        ),
        _ => return Err(Status::failed_precondition("nothing conflicts here")),
    };
    let commits = commits
        .iter()
        .filter_map(|(ix, commit)| Some((*ix, run.task(*ix)?.name.to_string(), commit)))
        .map(|(ix, name, commit)| Ok((ix, name, id(commit)?)))
        .collect::<Result<Vec<(TaskIx, String, ObjectId)>, Status>>()?;
    let question = Question {
        repository: source.repository.to_string(),
        run: run.name.to_string(),
        base: id(&source.base)?,
        commits,
        seconds: run.submitted_at.ms() / 1_000,
        suspects,
    };
    Ok((question, base_of))
}

/// Tells whether a task failed since the work of its dependencies does not merge.
fn has_no_base(task: &Task) -> bool {
    matches!(&task.state, TaskState::Failed { failure, .. } if failure.class == FailureClass::BaseConflict)
}

fn id(commit: &CommitId) -> Result<ObjectId, Status> {
    ObjectId::parse(commit.as_str()).map_err(|error| status::internal(&error))
}

fn shown(question: &Question, answer: Answer, base_of: String) -> v1::GetConflictsResponse {
    let name = |at: &usize| question.commits.get(*at).map(|(_, name, _)| name.clone());
    let mut onto: Vec<usize> = answer
        .conflicts
        .iter()
        .flat_map(|met| met.earlier.iter().copied())
        .collect();
    onto.sort_unstable();
    onto.dedup();
    let commit = question.commits.get(answer.index).map(|(_, _, id)| id);
    let conflicts = answer.conflicts.into_iter().map(|met| {
        let at = met.earlier.iter().chain([&answer.index]);
        conflict(at.filter_map(name).collect(), met)
    });
    v1::GetConflictsResponse {
        base_of,
        task: name(&answer.index).unwrap_or_default(),
        onto_tasks: onto.iter().filter_map(name).collect(),
        onto: answer.onto.to_string(),
        commit: commit.map(ToString::to_string).unwrap_or_default(),
        conflicts: conflicts.collect(),
        more: u32::try_from(answer.more).unwrap_or(u32::MAX),
    }
}

fn conflict(tasks: Vec<String>, met: Met) -> v1::Conflict {
    let hunk = |hunk: Hunk| v1::ConflictHunk {
        line: hunk.line,
        ours: hunk.ours,
        theirs: hunk.theirs,
        is_cut: hunk.is_cut,
    };
    v1::Conflict {
        kind: met.conflict.kind.as_str().to_owned(),
        path: met.conflict.path,
        other_paths: met.conflict.others,
        tasks,
        message: met.message,
        sides: met.conflict.sides.into_iter().map(side).collect(),
        hunks: met.hunks.list.into_iter().map(hunk).collect(),
        has_more_hunks: met.hunks.has_more,
    }
}

fn side(side: Side) -> v1::ConflictSide {
    let whose = match side.stage {
        Stage::Base => "base",
        Stage::Ours => "ours",
        Stage::Theirs => "theirs",
    };
    v1::ConflictSide {
        side: whose.to_owned(),
        mode: side.mode,
        object: side.object.to_string(),
        path: side.path,
    }
}
