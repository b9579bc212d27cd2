//! A task's options for Codex.

use std::collections::BTreeMap;

use std::path::Path;

use serde_json::{Map, Value, json};

use super::profile;
use crate::agent::Own;
use crate::agent::conversation::Opening;
use crate::document::{ApprovalPolicy, AskMode, SandboxMode, TaskDocument};

/// Everything that `codex` of a task may say, besides what every agent's task has words for.
const KNOWN: [&str; 26] = [
    "add_dirs",
    "agent_id",
    "approval_policy",
    "base",
    "base_instructions",
    "commit",
    "compact_prompt",
    "config",
    "config_overrides",
    "developer_instructions",
    "disable_features",
    "effort",
    "enable_features",
    "ephemeral",
    "full_auto",
    "images",
    "kind",
    "model",
    "network",
    "output_schema",
    "profile",
    "protocol",
    "review_title",
    "sandbox",
    "thread_id",
    "uncommitted",
];
/// What is gone from Codex or makes no sense here, and what there is instead.
const GONE: [(&str, &str); 3] = [
    ("ask_for_approval", "say `approvals` of the task"),
    ("cwd", "the worker gives the agent its folder"),
    ("worktree", "every task has a work tree of its own"),
];

/// Sandbox that is none.
const FULL_ACCESS: &str = "danger-full-access";
/// Names of variables that commands do not get.
const EXCLUDED: &str = "shell_environment_policy.exclude";

/// Variable of a key that Codex logs in with.
pub(super) const API_KEY: &str = "CODEX_API_KEY";

/// Options of a conversation by `codex app-server`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Settings {
    model: Option<String>,
    sandbox: &'static str,
    approvals: Value,
    config: Map<String, Value>,
    base_instructions: Option<String>,
    developer_instructions: Option<String>,
    add_dirs: Vec<String>,
    /// For the first prompt.
    pub(super) images: Vec<String>,
    /// Nothing of the conversation is kept, so it cannot be gone on with.
    pub(super) ephemeral: bool,
    /// What is to be reviewed instead of a prompt.
    pub(super) review: Option<Value>,
}

impl Settings {
    /// Reads them; an error names the option, and what there is instead if Codex has lost it.
    pub(super) fn of(task: &TaskDocument) -> Result<Self, String> {
        let options = Options(&task.codex);
        for key in task.codex.keys() {
            if let Some((_, instead)) = GONE.iter().find(|(gone, _)| gone == key) {
                return Err(format!("codex has no option `{key}` any more: {instead}"));
            }
            if !KNOWN.contains(&key.as_str()) {
                return Err(format!("codex has no option `{key}`"));
            }
        }
        if options.value("output_schema").is_some() {
            let message = "`output_schema` of codex names a file of the user's";
            return Err(format!("{message}: say `output_schema` of the task"));
        }
        let own = |text: Option<&str>| text.map(str::to_owned);
        let mut config = Map::new();
        if let Some(nested) = options.value("config") {
            flatten("", nested, &mut config)?;
            if config.contains_key(EXCLUDED) {
                return Err(format!(
                    "`{EXCLUDED}` in `config` of codex would replace the names of keys that are hidden: \
                     say it under `config_overrides`"
                ));
            }
        }
        for (option, key) in [
            ("compact_prompt", "compact_prompt"),
            ("effort", "model_reasoning_effort"),
        ] {
            if let Some(text) = options.text(option)? {
                config.insert(key.to_owned(), Value::from(text));
            }
        }
        if options.switch("network")? {
            let key = "sandbox_workspace_write.network_access";
            config.insert(key.to_owned(), Value::from(true));
        }
        let mut add_dirs = task.add_dirs.clone();
        add_dirs.extend(options.texts("add_dirs")?.into_iter().map(str::to_owned));
        let mut images = task.images.clone();
        images.extend(options.texts("images")?.into_iter().map(str::to_owned));
        Ok(Self {
            model: task.model.clone().or(own(options.text("model")?)),
            sandbox: sandbox(task, &options)?,
            approvals: approvals(&task.approvals, sandbox(task, &options)?, &options)?,
            config,
            base_instructions: own(options.text("base_instructions")?),
            developer_instructions: own(options.text("developer_instructions")?),
            add_dirs,
            images,
            ephemeral: options.switch("ephemeral")?,
            review: review(task, &options)?,
        })
    }

