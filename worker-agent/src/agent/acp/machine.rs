//! The conversation: JSON-RPC 2.0, a line for each message.
//!
//! The agent is offered neither files nor terminals of the worker: it has its own. The answer to a
//! prompt ends the turn. When a session is loaded the agent tells its history first, which is not told
//! again.

use std::path::PathBuf;

use muster_proto::v1::{SessionOpened, TextDelta, TurnEnd, activity};
use serde_json::{Value, json};

use super::ending;
use super::question::{self, Questions};
use super::tools::{self, Tools};
use super::usage::Usage;
use crate::agent::conversation::{
    AgentError, Conversation, Decision, ErrorClass, Opening, Step, Turn,
};
use crate::agent::lines::{members, too_long};
use crate::agent::text::{self, LINE_BYTES_MAX, MESSAGE_BYTES_MAX};
use crate::supervisor::End;

/// The version of the protocol that is spoken here.
const VERSION: u64 = 1;
const INVALID_REQUEST: i64 = -32_600;
const METHOD_NOT_FOUND: i64 = -32_601;

/// What the conversation waits for; requests have numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// Nothing was sent yet.
    #[default]
    New,
    Initializing(u64),
    Loading(u64),
    Creating(u64),
    /// The model is being chosen.
    Choosing(u64),
    Working(u64),
    /// It waits for a prompt, or for nothing any more.
    Idle,
}

impl Phase {
    /// The request whose answer is waited for.
    fn request(self) -> Option<u64> {
        match self {
            Self::New | Self::Idle => None,
            Self::Initializing(id)
            | Self::Loading(id)
            | Self::Creating(id)
            | Self::Choosing(id)
            | Self::Working(id) => Some(id),
        }
    }
}

/// The machine.
#[derive(Debug, Default)]
pub(super) struct Acp {
    phase: Phase,
    requests: u64,
    opening: Opening,
    /// The model that the task wants.
    model: Option<String>,
    images: Vec<String>,
    folder: PathBuf,
    session: String,
    session_model: String,
    software: String,
    /// What the agent has said since it last did something else.
    said: String,
    /// The message that is being told, for agents that do not name theirs.
    messages: u64,
    questions: Questions,
    tools: Tools,
    usage: Usage,
}

impl Conversation for Acp {
    fn open(&mut self, opening: &Opening) -> Vec<Step> {
        self.opening = opening.clone();
        self.folder.clone_from(&opening.folder);
        let params = json!({
            "protocolVersion": VERSION,
            "clientCapabilities": {
                "fs": {"readTextFile": false, "writeTextFile": false},
                "terminal": false,
            },
            "clientInfo": {"name": "muster", "version": env!("CARGO_PKG_VERSION")},
        });
        vec![self.request("initialize", &params, Phase::Initializing)]
    }

    fn line(&mut self, line: &[u8]) -> Vec<Step> {
        let Ok(value) = serde_json::from_slice::<Value>(line) else {
            return Vec::new();
        };
        let method = value.get("method").and_then(Value::as_str);
        match (method, value.get("id")) {
            (Some("session/update"), None) => self.updated(&value["params"]),
            (Some(_), None) => Vec::new(),
            (Some("session/request_permission"), Some(id)) => self.asked(id, &value["params"]),
            (Some(method), Some(id)) => {
                let message = format!("{method} is not offered");
                let error = json!({"code": METHOD_NOT_FOUND, "message": message});
                let answer = json!({"jsonrpc": "2.0", "id": id, "error": error});
                vec![Step::Send(answer.to_string())]
            }
            (None, Some(id)) => id
                .as_u64()
                .map_or_else(Vec::new, |id| self.answered(id, &value)),
            (None, None) => Vec::new(),
        }
    }

