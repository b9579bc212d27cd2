//! Copies of databases for backups, and what makes a copy a home's journal again.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use coordinator_core::Epoch;
use rusqlite::{Connection, OpenFlags};

use super::files::{file, sync_folder};
use super::schema::{self, BUSY_TIMEOUT, folder_of};
use super::{SqliteStore, database, held_epoch, int};
use crate::store::Error;

/// Copies a database as it is at one moment, also one that others write, into a new file (0600)
/// that needs no log beside it.
///
/// It is one read: writers go on, and only the log cannot begin anew until it is over. The copy is
/// not synced.
///
/// # Errors
/// The database's own, or a file that is there already; a half-written copy may be left.
pub fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let failed = database("copy a database");
    // SQLite fills an empty file and keeps its mode.
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .map_err(|error| file("create", to, error))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(from, flags).map_err(failed)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    let name = to
        .to_str()
        .ok_or_else(|| file("name", to, std::io::ErrorKind::InvalidFilename.into()))?;
    connection
        .execute("VACUUM INTO ?1", [name])
        .map_err(failed)?;
    Ok(())
}

/// Lets SQLite check every page and index of a database.
///
/// # Errors
/// [`Error::Inconsistent`] with the first thing that it found, or the database's own.
pub fn check(path: &Path) -> Result<(), Error> {
    let failed = database("check a database");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    let found: String = connection
        .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
        .map_err(failed)?;
    if found == "ok" {
        Ok(())
    } else {
        Err(Error::Inconsistent {
            path: path.to_owned(),
            found,
        })
    }
}

/// Makes a copy a journal that a coordinator can go on with, in an epoch of a restored home that is
/// not below `floor`; gives that epoch, which the next start adds one to.
///
/// # Errors
/// As [`SqliteStore::open`]; the copy is then still a copy.
pub fn restored(path: &Path, floor: u64) -> Result<Epoch, Error> {
    let failed = database("begin a restored journal");
    let connection = schema::open(path)?;
    let held = held_epoch(&connection)?;
    let epoch = Epoch(floor.max(Epoch::RESTORED.0).max(held.0));
    connection
        .execute("UPDATE epoch SET epoch = ?1", [int(epoch.0)?])
        .map_err(failed)?;
    connection
        .pragma_update(None, "journal_mode", "WAL")
        .map_err(failed)?;
    connection.close().map_err(|(_, source)| failed(source))?;
    sync_folder(folder_of(path))?;
    Ok(epoch)
}

impl SqliteStore {
    /// Gives the ids of all archived runs, oldest first.
    ///
    /// # Errors
    /// The database's own.
    pub fn archived_ids(&self) -> Result<Vec<coordinator_core::RunId>, Error> {
        self.connection
            .prepare_cached("SELECT run FROM archive ORDER BY run")
            .and_then(|mut statement| {
                statement
                    .query_map([], |row| {
                        Ok(coordinator_core::RunId(
                            row.get::<_, i64>(0)?.unsigned_abs(),
                        ))
                    })?
                    .collect()
            })
            .map_err(database("list the archive"))
    }
}
