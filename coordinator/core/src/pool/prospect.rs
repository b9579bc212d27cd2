//! What stands between one piece of work and a worker, pool by pool.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use super::plan::{Hindrance, is_in_doubt, learned, offered, outlook};
use super::retry_at;
use crate::limits;
use crate::schedule::{Misfit, lacks};
use crate::state::{Link, State};
use crate::time::Timestamp;
use crate::worker::Requirement;

/// What a pool would do for one piece of work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Prospect {
    /// No worker of it could ever do the work.
    Lacks(Misfit),
    /// It starts nothing itself: people start its workers.
    External,
    /// So many allocations are on their way, and one of them may take it.
    Coming(u32),
    /// It would start one in the next step.
    Starts,
    /// So many wait, and their provider does not run them, for this reason; it would start no other.
    Held { count: u32, reason: Box<str> },
    /// It would start one, but must not now.
    Hindered(Hindrance),
    /// Its workers will be free for it sooner or later.
    Busy,
    /// It has no worker and starts none: what other pools have, or are about to have, will do.
    Elsewhere,
}

/// Gives, pool by pool, what stands between work of this requirement and a worker. Costs as much as
/// [`outlook`].
#[must_use]
pub fn prospects(
    state: &State,
    now: Timestamp,
    requirement: &Requirement,
) -> Vec<(Arc<str>, Prospect)> {
    let learned = learned(state);
    let outlooks = outlook(state, now).into_iter();
    let prospects = outlooks.filter_map(|outlook| {
        let policy = state.policies.get(&outlook.pool)?;
        let prospect = if let Some(lack) = lacks(&offered(policy, &learned), requirement) {
            Prospect::Lacks(lack)
        } else if policy.max == 0 {
            Prospect::External
        } else if outlook.coming > 0 {
            Prospect::Coming(outlook.coming)
        } else if outlook.start.is_some() {
            Prospect::Starts
        } else if let Some((count, reason)) = outlook.held {
            Prospect::Held { count, reason }
        } else if let Some(hindrance) = outlook.hindrance {
            Prospect::Hindered(hindrance)
        } else if let Some(hindrance) = backoff(state, now, &outlook.pool) {
            Prospect::Hindered(hindrance)
        } else if has_worker(state, &outlook.pool) {
            Prospect::Busy
        } else {
            Prospect::Elsewhere
        };
        Some((outlook.pool, prospect))
    });
    prospects.collect()
}

fn has_worker(state: &State, pool: &str) -> bool {
    let mut workers = state.workers();
    workers.any(|worker| *worker.offer.pool == *pool && matches!(worker.link, Link::Up { .. }))
}

/// Tells for how long a pool starts nothing after a failed start.
fn backoff(state: &State, now: Timestamp, pool: &str) -> Option<Hindrance> {
    let pool = state.pool(pool)?;
    let at = retry_at(pool).filter(|at| *at > now)?;
    Some(Hindrance::Backoff {
        left: at.since(now),
        detail: pool.last_failure.clone(),
    })
}

/// What the pools that start workers themselves do for work that no present worker fits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// The workers of this pool would fit, and it starts some as far as it may.
    Starts { pool: Arc<str> },
    /// The workers of this pool would fit, and it starts none, since it is paused.
    Paused { pool: Arc<str>, reason: Box<str> },
    /// The work asks for this pool, and its workers never fit.
    Lacks { pool: Arc<str>, lack: Misfit },
    /// The work asks for a pool that is not configured any more.
    NotConfigured { pool: Arc<str> },
}

/// Finds the pool that will or would bring a worker for the work: one that does before one that is
/// paused, those from which one is on its way first, then those that do not wait after a
/// failed start, then those of a higher priority. `None` if no pool that starts workers is for it. Costs
/// O(workers + pools).
pub(crate) fn source(state: &State, now: Timestamp, requirement: &Requirement) -> Option<Source> {
    // A pool of workers that people start needs no section; one that had something of its own did.
    if let Some(pool) = &requirement.pool
        && !state.policies.contains_key(pool)
        && (state.pool(pool).is_some() || state.allocations().any(|held| held.pool == *pool))
    {
        let pool = Arc::clone(pool);
        return Some(Source::NotConfigured { pool });
    }
    let starting = state.policies().filter(|(_, policy)| policy.max > 0);
    let mut pools: Vec<_> = starting.collect();
    let coming: BTreeSet<&Arc<str>> = state
        .allocations()
        .filter(|held| !held.joined && held.ending.is_none() && !is_in_doubt(state, held, now))
        .map(|held| &held.pool)
        .collect();
    pools.sort_by_key(|(name, policy)| {
        let waits = backoff(state, now, name).is_some();
        let priority = Reverse(policy.priority);
        (!coming.contains(name), waits, priority, *name)
    });
    if pools.is_empty() {
        return None;
    }
    let learned = learned(state);
    let (mut paused, mut lacking) = (None, None);
    for (name, policy) in pools {
        let pool = Arc::clone(name);
        let pause = state.pool(name).and_then(|pool| pool.paused.as_ref());
        match (lacks(&offered(policy, &learned), requirement), pause) {
            (None, None) => return Some(Source::Starts { pool }),
            (None, Some(pause)) => {
                let reason = pause.reason.clone();
                paused.get_or_insert(Source::Paused { pool, reason });
            }
            (Some(lack), _) if requirement.pool.as_ref() == Some(name) => {
                lacking = Some(Source::Lacks { pool, lack });
            }
            (Some(_), _) => {}
        }
    }
    paused.or(lacking)
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starts { pool } => write!(f, "pool {pool} is to bring one"),
            Self::Paused { pool, reason } => {
                write!(f, "pool {pool}, which would bring one, is paused: {reason}")
            }
            Self::Lacks { pool, lack } => write!(f, "pool {pool} brings none for it: {lack}"),
            Self::NotConfigured { pool } => {
                write!(
                    f,
                    "the task asks for pool {pool}, which is not configured any more"
                )
            }
        }
    }
}

