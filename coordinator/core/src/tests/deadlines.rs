//! What is not done in time fails, and says so.

use super::world::*;
use crate::event::RunOutcome;
use crate::failure::FailureClass;
use crate::ids::RunId;
use crate::limits;
use crate::state::{RunPhase, TaskState};

#[test]
fn a_task_that_nobody_can_take_fails_as_not_placed() {
    let mut world = World::new();
    let run = world.submit(plan(&["a"]).retries(5));
    world.pass(limits::QUEUE_DEADLINE);
    let TaskState::Failed { failure, .. } = world.task_state(run, "a") else {
        panic!("{}", world.states(run));
    };
    assert_eq!(failure.class, FailureClass::NotPlaced);
}

#[test]
fn a_merge_that_never_comes_fails_its_task() {
    let mut world = World::new();
    world.join("w", 2);
    let run = world.submit(plan(&["a", "b", "c: a b"]));
    for lease in world.live() {
        world.succeed(&lease);
    }
    world.pass(limits::GIT_STEP_DEADLINE);
    assert_eq!(world.states(run), "a=succeeded b=succeeded c=failed");
}

/// A run whose only task has succeeded and whose integration is to be made.
fn integrating() -> (World, RunId) {
    let mut world = World::new();
    world.join("w", 1);
    let run = world.submit(plan(&["a"]).integrated(Some(verify())));
    let lease = world.only();
    world.succeed(&lease);
    world.close("w");
    assert!(matches!(world.phase(run), RunPhase::Integrating { .. }));
    (world, run)
}

fn class_of_end(world: &World, run: RunId) -> FailureClass {
    match world.phase(run) {
        RunPhase::Ended {
            outcome: RunOutcome::Failed(failure),
            ..
        } => failure.class,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_integration_that_never_comes_fails_its_run() {
    let (mut world, run) = integrating();
    world.pass(limits::GIT_STEP_DEADLINE);
    assert_eq!(class_of_end(&world, run), FailureClass::Internal);
    assert_eq!(world.states(run), "a=succeeded");
}

#[test]
fn a_final_verify_that_nobody_can_take_fails_its_run_as_not_placed() {
    let (mut world, run) = integrating();
    world.merge_all();
    world.pass(limits::QUEUE_DEADLINE);
    assert_eq!(class_of_end(&world, run), FailureClass::NotPlaced);
}
