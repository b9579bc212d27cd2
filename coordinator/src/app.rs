//! A coordinator in one value: home, engine and server.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::config::Config;

/// Why a coordinator runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Until it is stopped.
    Serve,
    /// Until its last run has ended.
    Embedded,
}

/// How to start a coordinator.
#[derive(Clone, Debug)]
pub struct Options {
    pub home: PathBuf,
    pub listen: SocketAddr,
    pub mode: Mode,
    pub local_slots: u32,
    pub config: Config,
}

/// A running coordinator.
#[derive(Debug)]
pub struct App {
    address: SocketAddr,
}

/// Why a coordinator did not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("another coordinator (process {pid}) holds this home")]
    HomeInUse { pid: u32 },
    #[error("no coordinator is built into this program")]
    Absent,
}

impl App {
    /// Starts.
    ///
    /// # Errors
    /// Always.
    #[expect(clippy::unused_async, reason = "the real one waits")]
    pub async fn start(options: Options) -> Result<Self, Error> {
        let Options { home: _, .. } = options;
        Err(Error::Absent)
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn drain(&self) {}

    /// Stops.
    ///
    /// # Errors
    /// Never.
    #[expect(clippy::unused_async, reason = "the real one waits")]
    pub async fn stop(self) -> Result<(), Error> {
        Ok(())
    }

    /// Waits for the last run's end.
    #[expect(clippy::unused_async, reason = "the real one waits")]
    pub async fn finished(&self) {}
}
