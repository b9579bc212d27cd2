//! What shells have to do: because of events, because of the state, and when to look again.

use std::collections::BTreeSet;

use crate::event::{Event, EventKind};
use crate::ids::{CommitId, LeaseId, QuestionId, RunId, TaskIx, TaskKey, WorkerId};
use crate::index::{RunEntry, Timer};
use crate::limits;
use crate::settle::{base_commits, integration_commits};
use crate::state::{Link, RunPhase, State, TaskState};
use crate::time::Timestamp;
use crate::worker::DeclaredAgent;

/// Something to be done outside, after the events that lead to it are committed. Losing one does
/// no harm: heartbeats, hellos and reconciliation lead to the same end later.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Effect {
    /// The lease is to be sent to its worker.
    Grant { worker: WorkerId, lease: LeaseId },
    /// The worker is to end the lease's processes.
    Stop { worker: WorkerId, lease: LeaseId },
    /// The question of a lease has an answer.
    Answer {
        worker: WorkerId,
        lease: LeaseId,
        question: QuestionId,
    },
    /// Workers are to look for [`State::declared_agents`], of which there may be new ones.
    Look,
    /// [`git_work`] has changed.
    GitWork,
    /// The run can be archived once its last lease is closed.
    RunEnded { run: RunId },
}

/// A merge that the shell has to make. The same step gives the same commit id, since `at` is the
/// commit's time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GitStep {
    /// Answered with [`crate::Command::BaseMade`].
    Base {
        task: TaskKey,
        generation: u32,
        base: CommitId,
        /// In plan order, at least two.
        commits: Vec<(TaskIx, CommitId)>,
        at: Timestamp,
    },
    /// Answered with [`crate::Command::IntegrationMade`].
    Integration {
        run: RunId,
        generation: u32,
        base: CommitId,
        /// In topological order; may be empty, then the result is the base.
        commits: Vec<(TaskIx, CommitId)>,
        at: Timestamp,
    },
}

/// Why the core wants to be asked again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WakeReason {
    /// A retry delay ends: run [`crate::schedule()`].
    Delay,
    /// A deadline passes: send [`crate::Command::Tick`].
    Deadline,
}

/// Gives what the events lead to outside, in their order. `state` is the one after the events.
#[must_use]
pub fn effects(state: &State, events: &[Event]) -> Vec<Effect> {
    let mut effects = vec![];
    let (mut git, mut look) = (false, false);
    for event in events {
        match &event.kind {
            EventKind::LeaseGranted { lease, worker, .. } => effects.push(Effect::Grant {
                worker: worker.clone(),
                lease: *lease,
            }),
            EventKind::LeaseRevoked { lease, .. } => {
                if let Some(lease) = state.lease(*lease) {
                    effects.push(Effect::Stop {
                        worker: lease.worker.clone(),
                        lease: lease.id,
                    });
                }
            }
            EventKind::QuestionAnswered { question, .. } => {
                let asker = state
                    .question(*question)
                    .and_then(|(key, _)| state.task(key));
                let lease = match asker.map(|task| &task.state) {
                    Some(TaskState::Leased { lease, .. }) => state.lease(*lease),
                    _ => None,
                };
                effects.extend(lease.map(|lease| Effect::Answer {
                    worker: lease.worker.clone(),
                    lease: lease.id,
                    question: *question,
                }));
            }
            EventKind::RunSubmitted { spec, .. } => {
                let mut tasks = spec.tasks.iter();
                look |= tasks.any(|task| task.profile.requirement.declared.is_some());
            }
            EventKind::RunReloaded { image, .. } => {
                let mut profiles = image.run.profiles.iter();
                look |= profiles.any(|profile| profile.requirement.declared.is_some());
            }
            EventKind::TaskBasing { .. } | EventKind::IntegrationStarted { .. } => git = true,
            EventKind::RunEnded { run, .. } => effects.push(Effect::RunEnded { run: *run }),
            _ => {}
        }
    }
    if git {
        effects.push(Effect::GitWork);
    }
    if look {
        effects.push(Effect::Look);
    }
    effects
}

/// Gives all merges that are wanted now. Costs nothing when there are none.
#[must_use]
pub fn git_work(state: &State) -> Vec<GitStep> {
    let bases = state.index.basing.iter().filter_map(|key| {
        let run = state.run(key.run)?;
        let task = run.task(key.task)?;
        let TaskState::Basing { since } = task.state else {
            return None;
        };
        Some(GitStep::Base {
            task: *key,
            generation: task.generation,
            base: run.source.as_ref()?.base.clone(),
            commits: base_commits(run, key.task),
            at: since,
        })
    });
    let integrations = state.index.integrating.iter().filter_map(|id| {
        let run = state.run(*id)?;
        let RunPhase::Integrating { since } = run.phase else {
            return None;
        };
        Some(GitStep::Integration {
            run: *id,
            generation: run.generation,
            base: run.source.as_ref()?.base.clone(),
            commits: integration_commits(run),
            at: since,
        })
    });
    bases.chain(integrations).collect()
}

/// Gives when the core wants to be asked again, and why. What is past is due now.
#[must_use]
pub fn next_wakeup(state: &State) -> Option<(Timestamp, WakeReason)> {
    let delay = state
        .index
        .delayed
        .first()
        .map(|(at, _)| (*at, WakeReason::Delay));
    let held = state.index.held.first();
    let held = held.map(|(at, _)| (*at, WakeReason::Delay));
    let deadline = state.index.timers.first();
    let deadline = deadline.map(|(at, _)| (*at, WakeReason::Deadline));
    let all = delay.into_iter().chain(held).chain(deadline);
    all.min_by_key(|(at, _)| *at)
}

/// Gives the deadlines that have passed, oldest first: what a [`crate::Command::Tick`] would handle.
pub fn due(state: &State, now: Timestamp) -> impl Iterator<Item = &Timer> {
    let timers = state.index.timers.iter();
    timers
        .take_while(move |(at, _)| *at <= now)
        .map(|(_, timer)| timer)
}

impl State {
    /// Gives the ended runs that nothing holds any more, oldest first: they can be archived.
    pub fn archivable(&self) -> impl Iterator<Item = RunId> {
        let entries = self.runs.values();
        let ended = entries.filter(|RunEntry { run, aux }| run.is_ended() && aux.leases.is_empty());
        ended.map(|entry| entry.run.id)
    }

    /// Gives the declared agents that live runs name, so that workers can look for them: those named
    /// last, at most [`limits::DECLARED_AGENTS`].
    #[must_use]
    pub fn declared_agents(&self) -> Vec<DeclaredAgent> {
        let classes = self.index.classes.values().rev();
        let named: BTreeSet<&DeclaredAgent> = classes
            .filter_map(|class| class.requirement.declared.as_ref())
            .scan(BTreeSet::new(), |seen, declared| {
                seen.insert(declared);
                (seen.len() <= limits::DECLARED_AGENTS).then_some(declared)
            })
            .collect();
        named.into_iter().cloned().collect()
    }

    /// Gives the workers that have a session, with its number.
    pub fn connected(&self) -> impl Iterator<Item = (&WorkerId, u64)> {
        self.workers().filter_map(|worker| match worker.link {
            Link::Up { session, .. } => Some((&worker.id, session)),
            Link::Down { .. } => None,
        })
    }
}
