//! What the coordinator does for a pool outside its core: it plans, places orders, asks for ends and
//! lists, and tells the core what it saw. As the real one does, step by step, and reborn with it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use coordinator_core::pool::{Held, Memory, Phase, Policy, PoolCommand, Seen, Sighting};
use coordinator_core::worker::Offer;
use coordinator_core::{AllocationId, Command, Span, Timestamp};

use crate::cluster::Arrival;
use crate::coordinator::{Asker, Request};
use crate::host::Offered;
use crate::scenario::{Moment, OrderFate, PoolPlan, Scenario, WorkerPlan};
use crate::world::{Checked, Ev, World, tell};

/// The pool of a world that has one.
pub(crate) const POOL: &str = "cluster";
/// Pause between two looks at what the core wants.
const LOOK_MS: u64 = 2_000;
/// How soon a list is asked for after an order.
const SOON_MS: u64 = 1_000;
/// How long a call may take before its answer counts as lost. What was sent arrives within
/// `coordinator_core::limits::ORDER_SETTLES` or never.
const CALL_MS: u64 = 10_000;
/// Longest pause between lists that fail.
const TROUBLE_MS: u64 = 120_000;

/// The part that is reborn with each coordinator.
#[derive(Default)]
pub(crate) struct Carrier {
    memory: Memory,
    fresh: AllocationId,
    begun: u64,
    next_list: u64,
    /// When the last list was asked for.
    asked: u64,
    pause: u64,
    lost: BTreeSet<AllocationId>,
    todo: VecDeque<Todo>,
    /// Number of the call whose answer is waited for.
    calling: Option<u64>,
    calls: u64,
    look_at: u64,
    /// When it was planned last, and rows of the journal then.
    planned: (u64, usize),
}

#[derive(Debug)]
enum Todo {
    Order {
        first: AllocationId,
        count: u32,
        ends: bool,
        exclude: Vec<Arc<str>>,
    },
    Ends,
    Look,
    Compare(Vec<Sighting>),
    Orphans(Vec<Box<str>>),
    Observe(Vec<(AllocationId, Seen)>),
}

/// What the cluster answers.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Ordered(u64, Vec<(u32, Box<str>)>),
    Refused(u64, u32),
    /// Nobody knows whether the order arrived.
    Unclear(u64),
    Ended,
    /// Nothing when no list could be had.
    Listed(Option<Vec<Sighting>>),
}

/// Gives what each machine of the cluster offers at least.
pub(crate) fn template(scenario: &Scenario) -> Option<Offered> {
    let mut nodes = scenario.workers.iter().filter(|plan| plan.pooled);
    let mut least = Offered::of(nodes.next()?);
    for WorkerPlan {
        slots,
        agents,
        labels,
        cpus,
        ..
    } in nodes
    {
        least.slots = least.slots.min(*slots);
        least.agents.retain(|agent| agents.contains(agent));
        least.labels.retain(|label| labels.contains(label));
        least.cpus = least.cpus.min(*cpus);
    }
    Some(least)
}

fn policy(plan: &PoolPlan, least: &Offered) -> Policy {
    let template = Offer {
        pool: POOL.into(),
        ..crate::plan::offer(least)
    };
    Policy {
        priority: 0,
        min: 0,
        max: plan.max,
        agents: Some(template.agents.clone()),
        template,
        workers: 1,
        idle_timeout: Span::from_ms(plan.idle_timeout_ms),
        backlog: plan.backlog,
        burst: plan.burst,
        join_timeout: Span::from_ms(plan.join_timeout_ms),
        walltime: None,
        failures_max: plan.failures_max,
        quarantine: plan.quarantine,
        stays: false,
    }
}

