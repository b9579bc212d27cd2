//! New generations, archive and reload.

use std::sync::Arc;

use super::world::*;
use crate::command::{Report, ReportAnswer, Target};
use crate::event::RunOutcome;
use crate::failure::FailureClass;
use crate::state::RunPhase;
use crate::time::Span;
use crate::{Command, limits};

/// a fails; b succeeds; c waits for a, d for c and b, e for b; x fails too and g waits for x and c.
fn broken() -> (World, crate::RunId) {
    let mut world = World::new();
    world.join("w", 8);
    let run = world.submit(plan(&["a", "b", "c: a", "d: c b", "e: b", "x", "g: x c"]));
    let names: Vec<_> = world.live();
    world.fail(&names[0], FailureClass::AgentFailed);
    world.succeed(&names[1]);
    world.fail(&names[2], FailureClass::AgentFailed);
    let e = world.only();
    world.succeed(&e);
    assert_eq!(
        world.states(run),
        "a=failed b=succeeded c=skipped d=skipped e=succeeded x=failed g=skipped"
    );
    assert!(world.state.run(run).unwrap().is_ended());
    (world, run)
}

#[test]
fn retrying_a_task_reopens_it_and_what_only_it_kept_back() {
    let (mut world, run) = broken();
    let a = world.key(run, "a");
    assert_eq!(world.retry(Target::Task(a)), 3);
    assert_eq!(
        world.states(run),
        "a=leased b=succeeded c=blocked d=blocked e=succeeded x=failed g=skipped"
    );
    assert_eq!(*world.phase(run), RunPhase::Active);
    assert_eq!(world.state.task(a).unwrap().generation, 2);
    let lease = world.only();
    assert!(matches!(lease.work, crate::event::Work::Attempt { attempt, .. } if attempt.0 == 2));
    for _ in ["a", "c"] {
        let lease = world.only();
        world.succeed(&lease);
    }
    world.merge_all();
    let d = world.only();
    world.succeed(&d);
    assert!(world.state.run(run).unwrap().is_ended());
    let x = world.key(run, "x");
    assert_eq!(world.retry(Target::Task(x)), 2);
    let x = world.only();
    world.succeed(&x);
    world.merge_all();
    let g = world.only();
    world.succeed(&g);
    assert!(matches!(
        world.phase(run),
        RunPhase::Ended {
            outcome: RunOutcome::Succeeded,
            ..
        }
    ));
    world.replayed();
}

#[test]
fn a_base_of_an_earlier_generation_is_not_wanted_any_more() {
    let mut world = World::new();
    world.join("w", 2);
    let run = world.submit(plan(&["a", "b", "c: a b"]));
    for lease in world.live() {
        world.succeed(&lease);
    }
    let old = crate::git_work(&world.state);
    let c = world.key(run, "c");
    world.cancel(Target::Task(c));
    assert_eq!(world.retry(Target::Task(c)), 1);
    assert_eq!(world.states(run), "a=succeeded b=succeeded c=basing");
    assert_eq!(world.refused(&merged(&old[0], Ok(()))).code(), "STEP_STALE");
    world.merge_all();
    assert_eq!(world.at_work(), ["c"]);
}

#[test]
fn retrying_a_run_reopens_all_that_did_not_succeed() {
    let (mut world, run) = broken();
    assert_eq!(world.retry(Target::Run(run)), 5);
    assert_eq!(
        world.states(run),
        "a=leased b=succeeded c=blocked d=blocked e=succeeded x=leased g=blocked"
    );
}

#[test]
fn a_skipped_task_is_not_retried_before_what_kept_it_back() {
    let (mut world, run) = broken();
    let by = text("me");
    let g = Target::Task(world.key(run, "g"));
    let refused = world.refused(&Command::Retry { target: g, by });
    assert_eq!(
        refused.to_string(),
        "task g depends on a, which has not succeeded: retry that"
    );
    let by = text("me");
    let b = Target::Task(world.key(run, "b"));
    let refused = world.refused(&Command::Retry { target: b, by });
    assert_eq!(
        refused.to_string(),
        "task b cannot be retried: its state is succeeded"
    );
}

#[test]
fn a_cancelled_run_can_be_retried_while_its_old_work_still_stops() {
    let mut world = World::new();
    world.join("w", 2);
    let run = world.submit(plan(&["a"]));
    let old = world.only();
    world.cancel(Target::Run(run));
    assert_eq!(world.retry(Target::Run(run)), 1);
    assert_eq!(world.live(), vec![]);
    assert_eq!(world.say(&old, Report::Stopped), ReportAnswer::Recorded);
    world.beat("w");
    let new = world.only();
    assert!(new.id > old.id);
    world.succeed(&new);
    assert_eq!(world.states(run), "a=succeeded");
    assert_eq!(
        world.say(&old, Report::Stopped),
        ReportAnswer::AlreadyRecorded
    );
    assert!(matches!(
        world.phase(run),
        RunPhase::Ended {
            outcome: RunOutcome::Succeeded,
            ..
        }
    ));
}

