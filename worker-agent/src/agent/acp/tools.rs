//! What the agent does with its tools. An agent tells more of a call from line to line.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use muster_proto::v1::{
    CommandEnded, CommandOutput, CommandStarted, FileChange, TodoItem, TodoList, ToolCall, activity,
};
use serde_json::Value;

use crate::agent::text::{self, DETAIL_BYTES_MAX, DIFF_BYTES_MAX};

/// Most calls that run.
const CALLS_MAX: usize = 256;
/// Most files of one call.
const FILES_MAX: usize = 256;
/// Most items of a plan.
const PLAN_ITEMS_MAX: usize = 100;
/// Longest path.
const PATH_BYTES_MAX: usize = 4_096;

/// Calls that run.
#[derive(Debug, Default)]
pub(super) struct Tools {
    running: BTreeMap<String, Call>,
    /// Calls that somebody has denied.
    denied: BTreeSet<String>,
}

/// What is known of a call so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Call {
    kind: String,
    title: String,
    pub(super) command: String,
    arguments: String,
    output: String,
    exit_code: Option<i32>,
    files: Vec<File>,
    told: bool,
}

#[derive(Clone, Debug)]
struct File {
    path: String,
    /// Former and new text, if the agent tells.
    texts: Option<(Option<String>, String)>,
}

/// What kind of thing a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Command,
    Edit,
    Read,
    Other,
}

impl Call {
    /// Reads a call, or more of it.
    pub(super) fn update(&mut self, update: &Value, folder: &Path) {
        let set = |field: &mut String, text: &str, bytes_max: usize| {
            if !text.is_empty() {
                *field = text::clip(text, bytes_max);
            }
        };
        set(
            &mut self.kind,
            text::of(update, "kind"),
            text::NAME_BYTES_MAX,
        );
        set(
            &mut self.title,
            text::of(update, "title"),
            text::LINE_BYTES_MAX,
        );
        let input = &update["rawInput"];
        set(
            &mut self.command,
            &command(&input["command"]),
            DETAIL_BYTES_MAX,
        );
        if !input.is_null() {
            self.arguments = text::clip(&input.to_string(), DETAIL_BYTES_MAX);
        }
        let output = &update["rawOutput"];
        let codes = ["/exit_code", "/exitCode", "/exit", "/metadata/exit"];
        let mut codes = codes
            .into_iter()
            .filter_map(|place| output.pointer(place)?.as_i64());
        if let Some(code) = codes.next() {
            self.exit_code = i32::try_from(code).ok();
        }
        if let Some(content) = update["content"].as_array() {
            let texts = content
                .iter()
                .map(|part| text::of(&part["content"], "text"));
            let texts: Vec<&str> = texts.filter(|text| !text.is_empty()).collect();
            set(&mut self.output, &texts.join("\n"), DETAIL_BYTES_MAX);
            let diffs = content.iter().filter(|part| part["type"] == "diff");
            let files: Vec<File> = diffs
                .take(FILES_MAX)
                .map(|diff| file(diff, folder))
                .collect();
            if !files.is_empty() {
                self.files = files;
            }
        }
        let locations = update["locations"].as_array();
        if self.files.is_empty() {
            let locations = locations.into_iter().flatten().take(FILES_MAX);
            let files = locations.map(|place| File {
                path: relative(text::of(place, "path"), folder),
                texts: None,
            });
            self.files = files.collect();
        }
    }

    /// Tells what kind of thing it does.
    pub(super) fn kind(&self) -> Kind {
        match self.kind.as_str() {
            _ if !self.command.is_empty() => Kind::Command,
            "execute" => Kind::Command,
            "edit" | "delete" | "move" => Kind::Edit,
            _ if self.files.iter().any(|file| file.texts.is_some()) => Kind::Edit,
            "read" | "search" if !self.files.is_empty() => Kind::Read,
            _ => Kind::Other,
        }
    }

    /// Gives the command, or what stands for it.
    pub(super) fn command(&self) -> &str {
        if self.command.is_empty() {
            &self.title
        } else {
            &self.command
        }
    }

    pub(super) fn title(&self) -> &str {
        &self.title
    }

    pub(super) fn arguments(&self) -> &str {
        &self.arguments
    }

    pub(super) fn paths(&self) -> Vec<String> {
        self.files.iter().map(|file| file.path.clone()).collect()
    }

    /// Writes what it changes.
    pub(super) fn diff(&self) -> String {
        let diffs: Vec<String> = self.files.iter().map(diff).collect();
        text::clip(&diffs.join(""), DETAIL_BYTES_MAX)
    }

    fn began(&self, item: &str, folder: &Path) -> Option<activity::Kind> {
        Some(match self.kind() {
            Kind::Command => activity::Kind::CommandStarted(CommandStarted {
                item: item.to_owned(),
                command: self.command().to_owned(),
                folder: folder.to_string_lossy().into_owned(),
            }),
            // Told once it has happened.
            Kind::Edit => return None,
            Kind::Read | Kind::Other => self.tool_call(item, "started"),
        })
    }

