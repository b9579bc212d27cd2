//! What workers say about their leases, and what a failure leads to.

use std::sync::Arc;

use super::{Decision, head, question, tail};
use crate::backoff;
use crate::command::{Reply, Report, ReportAnswer};
use crate::event::{EventKind, LeaseEnd, Outcome, RunOutcome, Usage, Work};
use crate::failure::{Failure, FailureClass};
use crate::ids::{AttemptNo, LeaseId, TaskIx, TaskKey, WorkerId};
use crate::index::Said;
use crate::limits;
use crate::pool::blames_host_at;
use crate::state::{AttemptEnd, Lease, Run, State};
use crate::time::{Span, Timestamp};

pub(super) fn report(
    state: &State,
    now: Timestamp,
    worker: &WorkerId,
    lease: LeaseId,
    report: &Report,
) -> Decision {
    let held = state.lease(lease).filter(|held| held.worker == *worker);
    let Some((held, run)) = held.and_then(|held| Some((held, state.run(held.run)?))) else {
        return answer(repeated(state, worker, lease, report), vec![]);
    };
    if matches!(report, Report::Stopped) {
        let mut events = vec![];
        if !held.revoked {
            let text = "the worker stopped the work without a result";
            let failure = Failure::new(FailureClass::WorkerLost, text);
            fail(run, held, now, failure, Usage::default(), &mut events);
        }
        events.push(closed(held, LeaseEnd::Confirmed));
        return answer(ReportAnswer::Recorded, events);
    }
    if held.revoked {
        return answer(ReportAnswer::Stale, vec![]);
    }
    let mut events = vec![];
    let recorded = match (report, held.work) {
        (Report::Started, _) if held.started_at.is_some() => ReportAnswer::AlreadyRecorded,
        (Report::Started, _) => {
            events.push(EventKind::WorkStarted {
                run: held.run,
                lease,
            });
            ReportAnswer::Recorded
        }
        (
            Report::Succeeded {
                outcome,
                usage,
                summary,
            },
            Work::Attempt { task, .. },
        ) => {
            if fits(run, outcome) {
                events.push(EventKind::AttemptSucceeded {
                    run: held.run,
                    lease,
                    outcome: outcome.clone(),
                    usage: *usage,
                    summary: head(summary, limits::SUMMARY_BYTES),
                });
                events.push(closed(held, LeaseEnd::Confirmed));
                if run.profile(task).is_none_or(|p| p.verify.is_none()) {
                    events.push(succeeded(held, task, outcome));
                }
            } else {
                let text = "the worker reported an outcome that does not fit the run";
                let failure = Failure::new(FailureClass::Publish, text);
                fail(run, held, now, failure, *usage, &mut events);
                events.push(closed(held, LeaseEnd::Confirmed));
            }
            ReportAnswer::Recorded
        }
        (Report::Failed { failure, usage }, _) => {
            fail(run, held, now, workers(failure), *usage, &mut events);
            events.push(closed(held, LeaseEnd::Confirmed));
            ReportAnswer::Recorded
        }
        (Report::GivenBack { failure }, _) => {
            given_back(state, run, held, now, failure, &mut events);
            ReportAnswer::Recorded
        }
        (Report::VerifyPassed, Work::Verify { task, .. }) => {
            events.push(passed(held));
            events.push(closed(held, LeaseEnd::Confirmed));
            if let Some(outcome) = made(run, task) {
                events.push(succeeded(held, task, outcome));
            }
            ReportAnswer::Recorded
        }
        (Report::VerifyPassed, Work::FinalVerify) => {
            events.push(passed(held));
            events.push(closed(held, LeaseEnd::Confirmed));
            events.push(EventKind::RunEnded {
                run: held.run,
                outcome: RunOutcome::Succeeded,
            });
            ReportAnswer::Recorded
        }
        (Report::Asked { number, asking }, Work::Attempt { task, .. }) => {
            question::ask(state, (run, held, task), now, *number, asking, &mut events)
        }
        (
            Report::QuestionClosed {
                number,
                choice,
                by,
                earlier,
            },
            Work::Attempt { task, .. },
        ) => {
            let closed = (*number, *earlier, &**choice, &**by);
            question::close(state, (run, held, task), closed, &mut events)
        }
        (Report::ConversationOpened { id, software }, Work::Attempt { task, .. }) => {
            question::conversation((run, held, task), id, software, &mut events)
        }
        (
            Report::Succeeded { .. }
            | Report::Asked { .. }
            | Report::QuestionClosed { .. }
            | Report::ConversationOpened { .. },
            Work::Verify { .. } | Work::FinalVerify,
        )
        | (Report::VerifyPassed, Work::Attempt { .. })
        | (Report::Stopped, _) => ReportAnswer::Stale,
    };
    answer(recorded, events)
}

