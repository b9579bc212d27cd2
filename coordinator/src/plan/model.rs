//! What a plan says to agents that are models: which one, how it behaves, when it is done.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::codex;
use super::decode::{PROMPT_BYTES_MAX, SHORT_BYTES_MAX};
use super::document::{AgentKind, TaskEntry};
use super::fields::{Fields, Reader, Unknown};
use super::problem::quote;
use super::tree::{Node, Value};

/// Criteria, rules, images or folders of one task.
const ITEMS_MAX: usize = 256;
/// Longest JSON Schema, as JSON.
const SCHEMA_BYTES_MAX: usize = 256 << 10;
pub(super) const CODEX_KEYS: [&str; 6] = [
    "profile",
    "config_overrides",
    "enable_features",
    "disable_features",
    "ephemeral",
    "review",
];
pub(super) const REVIEW_KEYS: [&str; 4] = ["uncommitted", "base", "commit", "title"];
pub(super) const APPROVAL_KEYS: [&str; 3] = ["ask", "allow", "deny"];

/// Settings of tasks whose agent is a model; others ignore them.
#[derive(Clone, PartialEq, Debug, Default, JsonSchema)]
pub struct ModelSettings {
    /// Which model, as the agent names it; the agent's own default if absent.
    pub model: Option<String>,
    /// What the agent's commands may touch, for agents that can hold them to it.
    pub sandbox: Option<SandboxMode>,
    /// Who the agent is: an `AGENTS.md` file, or a folder with one and perhaps `skills/`, relative to
    /// the plan file. It is read when the plan is submitted.
    pub persona: Option<String>,
    /// Which questions of the agent are answered without a person; `never` asks nobody and is the
    /// default.
    pub approvals: Option<Approvals>,
    /// Whether an attempt that changes nothing has failed. If absent, `required` for tasks of models
    /// with a repository, unless they only read or answer with an `output_schema`. `required` needs a
    /// repository.
    pub change: Option<Change>,
    /// What must be true of the work; the agent is told.
    pub acceptance: Option<Vec<String>>,
    /// JSON Schema of the agent's answer. An answer that does not fit is asked for again, at most
    /// twice.
    #[schemars(with = "Option<BTreeMap<String, serde_json::Value>>")]
    pub output_schema: Option<serde_json::Value>,
    /// Images for the agent, relative to the work tree; one that is not there fails the attempt.
    pub images: Option<Vec<String>>,
    /// Folders of the worker besides the work tree in which the agent may write; one that is not there
    /// fails the attempt.
    pub add_dirs: Option<Vec<String>>,
    /// What only Codex knows.
    pub codex: Option<CodexSettings>,
}

/// What only Codex knows.
#[derive(Clone, PartialEq, Eq, Debug, Default, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct CodexSettings {
    /// Name of a profile in the worker's `CODEX_HOME`.
    pub profile: Option<String>,
    /// Settings of Codex, each as `key=value` with a value in TOML.
    #[schemars(default)]
    pub config_overrides: Vec<String>,
    /// Features to switch on.
    #[schemars(default)]
    pub enable_features: Vec<String>,
    /// Features to switch off.
    #[schemars(default)]
    pub disable_features: Vec<String>,
    /// Whether Codex forgets the conversation; then no later attempt can go on with it.
    pub ephemeral: Option<bool>,
    /// Codex reviews instead of working on the prompt.
    pub review: Option<CodexReview>,
}

/// What Codex reviews: one of the three.
#[derive(Clone, PartialEq, Eq, Debug, Default, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct CodexReview {
    /// Edits that are not committed.
    pub uncommitted: Option<bool>,
    /// Everything since this branch or commit.
    pub base: Option<String>,
    /// One commit.
    pub commit: Option<String>,
    /// Title of the review.
    pub title: Option<String>,
}

/// What an agent's commands may touch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SandboxMode {
    /// They write nothing.
    ReadOnly,
    /// They write in the work tree and in temporary files.
    WorkspaceWrite,
    /// They may do what the worker's user may.
    FullAccess,
}

/// Whether a task must change something.
#[derive(Clone, Copy, PartialEq, Eq, Debug, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// An attempt without a change has failed.
    Required,
    /// It may leave everything as it is.
    Optional,
}

