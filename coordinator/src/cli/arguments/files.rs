//! Plan files, the configuration file and completions.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::values;

/// Check and draw plans; of files it needs no coordinator, and stores nothing
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator plan check plan.yaml
  coordinator plan graph plan.yaml
  coordinator plan schema > plan.schema.json")]
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
    /// Print what a plan can say, key by key, as Markdown
    #[command(after_long_help = "\
Examples:
  coordinator plan reference > plans.md")]
    Reference,
    Graph(PlanGraph),
}

#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator plan check plan.yaml
  coordinator plan check plan.yaml --json | jq -r '.problems[].message'")]
pub(crate) struct PlanCheck {
    /// Plan file
    #[arg(value_name = "PLAN")]
    pub(crate) plan: PathBuf,
    /// Print JSON: whether it is right, and the problems with their places
    #[arg(long)]
    pub(crate) json: bool,
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
  coordinator plan graph --run @last       with the states of the last run")]
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

/// Check the configuration and show each value and where it came from
///
/// The file is `config.toml` in the home. Variables of the environment win over it, and options of
/// the command line over both.
#[derive(Debug, Args)]
#[command(after_long_help = "\
All keys of the file, with their defaults:
  listen = \"127.0.0.1:7733\"   # where `serve` listens
  slots = 8                    # attempts at once of `run`; the cores
  log = \"info\"                 # what the log holds
  lease-ttl = \"1m\"             # life of a lease without a heartbeat
  lease-grace = \"15s\"          # after that, until its work is given away
  heartbeat-interval = \"10s\"   # at most a third of lease-ttl

  [agents.big-codex]            # agents that every plan may name
  kind = \"codex\"                # command, codex, claude or acp
  command = [\"codex\", \"--profile\", \"big\"]

Variables: MUSTER_LISTEN, MUSTER_SLOTS, MUSTER_LOG, MUSTER_LEASE_TTL,
MUSTER_LEASE_GRACE, MUSTER_HEARTBEAT_INTERVAL, and MUSTER_HOME for the home.

Examples:
  coordinator config check")]
pub(crate) struct Config {
    #[command(subcommand)]
    pub(crate) command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Check the configuration and show each value and where it came from
    #[command(after_long_help = "\
Examples:
  coordinator config check
  coordinator config check --json | jq '.values[] | select(.from != \"default\")'
  coordinator config check --slots 4     as `run --slots 4` would see it")]
    Check {
        /// As `serve --listen` would see it
        #[arg(long, value_name = "ADDR", value_parser = values::listen)]
        listen: Option<SocketAddr>,
        /// As `run --slots` would see it
        #[arg(long, value_name = "N", value_parser = values::slots)]
        slots: Option<u32>,
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
