//! The tokens that have been given out, in a small database of their own.
//!
//! It is apart from the journal so that `token create` works with and without a running
//! coordinator: both processes open the file, and a running one sees the other's changes with its
//! next verification. Secrets are kept only as keyed hashes.

use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use muster_connect::{Fingerprint, Secret, Token, TokenId, private_file};
use rusqlite::{Connection, OptionalExtension as _, Row, named_params};
use subtle::ConstantTimeEq as _;

use super::{
    Identity, Role, SecretKey,
    secret_key::{keep_private, make_private_folder, random_bytes},
};

/// File of the tokens in the home.
pub(crate) const NAME: &str = "tokens.db";
const HASH_CONTEXT: &str = "muster 2026-11 token hash";
/// The form of the table; a later program may raise it.
const FORM: i64 = 1;
/// Another process holds the file only for one short transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// All of them are kept in memory; far more than people or pools need.
const TOKENS_MAX: i64 = 10_000;
const TEXT_CHARS_MAX: usize = 100;

const CREATE_TABLE: &str = "
    CREATE TABLE IF NOT EXISTS token (
        id          BLOB PRIMARY KEY,
        role        TEXT NOT NULL,
        pool        TEXT,
        name        TEXT NOT NULL,
        hash        BLOB NOT NULL,
        created_ms  INTEGER NOT NULL,
        expires_ms  INTEGER,
        revoked_ms  INTEGER
    ) STRICT";
const INSERT: &str = "
    INSERT INTO token (id, role, pool, name, hash, created_ms, expires_ms)
    SELECT :id, :role, :pool, :name, :hash, :created, :expires
    WHERE (SELECT count(*) FROM token) < :max";
const REVOKE: &str = "UPDATE token SET revoked_ms = coalesce(revoked_ms, :now) WHERE id = :id";
const COLUMNS_OF_ONE: &str = "
    SELECT id, role, pool, name, hash, created_ms, expires_ms, revoked_ms FROM token
    WHERE id = :id";
const COLUMNS_OF_ALL: &str = "
    SELECT id, role, pool, name, hash, created_ms, expires_ms, revoked_ms FROM token
    ORDER BY created_ms, id";

/// What a new token shall allow.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// What its holder may do.
    pub role: Role,
    /// What it is for, to be recognised in the list; at most 100 characters.
    pub name: String,
    /// When it ends; never if absent.
    pub expires: Option<Timestamp>,
}

/// What is known of a token; its secret is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRecord {
    /// Its id.
    pub id: TokenId,
    /// What its holder may do.
    pub role: Role,
    /// What it is for.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// When it ends, if it does.
    pub expires: Option<Timestamp>,
    /// When it was revoked, if it was.
    pub revoked: Option<Timestamp>,
}

/// The tokens of one home.
pub struct TokenStore {
    path: PathBuf,
    hash_key: [u8; 32],
    // Two connections, so that a verification never waits for a write to reach the disk.
    writer: Mutex<Connection>,
    reader: Mutex<Reader>,
}

struct Reader {
    connection: Connection,
    /// SQLite's counter of changes that other connections have committed.
    seen: Option<i64>,
    tokens: HashMap<TokenId, (TokenRecord, blake3::Hash)>,
}

