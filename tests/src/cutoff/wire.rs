//! Where connections are disturbed: in a proxy, or packet by packet between hosts.

use std::rc::Rc;

use anyhow::{Result, bail};

use super::Loss;
use crate::hosts::{Connected, Heard, Hosts};
use crate::proxy::{Direction, End, Faults, Proxy};

/// What lies between one worker and the coordinator.
pub(super) enum Wire {
    Proxy(Proxy),
    /// The worker is on the host of this index, the coordinator on that of index 0.
    Host(Rc<Hosts>, usize),
}

/// Name of the coordinator's host.
pub(super) const HEAD: &str = "head";

/// Name of a worker's host.
pub(super) fn host(index: usize) -> String {
    format!("w{index}")
}

impl Wire {
    pub(super) fn cut(&self, loss: Loss) -> Result<()> {
        match (self, loss) {
            (_, Loss::None) => {}
            (Self::Proxy(proxy), Loss::BothWays | Loss::Lid) => proxy.set_both(Faults::STALLED),
            (Self::Proxy(proxy), Loss::Up) => proxy.set(Direction::Up, Faults::STALLED),
            (Self::Proxy(proxy), Loss::Down) => proxy.set(Direction::Down, Faults::STALLED),
            (Self::Host(hosts, index), loss) => packets(hosts, *index, loss, Heard::No)?,
        }
        Ok(())
    }

    /// Takes the cut back.
    pub(super) fn heal(&self, loss: Loss) -> Result<()> {
        match self {
            Self::Proxy(proxy) => proxy.heal(),
            Self::Host(hosts, index) => packets(hosts, *index, loss, Heard::Yes)?,
        }
        Ok(())
    }

    /// Ends the open connections.
    pub(super) fn reset(&self) -> Result<()> {
        match self {
            Self::Proxy(proxy) => proxy.cut(End::Reset),
            Self::Host(..) => bail!("connections between hosts are not ended by order"),
        }
        Ok(())
    }

    /// How many connections the worker has made, where that is known.
    pub(super) fn connections(&self) -> Option<u64> {
        match self {
            Self::Proxy(proxy) => Some(proxy.counts().accepted),
            Self::Host(..) => None,
        }
    }

    pub(super) fn story(&self) -> String {
        match self {
            Self::Proxy(proxy) => proxy.story(),
            Self::Host(_, index) => format!("on the host {}\n", host(*index)),
        }
    }
}

fn packets(hosts: &Hosts, index: usize, loss: Loss, heard: Heard) -> Result<()> {
    match loss {
        Loss::None => Ok(()),
        Loss::BothWays | Loss::Lid => hosts.connect(
            index,
            match heard {
                Heard::Yes => Connected::Yes,
                Heard::No => Connected::No,
            },
        ),
        Loss::Up => hosts.hears(HEAD, index, heard),
        Loss::Down => hosts.hears(&host(index), 0, heard),
    }
}
