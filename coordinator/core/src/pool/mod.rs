//! Pools: where workers come from, how many of them are wanted, and what became of each.
//!
//! An *allocation* is what a pool's provider is asked for: a Slurm job, a machine, a process. It is
//! in the inventory from before the provider is asked until nothing of it exists any more, so a
//! start that was cut off is found again and never repeated blindly. What is wanted is planned from
//! scratch each time ([`plan()`]), from the work that waits, the policies and the inventory. Starting
//! machines for a backlog, and the bound on how many may wait in a foreign queue, are HyperQueue's
//! automatic allocation; the pause after failures too.

mod compare;
mod decide;
mod demand;
mod evolve;
mod plan;
mod prospect;
mod sight;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::event::Actor;
use crate::failure::FailureClass;
use crate::ids::{AllocationId, TaskKey, WorkerId};
use crate::index::WorkerEntry;
use crate::limits;
use crate::state::{Lease, Link, State};
use crate::time::{Span, Timestamp};
use crate::worker::Offer;

pub use compare::{Held, Judgement, Memory};
pub use demand::{Demand, demands};
pub use plan::{Hindrance, Outlook, Start, Stop, outlook};
pub(crate) use prospect::source;
pub use prospect::{Prospect, Source, prospects};

pub use sight::{OrderName, Sighted, Sighting};

pub(crate) use decide::decide;

/// How a pool is to be run: the coordinator's configuration, volatile.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Pools of a higher one are asked first.
    pub priority: i32,
    /// Allocations that are there always.
    pub min: u32,
    /// Allocations at most; 0 for pools whose workers people start themselves.
    pub max: u32,
    /// What one worker of it will offer. `agents` and `host` are not used.
    pub template: Offer,
    /// Agents that its workers will have; `None` when it is to be learned from those that came.
    pub agents: Option<BTreeSet<Arc<str>>>,
    /// Workers in one allocation.
    pub workers: u32,
    /// How long an allocation may have nothing to do before it is ended.
    pub idle_timeout: Span,
    /// Allocations that may wait in the provider's queue at once.
    pub backlog: u32,
    /// Allocations asked for in one step.
    pub burst: u32,
    /// How long an allocation may run before its first worker must have joined.
    pub join_timeout: Span,
    /// How long an allocation lives at most.
    pub walltime: Option<Span>,
    /// Failed starts in a row after which the pool pauses itself.
    pub failures_max: u32,
    /// Hosts on which attempts fail at once get no more work for a while.
    pub quarantine: bool,
    /// Its allocations stay when their workers have left, and cost, until they are ended: machines, not
    /// jobs.
    pub stays: bool,
}

/// A pool as far as it is durable.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Pool {
    pub paused: Option<Pause>,
    /// Starts that failed since the last one that led to a worker of some use.
    pub failures: u32,
    /// When the last of them failed.
    pub failed_at: Timestamp,
    /// What the provider or the allocation said of it.
    pub last_failure: Box<str>,
    /// First allocation of the batch that failed last: a batch counts once.
    pub failed_batch: AllocationId,
    /// Tasks whose attempts failed at once, by host; cleared by an attempt that went well.
    pub suspects: BTreeMap<Arc<str>, BTreeSet<TaskKey>>,
    pub quarantined: BTreeMap<Arc<str>, Quarantine>,
}

/// Why a pool starts nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pause {
    pub reason: Box<str>,
    pub by: Actor,
    pub at: Timestamp,
}

/// Why a host gets no work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Quarantine {
    pub reason: Box<str>,
    pub at: Timestamp,
    pub until: Timestamp,
}

