//! What carries a pool, between a real engine and a provider that answers as a test says.

mod cluster;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coordinator::auth::Authenticator;
use coordinator::engine::{self, Handle, SESSION_QUEUE, Started};
use coordinator::pool::carry::{Carrier, Standings};
use coordinator::pool::settings::{PoolKind, PoolSettings};
use coordinator::pool::{self, Surroundings};
use coordinator::store::memory::MemoryStore;
use coordinator_core::command::Hello;
use coordinator_core::pool::{Allocation, EndCause, Phase, Policy, PoolCommand, Seen};
use coordinator_core::worker::Offer;
use coordinator_core::{AllocationId, Command, Incarnation, Span, State, WorkerId};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::cluster::{Answer, Cluster};
use crate::service::world::{PATIENCE, within};

const POOL: &str = "gpu";
const POLL: Duration = Duration::from_millis(10);

fn policy(min: u32) -> Policy {
    Policy {
        priority: 0,
        min,
        max: 9,
        template: Offer {
            pool: POOL.into(),
            slots: 1,
            ..Offer::default()
        },
        agents: None,
        workers: 1,
        idle_timeout: Span::from_secs(300),
        backlog: 9,
        burst: 9,
        join_timeout: Span::from_ms(1),
        walltime: None,
        failures_max: 9,
        quarantine: true,
        stays: false,
    }
}

/// A pool with its engine; the carrier comes and goes.
struct Site {
    folder: tempfile::TempDir,
    engine: Started,
    auth: Arc<Authenticator>,
    standings: Standings,
    cluster: Cluster,
    ending: CancellationToken,
    carrier: Option<JoinHandle<()>>,
}

impl Site {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let auth = Authenticator::open(folder.path()).unwrap();
        let engine = engine::start(Box::new(MemoryStore::new()), engine::Options::default());
        Self {
            folder,
            engine: engine.unwrap(),
            auth,
            standings: Standings::default(),
            cluster: Cluster::default(),
            ending: CancellationToken::new(),
            carrier: None,
        }
    }

    fn handle(&self) -> &Handle {
        &self.engine.handle
    }

    /// Lets a carrier begin, to which orders from `fresh` on are its own process's.
    fn carry(&mut self, fresh: AllocationId) {
        self.ending = CancellationToken::new();
        let carrier = Carrier {
            pool: POOL.into(),
            provider: Box::new(self.cluster.clone()),
            engine: self.handle().clone(),
            auth: Arc::clone(&self.auth),
            home: self.folder.path().to_owned(),
            place: "gpus".to_owned(),
            poll: POLL,
            fresh,
            standings: self.standings.clone(),
        };
        self.carrier = Some(tokio::spawn(carrier.run(self.ending.clone())));
    }

    /// Ends the carrier, whatever it is waiting for.
    async fn rest(&mut self) {
        self.ending.cancel();
        within(self.carrier.take().unwrap()).await.unwrap();
    }

    async fn end(mut self) {
        if self.carrier.is_some() {
            self.rest().await;
        }
        self.handle().stop().await;
        self.engine.thread.join().unwrap().unwrap();
    }

    async fn command(&self, command: PoolCommand) {
        let done = self.handle().command(Command::Pool(command)).await;
        done.unwrap();
    }

    /// Wants as many allocations as the policy's minimum.
    async fn want(&self, min: u32) {
        let policies = BTreeMap::from([(POOL.into(), policy(min))]);
        self.command(PoolCommand::Configure { policies }).await;
        self.command(PoolCommand::Plan).await;
    }

    async fn read<T: Send + 'static>(&self, read: impl FnOnce(&State) -> T + Send + 'static) -> T {
        let read = self.handle().query(|state, _| read(state));
        read.await.unwrap()
    }

    /// Waits until the inventory is as it should be.
    async fn until(&self, what: &str, holds: impl Fn(&[Allocation]) -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut committed = self.handle().notices().committed();
        loop {
            committed.mark_unchanged();
            let held = self.read(|state| state.allocations().cloned().collect::<Vec<_>>());
            let held = held.await;
            if holds(&held) {
                return;
            }
            let changed = tokio::time::timeout_at(deadline, committed.changed()).await;
            assert!(changed.is_ok(), "{what}: {held:#?}");
        }
    }

    /// Lets the first worker of an allocation say hello.
    async fn join(&self, allocation: AllocationId) -> mpsc::Receiver<engine::ToSession> {
        let offer = Offer {
            pool: POOL.into(),
            slots: 1,
            host: "n1".into(),
            allocation: Some(allocation),
            ..Offer::default()
        };
        let hello = Hello {
            number: 0,
            worker: WorkerId::new("gpu/1"),
            incarnation: Incarnation(1),
            session: 1,
            offer: Arc::new(offer),
            held: vec![],
            draining: false,
            time_left: None,
        };
        let (out, orders) = mpsc::channel(SESSION_QUEUE);
        self.handle().open(hello, out).await.unwrap();
        orders
    }
}