    fn overlong(&mut self, beginning: &[u8]) -> Vec<Step> {
        let Some(message) = members(beginning) else {
            return Vec::new();
        };
        let method = message.get("method").and_then(Value::as_str);
        match (method, message.get("id")) {
            (Some(method), Some(id)) => {
                let error = too_long(&format!("what the agent asks with {method}"));
                let answer = match method {
                    "session/request_permission" => question::cancelled(id),
                    _ => {
                        let error = json!({"code": INVALID_REQUEST, "message": &error.message});
                        json!({"jsonrpc": "2.0", "id": id, "error": error}).to_string()
                    }
                };
                let told = activity::Kind::Error(error.to_wire());
                vec![Step::Tell(told), Step::Send(answer)]
            }
            (Some(_), None) => Vec::new(),
            // Somebody waits for it, or may.
            (None, id) if id.is_none() || id.and_then(Value::as_u64) == self.phase.request() => {
                self.fail(too_long("a message of the agent"))
            }
            (None, _) => Vec::new(),
        }
    }

    fn prompt(&mut self, text: &str) -> Vec<Step> {
        self.said.clear();
        let params = json!({
            "sessionId": self.session,
            "prompt": [{"type": "text", "text": text}],
        });
        vec![self.request("session/prompt", &params, Phase::Working)]
    }

    fn answer(&mut self, question: u32, decision: &Decision) -> Vec<Step> {
        let Some(answered) = self.questions.answer(question, decision) else {
            return Vec::new();
        };
        if let Some(call) = &answered.denied {
            self.tools.deny(call);
        }
        let mut steps = vec![Step::Send(answered.line)];
        if answered.stop {
            steps.extend(self.cancel());
        }
        steps
    }

    fn cancel(&mut self) -> Vec<Step> {
        match self.phase {
            Phase::New | Phase::Idle => Vec::new(),
            Phase::Working(_) => {
                let mut steps = self.cancel_questions();
                let params = json!({"sessionId": self.session});
                let notice =
                    json!({"jsonrpc": "2.0", "method": "session/cancel", "params": params});
                steps.push(Step::Send(notice.to_string()));
                steps
            }
            Phase::Initializing(_)
            | Phase::Loading(_)
            | Phase::Creating(_)
            | Phase::Choosing(_) => {
                self.phase = Phase::Idle;
                vec![Step::TurnEnded(Turn {
                    end: TurnEnd::Interrupted,
                    ..Turn::default()
                })]
            }
        }
    }

    fn close(&mut self) -> Vec<Step> {
        vec![Step::CloseInput]
    }

    fn lost(&mut self, end: &End, stderr: &str) -> AgentError {
        ending::lost(end, stderr)
    }
}

impl Acp {
    /// Makes the machine of a task that wants this model and has these images, files of the work tree.
    pub(super) fn new(model: Option<&str>, images: &[String]) -> Self {
        Self {
            model: model.map(str::to_owned),
            images: images.to_vec(),
            ..Self::default()
        }
    }

    fn request(&mut self, method: &str, params: &Value, phase: fn(u64) -> Phase) -> Step {
        self.requests = self.requests.saturating_add(1);
        self.phase = phase(self.requests);
        let request =
            json!({"jsonrpc": "2.0", "id": self.requests, "method": method, "params": params});
        Step::Send(request.to_string())
    }

    /// Takes the answer to a request of ours.
    fn answered(&mut self, id: u64, answer: &Value) -> Vec<Step> {
        let result = match answer.get("error").filter(|error| !error.is_null()) {
            Some(error) => Err(error),
            None => Ok(&answer["result"]),
        };
        match self.phase {
            Phase::Initializing(wanted) if wanted == id => self.initialized(result),
            Phase::Loading(wanted) if wanted == id => self.loaded(result),
            Phase::Creating(wanted) if wanted == id => self.created(result),
            Phase::Choosing(wanted) if wanted == id => match result {
                Ok(_) => self.begin(),
                Err(error) => self.fail(ending::error(error, "the agent does not take the model")),
            },
            Phase::Working(wanted) if wanted == id => self.ended(result),
            _ => Vec::new(),
        }
    }

