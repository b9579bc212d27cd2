//! Who may do what: the certificate authority, tokens, derived credentials and roles.
//!
//! All of it lies in the coordinator's home and is made on first start:
//!
//! | file | what it is |
//! |---|---|
//! | `tls/ca.pem`, `tls/ca.key` | the certificate authority; every join token carries its fingerprint |
//! | `secret.key` | 32 random bytes; every hash and derived credential hangs on them |
//! | `tokens.db` | tokens with their roles; secrets only as keyed hashes |
//! | `admin.token` | the local administrator's token |
//! | `home.id` | only of a restored home: its name, by which providers tell its allocations |
//!
//! Credentials of leases and worker sessions are derived from `secret.key` and stored nowhere.

mod authenticator;
mod ca;
pub(crate) mod home_id;
mod identity;
mod lease_credential;
mod secret_key;
mod tokens;

pub use authenticator::{Authenticator, Error as OpenError, Refusal};
pub use ca::{CertificateAuthority, Error as CaError, ServerCertificate};
pub use identity::{Access, Denied, Identity, Role};
pub use lease_credential::{CredentialIssuer, Error as CredentialError};
pub(crate) use secret_key::make_private_folder;
pub use secret_key::{Error as SecretKeyError, SecretKey};
pub(crate) use tokens::NAME as TOKENS;
pub use tokens::{Error as TokenStoreError, NewToken, TokenRecord, TokenStore, Unverified};
