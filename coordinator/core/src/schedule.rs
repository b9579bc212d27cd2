//! Which ready work goes to which free slot.
//!
//! One round grants until no work fits. Each grant goes to the class of work whose first run has
//! the fewest live leases, within that run to verifies before attempts, then by priority and
//! critical path, and to the fitting worker with most free slots; a verify that came back without a
//! verdict goes to the next one. A class that no worker can take
//! is left for the rest of the round, so that a blocked class costs one look at the free workers
//! and not one for each of its tasks.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::event::{Event, EventKind, Placement, Work};
use crate::ids::{AttemptNo, RunId, TaskIx, TaskKey, WorkerId};
use crate::index::{ClassId, Rank, RunEntry, WorkerEntry};
use crate::limits;
use crate::pool::lasts;
use crate::resume::{at_home, home, waits_for_home};
use crate::state::{Link, Run, RunPhase, State, TaskState, VerifyPhase};
use crate::time::{Span, Timestamp};
use crate::worker::{DeclaredAgent, Requirement};

/// Grants leases for work that is ready, at most [`limits::GRANTS_PER_ROUND`]; to be run at the end
/// of each batch. The rest is granted in the next round.
pub fn schedule(state: &mut State, now: Timestamp) -> Vec<Event> {
    state.promote(now);
    let mut events = vec![];
    let mut round = Round::default();
    while events.len() < limits::GRANTS_PER_ROUND && !state.index.available.is_empty() {
        let Some((class, run)) = round.next(state) else {
            break;
        };
        let Some(work) = pick(state, now, class, run) else {
            let learned = round.passed.insert((class, run));
            debug_assert!(learned, "{run} has its turn though it was passed");
            continue;
        };
        let Some((worker, placement)) = place(state, now, class, run, work) else {
            let learned = round.blocked.insert(class);
            debug_assert!(learned, "{class:?} has its turn though it is blocked");
            continue;
        };
        events.push(state.record(now, grant(state, run, work, worker, placement)));
    }
    events
}

/// Moves work whose delay is over into its queue and grants nothing: what [`schedule`] does first,
/// for a coordinator that is to begin nothing new.
pub fn promote(state: &mut State, now: Timestamp) {
    state.promote(now);
}

/// What one round has learned.
#[derive(Default)]
struct Round {
    /// Classes that no worker can take.
    blocked: BTreeSet<ClassId>,
    /// Runs whose work of a class is kept back by path claims, by leases that are still ending, or
    /// for the host that has its conversation.
    passed: BTreeSet<(ClassId, RunId)>,
}

/// Order of turns: fewest live leases, longest without a grant, run, verifies, priority and
/// critical path of the first task.
type Key = (u32, u64, RunId, bool, Option<Rank>);

impl Round {
    /// Finds the class and run whose turn it is.
    fn next(&self, state: &State) -> Option<(ClassId, RunId)> {
        let classes = state.index.classes.iter();
        let open = classes.filter(|(id, _)| !self.blocked.contains(id));
        let keys = open.filter_map(|(id, class)| {
            let mut runs = class.runs.iter();
            let (live, stamp, run) = *runs.find(|turn| !self.passed.contains(&(*id, turn.2)))?;
            let queue = state.runs.get(&run)?.aux.queues.get(id)?;
            let verify = queue.final_verify || !queue.verifies.is_empty();
            let first = queue.verifies.first().or(queue.attempts.first()).copied();
            let key: Key = (live, stamp, run, !verify, first);
            Some((key, *id, run))
        });
        keys.min().map(|(_, class, run)| (class, run))
    }
}

