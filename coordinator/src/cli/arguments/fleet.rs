//! Workers, and the tokens that let them and people in.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// List the workers and what they do
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator workers
  coordinator workers --json | jq -r '.workers[].worker'")]
pub(crate) struct Workers {
    /// List those too that went with their machines or jobs in the last day; JSON has them always
    #[arg(long)]
    pub(crate) all: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Let a worker finish what it holds and give it nothing new
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator drain laptop-0
  coordinator drain laptop-0 --undo      give it work again")]
pub(crate) struct Drain {
    /// Worker, as `coordinator workers` names it
    #[arg(value_name = "WORKER")]
    pub(crate) worker: String,
    /// Give it work again
    #[arg(long)]
    pub(crate) undo: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Make, list and revoke the tokens that workers and people prove themselves with
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator token create --role worker --out worker.token
  coordinator token list
  coordinator token revoke 0123456789abcdef")]
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
  coordinator token create --role operator --valid-for 90d --out alice.token")]
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
#[command(after_long_help = "\
Examples:
  coordinator token list
  coordinator token list --json | jq '.tokens[] | select(.revoked | not)'")]
pub(crate) struct TokenList {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Make a token worthless from now on
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator token revoke 0123456789abcdef")]
pub(crate) struct TokenRevoke {
    /// Id, as `coordinator token list` shows it
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
