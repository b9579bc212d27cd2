//! The connection of a command to its coordinator.

use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use muster_connect::{
    AddressFile, AddressFileError, AuthorizedChannel, Bearer, Endpoint, EndpointError, Token,
    bootstrap_ca, read_token_file,
};
use muster_git::{Auth, Remote};
use muster_proto::v1::operator_service_client::OperatorServiceClient;
use muster_proto::{MESSAGE_BYTES_MAX, v1};
use tonic::Code;

use super::error::{CliError, Result};

/// How long the first contact with a coordinator elsewhere may take.
const BOOTSTRAP_TIMEOUT: Duration = Duration::from_secs(15);
const ADMIN_TOKEN: &str = "admin.token";

/// Where to find the coordinator.
#[derive(Clone, Debug)]
pub(crate) enum Whereabouts {
    /// On this machine, through its home.
    Home(PathBuf),
    /// Anywhere, with a token that pins its authority.
    Address {
        /// `host:port`.
        address: String,
        /// The file that holds the token.
        token_file: PathBuf,
    },
}

/// A coordinator that has answered.
#[derive(Clone)]
pub(crate) struct Client {
    operator: OperatorServiceClient<AuthorizedChannel>,
    info: v1::GetInfoResponse,
    address: String,
    hosted: Hosted,
}

/// How git reaches the hosted repositories.
#[derive(Clone)]
struct Hosted {
    auth: Auth,
    /// Keeps the file with the authority's certificate, if it was made for this client.
    _ca: Option<Arc<tempfile::TempPath>>,
}

/// Why there is no client.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// No coordinator runs on the home.
    NotRunning(CliError),
    /// Anything else.
    Other(CliError),
}

impl From<Trouble> for CliError {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::NotRunning(error) | Trouble::Other(error) => error,
        }
    }
}

impl From<CliError> for Trouble {
    fn from(error: CliError) -> Self {
        Self::Other(error)
    }
}

impl Client {
    /// Connects, and makes sure that the coordinator speaks our version.
    pub(crate) async fn connect(whereabouts: &Whereabouts) -> Result<Self, Trouble> {
        match whereabouts {
            Whereabouts::Home(home) => Self::local(home).await,
            Whereabouts::Address {
                address,
                token_file,
            } => Ok(Self::elsewhere(address, token_file).await?),
        }
    }

    async fn local(home: &Path) -> Result<Self, Trouble> {
        let file = AddressFile::read(home).map_err(|error| match error {
            AddressFileError::Missing { .. } => Trouble::NotRunning(not_running(home)),
            other => Trouble::Other(CliError::new(super::error::Kind::User, other).hint(
                "the home must be a folder of yours; `--home PATH` or MUSTER_HOME names another",
            )),
        })?;
        let connection = |error| CliError::new(super::error::Kind::Connection, error);
        let endpoint = file
            .endpoint()
            .map_err(|error| connection(anyhow::Error::new(error)))?;
        let token = read_token_file(&home.join(ADMIN_TOKEN))
            .map_err(|error| connection(anyhow::Error::new(error)))?;
        let channel = match authorized(&endpoint, &token).await {
            Ok(channel) => channel,
            // The address is that of a coordinator that has ended without a farewell, or is ending
            // now; another program may listen there.
            Err(error) => {
                let refused = is_refused(&error);
                let not_running = not_running(home);
                return Err(Trouble::NotRunning(if refused {
                    not_running
                } else {
                    not_running.hint(format!(
                        "what answers at {} is none: {}",
                        file.address,
                        chain(&error)
                    ))
                }));
            }
        };
        let auth = Auth {
            token: token.credential(),
            ca_file: Some(file.ca_path),
        };
        let hosted = Hosted { auth, _ca: None };
        match Self::greet(channel, file.address, hosted).await {
            Err(error) if error.status() == Some(Code::Unavailable) => {
                Err(Trouble::NotRunning(not_running(home)))
            }
            greeted => Ok(greeted?),
        }
    }