const FIRST: AllocationId = AllocationId(1);

fn waits_as(held: &[Allocation], external: &str) -> bool {
    held.iter().any(|one| {
        one.external.as_deref() == Some(external) && matches!(one.phase, Phase::Queued { .. })
    })
}

#[tokio::test]
async fn nothing_is_ordered_while_lists_fail_and_all_of_it_once_they_come_again() {
    let mut site = Site::new().await;
    site.cluster.set(|now| now.lists_fail = true);
    site.carry(FIRST);
    site.cluster.lists(1).await;
    site.want(2).await;
    // The inventory has changed, so the carrier has looked at it before each of these.
    site.cluster.lists(4).await;
    assert_eq!(site.cluster.orders(), 0);
    let trouble = site.standings.of(POOL).trouble.unwrap();
    assert_eq!(trouble, "failed to list allocations: no controller");

    site.cluster.set(|now| now.lists_fail = false);
    site.until("both are ordered", |held| {
        waits_as(held, "job-A1") && waits_as(held, "job-A2")
    })
    .await;
    assert_eq!(site.cluster.orders(), 1);
    site.cluster.lists(1).await;
    assert_eq!(site.standings.of(POOL).trouble, None);
    site.end().await;
}

#[tokio::test]
async fn what_is_to_end_is_asked_for_afresh_after_a_slow_order() {
    let mut site = Site::new().await;
    site.carry(FIRST);
    site.want(1).await;
    site.until("it waits", |held| waits_as(held, "job-A1"))
        .await;
    site.cluster.set(|now| {
        now.run("job-A1", "n1");
        now.orders_wait = true;
    });
    site.until("it runs", |held| {
        matches!(held[0].phase, Phase::Running { .. })
    })
    .await;
    site.rest().await;
    // It has not joined in time: it is to end, and another one is to come.
    within(async {
        while site.read(|state| state.allocations().len()).await == 1 {
            site.command(PoolCommand::Plan).await;
        }
    })
    .await;
    site.until("it is to end", |held| {
        let ending = held[0].ending.as_ref();
        ending.is_some_and(|ending| ending.cause == EndCause::NeverJoined)
    })
    .await;
    site.carry(AllocationId(2));
    site.cluster.ordered(2).await;
    let _orders = site.join(FIRST).await;
    site.until("it may stay", |held| held[0].ending.is_none())
        .await;
    site.cluster.set(|now| now.orders_wait = false);
    site.until("the other one waits", |held| waits_as(held, "job-A2"))
        .await;
    site.cluster.lists(2).await;
    assert_eq!(site.cluster.ended(), Vec::<String>::new());
    site.end().await;
}

#[tokio::test]
async fn what_cannot_be_ended_is_told_until_it_is_whatever_lists_say() {
    let mut site = Site::new().await;
    site.carry(FIRST);
    site.want(1).await;
    site.until("it waits", |held| waits_as(held, "job-A1"))
        .await;
    site.cluster.set(|now| {
        now.run("job-A1", "n1");
        now.ends_fail = true;
    });
    within(async {
        while site.cluster.ended().is_empty() {
            site.command(PoolCommand::Plan).await;
        }
    })
    .await;
    site.cluster.lists(3).await;
    let trouble = site.standings.of(POOL).trouble;
    let wanted = "failed to end allocations: you may not end it";
    assert_eq!(trouble.as_deref(), Some(wanted));
    site.cluster
        .set(|now| now.remark = Some("the queue is closed".to_owned()));
    site.cluster.lists(3).await;
    let trouble = site.standings.of(POOL).trouble;
    let both = format!("{wanted}; the queue is closed");
    assert_eq!(trouble, Some(both));

    site.cluster.set(|now| {
        now.ends_fail = false;
        now.remark = None;
    });
    site.cluster.lists(3).await;
    assert_eq!(site.standings.of(POOL).trouble, None);
    site.end().await;
}

