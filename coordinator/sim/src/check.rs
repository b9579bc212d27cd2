//! What must be true of the world, besides what the reference says of the journal.

use std::collections::BTreeMap;

use coordinator_core::event::{LeaseEnd, Outcome, Work};
use coordinator_core::state::{History, TaskState, VerifyPhase};
use coordinator_core::{Command, Event, EventKind, RunId, TaskKey, WorkerId, invariants};

use crate::Violation;
use crate::host::{Host, Offered};
use crate::reference::Stands;
use crate::remote::Ref;
use crate::scenario::{Agent, TaskPlan};
use crate::world::{Checked, World};

/// Batches between two comparisons of the whole state with the replayed journal.
const COMPARED_EVERY: u64 = 256;

impl World<'_> {
    /// Nothing of a lease runs any more when the coordinator decides that it is over. What has lost
    /// its supervisor may outlive a lease that ends in silence, while its worker cannot end it; no
    /// word of a worker ends a lease before.
    pub(crate) fn check_agents(&self, first_row: usize) -> Checked {
        let Some(row) = self.store.rows.get(first_row) else {
            return Ok(());
        };
        for event in &row.events {
            let EventKind::LeaseClosed { lease, end, .. } = &event.kind else {
                continue;
            };
            let runs = self.hosts.iter().find(|host| {
                let supervisor = host.supervisors.get(&lease.0);
                let moves = supervisor.filter(|supervisor| {
                    let nobody_can = *end == LeaseEnd::Expired && host.is_out_of_reach(supervisor);
                    let nothing = supervisor.lost.is_some_and(|lost| !lost.detached);
                    !host.overslept(supervisor, self.now) && !nobody_can && !nothing
                });
                host.is_honest() && !host.stands_still() && moves.is_some()
            });
            if let Some(host) = runs {
                let what = format!(
                    "lease {lease} is closed as {end:?} while {} works on it",
                    host.id
                );
                return Err(self.violation("nothing of a closed lease runs", what));
            }
        }
        Ok(())
    }

    /// The answer to a merge counts for the generation that asked for it. What the journal held
    /// before this batch says which generation that is.
    pub(crate) fn check_merges(&self, commands: &[Command], events: &[Event]) -> Checked {
        let mut tasks: BTreeMap<TaskKey, u32> = BTreeMap::new();
        let mut runs: BTreeMap<RunId, u32> = BTreeMap::new();
        for event in events {
            let old = match &event.kind {
                EventKind::TaskReopened {
                    task, generation, ..
                } => {
                    tasks.insert(*task, *generation);
                    false
                }
                EventKind::RunReopened {
                    run, generation, ..
                } => {
                    runs.insert(*run, *generation);
                    false
                }
                EventKind::TaskReady {
                    task,
                    base: Some(base),
                    ..
                } => {
                    let before = self.store.shadow.task(*task).map(|task| task.generation);
                    let now = tasks.get(task).copied().or(before);
                    commands.iter().any(|command| {
                        matches!(command, Command::BaseMade { task: of, generation, result: Ok(commit) }
                            if of == task && commit == base && Some(*generation) != now)
                    })
                }
                EventKind::IntegrationMerged { run, commit } => {
                    let before = self.store.shadow.run(*run).map(|run| run.generation);
                    let now = runs.get(run).copied().or(before);
                    commands.iter().any(|command| {
                        matches!(command, Command::IntegrationMade { run: of, generation, result: Ok(made) }
                            if of == run && made == commit && Some(*generation) != now)
                    })
                }
                _ => false,
            };
            self.ensure(!old, "a merge is of the generation that asked", || {
                crate::story::event(event).to_string()
            })?;
        }
        Ok(())
    }

    /// Nothing else of the task works while a lease begins to.
    pub(crate) fn check_alone(&self, host: usize, lease: u64) -> Checked {
        let place = |host: &Host, lease: u64| {
            let folder = host.disk.folders.get(&lease);
            folder.map(|folder| folder.facts.place())
        };
        let here = self.hosts.get(host).filter(|host| host.is_honest());
        let Some((here, Some(wanted))) = here.map(|here| (here, place(here, lease))) else {
            return Ok(());
        };
        let moves = |host: &&Host| host.is_honest() && !host.stands_still();
        for host in self.hosts.iter().filter(moves) {
            let other = host.supervisors.iter().find(|(other, supervisor)| {
                **other != lease
                    && place(host, **other) == Some(wanted)
                    && !host.overslept(supervisor, self.now)
                    && !host.is_out_of_reach(supervisor)
            });
            if let Some((other, _)) = other {
                let what = format!(
                    "lease {lease} works on {} while {other} does on {}",
                    here.id, host.id
                );
                return Err(self.violation("a task is worked on once at a time", what));
            }
        }
        Ok(())
    }

    /// Looks at what is in the journal.
    pub(crate) fn check_events(&mut self, events: &[Event]) -> Checked {
        for event in events {
            match &event.kind {
                EventKind::RunSubmitted { spec, .. } => {
                    self.counts.runs += 1;
                    self.counts.tasks += spec.tasks.len() as u64;
                }
                EventKind::LeaseGranted {
                    run, work, worker, ..
                } => {
                    self.counts.leases += 1;
                    self.check_fits(*run, *work, worker)?;
                }
                EventKind::LeaseClosed {
                    end: LeaseEnd::Expired,
                    ..
                } => self.counts.expired += 1,
                EventKind::TaskSucceeded { task, outcome } => self.check_commit(*task, outcome)?,
                EventKind::Pool(event) => {
                    crate::coverage::observe_pool_event(&self.store.shadow, event, self.watch);
                    self.check_inventory(event)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A worker gets only what it offers to do, and no more at once than it has room for.
    fn check_fits(&self, run: RunId, work: Work, worker: &WorkerId) -> Checked {
        let state = &self.coordinator.state;
        let Some(known) = state.worker(worker) else {
            return Err(self.violation("work fits its worker", format!("{worker} is not known")));
        };
        let wanted = |run: RunId, work: Work| {
            let (Work::Attempt { task, .. } | Work::Verify { task, .. }) = work else {
                return None;
            };
            self.task_plan(state.run(run)?, task)
        };
        let offer = &known.offer;
        let leases = || state.leases_of_worker(worker);
        let slots = usize::try_from(offer.slots).unwrap_or(usize::MAX);
        self.ensure(leases().count() <= slots, "work fits its worker", || {
            format!("{worker} has more leases than its {slots} slots")
        })?;
        let Some(task) = wanted(run, work) else {
            return Ok(());
        };
        let labelled = task
            .label
            .is_none_or(|of| offer.labels.contains(&crate::plan::label(of)));
        self.ensure(labelled, "work fits its worker", || {
            format!("{worker} lacks the label {:?}", task.label)
        })?;
        let used = leases().filter_map(|lease| wanted(lease.run, lease.work));
        let used: u64 = used.map(|task| task.cpus).sum();
        let total = offer.resources.get(crate::plan::CPUS).copied().unwrap_or(0);
        self.ensure(
            task.cpus == 0 || used <= total,
            "work fits its worker",
            || format!("{worker} works with {used} of {total} processors"),
        )
    }

    fn check_commit(&self, key: TaskKey, outcome: &Outcome) -> Checked {
        let task = self.coordinator.state.task(key);
        let number = task
            .and_then(|task| task.attempts().last())
            .map(|last| last.number.0);
        let kept = number.is_none_or(|number| self.is_kept(key, number, outcome));
        self.ensure(kept, "accepted commits are in the remote", || {
            format!("{key} succeeded with {outcome:?}, which is not there")
        })
    }

    /// Compares the state with everything that knows better.
    pub(crate) fn check_state(&mut self, commands: &[Command], first_row: usize) -> Checked {
        let rows = self.store.rows.get(first_row..).unwrap_or_default();
        let silent = rows.is_empty();
        let _ = commands;
        if !silent || self.coordinator.batches.is_multiple_of(8) {
            let checked = invariants::check(&self.coordinator.state);
            checked.map_err(|what| self.violation("the state holds together", what))?;
        }
        let mut touched: Vec<TaskKey> = vec![];
        for event in rows.iter().flat_map(|row| &row.events) {
            if let Some(run) = event.kind.run()
                && let Some(known) = self.coordinator.state.run(run)
            {
                touched.extend(known.indexed().map(|(task, _)| TaskKey { run, task }));
            }
        }
        touched.sort_unstable();
        touched.dedup();
        for key in touched {
            self.compare(key)?;
        }
        if self.coordinator.batches.is_multiple_of(COMPARED_EVERY) {
            self.compare_replay()?;
        }
        Ok(())
    }

    fn compare_replay(&self) -> Checked {
        let equal = self.coordinator.state.image() == self.store.shadow.image();
        self.ensure(equal, "replay equals live", || {
            "the journal gives another state than the live one".into()
        })
    }

    fn compare(&self, key: TaskKey) -> Checked {
        let Some(task) = self.coordinator.state.task(key) else {
            return Ok(());
        };
        let Some(known) = self.reference.task(key) else {
            return Ok(());
        };
        let stands = match &task.state {
            TaskState::Blocked { .. } | TaskState::Basing { .. } | TaskState::Ready { .. } => {
                Stands::Waiting
            }
            TaskState::Leased { lease, .. } => Stands::Leased(lease.0),
            TaskState::Verifying { verify, .. } => match verify {
                VerifyPhase::Waiting { .. } => Stands::Unverified,
                VerifyPhase::Leased { lease, .. } => Stands::Verified(lease.0),
            },
            TaskState::Parked(_) => Stands::Parked,
            TaskState::Succeeded { .. } => Stands::Succeeded,
            TaskState::Failed { .. } | TaskState::Aborted { .. } => Stands::Failed,
            TaskState::Cancelled { .. } => Stands::Cancelled,
            TaskState::Skipped { .. } => Stands::Skipped,
        };
        self.ensure(
            stands == known.stands,
            "tasks stand as the reference says",
            || format!("{key} is {stands:?}, not {:?}", known.stands),
        )?;
        let none = History::default();
        let history = task.history.as_deref().unwrap_or(&none);
        let counts =
            |counted, crashes, deferrals, departures| [counted, crashes, deferrals, departures];
        let expected = counts(
            known.counted,
            known.crashes,
            known.deferrals,
            known.departures,
        );
        let counts = counts(
            history.counted,
            history.crashes,
            history.deferrals,
            history.departures,
        );
        self.ensure(counts == expected, "failures are counted right", || {
            format!("{key} has {counts:?} counted and other failures, not {expected:?}")
        })?;
        let last = task.attempts().last();
        let from = last.and_then(|last| last.continues).map(|from| from.0);
        self.ensure(
            from == known.from,
            "an attempt goes on from what was cut off and from nothing else",
            || format!("{key} goes on from attempt {from:?}, not {:?}", known.from),
        )
    }

    /// A lease's folder goes only when all of it is elsewhere.
    pub(crate) fn check_edits(&self, host: usize, lease: u64) -> Checked {
        let Some(folder) = self
            .hosts
            .get(host)
            .and_then(|host| host.disk.folders.get(&lease))
        else {
            return Ok(());
        };
        let stored = self.transcripts.get(&lease).copied().unwrap_or(0);
        let granted = self
            .hosts
            .get(host)
            .is_some_and(|host| self.reference.was_granted(lease, &host.id));
        self.ensure(
            !granted || stored == folder.last,
            "no event is lost",
            || {
                format!(
                    "lease {lease} had {} events, {stored} are stored",
                    folder.last
                )
            },
        )?;
        let Some((task, n)) = folder.facts.attempt() else {
            return Ok(());
        };
        if folder.edits == 0 || folder.kept {
            return Ok(());
        }
        let commit = format!("c{lease}.{}", folder.edits);
        let refs = [
            Ref::Attempt(task, n),
            Ref::Wip(task, n),
            Ref::Salvage(task, n),
        ];
        let mut found = refs.iter().filter_map(|name| self.remote.refs.get(name));
        let kept = found.any(|found| *found.as_str() == *commit);
        self.ensure(kept, "no edit is lost", || {
            format!("{commit} of {task} is nowhere")
        })
    }

    /// Tells whether some honest worker could do everything.
    fn can_end(&self) -> bool {
        let wanted = self.scenario.plans.iter().flat_map(|plan| &plan.tasks);
        let wanted: Vec<&TaskPlan> = wanted.collect();
        let can_all = |offered: &Offered| {
            wanted.iter().all(|task| {
                let agent = task.agent == Agent::Command || offered.agents.contains(&task.agent);
                let label = task.label.is_none_or(|of| offered.labels.contains(&of));
                agent && label && task.cpus <= offered.cpus
            })
        };
        let pool = self.pool().filter(|pool| pool.max > 0);
        let elastic = pool.and_then(|_| crate::carrier::template(self.scenario));
        let fixed = self.scenario.workers.iter();
        let fixed = fixed.filter(|plan| !plan.pooled || self.pool().is_none());
        let mut fixed = fixed.filter(|plan| plan.lies_per_mille == 0);
        elastic.is_some_and(|least| least.slots > 0 && can_all(&least))
            || fixed.any(|plan| can_all(&Offered::of(plan)))
    }

    /// Tells whether nothing is left to do.
    pub(crate) fn is_at_rest(&mut self) -> bool {
        self.answer_questions();
        self.resume_pool();
        let coordinator = &self.coordinator;
        if !self.can_end() {
            return self.now > self.scenario.calm_ms + 600_000;
        }
        coordinator.up
            && coordinator.inbox.is_empty()
            && coordinator.pending.is_none()
            && self.operators.runs.len() == self.scenario.plans.len()
            && coordinator.state.runs().len() == 0
            && coordinator.state.leases().len() == 0
            && coordinator.state.allocations().len() == 0
            && self.live_jobs().next().is_none()
            && self.hosts.iter().all(|host| self.host_rests(host))
    }

    /// Says what has not come to rest.
    pub(crate) fn unrest(&self) -> Violation {
        let state = &self.coordinator.state;
        let mut what = vec![];
        if !self.coordinator.up {
            what.push("the coordinator is down".to_owned());
        }
        for run in state.runs() {
            let open = run.indexed().filter(|(_, task)| !task.state.is_final());
            let open: Vec<String> = open
                .map(|(ix, task)| format!("{ix} {}", task.state.name()))
                .collect();
            what.push(format!("{} is not archived: {}", run.id, open.join(", ")));
        }
        for lease in state.leases() {
            what.push(format!("lease {} of {} is open", lease.id, lease.worker));
        }
        for held in state.allocations() {
            what.push(format!("allocation {} is {:?}", held.id, held.phase));
        }
        for job in self.live_jobs() {
            what.push(format!("the cluster has {job}"));
        }
        let restless = |host: &&Host| !self.host_rests(host);
        for host in self.hosts.iter().filter(restless) {
            let machine = host.process.as_ref().map(|process| &process.machine);
            let held = machine.map(|machine| machine.held());
            let folders: Vec<u64> = host.disk.folders.keys().copied().collect();
            what.push(format!(
                "{} holds {held:?} and has folders {folders:?}",
                host.id
            ));
        }
        self.violation("the world comes to rest", what.join("; "))
    }

    /// What must be true at the end of a world.
    pub(crate) fn check_end(&mut self) -> Checked {
        let checked = invariants::check(&self.coordinator.state);
        checked.map_err(|what| self.violation("the state holds together", what))?;
        if self.coordinator.up && self.coordinator.pending.is_none() {
            self.compare_replay()?;
        }
        if !self.can_end() {
            return Ok(());
        }
        let archived = self.reference.all_archived();
        self.ensure(archived, "every run ends and is archived", || {
            "one is not".into()
        })?;
        for worker in self.coordinator.state.workers() {
            let host = self.hosts.iter().find(|host| host.id == worker.id);
            let Some(host) = host.filter(|host| host.is_honest()) else {
                continue;
            };
            let process = host.process.as_ref();
            let free = process.map_or(0, |process| process.machine.free_slots());
            let slots = process.map_or(0, |process| process.slots);
            self.ensure(free == slots, "no slot is leaked", || {
                format!("{} has {free} free slots of {slots}", host.id)
            })?;
        }
        Ok(())
    }
}
