//! What every store promises, tried on each of them.

use coordinator_core::event::{Placement, Work};
use coordinator_core::state::{Image, RunImage};
use coordinator_core::time::Span;
use coordinator_core::{
    Epoch, Event, EventKind, Incarnation, LeaseId, RunId, TaskIx, Timestamp, WorkerId,
};

use super::form::samples;
use super::memory::MemoryStore;
use super::sqlite::SqliteStore;
use super::{Batch, BatchSeq, Error, Progress, Reader, Store, Which};

/// A place where a store can be opened again and again.
pub(super) trait Home {
    fn open(&self) -> Box<dyn Store>;
}

pub(super) struct InMemory(pub(super) MemoryStore);

impl Home for InMemory {
    fn open(&self) -> Box<dyn Store> {
        Box::new(self.0.clone())
    }
}

pub(super) struct OnDisk(tempfile::TempDir);

impl OnDisk {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A folder in memory where there is one, for tests that open stores by the thousand.
    pub(super) fn quick() -> Self {
        let memory = std::path::Path::new("/dev/shm");
        tempfile::tempdir_in(memory).map_or_else(|_| Self::new(), Self)
    }

    pub(super) fn path(&self) -> std::path::PathBuf {
        self.0.path().join("journal.db")
    }

    pub(super) fn store(&self) -> SqliteStore {
        SqliteStore::open(&self.path()).unwrap()
    }
}

impl Home for OnDisk {
    fn open(&self) -> Box<dyn Store> {
        Box::new(self.store())
    }
}

macro_rules! contract {
    ($($name:ident),* $(,)?) => {
        mod memory {
            $(#[test]
            fn $name() {
                super::$name(&super::InMemory(super::MemoryStore::new()));
            })*
        }
        mod sqlite {
            $(#[test]
            fn $name() {
                super::$name(&super::OnDisk::new());
            })*
        }
    };
}

contract!(
    fresh_store_is_empty,
    batches_come_back_as_they_were_appended,
    the_last_events_of_pools_are_given_in_order,
    append_at_another_number_than_the_next_is_refused,
    older_epoch_is_fenced_from_every_write,
    nothing_is_written_before_an_epoch_is_claimed,
    events_of_a_run_out_of_sequence_are_refused,
    snapshot_and_tail_are_what_was_kept,
    repeated_snapshot_changes_nothing,
    snapshot_behind_a_batch_that_is_not_there_is_refused,
    nothing_is_truncated_behind_a_single_snapshot,
    journal_is_truncated_up_to_the_older_snapshot_only,
    large_journal_is_truncated_in_steps,
    histories_are_gapless_before_during_and_after_archiving,
    history_is_read_from_anywhere_in_pages,
    histories_of_two_runs_in_one_batch_stay_apart,
    repeated_archiving_changes_nothing,
    retried_run_is_archived_anew,
    long_run_is_archived_in_steps,
    run_that_has_not_ended_is_not_archived,
    run_whose_events_are_missing_is_not_archived,
    archive_is_paged_newest_first,
    archived_run_is_found_by_id_and_name,
    specs_are_kept_by_key_and_order,
    specs_of_other_keys_are_forgotten,
);

/// A store with an epoch, and the number of its next batch.
pub(super) struct Writer<S: Store + ?Sized> {
    pub(super) epoch: Epoch,
    pub(super) next: BatchSeq,
    pub(super) store: Box<S>,
}

impl<S: Store + ?Sized> Writer<S> {
    pub(super) fn new(mut store: Box<S>) -> Self {
        let epoch = store.claim_epoch().unwrap();
        let next = store.load().unwrap().next;
        Self { epoch, next, store }
    }

    pub(super) fn append(&mut self, events: &[Event]) -> BatchSeq {
        let seq = self.next;
        self.store
            .append(seq, self.epoch, time(seq), events)
            .unwrap();
        self.next = seq.next();
        seq
    }

    /// Appends events of a run, one batch each.
    pub(super) fn append_each(&mut self, run: u64, seqs: impl IntoIterator<Item = u64>) {
        for seq in seqs {
            self.append(&[event(run, seq)]);
        }
    }

