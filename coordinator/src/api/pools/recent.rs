//! What happened to a pool lately.

use std::collections::BTreeMap;
use std::sync::Arc;

use coordinator_core::event::EventKind;
use coordinator_core::pool::PoolEvent;
use coordinator_core::{AllocationId, Event};
use muster_proto::v1;

use crate::api::convert;

/// Events of a pool that are shown.
const SHOWN: usize = 50;
/// Events of all pools among which they are looked for.
pub(super) const LOOKED_AT: usize = 2_000;

/// Chooses the events of one pool; `held` says of which pool allocations are that were wanted before.
pub(super) fn of(
    pool: &str,
    events: &[Event],
    mut held: BTreeMap<AllocationId, Arc<str>>,
) -> Vec<v1::PoolEvent> {
    let mut recent = vec![];
    for event in events {
        let EventKind::Pool(happened) = &event.kind else {
            continue;
        };
        if let PoolEvent::AllocationsWanted {
            pool, first, count, ..
        } = happened
        {
            let last = first.0.saturating_add(u64::from(*count));
            held.extend((first.0..last).map(|id| (AllocationId(id), Arc::clone(pool))));
        }
        let allocation = allocation_of(happened);
        let of = pool_of(happened).or_else(|| held.get(&allocation?));
        if of.is_some_and(|of| **of == *pool) {
            recent.push(v1::PoolEvent {
                at: Some(convert::timestamp(event.at)),
                event: happened.name().to_owned(),
                allocation: allocation.map(|id| id.to_string()).unwrap_or_default(),
                text: happened.to_string(),
            });
        }
    }
    recent.split_off(recent.len().saturating_sub(SHOWN))
}

fn allocation_of(event: &PoolEvent) -> Option<AllocationId> {
    match event {
        PoolEvent::AllocationsWanted { first, .. } => Some(*first),
        PoolEvent::AllocationQueued { allocation, .. }
        | PoolEvent::AllocationRunning { allocation, .. }
        | PoolEvent::AllocationProven { allocation, .. }
        | PoolEvent::AllocationEnding { allocation, .. }
        | PoolEvent::AllocationEnded { allocation, .. } => Some(*allocation),
        PoolEvent::PoolPaused { .. }
        | PoolEvent::PoolResumed { .. }
        | PoolEvent::HostQuarantined { .. }
        | PoolEvent::HostReleased { .. }
        | PoolEvent::PoolForgotten { .. } => None,
    }
}

fn pool_of(event: &PoolEvent) -> Option<&Arc<str>> {
    match event {
        PoolEvent::AllocationsWanted { pool, .. }
        | PoolEvent::PoolPaused { pool, .. }
        | PoolEvent::PoolResumed { pool, .. }
        | PoolEvent::HostQuarantined { pool, .. }
        | PoolEvent::HostReleased { pool, .. }
        | PoolEvent::PoolForgotten { pool, .. } => Some(pool),
        PoolEvent::AllocationQueued { .. }
        | PoolEvent::AllocationRunning { .. }
        | PoolEvent::AllocationProven { .. }
        | PoolEvent::AllocationEnding { .. }
        | PoolEvent::AllocationEnded { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coordinator_core::Timestamp;
    use coordinator_core::pool::AllocationEnd;

    fn events(happened: Vec<PoolEvent>) -> Vec<Event> {
        let numbered = (1..).zip(happened);
        let events = numbered.map(|(seq, event)| Event {
            seq,
            at: Timestamp::from_ms(seq),
            kind: EventKind::Pool(event),
        });
        events.collect()
    }

    fn wanted(pool: &str, first: u64) -> PoolEvent {
        PoolEvent::AllocationsWanted {
            pool: pool.into(),
            first: AllocationId(first),
            count: 2,
            why: "2 tasks wait".into(),
        }
    }

    fn ended(allocation: u64) -> PoolEvent {
        PoolEvent::AllocationEnded {
            allocation: AllocationId(allocation),
            end: AllocationEnd::Gone,
            detail: "NODE_FAIL".into(),
        }
    }

    #[test]
    fn events_of_allocations_are_of_the_pool_that_wanted_them() {
        let happened = events(vec![
            // Wanted before all that is known.
            ended(3),
            ended(4),
            wanted("gpu", 5),
            wanted("near", 7),
            ended(6),
            ended(7),
            PoolEvent::PoolPaused {
                pool: "gpu".into(),
                reason: "the night".into(),
                by: "ann".into(),
            },
        ]);
        let held = BTreeMap::from([(AllocationId(3), "gpu".into())]);
        let told: Vec<String> = of("gpu", &happened, held)
            .into_iter()
            .map(|event| format!("{} {}: {}", event.event, event.allocation, event.text))
            .collect();
        assert_eq!(
            told,
            [
                "allocation_ended A3: allocation A3 is gone: NODE_FAIL",
                "allocations_wanted A5: pool gpu wants 2 allocations from A5 on: 2 tasks wait",
                "allocation_ended A6: allocation A6 is gone: NODE_FAIL",
                "pool_paused : pool gpu is paused by ann: the night",
            ]
        );
    }

    #[test]
    fn only_the_last_ones_are_shown() {
        let happened = events((0..100).map(|nth| wanted("gpu", 2 * nth + 1)).collect());
        let told = of("gpu", &happened, BTreeMap::new());
        assert_eq!(told.len(), SHOWN);
        assert_eq!(told.last().unwrap().allocation, "A199");
    }
}
