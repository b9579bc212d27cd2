//! A small model of what may happen, kept apart from the core: it sees what was asked and what was
//! journaled, and says which event nothing accounts for.

use std::collections::{BTreeMap, BTreeSet};

use coordinator_core::command::{Report, Target, Verdict};
use coordinator_core::event::{RunOutcome, Work};
use coordinator_core::plan::RunSpec;
use coordinator_core::state::LeaseClocks;
use coordinator_core::{
    Command, Event, EventKind, FailureClass, Incarnation, Rejection, Reply, RunId, TaskIx, TaskKey,
    Timestamp, WorkerId,
};

use crate::remote::{Credential, Ref};

/// Uncounted losses after which a task, or a verify, fails all the same.
pub(crate) const CRASHES_MAX: u32 = 5;
pub(crate) const DEFERRALS_MAX: u32 = 40;
pub(crate) const DEPARTURES_MAX: u32 = 100;
/// Time after which a question that nobody answers parks its task.
pub(crate) const PARK_MS: u64 = 3_600_000;

pub(crate) type Judged = Result<(), (&'static str, String)>;

pub(crate) fn ensure(holds: bool, rule: &'static str, what: impl FnOnce() -> String) -> Judged {
    if holds { Ok(()) } else { Err((rule, what())) }
}

/// Where a task stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stands {
    Waiting,
    Leased(u64),
    Unverified,
    Verified(u64),
    Parked,
    Succeeded,
    Failed,
    Cancelled,
    Skipped,
}

impl Stands {
    pub(crate) fn is_final(self) -> bool {
        matches!(
            self,
            Self::Succeeded | Self::Failed | Self::Cancelled | Self::Skipped
        )
    }

    pub(crate) fn lacks(self) -> bool {
        self.is_final() && self != Self::Succeeded
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) dependencies: Vec<u32>,
    pub(crate) retries: u32,
    pub(crate) timeout_ms: u64,
    pub(crate) verified: bool,
    pub(crate) path: Vec<String>,
    pub(crate) stands: Stands,
    pub(crate) counted: u32,
    pub(crate) crashes: u32,
    pub(crate) deferrals: u32,
    pub(crate) departures: u32,
    pub(crate) verifies_lost: u32,
    pub(crate) attempts: u32,
    pub(crate) generation: u32,
    /// The attempt's result waits for its verify, or is the task's.
    pub(crate) made: bool,
    /// A failure was recorded that the task does not survive.
    pub(crate) falls: bool,
    /// The attempt that the last one went on from.
    pub(crate) from: Option<u32>,
    /// The attempt that the next one goes on from.
    pub(crate) cut_off: Option<u32>,
}

pub(crate) struct Run {
    pub(crate) tasks: Vec<Task>,
    pub(crate) ended: bool,
    pub(crate) archived: bool,
    pub(crate) max_parallel: u32,
    pub(crate) integrates: bool,
    pub(crate) final_verify: bool,
    pub(crate) verifies_lost: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct Lease {
    pub(crate) run: RunId,
    pub(crate) work: Work,
    pub(crate) worker: WorkerId,
    pub(crate) incarnation: Incarnation,
    pub(crate) open: bool,
    pub(crate) revoked: bool,
    pub(crate) started: bool,
    /// Its result is known.
    pub(crate) told: bool,
    pub(crate) begun: Timestamp,
    pub(crate) ttl_ms: u64,
    pub(crate) expires: Timestamp,
}

#[derive(Default)]
pub(crate) struct Reference {
    pub(crate) clocks: LeaseClocks,
    pub(crate) runs: BTreeMap<RunId, Run>,
    pub(crate) leases: BTreeMap<u64, Lease>,
    pub(crate) open: BTreeSet<u64>,
    pub(crate) questions: BTreeMap<u64, crate::questions::Known>,
    pub(crate) last_lease: u64,
    pub(crate) seqs: BTreeMap<Option<RunId>, u64>,
    pub(crate) epoch: u64,
    pub(crate) pool: crate::pools::Known,
}

/// What a failure is counted as.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    Own,
    Crash,
    Provider,
    Departure,
}

