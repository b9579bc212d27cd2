//! What a model agent does: as text for people, as JSON for programs.
//!
//! All of it is foreign: whatever the agent, its provider or a repository has put into it, it is made
//! harmless before a terminal sees it.

use muster_proto::v1::{self, activity::Kind};
use serde_json::{Map, Value, json};

use crate::output::{Paint, one_line, whole_line};

/// Characters of a command, an answer or an argument that are shown on their line.
const LINE_CHARS: usize = 240;
/// Lines of a diff or of a question's detail that are shown; `--json` has all of them.
const DETAIL_LINES: usize = 40;
/// Bytes of a line that does not end; then it is taken for one.
const LINE_BYTES: usize = 8 * 1024;
/// Items of a plan that are shown.
const TODOS: usize = 40;

/// Something to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// More of a text that flows over several events.
    Flow(Flow, Vec<u8>),
    /// A line by itself.
    Line(Look, String),
}

/// Whose text it is: those of different items do not mix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) of: Of,
    pub(crate) item: String,
}

/// What kind of text flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    Message,
    Reasoning,
    Command,
}

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// What is also there, but not what one reads for.
    Dim,
    Plain,
    /// The beginning of something.
    Bold,
    Added,
    Removed,
    /// Somebody has to look.
    Warning,
    Wrong,
}

/// Gives what is to be shown of it, in order; nothing of what only programs want.
pub(crate) fn shown(activity: &v1::Activity) -> Vec<Shown> {
    let Some(kind) = &activity.kind else {
        return Vec::new();
    };
    let line = |look, text: String| vec![Shown::Line(look, text)];
    let flow = |of, item: &str, text: &[u8]| {
        let item = item.to_owned();
        vec![Shown::Flow(Flow { of, item }, text.to_vec())]
    };
    match kind {
        Kind::SessionOpened(session) => line(Look::Dim, session_line(session)),
        Kind::TurnBegan(_) => line(Look::Dim, format!("· turn {}", activity.turn)),
        Kind::TurnEnded(turn) => {
            let look = match turn.end() {
                v1::TurnEnd::Completed => Look::Dim,
                _ => Look::Warning,
            };
            let end = turn_end(turn.end());
            line(look, format!("· turn {} {end}", activity.turn))
        }
        Kind::Message(delta) => flow(Of::Message, &delta.item, delta.text.as_bytes()),
        Kind::Reasoning(delta) => flow(Of::Reasoning, &delta.item, delta.text.as_bytes()),
        Kind::CommandStarted(command) => {
            line(Look::Bold, format!("$ {}", clipped(&command.command)))
        }
        Kind::CommandOutput(output) => flow(Of::Command, &output.item, &output.data),
        Kind::CommandEnded(ended) => match (ended.declined, ended.exit_code) {
            (true, _) => line(Look::Warning, "· declined: it was not run".to_owned()),
            (false, Some(0)) => line(Look::Dim, "· exit code 0".to_owned()),
            (false, Some(code)) => line(Look::Wrong, format!("· exit code {code}")),
            (false, None) => line(Look::Dim, "· ended".to_owned()),
        },
        Kind::FileChange(change) => file_change(change),
        Kind::ToolCall(call) => tool_call(call),
        Kind::TodoList(list) => todo_list(list),
        Kind::Usage(_) => Vec::new(),
        Kind::Retry(retry) => line(Look::Warning, retry_line(retry)),
        Kind::Question(question) => question_lines(question),
        Kind::QuestionClosed(closed) => {
            let choice = match one_line(&closed.choice) {
                choice if choice.is_empty() => "not answered".to_owned(),
                choice => choice,
            };
            let by = one_line(&closed.by);
            let number = closed.question;
            line(Look::Dim, format!("· question {number}: {choice} ({by})"))
        }
        Kind::Error(error) => line(Look::Wrong, format!("! {}", error_text(error))),
        Kind::Structured(answer) => line(Look::Plain, format!("= {}", output(&answer.json))),
    }
}

/// Makes whole lines of what the agent of one task does; texts that flow come in pieces.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lines {
    flow: Option<Flow>,
    /// The unfinished line of it.
    begun: Vec<u8>,
}

