//! A worker's files of every released format are read and go on.
//!
//! `golden/v1-*` are such files. `UPDATE=1` writes those that are not there; it never changes one,
//! since a released format never changes.

use std::path::{Path, PathBuf};

use muster_proto::v1::{AgentEvent, Empty, Output, Report, agent_event, report};

use crate::outbox::{self, Outbox};
use crate::spool::{Spool, SpoolReader, Taken};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/golden")
        .join(name)
}

/// Puts a golden file at a path, after `make` has made it there if it is to be written.
fn put(name: &str, path: &Path, make: impl FnOnce()) {
    let kept = golden(name);
    if std::env::var_os("UPDATE").is_some() && !kept.exists() {
        make();
        std::fs::copy(path, &kept).unwrap();
    }
    std::fs::write(path, std::fs::read(kept).unwrap()).unwrap();
}

fn started(number: u64) -> Report {
    Report {
        number,
        lease: 7,
        kind: Some(report::Kind::Started(Empty {})),
    }
}

#[test]
fn an_outbox_of_the_first_format_is_read_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    put("v1-outbox.log", &folder.path().join(outbox::NAME), || {
        let mut outbox = Outbox::open(folder.path()).unwrap();
        outbox.store(&[started(1), started(2), started(3)]).unwrap();
        outbox.acknowledged(&[2]).unwrap();
    });
    let mut outbox = Outbox::open(folder.path()).unwrap();
    let pending: Vec<Report> = outbox.pending().cloned().collect();
    assert_eq!(pending, [started(1), started(3)]);
    assert_eq!(outbox.next_number(), 4);
    outbox.store(&[started(4)]).unwrap();
    assert_eq!(Outbox::open(folder.path()).unwrap().pending().count(), 3);
}

#[test]
fn a_spool_of_the_first_format_is_read_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events");
    let taken = Taken {
        launch: 2,
        position: 31,
    };
    let output = Output {
        stream: 1,
        data: b"\xffhello\n".to_vec(),
    };
    put("v1-events", &path, || {
        let mut spool = Spool::open(&path, 1_000).unwrap();
        let note = agent_event::Kind::Note("ä note".to_owned());
        spool.lifecycle(note).unwrap();
        spool.output(output.clone(), taken).unwrap();
        spool.sync().unwrap();
    });
    let mut spool = Spool::open(&path, 1_000).unwrap();
    assert_eq!((spool.last(), spool.taken()), (2, taken));
    spool
        .lifecycle(agent_event::Kind::Note("next".to_owned()))
        .unwrap();
    assert_eq!(spool.sync().unwrap(), 3);
    let events: Vec<AgentEvent> = SpoolReader::new(&path).read(0, 3, 10_000).unwrap();
    let kinds: Vec<_> = events.into_iter().filter_map(|event| event.kind).collect();
    let note = |text: &str| agent_event::Kind::Note(text.to_owned());
    assert_eq!(
        kinds,
        [
            note("ä note"),
            agent_event::Kind::Output(output),
            note("next")
        ]
    );
}
