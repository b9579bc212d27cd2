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
}

impl PoolKind {
    /// Gives the word for it in the configuration.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::External => "external",
            Self::Local { .. } => "local",
            Self::Slurm(_) => "slurm",
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
