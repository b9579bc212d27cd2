//! What the engine hands to a session when a lease is granted: facts taken from the state at the
//! moment of the grant, so that the session can write the message without asking back.

use std::sync::Arc;

use coordinator_core::event::{Actor, Outcome, Work};
use coordinator_core::plan::VerifySpec;
use coordinator_core::question::{PastQuestion, Question};
use coordinator_core::state::{AttemptEnd, Conversation, Lease, Link, Run, RunPhase, TaskState};
use coordinator_core::{
    AttemptNo, CommitId, Failure, LeaseId, QuestionId, RunId, Span, State, TaskIx, WorkerId, limits,
};

use crate::git::names as refs;

/// A granted lease with everything that its message needs, but the task's document.
#[derive(Clone, Debug)]
pub struct GrantFacts {
    pub lease: LeaseId,
    /// Heartbeat of the worker that the grant answers.
    pub heartbeat_seq: u64,
    pub ttl: Span,
    pub run_id: RunId,
    pub run: Arc<str>,
    /// Absent for the final verify.
    pub task: Option<(TaskIx, Arc<str>)>,
    pub work: Work,
    pub timeout: Span,
    pub source: Option<SourceFacts>,
    pub dependencies: Vec<DependencyFacts>,
    pub earlier: Vec<EarlierAttempt>,
    /// What an attempt goes on from, if an earlier one was cut off.
    pub resume: Option<ResumeFacts>,
    /// The failure of this generation that the attempt should heal, with its output.
    pub last_failure: Option<Failure>,
}

/// Where the code of a lease comes from.
#[derive(Clone, Debug)]
pub struct SourceFacts {
    pub repository: Arc<str>,
    pub read_ref: String,
    pub commit: CommitId,
    pub base: CommitId,
}

/// What a task is told about a dependency.
#[derive(Clone, Debug)]
pub struct DependencyFacts {
    pub task: Arc<str>,
    pub commit: Option<CommitId>,
    pub summary: Box<str>,
}

/// What a task is told about an attempt before this one.
#[derive(Clone, Debug)]
pub struct EarlierAttempt {
    pub attempt: AttemptNo,
    /// The lease that it had.
    pub lease: LeaseId,
    /// Ref that holds its commit, when it published one.
    pub published: Option<(String, CommitId)>,
    pub failure: Option<Failure>,
}

/// What an attempt goes on from.
#[derive(Clone, Debug)]
pub struct ResumeFacts {
    /// The attempt that was cut off.
    pub attempt: AttemptNo,
    /// Refs that can hold its unfinished edits, the newest first, with the attempts they are of: one
    /// that was cut off before it had edited anything left those of the one it went on from.
    pub edits: Vec<(AttemptNo, String)>,
    /// The conversation that it takes up, with the worker that had it.
    pub conversation: Option<(Conversation, WorkerId)>,
    /// What people answered and the agent was not given any more, with the lease that asked.
    pub answered: Vec<(LeaseId, PastQuestion)>,
}

impl ResumeFacts {
    fn of(run: &Run, ix: TaskIx, attempt: AttemptNo) -> Option<Self> {
        let task = run.task(ix)?;
        let mut attempts = task.attempts().iter();
        let this = attempts.find(|known| known.number == attempt)?;
        let from = this.continues?;
        let line = || task.line(Some(from));
        let taken_up = task.conversation(Some(from));
        Some(Self {
            attempt: from,
            edits: line()
                .map(|cut_off| {
                    let name = refs::wip(&run.name, &task.name, cut_off.number.0);
                    (cut_off.number, name)
                })
                .collect(),
            conversation: taken_up.map(|(of, opened)| (opened.clone(), of.worker.clone())),
            answered: line()
                .flat_map(|cut_off| cut_off.asked.iter().map(|past| (cut_off.lease, past)))
                .filter(|(_, past)| past.undelivered.is_some())
                .take(limits::OPEN_QUESTIONS)
                .map(|(lease, past)| (lease, past.clone()))
                .collect(),
        })
    }
}

