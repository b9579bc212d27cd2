//! Which instance asks to be let in: see [`muster_connect::identity_request`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aws_config::BehaviorVersion;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use muster_connect::Fingerprint;
use muster_connect::identity_request::{
    BODY, CONTENT_TYPE as CONTENT, HEADER_BYTES_MAX, RECEIVER_HEADER, host, receiver,
};
use muster_proto::v1::InstanceProof;

use crate::pool::settings::{Ec2Settings, PoolKind, PoolSettings, RoleArn};

const LIMIT: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Session names of instances: `i-` and at most this many hexadecimal digits.
const INSTANCE_DIGITS_MAX: usize = 32;

/// Asks STS who has signed a proof, for the pools that have instances.
#[derive(Clone, Debug)]
pub struct Callers {
    pools: Arc<BTreeMap<Arc<str>, Ec2Settings>>,
    receiver: String,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// In place of STS's own address, as AWS's programs have it from the environment.
    endpoint: Option<String>,
}

impl Callers {
    /// Makes it for the pools of this kind among `pools` and a coordinator with that authority; `None`
    /// if there are none.
    ///
    /// # Errors
    /// This machine has no certificates to know STS by.
    pub async fn new(
        pools: &BTreeMap<Arc<str>, PoolSettings>,
        ca: Fingerprint,
    ) -> Result<Option<Self>, Error> {
        let pools: BTreeMap<Arc<str>, Ec2Settings> = pools
            .iter()
            .filter_map(|(name, pool)| match &pool.kind {
                PoolKind::Ec2(settings) => Some((Arc::clone(name), (**settings).clone())),
                PoolKind::External | PoolKind::Local { .. } | PoolKind::Slurm(_) => None,
            })
            .collect();
        if pools.is_empty() {
            return Ok(None);
        }
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::aws_lc_rs::default_provider())
            .map_err(|source| Error::Roots { source })?
            .https_or_http()
            .enable_http1()
            .build();
        let config = aws_config::defaults(BehaviorVersion::latest()).load().await;
        let variable = |name| {
            std::env::var(name)
                .ok()
                .filter(|url: &String| !url.is_empty())
        };
        let endpoint = variable("AWS_ENDPOINT_URL_STS");
        let endpoint = endpoint.or_else(|| config.endpoint_url().map(str::to_owned));
        Ok(Some(Self {
            pools: Arc::new(pools),
            receiver: receiver(ca),
            client: Client::builder(TokioExecutor::new()).build(connector),
            endpoint,
        }))
    }

    /// Gives the id of the instance that has made the proof, for an instance of that pool's role.
    ///
    /// # Errors
    /// The proof is none, or STS cannot be asked.
    pub async fn instance(&self, pool: &str, proof: &InstanceProof) -> Result<String, Error> {
        let settings = self.pools.get(pool).ok_or(Error::Pool)?;
        let request = self.request(settings, proof)?;
        let asked = async {
            let answer = self.client.request(request).await;
            let answer = answer.map_err(|error| Error::Asking {
                source: Box::new(error),
            })?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
                .collect()
                .await;
            let body = body.map_err(|source| Error::Asking { source })?;
            Ok((status, body.to_bytes()))
        };
        let asked = tokio::time::timeout(LIMIT, asked).await;
        let (status, body) = asked.map_err(|_| Error::Late)??;
        let text = String::from_utf8_lossy(&body);
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Err(Error::Trouble(status));
        }
        if !status.is_success() {
            let code = element(&text, "Code").unwrap_or("no code");
            return Err(Error::NotSigned(format!("{status}, {}", plain(code))));
        }
        let arn = element(&text, "Arn").ok_or(Error::NoName)?;
        instance(arn, &settings.role)
            .map(str::to_owned)
            .ok_or_else(|| Error::Another(plain(arn)))
    }

    fn request(
        &self,
        settings: &Ec2Settings,
        proof: &InstanceProof,
    ) -> Result<Request<Full<Bytes>>, Error> {
        // Else the signature would say nothing about for whom it is.
        if !is_for_one_receiver(&proof.authorization) {
            return Err(Error::Proof);
        }
        let host = host(&settings.region).ok_or(Error::Proof)?;
        let url = match &self.endpoint {
            Some(url) => format!("{}/", url.trim_end_matches('/')),
            None => format!("https://{host}/"),
        };
        let value = |text: &str, secret: bool| {
            let short = (1..=HEADER_BYTES_MAX).contains(&text.len());
            let value = HeaderValue::from_str(text).ok().filter(|_| short);
            let mut value = value.ok_or(Error::Proof)?;
            value.set_sensitive(secret);
            Ok::<_, Error>(value)
        };
        Request::builder()
            .method(Method::POST)
            .uri(url)
            .header(HOST, value(&host, false)?)
            .header(CONTENT_TYPE, CONTENT)
            .header(RECEIVER_HEADER, value(&self.receiver, false)?)
            .header("x-amz-date", value(&proof.date, false)?)
            .header("x-amz-security-token", value(&proof.security_token, true)?)
            .header(AUTHORIZATION, value(&proof.authorization, true)?)
            .body(Full::new(Bytes::from_static(BODY.as_bytes())))
            .map_err(|_| Error::Proof)
    }
}

