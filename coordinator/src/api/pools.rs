//! Pools for people: how it goes with each, and what each would do.

mod recent;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use coordinator_core::pool::{
    Allocation, Hindrance, Outlook, Phase, Policy, PoolCommand, Prospect, outlook, prospects,
};
use coordinator_core::state::{Link, Worker};
use coordinator_core::worker::Requirement;
use coordinator_core::{Command, State, Timestamp, limits};
use muster_proto::v1;
use tonic::Status;

use super::{convert, status};
use crate::engine::{Handle, Readers};
use crate::pool::carry::{Standing, Standings};
use crate::pool::settings::PoolSettings;

/// Allocations of a pool that are shown.
const ALLOCATIONS_SHOWN: usize = 1_000;

/// What is known of pools besides what the core knows.
#[derive(Clone, Default, Debug)]
pub struct Pools {
    kinds: Arc<BTreeMap<Arc<str>, &'static str>>,
    standings: Standings,
}

impl Pools {
    /// Knows these pools.
    #[must_use]
    pub fn new(settings: &BTreeMap<Arc<str>, PoolSettings>, standings: Standings) -> Self {
        let kinds = settings.iter();
        let kinds = kinds.map(|(name, pool)| (Arc::clone(name), pool.kind.as_str()));
        Self {
            kinds: Arc::new(kinds.collect()),
            standings,
        }
    }

    /// Adds what is the matter with pools' providers to what these pools would do for some work.
    pub(super) fn add_troubles(&self, told: &mut [v1::PoolProspect]) {
        for told in told.iter_mut().filter(|told| told.prospect != "lacks") {
            if let Some(trouble) = self.standings.of(&told.pool).trouble {
                told.text = format!("{}; but its provider has trouble: {trouble}", told.text);
            }
        }
    }

    /// Shows all pools, or the one of this name with what happened to it lately.
    ///
    /// # Errors
    /// There is no pool of the name, or the engine or the store does not answer.
    pub(super) async fn list(
        &self,
        engine: &Handle,
        readers: &Readers,
        name: &str,
    ) -> Result<v1::ListPoolsResponse, Status> {
        let (known, wanted) = (self.clone(), name.to_owned());
        let query = move |state: &State, _| {
            let held = state.allocations();
            let held = held.map(|held| (held.id, Arc::clone(&held.pool)));
            (known.listed(state, &wanted), held.collect())
        };
        let (mut pools, held) = engine.query(query).await.map_err(status::of)?;
        if let [pool] = &mut pools[..]
            && !name.is_empty()
        {
            let events = readers.read(|reader| reader.pool_events(recent::LOOKED_AT));
            let events = events.await.map_err(status::of_read)?;
            pool.recent = recent::of(&pool.name, &events, held);
        }
        if !name.is_empty() && pools.is_empty() {
            return Err(Status::not_found(format!(
                "no pool {:?}",
                convert::clip(name, 100)
            )));
        }
        Ok(v1::ListPoolsResponse { pools })
    }

    fn listed(&self, state: &State, wanted: &str) -> Vec<v1::Pool> {
        let mut names: BTreeSet<Arc<str>> = self.kinds.keys().cloned().collect();
        names.extend(state.policies().map(|(name, _)| Arc::clone(name)));
        names.extend(state.allocations().map(|held| Arc::clone(&held.pool)));
        let mut workers: BTreeMap<Option<_>, Vec<&Worker>> = BTreeMap::new();
        for worker in state.workers() {
            let group = workers.entry(worker.offer.allocation).or_default();
            group.push(worker);
        }
        let named = |name: &Arc<str>| wanted.is_empty() || **name == *wanted;
        let shown = names.iter().filter(|name| named(name)).map(|name| {
            let kind = self.kinds.get(name).copied().unwrap_or_default();
            let policies = state.policies();
            let policy = policies.into_iter().find(|(known, _)| *known == name);
            let mut pool = configured(name, kind, policy.map(|(_, policy)| policy));
            let mut known = self.standings.of(name);
            if known.moved {
                pool.kind.clear();
                if !state.allocations().any(|held| held.pool == *name) {
                    let why = "what it had is forgotten: start the coordinator again to use it";
                    known.trouble = Some(why.to_owned());
                }
            }
            standing(&mut pool, &known);
            durable(&mut pool, state, name);
            let held: Vec<&Allocation> = state
                .allocations()
                .filter(|held| held.pool == *name)
                .collect();
            pool.more = number(held.len().saturating_sub(ALLOCATIONS_SHOWN));
            let held = held.into_iter().take(ALLOCATIONS_SHOWN);
            let none = vec![];
            pool.allocations = held
                .map(|held| allocation(state, held, workers.get(&Some(held.id)).unwrap_or(&none)))
                .collect();
            let own = workers.values().flatten();
            for worker in own.filter(|worker| worker.offer.pool == *name) {
                pool.workers += u32::from(matches!(worker.link, Link::Up { .. }));
                pool.leases += number(state.leases_of_worker(&worker.id).count());
            }
            pool
        });
        shown.collect()
    }
}