impl Lines {
    /// Takes what the agent does next and gives the lines that are whole now.
    pub(crate) fn take(&mut self, activity: &v1::Activity) -> Vec<(Look, String)> {
        let mut lines = Vec::new();
        for shown in shown(activity) {
            match shown {
                Shown::Line(look, text) => {
                    lines.extend(self.end());
                    lines.push((look, text));
                }
                Shown::Flow(flow, text) => {
                    if self.flow.as_ref() != Some(&flow) {
                        lines.extend(self.end());
                        self.flow = Some(flow);
                    }
                    for piece in text.split_inclusive(|byte| *byte == b'\n') {
                        let room = LINE_BYTES.saturating_sub(self.begun.len());
                        self.begun.extend(piece.iter().take(room));
                        if piece.ends_with(b"\n") || self.begun.len() >= LINE_BYTES {
                            lines.extend(self.line());
                            self.begun.clear();
                        }
                    }
                }
            }
        }
        lines
    }

    /// Ends a text that flows, since something else comes, and gives its last line.
    pub(crate) fn end(&mut self) -> Option<(Look, String)> {
        let line = self.line();
        self.begun.clear();
        self.flow = None;
        line
    }

    /// Gives the unfinished line as it is so far.
    pub(crate) fn line(&self) -> Option<(Look, String)> {
        let text = one_line(&String::from_utf8_lossy(&self.begun));
        let flow = self.flow.as_ref().filter(|_| !text.is_empty())?;
        Some(match flow.of {
            Of::Message => (Look::Plain, text),
            Of::Reasoning => (Look::Dim, format!("~ {text}")),
            Of::Command => (Look::Plain, format!("  {text}")),
        })
    }
}

impl Look {
    /// Paints a line.
    pub(crate) fn paint(self, paint: Paint, text: &str) -> String {
        match self {
            Self::Dim => paint.dim(text),
            Self::Plain => text.to_owned(),
            Self::Bold => paint.bold(text),
            Self::Added => paint.green(text),
            Self::Removed | Self::Wrong => paint.red(text),
            Self::Warning => paint.yellow(text),
        }
    }
}

fn session_line(session: &v1::SessionOpened) -> String {
    let what = if session.resumed {
        "goes on with session"
    } else {
        "session"
    };
    let parts = [&session.id, &session.model, &session.software].map(|part| one_line(part));
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    format!("· {what} {}", parts.join(", "))
}

fn turn_end(end: v1::TurnEnd) -> &'static str {
    match end {
        v1::TurnEnd::Completed => "completed",
        v1::TurnEnd::Interrupted => "interrupted",
        v1::TurnEnd::Failed => "failed",
        v1::TurnEnd::Lost | v1::TurnEnd::Unspecified => "lost",
    }
}

fn file_change(change: &v1::FileChange) -> Vec<Shown> {
    let path = whole_line(&change.path);
    let path = match whole_line(&change.former_path) {
        former if former.is_empty() => path,
        former => format!("{former} → {path}"),
    };
    let text = format!("± {} {path}", one_line(&change.change));
    if change.declined {
        return vec![Shown::Line(Look::Warning, format!("{text} (declined)"))];
    }
    let mut lines = vec![Shown::Line(Look::Bold, text)];
    lines.extend(detail(&change.diff, |line| match line.as_bytes().first() {
        Some(b'+') => Look::Added,
        Some(b'-') => Look::Removed,
        _ => Look::Dim,
    }));
    lines
}

fn tool_call(call: &v1::ToolCall) -> Vec<Shown> {
    let tool = [&call.server, &call.tool].map(|part| one_line(part));
    let tool = tool.join(" ").trim().to_owned();
    let (look, sign) = match call.status.as_str() {
        "failed" => (Look::Wrong, "! "),
        "declined" => (Look::Warning, "· "),
        "started" => (Look::Bold, "→ "),
        _ => (Look::Dim, "← "),
    };
    let mut text = format!("{sign}{tool}");
    if call.status != "started" {
        text = format!("{text} {}", one_line(&call.status));
    }
    let more = if call.status == "started" {
        clipped(&call.arguments)
    } else {
        output(&call.result)
    };
    if !more.is_empty() {
        text = format!("{text}: {more}");
    }
    vec![Shown::Line(look, text)]
}

fn todo_list(list: &v1::TodoList) -> Vec<Shown> {
    let done = list.items.iter().filter(|item| item.status == "completed");
    let head = format!("· plan: {} of {} done", done.count(), list.items.len());
    let mut lines = vec![Shown::Line(Look::Plain, head)];
    for item in list.items.iter().take(TODOS) {
        let (look, sign) = match item.status.as_str() {
            "completed" => (Look::Dim, "✓"),
            "in_progress" => (Look::Bold, "▸"),
            _ => (Look::Plain, "·"),
        };
        lines.push(Shown::Line(
            look,
            format!("  {sign} {}", output(&item.text)),
        ));
    }
    lines.extend(left_out(list.items.len(), TODOS));
    lines
}

