//! Makes the merges that the core wants: bases of tasks and integrations of runs.
//!
//! A reconciler: it asks the state what is wanted, does that, reports, and asks again. A signal
//! only makes it sooner. Merges are deterministic, so one that was made and not reported before a
//! restart is simply made again.

use std::collections::BTreeSet;
use std::time::Duration;

use coordinator_core::command::GitStepFailure;
use coordinator_core::event::MergeConflict;
use coordinator_core::{Command, CommitId, GitStep, RunId, TaskIx, Timestamp, git_work};
use muster_git::{
    CommitTime, Expected, Fold, GitError, Identity, ObjectId, RefName, RefUpdate, Repository,
    SubprocessMerger, Update, fold,
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::conflicts::{readable, touched, who_meets};
use super::names;
use super::repositories::Repositories;
use crate::api::convert::clip;
use crate::causes::chain;
use crate::engine::{self, Handle};

/// Steps taken from the state at once.
const STEPS_PER_ROUND: usize = 64;
/// How often a step that fails for a reason of its own is repeated before the core hears of it.
const TRIES: u32 = 3;
/// Pause between the tries of a step.
const PAUSE: Duration = Duration::from_secs(2);
/// Files of a conflict that are reported.
const CONFLICT_FILES: usize = 100;
/// Tasks that are named besides the one that does not merge.
const EARLIER_TASKS: usize = 4;
/// Bytes of what git says about a conflict.
const CONFLICT_DETAIL_BYTES: usize = 4_096;

/// Who makes the merges.
///
/// # Errors
/// Never in practice: the texts are constant and plain.
pub fn identity() -> Result<Identity, GitError> {
    Identity::new("Muster", "coordinator@muster.invalid")
}

/// Makes wanted merges until cancelled or the engine ends.
pub async fn run(engine: Handle, repositories: Repositories, ending: CancellationToken) {
    let mut wanted = engine.notices().git_work();
    loop {
        wanted.mark_unchanged();
        let Ok(steps) = engine
            .query(|state, _| {
                let steps: Vec<Step> = git_work(state)
                    .into_iter()
                    .take(STEPS_PER_ROUND)
                    .filter_map(|step| Step::of(state, step))
                    .collect();
                steps
            })
            .await
        else {
            return;
        };
        if steps.is_empty() {
            tokio::select! {
                () = ending.cancelled() => return,
                changed = wanted.changed() => if changed.is_err() { return },
            }
            continue;
        }
        for step in steps {
            let made = tokio::select! {
                () = ending.cancelled() => return,
                made = attempt(&repositories, &step) => made,
            };
            match engine.command(step.report(made)).await {
                // A step that is no longer wanted was overtaken by a cancel or a retry.
                Ok(_) | Err(engine::Error::Rejected(_)) => {}
                Err(engine::Error::Stopped | engine::Error::Store(_)) => return,
            }
        }
    }
}

/// A wanted merge with the names that git needs.
struct Step {
    step: GitStep,
    repository: String,
    run: String,
    /// Ref that keeps the result and lets leases read it.
    keep: String,
    base: CommitId,
    /// Each with the name of its task.
    commits: Vec<(TaskIx, CommitId, String)>,
    /// The merges' time.
    at: Timestamp,
}

/// What the merge of a task's work says.
pub(crate) fn message(task: &str, run: &str) -> String {
    format!("Merge task {task} of run {run}")
}

type Parts<'a> = (RunId, &'a CommitId, &'a [(TaskIx, CommitId)], Timestamp);

fn parts(step: &GitStep) -> Parts<'_> {
    match step {
        GitStep::Base {
            task,
            base,
            commits,
            at,
            ..
        } => (task.run, base, commits, *at),
        GitStep::Integration {
            run,
            base,
            commits,
            at,
            ..
        } => (*run, base, commits, *at),
    }
}

impl Step {
    fn of(state: &coordinator_core::state::State, step: GitStep) -> Option<Self> {
        let (run, base, commits, at) = parts(&step);
        let run = state.run(run)?;
        let source = run.source.as_ref()?;
        let keep = match &step {
            GitStep::Base { task, .. } => names::base(&run.name, &run.task(task.task)?.name),
            GitStep::Integration { generation, .. } => names::candidate(&run.name, *generation),
        };
        let base = base.clone();
        let commits = commits
            .iter()
            .filter_map(|(ix, commit)| {
                let name = &run.task(*ix)?.name;
                Some((*ix, commit.clone(), name.to_string()))
            })
            .collect();
        Some(Self {
            repository: source.repository.to_string(),
            run: run.name.to_string(),
            keep,
            base,
            commits,
            at,
            step,
        })
    }

