//! Pools of worlds: how they are made from seeds and made simpler, and what must be true of them.

use std::collections::BTreeMap;

use coordinator_core::WorkerId;
use coordinator_core::pool::{AllocationEnd, EndCause, PoolEvent};
use coordinator_core::worker::Offer;

use crate::random::{Random, mix};
use crate::reference::{Judged, ensure};
use crate::scenario::{
    CrashPoint, Happening, JobFate, JobKind, Moment, OrderFate, PoolPlan, Scenario, What, When,
    WorkerPlan,
};
use crate::world::{Checked, World};

/// How many of a thousand worlds have a pool, of those that are about nothing else.
const SHARE: u64 = 220;
/// How many of a thousand of these are small, with everything aimed at orders.
const AIMED: u64 = 300;

/// Gives some worlds a pool: their honest workers become machines of its cluster, all but the first
/// in some of them. Drawn from a stream of its own, so that all other worlds stay as they are.
pub(crate) fn add(scenario: &mut Scenario) {
    let mut random = Random::new(mix(scenario.seed ^ 0x0c10_57e2));
    if !random.per_mille(SHARE) {
        return;
    }
    let Some(best) = scenario.workers.first().cloned() else {
        return;
    };
    let keeps = usize::from(random.per_mille(400));
    let slots = random.between(1, 3) as u32;
    let node = |worker: &WorkerPlan| WorkerPlan {
        slots,
        agents: best.agents.clone(),
        labels: best.labels.clone(),
        cpus: best.cpus,
        pooled: true,
        ..worker.clone()
    };
    let honest = scenario.workers.iter_mut().skip(keeps);
    for worker in honest.filter(|worker| worker.lies_per_mille == 0) {
        *worker = node(worker);
    }
    let most = random.between(1, 4) as u32;
    for id in 100..100 + most {
        scenario.workers.push(WorkerPlan { id, ..node(&best) });
    }
    scenario.pool = Some(pool(&mut random));
    if random.per_mille(AIMED) {
        aim(scenario, &mut random);
    } else {
        for _ in 0..random.below(4) {
            scenario.happenings.push(trouble(&mut random));
        }
    }
}

fn pool(random: &mut Random) -> PoolPlan {
    let bad = random.pick(&[0, 200, 500, 900]).unwrap_or(200);
    PoolPlan {
        max: random.between(1, 6) as u32,
        idle_timeout_ms: random.wide(1_000, 120_000),
        join_timeout_ms: random.wide(10_000, 120_000),
        backlog: random.between(1, 6) as u32,
        burst: random.between(1, 6) as u32,
        failures_max: random.between(1, 4) as u32,
        quarantine: random.per_mille(500),
        poll_ms: random.wide(1_000, 30_000),
        orders: (0..random.between(1, 12))
            .map(|_| order_fate(random, bad))
            .collect(),
        jobs: (0..random.between(1, 16))
            .map(|_| job_fate(random, bad))
            .collect(),
    }
}

fn order_fate(random: &mut Random, bad: u64) -> OrderFate {
    if !random.per_mille(bad) {
        return OrderFate::Taken;
    }
    let ms = random.between(1, 30_000);
    let fates = [
        OrderFate::Refused,
        OrderFate::AnswerLost,
        OrderFate::NeverArrives,
        OrderFate::Late { ms },
    ];
    random.pick(&fates).unwrap_or(OrderFate::Taken)
}

fn job_fate(random: &mut Random, bad: u64) -> JobFate {
    let starts_ms = random.wide(1, 60_000);
    let ends_ms = random.wide(1, 30_000) - 1;
    let after_ms = random.wide(1, 200_000);
    let kinds = [
        JobKind::NeverStarts,
        JobKind::Twice,
        JobKind::DiesYoung { after_ms },
        JobKind::Requeued {
            after_ms,
            overlap_ms: random.wide(1, 400_000) - 1,
        },
        JobKind::Forgotten {
            after_ms: random.wide(1, 100_000) - 1,
            for_ms: random.wide(1_000, 200_000),
        },
        JobKind::NeverJoins,
    ];
    let kind = if random.per_mille(bad) {
        random.pick(&kinds).unwrap_or(JobKind::Good)
    } else {
        JobKind::Good
    };
    JobFate {
        starts_ms,
        ends_ms,
        kind,
    }
}

const MOMENTS: [Moment; 6] = [
    Moment::Wanted,
    Moment::Ordered,
    Moment::Ordered,
    Moment::JobBegan,
    Moment::AllocationEnding,
    Moment::Granted,
];