fn retry_line(retry: &v1::RetryNotice) -> String {
    let of = match retry.attempts_max {
        0 => String::new(),
        most => format!(" of {most}"),
    };
    let delay = match seconds(retry.delay.as_ref()) {
        Some(delay) => format!(" in {delay:.1}s"),
        None => String::new(),
    };
    let why = retry.error.as_ref().map(error_text).unwrap_or_default();
    format!("· tries again ({}{of}){delay}: {why}", retry.attempt)
}

fn question_lines(question: &v1::Question) -> Vec<Shown> {
    let head = format!(
        "? question {}: {}",
        question.number,
        whole_line(&question.title)
    );
    let mut lines = vec![Shown::Line(Look::Warning, head)];
    lines.extend(detail(&question.detail, |_| Look::Plain));
    if !question.reason.is_empty() {
        let reason = format!("  because: {}", clipped(&question.reason));
        lines.push(Shown::Line(Look::Plain, reason));
    }
    let labels: Vec<String> = question
        .choices
        .iter()
        .take(TODOS)
        .map(|choice| format!("{} ({})", one_line(&choice.label), one_line(&choice.id)))
        .collect();
    let labels = format!("  choices: {}", labels.join(", "));
    lines.push(Shown::Line(Look::Plain, labels));
    lines
}

fn error_text(error: &v1::AgentError) -> String {
    let status = match error.http_status {
        0 => String::new(),
        status => format!(" ({status})"),
    };
    format!(
        "{}{status}: {}",
        one_line(&error.class),
        output(&error.message)
    )
}

/// Shows the first lines of a longer text, indented.
fn detail(text: &str, look: impl Fn(&str) -> Look) -> Vec<Shown> {
    let mut lines: Vec<Shown> = text
        .lines()
        .take(DETAIL_LINES)
        .map(|line| Shown::Line(look(line), format!("  {}", kept(line))))
        .collect();
    lines.extend(left_out(text.lines().count(), DETAIL_LINES));
    lines
}

fn left_out(count: usize, most: usize) -> Option<Shown> {
    (count > most).then(|| {
        let text = format!("  … {} more; `--json` shows all", count - most);
        Shown::Line(Look::Dim, text)
    })
}

/// Makes a line harmless and keeps its indentation.
fn kept(line: &str) -> String {
    let indent = line.len() - line.trim_start_matches([' ', '\t']).len();
    let indent = line.get(..indent).unwrap_or_default().replace('\t', "    ");
    let indent = indent
        .get(..indent.len().min(LINE_CHARS))
        .unwrap_or_default();
    format!("{indent}{}", clipped(line.trim_start_matches([' ', '\t'])))
}

/// Shows what an agent does: nothing of it is hidden but its end.
fn clipped(text: &str) -> String {
    cut(whole_line(beginning(text)))
}

/// Shows what an agent or its tools say, as a terminal would.
fn output(text: &str) -> String {
    cut(one_line(&beginning(text).replace(['\r', '\n'], " ")))
}

fn cut(text: String) -> String {
    match text.char_indices().nth(LINE_CHARS) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text,
    }
}

/// Gives as much of a text as may be shown on one line; what is far behind the cut is not looked at.
fn beginning(text: &str) -> &str {
    let end = text.char_indices().nth(4 * LINE_CHARS);
    let end = end.map_or(text.len(), |(at, _)| at);
    text.get(..end).unwrap_or_default()
}

fn seconds(length: Option<&prost_types::Duration>) -> Option<f64> {
    let length = length?;
    let whole = u64::try_from(length.seconds).ok()?;
    let nanos = u32::try_from(length.nanos)
        .ok()
        .filter(|nanos| *nanos < 1_000_000_000)?;
    Some(std::time::Duration::new(whole, nanos).as_secs_f64())
}

