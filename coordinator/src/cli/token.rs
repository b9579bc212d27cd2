//! `coordinator token`.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use muster_connect::private_file;
use muster_proto::v1;
use serde_json::json;

use super::arguments::{RoleName, Token, TokenCommand, TokenCreate, TokenList, TokenRevoke};
use super::context::{Context, full_disk, is_full, of_home};
use super::error::{CliError, Exit, Kind, Result};
use super::show;
use super::table::Table;
use crate::auth::{self, Authenticator, NewToken, Role};
use crate::home::{self, Home};
use crate::plan::Duration;

const LISTS: &str = "`coordinator token list` shows them";
const POOL_DEFAULT: &str = "default";
/// What every token begins with.
const TOKEN_PREFIX: &str = "muster_";

pub(crate) async fn token(context: &Context, options: Token) -> Result<Exit> {
    match options.command {
        TokenCommand::Create(options) => create(context, &options).await,
        TokenCommand::List(options) => list(context, &options).await,
        TokenCommand::Revoke(options) => revoke(context, &options).await,
    }
}

/// Whether a home that is not there yet is made.
#[derive(Clone, Copy)]
enum Absent {
    Make,
    Refuse,
}

/// Opens the tokens of the home, which a running coordinator shares; `None` for one elsewhere.
fn store(context: &Context, absent: Absent) -> Result<Option<Arc<Authenticator>>> {
    let Some(home) = context.local_home() else {
        return Ok(None);
    };
    let what = || format!("open the tokens of {}", home.display());
    home::check_place(home).map_err(|error| of_home(error).while_doing(what()))?;
    let made = match absent {
        // What is made in a new home is taken away again if not all of it can be made.
        Absent::Make => match Home::own(home) {
            Ok(home) => Some(home),
            // Whoever owns it has made it.
            Err(home::Error::InUse { .. }) => None,
            Err(error) => return Err(of_home(error).while_doing(what())),
        },
        Absent::Refuse if home.join(auth::TOKENS).exists() => None,
        Absent::Refuse => {
            return Err(
                CliError::user(format!("{} has no tokens yet", home.display()))
                    .hint("`coordinator token create` makes one")
                    .hint("`--home PATH` or MUSTER_HOME names another home"),
            );
        }
    };
    let opened = Authenticator::open(home).map_err(|error| full_or(error, home, &what()))?;
    if let Some(mut made) = made {
        made.keep();
    }
    Ok(Some(opened))
}

fn full_or(
    error: impl std::error::Error + Send + Sync + 'static,
    home: &Path,
    what: &str,
) -> CliError {
    let full = is_full(&error);
    let error = CliError::new(Kind::User, error).while_doing(what);
    if full {
        error.hint(full_disk(home))
    } else {
        error
    }
}

async fn create(context: &Context, options: &TokenCreate) -> Result<Exit> {
    if options.pool.is_some() && options.role != RoleName::Worker {
        return Err(CliError::user("only tokens of workers belong to a pool")
            .hint("leave `--pool` away, or make it `--role worker`"));
    }
    if let Some(path) = &options.out {
        may_replace(path)?;
    }
    let valid_for = match &options.valid_for {
        None => None,
        Some(text) => {
            let length = Duration::parse(text).filter(|length| length.0.ms() > 0);
            let length = length.ok_or_else(|| {
                CliError::user(format!("`--valid-for {text}` is no length of time"))
                    .hint("write it as `90d`, `12h` or `1h30m`")
            })?;
            Some(SignedDuration::from_millis(
                i64::try_from(length.0.ms()).unwrap_or(i64::MAX),
            ))
        }
    };
    let name = options
        .name
        .clone()
        .unwrap_or_else(|| format!("{} token", options.role.as_str()));
    let pool = options.pool.as_deref().unwrap_or(POOL_DEFAULT);
    let (token, id) = match store(context, Absent::Make)? {
        Some(store) => {
            let now = Timestamp::now();
            let new = NewToken {
                role: role(options.role, pool),
                name: name.clone(),
                expires: valid_for.and_then(|length| now.checked_add(length).ok()),
            };
            let token = store
                .create_token(&new, now)
                .map_err(|error| full_or(error, &context.home, "make a token"))?;
            (token.reveal(), token.id.to_string())
        }
        None => {
            let request = v1::CreateTokenRequest {
                role: options.role.as_str().to_owned(),
                pool: pool.to_owned(),
                name: name.clone(),
                valid_for: valid_for.map(|length| prost_types::Duration {
                    seconds: length.as_secs(),
                    nanos: length.subsec_nanos(),
                }),
            };
            let client = context.client().await?;
            let made = client.operator().create_token(request).await?.into_inner();
            (made.token, made.id)
        }
    };
    match &options.out {
        Some(path) => {
            write(path, &token)?;
            if options.json {
                context.output.json(&json!({ "id": id, "file": path }))?;
            } else {
                let role = options.role.as_str();
                context
                    .output
                    .say(&format!("wrote {role} token {id} to {}", path.display()));
            }
        }
        None if options.json => context.output.json(&json!({ "id": id, "token": token }))?,
        None => context.output.data(&token)?,
    }
    Ok(Exit::Success)
}

