use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use coordinator_core::RunId;

use super::files::wal_of;
use super::*;
use crate::store::contract::{OnDisk, Writer, event, replayed};
use crate::store::form::samples;
use crate::store::{BatchSeq, Progress, Reader as _, Store as _};

pub(super) fn writer(home: &OnDisk) -> Writer<SqliteStore> {
    Writer::new(Box::new(home.store()))
}

/// Opens the database as another program would.
fn raw(home: &OnDisk) -> Connection {
    Connection::open(home.path()).unwrap()
}

/// Gives the files as a machine that fails now would leave them.
pub(super) fn crashed(home: &OnDisk) -> OnDisk {
    let copy = OnDisk::new();
    fs::copy(home.path(), copy.path()).unwrap();
    if wal_of(&home.path()).exists() {
        fs::copy(wal_of(&home.path()), wal_of(&copy.path())).unwrap();
    }
    copy
}

fn refusal(home: &OnDisk) -> Error {
    match SqliteStore::open(&home.path()) {
        Ok(_) => panic!("opened"),
        Err(error) => error,
    }
}

/// Makes a store whose pages are so small that every byte of some commits can be tried.
pub(super) fn with_small_pages() -> OnDisk {
    let home = OnDisk::new();
    drop(home.store());
    raw(&home)
        .execute_batch(
            "PRAGMA journal_mode = DELETE; PRAGMA page_size = 512; VACUUM;
             PRAGMA journal_mode = WAL;",
        )
        .unwrap();
    home
}

/// Appends some batches; gives the log's length behind each, first that before them.
pub(super) fn append_measured(
    home: &OnDisk,
    writer: &mut Writer<SqliteStore>,
    batches: u64,
) -> Vec<usize> {
    let length = || fs::metadata(wal_of(&home.path())).map_or(0, |found| found.len() as usize);
    let mut lengths = vec![length()];
    for seq in 1..=batches {
        writer.append(&[event(1, 2 * seq - 1), event(1, 2 * seq)]);
        lengths.push(length());
    }
    lengths
}

fn assert_prefix(copy: &OnDisk, wanted: usize, note: &str) {
    let mut store = copy.store();
    let batches = replayed(&mut store, BatchSeq(0));
    assert_eq!(batches.len(), wanted, "{note}");
    for (seq, batch) in batches {
        let events = [event(1, 2 * seq.0 - 1), event(1, 2 * seq.0)];
        assert_eq!(batch.events, events, "{note}");
    }
    let history = store.reader().unwrap().run_events(RunId(1), 1, 99).unwrap();
    assert_eq!(history.len(), 2 * wanted, "{note}");
}

#[test]
fn log_cut_at_any_byte_gives_the_commits_before_the_cut() {
    let home = with_small_pages();
    let mut writer = writer(&home);
    let lengths = append_measured(&home, &mut writer, 5);
    let main = fs::read(home.path()).unwrap();
    let log = fs::read(wal_of(&home.path())).unwrap();
    assert_eq!(lengths.last(), Some(&log.len()));
    let copy = OnDisk::quick();
    let from = lengths[3];
    for cut in from..=log.len() {
        fs::write(copy.path(), &main).unwrap();
        fs::write(wal_of(&copy.path()), &log[..cut]).unwrap();
        let wanted = lengths[1..].iter().filter(|length| **length <= cut).count();
        assert_prefix(&copy, wanted, &format!("cut at {cut} of {}", log.len()));
    }
}

#[test]
fn what_a_log_was_left_with_is_in_the_file_before_it_is_believed() {
    let home = with_small_pages();
    let mut writer = writer(&home);
    append_measured(&home, &mut writer, 5);
    let main = fs::read(home.path()).unwrap();
    let log = fs::read(wal_of(&home.path())).unwrap();
    let copy = OnDisk::quick();
    fs::write(copy.path(), &main).unwrap();
    fs::write(wal_of(&copy.path()), &log).unwrap();
    let _store = copy.store();
    assert_eq!(fs::read(wal_of(&copy.path())).unwrap(), b"");
    let file = OnDisk::quick();
    fs::copy(copy.path(), file.path()).unwrap();
    assert_prefix(&file, 5, "the file alone");
}

