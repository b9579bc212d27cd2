//! The coordinator's certificate authority as a client sees it.

use std::{fmt, io, path::Path};

use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use sha2::{Digest as _, Sha256};

use crate::private_file;

/// A CA certificate is well below 2 KiB; more than this is another file.
const PEM_BYTES_MAX: u64 = 64 * 1024;

/// SHA-256 of a certificate's DER form.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Takes the digest itself.
    pub const fn from_bytes(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// Computes the fingerprint of a certificate in DER form.
    pub fn of(der: &[u8]) -> Self {
        Self(Sha256::digest(der).into())
    }

    /// Returns the digest.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The certificate of a coordinator's authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaCertificate {
    der: CertificateDer<'static>,
}

impl CaCertificate {
    /// Takes a certificate in DER form; it is not examined.
    pub fn from_der(der: impl Into<Vec<u8>>) -> Self {
        Self {
            der: CertificateDer::from(der.into()),
        }
    }

    /// Reads the first certificate of a PEM text.
    ///
    /// Fails when `pem` holds none.
    pub fn from_pem(pem: &[u8]) -> Result<Self, Error> {
        let der = CertificateDer::from_pem_slice(pem).map_err(|_| Error::NotPem)?;
        Ok(Self { der })
    }

    /// Reads a PEM file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let pem =
            private_file::read_bounded(path, PEM_BYTES_MAX).map_err(|source| Error::Read {
                path: path.display().to_string(),
                source,
            })?;
        Self::from_pem(&pem).map_err(|_| Error::Damaged {
            path: path.display().to_string(),
        })
    }

    /// Writes the certificate as PEM, for programs that want a file (git's `http.sslCAInfo`).
    ///
    /// Replaces an existing file as a whole.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        private_file::replace(path, self.to_pem().as_bytes()).map_err(|source| Error::Write {
            path: path.display().to_string(),
            source,
        })
    }

    /// Returns the DER form.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Returns the PEM form.
    pub fn to_pem(&self) -> String {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(&self.der);
        let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
        for (index, letter) in text.chars().enumerate() {
            if index > 0 && index % 64 == 0 {
                pem.push('\n');
            }
            pem.push(letter);
        }
        pem.push_str("\n-----END CERTIFICATE-----\n");
        pem
    }

    /// Returns the SHA-256 of the DER form.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.der)
    }
}

/// Why a CA certificate could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text holds no PEM certificate.
    #[error("find a certificate in the PEM text")]
    NotPem,
    /// The file holds no PEM certificate.
    #[error(
        "read the CA certificate {path}: it holds no PEM certificate; remove it to have it fetched \
         or written again"
    )]
    Damaged {
        /// The file.
        path: String,
    },
    /// The file could not be read.
    #[error("cannot read the CA certificate {path}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The file could not be written.
    #[error("cannot write the CA certificate {path}")]
    Write {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}
