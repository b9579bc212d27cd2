//! A provider that speaks as OpenAI's Responses API does, as far as Codex uses it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use axum::routing::post;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::scenario::{Fault, Scenario};
use super::server::{Server, lock};
use super::{Served, Tokens};

/// A key that is refused.
pub const BAD_KEY: &str = "sk-bad";
/// What the last answer of a scenario consumes, and each one before.
const LAST: Tokens = Tokens {
    input: 2_000,
    cached: 900,
    output: 10,
    reasoning: 0,
};
const STEP: Tokens = Tokens {
    input: 1_000,
    cached: 100,
    output: 40,
    reasoning: 20,
};
/// How long an answer that never ends stays silent between two signs of life.
const SIGN_OF_LIFE: Duration = Duration::from_millis(200);
/// Parts of a text that are sent one after the other.
const PART_CHARS: usize = 8;

/// The provider; ends when it is dropped.
pub struct OpenAi {
    server: Server<Known>,
}

impl fmt::Debug for OpenAi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenAi")
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

impl OpenAi {
    /// Starts one at a free port of this host.
    ///
    /// # Errors
    /// There is no port or no thread.
    pub fn start() -> Result<Self> {
        let server = Server::start("fake-openai", |known| {
            Router::new()
                .route("/v1/responses", post(respond))
                .with_state(known)
        })?;
        Ok(Self { server })
    }

    /// Gives the address for `base_url`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/v1", self.server.address)
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

    /// Writes settings into a home of Codex that lead to this provider and nowhere else. Its key is
    /// in `OPENAI_API_KEY`.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write_settings(&self, home: &Path) -> Result<()> {
        std::fs::create_dir_all(home)?;
        let url = self.url();
        let text = format!(
            r#"model = "gpt-5.5"
model_provider = "fake"
check_for_update_on_startup = false
web_search = "disabled"

[analytics]
enabled = false

[otel]
metrics_exporter = "none"

[tools.update_plan]
enabled = true

[features]
plugins = false
apps = false
shell_snapshot = false

[model_providers.fake]
name = "fake"
base_url = "{url}"
wire_api = "responses"
env_key = "OPENAI_API_KEY"
request_max_retries = 1
stream_max_retries = 1
stream_idle_timeout_ms = 60000
"#
        );
        std::fs::write(home.join("config.toml"), text)?;
        Ok(())
    }
}

/// What is answered.
enum Answer {
    Items(Vec<Value>, Tokens),
    Fault(Fault),
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
        conversation: text("thread-id"),
        model: body["model"].as_str().unwrap_or_default().to_owned(),
        scenario: place.scenario.clone(),
        step: place.step,
        status: 200,
        tokens: None,
    };
    let bad_key = text("authorization") == format!("Bearer {BAD_KEY}");
    let answer = if bad_key {
        Answer::Fault(Fault::Status(401))
    } else {
        known.answer(&place, &body)
    };
    match answer {
        Answer::Fault(Fault::Status(status)) => {
            call.status = status;
            lock(&known.served).push(call);
            refuse(status)
        }
        Answer::Fault(fault) => {
            lock(&known.served).push(call);
            known.stream(move |stream| fail(stream, fault))
        }
        Answer::Items(items, tokens) => {
            call.tokens = Some(tokens);
            lock(&known.served).push(call);
            known.stream(move |stream| complete(stream, items, tokens))
        }
    }
}

/// Where a conversation is in its scenario.
struct Place {
    scenario: String,
    /// Outputs of tools since.
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
        for item in body["input"].as_array().into_iter().flatten() {
            let kind = item["type"].as_str().unwrap_or("message");
            if kind.ends_with("_output") {
                place.step += 1;
            } else if kind == "message" && item["role"] == "user" {
                let said = said(item);
                match Scenario::find(&said) {
                    Some(found) => {
                        place = Self {
                            scenario: found.to_owned(),
                            step: 0,
                            again: 0,
                        }
                    }
                    None => place.again += 1,
                }
            }
        }
        place
    }
}

fn said(item: &Value) -> String {
    match &item["content"] {
        Value::String(text) => text.clone(),
        parts => {
            let parts = parts.as_array().into_iter().flatten();
            parts.filter_map(|part| part["text"].as_str()).collect()
        }
    }
}

impl Known {
    fn answer(&self, place: &Place, body: &Value) -> Answer {
        let mut scenario = Scenario::parse(&place.scenario);
        while let Scenario::Faulty { fault, times, then } = scenario {
            let mut faults = lock(&self.faults);
            let served = faults.entry(place.scenario.clone()).or_default();
            if *served < times {
                *served += 1;
                return Answer::Fault(fault);
            }
            drop(faults);
            scenario = *then;
        }
        let number = self.answers.fetch_add(1, Ordering::Relaxed);
        let (items, tokens) = play(&scenario, place, body, number);
        Answer::Items(items, tokens)
    }