impl World<'_> {
    /// The coordinator has started: its pool is configured and carried again.
    pub(crate) fn start_pool(&mut self) {
        let Some(plan) = self.pool() else {
            return;
        };
        let Some(least) = template(self.scenario) else {
            return;
        };
        let pause = plan.poll_ms;
        let policies = BTreeMap::from([(POOL.into(), policy(plan, &least))]);
        self.coordinator.carrier = Carrier {
            fresh: self.coordinator.state.next_allocation(),
            begun: self.now,
            next_list: self.now,
            pause,
            look_at: u64::MAX,
            ..Carrier::default()
        };
        let configure = Command::Pool(PoolCommand::Configure { policies });
        self.request(Request::Command(Asker::Nobody, configure));
        let start = self.coordinator.start;
        self.push(self.now + 1, Ev::PlanPools(start));
        self.look_at_pool(self.now + 1);
    }

    /// Plans when something was committed, and every few seconds.
    pub(crate) fn plan_pools(&mut self, start: u64) {
        if start != self.coordinator.start || !self.coordinator.up {
            return;
        }
        self.push(self.now + 1_000, Ev::PlanPools(start));
        let (at, rows) = self.coordinator.carrier.planned;
        let now = self.store.rows.len();
        if rows == now && self.now < at + 5_000 {
            return;
        }
        self.coordinator.carrier.planned = (self.now, now);
        self.request(Request::Command(
            Asker::Nobody,
            Command::Pool(PoolCommand::Plan),
        ));
    }

    /// Lets the carrier look again.
    pub(crate) fn look_at_pool(&mut self, at: u64) {
        let carrier = &mut self.coordinator.carrier;
        if self.scenario.pool.is_some() && self.coordinator.up && at < carrier.look_at {
            carrier.look_at = at;
            let start = self.coordinator.start;
            self.push(at, Ev::Carry(start));
        }
    }

    /// The carrier does what is next.
    pub(crate) fn carry(&mut self, start: u64) -> Checked {
        let coordinator = &mut self.coordinator;
        let gone = start != coordinator.start || !coordinator.up;
        if gone || self.now < coordinator.carrier.look_at {
            return Ok(());
        }
        coordinator.carrier.look_at = u64::MAX;
        if coordinator.carrier.calling.is_some() {
            return Ok(());
        }
        // What it acts on is committed.
        if coordinator.pending.is_some() || !coordinator.inbox.is_empty() {
            self.look_at_pool(self.now + 3);
            return Ok(());
        }
        if coordinator.carrier.todo.is_empty() {
            let wanted = self.wanted();
            self.coordinator.carrier.todo = wanted;
        }
        while let Some(todo) = self.coordinator.carrier.todo.pop_front() {
            if self.do_next(todo)? {
                return Ok(());
            }
        }
        let next = self.coordinator.carrier.next_list;
        self.look_at_pool(next.min(self.now + LOOK_MS).max(self.now + 1));
        Ok(())
    }

    fn wanted(&self) -> VecDeque<Todo> {
        let state = &self.coordinator.state;
        let mut orders: BTreeMap<AllocationId, (u32, bool)> = BTreeMap::new();
        for held in state.allocations() {
            if held.external.is_none() && held.phase == Phase::Wanted {
                let order = orders.entry(held.first).or_insert((0, true));
                order.0 += 1;
                order.1 &= held.ending.is_some();
            }
        }
        for one in self.held().iter().filter(|one| one.has_arrived()) {
            orders.remove(&one.first);
        }
        let pool = state.pool(POOL);
        let exclude: Vec<Arc<str>> =
            pool.map_or(vec![], |pool| pool.quarantined.keys().cloned().collect());
        let orders = orders
            .into_iter()
            .map(|(first, (count, ends))| Todo::Order {
                first,
                count,
                ends,
                exclude: exclude.clone(),
            });
        orders.chain([Todo::Ends, Todo::Look]).collect()
    }

    fn held(&self) -> Vec<Held> {
        let mut hosts = self.coordinator.state.hosts_of_allocations();
        let held = self.coordinator.state.allocations();
        let held = held.map(|held| Held {
            id: held.id,
            first: held.first,
            external: held.external.clone(),
            joined: held.joined,
            hosts: hosts.remove(&held.id).unwrap_or_default(),
        });
        held.collect()
    }

    /// Tells whether it has to wait for something before it goes on.
    fn do_next(&mut self, todo: Todo) -> Result<bool, crate::Violation> {
        let now = self.now;
        let due = now >= self.coordinator.carrier.next_list;
        match todo {
            Todo::Order {
                first,
                count,
                ends,
                exclude,
            } => Ok(self.order(first, count, ends, exclude)),
            Todo::Ends => {
                let state = &self.coordinator.state;
                let at = self.coordinator.time(now);
                let ending = state
                    .allocations()
                    .filter(|held| state.may_end(held.id, at));
                let externals = ending.filter_map(|held| held.external.clone());
                let externals: Vec<Box<str>> = externals.collect();
                if externals.is_empty() || !due {
                    return Ok(false);
                }
                self.check_ends(&externals, false)?;
                self.end_jobs(externals);
                Ok(true)
            }
            Todo::Look => {
                if due {
                    self.coordinator.carrier.asked = now;
                    let nth = self.call();
                    let start = self.coordinator.start;
                    let takes = 1 + self.roll(63, start, nth) % 800;
                    self.push(now + takes, Ev::ListTaken(start, nth));
                }
                Ok(due)
            }
            Todo::Compare(sightings) => {
                self.compare_list(&sightings);
                Ok(false)
            }
            Todo::Orphans(externals) => {
                self.check_ends(&externals, true)?;
                self.end_jobs(externals);
                Ok(true)
            }
            Todo::Observe(allocations) => {
                if allocations.is_empty() {
                    return Ok(false);
                }
                self.observe(allocations);
                Ok(true)
            }
        }
    }

    fn observe(&mut self, allocations: Vec<(AllocationId, Seen)>) {
        let command = Command::Pool(PoolCommand::Observe { allocations });
        self.request(Request::Command(Asker::Nobody, command));
        self.look_at_pool(self.now + 1);
    }

    fn call(&mut self) -> u64 {
        let carrier = &mut self.coordinator.carrier;
        carrier.calls += 1;
        carrier.calling = Some(carrier.calls);
        carrier.calls
    }

    fn order(
        &mut self,
        first: AllocationId,
        count: u32,
        ends: bool,
        exclude: Vec<Arc<str>>,
    ) -> bool {
        let now = self.now;
        let carrier = &mut self.coordinator.carrier;
        let since = Timestamp::from_ms(now - carrier.begun);
        if carrier.memory.doubts(first) || carrier.memory.has_arrived(first) {
            return false;
        }
        if first < carrier.fresh && !carrier.lost.contains(&first) {
            carrier.memory.doubt(first, since);
            return false;
        }
        if ends {
            let detail = "it was not needed any more before it was ordered";
            self.observe(batch(first, count, &|| Seen::Gone {
                detail: detail.into(),
            }));
            return true;
        }
        let nth = self.call();
        let start = self.coordinator.start;
        let fate = self.order_fate();
        self.coordinator.ordered += 1;
        tell!(self, "{count} from {first} on are ordered: {fate:?}");
        let takes = 1 + self.roll(64, start, nth) % 2_000;
        let mut arrival = Arrival {
            first: first.0,
            count,
            exclude,
            answers: None,
        };
        let called = |answer| Ev::Called(start, nth, Box::new(answer));
        match fate {
            OrderFate::Taken => {
                arrival.answers = Some((start, nth));
                self.push(now + takes, Ev::OrderArrives(Box::new(arrival)));
            }
            OrderFate::Refused => {
                self.push(now + takes, called(Answer::Refused(first.0, count)));
            }
            OrderFate::AnswerLost => {
                self.push(now + takes, Ev::OrderArrives(Box::new(arrival)));
                self.push(now + CALL_MS, called(Answer::Unclear(first.0)));
            }
            OrderFate::NeverArrives => {
                self.push(now + CALL_MS, called(Answer::Unclear(first.0)));
            }
            OrderFate::Late { ms } => {
                let settles = coordinator_core::limits::ORDER_SETTLES.ms();
                let at = now + ms.min(settles - 500);
                self.push(at, Ev::OrderArrives(Box::new(arrival)));
                self.push(now + CALL_MS, called(Answer::Unclear(first.0)));
            }
        }
        self.moment(Moment::Ordered);
        true
    }

    fn order_fate(&self) -> OrderFate {
        if self.calm {
            return OrderFate::Taken;
        }
        let nth = usize::try_from(self.coordinator.ordered).unwrap_or(usize::MAX);
        let fates = self.pool().map_or(&[][..], |pool| &pool.orders);
        fates.get(nth).copied().unwrap_or(OrderFate::Taken)
    }

    fn end_jobs(&mut self, externals: Vec<Box<str>>) {
        let nth = self.call();
        let start = self.coordinator.start;
        let now = self.now;
        let roll = self.roll(65, start, nth);
        tell!(self, "the end of {externals:?} is asked for");
        let called = Ev::Called(start, nth, Box::new(Answer::Ended));
        if roll.is_multiple_of(8) && !self.calm {
            // It does not arrive, and is asked for again.
            self.push(now + CALL_MS, called);
            return;
        }
        let takes = 1 + (roll >> 8) % 1_000;
        self.push(now + takes, Ev::EndArrives(externals));
        self.push(now + takes + 1 + (roll >> 20) % 1_000, called);
    }

    /// The cluster makes the list that was asked for.
    pub(crate) fn list_taken(&mut self, start: u64, nth: u64) {
        let roll = self.roll(66, start, nth);
        let fails = roll.is_multiple_of(12) && !self.calm;
        let listed = (!fails).then(|| self.list());
        let takes = match (roll >> 40) % 6 {
            _ if fails => CALL_MS,
            0 => (roll >> 8) % CALL_MS,
            _ => 1 + (roll >> 8) % 900,
        };
        let answer = Box::new(Answer::Listed(listed));
        self.push(self.now + takes, Ev::Called(start, nth, answer));
    }

    /// The answer to a call comes.
    pub(crate) fn called(&mut self, start: u64, nth: u64, answer: Answer) {
        let now = self.now;
        let coordinator = &mut self.coordinator;
        if start != coordinator.start || !coordinator.up {
            return;
        }
        let carrier = &mut coordinator.carrier;
        if carrier.calling != Some(nth) {
            return;
        }
        carrier.calling = None;
        let soon = carrier.next_list.min(now + SOON_MS);
        let poll = self.scenario.pool.as_ref().map_or(0, |pool| pool.poll_ms);
        match answer {
            Answer::Ordered(first, externals) => {
                carrier.next_list = soon;
                let seen = externals.into_iter().map(|(index, external)| {
                    let id = AllocationId(first + u64::from(index));
                    (id, Seen::Queued { external })
                });
                carrier.todo.push_front(Todo::Observe(seen.collect()));
            }
            Answer::Refused(first, count) => {
                carrier.next_list = soon;
                let seen = batch(AllocationId(first), count, &|| Seen::Refused {
                    detail: "no more of them".into(),
                });
                carrier.todo.push_front(Todo::Observe(seen));
            }
            Answer::Unclear(first) => {
                carrier.next_list = soon;
                let since = Timestamp::from_ms(now - carrier.begun);
                carrier.memory.doubt(AllocationId(first), since);
            }
            Answer::Ended => {}
            Answer::Listed(None) => {
                carrier.pause = (carrier.pause * 2).min(TROUBLE_MS.max(poll));
                carrier.next_list = now + carrier.pause;
            }
            Answer::Listed(Some(sightings)) => {
                carrier.pause = poll;
                carrier.next_list = now + poll;
                carrier.todo.push_front(Todo::Compare(sightings));
            }
        }
        self.look_at_pool(now);
    }

    fn compare_list(&mut self, sightings: &[Sighting]) {
        let held = self.held();
        let carrier = &mut self.coordinator.carrier;
        let since = Timestamp::from_ms(carrier.asked - carrier.begun);
        let judgement = carrier.memory.compare(&held, sightings, since);
        carrier.lost.extend(judgement.lost);
        carrier.todo.push_front(Todo::Observe(judgement.seen));
        if !judgement.orphans.is_empty() {
            carrier.todo.push_front(Todo::Orphans(judgement.orphans));
        }
    }
}

fn batch(first: AllocationId, count: u32, seen: &dyn Fn() -> Seen) -> Vec<(AllocationId, Seen)> {
    let ids = (0..u64::from(count)).map(|nth| AllocationId(first.0 + nth));
    ids.map(|id| (id, seen())).collect()
}
