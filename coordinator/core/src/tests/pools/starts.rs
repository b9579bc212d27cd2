//! Which starts of allocations were good ones, and which count as failed.

use super::*;

fn failures(cluster: &Cluster) -> u32 {
    let pool = cluster.0.state.pool(POOL);
    pool.map_or(0, |pool| pool.failures)
}

/// Starts an allocation, whose worker joins.
fn start(cluster: &mut Cluster, allocation: u64) -> String {
    cluster.run(&[allocation]);
    cluster.join(allocation)
}

fn end_of(events: &[PoolEvent]) -> AllocationEnd {
    let [PoolEvent::AllocationEnded { end, .. }, ..] = events else {
        panic!("not ended: {events:?}");
    };
    *end
}

fn refuse(cluster: &mut Cluster, allocation: u64) {
    cluster.see(&[allocation], |_| Seen::Refused { detail: "".into() });
}

/// The worker says that it takes nothing any more, as one does that leaves in good order.
fn drains(cluster: &mut Cluster, name: &str) {
    let Some(Command::Heartbeat(mut beat)) = cluster.0.heartbeat(name, vec![]) else {
        panic!("no heartbeat");
    };
    beat.draining = true;
    cluster.0.act(&Command::Heartbeat(beat));
}

#[test]
fn machines_that_die_as_soon_as_their_workers_have_joined_pause_their_pool() {
    let mut cluster = Cluster::new(policy(10));
    cluster.0.submit(independent(1).retries(9));
    for allocation in 1..=3 {
        assert_eq!(cluster.wanted(), 1, "{:?}", cluster.0.state.pool(POOL));
        let name = start(&mut cluster, allocation);
        cluster.pass(20, &[&name]);
        cluster.0.close(&name);
        // Its provider notices only later, and so does the coordinator.
        cluster.pass(200, &[]);
        let events = cluster.gone(allocation);
        assert_eq!(end_of(&events), AllocationEnd::DiedYoung);
        assert_eq!(failures(&cluster), u32::try_from(allocation).unwrap());
        assert_eq!(cluster.wanted(), 0, "it is given time");
        cluster.pass(60, &[]);
    }
    let pause = cluster.0.state.pool(POOL).unwrap().paused.clone().unwrap();
    let said =
        "its worker on n3 vanished within 20 s after it had joined; it ended so: no such job";
    assert!(pause.reason.ends_with(said), "{}", pause.reason);
}

#[test]
fn what_lived_a_while_or_did_its_work_or_took_its_leave_was_a_good_start() {
    let mut cluster = Cluster::new(policy(10));
    cluster.0.submit(independent(6).retries(9));
    cluster.wanted();
    let names = [1, 2, 3].map(|allocation| start(&mut cluster, allocation));
    let second = worker(&names[1]);
    let live = cluster.0.live();
    let done = live.iter().find(|lease| lease.worker == second).unwrap();
    cluster.0.started(done);
    cluster.0.succeed(done);
    drains(&mut cluster, &names[2]);
    cluster.pass(10, &[&names[0]]);
    cluster.0.close(&names[1]);
    cluster.0.close(&names[2]);
    cluster.pass(60, &[&names[0]]);
    cluster.0.close(&names[0]);
    cluster.pass(100, &[]);
    for allocation in 1..=3 {
        let events = cluster.gone(allocation);
        assert_eq!(end_of(&events), AllocationEnd::Gone, "{allocation}");
    }
    assert_eq!(failures(&cluster), 0);
}

#[test]
fn a_machine_whose_time_is_over_has_not_died_young() {
    let walltime = Some(Span::from_secs(90));
    let mut cluster = Cluster::new(Policy {
        walltime,
        ..policy(10)
    });
    cluster.0.submit(independent(1));
    cluster.wanted();
    cluster.run(&[1]);
    cluster.pass(50, &[]);
    let name = cluster.join(1);
    cluster.pass(40, &[&name]);
    cluster.0.close(&name);
    cluster.pass(100, &[]);
    let events = cluster.gone(1);
    assert_eq!(end_of(&events), AllocationEnd::Gone);
}

