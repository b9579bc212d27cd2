//! What must be true of every state between two steps. Costs O(everything): for tests and, on small
//! states, debug builds.

use std::collections::{BTreeMap, BTreeSet};

use crate::event::Work;
use crate::ids::{LeaseId, TaskIx, TaskKey};
use crate::index::{ClassId, RunAux, RunEntry, Timer, Wanted, class_of, may_grow, rank, task_of};
use crate::index::{free_slots, run_deadline, run_wants, task_deadline, task_wants, unanswered};
use crate::limits;
use crate::pool::Phase;
use crate::resume::waits_for_home;
use crate::state::{Lease, Link, Run, RunPhase, State, Task, TaskState, VerifyPhase, timeout_at};
use crate::time::Timestamp;

type Checked = Result<(), String>;

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(what()) }
}

/// Checks the whole state.
///
/// # Errors
/// Says what does not hold.
pub fn check(state: &State) -> Checked {
    for run in state.runs() {
        ensure(run.id < state.next_run, || format!("{} is too new", run.id))?;
        check_run(run)?;
        check_tasks(state, run)?;
    }
    for lease in state.leases() {
        check_lease(state, lease)?;
    }
    check_workers(state)?;
    check_allocations(state)?;
    check_timers(state)?;
    check_queues(state)?;
    check_lists(state)
}

fn check_allocations(state: &State) -> Checked {
    for (id, held) in &state.allocations {
        ensure(
            held.id == *id && *id < state.next_allocation && held.first <= *id,
            || format!("allocation {id} is too new or misplaced"),
        )?;
        let named = held.external.is_some() || held.phase == Phase::Wanted;
        ensure(named, || format!("allocation {id} runs without a name"))?;
    }
    for (name, pool) in &state.pools {
        let twice = pool.suspects.keys().find(|host| {
            pool.quarantined.contains_key(*host)
                && pool.suspects[*host].len() >= limits::QUARANTINE_TASKS
        });
        ensure(twice.is_none(), || {
            format!("pool {name} would quarantine {twice:?} twice")
        })?;
    }
    Ok(())
}

/// Checks that a run holds together by itself, with indexes left out. Safe on any data.
///
/// # Errors
/// Says what does not hold.
pub fn check_run(run: &Run) -> Checked {
    let all_final = run.tasks.iter().all(|task| task.state.is_final());
    ensure(matches!(run.phase, RunPhase::Active) || all_final, || {
        format!("{} is past its tasks but some are open", run.id)
    })?;
    let mut edges = 0usize;
    for (ix, task) in run.indexed() {
        let whose = || format!("task {} of {}", task.name, run.id);
        ensure(run.profile(ix).is_some(), || {
            format!("{} has no profile", whose())
        })?;
        for dependency in &task.dependencies {
            let known = run.task(*dependency);
            let listed = known.is_some_and(|d| d.dependents.binary_search(&ix).is_ok());
            ensure(listed && *dependency != ix, || {
                format!("{}: loose edge", whose())
            })?;
        }
        edges += task.dependencies.len();
        if let TaskState::Blocked { unmet } = task.state {
            let met = |d: &&TaskIx| run.task(**d).is_some_and(|task| task.state.is_succeeded());
            let met = task.dependencies.iter().filter(met).count();
            let left = task.dependencies.len() - met;
            ensure(usize::try_from(unmet) == Ok(left), || {
                format!("{} counts {unmet} unmet dependencies of {left}", whose())
            })?;
        } else if !matches!(
            task.state,
            TaskState::Skipped { .. } | TaskState::Cancelled { .. } | TaskState::Aborted { .. }
        ) {
            let mut dependencies = task.dependencies.iter().filter_map(|ix| run.task(*ix));
            ensure(dependencies.all(|d| d.state.is_succeeded()), || {
                format!(
                    "{} is {} before its dependencies",
                    whose(),
                    task.state.name()
                )
            })?;
        }
        check_history(run, task).map_err(|what| format!("{}: {what}", whose()))?;
    }
    let back: usize = run.tasks.iter().map(|task| task.dependents.len()).sum();
    ensure(edges == back, || {
        format!("{} has edges one way only", run.id)
    })
}