    /// What a thread is opened or gone on with.
    pub(super) fn thread(&self, opening: &Opening) -> Value {
        let folder = opening.folder.to_string_lossy().into_owned();
        let mut params = json!({
            "cwd": &folder,
            "approvalPolicy": &self.approvals,
            "sandbox": self.sandbox,
        });
        let mut set = |key: &str, value: Value| params[key] = value;
        if let Some(model) = &self.model {
            set("model", Value::from(model.as_str()));
        }
        if !self.config.is_empty() {
            set("config", Value::Object(self.config.clone()));
        }
        if let Some(text) = &self.base_instructions {
            set("baseInstructions", Value::from(text.as_str()));
        }
        let more = self.developer_instructions.as_deref().unwrap_or_default();
        let texts = [opening.instructions.as_str(), more].into_iter();
        let texts: Vec<&str> = texts.filter(|text| !text.is_empty()).collect();
        if !texts.is_empty() {
            set("developerInstructions", Value::from(texts.join("\n\n")));
        }
        if !self.add_dirs.is_empty() {
            let more = self.add_dirs.iter().map(|folder| {
                let folder = opening.folder.join(folder);
                folder.to_string_lossy().into_owned()
            });
            let roots: Vec<String> = std::iter::once(folder).chain(more).collect();
            set("runtimeWorkspaceRoots", Value::from(roots));
        }
        params
    }
}

/// Gives the arguments of the program; `hidden` are variables that the agent's commands do not see.
pub(super) fn arguments(
    task: &TaskDocument,
    hidden: &[&str],
    work: &Path,
    own: Own<'_>,
) -> Result<Vec<String>, String> {
    let options = Options(&task.codex);
    let mut argv = vec!["app-server".to_owned()];
    let mut set = |value: &str| argv.extend(["-c".to_owned(), value.to_owned()]);
    if let Some(name) = options.text("profile")? {
        for value in profile::overrides(name, own)? {
            set(&value);
        }
    }
    // A provider that is not there is waited for without end otherwise.
    set("features.unbounded_connection_retries=false");
    // An attempt has temporary files of its own in TMPDIR. Those of everybody in /tmp are none of its
    // affair, and a sandbox that may write there leaves an empty `.git` and others when it is killed.
    set("sandbox_workspace_write.exclude_slash_tmp=true");
    if has_key(task, own) {
        // The conversation logs in with it, and the user's own login stays what it is.
        set("cli_auth_credentials_store=\"ephemeral\"");
    }
    // Those of the task come after these and win.
    let mut excluded = vec![];
    for value in options.texts("config_overrides")? {
        match value.split_once('=') {
            Some((key, list)) if key.trim() == EXCLUDED => excluded.push(list.trim()),
            _ => set(value),
        }
    }
    // But for this, which comes beside what the task excludes: else what the agent logs in with is in the
    // environment of every command it runs. By name, since patterns would hide what the task gives its
    // commands on purpose.
    if !hidden.is_empty() || !excluded.is_empty() {
        let mut names: Vec<String> = hidden.iter().map(|name| format!("{name:?}")).collect();
        for list in excluded {
            let inner = list
                .strip_prefix('[')
                .and_then(|list| list.strip_suffix(']'));
            let inner = inner.ok_or_else(|| {
                format!("`{EXCLUDED}` of codex is {list:?}: write a list in brackets, such as `[\"A*\"]`")
            })?;
            let inner = inner.trim().trim_end_matches(',');
            names.extend((!inner.is_empty()).then(|| inner.to_owned()));
        }
        set(&format!("{EXCLUDED}=[{}]", names.join(",")));
    }
    // But for this: a repository's own `.codex/config.toml` can start programs. Codex would trust the
    // folder of a thread that may write, and note so in the user's settings.
    let work = Value::from(work.to_string_lossy());
    set(&format!(
        "projects={{{work}={{trust_level=\"untrusted\"}}}}"
    ));
    for (key, name) in [
        ("enable_features", "--enable"),
        ("disable_features", "--disable"),
    ] {
        for value in options.texts(key)? {
            argv.extend([name.to_owned(), value.to_owned()]);
        }
    }
    Ok(argv)
}

/// Tells whether the program gets a key to log in with.
fn has_key(task: &TaskDocument, own: Own<'_>) -> bool {
    task.has_variable(API_KEY) || own(API_KEY).is_some()
}

