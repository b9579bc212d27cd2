//! Every event of every run, gone through once more: what may happen once has happened once.
//!
//! Independent of the core's own state machine on purpose: a mistake there would be made again by
//! a check that replays through it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use coordinator_core::event::Work;
use coordinator_core::{AttemptNo, Event, EventKind, LeaseId, RunId, TaskIx, WorkerId};

use super::finding::{Code, Finding, Place};

/// What became of one lease.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Lease {
    pub run: RunId,
    pub work: Work,
    pub worker: WorkerId,
    pub is_closed: bool,
    /// A result of it was recorded.
    pub has_result: bool,
    /// Its worker said that it made something.
    pub by_worker: bool,
}

/// What is known of a run by its events alone.
#[derive(Clone, Debug, Default)]
pub(super) struct Entry {
    pub name: Arc<str>,
    pub tasks: Vec<Arc<str>>,
    /// Number of its last event.
    pub last_seq: u64,
    /// Number of the event by which it left memory, unless it has come back since.
    pub archived_by: Option<u64>,
    /// Events are missing or double: what follows from counting them is not to be trusted.
    pub is_broken: bool,
    attempts: BTreeMap<(TaskIx, AttemptNo), LeaseId>,
    generations: BTreeMap<TaskIx, u32>,
    accepted: BTreeSet<(TaskIx, u32)>,
}

/// Goes through the events of all runs; those of one run are to come in order.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub runs: BTreeMap<RunId, Entry>,
    pub leases: BTreeMap<LeaseId, Lease>,
    pub events: u64,
    pub findings: Vec<Finding>,
}

impl Ledger {
    /// Names where something of a run is.
    #[must_use]
    pub(super) fn place(&self, run: RunId) -> Place {
        match self.runs.get(&run).filter(|entry| !entry.name.is_empty()) {
            Some(entry) => Place::run(&entry.name),
            None => Place::run(&run.to_string()),
        }
    }

    /// Names where the work of a lease is.
    #[must_use]
    pub(super) fn place_of(&self, run: RunId, work: Work) -> Place {
        let place = self.place(run);
        let task = |ix: TaskIx| {
            let names = self.runs.get(&run).map(|entry| &entry.tasks);
            names
                .and_then(|names| names.get(usize::try_from(ix.0).ok()?))
                .map_or_else(|| ix.to_string(), ToString::to_string)
        };
        match work {
            Work::Attempt { task: ix, attempt } | Work::Verify { task: ix, attempt } => {
                place.of_task(&task(ix)).of_attempt(attempt.0)
            }
            Work::FinalVerify => place,
        }
    }

    /// Takes the next event of a run.
    pub(super) fn take(&mut self, event: &Event) {
        let Some(run) = event.kind.run() else {
            return;
        };
        self.events += 1;
        let entry = self.runs.entry(run).or_default();
        if let EventKind::RunSubmitted { spec, .. } = &event.kind {
            entry.name = Arc::clone(&spec.name);
            entry.tasks = spec
                .tasks
                .iter()
                .map(|task| Arc::clone(&task.name))
                .collect();
        }
        let expected = entry.last_seq + 1;
        let was_broken = entry.is_broken;
        entry.last_seq = event.seq;
        if event.seq != expected && !was_broken {
            entry.is_broken = true;
            let what = format!("event {} follows event {}", event.seq, expected - 1);
            self.find(Code::EventGap, self.place(run), what);
        }
        self.count(run, event);
    }