fn answer(answer: ReportAnswer, events: Vec<EventKind>) -> Decision {
    Decision::new(events, Reply::Report(answer))
}

/// Recognises the repeat of what ended a lease.
fn repeated(state: &State, worker: &WorkerId, lease: LeaseId, report: &Report) -> ReportAnswer {
    let recorded = state.index.recorded.get(&lease);
    let Some(recorded) = recorded.filter(|recorded| recorded.worker == *worker) else {
        return ReportAnswer::Stale;
    };
    let same = match report {
        Report::Started
        | Report::Asked { .. }
        | Report::QuestionClosed { .. }
        | Report::ConversationOpened { .. } => recorded.said != Said::Stopped,
        Report::Succeeded { .. } | Report::VerifyPassed => recorded.said == Said::Made,
        Report::Failed { .. } | Report::GivenBack { .. } => recorded.said == Said::NotMade,
        Report::Stopped => true,
    };
    if same {
        ReportAnswer::AlreadyRecorded
    } else {
        ReportAnswer::Stale
    }
}

/// A worker gives a lease back. If nothing had begun, nothing counts; the short delay keeps a
/// worker that can never begin from being asked without end.
fn given_back(
    state: &State,
    run: &Run,
    held: &Lease,
    now: Timestamp,
    failure: &Failure,
    events: &mut Vec<EventKind>,
) {
    if held.started_at.is_some() || !matches!(held.work, Work::Attempt { .. }) {
        let mut failure = workers(failure);
        if failure.class.counts() {
            failure.class = FailureClass::WorkerLost;
        }
        fail(run, held, now, failure, Usage::default(), events);
        events.push(closed(held, LeaseEnd::Confirmed));
        return;
    }
    events.push(closed(held, LeaseEnd::NeverStarted));
    if let Work::Attempt { task, .. } = held.work {
        let key = TaskKey {
            run: held.run,
            task,
        };
        events.push(EventKind::TaskReady {
            task: key,
            base: state.base(key).cloned(),
            not_before: now + limits::BACKOFF_FIRST,
        });
    }
}

/// Tells whether the outcome is one that the run can have.
fn fits(run: &Run, outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::NoRepository) == run.source.is_none()
}

fn succeeded(held: &Lease, task: TaskIx, outcome: &Outcome) -> EventKind {
    EventKind::TaskSucceeded {
        task: TaskKey {
            run: held.run,
            task,
        },
        outcome: outcome.clone(),
    }
}

fn passed(held: &Lease) -> EventKind {
    EventKind::VerifyPassed {
        run: held.run,
        lease: held.id,
    }
}

pub(super) fn closed(held: &Lease, end: LeaseEnd) -> EventKind {
    EventKind::LeaseClosed {
        run: held.run,
        lease: held.id,
        end,
    }
}

pub(super) fn revoked(held: &Lease) -> EventKind {
    EventKind::LeaseRevoked {
        run: held.run,
        lease: held.id,
    }
}

/// Gives what the task's last attempt made.
fn made(run: &Run, task: TaskIx) -> Option<&Outcome> {
    match &run.task(task)?.attempts().last()?.end {
        Some(AttemptEnd::Made(outcome)) => Some(outcome),
        _ => None,
    }
}

