//! How a worker comes to its end: drained, told to leave, idle, or with its machine.

use std::time::Duration;

use muster_proto::v1::{Goodbye, worker_message};
use tokio::sync::mpsc;

use super::{LEAVE_LIMIT, LOOK_AGAIN, Worker};
use crate::attempt::Stop;
use crate::clock::{self, Boottime};
use crate::options::{Ended, Wish};
use crate::session::link::LinkEvent;

/// A worker that gives back what it holds.
pub(super) struct Leaving {
    pub(super) stop: Stop,
    /// When it ends whatever is left.
    pub(super) until: Boottime,
    pub(super) began: Boottime,
    /// Leases that were being worked on.
    pub(super) given_back: Vec<u64>,
}

impl Worker {
    pub(super) fn wished(&mut self) {
        let wish = *self.wishes.borrow_and_update();
        if wish >= Wish::Drain {
            self.drain();
        }
        match wish {
            Wish::Leave => {
                tracing::info!("leaving: attempts are stopped and given back");
                self.leave(Stop::Leave, clock::now().after(LEAVE_LIMIT));
            }
            Wish::HandOver => self.hand_over(),
            Wish::Work | Wish::Drain => {}
        }
    }

    /// Gives back what is held, since the machine goes away.
    pub(super) fn hand_over(&mut self) {
        if self.leaving.is_some() {
            return;
        }
        let hand_over = self.departure.begin(clock::now());
        // The heartbeat that says that nothing is taken says this too.
        self.lock().machine_ends(self.departure.ends_at());
        self.drain();
        self.leave(Stop::HandOver(hand_over), hand_over.until);
        tracing::info!(
            class = hand_over.class,
            seconds = hand_over.until.since(clock::now()).as_secs(),
            "handing over: {}",
            hand_over.message()
        );
    }

    pub(super) fn leave(&mut self, stop: Stop, until: Boottime) {
        if self.leaving.is_some() {
            return;
        }
        let given_back = self.lock().working();
        self.leaving = Some(Leaving {
            stop,
            until,
            began: clock::now(),
            given_back,
        });
        for lease in self.leases.values() {
            lease.orders.send_modify(|orders| {
                orders.stop.get_or_insert(stop);
            });
        }
    }

    pub(super) fn drain(&self) {
        let mut machine = self.lock();
        if machine.is_draining() {
            return;
        }
        tracing::info!("draining: nothing new is taken");
        machine.drain();
        if let (Some(heartbeat), Some(outgoing)) = (machine.heartbeat(clock::now()), &self.outgoing)
        {
            outgoing.say(worker_message::Kind::Heartbeat(heartbeat));
        }
    }

    /// Tells whether there is nothing more to do.
    pub(super) fn ended(&mut self) -> Option<Ended> {
        let now = clock::now();
        if self.departure.is_due(now) {
            self.hand_over();
        }
        let (holds_nothing, may_go, is_draining) = {
            let machine = self.lock();
            let (holds, may_go) = (machine.holds_nothing(), machine.may_go());
            (holds, may_go, machine.is_draining())
        };
        if !holds_nothing {
            self.idle_since = now;
        }
        let is_idle = self
            .idle_exit
            .is_some_and(|limit| now.since(self.idle_since) >= limit);
        if is_idle {
            self.drain();
        }
        match &self.leaving {
            Some(leaving) if may_go || now >= leaving.until => Some(match leaving.stop {
                Stop::HandOver(_) => Ended::HandedOver,
                Stop::Leave | Stop::Salvage => Ended::Left,
            }),
            None if is_draining && may_go => Some(match is_idle {
                true => Ended::Idle,
                false => Ended::Drained,
            }),
            _ => None,
        }
    }

    /// Says how the worker ends, and what is left of what it held.
    pub(super) fn tell_the_end(&self, ended: Ended) {
        let held = self.lock().held();
        let (took, given_back) = match &self.leaving {
            Some(leaving) => (clock::now().since(leaving.began), &*leaving.given_back),
            None => (Duration::ZERO, &[][..]),
        };
        let (left, given): (Vec<u64>, Vec<u64>) =
            given_back.iter().partition(|lease| held.contains(lease));
        let seconds = took.as_secs_f32();
        match ended {
            Ended::Drained => tracing::info!("drained: nothing is held any more"),
            Ended::Idle => {
                let limit = self.idle_exit.unwrap_or_default();
                tracing::info!("nothing was held for {limit:?}: ending, as --idle-exit says");
            }
            Ended::HandedOver | Ended::Left if !left.is_empty() => tracing::warn!(
                leases = ?given,
                lost = ?left,
                "handed over {} of {} leases in {seconds:.1} s: nobody took the others back, so they \
                 run out by themselves",
                given.len(),
                given_back.len(),
            ),
            Ended::HandedOver | Ended::Left => tracing::info!(
                leases = ?given,
                "handed over {} leases in {seconds:.1} s: nothing is held any more",
                given.len(),
            ),
        }
    }

    /// Says goodbye if nothing is held, and waits a moment for the coordinator to end the session.
    pub(super) async fn say_goodbye(
        &mut self,
        ended: Ended,
        link_events: &mut mpsc::Receiver<LinkEvent>,
    ) {
        self.no_more.cancel();
        let Some(outgoing) = self.outgoing.take() else {
            return;
        };
        let reason = match ended {
            Ended::Drained => "drained",
            Ended::Idle => "nothing to do",
            Ended::HandedOver => "its machine goes away",
            Ended::Left => "told to leave",
        };
        if self.lock().holds_nothing() {
            let reason = reason.to_owned();
            outgoing.say(worker_message::Kind::Goodbye(Goodbye { reason }));
        }
        // Ends the worker's side of the stream, once what was said has been taken.
        drop(outgoing);
        let session_ends = async {
            while let Some(event) = link_events.recv().await {
                if matches!(event, LinkEvent::Down) {
                    return;
                }
            }
        };
        // A connection that takes nothing any more must not keep the worker.
        let _ = tokio::time::timeout(LOOK_AGAIN, session_ends).await;
    }
}
