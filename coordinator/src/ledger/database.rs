//! The ledger's file.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use coordinator_core::LeaseId;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row, Transaction, params};

use super::{Entry, Error, Grown, Owner, WorkKind};
use crate::transcript::{self, Position};

/// Form of the tables. A file of another one is made anew, since it is only a projection.
const FORM: i64 = 2;
/// Marks the file as ours in its header: "MusU".
const APPLICATION: i64 = 0x4D75_7355;
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a transcript that are read at once.
const CHUNK: usize = 1 << 20;

const TABLES: &str = "
CREATE TABLE lease (
    lease INTEGER PRIMARY KEY,
    run TEXT NOT NULL,
    task TEXT NOT NULL,
    work TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    worker TEXT NOT NULL,
    path TEXT NOT NULL,
    inode INTEGER NOT NULL,
    read_number INTEGER NOT NULL,
    read_bytes INTEGER NOT NULL
) STRICT;
CREATE INDEX lease_of_run ON lease (run, task);
CREATE TABLE usage (
    lease INTEGER NOT NULL REFERENCES lease ON DELETE CASCADE,
    number INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    turn INTEGER NOT NULL,
    model TEXT NOT NULL,
    model_key TEXT NOT NULL,
    input INTEGER NOT NULL,
    cached INTEGER NOT NULL,
    cache_write INTEGER NOT NULL,
    output INTEGER NOT NULL,
    reasoning INTEGER NOT NULL,
    calls INTEGER NOT NULL,
    unknown_calls INTEGER NOT NULL,
    cost_micros INTEGER,
    PRIMARY KEY (lease, number)
) STRICT, WITHOUT ROWID;
";

/// A lost commit is read again from the transcripts, so only checkpoints wait for the disk.
const PRAGMAS: &str = "
PRAGMA synchronous = NORMAL;
PRAGMA foreign_keys = ON;
PRAGMA journal_size_limit = 16777216;
";

/// Up to where a lease's transcript was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    inode: i64,
    position: Position,
}

/// Whether somebody writes the ledger while it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beside {
    Nobody,
    Writer,
}

/// The writing side.
pub(super) struct Database {
    connection: Connection,
}

pub(super) fn failed(doing: &'static str) -> impl Fn(rusqlite::Error) -> Error + Copy {
    move |source| Error::Database { doing, source }
}

/// Tells whether the file itself is spoiled, so that only a new one helps.
pub(super) fn is_spoiled(error: &Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    match error {
        Error::Form => true,
        Error::Database { source, .. } => matches!(
            source.sqlite_error_code(),
            Some(DatabaseCorrupt | NotADatabase)
        ),
        Error::Io { .. } | Error::Transcript(_) => false,
    }
}

impl Database {
    /// Opens the ledger, making it (mode 0600) if there is none.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let is_new = !path.exists();
        if is_new {
            fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)
                .map_err(|source| Error::Io {
                    action: "create",
                    path: path.to_owned(),
                    source,
                })?;
        }
        let doing = failed("open");
        let mode = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, mode).map_err(doing)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(doing)?;
        connection
            .pragma_update(None, "journal_mode", "WAL")
            .map_err(doing)?;
        connection.execute_batch(PRAGMAS).map_err(doing)?;
        // A process that was killed before its tables were there has left an empty file.
        let objects: i64 = connection
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
            .map_err(doing)?;
        if objects == 0 {
            let transaction = connection.transaction().map_err(doing)?;
            transaction.execute_batch(TABLES).map_err(doing)?;
            for (name, value) in [("application_id", APPLICATION), ("user_version", FORM)] {
                transaction
                    .pragma_update(None, name, value)
                    .map_err(doing)?;
            }
            transaction.commit().map_err(doing)?;
        }
        check_form(&connection)?;
        Ok(Self { connection })
    }

    /// Takes in what transcripts have grown by, in one transaction.
    pub(super) fn take<'g>(
        &mut self,
        root: &Path,
        grown: impl IntoIterator<Item = &'g Grown>,
    ) -> Result<(), Error> {
        let doing = failed("write");
        let transaction = self.connection.transaction().map_err(doing)?;
        for grown in grown {
            take_one(&transaction, root, grown)?;
        }
        transaction.commit().map_err(doing)
    }

    /// Reads a transcript on from its mark, or anew if it is not what it was, up to its end.
    pub(super) fn read_on(
        &mut self,
        root: &Path,
        lease: LeaseId,
        path: &Path,
    ) -> Result<(), Error> {
        let full = root.join(path);
        let found = fs::metadata(&full).map_err(|source| Error::Io {
            action: "look at",
            path: full.clone(),
            source,
        })?;
        let known = mark(&self.connection, lease)?;
        let unchanged = known.as_ref().is_some_and(|(mark, of)| {
            mark.inode == inode(&found) && mark.position.offset == found.len() && of == path
        });
        let Some(owner) = owner_of(path).filter(|_| !unchanged) else {
            return Ok(());
        };
        if known.is_none() {
            // One that has just been made does not say yet whose it is; the news of it will.
            let mut begun = Position::default();
            transcript::read_file_on(&full, &mut begun, CHUNK)?;
            if begun.offset == 0 {
                return Ok(());
            }
        }
        let doing = failed("write");
        let transaction = self.connection.transaction().map_err(doing)?;
        reread(&transaction, root, (lease, path, &owner), u64::MAX, false)?;
        transaction.commit().map_err(doing)
    }

    /// Lists the leases that it knows, with their transcripts.
    pub(super) fn leases(&self) -> Result<BTreeMap<LeaseId, PathBuf>, Error> {
        leases(&self.connection)
    }

    /// Forgets a lease whose transcript is gone.
    pub(super) fn forget(&self, lease: LeaseId) -> Result<(), Error> {
        self.connection
            .execute("DELETE FROM lease WHERE lease = ?1", [number(lease.0)])
            .map(|_| ())
            .map_err(failed("write"))
    }
}

