//! Permissions that the agent asks for, and what only a person knows.

use std::collections::BTreeMap;
use std::path::Path;

use muster_proto::v1::{Choice, ChoiceEffect, Question};
use serde_json::{Value, json};

use super::tools::{self, Kind};
use crate::agent::conversation::Decision;
use crate::agent::text::{self, DETAIL_BYTES_MAX, LINE_BYTES_MAX};

/// Most questions that are open at a time.
const OPEN_MAX: usize = 64;
/// Most bytes of what is kept for the answers to them.
const OPEN_BYTES_MAX: usize = 16 << 20;
/// Most suggestions or options of a question that become choices.
const CHOICES_MAX: usize = 8;
/// Tool by which the agent asks for words and not for a permission.
const ASK_USER: &str = "AskUserQuestion";

const ALLOW: &str = "allow";
const DENY: &str = "deny";
const STOP: &str = "stop";
const TEXT: &str = "text";

/// Questions that wait for answers.
#[derive(Debug, Default)]
pub(super) struct Questions {
    asked: u32,
    open: BTreeMap<u32, Open>,
}

#[derive(Debug)]
struct Open {
    /// The agent's id of its request.
    request: String,
    /// Given back with an allowance.
    input: Value,
    /// Changes of the agent's rules that a choice stands for, by the choice's id.
    rules: BTreeMap<String, Value>,
    /// Answers in words that a choice stands for, by the choice's id.
    options: BTreeMap<String, String>,
    bytes: usize,
}

impl Questions {
    /// Takes a request of `bytes` bytes; `Err` is the answer if it cannot be asked.
    pub(super) fn ask(
        &mut self,
        request_id: &str,
        request: &Value,
        folder: &Path,
        bytes: usize,
    ) -> Result<Question, String> {
        let kept = self.open.values().map(|open| open.bytes).sum::<usize>();
        if self.open.len() >= OPEN_MAX || kept.saturating_add(bytes) > OPEN_BYTES_MAX {
            return Err(denied(request_id, "too many questions are open", false));
        }
        self.asked = self.asked.saturating_add(1);
        let input = &request["input"];
        let tool = text::of(request, "tool_name");
        let mut open = Open {
            request: request_id.to_owned(),
            input: input.clone(),
            rules: BTreeMap::new(),
            options: BTreeMap::new(),
            bytes,
        };
        let mut question = if tool == ASK_USER {
            words_wanted(input, &mut open)
        } else {
            permission_wanted(tool, request, folder, &mut open)
        };
        question.number = self.asked;
        question.folder = folder.to_string_lossy().into_owned();
        self.open.insert(self.asked, open);
        Ok(question)
    }

    /// Takes an answer; gives what the agent is told. `None` for a question that is not open, or a
    /// choice that it does not have.
    pub(super) fn answer(&mut self, number: u32, decision: &Decision) -> Option<String> {
        let open = self.open.get(&number)?;
        let choice = decision.choice.as_str();
        let reason = match decision.text.as_str() {
            "" => "this is not allowed here",
            text => text,
        };
        let told = match choice {
            ALLOW => allowed(&open.request, &open.input, None),
            DENY => denied(&open.request, reason, false),
            STOP => denied(&open.request, reason, true),
            TEXT => answered(&open.request, &open.input, &decision.text),
            _ => match (open.rules.get(choice), open.options.get(choice)) {
                (Some(rule), _) => allowed(&open.request, &open.input, Some(rule)),
                (None, Some(option)) => answered(&open.request, &open.input, option),
                (None, None) => return None,
            },
        };
        self.open.remove(&number);
        Some(told)
    }

    /// Forgets the question of a request that the agent has taken back.
    pub(super) fn withdraw(&mut self, request: &str) -> Option<u32> {
        let mut open = self.open.iter();
        let number = open
            .find(|(_, open)| open.request == request)
            .map(|(number, _)| *number)?;
        self.open.remove(&number);
        Some(number)
    }

