//! What an audit has checked and found.

use std::collections::BTreeMap;

use serde::Serialize;

use super::finding::{Code, Finding, Level};
use super::journal::FINDINGS_OF_A_KIND;

/// How much was checked, so that "clean" means something.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Counts {
    pub batches: u64,
    pub events: u64,
    pub snapshots: u64,
    pub runs: u64,
    pub live_runs: u64,
    pub archived: u64,
    pub tasks: u64,
    /// Leases that were ever granted.
    pub leases: u64,
    pub open_leases: u64,
    pub documents: u64,
    pub repositories: u64,
    pub refs: u64,
    /// Commits that count, each of which was found whole.
    pub commits: u64,
    pub transcripts: u64,
    /// Events in transcripts.
    pub agent_events: u64,
    pub transcript_bytes: u64,
    pub workers: u64,
    pub running_workers: u64,
    /// Folders of leases on workers' disks.
    pub worker_leases: u64,
    pub worker_reports: u64,
    pub caches: u64,
    pub files: u64,
}

/// What an audit has checked and found.
#[derive(Debug, Default)]
pub struct Report {
    pub counts: Counts,
    pub findings: Vec<Finding>,
    /// Findings of each kind that were left out since there were too many.
    pub more: BTreeMap<Code, u64>,
    /// Names of all runs, oldest first.
    pub runs: Vec<String>,
    listed: BTreeMap<Code, usize>,
}

impl Report {
    /// Adds a finding.
    pub fn find(&mut self, finding: Finding) {
        let code = finding.code;
        let listed = self.listed.entry(code).or_default();
        // What can be mended is always listed: repairing works from this list.
        if *listed < FINDINGS_OF_A_KIND || finding.repair.is_some() {
            *listed += 1;
            self.findings.push(finding);
        } else {
            *self.more.entry(code).or_default() += 1;
        }
    }

    /// Counts the findings of a level, those left out too.
    #[must_use]
    pub fn count(&self, level: Level) -> u64 {
        let listed = self
            .findings
            .iter()
            .filter(|found| found.code.level() == level);
        let more = self.more.iter().filter(|(code, _)| code.level() == level);
        listed.count() as u64 + more.map(|(_, count)| count).sum::<u64>()
    }

    /// Tells whether nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.count(Level::Damage) == 0 && self.count(Level::Leftover) == 0
    }

    /// Keeps only what is about a run, or about the journal as a whole.
    pub fn keep_run(&mut self, run: &str) {
        self.findings.retain(|found| match &found.place.run {
            Some(of) => of == run,
            None => found.place.batch.is_some() || found.code == Code::JournalUnreadable,
        });
        self.more.clear();
    }

    /// Keeps only what another look has found too.
    pub fn keep_common(&mut self, other: &Self) {
        self.findings
            .retain(|found| other.findings.iter().any(|again| again.is_same(found)));
        self.more.retain(|code, _| other.more.contains_key(code));
    }
}
