//! Persist, then speak: what comes out of a batch, and when.

use super::world::*;
use crate::batch::{Batch, Journal, Leases};
use crate::command::{Rejection, Reply};
use crate::event::Event;
use crate::time::{Span, Timestamp};
use crate::{Command, Effect, Epoch, State, WakeReason, limits, next_wakeup, step};

/// Keeps rows, or refuses them.
#[derive(Default)]
struct Rows {
    rows: Vec<(Timestamp, Vec<Event>)>,
    broken: bool,
}

#[derive(PartialEq, Eq, Debug)]
struct DiskFull;

impl Journal for Rows {
    type Error = DiskFull;

    fn append(&mut self, now: Timestamp, events: &[Event]) -> Result<(), DiskFull> {
        if self.broken {
            return Err(DiskFull);
        }
        self.rows.push((now, events.to_vec()));
        Ok(())
    }
}

fn submit(name: &str) -> Command {
    Command::Submit {
        spec: std::sync::Arc::new(plan(&["a"]).named(name).0),
        key: None,
        digest: text("digest"),
    }
}

fn unknown_drain() -> Command {
    Command::Drain {
        worker: worker("nobody"),
        draining: true,
        by: text("me"),
    }
}

#[test]
fn a_batch_is_one_row_and_answers_in_the_order_of_its_commands() {
    let mut world = World::new();
    world.join("w", 2);
    let mut rows = Rows::default();
    let mut batch = Batch::open(&mut world.state, world.now);
    batch.take(&submit("first"));
    batch.take(&unknown_drain());
    batch.take(&submit("second"));
    let committed = batch.close(Leases::Grant).commit(&mut rows).unwrap();
    let [first, refused, second] = &committed.replies[..] else {
        panic!("{:?}", committed.replies)
    };
    assert!(matches!(first, Ok(Reply::Submitted { run, .. }) if run.0 == 1));
    assert!(matches!(refused, Err(Rejection::UnknownWorker(_))));
    assert!(matches!(second, Ok(Reply::Submitted { run, .. }) if run.0 == 2));
    assert_eq!(rows.rows, [(world.now, committed.events)]);
    let grants = committed
        .effects
        .iter()
        .filter(|effect| matches!(effect, Effect::Grant { .. }));
    assert_eq!(grants.count(), 2);
}

#[test]
fn a_batch_in_which_nothing_happened_writes_nothing_and_still_answers() {
    let mut state = State::new();
    let mut rows = Rows {
        broken: true,
        ..Rows::default()
    };
    let mut batch = Batch::open(&mut state, Timestamp::from_ms(1));
    batch.take(&unknown_drain());
    let committed = batch.close(Leases::Grant).commit(&mut rows).unwrap();
    assert_eq!(committed.replies.len(), 1);
    assert_eq!(committed.effects, []);
}

#[test]
fn a_commit_that_fails_gives_the_error_and_nothing_else() {
    let mut state = State::new();
    let mut rows = Rows {
        broken: true,
        ..Rows::default()
    };
    let mut batch = Batch::open(&mut state, Timestamp::from_ms(1));
    batch.take(&submit("lost"));
    let failed = batch.close(Leases::Grant).commit(&mut rows);
    assert_eq!(failed.unwrap_err(), DiskFull);
}

#[test]
fn the_end_of_a_batch_does_what_is_due() {
    let mut world = World::new();
    world.join("w", 1);
    world.submit(plan(&["a"]));
    let lease = world.only();
    let mut rows = Rows::default();
    let batch = Batch::open(&mut world.state, lease.expires_at);
    let committed = batch.close(Leases::Grant).commit(&mut rows).unwrap();
    assert!(!committed.events.is_empty());
    assert!(
        committed.replies.is_empty(),
        "the tick is nobody's question"
    );
    assert!(world.state.lease(lease.id).is_none());
}

#[test]
fn while_held_a_batch_grants_nothing_and_is_not_woken_by_delays_that_are_over() {
    let mut world = World::new();
    world.join("w", 1);
    world.submit(plan(&["a"]).retries(1));
    let lease = world.only();
    world.fail(&lease, crate::FailureClass::AgentFailed);
    let (at, reason) = next_wakeup(&world.state).unwrap();
    assert_eq!(reason, WakeReason::Delay);
    let later = at + Span::from_ms(1);
    let mut rows = Rows::default();
    let batch = Batch::open(&mut world.state, later);
    let committed = batch.close(Leases::Hold).commit(&mut rows).unwrap();
    assert_eq!(committed.effects, []);
    assert!(next_wakeup(&world.state).is_none_or(|(at, _)| at > later));
    let batch = Batch::open(&mut world.state, later);
    let committed = batch.close(Leases::Grant).commit(&mut rows).unwrap();
    assert!(matches!(&committed.effects[..], [Effect::Grant { .. }]));
}

#[test]
fn a_start_is_written_with_the_grants_it_leads_to() {
    let mut state = State::new();
    let mut rows = Rows::default();
    let batch = Batch::start(&mut state, Timestamp::from_ms(5), Epoch(3));
    let committed = batch.close(Leases::Grant).commit(&mut rows).unwrap();
    assert_eq!(kinds(&committed.events), ["started"]);
    assert_eq!(rows.rows.len(), 1);
    assert_eq!(state.epoch(), Epoch(3));
}

#[cfg(debug_assertions)]
#[test]
#[should_panic(expected = "is too new")]
fn a_debug_build_stops_at_a_small_state_that_does_not_hold_together() {
    let mut state = broken(limits::TASKS_CHECKED);
    let _ = step(&mut state, Timestamp::from_ms(1), &Command::Tick);
}

#[test]
fn a_state_that_is_not_small_is_not_checked_after_each_step() {
    let mut state = broken(limits::TASKS_CHECKED + 1);
    let ticked = step(&mut state, Timestamp::from_ms(1), &Command::Tick);
    assert_eq!(ticked.unwrap().events, []);
}

/// A state with a run of so many tasks that is not the coordinator's own.
fn broken(tasks: usize) -> State {
    let names: Vec<String> = (0..tasks).map(|nth| format!("t{nth}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut world = World::new();
    let run = world.submit(plan(&names));
    world.state.next_run = run;
    world.state
}
