//! The worker's word about its leases, on disk before it is said and until it is acknowledged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use muster_proto::v1::{Report, report};
use prost::Message as _;

use crate::frames::{self, Error, FrameFile};
use crate::inspect::{self, Records};

/// Name of the outbox in a worker's folder.
pub const NAME: &str = "outbox.log";
/// Size above which acknowledged reports are cleared out; small enough to rewrite in no time.
const COMPACT_BYTES: u64 = 1 << 20;

const REPORT: u8 = 1;
const ACKED: u8 = 2;
const NEXT: u8 = 3;

/// Reports that wait for their acknowledgement, and the numbers given so far.
///
/// Numbers grow over all incarnations of one state folder.
#[derive(Debug)]
pub struct Outbox {
    path: PathBuf,
    file: FrameFile,
    pending: BTreeMap<u64, Report>,
    next: u64,
}

impl Outbox {
    /// Opens or creates the outbox of a state folder.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(NAME);
        let mut pending = BTreeMap::new();
        let mut next = 1;
        let file = FrameFile::open(&path, |record| take(&record, &mut pending, &mut next))?;
        Ok(Self {
            path,
            file,
            pending,
            next,
        })
    }

    /// The number of the next report.
    pub fn next_number(&self) -> u64 {
        self.next
    }

    /// Reports without acknowledgement, oldest first.
    pub fn pending(&self) -> impl Iterator<Item = &Report> {
        self.pending.values()
    }

    /// Stores reports; after `Ok` they stay even if the host crashes. After an error none counts as
    /// stored, and storing them again is harmless.
    pub fn store(&mut self, reports: &[Report]) -> Result<(), Error> {
        if let Err(error) = self.write_down(reports) {
            // The caller brings them again; a disk that stays full must not make them pile up.
            self.file.forget_pending();
            return Err(error);
        }
        for report in reports {
            self.next = self.next.max(report.number.saturating_add(1));
            self.pending.insert(report.number, report.clone());
        }
        Ok(())
    }

    fn write_down(&mut self, reports: &[Report]) -> Result<(), Error> {
        for report in reports {
            self.file.push(&tagged(REPORT, &report.encode_to_vec()))?;
        }
        self.file.write()?;
        self.file.sync()
    }

    /// Forgets acknowledged reports.
    ///
    /// Not synced: a report that is said again after a crash is answered as already recorded.
    pub fn acknowledged(&mut self, numbers: &[u64]) -> Result<(), Error> {
        for number in numbers {
            if self.pending.remove(number).is_some() {
                self.file.push(&tagged(ACKED, &number.to_le_bytes()))?;
            }
        }
        self.file.write()?;
        if self.file.bytes() > COMPACT_BYTES {
            self.compact()?;
        }
        Ok(())
    }

    fn compact(&mut self) -> Result<(), Error> {
        let mut whole = Vec::new();
        frames::encode(&mut whole, &tagged(NEXT, &self.next.to_le_bytes()));
        for report in self.pending.values() {
            frames::encode(&mut whole, &tagged(REPORT, &report.encode_to_vec()));
        }
        muster_connect::private_file::replace(&self.path, &whole)
            .map_err(Error::file("replace", &self.path))?;
        self.file = FrameFile::open(&self.path, |_| ())?;
        Ok(())
    }
}

/// Takes one record of an outbox.
fn take(record: &[u8], pending: &mut BTreeMap<u64, Report>, next: &mut u64) {
    match record.split_first() {
        Some((&REPORT, bytes)) => {
            if let Ok(report) = Report::decode(bytes) {
                *next = (*next).max(report.number.saturating_add(1));
                pending.insert(report.number, report);
            }
        }
        Some((&ACKED, bytes)) => {
            if let Ok(bytes) = bytes.try_into() {
                pending.remove(&u64::from_le_bytes(bytes));
            }
        }
        Some((&NEXT, bytes)) => {
            if let Ok(bytes) = bytes.try_into() {
                *next = (*next).max(u64::from_le_bytes(bytes));
            }
        }
        _ => {}
    }
}

/// Reads an outbox without changing it; gives the reports without acknowledgement.
pub(crate) fn read(path: &Path) -> std::io::Result<(Option<Records>, Vec<Report>)> {
    let (mut pending, mut next) = (BTreeMap::new(), 1);
    let found = inspect::records(path, |record| take(record, &mut pending, &mut next))?;
    Ok((found, pending.into_values().collect()))
}