    fn ended(&self, item: &str, failed: bool, declined: bool) -> Vec<activity::Kind> {
        let status = match (failed, declined) {
            (_, true) => "declined",
            (true, false) => "failed",
            (false, false) => "completed",
        };
        match self.kind() {
            Kind::Command => {
                let output = activity::Kind::CommandOutput(CommandOutput {
                    item: item.to_owned(),
                    data: self.output.clone().into_bytes(),
                });
                let ended = activity::Kind::CommandEnded(CommandEnded {
                    item: item.to_owned(),
                    exit_code: self.exit_code,
                    declined,
                });
                let said = !declined && !self.output.is_empty();
                said.then_some(output).into_iter().chain([ended]).collect()
            }
            Kind::Edit if declined || !failed => {
                let changes = self.files.iter().map(|file| {
                    activity::Kind::FileChange(FileChange {
                        item: item.to_owned(),
                        path: file.path.clone(),
                        change: self.change(file).to_owned(),
                        former_path: String::new(),
                        diff: diff(file),
                        declined,
                    })
                });
                changes.collect()
            }
            Kind::Edit | Kind::Read | Kind::Other => vec![self.tool_call(item, status)],
        }
    }

    fn change(&self, file: &File) -> &'static str {
        match (&file.texts, self.kind.as_str()) {
            (_, "delete") => "delete",
            (Some((None, _)), _) => "add",
            _ => "modify",
        }
    }

    fn tool_call(&self, item: &str, status: &str) -> activity::Kind {
        activity::Kind::ToolCall(ToolCall {
            item: item.to_owned(),
            server: String::new(),
            tool: text::name(if self.title.is_empty() {
                &self.kind
            } else {
                &self.title
            }),
            arguments: self.arguments.clone(),
            status: status.to_owned(),
            result: if status == "started" {
                String::new()
            } else {
                self.output.clone()
            },
        })
    }
}

impl Tools {
    /// Takes a `tool_call` or a `tool_call_update`.
    pub(super) fn updated(&mut self, update: &Value, folder: &Path) -> Vec<activity::Kind> {
        let item = text::name(text::of(update, "toolCallId"));
        let status = text::of(update, "status");
        let mut told = Vec::new();
        if self.running.len() >= CALLS_MAX && !self.running.contains_key(&item) {
            self.running.pop_first();
        }
        let call = self.running.entry(item.clone()).or_default();
        call.update(update, folder);
        // Before it runs its command may not be known.
        if !call.told && status != "pending" && (!status.is_empty() || !call.command.is_empty()) {
            call.told = true;
            told.extend(call.began(&item, folder));
        }
        if matches!(status, "completed" | "failed")
            && let Some(call) = self.running.remove(&item)
        {
            let failed = status == "failed";
            let declined = self.denied.remove(&item);
            told.extend(call.ended(&item, failed, declined));
        }
        told
    }

    /// Gives what is known of a call that a permission is asked for.
    pub(super) fn about(&self, call: &Value, folder: &Path) -> Call {
        let item = text::name(text::of(call, "toolCallId"));
        let mut known = self.running.get(&item).cloned().unwrap_or_default();
        let kind = std::mem::take(&mut known.kind);
        known.update(call, folder);
        // Asking for a permission some say `other` of what they called by its kind before.
        if !kind.is_empty() && (known.kind.is_empty() || known.kind == "other") {
            known.kind = kind;
        }
        known
    }

    /// Remembers that somebody has denied a call.
    pub(super) fn deny(&mut self, item: &str) {
        if self.denied.len() >= CALLS_MAX {
            self.denied.pop_first();
        }
        self.denied.insert(text::name(item));
    }
}

/// Reads a plan.
pub(super) fn plan(update: &Value) -> activity::Kind {
    let entries = update["entries"].as_array().into_iter().flatten();
    let items = entries.take(PLAN_ITEMS_MAX).map(|entry| TodoItem {
        text: text::clip(text::of(entry, "content"), text::LINE_BYTES_MAX),
        status: text::name(text::of(entry, "status")),
    });
    activity::Kind::TodoList(TodoList {
        items: items.collect(),
    })
}

/// Reads a command, which is one text or a list of words.
fn command(command: &Value) -> String {
    match command {
        Value::String(text) => text.clone(),
        Value::Array(words) => {
            let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
            words.join(" ")
        }
        _ => String::new(),
    }
}

fn file(diff: &Value, folder: &Path) -> File {
    let old = diff["oldText"].as_str();
    let old = old.map(|old| text::clip(old, DIFF_BYTES_MAX));
    let new = text::clip(text::of(diff, "newText"), DIFF_BYTES_MAX);
    File {
        path: relative(text::of(diff, "path"), folder),
        texts: Some((old, new)),
    }
}

/// Writes one hunk from the first line that differs to the last one. Agents give parts of files, so
/// where it is in the file nobody knows.
fn diff(file: &File) -> String {
    let Some((old, new)) = &file.texts else {
        return String::new();
    };
    let old: Vec<&str> = old.iter().flat_map(|old| old.lines()).collect();
    let new: Vec<&str> = new.lines().collect();
    let same = |pairs: usize| pairs.min(old.len()).min(new.len());
    let head = old
        .iter()
        .zip(&new)
        .take_while(|(old, new)| old == new)
        .count();
    let tail = old
        .iter()
        .rev()
        .zip(new.iter().rev())
        .take_while(|(old, new)| old == new)
        .count();
    let tail = tail.min(same(usize::MAX).saturating_sub(head));
    let changed = |lines: &[&str], sign: char| -> String {
        let lines = lines
            .get(head..lines.len().saturating_sub(tail))
            .unwrap_or_default();
        lines.iter().map(|line| format!("{sign}{line}\n")).collect()
    };
    let diff = format!("@@ @@\n{}{}", changed(&old, '-'), changed(&new, '+'));
    text::clip(&diff, DIFF_BYTES_MAX)
}

fn relative(path: &str, folder: &Path) -> String {
    let inside = Path::new(path).strip_prefix(folder).ok();
    let path = inside.map_or(path.into(), Path::to_string_lossy);
    text::clip(&path, PATH_BYTES_MAX)
}
