//! Runs as people and programs see them, live or archived alike.

use std::collections::BTreeMap;
use std::ops::Range;

use coordinator_core::event::{Outcome, RunOutcome};
use coordinator_core::state::{Attempt, AttemptEnd, Run, RunPhase, Task, TaskState, VerifyPhase};
use coordinator_core::{Failure, TaskIx};
use muster_proto::v1;

use super::convert;
use crate::git::mirror::{Mirrors, RunMirror};
use crate::git::names;

/// Names a run's state.
#[must_use]
pub fn run_state(run: &Run) -> &'static str {
    match &run.phase {
        RunPhase::Active => "active",
        RunPhase::Integrating { .. } => "integrating",
        RunPhase::Verifying { .. } => "verifying",
        RunPhase::Ended { outcome, .. } => outcome_state(outcome),
    }
}

/// Names how a run ended.
#[must_use]
pub fn outcome_state(outcome: &RunOutcome) -> &'static str {
    match outcome {
        RunOutcome::Succeeded => "succeeded",
        RunOutcome::Failed(_) => "failed",
        RunOutcome::Cancelled { .. } => "cancelled",
    }
}

/// Names a task's state.
#[must_use]
pub fn task_state(task: &Task) -> &'static str {
    match &task.state {
        TaskState::Blocked { .. } => "blocked",
        TaskState::Basing { .. } => "basing",
        TaskState::Ready { .. } => "ready",
        TaskState::Leased { .. } => "leased",
        TaskState::Verifying { .. } => "verifying",
        TaskState::Parked(_) => "parked",
        TaskState::Succeeded { .. } => "succeeded",
        TaskState::Failed { .. } => "failed",
        TaskState::Cancelled { .. } => "cancelled",
        TaskState::Aborted { .. } => "aborted",
        TaskState::Skipped { .. } => "skipped",
    }
}

/// Counts tasks by the name of their state.
#[must_use]
pub fn counts(run: &Run) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for task in &run.tasks {
        *counts.entry(task_state(task).to_owned()).or_insert(0) += 1;
    }
    counts
}

/// Describes a run and some of its tasks; from the second page on the tasks alone, with what names
/// the run and its state.
#[must_use]
pub fn page(of: &Run, archived: bool, tasks: Range<usize>) -> v1::Run {
    let shown = of.tasks.iter().skip(tasks.start).take(tasks.len());
    let shown = shown.map(|shown| task(of, shown)).collect();
    if tasks.start == 0 {
        return v1::Run {
            tasks: shown,
            ..head(of, archived)
        };
    }
    v1::Run {
        run: of.name.to_string(),
        plan: of.plan.to_string(),
        state: run_state(of).to_owned(),
        last_seq: of.last_seq,
        archived,
        tasks: shown,
        ..v1::Run::default()
    }
}

/// Describes a run without its tasks.
fn head(run: &Run, archived: bool) -> v1::Run {
    let (failure, ended_at) = match &run.phase {
        RunPhase::Ended {
            outcome: RunOutcome::Failed(failure),
            at,
            ..
        } => (Some(convert::failure(failure)), Some(*at)),
        RunPhase::Ended { at, .. } => (None, Some(*at)),
        RunPhase::Active | RunPhase::Integrating { .. } | RunPhase::Verifying { .. } => {
            (None, None)
        }
    };
    v1::Run {
        run: run.name.to_string(),
        plan: run.plan.to_string(),
        state: run_state(run).to_owned(),
        submitted_at: Some(convert::timestamp(run.submitted_at)),
        ended_at: ended_at.map(convert::timestamp),
        submitted_by: run.submitted_by.to_string(),
        repository: run
            .source
            .as_ref()
            .map(|source| source.repository.to_string()),
        base: run.source.as_ref().map(|source| source.base.to_string()),
        tasks: Vec::new(),
        integration: Some(integration(run)),
        failure,
        last_seq: run.last_seq,
        archived,
        critical_path: critical_path(run),
        mirror: None,
        usage: None,
    }
}

/// Describes a run in a line.
#[must_use]
pub fn summary(run: &Run, archived: bool) -> v1::RunSummary {
    let ended_at = match &run.phase {
        RunPhase::Ended { at, .. } => Some(convert::timestamp(*at)),
        RunPhase::Active | RunPhase::Integrating { .. } | RunPhase::Verifying { .. } => None,
    };
    v1::RunSummary {
        run: run.name.to_string(),
        plan: run.plan.to_string(),
        state: run_state(run).to_owned(),
        submitted_at: Some(convert::timestamp(run.submitted_at)),
        ended_at,
        tasks: counts(run),
        archived,
    }
}

