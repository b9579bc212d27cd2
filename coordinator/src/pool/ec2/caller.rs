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
/// Refusals of STS that pass: it says with 400 and 403 too that it has too much to do, that it does not
/// know new credentials yet, and that older ones were just over.
const PASSING: [&str; 6] = [
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "InvalidClientTokenId",
    "ExpiredToken",
    "ExpiredTokenException",
];
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
        if !status.is_success() {
            let code = element(&text, "Code").unwrap_or("no code");
            let said = format!("{status}, {}", plain(code));
            let busy = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
            return Err(match busy || PASSING.contains(&code) {
                true => Error::Trouble(said),
                false => Error::NotSigned(said),
            });
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

/// Tells whether a signature covers the header that names its receiver. It must have its three parts once
/// each, so that STS reads the same out of it.
fn is_for_one_receiver(authorization: &str) -> bool {
    let Some(rest) = authorization.strip_prefix("AWS4-HMAC-SHA256 ") else {
        return false;
    };
    let parts: Vec<&str> = rest.split(',').map(str::trim).collect();
    let [credential, signed, signature] = parts[..] else {
        return false;
    };
    let Some(signed) = signed.strip_prefix("SignedHeaders=") else {
        return false;
    };
    let covers = |name| signed.split(';').any(|one| one == name);
    let whole = |part: &str| part.bytes().all(|byte| byte.is_ascii_graphic());
    parts.iter().all(|part| whole(part))
        && credential.starts_with("Credential=")
        && signature.starts_with("Signature=")
        && [RECEIVER_HEADER, "host", "x-amz-date"]
            .into_iter()
            .all(covers)
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
    Trouble(String),
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
            "x-muster-coordinator-not;host;x-amz-date"
        )));
        // One that is read in two ways.
        for twice in [
            "x-muster-coordinator;host;x-amz-date, SignedHeaders=host;x-amz-date",
            "x-muster-coordinator;host;x-amz-date SignedHeaders=host",
        ] {
            assert!(!is_for_one_receiver(&signed(twice)), "{twice}");
        }
        assert!(!is_for_one_receiver(&signed("x-muster-coordinator")));
        assert!(!is_for_one_receiver(
            "Bearer Credential=A, SignedHeaders=host;x-amz-date;x-muster-coordinator, Signature=c"
        ));
    }

    /// What is made of a proof when STS answers so, and what STS was asked.
    async fn answered(answer: &'static str) -> (Result<String, Error>, String) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = String::new();
            while !asked.ends_with(BODY) {
                let mut bytes = [0; 4096];
                let read = stream.read(&mut bytes).await.unwrap();
                asked.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            asked
        });
        let settings = Ec2Settings {
            group: "g".to_owned(),
            region: "eu-west-1".to_owned(),
            role: RoleArn::parse("arn:aws:iam::123456789012:role/w").unwrap(),
            poll: coordinator_core::Span::from_secs(1),
        };
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::aws_lc_rs::default_provider())
            .unwrap()
            .https_or_http()
            .enable_http1()
            .build();
        let callers = Callers {
            pools: Arc::new([("build".into(), settings)].into()),
            receiver: "me".to_owned(),
            client: Client::builder(TokioExecutor::new()).build(connector),
            endpoint: Some(endpoint),
        };
        let proof = InstanceProof {
            authorization: "AWS4-HMAC-SHA256 Credential=A/b, \
                            SignedHeaders=host;x-amz-date;x-muster-coordinator, Signature=c"
                .to_owned(),
            date: "20260921T141320Z".to_owned(),
            security_token: "session".to_owned(),
        };
        let found = callers.instance("build", &proof).await;
        (found, served.await.unwrap())
    }

    #[tokio::test]
    async fn what_is_asked_of_sts_is_the_same_whoever_asks_and_goes_nowhere_else() {
        let (found, asked) = answered(
            "HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n",
        )
        .await;
        assert!(matches!(found, Err(Error::NotSigned(_))), "{found:?}");
        assert!(asked.starts_with("POST / HTTP/1.1\r\n"), "{asked}");
        for line in [
            "host: sts.eu-west-1.amazonaws.com\r\n",
            "x-muster-coordinator: me\r\n",
        ] {
            assert!(asked.contains(line), "{asked}");
        }
    }

    #[tokio::test]
    async fn a_busy_sts_and_new_credentials_are_no_refusal() {
        for (answer, passes) in [
            (
                "400 Bad Request\r\ncontent-length: 23\r\n\r\n<Code>Throttling</Code>",
                true,
            ),
            (
                "403 Forbidden\r\ncontent-length: 33\r\n\r\n<Code>InvalidClientTokenId</Code>",
                true,
            ),
            (
                "403 Forbidden\r\ncontent-length: 34\r\n\r\n<Code>SignatureDoesNotMatch</Code>",
                false,
            ),
            ("503 Busy\r\ncontent-length: 0\r\n\r\n", true),
        ] {
            let answer: &'static str = format!("HTTP/1.1 {answer}").leak();
            let error = answered(answer).await.0.unwrap_err();
            assert_eq!(error.passes(), passes, "{error}");
        }
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