    fn count(&mut self, run: RunId, event: &Event) {
        match &event.kind {
            EventKind::LeaseGranted {
                lease,
                work,
                worker,
                ..
            } => self.grant(run, *lease, *work, worker),
            EventKind::AttemptSucceeded { lease, .. }
            | EventKind::AttemptFailed { lease, .. }
            | EventKind::VerifyPassed { lease, .. }
            | EventKind::VerifyFailed { lease, .. }
            | EventKind::VerifyLost { lease, .. }
            | EventKind::TaskParked { lease, .. } => {
                self.result(run, *lease, event.kind.name());
                let said = matches!(event.kind, EventKind::AttemptSucceeded { .. });
                if let Some(lease) = self.leases.get_mut(lease) {
                    lease.by_worker |= said;
                }
            }
            EventKind::LeaseClosed { lease, .. } => self.close(run, *lease),
            EventKind::TaskReopened {
                task, generation, ..
            } => {
                if let Some(entry) = self.runs.get_mut(&run) {
                    entry.generations.insert(task.task, *generation);
                }
            }
            EventKind::TaskSucceeded { task, .. } => self.accept(run, task.task),
            EventKind::RunArchived { .. } => self.archived(run, Some(event.seq)),
            EventKind::RunReloaded { .. } => self.archived(run, None),
            EventKind::CoordinatorStarted { .. }
            | EventKind::WorkerJoined { .. }
            | EventKind::WorkerDraining { .. }
            | EventKind::WorkerForgotten { .. }
            | EventKind::Pool(_)
            | EventKind::RunSubmitted { .. }
            | EventKind::CancelRequested { .. }
            | EventKind::IntegrationStarted { .. }
            | EventKind::IntegrationMerged { .. }
            | EventKind::IntegrationConflicted { .. }
            | EventKind::RunEnded { .. }
            | EventKind::RunReopened { .. }
            | EventKind::TaskBasing { .. }
            | EventKind::TaskReady { .. }
            | EventKind::TaskFailed { .. }
            | EventKind::TaskSkipped { .. }
            | EventKind::TaskCancelled { .. }
            | EventKind::TaskAborted { .. }
            | EventKind::WorkStarted { .. }
            | EventKind::LeaseRevoked { .. }
            | EventKind::QuestionAsked { .. }
            | EventKind::QuestionAnswered { .. }
            | EventKind::QuestionClosed { .. }
            | EventKind::ConversationOpened { .. } => {}
        }
    }

    fn grant(&mut self, run: RunId, lease: LeaseId, work: Work, worker: &WorkerId) {
        let place = self.place_of(run, work).of_lease(lease.0);
        let new = Lease {
            run,
            work,
            worker: worker.clone(),
            is_closed: false,
            has_result: false,
            by_worker: false,
        };
        if self.leases.insert(lease, new).is_some() {
            self.find(Code::LeaseTwice, place.clone(), "it was granted twice");
        }
        let Work::Attempt { task, attempt } = work else {
            return;
        };
        let Some(entry) = self.runs.get_mut(&run) else {
            return;
        };
        if let Some(first) = entry.attempts.insert((task, attempt), lease) {
            let what = format!("the attempt was leased before, as {first}");
            self.find(Code::AttemptTwice, place, what);
        }
    }

    fn result(&mut self, run: RunId, lease: LeaseId, name: &str) {
        let (place, fits) = match self.leases.get_mut(&lease) {
            Some(known) => {
                let fits = known.run == run && !known.is_closed && !known.has_result;
                known.has_result = true;
                let work = known.work;
                (self.place_of(run, work), fits)
            }
            None => (self.place(run), false),
        };
        if !fits && !self.is_broken(run) {
            let what =
                format!("{name} counted for a lease that had a result, had ended, or never was");
            self.find(Code::ResultTwice, place.of_lease(lease.0), what);
        }
    }

    fn close(&mut self, run: RunId, lease: LeaseId) {
        let (place, fits) = match self.leases.get_mut(&lease) {
            Some(known) => {
                let fits = known.run == run && !known.is_closed;
                known.is_closed = true;
                let work = known.work;
                (self.place_of(run, work), fits)
            }
            None => (self.place(run), false),
        };
        if !fits && !self.is_broken(run) {
            let what = "it was closed although it had ended or was never granted";
            self.find(Code::LeaseClosedTwice, place.of_lease(lease.0), what);
        }
    }

    fn accept(&mut self, run: RunId, task: TaskIx) {
        let Some(entry) = self.runs.get_mut(&run) else {
            return;
        };
        let generation = entry.generations.get(&task).copied().unwrap_or(1);
        if !entry.accepted.insert((task, generation)) {
            let attempt = Work::Verify {
                task,
                attempt: AttemptNo(0),
            };
            let mut place = self.place_of(run, attempt);
            place.attempt = None;
            let what = format!("two results were accepted in generation {generation}");
            self.find(Code::AcceptedTwice, place, what);
        }
    }

