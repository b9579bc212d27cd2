//! Forms of pools, their allocations and what happens to them.

use coordinator_core::pool::{
    Allocation, AllocationEnd, EndCause, Ending, Pause, Phase, Pool, PoolEvent, Quarantine,
};
use coordinator_core::{AllocationId, RunId, TaskIx, TaskKey, Timestamp};
use serde::{Deserialize, Serialize};

use super::Error;
use super::plan::{Text, boxed, is_zero, shared, text};

#[derive(Serialize, Deserialize)]
#[serde(tag = "p", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum PoolEventV1<'a> {
    AllocationsWanted {
        pool: Text<'a>,
        first: u64,
        count: u32,
        why: Text<'a>,
    },
    AllocationQueued {
        allocation: u64,
        external: Text<'a>,
    },
    AllocationRunning {
        allocation: u64,
        external: Text<'a>,
        host: Text<'a>,
    },
    AllocationProven {
        allocation: u64,
    },
    AllocationEnding {
        allocation: u64,
        cause: Text<'a>,
        reason: Text<'a>,
    },
    AllocationEnded {
        allocation: u64,
        end: Text<'a>,
        detail: Text<'a>,
    },
    PoolPaused {
        pool: Text<'a>,
        reason: Text<'a>,
        by: Text<'a>,
    },
    PoolResumed {
        pool: Text<'a>,
        by: Text<'a>,
    },
    HostQuarantined {
        pool: Text<'a>,
        host: Text<'a>,
        reason: Text<'a>,
        until: u64,
    },
    HostReleased {
        pool: Text<'a>,
        host: Text<'a>,
    },
    PoolForgotten {
        pool: Text<'a>,
        allocations: u32,
        by: Text<'a>,
    },
    /// One of a newer program.
    #[serde(other)]
    Newer,
}

impl<'a> From<&'a PoolEvent> for PoolEventV1<'a> {
    fn from(event: &'a PoolEvent) -> Self {
        match event {
            PoolEvent::AllocationsWanted {
                pool,
                first,
                count,
                why,
            } => Self::AllocationsWanted {
                pool: text(pool),
                first: first.0,
                count: *count,
                why: text(why),
            },
            PoolEvent::AllocationQueued {
                allocation,
                external,
            } => Self::AllocationQueued {
                allocation: allocation.0,
                external: text(external),
            },
            PoolEvent::AllocationRunning {
                allocation,
                external,
                host,
            } => Self::AllocationRunning {
                allocation: allocation.0,
                external: text(external),
                host: text(host),
            },
            PoolEvent::AllocationProven { allocation } => Self::AllocationProven {
                allocation: allocation.0,
            },
            PoolEvent::AllocationEnding {
                allocation,
                cause,
                reason,
            } => Self::AllocationEnding {
                allocation: allocation.0,
                cause: text(cause.name()),
                reason: text(reason),
            },
            PoolEvent::AllocationEnded {
                allocation,
                end,
                detail,
            } => Self::AllocationEnded {
                allocation: allocation.0,
                end: text(end.name()),
                detail: text(detail),
            },
            PoolEvent::PoolPaused { pool, reason, by } => Self::PoolPaused {
                pool: text(pool),
                reason: text(reason),
                by: text(by),
            },
            PoolEvent::PoolResumed { pool, by } => Self::PoolResumed {
                pool: text(pool),
                by: text(by),
            },
            PoolEvent::HostQuarantined {
                pool,
                host,
                reason,
                until,
            } => Self::HostQuarantined {
                pool: text(pool),
                host: text(host),
                reason: text(reason),
                until: until.ms(),
            },
            PoolEvent::HostReleased { pool, host } => Self::HostReleased {
                pool: text(pool),
                host: text(host),
            },
            PoolEvent::PoolForgotten {
                pool,
                allocations,
                by,
            } => Self::PoolForgotten {
                pool: text(pool),
                allocations: *allocations,
                by: text(by),
            },
        }
    }
}

