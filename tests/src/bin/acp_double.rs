//! An agent that is none and speaks the Agent Client Protocol: it does what a prompt says, as the made-up
//! providers do.

use std::io::{self, BufRead as _, Lines, StdinLock, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use muster_tests::fakes::{Fault, Scenario};
use serde_json::{Value, json};

/// What a turn says that it consumed; what went through the cache is not in `inputTokens`.
const USAGE: &str = r#"{"inputTokens": 100, "outputTokens": 50, "cachedReadTokens": 1000,
    "cachedWriteTokens": 50, "totalTokens": 1200}"#;

fn main() -> ExitCode {
    let mut double = Double {
        input: io::stdin().lock().lines(),
        folder: PathBuf::new(),
        prompts: 0,
        faults: 0,
        calls: 0,
        last: None,
    };
    // The end of its input is the end of the agent.
    while let Some(message) = double.read() {
        match double.take(&message) {
            Some(code) => return code,
            None => continue,
        }
    }
    ExitCode::SUCCESS
}

struct Double {
    input: Lines<StdinLock<'static>>,
    folder: PathBuf,
    /// Prompts since the last one with a scenario.
    prompts: usize,
    /// Faults of the scenario that were served.
    faults: usize,
    calls: u32,
    last: Option<Scenario>,
}

impl Double {
    fn read(&mut self) -> Option<Value> {
        let line = self.input.next()?.ok()?;
        Some(serde_json::from_str(&line).unwrap_or_default())
    }

    /// Takes a message; `Some` if the agent ends of it.
    fn take(&mut self, message: &Value) -> Option<ExitCode> {
        let (id, params) = (&message["id"], &message["params"]);
        let result = match message["method"].as_str()? {
            "initialize" => json!({
                "protocolVersion": 1,
                "agentCapabilities": {"loadSession": true},
                "agentInfo": {"name": "double", "version": "1"},
            }),
            "session/new" => {
                self.folder = folder(params);
                json!({"sessionId": "double-1"})
            }
            "session/load" if params["sessionId"] == "double-1" => {
                self.folder = folder(params);
                say("what was said before");
                Value::Null
            }
            "session/load" => {
                fail(id, -32_002, "there is no such session");
                return None;
            }
            "session/prompt" => {
                let text = params["prompt"][0]["text"].as_str().unwrap_or_default();
                return self.prompted(id, text);
            }
            _ => return None,
        };
        send(&json!({"jsonrpc": "2.0", "id": id, "result": result}));
        None
    }

    fn prompted(&mut self, id: &Value, text: &str) -> Option<ExitCode> {
        match Scenario::find(text) {
            Some(found) => {
                (self.last, self.prompts) = (Some(Scenario::parse(found)), 0);
            }
            None => self.prompts += 1,
        }
        let mut scenario = self.last.clone().unwrap_or(Scenario::Say("Done.".into()));
        while let Scenario::Faulty { fault, times, then } = scenario {
            if self.faults < times {
                self.faults += 1;
                return self.fault(id, &fault);
            }
            scenario = *then;
        }
        let stop = self.play(&scenario);
        end(id, stop);
        None
    }

