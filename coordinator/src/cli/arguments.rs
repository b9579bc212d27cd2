//! What can be typed. The texts are the manual, so they are written for a newcomer.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::output::ColorChoice;

const ABOUT: &str = "Runs a fleet of coding agents as if it were one careful engineer";

const LONG_ABOUT: &str = "\
Runs a fleet of coding agents as if it were one careful engineer.

A plan is a YAML file of tasks and the order they must keep. Each task is done by an agent in a git \
branch of its own, checked independently, and all work is merged into one branch at the end. Nothing \
is written to your repository until you land it.";

const AFTER_HELP: &str = "\
Getting started:
  coordinator run plan.yaml       run a plan here and watch it
  coordinator land                bring the result into your branch
  coordinator doctor              check that this machine is ready

`coordinator help COMMAND` explains a command and shows examples.";

const AFTER_LONG_HELP: &str = "\
Getting started:
  coordinator run plan.yaml       run a plan here and watch it
  coordinator land                bring the result into your branch
  coordinator doctor              check that this machine is ready

A coordinator for several machines:
  coordinator serve --listen 0.0.0.0:7733
  coordinator token create --role worker --out worker.token
  coordinator submit plan.yaml
  coordinator watch

Exit codes:
    0  success; of a run: it succeeded
    1  internal error, or `doctor`, `audit` or `sim` has found something wrong
    2  wrong usage, a wrong plan, or something that cannot be done as things are
    3  wrong configuration
    4  no connection to the coordinator, or it does not accept the token
   10  the run failed
   11  the tasks succeeded, but their work does not merge
   12  the run was cancelled
  130  interrupted by Ctrl-C
  141  whoever read the output has gone

RUN is the name of a run, its beginning if no other run begins so, or @last.
`coordinator help COMMAND` explains a command and shows examples.";

/// The program's arguments.
#[derive(Debug, Parser)]
#[command(
    name = "coordinator",
    version,
    about = ABOUT,
    long_about = LONG_ABOUT,
    after_help = AFTER_HELP,
    after_long_help = AFTER_LONG_HELP,
    max_term_width = 100
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Global {
    /// Folder that holds all state [default: $XDG_STATE_HOME/muster, or ~/.local/state/muster]
    #[arg(
        long,
        global = true,
        env = "MUSTER_HOME",
        hide_env_values = true,
        value_name = "PATH"
    )]
    pub(crate) home: Option<PathBuf>,
    /// Talk to this coordinator instead of the one of the home
    #[arg(long, global = true, value_name = "HOST:PORT", requires = "token_file")]
    pub(crate) coordinator: Option<String>,
    /// File with the token for `--coordinator`; `coordinator token create` makes one
    #[arg(long, global = true, value_name = "FILE", requires = "coordinator")]
    pub(crate) token_file: Option<PathBuf>,
    /// When to use colours
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        hide_default_value = true
    )]
    pub(crate) color: ColorChoice,
    /// Say nothing but errors on standard error
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(Run),
    Serve(Serve),
    Submit(Submit),
    Status(Status),
    Watch(Watch),
    Logs(Logs),
    Diff(Diff),
    Explain(Explain),
    Cancel(Cancel),
    Retry(Retry),
    Fetch(Fetch),
    Land(Land),
    Workers(Workers),
    Drain(Drain),
    Token(Token),
    Plan(Plan),
    Audit(Audit),
    Doctor(Doctor),
    Backup(Backup),
    Restore(Restore),
    Sim(super::sim::Sim),
    Config(Config),
    Completions(Completions),
}

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
  coordinator run plan.yaml --repo ~/src/app use another repository than the plan names
  coordinator run plan.yaml --json | tail -1 the result as one JSON object
  coordinator run plan.yaml --attach         follow it if it runs already, else run it
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
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) slots: Option<u32>,
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
  coordinator serve --listen 127.0.0.1:0      any free port; local commands find it by themselves")]
