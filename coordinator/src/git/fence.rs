//! What credentials stand for, asked of the engine: the fence of the hosted remote.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use coordinator_core::event::Work;
use coordinator_core::state::{AttemptEnd, Lease, Run};
use coordinator_core::{LeaseId, State, TaskIx, WorkerId};
use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::policy::{Fence, Refusal, Scope};
use super::projection::Projection;
use super::refs::{AttemptName, ParsedRef, TaskName};
use crate::auth::Identity;
use crate::engine::grant;
use crate::engine::{Handle, Readers};

/// Attempts of one worker whose salvage a session's credential opens at once.
const SALVAGE_MAX: usize = 256;

/// Archived runs, newest first, in which a worker's unfinished attempts are looked for.
const ARCHIVED_RUNS: usize = 64;

/// Answers from the engine's committed state.
#[derive(Clone)]
pub struct EngineFence {
    engine: Handle,
    readers: Readers,
    projection: Projection,
}

impl EngineFence {
    /// Makes the fence.
    #[must_use]
    pub fn new(engine: Handle, readers: Readers, projection: Projection) -> Self {
        Self {
            engine,
            readers,
            projection,
        }
    }

    /// Names the attempts whose unfinished edits a worker's session may bring, of live runs and of
    /// those archived last: a worker that was cut off may come back long after its task was done
    /// elsewhere, and what it had begun is still the user's.
    async fn salvageable(&self, worker: WorkerId, incarnation: u64) -> Result<Scope, Refusal> {
        let of = worker.clone();
        let live = self
            .engine
            .query(move |state, _| is_current(state, &of, incarnation).then(|| live(state, &of)))
            .await
            .map_err(|_| Refusal::Unavailable)?;
        let Some(mut attempts) = live else {
            return Err(Refusal::LeaseEnded);
        };
        let of = worker.clone();
        let archived = self.readers.read(move |reader| {
            let mut attempts = Vec::new();
            for summary in reader.archived_runs(None, ARCHIVED_RUNS)? {
                if let Some(image) = reader.archived_image(summary.run)? {
                    attempts.extend(unpublished(&image.run, &of, |_| false));
                }
            }
            Ok(attempts)
        });
        attempts.extend(archived.await.map_err(|_| Refusal::Unavailable)?);
        attempts.truncate(SALVAGE_MAX);
        let (attempts, bases): (Vec<_>, Vec<_>) = attempts.into_iter().unzip();
        let reads: BTreeSet<ParsedRef> = bases.into_iter().flatten().collect();
        Ok(Scope::Salvage {
            worker: worker.to_string(),
            incarnation,
            attempts,
            reads: reads.into_iter().collect(),
        })
    }

    async fn ask(
        &self,
        read: impl FnOnce(&State) -> Result<Scope, Refusal> + Send + 'static,
    ) -> Result<Scope, Refusal> {
        match self.engine.query(move |state, _| read(state)).await {
            Ok(answer) => answer,
            Err(_) => Err(Refusal::Unavailable),
        }
    }
}

impl Fence for EngineFence {
    fn scope<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Scope, Refusal>> {
        async move {
            match identity {
                Identity::Lease(lease) => {
                    let lease = LeaseId(*lease);
                    self.ask(move |state| of_lease(state, lease)).await
                }
                Identity::WorkerSession {
                    worker,
                    incarnation,
                } => self.salvageable(WorkerId::new(worker), *incarnation).await,
                Identity::Operator { .. } | Identity::Admin { .. } => {
                    self.show().await?;
                    Ok(Scope::Operator)
                }
                Identity::Viewer { .. } => {
                    self.show().await?;
                    Ok(Scope::Viewer)
                }
                Identity::Worker { .. } | Identity::Allocation(_) => Err(Refusal::NoAccess),
            }
        }
        .boxed()
    }

    fn still_live<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<(), Refusal>> {
        async move {
            match scope {
                Scope::Attempt { lease, .. } | Scope::Verify { lease, .. } => {
                    let lease = LeaseId(*lease);
                    self.ask(move |state| of_lease(state, lease))
                        .await
                        .map(|_| ())
                }
                Scope::Salvage {
                    worker,
                    incarnation,
                    ..
                } => {
                    let (worker, incarnation) = (WorkerId::new(worker), *incarnation);
                    self.ask(move |state| {
                        if is_current(state, &worker, incarnation) {
                            Ok(Scope::Viewer)
                        } else {
                            Err(Refusal::LeaseEnded)
                        }
                    })
                    .await
                    .map(|_| ())
                }
                Scope::Operator | Scope::Viewer => Ok(()),
            }
        }
        .boxed()
    }
}

