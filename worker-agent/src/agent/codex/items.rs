//! What happens within a turn, as activities.

use std::collections::VecDeque;
use std::path::Path;

use muster_proto::v1::{
    CommandEnded, CommandOutput, CommandStarted, FileChange, TextDelta, TodoItem, TodoList,
    ToolCall, activity::Kind,
};
use serde_json::Value;

use super::json::{head, items, text};
use super::shell::script;

/// Bounds on the wire.
const DIFF_BYTES_MAX: usize = 65_536;
const TOOL_BYTES_MAX: usize = 16_384;
const COMMAND_BYTES_MAX: usize = 65_536;
const TODO_MAX: usize = 100;
/// Items in progress that are remembered.
const OPEN_MAX: usize = 64;
/// Diff of a change that waits for approval.
const PROPOSED_BYTES_MAX: usize = 16_384;
/// Longest message of a turn that is kept whole: a structured answer may be as long.
pub(super) const MESSAGE_BYTES_MAX: usize = 262_144;

/// A change of files that was proposed, for the question whether it may be made.
#[derive(Clone, Debug, Default)]
pub(super) struct Proposed {
    item: String,
    pub(super) paths: Vec<String>,
    pub(super) diff: String,
}

/// What is known of items in progress.
#[derive(Debug, Default)]
pub(super) struct Items {
    /// Items of which some text or output was told as it came.
    streamed: VecDeque<String>,
    proposed: VecDeque<Proposed>,
    /// The last message of the turn.
    pub(super) said: String,
}

impl Items {
    /// Forgets an earlier turn.
    pub(super) fn begin_turn(&mut self) {
        *self = Self::default();
    }

    /// The change that an item proposes.
    pub(super) fn proposed(&self, item: &str) -> Option<&Proposed> {
        self.proposed.iter().find(|proposed| proposed.item == item)
    }

    /// More text of an item.
    pub(super) fn delta(&mut self, params: &Value, reasoning: bool) -> Option<Kind> {
        let delta = TextDelta {
            item: text(params, "itemId").to_owned(),
            text: text(params, "delta").to_owned(),
        };
        if delta.text.is_empty() {
            return None;
        }
        self.streams(&delta.item);
        Some(if reasoning {
            Kind::Reasoning(delta)
        } else {
            Kind::Message(delta)
        })
    }

    /// More output of a command.
    pub(super) fn output(&mut self, params: &Value) -> Option<Kind> {
        let item = text(params, "itemId").to_owned();
        let data = text(params, "delta").as_bytes().to_vec();
        self.streams(&item);
        (!data.is_empty()).then_some(Kind::CommandOutput(CommandOutput { item, data }))
    }

    /// An item began. `folder` is where the agent works.
    pub(super) fn started(&mut self, item: &Value, folder: &Path) -> Option<Kind> {
        let id = text(item, "id").to_owned();
        match text(item, "type") {
            "commandExecution" => {
                let command = script(text(item, "command"));
                Some(Kind::CommandStarted(CommandStarted {
                    item: id,
                    command: head(&command, COMMAND_BYTES_MAX).to_owned(),
                    folder: text(item, "cwd").to_owned(),
                }))
            }
            "fileChange" => {
                let changes = items(item, "changes");
                let mut diff = String::new();
                for change in changes {
                    let room = PROPOSED_BYTES_MAX.saturating_sub(diff.len());
                    diff.push_str(head(&unified(change), room));
                }
                // A file that is moved has two.
                let paths = changes.iter().take(TODO_MAX).flat_map(|change| {
                    let moved = change
                        .get("kind")
                        .map_or("", |kind| text(kind, "move_path"));
                    [text(change, "path"), moved]
                });
                bounded(
                    &mut self.proposed,
                    Proposed {
                        item: id,
                        paths: paths
                            .filter(|path| !path.is_empty())
                            .map(|path| relative(path, folder))
                            .collect(),
                        diff,
                    },
                );
                None
            }
            _ => tool(item, &id),
        }
    }

    /// An item is over. `folder` is where the agent works.
    pub(super) fn completed(&mut self, item: &Value, folder: &Path) -> Vec<Kind> {
        let id = text(item, "id").to_owned();
        let streamed = self.streamed.iter().any(|streamed| *streamed == id);
        self.streamed.retain(|streamed| *streamed != id);
        match text(item, "type") {
            "agentMessage" => {
                let said = text(item, "text");
                self.said = head(said, MESSAGE_BYTES_MAX).to_owned();
                let whole = TextDelta {
                    item: id,
                    text: self.said.clone(),
                };
                one((!streamed && !said.is_empty()).then_some(Kind::Message(whole)))
            }
            "reasoning" => {
                let parts = items(item, "summary").iter().filter_map(Value::as_str);
                let parts: Vec<&str> = parts.collect();
                let whole = TextDelta {
                    item: id,
                    text: head(&parts.join("\n"), DIFF_BYTES_MAX).to_owned(),
                };
                one((!streamed && !whole.text.is_empty()).then_some(Kind::Reasoning(whole)))
            }
            "commandExecution" => {
                let output = head(text(item, "aggregatedOutput"), COMMAND_BYTES_MAX);
                let whole = (!streamed && !output.is_empty()).then(|| {
                    Kind::CommandOutput(CommandOutput {
                        item: id.clone(),
                        data: output.into(),
                    })
                });
                let exit_code = item.get("exitCode").and_then(Value::as_i64);
                let ended = Kind::CommandEnded(CommandEnded {
                    item: id.clone(),
                    exit_code: exit_code.and_then(|code| i32::try_from(code).ok()),
                    declined: text(item, "status") == "declined",
                });
                whole.into_iter().chain([ended]).collect()
            }
            "fileChange" => {
                self.proposed.retain(|proposed| proposed.item != id);
                file_changes(item, &id, folder)
            }
            _ => one(tool(item, &id)),
        }
    }

