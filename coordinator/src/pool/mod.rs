//! Where workers come from.
//!
//! The core plans what each pool should start and end and keeps the inventory (`planner.rs` asks it
//! to); a [`carry::Carrier`] for each pool carries that out through a [`provider::Provider`], and
//! tells the core what it sees. `local.rs` is apart from all this: the worker of an embedded
//! coordinator.

pub mod carry;
#[cfg(feature = "ec2")]
pub mod ec2;
pub mod local;
mod place;
pub mod planner;
pub mod processes;
pub mod provider;
pub mod settings;
pub mod slurm;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coordinator_core::pool::{Policy, PoolCommand};
use coordinator_core::{Command, State};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use self::carry::{Carrier, Standings};
use self::processes::Processes;
use self::provider::Provider;
use self::provider::Unusable;
use self::settings::{Ec2Settings, PoolKind, PoolSettings};
use self::slurm::SlurmProvider;
use crate::auth::Authenticator;
use crate::engine::{self, Handle};

/// How often processes of local pools are looked at.
const PROCESSES_POLL: Duration = Duration::from_secs(2);
/// How long allocations may take to end when an embedded coordinator does.
const EMPTIES: Duration = Duration::from_secs(30);
/// How often the inventory is looked at meanwhile.
const LOOK: Duration = Duration::from_secs(1);

/// File in a home that lets its allocations go when it starts: it is a copy, and they are another's.
pub(crate) const DISOWNS: &str = "disowns-allocations";

/// What pools need of the coordinator around them.
pub struct Surroundings {
    pub engine: Handle,
    pub auth: Arc<Authenticator>,
    /// The coordinator's home.
    pub home: PathBuf,
    /// This program.
    pub executable: PathBuf,
    /// `host:port` on which this coordinator listens.
    pub address: String,
}

impl Surroundings {
    /// Tells whether no other machine can dial the address.
    fn is_only_here(&self) -> bool {
        let address: Result<SocketAddr, _> = self.address.parse();
        address.is_ok_and(|address| address.ip().is_loopback())
    }
}

/// Starts to run the configured pools, until `ending`; `standings` tells how it goes with them.
///
/// # Errors
/// The engine does not answer.
pub async fn start(
    pools: &BTreeMap<Arc<str>, PoolSettings>,
    around: &Surroundings,
    standings: &Standings,
    tasks: &TaskTracker,
    ending: &CancellationToken,
) -> Result<(), engine::Error> {
    let held = held_by_pool(&around.engine).await?;
    for (name, held) in held.iter().filter(|(name, _)| !pools.contains_key(*name)) {
        warn!(
            pool = &**name,
            allocations = held,
            "a pool is not configured any more, so nobody ends the allocations that it has: put its \
             section back into the configuration, or `pool forget` it"
        );
    }
    if pools.is_empty() {
        return Ok(());
    }
    // Before anything is planned: from here on orders are this process's own.
    let fresh = around.engine.query(|state, _| state.next_allocation());
    let fresh = fresh.await?;
    let moved = place::moved(pools, &held, &around.home);
    for (name, why) in &moved {
        warn!(pool = &**name, "{why}");
        standings.set(name, |standing| {
            standing.moved = true;
            standing.trouble = Some(why.clone());
        });
    }
    let policies = pools.iter().filter(|(name, _)| !moved.contains_key(*name));
    let policies = policies.map(|(name, settings)| (Arc::clone(name), settings.policy.clone()));
    let policies = policies.collect();
    let configure = Command::Pool(PoolCommand::Configure { policies });
    around.engine.command(configure).await?;
    for (name, settings) in pools {
        if moved.contains_key(name) {
            continue;
        }
        let Some((provider, poll)) = provider(name, settings, around) else {
            continue;
        };
        let carrier = Carrier {
            pool: Arc::clone(name),
            provider,
            engine: around.engine.clone(),
            auth: Arc::clone(&around.auth),
            home: around.home.clone(),
            place: settings.kind.place(),
            poll,
            fresh,
            standings: standings.clone(),
        };
        tasks.spawn(carrier.run(ending.clone()));
    }
    tasks.spawn(planner::run(around.engine.clone(), ending.clone()));
    Ok(())
}

/// Lets all allocations go, once, if the home is a copy of the one that they are of. Before
/// [`start`], and harmless to repeat until then.
///
/// # Errors
/// The engine does not answer, or the file that says so cannot be removed: what is ordered from now
/// on would be let go by the next start.
pub async fn disown(
    engine: &Handle,
    home: &Path,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mark = home.join(DISOWNS);
    if !mark.try_exists()? {
        return Ok(());
    }
    engine.command(Command::Pool(PoolCommand::Disown)).await?;
    std::fs::remove_file(&mark)?;
    std::fs::File::open(home)?.sync_all()?;
    Ok(())
}

