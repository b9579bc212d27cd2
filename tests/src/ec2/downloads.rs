//! Stands for the addresses on the Internet that machines download from.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls_pki_types::PrivatePkcs8KeyDer;

use super::door;
use super::network::Listening;

/// An https server that answers for several names; ended with its value.
#[derive(Debug)]
pub struct Downloads {
    address: SocketAddr,
    ca_pem: String,
    _listening: Listening,
}

impl Downloads {
    /// Opens it on a free port of loopback. `files` are by their paths, such as `/coordinator`, whatever
    /// the name that they are asked of.
    ///
    /// # Errors
    /// No certificate can be made, or no port be had.
    pub fn open(names: &[&str], files: BTreeMap<String, PathBuf>) -> Result<Self> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names)?;
        let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
        let config = ServerConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key.into())?;
        let (config, files) = (Arc::new(config), Arc::new(files));
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let listening = Listening::new(listener, move |stream| {
            // Who hangs up asks again.
            let _ = door::serve(stream, &config, |path| std::fs::read(files.get(path)?).ok());
        })?;
        Ok(Self {
            address,
            ca_pem: cert.pem(),
            _listening: listening,
        })
    }

    /// Gives where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gives the certificate to know it by.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }
}
