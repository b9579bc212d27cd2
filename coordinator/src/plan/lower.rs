//! From the document to what the core and the workers need.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use coordinator_core::limits;
use coordinator_core::plan::{IntegrateSpec, Profile, RunSpec, Source, TaskSpec, VerifySpec};
use coordinator_core::worker::{DeclaredAgent, Requirement};
use serde::{Deserialize, Serialize};

use super::document::{
    AgentDefinition, AgentKind, Hooks, Integrate, IntegrateSettings, Never, OnConflict,
    PlanDocument, Prefer, Resources, Settings, TaskEntry, ValueFrom,
};
use super::model::{CodexSettings, ModelDocument};
use super::persona::Personas;

/// Why a plan cannot be lowered as asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    #[error("the plan names a repository, but no base commit was given")]
    SourceMissing,
    #[error("a base commit was given, but the plan names no repository")]
    SourceUnwanted,
    #[error("the plan names the persona {0:?}, but it was not sent")]
    PersonaMissing(String),
    #[error("{0}")]
    Persona(String),
}

/// What only the shell knows about a submission.
#[derive(Clone, Debug, Default)]
pub struct Admission<'a> {
    /// Name of the run.
    pub run: &'a str,
    /// Hosted repository and base commit, exactly when the plan has a `repo`.
    pub source: Option<Source>,
    /// Who submitted it, for people.
    pub submitted_by: &'a str,
    /// Where the plan's `repo` path is within its repository: empty or ending in `/`, as
    /// `git rev-parse --show-prefix` says. Matters to tasks with a folder of their own.
    pub folder_prefix: &'a str,
    /// Those that the plan names.
    pub personas: Cow<'a, Personas>,
}

/// A plan in the forms that are stored.
#[derive(Clone, PartialEq, Debug)]
pub struct Lowered {
    pub spec: RunSpec,
    /// One for each task, in plan order.
    pub tasks: Vec<TaskDocument>,
    /// Present exactly when the run is integrated.
    pub integrate: Option<IntegrateDocument>,
    /// Hexadecimal BLAKE3 of what the plan means: comments, the order of keys, and whether a value
    /// comes from `defaults` do not change it. Run name, base commit and submitter are not in it.
    pub digest: String,
}

/// Everything a worker must know of a task; the same for all its attempts and its verify.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct TaskDocument {
    pub name: String,
    pub agent: AgentDocument,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Script for `/bin/sh -c`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// Commands for `/bin/sh -c`; all must succeed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verify: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Variables whose values come from a place on the worker.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env_from: BTreeMap<String, ValueFrom>,
    /// Such variables for the attempt alone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, ValueFrom>,
    /// Most bytes on disk of work tree and temporary files, where the worker's own limit is not less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// Folder within the work tree whose git hooks run when the agent commits; none run if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<String>,
    /// Time limit of an attempt, from start to finish.
    pub timeout_ms: u64,
    /// Longest silence of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_ms: Option<u64>,
    /// Time limit of the verify, from start to finish.
    pub verify_timeout_ms: u64,
    /// Folder within the work tree in which the agent starts; its root if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
    /// The agent works in the user's own folder; a worker that cannot do so refuses the task.
    #[serde(default, skip_serializing_if = "is_false")]
    pub in_place: bool,
    /// Options for codex, from a codex-par file.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub codex: BTreeMap<String, serde_json::Value>,
    #[serde(flatten)]
    pub model: ModelDocument,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// The agent of a task; a worker's own definition of the name comes first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AgentDocument {
    pub name: String,
    pub kind: AgentKind,
    /// Program and arguments; empty for the kind's own program.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
}

/// Everything that integration must know.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct IntegrateDocument {
    /// Commands for `/bin/sh -c`; all must succeed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verify: Vec<String>,
    /// Variables for them: those of the plan's `defaults`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Such variables whose values come from a place on the worker.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env_from: BTreeMap<String, ValueFrom>,
    pub verify_timeout_ms: u64,
    pub on_conflict: OnConflict,
}

