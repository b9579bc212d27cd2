//! From what was kept to a state that works: images, replay, and the start of a coordinator.

use crate::event::{Event, EventKind};
use crate::failure::FailureClass;
use crate::ids::{AllocationId, Epoch, LeaseId, RunId, WorkerId};
use crate::index::Said;
use crate::pool::PoolEvent;
use crate::settle::settle_all;
use crate::state::{AttemptEnd, Image, Link, RunImage, State};
use crate::time::Timestamp;

/// A journal that does not hold together. The state must not be used any further.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReplayError {
    #[error("event {got} of {of} follows event {last}")]
    Gap { of: Box<str>, last: u64, got: u64 },
    #[error("event {seq} belongs to {run}, which is not live")]
    UnknownRun { run: RunId, seq: u64 },
    #[error("event {seq} of {run} brings a run that is live or older than the last one")]
    RunExists { run: RunId, seq: u64 },
    #[error("event {seq} of {run} names lease {lease}, which is not open or not new")]
    Lease {
        run: RunId,
        seq: u64,
        lease: LeaseId,
    },
    #[error("event {seq} of {run} names a task that the run does not have")]
    UnknownTask { run: RunId, seq: u64 },
    #[error("event {seq} names worker {worker}, which is not known")]
    UnknownWorker { worker: WorkerId, seq: u64 },
    #[error("event {seq} names allocation {allocation}, which is not known or not new")]
    Allocation { allocation: AllocationId, seq: u64 },
    #[error("the image does not hold together: {0}")]
    Image(String),
}

impl State {
    /// Makes a state from an image. Leases get a full TTL plus grace, workers are not connected.
    ///
    /// # Errors
    /// Fails when the image does not hold together.
    pub fn from_image(image: Image, now: Timestamp) -> Result<Self, ReplayError> {
        let mut state = Self {
            epoch: image.epoch,
            last_seq: image.last_seq,
            next_run: image.next_run,
            next_lease: image.next_lease,
            next_question: image.next_question,
            next_allocation: image.next_allocation,
            pools: image.pools,
            keys: image.keys,
            ..Self::default()
        };
        for allocation in image.allocations {
            let id = allocation.id;
            let known = state.allocations.insert(id, allocation);
            if known.is_some() || id >= state.next_allocation {
                return Err(ReplayError::Image(format!(
                    "allocation {id} twice or too new"
                )));
            }
        }
        for mut worker in image.workers {
            worker.link = Link::Down { since: now };
            state.open_worker(worker);
        }
        for run in image.runs {
            if state.runs.contains_key(&run.id) || run.id >= state.next_run {
                return Err(ReplayError::Image(format!("{} twice or too new", run.id)));
            }
            crate::invariants::check_run(&run).map_err(ReplayError::Image)?;
            state.open_run(run, now);
        }
        for mut lease in image.leases {
            let known = state.runs.contains_key(&lease.run)
                && state.workers.contains_key(&lease.worker)
                && lease.id < state.next_lease;
            if !known || state.leases.contains_key(&lease.id) {
                return Err(ReplayError::Image(format!(
                    "lease {} hangs loose",
                    lease.id
                )));
            }
            lease.expires_at = now + lease.ttl + state.clocks.grace;
            state.open_lease(lease);
        }
        let runs: Vec<RunId> = state.runs.keys().copied().collect();
        runs.into_iter().for_each(|run| state.remember_results(run));
        crate::invariants::check(&state).map_err(ReplayError::Image)?;
        Ok(state)
    }

