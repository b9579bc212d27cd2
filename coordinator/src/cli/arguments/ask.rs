//! Answering agents that ask.

use clap::Args;

/// Show what agents ask and wait for
///
/// An agent asks before it does something that its task does not allow by itself, or when only a
/// person knows. It keeps its slot for an hour, and its time limit stands still; after that the slot
/// is given to others, and an attempt that goes on gets the answer. So it is once all questions of an
/// attempt have taken a day. What nobody answers in 7 days fails its task.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator approvals
  coordinator approvals @last
  coordinator approvals --json")]
pub(crate) struct Approvals {
    /// Run; without it all runs
    #[arg(value_name = "RUN")]
    pub(crate) run: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Say yes to an agent that asks, or choose one of its answers
///
/// Without an option it is allowed this once. Whoever answers a question that has an answer is told
/// what it is and whose.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator approve Q7
  coordinator approve Q7 Q8 --session
  coordinator approve Q9 --choice postgres
  coordinator approve Q9 --text 'the one in tests/db'")]
pub(crate) struct Approve {
    /// Questions, as `coordinator approvals` names them
    #[arg(value_name = "ID", required = true)]
    pub(crate) ids: Vec<String>,
    /// Choose this of the answers that the agent offers, by its id or label
    #[arg(long, value_name = "CHOICE", conflicts_with_all = ["session", "rule"])]
    pub(crate) choice: Option<String>,
    /// Allow it also for the rest of the agent's conversation
    #[arg(long, conflicts_with = "rule")]
    pub(crate) session: bool,
    /// Allow it also whenever the rule that the agent offers fits
    #[arg(long)]
    pub(crate) rule: bool,
    /// Tell the agent this, or answer its question with it
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) text: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Say no to an agent that asks
///
/// The agent is told and goes on without; with `--stop` its turn ends, and its task fails as `denied`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator deny Q7
  coordinator deny Q7 --text 'use the cache instead'
  coordinator deny Q7 --stop")]
pub(crate) struct Deny {
    /// Questions, as `coordinator approvals` names them
    #[arg(value_name = "ID", required = true)]
    pub(crate) ids: Vec<String>,
    /// End the agent's turn too
    #[arg(long)]
    pub(crate) stop: bool,
    /// Tell the agent why
    #[arg(
        long,
        value_name = "WHY",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) text: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
