//! What each pool should start and end now, and why. Pure, and from scratch each time.
//!
//! Work is dealt out on paper: first to the workers that are there and to what is on its way, the
//! work with most needs first; then to new allocations of the pools, in the order of their
//! priority. An allocation that got nothing on paper is idle; what is idle for long is ended.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::demand::{self, Demand};
use super::{
    Allocation, EndCause, Phase, Policy, Pool, is_near, is_stuck, retry_at, unanswered_for,
};
use crate::ids::{AllocationId, LeaseId};
use crate::index::{WorkerEntry, drains};
use crate::limits;
use crate::schedule::{Misfit, Offered, lacks};
use crate::state::{Link, State};
use crate::time::{Span, Timestamp};
use crate::worker::{DeclaredAgent, Requirement};

/// What one pool would do now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outlook {
    pub pool: Arc<str>,
    /// Allocations in its inventory that are not ending.
    pub allocations: u32,
    /// Of these, how many have no worker yet and may get some by themselves.
    pub coming: u32,
    /// How many their provider holds, and why it does so with the oldest.
    pub held: Option<(u32, Box<str>)>,
    /// Waiting work, ready and soon, that its allocations are taken to serve.
    pub serves: u32,
    pub start: Option<Start>,
    pub stops: Vec<Stop>,
    /// Why it starts no more for work that would fit.
    pub hindrance: Option<Hindrance>,
    /// Work that nobody serves and that this pool never can, by what it lacks.
    pub lacks: BTreeMap<Misfit, u32>,
    /// Allocations that nothing needs now.
    pub idle: BTreeSet<AllocationId>,
    /// Allocations whose workers take nothing now although work waits that the pool is for.
    pub vain: BTreeSet<AllocationId>,
}

/// Allocations to be asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Start {
    pub count: u32,
    pub why: Box<str>,
}

/// An allocation to be ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stop {
    pub allocation: AllocationId,
    pub cause: EndCause,
    pub why: Box<str>,
}

/// Why a pool starts nothing more for work that it could serve.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Hindrance {
    Paused {
        reason: Box<str>,
    },
    /// It is given time after a failed start.
    Backoff {
        left: Span,
        detail: Box<str>,
    },
    /// It has as many allocations as it may.
    Max {
        max: u32,
    },
    /// As many wait in its provider's queue as may.
    Backlog {
        backlog: u32,
    },
    /// The rest is asked for in the next steps.
    Burst {
        burst: u32,
    },
    /// Its provider has not said for so long that it has what it was asked for.
    Unanswered {
        waits: Span,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ready,
    Soon,
}

/// Room for work, on paper.
struct Room<'a> {
    offered: Offered<'a>,
    slots: u32,
    /// What other work occupies of the countable resources.
    used: BTreeMap<&'a str, u64>,
    pool: &'a str,
    allocation: Option<AllocationId>,
    /// Holds work, or got some on paper.
    needed: bool,
}

/// What is known from the workers that a pool has had.
#[derive(Default)]
pub(super) struct Had {
    agents: BTreeSet<Arc<str>>,
    looked: BTreeMap<DeclaredAgent, bool>,
}

/// What is known of pools from their workers, by pool.
pub(super) type Learned<'a> = BTreeMap<&'a str, Had>;

/// Plans all pools. Costs O(waiting work + kinds of it × (workers + pools)).
#[must_use]
pub fn outlook(state: &State, now: Timestamp) -> Vec<Outlook> {
    let wants = demand::wants(state, now);
    let learned = learned(state);
    let mut rooms = existing(state, now, &wants.ending);
    coming(state, now, &learned, &mut rooms);
    let mut demands = wants.demands;
    demands.sort_by_key(|demand| Reverse(needs(&demand.requirement)));
    let mut pools: Vec<Ledger<'_>> = state
        .policies
        .iter()
        .map(|(name, policy)| Ledger::new(state, now, name, policy, &learned))
        .collect();
    pools.sort_by_key(|pool| (Reverse(pool.policy.priority), pool.name));
    for kind in [Kind::Ready, Kind::Soon] {
        // All that is there before anything is opened, so that nothing comes for a free slot.
        let mut left: Vec<u32> = vec![];
        for demand in &demands {
            let wanted = match kind {
                Kind::Ready => demand.ready,
                Kind::Soon => demand.soon,
            };
            left.push(deal(&mut rooms, &demand.requirement, wanted, &mut pools));
        }
        for (demand, left) in demands.iter().zip(left) {
            let mut left = deal(&mut rooms, &demand.requirement, left, &mut pools);
            for pool in &mut pools {
                left = pool.open(&mut rooms, demand, left);
            }
        }
    }
    let mut outlooks: Vec<Outlook> = vec![];
    for pool in pools {
        outlooks.push(pool.close(state, now, &rooms));
    }
    outlooks.sort_by(|one, other| one.pool.cmp(&other.pool));
    outlooks
}

