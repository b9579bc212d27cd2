//! The conversation with a model agent, whatever protocol it speaks.
//!
//! The words are those of the [Agent Client Protocol](https://agentclientprotocol.com): a session has
//! turns, each begun by a prompt; the agent tells updates, asks for permissions, can be cancelled, and
//! may load an earlier session. Each agent is a pure machine here: lines of its output go in, steps
//! come out. Processes, pipes, time and the coordinator are the driver's affair.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use muster_proto::v1::{self, ChoiceEffect, Question, TurnEnd, activity};
use serde_json::Value;

use crate::failure::{failure, one_line};
use crate::supervisor::End;

/// Longest line of an agent that is read whole; Codex sends lines of 1.1 MB. Of a longer one the
/// conversation gets [`Conversation::overlong`].
pub(crate) const LINE_BYTES_MAX: usize = 8 << 20;

/// Longest message of an error on the wire.
const MESSAGE_BYTES_MAX: usize = 1_024;

/// What a conversation begins with.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Opening {
    /// Folder in which the agent works; absolute.
    pub(crate) folder: PathBuf,
    /// The first prompt.
    pub(crate) prompt: String,
    /// What holds for the whole conversation: the persona's text; empty if there is none.
    pub(crate) instructions: String,
    /// Id of a conversation of this host that is to be gone on with.
    pub(crate) resume: Option<String>,
    /// The first prompt if that cannot be gone on with: it says what the agent does not remember then.
    pub(crate) anew: String,
    /// JSON Schema of the last message, for agents that can be held to one.
    pub(crate) output_schema: Option<Value>,
    /// Variables of the agent's program, for agents that log in by a message. Some are secret.
    pub(crate) env: BTreeMap<String, String>,
}

impl Opening {
    /// Turns to a conversation that begins anew, if the earlier one cannot be gone on with.
    pub(crate) fn begin_anew(&mut self) {
        if self.resume.take().is_some() && !self.anew.is_empty() {
            self.prompt = std::mem::take(&mut self.anew);
        }
    }
}

/// What the driver is to do, in order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// Write this line to the agent; the driver adds the line's end.
    Send(String),
    /// Tell this.
    Tell(activity::Kind),
    /// The agent waits for an answer; its number is unique in the conversation and counts from 1.
    Ask(Question),
    /// The agent does not wait for this answer any more.
    Withdraw(u32),
    /// The session named at the opening cannot be gone on with: a new one was begun, with the
    /// opening's prompt for that.
    NotResumed(String),
    /// The turn is over; the driver prompts again or closes. Comes once a turn.
    TurnEnded(Turn),
    /// Close the agent's standard input, after what is to be sent.
    CloseInput,
}

/// How a turn ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Turn {
    pub(crate) end: TurnEnd,
    /// The agent's last message.
    pub(crate) message: String,
    /// The structured answer, if the agent gives it apart from the message.
    pub(crate) structured: Option<Value>,
    /// Why it failed.
    pub(crate) error: Option<AgentError>,
}

/// What went wrong, in the agent's or its provider's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AgentError {
    pub(crate) class: ErrorClass,
    pub(crate) message: String,
    /// Status of the provider's answer.
    pub(crate) http_status: Option<u16>,
    /// How long the provider wants to be left alone.
    pub(crate) retry_after: Option<Duration>,
}

impl AgentError {
    /// Makes it fit the wire.
    pub(crate) fn to_wire(&self) -> v1::AgentError {
        v1::AgentError {
            class: self.class.name().to_owned(),
            message: one_line(&self.message, MESSAGE_BYTES_MAX),
            http_status: self.http_status.unwrap_or_default().into(),
            retry_after: self.retry_after.and_then(|after| after.try_into().ok()),
        }
    }

    /// Makes the failure of an attempt of it; `output` is the end of what the agent wrote.
    pub(crate) fn to_failure(&self, output: &[u8]) -> v1::Failure {
        v1::Failure {
            retry_after: self.retry_after.and_then(|after| after.try_into().ok()),
            ..failure(self.class.name(), &self.message, output)
        }
    }
}

/// Classes of errors of agents and their providers. Each is a class of failure of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum ErrorClass {
    /// No login, or one that is not accepted.
    Authentication,
    /// Too many requests for now.
    RateLimit,
    /// The provider has no room for now (529, overloaded).
    ProviderCapacity,
    /// The provider failed (5xx).
    ProviderError,
    /// The provider was not reached, or its stream broke.
    Transport,
    /// The provider does not accept the request: unknown model, bad options.
    InvalidRequest,
    /// The conversation is too long for the model.
    ContextWindow,
    /// The account's quota or budget is used up.
    UsageLimit,
    /// The model refuses.
    Refusal,
    /// The agent's program ended without saying how its turn ended.
    AgentCrashed,
    /// Anything else that the agent says went wrong.
    AgentError,
}

