//! What commands about pools lead to.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{
    Allocation, AllocationEnd, EndCause, Phase, PoolCommand, PoolEvent, Seen, counted, is_near,
    is_stuck, plan,
};
use crate::command::{Rejection, Reply};
use crate::decide::{Decision, Touch, head};
use crate::event::{Actor, EventKind};
use crate::ids::AllocationId;
use crate::limits;
use crate::state::{Link, State, Worker};
use crate::time::{Span, Timestamp};

/// Who pauses a pool that fails.
const SYSTEM: &str = "coordinator";

pub(crate) fn decide(
    state: &State,
    now: Timestamp,
    command: &PoolCommand,
) -> Result<Decision, Rejection> {
    match command {
        PoolCommand::Configure { policies } => {
            let mut decision = decision(vec![]);
            decision.touches.push(Touch::Pools(policies.clone()));
            Ok(decision)
        }
        PoolCommand::Plan => Ok(planned(state, now)),
        PoolCommand::Observe { allocations } => Ok(observed(state, now, allocations)),
        PoolCommand::Pause { pool, reason, by } => {
            known(state, pool)?;
            if state.pool(pool).is_some_and(|pool| pool.paused.is_some()) {
                return Ok(decision(vec![]));
            }
            Ok(decision(vec![paused(pool, reason, by)]))
        }
        PoolCommand::Resume { pool, by } => {
            known(state, pool)?;
            let clean = state.pool(pool).is_none_or(|pool| {
                pool.paused.is_none()
                    && pool.failures == 0
                    && pool.quarantined.is_empty()
                    && pool.suspects.is_empty()
            });
            if clean {
                return Ok(decision(vec![]));
            }
            Ok(decision(vec![PoolEvent::PoolResumed {
                pool: Arc::clone(pool),
                by: Arc::clone(by),
            }]))
        }
        PoolCommand::Disown => {
            let held = state.allocations();
            let disowned = held.map(|held| PoolEvent::AllocationEnded {
                allocation: held.id,
                end: AllocationEnd::Released,
                detail: "it is of the home that this one was restored from".into(),
            });
            Ok(decision(disowned.collect()))
        }
        PoolCommand::Forget {
            pool,
            even_if_they_run,
            by,
        } => forgotten(state, pool, *even_if_they_run, by),
    }
}

fn forgotten(
    state: &State,
    pool: &Arc<str>,
    even_if_they_run: bool,
    by: &Actor,
) -> Result<Decision, Rejection> {
    if state.policies.contains_key(pool) {
        let what = format!(
            "pool {pool} is configured: take its section out and start the coordinator again first"
        );
        return Err(Rejection::NotNow(what.into()));
    }
    let held: BTreeSet<AllocationId> = of_pool(state, pool).map(|held| held.id).collect();
    if held.is_empty() && !state.pools.contains_key(pool) {
        return Err(Rejection::UnknownPool(Arc::clone(pool)));
    }
    let allocations = u32::try_from(held.len()).unwrap_or(u32::MAX);
    if !held.is_empty() && !even_if_they_run {
        let what = format!(
            "pool {pool} has {}, and nobody can say whether they run: put its section back into \
             the configuration, and they are ended once nothing needs them",
            counted(allocations)
        );
        return Err(Rejection::NotNow(what.into()));
    }
    let mut decision = decision(vec![PoolEvent::PoolForgotten {
        pool: Arc::clone(pool),
        allocations,
        by: Arc::clone(by),
    }]);
    let stays = |worker: &&Worker| {
        let of = worker.offer.allocation;
        of.is_some_and(|id| held.contains(&id)) && !worker.draining
    };
    let drained = state.workers().filter(stays);
    let drained = drained.map(|worker| EventKind::WorkerDraining {
        worker: worker.id.clone(),
        draining: true,
        by: Arc::clone(by),
    });
    decision.events.extend(drained);
    Ok(decision)
}

fn of_pool<'a>(state: &'a State, pool: &'a str) -> impl Iterator<Item = &'a Allocation> {
    state.allocations().filter(move |held| *held.pool == *pool)
}

fn known(state: &State, pool: &Arc<str>) -> Result<(), Rejection> {
    if !state.policies.contains_key(pool) && of_pool(state, pool).next().is_some() {
        let what = format!(
            "pool {pool} is not configured any more: put its section back into the configuration, \
             or forget it"
        );
        return Err(Rejection::NotNow(what.into()));
    }
    if state.policies.contains_key(pool) || state.pools.contains_key(pool) {
        return Ok(());
    }
    Err(Rejection::UnknownPool(Arc::clone(pool)))
}

