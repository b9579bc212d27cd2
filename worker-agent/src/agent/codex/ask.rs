//! What Codex asks for, as questions, and what it is told for each choice.

use muster_proto::v1::{Choice, ChoiceEffect, Question};
use serde_json::{Map, Value, json};

use super::items::Proposed;
use super::json::{head, items, text};
use super::shell::script;

/// Bounds of a question on the wire.
const TITLE_BYTES_MAX: usize = 1_024;
const DETAIL_BYTES_MAX: usize = 16_384;
const REASON_BYTES_MAX: usize = 1_024;
/// Most questions in one request, and most choices of one.
const PARTS_MAX: usize = 16;
const CHOICES_MAX: usize = 32;
/// Id of the choice that takes words.
const WORDS: &str = "text";

/// One request of Codex that waits for an answer.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// How Codex names it; given back with the answer.
    pub(super) id: Value,
    /// Its questions; Codex is answered when all are.
    pub(super) parts: Vec<Part>,
    shape: Shape,
}

/// One question of a request.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// Its number is set by the conversation.
    pub(super) question: Question,
    /// How the request names it, if it has several.
    key: String,
    /// What each choice tells Codex.
    replies: Vec<Reply>,
    /// What was decided.
    pub(super) answer: Option<Value>,
}

#[derive(Clone, Debug)]
enum Reply {
    /// This.
    Fixed(Value),
    /// The words of the answer, shaped like this.
    Words(Words),
}

#[derive(Clone, Copy, Debug)]
enum Words {
    /// A list of them: an answer to a question of the model.
    Answers,
    /// The content of a form.
    Form,
}

#[derive(Clone, Debug)]
enum Shape {
    /// The only part's answer is the result.
    Plain,
    /// The result has an answer for each part.
    Keyed,
    /// As `Plain`; a form whose only field is named.
    Form(Option<String>),
}

/// Understands a request; `None` for one that nobody can be asked about.
pub(super) fn request(
    method: &str,
    id: &Value,
    params: &Value,
    proposed: Option<&Proposed>,
) -> Option<Request> {
    let plain = |part: Part| Request {
        id: id.clone(),
        parts: vec![part],
        shape: Shape::Plain,
    };
    match method {
        "item/commandExecution/requestApproval" => Some(plain(command(params))),
        "item/fileChange/requestApproval" => Some(plain(file_change(params, proposed))),
        "item/permissions/requestApproval" => Some(plain(permissions(params))),
        "mcpServer/elicitation/request" => elicitation(id, params),
        "item/tool/requestUserInput" => {
            let asked = items(params, "questions");
            let parts: Vec<Part> = asked.iter().take(PARTS_MAX).map(user_input).collect();
            // A part that is not shown would be answered by nobody.
            (!parts.is_empty() && asked.len() <= PARTS_MAX).then(|| Request {
                id: id.clone(),
                parts,
                shape: Shape::Keyed,
            })
        }
        _ => None,
    }
}

impl Request {
    /// Takes a decision on a question. `None` if it is none of this request's.
    pub(super) fn decide(
        &mut self,
        question: u32,
        choice: &str,
        words: &str,
    ) -> Option<ChoiceEffect> {
        let part = self
            .parts
            .iter_mut()
            .find(|part| part.question.number == question && part.answer.is_none())?;
        let at = part.question.choices.iter().position(|c| c.id == choice)?;
        let effect = part.question.choices.get(at)?.effect();
        part.answer = Some(match part.replies.get(at)? {
            Reply::Fixed(reply) => reply.clone(),
            Reply::Words(Words::Answers) => json!({"answers": [words]}),
            Reply::Words(Words::Form) => form(words, &self.shape),
        });
        Some(effect)
    }

    /// Tells whether Codex itself ends the turn when it is denied with a stop: of a server's tool it ends
    /// the call only.
    pub(super) fn ends_the_turn(&self) -> bool {
        let mut kinds = self.parts.iter().map(|part| part.question.kind.as_str());
        kinds.all(|kind| matches!(kind, "command" | "file_change"))
    }

    /// Gives the result for Codex once every question is answered.
    pub(super) fn result(&self) -> Option<Value> {
        let answers: Option<Vec<&Value>> =
            self.parts.iter().map(|part| part.answer.as_ref()).collect();
        let answers = answers?;
        if let Shape::Keyed = self.shape {
            let keys = self.parts.iter().map(|part| part.key.clone());
            let keyed: Map<String, Value> = keys.zip(answers.into_iter().cloned()).collect();
            return Some(json!({ "answers": keyed }));
        }
        answers.first().map(|answer| (*answer).clone())
    }
}

