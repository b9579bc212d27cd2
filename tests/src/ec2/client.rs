//! What tests ask of the interface, over plain HTTP.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{ACCOUNT, REGION};

/// Longer than any call takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A client of [`super::Moto`].
#[derive(Clone, Copy, Debug)]
pub struct Client {
    port: u16,
}

/// An instance as its group or EC2 describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub id: String,
    /// Its group; empty if it has none.
    pub group: String,
    /// Of EC2: `running`, `terminated`, …
    pub state: String,
}

/// What an instance gets from the metadata service.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub access_key_id: String,
    pub secret_access_key: String,
    pub session_token: String,
    pub expiration: String,
}

impl Client {
    pub(super) const fn new(port: u16) -> Self {
        Self { port }
    }

    /// Calls an action of a service, such as `autoscaling`, and gives the answer's XML.
    ///
    /// # Errors
    /// It is not answered, or refused; with the answer.
    pub fn call(&self, service: &str, action: &str, parameters: &[(&str, &str)]) -> Result<String> {
        self.call_as("test", service, action, parameters)
    }

    fn call_as(
        &self,
        key: &str,
        service: &str,
        action: &str,
        parameters: &[(&str, &str)],
    ) -> Result<String> {
        let version = match service {
            "autoscaling" => "2011-01-01",
            "sts" => "2011-06-15",
            "iam" => "2010-05-08",
            _ => "2016-11-15",
        };
        let mut body = format!("Action={action}&Version={version}");
        for (name, value) in parameters {
            write!(body, "&{name}={}", encoded(value))?;
        }
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // The region stands in the signature, of which nobody checks more than this.
        write!(
            stream,
            "POST / HTTP/1.1\r\nHost: {service}.{REGION}.amazonaws.com\r\nConnection: close\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential={key}/20260101/{REGION}/{service}/aws4_request, \
             SignedHeaders=host, Signature=00\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").context("half an answer")?;
        ensure!(
            head.split(' ').nth(1) == Some("200"),
            "{action} {parameters:?}: {answer}"
        );
        Ok(body.to_owned())
    }

