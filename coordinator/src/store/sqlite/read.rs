//! Reading: snapshots and the journal for a start, histories, archive and specs for people.

use coordinator_core::event::EventKind;
use coordinator_core::state::RunImage;
use coordinator_core::{Event, RunId, TaskIx};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{Body, SqliteReader, database, history, int};
use crate::store::{
    Batch, BatchSeq, EVENTS_PER_READ_MAX, Error, POOL_BATCHES, Place, Reader,
    SUMMARIES_PER_READ_MAX, Snapshot, Summary, Which, form,
};

const NEXT: &str = "SELECT max(
    coalesce((SELECT max(batch) FROM journal), 0),
    coalesce((SELECT max(upto) FROM snapshot), 0)) + 1";
const BATCHES: &str = "SELECT batch, form, sum, body FROM journal WHERE batch > ?1 ORDER BY batch";
const BATCH: &str = "SELECT form, sum, body FROM journal WHERE batch = ?1";
const SNAPSHOTS: &str = "SELECT upto FROM snapshot WHERE verified = 1 ORDER BY upto DESC";
const HEAD: &str = "SELECT form, sum, body FROM snapshot WHERE upto = ?1";
const SNAPSHOT_RUN: &str = "SELECT form, sum, body FROM snapshot_run WHERE upto = ?1 AND run = ?2";
const HISTORY: &str =
    "SELECT form, sum, body FROM history WHERE run = ?1 AND first_seq >= coalesce(
    (SELECT max(first_seq) FROM history WHERE run = ?1 AND first_seq <= ?2), 0)
    ORDER BY first_seq";
const JOURNAL_OF_RUN: &str = "SELECT journal.batch, form, sum, body
    FROM journal_run JOIN journal USING (batch)
    WHERE run = ?1 AND first_seq >= coalesce(
    (SELECT max(first_seq) FROM journal_run WHERE run = ?1 AND first_seq <= ?2), 0)
    ORDER BY first_seq";
const POOLS: &str = "SELECT batch, form, sum, body FROM
    (SELECT batch, form, sum, body FROM journal ORDER BY batch DESC LIMIT ?1)
    WHERE instr(body, ?2) > 0 ORDER BY batch DESC";
/// How each event of pools is written, in every form that knows them.
const OF_POOLS: &[u8] = br#""k":"pool""#;
const SUMMARY_BY_ID: &str = "SELECT run, form, summary_sum, summary FROM archive WHERE run = ?1";
const SUMMARY_BY_NAME: &str = "SELECT run, form, summary_sum, summary FROM archive WHERE name = ?1";
const SUMMARIES: &str = "SELECT run, form, summary_sum, summary FROM archive WHERE run < ?1
    ORDER BY run DESC LIMIT ?2";
const IMAGE: &str = "SELECT form, sum, body FROM archive WHERE run = ?1";
const SPEC: &str = "SELECT body FROM spec WHERE key = ?1 AND task = ?2";

/// Gives the number of the next batch.
pub(super) fn next_batch(connection: &Connection) -> Result<BatchSeq, Error> {
    let next: i64 = connection
        .prepare_cached(NEXT)
        .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
        .map_err(database("find the journal's end"))?;
    Ok(BatchSeq(next.unsigned_abs()))
}

/// Gives one batch of the journal.
pub(super) fn batch(connection: &Connection, seq: BatchSeq) -> Result<Option<Batch>, Error> {
    let place = int(seq.0)?;
    connection
        .prepare_cached(BATCH)
        .and_then(|mut statement| {
            statement
                .query_row([place], |row| Body::of(row, 0))
                .optional()
        })
        .map_err(database("read a batch"))?
        .map(|body| body.read(Place::Batch(seq), form::decode_batch))
        .transpose()
}

