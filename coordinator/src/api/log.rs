//! The output of one attempt or verify.

use std::sync::Arc;
use std::time::Duration;

use coordinator_core::event::Work;
use coordinator_core::state::{Run, RunPhase, Task, TaskState};
use coordinator_core::{AttemptNo, LeaseId, TaskIx};
use muster_proto::v1::{ReadLogRequest, ReadLogResponse};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::Status;

use super::limits::{AGENTS_PACE, FAREWELL};
use super::places::Connection;
use super::runs::Runs;
use super::{slow, status};
use crate::transcript::{self, LAST_WORDS, Place, Position};

/// Bytes of events in one response.
const BYTES_PER_RESPONSE: usize = 64 * 1024;

/// A log that was found: the transcripts of its leases, oldest first.
#[derive(Clone, Debug)]
pub(super) struct Log {
    run: Arc<str>,
    task: Arc<str>,
    work: Work,
    places: Vec<Place>,
}

/// Finds the log that is asked for.
///
/// # Errors
/// `NOT_FOUND` when there is no such run, task or attempt.
pub(super) async fn find(runs: &Runs, request: &ReadLogRequest) -> Result<Log, Status> {
    let (task, attempt, verify) = (request.task.clone(), request.attempt, request.verify);
    let (name, found) = runs
        .read(&request.run, move |run, _| {
            (run.name.clone(), work(run, &task, attempt, verify))
        })
        .await?;
    let (task, work, known) = found?;
    let mut log = Log {
        run: name,
        task,
        work,
        places: Vec::new(),
    };
    log.look(runs).await?;
    if log.places.is_empty() {
        log.places = known.into_iter().map(|lease| log.place(lease)).collect();
    }
    Ok(log)
}

impl Log {
    fn place(&self, lease: LeaseId) -> Place {
        Place {
            run: self.run.clone(),
            task: self.task.clone(),
            work: self.work,
            lease,
        }
    }

    /// Looks for leases that have said something.
    async fn look(&mut self, runs: &Runs) -> Result<(), Status> {
        let (run, task, work) = (self.run.clone(), self.task.clone(), self.work);
        let leases = runs
            .read_transcript(move |root| transcript::leases(root, &run, &task, work))
            .await?;
        self.places = leases.into_iter().map(|lease| self.place(lease)).collect();
        Ok(())
    }

    /// Tells whether the work has come to no end yet, so that another lease may carry it on.
    async fn goes_on(&self, runs: &Runs) -> Result<bool, Status> {
        let work = self.work;
        runs.read(&self.run, move |run, _| match work {
            // Another lease is another attempt.
            Work::Attempt { .. } => false,
            Work::Verify { task, attempt } => run.task(task).is_some_and(|task| {
                let last = task.attempts().last();
                matches!(task.state, TaskState::Verifying { .. })
                    && last.is_some_and(|last| last.number == attempt)
            }),
            Work::FinalVerify => matches!(run.phase, RunPhase::Verifying { .. }),
        })
        .await
    }
}

type Wanted = (Arc<str>, Work, Option<LeaseId>);

fn work(run: &Run, name: &str, attempt: u32, verify: bool) -> Result<Wanted, Status> {
    if name.is_empty() {
        return Ok((Arc::from(""), Work::FinalVerify, None));
    }
    let (ix, task) = run
        .tasks
        .iter()
        .enumerate()
        .find(|(_, task)| *task.name == *name)
        .ok_or_else(|| Status::not_found(format!("no task {name:?} in run {}", run.name)))?;
    let ix = TaskIx(u32::try_from(ix).unwrap_or(u32::MAX));
    let attempts = task
        .history
        .as_deref()
        .map_or(&[][..], |history| &history.attempts);
    let chosen = match attempt {
        0 => attempts.last(),
        number => attempts
            .iter()
            .find(|tried| tried.number == AttemptNo(number)),
    };
    let chosen = chosen.ok_or_else(|| no_attempt(task, attempt))?;
    Ok(if verify {
        (
            task.name.clone(),
            Work::Verify {
                task: ix,
                attempt: chosen.number,
            },
            None,
        )
    } else {
        let work = Work::Attempt {
            task: ix,
            attempt: chosen.number,
        };
        (task.name.clone(), work, Some(chosen.lease))
    })
}

fn no_attempt(task: &Task, attempt: u32) -> Status {
    if attempt == 0 {
        Status::not_found(format!(
            "task {} has no attempt yet; `explain` says why",
            task.name
        ))
    } else {
        Status::not_found(format!("task {} has no attempt {attempt}", task.name))
    }
}

