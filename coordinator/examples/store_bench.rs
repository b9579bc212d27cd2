//! Measures how many batches and events a second the SQLite store commits, with full sync.
//!
//! `cargo run --release -p coordinator --example store_bench [FOLDER]`; the folder (default: the
//! system's temporary one) decides which disk is measured. Prints medians of several rounds.

#![expect(clippy::print_stdout, reason = "a measurement is printed")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use coordinator::store::sqlite::SqliteStore;
use coordinator::store::{BatchSeq, Store as _};
use coordinator_core::event::{Placement, Work};
use coordinator_core::time::Span;
use coordinator_core::{
    AttemptNo, Event, EventKind, Incarnation, LeaseId, RunId, TaskIx, Timestamp, WorkerId,
};

const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_millis(700);
const RUNS: u64 = 16;

fn main() -> Result<()> {
    let folder = match std::env::args_os().nth(1) {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    }
    .context("failed to make a folder for the measurement")?;
    println!("events a batch | commits/s | events/s | slowest commit");
    for size in [1, 64, 512] {
        let path = folder.path().join(format!("{size}.db"));
        measure(&path, size)?;
    }
    Ok(())
}

fn measure(path: &std::path::Path, size: u64) -> Result<()> {
    let mut store = SqliteStore::open(path)?;
    let epoch = store.claim_epoch()?;
    let mut seq = BatchSeq(1);
    let mut written = 0;
    let mut rates = Vec::with_capacity(ROUNDS);
    let mut slowest = Duration::ZERO;
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        let mut commits = 0_u32;
        while begin.elapsed() < ROUND {
            let events: Vec<_> = (written..written + size).map(event).collect();
            let before = Instant::now();
            store.append(seq, epoch, Timestamp::from_ms(seq.0), &events)?;
            slowest = slowest.max(before.elapsed());
            seq = seq.next();
            written += size;
            commits += 1;
        }
        rates.push(f64::from(commits) / begin.elapsed().as_secs_f64());
    }
    rates.sort_by(f64::total_cmp);
    let median = rates.get(ROUNDS / 2).copied().unwrap_or_default();
    println!(
        "{size:14} | {median:9.0} | {:8.0} | {:.1} ms",
        median * f64::from(u32::try_from(size)?),
        slowest.as_secs_f64() * 1e3
    );
    let begin = Instant::now();
    let mut events = 0;
    store.replay(BatchSeq(0), &mut |_, batch| events += batch.events.len())?;
    println!(
        "{:14} | replay of {events} events: {:.0} events/s; file {} bytes an event",
        "",
        events as f64 / begin.elapsed().as_secs_f64(),
        (std::fs::metadata(path)?.len()) / written
    );
    Ok(())
}

/// Events of several runs in turn, each a grant as it happens most.
fn event(number: u64) -> Event {
    let run = RunId(number % RUNS);
    Event {
        seq: number / RUNS + 1,
        at: Timestamp::from_ms(1_795_000_000_000 + number),
        kind: EventKind::LeaseGranted {
            run,
            lease: LeaseId(number),
            work: Work::Attempt {
                task: TaskIx(7),
                attempt: AttemptNo(1),
            },
            worker: WorkerId::new("node-0017/4711/3"),
            incarnation: Incarnation(12),
            ttl: Span::from_secs(60),
            placement: Placement {
                free: 2,
                available: 3,
                passed: 1,
                continues: false,
            },
        },
    }
}
