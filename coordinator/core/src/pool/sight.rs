//! How a provider sees the allocations that it was asked for.

use std::fmt;

use crate::ids::AllocationId;

/// The name of an order, which says whose it is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct OrderName {
    pub home: Box<str>,
    pub pool: Box<str>,
    pub first: AllocationId,
}

const PREFIX: &str = "muster";

impl fmt::Display for OrderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { home, pool, first } = self;
        // Names of pools may hold dashes; homes and numbers hold none.
        write!(f, "{PREFIX}-{home}-{}-{pool}", first.0)
    }
}

impl OrderName {
    /// Reads a name; `None` for names of others.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(PREFIX)?.strip_prefix('-')?;
        let (home, rest) = rest.split_once('-')?;
        let (first, pool) = rest.split_once('-')?;
        let number: u64 = first.parse().ok()?;
        let usual = !home.is_empty() && !pool.is_empty() && number.to_string() == first;
        usual.then(|| Self {
            home: home.into(),
            pool: pool.into(),
            first: AllocationId(number),
        })
    }
}

/// One allocation as its provider sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sighting {
    /// As the provider names it: what its end is asked for with.
    pub external: Box<str>,
    pub name: OrderName,
    /// Which of its order it is, from 0.
    pub index: u32,
    pub state: Sighted,
}

/// How far a sighted allocation is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Sighted {
    Queued,
    /// It waits, and for something that does not come by itself: a person, or a setting.
    Held {
        reason: Box<str>,
    },
    Running {
        host: Box<str>,
    },
    /// It is on its way out; it may still run.
    Ending,
    /// It surely does not run any more; what was said of its end.
    Ended {
        detail: Box<str>,
    },
    /// The provider itself does not know: neither there nor gone.
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_orders_are_read_as_they_are_written_and_others_are_not() {
        let name = OrderName {
            home: "3f9a1c20".into(),
            pool: "gpu-big".into(),
            first: AllocationId(17),
        };
        assert_eq!(name.to_string(), "muster-3f9a1c20-17-gpu-big");
        assert_eq!(OrderName::parse(&name.to_string()), Some(name));
        for other in [
            "",
            "muster",
            "muster-",
            "muster-3f9a1c20-017-gpu",
            "muster-3f9a1c20-x-gpu",
            "muster-3f9a1c20-17-",
            "must-3f9a1c20-17-gpu",
            "analysis",
        ] {
            assert_eq!(OrderName::parse(other), None, "{other}");
        }
    }
}
