//! A provider that answers as a test says, and tells what it was asked.

use std::collections::BTreeMap;
use std::sync::Arc;

use coordinator::pool::provider::{Error, Known, Order, Provider, Sighted, Sighting};
use coordinator_core::AllocationId;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::service::world::within;

/// What becomes of an order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Answer {
    #[default]
    Takes,
    Refuses,
    /// It arrives, and its answer does not.
    IsLost,
    /// It arrives, and whoever placed it waits for ever.
    NeverComes,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Now {
    jobs: BTreeMap<String, Sighting>,
    pub(super) answer: Answer,
    pub(super) orders_wait: bool,
    pub(super) lists_wait: bool,
    pub(super) lists_fail: bool,
    pub(super) ends_fail: bool,
    pub(super) remark: Option<String>,
    /// Lists know nothing of any job yet.
    pub(super) arrives_late: bool,
    /// Orders that were begun, and lists that were answered.
    pub(super) orders: u32,
    lists: u32,
    ended: Vec<String>,
    at_once: u32,
    pub(super) most_at_once: u32,
}

impl Now {
    /// Lets a job begin to run.
    pub(super) fn run(&mut self, job: &str, host: &str) {
        if let Some(job) = self.jobs.get_mut(job) {
            job.state = Sighted::Running { host: host.into() };
        }
    }
}

/// A cluster with its queue; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Cluster(Arc<watch::Sender<Now>>);

impl Default for Cluster {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Now::default())))
    }
}

impl Cluster {
    pub(super) fn set(&self, change: impl FnOnce(&mut Now)) {
        self.0.send_modify(change);
    }

    pub(super) fn orders(&self) -> u32 {
        self.0.borrow().orders
    }

    pub(super) fn ended(&self) -> Vec<String> {
        self.0.borrow().ended.clone()
    }

    async fn until(&self, holds: impl Fn(&Now) -> bool) -> Now {
        let mut seen = self.0.subscribe();
        let now = within(seen.wait_for(|now| holds(now))).await;
        now.unwrap().clone()
    }

    /// Waits until it was asked for so many more lists and has answered.
    pub(super) async fn lists(&self, more: u32) -> Now {
        let enough = self.0.borrow().lists + more;
        self.until(|now| now.lists >= enough).await
    }

    /// Waits until so many orders were begun.
    pub(super) async fn ordered(&self, orders: u32) {
        self.until(|now| now.orders >= orders).await;
    }

    /// Waits until it is being asked for something.
    pub(super) async fn busy(&self) {
        self.until(|now| now.at_once > 0).await;
    }

    fn begin(&self) -> Busy<'_> {
        self.set(|now| {
            now.at_once += 1;
            now.most_at_once = now.most_at_once.max(now.at_once);
        });
        Busy(self)
    }
}

/// While something is being asked; also an asker that goes away ends it.
struct Busy<'a>(&'a Cluster);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.set(|now| now.at_once -= 1);
    }
}

impl Provider for Cluster {
    fn start<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, Result<Vec<Sighting>, Error>> {
        async move {
            let _busy = self.begin();
            self.set(|now| now.orders += 1);
            let answer = self.until(|now| !now.orders_wait).await.answer;
            if answer == Answer::Refuses {
                return Err(Error::Refused("Invalid account".to_owned()));
            }
            let jobs = (0..order.count).map(|index| Sighting {
                external: format!("job-{}", AllocationId(order.first.0 + u64::from(index))).into(),
                name: order.name(),
                index,
                state: Sighted::Queued,
            });
            let jobs: Vec<_> = jobs.collect();
            self.set(|now| {
                let named = jobs.iter().map(|job| (job.external.to_string(), job));
                now.jobs
                    .extend(named.map(|(name, job)| (name, job.clone())));
            });
            match answer {
                Answer::IsLost => Err(Error::Unclear("the line was cut".to_owned())),
                Answer::NeverComes => futures::future::pending().await,
                Answer::Takes | Answer::Refuses => Ok(jobs),
            }
        }
        .boxed()
    }

    fn list<'a>(&'a self, _: &'a [Known]) -> BoxFuture<'a, Result<Vec<Sighting>, Error>> {
        async move {
            let _busy = self.begin();
            let now = self.until(|now| !now.lists_wait).await;
            self.set(|now| now.lists += 1);
            if now.lists_fail {
                return Err(Error::Unclear("no controller".to_owned()));
            }
            let late = now.arrives_late;
            Ok(now.jobs.into_values().filter(|_| !late).collect())
        }
        .boxed()
    }

    fn end<'a>(&'a self, externals: &'a [Box<str>]) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            let _busy = self.begin();
            let names = externals.iter().map(ToString::to_string);
            self.set(|now| now.ended.extend(names));
            if self.0.borrow().ends_fail {
                return Err(Error::Refused("you may not end it".to_owned()));
            }
            Ok(())
        }
        .boxed()
    }

    fn remark(&self) -> Option<String> {
        self.0.borrow().remark.clone()
    }
}