pub(crate) struct Serve {
    /// Address and port [default: 127.0.0.1:7733]
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<SocketAddr>,
    /// Attempts at once of workers that the coordinator starts itself, on this machine
    #[arg(long, value_name = "N", default_value_t = 0)]
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
  coordinator --coordinator host:7733 --token-file operator.token submit plan.yaml")]
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

/// List runs, or show one
///
/// First comes what needs attention: runs that failed in the last day, with the task and the class of
/// its failure; runs of which nothing is at work, and why; workers that are lost or drained.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator status            all runs, newest first
  coordinator status @last      the last run, task by task
  coordinator status RUN --json everything about a run, for programs")]
pub(crate) struct Status {
    /// Run to show; without it all are listed
    #[arg(value_name = "RUN")]
    pub(crate) run: Option<String>,
    /// Most runs to list
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub(crate) limit: u32,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
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
  coordinator watch RUN --json --after 120   one JSON object a line, from event 121 on")]
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
    #[arg(long, value_name = "SEQ", conflicts_with = "cursor")]
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
/// Of several tasks each line begins with the name of its task.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator logs @last build               the last attempt of task `build`
  coordinator logs @last build --attempt 1   the first one
  coordinator logs @last build --verify      what its verify commands printed
  coordinator logs @last build -f --tail 20  the last 20 lines, then on until it has ended
  coordinator logs @last build test -f       two tasks, until the run has ended
  coordinator logs @last --all --since 10m   all tasks, of the last ten minutes")]
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
    #[arg(long, value_name = "N")]
    pub(crate) attempt: Option<u32>,
    /// What the verify printed instead of the agent
    #[arg(long)]
    pub(crate) verify: bool,
    /// Go on until the attempt has ended; of several tasks, until the run has
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Only the last N lines of each task, and what comes after them
    #[arg(long, value_name = "N")]
    pub(crate) tail: Option<usize>,
    /// Only what was said since then: `10m` ago, or a time such as 2026-11-21T09:00:00Z
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
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
    #[arg(long, value_name = "N", requires = "task")]
    pub(crate) attempt: Option<u32>,
    /// Only the files and numbers of lines
    #[arg(long)]
    pub(crate) stat: bool,
}

/// Say why a task is not running, and what would help
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// Run
    #[arg(value_name = "RUN")]
    pub(crate) run: String,
    /// Task
    #[arg(value_name = "TASK")]
    pub(crate) task: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Cancel a run, or one task of it
///
/// Agents that work on it are stopped. Tasks that have succeeded stay so, and unfinished edits are
/// kept under refs/muster/salvage. `coordinator retry` takes it up again.
#[derive(Debug, Args)]
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
/// uncommitted changes, when a merge or rebase is under way, or when the merge would conflict. Your
/// own configuration and hooks apply.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator land                        the last run into the branch you are on
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

/// List the workers and what they do
#[derive(Debug, Args)]
pub(crate) struct Workers {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Let a worker finish what it holds and give it nothing new
#[derive(Debug, Args)]
pub(crate) struct Drain {
    /// Worker, as `coordinator workers` names it
    #[arg(value_name = "WORKER")]
    pub(crate) worker: String,
    /// Give it work again
    #[arg(long)]
    pub(crate) undo: bool,
}

/// Make, list and revoke the tokens that workers and people prove themselves with
#[derive(Debug, Args)]
pub(crate) struct Token {
    #[command(subcommand)]
    pub(crate) command: TokenCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    Create(TokenCreate),
    List(TokenList),
    Revoke(TokenRevoke),
}

/// Make a token
///
/// Works whether the coordinator of the home runs or not. The token is a secret: who has it may do
/// what its role allows. It also holds the fingerprint of the coordinator's certificate authority,
/// so nothing else is needed to connect safely.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator token create --role worker --out worker.token
  coordinator token create --role worker --pool gpu --out gpu.token
  coordinator token create --role operator --name alice --valid-for 90d --out alice.token")]
pub(crate) struct TokenCreate {
    /// What its holder may do
    #[arg(long, value_enum)]
    pub(crate) role: RoleName,
    /// Pool of the workers that use it [default: default]
    #[arg(long, value_name = "POOL")]
    pub(crate) pool: Option<String>,
    /// What it is for, to be recognised in the list
    #[arg(long, value_name = "TEXT")]
    pub(crate) name: Option<String>,
    /// How long it is valid, such as `12h` or `90d` [default: until it is revoked]
    #[arg(long, value_name = "TIME")]
    pub(crate) valid_for: Option<String>,
    /// File to write it to, readable by you alone [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Print a JSON object with the token's `id`; without `--out` it holds the `token` too
    #[arg(long)]
    pub(crate) json: bool,
}

/// What the holder of a token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleName {
    /// Take work
    Worker,
    /// See everything
    Viewer,
    /// Submit and control runs
    Operator,
    /// Everything, tokens included
    Admin,
}

impl RoleName {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// List the tokens; their secrets are not kept
#[derive(Debug, Args)]
pub(crate) struct TokenList {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Make a token worthless from now on
#[derive(Debug, Args)]
pub(crate) struct TokenRevoke {
    /// Id, as `coordinator token list` shows it
    #[arg(value_name = "ID")]
    pub(crate) id: String,
}

/// Check and draw plan files; needs no coordinator and stores nothing
#[derive(Debug, Args)]
pub(crate) struct Plan {
    #[command(subcommand)]
    pub(crate) command: PlanCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PlanCommand {
    /// Check a plan: all problems, each with file, line and column
    Check(PlanCheck),
    /// Print the JSON Schema of plan files, for editors
    #[command(after_long_help = "\
Examples:
  coordinator plan schema > plan.schema.json
  then begin a plan with: # yaml-language-server: $schema=./plan.schema.json")]
    Schema,
    Graph(PlanGraph),
}

#[derive(Debug, Args)]
pub(crate) struct PlanCheck {
    /// Plan file
    #[arg(value_name = "PLAN")]
    pub(crate) plan: PathBuf,
}

/// Draw the tasks and their order
///
/// As text each task stands below all that it depends on, and lanes lead from one to the other. Of a
/// run each task is drawn with its state.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator plan graph plan.yaml
  coordinator plan graph plan.yaml --format svg > plan.svg
  coordinator plan graph plan.yaml --format dot | dot -Tpng > plan.png
  coordinator plan graph --run @last                    with the states of the last run")]
pub(crate) struct PlanGraph {
    /// Plan file
    #[arg(
        value_name = "PLAN",
        required_unless_present = "run",
        conflicts_with = "run"
    )]
    pub(crate) plan: Option<PathBuf>,
    /// Draw a run instead, with the state of each task
    #[arg(long, value_name = "RUN")]
    pub(crate) run: Option<String>,
    /// What to draw it as
    #[arg(
        long,
        value_name = "FORMAT",
        default_value = "text",
        hide_default_value = true
    )]
    pub(crate) format: GraphFormat,
}

