//! Which commands have met which states, and which never have.
//!
//! A pair is a kind of state and a kind of command that can concern it. [`pairs`] enumerates all that
//! exist; worlds say through [`Watch::met`] which they reached. One that no seed reaches is a place
//! where nobody has looked: either the worlds are too tame, or it is impossible and [`EXCUSED`] says
//! why.

mod excused;
mod kinds;
mod observe;

use std::collections::BTreeMap;
use std::fmt;

use crate::Watch;
pub use excused::EXCUSED;
pub use kinds::{Came, Met};
pub use observe::{observe, observe_due, observe_pool_event, observe_start};

const TASKS: &[Met] = &[
    Met::TaskBlocked,
    Met::TaskBasing,
    Met::TaskReady,
    Met::TaskDelayed,
    Met::TaskLeased,
    Met::TaskAsking,
    Met::TaskAnswered,
    Met::TaskVerifyWaiting,
    Met::TaskVerifyLeased,
    Met::TaskParked,
    Met::TaskSucceeded,
    Met::TaskFailed,
    Met::TaskCancelled,
    Met::TaskAborted,
    Met::TaskSkipped,
];
const NO_TASK: &[Met] = &[Met::TaskUnknown];
const RUNS: &[Met] = &[
    Met::RunActive,
    Met::RunIntegrating,
    Met::RunVerifyWaiting,
    Met::RunVerifyLeased,
    Met::RunSucceeded,
    Met::RunFailed,
    Met::RunCancelled,
];
const NO_RUN: &[Met] = &[Met::RunUnknown];
const LEASES: &[Met] = &[
    Met::AttemptGranted,
    Met::AttemptStarted,
    Met::AttemptAsking,
    Met::AttemptAnswered,
    Met::VerifyGranted,
    Met::VerifyStarted,
    Met::FinalGranted,
    Met::FinalStarted,
    Met::AttemptRevoked,
    Met::VerifyRevoked,
    Met::FinalRevoked,
];
const NO_LEASE: &[Met] = &[Met::LeaseForeign, Met::LeaseNotOpen];
const WORKERS: &[Met] = &[Met::WorkerUp, Met::WorkerDraining, Met::WorkerDown];
const NO_WORKER: &[Met] = &[Met::WorkerUnknown];
const QUESTIONS: &[Met] = &[
    Met::QuestionOpen,
    Met::QuestionParked,
    Met::QuestionAnswered,
    Met::QuestionClosed,
    Met::QuestionUnknown,
];

const POOLS: &[Met] = &[Met::PoolOpen, Met::PoolFailing, Met::PoolPaused];
/// Allocations that are not to end, as the journal knows them.
const ALLOCATIONS: &[Met] = &[
    Met::AllocationWanted,
    Met::AllocationQueued,
    Met::AllocationJoining,
    Met::AllocationJoined,
];
/// Of this only the coordinator's process knows.
const HELD: &[Met] = &[Met::AllocationHeld];
const ENDING: &[Met] = &[Met::AllocationEnding];
const NO_ALLOCATION: &[Met] = &[Met::AllocationUnknown];

