//! Everything that is derived from the runs, leases and workers so that no step looks at all of them.
//!
//! Each entry is a function of what it indexes: a change takes the old entries out, changes the
//! thing, and puts the new ones in. [`crate::invariants`] compares all of it with the truth.

mod keep;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::event::Work;
use crate::ids::{LeaseId, QuestionId, RunId, TaskIx, TaskKey, WorkerId};
use crate::limits;
use crate::question::Question;
use crate::state::{Lease, Link, Run, RunPhase, Task, TaskState, VerifyPhase, Worker};
use crate::time::Timestamp;
use crate::worker::{DeclaredAgent, Requirement};

/// Number of an interned requirement.
pub(crate) type ClassId = u32;

/// Place of a task in its queue: priority, critical path, plan order.
pub(crate) type Rank = (Reverse<i16>, Reverse<u32>, TaskIx);

/// Place of a run in a class: fewest live leases first, then the one that waited longest.
pub(crate) type Turn = (u32, u64, RunId);

/// Work that wants a lease.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Wanted {
    Attempt(TaskKey),
    Verify(TaskKey),
    FinalVerify(RunId),
}

/// What becomes due.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Timer {
    /// Silence: TTL and grace of a lease have passed.
    Lease(LeaseId),
    /// The work of a lease has taken too long.
    Timeout(LeaseId),
    /// The deadline of a task's state.
    Task(TaskKey),
    /// The deadline of a run's phase.
    Run(RunId),
    /// A worker is gone for long.
    Forget(WorkerId),
}

/// Work of one run and one class that can be leased now.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Queue {
    pub(crate) final_verify: bool,
    pub(crate) verifies: BTreeSet<Rank>,
    pub(crate) attempts: BTreeSet<Rank>,
}

impl Queue {
    pub(crate) fn is_empty(&self) -> bool {
        !self.final_verify && self.verifies.is_empty() && self.attempts.is_empty()
    }
}

/// An interned requirement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Class {
    pub(crate) requirement: Arc<Requirement>,
    /// Runs that name it.
    pub(crate) users: u32,
    /// Runs that have queued work of this class and may have one more lease.
    pub(crate) runs: BTreeSet<Turn>,
}

/// How a closed lease ended, in its worker's words: a repeat of them is no news.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Said {
    Made,
    NotMade,
    Stopped,
}

/// Memory of a result, so that a repeated report is recognised.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Recorded {
    pub(crate) worker: WorkerId,
    pub(crate) said: Said,
}

/// What is derived for one run.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct RunAux {
    /// Tasks that are not final.
    pub(crate) open: u32,
    /// Leases that are not revoked.
    pub(crate) live: u32,
    /// When the run had its last grant, as a number that only grows.
    pub(crate) stamp: u64,
    /// All leases, revoked ones too.
    pub(crate) leases: BTreeSet<LeaseId>,
    /// Open leases that were revoked, counted by their task; `None` is the final verify. Their
    /// processes may still run, so nothing new is begun beside them.
    pub(crate) ending: BTreeMap<Option<TaskIx>, u32>,
    /// Results remembered in [`Index::recorded`].
    pub(crate) recorded: Vec<LeaseId>,
    pub(crate) queues: BTreeMap<ClassId, Queue>,
    /// Paths claimed by tasks at work.
    pub(crate) claims: BTreeMap<Arc<str>, TaskIx>,
    /// For each profile: class of its attempts and of its verifies.
    pub(crate) classes: Vec<(ClassId, Option<ClassId>)>,
    pub(crate) final_class: Option<ClassId>,
}

impl RunAux {
    /// Notes that a lease was revoked.
    pub(crate) fn begin_ending(&mut self, work: Work) {
        let count = self.ending.entry(task_of(work)).or_default();
        *count = count.saturating_add(1);
    }

