//! What a plan file may say. The JSON Schema comes from these types, and their documentation is
//! what an editor shows.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use schemars::JsonSchema;

use super::model::ModelSettings;
use super::values::{Duration, Size};

/// A plan: tasks, what they need, and the order they must keep.
#[derive(Clone, PartialEq, Debug, Default, JsonSchema)]
#[schemars(deny_unknown_fields, title = "Muster plan")]
pub struct PlanDocument {
    /// Name for people and the first part of the run's name; the file's name if absent.
    pub name: Option<String>,
    /// Where the code is: a path relative to the plan file, a git URL, or a folder that becomes
    /// a fresh repository. Without it the run has no repository.
    pub repo: Option<Repo>,
    /// Branch, tag or commit to start from; the checked-out commit if absent.
    #[schemars(with = "Option<Word>")]
    pub base: Option<String>,
    /// Settings of all tasks that do not say otherwise. A task's value replaces the default's;
    /// `env`, `secrets` and `resources` are merged name by name.
    #[schemars(default)]
    pub defaults: Settings,
    /// Agents of this plan besides the built-in `command`, `codex`, `claude`, `acp` and `scripted`, and
    /// besides those that the coordinator's configuration declares under `agents`; of two with one name
    /// the plan's holds. Workers look for their programs, and tasks wait for one that has it.
    #[schemars(default)]
    pub agents: BTreeMap<String, AgentDefinition>,
    /// Attempts and verifies of this run that may run at once; as many as fit if absent.
    pub max_parallel: Option<NonZeroU32>,
    /// The tasks; their order decides among equals and in merges.
    #[schemars(length(min = 1))]
    pub tasks: Vec<TaskEntry>,
    /// Whether and how the results are merged into one branch; `false` leaves one branch a task.
    /// If absent, they are merged and not verified.
    pub integrate: Option<Integrate>,
}

/// Where the code of a run comes from.
#[derive(Clone, PartialEq, Eq, Debug, JsonSchema)]
#[schemars(untagged)]
pub enum Repo {
    /// A path relative to the plan file, or a git URL.
    Location(String),
    /// A folder that becomes a fresh repository of one commit.
    Folder(FolderRepo),
}

/// A folder that becomes a fresh repository.
#[derive(Clone, PartialEq, Eq, Debug, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct FolderRepo {
    /// Path relative to the plan file.
    pub from: String,
}

impl Repo {
    /// True for a git URL (`scheme://…` or `host:path`), false for a path.
    #[must_use]
    pub fn is_url(&self) -> bool {
        let Self::Location(location) = self else {
            return false;
        };
        location.contains("://")
            || location
                .split_once(':')
                .is_some_and(|(host, _)| !host.is_empty() && !host.contains('/'))
    }
}

