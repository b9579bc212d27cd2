//! Reading everything that is kept, sound or not, without changing anything: for the audit.

use std::path::Path;

use coordinator_core::state::RunImage;
use coordinator_core::{Epoch, Event, RunId};
use rusqlite::Connection;

use super::{Body, database, files, held_epoch, read, schema};
use crate::store::{Batch, BatchSeq, Error, Place, Snapshot, Summary, form};

/// Most complaints of the database about itself that are read.
const COMPLAINTS_MAX: usize = 100;

const BATCHES: &str = "SELECT batch, form, sum, body FROM journal ORDER BY batch";
const INDEX: &str =
    "SELECT run, first_seq, last_seq, batch FROM journal_run ORDER BY batch, run, first_seq";
const HISTORIES: &str =
    "SELECT run, first_seq, last_seq, form, sum, body FROM history ORDER BY run, first_seq";
const SNAPSHOTS: &str = "SELECT upto, verified FROM snapshot ORDER BY upto";
const ARCHIVE: &str = "SELECT run, name, last_seq, form, summary_sum, summary, sum, body
    FROM archive ORDER BY run";
const SPECS: &str = "SELECT key, count(*), max(task) FROM spec GROUP BY key ORDER BY key";

/// Whether somebody may write while the store is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Beside {
    /// The caller holds the home, so nobody does.
    Nobody,
    /// A coordinator may.
    Coordinator,
}

/// One consistent look at a whole store, as of the moment it was opened.
pub struct Inspector {
    connection: Connection,
}

/// Where a batch's events of one run are said to be.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct IndexRow {
    pub batch: BatchSeq,
    pub run: RunId,
    pub first: u64,
    pub last: u64,
}

/// A row of a run's history.
pub struct HistoryRow {
    pub run: RunId,
    pub first: u64,
    pub last: u64,
    pub events: Result<Vec<Event>, Error>,
}

/// A row of the archive.
pub struct ArchiveRow {
    pub run: RunId,
    pub name: String,
    pub last_seq: u64,
    pub summary: Result<Summary, Error>,
    pub image: Result<RunImage, Error>,
}

/// The task documents kept under one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpecRow {
    pub key: String,
    pub count: u64,
    /// Whether they are numbered from 0 without a gap.
    pub is_gapless: bool,
}

impl Inspector {
    /// Opens a store that is there. With [`Beside::Nobody`] not even a file is made beside it,
    /// unless a killed coordinator has left a log that must be read.
    ///
    /// # Errors
    /// A file that is missing, cut, foreign or newer, or the database's own.
    pub fn open(path: &Path, beside: Beside) -> Result<Self, Error> {
        files::refuse_cut(path)?;
        let log = std::fs::metadata(files::wal_of(path)).is_ok_and(|log| log.len() > 0);
        let connection = schema::open_to_inspect(path, beside == Beside::Nobody && !log)?;
        // Everything is read as of the first read of this transaction, whatever is written since.
        connection
            .execute_batch("BEGIN")
            .map_err(database("begin to read the store"))?;
        Ok(Self { connection })
    }

    /// Lets SQLite check its own file; gives what it complains about.
    ///
    /// # Errors
    /// The check itself cannot be made.
    pub fn complaints(&self) -> Result<Vec<String>, Error> {
        let failed = database("check the journal's file");
        let mut found = Vec::new();
        let mut statement = self
            .connection
            .prepare(&format!("PRAGMA integrity_check({COMPLAINTS_MAX})"))
            .map_err(failed)?;
        let mut rows = statement.query([]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let text: String = row.get(0).map_err(failed)?;
            if text != "ok" {
                found.push(text);
            }
        }
        let mut statement = self
            .connection
            .prepare("PRAGMA foreign_key_check")
            .map_err(failed)?;
        let mut rows = statement.query([]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)?
            && found.len() < COMPLAINTS_MAX
        {
            let (table, id): (String, Option<i64>) =
                (row.get(0).map_err(failed)?, row.get(1).map_err(failed)?);
            found.push(format!(
                "row {} of {table} belongs to nothing",
                id.unwrap_or_default()
            ));
        }
        Ok(found)
    }

    /// Gives the newest epoch that was claimed.
    ///
    /// # Errors
    /// The database's own.
    pub fn epoch(&self) -> Result<Epoch, Error> {
        held_epoch(&self.connection)
    }

    /// Gives all batches in order, those that cannot be read too.
    ///
    /// # Errors
    /// The database's own.
    pub fn batches(
        &self,
        mut visit: impl FnMut(BatchSeq, Result<Batch, Error>),
    ) -> Result<(), Error> {
        let failed = database("read the journal");
        let mut statement = self.connection.prepare(BATCHES).map_err(failed)?;
        let mut rows = statement.query([]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let seq = BatchSeq(number(row.get(0)).map_err(failed)?);
            let body = Body::of(row, 1).map_err(failed)?;
            visit(seq, body.read(Place::Batch(seq), form::decode_batch));
        }
        Ok(())
    }

