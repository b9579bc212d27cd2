//! Looking at runs.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::values;

/// List runs, or show one
///
/// First comes what needs attention: runs that failed in the last day, with the task and the class of
/// its failure; runs of which nothing is at work, and why; workers that are lost or drained.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator status            all runs, newest first
  coordinator status @last      the last run, task by task
  coordinator status RUN --json  everything about a run, for programs
  coordinator status --dir out -w 2   what `run --dir out` does, again and again")]
pub(crate) struct Status {
    /// Run to show; without it all are listed
    #[arg(value_name = "RUN")]
    pub(crate) run: Option<String>,
    /// Most runs to list
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = values::from_one::<u32>)]
    pub(crate) limit: u32,
    /// Show instead what the files say that `run --dir` writes into this folder
    #[arg(long, short, value_name = "DIR", conflicts_with_all = ["run", "limit"])]
    pub(crate) dir: Option<PathBuf>,
    /// With `--dir`: show it again every so many seconds until all tasks have ended
    #[arg(long, short, value_name = "SECONDS", requires = "dir", value_parser = seconds)]
    pub(crate) watch: Option<Duration>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text
        .parse()
        .map_err(|_| "it is a number of seconds, such as 2 or 0.5".to_owned())?;
    if !(0.1..=86_400.0).contains(&number) {
        return Err("it is between 0.1 and 86400 seconds".to_owned());
    }
    Ok(Duration::from_secs_f64(number))
}

/// Follow a task in the files that `run --dir` writes
///
/// Prints what its codex reads, runs and says, until the task has ended. `logs` shows everything a
/// task printed, without files.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator tail lint --dir out")]
pub(crate) struct Tail {
    /// Its name
    #[arg(value_name = "TASK")]
    pub(crate) task: String,
    /// Folder that was given to `run --dir`
    #[arg(long, short, value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,
}

/// Remove the files that `run --dir` has written
///
/// Removes the folders `outputs` and `logs`, and nothing else. Runs and their results stay.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator clean --dir out")]
pub(crate) struct Clean {
    /// Folder that was given to `run --dir`
    #[arg(long, short, value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,
    /// Also while tasks are running
    #[arg(long)]
    pub(crate) force: bool,
}

/// Follow a run until it ends
///
/// In a terminal it shows a live table of the tasks, with details of each: `?` explains the keys. It
/// leaves by itself when the run ends, unless a key was pressed. Into a pipe, or with `--plain`, it
/// prints everything that has happened and goes on as it happens. The exit code is that of the run,
/// and 0 if you leave before its end.
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
    /// Print a line for each event, also in a terminal
    #[arg(long)]
    pub(crate) plain: bool,
    /// Print a line for each event and for all that agents print
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
///
/// Of several tasks each line begins with the name of its task. Of what a model agent thinks only the
/// beginning is shown, unless all of it is asked for.
///
/// With `--json`, `kind` says what a line is: agent_phase, agent_output, agent_output_truncated,
/// agent_note, agent_capture or agent_activity. Of the last one `activity` says what the agent did:
/// session_opened, turn_began, turn_ended, message, reasoning, command_started, command_output,
/// command_ended, file_change, tool_call, plan, usage, retry, question, question_closed, error,
/// structured, or unknown for what only a newer version knows. Messages and reasoning come in pieces;
/// those with the same `item` belong together. Usage is what was used since the last usage.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator logs @last build               the last attempt of task `build`
  coordinator logs @last build --attempt 1   the first one
  coordinator logs @last build --verify      what its verify commands printed
  coordinator logs @last build -f --tail 20  the last 20 lines, and on
  coordinator logs @last build test -f       two tasks, until the run has ended
  coordinator logs @last --all --since 10m   all tasks, of the last ten minutes
  coordinator logs @last build --raw=from    what the agent wrote, byte by byte")]