#[test]
fn a_worker_that_joins_does_not_yet_clear_what_failed_before_and_one_that_stays_does() {
    let mut cluster = Cluster::new(policy(10));
    cluster.0.submit(independent(2));
    cluster.wanted();
    refuse(&mut cluster, 1);
    cluster.pass(5, &[]);
    cluster.wanted();
    let name = start(&mut cluster, 2);
    cluster.plan();
    assert_eq!(failures(&cluster), 1);
    cluster.pass(50, &[&name]);
    assert_eq!(cluster.plan(), []);
    cluster.pass(10, &[&name]);
    let allocation = AllocationId(2);
    assert_eq!(cluster.plan(), [PoolEvent::AllocationProven { allocation }]);
    assert_eq!(failures(&cluster), 0);
    assert_eq!(cluster.plan(), [], "once");
}

#[test]
fn work_that_goes_well_clears_what_failed_before_its_worker_joined_and_nothing_later() {
    let mut cluster = Cluster::new(policy(10));
    cluster.0.submit(independent(9));
    cluster.wanted();
    for allocation in [1, 2] {
        refuse(&mut cluster, allocation);
        cluster.pass(1, &[]);
    }
    start(&mut cluster, 3);
    let live = cluster.0.live();
    cluster.0.started(&live[0]);
    cluster.0.succeed(&live[0]);
    assert_eq!(failures(&cluster), 0);
    cluster.pass(20, &["w3"]);
    cluster.wanted();
    refuse(&mut cluster, 6);
    cluster.pass(1, &["w3"]);
    cluster.0.started(&live[1]);
    cluster.0.succeed(&live[1]);
    assert_eq!(failures(&cluster), 1, "an old one says nothing of new ones");
}

#[test]
fn an_allocation_whose_worker_takes_nothing_although_work_waits_counts_as_failed() {
    let mut cluster = Cluster::new(policy(1));
    cluster.0.submit(independent(1));
    cluster.wanted();
    cluster.run(&[1]);
    let offer = Offer {
        pool: text(POOL),
        allocation: Some(AllocationId(1)),
        host: "n1".into(),
        ..offer(2)
    };
    cluster.0.hello("w1", 1, offer);
    for _ in 0..31 {
        assert_eq!(cluster.ending(), []);
        let Some(Command::Heartbeat(mut beat)) = cluster.0.heartbeat("w1", vec![]) else {
            panic!("no heartbeat");
        };
        beat.free_slots = 0;
        cluster.0.act(&Command::Heartbeat(beat));
        cluster.0.pass(Span::from_secs(10));
    }
    assert_eq!(cluster.ending(), [(1, EndCause::NeverWorked)]);
    cluster.0.close("w1");
    let events = cluster.gone(1);
    assert_eq!(end_of(&events), AllocationEnd::NeverWorked);
    assert_eq!(failures(&cluster), 1);
}

#[test]
fn a_worker_that_lacks_what_its_pool_promises_counts_as_failed_and_one_without_work_does_not() {
    for (promised, ends) in [(true, EndCause::NeverWorked), (false, EndCause::Idle)] {
        let mut template = template(2);
        template.labels = [text("gpu")].into();
        let mut cluster = Cluster::new(Policy {
            template,
            idle_timeout: Span::from_secs(400),
            ..policy(1)
        });
        let run = cluster.0.submit(independent(1).each(|task| {
            task.profile.requirement.labels = [text("gpu")].into();
        }));
        cluster.wanted();
        let name = start(&mut cluster, 1);
        assert!(cluster.0.live().is_empty(), "it does not carry the label");
        if !promised {
            cluster.0.cancel(crate::command::Target::Run(run));
        }
        cluster.plan();
        cluster.pass(if promised { 301 } else { 401 }, &[&name]);
        assert_eq!(cluster.ending(), [(1, ends)]);
    }
}

#[test]
fn a_host_on_which_workers_vanish_with_their_work_is_quarantined_after_some_of_them() {
    let mut cluster = Cluster::new(policy(10));
    cluster.0.submit(independent(12).retries(9));
    cluster.wanted();
    cluster.run(&[1]);
    for time in 1..=3 {
        let name = format!("w{time}");
        let offer = Offer {
            pool: text(POOL),
            host: "n1".into(),
            ..offer(4)
        };
        cluster.0.hello(&name, 1, offer);
        cluster.0.beat(&name);
        let held = cluster.0.live().len();
        assert_eq!(held, 4);
        cluster.pass(20, &[&name]);
        cluster.0.close(&name);
        // Both have to pass before a lease is lost.
        cluster.pass(80, &[]);
        assert_eq!(cluster.0.live().len(), 0);
        cluster.plan();
        let pool = cluster.0.state.pool(POOL).unwrap();
        let is_quarantined = pool.quarantined.contains_key("n1");
        assert_eq!(
            is_quarantined,
            time == 3,
            "it vanished {time} times: {pool:?}"
        );
    }
}