/// Which questions of an agent are answered without a person: one word for `ask`, or a mapping.
#[derive(Clone, PartialEq, Eq, Debug, Default, JsonSchema, Serialize, Deserialize)]
#[schemars(deny_unknown_fields)]
pub struct Approvals {
    /// What happens to questions that no rule answers. The persona's skills are read without one.
    #[serde(default)]
    pub ask: Ask,
    /// Commands that begin with these words are allowed. Each is one command's, without `;`, `|`, `$` and
    /// the like.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// Commands with these words in a row, anywhere, are denied, whatever else is allowed. Each is one
    /// command's, without `;`, `|`, `$`, quotes and the like; the program counts by its name, without folders.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<String>,
}

/// What happens to a question that no rule answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ask {
    /// Nobody is asked. What an agent asks about is allowed, but never to leave its sandbox; an agent
    /// without one, such as Claude Code, may do what the worker's user may.
    #[default]
    Never,
    /// Reading and changing files within the work tree is allowed, a person is asked about the rest.
    Outside,
    /// A person is asked.
    Always,
}

/// What a worker is told of it.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ModelDocument {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxMode>,
    /// The persona's text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instructions: Option<String>,
    /// Files of the persona's skills by their path below `skills/`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub skills: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approvals: Option<Approvals>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub acceptance: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add_dirs: Vec<String>,
    /// Variables for the agent's program.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub agent_env: BTreeMap<String, String>,
}

impl ModelSettings {
    /// Fills in what is not said.
    pub(super) fn or(&self, defaults: &Self) -> Self {
        fn either<T: Clone>(own: Option<&T>, default: Option<&T>) -> Option<T> {
            own.or(default).cloned()
        }
        Self {
            model: either(self.model.as_ref(), defaults.model.as_ref()),
            sandbox: self.sandbox.or(defaults.sandbox),
            persona: either(self.persona.as_ref(), defaults.persona.as_ref()),
            approvals: either(self.approvals.as_ref(), defaults.approvals.as_ref()),
            change: self.change.or(defaults.change),
            acceptance: either(self.acceptance.as_ref(), defaults.acceptance.as_ref()),
            output_schema: either(self.output_schema.as_ref(), defaults.output_schema.as_ref()),
            images: either(self.images.as_ref(), defaults.images.as_ref()),
            add_dirs: either(self.add_dirs.as_ref(), defaults.add_dirs.as_ref()),
            codex: either(self.codex.as_ref(), defaults.codex.as_ref()),
        }
    }

    /// Makes what a worker is told; of a task whose agent is no model that is nothing.
    pub(super) fn lower(
        self,
        entry: &TaskEntry,
        kind: AgentKind,
        has_repository: bool,
        persona: Option<&super::persona::Persona>,
        agent_env: BTreeMap<String, String>,
    ) -> ModelDocument {
        if kind == AgentKind::Command {
            return ModelDocument {
                agent_env,
                ..ModelDocument::default()
            };
        }
        let reviews = self
            .codex
            .as_ref()
            .is_some_and(|codex| codex.review.is_some());
        let answers =
            reviews || self.output_schema.is_some() || self.sandbox == Some(SandboxMode::ReadOnly);
        // Files of codex-par know nothing of this.
        let changes = has_repository && !answers && entry.codex.is_none();
        let change = self.change.or(changes.then_some(Change::Required));
        ModelDocument {
            model: self.model,
            sandbox: self.sandbox,
            instructions: persona.map(|persona| persona.instructions.clone()),
            skills: persona
                .map(|persona| persona.skills.clone())
                .unwrap_or_default(),
            approvals: self.approvals,
            change,
            acceptance: self.acceptance.unwrap_or_default(),
            output_schema: self.output_schema,
            images: self.images.unwrap_or_default(),
            add_dirs: self.add_dirs.unwrap_or_default(),
            agent_env,
        }
    }
}

