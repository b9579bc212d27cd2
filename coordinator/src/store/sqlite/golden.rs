//! A store of every released format opens and holds what it held.
//!
//! `golden/v1.sql` is such a store as text, `golden/v1.events` a transcript. `UPDATE=1` writes files
//! that are not there; it never changes one, since a released format never changes.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use coordinator_core::event::Work;
use coordinator_core::{AttemptNo, LeaseId, RunId, TaskIx};
use muster_proto::v1::agent_event::Kind;
use muster_proto::v1::{AgentEvent, Output, OutputTruncated, Phase};
use rusqlite::types::ValueRef;

use super::tests::{raw, writer};
use super::*;
use crate::store::contract::{OnDisk, event, replayed};
use crate::store::form::samples;
use crate::store::{BatchSeq, Store as _, Which};
use crate::transcript::{self, Transcripts};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/store/sqlite/golden")
        .join(name)
}

fn is_wanted(path: &Path) -> bool {
    std::env::var_os("UPDATE").is_some() && !path.exists()
}

/// Something of everything that a store holds.
fn fill(home: &OnDisk) {
    let mut writer = writer(home);
    writer.append(&[event(1, 1), event(1, 2)]);
    writer.append(&samples::events());
    let upto = BatchSeq(2);
    writer.store.snapshot(upto, &samples::image()).unwrap();
    writer.append(&[event(1, 3)]);
    writer
        .store
        .put_specs("add-auth-1", &[b"{}".to_vec(), b"[]".to_vec()])
        .unwrap();
    let ended = samples::ended_run(1, 3);
    while writer.store.archive(&ended).unwrap() == crate::store::Progress::More {}
}

/// Writes a database as SQL that makes it again.
fn dump(home: &OnDisk) -> String {
    let connection = raw(home);
    let mut sql = String::new();
    for pragma in ["application_id", "user_version"] {
        let value: i64 = connection
            .pragma_query_value(None, pragma, |row| row.get(0))
            .unwrap();
        writeln!(sql, "PRAGMA {pragma} = {value};").unwrap();
    }
    let mut tables = connection
        .prepare("SELECT name, sql FROM sqlite_schema WHERE type = 'table' ORDER BY rowid")
        .unwrap();
    let tables: Vec<(String, String)> = tables
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    for (name, create) in tables {
        writeln!(sql, "{create};").unwrap();
        let mut statement = connection
            .prepare(&format!("SELECT * FROM {name}"))
            .unwrap();
        let columns = statement.column_count();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let values: Vec<String> = (0..columns)
                .map(|column| literal(row.get_ref(column).unwrap()))
                .collect();
            writeln!(sql, "INSERT INTO {name} VALUES ({});", values.join(", ")).unwrap();
        }
    }
    sql
}

fn literal(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => "NULL".to_owned(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(_) => panic!("no column holds such numbers"),
        ValueRef::Text(text) => format!("'{}'", String::from_utf8_lossy(text).replace('\'', "''")),
        ValueRef::Blob(bytes) => match std::str::from_utf8(bytes) {
            // Bodies are JSON, which people can read in a difference.
            Ok(text) if !text.contains(['\0', '\n']) => {
                format!("CAST('{}' AS BLOB)", text.replace('\'', "''"))
            }
            _ => {
                let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("x'{hex}'")
            }
        },
    }
}

#[test]
fn a_store_of_the_first_format_opens_and_holds_what_it_held() {
    let path = golden("v1.sql");
    if is_wanted(&path) {
        let home = OnDisk::new();
        fill(&home);
        std::fs::write(&path, dump(&home)).unwrap();
    }
    let home = OnDisk::new();
    let sql = std::fs::read_to_string(&path).unwrap();
    let made = raw(&home);
    made.execute_batch("PRAGMA journal_mode = WAL").unwrap();
    made.execute_batch(&sql).unwrap();
    drop(made);
    check(&home.path()).unwrap();

    let mut store = home.store();
    let loaded = store.load().unwrap();
    assert_eq!((loaded.next, loaded.epoch), (BatchSeq(4), Epoch(1)));
    let snapshot = loaded.snapshot.unwrap();
    assert_eq!(
        (snapshot.upto, snapshot.image),
        (BatchSeq(2), samples::image())
    );
    let batches: Vec<_> = replayed(&mut store, BatchSeq(0))
        .into_iter()
        .map(|(_, batch)| batch.events)
        .collect();
    let wanted = [
        vec![event(1, 1), event(1, 2)],
        samples::events(),
        vec![event(1, 3)],
    ];
    assert_eq!(batches, wanted);
    let mut reader = store.reader().unwrap();
    let ended = samples::ended_run(1, 3);
    assert_eq!(
        reader.archived_image(RunId(1)).unwrap(),
        Some(ended.clone())
    );
    let summary = reader.archived(Which::Name(&ended.run.name)).unwrap();
    assert_eq!(summary, crate::store::Summary::of(&ended.run));
    let history = reader.run_events(RunId(1), 1, 99).unwrap();
    assert_eq!(
        history,
        (1..=3).map(|seq| event(1, seq)).collect::<Vec<_>>()
    );
    assert_eq!(
        reader.spec("add-auth-1", TaskIx(1)).unwrap(),
        Some(b"[]".to_vec())
    );
    // And it goes on.
    drop((store, reader));
    writer(&home).append(&[event(1, 4)]);
}

fn place() -> transcript::Place {
    transcript::Place {
        run: "r".into(),
        task: "t".into(),
        work: Work::Attempt {
            task: TaskIx(0),
            attempt: AttemptNo(2),
        },
        lease: LeaseId(9),
    }
}

fn said() -> Vec<AgentEvent> {
    let phase = Phase {
        name: "running".to_owned(),
        detail: String::new(),
    };
    let output = Output {
        stream: 1,
        data: b"\xffhello\n".to_vec(),
    };
    [
        Kind::Phase(phase),
        Kind::Output(output),
        Kind::OutputTruncated(OutputTruncated { bytes: 7 }),
        Kind::Note("ä note".to_owned()),
    ]
    .into_iter()
    .zip(1..)
    .map(|(kind, number)| AgentEvent {
        number,
        at_ms: 1_795_000_000_000 + number,
        kind: Some(kind),
    })
    .collect()
}

#[tokio::test]
async fn a_transcript_of_the_first_format_is_read_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("r/tasks/t/attempt-2-L9.events");
    let path = golden("v1.events");
    let transcripts = Transcripts::start(folder.path().to_owned()).unwrap();
    if is_wanted(&path) {
        transcripts.append(place(), "w", said()).await.unwrap();
        std::fs::copy(&file, &path).unwrap();
    }
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, std::fs::read(&path).unwrap()).unwrap();
    let read = || transcript::read(folder.path(), &place(), 0, usize::MAX).unwrap();
    assert_eq!(read(), said());
    let next = AgentEvent {
        number: 5,
        ..said().remove(3)
    };
    transcripts.append(place(), "w", vec![next]).await.unwrap();
    assert_eq!(read().len(), 5);
}

#[test]
fn a_snapshot_of_a_newer_form_is_refused_by_its_number() {
    let home = OnDisk::new();
    let mut writer = writer(&home);
    writer.append_each(1, 1..=2);
    writer.snapshot();
    drop(writer);
    raw(&home)
        .execute("UPDATE snapshot SET form = 9", [])
        .unwrap();
    let error = home.store().load().unwrap_err();
    let text = format!("{}", anyhow::Error::new(error).root_cause());
    assert!(text.contains('9') && text.contains('1'), "{text}");
}