#[test]
fn an_allocation_that_comes_to_a_host_in_quarantine_is_a_failed_start() {
    let mut cluster = Cluster::new(policy(10));
    cluster.0.submit(independent(12).retries(9));
    cluster.wanted();
    cluster.run(&[1, 2]);
    let first = cluster.join(1);
    cluster.pass(1, &[&first]);
    let mut failed = std::collections::BTreeSet::new();
    while failed.len() < 3 {
        let lease = cluster.0.live()[0].clone();
        cluster.0.started(&lease);
        cluster.0.fail(&lease, FailureClass::Workspace);
        failed.insert(lease.work);
    }
    cluster.plan();
    assert_eq!(cluster.ending(), [(1, EndCause::Quarantined)]);
    cluster.pass(1, &[&first]);
    let come = |cluster: &mut Cluster, number: u64| {
        let offer = Offer {
            pool: text(POOL),
            allocation: Some(AllocationId(number)),
            host: "n1".into(),
            ..offer(2)
        };
        let name = format!("w{number}");
        cluster.0.hello(&name, 1, offer);
        assert_eq!(cluster.ending(), [(number, EndCause::Quarantined)]);
        drains(cluster, &name);
        cluster.0.close(&name);
        end_of(&cluster.gone(number))
    };
    // Whoever was asked for it then could not know.
    assert_eq!(come(&mut cluster, 2), AllocationEnd::Released);
    assert_eq!(failures(&cluster), 0);
    cluster.pass(1, &[&first]);
    cluster.plan();
    let late = cluster.inventory().into_iter().max().unwrap();
    assert!(late > 6, "another one is wanted instead");
    cluster.run(&[late]);
    assert_eq!(come(&mut cluster, late), AllocationEnd::NeverWorked);
    assert_eq!(failures(&cluster), 1);
}

#[test]
fn what_was_worked_on_for_longer_before_its_worker_vanished_does_not_speak_against_the_host() {
    let mut cluster = Cluster::new(policy(10));
    cluster.0.submit(independent(1).retries(9));
    cluster.wanted();
    let name = start(&mut cluster, 1);
    let lease = cluster.0.only();
    cluster.0.started(&lease);
    cluster.pass(40, &[&name]);
    cluster.pass(80, &[]);
    assert!(cluster.0.live().is_empty());
    let suspects = cluster.0.state.pool(POOL).map(|pool| pool.suspects.len());
    assert_eq!(suspects.unwrap_or(0), 0);
}

#[test]
fn a_machine_that_stays_is_ended_when_its_worker_has_left_or_vanished() {
    let stays = |min| Policy {
        stays: true,
        min,
        ..policy(10)
    };
    // Left in good order: at once, even the one that is to be there always.
    let mut cluster = Cluster::new(stays(1));
    assert_eq!(cluster.wanted(), 1);
    let name = start(&mut cluster, 1);
    assert_eq!(cluster.ending(), []);
    drains(&mut cluster, &name);
    assert_eq!(cluster.ending(), [], "it still hands over");
    cluster.0.close(&name);
    let events = cluster.plan();
    let [ending] = &events[..] else {
        panic!("{events:?}");
    };
    let said = "allocation A1 is to end: its worker has left, and its machine would stay";
    assert_eq!(ending.to_string(), said);
    assert_eq!(cluster.wanted(), 1);
    assert_eq!(end_of(&cluster.gone(1)), AllocationEnd::Gone);
    // Vanished: it may come back for a while.
    let mut cluster = Cluster::new(stays(1));
    assert_eq!(cluster.wanted(), 1);
    let name = start(&mut cluster, 1);
    cluster.0.close(&name);
    assert_eq!(cluster.ending(), []);
    cluster.pass(300, &[]);
    assert_eq!(cluster.ending(), [], "it may hold what nobody else has");
    cluster.pass(1, &[]);
    assert_eq!(cluster.ending(), [(1, EndCause::Deserted)]);
    assert_eq!(end_of(&cluster.gone(1)), AllocationEnd::DiedYoung);
    // A job ends by itself, and may be begun again.
    let mut cluster = Cluster::new(policy(10));
    cluster.0.submit(independent(1));
    assert_eq!(cluster.wanted(), 1);
    let name = start(&mut cluster, 1);
    drains(&mut cluster, &name);
    cluster.0.close(&name);
    assert_eq!(cluster.ending(), []);
}

