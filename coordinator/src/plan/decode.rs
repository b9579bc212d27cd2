//! From the tree to the document. Wrong values are reported and left out, so that one reading
//! finds all problems.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use coordinator_core::limits;

use super::document::{
    AgentDefinition, AgentKind, FolderRepo, Integrate, IntegrateSettings, OnConflict, PlanDocument,
    Repo, TaskEntry,
};
use super::fields::{Fields, Reader, Unknown};
use super::model::gone;
use super::problem::{Position, quote};
use super::settings::{
    SETTINGS_KEYS, SettingsMarks, VARIABLE_BYTES_MAX, limit, settings, variables, verify,
};
use super::tree::{Meaning, Node, Value};

/// Bytes of a prompt; it travels to a worker in one message.
pub const PROMPT_BYTES_MAX: usize = 1 << 20;
/// Bytes of a shell script: Linux takes at most 128 KiB in one argument.
pub const SCRIPT_BYTES_MAX: usize = 120_000;
/// Bytes of names, paths, labels and other short texts.
pub(crate) const SHORT_BYTES_MAX: usize = 4_096;
/// Agents that one plan, or the coordinator's configuration, declares.
pub(crate) const AGENTS_MAX: usize = 256;

pub(super) const PLAN_KEYS: [&str; 8] = [
    "name",
    "repo",
    "base",
    "defaults",
    "agents",
    "max_parallel",
    "tasks",
    "integrate",
];
/// Keys of a task besides those that `defaults` may have too.
const OWN_TASK_KEYS: [&str; 5] = ["name", "prompt", "run", "depends_on", "paths"];
pub(super) const AGENT_KEYS: [&str; 3] = ["kind", "command", "env"];
pub(super) const INTEGRATE_KEYS: [&str; 3] = ["verify", "verify_timeout", "on_conflict"];
pub(super) const FOLDER_KEYS: [&str; 1] = ["from"];

/// Gives all keys of a task.
pub(super) fn task_keys() -> Vec<&'static str> {
    OWN_TASK_KEYS.into_iter().chain(SETTINGS_KEYS).collect()
}

/// Places of what later checks speak about.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks {
    pub(super) plan: Position,
    pub(super) base: Position,
    pub(super) integrate: Position,
    pub(super) tasks_key: Position,
    pub(super) defaults: SettingsMarks,
    pub(super) tasks: Vec<TaskMarks>,
    /// Every task has a name, so checks across tasks make sense.
    pub(super) named: bool,
}

/// Places of one task.
#[derive(Clone, Debug, Default)]
pub(super) struct TaskMarks {
    pub(super) task: Position,
    pub(super) name: Position,
    pub(super) run: Position,
    pub(super) depends_on: Vec<Position>,
    pub(super) paths: Vec<Position>,
    pub(super) settings: SettingsMarks,
    /// What decides about agent and work could be read.
    pub(super) whole: bool,
}

