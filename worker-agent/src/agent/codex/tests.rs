//! Conversations of the real program, recorded and replayed. `>` is what its client wrote, `<` what it
//! answered; times and accounts were cut out.

mod hostile;
mod replayed;
mod shapes;

use muster_proto::v1::activity::Kind;
use muster_proto::v1::{ChoiceEffect, Question};
use serde_json::{Value, json};

use super::machine::AppServer;
use super::settings::Settings;
use crate::agent::conversation::{Conversation as _, Decision, Opening, Step, Turn};
use crate::document::TaskDocument;

pub(super) const TURN: &str = include_str!("../../../tests/streams/codex/turn.txt");
pub(super) const APPROVALS: &str = include_str!("../../../tests/streams/codex/approvals.txt");
pub(super) const ERRORS: &str = include_str!("../../../tests/streams/codex/errors.txt");
pub(super) const RESUME: &str = include_str!("../../../tests/streams/codex/resume.txt");
/// Each call is told as it ends; the program is killed while the last one's command runs.
pub(super) const KILLED: &str = include_str!("../../../tests/streams/codex/killed.txt");
pub(super) const PLAN: &str = include_str!("../../../tests/streams/codex/plan-review.txt");
pub(super) const QUESTIONS: &str = include_str!("../../../tests/streams/codex/questions.txt");

fn task(codex: Value) -> TaskDocument {
    let Value::Object(options) = codex else {
        panic!("{codex}");
    };
    TaskDocument {
        codex: options.into_iter().collect(),
        ..TaskDocument::default()
    }
}

fn machine(codex: Value) -> AppServer {
    AppServer::new(Settings::of(&task(codex)).unwrap())
}

fn opening() -> Opening {
    Opening {
        folder: "/home/user/repo".into(),
        prompt: "please [[write]]".into(),
        ..Opening::default()
    }
}

/// What a line of ours asks.
fn sent(step: &Step) -> Option<Value> {
    match step {
        Step::Send(line) => Some(serde_json::from_str(line).unwrap()),
        _ => None,
    }
}

/// Plays a recording: its client's prompts and decisions are made, its program's lines are heard.
struct Player {
    machine: AppServer,
    steps: Vec<Step>,
    turns: usize,
    open: Vec<Question>,
}

impl Player {
    fn new(machine: AppServer, opening: &Opening) -> Self {
        let mut player = Self {
            machine,
            steps: Vec::new(),
            turns: 0,
            open: Vec::new(),
        };
        let steps = player.machine.open(opening);
        player.take(steps);
        player
    }

    fn take(&mut self, steps: Vec<Step>) {
        for step in steps {
            if let Step::Ask(question) = &step {
                self.open.push(question.clone());
            }
            // The recorded client did not end background commands; it is as if it had.
            let cleaned = sent(&step)
                .filter(|message| message["method"] == "thread/backgroundTerminals/clean")
                .map(|message| json!({"id": message["id"], "result": {}}).to_string());
            self.steps.push(step);
            if let Some(line) = cleaned {
                let steps = self.machine.line(line.as_bytes());
                self.take(steps);
            }
        }
    }

    fn hear(&mut self, line: &str) {
        let steps = self.machine.line(line.as_bytes());
        self.take(steps);
    }

    /// Answers the first open question with the choice of this effect.
    fn decide(&mut self, effect: ChoiceEffect, text: &str) {
        let question = self.open.remove(0);
        let choice = crate::agent::conversation::choice_with(&question, effect).unwrap();
        let decision = Decision {
            choice: choice.to_owned(),
            text: text.to_owned(),
        };
        let steps = self.machine.answer(question.number, &decision);
        self.take(steps);
    }

    fn play(&mut self, recording: &str) {
        for line in recording.lines() {
            let (way, line) = line.split_at(2);
            if way == "< " {
                self.hear(line);
                continue;
            }
            let message: Value = serde_json::from_str(line).unwrap();
            if message["method"] == "turn/start" {
                self.turns += 1;
                if self.turns > 1 {
                    let text = message["params"]["input"][0]["text"].as_str().unwrap();
                    let steps = self.machine.prompt(text);
                    self.take(steps);
                }
            } else if let Some(decision) = message["result"].get("decision") {
                let effect = match decision.as_str().unwrap() {
                    "accept" => ChoiceEffect::AllowOnce,
                    "cancel" => ChoiceEffect::DenyAndStop,
                    _ => ChoiceEffect::Deny,
                };
                self.decide(effect, "");
            } else if message["result"].get("permissions").is_some() {
                self.decide(ChoiceEffect::AllowOnce, "");
            }
        }
    }

    fn told(&self) -> Vec<&Kind> {
        let told = self.steps.iter().filter_map(|step| match step {
            Step::Tell(kind) => Some(kind),
            _ => None,
        });
        told.collect()
    }

    fn ended(&self) -> Vec<&Turn> {
        let ended = self.steps.iter().filter_map(|step| match step {
            Step::TurnEnded(turn) => Some(turn),
            _ => None,
        });
        ended.collect()
    }

    fn sent(&self, method: &str) -> Vec<Value> {
        let sent = self.steps.iter().filter_map(sent);
        sent.filter(|message| message["method"] == method).collect()
    }

    /// Input, cached, output and reasoning tokens, and calls.
    fn usage(&self) -> [u64; 5] {
        let mut sum = [0; 5];
        for kind in self.told() {
            if let Kind::Usage(usage) = kind {
                sum[0] += usage.input_tokens;
                sum[1] += usage.cached_input_tokens;
                sum[2] += usage.output_tokens;
                sum[3] += usage.reasoning_tokens;
                sum[4] += u64::from(usage.calls);
            }
        }
        sum
    }
}
