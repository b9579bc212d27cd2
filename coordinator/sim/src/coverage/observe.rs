//! What a command is about to meet.

use coordinator_core::command::{GitStepFailure, Hello, Report, Target};
use coordinator_core::pool::{AllocationEnd, EndCause, PoolCommand, PoolEvent, Seen};
use coordinator_core::state::{Link, Run, State};
use coordinator_core::{Command, CommitId, LeaseId, Timer, Timestamp, WorkerId, due};

use super::kinds::{self, Came, Met};
use crate::Watch;

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
                None if state.question(*question).is_some() => Met::QuestionAnswered,
                None if state.past_question(*question).is_some() => Met::QuestionClosed,
                None => Met::QuestionUnknown,
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
            let current = is_current(state, worker, incarnation.0, *session);
            let came = (Came::Closed, Came::ClosedLease, Came::ClosedOld);
            parting_met(state, worker, current, came, &mut tell);
        }
        Command::Goodbye {
            worker,
            incarnation,
            session,
        } => {
            let current = is_current(state, worker, incarnation.0, *session);
            let came = (Came::Goodbye, Came::GoodbyeLease, Came::GoodbyeOld);
            parting_met(state, worker, current, came, &mut tell);
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
                Report::Asked { .. } => Came::Asks,
                Report::QuestionClosed { .. } => Came::Closes,
                Report::ConversationOpened { .. } => Came::Converses,
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
        Command::Pool(command) => pool_met(state, command, &mut tell),
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

/// What the end of a session meets: the worker and its leases, or an older session than its own.
fn parting_met(
    state: &State,
    worker: &WorkerId,
    current: bool,
    (parts, of_lease, old): (Came, Came, Came),
    tell: Tell<'_>,
) {
    tell(
        kinds::worker(state.worker(worker)),
        if current { parts } else { old },
    );
    if current {
        for lease in state.leases_of_worker(worker) {
            tell(kinds::lease(state, lease), of_lease);
        }
    }
}

fn pool_met(state: &State, command: &PoolCommand, tell: Tell<'_>) {
    let every = |came: Came, tell: Tell<'_>| {
        for (name, _) in state.policies() {
            tell(kinds::pool(state, name), came);
        }
    };
    match command {
        PoolCommand::Configure { policies } => {
            for name in policies.keys() {
                tell(kinds::pool(state, name), Came::PoolConfigure);
            }
        }
        PoolCommand::Plan => every(Came::PoolPlan, tell),
        PoolCommand::Pause { pool, .. } => tell(kinds::pool(state, pool), Came::PoolPause),
        PoolCommand::Resume { pool, .. } => tell(kinds::pool(state, pool), Came::PoolResume),
        PoolCommand::Forget { pool, .. } => tell(kinds::pool(state, pool), Came::PoolForget),
        PoolCommand::Disown => every(Came::PoolDisown, tell),
        PoolCommand::Observe { allocations } => {
            for (id, seen) in allocations {
                let came = match seen {
                    Seen::Refused { .. } => Came::SeenRefused,
                    Seen::Queued { .. } => Came::SeenQueued,
                    Seen::Held { .. } => Came::SeenHeld,
                    Seen::Running { .. } => Came::SeenRunning,
                    Seen::Gone { .. } => Came::SeenGone,
                };
                tell(kinds::allocation(state.allocation(*id)), came);
            }
        }
    }
}

/// Tells the watch what happens to pools. To be called with the state before the event. What
/// providers say of allocations is told by [`observe`] already.
pub fn observe_pool_event(state: &State, event: &PoolEvent, watch: &mut dyn Watch) {
    let (met, came) = match event {
        PoolEvent::AllocationsWanted { .. }
        | PoolEvent::AllocationQueued { .. }
        | PoolEvent::AllocationRunning { .. }
        | PoolEvent::PoolResumed { .. }
        | PoolEvent::PoolForgotten { .. } => return,
        PoolEvent::AllocationProven { allocation } => (
            kinds::allocation(state.allocation(*allocation)),
            Came::Proven,
        ),
        PoolEvent::AllocationEnding {
            allocation, cause, ..
        } => {
            let came = match cause {
                EndCause::Idle => Came::ToEndIdle,
                EndCause::NeverJoined => Came::ToEndNeverJoined,
                EndCause::NeverWorked => Came::ToEndNeverWorked,
                EndCause::Quarantined => Came::ToEndQuarantined,
                EndCause::Surplus => Came::ToEndSurplus,
                EndCause::Deserted => Came::ToEndDeserted,
            };
            (kinds::allocation(state.allocation(*allocation)), came)
        }
        PoolEvent::AllocationEnded {
            allocation, end, ..
        } => {
            let came = match end {
                AllocationEnd::Released => Came::EndedReleased,
                AllocationEnd::Refused => Came::EndedRefused,
                AllocationEnd::NeverJoined => Came::EndedNeverJoined,
                AllocationEnd::NeverWorked => Came::EndedNeverWorked,
                AllocationEnd::DiedYoung => Came::EndedDiedYoung,
                AllocationEnd::Gone => Came::EndedGone,
            };
            (kinds::allocation(state.allocation(*allocation)), came)
        }
        PoolEvent::PoolPaused { pool, by, .. } if **by == *"coordinator" => {
            (kinds::pool(state, pool), Came::PausesItself)
        }
        PoolEvent::PoolPaused { .. } => return,
        PoolEvent::HostQuarantined { pool, .. } => {
            (kinds::pool(state, pool), Came::HostQuarantined)
        }
        PoolEvent::HostReleased { pool, .. } => (kinds::pool(state, pool), Came::HostReleased),
    };
    watch.met(met.name(), came.name());
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
        Some(std::cmp::Ordering::Equal) if is_late(state, hello) => tell(met, Came::HelloLate),
        Some(std::cmp::Ordering::Equal) | None => {
            tell(met, Came::Hello);
            let came = (Came::HelloHeld, Came::HelloNotHeld);
            leases_met(state, &hello.worker, &hello.held, came, tell);
        }
    }
}

/// Tells whether a later hello of the same incarnation was taken before.
fn is_late(state: &State, hello: &Hello) -> bool {
    let newer_session = state.worker(&hello.worker).is_some_and(
        |known| matches!(known.link, Link::Up { session, .. } if session > hello.session),
    );
    newer_session || hello.number > 0 && hello.number <= state.last_hello(&hello.worker)
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