    /// Forgets all questions.
    pub(super) fn withdraw_all(&mut self) -> impl Iterator<Item = u32> {
        std::mem::take(&mut self.open).into_keys()
    }
}

fn permission_wanted(tool: &str, request: &Value, folder: &Path, open: &mut Open) -> Question {
    let input = &request["input"];
    let kind = tools::kind(tool);
    let read = tools::read(tool, input, folder);
    let (kind, title, detail) = match kind {
        Kind::Command => {
            let command = text::of(input, "command");
            ("command", format!("run {command}"), command.to_owned())
        }
        Kind::Edit => {
            let path = tools::edited(input, folder);
            (
                "file_change",
                format!("change {path}"),
                tools::proposal(tool, input),
            )
        }
        Kind::Other if let Some(path) = &read => {
            ("file_read", format!("read {path}"), input.to_string())
        }
        Kind::Other => {
            let server = tool
                .strip_prefix("mcp__")
                .and_then(|tool| tool.split_once("__"));
            let title = match server {
                Some((server, tool)) => format!("use {tool} of {server}"),
                None => format!("use {tool}"),
            };
            ("tool", title, input.to_string())
        }
    };
    let paths = match kind {
        "file_change" => vec![tools::edited(input, folder)],
        _ => read.into_iter().collect(),
    };
    let mut choices = vec![choice(ALLOW, "Allow once", ChoiceEffect::AllowOnce)];
    let suggestions = request["permission_suggestions"].as_array();
    let suggestions = suggestions.into_iter().flatten().take(CHOICES_MAX);
    let mut suggestions: Vec<&Value> = suggestions.collect();
    // Whoever allows something for the session gets the first that does so, and little is gained by this.
    suggestions.sort_by_key(|suggestion| is_within(suggestion, folder));
    for suggestion in suggestions {
        if let Some((offer, rule)) = offered(choices.len(), suggestion) {
            open.rules.insert(offer.id.clone(), rule);
            choices.push(offer);
        }
    }
    choices.push(choice(DENY, "Deny", ChoiceEffect::Deny));
    choices.push(choice(STOP, "Deny and stop", ChoiceEffect::DenyAndStop));
    Question {
        kind: kind.to_owned(),
        title: line(&title),
        detail: text::clip(&detail, DETAIL_BYTES_MAX),
        reason: reason(request),
        choices,
        paths,
        ..Question::default()
    }
}

/// Tells whether a suggestion opens nothing but the folder that is worked in.
fn is_within(suggestion: &Value, folder: &Path) -> bool {
    let folders = suggestion["directories"].as_array();
    folders.is_some_and(|folders| {
        let mut folders = folders.iter().filter_map(Value::as_str);
        folders.all(|inside| Path::new(inside).starts_with(folder))
    })
}

/// Says why the agent asks, as far as it does.
fn reason(request: &Value) -> String {
    let path = text::of(request, "blocked_path");
    let path = match path {
        "" => String::new(),
        path => format!("it touches {path}"),
    };
    let parts = [
        text::of(request, "description"),
        text::of(request, "decision_reason"),
        &path,
    ];
    let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    line(&parts.join("; "))
}

