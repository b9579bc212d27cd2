//! Tables, pragmas, and the ways to open a connection.

use std::fs::{self, OpenOptions};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::database;
use super::files::{file, refuse_cut, refuse_network, sync_folder, wal_of};
use crate::store::Error;

/// Format of the tables; grows with every change that an older program could not live with, also
/// with every new form of a body.
const FORMAT: i64 = 1;
/// Marks the file as ours in its header: "Must".
const APPLICATION: i64 = 0x4D75_7374;
/// How long a connection waits for another's lock: a checkpoint or a backup takes moments.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Statements that a connection keeps prepared: more than there are.
const STATEMENTS: usize = 64;

const TABLES: &str = "
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE epoch (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    epoch INTEGER NOT NULL
) STRICT;
CREATE TABLE journal (
    batch INTEGER PRIMARY KEY,
    form INTEGER NOT NULL,
    sum INTEGER NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE TABLE journal_run (
    run INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    last_seq INTEGER NOT NULL,
    batch INTEGER NOT NULL,
    PRIMARY KEY (run, first_seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE history (
    run INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    last_seq INTEGER NOT NULL,
    form INTEGER NOT NULL,
    sum INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (run, first_seq)
) STRICT;
CREATE TABLE snapshot (
    upto INTEGER PRIMARY KEY,
    verified INTEGER NOT NULL CHECK (verified IN (0, 1)),
    form INTEGER NOT NULL,
    sum INTEGER NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE TABLE snapshot_run (
    upto INTEGER NOT NULL REFERENCES snapshot ON DELETE CASCADE,
    run INTEGER NOT NULL,
    form INTEGER NOT NULL,
    sum INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (upto, run)
) STRICT;
CREATE TABLE archive (
    run INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    last_seq INTEGER NOT NULL,
    form INTEGER NOT NULL,
    summary_sum INTEGER NOT NULL,
    summary BLOB NOT NULL,
    sum INTEGER NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE TABLE spec (
    key TEXT NOT NULL,
    task INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (key, task)
) STRICT;
INSERT INTO epoch VALUES (1, 0);
";

/// Settings of every connection. The log may grow to 16 MiB before a commit pays for a checkpoint
/// and is cut back to 64 MiB after a large one; `fullfsync` matters on macOS only, where a plain
/// sync does not reach the disk.
const PRAGMAS: &str = "
PRAGMA synchronous = FULL;
PRAGMA fullfsync = ON;
PRAGMA checkpoint_fullfsync = ON;
PRAGMA wal_autocheckpoint = 4096;
PRAGMA journal_size_limit = 67108864;
PRAGMA cache_size = -16384;
PRAGMA foreign_keys = ON;
";

/// Opens the store at a path for writing, making it if there is none.
pub(super) fn open(path: &Path) -> Result<Connection, Error> {
    let folder = folder_of(path);
    refuse_network(folder)?;
    if path
        .try_exists()
        .map_err(|error| file("find", path, error))?
    {
        refuse_cut(path)?;
    } else if fs::exists(wal_of(path)).map_err(|error| file("find", path, error))? {
        return Err(Error::MainMissing(path.to_owned()));
    } else {
        create(path)?;
    }
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    check_format(path, &connection)?;
    settle_log(&connection)?;
    Ok(connection)
}

/// Moves what an earlier start left in the log into the file.
///
/// When a sync was refused, that start ended, and the system may show frames that never reached the
/// disk and that no later sync of the log would write. What is copied into the file is written
/// anew, so that what is believed from here on is there.
fn settle_log(connection: &Connection) -> Result<(), Error> {
    let doing = "move the journal's log into its file";
    let (frames, moved) = connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| {
            Ok((row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
        })
        .map_err(database(doing))?;
    if moved == frames {
        return Ok(());
    }
    // Another process reads it.
    let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
    Err(database(doing)(rusqlite::Error::SqliteFailure(busy, None)))
}

/// Opens a connection that can only read.
pub(super) fn open_to_read(path: &Path) -> Result<Connection, Error> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    check_format(path, &connection)?;
    Ok(connection)
}

/// Opens a store that can only be read; see [`connect_to_read`].
pub(super) fn open_to_inspect(path: &Path, is_immutable: bool) -> Result<Connection, Error> {
    let connection = connect_to_read(path, is_immutable)?;
    check_format(path, &connection)?;
    Ok(connection)
}

/// Opens any database for reading. One that nobody writes and that has no log can be taken as
/// immutable: then there are neither locks nor files beside it.
pub(super) fn connect_to_read(path: &Path, is_immutable: bool) -> Result<Connection, Error> {
    if !is_immutable {
        return connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY);
    }
    let mode = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    connect(Path::new(&immutable(path)), mode)
}

/// Names a file so that SQLite takes it as one that nobody changes.
pub(crate) fn immutable(path: &Path) -> String {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                uri.push(char::from(*byte));
            }
            other => uri.push_str(&format!("%{other:02X}")),
        }
    }
    uri.push_str("?immutable=1");
    uri
}

/// Makes a store under another name and renames it, so that a file under the real name is always
/// a whole store and an empty one always a damaged one.
fn create(path: &Path) -> Result<(), Error> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push("-new");
    let fresh = Path::new(&fresh);
    for leftover in [fresh.to_owned(), wal_of(fresh)] {
        match fs::remove_file(&leftover) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            removed => removed.map_err(|error| file("remove", &leftover, error))?,
        }
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(fresh)
        .map_err(|error| file("create", fresh, error))?;
    let mut connection = connect(fresh, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let doing = "create the journal";
    let failed = database(doing);
    connection
        .pragma_update(None, "journal_mode", "WAL")
        .map_err(failed)?;
    let transaction = connection.transaction().map_err(failed)?;
    transaction.execute_batch(TABLES).map_err(failed)?;
    transaction
        .pragma_update(None, "application_id", APPLICATION)
        .map_err(failed)?;
    transaction
        .pragma_update(None, "user_version", FORMAT)
        .map_err(failed)?;
    transaction
        .execute(
            "INSERT INTO meta VALUES ('written_by', ?1)",
            [env!("CARGO_PKG_VERSION")],
        )
        .map_err(failed)?;
    transaction.commit().map_err(failed)?;
    // Closing the last connection moves the log into the file and removes it.
    connection
        .close()
        .map_err(|(_, source)| Error::Database { doing, source })?;
    fs::rename(fresh, path).map_err(|error| file("rename", fresh, error))?;
    sync_folder(folder_of(path))
}

pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn connect(path: &Path, mode: OpenFlags) -> Result<Connection, Error> {
    let failed = database("open the journal");
    let connection = Connection::open_with_flags(path, mode | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .map_err(failed)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    connection.execute_batch(PRAGMAS).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

/// Refuses files of other programs and of newer versions of this one.
fn check_format(path: &Path, connection: &Connection) -> Result<(), Error> {
    let failed = database("read the journal's format");
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    if pragma("application_id").map_err(failed)? != APPLICATION {
        return Err(Error::Foreign(path.to_owned()));
    }
    let found = pragma("user_version").map_err(failed)?;
    if found > FORMAT {
        let written_by = connection
            .query_row(
                "SELECT value FROM meta WHERE key = 'written_by'",
                [],
                |row| row.get(0),
            )
            .unwrap_or_else(|_| "of an unknown version".to_owned());
        return Err(Error::NewerFormat {
            written_by,
            found,
            known: FORMAT,
        });
    }
    Ok(())
}
