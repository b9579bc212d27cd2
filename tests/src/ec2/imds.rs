//! The metadata service of an instance, version 2 only.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use serde_json::json;

use super::network::{Listening, Network};
use super::{Client, REGION};

/// Where every instance finds it.
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Longer lines are nobody's.
const LINES_MAX: usize = 100;
const PATIENCE: Duration = Duration::from_secs(10);

/// What an instance is told about its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It will be interrupted in two minutes.
    Spot,
    /// It is likelier than others to be interrupted.
    Rebalance,
    /// Its group is about to end it.
    Lifecycle,
}

/// The metadata service of one instance; ended with its value.
#[derive(Debug)]
pub struct Imds {
    facts: Arc<Mutex<Facts>>,
    _listening: Listening,
}

#[derive(Debug)]
struct Facts {
    instance: String,
    role: Option<String>,
    user_data: String,
    client: Client,
    notices: Vec<(Notice, Timestamp)>,
    /// Lines `METHOD PATH CODE`, oldest first.
    asked: Vec<String>,
}

impl Imds {
    pub(super) fn start(
        network: &Network,
        client: Client,
        instance: &str,
        user_data: &str,
    ) -> Result<Self> {
        let facts = Arc::new(Mutex::new(Facts {
            instance: instance.to_owned(),
            role: client.role(instance)?,
            user_data: user_data.to_owned(),
            client,
            notices: Vec::new(),
            asked: Vec::new(),
        }));
        let listener = network.listen(SocketAddr::from((ADDRESS, 80)))?;
        let served = Arc::clone(&facts);
        let listening = Listening::new(listener, move |stream| {
            // Who hangs up asks again.
            let _ = serve(&stream, &served);
        })?;
        Ok(Self {
            facts,
            _listening: listening,
        })
    }

    /// Serves a notice from now on.
    pub fn notice(&self, notice: Notice) {
        let mut facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        facts.notices.push((notice, Timestamp::now()));
    }

    /// Gives what was asked so far: method, path and answer's code.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        let facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        facts.asked.clone()
    }
}

fn serve(stream: &TcpStream, facts: &Mutex<Facts>) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let method = words.next().unwrap_or_default().to_owned();
    let path = words.next().unwrap_or_default().to_owned();
    let mut headers = Vec::new();
    for _ in 0..LINES_MAX {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(':') else {
            break;
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let header = |wanted: &str| {
        let found = headers.iter().find(|(name, _)| name == wanted);
        found.map(|(_, value)| value.as_str())
    };
    let mut facts = facts.lock().unwrap_or_else(PoisonError::into_inner);
    let token = format!("token-of-{}", facts.instance);
    let (code, body) = if method == "PUT" && path == "/latest/api/token" {
        let seconds = header("x-aws-ec2-metadata-token-ttl-seconds");
        match seconds.and_then(|seconds| seconds.parse::<u32>().ok()) {
            // A proxy on the way is how others would get at it.
            _ if header("x-forwarded-for").is_some() => (403, String::new()),
            Some(1..=21_600) => (200, token),
            _ => (400, String::new()),
        }
    } else if header("x-aws-ec2-metadata-token") != Some(token.as_str()) {
        (401, String::new())
    } else if method == "GET" {
        facts
            .answer(&path)
            .map_or((404, String::new()), |body| (200, body))
    } else {
        (405, String::new())
    };
    facts.asked.push(format!("{method} {path} {code}"));
    drop(facts);
    let mut stream = stream;
    write!(
        stream,
        "HTTP/1.1 {code} Answer\r\nContent-Length: {}\r\nContent-Type: text/plain\r\n\
         X-Aws-Ec2-Metadata-Token-Ttl-Seconds: 21600\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    Ok(())
}

impl Facts {
    fn noticed(&self, wanted: Notice) -> Option<Timestamp> {
        let found = self.notices.iter().find(|(notice, _)| *notice == wanted);
        found.map(|(_, since)| *since)
    }

    fn answer(&self, path: &str) -> Option<String> {
        let zone = format!("{REGION}a");
        if path == "/latest/user-data" {
            return Some(self.user_data.clone());
        }
        if path == "/latest/dynamic/instance-identity/document" {
            let document = json!({ "instanceId": self.instance, "region": REGION, "accountId": super::ACCOUNT });
            return Some(document.to_string());
        }
        match path.strip_prefix("/latest/meta-data/")? {
            "instance-id" => Some(self.instance.clone()),
            "placement/region" => Some(REGION.to_owned()),
            "placement/availability-zone" => Some(zone),
            "iam/security-credentials" | "iam/security-credentials/" => self.role.clone(),
            "spot/instance-action" => {
                let at = self.noticed(Notice::Spot)? + jiff::SignedDuration::from_secs(120);
                let at = at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
                Some(json!({ "action": "terminate", "time": at }).to_string())
            }
            "events/recommendations/rebalance" => {
                let at = self.noticed(Notice::Rebalance)?;
                let at = at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
                Some(json!({ "noticeTime": at }).to_string())
            }
            "autoscaling/target-lifecycle-state" => Some(match self.noticed(Notice::Lifecycle) {
                Some(_) => "Terminated".to_owned(),
                None => "InService".to_owned(),
            }),
            other => {
                let role = other.strip_prefix("iam/security-credentials/")?;
                if self.role.as_deref() != Some(role) {
                    return None;
                }
                let credentials = self.client.assume_role(role, &self.instance).ok()?;
                let document = json!({
                    "Code": "Success",
                    "LastUpdated": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                    "Type": "AWS-HMAC",
                    "AccessKeyId": credentials.access_key_id,
                    "SecretAccessKey": credentials.secret_access_key,
                    "Token": credentials.session_token,
                    "Expiration": credentials.expiration,
                });
                Some(document.to_string())
            }
        }
    }
}
