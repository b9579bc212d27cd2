//! Writing: each method is a transaction that begins with the fence.

use std::collections::BTreeSet;

use coordinator_core::state::{Image, RunImage};
use coordinator_core::{Epoch, Event, Timestamp};
use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};

use super::history::{self, Mover};
use super::read::{self, Wanted};
use super::{Body, SqliteReader, SqliteStore, database, held_epoch, int};
use crate::store::form::{self, Head};
use crate::store::{
    Batch, BatchSeq, Error, Loaded, Place, Progress, Reader, Store, Summary, runs_of,
};

/// Journal rows that one step of truncating moves: some tens of milliseconds.
const BATCHES_PER_STEP: usize = 256;
/// Bytes of journal rows after which a step of truncating ends.
const BYTES_PER_STEP: usize = 4 * 1024 * 1024;
/// Events that one step of archiving moves: some tens of milliseconds.
const EVENTS_PER_STEP: usize = 8_192;

const CLAIM: &str = "UPDATE epoch SET epoch = epoch + 1";
const APPEND: &str = "INSERT INTO journal (batch, form, sum, body) VALUES (?1, ?2, ?3, ?4)";
const INDEX: &str =
    "INSERT INTO journal_run (run, first_seq, last_seq, batch) VALUES (?1, ?2, ?3, ?4)";
const REMOVE: &str = "DELETE FROM journal WHERE batch = ?1";
const UNINDEX: &str = "DELETE FROM journal_run WHERE run = ?1 AND first_seq = ?2";
const FORGET_UNVERIFIED: &str = "DELETE FROM snapshot WHERE verified = 0";
const SNAPSHOT: &str =
    "INSERT INTO snapshot (upto, verified, form, sum, body) VALUES (?1, 0, ?2, ?3, ?4)";
const SNAPSHOT_RUN: &str =
    "INSERT INTO snapshot_run (upto, run, form, sum, body) VALUES (?1, ?2, ?3, ?4, ?5)";
const VERIFIED: &str = "UPDATE snapshot SET verified = 1 WHERE upto = ?1";
const KEEP_TWO: &str = "DELETE FROM snapshot WHERE upto NOT IN
    (SELECT upto FROM snapshot WHERE verified = 1 ORDER BY upto DESC LIMIT 2)";
const ARCHIVED_SEQ: &str = "SELECT last_seq FROM archive WHERE run = ?1";
const ARCHIVE: &str = "INSERT OR REPLACE INTO archive
    (run, name, last_seq, form, summary_sum, summary, sum, body)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
const FORGET_SPECS: &str = "DELETE FROM spec WHERE key = ?1";
const SPEC: &str = "INSERT INTO spec (key, task, body) VALUES (?1, ?2, ?3)";
const SPEC_KEYS: &str = "SELECT DISTINCT key FROM spec";

impl Store for SqliteStore {
    fn load(&mut self) -> Result<Loaded, Error> {
        let mut snapshot = None;
        let mut unreadable = None;
        for upto in read::verified(&self.connection)? {
            match read::snapshot(&self.connection, upto) {
                Ok(read) => {
                    snapshot = Some(read);
                    break;
                }
                Err(error) => {
                    tracing::warn!(%upto, error = %error, "snapshot cannot be read, trying the one before");
                    unreadable = Some(error);
                }
            }
        }
        if let (None, Some(error)) = (&snapshot, unreadable) {
            return Err(error);
        }
        Ok(Loaded {
            snapshot,
            next: read::next_batch(&self.connection)?,
            epoch: held_epoch(&self.connection)?,
        })
    }

    fn replay(
        &mut self,
        after: BatchSeq,
        visit: &mut dyn FnMut(BatchSeq, Batch),
    ) -> Result<(), Error> {
        let next = read::next_batch(&self.connection)?;
        let mut expected = after.next();
        read::batches(&self.connection, after, |seq, batch, _| {
            if seq != expected {
                return Err(Error::NoSuchBatch(expected));
            }
            expected = seq.next();
            visit(seq, batch);
            Ok(Wanted::More)
        })?;
        if expected < next {
            return Err(Error::NoSuchBatch(expected));
        }
        Ok(())
    }

    fn claim_epoch(&mut self) -> Result<Epoch, Error> {
        let failed = database("claim an epoch");
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(failed)?;
        transaction.execute(CLAIM, []).map_err(failed)?;
        let epoch = held_epoch(&transaction)?;
        transaction.commit().map_err(failed)?;
        self.epoch = epoch;
        Ok(epoch)
    }