/// Refuses to write over a file that holds anything but a token.
fn may_replace(path: &Path) -> Result<()> {
    let mut start = [0; TOKEN_PREFIX.len()];
    let is_other = std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() > 0)
        && !std::fs::File::open(path)
            .and_then(|mut file| file.read_exact(&mut start))
            .is_ok_and(|()| start == *TOKEN_PREFIX.as_bytes());
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        return Err(CliError::user(format!(
            "cannot write {}: there is no folder {}",
            path.display(),
            folder.display()
        ))
        .hint("make the folder first, or name another file with `--out`; no token was made"));
    }
    if is_other {
        return Err(CliError::user(format!(
            "{} exists and holds no token; it is left alone",
            path.display()
        ))
        .hint("name another file with `--out`"));
    }
    Ok(())
}

/// Writes a token into a file that only its owner may read; pipes and devices are written to.
fn write(path: &Path, token: &str) -> Result<()> {
    let text = format!("{token}\n");
    let special = std::fs::metadata(path).is_ok_and(|found| !found.is_file());
    let written = if special {
        std::fs::OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
    } else {
        private_file::replace(path, text.as_bytes())
    };
    written.map_err(|error| {
        CliError::new(Kind::User, error)
            .while_doing(format!("write the token to {}", path.display()))
            .hint("the token was made; `coordinator token list` shows it, `token revoke` ends it")
    })
}

fn role(name: RoleName, pool: &str) -> Role {
    match name {
        RoleName::Worker => Role::Worker {
            pool: pool.to_owned(),
        },
        RoleName::Viewer => Role::Viewer,
        RoleName::Operator => Role::Operator,
        RoleName::Admin => Role::Admin,
    }
}

async fn list(context: &Context, options: &TokenList) -> Result<Exit> {
    let mut tokens = match store(context, Absent::Refuse)? {
        Some(store) => {
            let tokens = store.tokens().list().map_err(CliError::internal)?;
            tokens.iter().map(Row::of_record).collect::<Vec<_>>()
        }
        None => {
            let client = context.client().await?;
            let listed = client
                .operator()
                .list_tokens(v1::ListTokensRequest {})
                .await?
                .into_inner();
            listed.tokens.iter().map(Row::of_wire).collect()
        }
    };
    tokens.sort_by_key(|token| token.created);
    if options.json {
        let tokens: Vec<_> = tokens
            .iter()
            .map(|token| {
                json!({
                    "id": token.id,
                    "role": token.role,
                    "pool": token.pool,
                    "name": token.name,
                    "created_at": token.created.map(|at| format!("{at:.3}")),
                    "expires_at": token.expires.map(|at| format!("{at:.3}")),
                    "revoked": token.revoked,
                })
            })
            .collect();
        context.output.json(&json!({ "tokens": tokens }))?;
        return Ok(Exit::Success);
    }
    let paint = context.output.data_paint;
    let mut table = Table::new(
        &["ID", "ROLE", "POOL", "NAME", "MADE", "VALID"].map(|heading| paint.dim(heading)),
    );
    let now = Timestamp::now();
    for token in tokens {
        let valid = match token.expires {
            _ if token.revoked => paint.red("revoked"),
            None => "until revoked".to_owned(),
            Some(at) if at <= now => paint.yellow("expired"),
            Some(at) => format!("until {}", show::local_time(at)),
        };
        let made = token.created.map(show::local_time).unwrap_or_default();
        let name = crate::output::one_line(&token.name);
        table.row(vec![
            token.id,
            token.role,
            token.pool.unwrap_or_default(),
            name,
            made,
            valid,
        ]);
    }
    context.output.data(&table.text())?;
    Ok(Exit::Success)
}

/// A token as it is listed.
struct Row {
    id: String,
    role: String,
    pool: Option<String>,
    name: String,
    created: Option<Timestamp>,
    expires: Option<Timestamp>,
    revoked: bool,
}

impl Row {
    fn of_record(record: &auth::TokenRecord) -> Self {
        let (role, pool) = match &record.role {
            Role::Worker { pool } => (RoleName::Worker, Some(pool.clone())),
            Role::Viewer => (RoleName::Viewer, None),
            Role::Operator => (RoleName::Operator, None),
            Role::Admin => (RoleName::Admin, None),
        };
        Self {
            id: record.id.to_string(),
            role: role.as_str().to_owned(),
            pool,
            name: record.name.clone(),
            created: Some(record.created),
            expires: record.expires,
            revoked: record.revoked.is_some(),
        }
    }

    fn of_wire(info: &v1::TokenInfo) -> Self {
        Self {
            id: info.id.clone(),
            role: info.role.clone(),
            pool: Some(info.pool.clone()).filter(|pool| !pool.is_empty()),
            name: info.name.clone(),
            created: show::time(info.created_at.as_ref()),
            expires: show::time(info.expires_at.as_ref()),
            revoked: info.revoked,
        }
    }
}

async fn revoke(context: &Context, options: &TokenRevoke) -> Result<Exit> {
    let id: muster_connect::TokenId = options.id.parse().map_err(|_| {
        CliError::user(format!(
            "`{}` is no id of a token: it has 16 hex digits",
            options.id
        ))
        .hint(LISTS)
    })?;
    match store(context, Absent::Refuse)? {
        Some(store) => {
            store
                .tokens()
                .revoke(id, Timestamp::now())
                .map_err(|error| CliError::new(Kind::User, error).hint(LISTS))?;
        }
        None => {
            let client = context.client().await?;
            let request = v1::RevokeTokenRequest {
                id: options.id.clone(),
            };
            client.operator().revoke_token(request).await?;
        }
    }
    if options.json {
        context
            .output
            .json(&json!({ "id": options.id, "revoked": true }))?;
        return Ok(Exit::Success);
    }
    context
        .output
        .say(&format!("token {} is worthless now", options.id));
    Ok(Exit::Success)
}
