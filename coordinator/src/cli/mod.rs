//! The command line: one file for each command.
//!
//! Every command is a client of the one operator service, also those of a coordinator in the same
//! process. Data goes to standard output, talk to standard error.

mod activity;
mod approvals;
mod approve;
mod arguments;
mod attention;
mod audit;
mod backup;
mod cancel;
#[cfg(test)]
mod canned;
mod client;
mod codex_par;
mod completions;
mod config;
mod conflicts;
mod context;
#[cfg(test)]
mod deployed;
mod diff;
mod disk_use;
mod doctor;
mod drain;
mod error;
mod explain;
mod fetch;
mod find;
mod follow;
mod interrupt;
mod json;
mod land;
mod logging;
mod logs;
mod plan;
mod pool;
mod repair;
mod restore;
mod retry;
mod run;
mod serve;
mod show;
mod sim;
mod status;
mod submission;
mod submit;
mod summary;
mod table;
mod token;
mod usage;
mod view;
mod watch;
pub mod worker;
mod workers;

use std::io;
use std::process::ExitCode;

use clap::Parser as _;

use arguments::{Arguments, Command};
use context::Context;
use error::{CliError, Exit, Result};

use crate::output::Output;

/// Is the program: reads the arguments, does what they say, and gives the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let printed = error.print();
            // Help that nobody reads to its end is fine.
            let is_told = printed
                .as_ref()
                .err()
                .is_none_or(|error| error.kind() == io::ErrorKind::BrokenPipe);
            return ExitCode::from(match (error.use_stderr(), is_told) {
                (true, _) => 2,
                (false, true) => 0,
                (false, false) => 1,
            });
        }
    };
    let output = Output::of_process(arguments.global.color, arguments.global.quiet);
    let ended = Context::new(&arguments.global, output).and_then(|context| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            // The engine's answers come from its own thread. By default a busy runtime takes only
            // every 61st of its steps from outside, so thousands of watchers would hold up grants.
            .global_queue_interval(3)
            .build()
            .map_err(|error| CliError::internal(error).while_doing("start the runtime"))?;
        let ended = runtime.block_on(dispatch(&context, arguments.command));
        // What still blocks, such as a reader of standard input, must not hold the program.
        runtime.shutdown_background();
        ended
    });
    match ended {
        Ok(exit) => exit.into(),
        Err(error) => {
            error.report(output);
            ExitCode::from(error.kind().code())
        }
    }
}

async fn dispatch(context: &Context, command: Command) -> Result<Exit> {
    match command {
        Command::Run(options) => Box::pin(run::run(context, options)).await,
        Command::Serve(options) => Box::pin(serve::serve(context, options)).await,
        Command::Submit(options) => Box::pin(submit::submit(context, options)).await,
        Command::Status(options) => Box::pin(status::status(context, options)).await,
        Command::Watch(options) => Box::pin(watch::watch(context, options)).await,
        Command::Logs(options) => Box::pin(logs::logs(context, options)).await,
        Command::Diff(options) => Box::pin(diff::diff(context, options)).await,
        Command::Cancel(options) => Box::pin(cancel::cancel(context, options)).await,
        Command::Retry(options) => Box::pin(retry::retry(context, options)).await,
        Command::Explain(options) => Box::pin(explain::explain(context, options)).await,
        Command::Approvals(options) => Box::pin(approvals::approvals(context, options)).await,
        Command::Approve(options) => Box::pin(approve::approve(context, options)).await,
        Command::Deny(options) => Box::pin(approve::deny(context, options)).await,
        Command::Usage(options) => Box::pin(usage::usage(context, options)).await,
        Command::Workers(options) => Box::pin(workers::workers(context, options)).await,
        Command::Drain(options) => Box::pin(drain::drain(context, options)).await,
        Command::Pool(options) => Box::pin(pool::pool(context, options)).await,
        Command::Token(options) => Box::pin(token::token(context, options)).await,
        Command::Fetch(options) => Box::pin(fetch::fetch(context, options)).await,
        Command::Land(options) => Box::pin(land::land(context, options)).await,
        Command::Plan(options) => Box::pin(plan::plan(context, options)).await,
        Command::Audit(options) => Box::pin(audit::audit(context, options)).await,
        Command::Doctor(options) => Box::pin(doctor::doctor(context, options)).await,
        Command::Backup(options) => Box::pin(backup::backup(context, options)).await,
        Command::Restore(options) => Box::pin(restore::restore(context, options)).await,
        Command::Sim(options) => Box::pin(sim::sim(context, options)).await,
        Command::Config(options) => config::config(context, &options),
        Command::Completions(options) => completions::completions(context, &options),
        Command::Tail(options) => Box::pin(codex_par::tail(context, options)).await,
        Command::Clean(options) => codex_par::clean(context, &options),
    }
}
