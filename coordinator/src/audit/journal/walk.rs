//! One walk through the batches: numbers, index and replay.

use std::collections::{BTreeMap, BTreeSet};

use coordinator_core::state::{Image, RunImage};
use coordinator_core::{Epoch, Event, EventKind, LeaseId, RunId, State, Timestamp};

use super::{Check, digest};
use crate::audit::finding::{Code, Finding, Place, Repair};
use crate::causes::chain;
use crate::store::sqlite::inspect::IndexRow;
use crate::store::{self, Batch, BatchSeq};

/// Where the walk through the journal stands.
#[derive(Default)]
pub(super) struct Walk {
    pub(super) first: Option<BatchSeq>,
    pub(super) last: Option<BatchSeq>,
    pub(super) epoch: Epoch,
    pub(super) at: Timestamp,
    /// Number of the last event of the coordinator's own.
    pub(super) own_seq: Option<u64>,
    /// The largest lease granted so far.
    pub(super) lease: LeaseId,
    /// The state so far; `None` before replay can begin and behind what broke it.
    pub(super) state: Option<State>,
    pub(super) contradicts: bool,
    /// Runs as they were when they left memory.
    pub(super) left: BTreeMap<RunId, RunImage>,
}

impl Check<'_> {
    /// Goes through the journal once: rows, numbers, index, histories and replay.
    pub(super) fn journal(&mut self) -> Result<Walk, store::Error> {
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