fn leases(connection: &Connection) -> Result<BTreeMap<LeaseId, PathBuf>, Error> {
    let doing = failed("read");
    let mut statement = connection
        .prepare("SELECT lease, path FROM lease")
        .map_err(doing)?;
    let rows = statement
        .query_map([], |row| {
            Ok((
                LeaseId(unsigned(row.get(0)?)),
                PathBuf::from(row.get::<_, String>(1)?),
            ))
        })
        .map_err(doing)?;
    rows.collect::<Result<_, _>>().map_err(doing)
}

fn take_one(transaction: &Transaction<'_>, root: &Path, grown: &Grown) -> Result<(), Error> {
    let (lease, path) = (grown.lease, grown.path.as_path());
    let known = mark(transaction, lease)?;
    let read = known.as_ref().map_or(0, |(mark, _)| mark.position.offset);
    let is_next = grown.from.offset == read && (read == 0) == known.is_none();
    if is_next && grown.is_whole && !grown.rewritten {
        let mark = match known {
            Some((mark, _)) => Mark {
                position: grown.to,
                ..mark
            },
            None => Mark {
                inode: inode_at(&root.join(path))?,
                position: grown.to,
            },
        };
        put_mark(transaction, (lease, path, &grown.owner), mark)?;
        return put(transaction, lease, &grown.entries);
    }
    if !grown.rewritten && read >= grown.to.offset {
        // Somebody has read it from the file.
        return Ok(());
    }
    let (upto, anew) = (grown.to.offset, grown.rewritten);
    reread(transaction, root, (lease, path, &grown.owner), upto, anew)
}

/// Reads a transcript from its mark on, or from its beginning if it is another file now or `anew` is
/// asked for, up to a byte at which a record ends.
fn reread(
    transaction: &Transaction<'_>,
    root: &Path,
    whose: (LeaseId, &Path, &Owner),
    upto: u64,
    anew: bool,
) -> Result<(), Error> {
    let (lease, path, owner) = whose;
    let full = root.join(path);
    let owner = &Owner {
        worker: transcript::heading(&full)?.worker.unwrap_or_default(),
        ..owner.clone()
    };
    let found = fs::metadata(&full).map_err(|source| Error::Io {
        action: "look at",
        path: full.clone(),
        source,
    })?;
    let inode = inode(&found);
    let mut position = Position::default();
    if let Some((mark, of)) = mark(transaction, lease)? {
        let same = mark.inode == inode && mark.position.offset <= found.len() && of == path;
        if same && !anew {
            position = mark.position;
        } else {
            transaction
                .execute("DELETE FROM lease WHERE lease = ?1", [number(lease.0)])
                .map_err(failed("write"))?;
        }
    }
    // The mark first: rows refer to it.
    put_mark(transaction, (lease, path, owner), Mark { inode, position })?;
    while position.offset < upto {
        let room = usize::try_from(upto - position.offset).unwrap_or(CHUNK);
        let before = position;
        let events = transcript::read_file_on(&full, &mut position, CHUNK.min(room))?;
        if events.is_empty() && position == before {
            break;
        }
        let entries: Vec<Entry> = events.iter().filter_map(Entry::of).collect();
        put(transaction, lease, &entries)?;
    }
    put_mark(transaction, (lease, path, owner), Mark { inode, position })
}

