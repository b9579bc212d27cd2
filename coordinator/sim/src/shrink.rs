//! The shortest story that still fails.
//!
//! Parts are left out by delta debugging (Zeller and Hildebrandt's *ddmin*): ever smaller pieces are
//! taken away as long as the same thing still goes wrong. What stays is then made simpler, one thing
//! at a time, until nothing of either helps any more.

use std::ops::Range;

/// Something that has parts and can be made simpler.
pub trait Shrink: Sized {
    /// Gives the number of parts that can be left out.
    fn parts(&self) -> usize;
    /// Leaves parts out; the others mean the same as before.
    fn without(&self, range: Range<usize>) -> Self;
    /// Gives variants that are smaller in one thing each. No chain of variants leads back.
    fn simpler(&self) -> Vec<Self>;
}

impl Shrink for crate::Scenario {
    fn parts(&self) -> usize {
        Self::parts(self)
    }

    fn without(&self, range: Range<usize>) -> Self {
        Self::without(self, range)
    }

    fn simpler(&self) -> Vec<Self> {
        Self::simpler(self)
    }
}

/// What became of a try.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tried {
    /// The same thing went wrong.
    Fails,
    /// Nothing went wrong, or something else.
    Passes,
    /// No more tries, please: time is up.
    Enough,
}

/// The shortest that was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shrunk<S> {
    pub found: S,
    pub tries: u32,
    /// Nothing single could be left out or made simpler any more; false when the search was cut off.
    pub smallest: bool,
}

/// Looks for the smallest variant of `failing` that still fails, with at most `limit` tries.
pub fn shrink<S: Shrink>(failing: S, limit: u32, check: &mut dyn FnMut(&S) -> Tried) -> Shrunk<S> {
    let mut search = Search {
        found: failing,
        tries: 0,
        limit,
        check,
        over: false,
    };
    loop {
        search.leave_out();
        if !search.simplify() || search.over {
            break;
        }
    }
    Shrunk {
        found: search.found,
        tries: search.tries,
        smallest: !search.over,
    }
}

struct Search<'c, S> {
    found: S,
    tries: u32,
    limit: u32,
    check: &'c mut dyn FnMut(&S) -> Tried,
    over: bool,
}

