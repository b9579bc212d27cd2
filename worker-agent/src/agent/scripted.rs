//! A conversation in plain words, for programs of one's own and as the deterministic double of a
//! model agent in tests.
//!
//! The program reads a line for each thing that it is told: `prompt "…"` (a JSON string; the first one
//! begins the session), `answer <question> <choice> "…"`, `cancel`. At the end its input is closed. It
//! writes a line for each thing that it does, a word and the rest of the line:
//!
//! ```text
//! session ID [MODEL]        say TEXT            think TEXT
//! run COMMAND               printed TEXT        ran CODE
//! change KIND PATH          usage MODEL INPUT CACHED OUTPUT REASONING
//! retry CLASS TEXT          ask KIND TITLE      withdraw NUMBER
//! json VALUE                done TEXT           fail CLASS [after SECONDS] TEXT
//! interrupted
//! ```
//!
//! `ask` waits for `answer`; questions are counted from 1, and the choices are `allow`, `session`,
//! `deny` and `stop`. `done`, `fail` and `interrupted` end the turn. Other lines mean nothing.

use std::time::Duration;

use muster_proto::v1::{
    self, Choice, ChoiceEffect, CommandEnded, CommandOutput, CommandStarted, FileChange,
    ModelUsage, Question, RetryNotice, SessionOpened, TextDelta, TurnEnd, activity,
};
use serde_json::Value;

use super::conversation::{AgentError, Conversation, Decision, ErrorClass, Opening, Step, Turn};
use super::lines::too_long;
use super::{Agent, Invocation, Own, Place};
use crate::document::TaskDocument;
use crate::failure::{class, failure};
use crate::supervisor::End;

const KIND: &str = "scripted";

/// Any program that speaks the words of this module.
#[derive(Debug)]
pub(super) struct ScriptedAgent;

impl Agent for ScriptedAgent {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn find(&self, _own: Own<'_>) -> Option<v1::AgentOffer> {
        // The program is the task's, so every host has it.
        Some(v1::AgentOffer {
            name: KIND.to_owned(),
            ..v1::AgentOffer::default()
        })
    }

    fn invocation(
        &self,
        task: &TaskDocument,
        _place: &Place<'_>,
    ) -> Result<Invocation, v1::Failure> {
        let argv = match &task.run {
            Some(script) => super::command::shell(script),
            None => task.agent.command.clone(),
        };
        if argv.is_empty() {
            let message = "the task names neither a script nor a program to run";
            return Err(failure(class::AGENT_UNAVAILABLE, message, b""));
        }
        Ok(Invocation {
            argv,
            env: std::collections::BTreeMap::new(),
            masked: Vec::new(),
        })
    }

    fn judge(&self, end: &End, tail: &[u8]) -> Result<(), v1::Failure> {
        super::command::judge("the agent", class::AGENT_FAILED, end, tail)
    }

    fn conversation(&self, _task: &TaskDocument) -> Option<Box<dyn Conversation>> {
        Some(Box::new(Scripted::default()))
    }
}

/// The machine of it.
#[derive(Debug, Default)]
pub(crate) struct Scripted {
    questions: u32,
    items: u32,
    said: String,
    structured: Option<Value>,
}

impl Conversation for Scripted {
    fn open(&mut self, opening: &Opening) -> Vec<Step> {
        self.prompt(&opening.prompt)
    }

    fn line(&mut self, line: &[u8]) -> Vec<Step> {
        let line = String::from_utf8_lossy(line);
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        self.word(word, rest).unwrap_or_default()
    }

    fn overlong(&mut self, _beginning: &[u8]) -> Vec<Step> {
        vec![Step::TurnEnded(Turn {
            end: TurnEnd::Failed,
            error: Some(too_long("a line of the agent")),
            ..Turn::default()
        })]
    }

    fn prompt(&mut self, text: &str) -> Vec<Step> {
        vec![Step::Send(format!("prompt {}", Value::from(text)))]
    }

    fn answer(&mut self, question: u32, decision: &Decision) -> Vec<Step> {
        let text = Value::from(decision.text.as_str());
        let choice = &decision.choice;
        vec![Step::Send(format!("answer {question} {choice} {text}"))]
    }

    fn cancel(&mut self) -> Vec<Step> {
        vec![Step::Send("cancel".to_owned())]
    }

    fn close(&mut self) -> Vec<Step> {
        vec![Step::CloseInput]
    }

    fn lost(&mut self, _end: &End, stderr: &str) -> AgentError {
        AgentError {
            class: ErrorClass::AgentCrashed,
            message: stderr.lines().last().unwrap_or_default().to_owned(),
            http_status: None,
            retry_after: None,
        }
    }
}

