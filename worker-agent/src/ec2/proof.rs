//! The proof of which instance this is; see [`muster_connect::identity_request`].

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use muster_connect::Fingerprint;
use muster_connect::identity_request::{BODY, CONTENT_TYPE, RECEIVER_HEADER, host, receiver};
use muster_proto::v1::InstanceProof;

use super::metadata::{self, Metadata};

/// Makes a proof for the coordinator with that authority, good for some minutes.
///
/// # Errors
/// The metadata service does not give what it takes.
pub(super) async fn make(
    metadata: &Metadata,
    coordinator: Fingerprint,
) -> Result<InstanceProof, Error> {
    let region = metadata.get("placement/region").await?;
    let credentials = metadata.credentials().await?;
    signed(&region, credentials, coordinator, SystemTime::now())
}

fn signed(
    region: &str,
    credentials: Credentials,
    coordinator: Fingerprint,
    now: SystemTime,
) -> Result<InstanceProof, Error> {
    let host = host(region).ok_or_else(|| Error::Region(region.to_owned()))?;
    let identity = credentials.into();
    let signing = |source: Box<dyn std::error::Error + Send + Sync>| Error::Signing { source };
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("sts")
        .time(now)
        .settings(SigningSettings::default())
        .build()
        .map_err(|error| signing(error.into()))?
        .into();
    let receiver = receiver(coordinator);
    let headers = [
        ("content-type", CONTENT_TYPE),
        (RECEIVER_HEADER, receiver.as_str()),
    ];
    let body = SignableBody::Bytes(BODY.as_bytes());
    let url = format!("https://{host}/");
    let request = SignableRequest::new("POST", url, headers.into_iter(), body)
        .map_err(|error| signing(error.into()))?;
    let output = sign(request, &params).map_err(|error| signing(error.into()))?;
    let (instructions, _) = output.into_parts();
    let mut proof = InstanceProof::default();
    for (name, value) in instructions.headers() {
        match name {
            "x-amz-date" => value.clone_into(&mut proof.date),
            "x-amz-security-token" => value.clone_into(&mut proof.security_token),
            "authorization" => value.clone_into(&mut proof.authorization),
            _ => {}
        }
    }
    Ok(proof)
}

/// Why there is no proof.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Metadata(#[from] metadata::Error),
    #[error("the metadata service names a region that is none: {0:?}")]
    Region(String),
    #[error("failed to sign a request")]
    Signing {
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn proof(coordinator: u8) -> InstanceProof {
        let credentials = Credentials::new(
            "AKIDEXAMPLE",
            "secret",
            Some("session".into()),
            None,
            "test",
        );
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
        let coordinator = Fingerprint::from_bytes([coordinator; 32]);
        signed("eu-west-1", credentials, coordinator, now).unwrap()
    }

    #[test]
    fn a_proof_is_tied_to_its_region_its_time_and_its_receiver() {
        let proof = proof(1);
        assert_eq!(proof.security_token, "session");
        assert_eq!(proof.date, "20260921T141320Z");
        let text = &proof.authorization;
        assert!(
            text.contains("Credential=AKIDEXAMPLE/20260921/eu-west-1/sts/aws4_request"),
            "{text}"
        );
        let signed =
            "SignedHeaders=content-type;host;x-amz-date;x-amz-security-token;x-muster-coordinator";
        assert!(text.contains(signed), "{text}");
        assert!(!text.contains("secret"));
        assert_ne!(proof.authorization, self::proof(2).authorization);
    }
}
