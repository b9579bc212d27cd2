//! What people are told about tasks that do not run.

use super::world::*;
use crate::command::Target;
use crate::explain::explain;
use crate::failure::FailureClass;
use crate::time::Span;
use crate::worker::Offer;
use crate::{Command, RunId};

fn said(world: &World, run: RunId, task: &str) -> String {
    let told = explain(&world.state, world.now, world.key(run, task));
    match told.help() {
        Some(help) => format!("{told} → {help}"),
        None => told.to_string(),
    }
}

#[test]
fn a_blocked_task_names_what_it_waits_for() {
    let mut world = World::new();
    world.join("w", 1);
    let run = world.submit(plan(&["a", "b", "c: a b"]));
    assert_eq!(said(&world, run, "c"), "it waits for a (leased), b (ready)");
    assert_eq!(said(&world, run, "a"), "it runs on w");
    assert_eq!(
        said(&world, run, "b"),
        "it waits: the fitting workers are busy: 1 full → wait, or start more workers"
    );
}

#[test]
fn work_of_a_worker_that_fell_silent_is_not_said_to_run() {
    let mut world = World::new();
    world.join("w", 1);
    let run = world.submit(plan(&["a"]));
    world.now = world.now + Span::from_secs(40);
    assert_eq!(
        said(&world, run, "a"),
        "it was at work on w, of which nothing was heard for 40 s; if that goes on, another worker \
         gets it when the lease has run out"
    );
    world.close("w");
    assert!(said(&world, run, "a").contains("nothing was heard for 0 s"));
}

#[test]
fn a_skipped_and_a_failed_task_name_the_cause() {
    let mut world = World::new();
    world.join("w", 1);
    let run = world.submit(plan(&["a", "b: a", "c: b"]));
    let lease = world.only();
    world.fail(&lease, FailureClass::AgentFailed);
    assert_eq!(
        said(&world, run, "c"),
        "it was skipped because of task a, which failed: it did not work (agent_failed) → retry a"
    );
    assert_eq!(
        said(&world, run, "a"),
        "it failed: it did not work (agent_failed) → retry it"
    );
}

#[test]
fn what_workers_lack_is_counted() {
    let mut world = World::new();
    let mut gpu = plan(&["a"]);
    gpu.0.tasks[0].profile.requirement.agent = text("claude");
    let run = world.submit(gpu);
    assert_eq!(
        said(&world, run, "a"),
        "it waits: no worker is connected → start a worker"
    );
    world.join("v", 1);
    world.join("w", 1);
    assert_eq!(
        said(&world, run, "a"),
        "it waits: no connected worker fits: 2 without agent claude → \
         start a worker that has agent claude, or ask for less"
    );
}

#[test]
fn that_no_worker_fits_is_said_before_any_limit_that_passes() {
    let mut world = World::new();
    world.join("w", 1);
    let mut wanted = plan(&["a", "b"]).parallel(1);
    wanted.0.tasks[1].profile.requirement.agent = text("claude");
    let run = world.submit(wanted);
    assert_eq!(
        said(&world, run, "b"),
        "it waits: no connected worker fits: 1 without agent claude → \
         start a worker that has agent claude, or ask for less"
    );
}

#[test]
fn limits_claims_and_resources_are_named() {
    let mut world = World::new();
    let gpu = Offer {
        resources: [(text("gpus"), 1)].into(),
        ..offer(8)
    };
    world.hello("w", 1, gpu);
    world.beat("w");
    let one = world.submit(plan(&["a", "b"]).named("one").parallel(1));
    assert_eq!(
        said(&world, one, "b"),
        "it waits: its run runs 1 at once, as many as it may → raise the plan's max_parallel"
    );
    let two = plan(&["a", "b"])
        .named("two")
        .paths(0, &["src"])
        .paths(1, &["src/x"]);
    let two = world.submit(two);
    assert_eq!(
        said(&world, two, "b"),
        "it waits: task a is at work and claims src"
    );
    let needy = plan(&["a", "b"]).named("three").each(|task| {
        task.profile.requirement.resources.insert(text("gpus"), 1);
    });
    let three = world.submit(needy);
    assert_eq!(
        said(&world, three, "b"),
        "it waits: the fitting workers are busy: 1 short of a resource → \
         wait, or start more workers"
    );
    let more = plan(&["a"]).named("four").each(|task| {
        task.profile.requirement.resources.insert(text("gpus"), 2);
    });
    let four = world.submit(more);
    assert!(
        said(&world, four, "a").contains("gpus"),
        "no worker has two"
    );
    let (worker, by) = (worker("w"), text("me"));
    world.act(&Command::Drain {
        worker,
        draining: true,
        by,
    });
    assert_eq!(
        said(&world, three, "b"),
        "it waits: the fitting workers are busy: 1 draining → \
         end the draining, or start more workers"
    );
}