fn check_history(run: &Run, task: &Task) -> Checked {
    let Some(history) = &task.history else {
        let needs = matches!(
            task.state,
            TaskState::Leased { .. }
                | TaskState::Verifying { .. }
                | TaskState::Parked(_)
                | TaskState::Succeeded { .. }
        );
        return ensure(!needs, || "at work without a history".into());
    };
    let mut last = (0, LeaseId(0));
    for attempt in &history.attempts {
        let this = (attempt.number.0, attempt.lease);
        ensure(this.0 == last.0 + 1 && this.1 > last.1, || {
            format!("attempt {} follows {}", this.0, last.0)
        })?;
        last = this;
    }
    let open = history
        .attempts
        .iter()
        .filter(|attempt| attempt.end.is_none())
        .count();
    let wanted = usize::from(matches!(task.state, TaskState::Leased { .. }));
    ensure(open == wanted, || {
        format!("{open} attempts without an end, not {wanted}")
    })?;
    let retries = run
        .profiles
        .get(usize::from(task.profile))
        .map_or(0, |p| p.retries);
    ensure(history.counted <= retries.saturating_add(1), || {
        format!("{} counted failures, {retries} retries", history.counted)
    })?;
    ensure(history.crashes <= limits::CRASH_LIMIT, || {
        format!("{} uncounted failures", history.crashes)
    })?;
    ensure(history.departures <= limits::DEPARTURE_LIMIT, || {
        format!("{} machines that went away", history.departures)
    })?;
    ensure(history.deferrals <= limits::PROVIDER_LIMIT, || {
        format!("{} failures of the provider", history.deferrals)
    })
}

/// Everything that a task's state promises about leases and questions.
fn check_tasks(state: &State, run: &Run) -> Checked {
    let mut open = 0u32;
    for (ix, task) in run.indexed() {
        open += u32::from(!task.state.is_final());
        let key = TaskKey {
            run: run.id,
            task: ix,
        };
        let holds = |id: LeaseId, verify: bool| {
            let lease = state.lease(id);
            let fits = lease.is_some_and(|lease| {
                !lease.revoked
                    && match lease.work {
                        Work::Attempt { task, .. } => !verify && task == ix,
                        Work::Verify { task, .. } => verify && task == ix,
                        Work::FinalVerify => false,
                    }
            });
            ensure(fits, || {
                format!("{key} names lease {id}, which is not its live one")
            })
        };
        match &task.state {
            TaskState::Leased { lease, .. } => holds(*lease, false)?,
            TaskState::Verifying {
                verify: VerifyPhase::Leased { lease, .. },
                ..
            } => {
                holds(*lease, true)?;
            }
            _ => {}
        }
        check_questions(state, key, task)?;
    }
    let counted = state.open_tasks(run.id);
    ensure(open == counted, || {
        format!("{} counts {counted} open of {open}", run.id)
    })
}

