//! Steering runs and taking their results home.

use std::path::PathBuf;

use clap::Args;

/// Cancel a run, or one task of it
///
/// Agents that work on it are stopped. Tasks that have succeeded stay so, and unfinished edits are
/// kept under refs/muster/salvage. `coordinator retry` takes it up again.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator cancel @last
  coordinator cancel @last build --reason obsolete")]
pub(crate) struct Cancel {
    /// Run
    #[arg(value_name = "RUN")]
    pub(crate) run: String,
    /// Task; without it the whole run
    #[arg(value_name = "TASK")]
    pub(crate) task: Option<String>,
    /// Why, for those who read it later
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) reason: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Try again what did not succeed
///
/// Reopens a task with everything that depends on it, or all tasks of the run that did not succeed.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator retry @last
  coordinator retry @last build")]
pub(crate) struct Retry {
    /// Run
    #[arg(value_name = "RUN")]
    pub(crate) run: String,
    /// Task; without it all that did not succeed
    #[arg(value_name = "TASK")]
    pub(crate) task: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Fetch the result of a run into your repository, without touching your branches
///
/// The integrated branch becomes refs/remotes/muster/RUN/integration, a task's branch
/// refs/remotes/muster/RUN/tasks/TASK.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator fetch                       then: git log muster/RUN/integration
  coordinator fetch @last build           the work of task `build` alone")]
pub(crate) struct Fetch {
    /// Run [default: the last one]
    #[arg(value_name = "RUN")]
    pub(crate) run: Option<String>,
    /// Task; without it the integrated branch
    #[arg(value_name = "TASK")]
    pub(crate) task: Option<String>,
    /// Your repository [default: the one you are in]
    #[arg(
        long,
        value_name = "PATH",
        default_value = ".",
        hide_default_value = true
    )]
    pub(crate) repo: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Bring the integrated result of a run into your branch
///
/// Fetches the integrated branch and moves your branch to it, or merges it if your branch has moved
/// on since. Refused, with the reason and without having touched anything, when your work tree has
/// uncommitted changes, when a merge or rebase is under way, when the merge would conflict, or when
/// your git configuration names the branch in `muster.protected` (`git config --add muster.protected
/// 'release/*'`). Your own configuration and hooks apply: a merge is signed if you sign commits.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator land                     the last run into the branch you are on
  coordinator land RUN --into main
  coordinator land RUN --repo ~/src/app")]
pub(crate) struct Land {
    /// Run [default: the last one]
    #[arg(value_name = "RUN")]
    pub(crate) run: Option<String>,
    /// Branch to land in [default: the one that is checked out]
    #[arg(long, value_name = "BRANCH")]
    pub(crate) into: Option<String>,
    /// Your repository [default: the one you are in]
    #[arg(
        long,
        value_name = "PATH",
        default_value = ".",
        hide_default_value = true
    )]
    pub(crate) repo: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