/// Plans all pools on paper.
///
/// # Errors
/// The engine does not answer.
pub(super) async fn plan(engine: &Handle) -> Result<v1::PlanPoolsResponse, Status> {
    let planned = engine.query(outlook);
    let planned = planned.await.map_err(status::of)?;
    let pools = planned.into_iter().map(described).collect();
    Ok(v1::PlanPoolsResponse { pools })
}

/// Pauses a pool.
///
/// # Errors
/// There is no such pool, or the engine does not take it.
pub(super) async fn pause(
    engine: &Handle,
    request: v1::PausePoolRequest,
    by: &str,
) -> Result<v1::PausePoolResponse, Status> {
    let reason = request.reason.trim();
    if reason.len() > limits::TEXT_BYTES {
        return Err(Status::invalid_argument(format!(
            "reason: longer than {} bytes",
            limits::TEXT_BYTES
        )));
    }
    let reason = if reason.is_empty() {
        "no reason was given"
    } else {
        reason
    };
    let command = PoolCommand::Pause {
        pool: request.pool.into(),
        reason: reason.into(),
        by: by.into(),
    };
    let done = engine.command(Command::Pool(command)).await;
    done.map_err(status::of)?;
    Ok(v1::PausePoolResponse {})
}

/// Lets a pool go on.
///
/// # Errors
/// There is no such pool, or the engine does not take it.
pub(super) async fn resume(
    engine: &Handle,
    request: v1::ResumePoolRequest,
    by: &str,
) -> Result<v1::ResumePoolResponse, Status> {
    let command = PoolCommand::Resume {
        pool: request.pool.into(),
        by: by.into(),
    };
    let done = engine.command(Command::Pool(command)).await;
    done.map_err(status::of)?;
    Ok(v1::ResumePoolResponse {})
}

/// Takes a pool that is not configured any more out of the inventory.
///
/// # Errors
/// It is configured, there is no such pool, or it has allocations and the request does not say that
/// these are to be forgotten too.
pub(super) async fn forget(
    engine: &Handle,
    request: v1::ForgetPoolRequest,
    by: &str,
) -> Result<v1::ForgetPoolResponse, Status> {
    let pool: Arc<str> = request.pool.into();
    let wanted = Arc::clone(&pool);
    let query = move |state: &State, _| {
        let held = state.allocations().filter(|held| held.pool == wanted);
        let names: Vec<_> = held.map(|held| held.external.clone()).collect();
        names
    };
    let held = engine.query(query).await.map_err(status::of)?;
    let command = PoolCommand::Forget {
        pool,
        even_if_they_run: request.even_if_they_run,
        by: by.into(),
    };
    let done = engine.command(Command::Pool(command)).await;
    done.map_err(status::of)?;
    let allocations = number(held.len());
    let externals = held.into_iter().flatten().take(ALLOCATIONS_SHOWN);
    Ok(v1::ForgetPoolResponse {
        allocations,
        externals: externals.map(String::from).collect(),
    })
}

