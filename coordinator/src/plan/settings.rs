//! Settings that tasks and `defaults` have in common, from the tree.

use std::collections::BTreeMap;

use coordinator_core::limits;

use super::decode::{SCRIPT_BYTES_MAX, SHORT_BYTES_MAX};
use super::document::{Hooks, HooksFolder, Never, Prefer, Resources, Settings, ValueFrom};
use super::fields::{Fields, Reader, Unknown};
use super::model::model_settings;
use super::problem::{Position, quote};
use super::tree::{Meaning, Node, Value};
use super::values::Duration;

/// Shell commands of one verify.
pub const VERIFY_COMMANDS_MAX: usize = 256;
/// Variables of a task, and bytes of one: they share one process's argument space.
pub(crate) const VARIABLES_MAX: usize = 256;
pub(crate) const VARIABLE_BYTES_MAX: usize = 32_768;
const LABELS_MAX: usize = 64;
/// Far above any host; keeps sums far from overflow.
const RESOURCE_MAX: i64 = 1_000_000;
pub(super) const SETTINGS_KEYS: [&str; 26] = [
    "agent",
    "verify",
    "verify_timeout",
    "timeout",
    "idle_timeout",
    "expected",
    "retries",
    "priority",
    "labels",
    "resources",
    "pool",
    "prefer",
    "env",
    "secrets",
    "disk",
    "hooks",
    "model",
    "sandbox",
    "persona",
    "approvals",
    "change",
    "acceptance",
    "output_schema",
    "images",
    "add_dirs",
    "codex",
];
pub(super) const HOOKS_KEYS: [&str; 1] = ["path"];
const PLACE_KEYS: [&str; 3] = ["env", "file", "secret"];
pub(super) const RESOURCE_KEYS: [&str; 3] = ["cpus", "memory", "gpus"];

/// Places of settings.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SettingsMarks {
    pub(super) agent: Position,
    pub(super) verify: Position,
    pub(super) hooks: Position,
    pub(super) change: Position,
    pub(super) persona: Position,
    pub(super) expected: Position,
    pub(super) sandbox: Position,
    pub(super) codex: Position,
}

/// Reads the settings among a task's or the defaults' keys.
pub(super) fn settings(reader: &mut Reader<'_>, fields: &Fields<'_>) -> (Settings, SettingsMarks) {
    let mut settings = Settings::default();
    let mut marks = SettingsMarks::default();
    if let Some(node) = fields.get("agent") {
        marks.agent = node.at;
        settings.agent = reader.text("agent", node, SHORT_BYTES_MAX);
    }
    if let Some(node) = fields.get("verify") {
        marks.verify = node.at;
        settings.verify = verify(reader, node);
    }
    for (key, place) in [
        ("verify_timeout", &mut settings.verify_timeout),
        ("timeout", &mut settings.timeout),
        ("idle_timeout", &mut settings.idle_timeout),
        ("expected", &mut settings.expected),
    ] {
        if let Some(node) = fields.get(key) {
            *place = limit(reader, key, node);
        }
    }
    if let Some(node) = fields.get("expected") {
        marks.expected = node.at;
    }
    if let Some(node) = fields.get("retries") {
        settings.retries = reader
            .integer("retries", node, 0, i64::from(limits::RETRIES_MAX))
            .and_then(|n| u32::try_from(n).ok());
    }
    if let Some(node) = fields.get("priority") {
        settings.priority = reader
            .integer("priority", node, i16::MIN.into(), i16::MAX.into())
            .and_then(|n| i16::try_from(n).ok());
    }
    if let Some(node) = fields.get("labels") {
        settings.labels = labels(reader, node);
    }
    if let Some(node) = fields.get("resources") {
        settings.resources = resources(reader, node);
    }
    if let Some(node) = fields.get("pool") {
        settings.pool = reader.text("pool", node, SHORT_BYTES_MAX);
    }
    if let Some(node) = fields.get("prefer") {
        let places = [
            ("anywhere", Prefer::Anywhere),
            ("dependencies", Prefer::Dependencies),
        ];
        settings.prefer = reader.choice("prefer", node, &places);
    }
    if let Some(node) = fields.get("env") {
        (settings.env, settings.env_from) = env(reader, node);
    }
    if let Some(node) = fields.get("secrets") {
        settings.secrets = secrets(reader, node);
        let twice = |name: &&String| {
            settings.env.contains_key(*name) || settings.env_from.contains_key(*name)
        };
        for name in settings.secrets.keys().filter(twice) {
            reader.wrong(
                node.at,
                &format!("`{name}` is given under `env` and under `secrets`"),
            );
        }
    }
    if let Some(node) = fields.get("disk") {
        settings.disk = reader.size("disk", node);
    }
    if let Some(node) = fields.get("hooks") {
        marks.hooks = node.at;
        settings.hooks = hooks(reader, node);
    }
    for (key, place) in [
        ("change", &mut marks.change),
        ("persona", &mut marks.persona),
        ("sandbox", &mut marks.sandbox),
        ("codex", &mut marks.codex),
    ] {
        if let Some(node) = fields.get(key) {
            *place = node.at;
        }
    }
    settings.model = model_settings(reader, fields);
    (settings, marks)
}

