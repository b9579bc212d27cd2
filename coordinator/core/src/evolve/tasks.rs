//! Tasks move from state to state, and their dependents learn of it.

use crate::build::place;
use crate::event::{Outcome, Usage, Work};
use crate::failure::Failure;
use crate::ids::{AttemptNo, CommitId, LeaseId, RunId, TaskIx, TaskKey};
use crate::state::{Attempt, AttemptEnd, History, RunPhase, State, TaskState, VerifyPhase};
use crate::time::Timestamp;

impl State {
    pub(super) fn attempt_made(
        &mut self,
        key: TaskKey,
        at: Timestamp,
        outcome: &Outcome,
        usage: Usage,
        summary: &str,
    ) {
        self.end_attempt(key, at, || AttemptEnd::Made(outcome.clone()));
        let mut number = AttemptNo(0);
        self.amend_attempt(key, |attempt| {
            attempt.usage = usage;
            attempt.summary = summary.into();
            number = attempt.number;
        });
        let verified = self
            .run(key.run)
            .and_then(|run| run.profile(key.task))
            .is_some_and(|profile| profile.verify.is_some());
        if verified {
            let verify = VerifyPhase::Waiting {
                since: at,
                not_before: at,
                lost: 0,
            };
            let attempt = number;
            self.set_task(key, at, TaskState::Verifying { attempt, verify });
        }
    }

    pub(super) fn reopen_task(&mut self, key: TaskKey, at: Timestamp, generation: u32) {
        let Some(run) = self.run(key.run) else {
            return;
        };
        let Some(task) = run.task(key.task) else {
            return;
        };
        let done = |ix: &&TaskIx| run.task(**ix).is_none_or(|task| task.state.is_succeeded());
        let met = task.dependencies.iter().filter(done).count();
        let unmet = u32::try_from(task.dependencies.len() - met).unwrap_or(u32::MAX);
        if let Some(task) = self.task_mut(key) {
            task.generation = generation;
            if let Some(history) = &mut task.history {
                history.counted = 0;
                history.crashes = 0;
                history.deferrals = 0;
                history.departures = 0;
                history.last_failure = None;
                history.base = None;
            }
        }
        self.set_task(key, at, TaskState::Blocked { unmet });
    }

    /// Moves a task into another state and passes the consequences on to its dependents.
    pub(super) fn set_task(&mut self, key: TaskKey, at: Timestamp, next: TaskState) {
        self.forget_questions(key, at, &next);
        self.unindex_task(key);
        let (is_final, succeeded) = (next.is_final(), next.is_succeeded());
        let because = match &next {
            TaskState::Skipped { because, .. } => *because,
            _ => key.task,
        };
        let Some(task) = self.task_mut(key) else {
            return;
        };
        let was_final = task.state.is_final();
        task.state = next;
        self.index_task(key, at);
        if was_final != is_final {
            self.unindex_run(key.run);
            if let Some(entry) = self.runs.get_mut(&key.run) {
                entry.aux.open = if is_final {
                    entry.aux.open.saturating_sub(1)
                } else {
                    entry.aux.open.saturating_add(1)
                };
            }
            self.index_run(key.run, at);
        }
        if is_final && !was_final {
            self.tell_dependents(key, succeeded, because);
        }
    }

    pub(super) fn tell_dependents(&mut self, key: TaskKey, succeeded: bool, because: TaskIx) {
        let Some(entry) = self.runs.get_mut(&key.run) else {
            return;
        };
        let tasks = &mut entry.run.tasks;
        let count = tasks
            .get(place(key.task))
            .map_or(0, |task| task.dependents.len());
        for nth in 0..count {
            let Some(&dependent) = tasks
                .get(place(key.task))
                .and_then(|task| task.dependents.get(nth))
            else {
                return;
            };
            let dependent_key = TaskKey {
                run: key.run,
                task: dependent,
            };
            let state = tasks.get_mut(place(dependent)).map(|task| &mut task.state);
            if let Some(TaskState::Blocked { unmet }) = state {
                if succeeded {
                    *unmet = unmet.saturating_sub(1);
                    if *unmet == 0 {
                        self.index.unblocked.insert(dependent_key);
                    }
                } else {
                    self.index.doomed.entry(dependent_key).or_insert(because);
                }
            }
        }
    }

    pub(super) fn set_phase(&mut self, id: RunId, at: Timestamp, next: RunPhase) {
        self.unindex_run(id);
        if let Some(entry) = self.runs.get_mut(&id) {
            entry.run.phase = next;
        }
        self.index_run(id, at);
    }

    /// Gives the task a lease works on or verifies; `None` for a final verify.
    pub(crate) fn task_of(&self, lease: LeaseId) -> Option<TaskKey> {
        let lease = self.lease(lease)?;
        match lease.work {
            Work::Attempt { task, .. } | Work::Verify { task, .. } => Some(TaskKey {
                run: lease.run,
                task,
            }),
            Work::FinalVerify => None,
        }
    }

    pub(super) fn keep_base(&mut self, key: TaskKey, base: Option<&CommitId>) {
        if let Some(base) = base
            && self.base(key) != Some(base)
            && let Some(task) = self.task_mut(key)
        {
            task.history.get_or_insert_default().base = Some(base.clone());
        }
    }

    pub(super) fn amend_attempt(&mut self, key: TaskKey, change: impl FnOnce(&mut Attempt)) {
        let history = self.task_mut(key).and_then(|task| task.history.as_mut());
        if let Some(attempt) = history.and_then(|history| history.attempts.last_mut()) {
            change(attempt);
        }
    }

    /// Ends the last attempt, if it has not ended yet.
    pub(super) fn end_attempt(
        &mut self,
        key: TaskKey,
        at: Timestamp,
        end: impl FnOnce() -> AttemptEnd,
    ) {
        self.amend_attempt(key, |attempt| {
            if attempt.end.is_none() {
                attempt.end = Some(end());
                attempt.ended_at = Some(at);
                attempt.go_on(at);
            }
        });
    }

    pub(super) fn count_failure(&mut self, key: TaskKey, failure: &Failure) {
        if let Some(task) = self.task_mut(key) {
            let history: &mut History = task.history.get_or_insert_default();
            if failure.class.counts() {
                history.counted = history.counted.saturating_add(1);
            } else if failure.class.is_providers() {
                history.deferrals = history.deferrals.saturating_add(1);
            } else if failure.class.leaves() {
                history.departures = history.departures.saturating_add(1);
            } else {
                history.crashes = history.crashes.saturating_add(1);
            }
            history.last_failure = Some(failure.clone());
        }
    }
}