/// What a person said, for the worker whose agent asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AnswerFacts {
    pub lease: LeaseId,
    pub id: QuestionId,
    /// The question's number within the attempt.
    pub number: u32,
    pub choice: Box<str>,
    pub text: Box<str>,
    pub by: Actor,
}

impl AnswerFacts {
    /// Collects the facts of a question of a lease; `None` while nobody has answered it.
    #[must_use]
    pub fn of(lease: LeaseId, question: &Question) -> Option<Self> {
        let answer = question.answer.as_ref()?;
        Some(Self {
            lease,
            id: question.id,
            number: question.number,
            choice: answer.choice.clone(),
            text: answer.text.clone(),
            by: answer.by.clone(),
        })
    }
}

impl GrantFacts {
    /// Collects the facts of a live lease; `None` when the lease is already over.
    #[must_use]
    pub fn collect(state: &State, lease: LeaseId) -> Option<Self> {
        let lease = state.lease(lease)?;
        let run = state.run(lease.run)?;
        let heartbeat_seq = match state.worker(&lease.worker)?.link {
            Link::Up { heartbeat, .. } => heartbeat,
            Link::Down { .. } => return None,
        };
        let facts = match lease.work {
            Work::Attempt { task, attempt } => Self::of_attempt(run, lease, task, attempt)?,
            Work::Verify { task, attempt } => Self::of_verify(run, lease, task, attempt)?,
            Work::FinalVerify => Self::of_final_verify(run, lease)?,
        };
        Some(Self {
            heartbeat_seq,
            ..facts
        })
    }

    fn bare(run: &Run, lease: &Lease, timeout: Span) -> Self {
        Self {
            lease: lease.id,
            heartbeat_seq: 0,
            ttl: lease.ttl,
            run_id: run.id,
            run: run.name.clone(),
            task: None,
            work: lease.work,
            timeout,
            source: None,
            dependencies: Vec::new(),
            earlier: Vec::new(),
            resume: None,
            last_failure: None,
        }
    }

    fn of_attempt(run: &Run, lease: &Lease, ix: TaskIx, attempt: AttemptNo) -> Option<Self> {
        let task = run.task(ix)?;
        let profile = run.profiles.get(usize::from(task.profile))?;
        let mut facts = Self::bare(run, lease, profile.timeout);
        facts.task = Some((ix, task.name.clone()));
        let history = task.history.as_deref();
        if let Some(source) = &run.source {
            let base = history.and_then(|history| history.base.clone())?;
            facts.source = Some(SourceFacts {
                repository: source.repository.clone(),
                read_ref: base_ref(run, ix),
                commit: base.clone(),
                base,
            });
        }
        facts.dependencies = task
            .dependencies
            .iter()
            .filter_map(|ix| {
                let dependency = run.task(*ix)?;
                Some(DependencyFacts {
                    task: dependency.name.clone(),
                    commit: run.commit(*ix).cloned(),
                    summary: dependency
                        .history
                        .as_deref()
                        .and_then(|history| history.attempts.last())
                        .map(|attempt| attempt.summary.clone())
                        .unwrap_or_default(),
                })
            })
            .collect();
        facts.resume = ResumeFacts::of(run, ix, attempt);
        if let Some(history) = history {
            facts.last_failure.clone_from(&history.last_failure);
            facts.earlier = history
                .attempts
                .iter()
                .filter(|earlier| earlier.number < attempt)
                .map(|earlier| {
                    let (outcome, failure) = match &earlier.end {
                        Some(AttemptEnd::Made(outcome) | AttemptEnd::Succeeded(outcome)) => {
                            (Some(outcome), None)
                        }
                        Some(AttemptEnd::VerifyFailed { outcome, failure }) => {
                            (Some(outcome), Some(failure))
                        }
                        Some(AttemptEnd::Failed(failure)) => (None, Some(failure)),
                        Some(
                            AttemptEnd::Cancelled
                            | AttemptEnd::Parked { .. }
                            | AttemptEnd::NeverStarted,
                        )
                        | None => (None, None),
                    };
                    EarlierAttempt {
                        attempt: earlier.number,
                        lease: earlier.lease,
                        published: match outcome {
                            Some(Outcome::Commit(commit)) => Some((
                                refs::attempt(&run.name, &task.name, earlier.number.0),
                                commit.clone(),
                            )),
                            Some(Outcome::NoChange | Outcome::NoRepository) | None => None,
                        },
                        failure: failure.cloned(),
                    }
                })
                .collect();
        }
        Some(facts)
    }