/// Settings that a task has and that `defaults` may give.
#[derive(Clone, PartialEq, Debug, Default, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Settings {
    /// Agent that does the work: `command`, `codex`, `claude`, `acp`, `scripted`, or one declared under
    /// `agents`. A task with `run` has `command` if it names none.
    pub agent: Option<String>,
    /// Shell commands that check the published commit in a clean checkout; all must succeed.
    #[schemars(with = "Option<Vec<Word>>")]
    pub verify: Option<Vec<String>>,
    /// Time limit of the verify, from start to finish; default `1h`.
    pub verify_timeout: Option<Duration>,
    /// Time limit of an attempt, from start to finish; default `6h`.
    pub timeout: Option<Duration>,
    /// Longest silence of the agent before the attempt counts as stalled; no limit if absent.
    pub idle_timeout: Option<Duration>,
    /// How long an attempt will probably take; not known if absent. It is no limit: an attempt is
    /// not begun on a machine that goes away sooner, such as a Slurm job near the end of its time,
    /// and pools start workers for what follows shortly before it ends.
    pub expected: Option<Duration>,
    /// Further attempts after one that failed; default 0.
    #[schemars(range(min = 0, max = 100))]
    pub retries: Option<u32>,
    /// Tasks with a higher number go first within the run; default 0.
    pub priority: Option<i16>,
    /// Labels that the worker must carry: `key` or `key=value`.
    pub labels: Option<Vec<String>>,
    /// What the task occupies on its worker while it runs.
    #[schemars(default)]
    pub resources: Resources,
    /// Only workers of this pool.
    pub pool: Option<String>,
    /// Where it would rather run; default `anywhere`.
    pub prefer: Option<Prefer>,
    /// Variables for the task's process and its verify. Values that are written here are stored
    /// and shown; those that come from a place on the worker are neither.
    #[schemars(default, with = "BTreeMap<String, EnvSchema>")]
    pub env: BTreeMap<String, String>,
    /// Those of `env` whose values come from a place on the worker.
    #[schemars(skip)]
    pub env_from: BTreeMap<String, ValueFrom>,
    /// Secret variables for the task's process alone, not for its verify: names that the worker's
    /// operator has given a value, or variables with where on the worker their values come from. Only
    /// what the operator listed with `--secret` can be had.
    #[schemars(default, with = "SecretsSchema")]
    pub secrets: BTreeMap<String, ValueFrom>,
    /// What the work tree and the temporary files may take on the worker's disk, such as `2 GB`; at
    /// most the worker's own limit, which also holds if this is absent. Looked at every few seconds.
    pub disk: Option<Size>,
    /// Folder of the repository whose git hooks run when an attempt commits by itself, or `never`;
    /// default `never`. They are part of the attempt, with its limits and variables, and must be
    /// executable files as git wants them. What Muster commits, merges and pushes runs no hook, and
    /// neither does a verify.
    pub hooks: Option<Hooks>,
    #[schemars(flatten)]
    pub model: ModelSettings,
}

/// Where a task would rather run, among the workers that fit and have a slot free.
#[derive(Clone, Copy, PartialEq, Eq, Debug, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Prefer {
    /// Where most slots are free.
    Anywhere,
    /// On a host where one of its dependencies ran, which has the repository already.
    Dependencies,
}

/// Whether an attempt's own commits run hooks that the repository brings.
#[derive(Clone, PartialEq, Eq, Debug, JsonSchema)]
#[schemars(untagged)]
pub enum Hooks {
    Never(Never),
    In(HooksFolder),
}

/// Says that something is not done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum Never {
    Never,
}

/// The folder that holds hooks.
#[derive(Clone, PartialEq, Eq, Debug, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct HooksFolder {
    /// Path relative to the repository's root, where it is committed.
    pub path: String,
}

/// Where on a worker a value comes from.
#[derive(Clone, PartialEq, Eq, Debug, JsonSchema, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ValueFrom {
    /// A variable of the worker.
    Env(String),
    /// A file on the worker's host.
    File(String),
    /// What the worker's operator gave this name.
    Secret(String),
}

/// What a task occupies on its worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Resources {
    /// Processor cores.
    pub cpus: Option<u32>,
    /// Memory, such as `512 MiB` or `4 GiB`; rounded up to whole MiB.
    pub memory: Option<Size>,
    /// Graphics processors.
    pub gpus: Option<u32>,
}

/// A task as the file states it.
#[derive(Clone, PartialEq, Debug, Default, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct TaskEntry {
    /// Unique name (ignoring case) of letters, digits, `.`, `_` and `-`.
    #[schemars(regex(pattern = "^[A-Za-z0-9._-]+$"))]
    pub name: String,
    /// What the agent is to do.
    pub prompt: Option<String>,
    /// Shell script of an `agent: command` task; it runs in the work tree.
    #[schemars(with = "Option<Word>")]
    pub run: Option<String>,
    /// Names of the tasks that must succeed first; the task starts from their merged work.
    #[schemars(default)]
    pub depends_on: Vec<String>,
    /// Claimed files and folders, relative to the repository's root: tasks whose claims overlap
    /// never run at the same time.
    #[schemars(default)]
    pub paths: Vec<String>,
    #[schemars(flatten)]
    pub settings: Settings,
    /// What only a codex-par file can say.
    #[schemars(skip)]
    pub codex: Option<CodexEntry>,
}

