//! Pools: what is started for which work, and what becomes of allocations.

mod bounds;
mod forgetting;
mod homes;
mod starts;
mod telling;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::world::{Plan, World, made, offer, plan, text, worker};
use crate::Command;
use crate::command::Report;
use crate::event::EventKind;
use crate::failure::FailureClass;
use crate::ids::AllocationId;
use crate::pool::{
    AllocationEnd, EndCause, Hindrance, Policy, PoolCommand, PoolEvent, Prospect, Seen, outlook,
    prospects,
};
use crate::schedule::Misfit;
use crate::time::Span;
use crate::worker::Offer;

const POOL: &str = "cluster";

fn template(slots: u32) -> Offer {
    Offer {
        pool: text(POOL),
        slots,
        ..Offer::default()
    }
}

fn policy(max: u32) -> Policy {
    Policy {
        priority: 0,
        min: 0,
        max,
        template: template(2),
        agents: None,
        workers: 1,
        idle_timeout: Span::from_secs(60),
        backlog: 100,
        burst: 100,
        join_timeout: Span::from_secs(300),
        walltime: None,
        failures_max: 3,
        quarantine: true,
        stays: false,
    }
}

fn ids(numbers: &[u64]) -> Vec<AllocationId> {
    numbers.iter().copied().map(AllocationId).collect()
}

struct Cluster(World);

impl Cluster {
    fn new(policy: Policy) -> Self {
        let mut world = World::new();
        world
            .state
            .set_pools(BTreeMap::from([(text(POOL), policy)]));
        Self(world)
    }

    fn pool(&mut self, command: PoolCommand) -> Vec<PoolEvent> {
        let events = self.0.act(&Command::Pool(command)).into_iter();
        let events = events.filter_map(|event| match event.kind {
            EventKind::Pool(event) => Some(event),
            _ => None,
        });
        events.collect()
    }

    fn plan(&mut self) -> Vec<PoolEvent> {
        self.pool(PoolCommand::Plan)
    }

    /// Plans, and gives how many allocations are wanted by it.
    fn wanted(&mut self) -> u32 {
        let events = self.plan().into_iter();
        let counts = events.filter_map(|event| match event {
            PoolEvent::AllocationsWanted { count, .. } => Some(count),
            _ => None,
        });
        counts.sum()
    }

    fn ending(&mut self) -> Vec<(u64, EndCause)> {
        let events = self.plan().into_iter();
        let ending = events.filter_map(|event| match event {
            PoolEvent::AllocationEnding {
                allocation, cause, ..
            } => Some((allocation.0, cause)),
            _ => None,
        });
        ending.collect()
    }

    fn see(&mut self, allocations: &[u64], seen: impl Fn(u64) -> Seen) -> Vec<PoolEvent> {
        let allocations = allocations.iter();
        let allocations = allocations.map(|id| (AllocationId(*id), seen(*id)));
        self.pool(PoolCommand::Observe {
            allocations: allocations.collect(),
        })
    }

    fn run(&mut self, allocations: &[u64]) -> Vec<PoolEvent> {
        self.see(allocations, |id| Seen::Running {
            external: format!("job{id}").into(),
            host: format!("n{id}").into(),
        })
    }

    fn gone(&mut self, allocation: u64) -> Vec<PoolEvent> {
        self.see(&[allocation], |_| Seen::Gone {
            detail: "no such job".into(),
        })
    }

    /// The worker of a running allocation joins.
    fn join(&mut self, allocation: u64) -> String {
        let name = format!("w{allocation}");
        let offer = Offer {
            pool: text(POOL),
            allocation: Some(AllocationId(allocation)),
            host: format!("n{allocation}").into(),
            ..offer(2)
        };
        self.0.hello(&name, 1, offer);
        self.0.beat(&name);
        name
    }

    fn pass(&mut self, secs: u64, names: &[&str]) {
        self.0.pass_beating(Span::from_secs(secs), names);
    }

