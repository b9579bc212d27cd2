//! Workers on EC2 instances.
//!
//! A pool is an auto scaling group, made by the modules in `terraform/`: they say what an instance is,
//! the coordinator says how many there are and which of them end, through the group's API alone.
//! `group.rs` decides, `api.rs` calls, `caller.rs` finds out which instance asks to be let in.

mod api;
mod caller;
mod group;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures::future::BoxFuture;
use tracing::{info, warn};

use self::api::{Api, OWNER_TAG};
use self::group::{Failure, Group};
use super::provider::{Error, Known, Order, Provider, Sighting};
use super::settings::Ec2Settings;

pub use self::caller::{Callers, Error as CallerError};

/// How long instances are ended one after the other, before what is wanted is looked at again: somebody
/// may have joined late.
const ENDS: Duration = Duration::from_secs(30);
/// Ids of failed launches that are remembered.
const TOLD_MAX: usize = 1_000;

/// A pool of instances of one group.
#[derive(Debug)]
pub struct GroupProvider {
    pool: Arc<str>,
    /// Id of the coordinator's home: the group's tag must say it.
    home: Arc<str>,
    settings: Ec2Settings,
    api: Api,
    /// [`ENDS`].
    ends: Duration,
    /// When this provider began: what failed before is no news.
    begun: SystemTime,
    /// Failed launches that were told already.
    told: Mutex<BTreeSet<String>>,
    /// What was noticed in the last look that people should know.
    remark: Mutex<Option<String>>,
}

impl GroupProvider {
    /// Makes a provider; nothing is asked yet.
    #[must_use]
    pub fn new(pool: Arc<str>, home: Arc<str>, settings: Ec2Settings) -> Self {
        let api = Api::new(&settings.group, &settings.region);
        Self {
            pool,
            home,
            settings,
            api,
            ends: ENDS,
            begun: SystemTime::now(),
            told: Mutex::default(),
            remark: Mutex::default(),
        }
    }

    /// Gives the group, if it is ours: two coordinators would end each other's instances.
    async fn group(&self) -> Result<Group, Error> {
        let group = self.api.describe().await?;
        if group.coordinator.as_deref() == Some(&*self.home) {
            return Ok(group);
        }
        let name = &self.settings.group;
        let whose = match &group.coordinator {
            Some(other) => format!("is for the coordinator {other}"),
            None => "is for no coordinator".to_owned(),
        };
        Err(Error::Refused(format!(
            "the auto scaling group {name} {whose}: nothing is started or ended in it unless its tag \
             {OWNER_TAG} is {}; `coordinator_id` of the Terraform module sets it",
            self.home
        )))
    }

    async fn place(&self, order: &Order) -> Result<Vec<Sighting>, Error> {
        let group = self.group().await?;
        // What is above that is seen as waiting.
        let wanted = group::wanted(&order.known, &group).min(group.max);
        if group.desired < wanted {
            self.api.set_desired(wanted).await?;
        }
        Ok(vec![])
    }

    async fn look(&self, known: &[Known]) -> Result<Vec<Sighting>, Error> {
        let group = self.group().await?;
        let mut remarks = vec![];
        // The list is good although nobody says why something is missing.
        let failures = match group::missing(known, &group) {
            0 => vec![],
            _ => self.new_failures().await.unwrap_or_else(|error| {
                warn!(pool = %self.pool, %error, "failed to ask for launches that failed");
                remarks.push(format!("why launches fail is not known: {error}"));
                vec![]
            }),
        };
        let view = group::view(&self.home, &self.pool, known, &group, failures);
        let name = &self.settings.group;
        remarks.extend(group.remark(group::wanted(known, &group)));
        // The list is good whatever becomes of these: without it nothing could be ended.
        if !view.protect.is_empty()
            && let Err(error) = self.api.protect(&view.protect).await
        {
            warn!(pool = %self.pool, %error, "failed to protect instances from their group");
            remarks.push(format!("its instances could not be protected: {error}"));
        }
        if let Some(desired) = view.desired {
            info!(pool = %self.pool, group = name, desired, was = group.desired, "sets the group's capacity");
            if let Err(error) = self.api.set_desired(desired).await {
                warn!(pool = %self.pool, %error, "failed to set the group's capacity");
                remarks.push(format!(
                    "it is to have {desired} instances and not {}: {error}",
                    group.desired
                ));
            }
        }
        let remark = (!remarks.is_empty())
            .then(|| format!("of the auto scaling group {name}: {}", remarks.join("; ")));
        *self.remark.lock().unwrap_or_else(PoisonError::into_inner) = remark;
        Ok(view.sightings)
    }

    /// Gives the launches that have failed since this was asked last.
    async fn new_failures(&self) -> Result<Vec<Failure>, Error> {
        let all = self.api.failures().await?;
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() > TOLD_MAX {
            let latest: BTreeSet<&String> = all.iter().map(|(id, ..)| id).collect();
            told.retain(|id| latest.contains(id));
        }
        let new = all.into_iter().filter(|(_, at, _)| *at >= self.begun);
        let new = new.filter(|(id, ..)| told.insert(id.clone()));
        Ok(new.map(|(.., failure)| failure).collect())
    }

    async fn terminate(&self, externals: &[Box<str>]) -> Result<(), Error> {
        let group = self.group().await?;
        let asked: BTreeSet<&str> = externals.iter().map(|one| &**one).collect();
        let mut failed = None;
        let mut ended = 0;
        let begun = Instant::now();
        for one in group.there().filter(|one| asked.contains(&*one.id)) {
            let instance = &*one.id;
            let counts = one.stage.counts();
            let lowers = counts && group.lowers(ended);
            ended += usize::from(counts);
            match self.api.terminate(instance, lowers).await {
                Ok(()) => info!(pool = %self.pool, %instance, "ends an instance"),
                Err(error) => {
                    warn!(pool = %self.pool, %instance, %error, "failed to end an instance");
                    failed = Some(error);
                }
            }
            // The others are asked for again.
            if begun.elapsed() >= self.ends {
                break;
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

impl Provider for GroupProvider {
    fn start<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, Result<Vec<Sighting>, Error>> {
        Box::pin(self.place(order))
    }

    fn list<'a>(&'a self, known: &'a [Known]) -> BoxFuture<'a, Result<Vec<Sighting>, Error>> {
        Box::pin(self.look(known))
    }

    fn end<'a>(&'a self, externals: &'a [Box<str>]) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.terminate(externals))
    }

    fn remark(&self) -> Option<String> {
        let remark = self.remark.lock().unwrap_or_else(PoisonError::into_inner);
        remark.clone()
    }
}