fn trouble(random: &mut Random) -> Happening {
    let what = if random.per_mille(250) {
        What::PausePool {
            paused: random.per_mille(500),
        }
    } else {
        crash(random)
    };
    Happening {
        when: When::After {
            moment: random.pick(&MOMENTS).unwrap_or(Moment::Wanted),
            nth: random.below(4) as u32,
            ms: random.wide(1, 20_000) - 1,
        },
        what,
    }
}

fn crash(random: &mut Random) -> What {
    let points = [
        CrashPoint::Now,
        CrashPoint::Now,
        CrashPoint::BeforeAppend,
        CrashPoint::AfterAppend,
    ];
    What::CoordinatorCrash {
        point: random.pick(&points).unwrap_or(CrashPoint::Now),
        down_ms: random.wide(50, 100_000),
        wall_jump_ms: 0,
    }
}

/// A small world whose coordinator dies again and again between what it wants and what it hears.
fn aim(scenario: &mut Scenario, random: &mut Random) {
    scenario.happenings.clear();
    scenario.weather.clear();
    scenario.plans.truncate(1);
    for plan in &mut scenario.plans {
        plan.tasks.truncate(8);
        plan.integrate = None;
    }
    if let Some(pool) = &mut scenario.pool {
        pool.idle_timeout_ms = random.wide(500, 20_000);
        pool.max = random.between(2, 4) as u32;
    }
    for _ in 0..random.between(1, 5) {
        let mut happening = trouble(random);
        if let When::After { moment, nth, .. } = &mut happening.when {
            *moment = random
                .pick(&[Moment::Wanted, Moment::Ordered])
                .unwrap_or(Moment::Ordered);
            *nth %= 3;
        }
        scenario.happenings.push(happening);
    }
}

/// Offers variants of a scenario whose pool is simpler in one thing.
pub(crate) fn simpler(pool: &PoolPlan, offer: &mut impl FnMut(&dyn Fn(&mut Scenario))) {
    let with = |scenario: &mut Scenario, change: &dyn Fn(&mut PoolPlan)| {
        scenario.pool.iter_mut().for_each(change);
    };
    offer(&|s| with(s, &|pool| pool.max = 1));
    offer(&|s| with(s, &|pool| pool.quarantine = false));
    for len in 0..pool.orders.len() {
        offer(&|s| with(s, &|pool| pool.orders.truncate(len)));
    }
    for len in 0..pool.jobs.len() {
        offer(&|s| with(s, &|pool| pool.jobs.truncate(len)));
    }
    for nth in 0..pool.orders.len() {
        offer(&|s| {
            with(s, &|pool| {
                let fate = pool.orders.iter_mut().skip(nth).take(1);
                fate.for_each(|fate| *fate = OrderFate::Taken);
            });
        });
    }
    for nth in 0..pool.jobs.len() {
        let with_job = |s: &mut Scenario, change: &dyn Fn(&mut JobFate)| {
            with(s, &|pool| {
                pool.jobs.iter_mut().skip(nth).take(1).for_each(change);
            });
        };
        offer(&|s| with_job(s, &|fate| fate.kind = JobKind::Good));
        offer(&|s| with_job(s, &|fate| fate.starts_ms /= 2));
        offer(&|s| with_job(s, &|fate| fate.ends_ms /= 2));
    }
}

#[derive(Default)]
struct Allocation {
    ending: Option<EndCause>,
    external: Option<Box<str>>,
}

/// What the journal has said of the pool.
#[derive(Default)]
pub(crate) struct Known {
    pub(crate) max: u32,
    next: u64,
    allocations: BTreeMap<u64, Allocation>,
    workers: BTreeMap<WorkerId, u64>,
}

impl Known {
    pub(crate) fn joins(&mut self, worker: &WorkerId, offer: &Offer) {
        let Some(id) = offer.allocation else {
            return;
        };
        self.workers.insert(worker.clone(), id.0);
        // Who comes late all the same is as good as one in time.
        if let Some(held) = self.allocations.get_mut(&id.0)
            && held.ending == Some(EndCause::NeverJoined)
        {
            held.ending = None;
        }
    }

