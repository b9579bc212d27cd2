//! Leases open, close and are remembered.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ready;
use crate::event::{Usage, Work};
use crate::ids::{LeaseId, RunId, TaskKey, WorkerId};
use crate::index::{LeaseEntry, Recorded, Said, Timer, WorkerAux, WorkerEntry};
use crate::limits;
use crate::resume::goes_on_from;
use crate::state::{
    Attempt, AttemptEnd, KeyUse, Lease, RunPhase, State, TaskState, VerifyPhase, Worker,
};
use crate::time::{Span, Timestamp};

impl State {
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
        let work = lease.work;
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
            if !live {
                aux.begin_ending(work);
            }
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

    pub(super) fn drop_lease(&mut self, id: LeaseId) {
        let Some(LeaseEntry { lease, timeout_at }) = self.leases.remove(&id) else {
            return;
        };
        let timers = &mut self.index.timers;
        timers.remove(&(lease.expires_at, Timer::Lease(id)));
        if let Some(at) = timeout_at {
            timers.remove(&(at, Timer::Timeout(id)));
        }
        self.change_live(lease.run, |aux| {
            aux.leases.remove(&id);
            aux.live = aux.live.saturating_sub(u32::from(!lease.revoked));
            if lease.revoked {
                aux.end_ending(lease.work);
            }
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

    pub(super) fn resources(&self, lease: &Lease) -> BTreeMap<Arc<str>, u64> {
        let run = self.run(lease.run);
        let requirement = run.and_then(|run| run.requirement(lease.work));
        let mut resources = requirement.map_or_else(BTreeMap::new, |r| r.resources.clone());
        resources.retain(|_, amount| *amount > 0);
        resources
    }

    /// Moves the task or run of a fresh lease into its leased state.
    pub(super) fn begin_work(&mut self, lease: &Lease) {
        let (id, at) = (lease.id, lease.granted_at);
        match lease.work {
            Work::Attempt { task, attempt } => {
                let key = TaskKey {
                    run: lease.run,
                    task,
                };
                let base = self.base(key).cloned();
                let continues = self.run(key.run).and_then(|run| goes_on_from(run, task));
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
                        waiting_since: None,
                        asked: vec![],
                        continues,
                        conversation: None,
                        usage: Usage::default(),
                        summary: "".into(),
                    });
                }
                let state = TaskState::Leased {
                    attempt,
                    lease: id,
                    awaiting: vec![],
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
    pub(super) fn set_verify(
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

    pub(super) fn verify_again(
        &mut self,
        lease: LeaseId,
        at: Timestamp,
        not_before: Timestamp,
        more: u32,
    ) {
        if let Some((run, work)) = self.lease(lease).map(|lease| (lease.run, lease.work)) {
            self.set_verify(run, work, at, |verify| VerifyPhase::Waiting {
                since: at,
                not_before,
                lost: verify.lost().saturating_add(more),
            });
        }
    }

    pub(super) fn never_started(&mut self, run: RunId, lease: LeaseId, at: Timestamp) {
        self.remember(run, lease, Said::NotMade);
        if let Some(Work::Attempt { task, .. }) = self.lease(lease).map(|lease| lease.work) {
            let key = TaskKey { run, task };
            self.end_attempt(key, at, || AttemptEnd::NeverStarted);
            self.set_task(key, at, ready(at, at));
        } else {
            self.verify_again(lease, at, at, 0);
        }
    }

    pub(super) fn remember(&mut self, run: RunId, lease: LeaseId, said: Said) {
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

    pub(super) fn remember_key(
        &mut self,
        key: &Arc<str>,
        run: RunId,
        name: &Arc<str>,
        digest: &Arc<str>,
    ) {
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
