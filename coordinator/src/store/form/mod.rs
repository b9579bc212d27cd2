//! Serialised forms of what the store keeps, apart from the core's types.
//!
//! A body is JSON; the number of its form stands beside it in the table. A form that was released
//! never changes: a change of the core's types that shows in a body is a new form with its own
//! module, and the older ones keep being read. Golden files in `golden/` hold each form still.
//!
//! Unknown fields are refused rather than dropped, so an older program cannot lose what a newer
//! one wrote. Times are milliseconds since the Unix epoch, spans are milliseconds.

mod event;
mod plan;
mod pool;
mod question;
mod run;
#[cfg(test)]
pub(super) mod samples;
mod snapshot;
mod task;
#[cfg(test)]
mod tests;

use coordinator_core::state::RunImage;
use coordinator_core::{Epoch, Event, Timestamp};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Batch, Summary};
pub use snapshot::Head;

/// Number of the form that is written today; the highest that can be read.
pub(super) const FORM: u32 = 1;

/// A body that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "the {what} has form {found}, this program reads up to {FORM}: written by a newer Muster"
    )]
    NewerForm { what: &'static str, found: u32 },
    #[error("{field} {value:?} is unknown: written by a newer Muster")]
    Unknown {
        field: &'static str,
        value: Box<str>,
    },
    #[error("an event is of a kind that this program does not know: written by a newer Muster")]
    NewerEvent,
    #[error("{field} is {value}, outside what it points into")]
    Range { field: &'static str, value: u64 },
    #[error("the {what} is not JSON of its form")]
    Json {
        what: &'static str,
        source: serde_json::Error,
    },
}

/// Writes a batch in today's form.
pub(super) fn encode_batch(
    epoch: Epoch,
    at: Timestamp,
    events: &[Event],
) -> Result<Vec<u8>, Error> {
    encode("batch", &event::BatchV1::new(epoch, at, events))
}

/// Reads a batch of any form up to today's.
///
/// # Errors
/// Bytes that are not of the form, or a form of a newer program.
pub fn decode_batch(form: u32, body: &[u8]) -> Result<Batch, Error> {
    match form {
        1 => decode::<event::BatchV1<'_>>("batch", body)?.try_into(),
        found => Err(newer("batch", found)),
    }
}

/// Writes one event in today's form.
pub(super) fn encode_event(event: &Event) -> Result<Vec<u8>, Error> {
    encode("event", &event::EventV1::from(event))
}

/// Gives an event as JSON in today's form, for those who watch a run.
///
/// # Errors
/// [`Error::Json`], which no event of the core causes.
pub fn event_json(event: &Event) -> Result<String, Error> {
    serde_json::to_string(&event::EventV1::from(event)).map_err(|source| Error::Json {
        what: "event",
        source,
    })
}

/// Reads a JSON array of events of any form up to today's.
///
/// # Errors
/// As [`decode_batch`].
pub fn decode_events(form: u32, body: &[u8]) -> Result<Vec<Event>, Error> {
    match form {
        1 => decode::<Vec<event::EventV1<'_>>>("events", body)?
            .into_iter()
            .map(Event::try_from)
            .collect(),
        found => Err(newer("events", found)),
    }
}

/// Writes the part of a snapshot that is not runs in today's form.
pub(super) fn encode_head(head: &Head) -> Result<Vec<u8>, Error> {
    encode("snapshot", &snapshot::HeadV1::from(head))
}

/// Reads the part of a snapshot that is not runs.
///
/// # Errors
/// As [`decode_batch`].
pub fn decode_head(form: u32, body: &[u8]) -> Result<Head, Error> {
    match form {
        1 => decode::<snapshot::HeadV1<'_>>("snapshot", body)?.try_into(),
        found => Err(newer("snapshot", found)),
    }
}

/// Writes a run in today's form.
pub(super) fn encode_run(run: &coordinator_core::state::Run) -> Result<Vec<u8>, Error> {
    encode("run image", &run::RunV1::from(run))
}

/// Reads a run of any form up to today's.
///
/// # Errors
/// As [`decode_batch`].
pub fn decode_run(form: u32, body: &[u8]) -> Result<RunImage, Error> {
    match form {
        1 => Ok(RunImage {
            run: decode::<run::RunV1<'_>>("run image", body)?.try_into()?,
        }),
        found => Err(newer("run image", found)),
    }
}

/// Writes an archived run's summary in today's form.
pub(super) fn encode_summary(summary: &Summary) -> Result<Vec<u8>, Error> {
    encode("summary", &run::SummaryV1::from(summary))
}

/// Reads an archived run's summary of any form up to today's.
///
/// # Errors
/// As [`decode_batch`].
pub fn decode_summary(form: u32, body: &[u8]) -> Result<Summary, Error> {
    match form {
        1 => decode::<run::SummaryV1<'_>>("summary", body)?.try_into(),
        found => Err(newer("summary", found)),
    }
}

fn encode(what: &'static str, value: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|source| Error::Json { what, source })
}

fn decode<T: DeserializeOwned>(what: &'static str, body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|source| Error::Json { what, source })
}

fn newer(what: &'static str, found: u32) -> Error {
    Error::NewerForm { what, found }
}