/// Gives the task's settings with the defaults filled in.
pub(super) fn settle(defaults: &Settings, task: &Settings) -> Settings {
    let (mut env, mut env_from) = (defaults.env.clone(), defaults.env_from.clone());
    let mut secrets = defaults.secrets.clone();
    let own = task.env.keys().chain(task.env_from.keys());
    for name in own.chain(task.secrets.keys()) {
        env.remove(name);
        env_from.remove(name);
        secrets.remove(name);
    }
    env.extend(task.env.clone());
    env_from.extend(task.env_from.clone());
    secrets.extend(task.secrets.clone());
    Settings {
        agent: task.agent.clone().or_else(|| defaults.agent.clone()),
        verify: task.verify.clone().or_else(|| defaults.verify.clone()),
        verify_timeout: task.verify_timeout.or(defaults.verify_timeout),
        timeout: task.timeout.or(defaults.timeout),
        idle_timeout: task.idle_timeout.or(defaults.idle_timeout),
        expected: task.expected.or(defaults.expected),
        prefer: task.prefer.or(defaults.prefer),
        retries: task.retries.or(defaults.retries),
        priority: task.priority.or(defaults.priority),
        labels: task.labels.clone().or_else(|| defaults.labels.clone()),
        resources: Resources {
            cpus: task.resources.cpus.or(defaults.resources.cpus),
            memory: task.resources.memory.or(defaults.resources.memory),
            gpus: task.resources.gpus.or(defaults.resources.gpus),
        },
        pool: task.pool.clone().or_else(|| defaults.pool.clone()),
        env,
        env_from,
        secrets,
        disk: task.disk.or(defaults.disk),
        model: task.model.or(&defaults.model),
        hooks: task.hooks.clone().or_else(|| defaults.hooks.clone()),
    }
}

/// Gives the name of the task's agent: its own, else `command` if it has a script, else the
/// default's.
pub(super) fn agent_name<'a>(defaults: &'a Settings, task: &'a TaskEntry) -> Option<&'a str> {
    match &task.settings.agent {
        Some(agent) => Some(agent),
        None if task.run.is_some() => Some(AgentKind::Command.as_str()),
        None => defaults.agent.as_deref(),
    }
}

/// Finds an agent among the plan's, the coordinator's and the built-in ones.
pub(super) fn find_agent(
    document: &PlanDocument,
    configured: &BTreeMap<String, AgentDefinition>,
    name: &str,
) -> Option<AgentDefinition> {
    let built_in = || {
        let kind = AgentKind::ALL
            .into_iter()
            .find(|kind| kind.as_str() == name)?;
        Some(AgentDefinition {
            kind,
            command: None,
            env: BTreeMap::new(),
        })
    };
    document
        .agents
        .get(name)
        .or_else(|| configured.get(name))
        .cloned()
        .or_else(built_in)
}

/// Lowers a document whose agents are all known.
pub(super) fn lower(
    document: &PlanDocument,
    configured: &BTreeMap<String, AgentDefinition>,
    name: &str,
    admission: &Admission<'_>,
) -> Lowered {
    let mut specs = Vec::with_capacity(document.tasks.len());
    let mut tasks = Vec::with_capacity(document.tasks.len());
    for entry in &document.tasks {
        let settings = settle(&document.defaults, &entry.settings);
        let (agent, env) = agent_document(document, configured, entry);
        let declared = declared(document, configured, &agent, &env, &settings);
        // A program that is not a model's agent has no conversation to go on with.
        let resumes = agent.kind != AgentKind::Command;
        let mut requirement = requirement(&settings, agent.kind.as_str());
        requirement.declared = declared;
        specs.push(task_spec(entry, &settings, requirement, resumes));
        tasks.push(task_document(
            entry,
            settings,
            (agent, env),
            document,
            admission,
        ));
    }
    let integrate = document.repo.as_ref().and_then(|_| integrate(document));
    let requirement = requirement(&document.defaults, AgentKind::Command.as_str());
    let spec = RunSpec {
        name: admission.run.into(),
        plan: name.into(),
        source: admission.source.clone(),
        integrate: integrate.as_ref().map(|document| IntegrateSpec {
            verify: (!document.verify.is_empty()).then(|| VerifySpec {
                timeout: coordinator_core::Span::from_ms(document.verify_timeout_ms),
                requirement,
            }),
        }),
        max_parallel: document.max_parallel,
        tasks: specs,
        submitted_by: admission.submitted_by.into(),
    };
    let digest = digest(document, &spec, &tasks, integrate.as_ref());
    Lowered {
        spec,
        tasks,
        integrate,
        digest,
    }
}

