//! Why a task does not run, why it ran where it did, and what would change either.

use std::collections::BTreeMap;

use coordinator_core::event::{Placement, Work};
use coordinator_core::explain::{Explanation, explain, movable, placed};
use coordinator_core::state::{Run, TaskState};
use coordinator_core::worker::Requirement;
use coordinator_core::{
    AttemptNo, EventKind, FailureClass, LeaseId, RunId, State, TaskIx, TaskKey, Timestamp, WorkerId,
};
use muster_proto::v1::ExplainTaskResponse;
use tonic::Status;

use super::pools::prospects_of;
use super::runs::Runs;
use super::{status, view};
use crate::engine;
use crate::store::EVENTS_PER_READ_MAX;

/// Attempts of a task whose places are explained.
const ATTEMPTS: usize = 3;
/// Events of a run that are searched for grants; about a second's reading.
const EVENTS_SEARCHED: u64 = 500_000;
/// Tasks of a run that are looked at, so that the engine is not held up.
const TASKS_LOOKED_AT: usize = 10_000;
/// Tasks that one reason is told for by name.
const NAMED: usize = 4;
/// Workers in trouble that an explanation names.
const TROUBLES_NAMED: usize = 3;
/// Reasons that are told of a run.
const REASONS: usize = 8;

/// An attempt whose place is to be explained.
struct Ran {
    number: AttemptNo,
    lease: LeaseId,
    worker: WorkerId,
    /// The attempt that it goes on from.
    continues: Option<AttemptNo>,
    /// Its agent does not remember that one.
    anew: bool,
}

/// Explains a task, or the run as a whole if `task` is empty.
///
/// # Errors
/// `NOT_FOUND` when there is no such run or task.
pub(super) async fn of(
    runs: &Runs,
    name: &str,
    task: &str,
    troubles: BTreeMap<WorkerId, String>,
) -> Result<ExplainTaskResponse, Status> {
    let live = engine::live_run(runs.engine(), name)
        .await
        .map_err(status::of)?;
    let wanted = task.to_owned();
    let (mut said, run, ran) = match live {
        Some(id) => runs
            .engine()
            .query(move |state, now| live_task(state, now, id, &wanted, &troubles))
            .await
            .map_err(status::of)??,
        None => archived(&runs.archived(name).await?.run, task)?,
    };
    let mut placements = placements(runs, run, &ran).await?;
    for Ran {
        number,
        lease,
        worker,
        continues,
        anew,
    } in ran
    {
        let seen = placements.remove(&lease).unwrap_or_default();
        let mut line = format!("attempt {}: {}", number.0, placed(&worker, seen));
        if let Some(from) = continues {
            line.push_str(&format!(
                "; it goes on from attempt {from}, which was cut off"
            ));
            if anew {
                line.push_str(", in a new conversation that began with a summary of it");
            }
        }
        said.placements.push(line);
    }
    Ok(said)
}

type Said = (ExplainTaskResponse, RunId, Vec<Ran>);

fn live_task(
    state: &State,
    now: Timestamp,
    id: RunId,
    name: &str,
    troubles: &BTreeMap<WorkerId, String>,
) -> Result<Said, Status> {
    let run = state
        .run(id)
        .ok_or_else(|| Status::not_found("the run has just ended; ask again"))?;
    if name.is_empty() {
        return Ok((whole(state, now, run), id, vec![]));
    }
    let ix = task_named(run, name)?;
    let key = TaskKey { run: id, task: ix };
    let explanation = explain(state, now, key);
    let (ran, elsewhere) = history(run, ix);
    let mut reasons = vec![explanation.to_string()];
    let mut remedies =
        ended_remedies(run, ix).unwrap_or_else(|| explanation.help().into_iter().collect());
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
    let pools = match &explanation {
        Explanation::Waiting { verify, .. } => needs(run, ix, *verify)
            .map(|needs| prospects_of(state, now, needs))
            .unwrap_or_default(),
        _ => vec![],
    };
    let said = ExplainTaskResponse {
        pools,
        state: run
            .task(ix)
            .map(view::task_state)
            .unwrap_or_default()
            .to_owned(),
        reasons,
        remedies,
        placements: vec![],
        elsewhere,
    };
    Ok((said, id, ran))
}

