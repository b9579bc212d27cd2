//! Which kinds of states a command met.

use coordinator_core::command::{Report, Target};
use coordinator_core::event::Work;
use coordinator_core::state::{Link, Run, RunPhase, TaskState, VerifyPhase};
use coordinator_core::{Command, LeaseId, RunId, State, TaskKey, Timestamp, WorkerId, next_wakeup};

fn of_worker(state: &State, worker: &WorkerId) -> &'static str {
    let Some(known) = state.worker(worker) else {
        return "worker unknown";
    };
    let holds = state.leases_of_worker(worker).next().is_some();
    match (&known.link, known.draining, holds) {
        (Link::Down { .. }, false, false) => "worker down",
        (Link::Down { .. }, false, true) => "worker down with leases",
        (Link::Down { .. }, true, _) => "worker down draining",
        (Link::Up { .. }, false, false) => "worker up",
        (Link::Up { .. }, false, true) => "worker up with leases",
        (Link::Up { .. }, true, _) => "worker up draining",
    }
}

fn of_lease(state: &State, worker: &WorkerId, id: LeaseId) -> &'static str {
    let Some(lease) = state.lease(id) else {
        return "lease closed";
    };
    if lease.worker != *worker {
        return "lease of another worker";
    }
    let attempt = matches!(lease.work, Work::Attempt { .. });
    match (attempt, lease.revoked, lease.started_at.is_some()) {
        (true, true, _) => "attempt revoked",
        (true, false, false) => "attempt granted",
        (true, false, true) => match asking(state, id) {
            Some(true) => "attempt answered",
            Some(false) => "attempt asking",
            None => "attempt started",
        },
        (false, true, _) => "verify revoked",
        (false, false, false) => "verify granted",
        (false, false, true) => "verify started",
    }
}

fn asking(state: &State, id: LeaseId) -> Option<bool> {
    let lease = state.lease(id)?;
    let Work::Attempt { task, .. } = lease.work else {
        return None;
    };
    match &state.run(lease.run)?.task(task)?.state {
        TaskState::Leased { awaiting, .. } => awaiting.as_ref().map(|q| q.answer.is_some()),
        _ => None,
    }
}

fn of_task(state: &State, key: TaskKey) -> &'static str {
    let Some(task) = state.task(key) else {
        return "task not live";
    };
    match &task.state {
        TaskState::Blocked { .. } => "task blocked",
        TaskState::Basing { .. } => "task basing",
        TaskState::Ready { .. } => "task ready",
        TaskState::Leased { .. } => "task leased",
        TaskState::Verifying { verify, .. } => match verify {
            VerifyPhase::Waiting { .. } => "task waiting for verify",
            VerifyPhase::Leased { .. } => "task verified",
        },
        TaskState::Parked(_) => "task parked",
        TaskState::Succeeded { .. } => "task succeeded",
        TaskState::Failed { .. } => "task failed",
        TaskState::Cancelled { .. } => "task cancelled",
        TaskState::Aborted { .. } => "task aborted",
        TaskState::Skipped { .. } => "task skipped",
    }
}

fn phase(run: &Run) -> &'static str {
    match &run.phase {
        RunPhase::Active => "run active",
        RunPhase::Integrating { .. } => "run integrating",
        RunPhase::Verifying { verify, .. } => match verify {
            VerifyPhase::Waiting { .. } => "run waiting for verify",
            VerifyPhase::Leased { .. } => "run verified",
        },
        RunPhase::Ended { .. } => "run ended",
    }
}

fn of_run(state: &State, id: RunId) -> &'static str {
    state.run(id).map_or("run not live", phase)
}

/// Names the state that a command meets, and the command.
pub(crate) fn met(state: &State, command: &Command) -> (&'static str, &'static str) {
    match command {
        Command::Submit { key, .. } => {
            let known = key.as_ref().is_some_and(|key| state.knows_key(key));
            (if known { "key used" } else { "key fresh" }, "submit")
        }
        Command::Cancel { target, .. } => match target {
            Target::Run(run) => (of_run(state, *run), "cancel run"),
            Target::Task(task) => (of_task(state, *task), "cancel task"),
        },
        Command::Retry { target, .. } => match target {
            Target::Run(run) => (of_run(state, *run), "retry run"),
            Target::Task(task) => (of_task(state, *task), "retry task"),
        },
        Command::Drain {
            worker, draining, ..
        } => {
            let command = if *draining { "drain" } else { "undrain" };
            (of_worker(state, worker), command)
        }
        Command::Answer { question, .. } => {
            let mut open = state.questions();
            let task = open
                .find(|(_, known)| known.id == *question)
                .map(|(task, _)| task);
            let met = task.map_or("question not open", |task| of_task(state, task));
            (met, "answer")
        }
        Command::Hello(hello) => {
            let known = state.worker(&hello.worker);
            let newer = known.is_none_or(|known| known.incarnation < hello.incarnation);
            let command = if newer {
                "hello of a new start"
            } else {
                "hello again"
            };
            (of_worker(state, &hello.worker), command)
        }
        Command::Heartbeat(beat) => (of_worker(state, &beat.worker), "heartbeat"),
        Command::SessionClosed { worker, .. } => (of_worker(state, worker), "session closed"),
        Command::Report {
            worker,
            lease,
            report,
        } => {
            let command = match report {
                Report::Started => "started",
                Report::Succeeded { .. } => "succeeded",
                Report::Failed { failure, .. } if failure.class.counts() => "failed, counts",
                Report::Failed { .. } => "failed, does not count",
                Report::VerifyPassed => "verify passed",
                Report::GivenBack { .. } => "given back",
                Report::Stopped => "stopped",
                Report::Asks { .. } => "asks",
            };
            (of_lease(state, worker, *lease), command)
        }
        Command::BaseMade { task, result, .. } => {
            let command = if result.is_ok() {
                "base made"
            } else {
                "base not made"
            };
            (of_task(state, *task), command)
        }
        Command::IntegrationMade { run, result, .. } => {
            let made = if result.is_ok() {
                "integration made"
            } else {
                "integration not made"
            };
            (of_run(state, *run), made)
        }
        Command::Archived { run, .. } => (of_run(state, *run), "archived"),
        Command::Reload { image } => (of_run(state, image.run.id), "reload"),
        Command::Tick => ("anything", "tick"),
    }
}

/// Names what is due.
pub(crate) fn met_tick(state: &State, now: Timestamp) -> (&'static str, &'static str) {
    let silent = state.leases().find(|lease| lease.expires_at <= now);
    if let Some(lease) = silent {
        return (of_lease(state, &lease.worker, lease.id), "tick: silence");
    }
    match next_wakeup(state) {
        Some((_, coordinator_core::WakeReason::Delay)) => ("task ready", "tick: delay"),
        _ => ("anything", "tick: deadline"),
    }
}
