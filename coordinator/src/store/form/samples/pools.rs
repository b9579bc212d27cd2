//! Pools and their allocations, as they are written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use coordinator_core::pool::{
    Allocation, AllocationEnd, EndCause, Ending, Pause, Phase, Pool, PoolEvent, Quarantine,
};
use coordinator_core::state::Image;
use coordinator_core::time::Span;
use coordinator_core::worker::Offer;
use coordinator_core::{AllocationId, TaskIx, TaskKey};

use super::{RUN, at, image};

variants!(POOL_EVENTS, pool_event_name, PoolEvent:
    AllocationsWanted, AllocationQueued, AllocationRunning, AllocationProven, AllocationEnding,
    AllocationEnded, PoolPaused, PoolResumed, HostQuarantined, HostReleased, PoolForgotten,
);

/// Everything that could happen to pools at first, with every cause and every end.
pub(in crate::store) fn pool_events() -> Vec<PoolEvent> {
    let pool: Arc<str> = "gpu".into();
    let allocation = AllocationId(5);
    let mut events = vec![
        PoolEvent::AllocationsWanted {
            pool: Arc::clone(&pool),
            first: allocation,
            count: 3,
            why: "3 tasks wait for room".into(),
        },
        PoolEvent::AllocationQueued {
            allocation,
            external: "4711_0".into(),
        },
        PoolEvent::AllocationRunning {
            allocation,
            external: "4711_0".into(),
            host: "node7".into(),
        },
        PoolEvent::PoolPaused {
            pool: Arc::clone(&pool),
            reason: "maintenance".into(),
            by: "ann".into(),
        },
        PoolEvent::PoolResumed {
            pool: Arc::clone(&pool),
            by: "ann".into(),
        },
        PoolEvent::HostQuarantined {
            pool: Arc::clone(&pool),
            host: "node7".into(),
            reason: "attempts fail at once".into(),
            until: at(3_600_000),
        },
        PoolEvent::HostReleased {
            pool,
            host: "node7".into(),
        },
    ];
    let later = [EndCause::NeverWorked];
    let causes = EndCause::ALL.into_iter();
    events.extend(
        causes
            .filter(|cause| !later.contains(cause))
            .map(|cause| ending(allocation, cause)),
    );
    let later = [AllocationEnd::NeverWorked, AllocationEnd::DiedYoung];
    let ends = AllocationEnd::ALL.into_iter();
    events.extend(
        ends.filter(|end| !later.contains(end))
            .map(|end| ended(allocation, end)),
    );
    events
}

/// What can happen to pools besides since their starts are judged by what becomes of them.
pub(in crate::store) fn judged_events() -> Vec<PoolEvent> {
    let allocation = AllocationId(5);
    vec![
        PoolEvent::AllocationProven { allocation },
        ending(allocation, EndCause::NeverWorked),
        ended(allocation, AllocationEnd::NeverWorked),
        ended(allocation, AllocationEnd::DiedYoung),
        PoolEvent::PoolForgotten {
            pool: "old".into(),
            allocations: 3,
            by: "ann".into(),
        },
    ]
}

fn ending(allocation: AllocationId, cause: EndCause) -> PoolEvent {
    PoolEvent::AllocationEnding {
        allocation,
        cause,
        reason: "nothing has needed it for 300 s".into(),
    }
}

fn ended(allocation: AllocationId, end: AllocationEnd) -> PoolEvent {
    PoolEvent::AllocationEnded {
        allocation,
        end,
        detail: "TIMEOUT".into(),
    }
}

/// A state with pools, allocations in every phase, and a worker of one of them.
pub(in crate::store) fn pooled_image() -> Image {
    let mut image = image();
    let allocation = |id: u64, phase| Allocation {
        id: AllocationId(id),
        pool: "gpu".into(),
        first: AllocationId(5),
        batch: 3,
        wanted_at: at(10),
        phase,
        external: None,
        host: "".into(),
        joined: false,
        joined_at: None,
        worked: false,
        proven: false,
        requeues: 0,
        ending: None,
        idle_since: None,
        held: None,
        vain_since: None,
    };
    image.next_allocation = AllocationId(8);
    image.allocations = vec![
        allocation(5, Phase::Wanted),
        Allocation {
            external: Some("4711_1".into()),
            requeues: 2,
            ..allocation(6, Phase::Queued { since: at(11) })
        },
        Allocation {
            external: Some("4711_2".into()),
            host: "node7".into(),
            joined: true,
            ending: Some(Ending {
                cause: EndCause::Idle,
                reason: "nothing has needed it for 300 s".into(),
                at: at(40),
            }),
            ..allocation(7, Phase::Running { since: at(12) })
        },
    ];
    let task = |task| TaskKey {
        run: RUN,
        task: TaskIx(task),
    };
    let known = Pool {
        paused: Some(Pause {
            reason: "3 starts in a row failed".into(),
            by: "coordinator".into(),
            at: at(41),
        }),
        failures: 3,
        failed_at: at(39),
        last_failure: "Invalid partition".into(),
        failed_batch: AllocationId(4),
        suspects: BTreeMap::from([("node8".into(), BTreeSet::from([task(1), task(2)]))]),
        quarantined: BTreeMap::from([(
            "node7".into(),
            Quarantine {
                reason: "attempts fail at once".into(),
                at: at(38),
                until: at(3_600_038),
            },
        )]),
    };
    image.pools = BTreeMap::from([("gpu".into(), known), ("near".into(), Pool::default())]);
    image.workers[1].offer = Arc::new(Offer {
        allocation: Some(AllocationId(7)),
        ..(*image.workers[1].offer).clone()
    });
    for run in &mut image.runs {
        for profile in &mut run.profiles {
            profile.requirement.expected = Span::from_secs(1_200);
        }
    }
    image
}