    fn inventory(&self) -> Vec<u64> {
        self.0.state.allocations().map(|held| held.id.0).collect()
    }
}

fn independent(count: usize) -> Plan {
    let names: Vec<String> = (0..count).map(|n| format!("t{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    plan(&names)
}

#[test]
fn as_many_allocations_are_wanted_as_the_waiting_work_fills() {
    let mut cluster = Cluster::new(policy(10));
    assert_eq!(cluster.wanted(), 0, "there is no work");
    cluster.0.submit(independent(5));
    assert_eq!(cluster.wanted(), 3, "two slots each");
    assert_eq!(cluster.wanted(), 0, "what is on its way counts");
}

#[test]
fn blocked_work_starts_nothing() {
    let mut cluster = Cluster::new(policy(10));
    cluster
        .0
        .submit(plan(&["a", "b: a", "c: a", "d: a", "e: a"]));
    assert_eq!(cluster.wanted(), 1);
}

#[test]
fn work_that_claims_the_same_path_counts_once() {
    let mut cluster = Cluster::new(policy(10));
    let tasks = independent(6);
    let tasks = tasks.each(|task| task.paths = vec![text("src/db")]);
    cluster.0.submit(tasks.paths(5, &["src"]));
    assert_eq!(cluster.wanted(), 1);
}

#[test]
fn a_run_counts_up_to_what_it_runs_at_once() {
    let mut cluster = Cluster::new(policy(10));
    cluster.0.submit(independent(9).parallel(4));
    assert_eq!(cluster.wanted(), 2);
}

#[test]
fn nothing_is_started_beside_a_free_slot() {
    let mut cluster = Cluster::new(policy(10));
    cluster.0.join("local", 4);
    cluster.0.submit(independent(4));
    assert_eq!(cluster.wanted(), 0);
    cluster.0.submit(independent(3).named("second"));
    assert_eq!(cluster.wanted(), 2);
}

#[test]
fn a_worker_that_is_gone_for_a_moment_still_counts() {
    let mut cluster = Cluster::new(policy(10));
    cluster.0.join("local", 2);
    cluster.0.close("local");
    cluster.0.submit(independent(2));
    assert_eq!(cluster.wanted(), 0);
    cluster.0.pass(Span::from_secs(80));
    assert_eq!(cluster.wanted(), 1);
}

#[test]
fn what_is_ready_soon_counts_beyond_the_slots_that_become_free_for_it() {
    let mut cluster = Cluster::new(policy(10));
    let fan = plan(&["a", "b: a", "c: a", "d: a", "e: a", "f: a"]);
    let fan = fan.each(|task| task.profile.requirement.expected = Span::from_secs(100));
    cluster.0.submit(fan);
    cluster.wanted();
    cluster.run(&[1]);
    cluster.join(1);
    let lease = cluster.0.only();
    cluster.0.started(&lease);
    assert_eq!(cluster.wanted(), 0, "it takes 100 s more");
    cluster.pass(50, &["w1"]);
    assert_eq!(cluster.wanted(), 2, "five soon, two of them on this worker");
}

#[test]
fn a_need_that_the_pool_does_not_have_starts_nothing_and_is_explained() {
    let mut cluster = Cluster::new(policy(10));
    let tasks = independent(1).each(|task| {
        task.profile.requirement.labels = [text("gpu")].into();
    });
    cluster.0.submit(tasks);
    assert_eq!(cluster.wanted(), 0);
    let run = cluster.0.state.runs().next().unwrap();
    let requirement = run.profiles[0].requirement.clone();
    let now = cluster.0.now;
    assert_eq!(
        prospects(&cluster.0.state, now, &requirement),
        [(text(POOL), Prospect::Lacks(Misfit::Label(text("gpu"))))]
    );
    let outlooks = outlook(&cluster.0.state, now);
    assert_eq!(outlooks[0].lacks, [(Misfit::Label(text("gpu")), 1)].into());
}

#[test]
fn work_that_takes_longer_than_the_machines_stay_starts_nothing() {
    let walltime = Some(Span::from_secs(3_600));
    let mut cluster = Cluster::new(Policy {
        walltime,
        ..policy(10)
    });
    let long = |secs| {
        move |task: &mut crate::plan::TaskSpec| {
            task.profile.requirement.expected = Span::from_secs(secs);
        }
    };
    cluster.0.submit(independent(1).each(long(3_490)));
    assert_eq!(cluster.wanted(), 0);
    cluster
        .0
        .submit(independent(1).named("second").each(long(3_480)));
    assert_eq!(cluster.wanted(), 1);
}

#[test]
fn work_is_not_leased_to_a_machine_that_goes_away_before_it_is_done() {
    let mut cluster = Cluster::new(policy(10));
    let tasks = independent(1);
    let tasks = tasks.each(|task| task.profile.requirement.expected = Span::from_secs(600));
    cluster.0.submit(tasks);
    cluster.wanted();
    cluster.run(&[1]);
    let beat = |cluster: &mut Cluster, left| {
        let Some(Command::Heartbeat(mut beat)) = cluster.0.heartbeat("w1", vec![]) else {
            panic!("no session");
        };
        beat.time_left = Some(Span::from_secs(left));
        cluster.0.act(&Command::Heartbeat(beat));
    };
    let offer = Offer {
        pool: text(POOL),
        allocation: Some(AllocationId(1)),
        ..offer(2)
    };
    cluster.0.hello("w1", 1, offer);
    beat(&mut cluster, 650);
    assert!(cluster.0.live().is_empty());
    beat(&mut cluster, 660);
    assert_eq!(cluster.0.live().len(), 1);
}

#[test]
fn a_pool_is_bounded_by_its_maximum_its_backlog_and_its_burst() {
    let cases = [
        (
            Policy {
                max: 4,
                ..policy(0)
            },
            4,
            Hindrance::Max { max: 4 },
        ),
        (
            Policy {
                backlog: 3,
                ..policy(9)
            },
            3,
            Hindrance::Backlog { backlog: 3 },
        ),
        (
            Policy {
                burst: 2,
                ..policy(9)
            },
            2,
            Hindrance::Burst { burst: 2 },
        ),
    ];
    for (policy, count, hindrance) in cases {
        let mut cluster = Cluster::new(policy);
        cluster.0.submit(independent(40));
        assert_eq!(cluster.wanted(), count);
        let outlooks = outlook(&cluster.0.state, cluster.0.now);
        assert_eq!(outlooks[0].hindrance, Some(hindrance));
    }
}

#[test]
fn what_runs_makes_room_in_the_backlog() {
    let mut cluster = Cluster::new(Policy {
        backlog: 2,
        ..policy(9)
    });
    cluster.0.submit(independent(40));
    assert_eq!(cluster.wanted(), 2);
    cluster.see(&[1, 2], |id| Seen::Queued {
        external: format!("job{id}").into(),
    });
    assert_eq!(cluster.wanted(), 0);
    cluster.run(&[1]);
    assert_eq!(cluster.wanted(), 1);
}

#[test]
fn a_minimum_is_there_without_work_and_stays() {
    let mut cluster = Cluster::new(Policy {
        min: 2,
        ..policy(5)
    });
    assert_eq!(cluster.wanted(), 2);
    cluster.run(&[1, 2]);
    let names = [cluster.join(1), cluster.join(2)];
    cluster.plan();
    cluster.pass(600, &[&names[0], &names[1]]);
    assert_eq!(cluster.ending(), []);
}

#[test]
fn an_allocation_that_nothing_needs_is_ended_after_its_idle_timeout_and_not_before() {
    let mut cluster = Cluster::new(policy(10));
    cluster.0.submit(independent(2));
    cluster.wanted();
    cluster.run(&[1]);
    cluster.join(1);
    for lease in cluster.0.live() {
        cluster.0.started(&lease);
        cluster.0.succeed(&lease);
    }
    assert_eq!(cluster.ending(), [], "idle from now on");
    cluster.pass(50, &["w1"]);
    assert_eq!(cluster.ending(), []);
    cluster.0.submit(independent(1).named("second"));
    assert_eq!(cluster.ending(), [], "it works");
    let lease = cluster.0.only();
    cluster.0.started(&lease);
    cluster.0.succeed(&lease);
    assert_eq!(cluster.ending(), []);
    cluster.pass(59, &["w1"]);
    assert_eq!(cluster.ending(), [], "a lull is no end");
    cluster.pass(1, &["w1"]);
    assert_eq!(cluster.ending(), [(1, EndCause::Idle)]);
    assert!(cluster.0.state.may_end(AllocationId(1), cluster.0.now));
    cluster.0.submit(independent(1).named("third"));
    assert!(cluster.0.live().is_empty(), "it gets nothing any more");
    assert_eq!(cluster.wanted(), 1, "and does not count");
    cluster.0.close("w1");
    let ended = cluster.gone(1);
    assert!(
        matches!(
            ended[..],
            [PoolEvent::AllocationEnded {
                end: AllocationEnd::Released,
                ..
            }]
        ),
        "{ended:?}"
    );
    assert_eq!(cluster.inventory(), [2]);
}

#[test]
fn what_still_waits_in_the_queue_is_taken_back_when_its_work_is_gone() {
    let mut cluster = Cluster::new(policy(10));
    let run = cluster.0.submit(independent(3));
    cluster.wanted();
    cluster.see(&[1, 2], |id| Seen::Queued {
        external: format!("job{id}").into(),
    });
    cluster.0.cancel(crate::command::Target::Run(run));
    cluster.plan();
    cluster.pass(60, &[]);
    assert_eq!(cluster.ending(), [(2, EndCause::Idle), (1, EndCause::Idle)]);
}

#[test]
fn the_inventory_survives_a_restart() {
    let mut cluster = Cluster::new(policy(10));
    cluster.0.submit(independent(4));
    cluster.wanted();
    cluster.run(&[1]);
    let before = cluster.0.state.image();
    let after = crate::State::from_image(before.clone(), cluster.0.now).unwrap();
    assert_eq!(after.image(), before);
    assert_eq!(after.allocations().len(), 2);
}

#[test]
fn starts_that_fail_are_waited_after_and_pause_the_pool_at_last() {
    let mut cluster = Cluster::new(policy(10));
    cluster.0.submit(independent(4));
    let mut first = 1;
    for _ in 0..2 {
        assert_eq!(cluster.wanted(), 2);
        let events = cluster.see(&[first, first + 1], |_| Seen::Refused {
            detail: "invalid account".into(),
        });
        assert_eq!(events.len(), 2, "a batch counts once: {events:?}");
        assert_eq!(cluster.wanted(), 0, "it is given time");
        cluster.pass(10, &[]);
        first += 2;
    }
    assert_eq!(cluster.wanted(), 2);
    let events = cluster.see(&[first, first + 1], |_| Seen::Refused {
        detail: "invalid account".into(),
    });
    let [.., PoolEvent::PoolPaused { reason, .. }, _] = &events[..] else {
        panic!("not paused: {events:?}");
    };
    assert!(reason.contains("invalid account"), "{reason}");
    cluster.pass(3_600, &[]);
    assert_eq!(cluster.wanted(), 0);
    let by: Arc<str> = text("me");
    let pool = text(POOL);
    cluster.pool(PoolCommand::Resume { pool, by });
    assert_eq!(cluster.wanted(), 2);
}

#[test]
fn an_allocation_whose_worker_never_joins_is_ended_and_counted() {
    let mut cluster = Cluster::new(policy(10));
    cluster.0.submit(independent(2));
    cluster.wanted();
    cluster.see(&[1], |_| Seen::Queued {
        external: "job1".into(),
    });
    cluster.pass(100_000, &[]);
    assert_eq!(cluster.ending(), [], "queues may be long");
    cluster.run(&[1]);
    cluster.pass(301, &[]);
    assert_eq!(cluster.ending(), [(1, EndCause::NeverJoined)]);
    cluster.gone(1);
    let pool = cluster.0.state.pool(POOL).unwrap();
    assert_eq!(pool.failures, 1);
    let why = "it runs for 301 s and no worker has joined; it ended so: no such job";
    assert_eq!(&*pool.last_failure, why);
}

#[test]
fn the_time_to_join_in_does_not_pass_while_no_coordinator_is_there() {
    let mut cluster = Cluster::new(policy(10));
    cluster.0.submit(independent(2));
    cluster.wanted();
    cluster.run(&[1]);
    cluster.pass(301, &[]);
    let now = cluster.0.now;
    let epoch = crate::ids::Epoch(2);
    drop(cluster.0.state.start(now, epoch));
    assert_eq!(cluster.ending(), []);
    cluster.pass(301, &[]);
    assert_eq!(cluster.ending(), [(1, EndCause::NeverJoined)]);
}

#[test]
fn an_allocation_that_its_provider_forgot_stays_while_its_worker_is_heard() {
    let mut cluster = Cluster::new(policy(10));
    cluster.0.submit(independent(2));
    cluster.wanted();
    cluster.run(&[1]);
    let name = cluster.join(1);
    cluster.pass(60, &[&name]);
    assert_eq!(cluster.gone(1), []);
    cluster.0.close(&name);
    assert_eq!(cluster.gone(1), [], "it holds leases and may come back");
    cluster.pass(100, &[]);
    let ended = cluster.gone(1);
    assert!(
        matches!(
            ended[..],
            [PoolEvent::AllocationEnded {
                end: AllocationEnd::Gone,
                ..
            }]
        ),
        "{ended:?}"
    );
}

#[test]
fn a_refusal_ends_no_allocation_whose_worker_is_there() {
    let mut cluster = Cluster::new(policy(10));
    cluster.0.submit(independent(2));
    cluster.wanted();
    let name = cluster.join(1);
    let refuse = |cluster: &mut Cluster| {
        cluster.see(&[1], |_| Seen::Refused {
            detail: "no more of them".into(),
        })
    };
    assert_eq!(refuse(&mut cluster), [], "another try has arrived");
    cluster.0.close(&name);
    cluster.pass(100, &[]);
    assert_eq!(refuse(&mut cluster).len(), 1);
}

#[test]
fn an_allocation_that_is_queued_again_may_join_again() {
    let mut cluster = Cluster::new(policy(10));
    cluster.0.submit(independent(2));
    cluster.wanted();
    cluster.run(&[1]);
    let name = cluster.join(1);
    cluster.0.close(&name);
    cluster.see(&[1], |_| Seen::Queued {
        external: "job1".into(),
    });
    let held = cluster.0.state.allocation(AllocationId(1)).unwrap();
    assert_eq!((held.requeues, held.joined), (1, false));
    cluster.pass(100, &[]);
    assert_eq!(cluster.wanted(), 0, "it is on its way again");
}

#[test]
fn an_allocation_that_is_queued_again_counts_at_once_though_its_worker_may_be_back() {
    let mut cluster = Cluster::new(policy(1));
    cluster.0.submit(independent(2));
    cluster.wanted();
    cluster.run(&[1]);
    let name = cluster.join(1);
    // It hands over and has no time for anything else.
    let Some(Command::Heartbeat(mut beat)) = cluster.0.heartbeat(&name, vec![]) else {
        panic!("no heartbeat");
    };
    (beat.draining, beat.time_left) = (true, Some(Span::ZERO));
    cluster.0.act(&Command::Heartbeat(beat));
    for lease in cluster.0.live() {
        cluster.0.fail(&lease, FailureClass::Preempted);
    }
    cluster.0.close(&name);
    cluster.see(&[1], |_| Seen::Queued {
        external: "job1".into(),
    });
    cluster.pass(5, &[]);
    let idle = outlook(&cluster.0.state, cluster.0.now).remove(0).idle;
    assert!(idle.is_empty(), "{idle:?} is needed, and on its way again");
}

#[test]
fn a_host_on_which_attempts_fail_at_once_is_quarantined_and_its_pool_paused_at_last() {
    let mut cluster = Cluster::new(Policy {
        failures_max: 2,
        ..policy(10)
    });
    let tasks = independent(12).retries(9);
    cluster.0.submit(tasks);
    cluster.wanted();
    cluster.run(&[1, 2]);
    for (allocation, paused) in [(1, false), (2, true)] {
        let name = cluster.join(allocation);
        let mut failed = std::collections::BTreeSet::new();
        while failed.len() < 3 {
            let lease = cluster.0.live()[0].clone();
            cluster.0.started(&lease);
            cluster.0.fail(&lease, FailureClass::Workspace);
            failed.insert(lease.work);
        }
        let events = cluster.plan();
        let quarantined = events
            .iter()
            .filter(|event| matches!(event, PoolEvent::HostQuarantined { .. }));
        assert_eq!(quarantined.count(), 1, "{events:?}");
        let is_paused = cluster.0.state.pool(POOL).unwrap().paused.is_some();
        assert_eq!(is_paused, paused);
        for lease in cluster.0.live() {
            cluster.0.say(
                &lease,
                Report::Failed {
                    failure: super::world::failure(FailureClass::AgentFailed),
                    usage: crate::event::Usage::default(),
                },
            );
        }
        cluster.0.beat(&name);
        assert!(cluster.0.live().is_empty(), "it gets nothing any more");
        assert_eq!(
            cluster.ending(),
            [(allocation, EndCause::Quarantined)],
            "its allocation is given back"
        );
    }
}

#[test]
fn what_a_tasks_own_program_says_does_not_speak_against_a_host() {
    let mut cluster = Cluster::new(policy(10));
    cluster.0.submit(independent(6));
    cluster.wanted();
    cluster.run(&[1]);
    cluster.join(1);
    for _ in 0..6 {
        let lease = cluster.0.live()[0].clone();
        cluster.0.started(&lease);
        cluster.0.fail(&lease, FailureClass::AgentFailed);
    }
    let ending = cluster.ending();
    assert_eq!(ending, []);
}

#[test]
fn an_attempt_that_goes_well_clears_a_suspicion() {
    let mut cluster = Cluster::new(policy(10));
    cluster.0.submit(independent(8).retries(9));
    cluster.wanted();
    cluster.run(&[1]);
    cluster.join(1);
    for nth in 0..6 {
        let lease = cluster.0.live()[0].clone();
        cluster.0.started(&lease);
        if nth % 3 == 2 {
            cluster.0.say(&lease, made("c"));
            cluster.0.beat("w1");
        } else {
            cluster.0.fail(&lease, FailureClass::Workspace);
        }
        cluster.plan();
    }
    let pool = cluster.0.state.pool(POOL).unwrap();
    assert!(pool.quarantined.is_empty(), "{pool:?}");
}

#[test]
fn a_pool_with_more_than_its_maximum_gives_up_what_is_idle() {
    let mut cluster = Cluster::new(policy(10));
    let run = cluster.0.submit(independent(6));
    cluster.wanted();
    cluster.run(&[1, 2, 3]);
    cluster.join(1);
    cluster.0.state.set_pools([(text(POOL), policy(1))].into());
    cluster.0.cancel(crate::command::Target::Run(run));
    let ending = cluster.ending();
    assert_eq!(
        ending,
        [(3, EndCause::Surplus), (2, EndCause::Surplus)],
        "the youngest first"
    );
}

#[test]
fn a_pool_with_more_than_its_maximum_lets_what_is_at_work_finish_that_and_no_more() {
    let mut cluster = Cluster::new(policy(10));
    cluster.0.submit(independent(12));
    assert_eq!(cluster.wanted(), 6);
    cluster.run(&[1, 2, 3]);
    for allocation in 1..=3 {
        cluster.join(allocation);
    }
    assert_eq!(cluster.0.live().len(), 6);
    let policies = BTreeMap::from([(text(POOL), policy(2))]);
    cluster.pool(PoolCommand::Configure { policies });
    let ending = cluster.ending();
    let surplus = [6, 5, 4, 3].map(|id| (id, EndCause::Surplus));
    assert_eq!(ending, surplus, "those that have not come yet first");
    assert_eq!(cluster.ending(), []);
    let third = |cluster: &Cluster| {
        let mut live = cluster.0.live();
        live.retain(|lease| lease.worker == worker("w3"));
        live
    };
    for lease in third(&cluster) {
        assert!(!cluster.0.state.may_end(AllocationId(3), cluster.0.now));
        cluster.0.started(&lease);
        cluster.0.succeed(&lease);
    }
    assert!(third(&cluster).is_empty(), "it gets nothing any more");
    assert!(cluster.0.state.may_end(AllocationId(3), cluster.0.now));
    assert_eq!(cluster.wanted(), 0);
}

#[test]
fn a_pool_that_is_to_be_emptied_gives_up_what_has_no_work_although_work_waits() {
    let mut cluster = Cluster::new(policy(10));
    cluster.0.submit(independent(3));
    assert_eq!(cluster.wanted(), 2);
    cluster.run(&[1, 2]);
    let busy = cluster.join(1);
    assert_eq!(
        cluster.0.state.leases().len(),
        2,
        "{busy} has both slots full"
    );
    let policies = BTreeMap::from([(text(POOL), policy(0))]);
    cluster.pool(PoolCommand::Configure { policies });
    assert_eq!(cluster.ending(), [(2, EndCause::Surplus)]);
    assert_eq!(cluster.ending(), [], "the other one holds work");
    assert_eq!(cluster.wanted(), 0);
}

#[test]
fn a_pool_of_higher_priority_is_asked_first() {
    let mut world = World::new();
    let named = |name: &str, priority, max| {
        let template = Offer {
            pool: text(name),
            slots: 1,
            ..Offer::default()
        };
        let policy = Policy {
            priority,
            template,
            ..policy(max)
        };
        (text(name), policy)
    };
    world
        .state
        .set_pools([named("a", 0, 9), named("b", 5, 2)].into());
    world.submit(independent(5));
    let counts: Vec<_> = outlook(&world.state, world.now)
        .into_iter()
        .map(|pool| (pool.pool, pool.start.map(|start| start.count)))
        .collect();
    assert_eq!(counts, [(text("a"), Some(3)), (text("b"), Some(2))]);
}

#[test]
fn an_unknown_pool_is_refused() {
    let mut cluster = Cluster::new(policy(1));
    let refusal = cluster.0.refused(&Command::Pool(PoolCommand::Resume {
        pool: text("clutser"),
        by: text("me"),
    }));
    assert_eq!(refusal.code(), "UNKNOWN_POOL");
}

#[test]
fn resources_are_counted_when_work_is_dealt_out() {
    let template = Offer {
        resources: [(text("gpus"), 2)].into(),
        ..template(8)
    };
    let mut cluster = Cluster::new(Policy {
        template,
        ..policy(10)
    });
    let tasks = independent(5).each(|task| {
        task.profile.requirement.resources = [(text("gpus"), 1)].into();
    });
    cluster.0.submit(tasks);
    assert_eq!(cluster.wanted(), 3);
    assert_eq!(
        cluster.inventory(),
        ids(&[1, 2, 3]).iter().map(|id| id.0).collect::<Vec<_>>()
    );
    assert!(cluster.0.state.worker(&worker("w1")).is_none());
}