/// Gives all batches after one, in order, as long as `visit` wants more.
pub(super) fn batches(
    connection: &Connection,
    after: BatchSeq,
    mut visit: impl FnMut(BatchSeq, Batch, usize) -> Result<Wanted, Error>,
) -> Result<(), Error> {
    let failed = database("read the journal");
    let mut statement = connection.prepare_cached(BATCHES).map_err(failed)?;
    let mut rows = statement.query([int(after.0)?]).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        let seq = BatchSeq(row.get::<_, i64>(0).map_err(failed)?.unsigned_abs());
        let body = Body::of(row, 1).map_err(failed)?;
        let batch = body.read(Place::Batch(seq), form::decode_batch)?;
        if visit(seq, batch, body.bytes.len())? == Wanted::NoMore {
            break;
        }
    }
    Ok(())
}

/// Whether a visitor wants the next row.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    More,
    NoMore,
}

/// Gives the verified snapshots, newest first.
pub(super) fn verified(connection: &Connection) -> Result<Vec<BatchSeq>, Error> {
    connection
        .prepare_cached(SNAPSHOTS)
        .and_then(|mut statement| {
            statement
                .query_map([], |row| Ok(BatchSeq(row.get::<_, i64>(0)?.unsigned_abs())))?
                .collect()
        })
        .map_err(database("find the snapshots"))
}

/// Reads a snapshot whole.
pub(super) fn snapshot(connection: &Connection, upto: BatchSeq) -> Result<Snapshot, Error> {
    let failed = database("read a snapshot");
    let what = Place::Snapshot(upto);
    let place = int(upto.0)?;
    let head = connection
        .prepare_cached(HEAD)
        .and_then(|mut statement| statement.query_row([place], |row| Body::of(row, 0)))
        .map_err(failed)?
        .read(what, form::decode_head)?;
    let mut runs = Vec::with_capacity(head.runs.len());
    for run in &head.runs {
        let body = connection
            .prepare_cached(SNAPSHOT_RUN)
            .map_err(failed)?
            .query_row([place, int(run.0)?], |row| Body::of(row, 0))
            .optional()
            .map_err(failed)?
            .ok_or(Error::Damaged(what))?;
        runs.push(body.read(what, form::decode_run)?.run);
    }
    Ok(Snapshot {
        upto,
        at: head.at,
        image: head.with_runs(runs),
    })
}

