//! How state is read.

use super::{
    Attempt, Lease, LeaseClocks, Run, RunPhase, State, Task, TaskState, VerifyPhase, Worker,
};
use crate::event::{Outcome, Work};
use crate::ids::{
    AllocationId, CommitId, Epoch, LeaseId, QuestionId, RunId, TaskIx, TaskKey, WorkerId,
};
use crate::plan::{Profile, VerifySpec};
use crate::question::{PastQuestion, Question};
use crate::time::Timestamp;
use crate::worker::Requirement;

impl State {
    /// Sets how long leases live from now on.
    pub fn set_clocks(&mut self, clocks: LeaseClocks) {
        self.clocks = clocks;
    }

    /// Makes the state of a fresh home.
    #[must_use]
    pub fn new() -> Self {
        Self {
            next_run: RunId(1),
            next_lease: LeaseId(1),
            next_question: QuestionId(1),
            next_allocation: AllocationId(1),
            ..Self::default()
        }
    }

    /// Gives the number of the coordinator's last start.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Gives the number of the last event that belongs to no run.
    #[must_use]
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Finds a live run.
    #[must_use]
    pub fn run(&self, id: RunId) -> Option<&Run> {
        self.runs.get(&id).map(|entry| &entry.run)
    }

    /// Tells whether a run was ever admitted, also one that is archived by now.
    #[must_use]
    pub fn has_had_runs(&self) -> bool {
        self.next_run > RunId(1)
    }

    /// Tells whether an idempotency key is that of a run, live or archived.
    #[must_use]
    pub fn knows_key(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// Finds a live run by its name.
    #[must_use]
    pub fn run_by_name(&self, name: &str) -> Option<&Run> {
        self.index.names.get(name).and_then(|id| self.run(*id))
    }

    /// Gives the live runs, oldest first.
    pub fn runs(&self) -> impl DoubleEndedIterator<Item = &Run> + ExactSizeIterator {
        self.runs.values().map(|entry| &entry.run)
    }

    /// Finds a task of a live run.
    #[must_use]
    pub fn task(&self, key: TaskKey) -> Option<&Task> {
        self.run(key.run)?.task(key.task)
    }

    /// Finds a lease that is not closed.
    #[must_use]
    pub fn lease(&self, id: LeaseId) -> Option<&Lease> {
        self.leases.get(&id).map(|entry| &entry.lease)
    }

    /// Gives the leases that are not closed, oldest first.
    pub fn leases(&self) -> impl DoubleEndedIterator<Item = &Lease> + ExactSizeIterator {
        self.leases.values().map(|entry| &entry.lease)
    }

    /// Gives the leases of a run that are not closed, revoked ones too.
    pub fn leases_of_run(&self, run: RunId) -> impl Iterator<Item = &Lease> {
        let ids = self.runs.get(&run).map(|entry| &entry.aux.leases);
        ids.into_iter().flatten().filter_map(|id| self.lease(*id))
    }

    /// Gives the leases of a worker that are not closed, revoked ones too.
    pub fn leases_of_worker<'a>(
        &'a self,
        worker: &WorkerId,
    ) -> impl Iterator<Item = &'a Lease> + use<'a> {
        let ids = self.workers.get(worker).map(|entry| &entry.aux.leases);
        ids.into_iter().flatten().filter_map(|id| self.lease(*id))
    }

    /// Finds a worker.
    #[must_use]
    pub fn worker(&self, id: &WorkerId) -> Option<&Worker> {
        self.workers.get(id).map(|entry| &entry.worker)
    }

    /// Gives the number of the last hello of the worker that was taken; zero since a start.
    #[must_use]
    pub fn last_hello(&self, id: &WorkerId) -> u64 {
        self.workers.get(id).map_or(0, |entry| entry.aux.hello)
    }

    /// Gives the workers in the order of their names.
    pub fn workers(&self) -> impl DoubleEndedIterator<Item = &Worker> + ExactSizeIterator {
        self.workers.values().map(|entry| &entry.worker)
    }

