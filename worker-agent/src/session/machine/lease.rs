//! One lease as the session sees it: what of it goes on, and what the coordinator has of it. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Boottime;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Processes may run until a margin before `end`.
    Working { end: Boottime, ttl: Duration },
    /// Processes are being ended.
    Stopping,
    /// The final report was made.
    Reported,
    /// The final report was acknowledged, or this incarnation never held the lease.
    Over,
}

/// Events that were sent and are not acknowledged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batch {
    /// Number of the last of them.
    pub(super) last: u64,
    pub(super) bytes: u64,
    pub(super) sent_at: Boottime,
}

#[derive(Clone, Debug)]
pub(super) struct Lease {
    pub(super) work: Work,
    /// Nothing more will be added to its events, and its folder holds nothing unpublished.
    pub(super) finished: bool,
    /// Numbers of the last event on disk, sent in this session, and confirmed.
    pub(super) events_stored: u64,
    pub(super) events_sent: u64,
    pub(super) events_acknowledged: u64,
    pub(super) in_flight: VecDeque<Batch>,
    pub(super) position: Position,
}

/// Whether this session's coordinator has said up to where it has a lease's events.
///
/// What was acknowledged before proves nothing to a new session: the coordinator's home may have
/// been put back from a backup since, and what this worker still has on disk is then the only copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Position {
    Unknown,
    Asked,
    Known,
}

impl Lease {
    pub(super) fn new(work: Work) -> Self {
        Self {
            work,
            finished: false,
            events_stored: 0,
            events_sent: 0,
            events_acknowledged: 0,
            in_flight: VecDeque::new(),
            position: Position::Known,
        }
    }

    /// Forgets what an earlier session's coordinator has said it has.
    pub(super) fn forget_position(&mut self) {
        self.position = match self.events_stored {
            0 => Position::Known,
            _ => Position::Unknown,
        };
    }

    pub(super) fn is_held(&self) -> bool {
        self.work != Work::Over
    }

    pub(super) fn takes_slot(&self) -> bool {
        matches!(self.work, Work::Working { .. } | Work::Stopping)
    }

    pub(super) fn bytes_in_flight(&self) -> u64 {
        self.in_flight.iter().map(|batch| batch.bytes).sum()
    }

    /// Takes an acknowledgement; gives the batches that are through with it.
    pub(super) fn acknowledge(&mut self, number: u64) -> Vec<Batch> {
        // A peer that confirms what does not exist confirms what does.
        let number = number.min(self.events_stored);
        if self.position == Position::Asked {
            // Nothing else is under way for this lease, so this is the answer.
            self.position = Position::Known;
            self.events_acknowledged = number;
            self.events_sent = number;
        }
        self.events_acknowledged = self.events_acknowledged.max(number);
        self.events_sent = self.events_sent.max(self.events_acknowledged);
        let mut through = Vec::new();
        while let Some(batch) = self.in_flight.front()
            && batch.last <= self.events_acknowledged
        {
            through.extend(self.in_flight.pop_front());
        }
        through
    }

    pub(super) fn is_done(&self) -> bool {
        self.work == Work::Over
            && self.finished
            && self.position == Position::Known
            && self.events_acknowledged >= self.events_stored
    }
}