/// Gives what the next attempt or verify of a task needs of a worker.
fn needs(run: &Run, ix: TaskIx, verify: bool) -> Option<&Requirement> {
    let profile = run.profile(ix)?;
    if verify {
        profile.verify.as_ref().map(|verify| &verify.requirement)
    } else {
        Some(&profile.requirement)
    }
}

/// Gives the last attempts of a task, the newest first, and what would move it.
fn history(run: &Run, ix: TaskIx) -> (Vec<Ran>, String) {
    let attempts = run.task(ix).map_or(&[][..], |task| task.attempts());
    let ran: Vec<Ran> = attempts
        .iter()
        .rev()
        .take(ATTEMPTS)
        .map(|attempt| Ran {
            number: attempt.number,
            lease: attempt.lease,
            worker: attempt.worker.clone(),
            continues: attempt.continues,
            anew: run.task(ix).is_some_and(|task| task.began_anew(attempt)),
        })
        .collect();
    let elsewhere = ran.first().map(|last| movable(run, ix, &last.worker));
    (ran, elsewhere.unwrap_or_default())
}

/// Explains what keeps a run from going on: its tasks by what they wait for.
fn whole(state: &State, now: Timestamp, run: &Run) -> ExplainTaskResponse {
    let mut reasons: BTreeMap<String, (Vec<String>, usize)> = BTreeMap::new();
    let mut remedies = vec![];
    let mut running = 0;
    for (ix, task) in run.tasks.iter().enumerate().take(TASKS_LOOKED_AT) {
        let key = TaskKey {
            run: run.id,
            task: TaskIx(u32::try_from(ix).unwrap_or(u32::MAX)),
        };
        let explanation = explain(state, now, key);
        match &explanation {
            Explanation::Running { .. } => running += 1,
            // Those are said by what they depend on.
            Explanation::Blocked { .. } => {}
            Explanation::Final {
                state: "succeeded", ..
            } => {}
            other => {
                let (names, count) = reasons.entry(other.to_string()).or_default();
                *count += 1;
                if names.len() < NAMED {
                    names.push(task.name.to_string());
                }
                let help = match other {
                    Explanation::Final { .. } => Some(format!(
                        "`coordinator retry {}` opens what did not succeed again",
                        run.name
                    )),
                    other => other.help(),
                };
                if let Some(help) = help.filter(|help| !remedies.contains(help)) {
                    remedies.push(help);
                }
            }
        }
    }
    let mut lines: Vec<(usize, String)> = reasons
        .into_iter()
        .map(|(reason, (names, count))| {
            let more = match count - names.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            (count, format!("{}{more}: {reason}", names.join(", ")))
        })
        .collect();
    lines.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
    lines.truncate(REASONS);
    let mut said: Vec<String> = lines.into_iter().map(|(_, line)| line).collect();
    if running > 0 {
        said.insert(0, format!("{running} of its tasks run"));
    }
    if said.is_empty() {
        said.push("nothing keeps it back: it waits for itself to be integrated".to_owned());
    }
    remedies.truncate(REASONS);
    ExplainTaskResponse {
        state: view::run_state(run).to_owned(),
        reasons: said,
        remedies,
        ..ExplainTaskResponse::default()
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

/// Finds what was seen when leases were granted, in the events of their run.
async fn placements(
    runs: &Runs,
    run: RunId,
    ran: &[Ran],
) -> Result<BTreeMap<LeaseId, Placement>, Status> {
    let mut wanted: Vec<LeaseId> = ran.iter().map(|ran| ran.lease).collect();
    runs.readers()
        .read(move |reader| {
            let mut found = BTreeMap::new();
            let mut from = 1;
            while !wanted.is_empty() && from < EVENTS_SEARCHED {
                let events = reader.run_events(run, from, EVENTS_PER_READ_MAX)?;
                let Some(last) = events.last() else { break };
                from = last.seq + 1;
                for event in &events {
                    if let EventKind::LeaseGranted {
                        lease, placement, ..
                    } = &event.kind
                        && let Some(at) = wanted.iter().position(|wanted| wanted == lease)
                    {
                        wanted.swap_remove(at);
                        found.insert(*lease, *placement);
                    }
                }
            }
            Ok(found)
        })
        .await
        .map_err(status::of_read)
}

fn task_named(run: &Run, name: &str) -> Result<TaskIx, Status> {
    let found = run.tasks.iter().position(|task| *task.name == *name);
    found
        .and_then(|ix| u32::try_from(ix).ok())
        .map(TaskIx)
        .ok_or_else(|| no_task(run, name))
}

fn no_task(run: &Run, name: &str) -> Status {
    Status::not_found(format!("no task {name:?} in run {}", run.name))
}

/// Explains a task of an archived run, in which nothing moves any more.
fn archived(run: &Run, name: &str) -> Result<Said, Status> {
    if name.is_empty() {
        return Ok((ended(run), run.id, vec![]));
    }
    let ix = task_named(run, name)?;
    let task = run.task(ix).ok_or_else(|| no_task(run, name))?;
    let reason = match &task.state {
        TaskState::Succeeded { .. } => "it succeeded".to_owned(),
        TaskState::Failed { failure, .. } => {
            format!("it failed: {} ({})", failure.message, failure.class)
        }
        TaskState::Skipped { because, .. } => {
            let because = run.task(*because);
            let name = because
                .map(|task| task.name.to_string())
                .unwrap_or_default();
            let why = match because.map(|task| &task.state) {
                Some(TaskState::Failed { failure, .. }) => {
                    format!(", which failed: {} ({})", failure.message, failure.class)
                }
                _ => " did not succeed".to_owned(),
            };
            format!("it was skipped because of {name}{why}")
        }
        TaskState::Cancelled { by, reason, .. } if reason.is_empty() => {
            format!("it was cancelled by {by}")
        }
        TaskState::Cancelled { by, reason, .. } => format!("it was cancelled by {by}: {reason}"),
        TaskState::Aborted { reason, .. } => format!("it was aborted: {reason}"),
        TaskState::Blocked { .. }
        | TaskState::Basing { .. }
        | TaskState::Ready { .. }
        | TaskState::Leased { .. }
        | TaskState::Verifying { .. }
        | TaskState::Parked(_) => "the run had ended before it began".to_owned(),
    };
    let (ran, elsewhere) = history(run, ix);
    let said = ExplainTaskResponse {
        state: view::task_state(task).to_owned(),
        reasons: vec![reason],
        remedies: ended_remedies(run, ix).unwrap_or_else(|| vec![again(run, name)]),
        elsewhere,
        ..ExplainTaskResponse::default()
    };
    Ok((said, run.id, ran))
}

/// Says what can be done about a task that has ended; `None` for one that has not.
fn ended_remedies(run: &Run, ix: TaskIx) -> Option<Vec<String>> {
    let task = run.task(ix)?;
    let remedies = match &task.state {
        TaskState::Succeeded { .. } => vec![],
        TaskState::Failed { failure, .. } => {
            let advice = advice(failure.class, run, &task.name);
            advice.into_iter().chain([again(run, &task.name)]).collect()
        }
        TaskState::Skipped { because, .. } => {
            let because = run.task(*because).map_or("", |task| &task.name);
            vec![format!(
                "`coordinator retry {} {because}` opens both again; `coordinator explain {} \
                 {because}` says more",
                run.name, run.name
            )]
        }
        TaskState::Cancelled { .. } | TaskState::Aborted { .. } => vec![again(run, &task.name)],
        TaskState::Blocked { .. }
        | TaskState::Basing { .. }
        | TaskState::Ready { .. }
        | TaskState::Leased { .. }
        | TaskState::Verifying { .. }
        | TaskState::Parked(_) => return None,
    };
    Some(remedies)
}

fn again(run: &Run, task: &str) -> String {
    format!("`coordinator retry {} {task}` opens it again", run.name)
}

/// Gives what to look at or to change before a failed task is tried again, if that is known.
fn advice(class: FailureClass, run: &Run, task: &str) -> Option<String> {
    let plan = |change: &str| {
        let beginning =
            "a retry does the same task under the same limits, so begin another run with";
        Some(format!("{beginning} {change}"))
    };
    match class {
        FailureClass::AgentFailed => Some(format!(
            "`coordinator logs {} {task}` shows what it printed",
            run.name
        )),
        FailureClass::VerifyFailed => Some(format!(
            "`coordinator logs {} {task} --verify` shows what the verify printed",
            run.name
        )),
        FailureClass::TimedOut => plan("a longer `timeout` or `verify_timeout` in the plan"),
        FailureClass::Stalled => plan("a longer `idle_timeout` in the plan"),
        FailureClass::DiskAllowance => plan("more `disk` in the plan, if it needs that much"),
        FailureClass::AgentUnavailable => {
            Some("install the agent on the workers, or correct its `command`".to_owned())
        }
        FailureClass::SecretUnavailable => {
            Some("start the worker with that secret, or correct its name in the plan".to_owned())
        }
        FailureClass::BaseConflict => {
            plan("one of the two tasks depending on the other, or with `paths` that both claim")
        }
        FailureClass::Authentication => {
            Some("log the agent in on the workers, or give it its provider's key".to_owned())
        }
        FailureClass::UsageLimit => {
            Some("wait until the account may be used again, or give the agent another".to_owned())
        }
        FailureClass::InvalidRequest => plan("a model and settings that the provider takes"),
        FailureClass::ContextWindow => plan("smaller tasks, or a model that reads more"),
        FailureClass::AgentCrashed
        | FailureClass::AgentError
        | FailureClass::Refusal
        | FailureClass::Denied
        | FailureClass::OutputInvalid
        | FailureClass::NoChange => Some(format!(
            "`coordinator logs {} {task}` shows what it said and did",
            run.name
        )),
        FailureClass::RateLimit
        | FailureClass::ProviderCapacity
        | FailureClass::ProviderError
        | FailureClass::Transport
        | FailureClass::WorkerLost
        | FailureClass::Preempted
        | FailureClass::Walltime
        | FailureClass::Workspace
        | FailureClass::Publish
        | FailureClass::ChangeTooLarge
        | FailureClass::IntegrationConflict
        | FailureClass::NotPlaced
        | FailureClass::Internal => None,
    }
}

/// Says how a run has ended.
fn ended(run: &Run) -> ExplainTaskResponse {
    let state = view::run_state(run).to_owned();
    let failed: Vec<&str> = run
        .tasks
        .iter()
        .filter(|task| matches!(task.state, TaskState::Failed { .. }))
        .take(NAMED)
        .map(|task| &*task.name)
        .collect();
    let mut reasons = vec![format!("it has ended: {state}")];
    if !failed.is_empty() {
        let these = failed.join(", ");
        reasons.push(format!(
            "failed: {these}; `coordinator explain {} TASK` says why",
            run.name
        ));
    }
    let remedy = (state != "succeeded").then(|| {
        format!(
            "`coordinator retry {}` opens what did not succeed again",
            run.name
        )
    });
    ExplainTaskResponse {
        state,
        reasons,
        remedies: remedy.into_iter().collect(),
        ..ExplainTaskResponse::default()
    }
}
