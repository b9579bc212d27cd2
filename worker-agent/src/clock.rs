//! The clock of every deadline that a worker keeps.
//!
//! It is CLOCK_BOOTTIME. CLOCK_MONOTONIC (and with it `std::time::Instant` and tokio's timers)
//! stands still while a laptop sleeps: a lease of two minutes would still look fresh after a
//! night in a bag, long after the coordinator has given its task to somebody else. The wall
//! clock jumps, so it measures nothing. CLOCK_BOOTTIME does neither: it counts sleep and never
//! goes back. It starts again when the host does, and is the same for all processes of a host.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, Timespec, clock_gettime};
use serde::{Deserialize, Serialize};

/// Is a moment in milliseconds since this host started, time asleep included.
///
/// It means nothing on another host or after a restart of this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Boottime(u64);

impl Boottime {
    /// Takes a moment from milliseconds since the host started.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Returns the milliseconds since the host started.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Returns how long after `earlier` this is; zero if it is not after it.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// Returns the moment `wait` after this one, in whole milliseconds; stops at the largest.
    pub fn after(self, wait: Duration) -> Self {
        let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(millis))
    }

    /// Converts to what timers of this clock take.
    pub(crate) fn to_timespec(self) -> Timespec {
        Timespec {
            tv_sec: i64::try_from(self.0 / 1000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(self.0 % 1000).unwrap_or(0) * 1_000_000,
        }
    }
}

/// Reads CLOCK_BOOTTIME, rounded down to a millisecond.
pub fn now() -> Boottime {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    Boottime(
        seconds
            .saturating_mul(1000)
            .saturating_add(nanos / 1_000_000),
    )
}

/// Reads the wall clock in milliseconds since 1970, for people to read; never for a deadline.
pub fn wall_millis() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_goes_back() {
        let first = now();
        assert!(first.as_millis() > 0);
        assert!(now() >= first);
    }

    #[test]
    fn it_agrees_with_the_kernels_uptime() {
        let before = now();
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let after = now();
        let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        let uptime = (seconds * 1000.0) as u64;
        // The file has hundredths of a second.
        assert!(before.as_millis() <= uptime + 20, "{before:?} {uptime}");
        assert!(uptime <= after.as_millis() + 20, "{uptime} {after:?}");
    }

    #[test]
    fn arithmetic_stops_at_its_ends() {
        let late = Boottime::from_millis(u64::MAX);
        assert_eq!(late.after(Duration::from_secs(1)), late);
        assert_eq!(Boottime::from_millis(5).since(late), Duration::ZERO);
        assert_eq!(
            late.since(Boottime::from_millis(0)),
            Duration::from_millis(u64::MAX)
        );
    }
}
