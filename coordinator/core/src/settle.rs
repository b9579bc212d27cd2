//! Consequences: what must happen because of what has happened, without anybody asking.

use crate::event::{Event, EventKind, RunOutcome};
use crate::failure::{Failure, FailureClass};
use crate::ids::{CommitId, TaskIx, TaskKey};
use crate::limits;
use crate::state::{Run, State, TaskState};
use crate::time::Timestamp;

/// Gives the next consequences of the present state, at most
/// [`limits::CONSEQUENCES_PER_PASS`]; none when everything is settled. Costs as much as it gives.
#[must_use]
pub fn settle(state: &State, now: Timestamp) -> Vec<EventKind> {
    let max = limits::CONSEQUENCES_PER_PASS;
    let unblocked = state.index.unblocked.iter().take(max);
    let mut events: Vec<EventKind> = unblocked
        .filter_map(|key| Some(begin(state.run(key.run)?, *key, now)))
        .collect();
    let doomed = state.index.doomed.iter().take(max - events.len());
    events.extend(doomed.map(|(key, because)| EventKind::TaskSkipped {
        task: *key,
        because: *because,
    }));
    if events.is_empty() {
        let complete = state.index.complete.iter().take(max);
        events.extend(complete.filter_map(|id| Some(finish(state.run(*id)?))));
    }
    events
}

/// Records consequences until there are none.
pub(crate) fn settle_all(state: &mut State, now: Timestamp, events: &mut Vec<Event>) {
    let mut pass = events.len();
    loop {
        let kinds = settle(state, now);
        if kinds.is_empty() {
            return;
        }
        let before = events.get(pass).map(|event| &event.kind);
        debug_assert_ne!(before, kinds.first(), "recorded, but still to come");
        pass = events.len();
        for kind in kinds {
            events.push(state.record(now, kind));
        }
    }
}

/// A task's dependencies have all succeeded.
fn begin(run: &Run, task: TaskKey, now: Timestamp) -> EventKind {
    match base(run, task.task) {
        Base::Known(base) => EventKind::TaskReady {
            task,
            base,
            not_before: now,
        },
        Base::Merge => EventKind::TaskBasing { task },
    }
}

enum Base {
    Known(Option<CommitId>),
    Merge,
}

/// Only different commits need a merge: dependencies that changed nothing add nothing.
fn base(run: &Run, ix: TaskIx) -> Base {
    let Some(source) = &run.source else {
        return Base::Known(None);
    };
    let mut commits = dependencies(run, ix);
    let Some(first) = commits.next() else {
        return Base::Known(Some(source.base.clone()));
    };
    if commits.any(|commit| commit != first) {
        Base::Merge
    } else {
        Base::Known(Some(first.clone()))
    }
}

/// Gives the commits that a task's base consists of, in plan order, without the run's own base.
fn dependencies(run: &Run, ix: TaskIx) -> impl Iterator<Item = &CommitId> {
    let dependencies = run.task(ix).map_or(&[][..], |task| &task.dependencies);
    let base = run.source.as_ref().map(|source| &source.base);
    let commits = dependencies.iter().filter_map(|ix| run.commit(*ix));
    commits.filter(move |commit| Some(*commit) != base)
}

/// All tasks of an active run are final.
fn finish(run: &Run) -> EventKind {
    if let Some(outcome) = shortfall(run) {
        return EventKind::RunEnded {
            run: run.id,
            outcome,
        };
    }
    if run.integrate.is_some() {
        return EventKind::IntegrationStarted { run: run.id };
    }
    EventKind::RunEnded {
        run: run.id,
        outcome: RunOutcome::Succeeded,
    }
}

/// Names the first task that failed; if none did, the first that a person cancelled.
fn shortfall(run: &Run) -> Option<RunOutcome> {
    let failed = run.indexed().filter_map(|(ix, task)| match &task.state {
        TaskState::Failed { failure, at } => Some((*at, ix, &task.name, failure)),
        _ => None,
    });
    if let Some((_, _, name, failure)) = failed.min_by_key(|(at, ix, ..)| (*at, *ix)) {
        let text = format!("task {name} failed: {}", failure.message);
        let mut message: String = text;
        while message.len() > limits::FAILURE_MESSAGE_BYTES {
            message.pop();
        }
        return Some(RunOutcome::Failed(Failure {
            class: failure.class,
            message: message.into(),
            output: failure.output.clone(),
            retry_after: None,
        }));
    }
    let cancelled = run.tasks.iter().filter_map(|task| match &task.state {
        TaskState::Cancelled { by, at, .. } => Some((*at, by)),
        _ => None,
    });
    if let Some((_, by)) = cancelled.min_by_key(|(at, _)| *at) {
        return Some(RunOutcome::Cancelled { by: by.clone() });
    }
    let lacking = run.tasks.iter().find(|task| !task.state.is_succeeded())?;
    Some(RunOutcome::Failed(Failure::new(
        FailureClass::Internal,
        format!("task {} was {}", lacking.name, lacking.state.name()),
    )))
}

/// Gives the commits to merge for a task's base, in plan order, doubles left out.
#[must_use]
pub fn base_commits(run: &Run, ix: TaskIx) -> Vec<(TaskIx, CommitId)> {
    let dependencies = run.task(ix).map_or(&[][..], |task| &task.dependencies);
    distinct(run, dependencies.iter().copied())
}

/// Gives the commits to integrate: succeeded tasks in topological order, ties in plan order.
#[must_use]
pub fn integration_commits(run: &Run) -> Vec<(TaskIx, CommitId)> {
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;
    let mut unmet: Vec<usize> = run.tasks.iter().map(|t| t.dependencies.len()).collect();
    let roots = run
        .indexed()
        .filter(|(_, task)| task.dependencies.is_empty());
    let mut next: BinaryHeap<Reverse<TaskIx>> = roots.map(|(ix, _)| Reverse(ix)).collect();
    let mut order = Vec::with_capacity(unmet.len());
    while let Some(Reverse(ix)) = next.pop() {
        order.push(ix);
        let dependents = run.task(ix).map_or(&[][..], |task| &task.dependents);
        for dependent in dependents {
            if let Some(unmet) = unmet.get_mut(crate::build::place(*dependent)) {
                *unmet = unmet.saturating_sub(1);
                if *unmet == 0 {
                    next.push(Reverse(*dependent));
                }
            }
        }
    }
    distinct(run, order.into_iter())
}

fn distinct(run: &Run, tasks: impl Iterator<Item = TaskIx>) -> Vec<(TaskIx, CommitId)> {
    let base = run.source.as_ref().map(|source| &source.base);
    let mut seen = std::collections::BTreeSet::new();
    let commits = tasks.filter_map(|ix| Some((ix, run.commit(ix)?)));
    commits
        .filter(|(_, commit)| Some(*commit) != base && seen.insert((*commit).clone()))
        .map(|(ix, commit)| (ix, commit.clone()))
        .collect()
}