/// Says, pool by pool, what stands between work and a worker.
pub(super) fn prospects_of(
    state: &State,
    now: Timestamp,
    requirement: &Requirement,
) -> Vec<v1::PoolProspect> {
    let found = prospects(state, now, requirement).into_iter();
    let told = found.map(|(pool, prospect)| v1::PoolProspect {
        pool: pool.to_string(),
        prospect: match prospect {
            Prospect::Lacks(_) => "lacks",
            Prospect::External => "external",
            Prospect::Coming(_) => "coming",
            Prospect::Starts => "starts",
            Prospect::Held { .. } => "held",
            Prospect::Hindered(_) => "hindered",
            Prospect::Busy => "busy",
            Prospect::Elsewhere => "elsewhere",
        }
        .to_owned(),
        text: prospect.to_string(),
    });
    told.collect()
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn configured(name: &str, kind: &str, policy: Option<&Policy>) -> v1::Pool {
    let mut pool = v1::Pool {
        name: name.to_owned(),
        kind: kind.to_owned(),
        ..v1::Pool::default()
    };
    let Some(policy) = policy else {
        return pool;
    };
    let texts = |texts: &BTreeSet<Arc<str>>| texts.iter().map(ToString::to_string).collect();
    let template = &policy.template;
    pool.priority = policy.priority;
    (pool.min, pool.max) = (policy.min, policy.max);
    pool.slots = template.slots;
    pool.workers_per_allocation = policy.workers;
    pool.labels = texts(&template.labels);
    let resources = template.resources.iter();
    pool.resources = resources.map(|(name, n)| (name.to_string(), *n)).collect();
    pool.agents = policy.agents.as_ref().map(texts).unwrap_or_default();
    pool.idle_timeout = Some(convert::duration(policy.idle_timeout));
    (pool.backlog, pool.burst) = (policy.backlog, policy.burst);
    pool.join_timeout = Some(convert::duration(policy.join_timeout));
    pool.walltime = policy.walltime.map(convert::duration);
    pool.failures_max = policy.failures_max;
    pool.quarantine = policy.quarantine;
    pool
}

fn standing(pool: &mut v1::Pool, standing: &Standing) {
    pool.trouble = standing.trouble.clone().unwrap_or_default();
    pool.orphans = number(standing.orphans);
}

fn durable(pool: &mut v1::Pool, state: &State, name: &str) {
    let Some(known) = state.pool(name) else {
        return;
    };
    pool.paused = known.paused.as_ref().map(|pause| v1::PoolPause {
        reason: pause.reason.to_string(),
        by: pause.by.to_string(),
        at: Some(convert::timestamp(pause.at)),
    });
    pool.failures = known.failures;
    if known.failures > 0 {
        pool.last_failure = known.last_failure.to_string();
        pool.failed_at = Some(convert::timestamp(known.failed_at));
    }
    let hosts = known.quarantined.iter();
    pool.quarantined = hosts
        .map(|(host, quarantine)| v1::QuarantinedHost {
            host: host.to_string(),
            reason: quarantine.reason.to_string(),
            at: Some(convert::timestamp(quarantine.at)),
            until: Some(convert::timestamp(quarantine.until)),
        })
        .collect();
}

fn allocation(state: &State, held: &Allocation, workers: &[&Worker]) -> v1::Allocation {
    let (phase, since) = match (&held.ending, held.phase) {
        (Some(ending), _) => ("ending", ending.at),
        (None, Phase::Wanted) => ("wanted", held.wanted_at),
        (None, Phase::Queued { since }) => ("queued", since),
        (None, Phase::Running { since }) => ("running", since),
    };
    let leases = workers.iter();
    let leases = leases.map(|worker| state.leases_of_worker(&worker.id).count());
    v1::Allocation {
        id: held.id.to_string(),
        phase: phase.to_owned(),
        external: held.external.as_deref().unwrap_or_default().to_owned(),
        host: held.host.to_string(),
        wanted_at: Some(convert::timestamp(held.wanted_at)),
        since: Some(convert::timestamp(since)),
        joined: held.joined,
        requeues: held.requeues,
        held: held
            .held
            .as_ref()
            .map(|hold| hold.reason.to_string())
            .unwrap_or_default(),
        ending: held
            .ending
            .as_ref()
            .map(|ending| ending.cause.name().to_owned())
            .unwrap_or_default(),
        ending_reason: held
            .ending
            .as_ref()
            .map(|ending| ending.reason.to_string())
            .unwrap_or_default(),
        workers: workers.iter().map(|worker| worker.id.to_string()).collect(),
        leases: number(leases.sum()),
    }
}

fn described(outlook: Outlook) -> v1::PlannedPool {
    let (starts, why) = match outlook.start {
        Some(start) => (start.count, start.why.into()),
        None => (0, String::new()),
    };
    let (held_count, held_reason) = match outlook.held {
        Some((count, reason)) => (count, reason.into()),
        None => (0, String::new()),
    };
    let hindrance = outlook.hindrance.as_ref().map(|hindrance| match hindrance {
        Hindrance::Paused { .. } => "paused",
        Hindrance::Backoff { .. } => "backoff",
        Hindrance::Max { .. } => "max",
        Hindrance::Backlog { .. } => "backlog",
        Hindrance::Burst { .. } => "burst",
        Hindrance::Unanswered { .. } => "unanswered",
    });
    let text = outlook.hindrance.as_ref().map(ToString::to_string);
    let stops = outlook.stops.into_iter().map(|stop| v1::PlannedStop {
        allocation: stop.allocation.to_string(),
        cause: stop.cause.name().to_owned(),
        why: stop.why.into(),
    });
    let lacks = outlook.lacks.into_iter().map(|(lack, tasks)| v1::PoolLack {
        text: lack.to_string(),
        tasks,
    });
    v1::PlannedPool {
        pool: outlook.pool.to_string(),
        allocations: outlook.allocations,
        coming: outlook.coming,
        held: held_count,
        held_reason,
        serves: outlook.serves,
        starts,
        why,
        stops: stops.collect(),
        hindrance: hindrance.unwrap_or_default().to_owned(),
        hindrance_text: text.unwrap_or_default(),
        lacks: lacks.collect(),
        idle: number(outlook.idle.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_pool_would_do_is_told_with_its_providers_trouble() {
        let standings = Standings::default();
        standings.set(&"cluster".into(), |standing| {
            standing.trouble = Some("failed to list allocations: no controller".to_owned());
        });
        let pools = Pools::new(&BTreeMap::new(), standings);
        let prospect = |pool: &str, prospect: &str, text: &str| v1::PoolProspect {
            pool: pool.to_owned(),
            prospect: prospect.to_owned(),
            text: text.to_owned(),
        };
        let mut told = [
            prospect("cluster", "coming", "1 allocation is on its way"),
            prospect("cluster", "lacks", "never: no label"),
            prospect("near", "starts", "it is about to start one"),
        ];
        pools.add_troubles(&mut told);
        let texts: Vec<_> = told.iter().map(|told| told.text.as_str()).collect();
        assert_eq!(
            texts,
            [
                "1 allocation is on its way; but its provider has trouble: failed to list \
                 allocations: no controller",
                "never: no label",
                "it is about to start one",
            ]
        );
    }
}
