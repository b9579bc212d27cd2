//! A provider that speaks as Anthropic's Messages API does, as far as Claude Code and other agents use
//! it.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::routing::post;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::scenario::{Fault, Scenario};
use super::server::{Server, lock};
use super::{Served, Tokens};

/// A key that is refused.
pub const BAD_KEY: &str = "sk-ant-bad";
/// What a call consumes that a tool follows, and the last one of a scenario. Of its input this much is
/// written to the cache.
const STEP: Tokens = Tokens {
    input: 1_150,
    cached: 1_000,
    output: 50,
    reasoning: 0,
};
const LAST: Tokens = Tokens {
    input: 2_260,
    cached: 2_000,
    output: 17,
    reasoning: 0,
};
const CACHE_WRITTEN: u64 = 50;
/// What an answer that breaks off has told at its beginning.
pub const BROKEN_OFF: Tokens = Tokens { output: 1, ..STEP };
/// How long an answer that never ends stays silent between two signs of life.
const SIGN_OF_LIFE: Duration = Duration::from_millis(200);
/// Parts of a text that are sent one after the other.
const PART_CHARS: usize = 8;

/// The provider; ends when it is dropped.
pub struct Anthropic {
    server: Server<Known>,
}

impl fmt::Debug for Anthropic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Anthropic")
            .field("address", &self.server.address)
            .finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Known {
    served: Mutex<Vec<Served>>,
    /// What was asked, whole.
    bodies: Mutex<Vec<Value>>,
    /// Faults that were served, by the scenario they are of.
    faults: Mutex<BTreeMap<String, usize>>,
    answers: AtomicU64,
}

impl Anthropic {
    /// Starts one at a free port of this host.
    ///
    /// # Errors
    /// There is no port or no thread.
    pub fn start() -> Result<Self> {
        let server = Server::start("fake-anthropic", |known| {
            Router::new()
                .route("/v1/messages", post(respond))
                .route("/v1/messages/count_tokens", post(count))
                .with_state(known)
        })?;
        Ok(Self { server })
    }

    /// Gives the address for `ANTHROPIC_BASE_URL`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.server.address)
    }

    /// Gives what was served so far, in order.
    #[must_use]
    pub fn served(&self) -> Vec<Served> {
        lock(&self.server.known.served).clone()
    }

    /// Gives the requests so far as they came, in order.
    #[must_use]
    pub fn bodies(&self) -> Vec<Value> {
        lock(&self.server.known.bodies).clone()
    }

    /// Gives the variables that lead Claude Code to this provider and nowhere else.
    #[must_use]
    pub fn settings(&self) -> Vec<(String, String)> {
        let settings = [
            ("ANTHROPIC_BASE_URL", self.url()),
            ("ANTHROPIC_API_KEY", "sk-ant-made-up".to_owned()),
            ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1".to_owned()),
            ("CLAUDE_CODE_MAX_RETRIES", "1".to_owned()),
            ("DISABLE_AUTOUPDATER", "1".to_owned()),
        ];
        settings
            .map(|(name, value)| (name.to_owned(), value))
            .into()
    }
}

