//! Sessions of workers: hello, heartbeat, close, drain.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::attempt::{closed, lost};
use super::{Decision, Touch};
use crate::command::{Heartbeat, Hello, Rejection, Reply, Verdict};
use crate::event::{Actor, EventKind, LeaseEnd};
use crate::ids::{Incarnation, LeaseId, WorkerId};
use crate::limits;
use crate::state::{Lease, Link, State};
use crate::time::Timestamp;

pub(super) fn hello(state: &State, now: Timestamp, hello: &Hello) -> Result<Decision, Rejection> {
    let known = state.worker(&hello.worker);
    if known.is_none() && state.workers.len() >= limits::WORKERS {
        return Err(Rejection::Limit {
            limit: "workers",
            max: limits::WORKERS as u64,
        });
    }
    if hello.offer.slots > limits::SLOTS_PER_WORKER {
        return Err(Rejection::Limit {
            limit: "slots of a worker",
            max: u64::from(limits::SLOTS_PER_WORKER),
        });
    }
    if let Some(known) = known {
        let newer_session = matches!(
            known.link,
            Link::Up { session, .. }
                if known.incarnation == hello.incarnation && session > hello.session
        );
        let late = known.incarnation == hello.incarnation
            && hello.number > 0
            && hello.number <= state.last_hello(&hello.worker);
        if known.incarnation > hello.incarnation || newer_session || late {
            return Err(superseded(&hello.worker));
        }
    }
    let mut events = vec![];
    let fresh = known
        .is_none_or(|known| known.incarnation < hello.incarnation || known.offer != hello.offer);
    if fresh {
        events.push(EventKind::WorkerJoined {
            worker: hello.worker.clone(),
            incarnation: hello.incarnation,
            offer: Arc::clone(&hello.offer),
        });
    }
    let held: BTreeSet<LeaseId> = hello.held.iter().copied().collect();
    for lease in state.leases_of_worker(&hello.worker) {
        if held.contains(&lease.id) {
            continue;
        }
        if lease.incarnation < hello.incarnation {
            let text = "the worker was started anew and no longer holds the work";
            lost(state, lease, now, text, LeaseEnd::Superseded, &mut events);
        } else {
            not_held(state, now, lease, &mut events);
        }
    }
    let verdicts = verdicts(state, &hello.worker, &held);
    let mut touches = vec![Touch::Up {
        worker: hello.worker.clone(),
        session: hello.session,
        hello: hello.number,
        draining: hello.draining,
        time_left: hello.time_left,
    }];
    touches.extend(renewals(state, &verdicts));
    Ok(Decision {
        events,
        touches,
        reply: Reply::Welcome { verdicts },
    })
}

/// Closes a lease that its worker says it does not hold: its grant did not arrive, or its end was told
/// before.
fn not_held(state: &State, now: Timestamp, lease: &Lease, events: &mut Vec<EventKind>) {
    if lease.started_at.is_none() && !lease.revoked {
        events.push(closed(lease, LeaseEnd::NeverStarted));
    } else {
        let text = "the worker no longer holds the work";
        lost(state, lease, now, text, LeaseEnd::Confirmed, events);
    }
}

/// A worker ends that holds nothing: grants that crossed its last words go back at once.
pub(super) fn goodbye(
    state: &State,
    now: Timestamp,
    worker: &WorkerId,
    incarnation: Incarnation,
    session: u64,
) -> Result<Decision, Rejection> {
    current(state, worker, incarnation, session)?;
    let mut events = vec![];
    for lease in state.leases_of_worker(worker) {
        // Of an earlier incarnation's only its folder could tell.
        if lease.incarnation == incarnation {
            not_held(state, now, lease, &mut events);
        }
    }
    let mut decision = Decision::done(events);
    decision.touches.push(Touch::Down {
        worker: worker.clone(),
        leaves: true,
    });
    Ok(decision)
}

