//! Questions of agents to people.

use std::sync::Arc;

use super::attempt::{fail, revoked};
use super::{Decision, head};
use crate::command::{Rejection, ReportAnswer};
use crate::event::{Actor, EventKind, Usage};
use crate::failure::{Failure, FailureClass};
use crate::ids::{QuestionId, TaskIx};
use crate::index::unanswered;
use crate::limits;
use crate::question::{Asking, ChoiceEffect, PastQuestion, Question};
use crate::state::{Attempt, Lease, Run, State};
use crate::time::{Span, Timestamp};

/// Records a question of an attempt. The number of one that it has asked before is no news.
pub(super) fn ask(
    state: &State,
    (run, held, task): (&Run, &Lease, TaskIx),
    now: Timestamp,
    number: u32,
    asking: &Asking,
    events: &mut Vec<EventKind>,
) -> ReportAnswer {
    if asking.choices.is_empty() {
        return ReportAnswer::Stale;
    }
    let Some(asked) = Asked::of(run, task) else {
        return ReportAnswer::Stale;
    };
    if asked.knows(number) {
        return ReportAnswer::AlreadyRecorded;
    }
    if asked.open.len() >= limits::OPEN_QUESTIONS || asked.is_full() {
        let text = format!(
            "its agent asked too much: at most {} questions may be open, and {} asked in all",
            limits::OPEN_QUESTIONS,
            limits::QUESTIONS_PER_ATTEMPT
        );
        let failure = Failure::new(FailureClass::AgentError, text);
        fail(run, held, now, failure, Usage::default(), events);
        events.push(revoked(held));
        return ReportAnswer::Recorded;
    }
    events.push(EventKind::QuestionAsked {
        run: held.run,
        lease: held.id,
        question: state.next_question,
        number,
        asking: Arc::new(asking.bounded()),
    });
    if asked.stood_still(now) >= limits::PAUSED_MAX {
        let oldest = unanswered(asked.open).map_or(state.next_question, |open| open.id);
        events.push(EventKind::TaskParked {
            run: held.run,
            lease: held.id,
            question: oldest,
        });
        events.push(revoked(held));
    }
    ReportAnswer::Recorded
}

/// Records that the agent does not wait any more. Also of a question that has not been heard of,
/// so that it is not opened by a report that comes late. One that an answer to an `earlier` attempt's
/// question closed was never open: the answer is handed over with it, and to no attempt again.
pub(super) fn close(
    state: &State,
    (run, held, task): (&Run, &Lease, TaskIx),
    (number, earlier, choice, by): (u32, Option<QuestionId>, &str, &str),
    events: &mut Vec<EventKind>,
) -> ReportAnswer {
    let closed = |question: QuestionId| EventKind::QuestionClosed {
        run: held.run,
        lease: held.id,
        question,
        number,
        choice: head(choice, limits::QUESTION_LINE_BYTES),
        by: head(by, limits::QUESTION_LINE_BYTES).into(),
    };
    if let Some(earlier) = earlier {
        let attempts = run.task(task).map_or(&[][..], |task| task.attempts());
        let mut waiting = attempts.iter().flat_map(|attempt| &attempt.asked);
        if !waiting.any(|past| past.id == earlier && past.undelivered.is_some()) {
            return ReportAnswer::AlreadyRecorded;
        }
        events.push(closed(earlier));
        return ReportAnswer::Recorded;
    }
    let Some(asked) = Asked::of(run, task) else {
        return ReportAnswer::Stale;
    };
    if asked.past.iter().any(|past| past.number == number) {
        return ReportAnswer::AlreadyRecorded;
    }
    let open = asked.open.iter().find(|open| open.number == number);
    if open.is_none() && asked.is_full() {
        return ReportAnswer::Stale;
    }
    events.push(closed(open.map_or(state.next_question, |open| open.id)));
    ReportAnswer::Recorded
}