/// Chooses the run's work of a class; `None` when path claims and leases that are still ending keep
/// all of it back.
fn pick(state: &State, now: Timestamp, class: ClassId, id: RunId) -> Option<Work> {
    let RunEntry { run, aux } = state.runs.get(&id)?;
    let queue = aux.queues.get(&class)?;
    // What was told to stop may still run: its place is free once its lease is closed.
    let is_free = |task: Option<TaskIx>| !aux.ending.contains_key(&task);
    if queue.final_verify && is_free(None) {
        return Some(Work::FinalVerify);
    }
    let mut verifies = queue.verifies.iter();
    if let Some((_, _, task)) = verifies.find(|(_, _, task)| is_free(Some(*task))) {
        let attempt = last_attempt(run, *task);
        return Some(Work::Verify {
            task: *task,
            attempt,
        });
    }
    let attempts = queue.attempts.iter();
    let attempts = attempts.filter(|(_, _, task)| is_free(Some(*task)));
    let attempts = attempts.take(limits::PATH_SCAN);
    let requirement = &state.index.classes.get(&class)?.requirement;
    let mut free = attempts.filter(|(_, _, task)| {
        let key = TaskKey {
            run: id,
            task: *task,
        };
        holder(state, id, *task).is_none()
            && (is_held(state, key).is_none() || at_home(state, now, key, requirement).is_some())
    });
    let (_, _, task) = free.next()?;
    let attempt = AttemptNo(last_attempt(run, *task).0.saturating_add(1));
    Some(Work::Attempt {
        task: *task,
        attempt,
    })
}

/// Gives until when a ready task waits for the worker or host that has its conversation.
pub(crate) fn is_held(state: &State, key: TaskKey) -> Option<Timestamp> {
    let run = state.run(key.run)?;
    let until = waits_for_home(run, key.task)?;
    let held = state.index.held.contains(&(until, key));
    let returns = || home(run, key.task).is_some_and(|home| !state.is_over(home.worker));
    (held && returns()).then_some(until)
}

fn last_attempt(run: &Run, ix: TaskIx) -> AttemptNo {
    let attempts = run.task(ix).map_or(&[][..], |task| task.attempts());
    attempts.last().map_or(AttemptNo(0), |last| last.number)
}

/// Finds a task at work whose claim overlaps one of this task's.
pub(crate) fn holder(state: &State, id: RunId, ix: TaskIx) -> Option<(TaskIx, Arc<str>)> {
    let RunEntry { run, aux } = state.runs.get(&id)?;
    if aux.claims.is_empty() {
        return None;
    }
    let claims = &aux.claims;
    run.task(ix)?.paths.iter().find_map(|path| {
        let above = ancestors(path).find_map(|above| claims.get_key_value(above));
        let below = || {
            let mut prefix = path.to_string();
            if !prefix.is_empty() {
                prefix.push('/');
            }
            let mut from = claims.range::<str, _>((
                std::ops::Bound::Included(&*prefix),
                std::ops::Bound::Unbounded,
            ));
            from.next().filter(|(claim, _)| claim.starts_with(&prefix))
        };
        let (claim, task) = above.or_else(below)?;
        Some((*task, claim.clone()))
    })
}

/// Gives the path itself and every folder above it, the whole repository (empty) last.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| {
        if path.is_empty() {
            return None;
        }
        Some(path.rfind('/').map_or("", |end| &path[..end]))
    })
}

/// Finds the worker for the work: the one to go on with a conversation, or the fitting one with
/// most free slots.
fn place(
    state: &State,
    now: Timestamp,
    class: ClassId,
    run: RunId,
    work: Work,
) -> Option<(WorkerId, Placement)> {
    let requirement = &*state.index.classes.get(&class)?.requirement;
    let seen = Placement {
        available: u32::try_from(state.index.available.len()).unwrap_or(u32::MAX),
        ..Placement::default()
    };
    if let Work::Attempt { task, .. } = work
        && let Some(entry) = at_home(state, now, TaskKey { run, task }, requirement)
    {
        let placement = Placement {
            free: entry.aux.listed.unwrap_or_default(),
            continues: true,
            ..seen
        };
        return Some((entry.worker.id.clone(), placement));
    }
    if let Some((id, placement)) = near(state, now, run, work, requirement) {
        return Some((
            id,
            Placement {
                available: seen.available,
                ..placement
            },
        ));
    }
    let available = state.index.available.iter().enumerate();
    let mut fitting = available.filter_map(|(passed, (Reverse(free), id))| {
        let entry = state.workers.get(id)?;
        let fits = heard(state, entry, now) && misfit(entry, requirement, now).is_none();
        fits.then_some((passed, *free, id))
    });
    let (passed, free, id) = match lost(state, run, work) {
        0 => fitting.next()?,
        // Another may have what a worker lacked that a verify came back from: it cannot tell before.
        lost => {
            let candidates: Vec<_> = fitting.take(lost.saturating_add(1)).collect();
            *candidates.get(lost.checked_rem(candidates.len())?)?
        }
    };
    let placement = Placement {
        free,
        passed: u32::try_from(passed).unwrap_or(u32::MAX),
        ..seen
    };
    Some((id.clone(), placement))
}