    fn append(
        &mut self,
        expected: BatchSeq,
        epoch: Epoch,
        at: Timestamp,
        events: &[Event],
    ) -> Result<(), Error> {
        let doing = "append a batch";
        let failed = database(doing);
        let body = form::encode_batch(epoch, at, events).map_err(|source| Error::Form {
            what: Place::Batch(expected),
            source,
        })?;
        let body = Body::new(body);
        let runs = runs_of(events)?;
        let transaction = self.begin(doing, epoch)?;
        let next = read::next_batch(&transaction)?;
        if next != expected {
            return Err(Error::Conflict { expected, next });
        }
        let batch = int(expected.0)?;
        transaction
            .prepare_cached(APPEND)
            .map_err(failed)?
            .execute(params![batch, body.form, body.sum, body.bytes])
            .map_err(failed)?;
        for (run, first, last) in runs {
            transaction
                .prepare_cached(INDEX)
                .map_err(failed)?
                .execute([int(run.0)?, int(first)?, int(last)?, batch])
                .map_err(failed)?;
        }
        transaction.commit().map_err(failed)
    }

    fn snapshot(&mut self, upto: BatchSeq, image: &Image) -> Result<(), Error> {
        if read::verified(&self.connection)?.contains(&upto) {
            return Ok(());
        }
        self.write_snapshot(upto, image)?;
        let back = read::snapshot(&self.check, upto)?;
        if back.image != *image {
            return Err(Error::NotVerified(upto));
        }
        let doing = "keep a snapshot";
        let failed = database(doing);
        let epoch = self.epoch;
        let transaction = self.begin(doing, epoch)?;
        transaction
            .execute(VERIFIED, [int(upto.0)?])
            .map_err(failed)?;
        transaction.execute(KEEP_TWO, []).map_err(failed)?;
        transaction.commit().map_err(failed)
    }

    fn truncate(&mut self) -> Result<Progress, Error> {
        let doing = "truncate the journal";
        let epoch = self.epoch;
        let transaction = self.begin(doing, epoch)?;
        let Some(&floor) = read::verified(&transaction)?.get(1) else {
            return Ok(Progress::Done);
        };
        let mut mover = Mover::new(&transaction);
        let mut removed = Vec::new();
        let mut bytes = 0;
        let mut progress = Progress::Done;
        read::batches(&transaction, BatchSeq(0), |seq, batch, length| {
            if seq > floor {
                return Ok(Wanted::NoMore);
            }
            if removed.len() == BATCHES_PER_STEP || bytes > BYTES_PER_STEP {
                progress = Progress::More;
                return Ok(Wanted::NoMore);
            }
            for event in &batch.events {
                if let Some(run) = event.kind.run() {
                    mover.push(run, event)?;
                }
            }
            bytes += length;
            removed.push((seq, runs_of(&batch.events)?));
            Ok(Wanted::More)
        })?;
        mover.finish()?;
        for (seq, runs) in removed {
            remove(&transaction, seq, &runs)?;
        }
        transaction.commit().map_err(database(doing))?;
        Ok(progress)
    }

    fn archive(&mut self, image: &RunImage) -> Result<Progress, Error> {
        let doing = "archive a run";
        let failed = database(doing);
        let run = image.run.id;
        let summary = Summary::of(&image.run).ok_or(Error::NotEnded(run))?;
        let place = int(run.0)?;
        let epoch = self.epoch;
        let transaction = self.begin(doing, epoch)?;
        let held = transaction
            .query_row(ARCHIVED_SEQ, [place], |row| row.get::<_, i64>(0))
            .optional()
            .map_err(failed)?
            .map_or(0, i64::unsigned_abs);
        let given = image.run.last_seq;
        if held > given {
            return Err(Error::ArchivedLater { run, held, given });
        }
        if move_history(&transaction, image)? == Progress::More {
            transaction.commit().map_err(failed)?;
            return Ok(Progress::More);
        }
        let formed = |source| Error::Form {
            what: Place::Archive(run),
            source,
        };
        let body = Body::new(form::encode_run(&image.run).map_err(formed)?);
        let summary = Body::new(form::encode_summary(&summary).map_err(formed)?);
        transaction
            .execute(
                ARCHIVE,
                params![
                    place,
                    &*image.run.name,
                    int(given)?,
                    body.form,
                    summary.sum,
                    summary.bytes,
                    body.sum,
                    body.bytes
                ],
            )
            .map_err(failed)?;
        transaction.commit().map_err(failed)?;
        Ok(Progress::Done)
    }

