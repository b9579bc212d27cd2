//! Transcripts: each decodes to its end, and belongs to a lease that the journal knows.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use coordinator_core::LeaseId;
use coordinator_core::event::Work;

use super::finding::{Code, Finding, Place, Repair};
use super::journal::{Facts, transcript_name};
use super::report::Report;
use super::usage::Ledger;
use crate::causes::chain;
use crate::ledger::Entry;
use crate::transcript::lease_of;
use crate::transcript::mend::{self, Flaw, SET_ASIDE};

/// Checks all transcripts; gives the number of the last event of each lease.
pub(super) fn check(
    root: &Path,
    facts: Option<&Facts>,
    usage: &mut Ledger,
    report: &mut Report,
) -> BTreeMap<LeaseId, u64> {
    let mut last = BTreeMap::new();
    for run in folders(root, report) {
        let name = file_name(&run);
        for path in files(&run, report) {
            let of = (name.as_str(), None);
            one(&path, of, facts, usage, report, &mut last);
        }
        for task in folders(&run.join("tasks"), report) {
            let task_name = file_name(&task);
            for path in files(&task, report) {
                let of = (name.as_str(), Some(task_name.as_str()));
                one(&path, of, facts, usage, report, &mut last);
            }
        }
    }
    if let Some(facts) = facts {
        missing(facts, &last, report);
    }
    last
}

fn one(
    path: &Path,
    (run, task): (&str, Option<&str>),
    facts: Option<&Facts>,
    usage: &mut Ledger,
    report: &mut Report,
    last: &mut BTreeMap<LeaseId, u64>,
) {
    let name = file_name(path);
    let mut place = Place::run(run).at_file(path);
    if let Some(task) = task {
        place = place.of_task(task);
    }
    if name.contains(SET_ASIDE) {
        let what = "a damaged transcript, as it was before it was mended";
        return report.find(Finding::new(Code::TranscriptSetAside, place, what));
    }
    let Some(lease) = lease_of(path) else {
        return report.find(if name.starts_with(".muster-") {
            let what = "its process was killed while it was written";
            let path = path.to_owned();
            Finding::new(Code::FileUnfinished, place, what).mended_by(Repair::SetAside { path })
        } else {
            Finding::new(Code::FileUnknown, place, "no transcript has such a name")
        });
    };
    place = place.of_lease(lease.0);
    report.counts.transcripts += 1;
    let mut is_strange = false;
    if let Some(facts) = facts {
        let known = facts.leases.get(&lease);
        let fits = known.is_some_and(|known| {
            let (of_run, of_task) = facts.names(known);
            of_run == run
                && of_task.as_deref() == task
                && transcript_name(known.work, lease) == name
        });
        if fits {
            place = Place {
                attempt: facts.place(lease).attempt,
                ..place
            };
        } else if facts.is_complete {
            is_strange = true;
            let what = match known {
                None => "its lease was never granted".to_owned(),
                Some(_) => format!("its lease was for something else: {}", facts.place(lease)),
            };
            let finding = Finding::new(Code::TranscriptOfNoLease, place.clone(), what);
            let path = path.to_owned();
            report.find(finding.mended_by(Repair::SetAside { path }));
        }
    }
    // One that cannot be read is not missing.
    last.insert(lease, 0);
    let mut entries = Vec::new();
    let look = match mend::look_at_each(path, |event| entries.extend(Entry::of(event))) {
        Ok(look) => look,
        Err(error) => {
            usage.skip(lease);
            return report.find(Finding::new(
                Code::TranscriptUnreadable,
                place,
                chain(&error),
            ));
        }
    };
    report.counts.agent_events += look.events;
    report.counts.transcript_bytes += look.bytes;
    last.insert(lease, look.last);
    let here = match task {
        Some(task) => format!("{run}/tasks/{task}/{name}"),
        None => format!("{run}/{name}"),
    };
    if is_strange || look.is_damaged() {
        usage.skip(lease);
    } else {
        usage.compare((lease, Path::new(&here)), &entries, &place, report);
    }
    // Transcripts of the first format do not say whose they are.
    if let Some(of) = look.of.as_ref().filter(|of| **of != here && !is_strange) {
        let what = format!("it says that it is {of}");
        report.find(Finding::new(Code::TranscriptSwapped, place.clone(), what));
    }
    let repair = || Repair::MendTranscript {
        path: path.to_owned(),
    };
    for flaw in &look.flaws {
        let (code, what) = match flaw {
            Flaw::Torn { at, bytes } => {
                let what =
                    format!("its last record, {bytes} bytes from byte {at} on, is half written");
                (Code::TranscriptTorn, what)
            }
            Flaw::Damaged { at, bytes } => {
                let what = format!("{bytes} bytes from byte {at} on are no record");
                (Code::TranscriptDamaged, what)
            }
        };
        report.find(Finding::new(code, place.clone(), what).mended_by(repair()));
    }
    // Behind damage a gap is no news.
    if !look.is_damaged() {
        for (before, behind) in &look.gaps {
            let what = format!("event {behind} follows event {before}");
            let finding = Finding::new(Code::TranscriptGap, place.clone(), what);
            report.find(finding.mended_by(repair()));
        }
    }
}

/// Finds attempts that reported a result and of which nothing is left.
fn missing(facts: &Facts, last: &BTreeMap<LeaseId, u64>, report: &mut Report) {
    for (id, lease) in &facts.leases {
        let worked = matches!(lease.work, Work::Attempt { .. });
        if worked && lease.has_result && lease.by_worker && !last.contains_key(id) {
            let what = "it reported a result, and nothing of what it said is there";
            report.find(Finding::new(
                Code::TranscriptMissing,
                facts.place(*id),
                what,
            ));
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn folders(folder: &Path, report: &mut Report) -> Vec<PathBuf> {
    let mut found = list(folder, report);
    found.retain(|path| path.is_dir());
    found
}

fn files(folder: &Path, report: &mut Report) -> Vec<PathBuf> {
    let mut found = list(folder, report);
    found.retain(|path| !path.is_dir());
    found
}

fn list(folder: &Path, report: &mut Report) -> Vec<PathBuf> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            report.find(Finding::new(
                Code::TranscriptUnreadable,
                Place::file(folder),
                error,
            ));
            return Vec::new();
        }
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort_unstable();
    paths
}
