//! How events change state. Total: whatever the event, nothing panics and nothing is refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::event::{Event, EventKind, LeaseEnd, Outcome, Usage, Work};
use crate::failure::Failure;
use crate::ids::{AttemptNo, LeaseId, QuestionId, RunId, TaskIx, TaskKey, WorkerId};
use crate::index::{LeaseEntry, Recorded, Said, WorkerAux, WorkerEntry};
use crate::state::{
    Attempt, AttemptEnd, CancelRequest, History, KeyUse, Lease, Link, Parked, Question, RunPhase,
    State, TaskState, VerifyPhase, Worker,
};
use crate::time::{Span, Timestamp};
use crate::{build, limits};

impl State {
    /// Gives the event its number and lets it change the state.
    pub fn record(&mut self, now: Timestamp, kind: EventKind) -> Event {
        let seq = self.expected_seq(&kind);
        let event = Event { seq, at: now, kind };
        self.evolve(&event);
        event
    }

    /// Gives the number that the next event of this kind must carry.
    pub(crate) fn expected_seq(&self, kind: &EventKind) -> u64 {
        let last = match (kind, kind.run()) {
            // The image was made just before the event that let the run leave memory.
            (EventKind::RunReloaded { image, .. }, _) => image.run.last_seq.saturating_add(1),
            (_, Some(run)) => self.run(run).map_or(0, |run| run.last_seq),
            (_, None) => self.last_seq,
        };
        last.saturating_add(1)
    }

