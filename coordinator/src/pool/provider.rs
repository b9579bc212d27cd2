//! What a pool asks the outside for: a job, a machine, a process.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use coordinator_core::AllocationId;
use futures::future::BoxFuture;

/// One order for allocations that belong together.
///
/// Its [`name`](Self::name) is the same each time it is asked for, and no other order ever has it:
/// by it a provider's list tells whether an order whose answer was lost has arrived.
#[derive(Clone, Debug)]
pub struct Order {
    pub pool: Arc<str>,
    /// Of the coordinator's home, so that several may use one account.
    pub home: Arc<str>,
    /// The allocations are this one and those that follow it.
    pub first: AllocationId,
    pub count: u32,
    /// The file with the join token of each, in their order. Secret, mode 0600.
    pub tokens: Vec<PathBuf>,
    /// Hosts that are in quarantine.
    pub exclude: Vec<Arc<str>>,
}

/// The name of an order, which says whose it is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct OrderName {
    pub home: Box<str>,
    pub pool: Box<str>,
    pub first: AllocationId,
}

impl Order {
    /// Gives the name under which it is placed.
    #[must_use]
    pub fn name(&self) -> OrderName {
        OrderName {
            home: (*self.home).into(),
            pool: (*self.pool).into(),
            first: self.first,
        }
    }
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
    /// As the provider names it: what [`Provider::end`] takes.
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
    Running { host: Box<str> },
    /// It is on its way out; it may still run.
    Ending,
    /// It surely does not run any more; what was said of its end.
    Ended { detail: Box<str> },
    /// The provider itself does not know: neither there nor gone.
    Unknown,
}

/// Why a provider did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It said no; asking for the same again would be answered alike.
    #[error("{0}")]
    Refused(String),
    /// It could not be asked, or its answer did not come: the order may or may not have arrived.
    #[error("{0}")]
    Unclear(String),
}

/// A source of workers. Each method may take as long as the provider's own time limits say, and is
/// safe to repeat.
pub trait Provider: Send + Sync {
    /// Places an order, and gives the allocations that it became, in their order.
    ///
    /// # Errors
    /// After [`Error::Refused`] nothing of it exists. After [`Error::Unclear`] only a list can tell.
    fn start<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, Result<Vec<Sighting>, Error>>;

    /// Lists all allocations of this home and pool that there are, and those that ended lately as far
    /// as the provider remembers them. One that is missing does not exist, unless it was ordered
    /// after the list was asked for.
    ///
    /// # Errors
    /// No list could be had: nothing is known.
    fn list(&self) -> BoxFuture<'_, Result<Vec<Sighting>, Error>>;

    /// Ends allocations; those that are gone already are no error.
    ///
    /// # Errors
    /// Some may still be there.
    fn end<'a>(&'a self, externals: &'a [Box<str>]) -> BoxFuture<'a, Result<(), Error>>;
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