fn mark(connection: &Connection, lease: LeaseId) -> Result<Option<(Mark, PathBuf)>, Error> {
    connection
        .prepare_cached("SELECT inode, read_number, read_bytes, path FROM lease WHERE lease = ?1")
        .and_then(|mut statement| {
            statement
                .query_row([number(lease.0)], |row| {
                    let position = Position {
                        number: unsigned(row.get(1)?),
                        offset: unsigned(row.get(2)?),
                    };
                    let mark = Mark {
                        inode: row.get(0)?,
                        position,
                    };
                    Ok((mark, PathBuf::from(row.get::<_, String>(3)?)))
                })
                .optional()
        })
        .map_err(failed("read"))
}

fn put_mark(
    transaction: &Transaction<'_>,
    (lease, path, owner): (LeaseId, &Path, &Owner),
    mark: Mark,
) -> Result<(), Error> {
    transaction
        .prepare_cached(
            "INSERT INTO lease VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
             ON CONFLICT (lease) DO UPDATE SET inode = ?8, read_number = ?9, read_bytes = ?10",
        )
        .and_then(|mut statement| {
            statement.execute(params![
                number(lease.0),
                owner.run,
                owner.task,
                owner.work.as_str(),
                owner.attempt,
                owner.worker,
                path.to_string_lossy(),
                mark.inode,
                number(mark.position.number),
                number(mark.position.offset),
            ])
        })
        .map(|_| ())
        .map_err(failed("write"))
}

fn put(transaction: &Transaction<'_>, lease: LeaseId, entries: &[Entry]) -> Result<(), Error> {
    if entries.is_empty() {
        return Ok(());
    }
    let doing = failed("write");
    let mut statement = transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO usage
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
        )
        .map_err(doing)?;
    for entry in entries {
        statement
            .execute(params![
                number(lease.0),
                number(entry.number),
                number(entry.at_ms),
                entry.turn,
                entry.model,
                super::prices::key(&entry.model),
                number(entry.input),
                number(entry.cached),
                number(entry.cache_write),
                number(entry.output),
                number(entry.reasoning),
                entry.calls,
                entry.unknown_calls,
                entry.cost_micros.map(number),
            ])
            .map_err(doing)?;
    }
    Ok(())
}

fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry {
        number: unsigned(row.get(0)?),
        at_ms: unsigned(row.get(1)?),
        turn: row.get(2)?,
        model: row.get(3)?,
        input: unsigned(row.get(4)?),
        cached: unsigned(row.get(5)?),
        cache_write: unsigned(row.get(6)?),
        output: unsigned(row.get(7)?),
        reasoning: unsigned(row.get(8)?),
        calls: row.get(9)?,
        unknown_calls: row.get(10)?,
        cost_micros: row.get::<_, Option<i64>>(11)?.map(unsigned),
    })
}

/// Numbers beyond what a column holds are those of liars; they stay in order.
fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64) -> u64 {
    value.unsigned_abs()
}

fn inode(found: &fs::Metadata) -> i64 {
    found.ino().cast_signed()
}

fn inode_at(path: &Path) -> Result<i64, Error> {
    let found = fs::metadata(path).map_err(|source| Error::Io {
        action: "look at",
        path: path.to_owned(),
        source,
    })?;
    Ok(inode(&found))
}

/// Reads from a transcript's path what its lease was for.
fn owner_of(path: &Path) -> Option<Owner> {
    let parts: Vec<&str> = path
        .iter()
        .map(|part| part.to_str())
        .collect::<Option<_>>()?;
    let (run, task, name) = match parts[..] {
        [run, "tasks", task, name] => (run, task, name),
        [run, name] => (run, "", name),
        _ => return None,
    };
    let (stem, _) = name.rsplit_once("-L")?;
    let (work, attempt) = match stem.split_once('-') {
        Some(("attempt", number)) => (WorkKind::Attempt, number.parse().ok()?),
        Some(("verify", number)) => (WorkKind::Verify, number.parse().ok()?),
        Some(("final", "verify")) => (WorkKind::FinalVerify, 0),
        _ => return None,
    };
    Some(Owner {
        run: run.to_owned(),
        task: task.to_owned(),
        work,
        attempt,
        worker: String::new(),
    })
}

