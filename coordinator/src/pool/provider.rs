//! What a pool asks the outside for: a job, a machine, a process.

use std::path::PathBuf;
use std::sync::Arc;

use coordinator_core::AllocationId;
pub use coordinator_core::pool::{OrderName, Sighted, Sighting};
use futures::future::{self, BoxFuture};

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
    /// The pool's inventory, this order's allocations among them.
    pub known: Vec<Known>,
    /// The file with the join token of each, in their order. Secret, mode 0600.
    pub tokens: Vec<PathBuf>,
    /// Hosts that are in quarantine.
    pub exclude: Vec<Arc<str>>,
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

/// An allocation of the inventory, for a provider whose things bear no names of ours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Known {
    pub id: AllocationId,
    /// First of those that were ordered with it.
    pub first: AllocationId,
    /// As the provider names it; `None` while that is not known.
    pub external: Option<Box<str>>,
    /// It is to end.
    pub ends: bool,
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
    /// Places an order, and gives the allocations that it became, in their order. What is left out is
    /// for the next list to tell.
    ///
    /// # Errors
    /// After [`Error::Refused`] nothing of it exists. After [`Error::Unclear`] only a list can tell.
    fn start<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, Result<Vec<Sighting>, Error>>;

    /// Lists all allocations of this home and pool that there are, and those that ended lately as far
    /// as the provider remembers them. One that is missing does not exist, unless it was ordered
    /// after the list was asked for. `known` is the pool's inventory, by which a provider that cannot
    /// name things after orders tells which is which.
    ///
    /// # Errors
    /// No list could be had: nothing is known.
    fn list<'a>(&'a self, known: &'a [Known]) -> BoxFuture<'a, Result<Vec<Sighting>, Error>>;

    /// Ends allocations; those that are gone already are no error.
    ///
    /// # Errors
    /// Some may still be there.
    fn end<'a>(&'a self, externals: &'a [Box<str>]) -> BoxFuture<'a, Result<(), Error>>;

    /// Says what people should know of it although its last list was a good one: why things do not become
    /// what is wanted.
    fn remark(&self) -> Option<String> {
        None
    }
}

/// A pool whose settings cannot be used: what is asked of it waits for better ones, and other pools get its
/// work.
#[derive(Debug)]
pub struct Unusable(pub String);

impl Provider for Unusable {
    fn start<'a>(&'a self, _: &'a Order) -> BoxFuture<'a, Result<Vec<Sighting>, Error>> {
        Box::pin(future::ready(Err(Error::Refused(self.0.clone()))))
    }

    fn list<'a>(&'a self, _: &'a [Known]) -> BoxFuture<'a, Result<Vec<Sighting>, Error>> {
        Box::pin(future::ready(Err(Error::Unclear(self.0.clone()))))
    }

    fn end<'a>(&'a self, _: &'a [Box<str>]) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(future::ready(Err(Error::Unclear(self.0.clone()))))
    }
}