    /// Lets an event change the state.
    pub(crate) fn evolve(&mut self, event: &Event) {
        let at = event.at;
        match &event.kind {
            EventKind::RunSubmitted { .. } | EventKind::RunReloaded { .. } => {}
            kind => match kind.run() {
                Some(run) => {
                    if let Some(entry) = self.runs.get_mut(&run) {
                        entry.run.last_seq = event.seq;
                    }
                }
                None => self.last_seq = event.seq,
            },
        }
        match &event.kind {
            EventKind::CoordinatorStarted { epoch } => self.epoch = *epoch,
            EventKind::WorkerJoined {
                worker,
                incarnation,
                offer,
            } => {
                if let Some(entry) = self.workers.get_mut(worker) {
                    entry.worker.incarnation = *incarnation;
                    entry.worker.offer = Arc::clone(offer);
                } else {
                    let fresh = Worker {
                        id: worker.clone(),
                        incarnation: *incarnation,
                        offer: Arc::clone(offer),
                        draining: false,
                        link: Link::Down { since: at },
                    };
                    self.open_worker(fresh);
                }
                self.relist_worker(worker);
            }
            EventKind::WorkerDraining {
                worker, draining, ..
            } => {
                if let Some(entry) = self.workers.get_mut(worker) {
                    entry.worker.draining = *draining;
                }
                self.relist_worker(worker);
            }
            EventKind::WorkerForgotten { worker } => {
                self.drop_worker(worker);
            }
            EventKind::RunSubmitted {
                run,
                spec,
                key,
                digest,
            } => {
                self.next_run = self.next_run.max(RunId(run.0.saturating_add(1)));
                if let Some(key) = key {
                    self.remember_key(key, *run, &spec.name, digest);
                }
                let mut run = build::run(*run, spec, at);
                run.key.clone_from(key);
                run.digest = Arc::clone(digest);
                run.last_seq = event.seq;
                self.open_run(run, at);
            }
            EventKind::CancelRequested { run, by, reason } => {
                if let Some(entry) = self.runs.get_mut(run) {
                    entry.run.cancel = Some(CancelRequest {
                        by: Arc::clone(by),
                        reason: reason.clone(),
                        at,
                    });
                }
            }
            EventKind::IntegrationStarted { run } => {
                self.set_phase(*run, at, RunPhase::Integrating { since: at });
            }
            EventKind::IntegrationMerged { run, commit } => {
                let verify = VerifyPhase::Waiting {
                    since: at,
                    not_before: at,
                    lost: 0,
                };
                let commit = commit.clone();
                self.set_phase(*run, at, RunPhase::Verifying { commit, verify });
            }
            EventKind::IntegrationConflicted { run, conflict } => {
                if let Some(entry) = self.runs.get_mut(run) {
                    entry.run.conflict = Some(conflict.clone());
                }
            }
            EventKind::RunEnded { run, outcome } => {
                let integrated = match self.run(*run).map(|run| &run.phase) {
                    Some(RunPhase::Verifying { commit, .. }) => Some(commit.clone()),
                    _ => None,
                };
                let outcome = outcome.clone();
                let ended = RunPhase::Ended {
                    outcome,
                    integrated,
                    at,
                };
                self.set_phase(*run, at, ended);
            }
            EventKind::RunReopened {
                run, generation, ..
            } => {
                if let Some(entry) = self.runs.get_mut(run) {
                    entry.run.generation = *generation;
                    entry.run.cancel = None;
                    entry.run.conflict = None;
                }
                self.set_phase(*run, at, RunPhase::Active);
            }
            EventKind::RunArchived { run } => self.close_run(*run),
            EventKind::RunReloaded { image, .. } => {
                let mut run = image.run.clone();
                run.last_seq = event.seq;
                let id = run.id;
                self.next_run = self.next_run.max(RunId(id.0.saturating_add(1)));
                self.open_run(run, at);
                self.remember_results(id);
            }
            EventKind::TaskBasing { task } => {
                self.set_task(*task, at, TaskState::Basing { since: at });
            }
            EventKind::TaskReady {
                task,
                base,
                not_before,
            } => {
                self.keep_base(*task, base.as_ref());
                let not_before = *not_before;
                self.set_task(*task, at, ready(at, not_before));
            }
            EventKind::TaskSucceeded { task, outcome } => {
                self.amend_attempt(*task, |attempt| {
                    attempt.end = Some(AttemptEnd::Succeeded(outcome.clone()));
                });
                let outcome = outcome.clone();
                self.set_task(*task, at, TaskState::Succeeded { outcome, at });
            }
            EventKind::TaskFailed { task, failure } => {
                let failure = Box::new(failure.clone());
                self.set_task(*task, at, TaskState::Failed { failure, at });
            }
            EventKind::TaskSkipped { task, because } => {
                let because = *because;
                self.set_task(*task, at, TaskState::Skipped { because, at });
            }
            EventKind::TaskCancelled { task, by, reason } => {
                self.end_attempt(*task, at, || AttemptEnd::Cancelled);
                let (by, reason) = (Arc::clone(by), reason.clone());
                self.set_task(*task, at, TaskState::Cancelled { by, reason, at });
            }
            EventKind::TaskAborted { task, reason } => {
                self.end_attempt(*task, at, || AttemptEnd::Cancelled);
                let reason = reason.clone();
                self.set_task(*task, at, TaskState::Aborted { reason, at });
            }
            EventKind::TaskReopened {
                task, generation, ..
            } => self.reopen_task(*task, at, *generation),
            EventKind::LeaseGranted {
                run,
                lease,
                work,
                worker,
                incarnation,
                ttl,
            } => {
                self.next_lease = self.next_lease.max(LeaseId(lease.0.saturating_add(1)));
                let lease = Lease {
                    id: *lease,
                    run: *run,
                    work: *work,
                    worker: worker.clone(),
                    incarnation: *incarnation,
                    granted_at: at,
                    started_at: None,
                    ttl: *ttl,
                    revoked: false,
                    expires_at: at + *ttl + self.clocks.grace,
                };
                self.begin_work(&lease);
                if let Some(entry) = self.workers.get_mut(worker) {
                    entry.aux.credit = entry.aux.credit.saturating_sub(1);
                }
                self.open_lease(lease);
            }
            EventKind::WorkStarted { run, lease } => {
                let work = self.leases.get_mut(lease).map(|entry| {
                    entry.lease.started_at = Some(at);
                    entry.lease.work
                });
                if let Some(Work::Attempt { task, .. }) = work {
                    let key = TaskKey { run: *run, task };
                    self.amend_attempt(key, |attempt| attempt.started_at = Some(at));
                }
                self.set_timeout(*lease);
            }
            EventKind::AttemptSucceeded {
                run,
                lease,
                outcome,
                usage,
                summary,
            } => {
                self.remember(*run, *lease, Said::Made);
                if let Some(key) = self.task_of(*lease) {
                    self.attempt_made(key, at, outcome, *usage, summary);
                }
            }
            EventKind::AttemptFailed {
                run,
                lease,
                failure,
                usage,
                retry_at,
            } => {
                self.remember(*run, *lease, Said::NotMade);
                if let Some(key) = self.task_of(*lease) {
                    self.end_attempt(key, at, || AttemptEnd::Failed(failure.clone()));
                    self.amend_attempt(key, |attempt| attempt.usage = *usage);
                    self.count_failure(key, failure);
                    if let Some(retry_at) = retry_at {
                        self.set_task(key, at, ready(at, *retry_at));
                    }
                }
            }
            EventKind::VerifyPassed { run, lease } => self.remember(*run, *lease, Said::Made),
            EventKind::VerifyFailed {
                run,
                lease,
                failure,
                retry_at,
            } => {
                self.remember(*run, *lease, Said::NotMade);
                if let Some(key) = self.task_of(*lease) {
                    self.amend_attempt(key, |attempt| {
                        if let Some(AttemptEnd::Made(outcome)) = &attempt.end {
                            let (outcome, failure) = (outcome.clone(), failure.clone());
                            attempt.end = Some(AttemptEnd::VerifyFailed { outcome, failure });
                        }
                    });
                    self.count_failure(key, failure);
                    if let Some(retry_at) = retry_at {
                        self.set_task(key, at, ready(at, *retry_at));
                    }
                }
            }
            EventKind::VerifyLost {
                run,
                lease,
                retry_at,
                ..
            } => {
                self.remember(*run, *lease, Said::NotMade);
                if let Some(retry_at) = retry_at {
                    self.verify_again(*lease, at, *retry_at, 1);
                }
            }
            EventKind::LeaseRevoked { run, lease } => {
                self.index.recorded.remove(lease);
                let revoked = self.leases.get_mut(lease).is_some_and(|entry| {
                    let was = entry.lease.revoked;
                    entry.lease.revoked = true;
                    !was
                });
                if revoked {
                    self.change_live(*run, |aux| aux.live = aux.live.saturating_sub(1));
                    self.set_timeout(*lease);
                }
            }
            EventKind::LeaseClosed { run, lease, end } => {
                let revoked = self.lease(*lease).is_some_and(|lease| lease.revoked);
                match (end, revoked) {
                    (LeaseEnd::Confirmed, true) => self.remember(*run, *lease, Said::Stopped),
                    (LeaseEnd::Confirmed, false) => {}
                    (LeaseEnd::NeverStarted, false) => self.never_started(*run, *lease, at),
                    (LeaseEnd::NeverStarted, true)
                    | (LeaseEnd::Expired | LeaseEnd::Superseded, _) => {
                        self.index.recorded.remove(lease);
                    }
                }
                self.drop_lease(*lease);
            }
            EventKind::QuestionAsked {
                lease,
                question,
                text,
                ..
            } => {
                self.next_question = self
                    .next_question
                    .max(QuestionId(question.0.saturating_add(1)));
                let question = Question {
                    id: *question,
                    text: text.clone(),
                    asked_at: at,
                    answer: None,
                };
                self.ask(*lease, at, question);
            }
            EventKind::QuestionAnswered {
                question, answer, ..
            } => self.answer(*question, at, answer),
            EventKind::TaskParked { lease, .. } => self.park(*lease, at),
        }
    }

