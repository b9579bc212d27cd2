//! The kinds of states and commands that the table tells apart.
//!
//! Each is found by a `match` that names every variant of the core, so a new variant of the core does
//! not compile until it has its place here; and a kind that is declared is in the table.

use coordinator_core::event::{RunOutcome, Work};
use coordinator_core::pool::{Allocation, Phase};
use coordinator_core::state::{
    Lease, Link, Run, RunPhase, State, Task, TaskState, VerifyPhase, Worker,
};

macro_rules! kinds {
    ($(#[$doc:meta])* $name:ident { $($kind:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum $name { $(#[doc = $text] $kind,)* }

        impl $name {
            /// Every kind, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            /// Gives the name in the table.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => $text,)* }
            }
        }
    };
}

kinds! {
    /// What a command can meet.
    Met {
        TaskBlocked = "task blocked",
        TaskBasing = "task basing",
        TaskReady = "task ready",
        TaskDelayed = "task ready after a delay",
        TaskLeased = "task leased",
        TaskAsking = "task leased, asking",
        TaskAnswered = "task leased, answered",
        TaskVerifyWaiting = "task waiting for its verify",
        TaskVerifyLeased = "task in its verify",
        TaskParked = "task parked",
        TaskSucceeded = "task succeeded",
        TaskFailed = "task failed",
        TaskCancelled = "task cancelled",
        TaskAborted = "task aborted",
        TaskSkipped = "task skipped",
        TaskUnknown = "task not live",
        RunActive = "run active",
        RunIntegrating = "run integrating",
        RunVerifyWaiting = "run waiting for its verify",
        RunVerifyLeased = "run in its verify",
        RunSucceeded = "run succeeded",
        RunFailed = "run failed",
        RunCancelled = "run cancelled",
        RunUnknown = "run not live",
        AttemptGranted = "attempt granted",
        AttemptStarted = "attempt started",
        AttemptAsking = "attempt asking",
        AttemptAnswered = "attempt answered",
        VerifyGranted = "verify granted",
        VerifyStarted = "verify started",
        FinalGranted = "final verify granted",
        FinalStarted = "final verify started",
        AttemptRevoked = "attempt revoked",
        VerifyRevoked = "verify revoked",
        FinalRevoked = "final verify revoked",
        LeaseForeign = "lease of another worker",
        LeaseNotOpen = "lease not open",
        WorkerUp = "worker connected",
        WorkerDraining = "worker connected, draining",
        WorkerDown = "worker not connected",
        WorkerUnknown = "worker not known",
        QuestionOpen = "question of a lease",
        QuestionParked = "question of a parked task",
        QuestionAnswered = "question answered",
        QuestionClosed = "question closed",
        QuestionUnknown = "question not known",
        PoolOpen = "pool open",
        PoolFailing = "pool after failed starts",
        PoolPaused = "pool paused",
        AllocationWanted = "allocation wanted",
        AllocationQueued = "allocation queued",
        AllocationHeld = "allocation held by its provider",
        AllocationJoining = "allocation running, nobody joined",
        AllocationJoined = "allocation with a worker",
        AllocationEnding = "allocation to end",
        AllocationUnknown = "allocation not known",
    }
}

