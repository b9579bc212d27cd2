//! Workers' disks against the journal: what they hold, have not said, and have left.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use coordinator_core::LeaseId;
use coordinator_core::event::Work;
use muster_connect::{CaCertificate, Fingerprint};
use muster_git::{Git, Repository};
use muster_proto::v1::Grant;
use worker_agent::inspect::{self, Lease, Records, Worker};

use super::finding::{Code, Finding, Place};
use super::journal::Facts;
use super::refs::{self, Depth};
use super::report::Report;
use crate::causes::chain;

/// Checks the workers' folders in some state folders.
pub(super) async fn check(
    git: &Git,
    (home, states): (&Path, &[PathBuf]),
    depth: Depth,
    facts: Option<&Facts>,
    last: &BTreeMap<LeaseId, u64>,
    report: &mut Report,
) {
    let mut seen = BTreeSet::new();
    let mut folders = BTreeSet::new();
    let mut caches = BTreeSet::new();
    for state in states {
        match inspect::workers(state) {
            Ok(found) => folders.extend(found),
            Err(error) => report.find(Finding::new(
                Code::WorkerUnreadable,
                Place::file(state),
                error,
            )),
        }
        caches.extend(inspect::caches(state));
    }
    let mut live = BTreeSet::new();
    for folder in folders {
        match inspect::look(&folder) {
            Ok(worker) => {
                report.counts.workers += 1;
                report.counts.running_workers += u64::from(worker.is_running);
                let check = Check {
                    worker: &worker,
                    facts,
                    last,
                };
                check.all(report);
                for lease in &worker.leases {
                    for launch in &lease.launches {
                        if let Ok(Some(mark)) = &launch.mark {
                            let open = check.is_open(lease.lease);
                            if open || launch.is_supervised {
                                live.insert(mark.clone());
                            }
                            seen.insert(mark.clone());
                        }
                    }
                }
            }
            Err(error) => report.find(Finding::new(
                Code::WorkerUnreadable,
                Place::file(&folder),
                error,
            )),
        }
    }
    let own = CaCertificate::read(&home.join("tls/ca.pem")).ok();
    let own = own.map(|ca| ca.fingerprint());
    processes((&seen, &live), own, facts, report);
    for cache in caches {
        report.counts.caches += 1;
        if let Err(error) = check_cache(git, &cache, depth, report).await {
            let place = Place::file(&cache);
            report.find(Finding::new(Code::CacheDamaged, place, chain(&error)));
        }
    }
}

struct Check<'a> {
    worker: &'a Worker,
    facts: Option<&'a Facts>,
    last: &'a BTreeMap<LeaseId, u64>,
}

