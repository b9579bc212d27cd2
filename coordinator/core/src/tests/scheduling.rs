//! Who gets which slot.

use super::world::*;
use crate::time::Span;
use crate::worker::Offer;
use crate::{Command, FailureClass, WakeReason, limits, next_wakeup, promote};

#[test]
fn priority_comes_first_then_the_critical_path_then_plan_order() {
    let mut world = World::new();
    let mut run = plan(&["plain", "long", "urgent", "after: long", "last"]);
    run.0.tasks[2].priority = 1;
    world.submit(run);
    world.join("w", 1);
    let mut order = vec![];
    for _ in 0..4 {
        let lease = world.only();
        order.extend(world.at_work());
        world.succeed(&lease);
    }
    assert_eq!(order, ["urgent", "long", "plain", "after"]);
}

#[test]
fn runs_share_the_slots_evenly() {
    let mut world = World::new();
    let many: Vec<String> = (0..20).map(|n| format!("t{n}")).collect();
    let many: Vec<&str> = many.iter().map(|name| &**name).collect();
    let big = world.submit(plan(&many).named("big"));
    let small = world.submit(plan(&["x", "y", "z"]).named("small"));
    world.join("w", 6);
    assert_eq!(
        (world.state.live_leases(big), world.state.live_leases(small)),
        (3, 3)
    );
}

#[test]
fn runs_take_turns_on_one_slot() {
    let mut world = World::new();
    let one = world.submit(plan(&["a", "b", "c"]).named("one"));
    let two = world.submit(plan(&["a", "b", "c"]).named("two"));
    world.join("w", 1);
    let mut turns = vec![];
    for _ in 0..6 {
        let lease = world.only();
        turns.push(lease.run);
        world.succeed(&lease);
    }
    assert_eq!(turns, [one, two, one, two, one, two]);
}

#[test]
fn a_run_keeps_to_its_own_limit() {
    let mut world = World::new();
    let run = world.submit(plan(&["a", "b", "c"]).parallel(2));
    world.join("w", 8);
    assert_eq!(world.state.live_leases(run), 2);
    let lease = world.live()[0].clone();
    world.succeed(&lease);
    assert_eq!(world.at_work(), ["b", "c"]);
}

#[test]
fn overlapping_claims_never_run_at_the_same_time() {
    let mut world = World::new();
    let run = plan(&["all", "db", "schema", "web", "near", "free"])
        .paths(0, &["."])
        .paths(1, &["src/db/"])
        .paths(2, &["src/db/schema.sql", "doc"])
        .paths(3, &["src/web"])
        .paths(4, &["src/db2"]);
    world.submit(run);
    world.join("w", 8);
    assert_eq!(world.at_work(), ["all", "free"]);
    let all = world.live()[0].clone();
    world.succeed(&all);
    assert_eq!(world.at_work(), ["db", "free", "near", "web"]);
    let db = world
        .live()
        .iter()
        .find(|lease| lease.id.0 == 3)
        .unwrap()
        .clone();
    world.succeed(&db);
    assert_eq!(world.at_work(), ["free", "near", "schema", "web"]);
}

#[test]
fn requirements_are_met_or_the_task_waits() {
    let mut world = World::new();
    let mut run = plan(&["agent", "pool", "label", "gpu1", "gpu2", "plain"]);
    run.0.tasks[0].profile.requirement.agent = text("claude");
    run.0.tasks[1].profile.requirement.pool = Some(text("slurm"));
    run.0.tasks[2].profile.requirement.labels = labels(&["os=linux"]);
    for task in [3, 4] {
        let needs = &mut run.0.tasks[task].profile.requirement.resources;
        needs.insert(text("gpus"), 1);
    }
    world.submit(run);
    world.join("plain", 8);
    assert_eq!(world.at_work(), ["plain"]);
    let gpu = Offer {
        resources: [(text("gpus"), 1)].into(),
        labels: labels(&["os=linux", "fast"]),
        ..offer(8)
    };
    world.hello("gpu", 1, gpu);
    world.beat("gpu");
    assert_eq!(world.at_work(), ["gpu1", "label", "plain"]);
    let first = world
        .live()
        .into_iter()
        .find(|lease| lease.id.0 == 3)
        .unwrap();
    world.succeed(&first);
    assert_eq!(world.at_work(), ["gpu2", "label", "plain"]);
    let slurm = Offer {
        pool: text("slurm"),
        agents: labels(&["claude", "command"]),
        ..offer(2)
    };
    world.hello("slurm", 1, slurm);
    world.beat("slurm");
    assert_eq!(world.at_work(), ["agent", "gpu2", "label", "plain", "pool"]);
}