/// Finds a worker on a host where a dependency of the work ran, if its plan prefers that: of several,
/// the one with most free slots.
fn near(
    state: &State,
    now: Timestamp,
    run: RunId,
    work: Work,
    requirement: &Requirement,
) -> Option<(WorkerId, Placement)> {
    let Work::Attempt { task, .. } = work else {
        return None;
    };
    let run = state.run(run)?;
    if !run.profile(task)?.near {
        return None;
    }
    let dependencies = run.task(task)?.dependencies.iter();
    let lasts = dependencies
        .take(limits::NEAR_SCAN)
        .filter_map(|ix| run.task(*ix)?.attempts().last());
    let hosts: BTreeSet<&Arc<str>> = lasts
        .filter_map(|attempt| Some(&state.worker(&attempt.worker)?.offer.host))
        .collect();
    let mut available = state.index.available.iter();
    available.find_map(|(Reverse(free), id)| {
        let entry = state.workers.get(id)?;
        let fits = hosts.contains(&entry.worker.offer.host)
            && heard(state, entry, now)
            && misfit(entry, requirement, now).is_none();
        let placement = Placement {
            free: *free,
            near: true,
            ..Placement::default()
        };
        fits.then(|| (id.clone(), placement))
    })
}

/// Counts how often a verify was begun and came to no verdict; at most
/// [`limits::VERIFY_CRASH_LIMIT`].
fn lost(state: &State, run: RunId, work: Work) -> usize {
    let verify = match work {
        Work::Attempt { .. } => None,
        Work::Verify { task, .. } => match state.task(TaskKey { run, task }).map(|t| &t.state) {
            Some(TaskState::Verifying { verify, .. }) => Some(verify),
            _ => None,
        },
        Work::FinalVerify => match state.run(run).map(|run| &run.phase) {
            Some(RunPhase::Verifying { verify, .. }) => Some(verify),
            _ => None,
        },
    };
    let lost = verify.map_or(0, VerifyPhase::lost);
    usize::try_from(lost).unwrap_or(0)
}

/// Tells whether the worker was heard lately. A grant answers the worker's last heartbeat, and the
/// lease's time runs from there: with half a TTL gone it would be over too soon.
pub(crate) fn heard(state: &State, entry: &WorkerEntry, now: Timestamp) -> bool {
    match entry.worker.link {
        Link::Up { heard_at, .. } => now.since(heard_at).ms() <= state.clocks.ttl.ms() / 2,
        Link::Down { .. } => false,
    }
}

/// Why a worker cannot take work, apart from its slots.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Misfit {
    Pool(Arc<str>),
    Agent(Arc<str>),
    /// It looked for the program of this agent and did not find it.
    Program(DeclaredAgent),
    /// It has not said yet whether it has this agent.
    Unanswered(DeclaredAgent),
    Label(Arc<str>),
    /// It has less of the resource in all.
    Resource(Arc<str>),
    /// Its machine goes away before the work would be done.
    Walltime {
        /// What there is for work.
        left: Span,
        /// What the work takes by its plan; zero when that is not known.
        expected: Span,
    },
    /// It would have enough if its present leases were over.
    Busy(Arc<str>),
}