fn agent_document(
    document: &PlanDocument,
    configured: &BTreeMap<String, AgentDefinition>,
    entry: &TaskEntry,
) -> (AgentDocument, BTreeMap<String, String>) {
    let name = agent_name(&document.defaults, entry).unwrap_or_default();
    let definition = find_agent(document, configured, name);
    let env = definition.as_ref().map(|agent| agent.env.clone());
    let agent = AgentDocument {
        name: name.to_owned(),
        kind: definition
            .as_ref()
            .map_or(AgentKind::Command, |agent| agent.kind),
        command: definition
            .and_then(|agent| agent.command)
            .unwrap_or_default(),
    };
    (agent, env.unwrap_or_default())
}

fn requirement(settings: &Settings, agent: &str) -> Requirement {
    let Resources { cpus, memory, gpus } = settings.resources;
    let resources = [
        ("cpus", cpus.map(u64::from)),
        ("memory_mib", memory.map(super::values::Size::mib)),
        ("gpus", gpus.map(u64::from)),
    ];
    Requirement {
        agent: agent.into(),
        declared: None,
        pool: settings.pool.as_deref().map(Arc::from),
        labels: settings
            .labels
            .iter()
            .flatten()
            .map(|label| Arc::from(label.as_str()))
            .collect::<BTreeSet<_>>(),
        resources: resources
            .into_iter()
            .filter_map(|(name, amount)| Some((Arc::from(name), amount.filter(|n| *n > 0)?)))
            .collect(),
        expected: coordinator_core::Span::ZERO,
    }
}

/// Gives what workers have to look for; `None` for a built-in agent that has a program of its own.
fn declared(
    document: &PlanDocument,
    configured: &BTreeMap<String, AgentDefinition>,
    agent: &AgentDocument,
    agent_env: &BTreeMap<String, String>,
    settings: &Settings,
) -> Option<DeclaredAgent> {
    let looked_for = DeclaredAgent {
        kind: agent.kind.as_str().into(),
        name: agent.name.as_str().into(),
        program: agent.command.first().map_or("", String::as_str).into(),
    };
    if agent.kind == AgentKind::Acp && agent.command.is_empty() {
        // No host has its program by itself: only a worker's operator may name one.
        return Some(looked_for);
    }
    if !document.agents.contains_key(&agent.name) && !configured.contains_key(&agent.name) {
        return None;
    }
    // With a path of the task's own its program is looked for in other folders than the worker's.
    let mut names = agent_env
        .keys()
        .chain(settings.env.keys())
        .chain(settings.env_from.keys())
        .chain(settings.secrets.keys());
    if names.any(|name| name == "PATH") {
        return None;
    }
    Some(looked_for)
}

fn task_spec(
    entry: &TaskEntry,
    settings: &Settings,
    needs: Requirement,
    resumes: bool,
) -> TaskSpec {
    let verified = settings
        .verify
        .as_ref()
        .is_some_and(|verify| !verify.is_empty());
    let arcs = |texts: &[String]| texts.iter().map(|text| Arc::from(text.as_str())).collect();
    TaskSpec {
        name: entry.name.as_str().into(),
        depends_on: arcs(&entry.depends_on),
        priority: settings.priority.unwrap_or(0),
        paths: arcs(&entry.paths),
        profile: Profile {
            requirement: Requirement {
                expected: settings
                    .expected
                    .map_or(coordinator_core::Span::ZERO, |expected| expected.0),
                ..needs
            },
            retries: settings.retries.unwrap_or(0),
            timeout: settings
                .timeout
                .map_or(limits::TASK_TIMEOUT, |limit| limit.0),
            // A verify runs shell commands whatever the task's agent is.
            verify: verified.then(|| VerifySpec {
                timeout: settings
                    .verify_timeout
                    .map_or(limits::VERIFY_TIMEOUT, |limit| limit.0),
                requirement: requirement(settings, AgentKind::Command.as_str()),
            }),
            backoff: limits::BACKOFF_FIRST,
            resumes,
            near: settings.prefer == Some(Prefer::Dependencies),
        },
    }
}