/// Makes a choice of a change of rules that the agent suggests. It holds for this session only: the
/// agent would write it into files of the repository or of the worker's user otherwise.
fn offered(number: usize, suggestion: &Value) -> Option<(Choice, Value)> {
    let mut kept = suggestion.clone();
    kept.as_object_mut()?
        .insert("destination".to_owned(), "session".into());
    let id = format!("{ALLOW}-{number}");
    let made = match text::of(suggestion, "type") {
        "addRules" if suggestion["behavior"] == "allow" => {
            let rules = suggestion["rules"].as_array()?.iter().map(|rule| {
                let tool = text::of(rule, "toolName");
                match text::of(rule, "ruleContent") {
                    "" => tool.to_owned(),
                    content => format!("{tool}({content})"),
                }
            });
            let rules = line(&rules.collect::<Vec<_>>().join(", "));
            let mut made = choice(
                &id,
                &format!("Allow always: {rules}"),
                ChoiceEffect::AllowRule,
            );
            made.rule = rules;
            made
        }
        "addDirectories" => {
            let folders = suggestion["directories"].as_array()?.iter();
            let folders: Vec<&str> = folders.filter_map(Value::as_str).collect();
            let label = format!("Allow within {} from now on", folders.join(", "));
            choice(&id, &label, ChoiceEffect::AllowSession)
        }
        "setMode" if suggestion["mode"] == "acceptEdits" => {
            let label = "Allow, and all edits of files from now on";
            choice(&id, label, ChoiceEffect::AllowSession)
        }
        _ => return None,
    };
    Some((made, kept))
}

fn words_wanted(input: &Value, open: &mut Open) -> Question {
    let questions: Vec<&Value> = input["questions"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    let mut choices = Vec::new();
    if let [single] = questions.as_slice()
        && single["multiSelect"] != true
    {
        let options = single["options"].as_array().into_iter().flatten();
        for (number, option) in options.take(CHOICES_MAX).enumerate() {
            let id = format!("option-{}", number + 1);
            let label = text::of(option, "label");
            let shown = match text::of(option, "description") {
                "" => label.to_owned(),
                description => format!("{label}: {description}"),
            };
            open.options
                .insert(id.clone(), text::clip(label, LINE_BYTES_MAX));
            choices.push(choice(&id, &shown, ChoiceEffect::Text));
        }
    }
    choices.push(choice(TEXT, "Answer in words", ChoiceEffect::Text));
    choices.push(choice(DENY, "Do not answer", ChoiceEffect::Deny));
    let texts: Vec<&str> = questions
        .iter()
        .map(|question| text::of(question, "question"))
        .collect();
    Question {
        kind: "input".to_owned(),
        title: line(texts.first().unwrap_or(&"The agent asks")),
        detail: text::clip(&texts.join("\n"), DETAIL_BYTES_MAX),
        choices,
        ..Question::default()
    }
}

fn choice(id: &str, label: &str, effect: ChoiceEffect) -> Choice {
    Choice {
        id: id.to_owned(),
        label: line(label),
        effect: effect.into(),
        rule: String::new(),
    }
}

fn line(text: &str) -> String {
    crate::failure::one_line(text, LINE_BYTES_MAX)
}

fn allowed(request: &str, input: &Value, rule: Option<&Value>) -> String {
    let mut answer = json!({"behavior": "allow", "updatedInput": input});
    if let (Some(rule), Some(answer)) = (rule, answer.as_object_mut()) {
        answer.insert("updatedPermissions".to_owned(), json!([rule]));
    }
    response(request, &answer)
}

/// Answers every question that the agent has put at once.
fn answered(request: &str, input: &Value, words: &str) -> String {
    let mut input = input.clone();
    let questions = input["questions"].as_array().into_iter().flatten();
    let answers =
        questions.map(|question| (text::of(question, "question").to_owned(), words.into()));
    let answers: serde_json::Map<String, Value> = answers.collect();
    if let Some(input) = input.as_object_mut() {
        input.insert("answers".to_owned(), answers.into());
    }
    allowed(request, &input, None)
}

/// Writes that a request is denied.
pub(super) fn denied(request: &str, reason: &str, stop: bool) -> String {
    let mut answer = json!({"behavior": "deny", "message": reason});
    if let (true, Some(answer)) = (stop, answer.as_object_mut()) {
        answer.insert("interrupt".to_owned(), true.into());
    }
    response(request, &answer)
}

fn response(request: &str, answer: &Value) -> String {
    json!({
        "type": "control_response",
        "response": {"subtype": "success", "request_id": request, "response": answer},
    })
    .to_string()
}