/// Gives how much a requirement asks for: who asks for more goes first.
fn needs(requirement: &Requirement) -> (bool, usize, usize, Span) {
    (
        requirement.pool.is_some(),
        requirement.labels.len(),
        requirement.resources.len(),
        requirement.expected,
    )
}

pub(super) fn learned(state: &State) -> Learned<'_> {
    let mut learned: Learned<'_> = BTreeMap::new();
    for WorkerEntry { worker, aux } in state.workers.values() {
        let offer = &worker.offer;
        if !state.policies.contains_key(&offer.pool) {
            continue;
        }
        let had = learned.entry(&offer.pool).or_default();
        had.agents.extend(offer.agents.iter().cloned());
        for (agent, found) in &aux.looked {
            *had.looked.entry(agent.clone()).or_default() |= found;
        }
    }
    learned
}

/// Gives what a new allocation's worker is taken to offer. Agents that nobody has stated are those
/// that earlier workers of the pool had; before there were any, all of them.
pub(super) fn offered<'a>(policy: &'a Policy, learned: &'a Learned<'_>) -> Offered<'a> {
    let template = &policy.template;
    let had = learned.get(&*template.pool);
    let agents = policy.agents.as_ref();
    Offered {
        pool: &template.pool,
        agents: agents.or_else(|| had.map(|had| &had.agents)),
        labels: &template.labels,
        resources: &template.resources,
        looked: had.map(|had| &had.looked),
        // It has to start first.
        left: policy
            .walltime
            .map(|time| Span::from_ms(time.ms().saturating_sub(limits::SOON.ms()))),
        is_there: false,
    }
}

/// Gives the room of workers that are there.
fn existing<'a>(state: &'a State, now: Timestamp, ending: &BTreeSet<LeaseId>) -> Vec<Room<'a>> {
    let mut rooms = vec![];
    for entry in state.workers.values() {
        let WorkerEntry { worker, aux } = entry;
        let shut = drains(worker) || state.is_shut(&worker.id).is_some();
        if shut || state.is_over(&worker.id) || !is_near(state, &worker.link, now) {
            continue;
        }
        let held = aux.leases.iter().filter(|lease| !ending.contains(lease));
        let held = u32::try_from(held.count()).unwrap_or(u32::MAX);
        let offer = &*worker.offer;
        // A pool that is to be emptied gets no new work on paper.
        let policy = state.policies.get(&offer.pool);
        let empties = offer.allocation.is_some() && policy.is_some_and(|policy| policy.max == 0);
        rooms.push(Room {
            offered: Offered::of(entry, now),
            slots: if empties {
                0
            } else {
                offer.slots.saturating_sub(held)
            },
            used: aux.used.iter().map(|(name, n)| (&**name, *n)).collect(),
            pool: &offer.pool,
            allocation: offer.allocation,
            needed: !aux.leases.is_empty(),
        });
    }
    // Those at work first, so that what can be left alone is.
    rooms.sort_by_key(|room| !room.needed);
    rooms
}

/// Adds the room of workers that are on their way.
fn coming<'a>(
    state: &'a State,
    now: Timestamp,
    learned: &'a Learned<'_>,
    rooms: &mut Vec<Room<'a>>,
) {
    let mut joined: BTreeMap<AllocationId, u32> = BTreeMap::new();
    for worker in state.workers() {
        // One that has gone away is of an earlier life of an allocation that was requeued, since
        // allocations are asked only while no worker of theirs has joined.
        if let Some(allocation) = worker.offer.allocation
            && matches!(worker.link, Link::Up { .. })
            && !drains(worker)
        {
            *joined.entry(allocation).or_default() += 1;
        }
    }
    for allocation in state.allocations() {
        let policy = state.policies.get(&allocation.pool);
        let fills = |policy: &&Policy| policy.max > 0 && allocation.ending.is_none();
        let Some(policy) = policy.filter(fills) else {
            continue;
        };
        let joined = joined.get(&allocation.id).copied().unwrap_or(0);
        // One that had workers and lost them is not known to get any again.
        let missing = if allocation.joined || is_in_doubt(state, allocation, now) {
            0
        } else {
            policy.workers.saturating_sub(joined)
        };
        for _ in 0..missing {
            rooms.push(new_room(policy, learned, Some(allocation.id)));
        }
    }
}

