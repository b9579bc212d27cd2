//! The archive against the events by which runs left memory.

use super::Check;
use super::walk::Walk;
use crate::audit::finding::{Code, Finding, Place, Repair};

impl Check<'_> {
    /// Compares the archive with the events by which runs left memory.
    pub(super) fn compare_archive(&mut self, walk: &Walk) {
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
}