/// What a provider was, or is to be, asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Allocation {
    pub id: AllocationId,
    pub pool: Arc<str>,
    /// First of those that are asked for together; they have consecutive ids.
    pub first: AllocationId,
    /// How many are asked for together.
    pub batch: u32,
    pub wanted_at: Timestamp,
    pub phase: Phase,
    /// As the provider names it.
    pub external: Option<Box<str>>,
    /// Where it runs, for people.
    pub host: Box<str>,
    /// Its first worker has said hello since it runs.
    pub joined: bool,
    /// When that was; `None` as well where an older program has seen it.
    pub joined_at: Option<Timestamp>,
    /// A lease was granted to a worker of it.
    pub worked: bool,
    /// Its start was a good one: work went well on it, or its worker was there for a while.
    pub proven: bool,
    /// How often it went back into the provider's queue.
    pub requeues: u32,
    pub ending: Option<Ending>,
    /// Volatile: since when nothing has needed it.
    pub idle_since: Option<Timestamp>,
    /// Volatile: its provider does not run it, and why.
    pub held: Option<Hold>,
    /// Volatile: since when its workers take nothing although work waits that its pool is for.
    pub vain_since: Option<Timestamp>,
}

/// How far an allocation has come, by its provider's word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// The provider is being asked; whether it heard is not known.
    Wanted,
    /// It waits in the provider's queue.
    Queued {
        since: Timestamp,
    },
    Running {
        since: Timestamp,
    },
}

/// A provider keeps an allocation in its queue until somebody does something about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hold {
    pub since: Timestamp,
    /// In the provider's words.
    pub reason: Box<str>,
}

/// An allocation gets no more work, and is ended once it holds none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ending {
    pub cause: EndCause,
    pub reason: Box<str>,
    pub at: Timestamp,
}

/// Why an allocation is to end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum EndCause {
    /// Nothing needed it for the pool's idle timeout.
    Idle,
    /// It runs, and no worker of it has joined in time.
    NeverJoined,
    /// Its worker has joined and takes nothing, although work waits that its pool is for.
    NeverWorked,
    /// Attempts fail at once on its host.
    Quarantined,
    /// The pool has more than its maximum, since the configuration changed.
    Surplus,
    /// Its worker has gone, and its machine would stay.
    Deserted,
}

impl EndCause {
    /// Every cause, for tables and tests.
    pub const ALL: [Self; 6] = [
        Self::Idle,
        Self::NeverJoined,
        Self::NeverWorked,
        Self::Quarantined,
        Self::Surplus,
        Self::Deserted,
    ];

    /// Gives the stable name used on the wire and in stored forms.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::NeverJoined => "never_joined",
            Self::NeverWorked => "never_worked",
            Self::Quarantined => "quarantined",
            Self::Surplus => "surplus",
            Self::Deserted => "deserted",
        }
    }
}

/// What became of an allocation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum AllocationEnd {
    /// It was ended as planned, or its worker left when it had nothing to do.
    Released,
    /// The provider did not take the order.
    Refused,
    /// It ended, or had to be ended, before a worker of it had joined.
    NeverJoined,
    /// Its worker had joined, and never took any work although some waited for it.
    NeverWorked,
    /// Its worker vanished within [`limits::YOUNG`] after it had joined, and nothing was done on it.
    DiedYoung,
    /// It ended by itself: its time was over, it was taken away or broke down.
    Gone,
}

impl AllocationEnd {
    /// Every end, for tables and tests.
    pub const ALL: [Self; 6] = [
        Self::Released,
        Self::Refused,
        Self::NeverJoined,
        Self::NeverWorked,
        Self::DiedYoung,
        Self::Gone,
    ];

    /// Gives the stable name used on the wire and in stored forms.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Refused => "refused",
            Self::NeverJoined => "never_joined",
            Self::NeverWorked => "never_worked",
            Self::DiedYoung => "died_young",
            Self::Gone => "gone",
        }
    }

    /// Tells whether it speaks against starting another one soon.
    #[must_use]
    pub const fn is_failure(self) -> bool {
        matches!(
            self,
            Self::Refused | Self::NeverJoined | Self::NeverWorked | Self::DiedYoung
        )
    }
}

