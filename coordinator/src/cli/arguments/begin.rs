//! Beginning runs, and coordinators.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::values;

/// Run a plan to its end and watch it
///
/// Starts a coordinator and workers on this machine if none runs on the home, submits the plan, and
/// shows it live until it has ended. The result stays in Muster's own repository: the summary shows
/// how to look at it and how to bring it into your branch.
///
/// If nothing has changed since a run that has not ended, or ended by itself less than ten minutes
/// ago, it asks whether to follow that one. Where nobody can answer it refuses with exit code 2, and
/// `--attach` and `--again` are the two ways out.
///
/// Ctrl-C lets running attempts finish and then stops; pressed twice it stops at once. Nothing is
/// lost either way: `coordinator run --resume` goes on.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator run plan.yaml
  coordinator run plan.yaml --slots 2        at most two attempts at once
  coordinator run plan.yaml --repo ~/src/app  this repository, not the plan's
  coordinator run plan.yaml --json | tail -1  the result as one JSON object
  coordinator run tasks.yaml --dir out        keep codex-par's files in `out`
  coordinator run plan.yaml --attach          follow it if it runs already
  coordinator run --resume                   go on with what was interrupted")]
pub(crate) struct Run {
    /// Plan file
    #[arg(
        value_name = "PLAN",
        required_unless_present = "resume",
        conflicts_with = "resume"
    )]
    pub(crate) plan: Option<PathBuf>,
    /// Go on with unfinished runs of the home, and follow RUN [default: the last run]
    #[arg(long, value_name = "RUN", num_args = 0..=1, default_missing_value = "@last",
          conflicts_with_all = ["repo", "idempotency_key"])]
    pub(crate) resume: Option<String>,
    /// If it runs already, or has just ended, follow that run
    #[arg(long, conflicts_with_all = ["again", "resume", "idempotency_key"])]
    pub(crate) attach: bool,
    /// Begin another run, even if nothing has changed
    #[arg(long, conflicts_with_all = ["resume", "idempotency_key"])]
    pub(crate) again: bool,
    #[command(flatten)]
    pub(crate) source: Source,
    /// Attempts at once on this machine [default: the number of cores]
    #[arg(long, value_name = "N", value_parser = values::slots)]
    pub(crate) slots: Option<u32>,
    /// Also write what codex-par writes, `outputs` and `logs`, into this folder
    #[arg(long, short, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Print each event as a line of JSON, and the result as the last line
    #[arg(long)]
    pub(crate) json: bool,
}

/// What a submission takes besides the plan.
#[derive(Debug, Default, Args)]
pub(crate) struct Source {
    /// Repository to work on instead of the one that the plan names: a path or a git URL
    #[arg(long, value_name = "PATH")]
    pub(crate) repo: Option<String>,
    /// Submitting again with the same key gives the same run
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
}

/// Run a coordinator until it is stopped
///
/// Workers of this and other machines connect to it, and plans are sent to it with `submit`.
/// Unfinished runs of the home go on. Ctrl-C (or SIGTERM) stops it; workers keep what they do and
/// reconnect when it is back.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator serve                           for this machine only
  coordinator serve --listen 0.0.0.0:7733     for all machines that can reach it
  coordinator serve --listen 127.0.0.1:0      any free port; commands find it")]
pub(crate) struct Serve {
    /// Address and port [default: 127.0.0.1:7733]
    #[arg(long, value_name = "ADDR", value_parser = values::listen)]
    pub(crate) listen: Option<SocketAddr>,
    /// Attempts at once of workers that the coordinator starts itself, on this machine
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = values::slots_or_none)]
    pub(crate) slots: u32,
}

/// Submit a plan to a running coordinator
///
/// Prints the name of the run and returns; `coordinator watch` follows it. The commit that the plan
/// starts from is sent along, so the coordinator needs no access to your repository.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator submit plan.yaml
  run=$(coordinator submit plan.yaml --json | jq -r .run)
  coordinator submit plan.yaml --coordinator host:7733 --token-file me.token")]
pub(crate) struct Submit {
    /// Plan file
    #[arg(value_name = "PLAN")]
    pub(crate) plan: PathBuf,
    #[command(flatten)]
    pub(crate) source: Source,
    /// Print a JSON object that holds `run`
    #[arg(long)]
    pub(crate) json: bool,
}