    /// Takes a snapshot behind the last batch.
    pub(super) fn snapshot(&mut self) -> BatchSeq {
        let upto = BatchSeq(self.next.0 - 1);
        self.store.snapshot(upto, &image(upto)).unwrap();
        upto
    }

    pub(super) fn truncate(&mut self) -> usize {
        let mut steps = 1;
        while self.store.truncate().unwrap() == Progress::More {
            steps += 1;
        }
        steps
    }

    pub(super) fn archive(&mut self, image: &RunImage) -> usize {
        let mut steps = 1;
        while self.store.archive(image).unwrap() == Progress::More {
            steps += 1;
        }
        steps
    }

    pub(super) fn reader(&self) -> Box<dyn Reader> {
        self.store.reader().unwrap()
    }
}

pub(super) fn writer(home: &dyn Home) -> Writer<dyn Store> {
    Writer::new(home.open())
}

fn time(seq: BatchSeq) -> Timestamp {
    samples::at(seq.0)
}

/// An event of a run that can be told from every other.
pub(super) fn event(run: u64, seq: u64) -> Event {
    Event {
        seq,
        at: samples::at(seq),
        kind: EventKind::LeaseGranted {
            run: RunId(run),
            lease: LeaseId(run * 1_000_000 + seq),
            work: Work::FinalVerify,
            worker: WorkerId::new("laptop/0"),
            incarnation: Incarnation(1),
            ttl: Span::from_secs(60),
            placement: Placement::default(),
        },
    }
}

fn own_event(seq: u64) -> Event {
    Event {
        seq,
        at: samples::at(seq),
        kind: EventKind::CoordinatorStarted { epoch: Epoch(seq) },
    }
}

/// A state that can be told from those behind other batches.
fn image(upto: BatchSeq) -> Image {
    Image {
        next_lease: LeaseId(upto.0),
        ..samples::image()
    }
}

pub(super) fn replayed(store: &mut dyn Store, after: BatchSeq) -> Vec<(BatchSeq, Batch)> {
    let mut batches = Vec::new();
    store
        .replay(after, &mut |seq, batch| batches.push((seq, batch)))
        .unwrap();
    batches
}

pub(super) fn history(reader: &mut dyn Reader, run: u64) -> Vec<u64> {
    let mut seqs = Vec::new();
    loop {
        let from = seqs.last().map_or(1, |last| last + 1);
        let page = reader.run_events(RunId(run), from, 1_000).unwrap();
        if page.is_empty() {
            return seqs;
        }
        for found in page {
            assert_eq!(found, event(run, found.seq));
            seqs.push(found.seq);
        }
    }
}

fn fresh_store_is_empty(home: &dyn Home) {
    let mut store = home.open();
    let loaded = store.load().unwrap();
    assert_eq!(loaded.snapshot, None);
    assert_eq!(loaded.next, BatchSeq(1));
    assert_eq!(loaded.epoch, Epoch(0));
    assert_eq!(replayed(&mut *store, BatchSeq(0)), []);
    assert_eq!(store.reader().unwrap().archived_runs(None, 9).unwrap(), []);
}

fn batches_come_back_as_they_were_appended(home: &dyn Home) {
    let mut writer = writer(home);
    let all = samples::events();
    let mut wanted = Vec::new();
    for events in [&all[..], &[], &[own_event(50)]] {
        let seq = writer.append(events);
        let batch = Batch {
            epoch: writer.epoch,
            at: time(seq),
            events: events.to_vec(),
        };
        wanted.push((seq, batch));
    }
    drop(writer);
    let mut store = home.open();
    assert_eq!(store.load().unwrap().next, BatchSeq(4));
    assert_eq!(store.load().unwrap().epoch, Epoch(1));
    assert_eq!(replayed(&mut *store, BatchSeq(0)), wanted);
    assert_eq!(replayed(&mut *store, BatchSeq(2)), wanted[2..]);
}