    fn initialized(&mut self, result: Result<&Value, &Value>) -> Vec<Step> {
        let result = match result {
            Ok(result) => result,
            Err(error) => return self.fail(ending::error(error, "the agent does not begin")),
        };
        if result["protocolVersion"] != VERSION {
            let version = &result["protocolVersion"];
            let message = format!(
                "the agent speaks version {version} of the Agent Client Protocol, not {VERSION}"
            );
            return self.fail(invalid(&message));
        }
        let about = &result["agentInfo"];
        let software = format!("{} {}", text::of(about, "name"), text::of(about, "version"));
        self.software = text::name(software.trim());
        let Some(wanted) = self.opening.resume.clone() else {
            return vec![self.create()];
        };
        if result["agentCapabilities"]["loadSession"] == true {
            self.session = wanted;
            self.usage.resumed();
            let params = json!({
                "sessionId": self.session,
                "cwd": self.folder,
                "mcpServers": [],
            });
            return vec![self.request("session/load", &params, Phase::Loading)];
        }
        self.opening.begin_anew();
        let reason = "this agent cannot go on with an earlier session".to_owned();
        vec![Step::NotResumed(reason), self.create()]
    }

    fn create(&mut self) -> Step {
        let params = json!({"cwd": self.folder, "mcpServers": []});
        self.request("session/new", &params, Phase::Creating)
    }

    fn loaded(&mut self, result: Result<&Value, &Value>) -> Vec<Step> {
        match result {
            Ok(result) => self.opened(result, true),
            Err(error) => {
                let error = ending::error(error, "the agent does not load the session");
                self.usage = Usage::default();
                self.opening.begin_anew();
                vec![Step::NotResumed(error.message), self.create()]
            }
        }
    }

    fn created(&mut self, result: Result<&Value, &Value>) -> Vec<Step> {
        match result {
            Ok(result) => {
                self.session = text::of(result, "sessionId").to_owned();
                if self.session.is_empty() {
                    return self.fail(invalid("the agent's session has no id"));
                }
                self.opened(result, false)
            }
            Err(error) => self.fail(ending::error(error, "the agent opens no session")),
        }
    }

    /// Takes what an agent says of a session, and chooses its model if the task wants one.
    fn opened(&mut self, result: &Value, resumed: bool) -> Vec<Step> {
        let options = result["configOptions"].as_array().into_iter().flatten();
        let option = options
            .into_iter()
            .find(|option| option["category"] == "model" || option["id"] == "model");
        let current = match option {
            Some(option) => text::of(option, "currentValue"),
            None => text::of(&result["models"], "currentModelId"),
        };
        let wanted = self.model.clone().filter(|wanted| wanted != current);
        self.session_model = text::name(wanted.as_deref().unwrap_or(current));
        let mut steps = vec![Step::Tell(activity::Kind::SessionOpened(SessionOpened {
            id: text::name(&self.session),
            model: self.session_model.clone(),
            software: self.software.clone(),
            resumed,
        }))];
        let session = &self.session;
        let choose = match (&wanted, option) {
            (None, _) => None,
            (Some(wanted), Some(option)) => Some((
                "session/set_config_option",
                json!({"sessionId": session, "configId": option["id"], "value": wanted}),
            )),
            (Some(wanted), None) if result["models"].is_object() => Some((
                "session/set_model",
                json!({"sessionId": session, "modelId": wanted}),
            )),
            (Some(wanted), None) => {
                let message = format!("this agent does not let its model be chosen ({wanted})");
                steps.extend(self.fail(invalid(&message)));
                return steps;
            }
        };
        match choose {
            Some((method, params)) => steps.push(self.request(method, &params, Phase::Choosing)),
            None => steps.extend(self.begin()),
        }
        steps
    }

    /// Sends the first prompt. The protocol has no place for what holds for the whole conversation.
    fn begin(&mut self) -> Vec<Step> {
        let instructions = std::mem::take(&mut self.opening.instructions);
        let prompt = std::mem::take(&mut self.opening.prompt);
        let text = match instructions.as_str() {
            "" => prompt,
            instructions => format!("{instructions}\n\n{prompt}"),
        };
        let mut parts = vec![json!({"type": "text", "text": text})];
        for image in &self.images {
            let uri = format!("file://{}", self.folder.join(image).display());
            parts.push(json!({"type": "resource_link", "name": image, "uri": uri}));
        }
        let params = json!({"sessionId": self.session, "prompt": parts});
        vec![self.request("session/prompt", &params, Phase::Working)]
    }

