//! The conversation with `codex app-server`: JSON-RPC without its version, one message a line.

use std::collections::BTreeMap;

use muster_proto::v1::{ChoiceEffect, RetryNotice, SessionOpened, TurnEnd, activity::Kind};
use serde_json::{Value, json};

use super::ask::{self, Request};
use super::errors;
use super::items::{self, Items};
use super::json::{head, text};
use super::schema::is_strict;
use super::settings::{API_KEY, Settings};
use super::usage::{self, Calls};
use crate::agent::conversation::{
    AgentError, Conversation, Decision, ErrorClass, Opening, Record, Recorded, Step, Turn,
};
use crate::agent::lines::{members, too_long};
use crate::attempt::prompt::with_schema;
use crate::supervisor::End;

/// Requests that may wait for an answer at once; Codex is refused more.
const ASKED_MAX: usize = 64;
/// Code of JSON-RPC for a request that cannot be read.
const INVALID_REQUEST: i64 = -32_600;
/// Code of JSON-RPC for a method that is not there.
const NO_SUCH_METHOD: i64 = -32_601;
const STDERR_BYTES_MAX: usize = 1_024;

/// One conversation.
#[derive(Debug)]
pub(super) struct AppServer {
    settings: Settings,
    opening: Opening,
    next: u64,
    /// Requests of ours that have no answer yet.
    sent: BTreeMap<u64, Sent>,
    /// Id of the thread; empty until it is open.
    thread: String,
    turn: Option<Running>,
    /// The conversation was cancelled before its first turn began.
    cancelled: bool,
    items: Items,
    calls: Calls,
    asked: Vec<Request>,
    questions: u32,
}

/// What was asked of Codex.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sent {
    Initialize,
    Login,
    Resume,
    Start,
    Turn,
    Steer(String),
    Interrupt,
    /// Ends commands that an interrupted turn left.
    Clean,
}

/// A turn that is not over.
#[derive(Debug, Default)]
struct Running {
    /// Empty until Codex says.
    id: String,
    interrupt: bool,
    /// Interrupted, but its commands may still run.
    ended: Option<Turn>,
    /// What went wrong last.
    error: Option<AgentError>,
}