    pub(crate) fn open_worker(&mut self, worker: Worker) {
        let (id, link) = (worker.id.clone(), worker.link.clone());
        let aux = WorkerAux::default();
        self.workers.insert(id.clone(), WorkerEntry { worker, aux });
        self.set_link(&id, link);
    }

    /// Adds a lease to everything that lists leases.
    pub(crate) fn open_lease(&mut self, lease: Lease) {
        let (id, expires_at) = (lease.id, lease.expires_at);
        let (run, worker, live) = (lease.run, lease.worker.clone(), !lease.revoked);
        let resources = self.resources(&lease);
        self.leases.insert(
            id,
            LeaseEntry {
                lease,
                timeout_at: None,
            },
        );
        self.set_expiry(id, expires_at);
        self.set_timeout(id);
        let stamp = self.next_stamp();
        self.change_live(run, |aux| {
            aux.leases.insert(id);
            aux.live = aux.live.saturating_add(u32::from(live));
            aux.stamp = stamp;
        });
        if let Some(entry) = self.workers.get_mut(&worker) {
            entry.aux.leases.insert(id);
            for (name, amount) in resources {
                let used = entry.aux.used.entry(name).or_default();
                *used = used.saturating_add(amount);
            }
        }
        self.relist_worker(&worker);
    }

