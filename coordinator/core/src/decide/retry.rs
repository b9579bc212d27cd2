//! A new generation of what did not succeed, and of nothing else.

use std::collections::{BTreeMap, BTreeSet};

use super::Decision;
use super::attempt::name;
use crate::command::{Rejection, Reply, Target};
use crate::event::{Actor, EventKind, RunOutcome};
use crate::ids::{TaskIx, TaskKey};
use crate::state::{Run, RunPhase, State, TaskState};

pub(super) fn retry(state: &State, target: Target, by: &Actor) -> Result<Decision, Rejection> {
    let id = match target {
        Target::Run(run) => run,
        Target::Task(key) => key.run,
    };
    let run = state.run(id).ok_or(Rejection::UnknownTarget)?;
    let reopened = match target {
        Target::Run(_) => whole(run)?,
        Target::Task(key) => subtree(run, key.task)?,
    };
    let mut events = vec![];
    if run.is_ended() {
        events.push(EventKind::RunReopened {
            run: id,
            generation: run.generation.saturating_add(1),
            by: by.clone(),
        });
    }
    let tasks = reopened.len();
    for ix in reopened {
        let generation = run.task(ix).map_or(0, |task| task.generation);
        events.push(EventKind::TaskReopened {
            task: TaskKey { run: id, task: ix },
            generation: generation.saturating_add(1),
            by: by.clone(),
        });
    }
    Ok(Decision::new(events, Reply::Touched { tasks }))
}

fn lacking(run: &Run, ix: TaskIx) -> bool {
    let state = run.task(ix).map(|task| &task.state);
    state.is_some_and(|state| state.is_final() && !state.is_succeeded())
}

/// All tasks that did not succeed; none when only the integration is to be made again.
fn whole(run: &Run) -> Result<BTreeSet<TaskIx>, Rejection> {
    let tasks = run.indexed().map(|(ix, _)| ix);
    let reopened: BTreeSet<TaskIx> = tasks.filter(|ix| lacking(run, *ix)).collect();
    let ended_badly = matches!(
        &run.phase,
        RunPhase::Ended { outcome, .. } if *outcome != RunOutcome::Succeeded
    );
    if reopened.is_empty() && !ended_badly {
        return Err(Rejection::NotNow("nothing of the run has failed".into()));
    }
    Ok(reopened)
}

/// The task and everything that was skipped because of it and that nothing else keeps back.
fn subtree(run: &Run, target: TaskIx) -> Result<BTreeSet<TaskIx>, Rejection> {
    let task = run.task(target).ok_or(Rejection::UnknownTarget)?;
    if !lacking(run, target) {
        let text = format!(
            "task {} cannot be retried: its state is {}",
            task.name,
            task.state.name()
        );
        return Err(Rejection::NotNow(text.into()));
    }
    if let Some(because) = run.doom(task) {
        let text = format!(
            "task {} depends on {}, which has not succeeded: retry that",
            task.name,
            name(run, because)
        );
        return Err(Rejection::NotNow(text.into()));
    }
    let mut reopened = BTreeSet::from([target]);
    let mut fresh = vec![target];
    // How many dependencies still keep a skipped task back; counted when it is first met.
    let mut kept_back: BTreeMap<TaskIx, usize> = BTreeMap::new();
    while let Some(ix) = fresh.pop() {
        let dependents = run.task(ix).map_or(&[][..], |task| &task.dependents);
        for &dependent in dependents {
            let Some(task) = run.task(dependent) else {
                continue;
            };
            if !matches!(task.state, TaskState::Skipped { .. }) {
                continue;
            }
            let count = kept_back.entry(dependent).or_insert_with(|| {
                let dependencies = task.dependencies.iter();
                dependencies.filter(|ix| lacking(run, **ix)).count()
            });
            *count = count.saturating_sub(1);
            if *count == 0 && reopened.insert(dependent) {
                fresh.push(dependent);
            }
        }
    }
    Ok(reopened)
}
