//! Logs cut and files spoiled anywhere: what is read is what was committed, or nothing.

use std::fs;

use super::files::wal_of;
use super::tests::{append_measured, crashed, with_small_pages, writer};
use super::*;
use crate::store::contract::{OnDisk, Writer, event, replayed};
use crate::store::{BatchSeq, Loaded, Store as _};

/// Batches of the log around whose frames it is cut.
const BATCHES: u64 = 40;

/// Reads a copy, appends to it, and reads it again.
fn assert_goes_on_after(copy: &OnDisk, wanted: u64, note: &str) {
    let check = |store: &mut SqliteStore, wanted: u64| {
        let batches = replayed(store, BatchSeq(0));
        assert_eq!(batches.len() as u64, wanted, "{note}");
        for (seq, batch) in batches {
            let events = [event(1, 2 * seq.0 - 1), event(1, 2 * seq.0)];
            assert_eq!(batch.events, events, "{note}");
        }
    };
    let mut writer = Writer::new(Box::new(copy.store()));
    check(&mut writer.store, wanted);
    writer.append(&[event(1, 2 * wanted + 1), event(1, 2 * wanted + 2)]);
    drop(writer);
    check(&mut copy.store(), wanted + 1);
}

fn put(copy: &OnDisk, main: &[u8], log: &[u8]) {
    drop(fs::remove_file(copy.path().with_extension("db-shm")));
    fs::write(copy.path(), main).unwrap();
    fs::write(wal_of(&copy.path()), log).unwrap();
}

fn committed(lengths: &[usize], cut: usize) -> u64 {
    lengths.iter().skip(1).filter(|end| **end <= cut).count() as u64
}

#[test]
fn a_log_cut_at_any_byte_of_a_commit_takes_further_batches() {
    let home = with_small_pages();
    let mut writer = writer(&home);
    let lengths = append_measured(&home, &mut writer, 4);
    let main = fs::read(home.path()).unwrap();
    let log = fs::read(wal_of(&home.path())).unwrap();
    let copy = OnDisk::quick();
    for cut in lengths[3]..=log.len() {
        put(&copy, &main, &log[..cut]);
        let note = format!("cut at {cut} of {}", log.len());
        assert_goes_on_after(&copy, committed(&lengths, cut), &note);
    }
}

#[test]
fn a_long_log_cut_around_every_frame_is_a_prefix_and_takes_further_batches() {
    const LOG_HEADER: usize = 32;
    const FRAME: usize = 24 + 4_096;
    let home = OnDisk::new();
    let mut writer = writer(&home);
    let lengths = append_measured(&home, &mut writer, BATCHES);
    let main = fs::read(home.path()).unwrap();
    let log = fs::read(wal_of(&home.path())).unwrap();
    assert_eq!((log.len() - LOG_HEADER) % FRAME, 0);
    let ends = (LOG_HEADER..=log.len()).step_by(FRAME);
    let around = ends.flat_map(|end| [end - 1, end, end + 1, end + FRAME / 2]);
    let copy = OnDisk::quick();
    let mut tried = 0;
    for cut in around.chain(0..LOG_HEADER).filter(|cut| *cut <= log.len()) {
        put(&copy, &main, &log[..cut]);
        let note = format!("cut at {cut} of {}", log.len());
        assert_goes_on_after(&copy, committed(&lengths, cut), &note);
        tried += 1;
    }
    assert!(tried > 4 * BATCHES, "{tried}");
}

/// A flipped byte is seen where the bytes mean something, and never makes a batch that was not
/// written.
#[test]
fn a_main_file_with_a_flipped_byte_gives_what_was_written_or_is_refused() {
    let home = OnDisk::new();
    let mut writer = writer(&home);
    writer.append_each(1, 1..=60);
    drop(writer);
    let whole = fs::read(home.path()).unwrap();
    assert!(!wal_of(&home.path()).exists());
    let copy = OnDisk::quick();
    let (mut same, mut refused) = (0, 0);
    for place in (0..whole.len()).step_by(37) {
        let mut spoiled = whole.clone();
        spoiled[place] ^= 0x41;
        put(&copy, &spoiled, &[]);
        match read_all(&copy) {
            Ok((_, events)) => {
                let wanted: Vec<_> = (1..=60).map(|seq| event(1, seq)).collect();
                assert_eq!(events, wanted, "flipped at {place}");
                same += 1;
            }
            Err(error) => {
                let hint = error.is_damage();
                assert!(hint, "flipped at {place}: {error:?} gives no way out");
                refused += 1;
            }
        }
    }
    assert!(
        same > 0 && refused > 100,
        "{same} the same, {refused} refused"
    );
}

fn read_all(copy: &OnDisk) -> Result<(Loaded, Vec<coordinator_core::Event>), Error> {
    let mut store = SqliteStore::open(&copy.path())?;
    let loaded = store.load()?;
    let mut events = Vec::new();
    store.replay(loaded.upto(), &mut |_, batch| events.extend(batch.events))?;
    Ok((loaded, events))
}

#[test]
fn a_copy_made_while_a_log_is_there_is_the_store_of_that_moment() {
    let home = OnDisk::new();
    let mut writer = writer(&home);
    writer.append_each(1, 1..=30);
    let copied = OnDisk::new();
    copy(&home.path(), &copied.path()).unwrap();
    check(&copied.path()).unwrap();
    writer.append_each(1, 31..=40);
    assert_eq!(replayed(&mut copied.store(), BatchSeq(0)).len(), 30);
    let epoch = restored(&copied.path(), 1).unwrap();
    assert_eq!(epoch, Epoch::RESTORED);
    let mut writer = Writer::new(Box::new(copied.store()));
    assert_eq!(writer.store.load().unwrap().epoch, Epoch(epoch.0 + 1));
    writer.append_each(1, [31]);
    assert!(wal_of(&copied.path()).exists(), "no log is kept");
    assert_eq!(
        replayed(&mut crashed(&copied).store(), BatchSeq(0)).len(),
        31
    );
}

#[test]
fn a_store_restored_again_begins_behind_what_it_was_restored_to_before() {
    let home = OnDisk::new();
    drop(home.store());
    let now = Epoch::RESTORED.0 + 5;
    assert_eq!(restored(&home.path(), now).unwrap(), Epoch(now));
    drop(writer(&home));
    assert_eq!(restored(&home.path(), 3).unwrap(), Epoch(now + 1));
}
