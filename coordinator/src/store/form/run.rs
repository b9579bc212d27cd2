//! Forms of a run as it stands, for snapshots and the archive, and of its summary.

use std::num::NonZeroU32;

use coordinator_core::event::{MergeConflict, RunOutcome};
use coordinator_core::plan::{IntegrateSpec, Profile, Source};
use coordinator_core::state::{CancelRequest, Run, RunPhase, VerifyPhase};
use coordinator_core::{LeaseId, RunId, TaskIx, Timestamp};
use serde::{Deserialize, Serialize};

use super::Error;
use super::event::RunOutcomeV1;
use super::plan::{IntegrateV1, ProfileV1, SourceV1, Text, boxed, commit, shared, text};
use super::task::TaskV1;
use crate::store::{Summary, TaskCounts};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RunV1<'a> {
    id: u64,
    name: Text<'a>,
    plan: Text<'a>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<SourceV1<'a>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    integrate: Option<IntegrateV1<'a>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_parallel: Option<NonZeroU32>,
    submitted_by: Text<'a>,
    submitted_at: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<Text<'a>>,
    digest: Text<'a>,
    generation: u32,
    last_seq: u64,
    phase: PhaseV1<'a>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cancel: Option<CancelV1<'a>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    conflict: Option<ConflictV1<'a>>,
    profiles: Vec<ProfileV1<'a>>,
    tasks: Vec<TaskV1<'a>>,
}

impl<'a> From<&'a Run> for RunV1<'a> {
    fn from(run: &'a Run) -> Self {
        Self {
            id: run.id.0,
            name: text(&run.name),
            plan: text(&run.plan),
            source: run.source.as_ref().map(SourceV1::from),
            integrate: run.integrate.as_ref().map(IntegrateV1::from),
            max_parallel: run.max_parallel,
            submitted_by: text(&run.submitted_by),
            submitted_at: run.submitted_at.ms(),
            key: run.key.as_ref().map(text),
            digest: text(&run.digest),
            generation: run.generation,
            last_seq: run.last_seq,
            phase: PhaseV1::from(&run.phase),
            cancel: run.cancel.as_ref().map(CancelV1::from),
            conflict: run.conflict.as_ref().map(ConflictV1::from),
            profiles: run.profiles.iter().map(ProfileV1::from).collect(),
            tasks: run.tasks.iter().map(TaskV1::from).collect(),
        }
    }
}

