//! What the coordinator's reconcilers make: merges and branches.

use coordinator_core::command::GitStepFailure;
use coordinator_core::event::{MergeConflict, Outcome, RunOutcome};
use coordinator_core::state::{RunPhase, TaskState};
use coordinator_core::{Command, CommitId, GitStep, git_work};

use crate::coordinator::{Asker, GitDone, Request, nth_of};
use crate::remote::Ref;
use crate::scenario::Merge;
use crate::world::{Ev, World};

impl World<'_> {
    /// The merger looks for what is wanted, and begins it.
    pub(crate) fn git_work(&mut self, start: u64) {
        if start != self.coordinator.start || !self.coordinator.up || self.coordinator.git_busy {
            return;
        }
        // It looks again only when its last answer is committed.
        if self.coordinator.pending.is_some() || !self.coordinator.inbox.is_empty() {
            self.push(self.now + 10, Ev::GitWork(start));
            return;
        }
        let Some(step) = git_work(&self.coordinator.state).into_iter().next() else {
            return;
        };
        self.coordinator.git_busy = true;
        self.coordinator.git_nth += 1;
        let roll = self.roll(3, self.coordinator.git_nth, start);
        let takes = if roll.is_multiple_of(10) {
            500 + (roll >> 8) % 5_000
        } else {
            20 + (roll >> 8) % 200
        };
        let takes = if self.now < self.remote.slow_until {
            self.remote.merge_ms + takes
        } else {
            takes
        };
        if let Some(done) = self.merge(step) {
            self.push(self.now + takes, Ev::GitDone(start, Box::new(done)));
        }
    }

    pub(crate) fn merge(&self, step: GitStep) -> Option<GitDone> {
        let conflict = |tasks: Vec<coordinator_core::TaskIx>| {
            Err(GitStepFailure::Conflict(MergeConflict {
                tasks,
                files: vec!["a".into()],
                detail: "both changed a".into(),
            }))
        };
        let result = |merge: Merge, commit: &CommitId, tasks| match merge {
            Merge::Clean => Ok(commit.clone()),
            Merge::Conflict => conflict(tasks),
            Merge::Error => Err(GitStepFailure::Error("the disk is damaged".into())),
        };
        Some(match step {
            GitStep::Base {
                task,
                generation,
                commits,
                ..
            } => {
                let run = self.coordinator.state.run(task.run)?;
                let plan = self.plan_of(&run.name)?;
                let known = plan.tasks.get(usize::try_from(task.task.0).ok()?)?;
                let merge = nth_of(&known.base, generation.saturating_sub(1))?;
                let commit =
                    CommitId::new(&format!("b{}.{}.{generation}", task.run.0, task.task.0));
                let tasks = commits.iter().map(|(ix, _)| *ix).collect();
                let result = result(merge, &commit, tasks);
                let keep = result.is_ok().then_some((Ref::Base(task), commit));
                let command = Command::BaseMade {
                    task,
                    generation,
                    result,
                };
                GitDone { command, keep }
            }
            GitStep::Integration {
                run,
                generation,
                commits,
                ..
            } => {
                let known = self.coordinator.state.run(run)?;
                let plan = self.plan_of(&known.name)?;
                let integrate = plan.integrate.as_ref()?;
                let merge = nth_of(&integrate.merge, generation.saturating_sub(1))?;
                let commit = CommitId::new(&format!("i{}.{generation}", run.0));
                let tasks = commits.iter().map(|(ix, _)| *ix).take(2).collect();
                let result = result(merge, &commit, tasks);
                let keep = result
                    .is_ok()
                    .then_some((Ref::Candidate(run, generation), commit));
                let command = Command::IntegrationMade {
                    run,
                    generation,
                    result,
                };
                GitDone { command, keep }
            }
        })
    }

    pub(crate) fn git_done(&mut self, start: u64, done: GitDone) {
        if start != self.coordinator.start || !self.coordinator.up {
            return;
        }
        self.coordinator.git_busy = false;
        if let Some((name, commit)) = done.keep {
            self.remote.refs.insert(name, commit);
        }
        self.request(Request::Command(Asker::Nobody, done.command));
        self.push(self.now + 1, Ev::GitWork(start));
    }

    /// Moves branches to what the journal says; runs whose branches are in place may be archived.
    pub(crate) fn project(&mut self, start: u64) {
        if start != self.coordinator.start || !self.coordinator.up {
            return;
        }
        if self.coordinator.pending.is_some() {
            self.push(self.now + 10, Ev::Project(start));
            return;
        }
        let mut ended = vec![];
        let mut heads = vec![];
        for run in self.coordinator.state.runs() {
            for (task, known) in run.indexed() {
                if let TaskState::Succeeded {
                    outcome: Outcome::Commit(commit),
                    ..
                } = &known.state
                {
                    let key = coordinator_core::TaskKey { run: run.id, task };
                    heads.push((Ref::TaskHead(key), commit.clone()));
                }
            }
            if let RunPhase::Ended {
                outcome,
                integrated,
                ..
            } = &run.phase
            {
                ended.push(run.id);
                if let (RunOutcome::Succeeded, Some(commit)) = (outcome, integrated) {
                    heads.push((Ref::Integration(run.id), commit.clone()));
                }
            }
        }
        self.remote.refs.extend(heads);
        for run in ended {
            self.request(Request::Archive(run));
        }
    }
}
