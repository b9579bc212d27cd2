//! One lease on a worker, from its grant to its report: the runner around the real phases, its
//! folder, its supervisor, its agent.

use coordinator_core::{CommitId, FailureClass};
use muster_proto::v1::{self, report};
use worker_agent::attempt::Stop;
use worker_agent::attempt::machine::{Happened, Next, Phase};
use worker_agent::clock::Boottime;

use crate::facts::Facts;
use crate::host::Host;
use crate::remote::{Credential, GitAnswer, GitRequest, GitResult, GitWhat, Ref};
use crate::scenario::{DeedEnd, Found};
use crate::supervisor::{Gone, Supervisor};
use crate::wire::{failure, outcome};
use crate::world::{Checked, Ev, World, tell};

pub(crate) const WIP_MS: u64 = 45_000;
pub(crate) const PUSH_PAUSE_MS: u64 = 500;
pub(crate) const PUSH_PAUSE_MAX_MS: u64 = 15_000;
pub(crate) const PREPARE_TRIES: u32 = 4;
pub(crate) const PUBLISH_LIMIT_MS: u64 = 600_000;
pub(crate) const KEEP_LIMIT_MS: u64 = 30_000;
pub(crate) const KEEP_TRIES: u32 = 4;
pub(crate) const REFUSALS_MAX: u32 = 3;
pub(crate) const SALVAGE_TRIES_MAX: u32 = 40;
/// How long a verify works.
pub(crate) const VERIFY_MS: u64 = 8_000;
/// Longest time between TERM and KILL.
pub(crate) const TERM_GRACE_MS: u64 = 5_000;

/// A lease's folder on the worker's disk.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    pub(crate) facts: Facts,
    /// Number of its last event.
    pub(crate) last: u64,
    /// Nothing unpublished is in it.
    pub(crate) published: bool,
    /// How far its edits have come; none at zero.
    pub(crate) edits: u64,
    /// Its edits were moved to a folder of their own.
    pub(crate) kept: bool,
}

/// What a runner is at.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Doing {
    Preparing,
    Running,
    Publishing,
    /// Edits go to the WIP ref, then this is said.
    Keeping(Option<report::Kind>),
    /// Edits go to the salvage ref; this is said then, or when it takes too long.
    Salvaging(Option<report::Kind>),
    Over,
}

/// The work of one lease in the worker's process.
pub(crate) struct Runner {
    pub(crate) phase: Phase,
    pub(crate) doing: Doing,
    pub(crate) stop: Option<Stop>,
    pub(crate) deadline: Boottime,
    pub(crate) timed_out: bool,
    pub(crate) since: u64,
    /// Answers and timers of anything earlier are void.
    pub(crate) op: u64,
    pub(crate) tries: u32,
    pub(crate) refusals: u32,
    /// A question waits for its answer.
    pub(crate) asks: bool,
}

impl Runner {
    /// Takes over what an earlier start left.
    pub(crate) fn leftover(_folder: &Folder, now: u64) -> Self {
        Self {
            doing: Doing::Salvaging(None),
            ..Self::new(now)
        }
    }

    pub(crate) fn new(now: u64) -> Self {
        Self {
            phase: Phase::Preparing,
            doing: Doing::Preparing,
            stop: None,
            deadline: Boottime::from_millis(0),
            timed_out: false,
            since: now,
            op: 0,
            tries: 0,
            refusals: 0,
            asks: false,
        }
    }
}

/// Timers of a runner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LeaseTimer {
    /// Tries again, or looks again.
    Again(u64),
    /// It takes too long to keep edits.
    TooLong(u64),
    Wip,
    TimeLimit,
    /// The worker hears that the tree is gone.
    Gone(Gone),
    /// The worker sees the end of its supervisor's pipe.
    Sweep,
}

impl Host {
    /// The agent of a lease does not edit any more.
    pub(crate) fn stop_edits(&mut self, lease: u64, now: u64) {
        let Some(supervisor) = self.supervisors.get(&lease) else {
            return;
        };
        let worked = now.saturating_sub(supervisor.began) * supervisor.speed / 100;
        if supervisor.edits
            && let Some(folder) = self.disk.folders.get_mut(&lease)
        {
            folder.edits = folder.edits.max(worked + 1);
        }
    }
}

