//! The output of one attempt or verify.

use coordinator_core::event::Work;
use coordinator_core::state::{Run, Task};
use coordinator_core::{AttemptNo, LeaseId, TaskIx};
use muster_proto::v1::{ReadLogRequest, ReadLogResponse};
use tokio::sync::mpsc;
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
    let (run, of) = (name.clone(), task.clone());
    let leases = runs
        .read_transcript(move |root| transcript::leases(root, &run, &of, work))
        .await?;
    let leases = if leases.is_empty() {
        known.into_iter().collect()
    } else {
        leases
    };
    let places = leases
        .into_iter()
        .map(|lease| Place {
            run: name.clone(),
            task: task.clone(),
            work,
            lease,
        })
        .collect();
    Ok(Log { places })
}

type Wanted = (std::sync::Arc<str>, Work, Option<LeaseId>);

fn work(run: &Run, name: &str, attempt: u32, verify: bool) -> Result<Wanted, Status> {
    if name.is_empty() {
        return Ok((std::sync::Arc::from(""), Work::FinalVerify, None));
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

/// Sends a log, and with `follow` what is added until the run ends.
pub(super) async fn send(
    runs: Runs,
    log: Log,
    after: u64,
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
    log: Log,
    after: u64,
    follow: bool,
    out: &mpsc::Sender<Result<ReadLogResponse, Status>>,
) -> Result<(), Status> {
    let mut grown = runs.transcripts().grown();
    let mut committed = runs.engine().notices().committed();
    for place in log.places {
        let mut position = Position::default();
        let (mut heard_out, mut last_words) = (false, None);
        loop {
            grown.mark_unchanged();
            committed.mark_unchanged();
            let lease = place.lease;
            let over = runs
                .engine()
                .query(move |state, _| state.lease(lease).is_none())
                .await
                .map_err(status::of)?;
            let read_place = place.clone();
            let (mut events, moved) = runs
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
                slow::offer(response, out, "log", "go on behind the last event").await?;
            }
            if read_any {
                continue;
            }
            if !follow {
                break;
            }
            if over {
                let until = *last_words.get_or_insert_with(|| Instant::now() + LAST_WORDS);
                if heard_out || Instant::now() >= until {
                    break;
                }
            }
            // Every agent of every run wakes it.
            tokio::time::sleep(AGENTS_PACE).await;
            tokio::select! {
                _ = grown.changed() => {}
                _ = committed.changed() => {}
                () = tokio::time::sleep(LAST_WORDS), if over => {}
                () = out.closed() => return Ok(()),
            }
        }
    }
    Ok(())
}
