//! What can be typed. The texts are the manual, so they are written for a newcomer.

mod ask;
mod begin;
mod files;
mod fleet;
mod keep;
mod look;
mod pool;
mod steer;
mod values;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub(crate) use ask::{Approvals, Approve, Deny};
pub(crate) use begin::{Run, Serve, Submit};
pub(crate) use files::{
    Completions, Config, ConfigCommand, GraphFormat, Plan, PlanCommand, PlanGraph,
};
pub(crate) use fleet::{
    Drain, RoleName, Token, TokenCommand, TokenCreate, TokenList, TokenRevoke, Workers,
};
pub(crate) use keep::{Audit, Backup, Doctor, Restore};
pub(crate) use look::{Clean, Diff, Explain, Logs, RawWhich, Status, Tail, Usage, UsageBy, Watch};
pub(crate) use pool::{Pool, PoolCommand, PoolForget, PoolId, PoolPause, PoolResume};
pub(crate) use steer::{Cancel, Fetch, Land, Retry};

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
    2  wrong usage, a wrong plan, or what cannot be done as things are
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
    max_term_width = 80
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
    Approvals(Approvals),
    Approve(Approve),
    Deny(Deny),
    Usage(Usage),
    Cancel(Cancel),
    Retry(Retry),
    Fetch(Fetch),
    Land(Land),
    Workers(Workers),
    Drain(Drain),
    Pool(Pool),
    Token(Token),
    Plan(Plan),
    Audit(Audit),
    Doctor(Doctor),
    Backup(Backup),
    Restore(Restore),
    Sim(super::sim::Sim),
    Config(Config),
    Completions(Completions),
    Tail(Tail),
    Clean(Clean),
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

    /// Every command with its full name.
    fn all(command: &clap::Command, name: &str, out: &mut Vec<(String, clap::Command)>) {
        out.push((name.to_owned(), command.clone()));
        for below in command.get_subcommands() {
            if below.get_name() != "help" {
                all(below, &format!("{name} {}", below.get_name()), out);
            }
        }
    }

    #[test]
    fn no_line_of_any_help_is_wider_than_a_terminal() {
        let mut commands = vec![];
        all(&Arguments::command(), "coordinator", &mut commands);
        for (name, command) in commands {
            let mut command = command.bin_name(&name).term_width(80);
            for help in [command.render_help(), command.render_long_help()] {
                for line in help.to_string().lines() {
                    assert!(line.chars().count() <= 80, "{name}: {line}");
                }
            }
            // A line of an example that is wrapped is none that can be typed.
            let after = command.get_after_long_help().map(ToString::to_string);
            for line in after.unwrap_or_default().lines() {
                assert!(line.chars().count() <= 80, "{name}: {line}");
            }
        }
    }

    #[test]
    fn every_command_has_examples_and_all_of_them_can_be_typed() {
        let mut commands = vec![];
        all(&Arguments::command(), "coordinator", &mut commands);
        for (name, command) in commands {
            let after = command.get_after_long_help().map(ToString::to_string);
            let after = after.unwrap_or_default();
            let examples: Vec<&str> = after
                .lines()
                .filter_map(|line| {
                    let starts = ["  coordinator ", "(coordinator "];
                    let at = starts.iter().find_map(|start| line.find(start))?;
                    Some(line[at..].trim_start_matches([' ', '(']))
                })
                .collect();
            assert!(!examples.is_empty(), "{name} has no example");
            for example in examples {
                // What follows two spaces, or a pipe, is no part of it.
                let typed = example.split("  ").next().unwrap();
                let typed = typed.split(['|', '>', ')']).next().unwrap();
                let words = typed.replace("$(date +%F", "today").replace('"', "");
                let parsed = Arguments::try_parse_from(words.split_whitespace());
                if let Err(error) = parsed {
                    panic!("{name}: {example}: {error}");
                }
            }
        }
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