/// Collects a question and what its choices mean.
struct Asked {
    question: Question,
    replies: Vec<Reply>,
}

impl Asked {
    fn new(kind: &str, title: &str, detail: &str, reason: &str) -> Self {
        Self {
            question: Question {
                kind: kind.to_owned(),
                title: line(title, TITLE_BYTES_MAX),
                detail: head(detail, DETAIL_BYTES_MAX).to_owned(),
                reason: line(reason, REASON_BYTES_MAX),
                ..Question::default()
            },
            replies: Vec::new(),
        }
    }

    fn may(&mut self, id: &str, label: &str, effect: ChoiceEffect, reply: Reply) {
        let choices = &mut self.question.choices;
        if choices.len() >= CHOICES_MAX {
            return;
        }
        let taken = |id: &str| choices.iter().any(|choice| choice.id == id);
        let mut unique = id.to_owned();
        let mut number = 2;
        while taken(&unique) {
            unique = format!("{id}-{number}");
            number += 1;
        }
        choices.push(Choice {
            id: unique,
            label: line(label, TITLE_BYTES_MAX),
            effect: effect.into(),
            rule: String::new(),
        });
        self.replies.push(reply);
    }

    fn part(self, key: &str) -> Part {
        Part {
            question: self.question,
            key: key.to_owned(),
            replies: self.replies,
            answer: None,
        }
    }
}

fn line(text: &str, bytes_max: usize) -> String {
    crate::failure::one_line(text.trim(), bytes_max)
}

fn command(params: &Value) -> Part {
    let command = script(text(params, "command"));
    let reason = text(params, "reason");
    let title = if command.is_empty() { reason } else { &command };
    let mut asked = Asked::new("command", title, &command, reason);
    asked.question.folder = text(params, "cwd").to_owned();
    let offered = items(params, "availableDecisions");
    let usual = ["accept", "acceptForSession", "decline", "cancel"].map(Value::from);
    let offered = if offered.is_empty() {
        &usual[..]
    } else {
        offered
    };
    for decision in offered {
        decide(&mut asked, decision);
    }
    // Codex takes it although it offers only to stop: with it the agent goes on without.
    if !offered.iter().any(|decision| decision == "decline") {
        decide(&mut asked, &Value::from("decline"));
    }
    asked.part("")
}

fn file_change(params: &Value, proposed: Option<&Proposed>) -> Part {
    let reason = text(params, "reason");
    let (title, diff) = match proposed {
        Some(proposed) => (proposed.paths.join(" "), proposed.diff.as_str()),
        None => ("change files".to_owned(), ""),
    };
    let root = text(params, "grantRoot");
    let mut asked = Asked::new("file_change", &title, diff, reason);
    if let Some(proposed) = proposed {
        asked.question.paths.clone_from(&proposed.paths);
    }
    asked.question.folder = root.to_owned();
    for decision in ["accept", "acceptForSession", "decline", "cancel"] {
        decide(&mut asked, &Value::from(decision));
    }
    asked.part("")
}

/// Adds a decision as Codex names it; one that nobody knows the meaning of is not offered.
fn decide(asked: &mut Asked, decision: &Value) {
    let reply = Reply::Fixed(json!({ "decision": decision }));
    let plain = match decision.as_str() {
        Some("accept") => Some(("Allow once", ChoiceEffect::AllowOnce)),
        Some("acceptForSession") => Some(("Allow for this session", ChoiceEffect::AllowSession)),
        Some("decline") => Some(("Deny", ChoiceEffect::Deny)),
        Some("cancel") => Some(("Deny and stop", ChoiceEffect::DenyAndStop)),
        _ => None,
    };
    if let (Some((label, effect)), Some(id)) = (plain, decision.as_str()) {
        asked.may(id, label, effect, reply);
    }
    // Rules are not offered: Codex would keep them in its own home, where they allow things to every later
    // task, whatever its plan denies.
}

fn permissions(params: &Value) -> Part {
    let wanted = params.get("permissions").cloned().unwrap_or_default();
    let reason = text(params, "reason");
    let title = if reason.is_empty() {
        "more permissions"
    } else {
        reason
    };
    let mut asked = Asked::new("permission", title, &wanted.to_string(), reason);
    asked.question.folder = text(params, "cwd").to_owned();
    // What is not wanted is null, and must be left out of the answer.
    let mut granted = wanted;
    if let Some(granted) = granted.as_object_mut() {
        granted.retain(|_, permission| !permission.is_null());
    }
    let scoped = |scope: &str| Reply::Fixed(json!({ "permissions": &granted, "scope": scope }));
    let none = Reply::Fixed(json!({ "permissions": {}, "scope": "turn" }));
    asked.may(
        "turn",
        "Allow for this turn",
        ChoiceEffect::AllowOnce,
        scoped("turn"),
    );
    asked.may(
        "session",
        "Allow for this session",
        ChoiceEffect::AllowSession,
        scoped("session"),
    );
    asked.may("decline", "Deny", ChoiceEffect::Deny, none);
    asked.part("")
}

