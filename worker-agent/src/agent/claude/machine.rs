//! The conversation over stream-json in both directions, with the control protocol.
//!
//! Facts from Claude Code 2.1.329: the last line of a turn may say `success` and be an error; `type` is
//! not its first key; each block of a message has a line of its own, which repeats the deltas; the
//! session has an id only once the first prompt was sent.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use muster_proto::v1::{ModelUsage, RetryNotice, SessionOpened, TextDelta, TurnEnd, activity};
use serde_json::{Map, Value, json};

use super::ending::{self, Hints};
use super::question::{self, Questions};
use super::tools::Tools;
use super::usage::{SYNTHETIC, Usage};
use crate::agent::conversation::{
    AgentError, Conversation, Decision, ErrorClass, Opening, Step, Turn,
};
use crate::agent::lines::{members, too_long};
use crate::agent::text;
use crate::supervisor::End;

/// Most subagents whose streams are told apart.
const STREAMS_MAX: usize = 64;

/// Where the conversation is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// Nothing was sent yet.
    #[default]
    New,
    /// The program is told what holds for the whole conversation; the prompt waits.
    Initializing,
    /// The agent works.
    Working,
    /// It waits for a prompt.
    Idle,
}

/// The machine.
#[derive(Debug, Default)]
pub(super) struct Claude {
    phase: Phase,
    folder: PathBuf,
    /// The first prompt, until it is sent.
    prompt: String,
    /// Images for it.
    images: Vec<String>,
    /// The session that was to be gone on with.
    resume: Option<String>,
    /// Id and model of the session, as told.
    session: Option<(String, String)>,
    /// Requests sent.
    requests: u32,
    /// Messages that are streamed, by the tool call whose subagent speaks; empty for the agent itself.
    streams: BTreeMap<String, Stream>,
    hints: Hints,
    questions: Questions,
    tools: Tools,
    usage: Usage,
}

/// A message that is streamed, and what of it was told.
#[derive(Debug, Default)]
struct Stream {
    id: String,
    said: bool,
    thought: bool,
}

impl Conversation for Claude {
    fn open(&mut self, opening: &Opening) -> Vec<Step> {
        self.folder.clone_from(&opening.folder);
        self.prompt.clone_from(&opening.prompt);
        if !self.images.is_empty() {
            // It reads images as it reads files.
            let images = self.images.join("\n- ");
            self.prompt
                .push_str(&format!("\n\nImages, to be read first:\n- {images}\n"));
        }
        self.resume.clone_from(&opening.resume);
        if self.resume.is_some() {
            self.usage.resumed();
        }
        self.phase = Phase::Initializing;
        // Through the pipe, since arguments are seen by everybody and are at most 128 KiB long.
        let mut request = Map::new();
        request.insert("subtype".to_owned(), "initialize".into());
        if !opening.instructions.is_empty() {
            let instructions = opening.instructions.as_str();
            request.insert("appendSystemPrompt".to_owned(), instructions.into());
        }
        if let Some(schema) = &opening.output_schema {
            request.insert("jsonSchema".to_owned(), schema.clone());
        }
        vec![self.request(&request.into())]
    }