/// Reads which folder's hooks run.
fn hooks(reader: &mut Reader<'_>, node: &Node) -> Option<Hooks> {
    if node.meaning() == Some(Meaning::Text("never")) {
        return Some(Hooks::Never(Never::Never));
    }
    let Value::Map(_) = &node.value else {
        let message = format!(
            "`hooks`: expected `never` or a mapping, found {}",
            node.found()
        );
        let hint = "write `hooks: { path: .githooks }` with the folder of the repository that holds \
                    them: those in `.git/hooks` are not part of what was committed";
        reader.wrong_with(node.at, &message, hint);
        return None;
    };
    let before = reader.problems.count();
    let fields = reader.fields("hooks", node, &HOOKS_KEYS, Unknown::Refused, |_| None)?;
    let Some(place) = fields.get("path") else {
        // Another key stands for it, then, and that was said.
        if reader.problems.count() > before {
            return None;
        }
        reader.wrong(
            node.at,
            "`hooks`: `path` with a folder of the repository is missing",
        );
        return None;
    };
    let path = reader.text("path", place, SHORT_BYTES_MAX)?;
    let trimmed = path.trim_end_matches('/');
    let inside = trimmed
        .split('/')
        .all(|part| !matches!(part, "" | "." | "..") && !part.eq_ignore_ascii_case(".git"));
    if !inside || path.contains(char::is_control) {
        reader.wrong_with(
            place.at,
            &format!("`hooks`: {} is no folder within the repository", quote(&path)),
            "name a folder that is committed, relative to the repository's root, such as `.githooks`",
        );
        return None;
    }
    let path = trimmed.to_owned();
    Some(Hooks::In(HooksFolder { path }))
}

/// Reads a time limit.
pub(super) fn limit(reader: &mut Reader<'_>, key: &str, node: &Node) -> Option<Duration> {
    reader.duration(key, node, Duration(limits::TASK_TIMEOUT_MAX))
}

/// Reads the commands of a verify.
pub(super) fn verify(reader: &mut Reader<'_>, node: &Node) -> Option<Vec<String>> {
    let (commands, _) = reader.texts("verify", node, |reader, key, item| {
        reader.word(key, item, SCRIPT_BYTES_MAX)
    })?;
    if commands.len() > VERIFY_COMMANDS_MAX {
        reader.wrong_with(
            node.at,
            &format!("`verify` has more than {VERIFY_COMMANDS_MAX} commands"),
            "put them into a script of the repository",
        );
        return None;
    }
    Some(commands)
}

fn labels(reader: &mut Reader<'_>, node: &Node) -> Option<Vec<String>> {
    let (labels, _) = reader.texts("labels", node, |reader, key, item| {
        let label = reader.text(key, item, SHORT_BYTES_MAX)?;
        let (name, _) = label.split_once('=').unwrap_or((&label, ""));
        if name.is_empty() || label.contains(|c: char| c.is_whitespace() || c.is_control()) {
            reader.wrong(item.at, "a label is `key` or `key=value`, without spaces");
            return None;
        }
        Some(label)
    })?;
    if labels.len() > LABELS_MAX {
        reader.wrong(node.at, &format!("more than {LABELS_MAX} labels"));
        return None;
    }
    Some(labels)
}

fn resources(reader: &mut Reader<'_>, node: &Node) -> Resources {
    let mut resources = Resources::default();
    let Some(fields) = reader.fields("resources", node, &RESOURCE_KEYS, Unknown::Refused, |_| {
        None
    }) else {
        return resources;
    };
    for (key, place) in [("cpus", &mut resources.cpus), ("gpus", &mut resources.gpus)] {
        if let Some(node) = fields.get(key) {
            *place = reader
                .integer(key, node, 0, RESOURCE_MAX)
                .and_then(|n| u32::try_from(n).ok());
        }
    }
    if let Some(node) = fields.get("memory") {
        resources.memory = reader.size("memory", node);
    }
    resources
}