fn task_document(
    entry: &TaskEntry,
    settings: Settings,
    (agent, agent_env): (AgentDocument, BTreeMap<String, String>),
    document: &PlanDocument,
    admission: &Admission<'_>,
) -> TaskDocument {
    let codex = entry.codex.clone().unwrap_or_default();
    let folder = format!("{}{}", admission.folder_prefix, codex.folder);
    let codex_options = settings.model.codex.clone().map(CodexSettings::options);
    let persona = settings.model.persona.as_ref();
    let persona = persona.and_then(|path| admission.personas.get(path));
    let model = settings.model.lower(
        entry,
        agent.kind,
        document.repo.is_some(),
        persona,
        agent_env,
    );
    let folder = folder.trim_end_matches('/');
    TaskDocument {
        name: entry.name.clone(),
        agent,
        prompt: entry.prompt.clone(),
        run: entry.run.clone(),
        verify: settings.verify.unwrap_or_default(),
        env: settings.env,
        env_from: settings.env_from,
        secrets: settings.secrets,
        disk_bytes: settings.disk.map(|size| size.0),
        hooks: match settings.hooks {
            Some(Hooks::In(folder)) => Some(folder.path),
            Some(Hooks::Never(Never::Never)) | None => None,
        },
        timeout_ms: settings
            .timeout
            .map_or(limits::TASK_TIMEOUT, |limit| limit.0)
            .ms(),
        idle_timeout_ms: settings.idle_timeout.map(|limit| limit.0.ms()),
        verify_timeout_ms: settings
            .verify_timeout
            .map_or(limits::VERIFY_TIMEOUT, |limit| limit.0)
            .ms(),
        folder: (entry.codex.is_some() && !folder.is_empty()).then(|| folder.to_owned()),
        in_place: codex.in_place,
        codex: if entry.codex.is_some() {
            codex.options
        } else {
            codex_options.unwrap_or_default()
        },
        model,
    }
}

fn integrate(document: &PlanDocument) -> Option<IntegrateDocument> {
    let settings = match &document.integrate {
        Some(Integrate::Switch(false)) => return None,
        None | Some(Integrate::Switch(true)) => &IntegrateSettings::default(),
        Some(Integrate::With(settings)) => settings,
    };
    Some(IntegrateDocument {
        verify: settings.verify.clone(),
        env: document.defaults.env.clone(),
        env_from: document.defaults.env_from.clone(),
        verify_timeout_ms: settings
            .verify_timeout
            .map_or(limits::VERIFY_TIMEOUT, |limit| limit.0)
            .ms(),
        on_conflict: settings.on_conflict,
    })
}

/// Hashes what the plan means. Each part is written as one line of JSON, whose keys are in a fixed
/// order and which contains no line break, so that parts cannot flow into each other.
fn digest(
    document: &PlanDocument,
    spec: &RunSpec,
    tasks: &[TaskDocument],
    integrate: Option<&IntegrateDocument>,
) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut put = |part: &dyn Fn() -> serde_json::Result<Vec<u8>>| {
        // Maps with text keys and plain values always have a JSON form.
        if let Ok(line) = part() {
            hasher.update(&line);
        }
        hasher.update(b"\n");
    };
    let repo = document.repo.as_ref().map(|repo| match repo {
        super::document::Repo::Location(location) => ("at", location),
        super::document::Repo::Folder(folder) => ("from", &folder.from),
    });
    let head = (
        "muster plan 1",
        &*spec.plan,
        repo,
        &document.base,
        spec.max_parallel,
    );
    put(&|| serde_json::to_vec(&head));
    put(&|| serde_json::to_vec(&integrate));
    for (task, spec) in tasks.iter().zip(&spec.tasks) {
        put(&|| serde_json::to_vec(task));
        let requirement = &spec.profile.requirement;
        let texts = |texts: &[Arc<str>]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        let labels: Vec<&str> = requirement.labels.iter().map(|label| &**label).collect();
        let resources: BTreeMap<&str, u64> = requirement
            .resources
            .iter()
            .map(|(name, amount)| (&**name, *amount))
            .collect();
        let scheduling = (
            texts(&spec.depends_on),
            texts(&spec.paths),
            spec.priority,
            spec.profile.retries,
            requirement.pool.as_deref(),
            labels,
            resources,
        );
        put(&|| serde_json::to_vec(&scheduling));
        let expected = requirement.expected.ms();
        if expected > 0 {
            put(&|| serde_json::to_vec(&("expected", expected)));
        }
        if spec.profile.near {
            put(&|| serde_json::to_vec("prefer dependencies"));
        }
    }
    hasher.finalize().to_hex().to_string()
}