impl AppServer {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            opening: Opening::default(),
            next: 0,
            sent: BTreeMap::new(),
            thread: String::new(),
            turn: None,
            cancelled: false,
            items: Items::default(),
            calls: Calls::default(),
            asked: Vec::new(),
            questions: 0,
        }
    }

    fn call(&mut self, what: Sent, method: &str, params: &Value) -> Step {
        self.next += 1;
        self.sent.insert(self.next, what);
        let message = json!({ "id": self.next, "method": method, "params": params });
        Step::Send(message.to_string())
    }

    fn message(&mut self, message: &Value) -> Vec<Step> {
        let params = message.get("params").unwrap_or(&Value::Null);
        match (
            message.get("method").and_then(Value::as_str),
            message.get("id"),
        ) {
            (Some(method), Some(id)) => self.requested(method, id, params),
            (Some(method), None) => self.notified(method, params),
            (None, Some(id)) => {
                let sent = id.as_u64().and_then(|id| self.sent.remove(&id));
                let Some(sent) = sent else {
                    return Vec::new();
                };
                match message.get("error") {
                    Some(error) => self.refused(sent, error),
                    None => self.answered(&sent, message.get("result").unwrap_or(&Value::Null)),
                }
            }
            (None, None) => Vec::new(),
        }
    }

    fn answered(&mut self, sent: &Sent, result: &Value) -> Vec<Step> {
        match sent {
            Sent::Initialize => {
                let mut steps = vec![Step::Send(json!({ "method": "initialized" }).to_string())];
                // As `codex exec` does with it. It lasts as long as the program, see `settings`.
                if let Some(key) = self.opening.env.remove(API_KEY) {
                    let params = json!({ "type": "apiKey", "apiKey": key });
                    steps.push(self.call(Sent::Login, "account/login/start", &params));
                }
                steps.push(self.open_thread());
                steps
            }
            Sent::Start | Sent::Resume => self.opened(result, *sent == Sent::Resume),
            Sent::Turn => {
                let id = result.get("turn").map_or("", |turn| text(turn, "id"));
                self.began(id)
            }
            Sent::Clean => self.cleaned(),
            Sent::Login | Sent::Steer(_) | Sent::Interrupt => Vec::new(),
        }
    }

    fn refused(&mut self, sent: Sent, error: &Value) -> Vec<Step> {
        let failed = |what: &str| errors::of_request(what, error);
        match sent {
            Sent::Initialize => self.failed(failed("begin")),
            Sent::Login => self.failed(AgentError {
                class: ErrorClass::Authentication,
                ..failed("log in")
            }),
            Sent::Resume => {
                let why = failed("go on with the conversation").message;
                self.opening.begin_anew();
                vec![Step::NotResumed(why), self.open_thread()]
            }
            Sent::Start => self.failed(failed("open a thread")),
            Sent::Turn => self.failed(failed("begin a turn")),
            Sent::Clean => self.cleaned(),
            // The turn was over before the words came: they begin another one.
            Sent::Steer(words) if self.turn.is_none() => self.prompt(&words),
            Sent::Steer(_) | Sent::Interrupt => Vec::new(),
        }
    }

    fn open_thread(&mut self) -> Step {
        let mut params = self.settings.thread(&self.opening);
        match &self.opening.resume {
            Some(thread) => {
                params["threadId"] = Value::from(thread.as_str());
                params["excludeTurns"] = Value::from(true);
                self.call(Sent::Resume, "thread/resume", &params)
            }
            None => {
                // A call is told as it ends, and not only after its commands. There is no such thing
                // for a thread that is gone on with.
                params["experimentalRawEvents"] = Value::from(true);
                if self.settings.ephemeral {
                    params["ephemeral"] = Value::from(true);
                }
                self.call(Sent::Start, "thread/start", &params)
            }
        }
    }

    fn opened(&mut self, result: &Value, resumed: bool) -> Vec<Step> {
        let none = Value::Null;
        let thread = result.get("thread").unwrap_or(&none);
        self.thread = text(thread, "id").to_owned();
        if self.thread.is_empty() {
            let error = json!({ "message": "it names no thread" });
            return self.failed(errors::of_request("open a thread", &error));
        }
        let model = text(result, "model");
        self.calls.talks_with(&self.thread, model);
        self.calls.is_kept_in(&self.thread, text(thread, "path"));
        let mut steps = vec![Step::Tell(Kind::SessionOpened(SessionOpened {
            id: self.thread.clone(),
            model: model.to_owned(),
            software: format!("codex {}", text(thread, "cliVersion")),
            resumed,
        }))];
        if self.cancelled {
            let turn = Turn {
                end: TurnEnd::Interrupted,
                ..Turn::default()
            };
            steps.extend(self.over(turn));
            return steps;
        }
        let review = self.settings.review.take().filter(|_| !resumed);
        if let Some(target) = review {
            let params = json!({ "threadId": self.thread, "target": target });
            steps.push(self.call(Sent::Turn, "review/start", &params));
        } else {
            let prompt = std::mem::take(&mut self.opening.prompt);
            let images = std::mem::take(&mut self.settings.images);
            steps.push(self.start_turn(&prompt, &images));
        }
        steps
    }

    fn start_turn(&mut self, prompt: &str, images: &[String]) -> Step {
        let (strict, loose) = match &self.opening.output_schema {
            Some(schema) if is_strict(schema) => (Some(schema), None),
            loose => (None, loose.as_ref()),
        };
        let prompt = match loose {
            Some(schema) => &with_schema(prompt, schema),
            None => prompt,
        };
        let mut input = vec![json!({ "type": "text", "text": prompt })];
        let folder = &self.opening.folder;
        input.extend(images.iter().map(
            |image| json!({ "type": "localImage", "path": folder.join(image).to_string_lossy() }),
        ));
        let mut params = json!({ "threadId": self.thread, "input": input });
        if let Some(schema) = strict {
            params["outputSchema"] = schema.clone();
        }
        self.items.begin_turn();
        self.turn = Some(Running::default());
        self.call(Sent::Turn, "turn/start", &params)
    }

    fn began(&mut self, id: &str) -> Vec<Step> {
        self.calls.began(&self.thread, id);
        let Some(turn) = self.turn.as_mut().filter(|turn| turn.id.is_empty()) else {
            return Vec::new();
        };
        turn.id = id.to_owned();
        if turn.interrupt {
            return self.interrupt();
        }
        Vec::new()
    }

    fn interrupt(&mut self) -> Vec<Step> {
        let Some(turn) = self.turn.as_ref().filter(|turn| !turn.id.is_empty()) else {
            return Vec::new();
        };
        let params = json!({ "threadId": self.thread, "turnId": turn.id });
        vec![self.call(Sent::Interrupt, "turn/interrupt", &params)]
    }

    /// The conversation or its turn cannot go on.
    fn failed(&mut self, error: AgentError) -> Vec<Step> {
        self.over(Turn {
            end: TurnEnd::Failed,
            error: Some(error),
            ..Turn::default()
        })
    }

    fn over(&mut self, turn: Turn) -> Vec<Step> {
        // Before its thread is open a conversation has its first turn ahead; otherwise it ends once.
        if self.turn.take().is_none() {
            return Vec::new();
        }
        let open = std::mem::take(&mut self.asked);
        let parts = open.into_iter().flat_map(|request| request.parts);
        let mut steps: Vec<Step> = parts
            .filter(|part| part.answer.is_none())
            .map(|part| Step::Withdraw(part.question.number))
            .collect();
        steps.push(Step::TurnEnded(turn));
        steps
    }

    fn cleaned(&mut self) -> Vec<Step> {
        let ended = self.turn.as_mut().and_then(|turn| turn.ended.take());
        ended.map_or_else(Vec::new, |ended| self.over(ended))
    }

    fn notified(&mut self, method: &str, params: &Value) -> Vec<Step> {
        let ours = text(params, "threadId") == self.thread && !self.thread.is_empty();
        let item = params.get("item").unwrap_or(&Value::Null);
        let kinds: Vec<Kind> = match method {
            // Also those of threads that the agent begun for its helpers.
            "thread/tokenUsage/updated" => self
                .calls
                .told(params)
                .map(Kind::Usage)
                .into_iter()
                .collect(),
            "rawResponse/completed" => {
                let added = self.calls.completed(params).map(Kind::Usage);
                added.into_iter().collect()
            }
            "thread/started" => {
                if let Some(thread) = params.get("thread") {
                    let id = text(thread, "id");
                    self.calls.talks_with(id, text(thread, "model"));
                    self.calls.is_kept_in(id, text(thread, "path"));
                }
                Vec::new()
            }
            "model/rerouted" => {
                self.calls
                    .talks_with(text(params, "threadId"), text(params, "toModel"));
                Vec::new()
            }
            "turn/started" => {
                let turn = params.get("turn").unwrap_or(&Value::Null);
                self.calls.began(text(params, "threadId"), text(turn, "id"));
                if ours {
                    return self.began(text(turn, "id"));
                }
                Vec::new()
            }
            "turn/completed" => {
                self.calls.ended(text(params, "threadId"));
                if ours {
                    return self.completed(params);
                }
                Vec::new()
            }
            _ if !ours => Vec::new(),
            "serverRequest/resolved" => {
                return self.resolved(params.get("requestId").unwrap_or(&Value::Null));
            }
            "error" => return self.troubled(params),
            "item/agentMessage/delta" => self.items.delta(params, false).into_iter().collect(),
            "item/reasoning/summaryTextDelta" | "item/reasoning/textDelta" => {
                self.items.delta(params, true).into_iter().collect()
            }
            "item/commandExecution/outputDelta" => self.items.output(params).into_iter().collect(),
            "item/started" => self
                .items
                .started(item, &self.opening.folder)
                .into_iter()
                .collect(),
            "item/completed" => self.items.completed(item, &self.opening.folder),
            "turn/plan/updated" => vec![items::todo_list(params)],
            // News of this version and of later ones that nobody here needs.
            _ => Vec::new(),
        };
        kinds.into_iter().map(Step::Tell).collect()
    }

    fn troubled(&mut self, params: &Value) -> Vec<Step> {
        let Some(said) = params.get("error") else {
            return Vec::new();
        };
        let error = errors::of_turn(said);
        if params.get("willRetry") == Some(&Value::Bool(true)) {
            let (attempt, attempts_max) = errors::tries(&error.message);
            let mut steps = vec![Step::Tell(Kind::Retry(RetryNotice {
                attempt,
                attempts_max,
                delay: None,
                error: Some(error.to_wire()),
            }))];
            if errors::is_final(said, &error) {
                steps.extend(self.failed(error));
            }
            return steps;
        }
        // Not the end yet: the turn's own end says what it was.
        if let Some(turn) = &mut self.turn {
            turn.error = Some(error);
        }
        Vec::new()
    }

    fn completed(&mut self, params: &Value) -> Vec<Step> {
        let none = Value::Null;
        let turn = params.get("turn").unwrap_or(&none);
        let id = text(turn, "id");
        let Some(running) = self.turn.as_mut() else {
            return Vec::new();
        };
        // An end that comes before the answer to `turn/start` is of an earlier turn.
        if running.id.is_empty() || (running.id != id && !id.is_empty()) {
            return Vec::new();
        }
        let last = turn
            .get("items")
            .and_then(Value::as_array)
            .and_then(|items| {
                let mut messages = items.iter().rev();
                messages.find(|item| text(item, "type") == "agentMessage")
            });
        let message = match last.map_or("", |last| text(last, "text")) {
            "" => std::mem::take(&mut self.items.said),
            said => head(said, items::MESSAGE_BYTES_MAX).to_owned(),
        };
        let error = turn.get("error").filter(|error| !error.is_null());
        let error = error.map(errors::of_turn).or(running.error.take());
        let (end, error) = match text(turn, "status") {
            "completed" => (TurnEnd::Completed, None),
            "interrupted" => (TurnEnd::Interrupted, error),
            status => {
                let error = error.unwrap_or_else(|| AgentError {
                    class: ErrorClass::AgentError,
                    message: format!("codex ended its turn as {status:?}"),
                    http_status: None,
                    retry_after: None,
                });
                (TurnEnd::Failed, Some(error))
            }
        };
        let ended = Turn {
            end,
            message,
            structured: None,
            error,
        };
        if end == TurnEnd::Interrupted {
            // The command that ran goes on in the background unless it is ended too.
            running.ended = Some(ended);
            let params = json!({ "threadId": self.thread });
            return vec![self.call(Sent::Clean, "thread/backgroundTerminals/clean", &params)];
        }
        self.over(ended)
    }

    fn requested(&mut self, method: &str, id: &Value, params: &Value) -> Vec<Step> {
        let proposed = self.items.proposed(text(params, "itemId"));
        let request = ask::request(method, id, params, proposed);
        let room = self.asked.len() < ASKED_MAX && self.turn.is_some();
        let Some(mut request) = request.filter(|_| room) else {
            let message = format!("{method} is not supported");
            let error = json!({ "code": NO_SUCH_METHOD, "message": message });
            return vec![Step::Send(json!({ "id": id, "error": error }).to_string())];
        };
        let mut steps = Vec::new();
        for part in &mut request.parts {
            self.questions = self.questions.saturating_add(1);
            part.question.number = self.questions;
            steps.push(Step::Ask(part.question.clone()));
        }
        self.asked.push(request);
        steps
    }

    fn resolved(&mut self, id: &Value) -> Vec<Step> {
        let Some(at) = self.asked.iter().position(|request| request.id == *id) else {
            return Vec::new();
        };
        let parts = self.asked.remove(at).parts.into_iter();
        let open = parts.filter(|part| part.answer.is_none());
        open.map(|part| Step::Withdraw(part.question.number))
            .collect()
    }
}