/// Opens a ledger that is there, for reading.
pub(super) fn open_to_read(path: &Path, beside: Beside) -> Result<Connection, Error> {
    let log = fs::metadata(path.with_extension("db-wal")).is_ok_and(|log| log.len() > 0);
    let immutable = beside == Beside::Nobody && !log;
    let (name, mode) = if immutable {
        let uri = crate::store::sqlite::immutable(path);
        (PathBuf::from(uri), OpenFlags::SQLITE_OPEN_URI)
    } else {
        (path.to_owned(), OpenFlags::SQLITE_OPEN_NO_MUTEX)
    };
    let connection = Connection::open_with_flags(name, mode | OpenFlags::SQLITE_OPEN_READ_ONLY)
        .map_err(failed("open"))?;
    connection
        .busy_timeout(BUSY_TIMEOUT)
        .map_err(failed("open"))?;
    check_form(&connection)?;
    Ok(connection)
}

fn check_form(connection: &Connection) -> Result<(), Error> {
    let pragma = |name| {
        connection
            .pragma_query_value(None, name, |row| row.get::<_, i64>(0))
            .map_err(failed("read the form of"))
    };
    if pragma("application_id")? == APPLICATION && pragma("user_version")? == FORM {
        Ok(())
    } else {
        Err(Error::Form)
    }
}

/// Compares a ledger with transcripts, for the audit.
pub(crate) struct Checker {
    connection: Connection,
    unseen: BTreeMap<LeaseId, PathBuf>,
}

impl Checker {
    /// Opens a ledger, as it is at this moment; `None` if there is none, which the next start makes.
    pub(crate) fn open(home: &Path, beside: Beside) -> Result<Option<Self>, Error> {
        let path = home.join(super::FILE_NAME);
        if !path.exists() {
            return Ok(None);
        }
        let connection = open_to_read(&path, beside)?;
        connection
            .execute_batch("BEGIN")
            .map_err(failed("begin to read"))?;
        let unseen = leases(&connection)?;
        Ok(Some(Self { connection, unseen }))
    }

    /// Compares a lease's rows with what its transcript holds, up to where the ledger has read it; gives
    /// the number of the first event about which they differ.
    pub(crate) fn compare(
        &mut self,
        lease: LeaseId,
        path: &Path,
        told: &[Entry],
    ) -> Result<Option<u64>, Error> {
        self.unseen.remove(&lease);
        let Some((mark, of)) = mark(&self.connection, lease)? else {
            // The next start reads it.
            return Ok(None);
        };
        let doing = failed("read");
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT number, at_ms, turn, model, input, cached, cache_write, output, reasoning,
                        calls, unknown_calls, cost_micros
                 FROM usage WHERE lease = ?1 ORDER BY number",
            )
            .map_err(doing)?;
        let mut kept = statement
            .query_map([number(lease.0)], entry)
            .map_err(doing)?;
        let read = |told: &&Entry| told.number <= mark.position.number;
        for told in told.iter().filter(read) {
            match kept.next().transpose().map_err(doing)? {
                Some(kept) if kept == *told => {}
                _ => return Ok(Some(told.number)),
            }
        }
        let more = kept.next().transpose().map_err(doing)?;
        Ok(more.map(|more| more.number).or((of != path).then_some(0)))
    }

    /// Notes that a transcript was seen which cannot be compared.
    pub(crate) fn skip(&mut self, lease: LeaseId) {
        self.unseen.remove(&lease);
    }

    /// Gives the leases that have rows and no transcript.
    pub(crate) fn without_transcript(&self) -> Result<Vec<LeaseId>, Error> {
        let mut found = Vec::new();
        for lease in self.unseen.keys() {
            let rows: i64 = self
                .connection
                .query_row(
                    "SELECT count(*) FROM usage WHERE lease = ?1",
                    [number(lease.0)],
                    |row| row.get(0),
                )
                .map_err(failed("read"))?;
            if rows > 0 {
                found.push(*lease);
            }
        }
        Ok(found)
    }
}