#[test]
fn delays_merges_questions_and_verifies_are_named() {
    let mut world = World::new();
    world.join("w", 2);
    let run = world.submit(plan(&["a", "b", "c: a b"]).retries(1));
    let live = world.live();
    world.fail(&live[0], FailureClass::AgentFailed);
    assert_eq!(
        said(&world, run, "a"),
        "it is tried again in 1 s, after agent_failed"
    );
    world.say(&live[1], asks(1, "why?"));
    assert_eq!(
        said(&world, run, "b"),
        "its agent waits for the answer to Q1: why? → answer it: `coordinator approve Q1` or \
         `coordinator deny Q1`"
    );
    world.succeed(&live[1]);
    world.pass(Span::from_secs(2));
    let again = world.only();
    world.succeed(&again);
    assert_eq!(
        said(&world, run, "c"),
        "the coordinator is merging its dependencies into its base"
    );
    assert_eq!(said(&world, run, "a"), "it succeeded");
    let checked = world.submit(plan(&["v"]).named("checked").verified());
    let lease = world.only();
    world.say(&lease, made("x"));
    world.beat_with("w", vec![lease.id]);
    let told = said(&world, checked, "v");
    assert_eq!(told, "its verify runs on w");
    world.cancel(Target::Run(checked));
    assert_eq!(
        said(&world, checked, "v"),
        "it was cancelled by me: enough → retry it"
    );
}

#[test]
fn why_work_runs_where_it_does_is_kept_with_its_grant() {
    use crate::event::{EventKind, Placement};
    let mut world = World::new();
    world.join("big", 3);
    world.join("small", 1);
    let mut odd = offer(4);
    odd.agents.clear();
    world.hello("odd", 1, odd);
    world.beat("odd");
    world.submit(plan(&["a"]));
    let seen = world.log.iter().find_map(|event| match &event.kind {
        EventKind::LeaseGranted {
            worker, placement, ..
        } => Some((worker.clone(), *placement)),
        _ => None,
    });
    let (worker, placement) = seen.unwrap();
    let wanted = Placement {
        free: 3,
        available: 3,
        passed: 1,
        continues: false,
        near: false,
    };
    assert_eq!((worker.as_str(), placement), ("big", wanted));
    assert_eq!(
        crate::explain::placed(&worker, placement),
        "on big: with 3 slots free it had the most of those that fit; 1 worker with as many or more \
         did not fit"
    );
}

#[test]
fn where_work_ran_is_told_in_a_sentence() {
    use crate::event::Placement;
    use crate::ids::WorkerId;
    let told = |free, available, passed, continues| {
        let seen = Placement {
            free,
            available,
            passed,
            continues,
            near: false,
        };
        crate::explain::placed(&WorkerId::new("w"), seen)
    };
    assert_eq!(
        told(0, 0, 0, false),
        "on w; why there is not known, since the lease is older than this record"
    );
    assert_eq!(
        told(1, 1, 0, false),
        "on w, the only worker that had a slot free"
    );
    assert_eq!(
        told(2, 5, 0, true),
        "on w, which has the conversation that goes on"
    );
    assert_eq!(
        told(2, 5, 0, false),
        "on w: with 2 slots free it had the most of the 5 workers that had any"
    );
}

#[test]
fn a_task_behind_questions_says_that_people_are_waited_for() {
    let mut world = World::new();
    world.join("w", 1);
    let run = world.submit(plan(&["a", "b"]));
    let lease = world.only();
    world.started(&lease);
    world.say(&lease, asks(1, "which?"));
    assert_eq!(
        said(&world, run, "b"),
        "it waits: the fitting workers are busy: 1 full; in one slot an agent waits for a person's \
         answer → answer what agents ask (`coordinator approvals`), or start more workers"
    );
}
