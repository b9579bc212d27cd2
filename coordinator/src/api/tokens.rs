//! Tokens for people and programs.

use std::sync::Arc;

use coordinator_core::{Span, Timestamp};
use muster_proto::v1;
use tonic::Status;

use super::{convert, status};
use crate::auth::{Authenticator, NewToken, Role};

/// Makes a token.
///
/// # Errors
/// It is asked for something that no token can be.
pub(super) async fn create(
    auth: &Arc<Authenticator>,
    request: v1::CreateTokenRequest,
) -> Result<v1::CreateTokenResponse, Status> {
    let role = match request.role.as_str() {
        "worker" => Role::Worker {
            pool: if request.pool.is_empty() {
                "default".to_owned()
            } else {
                request.pool
            },
        },
        "viewer" => Role::Viewer,
        "operator" => Role::Operator,
        "admin" => Role::Admin,
        other => {
            return Err(Status::invalid_argument(format!(
                "role: {:?} is none of worker, viewer, operator, admin",
                convert::clip(other, 40)
            )));
        }
    };
    let now = jiff::Timestamp::now();
    let expires = request.valid_for.as_ref().map(|valid| {
        let span: Span = convert::span(valid);
        let millis = i64::try_from(span.ms()).unwrap_or(i64::MAX);
        now.checked_add(jiff::SignedDuration::from_millis(millis))
            .unwrap_or(jiff::Timestamp::MAX)
    });
    let auth = Arc::clone(auth);
    let new = NewToken {
        role,
        name: request.name,
        expires,
    };
    let token = tokio::task::spawn_blocking(move || auth.create_token(&new, now))
        .await
        .map_err(|error| status::internal(&error))?
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok(v1::CreateTokenResponse {
        token: token.reveal(),
        id: token.id.to_string(),
    })
}

/// Lists all tokens, those that were revoked too; never their secrets.
///
/// # Errors
/// They cannot be read.
pub(super) async fn list(auth: &Arc<Authenticator>) -> Result<v1::ListTokensResponse, Status> {
    let auth = Arc::clone(auth);
    let records = tokio::task::spawn_blocking(move || auth.tokens().list())
        .await
        .map_err(|error| status::internal(&error))?
        .map_err(|error| status::internal(&error))?;
    let tokens = records
        .into_iter()
        .map(|record| {
            let (role, pool) = match record.role {
                Role::Worker { pool } => ("worker", pool),
                Role::Viewer => ("viewer", String::new()),
                Role::Operator => ("operator", String::new()),
                Role::Admin => ("admin", String::new()),
            };
            v1::TokenInfo {
                id: record.id.to_string(),
                role: role.to_owned(),
                pool,
                name: record.name,
                created_at: Some(wall(record.created)),
                expires_at: record.expires.map(wall),
                revoked: record.revoked.is_some(),
            }
        })
        .collect();
    Ok(v1::ListTokensResponse { tokens })
}

/// Revokes a token.
///
/// # Errors
/// There is none of this id.
pub(super) async fn revoke(
    auth: &Arc<Authenticator>,
    request: &v1::RevokeTokenRequest,
) -> Result<v1::RevokeTokenResponse, Status> {
    let id = request
        .id
        .parse()
        .map_err(|_| Status::invalid_argument("id: not the id of a token"))?;
    let auth = Arc::clone(auth);
    tokio::task::spawn_blocking(move || auth.tokens().revoke(id, jiff::Timestamp::now()))
        .await
        .map_err(|error| status::internal(&error))?
        .map_err(|error| Status::not_found(error.to_string()))?;
    Ok(v1::RevokeTokenResponse {})
}

pub(super) fn wall(at: jiff::Timestamp) -> prost_types::Timestamp {
    convert::timestamp(Timestamp::from_ms(
        u64::try_from(at.as_millisecond()).unwrap_or(0),
    ))
}
