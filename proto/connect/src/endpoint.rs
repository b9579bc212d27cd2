//! Channels to a coordinator whose CA is known.

use std::{fmt, time::Duration};

use http::{HeaderValue, Uri, uri::Authority};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig},
};

use crate::{CaCertificate, TLS_NAME, Token};

/// A dead path is noticed within twice this time, before any lease runs out.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Several TCP retransmissions of a first packet, and a TLS handshake with a busy coordinator.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A channel whose every request carries a credential.
pub type AuthorizedChannel = InterceptedService<Channel, Bearer>;

/// Where a coordinator listens, and the authority that its certificate must come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    address: String,
    ca: CaCertificate,
}

impl Endpoint {
    /// Takes `host:port` (IPv6 as `[::1]:7000`) and the pinned authority.
    pub fn new(address: &str, ca: CaCertificate) -> Result<Self, Error> {
        check_address(address)?;
        Ok(Self {
            address: address.to_owned(),
            ca,
        })
    }

    /// Returns `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns the pinned authority.
    pub fn ca(&self) -> &CaCertificate {
        &self.ca
    }

    /// Connects, so that the caller learns at once whether the coordinator can be reached.
    ///
    /// The channel reconnects by itself when the connection breaks later.
    pub async fn channel(&self) -> Result<Channel, Error> {
        self.transport()?
            .connect()
            .await
            .map_err(|source| Error::Connect {
                address: self.address.clone(),
                source,
            })
    }

    /// Returns a channel that connects with its first request.
    pub fn channel_lazy(&self) -> Result<Channel, Error> {
        Ok(self.transport()?.connect_lazy())
    }

    /// Connects and adds `bearer` to every request.
    pub async fn authorized(&self, bearer: Bearer) -> Result<AuthorizedChannel, Error> {
        Ok(InterceptedService::new(self.channel().await?, bearer))
    }

    fn transport(&self) -> Result<tonic::transport::Endpoint, Error> {
        let invalid = |source| Error::Tls {
            address: self.address.clone(),
            source,
        };
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.ca.to_pem()))
            .domain_name(TLS_NAME);
        Ok(
            tonic::transport::Endpoint::from_shared(format!("https://{}", self.address))
                .map_err(invalid)?
                .tls_config(tls)
                .map_err(invalid)?
                .tcp_nodelay(true)
                .connect_timeout(CONNECT_TIMEOUT)
                .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
                .keep_alive_timeout(KEEPALIVE_TIMEOUT)
                .keep_alive_while_idle(true),
        )
    }
}

/// Fails unless `address` is a host and a port and nothing else.
pub fn check_address(address: &str) -> Result<(), Error> {
    let bad = || Error::Address {
        address: address.to_owned(),
    };
    let authority: Authority = address.parse().map_err(|_| bad())?;
    let uri: Uri = format!("https://{address}").parse().map_err(|_| bad())?;
    let whole = uri.authority().is_some_and(|whole| *whole == authority);
    let plain = !address.contains('@') && !authority.host().is_empty();
    match authority.port_u16() {
        Some(port) if port > 0 && plain && whole => Ok(()),
        _ => Err(bad()),
    }
}

/// Adds a credential to every request; its `Debug` form hides it.
#[derive(Clone)]
pub struct Bearer {
    value: MetadataValue<Ascii>,
}

impl Bearer {
    /// Takes a credential as the coordinator issued it: a token's, a lease's or a session's.
    ///
    /// Fails when the text cannot stand in a header.
    pub fn new(credential: &str) -> Result<Self, Error> {
        let value = bearer_value(credential)?;
        let mut value = MetadataValue::try_from(value.as_bytes()).map_err(|_| Error::Credential)?;
        value.set_sensitive(true);
        Ok(Self { value })
    }

    /// Takes a join token.
    pub fn token(token: &Token) -> Result<Self, Error> {
        Self::new(&token.credential())
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request
            .metadata_mut()
            .insert("authorization", self.value.clone());
        Ok(request)
    }
}

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bearer([hidden])")
    }
}

/// Makes the value of an `authorization` header, marked as sensitive.
pub(crate) fn bearer_value(credential: &str) -> Result<HeaderValue, Error> {
    let mut value =
        HeaderValue::try_from(format!("Bearer {credential}")).map_err(|_| Error::Credential)?;
    value.set_sensitive(true);
    Ok(value)
}

/// Why a coordinator could not be connected to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is not `host:port`.
    #[error("`{address}` is not an address of the form host:port")]
    Address {
        /// What was given.
        address: String,
    },
    /// The credential holds characters that no header may hold.
    #[error("the credential holds characters that cannot be sent")]
    Credential,
    /// The pinned authority is not usable.
    #[error("cannot set up TLS for the coordinator at {address}")]
    Tls {
        /// `host:port`.
        address: String,
        /// What tonic said.
        source: tonic::transport::Error,
    },
    /// No connection came about, or its certificate was refused.
    #[error("cannot connect to the coordinator at {address}")]
    Connect {
        /// `host:port`.
        address: String,
        /// What tonic said.
        source: tonic::transport::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port_and_nothing_else() {
        for good in [
            "127.0.0.1:7000",
            "[::1]:7000",
            "login-1.cluster:443",
            "localhost:1",
        ] {
            assert!(check_address(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "host",
            "host:",
            "host:0",
            "host:70000",
            ":1",
            "u@host:1",
            "host:1/x",
            "a b:1",
        ] {
            assert!(check_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_credential_is_sent_as_a_sensitive_header_and_never_shown() {
        let mut bearer = Bearer::new("lease_1_ab").unwrap();
        assert!(!format!("{bearer:?}").contains("lease_1_ab"));
        let request = bearer.call(Request::new(())).unwrap();
        let value = request.metadata().get("authorization").unwrap();
        assert_eq!(value, "Bearer lease_1_ab");
        assert!(value.is_sensitive());
        assert!(Bearer::new("a\nb").is_err());
    }
}