#[test]
fn work_spreads_over_the_workers_with_most_free_slots() {
    let mut world = World::new();
    world.join("a", 2);
    world.join("b", 4);
    world.submit(plan(&["t1", "t2", "t3", "t4"]));
    let workers: Vec<String> = world.live().iter().map(|l| l.worker.to_string()).collect();
    assert_eq!(workers, ["b", "b", "a", "b"]);
}

#[test]
fn a_worker_is_never_granted_more_than_it_said() {
    let mut world = World::new();
    world.submit(plan(&["a", "b", "c", "d"]));
    world.hello("w", 1, offer(3));
    assert_eq!(world.live(), vec![], "nothing before the first heartbeat");
    world.beat("w");
    assert_eq!(world.live().len(), 3);
    // A heartbeat that the worker sent before it saw the grants must not lead to more.
    world.beat_with("w", vec![]);
    assert_eq!(world.live().len(), 3);
    let lease = world.live()[0].clone();
    world.say(&lease, made("c"));
    assert_eq!(
        world.live().len(),
        2,
        "a slot is free when the worker says so"
    );
    world.beat("w");
    assert_eq!(world.live().len(), 3);
}

#[test]
fn verifies_go_before_new_attempts() {
    let mut world = World::new();
    world.submit(plan(&["a", "b"]).verified());
    world.join("w", 1);
    let lease = world.only();
    world.succeed(&lease);
    assert_eq!(world.at_work(), ["(a)"]);
}

#[test]
fn a_straggler_holds_up_its_own_chain_only() {
    // Eight chains of five; in each wave another chain has the slow task.
    let (chains, waves) = (8usize, 5usize);
    let mut lines = vec![];
    for wave in 0..waves {
        for chain in 0..chains {
            lines.push(if wave == 0 {
                format!("c{chain}w0")
            } else {
                format!("c{chain}w{wave}: c{chain}w{}", wave - 1)
            });
        }
    }
    let lines: Vec<&str> = lines.iter().map(|line| &**line).collect();
    let mut world = World::new();
    let run = world.submit(plan(&lines));
    world.join("w", 8);
    let begin = world.now;
    let (fast, slow) = (Span::from_secs(10), Span::from_secs(100));
    for _ in &lines {
        let due = |lease: &crate::state::Lease| {
            let crate::event::Work::Attempt { task, .. } = lease.work else {
                panic!("{lease:?}");
            };
            let (wave, chain) = (task.0 as usize / chains, task.0 as usize % chains);
            lease.granted_at + if wave == chain { slow } else { fast }
        };
        let live = world.live();
        let next = live
            .iter()
            .min_by_key(|lease| (due(lease), lease.id))
            .unwrap();
        let wait = due(next).since(world.now);
        world.pass_beating(wait, &["w"]);
        world.succeed(next);
    }
    assert!(world.state.run(run).unwrap().is_ended());
    // The critical path is one slow task and four fast ones; waves would take five slow ones.
    assert_eq!(world.now.since(begin), Span::from_secs(140));
}

