//! Takes entries out of the indexes and puts them in again.

use std::cmp::Reverse;
use std::sync::Arc;

use super::{
    LeaseEntry, RunAux, RunEntry, Timer, Wanted, WorkerEntry, claims, free_slots, run_deadline,
    run_wants, task_deadline, task_wants,
};
use crate::ids::{LeaseId, QuestionId, RunId, TaskIx, TaskKey, WorkerId};
use crate::limits;
use crate::resume::{held_until, waits_for_home};
use crate::state::{Link, Run, RunPhase, State, TaskState, timeout_at};
use crate::time::Timestamp;

impl State {
    /// Interns the classes of a run; to be called once, before anything of it is indexed.
    pub(crate) fn open_run(&mut self, run: Run, at: Timestamp) {
        let id = run.id;
        let mut aux = RunAux::default();
        for profile in &run.profiles {
            let attempt = self.index.intern(&profile.requirement);
            let verify = profile.verify.as_ref();
            let verify = verify.map(|verify| self.index.intern(&verify.requirement));
            aux.classes.push((attempt, verify));
        }
        aux.final_class = run
            .final_verify()
            .map(|verify| self.index.intern(&verify.requirement));
        let open = run.tasks.iter().filter(|task| !task.state.is_final());
        aux.open = u32::try_from(open.count()).unwrap_or(u32::MAX);
        aux.stamp = self.next_stamp();
        self.index.names.insert(Arc::clone(&run.name), id);
        let tasks = run.tasks.len();
        self.runs.insert(id, RunEntry { run, aux });
        for ix in (0..tasks).filter_map(|ix| u32::try_from(ix).ok()) {
            let key = TaskKey {
                run: id,
                task: TaskIx(ix),
            };
            self.index_task(key, at);
            for question in self.past_questions(key) {
                self.index.past_questions.insert(question, key);
            }
        }
        self.index_run(id, at);
    }

    fn past_questions(&self, key: TaskKey) -> Vec<QuestionId> {
        let attempts = self.task(key).map_or(&[][..], |task| task.attempts());
        let past = attempts.iter().flat_map(|attempt| &attempt.asked);
        past.map(|past| past.id).collect()
    }

    /// Takes a run out of memory with everything that is indexed about it.
    pub(crate) fn close_run(&mut self, id: RunId) {
        self.unindex_run(id);
        let tasks = self.runs.get(&id).map_or(0, |entry| entry.run.tasks.len());
        for ix in (0..tasks).filter_map(|ix| u32::try_from(ix).ok()) {
            let key = TaskKey {
                run: id,
                task: TaskIx(ix),
            };
            self.unindex_task(key);
            for question in self.past_questions(key) {
                self.index.past_questions.remove(&question);
            }
        }
        let Some(RunEntry { run, aux }) = self.runs.remove(&id) else {
            return;
        };
        self.index.names.remove(&run.name);
        for lease in aux.recorded {
            self.index.recorded.remove(&lease);
        }
        for (attempt, verify) in aux.classes {
            self.index.release(attempt);
            verify.into_iter().for_each(|id| self.index.release(id));
        }
        aux.final_class
            .into_iter()
            .for_each(|id| self.index.release(id));
    }

    pub(crate) fn next_stamp(&mut self) -> u64 {
        self.index.next_stamp += 1;
        self.index.next_stamp
    }

    pub(crate) fn unindex_task(&mut self, key: TaskKey) {
        let index = &mut self.index;
        let Some(RunEntry { run, aux }) = self.runs.get_mut(&key.run) else {
            return;
        };
        let Some(task) = run.task(key.task) else {
            return;
        };
        if let Some(at) = task_deadline(task) {
            index.timers.remove(&(at, Timer::Task(key)));
        }
        for question in task.questions() {
            index.questions.remove(&question.id);
        }
        // Its next attempt may be in its history already.
        if let Some(until) = held_until(task) {
            index.held.remove(&(until, key));
        }
        if claims(task) {
            for path in &task.paths {
                if aux.claims.get(path) == Some(&key.task) {
                    aux.claims.remove(path);
                }
            }
        }
        match &task.state {
            TaskState::Blocked { .. } => {
                index.unblocked.remove(&key);
                index.doomed.remove(&key);
            }
            TaskState::Basing { .. } => {
                index.basing.remove(&key);
            }
            _ => {}
        }
        if let Some((wanted, not_before)) = task_wants(key, task) {
            index.unwant(run, aux, wanted, not_before);
        }
    }

    pub(crate) fn index_task(&mut self, key: TaskKey, now: Timestamp) {
        let index = &mut self.index;
        let Some(RunEntry { run, aux }) = self.runs.get_mut(&key.run) else {
            return;
        };
        let Some(task) = run.task(key.task) else {
            return;
        };
        if let Some(at) = task_deadline(task) {
            index.timers.insert((at, Timer::Task(key)));
        }
        for question in task.questions() {
            index.questions.insert(question.id, key);
        }
        if let Some(until) = waits_for_home(run, key.task).filter(|until| *until > now) {
            index.held.insert((until, key));
        }
        if claims(task) {
            for path in &task.paths {
                aux.claims.insert(Arc::clone(path), key.task);
            }
        }
        match &task.state {
            TaskState::Blocked { unmet } => {
                if *unmet == 0 {
                    index.unblocked.insert(key);
                } else if let Some(because) = run.doom(task) {
                    index.doomed.insert(key, because);
                }
            }
            TaskState::Basing { .. } => {
                index.basing.insert(key);
            }
            _ => {}
        }
        if let Some((wanted, not_before)) = task_wants(key, task) {
            index.want(run, aux, wanted, (now, not_before));
        }
    }