    fn updated(&mut self, params: &Value) -> Vec<Step> {
        let update = &params["update"];
        let kind = text::of(update, "sessionUpdate");
        if kind == "usage_update" {
            self.usage
                .updated(update, matches!(self.phase, Phase::Loading(_)));
        }
        // What was before the turn is the history of a loaded session.
        if !matches!(self.phase, Phase::Working(_)) || text::of(params, "sessionId") != self.session
        {
            return Vec::new();
        }
        let told = match kind {
            "agent_message_chunk" => return self.said(update),
            "agent_thought_chunk" => {
                return self.delta(update, activity::Kind::Reasoning);
            }
            "tool_call" | "tool_call_update" => self.tools.updated(update, &self.folder),
            "plan" => vec![tools::plan(update)],
            _ => return Vec::new(),
        };
        if kind == "tool_call" {
            self.said.clear();
            self.messages = self.messages.saturating_add(1);
        }
        told.into_iter().map(Step::Tell).collect()
    }

    fn said(&mut self, update: &Value) -> Vec<Step> {
        let room = MESSAGE_BYTES_MAX.saturating_sub(self.said.len());
        self.said
            .push_str(&text::clip(text::of(&update["content"], "text"), room));
        self.delta(update, activity::Kind::Message)
    }

    fn delta(&self, update: &Value, kind: fn(TextDelta) -> activity::Kind) -> Vec<Step> {
        let item = match text::of(update, "messageId") {
            "" => format!("message-{}", self.messages),
            id => text::name(id),
        };
        let pieces = text::pieces(text::of(&update["content"], "text"));
        let deltas = pieces.map(|piece| {
            Step::Tell(kind(TextDelta {
                item: item.clone(),
                text: piece.to_owned(),
            }))
        });
        deltas.collect()
    }

    fn asked(&mut self, id: &Value, params: &Value) -> Vec<Step> {
        if !matches!(self.phase, Phase::Working(_)) {
            return vec![Step::Send(question::cancelled(id))];
        }
        let call = self.tools.about(&params["toolCall"], &self.folder);
        vec![match self.questions.ask(id, params, &call, &self.folder) {
            Ok(question) => Step::Ask(question),
            Err(answer) => Step::Send(answer),
        }]
    }

    fn ended(&mut self, result: Result<&Value, &Value>) -> Vec<Step> {
        let mut steps = self.cancel_questions();
        self.phase = Phase::Idle;
        let nothing = Value::Null;
        let usage = self
            .usage
            .ended(result.unwrap_or(&nothing), &self.session_model);
        steps.extend(usage.into_iter().map(activity::Kind::Usage).map(Step::Tell));
        let said = std::mem::take(&mut self.said);
        steps.push(Step::TurnEnded(match result {
            Ok(result) => ending::turn(result.get("stopReason"), said),
            Err(error) => ending::failed(ending::error(error, "the turn failed")),
        }));
        steps
    }

    fn cancel_questions(&mut self) -> Vec<Step> {
        let cancelled = self.questions.cancel_all().into_iter();
        let steps =
            cancelled.flat_map(|(number, answer)| [Step::Withdraw(number), Step::Send(answer)]);
        steps.collect()
    }

    fn fail(&mut self, error: AgentError) -> Vec<Step> {
        self.phase = Phase::Idle;
        let mut steps = self.cancel_questions();
        steps.push(Step::TurnEnded(ending::failed(error)));
        steps
    }
}

fn invalid(message: &str) -> AgentError {
    AgentError {
        class: ErrorClass::InvalidRequest,
        message: text::clip(message, LINE_BYTES_MAX),
        http_status: None,
        retry_after: None,
    }
}
