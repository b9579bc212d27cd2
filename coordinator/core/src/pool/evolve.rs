//! How events change pools and their allocations. Total, as all of [`crate::evolve`].

use std::sync::Arc;

use super::{Allocation, EndCause, Ending, Pause, Phase, PoolEvent, Quarantine};
use crate::ids::{AllocationId, LeaseId, TaskKey, WorkerId};
use crate::limits;
use crate::state::State;
use crate::time::Timestamp;

impl State {
    pub(crate) fn evolve_pool(&mut self, at: Timestamp, event: &PoolEvent) {
        match event {
            PoolEvent::AllocationsWanted {
                pool, first, count, ..
            } => {
                let last = first.0.saturating_add(u64::from(*count));
                for id in (first.0..last).map(AllocationId) {
                    let fresh = Allocation {
                        id,
                        pool: Arc::clone(pool),
                        first: *first,
                        batch: *count,
                        wanted_at: at,
                        phase: Phase::Wanted,
                        external: None,
                        host: "".into(),
                        joined: false,
                        joined_at: None,
                        worked: false,
                        proven: false,
                        requeues: 0,
                        ending: None,
                        idle_since: None,
                        held: None,
                        vain_since: None,
                    };
                    self.allocations.insert(id, fresh);
                }
                self.next_allocation = self.next_allocation.max(AllocationId(last));
            }
            PoolEvent::AllocationQueued {
                allocation,
                external,
            } => {
                if let Some(held) = self.allocations.get_mut(allocation) {
                    if matches!(held.phase, Phase::Running { .. }) {
                        held.requeues = held.requeues.saturating_add(1);
                        held.joined = false;
                        held.joined_at = None;
                        held.worked = false;
                        held.proven = false;
                    }
                    held.external = Some(external.clone());
                    held.host = "".into();
                    held.phase = Phase::Queued { since: at };
                }
            }
            PoolEvent::AllocationRunning {
                allocation,
                external,
                host,
            } => {
                if let Some(held) = self.allocations.get_mut(allocation) {
                    held.external = Some(external.clone());
                    held.host = host.clone();
                    if !matches!(held.phase, Phase::Running { .. }) {
                        held.phase = Phase::Running { since: at };
                    }
                }
            }
            PoolEvent::AllocationProven { allocation } => self.prove(*allocation),
            PoolEvent::AllocationEnding {
                allocation,
                cause,
                reason,
            } => {
                if let Some(held) = self.allocations.get_mut(allocation) {
                    held.ending = Some(Ending {
                        cause: *cause,
                        reason: reason.clone(),
                        at,
                    });
                }
                self.relist_workers(|offer| offer.allocation == Some(*allocation));
            }
            PoolEvent::AllocationEnded {
                allocation,
                end,
                detail,
            } => {
                let Some(held) = self.allocations.remove(allocation) else {
                    return;
                };
                if end.is_failure() {
                    let pool = self.pools.entry(held.pool).or_default();
                    pool.failed_at = at;
                    pool.last_failure = detail.clone();
                    if pool.failed_batch != held.first {
                        pool.failed_batch = held.first;
                        pool.failures = pool.failures.saturating_add(1);
                    }
                }
                self.relist_workers(|offer| offer.allocation == Some(*allocation));
            }
            PoolEvent::PoolPaused { pool, reason, by } => {
                self.pools.entry(Arc::clone(pool)).or_default().paused = Some(Pause {
                    reason: reason.clone(),
                    by: Arc::clone(by),
                    at,
                });
            }
            PoolEvent::PoolResumed { pool, .. } => {
                if let Some(pool) = self.pools.get_mut(pool) {
                    pool.paused = None;
                    pool.failures = 0;
                    pool.suspects.clear();
                    pool.quarantined.clear();
                }
                self.relist_workers(|offer| offer.pool == *pool);
            }
            PoolEvent::HostQuarantined {
                pool,
                host,
                reason,
                until,
            } => {
                let known = self.pools.entry(Arc::clone(pool)).or_default();
                known.suspects.remove(host);
                let quarantine = Quarantine {
                    reason: reason.clone(),
                    at,
                    until: *until,
                };
                known.quarantined.insert(Arc::clone(host), quarantine);
                self.relist_workers(|offer| offer.pool == *pool && offer.host == *host);
            }
            PoolEvent::HostReleased { pool, host } => {
                if let Some(known) = self.pools.get_mut(pool) {
                    known.quarantined.remove(host);
                }
                self.relist_workers(|offer| offer.pool == *pool && offer.host == *host);
            }
            PoolEvent::PoolForgotten { pool, .. } => {
                self.pools.remove(pool);
                self.allocations.retain(|_, held| held.pool != *pool);
                self.relist_workers(|offer| offer.pool == *pool);
            }
        }
    }

