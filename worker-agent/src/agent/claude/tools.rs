//! What the agent does with its tools.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use muster_proto::v1::{
    CommandEnded, CommandOutput, CommandStarted, FileChange, TodoItem, TodoList, ToolCall, activity,
};
use serde_json::Value;

use crate::agent::text::{self, DETAIL_BYTES_MAX, DIFF_BYTES_MAX};

/// Most calls whose results are waited for.
const CALLS_MAX: usize = 256;
/// Most items of a todo list.
const TODO_ITEMS_MAX: usize = 100;

/// Calls that run.
#[derive(Debug, Default)]
pub(super) struct Tools {
    running: BTreeMap<String, Call>,
}

#[derive(Debug)]
enum Call {
    Command,
    Edit {
        path: String,
        tool: String,
    },
    Other {
        server: String,
        tool: String,
        arguments: String,
    },
}

/// What kind of thing a tool does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Command,
    Edit,
    Other,
}

/// Tells what kind of thing a tool does.
pub(super) fn kind(tool: &str) -> Kind {
    match tool {
        "Bash" => Kind::Command,
        "Edit" | "MultiEdit" | "NotebookEdit" | "Write" => Kind::Edit,
        _ => Kind::Other,
    }
}

/// Gives the file that an editing tool is about, relative to `folder` if it is within.
pub(super) fn edited(input: &Value, folder: &Path) -> String {
    let path = match text::of(input, "file_path") {
        "" => text::of(input, "notebook_path"),
        path => path,
    };
    relative(path, folder)
}

/// Gives the file or folder that a tool reads, relative to `folder` if it is within; `None` for a tool
/// that does something else, or does not say what it reads.
pub(super) fn read(tool: &str, input: &Value, folder: &Path) -> Option<String> {
    let key = match tool {
        "Read" => "file_path",
        "NotebookRead" => "notebook_path",
        "Glob" | "Grep" | "LS" => "path",
        _ => return None,
    };
    let path = text::of(input, key);
    (!path.is_empty()).then(|| relative(path, folder))
}

impl Tools {
    /// Takes a call: a `tool_use` block.
    pub(super) fn began(&mut self, block: &Value, folder: &Path) -> Option<activity::Kind> {
        let item = text::name(text::of(block, "id"));
        let tool = text::of(block, "name");
        let input = &block["input"];
        let (call, told) = match kind(tool) {
            Kind::Command => {
                let started = CommandStarted {
                    item: item.clone(),
                    command: text::clip(text::of(input, "command"), DETAIL_BYTES_MAX),
                    folder: folder.to_string_lossy().into_owned(),
                };
                (Call::Command, activity::Kind::CommandStarted(started))
            }
            // Told once it has happened.
            Kind::Edit => {
                let path = edited(input, folder);
                let tool = text::name(tool);
                self.remember(item, Call::Edit { path, tool });
                return None;
            }
            Kind::Other if tool == "TodoWrite" => return Some(todo_list(input)),
            Kind::Other => {
                let (server, tool) = server_and_tool(tool);
                let arguments = text::clip(&input.to_string(), DETAIL_BYTES_MAX);
                let started = ToolCall {
                    item: item.clone(),
                    server: server.clone(),
                    tool: tool.clone(),
                    arguments: arguments.clone(),
                    status: "started".to_owned(),
                    result: String::new(),
                };
                let call = Call::Other {
                    server,
                    tool,
                    arguments,
                };
                (call, activity::Kind::ToolCall(started))
            }
        };
        self.remember(item, call);
        Some(told)
    }

    /// Takes a result: a `tool_result` block of `line`.
    pub(super) fn ended(&mut self, block: &Value, line: &Value) -> Vec<activity::Kind> {
        let item = text::of(block, "tool_use_id");
        let Some(call) = self.running.remove(&text::name(item)) else {
            return Vec::new();
        };
        let failed = block["is_error"].as_bool().unwrap_or_default();
        let declined = failed && is_declined(line, item);
        let said = content(&block["content"]);
        let detail = &line["tool_use_result"];
        let item = text::name(item);
        match call {
            Call::Command => command_ended(&item, &said, failed, declined),
            Call::Edit { path, .. } if declined || !failed => {
                vec![activity::Kind::FileChange(FileChange {
                    item,
                    path,
                    change: change(detail).to_owned(),
                    former_path: String::new(),
                    diff: diff(detail),
                    declined,
                })]
            }
            Call::Edit { path, tool } => {
                let arguments = Value::from(path).to_string();
                let call = Call::Other {
                    server: String::new(),
                    tool,
                    arguments,
                };
                vec![tool_ended(item, call, &said, "failed")]
            }
            call @ Call::Other { .. } => {
                let status = match (failed, declined) {
                    (false, _) => "completed",
                    (true, false) => "failed",
                    (true, true) => "declined",
                };
                vec![tool_ended(item, call, &said, status)]
            }
        }
    }

    fn remember(&mut self, item: String, call: Call) {
        if self.running.len() >= CALLS_MAX {
            self.running.pop_first();
        }
        self.running.insert(item, call);
    }
}