    /// Gives how many leases the worker would be granted now, if there were work.
    #[must_use]
    pub fn free_slots(&self, worker: &WorkerId) -> u32 {
        let entry = self.workers.get(worker);
        entry.and_then(|entry| entry.aux.listed).unwrap_or(0)
    }

    /// Gives the questions that wait for people with the tasks that ask them, oldest first.
    pub fn questions(&self) -> impl Iterator<Item = (TaskKey, &Question)> {
        let open = self.index.questions.keys();
        let open = open.filter_map(|id| self.question(*id));
        open.filter(|(_, question)| question.answer.is_none())
    }

    /// Finds a question that is not closed, with the task that asks it.
    #[must_use]
    pub fn question(&self, id: QuestionId) -> Option<(TaskKey, &Question)> {
        let key = *self.index.questions.get(&id)?;
        let mut open = self.task(key)?.questions().iter();
        Some((key, open.find(|question| question.id == id)?))
    }

    /// Finds a question of a live run that is closed.
    #[must_use]
    pub fn past_question(&self, id: QuestionId) -> Option<&PastQuestion> {
        let key = self.index.past_questions.get(&id)?;
        let attempts = self.task(*key)?.attempts().iter().rev();
        let mut past = attempts.flat_map(|attempt| &attempt.asked);
        past.find(|past| past.id == id)
    }

    /// Gives the questions of a lease that have an answer and are not closed. The shell sends the
    /// answers again when the lease's worker reconnects, since the first message may have been lost.
    pub fn answered(&self, lease: LeaseId) -> impl Iterator<Item = &Question> {
        let task = self.task_of(lease).and_then(|key| self.task(key));
        let awaiting = match task.map(|task| &task.state) {
            Some(TaskState::Leased {
                lease: current,
                awaiting,
                ..
            }) if *current == lease => awaiting.as_slice(),
            _ => &[],
        };
        awaiting.iter().filter(|question| question.answer.is_some())
    }

    /// Gives the commit that attempts of the task start from; `None` in a run without a
    /// repository, and for a task whose base is not known yet.
    #[must_use]
    pub fn base(&self, key: TaskKey) -> Option<&CommitId> {
        self.run(key.run)?.base(key.task)
    }

    /// Gives how many tasks of the run are not final.
    #[must_use]
    pub fn open_tasks(&self, run: RunId) -> u32 {
        self.runs.get(&run).map_or(0, |entry| entry.aux.open)
    }

    /// Gives how many leases of the run are live, those that were revoked left out.
    #[must_use]
    pub fn live_leases(&self, run: RunId) -> u32 {
        self.runs.get(&run).map_or(0, |entry| entry.aux.live)
    }

    /// Gives how much work of any run could be leased at once, if there were workers. Costs
    /// O(classes × runs with such work).
    #[must_use]
    pub fn waiting_work(&self) -> usize {
        let entries = self.runs.values();
        let queues = entries.flat_map(|entry| entry.aux.queues.values());
        queues
            .map(|queue| {
                queue.attempts.len() + queue.verifies.len() + usize::from(queue.final_verify)
            })
            .sum()
    }

    pub(crate) fn task_mut(&mut self, key: TaskKey) -> Option<&mut Task> {
        let index = usize::try_from(key.task.0).ok()?;
        self.runs.get_mut(&key.run)?.run.tasks.get_mut(index)
    }
}

impl Run {
    /// Finds a task by its place in the plan.
    #[must_use]
    pub fn task(&self, ix: TaskIx) -> Option<&Task> {
        self.tasks.get(usize::try_from(ix.0).ok()?)
    }

    /// Gives the tasks with their places.
    pub fn indexed(&self) -> impl Iterator<Item = (TaskIx, &Task)> {
        (0u32..).map(TaskIx).zip(&self.tasks)
    }

    /// Gives the settings of a task.
    #[must_use]
    pub fn profile(&self, ix: TaskIx) -> Option<&Profile> {
        self.profiles.get(usize::from(self.task(ix)?.profile))
    }

