//! Retry delays: capped exponential, with jitter that is a function of who retries what.

use crate::ids::{AttemptNo, TaskKey};
use crate::limits;
use crate::time::Span;

/// Gives the delay before the next try after `failures` failures (from 1).
///
/// Doubles from `first` up to [`limits::BACKOFF_MAX`]; the upper half is jittered, so that tasks
/// that failed together do not come back together. The same arguments give the same delay.
pub(crate) fn delay(first: Span, failures: u32, seed: u64) -> Span {
    up_to(limits::BACKOFF_MAX, first, failures, seed)
}

/// Gives the delay before a provider that failed so often (from 1) is called again.
pub(crate) fn of_provider(failures: u32, seed: u64) -> Span {
    let first = limits::PROVIDER_BACKOFF_FIRST;
    up_to(limits::PROVIDER_BACKOFF_MAX, first, failures, seed)
}

fn up_to(max: Span, first: Span, failures: u32, seed: u64) -> Span {
    let doublings = failures.saturating_sub(1).min(32);
    let full = first.ms().saturating_mul(1 << doublings);
    let full = full.min(max.ms());
    let half = full / 2;
    Span::from_ms(full - half + mix(seed) % (half + 1))
}

/// Makes a seed from a task and the number of the attempt that failed.
pub(crate) fn seed(key: TaskKey, attempt: AttemptNo) -> u64 {
    let task = (u64::from(key.task.0) << 32) | u64::from(attempt.0);
    mix(key.run.0).wrapping_add(task)
}

/// Finalizer of splitmix64: spreads neighbouring seeds over all numbers.
fn mix(seed: u64) -> u64 {
    let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_and_stay_within_the_upper_half_of_their_step() {
        for seed in 0..200 {
            for failures in 1..40 {
                let full = (1000u64 << (failures - 1).min(20)).min(limits::BACKOFF_MAX.ms());
                let got = delay(Span::from_secs(1), failures, seed).ms();
                assert!(
                    got >= full / 2 && got <= full,
                    "{got} of {full} for {failures}"
                );
            }
        }
    }

    #[test]
    fn a_provider_is_left_alone_for_longer() {
        for (failures, least, most) in [(1, 5, 10), (2, 10, 20), (40, 300, 600)] {
            let got = of_provider(failures, 7);
            assert!(got >= Span::from_secs(least) && got <= Span::from_secs(most));
        }
    }

    #[test]
    fn neighbours_do_not_come_back_together() {
        let first = Span::from_secs(100);
        let delays: std::collections::BTreeSet<_> = (0..100).map(|s| delay(first, 1, s)).collect();
        assert!(delays.len() > 90, "{} distinct delays", delays.len());
    }

    #[test]
    fn no_delay_stays_no_delay() {
        assert_eq!(delay(Span::ZERO, 7, 3), Span::ZERO);
    }
}