#[test]
fn an_archived_run_comes_back_with_its_history_and_numbers() {
    let (mut world, run) = broken();
    let image = Arc::new(world.state.run_image(run).unwrap());
    let last = image.run.last_seq;
    world.act(&Command::Archived {
        run,
        last_seq: last,
    });
    assert!(world.state.run(run).is_none());
    let events = world.act(&Command::Reload {
        image: image.clone(),
    });
    assert_eq!(events[0].seq, last + 2);
    assert_eq!(world.refused(&Command::Reload { image }).code(), "NOT_NOW");
    assert_eq!(world.retry(Target::Run(run)), 5);
    world.replayed();
}

#[test]
fn a_retried_task_waits_until_its_cancelled_attempt_has_ended() {
    let mut world = World::new();
    world.join("w", 2);
    let run = world.submit(plan(&["a", "b"]));
    let first = world.live().remove(0);
    let key = world.key(run, "a");
    world.started(&first);
    world.cancel(Target::Task(key));
    assert_eq!(world.retry(Target::Task(key)), 1);
    world.beat_with("w", vec![first.id]);
    assert_eq!(world.at_work(), ["b"]);
    assert_eq!(world.states(run), "a=ready b=leased");
    let why = crate::explain::explain(&world.state, world.now, key).to_string();
    assert_eq!(
        why,
        "it waits: what was begun of it before is being ended on w"
    );
    assert_eq!(world.say(&first, Report::Stopped), ReportAnswer::Recorded);
    world.beat("w");
    assert_eq!(world.at_work(), ["a", "b"]);
    world.replayed();
}

#[test]
fn a_task_that_took_too_long_is_tried_again_when_its_attempt_has_ended() {
    let mut world = World::new();
    world.join("w", 2);
    let run = world.submit(plan(&["a"]).retries(1));
    let first = world.only();
    world.started(&first);
    world.pass_beating(Span::from_secs(600 + 121), &["w"]);
    assert!(
        world
            .state
            .lease(first.id)
            .is_some_and(|lease| lease.revoked)
    );
    assert_eq!(world.states(run), "a=ready");
    // It does not stop, but its lease is not renewed any more.
    for _ in 0..3 {
        world.pass(Span::from_secs(10));
        world.beat_with("w", vec![first.id]);
        assert_eq!(world.live(), vec![]);
    }
    world.pass(limits::LEASE_TTL + limits::LEASE_GRACE);
    assert_eq!(world.state.lease(first.id), None);
    world.beat("w");
    assert_eq!(world.at_work(), ["a"]);
}

#[test]
fn a_final_verify_waits_for_the_one_of_the_cancelled_run() {
    let mut world = World::new();
    world.join("w", 2);
    let run = world.submit(plan(&["a"]).integrated(Some(verify())));
    let lease = world.only();
    world.succeed(&lease);
    world.merge_all();
    let first = world.only();
    world.cancel(Target::Run(run));
    world.retry(Target::Run(run));
    world.merge_all();
    world.beat_with("w", vec![first.id]);
    assert_eq!(world.live(), vec![]);
    assert_eq!(world.say(&first, Report::Stopped), ReportAnswer::Recorded);
    world.beat("w");
    assert_eq!(world.at_work(), ["(final)"]);
}

#[test]
fn only_an_ended_run_of_this_home_can_be_reloaded() {
    let mut world = World::new();
    let run = world.submit(plan(&["a"]));
    let live = Arc::new(world.state.run_image(run).unwrap());
    world.cancel(Target::Run(run));
    let ended = Arc::new(world.state.run_image(run).unwrap());
    let archived = world.archived(run);
    world.act(&archived);
    let refused = world.refused(&Command::Reload { image: live });
    assert_eq!(refused.code(), "NOT_NOW");
    let reload = Command::Reload { image: ended };
    assert_eq!(World::new().refused(&reload).code(), "NOT_NOW");
    world.act(&reload);
}

#[test]
fn a_run_that_went_on_is_not_reloaded_from_what_it_was_before() {
    let mut world = World::new();
    world.join("w", 1);
    let run = world.submit(plan(&["a"]));
    let archive = |world: &mut World| {
        let image = Arc::new(world.state.run_image(run).unwrap());
        let archived = world.archived(run);
        world.act(&archived);
        image
    };
    let lease = world.only();
    world.fail(&lease, FailureClass::AgentFailed);
    let old = archive(&mut world);
    world.act(&Command::Reload {
        image: Arc::clone(&old),
    });
    world.retry(Target::Run(run));
    world.beat("w");
    let lease = world.only();
    world.fail(&lease, FailureClass::AgentFailed);
    let new = archive(&mut world);
    let refused = world.refused(&Command::Reload { image: old });
    assert_eq!(refused.code(), "NOT_NOW");
    world.act(&Command::Reload { image: new });
}
