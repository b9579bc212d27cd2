//! Opens a copy of a home and reads all of it, as a coordinator and its users would.

use std::collections::BTreeMap;
use std::path::Path;

use coordinator_core::state::Run;
use muster_git::Git;

use super::promises::Promises;
use super::{Error, Figures, repository};
use crate::app::JOURNAL;
use crate::engine;
use crate::git::repository as hosted;
use crate::store::sqlite::{self, SqliteStore};
use crate::store::{Reader, Store as _};

/// What the journal of a copy says.
pub(super) struct Journal {
    pub(super) promises: BTreeMap<String, Promises>,
    pub(super) figures: Figures,
}

/// Reads the whole journal: every page, all batches behind the newest snapshot, every event of
/// every run, and every archived run.
pub(super) fn journal(home: &Path) -> Result<Journal, Error> {
    let path = home.join(JOURNAL);
    sqlite::check(&path)?;
    let mut store = SqliteStore::open(&path)?;
    let loaded = store.load()?;
    let (state, _) = engine::rebuild(&mut store, &loaded)?;
    let mut reader = store.reader()?;
    let mut promises = BTreeMap::new();
    for run in state.runs() {
        history(&mut *reader, run)?;
        Promises::add(&mut promises, run);
    }
    let archived = store.archived_ids()?;
    for id in &archived {
        // A live run was reloaded since; the state has the later word.
        if let (Some(image), None) = (reader.archived_image(*id)?, state.run(*id)) {
            history(&mut *reader, &image.run)?;
            Promises::add(&mut promises, &image.run);
        }
    }
    let figures = Figures {
        epoch: loaded.epoch.0,
        last_batch: loaded.next.0.saturating_sub(1),
        live_runs: state.runs().len(),
        archived_runs: archived.len(),
        ..Figures::default()
    };
    Ok(Journal { promises, figures })
}

/// Reads a run's events from the first to the last.
fn history(reader: &mut dyn Reader, run: &Run) -> Result<(), Error> {
    let mut last = 0;
    loop {
        let events = reader.run_events(run.id, last + 1, usize::MAX)?;
        let follow = events
            .iter()
            .zip(last + 1..)
            .all(|(event, wanted)| event.seq == wanted);
        match events.last() {
            Some(event) if follow => last = event.seq,
            _ if last >= run.last_seq && events.is_empty() => return Ok(()),
            _ => {
                return Err(Error::History {
                    run: run.name.to_string(),
                    last,
                    wanted: run.last_seq,
                });
            }
        }
    }
}

/// Checks that all that the journal promises is in the repositories; gives how many commits.
pub(super) async fn repositories(
    git: &Git,
    home: &Path,
    promises: &BTreeMap<String, Promises>,
) -> Result<usize, Error> {
    let mut commits = 0;
    let nothing = Promises::default();
    for name in repository::list(home)? {
        let path = hosted::folder(home).join(format!("{name}.git"));
        let promises = promises.get(&name).unwrap_or(&nothing);
        commits += repository::check(git, &path, &name, promises).await?;
    }
    Ok(commits)
}
