//! Why a task is not running, and what would help.

mod text;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::event::{Placement, Work};
use crate::failure::FailureClass;
use crate::ids::{QuestionId, TaskIx, TaskKey, WorkerId};
use crate::index::{
    RunEntry, Wanted, WorkerEntry, drains, may_grow, rank, task_of, task_wants, unanswered,
};
use crate::pool::{Source, source};
use crate::question::Question;
use crate::resume::{at_home, home};
use crate::schedule::{Misfit, heard, holder, is_held, misfit, never_fits};
use crate::state::{Link, Run, State, Task, TaskState, VerifyPhase};
use crate::time::{Span, Timestamp};
use crate::worker::{DeclaredAgent, Requirement};

/// How many tasks, workers or reasons are named; the rest is counted.
const NAMED: usize = 5;

/// Why a task stands where it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Explanation {
    /// No such task is live.
    Unknown,
    /// Dependencies have not succeeded yet: their names and states, and how many more there are.
    Blocked {
        by: Vec<(Arc<str>, &'static str)>,
        more: usize,
    },
    /// The coordinator merges its dependencies.
    Merging { since: Timestamp },
    /// A retry delay; with the class of the last failure, if there was one.
    Delayed {
        left: Span,
        after: Option<FailureClass>,
        verify: bool,
    },
    /// It could run, but nobody takes it.
    Waiting {
        verify: bool,
        why: Waiting,
        /// What pools do about it, if it is for want of a worker.
        source: Option<Source>,
    },
    /// It runs, or its verify does; `silent` says for how long nothing was heard of the worker, if that is
    /// longer than it should be.
    Running {
        worker: WorkerId,
        verify: bool,
        silent: Option<Span>,
    },
    /// Its agent waits for a person; `parked` when it has given up its slot.
    Asking {
        question: QuestionId,
        text: Box<str>,
        /// How many more of its questions nobody has answered.
        more: usize,
        parked: bool,
    },
    /// It is final.
    Final {
        state: &'static str,
        /// The failed task because of which it was skipped.
        because: Option<Arc<str>>,
        detail: Box<str>,
        /// What a person can do about its failure, besides trying again.
        remedy: Option<&'static str>,
    },
}

/// Why work that could run has no slot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Waiting {
    /// The run has as many leases as it allows itself.
    RunLimit { max: u32 },
    /// An earlier attempt or verify of the task was told to stop and may still run.
    Ending { worker: Arc<str> },
    /// A task at work claims an overlapping path.
    PathHeld { by: Arc<str>, path: Arc<str> },
    /// It goes on with a conversation that a worker has on its disk, and waits for that one.
    Conversation { worker: WorkerId, left: Span },
    /// No worker is connected.
    NoWorkers,
    /// Each connected worker lacks something: what, and which workers lack it.
    NoneFits { lacks: Vec<(Lack, Vec<WorkerId>)> },
    /// Workers would fit but take nothing now.
    FittingBusy {
        /// All slots taken, by their leases or by what they say, or no heartbeat lately.
        full: usize,
        draining: usize,
        /// Slots free, but a resource is taken by other leases.
        resources: usize,
        /// The machine goes away too soon.
        leaving: usize,
        /// The longest time that any of these has for work, and what this one takes.
        time: Option<(Span, Span)>,
        /// Have not said yet whether they have the agent.
        asked: usize,
        /// Slots whose agents wait for an answer of a person.
        people: usize,
        /// How much of this run goes first.
        ahead: usize,
    },
    /// A worker is free: the next round grants it.
    Soon,
}

/// What a worker lacks for good.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Lack {
    Pool(Arc<str>),
    Agent(Arc<str>),
    /// The program of a declared agent, for which the worker has looked.
    Program(DeclaredAgent),
    Label(Arc<str>),
    Resource(Arc<str>),
}

