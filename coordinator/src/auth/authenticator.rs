//! From a request's headers to an identity.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, header::AUTHORIZATION};
use jiff::Timestamp;
use muster_connect::{Token, private_file};

use super::{
    CaError, CertificateAuthority, CredentialIssuer, Identity, NewToken, Role, SecretKey,
    SecretKeyError, TokenStore, TokenStoreError, Unverified, home_id,
};

const ADMIN_TOKEN: &str = "admin.token";
const ADMIN_TOKEN_NAME: &str = "local administrator";
/// The longest credential has about 1100 bytes; base64 and a scheme come on top.
const HEADER_BYTES_MAX: usize = 4096;

/// Everything that proves who sent a request, for one home.
#[derive(Debug)]
pub struct Authenticator {
    ca: CertificateAuthority,
    tokens: TokenStore,
    credentials: CredentialIssuer,
    home: PathBuf,
    home_id: String,
}

impl Authenticator {
    /// Opens the home's authority, key and tokens, making what is missing.
    ///
    /// Also makes sure that `admin.token` holds a token that works, for the people and programs
    /// that may read the home.
    pub fn open(home: &Path) -> Result<Arc<Self>, Error> {
        let key = SecretKey::open(home)?;
        let home_id = match home_id::read(home).map_err(Error::HomeId)? {
            Some(own) => own,
            None => key.home_id(),
        };
        let authenticator = Self {
            ca: CertificateAuthority::open(home)?,
            tokens: TokenStore::open(home, &key)?,
            credentials: CredentialIssuer::new(&key),
            home: home.to_owned(),
            home_id,
        };
        authenticator.ensure_admin_token(Timestamp::now())?;
        Ok(Arc::new(authenticator))
    }

    /// Returns the certificate authority.
    pub fn ca(&self) -> &CertificateAuthority {
        &self.ca
    }

    /// Returns the tokens.
    pub fn tokens(&self) -> &TokenStore {
        &self.tokens
    }

    /// Returns what issues the credentials of leases and worker sessions.
    pub fn credentials(&self) -> &CredentialIssuer {
        &self.credentials
    }

    /// Returns the file with the local administrator's token.
    pub fn admin_token_path(&self) -> PathBuf {
        self.home.join(ADMIN_TOKEN)
    }

    /// Makes a token that pins this coordinator's authority.
    pub fn create_token(&self, new: &NewToken, now: Timestamp) -> Result<Token, TokenStoreError> {
        self.tokens
            .create(new, self.ca.certificate().fingerprint(), now)
    }

    /// Tells this home from others: eight hexadecimal digits that are no secret and never change. A
    /// home put back from a backup has others than the one that was saved, unless it takes that one's
    /// place.
    pub fn home_id(&self) -> &str {
        &self.home_id
    }

    /// Makes the join token of an allocation; it pins this coordinator's authority, and is the same
    /// each time.
    pub fn allocation_token(&self, allocation: u64) -> Token {
        let fingerprint = self.ca.certificate().fingerprint();
        self.credentials.allocation(allocation, fingerprint)
    }

    /// Returns who sent a request with these headers.
    ///
    /// Takes `Bearer CREDENTIAL`, and `Basic` with any user and the credential as the password,
    /// which is what git can send.
    pub fn authenticate(&self, headers: &HeaderMap, now: Timestamp) -> Result<Identity, Refusal> {
        let header = headers.get(AUTHORIZATION).ok_or(Refusal::Missing)?;
        if header.len() > HEADER_BYTES_MAX {
            return Err(Refusal::Malformed);
        }
        let header = header.to_str().map_err(|_| Refusal::Malformed)?;
        let (scheme, rest) = header.split_once(' ').ok_or(Refusal::Malformed)?;
        if scheme.eq_ignore_ascii_case("bearer") {
            self.identify(rest.trim(), now)
        } else if scheme.eq_ignore_ascii_case("basic") {
            let bytes = STANDARD
                .decode(rest.trim())
                .map_err(|_| Refusal::Malformed)?;
            let pair = String::from_utf8(bytes).map_err(|_| Refusal::Malformed)?;
            let (_user, password) = pair.split_once(':').ok_or(Refusal::Malformed)?;
            self.identify(password, now)
        } else {
            Err(Refusal::Malformed)
        }
    }

    fn identify(&self, credential: &str, now: Timestamp) -> Result<Identity, Refusal> {
        if let Some((id, secret)) = Token::parse_credential(credential) {
            if let Some(allocation) = self.credentials.verify_allocation(id, &secret) {
                return Ok(allocation);
            }
            return Ok(self.tokens.verify(id, &secret, now)?);
        }
        self.credentials
            .verify(credential)
            .ok_or(Refusal::Token(Unverified::Unknown))
    }