fn append_at_another_number_than_the_next_is_refused(home: &dyn Home) {
    let mut writer = writer(home);
    writer.append(&[event(1, 1)]);
    for expected in [BatchSeq(0), BatchSeq(1), BatchSeq(3)] {
        let error = writer
            .store
            .append(expected, writer.epoch, time(expected), &[event(1, 2)])
            .unwrap_err();
        assert!(
            matches!(error, Error::Conflict { expected: e, next: BatchSeq(2) } if e == expected),
            "{error:?}"
        );
    }
    assert_eq!(replayed(&mut *writer.store, BatchSeq(0)).len(), 1);
    writer.append(&[event(1, 2)]);
}

fn older_epoch_is_fenced_from_every_write(home: &dyn Home) {
    let mut old = writer(home);
    old.append(&[event(1, 1)]);
    let mut new = writer(home);
    assert!(new.epoch > old.epoch);
    let upto = BatchSeq(1);
    let epoch = old.epoch;
    let store = &mut *old.store;
    let refused = [
        store.append(BatchSeq(2), epoch, time(upto), &[event(1, 2)]),
        store.snapshot(upto, &image(upto)),
        store.truncate().map(drop),
        store.archive(&samples::ended_run(1, 1)).map(drop),
        store.put_specs("k", &[b"spec".to_vec()]),
        store.delete_specs_except(&[]),
    ];
    for result in refused {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Fenced { .. }), "{error:?}");
    }
    assert_eq!(new.append(&[event(1, 2)]), BatchSeq(2));
}

fn nothing_is_written_before_an_epoch_is_claimed(home: &dyn Home) {
    let mut store = home.open();
    let error = store
        .append(BatchSeq(1), Epoch(0), samples::at(1), &[])
        .unwrap_err();
    assert!(matches!(error, Error::Fenced { .. }), "{error:?}");
    let error = store.put_specs("k", &[]).unwrap_err();
    assert!(matches!(error, Error::Fenced { .. }), "{error:?}");
}

fn events_of_a_run_out_of_sequence_are_refused(home: &dyn Home) {
    let mut writer = writer(home);
    let events = [event(1, 1), event(2, 1), event(1, 3)];
    let error = writer
        .store
        .append(BatchSeq(1), writer.epoch, samples::at(1), &events)
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Gap {
                run: RunId(1),
                expected: 2,
                found: 3
            }
        ),
        "{error:?}"
    );
    assert_eq!(writer.store.load().unwrap().next, BatchSeq(1));
}

fn snapshot_and_tail_are_what_was_kept(home: &dyn Home) {
    let mut writer = writer(home);
    writer.append_each(1, 1..=3);
    writer.snapshot();
    writer.append_each(1, 4..=5);
    let upto = writer.snapshot();
    writer.append_each(1, 6..=6);
    drop(writer);
    let mut store = home.open();
    let loaded = store.load().unwrap();
    assert_eq!(loaded.upto(), upto);
    let snapshot = loaded.snapshot.unwrap();
    assert_eq!(snapshot.image, image(upto));
    assert_eq!(snapshot.at, time(upto));
    let tail = replayed(&mut *store, upto);
    assert_eq!(tail.len(), 1);
    assert_eq!(tail[0].1.events, [event(1, 6)]);
}

fn repeated_snapshot_changes_nothing(home: &dyn Home) {
    let mut writer = writer(home);
    writer.append_each(1, 1..=3);
    writer.snapshot();
    let before = writer.store.load().unwrap();
    writer.snapshot();
    assert_eq!(writer.store.load().unwrap(), before);
    assert_eq!(writer.truncate(), 1);
    assert_eq!(replayed(&mut *writer.store, BatchSeq(0)).len(), 3);
}

fn snapshot_behind_a_batch_that_is_not_there_is_refused(home: &dyn Home) {
    let mut writer = writer(home);
    writer.append_each(1, 1..=3);
    for upto in [BatchSeq(0), BatchSeq(4)] {
        let error = writer.store.snapshot(upto, &image(upto)).unwrap_err();
        assert!(
            matches!(error, Error::NoSuchBatch(seq) if seq == upto),
            "{error:?}"
        );
    }
    assert_eq!(writer.store.load().unwrap().snapshot, None);
}

