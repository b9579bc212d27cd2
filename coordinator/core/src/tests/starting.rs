//! Images, journals that do not hold together, and the size of things.

use super::world::*;
use crate::recovery::ReplayError;
use crate::state::{Task, TaskState};
use crate::{Effect, Epoch, State, WakeReason, effects, next_wakeup};

fn busy() -> World {
    let mut world = World::new();
    world.join("w", 2);
    world.submit(plan(&["a", "b", "c: a b"]).verified().retries(1));
    let lease = world.live()[0].clone();
    world.started(&lease);
    world.succeed(&lease);
    world
}

#[test]
fn a_state_comes_back_from_its_image() {
    let world = busy();
    let image = world.state.image();
    let state = State::from_image(image.clone(), world.now).unwrap();
    assert_eq!(state.image(), image);
}

#[test]
fn leases_from_an_old_image_have_their_full_time() {
    let image = busy().state.image();
    let later = crate::Timestamp::from_ms(1_000_000_000);
    let state = State::from_image(image, later).unwrap();
    let full = crate::limits::LEASE_TTL + crate::limits::LEASE_GRACE;
    assert_ne!(state.leases().len(), 0);
    assert!(state.leases().all(|lease| lease.expires_at == later + full));
}

#[test]
fn an_image_whose_leases_hang_loose_is_refused() {
    let mut image = busy().state.image();
    image.runs.clear();
    assert!(matches!(
        State::from_image(image, crate::Timestamp::default()),
        Err(ReplayError::Image(_))
    ));
}

#[test]
fn a_gap_in_a_journal_is_named() {
    let world = busy();
    let mut state = State::new();
    for event in world.log.iter().take(3) {
        state.replay(event).unwrap();
    }
    let refused = state.replay(&world.log[4]).unwrap_err();
    assert_eq!(refused.to_string(), "event 4 of run#1 follows event 2");
    state.replay(&world.log[3]).unwrap();
}

#[test]
fn a_start_counts_the_epoch_and_gives_every_lease_its_full_time() {
    let mut world = busy();
    let mut state = world.replayed();
    world.now = world.now + crate::Span::from_secs(1_000_000);
    let events = state.start(world.now, Epoch(7));
    assert_eq!(kinds(&events), ["started"]);
    assert_eq!(state.epoch(), Epoch(7));
    let full = crate::limits::LEASE_TTL + crate::limits::LEASE_GRACE;
    assert!(
        state
            .leases()
            .all(|lease| lease.expires_at == world.now + full)
    );
    assert_eq!(state.connected().count(), 0);
}

#[test]
fn grants_and_wake_ups_leave_the_core() {
    let mut world = World::new();
    assert_eq!(next_wakeup(&world.state), None);
    world.submit(plan(&["a"]).retries(1));
    world.hello("w", 1, offer(1));
    let events = world.beat("w");
    let lease = world.only();
    let grant = Effect::Grant {
        worker: worker("w"),
        lease: lease.id,
    };
    assert_eq!(effects(&world.state, &events), [grant]);
    assert_eq!(
        next_wakeup(&world.state),
        Some((lease.expires_at, WakeReason::Deadline))
    );
    world.fail(&lease, crate::FailureClass::AgentFailed);
    let (at, reason) = next_wakeup(&world.state).unwrap();
    assert_eq!(reason, WakeReason::Delay);
    assert!(at > world.now);
}

#[test]
fn a_waiting_task_is_small() {
    assert!(size_of::<Task>() <= 200, "{} bytes", size_of::<Task>());
    assert!(
        size_of::<TaskState>() <= 80,
        "{} bytes",
        size_of::<TaskState>()
    );
}

#[test]
fn no_id_of_a_restored_home_is_one_that_the_lost_life_may_have_given() {
    let world = busy();
    let mut state = State::new();
    world
        .log
        .iter()
        .for_each(|event| state.replay(event).unwrap());
    let before = state.image();
    let epoch = Epoch(Epoch::RESTORED.0 + 7);
    let events = state.start(world.now, epoch);
    let after = state.image();
    assert_eq!(after.next_lease.0, epoch.0);
    assert_eq!(
        (after.next_run.0, after.next_question.0),
        (epoch.0, epoch.0)
    );
    assert_eq!(after.leases, before.leases);
    // What was journaled says the same, and the next start takes nothing back.
    let mut replayed = State::new();
    for event in world.log.iter().chain(&events) {
        replayed.replay(event).unwrap();
    }
    assert_eq!(replayed.image(), after);
    let events = replayed.start(world.now, Epoch(epoch.0 + 1));
    assert_eq!(events.len(), 1);
    assert_eq!(replayed.image().next_lease.0, epoch.0 + 1);
}
