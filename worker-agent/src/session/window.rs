//! How many bytes of events may be under way. Pure: no clock, no I/O.
//!
//! Heartbeats share one stream with events, and what the connection has taken goes before them. A
//! line of 64 kbit/s needs nine minutes for the window of a coordinator, which no lease outlives;
//! so no more is put on the line than it delivers, with the answer, in a part of the heartbeats'
//! interval. That is found by trying, as TCP finds its own window: more after each answer in time,
//! half after each late one.

use std::time::Duration;

/// The window of the slowest line, and the first one of each session: hardly more than the largest
/// event.
const BYTES_MIN: u64 = 16 * 1024;
/// The window of the fastest line. A line that falls to 64 kbit/s in that moment is through with it
/// in half a minute, while the leases still live; on a local network it lets some ten megabytes
/// pass each second.
const BYTES_MAX: u64 = 256 * 1024;
/// Part of the heartbeats' interval in which events are to be acknowledged.
const PATIENCE_SHARE: u32 = 2;

/// What one session may have under way.
#[derive(Clone, Debug)]
pub(crate) struct EventWindow {
    bytes: u64,
    bytes_max: u64,
    patience: Duration,
}

impl EventWindow {
    /// Begins small, below what the coordinator takes.
    pub(crate) fn new(coordinator_takes: u64, heartbeat_interval: Duration) -> Self {
        let bytes_max = coordinator_takes.clamp(1, BYTES_MAX);
        Self {
            bytes: BYTES_MIN.min(bytes_max),
            bytes_max,
            patience: heartbeat_interval / PATIENCE_SHARE,
        }
    }

    /// How much may be sent while `under_way` is not acknowledged; `None` if nothing.
    ///
    /// Events are not cut, and one that is larger than the room is sent all the same: so there is
    /// none before there is enough for nearly every event, where the coordinator takes that much.
    pub(crate) fn room(&self, under_way: u64) -> Option<u64> {
        let least = match self.bytes_max {
            BYTES_MIN.. => BYTES_MIN,
            _ => 1,
        };
        let room = self.bytes.saturating_sub(under_way);
        (under_way == 0 || room >= least).then_some(room)
    }

    /// Learns from a batch that was acknowledged `took` after it was sent.
    pub(crate) fn acknowledged(&mut self, bytes: u64, took: Duration) {
        self.bytes = if took <= self.patience {
            self.bytes.saturating_add(bytes)
        } else {
            (self.bytes / 2).max(BYTES_MIN)
        }
        .min(self.bytes_max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    #[test]
    fn it_doubles_with_each_round_on_a_fast_line_up_to_its_bound() {
        let mut window = EventWindow::new(4 << 20, INTERVAL);
        for _ in 0..4 {
            let room = window.room(0).unwrap();
            window.acknowledged(room, Duration::from_millis(10));
            assert_eq!(window.room(0).unwrap(), room * 2);
        }
        window.acknowledged(BYTES_MAX, Duration::from_millis(10));
        assert_eq!(window.room(0), Some(BYTES_MAX));
        assert_eq!(window.room(BYTES_MAX - BYTES_MIN), Some(BYTES_MIN));
        assert_eq!(window.room(BYTES_MAX - BYTES_MIN + 1), None);
        assert_eq!(window.room(u64::MAX), None);
    }

    #[test]
    fn it_never_exceeds_what_the_coordinator_takes() {
        let mut window = EventWindow::new(100, INTERVAL);
        window.acknowledged(100, Duration::ZERO);
        assert_eq!(window.room(0), Some(100));
        assert_eq!(EventWindow::new(0, INTERVAL).room(0), Some(1));
    }

    #[test]
    fn a_slow_line_holds_no_heartbeat_for_longer_than_its_interval() {
        let bytes_per_second = 8_000;
        let mut window = EventWindow::new(4 << 20, INTERVAL);
        let mut longest = Duration::ZERO;
        for _ in 0..1_000 {
            let bytes = window.room(0).unwrap();
            let took = Duration::from_millis(bytes * 1_000 / bytes_per_second);
            longest = longest.max(took);
            window.acknowledged(bytes, took);
        }
        assert!(longest <= INTERVAL, "{longest:?}");
    }
}