impl Check<'_> {
    fn place(&self) -> Place {
        match &self.worker.id {
            Ok(Some(id)) => Place::default().of_worker(id),
            Ok(None) | Err(_) => Place::file(&self.worker.folder),
        }
    }

    fn place_of(&self, lease: u64) -> Place {
        let known = self.facts.map(|facts| facts.place(LeaseId(lease)));
        Place {
            worker: self.place().worker,
            ..known.unwrap_or_default()
        }
        .of_lease(lease)
    }

    /// Tells whether the journal has a lease open, as far as it can be told.
    fn is_open(&self, lease: u64) -> bool {
        match self.facts {
            Some(facts) => {
                let known = facts.leases.get(&LeaseId(lease));
                known.is_some_and(|known| !known.is_closed)
            }
            None => true,
        }
    }

    fn is_closed(&self, lease: u64) -> bool {
        self.facts.is_some_and(|facts| {
            let known = facts.leases.get(&LeaseId(lease));
            known.is_some_and(|known| known.is_closed)
        })
    }

    fn all(&self, report: &mut Report) {
        let worker = self.worker;
        if let Err(error) = &worker.id {
            let place = Place::file(&worker.folder.join("identity.json"));
            let finding = Finding::new(Code::WorkerUnreadable, place, chain(error));
            report.find(finding.advising(
                "see whether the file is this user's; if it is garbage, move it away: the worker \
                 makes it anew, with the same id",
            ));
        }
        let path = worker.folder.join("outbox.log");
        match &worker.outbox {
            Ok(Some(records)) => {
                report.counts.worker_reports += worker.pending.len() as u64;
                let place = self.place().at_file(&path);
                find_flaw(records, Code::OutboxDamaged, place, report);
            }
            Ok(None) => {}
            Err(error) => {
                let place = self.place().at_file(&path);
                report.find(Finding::new(Code::WorkerUnreadable, place, chain(error)));
            }
        }
        let mut left = BTreeMap::new();
        for waiting in &worker.pending {
            if self.is_closed(waiting.lease) {
                *left.entry(waiting.lease).or_insert(0_u32) += 1;
            }
        }
        for (lease, count) in left {
            let what = format!(
                "{count} reports wait for an acknowledgement, and the journal has closed the lease"
            );
            self.left(
                Finding::new(Code::ReportLeft, self.place_of(lease), what),
                report,
            );
        }
        for lease in &worker.leases {
            report.counts.worker_leases += 1;
            self.lease(lease, report);
        }
        for (paths, code, what) in [
            (
                &worker.kept,
                Code::EditsKept,
                "edits that could not be published",
            ),
            (
                &worker.deleted,
                Code::DeletionUnfinished,
                "it was to be deleted",
            ),
            (
                &worker.others,
                Code::OtherCoordinator,
                "leases of another coordinator",
            ),
            (
                &worker.unfinished,
                Code::FileUnfinished,
                "its process was killed while it was written",
            ),
        ] {
            for path in paths {
                report.find(Finding::new(code, self.place().at_file(path), what));
            }
        }
    }

    fn lease(&self, lease: &Lease, report: &mut Report) {
        let number = lease.lease;
        let place = || self.place_of(number).at_file(&lease.folder);
        match &lease.grant {
            Ok(Some(grant)) => self.compare(grant, lease, report),
            Ok(None) if lease.holds_edits => {
                let what = "what it is for is not written, and it has a checkout";
                report.find(Finding::new(Code::GrantUnreadable, place(), what));
            }
            Ok(None) => {}
            Err(error) => report.find(Finding::new(Code::GrantUnreadable, place(), chain(error))),
        }
        match &lease.events {
            Ok(Some(records)) => {
                report.counts.files += 1;
                find_flaw(records, Code::SpoolDamaged, place(), report);
                self.compare_events(lease, report);
            }
            Ok(None) => {}
            Err(error) => report.find(Finding::new(Code::SpoolDamaged, place(), chain(error))),
        }
        if let Some(lender) = &lease.borrows_from_nowhere {
            let what = format!(
                "it borrows objects from {}, which is not there",
                lender.display()
            );
            report.find(Finding::new(Code::BorrowingBroken, place(), what));
        }
        for launch in &lease.launches {
            if let Err(error) = &launch.mark {
                let place = place().at_file(&launch.folder);
                report.find(Finding::new(Code::LaunchUnreadable, place, chain(error)));
            }
            if let Some(cgroup) = &launch.cgroup
                && self.is_closed(number)
            {
                let place = place().at_file(cgroup);
                report.find(Finding::new(Code::CgroupLeft, place, "the lease is closed"));
            }
        }
        if self.is_closed(number) {
            let what = match lease.holds_edits {
                true => "the lease is closed, and edits may be in it that are nowhere else",
                false => "the lease is closed",
            };
            self.left(Finding::new(Code::LeaseLeft, place(), what), report);
        }
    }

    /// Adds what a worker leaves, with what settles it.
    fn left(&self, finding: Finding, report: &mut Report) {
        report.find(match self.worker.is_running {
            true => finding.advising(
                "its worker runs, and settles it when it reaches the coordinator: start that, \
                 or see the worker's log",
            ),
            false => finding,
        });
    }

    fn compare(&self, grant: &Grant, lease: &Lease, report: &mut Report) {
        let Some(facts) = self.facts else {
            return;
        };
        let place = self.place_of(lease.lease).at_file(&lease.folder);
        let Some(known) = facts.leases.get(&LeaseId(lease.lease)) else {
            if facts.is_complete {
                let what = format!(
                    "it is for task {} of run {}, and the journal has not granted it",
                    grant.task, grant.run
                );
                report.find(Finding::new(Code::LeaseUnknown, place, what));
            }
            return;
        };
        let (run, task) = facts.names(known);
        let same = grant.lease == lease.lease
            && grant.run == run
            && task.is_none_or(|task| task == grant.task);
        let worker = self.worker.id.as_ref().ok().and_then(Option::as_ref);
        let by_another = worker.is_some_and(|id| *id != known.worker.as_str());
        let what = if !same {
            format!("here it is for task {} of run {}", grant.task, grant.run)
        } else if by_another {
            format!("the journal has granted it to worker {}", known.worker)
        } else {
            return;
        };
        report.find(Finding::new(Code::LeaseUnknown, place, what));
    }

    fn compare_events(&self, lease: &Lease, report: &mut Report) {
        let stored = self.last.get(&LeaseId(lease.lease)).copied().unwrap_or(0);
        if stored > lease.last_event {
            let place = self.place_of(lease.lease).at_file(&lease.folder);
            let what = format!(
                "the transcript has events up to {stored}, and the worker knows {}",
                lease.last_event
            );
            report.find(Finding::new(Code::TranscriptAhead, place, what));
        }
    }
}

