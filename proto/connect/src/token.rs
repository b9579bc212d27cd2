//! Join tokens: who a client is, and which coordinator it may trust.

use std::{fmt, io, os::unix::fs::PermissionsExt as _, path::Path, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::HeaderValue;

use crate::{Fingerprint, private_file};

const PREFIX: &str = "muster_";
const CREDENTIAL_PREFIX: &str = "token_";
const VERSION: u8 = 1;
const BYTES: usize = 1 + 8 + 32 + 32;
/// Room for one token and careless white space around it.
const FILE_BYTES_MAX: u64 = 4096;

/// Names a token in lists, logs and `token revoke`; it is no secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId([u8; 8]);

impl TokenId {
    /// Takes the id's bytes.
    pub const fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }

    /// Returns the id's bytes.
    pub const fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TokenId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        hex_decode(text).map(Self).ok_or(Error::NotAnId)
    }
}

/// The secret half of a token; its `Debug` form hides it.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl Secret {
    /// Takes the secret's bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes, for hashing them; never to be logged or stored.
    pub const fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}

/// A join token: `muster_` and the unpadded base64url form of a version, an id, a secret and the
/// fingerprint of the coordinator's CA.
#[derive(Clone, Debug)]
pub struct Token {
    /// Which token this is.
    pub id: TokenId,
    /// What proves that the holder was given it.
    pub secret: Secret,
    /// The authority that issued it, and that its coordinator's certificate must come from.
    pub ca: Fingerprint,
}

impl Token {
    /// Reads the text form; white space around it is ignored.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(Error::NotAToken)?;
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| Error::Damaged)?;
        match bytes.first() {
            Some(&VERSION) => {}
            Some(&version) if bytes.len() >= BYTES => return Err(Error::Version { version }),
            _ => return Err(Error::Damaged),
        }
        let (id, rest) = bytes[1..].split_first_chunk::<8>().ok_or(Error::Damaged)?;
        let (secret, rest) = rest.split_first_chunk::<32>().ok_or(Error::Damaged)?;
        let fingerprint: [u8; 32] = rest.try_into().map_err(|_| Error::Damaged)?;
        Ok(Self {
            id: TokenId(*id),
            secret: Secret(*secret),
            ca: Fingerprint::from_bytes(fingerprint),
        })
    }

    /// Returns the text form. It is the secret itself: for a file of mode 0600 or a person's eyes.
    pub fn reveal(&self) -> String {
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.id.0);
        bytes.extend_from_slice(&self.secret.0);
        bytes.extend_from_slice(self.ca.as_bytes());
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Returns what proves the token to its coordinator: `token_<id>_<secret>`, both in hex.
    ///
    /// The fingerprint stays behind: the coordinator knows its own.
    pub fn credential(&self) -> String {
        use fmt::Write as _;
        let mut text = format!("{CREDENTIAL_PREFIX}{}_", self.id);
        for byte in self.secret.0 {
            // Writing to a `String` cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    /// Returns the value of an `authorization` header, marked as sensitive.
    #[expect(
        clippy::expect_used,
        reason = "hex digits and underscores can stand in a header"
    )]
    pub fn bearer(&self) -> HeaderValue {
        crate::endpoint::bearer_value(&self.credential()).expect("a credential is plain ASCII")
    }

    /// Reads a credential as [`Token::credential`] writes it, or a whole token.
    ///
    /// Returns `None` for any other text. Nothing is verified here.
    pub fn parse_credential(text: &str) -> Option<(TokenId, Secret)> {
        if let Ok(token) = Self::parse(text) {
            return Some((token.id, token.secret));
        }
        let (id, secret) = text.strip_prefix(CREDENTIAL_PREFIX)?.split_once('_')?;
        Some((TokenId(hex_decode(id)?), Secret(hex_decode(secret)?)))
    }
}

/// Reads the token that a file holds, with white space around it ignored.
///
/// A file that other users may read is accepted (secrets mounted into containers often are), with a
/// warning in the log.
pub fn read_token_file(path: &Path) -> Result<Token, Error> {
    let shown = || path.display().to_string();
    let bytes =
        private_file::read_bounded(path, FILE_BYTES_MAX).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::Missing { path: shown() },
            io::ErrorKind::InvalidData => Error::InFile {
                path: shown(),
                source: Box::new(Error::NotAToken),
            },
            _ => Error::Read {
                path: shown(),
                source,
            },
        })?;
    let mode = std::fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode());
    if mode & 0o077 != 0 {
        tracing::warn!(
            path = %path.display(),
            mode = format_args!("{:03o}", mode & 0o777),
            "token file can be read by other users; chmod 600 it"
        );
    }
    std::str::from_utf8(&bytes)
        .map_err(|_| Error::NotAToken)
        .and_then(Token::parse)
        .map_err(|source| Error::InFile {
            path: shown(),
            source: Box::new(source),
        })
}

fn hex_decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    fn digit(letter: u8) -> Option<u8> {
        match letter {
            b'0'..=b'9' => Some(letter - b'0'),
            b'a'..=b'f' => Some(letter - b'a' + 10),
            _ => None,
        }
    }
    let letters = text.as_bytes();
    if letters.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(letters.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// Why a token could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text does not look like a token at all.
    #[error("this is not a Muster token: one starts with `muster_`")]
    NotAToken,
    /// The text starts like a token but letters are missing or wrong.
    #[error(
        "this token is damaged: letters are missing or wrong; copy it again, or make a new one with \
         `coordinator token create`"
    )]
    Damaged,
    /// The token has a form that this version does not know.
    #[error("this token has form {version}, and this program knows form 1 only; update it")]
    Version {
        /// The form's number.
        version: u8,
    },
    /// The text is no token id.
    #[error("this is not a token id: one has 16 hex digits, as `coordinator token list` shows")]
    NotAnId,
    /// There is no such file.
    #[error(
        "token file {path} does not exist; make one with `coordinator token create` on the \
         coordinator's machine"
    )]
    Missing {
        /// The file.
        path: String,
    },
    /// The file could not be read.
    #[error("cannot read the token file {path}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The file was read but holds no good token.
    #[error("cannot use the token file {path}")]
    InFile {
        /// The file.
        path: String,
        /// What is wrong with its text.
        source: Box<Self>,
    },
}

#[cfg(test)]
mod tests;
