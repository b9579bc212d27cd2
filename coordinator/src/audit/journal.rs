//! The journal against itself: rows, numbers, replay, snapshots, archive and task documents.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use coordinator_core::event::Work;
use coordinator_core::state::{Image, Run, RunImage};
use coordinator_core::{Epoch, Event, EventKind, LeaseId, RunId, State, Timestamp, invariants};

use super::finding::{Code, Finding, Place, Repair};
use super::ledger::{Lease, Ledger};
use super::report::Report;
use crate::store::sqlite::inspect::{Beside, IndexRow, Inspector};
use crate::store::{self, Batch, BatchSeq, Snapshot, Summary};

/// Findings of one kind after which the rest is only counted: a file that is torn to pieces gives
/// no better picture by a million lines.
pub(super) const FINDINGS_OF_A_KIND: usize = 100;

/// What the journal and the archive say, for the checks of everything else.
pub(super) struct Facts {
    /// Every run by its name; of a live one as it is now, of an archived one as it ended.
    pub runs: BTreeMap<String, Known>,
    pub leases: BTreeMap<LeaseId, Lease>,
    ledger: Ledger,
    /// Nothing is missing, so what is not here is not known to Muster.
    pub is_complete: bool,
}

/// A run that the journal or the archive knows.
pub(super) struct Known {
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
pub(super) fn check(path: &Path, beside: Beside, report: &mut Report) -> Option<Facts> {
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

/// Writes an error with its causes on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
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

    fn histories(&mut self) -> Result<(), store::Error> {
        let inspector = self.inspector;
        inspector.histories(|row| match row.events {
            Ok(events) => {
                let (first, last) = (events.first(), events.last());
                let fits = first.is_some_and(|event| event.seq == row.first)
                    && last.is_some_and(|event| event.seq == row.last)
                    && events.iter().all(|event| event.kind.run() == Some(row.run));
                for event in &events {
                    self.ledger.take(event);
                    self.digests.entry(row.run).or_default().push(digest(event));
                }
                if !fits {
                    let what = format!("the row from event {} holds others", row.first);
                    let place = self.ledger.place(row.run);
                    self.lost(Finding::new(Code::HistoryDamaged, place, what));
                }
            }
            Err(error) => {
                let entry = self.ledger.runs.entry(row.run).or_default();
                // What is missing here is told once, not again as a gap.
                entry.is_broken = true;
                entry.last_seq = row.last;
                let missing = row.last.saturating_sub(row.first) + 1;
                let missing = usize::try_from(missing).unwrap_or(usize::MAX).min(1 << 20);
                let digests = self.digests.entry(row.run).or_default();
                digests.extend(std::iter::repeat_n(0, missing));
                let place = self.ledger.place(row.run);
                self.lost(Finding::new(Code::HistoryDamaged, place, chain(&error)));
            }
        })
    }

    fn read_snapshots(&mut self) -> Result<(), store::Error> {
        for (upto, counts) in self.inspector.snapshots()? {
            if !counts {
                let what = "it was never read back, so it does not count";
                self.report.find(Finding::new(
                    Code::SnapshotUnfinished,
                    Place::batch(upto),
                    what,
                ));
                continue;
            }
            self.report.counts.snapshots += 1;
            match self.inspector.snapshot(upto) {
                Ok(snapshot) => self.snapshots.push(snapshot),
                Err(error) => self.damaged.push((upto, chain(&error))),
            }
        }
        Ok(())
    }

    fn read_archive(&mut self) -> Result<(), store::Error> {
        let inspector = self.inspector;
        inspector.archive(|row| {
            self.report.counts.archived += 1;
            let place = Place::run(&row.name);
            let image = match row.image {
                Ok(image) => image,
                Err(error) => {
                    self.is_complete = false;
                    self.unsound.insert(row.run, (place, chain(&error)));
                    return;
                }
            };
            let run = &image.run;
            let wrong = match row.summary {
                Err(error) => Some(chain(&error)),
                Ok(said) if Some(&said) != Summary::of(run).as_ref() => {
                    Some("the summary says something else than the image".to_owned())
                }
                Ok(_)
                    if run.id != row.run
                        || *run.name != *row.name
                        || run.last_seq != row.last_seq =>
                {
                    Some("the image is of another run or another event than its row".to_owned())
                }
                Ok(_) => invariants::check_run(run).err(),
            };
            if let Some(what) = wrong {
                self.unsound.insert(row.run, (place, what));
            }
            self.archive.insert(row.run, image);
        })
    }

    /// Goes through the journal once: rows, numbers, index, histories and replay.
    fn journal(&mut self) -> Result<Walk, store::Error> {
        let mut index: BTreeSet<IndexRow> = self.inspector.index()?.into_iter().collect();
        let mut walk = Walk::default();
        let inspector = self.inspector;
        inspector.batches(|seq, batch| self.batch(&mut walk, &mut index, seq, batch))?;
        if !index.is_empty() {
            let what = format!("{} entries name batches that hold none of it", index.len());
            let place = index
                .first()
                .map_or_else(Place::default, |row| Place::batch(row.batch));
            self.report
                .find(Finding::new(Code::IndexDiffers, place, what));
        }
        // A snapshot behind which nothing was written yet.
        let end = walk.last;
        let all = self.snapshots.iter().map(|snapshot| snapshot.upto);
        let left: Vec<BatchSeq> = all.filter(|upto| Some(*upto) > end).collect();
        for upto in left {
            if let Some(last) = end {
                let what = format!("the journal ends with {last}, and a snapshot is of {upto}");
                self.lost(Finding::new(Code::BatchMissing, Place::batch(upto), what));
            }
            self.meet_snapshot(&mut walk, upto);
        }
        if walk.first.is_none() && self.snapshots.is_empty() && !walk.contradicts {
            walk.state = Some(State::new());
        }
        self.judge_damaged_snapshots(&walk);
        Ok(walk)
    }

    fn batch(
        &mut self,
        walk: &mut Walk,
        index: &mut BTreeSet<IndexRow>,
        seq: BatchSeq,
        batch: Result<Batch, store::Error>,
    ) {
        self.report.counts.batches += 1;
        self.number(walk, seq);
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => {
                index.retain(|row| row.batch != seq);
                walk.state = None;
                let finding = Finding::new(Code::BatchUnreadable, Place::batch(seq), chain(&error));
                return self.lost(finding);
            }
        };
        if batch.epoch < walk.epoch || batch.epoch > self.claimed {
            let what = format!(
                "it is of {}, after {}; {} was claimed last",
                batch.epoch, walk.epoch, self.claimed
            );
            self.report
                .find(Finding::new(Code::EpochFell, Place::batch(seq), what));
        }
        if batch.at < walk.at {
            let what = format!(
                "it was decided at {} ms, after {} ms",
                batch.at.ms(),
                walk.at.ms()
            );
            self.report
                .find(Finding::new(Code::TimeFell, Place::batch(seq), what));
        }
        walk.epoch = walk.epoch.max(batch.epoch);
        walk.at = walk.at.max(batch.at);
        self.compare_index(index, seq, &batch);
        for event in &batch.events {
            self.event(walk, seq, event);
        }
        self.meet_snapshot(walk, seq);
    }

