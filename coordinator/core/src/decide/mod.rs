//! What a command leads to. Pure: a decision is events to be recorded, touches of what is
//! volatile, and an answer; or a refusal, after which nothing has changed.

mod attempt;
mod cancel;
mod git;
mod question;
mod retry;
mod session;
mod submit;
mod timer;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::command::{Command, Rejection, Reply};
use crate::event::{Event, EventKind};
use crate::ids::{AllocationId, LeaseId, WorkerId};
use crate::pool::{Hold, Policy};
use crate::settle;
use crate::state::{Link, State};
use crate::time::{Span, Timestamp};
use crate::worker::DeclaredAgent;

/// What a command leads to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decision {
    pub events: Vec<EventKind>,
    /// To be applied after the events.
    pub touches: Vec<Touch>,
    pub reply: Reply,
}

/// A change of the volatile part; lost at a restart without harm.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Touch {
    /// The worker has a session, which it opened with this hello.
    Up {
        worker: WorkerId,
        session: u64,
        hello: u64,
        draining: bool,
        time_left: Option<Span>,
    },
    /// A heartbeat came; `credit` is how many grants the worker takes until the next one.
    Beat {
        worker: WorkerId,
        seq: u64,
        free_slots: u32,
        credit: u32,
        draining: bool,
        time_left: Option<Span>,
        /// Replaces what the worker said before about declared agents, if it says anything.
        looked: Option<BTreeMap<DeclaredAgent, bool>>,
    },
    /// The worker's stream is gone; `leaves` if the worker has said that it ends.
    Down { worker: WorkerId, leaves: bool },
    /// A lease has a full TTL plus grace from now.
    Renew { lease: LeaseId },
    /// Nothing has needed the allocation from now on, or something does again.
    Idle {
        allocation: AllocationId,
        idle: bool,
    },
    /// From now on work waits in vain for what the allocation has, or no more.
    Vain {
        allocation: AllocationId,
        vain: bool,
    },
    /// Its provider holds the allocation from now on, or gives another reason, or does no more.
    Held {
        allocation: AllocationId,
        reason: Option<Box<str>>,
    },
    /// How pools are to be run.
    Pools(BTreeMap<Arc<str>, Policy>),
}

/// What a step did: events in their order, to be persisted before the reply leaves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    pub events: Vec<Event>,
    pub reply: Reply,
}

impl Decision {
    fn new(events: Vec<EventKind>, reply: Reply) -> Self {
        let touches = Vec::new();
        Self {
            events,
            touches,
            reply,
        }
    }

    fn done(events: Vec<EventKind>) -> Self {
        Self::new(events, Reply::Done)
    }
}

/// Decides what a command leads to, and changes nothing.
///
/// # Errors
/// A [`Rejection`] says why the command is refused.
pub fn decide(state: &State, now: Timestamp, command: &Command) -> Result<Decision, Rejection> {
    match command {
        Command::Submit { spec, key, digest } => submit::submit(state, spec, key.as_ref(), digest),
        Command::Cancel { target, by, reason } => cancel::cancel(state, *target, by, reason),
        Command::Retry { target, by } => retry::retry(state, *target, by),
        Command::Drain {
            worker,
            draining,
            by,
        } => session::drain(state, worker, *draining, by),
        Command::Answer {
            question,
            choice,
            text,
            by,
        } => question::answer(state, *question, choice, text, by),
        Command::Hello(hello) => session::hello(state, now, hello),
        Command::Heartbeat(beat) => session::heartbeat(state, beat),
        Command::SessionClosed {
            worker,
            incarnation,
            session,
        } => session::disconnect(state, worker, *incarnation, *session),
        Command::Goodbye {
            worker,
            incarnation,
            session,
        } => session::goodbye(state, now, worker, *incarnation, *session),
        Command::Report {
            worker,
            lease,
            report,
        } => Ok(attempt::report(state, now, worker, *lease, report)),
        Command::BaseMade {
            task,
            generation,
            result,
        } => git::base_made(state, now, *task, *generation, result),
        Command::IntegrationMade {
            run,
            generation,
            result,
        } => git::integration_made(state, *run, *generation, result),
        Command::Archived { run, last_seq } => submit::archived(state, *run, *last_seq),
        Command::Reload { image } => submit::reload(state, image),
        Command::Pool(command) => crate::pool::decide(state, now, command),
        Command::Tick => Ok(timer::tick(state, now)),
    }
}

