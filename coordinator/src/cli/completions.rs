//! `coordinator completions`.

use clap::CommandFactory as _;

use super::arguments::{Arguments, Completions};
use super::context::Context;
use super::error::{Exit, Result};

pub(crate) fn completions(context: &Context, options: &Completions) -> Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(
        options.shell,
        &mut Arguments::command(),
        "coordinator",
        &mut script,
    );
    context.output.bytes(&script)?;
    Ok(Exit::Success)
}
