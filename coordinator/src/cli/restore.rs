//! `coordinator restore`.

use std::time::Instant;

use serde_json::json;

use super::arguments::Restore;
use super::backup::{explained, tidy, told};
use super::context::Context;
use super::error::{CliError, Exit, Result};
use super::logging;
use crate::backup::{self, Error};

pub(crate) async fn restore(context: &Context, options: Restore) -> Result<Exit> {
    logging::client(context.output.talk_paint);
    let Some(home) = context.local_home() else {
        return Err(CliError::user(
            "`restore` writes the files of a home, so `--coordinator` has no meaning",
        )
        .hint("run it on the machine that shall run the coordinator, with `--home`"));
    };
    let from = std::path::absolute(&options.from).map_err(CliError::internal)?;
    let begun = Instant::now();
    let removed = tidy(context, home, options.json)?;
    let restored = Box::pin(backup::restore(&from, home))
        .await
        .map_err(|error| {
            let damaged = matches!(error, Error::Damaged { .. });
            let taken = matches!(error, Error::NotEmpty(_) | Error::InUse { .. });
            let error = explained(error).while_doing(format!("restore {}", from.display()));
            if taken {
                error.hint("name a new home with `--home PATH`, or move the old one away first")
            } else if damaged {
                error.hint("nothing was written; use another backup")
            } else {
                error
            }
        })?;
    let seconds = begun.elapsed().as_secs_f64();
    if options.json {
        context.output.json(&json!({
            "home": home, "seconds": seconds, "made_at": restored.made_at,
            "epoch": restored.epoch.0, "figures": restored.figures, "removed": removed,
        }))?;
    } else {
        context.output.say(&format!(
            "restored and verified in {seconds:.1} s: {}\n{}",
            home.display(),
            told(&restored.figures)
        ));
        context.output.say(&format!(
            "it goes on from {}: what was accepted later is done again, tokens revoked later are \
             valid again, and later output comes again only from workers that still hold its lease",
            restored.made_at
        ));
        context
            .output
            .say(&format!("start it with: {} serve", context.program));
    }
    Ok(Exit::Success)
}