fn nothing_is_truncated_behind_a_single_snapshot(home: &dyn Home) {
    let mut writer = writer(home);
    writer.append_each(1, 1..=3);
    assert_eq!(writer.truncate(), 1);
    writer.snapshot();
    assert_eq!(writer.truncate(), 1);
    assert_eq!(replayed(&mut *writer.store, BatchSeq(0)).len(), 3);
}

fn journal_is_truncated_up_to_the_older_snapshot_only(home: &dyn Home) {
    let mut writer = writer(home);
    for last in [3, 5, 7] {
        let first = writer.next.0;
        writer.append_each(1, first..=last);
        writer.snapshot();
    }
    writer.truncate();
    let error = writer
        .store
        .replay(BatchSeq(0), &mut |_, _| {})
        .unwrap_err();
    assert!(
        matches!(error, Error::NoSuchBatch(BatchSeq(1))),
        "{error:?}"
    );
    drop(writer);
    let mut store = home.open();
    let kept: Vec<_> = replayed(&mut *store, BatchSeq(5))
        .into_iter()
        .map(|(seq, _)| seq.0)
        .collect();
    assert_eq!(kept, [6, 7]);
    assert_eq!(store.load().unwrap().next, BatchSeq(8));
    assert_eq!(
        history(&mut *store.reader().unwrap(), 1),
        Vec::from_iter(1..=7)
    );
}

fn large_journal_is_truncated_in_steps(home: &dyn Home) {
    let mut writer = writer(home);
    writer.append_each(1, 1..=600);
    writer.snapshot();
    writer.append_each(1, 601..=601);
    writer.snapshot();
    while writer.store.truncate().unwrap() == Progress::More {
        let next = writer.next.0;
        writer.append_each(1, next..=next);
        let events = history(&mut *writer.reader(), 1);
        assert_eq!(events, Vec::from_iter(1..=next));
    }
    assert_eq!(
        replayed(&mut *writer.store, BatchSeq(600))
            .first()
            .unwrap()
            .0,
        BatchSeq(601)
    );
    assert!(writer.store.replay(BatchSeq(599), &mut |_, _| {}).is_err());
}

fn histories_are_gapless_before_during_and_after_archiving(home: &dyn Home) {
    let mut writer = writer(home);
    let mut reader = writer.reader();
    let mut check = |run, last| assert_eq!(history(&mut *reader, run), Vec::from_iter(1..=last));
    writer.append_each(1, 1..=4);
    writer.append_each(2, 1..=2);
    writer.snapshot();
    check(1, 4);
    writer.append_each(1, 5..=6);
    writer.snapshot();
    writer.truncate();
    check(1, 6);
    check(2, 2);
    writer.archive(&samples::ended_run(1, 6));
    check(1, 6);
    // The event that tells of the archiving comes behind what was archived.
    writer.append_each(1, 7..=7);
    check(1, 7);
    writer.append_each(2, 3..=3);
    writer.snapshot();
    writer.append_each(2, 4..=4);
    writer.snapshot();
    writer.truncate();
    check(1, 7);
    check(2, 4);
    drop(writer);
    let mut reader = home.open().reader().unwrap();
    assert_eq!(history(&mut *reader, 1), Vec::from_iter(1..=7));
    assert_eq!(history(&mut *reader, 3), [0; 0]);
}

fn history_is_read_from_anywhere_in_pages(home: &dyn Home) {
    let mut writer = writer(home);
    let batch = |seqs: std::ops::RangeInclusive<u64>| Vec::from_iter(seqs.map(|seq| event(1, seq)));
    for first in (1..=1_000).step_by(10) {
        writer.append(&batch(first..=first + 9));
        if first == 501 || first == 751 {
            writer.snapshot();
        }
    }
    writer.truncate();
    let mut reader = writer.reader();
    for from in [
        0, 1, 2, 10, 11, 499, 500, 505, 510, 511, 512, 740, 995, 1_000,
    ] {
        for limit in [0, 1, 9, 10, 11, 300] {
            let wanted: Vec<_> = (from.max(1)..=1_000).take(limit).collect();
            let found = reader.run_events(RunId(1), from, limit).unwrap();
            let seqs: Vec<_> = found.iter().map(|event| event.seq).collect();
            assert_eq!(seqs, wanted, "{limit} from {from}");
        }
    }
    assert_eq!(reader.run_events(RunId(1), 1_001, 5).unwrap(), []);
}