    /// Gives everything durable as plain data. Two states that went through the same events have
    /// equal images.
    #[must_use]
    pub fn image(&self) -> Image {
        let workers = self.workers().cloned().map(|mut worker| {
            worker.link = Link::Down {
                since: Timestamp::default(),
            };
            worker
        });
        let leases = self.leases().cloned().map(|mut lease| {
            lease.expires_at = lease.granted_at + lease.ttl + self.clocks.grace;
            lease
        });
        let allocations = self.allocations().cloned().map(|mut allocation| {
            allocation.idle_since = None;
            allocation.vain_since = None;
            allocation.held = None;
            allocation
        });
        Image {
            epoch: self.epoch,
            last_seq: self.last_seq,
            next_run: self.next_run,
            next_lease: self.next_lease,
            next_question: self.next_question,
            next_allocation: self.next_allocation,
            pools: self.pools.clone(),
            allocations: allocations.collect(),
            workers: workers.collect(),
            runs: self.runs().cloned().collect(),
            leases: leases.collect(),
            keys: self.keys.clone(),
        }
    }

    /// Gives the image of one run, for the archive.
    #[must_use]
    pub fn run_image(&self, run: RunId) -> Option<RunImage> {
        let run = self.run(run)?.clone();
        Some(RunImage { run })
    }

    /// Lets a journaled event change the state.
    ///
    /// # Errors
    /// Fails, with the state unchanged, when the event does not follow from what came before.
    pub fn replay(&mut self, event: &Event) -> Result<(), ReplayError> {
        self.check_event(event)?;
        self.evolve(event);
        Ok(())
    }

    fn check_event(&self, event: &Event) -> Result<(), ReplayError> {
        let (seq, kind) = (event.seq, &event.kind);
        match kind {
            EventKind::RunSubmitted { run, .. } if *run < self.next_run => {
                return Err(ReplayError::RunExists { run: *run, seq });
            }
            EventKind::RunReloaded { run, image } => {
                if self.runs.contains_key(run) || image.run.id != *run {
                    return Err(ReplayError::RunExists { run: *run, seq });
                }
                crate::invariants::check_run(&image.run).map_err(ReplayError::Image)?;
            }
            EventKind::RunSubmitted { .. } => {}
            kind => {
                if let Some(run) = kind.run().filter(|run| !self.runs.contains_key(run)) {
                    return Err(ReplayError::UnknownRun { run, seq });
                }
            }
        }
        let expected = self.expected_seq(kind);
        if seq != expected {
            let of = kind.run().map(|run| run.to_string());
            return Err(ReplayError::Gap {
                of: of.unwrap_or_else(|| "the coordinator".into()).into(),
                last: expected - 1,
                got: seq,
            });
        }
        self.check_names(event)
    }

    fn check_names(&self, event: &Event) -> Result<(), ReplayError> {
        let seq = event.seq;
        let (run, lease, fits) = match &event.kind {
            EventKind::LeaseGranted {
                run, lease, worker, ..
            } => {
                if !self.workers.contains_key(worker) {
                    let worker = worker.clone();
                    return Err(ReplayError::UnknownWorker { worker, seq });
                }
                (*run, *lease, *lease >= self.next_lease)
            }
            EventKind::WorkStarted { run, lease }
            | EventKind::AttemptSucceeded { run, lease, .. }
            | EventKind::AttemptFailed { run, lease, .. }
            | EventKind::VerifyPassed { run, lease }
            | EventKind::VerifyFailed { run, lease, .. }
            | EventKind::VerifyLost { run, lease, .. }
            | EventKind::LeaseRevoked { run, lease }
            | EventKind::LeaseClosed { run, lease, .. }
            | EventKind::QuestionAsked { run, lease, .. }
            | EventKind::QuestionClosed { run, lease, .. }
            | EventKind::ConversationOpened { run, lease, .. }
            | EventKind::TaskParked { run, lease, .. } => {
                let open = self.lease(*lease).is_some_and(|open| open.run == *run);
                (*run, *lease, open)
            }
            EventKind::Pool(event) => return self.check_pool(seq, event),
            EventKind::WorkerDraining { worker, .. } | EventKind::WorkerForgotten { worker } => {
                if !self.workers.contains_key(worker) {
                    let worker = worker.clone();
                    return Err(ReplayError::UnknownWorker { worker, seq });
                }
                return Ok(());
            }
            EventKind::TaskBasing { task }
            | EventKind::TaskReady { task, .. }
            | EventKind::TaskSucceeded { task, .. }
            | EventKind::TaskFailed { task, .. }
            | EventKind::TaskSkipped { task, .. }
            | EventKind::TaskCancelled { task, .. }
            | EventKind::TaskAborted { task, .. }
            | EventKind::TaskReopened { task, .. } => {
                if self.task(*task).is_none() {
                    return Err(ReplayError::UnknownTask { run: task.run, seq });
                }
                return Ok(());
            }
            EventKind::CoordinatorStarted { .. }
            | EventKind::WorkerJoined { .. }
            | EventKind::RunSubmitted { .. }
            | EventKind::CancelRequested { .. }
            | EventKind::IntegrationStarted { .. }
            | EventKind::IntegrationMerged { .. }
            | EventKind::IntegrationConflicted { .. }
            | EventKind::RunEnded { .. }
            | EventKind::RunReopened { .. }
            | EventKind::RunArchived { .. }
            | EventKind::RunReloaded { .. }
            | EventKind::QuestionAnswered { .. } => return Ok(()),
        };
        if fits {
            Ok(())
        } else {
            Err(ReplayError::Lease { run, seq, lease })
        }
    }