/// What a worker has, or a new one would.
#[derive(Clone, Copy)]
pub(crate) struct Offered<'a> {
    pub(crate) pool: &'a str,
    /// `None` when any agent is taken to be there.
    pub(crate) agents: Option<&'a BTreeSet<Arc<str>>>,
    pub(crate) labels: &'a BTreeSet<Arc<str>>,
    pub(crate) resources: &'a BTreeMap<Arc<str>, u64>,
    /// Which declared agents it has or lacks.
    pub(crate) looked: Option<&'a BTreeMap<DeclaredAgent, bool>>,
    /// How long its machine will be there, if that is known.
    pub(crate) left: Option<Span>,
    /// It is a worker that can be asked what it has, not one that is still to come.
    pub(crate) is_there: bool,
}

impl<'a> Offered<'a> {
    pub(crate) fn of(entry: &'a WorkerEntry, now: Timestamp) -> Self {
        let offer = &entry.worker.offer;
        Self {
            pool: &offer.pool,
            agents: Some(&offer.agents),
            labels: &offer.labels,
            resources: &offer.resources,
            looked: Some(&entry.aux.looked),
            left: entry.aux.ends_at.map(|at| at.since(now)),
            is_there: true,
        }
    }
}

/// Gives the first reason why the worker cannot take work of this requirement now.
pub(crate) fn misfit(
    entry: &WorkerEntry,
    requirement: &Requirement,
    now: Timestamp,
) -> Option<Misfit> {
    let offer = &entry.worker.offer;
    lacks(&Offered::of(entry, now), requirement).or_else(|| {
        let mut needs = requirement.resources.iter();
        let short = needs.find(|(name, need)| {
            let total = offer.resources.get(*name).copied().unwrap_or(0);
            let used = entry.aux.used.get(*name).copied().unwrap_or(0);
            total.saturating_sub(used) < **need
        });
        short.map(|(name, _)| Misfit::Busy(name.clone()))
    })
}

/// Gives the first reason why a worker can never take work of this requirement, as far as it is
/// known now.
pub(crate) fn never_fits(entry: &WorkerEntry, requirement: &Requirement) -> Option<Misfit> {
    let offered = Offered {
        left: None,
        ..Offered::of(entry, Timestamp::default())
    };
    lacks(&offered, requirement)
}

/// Gives the first thing that is missing for work of this requirement, other work left aside.
pub(crate) fn lacks(offered: &Offered<'_>, requirement: &Requirement) -> Option<Misfit> {
    let pool = requirement.pool.as_ref();
    if let Some(pool) = pool.filter(|pool| &***pool != offered.pool) {
        return Some(Misfit::Pool(pool.clone()));
    }
    let agent = &requirement.agent;
    match &requirement.declared {
        // Its program may be there although the kind's own is not.
        Some(declared) => match (
            offered.looked.and_then(|looked| looked.get(declared)),
            offered.is_there,
        ) {
            (Some(true), _) | (None, false) => {}
            (Some(false), _) => return Some(Misfit::Program(declared.clone())),
            (None, true) => return Some(Misfit::Unanswered(declared.clone())),
        },
        None if offered.agents.is_some_and(|agents| !agents.contains(agent)) => {
            return Some(Misfit::Agent(agent.clone()));
        }
        None => {}
    }
    let mut labels = requirement.labels.iter();
    if let Some(label) = labels.find(|label| !offered.labels.contains(*label)) {
        return Some(Misfit::Label(label.clone()));
    }
    let mut needs = requirement.resources.iter();
    let short =
        needs.find(|(name, need)| offered.resources.get(*name).copied().unwrap_or(0) < **need);
    if let Some((name, _)) = short {
        return Some(Misfit::Resource(name.clone()));
    }
    let expected = requirement.expected;
    let gone = offered.left.filter(|left| !lasts(*left, expected));
    gone.map(|left| Misfit::Walltime { left, expected })
}

fn grant(
    state: &State,
    run: RunId,
    work: Work,
    worker: WorkerId,
    placement: Placement,
) -> EventKind {
    let incarnation = state.worker(&worker).map(|worker| worker.incarnation);
    EventKind::LeaseGranted {
        run,
        lease: state.next_lease,
        work,
        worker,
        incarnation: incarnation.unwrap_or_default(),
        ttl: state.clocks.ttl,
        placement,
    }
}
