//! What the configuration says about pools.

use std::path::PathBuf;

use coordinator_core::Span;
use coordinator_core::pool::Policy;

/// A pool as configured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolSettings {
    pub policy: Policy,
    pub kind: PoolKind,
}

/// Where a pool's workers come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PoolKind {
    /// People start them.
    External,
    /// Processes beside the coordinator.
    Local {
        /// Further arguments of the worker, such as `--approvals outside`.
        worker_args: Vec<String>,
    },
    Slurm(Box<SlurmSettings>),
    Ec2(Box<Ec2Settings>),
}

impl PoolKind {
    /// Gives the word for it in the configuration.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::External => "external",
            Self::Local { .. } => "local",
            Self::Slurm(_) => "slurm",
            Self::Ec2(_) => "ec2",
        }
    }

    /// Says where its allocations are: with another place's list all of them would count as gone. A Slurm
    /// cluster is not told from another, since its login hosts may change.
    #[must_use]
    pub fn place(&self) -> String {
        match self {
            Self::External | Self::Local { .. } | Self::Slurm(_) => self.as_str().to_owned(),
            Self::Ec2(group) => format!("ec2, group {} in {}", group.group, group.region),
        }
    }
}

/// How jobs are submitted to a Slurm cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlurmSettings {
    pub partition: Option<String>,
    pub account: Option<String>,
    pub qos: Option<String>,
    pub constraint: Option<String>,
    pub gres: Option<String>,
    /// Time limit of each job; also the pool's walltime.
    pub time: Span,
    /// CPUs and memory (MiB) of each worker's task; the cluster's defaults unless given.
    pub cpus: Option<u32>,
    pub memory_mib: Option<u64>,
    /// Further options of `sbatch`, one a line, such as `--exclusive`.
    pub directives: Vec<String>,
    /// Lines of shell before the worker starts, such as `module load git`.
    pub setup: Vec<String>,
    /// `user@host` of a login host; the commands are run here unless given.
    pub login: Option<String>,
    /// Further options of `ssh`.
    pub ssh_options: Vec<String>,
    /// Folder that coordinator or login host and nodes share: scripts, tokens, logs, the program.
    pub directory: PathBuf,
    /// `worker-agent` as the nodes see it; the coordinator's own program is staged unless given.
    pub worker: Option<PathBuf>,
    /// Further arguments of the worker, such as `--agent codex=/opt/codex`.
    pub worker_args: Vec<String>,
    /// `host:port` that nodes dial; the address the coordinator listens on unless given.
    pub coordinator: Option<String>,
    /// How often the queue is asked for, while there is something in it.
    pub poll: Span,
    /// How long before the time limit a job is told to hand its work over.
    pub hand_over: Span,
}

/// Which auto scaling group of EC2 gives a pool its instances.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ec2Settings {
    /// Name of the group.
    pub group: String,
    pub region: String,
    /// The role that its instances have, and nobody else.
    pub role: RoleArn,
    /// How often the group is asked for.
    pub poll: Span,
}

/// The name of a role of IAM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RoleArn {
    /// `aws`, `aws-cn` or `aws-us-gov`.
    pub partition: String,
    /// Twelve digits.
    pub account: String,
    /// Without its path.
    pub name: String,
}

impl RoleArn {
    /// Reads `arn:aws:iam::123456789012:role/path/name`; `None` if it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(6, ':');
        let mut next = || parts.next();
        let (arn, partition, service, region) = (next()?, next()?, next()?, next()?);
        let (account, resource) = (next()?, next()?);
        let name = resource.strip_prefix("role/")?.rsplit('/').next()?;
        let digits = account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
        // Those that IAM lets a role's name have.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+=,.@_-".contains(&byte);
        let named = (1..=64).contains(&name.len()) && name.bytes().all(plain);
        let usual = arn == "arn"
            && matches!(partition, "aws" | "aws-cn" | "aws-us-gov")
            && service == "iam"
            && region.is_empty();
        (usual && digits && named).then(|| Self {
            partition: partition.to_owned(),
            account: account.to_owned(),
            name: name.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_read_with_and_without_a_path_and_nothing_else_is() {
        let role = RoleArn::parse("arn:aws:iam::123456789012:role/muster/w-1").unwrap();
        assert_eq!(
            (role.account.as_str(), role.name.as_str()),
            ("123456789012", "w-1")
        );
        for wrong in [
            "",
            "muster-worker",
            "arn:aws:iam::123456789012:user/w",
            "arn:aws:iam::12345678901:role/w",
            "arn:aws:iam::123456789012:role/",
            "arn:aws:iam::123456789012:role/a b",
            "arn:aws:sts::123456789012:assumed-role/w/i-1",
            "arn:evil:iam::123456789012:role/w",
        ] {
            assert_eq!(RoleArn::parse(wrong), None, "{wrong}");
        }
    }
}
