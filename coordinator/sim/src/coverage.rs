//! Which commands have met which states, and which never have.
//!
//! A pair is a kind of state and a kind of command that can concern it. [`pairs`] enumerates all that
//! exist; worlds say through [`Watch::met`] which they reached. One that no seed reaches is a place
//! where nobody has looked: either the worlds are too tame, or it is impossible and [`EXCUSED`] says
//! why.

mod excused;
mod kinds;

use std::collections::BTreeMap;
use std::fmt;

use coordinator_core::command::{GitStepFailure, Hello, Report, Target};
use coordinator_core::state::{Link, Run, State};
use coordinator_core::{Command, CommitId, LeaseId, Timer, Timestamp, WorkerId, due};

use crate::Watch;
pub use excused::EXCUSED;
pub use kinds::{Came, Met};

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
    Met::QuestionUnknown,
];

impl Came {
    /// Gives the states that the command can concern, in groups.
    const fn concerns(self) -> &'static [&'static [Met]] {
        match self {
            Self::Submit | Self::SubmitAgain | Self::Reload => &[RUNS, NO_RUN],
            Self::CancelRun | Self::RetryRun => &[RUNS, NO_RUN, TASKS],
            Self::CancelTask | Self::RetryTask => &[TASKS, NO_TASK, RUNS],
            Self::Drain | Self::Undrain => &[WORKERS, NO_WORKER],
            Self::Answer => &[QUESTIONS],
            Self::Hello | Self::Heartbeat | Self::HeartbeatOld | Self::ClosedOld => {
                &[WORKERS, NO_WORKER]
            }
            // They need a worker that is known, or that has a session.
            Self::HelloNewer | Self::HelloOlder | Self::Closed => &[WORKERS],
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
            | Self::Asks => &[LEASES, NO_LEASE],
            Self::BaseMade | Self::BaseConflict | Self::BaseError | Self::BaseOld => {
                &[TASKS, NO_TASK]
            }
            Self::IntegrationMade
            | Self::IntegrationConflict
            | Self::IntegrationError
            | Self::IntegrationOld => &[RUNS, NO_RUN],
            Self::Archived | Self::ArchivedEarly => &[RUNS, NO_RUN],
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

/// Tells the watch which pairs a command is about to make. To be called with the state before the
/// command; a [`Command::Tick`] is told by [`observe_due`].
pub fn observe(state: &State, command: &Command, watch: &mut dyn Watch) {
    let mut tell = |met: Met, came: Came| watch.met(met.name(), came.name());
    match command {
        Command::Submit { spec, key, .. } => {
            let known = key.as_deref().is_some_and(|key| state.knows_key(key));
            let came = if known {
                Came::SubmitAgain
            } else {
                Came::Submit
            };
            tell(kinds::run(state.run_by_name(&spec.name)), came);
        }
        Command::Cancel { target, .. } => target_met(
            state,
            *target,
            (Came::CancelRun, Came::CancelTask),
            &mut tell,
        ),
        Command::Retry { target, .. } => {
            target_met(state, *target, (Came::RetryRun, Came::RetryTask), &mut tell);
        }
        Command::Drain {
            worker, draining, ..
        } => {
            let came = if *draining {
                Came::Drain
            } else {
                Came::Undrain
            };
            tell(kinds::worker(state.worker(worker)), came);
        }
        Command::Answer { question, .. } => {
            let open = state.questions().find(|(_, open)| open.id == *question);
            let met = match open {
                Some((key, _)) => match kinds::task(state.task(key)) {
                    Met::TaskParked => Met::QuestionParked,
                    _ => Met::QuestionOpen,
                },
                None => {
                    let mut leases = state.leases();
                    let answered = leases.any(|lease| {
                        let answered = state.answered(lease.id);
                        answered.is_some_and(|answered| answered.id == *question)
                    });
                    if answered {
                        Met::QuestionAnswered
                    } else {
                        Met::QuestionUnknown
                    }
                }
            };
            tell(met, Came::Answer);
        }
        Command::Hello(hello) => hello_met(state, hello, &mut tell),
        Command::Heartbeat(beat) => {
            let met = kinds::worker(state.worker(&beat.worker));
            if is_current(state, &beat.worker, beat.incarnation.0, beat.session) {
                tell(met, Came::Heartbeat);
                let came = (Came::HeartbeatHeld, Came::HeartbeatNotHeld);
                leases_met(state, &beat.worker, &beat.held, came, &mut tell);
            } else {
                tell(met, Came::HeartbeatOld);
            }
        }
        Command::SessionClosed {
            worker,
            incarnation,
            session,
        } => {
            let met = kinds::worker(state.worker(worker));
            if is_current(state, worker, incarnation.0, *session) {
                tell(met, Came::Closed);
                for lease in state.leases_of_worker(worker) {
                    tell(kinds::lease(state, lease), Came::ClosedLease);
                }
            } else {
                tell(met, Came::ClosedOld);
            }
        }
        Command::Report {
            worker,
            lease,
            report,
        } => {
            let came = match report {
                Report::Started => Came::Started,
                Report::Succeeded { .. } => Came::Succeeded,
                Report::Failed { failure, .. } if failure.class.counts() => Came::FailedCounts,
                Report::Failed { .. } => Came::FailedFree,
                Report::VerifyPassed => Came::VerifyPassed,
                Report::GivenBack { .. } => Came::GivenBack,
                Report::Stopped => Came::Stopped,
                Report::Asks { .. } => Came::Asks,
            };
            tell(lease_met(state, worker, *lease), came);
        }
        Command::BaseMade {
            task,
            generation,
            result,
        } => {
            let known = state.task(*task);
            let old = known.is_some_and(|task| task.generation != *generation);
            let came = made(
                old,
                result,
                [
                    Came::BaseMade,
                    Came::BaseConflict,
                    Came::BaseError,
                    Came::BaseOld,
                ],
            );
            tell(kinds::task(known), came);
        }
        Command::IntegrationMade {
            run,
            generation,
            result,
        } => {
            let known = state.run(*run);
            let old = known.is_some_and(|run| run.generation != *generation);
            let came = made(
                old,
                result,
                [
                    Came::IntegrationMade,
                    Came::IntegrationConflict,
                    Came::IntegrationError,
                    Came::IntegrationOld,
                ],
            );
            tell(kinds::run(known), came);
        }
        Command::Archived { run, last_seq } => {
            let known = state.run(*run);
            let early = known.is_some_and(|run| run.last_seq != *last_seq);
            let came = if early {
                Came::ArchivedEarly
            } else {
                Came::Archived
            };
            tell(kinds::run(known), came);
        }
        Command::Reload { image } => tell(kinds::run(state.run(image.run.id)), Came::Reload),
        Command::Tick => {}
    }
}

/// Tells the watch what is due. To be called before a batch is closed.
pub fn observe_due(state: &State, now: Timestamp, watch: &mut dyn Watch) {
    for timer in due(state, now) {
        let pair = match timer {
            Timer::Lease(id) => state
                .lease(*id)
                .map(|lease| (kinds::lease(state, lease), Came::TickSilence)),
            Timer::Timeout(id) => state
                .lease(*id)
                .map(|lease| (kinds::lease(state, lease), Came::TickTimeout)),
            Timer::Task(key) => Some((kinds::task(state.task(*key)), Came::TickTask)),
            Timer::Run(id) => Some((kinds::run(state.run(*id)), Came::TickRun)),
            Timer::Forget(id) => Some((kinds::worker(state.worker(id)), Came::TickForget)),
        };
        if let Some((met, came)) = pair {
            watch.met(met.name(), came.name());
        }
    }
}

/// Tells the watch what a coordinator finds when it starts. To be called with the state that was
/// read back.
pub fn observe_start(state: &State, watch: &mut dyn Watch) {
    let mut tell = |met: Met| watch.met(met.name(), Came::Start.name());
    for run in state.runs() {
        tell(kinds::run(Some(run)));
        for task in &run.tasks {
            tell(kinds::task(Some(task)));
        }
    }
    for lease in state.leases() {
        tell(kinds::lease(state, lease));
    }
}

type Tell<'t> = &'t mut dyn FnMut(Met, Came);

fn target_met(state: &State, target: Target, came: (Came, Came), tell: Tell<'_>) {
    match target {
        Target::Run(id) => {
            let run = state.run(id);
            tell(kinds::run(run), came.0);
            for task in run.into_iter().flat_map(|run: &Run| &run.tasks) {
                tell(kinds::task(Some(task)), came.0);
            }
        }
        Target::Task(key) => {
            tell(kinds::task(state.task(key)), came.1);
            if let Some(run) = state.run(key.run) {
                tell(kinds::run(Some(run)), came.1);
            }
        }
    }
}

fn hello_met(state: &State, hello: &Hello, tell: Tell<'_>) {
    let known = state.worker(&hello.worker);
    let met = kinds::worker(known);
    match known.map(|known| known.incarnation.cmp(&hello.incarnation)) {
        Some(std::cmp::Ordering::Greater) => tell(met, Came::HelloOlder),
        Some(std::cmp::Ordering::Less) => {
            tell(met, Came::HelloNewer);
            let came = (Came::HelloNewerHeld, Came::HelloNewerNotHeld);
            leases_met(state, &hello.worker, &hello.held, came, tell);
        }
        Some(std::cmp::Ordering::Equal) | None => {
            tell(met, Came::Hello);
            let came = (Came::HelloHeld, Came::HelloNotHeld);
            leases_met(state, &hello.worker, &hello.held, came, tell);
        }
    }
}

fn leases_met(
    state: &State,
    worker: &WorkerId,
    held: &[LeaseId],
    (is_held, is_not): (Came, Came),
    tell: Tell<'_>,
) {
    for id in held {
        tell(lease_met(state, worker, *id), is_held);
    }
    for lease in state.leases_of_worker(worker) {
        if !held.contains(&lease.id) {
            tell(kinds::lease(state, lease), is_not);
        }
    }
}

fn lease_met(state: &State, worker: &WorkerId, id: LeaseId) -> Met {
    match state.lease(id) {
        None => Met::LeaseNotOpen,
        Some(lease) if lease.worker != *worker => Met::LeaseForeign,
        Some(lease) => kinds::lease(state, lease),
    }
}

fn is_current(state: &State, worker: &WorkerId, incarnation: u64, session: u64) -> bool {
    state.worker(worker).is_some_and(|known| {
        let present = matches!(known.link, Link::Up { session: present, .. } if present == session);
        present && known.incarnation.0 == incarnation
    })
}

fn made(
    old: bool,
    result: &Result<CommitId, GitStepFailure>,
    [merged, conflict, error, stale]: [Came; 4],
) -> Came {
    match result {
        _ if old => stale,
        Ok(_) => merged,
        Err(GitStepFailure::Conflict(_)) => conflict,
        Err(GitStepFailure::Error(_)) => error,
    }
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

    use coordinator_core::TaskKey;

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
                offer: std::sync::Arc::default(),
                held: vec![LeaseId(7)],
                draining: false,
            })
        };
        observe(&state, &hello(2), &mut reached);
        coordinator_core::step(&mut state, Timestamp::from_ms(1), &hello(2)).unwrap();
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