/// Questions are listed, within bounds, asked once each, and stop the clock while they wait.
fn check_questions(state: &State, key: TaskKey, task: &Task) -> Checked {
    let open = task.questions();
    for question in open {
        ensure(
            state.index.questions.get(&question.id) == Some(&key)
                && question.id < state.next_question,
            || format!("question {} is not listed", question.id),
        )?;
    }
    for attempt in task.attempts() {
        for past in &attempt.asked {
            let listed = state.index.past_questions.get(&past.id) == Some(&key);
            ensure(listed && past.id < state.next_question, || {
                format!("closed question {} is not listed", past.id)
            })?;
        }
    }
    let Some(last) = task.attempts().last() else {
        return ensure(open.is_empty(), || format!("{key} asks without an attempt"));
    };
    let past = last.asked.iter().map(|past| past.number);
    let numbers: Vec<u32> = open.iter().map(|open| open.number).chain(past).collect();
    let distinct: BTreeSet<&u32> = numbers.iter().collect();
    ensure(distinct.len() == numbers.len(), || {
        format!("{key} asks one question twice: {numbers:?}")
    })?;
    ensure(
        open.len() <= limits::OPEN_QUESTIONS && numbers.len() <= limits::QUESTIONS_PER_ATTEMPT,
        || format!("{key} asks {} questions", numbers.len()),
    )?;
    let waits = matches!(task.state, TaskState::Leased { .. }) && unanswered(open).is_some();
    ensure(last.waiting_since.is_some() == waits, || {
        format!("{key} waits since {:?}", last.waiting_since)
    })?;
    if let TaskState::Parked(parked) = &task.state {
        ensure(unanswered(&parked.questions).is_some(), || {
            format!("{key} is parked for nothing")
        })?;
    }
    Ok(())
}

fn check_lease(state: &State, lease: &Lease) -> Checked {
    let id = lease.id;
    ensure(id < state.next_lease, || format!("lease {id} is too new"))?;
    let Some(RunEntry { run, aux }) = state.runs.get(&lease.run) else {
        return Err(format!("lease {id} outlives its run"));
    };
    let Some(worker) = state.workers.get(&lease.worker) else {
        return Err(format!("lease {id} outlives its worker"));
    };
    let listed = aux.leases.contains(&id) && worker.aux.leases.contains(&id);
    ensure(listed, || format!("lease {id} is not listed"))?;
    ensure(lease.incarnation <= worker.worker.incarnation, || {
        format!("lease {id} of the future")
    })?;
    if lease.revoked {
        return Ok(());
    }
    let current = match lease.work {
        Work::Attempt { task, .. } => match run.task(task).map(|task| &task.state) {
            Some(TaskState::Leased { lease, .. }) => Some(*lease),
            _ => None,
        },
        Work::Verify { task, .. } => match run.task(task).map(|task| &task.state) {
            Some(TaskState::Verifying {
                verify: VerifyPhase::Leased { lease, .. },
                ..
            }) => Some(*lease),
            _ => None,
        },
        Work::FinalVerify => match &run.phase {
            RunPhase::Verifying {
                verify: VerifyPhase::Leased { lease, .. },
                ..
            } => Some(*lease),
            _ => None,
        },
    };
    ensure(current == Some(id), || {
        format!("live lease {id} has no work")
    })
}

fn check_workers(state: &State) -> Checked {
    let (mut listed, mut held) = (0, 0);
    for (id, entry) in &state.workers {
        let aux = &entry.aux;
        held += aux.leases.len();
        let own = |id: &LeaseId| {
            state
                .lease(*id)
                .is_some_and(|l| l.worker == entry.worker.id)
        };
        ensure(aux.leases.iter().all(own), || {
            format!("worker {id} lists other leases")
        })?;
        let mut used = BTreeMap::new();
        for lease in state.leases_of_worker(id) {
            let run = state.run(lease.run);
            let requirement = run.and_then(|run| run.requirement(lease.work));
            for (name, amount) in requirement.iter().flat_map(|r| &r.resources) {
                *used.entry(name.clone()).or_insert(0u64) += amount;
            }
        }
        used.retain(|_, amount| *amount > 0);
        ensure(used == aux.used, || {
            format!("worker {id} counts other resources")
        })?;
        let shut = state.is_shut(id).is_some();
        let free = if shut {
            0
        } else {
            free_slots(&entry.worker, aux)
        };
        ensure(aux.listed == (free > 0).then_some(free), || {
            format!("worker {id} is misplaced")
        })?;
        if free > 0 {
            listed += 1;
            let place = (std::cmp::Reverse(free), id.clone());
            let found = state.index.available.contains(&place);
            ensure(found, || format!("worker {id} is not offered"))?;
        }
    }
    ensure(held == state.leases.len(), || {
        "some worker does not list its leases".into()
    })?;
    ensure(state.index.available.len() == listed, || {
        "workers offered twice".into()
    })
}