    /// Checks a batch's number, and finds where replay can begin.
    fn number(&mut self, walk: &mut Walk, seq: BatchSeq) {
        match walk.last {
            Some(last) if seq != last.next() => {
                walk.state = None;
                let what = format!("{seq} follows {last}");
                self.lost(Finding::new(
                    Code::BatchMissing,
                    Place::batch(last.next()),
                    what,
                ));
            }
            Some(_) => {}
            None => {
                walk.first = Some(seq);
                if seq == BatchSeq(1) {
                    walk.state = Some(State::new());
                } else {
                    let before = self.snapshots.first().map(|snapshot| snapshot.upto);
                    let damaged = self.damaged.first().map(|(upto, _)| *upto);
                    let behind = before.into_iter().chain(damaged).min();
                    if behind.is_none_or(|upto| upto.next() < seq) {
                        let what = match behind {
                            Some(upto) => format!(
                                "the journal begins with {seq}, and the oldest snapshot is of {upto}"
                            ),
                            None => {
                                format!("the journal begins with {seq}, and there is no snapshot")
                            }
                        };
                        self.lost(Finding::new(Code::BatchMissing, Place::batch(seq), what));
                    }
                    if before.is_some_and(|upto| upto.next() == seq) {
                        let upto = BatchSeq(seq.0 - 1);
                        self.meet_snapshot(walk, upto);
                    }
                }
            }
        }
        walk.last = Some(seq);
    }