    fn check_pool(&self, seq: u64, event: &PoolEvent) -> Result<(), ReplayError> {
        let (allocation, fits) = match event {
            PoolEvent::AllocationsWanted { first, .. } => (*first, *first >= self.next_allocation),
            PoolEvent::AllocationQueued { allocation, .. }
            | PoolEvent::AllocationRunning { allocation, .. }
            | PoolEvent::AllocationProven { allocation }
            | PoolEvent::AllocationEnding { allocation, .. }
            | PoolEvent::AllocationEnded { allocation, .. } => {
                (*allocation, self.allocations.contains_key(allocation))
            }
            PoolEvent::PoolPaused { .. }
            | PoolEvent::PoolResumed { .. }
            | PoolEvent::HostQuarantined { .. }
            | PoolEvent::HostReleased { .. }
            | PoolEvent::PoolForgotten { .. } => return Ok(()),
        };
        if fits {
            Ok(())
        } else {
            Err(ReplayError::Allocation { allocation, seq })
        }
    }

    /// Starts a coordinator on what was replayed: a new epoch, every open lease a full TTL plus
    /// grace, no worker connected. Nothing is run again merely because of it.
    pub fn start(&mut self, now: Timestamp, epoch: Epoch) -> Vec<Event> {
        let workers: Vec<WorkerId> = self.workers.keys().cloned().collect();
        for worker in workers {
            self.touch(
                now,
                crate::Touch::Down {
                    worker,
                    leaves: false,
                },
            );
        }
        let leases: Vec<LeaseId> = self.leases.keys().copied().collect();
        for lease in leases {
            self.touch(now, crate::Touch::Renew { lease });
        }
        let mut events = vec![self.record(now, EventKind::CoordinatorStarted { epoch })];
        settle_all(self, now, &mut events);
        events
    }

    /// Recalls from the attempts which results were recorded, so that repeats are recognised.
    pub(crate) fn remember_results(&mut self, id: RunId) {
        let Some(run) = self.run(id) else {
            return;
        };
        let attempts = run.tasks.iter().flat_map(|task| task.attempts());
        let closed = attempts.filter(|attempt| !self.leases.contains_key(&attempt.lease));
        let said = closed.filter_map(|attempt| {
            let said = match &attempt.end {
                Some(
                    AttemptEnd::Made(_)
                    | AttemptEnd::Succeeded(_)
                    | AttemptEnd::VerifyFailed { .. },
                ) => Said::Made,
                // Of these the coordinator may have decided without the worker's word.
                Some(AttemptEnd::Failed(failure))
                    if !matches!(
                        failure.class,
                        FailureClass::WorkerLost | FailureClass::TimedOut
                    ) =>
                {
                    Said::NotMade
                }
                _ => return None,
            };
            Some((attempt.lease, attempt.worker.clone(), said))
        });
        let said: Vec<_> = said.collect();
        for (lease, worker, said) in said {
            self.remember_as(id, lease, worker, said);
        }
    }
}
