//! SQLite and memory agree on everything that can be seen, whatever is done in whatever order.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::contract::{Home, InMemory, OnDisk, Writer, event, history, replayed, writer};
use super::form::samples;
use super::memory::MemoryStore;
use super::{BatchSeq, Error, Store, Which};
use coordinator_core::RunId;

const RUNS: u64 = 4;

#[derive(Clone, Debug)]
enum Step {
    /// Appends so many events of each run in one batch.
    Append([u8; RUNS as usize]),
    Snapshot,
    Truncate,
    Archive(u64),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::array::uniform(0_u8..4).prop_map(Step::Append),
        2 => Just(Step::Snapshot),
        2 => Just(Step::Truncate),
        2 => (1..=RUNS).prop_map(Step::Archive),
        1 => Just(Step::Reopen),
    ]
}

/// All that can be seen of a store, and what must hold of it.
fn seen(writer: &mut Writer<dyn Store>, last: &BTreeMap<u64, u64>) -> String {
    let loaded = writer.store.load().unwrap();
    let tail = replayed(&mut *writer.store, loaded.upto());
    let mut reader = writer.reader();
    for run in 1..=RUNS {
        let wanted = Vec::from_iter(1..=last.get(&run).copied().unwrap_or(0));
        assert_eq!(history(&mut *reader, run), wanted);
    }
    let archive = reader.archived_runs(None, 99).unwrap();
    let images: Vec<_> = archive
        .iter()
        .map(|summary| reader.archived_image(summary.run).unwrap())
        .collect();
    let missing = reader.archived(Which::Id(RunId(RUNS + 1))).unwrap();
    let whole = match writer.store.replay(BatchSeq(0), &mut |_, _| {}) {
        Ok(()) => "whole".to_owned(),
        Err(Error::NoSuchBatch(seq)) => format!("from behind {seq}"),
        Err(error) => panic!("{error:?}"),
    };
    format!("{loaded:?} {tail:?} {archive:?} {images:?} {missing:?} {whole}")
}

fn take(
    step: &Step,
    home: &dyn Home,
    mut taken: Writer<dyn Store>,
    last: &BTreeMap<u64, u64>,
) -> Writer<dyn Store> {
    match step {
        Step::Append(counts) => {
            let events: Vec<_> = (1..)
                .zip(counts)
                .flat_map(|(run, count)| {
                    let from = last.get(&run).copied().unwrap_or(0);
                    (from + 1..=from + u64::from(*count)).map(move |seq| event(run, seq))
                })
                .collect();
            taken.append(&events);
        }
        Step::Snapshot if taken.next > BatchSeq(1) => {
            taken.snapshot();
        }
        Step::Snapshot => {}
        Step::Truncate => {
            taken.truncate();
        }
        Step::Archive(run) => {
            if let Some(last) = last.get(run) {
                taken.archive(&samples::ended_run(*run, *last));
            }
        }
        Step::Reopen => {
            drop(taken);
            return writer(home);
        }
    }
    taken
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..Default::default() })]

    #[test]
    fn sqlite_and_memory_agree(steps in prop::collection::vec(step(), 1..40)) {
        let (disk, memory) = (OnDisk::quick(), InMemory(MemoryStore::new()));
        let (mut on_disk, mut in_memory) = (writer(&disk), writer(&memory));
        let mut last = BTreeMap::new();
        for step in &steps {
            on_disk = take(step, &disk, on_disk, &last);
            in_memory = take(step, &memory, in_memory, &last);
            if let Step::Append(counts) = step {
                for (run, count) in (1..).zip(counts) {
                    *last.entry(run).or_insert(0) += u64::from(*count);
                }
            }
            prop_assert_eq!(seen(&mut on_disk, &last), seen(&mut in_memory, &last));
        }
    }
}