impl Conversation for AppServer {
    fn open(&mut self, opening: &Opening) -> Vec<Step> {
        self.opening = opening.clone();
        self.opening.env.retain(|name, _| name == API_KEY);
        // Its first turn: it can fail before Codex hears of it.
        self.turn = Some(Running::default());
        let version = env!("CARGO_PKG_VERSION");
        let params = json!({
            "clientInfo": { "name": "muster", "title": "Muster", "version": version },
            // Without it there is no way to end the commands of an interrupted turn.
            "capabilities": {
                "experimentalApi": true,
                // Of the raw words of calls only their ends are wanted, for what they consumed.
                "optOutNotificationMethods": ["rawResponseItem/completed"],
            },
        });
        vec![self.call(Sent::Initialize, "initialize", &params)]
    }

    fn line(&mut self, line: &[u8]) -> Vec<Step> {
        // What is no message is noise of the program.
        serde_json::from_slice(line).map_or_else(|_| Vec::new(), |message| self.message(&message))
    }

    fn overlong(&mut self, beginning: &[u8]) -> Vec<Step> {
        let Some(message) = members(beginning) else {
            return Vec::new();
        };
        let method = message.get("method").and_then(Value::as_str);
        match (method, message.get("id")) {
            (Some(method), Some(id)) => {
                let error = too_long(&format!("what codex asks with {method}"));
                let answer = json!({ "code": INVALID_REQUEST, "message": &error.message });
                let answer = json!({ "id": id, "error": answer }).to_string();
                vec![Step::Tell(Kind::Error(error.to_wire())), Step::Send(answer)]
            }
            // What was told piece by piece before.
            (Some(method), None) if method != "turn/completed" => Vec::new(),
            // Somebody waits for it, or may.
            _ => self.failed(too_long("a message of codex")),
        }
    }