/// Reads these settings among a task's or the defaults' keys.
pub(super) fn model_settings(reader: &mut Reader<'_>, fields: &Fields<'_>) -> ModelSettings {
    let mut settings = ModelSettings::default();
    for (key, place) in [
        ("model", &mut settings.model),
        ("persona", &mut settings.persona),
    ] {
        if let Some(node) = fields.get(key) {
            *place = reader.word(key, node, SHORT_BYTES_MAX);
        }
    }
    if let Some(node) = fields.get("sandbox") {
        let modes = [
            ("read-only", SandboxMode::ReadOnly),
            ("workspace-write", SandboxMode::WorkspaceWrite),
            ("full-access", SandboxMode::FullAccess),
        ];
        settings.sandbox = reader.choice("sandbox", node, &modes);
    }
    if let Some(node) = fields.get("change") {
        let modes = [
            ("required", Change::Required),
            ("optional", Change::Optional),
        ];
        settings.change = reader.choice("change", node, &modes);
    }
    if let Some(node) = fields.get("approvals") {
        settings.approvals = approvals(reader, node);
    }
    for (key, bytes_max, place) in [
        ("acceptance", PROMPT_BYTES_MAX, &mut settings.acceptance),
        ("images", SHORT_BYTES_MAX, &mut settings.images),
        ("add_dirs", SHORT_BYTES_MAX, &mut settings.add_dirs),
    ] {
        if let Some(node) = fields.get(key) {
            *place = words(reader, key, node, bytes_max);
        }
    }
    if let (Some(node), Some(images)) = (fields.get("images"), &settings.images)
        && let Some(image) = images.iter().find(|image| !is_inside(image))
    {
        reader.wrong_with(
            node.at,
            &format!("`images`: {} is not within the work tree", quote(image)),
            "name files of the repository, relative to its root",
        );
    }
    if let (Some(node), Some(folders)) = (fields.get("add_dirs"), &settings.add_dirs)
        && let Some(folder) = folders.iter().find(|folder| !folder.starts_with('/'))
    {
        reader.wrong_with(
            node.at,
            &format!("`add_dirs`: {} is no absolute path", quote(folder)),
            "the folders are on the worker's host; the work tree is the agent's anyway",
        );
    }
    if let Some(node) = fields.get("codex") {
        settings.codex = codex_settings(reader, node);
    }
    if let Some(node) = fields.get("output_schema") {
        settings.output_schema = schema(reader, node);
    }
    settings
}

fn words(reader: &mut Reader<'_>, key: &str, node: &Node, bytes_max: usize) -> Option<Vec<String>> {
    bounded(reader, key, node, |reader, key, item| {
        reader.word(key, item, bytes_max)
    })
}

