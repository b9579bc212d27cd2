//! Reading the rows that hold more than batches: histories, snapshots, the archive and documents.

use std::collections::BTreeMap;

use coordinator_core::invariants;

use super::{Check, Known, digest};
use crate::audit::finding::{Code, Finding, Place};
use crate::causes::chain;
use crate::store::{self, Summary};

impl Check<'_> {
    pub(super) fn histories(&mut self) -> Result<(), store::Error> {
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

    pub(super) fn read_snapshots(&mut self) -> Result<(), store::Error> {
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

    pub(super) fn read_archive(&mut self) -> Result<(), store::Error> {
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

    pub(super) fn documents(&mut self, runs: &BTreeMap<String, Known>) -> Result<(), store::Error> {
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