/// Every state that can wait has a deadline, and there are no others.
fn check_timers(state: &State) -> Checked {
    let mut wanted: BTreeSet<(Timestamp, Timer)> = BTreeSet::new();
    for run in state.runs() {
        wanted.extend(run_deadline(run).map(|at| (at, Timer::Run(run.id))));
        for (task, known) in run.indexed() {
            let key = TaskKey { run: run.id, task };
            wanted.extend(task_deadline(known).map(|at| (at, Timer::Task(key))));
        }
    }
    for entry in state.leases.values() {
        let lease = &entry.lease;
        wanted.insert((lease.expires_at, Timer::Lease(lease.id)));
        let run = state.run(lease.run);
        let at = run.and_then(|run| timeout_at(run, lease));
        ensure(at == entry.timeout_at, || {
            format!("lease {} has another limit", lease.id)
        })?;
        wanted.extend(at.map(|at| (at, Timer::Timeout(lease.id))));
    }
    for worker in state.workers() {
        if let Link::Down { since } = worker.link {
            wanted.insert((
                since + limits::WORKER_FORGET,
                Timer::Forget(worker.id.clone()),
            ));
        }
    }
    ensure(wanted == state.index.timers, || {
        let missing = wanted.difference(&state.index.timers).next();
        let extra = state.index.timers.difference(&wanted).next();
        format!("timers: missing {missing:?}, too many {extra:?}")
    })
}

/// Leases that were revoked and are open are counted, and nothing was begun beside them.
fn check_endings(state: &State, run: &Run, aux: &RunAux) -> Checked {
    let mut ending: BTreeMap<Option<TaskIx>, u32> = BTreeMap::new();
    for lease in state.leases_of_run(run.id).filter(|lease| lease.revoked) {
        *ending.entry(task_of(lease.work)).or_default() += 1;
    }
    ensure(ending == aux.ending, || {
        format!(
            "{} counts the endings {:?} of {ending:?}",
            run.id, aux.ending
        )
    })?;
    let mut live = state.leases_of_run(run.id).filter(|lease| !lease.revoked);
    let beside = live.find(|lease| ending.contains_key(&task_of(lease.work)));
    ensure(beside.is_none(), || {
        format!("{beside:?} was granted beside one that is still ending")
    })
}