impl Site {
    /// Where the pool's allocations are, as noted.
    fn place(&self) -> PathBuf {
        self.folder.path().join("pools").join(POOL).join("place")
    }

    /// Starts the configured pool, of kind `local`, as a coordinator does that starts; ends it again.
    async fn start_as_local(&self) {
        let settings = PoolSettings {
            policy: policy(0),
            kind: PoolKind::Local {
                worker_args: vec![],
            },
        };
        let around = Surroundings {
            engine: self.handle().clone(),
            auth: Arc::clone(&self.auth),
            home: self.folder.path().to_owned(),
            executable: "/nonexistent/coordinator".into(),
            address: "127.0.0.1:1".into(),
        };
        let (tasks, ending) = (TaskTracker::new(), CancellationToken::new());
        let pools = BTreeMap::from([(POOL.into(), settings)]);
        let started = pool::start(&pools, &around, &self.standings, &tasks, &ending);
        started.await.unwrap();
        ending.cancel();
        tasks.close();
        within(tasks.wait()).await;
    }
}

#[tokio::test]
async fn what_a_pool_had_elsewhere_is_told_and_not_taken_for_gone() {
    let mut site = Site::new().await;
    site.start_as_local().await;
    assert!(!site.place().exists(), "nothing was ordered");
    // Known by no name yet, as all that is asked of a group.
    site.cluster.set(|now| {
        now.answer = Answer::IsLost;
        now.arrives_late = true;
    });
    site.carry(FIRST);
    site.want(1).await;
    site.cluster.ordered(1).await;
    site.rest().await;
    let noted = || std::fs::read_to_string(site.place()).unwrap();
    assert_eq!(noted(), "gpus");
    site.start_as_local().await;
    let standing = site.standings.of(POOL);
    assert!(standing.moved);
    assert_eq!(
        standing.trouble.unwrap(),
        "it has an allocation of what its section was before (gpus; now local), which nobody lists or \
         ends: put back what it was, or `pool forget gpu --even-if-they-run` when they have ended; start \
         the coordinator again then"
    );
    let (held, policies) = site
        .read(|state| (state.allocations().len(), state.policies().count()))
        .await;
    assert_eq!((held, policies), (1, 0), "nothing is wanted of it");
    assert_eq!(noted(), "gpus");

    // The way out that was named.
    site.command(PoolCommand::Forget {
        pool: POOL.into(),
        even_if_they_run: true,
        by: "somebody".into(),
    })
    .await;
    site.start_as_local().await;
    assert!(!site.place().exists());
    let policies = site.read(|state| state.policies().count()).await;
    assert_eq!(policies, 1);
    site.end().await;
}

#[tokio::test]
async fn what_a_pool_had_before_places_were_noted_is_where_its_section_says() {
    let site = Site::new().await;
    site.want(1).await;
    site.start_as_local().await;
    assert!(!site.standings.of(POOL).moved);
    site.end().await;
}

#[tokio::test]
async fn a_refused_order_is_over_with_the_providers_words() {
    let mut site = Site::new().await;
    site.cluster.set(|now| now.answer = Answer::Refuses);
    site.carry(FIRST);
    site.want(2).await;
    site.until("the order is over", <[_]>::is_empty).await;
    let known = site.read(|state| state.pool(POOL).cloned()).await.unwrap();
    assert_eq!(&*known.last_failure, "Invalid account");
    assert_eq!(known.failures, 1, "two that were asked for together");
    assert_eq!(site.standings.of(POOL).trouble, None, "it did answer");
    site.end().await;
}