impl Source {
    /// Gives what a person can do about it, as one line.
    pub(crate) fn help(&self) -> String {
        match self {
            Self::Starts { pool } => {
                format!("wait; `coordinator pool show {pool}` says how far its workers are")
            }
            Self::Paused { pool, .. } => format!(
                "mend what its reason says, and let it go on: `coordinator pool resume {pool}`"
            ),
            Self::Lacks {
                lack: Misfit::Walltime { .. },
                pool,
            } => format!(
                "give pool {pool} a longer walltime in the configuration, or the task a shorter \
                 `expected` in the plan"
            ),
            Self::NotConfigured { pool } => format!(
                "put the section `[pools.{pool}]` back into the configuration and start the \
                 coordinator again, or ask for another pool"
            ),
            Self::Lacks { pool, .. } => {
                format!("give pool {pool} what is missing in the configuration, or ask for less")
            }
        }
    }
}

impl fmt::Display for Prospect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lacks(lack) => write!(f, "never: {lack}"),
            Self::External => f.write_str("people start its workers, and none that is free fits"),
            Self::Coming(1) => f.write_str("1 allocation is on its way"),
            Self::Coming(count) => write!(f, "{count} allocations are on their way"),
            Self::Starts => f.write_str("it is about to start one"),
            Self::Held { count, reason } => {
                let wait = if *count == 1 {
                    "1 allocation waits and is"
                } else {
                    &format!("{count} allocations wait and are")
                };
                write!(f, "{wait} not run by its provider: {reason}")
            }
            Self::Hindered(hindrance) => hindrance.fmt(f),
            Self::Busy => f.write_str("its workers are busy, and will be free"),
            Self::Elsewhere => f.write_str("it starts none: what other pools bring will do"),
        }
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool(name) => write!(f, "the task asks for pool {name}"),
            Self::Agent(name) => write!(f, "its workers do not have agent {name}"),
            Self::Program(agent) => {
                write!(f, "its workers do not have the program {}", agent.program)
            }
            Self::Unanswered(agent) => {
                write!(
                    f,
                    "its workers have not said whether they have {}",
                    agent.program
                )
            }
            Self::Label(name) => write!(f, "its workers do not carry label {name}"),
            Self::Resource(name) => write!(f, "its workers do not have enough {name}"),
            Self::Walltime { left, expected } => {
                let left = left.ms() / 1_000;
                write!(
                    f,
                    "the time does not suffice: there are {left} s for work, "
                )?;
                match expected.ms().div_ceil(1_000) {
                    0 => f.write_str("too few to begin any"),
                    expected => write!(
                        f,
                        "and it takes {expected} s, with {} s for its checkout and commit",
                        limits::WALLTIME_MARGIN.ms() / 1_000
                    ),
                }
            }
            Self::Busy(name) => write!(f, "{name} is taken by other work"),
        }
    }
}

impl fmt::Display for Hindrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paused { reason } => write!(f, "it is paused: {reason}"),
            Self::Backoff { left, detail } => write!(
                f,
                "its last start failed ({detail}); the next is tried in {} s",
                left.ms().div_ceil(1_000)
            ),
            Self::Max { max } => write!(f, "it has its maximum of {max} allocations"),
            Self::Backlog { backlog } => write!(
                f,
                "{backlog} of its allocations wait to be run already, as many as its backlog allows"
            ),
            Self::Burst { burst } => write!(f, "at most {burst} are started at once"),
            Self::Unanswered { waits } => write!(
                f,
                "its provider has not said for {} s that it has what it was asked for",
                waits.ms() / 1_000
            ),
        }
    }
}