    fn play(&mut self, scenario: &Scenario) -> &'static str {
        match scenario {
            Scenario::Say(text) => say(text),
            Scenario::Write { file, text } => self.write(file, &format!("{text}\n")),
            Scenario::Patch(file) => self.write(file, "patched\n"),
            Scenario::Run(command) | Scenario::Escalate(command) => {
                return self.run(command);
            }
            Scenario::Loop(times) => {
                for step in 0..*times {
                    if self.run(&format!("echo step {step}")) == "cancelled" {
                        return "cancelled";
                    }
                }
                say("Done.");
            }
            Scenario::Plan => {
                let entry = json!({"content": "one", "priority": "high", "status": "completed"});
                update(&json!({"sessionUpdate": "plan", "entries": [entry]}));
                say("Planned.");
            }
            Scenario::BadJson { times, .. } if self.prompts < *times => say("no JSON at all"),
            Scenario::Json(value) | Scenario::BadJson { value, .. } => say(value),
            Scenario::Call { .. } | Scenario::Commands(_) | Scenario::Faulty { .. } => {
                say("I have no such tool.");
            }
        }
        "end_turn"
    }

    fn fault(&mut self, id: &Value, fault: &Fault) -> Option<ExitCode> {
        match fault {
            Fault::Status(401) => fail(id, -32_000, "Authentication required"),
            Fault::Status(status) => fail(id, -32_603, &format!("made up: HTTP {status}")),
            Fault::Context => fail(id, -32_603, "prompt is too long: 9 tokens > 8 maximum"),
            Fault::Quota => fail(id, -32_603, "your quota is used up"),
            Fault::Overloaded => fail(id, -32_603, "the provider is overloaded"),
            Fault::Refusal => end(id, "refusal"),
            Fault::Incomplete => end(id, "max_tokens"),
            Fault::Drop => return Some(ExitCode::FAILURE),
            Fault::Hang => {
                while let Some(message) = self.read() {
                    if message["method"] == "session/cancel" {
                        end(id, "cancelled");
                        break;
                    }
                }
            }
        }
        None
    }

    fn write(&mut self, file: &str, text: &str) {
        let path = self.folder.join(file);
        let old = std::fs::read_to_string(&path).ok();
        let call = self.call("edit", &format!("Write {file}"), &json!({"path": path}));
        let written = std::fs::write(&path, text);
        let status = if written.is_ok() {
            "completed"
        } else {
            "failed"
        };
        let diff = json!({"type": "diff", "path": path, "oldText": old, "newText": text});
        more(&call, &json!({"status": status, "content": [diff]}));
        say(&format!("Wrote {file}."));
    }

    /// Runs a command if it is allowed.
    fn run(&mut self, command: &str) -> &'static str {
        let input = json!({"command": command});
        let call = self.call("execute", command, &input);
        let options = [
            json!({"optionId": "yes", "name": "Allow once", "kind": "allow_once"}),
            json!({"optionId": "ever", "name": "Allow always", "kind": "allow_always"}),
            json!({"optionId": "no", "name": "Reject", "kind": "reject_once"}),
        ];
        send(
            &json!({"jsonrpc": "2.0", "id": call, "method": "session/request_permission", "params": {
            "sessionId": "double-1", "options": options,
            "toolCall": {"toolCallId": call, "title": command, "rawInput": input}}}),
        );
        let outcome = loop {
            match self.read() {
                Some(answer) if answer["id"] == call => break answer["result"]["outcome"].clone(),
                Some(_) => {}
                None => return "cancelled",
            }
        };
        if outcome["outcome"] != "selected" {
            return "cancelled";
        }
        if outcome["optionId"] == "no" {
            more(&call, &json!({"status": "failed"}));
            say("I was not allowed to.");
            return "end_turn";
        }
        more(&call, &json!({"status": "in_progress"}));
        let ran = Command::new("/bin/sh")
            .args(["-c", command])
            .current_dir(&self.folder)
            .output();
        let (code, text) = ran.map_or((None, String::new()), |ran| {
            (
                ran.status.code(),
                String::from_utf8_lossy(&ran.stdout).into_owned(),
            )
        });
        let content = json!({"type": "content", "content": {"type": "text", "text": text}});
        let status = if code == Some(0) {
            "completed"
        } else {
            "failed"
        };
        more(
            &call,
            &json!({"status": status, "content": [content], "rawOutput": {"exit_code": code}}),
        );
        say("Ran it.");
        "end_turn"
    }

    fn call(&mut self, kind: &str, title: &str, input: &Value) -> String {
        self.calls += 1;
        let id = format!("call-{}", self.calls);
        update(
            &json!({"sessionUpdate": "tool_call", "toolCallId": id, "kind": kind,
            "title": title, "status": "pending", "rawInput": input}),
        );
        id
    }
}

fn folder(params: &Value) -> PathBuf {
    Path::new(params["cwd"].as_str().unwrap_or_default()).to_owned()
}

fn say(text: &str) {
    let content = json!({"type": "text", "text": text});
    update(&json!({"sessionUpdate": "agent_message_chunk", "content": content}));
}

fn more(call: &str, news: &Value) {
    let mut news = news.clone();
    news["sessionUpdate"] = "tool_call_update".into();
    news["toolCallId"] = call.into();
    update(&news);
}

fn update(update: &Value) {
    send(&json!({"jsonrpc": "2.0", "method": "session/update",
        "params": {"sessionId": "double-1", "update": update}}));
}

fn end(id: &Value, stop: &str) {
    let usage: Value = serde_json::from_str(USAGE).unwrap_or_default();
    send(&json!({"jsonrpc": "2.0", "id": id, "result": {"stopReason": stop, "usage": usage}}));
}

fn fail(id: &Value, code: i64, message: &str) {
    send(&json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}}));
}

fn send(message: &Value) {
    let mut out = io::stdout().lock();
    // Nobody may listen any more; the end of the input follows.
    let _ = writeln!(out, "{message}");
    let _ = out.flush();
}