fn decision(events: Vec<PoolEvent>) -> Decision {
    Decision {
        events: events.into_iter().map(EventKind::Pool).collect(),
        touches: vec![],
        reply: Reply::Done,
    }
}

fn paused(pool: &Arc<str>, reason: &str, by: &Actor) -> PoolEvent {
    PoolEvent::PoolPaused {
        pool: Arc::clone(pool),
        reason: head(reason, limits::TEXT_BYTES),
        by: Arc::clone(by),
    }
}

fn planned(state: &State, now: Timestamp) -> Decision {
    let mut events = vec![];
    quarantines(state, now, &mut events);
    proven(state, now, &mut events);
    let mut next = state.next_allocation;
    let (mut idle, mut vain) = (BTreeSet::new(), BTreeSet::new());
    let room = limits::ALLOCATIONS.saturating_sub(state.allocations.len());
    let mut room = u32::try_from(room).unwrap_or(u32::MAX);
    for outlook in plan::outlook(state, now) {
        idle.extend(outlook.idle);
        vain.extend(outlook.vain);
        for stop in outlook.stops {
            events.push(PoolEvent::AllocationEnding {
                allocation: stop.allocation,
                cause: stop.cause,
                reason: stop.why,
            });
        }
        let Some(start) = outlook.start else {
            continue;
        };
        let count = start.count.min(room);
        if count == 0 {
            continue;
        }
        room -= count;
        events.push(PoolEvent::AllocationsWanted {
            pool: outlook.pool,
            first: next,
            count,
            why: head(&start.why, limits::TEXT_BYTES),
        });
        next = AllocationId(next.0.saturating_add(u64::from(count)));
    }
    let mut decision = decision(events);
    let changed = state
        .allocations()
        .filter(|held| held.idle_since.is_some() != idle.contains(&held.id));
    decision.touches = changed
        .map(|held| Touch::Idle {
            allocation: held.id,
            idle: held.idle_since.is_none(),
        })
        .collect();
    let changed = state
        .allocations()
        .filter(|held| held.vain_since.is_some() != vain.contains(&held.id));
    decision.touches.extend(changed.map(|held| Touch::Vain {
        allocation: held.id,
        vain: held.vain_since.is_none(),
    }));
    decision
}

/// Notes which starts were good ones, where earlier ones failed: of those whose worker is there for a
/// while. Of work that goes well the journal says so already.
fn proven(state: &State, now: Timestamp, events: &mut Vec<PoolEvent>) {
    for held in state.allocations() {
        let failed = state.pool(&held.pool).filter(|pool| pool.failures > 0);
        let since = held.joined_at.filter(|_| !held.proven);
        let (Some(pool), Some(since)) = (failed, since) else {
            continue;
        };
        let lived = |worker: &Worker| match worker.link {
            Link::Up { heard_at, .. } => heard_at.since(since) >= limits::YOUNG,
            Link::Down { .. } => false,
        };
        if held.ending.is_none()
            && since >= pool.failed_at
            && now.since(since) >= limits::YOUNG
            && state.workers_of(held.id).any(lived)
        {
            events.push(PoolEvent::AllocationProven {
                allocation: held.id,
            });
        }
    }
}

/// Quarantines hosts on which attempts of several tasks failed at once, and lets those go whose time
/// is over. A pool that has to be quarantined host by host is paused instead.
fn quarantines(state: &State, now: Timestamp, events: &mut Vec<PoolEvent>) {
    for (name, pool) in &state.pools {
        for (host, quarantine) in &pool.quarantined {
            if quarantine.until <= now {
                events.push(PoolEvent::HostReleased {
                    pool: Arc::clone(name),
                    host: Arc::clone(host),
                });
            }
        }
        let Some(policy) = state.policies.get(name).filter(|policy| policy.quarantine) else {
            continue;
        };
        let suspects = pool.suspects.iter();
        let bad = suspects.filter(|(_, tasks)| tasks.len() >= limits::QUARANTINE_TASKS);
        let mut hosts = pool.quarantined.len();
        for (host, tasks) in bad {
            if pool.quarantined.contains_key(host) {
                continue;
            }
            hosts += 1;
            let reason = format!(
                "attempts of {} tasks failed there within {} s each",
                tasks.len(),
                limits::QUICK_FAILURE.ms() / 1_000
            );
            events.push(PoolEvent::HostQuarantined {
                pool: Arc::clone(name),
                host: Arc::clone(host),
                reason: reason.into(),
                until: now + limits::QUARANTINE,
            });
        }
        let limit = usize::try_from(policy.failures_max).unwrap_or(usize::MAX);
        if hosts >= limit.max(1) && pool.paused.is_none() {
            let reason = format!("{hosts} of its hosts are in quarantine: attempts fail at once");
            events.push(paused(name, &reason, &SYSTEM.into()));
        }
    }
}