/// Explains why a task is not running. Costs O(dependencies + workers).
#[must_use]
pub fn explain(state: &State, now: Timestamp, key: TaskKey) -> Explanation {
    let found = state
        .run(key.run)
        .and_then(|run| Some((run, run.task(key.task)?)));
    let Some((run, task)) = found else {
        return Explanation::Unknown;
    };
    match &task.state {
        TaskState::Blocked { .. } => blocked(run, task),
        TaskState::Basing { since } => Explanation::Merging { since: *since },
        TaskState::Ready { not_before, .. } => waiting(state, now, run, key, *not_before),
        TaskState::Verifying {
            verify: VerifyPhase::Waiting { not_before, .. },
            ..
        } => waiting(state, now, run, key, *not_before),
        TaskState::Leased {
            lease, awaiting, ..
        } => asking(awaiting, false).unwrap_or_else(|| running(state, now, *lease, false)),
        TaskState::Verifying {
            verify: VerifyPhase::Leased { lease, .. },
            ..
        } => running(state, now, *lease, true),
        TaskState::Parked(parked) => {
            asking(&parked.questions, true).unwrap_or(Explanation::Unknown)
        }
        TaskState::Succeeded { .. }
        | TaskState::Failed { .. }
        | TaskState::Cancelled { .. }
        | TaskState::Aborted { .. }
        | TaskState::Skipped { .. } => ended(run, task),
    }
}

/// Says why work ran on a worker, from what was seen when its lease was granted.
#[must_use]
pub fn placed(worker: &WorkerId, seen: Placement) -> String {
    let Placement {
        free,
        available,
        passed,
        continues,
        near,
    } = seen;
    let slots = if free == 1 {
        "1 slot"
    } else {
        &format!("{free} slots")
    };
    if free == 0 {
        format!("on {worker}; why there is not known, since the lease is older than this record")
    } else if continues {
        format!("on {worker}, which has the conversation that goes on")
    } else if near {
        format!("on {worker}, on whose host one of its dependencies ran, as its plan prefers")
    } else if available <= 1 {
        format!("on {worker}, the only worker that had a slot free")
    } else if passed == 0 {
        format!(
            "on {worker}: with {slots} free it had the most of the {available} workers that had any"
        )
    } else {
        let others = if passed == 1 {
            "1 worker"
        } else {
            &format!("{passed} workers")
        };
        format!(
            "on {worker}: with {slots} free it had the most of those that fit; {others} with as many \
             or more did not fit"
        )
    }
}

/// Says which needs decide where a task runs, and what would move it; for one that has been placed.
#[must_use]
pub fn movable(run: &Run, task: TaskIx, worker: &WorkerId) -> String {
    let requirement = run.profile(task).map(|profile| &profile.requirement);
    let mut needs = vec![];
    if let Some(requirement) = requirement {
        needs.push(format!("agent {}", requirement.agent));
        needs.extend(requirement.pool.iter().map(|pool| format!("pool {pool}")));
        needs.extend(
            requirement
                .labels
                .iter()
                .map(|label| format!("label {label}")),
        );
        let resources = requirement.resources.iter();
        needs.extend(resources.map(|(name, amount)| format!("{amount} {name}")));
    }
    format!(
        "it needs {}: other `labels`, `resources` or `pool` in the plan choose other workers, and \
         `coordinator drain {worker}` keeps new work away from that one",
        needs.join(", ")
    )
}

fn blocked(run: &Run, task: &Task) -> Explanation {
    let dependencies = task.dependencies.iter().filter_map(|ix| run.task(*ix));
    let unmet = dependencies.filter(|dependency| !dependency.state.is_succeeded());
    let named = |task: &Task| (Arc::clone(&task.name), task.state.name());
    let mut by: Vec<_> = unmet.map(named).collect();
    let more = by.len().saturating_sub(NAMED);
    by.truncate(NAMED);
    Explanation::Blocked { by, more }
}

fn asking(questions: &[Question], parked: bool) -> Option<Explanation> {
    let oldest = unanswered(questions)?;
    let open = questions.iter().filter(|open| open.answer.is_none());
    Some(Explanation::Asking {
        question: oldest.id,
        text: oldest.asking.title.clone(),
        more: open.count().saturating_sub(1),
        parked,
    })
}

fn running(state: &State, now: Timestamp, lease: crate::LeaseId, verify: bool) -> Explanation {
    state.lease(lease).map_or(Explanation::Unknown, |lease| {
        let worker = lease.worker.clone();
        let entry = state.workers.get(&worker);
        let silent = entry.filter(|entry| !heard(state, entry, now));
        let silent = silent.map(|entry| match entry.worker.link {
            Link::Up { heard_at, .. } => now.since(heard_at),
            Link::Down { since } => now.since(since),
        });
        Explanation::Running {
            worker,
            verify,
            silent,
        }
    })
}