/// Tells whether another attempt could end differently, and as what the failure counts.
pub(crate) fn class(class: FailureClass) -> (bool, Counted) {
    match class.name() {
        "agent_failed" | "verify_failed" | "timed_out" | "stalled" | "disk_allowance"
        | "context_window" | "refusal" | "agent_crashed" | "agent_error" | "output_invalid"
        | "no_change" => (true, Counted::Own),
        "worker_lost" | "workspace" | "publish" | "agent_unavailable" => (true, Counted::Crash),
        "preempted" | "walltime" => (true, Counted::Departure),
        "rate_limit" | "provider_capacity" | "provider_error" | "transport" | "usage_limit" => {
            (true, Counted::Provider)
        }
        "change_too_large" => (false, Counted::Own),
        _ => (false, Counted::Crash),
    }
}

/// Tells whether whoever failed so was cut off, and its agent can go on.
pub(crate) fn cuts_off(of: FailureClass) -> bool {
    let (_, counted) = class(of);
    counted == Counted::Provider || matches!(of.name(), "worker_lost" | "preempted" | "walltime")
}

/// What was asked in one batch.
pub(crate) struct Asked<'a> {
    pub(crate) at: Timestamp,
    pub(crate) commands: &'a [Command],
}

impl Asked<'_> {
    pub(crate) fn reports(&self, id: u64, lease: &Lease) -> impl Iterator<Item = &Report> {
        let (id, worker) = (id, lease.worker.clone());
        self.commands
            .iter()
            .filter_map(move |command| match command {
                Command::Report {
                    worker: by,
                    lease,
                    report,
                } if *by == worker && lease.0 == id => Some(report),
                _ => None,
            })
    }

    /// The lease's worker has said hello without it, or has said that it ends and holds nothing.
    pub(crate) fn let_go(&self, id: u64, lease: &Lease) -> Option<Incarnation> {
        // One step may have several, of which the newest counts.
        let dropping = self.commands.iter().filter_map(|command| match command {
            Command::Hello(hello)
                if hello.worker == lease.worker && !hello.held.iter().any(|held| held.0 == id) =>
            {
                Some(hello.incarnation)
            }
            Command::Goodbye {
                worker,
                incarnation,
                ..
            } if *worker == lease.worker && *incarnation == lease.incarnation => Some(*incarnation),
            _ => None,
        });
        dropping.max()
    }

    pub(crate) fn says(&self, what: impl Fn(&Command) -> bool) -> bool {
        self.commands.iter().any(what)
    }
}

impl Reference {
    pub(crate) fn of(scenario: &crate::Scenario) -> Self {
        let mut new = Self::default();
        new.pool.max = scenario.pool.as_ref().map_or(0, |pool| pool.max);
        new
    }

    pub(crate) fn restarted(&mut self, at: Timestamp, clocks: LeaseClocks) {
        self.clocks = clocks;
        for id in &self.open {
            if let Some(lease) = self.leases.get_mut(id) {
                lease.expires = at + coordinator_core::Span::from_ms(lease.ttl_ms) + clocks.grace;
            }
        }
    }

    pub(crate) fn was_granted(&self, lease: u64, worker: &WorkerId) -> bool {
        self.leases
            .get(&lease)
            .is_some_and(|lease| lease.worker == *worker)
    }

    pub(crate) fn attempt_of(&self, lease: u64) -> Option<(TaskKey, u32)> {
        let lease = self.leases.get(&lease)?;
        match lease.work {
            Work::Attempt { task, attempt } => {
                let run = lease.run;
                Some((TaskKey { run, task }, attempt.0))
            }
            _ => None,
        }
    }