    pub(crate) fn unindex_run(&mut self, id: RunId) {
        let index = &mut self.index;
        let Some(RunEntry { run, aux }) = self.runs.get_mut(&id) else {
            return;
        };
        if let Some(at) = run_deadline(run) {
            index.timers.remove(&(at, Timer::Run(id)));
        }
        index.complete.remove(&id);
        index.integrating.remove(&id);
        if let Some((wanted, not_before)) = run_wants(run) {
            index.unwant(run, aux, wanted, not_before);
        }
    }

    pub(crate) fn index_run(&mut self, id: RunId, now: Timestamp) {
        let index = &mut self.index;
        let Some(RunEntry { run, aux }) = self.runs.get_mut(&id) else {
            return;
        };
        if let Some(at) = run_deadline(run) {
            index.timers.insert((at, Timer::Run(id)));
        }
        match run.phase {
            RunPhase::Active if aux.open == 0 => {
                index.complete.insert(id);
            }
            RunPhase::Integrating { .. } => {
                index.integrating.insert(id);
            }
            _ => {}
        }
        if let Some((wanted, not_before)) = run_wants(run) {
            index.want(run, aux, wanted, (now, not_before));
        }
    }

    /// Changes how many live leases a run has and when it had its last turn.
    pub(crate) fn change_live(&mut self, id: RunId, change: impl FnOnce(&mut RunAux)) {
        let index = &mut self.index;
        if let Some(RunEntry { run, aux }) = self.runs.get_mut(&id) {
            index.list_run(run, aux, false);
            change(aux);
            index.list_run(run, aux, true);
        }
    }

    /// Moves the work whose delay is over into its queue.
    pub(crate) fn promote(&mut self, now: Timestamp) {
        while self
            .index
            .held
            .first()
            .is_some_and(|(until, _)| *until <= now)
        {
            self.index.held.pop_first();
        }
        while let Some(&(at, wanted)) = self.index.delayed.first() {
            if at > now {
                return;
            }
            self.index.delayed.pop_first();
            let id = match wanted {
                Wanted::Attempt(key) | Wanted::Verify(key) => key.run,
                Wanted::FinalVerify(run) => run,
            };
            if let Some(RunEntry { run, aux }) = self.runs.get_mut(&id) {
                self.index.enqueue(run, aux, wanted);
            }
        }
    }

    /// Lists the worker by what it can take now, and its deadline of being forgotten.
    pub(crate) fn relist_worker(&mut self, id: &WorkerId) {
        let shut = self.is_shut(id).is_some();
        let Some(WorkerEntry { worker, aux }) = self.workers.get_mut(id) else {
            return;
        };
        if let Some(free) = aux.listed.take() {
            self.index.available.remove(&(Reverse(free), id.clone()));
        }
        let free = free_slots(worker, aux);
        if free > 0 && !shut {
            aux.listed = Some(free);
            self.index.available.insert((Reverse(free), id.clone()));
        }
    }

    /// Sets the worker's link and the timer that belongs to it.
    pub(crate) fn set_link(&mut self, id: &WorkerId, link: Link) {
        if let Some(entry) = self.workers.get_mut(id) {
            if let Link::Down { since } = entry.worker.link {
                let timer = (since + limits::WORKER_FORGET, Timer::Forget(id.clone()));
                self.index.timers.remove(&timer);
            }
            if let Link::Down { since } = link {
                let timer = (since + limits::WORKER_FORGET, Timer::Forget(id.clone()));
                self.index.timers.insert(timer);
            }
            entry.worker.link = link;
        }
        self.relist_worker(id);
    }

    /// Forgets a worker.
    pub(crate) fn drop_worker(&mut self, id: &WorkerId) {
        let Some(WorkerEntry { worker, aux }) = self.workers.remove(id) else {
            return;
        };
        if let Some(free) = aux.listed {
            self.index.available.remove(&(Reverse(free), id.clone()));
        }
        if let Link::Down { since } = worker.link {
            let timer = (since + limits::WORKER_FORGET, Timer::Forget(id.clone()));
            self.index.timers.remove(&timer);
        }
    }

    /// Moves a lease's deadline of silence.
    pub(crate) fn set_expiry(&mut self, id: LeaseId, at: Timestamp) {
        if let Some(LeaseEntry { lease, .. }) = self.leases.get_mut(&id) {
            let timers = &mut self.index.timers;
            timers.remove(&(lease.expires_at, Timer::Lease(id)));
            lease.expires_at = at;
            timers.insert((at, Timer::Lease(id)));
        }
    }

    /// Computes a lease's deadline of work anew: after its start, a question, an answer.
    pub(crate) fn set_timeout(&mut self, id: LeaseId) {
        let at = self.leases.get(&id).and_then(|entry| {
            let run = &self.runs.get(&entry.lease.run)?.run;
            timeout_at(run, &entry.lease)
        });
        if let Some(entry) = self.leases.get_mut(&id) {
            let timers = &mut self.index.timers;
            if let Some(old) = entry.timeout_at.take() {
                timers.remove(&(old, Timer::Timeout(id)));
            }
            if let Some(at) = at {
                timers.insert((at, Timer::Timeout(id)));
            }
            entry.timeout_at = at;
        }
    }
}
