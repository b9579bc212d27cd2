//! The hosted git remote: refs, and who moves which.

use std::collections::BTreeMap;

use coordinator_core::event::{Outcome, Work};
use coordinator_core::state::{AttemptEnd, Run};
use coordinator_core::{CommitId, LeaseId, RunId, TaskIx, TaskKey, WorkerId};

use crate::coordinator::Request;
use crate::net::Passage;
use crate::scenario::{Link, Moment};
use crate::world::{Checked, Ev, World, tell};

/// How long a request waits for a way that is cut.
const UNREACHABLE_MS: u64 = 5_000;

/// A ref.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Ref {
    Attempt(TaskKey, u32),
    Wip(TaskKey, u32),
    Salvage(TaskKey, u32),
    Base(TaskKey),
    TaskHead(TaskKey),
    Candidate(RunId, u32),
    Integration(RunId),
}

/// What a request is made with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Credential {
    Lease(u64),
    /// Of the worker's present start.
    Session(u64),
}

/// A request of a worker.
#[derive(Clone, Debug)]
pub(crate) struct GitRequest {
    pub(crate) host: usize,
    pub(crate) process: u64,
    pub(crate) lease: u64,
    /// What the worker knows its answer by.
    pub(crate) op: u64,
    pub(crate) credential: Credential,
    pub(crate) what: GitWhat,
    /// Start of the coordinator that serves it.
    pub(crate) start: u64,
    /// What the ref was when the push began: it moves from there or not at all.
    pub(crate) old: Option<CommitId>,
}

#[derive(Clone, Debug)]
pub(crate) enum GitWhat {
    Fetch,
    Push { name: Ref, commit: CommitId },
}

/// The answer to a request.
#[derive(Debug)]
pub(crate) struct GitAnswer {
    pub(crate) host: usize,
    pub(crate) process: u64,
    pub(crate) lease: u64,
    pub(crate) op: u64,
    pub(crate) result: GitResult,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum GitResult {
    Done,
    Refused,
    /// It may or may not have been done.
    Unreachable,
}

/// The repository.
#[derive(Default)]
pub(crate) struct Remote {
    /// Until when merges are slow, and how long each takes then.
    pub(crate) slow_until: u64,
    pub(crate) merge_ms: u64,
    pub(crate) refs: BTreeMap<Ref, CommitId>,
    requests: u64,
}

impl World<'_> {
    /// Sends a request on its way.
    pub(crate) fn git(&mut self, mut request: GitRequest) {
        self.remote.requests += 1;
        // A push asks first what the refs are and says in a second request from where they move.
        // One whose second request is late cannot undo what a later push has done.
        if let GitWhat::Push { name, .. } = &request.what {
            request.old = self.remote.refs.get(name).cloned();
        }
        let host = request.host;
        if self.is_cut(host, Link::Git) {
            self.git_answer(&request, GitResult::Unreachable, UNREACHABLE_MS);
            return;
        }
        match self.passage(host, Link::Git) {
            Passage::At(at) => self.push(at, Ev::GitArrives(Box::new(request))),
            Passage::Breaks => {
                self.git_answer(&request, GitResult::Unreachable, 50);
                if self.roll(10, self.remote.requests, 0).is_multiple_of(2) {
                    // It broke on its way back.
                    self.push(self.now + 5, Ev::GitArrives(Box::new(request)));
                }
            }
        }
    }

    pub(crate) fn git_answer(&mut self, request: &GitRequest, result: GitResult, after: u64) {
        let answer = GitAnswer {
            host: request.host,
            process: request.process,
            lease: request.lease,
            op: request.op,
            result,
        };
        self.push(self.now + after, Ev::GitAnswered(Box::new(answer)));
    }

    pub(crate) fn git_arrives(&mut self, mut request: GitRequest) {
        if !self.coordinator.up {
            self.git_answer(&request, GitResult::Unreachable, 1);
            return;
        }
        request.start = self.coordinator.start;
        self.request(Request::Git(Box::new(request)));
    }

    /// The engine is asked whether the credential still stands for anything.
    pub(crate) fn git_query(&mut self, request: GitRequest) {
        let allowed = self.allowed(&request);
        let roll = self.roll(11, self.remote.requests, request.op);
        let takes = if roll.is_multiple_of(16) {
            200 + (roll >> 8) % 8_000
        } else {
            3 + (roll >> 8) % 60
        };
        match (&request.what, allowed) {
            (_, false) => self.git_reply(&request, GitResult::Refused),
            (GitWhat::Fetch, true) => self.git_answer(&request, GitResult::Done, takes),
            (GitWhat::Push { .. }, true) => {
                self.push(self.now + takes, Ev::GitMoves(Box::new(request)));
            }
        }
    }