    fn of_verify(run: &Run, lease: &Lease, ix: TaskIx, attempt: AttemptNo) -> Option<Self> {
        let task = run.task(ix)?;
        let profile = run.profiles.get(usize::from(task.profile))?;
        let mut facts = Self::bare(run, lease, verify_timeout(profile.verify.as_ref()));
        facts.task = Some((ix, task.name.clone()));
        if let Some(source) = &run.source {
            let history = task.history.as_deref()?;
            let base = history.base.clone()?;
            let made = history
                .attempts
                .iter()
                .find(|made| made.number == attempt)?;
            let (read_ref, commit) = match &made.end {
                Some(AttemptEnd::Made(Outcome::Commit(commit))) => (
                    refs::attempt(&run.name, &task.name, attempt.0),
                    commit.clone(),
                ),
                _ => (base_ref(run, ix), base.clone()),
            };
            facts.source = Some(SourceFacts {
                repository: source.repository.clone(),
                read_ref,
                commit,
                base,
            });
        }
        Some(facts)
    }

    fn of_final_verify(run: &Run, lease: &Lease) -> Option<Self> {
        let RunPhase::Verifying { commit, .. } = &run.phase else {
            return None;
        };
        let verify = run
            .integrate
            .as_ref()
            .and_then(|integrate| integrate.verify.as_ref());
        let mut facts = Self::bare(run, lease, verify_timeout(verify));
        let source = run.source.as_ref()?;
        facts.source = Some(SourceFacts {
            repository: source.repository.clone(),
            read_ref: refs::candidate(&run.name, run.generation),
            commit: commit.clone(),
            base: source.base.clone(),
        });
        Some(facts)
    }
}

fn verify_timeout(verify: Option<&VerifySpec>) -> Span {
    verify.map_or(limits::VERIFY_TIMEOUT, |verify| verify.timeout)
}

/// Names a ref that holds the base of a task, for a lease to read.
///
/// A task without dependencies starts from the run's source; one whose base is what a single
/// dependency made, from that; only merged bases have a ref of their own. Several dependencies of
/// which at most one has changed something need no merge.
pub fn base_ref(run: &Run, ix: TaskIx) -> String {
    let mut ix = ix;
    loop {
        let Some(task) = run.task(ix) else {
            return refs::source(&run.name);
        };
        let origin = match &*task.dependencies {
            [] => return refs::source(&run.name),
            [only] => *only,
            several => {
                let base = run.base(ix);
                let same = |of: &&TaskIx| base.is_some() && run.commit(**of) == base;
                match several.iter().find(same) {
                    Some(origin) => *origin,
                    None => return refs::base(&run.name, &task.name),
                }
            }
        };
        let Some(dependency) = run.task(origin) else {
            return refs::source(&run.name);
        };
        match &dependency.state {
            TaskState::Succeeded {
                outcome: Outcome::Commit(_),
                ..
            } => {
                let number = dependency
                    .history
                    .as_deref()
                    .and_then(|history| history.attempts.last())
                    .map_or(0, |attempt| attempt.number.0);
                return refs::attempt(&run.name, &dependency.name, number);
            }
            // It changed nothing, so its commit is its base.
            _ => ix = origin,
        }
    }
}
