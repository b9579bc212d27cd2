//! Questions of agents to people.

use super::{Decision, head};
use crate::command::{Rejection, ReportAnswer};
use crate::event::{Actor, EventKind};
use crate::ids::{QuestionId, TaskIx};
use crate::limits;
use crate::state::{Lease, State, TaskState};

/// Records a question. The same question again is no news; another one takes its place.
pub(super) fn ask(
    state: &State,
    held: &Lease,
    task: TaskIx,
    text: &str,
    events: &mut Vec<EventKind>,
) -> ReportAnswer {
    let text = head(text, limits::TEXT_BYTES);
    let task = state.run(held.run).and_then(|run| run.task(task));
    if let Some(TaskState::Leased {
        awaiting: Some(open),
        ..
    }) = task.map(|task| &task.state)
        && open.answer.is_none()
        && open.text == text
    {
        return ReportAnswer::AlreadyRecorded;
    }
    events.push(EventKind::QuestionAsked {
        run: held.run,
        lease: held.id,
        question: state.next_question,
        text,
    });
    ReportAnswer::Recorded
}

pub(super) fn answer(
    state: &State,
    question: QuestionId,
    answer: &str,
    by: &Actor,
) -> Result<Decision, Rejection> {
    let task = state.index.questions.get(&question);
    let task = task.ok_or(Rejection::UnknownQuestion(question))?;
    Ok(Decision::done(vec![EventKind::QuestionAnswered {
        run: task.run,
        question,
        answer: head(answer, limits::TEXT_BYTES),
        by: by.clone(),
    }]))
}