fn observed(state: &State, now: Timestamp, seen: &[(AllocationId, Seen)]) -> Decision {
    let mut events = vec![];
    let mut told = BTreeSet::new();
    let mut touches = vec![];
    let mut failures: std::collections::BTreeMap<Arc<str>, Failing> =
        std::collections::BTreeMap::new();
    for (id, seen) in seen {
        let Some(held) = state.allocation(*id).filter(|_| told.insert(*id)) else {
            continue;
        };
        let reason = match seen {
            Seen::Held { reason, .. } => Some(head(reason, limits::EXTERNAL_BYTES)),
            _ => None,
        };
        if held.held.as_ref().map(|hold| &hold.reason) != reason.as_ref() {
            let allocation = *id;
            touches.push(Touch::Held { allocation, reason });
        }
        match seen {
            // Its provider has no name for it yet.
            Seen::Held { external, .. } if external.is_empty() => {}
            Seen::Queued { external } | Seen::Held { external, .. } => {
                let known = held.external.as_ref() == Some(external);
                if !known || !matches!(held.phase, Phase::Queued { .. }) {
                    events.push(PoolEvent::AllocationQueued {
                        allocation: *id,
                        external: head(external, limits::EXTERNAL_BYTES),
                    });
                }
            }
            Seen::Running { external, host } => {
                let known = held.external.as_ref() == Some(external) && held.host == *host;
                if !known || !matches!(held.phase, Phase::Running { .. }) {
                    events.push(PoolEvent::AllocationRunning {
                        allocation: *id,
                        external: head(external, limits::EXTERNAL_BYTES),
                        host: head(host, limits::EXTERNAL_BYTES),
                    });
                }
            }
            Seen::Refused { detail } => {
                // An earlier try of the order has arrived after all.
                if lives(state, now, held) {
                    continue;
                }
                let end = AllocationEnd::Refused;
                ended(state, held, end, detail, &mut failures, &mut events);
            }
            Seen::Gone { detail } => {
                if lives(state, now, held) {
                    continue;
                }
                let (end, detail) = end_of(state, now, held, detail);
                ended(state, held, end, &detail, &mut failures, &mut events);
            }
        }
    }
    let mut decision = decision(events);
    decision.touches = touches;
    decision
}

/// Tells whether a worker of the allocation is heard all the same: its own session is the truth
/// about work, whatever its provider has forgotten.
fn lives(state: &State, now: Timestamp, held: &Allocation) -> bool {
    let mut workers = state.workers_of(held.id);
    workers.any(|worker| match &worker.link {
        Link::Up { .. } => true,
        link @ Link::Down { .. } => {
            held.ending.is_none()
                && state.leases_of_worker(&worker.id).next().is_some()
                && is_near(state, link, now)
        }
    })
}

/// Tells how an allocation ended, and what is to be said of it.
fn end_of(
    state: &State,
    now: Timestamp,
    held: &Allocation,
    detail: &str,
) -> (AllocationEnd, Box<str>) {
    let ending = held.ending.as_ref();
    // Of those whose workers had gone before it is asked how they lived, as of those that are gone.
    let planned = ending.filter(|ending| ending.cause != EndCause::Deserted);
    let end = match planned {
        Some(ending) => match ending.cause {
            EndCause::NeverJoined => {
                let detail = format!("{}; it ended so: {detail}", ending.reason);
                return (AllocationEnd::NeverJoined, detail.into());
            }
            EndCause::NeverWorked => {
                let detail = format!("{}; it ended so: {detail}", ending.reason);
                return (AllocationEnd::NeverWorked, detail.into());
            }
            // What has not even a name waits for the provider as a whole, which is no fault of a start.
            EndCause::Idle => match held.held.as_ref().filter(|_| is_stuck(held, now)) {
                Some(hold) if held.external.is_some() => {
                    let detail = format!("its provider did not run it: {}", hold.reason);
                    return (AllocationEnd::NeverJoined, detail.into());
                }
                _ => AllocationEnd::Released,
            },
            EndCause::Quarantined if came_to_quarantine(state, held) => {
                let detail = format!(
                    "it came to a host in quarantine: {}; it ended so: {detail}",
                    ending.reason
                );
                return (AllocationEnd::NeverWorked, detail.into());
            }
            EndCause::Surplus | EndCause::Quarantined | EndCause::Deserted => {
                AllocationEnd::Released
            }
        },
        None if !held.joined => AllocationEnd::NeverJoined,
        None => match died_young(state, now, held) {
            Some(lived) => {
                let place = match &*held.host {
                    "" => String::new(),
                    host => format!(" on {host}"),
                };
                let lived = lived.ms().div_ceil(1_000);
                let detail = format!(
                    "its worker{place} vanished within {lived} s after it had joined; it ended so: \
                     {detail}"
                );
                return (AllocationEnd::DiedYoung, detail.into());
            }
            None => AllocationEnd::Gone,
        },
    };
    (end, detail.into())
}