/// What happened to pools and their allocations.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PoolEvent {
    /// Recorded before the provider is asked. The ids are `first` and those that follow it.
    AllocationsWanted {
        pool: Arc<str>,
        first: AllocationId,
        count: u32,
        why: Box<str>,
    },
    /// The provider has taken the order, or is found to have it.
    AllocationQueued {
        allocation: AllocationId,
        external: Box<str>,
    },
    AllocationRunning {
        allocation: AllocationId,
        external: Box<str>,
        host: Box<str>,
    },
    /// Its worker was there for a while after earlier starts had failed, so that they are forgotten.
    AllocationProven {
        allocation: AllocationId,
    },
    /// It gets no more work.
    AllocationEnding {
        allocation: AllocationId,
        cause: EndCause,
        reason: Box<str>,
    },
    /// Nothing of it exists any more.
    AllocationEnded {
        allocation: AllocationId,
        end: AllocationEnd,
        detail: Box<str>,
    },
    PoolPaused {
        pool: Arc<str>,
        reason: Box<str>,
        by: Actor,
    },
    /// It may start allocations again; its failures and quarantines are forgotten.
    PoolResumed {
        pool: Arc<str>,
        by: Actor,
    },
    HostQuarantined {
        pool: Arc<str>,
        host: Arc<str>,
        reason: Box<str>,
        until: Timestamp,
    },
    HostReleased {
        pool: Arc<str>,
        host: Arc<str>,
    },
    /// It is not configured any more, and neither it nor its allocations are in the inventory from
    /// now on; whether these run is not known.
    PoolForgotten {
        pool: Arc<str>,
        /// How many it had.
        allocations: u32,
        by: Actor,
    },
}

impl PoolEvent {
    /// Gives the stable name used in logs, on the wire and in JSON.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::AllocationsWanted { .. } => "allocations_wanted",
            Self::AllocationQueued { .. } => "allocation_queued",
            Self::AllocationRunning { .. } => "allocation_running",
            Self::AllocationProven { .. } => "allocation_proven",
            Self::AllocationEnding { .. } => "allocation_ending",
            Self::AllocationEnded { .. } => "allocation_ended",
            Self::PoolPaused { .. } => "pool_paused",
            Self::PoolResumed { .. } => "pool_resumed",
            Self::HostQuarantined { .. } => "host_quarantined",
            Self::HostReleased { .. } => "host_released",
            Self::PoolForgotten { .. } => "pool_forgotten",
        }
    }
}

impl fmt::Display for PoolEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllocationsWanted {
                pool,
                first,
                count: 1,
                why,
            } => write!(f, "pool {pool} wants allocation {first}: {why}"),
            Self::AllocationsWanted {
                pool,
                first,
                count,
                why,
            } => write!(
                f,
                "pool {pool} wants {count} allocations from {first} on: {why}"
            ),
            Self::AllocationQueued {
                allocation,
                external,
            } => write!(f, "allocation {allocation} waits as {external}"),
            Self::AllocationRunning {
                allocation,
                external,
                host,
            } => write!(f, "allocation {allocation} runs as {external} on {host}"),
            Self::AllocationProven { allocation } => {
                write!(
                    f,
                    "allocation {allocation} was there for a while: its start was a good one"
                )
            }
            Self::AllocationEnding {
                allocation, reason, ..
            } => write!(f, "allocation {allocation} is to end: {reason}"),
            Self::AllocationEnded {
                allocation,
                end,
                detail,
            } => {
                let end = match end {
                    AllocationEnd::Released => "was given back",
                    AllocationEnd::Refused => "was refused",
                    AllocationEnd::NeverJoined => "ended before a worker of it had joined",
                    AllocationEnd::NeverWorked => "ended without having taken any work",
                    AllocationEnd::DiedYoung => "died soon after its worker had joined",
                    AllocationEnd::Gone => "is gone",
                };
                write!(f, "allocation {allocation} {end}")?;
                if detail.is_empty() {
                    return Ok(());
                }
                write!(f, ": {detail}")
            }
            Self::PoolPaused { pool, reason, by } => {
                write!(f, "pool {pool} is paused by {by}: {reason}")
            }
            Self::PoolResumed { pool, by } => write!(f, "pool {pool} goes on, says {by}"),
            Self::HostQuarantined {
                pool, host, reason, ..
            } => write!(f, "host {host} of pool {pool} gets no work: {reason}"),
            Self::HostReleased { pool, host } => {
                write!(f, "host {host} of pool {pool} gets work again")
            }
            Self::PoolForgotten {
                pool,
                allocations: 0,
                by,
            } => write!(f, "pool {pool} is forgotten by {by}"),
            Self::PoolForgotten {
                pool,
                allocations,
                by,
            } => write!(
                f,
                "pool {pool} is forgotten by {by}, with {}",
                counted(*allocations)
            ),
        }
    }
}