fn find_flaw(records: &Records, damaged: Code, place: Place, report: &mut Report) {
    let bytes = records.bytes - records.sound_bytes;
    if records.is_damaged() {
        let what = format!(
            "{bytes} bytes behind its {} sound records are no record",
            records.count
        );
        report.find(Finding::new(damaged, place, what));
    } else if bytes > 0 {
        let what = format!("its last record, {bytes} bytes, is half written");
        report.find(Finding::new(Code::RecordTorn, place, what));
    }
}

/// Finds processes of attempts of this home, or of launches in these folders, whose lease is over.
fn processes(
    (seen, live): (&BTreeSet<String>, &BTreeSet<String>),
    own: Option<Fingerprint>,
    facts: Option<&Facts>,
    report: &mut Report,
) {
    let Some(facts) = facts else {
        return;
    };
    let mut open = BTreeSet::new();
    for lease in facts.leases.values().filter(|lease| !lease.is_closed) {
        let attempt = match lease.work {
            Work::Attempt { attempt, .. } | Work::Verify { attempt, .. } => Some(attempt.0),
            Work::FinalVerify => None,
        };
        let (run, task) = facts.names(lease);
        open.insert((run, task, attempt));
    }
    for process in inspect::processes() {
        if process.pid == std::process::id() || live.contains(&process.mark) {
            continue;
        }
        let run = process.run.clone().unwrap_or_default();
        // Runs of several homes may have one name.
        let foreign = matches!((process.coordinator, own), (Some(its), Some(own)) if its != own);
        let ours = facts.runs.contains_key(&run) && !foreign;
        if !ours && !seen.contains(&process.mark) {
            continue;
        }
        let task = process.task.clone().filter(|task| !task.is_empty());
        let of = (run.clone(), task.clone(), process.attempt);
        let without = (run.clone(), None, None);
        if !seen.contains(&process.mark) && (open.contains(&of) || open.contains(&without)) {
            continue;
        }
        let mut place = Place::run(&run);
        place.task = task;
        place.attempt = process.attempt;
        let what = format!("process {} still runs: {}", process.pid, process.command);
        report.find(Finding::new(Code::ProcessLeft, place, what));
    }
}

async fn check_cache(
    git: &Git,
    cache: &Path,
    depth: Depth,
    report: &mut Report,
) -> Result<(), muster_git::GitError> {
    let complete = cache.join("muster-complete");
    if !complete.exists() {
        let what = "it was being made when its process was killed; the next use completes it";
        report.find(Finding::new(Code::CacheLeftover, Place::file(cache), what));
        return Ok(());
    }
    if let Some(lender) = inspect::borrows_from_nowhere(cache) {
        let what = format!(
            "it borrows objects from {}, which is not there",
            lender.display()
        );
        report.find(Finding::new(
            Code::BorrowingBroken,
            Place::file(cache),
            what,
        ));
    }
    for path in crate::git::repository::leftovers_of(cache).unwrap_or_default() {
        let what = "git, or a worker that was killed, has left it";
        report.find(Finding::new(Code::CacheLeftover, Place::file(&path), what));
    }
    let repository = Repository::open_bare(git, cache).await?;
    for complaint in refs::complaints(&repository, depth).await? {
        report.find(Finding::new(
            Code::CacheDamaged,
            Place::file(cache),
            complaint,
        ));
    }
    Ok(())
}