    /// Notes that a revoked lease was closed.
    pub(crate) fn end_ending(&mut self, work: Work) {
        let task = task_of(work);
        if let Some(count) = self.ending.get_mut(&task) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.ending.remove(&task);
            }
        }
    }
}

/// Gives the task that work is for; `None` for the final verify.
pub(crate) const fn task_of(work: Work) -> Option<TaskIx> {
    match work {
        Work::Attempt { task, .. } | Work::Verify { task, .. } => Some(task),
        Work::FinalVerify => None,
    }
}

/// What is derived for one worker.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct WorkerAux {
    /// All leases, revoked ones too.
    pub(crate) leases: BTreeSet<LeaseId>,
    /// Grants it takes until its next heartbeat. Volatile.
    pub(crate) credit: u32,
    /// Number of the last hello of this incarnation. Volatile: a stream does not outlive the
    /// coordinator's process.
    pub(crate) hello: u64,
    /// When its last session was heard last, and whether it took nothing new any more by then: then it
    /// went away in good order. Volatile.
    pub(crate) last_word: Option<(Timestamp, bool)>,
    /// When its machine goes away, by its own word. Volatile.
    pub(crate) ends_at: Option<Timestamp>,
    /// Which declared agents it has (true) or lacks, of those it was asked for in this session.
    /// Volatile: it is asked again in each session.
    pub(crate) looked: BTreeMap<DeclaredAgent, bool>,
    /// Resources its leases occupy.
    pub(crate) used: BTreeMap<Arc<str>, u64>,
    /// Its place in [`Index::available`].
    pub(crate) listed: Option<u32>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct RunEntry {
    pub(crate) run: Run,
    pub(crate) aux: RunAux,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct WorkerEntry {
    pub(crate) worker: Worker,
    pub(crate) aux: WorkerAux,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct LeaseEntry {
    pub(crate) lease: Lease,
    /// Its place among the timers.
    pub(crate) timeout_at: Option<Timestamp>,
}

/// The indexes over all runs and workers.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Index {
    pub(crate) names: BTreeMap<Arc<str>, RunId>,
    pub(crate) classes: BTreeMap<ClassId, Class>,
    class_ids: BTreeMap<Arc<Requirement>, ClassId>,
    next_class: ClassId,
    next_stamp: u64,
    pub(crate) delayed: BTreeSet<(Timestamp, Wanted)>,
    /// Ready tasks that wait for the worker or host with their conversation, and until when.
    pub(crate) held: BTreeSet<(Timestamp, TaskKey)>,
    pub(crate) timers: BTreeSet<(Timestamp, Timer)>,
    /// Workers that take something now, most free slots first.
    pub(crate) available: BTreeSet<(Reverse<u32>, WorkerId)>,
    /// Questions that are not closed.
    pub(crate) questions: BTreeMap<QuestionId, TaskKey>,
    /// Closed questions of live runs: whoever answers one is told what became of it.
    pub(crate) past_questions: BTreeMap<QuestionId, TaskKey>,
    pub(crate) recorded: BTreeMap<LeaseId, Recorded>,
    pub(crate) basing: BTreeSet<TaskKey>,
    pub(crate) integrating: BTreeSet<RunId>,
    /// Worklists of [`crate::settle`]: tasks whose dependencies have all succeeded, …
    pub(crate) unblocked: BTreeSet<TaskKey>,
    /// … blocked tasks with the failed task that dooms them, …
    pub(crate) doomed: BTreeMap<TaskKey, TaskIx>,
    /// … and active runs whose tasks are all final.
    pub(crate) complete: BTreeSet<RunId>,
}

impl Index {
    fn intern(&mut self, requirement: &Requirement) -> ClassId {
        if let Some(&id) = self.class_ids.get(requirement) {
            if let Some(class) = self.classes.get_mut(&id) {
                class.users = class.users.saturating_add(1);
            }
            return id;
        }
        let id = self.next_class;
        self.next_class = self.next_class.wrapping_add(1);
        let requirement = Arc::new(requirement.clone());
        self.class_ids.insert(Arc::clone(&requirement), id);
        self.classes.insert(
            id,
            Class {
                requirement,
                users: 1,
                runs: BTreeSet::new(),
            },
        );
        id
    }

    fn release(&mut self, id: ClassId) {
        let Some(class) = self.classes.get_mut(&id) else {
            return;
        };
        class.users = class.users.saturating_sub(1);
        if class.users == 0 {
            self.class_ids.remove(&class.requirement);
            self.classes.remove(&id);
        }
    }

    /// Puts the run into, or takes it out of, the classes it has queued work for.
    fn list_run(&mut self, run: &Run, aux: &RunAux, listed: bool) {
        let eligible = may_grow(run, aux);
        for id in aux.queues.keys() {
            if let Some(class) = self.classes.get_mut(id) {
                let turn = (aux.live, aux.stamp, run.id);
                if listed && eligible {
                    class.runs.insert(turn);
                } else {
                    class.runs.remove(&turn);
                }
            }
        }
    }

    fn enqueue(&mut self, run: &Run, aux: &mut RunAux, wanted: Wanted) {
        let Some(id) = class_of(run, aux, wanted) else {
            return;
        };
        let queue = aux.queues.entry(id).or_default();
        let fresh = queue.is_empty();
        match wanted {
            Wanted::Attempt(key) => {
                queue.attempts.insert(rank(run, key.task));
            }
            Wanted::Verify(key) => {
                queue.verifies.insert(rank(run, key.task));
            }
            Wanted::FinalVerify(_) => queue.final_verify = true,
        }
        if fresh
            && may_grow(run, aux)
            && let Some(class) = self.classes.get_mut(&id)
        {
            class.runs.insert((aux.live, aux.stamp, run.id));
        }
    }

    fn dequeue(&mut self, run: &Run, aux: &mut RunAux, wanted: Wanted) {
        let Some(id) = class_of(run, aux, wanted) else {
            return;
        };
        let Some(queue) = aux.queues.get_mut(&id) else {
            return;
        };
        match wanted {
            Wanted::Attempt(key) => {
                queue.attempts.remove(&rank(run, key.task));
            }
            Wanted::Verify(key) => {
                queue.verifies.remove(&rank(run, key.task));
            }
            Wanted::FinalVerify(_) => queue.final_verify = false,
        }
        if queue.is_empty() {
            aux.queues.remove(&id);
            if let Some(class) = self.classes.get_mut(&id) {
                class.runs.remove(&(aux.live, aux.stamp, run.id));
            }
        }
    }

    fn want(&mut self, run: &Run, aux: &mut RunAux, wanted: Wanted, at: (Timestamp, Timestamp)) {
        let (now, not_before) = at;
        if not_before > now {
            self.delayed.insert((not_before, wanted));
        } else {
            self.enqueue(run, aux, wanted);
        }
    }

    fn unwant(&mut self, run: &Run, aux: &mut RunAux, wanted: Wanted, not_before: Timestamp) {
        if !self.delayed.remove(&(not_before, wanted)) {
            self.dequeue(run, aux, wanted);
        }
    }
}

/// Tells whether the run may have one more lease.
pub(crate) fn may_grow(run: &Run, aux: &RunAux) -> bool {
    run.max_parallel.is_none_or(|max| aux.live < max.get())
}

/// Gives the place of a task in its queue.
pub(crate) fn rank(run: &Run, ix: TaskIx) -> Rank {
    run.task(ix).map_or((Reverse(0), Reverse(0), ix), |task| {
        (Reverse(task.priority), Reverse(task.height), ix)
    })
}

/// Gives the class of wanted work.
pub(crate) fn class_of(run: &Run, aux: &RunAux, wanted: Wanted) -> Option<ClassId> {
    let profile = |ix: TaskIx| {
        let profile = usize::from(run.task(ix)?.profile);
        aux.classes.get(profile).copied()
    };
    match wanted {
        Wanted::Attempt(key) => profile(key.task).map(|classes| classes.0),
        Wanted::Verify(key) => profile(key.task).and_then(|classes| classes.1),
        Wanted::FinalVerify(_) => aux.final_class,
    }
}

/// Gives the deadline of a task's state, if the state has one of its own.
pub(crate) fn task_deadline(task: &Task) -> Option<Timestamp> {
    match &task.state {
        TaskState::Basing { since } => Some(*since + limits::GIT_STEP_DEADLINE),
        TaskState::Ready { since, not_before }
        | TaskState::Verifying {
            verify: VerifyPhase::Waiting {
                since, not_before, ..
            },
            ..
        } => Some((*since).max(*not_before) + limits::QUEUE_DEADLINE),
        TaskState::Leased { awaiting, .. } => {
            unanswered(awaiting).map(|question| question.asked_at + limits::PARK_AFTER)
        }
        TaskState::Parked(parked) => unanswered(&parked.questions)
            .map(|question| question.asked_at + limits::QUESTION_DEADLINE),
        TaskState::Blocked { .. }
        | TaskState::Verifying { .. }
        | TaskState::Succeeded { .. }
        | TaskState::Failed { .. }
        | TaskState::Cancelled { .. }
        | TaskState::Aborted { .. }
        | TaskState::Skipped { .. } => None,
    }
}

/// Gives the deadline of a run's phase, if the phase has one of its own.
pub(crate) fn run_deadline(run: &Run) -> Option<Timestamp> {
    match &run.phase {
        RunPhase::Integrating { since } => Some(*since + limits::GIT_STEP_DEADLINE),
        RunPhase::Verifying {
            verify: VerifyPhase::Waiting {
                since, not_before, ..
            },
            ..
        } => Some((*since).max(*not_before) + limits::QUEUE_DEADLINE),
        RunPhase::Active | RunPhase::Verifying { .. } | RunPhase::Ended { .. } => None,
    }
}

/// Gives the work that a task's state wants a lease for, with its earliest time.
pub(crate) fn task_wants(key: TaskKey, task: &Task) -> Option<(Wanted, Timestamp)> {
    match &task.state {
        TaskState::Ready { not_before, .. } => Some((Wanted::Attempt(key), *not_before)),
        TaskState::Verifying {
            verify: VerifyPhase::Waiting { not_before, .. },
            ..
        } => Some((Wanted::Verify(key), *not_before)),
        _ => None,
    }
}

/// Gives the work that a run's phase wants a lease for, with its earliest time.
pub(crate) fn run_wants(run: &Run) -> Option<(Wanted, Timestamp)> {
    match &run.phase {
        RunPhase::Verifying {
            verify: VerifyPhase::Waiting { not_before, .. },
            ..
        } if run.final_verify().is_some() => Some((Wanted::FinalVerify(run.id), *not_before)),
        _ => None,
    }
}

/// Gives the oldest question that nobody has answered.
pub(crate) fn unanswered(questions: &[Question]) -> Option<&Question> {
    questions.iter().find(|question| question.answer.is_none())
}

fn claims(task: &Task) -> bool {
    matches!(
        task.state,
        TaskState::Leased { .. } | TaskState::Verifying { .. }
    )
}

/// Tells whether somebody wants the worker to take nothing new.
pub(crate) fn drains(worker: &Worker) -> bool {
    worker.draining || matches!(worker.link, Link::Up { draining: true, .. })
}

/// Gives how many leases the worker takes now, if it is not shut.
pub(crate) fn free_slots(worker: &Worker, aux: &WorkerAux) -> u32 {
    if drains(worker) || !matches!(worker.link, Link::Up { .. }) {
        return 0;
    }
    let held = u32::try_from(aux.leases.len()).unwrap_or(u32::MAX);
    worker.offer.slots.saturating_sub(held).min(aux.credit)
}
