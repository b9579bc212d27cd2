//! Files of codex-par: recognised and mapped to a plan, so that they run unchanged.
//!
//! What the foundation has words for becomes part of the plan; the other options of a task are
//! kept as they are for the worker that starts codex.

use std::collections::BTreeMap;

use serde_json::{Map, Number, Value as Json};

use super::decode::{Marks, TaskMarks, task_context};
use super::document::{CodexEntry, PlanDocument, Repo, Settings, TaskEntry};
use super::fields::{Fields, Reader, Unknown};
use super::settings::SettingsMarks;
use super::tree::{Meaning, Node, Value};

const KEYS: [&str; 24] = [
    "name",
    "cwd",
    "prompt",
    "depends_on",
    "in_place",
    "kind",
    "sandbox",
    "full_auto",
    "model",
    "profile",
    "config_overrides",
    "images",
    "add_dirs",
    "output_schema",
    "ephemeral",
    "enable_features",
    "disable_features",
    "agent_id",
    "thread_id",
    "uncommitted",
    "base",
    "commit",
    "review_title",
    "ask_for_approval",
];
/// Options that are kept as they are.
const KEPT: [&str; 18] = [
    "kind",
    "sandbox",
    "full_auto",
    "model",
    "profile",
    "config_overrides",
    "images",
    "add_dirs",
    "output_schema",
    "ephemeral",
    "enable_features",
    "disable_features",
    "agent_id",
    "thread_id",
    "uncommitted",
    "base",
    "commit",
    "review_title",
];
/// Options of `kind: review` alone.
const REVIEW: [&str; 4] = ["uncommitted", "base", "commit", "review_title"];
/// What a review looks at.
const SCOPE: [&str; 3] = ["uncommitted", "base", "commit"];
const TEXTS: [&str; 8] = [
    "model",
    "profile",
    "output_schema",
    "agent_id",
    "thread_id",
    "base",
    "commit",
    "review_title",
];
const LISTS: [&str; 5] = [
    "config_overrides",
    "images",
    "add_dirs",
    "enable_features",
    "disable_features",
];
const SWITCHES: [&str; 2] = ["ephemeral", "uncommitted"];
const PATH_BYTES_MAX: usize = 4_096;

/// True for a file whose only top-level key is `tasks` and whose tasks all have `cwd`.
pub(super) fn is_codex_par(root: &Node) -> bool {
    let Value::Map(entries) = &root.value else {
        return false;
    };
    let [(key, tasks)] = entries.as_slice() else {
        return false;
    };
    let (Value::Scalar(key, _), Value::List(tasks)) = (&key.value, &tasks.value) else {
        return false;
    };
    &**key == "tasks" && !tasks.is_empty() && tasks.iter().all(|task| has_cwd(task))
}

fn has_cwd(task: &Node) -> bool {
    let Value::Map(entries) = &task.value else {
        return false;
    };
    entries
        .iter()
        .any(|(key, _)| matches!(&key.value, Value::Scalar(key, _) if &**key == "cwd"))
}

/// Reads a codex-par file for which [`is_codex_par`] holds.
pub(super) fn plan(reader: &mut Reader<'_>, root: &Node) -> Option<(PlanDocument, Marks)> {
    let Value::Map(entries) = &root.value else {
        return None;
    };
    let (_, tasks) = entries.first()?;
    let Value::List(items) = &tasks.value else {
        return None;
    };
    let mut document = PlanDocument {
        defaults: Settings {
            agent: Some("codex".to_owned()),
            ..Settings::default()
        },
        ..PlanDocument::default()
    };
    let mut marks = Marks {
        plan: root.at,
        tasks_key: tasks.at,
        named: true,
        ..Marks::default()
    };
    let mut folders = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        reader.context = task_context(item, index);
        let fields = reader.fields("task", item, &KEYS, Unknown::Tolerated, |_| {
            Some("ignored, as codex-par does".to_owned())
        });
        if let Some(fields) = fields {
            let (entry, place, folder) = task(reader, &fields);
            marks.named &= !entry.name.is_empty();
            document.tasks.push(entry);
            marks.tasks.push(place);
            folders.push(folder);
        } else {
            marks.named = false;
        }
        reader.context.clear();
    }
    place_folders(reader, &mut document, &marks, &folders);
    Some((document, marks))
}