/// Tells whether an allocation was only asked for when its host was in quarantine already, and came to
/// that host nevertheless. That counts as a failed start: else a provider that has no other host would
/// be asked again without end.
fn came_to_quarantine(state: &State, held: &Allocation) -> bool {
    let Some(pool) = state.pool(&held.pool) else {
        return false;
    };
    let mut workers = state.workers_of(held.id);
    !held.worked
        && workers.any(|worker| {
            let quarantine = pool.quarantined.get(&worker.offer.host);
            quarantine.is_some_and(|quarantine| quarantine.at <= held.wanted_at)
        })
}

/// Gives how long the workers of an allocation that has ended by itself were there, if that was too
/// short for a good start: nothing was done on it, none of them took its leave, and its time was not
/// over. Measured up to when one was heard last, which nobody knows after a restart: then it is none.
fn died_young(state: &State, now: Timestamp, held: &Allocation) -> Option<Span> {
    let since = held.joined_at.filter(|_| !held.proven)?;
    let walltime = state
        .policies
        .get(&held.pool)
        .and_then(|policy| policy.walltime);
    if let (Phase::Running { since }, Some(walltime)) = (held.phase, walltime)
        && now.since(since) >= walltime
    {
        return None;
    }
    let mut heard = Timestamp::default();
    for worker in state.workers_of(held.id) {
        let aux = &state.workers.get(&worker.id)?.aux;
        let (at, left) = aux.last_word?;
        // One of an earlier life of an allocation that was begun again says nothing of this one.
        if at < since {
            continue;
        }
        if left || worker.draining || aux.ends_at.is_some_and(|ends| ends <= now) {
            return None;
        }
        heard = heard.max(at);
    }
    (heard > Timestamp::default()).then_some(())?;
    let lived = heard.since(since);
    (lived < limits::YOUNG).then_some(lived)
}

/// Failed starts of a pool that one answer tells of.
struct Failing {
    failures: u32,
    batch: AllocationId,
    /// Its pool is paused for them.
    paused: bool,
}

fn ended(
    state: &State,
    held: &Allocation,
    end: AllocationEnd,
    detail: &str,
    failures: &mut std::collections::BTreeMap<Arc<str>, Failing>,
    events: &mut Vec<PoolEvent>,
) {
    events.push(PoolEvent::AllocationEnded {
        allocation: held.id,
        end,
        detail: head(detail, limits::TEXT_BYTES),
    });
    if !end.is_failure() {
        return;
    }
    let pool = state.pool(&held.pool);
    let failing = failures
        .entry(Arc::clone(&held.pool))
        .or_insert_with(|| Failing {
            failures: pool.map_or(0, |pool| pool.failures),
            batch: pool.map_or(AllocationId(0), |pool| pool.failed_batch),
            paused: false,
        });
    if failing.batch == held.first {
        return;
    }
    failing.failures += 1;
    failing.batch = held.first;
    let max = state
        .policies
        .get(&held.pool)
        .map(|policy| policy.failures_max);
    let is_paused = pool.is_some_and(|pool| pool.paused.is_some());
    if !is_paused && !failing.paused && max.is_some_and(|max| failing.failures >= max) {
        failing.paused = true;
        let times = failing.failures;
        let reason = format!("{times} starts in a row failed, the last one so: {detail}");
        events.push(paused(&held.pool, &reason, &SYSTEM.into()));
    }
}
