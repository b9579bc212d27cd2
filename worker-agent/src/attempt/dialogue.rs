//! What comes of an agent's conversation: answers, further turns, and how the attempt ends. Pure.
//!
//! The conversation knows its agent's protocol and nothing else. Here is what holds for every agent:
//! policy before people, a structured answer is checked and asked for again a bounded number of times,
//! what the agent says is bounded, and a program that ends without having said how its turn ended has
//! failed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jsonschema::Validator;
use muster_proto::v1::{
    Activity, Answer, AnsweredQuestion, ChoiceEffect, Empty, Failure, Question, QuestionClosed,
    Structured, TurnEnd, TurnEnded, Usage, activity, report,
};
use serde_json::Value;

use super::policy::{self, Grounds, Verdict};
use super::{bounds, meter, prompt};
use crate::agent::conversation::{
    AgentError, Conversation, Decision, ErrorClass, Opening, Record, Recorded, Step, Turn,
};
use crate::agent::lines::{Line, Lines};
use crate::document::ApprovalPolicy;
use crate::failure::{class, failure};
use crate::supervisor::End;

/// Times that a structured answer is asked for again.
pub(crate) const REPAIRS_MAX: u32 = 2;
/// Questions that wait for people at once; agents ask a few side by side at most.
const OPEN_MAX: usize = 32;
/// Questions of one attempt to people, as the coordinator bounds them too.
const ASKED_MAX: usize = 1_024;
const BY_POLICY: &str = "policy";
const BY_PERSON: &str = "person";
const BY_AGENT: &str = "agent";

/// What is to be done, in order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Act {
    /// Write this line to the agent.
    Send(String),
    /// Close its input.
    CloseInput,
    /// Write this down as it is.
    Tell(Activity),
    /// Say this to the coordinator.
    Report(report::Kind),
    /// Tell people.
    Note(String),
    /// There is nothing more to wait for but the end of the program.
    Over,
}

/// What an agent made of its task, in its own words.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Said {
    /// Its last message.
    pub(crate) message: String,
    /// Its structured answer, which fits its schema.
    pub(crate) structured: Option<Value>,
}

/// What a dialogue is about.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) opening: Opening,
    pub(crate) policy: ApprovalPolicy,
    pub(crate) grounds: Grounds,
    /// What people answered to questions of an earlier attempt, which was not given it any more: it is
    /// given when the same is asked again.
    pub(crate) answered: Vec<AnsweredQuestion>,
    pub(crate) leases: Leases,
}

/// Where the folders of leases are: agents write their paths.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leases {
    /// The folder of all of them.
    pub(crate) folder: PathBuf,
    pub(crate) own: u64,
}

impl Leases {
    /// Writes a text of an earlier lease as this one would write it.
    fn moved(&self, text: &str, earlier: u64) -> String {
        let root = |lease: u64| format!("{}/", self.folder.join(lease.to_string()).display());
        text.replace(&root(earlier), &root(self.own))
    }
}

/// A conversation and what was decided in it so far.
#[derive(Debug)]
pub(crate) struct Dialogue {
    conversation: Box<dyn Conversation>,
    subject: Subject,
    validator: Option<Validator>,
    lines: Lines,
    turn: u32,
    repairs_left: u32,
    /// Questions that wait for people.
    open: BTreeMap<u32, Question>,
    /// Questions of this attempt to people so far.
    asked_before: usize,
    usage: Usage,
    /// What stopped the turn: an answer that denies and ends it.
    stopped: Option<String>,
    result: Option<Result<Said, Failure>>,
}

impl Dialogue {
    /// Prepares one.
    ///
    /// # Errors
    /// The task's schema is none.
    pub(crate) fn new(
        conversation: Box<dyn Conversation>,
        subject: Subject,
    ) -> Result<Self, Failure> {
        let schema = subject.opening.output_schema.as_ref();
        let validator = schema.map(jsonschema::validator_for).transpose();
        let validator = validator.map_err(|error| {
            let message = format!("the task's output_schema is no JSON Schema: {error}");
            failure(ErrorClass::InvalidRequest.name(), &message, b"")
        })?;
        Ok(Self {
            conversation,
            subject,
            validator,
            lines: Lines::default(),
            turn: 0,
            repairs_left: REPAIRS_MAX,
            open: BTreeMap::new(),
            asked_before: 0,
            usage: Usage::default(),
            stopped: None,
            result: None,
        })
    }

    /// Begins the first turn.
    pub(crate) fn open(&mut self) -> Vec<Act> {
        let mut acts = vec![self.begin_turn()];
        let steps = self.conversation.open(&self.subject.opening);
        self.take(steps, &mut acts);
        acts
    }

