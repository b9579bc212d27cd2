//! How much work waits, or will in a moment, by what it needs of a worker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::event::Work;
use crate::ids::{LeaseId, RunId, TaskIx, TaskKey};
use crate::index::{ClassId, RunEntry, Wanted, class_of, may_grow};
use crate::limits;
use crate::schedule::{holder, is_held};
use crate::state::{State, TaskState};
use crate::time::Timestamp;
use crate::worker::Requirement;

/// Work of one kind of need.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Demand {
    pub requirement: Arc<Requirement>,
    /// Could be leased now.
    pub ready: u32,
    /// Will be ready within [`limits::SOON`], by what is known.
    pub soon: u32,
}

/// What the work of all runs wants, and which leases are about to give their slots back.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Wants {
    pub(super) demands: Vec<Demand>,
    /// Their slots serve what is ready soon.
    pub(super) ending: BTreeSet<LeaseId>,
}

/// Gives how much work waits for workers. What cannot run yet however many workers there are is not
/// counted: tasks that are blocked, that others keep back by a path claim, or beyond their run's
/// `max_parallel`. Costs O(waiting work + leases).
#[must_use]
pub fn demands(state: &State, now: Timestamp) -> Vec<Demand> {
    wants(state, now).demands
}

pub(super) fn wants(state: &State, now: Timestamp) -> Wants {
    let mut counts: BTreeMap<ClassId, (u32, u32)> = BTreeMap::new();
    let mut room: BTreeMap<RunId, u32> = BTreeMap::new();
    for (id, RunEntry { run, aux }) in &state.runs {
        if !may_grow(run, aux) {
            continue;
        }
        let max = run.max_parallel.map_or(u32::MAX, |max| max.get());
        let mut left = max.saturating_sub(aux.live);
        let mut claimed = Claimed::default();
        for (class, queue) in &aux.queues {
            let mut ready = u32::from(queue.final_verify && !aux.ending.contains_key(&None));
            let verifies = queue.verifies.iter();
            let verifies = verifies.filter(|(_, _, task)| !aux.ending.contains_key(&Some(*task)));
            ready = ready.saturating_add(u32::try_from(verifies.count()).unwrap_or(u32::MAX));
            for (_, _, task) in queue.attempts.iter().take(limits::DEMAND_SCAN) {
                ready = ready.saturating_add(u32::from(startable(state, *id, *task, &mut claimed)));
            }
            let ready = ready.min(left);
            left = left.saturating_sub(ready);
            if ready > 0 {
                counts.entry(*class).or_default().0 += ready;
            }
        }
        room.insert(*id, left);
    }
    let soon = soon(state, now);
    for (class, run) in soon.wanted {
        let left = room.entry(run).or_default();
        if *left > 0 {
            *left -= 1;
            counts.entry(class).or_default().1 += 1;
        }
    }
    let demands = counts.into_iter().filter_map(|(class, (ready, soon))| {
        let requirement = Arc::clone(&state.index.classes.get(&class)?.requirement);
        Some(Demand {
            requirement,
            ready,
            soon,
        })
    });
    Wants {
        demands: demands.collect(),
        ending: soon.ending,
    }
}

/// Paths of tasks that were counted: of tasks with overlapping claims only one can run.
#[derive(Default)]
struct Claimed(BTreeSet<Arc<str>>);

impl Claimed {
    fn add(&mut self, paths: &[Arc<str>]) -> bool {
        let meets = |path: &Arc<str>| {
            self.0.iter().any(|held| {
                let within = |inner: &str, outer: &str| {
                    outer.is_empty()
                        || inner
                            .strip_prefix(outer)
                            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                };
                within(path, held) || within(held, path)
            })
        };
        if paths.iter().any(meets) {
            return false;
        }
        // Beyond so many the rest is taken to be free of each other: one worker too many is a
        // smaller harm than a slow engine.
        if self.0.len() < limits::PATH_SCAN {
            self.0.extend(paths.iter().cloned());
        }
        true
    }
}

fn startable(state: &State, run: RunId, task: TaskIx, claimed: &mut Claimed) -> bool {
    let Some(entry) = state.runs.get(&run) else {
        return false;
    };
    let key = TaskKey { run, task };
    let paths = entry.run.task(task).map_or(&[][..], |task| &task.paths);
    !entry.aux.ending.contains_key(&Some(task))
        && is_held(state, key).is_none()
        && holder(state, run, task).is_none()
        && claimed.add(paths)
}

#[derive(Default)]
struct Soon {
    wanted: Vec<(ClassId, RunId)>,
    ending: BTreeSet<LeaseId>,
}

/// Finds what will be ready soon: retries whose delay is nearly over, and tasks that wait for
/// nothing but work that is nearly over. How long work takes is known only where a plan says so;
/// what takes an unknown time is not taken to end soon.
fn soon(state: &State, now: Timestamp) -> Soon {
    let mut soon = Soon::default();
    let until = now + limits::SOON;
    let delayed = state.index.delayed.iter();
    for (_, wanted) in delayed
        .take_while(|(at, _)| *at <= until)
        .take(limits::DEMAND_SCAN)
    {
        let run = match wanted {
            Wanted::Attempt(key) | Wanted::Verify(key) => key.run,
            Wanted::FinalVerify(run) => *run,
        };
        let entry = state.runs.get(&run);
        if let Some(class) = entry.and_then(|entry| class_of(&entry.run, &entry.aux, *wanted)) {
            soon.wanted.push((class, run));
        }
    }
    let mut met: BTreeMap<TaskKey, u32> = BTreeMap::new();
    for lease in state.leases() {
        let Some(RunEntry { run, .. }) = state.runs.get(&lease.run) else {
            continue;
        };
        let (task, expected) = match lease.work {
            Work::Attempt { task, .. } => {
                let profile = run.profile(task);
                // Its verify comes in between, for which its own slot serves.
                let expected = profile.filter(|profile| profile.verify.is_none());
                (task, expected.map(|profile| profile.requirement.expected))
            }
            Work::Verify { task, .. } => {
                let verify = run
                    .profile(task)
                    .and_then(|profile| profile.verify.as_ref());
                (task, verify.map(|verify| verify.requirement.expected))
            }
            Work::FinalVerify => continue,
        };
        let known = expected.filter(|expected| expected.ms() > 0);
        let ends = known.and_then(|expected| Some(lease.started_at? + expected));
        if lease.revoked || ends.is_none_or(|ends| ends > until) {
            continue;
        }
        soon.ending.insert(lease.id);
        let dependents = run.task(task).map_or(&[][..], |task| &task.dependents);
        for dependent in dependents.iter().take(limits::DEMAND_SCAN) {
            let key = TaskKey {
                run: lease.run,
                task: *dependent,
            };
            *met.entry(key).or_default() += 1;
        }
    }
    for (key, met) in met {
        let Some(RunEntry { run, aux }) = state.runs.get(&key.run) else {
            continue;
        };
        let Some(TaskState::Blocked { unmet }) = run.task(key.task).map(|task| &task.state) else {
            continue;
        };
        if *unmet == met
            && let Some(class) = class_of(run, aux, Wanted::Attempt(key))
        {
            soon.wanted.push((class, key.run));
        }
    }
    soon
}
