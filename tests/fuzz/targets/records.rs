//! A worker's spool, outbox and output of any bytes: a prefix is read, and what is appended next is
//! read too.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use muster_proto::v1::{Empty, Report, agent_event, report};
use worker_agent::outbox::Outbox;
use worker_agent::spool::{Spool, SpoolReader};
use worker_agent::supervisor::OutputReader;

static ROOT: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir_in("/dev/shm").expect("a folder in memory"));

fuzz_target!(|input: (u8, &[u8])| {
    let (which, bytes) = input;
    // A folder of its own: damaged files are set aside in it.
    let folder = tempfile::tempdir_in(ROOT.path()).expect("a folder");
    let folder = folder.path();
    match which % 3 {
        0 => spool(&folder.join("events"), bytes),
        1 => outbox(folder, bytes),
        _ => output(folder, bytes),
    }
});

fn spool(path: &std::path::Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("a file");
    let mut spool = Spool::open(path, 1 << 20).expect("a spool of any bytes opens");
    let before = spool.last();
    if before > u64::MAX - 2 {
        return;
    }
    let full = spool.lifecycle(agent_event::Kind::Note("x".to_owned()));
    full.expect("a note fits");
    let last = spool.sync().expect("a sync");
    assert!(last == before || last == before + 1);
    let mut reader = SpoolReader::new(path);
    let _ = reader.read(0, last, usize::MAX).expect("the spool is read");
}

fn outbox(folder: &std::path::Path, bytes: &[u8]) {
    std::fs::write(folder.join("outbox.log"), bytes).expect("a file");
    let mut outbox = Outbox::open(folder).expect("an outbox of any bytes opens");
    let number = outbox.next_number();
    let before: Vec<Report> = outbox.pending().cloned().collect();
    let report = Report {
        number,
        lease: 1,
        kind: Some(report::Kind::Started(Empty {})),
    };
    outbox.store(&[report.clone()]).expect("a report is stored");
    let outbox = Outbox::open(folder).expect("it opens again");
    let after: Vec<Report> = outbox.pending().cloned().collect();
    assert!(after.contains(&report));
    assert!(before.iter().all(|known| known.number == number || after.contains(known)));
}

fn output(folder: &std::path::Path, bytes: &[u8]) {
    std::fs::write(folder.join("output"), bytes).expect("a file");
    let Ok(mut reader) = OutputReader::open(folder, 0) else {
        return;
    };
    while let Ok(Some(_)) = reader.next_record() {
        assert!(reader.offset() <= bytes.len() as u64);
    }
}