    fn archived(&mut self, run: RunId, by: Option<u64>) {
        if let Some(entry) = self.runs.get_mut(&run) {
            entry.archived_by = by;
        }
    }

    fn is_broken(&self, run: RunId) -> bool {
        self.runs.get(&run).is_none_or(|entry| entry.is_broken)
    }

    fn find(&mut self, code: Code, place: Place, what: impl std::fmt::Display) {
        self.findings.push(Finding::new(code, place, what));
    }
}

#[cfg(test)]
mod tests {
    use coordinator_core::event::{LeaseEnd, Outcome};
    use coordinator_core::{Incarnation, Span, TaskKey, Timestamp};

    use super::*;

    const RUN: RunId = RunId(1);

    fn codes(kinds: Vec<EventKind>) -> Vec<&'static str> {
        let mut ledger = Ledger::default();
        for (seq, kind) in (1..).zip(kinds) {
            ledger.take(&Event {
                seq,
                at: Timestamp::from_ms(seq),
                kind,
            });
        }
        ledger
            .findings
            .iter()
            .map(|found| found.code.as_str())
            .collect()
    }

    fn granted(lease: u64, attempt: u32) -> EventKind {
        EventKind::LeaseGranted {
            run: RUN,
            lease: LeaseId(lease),
            work: Work::Attempt {
                task: TaskIx(0),
                attempt: AttemptNo(attempt),
            },
            worker: WorkerId::new("w"),
            incarnation: Incarnation(1),
            ttl: Span::from_ms(1),
            placement: coordinator_core::event::Placement::default(),
        }
    }

    fn closed(lease: u64) -> EventKind {
        EventKind::LeaseClosed {
            run: RUN,
            lease: LeaseId(lease),
            end: LeaseEnd::Confirmed,
        }
    }

    fn made(lease: u64) -> EventKind {
        EventKind::VerifyPassed {
            run: RUN,
            lease: LeaseId(lease),
        }
    }

    fn succeeded() -> EventKind {
        EventKind::TaskSucceeded {
            task: TaskKey {
                run: RUN,
                task: TaskIx(0),
            },
            outcome: Outcome::NoChange,
        }
    }

    fn reopened(generation: u32) -> EventKind {
        EventKind::TaskReopened {
            task: TaskKey {
                run: RUN,
                task: TaskIx(0),
            },
            generation,
            by: "ann".into(),
        }
    }

    #[test]
    fn an_orderly_history_has_no_finding() {
        let story = vec![
            granted(1, 1),
            made(1),
            closed(1),
            succeeded(),
            reopened(2),
            granted(2, 2),
            made(2),
            closed(2),
            succeeded(),
        ];
        assert_eq!(codes(story), [""; 0]);
    }

    #[test]
    fn whatever_happened_twice_is_found() {
        assert_eq!(codes(vec![granted(1, 1), granted(1, 2)]), ["lease-twice"]);
        assert_eq!(codes(vec![granted(1, 1), granted(2, 1)]), ["attempt-twice"]);
        assert_eq!(
            codes(vec![granted(1, 1), closed(1), closed(1)]),
            ["lease-closed-twice"]
        );
        assert_eq!(codes(vec![closed(9)]), ["lease-closed-twice"]);
        assert_eq!(
            codes(vec![granted(1, 1), made(1), made(1)]),
            ["result-twice"]
        );
        assert_eq!(
            codes(vec![granted(1, 1), closed(1), made(1)]),
            ["result-twice"]
        );
        assert_eq!(codes(vec![succeeded(), succeeded()]), ["accepted-twice"]);
    }

    #[test]
    fn a_gap_is_found_once() {
        let mut ledger = Ledger::default();
        for seq in [1, 3, 5] {
            let at = Timestamp::from_ms(seq);
            let kind = EventKind::IntegrationStarted { run: RUN };
            ledger.take(&Event { seq, at, kind });
        }
        assert_eq!(ledger.findings.len(), 1);
        assert_eq!(ledger.findings[0].code, Code::EventGap);
    }
}
