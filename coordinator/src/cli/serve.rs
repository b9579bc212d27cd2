//! `coordinator serve`.

use super::arguments::Serve;
use super::context::{Context, Started};
use super::error::{CliError, Exit, Result};
use super::interrupt::Interrupts;
use super::{logging, run, show};
use crate::app;
use crate::config::Flags;
use crate::pool::local::Parting;

pub(crate) async fn serve(context: &Context, options: Serve) -> Result<Exit> {
    let Some(home) = context.local_home() else {
        return Err(CliError::user(
            "`serve` starts a coordinator, so `--coordinator` has no meaning",
        ));
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
    let started = context
        .start(home, app::Mode::Serve, listen, options.slots, config)
        .await?;
    let app = match started {
        Started::Own(app) => *app,
        Started::InUse { pid } => {
            let process = pid
                .map(|pid| format!(" (process {pid})"))
                .unwrap_or_default();
            let home = home.display();
            return Err(
                CliError::user(format!("another coordinator{process} uses {home}"))
                    .hint("one home has one coordinator: stop that one, or use another `--home`"),
            );
        }
    };
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
                stopped = app.stop(Parting::Keep) => stopped.map_err(CliError::internal)?,
                _ = interrupts.next() => return Ok(Exit::Interrupted),
            }
        }
        // It has reasons of its own to end: a commit that could not be made, or `Shutdown`.
        () = app.asked_to_end() => app.stop(Parting::Keep).await.map_err(CliError::internal)?,
    }
    Ok(Exit::Success)
}