fn check_queues(state: &State) -> Checked {
    let mut queued = 0;
    let mut delayed = 0;
    for RunEntry { run, aux } in state.runs.values() {
        let live = state
            .leases_of_run(run.id)
            .filter(|lease| !lease.revoked)
            .count();
        ensure(usize::try_from(aux.live) == Ok(live), || {
            format!("{} counts {} live leases of {live}", run.id, aux.live)
        })?;
        check_endings(state, run, aux)?;
        let tasks = run
            .indexed()
            .filter_map(|(task, known)| task_wants(TaskKey { run: run.id, task }, known));
        for (ix, task) in run.indexed() {
            if let Some(from) = task.attempts().last().and_then(|last| last.continues) {
                let last = task.attempts().len();
                let earlier = usize::try_from(from.0).is_ok_and(|from| from < last);
                ensure(earlier, || format!("{ix} goes on from attempt {from}"))?;
            }
        }
        for (wanted, not_before) in tasks.chain(run_wants(run)) {
            let later = state.index.delayed.contains(&(not_before, wanted));
            let queue = class_of(run, aux, wanted).and_then(|class| aux.queues.get(&class));
            let now = queue.is_some_and(|queue| match wanted {
                Wanted::Attempt(key) => queue.attempts.contains(&rank(run, key.task)),
                Wanted::Verify(key) => queue.verifies.contains(&rank(run, key.task)),
                Wanted::FinalVerify(_) => queue.final_verify,
            });
            ensure(later != now, || {
                format!("{wanted:?} is in {} queues", u8::from(now) * 2)
            })?;
            queued += usize::from(now);
            delayed += usize::from(later);
        }
        let mut claims = BTreeMap::new();
        for (ix, task) in run.indexed() {
            if matches!(
                task.state,
                TaskState::Leased { .. } | TaskState::Verifying { .. }
            ) {
                claims.extend(task.paths.iter().map(|path| (path.clone(), ix)));
            }
        }
        ensure(claims == aux.claims, || {
            format!("{} counts other claims", run.id)
        })?;
        for (id, queue) in &aux.queues {
            ensure(!queue.is_empty(), || {
                format!("{} keeps an empty queue", run.id)
            })?;
            let class = state.index.classes.get(id);
            let turn = (aux.live, aux.stamp, run.id);
            let listed = class.is_some_and(|class| class.runs.contains(&turn));
            ensure(listed == may_grow(run, aux), || {
                format!("{} is misplaced", run.id)
            })?;
        }
    }
    for (until, key) in &state.index.held {
        let run = state.run(key.run);
        let right = run.and_then(|run| waits_for_home(run, key.task));
        ensure(right == Some(*until), || {
            format!("{key} is held until {until}, not {right:?}")
        })?;
    }
    let in_queues = state.waiting_work();
    ensure(in_queues == queued, || {
        format!("{in_queues} queued of {queued}")
    })?;
    let in_delay = state.index.delayed.len();
    ensure(in_delay == delayed, || {
        format!("{in_delay} delayed of {delayed}")
    })?;
    let mut users: BTreeMap<ClassId, u32> = BTreeMap::new();
    for RunEntry { aux, .. } in state.runs.values() {
        let verifies = aux.classes.iter().filter_map(|(_, verify)| *verify);
        let attempts = aux.classes.iter().map(|(attempt, _)| *attempt);
        for id in attempts.chain(verifies).chain(aux.final_class) {
            *users.entry(id).or_default() += 1;
        }
    }
    for (id, class) in &state.index.classes {
        ensure(users.get(id) == Some(&class.users), || {
            format!("class {id} counts {} users", class.users)
        })?;
        for (live, stamp, run) in &class.runs {
            let entry = state.runs.get(run);
            let right = entry.is_some_and(|RunEntry { aux, .. }| {
                aux.queues.contains_key(id) && (aux.live, aux.stamp) == (*live, *stamp)
            });
            ensure(right, || format!("{run} is listed wrongly"))?;
        }
    }
    Ok(())
}

/// Worklists are empty between steps, and what is looked up by key is complete.
fn check_lists(state: &State) -> Checked {
    let index = &state.index;
    let settled =
        index.unblocked.is_empty() && index.doomed.is_empty() && index.complete.is_empty();
    ensure(settled, || "consequences are left over".into())?;
    let names: Vec<_> = state.runs().map(|run| (&run.name, run.id)).collect();
    ensure(names.len() == index.names.len(), || {
        "runs share a name".into()
    })?;
    for (name, id) in names {
        ensure(index.names.get(name) == Some(&id), || {
            format!("run {name} is not listed")
        })?;
    }
    let mut basing = BTreeSet::new();
    let (mut questions, mut past) = (0, 0);
    let mut integrating = BTreeSet::new();
    for run in state.runs() {
        if matches!(run.phase, RunPhase::Integrating { .. }) {
            integrating.insert(run.id);
        }
        for (task, known) in run.indexed() {
            questions += known.questions().len();
            let attempts = known.attempts().iter();
            past += attempts.map(|attempt| attempt.asked.len()).sum::<usize>();
            if matches!(known.state, TaskState::Basing { .. }) {
                basing.insert(TaskKey { run: run.id, task });
            }
        }
    }
    ensure(basing == index.basing, || "other bases are wanted".into())?;
    ensure(integrating == index.integrating, || {
        "other integrations are wanted".into()
    })?;
    ensure(questions == index.questions.len(), || {
        "other questions are open".into()
    })?;
    ensure(past == index.past_questions.len(), || {
        "other questions are closed".into()
    })
}