impl TryFrom<RunV1<'_>> for Run {
    type Error = Error;

    fn try_from(form: RunV1<'_>) -> Result<Self, Error> {
        let profiles: Vec<Profile> = form.profiles.iter().map(Profile::from).collect();
        let count = form.tasks.len();
        let tasks = form
            .tasks
            .into_iter()
            .map(|task| task.into_task(profiles.len(), count))
            .collect::<Result<_, Error>>()?;
        Ok(Self {
            id: RunId(form.id),
            name: shared(&form.name),
            plan: shared(&form.plan),
            source: form.source.as_ref().map(Source::from),
            integrate: form.integrate.as_ref().map(IntegrateSpec::from),
            max_parallel: form.max_parallel,
            submitted_by: shared(&form.submitted_by),
            submitted_at: Timestamp::from_ms(form.submitted_at),
            key: form.key.as_ref().map(shared),
            digest: shared(&form.digest),
            profiles,
            tasks,
            phase: form.phase.try_into()?,
            generation: form.generation,
            last_seq: form.last_seq,
            cancel: form.cancel.map(CancelRequest::from),
            conflict: form.conflict.map(MergeConflict::from),
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum PhaseV1<'a> {
    Active,
    Integrating {
        since: u64,
    },
    Verifying {
        commit: Text<'a>,
        verify: VerifyPhaseV1,
    },
    Ended {
        outcome: RunOutcomeV1<'a>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        integrated: Option<Text<'a>>,
        at: u64,
    },
}

impl<'a> From<&'a RunPhase> for PhaseV1<'a> {
    fn from(phase: &'a RunPhase) -> Self {
        match phase {
            RunPhase::Active => Self::Active,
            RunPhase::Integrating { since } => Self::Integrating { since: since.ms() },
            RunPhase::Verifying { commit, verify } => Self::Verifying {
                commit: text(commit.as_str()),
                verify: VerifyPhaseV1::from(verify),
            },
            RunPhase::Ended {
                outcome,
                integrated,
                at,
            } => Self::Ended {
                outcome: RunOutcomeV1::from(outcome),
                integrated: integrated.as_ref().map(|id| text(id.as_str())),
                at: at.ms(),
            },
        }
    }
}

impl TryFrom<PhaseV1<'_>> for RunPhase {
    type Error = Error;

    fn try_from(form: PhaseV1<'_>) -> Result<Self, Error> {
        Ok(match form {
            PhaseV1::Active => Self::Active,
            PhaseV1::Integrating { since } => Self::Integrating {
                since: Timestamp::from_ms(since),
            },
            PhaseV1::Verifying { commit: id, verify } => Self::Verifying {
                commit: commit(&id),
                verify: verify.into(),
            },
            PhaseV1::Ended {
                outcome,
                integrated,
                at,
            } => Self::Ended {
                outcome: outcome.try_into()?,
                integrated: integrated.as_ref().map(commit),
                at: Timestamp::from_ms(at),
            },
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum VerifyPhaseV1 {
    Waiting {
        since: u64,
        not_before: u64,
        lost: u32,
    },
    Leased {
        lease: u64,
        lost: u32,
    },
}

impl From<&VerifyPhase> for VerifyPhaseV1 {
    fn from(phase: &VerifyPhase) -> Self {
        match phase {
            VerifyPhase::Waiting {
                since,
                not_before,
                lost,
            } => Self::Waiting {
                since: since.ms(),
                not_before: not_before.ms(),
                lost: *lost,
            },
            VerifyPhase::Leased { lease, lost } => Self::Leased {
                lease: lease.0,
                lost: *lost,
            },
        }
    }
}

impl From<VerifyPhaseV1> for VerifyPhase {
    fn from(form: VerifyPhaseV1) -> Self {
        match form {
            VerifyPhaseV1::Waiting {
                since,
                not_before,
                lost,
            } => Self::Waiting {
                since: Timestamp::from_ms(since),
                not_before: Timestamp::from_ms(not_before),
                lost,
            },
            VerifyPhaseV1::Leased { lease, lost } => Self::Leased {
                lease: LeaseId(lease),
                lost,
            },
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CancelV1<'a> {
    by: Text<'a>,
    reason: Text<'a>,
    at: u64,
}

impl<'a> From<&'a CancelRequest> for CancelV1<'a> {
    fn from(cancel: &'a CancelRequest) -> Self {
        Self {
            by: text(&cancel.by),
            reason: text(&cancel.reason),
            at: cancel.at.ms(),
        }
    }
}

impl From<CancelV1<'_>> for CancelRequest {
    fn from(form: CancelV1<'_>) -> Self {
        Self {
            by: shared(&form.by),
            reason: boxed(form.reason),
            at: Timestamp::from_ms(form.at),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConflictV1<'a> {
    tasks: Vec<u32>,
    files: Vec<Text<'a>>,
    detail: Text<'a>,
}

impl<'a> From<&'a MergeConflict> for ConflictV1<'a> {
    fn from(conflict: &'a MergeConflict) -> Self {
        Self {
            tasks: conflict.tasks.iter().map(|task| task.0).collect(),
            files: conflict.files.iter().map(text).collect(),
            detail: text(&conflict.detail),
        }
    }
}

impl From<ConflictV1<'_>> for MergeConflict {
    fn from(form: ConflictV1<'_>) -> Self {
        Self {
            tasks: form.tasks.into_iter().map(TaskIx).collect(),
            files: form.files.into_iter().map(boxed).collect(),
            detail: boxed(form.detail),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SummaryV1<'a> {
    run: u64,
    name: Text<'a>,
    plan: Text<'a>,
    outcome: RunOutcomeV1<'a>,
    submitted_by: Text<'a>,
    submitted_at: u64,
    ended_at: u64,
    last_seq: u64,
    tasks: TaskCountsV1,
}

impl<'a> From<&'a Summary> for SummaryV1<'a> {
    fn from(summary: &'a Summary) -> Self {
        Self {
            run: summary.run.0,
            name: text(&summary.name),
            plan: text(&summary.plan),
            outcome: RunOutcomeV1::from(&summary.outcome),
            submitted_by: text(&summary.submitted_by),
            submitted_at: summary.submitted_at.ms(),
            ended_at: summary.ended_at.ms(),
            last_seq: summary.last_seq,
            tasks: TaskCountsV1 {
                succeeded: summary.tasks.succeeded,
                failed: summary.tasks.failed,
                cancelled: summary.tasks.cancelled,
                aborted: summary.tasks.aborted,
                skipped: summary.tasks.skipped,
                unfinished: summary.tasks.unfinished,
            },
        }
    }
}

impl TryFrom<SummaryV1<'_>> for Summary {
    type Error = Error;

    fn try_from(form: SummaryV1<'_>) -> Result<Self, Error> {
        Ok(Self {
            run: RunId(form.run),
            name: shared(&form.name),
            plan: shared(&form.plan),
            outcome: RunOutcome::try_from(form.outcome)?,
            submitted_by: shared(&form.submitted_by),
            submitted_at: Timestamp::from_ms(form.submitted_at),
            ended_at: Timestamp::from_ms(form.ended_at),
            last_seq: form.last_seq,
            tasks: TaskCounts {
                succeeded: form.tasks.succeeded,
                failed: form.tasks.failed,
                cancelled: form.tasks.cancelled,
                aborted: form.tasks.aborted,
                skipped: form.tasks.skipped,
                unfinished: form.tasks.unfinished,
            },
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TaskCountsV1 {
    succeeded: u32,
    failed: u32,
    cancelled: u32,
    aborted: u32,
    skipped: u32,
    unfinished: u32,
}