fn histories_of_two_runs_in_one_batch_stay_apart(home: &dyn Home) {
    let mut writer = writer(home);
    writer.append(&[event(1, 1), event(2, 1), own_event(1), event(1, 2)]);
    writer.append(&[event(2, 2), event(1, 3)]);
    writer.archive(&samples::ended_run(1, 2));
    let mut reader = writer.reader();
    assert_eq!(history(&mut *reader, 1), [1, 2, 3]);
    assert_eq!(history(&mut *reader, 2), [1, 2]);
}

fn repeated_archiving_changes_nothing(home: &dyn Home) {
    let mut writer = writer(home);
    writer.append_each(1, 1..=4);
    let image = samples::ended_run(1, 4);
    for _ in 0..3 {
        writer.archive(&image);
        let mut reader = writer.reader();
        assert_eq!(history(&mut *reader, 1), [1, 2, 3, 4]);
        assert_eq!(reader.archived_runs(None, 9).unwrap().len(), 1);
        assert_eq!(
            reader.archived_image(RunId(1)).unwrap().as_ref(),
            Some(&image)
        );
    }
}

fn retried_run_is_archived_anew(home: &dyn Home) {
    let mut writer = writer(home);
    writer.append_each(1, 1..=4);
    writer.archive(&samples::ended_run(1, 4));
    writer.append_each(1, 5..=9);
    let later = samples::ended_run(1, 9);
    writer.archive(&later);
    let mut reader = writer.reader();
    assert_eq!(history(&mut *reader, 1), Vec::from_iter(1..=9));
    assert_eq!(reader.archived_image(RunId(1)).unwrap(), Some(later));
    let error = writer.store.archive(&samples::ended_run(1, 4)).unwrap_err();
    assert!(
        matches!(
            error,
            Error::ArchivedLater {
                run: RunId(1),
                held: 9,
                given: 4
            }
        ),
        "{error:?}"
    );
}

fn long_run_is_archived_in_steps(home: &dyn Home) {
    let mut writer = writer(home);
    let mut last = 0;
    for _ in 0..20 {
        let events: Vec<_> = (last + 1..=last + 1_000).map(|seq| event(1, seq)).collect();
        writer.append(&events);
        last += 1_000;
    }
    let image = samples::ended_run(1, last);
    while writer.store.archive(&image).unwrap() == Progress::More {
        let mut reader = writer.reader();
        assert_eq!(reader.archived(Which::Id(RunId(1))).unwrap(), None);
        let events = reader.run_events(RunId(1), 8_000, 500).unwrap();
        assert_eq!(
            events,
            Vec::from_iter((8_000..8_500).map(|seq| event(1, seq)))
        );
    }
    assert_eq!(history(&mut *writer.reader(), 1), Vec::from_iter(1..=last));
}

fn run_that_has_not_ended_is_not_archived(home: &dyn Home) {
    let mut writer = writer(home);
    let run = samples::image().runs[1].clone();
    let error = writer.store.archive(&RunImage { run }).unwrap_err();
    assert!(matches!(error, Error::NotEnded(RunId(8))), "{error:?}");
}

fn run_whose_events_are_missing_is_not_archived(home: &dyn Home) {
    let mut writer = writer(home);
    writer.append_each(1, 1..=3);
    let error = writer.store.archive(&samples::ended_run(1, 4)).unwrap_err();
    assert!(
        matches!(
            error,
            Error::HistoryEnds {
                run: RunId(1),
                last: 3,
                wanted: 4
            }
        ),
        "{error:?}"
    );
    let found = writer.reader().archived(Which::Id(RunId(1))).unwrap();
    assert_eq!(found, None);
}

