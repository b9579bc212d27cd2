//! Numbers that look like chance and follow from a seed alone.

/// Mixes a number so that each bit of the result depends on every bit of it.
#[must_use]
pub(crate) const fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Gives the fate of one thing: the same for the same numbers, whatever else happens.
#[must_use]
pub(crate) const fn fate(seed: u64, what: u64, which: u64, nth: u64) -> u64 {
    mix(mix(mix(seed ^ mix(what)).wrapping_add(which)).wrapping_add(nth))
}

/// A stream of numbers from a seed (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Gives a number below `end`; zero when `end` is.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next().checked_rem(end).unwrap_or(0)
    }

    /// Gives a number from `from` to `to`, both included.
    pub(crate) fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to.saturating_sub(from).saturating_add(1))
    }

    /// Gives a number from `from` to `to` of which small ones are more likely: each order of
    /// magnitude as likely as the next.
    pub(crate) fn wide(&mut self, from: u64, to: u64) -> u64 {
        let mut top = from.max(1);
        let mut steps = 0;
        while top < to {
            top = top.saturating_mul(2);
            steps += 1;
        }
        let top = from.max(1) << self.below(steps + 1);
        self.between(from, top.min(to))
    }

    /// Tells yes so many times of a thousand.
    pub(crate) fn per_mille(&mut self, share: u64) -> bool {
        self.below(1000) < share
    }

    /// Gives one of these.
    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        let nth = usize::try_from(self.below(of.len() as u64)).unwrap_or(0);
        of.get(nth).copied()
    }
}