impl TryFrom<PoolEventV1<'_>> for PoolEvent {
    type Error = Error;

    fn try_from(form: PoolEventV1<'_>) -> Result<Self, Error> {
        Ok(match form {
            PoolEventV1::AllocationsWanted {
                pool,
                first,
                count,
                why,
            } => Self::AllocationsWanted {
                pool: shared(&pool),
                first: AllocationId(first),
                count,
                why: boxed(why),
            },
            PoolEventV1::AllocationQueued {
                allocation,
                external,
            } => Self::AllocationQueued {
                allocation: AllocationId(allocation),
                external: boxed(external),
            },
            PoolEventV1::AllocationRunning {
                allocation,
                external,
                host,
            } => Self::AllocationRunning {
                allocation: AllocationId(allocation),
                external: boxed(external),
                host: boxed(host),
            },
            PoolEventV1::AllocationProven { allocation } => Self::AllocationProven {
                allocation: AllocationId(allocation),
            },
            PoolEventV1::AllocationEnding {
                allocation,
                cause,
                reason,
            } => Self::AllocationEnding {
                allocation: AllocationId(allocation),
                cause: cause_of(&cause)?,
                reason: boxed(reason),
            },
            PoolEventV1::AllocationEnded {
                allocation,
                end,
                detail,
            } => Self::AllocationEnded {
                allocation: AllocationId(allocation),
                end: known(AllocationEnd::ALL, AllocationEnd::name, "end", &end)?,
                detail: boxed(detail),
            },
            PoolEventV1::PoolPaused { pool, reason, by } => Self::PoolPaused {
                pool: shared(&pool),
                reason: boxed(reason),
                by: shared(&by),
            },
            PoolEventV1::PoolResumed { pool, by } => Self::PoolResumed {
                pool: shared(&pool),
                by: shared(&by),
            },
            PoolEventV1::HostQuarantined {
                pool,
                host,
                reason,
                until,
            } => Self::HostQuarantined {
                pool: shared(&pool),
                host: shared(&host),
                reason: boxed(reason),
                until: Timestamp::from_ms(until),
            },
            PoolEventV1::HostReleased { pool, host } => Self::HostReleased {
                pool: shared(&pool),
                host: shared(&host),
            },
            PoolEventV1::PoolForgotten {
                pool,
                allocations,
                by,
            } => Self::PoolForgotten {
                pool: shared(&pool),
                allocations,
                by: shared(&by),
            },
            PoolEventV1::Newer => return Err(Error::NewerEvent),
        })
    }
}

fn cause_of(name: &str) -> Result<EndCause, Error> {
    known(EndCause::ALL, EndCause::name, "cause", name)
}

fn known<T: Copy, const N: usize>(
    all: [T; N],
    name_of: fn(T) -> &'static str,
    field: &'static str,
    name: &str,
) -> Result<T, Error> {
    let mut all = all.into_iter();
    let found = all.find(|value| name_of(*value) == name);
    found.ok_or_else(|| Error::Unknown {
        field,
        value: name.into(),
    })
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PoolV1<'a> {
    pub(super) name: Text<'a>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    paused: Option<PauseV1<'a>>,
    #[serde(default, skip_serializing_if = "is_zero")]
    failures: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    failed_at: u64,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    last_failure: Text<'a>,
    #[serde(default, skip_serializing_if = "is_zero")]
    failed_batch: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    suspects: Vec<SuspectV1<'a>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    quarantined: Vec<QuarantineV1<'a>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PauseV1<'a> {
    reason: Text<'a>,
    by: Text<'a>,
    at: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SuspectV1<'a> {
    host: Text<'a>,
    /// Pairs of run and task.
    tasks: Vec<(u64, u32)>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct QuarantineV1<'a> {
    host: Text<'a>,
    reason: Text<'a>,
    at: u64,
    until: u64,
}

impl<'a> PoolV1<'a> {
    pub(super) fn new(name: &'a str, pool: &'a Pool) -> Self {
        let suspects = pool.suspects.iter().map(|(host, tasks)| SuspectV1 {
            host: text(host),
            tasks: tasks.iter().map(|key| (key.run.0, key.task.0)).collect(),
        });
        let quarantined = pool.quarantined.iter().map(|(host, held)| QuarantineV1 {
            host: text(host),
            reason: text(&held.reason),
            at: held.at.ms(),
            until: held.until.ms(),
        });
        Self {
            name: text(name),
            paused: pool.paused.as_ref().map(|pause| PauseV1 {
                reason: text(&pause.reason),
                by: text(&pause.by),
                at: pause.at.ms(),
            }),
            failures: pool.failures,
            failed_at: pool.failed_at.ms(),
            last_failure: text(&pool.last_failure),
            failed_batch: pool.failed_batch.0,
            suspects: suspects.collect(),
            quarantined: quarantined.collect(),
        }
    }
}

