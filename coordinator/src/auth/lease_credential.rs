//! Credentials that are computed, never stored: of leases and of worker sessions.
//!
//! A credential is a name and a keyed MAC of it. It survives restarts, needs no table, and says
//! nothing about whether its lease or session still lives: the caller asks that of the state, at
//! the moment that it acts.

use std::fmt;

use hmac::{Hmac, KeyInit as _, Mac as _};
use muster_connect::{Fingerprint, Secret, Token, TokenId};
use sha2::Sha256;

use super::{Identity, SecretKey};

const LEASE: &str = "lease_";
const SESSION: &str = "session_";
const LEASE_CONTEXT: &str = "muster 2026-11 lease credential";
const SESSION_CONTEXT: &str = "muster 2026-11 worker session credential";
const ALLOCATION_CONTEXT: &str = "muster 2026-11 allocation join token";
const MAC_HEX: usize = 64;
/// Worker ids are host, allocation and number; the longest host name has 253 characters.
const NAME_BYTES_MAX: usize = 512;

/// Issues and verifies derived credentials; its `Debug` form hides the keys.
#[derive(Clone)]
pub struct CredentialIssuer {
    lease: [u8; 32],
    session: [u8; 32],
    allocation: [u8; 32],
}

impl CredentialIssuer {
    /// Derives the keys of both kinds.
    pub fn new(key: &SecretKey) -> Self {
        Self {
            lease: key.derive(LEASE_CONTEXT),
            session: key.derive(SESSION_CONTEXT),
            allocation: key.derive(ALLOCATION_CONTEXT),
        }
    }

    /// Returns the credential of a lease: `lease_<id>_<mac>`.
    pub fn lease(&self, lease: u64) -> String {
        let mac = mac(&self.lease, &[&lease.to_be_bytes()])
            .finalize()
            .into_bytes();
        format!("{LEASE}{lease}_{}", hex(&mac))
    }

    /// Returns the credential of a worker's session: `session_<worker>_<incarnation>_<mac>`.
    ///
    /// Fails when the worker's id is empty, too long or not plain ASCII: the text must stand in a
    /// header.
    pub fn session(&self, worker: &str, incarnation: u64) -> Result<String, Error> {
        check_name(worker)?;
        let mac = session_mac(&self.session, worker, incarnation)
            .finalize()
            .into_bytes();
        Ok(format!("{SESSION}{worker}_{incarnation}_{}", hex(&mac)))
    }

    /// Returns the join token of an allocation, for a coordinator with this authority. It opens
    /// sessions for this allocation's pool, as long as the allocation is in the inventory.
    pub fn allocation(&self, allocation: u64, ca: Fingerprint) -> Token {
        let id = allocation.to_be_bytes();
        let secret = mac(&self.allocation, &[&id]).finalize().into_bytes();
        Token {
            id: TokenId::from_bytes(id),
            secret: Secret::from_bytes(secret.into()),
            ca,
        }
    }

    /// Returns the allocation whose join token this is, or `None` if it is another token or none of
    /// ours.
    ///
    /// The MAC is compared in constant time.
    pub fn verify_allocation(&self, id: TokenId, secret: &Secret) -> Option<Identity> {
        mac(&self.allocation, &[id.as_bytes()])
            .verify_slice(secret.expose())
            .ok()?;
        Some(Identity::Allocation(u64::from_be_bytes(*id.as_bytes())))
    }

    /// Returns whose credential `text` is, or `None` if it is not one of ours.
    ///
    /// The MAC is compared in constant time.
    pub fn verify(&self, text: &str) -> Option<Identity> {
        if let Some(rest) = text.strip_prefix(LEASE) {
            let (id, mac_text) = rest.split_once('_')?;
            let lease = number(id)?;
            mac(&self.lease, &[&lease.to_be_bytes()])
                .verify_slice(&unhex(mac_text)?)
                .ok()?;
            return Some(Identity::Lease(lease));
        }
        let (rest, mac_text) = text.strip_prefix(SESSION)?.rsplit_once('_')?;
        let (worker, incarnation) = rest.rsplit_once('_')?;
        check_name(worker).ok()?;
        let incarnation = number(incarnation)?;
        session_mac(&self.session, worker, incarnation)
            .verify_slice(&unhex(mac_text)?)
            .ok()?;
        Some(Identity::WorkerSession {
            worker: worker.to_owned(),
            incarnation,
        })
    }
}

