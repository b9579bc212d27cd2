//! Fetching a coordinator's CA certificate from its address, given only the fingerprint.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{CaCertificate, Fingerprint, TLS_NAME, endpoint::check_address};

/// Fetches the CA certificate whose fingerprint is `pinned` from the coordinator at `address`.
///
/// `address` is `host:port`; `limit` bounds the whole exchange, name resolution included. On `Ok`
/// the coordinator has proven that it holds a valid certificate for [`TLS_NAME`] from exactly that
/// authority. No secret has been sent, whatever is returned.
pub async fn bootstrap_ca(
    address: &str,
    pinned: Fingerprint,
    limit: Duration,
) -> Result<CaCertificate, Error> {
    check_address(address)?;
    tokio::time::timeout(limit, handshake(address, pinned))
        .await
        .map_err(|_| Error::TimedOut {
            address: address.to_owned(),
            limit,
        })?
}

async fn handshake(address: &str, pinned: Fingerprint) -> Result<CaCertificate, Error> {
    let shown = || address.to_owned();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(PinnedAuthority {
        pinned,
        provider: Arc::clone(&provider),
        found: Mutex::new(None),
    });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|source| Error::Setup { source })?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    let name = ServerName::try_from(TLS_NAME).map_err(|error| Error::Setup {
        source: rustls::Error::General(error.to_string()),
    })?;

    let stream = TcpStream::connect(address)
        .await
        .map_err(|source| match source.kind() {
            io::ErrorKind::ConnectionRefused => Error::Refused { address: shown() },
            _ => Error::Unreachable {
                address: shown(),
                source,
            },
        })?;
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|error| classify(address, error))?;

    // A completed handshake has run the verifier, which kept the certificate.
    let found = verifier
        .found
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    found.ok_or_else(|| Error::WrongCoordinator { address: shown() })
}

/// Names what a failed handshake means for the person who started the client.
fn classify(address: &str, error: io::Error) -> Error {
    let address = address.to_owned();
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(reason)) => match reason {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                Error::Expired { address }
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Error::NotValidYet { address }
            }
            _ => Error::WrongCoordinator { address },
        },
        Some(rustls::Error::InvalidMessage(_)) => Error::NotTls { address },
        Some(_) => Error::Handshake {
            address,
            source: error,
        },
        None => match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => Error::Closed { address },
            _ => Error::Handshake {
                address,
                source: error,
            },
        },
    }
}

/// Accepts a chain that holds the pinned authority and whose first certificate comes from it.
#[derive(Debug)]
struct PinnedAuthority {
    pinned: Fingerprint,
    provider: Arc<CryptoProvider>,
    found: Mutex<Option<CaCertificate>>,
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = intermediates
            .iter()
            .find(|certificate| Fingerprint::of(certificate) == self.pinned)
            .ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(
            Arc::new(roots),
            Arc::clone(&self.provider),
        )
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
        let verified = verifier.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )?;
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        *found = Some(CaCertificate::from_der(authority.as_ref()));
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Why the CA certificate could not be fetched; each message names the way out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is not `host:port`.
    #[error(transparent)]
    Address(#[from] crate::EndpointError),
    /// Nothing listens there.
    #[error(
        "nothing listens at {address}: start the coordinator with `coordinator serve`, or correct \
         the address"
    )]
    Refused {
        /// `host:port`.
        address: String,
    },
    /// The host could not be found or reached.
    #[error("cannot reach {address}; check the name, the network and any firewall between")]
    Unreachable {
        /// `host:port`.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// No answer came in time.
    #[error(
        "no coordinator answered at {address} within {limit:?}: check the address, and whether a \
         firewall drops the connection"
    )]
    TimedOut {
        /// `host:port`.
        address: String,
        /// The whole time that was allowed.
        limit: Duration,
    },
    /// Something else listens there.
    #[error(
        "what listens at {address} does not speak TLS, so it is not a coordinator: correct the \
         address or the port"
    )]
    NotTls {
        /// `host:port`.
        address: String,
    },
    /// The peer hung up in the middle of the handshake.
    #[error(
        "{address} closed the connection before it had proven who it is: it is not a coordinator, \
         it has no room for more connections, or something between cut the connection"
    )]
    Closed {
        /// `host:port`.
        address: String,
    },
    /// The peer's certificate does not come from the pinned authority.
    #[error(
        "this token belongs to another coordinator than the one at {address}: correct the address, \
         or take a token made by that coordinator (`coordinator token create`)"
    )]
    WrongCoordinator {
        /// `host:port`.
        address: String,
    },
    /// The coordinator's certificate has ended.
    #[error(
        "the certificate of the coordinator at {address} has expired: restart the coordinator, which \
         renews it, and check that this machine's clock is right"
    )]
    Expired {
        /// `host:port`.
        address: String,
    },
    /// The coordinator's certificate begins in the future.
    #[error(
        "the certificate of the coordinator at {address} is not valid yet: the clock of this machine \
         or of the coordinator's is wrong"
    )]
    NotValidYet {
        /// `host:port`.
        address: String,
    },
    /// The handshake failed in some other way.
    #[error("cannot agree on TLS with {address}")]
    Handshake {
        /// `host:port`.
        address: String,
        /// What rustls said.
        source: io::Error,
    },
    /// TLS could not be set up on this side.
    #[error("cannot set up TLS")]
    Setup {
        /// What rustls said.
        source: rustls::Error,
    },
}

#[cfg(test)]
mod tests;