    /// Gives the journal's index of runs.
    ///
    /// # Errors
    /// The database's own.
    pub fn index(&self) -> Result<Vec<IndexRow>, Error> {
        let failed = database("read the journal's index");
        let mut statement = self.connection.prepare(INDEX).map_err(failed)?;
        let rows = statement
            .query_map([], |row| {
                Ok(IndexRow {
                    run: RunId(number(row.get(0))?),
                    first: number(row.get(1))?,
                    last: number(row.get(2))?,
                    batch: BatchSeq(number(row.get(3))?),
                })
            })
            .map_err(failed)?;
        rows.collect::<Result<_, _>>().map_err(failed)
    }

    /// Gives the histories of all runs, in order.
    ///
    /// # Errors
    /// The database's own.
    pub fn histories(&self, mut visit: impl FnMut(HistoryRow)) -> Result<(), Error> {
        let failed = database("read the histories");
        let mut statement = self.connection.prepare(HISTORIES).map_err(failed)?;
        let mut rows = statement.query([]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let run = RunId(number(row.get(0)).map_err(failed)?);
            visit(HistoryRow {
                run,
                first: number(row.get(1)).map_err(failed)?,
                last: number(row.get(2)).map_err(failed)?,
                events: Body::of(row, 3)
                    .map_err(failed)?
                    .read(Place::History(run), form::decode_events),
            });
        }
        Ok(())
    }

    /// Gives the snapshots with whether they count, oldest first.
    ///
    /// # Errors
    /// The database's own.
    pub fn snapshots(&self) -> Result<Vec<(BatchSeq, bool)>, Error> {
        let failed = database("find the snapshots");
        let mut statement = self.connection.prepare(SNAPSHOTS).map_err(failed)?;
        let rows = statement
            .query_map([], |row| Ok((BatchSeq(number(row.get(0))?), row.get(1)?)))
            .map_err(failed)?;
        rows.collect::<Result<_, _>>().map_err(failed)
    }

    /// Reads a snapshot.
    ///
    /// # Errors
    /// It is damaged, or the database's own.
    pub fn snapshot(&self, upto: BatchSeq) -> Result<Snapshot, Error> {
        read::snapshot(&self.connection, upto)
    }

    /// Gives all archived runs in the order of their submission.
    ///
    /// # Errors
    /// The database's own.
    pub fn archive(&self, mut visit: impl FnMut(ArchiveRow)) -> Result<(), Error> {
        let failed = database("read the archive");
        let mut statement = self.connection.prepare(ARCHIVE).map_err(failed)?;
        let mut rows = statement.query([]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let run = RunId(number(row.get(0)).map_err(failed)?);
            let what = Place::Archive(run);
            let summary = Body::of(row, 3).map_err(failed)?;
            let image = Body {
                form: summary.form,
                sum: row.get(6).map_err(failed)?,
                bytes: row.get(7).map_err(failed)?,
            };
            visit(ArchiveRow {
                run,
                name: row.get(1).map_err(failed)?,
                last_seq: number(row.get(2)).map_err(failed)?,
                summary: summary.read(what, form::decode_summary),
                image: image.read(what, form::decode_run),
            });
        }
        Ok(())
    }

    /// Gives the keys of all task documents.
    ///
    /// # Errors
    /// The database's own.
    pub fn specs(&self) -> Result<Vec<SpecRow>, Error> {
        let failed = database("read the task documents");
        let mut statement = self.connection.prepare(SPECS).map_err(failed)?;
        let rows = statement
            .query_map([], |row| {
                let (count, last) = (number(row.get(1))?, number(row.get(2))?);
                Ok(SpecRow {
                    key: row.get(0)?,
                    count,
                    is_gapless: last + 1 == count,
                })
            })
            .map_err(failed)?;
        rows.collect::<Result<_, _>>().map_err(failed)
    }
}

/// Lets SQLite check the file of any database that holds no journal; gives its first complaint.
///
/// # Errors
/// The database's own.
pub fn complaint(path: &Path, beside: Beside) -> Result<Option<String>, Error> {
    let failed = database("check a database's file");
    let log = std::fs::metadata(files::wal_of(path)).is_ok_and(|log| log.len() > 0);
    let connection = schema::connect_to_read(path, beside == Beside::Nobody && !log)?;
    let said: String = connection
        .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
        .map_err(failed)?;
    Ok((said != "ok").then_some(said))
}

fn number(column: rusqlite::Result<i64>) -> rusqlite::Result<u64> {
    column.map(i64::unsigned_abs)
}
