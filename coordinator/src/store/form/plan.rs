//! Forms of what a run is made of and what workers offer.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;

use coordinator_core::plan::{IntegrateSpec, Profile, RunSpec, Source, TaskSpec, VerifySpec};
use coordinator_core::time::Span;
use coordinator_core::worker::{DeclaredAgent, Offer, Requirement};
use coordinator_core::{AllocationId, CommitId, Failure, FailureClass};
use serde::{Deserialize, Serialize};

use super::Error;

/// Borrowed when written, owned when read.
pub(super) type Text<'a> = Cow<'a, str>;

pub(super) fn text<'a>(value: &'a (impl AsRef<str> + ?Sized)) -> Text<'a> {
    Cow::Borrowed(value.as_ref())
}

pub(super) fn shared(text: &Text<'_>) -> Arc<str> {
    Arc::from(&**text)
}

pub(super) fn boxed(text: Text<'_>) -> Box<str> {
    text.into_owned().into_boxed_str()
}

pub(super) fn commit(text: &Text<'_>) -> CommitId {
    CommitId::new(text)
}

fn texts<'a>(values: impl IntoIterator<Item = &'a Arc<str>>) -> Vec<Text<'a>> {
    values.into_iter().map(text).collect()
}

fn shareds<C: FromIterator<Arc<str>>>(texts: &[Text<'_>]) -> C {
    texts.iter().map(shared).collect()
}

fn counts(map: &BTreeMap<Arc<str>, u64>) -> BTreeMap<Text<'_>, u64> {
    map.iter()
        .map(|(name, count)| (text(name), *count))
        .collect()
}

fn shared_counts(map: &BTreeMap<Text<'_>, u64>) -> BTreeMap<Arc<str>, u64> {
    map.iter()
        .map(|(name, count)| (shared(name), *count))
        .collect()
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RunSpecV1<'a> {
    name: Text<'a>,
    plan: Text<'a>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<SourceV1<'a>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    integrate: Option<IntegrateV1<'a>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_parallel: Option<NonZeroU32>,
    submitted_by: Text<'a>,
    /// Distinct profiles in the order of their first use; tasks name them by index.
    profiles: Vec<ProfileV1<'a>>,
    tasks: Vec<TaskSpecV1<'a>>,
}

impl<'a> From<&'a RunSpec> for RunSpecV1<'a> {
    fn from(spec: &'a RunSpec) -> Self {
        let mut places = BTreeMap::new();
        let mut profiles = Vec::new();
        let tasks = spec
            .tasks
            .iter()
            .map(|task| {
                let profile = *places.entry(&task.profile).or_insert_with(|| {
                    profiles.push(ProfileV1::from(&task.profile));
                    profiles.len() - 1
                });
                TaskSpecV1 {
                    name: text(&task.name),
                    depends_on: texts(&task.depends_on),
                    priority: task.priority,
                    paths: texts(&task.paths),
                    profile,
                }
            })
            .collect();
        Self {
            name: text(&spec.name),
            plan: text(&spec.plan),
            source: spec.source.as_ref().map(SourceV1::from),
            integrate: spec.integrate.as_ref().map(IntegrateV1::from),
            max_parallel: spec.max_parallel,
            submitted_by: text(&spec.submitted_by),
            profiles,
            tasks,
        }
    }
}

impl TryFrom<RunSpecV1<'_>> for RunSpec {
    type Error = Error;

    fn try_from(form: RunSpecV1<'_>) -> Result<Self, Error> {
        let profiles: Vec<Profile> = form.profiles.iter().map(Profile::from).collect();
        let tasks = form
            .tasks
            .into_iter()
            .map(|task| {
                let profile = profiles.get(task.profile).ok_or(Error::Range {
                    field: "spec.tasks.profile",
                    value: task.profile as u64,
                })?;
                Ok(TaskSpec {
                    name: shared(&task.name),
                    depends_on: shareds(&task.depends_on),
                    priority: task.priority,
                    paths: shareds(&task.paths),
                    profile: profile.clone(),
                })
            })
            .collect::<Result<_, Error>>()?;
        Ok(Self {
            name: shared(&form.name),
            plan: shared(&form.plan),
            source: form.source.as_ref().map(Source::from),
            integrate: form.integrate.as_ref().map(IntegrateSpec::from),
            max_parallel: form.max_parallel,
            tasks,
            submitted_by: shared(&form.submitted_by),
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TaskSpecV1<'a> {
    name: Text<'a>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    depends_on: Vec<Text<'a>>,
    #[serde(default, skip_serializing_if = "is_zero")]
    priority: i16,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    paths: Vec<Text<'a>>,
    profile: usize,
}

pub(super) fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SourceV1<'a> {
    repository: Text<'a>,
    base: Text<'a>,
}

impl<'a> From<&'a Source> for SourceV1<'a> {
    fn from(source: &'a Source) -> Self {
        Self {
            repository: text(&source.repository),
            base: text(source.base.as_str()),
        }
    }
}

impl From<&SourceV1<'_>> for Source {
    fn from(form: &SourceV1<'_>) -> Self {
        Self {
            repository: shared(&form.repository),
            base: commit(&form.base),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct IntegrateV1<'a> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    verify: Option<VerifyV1<'a>>,
}

impl<'a> From<&'a IntegrateSpec> for IntegrateV1<'a> {
    fn from(spec: &'a IntegrateSpec) -> Self {
        Self {
            verify: spec.verify.as_ref().map(VerifyV1::from),
        }
    }
}

