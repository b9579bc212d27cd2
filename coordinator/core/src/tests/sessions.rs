//! Workers come, fall silent, and come back.

use std::sync::Arc;

use super::world::*;
use crate::command::{Hello, Rejection, Report, ReportAnswer, Verdict};
use crate::event::{EventKind, LeaseEnd};
use crate::ids::{Incarnation, LeaseId};
use crate::state::Lease;
use crate::time::Span;
use crate::{Command, limits};

fn one() -> (World, crate::RunId, Lease) {
    let mut world = World::new();
    world.join("w", 2);
    let run = world.submit(plan(&["a"]));
    let lease = world.only();
    (world, run, lease)
}

fn ends(world: &World) -> Vec<LeaseEnd> {
    let ends = world.log.iter().filter_map(|event| match event.kind {
        EventKind::LeaseClosed { end, .. } => Some(end),
        _ => None,
    });
    ends.collect()
}

fn losses(world: &World, run: crate::RunId) -> (u32, u32) {
    let task = world.state.task(world.key(run, "a")).unwrap();
    let history = task.history.as_ref().unwrap();
    (history.counted, history.crashes)
}

#[test]
fn a_silent_worker_loses_its_lease_after_ttl_and_grace_and_not_before() {
    let (mut world, run, lease) = one();
    world.started(&lease);
    world.close("w");
    let allowed = limits::LEASE_TTL + limits::LEASE_GRACE;
    world.pass(Span::from_ms(allowed.ms() - 1));
    assert_eq!(world.states(run), "a=leased");
    world.pass(Span::from_ms(1));
    assert_eq!(world.states(run), "a=ready");
    assert_eq!(
        (ends(&world), losses(&world, run)),
        (vec![LeaseEnd::Expired], (0, 1))
    );
    assert_eq!(world.say(&lease, made("late")), ReportAnswer::Stale);
    assert_eq!(world.states(run), "a=ready");
}

#[test]
fn heartbeats_renew_only_what_is_held() {
    let (mut world, run, lease) = one();
    world.started(&lease);
    for _ in 0..30 {
        world.pass(Span::from_secs(10));
        world.beat("w");
    }
    assert_eq!(world.states(run), "a=leased");
    for _ in 0..8 {
        world.pass(Span::from_secs(10));
        world.beat_with("w", vec![]);
    }
    assert_eq!(ends(&world), [LeaseEnd::Expired]);
}

#[test]
fn a_reconnecting_worker_keeps_its_work() {
    let (mut world, run, lease) = one();
    world.started(&lease);
    world.close("w");
    world.pass(Span::from_secs(70));
    let verdicts = world.hello_with("w", 1, offer(2), vec![lease.id, LeaseId(99)]);
    assert_eq!(
        verdicts,
        [(lease.id, Verdict::Keep), (LeaseId(99), Verdict::Stop)]
    );
    world.pass(Span::from_secs(70));
    assert_eq!(world.states(run), "a=leased");
    world.succeed(&lease);
    assert_eq!(world.states(run), "a=succeeded");
}

#[test]
fn a_grant_that_never_arrived_is_released_at_once_and_counts_nothing() {
    let (mut world, run, lease) = one();
    world.hello_with("w", 1, offer(2), vec![]);
    assert_eq!(ends(&world), [LeaseEnd::NeverStarted]);
    assert_eq!(losses(&world, run), (0, 0));
    world.beat("w");
    assert!(world.only().id > lease.id);
}

#[test]
fn started_work_that_the_worker_no_longer_holds_is_lost() {
    let (mut world, run, lease) = one();
    world.started(&lease);
    world.hello_with("w", 1, offer(2), vec![]);
    assert_eq!(
        (ends(&world), losses(&world, run)),
        (vec![LeaseEnd::Confirmed], (0, 1))
    );
}

#[test]
fn a_newer_incarnation_ends_what_it_does_not_hold() {
    let (mut world, run, lease) = one();
    world.started(&lease);
    world.hello_with("w", 2, offer(2), vec![]);
    assert_eq!(
        (ends(&world), losses(&world, run)),
        (vec![LeaseEnd::Superseded], (0, 1))
    );
    assert_eq!(world.say(&lease, made("late")), ReportAnswer::Stale);
}

#[test]
fn a_newer_incarnation_may_bring_the_result_of_the_older_one() {
    let (mut world, run, lease) = one();
    world.started(&lease);
    let verdicts = world.hello_with("w", 2, offer(2), vec![lease.id]);
    assert_eq!(verdicts, [(lease.id, Verdict::Keep)]);
    world.succeed(&lease);
    assert_eq!(world.states(run), "a=succeeded");
}

