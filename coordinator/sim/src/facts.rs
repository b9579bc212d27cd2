//! What a worker is told with a lease.

use coordinator_core::event::{Outcome, Work};
use coordinator_core::state::{AttemptEnd, Link, Run, RunPhase, TaskState};
use coordinator_core::{CommitId, LeaseId, RunId, TaskIx, TaskKey};

use crate::coordinator::nth_of;
use crate::plan::VERIFY_TIMEOUT_MS;
use crate::scenario::{Deed, DeedEnd, Found, Plan, TaskPlan};
use crate::world::World;

/// A granted lease, taken from the state at the moment of the grant, with what will come of it.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) lease: u64,
    pub(crate) heartbeat: u64,
    pub(crate) ttl_ms: u64,
    pub(crate) run: RunId,
    pub(crate) work: Work,
    pub(crate) timeout_ms: u64,
    pub(crate) repository: bool,
    /// What a verify is to look at.
    pub(crate) commit: Option<CommitId>,
    pub(crate) deed: Option<Deed>,
    pub(crate) found: Option<Found>,
}

impl Facts {
    /// Gives what the lease is for: a task, or no task when it is the final verify.
    pub(crate) const fn place(&self) -> (RunId, Option<TaskIx>) {
        let task = match self.work {
            Work::Attempt { task, .. } | Work::Verify { task, .. } => Some(task),
            Work::FinalVerify => None,
        };
        (self.run, task)
    }

    /// Gives the attempt that the lease works on; `None` for verifies.
    pub(crate) fn attempt(&self) -> Option<(TaskKey, u32)> {
        match self.work {
            Work::Attempt { task, attempt } => {
                let run = self.run;
                Some((TaskKey { run, task }, attempt.0))
            }
            Work::Verify { .. } | Work::FinalVerify => None,
        }
    }
}

impl World<'_> {
    /// Finds the plan of a run by the run's name.
    pub(crate) fn plan_of(&self, name: &str) -> Option<&Plan> {
        let id: u32 = name.strip_prefix('p')?.parse().ok()?;
        self.scenario.plans.iter().find(|plan| plan.id == id)
    }

    pub(crate) fn task_plan(&self, run: &Run, task: TaskIx) -> Option<&TaskPlan> {
        self.plan_of(&run.name)?
            .tasks
            .get(usize::try_from(task.0).ok()?)
    }

    /// Collects the facts of a live lease; `None` when nobody is there to be told.
    pub(crate) fn facts(&self, lease: LeaseId) -> Option<Facts> {
        let state = &self.coordinator.state;
        let lease = state.lease(lease)?;
        let run = state.run(lease.run)?;
        let Link::Up { heartbeat, .. } = state.worker(&lease.worker)?.link else {
            return None;
        };
        let mut facts = Facts {
            lease: lease.id.0,
            heartbeat,
            ttl_ms: lease.ttl.ms(),
            run: run.id,
            work: lease.work,
            timeout_ms: VERIFY_TIMEOUT_MS,
            repository: run.source.is_some(),
            commit: None,
            deed: None,
            found: None,
        };
        match lease.work {
            Work::Attempt { task, attempt } => {
                let plan = self.task_plan(run, task)?;
                let mut deed = nth_of(&plan.attempts, attempt.0.saturating_sub(1))?;
                let before = run.task(task)?.attempts().iter().rev().nth(1);
                let answered = before.is_some_and(|before| {
                    matches!(
                        &before.end,
                        Some(AttemptEnd::Parked {
                            answer: Some(_),
                            ..
                        })
                    )
                });
                if answered && deed.end == DeedEnd::Asks {
                    deed.end = DeedEnd::Change;
                }
                facts.timeout_ms = plan.timeout_ms;
                facts.deed = Some(deed);
            }
            Work::Verify { task, attempt } => {
                let plan = self.task_plan(run, task)?;
                let known = run.task(task)?;
                let lost = match &known.state {
                    TaskState::Verifying { verify, .. } => verify.lost(),
                    _ => 0,
                };
                facts.found = nth_of(&plan.verify, attempt.0.saturating_sub(1) + lost);
                let made = known
                    .attempts()
                    .iter()
                    .find(|made| made.number == attempt)?;
                facts.commit = match &made.end {
                    Some(AttemptEnd::Made(Outcome::Commit(commit))) => Some(commit.clone()),
                    _ => None,
                };
            }
            Work::FinalVerify => {
                let integrate = self.plan_of(&run.name)?.integrate.as_ref()?;
                if let RunPhase::Verifying { commit, verify } = &run.phase {
                    let nth = run.generation.saturating_sub(1) + verify.lost();
                    facts.found = nth_of(&integrate.verify, nth);
                    facts.commit = Some(commit.clone());
                }
            }
        }
        Some(facts)
    }
}