    /// Answers with a stream of events that `write` makes.
    fn stream<W, F>(&self, write: W) -> Response
    where
        W: FnOnce(Stream) -> F,
        F: Future<Output = ()> + Send + 'static,
    {
        let number = self.answers.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(write(Stream {
            id: format!("resp_{number}"),
            sender,
        }));
        let mut response = Response::new(Body::from_stream(ReceiverStream::new(receiver)));
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static("text/event-stream"),
        );
        response
    }
}

/// Makes the items of a step, and what it consumes.
fn play(scenario: &Scenario, place: &Place, body: &Value, number: u64) -> (Vec<Value>, Tokens) {
    let id = format!("call_{number}");
    let first = place.step == 0;
    let shell = |command: &str, more: Value| (vec![shell(command, &id, more)], STEP);
    let last = |text: String| (vec![message(&text, "msg_last")], LAST);
    match scenario {
        Scenario::Write { file, text } if first => {
            let command = format!("printf '%s\\n' {} > {}", quoted(text), quoted(file));
            let items = vec![
                reasoning("thinking about the file"),
                message("I will write the file.", "msg_first"),
                self::shell(&command, &id, json!({})),
            ];
            (items, STEP)
        }
        Scenario::Write { file, .. } => last(format!("Wrote {file}.")),
        Scenario::Patch(file) if first => {
            let patch = format!("*** Begin Patch\n*** Add File: {file}\n+patched\n*** End Patch\n");
            let item = json!({"type": "custom_tool_call", "id": format!("ctc_{id}"),
                "call_id": id, "name": "apply_patch", "input": patch, "status": "completed"});
            (vec![item], STEP)
        }
        Scenario::Run(command) if first => shell(command, json!({})),
        Scenario::Commands(commands) if place.step < commands.len() => {
            shell(&commands[place.step], json!({}))
        }
        Scenario::Escalate(command) if first => shell(
            command,
            json!({"sandbox_permissions": "require_escalated",
                "justification": "it must write outside"}),
        ),
        Scenario::Call {
            server,
            tool,
            arguments,
        } if first => {
            let mut item = function(tool, arguments, &id);
            if !server.is_empty() {
                item["namespace"] = format!("mcp__{server}").into();
            }
            (vec![item], STEP)
        }
        Scenario::Plan if place.step < 2 => {
            let (one, two) = if first {
                ("in_progress", "pending")
            } else {
                ("completed", "completed")
            };
            let plan = json!({"plan": [{"step": "one", "status": one},
                {"step": "two", "status": two}]});
            (vec![function("update_plan", &plan.to_string(), &id)], STEP)
        }
        Scenario::Loop(times) if place.step < *times => {
            shell(&format!("echo step {}", place.step), json!({}))
        }
        Scenario::Json(value) => last(value.clone()),
        Scenario::BadJson { times, .. } if place.again < *times => last("no JSON at all".into()),
        Scenario::BadJson { value, .. } => last(value.clone()),
        Scenario::Say(text) => last(text.clone()),
        Scenario::Escalate(_) => last(told(body)),
        _ => last("Done.".into()),
    }
}