pub(crate) struct Logs {
    /// Run
    #[arg(value_name = "RUN")]
    pub(crate) run: String,
    /// Tasks; without any the verify of the integrated result
    #[arg(value_name = "TASK", num_args = 0..)]
    pub(crate) tasks: Vec<String>,
    /// All tasks, and the verify of the integrated result
    #[arg(long, conflicts_with_all = ["tasks", "attempt"])]
    pub(crate) all: bool,
    /// Number of the attempt [default: the last one]
    #[arg(long, value_name = "N", value_parser = values::from_one::<u32>)]
    pub(crate) attempt: Option<u32>,
    /// What the verify printed instead of the agent
    #[arg(long)]
    pub(crate) verify: bool,
    /// Go on until the attempt has ended; of several tasks, until the run has
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Only the last N lines of each task, and what comes after them
    #[arg(long, value_name = "N", value_parser = values::whole::<usize>)]
    pub(crate) tail: Option<usize>,
    /// Only what was said since then: `10m` ago, or a time such as 2026-11-21T09:00:00Z
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// All that agents think, however long
    #[arg(long)]
    pub(crate) reasoning: bool,
    /// The lines of the agent's protocol as they were: `both` directions, each line after `< ` or
    /// `> `, or the exact bytes `from` the agent or `to` it
    #[arg(
        long,
        value_name = "WHICH",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "both",
        conflicts_with_all = ["all", "verify", "tail", "json", "reasoning"]
    )]
    pub(crate) raw: Option<RawWhich>,
    /// Print each event as a line of JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which lines of an agent's protocol are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum RawWhich {
    Both,
    From,
    To,
}

/// Show what a task, or the whole run, has changed
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator diff                 the integrated change of the last run
  coordinator diff @last build     what task `build` has changed
  coordinator diff @last --stat    only the files and numbers of lines
  coordinator diff @last build > build.patch    for `git apply build.patch`
  coordinator diff @last --json | jq -r '.files[] | .status + \" \" + .path'

Into a pipe or a file goes the patch that `git apply` needs, byte for byte. In
JSON, `patch` is that patch as text, or in base64 if `patch_encoding` says so,
since it is not all UTF-8. The exit code is 0 whether anything has changed or
not, and 2 if there is nothing to compare yet.")]
pub(crate) struct Diff {
    /// Run [default: the last one]
    #[arg(value_name = "RUN")]
    pub(crate) run: Option<String>,
    /// Task; without it the integrated change
    #[arg(value_name = "TASK")]
    pub(crate) task: Option<String>,
    /// Number of the attempt [default: the one that counts]
    #[arg(long, value_name = "N", requires = "task", value_parser = values::from_one::<u32>)]
    pub(crate) attempt: Option<u32>,
    /// Only the files and numbers of lines
    #[arg(long)]
    pub(crate) stat: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
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

/// Show what agents have used of models, and what that costs
///
/// Counts tokens as agents tell them, each once, also those of attempts that failed. The cost is
/// reckoned with the prices that `config check` shows, and is not what a provider bills: a model
/// without a price has no cost here. What agents reckon themselves stands beside it.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator usage                         each run
  coordinator usage @last                   each task of the last run
  coordinator usage @last --by model        each model it has used
  coordinator usage --by worker --since 1h  each worker, in the last hour
  coordinator usage @last --by call --json  every call, for programs")]
pub(crate) struct Usage {
    /// Run [default: all of them]
    #[arg(value_name = "RUN")]
    pub(crate) run: Option<String>,
    /// What a line is for [default: task with RUN, else run]
    #[arg(long, value_name = "WHAT")]
    pub(crate) by: Option<UsageBy>,
    /// Only of this task
    #[arg(long, value_name = "TASK", requires = "run")]
    pub(crate) task: Option<String>,
    /// Only of this model; case and punctuation do not matter
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,
    /// Only by this worker
    #[arg(long, value_name = "WORKER")]
    pub(crate) worker: Option<String>,
    /// Only since then: `10m` ago, or a time such as 2026-11-21T09:00:00Z
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What a line of usage is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum UsageBy {
    Run,
    Task,
    Attempt,
    Model,
    Worker,
    Turn,
    Call,
}
