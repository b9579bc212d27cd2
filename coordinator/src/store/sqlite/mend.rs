//! What `doctor --repair` changes in a store; everything else is the coordinator's.

use coordinator_core::RunId;
use rusqlite::{OptionalExtension as _, Row};

use super::{SqliteStore, database, int};
use crate::store::{BatchSeq, Error};

const HEAD: &str = "SELECT 'head', body FROM snapshot WHERE upto = ?1";
const RUNS: &str = "SELECT 'run-' || run, body FROM snapshot_run WHERE upto = ?1 ORDER BY run";
const DROP: &str = "DELETE FROM snapshot WHERE upto = ?1";
const IMAGE: &str = "SELECT 'archived-' || run, body FROM archive WHERE run = ?1";

/// A body as it is kept, sound or not, under a name that can be a file's.
pub(super) type RawBody = (String, Vec<u8>);

impl SqliteStore {
    /// Gives the bodies of a snapshot, so that they can be kept elsewhere.
    ///
    /// # Errors
    /// The database's own.
    pub fn raw_snapshot(&self, upto: BatchSeq) -> Result<Vec<RawBody>, Error> {
        let failed = database("copy a snapshot");
        let place = int(upto.0)?;
        let mut bodies = Vec::new();
        for sql in [HEAD, RUNS] {
            let mut statement = self.connection.prepare(sql).map_err(failed)?;
            let rows = statement.query_map([place], raw).map_err(failed)?;
            for row in rows {
                bodies.push(row.map_err(failed)?);
            }
        }
        Ok(bodies)
    }

    /// Gives the image of an archived run, so that it can be kept elsewhere.
    ///
    /// # Errors
    /// The database's own.
    pub fn raw_archive(&self, run: RunId) -> Result<Option<RawBody>, Error> {
        self.connection
            .query_row(IMAGE, [int(run.0)?], raw)
            .optional()
            .map_err(database("copy an archived run"))
    }

    /// Forgets a snapshot. Only for a caller who knows that the state follows without it. An epoch
    /// must have been claimed.
    ///
    /// # Errors
    /// [`Error::Fenced`], or the database's own: the snapshot is still there.
    pub fn drop_snapshot(&mut self, upto: BatchSeq) -> Result<(), Error> {
        let doing = "drop a snapshot";
        let failed = database(doing);
        let epoch = self.epoch;
        let transaction = self.begin(doing, epoch)?;
        transaction.execute(DROP, [int(upto.0)?]).map_err(failed)?;
        transaction.commit().map_err(failed)
    }
}

fn raw(row: &Row<'_>) -> rusqlite::Result<RawBody> {
    Ok((row.get(0)?, row.get(1)?))
}