fn sandbox(task: &TaskDocument, options: &Options<'_>) -> Result<&'static str, String> {
    match task.sandbox {
        Some(SandboxMode::ReadOnly) => return Ok("read-only"),
        Some(SandboxMode::WorkspaceWrite) => return Ok("workspace-write"),
        Some(SandboxMode::FullAccess) => return Ok(FULL_ACCESS),
        None => {}
    }
    // `full_auto` was a workspace-write sandbox that asks nobody: what there is without it today.
    match options.text("sandbox")? {
        Some("read-only") => Ok("read-only"),
        None | Some("read-write" | "workspace-write") => Ok("workspace-write"),
        Some(FULL_ACCESS) => Ok(FULL_ACCESS),
        Some(other) => Err(format!(
            "codex has no sandbox {other:?}: say `read-only`, `workspace-write` or \
             `danger-full-access`"
        )),
    }
}

/// When Codex asks. What it does not ask, no rule of the task's can answer.
/// Gives when Codex asks. Whoever answers a question of Codex may let a command out of its sandbox, and
/// the question does not always say so; so while nobody is asked it asks nothing.
fn approvals(
    policy: &ApprovalPolicy,
    sandbox: &str,
    options: &Options<'_>,
) -> Result<Value, String> {
    let answers_itself = policy.ask == AskMode::Never && sandbox != FULL_ACCESS;
    match options.text("approval_policy")? {
        Some(named @ ("untrusted" | "on-request" | "on-failure")) if answers_itself => {
            return Err(format!(
                "`approval_policy: {named}` of codex asks, and nobody is asked: say `approvals: {{ ask: \
                 outside }}` of the task"
            ));
        }
        Some(named @ ("untrusted" | "on-request" | "never")) => return Ok(Value::from(named)),
        // Gone; the model asks itself now when the sandbox stopped it.
        Some("on-failure") => return Ok(Value::from("on-request")),
        Some(other) => {
            return Err(format!(
                "codex has no approval policy {other:?}: say `untrusted`, `on-request` or `never`"
            ));
        }
        None => {}
    }
    Ok(match policy.ask {
        AskMode::Never if !policy.deny.is_empty() && answers_itself => {
            return Err(
                "rules that deny commands do not hold for codex in its sandbox while nobody is asked: \
                 say `approvals: { ask: outside }` of the task, or take the rules away from plan and \
                 worker"
                    .to_owned(),
            );
        }
        _ if !policy.deny.is_empty() => Value::from("untrusted"),
        AskMode::Always => Value::from("untrusted"),
        AskMode::Outside => Value::from("on-request"),
        // The sandbox stays what it is, but tools of servers may be called: with `never` Codex
        // would refuse all that are not marked as reading only.
        AskMode::Never => json!({ "granular": {
            "sandbox_approval": false,
            "rules": false,
            "skill_approval": true,
            "request_permissions": false,
            "mcp_elicitations": true,
        }}),
    })
}

fn review(task: &TaskDocument, options: &Options<'_>) -> Result<Option<Value>, String> {
    match options.text("kind")? {
        None | Some("exec") => return Ok(None),
        Some("review") => {}
        Some(other) => return Err(format!("codex has no kind {other:?} of task")),
    }
    let title = options.text("review_title")?;
    let prompt = task.prompt.as_deref().unwrap_or_default();
    let scopes = [
        options
            .switch("uncommitted")?
            .then(|| json!({ "type": "uncommittedChanges" })),
        options
            .text("base")?
            .map(|branch| json!({ "type": "baseBranch", "branch": branch })),
        options
            .text("commit")?
            .map(|sha| json!({ "type": "commit", "sha": sha, "title": title })),
        (!prompt.is_empty()).then(|| json!({ "type": "custom", "instructions": prompt })),
    ];
    let mut scopes = scopes.into_iter().flatten();
    match (scopes.next(), scopes.next()) {
        (Some(scope), None) => Ok(Some(scope)),
        (None, _) => Ok(Some(json!({ "type": "uncommittedChanges" }))),
        (Some(_), Some(_)) => {
            Err("a review has one of `uncommitted`, `base`, `commit` and a prompt".to_owned())
        }
    }
}

/// Makes dotted keys of nested tables, as overrides have them.
fn flatten(path: &str, value: &Value, flat: &mut Map<String, Value>) -> Result<(), String> {
    let Value::Object(table) = value else {
        if path.is_empty() {
            return Err("`config` of the task is not a table".to_owned());
        }
        flat.insert(path.to_owned(), value.clone());
        return Ok(());
    };
    for (key, value) in table {
        let path = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        flatten(&path, value, flat)?;
    }
    Ok(())
}

/// The options of a task as its plan gave them.
pub(super) struct Options<'a>(pub(super) &'a BTreeMap<String, Value>);

impl<'a> Options<'a> {
    /// Gives an option that is there and not null.
    pub(super) fn value(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    /// Gives a text.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, String> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(format!("`{key}` of the task is not a text")),
        }
    }

    /// Gives a list of texts; none if it is not there.
    pub(super) fn texts(&self, key: &str) -> Result<Vec<&'a str>, String> {
        let wrong = || format!("`{key}` of the task is not a list of texts");
        match self.value(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items
                .iter()
                .map(|item| item.as_str().ok_or_else(wrong))
                .collect(),
            Some(_) => Err(wrong()),
        }
    }

    /// Gives a switch, off if it is not there.
    pub(super) fn switch(&self, key: &str) -> Result<bool, String> {
        match self.value(key) {
            None => Ok(false),
            Some(Value::Bool(on)) => Ok(*on),
            Some(_) => Err(format!("`{key}` of the task is neither true nor false")),
        }
    }
}
