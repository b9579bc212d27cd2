//! The coordinator's clock: never backwards, deaf to jumps of the wall clock.

use std::time::{SystemTime, UNIX_EPOCH};

use coordinator_core::Timestamp;
use rustix::time::{ClockId, clock_gettime};

/// Gives the time that all decisions are made with.
///
/// Its value is max(wall clock, last journaled time) at the start plus the time that has passed
/// since, on a clock that goes on while the machine sleeps. So a wall clock that jumps changes
/// neither lease nor timeout, and a restart never goes back behind what is in the journal.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Timestamp,
    boottime_ms: u64,
}

impl Clock {
    /// Starts the clock, not before `journaled`.
    #[must_use]
    pub fn start(journaled: Timestamp) -> Self {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |passed| {
                u64::try_from(passed.as_millis()).unwrap_or(u64::MAX)
            });
        Self {
            start: journaled.max(Timestamp::from_ms(wall)),
            boottime_ms: boottime_ms(),
        }
    }

    /// Tells the time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let passed = boottime_ms().saturating_sub(self.boottime_ms);
        self.start + coordinator_core::Span::from_ms(passed)
    }
}

fn boottime_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds
        .saturating_mul(1000)
        .saturating_add(nanos / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_no_earlier_than_the_journal() {
        let far = Timestamp::from_ms(u64::MAX / 2);
        assert!(Clock::start(far).now() >= far);
    }

    #[test]
    fn does_not_run_backwards() {
        let clock = Clock::start(Timestamp::from_ms(0));
        let first = clock.now();
        assert!(clock.now() >= first);
    }
}