    async fn elsewhere(address: &str, token_file: &Path) -> Result<Self> {
        muster_connect::check_address(address).map_err(|error| {
            CliError::user(error).hint("for instance `--coordinator host:7733`")
        })?;
        let connection = |error| CliError::new(super::error::Kind::Connection, error);
        let token = read_token_file(token_file)
            .map_err(|error| CliError::new(super::error::Kind::User, anyhow::Error::new(error)))?;
        let ca = bootstrap_ca(address, token.ca, BOOTSTRAP_TIMEOUT)
            .await
            .map_err(|error| connection(anyhow::Error::new(error)))?;
        // Git wants a file; it lives as long as the client.
        let file = tempfile::Builder::new()
            .prefix("muster-ca-")
            .suffix(".pem")
            .tempfile()
            .and_then(|mut file| {
                io::Write::write_all(&mut file, ca.to_pem().as_ref())?;
                Ok(file.into_temp_path())
            })
            .map_err(|error| {
                CliError::internal(error).while_doing("write the authority's certificate for git")
            })?;
        let endpoint =
            Endpoint::new(address, ca).map_err(|error| connection(anyhow::Error::new(error)))?;
        let channel = authorized(&endpoint, &token)
            .await
            .map_err(|error| connection(anyhow::Error::new(error)))?;
        let auth = Auth {
            token: token.credential(),
            ca_file: Some(file.to_path_buf()),
        };
        let hosted = Hosted {
            auth,
            _ca: Some(Arc::new(file)),
        };
        Self::greet(channel, address.to_owned(), hosted).await
    }

    async fn greet(channel: AuthorizedChannel, address: String, hosted: Hosted) -> Result<Self> {
        let mut operator = OperatorServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let ours = v1::ProtocolVersion::current(crate::SOFTWARE);
        let request = v1::GetInfoRequest {
            version: Some(ours.clone()),
        };
        let info = operator.get_info(request).await?.into_inner();
        let theirs = info.version.clone().unwrap_or_default();
        if !theirs.is_compatible() {
            return Err(CliError::connection(format!(
                "the coordinator at {address} ({}) speaks version {} of the protocol, and this \
                 program ({}) version {}",
                theirs.software, theirs.major, ours.software, ours.major
            ))
            .hint("install the same version of Muster on both sides"));
        }
        Ok(Self {
            operator,
            info,
            address,
            hosted,
        })
    }

    /// Gives the service; a clone of it shares the connection.
    pub(crate) fn operator(&self) -> OperatorServiceClient<AuthorizedChannel> {
        self.operator.clone()
    }

    /// Gives what the coordinator said about itself.
    pub(crate) const fn info(&self) -> &v1::GetInfoResponse {
        &self.info
    }

    /// Tells whether the coordinator was opened by a command that only reads, and ends with it.
    pub(crate) fn is_passing(&self) -> bool {
        self.info.mode == "read"
    }

    /// Gives the address that was dialled.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Gives the way to a hosted repository.
    pub(crate) fn hosted(&self, repository: &str) -> Result<Remote> {
        let path = format!("git/{repository}.git");
        Ok(Remote::coordinator(
            &self.address,
            &path,
            self.hosted.auth.clone(),
        )?)
    }
}

async fn authorized(
    endpoint: &Endpoint,
    token: &Token,
) -> Result<AuthorizedChannel, EndpointError> {
    endpoint.authorized(Bearer::token(token)?).await
}

fn chain(error: &EndpointError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

fn is_refused(error: &EndpointError) -> bool {
    let mut next = error.source();
    while let Some(cause) = next {
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            return error.kind() == io::ErrorKind::ConnectionRefused;
        }
        next = cause.source();
    }
    false
}

fn not_running(home: &Path) -> CliError {
    CliError::connection(format!("no coordinator runs on {}", home.display()))
        .hint("start one with `coordinator serve`, or let `coordinator run PLAN` do it")
        .hint("another machine's is reached with `--coordinator HOST:PORT --token-file FILE`")
}