impl<S: Shrink> Search<'_, S> {
    /// Takes the candidate if it still fails.
    fn takes(&mut self, candidate: S) -> bool {
        if self.over || self.tries >= self.limit {
            self.over = true;
            return false;
        }
        self.tries += 1;
        match (self.check)(&candidate) {
            Tried::Fails => {
                self.found = candidate;
                true
            }
            Tried::Passes => false,
            Tried::Enough => {
                self.over = true;
                false
            }
        }
    }

    /// Leaves out pieces, at first halves, in the end single parts.
    fn leave_out(&mut self) {
        let mut pieces = 2;
        loop {
            let parts = self.found.parts();
            pieces = pieces.min(parts);
            if pieces == 0 || self.over {
                return;
            }
            let cuts: Vec<Range<usize>> = (0..pieces)
                .map(|n| parts * n / pieces..parts * (n + 1) / pieces)
                .collect();
            // Of two halves, one alone is what is left without the other.
            let alone =
                |cut: &Range<usize>| self.found.without(cut.end..parts).without(0..cut.start);
            let only: Vec<S> = if pieces > 2 {
                cuts.iter().map(alone).collect()
            } else {
                vec![]
            };
            if only.into_iter().any(|candidate| self.takes(candidate)) {
                pieces = 2;
            } else if cuts
                .into_iter()
                .any(|cut| self.takes(self.found.without(cut)))
            {
                pieces = (pieces - 1).max(2);
            } else if pieces == parts {
                return;
            } else {
                pieces = pieces.saturating_mul(2);
            }
        }
    }

    /// Makes single things simpler until none can be. Tells whether anything was.
    fn simplify(&mut self) -> bool {
        let mut any = false;
        let mut next = 0;
        let mut since = 0;
        loop {
            let variants = self.found.simpler();
            if self.over || since >= variants.len() {
                return any;
            }
            // What was tried before the last success is tried again at last: it may help now.
            let place = next % variants.len();
            let variant = variants.into_iter().nth(place);
            if variant.is_some_and(|variant| self.takes(variant)) {
                any = true;
                since = 0;
                next = place;
            } else {
                since += 1;
                next = place + 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that can be left out or halved.
    #[derive(Clone, PartialEq, Eq, Debug)]
    struct Toy(Vec<u64>);

    impl Shrink for Toy {
        fn parts(&self) -> usize {
            self.0.len()
        }

        fn without(&self, range: Range<usize>) -> Self {
            let kept = self.0.iter().enumerate();
            let kept = kept.filter(|(place, _)| !range.contains(place));
            Self(kept.map(|(_, number)| *number).collect())
        }

        fn simpler(&self) -> Vec<Self> {
            let places = (0..self.0.len()).filter(|place| self.0[*place] > 0);
            places
                .map(|place| {
                    let mut toy = self.clone();
                    toy.0[place] /= 2;
                    toy
                })
                .collect()
        }
    }

    fn when(fails: bool) -> Tried {
        if fails { Tried::Fails } else { Tried::Passes }
    }

    #[test]
    fn what_does_not_matter_is_left_out_and_what_matters_is_made_simple() {
        let toy = Toy((0..100).collect());
        let mut check = |toy: &Toy| {
            // Two parts far from each other are needed, and one of them has to be large.
            when(toy.0.contains(&17) && toy.0.iter().any(|number| *number > 40))
        };
        let shrunk = shrink(toy, 10_000, &mut check);
        assert_eq!(shrunk.found.0.len(), 2);
        assert!(shrunk.found.0.contains(&17));
        assert!(
            shrunk
                .found
                .0
                .iter()
                .any(|number| (41..82).contains(number))
        );
        assert!(shrunk.smallest);
        assert!(shrunk.tries < 200, "{} tries", shrunk.tries);
    }

    #[test]
    fn the_result_fails_and_nothing_single_of_it_can_be_left_out() {
        for modulus in 2..30_u64 {
            let toy = Toy((1..64).collect());
            let fails = |toy: &Toy| toy.0.iter().filter(|n| **n % modulus == 1).count() >= 3;
            if !fails(&toy) {
                continue;
            }
            let shrunk = shrink(toy, 100_000, &mut |toy| when(fails(toy)));
            assert!(fails(&shrunk.found));
            for part in 0..shrunk.found.parts() {
                assert!(!fails(&shrunk.found.without(part..part + 1)));
            }
        }
    }

    #[test]
    fn a_story_that_fails_without_any_part_becomes_empty() {
        let shrunk = shrink(Toy(vec![5; 33]), 1_000, &mut |_| Tried::Fails);
        assert_eq!(shrunk.found, Toy(vec![]));
        assert!(shrunk.tries < 20);
    }

    #[test]
    fn a_story_of_one_part_that_is_needed_stays() {
        let shrunk = shrink(Toy(vec![1]), 1_000, &mut |toy| when(toy.0 == [1]));
        assert_eq!(shrunk.found, Toy(vec![1]));
        assert!(shrunk.smallest);
    }

    #[test]
    fn the_search_ends_at_its_limit_and_when_time_is_up_with_the_best_so_far() {
        let needs = |toy: &Toy| when(toy.0.len() >= 10);
        let shrunk = shrink(Toy(vec![0; 1_000]), 5, &mut |toy| needs(toy));
        assert_eq!(shrunk.tries, 5);
        assert!(!shrunk.smallest && shrunk.found.parts() < 1_000);
        let mut left = 3;
        let shrunk = shrink(Toy(vec![0; 1_000]), 1_000, &mut |toy| {
            left -= 1;
            if left == 0 { Tried::Enough } else { needs(toy) }
        });
        assert_eq!(shrunk.tries, 3);
        assert!(!shrunk.smallest);
    }
}