    fn drop_lease(&mut self, id: LeaseId) {
        let Some(LeaseEntry { lease, timeout_at }) = self.leases.remove(&id) else {
            return;
        };
        let timers = &mut self.index.timers;
        timers.remove(&(lease.expires_at, crate::index::Timer::Lease(id)));
        if let Some(at) = timeout_at {
            timers.remove(&(at, crate::index::Timer::Timeout(id)));
        }
        self.change_live(lease.run, |aux| {
            aux.leases.remove(&id);
            aux.live = aux.live.saturating_sub(u32::from(!lease.revoked));
        });
        let resources = self.resources(&lease);
        if let Some(entry) = self.workers.get_mut(&lease.worker) {
            entry.aux.leases.remove(&id);
            for (name, amount) in resources {
                if let Some(used) = entry.aux.used.get_mut(&name) {
                    *used = used.saturating_sub(amount);
                    if *used == 0 {
                        entry.aux.used.remove(&name);
                    }
                }
            }
        }
        self.relist_worker(&lease.worker);
    }

    fn resources(&self, lease: &Lease) -> BTreeMap<Arc<str>, u64> {
        let run = self.run(lease.run);
        let requirement = run.and_then(|run| run.requirement(lease.work));
        let mut resources = requirement.map_or_else(BTreeMap::new, |r| r.resources.clone());
        resources.retain(|_, amount| *amount > 0);
        resources
    }

    /// Moves the task or run of a fresh lease into its leased state.
    fn begin_work(&mut self, lease: &Lease) {
        let (id, at) = (lease.id, lease.granted_at);
        match lease.work {
            Work::Attempt { task, attempt } => {
                let key = TaskKey {
                    run: lease.run,
                    task,
                };
                let base = self.base(key).cloned();
                if let Some(task) = self.task_mut(key) {
                    let generation = task.generation;
                    let history = task.history.get_or_insert_default();
                    history.base = base;
                    history.attempts.push(Attempt {
                        number: attempt,
                        generation,
                        lease: id,
                        worker: lease.worker.clone(),
                        granted_at: at,
                        started_at: None,
                        ended_at: None,
                        end: None,
                        paused: Span::ZERO,
                        usage: Usage::default(),
                        summary: "".into(),
                    });
                }
                let state = TaskState::Leased {
                    attempt,
                    lease: id,
                    awaiting: None,
                };
                self.set_task(key, at, state);
            }
            Work::Verify { .. } | Work::FinalVerify => {
                self.set_verify(lease.run, lease.work, at, |verify| {
                    let lost = verify.lost();
                    VerifyPhase::Leased { lease: id, lost }
                });
            }
        }
    }