#[tokio::test]
async fn what_is_left_of_an_order_is_over_when_that_is_refused() {
    let mut site = Site::new().await;
    site.want(3).await;
    let detail = "its launch failed".into();
    let allocations = vec![(AllocationId(1), Seen::Gone { detail })];
    site.command(PoolCommand::Observe { allocations }).await;
    site.want(0).await;
    site.until("the first has ended alone", |held| {
        held.iter().map(|one| one.id.0).eq([2, 3])
    })
    .await;
    site.cluster.set(|now| now.answer = Answer::Refuses);
    site.carry(FIRST);
    site.until("the order is over", <[_]>::is_empty).await;
    assert_eq!(site.cluster.orders(), 1);
    site.end().await;
}

#[tokio::test]
async fn an_order_without_an_answer_is_looked_for_and_not_placed_again() {
    let mut site = Site::new().await;
    site.cluster.set(|now| {
        now.answer = Answer::IsLost;
        now.arrives_late = true;
    });
    site.carry(FIRST);
    site.want(2).await;
    site.cluster.ordered(1).await;
    let told = site.cluster.lists(3).await;
    assert_eq!(told.orders, 1, "{told:?}");
    let held = site.read(|state| state.allocations().cloned().collect::<Vec<_>>());
    let held = held.await;
    assert!(
        held.iter().all(|one| one.phase == Phase::Wanted) && held.len() == 2,
        "{held:?}"
    );
    let known = site.read(|state| state.pool(POOL).cloned()).await;
    assert_eq!(known, None, "an unclear answer is no failed start");
    let trouble = site.standings.of(POOL).trouble;
    let wanted = "failed to order allocations: the line was cut";
    assert_eq!(trouble.as_deref(), Some(wanted), "whatever lists say");

    site.cluster.set(|now| now.arrives_late = false);
    site.until("it is found by its name", |held| {
        waits_as(held, "job-A1") && waits_as(held, "job-A2")
    })
    .await;
    assert_eq!(site.cluster.orders(), 1);
    site.end().await;
}

#[tokio::test]
async fn the_words_of_an_unclear_answer_are_told_until_the_order_is_found() {
    let mut site = Site::new().await;
    site.cluster.set(|now| {
        now.answer = Answer::IsLost;
        now.lists_wait = true;
    });
    site.want(1).await;
    site.carry(FIRST);
    within(async {
        while site.standings.of(POOL).trouble.is_none() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let trouble = site.standings.of(POOL).trouble.unwrap();
    assert_eq!(trouble, "failed to order allocations: the line was cut");
    site.cluster.set(|now| now.lists_wait = false);
    site.until("it is found", |held| waits_as(held, "job-A1"))
        .await;
    site.cluster.lists(2).await;
    assert_eq!(site.standings.of(POOL).trouble, None);
    site.end().await;
}

#[tokio::test]
async fn a_provider_is_asked_for_one_thing_at_a_time() {
    let mut site = Site::new().await;
    site.cluster.set(|now| now.orders_wait = true);
    // Two orders are there before anybody carries them.
    site.want(1).await;
    site.want(3).await;
    site.carry(FIRST);
    site.cluster.ordered(1).await;
    site.cluster.set(|now| now.orders_wait = false);
    site.until("all wait", |held| {
        ["job-A1", "job-A2", "job-A3"]
            .iter()
            .all(|job| waits_as(held, job))
    })
    .await;
    let told = site.cluster.lists(2).await;
    assert_eq!((told.orders, told.most_at_once), (2, 1));
    site.end().await;
}

#[tokio::test]
async fn a_carrier_ends_in_the_middle_of_an_order_which_the_next_one_finds() {
    let mut site = Site::new().await;
    site.cluster.set(|now| {
        now.answer = Answer::NeverComes;
        now.lists_wait = true;
    });
    site.want(1).await;
    site.carry(FIRST);
    site.cluster.ordered(1).await;
    site.rest().await;

    let next = site.read(State::next_allocation).await;
    site.cluster.set(|now| now.answer = Answer::Takes);
    site.carry(next);
    site.cluster.busy().await;
    assert_eq!(site.cluster.orders(), 1, "only a list can tell");
    // Nor does a list that does not come keep it from ending.
    site.rest().await;

    site.cluster.set(|now| now.lists_wait = false);
    site.carry(next);
    site.until("it is found", |held| waits_as(held, "job-A1"))
        .await;
    assert_eq!(site.cluster.orders(), 1);
    site.end().await;
}