impl Came {
    /// Gives the states that the command can concern, in groups.
    const fn concerns(self) -> &'static [&'static [Met]] {
        match self {
            Self::Submit | Self::SubmitAgain | Self::Reload => &[RUNS, NO_RUN],
            Self::CancelRun | Self::RetryRun => &[RUNS, NO_RUN, TASKS],
            Self::CancelTask | Self::RetryTask => &[TASKS, NO_TASK, RUNS],
            Self::Drain | Self::Undrain => &[WORKERS, NO_WORKER],
            Self::Answer => &[QUESTIONS],
            Self::Hello | Self::HeartbeatOld | Self::ClosedOld => &[WORKERS, NO_WORKER],
            // They need a worker that is known, or that has a session.
            Self::HelloNewer | Self::HelloOlder | Self::HelloLate => &[WORKERS],
            Self::Heartbeat | Self::Closed => &[&[Met::WorkerUp, Met::WorkerDraining]],
            Self::HelloHeld | Self::HelloNewerHeld | Self::HeartbeatHeld => &[LEASES, NO_LEASE],
            Self::HelloNotHeld
            | Self::HelloNewerNotHeld
            | Self::HeartbeatNotHeld
            | Self::ClosedLease => &[LEASES],
            Self::Started
            | Self::Succeeded
            | Self::FailedCounts
            | Self::FailedFree
            | Self::VerifyPassed
            | Self::GivenBack
            | Self::Stopped
            | Self::Asks
            | Self::Closes
            | Self::Converses => &[LEASES, NO_LEASE],
            Self::BaseMade | Self::BaseConflict | Self::BaseError => &[TASKS, NO_TASK],
            Self::IntegrationMade | Self::IntegrationConflict | Self::IntegrationError => {
                &[RUNS, NO_RUN]
            }
            Self::Archived => &[RUNS, NO_RUN],
            // Only what is known can be newer than they are.
            Self::BaseOld => &[TASKS],
            Self::IntegrationOld | Self::ArchivedEarly => &[RUNS],
            Self::TickSilence => &[LEASES],
            Self::TickTimeout => &[&[
                Met::AttemptGranted,
                Met::AttemptStarted,
                Met::AttemptAnswered,
                Met::VerifyGranted,
                Met::VerifyStarted,
                Met::FinalGranted,
                Met::FinalStarted,
            ]],
            Self::TickTask => &[&[
                Met::TaskBasing,
                Met::TaskReady,
                Met::TaskDelayed,
                Met::TaskAsking,
                Met::TaskVerifyWaiting,
                Met::TaskParked,
            ]],
            Self::TickRun => &[&[Met::RunIntegrating, Met::RunVerifyWaiting]],
            Self::TickForget => &[&[Met::WorkerDown]],
            Self::Start => &[TASKS, RUNS, LEASES],
            Self::Goodbye => &[&[Met::WorkerUp, Met::WorkerDraining]],
            Self::GoodbyeLease => &[LEASES],
            Self::GoodbyeOld => &[WORKERS, NO_WORKER],
            Self::PoolConfigure
            | Self::PoolPlan
            | Self::PoolPause
            | Self::PoolResume
            | Self::PoolForget
            | Self::PoolDisown
            | Self::HostQuarantined
            | Self::HostReleased => &[POOLS],
            // Only one that goes on can pause.
            Self::PausesItself => &[&[Met::PoolOpen, Met::PoolFailing]],
            Self::SeenRefused
            | Self::SeenQueued
            | Self::SeenHeld
            | Self::SeenRunning
            | Self::SeenGone => &[ALLOCATIONS, HELD, ENDING, NO_ALLOCATION],
            Self::ToEndIdle | Self::ToEndSurplus => &[ALLOCATIONS],
            Self::ToEndNeverJoined => &[&[Met::AllocationJoining]],
            Self::ToEndNeverWorked
            | Self::ToEndQuarantined
            | Self::ToEndDeserted
            | Self::Proven
            | Self::EndedDiedYoung
            | Self::EndedGone => &[&[Met::AllocationJoined]],
            Self::EndedReleased | Self::EndedNeverWorked => &[ENDING],
            Self::EndedRefused => &[ALLOCATIONS, ENDING],
            Self::EndedNeverJoined => &[
                &[
                    Met::AllocationWanted,
                    Met::AllocationQueued,
                    Met::AllocationJoining,
                ],
                ENDING,
            ],
        }
    }
}

/// Enumerates every pair that exists.
pub fn pairs() -> impl Iterator<Item = (Met, Came)> {
    Came::ALL.iter().flat_map(|came| {
        let states = came.concerns().iter().copied().flatten();
        states.map(|met| (*met, *came))
    })
}

/// Counts the pairs that worlds reach.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reached {
    counts: BTreeMap<(&'static str, &'static str), u64>,
}

impl Watch for Reached {
    fn line(&mut self, _at_ms: u64, _line: fmt::Arguments<'_>) {}

    fn wants_lines(&self) -> bool {
        false
    }

    fn met(&mut self, state: &'static str, command: &'static str) {
        *self.counts.entry((state, command)).or_default() += 1;
    }
}

impl Reached {
    /// Adds what others have reached.
    pub fn add(&mut self, other: &Self) {
        for (pair, count) in &other.counts {
            *self.counts.entry(*pair).or_default() += count;
        }
    }

    /// Compares what was reached with what exists.
    #[must_use]
    pub fn table(&self) -> Table {
        self.against(EXCUSED)
    }

    fn against(&self, excused: &[excused::Excuse]) -> Table {
        let mut left = self.counts.clone();
        let rows = pairs().map(|(met, came)| {
            let excuse = excused
                .iter()
                .find(|row| row.came.contains(&came) && row.met.contains(&met));
            Row {
                met,
                came,
                count: left.remove(&(met.name(), came.name())).unwrap_or(0),
                reason: excuse.map(|row| row.reason),
            }
        });
        let rows = rows.collect();
        Table {
            rows,
            unknown: left.into_keys().collect(),
        }
    }
}

/// Every pair that exists, with how often it was reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Table {
    pub rows: Vec<Row>,
    /// Pairs that were reached and that the table does not have: [`pairs`] is wrong.
    pub unknown: Vec<(&'static str, &'static str)>,
}

/// A pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    pub met: Met,
    pub came: Came,
    pub count: u64,
    /// Why it cannot be reached.
    pub reason: Option<&'static str>,
}

impl Table {
    /// Gives the pairs that were not reached although nothing is known against it.
    pub fn unreached(&self) -> impl Iterator<Item = &Row> {
        let rows = self.rows.iter();
        rows.filter(|row| row.count == 0 && row.reason.is_none())
    }