#[test]
fn only_a_full_or_busy_disk_is_worth_another_try_of_the_same_write() {
    use rusqlite::ffi;
    let transient = |code| {
        let source = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        database("test")(source).is_transient()
    };
    assert!(transient(ffi::SQLITE_FULL) && transient(ffi::SQLITE_BUSY));
    let broken = [
        ffi::SQLITE_IOERR_FSYNC,
        ffi::SQLITE_IOERR_WRITE,
        ffi::SQLITE_IOERR_TRUNCATE,
        ffi::SQLITE_READONLY,
        ffi::SQLITE_CORRUPT,
    ];
    assert!(!broken.into_iter().any(transient));
}

#[test]
fn garbage_behind_any_place_of_the_log_is_not_taken_for_commits() {
    let home = with_small_pages();
    let mut writer = writer(&home);
    let lengths = append_measured(&home, &mut writer, 5);
    let main = fs::read(home.path()).unwrap();
    let log = fs::read(wal_of(&home.path())).unwrap();
    let copy = OnDisk::quick();
    for place in (lengths[2]..log.len()).step_by(61) {
        let mut spoiled = log.clone();
        for byte in &mut spoiled[place..] {
            *byte ^= 0xA5;
        }
        fs::write(copy.path(), &main).unwrap();
        fs::write(wal_of(&copy.path()), &spoiled).unwrap();
        let wanted = lengths[1..]
            .iter()
            .filter(|length| **length <= place)
            .count();
        assert_prefix(&copy, wanted, &format!("spoiled from {place}"));
    }
}

#[test]
fn killed_after_any_step_everything_is_there() {
    let home = OnDisk::new();
    let mut writer = writer(&home);
    let check = |last: u64| {
        let copy = crashed(&home);
        let mut store = copy.store();
        let loaded = store.load().unwrap();
        assert_eq!(loaded.next, BatchSeq(last + 1));
        let tail = replayed(&mut store, loaded.upto());
        assert_eq!(tail.len() as u64, last - loaded.upto().0);
        let history = store
            .reader()
            .unwrap()
            .run_events(RunId(1), 1, 4_000)
            .unwrap();
        let wanted: Vec<_> = (1..=last).map(|seq| event(1, seq)).collect();
        assert_eq!(history, wanted);
    };
    writer.append_each(1, 1..=300);
    check(300);
    writer.snapshot();
    check(300);
    writer.append_each(1, 301..=310);
    writer.snapshot();
    check(310);
    loop {
        let progress = writer.store.truncate().unwrap();
        check(310);
        if progress == Progress::Done {
            break;
        }
    }
    writer.store.archive(&samples::ended_run(1, 310)).unwrap();
    check(310);
}

#[test]
fn snapshot_of_which_only_the_writing_happened_does_not_count() {
    let home = OnDisk::new();
    let mut before = writer(&home);
    before.append_each(1, 1..=3);
    before.snapshot();
    before.append_each(1, 4..=4);
    let upto = BatchSeq(4);
    before
        .store
        .write_snapshot(upto, &samples::image())
        .unwrap();
    let mut after = writer(&crashed(&home));
    assert_eq!(after.store.load().unwrap().upto(), BatchSeq(3));
    after.store.snapshot(upto, &samples::image()).unwrap();
    assert_eq!(after.store.load().unwrap().upto(), upto);
}

#[test]
fn damaged_snapshot_gives_way_to_the_one_before() {
    let home = OnDisk::new();
    let mut before = writer(&home);
    before.append_each(1, 1..=3);
    before.snapshot();
    before.append_each(1, 4..=6);
    before.snapshot();
    before.append_each(1, 7..=7);
    while before.store.truncate().unwrap() == Progress::More {}
    drop(before);
    raw(&home)
        .execute(
            "UPDATE snapshot_run SET body = x'7b7d' WHERE upto = 6 AND run = 8",
            [],
        )
        .unwrap();
    let mut store = home.store();
    assert_eq!(store.load().unwrap().upto(), BatchSeq(3));
    assert_eq!(replayed(&mut store, BatchSeq(3)).len(), 4);
    raw(&home)
        .execute("UPDATE snapshot SET sum = sum + 1 WHERE upto = 3", [])
        .unwrap();
    let error = store.load().unwrap_err();
    assert!(
        matches!(error, Error::Damaged(Place::Snapshot(_))),
        "{error:?}"
    );
}

