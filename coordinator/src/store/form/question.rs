//! Forms of questions of agents to people.

use std::sync::Arc;

use coordinator_core::question::{Answered, Asking, Choice, ChoiceEffect, PastQuestion, Question};
use coordinator_core::{QuestionId, Timestamp};
use serde::{Deserialize, Serialize};

use super::Error;
use super::plan::{Text, boxed, is_zero, shared, text};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChoiceV1<'a> {
    id: Text<'a>,
    label: Text<'a>,
    effect: Text<'a>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    rule: Text<'a>,
}

/// What is asked, but its title, which is older than the rest.
#[derive(Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct AskingV1<'a> {
    kind: Text<'a>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    detail: Text<'a>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    reason: Text<'a>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    folder: Text<'a>,
    choices: Vec<ChoiceV1<'a>>,
}

impl AskingV1<'_> {
    /// Tells whether nothing is known but a title.
    fn is_bare(asking: &Asking) -> bool {
        asking.kind.is_empty() && asking.choices.is_empty()
    }
}

/// Writes what is asked apart from its title; nothing if there is nothing else.
pub(super) fn asking(asking: &Asking) -> Option<AskingV1<'_>> {
    (!AskingV1::is_bare(asking)).then(|| AskingV1 {
        kind: text(&asking.kind),
        detail: text(&asking.detail),
        reason: text(&asking.reason),
        folder: text(&asking.folder),
        choices: asking
            .choices
            .iter()
            .map(|choice| ChoiceV1 {
                id: text(&choice.id),
                label: text(&choice.label),
                effect: text(choice.effect.name()),
                rule: text(&choice.rule),
            })
            .collect(),
    })
}

/// Reads what is asked.
pub(super) fn asking_of(title: Text<'_>, form: Option<AskingV1<'_>>) -> Result<Arc<Asking>, Error> {
    let form = form.unwrap_or_default();
    let choices = form.choices.into_iter().map(|choice| {
        let effect = ChoiceEffect::from_name(&choice.effect);
        Ok(Choice {
            id: boxed(choice.id),
            label: boxed(choice.label),
            effect: effect.ok_or_else(|| Error::Unknown {
                field: "question.choices.effect",
                value: Box::from(&*choice.effect),
            })?,
            rule: boxed(choice.rule),
        })
    });
    Ok(Arc::new(Asking {
        kind: boxed(form.kind),
        title: boxed(title),
        detail: boxed(form.detail),
        reason: boxed(form.reason),
        folder: boxed(form.folder),
        choices: choices.collect::<Result<_, Error>>()?,
    }))
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QuestionV1<'a> {
    id: u64,
    text: Text<'a>,
    asked_at: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answer: Option<Text<'a>>,
    #[serde(default, skip_serializing_if = "is_zero")]
    number: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    asking: Option<AskingV1<'a>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answered: Option<AnsweredV1<'a>>,
}

/// The rest of an answer, besides the choice.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AnsweredV1<'a> {
    #[serde(default, skip_serializing_if = "str::is_empty")]
    text: Text<'a>,
    by: Text<'a>,
    at: u64,
}

impl<'a> From<&'a Question> for QuestionV1<'a> {
    fn from(question: &'a Question) -> Self {
        let answer = question.answer.as_ref();
        let known = answer.filter(|answer| !answer.by.is_empty());
        Self {
            id: question.id.0,
            text: text(&question.asking.title),
            asked_at: question.asked_at.ms(),
            answer: answer.map(|answer| text(&answer.choice)),
            number: question.number,
            asking: asking(&question.asking),
            answered: known.map(|answer| AnsweredV1 {
                text: text(&answer.text),
                by: text(&answer.by),
                at: answer.at.ms(),
            }),
        }
    }
}

impl TryFrom<QuestionV1<'_>> for Question {
    type Error = Error;

    fn try_from(form: QuestionV1<'_>) -> Result<Self, Error> {
        let (text, by, at) = match form.answered {
            Some(answered) => (
                boxed(answered.text),
                shared(&answered.by),
                Timestamp::from_ms(answered.at),
            ),
            None => (Box::default(), "".into(), Timestamp::default()),
        };
        Ok(Self {
            id: QuestionId(form.id),
            number: form.number,
            asking: asking_of(form.text, form.asking)?,
            asked_at: Timestamp::from_ms(form.asked_at),
            answer: form.answer.map(|choice| Answered {
                choice: boxed(choice),
                text,
                by,
                at,
            }),
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PastV1<'a> {
    id: u64,
    number: u32,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    title: Text<'a>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    choice: Text<'a>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    text: Text<'a>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    by: Text<'a>,
    at: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    undelivered: Option<AskingV1<'a>>,
}

impl<'a> From<&'a PastQuestion> for PastV1<'a> {
    fn from(past: &'a PastQuestion) -> Self {
        Self {
            id: past.id.0,
            number: past.number,
            title: text(&past.title),
            choice: text(&past.choice),
            text: text(&past.text),
            by: text(&past.by),
            at: past.at.ms(),
            undelivered: past.undelivered.as_deref().and_then(asking),
        }
    }
}

impl TryFrom<PastV1<'_>> for PastQuestion {
    type Error = Error;

    fn try_from(form: PastV1<'_>) -> Result<Self, Error> {
        let undelivered = form.undelivered.map(|asking| {
            let title = text(&*form.title);
            asking_of(title, Some(asking))
        });
        let undelivered = undelivered.transpose()?;
        Ok(Self {
            id: QuestionId(form.id),
            number: form.number,
            title: boxed(form.title),
            choice: boxed(form.choice),
            text: boxed(form.text),
            by: shared(&form.by),
            at: Timestamp::from_ms(form.at),
            undelivered,
        })
    }
}