kinds! {
    /// What can come.
    Came {
        Submit = "submit",
        SubmitAgain = "submit, known key",
        CancelRun = "cancel run",
        CancelTask = "cancel task",
        RetryRun = "retry run",
        RetryTask = "retry task",
        Drain = "drain",
        Undrain = "drain no more",
        Answer = "answer",
        Hello = "hello",
        HelloHeld = "hello, holding it",
        HelloNotHeld = "hello, not holding it",
        HelloNewer = "hello, newer incarnation",
        HelloNewerHeld = "hello, newer incarnation, holding it",
        HelloNewerNotHeld = "hello, newer incarnation, not holding it",
        HelloOlder = "hello, older incarnation",
        HelloLate = "hello, behind a later one",
        Heartbeat = "heartbeat",
        HeartbeatHeld = "heartbeat, holding it",
        HeartbeatNotHeld = "heartbeat, not holding it",
        HeartbeatOld = "heartbeat of an old session",
        Closed = "session closed",
        ClosedLease = "session closed, lease open",
        ClosedOld = "old session closed",
        Goodbye = "goodbye",
        GoodbyeLease = "goodbye, lease open",
        GoodbyeOld = "goodbye of an old session",
        Started = "report started",
        Succeeded = "report succeeded",
        FailedCounts = "report failed, counts",
        FailedFree = "report failed, does not count",
        VerifyPassed = "report verify passed",
        GivenBack = "report given back",
        Stopped = "report stopped",
        Asks = "report asks",
        Closes = "report closes a question",
        Converses = "report of a conversation",
        BaseMade = "base made",
        BaseConflict = "base does not merge",
        BaseError = "base failed",
        BaseOld = "base of an old generation",
        IntegrationMade = "integration made",
        IntegrationConflict = "integration does not merge",
        IntegrationError = "integration failed",
        IntegrationOld = "integration of an old generation",
        Archived = "archived",
        ArchivedEarly = "archived as it was before",
        Reload = "reload",
        TickSilence = "tick, silent for too long",
        TickTimeout = "tick, worked for too long",
        TickTask = "tick, task waited for too long",
        TickRun = "tick, run waited for too long",
        TickForget = "tick, worker away for too long",
        Start = "start of the coordinator",
        PoolConfigure = "pools are configured",
        PoolPlan = "pools are planned",
        PoolPause = "pause pool",
        PoolResume = "resume pool",
        PoolForget = "forget pool",
        PoolDisown = "pools of a copy are disowned",
        SeenRefused = "provider refuses it",
        SeenQueued = "provider has it queued",
        SeenHeld = "provider holds it",
        SeenRunning = "provider runs it",
        SeenGone = "provider says it is gone",
        ToEndIdle = "is to end, idle",
        ToEndNeverJoined = "is to end, nobody joined",
        ToEndNeverWorked = "is to end, it takes nothing",
        ToEndQuarantined = "is to end, its host is bad",
        ToEndSurplus = "is to end, beyond the maximum",
        ToEndDeserted = "is to end, its worker has gone",
        EndedReleased = "ended, given back",
        EndedRefused = "ended, refused",
        EndedNeverJoined = "ended, nobody joined",
        EndedNeverWorked = "ended, it took nothing",
        EndedDiedYoung = "ended, died young",
        EndedGone = "ended by itself",
        Proven = "was a good start",
        PausesItself = "pauses itself",
        HostQuarantined = "a host is quarantined",
        HostReleased = "a host is released",
    }
}

/// Gives the kind of a task's state.
#[must_use]
pub(super) fn task(task: Option<&Task>) -> Met {
    let Some(task) = task else {
        return Met::TaskUnknown;
    };
    match &task.state {
        TaskState::Blocked { unmet: _ } => Met::TaskBlocked,
        TaskState::Basing { since: _ } => Met::TaskBasing,
        TaskState::Ready { since, not_before } if not_before > since => Met::TaskDelayed,
        TaskState::Ready { .. } => Met::TaskReady,
        TaskState::Leased { awaiting, .. } if awaiting.is_empty() => Met::TaskLeased,
        TaskState::Leased { awaiting, .. } if awaiting.iter().all(|q| q.answer.is_some()) => {
            Met::TaskAnswered
        }
        TaskState::Leased { .. } => Met::TaskAsking,
        TaskState::Verifying { verify, .. } => match verify {
            VerifyPhase::Waiting { .. } => Met::TaskVerifyWaiting,
            VerifyPhase::Leased { .. } => Met::TaskVerifyLeased,
        },
        TaskState::Parked(_) => Met::TaskParked,
        TaskState::Succeeded { .. } => Met::TaskSucceeded,
        TaskState::Failed { .. } => Met::TaskFailed,
        TaskState::Cancelled { .. } => Met::TaskCancelled,
        TaskState::Aborted { .. } => Met::TaskAborted,
        TaskState::Skipped { .. } => Met::TaskSkipped,
    }
}