    fn compare_index(&mut self, index: &mut BTreeSet<IndexRow>, seq: BatchSeq, batch: &Batch) {
        let mut wanted: BTreeMap<RunId, IndexRow> = BTreeMap::new();
        for event in &batch.events {
            let Some(run) = event.kind.run() else {
                continue;
            };
            let row = wanted.entry(run).or_insert(IndexRow {
                batch: seq,
                run,
                first: event.seq,
                last: event.seq,
            });
            row.last = event.seq;
        }
        let missing = wanted.values().filter(|row| !index.remove(row)).count();
        if missing > 0 {
            let what = format!("{missing} runs of the batch are not listed as they are in it");
            self.report
                .find(Finding::new(Code::IndexDiffers, Place::batch(seq), what));
        }
    }

    fn event(&mut self, walk: &mut Walk, seq: BatchSeq, event: &Event) {
        match event.kind.run() {
            None => {
                self.ledger.events += 1;
                let expected = walk.own_seq.map_or(event.seq, |last| last + 1);
                if event.seq != expected {
                    let what = format!(
                        "event {} of the coordinator follows event {}",
                        event.seq,
                        expected.saturating_sub(1)
                    );
                    self.report
                        .find(Finding::new(Code::EventGap, Place::batch(seq), what));
                }
                walk.own_seq = Some(event.seq);
            }
            Some(run) => self.run_event(walk, seq, run, event),
        }
        let Some(state) = &mut walk.state else {
            return;
        };
        if let EventKind::RunArchived { run } = event.kind
            && let Some(image) = state.run_image(run)
        {
            walk.left.insert(run, image);
        }
        if let Err(error) = state.replay(event) {
            walk.state = None;
            walk.contradicts = true;
            let finding = Finding::new(Code::ReplayContradicts, Place::batch(seq), error);
            self.lost(finding);
        }
    }

    fn run_event(&mut self, walk: &mut Walk, seq: BatchSeq, run: RunId, event: &Event) {
        if let EventKind::LeaseGranted { lease, .. } = event.kind {
            if lease <= walk.lease {
                let what = format!("{lease} was granted after {}", walk.lease);
                let place = self.ledger.place(run).of_lease(lease.0);
                self.report
                    .find(Finding::new(Code::LeaseTwice, place, what));
            }
            walk.lease = walk.lease.max(lease);
        }
        let in_history = usize::try_from(event.seq)
            .ok()
            .and_then(|seq| self.digests.get(&run)?.get(seq.checked_sub(1)?))
            .copied();
        match in_history {
            // Zero stands for a row that could not be read.
            Some(0) => {}
            Some(known) => {
                if known != digest(event) {
                    let what = format!("event {} differs", event.seq);
                    let place = Place {
                        batch: Some(seq.0),
                        ..self.ledger.place(run)
                    };
                    self.report
                        .find(Finding::new(Code::HistoryDiffers, place, what));
                }
            }
            None => self.ledger.take(event),
        }
    }

    /// Compares the state with the snapshot behind a batch, or begins with it.
    fn meet_snapshot(&mut self, walk: &mut Walk, seq: BatchSeq) {
        let Some(snapshot) = self.snapshots.iter().find(|snapshot| snapshot.upto == seq) else {
            return;
        };
        let can_do_without = walk.state.is_some();
        let wrong = match State::from_image(snapshot.image.clone(), snapshot.at) {
            Err(error) => Some((Code::SnapshotDamaged, error.to_string())),
            Ok(state) => match &walk.state {
                Some(replayed) if durable(replayed.image()) != durable(snapshot.image.clone()) => {
                    let what = "the batches before it lead to another state".to_owned();
                    Some((Code::SnapshotDiffers, what))
                }
                Some(_) => None,
                None => {
                    walk.own_seq = walk.own_seq.or(Some(state.last_seq()));
                    walk.state = Some(state);
                    None
                }
            },
        };
        if let Some((code, what)) = wrong {
            let mut finding = Finding::new(code, Place::batch(seq), what);
            if can_do_without {
                finding = finding.mended_by(Repair::DropSnapshot { upto: seq });
            }
            self.report.find(finding);
        }
    }

    /// A damaged snapshot can go where replay got past it without it.
    fn judge_damaged_snapshots(&mut self, walk: &Walk) {
        for (upto, what) in std::mem::take(&mut self.damaged) {
            let mut finding = Finding::new(Code::SnapshotDamaged, Place::batch(upto), what);
            if walk.state.is_some() {
                finding = finding.mended_by(Repair::DropSnapshot { upto });
            }
            self.report.find(finding);
        }
    }