fn new_room<'a>(
    policy: &'a Policy,
    learned: &'a Learned<'_>,
    allocation: Option<AllocationId>,
) -> Room<'a> {
    Room {
        offered: offered(policy, learned),
        slots: policy.template.slots,
        used: BTreeMap::new(),
        pool: &policy.template.pool,
        allocation,
        needed: false,
    }
}

impl<'a> Room<'a> {
    /// Takes work as far as it fits, and gives how much it took.
    fn take(&mut self, requirement: &'a Requirement, wanted: u32) -> u32 {
        if self.slots == 0 || wanted == 0 || lacks(&self.offered, requirement).is_some() {
            return 0;
        }
        let mut fits = self.slots.min(wanted);
        for (name, need) in &requirement.resources {
            let total = self.offered.resources.get(name).copied().unwrap_or(0);
            let used = self.used.get(&**name).copied().unwrap_or(0);
            let times = total.saturating_sub(used).checked_div(*need);
            fits = fits.min(times.map_or(u32::MAX, |n| u32::try_from(n).unwrap_or(u32::MAX)));
        }
        for (name, need) in &requirement.resources {
            let used = self.used.entry(name).or_default();
            *used = used.saturating_add(need.saturating_mul(u64::from(fits)));
        }
        self.slots -= fits;
        self.needed |= fits > 0;
        fits
    }
}

/// Deals work to room that there is, and gives how much is left.
fn deal<'a>(
    rooms: &mut [Room<'a>],
    requirement: &'a Requirement,
    mut wanted: u32,
    pools: &mut [Ledger<'_>],
) -> u32 {
    for room in rooms {
        if wanted == 0 {
            break;
        }
        let taken = room.take(requirement, wanted);
        wanted -= taken;
        if taken > 0
            && let Some(pool) = pools.iter_mut().find(|pool| &**pool.name == room.pool)
        {
            pool.serves = pool.serves.saturating_add(taken);
        }
    }
    wanted
}

/// One pool while it is planned.
struct Ledger<'a> {
    name: &'a Arc<str>,
    policy: &'a Policy,
    learned: &'a Learned<'a>,
    allocations: u32,
    /// To end, and perhaps still there.
    ending: u32,
    coming: u32,
    held: Option<(u32, Box<str>)>,
    /// Not yet in the provider's queue, waiting in it.
    asked: u32,
    queued: u32,
    /// Nothing may be started at all.
    closed: Option<Hindrance>,
    hindrance: Option<Hindrance>,
    serves: u32,
    opened: u32,
    /// What the first new allocation is for, and how much work all are for.
    first: Option<&'a Requirement>,
    work: u32,
    lacks: BTreeMap<Misfit, u32>,
    /// What waits although the pool's workers should fit.
    unserved: Vec<&'a Requirement>,
}

impl<'a> Ledger<'a> {
    fn new(
        state: &'a State,
        now: Timestamp,
        name: &'a Arc<str>,
        policy: &'a Policy,
        learned: &'a Learned<'a>,
    ) -> Self {
        let mut new = Self {
            name,
            policy,
            learned,
            allocations: 0,
            ending: 0,
            coming: 0,
            held: None,
            asked: 0,
            queued: 0,
            closed: state.pools.get(name).and_then(|pool| closed(pool, now)),
            hindrance: None,
            serves: 0,
            opened: 0,
            first: None,
            work: 0,
            lacks: BTreeMap::new(),
            unserved: vec![],
        };
        for allocation in state.allocations() {
            if allocation.pool != *name {
                continue;
            }
            if allocation.ending.is_some() {
                // It may well run until its provider has ended it.
                new.ending += 1;
                if let Some(waits) = unanswered_for(state, allocation, now) {
                    new.closed.get_or_insert(Hindrance::Unanswered { waits });
                }
                continue;
            }
            new.allocations += 1;
            match &allocation.held {
                Some(hold) if is_in_doubt(state, allocation, now) => {
                    let first = || (0, hold.reason.clone());
                    new.held.get_or_insert_with(first).0 += 1;
                }
                _ => match unanswered_for(state, allocation, now) {
                    // More of the same would all come at once when it answers again.
                    Some(waits) => {
                        new.closed.get_or_insert(Hindrance::Unanswered { waits });
                    }
                    None => new.coming += u32::from(!allocation.joined),
                },
            }
            match allocation.phase {
                Phase::Wanted => new.asked += 1,
                Phase::Queued { .. } => new.queued += 1,
                Phase::Running { .. } => {}
            }
        }
        new
    }

