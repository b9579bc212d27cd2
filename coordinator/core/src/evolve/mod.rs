//! How events change state. Total: whatever the event, nothing panics and nothing is refused.

use std::sync::Arc;

use crate::build;
use crate::event::{Event, EventKind, LeaseEnd, Work};
use crate::ids::{AllocationId, Epoch, LeaseId, QuestionId, RunId, TaskKey};
use crate::index::Said;
use crate::pool::blames_host_at;
use crate::question::{Answered, Question};
use crate::state::{
    AttemptEnd, CancelRequest, Lease, Link, RunPhase, State, TaskState, VerifyPhase, Worker,
};
use crate::time::Timestamp;

mod leases;
mod questions;
mod tasks;

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
            EventKind::CoordinatorStarted { epoch } => {
                self.epoch = *epoch;
                self.started_at = event.at;
                if *epoch >= Epoch::RESTORED {
                    self.next_run = self.next_run.max(RunId(epoch.0));
                    self.next_lease = self.next_lease.max(LeaseId(epoch.0));
                    self.next_question = self.next_question.max(QuestionId(epoch.0));
                    self.next_allocation = self.next_allocation.max(AllocationId(epoch.0));
                }
            }
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
                self.note_joined(at, worker);
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
            EventKind::RunArchived { run } => {
                self.close_run(*run);
                self.archived.push_back((*run, event.seq.saturating_sub(1)));
                if self.archived.len() > crate::limits::ARCHIVED_REMEMBERED {
                    self.archived.pop_front();
                }
            }
            EventKind::RunReloaded { image, .. } => {
                let mut run = image.run.clone();
                run.last_seq = event.seq;
                let id = run.id;
                self.archived.retain(|(archived, _)| *archived != id);
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
                placement: _,
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
                self.note_granted(worker);
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
                if let Some(worker) = self.lease(*lease).map(|lease| lease.worker.clone()) {
                    self.note_succeeded(&worker);
                }
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
                blames_host,
            } => {
                self.remember(*run, *lease, Said::NotMade);
                if let Some(key) = self.task_of(*lease) {
                    let open = self.lease(*lease);
                    let blames = open.is_some_and(|open| blames_host_at(open, failure.class, at));
                    if blames_host.unwrap_or(blames) {
                        self.note_failed(*lease, key);
                    }
                    self.end_attempt(key, at, || AttemptEnd::Failed(failure.clone()));
                    self.amend_attempt(key, |attempt| attempt.usage = *usage);
                    self.count_failure(key, failure);
                    if let Some(retry_at) = retry_at {
                        self.set_task(key, at, ready(at, *retry_at));
                    }
                }
            }
            EventKind::VerifyPassed { run, lease } => {
                self.remember(*run, *lease, Said::Made);
                if let Some(worker) = self.lease(*lease).map(|lease| lease.worker.clone()) {
                    self.note_succeeded(&worker);
                }
            }
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
                let revoked = self.leases.get_mut(lease).and_then(|entry| {
                    let was = entry.lease.revoked;
                    entry.lease.revoked = true;
                    (!was).then_some(entry.lease.work)
                });
                if let Some(work) = revoked {
                    self.change_live(*run, |aux| {
                        aux.live = aux.live.saturating_sub(1);
                        aux.begin_ending(work);
                    });
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
                number,
                asking,
                ..
            } => {
                self.count_question(*question);
                let question = Question {
                    id: *question,
                    number: *number,
                    asking: Arc::clone(asking),
                    asked_at: at,
                    answer: None,
                };
                self.ask(*lease, at, question);
            }
            EventKind::QuestionAnswered {
                question,
                choice,
                text,
                by,
                ..
            } => {
                let answer = Answered {
                    choice: choice.clone(),
                    text: text.clone(),
                    by: Arc::clone(by),
                    at,
                };
                self.answer(*question, at, &answer);
            }
            EventKind::QuestionClosed {
                lease,
                question,
                number,
                choice,
                by,
                ..
            } => {
                self.count_question(*question);
                self.close_question(*lease, at, (*question, *number), choice, by);
            }
            EventKind::ConversationOpened {
                lease,
                conversation,
                software,
                ..
            } => self.open_conversation(*lease, conversation, software),
            EventKind::TaskParked { lease, .. } => self.park(*lease, at),
            EventKind::Pool(event) => self.evolve_pool(at, event),
        }
    }
}

fn ready(at: Timestamp, not_before: Timestamp) -> TaskState {
    TaskState::Ready {
        since: at,
        not_before: not_before.max(at),
    }
}