    /// Compares the archive with the events by which runs left memory.
    fn compare_archive(&mut self, walk: &Walk) {
        let mut found = Vec::new();
        for (id, (place, what)) in &self.unsound {
            let finding = Finding::new(Code::ArchiveDamaged, place.clone(), what);
            let by = self.ledger.runs.get(id).and_then(|entry| entry.archived_by);
            let left = walk.left.get(id);
            let left = left.filter(|image| Some(image.run.last_seq + 1) == by);
            found.push(match left.map(|image| Box::new(image.clone())) {
                Some(image) => finding.mended_by(Repair::Archive { image }),
                None => finding,
            });
        }
        for (id, entry) in &self.ledger.runs {
            if self.unsound.contains_key(id) {
                continue;
            }
            let row = self.archive.get(id);
            if let Some(row) = row
                && row.run.last_seq > entry.last_seq
            {
                let what = format!(
                    "the archive is as of event {}, and the events end with {}",
                    row.run.last_seq, entry.last_seq
                );
                found.push(Finding::new(Code::EventGap, self.ledger.place(*id), what));
            }
            let Some(by) = entry.archived_by else {
                continue;
            };
            let held = row.map_or(0, |row| row.run.last_seq);
            let left = walk
                .left
                .get(id)
                .filter(|image| image.run.last_seq + 1 == by);
            if held + 1 < by {
                let what = match row {
                    None => format!("it was archived by event {by}"),
                    Some(_) => format!(
                        "it was archived by event {by}, and the archive is as of event {held}"
                    ),
                };
                let mut finding = Finding::new(Code::ArchiveMissing, self.ledger.place(*id), what);
                if let Some(image) = left {
                    let image = Box::new(image.clone());
                    finding = finding.mended_by(Repair::Archive { image });
                }
                found.push(finding);
            } else if held + 1 == by
                && let (Some(image), Some(row)) = (left, row)
                && image != row
            {
                let what = "the events lead to another end than the archive has";
                let finding = Finding::new(Code::ArchiveDiffers, self.ledger.place(*id), what);
                let image = Box::new(image.clone());
                found.push(finding.mended_by(Repair::Archive { image }));
            }
        }
        for (id, image) in &self.archive {
            if !self.ledger.runs.contains_key(id) {
                let what = "the archive has it, and none of its events is there";
                found.push(Finding::new(
                    Code::EventGap,
                    Place::run(&image.run.name),
                    what,
                ));
            }
        }
        for finding in found {
            self.is_complete &= finding.code != Code::ArchiveMissing;
            self.report.find(finding);
        }
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

    fn documents(&mut self, runs: &BTreeMap<String, Known>) -> Result<(), store::Error> {
        let mut kept: BTreeMap<String, (u64, bool)> = BTreeMap::new();
        for row in self.inspector.specs()? {
            self.report.counts.documents += row.count;
            kept.insert(row.key, (row.count, row.is_gapless));
        }
        for (name, Known { run, .. }) in runs {
            let wanted = run.tasks.len() as u64 + u64::from(run.integrate.is_some());
            let (count, is_gapless) = kept.remove(name).unwrap_or((0, true));
            if count != wanted || !is_gapless {
                let what = format!("{count} documents are kept of {wanted}");
                self.report
                    .find(Finding::new(Code::DocumentsMissing, Place::run(name), what));
            }
        }
        if self.is_complete {
            for (key, (count, _)) in kept {
                let what = format!("{count} documents are kept of a run that was never admitted");
                self.report
                    .find(Finding::new(Code::DocumentsOfNoRun, Place::run(&key), what));
            }
        }
        Ok(())
    }
}

/// Where the walk through the journal stands.
#[derive(Default)]
struct Walk {
    first: Option<BatchSeq>,
    last: Option<BatchSeq>,
    epoch: Epoch,
    at: Timestamp,
    /// Number of the last event of the coordinator's own.
    own_seq: Option<u64>,
    /// The largest lease granted so far.
    lease: LeaseId,
    /// The state so far; `None` before replay can begin and behind what broke it.
    state: Option<State>,
    contradicts: bool,
    /// Runs as they were when they left memory.
    left: BTreeMap<RunId, RunImage>,
}

/// Leaves out what is not kept: until when leases live, as far as the configuration decides it.
fn durable(mut image: Image) -> Image {
    for lease in &mut image.leases {
        lease.expires_at = Timestamp::default();
    }
    for worker in &mut image.workers {
        worker.link = coordinator_core::state::Link::Down {
            since: Timestamp::default(),
        };
    }
    image
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
