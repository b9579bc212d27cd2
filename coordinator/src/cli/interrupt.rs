//! Ctrl-C and its relatives.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::error::{CliError, Result};

/// What a person, or the system, wants of a running command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// Ctrl-C: end in order.
    Ask,
    /// SIGTERM or a closed terminal: end now.
    Demand,
}

/// Hears the signals that ask for an end.
pub(crate) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Interrupts {
    /// Starts to listen; from now on these signals no longer end the process.
    pub(crate) fn listen() -> Result<Self> {
        let hear = |kind| {
            signal(kind)
                .map_err(|error| CliError::internal(error).while_doing("listen for signals"))
        };
        Ok(Self {
            interrupt: hear(SignalKind::interrupt())?,
            terminate: hear(SignalKind::terminate())?,
            hangup: hear(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one. Dropping the future loses none.
    pub(crate) async fn next(&mut self) -> Interrupt {
        tokio::select! {
            _ = self.interrupt.recv() => Interrupt::Ask,
            _ = self.terminate.recv() => Interrupt::Demand,
            _ = self.hangup.recv() => Interrupt::Demand,
        }
    }
}