/// Takes a worker's failure: bounded, and of a class that is a worker's to claim.
fn workers(failure: &Failure) -> Failure {
    let class = match failure.class {
        FailureClass::BaseConflict
        | FailureClass::IntegrationConflict
        | FailureClass::NotPlaced
        | FailureClass::Internal => FailureClass::Workspace,
        claimed => claimed,
    };
    Failure {
        class,
        message: head(&failure.message, limits::FAILURE_MESSAGE_BYTES),
        output: tail(&failure.output, limits::FAILURE_OUTPUT_BYTES),
        retry_after: failure.retry_after,
    }
}

/// Adds what the failure of a live lease's work leads to; the lease is the caller's to end.
pub(super) fn fail(
    run: &Run,
    held: &Lease,
    now: Timestamp,
    failure: Failure,
    usage: Usage,
    events: &mut Vec<EventKind>,
) {
    let blames_host = blames_host_at(held, failure.class, now);
    fail_blaming(run, held, now, failure, usage, blames_host, events);
}

fn fail_blaming(
    run: &Run,
    held: &Lease,
    now: Timestamp,
    failure: Failure,
    usage: Usage,
    blames_host: bool,
    events: &mut Vec<EventKind>,
) {
    let lease = held.id;
    match held.work {
        Work::Attempt { task, attempt } => {
            let retry_at = retry_at(run, task, attempt, now, &failure);
            events.push(EventKind::AttemptFailed {
                run: run.id,
                lease,
                failure: failure.clone(),
                usage,
                retry_at,
                blames_host: Some(blames_host),
            });
            if retry_at.is_none() {
                events.push(task_failed(run, task, failure));
            }
        }
        Work::Verify { task, attempt } if failure.class.counts() => {
            let failure = as_verify_failed(failure);
            let retry_at = retry_at(run, task, attempt, now, &failure);
            events.push(EventKind::VerifyFailed {
                run: run.id,
                lease,
                failure: failure.clone(),
                retry_at,
            });
            if retry_at.is_none() {
                events.push(task_failed(run, task, failure));
            }
        }
        Work::FinalVerify if failure.class.counts() => {
            let failure = as_verify_failed(failure);
            events.push(EventKind::VerifyFailed {
                run: run.id,
                lease,
                failure: failure.clone(),
                retry_at: None,
            });
            events.push(run_failed(run, failure));
        }
        Work::Verify { .. } | Work::FinalVerify => {
            let lost = verifies_lost(run, held).saturating_add(1);
            let seed = held.id.0;
            let retry_at = (lost < limits::VERIFY_CRASH_LIMIT)
                .then(|| now + backoff::delay(limits::BACKOFF_FIRST, lost, seed));
            events.push(EventKind::VerifyLost {
                run: run.id,
                lease,
                failure: failure.clone(),
                retry_at,
            });
            if retry_at.is_none() {
                events.push(match held.work {
                    Work::Verify { task, .. } | Work::Attempt { task, .. } => {
                        task_failed(run, task, failure)
                    }
                    Work::FinalVerify => run_failed(run, failure),
                });
            }
        }
    }
}

pub(super) fn task_failed(run: &Run, task: TaskIx, failure: Failure) -> EventKind {
    EventKind::TaskFailed {
        task: TaskKey { run: run.id, task },
        failure,
    }
}

pub(super) fn run_failed(run: &Run, failure: Failure) -> EventKind {
    EventKind::RunEnded {
        run: run.id,
        outcome: RunOutcome::Failed(failure),
    }
}

/// A verify that ended badly is a failed verify, whatever its worker calls it.
fn as_verify_failed(mut failure: Failure) -> Failure {
    if failure.class != FailureClass::VerifyFailed {
        let text = format!("the verify failed ({}): {}", failure.class, failure.message);
        failure.message = head(&text, limits::FAILURE_MESSAGE_BYTES);
        failure.class = FailureClass::VerifyFailed;
    }
    failure
}

fn verifies_lost(run: &Run, held: &Lease) -> u32 {
    use crate::state::{RunPhase, TaskState};
    match held.work {
        Work::Attempt { .. } => 0,
        Work::Verify { task, .. } => match run.task(task).map(|task| &task.state) {
            Some(TaskState::Verifying { verify, .. }) => verify.lost(),
            _ => 0,
        },
        Work::FinalVerify => match &run.phase {
            RunPhase::Verifying { verify, .. } => verify.lost(),
            _ => 0,
        },
    }
}

