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
        came: &[Came::HeartbeatOld, Came::ClosedOld],
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
];