/// The longest chain of tasks: from a task of greatest height always on to the highest dependent.
fn critical_path(run: &Run) -> Vec<String> {
    let mut path = Vec::new();
    let tallest = |candidates: &mut dyn Iterator<Item = TaskIx>| {
        candidates
            .filter_map(|ix| {
                run.task(ix)
                    .map(|task| (task.height, std::cmp::Reverse(ix)))
            })
            .max()
            .map(|(_, std::cmp::Reverse(ix))| ix)
    };
    let all = u32::try_from(run.tasks.len()).unwrap_or(u32::MAX);
    let mut next = tallest(&mut (0..all).map(TaskIx));
    while let Some(ix) = next {
        let Some(task) = run.task(ix) else { break };
        path.push(task.name.to_string());
        next = tallest(&mut task.dependents.iter().copied());
    }
    path
}

fn task(run: &Run, task: &Task) -> v1::Task {
    let name = |ix: TaskIx| {
        run.task(ix)
            .map(|task| task.name.to_string())
            .unwrap_or_default()
    };
    let (failure, reason) = match &task.state {
        TaskState::Failed { failure, .. } => (Some(&**failure), String::new()),
        TaskState::Skipped { because, .. } => (None, format!("{} did not succeed", name(*because))),
        TaskState::Cancelled { by, reason, .. } => (
            None,
            if reason.is_empty() {
                format!("by {by}")
            } else {
                format!("by {by}: {reason}")
            },
        ),
        TaskState::Aborted { reason, .. } => (None, reason.to_string()),
        TaskState::Blocked { .. }
        | TaskState::Basing { .. }
        | TaskState::Ready { .. }
        | TaskState::Leased { .. }
        | TaskState::Verifying { .. }
        | TaskState::Parked(_)
        | TaskState::Succeeded { .. } => (None, String::new()),
    };
    let outcome = match &task.state {
        TaskState::Succeeded { outcome, .. } => Some(outcome),
        _ => None,
    };
    let agent = run
        .profiles
        .get(usize::from(task.profile))
        .map(|profile| profile.requirement.agent.to_string())
        .unwrap_or_default();
    let asks = task.questions().iter().find(|open| open.answer.is_none());
    v1::Task {
        asks: asks
            .map(|open| format!("{}: {}", open.id, open.asking.title))
            .unwrap_or_default(),
        name: task.name.to_string(),
        state: task_state(task).to_owned(),
        depends_on: task.dependencies.iter().map(|&ix| name(ix)).collect(),
        generation: task.generation,
        attempts: task
            .history
            .as_deref()
            .map(|history| {
                history
                    .attempts
                    .iter()
                    .map(|of| attempt(task, of))
                    .collect()
            })
            .unwrap_or_default(),
        failure: failure.map(convert::failure),
        reason,
        commit: match outcome {
            Some(Outcome::Commit(commit)) => Some(commit.to_string()),
            Some(Outcome::NoChange | Outcome::NoRepository) | None => None,
        },
        no_change: matches!(outcome, Some(Outcome::NoChange)),
        agent,
        priority: task.priority.into(),
    }
}

fn attempt(task: &Task, attempt: &Attempt) -> v1::Attempt {
    let (state, outcome, failure): (&str, Option<&Outcome>, Option<&Failure>) = match &attempt.end {
        Some(AttemptEnd::Made(outcome)) => (verify_state(task), Some(outcome), None),
        Some(AttemptEnd::Succeeded(outcome)) => ("succeeded", Some(outcome), None),
        Some(AttemptEnd::Failed(failure)) => ("failed", None, Some(failure)),
        Some(AttemptEnd::VerifyFailed { outcome, failure }) => {
            ("failed", Some(outcome), Some(failure))
        }
        Some(AttemptEnd::Cancelled) => ("cancelled", None, None),
        Some(AttemptEnd::Parked { .. }) => ("parked", None, None),
        Some(AttemptEnd::NeverStarted) => ("never_started", None, None),
        None if attempt.started_at.is_some() => ("running", None, None),
        None => ("leased", None, None),
    };
    v1::Attempt {
        number: attempt.number.0,
        worker: attempt.worker.to_string(),
        state: state.to_owned(),
        granted_at: Some(convert::timestamp(attempt.granted_at)),
        started_at: attempt.started_at.map(convert::timestamp),
        ended_at: attempt.ended_at.map(convert::timestamp),
        failure: failure.map(convert::failure),
        commit: match outcome {
            Some(Outcome::Commit(commit)) => Some(commit.to_string()),
            Some(Outcome::NoChange | Outcome::NoRepository) | None => None,
        },
        usage: Some(convert::usage(attempt.usage)),
        summary: attempt.summary.to_string(),
        lease: attempt.lease.0,
        continues: attempt.continues.map_or(0, |number| number.0),
        conversation: attempt
            .conversation
            .as_ref()
            .map(|opened| opened.id.to_string())
            .unwrap_or_default(),
        anew: task.began_anew(attempt),
    }
}