/// Tells whether a report is the last word about its lease.
pub fn is_final(kind: &report::Kind) -> bool {
    match kind {
        report::Kind::Started(_)
        | report::Kind::Asked(_)
        | report::Kind::QuestionClosed(_)
        | report::Kind::SessionOpened(_) => false,
        report::Kind::Succeeded(_)
        | report::Kind::Failed(_)
        | report::Kind::VerifyPassed(_)
        | report::Kind::GivenBack(_)
        | report::Kind::Stopped(_) => true,
    }
}

fn tagged(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(1 + bytes.len());
    record.push(tag);
    record.extend_from_slice(bytes);
    record
}

#[cfg(test)]
mod tests {
    use muster_proto::v1::Empty;

    use super::*;

    fn report(number: u64) -> Report {
        Report {
            number,
            lease: number * 10,
            kind: Some(report::Kind::Started(Empty {})),
        }
    }

    fn numbers(outbox: &Outbox) -> Vec<u64> {
        outbox.pending().map(|report| report.number).collect()
    }

    #[test]
    fn reports_stay_until_acknowledged_and_numbers_never_repeat() {
        let folder = tempfile::tempdir().unwrap();
        let mut outbox = Outbox::open(folder.path()).unwrap();
        assert_eq!(outbox.next_number(), 1);
        outbox.store(&[report(1), report(2)]).unwrap();
        outbox.acknowledged(&[2]).unwrap();
        let outbox = Outbox::open(folder.path()).unwrap();
        assert_eq!(outbox.pending().cloned().collect::<Vec<_>>(), [report(1)]);
        assert_eq!(outbox.next_number(), 3);
    }

    #[test]
    fn compaction_keeps_pending_reports_and_the_next_number() {
        let folder = tempfile::tempdir().unwrap();
        let mut outbox = Outbox::open(folder.path()).unwrap();
        outbox.store(&[report(1), report(2)]).unwrap();
        outbox.acknowledged(&[2]).unwrap();
        outbox.compact().unwrap();
        outbox.store(&[report(3)]).unwrap();
        let outbox = Outbox::open(folder.path()).unwrap();
        assert_eq!((numbers(&outbox), outbox.next_number()), (vec![1, 3], 4));
    }

    #[test]
    fn a_full_disk_takes_no_report_and_lets_none_pile_up() {
        let folder = tempfile::tempdir().unwrap();
        let mut outbox = Outbox::open(folder.path()).unwrap();
        outbox.file.faults.writes = 3;
        for _ in 0..3 {
            outbox.store(&[report(1), report(2)]).unwrap_err();
            assert_eq!(numbers(&outbox), [0; 0]);
        }
        outbox.file.faults.syncs = 1;
        outbox.store(&[report(1), report(2)]).unwrap_err();
        assert_eq!(numbers(&Outbox::open(folder.path()).unwrap()), [0; 0]);
        outbox.store(&[report(1), report(2)]).unwrap();
        let mut once = Outbox::open(folder.path()).unwrap();
        assert_eq!(numbers(&once), [1, 2]);
        let bytes = once.file.bytes();
        once.compact().unwrap();
        assert!(once.file.bytes() >= bytes, "reports were stored twice");
    }

    #[test]
    fn an_outbox_cut_at_any_byte_takes_further_reports() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        let mut outbox = Outbox::open(folder.path()).unwrap();
        outbox.store(&[report(1), report(2), report(3)]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let mut outbox = Outbox::open(folder.path()).unwrap();
            let mut wanted = numbers(&outbox);
            outbox.store(&[report(9)]).unwrap();
            wanted.push(9);
            let again = Outbox::open(folder.path()).unwrap();
            assert_eq!((numbers(&again), again.next_number()), (wanted, 10));
        }
    }

    #[test]
    fn an_outbox_cut_at_any_byte_has_a_prefix_of_its_reports() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        let mut outbox = Outbox::open(folder.path()).unwrap();
        outbox.store(&[report(1), report(2), report(3)]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let mut seen = 0;
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let numbers = numbers(&Outbox::open(folder.path()).unwrap());
            assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
            assert!(numbers.len() >= seen);
            seen = numbers.len();
        }
        assert_eq!(seen, 3);
    }
}