#[test]
fn what_its_provider_holds_counts_as_coming_no_more_after_a_while_and_again_once_it_is_released() {
    let mut cluster = Cluster::new(Policy {
        backlog: 2,
        idle_timeout: Span::from_secs(200),
        ..policy(10)
    });
    cluster.0.submit(independent(1));
    assert_eq!(cluster.wanted(), 1);
    let hold = |cluster: &mut Cluster, id: u64| {
        cluster.see(&[id], |_| Seen::Held {
            external: format!("job{id}").into(),
            reason: "JobHeldUser".into(),
        })
    };
    assert_eq!(hold(&mut cluster, 1).len(), 1, "it is queued");
    cluster.pass(119, &[]);
    assert_eq!(hold(&mut cluster, 1), []);
    assert_eq!(cluster.wanted(), 0);
    cluster.pass(1, &[]);
    assert_eq!(cluster.wanted(), 1);
    hold(&mut cluster, 2);
    cluster.pass(120, &[]);
    assert_eq!(cluster.wanted(), 0, "no more than may wait");
    let run = cluster.0.state.runs().next().unwrap();
    let requirement = run.profiles[0].requirement.clone();
    let told = prospects(&cluster.0.state, cluster.0.now, &requirement);
    assert_eq!(
        told[0].1.to_string(),
        "2 allocations wait and are not run by its provider: JobHeldUser"
    );
    cluster.see(&[1, 2], |id| Seen::Queued {
        external: format!("job{id}").into(),
    });
    let now = cluster.0.now;
    let outlook = outlook(&cluster.0.state, now).remove(0);
    assert_eq!((outlook.coming, outlook.held), (2, None));
}

/// Configures two pools that could do the same, the first of which is asked first.
fn configure_two(cluster: &mut Cluster) {
    let other = Policy {
        priority: -1,
        ..policy(10)
    };
    let policies = BTreeMap::from([(text(POOL), policy(10)), (text("other"), other)]);
    cluster.pool(PoolCommand::Configure { policies });
}

/// Two such pools, the first of which was asked for an allocation.
fn two_pools() -> Cluster {
    let mut cluster = Cluster::new(policy(10));
    configure_two(&mut cluster);
    cluster.0.submit(independent(1));
    assert_eq!(cluster.wanted(), 1);
    cluster
}

/// What the first pool and the other one start, and why the first starts no more.
fn looks(cluster: &Cluster) -> (u32, u32, Option<Hindrance>) {
    let all = outlook(&cluster.0.state, cluster.0.now);
    let starts = |at: usize| all[at].start.as_ref().map_or(0, |start| start.count);
    (starts(0), starts(1), all[0].hindrance.clone())
}

#[test]
fn what_its_provider_does_not_answer_about_counts_as_coming_no_more_after_a_while() {
    let mut cluster = two_pools();
    cluster.pass(119, &[]);
    assert_eq!(looks(&cluster), (0, 0, None));
    cluster.pass(1, &[]);
    let waits = Span::from_secs(120);
    let silent = Some(Hindrance::Unanswered { waits });
    assert_eq!(looks(&cluster), (0, 1, silent));
    assert_eq!(cluster.wanted(), 1);
    // It answers after all.
    cluster.see(&[1], |_| Seen::Queued {
        external: "job1".into(),
    });
    let told = outlook(&cluster.0.state, cluster.0.now);
    assert_eq!((told[0].coming, told[1].coming), (1, 1));
}

#[test]
fn a_silent_provider_is_asked_for_nothing_more_although_what_it_was_asked_for_is_to_end() {
    let mut cluster = two_pools();
    cluster.pass(120, &[]);
    assert_eq!(cluster.wanted(), 1);
    assert_eq!(
        cluster.ending(),
        [(1, EndCause::Idle)],
        "it must not come too"
    );
    cluster.0.submit(independent(9).named("run-2"));
    let (first, second, hindrance) = looks(&cluster);
    assert!(first == 0 && second > 0, "{hindrance:?}");
    cluster.gone(1);
    assert!(looks(&cluster).0 > 0, "it has answered");
}

#[test]
fn a_provider_is_not_silent_because_its_coordinator_was_away() {
    let mut cluster = two_pools();
    cluster.0.now = cluster.0.now + Span::from_secs(3_600);
    cluster.0.restart();
    configure_two(&mut cluster);
    assert_eq!(looks(&cluster), (0, 0, None));
}