    /// Gives the pairs that were reached although a reason says that they cannot be.
    pub fn refuted(&self) -> impl Iterator<Item = &Row> {
        let rows = self.rows.iter();
        rows.filter(|row| row.count > 0 && row.reason.is_some())
    }

    /// Gives how many pairs were reached.
    #[must_use]
    pub fn reached(&self) -> usize {
        self.rows.iter().filter(|row| row.count > 0).count()
    }

    /// Tells whether every pair was reached or has a reason that holds.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.unknown.is_empty()
            && self.unreached().next().is_none()
            && self.refuted().next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use coordinator_core::command::{Hello, Target};
    use coordinator_core::{Command, LeaseId, State, TaskKey, Timestamp, WorkerId, step};

    use super::*;

    #[test]
    fn a_pair_is_in_the_table_once_and_names_are_unique() {
        let all: Vec<_> = pairs().collect();
        let once: BTreeSet<_> = all.iter().collect();
        assert_eq!(once.len(), all.len());
        let names = Met::ALL.iter().map(|met| met.name());
        let names = names.chain(Came::ALL.iter().map(|came| came.name()));
        let distinct: BTreeSet<_> = names.clone().collect();
        assert_eq!(distinct.len(), names.count());
    }

    #[test]
    fn every_kind_of_state_is_met_by_something() {
        let used: BTreeSet<_> = pairs().map(|(met, _)| met).collect();
        for met in Met::ALL {
            assert!(used.contains(met), "{}", met.name());
        }
    }

    #[test]
    fn an_excuse_is_for_pairs_that_exist_and_for_each_once() {
        let all: BTreeSet<_> = pairs().collect();
        let mut excused = BTreeSet::new();
        for row in EXCUSED {
            assert!(!row.reason.is_empty());
            for came in row.came {
                for met in row.met {
                    let pair = (*met, *came);
                    let name = format!("{} × {}", met.name(), came.name());
                    assert!(all.contains(&pair), "{name} does not exist");
                    assert!(excused.insert(pair), "{name} is excused twice");
                }
            }
        }
    }

    #[test]
    fn the_table_tells_reached_unreached_excused_refuted_and_unknown_apart() {
        let mut reached = Reached::default();
        reached.met(Met::RunUnknown.name(), Came::Submit.name());
        reached.met(Met::RunUnknown.name(), Came::Submit.name());
        reached.met(Met::RunActive.name(), Came::Submit.name());
        reached.met(Met::TaskParked.name(), Came::Submit.name());
        let excused = [excused::Excuse {
            came: &[Came::Submit],
            met: &[Met::RunActive, Met::RunFailed],
            reason: "names are never given twice",
        }];
        let table = reached.against(&excused);
        let row = |met| {
            let mut rows = table.rows.iter();
            rows.find(|row| row.met == met && row.came == Came::Submit)
                .unwrap()
        };
        assert_eq!(row(Met::RunUnknown).count, 2);
        assert_eq!(table.reached(), 2);
        assert_eq!(table.refuted().collect::<Vec<_>>(), [row(Met::RunActive)]);
        assert!(
            table
                .unreached()
                .all(|row| row.met != Met::RunFailed || row.came != Came::Submit)
        );
        assert!(
            table
                .unreached()
                .any(|row| row == row_of(&table, Met::RunFailed, Came::Archived))
        );
        assert_eq!(table.unknown, [("task parked", "submit")]);
        assert!(!table.is_complete());
    }

    fn row_of(table: &Table, met: Met, came: Came) -> &Row {
        let mut rows = table.rows.iter();
        rows.find(|row| row.met == met && row.came == came).unwrap()
    }

    #[test]
    fn commands_are_told_with_what_they_concern() {
        let mut reached = Reached::default();
        let mut state = State::new();
        let drain = Command::Drain {
            worker: WorkerId::new("w"),
            draining: true,
            by: "me".into(),
        };
        observe(&state, &drain, &mut reached);
        let hello = |incarnation| {
            Command::Hello(Hello {
                worker: WorkerId::new("w"),
                incarnation: coordinator_core::Incarnation(incarnation),
                session: 1,
                number: 1,
                offer: std::sync::Arc::default(),
                held: vec![LeaseId(7)],
                draining: false,
                time_left: None,
            })
        };
        observe(&state, &hello(2), &mut reached);
        step(&mut state, Timestamp::from_ms(1), &hello(2)).unwrap();
        observe(&state, &hello(1), &mut reached);
        observe(&state, &drain, &mut reached);
        let cancel = Command::Cancel {
            target: Target::Task(TaskKey::default()),
            by: "me".into(),
            reason: "".into(),
        };
        observe(&state, &cancel, &mut reached);
        let told: Vec<_> = reached.counts.into_keys().collect();
        assert_eq!(
            told,
            [
                ("lease not open", "hello, holding it"),
                ("task not live", "cancel task"),
                ("worker connected", "drain"),
                ("worker connected", "hello, older incarnation"),
                ("worker not known", "drain"),
                ("worker not known", "hello"),
            ]
        );
    }
}