    /// Takes bytes of the agent's standard output.
    pub(crate) fn heard(&mut self, bytes: &[u8]) -> Vec<Act> {
        let mut acts = Vec::new();
        for line in self.lines.push(bytes) {
            let steps = match &line {
                Line::Whole(line) => self.conversation.line(line),
                Line::Overlong(beginning) => self.conversation.overlong(beginning),
            };
            self.take(steps, &mut acts);
        }
        acts
    }

    /// Takes what people have answered so far; what was taken before changes nothing.
    pub(crate) fn answers(&mut self, answers: &BTreeMap<u32, Answer>) -> Vec<Act> {
        let mut acts = Vec::new();
        let open: Vec<u32> = self.open.keys().copied().collect();
        for number in open {
            let Some(answer) = answers.get(&number) else {
                continue;
            };
            let Some(question) = self.open.get(&number) else {
                continue;
            };
            let mut choices = question.choices.iter();
            if !choices.any(|choice| choice.id == answer.choice) {
                let choice = &answer.choice;
                acts.push(Act::Note(format!(
                    "question {number} has no choice {choice:?}; it is still open"
                )));
                continue;
            }
            if stops(question, &answer.choice) {
                self.stopped = Some(stopped_by(answer));
            }
            let decision = decision(answer);
            let steps = self.conversation.answer(number, &decision);
            self.close_question(number, &decision.choice, BY_PERSON, &mut acts);
            self.take(steps, &mut acts);
        }
        acts
    }

    /// Interrupts the turn.
    pub(crate) fn cancel(&mut self) -> Vec<Act> {
        let mut acts = Vec::new();
        if self.result.is_none() {
            let steps = self.conversation.cancel();
            self.take(steps, &mut acts);
        }
        acts
    }

    /// Names files of the agent's in which there is more than it has said. The program has ended.
    pub(crate) fn records(&self) -> Vec<Record> {
        self.conversation.records()
    }

    /// Takes what was found in such a file.
    pub(crate) fn recorded(&mut self, found: &Recorded) -> Vec<Act> {
        let mut acts = Vec::new();
        let steps = self.conversation.recorded(found);
        self.take(steps, &mut acts);
        acts
    }

    /// Hears that the program ended; `stderr` is the end of what it complained.
    pub(crate) fn exited(&mut self, end: &End, stderr: &[u8]) -> Vec<Act> {
        let mut acts = Vec::new();
        if self.result.is_some() {
            return acts;
        }
        if let End::ExecFailed { .. } = end {
            let judged = crate::agent::command::judge("the agent", class::AGENT_FAILED, end, b"");
            self.result = Some(judged.map(|()| Said::default()));
            return acts;
        }
        let text = String::from_utf8_lossy(stderr);
        let mut error = self.conversation.lost(end, &text);
        if error.message.trim().is_empty() {
            error.message = match end {
                End::Exited { code } => {
                    format!("the agent ended with exit code {code} in mid-turn")
                }
                End::Signalled { signal } => {
                    format!("signal {signal} killed the agent in mid-turn")
                }
                _ => "the agent ended in mid-turn".to_owned(),
            };
        }
        self.turn_ended(
            Turn {
                end: TurnEnd::Lost,
                error: Some(error),
                ..Turn::default()
            },
            &mut acts,
        );
        if let Some(Err(failure)) = &mut self.result {
            failure.output = text.into_owned();
        }
        acts
    }