    /// Gives how many more allocations may be opened, and what stands against more.
    fn allowed(&self) -> (u32, Hindrance) {
        if let Some(closed) = &self.closed {
            return (0, closed.clone());
        }
        let Policy {
            max,
            backlog,
            burst,
            ..
        } = *self.policy;
        let waiting = self.asked + self.queued + self.opened;
        let bounds = [
            (
                max.saturating_sub(self.allocations + self.ending + self.opened),
                Hindrance::Max { max },
            ),
            (
                backlog.saturating_sub(waiting),
                Hindrance::Backlog { backlog },
            ),
            (
                burst.saturating_sub(self.asked + self.opened),
                Hindrance::Burst { burst },
            ),
        ];
        let least = bounds.into_iter().min_by_key(|(left, _)| *left);
        least.unwrap_or((0, Hindrance::Max { max }))
    }

    /// Opens room for work that nobody serves, and gives how much is left.
    fn open<'b>(&mut self, rooms: &mut Vec<Room<'b>>, demand: &'b Demand, mut left: u32) -> u32
    where
        'a: 'b,
        'b: 'a,
    {
        let requirement = &*demand.requirement;
        if left == 0 || self.policy.max == 0 {
            return left;
        }
        if let Some(lack) = lacks(&offered(self.policy, self.learned), requirement) {
            *self.lacks.entry(lack).or_default() += left;
            return left;
        }
        self.unserved.push(requirement);
        while left > 0 {
            let (allowed, hindrance) = self.allowed();
            if allowed == 0 {
                self.hindrance.get_or_insert(hindrance);
                break;
            }
            let mut taken = 0;
            for _ in 0..self.policy.workers {
                let mut room = new_room(self.policy, self.learned, None);
                taken += room.take(requirement, left - taken);
                rooms.push(room);
            }
            self.opened += 1;
            // A need that does not fit an empty worker was found above.
            debug_assert!(taken > 0, "{requirement:?} fits and does not");
            if taken == 0 {
                break;
            }
            self.first.get_or_insert(requirement);
            self.work = self.work.saturating_add(taken);
            self.serves = self.serves.saturating_add(taken);
            left -= taken;
        }
        left
    }