impl ErrorClass {
    /// Every class, for tables and tests.
    pub(crate) const ALL: [Self; 11] = [
        Self::Authentication,
        Self::RateLimit,
        Self::ProviderCapacity,
        Self::ProviderError,
        Self::Transport,
        Self::InvalidRequest,
        Self::ContextWindow,
        Self::UsageLimit,
        Self::Refusal,
        Self::AgentCrashed,
        Self::AgentError,
    ];

    /// Gives the stable name, which is that of the class of failure too.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Authentication => "authentication",
            Self::RateLimit => "rate_limit",
            Self::ProviderCapacity => "provider_capacity",
            Self::ProviderError => "provider_error",
            Self::Transport => "transport",
            Self::InvalidRequest => "invalid_request",
            Self::ContextWindow => "context_window",
            Self::UsageLimit => "usage_limit",
            Self::Refusal => "refusal",
            Self::AgentCrashed => "agent_crashed",
            Self::AgentError => "agent_error",
        }
    }

    /// Tells whether the same call fails however often it is made: agents that try again all the same are
    /// stopped. A conversation that is too long may be made shorter by its agent.
    pub(crate) const fn is_final(self) -> bool {
        matches!(
            self,
            Self::Authentication | Self::InvalidRequest | Self::UsageLimit
        )
    }

    /// Judges an answer of a provider by its HTTP status alone.
    pub(crate) const fn of_status(status: u16) -> Self {
        match status {
            401 | 403 => Self::Authentication,
            402 => Self::UsageLimit,
            // It was too slow, or something else was in the way for a moment.
            408 | 409 | 425 => Self::ProviderError,
            413 => Self::ContextWindow,
            429 => Self::RateLimit,
            503 | 529 => Self::ProviderCapacity,
            500..=599 => Self::ProviderError,
            400..=499 => Self::InvalidRequest,
            _ => Self::AgentError,
        }
    }
}

/// A decision on a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    /// Id of one of the question's choices.
    pub(crate) choice: String,
    /// For the agent: why, or what it asked for.
    pub(crate) text: String,
}

/// A file of the agent's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) file: PathBuf,
    /// What is in every line that matters.
    pub(crate) word: &'static str,
}

/// What was found in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Recorded {
    /// A line with the word, without its end.
    Line(Vec<u8>),
    /// The file with this name cannot be read, or not to its end.
    Unreadable(PathBuf),
    /// That was all of all files.
    End,
}

/// One agent's protocol, as a pure machine. No call may panic, whatever the agent wrote.
pub(crate) trait Conversation: Send + std::fmt::Debug {
    /// Begins; called once, before anything else.
    fn open(&mut self, opening: &Opening) -> Vec<Step>;

    /// Takes one line of the agent's standard output, without its end.
    fn line(&mut self, line: &[u8]) -> Vec<Step>;

    /// Hears that a line was longer than [`LINE_BYTES_MAX`] and was left out; its beginning is given.
    fn overlong(&mut self, beginning: &[u8]) -> Vec<Step>;

    /// Begins another turn of the same session. Called after a turn has ended.
    fn prompt(&mut self, text: &str) -> Vec<Step>;

    /// Answers a question that is open; others are ignored.
    fn answer(&mut self, question: u32, decision: &Decision) -> Vec<Step>;

    /// Interrupts the turn and what it runs. The turn's end follows, if the agent can say so.
    fn cancel(&mut self) -> Vec<Step>;

    /// Says goodbye: no turn follows.
    fn close(&mut self) -> Vec<Step>;

    /// Names files in which the agent itself keeps what it may not have had the time to say. Asked when
    /// the program has ended.
    fn records(&self) -> Vec<Record> {
        Vec::new()
    }

    /// Takes what was found in such files, and that it was all.
    fn recorded(&mut self, _found: &Recorded) -> Vec<Step> {
        Vec::new()
    }

    /// Judges a program that ended while a turn ran; `stderr` is the end of what it complained.
    fn lost(&mut self, end: &End, stderr: &str) -> AgentError;
}

/// Finds the id of the first choice of a question that has this effect.
pub(crate) fn choice_with(question: &Question, effect: ChoiceEffect) -> Option<&str> {
    let mut choices = question.choices.iter();
    let found = choices.find(|choice| choice.effect() == effect);
    found.map(|choice| choice.id.as_str())
}
