//! When a worker's machine goes away, and by when the worker has to have given back what it holds.
//! Pure: the shell tells the time.
//!
//! Allocations end at a time that is known from the start; spot instances and preempted jobs get a
//! notice. Either way there are some minutes to stop, to keep what is unfinished and to say so.

use std::time::Duration;

use crate::clock::Boottime;
use crate::failure::class;

/// How much earlier than it was asked to a batch system may say that the end is near; Slurm documents
/// a minute.
const NOTICE_EARLY: Duration = Duration::from_secs(60);
/// Share of the time for a hand-over that is kept for ending, when the rest of it was not enough.
const RESERVE_SHARE: u32 = 8;

/// What a worker knows of its machine's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Departure {
    ends_at: Option<Boottime>,
    hand_over: Duration,
}

/// What is being done because the machine goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandOver {
    /// Class of the failure with which leases are given back: `walltime` or `preempted`.
    pub class: &'static str,
    /// When all of it must be over.
    pub until: Boottime,
}

impl HandOver {
    /// Says to people and in reports why a lease is given back.
    pub(crate) fn message(self) -> &'static str {
        if self.class == class::WALLTIME {
            "the time of the worker's machine is over"
        } else {
            "the worker's machine is taken away"
        }
    }

    /// How long one step of it may take at most: half of what is left, since others follow.
    pub(crate) fn step_limit(self, now: Boottime) -> Duration {
        self.until.since(now) / 2
    }
}

impl Departure {
    /// Takes when the machine goes away, if that is known, and how long before that the worker gives
    /// back what it holds.
    pub(crate) fn new(ends_at: Option<Boottime>, hand_over: Duration) -> Self {
        Self { ends_at, hand_over }
    }

    /// When the machine goes away.
    pub(crate) fn ends_at(&self) -> Option<Boottime> {
        self.ends_at
    }

    /// Tells whether it is time without any notice.
    pub(crate) fn is_due(&self, now: Boottime) -> bool {
        self.ends_at
            .is_some_and(|end| end.since(now) <= self.hand_over)
    }

    /// Begins to hand over: the machine's end is now known.
    pub(crate) fn begin(&mut self, now: Boottime) -> HandOver {
        let reach = self.hand_over.saturating_add(NOTICE_EARLY);
        let class = match self.ends_at {
            Some(end) if end.since(now) <= reach => class::WALLTIME,
            _ => class::PREEMPTED,
        };
        let noticed = now.after(self.hand_over);
        let end = self.ends_at.map_or(noticed, |end| end.min(noticed));
        self.ends_at = Some(end);
        let time = end.since(now);
        HandOver {
            class,
            until: now.after(time - time / RESERVE_SHARE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Boottime {
        Boottime::from_millis(seconds * 1_000)
    }

    fn departure(ends_at: Option<u64>) -> Departure {
        Departure::new(ends_at.map(at), Duration::from_secs(120))
    }

    #[test]
    fn a_known_end_is_due_as_long_before_as_handing_over_takes() {
        let known = departure(Some(1_000));
        assert!(!known.is_due(at(879)));
        assert!(known.is_due(at(880)) && known.is_due(at(2_000)));
        assert!(!departure(None).is_due(at(1_000_000)));
    }

    #[test]
    fn the_class_says_whether_the_end_was_near_or_the_machine_was_taken() {
        let class_at = |ends_at, now| departure(ends_at).begin(at(now)).class;
        assert_eq!(class_at(Some(1_000), 880), "walltime");
        // The batch system was a minute early.
        assert_eq!(class_at(Some(1_000), 820), "walltime");
        assert_eq!(class_at(Some(1_000), 819), "preempted");
        assert_eq!(class_at(None, 5), "preempted");
    }

    #[test]
    fn a_notice_leaves_the_time_for_a_hand_over_and_never_goes_beyond_the_known_end() {
        let mut noticed = departure(None);
        let until = noticed.begin(at(100)).until;
        assert_eq!((until, noticed.ends_at()), (at(205), Some(at(220))));
        let mut near = departure(Some(1_000));
        assert_eq!(near.begin(at(960)).until, at(995));
        assert_eq!(near.ends_at(), Some(at(1_000)));
        let mut over = departure(Some(1_000));
        assert_eq!(over.begin(at(1_200)).until, at(1_200));
    }

    #[test]
    fn a_step_leaves_time_for_the_next() {
        let hand_over = departure(None).begin(at(0));
        assert_eq!(hand_over.step_limit(at(5)), Duration::from_secs(50));
        assert_eq!(hand_over.step_limit(at(500)), Duration::ZERO);
    }
}
