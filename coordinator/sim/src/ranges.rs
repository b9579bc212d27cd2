//! Sets of seeds, kept as ranges.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

/// A set of seeds. Ranges that touch are one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ranges {
    /// Begin to end (exclusive); disjoint, and no two touch.
    ranges: BTreeMap<u64, u64>,
}

impl Ranges {
    /// Adds all seeds of a range.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let Range { mut start, mut end } = range;
        // From the last one that begins no later than our end, backwards, while they meet ours.
        while let Some((&begin, &until)) = self.ranges.range(..=end).next_back() {
            if until < start {
                break;
            }
            self.ranges.remove(&begin);
            start = start.min(begin);
            end = end.max(until);
        }
        self.ranges.insert(start, end);
    }

    /// Tells whether the seed is one of them.
    #[must_use]
    pub fn contains(&self, seed: u64) -> bool {
        let before = self.ranges.range(..=seed).next_back();
        before.is_some_and(|(_, end)| seed < *end)
    }

    /// Gives how many seeds there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.iter().map(|range| range.end - range.start).sum()
    }

    /// Tells whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Gives the ranges in their order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.ranges.iter().map(|(start, end)| *start..*end)
    }

    /// Gives those of others that are not among these.
    #[must_use]
    pub fn missing(&self, of: &Self) -> Self {
        let mut missing = Self::default();
        for wanted in of.iter() {
            let mut from = wanted.start;
            for range in self.iter() {
                missing.insert(from..range.start.min(wanted.end));
                from = from.max(range.end);
            }
            missing.insert(from..wanted.end);
        }
        missing
    }

    /// Gives the seeds that are in both.
    #[must_use]
    pub fn within(&self, others: &Self) -> Self {
        let mut both = Self::default();
        for other in others.iter() {
            for own in self.iter() {
                both.insert(own.start.max(other.start)..own.end.min(other.end));
            }
        }
        both
    }
}

/// As an argument of a command: `0..100,200..300`.
impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, range) in self.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            write!(f, "{comma}{}..{}", range.start, range.end)?;
        }
        Ok(())
    }
}

impl From<Range<u64>> for Ranges {
    fn from(range: Range<u64>) -> Self {
        let mut all = Self::default();
        all.insert(range);
        all
    }
}

impl FromIterator<Range<u64>> for Ranges {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Self {
        let mut all = Self::default();
        ranges.into_iter().for_each(|range| all.insert(range));
        all
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::random::Random;

    #[test]
    fn ranges_agree_with_a_plain_set_whatever_is_put_in() {
        for seed in 0..200 {
            let mut random = Random::new(seed);
            let mut ranges = Ranges::default();
            let mut plain = BTreeSet::new();
            for _ in 0..12 {
                let start = random.below(60);
                let end = start + random.below(9);
                ranges.insert(start..end);
                plain.extend(start..end);
            }
            let listed: Vec<u64> = ranges.iter().flatten().collect();
            assert_eq!(listed, plain.iter().copied().collect::<Vec<_>>());
            assert_eq!(ranges.len(), plain.len() as u64);
            assert!((0..70).all(|seed| ranges.contains(seed) == plain.contains(&seed)));
            let some: Ranges = [5..20, 30..50].into_iter().collect();
            let missing: Vec<u64> = ranges.missing(&some).iter().flatten().collect();
            let wanted = || some.iter().flatten();
            assert!(
                missing
                    .iter()
                    .copied()
                    .eq(wanted().filter(|seed| !plain.contains(seed)))
            );
            let within: Vec<u64> = ranges.within(&some).iter().flatten().collect();
            assert!(
                within
                    .iter()
                    .copied()
                    .eq(wanted().filter(|seed| plain.contains(seed)))
            );
            let all: Vec<_> = ranges.iter().collect();
            assert!(all.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }

    #[test]
    fn ranges_at_the_end_of_all_numbers_are_whole() {
        let mut ranges = Ranges::default();
        ranges.insert(u64::MAX - 5..u64::MAX);
        ranges.insert(0..3);
        assert_eq!(ranges.len(), 8);
        let all = Ranges::from(0..u64::MAX);
        assert_eq!(ranges.missing(&all).len(), u64::MAX - 8);
        assert_eq!(
            ranges.to_string(),
            format!("0..3,{}..{}", u64::MAX - 5, u64::MAX)
        );
    }
}