/// Sends a log from behind an event of a lease on, and with `follow` what is added until the work
/// is over.
pub(super) async fn send(
    runs: Runs,
    log: Log,
    after: (LeaseId, u64),
    follow: bool,
    out: mpsc::Sender<Result<ReadLogResponse, Status>>,
    connection: Option<Connection>,
) {
    if let Err(status) = send_all(&runs, log, after, follow, &out).await {
        slow::end(status, &out, FAREWELL, connection.as_ref()).await;
    }
}

async fn send_all(
    runs: &Runs,
    mut log: Log,
    (lease, number): (LeaseId, u64),
    follow: bool,
    out: &mpsc::Sender<Result<ReadLogResponse, Status>>,
) -> Result<(), Status> {
    let mut sending = Sending {
        runs,
        follow,
        out,
        grown: runs.transcripts().grown(),
        committed: runs.engine().notices().committed(),
    };
    // What older leases said is known.
    let mut next = lease;
    let counted_in = match (lease, log.places.first()) {
        (LeaseId(0), Some(oldest)) => oldest.lease,
        _ => lease,
    };
    loop {
        for place in std::mem::take(&mut log.places) {
            if place.lease < next {
                continue;
            }
            next = LeaseId(place.lease.0.saturating_add(1));
            let after = if place.lease == counted_in { number } else { 0 };
            if sending.transcript(&place, after).await? == Reader::Gone {
                return Ok(());
            }
        }
        sending.mark_unchanged();
        // Asked before it is looked for more: what begins in between is found next time.
        let goes_on = follow && log.goes_on(runs).await?;
        if follow {
            log.look(runs).await?;
        }
        if log.places.iter().any(|place| place.lease >= next) {
            continue;
        }
        if !goes_on || sending.wait(None).await == Reader::Gone {
            return Ok(());
        }
    }
}

/// Whether anybody still wants to hear more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    There,
    Gone,
}

/// A log on its way to its reader.
struct Sending<'a> {
    runs: &'a Runs,
    follow: bool,
    out: &'a mpsc::Sender<Result<ReadLogResponse, Status>>,
    grown: watch::Receiver<u64>,
    committed: watch::Receiver<u64>,
}

impl Sending<'_> {
    fn mark_unchanged(&mut self) {
        self.grown.mark_unchanged();
        self.committed.mark_unchanged();
    }

    /// Waits until something may have been added, but not longer than `patience`.
    async fn wait(&mut self, patience: Option<Duration>) -> Reader {
        // Every agent of every run wakes it.
        tokio::time::sleep(AGENTS_PACE).await;
        tokio::select! {
            _ = self.grown.changed() => Reader::There,
            _ = self.committed.changed() => Reader::There,
            () = tokio::time::sleep(patience.unwrap_or_default()), if patience.is_some() => Reader::There,
            () = self.out.closed() => Reader::Gone,
        }
    }

    /// Sends what a lease has said behind an event, to its end if it is to be followed.
    async fn transcript(&mut self, place: &Place, after: u64) -> Result<Reader, Status> {
        let mut position = Position::default();
        let (mut heard_out, mut last_words) = (false, None);
        loop {
            self.mark_unchanged();
            let lease = place.lease;
            let over = self
                .runs
                .engine()
                .query(move |state, _| state.lease(lease).is_none())
                .await
                .map_err(status::of)?;
            let read_place = place.clone();
            let (mut events, moved) = self
                .runs
                .read_transcript(move |root| {
                    let events =
                        transcript::read_on(root, &read_place, &mut position, BYTES_PER_RESPONSE);
                    events.map(|events| (events, position))
                })
                .await?;
            position = moved;
            let read_any = !events.is_empty();
            heard_out |= events.iter().any(transcript::is_last);
            events.retain(|event| event.number > after);
            if !events.is_empty() {
                let response = ReadLogResponse {
                    events,
                    lease: lease.0,
                };
                slow::offer(response, self.out, "log", "go on behind the last event").await?;
            }
            if read_any {
                continue;
            }
            if !self.follow {
                return Ok(Reader::There);
            }
            if over {
                let until = *last_words.get_or_insert_with(|| Instant::now() + LAST_WORDS);
                if heard_out || Instant::now() >= until {
                    return Ok(Reader::There);
                }
            }
            if self.wait(over.then_some(LAST_WORDS)).await == Reader::Gone {
                return Ok(Reader::Gone);
            }
        }
    }
}