    /// Replaces the local administrator's token unless it is there and works.
    ///
    /// Who can write the home is an administrator anyway, so nothing is given away.
    fn ensure_admin_token(&self, now: Timestamp) -> Result<(), Error> {
        let path = self.admin_token_path();
        if let Ok(token) = muster_connect::read_token_file(&path) {
            let pinned = token.ca == self.ca.certificate().fingerprint();
            if pinned && self.tokens.verify(token.id, &token.secret, now).is_ok() {
                return Ok(());
            }
            tracing::warn!(
                path = %path.display(),
                "local administrator's token was not valid here and is replaced"
            );
        }
        let new = NewToken {
            role: Role::Admin,
            name: ADMIN_TOKEN_NAME.to_owned(),
            expires: None,
        };
        let token = self.create_token(&new, now)?;
        private_file::replace(&path, format!("{}\n", token.reveal()).as_bytes())
            .map_err(|source| Error::AdminToken { path, source })
    }
}

/// Why a request has no identity.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It carries no credential.
    #[error("this needs a token: send `authorization: Bearer TOKEN`")]
    Missing,
    /// Its `authorization` header is neither of the two forms.
    #[error("the authorization header is neither `Bearer TOKEN` nor Basic")]
    Malformed,
    /// Its credential is not valid.
    #[error(transparent)]
    Token(#[from] Unverified),
}

/// Why a home's authentication could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The secret key.
    #[error(transparent)]
    SecretKey(#[from] SecretKeyError),
    /// The name of a restored home.
    #[error("cannot use the home's name")]
    HomeId(#[source] std::io::Error),
    /// The certificate authority.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The token store.
    #[error(transparent)]
    Tokens(#[from] TokenStoreError),
    /// The local administrator's token.
    #[error("cannot write the local administrator's token {}", path.display())]
    AdminToken {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(value).unwrap())])
    }

    fn basic(user: &str, password: &str) -> HeaderMap {
        headers(&format!(
            "Basic {}",
            STANDARD.encode(format!("{user}:{password}"))
        ))
    }

    #[test]
    fn a_credential_is_taken_as_bearer_and_as_a_basic_password() {
        let home = tempfile::tempdir().unwrap();
        let auth = Authenticator::open(home.path()).unwrap();
        let now = Timestamp::now();
        let token = muster_connect::read_token_file(&auth.admin_token_path()).unwrap();
        let admin = Identity::Admin { token: token.id };
        for good in [
            headers(&format!("Bearer {}", token.credential())),
            headers(&format!("bearer {}", token.reveal())),
            basic("anyone", &token.credential()),
        ] {
            assert_eq!(auth.authenticate(&good, now).unwrap(), admin);
        }
        let lease = basic("", &auth.credentials().lease(5));
        assert_eq!(auth.authenticate(&lease, now).unwrap(), Identity::Lease(5));
    }

    #[test]
    fn everything_else_is_refused_with_its_reason() {
        let home = tempfile::tempdir().unwrap();
        let auth = Authenticator::open(home.path()).unwrap();
        let now = Timestamp::now();
        let refuse = |headers: &HeaderMap| auth.authenticate(headers, now).unwrap_err();
        assert!(matches!(refuse(&HeaderMap::new()), Refusal::Missing));
        for bad in [
            "x",
            "Digest a",
            "Basic !!",
            "Basic YWJj",
            &format!("Bearer {}", "x".repeat(5000)),
        ] {
            assert!(matches!(refuse(&headers(bad)), Refusal::Malformed), "{bad}");
        }
        for unknown in [
            "Bearer x",
            "Bearer lease_1_00",
            "Bearer token_00_11",
            "Bearer ",
        ] {
            let refusal = refuse(&headers(unknown));
            assert!(
                matches!(refusal, Refusal::Token(Unverified::Unknown)),
                "{unknown}"
            );
        }
    }

    #[test]
    fn the_admin_token_stays_while_it_works_and_is_replaced_when_it_does_not() {
        use std::os::unix::fs::PermissionsExt as _;
        let home = tempfile::tempdir().unwrap();
        let read = |auth: &Authenticator| {
            muster_connect::read_token_file(&auth.admin_token_path()).unwrap()
        };
        let auth = Authenticator::open(home.path()).unwrap();
        let first = read(&auth);
        assert_eq!(
            read(&Authenticator::open(home.path()).unwrap()).id,
            first.id
        );

        auth.tokens().revoke(first.id, Timestamp::now()).unwrap();
        let auth = Authenticator::open(home.path()).unwrap();
        let second = read(&auth);
        assert_ne!(second.id, first.id);

        std::fs::write(auth.admin_token_path(), "muster_damaged").unwrap();
        let auth = Authenticator::open(home.path()).unwrap();
        let third = read(&auth);
        assert!(
            auth.tokens()
                .verify(third.id, &third.secret, Timestamp::now())
                .is_ok()
        );
        let mode = std::fs::metadata(auth.admin_token_path())
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