impl EngineFence {
    /// Waits until the branches say what the journal says, since a person is about to see them.
    async fn show(&self) -> Result<(), Refusal> {
        self.projection
            .show()
            .await
            .map_err(|_| Refusal::Unavailable)
    }
}

fn attempt_name(run: &Run, task: TaskIx, number: u32) -> Option<AttemptName> {
    let name = TaskName::new(&run.name, &run.task(task)?.name).ok()?;
    Some(name.attempt(NonZeroU32::new(number)?))
}

fn of_lease(state: &State, id: LeaseId) -> Result<Scope, Refusal> {
    let lease = state
        .lease(id)
        .filter(|lease| !lease.revoked)
        .ok_or(Refusal::LeaseEnded)?;
    let run = state.run(lease.run).ok_or(Refusal::LeaseEnded)?;
    scope_of(run, lease).ok_or(Refusal::NoAccess)
}

fn scope_of(run: &Run, lease: &Lease) -> Option<Scope> {
    let read = |name: &str| ParsedRef::parse(name);
    Some(match lease.work {
        Work::Attempt { task, attempt } => {
            let mut reads: Vec<ParsedRef> = read(&grant::base_ref(run, task)).into_iter().collect();
            for earlier in run.task(task)?.attempts() {
                if earlier.number >= attempt {
                    continue;
                }
                let name = attempt_name(run, task, earlier.number.0)?;
                reads.push(ParsedRef::Attempt(name.clone()));
                reads.push(ParsedRef::Wip(name));
            }
            Scope::Attempt {
                lease: lease.id.0,
                attempt: attempt_name(run, task, attempt.0)?,
                reads,
            }
        }
        Work::Verify { task, attempt } => {
            let published = ParsedRef::Attempt(attempt_name(run, task, attempt.0)?);
            let base = read(&grant::base_ref(run, task));
            Scope::Verify {
                lease: lease.id.0,
                reads: base.into_iter().chain([published]).collect(),
            }
        }
        Work::FinalVerify => Scope::Verify {
            lease: lease.id.0,
            reads: read(&super::names::candidate(&run.name, run.generation))
                .into_iter()
                .collect(),
        },
    })
}

fn is_current(state: &State, worker: &WorkerId, incarnation: u64) -> bool {
    let known = state.worker(worker);
    known.is_some_and(|known| known.incarnation.0 == incarnation)
}

fn live(state: &State, worker: &WorkerId) -> Vec<Unpublished> {
    let is_live = |lease| state.lease(lease).is_some_and(|lease| !lease.revoked);
    let newest_first = state.runs().rev();
    newest_first
        .flat_map(|run| unpublished(run, worker, is_live))
        .collect()
}

/// An attempt, and the ref that holds what its edits stand on.
type Unpublished = (AttemptName, Option<ParsedRef>);

/// Names a worker's own attempts that have not published and whose lease is over, newest first.
fn unpublished(
    run: &Run,
    worker: &WorkerId,
    is_live: impl Fn(LeaseId) -> bool,
) -> Vec<Unpublished> {
    let mut attempts: Vec<(LeaseId, Unpublished)> = Vec::new();
    for (ix, task) in run.indexed() {
        for tried in task.attempts() {
            let published = matches!(
                tried.end,
                Some(AttemptEnd::Made(_) | AttemptEnd::Succeeded(_))
            );
            if tried.worker == *worker && !published && !is_live(tried.lease) {
                let base = ParsedRef::parse(&grant::base_ref(run, ix));
                let name = attempt_name(run, ix, tried.number.0);
                attempts.extend(name.map(|name| (tried.lease, (name, base))));
            }
        }
    }
    // What was stopped last is what a worker is about to bring; the number of names is bounded.
    attempts.sort_unstable_by_key(|(lease, _)| std::cmp::Reverse(*lease));
    attempts.into_iter().map(|(_, attempt)| attempt).collect()
}