fn archive_is_paged_newest_first(home: &dyn Home) {
    let mut writer = writer(home);
    for run in [3, 1, 5, 2, 4] {
        writer.append_each(run, 1..=1);
        writer.archive(&samples::ended_run(run, 1));
    }
    let mut reader = writer.reader();
    let mut page = |before, limit| {
        let page = reader.archived_runs(before, limit).unwrap();
        page.iter().map(|summary| summary.run.0).collect::<Vec<_>>()
    };
    assert_eq!(page(None, 2), [5, 4]);
    assert_eq!(page(Some(RunId(4)), 2), [3, 2]);
    assert_eq!(page(Some(RunId(2)), 2), [1]);
    assert_eq!(page(Some(RunId(1)), 2), [0; 0]);
}

fn archived_run_is_found_by_id_and_name(home: &dyn Home) {
    let mut writer = writer(home);
    writer.append_each(7, 1..=4);
    let image = samples::run_image();
    writer.archive(&image);
    let mut reader = writer.reader();
    let summary = reader.archived(Which::Name("add-auth-1")).unwrap().unwrap();
    assert_eq!(summary.run, RunId(7));
    assert_eq!(summary.last_seq, 4);
    assert_eq!(
        (
            summary.tasks.succeeded,
            summary.tasks.failed,
            summary.tasks.unfinished
        ),
        (1, 1, 7)
    );
    assert_eq!(reader.archived(Which::Id(RunId(7))).unwrap(), Some(summary));
    assert_eq!(reader.archived_image(RunId(7)).unwrap(), Some(image));
    assert_eq!(reader.archived(Which::Name("add-auth-2")).unwrap(), None);
    assert_eq!(reader.archived_image(RunId(8)).unwrap(), None);
}

fn the_last_events_of_pools_are_given_in_order(home: &dyn Home) {
    let mut writer = writer(home);
    let happened: Vec<Event> = (1..)
        .zip(samples::pool_events())
        .map(|(seq, event)| Event {
            seq,
            at: samples::at(seq),
            kind: EventKind::Pool(event),
        })
        .collect();
    for (nth, pair) in happened.chunks(2).enumerate() {
        writer.append_each(7, [nth as u64 + 1]);
        writer.append(pair);
    }
    let mut reader = writer.reader();
    assert_eq!(reader.pool_events(99).unwrap(), happened);
    assert_eq!(
        reader.pool_events(3).unwrap(),
        happened[happened.len() - 3..]
    );
    assert_eq!(reader.pool_events(0).unwrap(), []);
}

fn specs_are_kept_by_key_and_order(home: &dyn Home) {
    let mut writer = writer(home);
    let specs = |texts: &[&str]| Vec::from_iter(texts.iter().map(|text| text.as_bytes().to_vec()));
    writer
        .store
        .put_specs("a", &specs(&["one", "two"]))
        .unwrap();
    writer.store.put_specs("b", &specs(&["three"])).unwrap();
    let mut reader = home.open().reader().unwrap();
    let mut spec = |key, task| reader.spec(key, TaskIx(task)).unwrap();
    assert_eq!(spec("a", 0).as_deref(), Some(&b"one"[..]));
    assert_eq!(spec("a", 1).as_deref(), Some(&b"two"[..]));
    assert_eq!(spec("b", 0).as_deref(), Some(&b"three"[..]));
    assert_eq!(spec("a", 2), None);
    assert_eq!(spec("c", 0), None);
    writer.store.put_specs("a", &specs(&["four"])).unwrap();
    assert_eq!(spec("a", 0).as_deref(), Some(&b"four"[..]));
    assert_eq!(spec("a", 1), None);
}

fn specs_of_other_keys_are_forgotten(home: &dyn Home) {
    let mut writer = writer(home);
    for key in ["a", "b", "c"] {
        writer.store.put_specs(key, &[key.into()]).unwrap();
    }
    writer.store.delete_specs_except(&["b", "z"]).unwrap();
    let mut reader = writer.reader();
    let kept = ["a", "b", "c"].map(|key| reader.spec(key, TaskIx(0)).unwrap().is_some());
    assert_eq!(kept, [false, true, false]);
}