fn ended(run: &Run, task: &Task) -> Explanation {
    let mut because = None;
    let mut remedy = None;
    let detail: Box<str> = match &task.state {
        TaskState::Failed { failure, .. } => {
            remedy = failure.class.remedy();
            format!(": {} ({})", failure.message, failure.class).into()
        }
        TaskState::Cancelled { by, reason, .. } if reason.is_empty() => format!(" by {by}").into(),
        TaskState::Cancelled { by, reason, .. } => format!(" by {by}: {reason}").into(),
        TaskState::Aborted { reason, .. } => format!(": {reason}").into(),
        TaskState::Skipped { because: ix, .. } => {
            because = run.task(*ix).map(|task| Arc::clone(&task.name));
            let task = run.task(*ix);
            match task.map(|task| &task.state) {
                Some(TaskState::Failed { failure, .. }) => {
                    format!("failed: {} ({})", failure.message, failure.class).into()
                }
                Some(state) => format!("is {}", state.name()).into(),
                None => "is gone".into(),
            }
        }
        _ => "".into(),
    };
    Explanation::Final {
        state: task.state.name(),
        because,
        detail,
        remedy,
    }
}

fn waiting(
    state: &State,
    now: Timestamp,
    run: &Run,
    key: TaskKey,
    not_before: Timestamp,
) -> Explanation {
    let task = run.task(key.task);
    let verify = task.is_some_and(|task| matches!(task.state, TaskState::Verifying { .. }));
    if not_before > now {
        let history = task.and_then(|task| task.history.as_ref());
        let last = history.and_then(|history| history.last_failure.as_ref());
        return Explanation::Delayed {
            left: not_before.since(now),
            after: last.map(|failure| failure.class),
            verify,
        };
    }
    let attempt = crate::AttemptNo(0);
    let work = if verify {
        Work::Verify {
            task: key.task,
            attempt,
        }
    } else {
        Work::Attempt {
            task: key.task,
            attempt,
        }
    };
    let why = match run.requirement(work) {
        Some(requirement) => unplaced(state, now, key, verify, requirement),
        None => Waiting::Soon,
    };
    let wants_worker = matches!(
        why,
        Waiting::NoWorkers | Waiting::NoneFits { .. } | Waiting::FittingBusy { .. }
    );
    let requirement = run.requirement(work).filter(|_| wants_worker);
    let source = requirement.and_then(|requirement| source(state, now, requirement));
    // Those that are there may be free for it soon; a pool matters then if it would bring more.
    let matters = |source: &Source| match why {
        Waiting::FittingBusy {
            full: 0,
            resources: 0,
            asked: 0,
            ..
        } => true,
        Waiting::FittingBusy { .. } => !matches!(source, Source::Starts { .. }),
        _ => true,
    };
    let source = source.filter(matters);
    Explanation::Waiting {
        verify,
        why,
        source,
    }
}