/// Reads a plan.
pub(super) fn plan(reader: &mut Reader<'_>, root: &Node) -> Option<(PlanDocument, Marks)> {
    let fields = reader.fields("plan", root, &PLAN_KEYS, Unknown::Refused, |key| {
        if SETTINGS_KEYS.contains(&key) {
            Some(format!("`{key}` belongs to a task or to `defaults`"))
        } else {
            merge_key(key)
        }
    })?;
    let mut marks = Marks {
        plan: fields.at,
        named: true,
        ..Marks::default()
    };
    let mut document = PlanDocument::default();
    if let Some(node) = fields.get("name") {
        document.name = plan_name(reader, node);
    }
    if let Some(node) = fields.get("repo") {
        document.repo = repo(reader, node);
    }
    if let Some(node) = fields.get("base") {
        marks.base = node.at;
        document.base = reader.word("base", node, SHORT_BYTES_MAX);
    }
    if let Some(node) = fields.get("agents") {
        document.agents = agents(reader, node);
    }
    if let Some(node) = fields.get("defaults") {
        reader.context = "defaults: ".to_owned();
        let keys = reader.fields("defaults", node, &SETTINGS_KEYS, Unknown::Refused, |key| {
            if OWN_TASK_KEYS.contains(&key) {
                return Some(format!("`{key}` belongs to each task"));
            }
            merge_key(key)
        });
        if let Some(keys) = keys {
            (document.defaults, marks.defaults) = settings(reader, &keys);
        }
        reader.context.clear();
    }
    if let Some(node) = fields.get("max_parallel") {
        document.max_parallel = reader
            .integer("max_parallel", node, 1, 1_000_000)
            .and_then(|n| u32::try_from(n).ok())
            .and_then(NonZeroU32::new);
    }
    if let Some(node) = fields.get("integrate") {
        marks.integrate = node.at;
        document.integrate = integrate(reader, node);
    }
    marks.tasks_key = fields.at;
    match fields.get("tasks") {
        Some(node) => tasks(reader, node, &mut document, &mut marks),
        None => {
            marks.named = false;
            reader.wrong_with(
                fields.at,
                "the plan has no `tasks`",
                "add `tasks:` with a list of tasks, each with a `name` and a `run` or `prompt`",
            );
        }
    }
    Some((document, marks))
}

pub(super) fn merge_key(key: &str) -> Option<String> {
    (key == "<<").then(|| {
        "merge keys are not supported; use `defaults`, or an alias for a whole value".to_owned()
    })
}

fn plan_name(reader: &mut Reader<'_>, node: &Node) -> Option<String> {
    let name = reader.text("name", node, limits::TASK_NAME_BYTES)?;
    if name.chars().any(char::is_control) {
        reader.wrong(node.at, "`name` must be one line of printable characters");
        return None;
    }
    Some(name)
}

fn repo(reader: &mut Reader<'_>, node: &Node) -> Option<Repo> {
    if let Value::Map(_) = &node.value {
        reader.context = "repo: ".to_owned();
        let fields = reader.fields("repo", node, &FOLDER_KEYS, Unknown::Refused, |_| None);
        reader.context.clear();
        let Some(from) = fields?.get("from") else {
            reader.wrong(node.at, "repo: `from` with a folder is missing");
            return None;
        };
        let from = reader.text("from", from, SHORT_BYTES_MAX)?;
        return Some(Repo::Folder(FolderRepo { from }));
    }
    let location = reader.text("repo", node, SHORT_BYTES_MAX)?;
    let authority = location
        .split_once("://")
        .map(|(_, rest)| rest.split('/').next().unwrap_or(rest));
    let credentials = authority.and_then(|authority| authority.rsplit_once('@'));
    if credentials.is_some_and(|(user, _)| user.contains(':')) {
        reader.wrong_with(
            node.at,
            "`repo`: the URL contains a password, which would be stored and shown",
            "remove it and use git's credential helper",
        );
        return None;
    }
    Some(Repo::Location(location))
}

fn agents(reader: &mut Reader<'_>, node: &Node) -> BTreeMap<String, AgentDefinition> {
    let mut agents = BTreeMap::new();
    let Some(entries) = reader.entries("agents", node) else {
        return agents;
    };
    if entries.len() > AGENTS_MAX {
        reader.wrong(node.at, &format!("more than {AGENTS_MAX} agents"));
        return agents;
    }
    for (name, at, value) in entries {
        reader.context = format!("agent {}: ", quote(name));
        let built_in = AgentKind::ALL.iter().any(|kind| kind.as_str() == name);
        if !is_plain_name(name) {
            reader.wrong(at, "a name consists of letters, digits, `.`, `_` and `-`");
        } else if built_in {
            reader.wrong_with(
                at,
                "the name is a built-in agent's",
                "declare yours under another name, such as `my-codex`",
            );
        } else if agents.contains_key(name) {
            reader.wrong(at, "declared twice");
        }
        // A broken definition still declares the name: one mistake, one message.
        let definition = agent(reader, value).unwrap_or(AgentDefinition {
            kind: AgentKind::Command,
            command: None,
            env: BTreeMap::new(),
        });
        agents.insert(name.to_owned(), definition);
        reader.context.clear();
    }
    agents
}