type Env = (BTreeMap<String, String>, BTreeMap<String, ValueFrom>);

fn env(reader: &mut Reader<'_>, node: &Node) -> Env {
    let (mut env, mut env_from) = Env::default();
    for (name, at, value) in variables(reader, "env", node) {
        if env.contains_key(name) || env_from.contains_key(name) {
            reader.wrong(at, &format!("`{name}` is given twice"));
            continue;
        }
        // An empty value is a value here, unlike everywhere else.
        match &value.value {
            Value::Scalar(text, _) if text.is_empty() => {
                env.insert(name.to_owned(), String::new());
            }
            Value::Map(_) => {
                env_from
                    .extend(value_from(reader, name, value).map(|from| (name.to_owned(), from)));
            }
            Value::Scalar(..) | Value::List(_) => {
                let word = reader.word(name, value, VARIABLE_BYTES_MAX);
                env.extend(word.map(|word| (name.to_owned(), word)));
            }
        }
    }
    (env, env_from)
}

fn secrets(reader: &mut Reader<'_>, node: &Node) -> BTreeMap<String, ValueFrom> {
    let mut secrets = BTreeMap::new();
    if let Value::List(items) = &node.value {
        for item in items {
            let Some(name) = reader.text("secrets", item, SHORT_BYTES_MAX) else {
                continue;
            };
            if is_variable(reader, item.at, &name)
                && secrets
                    .insert(name.clone(), ValueFrom::Secret(name.clone()))
                    .is_some()
            {
                reader.wrong(item.at, &format!("`{name}` is given twice"));
            }
        }
        if secrets.len() > VARIABLES_MAX {
            reader.wrong(node.at, &format!("more than {VARIABLES_MAX} secrets"));
        }
        return secrets;
    }
    if let Value::Scalar(..) = &node.value {
        reader.wrong_with(
            node.at,
            "`secrets`: expected a list of names or a mapping, found one value",
            "write `secrets: [NAME]`",
        );
        return secrets;
    }
    for (name, at, value) in variables(reader, "secrets", node) {
        let from = match &value.value {
            Value::Map(_) => value_from(reader, name, value),
            Value::Scalar(..) | Value::List(_) => secret_name(reader, name, value),
        };
        if let Some(from) = from
            && secrets.insert(name.to_owned(), from).is_some()
        {
            reader.wrong(at, &format!("`{name}` is given twice"));
        }
    }
    secrets
}

/// Reads the name of a secret. What is none may be the value itself, so it is not shown.
fn secret_name(reader: &mut Reader<'_>, key: &str, node: &Node) -> Option<ValueFrom> {
    if let Value::List(_) | Value::Map(_) = &node.value {
        reader.wrong(node.at, &format!("`{key}`: expected the name of a secret"));
        return None;
    }
    let Value::Scalar(text, _) = &node.value else {
        return None;
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if text.is_empty() || text.len() > SHORT_BYTES_MAX || !text.chars().all(plain) {
        reader.wrong_with(
            node.at,
            &format!("`{key}`: expected the name of a secret, of letters, digits and `_`"),
            "a plan holds no values of secrets, only the names under which a worker has them",
        );
        return None;
    }
    Some(ValueFrom::Secret(text.to_string()))
}

/// Reads where on the worker a value comes from.
fn value_from(reader: &mut Reader<'_>, name: &str, node: &Node) -> Option<ValueFrom> {
    let fields = reader.fields(name, node, &PLACE_KEYS, Unknown::Refused, |_| None)?;
    let mut found = PLACE_KEYS
        .iter()
        .filter_map(|key| fields.get(key).map(|node| (*key, node)));
    let (Some((key, place)), None) = (found.next(), found.next()) else {
        reader.wrong_with(
            node.at,
            &format!("`{name}` comes from one place"),
            "one of `env: VARIABLE`, `file: /path`, `secret: NAME`, all on the worker",
        );
        return None;
    };
    if key == "secret" {
        return secret_name(reader, key, place);
    }
    let text = reader.text(key, place, SHORT_BYTES_MAX)?;
    match key {
        "env" => Some(ValueFrom::Env(text)),
        _ if text.starts_with('/') => Some(ValueFrom::File(text)),
        _ => {
            reader.wrong_with(
                place.at,
                &format!("`file`: {} is no absolute path", quote(&text)),
                "the file is on the worker's host, where the plan's own folder is not known",
            );
            None
        }
    }
}

/// Gives the variables of a mapping, without those that have no proper name.
pub(super) fn variables<'t>(
    reader: &mut Reader<'_>,
    key: &str,
    node: &'t Node,
) -> Vec<(&'t str, Position, &'t Node)> {
    let Some(mut entries) = reader.entries(key, node) else {
        return Vec::new();
    };
    if entries.len() > VARIABLES_MAX {
        reader.wrong(node.at, &format!("more than {VARIABLES_MAX} variables"));
        return Vec::new();
    }
    entries.retain(|(name, at, _)| is_variable(reader, *at, name));
    entries
}