impl TokenStore {
    /// Opens the tokens of `home`, making the file on first use.
    pub fn open(home: &Path, key: &SecretKey) -> Result<Self, Error> {
        let path = home.join(NAME);
        let failed = |source| Error::File {
            path: path.clone(),
            source,
        };
        make_private_folder(home).map_err(failed)?;
        // SQLite gives its companion files the mode of the main one, so that one is made first.
        match private_file::create(&path, b"") {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(failed(error));
            }
            _ => {}
        }
        keep_private(&path).map_err(failed)?;
        let writer = connect(&path)?;
        prepare(&writer, &path)?;
        let reader = Reader {
            connection: connect(&path)?,
            seen: None,
            tokens: HashMap::new(),
        };
        Ok(Self {
            hash_key: key.derive(HASH_CONTEXT),
            writer: Mutex::new(writer),
            reader: Mutex::new(reader),
            path,
        })
    }

    /// Makes a token that is valid from now on; `ca` is the authority that it pins.
    ///
    /// After `Ok` it is on disk. Its text cannot be had again.
    pub fn create(&self, new: &NewToken, ca: Fingerprint, now: Timestamp) -> Result<Token, Error> {
        check_text("name", &new.name)?;
        let (role, pool) = match &new.role {
            Role::Worker { pool } => {
                check_text("pool", pool)?;
                ("worker", Some(pool.as_str()))
            }
            Role::Viewer => ("viewer", None),
            Role::Operator => ("operator", None),
            Role::Admin => ("admin", None),
        };
        let token = Token {
            id: TokenId::from_bytes(random_bytes()?),
            secret: Secret::from_bytes(random_bytes()?),
            ca,
        };
        let inserted = self
            .writer()
            .execute(
                INSERT,
                named_params! {
                    ":id": token.id.as_bytes(),
                    ":role": role,
                    ":pool": pool,
                    ":name": new.name,
                    ":hash": self.hash(&token.secret).as_bytes(),
                    ":created": now.as_millisecond(),
                    ":expires": new.expires.map(Timestamp::as_millisecond),
                    ":max": TOKENS_MAX,
                },
            )
            .map_err(|source| self.failed("add to", source))?;
        if inserted == 0 {
            Err(Error::Full)
        } else {
            Ok(token)
        }
    }

    /// Returns all tokens ever made, the oldest first.
    pub fn list(&self) -> Result<Vec<TokenRecord>, Error> {
        let rows = self.read_all(&self.writer())?;
        Ok(rows.into_iter().map(|(record, _)| record).collect())
    }

    /// Ends a token for good and returns it; repeating this changes nothing.
    ///
    /// Requests that come later are refused. Streams that are open go on until their service asks
    /// [`TokenStore::is_live`].
    pub fn revoke(&self, id: TokenId, now: Timestamp) -> Result<TokenRecord, Error> {
        let failed = |source| self.failed("revoke a token in", source);
        let writer = self.writer();
        writer
            .execute(
                REVOKE,
                named_params! { ":id": id.as_bytes(), ":now": now.as_millisecond() },
            )
            .map_err(failed)?;
        writer
            .query_row(
                COLUMNS_OF_ONE,
                named_params! { ":id": id.as_bytes() },
                |row| Ok(parse(row)),
            )
            .optional()
            .map_err(failed)?
            .ok_or(Error::Unknown { id })?
            .map(|(record, _)| record)
            .map_err(failed)
    }

    /// Returns whose token this is, if it is valid at `now`.
    ///
    /// Takes microseconds: tokens are kept in memory and read again only when the file has changed.
    pub fn verify(
        &self,
        id: TokenId,
        secret: &Secret,
        now: Timestamp,
    ) -> Result<Identity, Unverified> {
        let reader = self.current()?;
        let (record, hash) = reader.tokens.get(&id).ok_or(Unverified::Unknown)?;
        let given = self.hash(secret);
        if !bool::from(given.as_bytes().ct_eq(hash.as_bytes())) {
            return Err(Unverified::Unknown);
        }
        record.check(now)?;
        Ok(Identity::of_token(record.role.clone(), id))
    }

    /// Fails once the token has expired or been revoked; for streams that outlive a verification.
    pub fn is_live(&self, id: TokenId, now: Timestamp) -> Result<(), Unverified> {
        let reader = self.current()?;
        reader
            .tokens
            .get(&id)
            .ok_or(Unverified::Unknown)?
            .0
            .check(now)
    }

    /// Brings the tokens in memory up to the file.
    fn current(&self) -> Result<MutexGuard<'_, Reader>, Error> {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let version: i64 = reader
            .connection
            .pragma_query_value(None, "data_version", |row| row.get(0))
            .map_err(|source| self.failed("read", source))?;
        if reader.seen != Some(version) {
            let rows = self.read_all(&reader.connection)?;
            reader.tokens = rows.into_iter().map(|row| (row.0.id, row)).collect();
            reader.seen = Some(version);
        }
        Ok(reader)
    }

    fn read_all(&self, connection: &Connection) -> Result<Vec<(TokenRecord, blake3::Hash)>, Error> {
        connection
            .prepare_cached(COLUMNS_OF_ALL)
            .and_then(|mut statement| statement.query_map([], parse)?.collect())
            .map_err(|source| self.failed("read", source))
    }

    fn writer(&self) -> MutexGuard<'_, Connection> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hash(&self, secret: &Secret) -> blake3::Hash {
        blake3::keyed_hash(&self.hash_key, secret.expose())
    }

    fn failed(&self, what: &'static str, source: rusqlite::Error) -> Error {
        Error::Database {
            what,
            path: self.path.clone(),
            source,
        }
    }
}

