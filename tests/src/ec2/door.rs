//! Stands for a coordinator of which only the download is wanted: gives out a program over TLS, under
//! an authority as coordinators have one.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use coordinator::auth::CertificateAuthority;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::network::Listening;

const PATIENCE: Duration = Duration::from_secs(10);
const LIFE: Duration = Duration::from_secs(86_400);

/// A server that hands out one program as `/worker-agent/x86_64`; ended with its value.
#[derive(Debug)]
pub struct Door {
    address: SocketAddr,
    ca_pem: String,
    _listening: Listening,
}

impl Door {
    /// Opens it on a free port of loopback; its authority is kept in `folder`.
    ///
    /// # Errors
    /// The authority cannot be made, or no port be had.
    pub fn open(folder: &Path, program: &str) -> Result<Self> {
        let authority = CertificateAuthority::open(folder)?;
        let certificate = authority.issue_server(SystemTime::now(), LIFE)?;
        let config = ServerConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificate.chain, certificate.key)?;
        let (config, program) = (Arc::new(config), Arc::<str>::from(program));
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let listening = Listening::new(listener, move |stream| {
            // Who does not trust it hangs up.
            let _ = serve(stream, &config, |path| {
                (path == "/worker-agent/x86_64").then(|| program.as_bytes().to_vec())
            });
        })?;
        Ok(Self {
            address,
            ca_pem: std::fs::read_to_string(authority.certificate_path())?,
            _listening: listening,
        })
    }

    /// Gives where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gives the certificate of its authority.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }
}

/// Answers one request over TLS with what `find` has for its path.
pub(super) fn serve(
    stream: TcpStream,
    config: &Arc<ServerConfig>,
    find: impl Fn(&str) -> Option<Vec<u8>>,
) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let connection = ServerConnection::new(Arc::clone(config))?;
    let mut stream = BufReader::new(StreamOwned::new(connection, stream));
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let found = line.split(' ').nth(1).and_then(find);
    let code = found.as_ref().map_or("404 Not Found", |_| "200 OK");
    let body = found.unwrap_or_default();
    while stream.read_line(&mut line)? > 2 {}
    let stream = stream.get_mut();
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {code}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    stream.write_all(&body)?;
    stream.conn.send_close_notify();
    stream.flush()?;
    Ok(())
}
