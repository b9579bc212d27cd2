//! Opens a copy of a home and judges all of it as an audit does, by the same checks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use coordinator_core::{AllocationId, LeaseId};
use muster_git::Git;

use super::promises::Promises;
use super::{Error, Figures};
use crate::app::JOURNAL;
use crate::audit::journal::{self, Facts};
use crate::audit::{Depth, Finding, Level, Report, refs};
use crate::engine;
use crate::store::Store as _;
use crate::store::sqlite::inspect::Beside;
use crate::store::sqlite::{self, SqliteStore};

/// What the journal of a copy says.
pub(super) struct Journal {
    pub(super) promises: BTreeMap<String, Promises>,
    pub(super) figures: Figures,
    pub(super) facts: Facts,
    /// The largest id of a run, lease or question that it gives or has given.
    pub(super) last_id: u64,
    /// How many allocations it has; `None` when there never was one.
    pub(super) allocations: Option<usize>,
}

impl Journal {
    /// Tells whether a lease was granted before the journal was copied.
    pub(super) fn knows(&self, lease: LeaseId) -> bool {
        self.facts.leases.contains_key(&lease)
    }
}

/// Reads the whole journal: as a coordinator that starts, and as an audit, which counts again
/// whatever follows from the rows: index, epochs, histories, snapshots, archive and documents.
pub(super) fn journal(home: &Path) -> Result<Journal, Error> {
    let path = home.join(JOURNAL);
    sqlite::check(&path)?;
    let mut store = SqliteStore::open(&path)?;
    let loaded = store.load()?;
    let (state, _) = engine::rebuild(&mut store, &loaded)?;
    let archived = store.archived_ids()?.len();
    drop(store);
    let mut report = Report::default();
    let facts = journal::check(&path, Beside::Nobody, &mut report);
    let facts = match facts {
        Some(facts) => insist(&report, |_| true).map(|()| facts)?,
        None => return Err(unsound(&report.findings.iter().collect::<Vec<_>>())),
    };
    let mut promises = BTreeMap::new();
    for known in facts.runs.values() {
        Promises::add(&mut promises, &known.run);
    }
    let image = state.image();
    let ids = [image.next_run.0, image.next_lease.0, image.next_question.0];
    let figures = Figures {
        epoch: loaded.epoch.0,
        last_batch: loaded.next.0.saturating_sub(1),
        live_runs: state.runs().len(),
        archived_runs: archived,
        ..Figures::default()
    };
    Ok(Journal {
        promises,
        figures,
        facts,
        allocations: (image.next_allocation > AllocationId(1)).then(|| state.allocations().len()),
        last_id: ids.into_iter().max().unwrap_or_default(),
    })
}

/// Checks that all that the journal promises is in the repositories, and that these lack nothing;
/// gives how many commits were looked for.
pub(super) async fn repositories(
    git: &Git,
    home: &Path,
    journal: &Journal,
) -> Result<usize, Error> {
    let mut report = Report::default();
    refs::check(git, home, Depth::Connectivity, &journal.facts, &mut report).await;
    // A ref that is not as it should be is mended from the journal as long as its commit is there.
    insist(&report, |found| found.repair.is_none())?;
    let of = |promises: &Promises| promises.commits.keys().cloned().collect::<BTreeSet<_>>();
    Ok(journal
        .promises
        .values()
        .map(|promises| of(promises).len())
        .sum())
}

/// Refuses what an audit has found damaged.
fn insist(report: &Report, counts: impl Fn(&Finding) -> bool) -> Result<(), Error> {
    let damage = |found: &&Finding| found.code.level() == Level::Damage && counts(found);
    let damage: Vec<&Finding> = report.findings.iter().filter(damage).collect();
    match damage.is_empty() {
        true => Ok(()),
        false => Err(unsound(&damage)),
    }
}

fn unsound(findings: &[&Finding]) -> Error {
    let first = findings.first();
    Error::Unsound {
        code: first.map_or("nothing", |found| found.code.as_str()),
        place: first
            .map(|found| found.place.to_string())
            .unwrap_or_default(),
        what: first.map(|found| found.what.clone()).unwrap_or_default(),
        more: findings.len().saturating_sub(1),
    }
}