/// What a graph is drawn as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum GraphFormat {
    /// Text with lanes, for terminals
    Text,
    /// Graphviz' language
    Dot,
    /// Mermaid's language
    Mermaid,
    /// A picture for browsers
    Svg,
}

/// Check everything that Muster keeps against everything else
///
/// Reads the journal, snapshots, archive and task documents, hosted repositories, transcripts and
/// workers' disks, and says where they do not agree: what, where, and what to do. Changes nothing;
/// `coordinator doctor --repair` mends what can be mended.
///
/// Works while no coordinator runs on the home, and keeps any from starting meanwhile. Beside one
/// that runs, only what several looks have found counts, since the world goes on between them.
///
/// The exit code is 1 if anything is wrong. Notes do not count.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator audit
  coordinator audit --worker-state /scratch/muster-42/worker
  coordinator audit --json | jq -s '.[-1]'     what was checked, and how much was found")]
pub(crate) struct Audit {
    /// State folder of workers; may be given several times [default: those in the home]
    #[arg(long, value_name = "DIR")]
    pub(crate) worker_state: Vec<PathBuf>,
    /// Say only what is about this run
    #[arg(long, value_name = "RUN")]
    pub(crate) run: Option<String>,
    /// See only whether git's objects are there, not whether each is sound
    #[arg(long)]
    pub(crate) quick: bool,
    /// Print one JSON object for each finding, and one for the whole
    #[arg(long)]
    pub(crate) json: bool,
}

/// Check that this machine is ready, and say what to do where it is not
///
/// The exit code is 1 if a check fails; warnings do not count.
///
/// With `--repair` it mends what `coordinator audit` has found in the home and can be mended, and
/// says each thing that it did. No coordinator may run on the home. Nothing is deleted: what is in
/// the way moves to `repaired/` in the home, and commits that lose their ref get one under
/// `refs/muster/lost/`.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Mend the state of the home
    #[arg(long)]
    pub(crate) repair: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Save the home's state, also while its coordinator runs
///
/// The backup is a folder with everything that cannot be made again: journal and archive, plans,
/// transcripts, hosted repositories, certificate authority, tokens and configuration. It is read
/// back as a whole before it gets its name. It holds secrets and is readable by its owner alone.
///
/// Logs and the folders of local workers are not in it.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator backup /backup/muster-$(date +%F)
  coordinator restore /backup/muster-2026-11-21 --home ~/muster-restored")]