    /// Changes where a verify stands, of a task or of a run.
    fn set_verify(
        &mut self,
        run: RunId,
        work: Work,
        at: Timestamp,
        next: impl FnOnce(&VerifyPhase) -> VerifyPhase,
    ) {
        match work {
            Work::Attempt { .. } => {}
            Work::Verify { task, .. } => {
                let key = TaskKey { run, task };
                if let Some(TaskState::Verifying { attempt, verify }) =
                    self.task(key).map(|task| &task.state)
                {
                    let (attempt, verify) = (*attempt, next(verify));
                    self.set_task(key, at, TaskState::Verifying { attempt, verify });
                }
            }
            Work::FinalVerify => {
                if let Some(RunPhase::Verifying { commit, verify }) =
                    self.run(run).map(|run| &run.phase)
                {
                    let (commit, verify) = (commit.clone(), next(verify));
                    self.set_phase(run, at, RunPhase::Verifying { commit, verify });
                }
            }
        }
    }

    fn verify_again(&mut self, lease: LeaseId, at: Timestamp, not_before: Timestamp, more: u32) {
        if let Some((run, work)) = self.lease(lease).map(|lease| (lease.run, lease.work)) {
            self.set_verify(run, work, at, |verify| VerifyPhase::Waiting {
                since: at,
                not_before,
                lost: verify.lost().saturating_add(more),
            });
        }
    }

    fn never_started(&mut self, run: RunId, lease: LeaseId, at: Timestamp) {
        self.remember(run, lease, Said::NotMade);
        if let Some(Work::Attempt { task, .. }) = self.lease(lease).map(|lease| lease.work) {
            let key = TaskKey { run, task };
            self.end_attempt(key, at, || AttemptEnd::NeverStarted);
            self.set_task(key, at, ready(at, at));
        } else {
            self.verify_again(lease, at, at, 0);
        }
    }

    fn attempt_made(
        &mut self,
        key: TaskKey,
        at: Timestamp,
        outcome: &Outcome,
        usage: Usage,
        summary: &str,
    ) {
        self.end_attempt(key, at, || AttemptEnd::Made(outcome.clone()));
        let mut number = AttemptNo(0);
        self.amend_attempt(key, |attempt| {
            attempt.usage = usage;
            attempt.summary = summary.into();
            number = attempt.number;
        });
        let verified = self
            .run(key.run)
            .and_then(|run| run.profile(key.task))
            .is_some_and(|profile| profile.verify.is_some());
        if verified {
            let verify = VerifyPhase::Waiting {
                since: at,
                not_before: at,
                lost: 0,
            };
            let attempt = number;
            self.set_task(key, at, TaskState::Verifying { attempt, verify });
        }
    }

    fn reopen_task(&mut self, key: TaskKey, at: Timestamp, generation: u32) {
        let Some(run) = self.run(key.run) else {
            return;
        };
        let Some(task) = run.task(key.task) else {
            return;
        };
        let done = |ix: &&TaskIx| run.task(**ix).is_none_or(|task| task.state.is_succeeded());
        let met = task.dependencies.iter().filter(done).count();
        let unmet = u32::try_from(task.dependencies.len() - met).unwrap_or(u32::MAX);
        if let Some(task) = self.task_mut(key) {
            task.generation = generation;
            if let Some(history) = &mut task.history {
                history.counted = 0;
                history.crashes = 0;
                history.last_failure = None;
                history.base = None;
            }
        }
        self.set_task(key, at, TaskState::Blocked { unmet });
    }