fn counted(allocations: u32) -> String {
    match allocations {
        1 => "1 allocation".to_owned(),
        more => format!("{more} allocations"),
    }
}

/// What the core is asked about pools.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PoolCommand {
    /// How pools are to be run from now on; volatile. Pools that are not named start nothing.
    Configure {
        policies: BTreeMap<Arc<str>, Policy>,
    },
    /// Compares what is wanted with the inventory; harmless to repeat.
    Plan,
    /// A provider's word about allocations; those that are not known any more are passed over.
    Observe {
        allocations: Vec<(AllocationId, Seen)>,
    },
    Pause {
        pool: Arc<str>,
        reason: Box<str>,
        by: Actor,
    },
    Resume {
        pool: Arc<str>,
        by: Actor,
    },
    /// Lets all allocations go, since they are another home's: this one is a copy of that.
    Disown,
    /// Takes a pool that is not configured any more out of the inventory, with its allocations, of
    /// which nobody can say any more whether they run. Their join tokens open nothing then, and
    /// workers of theirs that are connected finish what they hold and get nothing more.
    Forget {
        pool: Arc<str>,
        /// Also when it has allocations.
        even_if_they_run: bool,
        by: Actor,
    },
}

/// How a provider sees an allocation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Seen {
    /// It did not take the order, and will not carry it out later either.
    Refused {
        detail: Box<str>,
    },
    Queued {
        external: Box<str>,
    },
    /// It waits for something that does not come by itself. `external` is empty while its provider has not
    /// even a name for it.
    Held {
        external: Box<str>,
        reason: Box<str>,
    },
    Running {
        external: Box<str>,
        host: Box<str>,
    },
    /// It surely does not run and never will again.
    Gone {
        detail: Box<str>,
    },
}

/// Why a worker gets nothing though it is connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shut {
    /// Its allocation is to end.
    Ending,
    /// Attempts failed at once on its host.
    Quarantined,
}

impl State {
    /// Gives the id of the next allocation; all younger ones are not given yet.
    #[must_use]
    pub fn next_allocation(&self) -> AllocationId {
        self.next_allocation
    }

    pub(crate) fn set_pools(&mut self, policies: BTreeMap<Arc<str>, Policy>) {
        self.policies = policies;
    }

    /// Gives the pools that are configured.
    pub fn policies(&self) -> impl Iterator<Item = (&Arc<str>, &Policy)> {
        self.policies.iter()
    }

