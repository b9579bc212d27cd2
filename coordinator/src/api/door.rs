//! With what a worker's session is opened, and for which pool.

use coordinator_core::AllocationId;
use muster_connect::TokenId;
use muster_proto::v1;
use tonic::Status;
use tracing::warn;

use super::{convert, status, tokens};
use crate::auth::{Authenticator, Identity, Unverified};
use crate::engine::Handle;

/// What a session was opened with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Key {
    /// A join token of a pool, which may be revoked meanwhile.
    Token(TokenId),
    /// The join token of an allocation, which stays in the inventory as long as a worker of it is
    /// connected.
    Allocation(AllocationId),
}

/// Where a session is let in.
pub(super) struct Door {
    pub(super) pool: String,
    pub(super) key: Key,
}

impl Door {
    /// Finds the pool that the sender of a request may join.
    ///
    /// # Errors
    /// The sender is no worker, or its allocation has ended.
    pub(super) async fn find(engine: &Handle, identity: Option<Identity>) -> Result<Self, Status> {
        match identity {
            Some(Identity::Worker { pool, token }) => Ok(Self {
                pool,
                key: Key::Token(token),
            }),
            Some(Identity::Allocation(id)) => {
                let id = AllocationId(id);
                let pool = engine.query(move |state, _| {
                    let held = state.allocation(id)?;
                    Some(held.pool.to_string())
                });
                let pool = pool.await.map_err(status::of)?.ok_or_else(|| {
                    Status::unauthenticated(format!(
                        "allocation {id} has ended, and its token with it"
                    ))
                })?;
                let key = Key::Allocation(id);
                Ok(Self { pool, key })
            }
            Some(_) => Err(Status::permission_denied(
                "this token is not a worker's join token",
            )),
            None => Err(Status::unauthenticated("no token")),
        }
    }

    /// Says whether a worker that comes with this would be let in.
    ///
    /// # Errors
    /// As for a hello: it speaks another protocol, or names another pool.
    pub(super) fn check_in(
        &self,
        request: v1::CheckInRequest,
    ) -> Result<v1::CheckInResponse, Status> {
        let theirs = request.version.unwrap_or_default();
        if !theirs.is_compatible() {
            return Err(status::incompatible(&theirs));
        }
        convert::same_pool(&request.pool, &self.pool)?;
        Ok(v1::CheckInResponse {
            version: Some(v1::ProtocolVersion::current(crate::SOFTWARE)),
            pool: self.pool.clone(),
            now: Some(tokens::wall(jiff::Timestamp::now())),
        })
    }

    /// The allocation whose token was shown.
    pub(super) fn allocation(&self) -> Option<AllocationId> {
        match self.key {
            Key::Token(_) => None,
            Key::Allocation(id) => Some(id),
        }
    }
}

impl Key {
    /// The token, if it is one that can be revoked.
    pub(super) fn token(self) -> Option<TokenId> {
        match self {
            Self::Token(token) => Some(token),
            Self::Allocation(_) => None,
        }
    }

    /// Refuses to go on with a session whose token was revoked or has run out.
    pub(super) fn still_welcome(self, auth: &Authenticator) -> Result<(), Status> {
        let Some(token) = self.token() else {
            return Ok(());
        };
        match auth.tokens().is_live(token, jiff::Timestamp::now()) {
            Ok(()) => Ok(()),
            Err(Unverified::Store(error)) => {
                warn!(error = %error, "failed to look whether a token was revoked");
                Err(Status::unavailable("tokens cannot be checked now"))
            }
            Err(gone) => Err(Status::unauthenticated(gone.to_string())),
        }
    }
}