    fn ask(&mut self, lease: LeaseId, at: Timestamp, question: Question) {
        if let Some(key) = self.task_of(lease)
            && let Some(TaskState::Leased { attempt, lease, .. }) =
                self.task(key).map(|task| &task.state)
        {
            let (attempt, lease) = (*attempt, *lease);
            let state = TaskState::Leased {
                attempt,
                lease,
                awaiting: Some(question),
            };
            self.set_task(key, at, state);
            self.set_timeout(lease);
        }
    }

    fn answer(&mut self, question: QuestionId, at: Timestamp, answer: &str) {
        let Some(&key) = self.index.questions.get(&question) else {
            return;
        };
        match self.task(key).map(|task| task.state.clone()) {
            Some(TaskState::Leased {
                attempt,
                lease,
                awaiting: Some(mut question),
            }) => {
                question.answer = Some(answer.into());
                let waited = at.since(question.asked_at);
                self.amend_attempt(key, |attempt| attempt.paused = attempt.paused + waited);
                let state = TaskState::Leased {
                    attempt,
                    lease,
                    awaiting: Some(question),
                };
                self.set_task(key, at, state);
                self.set_timeout(lease);
            }
            Some(TaskState::Parked(_)) => {
                self.amend_attempt(key, |attempt| {
                    if let Some(AttemptEnd::Parked { answer: place, .. }) = &mut attempt.end {
                        *place = Some(answer.into());
                    }
                });
                self.set_task(key, at, ready(at, at));
            }
            _ => {}
        }
    }

    fn park(&mut self, lease: LeaseId, at: Timestamp) {
        let Some(key) = self.task_of(lease) else {
            return;
        };
        let Some(worker) = self.lease(lease).map(|lease| lease.worker.clone()) else {
            return;
        };
        if let Some(TaskState::Leased {
            attempt,
            awaiting: Some(question),
            ..
        }) = self.task(key).map(|task| task.state.clone())
        {
            let id = question.id;
            self.end_attempt(key, at, || AttemptEnd::Parked {
                question: id,
                answer: None,
            });
            let waited = at.since(question.asked_at);
            self.amend_attempt(key, |attempt| attempt.paused = attempt.paused + waited);
            let parked = Parked {
                question,
                resume: attempt,
                affinity: worker,
            };
            self.set_task(key, at, TaskState::Parked(Box::new(parked)));
        }
    }

    /// Moves a task into another state and passes the consequences on to its dependents.
    fn set_task(&mut self, key: TaskKey, at: Timestamp, next: TaskState) {
        self.unindex_task(key);
        let (is_final, succeeded) = (next.is_final(), next.is_succeeded());
        let because = match &next {
            TaskState::Skipped { because, .. } => *because,
            _ => key.task,
        };
        let Some(task) = self.task_mut(key) else {
            return;
        };
        let was_final = task.state.is_final();
        task.state = next;
        self.index_task(key, at);
        if was_final != is_final {
            self.unindex_run(key.run);
            if let Some(entry) = self.runs.get_mut(&key.run) {
                entry.aux.open = if is_final {
                    entry.aux.open.saturating_sub(1)
                } else {
                    entry.aux.open.saturating_add(1)
                };
            }
            self.index_run(key.run, at);
        }
        if is_final && !was_final {
            self.tell_dependents(key, succeeded, because);
        }
    }

    fn tell_dependents(&mut self, key: TaskKey, succeeded: bool, because: TaskIx) {
        let Some(entry) = self.runs.get_mut(&key.run) else {
            return;
        };
        let tasks = &mut entry.run.tasks;
        let place = |ix: TaskIx| usize::try_from(ix.0).unwrap_or(usize::MAX);
        let count = tasks
            .get(place(key.task))
            .map_or(0, |task| task.dependents.len());
        for nth in 0..count {
            let Some(&dependent) = tasks
                .get(place(key.task))
                .and_then(|task| task.dependents.get(nth))
            else {
                return;
            };
            let dependent_key = TaskKey {
                run: key.run,
                task: dependent,
            };
            let state = tasks.get_mut(place(dependent)).map(|task| &mut task.state);
            if let Some(TaskState::Blocked { unmet }) = state {
                if succeeded {
                    *unmet = unmet.saturating_sub(1);
                    if *unmet == 0 {
                        self.index.unblocked.insert(dependent_key);
                    }
                } else {
                    self.index.doomed.entry(dependent_key).or_insert(because);
                }
            }
        }
    }