fn bounded(
    reader: &mut Reader<'_>,
    key: &str,
    node: &Node,
    read: impl FnMut(&mut Reader<'_>, &str, &Node) -> Option<String>,
) -> Option<Vec<String>> {
    let (words, _) = reader.texts(key, node, read)?;
    if words.len() > ITEMS_MAX {
        reader.wrong(node.at, &format!("`{key}` has more than {ITEMS_MAX} items"));
        return None;
    }
    Some(words)
}

fn approvals(reader: &mut Reader<'_>, node: &Node) -> Option<Approvals> {
    let modes = [
        ("never", Ask::Never),
        ("outside", Ask::Outside),
        ("always", Ask::Always),
    ];
    if let Value::Scalar(..) = node.value {
        return Some(Approvals {
            ask: reader.choice("approvals", node, &modes)?,
            ..Approvals::default()
        });
    }
    let fields = reader.fields("approvals", node, &APPROVAL_KEYS, Unknown::Refused, |_| {
        None
    })?;
    let mut approvals = Approvals::default();
    if let Some(node) = fields.get("ask") {
        approvals.ask = reader.choice("ask", node, &modes)?;
    }
    if let Some(node) = fields.get("allow") {
        approvals.allow = rules(reader, "allow", node, worker_agent::allows_nothing)?;
    }
    if let Some(node) = fields.get("deny") {
        approvals.deny = rules(reader, "deny", node, worker_agent::denies_nothing)?;
    }
    Some(approvals)
}

/// Reads rules about commands; `useless` gives the character for which one never fits any.
fn rules(
    reader: &mut Reader<'_>,
    key: &str,
    node: &Node,
    useless: impl Fn(&str) -> Option<char>,
) -> Option<Vec<String>> {
    bounded(reader, key, node, |reader, key, item| {
        let rule = reader.word(key, item, SHORT_BYTES_MAX)?;
        if let Some(character) = useless(&rule) {
            reader.wrong_with(
                item.at,
                &format!(
                    "`{key}`: no command fits {}, for its {}",
                    quote(&rule),
                    quote(&character.to_string())
                ),
                "a rule is the plain words of one command, such as `git push`; write one rule for each",
            );
        }
        Some(rule)
    })
}

/// Says what there is instead of an option that Codex has lost, or that means something of every agent.
pub(super) fn gone(key: &str) -> Option<String> {
    let instead = match key {
        "full_auto" => {
            "codex has no `full_auto` any more: a task may change its work tree and asks nobody, unless \
             its `sandbox` and `approvals` say otherwise"
        }
        "ask_for_approval" | "approval_policy" => "say `approvals` of the task",
        "worktree" => "every task has a work tree of its own",
        "dangerously_bypass_approvals_and_sandbox" | "yolo" => {
            "say `sandbox: full-access` of the task"
        }
        _ => return None,
    };
    Some(instead.to_owned())
}

fn codex_settings(reader: &mut Reader<'_>, node: &Node) -> Option<CodexSettings> {
    let fields = reader.fields("codex", node, &CODEX_KEYS, Unknown::Refused, gone)?;
    let mut settings = CodexSettings::default();
    if let Some(node) = fields.get("profile") {
        settings.profile = reader.word("profile", node, SHORT_BYTES_MAX);
    }
    for (key, place) in [
        ("config_overrides", &mut settings.config_overrides),
        ("enable_features", &mut settings.enable_features),
        ("disable_features", &mut settings.disable_features),
    ] {
        if let Some(node) = fields.get(key) {
            *place = words(reader, key, node, SHORT_BYTES_MAX)?;
        }
    }
    if let (Some(node), Some(wrong)) = (
        fields.get("config_overrides"),
        settings
            .config_overrides
            .iter()
            .find(|text| !text.contains('=')),
    ) {
        reader.wrong_with(
            node.at,
            &format!("`config_overrides`: {} has no `=`", quote(wrong)),
            "for instance `config_overrides: ['model_reasoning_effort=\"high\"']`",
        );
    }
    if let Some(node) = fields.get("ephemeral") {
        settings.ephemeral = reader.switch("ephemeral", node);
    }
    if let Some(node) = fields.get("review") {
        settings.review = review(reader, node);
    }
    Some(settings)
}

fn review(reader: &mut Reader<'_>, node: &Node) -> Option<CodexReview> {
    let fields = reader.fields("review", node, &REVIEW_KEYS, Unknown::Refused, |_| None)?;
    let mut review = CodexReview::default();
    if let Some(node) = fields.get("uncommitted") {
        review.uncommitted = reader.switch("uncommitted", node);
    }
    for (key, place) in [
        ("base", &mut review.base),
        ("commit", &mut review.commit),
        ("title", &mut review.title),
    ] {
        if let Some(node) = fields.get(key) {
            *place = reader.word(key, node, SHORT_BYTES_MAX);
        }
    }
    let scopes = [
        review.uncommitted == Some(true),
        review.base.is_some(),
        review.commit.is_some(),
    ];
    if scopes.iter().filter(|given| **given).count() != 1 {
        reader.wrong_with(
            node.at,
            "`review` has one scope",
            "one of `uncommitted: true`, `base: BRANCH`, `commit: COMMIT`",
        );
        return None;
    }
    Some(review)
}

impl CodexSettings {
    /// Gives them in the words of codex-par, which workers know.
    pub(super) fn options(self) -> BTreeMap<String, serde_json::Value> {
        let mut options = BTreeMap::new();
        let mut put = |key: &str, value: serde_json::Value| options.insert(key.to_owned(), value);
        if let Some(profile) = self.profile {
            put("profile", profile.into());
        }
        for (key, values) in [
            ("config_overrides", self.config_overrides),
            ("enable_features", self.enable_features),
            ("disable_features", self.disable_features),
        ] {
            if !values.is_empty() {
                put(key, values.into());
            }
        }
        if let Some(ephemeral) = self.ephemeral {
            put("ephemeral", ephemeral.into());
        }
        if let Some(review) = self.review {
            put("kind", "review".into());
            if let Some(uncommitted) = review.uncommitted {
                put("uncommitted", uncommitted.into());
            }
            for (key, value) in [
                ("base", review.base),
                ("commit", review.commit),
                ("review_title", review.title),
            ] {
                if let Some(value) = value {
                    put(key, value.into());
                }
            }
        }
        options
    }
}

fn schema(reader: &mut Reader<'_>, node: &Node) -> Option<serde_json::Value> {
    if !matches!(node.value, Value::Map(_)) {
        reader.wrong_with(
            node.at,
            "`output_schema` is a mapping: the JSON Schema itself",
            "for instance `output_schema: {type: object, required: [summary]}`",
        );
        return None;
    }
    let schema = codex::json(node);
    if schema.to_string().len() > SCHEMA_BYTES_MAX {
        let message = format!("`output_schema` is longer than {SCHEMA_BYTES_MAX} bytes of JSON");
        reader.wrong(node.at, &message);
        return None;
    }
    if let Err(error) = jsonschema::validator_for(&schema) {
        reader.wrong(
            node.at,
            &format!("`output_schema` is no JSON Schema: {error}"),
        );
        return None;
    }
    Some(schema)
}

fn is_inside(path: &str) -> bool {
    use std::path::{Component, Path};
    !path.is_empty()
        && Path::new(path)
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}
