//! Moves events from the journal into the runs' histories.

use std::collections::BTreeMap;

use coordinator_core::{Event, RunId};
use rusqlite::{Connection, params};

use super::{Body, database, int};
use crate::store::{Error, Place, follows, form};

/// Bytes of events in one row of a history, unless a single event is larger.
const CHUNK_BYTES: usize = 128 * 1024;

const INSERT: &str = "INSERT INTO history (run, first_seq, last_seq, form, sum, body)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
const END: &str = "SELECT last_seq FROM history WHERE run = ?1 ORDER BY first_seq DESC LIMIT 1";

/// Gives the sequence number of the last event in a run's history; 0 if there is none.
pub(super) fn end(connection: &Connection, run: RunId) -> Result<u64, Error> {
    let failed = database("find the end of a history");
    let mut statement = connection.prepare_cached(END).map_err(failed)?;
    let mut rows = statement.query([int(run.0)?]).map_err(failed)?;
    match rows.next().map_err(failed)? {
        Some(row) => Ok(row.get::<_, i64>(0).map_err(failed)?.unsigned_abs()),
        None => Ok(0),
    }
}

/// Collects events of runs and writes them as rows of their histories.
pub(super) struct Mover<'a> {
    connection: &'a Connection,
    runs: BTreeMap<RunId, Chunk>,
}

struct Chunk {
    /// Sequence number of the last event in the history or in `body`.
    last: u64,
    first: u64,
    /// The beginning of a JSON array; empty when no event is waiting.
    body: Vec<u8>,
}

impl<'a> Mover<'a> {
    pub(super) fn new(connection: &'a Connection) -> Self {
        Self {
            connection,
            runs: BTreeMap::new(),
        }
    }

    /// Takes the next event of a run. One that the history has already is passed over.
    pub(super) fn push(&mut self, run: RunId, event: &Event) -> Result<(), Error> {
        let chunk = match self.runs.entry(run) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => entry.insert(Chunk {
                last: end(self.connection, run)?,
                first: 0,
                body: Vec::new(),
            }),
        };
        if event.seq <= chunk.last {
            return Ok(());
        }
        follows(run, chunk.last, event.seq)?;
        let body = form::encode_event(event).map_err(|source| Error::Form {
            what: Place::History(run),
            source,
        })?;
        if !chunk.body.is_empty() && chunk.body.len() + body.len() > CHUNK_BYTES {
            write(self.connection, run, chunk)?;
        }
        if chunk.body.is_empty() {
            chunk.first = event.seq;
            chunk.body.push(b'[');
        } else {
            chunk.body.push(b',');
        }
        chunk.body.extend_from_slice(&body);
        chunk.last = event.seq;
        Ok(())
    }

    /// Writes what is waiting.
    pub(super) fn finish(self) -> Result<(), Error> {
        for (run, mut chunk) in self.runs {
            if !chunk.body.is_empty() {
                write(self.connection, run, &mut chunk)?;
            }
        }
        Ok(())
    }
}

fn write(connection: &Connection, run: RunId, chunk: &mut Chunk) -> Result<(), Error> {
    let failed = database("write a history");
    chunk.body.push(b']');
    let body = Body::new(std::mem::take(&mut chunk.body));
    connection
        .prepare_cached(INSERT)
        .map_err(failed)?
        .execute(params![
            int(run.0)?,
            int(chunk.first)?,
            int(chunk.last)?,
            body.form,
            body.sum,
            body.bytes
        ])
        .map_err(failed)?;
    Ok(())
}