pub(super) fn heartbeat(state: &State, beat: &Heartbeat) -> Result<Decision, Rejection> {
    let worker = current(state, &beat.worker, beat.incarnation, beat.session)?;
    let held: BTreeSet<LeaseId> = beat.held.iter().copied().collect();
    let verdicts = verdicts(state, &beat.worker, &held);
    // Grants that the worker had not seen when it counted its free slots take some of them.
    let leases = state.leases_of_worker(&beat.worker);
    let unseen = leases.filter(|lease| !lease.revoked && !held.contains(&lease.id));
    let unseen = u32::try_from(unseen.count()).unwrap_or(u32::MAX);
    let free_slots = beat.free_slots.min(worker.offer.slots);
    let looked = beat.looked.as_ref().map_or(0, BTreeMap::len);
    if looked > limits::DECLARED_AGENTS {
        return Err(Rejection::Limit {
            limit: "declared agents of a heartbeat",
            max: limits::DECLARED_AGENTS as u64,
        });
    }
    let mut touches = vec![Touch::Beat {
        worker: beat.worker.clone(),
        seq: beat.seq,
        free_slots,
        credit: free_slots.saturating_sub(unseen),
        draining: beat.draining,
        time_left: beat.time_left,
        looked: beat.looked.clone(),
    }];
    touches.extend(renewals(state, &verdicts));
    Ok(Decision {
        events: vec![],
        touches,
        reply: Reply::Renewed {
            seq: beat.seq,
            verdicts,
        },
    })
}

pub(super) fn disconnect(
    state: &State,
    worker: &WorkerId,
    incarnation: Incarnation,
    session: u64,
) -> Result<Decision, Rejection> {
    current(state, worker, incarnation, session)?;
    let mut decision = Decision::done(vec![]);
    decision.touches.push(Touch::Down {
        worker: worker.clone(),
        leaves: false,
    });
    Ok(decision)
}

pub(super) fn drain(
    state: &State,
    worker: &WorkerId,
    draining: bool,
    by: &Actor,
) -> Result<Decision, Rejection> {
    let known = state.worker(worker);
    let known = known.ok_or_else(|| Rejection::UnknownWorker(worker.clone()))?;
    if known.draining == draining {
        return Ok(Decision::done(vec![]));
    }
    Ok(Decision::done(vec![EventKind::WorkerDraining {
        worker: worker.clone(),
        draining,
        by: by.clone(),
    }]))
}

/// Checks that a message comes from the worker's present session.
fn current<'a>(
    state: &'a State,
    worker: &WorkerId,
    incarnation: Incarnation,
    session: u64,
) -> Result<&'a crate::state::Worker, Rejection> {
    let known = state.worker(worker);
    let known = known.ok_or_else(|| Rejection::UnknownWorker(worker.clone()))?;
    match known.link {
        Link::Up {
            session: present, ..
        } if present == session && known.incarnation == incarnation => Ok(known),
        Link::Up { .. } | Link::Down { .. } => Err(superseded(worker)),
    }
}

fn superseded(worker: &WorkerId) -> Rejection {
    Rejection::SessionSuperseded {
        worker: worker.clone(),
    }
}

/// A lease is kept while its result is wanted, and once its result is recorded: the worker then
/// only repeats what it has said.
fn verdicts(
    state: &State,
    worker: &WorkerId,
    held: &BTreeSet<LeaseId>,
) -> BTreeMap<LeaseId, Verdict> {
    let verdict = |id: LeaseId| {
        let keep = match state.lease(id) {
            Some(lease) => lease.worker == *worker && !lease.revoked,
            None => {
                let recorded = state.index.recorded.get(&id);
                recorded.is_some_and(|recorded| recorded.worker == *worker)
            }
        };
        if keep { Verdict::Keep } else { Verdict::Stop }
    };
    held.iter().map(|id| (*id, verdict(*id))).collect()
}

fn renewals(state: &State, verdicts: &BTreeMap<LeaseId, Verdict>) -> impl Iterator<Item = Touch> {
    let kept = verdicts
        .iter()
        .filter(|(_, verdict)| **verdict == Verdict::Keep);
    kept.filter(|(id, _)| state.lease(**id).is_some())
        .map(|(id, _)| Touch::Renew { lease: *id })
}