    /// A worker whose allocation is to end gets nothing.
    pub(crate) fn granted(&self, lease: u64, worker: &WorkerId) -> Judged {
        let Some(id) = self.workers.get(worker) else {
            return Ok(());
        };
        let held = self.allocations.get(id);
        let fair = held.is_some_and(|held| held.ending.is_none());
        ensure(fair, "what is to end gets no work", || {
            let is = held.map(|held| held.ending);
            format!("lease {lease} goes to {worker}, whose allocation A{id} is {is:?}")
        })
    }

    pub(crate) fn see(&mut self, event: &PoolEvent) -> Judged {
        match event {
            PoolEvent::AllocationsWanted { first, count, .. } => {
                let fresh = first.0 >= self.next;
                self.next = first.0 + u64::from(*count);
                ensure(fresh, "ids of allocations only grow", || format!("{first}"))?;
                let stay = self.allocations.values();
                let stay = stay.filter(|held| held.ending.is_none()).count();
                let wanted = u64::from(*count) + stay as u64;
                for id in first.0..self.next {
                    self.allocations.insert(id, Allocation::default());
                }
                let max = self.max;
                ensure(
                    wanted <= u64::from(max),
                    "a pool has no more than its maximum",
                    || format!("{wanted} of {max} from {first} on"),
                )
            }
            PoolEvent::AllocationQueued {
                allocation,
                external,
            }
            | PoolEvent::AllocationRunning {
                allocation,
                external,
                ..
            } => {
                let held = self.allocations.get_mut(&allocation.0);
                let known = held.is_some();
                if let Some(held) = held {
                    held.external = Some(external.clone());
                }
                ensure(known, "events name what there is", || {
                    format!("{allocation}")
                })
            }
            PoolEvent::AllocationEnding {
                allocation, cause, ..
            } => {
                let held = self.allocations.get_mut(&allocation.0);
                let fair = held.is_some_and(|held| held.ending.replace(*cause).is_none());
                ensure(fair, "an allocation is ended once", || {
                    format!("{allocation}")
                })
            }
            PoolEvent::AllocationEnded { allocation, .. } => {
                let held = self.allocations.remove(&allocation.0);
                ensure(held.is_some(), "an allocation is ended once", || {
                    format!("{allocation}")
                })
            }
            PoolEvent::AllocationProven { .. }
            | PoolEvent::PoolPaused { .. }
            | PoolEvent::PoolResumed { .. }
            | PoolEvent::HostQuarantined { .. }
            | PoolEvent::HostReleased { .. }
            | PoolEvent::PoolForgotten { .. } => Ok(()),
        }
    }
}

impl World<'_> {
    /// Jobs are ended only for a reason, and not under work that counts.
    pub(crate) fn check_ends(&self, externals: &[Box<str>], orphans: bool) -> Checked {
        let known = &self.reference.pool;
        for external in externals {
            let Some(id) = self.allocation_of(external) else {
                let what = format!("{external} was never made");
                return Err(self.violation("jobs are ended for a reason", what));
            };
            let Some(held) = known.allocations.get(&id) else {
                continue;
            };
            let other = held.external.as_deref() != Some(&**external);
            if orphans && other && (self.copies(id) > 1 || held.external.is_some()) {
                continue;
            }
            self.ensure(held.ending.is_some(), "jobs are ended for a reason", || {
                format!("{external} is A{id}, which is not to end")
            })?;
            let leases = self.reference.open.iter();
            let mut leases = leases.filter(|lease| {
                let lease = self.reference.leases.get(lease);
                lease.is_some_and(|lease| known.workers.get(&lease.worker) == Some(&id))
            });
            let works = leases.next();
            let late = held.ending == Some(EndCause::NeverJoined);
            self.ensure(
                works.is_none() || late,
                "no job is ended under its work",
                || format!("{external} is A{id}, which has lease {works:?}"),
            )?;
        }
        Ok(())
    }

    /// What surely runs or waits stays in the inventory.
    pub(crate) fn check_inventory(&self, event: &PoolEvent) -> Checked {
        let PoolEvent::AllocationEnded {
            allocation, end, ..
        } = event
        else {
            return Ok(());
        };
        let forgiven = *end == AllocationEnd::Gone && self.died_young(*allocation);
        self.ensure(!forgiven, "what dies young was a failed start", || {
            format!("{allocation} is said to be {}", end.name())
        })?;
        let held = self.store.shadow.allocation(*allocation);
        let external = held.and_then(|held| held.external.clone());
        let lives = external.filter(|external| self.surely_lives(external));
        self.ensure(lives.is_none(), "what lives stays in the inventory", || {
            format!("{allocation} is said to have ended, and {lives:?} lives")
        })
    }
}
