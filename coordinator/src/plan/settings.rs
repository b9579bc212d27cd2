//! Settings that tasks and `defaults` have in common, from the tree.

use std::collections::BTreeMap;

use coordinator_core::limits;

use super::decode::{SCRIPT_BYTES_MAX, SHORT_BYTES_MAX};
use super::document::{Resources, Settings};
use super::fields::{Fields, Reader, Unknown};
use super::problem::{Position, quote};
use super::tree::{Node, Value};
use super::values::Duration;

/// Shell commands of one verify.
pub const VERIFY_COMMANDS_MAX: usize = 256;
/// Variables of a task, and bytes of one: they share one process's argument space.
const VARIABLES_MAX: usize = 256;
const VARIABLE_BYTES_MAX: usize = 32_768;
const LABELS_MAX: usize = 64;
/// Far above any host; keeps sums far from overflow.
const RESOURCE_MAX: i64 = 1_000_000;
pub(super) const SETTINGS_KEYS: [&str; 11] = [
    "agent",
    "verify",
    "verify_timeout",
    "timeout",
    "idle_timeout",
    "retries",
    "priority",
    "labels",
    "resources",
    "pool",
    "env",
];
pub(super) const RESOURCE_KEYS: [&str; 3] = ["cpus", "memory", "gpus"];

/// Places of settings.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SettingsMarks {
    pub(super) agent: Position,
    pub(super) verify: Position,
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
    ] {
        if let Some(node) = fields.get(key) {
            *place = limit(reader, key, node);
        }
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
    if let Some(node) = fields.get("env") {
        settings.env = env(reader, node);
    }
    (settings, marks)
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

fn env(reader: &mut Reader<'_>, node: &Node) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    let Some(entries) = reader.entries("env", node) else {
        return env;
    };
    if entries.len() > VARIABLES_MAX {
        reader.wrong(node.at, &format!("more than {VARIABLES_MAX} variables"));
        return env;
    }
    for (name, at, value) in entries {
        let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !plain || name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            reader.wrong(at, &format!("{} is no variable's name", quote(name)));
            continue;
        }
        if name.starts_with("MUSTER_") {
            reader.wrong(
                at,
                &format!("`{name}`: names with MUSTER_ are Muster's own"),
            );
            continue;
        }
        // An empty value is a value here, unlike everywhere else.
        let value = match &value.value {
            Value::Scalar(text, _) if text.is_empty() => Some(String::new()),
            _ => reader.word(name, value, VARIABLE_BYTES_MAX),
        };
        if let Some(value) = value
            && env.insert(name.to_owned(), value).is_some()
        {
            reader.wrong(at, &format!("`{name}` is given twice"));
        }
    }
    env
}
