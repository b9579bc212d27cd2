//! `coordinator serve`.

use super::arguments::Serve;
use super::context::Context;
use super::error::{CliError, Exit, Result};
use super::interrupt::Interrupts;
use super::{logging, run, show};
use crate::app::{self, App};
use crate::config::Flags;

pub(crate) async fn serve(context: &Context, options: Serve) -> Result<Exit> {
    let Some(home) = context.local_home() else {
        return Err(CliError::user("`serve` starts a coordinator, so `--coordinator` has no meaning"));
    };
    let flags = Flags {
        listen: options.listen,
        ..Flags::default()
    };
    let config = context.config(flags)?.config;
    logging::serve(&config.log);
    let mut interrupts = Interrupts::listen()?;
    run::make_home(home)?;
    let listen = config.listen;
    let app = App::start(app::Options {
        home: home.to_owned(),
        listen,
        mode: app::Mode::Serve,
        local_slots: options.slots,
        config,
    })
    .await
    .map_err(|error| {
        let in_use = matches!(error, app::Error::HomeInUse { .. });
        let what = format!("start a coordinator on {}", home.display());
        let error = CliError::internal(error).while_doing(what);
        if in_use {
            error.hint("one home has one coordinator; stop that one, or use another `--home`")
        } else {
            error.hint("`coordinator doctor` checks this machine")
        }
    })?;
    context.output.say(&format!(
        "listening at {} with the home {}{}",
        app.address(),
        home.display(),
        match options.slots {
            0 => String::new(),
            slots => format!(", {}", show::counted(slots as usize, "local slot")),
        }
    ));
    tokio::select! {
        _ = interrupts.next() => {
            context.output.say("stopping; workers keep what they do");
            // A second signal does not wait for anybody.
            tokio::select! {
                stopped = app.stop() => stopped.map_err(CliError::internal)?,
                _ = interrupts.next() => return Ok(Exit::Interrupted),
            }
        }
        // It has reasons of its own to end: a commit that could not be made, or `Shutdown`.
        () = app.finished() => app.stop().await.map_err(CliError::internal)?,
    }
    Ok(Exit::Success)
}