    /// Opens what the pool's minimum wants, and finds what is to end.
    fn close(mut self, state: &State, now: Timestamp, rooms: &[Room<'_>]) -> Outlook {
        let mut for_min = 0;
        while self.allocations + self.opened < self.policy.min {
            let (allowed, hindrance) = self.allowed();
            if allowed == 0 {
                self.hindrance.get_or_insert(hindrance);
                break;
            }
            self.opened += 1;
            for_min += 1;
        }
        let start = (self.opened > 0).then(|| Start {
            count: self.opened,
            why: self.why(for_min),
        });
        let vain = self.vain(state, rooms);
        let (stops, idle) = self.stops(state, now, rooms, &vain);
        Outlook {
            pool: Arc::clone(self.name),
            allocations: self.allocations,
            coming: self.coming,
            held: self.held,
            serves: self.serves,
            start,
            stops,
            hindrance: self.hindrance,
            lacks: self.lacks,
            idle,
            vain,
        }
    }

    fn why(&self, for_min: u32) -> Box<str> {
        let mut why = String::new();
        if let Some(first) = self.first {
            let tasks = if self.work == 1 {
                "1 task waits".to_owned()
            } else {
                format!("{} tasks wait", self.work)
            };
            why = format!("{tasks} for room, first one that needs {first}");
        }
        if for_min > 0 {
            let and = if why.is_empty() { "" } else { "; " };
            why = format!("{why}{and}at least {} are to be there", self.policy.min);
        }
        why.into()
    }

    fn stops(
        &self,
        state: &State,
        now: Timestamp,
        rooms: &[Room<'_>],
        vain: &BTreeSet<AllocationId>,
    ) -> (Vec<Stop>, BTreeSet<AllocationId>) {
        let needed: BTreeSet<AllocationId> = rooms
            .iter()
            .filter(|room| room.needed)
            .filter_map(|room| room.allocation)
            .collect();
        let quarantined = self.quarantined(state);
        let own = state.allocations();
        let own = own.filter(|held| held.pool == *self.name && held.ending.is_none());
        let own: Vec<&Allocation> = own.collect();
        let mut stops = vec![];
        let mut idle: Vec<&Allocation> = vec![];
        for allocation in &own {
            let id = allocation.id;
            if let Some(host) = quarantined.get(&id) {
                stops.push(Stop {
                    allocation: id,
                    cause: EndCause::Quarantined,
                    why: format!("attempts fail at once on {host}").into(),
                });
            } else if let Phase::Running { since } = allocation.phase
                && !allocation.joined
                // Nobody could join while no coordinator was there.
                && now.since(since.max(state.started_at)) > self.policy.join_timeout
            {
                let why = format!(
                    "it runs for {} s and no worker has joined",
                    now.since(since).ms() / 1_000
                );
                stops.push(Stop {
                    allocation: id,
                    cause: EndCause::NeverJoined,
                    why: why.into(),
                });
            } else if let Some(why) = self.deserted(state, now, allocation) {
                stops.push(Stop {
                    allocation: id,
                    cause: EndCause::Deserted,
                    why,
                });
            } else if let Some(since) = allocation.vain_since
                && vain.contains(&id)
                && now.since(since) > self.policy.join_timeout
            {
                let why = format!(
                    "its worker has joined and takes nothing, although work has waited for it for {} s",
                    now.since(since).ms() / 1_000
                );
                stops.push(Stop {
                    allocation: id,
                    cause: EndCause::NeverWorked,
                    why: why.into(),
                });
            } else if !needed.contains(&id)
                // What its provider holds is kept while work waits: perhaps somebody releases it.
                && (self.unserved.is_empty() || !is_in_doubt(state, allocation, now))
            {
                idle.push(allocation);
            }
        }
        let ids: BTreeSet<AllocationId> = idle.iter().map(|held| held.id).collect();
        // The youngest and those that have not come yet are the smallest loss.
        idle.sort_by_key(|held| (held.joined, Reverse(held.id)));
        let stay = u32::try_from(own.len() - stops.len()).unwrap_or(u32::MAX);
        let surplus = stay.saturating_sub(self.policy.max);
        let spare = stay.saturating_sub(self.policy.min);
        let mut surplus = usize::try_from(surplus).unwrap_or(usize::MAX);
        let mut spare = usize::try_from(spare).unwrap_or(usize::MAX);
        for allocation in idle {
            let since = allocation.idle_since.map(|since| now.since(since));
            let (cause, why) = if surplus > 0 {
                surplus -= 1;
                let why = format!("the pool has more than its maximum of {}", self.policy.max);
                (EndCause::Surplus, why)
            } else if spare > 0
                && (since.is_some_and(|idle| idle >= self.policy.idle_timeout)
                    // Others have its work: when the line to its provider is mended it must not come too.
                    || allocation.held.is_none()
                        && unanswered_for(state, allocation, now).is_some())
                && !is_silent(state, now, allocation)
            {
                let idle = since.unwrap_or_default().ms() / 1_000;
                (
                    EndCause::Idle,
                    format!("nothing has needed it for {idle} s"),
                )
            } else {
                continue;
            };
            spare = spare.saturating_sub(1);
            stops.push(Stop {
                allocation: allocation.id,
                cause,
                why: why.into(),
            });
        }
        // Whoever lowers a maximum waits for no queue to become empty: those at work finish what they hold,
        // and get nothing more. A pool that is to be emptied leaves them to the next coordinator.
        if self.policy.max > 0 && surplus > 0 {
            let stopped: BTreeSet<AllocationId> = stops.iter().map(|one| one.allocation).collect();
            let mut busy = own;
            busy.retain(|held| !stopped.contains(&held.id) && !ids.contains(&held.id));
            busy.sort_by_key(|held| (held.joined, Reverse(held.id)));
            let max = self.policy.max;
            stops.extend(busy.into_iter().take(surplus).map(|held| Stop {
                allocation: held.id,
                cause: EndCause::Surplus,
                why: format!("the pool has more than its maximum of {max}").into(),
            }));
        }
        (stops, ids)
    }

    /// Says why an allocation that stays is of no use any more: its workers have taken their leave, or
    /// none of them was there for as long as one may take to join. Until then they may hold edits that
    /// nobody else has.
    fn deserted(&self, state: &State, now: Timestamp, allocation: &Allocation) -> Option<Box<str>> {
        if !self.policy.stays || !allocation.joined {
            return None;
        }
        let away = away(state, allocation)?;
        if away.leases {
            return None;
        }
        let length = now.since(away.since);
        let gone = if away.have_left {
            "its worker has left".to_owned()
        } else if length > self.policy.join_timeout {
            format!("its worker has been away for {} s", length.ms() / 1_000)
        } else {
            return None;
        };
        Some(format!("{gone}, and its machine would stay").into())
    }

    /// Gives the allocations whose workers have joined, never had a lease, and take none now: work is
    /// dealt to them on paper, or they lack what the pool's workers should have.
    fn vain(&self, state: &State, rooms: &[Room<'_>]) -> BTreeSet<AllocationId> {
        let fresh = |id: &AllocationId| {
            let held = state.allocation(*id);
            held.is_some_and(|held| {
                held.pool == *self.name && held.joined && !held.worked && held.ending.is_none()
            })
        };
        let there = rooms.iter().filter(|room| room.offered.is_there);
        let vain = there.filter_map(|room| {
            let id = room.allocation.filter(fresh)?;
            let lasting = Offered {
                left: None,
                ..room.offered
            };
            let mut unserved = self.unserved.iter();
            let lacking = unserved.any(|need| lacks(&lasting, need).is_some());
            (room.needed || lacking).then_some(id)
        });
        vain.collect()
    }

    /// Gives the allocations of which a worker is on a quarantined host.
    fn quarantined(&self, state: &'a State) -> BTreeMap<AllocationId, &'a Arc<str>> {
        let Some(pool) = state.pools.get(self.name) else {
            return BTreeMap::new();
        };
        let workers = state.workers().filter(|worker| {
            let offer = &worker.offer;
            offer.pool == *self.name && pool.quarantined.contains_key(&offer.host)
        });
        let found = workers.filter_map(|worker| {
            let offer = &worker.offer;
            Some((offer.allocation?, &offer.host))
        });
        found.collect()
    }
}

/// None of an allocation's workers is there.
struct Away {
    since: Timestamp,
    /// All of them took their leave.
    have_left: bool,
    /// Some of them still hold leases.
    leases: bool,
}

/// Tells since when none of an allocation's workers is there, if so.
fn away(state: &State, allocation: &Allocation) -> Option<Away> {
    let mut known = 0;
    let mut away = Away {
        // Nobody could come back while no coordinator was there.
        since: state.started_at,
        have_left: true,
        leases: false,
    };
    for worker in state.workers_of(allocation.id) {
        let aux = &state.workers.get(&worker.id)?.aux;
        let Link::Down { since } = worker.link else {
            return None;
        };
        away.since = away.since.max(since);
        away.have_left &= aux.last_word.is_some_and(|(_, left)| left);
        away.leases |= !aux.leases.is_empty();
        known += 1;
    }
    away.have_left &= known > 0;
    Some(away)
}

/// Tells whether an allocation's workers are away without a word and may still come back, with edits
/// that nobody else has.
pub(super) fn is_silent(state: &State, now: Timestamp, allocation: &Allocation) -> bool {
    let policy = state.policies.get(&allocation.pool);
    let patience = policy.map_or(Span::ZERO, |policy| policy.join_timeout);
    allocation.joined
        && away(state, allocation)
            .is_some_and(|away| !away.have_left && now.since(away.since) <= patience)
}

/// Tells whether an allocation may come or not, and nothing should wait for it.
pub(super) fn is_in_doubt(state: &State, allocation: &Allocation, now: Timestamp) -> bool {
    is_stuck(allocation, now) || unanswered_for(state, allocation, now).is_some()
}

/// Gives why a pool may start nothing at all now.
fn closed(pool: &Pool, now: Timestamp) -> Option<Hindrance> {
    if let Some(pause) = &pool.paused {
        let reason = pause.reason.clone();
        return Some(Hindrance::Paused { reason });
    }
    let at = retry_at(pool)?;
    (at > now).then(|| Hindrance::Backoff {
        left: at.since(now),
        detail: pool.last_failure.clone(),
    })
}