    fn report(&self, result: Result<CommitId, GitStepFailure>) -> Command {
        match &self.step {
            GitStep::Base {
                task, generation, ..
            } => Command::BaseMade {
                task: *task,
                generation: *generation,
                result,
            },
            GitStep::Integration {
                run, generation, ..
            } => Command::IntegrationMade {
                run: *run,
                generation: *generation,
                result,
            },
        }
    }
}

/// Why a step could not be made, in our own words.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Git(#[from] GitError),
    #[error("{0}")]
    Other(String),
}

async fn attempt(repositories: &Repositories, step: &Step) -> Result<CommitId, GitStepFailure> {
    let mut tried = 1;
    loop {
        match make(repositories, step).await {
            Ok(result) => return result.map_err(GitStepFailure::Conflict),
            Err(error) if tried < TRIES => {
                warn!(
                    run = step.run,
                    error = chain(&error),
                    tried,
                    "a merge failed and is tried again"
                );
                tried += 1;
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => {
                let error = chain(&error);
                warn!(run = step.run, error, "a merge failed for good");
                return Err(GitStepFailure::Error(clip(&error, 1_000).into()));
            }
        }
    }
}

fn id(commit: &CommitId) -> Result<ObjectId, Failure> {
    Ok(ObjectId::parse(commit.as_str())?)
}

async fn make(
    repositories: &Repositories,
    step: &Step,
) -> Result<Result<CommitId, MergeConflict>, Failure> {
    let repository = repositories
        .open(&step.repository)
        .await
        .map_err(|status| Failure::Other(status.message().to_owned()))?;
    let writing = repositories.writers().enter(&step.repository).await;
    let merger = SubprocessMerger::new(repository.clone());
    let base = id(&step.base)?;
    let commits = step
        .commits
        .iter()
        .map(|(_, commit, task)| Ok((id(commit)?, message(task, &step.run))))
        .collect::<Result<Vec<_>, Failure>>()?;
    let time = CommitTime::from_unix_seconds(step.at.ms() / 1000);
    let folded = fold(&merger, base, &commits, &identity()?, time).await?;
    if let Fold::Merged(commit) = folded {
        keep(&repository, &step.keep, commit).await?;
    }
    writing.done();
    match folded {
        Fold::Merged(commit) => Ok(Ok(CommitId::new(&commit.to_string()))),
        Fold::Conflict {
            index, conflicts, ..
        } => {
            let earlier: Vec<(TaskIx, ObjectId)> = step
                .commits
                .iter()
                .zip(&commits)
                .take(index)
                .map(|((ix, ..), (commit, _))| (*ix, *commit))
                .collect();
            let touched = touched(&repository, base, &earlier).await?;
            let meeting = conflicts.list.iter();
            let meeting: BTreeSet<TaskIx> = meeting
                .flat_map(|found| who_meets(&touched, found))
                .collect();
            let earlier = earlier.iter().map(|(ix, _)| *ix);
            let mut tasks: Vec<TaskIx> = earlier.filter(|ix| meeting.contains(ix)).collect();
            // The latest to touch the file comes first to mind; keep the list short.
            let from = tasks.len().saturating_sub(EARLIER_TASKS);
            tasks.drain(..from);
            let Some((ix, _, name)) = step.commits.get(index) else {
                return Err(Failure::Other("a conflict without a task".to_owned()));
            };
            tasks.push(*ix);
            let files = conflicts.paths().into_iter().take(CONFLICT_FILES);
            let detail: Vec<String> = conflicts
                .list
                .iter()
                .take(CONFLICT_FILES)
                .map(|found| readable(&found.message, &conflicts, name))
                .collect();
            Ok(Err(MergeConflict {
                tasks,
                files: files.map(Into::into).collect(),
                detail: clip(&detail.join("\n"), CONFLICT_DETAIL_BYTES).into(),
            }))
        }
    }
}

/// Keeps a merge under a ref of the coordinator's own, whatever the ref was before.
async fn keep(repository: &Repository, name: &str, commit: ObjectId) -> Result<(), Failure> {
    let name = RefName::parse(name)?;
    let update = RefUpdate {
        name,
        new: Some(commit),
        expected: Expected::Any,
    };
    match repository.update_refs(&[update]).await? {
        Update::Done => Ok(()),
        Update::Refused { name, .. } => Err(Failure::Other(format!("{name} could not be moved"))),
    }
}