/// A path in parts; the first is `/` for an absolute one.
type Folder = Vec<String>;

fn task(reader: &mut Reader<'_>, fields: &Fields<'_>) -> (TaskEntry, TaskMarks, Option<Folder>) {
    let mut entry = TaskEntry::default();
    let mut codex = CodexEntry::default();
    let mut marks = TaskMarks {
        task: fields.at,
        name: fields.at,
        whole: true,
        settings: SettingsMarks::default(),
        ..TaskMarks::default()
    };
    match fields.get("name") {
        Some(node) => {
            marks.name = node.at;
            entry.name = reader
                .text("name", node, PATH_BYTES_MAX)
                .unwrap_or_default();
        }
        None => reader.wrong(fields.at, "`name` is missing"),
    }
    if let Some(node) = fields.get("ask_for_approval") {
        reader.wrong_with(
            node.at,
            "`ask_for_approval` was removed from codex-par",
            "delete it; say what the agent may do with `sandbox`",
        );
    }
    let review = match fields.get("kind") {
        Some(node) => reader
            .choice("kind", node, &[("exec", false), ("review", true)])
            .unwrap_or(false),
        None => false,
    };
    let mut reads_only = false;
    if let Some(node) = fields.get("sandbox") {
        let levels = [
            ("read-only", true),
            ("read-write", false),
            ("danger-full-access", false),
        ];
        reads_only = reader.choice("sandbox", node, &levels).unwrap_or(false);
    }
    if let Some(node) = fields.get("full_auto") {
        if reader.switch("full_auto", node) == Some(true) && reads_only {
            reader.wrong_with(
                node.at,
                "`full_auto: true` writes, and `sandbox: read-only` does not allow that",
                "leave `full_auto` away, or say `full_auto: false`",
            );
        } else {
            reader.warnings.add_with(
                node.at,
                format!("{}`full_auto` has no effect", reader.context),
                "tasks always run without a person at the keyboard; `sandbox` says what they may do",
            );
        }
    }
    for key in REVIEW {
        if let Some(node) = fields.get(key)
            && !review
        {
            reader.wrong(node.at, &format!("`{key}` needs `kind: review`"));
        }
    }
    options(reader, fields);
    let scope = SCOPE.iter().find(|key| is_given(fields.get(key)));
    match fields.get("prompt") {
        // A review of a given scope has an empty prompt.
        Some(node) if review && scope.is_some() && node.meaning() == Some(Meaning::Text("")) => {}
        Some(node) => {
            if let Some(scope) = scope.filter(|_| review) {
                reader.wrong_with(
                    node.at,
                    &format!("a review has either `{scope}` or a prompt"),
                    "codex takes one of them; make the prompt `\"\"`, or leave the scope away",
                );
            }
            entry.prompt = reader.text("prompt", node, super::decode::PROMPT_BYTES_MAX);
            marks.whole = entry.prompt.is_some();
        }
        None if review && scope.is_some() => {}
        None => {
            marks.whole = false;
            reader.wrong(fields.at, "`prompt` is missing");
        }
    }
    if let Some(node) = fields.get("depends_on") {
        let names = reader.texts("depends_on", node, |reader, key, item| {
            reader.text(key, item, PATH_BYTES_MAX)
        });
        (entry.depends_on, marks.depends_on) = names.unwrap_or_default();
    }
    if let Some(node) = fields.get("in_place") {
        codex.in_place = reader.switch("in_place", node).unwrap_or(false);
    }
    codex.options = KEPT
        .iter()
        .filter_map(|key| Some(((*key).to_owned(), json(fields.get(key)?))))
        .collect::<BTreeMap<_, _>>();
    // Programs of the file's users read what `codex exec --json` writes.
    codex
        .options
        .insert("protocol".to_owned(), Json::from("exec"));
    let cwd = fields
        .get("cwd")
        .and_then(|node| reader.text("cwd", node, PATH_BYTES_MAX));
    let folder = cwd.as_deref().map(parts);
    codex.cwd = cwd.unwrap_or_default();
    if folder.is_none() && fields.get("cwd").is_none() {
        reader.wrong(fields.at, "`cwd` is empty");
    }
    entry.codex = Some(codex);
    (entry, marks, folder)
}