fn command_ended(item: &str, said: &str, failed: bool, declined: bool) -> Vec<activity::Kind> {
    let code = said.strip_prefix("Exit code ").filter(|_| failed);
    let (code, output) = match code.map(|rest| rest.split_once('\n').unwrap_or((rest, ""))) {
        Some((code, output)) => (code.trim().parse().ok(), output),
        None => ((!failed).then_some(0), said),
    };
    let pieces = text::pieces(if declined { "" } else { output });
    let output = pieces.map(|piece| {
        activity::Kind::CommandOutput(CommandOutput {
            item: item.to_owned(),
            data: piece.as_bytes().to_vec(),
        })
    });
    let ended = activity::Kind::CommandEnded(CommandEnded {
        item: item.to_owned(),
        exit_code: code,
        declined,
    });
    output.chain([ended]).collect()
}

fn tool_ended(item: String, call: Call, said: &str, status: &str) -> activity::Kind {
    let (server, tool, arguments) = match call {
        Call::Other {
            server,
            tool,
            arguments,
        } => (server, tool, arguments),
        Call::Command | Call::Edit { .. } => Default::default(),
    };
    activity::Kind::ToolCall(ToolCall {
        item,
        server,
        tool,
        arguments,
        status: status.to_owned(),
        result: text::clip(said, DETAIL_BYTES_MAX),
    })
}

/// Tells whether a call was not run because somebody or something did not allow it.
fn is_declined(line: &Value, item: &str) -> bool {
    let calls = line["tool_result_meta"].as_array();
    let mut calls = calls.into_iter().flatten();
    calls.any(|call| {
        text::of(call, "id") == item
            && (call["permission_decision"]["decision"] == "reject"
                || call.get("non_execution_kind").is_some())
    })
}

/// Joins the texts of a result, which is one text or a list of blocks.
fn content(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => {
            let texts = blocks.iter().map(|block| text::of(block, "text"));
            texts
                .filter(|text| !text.is_empty())
                .collect::<Vec<_>>()
                .join("\n")
        }
        _ => String::new(),
    }
}

fn change(detail: &Value) -> &'static str {
    let new = detail["type"] == "create" || detail.get("originalFile") == Some(&Value::Null);
    if new { "add" } else { "modify" }
}

/// Writes the hunks that the tool tells, or a whole new file, as a unified diff.
fn diff(detail: &Value) -> String {
    let mut diff = String::new();
    let hunks = detail["structuredPatch"].as_array();
    for hunk in hunks.into_iter().flatten() {
        let number = |key: &str| hunk[key].as_u64().unwrap_or_default();
        let (old, old_lines) = (number("oldStart"), number("oldLines"));
        let (new, new_lines) = (number("newStart"), number("newLines"));
        // Writing to a text does not fail.
        let _ = writeln!(diff, "@@ -{old},{old_lines} +{new},{new_lines} @@");
        for line in hunk["lines"].as_array().into_iter().flatten() {
            diff.push_str(line.as_str().unwrap_or_default());
            diff.push('\n');
        }
    }
    if diff.is_empty() && change(detail) == "add" {
        let lines = text::of(detail, "content").lines();
        let _ = writeln!(diff, "@@ -0,0 +1,{} @@", lines.clone().count());
        for line in lines {
            diff.push('+');
            diff.push_str(line);
            diff.push('\n');
        }
    }
    text::clip(&diff, DIFF_BYTES_MAX)
}

/// Writes what a call of an editing tool wants to do, for who has to allow it.
pub(super) fn proposal(tool: &str, input: &Value) -> String {
    let mut proposal = String::new();
    let mut add = |sign: char, text: &str| {
        for line in text.lines() {
            proposal.push(sign);
            proposal.push_str(line);
            proposal.push('\n');
        }
    };
    match tool {
        "Write" => add('+', text::of(input, "content")),
        "NotebookEdit" => add('+', text::of(input, "new_source")),
        _ => {
            let edits = input["edits"]
                .as_array()
                .map_or_else(|| vec![input], |edits| edits.iter().collect());
            for edit in edits {
                add('-', text::of(edit, "old_string"));
                add('+', text::of(edit, "new_string"));
            }
        }
    }
    text::clip(&proposal, DETAIL_BYTES_MAX)
}

fn todo_list(input: &Value) -> activity::Kind {
    let todos = input["todos"].as_array().into_iter().flatten();
    let items = todos.take(TODO_ITEMS_MAX).map(|todo| TodoItem {
        text: text::clip(text::of(todo, "content"), text::LINE_BYTES_MAX),
        status: text::name(text::of(todo, "status")),
    });
    activity::Kind::TodoList(TodoList {
        items: items.collect(),
    })
}

/// Splits the name of a tool of an MCP server.
fn server_and_tool(name: &str) -> (String, String) {
    let mcp = name
        .strip_prefix("mcp__")
        .and_then(|name| name.split_once("__"));
    let (server, tool) = mcp.unwrap_or(("", name));
    (text::name(server), text::name(tool))
}

fn relative(path: &str, folder: &Path) -> String {
    let inside = Path::new(path).strip_prefix(folder).ok();
    let path = inside.map_or(path.into(), Path::to_string_lossy);
    text::clip(&path, 4_096)
}