#[test]
fn what_its_provider_held_until_nothing_needed_it_was_a_failed_start() {
    let mut cluster = Cluster::new(policy(10));
    cluster.0.submit(independent(1));
    cluster.wanted();
    cluster.see(&[1], |_| Seen::Held {
        external: "job1".into(),
        reason: "BadConstraints".into(),
    });
    cluster.pass(120, &[]);
    assert_eq!(cluster.wanted(), 1);
    start(&mut cluster, 2);
    assert_eq!(cluster.ending(), [], "the other one has the work");
    cluster.pass(60, &["w2"]);
    assert_eq!(cluster.ending(), [(1, EndCause::Idle)]);
    let events = cluster.gone(1);
    assert_eq!(end_of(&events), AllocationEnd::NeverJoined);
    let last = &cluster.0.state.pool(POOL).unwrap().last_failure;
    assert_eq!(&**last, "its provider did not run it: BadConstraints");
}

#[test]
fn what_waits_without_a_name_is_told_of_and_may_still_get_one() {
    let mut cluster = Cluster::new(policy(1));
    cluster.0.submit(independent(1));
    assert_eq!(cluster.wanted(), 1);
    let events = cluster.see(&[1], |_| Seen::Held {
        external: "".into(),
        reason: "InsufficientInstanceCapacity".into(),
    });
    assert_eq!(events, []);
    cluster.pass(120, &[]);
    assert_eq!(cluster.wanted(), 0, "it is no failed start");
    let now = cluster.0.now;
    let held = outlook(&cluster.0.state, now).remove(0).held;
    assert_eq!(held, Some((1, "InsufficientInstanceCapacity".into())));
    let events = cluster.see(&[1], |_| Seen::Queued {
        external: "i-1".into(),
    });
    assert_eq!(events.len(), 1);
    let outlook = outlook(&cluster.0.state, now).remove(0);
    assert_eq!((outlook.coming, outlook.held), (1, None));
}

/// A worker whose only task is done, and nothing waits.
fn done() -> (Cluster, String) {
    let mut cluster = Cluster::new(policy(10));
    cluster.0.submit(independent(1));
    assert_eq!(cluster.wanted(), 1);
    let name = start(&mut cluster, 1);
    let lease = cluster.0.only();
    cluster.0.started(&lease);
    cluster.0.succeed(&lease);
    (cluster, name)
}

#[test]
fn a_machine_whose_worker_is_silent_is_not_ended_as_idle_while_it_may_come_back() {
    for has_left in [false, true] {
        let (mut cluster, name) = done();
        if has_left {
            drains(&mut cluster, &name);
        }
        cluster.0.close(&name);
        assert_eq!(cluster.ending(), []);
        cluster.pass(60, &[]);
        if has_left {
            assert_eq!(cluster.ending(), [(1, EndCause::Idle)]);
            continue;
        }
        assert_eq!(cluster.ending(), [], "it may hold what nobody else has");
        cluster.pass(240, &[]);
        assert_eq!(cluster.ending(), []);
        cluster.pass(1, &[]);
        assert_eq!(cluster.ending(), [(1, EndCause::Idle)]);
    }
}

#[test]
fn a_machine_that_is_to_end_waits_for_its_silent_worker() {
    let (mut cluster, name) = done();
    cluster.0.close(&name);
    let policies = BTreeMap::from([(text(POOL), policy(0))]);
    cluster.pool(PoolCommand::Configure { policies });
    assert_eq!(cluster.ending(), [(1, EndCause::Surplus)]);
    let may_end = |cluster: &Cluster| cluster.0.state.may_end(AllocationId(1), cluster.0.now);
    cluster.pass(300, &[]);
    assert!(!may_end(&cluster), "it may come back with edits");
    cluster.pass(1, &[]);
    assert!(may_end(&cluster));
}

#[test]
fn want_of_capacity_that_ends_with_its_work_does_not_speak_against_the_pool() {
    let mut cluster = Cluster::new(policy(1));
    let run = cluster.0.submit(independent(1));
    assert_eq!(cluster.wanted(), 1);
    cluster.see(&[1], |_| Seen::Held {
        external: "".into(),
        reason: "InsufficientInstanceCapacity".into(),
    });
    cluster.pass(120, &[]);
    cluster.plan();
    cluster.0.cancel(crate::command::Target::Run(run));
    cluster.plan();
    cluster.pass(60, &[]);
    assert_eq!(cluster.ending(), [(1, EndCause::Idle)]);
    assert_eq!(end_of(&cluster.gone(1)), AllocationEnd::Released);
    assert_eq!(failures(&cluster), 0);
}