/// The part of a codex-par task that a plan has no words for.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct CodexEntry {
    /// Folder of the task as the file has it, for the files that codex-par would write.
    pub cwd: String,
    /// Folder of the task, relative to the plan's `repo`; empty for that folder itself.
    pub folder: String,
    /// The task works in the user's folder instead of a work tree.
    pub in_place: bool,
    /// Options for codex, as the file has them.
    pub options: BTreeMap<String, serde_json::Value>,
}

/// Programs that Muster knows how to drive.
#[derive(Clone, Copy, PartialEq, Eq, Debug, JsonSchema, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentKind {
    /// Any program or shell script.
    Command,
    Codex,
    Claude,
    /// Any agent that speaks the Agent Client Protocol.
    Acp,
    /// Any program that speaks a few plain words; see `worker-agent/src/agent/scripted.rs`.
    Scripted,
}

impl AgentKind {
    pub const ALL: [Self; 5] = [
        Self::Command,
        Self::Codex,
        Self::Claude,
        Self::Acp,
        Self::Scripted,
    ];

    /// Gives the name that is also the built-in agent's.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Codex => "codex",
            Self::Claude => "claude",
            Self::Acp => "acp",
            Self::Scripted => "scripted",
        }
    }
}

/// An agent that the plan or the coordinator's configuration declares.
#[derive(Clone, PartialEq, Eq, Debug, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct AgentDefinition {
    /// How to drive it.
    pub kind: AgentKind,
    /// Program and its arguments; the kind's own program if absent.
    #[schemars(with = "Option<ProgramSchema>")]
    pub command: Option<Vec<String>>,
    /// Variables for the agent's program, such as where its provider is. `${NAME}` stands for a
    /// variable of the worker; one that the worker does not have is an error.
    #[schemars(default)]
    pub env: BTreeMap<String, String>,
}

/// Whether and how results are merged.
#[derive(Clone, PartialEq, Eq, Debug, JsonSchema)]
#[schemars(untagged)]
pub enum Integrate {
    /// `false`: not at all; `true`: merged and not verified.
    Switch(bool),
    With(IntegrateSettings),
}

/// How results are merged.
#[derive(Clone, PartialEq, Eq, Debug, Default, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct IntegrateSettings {
    /// Shell commands that check the merged commit; all must succeed.
    #[schemars(default, with = "Vec<Word>")]
    pub verify: Vec<String>,
    /// Time limit of that check, from start to finish; default `1h`.
    pub verify_timeout: Option<Duration>,
    /// What happens when two tasks' changes conflict; default `fail`.
    #[schemars(default)]
    pub on_conflict: OnConflict,
}

/// What happens when two tasks' changes conflict.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, JsonSchema, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum OnConflict {
    /// The run ends as failed; the tasks stay succeeded, and the files and tasks are named.
    #[default]
    Fail,
}

/// Text, which may look like a number or a truth value: `true` is a program.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum Word {
    Text(String),
    Number(f64),
    Switch(bool),
}

/// A value, or where on the worker it comes from.
#[derive(JsonSchema)]
#[schemars(untagged, rename = "Variable")]
#[expect(dead_code, reason = "only its schema is used")]
enum EnvSchema {
    Value(Word),
    From(ValueFrom),
}

/// Names that the worker's operator gave a value, or variables with where theirs come from.
#[derive(JsonSchema)]
#[schemars(untagged, rename = "Secrets")]
#[expect(dead_code, reason = "only its schema is used")]
enum SecretsSchema {
    Names(Vec<String>),
    Variables(BTreeMap<String, SecretSchema>),
}

/// A name that the worker's operator gave a value, or another place on the worker.
#[derive(JsonSchema)]
#[schemars(untagged, rename = "Secret")]
#[expect(dead_code, reason = "only its schema is used")]
enum SecretSchema {
    Name(String),
    From(ValueFrom),
}

/// A program: one word, or a list with its arguments.
#[derive(JsonSchema)]
#[schemars(untagged, rename = "Program")]
#[expect(dead_code, reason = "only its schema is used")]
enum ProgramSchema {
    Program(Word),
    WithArguments(Vec<Word>),
}
