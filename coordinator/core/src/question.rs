//! What agents ask people, and what becomes of it.
//!
//! The words are those of the Agent Client Protocol: an agent offers its own choices, each with an
//! effect. A question has an id of its own besides its number within the attempt, so that people can
//! name it in short, and so that what they say about it is never taken for another one.

use std::sync::Arc;

use crate::event::Actor;
use crate::ids::QuestionId;
use crate::limits;
use crate::time::Timestamp;

/// What an agent asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asking {
    /// What it is about: `command`, `file_change`, `file_read`, `tool`, `permission` or `input`.
    pub kind: Box<str>,
    /// One line; bounded by [`limits::QUESTION_LINE_BYTES`].
    pub title: Box<str>,
    /// The command, diff or arguments; bounded by [`limits::QUESTION_DETAIL_BYTES`].
    pub detail: Box<str>,
    /// Why, in the agent's own words; bounded by [`limits::QUESTION_LINE_BYTES`].
    pub reason: Box<str>,
    pub folder: Box<str>,
    /// In the agent's order; at least one, at most [`limits::CHOICES_PER_QUESTION`].
    pub choices: Box<[Choice]>,
}

/// One of the answers that an agent offers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Choice {
    /// What an answer names; unique in its question.
    pub id: Box<str>,
    pub label: Box<str>,
    pub effect: ChoiceEffect,
    /// The rule that [`ChoiceEffect::AllowRule`] remembers.
    pub rule: Box<str>,
}

/// What choosing it does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ChoiceEffect {
    AllowOnce,
    /// Also for the rest of the conversation.
    AllowSession,
    /// Also whenever the choice's rule fits.
    AllowRule,
    /// The agent is told, and goes on.
    Deny,
    /// The agent is told, and its turn ends.
    DenyAndStop,
    /// Neither allows nor denies: an answer in words.
    Text,
}

impl ChoiceEffect {
    /// Every effect, for tables and tests.
    pub const ALL: [Self; 6] = [
        Self::AllowOnce,
        Self::AllowSession,
        Self::AllowRule,
        Self::Deny,
        Self::DenyAndStop,
        Self::Text,
    ];

    /// Gives the stable name used in the journal and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AllowOnce => "allow_once",
            Self::AllowSession => "allow_session",
            Self::AllowRule => "allow_rule",
            Self::Deny => "deny",
            Self::DenyAndStop => "deny_and_stop",
            Self::Text => "text",
        }
    }

    /// Finds an effect by its stable name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|effect| effect.name() == name)
    }
}

impl Asking {
    /// Cuts what is longer than it may be. Choices are never cut in themselves, since answers name
    /// them; those beyond the bound are left out.
    #[must_use]
    pub fn bounded(&self) -> Self {
        let line = |text: &str| crate::decide::head(text, limits::QUESTION_LINE_BYTES);
        let choices = self.choices.iter().take(limits::CHOICES_PER_QUESTION);
        Self {
            kind: line(&self.kind),
            title: line(&self.title),
            detail: crate::decide::head(&self.detail, limits::QUESTION_DETAIL_BYTES),
            reason: line(&self.reason),
            folder: line(&self.folder),
            choices: choices
                .map(|choice| Choice {
                    id: choice.id.clone(),
                    label: line(&choice.label),
                    effect: choice.effect,
                    rule: line(&choice.rule),
                })
                .collect(),
        }
    }

    /// Finds a choice by its id.
    #[must_use]
    pub fn choice(&self, id: &str) -> Option<&Choice> {
        self.choices.iter().find(|choice| *choice.id == *id)
    }

    /// Finds the first choice that does this.
    #[must_use]
    pub fn choice_with(&self, effect: ChoiceEffect) -> Option<&Choice> {
        self.choices.iter().find(|choice| choice.effect == effect)
    }
}

/// A question that is not closed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Question {
    pub id: QuestionId,
    /// What its agent calls it, within the attempt.
    pub number: u32,
    pub asking: Arc<Asking>,
    pub asked_at: Timestamp,
    /// Kept until the agent has it, so that a worker that reconnects gets it again.
    pub answer: Option<Answered>,
}

/// A person's word on a question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answered {
    /// Id of a choice of the question.
    pub choice: Box<str>,
    pub text: Box<str>,
    pub by: Actor,
    pub at: Timestamp,
}

/// A question that is closed, as its attempt remembers it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PastQuestion {
    pub id: QuestionId,
    pub number: u32,
    /// Empty if it was closed before it was asked.
    pub title: Box<str>,
    /// Id of the choice that the agent was given; empty if there was none.
    pub choice: Box<str>,
    pub text: Box<str>,
    /// Who chose: a user, `policy`, or `agent` if it did not wait; empty if nobody did.
    pub by: Actor,
    pub at: Timestamp,
    /// What was asked, if a person's answer had not reached the agent when its attempt ended: the
    /// attempt that goes on gives it when the same is asked again. Gone once an agent was given it.
    pub undelivered: Option<Arc<Asking>>,
}

impl Question {
    /// Gives what is remembered of it when its attempt ends before it is closed.
    pub(crate) fn past(&self, at: Timestamp) -> PastQuestion {
        let answer = self.answer.as_ref();
        PastQuestion {
            id: self.id,
            number: self.number,
            title: self.asking.title.clone(),
            choice: answer.map_or_else(Box::default, |answer| answer.choice.clone()),
            text: answer.map_or_else(Box::default, |answer| answer.text.clone()),
            by: answer.map_or_else(|| "".into(), |answer| Arc::clone(&answer.by)),
            at,
            undelivered: answer.map(|_| Arc::clone(&self.asking)),
        }
    }
}