    /// Lists the names of all groups.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn groups(&self) -> Result<Vec<String>> {
        let xml = self.call("autoscaling", "DescribeAutoScalingGroups", &[])?;
        Ok(all(&xml, "AutoScalingGroupName"))
    }

    /// Gives how many instances a group should have.
    ///
    /// # Errors
    /// As [`Client::call`], or there is no such group.
    pub fn desired(&self, group: &str) -> Result<u32> {
        let name = [("AutoScalingGroupNames.member.1", group)];
        let xml = self.call("autoscaling", "DescribeAutoScalingGroups", &name)?;
        let desired = all(&xml, "DesiredCapacity");
        Ok(desired.first().context("no such group")?.parse()?)
    }

    /// Says how many instances a group should have, as only the coordinator does otherwise.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn set_desired(&self, group: &str, count: u32) -> Result<()> {
        let count = count.to_string();
        let parameters = [("AutoScalingGroupName", group), ("DesiredCapacity", &count)];
        self.call("autoscaling", "SetDesiredCapacity", &parameters)?;
        Ok(())
    }

    /// Lists every instance that there ever was.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn instances(&self) -> Result<Vec<Instance>> {
        let xml = self.call("ec2", "DescribeInstances", &[])?;
        let document = roxmltree::Document::parse(&xml)?;
        let named = |node: &roxmltree::Node<'_, '_>, name: &str| node.tag_name().name() == name;
        let text = |of: roxmltree::Node<'_, '_>, name: &str| {
            let mut found = of.children().filter(|node| named(node, name));
            found
                .find_map(|node| node.text())
                .unwrap_or_default()
                .to_owned()
        };
        let sets = document
            .descendants()
            .filter(|node| named(node, "instancesSet"));
        let items = sets.flat_map(|set| set.children().filter(|node| node.is_element()));
        let instances = items.map(|item| {
            let state = item.children().find(|node| named(node, "instanceState"));
            let tags = item.children().filter(|node| named(node, "tagSet"));
            let mut tags = tags.flat_map(|tags| tags.children());
            Instance {
                id: text(item, "instanceId"),
                group: tags
                    .find(|tag| text(*tag, "key") == "aws:autoscaling:groupName")
                    .map(|tag| text(tag, "value"))
                    .unwrap_or_default(),
                state: state.map(|state| text(state, "name")).unwrap_or_default(),
            }
        });
        Ok(instances.collect())
    }

    /// Lists the ids of the instances of a group that run.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn running(&self, group: &str) -> Result<Vec<String>> {
        let instances = self.instances()?.into_iter();
        let running = instances.filter(|it| it.group == group && it.state == "running");
        Ok(running.map(|instance| instance.id).collect())
    }

    /// Ends an instance behind its group's back, as a spot interruption does.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn terminate(&self, id: &str) -> Result<()> {
        self.call("ec2", "TerminateInstances", &[("InstanceId.1", id)])?;
        Ok(())
    }

    /// Ends an instance of a group, which gets smaller by one: what the coordinator does with those that
    /// it has drained.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn terminate_in_group(&self, id: &str) -> Result<()> {
        let parameters = [
            ("InstanceId", id),
            ("ShouldDecrementDesiredCapacity", "true"),
        ];
        self.call(
            "autoscaling",
            "TerminateInstanceInAutoScalingGroup",
            &parameters,
        )?;
        Ok(())
    }

    /// Reads the user data that an instance was launched with.
    ///
    /// # Errors
    /// As [`Client::call`], or it has none.
    pub fn user_data(&self, id: &str) -> Result<String> {
        let parameters = [("InstanceId", id), ("Attribute", "userData")];
        let xml = self.call("ec2", "DescribeInstanceAttribute", &parameters)?;
        let value = all(&xml, "value");
        let value = value.first().context("an instance without user data")?;
        Ok(String::from_utf8(STANDARD.decode(value.trim())?)?)
    }

    /// Makes credentials of a role as an instance profile has them: the session is named after the
    /// instance.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn assume_role(&self, role: &str, instance: &str) -> Result<Credentials> {
        let arn = format!("arn:aws:iam::{ACCOUNT}:role/{role}");
        let parameters = [("RoleArn", arn.as_str()), ("RoleSessionName", instance)];
        let xml = self.call("sts", "AssumeRole", &parameters)?;
        let one = |tag| all(&xml, tag).into_iter().next().context(tag);
        Ok(Credentials {
            access_key_id: one("AccessKeyId")?,
            secret_access_key: one("SecretAccessKey")?,
            session_token: one("SessionToken")?,
            expiration: one("Expiration")?,
        })
    }

    /// Gives the ARN of whoever has an access key.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn identity(&self, access_key_id: &str) -> Result<String> {
        let xml = self.call_as(access_key_id, "sts", "GetCallerIdentity", &[])?;
        all(&xml, "Arn").into_iter().next().context("nobody")
    }

    /// Gives the id of the volume that is attached to an instance as a device, if there is one yet.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn volume(&self, instance: &str, device: &str) -> Result<Option<String>> {
        let filter = [
            ("Filter.1.Name", "attachment.instance-id"),
            ("Filter.1.Value.1", instance),
            ("Filter.2.Name", "attachment.device"),
            ("Filter.2.Value.1", device),
        ];
        let xml = self.call("ec2", "DescribeVolumes", &filter)?;
        Ok(all(&xml, "volumeId").into_iter().next())
    }

    /// Gives the name of the role that an instance has: as its launch template says, if it has one, since
    /// moto does not describe it with the instance then.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn role(&self, id: &str) -> Result<Option<String>> {
        let xml = self.call("ec2", "DescribeInstances", &[("InstanceId.1", id)])?;
        let tag = |name: &str| {
            let part = xml
                .split(&format!("<key>aws:ec2launchtemplate:{name}</key>"))
                .nth(1);
            part.and_then(|part| all(part, "value").into_iter().next())
        };
        // The modules give a profile its role's name.
        let name = |arn: String| arn.rsplit('/').next().map(str::to_owned);
        let (Some(template), Some(version)) = (tag("id"), tag("version")) else {
            let filter = [("Filter.1.Name", "instance-id"), ("Filter.1.Value.1", id)];
            let xml = self.call("ec2", "DescribeIamInstanceProfileAssociations", &filter)?;
            return Ok(all(&xml, "arn").into_iter().next().and_then(name));
        };
        let parameters = [
            ("LaunchTemplateId", template.as_str()),
            ("LaunchTemplateVersion.1", version.as_str()),
        ];
        let xml = self.call("ec2", "DescribeLaunchTemplateVersions", &parameters)?;
        let profile = xml.split("<iamInstanceProfile>").nth(1);
        let arn = profile.and_then(|part| all(part, "arn").into_iter().next());
        Ok(arn.and_then(name))
    }
}

/// Gives the texts of all elements of a name that hold nothing but text.
fn all(xml: &str, tag: &str) -> Vec<String> {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    let parts = xml.split(&open).skip(1);
    let texts = parts.filter_map(|part| part.split_once(&close));
    texts
        .filter(|(text, _)| !text.contains('<'))
        .map(|(text, _)| text.to_owned())
        .collect()
}

fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
        encoded
    })
}
