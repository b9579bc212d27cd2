//! The pools that workers come from.

use clap::{Args, Subcommand};

/// See and steer the pools that workers come from
///
/// A pool starts workers when there is work for them and ends them when there is none: processes
/// beside the coordinator, jobs of a Slurm cluster, or, of kind `external`, whatever people start
/// themselves. Pools are declared in the configuration file, as `[pools.NAME]`. What a pool asks
/// for, such as a job, is an allocation.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator pool list
  coordinator pool plan               what would be started and ended, and why
  coordinator pool show gpu
  coordinator pool resume gpu         go on after it has paused itself")]
pub(crate) struct Pool {
    #[command(subcommand)]
    pub(crate) command: PoolCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    List(PoolList),
    Show(PoolShow),
    Plan(PoolPlan),
    Pause(PoolPause),
    Resume(PoolResume),
    Forget(PoolForget),
    Id(PoolId),
}

/// Print the id by which this coordinator's jobs and groups are known
///
/// Eight hexadecimal digits. Names of Slurm jobs begin with it, and an auto scaling group of EC2 is
/// driven only if its tag says it. A copy that was restored beside its original has one of its own.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator pool id
  squeue --me --name | grep \"$(coordinator pool id)\"")]
pub(crate) struct PoolId {}

/// List the pools and how it goes with each
///
/// STATE is `ready`; `paused`, which starts nothing until it is resumed; `failing`, when the last start
/// led to no worker or the provider does not answer; or `not configured`, when its section was taken
/// out of the configuration while it had allocations. HAS counts those, BUSY the slots at work.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator pool list
  coordinator pool list --json | jq -r '.pools[] | select(.paused) | .name'")]
pub(crate) struct PoolList {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show a pool: its settings, its standing, its allocations, and what happened lately
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator pool show gpu
  coordinator pool show gpu --json | jq '.allocations[].external'
  coordinator pool show gpu --json | jq -r '.recent[].text'")]
pub(crate) struct PoolShow {
    /// Pool, as `coordinator pool list` names it
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show what each pool would start and end now, and why
///
/// Nothing is started or ended by it: the coordinator plans the same every few seconds by itself.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator pool plan
  coordinator pool plan --json | jq '.pools[] | {pool, starts, hindrance}'")]
pub(crate) struct PoolPlan {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Let a pool start nothing more; what it has goes on
///
/// Its workers take tasks as before, and what is idle is ended as before. It stays paused, also over
/// restarts of the coordinator, until `coordinator pool resume`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator pool pause gpu --reason maintenance")]
pub(crate) struct PoolPause {
    /// Pool, as `coordinator pool list` names it
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Why, for those who wonder
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Let a pool go on that was paused or has paused itself
///
/// Repair first what `coordinator pool show` names as the reason, or it pauses itself again. Its failed
/// starts and the hosts in quarantine are forgotten.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator pool resume gpu")]
pub(crate) struct PoolResume {
    /// Pool, as `coordinator pool list` names it
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Forget a pool that is not configured any more
///
/// A pool whose section was taken out of the configuration, or renamed, keeps the allocations that it
/// had, and nobody lists or ends them. Put the section back and start the coordinator again, and
/// those that nothing needs are ended. Forget the pool when its allocations are gone, or when you end
/// them yourself: their join tokens open nothing then, and workers of theirs that are connected
/// finish what they hold and get nothing more. Needs an administrator's token.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator pool show old                         what it had, and since when
  coordinator pool forget old --even-if-they-run")]
pub(crate) struct PoolForget {
    /// Pool, as `coordinator pool list` names it
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Also when it has allocations: whether these run is not known, and Muster ends none of them
    #[arg(long)]
    pub(crate) even_if_they_run: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