    /// Finds what is known of a pool; `None` when nothing ever happened to it.
    #[must_use]
    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.get(name)
    }

    /// Gives the inventory, oldest first.
    pub fn allocations(&self) -> impl DoubleEndedIterator<Item = &Allocation> + ExactSizeIterator {
        self.allocations.values()
    }

    /// Finds an allocation that has not ended.
    #[must_use]
    pub fn allocation(&self, id: AllocationId) -> Option<&Allocation> {
        self.allocations.get(&id)
    }

    /// Tells why the worker gets nothing though it is connected.
    #[must_use]
    pub fn is_shut(&self, worker: &WorkerId) -> Option<Shut> {
        let offer = &self.worker(worker)?.offer;
        let allocation = offer.allocation.and_then(|id| self.allocation(id));
        if allocation.is_some_and(|allocation| allocation.ending.is_some()) {
            return Some(Shut::Ending);
        }
        let pool = self.pools.get(&offer.pool)?;
        let shut = pool.quarantined.contains_key(&offer.host);
        shut.then_some(Shut::Quarantined)
    }

    /// Tells whether the worker of an allocation gets no work any more: it is not connected and its
    /// allocation is gone or was begun again, which makes another worker, or it is to end.
    #[must_use]
    pub(crate) fn is_over(&self, worker: &WorkerId) -> bool {
        let Some(WorkerEntry { worker, aux }) = self.workers.get(worker) else {
            return false;
        };
        let Some(id) = worker.offer.allocation else {
            return false;
        };
        let is_down = matches!(worker.link, Link::Down { .. });
        let Some(held) = self.allocation(id) else {
            return is_down;
        };
        let earlier = match (aux.last_word, held.joined_at) {
            (Some((heard, _)), Some(joined_at)) => heard < joined_at,
            _ => !held.joined,
        };
        held.ending.is_some() || is_down && earlier
    }

    /// Tells whether nothing holds an allocation that is to end: its provider may end it now. A worker
    /// that is away without a word may hold edits that nobody else has, for as long as it may come back.
    #[must_use]
    pub fn may_end(&self, id: AllocationId, now: Timestamp) -> bool {
        let Some(held) = self.allocation(id).filter(|held| held.ending.is_some()) else {
            return false;
        };
        let mut workers = self.workers_of(id);
        workers.all(|worker| self.leases_of_worker(&worker.id).next().is_none())
            && !plan::is_silent(self, now, held)
    }

    /// Gives the workers of an allocation, connected or not. Costs O(workers).
    pub fn workers_of(&self, id: AllocationId) -> impl Iterator<Item = &crate::state::Worker> {
        let workers = self.workers();
        workers.filter(move |worker| worker.offer.allocation == Some(id))
    }

    /// Gives the hosts on which workers of allocations are connected or hold leases. Costs O(workers).
    #[must_use]
    pub fn hosts_of_allocations(&self) -> BTreeMap<AllocationId, BTreeSet<Arc<str>>> {
        let mut hosts: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for worker in self.workers() {
            let there = matches!(worker.link, Link::Up { .. })
                || self.leases_of_worker(&worker.id).next().is_some();
            if let Some(id) = worker.offer.allocation.filter(|_| there) {
                let host = Arc::clone(&worker.offer.host);
                hosts.entry(id).or_default().insert(host);
            }
        }
        hosts
    }
}

/// Tells whether a worker is there, or may well be back in a moment.
fn is_near(state: &State, link: &Link, now: Timestamp) -> bool {
    match link {
        Link::Up { .. } => true,
        Link::Down { since } => now.since(*since) <= state.clocks.ttl + state.clocks.grace,
    }
}

/// Tells whether the failure of work of which nothing was heard after `until` speaks against its host.
pub(crate) fn blames_host_at(lease: &Lease, class: FailureClass, until: Timestamp) -> bool {
    let since = lease.started_at.unwrap_or(lease.granted_at);
    class.may_be_the_hosts() && until.since(since) <= limits::QUICK_FAILURE
}

/// Tells whether an allocation was held by its provider for so long that nobody should wait for it.
fn is_stuck(held: &Allocation, now: Timestamp) -> bool {
    let hold = held.held.as_ref();
    hold.is_some_and(|hold| now.since(hold.since) >= limits::HELD_FOR)
}

/// Tells for how long this process has waited for a provider to say that it has an allocation, if that is so
/// long that nobody should wait for it.
fn unanswered_for(state: &State, held: &Allocation, now: Timestamp) -> Option<Span> {
    let asks = held.phase == Phase::Wanted && !held.joined;
    let span = now.since(held.wanted_at.max(state.started_at));
    (asks && span >= limits::HELD_FOR).then_some(span)
}

/// Gives when a pool may start something again after its last failure.
fn retry_at(pool: &Pool) -> Option<Timestamp> {
    let exponent = pool.failures.checked_sub(1)?.min(16);
    let wait = limits::POOL_BACKOFF_FIRST.ms() << exponent;
    let wait = Span::from_ms(wait).min(limits::POOL_BACKOFF_MAX);
    Some(pool.failed_at + wait)
}

/// Tells whether work that takes so long ends before the machine does; what takes an unknown time
/// gets the benefit of the doubt until shortly before.
pub(crate) fn lasts(left: Span, expected: Span) -> bool {
    if expected == Span::ZERO {
        return left >= limits::WALLTIME_FLOOR;
    }
    left >= expected + limits::WALLTIME_MARGIN
}