/// Gives the events of a run that the journal holds from a sequence number on, batch by batch.
pub(super) fn journal_events(
    connection: &Connection,
    run: RunId,
    from: u64,
    mut visit: impl FnMut(Event) -> Result<Wanted, Error>,
) -> Result<(), Error> {
    let failed = database("read a run's events");
    let mut statement = connection.prepare_cached(JOURNAL_OF_RUN).map_err(failed)?;
    let mut rows = statement.query([int(run.0)?, int(from)?]).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        let seq = BatchSeq(row.get::<_, i64>(0).map_err(failed)?.unsigned_abs());
        let body = Body::of(row, 1).map_err(failed)?;
        let batch = body.read(Place::Batch(seq), form::decode_batch)?;
        for event in batch.events {
            let wanted = event.kind.run() == Some(run) && event.seq >= from;
            if wanted && visit(event)? == Wanted::NoMore {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn history_events(
    connection: &Connection,
    run: RunId,
    from: u64,
    limit: usize,
    events: &mut Vec<Event>,
) -> Result<(), Error> {
    let failed = database("read a run's history");
    let mut statement = connection.prepare_cached(HISTORY).map_err(failed)?;
    let mut rows = statement.query([int(run.0)?, int(from)?]).map_err(failed)?;
    while events.len() < limit
        && let Some(row) = rows.next().map_err(failed)?
    {
        let chunk = Body::of(row, 0)
            .map_err(failed)?
            .read(Place::History(run), form::decode_events)?;
        let room = limit - events.len();
        events.extend(
            chunk
                .into_iter()
                .filter(|event| event.seq >= from)
                .take(room),
        );
    }
    Ok(())
}

impl Reader for SqliteReader {
    fn run_events(&mut self, run: RunId, from: u64, limit: usize) -> Result<Vec<Event>, Error> {
        let limit = limit.min(EVENTS_PER_READ_MAX);
        // One transaction, or events could move from the journal to the history in between.
        let transaction = self
            .connection
            .transaction()
            .map_err(database("begin to read a run's events"))?;
        let mut events = Vec::new();
        let moved = history::end(&transaction, run)?;
        if from <= moved {
            history_events(&transaction, run, from, limit, &mut events)?;
        }
        if events.len() < limit {
            let from = from.max(moved.saturating_add(1));
            journal_events(&transaction, run, from, |event| {
                events.push(event);
                Ok(if events.len() < limit {
                    Wanted::More
                } else {
                    Wanted::NoMore
                })
            })?;
        }
        Ok(events)
    }

    fn pool_events(&mut self, limit: usize) -> Result<Vec<Event>, Error> {
        let failed = database("read what happened to pools");
        let batches = int(u64::try_from(POOL_BATCHES).unwrap_or(u64::MAX))?;
        let mut statement = self.connection.prepare_cached(POOLS).map_err(failed)?;
        let mut rows = statement
            .query(params![batches, OF_POOLS])
            .map_err(failed)?;
        let mut events: Vec<Event> = vec![];
        while events.len() < limit
            && let Some(row) = rows.next().map_err(failed)?
        {
            let seq = BatchSeq(row.get::<_, i64>(0).map_err(failed)?.unsigned_abs());
            let body = Body::of(row, 1).map_err(failed)?;
            let batch = body.read(Place::Batch(seq), form::decode_batch)?;
            let events_of = batch.events.into_iter().rev();
            events.extend(events_of.filter(|event| matches!(event.kind, EventKind::Pool(_))));
        }
        events.truncate(limit);
        events.reverse();
        Ok(events)
    }

    fn archived(&mut self, which: Which<'_>) -> Result<Option<Summary>, Error> {
        let failed = database("read the archive");
        let row = match which {
            Which::Id(run) => {
                let run = int(run.0)?;
                self.connection
                    .prepare_cached(SUMMARY_BY_ID)
                    .and_then(|mut statement| statement.query_row([run], summary_row).optional())
            }
            Which::Name(name) => self
                .connection
                .prepare_cached(SUMMARY_BY_NAME)
                .and_then(|mut statement| statement.query_row([name], summary_row).optional()),
        };
        row.map_err(failed)?.map(summary).transpose()
    }

    fn archived_runs(
        &mut self,
        before: Option<RunId>,
        limit: usize,
    ) -> Result<Vec<Summary>, Error> {
        let failed = database("list the archive");
        let before = before.map_or(Ok(i64::MAX), |run| int(run.0))?;
        let limit = int(limit.min(SUMMARIES_PER_READ_MAX) as u64)?;
        let mut statement = self.connection.prepare_cached(SUMMARIES).map_err(failed)?;
        let rows = statement
            .query_map([before, limit], summary_row)
            .map_err(failed)?;
        rows.map(|row| summary(row.map_err(failed)?)).collect()
    }

    fn archived_image(&mut self, run: RunId) -> Result<Option<RunImage>, Error> {
        let place = int(run.0)?;
        self.connection
            .prepare_cached(IMAGE)
            .and_then(|mut statement| {
                statement
                    .query_row([place], |row| Body::of(row, 0))
                    .optional()
            })
            .map_err(database("read an archived run"))?
            .map(|body| body.read(Place::Archive(run), form::decode_run))
            .transpose()
    }

    fn spec(&mut self, key: &str, task: TaskIx) -> Result<Option<Vec<u8>>, Error> {
        self.connection
            .prepare_cached(SPEC)
            .and_then(|mut statement| {
                statement
                    .query_row(params![key, task.0], |row| row.get(0))
                    .optional()
            })
            .map_err(database("read a spec"))
    }
}

fn summary_row(row: &Row<'_>) -> rusqlite::Result<(RunId, Body)> {
    let run = RunId(row.get::<_, i64>(0)?.unsigned_abs());
    Ok((run, Body::of(row, 1)?))
}

fn summary((run, body): (RunId, Body)) -> Result<Summary, Error> {
    body.read(Place::Archive(run), form::decode_summary)
}