    fn put_specs(&mut self, key: &str, specs: &[Vec<u8>]) -> Result<(), Error> {
        let doing = "keep the specs of a run";
        let failed = database(doing);
        let epoch = self.epoch;
        let transaction = self.begin(doing, epoch)?;
        transaction.execute(FORGET_SPECS, [key]).map_err(failed)?;
        let mut statement = transaction.prepare_cached(SPEC).map_err(failed)?;
        for (task, spec) in (0_u32..).zip(specs) {
            statement
                .execute(params![key, task, spec])
                .map_err(failed)?;
        }
        drop(statement);
        transaction.commit().map_err(failed)
    }

    fn delete_specs_except(&mut self, keys: &[&str]) -> Result<(), Error> {
        let doing = "forget specs";
        let failed = database(doing);
        let epoch = self.epoch;
        let keep: BTreeSet<&str> = keys.iter().copied().collect();
        let transaction = self.begin(doing, epoch)?;
        let held: Vec<String> = transaction
            .prepare_cached(SPEC_KEYS)
            .and_then(|mut statement| statement.query_map([], |row| row.get(0))?.collect())
            .map_err(failed)?;
        for key in held {
            if !keep.contains(key.as_str()) {
                transaction.execute(FORGET_SPECS, [key]).map_err(failed)?;
            }
        }
        transaction.commit().map_err(failed)
    }

    fn reader(&self) -> Result<Box<dyn Reader>, Error> {
        Ok(Box::new(SqliteReader::open(&self.path)?))
    }
}

impl SqliteStore {
    /// Writes a snapshot that does not count yet. What an earlier, killed one left goes.
    pub(super) fn write_snapshot(&mut self, upto: BatchSeq, image: &Image) -> Result<(), Error> {
        let doing = "write a snapshot";
        let failed = database(doing);
        let formed = |source| Error::Form {
            what: Place::Snapshot(upto),
            source,
        };
        let epoch = self.epoch;
        let transaction = self.begin(doing, epoch)?;
        let batch = read::batch(&transaction, upto)?.ok_or(Error::NoSuchBatch(upto))?;
        let place = int(upto.0)?;
        transaction.execute(FORGET_UNVERIFIED, []).map_err(failed)?;
        let head = Body::new(form::encode_head(&Head::new(batch.at, image)).map_err(formed)?);
        transaction
            .execute(SNAPSHOT, params![place, head.form, head.sum, head.bytes])
            .map_err(failed)?;
        for run in &image.runs {
            let body = Body::new(form::encode_run(run).map_err(formed)?);
            transaction
                .prepare_cached(SNAPSHOT_RUN)
                .map_err(failed)?
                .execute(params![
                    place,
                    int(run.id.0)?,
                    body.form,
                    body.sum,
                    body.bytes
                ])
                .map_err(failed)?;
        }
        transaction.commit().map_err(failed)
    }
}

/// Copies events of an ended run from the journal into its history.
fn move_history(connection: &Connection, image: &RunImage) -> Result<Progress, Error> {
    let run = image.run.id;
    let wanted = image.run.last_seq;
    let mut last = history::end(connection, run)?;
    let mut mover = Mover::new(connection);
    let mut moved = 0;
    let from = last.saturating_add(1);
    if last < wanted {
        read::journal_events(connection, run, from, |event| {
            if event.seq > wanted || moved == EVENTS_PER_STEP {
                return Ok(Wanted::NoMore);
            }
            mover.push(run, &event)?;
            last = event.seq;
            moved += 1;
            Ok(Wanted::More)
        })?;
    }
    mover.finish()?;
    if last >= wanted {
        Ok(Progress::Done)
    } else if moved == EVENTS_PER_STEP {
        Ok(Progress::More)
    } else {
        Err(Error::HistoryEnds { run, last, wanted })
    }
}

fn remove(
    connection: &Connection,
    seq: BatchSeq,
    runs: &[(coordinator_core::RunId, u64, u64)],
) -> Result<(), Error> {
    let failed = database("remove a batch");
    for (run, first, _) in runs {
        connection
            .prepare_cached(UNINDEX)
            .map_err(failed)?
            .execute([int(run.0)?, int(*first)?])
            .map_err(failed)?;
    }
    connection
        .prepare_cached(REMOVE)
        .map_err(failed)?
        .execute([int(seq.0)?])
        .map_err(failed)?;
    Ok(())
}
