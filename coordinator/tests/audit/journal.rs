//! The journal, its snapshots, the archive and the documents.

use coordinator::audit::Code;
use coordinator::store::sqlite::SqliteStore;
use coordinator::store::{BatchSeq, Progress, Store as _};
use coordinator_core::State;

use super::Then::{Clean, Stays};
use super::{Case, Place, case, codes, try_all};

/// Keeps a snapshot behind a batch, as a coordinator does.
fn snapshot(place: &Place, upto: u64) {
    let mut store = SqliteStore::open(&place.journal()).unwrap();
    store.claim_epoch().unwrap();
    let mut state = State::new();
    let replayed = store.replay(BatchSeq(0), &mut |seq, batch| {
        if seq.0 <= upto {
            for event in &batch.events {
                state.replay(event).unwrap();
            }
        }
    });
    replayed.unwrap();
    store.snapshot(BatchSeq(upto), &state.image()).unwrap();
}

/// Replaces a body by another that is right by its checksum.
fn reseal(place: &Place, table: &str, wherever: &str, from: &str, to: &str) {
    let journal = rusqlite::Connection::open(place.journal()).unwrap();
    let read = format!("SELECT rowid, body FROM {table} WHERE {wherever} ORDER BY rowid LIMIT 1");
    let (row, body): (i64, Vec<u8>) = journal
        .query_row(&read, [], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    let text = String::from_utf8(body).unwrap();
    assert!(text.contains(from), "{from} in {text}");
    let text = text.replace(from, to);
    let hash = blake3::hash(text.as_bytes());
    let sum = i64::from_le_bytes(*hash.as_bytes().first_chunk().unwrap());
    let write = format!("UPDATE {table} SET body = ?1, sum = ?2 WHERE rowid = ?3");
    journal
        .execute(&write, rusqlite::params![text.as_bytes(), sum, row])
        .unwrap();
}

fn first_at(place: &Place) -> u64 {
    let mut store = SqliteStore::open(&place.journal()).unwrap();
    let mut at = 0;
    let read = store.replay(BatchSeq(0), &mut |seq, batch| {
        if seq == BatchSeq(1) {
            at = batch.at.ms();
        }
    });
    read.unwrap();
    at
}

pub(super) const CASES: &[Case] = &[
    case(Code::JournalUnreadable, Stays, |place| {
        let whole = std::fs::read(place.journal()).unwrap();
        std::fs::write(place.journal(), &whole[..whole.len() / 2]).unwrap();
    }),
    case(Code::IndexDiffers, Stays, |place| {
        place.sql("DELETE FROM journal_run WHERE batch = (SELECT max(batch) FROM journal_run)");
    }),
    case(Code::TimeFell, Stays, |place| {
        let at = first_at(place).to_string();
        let later = format!("{}", first_at(place) + 1_000_000_000);
        reseal(place, "journal", "batch = 1", &at, &later);
    }),
    case(Code::EpochFell, Stays, |place| {
        place.sql("UPDATE epoch SET epoch = 0");
    }),
    case(Code::SnapshotUnfinished, Stays, |place| {
        snapshot(place, 6);
        place.sql("UPDATE snapshot SET verified = 0");
    }),
    case(Code::SnapshotDamaged, Clean, |place| {
        snapshot(place, 6);
        place.sql("UPDATE snapshot SET sum = sum + 1");
    }),
    case(Code::SnapshotDiffers, Clean, |place| {
        snapshot(place, 6);
        reseal(
            place,
            "snapshot",
            "upto = 6",
            r#""next_run":"#,
            r#""next_run":1"#,
        );
    }),
    case(Code::ArchiveMissing, Clean, |place| {
        place.sql("DELETE FROM archive");
    }),
    case(Code::ArchiveDamaged, Clean, |place| {
        place.sql("UPDATE archive SET sum = sum + 1");
    }),
    case(Code::ArchiveDiffers, Clean, |place| {
        reseal(place, "archive", "true", r#""plan":"p""#, r#""plan":"p""#);
        let words = (r#""digest":""#, r#""digest":"0"#);
        reseal(place, "archive", "true", words.0, words.1);
    }),
    case(Code::DocumentsMissing, Stays, |place| {
        let (done, _) = place.runs();
        place.sql(&format!(
            "DELETE FROM spec WHERE key = '{done}' AND task = 0"
        ));
    }),
    case(Code::DocumentsOfNoRun, Stays, |place| {
        place.sql("INSERT INTO spec VALUES ('other', 0, x'00')");
    }),
    case(Code::HistoryDamaged, Stays, |place| {
        // The history is what the archive was made of; the journal still has all of it.
        place.sql("UPDATE history SET sum = sum + 1");
    }),
    case(Code::HistoryDiffers, Stays, |place| {
        reseal(
            place,
            "history",
            "true",
            r#""worker":"w""#,
            r#""worker":"v""#,
        );
    }),
];

/// Codes that come together with others; see the test below.
pub(super) const OTHERS: &[Code] = &[
    Code::JournalDamaged,
    Code::BatchUnreadable,
    Code::BatchMissing,
    Code::EventGap,
    Code::ReplayContradicts,
    Code::InvariantBroken,
    Code::LeaseWithoutEnd,
    Code::CommitMissing,
    Code::CommitIncomplete,
    Code::ObjectsDamaged,
    Code::RefBroken,
    Code::ProcessLeft,
    Code::CgroupLeft,
    Code::DiskFull,
];

#[tokio::test(flavor = "multi_thread")]
async fn damage_of_the_journal_is_found_and_mended() {
    try_all(CASES).await;
}

/// The batch with the grants of the run that has not ended.
const GRANTS: &str = "batch = (SELECT max(batch) FROM journal
    WHERE CAST(body AS TEXT) LIKE '%lease_granted%')";

/// Keeps two snapshots, and lets go of the journal behind the older one.
fn shorten(place: &Place) {
    let mut store = SqliteStore::open(&place.journal()).unwrap();
    let last = store.load().unwrap().next.0 - 1;
    drop(store);
    snapshot(place, last - 1);
    snapshot(place, last);
    let mut store = SqliteStore::open(&place.journal()).unwrap();
    store.claim_epoch().unwrap();
    while store.truncate().unwrap() == Progress::More {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_was_shortened_is_sound() {
    let _nobodys = super::PROCESSES.read().await;
    let (_world, place) = super::built().await;
    shorten(&place);
    let report = place.look().await;
    assert_eq!(codes(&report, None), [""; 0], "{:#?}", report.findings);
    assert_eq!((report.counts.snapshots, report.counts.batches), (2, 1));
    assert_eq!((report.counts.runs, report.counts.tasks), (2, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_that_draws_circles_is_found_at_its_centre() {
    let _nobodys = super::PROCESSES.read().await;
    type Damage = fn(&Place);
    let (_world, sound) = super::built().await;
    let cases: [(&[Code], Damage); 6] = [
        (&[Code::BatchUnreadable], |place| {
            place.sql("UPDATE journal SET sum = sum + 1 WHERE batch = 5");
        }),
        (&[Code::BatchMissing, Code::EventGap], |place| {
            place.sql("DELETE FROM history; DELETE FROM journal WHERE batch = 7");
        }),
        (&[Code::ReplayContradicts], |place| {
            reseal(
                place,
                "journal",
                GRANTS,
                r#""worker":"w""#,
                r#""worker":"v""#,
            );
        }),
        (&[Code::InvariantBroken], |place| {
            reseal(
                place,
                "journal",
                GRANTS,
                r#""attempt":1}"#,
                r#""attempt":2}"#,
            );
        }),
        (&[Code::LeaseWithoutEnd, Code::LeaseClosedTwice], |place| {
            shorten(place);
            let closed = (
                r#""lease_closed","run":1,"lease":3"#,
                r#""lease_closed","run":1,"lease":9"#,
            );
            reseal(place, "history", "run = 1", closed.0, closed.1);
        }),
        (&[Code::JournalDamaged], |place| {
            place.sql(
                "PRAGMA foreign_keys = OFF; INSERT INTO snapshot_run VALUES (99, 1, 1, 0, x'00')",
            );
        }),
    ];
    for (wanted, damage) in cases {
        let folder = tempfile::tempdir().unwrap();
        let place = sound.copy(folder.path());
        damage(&place);
        let report = place.look().await;
        for code in wanted {
            let found = codes(&report, None);
            assert!(found.contains(&code.as_str()), "{:#?}", report.findings);
        }
    }
}
