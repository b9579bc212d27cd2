//! `coordinator restore`.

use std::time::Instant;

use serde_json::json;

use super::arguments::Restore;
use super::backup::{explained, tidy, told};
use super::context::Context;
use super::error::{CliError, Exit, Result};
use super::{logging, show};
use crate::backup::{self, Claim, Error, Restored};

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
    let claim = if options.take_over {
        Claim::Successor
    } else {
        Claim::Copy
    };
    let restored = Box::pin(backup::restore(&from, home, claim))
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
            "takes_over": options.take_over, "allocations": restored.allocations,
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
        if let Some(text) = of_pools(&restored, claim) {
            context.output.say(&text);
        }
        context
            .output
            .say(&format!("start it with: {} serve", context.program));
    }
    Ok(Exit::Success)
}

/// Says what becomes of the allocations of pools, if there were ever any.
fn of_pools(restored: &Restored, claim: Claim) -> Option<String> {
    let count = restored.allocations?;
    Some(match claim {
        Claim::Copy => {
            let known = show::counted(count, "allocation");
            format!(
                "its pools begin with nothing, under a name of their own: {known} that the backup \
                 knew, and all that were started after it, stay with the saved home, and their \
                 workers cannot join here; if that home is gone for good, end what still runs, or \
                 restore with --take-over instead"
            )
        }
        Claim::Successor => "its pools take over what the saved home's have started: what the \
                             backup knew goes on, what was started after it is ended; no coordinator \
                             may run on the saved home any more"
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use coordinator_core::Epoch;

    #[test]
    fn what_becomes_of_allocations_is_said_where_there_ever_were_any() {
        let restored = |allocations| Restored {
            made_at: String::new(),
            figures: backup::Figures::default(),
            epoch: Epoch(1),
            allocations,
        };
        assert_eq!(of_pools(&restored(None), Claim::Copy), None);
        let told = of_pools(&restored(Some(2)), Claim::Copy).unwrap();
        assert!(
            told.contains("2 allocations") && told.contains("--take-over"),
            "{told}"
        );
        let told = of_pools(&restored(Some(0)), Claim::Successor).unwrap();
        assert!(
            told.contains("no coordinator may run on the saved home"),
            "{told}"
        );
    }
}