    fn streams(&mut self, item: &str) {
        if !self.streamed.iter().any(|streamed| streamed == item) {
            bounded(&mut self.streamed, item.to_owned());
        }
    }
}

/// The agent's plan.
pub(super) fn todo_list(params: &Value) -> Kind {
    let steps = items(params, "plan").iter().take(TODO_MAX);
    Kind::TodoList(TodoList {
        items: steps
            .map(|step| TodoItem {
                text: head(text(step, "step"), 1_024).to_owned(),
                status: match text(step, "status") {
                    "inProgress" => "in_progress".to_owned(),
                    "completed" => "completed".to_owned(),
                    _ => "pending".to_owned(),
                },
            })
            .collect(),
    })
}

fn one(kind: Option<Kind>) -> Vec<Kind> {
    kind.into_iter().collect()
}

fn bounded<T>(list: &mut VecDeque<T>, item: T) {
    if list.len() >= OPEN_MAX {
        list.pop_front();
    }
    list.push_back(item);
}

/// Gives a path as seen from `folder` if it is within.
fn relative(path: &str, folder: &Path) -> String {
    let inner = Path::new(path).strip_prefix(folder).ok();
    inner
        .map_or(path.into(), Path::to_string_lossy)
        .into_owned()
}

fn file_changes(item: &Value, id: &str, folder: &Path) -> Vec<Kind> {
    let status = text(item, "status");
    if status == "failed" {
        // Nothing was changed: the patch did not fit.
        return one(Some(Kind::ToolCall(ToolCall {
            item: id.to_owned(),
            tool: "apply_patch".to_owned(),
            status: "failed".to_owned(),
            ..ToolCall::default()
        })));
    }
    let changes = items(item, "changes").iter().take(TODO_MAX);
    changes
        .map(|change| {
            let path = text(change, "path");
            let kind = change.get("kind").cloned().unwrap_or_default();
            let moved = text(&kind, "move_path");
            let (path, former, word) = match text(&kind, "type") {
                "add" => (path, "", "add"),
                "delete" => (path, "", "delete"),
                _ if moved.is_empty() => (path, "", "modify"),
                _ => (moved, path, "rename"),
            };
            Kind::FileChange(FileChange {
                item: id.to_owned(),
                path: relative(path, folder),
                change: word.to_owned(),
                former_path: if former.is_empty() {
                    String::new()
                } else {
                    relative(former, folder)
                },
                diff: head(&unified(change), DIFF_BYTES_MAX).to_owned(),
                declined: status == "declined",
            })
        })
        .collect()
}

/// Gives a change as unified diff: of a file that comes or goes, Codex gives the content alone.
fn unified(change: &Value) -> String {
    let diff = text(change, "diff");
    let kind = change.get("kind").map_or("", |kind| text(kind, "type"));
    let sign = match kind {
        "add" => '+',
        "delete" => '-',
        _ => return diff.to_owned(),
    };
    // Bounds are taken again later; this only keeps a giant from being copied whole.
    let content = head(diff, DIFF_BYTES_MAX);
    let count = content.lines().count();
    let path = text(change, "path");
    let mut text = match kind {
        "add" => format!("--- /dev/null\n+++ {path}\n@@ -0,0 +1,{count} @@\n"),
        _ => format!("--- {path}\n+++ /dev/null\n@@ -1,{count} +0,0 @@\n"),
    };
    for line in content.lines() {
        text.push(sign);
        text.push_str(line);
        text.push('\n');
    }
    text
}

fn tool(item: &Value, id: &str) -> Option<Kind> {
    let (server, tool, arguments) = match text(item, "type") {
        "mcpToolCall" => (text(item, "server"), text(item, "tool"), "arguments"),
        "dynamicToolCall" => (text(item, "namespace"), text(item, "tool"), "arguments"),
        "collabAgentToolCall" => ("agents", text(item, "tool"), "prompt"),
        "webSearch" => ("", "web_search", "query"),
        "imageView" => ("", "view_image", "path"),
        _ => return None,
    };
    let shown = |key: &str| match item.get(key) {
        None | Some(Value::Null) => String::new(),
        Some(value) => head(&value.to_string(), TOOL_BYTES_MAX).to_owned(),
    };
    let status = match text(item, "status") {
        "inProgress" => "started",
        "failed" => "failed",
        "declined" => "declined",
        "completed" => "completed",
        // Some have no status: what is over has a time at which it was.
        _ if item.get("completedAtMs").is_some_and(|at| !at.is_null()) => "completed",
        _ => "started",
    };
    let result = ["error", "result", "contentItems"].map(shown);
    let result = result.into_iter().find(|result| !result.is_empty());
    Some(Kind::ToolCall(ToolCall {
        item: id.to_owned(),
        server: server.to_owned(),
        tool: tool.to_owned(),
        arguments: shown(arguments),
        status: status.to_owned(),
        result: result.unwrap_or_default(),
    }))
}