/// What the last tool answered, so that a test sees what the model saw.
fn told(body: &Value) -> String {
    let items = body["input"].as_array();
    let outputs = items.map(Vec::as_slice).unwrap_or_default().iter();
    let mut outputs = outputs.rev().filter(|item| {
        let kind = item["type"].as_str().unwrap_or_default();
        kind.ends_with("_output")
    });
    let output = outputs.next().map(|item| &item["output"]);
    match output {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn message(text: &str, id: &str) -> Value {
    json!({"type": "message", "role": "assistant", "id": id, "status": "completed",
        "content": [{"type": "output_text", "text": text, "annotations": []}]})
}

fn reasoning(text: &str) -> Value {
    json!({"type": "reasoning", "id": "rs_1", "encrypted_content": null,
        "summary": [{"type": "summary_text", "text": text}]})
}

fn function(name: &str, arguments: &str, id: &str) -> Value {
    json!({"type": "function_call", "id": format!("fc_{id}"), "call_id": id, "name": name,
        "arguments": arguments, "status": "completed"})
}

fn shell(command: &str, id: &str, more: Value) -> Value {
    let mut arguments = json!({ "cmd": command });
    if let (Some(arguments), Value::Object(more)) = (arguments.as_object_mut(), more) {
        arguments.extend(more);
    }
    function("exec_command", &arguments.to_string(), id)
}

fn refuse(status: u16) -> Response {
    let code = match status {
        401 => "invalid_api_key",
        429 => "rate_limit_exceeded",
        _ => "server_error",
    };
    let error = json!({"error": {"message": format!("made up: {status}"), "type": code,
        "code": code}});
    let mut response = Response::new(Body::from(error.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    if status == 429 {
        headers.insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
    }
    response
}

/// Events of one answer.
struct Stream {
    id: String,
    sender: mpsc::Sender<Result<Bytes, Infallible>>,
}

impl Stream {
    /// Sends an event; tells whether somebody still listens.
    async fn event(&self, kind: &str, mut data: Value) -> bool {
        data["type"] = kind.into();
        let text = format!("event: {kind}\ndata: {data}\n\n");
        self.sender.send(Ok(text.into())).await.is_ok()
    }

    async fn begin(&self) {
        let response = json!({"id": self.id, "object": "response", "status": "in_progress",
            "output": []});
        self.event("response.created", json!({ "response": response }))
            .await;
    }

    /// Sends an item bit by bit, all but its end.
    async fn item(&self, index: usize, item: &Value) {
        let id = item["id"].clone();
        let mut begun = item.clone();
        begun["status"] = "in_progress".into();
        let text = match item["type"].as_str() {
            Some("message") => {
                begun["content"] = json!([]);
                item["content"][0]["text"].as_str()
            }
            Some("reasoning") => {
                begun["summary"] = json!([]);
                item["summary"][0]["text"].as_str()
            }
            _ => None,
        };
        let added = json!({"output_index": index, "item": begun});
        self.event("response.output_item.added", added).await;
        let Some(text) = text else {
            return;
        };
        if item["type"] == "reasoning" {
            let at = json!({"output_index": index, "item_id": id, "summary_index": 0});
            self.event("response.reasoning_summary_part.added", at.clone())
                .await;
            let mut delta = at;
            delta["delta"] = text.into();
            self.event("response.reasoning_summary_text.delta", delta)
                .await;
            return;
        }
        let characters: Vec<char> = text.chars().collect();
        for part in characters.chunks(PART_CHARS) {
            let part: String = part.iter().collect();
            let delta = json!({"output_index": index, "content_index": 0, "item_id": id,
                "delta": part});
            self.event("response.output_text.delta", delta).await;
        }
    }

    async fn failed(&self, code: &str, message: &str) {
        let response = json!({"id": self.id, "object": "response", "status": "failed",
            "error": {"code": code, "message": message}});
        self.event("response.failed", json!({ "response": response }))
            .await;
    }
}

async fn complete(stream: Stream, items: Vec<Value>, tokens: Tokens) {
    stream.begin().await;
    for (index, item) in items.iter().enumerate() {
        stream.item(index, item).await;
        let done = json!({"output_index": index, "item": item});
        stream.event("response.output_item.done", done).await;
    }
    let usage = json!({
        "input_tokens": tokens.input,
        "input_tokens_details": {"cached_tokens": tokens.cached},
        "output_tokens": tokens.output,
        "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
        "total_tokens": tokens.input + tokens.output,
    });
    let response = json!({"id": stream.id, "object": "response", "status": "completed",
        "output": items, "usage": usage});
    let done = json!({ "response": response });
    stream.event("response.completed", done).await;
}

async fn fail(stream: Stream, fault: Fault) {
    stream.begin().await;
    match fault {
        Fault::Context => {
            stream
                .failed("context_length_exceeded", "too long for the model")
                .await;
        }
        Fault::Quota => stream.failed("insufficient_quota", "nothing left").await,
        Fault::Overloaded => stream.failed("server_is_overloaded", "no room").await,
        Fault::Refusal => {
            // The model's own words for it; the filter before it says less.
            let response = json!({"id": stream.id, "status": "incomplete",
                "incomplete_details": {"reason": "content_filter"}});
            let done = json!({ "response": response });
            stream.event("response.incomplete", done).await;
        }
        Fault::Incomplete => {
            let response = json!({"id": stream.id, "status": "incomplete",
                "incomplete_details": {"reason": "max_output_tokens"}});
            let done = json!({ "response": response });
            stream.event("response.incomplete", done).await;
        }
        Fault::Drop => stream.item(0, &message("partial", "msg_cut")).await,
        Fault::Hang => {
            stream.item(0, &message("thinking", "msg_hang")).await;
            let mut heard = true;
            while heard {
                tokio::time::sleep(SIGN_OF_LIFE).await;
                heard = stream.sender.send(Ok(": ping\n\n".into())).await.is_ok();
            }
        }
        Fault::Status(_) => {}
    }
}