impl fmt::Debug for CredentialIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CredentialIssuer([hidden])")
    }
}

fn session_mac(key: &[u8; 32], worker: &str, incarnation: u64) -> Hmac<Sha256> {
    // The number has a fixed length and comes first, so no two pairs give the same bytes.
    mac(key, &[&incarnation.to_be_bytes(), worker.as_bytes()])
}

/// Reads a number that has one text only: no sign, no leading zeros.
fn number(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (text == number.to_string()).then_some(number)
}

#[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
fn mac(key: &[u8; 32], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    mac
}

fn check_name(name: &str) -> Result<(), Error> {
    let plain = name.bytes().all(|byte| byte.is_ascii_graphic());
    if plain && (1..=NAME_BYTES_MAX).contains(&name.len()) {
        Ok(())
    } else {
        Err(Error::Name)
    }
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a `String` cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let plain = text
        .bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if text.len() != MAC_HEX || !plain {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|start| u8::from_str_radix(text.get(start..start + 2)?, 16).ok())
        .collect()
}

/// Why a session credential could not be issued.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The worker's id cannot stand in a credential.
    #[error("a worker id must be plain ASCII of 1 to {NAME_BYTES_MAX} bytes without spaces")]
    Name,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issuer() -> (tempfile::TempDir, CredentialIssuer) {
        let home = tempfile::tempdir().unwrap();
        let issuer = CredentialIssuer::new(&SecretKey::open(home.path()).unwrap());
        (home, issuer)
    }

    #[test]
    fn a_lease_credential_survives_a_restart() {
        let (home, issuer) = issuer();
        let text = issuer.lease(42);
        let restarted = CredentialIssuer::new(&SecretKey::open(home.path()).unwrap());
        assert_eq!(restarted.verify(&text), Some(Identity::Lease(42)));
        let (_other_home, other) = self::issuer();
        assert_eq!(other.verify(&text), None);
    }

    #[test]
    fn a_join_token_of_an_allocation_is_known_by_its_number_and_by_nobody_else() {
        let (_home, issuer) = issuer();
        let token = issuer.allocation(7, Fingerprint::from_bytes([1; 32]));
        let verify = |issuer: &CredentialIssuer, id, secret| issuer.verify_allocation(id, secret);
        assert_eq!(
            verify(&issuer, token.id, &token.secret),
            Some(Identity::Allocation(7))
        );
        let other = TokenId::from_bytes(8u64.to_be_bytes());
        assert_eq!(verify(&issuer, other, &token.secret), None);
        let (_other_home, stranger) = self::issuer();
        assert_eq!(verify(&stranger, token.id, &token.secret), None);
    }

    #[test]
    fn no_changed_letter_of_a_credential_is_accepted() {
        let (_home, issuer) = issuer();
        for text in [issuer.lease(17), issuer.session("host_1.3", 17).unwrap()] {
            assert!(issuer.verify(&text).is_some());
            for index in 0..text.len() {
                let mut bytes = text.clone().into_bytes();
                bytes[index] = if bytes[index] == b'1' { b'2' } else { b'1' };
                let changed = String::from_utf8(bytes).unwrap();
                assert_eq!(issuer.verify(&changed), None, "{index}");
                assert_eq!(issuer.verify(&text[..index]), None, "cut at {index}");
            }
        }
        assert_eq!(
            issuer.verify(&issuer.lease(17).replace("lease_17", "lease_017")),
            None
        );
    }

    #[test]
    fn a_session_credential_names_worker_and_incarnation() {
        let (_home, issuer) = issuer();
        let text = issuer.session("login_1.0", 7).unwrap();
        let expected = Identity::WorkerSession {
            worker: "login_1.0".into(),
            incarnation: 7,
        };
        assert_eq!(issuer.verify(&text), Some(expected));
        let mac = |text: &str| text.rsplit('_').next().unwrap().to_owned();
        assert_ne!(mac(&issuer.session("login_1.0", 8).unwrap()), mac(&text));
        assert_ne!(mac(&issuer.session("login_1.1", 7).unwrap()), mac(&text));
        assert_ne!(mac(&issuer.lease(7)), mac(&text));
        for worker in ["", "w x", "ü", &"w".repeat(600)] {
            assert!(issuer.session(worker, 1).is_err(), "{worker}");
        }
    }
}