    /// Tells whether a ref may be moved with a credential now.
    pub(crate) fn may_move(&self, credential: Credential, name: Ref) -> bool {
        let of = |task: TaskKey, n: u32| {
            self.leases.iter().find(|(_, lease)| {
                lease.run == task.run
                    && matches!(lease.work, Work::Attempt { task: ix, attempt }
                        if ix == task.task && attempt.0 == n)
            })
        };
        match (credential, name) {
            (Credential::Lease(id), Ref::Attempt(task, n) | Ref::Wip(task, n)) => {
                of(task, n).is_some_and(|(of, lease)| *of == id && lease.open && !lease.revoked)
            }
            (Credential::Session(_), Ref::Salvage(task, n)) => {
                of(task, n).is_some_and(|(_, lease)| !lease.open || lease.revoked)
            }
            _ => false,
        }
    }

    pub(crate) fn task(&self, key: TaskKey) -> Option<&Task> {
        let run = self.runs.get(&key.run)?;
        run.tasks.get(usize::try_from(key.task.0).ok()?)
    }

    pub(crate) fn task_mut(&mut self, key: TaskKey) -> Option<&mut Task> {
        let run = self.runs.get_mut(&key.run)?;
        run.tasks.get_mut(usize::try_from(key.task.0).ok()?)
    }

    /// Tells whether every run that was ever submitted is in the archive.
    pub(crate) fn all_archived(&self) -> bool {
        self.runs.values().all(|run| run.ended && run.archived)
    }

    /// Takes a batch that is in the journal.
    pub(crate) fn judge(
        &mut self,
        at: Timestamp,
        commands: &[Command],
        replies: Option<&[Result<Reply, Rejection>]>,
        events: &[Event],
    ) -> Judged {
        let asked = Asked { at, commands };
        let mut reopened: BTreeMap<RunId, BTreeSet<u32>> = BTreeMap::new();
        for event in events {
            let seq = self.seqs.entry(event.kind.run()).or_default();
            *seq += 1;
            ensure(event.seq == *seq, "sequence numbers have no gaps", || {
                format!("{} has number {}, not {seq}", event.kind.name(), event.seq)
            })?;
            if let EventKind::TaskReopened { task, .. } = &event.kind {
                reopened.entry(task.run).or_default().insert(task.task.0);
            } else if !reopened.is_empty() && !matches!(event.kind, EventKind::RunReopened { .. }) {
                self.reopen(&asked, std::mem::take(&mut reopened))?;
            }
            self.see(&asked, &event.kind)?;
        }
        if !reopened.is_empty() {
            self.reopen(&asked, reopened)?;
        }
        self.renew(at, commands, replies);
        self.settled(at, events)
    }

    /// Leases that a worker was told to keep live on.
    pub(crate) fn renew(
        &mut self,
        at: Timestamp,
        commands: &[Command],
        replies: Option<&[Result<Reply, Rejection>]>,
    ) {
        for (command, reply) in commands.iter().zip(replies.into_iter().flatten()) {
            let (worker, verdicts) = match (command, reply) {
                (Command::Hello(hello), Ok(Reply::Welcome { verdicts })) => {
                    (&hello.worker, verdicts)
                }
                (Command::Heartbeat(beat), Ok(Reply::Renewed { verdicts, .. })) => {
                    (&beat.worker, verdicts)
                }
                _ => continue,
            };
            for (id, verdict) in verdicts {
                if let Some(lease) = self.leases.get_mut(&id.0)
                    && *verdict == Verdict::Keep
                    && lease.open
                    && lease.worker == *worker
                {
                    let ttl = coordinator_core::Span::from_ms(lease.ttl_ms);
                    lease.expires = at + ttl + self.clocks.grace;
                }
            }
        }
    }

    /// What must be so when a batch is over.
    pub(crate) fn settled(&self, at: Timestamp, events: &[Event]) -> Judged {
        for id in &self.open {
            let late = self.leases.get(id).is_some_and(|lease| lease.expires < at);
            ensure(!late, "silent leases are reclaimed", || {
                format!("lease {id} is open after its time")
            })?;
        }
        let runs: BTreeSet<RunId> = events.iter().filter_map(|event| event.kind.run()).collect();
        for id in runs {
            let Some(run) = self.runs.get(&id) else {
                continue;
            };
            for (ix, task) in run.tasks.iter().enumerate() {
                let doomed = self.doomed(run, task);
                let waits = task.stands == Stands::Waiting;
                ensure(
                    !(doomed && waits),
                    "dependents of what failed are skipped",
                    || format!("task {ix} of {id} waits for what has failed"),
                )?;
            }
        }
        Ok(())
    }