impl World<'_> {
    pub(crate) fn folder(&mut self, host: usize, lease: u64) -> Option<&mut Folder> {
        self.hosts.get_mut(host)?.disk.folders.get_mut(&lease)
    }

    pub(crate) fn runner(&mut self, host: usize, lease: u64) -> Option<&mut Runner> {
        self.process(host)?.runners.get_mut(&lease)
    }

    pub(crate) fn life(&self, host: usize) -> u64 {
        self.hosts.get(host).map_or(0, |host| host.life)
    }

    /// Something is added to a lease's events.
    pub(crate) fn note(&mut self, host: usize, lease: u64) {
        let Some(folder) = self.folder(host, lease) else {
            return;
        };
        folder.last += 1;
        let last = folder.last;
        if let Some(process) = self.process(host) {
            process.machine.events_stored(lease, last);
        }
    }

    pub(crate) fn say_of(&mut self, host: usize, lease: u64, kind: report::Kind) -> Checked {
        self.step(host, |machine, _| machine.report(lease, kind), &[])
    }

    pub(crate) fn next_op(&mut self, host: usize, lease: u64) -> u64 {
        let Some(known) = self.hosts.get_mut(host) else {
            return 0;
        };
        known.ops += 1;
        let op = known.ops;
        if let Some(runner) = self.runner(host, lease) {
            runner.op = op;
        }
        op
    }

    pub(crate) fn later(&mut self, host: usize, lease: u64, after: u64, timer: LeaseTimer) {
        let life = self.life(host);
        self.push(self.now + after, Ev::Lease(host, life, lease, timer));
    }

    pub(crate) fn start_lease(&mut self, host: usize, facts: Facts, deadline: Boottime) -> Checked {
        let lease = facts.lease;
        tell!(self, "w{host} begins {lease}");
        let (repository, timeout) = (facts.repository, facts.timeout_ms);
        let asks = facts.deed.is_some_and(|deed| deed.end == DeedEnd::Asks);
        let now = self.now;
        if let Some(known) = self.hosts.get_mut(host) {
            let folder = Folder {
                facts,
                last: 0,
                published: false,
                edits: 0,
                kept: false,
            };
            known.disk.folders.insert(lease, folder);
            if let Some(process) = &mut known.process {
                process.runners.insert(lease, Runner::new(now));
            }
        }
        let leaves = self
            .process(host)
            .is_some_and(|process| process.leave_at.is_some());
        if let Some(runner) = self.runner(host, lease) {
            runner.deadline = deadline;
        }
        self.say_of(host, lease, report::Kind::Started(v1::Empty {}))?;
        self.note(host, lease);
        if !asks {
            self.later(host, lease, timeout, LeaseTimer::TimeLimit);
        }
        if leaves {
            return self.stop_lease(host, lease, Stop::Leave);
        }
        if repository {
            self.fetch(host, lease);
            return Ok(());
        }
        let op = self.next_op(host, lease);
        self.later(host, lease, 5, LeaseTimer::Again(op));
        Ok(())
    }

    pub(crate) fn fetch(&mut self, host: usize, lease: u64) {
        let op = self.next_op(host, lease);
        let process = self.life(host);
        self.git(GitRequest {
            host,
            process,
            lease,
            op,
            credential: Credential::Lease(lease),
            what: GitWhat::Fetch,
            start: 0,
            old: None,
        });
    }

    pub(crate) fn push_ref(&mut self, host: usize, lease: u64, name: Ref, credential: Credential) {
        let op = self.next_op(host, lease);
        self.push_with(host, lease, name, credential, op);
    }

    pub(crate) fn push_with(
        &mut self,
        host: usize,
        lease: u64,
        name: Ref,
        credential: Credential,
        op: u64,
    ) {
        let edits = self.folder(host, lease).map_or(0, |folder| folder.edits);
        let process = self.life(host);
        self.git(GitRequest {
            host,
            process,
            lease,
            op,
            credential,
            what: GitWhat::Push {
                name,
                commit: CommitId::new(&format!("c{lease}.{edits}")),
            },
            start: 0,
            old: None,
        });
    }

    /// A lease's supervisor and machine get a later deadline.
    pub(crate) fn renew(&mut self, host: usize, lease: u64, deadline: Boottime) {
        if let Some(runner) = self.runner(host, lease) {
            runner.deadline = deadline;
        }
        if let Some(known) = self.hosts.get_mut(host)
            && let Some(supervisor) = known.supervisors.get_mut(&lease)
        {
            supervisor.deadline = deadline;
        }
    }

    /// A lease is to stop.
    pub(crate) fn stop_lease(&mut self, host: usize, lease: u64, stop: Stop) -> Checked {
        let Some(runner) = self.runner(host, lease) else {
            return Ok(());
        };
        if runner.stop.is_some() {
            return Ok(());
        }
        runner.stop = Some(stop);
        match runner.doing {
            Doing::Preparing | Doing::Publishing => {
                let verify = self.is_verify(host, lease);
                if verify {
                    self.verified(host, lease, Happened::Stopped(stop))
                } else {
                    self.happened(host, lease, Happened::Stopped(stop))
                }
            }
            Doing::Running => {
                self.end_tree(host, lease, false);
                Ok(())
            }
            Doing::Keeping(_) | Doing::Salvaging(_) | Doing::Over => Ok(()),
        }
    }

    pub(crate) fn is_verify(&mut self, host: usize, lease: u64) -> bool {
        self.folder(host, lease)
            .is_none_or(|folder| folder.facts.deed.is_none())
    }

    pub(crate) fn told_gone(&mut self, host: usize, lease: u64, gone: Gone) -> Checked {
        let Some(folder) = self.folder(host, lease) else {
            return Ok(());
        };
        let (deed, found) = (folder.facts.deed, folder.facts.found);
        let Some(runner) = self.runner(host, lease) else {
            return Ok(());
        };
        if runner.doing != Doing::Running {
            return Ok(());
        }
        let (stop, timed_out) = (runner.stop, runner.timed_out);
        let failed = |class, message: &str| Happened::Failed(failure(class, message));
        let happened = if gone == Gone::ByItself {
            match (deed.map(|deed| deed.end), found) {
                (Some(DeedEnd::Fails), _) => failed(FailureClass::AgentFailed, "it gave up"),
                (Some(_), _) => Happened::Done,
                (None, Some(Found::Good)) | (None, None) => Happened::Done,
                (None, Some(_)) => failed(FailureClass::VerifyFailed, "the check failed"),
            }
        } else if let Some(stop) = stop {
            Happened::Stopped(stop)
        } else if timed_out {
            failed(FailureClass::TimedOut, "its time limit has passed")
        } else if gone == Gone::AtDeadline {
            Happened::Stopped(Stop::Salvage)
        } else if gone == Gone::Lost {
            failed(FailureClass::WorkerLost, "its supervisor was killed")
        } else {
            failed(FailureClass::AgentFailed, "it was killed")
        };
        if deed.is_none() {
            return self.verified(host, lease, happened);
        }
        self.happened(host, lease, happened)
    }

    /// A verify has come to its verdict, or was stopped: it has no edits to keep.
    pub(crate) fn verified(&mut self, host: usize, lease: u64, happened: Happened) -> Checked {
        let kind = match happened {
            Happened::Done => report::Kind::VerifyPassed(v1::Empty {}),
            Happened::Failed(failure) => report::Kind::Failed(v1::Failed {
                failure: Some(failure),
                usage: None,
            }),
            Happened::Stopped(Stop::Leave | Stop::HandOver(_)) => {
                let message = "the worker was told to leave";
                report::Kind::GivenBack(failure(FailureClass::Preempted, message))
            }
            Happened::Stopped(Stop::Salvage) | Happened::Prepared | Happened::Published(_) => {
                report::Kind::Stopped(v1::Empty {})
            }
        };
        self.say_of(host, lease, kind)?;
        self.finish(host, lease)
    }

    /// Lets the real phases decide what is next.
    pub(crate) fn happened(&mut self, host: usize, lease: u64, happened: Happened) -> Checked {
        self.note(host, lease);
        let Some(runner) = self.runner(host, lease) else {
            return Ok(());
        };
        let (phase, next) = runner.phase.next(happened, v1::Usage::default());
        runner.phase = phase;
        runner.tries = 0;
        runner.refusals = 0;
        match next {
            Next::Run => self.launch(host, lease),
            Next::Publish => self.publish(host, lease),
            Next::KeepThenReport(kind) => self.begin(host, lease, Doing::Keeping(Some(kind))),
            Next::SalvageThenReport(kind) => self.begin(host, lease, Doing::Salvaging(Some(kind))),
            Next::Report(kind) => {
                self.say_of(host, lease, kind)?;
                self.finish(host, lease)
            }
        }
    }

    pub(crate) fn launch(&mut self, host: usize, lease: u64) -> Checked {
        let now = self.now;
        let deadline = self.runner(host, lease).map(|runner| runner.deadline);
        let Some(known) = self.hosts.get_mut(host) else {
            return Ok(());
        };
        let speed = known.plan.speed_percent.max(1);
        let Some(folder) = known.disk.folders.get(&lease) else {
            return Ok(());
        };
        let (deed, found) = (folder.facts.deed, folder.facts.found);
        let work_ms = deed.map_or(VERIFY_MS, |deed| deed.work_ms) * 100 / speed;
        let ends_at = match deed.map(|deed| deed.end) {
            Some(DeedEnd::Unavailable) => {
                let failed = failure(FailureClass::AgentUnavailable, "there is no such program");
                return self.happened(host, lease, Happened::Failed(failed));
            }
            Some(DeedEnd::Hangs) => None,
            _ => Some(now + work_ms),
        };
        if found == Some(Found::Broken) {
            let failed = failure(FailureClass::Workspace, "the checkout cannot be made");
            return self.verified(host, lease, Happened::Failed(failed));
        }
        if deadline.is_some_and(|deadline| known.boottime(now) >= deadline) {
            // A supervisor looks at its clock before it starts anything.
            if let Some(runner) = self.runner(host, lease) {
                runner.doing = Doing::Running;
                runner.op = 0;
            }
            return self.agent_gone(host, lease, Gone::AtDeadline);
        }
        let edits = deed.is_some_and(|deed| deed.end != DeedEnd::NoChange);
        let edits = edits && folder.facts.repository;
        let supervisor = Supervisor {
            deadline: deadline.unwrap_or(Boottime::from_millis(0)),
            ends_at,
            began: now,
            speed,
            edits,
            gone_at: None,
            by_deadline: false,
            lost: None,
        };
        known.supervisors.insert(lease, supervisor);
        self.check_alone(host, lease)?;
        if let Some(runner) = self.runner(host, lease) {
            runner.doing = Doing::Running;
            runner.op = 0;
        }
        self.note(host, lease);
        self.push(now, Ev::Supervisor(host, lease));
        if edits {
            self.later(host, lease, WIP_MS, LeaseTimer::Wip);
        }
        Ok(())
    }

    pub(crate) fn publish(&mut self, host: usize, lease: u64) -> Checked {
        let Some(folder) = self.folder(host, lease) else {
            return Ok(());
        };
        let (repository, edits) = (folder.facts.repository, folder.edits);
        let attempt = folder.facts.attempt();
        let now = self.now;
        if let Some(runner) = self.runner(host, lease) {
            runner.doing = Doing::Publishing;
            runner.since = now;
        }
        let nothing = if !repository {
            Some(v1::outcome::Kind::NoRepository(v1::Empty {}))
        } else if edits == 0 {
            Some(v1::outcome::Kind::NoChange(v1::Empty {}))
        } else {
            None
        };
        if let Some(kind) = nothing {
            return self.happened(host, lease, Happened::Published(outcome(kind)));
        }
        if let Some((task, n)) = attempt {
            self.push_ref(host, lease, Ref::Attempt(task, n), Credential::Lease(lease));
        }
        Ok(())
    }

    /// Begins to keep edits; there may be none.
    pub(crate) fn begin(&mut self, host: usize, lease: u64, doing: Doing) -> Checked {
        let now = self.now;
        if let Some(runner) = self.runner(host, lease) {
            runner.doing = doing;
            runner.since = now;
            runner.tries = 0;
        }
        let op = self.next_op(host, lease);
        self.later(host, lease, KEEP_LIMIT_MS, LeaseTimer::TooLong(op));
        self.keep(host, lease)
    }

    /// What an earlier start left is kept once there is a session.
    pub(crate) fn settle_leftover(&mut self, host: usize, lease: u64) -> Checked {
        let Some(folder) = self.folder(host, lease) else {
            return Ok(());
        };
        let nothing = folder.published || folder.facts.attempt().is_none();
        if nothing {
            return self.finish(host, lease);
        }
        self.note(host, lease);
        self.keep(host, lease)
    }

    /// Tries to push edits to where they are kept.
    pub(crate) fn keep(&mut self, host: usize, lease: u64) -> Checked {
        let Some(folder) = self.folder(host, lease) else {
            return Ok(());
        };
        let (edits, attempt) = (folder.edits, folder.facts.attempt());
        let Some((task, n)) = attempt.filter(|_| edits > 0) else {
            return self.kept(host, lease);
        };
        let Some(process) = self.process(host) else {
            return Ok(());
        };
        let (up, incarnation) = (process.is_up, process.incarnation);
        let Some(runner) = process.runners.get_mut(&lease) else {
            return Ok(());
        };
        let salvages = matches!(runner.doing, Doing::Salvaging(_));
        if !up {
            // Waits for a session, then counts its patience anew.
            let now = self.now;
            if !salvages && let Some(runner) = self.runner(host, lease) {
                runner.since = now;
            }
            let op = self.next_op(host, lease);
            self.later(host, lease, 1_000, LeaseTimer::Again(op));
            return Ok(());
        }
        runner.tries += 1;
        if salvages {
            let credential = Credential::Session(incarnation);
            self.push_ref(host, lease, Ref::Salvage(task, n), credential);
        } else {
            self.push_ref(host, lease, Ref::Wip(task, n), Credential::Lease(lease));
        }
        Ok(())
    }

    /// Edits are where they are kept, or there are none.
    pub(crate) fn kept(&mut self, host: usize, lease: u64) -> Checked {
        let Some(runner) = self.runner(host, lease) else {
            return Ok(());
        };
        let kind = match &mut runner.doing {
            Doing::Keeping(kind) | Doing::Salvaging(kind) => kind.take(),
            _ => None,
        };
        if let Some(kind) = kind {
            self.say_of(host, lease, kind)?;
        }
        self.finish(host, lease)
    }

    pub(crate) fn finish(&mut self, host: usize, lease: u64) -> Checked {
        if let Some(runner) = self.runner(host, lease) {
            runner.doing = Doing::Over;
            runner.op = 0;
        }
        if let Some(folder) = self.folder(host, lease) {
            folder.published = true;
        }
        self.note(host, lease);
        self.step(host, |machine, _| machine.finished(lease), &[])
    }

    pub(crate) fn lease_timer(
        &mut self,
        host: usize,
        life: u64,
        lease: u64,
        timer: LeaseTimer,
    ) -> Checked {
        if self.life(host) != life {
            return Ok(());
        }
        let Some(runner) = self.runner(host, lease) else {
            return Ok(());
        };
        match timer {
            LeaseTimer::Gone(gone) => self.told_gone(host, lease, gone)?,
            LeaseTimer::Sweep => self.sweep(host, lease),
            LeaseTimer::Again(op) if op == runner.op => match runner.doing {
                Doing::Preparing => self.prepared(host, lease)?,
                Doing::Publishing => self.publish_again(host, lease),
                Doing::Keeping(_) | Doing::Salvaging(_) => self.keep(host, lease)?,
                Doing::Running | Doing::Over => {}
            },
            LeaseTimer::Again(_) => return Ok(()),
            LeaseTimer::TooLong(_) => self.too_long(host, lease)?,
            LeaseTimer::Wip => {
                if runner.doing != Doing::Running {
                    return Ok(());
                }
                self.wip(host, lease);
            }
            LeaseTimer::TimeLimit => match runner.doing {
                Doing::Running if runner.stop.is_none() => {
                    runner.timed_out = true;
                    self.end_tree(host, lease, false);
                }
                Doing::Preparing => {
                    let failed = failure(FailureClass::Workspace, "the workspace is not ready");
                    let happened = Happened::Failed(failed);
                    if self.is_verify(host, lease) {
                        self.verified(host, lease, happened)?;
                    } else {
                        self.happened(host, lease, happened)?;
                    }
                }
                _ => {}
            },
        }
        self.after(host)
    }

    pub(crate) fn prepared(&mut self, host: usize, lease: u64) -> Checked {
        let Some(folder) = self.folder(host, lease) else {
            return Ok(());
        };
        let (repository, verify) = (folder.facts.repository, folder.facts.deed.is_none());
        let tries = self.runner(host, lease).map_or(0, |runner| runner.tries);
        if repository && tries > 0 {
            // A failed try is followed by another.
            self.fetch(host, lease);
            return Ok(());
        }
        if verify {
            return self.launch(host, lease);
        }
        self.happened(host, lease, Happened::Prepared)
    }

    /// An agent's edits are kept while it works.
    pub(crate) fn wip(&mut self, host: usize, lease: u64) {
        let now = self.now;
        let Some(known) = self.hosts.get_mut(host) else {
            return;
        };
        known.stop_edits(lease, now);
        let attempt = known
            .disk
            .folders
            .get(&lease)
            .and_then(|folder| folder.facts.attempt());
        if let Some((task, n)) = attempt {
            self.note(host, lease);
            // Nobody waits for the answer.
            self.push_with(host, lease, Ref::Wip(task, n), Credential::Lease(lease), 0);
        }
        self.later(host, lease, WIP_MS, LeaseTimer::Wip);
    }

    pub(crate) fn publish_again(&mut self, host: usize, lease: u64) {
        let attempt = self
            .folder(host, lease)
            .and_then(|folder| folder.facts.attempt());
        if let Some((task, n)) = attempt {
            self.push_ref(host, lease, Ref::Attempt(task, n), Credential::Lease(lease));
        }
    }

    pub(crate) fn too_long(&mut self, host: usize, lease: u64) -> Checked {
        let Some(process) = self.process(host) else {
            return Ok(());
        };
        let up = process.is_up;
        let Some(runner) = process.runners.get_mut(&lease) else {
            return Ok(());
        };
        match &mut runner.doing {
            Doing::Keeping(kind) => {
                if !up && runner.stop.is_none() {
                    let op = runner.op;
                    self.later(host, lease, KEEP_LIMIT_MS, LeaseTimer::TooLong(op));
                    return Ok(());
                }
                let kind = kind.take();
                self.give_up_keeping(host, lease, kind)
            }
            Doing::Salvaging(kind) => match kind.take() {
                Some(kind) => self.say_of(host, lease, kind),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Edits cannot be kept at their own ref: it is said how it ended, and they are salvaged.
    pub(crate) fn give_up_keeping(
        &mut self,
        host: usize,
        lease: u64,
        kind: Option<report::Kind>,
    ) -> Checked {
        if let Some(kind) = kind {
            self.say_of(host, lease, kind)?;
        }
        if let Some(runner) = self.runner(host, lease) {
            runner.doing = Doing::Salvaging(None);
            runner.tries = 0;
        }
        self.keep(host, lease)
    }

    /// The answer to a push or fetch comes.
    pub(crate) fn git_answered(&mut self, answer: &GitAnswer) -> Checked {
        let GitAnswer {
            host,
            process,
            lease,
            op,
            result,
        } = *answer;
        let now = self.now;
        if self.life(host) != process {
            return Ok(());
        }
        let Some(runner) = self
            .runner(host, lease)
            .filter(|runner| runner.op == op && op > 0)
        else {
            return Ok(());
        };
        let pause = (PUSH_PAUSE_MS << runner.tries.min(5)).min(PUSH_PAUSE_MAX_MS);
        match (&mut runner.doing, result) {
            (Doing::Preparing, GitResult::Done) => {
                runner.tries = 0;
                self.prepared(host, lease)?;
            }
            (Doing::Preparing, _) => {
                runner.tries += 1;
                if runner.tries >= PREPARE_TRIES {
                    let failed = failure(FailureClass::Workspace, "the base cannot be fetched");
                    let happened = Happened::Failed(failed);
                    if self.is_verify(host, lease) {
                        self.verified(host, lease, happened)?;
                    } else {
                        self.happened(host, lease, happened)?;
                    }
                } else {
                    let pause = 500 << runner.tries;
                    self.later(host, lease, pause, LeaseTimer::Again(op));
                }
            }
            (Doing::Publishing, GitResult::Done) => {
                let edits = self.folder(host, lease).map_or(0, |folder| folder.edits);
                let commit = v1::outcome::Kind::Commit(format!("c{lease}.{edits}"));
                self.happened(host, lease, Happened::Published(outcome(commit)))?;
            }
            (Doing::Publishing, result) => {
                runner.tries += 1;
                runner.refusals += u32::from(result == GitResult::Refused);
                let over = now >= runner.since + PUBLISH_LIMIT_MS;
                if runner.refusals >= REFUSALS_MAX || over {
                    let failed = failure(FailureClass::Publish, "the result cannot be pushed");
                    self.happened(host, lease, Happened::Failed(failed))?;
                } else {
                    self.later(host, lease, pause, LeaseTimer::Again(op));
                }
            }
            (Doing::Keeping(_) | Doing::Salvaging(_), GitResult::Done) => self.kept(host, lease)?,
            (Doing::Keeping(kind), _) => {
                if runner.tries >= KEEP_TRIES {
                    let kind = kind.take();
                    self.give_up_keeping(host, lease, kind)?;
                } else {
                    self.later(host, lease, PUSH_PAUSE_MS, LeaseTimer::Again(op));
                }
            }
            (Doing::Salvaging(_), _) => {
                if runner.tries >= SALVAGE_TRIES_MAX {
                    if let Some(folder) = self.folder(host, lease) {
                        folder.kept = true;
                    }
                    self.kept(host, lease)?;
                } else {
                    self.later(host, lease, pause, LeaseTimer::Again(op));
                }
            }
            (Doing::Running | Doing::Over, _) => {}
        }
        self.after(host)
    }
}
