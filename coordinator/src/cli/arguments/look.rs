//! Looking at runs.

use clap::Args;

use super::values;

/// List runs, or show one
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator status            all runs, newest first
  coordinator status @last      the last run, task by task
  coordinator status RUN --json  everything about a run, for programs")]
pub(crate) struct Status {
    /// Run to show; without it all are listed
    #[arg(value_name = "RUN")]
    pub(crate) run: Option<String>,
    /// Most runs to list
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = values::whole::<u32>)]
    pub(crate) limit: u32,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Follow a run until it ends
///
/// Prints everything that has happened and goes on as it happens. The exit code is that of the run.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator watch                          the last run
  coordinator watch RUN --agent              with everything the agents say
  coordinator watch RUN --json --after 120   one JSON object a line, from 121 on")]
pub(crate) struct Watch {
    /// Run to follow [default: the last one]
    #[arg(value_name = "RUN")]
    pub(crate) run: Option<String>,
    /// Show what agents print, too
    #[arg(long)]
    pub(crate) agent: bool,
    /// Start after the event of this number
    #[arg(long, value_name = "SEQ", conflicts_with = "cursor", value_parser = values::whole::<u64>)]
    pub(crate) after: Option<u64>,
    /// Start where an earlier `watch --json` was: its last `cursor`
    #[arg(long, value_name = "CURSOR")]
    pub(crate) cursor: Option<String>,
    /// Stay after the run has ended; it may be retried
    #[arg(long)]
    pub(crate) follow: bool,
    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show what an attempt printed
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator logs @last build               the last attempt of task `build`
  coordinator logs @last build --attempt 1   the first one
  coordinator logs @last build --verify      what its verify commands printed
  coordinator logs @last build --follow      go on while it runs")]
pub(crate) struct Logs {
    /// Run
    #[arg(value_name = "RUN")]
    pub(crate) run: String,
    /// Task; without it the verify of the integrated result
    #[arg(value_name = "TASK")]
    pub(crate) task: Option<String>,
    /// Number of the attempt [default: the last one]
    #[arg(long, value_name = "N", value_parser = values::whole::<u32>)]
    pub(crate) attempt: Option<u32>,
    /// What the verify printed instead of the agent
    #[arg(long)]
    pub(crate) verify: bool,
    /// Go on until the attempt has ended
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Print each event as a line of JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show what a task, or the whole run, has changed
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator diff                 the integrated change of the last run
  coordinator diff @last build     what task `build` has changed
  coordinator diff @last --stat    only the files and numbers of lines")]
pub(crate) struct Diff {
    /// Run [default: the last one]
    #[arg(value_name = "RUN")]
    pub(crate) run: Option<String>,
    /// Task; without it the integrated change
    #[arg(value_name = "TASK")]
    pub(crate) task: Option<String>,
    /// Number of the attempt [default: the one that counts]
    #[arg(long, value_name = "N", requires = "task", value_parser = values::whole::<u32>)]
    pub(crate) attempt: Option<u32>,
    /// Only the files and numbers of lines
    #[arg(long)]
    pub(crate) stat: bool,
}

/// Say why a task is not running, why it ran where it did, and what would change that
///
/// Answers: why is it not running? why was it skipped, or why did it fail? why did it run there? what
/// would change it? Why it ran there is what the coordinator saw when it chose the worker, as the
/// journal has it.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator explain @last api     what keeps task `api`, or where it ran
  coordinator explain @last         what keeps the run as a whole
  coordinator explain @last api --json | jq -r '.remedies[]'")]
pub(crate) struct Explain {
    /// Run
    #[arg(value_name = "RUN")]
    pub(crate) run: String,
    /// Task; without it the run as a whole
    #[arg(value_name = "TASK")]
    pub(crate) task: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