    pub(crate) fn dependency<'r>(&self, run: &'r Run, ix: u32) -> Option<&'r Task> {
        run.tasks.get(usize::try_from(ix).ok()?)
    }

    pub(crate) fn doomed(&self, run: &Run, task: &Task) -> bool {
        let mut of = task.dependencies.iter();
        of.any(|ix| {
            self.dependency(run, *ix)
                .is_some_and(|task| task.stands.lacks())
        })
    }

    pub(crate) fn ready(&self, run: &Run, task: &Task) -> bool {
        let mut of = task.dependencies.iter();
        of.all(|ix| {
            let task = self.dependency(run, *ix);
            task.is_some_and(|task| task.stands == Stands::Succeeded)
        })
    }

    pub(crate) fn submitted(&mut self, id: RunId, spec: &RunSpec) -> Judged {
        let place = |name: &str| spec.tasks.iter().position(|task| *task.name == *name);
        let tasks = spec.tasks.iter().map(|task| Task {
            dependencies: task
                .depends_on
                .iter()
                .filter_map(|name| u32::try_from(place(name)?).ok())
                .collect(),
            retries: task.profile.retries,
            timeout_ms: task.profile.timeout.ms(),
            verified: task.profile.verify.is_some(),
            path: task.paths.iter().map(ToString::to_string).collect(),
            stands: Stands::Waiting,
            counted: 0,
            crashes: 0,
            deferrals: 0,
            departures: 0,
            verifies_lost: 0,
            attempts: 0,
            generation: 1,
            made: false,
            falls: false,
            from: None,
            cut_off: None,
        });
        let run = Run {
            tasks: tasks.collect(),
            ended: false,
            archived: false,
            max_parallel: spec
                .max_parallel
                .map_or(u32::MAX, std::num::NonZeroU32::get),
            integrates: spec.integrate.is_some(),
            final_verify: spec.integrate.as_ref().is_some_and(|i| i.verify.is_some()),
            verifies_lost: 0,
        };
        let fresh = self.runs.insert(id, run).is_none();
        ensure(fresh, "a run begins once", || format!("{id} begins again"))
    }

    pub(crate) fn reopen(
        &mut self,
        asked: &Asked<'_>,
        reopened: BTreeMap<RunId, BTreeSet<u32>>,
    ) -> Judged {
        for (id, set) in reopened {
            let fits = asked.says(|command| match command {
                Command::Retry { target, .. } => self.expected(*target, id) == Some(set.clone()),
                _ => false,
            });
            ensure(
                fits,
                "retry reopens the failed subtree and nothing else",
                || format!("{id}: {set:?}"),
            )?;
            for ix in &set {
                let key = TaskKey {
                    run: id,
                    task: TaskIx(*ix),
                };
                if let Some(task) = self.task_mut(key) {
                    task.stands = Stands::Waiting;
                    task.counted = 0;
                    task.crashes = 0;
                    task.deferrals = 0;
                    task.departures = 0;
                    task.verifies_lost = 0;
                    task.made = false;
                    task.falls = false;
                    task.cut_off = None;
                    task.generation += 1;
                }
            }
        }
        Ok(())
    }

    /// Works out by brute force what a retry opens again.
    pub(crate) fn expected(&self, target: Target, id: RunId) -> Option<BTreeSet<u32>> {
        let run = self.runs.get(&id)?;
        let numbered = || (0u32..).zip(&run.tasks);
        let target = match target {
            Target::Run(run) if run == id => {
                let lacking = numbered().filter(|(_, task)| task.stands.lacks());
                return Some(lacking.map(|(ix, _)| ix).collect());
            }
            Target::Task(key) if key.run == id => key.task.0,
            Target::Run(_) | Target::Task(_) => return None,
        };
        let mut set = BTreeSet::from([target]);
        loop {
            let more: Vec<u32> = numbered()
                .filter(|(ix, task)| {
                    let mut of = task.dependencies.iter();
                    !set.contains(ix)
                        && task.stands == Stands::Skipped
                        && of.all(|ix| {
                            let fine = self.dependency(run, *ix);
                            set.contains(ix) || fine.is_some_and(|task| !task.stands.lacks())
                        })
                })
                .map(|(ix, _)| ix)
                .collect();
            if more.is_empty() {
                return Some(set);
            }
            set.extend(more);
        }
    }

    pub(crate) fn see(&mut self, asked: &Asked<'_>, kind: &EventKind) -> Judged {
        match kind {
            EventKind::CoordinatorStarted { epoch } => {
                let grows = epoch.0 > self.epoch;
                self.epoch = epoch.0;
                ensure(grows, "epochs only grow", || format!("{epoch}"))
            }
            EventKind::RunSubmitted { run, spec, .. } => self.submitted(*run, spec),
            EventKind::LeaseGranted {
                run,
                lease,
                work,
                worker,
                incarnation,
                ttl,
                placement: _,
            } => {
                self.pool.granted(lease.0, worker)?;
                self.granted(asked, *run, lease.0, *work, worker, *incarnation, ttl.ms())
            }
            EventKind::WorkerJoined { worker, offer, .. } => {
                self.pool.joins(worker, offer);
                Ok(())
            }
            EventKind::Pool(event) => self.pool.see(event),
            EventKind::WorkStarted { lease, .. } => {
                let id = lease.0;
                let lease = self.live(id, "work begins")?;
                let once = !std::mem::replace(&mut lease.started, true);
                lease.begun = asked.at;
                ensure(once, "work begins once", || format!("{id} begins again"))
            }
            EventKind::AttemptSucceeded { lease, .. } => self.made(asked, lease.0),
            EventKind::VerifyPassed { lease, .. } => self.passed(asked, lease.0),
            EventKind::AttemptFailed {
                lease,
                failure,
                retry_at,
                ..
            } => self.failed(asked, lease.0, failure, retry_at.is_some()),
            EventKind::VerifyFailed {
                lease,
                failure,
                retry_at,
                ..
            } => self.verify_failed(asked, lease.0, failure, retry_at.is_some()),
            EventKind::VerifyLost {
                lease,
                failure,
                retry_at,
                ..
            } => self.verify_lost(asked, lease.0, failure, retry_at.is_some()),
            EventKind::LeaseRevoked { lease, .. } => {
                let lease = self.live_or_told(lease.0, "it is revoked")?;
                lease.revoked = true;
                Ok(())
            }
            EventKind::LeaseClosed { lease, end, .. } => self.closed(asked, lease.0, *end),
            EventKind::TaskSucceeded { task, .. } => {
                let known = self.known(*task)?;
                let fair = known.made && !known.stands.is_final();
                known.stands = Stands::Succeeded;
                ensure(fair, "a task has one winner", || {
                    format!("{task} succeeds with nothing made")
                })
            }
            EventKind::TaskFailed { task, failure } => {
                let known = self.known(*task)?;
                let own = matches!(
                    failure.class.name(),
                    "base_conflict" | "internal" | "not_placed" | "timed_out"
                );
                let fair = (known.falls || own) && !known.stands.is_final();
                known.stands = Stands::Failed;
                ensure(fair, "failures are counted right", || {
                    format!("{task} fails although it may be tried again")
                })
            }
            EventKind::TaskSkipped { task, .. } => {
                let run = self.runs.get(&task.run);
                let known = self.task(*task);
                let fair = run.zip(known).is_some_and(|(run, known)| {
                    known.stands == Stands::Waiting && self.doomed(run, known)
                });
                self.known(*task)?.stands = Stands::Skipped;
                ensure(fair, "only dependents of what failed are skipped", || {
                    format!("{task}")
                })
            }
            EventKind::TaskCancelled { task, .. } => {
                let fair = asked.says(|command| match command {
                    Command::Cancel { target, .. } => {
                        *target == Target::Task(*task) || *target == Target::Run(task.run)
                    }
                    _ => false,
                });
                let known = self.known(*task)?;
                let open = !known.stands.is_final();
                known.stands = Stands::Cancelled;
                ensure(fair && open, "only people cancel", || format!("{task}"))
            }
            EventKind::TaskParked { lease, .. } => self.parked(asked, lease.0),
            EventKind::QuestionAsked {
                lease,
                question,
                number,
                ..
            } => self.asks(asked, lease.0, question.0, *number),
            EventKind::QuestionAnswered { question, .. } => self.answered(asked, question.0),
            EventKind::QuestionClosed {
                lease,
                question,
                number,
                ..
            } => self.question_closed(asked, lease.0, question.0, *number),
            EventKind::ConversationOpened { lease, .. } => {
                self.live(lease.0, "it has a conversation").map(|_| ())
            }
            EventKind::RunEnded { run, outcome } => self.ended(*run, outcome),
            EventKind::RunReopened { run, .. } => {
                if let Some(run) = self.runs.get_mut(run) {
                    run.ended = false;
                    run.verifies_lost = 0;
                }
                Ok(())
            }
            EventKind::RunArchived { run } => {
                let open = self
                    .open
                    .iter()
                    .any(|id| self.leases.get(id).is_some_and(|lease| lease.run == *run));
                let known = self.runs.get_mut(run);
                let fair = known.is_some_and(|run| {
                    run.archived = true;
                    run.ended
                });
                ensure(fair && !open, "only what is over is archived", || {
                    format!("{run}")
                })
            }
            EventKind::RunReloaded { run, .. } => {
                if let Some(run) = self.runs.get_mut(run) {
                    run.archived = false;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn known(&mut self, key: TaskKey) -> Result<&mut Task, (&'static str, String)> {
        let known = self.task_mut(key);
        known.ok_or_else(|| ("events name what there is", format!("{key}")))
    }

    pub(crate) fn live(
        &mut self,
        id: u64,
        what: &str,
    ) -> Result<&mut Lease, (&'static str, String)> {
        let lease = self.live_or_told(id, what)?;
        if lease.told {
            return Err(("a lease has one result", format!("{id}: {what}")));
        }
        Ok(lease)
    }

    pub(crate) fn live_or_told(
        &mut self,
        id: u64,
        what: &str,
    ) -> Result<&mut Lease, (&'static str, String)> {
        let lease = self
            .leases
            .get_mut(&id)
            .filter(|lease| lease.open && !lease.revoked);
        lease.ok_or_else(|| ("only live leases count", format!("{id}: {what}")))
    }

    pub(crate) fn ended(&mut self, id: RunId, outcome: &RunOutcome) -> Judged {
        let Some(run) = self.runs.get_mut(&id) else {
            return Err(("events name what there is", format!("{id}")));
        };
        let all_final = run.tasks.iter().all(|task| task.stands.is_final());
        let all_good = run
            .tasks
            .iter()
            .all(|task| task.stands == Stands::Succeeded);
        let fair = match outcome {
            RunOutcome::Succeeded => all_good,
            RunOutcome::Failed(_) => all_final && (!all_good || run.integrates),
            RunOutcome::Cancelled { .. } => all_final,
        };
        let once = !std::mem::replace(&mut run.ended, true);
        ensure(fair && once, "a run ends once, as its tasks did", || {
            format!("{id}: {outcome:?}")
        })
    }
}

pub(crate) fn known_final(run: Option<&Run>) -> bool {
    run.is_some_and(|run| {
        run.final_verify
            && run
                .tasks
                .iter()
                .all(|task| task.stands == Stands::Succeeded)
    })
}

pub(crate) fn class_is_timeout(class: FailureClass) -> bool {
    matches!(class, FailureClass::TimedOut | FailureClass::VerifyFailed)
}
