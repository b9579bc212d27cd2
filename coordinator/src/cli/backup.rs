//! `coordinator backup`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;

use super::arguments::Backup;
use super::context::Context;
use super::error::{CliError, Exit, Kind, Result};
use super::logging;
use crate::backup::{self, Error, Figures};

pub(crate) async fn backup(context: &Context, options: Backup) -> Result<Exit> {
    logging::client(context.output.talk_paint);
    let Some(home) = context.local_home() else {
        return Err(CliError::user(
            "`backup` reads the files of a home, so `--coordinator` has no meaning",
        )
        .hint("run it on the coordinator's machine, with `--home`"));
    };
    let destination = std::path::absolute(&options.destination).map_err(CliError::internal)?;
    let begun = Instant::now();
    let removed = tidy(context, &destination, options.json)?;
    let figures = Box::pin(backup::make(home, &destination))
        .await
        .map_err(|error| {
            let unsound = matches!(error, Error::Unsound { .. });
            let error = explained(error).while_doing(format!("back up {}", home.display()));
            if unsound {
                error.hint(
                    "`coordinator audit` shows all that is wrong, `coordinator doctor --repair` \
                     mends what can be mended; copy the home as it is if you need the rest",
                )
            } else {
                error
            }
        })?;
    let seconds = begun.elapsed().as_secs_f64();
    if options.json {
        context.output.json(&json!({
            "backup": destination, "seconds": seconds, "figures": figures,
            "removed": removed,
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

/// Removes what a killed backup or restore has left beside a folder, and says so.
pub(super) fn tidy(context: &Context, folder: &Path, as_json: bool) -> Result<Vec<PathBuf>> {
    let removed = backup::tidy(folder).map_err(explained)?;
    for path in removed.iter().filter(|_| !as_json) {
        context.output.say(&format!(
            "removed {}: a backup or restore that was killed had left it, with secrets in it",
            path.display()
        ));
    }
    Ok(removed)
}

/// Says what a backup holds.
pub(super) fn told(figures: &Figures) -> String {
    let damaged = match figures.damaged_transcripts {
        0 => String::new(),
        count => format!(" ({count} damaged, saved as they are: see `coordinator audit`)"),
    };
    format!(
        "journal up to batch {}; runs: {} live, {} archived; transcripts: {}{damaged}; repositories: \
         {} with {} refs and {} accepted commits; {} files, {} bytes",
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
        | Error::Unsound { .. }
        | Error::Store(_)
        | Error::Replay(_)
        | Error::Git(_)
        | Error::Io { .. } => Kind::Internal,
    };
    CliError::new(kind, error)
}