    fn set_phase(&mut self, id: RunId, at: Timestamp, next: RunPhase) {
        self.unindex_run(id);
        if let Some(entry) = self.runs.get_mut(&id) {
            entry.run.phase = next;
        }
        self.index_run(id, at);
    }

    /// Gives the task a lease works on or verifies; `None` for a final verify.
    pub(crate) fn task_of(&self, lease: LeaseId) -> Option<TaskKey> {
        let lease = self.lease(lease)?;
        match lease.work {
            Work::Attempt { task, .. } | Work::Verify { task, .. } => Some(TaskKey {
                run: lease.run,
                task,
            }),
            Work::FinalVerify => None,
        }
    }

    fn keep_base(&mut self, key: TaskKey, base: Option<&crate::ids::CommitId>) {
        if let Some(base) = base
            && self.base(key) != Some(base)
            && let Some(task) = self.task_mut(key)
        {
            task.history.get_or_insert_default().base = Some(base.clone());
        }
    }

    fn amend_attempt(&mut self, key: TaskKey, change: impl FnOnce(&mut Attempt)) {
        let history = self.task_mut(key).and_then(|task| task.history.as_mut());
        if let Some(attempt) = history.and_then(|history| history.attempts.last_mut()) {
            change(attempt);
        }
    }

    /// Ends the last attempt, if it has not ended yet.
    fn end_attempt(&mut self, key: TaskKey, at: Timestamp, end: impl FnOnce() -> AttemptEnd) {
        self.amend_attempt(key, |attempt| {
            if attempt.end.is_none() {
                attempt.end = Some(end());
                attempt.ended_at = Some(at);
            }
        });
    }

    fn count_failure(&mut self, key: TaskKey, failure: &Failure) {
        if let Some(task) = self.task_mut(key) {
            let history: &mut History = task.history.get_or_insert_default();
            if failure.class.counts() {
                history.counted = history.counted.saturating_add(1);
            } else {
                history.crashes = history.crashes.saturating_add(1);
            }
            history.last_failure = Some(failure.clone());
        }
    }

    fn remember(&mut self, run: RunId, lease: LeaseId, said: Said) {
        let Some(worker) = self.lease(lease).map(|lease| lease.worker.clone()) else {
            return;
        };
        self.remember_as(run, lease, worker, said);
    }

    pub(crate) fn remember_as(&mut self, run: RunId, lease: LeaseId, worker: WorkerId, said: Said) {
        if let Some(entry) = self.runs.get_mut(&run) {
            entry.aux.recorded.push(lease);
            self.index.recorded.insert(lease, Recorded { worker, said });
        }
    }

    fn remember_key(&mut self, key: &Arc<str>, run: RunId, name: &Arc<str>, digest: &Arc<str>) {
        let used = KeyUse {
            run,
            name: Arc::clone(name),
            digest: Arc::clone(digest),
        };
        self.keys.insert(Arc::clone(key), used);
        if self.keys.len() > limits::KEYS {
            let mut keys = self.keys.iter();
            let old = keys.find(|(_, used)| used.run != run && !self.runs.contains_key(&used.run));
            if let Some(old) = old.map(|(key, _)| Arc::clone(key)) {
                self.keys.remove(&old);
            }
        }
    }
}

fn ready(at: Timestamp, not_before: Timestamp) -> TaskState {
    TaskState::Ready {
        since: at,
        not_before: not_before.max(at),
    }
}