/// Gives the kind of a run's phase.
#[must_use]
pub(super) fn run(run: Option<&Run>) -> Met {
    let Some(run) = run else {
        return Met::RunUnknown;
    };
    match &run.phase {
        RunPhase::Active => Met::RunActive,
        RunPhase::Integrating { since: _ } => Met::RunIntegrating,
        RunPhase::Verifying { verify, .. } => match verify {
            VerifyPhase::Waiting { .. } => Met::RunVerifyWaiting,
            VerifyPhase::Leased { .. } => Met::RunVerifyLeased,
        },
        RunPhase::Ended { outcome, .. } => match outcome {
            RunOutcome::Succeeded => Met::RunSucceeded,
            RunOutcome::Failed(_) => Met::RunFailed,
            RunOutcome::Cancelled { by: _ } => Met::RunCancelled,
        },
    }
}

/// Gives the kind of an open lease.
#[must_use]
pub(super) fn lease(state: &State, lease: &Lease) -> Met {
    let started = lease.started_at.is_some();
    match (lease.work, lease.revoked) {
        (Work::Attempt { .. }, true) => Met::AttemptRevoked,
        (Work::Verify { .. }, true) => Met::VerifyRevoked,
        (Work::FinalVerify, true) => Met::FinalRevoked,
        (Work::Verify { .. }, false) if started => Met::VerifyStarted,
        (Work::Verify { .. }, false) => Met::VerifyGranted,
        (Work::FinalVerify, false) if started => Met::FinalStarted,
        (Work::FinalVerify, false) => Met::FinalGranted,
        (Work::Attempt { task, .. }, false) => {
            let task = state.run(lease.run).and_then(|run| run.task(task));
            match task.map(|task| &task.state) {
                Some(TaskState::Leased { awaiting, .. }) if !awaiting.is_empty() => {
                    if awaiting.iter().all(|question| question.answer.is_some()) {
                        Met::AttemptAnswered
                    } else {
                        Met::AttemptAsking
                    }
                }
                _ if started => Met::AttemptStarted,
                _ => Met::AttemptGranted,
            }
        }
    }
}

/// Gives the kind of a worker.
#[must_use]
pub(super) fn worker(worker: Option<&Worker>) -> Met {
    let Some(worker) = worker else {
        return Met::WorkerUnknown;
    };
    match worker.link {
        Link::Down { since: _ } => Met::WorkerDown,
        Link::Up { draining, .. } if draining || worker.draining => Met::WorkerDraining,
        Link::Up { .. } => Met::WorkerUp,
    }
}

/// Gives the kind of a pool.
#[must_use]
pub(super) fn pool(state: &State, name: &str) -> Met {
    match state.pool(name) {
        Some(pool) if pool.paused.is_some() => Met::PoolPaused,
        Some(pool) if pool.failures > 0 => Met::PoolFailing,
        Some(_) | None => Met::PoolOpen,
    }
}

/// Gives the kind of an allocation.
#[must_use]
pub(super) fn allocation(held: Option<&Allocation>) -> Met {
    let Some(held) = held else {
        return Met::AllocationUnknown;
    };
    match held.phase {
        _ if held.ending.is_some() => Met::AllocationEnding,
        _ if held.joined => Met::AllocationJoined,
        Phase::Wanted => Met::AllocationWanted,
        Phase::Queued { .. } if held.held.is_some() => Met::AllocationHeld,
        Phase::Queued { .. } => Met::AllocationQueued,
        Phase::Running { .. } => Met::AllocationJoining,
    }
}