/// Tells whether a signature covers the header that names its receiver.
fn is_for_one_receiver(authorization: &str) -> bool {
    let signed = authorization.split("SignedHeaders=").nth(1);
    let signed = signed.and_then(|rest| rest.split([',', ' ']).next());
    let covers = |name| signed.is_some_and(|signed| signed.split(';').any(|one| one == name));
    authorization.starts_with("AWS4-HMAC-SHA256 ") && covers(RECEIVER_HEADER) && covers("host")
}

/// Gives the text of the first element of that name. STS's answers are flat enough, and trusted.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text.trim())
}

/// Gives the instance that a session of the role is of: EC2 names sessions after instances.
fn instance<'a>(arn: &'a str, role: &RoleArn) -> Option<&'a str> {
    let RoleArn {
        partition,
        account,
        name,
    } = role;
    let prefix = format!("arn:{partition}:sts::{account}:assumed-role/{name}/");
    let id = arn.strip_prefix(&prefix)?;
    let digits = id.strip_prefix("i-")?;
    let usual = (1..=INSTANCE_DIGITS_MAX).contains(&digits.len())
        && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    usual.then_some(id)
}

/// Makes a foreign text fit for a log.
fn plain(text: &str) -> String {
    let plain = |c: &char| c.is_ascii_graphic();
    text.chars().filter(plain).take(200).collect()
}

/// Why it is not known which instance has made a proof.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to find the certificates that AWS is known by")]
    Roots { source: std::io::Error },
    #[error("no pool of EC2 instances has this name")]
    Pool,
    #[error("this is no signed request of an instance for this coordinator")]
    Proof,
    #[error("STS does not take the signature: {0}")]
    NotSigned(String),
    #[error("STS names nobody")]
    NoName,
    #[error("the proof is of {0}, which is no instance with the pool's role")]
    Another(String),
    #[error("failed to ask STS")]
    Asking {
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("STS does not answer in time")]
    Late,
    #[error("STS has trouble: {0}")]
    Trouble(StatusCode),
}

impl Error {
    /// Tells whether the same proof may be good a little later.
    #[must_use]
    pub fn passes(&self) -> bool {
        matches!(self, Self::Asking { .. } | Self::Late | Self::Trouble(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_session_of_the_pools_role_that_is_named_after_an_instance_is_one() {
        let role = RoleArn::parse("arn:aws:iam::123456789012:role/path/worker").unwrap();
        let of = |arn| instance(arn, &role);
        let good = "arn:aws:sts::123456789012:assumed-role/worker/i-0abc12def";
        assert_eq!(of(good), Some("i-0abc12def"));
        for other in [
            "arn:aws:sts::999999999999:assumed-role/worker/i-0abc12def",
            "arn:aws:sts::123456789012:assumed-role/other/i-0abc12def",
            "arn:aws:sts::123456789012:assumed-role/worker/alice",
            "arn:aws:sts::123456789012:assumed-role/worker/i-",
            "arn:aws:sts::123456789012:assumed-role/worker/i-0abc/x",
            "arn:aws:iam::123456789012:user/i-0abc12def",
            "",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn a_signature_that_does_not_name_its_receiver_is_refused() {
        let signed = |headers: &str| {
            format!("AWS4-HMAC-SHA256 Credential=A/b, SignedHeaders={headers}, Signature=c")
        };
        assert!(is_for_one_receiver(&signed(
            "content-type;host;x-amz-date;x-muster-coordinator"
        )));
        assert!(!is_for_one_receiver(&signed(
            "content-type;host;x-amz-date"
        )));
        assert!(!is_for_one_receiver(&signed(
            "x-muster-coordinator-not;host"
        )));
        assert!(!is_for_one_receiver(&signed("x-muster-coordinator")));
        assert!(!is_for_one_receiver(
            "Bearer SignedHeaders=host;x-muster-coordinator"
        ));
    }

    #[test]
    fn the_name_is_read_from_an_answer() {
        let answer = "<GetCallerIdentityResponse><GetCallerIdentityResult>\n<Arn>arn:x</Arn>\
                      <Account>1</Account></GetCallerIdentityResult></GetCallerIdentityResponse>";
        assert_eq!(element(answer, "Arn"), Some("arn:x"));
        assert_eq!(element(answer, "UserId"), None);
        assert_eq!(element("<Arn>open", "Arn"), None);
    }
}
