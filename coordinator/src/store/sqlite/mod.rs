//! The store in SQLite: one file with its write-ahead log, synced at every commit.
//!
//! SQLite's log has a checksum over every frame, so after a crash, or a cut of the log at any
//! byte, exactly the commits before it are there. The main file has none, therefore each body
//! carries its own, and a main file that misses its end is refused. The whole file is not checked
//! at a start: that would read all history ever kept, and every body is checked when it is read.

mod copy;
#[cfg(test)]
mod damage;
mod files;
#[cfg(test)]
mod golden;
mod history;
pub mod inspect;
mod mend;
mod read;
mod schema;
#[cfg(test)]
mod tests;
mod write;

use std::path::{Path, PathBuf};

use coordinator_core::Epoch;
use rusqlite::{Connection, Row, Transaction, TransactionBehavior};

pub use copy::{check, copy, restored};
pub(crate) use schema::immutable;

use super::{Error, Place, form};

/// The writing side on SQLite.
pub struct SqliteStore {
    path: PathBuf,
    /// Reads snapshots back, past the writer's page cache. Before the writer, since fields are
    /// dropped in order and only a last connection that can write tidies the log away.
    check: Connection,
    connection: Connection,
    /// The epoch that was claimed; 0 before.
    epoch: Epoch,
}

/// A reading side on SQLite, with its own read-only connection.
pub struct SqliteReader {
    connection: Connection,
}

impl SqliteStore {
    /// Opens the store at a path, making it (mode 0600) if there is none. The folder must exist.
    ///
    /// # Errors
    /// [`Error::NetworkFileSystem`], [`Error::Cut`], [`Error::MainMissing`], [`Error::Foreign`] and
    /// [`Error::NewerFormat`] refuse what is there and leave it untouched.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self {
            connection: schema::open(path)?,
            check: schema::open_to_read(path)?,
            path: path.to_owned(),
            epoch: Epoch(0),
        })
    }

    /// Begins a write, refused when a newer epoch than `epoch` was claimed.
    fn begin(&mut self, doing: &'static str, epoch: Epoch) -> Result<Transaction<'_>, Error> {
        let failed = database(doing);
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(failed)?;
        let held = held_epoch(&transaction)?;
        if held == epoch && epoch > Epoch(0) {
            Ok(transaction)
        } else {
            Err(Error::Fenced { given: epoch, held })
        }
    }
}

impl SqliteReader {
    /// Opens a reader on a store that a [`SqliteStore`] has made.
    ///
    /// # Errors
    /// The database's own, and those of a file that is not a store of this version.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self {
            connection: schema::open_to_read(path)?,
        })
    }
}

fn held_epoch(connection: &Connection) -> Result<Epoch, Error> {
    let failed = database("read the epoch");
    let held: i64 = connection
        .prepare_cached("SELECT epoch FROM epoch")
        .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
        .map_err(failed)?;
    Ok(Epoch(held.unsigned_abs()))
}

/// Makes the function that says what was being done when the database failed.
fn database(doing: &'static str) -> impl Fn(rusqlite::Error) -> Error + Copy {
    move |source| Error::Database { doing, source }
}

fn int(number: u64) -> Result<i64, Error> {
    i64::try_from(number).map_err(|_| Error::Number(number))
}

/// A body as its row holds it.
struct Body {
    form: u32,
    sum: i64,
    bytes: Vec<u8>,
}

impl Body {
    /// Seals bytes of today's form.
    fn new(bytes: Vec<u8>) -> Self {
        Self {
            form: form::FORM,
            sum: sum(&bytes),
            bytes,
        }
    }

    /// Reads the columns form, sum and body that begin at a place in a row.
    fn of(row: &Row<'_>, at: usize) -> rusqlite::Result<Self> {
        Ok(Self {
            form: row.get(at)?,
            sum: row.get(at + 1)?,
            bytes: row.get(at + 2)?,
        })
    }

    /// Reads the body after its checksum has been compared.
    fn read<T>(
        &self,
        what: Place,
        decode: impl FnOnce(u32, &[u8]) -> Result<T, form::Error>,
    ) -> Result<T, Error> {
        if sum(&self.bytes) != self.sum {
            return Err(Error::Damaged(what));
        }
        decode(self.form, &self.bytes).map_err(|source| Error::Form { what, source })
    }
}

/// First eight bytes of the hash: enough against accidents, which is all it is against.
fn sum(bytes: &[u8]) -> i64 {
    let mut first = [0; 8];
    for (to, from) in first.iter_mut().zip(blake3::hash(bytes).as_bytes()) {
        *to = *from;
    }
    i64::from_le_bytes(first)
}
