//! A worker on an EC2 instance: how it joins without having been given a secret, and how it hears that
//! the instance goes away.

mod metadata;
mod notice;
mod proof;

use std::time::Duration;

use muster_connect::{CaCertificate, Endpoint, Fingerprint, Token};
use muster_proto::v1::join_service_client::JoinServiceClient;
use muster_proto::v1::{ClaimRequest, claim_request};
use tonic::Code;

pub(crate) use metadata::Metadata;
pub(crate) use notice::watch;

/// Pause between two tries to join: the coordinator asks for new instances about as often.
const PAUSE: Duration = Duration::from_secs(5);
/// Longest answer to one try.
const LIMIT: Duration = Duration::from_secs(30);

/// Claims the join token of the allocation that this instance is, and tries until it gets it. Gives the
/// instance's id too.
///
/// # Errors
/// The coordinator says that it never will, or the instance cannot prove anything.
pub(crate) async fn claim(
    metadata: &Metadata,
    coordinator: &str,
    ca: CaCertificate,
    pool: &str,
) -> Result<(Token, String), Error> {
    let fingerprint = ca.fingerprint();
    let channel = Endpoint::new(coordinator, ca)?.channel_lazy()?;
    let mut client = JoinServiceClient::new(channel);
    let mut said = None;
    loop {
        // Anew each time: credentials are renewed meanwhile, and proofs are good for minutes.
        let proof = async {
            let instance = metadata.get("instance-id").await?;
            let proof = proof::make(metadata, fingerprint).await?;
            Ok::<_, proof::Error>((instance, proof))
        };
        let answer = match proof.await {
            Ok((instance, proof)) => {
                let request = ClaimRequest {
                    pool: pool.to_owned(),
                    proof: Some(claim_request::Proof::Instance(proof)),
                };
                let answer = tokio::time::timeout(LIMIT, client.claim(request)).await;
                let late = |_| Err(tonic::Status::deadline_exceeded("no answer"));
                answer
                    .unwrap_or_else(late)
                    .map(|answer| (answer.into_inner(), instance))
            }
            Err(error) => Err(tonic::Status::unavailable(crate::failure::chain(&error))),
        };
        match answer {
            Ok((answer, instance)) => {
                let token = Token::parse(&answer.token)?;
                if token.ca != fingerprint {
                    return Err(Error::Foreign);
                }
                return Ok((token, instance));
            }
            Err(status) if is_final(status.code()) => {
                return Err(Error::Refused(status.message().to_owned()));
            }
            Err(status) => {
                let why = status.message().to_owned();
                if said.as_ref() != Some(&why) {
                    tracing::warn!(coordinator, pool, why, "not let in yet; trying again");
                    said = Some(why);
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Makes the proof that this instance would join with, and gives the instance's id.
///
/// # Errors
/// The metadata service does not answer, or the instance has no profile.
pub(crate) async fn prove(
    metadata: &Metadata,
    coordinator: Fingerprint,
) -> Result<String, proof::Error> {
    let instance = metadata.get("instance-id").await?;
    proof::make(metadata, coordinator).await?;
    Ok(instance)
}

fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::PermissionDenied | Code::InvalidArgument | Code::Unimplemented
    )
}

/// Why an instance cannot join.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the coordinator does not let this instance in: {0}")]
    Refused(String),
    #[error("the coordinator has answered with a token for another one")]
    Foreign,
    #[error("failed to reach the coordinator")]
    Endpoint(#[from] muster_connect::EndpointError),
    #[error("the coordinator has answered with no join token")]
    Token(#[from] muster_connect::TokenError),
}
