//! Who sent a request, and what that one may do.

use std::fmt;

use muster_connect::TokenId;

/// What a token allows its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs tasks for one pool; sees and changes nothing else.
    Worker {
        /// The pool that its workers belong to.
        pool: String,
    },
    /// Sees everything, changes nothing.
    Viewer,
    /// Submits, answers and cancels.
    Operator,
    /// Also makes and revokes tokens.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Worker { pool } => write!(f, "worker of pool {pool}"),
            Self::Viewer => f.write_str("viewer"),
            Self::Operator => f.write_str("operator"),
            Self::Admin => f.write_str("admin"),
        }
    }
}

/// The proven sender of a request.
///
/// It is in the extensions of every request that reached a service behind the server's
/// authentication. Its `Display` form is for logs and holds no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Holds an admin's token.
    Admin {
        /// The token.
        token: TokenId,
    },
    /// Holds an operator's token.
    Operator {
        /// The token.
        token: TokenId,
    },
    /// Holds a viewer's token.
    Viewer {
        /// The token.
        token: TokenId,
    },
    /// Holds a worker's token.
    Worker {
        /// The pool that the token is for.
        pool: String,
        /// The token.
        token: TokenId,
    },
    /// Holds the join token of an allocation. Whether that is still there is not proven here.
    Allocation(u64),
    /// Holds the credential of a lease. Whether that lease still lives is not proven here.
    Lease(u64),
    /// Holds a worker session's credential. Whether that session was ever fenced is not proven
    /// here.
    WorkerSession {
        /// The stable worker id.
        worker: String,
        /// The worker's boot incarnation.
        incarnation: u64,
    },
}

/// What an operation asks of a person or program that controls the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// To read anything.
    View,
    /// To submit, answer, cancel, drain.
    Operate,
    /// To make and revoke tokens.
    Administer,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::View => "viewer",
            Self::Operate => "operator",
            Self::Administer => "admin",
        })
    }
}

impl Identity {
    /// Makes the identity of a verified token.
    pub fn of_token(role: Role, token: TokenId) -> Self {
        match role {
            Role::Worker { pool } => Self::Worker { pool, token },
            Role::Viewer => Self::Viewer { token },
            Role::Operator => Self::Operator { token },
            Role::Admin => Self::Admin { token },
        }
    }

    /// Finds the identity that the server's authentication has put into a request.
    ///
    /// Fails on a request that no authentication has seen, or on an open path without a credential.
    pub fn of(extensions: &http::Extensions) -> Result<&Self, Denied> {
        extensions.get::<Self>().ok_or(Denied::Unknown)
    }

    /// Fails unless the sender's role reaches `wanted`.
    pub fn require(&self, wanted: Access) -> Result<(), Denied> {
        let held = match self {
            Self::Admin { .. } => Access::Administer,
            Self::Operator { .. } => Access::Operate,
            Self::Viewer { .. } => Access::View,
            Self::Worker { .. }
            | Self::Allocation(_)
            | Self::Lease(_)
            | Self::WorkerSession { .. } => {
                return Err(self.denied(wanted.to_string()));
            }
        };
        if held >= wanted {
            Ok(())
        } else {
            Err(self.denied(wanted.to_string()))
        }
    }

    /// Returns the pool of a worker's token; only that may open a worker session.
    pub fn worker_pool(&self) -> Result<&str, Denied> {
        match self {
            Self::Worker { pool, .. } => Ok(pool),
            Self::Admin { .. }
            | Self::Operator { .. }
            | Self::Viewer { .. }
            | Self::Allocation(_)
            | Self::Lease(_)
            | Self::WorkerSession { .. } => Err(self.denied("worker".to_owned())),
        }
    }

    /// Returns the token behind the identity, if a token is.
    pub fn token(&self) -> Option<TokenId> {
        match self {
            Self::Admin { token }
            | Self::Operator { token }
            | Self::Viewer { token }
            | Self::Worker { token, .. } => Some(*token),
            Self::Allocation(_) | Self::Lease(_) | Self::WorkerSession { .. } => None,
        }
    }

    fn denied(&self, wanted: String) -> Denied {
        Denied::Role {
            held: self.to_string(),
            wanted,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admin { token } => write!(f, "admin token {token}"),
            Self::Operator { token } => write!(f, "operator token {token}"),
            Self::Viewer { token } => write!(f, "viewer token {token}"),
            Self::Worker { pool, token } => write!(f, "worker token {token} of pool {pool}"),
            Self::Allocation(id) => write!(f, "join token of allocation A{id}"),
            Self::Lease(lease) => write!(f, "credential of lease {lease}"),
            Self::WorkerSession { worker, .. } => {
                write!(f, "session credential of worker {worker}")
            }
        }
    }
}

/// Why an identity may not do what it asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Nobody has proven who sent the request.
    #[error("this needs a token")]
    Unknown,
    /// The sender's role does not suffice.
    #[error("this needs the role {wanted}, and the request came with the {held}")]
    Role {
        /// What the request came with.
        held: String,
        /// What it would take.
        wanted: String,
    },
}

impl From<Denied> for tonic::Status {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Unknown => Self::unauthenticated(denied.to_string()),
            Denied::Role { .. } => Self::permission_denied(denied.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(role: Role) -> Identity {
        Identity::of_token(role, TokenId::from_bytes([7; 8]))
    }

    #[test]
    fn each_role_reaches_its_own_access_and_no_more() {
        let all = [Access::View, Access::Operate, Access::Administer];
        let reach = |identity: &Identity| {
            all.iter()
                .filter(|access| identity.require(**access).is_ok())
                .count()
        };
        assert_eq!(reach(&holder(Role::Viewer)), 1);
        assert_eq!(reach(&holder(Role::Operator)), 2);
        assert_eq!(reach(&holder(Role::Admin)), 3);
        assert_eq!(
            reach(&holder(Role::Worker {
                pool: "local".into()
            })),
            0
        );
        assert_eq!(reach(&Identity::Lease(1)), 0);
        let session = Identity::WorkerSession {
            worker: "w".into(),
            incarnation: 1,
        };
        assert_eq!(reach(&session), 0);
    }

    #[test]
    fn only_a_workers_token_opens_a_worker_session() {
        assert_eq!(
            holder(Role::Worker {
                pool: "slurm".into()
            })
            .worker_pool(),
            Ok("slurm")
        );
        for role in [Role::Viewer, Role::Operator, Role::Admin] {
            assert!(holder(role).worker_pool().is_err());
        }
        assert!(Identity::Lease(1).worker_pool().is_err());
    }

    #[test]
    fn a_refusal_names_both_roles_and_has_its_own_status() {
        let denied = holder(Role::Viewer).require(Access::Operate).unwrap_err();
        assert_eq!(
            denied.to_string(),
            "this needs the role operator, and the request came with the viewer token \
             0707070707070707"
        );
        assert_eq!(
            tonic::Status::from(denied).code(),
            tonic::Code::PermissionDenied
        );
        let unknown = Identity::of(&http::Extensions::new()).unwrap_err();
        assert_eq!(
            tonic::Status::from(unknown).code(),
            tonic::Code::Unauthenticated
        );
    }
}
