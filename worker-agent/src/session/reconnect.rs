//! When to try again after a session ended: the one place that knows the `backoff` crate.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;

/// Longest pause. A coordinator that is back is found by all its workers within it; ten thousand
/// of them make some three thousand attempts a second on a port that nobody listens on.
const PAUSE_MAX: Duration = Duration::from_secs(6);
/// Longest first pause.
const PAUSE_FIRST: Duration = Duration::from_millis(200);

/// Pauses between attempts to connect: none after a good session, then growing, each drawn from
/// its whole range so that a thousand workers do not come back in one moment. It never ends.
#[derive(Debug)]
pub(crate) struct Reconnect {
    pauses: ExponentialBackoff,
    last_was_good: bool,
}

impl Reconnect {
    pub(crate) fn new() -> Self {
        let mut pauses = ExponentialBackoff {
            // The crate draws from the interval plus and minus this share of it: with half the
            // interval and a share of one, from zero to the whole.
            initial_interval: PAUSE_FIRST / 2,
            max_interval: PAUSE_MAX / 2,
            randomization_factor: 1.0,
            multiplier: 2.0,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        pauses.reset();
        Self {
            pauses,
            last_was_good: false,
        }
    }

    /// Notes that a session was good: its end is followed by one immediate attempt.
    pub(crate) fn succeeded(&mut self) {
        self.pauses.reset();
        self.last_was_good = true;
    }

    /// How long to wait before the next attempt.
    pub(crate) fn pause(&mut self) -> Duration {
        if std::mem::take(&mut self.last_was_good) {
            return Duration::ZERO;
        }
        let pause = self.pauses.next_backoff().unwrap_or(PAUSE_MAX);
        pause.min(PAUSE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound_and_never_end() {
        let mut reconnect = Reconnect::new();
        assert!(reconnect.pause() <= PAUSE_FIRST);
        let pauses: Vec<Duration> = (0..200).map(|_| reconnect.pause()).collect();
        assert!(pauses.iter().all(|pause| *pause <= PAUSE_MAX));
        // Spread over the whole range, not gathered at its end.
        assert!(pauses.iter().any(|pause| *pause > PAUSE_MAX / 2));
        assert!(pauses[20..].iter().any(|pause| *pause < PAUSE_MAX / 2));
    }

    #[test]
    fn after_a_good_session_it_tries_at_once_but_only_once() {
        let mut reconnect = Reconnect::new();
        for _ in 0..20 {
            reconnect.pause();
        }
        reconnect.succeeded();
        assert_eq!(reconnect.pause(), Duration::ZERO);
        assert!(reconnect.pause() <= PAUSE_FIRST);
    }
}