impl From<PoolV1<'_>> for Pool {
    fn from(form: PoolV1<'_>) -> Self {
        let key = |(run, task): (u64, u32)| TaskKey {
            run: RunId(run),
            task: TaskIx(task),
        };
        let suspects = form.suspects.into_iter();
        let quarantined = form.quarantined.into_iter();
        Self {
            paused: form.paused.map(|pause| Pause {
                reason: boxed(pause.reason),
                by: shared(&pause.by),
                at: Timestamp::from_ms(pause.at),
            }),
            failures: form.failures,
            failed_at: Timestamp::from_ms(form.failed_at),
            last_failure: boxed(form.last_failure),
            failed_batch: AllocationId(form.failed_batch),
            suspects: suspects
                .map(|one| (shared(&one.host), one.tasks.into_iter().map(key).collect()))
                .collect(),
            quarantined: quarantined
                .map(|one| {
                    let quarantine = Quarantine {
                        reason: boxed(one.reason),
                        at: Timestamp::from_ms(one.at),
                        until: Timestamp::from_ms(one.until),
                    };
                    (shared(&one.host), quarantine)
                })
                .collect(),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AllocationV1<'a> {
    id: u64,
    pool: Text<'a>,
    first: u64,
    batch: u32,
    wanted_at: u64,
    phase: PhaseV1,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    external: Option<Text<'a>>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    host: Text<'a>,
    #[serde(default, skip_serializing_if = "is_zero")]
    joined: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    joined_at: Option<u64>,
    #[serde(default, skip_serializing_if = "is_zero")]
    worked: bool,
    #[serde(default, skip_serializing_if = "is_zero")]
    proven: bool,
    #[serde(default, skip_serializing_if = "is_zero")]
    requeues: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ending: Option<EndingV1<'a>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum PhaseV1 {
    Wanted,
    Queued { since: u64 },
    Running { since: u64 },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EndingV1<'a> {
    cause: Text<'a>,
    reason: Text<'a>,
    at: u64,
}

impl<'a> From<&'a Allocation> for AllocationV1<'a> {
    fn from(held: &'a Allocation) -> Self {
        Self {
            id: held.id.0,
            pool: text(&held.pool),
            first: held.first.0,
            batch: held.batch,
            wanted_at: held.wanted_at.ms(),
            phase: match held.phase {
                Phase::Wanted => PhaseV1::Wanted,
                Phase::Queued { since } => PhaseV1::Queued { since: since.ms() },
                Phase::Running { since } => PhaseV1::Running { since: since.ms() },
            },
            external: held.external.as_deref().map(text),
            host: text(&held.host),
            joined: held.joined,
            joined_at: held.joined_at.map(Timestamp::ms),
            worked: held.worked,
            proven: held.proven,
            requeues: held.requeues,
            ending: held.ending.as_ref().map(|ending| EndingV1 {
                cause: text(ending.cause.name()),
                reason: text(&ending.reason),
                at: ending.at.ms(),
            }),
        }
    }
}

impl TryFrom<AllocationV1<'_>> for Allocation {
    type Error = Error;

    fn try_from(form: AllocationV1<'_>) -> Result<Self, Error> {
        let ending = form.ending.map(|ending| {
            Ok::<_, Error>(Ending {
                cause: cause_of(&ending.cause)?,
                reason: boxed(ending.reason),
                at: Timestamp::from_ms(ending.at),
            })
        });
        Ok(Self {
            id: AllocationId(form.id),
            pool: shared(&form.pool),
            first: AllocationId(form.first),
            batch: form.batch,
            wanted_at: Timestamp::from_ms(form.wanted_at),
            phase: match form.phase {
                PhaseV1::Wanted => Phase::Wanted,
                PhaseV1::Queued { since } => Phase::Queued {
                    since: Timestamp::from_ms(since),
                },
                PhaseV1::Running { since } => Phase::Running {
                    since: Timestamp::from_ms(since),
                },
            },
            external: form.external.map(boxed),
            host: boxed(form.host),
            joined: form.joined,
            joined_at: form.joined_at.map(Timestamp::from_ms),
            worked: form.worked,
            proven: form.proven,
            requeues: form.requeues,
            ending: ending.transpose()?,
            idle_since: None,
            held: None,
            vain_since: None,
        })
    }
}