    fn records(&self) -> Vec<Record> {
        let files = self.calls.cut_short().into_iter();
        files
            .map(|file| Record {
                file,
                word: usage::RECORD,
            })
            .collect()
    }

    fn recorded(&mut self, found: &Recorded) -> Vec<Step> {
        let added = match found {
            Recorded::Line(line) => self.calls.recorded(line).into_iter().collect(),
            Recorded::Unreadable(file) => self.calls.unreadable(file).into_iter().collect(),
            Recorded::End => self.calls.lost(),
        };
        added.into_iter().map(Kind::Usage).map(Step::Tell).collect()
    }

    fn prompt(&mut self, text: &str) -> Vec<Step> {
        if self.thread.is_empty() {
            return Vec::new();
        }
        if let Some(turn) = &self.turn {
            let params = json!({
                "threadId": self.thread,
                "expectedTurnId": turn.id,
                "input": [{ "type": "text", "text": text }],
            });
            return vec![self.call(Sent::Steer(text.to_owned()), "turn/steer", &params)];
        }
        self.cancelled = false;
        vec![self.start_turn(text, &[])]
    }

    fn answer(&mut self, question: u32, decision: &Decision) -> Vec<Step> {
        let mut requests = self.asked.iter_mut().enumerate();
        let decided = requests.find_map(|(at, request)| {
            let effect = request.decide(question, &decision.choice, &decision.text)?;
            Some((at, effect, request.result()))
        });
        let Some((at, effect, result)) = decided else {
            return Vec::new();
        };
        let Some(result) = result else {
            // Codex waits for the answers to the others.
            return Vec::new();
        };
        let request = self.asked.remove(at);
        let answer = json!({ "id": request.id, "result": result });
        let mut steps = vec![Step::Send(answer.to_string())];
        // The protocol has no reason for a denial; the turn takes it as a word of the user's.
        if effect == ChoiceEffect::Deny && !decision.text.is_empty() {
            steps.extend(self.prompt(&decision.text));
        }
        if effect == ChoiceEffect::DenyAndStop && !request.ends_the_turn() {
            steps.extend(self.cancel());
        }
        steps
    }