#[test]
fn one_round_grants_a_bounded_number_and_the_next_goes_on() {
    let names: Vec<String> = (0..limits::GRANTS_PER_ROUND + 10)
        .map(|n| format!("t{n}"))
        .collect();
    let names: Vec<&str> = names.iter().map(|name| &**name).collect();
    let mut world = World::new();
    for name in ["w1", "w2"] {
        world.hello(name, 1, offer(limits::SLOTS_PER_WORKER));
        let beat = world.heartbeat(name, vec![]).unwrap();
        crate::step(&mut world.state, world.now, &beat).unwrap();
    }
    world.submit(plan(&names));
    assert_eq!(world.live().len(), limits::GRANTS_PER_ROUND);
    world.act(&Command::Tick);
    assert_eq!(world.live().len(), names.len());
}

#[test]
fn a_delay_that_is_over_wakes_no_coordinator_that_begins_nothing_new() {
    let mut world = World::new();
    world.submit(plan(&["a"]).retries(1));
    world.join("w", 1);
    let lease = world.only();
    world.fail(&lease, FailureClass::AgentFailed);
    let (at, reason) = next_wakeup(&world.state).unwrap();
    assert_eq!(reason, WakeReason::Delay);
    promote(&mut world.state, at);
    assert!(next_wakeup(&world.state).is_none_or(|(next, _)| next > at));
    assert!(world.live().is_empty());
}

#[test]
fn a_verify_goes_before_attempts_of_another_kind_that_rank_higher() {
    let mut world = World::new();
    let mut run = plan(&["checked", "urgent"]).verified();
    run.0.tasks[0].profile.requirement.agent = text("codex");
    run.0.tasks[0].profile.verify.as_mut().unwrap().requirement = needs("codex");
    run.0.tasks[1].priority = 10;
    world.submit(run);
    let only_codex = Offer {
        agents: labels(&["codex"]),
        ..offer(1)
    };
    world.hello("w", 1, only_codex);
    world.beat("w");
    let attempt = world.only();
    world.say(&attempt, made("c"));
    world.hello("w", 1, offer(1));
    world.beat("w");
    assert_eq!(world.at_work(), ["(checked)"]);
}

#[test]
fn a_claim_of_everything_waits_for_every_claim_and_names_that_only_begin_alike_do_not_meet() {
    let mut world = World::new();
    let run = plan(&["part", "all", "alike", "folder"])
        .paths(0, &["src/db"])
        .paths(1, &["."])
        .paths(2, &["lib2"])
        .paths(3, &["lib"]);
    world.submit(run);
    world.join("w", 8);
    assert_eq!(world.at_work(), ["alike", "folder", "part"]);
}

#[test]
fn a_resource_that_is_given_back_is_lent_once() {
    let mut world = World::new();
    let run = plan(&["a", "b", "c", "d"]).each(|task| {
        let needs = &mut task.profile.requirement.resources;
        needs.insert(text("gpus"), 1);
        needs.insert(text("licences"), 0);
    });
    world.submit(run);
    let two = Offer {
        resources: [(text("gpus"), 2)].into(),
        ..offer(8)
    };
    world.hello("w", 1, two);
    world.beat("w");
    assert_eq!(world.at_work(), ["a", "b"]);
    let first = world.live().remove(0);
    world.succeed(&first);
    assert_eq!(world.at_work(), ["b", "c"]);
}

#[test]
fn a_task_that_prefers_it_runs_where_its_dependency_ran_if_there_is_a_slot() {
    for near in [false, true] {
        let mut world = World::new();
        let on = |host: &str, slots| Offer {
            host: text(host),
            ..offer(slots)
        };
        let plan = plan(&["a", "b: a"]).each(|task| task.profile.near = near);
        world.hello("small", 1, on("one", 1));
        world.beat("small");
        world.submit(plan);
        let lease = world.only();
        assert_eq!(lease.worker.as_str(), "small");
        world.hello("large", 1, on("two", 8));
        world.beat("large");
        world.started(&lease);
        // Its slot is known to be free only with its next heartbeat.
        world.hello("other", 1, on("one", 1));
        world.beat("other");
        world.say(&lease, made("c"));
        let next = world.only();
        let expected = if near { "other" } else { "large" };
        assert_eq!(next.worker.as_str(), expected);
    }
}
