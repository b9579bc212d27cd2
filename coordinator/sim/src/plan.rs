//! From a scenario's plan to what is submitted.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use coordinator_core::plan::{IntegrateSpec, Profile, RunSpec, Source, TaskSpec, VerifySpec};
use coordinator_core::worker::{Offer, Requirement};
use coordinator_core::{CommitId, Span};

use crate::host::Offered;
use crate::scenario::{Agent, Plan, TaskPlan};

/// Time limit of every verify.
pub(crate) const VERIFY_TIMEOUT_MS: u64 = 600_000;

fn agent(agent: Agent) -> &'static str {
    match agent {
        Agent::Command => "command",
        Agent::Codex => "codex",
    }
}

/// The resource that tasks occupy.
pub(crate) const CPUS: &str = "cpus";

/// Writes the label of a number.
pub(crate) fn label(of: u32) -> Arc<str> {
    format!("label{of}").into()
}

fn requirement(of: &TaskPlan) -> Requirement {
    let cpus = (of.cpus > 0).then(|| (CPUS.into(), of.cpus));
    Requirement {
        agent: agent(of.agent).into(),
        labels: of.label.map(label).into_iter().collect(),
        resources: cpus.into_iter().collect(),
        ..Requirement::default()
    }
}

fn verify(requirement: Requirement) -> VerifySpec {
    VerifySpec {
        timeout: Span::from_ms(VERIFY_TIMEOUT_MS),
        requirement,
    }
}

fn task(task: &TaskPlan) -> TaskSpec {
    TaskSpec {
        name: format!("t{}", task.id).into(),
        depends_on: task
            .depends_on
            .iter()
            .map(|id| format!("t{id}").into())
            .collect(),
        priority: task.priority,
        paths: task
            .path
            .iter()
            .map(|path| format!("path{path}").into())
            .collect(),
        profile: Profile {
            requirement: requirement(task),
            retries: task.retries,
            timeout: Span::from_ms(task.timeout_ms),
            verify: (!task.verify.is_empty()).then(|| verify(requirement(task))),
            backoff: Span::from_secs(1),
            resumes: true,
            near: false,
        },
    }
}

/// Makes what an operator submits. `other` is a different plan under the same name.
pub(crate) fn spec(plan: &Plan, other: bool) -> (Arc<RunSpec>, Arc<str>, Arc<str>) {
    let integrate = plan.integrate.as_ref().filter(|_| plan.repository);
    let spec = RunSpec {
        name: format!("p{}", plan.id).into(),
        plan: "plan".into(),
        source: plan.repository.then(|| Source {
            repository: "repo".into(),
            base: CommitId::new("base"),
        }),
        integrate: integrate.map(|integrate| IntegrateSpec {
            verify: (!integrate.verify.is_empty()).then(|| {
                verify(Requirement {
                    agent: agent(Agent::Command).into(),
                    ..Requirement::default()
                })
            }),
        }),
        max_parallel: plan.max_parallel.and_then(NonZeroU32::new),
        tasks: plan.tasks.iter().map(task).collect(),
        submitted_by: "somebody".into(),
    };
    let digest = if other { "other" } else { "digest" };
    (
        Arc::new(spec),
        format!("k{}", plan.id).into(),
        digest.into(),
    )
}

/// Makes what a worker offers.
pub(crate) fn offer(offered: &Offered) -> Offer {
    Offer {
        pool: "pool".into(),
        slots: offered.slots,
        labels: offered.labels.iter().copied().map(label).collect(),
        agents: offered.agents.iter().map(|of| agent(*of).into()).collect(),
        resources: BTreeMap::from([(CPUS.into(), offered.cpus)]),
        host: "host".into(),
        allocation: None,
    }
}