/// Decides a command, records its events and all their consequences.
///
/// # Errors
/// A [`Rejection`] says why the command is refused; nothing has changed then.
pub fn step(state: &mut State, now: Timestamp, command: &Command) -> Result<Step, Rejection> {
    let decision = decide(state, now, command)?;
    let mut events = Vec::with_capacity(decision.events.len());
    for kind in decision.events {
        events.push(state.record(now, kind));
    }
    for touch in decision.touches {
        state.touch(now, touch);
    }
    settle::settle_all(state, now, &mut events);
    #[cfg(debug_assertions)]
    check_small(state);
    let reply = decision.reply;
    Ok(Step { events, reply })
}

impl State {
    /// Applies a change of the volatile part.
    pub fn touch(&mut self, now: Timestamp, touch: Touch) {
        match touch {
            Touch::Up {
                worker,
                session,
                hello,
                draining,
                time_left,
            } => {
                if let Some(entry) = self.workers.get_mut(&worker) {
                    entry.aux.ends_at = time_left.map(|left| now + left);
                    entry.aux.credit = 0;
                    entry.aux.hello = hello;
                    entry.aux.looked.clear();
                }
                let up = Link::Up {
                    session,
                    heartbeat: 0,
                    heard_at: now,
                    free_slots: 0,
                    draining,
                };
                self.set_link(&worker, up);
            }
            Touch::Beat {
                worker,
                seq,
                free_slots,
                credit,
                draining,
                time_left,
                looked,
            } => {
                let Some(entry) = self.workers.get_mut(&worker) else {
                    return;
                };
                if let Link::Up { session, .. } = entry.worker.link {
                    entry.aux.credit = credit;
                    entry.aux.ends_at = time_left.map(|left| now + left);
                    if let Some(looked) = looked {
                        entry.aux.looked = looked;
                    }
                    let up = Link::Up {
                        session,
                        heartbeat: seq,
                        heard_at: now,
                        free_slots,
                        draining,
                    };
                    self.set_link(&worker, up);
                }
            }
            Touch::Down { worker, leaves } => {
                if let Some(entry) = self.workers.get_mut(&worker) {
                    entry.aux.credit = 0;
                    if let Link::Up {
                        heard_at, draining, ..
                    } = entry.worker.link
                    {
                        entry.aux.last_word = Some((heard_at, draining || leaves));
                    }
                }
                self.set_link(&worker, Link::Down { since: now });
            }
            Touch::Renew { lease } => {
                if let Some(ttl) = self.lease(lease).map(|lease| lease.ttl) {
                    self.set_expiry(lease, now + ttl + self.clocks.grace);
                }
            }
            Touch::Pools(policies) => self.set_pools(policies),
            Touch::Idle { allocation, idle } => {
                if let Some(held) = self.allocations.get_mut(&allocation) {
                    held.idle_since = idle.then_some(now);
                }
            }
            Touch::Held { allocation, reason } => {
                if let Some(held) = self.allocations.get_mut(&allocation) {
                    let since = held.held.as_ref().map_or(now, |hold| hold.since);
                    held.held = reason.map(|reason| Hold { since, reason });
                }
            }
            Touch::Vain { allocation, vain } => {
                if let Some(held) = self.allocations.get_mut(&allocation) {
                    held.vain_since = vain.then_some(now);
                }
            }
        }
    }
}

/// Checks the invariants in debug builds while that is quick.
#[cfg(debug_assertions)]
fn check_small(state: &State) {
    let tasks: usize = state.runs().map(|run| run.tasks.len()).sum();
    if tasks <= crate::limits::TASKS_CHECKED {
        debug_assert_eq!(crate::invariants::check(state), Ok(()));
    }
}

/// Cuts text at a character boundary so that it has at most `max` bytes.
pub(crate) fn head(text: &str, max: usize) -> Box<str> {
    let (head, _) = text.split_at(text.floor_char_boundary(max));
    head.into()
}

/// Keeps the end of a text, at most `max` bytes of it.
fn tail(text: &str, max: usize) -> Box<str> {
    let begin = text.ceil_char_boundary(text.len().saturating_sub(max));
    let (_, tail) = text.split_at(begin);
    tail.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!(&*head("aé", 3), "aé");
        assert_eq!(&*head("aé", 2), "a");
        assert_eq!(&*head("é", 1), "");
        assert_eq!(&*tail("éa", 3), "éa");
        assert_eq!(&*tail("éa", 2), "a");
        assert_eq!(&*tail("abc", 2), "bc");
        assert_eq!(&*tail("aé", 1), "");
    }
}