#[test]
fn damaged_batch_stops_the_replay_before_it() {
    let home = OnDisk::new();
    let mut writer = writer(&home);
    writer.append_each(1, 1..=5);
    raw(&home)
        .execute(
            "UPDATE journal SET body = CAST(
                replace(CAST(body AS TEXT), 'laptop', 'castle') AS BLOB) WHERE batch = 3",
            [],
        )
        .unwrap();
    let mut seen = Vec::new();
    let error = writer
        .store
        .replay(BatchSeq(0), &mut |seq, _| seen.push(seq.0))
        .unwrap_err();
    assert!(
        matches!(error, Error::Damaged(Place::Batch(BatchSeq(3)))),
        "{error:?}"
    );
    assert_eq!(seen, [1, 2]);
}

#[test]
fn missing_batch_stops_the_replay_before_it() {
    let home = OnDisk::new();
    let mut writer = writer(&home);
    writer.append_each(1, 1..=5);
    raw(&home)
        .execute("DELETE FROM journal WHERE batch = 3", [])
        .unwrap();
    let error = writer
        .store
        .replay(BatchSeq(0), &mut |_, _| {})
        .unwrap_err();
    assert!(
        matches!(error, Error::NoSuchBatch(BatchSeq(3))),
        "{error:?}"
    );
}

#[test]
fn cut_main_file_is_refused_and_left_as_it_is() {
    let home = OnDisk::new();
    let mut writer = writer(&home);
    writer.append_each(1, 1..=200);
    drop(writer);
    let whole = fs::read(home.path()).unwrap();
    assert!(!wal_of(&home.path()).exists());
    let pages = (0..whole.len()).step_by(4_096);
    for cut in pages.chain([1, 99, 100, 5_000, whole.len() - 1]) {
        fs::write(home.path(), &whole[..cut]).unwrap();
        let error = refusal(&home);
        assert!(
            matches!(error, Error::Cut { found, .. } if found == cut as u64),
            "{cut}: {error:?}"
        );
        assert!(error.to_string().contains("`coordinator restore FROM"));
        assert_eq!(fs::read(home.path()).unwrap(), whole[..cut]);
    }
    fs::write(home.path(), &whole).unwrap();
    assert_eq!(replayed(&mut home.store(), BatchSeq(0)).len(), 200);
}

#[test]
fn main_file_cut_while_a_log_is_there_is_refused_unless_the_log_has_all_of_it() {
    let home = OnDisk::new();
    let mut writer = writer(&home);
    writer.append_each(1, 1..=100);
    raw(&home)
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();
    writer.append_each(1, 101..=150);
    let whole = fs::read(home.path()).unwrap();
    let mut refused = 0;
    let pages: Vec<_> = (0..whole.len()).step_by(4_096).collect();
    for cut in &pages {
        let copy = crashed(&home);
        fs::write(copy.path(), &whole[..*cut]).unwrap();
        match SqliteStore::open(&copy.path()) {
            Ok(mut store) => assert_eq!(replayed(&mut store, BatchSeq(0)).len(), 150),
            Err(error) => {
                assert!(matches!(error, Error::Cut { .. }), "{error:?}");
                assert!(wal_of(&copy.path()).exists());
                refused += 1;
            }
        }
    }
    assert!(refused + 2 >= pages.len(), "{refused} of {}", pages.len());
    assert_eq!(
        replayed(&mut crashed(&home).store(), BatchSeq(0)).len(),
        150
    );
}

#[test]
fn log_without_its_main_file_is_refused() {
    let home = OnDisk::new();
    let mut writer = writer(&home);
    writer.append_each(1, 1..=5);
    let copy = crashed(&home);
    fs::remove_file(copy.path()).unwrap();
    let error = refusal(&copy);
    assert!(matches!(error, Error::MainMissing(_)), "{error:?}");
    assert!(wal_of(&copy.path()).exists());
}

#[test]
fn creation_that_was_killed_is_begun_anew() {
    let home = OnDisk::new();
    let mut fresh = home.path().into_os_string();
    fresh.push("-new");
    fs::write(&fresh, b"half").unwrap();
    drop(home.store());
    assert!(!Path::new(&fresh).exists());
}