fn is_variable(reader: &mut Reader<'_>, at: Position, name: &str) -> bool {
    match variable_fault(name) {
        Some(fault) => {
            reader.wrong(at, &fault);
            false
        }
        None => true,
    }
}

/// Says why nothing can be a variable of this name.
pub(crate) fn variable_fault(name: &str) -> Option<String> {
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !plain || name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Some(format!("{} is no variable's name", quote(name)));
    }
    name.starts_with("MUSTER_")
        .then(|| format!("`{name}`: names with MUSTER_ are Muster's own"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn read(task: &str) -> Result<crate::plan::Plan, String> {
        let text = format!("tasks:\n- {{name: a, run: echo, {task}}}\n");
        crate::plan::parse("p", text.as_bytes(), &BTreeMap::new()).map_err(|e| e.to_string())
    }

    #[test]
    fn values_come_from_the_plan_or_from_places_on_the_worker() {
        let plan = read(
            "env: {A: b, B: {env: HOST_B}, C: {secret: NAMED}}, \
             secrets: {D: NAMED, E: {file: /etc/key}, F: {env: TOKEN}}, disk: 2 GB",
        );
        let plan = plan.unwrap();
        let settings = &plan.document.tasks[0].settings;
        assert_eq!(settings.env, [("A".into(), "b".into())].into());
        let from = [
            ("B".into(), ValueFrom::Env("HOST_B".into())),
            ("C".into(), ValueFrom::Secret("NAMED".into())),
        ];
        assert_eq!(settings.env_from, from.into());
        let secrets = [
            ("D".into(), ValueFrom::Secret("NAMED".into())),
            ("E".into(), ValueFrom::File("/etc/key".into())),
            ("F".into(), ValueFrom::Env("TOKEN".into())),
        ];
        assert_eq!(settings.secrets, secrets.into());
        assert_eq!(settings.disk.map(|size| size.0), Some(2_000_000_000));
        let names = read("secrets: [A, B]").unwrap();
        let expected = ["A", "B"].map(|name| (name.into(), ValueFrom::Secret(name.into())));
        assert_eq!(names.document.tasks[0].settings.secrets, expected.into());
    }

    #[test]
    fn a_value_without_one_place_is_explained() {
        for (task, said) in [
            ("secrets: [A, A]", "`A` is given twice"),
            ("secrets: [1A]", "\"1A\" is no variable's name"),
            ("secrets: {MUSTER_X: a}", "Muster's own"),
            ("env: {A: {}}", "`A` comes from one place"),
            ("env: {A: {env: B, file: /c}}", "one of `env: VARIABLE`"),
            ("secrets: {A: {file: key}}", "no absolute path"),
            ("secrets: {A: {fiel: /key}}", "did you mean `file`?"),
            (
                "env: {A: b}, secrets: [A]",
                "under `env` and under `secrets`",
            ),
            ("secrets: 1", "write `secrets: [NAME]`"),
            ("disk: 5", "a size such as"),
            ("hooks: run", "write `hooks: { path: .githooks }`"),
            ("hooks: true", "expected `never` or a mapping, found true"),
            (
                "hooks: {}",
                "`path` with a folder of the repository is missing",
            ),
            ("hooks: {pth: x}", "did you mean `path`?"),
            ("hooks: {path: 1}", "put it in quotes"),
            ("hooks: {path: ../x}", "no folder within the repository"),
            ("hooks: {path: /etc}", "no folder within the repository"),
            (
                "hooks: {path: .git/hooks}",
                "name a folder that is committed",
            ),
            (
                "hooks: {path: .githooks}",
                "`hooks` are folders of a repository",
            ),
        ] {
            let problems = read(task).unwrap_err();
            assert!(problems.contains(said), "{task}: {problems}");
        }
    }
}
