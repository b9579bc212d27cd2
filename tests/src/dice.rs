//! Chance that can be had again: the same seed, the same throws.

/// A stream of throws (SplitMix64 by Steele, Lea and Flood).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Begins the stream of a purpose: streams of one seed do not depend on each other, so what one
    /// thread draws changes nothing for the others.
    pub fn new(seed: u64, purpose: u64) -> Self {
        let mut dice = Self(seed);
        let start = dice.next() ^ purpose.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self(start)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Draws a number below `end`; 0 if that is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        // The remainder favours small numbers by less than anyone could notice.
        self.next().checked_rem(end).unwrap_or_default()
    }

    /// Draws a number of a range, both ends included.
    pub fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most.saturating_sub(least) + 1)
    }

    /// Is true in so many of a hundred cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// Draws an index of a list of so many; `None` of an empty one.
    pub fn index(&mut self, length: usize) -> Option<usize> {
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        // Drawn in any case, so that what follows does not depend on whether there was something.
        let drawn = self.next();
        drawn
            .checked_rem(length)
            .and_then(|index| usize::try_from(index).ok())
    }

    /// Draws one of a list, each as often as its weight says.
    pub fn weighted<'a, T>(&mut self, items: &'a [(u64, T)]) -> Option<&'a T> {
        let mut left = self.below(items.iter().map(|(weight, _)| weight).sum());
        for (weight, item) in items {
            if left < *weight {
                return Some(item);
            }
            left -= weight;
        }
        None
    }
}