    /// Tells whether the agent waits for a person.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.open.is_empty()
    }

    /// Gives what was consumed.
    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }

    /// Gives how it ended; `None` while it has not.
    pub(crate) fn into_result(self) -> Option<Result<Said, Failure>> {
        self.result
    }

    fn begin_turn(&mut self) -> Act {
        self.turn = self.turn.saturating_add(1);
        self.activity(activity::Kind::TurnBegan(Empty {}))
    }

    fn activity(&self, mut kind: activity::Kind) -> Act {
        bounds::clip(&mut kind);
        Act::Tell(Activity {
            turn: self.turn,
            kind: Some(kind),
        })
    }

    fn take(&mut self, steps: Vec<Step>, acts: &mut Vec<Act>) {
        for step in steps {
            match step {
                Step::Send(line) => acts.push(Act::Send(line)),
                Step::CloseInput => acts.push(Act::CloseInput),
                Step::NotResumed(why) => acts.push(Act::Note(format!(
                    "the earlier conversation cannot be gone on with, a new one was begun, with a \
                     summary of what was done: {why}"
                ))),
                Step::Tell(kind) => self.tell(kind, acts),
                Step::Ask(question) => self.asked(question, acts),
                Step::Withdraw(number) => self.close_question(number, "", BY_AGENT, acts),
                // A turn ends once; what an agent says about it afterwards means nothing.
                Step::TurnEnded(turn) if self.result.is_none() => self.turn_ended(turn, acts),
                Step::TurnEnded(_) => {}
            }
        }
    }

    fn tell(&mut self, kind: activity::Kind, acts: &mut Vec<Act>) {
        let told = self.activity(kind.clone());
        acts.push(told);
        match kind {
            activity::Kind::Usage(usage) => meter::add(&mut self.usage, &usage),
            activity::Kind::SessionOpened(session) => {
                acts.push(Act::Report(report::Kind::SessionOpened(session)));
            }
            _ => {}
        }
    }

    fn asked(&mut self, mut question: Question, acts: &mut Vec<Act>) {
        let number = question.number;
        let before = self.answered_before(&question);
        let verdict = match &before {
            Some(answer) => Verdict::Answered(decision(answer)),
            None => policy::judge(
                &self.subject.policy,
                &question,
                &self.subject.grounds,
                policy::real,
            ),
        };
        if let Verdict::Answered(decision) = &verdict
            && stops(&question, &decision.choice)
        {
            let by_rules = || format!("stopped by its rules: {}", decision.text);
            self.stopped = Some(before.as_ref().map_or_else(by_rules, stopped_by));
        }
        let by = before
            .as_ref()
            .map_or(BY_POLICY.to_owned(), |answer| answer.by.clone());
        bounds::clip_question(&mut question);
        if policy::is_cut(&question) {
            question
                .reason
                .insert_str(0, "[this is long, and not all of it is shown] ");
        }
        let mut told = question.clone();
        if matches!(verdict, Verdict::Answered(_)) {
            // There may be any number of these, and the raw lines have them whole.
            bounds::shorten(&mut told);
        }
        acts.push(self.activity(activity::Kind::Question(told)));
        match verdict {
            Verdict::Answered(decision) => {
                let steps = self.conversation.answer(number, &decision);
                let closed = QuestionClosed {
                    earlier: before.map_or_else(String::new, |answer| answer.name),
                    ..closed(number, &decision.choice, &by)
                };
                acts.push(self.activity(activity::Kind::QuestionClosed(closed.clone())));
                if !closed.earlier.is_empty() {
                    acts.push(Act::Report(report::Kind::QuestionClosed(closed)));
                }
                self.take(steps, acts);
            }
            Verdict::Ask if self.open.len() < OPEN_MAX && self.asked_before < ASKED_MAX => {
                self.asked_before += 1;
                acts.push(Act::Report(report::Kind::Asked(question.clone())));
                self.open.insert(number, question);
            }
            Verdict::Ask => {
                let message = format!(
                    "the agent asks people more than {OPEN_MAX} questions at once, or {ASKED_MAX} in all"
                );
                let error = AgentError {
                    class: ErrorClass::AgentError,
                    message,
                    http_status: None,
                    retry_after: None,
                };
                self.turn_ended(
                    Turn {
                        end: TurnEnd::Failed,
                        error: Some(error),
                        ..Turn::default()
                    },
                    acts,
                );
            }
        }
    }

    /// Takes the answer that a person gave when an earlier attempt asked the same.
    fn answered_before(&mut self, question: &Question) -> Option<Answer> {
        // Of what is not known whole nobody knows that it is the same, and without a detail nobody knows
        // what was allowed.
        let is_command = question.kind == "command";
        let title_is_cut = question.title.len() >= policy::TITLE_BYTES && !is_command;
        if policy::is_cut(question) || title_is_cut || question.detail.is_empty() {
            return None;
        }
        let mut asked = question.clone();
        bounds::clip_question(&mut asked);
        let Subject {
            answered, leases, ..
        } = &mut self.subject;
        let place = answered.iter().position(|before| {
            let choice = before.answer.as_ref().map(|answer| &answer.choice);
            let offered = asked.choices.iter().any(|offer| Some(&offer.id) == choice);
            offered
                && before.question.as_ref().is_some_and(|known| {
                    let now = |text: &str| leases.moved(text, before.lease);
                    known.kind == asked.kind
                        && (is_command || now(&known.title) == asked.title)
                        && now(&known.detail) == asked.detail
                })
        })?;
        let AnsweredQuestion { answer, by, .. } = answered.swap_remove(place);
        answer.map(|answer| Answer { by, ..answer })
    }

    fn close_question(&mut self, number: u32, choice: &str, by: &str, acts: &mut Vec<Act>) {
        if self.open.remove(&number).is_some() {
            let closed = closed(number, choice, by);
            acts.push(self.activity(activity::Kind::QuestionClosed(closed.clone())));
            acts.push(Act::Report(report::Kind::QuestionClosed(closed)));
        }
    }

    fn turn_ended(&mut self, turn: Turn, acts: &mut Vec<Act>) {
        for number in self.open.keys().copied().collect::<Vec<_>>() {
            self.close_question(number, "", BY_AGENT, acts);
        }
        if let Some(error) = &turn.error {
            acts.push(self.activity(activity::Kind::Error(error.to_wire())));
        }
        acts.push(self.activity(activity::Kind::TurnEnded(TurnEnded {
            end: turn.end.into(),
            message: turn.message.clone(),
        })));
        let result = match turn.end {
            _ if let Some(stopped) = &self.stopped => {
                Err(failure(class::DENIED, stopped, turn.message.as_bytes()))
            }
            TurnEnd::Completed => match self.structured(&turn) {
                Ok(structured) => Ok(Said {
                    message: turn.message,
                    structured,
                }),
                Err(faults) if self.repairs_left > 0 => {
                    self.repairs_left -= 1;
                    acts.push(Act::Note(format!(
                        "the answer does not fit its schema ({}); asking again",
                        faults.first().map_or("", String::as_str)
                    )));
                    acts.push(self.begin_turn());
                    let steps = self.conversation.prompt(&prompt::repair(&faults));
                    return self.take(steps, acts);
                }
                Err(faults) => {
                    let fault = faults.first().map_or("", String::as_str);
                    let message = format!(
                        "after {REPAIRS_MAX} repairs the answer does not fit its schema: {fault}"
                    );
                    Err(failure(
                        class::OUTPUT_INVALID,
                        &message,
                        turn.message.as_bytes(),
                    ))
                }
            },
            TurnEnd::Interrupted | TurnEnd::Failed | TurnEnd::Lost | TurnEnd::Unspecified => {
                let error = turn.error.unwrap_or_else(|| AgentError {
                    class: ErrorClass::AgentError,
                    message: match turn.end {
                        TurnEnd::Interrupted => "its turn was interrupted".to_owned(),
                        _ => "its turn failed, and it did not say why".to_owned(),
                    },
                    http_status: None,
                    retry_after: None,
                });
                Err(error.to_failure(turn.message.as_bytes()))
            }
        };
        if let Ok(Said {
            structured: Some(structured),
            ..
        }) = &result
        {
            let json = structured.to_string();
            acts.push(self.activity(activity::Kind::Structured(Structured { json })));
        }
        self.result = Some(result);
        let steps = self.conversation.close();
        self.take(steps, acts);
        acts.push(Act::Over);
    }

    /// Gives the structured answer, if one was asked for, or what is wrong with it.
    fn structured(&self, turn: &Turn) -> Result<Option<Value>, Vec<String>> {
        let Some(validator) = &self.validator else {
            return Ok(None);
        };
        let value = match &turn.structured {
            Some(value) => value.clone(),
            None => serde_json::from_str(unfenced(&turn.message))
                .map_err(|error| vec![format!("it is not JSON: {error}")])?,
        };
        if value.to_string().len() > bounds::STRUCTURED_BYTES_MAX {
            let max = bounds::STRUCTURED_BYTES_MAX;
            return Err(vec![format!("it is longer than {max} bytes")]);
        }
        let faults: Vec<String> = validator
            .iter_errors(&value)
            .map(|error| format!("at {:?}: {error}", error.instance_path().to_string()))
            .collect();
        if faults.is_empty() {
            Ok(Some(value))
        } else {
            Err(faults)
        }
    }
}

fn decision(answer: &Answer) -> Decision {
    Decision {
        choice: answer.choice.clone(),
        text: answer.text.clone(),
    }
}

/// Tells whether a choice ends the turn.
fn stops(question: &Question, choice: &str) -> bool {
    let mut choices = question.choices.iter();
    choices.any(|known| known.id == choice && known.effect() == ChoiceEffect::DenyAndStop)
}

/// Says who ended a turn, and why.
fn stopped_by(answer: &Answer) -> String {
    let Answer { name, text, by, .. } = answer;
    let why = if text.is_empty() { "" } else { ": " };
    format!("stopped by {by}'s answer to {name}{why}{text}")
}

fn closed(question: u32, choice: &str, by: &str) -> QuestionClosed {
    QuestionClosed {
        question,
        choice: choice.to_owned(),
        by: by.to_owned(),
        earlier: String::new(),
    }
}

/// Takes the fence away that models like to put around JSON.
fn unfenced(message: &str) -> &str {
    let message = message.trim();
    let Some(inside) = message
        .strip_prefix("```")
        .and_then(|rest| rest.strip_suffix("```"))
    else {
        return message;
    };
    inside.strip_prefix("json").unwrap_or(inside).trim()
}

#[cfg(test)]
mod tests;