pub(crate) struct Backup {
    /// Folder to make; must not exist, or be empty
    #[arg(value_name = "DEST")]
    pub(crate) destination: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Put a backup back as a new home
///
/// The home (`--home`) must not exist, or be empty. Every checksum is compared before anything is
/// written. `serve` then goes on from the moment of the backup: what was accepted after it is done
/// again, workers that still hold leases from after it are told to stop and keep their edits, and
/// tokens revoked after it are valid again.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator restore /backup/muster-2026-11-21 --home ~/muster-restored
  coordinator serve --home ~/muster-restored")]
pub(crate) struct Restore {
    /// Folder that `backup` made
    #[arg(value_name = "FROM")]
    pub(crate) from: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Check the configuration and show each value and where it came from
///
/// The file is `config.toml` in the home. Variables of the environment win over it, and options of
/// the command line over both.
#[derive(Debug, Args)]
#[command(after_long_help = "\
All keys of the file, with their defaults:
  listen = \"127.0.0.1:7733\"    # where `serve` listens                (MUSTER_LISTEN)
  slots = 8                     # attempts at once of `run`; the cores (MUSTER_SLOTS)
  log = \"info\"                  # what the log holds                   (MUSTER_LOG)
  lease-ttl = \"1m\"              # life of a lease without a heartbeat  (MUSTER_LEASE_TTL)
  lease-grace = \"15s\"           # after that, until work is given away (MUSTER_LEASE_GRACE)
  heartbeat-interval = \"10s\"    # at most a third of lease-ttl   (MUSTER_HEARTBEAT_INTERVAL)

  [agents.big-codex]            # agents that every plan may name
  kind = \"codex\"                # command, codex, claude or acp
  command = [\"codex\", \"--profile\", \"big\"]")]
pub(crate) struct Config {
    #[command(subcommand)]
    pub(crate) command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Check the configuration and show it
    Check {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Print completions for a shell
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  source <(coordinator completions bash)
  coordinator completions zsh > ~/.zfunc/_coordinator
  coordinator completions fish > ~/.config/fish/completions/coordinator.fish")]
pub(crate) struct Completions {
    /// Shell
    pub(crate) shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_help_of_every_command_reads_as_it_should() {
        fn add(text: &mut String, command: &mut clap::Command, name: &str) {
            // Options of every command are shown once.
            let hidden = [
                "home",
                "coordinator",
                "token_file",
                "color",
                "quiet",
                "help",
            ];
            let of_all = name == "coordinator";
            let mut shown = command.clone().bin_name(name).term_width(100);
            if !of_all {
                shown = shown.mut_args(|argument| {
                    let hide = hidden.contains(&argument.get_id().as_str());
                    argument.hide(hide)
                });
            }
            let _ = writeln!(text, "==== {name}\n{}", shown.render_long_help());
            for below in command.get_subcommands_mut() {
                let name = format!("{name} {}", below.get_name());
                add(text, below, &name);
            }
        }
        let mut text = String::new();
        add(&mut text, &mut Arguments::command(), "coordinator");
        insta::assert_snapshot!(text);
    }

    #[test]
    fn a_coordinator_elsewhere_needs_a_token() {
        let parse = |arguments: &[&str]| Arguments::try_parse_from(arguments).map(|_| ());
        assert!(parse(&["coordinator", "--coordinator", "h:1", "status"]).is_err());
        assert!(
            parse(&[
                "coordinator",
                "status",
                "--coordinator",
                "h:1",
                "--token-file",
                "t"
            ])
            .is_ok()
        );
    }

    #[test]
    fn run_takes_a_plan_or_resumes() {
        let parse = |arguments: &[&str]| Arguments::try_parse_from(arguments);
        assert!(parse(&["coordinator", "run"]).is_err());
        assert!(parse(&["coordinator", "run", "plan.yaml", "--resume"]).is_err());
        for (arguments, wanted) in [
            (&["coordinator", "run", "--resume"][..], "@last"),
            (&["coordinator", "run", "--resume", "a-1"][..], "a-1"),
        ] {
            match parse(arguments).map(|parsed| parsed.command) {
                Ok(Command::Run(run)) => assert_eq!(run.resume.as_deref(), Some(wanted)),
                other => panic!("{other:?}"),
            }
        }
    }
}