    /// Gives what a lease's work needs of its worker.
    #[must_use]
    pub fn requirement(&self, work: Work) -> Option<&Requirement> {
        match work {
            Work::Attempt { task, .. } => Some(&self.profile(task)?.requirement),
            Work::Verify { task, .. } => Some(&self.profile(task)?.verify.as_ref()?.requirement),
            Work::FinalVerify => Some(&self.final_verify()?.requirement),
        }
    }

    /// Gives the verify of the integrated commit, if there is one.
    #[must_use]
    pub fn final_verify(&self) -> Option<&VerifySpec> {
        self.integrate.as_ref()?.verify.as_ref()
    }

    /// Tells whether the run has ended.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(self.phase, RunPhase::Ended { .. })
    }

    /// Gives the commit that attempts of the task start from. See [`State::base`].
    #[must_use]
    pub fn base(&self, ix: TaskIx) -> Option<&CommitId> {
        let task = self.task(ix)?;
        let known = task.history.as_ref().and_then(|known| known.base.as_ref());
        if known.is_none() && task.dependencies.is_empty() {
            return self.source.as_ref().map(|source| &source.base);
        }
        known
    }

    /// Gives the commit of a succeeded task: what it published, or its base when it changed nothing.
    #[must_use]
    pub fn commit(&self, ix: TaskIx) -> Option<&CommitId> {
        match &self.task(ix)?.state {
            TaskState::Succeeded { outcome, .. } => match outcome {
                Outcome::Commit(commit) => Some(commit),
                Outcome::NoChange => self.base(ix),
                Outcome::NoRepository => None,
            },
            _ => None,
        }
    }

    /// Gives the failed task because of which a blocked task can never begin.
    pub(crate) fn doom(&self, task: &Task) -> Option<TaskIx> {
        task.dependencies.iter().find_map(|ix| {
            let state = &self.task(*ix)?.state;
            (state.is_final() && !state.is_succeeded()).then_some(match state {
                TaskState::Skipped { because, .. } => *because,
                _ => *ix,
            })
        })
    }
}

impl Task {
    /// Gives the attempts so far.
    #[must_use]
    pub fn attempts(&self) -> &[Attempt] {
        self.history
            .as_ref()
            .map_or(&[], |history| &history.attempts)
    }

    /// Gives the questions of its present attempt that are not closed, oldest first.
    #[must_use]
    pub fn questions(&self) -> &[Question] {
        self.state.questions()
    }
}

impl Attempt {
    /// Its agent has what it waited for, or waits no more.
    pub(crate) fn go_on(&mut self, at: Timestamp) {
        if let Some(since) = self.waiting_since.take() {
            self.paused = self.paused + at.since(since);
        }
    }
}

impl TaskState {
    /// Tells whether the state is final for its generation.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Succeeded { .. }
                | Self::Failed { .. }
                | Self::Cancelled { .. }
                | Self::Aborted { .. }
                | Self::Skipped { .. }
        )
    }

    /// Tells whether the task has succeeded.
    #[must_use]
    pub const fn is_succeeded(&self) -> bool {
        matches!(self, Self::Succeeded { .. })
    }

    /// Gives the questions that are not closed, oldest first.
    #[must_use]
    pub fn questions(&self) -> &[Question] {
        match self {
            Self::Leased { awaiting, .. } => awaiting,
            Self::Parked(parked) => &parked.questions,
            _ => &[],
        }
    }

    /// Gives the stable name used on the wire and for people.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Blocked { .. } => "blocked",
            Self::Basing { .. } => "basing",
            Self::Ready { .. } => "ready",
            Self::Leased { .. } => "leased",
            Self::Verifying { .. } => "verifying",
            Self::Parked(_) => "parked",
            Self::Succeeded { .. } => "succeeded",
            Self::Failed { .. } => "failed",
            Self::Cancelled { .. } => "cancelled",
            Self::Aborted { .. } => "aborted",
            Self::Skipped { .. } => "skipped",
        }
    }
}

impl VerifyPhase {
    /// Gives how many verifiers were lost so far.
    #[must_use]
    pub const fn lost(&self) -> u32 {
        match self {
            Self::Waiting { lost, .. } | Self::Leased { lost, .. } => *lost,
        }
    }
}
