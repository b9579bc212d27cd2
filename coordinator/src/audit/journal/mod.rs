//! The journal against itself: rows, numbers, replay, snapshots, archive and task documents.

mod archive;
mod rows;
mod walk;

use std::collections::BTreeMap;
use std::path::Path;

use coordinator_core::event::Work;
use coordinator_core::state::{Run, RunImage};
use coordinator_core::{Epoch, Event, LeaseId, RunId, State, invariants};

use super::finding::{Code, Finding, Place};
use super::ledger::{Lease, Ledger};
use super::report::Report;
use crate::causes::chain;
use crate::store::sqlite::inspect::{Beside, Inspector};
use crate::store::{self, BatchSeq, Snapshot};

/// Findings of one kind after which the rest is only counted: a file that is torn to pieces gives
/// no better picture by a million lines.
pub(super) const FINDINGS_OF_A_KIND: usize = 100;

/// What the journal and the archive say, for the checks of everything else.
pub(crate) struct Facts {
    /// Every run by its name; of a live one as it is now, of an archived one as it ended.
    pub runs: BTreeMap<String, Known>,
    pub leases: BTreeMap<LeaseId, Lease>,
    ledger: Ledger,
    /// Nothing is missing, so what is not here is not known to Muster.
    pub is_complete: bool,
}

/// A run that the journal or the archive knows.
pub(crate) struct Known {
    pub run: Run,
    /// Not (or not any more) in the archive.
    pub is_live: bool,
}

impl Facts {
    /// Names where the work of a lease is.
    #[must_use]
    pub(super) fn place(&self, id: LeaseId) -> Place {
        match self.leases.get(&id) {
            Some(lease) => self.ledger.place_of(lease.run, lease.work).of_lease(id.0),
            None => Place::default().of_lease(id.0),
        }
    }

    /// Gives the names of the run and task (if any) that a lease is for.
    #[must_use]
    pub(super) fn names(&self, lease: &Lease) -> (String, Option<String>) {
        let place = self.ledger.place_of(lease.run, lease.work);
        (place.run.unwrap_or_default(), place.task)
    }
}

/// Checks a journal; `None` if it cannot be read far enough to judge anything else by it.
pub(crate) fn check(path: &Path, beside: Beside, report: &mut Report) -> Option<Facts> {
    let opened = Inspector::open(path, beside);
    let result = opened.and_then(|inspector| {
        let complaints = inspector.complaints()?;
        for complaint in complaints {
            report.find(Finding::new(
                Code::JournalDamaged,
                Place::file(path),
                complaint,
            ));
        }
        Check::new(&inspector, report)?.run()
    });
    match result {
        Ok(facts) => Some(facts),
        Err(error) => {
            let what = chain(&error);
            report.find(Finding::new(
                Code::JournalUnreadable,
                Place::file(path),
                what,
            ));
            None
        }
    }
}

struct Check<'a> {
    inspector: &'a Inspector,
    report: &'a mut Report,
    ledger: Ledger,
    claimed: Epoch,
    /// Snapshots that can be read and count, oldest first.
    snapshots: Vec<Snapshot>,
    /// Snapshots that count and cannot be read.
    damaged: Vec<(BatchSeq, String)>,
    archive: BTreeMap<RunId, RunImage>,
    /// Archived runs that cannot be read or contradict themselves.
    unsound: BTreeMap<RunId, (Place, String)>,
    /// Events that the histories hold, for the comparison with the journal's.
    digests: BTreeMap<RunId, Vec<u64>>,
    is_complete: bool,
}

impl<'a> Check<'a> {
    fn new(inspector: &'a Inspector, report: &'a mut Report) -> Result<Self, store::Error> {
        Ok(Self {
            claimed: inspector.epoch()?,
            inspector,
            report,
            ledger: Ledger::default(),
            snapshots: Vec::new(),
            damaged: Vec::new(),
            archive: BTreeMap::new(),
            unsound: BTreeMap::new(),
            digests: BTreeMap::new(),
            is_complete: true,
        })
    }

    fn run(mut self) -> Result<Facts, store::Error> {
        self.histories()?;
        self.read_snapshots()?;
        self.read_archive()?;
        let walk = self.journal()?;
        self.compare_archive(&walk);
        self.report.findings.append(&mut self.ledger.findings);
        let mut runs: BTreeMap<String, Known> = BTreeMap::new();
        for (_, RunImage { run }) in std::mem::take(&mut self.archive) {
            let is_live = false;
            runs.insert(run.name.to_string(), Known { run, is_live });
        }
        match &walk.state {
            Some(state) => {
                self.judge_state(state);
                for run in state.runs() {
                    let known = Known {
                        run: run.clone(),
                        is_live: true,
                    };
                    runs.insert(run.name.to_string(), known);
                }
            }
            None => self.is_complete = false,
        }
        self.documents(&runs)?;
        let names = self
            .ledger
            .runs
            .values()
            .map(|entry| entry.name.to_string());
        self.report.runs = names.collect();
        self.report.counts.runs = self.ledger.runs.len() as u64;
        self.report.counts.events = self.ledger.events;
        self.report.counts.leases = self.ledger.leases.len() as u64;
        let tasks = self
            .ledger
            .runs
            .values()
            .map(|entry| entry.tasks.len() as u64);
        self.report.counts.tasks = tasks.sum();
        let leases = self.ledger.leases.clone();
        Ok(Facts {
            runs,
            leases,
            ledger: self.ledger,
            is_complete: self.is_complete,
        })
    }

    /// Notes something that is wrong with what is kept itself, so that what is not there may have
    /// been lost.
    fn lost(&mut self, finding: Finding) {
        self.is_complete = false;
        self.report.find(finding);
    }

    fn judge_state(&mut self, state: &State) {
        if let Err(what) = invariants::check(state) {
            self.report
                .find(Finding::new(Code::InvariantBroken, Place::default(), what));
        }
        for (id, lease) in &self.ledger.leases {
            let broken = self
                .ledger
                .runs
                .get(&lease.run)
                .is_none_or(|entry| entry.is_broken);
            if !lease.is_closed && !broken && state.lease(*id).is_none() {
                let place = self.ledger.place_of(lease.run, lease.work).of_lease(id.0);
                let what = "it was granted and not closed, and is not open";
                self.report
                    .find(Finding::new(Code::LeaseWithoutEnd, place, what));
            }
        }
        self.report.counts.open_leases = state.leases().len() as u64;
        self.report.counts.live_runs = state.runs().len() as u64;
    }
}

/// A number that two different events hardly share; never zero.
fn digest(event: &Event) -> u64 {
    let text = store::form::event_json(event).unwrap_or_default();
    let hash = blake3::hash(text.as_bytes());
    let first = hash.as_bytes().first_chunk::<8>().copied();
    u64::from_le_bytes(first.unwrap_or_default()).max(1)
}

/// Tells which transcript a lease's work writes to.
#[must_use]
pub(super) fn transcript_name(work: Work, lease: LeaseId) -> String {
    match work {
        Work::Attempt { attempt, .. } => format!("attempt-{attempt}-{lease}.events"),
        Work::Verify { attempt, .. } => format!("verify-{attempt}-{lease}.events"),
        Work::FinalVerify => format!("final-verify-{lease}.events"),
    }
}
