//! `coordinator serve`.

use std::time::Duration;

use super::arguments::Serve;
use super::context::{Context, Started};
use super::error::{CliError, Exit, Result};
use super::interrupt::Interrupts;
use super::{logging, show};
use crate::app;
use crate::config::Flags;
use crate::pool::local::Parting;

/// How often it is tried to get a home that is in use: a command that reads it holds it for a moment,
/// and one that was just killed until the system has buried it. Neither must keep a service from
/// starting. Tries are counted and not their time, since one that is frozen or sleeps does not try.
const IN_USE_TRIES: usize = 50;
const IN_USE_PAUSE: Duration = Duration::from_millis(100);

pub(crate) async fn serve(context: &Context, options: Serve) -> Result<Exit> {
    let Some(home) = context.local_home() else {
        return Err(CliError::user(
            "`serve` starts a coordinator, so `--coordinator` has no meaning",
        )
        .hint("`--home PATH` says where it keeps its state, and `--listen` where it is reached"));
    };
    let flags = Flags {
        listen: options.listen,
        ..Flags::default()
    };
    let config = context.config(flags)?.config;
    logging::serve(&config.log, context.output.talk_paint);
    let mut interrupts = Interrupts::listen()?;
    let listen = config.listen;
    let mut tries = 0;
    let app = loop {
        tries += 1;
        let started = context.start(app::Mode::Serve, listen, options.slots, config.clone());
        match started.await? {
            Started::Own(app) => break *app,
            Started::InUse { .. } if tries < IN_USE_TRIES => {
                tokio::time::sleep(IN_USE_PAUSE).await;
            }
            Started::InUse { pid } => {
                return Err(context
                    .in_use(pid)
                    .hint("one home has one coordinator: stop that one, or use another `--home`"));
            }
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
                stopped = app.stop(Parting::Keep) => stopped.map_err(|error| context.could_not_go_on(error))?,
                _ = interrupts.next() => return Ok(Exit::Interrupted),
            }
        }
        // It has reasons of its own to end: a commit that could not be made, or `Shutdown`.
        () = app.asked_to_end() => app.stop(Parting::Keep).await.map_err(|error| context.could_not_go_on(error))?,
    }
    Ok(Exit::Success)
}