#[test]
fn an_older_incarnation_and_a_replaced_session_are_refused() {
    let mut world = World::new();
    world.hello("w", 2, offer(1));
    let hello = |incarnation, session| {
        Command::Hello(Hello {
            worker: worker("w"),
            incarnation: Incarnation(incarnation),
            session,
            number: 0,
            offer: Arc::new(offer(1)),
            held: vec![],
            draining: false,
            time_left: None,
        })
    };
    assert_eq!(world.refused(&hello(1, 9)).code(), "SESSION_SUPERSEDED");
    let old = world.heartbeat("w", vec![]).unwrap();
    world.act(&hello(2, 9));
    assert_eq!(world.refused(&old).code(), "SESSION_SUPERSEDED");
    assert_eq!(world.refused(&hello(2, 8)).code(), "SESSION_SUPERSEDED");
}

#[test]
fn a_hello_that_comes_behind_a_later_one_ends_nothing() {
    let mut world = World::new();
    world.join("w", 1);
    // The first stream was given up by its worker, and is delivered after the second.
    let given_up = Command::Hello(Hello {
        worker: worker("w"),
        incarnation: Incarnation(1),
        session: 99,
        number: 2,
        offer: Arc::new(offer(1)),
        held: vec![],
        draining: false,
        time_left: None,
    });
    world.hello_numbered("w", 3, vec![]);
    world.beat("w");
    let run = world.submit(plan(&["a"]));
    let lease = world.only();
    world.started(&lease);
    assert_eq!(world.refused(&given_up).code(), "SESSION_SUPERSEDED");
    world.close("w");
    assert_eq!(world.refused(&given_up).code(), "SESSION_SUPERSEDED");
    assert_eq!(world.states(run), "a=leased");
    // A new incarnation counts from the beginning.
    world.hello_with("w", 2, offer(1), vec![lease.id]);
    world.succeed(&lease);
    assert_eq!(world.states(run), "a=succeeded");
}

#[test]
fn a_repeated_result_counts_once() {
    let (mut world, run, lease) = one();
    let result = made("c");
    assert_eq!(world.say(&lease, result.clone()), ReportAnswer::Recorded);
    let length = world.log.len();
    assert_eq!(
        world.say(&lease, result.clone()),
        ReportAnswer::AlreadyRecorded
    );
    let verdicts = world.hello_with("w", 1, offer(2), vec![lease.id]);
    assert_eq!(verdicts, [(lease.id, Verdict::Keep)]);
    assert_eq!(world.log.len(), length);
    let thief = Lease {
        worker: worker("v"),
        ..lease.clone()
    };
    assert_eq!(world.say(&thief, result.clone()), ReportAnswer::Stale);
    world.restart();
    assert_eq!(world.say(&lease, result), ReportAnswer::AlreadyRecorded);
    assert_eq!(world.states(run), "a=succeeded");
}

#[test]
fn another_workers_word_about_a_lease_is_stale() {
    let (mut world, run, lease) = one();
    let thief = Lease {
        worker: worker("v"),
        ..lease
    };
    assert_eq!(world.say(&thief, made("c")), ReportAnswer::Stale);
    assert_eq!(world.say(&thief, Report::Stopped), ReportAnswer::Stale);
    assert_eq!(world.states(run), "a=leased");
}

#[test]
fn a_restart_runs_nothing_again_that_still_runs() {
    let (mut world, run, lease) = one();
    world.started(&lease);
    world.pass(Span::from_secs(70));
    world.restart();
    assert_eq!(world.states(run), "a=leased");
    world.pass(Span::from_secs(74));
    assert_eq!(world.states(run), "a=leased");
    world.hello("w", 1, offer(2));
    world.beat("w");
    world.succeed(&lease);
    assert_eq!(world.states(run), "a=succeeded");
    assert_eq!(world.state.epoch().0, 1);
}

#[test]
fn a_worker_that_is_long_gone_is_forgotten() {
    let mut world = World::new();
    world.join("w", 1);
    world.close("w");
    world.pass(limits::WORKER_FORGET);
    assert_eq!(world.state.workers().len(), 0);
    world.replayed();
}