/// Gives when the task may be tried again after one more failure; `None` when it fails. Never before
/// the provider wants to be called again, within what is bearable.
fn retry_at(
    run: &Run,
    task: TaskIx,
    attempt: AttemptNo,
    now: Timestamp,
    failure: &Failure,
) -> Option<Timestamp> {
    let class = failure.class;
    if !class.retryable() {
        return None;
    }
    let profile = run.profile(task)?;
    let history = run.task(task)?.history.as_ref();
    let (counted, crashes) = history.map_or((0, 0), |h| (h.counted, h.crashes));
    let deferrals = history.map_or(0, |h| h.deferrals).saturating_add(1);
    let allowed = if class.counts() {
        counted < profile.retries
    } else if class.is_providers() {
        deferrals < limits::PROVIDER_LIMIT
    } else if class.leaves() {
        let departures = history.map_or(0, |h| h.departures);
        departures.saturating_add(1) < limits::DEPARTURE_LIMIT
    } else {
        crashes.saturating_add(1) < limits::CRASH_LIMIT
    };
    let seed = backoff::seed(TaskKey { run: run.id, task }, attempt);
    let delay = if class.is_providers() {
        backoff::of_provider(deferrals, seed)
    } else if class.leaves() {
        // Another machine can go on at once.
        backoff::delay(profile.backoff, 1, seed)
    } else {
        let failures = counted.saturating_add(crashes).saturating_add(1);
        backoff::delay(profile.backoff, failures, seed)
    };
    let wished = failure.retry_after.unwrap_or(Span::ZERO);
    allowed.then(|| now + delay.max(wished.min(limits::RETRY_AFTER_MAX)))
}

/// Adds the end of a lease that was lost: its work failed through no fault of its own.
pub(super) fn lost(
    state: &State,
    held: &Lease,
    now: Timestamp,
    text: &str,
    end: LeaseEnd,
    events: &mut Vec<EventKind>,
) {
    if !held.revoked
        && let Some(run) = state.run(held.run)
    {
        let failure = Failure::new(FailureClass::WorkerLost, text);
        let blames_host = match end {
            LeaseEnd::Expired | LeaseEnd::Superseded => vanished_at_once(state, held),
            LeaseEnd::Confirmed | LeaseEnd::NeverStarted => {
                blames_host_at(held, failure.class, now)
            }
        };
        let usage = Usage::default();
        fail_blaming(run, held, now, failure, usage, blames_host, events);
    }
    events.push(closed(held, end));
}

/// Tells whether a worker vanished as soon as it had its work, and this is the attempt that says so.
/// Measured up to when it was heard last, since a loss is known only much later. Of all that it held
/// one attempt alone counts, the oldest of a task that is not suspicious yet: the worker vanished once,
/// and if that was the network's fault, it was not its host's three times.
fn vanished_at_once(state: &State, held: &Lease) -> bool {
    let before = held.ttl.ms().saturating_add(state.clocks.grace.ms());
    let heard_at = Timestamp::from_ms(held.expires_at.ms().saturating_sub(before));
    let quick = |lease: &Lease| blames_host_at(lease, FailureClass::WorkerLost, heard_at);
    let suspects = state.worker(&held.worker).and_then(|worker| {
        let pool = state.pool(&worker.offer.pool)?;
        pool.suspects.get(&worker.offer.host)
    });
    let is_suspicious = |lease: &Lease| {
        let task = state.task_of(lease.id);
        task.is_some_and(|task| suspects.is_some_and(|tasks| tasks.contains(&task)))
    };
    let leases = state.leases_of_worker(&held.worker);
    let mut attempts = leases
        .filter(|lease| !lease.revoked && matches!(lease.work, Work::Attempt { .. }))
        .peekable();
    attempts.peek().is_some_and(|oldest| quick(oldest))
        && attempts
            .find(|lease| !is_suspicious(lease))
            .is_some_and(|lease| lease.id == held.id)
}

/// Gives the name of a task, for messages.
pub(super) fn name(run: &Run, task: TaskIx) -> Arc<str> {
    run.task(task)
        .map_or_else(|| "?".into(), |task| Arc::clone(&task.name))
}
