//! The ledger of usage: one row for each usage event of the transcripts, and no other.

use std::path::{Path, PathBuf};

use coordinator_core::LeaseId;

use super::finding::{Code, Finding, Place, Repair};
use super::report::Report;
use crate::causes::chain;
use crate::ledger::{self, Beside, Checker, Entry};
use crate::store::sqlite::inspect;

/// The ledger while it is compared with transcripts.
pub(super) struct Ledger {
    path: PathBuf,
    checker: Option<Checker>,
    differing: u64,
    /// Where it differs first.
    first: Option<(Place, String)>,
}

impl Ledger {
    /// Opens it as it is now. That there is none is no finding: the next start makes it.
    pub(super) fn open(home: &Path, beside: inspect::Beside, report: &mut Report) -> Self {
        let beside = match beside {
            inspect::Beside::Nobody => Beside::Nobody,
            inspect::Beside::Coordinator => Beside::Writer,
        };
        let mut ledger = Self {
            path: home.join(ledger::FILE_NAME),
            checker: None,
            differing: 0,
            first: None,
        };
        match Checker::open(home, beside) {
            Ok(checker) => ledger.checker = checker,
            Err(error) => ledger.unreadable(&error, report),
        }
        ledger
    }

    /// Compares it with a transcript, at `below` the transcripts' folder.
    pub(super) fn compare(
        &mut self,
        (lease, below): (LeaseId, &Path),
        entries: &[Entry],
        place: &Place,
        report: &mut Report,
    ) {
        let Some(checker) = &mut self.checker else {
            return;
        };
        match checker.compare(lease, below, entries) {
            Ok(None) => {}
            Ok(Some(number)) => {
                self.differs(place.clone(), &format!("it differs at event {number}"));
            }
            Err(error) => {
                self.checker = None;
                self.unreadable(&error, report);
            }
        }
    }

    /// Leaves out a transcript that has a finding of its own.
    pub(super) fn skip(&mut self, lease: LeaseId) {
        if let Some(checker) = &mut self.checker {
            checker.skip(lease);
        }
    }

    /// Says what was found, in one finding: there is one way to mend all of it.
    pub(super) fn finish(mut self, report: &mut Report) {
        let without = self
            .checker
            .take()
            .map(|checker| checker.without_transcript());
        match without.unwrap_or_else(|| Ok(Vec::new())) {
            Ok(leases) => {
                for lease in leases {
                    let place = Place::default().of_lease(lease.0);
                    self.differs(place, "it has rows of a lease without a transcript");
                }
            }
            Err(error) => self.unreadable(&error, report),
        }
        if let Some((place, what)) = self.first {
            let what = match self.differing - 1 {
                0 => what,
                more => format!("{what}, and {more} more leases differ"),
            };
            let finding = Finding::new(Code::UsageDiffers, place.at_file(&self.path), what);
            report.find(finding.mended_by(Repair::RebuildUsage));
        }
    }

    fn differs(&mut self, place: Place, what: &str) {
        self.differing += 1;
        self.first.get_or_insert_with(|| (place, what.to_owned()));
    }

    fn unreadable(&self, error: &ledger::Error, report: &mut Report) {
        let place = Place::file(&self.path);
        let finding = Finding::new(Code::UsageUnreadable, place, chain(error));
        report.find(finding.mended_by(Repair::RebuildUsage));
    }
}