    /// A worker has said hello with the credential of an allocation.
    pub(crate) fn note_joined(&mut self, at: Timestamp, worker: &WorkerId) {
        let offer = self.worker(worker).map(|worker| Arc::clone(&worker.offer));
        let Some(offer) = offer else {
            return;
        };
        let Some(held) = offer
            .allocation
            .and_then(|id| self.allocations.get_mut(&id))
        else {
            return;
        };
        if !held.joined {
            held.joined_at = Some(at);
        }
        held.joined = true;
        // A worker that comes late all the same is as good as one in time.
        let late = held.ending.as_ref();
        if late.is_some_and(|ending| ending.cause == EndCause::NeverJoined) {
            held.ending = None;
        }
    }

    /// A worker has got a lease.
    pub(crate) fn note_granted(&mut self, worker: &WorkerId) {
        let allocation = self.worker(worker).and_then(|known| known.offer.allocation);
        if let Some(held) = allocation.and_then(|id| self.allocations.get_mut(&id)) {
            held.worked = true;
        }
    }

    /// The start of an allocation was a good one. Those that failed before its worker joined are
    /// forgotten; of those that failed since it says nothing.
    fn prove(&mut self, id: AllocationId) {
        let Some(held) = self.allocations.get_mut(&id) else {
            return;
        };
        held.proven = true;
        let pool = self.pools.get_mut(&held.pool);
        if let Some(pool) = pool.filter(|pool| pool.failed_at <= held.joined_at.unwrap_or_default())
        {
            pool.failures = 0;
        }
    }

    /// An attempt has failed at once, perhaps through its host's fault.
    pub(crate) fn note_failed(&mut self, lease: LeaseId, task: TaskKey) {
        let Some(worker) = self.lease(lease).map(|lease| lease.worker.clone()) else {
            return;
        };
        let offer = self.worker(&worker).map(|worker| Arc::clone(&worker.offer));
        if let Some(offer) = offer {
            let pool = self.pools.entry(Arc::clone(&offer.pool)).or_default();
            if pool.suspects.len() < limits::SUSPECTS || pool.suspects.contains_key(&offer.host) {
                let tasks = pool.suspects.entry(Arc::clone(&offer.host)).or_default();
                if tasks.len() < limits::QUARANTINE_TASKS {
                    tasks.insert(task);
                }
            }
        }
    }

    /// Work has gone well on a worker: its host can do some.
    pub(crate) fn note_succeeded(&mut self, worker: &WorkerId) {
        let offer = self.worker(worker).map(|worker| Arc::clone(&worker.offer));
        if let Some(id) = offer.as_ref().and_then(|offer| offer.allocation) {
            self.prove(id);
        }
        if let Some(offer) = offer
            && let Some(pool) = self.pools.get_mut(&offer.pool)
        {
            pool.suspects.remove(&offer.host);
        }
    }

    fn relist_workers(&mut self, which: impl Fn(&crate::worker::Offer) -> bool) {
        let workers = self.workers.values();
        let touched = workers.filter(|entry| which(&entry.worker.offer));
        let touched: Vec<WorkerId> = touched.map(|entry| entry.worker.id.clone()).collect();
        for worker in touched {
            self.relist_worker(&worker);
        }
    }
}