fn verify_state(task: &Task) -> &'static str {
    match &task.state {
        TaskState::Verifying {
            verify: VerifyPhase::Waiting { .. },
            ..
        } => "waiting_for_verify",
        TaskState::Verifying {
            verify: VerifyPhase::Leased { .. },
            ..
        } => "verifying",
        _ => "made",
    }
}

fn integration(run: &Run) -> v1::Integration {
    let branch = names::integration_branch(&run.name);
    let mut shown = v1::Integration {
        branch,
        ..v1::Integration::default()
    };
    if let Some(conflict) = &run.conflict {
        shown.conflict_tasks = conflict
            .tasks
            .iter()
            .filter_map(|&ix| run.task(ix).map(|task| task.name.to_string()))
            .collect();
        shown.conflict_files = conflict.files.iter().map(ToString::to_string).collect();
        shown.detail = conflict.detail.to_string();
    }
    let state = match &run.phase {
        _ if run.integrate.is_none() || run.source.is_none() => {
            shown.branch.clear();
            "none"
        }
        RunPhase::Active => "pending",
        RunPhase::Integrating { .. } => "merging",
        RunPhase::Verifying { commit, .. } => {
            shown.commit = Some(commit.to_string());
            "verifying"
        }
        RunPhase::Ended {
            integrated: Some(commit),
            outcome: RunOutcome::Succeeded,
            ..
        } => {
            shown.commit = Some(commit.to_string());
            "integrated"
        }
        RunPhase::Ended { .. } if run.conflict.is_some() => "conflict",
        RunPhase::Ended {
            integrated: Some(commit),
            ..
        } => {
            shown.commit = Some(commit.to_string());
            "failed"
        }
        RunPhase::Ended { .. } => "none",
    };
    state.clone_into(&mut shown.state);
    shown
}

/// Tells where the branches of a run are on the mirror of its repository.
#[must_use]
pub fn mirror(mirrors: &Mirrors, run: &v1::Run) -> Option<v1::Mirror> {
    let mut commits = BTreeMap::new();
    for task in run.tasks.iter().filter(|task| task.state == "succeeded") {
        let commit = task.commit.clone();
        commits.extend(commit.map(|commit| (names::task_head(&run.run, &task.name), commit)));
    }
    if let Some(of) = run
        .integration
        .as_ref()
        .filter(|of| of.state == "integrated")
    {
        let commit = of.commit.clone();
        commits.extend(commit.map(|commit| (names::integration_head(&run.run), commit)));
    }
    let RunMirror { url, state, detail } =
        mirrors.of_run(run.repository.as_deref()?, &run.run, &commits)?;
    Some(v1::Mirror {
        url,
        state: state.to_owned(),
        detail,
    })
}

/// Describes an archived run in a line.
#[must_use]
pub fn archived_summary(summary: &crate::store::Summary) -> v1::RunSummary {
    let tasks = &summary.tasks;
    let counts = [
        ("succeeded", tasks.succeeded),
        ("failed", tasks.failed),
        ("cancelled", tasks.cancelled),
        ("aborted", tasks.aborted),
        ("skipped", tasks.skipped),
        ("unfinished", tasks.unfinished),
    ];
    v1::RunSummary {
        run: summary.name.to_string(),
        plan: summary.plan.to_string(),
        state: outcome_state(&summary.outcome).to_owned(),
        submitted_at: Some(convert::timestamp(summary.submitted_at)),
        ended_at: Some(convert::timestamp(summary.ended_at)),
        tasks: counts
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| (name.to_owned(), count))
            .collect(),
        archived: true,
    }
}