impl TokenRecord {
    fn check(&self, now: Timestamp) -> Result<(), Unverified> {
        if self.revoked.is_some() {
            return Err(Unverified::Revoked { id: self.id });
        }
        match self.expires {
            Some(expires) if expires <= now => Err(Unverified::Expired {
                id: self.id,
                expires,
            }),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for TokenStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenStore")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

fn connect(path: &Path) -> Result<Connection, Error> {
    let failed = |source| Error::Database {
        what: "open",
        path: path.to_owned(),
        source,
    };
    let connection = Connection::open(path).map_err(failed)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    // With a write-ahead log readers go on while another process writes.
    connection
        .pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))
        .map_err(failed)?;
    connection
        .pragma_update(None, "synchronous", "full")
        .map_err(failed)?;
    Ok(connection)
}

fn prepare(connection: &Connection, path: &Path) -> Result<(), Error> {
    let failed = |source| Error::Database {
        what: "prepare",
        path: path.to_owned(),
        source,
    };
    let form: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(failed)?;
    if form > FORM {
        return Err(Error::Newer {
            path: path.to_owned(),
            form,
        });
    }
    if form < FORM {
        connection.execute_batch(CREATE_TABLE).map_err(failed)?;
        connection
            .pragma_update(None, "user_version", FORM)
            .map_err(failed)?;
    }
    Ok(())
}

fn parse(row: &Row<'_>) -> Result<(TokenRecord, blake3::Hash), rusqlite::Error> {
    let pool: Option<String> = row.get(2)?;
    let role: String = row.get(1)?;
    let role = match (role.as_str(), pool) {
        ("worker", Some(pool)) => Role::Worker { pool },
        ("viewer", None) => Role::Viewer,
        ("operator", None) => Role::Operator,
        ("admin", None) => Role::Admin,
        _ => return Err(column(1, format!("unknown role {role}").into())),
    };
    let record = TokenRecord {
        id: TokenId::from_bytes(row.get(0)?),
        role,
        name: row.get(3)?,
        created: timestamp(5, row.get(5)?)?,
        expires: row
            .get::<_, Option<i64>>(6)?
            .map(|ms| timestamp(6, ms))
            .transpose()?,
        revoked: row
            .get::<_, Option<i64>>(7)?
            .map(|ms| timestamp(7, ms))
            .transpose()?,
    };
    Ok((record, blake3::Hash::from_bytes(row.get(4)?)))
}

fn timestamp(index: usize, ms: i64) -> Result<Timestamp, rusqlite::Error> {
    Timestamp::from_millisecond(ms).map_err(|error| column(index, error.into()))
}

fn column(index: usize, error: Box<dyn std::error::Error + Send + Sync>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Text, error)
}

fn check_text(what: &'static str, text: &str) -> Result<(), Error> {
    let length = text.chars().count();
    if text.trim().is_empty() || length > TEXT_CHARS_MAX || text.chars().any(char::is_control) {
        return Err(Error::Text { what });
    }
    Ok(())
}

/// Why a token was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Unverified {
    /// There is no such token, or the secret is wrong.
    #[error("this coordinator did not make this token")]
    Unknown,
    /// Its time is over.
    #[error("token {id} expired at {expires}; ask for a new one")]
    Expired {
        /// The token.
        id: TokenId,
        /// When it ended.
        expires: Timestamp,
    },
    /// Somebody ended it.
    #[error("token {id} has been revoked; ask for a new one")]
    Revoked {
        /// The token.
        id: TokenId,
    },
    /// The store could not be read; the token may be good.
    #[error(transparent)]
    Store(#[from] Error),
}

/// Why the store could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be made.
    #[error("cannot use the token store {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The database refused.
    #[error(
        "cannot {what} the token store {}; if it is damaged, copy it from one that `coordinator backup` made, or remove it, after \
         which every token must be made anew", path.display()
    )]
    Database {
        /// What was being done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// A later version has written the file.
    #[error(
        "the token store {} has form {form}, and this program knows forms up to {FORM}; use the \
         newer program", path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The file's form.
        form: i64,
    },
    /// A name or pool is empty, too long or holds control characters.
    #[error("the {what} of a token must have 1 to {TEXT_CHARS_MAX} characters, none a control one")]
    Text {
        /// Which of them.
        what: &'static str,
    },
    /// There are too many tokens.
    #[error("the token store is full: it holds {TOKENS_MAX} tokens")]
    Full,
    /// No token has this id.
    #[error("there is no token {id}")]
    Unknown {
        /// The id.
        id: TokenId,
    },
    /// No random bytes could be had.
    #[error(transparent)]
    Random(#[from] super::SecretKeyError),
}

#[cfg(test)]
mod tests;