fn elicitation(id: &Value, params: &Value) -> Option<Request> {
    let meta = params.get("_meta").cloned().unwrap_or_default();
    let message = text(params, "message");
    let accept =
        |meta: Value| Reply::Fixed(json!({ "action": "accept", "content": {}, "_meta": meta }));
    let declined =
        |action: &str| Reply::Fixed(json!({ "action": action, "content": null, "_meta": null }));
    let (mut asked, shape) = match text(params, "mode") {
        "form" if text(&meta, "codex_approval_kind") == "mcp_tool_call" => {
            let server = text(params, "serverName");
            let tool = text(&meta, "tool_name");
            let arguments = meta.get("tool_params").cloned().unwrap_or_default();
            let detail = format!("{server} {tool} {arguments}");
            let mut asked = Asked::new("tool", message, &detail, "");
            asked.may(
                "accept",
                "Allow once",
                ChoiceEffect::AllowOnce,
                accept(Value::Null),
            );
            // `always` is not offered: Codex keeps it in the user's home, for every later task too.
            let session = Value::from("session");
            if items(&meta, "persist").contains(&session) {
                asked.may(
                    "acceptForSession",
                    "Allow for this session",
                    ChoiceEffect::AllowSession,
                    accept(json!({ "persist": session })),
                );
            }
            (asked, Shape::Plain)
        }
        "form" => {
            let schema = params.get("requestedSchema").cloned().unwrap_or_default();
            let fields = schema.get("properties").and_then(Value::as_object);
            let only = fields.filter(|fields| fields.len() == 1);
            let only = only.and_then(|fields| fields.keys().next().cloned());
            let mut asked = Asked::new("input", message, &schema.to_string(), "");
            if fields.is_none_or(Map::is_empty) {
                asked.may(
                    "accept",
                    "Accept",
                    ChoiceEffect::AllowOnce,
                    accept(Value::Null),
                );
            } else {
                let label = if only.is_some() {
                    "Answer"
                } else {
                    "Answer with a JSON object"
                };
                let reply = Reply::Words(Words::Form);
                asked.may(WORDS, label, ChoiceEffect::Text, reply);
            }
            (asked, Shape::Form(only))
        }
        "url" => {
            let mut asked = Asked::new("input", message, text(params, "url"), "");
            asked.may(
                "accept",
                "It is done",
                ChoiceEffect::AllowOnce,
                accept(Value::Null),
            );
            (asked, Shape::Plain)
        }
        // Such as proofs that only a client of the provider's can give.
        _ => return None,
    };
    asked.may("decline", "Deny", ChoiceEffect::Deny, declined("decline"));
    asked.may(
        "cancel",
        "Deny and stop",
        ChoiceEffect::DenyAndStop,
        declined("cancel"),
    );
    Some(Request {
        id: id.clone(),
        parts: vec![asked.part("")],
        shape,
    })
}

/// Makes the answer to a form of what a person wrote: an object, or the value of its only field.
fn form(words: &str, shape: &Shape) -> Value {
    let content = match (serde_json::from_str(words), shape) {
        (Ok(Value::Object(content)), _) => Value::Object(content),
        (_, Shape::Form(Some(field))) => json!({ field: words }),
        _ => return json!({ "action": "decline", "content": null, "_meta": null }),
    };
    json!({ "action": "accept", "content": content, "_meta": null })
}

fn user_input(question: &Value) -> Part {
    let title = text(question, "question");
    let mut asked = Asked::new("input", title, text(question, "header"), "");
    let options = items(question, "options");
    for option in options {
        let label = text(option, "label");
        let shown = match text(option, "description") {
            "" => label.to_owned(),
            description => format!("{label}: {description}"),
        };
        let reply = Reply::Fixed(json!({ "answers": [label] }));
        asked.may(&line(label, 64), &shown, ChoiceEffect::Text, reply);
    }
    let other = question.get("isOther") == Some(&Value::Bool(true));
    if options.is_empty() || other {
        let reply = Reply::Words(Words::Answers);
        asked.may(WORDS, "Answer in words", ChoiceEffect::Text, reply);
    }
    asked.part(text(question, "id"))
}