#[test]
fn state_of_a_newer_program_is_refused_by_its_version() {
    let home = OnDisk::new();
    drop(home.store());
    raw(&home)
        .execute_batch(
            "PRAGMA user_version = 9; UPDATE meta SET value = '8.1.0' WHERE key = 'written_by'",
        )
        .unwrap();
    assert_eq!(
        refusal(&home).to_string(),
        "the state was written by Muster 8.1.0 in format 9; this one reads up to format 1: start \
         that or a newer Muster"
    );
}

#[test]
fn file_of_another_program_is_refused() {
    let home = OnDisk::new();
    raw(&home).execute_batch("CREATE TABLE theirs (a)").unwrap();
    assert!(matches!(refusal(&home), Error::Foreign(_)));
    fs::write(home.path(), "no database at all, ".repeat(50)).unwrap();
    assert!(matches!(refusal(&home), Error::Foreign(_)));
}

#[test]
fn only_the_owner_can_read_the_files() {
    let home = OnDisk::new();
    let mut writer = writer(&home);
    writer.append_each(1, 1..=1);
    for path in [home.path(), wal_of(&home.path())] {
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", path.display());
    }
}

#[test]
fn reading_holds_no_writer_up() {
    let home = OnDisk::new();
    let mut writer = writer(&home);
    writer.append_each(1, 1..=10);
    let mut reader = SqliteReader::open(&home.path()).unwrap();
    let open = reader.connection.transaction().unwrap();
    let count = |connection: &Connection| {
        connection
            .query_row("SELECT count(*) FROM journal", [], |row| {
                row.get::<_, i64>(0)
            })
            .unwrap()
    };
    assert_eq!(count(&open), 10);
    writer.append_each(1, 11..=20);
    assert_eq!(count(&open), 10);
    drop(open);
    let events = std::thread::spawn(move || reader.run_events(RunId(1), 1, 99).unwrap());
    assert_eq!(events.join().unwrap().len(), 20);
}

#[test]
fn reader_cannot_write() {
    let home = OnDisk::new();
    drop(home.store());
    let reader = SqliteReader::open(&home.path()).unwrap();
    reader
        .connection
        .execute("UPDATE epoch SET epoch = 9", [])
        .unwrap_err();
}

#[test]
fn every_commit_is_synced_into_a_log() {
    let home = OnDisk::new();
    let store = home.store();
    let connection = &store.connection;
    let synchronous: i64 = connection
        .pragma_query_value(None, "synchronous", |row| row.get(0))
        .unwrap();
    let mode: String = connection
        .pragma_query_value(None, "journal_mode", |row| row.get(0))
        .unwrap();
    assert_eq!((synchronous, mode.as_str()), (2, "wal"));
}

#[test]
fn snapshot_that_reads_back_differently_does_not_count() {
    let home = OnDisk::new();
    let mut writer = writer(&home);
    writer.append_each(1, 1..=3);
    raw(&home)
        .execute_batch(
            "CREATE TRIGGER spoil AFTER INSERT ON snapshot_run WHEN new.run = 9 BEGIN
                 UPDATE snapshot_run SET (sum, body) =
                     (SELECT sum, body FROM snapshot_run WHERE run = 8) WHERE run = 9;
             END",
        )
        .unwrap();
    let snapshot = |writer: &mut Writer<SqliteStore>| {
        let upto = BatchSeq(3);
        writer.store.snapshot(upto, &samples::image())
    };
    let error = snapshot(&mut writer).unwrap_err();
    assert!(
        matches!(error, Error::NotVerified(BatchSeq(3))),
        "{error:?}"
    );
    assert_eq!(writer.store.load().unwrap().snapshot, None);
    raw(&home).execute_batch("DROP TRIGGER spoil").unwrap();
    snapshot(&mut writer).unwrap();
    assert_eq!(writer.store.load().unwrap().upto(), BatchSeq(3));
}

#[test]
fn two_snapshots_are_kept_and_no_more() {
    let home = OnDisk::new();
    let mut writer = writer(&home);
    for seq in 1..=5 {
        writer.append_each(1, [seq]);
        writer.snapshot();
    }
    let raw = raw(&home);
    for table in ["snapshot", "snapshot_run"] {
        let kept: String = raw
            .query_row(
                &format!("SELECT group_concat(upto) FROM (SELECT DISTINCT upto FROM {table} ORDER BY upto)"),
                [],
                |row| row.get(0),
            )
            .unwrap();
        assert_eq!(kept, "4,5", "{table}");
    }
}
