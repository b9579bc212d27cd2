//! `coordinator backup`.

use std::time::Instant;

use serde_json::json;

use super::arguments::Backup;
use super::context::Context;
use super::error::{CliError, Exit, Kind, Result};
use super::logging;
use crate::backup::{self, Error, Figures};

pub(crate) async fn backup(context: &Context, options: Backup) -> Result<Exit> {
    logging::client();
    let Some(home) = context.local_home() else {
        return Err(CliError::user(
            "`backup` reads the files of a home, so `--coordinator` has no meaning",
        )
        .hint("run it on the coordinator's machine, with `--home`"));
    };
    let destination = std::path::absolute(&options.destination).map_err(CliError::internal)?;
    let begun = Instant::now();
    let figures = Box::pin(backup::make(home, &destination))
        .await
        .map_err(|error| explained(error).while_doing(format!("back up {}", home.display())))?;
    let seconds = begun.elapsed().as_secs_f64();
    if options.json {
        context.output.json(&json!({
            "backup": destination, "seconds": seconds, "figures": figures,
        }))?;
    } else {
        context.output.say(&format!(
            "saved and verified in {seconds:.1} s: {}\n{}",
            destination.display(),
            told(&figures)
        ));
    }
    Ok(Exit::Success)
}

/// Says what a backup holds.
pub(super) fn told(figures: &Figures) -> String {
    format!(
        "journal up to batch {}; runs: {} live, {} archived; transcripts: {}; repositories: {} with \
         {} refs and {} accepted commits; {} files, {} bytes",
        figures.last_batch,
        figures.live_runs,
        figures.archived_runs,
        figures.transcripts,
        figures.repositories,
        figures.refs,
        figures.commits,
        figures.files,
        figures.bytes,
    )
}

/// Gives an error the kind of who can help.
pub(super) fn explained(error: Error) -> CliError {
    let kind = match &error {
        Error::NoHome(_)
        | Error::NotEmpty(_)
        | Error::Inside { .. }
        | Error::Link(_)
        | Error::MountPoint(_)
        | Error::InUse { .. }
        | Error::Foreign(_)
        | Error::NewerFormat { .. }
        | Error::Damaged { .. }
        | Error::Store(crate::store::Error::NewerFormat { .. }) => Kind::User,
        Error::MissingCommit { .. }
        | Error::Disconnected { .. }
        | Error::History { .. }
        | Error::Store(_)
        | Error::Replay(_)
        | Error::Git(_)
        | Error::Io { .. } => Kind::Internal,
    };
    CliError::new(kind, error)
}