/// What is answered.
#[derive(Clone, Debug)]
enum Answer {
    /// Blocks of a message, why it stops, and what it consumes.
    Message(Vec<Value>, &'static str, Tokens),
    /// A status with the kind of error and its message.
    Refused(u16, &'static str, &'static str),
    /// A message that breaks off.
    Dropped,
    /// A message that never ends.
    Endless,
}

async fn count() -> Response {
    answer(200, &json!({"input_tokens": 1_234}))
}

async fn respond(State(known): State<Arc<Known>>, headers: HeaderMap, body: Bytes) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = |name: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    lock(&known.bodies).push(body.clone());
    let place = Place::of(&body);
    let mut call = Served {
        conversation: text("x-claude-code-session-id"),
        model: body["model"].as_str().unwrap_or_default().to_owned(),
        scenario: place.scenario.clone(),
        step: place.step,
        status: 200,
        tokens: None,
    };
    let bad_key = text("x-api-key") == BAD_KEY;
    let chosen = if bad_key {
        Answer::Refused(401, "authentication_error", "invalid x-api-key")
    } else {
        known.answer(&place, &body)
    };
    let (blocks, stop, tokens) = match chosen {
        Answer::Refused(status, kind, message) => {
            call.status = status;
            lock(&known.served).push(call);
            let error = json!({"type": kind, "message": message});
            return answer(status, &json!({"type": "error", "error": error}));
        }
        Answer::Message(blocks, stop, tokens) => (blocks, Some(stop), tokens),
        Answer::Dropped => (vec![said("partial")], None, STEP),
        Answer::Endless => (vec![said("thinking")], Some("endless"), STEP),
    };
    let number = known.answers.fetch_add(1, Ordering::Relaxed);
    let message = json!({"id": format!("msg_{number}"), "type": "message", "role": "assistant",
        "model": call.model, "content": [], "stop_reason": null, "stop_sequence": null,
        "usage": usage(tokens, BROKEN_OFF.output)});
    if body["stream"] != true {
        // Nothing is told of an answer that breaks off before its end.
        call.tokens = stop.map(|_| tokens);
        lock(&known.served).push(call);
        let mut whole = message;
        whole["content"] = blocks.into();
        whole["stop_reason"] = json!(stop);
        whole["usage"] = usage(tokens, tokens.output);
        return match stop {
            Some(_) => answer(200, &whole),
            None => broken(),
        };
    }
    let index = {
        let mut served = lock(&known.served);
        call.tokens = Some(Tokens {
            output: BROKEN_OFF.output,
            ..tokens
        });
        served.push(call);
        served.len() - 1
    };
    let (sender, receiver) = mpsc::channel(16);
    let stream = Stream {
        sender,
        known: Arc::clone(&known),
        index,
    };
    tokio::spawn(stream.run(message, blocks, stop, tokens));
    let mut response = Response::new(Body::from_stream(ReceiverStream::new(receiver)));
    let kind = HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// Where a conversation is in its scenario.
struct Place {
    scenario: String,
    /// Results of tools since.
    step: usize,
    /// Words of the user since.
    again: usize,
}

impl Place {
    fn of(body: &Value) -> Self {
        let mut place = Self {
            scenario: String::new(),
            step: 0,
            again: 0,
        };
        for message in body["messages"].as_array().into_iter().flatten() {
            if message["role"] != "user" && message["role"] != "system" {
                continue;
            }
            let text = Value::from(message["content"].as_str().unwrap_or_default());
            let whole = [json!({"type": "text", "text": text})];
            let blocks = message["content"].as_array();
            let blocks = blocks.map_or(whole.as_slice(), Vec::as_slice);
            let has_result = blocks.iter().any(|block| block["type"] == "tool_result");
            place.step += usize::from(has_result);
            let texts = blocks.iter().filter_map(|block| block["text"].as_str());
            for text in texts.filter(|text| !text.trim_start().starts_with("<system-reminder>")) {
                match Scenario::find(text) {
                    Some(found) => {
                        place = Self {
                            scenario: found.to_owned(),
                            step: 0,
                            again: 0,
                        };
                    }
                    None if message["role"] == "user" => place.again += 1,
                    None => {}
                }
            }
        }
        place
    }
}

impl Known {
    fn answer(&self, place: &Place, body: &Value) -> Answer {
        let tools = body["tools"].as_array().map_or(&[][..], Vec::as_slice);
        if tools.is_empty() {
            return Answer::Message(vec![said("A side answer.")], "end_turn", LAST);
        }
        let mut scenario = Scenario::parse(&place.scenario);
        while let Scenario::Faulty { fault, times, then } = scenario {
            let mut faults = lock(&self.faults);
            let served = faults.entry(place.scenario.clone()).or_default();
            if *served < times {
                *served += 1;
                return of_fault(&fault);
            }
            drop(faults);
            scenario = *then;
        }
        let number = self.answers.fetch_add(1, Ordering::Relaxed);
        let id = format!("toolu_{number}");
        let (mut blocks, stop, tokens) = play(&scenario, place, tools, &id);
        // Agents name their tools differently, some only by case.
        for block in blocks
            .iter_mut()
            .filter(|block| block["type"] == "tool_use")
        {
            let wanted = block["name"].as_str().unwrap_or_default().to_lowercase();
            let mut names = tools.iter().filter_map(|tool| tool["name"].as_str());
            if let Some(name) = names.find(|name| name.to_lowercase() == wanted) {
                block["name"] = name.into();
            }
        }
        Answer::Message(blocks, stop, tokens)
    }
}

fn of_fault(fault: &Fault) -> Answer {
    let invalid = "invalid_request_error";
    match fault {
        Fault::Status(400) => Answer::Refused(400, invalid, "made up"),
        Fault::Status(401) => Answer::Refused(401, "authentication_error", "made up"),
        Fault::Status(429) => Answer::Refused(429, "rate_limit_error", "made up"),
        Fault::Status(status) => Answer::Refused(*status, "api_error", "made up"),
        Fault::Overloaded => Answer::Refused(529, "overloaded_error", "Overloaded"),
        Fault::Context => Answer::Refused(
            400,
            invalid,
            "prompt is too long: 210000 tokens > 200000 maximum",
        ),
        Fault::Quota => Answer::Refused(
            400,
            invalid,
            "Your credit balance is too low to access the Anthropic API.",
        ),
        Fault::Refusal => Answer::Message(vec![said("I cannot.")], "refusal", LAST),
        Fault::Incomplete => Answer::Message(vec![said("cut off he")], "max_tokens", LAST),
        Fault::Drop => Answer::Dropped,
        Fault::Hang => Answer::Endless,
    }
}

/// Makes the blocks of a step, why it stops, and what it consumes.
fn play(
    scenario: &Scenario,
    place: &Place,
    tools: &[Value],
    id: &str,
) -> (Vec<Value>, &'static str, Tokens) {
    let first = place.step == 0;
    let call = |name: &str, input: Value| (vec![used(name, &input, id)], "tool_use", STEP);
    let shell = |command: &str| call("Bash", json!({"command": command, "description": "run"}));
    let last = |text: &str| (vec![said(text)], "end_turn", LAST);
    let structured = tools.iter().any(|tool| tool["name"] == "StructuredOutput");
    let value = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| json!({}));
    match scenario {
        Scenario::Write { file, text } if first => {
            let command = format!("printf '%s\\n' {} > {}", quoted(text), quoted(file));
            let input = json!({"command": command, "description": "write a file"});
            let blocks = vec![
                json!({"type": "thinking", "thinking": "thinking about the file",
                    "signature": "c2ln"}),
                said("I will write the file."),
                used("Bash", &input, id),
            ];
            (blocks, "tool_use", STEP)
        }
        Scenario::Write { file, .. } => last(&format!("Wrote {file}.")),
        Scenario::Patch(file) if first => {
            let is_write = |tool: &&Value| {
                tool["name"]
                    .as_str()
                    .is_some_and(|name| name.eq_ignore_ascii_case("write"))
            };
            let write = tools.iter().find(is_write);
            // Agents name this differently too.
            let key = match write.map(|tool| &tool["input_schema"]["properties"]["filePath"]) {
                Some(Value::Object(_)) => "filePath",
                _ => "file_path",
            };
            call("Write", json!({key: file, "content": "patched\n"}))
        }
        Scenario::Run(command) | Scenario::Escalate(command) if first => shell(command),
        Scenario::Commands(commands) if place.step < commands.len() => shell(&commands[place.step]),
        Scenario::Call {
            server,
            tool,
            arguments,
        } if first => {
            let name = match server.as_str() {
                "" => tool.clone(),
                server => format!("mcp__{server}__{tool}"),
            };
            call(&name, value(arguments))
        }
        Scenario::Plan if place.step < 2 => {
            let (one, two) = match place.step {
                0 => ("in_progress", "pending"),
                _ => ("completed", "completed"),
            };
            let todo = |text: &str, status: &str| json!({"content": text, "activeForm": text, "status": status});
            call(
                "TodoWrite",
                json!({"todos": [todo("one", one), todo("two", two)]}),
            )
        }
        Scenario::Loop(times) if place.step < *times => shell(&format!("echo step {}", place.step)),
        Scenario::BadJson { times, .. } if structured && place.step < *times => {
            call("StructuredOutput", json!({"wrong": [place.step]}))
        }
        Scenario::BadJson { times, value: good } if structured && place.step == *times => {
            call("StructuredOutput", value(good))
        }
        Scenario::Json(good) if structured && first => call("StructuredOutput", value(good)),
        Scenario::BadJson { times, .. } if !structured && place.again < *times => {
            last("no JSON at all")
        }
        Scenario::Json(good) | Scenario::BadJson { value: good, .. } => last(good),
        Scenario::Say(text) => last(text),
        _ => last("Done."),
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn said(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

fn used(name: &str, input: &Value, id: &str) -> Value {
    json!({"type": "tool_use", "id": id, "name": name, "input": input})
}

/// Says what a call consumes. Input is told without what went through the cache.
fn usage(tokens: Tokens, output: u64) -> Value {
    json!({
        "input_tokens": tokens.input - tokens.cached - CACHE_WRITTEN,
        "cache_creation_input_tokens": CACHE_WRITTEN,
        "cache_read_input_tokens": tokens.cached,
        "output_tokens": output,
    })
}

fn answer(status: u16, body: &Value) -> Response {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    let headers = response.headers_mut();
    let kind = HeaderValue::from_static("application/json");
    headers.insert(header::CONTENT_TYPE, kind);
    if matches!(status, 429 | 529) {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// Breaks the connection in the middle of an answer.
fn broken() -> Response {
    let parts = [Ok(Bytes::from_static(b"{\"id\":")), Err(reset())];
    Response::new(Body::from_stream(tokio_stream::iter(parts)))
}

fn reset() -> io::Error {
    io::Error::from(io::ErrorKind::ConnectionReset)
}

/// Events of one answer.
struct Stream {
    sender: mpsc::Sender<io::Result<Bytes>>,
    known: Arc<Known>,
    /// Which call it is.
    index: usize,
}

impl Stream {
    async fn event(&self, kind: &str, mut data: Value) -> bool {
        data["type"] = kind.into();
        let text = format!("event: {kind}\ndata: {data}\n\n");
        self.sender.send(Ok(text.into())).await.is_ok()
    }

    /// Sends a message; without a reason to stop it breaks off in its first block.
    async fn run(
        self,
        message: Value,
        blocks: Vec<Value>,
        stop: Option<&'static str>,
        tokens: Tokens,
    ) {
        self.event("message_start", json!({"message": message}))
            .await;
        for (index, block) in blocks.iter().enumerate() {
            self.begin(index, block).await;
            match stop {
                None => {
                    // What was sent before arrives; a connection that is reset may lose it.
                    tokio::time::sleep(SIGN_OF_LIFE).await;
                    // Nobody may listen any more.
                    let _ = self.sender.send(Err(reset())).await;
                    return;
                }
                Some("endless") => return self.stay().await,
                Some(_) => {}
            }
            self.event("content_block_stop", json!({"index": index}))
                .await;
        }
        let delta = json!({"stop_reason": stop, "stop_sequence": null});
        let used = json!({"output_tokens": tokens.output});
        if self
            .event("message_delta", json!({"delta": delta, "usage": used}))
            .await
            && let Some(call) = lock(&self.known.served).get_mut(self.index)
        {
            call.tokens = Some(tokens);
        }
        self.event("message_stop", json!({})).await;
    }

    /// Sends a block bit by bit, all but its end.
    async fn begin(&self, index: usize, block: &Value) {
        let mut begun = block.clone();
        let mut deltas = Vec::new();
        match block["type"].as_str() {
            Some("text") => {
                begun["text"] = "".into();
                let text = block["text"].as_str().unwrap_or_default();
                let characters: Vec<char> = text.chars().collect();
                for part in characters.chunks(PART_CHARS) {
                    let part: String = part.iter().collect();
                    deltas.push(json!({"type": "text_delta", "text": part}));
                }
            }
            Some("thinking") => {
                begun["thinking"] = "".into();
                begun["signature"] = "".into();
                let (thinking, signature) = (&block["thinking"], &block["signature"]);
                deltas.push(json!({"type": "thinking_delta", "thinking": thinking}));
                deltas.push(json!({"type": "signature_delta", "signature": signature}));
            }
            _ => {
                begun["input"] = json!({});
                let input = block["input"].to_string();
                deltas.push(json!({"type": "input_json_delta", "partial_json": input}));
            }
        }
        let start = json!({"index": index, "content_block": begun});
        self.event("content_block_start", start).await;
        for delta in deltas {
            let delta = json!({"index": index, "delta": delta});
            self.event("content_block_delta", delta).await;
        }
    }

    /// Gives signs of life until nobody listens any more.
    async fn stay(&self) {
        while self.event("ping", json!({})).await {
            tokio::time::sleep(SIGN_OF_LIFE).await;
        }
    }
}
