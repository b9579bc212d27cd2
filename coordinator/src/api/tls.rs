//! The server's side of TLS.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::auth::{Authenticator, CaError};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const CERTIFICATE_LIFE: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// A coordinator that runs for months renews long before the end.
const RENEW_AFTER: Duration = Duration::from_secs(60 * 24 * 60 * 60);

/// Makes the TLS configuration of a server: HTTP/2 and HTTP/1.1, TLS 1.2 and 1.3, and a fresh
/// certificate from the home's authority, which is renewed while the server runs.
pub fn server_config(auth: Arc<Authenticator>) -> Result<Arc<ServerConfig>, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let certificate = RenewedCertificate::new(auth, Arc::clone(&provider))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certificate));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A server certificate that is issued anew when two thirds of its life are over.
struct RenewedCertificate {
    auth: Arc<Authenticator>,
    provider: Arc<CryptoProvider>,
    current: RwLock<Current>,
}

struct Current {
    key: Arc<CertifiedKey>,
    renew_at: SystemTime,
}

impl RenewedCertificate {
    fn new(auth: Arc<Authenticator>, provider: Arc<CryptoProvider>) -> Result<Self, Error> {
        let current = RwLock::new(issue(&auth, &provider, SystemTime::now())?);
        Ok(Self {
            auth,
            provider,
            current,
        })
    }

    fn at(&self, now: SystemTime) -> Arc<CertifiedKey> {
        {
            let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
            if now < current.renew_at {
                return Arc::clone(&current.key);
            }
        }
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if now >= current.renew_at {
            match issue(&self.auth, &self.provider, now) {
                Ok(renewed) => *current = renewed,
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "server certificate could not be renewed; the old one is kept for a day"
                    );
                    current.renew_at = now + DAY;
                }
            }
        }
        Arc::clone(&current.key)
    }
}

impl ResolvesServerCert for RenewedCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.at(SystemTime::now()))
    }
}

impl fmt::Debug for RenewedCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RenewedCertificate")
    }
}

fn issue(
    auth: &Authenticator,
    provider: &CryptoProvider,
    now: SystemTime,
) -> Result<Current, Error> {
    let issued = auth.ca().issue_server(now, CERTIFICATE_LIFE)?;
    let key = CertifiedKey::from_der(issued.chain, issued.key, provider).map_err(Error::Tls)?;
    Ok(Current {
        key: Arc::new(key),
        renew_at: now + RENEW_AFTER,
    })
}

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No certificate could be issued.
    #[error(transparent)]
    Certificate(#[from] CaError),
    /// Rustls refused.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_when_two_thirds_of_its_life_are_over() {
        let home = tempfile::tempdir().unwrap();
        let auth = Authenticator::open(home.path()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let certificate = RenewedCertificate::new(auth, provider).unwrap();
        let start = SystemTime::now();
        let first = certificate.at(start);
        assert_eq!(certificate.at(start + 59 * DAY).cert, first.cert);
        let renewed = certificate.at(start + 61 * DAY);
        assert_ne!(renewed.cert[0], first.cert[0]);
        assert_eq!(renewed.cert[1], first.cert[1], "the authority stays");
        assert_eq!(certificate.at(start + 62 * DAY).cert, renewed.cert);
    }
}
