//! The instance metadata service, in its second version alone.

use std::time::Duration;

use aws_config::imds::client::error::ImdsError;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials as _;

const CONNECT_LIMIT: Duration = Duration::from_secs(2);
const READ_LIMIT: Duration = Duration::from_secs(2);
const ATTEMPTS: u32 = 3;

/// Asks the metadata service of the instance that this process runs on; cheap to clone.
///
/// It is at 169.254.169.254 unless `AWS_EC2_METADATA_SERVICE_ENDPOINT` says otherwise.
#[derive(Clone, Debug)]
pub(crate) struct Metadata {
    client: aws_config::imds::Client,
}

impl Metadata {
    pub(crate) fn new() -> Self {
        Self::of(aws_config::imds::Client::builder())
    }

    /// Asks at `endpoint`.
    #[cfg(test)]
    pub(crate) fn at(endpoint: &str) -> Self {
        let client = aws_config::imds::Client::builder().endpoint(endpoint);
        Self::of(client.unwrap())
    }

    fn of(client: aws_config::imds::client::Builder) -> Self {
        let client = client
            .configure(&ProviderConfig::default())
            .connect_timeout(CONNECT_LIMIT)
            .read_timeout(READ_LIMIT)
            .max_attempts(ATTEMPTS)
            .build();
        Self { client }
    }

    /// Gives what is at a path below `/latest/meta-data/`; `None` if nothing is there.
    ///
    /// # Errors
    /// The service does not answer.
    pub(crate) async fn find(&self, path: &str) -> Result<Option<String>, Error> {
        match self.client.get(format!("/latest/meta-data/{path}")).await {
            Ok(text) => Ok(Some(text.as_ref().to_owned())),
            Err(ImdsError::ErrorResponse(context))
                if context.response().status().as_u16() == 404 =>
            {
                Ok(None)
            }
            Err(error) => Err(Error::Asking {
                path: path.to_owned(),
                source: Box::new(error),
            }),
        }
    }

    /// Gives what is at a path, which must be there on every instance.
    ///
    /// # Errors
    /// The service does not answer, or nothing is there.
    pub(crate) async fn get(&self, path: &str) -> Result<String, Error> {
        self.find(path).await?.ok_or_else(|| Error::Missing {
            path: path.to_owned(),
        })
    }

    /// Gives the credentials of the instance profile.
    ///
    /// # Errors
    /// The service does not answer, or the instance has no profile.
    pub(crate) async fn credentials(&self) -> Result<Credentials, Error> {
        let provider = ImdsCredentialsProvider::builder()
            .imds_client(self.client.clone())
            .build();
        let provided = provider.provide_credentials().await;
        provided.map_err(|error| Error::Credentials {
            source: Box::new(error),
        })
    }
}

/// Why the metadata service was of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("failed to ask the instance's metadata service for {path}")]
    Asking {
        path: String,
        source: Box<ImdsError>,
    },
    #[error("the instance's metadata service has no {path}")]
    Missing { path: String },
    #[error("failed to get the credentials of the instance profile")]
    Credentials {
        source: Box<aws_credential_types::provider::error::CredentialsError>,
    },
}
