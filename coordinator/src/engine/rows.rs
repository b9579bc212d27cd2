//! The engine's journal: batches become rows of the store.

use std::time::Duration;

use coordinator_core::{Epoch, Event, Journal, Timestamp};
use tracing::{error, info, warn};

use super::Fatal;
use crate::store::{self, BatchSeq, Store};

/// Events of one row that are logged one by one. A plan of the largest size would be some hundred
/// thousand lines, for which everybody else would wait; a watch of its run shows them all.
const EVENTS_LOGGED: usize = 64;

/// The store together with the place of the next row.
pub(super) struct Rows {
    pub(super) store: Box<dyn Store>,
    pub(super) epoch: Epoch,
    pub(super) next: BatchSeq,
    /// How often a row that could not be written is tried again, half a second apart.
    pub(super) retries: u32,
    pub(super) since_snapshot: u64,
}

impl Journal for Rows {
    type Error = Fatal;

    fn append(&mut self, now: Timestamp, events: &[Event]) -> Result<(), Fatal> {
        let mut tried = 0;
        loop {
            match self.store.append(self.next, self.epoch, now, events) {
                Ok(()) => break,
                // The write before this one had been made although it said otherwise.
                Err(store::Error::Conflict { expected, next })
                    if tried > 0 && next == expected.next() =>
                {
                    break;
                }
                Err(error) if error.is_transient() && tried < self.retries => {
                    tried += 1;
                    warn!(
                        error = reason(&error),
                        tried, "the journal row could not be written yet"
                    );
                    std::thread::sleep(Duration::from_millis(500));
                }
                Err(error) => {
                    error!(
                        error = reason(&error),
                        "the journal row cannot be written; stopping"
                    );
                    return Err(Fatal::Append(error));
                }
            }
        }
        self.next = self.next.next();
        self.since_snapshot += 1;
        for event in events.iter().take(EVENTS_LOGGED) {
            info!(
                seq = event.seq,
                event = event.kind.name(),
                run = event.kind.run().map(|run| run.0),
                "recorded"
            );
        }
        let more = events.len().saturating_sub(EVENTS_LOGGED);
        if more > 0 {
            info!(more, "recorded together with these");
        }
        Ok(())
    }
}

/// Tells an error with what caused it: the database alone knows what the disk said.
fn reason(error: &store::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