    fn cancel(&mut self) -> Vec<Step> {
        self.cancelled = self.thread.is_empty();
        let Some(turn) = &mut self.turn else {
            return Vec::new();
        };
        if std::mem::replace(&mut turn.interrupt, true) {
            return Vec::new();
        }
        self.interrupt()
    }

    fn close(&mut self) -> Vec<Step> {
        // At the end of its input Codex ends, and what it runs with it.
        vec![Step::CloseInput]
    }

    fn lost(&mut self, end: &End, stderr: &str) -> AgentError {
        let mut lines = stderr.lines().rev().map(str::trim);
        let complaint = lines.find(|line| !line.is_empty());
        let complaint = plain(head(complaint.unwrap_or_default(), STDERR_BYTES_MAX));
        let never_began = self.sent.values().any(|sent| *sent == Sent::Initialize);
        let (class, how) = match end {
            // It reads its settings before it says anything.
            End::Exited { code } if never_began && *code != 0 => (
                ErrorClass::InvalidRequest,
                format!("codex did not start: exit code {code}"),
            ),
            End::Exited { code } => (
                ErrorClass::AgentCrashed,
                format!("codex ended in its turn with exit code {code}"),
            ),
            // It could not complain any more: what it wrote before was of other things.
            End::Signalled { signal } => {
                return AgentError {
                    class: ErrorClass::AgentCrashed,
                    message: format!("codex was killed in its turn by signal {signal}"),
                    http_status: None,
                    retry_after: None,
                };
            }
            _ => (
                ErrorClass::AgentCrashed,
                "codex ended in its turn".to_owned(),
            ),
        };
        let message = if complaint.is_empty() {
            how
        } else {
            format!("{how}: {complaint}")
        };
        AgentError {
            class,
            message,
            http_status: None,
            retry_after: None,
        }
    }
}

/// Takes colours away.
fn plain(text: &str) -> String {
    let mut parts = text.split('\u{1b}');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        // `[`, digits and semicolons, a letter.
        let end = part.find(|character: char| character.is_ascii_alphabetic());
        let rest = end.and_then(|end| part.get(end + 1..));
        plain.push_str(rest.unwrap_or_default());
    }
    plain
}
