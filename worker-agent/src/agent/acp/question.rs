//! Permissions that the agent asks for, with its own options.

use std::collections::BTreeMap;
use std::path::Path;

use muster_proto::v1::{Choice, ChoiceEffect, Question};
use serde_json::{Value, json};

use super::tools::{Call, Kind};
use crate::agent::conversation::Decision;
use crate::agent::text::{self, DETAIL_BYTES_MAX, LINE_BYTES_MAX};

/// Most questions that are open at a time.
const OPEN_MAX: usize = 64;
/// Most options of a question.
const OPTIONS_MAX: usize = 12;
/// Our own choice besides the agent's: it ends the turn.
const STOP: &str = "muster-stop";

/// Questions that wait for answers.
#[derive(Debug, Default)]
pub(super) struct Questions {
    asked: u32,
    open: BTreeMap<u32, Open>,
}

#[derive(Debug)]
struct Open {
    /// The agent's id of its request.
    request: Value,
    /// The call it is about.
    call: String,
    /// What the agent's options do, by their id.
    options: BTreeMap<String, ChoiceEffect>,
}

/// What comes of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answered {
    /// The line for the agent.
    pub(super) line: String,
    /// The call that was denied.
    pub(super) denied: Option<String>,
    /// The turn is to be cancelled too.
    pub(super) stop: bool,
}

impl Questions {
    /// Takes a request; `Err` is the answer if it cannot be asked.
    pub(super) fn ask(
        &mut self,
        request: &Value,
        params: &Value,
        call: &Call,
        folder: &Path,
    ) -> Result<Question, String> {
        if self.open.len() >= OPEN_MAX {
            return Err(cancelled(request));
        }
        let mut choices = Vec::new();
        let mut options = BTreeMap::new();
        for option in params["options"]
            .as_array()
            .into_iter()
            .flatten()
            .take(OPTIONS_MAX)
        {
            let id = text::of(option, "optionId");
            let effect = match text::of(option, "kind") {
                "allow_once" => ChoiceEffect::AllowOnce,
                "allow_always" => ChoiceEffect::AllowSession,
                "reject_once" | "reject_always" => ChoiceEffect::Deny,
                _ => continue,
            };
            let fits = !id.is_empty() && id.len() <= text::NAME_BYTES_MAX && id != STOP;
            if fits && options.insert(id.to_owned(), effect).is_none() {
                choices.push(choice(id, text::of(option, "name"), effect));
            }
        }
        choices.push(choice(STOP, "Deny and stop", ChoiceEffect::DenyAndStop));
        let (kind, title, detail) = match call.kind() {
            Kind::Command => {
                let command = call.command();
                ("command", format!("run {command}"), command.to_owned())
            }
            Kind::Edit => {
                let title = match call.paths().as_slice() {
                    [] => call.title().to_owned(),
                    paths => format!("change {}", paths.join(", ")),
                };
                ("file_change", title, call.diff())
            }
            Kind::Read => {
                let title = format!("read {}", call.paths().join(", "));
                ("file_read", title, call.arguments().to_owned())
            }
            Kind::Other => {
                let title = format!("use {}", call.title());
                ("tool", title, call.arguments().to_owned())
            }
        };
        let paths = match call.kind() {
            Kind::Edit | Kind::Read => call.paths(),
            Kind::Command | Kind::Other => Vec::new(),
        };
        self.asked = self.asked.saturating_add(1);
        let open = Open {
            request: request.clone(),
            call: text::name(text::of(&params["toolCall"], "toolCallId")),
            options,
        };
        self.open.insert(self.asked, open);
        Ok(Question {
            number: self.asked,
            kind: kind.to_owned(),
            title: line(&title),
            detail: text::clip(&detail, DETAIL_BYTES_MAX),
            reason: String::new(),
            folder: folder.to_string_lossy().into_owned(),
            choices,
            paths,
        })
    }

    /// Takes an answer. `None` for a question that is not open, or a choice that it does not have.
    pub(super) fn answer(&mut self, number: u32, decision: &Decision) -> Option<Answered> {
        let open = self.open.get(&number)?;
        let choice = decision.choice.as_str();
        let answered = if choice == STOP {
            Answered {
                line: cancelled(&open.request),
                denied: Some(open.call.clone()),
                stop: true,
            }
        } else {
            let effect = open.options.get(choice)?;
            let outcome = json!({"outcome": {"outcome": "selected", "optionId": choice}});
            Answered {
                line: response(&open.request, &outcome),
                denied: (*effect == ChoiceEffect::Deny).then(|| open.call.clone()),
                stop: false,
            }
        };
        self.open.remove(&number);
        Some(answered)
    }

    /// Forgets all questions; gives their numbers and the answers that the protocol wants when a turn is
    /// cancelled.
    pub(super) fn cancel_all(&mut self) -> Vec<(u32, String)> {
        let open = std::mem::take(&mut self.open).into_iter();
        open.map(|(number, open)| (number, cancelled(&open.request)))
            .collect()
    }
}

/// Writes that a permission is not given because the turn is over.
pub(super) fn cancelled(request: &Value) -> String {
    response(request, &json!({"outcome": {"outcome": "cancelled"}}))
}

fn response(request: &Value, result: &Value) -> String {
    json!({"jsonrpc": "2.0", "id": request, "result": result}).to_string()
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