    /// The refs of a push are about to move: asked again, and then they move at once.
    pub(crate) fn git_moves(&mut self, request: GitRequest) -> Checked {
        if request.start != self.coordinator.start || !self.coordinator.up {
            self.git_reply(&request, GitResult::Unreachable);
            return Ok(());
        }
        if self.coordinator.pending.is_some() {
            self.push(self.now + 5, Ev::GitMoves(Box::new(request)));
            return Ok(());
        }
        let GitWhat::Push { name, commit } = &request.what else {
            return Ok(());
        };
        let found = self.remote.refs.get(name);
        let once = !matches!(name, Ref::Wip(..));
        let result = if found == Some(commit) {
            GitResult::Done
        } else if !self.allowed(&request)
            || (once && found.is_some())
            || found != request.old.as_ref()
        {
            GitResult::Refused
        } else {
            tell!(self, "{name:?} moves to {commit}");
            let published = matches!(name, Ref::Attempt(..));
            let fair = self.reference.may_move(request.credential, *name);
            self.ensure(fair, "refs of a closed lease never move", || {
                format!("{name:?} moves by {:?}", request.credential)
            })?;
            self.remote.refs.insert(*name, commit.clone());
            if published {
                self.moment(Moment::Published);
            }
            GitResult::Done
        };
        self.git_reply(&request, result);
        Ok(())
    }

    fn git_reply(&mut self, request: &GitRequest, result: GitResult) {
        match self.passage(request.host, Link::Git) {
            Passage::At(at) if !self.is_cut(request.host, Link::Git) => {
                let after = at - self.now;
                self.git_answer(request, result, after);
            }
            _ => self.git_answer(request, GitResult::Unreachable, UNREACHABLE_MS),
        }
    }

    /// Decides by the engine's state, as the fence does.
    fn allowed(&self, request: &GitRequest) -> bool {
        let state = &self.coordinator.state;
        match request.credential {
            Credential::Lease(lease) => {
                let lease = state.lease(LeaseId(lease)).filter(|lease| !lease.revoked);
                let Some(lease) = lease else {
                    return false;
                };
                let GitWhat::Push { name, .. } = request.what else {
                    return true;
                };
                let Work::Attempt { task, attempt } = lease.work else {
                    return false;
                };
                let run = lease.run;
                let own = (TaskKey { run, task }, attempt.0);
                matches!(name, Ref::Attempt(task, n) | Ref::Wip(task, n) if (task, n) == own)
            }
            Credential::Session(incarnation) => {
                let worker = self.worker_id(request.host);
                let known = state.worker(&worker);
                if known.is_none_or(|known| known.incarnation.0 != incarnation) {
                    return false;
                }
                let GitWhat::Push {
                    name: Ref::Salvage(task, n),
                    ..
                } = request.what
                else {
                    return false;
                };
                let live = |lease| state.lease(lease).is_some_and(|lease| !lease.revoked);
                if let Some(run) = state.run(task.run) {
                    return unpublished(run, &worker, task.task, n, live);
                }
                let archived = self.store.archive.get(&task.run);
                archived
                    .is_some_and(|image| unpublished(&image.run, &worker, task.task, n, |_| false))
            }
        }
    }

    /// Gives what a worker's live attempt has published; `None` when the lease publishes nothing.
    pub(crate) fn published(&self, worker: &WorkerId, lease: LeaseId) -> Option<Option<&CommitId>> {
        let state = &self.coordinator.state;
        let held = state.lease(lease).filter(|held| held.worker == *worker)?;
        let Work::Attempt { task, attempt } = held.work else {
            return None;
        };
        state.run(held.run)?.source.as_ref()?;
        let key = TaskKey {
            run: held.run,
            task,
        };
        Some(self.remote.refs.get(&Ref::Attempt(key, attempt.0)))
    }

    /// Tells whether a succeeded task's commit is where it must be.
    pub(crate) fn is_kept(&self, task: TaskKey, attempt: u32, outcome: &Outcome) -> bool {
        match outcome {
            Outcome::Commit(commit) => {
                self.remote.refs.get(&Ref::Attempt(task, attempt)) == Some(commit)
            }
            Outcome::NoChange | Outcome::NoRepository => true,
        }
    }
}

/// Tells whether a worker's attempt has not published and its lease is over.
fn unpublished(
    run: &Run,
    worker: &WorkerId,
    task: TaskIx,
    number: u32,
    live: impl Fn(LeaseId) -> bool,
) -> bool {
    let Some(task) = run.task(task) else {
        return false;
    };
    task.attempts().iter().any(|tried| {
        let published = matches!(
            tried.end,
            Some(AttemptEnd::Made(_) | AttemptEnd::Succeeded(_))
        );
        tried.number.0 == number && tried.worker == *worker && !published && !live(tried.lease)
    })
}