impl Scripted {
    fn word(&mut self, word: &str, rest: &str) -> Option<Vec<Step>> {
        let item = self.items.to_string();
        let text = || TextDelta {
            item: item.clone(),
            text: rest.to_owned(),
        };
        let kind = match word {
            "session" => {
                let (id, model) = rest.split_once(' ').unwrap_or((rest, ""));
                activity::Kind::SessionOpened(SessionOpened {
                    id: id.to_owned(),
                    model: model.to_owned(),
                    ..SessionOpened::default()
                })
            }
            "say" => {
                self.said = rest.to_owned();
                activity::Kind::Message(text())
            }
            "think" => activity::Kind::Reasoning(text()),
            "run" => {
                self.items = self.items.saturating_add(1);
                activity::Kind::CommandStarted(CommandStarted {
                    item: self.items.to_string(),
                    command: rest.to_owned(),
                    folder: String::new(),
                })
            }
            "printed" => activity::Kind::CommandOutput(CommandOutput {
                item,
                data: format!("{rest}\n").into(),
            }),
            "ran" => activity::Kind::CommandEnded(CommandEnded {
                item,
                exit_code: rest.parse().ok(),
                declined: false,
            }),
            "change" => {
                let (change, path) = rest.split_once(' ')?;
                activity::Kind::FileChange(FileChange {
                    item,
                    path: path.to_owned(),
                    change: change.to_owned(),
                    ..FileChange::default()
                })
            }
            "usage" => activity::Kind::Usage(usage(rest)?),
            "retry" => {
                let error = error(rest);
                activity::Kind::Retry(RetryNotice {
                    error: Some(error.to_wire()),
                    ..RetryNotice::default()
                })
            }
            "ask" => return Some(vec![Step::Ask(self.question(rest))]),
            "withdraw" => return Some(vec![Step::Withdraw(rest.parse().ok()?)]),
            "json" => {
                self.structured = serde_json::from_str(rest).ok();
                return None;
            }
            "done" => {
                return Some(vec![self.ended(TurnEnd::Completed, Some(rest), None)]);
            }
            "fail" => {
                let error = error(rest);
                return Some(vec![self.ended(TurnEnd::Failed, None, Some(error))]);
            }
            "interrupted" => return Some(vec![self.ended(TurnEnd::Interrupted, None, None)]),
            _ => return None,
        };
        Some(vec![Step::Tell(kind)])
    }

    fn question(&mut self, rest: &str) -> Question {
        let (kind, title) = rest.split_once(' ').unwrap_or((rest, ""));
        self.questions = self.questions.saturating_add(1);
        let choice = |id: &str, label: &str, effect: ChoiceEffect| Choice {
            id: id.to_owned(),
            label: label.to_owned(),
            effect: effect.into(),
            rule: String::new(),
        };
        Question {
            number: self.questions,
            kind: kind.to_owned(),
            title: title.to_owned(),
            detail: title.to_owned(),
            choices: vec![
                choice("allow", "Allow once", ChoiceEffect::AllowOnce),
                choice(
                    "session",
                    "Allow for this session",
                    ChoiceEffect::AllowSession,
                ),
                choice("deny", "Deny", ChoiceEffect::Deny),
                choice("stop", "Deny and stop", ChoiceEffect::DenyAndStop),
            ],
            ..Question::default()
        }
    }

    fn ended(&mut self, end: TurnEnd, text: Option<&str>, error: Option<AgentError>) -> Step {
        let said = std::mem::take(&mut self.said);
        Step::TurnEnded(Turn {
            end,
            message: match text {
                Some(text) if !text.is_empty() => text.to_owned(),
                _ => said,
            },
            structured: self.structured.take(),
            error,
        })
    }
}

fn usage(rest: &str) -> Option<ModelUsage> {
    let mut words = rest.split(' ');
    let model = words.next()?.to_owned();
    let mut number = || words.next()?.parse().ok();
    Some(ModelUsage {
        model,
        input_tokens: number()?,
        cached_input_tokens: number()?,
        output_tokens: number()?,
        reasoning_tokens: number()?,
        calls: 1,
        ..ModelUsage::default()
    })
}

fn error(rest: &str) -> AgentError {
    let (name, text) = rest.split_once(' ').unwrap_or((rest, ""));
    let known = ErrorClass::ALL
        .into_iter()
        .find(|class| class.name() == name);
    let after = text.strip_prefix("after ").and_then(|rest| {
        let (seconds, text) = rest.split_once(' ').unwrap_or((rest, ""));
        Some((seconds.parse().ok().map(Duration::from_secs)?, text))
    });
    AgentError {
        class: known.unwrap_or(ErrorClass::AgentError),
        message: after.map_or(text, |(_, text)| text).to_owned(),
        http_status: None,
        retry_after: after.map(|(after, _)| after),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_steps_and_other_lines_mean_nothing() {
        let mut agent = Scripted::default();
        let opened = agent.open(&Opening {
            prompt: "a\nb".to_owned(),
            ..Opening::default()
        });
        assert_eq!(opened, [Step::Send("prompt \"a\\nb\"".to_owned())]);
        assert_eq!(agent.line(b"\xff nonsense"), []);
        assert_eq!(agent.line(b"usage m 10 4 5"), []);
        let Step::Ask(question) = &agent.line(b"ask command rm -r x")[0] else {
            panic!();
        };
        assert_eq!((question.number, question.title.as_str()), (1, "rm -r x"));
        agent.line(b"say all good");
        let Step::TurnEnded(turn) = &agent.line(b"done")[0] else {
            panic!();
        };
        assert_eq!(turn.message, "all good");
        let Step::TurnEnded(turn) = &agent.line(b"fail rate_limit after 7 too fast")[0] else {
            panic!();
        };
        let error = turn.error.as_ref().unwrap();
        assert_eq!(error.class, ErrorClass::RateLimit);
        assert_eq!(error.retry_after, Some(Duration::from_secs(7)));
        assert_eq!(error.message, "too fast");
    }
}