/// Records which conversation the agent has.
pub(super) fn conversation(
    (run, held, task): (&Run, &Lease, TaskIx),
    id: &str,
    software: &str,
    events: &mut Vec<EventKind>,
) -> ReportAnswer {
    let Some(attempt) = run.task(task).and_then(|task| task.attempts().last()) else {
        return ReportAnswer::Stale;
    };
    let opened = attempt.conversation.as_ref();
    if opened.is_some_and(|opened| *opened.id == *id) {
        return ReportAnswer::AlreadyRecorded;
    }
    let opened = opened.map_or(0, |opened| opened.nth);
    if id.is_empty() || id.len() > limits::QUESTION_LINE_BYTES {
        return ReportAnswer::Stale;
    }
    if opened >= limits::CONVERSATIONS_PER_ATTEMPT {
        return ReportAnswer::Stale;
    }
    events.push(EventKind::ConversationOpened {
        run: held.run,
        lease: held.id,
        conversation: id.into(),
        software: head(software, limits::QUESTION_LINE_BYTES),
    });
    ReportAnswer::Recorded
}

/// What an attempt at work has asked.
struct Asked<'a> {
    open: &'a [Question],
    past: &'a [PastQuestion],
    attempt: &'a Attempt,
}

impl<'a> Asked<'a> {
    fn of(run: &'a Run, task: TaskIx) -> Option<Self> {
        let task = run.task(task)?;
        let attempt: &Attempt = task.attempts().last()?;
        Some(Self {
            open: task.questions(),
            past: &attempt.asked,
            attempt,
        })
    }

    fn knows(&self, number: u32) -> bool {
        self.open.iter().any(|open| open.number == number)
            || self.past.iter().any(|past| past.number == number)
    }

    /// How long the attempt's clocks have stood still for people.
    fn stood_still(&self, now: Timestamp) -> Span {
        let waiting = self.attempt.waiting_since;
        let waiting = waiting.map_or(Span::ZERO, |since| now.since(since));
        self.attempt.paused + waiting
    }

    fn is_full(&self) -> bool {
        self.open.len() + self.past.len() >= limits::QUESTIONS_PER_ATTEMPT
    }
}

/// A person answers. The same answer again changes nothing; another one is told who was first.
pub(super) fn answer(
    state: &State,
    id: QuestionId,
    choice: &str,
    text: &str,
    by: &Actor,
) -> Result<Decision, Rejection> {
    let Some((key, question)) = state.question(id) else {
        return closed(state, id, choice, text);
    };
    if let Some(answer) = &question.answer {
        if *answer.choice == *choice && *answer.text == *text {
            return Ok(Decision::done(vec![]));
        }
        return Err(already(id, &answer.choice, &answer.by));
    }
    let Some(chosen) = question.asking.choice(choice) else {
        let choices = question.asking.choices.iter();
        let choices: Vec<&str> = choices.map(|choice| &*choice.id).collect();
        let text = format!(
            "{id} does not offer {choice:?}: its choices are {}",
            choices.join(", ")
        );
        return Err(Rejection::Answer(text.into()));
    };
    if text.len() > limits::ANSWER_BYTES {
        let text = format!(
            "the text has {} bytes, an answer takes at most {}",
            text.len(),
            limits::ANSWER_BYTES
        );
        return Err(Rejection::Answer(text.into()));
    }
    // With several of these each is an answer by itself.
    let choices = question.asking.choices.iter();
    let in_words = choices.filter(|choice| choice.effect == ChoiceEffect::Text);
    if chosen.effect == ChoiceEffect::Text && in_words.count() == 1 && text.is_empty() {
        let text = format!("{id} asks for words: give a text");
        return Err(Rejection::Answer(text.into()));
    }
    Ok(Decision::done(vec![EventKind::QuestionAnswered {
        run: key.run,
        question: id,
        choice: choice.into(),
        text: text.into(),
        by: by.clone(),
    }]))
}

fn already(id: QuestionId, choice: &str, by: &str) -> Rejection {
    Rejection::NotNow(format!("{id} was answered before: {choice} by {by}").into())
}

/// Says what became of a question that is not open.
fn closed(state: &State, id: QuestionId, choice: &str, text: &str) -> Result<Decision, Rejection> {
    let past = state.past_question(id);
    let past = past.ok_or(Rejection::UnknownQuestion(id))?;
    if !past.choice.is_empty() && *past.choice == *choice && *past.text == *text {
        return Ok(Decision::done(vec![]));
    }
    if past.choice.is_empty() {
        let text = format!("{id} is not open any more: its agent does not wait for an answer");
        return Err(Rejection::NotNow(text.into()));
    }
    Err(already(id, &past.choice, &past.by))
}