fn unplaced(
    state: &State,
    now: Timestamp,
    key: TaskKey,
    verify: bool,
    requirement: &Requirement,
) -> Waiting {
    let Some(RunEntry { run, aux }) = state.runs.get(&key.run) else {
        return Waiting::Soon;
    };
    // First, since no waiting helps.
    if let Some(lacks) = none_fits(state, requirement) {
        return Waiting::NoneFits { lacks };
    }
    if !may_grow(run, aux) {
        let max = run.max_parallel.map_or(0, |max| max.get());
        return Waiting::RunLimit { max };
    }
    if aux.ending.contains_key(&Some(key.task)) {
        let mut leases = state.leases_of_run(key.run);
        let ending = leases.find(|lease| lease.revoked && task_of(lease.work) == Some(key.task));
        return Waiting::Ending {
            worker: ending.map_or_else(|| "?".into(), |lease| lease.worker.as_str().into()),
        };
    }
    if !verify && let Some((by, path)) = holder(state, key.run, key.task) {
        let by = run
            .task(by)
            .map_or_else(|| "?".into(), |task| Arc::clone(&task.name));
        return Waiting::PathHeld { by, path };
    }
    if !verify
        && let Some(until) = is_held(state, key)
        && at_home(state, now, key, requirement).is_none()
        && let Some(home) = home(run, key.task)
    {
        return Waiting::Conversation {
            worker: home.worker.clone(),
            left: until.since(now),
        };
    }
    if connected(state).next().is_none() {
        return Waiting::NoWorkers;
    }
    let (mut full, mut draining, mut resources, mut free, mut asked) = (0, 0, 0, 0, 0);
    let mut people = 0;
    let (mut leaving, mut time) = (0, None);
    for entry in connected(state) {
        let never = never_fits(entry, requirement);
        if never.clone().and_then(Lack::of).is_some() {
            continue;
        }
        if drains(&entry.worker) || state.is_shut(&entry.worker.id).is_some() {
            draining += 1;
            continue;
        }
        people += waits_for_people(state, entry);
        // No waiting helps, whether it is full or not.
        let misfit = misfit(entry, requirement, now);
        if let Some(Misfit::Walltime { left, expected }) = misfit {
            leaving += 1;
            time = time.max(Some((left, expected)));
        } else if entry.aux.listed.is_none() || !heard(state, entry, now) {
            full += 1;
        } else if never.is_some() {
            asked += 1;
        } else {
            match misfit {
                Some(_) => resources += 1,
                None => free += 1,
            }
        }
    }
    if free > 0 {
        return Waiting::Soon;
    }
    Waiting::FittingBusy {
        full,
        draining,
        resources,
        leaving,
        time,
        asked,
        people,
        ahead: ahead(run, aux, key),
    }
}

/// Counts the slots of a worker whose agents wait for a person.
fn waits_for_people(state: &State, entry: &WorkerEntry) -> usize {
    let leases = state.leases_of_worker(&entry.worker.id);
    let tasks = leases.filter_map(|lease| state.task(state.task_of(lease.id)?));
    tasks
        .filter(|task| unanswered(task.questions()).is_some())
        .count()
}

fn connected(state: &State) -> impl Iterator<Item = &WorkerEntry> {
    let all = state.workers.values();
    all.filter(|entry| matches!(entry.worker.link, Link::Up { .. }))
}

/// Tells what the connected workers lack if there are some and none could ever do the work.
fn none_fits(state: &State, requirement: &Requirement) -> Option<Vec<(Lack, Vec<WorkerId>)>> {
    let mut lacks: BTreeMap<Lack, Vec<WorkerId>> = BTreeMap::new();
    for entry in connected(state) {
        let lack = never_fits(entry, requirement).and_then(Lack::of)?;
        lacks.entry(lack).or_default().push(entry.worker.id.clone());
    }
    let mut lacks: Vec<(Lack, Vec<WorkerId>)> = lacks.into_iter().collect();
    lacks.sort_by_key(|(_, workers)| std::cmp::Reverse(workers.len()));
    lacks.truncate(NAMED);
    (!lacks.is_empty()).then_some(lacks)
}

/// Counts the work of the run and class that goes before the task.
fn ahead(run: &Run, aux: &crate::index::RunAux, key: TaskKey) -> usize {
    let wanted = run.task(key.task).and_then(|task| task_wants(key, task));
    let Some((wanted, _)) = wanted else {
        return 0;
    };
    let class = crate::index::class_of(run, aux, wanted);
    let Some(queue) = class.and_then(|class| aux.queues.get(&class)) else {
        return 0;
    };
    let own = rank(run, key.task);
    match wanted {
        Wanted::Verify(_) => queue.verifies.range(..own).count(),
        Wanted::Attempt(_) | Wanted::FinalVerify(_) => {
            queue.verifies.len() + queue.attempts.range(..own).count()
        }
    }
}

impl Lack {
    fn of(misfit: Misfit) -> Option<Self> {
        match misfit {
            Misfit::Pool(name) => Some(Self::Pool(name)),
            Misfit::Agent(name) => Some(Self::Agent(name)),
            Misfit::Label(name) => Some(Self::Label(name)),
            Misfit::Resource(name) => Some(Self::Resource(name)),
            Misfit::Program(agent) => Some(Self::Program(agent)),
            Misfit::Busy(_) | Misfit::Unanswered(_) | Misfit::Walltime { .. } => None,
        }
    }
}