#[test]
fn a_draining_worker_gets_nothing_more() {
    let mut world = World::new();
    world.join("w", 1);
    let drain = |draining| Command::Drain {
        worker: worker("w"),
        draining,
        by: text("me"),
    };
    world.act(&drain(true));
    world.submit(plan(&["a"]));
    world.beat("w");
    assert_eq!(world.live(), vec![]);
    world.act(&drain(false));
    assert_eq!(world.at_work(), ["a"]);
}

#[test]
fn a_long_pause_with_many_timers_ends_every_lease() {
    let tasks = limits::TIMERS_PER_TICK + 100;
    let names: Vec<String> = (0..tasks).map(|n| format!("t{n}")).collect();
    let names: Vec<&str> = names.iter().map(|name| &**name).collect();
    let mut world = World::new();
    world.join("w", 2_000);
    world.submit(plan(&names).each(|task| task.profile.timeout = Span::ZERO));
    assert_eq!(world.live().len(), tasks);
    world.pass_beating(Span::from_secs(100), &["w"]);
    // The process slept: the time limits, then the leases themselves are overdue together.
    world.now = world.now + Span::from_secs(100);
    world.close("w");
    for _ in 0..8 {
        world.act(&Command::Tick);
    }
    assert_eq!(world.live(), vec![]);
    assert_eq!(ends(&world), vec![LeaseEnd::Expired; tasks]);
}

#[test]
fn a_worker_that_was_not_heard_lately_is_granted_nothing() {
    let mut world = World::new();
    world.join("w", 1);
    world.pass(Span::from_ms(limits::LEASE_TTL.ms() / 2 + 1));
    world.submit(plan(&["a"]));
    assert_eq!(world.live(), vec![]);
    world.beat("w");
    assert_eq!(world.at_work(), ["a"]);
}

#[test]
fn a_new_start_of_a_worker_is_recorded_though_it_offers_the_same() {
    let (mut world, _, lease) = one();
    world.hello("w", 1, offer(2));
    let joined = |world: &World| {
        let joined = world.log.iter();
        let joined = joined.filter(|event| matches!(event.kind, EventKind::WorkerJoined { .. }));
        joined.count()
    };
    assert_eq!(joined(&world), 1);
    world.hello_with("w", 2, offer(2), vec![lease.id]);
    assert_eq!(joined(&world), 2);
    let known = world.state.worker(&worker("w")).unwrap();
    assert_eq!(known.incarnation, Incarnation(2));
}

#[test]
fn a_worker_may_have_as_many_slots_as_the_bound_says_and_not_one_more() {
    let mut world = World::new();
    world.hello("w", 1, offer(limits::SLOTS_PER_WORKER));
    let greedy = Command::Hello(Hello {
        worker: worker("greedy"),
        incarnation: Incarnation(1),
        session: 2,
        number: 2,
        offer: Arc::new(offer(limits::SLOTS_PER_WORKER + 1)),
        held: vec![],
        draining: false,
        time_left: None,
    });
    let limit = Rejection::Limit {
        limit: "slots of a worker",
        max: limits::SLOTS_PER_WORKER.into(),
    };
    assert_eq!(world.refused(&greedy), limit);
    assert!(world.state.worker(&worker("greedy")).is_none());
}

#[test]
fn a_goodbye_gives_back_what_was_granted_meanwhile_and_counts_nothing() {
    let mut world = World::new();
    world.join("w", 2);
    let run = world.submit(plan(&["a"]));
    let lease = world.only();
    let Some(Command::Heartbeat(beat)) = world.heartbeat("w", vec![]) else {
        panic!("no session");
    };
    let goodbye = |session| Command::Goodbye {
        worker: worker("w"),
        incarnation: Incarnation(1),
        session,
    };
    world.refused(&goodbye(beat.session + 1));
    assert_eq!(world.live().len(), 1);
    let events = world.act(&goodbye(beat.session));
    let closed = events.iter().any(|event| {
        matches!(event.kind, EventKind::LeaseClosed { lease: id, end, .. }
            if id == lease.id && end == LeaseEnd::NeverStarted)
    });
    assert!(closed, "{events:?}");
    assert!(world.live().is_empty(), "it is gone, and gets nothing");
    world.join("v", 1);
    assert_eq!(world.only().worker, worker("v"), "at once");
    let history = world
        .state
        .task(world.key(run, "a"))
        .unwrap()
        .history
        .clone();
    let history = history.unwrap();
    assert_eq!(
        (history.counted, history.crashes, history.departures),
        (0, 0, 0)
    );
    world.refused(&goodbye(beat.session));
}