fn agent(reader: &mut Reader<'_>, node: &Node) -> Option<AgentDefinition> {
    let fields = reader.fields("agent", node, &AGENT_KEYS, Unknown::Refused, |_| None)?;
    let Some(kind) = fields.get("kind") else {
        reader.wrong_with(
            node.at,
            "`kind` is missing",
            "one of `command`, `codex`, `claude`, `acp`, `scripted`",
        );
        return None;
    };
    let kind = reader.choice(
        "kind",
        kind,
        &AgentKind::ALL.map(|kind| (kind.as_str(), kind)),
    )?;
    let command = match fields.get("command") {
        Some(node) => Some(program(reader, node)?),
        None if kind == AgentKind::Acp => {
            reader.wrong_with(
                node.at,
                "an agent of kind `acp` needs a `command`",
                "for instance `command: [my-agent, --acp]`",
            );
            return None;
        }
        None => None,
    };
    let mut env = BTreeMap::new();
    for (name, at, value) in fields
        .get("env")
        .map_or_else(Vec::new, |node| variables(reader, "env", node))
    {
        let word = reader.word(name, value, VARIABLE_BYTES_MAX);
        if let Some(word) = word
            && env.insert(name.to_owned(), word).is_some()
        {
            reader.wrong(at, &format!("`{name}` is given twice"));
        }
    }
    Some(AgentDefinition { kind, command, env })
}

fn program(reader: &mut Reader<'_>, node: &Node) -> Option<Vec<String>> {
    if let Value::Scalar(..) = node.value {
        let program = reader.word("command", node, SHORT_BYTES_MAX)?;
        if program.contains(char::is_whitespace) {
            let words: Vec<&str> = program.split_whitespace().collect();
            reader.wrong_with(
                node.at,
                "`command` is one program name or a list",
                format!("write `command: [{}]`", words.join(", ")),
            );
            return None;
        }
        return Some(vec![program]);
    }
    let (words, _) = reader.texts("command", node, |reader, key, item| {
        reader.word(key, item, SHORT_BYTES_MAX)
    })?;
    if words.is_empty() {
        reader.wrong(node.at, "`command` is empty");
        return None;
    }
    Some(words)
}

fn integrate(reader: &mut Reader<'_>, node: &Node) -> Option<Integrate> {
    if let Some(Meaning::Bool(switch)) = node.meaning() {
        return Some(Integrate::Switch(switch));
    }
    if let Some(Meaning::Text("yes" | "on" | "Yes" | "On")) = node.meaning() {
        reader.wrong_with(
            node.at,
            "`integrate`: expected `true` or a mapping",
            "`yes` and `on` are texts in YAML 1.2; write `integrate: true`",
        );
        return None;
    }
    if let Some(Meaning::Text("no" | "off" | "No" | "Off")) = node.meaning() {
        reader.wrong_with(
            node.at,
            "`integrate`: expected `false` or a mapping",
            "`no` and `off` are texts in YAML 1.2; write `integrate: false`",
        );
        return None;
    }
    reader.context = "integrate: ".to_owned();
    let fields = reader.fields("integrate", node, &INTEGRATE_KEYS, Unknown::Refused, |_| {
        None
    });
    let settings = fields.map(|fields| {
        let mut settings = IntegrateSettings::default();
        if let Some(node) = fields.get("verify") {
            settings.verify = verify(reader, node).unwrap_or_default();
        }
        if let Some(node) = fields.get("verify_timeout") {
            settings.verify_timeout = limit(reader, "verify_timeout", node);
        }
        if let Some(node) = fields.get("on_conflict") {
            let policies = [("fail", OnConflict::Fail)];
            settings.on_conflict = reader
                .choice("on_conflict", node, &policies)
                .unwrap_or_default();
        }
        settings
    });
    reader.context.clear();
    settings.map(Integrate::With)
}

