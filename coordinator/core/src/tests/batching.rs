//! Persist, then speak: what comes out of a batch, and when.

use super::world::*;
use crate::batch::{Batch, Journal, Leases};
use crate::command::{Rejection, Reply};
use crate::event::Event;
use crate::time::{Span, Timestamp};
use crate::{Command, Effect, Epoch, State, WakeReason, next_wakeup};

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