/// Checks the types of the options that are kept as they are.
fn options(reader: &mut Reader<'_>, fields: &Fields<'_>) {
    for key in TEXTS {
        if let Some(node) = fields.get(key) {
            reader.text(key, node, PATH_BYTES_MAX);
        }
    }
    for key in LISTS {
        if let Some(node) = fields.get(key) {
            reader.texts(key, node, |reader, key, item| {
                reader.text(key, item, PATH_BYTES_MAX)
            });
        }
    }
    for key in SWITCHES {
        if let Some(node) = fields.get(key) {
            reader.switch(key, node);
        }
    }
}

/// Tells whether an option asks for something: `false` does not.
fn is_given(node: Option<&Node>) -> bool {
    node.is_some_and(|node| node.meaning() != Some(Meaning::Bool(false)))
}

/// Splits a path and resolves `.` and `..` by their names.
fn parts(path: &str) -> Folder {
    let mut folder = Folder::new();
    if path.starts_with('/') {
        folder.push("/".to_owned());
    }
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match folder.last().map(String::as_str) {
                Some("/") => {}
                Some("..") | None => folder.push("..".to_owned()),
                Some(_) => {
                    folder.pop();
                }
            },
            part => folder.push(part.to_owned()),
        }
    }
    folder
}

/// Makes the deepest folder that holds all tasks' folders the plan's repository path.
fn place_folders(
    reader: &mut Reader<'_>,
    document: &mut PlanDocument,
    marks: &Marks,
    folders: &[Option<Folder>],
) {
    let mut common: Option<&[String]> = None;
    for folder in folders.iter().flatten() {
        common = Some(match common {
            None => folder,
            Some(common) => {
                let same = common
                    .iter()
                    .zip(folder)
                    .take_while(|(a, b)| a == b)
                    .count();
                common.get(..same).unwrap_or_default()
            }
        });
    }
    let common = common.unwrap_or_default().to_vec();
    let absolute = |folder: &Folder| folder.first().is_some_and(|part| part == "/");
    let first_absolute = folders.iter().flatten().next().map(absolute);
    for (index, folder) in folders.iter().enumerate() {
        let Some(folder) = folder else { continue };
        let at = marks
            .tasks
            .get(index)
            .map(|task| task.task)
            .unwrap_or_default();
        let rest = folder.get(common.len()..).unwrap_or_default();
        if Some(absolute(folder)) != first_absolute || rest.iter().any(|part| part == "..") {
            reader.wrong_with(
                at,
                "`cwd` is in another place than that of the first task",
                "all tasks of a run work in one repository; make all paths absolute, or all \
                 relative to the file",
            );
            return;
        }
        if let Some(codex) = document
            .tasks
            .get_mut(index)
            .and_then(|task| task.codex.as_mut())
        {
            codex.folder = rest.join("/");
        }
    }
    let path = match common.split_first() {
        None => ".".to_owned(),
        Some((root, rest)) if root == "/" => format!("/{}", rest.join("/")),
        Some(_) => common.join("/"),
    };
    document.repo = Some(Repo::Location(path));
}

/// Gives a value as JSON; nesting is bounded by the tree's.
pub(super) fn json(node: &Node) -> Json {
    match &node.value {
        Value::Scalar(text, _) => match node.meaning() {
            None | Some(Meaning::Null) => Json::Null,
            Some(Meaning::Bool(switch)) => Json::Bool(switch),
            Some(Meaning::Integer(number)) => Json::Number(number.into()),
            Some(Meaning::Float) => text
                .parse()
                .ok()
                .and_then(Number::from_f64)
                .map_or_else(|| Json::String(text.to_string()), Json::Number),
            Some(Meaning::Text(text)) => Json::String(text.to_owned()),
        },
        Value::List(items) => Json::Array(items.iter().map(|item| json(item)).collect()),
        Value::Map(entries) => Json::Object(
            entries
                .iter()
                .filter_map(|(key, value)| match &key.value {
                    Value::Scalar(key, _) => Some((key.to_string(), json(value))),
                    Value::List(_) | Value::Map(_) => None,
                })
                .collect::<Map<_, _>>(),
        ),
    }
}
