//! Persist, then speak: commands decided together, written together, and only then told.
//!
//! A [`Batch`] takes commands and keeps what it would say to itself. Closed, it can be committed to a
//! [`Journal`], and only the [`Committed`] batch that comes out of it has replies and effects. A batch
//! that is dropped, or whose commit fails, takes them with it.

use crate::command::{Command, Rejection, Reply};
use crate::decide::{Step, step};
use crate::effects::{Effect, effects, next_wakeup};
use crate::event::Event;
use crate::ids::Epoch;
use crate::schedule::{promote, schedule};
use crate::state::State;
use crate::time::Timestamp;

/// Where a batch is written before anybody hears of it.
pub trait Journal {
    type Error;

    /// Writes the events, of which there is at least one, as one row: all or none of them are there
    /// after a restart.
    ///
    /// # Errors
    /// The row may or may not be there. The state is ahead of the journal and must be thrown away:
    /// the one way on is a restart from what the journal holds.
    fn append(&mut self, now: Timestamp, events: &[Event]) -> Result<(), Self::Error>;
}

/// Whether the end of a batch gives out leases.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leases {
    /// Ready work goes to free slots.
    Grant,
    /// Nothing new begins; delays that are over are still noticed, so that they wake nobody again.
    Hold,
}

/// Commands that are being decided. The state is ahead of the journal until the batch is committed.
///
/// There is no way to what a batch would say but through its commit:
///
/// ```compile_fail,E0616
/// # use coordinator_core::{Batch, Command, State, Timestamp};
/// let mut state = State::new();
/// let mut batch = Batch::open(&mut state, Timestamp::from_ms(1));
/// batch.take(&Command::Tick);
/// let said = batch.replies;
/// ```
///
/// ```compile_fail,E0639
/// use coordinator_core::batch::Committed;
/// let forged = Committed { replies: vec![], effects: vec![], events: vec![] };
/// ```
#[must_use = "a batch that is not committed leaves the state ahead of the journal"]
#[derive(Debug)]
pub struct Batch<'s> {
    state: &'s mut State,
    now: Timestamp,
    events: Vec<Event>,
    replies: Vec<Result<Reply, Rejection>>,
}

/// A batch that takes no more commands.
#[must_use = "a batch that is not committed leaves the state ahead of the journal"]
#[derive(Debug)]
pub struct Closed<'s>(Batch<'s>);

/// What may be told, since it is in the journal. Made by [`Closed::commit`] and by nothing else.
#[non_exhaustive]
#[derive(Debug)]
pub struct Committed {
    /// Answers to the commands, in the order in which the batch took them.
    pub replies: Vec<Result<Reply, Rejection>>,
    /// What is to be done outside, after the replies.
    pub effects: Vec<Effect>,
    pub events: Vec<Event>,
}

impl<'s> Batch<'s> {
    /// Opens a batch; everything in it happens at `now`.
    pub fn open(state: &'s mut State, now: Timestamp) -> Self {
        Self {
            state,
            now,
            events: Vec::new(),
            replies: Vec::new(),
        }
    }

    /// Opens the first batch of a coordinator's start: it begins with what [`State::start`] records.
    pub fn start(state: &'s mut State, now: Timestamp, epoch: Epoch) -> Self {
        let events = state.start(now, epoch);
        Self {
            events,
            ..Self::open(state, now)
        }
    }

    /// Decides a command. Its reply, a refusal included, comes out of the commit.
    pub fn take(&mut self, command: &Command) {
        let reply = self.decide(command);
        self.replies.push(reply);
    }

    /// The state as it is inside the batch, for whoever checks or counts. Nothing of it may be told:
    /// it may never have happened.
    #[must_use]
    pub fn state(&self) -> &State {
        self.state
    }

    /// Does what is due, and gives out leases or not.
    pub fn close(mut self, leases: Leases) -> Closed<'s> {
        if next_wakeup(self.state).is_some_and(|(at, _)| at <= self.now) {
            // A tick cannot be refused and answers nobody; it only finds what is due.
            drop(self.decide(&Command::Tick));
        }
        match leases {
            Leases::Grant => self.events.append(&mut schedule(self.state, self.now)),
            Leases::Hold => promote(self.state, self.now),
        }
        Closed(self)
    }

    fn decide(&mut self, command: &Command) -> Result<Reply, Rejection> {
        let Step { mut events, reply } = step(self.state, self.now, command)?;
        self.events.append(&mut events);
        Ok(reply)
    }
}

impl Closed<'_> {
    /// The state as it is inside the batch; see [`Batch::state`].
    #[must_use]
    pub fn state(&self) -> &State {
        self.0.state
    }

    /// Writes the batch, if anything has happened in it, and gives what may now be told.
    ///
    /// # Errors
    /// The journal's error. Replies and effects are lost, and the state is of no use any more; see
    /// [`Journal::append`].
    pub fn commit<J: Journal>(self, journal: &mut J) -> Result<Committed, J::Error> {
        let Batch {
            state,
            now,
            events,
            replies,
        } = self.0;
        if !events.is_empty() {
            journal.append(now, &events)?;
        }
        Ok(Committed {
            replies,
            effects: effects(state, &events),
            events,
        })
    }
}