    fn line(&mut self, line: &[u8]) -> Vec<Step> {
        let Ok(value) = serde_json::from_slice::<Value>(line) else {
            return Vec::new();
        };
        match text::of(&value, "type") {
            "system" => self.system(&value),
            "stream_event" => self.streamed(&value),
            "assistant" => self.said(&value),
            "user" => self.heard(&value),
            "result" => self.ended(&value),
            "control_request" => self.asked(&value, line.len()),
            "control_cancel_request" => {
                let number = self.questions.withdraw(text::of(&value, "request_id"));
                number.map(Step::Withdraw).into_iter().collect()
            }
            "control_response" => self.responded(&value["response"]),
            "rate_limit_event" => {
                self.hints.limit = value["rate_limit_info"]["status"] == "rejected";
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn overlong(&mut self, beginning: &[u8]) -> Vec<Step> {
        let Some(message) = members(beginning) else {
            return Vec::new();
        };
        let text = |key: &str| message.get(key).and_then(Value::as_str);
        match (text("type"), text("request_id")) {
            (Some("control_request"), Some(id)) => {
                let error = too_long("what the agent asks");
                let denied = question::denied(id, &error.message, false);
                vec![
                    Step::Tell(activity::Kind::Error(error.to_wire())),
                    Step::Send(denied),
                ]
            }
            (Some("assistant" | "user" | "system" | "stream_event"), _) => Vec::new(),
            // Somebody waits for it, or may: the type of a turn's end is not its first member.
            _ => self.failed(too_long("a message of Claude Code")),
        }
    }

    fn prompt(&mut self, text: &str) -> Vec<Step> {
        self.phase = Phase::Working;
        self.hints = Hints::default();
        vec![Step::Send(user(text))]
    }

    fn answer(&mut self, question: u32, decision: &Decision) -> Vec<Step> {
        let told = self.questions.answer(question, decision);
        told.map(Step::Send).into_iter().collect()
    }

    fn cancel(&mut self) -> Vec<Step> {
        match self.phase {
            Phase::Working => vec![self.request(&json!({"subtype": "interrupt"}))],
            Phase::Initializing => {
                self.phase = Phase::Idle;
                vec![Step::TurnEnded(Turn {
                    end: TurnEnd::Interrupted,
                    ..Turn::default()
                })]
            }
            Phase::New | Phase::Idle => Vec::new(),
        }
    }

    fn close(&mut self) -> Vec<Step> {
        vec![Step::CloseInput]
    }

    fn lost(&mut self, end: &End, stderr: &str) -> AgentError {
        ending::lost(end, stderr)
    }
}

impl Claude {
    /// Makes the machine of a task with these images, which are files of the work tree.
    pub(super) fn new(images: &[String]) -> Self {
        Self {
            images: images.to_vec(),
            ..Self::default()
        }
    }

    fn request(&mut self, request: &Value) -> Step {
        self.requests = self.requests.saturating_add(1);
        let id = format!("muster-{}", self.requests);
        let request = json!({"type": "control_request", "request_id": id, "request": request});
        Step::Send(request.to_string())
    }

    /// The turn cannot go on.
    fn failed(&mut self, error: AgentError) -> Vec<Step> {
        let mut steps: Vec<Step> = self.questions.withdraw_all().map(Step::Withdraw).collect();
        if matches!(self.phase, Phase::Initializing | Phase::Working) {
            self.phase = Phase::Idle;
            steps.push(Step::TurnEnded(Turn {
                end: TurnEnd::Failed,
                error: Some(error),
                ..Turn::default()
            }));
        }
        steps
    }

    fn responded(&mut self, response: &Value) -> Vec<Step> {
        if self.phase != Phase::Initializing {
            return Vec::new();
        }
        if response["subtype"] == "success" {
            let prompt = std::mem::take(&mut self.prompt);
            return self.prompt(&prompt);
        }
        let message = format!(
            "Claude Code does not begin: {}",
            text::of(response, "error")
        );
        self.failed(AgentError {
            class: ErrorClass::InvalidRequest,
            message: text::clip(&message, text::LINE_BYTES_MAX),
            http_status: None,
            retry_after: None,
        })
    }

    fn system(&mut self, line: &Value) -> Vec<Step> {
        match text::of(line, "subtype") {
            "init" => self.opened(line),
            "api_retry" => {
                let number = |key: &str| line[key].as_u64().unwrap_or_default();
                let count = |key: &str| u32::try_from(number(key)).unwrap_or(u32::MAX);
                let delay = Duration::from_millis(number("retry_delay_ms"));
                self.hints.delay = Some(delay);
                let error = ending::retried(line, &self.hints);
                let attempt = count("attempt");
                let mut steps = vec![Step::Tell(activity::Kind::Retry(RetryNotice {
                    attempt,
                    attempts_max: count("max_retries"),
                    delay: delay.try_into().ok(),
                    error: Some(error.to_wire()),
                }))];
                // Before it tries for the first time after a 401 it renews its login.
                let renews = error.http_status == Some(401) && attempt <= 1;
                if error.class.is_final() && !renews && self.phase == Phase::Working {
                    steps.push(self.request(&json!({"subtype": "interrupt"})));
                    steps.extend(self.failed(error));
                }
                steps
            }
            _ => Vec::new(),
        }
    }

    fn opened(&mut self, line: &Value) -> Vec<Step> {
        let id = text::name(text::of(line, "session_id"));
        let model = text::name(text::of(line, "model"));
        let session = Some((id.clone(), model.clone()));
        if id.is_empty() || self.session == session {
            return Vec::new();
        }
        let is_first = self.session.is_none();
        self.session = session;
        let resume = self.resume.as_deref();
        let resumed = resume == Some(id.as_str());
        let mut steps = Vec::new();
        if let Some(wanted) = resume
            && is_first
            && !resumed
        {
            let message = format!("the session {wanted} is not on this host");
            steps.push(Step::NotResumed(message));
        }
        steps.push(Step::Tell(activity::Kind::SessionOpened(SessionOpened {
            id,
            model,
            software: text::name(&format!(
                "Claude Code {}",
                text::of(line, "claude_code_version")
            )),
            resumed,
        })));
        steps
    }

    /// Takes a piece of a message on its way.
    fn streamed(&mut self, line: &Value) -> Vec<Step> {
        let parent = text::of(line, "parent_tool_use_id");
        let event = &line["event"];
        match text::of(event, "type") {
            "message_start" => {
                let message = &event["message"];
                let stream = Stream {
                    id: text::name(text::of(message, "id")),
                    ..Stream::default()
                };
                if self.streams.len() >= STREAMS_MAX {
                    self.streams.pop_last();
                }
                self.streams.insert(text::name(parent), stream);
                used(self.usage.began(parent, message))
            }
            "message_delta" => used(self.usage.grew(parent, &event["usage"])),
            "content_block_start" => self.delta(parent, event, &event["content_block"]),
            "content_block_delta" => self.delta(parent, event, &event["delta"]),
            _ => Vec::new(),
        }
    }

    fn delta(&mut self, parent: &str, event: &Value, delta: &Value) -> Vec<Step> {
        let Some(stream) = self.streams.get_mut(&text::name(parent)) else {
            return Vec::new();
        };
        let said = text::of(delta, "text");
        let thought = text::of(delta, "thinking");
        stream.said |= !said.is_empty();
        stream.thought |= !thought.is_empty();
        let item = format!(
            "{}:{}",
            stream.id,
            event["index"].as_u64().unwrap_or_default()
        );
        let mut steps = told(&item, said, activity::Kind::Message);
        steps.extend(told(&item, thought, activity::Kind::Reasoning));
        steps
    }

    /// Takes a message, or a block of one.
    fn said(&mut self, line: &Value) -> Vec<Step> {
        let message = &line["message"];
        if message["model"] == SYNTHETIC {
            // Errors come as messages too; the turn's end says the same.
            let kind = text::of(line, "error");
            if !kind.is_empty() {
                self.hints.kind = text::name(kind);
            }
            return Vec::new();
        }
        let parent = text::name(text::of(line, "parent_tool_use_id"));
        let id = text::name(text::of(message, "id"));
        let stream = self.streams.get(&parent).filter(|stream| stream.id == id);
        let (said, thought) = stream.map_or((false, false), |stream| (stream.said, stream.thought));
        let mut steps = used(self.usage.whole(message));
        for block in message["content"].as_array().into_iter().flatten() {
            match text::of(block, "type") {
                "text" if !said => {
                    steps.extend(told(&id, text::of(block, "text"), activity::Kind::Message));
                }
                "thinking" if !thought => {
                    let text = text::of(block, "thinking");
                    steps.extend(told(&id, text, activity::Kind::Reasoning));
                }
                "tool_use" => {
                    let began = self.tools.began(block, &self.folder);
                    steps.extend(began.map(Step::Tell));
                }
                _ => {}
            }
        }
        steps
    }

    /// Takes what the agent was told: results of its tools.
    fn heard(&mut self, line: &Value) -> Vec<Step> {
        let blocks = line["message"]["content"].as_array().into_iter().flatten();
        let results = blocks.filter(|block| block["type"] == "tool_result");
        let tools = &mut self.tools;
        results
            .flat_map(|result| tools.ended(result, line))
            .map(Step::Tell)
            .collect()
    }

    fn asked(&mut self, line: &Value, bytes: usize) -> Vec<Step> {
        let id = text::of(line, "request_id");
        let request = &line["request"];
        if request["subtype"] == "can_use_tool" {
            return vec![match self.questions.ask(id, request, &self.folder, bytes) {
                Ok(question) => Step::Ask(question),
                Err(answer) => Step::Send(answer),
            }];
        }
        let answer = json!({
            "type": "control_response",
            "response": {"subtype": "error", "request_id": id, "error": "not supported"},
        });
        vec![Step::Send(answer.to_string())]
    }

    fn ended(&mut self, line: &Value) -> Vec<Step> {
        let mut steps: Vec<Step> = self.questions.withdraw_all().map(Step::Withdraw).collect();
        let usage = self.usage.summed(line).into_iter();
        steps.extend(usage.map(activity::Kind::Usage).map(Step::Tell));
        self.streams.clear();
        let hints = std::mem::take(&mut self.hints);
        // A turn that the agent began by itself, such as one about a command in the background, is
        // nobody's.
        if self.phase == Phase::Working {
            self.phase = Phase::Idle;
            steps.push(Step::TurnEnded(ending::turn(line, &hints)));
        }
        steps
    }
}

fn user(text: &str) -> String {
    json!({
        "type": "user",
        "message": {"role": "user", "content": text},
        "parent_tool_use_id": null,
        "session_id": "",
    })
    .to_string()
}

fn used(usage: Option<ModelUsage>) -> Vec<Step> {
    let told = usage.map(|usage| Step::Tell(activity::Kind::Usage(usage)));
    told.into_iter().collect()
}

fn told(item: &str, text: &str, kind: fn(TextDelta) -> activity::Kind) -> Vec<Step> {
    let delta = |text: &str| TextDelta {
        item: item.to_owned(),
        text: text.to_owned(),
    };
    text::pieces(text)
        .map(|piece| Step::Tell(kind(delta(piece))))
        .collect()
}