/// Counts the allocations of each pool that has some.
async fn held_by_pool(engine: &Handle) -> Result<BTreeMap<Arc<str>, usize>, engine::Error> {
    let held = engine.query(|state, _| {
        let mut held: BTreeMap<Arc<str>, usize> = BTreeMap::new();
        for allocation in state.allocations() {
            *held.entry(Arc::clone(&allocation.pool)).or_default() += 1;
        }
        held
    });
    held.await
}

/// Gives all allocations back that no work is on, and waits until they are gone, at most
/// [`EMPTIES`]. Gives those that stay, for people.
pub async fn empty(engine: &Handle) -> Vec<String> {
    let policies = engine.query(|state, _| {
        let policies = state.policies();
        let closed = policies.map(|(name, policy)| {
            let closed = Policy {
                min: 0,
                max: 0,
                ..policy.clone()
            };
            (Arc::clone(name), closed)
        });
        closed.collect::<BTreeMap<_, _>>()
    });
    let Ok(policies) = policies.await else {
        return vec![];
    };
    let configure = PoolCommand::Configure { policies };
    for command in [configure, PoolCommand::Plan] {
        if engine.command(Command::Pool(command)).await.is_err() {
            return vec![];
        }
    }
    let mut changed = engine.notices().pools();
    let emptied = async {
        loop {
            changed.mark_unchanged();
            let ending = |state: &State, _| state.allocations().any(|held| held.ending.is_some());
            if !matches!(engine.query(ending).await, Ok(true)) {
                return;
            }
            drop(tokio::time::timeout(LOOK, changed.changed()).await);
        }
    };
    drop(tokio::time::timeout(EMPTIES, emptied).await);
    let left = engine.query(|state, _| {
        let held = state.allocations();
        let told = held.map(|held| {
            let external = held.external.as_deref().unwrap_or("not ordered yet");
            format!("{} of pool {} ({external})", held.id, held.pool)
        });
        told.collect()
    });
    left.await.unwrap_or_default()
}

/// Makes the provider of a pool; `None` of pools whose workers people start.
fn provider(
    name: &Arc<str>,
    settings: &PoolSettings,
    around: &Surroundings,
) -> Option<(Box<dyn Provider>, Duration)> {
    match &settings.kind {
        PoolKind::External => None,
        PoolKind::Local { worker_args } => {
            let processes = Processes {
                pool: Arc::clone(name),
                home: around.home.clone(),
                home_id: around.auth.home_id().into(),
                host: worker_agent::host_name().into(),
                executable: around.executable.clone(),
                policy: settings.policy.clone(),
                worker_args: worker_args.clone(),
            };
            Some((Box::new(processes), PROCESSES_POLL))
        }
        PoolKind::Slurm(slurm) => {
            if slurm.coordinator.is_none() && around.is_only_here() {
                warn!(
                    pool = &**name,
                    address = around.address,
                    "jobs of this pool dial an address that only this machine reaches: unless the \
                     whole cluster is here, let the coordinator listen where nodes reach it (`listen`), \
                     or name what they dial (the pool's `coordinator`)"
                );
            }
            let coordinator = slurm::Coordinator {
                home: around.auth.home_id().into(),
                folder: around.home.clone(),
                executable: around.executable.clone(),
                address: around.address.clone(),
                variables: std::env::vars_os().collect(),
            };
            let poll = Duration::from_millis(slurm.poll.ms());
            let (policy, limits) = (settings.policy.clone(), slurm::Limits::default());
            let (name, slurm) = (Arc::clone(name), (**slurm).clone());
            match SlurmProvider::new(name, policy, slurm, coordinator, limits) {
                Ok(provider) => Some((Box::new(provider), poll)),
                Err(error) => Some((Box::new(Unusable(error.to_string())), poll)),
            }
        }
        PoolKind::Ec2(settings) => Some(group(name, settings, around)),
    }
}

#[cfg(feature = "ec2")]
fn group(
    name: &Arc<str>,
    settings: &Ec2Settings,
    around: &Surroundings,
) -> (Box<dyn Provider>, Duration) {
    let home = around.auth.home_id().into();
    let provider = ec2::GroupProvider::new(Arc::clone(name), home, settings.clone());
    (
        Box::new(provider),
        Duration::from_millis(settings.poll.ms()),
    )
}

#[cfg(not(feature = "ec2"))]
fn group(_: &Arc<str>, settings: &Ec2Settings, _: &Surroundings) -> (Box<dyn Provider>, Duration) {
    let why = "this program was built without EC2; build it with --features coordinator/ec2";
    let poll = Duration::from_millis(settings.poll.ms());
    (Box::new(Unusable(why.to_owned())), poll)
}

/// Gives the folder of a pool in the coordinator's home.
fn folder(home: &Path, pool: &str) -> PathBuf {
    home.join("pools").join(pool)
}