/// Describes it whole, for programs: `activity` names the kind, and the other keys are the kind's own.
/// Keys are added, never renamed.
pub(crate) fn json(activity: &v1::Activity) -> Value {
    let (name, mut value) = match &activity.kind {
        None => ("unknown", json!({})),
        Some(Kind::SessionOpened(session)) => (
            "session_opened",
            json!({
                "session": session.id,
                "model": session.model,
                "software": session.software,
                "resumed": session.resumed,
            }),
        ),
        Some(Kind::TurnBegan(_)) => ("turn_began", json!({})),
        Some(Kind::TurnEnded(turn)) => (
            "turn_ended",
            json!({ "end": turn_end(turn.end()), "message": turn.message }),
        ),
        Some(Kind::Message(delta)) => {
            ("message", json!({ "item": delta.item, "text": delta.text }))
        }
        Some(Kind::Reasoning(delta)) => (
            "reasoning",
            json!({ "item": delta.item, "text": delta.text }),
        ),
        Some(Kind::CommandStarted(command)) => (
            "command_started",
            json!({
                "item": command.item,
                "command": command.command,
                "folder": command.folder,
            }),
        ),
        Some(Kind::CommandOutput(output)) => (
            "command_output",
            json!({ "item": output.item, "output": String::from_utf8_lossy(&output.data) }),
        ),
        Some(Kind::CommandEnded(ended)) => (
            "command_ended",
            json!({
                "item": ended.item,
                "exit_code": ended.exit_code,
                "declined": ended.declined,
            }),
        ),
        Some(Kind::FileChange(change)) => (
            "file_change",
            json!({
                "item": change.item,
                "path": change.path,
                "change": change.change,
                "former_path": said(&change.former_path),
                "diff": change.diff,
                "declined": change.declined,
            }),
        ),
        Some(Kind::ToolCall(call)) => (
            "tool_call",
            json!({
                "item": call.item,
                "server": call.server,
                "tool": call.tool,
                "arguments": parsed(&call.arguments),
                "status": call.status,
                "result": call.result,
            }),
        ),
        Some(Kind::TodoList(list)) => {
            let items = list
                .items
                .iter()
                .map(|item| json!({ "text": item.text, "status": item.status }));
            ("plan", json!({ "items": items.collect::<Vec<_>>() }))
        }
        Some(Kind::Usage(usage)) => (
            "usage",
            json!({
                "model": usage.model,
                "input_tokens": usage.input_tokens,
                "cached_input_tokens": usage.cached_input_tokens,
                "cache_write_tokens": usage.cache_write_tokens,
                "output_tokens": usage.output_tokens,
                "reasoning_tokens": usage.reasoning_tokens,
                "cost_micros": usage.cost_micros,
                "calls": usage.calls,
                "unknown_calls": usage.unknown_calls,
            }),
        ),
        Some(Kind::Retry(retry)) => (
            "retry",
            json!({
                "attempt": retry.attempt,
                "attempts_max": (retry.attempts_max > 0).then_some(retry.attempts_max),
                "delay_seconds": seconds(retry.delay.as_ref()),
                "error": retry.error.as_ref().map(error_json),
            }),
        ),
        Some(Kind::Question(question)) => ("question", question_json(question)),
        Some(Kind::QuestionClosed(closed)) => (
            "question_closed",
            json!({
                "question": closed.question,
                "choice": said(&closed.choice),
                "by": closed.by,
            }),
        ),
        Some(Kind::Error(error)) => ("error", error_json(error)),
        Some(Kind::Structured(answer)) => ("structured", json!({ "answer": parsed(&answer.json) })),
    };
    if let Value::Object(value) = &mut value {
        let mut whole = Map::new();
        whole.insert("activity".to_owned(), name.into());
        whole.insert("turn".to_owned(), activity.turn.into());
        whole.append(value);
        return Value::Object(whole);
    }
    value
}

fn question_json(question: &v1::Question) -> Value {
    let choices = question.choices.iter().map(|choice| {
        json!({
            "id": choice.id,
            "label": choice.label,
            "effect": effect(choice.effect()),
            "rule": said(&choice.rule),
        })
    });
    json!({
        "question": question.number,
        "about": question.kind,
        "title": question.title,
        "detail": question.detail,
        "reason": question.reason,
        "folder": question.folder,
        "paths": question.paths,
        "choices": choices.collect::<Vec<_>>(),
    })
}

fn effect(effect: v1::ChoiceEffect) -> &'static str {
    match effect {
        v1::ChoiceEffect::Unspecified => "unknown",
        v1::ChoiceEffect::AllowOnce => "allow_once",
        v1::ChoiceEffect::AllowSession => "allow_session",
        v1::ChoiceEffect::AllowRule => "allow_rule",
        v1::ChoiceEffect::Deny => "deny",
        v1::ChoiceEffect::DenyAndStop => "deny_and_stop",
        v1::ChoiceEffect::Text => "text",
    }
}

fn error_json(error: &v1::AgentError) -> Value {
    json!({
        "class": error.class,
        "message": error.message,
        "http_status": (error.http_status > 0).then_some(error.http_status),
        "retry_after_seconds": seconds(error.retry_after.as_ref()),
    })
}

fn said(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// Gives JSON as such; text that is none, also if it was cut, is given as text.
fn parsed(text: &str) -> Value {
    match text {
        "" => Value::Null,
        text => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
    }
}

#[cfg(test)]
mod tests;
