//! The pairs that cannot happen, each with its reason.

use super::{Came, Met};

/// Pairs of which it is known why no world reaches them: every state with every command of the row.
#[derive(Clone, Copy, Debug)]
pub struct Excuse {
    pub came: &'static [Came],
    pub met: &'static [Met],
    pub reason: &'static str,
}

const BASE_ANSWERS: &[Came] = &[Came::BaseMade, Came::BaseConflict, Came::BaseError];
const INTEGRATION_ANSWERS: &[Came] = &[
    Came::IntegrationMade,
    Came::IntegrationConflict,
    Came::IntegrationError,
];

const POOLS: &[Met] = &[Met::PoolOpen, Met::PoolFailing, Met::PoolPaused];

/// All of them. A pair that a seed reaches must not be here.
pub const EXCUSED: &[Excuse] = &[
    Excuse {
        came: &[
            Came::CancelRun,
            Came::CancelTask,
            Came::RetryRun,
            Came::RetryTask,
            Came::BaseMade,
            Came::BaseConflict,
            Came::BaseError,
            Came::BaseOld,
            Came::Start,
        ],
        met: &[Met::TaskAborted],
        reason: "no decision of this version aborts a task",
    },
    Excuse {
        came: &[Came::Submit],
        met: &[
            Met::RunActive,
            Met::RunIntegrating,
            Met::RunVerifyWaiting,
            Met::RunVerifyLeased,
            Met::RunSucceeded,
            Met::RunFailed,
            Met::RunCancelled,
        ],
        reason: "a part of each run's name is drawn by chance, and what is submitted again has its key",
    },
    Excuse {
        came: &[Came::Archived],
        met: &[
            Met::RunActive,
            Met::RunIntegrating,
            Met::RunVerifyWaiting,
            Met::RunVerifyLeased,
            Met::RunUnknown,
        ],
        reason: "the engine archives between two batches, and only a run that has ended",
    },
    Excuse {
        came: &[Came::ArchivedEarly],
        met: &[
            Met::RunActive,
            Met::RunIntegrating,
            Met::RunVerifyWaiting,
            Met::RunVerifyLeased,
            Met::RunSucceeded,
            Met::RunFailed,
            Met::RunCancelled,
        ],
        reason: "the engine archives between two batches: nothing happens to the run meanwhile",
    },
    Excuse {
        came: &[Came::HeartbeatOld],
        met: &[Met::WorkerDown],
        reason: "the older stream of a worker is ended when the newer is welcomed, so before that one ends",
    },
    Excuse {
        came: &[Came::HeartbeatOld, Came::ClosedOld],
        met: &[Met::WorkerUnknown],
        reason: "a worker is forgotten a day after its last session, and older ones have ended before",
    },
    Excuse {
        came: BASE_ANSWERS,
        met: &[Met::TaskBlocked, Met::TaskSkipped],
        reason: "a task that is basing has all it depends on, and that stays so in its generation",
    },
    Excuse {
        came: BASE_ANSWERS,
        met: &[
            Met::TaskReady,
            Met::TaskDelayed,
            Met::TaskLeased,
            Met::TaskAsking,
            Met::TaskAnswered,
            Met::TaskVerifyWaiting,
            Met::TaskVerifyLeased,
            Met::TaskParked,
            Met::TaskSucceeded,
        ],
        reason: "merges are made one after the other, each once: no earlier answer gave the base",
    },
    Excuse {
        came: &[Came::BaseOld],
        met: &[Met::TaskBlocked, Met::TaskSkipped],
        reason: "what a basing task depends on has succeeded, and a retry reopens no success",
    },
    Excuse {
        came: &[Came::BaseOld],
        met: &[
            Met::TaskReady,
            Met::TaskDelayed,
            Met::TaskLeased,
            Met::TaskAsking,
            Met::TaskAnswered,
            Met::TaskVerifyWaiting,
            Met::TaskVerifyLeased,
            Met::TaskParked,
            Met::TaskSucceeded,
        ],
        reason: "merges are made one after the other: the newer generation has no base yet",
    },
    Excuse {
        came: INTEGRATION_ANSWERS,
        met: &[Met::RunActive],
        reason: "a run that is active again is of a new generation",
    },
    Excuse {
        came: INTEGRATION_ANSWERS,
        met: &[
            Met::RunVerifyWaiting,
            Met::RunVerifyLeased,
            Met::RunSucceeded,
        ],
        reason: "merges are made one after the other, each once: no earlier answer was given",
    },
    Excuse {
        came: &[Came::IntegrationOld],
        met: &[Met::RunActive],
        reason: "all tasks had succeeded, so the newer generation integrates at once",
    },
    Excuse {
        came: &[Came::IntegrationOld],
        met: &[
            Met::RunVerifyWaiting,
            Met::RunVerifyLeased,
            Met::RunSucceeded,
        ],
        reason: "merges are made one after the other: the newer generation is not merged yet",
    },
    Excuse {
        came: &[Came::Goodbye],
        met: &[Met::WorkerUp],
        reason: "a worker that ends has said before, on the same stream, that it takes nothing",
    },
    Excuse {
        came: &[Came::GoodbyeLease],
        met: &[
            Met::AttemptStarted,
            Met::AttemptAsking,
            Met::AttemptAnswered,
            Met::VerifyStarted,
            Met::FinalStarted,
        ],
        reason: "a worker says goodbye once its reports are acknowledged, and what it began has one",
    },
    Excuse {
        came: &[Came::GoodbyeOld],
        met: &[
            Met::WorkerUp,
            Met::WorkerDraining,
            Met::WorkerDown,
            Met::WorkerUnknown,
        ],
        reason: "it is the last word of a stream, and an older one is ended when the newer is welcomed",
    },
    Excuse {
        came: &[Came::SeenRefused],
        met: &[
            Met::AllocationQueued,
            Met::AllocationHeld,
            Met::AllocationJoining,
        ],
        reason: "what an order is refused for has no name yet: the provider is asked one thing at a time",
    },
    Excuse {
        came: &[Came::EndedRefused],
        met: &[Met::AllocationQueued, Met::AllocationJoining],
        reason: "what an order is refused for has no name yet: the provider is asked one thing at a time",
    },
    Excuse {
        came: &[Came::SeenRefused, Came::EndedRefused],
        met: &[Met::AllocationJoined],
        reason: "the cluster of a world refuses an order whenever it comes, so none of it has arrived",
    },
    Excuse {
        came: &[
            Came::SeenRefused,
            Came::SeenQueued,
            Came::SeenHeld,
            Came::SeenRunning,
            Came::SeenGone,
        ],
        met: &[Met::AllocationUnknown],
        reason: "a list is compared with the inventory of that moment, and only what is seen ends any",
    },
    Excuse {
        came: &[Came::SeenHeld],
        met: &[Met::AllocationJoining],
        reason: "the cluster of a world holds only what has never run",
    },
    Excuse {
        came: &[Came::SeenQueued, Came::SeenGone],
        met: &[Met::AllocationHeld],
        reason: "nobody releases or ends what the cluster of a world holds before it is to end",
    },
    Excuse {
        came: &[Came::ToEndSurplus],
        met: &[
            Met::AllocationWanted,
            Met::AllocationQueued,
            Met::AllocationJoining,
            Met::AllocationJoined,
        ],
        reason: "the maximum of a world's pool does not change",
    },
    Excuse {
        came: &[Came::ToEndDeserted],
        met: &[Met::AllocationJoined],
        reason: "allocations of a world's cluster are jobs, which end with their workers",
    },
    Excuse {
        came: &[Came::HostReleased],
        met: POOLS,
        reason: "a quarantine lasts longer than a world",
    },
    Excuse {
        came: &[Came::PoolForget],
        met: POOLS,
        reason: "the pool of a world stays in its configuration",
    },
    Excuse {
        came: &[Came::PoolDisown],
        met: POOLS,
        reason: "no world puts a backup back",
    },
];