fn tasks(reader: &mut Reader<'_>, node: &Node, document: &mut PlanDocument, marks: &mut Marks) {
    marks.tasks_key = node.at;
    let Some(items) = reader.items("tasks", node) else {
        marks.named = false;
        return;
    };
    let keys = task_keys();
    for (index, item) in items.iter().enumerate() {
        reader.context = task_context(item, index);
        let before = reader.problems.count();
        let fields = reader.fields("task", item, &keys, Unknown::Refused, |key| {
            if key == "cwd" {
                return Some(
                    "in codex-par files every task has `cwd` and `tasks` is the only other key; \
                     a plan names one `repo`"
                        .to_owned(),
                );
            }
            if matches!(key, "terminal" | "tty" | "pty") {
                return Some(
                    "agents have no terminal and nothing to read; a program that insists on one \
                     can run under `script -qec 'PROGRAM' /dev/null`"
                        .to_owned(),
                );
            }
            if PLAN_KEYS.contains(&key) {
                return Some(format!("`{key}` belongs to the top of the plan"));
            }
            if let Some(instead) = gone(key) {
                return Some(instead);
            }
            merge_key(key)
        });
        if let Some(fields) = fields {
            let whole = reader.problems.count() == before;
            task(reader, &fields, document, marks);
            if let Some(place) = marks.tasks.last_mut() {
                place.whole &= whole;
            }
        } else {
            marks.named = false;
        }
        reader.context.clear();
    }
}

/// Names a task for messages, before anything of it is read.
pub(super) fn task_context(node: &Node, index: usize) -> String {
    let name = match &node.value {
        Value::Map(entries) => entries.iter().find_map(|(key, value)| match &key.value {
            Value::Scalar(key, _) if &**key == "name" => value.meaning(),
            _ => None,
        }),
        _ => None,
    };
    match name {
        Some(Meaning::Text(name)) if !name.is_empty() => format!("task {}: ", quote(name)),
        _ => format!("task {}: ", index + 1),
    }
}

/// Reads a task and adds it to the document.
pub(super) fn task(
    reader: &mut Reader<'_>,
    fields: &Fields<'_>,
    document: &mut PlanDocument,
    all: &mut Marks,
) {
    let mut entry = TaskEntry::default();
    let mut marks = TaskMarks {
        task: fields.at,
        name: fields.at,
        whole: true,
        ..TaskMarks::default()
    };
    match fields.get("name") {
        Some(node) => {
            marks.name = node.at;
            let name = reader.text("name", node, SHORT_BYTES_MAX);
            all.named &= name.is_some();
            entry.name = name.unwrap_or_default();
        }
        None => {
            all.named = false;
            reader.wrong(fields.at, "`name` is missing");
        }
    }
    if let Some(node) = fields.get("prompt") {
        entry.prompt = reader.text("prompt", node, PROMPT_BYTES_MAX);
    }
    if let Some(node) = fields.get("run") {
        marks.run = node.at;
        entry.run = reader.word("run", node, SCRIPT_BYTES_MAX);
    }
    (entry.settings, marks.settings) = settings(reader, fields);
    let given = |key: &str| fields.get(key).is_some();
    marks.whole = given("prompt") == entry.prompt.is_some()
        && given("run") == entry.run.is_some()
        && given("agent") == entry.settings.agent.is_some();
    let short =
        |reader: &mut Reader<'_>, key: &str, item: &Node| reader.text(key, item, SHORT_BYTES_MAX);
    if let Some(node) = fields.get("depends_on") {
        (entry.depends_on, marks.depends_on) =
            reader.texts("depends_on", node, short).unwrap_or_default();
    }
    if let Some(node) = fields.get("paths") {
        (entry.paths, marks.paths) = reader.texts("paths", node, short).unwrap_or_default();
    }
    document.tasks.push(entry);
    all.tasks.push(marks);
}

/// True for a name of letters, digits, `.`, `_` and `-` that is not too long.
pub(crate) fn is_plain_name(name: &str) -> bool {
    (1..=limits::TASK_NAME_BYTES).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}