impl From<&IntegrateV1<'_>> for IntegrateSpec {
    fn from(form: &IntegrateV1<'_>) -> Self {
        Self {
            verify: form.verify.as_ref().map(VerifySpec::from),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VerifyV1<'a> {
    timeout: u64,
    requirement: RequirementV1<'a>,
}

impl<'a> From<&'a VerifySpec> for VerifyV1<'a> {
    fn from(spec: &'a VerifySpec) -> Self {
        Self {
            timeout: spec.timeout.ms(),
            requirement: RequirementV1::from(&spec.requirement),
        }
    }
}

impl From<&VerifyV1<'_>> for VerifySpec {
    fn from(form: &VerifyV1<'_>) -> Self {
        Self {
            timeout: Span::from_ms(form.timeout),
            requirement: Requirement::from(&form.requirement),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequirementV1<'a> {
    agent: Text<'a>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    declared: Option<Box<DeclaredV1<'a>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pool: Option<Text<'a>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    labels: Vec<Text<'a>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    resources: BTreeMap<Text<'a>, u64>,
    #[serde(default, skip_serializing_if = "is_zero")]
    expected: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeclaredV1<'a> {
    name: Text<'a>,
    program: Text<'a>,
}

impl<'a> From<&'a Requirement> for RequirementV1<'a> {
    fn from(requirement: &'a Requirement) -> Self {
        Self {
            agent: text(&requirement.agent),
            declared: requirement.declared.as_ref().map(|declared| {
                Box::new(DeclaredV1 {
                    name: text(&declared.name),
                    program: text(&declared.program),
                })
            }),
            pool: requirement.pool.as_ref().map(text),
            labels: texts(&requirement.labels),
            resources: counts(&requirement.resources),
            expected: requirement.expected.ms(),
        }
    }
}

impl From<&RequirementV1<'_>> for Requirement {
    fn from(form: &RequirementV1<'_>) -> Self {
        Self {
            agent: shared(&form.agent),
            declared: form.declared.as_ref().map(|declared| DeclaredAgent {
                kind: shared(&form.agent),
                name: shared(&declared.name),
                program: shared(&declared.program),
            }),
            pool: form.pool.as_ref().map(shared),
            labels: shareds::<BTreeSet<_>>(&form.labels),
            resources: shared_counts(&form.resources),
            expected: Span::from_ms(form.expected),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProfileV1<'a> {
    requirement: RequirementV1<'a>,
    retries: u32,
    timeout: u64,
    backoff: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    verify: Option<VerifyV1<'a>>,
    #[serde(default, skip_serializing_if = "is_zero")]
    resumes: bool,
    #[serde(default, skip_serializing_if = "is_zero")]
    near: bool,
}

impl<'a> From<&'a Profile> for ProfileV1<'a> {
    fn from(profile: &'a Profile) -> Self {
        Self {
            requirement: RequirementV1::from(&profile.requirement),
            retries: profile.retries,
            timeout: profile.timeout.ms(),
            backoff: profile.backoff.ms(),
            verify: profile.verify.as_ref().map(VerifyV1::from),
            resumes: profile.resumes,
            near: profile.near,
        }
    }
}

impl From<&ProfileV1<'_>> for Profile {
    fn from(form: &ProfileV1<'_>) -> Self {
        Self {
            requirement: Requirement::from(&form.requirement),
            retries: form.retries,
            timeout: Span::from_ms(form.timeout),
            verify: form.verify.as_ref().map(VerifySpec::from),
            backoff: Span::from_ms(form.backoff),
            resumes: form.resumes,
            near: form.near,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OfferV1<'a> {
    pool: Text<'a>,
    slots: u32,
    host: Text<'a>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    labels: Vec<Text<'a>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    resources: BTreeMap<Text<'a>, u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    agents: Vec<Text<'a>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    allocation: Option<u64>,
}

impl<'a> From<&'a Offer> for OfferV1<'a> {
    fn from(offer: &'a Offer) -> Self {
        Self {
            pool: text(&offer.pool),
            slots: offer.slots,
            host: text(&offer.host),
            labels: texts(&offer.labels),
            resources: counts(&offer.resources),
            agents: texts(&offer.agents),
            allocation: offer.allocation.map(|id| id.0),
        }
    }
}

impl From<&OfferV1<'_>> for Offer {
    fn from(form: &OfferV1<'_>) -> Self {
        Self {
            pool: shared(&form.pool),
            slots: form.slots,
            labels: shareds(&form.labels),
            resources: shared_counts(&form.resources),
            agents: shareds(&form.agents),
            host: shared(&form.host),
            allocation: form.allocation.map(AllocationId),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FailureV1<'a> {
    class: Text<'a>,
    message: Text<'a>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    output: Text<'a>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_after: Option<u64>,
}

impl<'a> From<&'a Failure> for FailureV1<'a> {
    fn from(failure: &'a Failure) -> Self {
        Self {
            class: text(failure.class.name()),
            message: text(&failure.message),
            output: text(&failure.output),
            retry_after: failure.retry_after.map(Span::ms),
        }
    }
}

impl TryFrom<FailureV1<'_>> for Failure {
    type Error = Error;

    fn try_from(form: FailureV1<'_>) -> Result<Self, Error> {
        let class = FailureClass::from_name(&form.class).ok_or_else(|| Error::Unknown {
            field: "failure.class",
            value: Box::from(&*form.class),
        })?;
        Ok(Self {
            class,
            message: boxed(form.message),
            output: boxed(form.output),
            retry_after: form.retry_after.map(Span::from_ms),
        })
    }
}
