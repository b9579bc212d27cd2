//! Bounds of what an agent may say, as the wire states them. What is longer is cut.

use muster_proto::v1::{Question, activity::Kind};

/// Longest structured answer, as JSON.
pub(crate) const STRUCTURED_BYTES_MAX: usize = 256 << 10;
/// A piece of text or output in one event.
const PIECE: usize = 256 << 10;
const MESSAGE: usize = 64 << 10;
const DETAIL: usize = 16 << 10;
const LINE: usize = 1 << 10;
/// Choices of one question.
const CHOICES: usize = 16;
/// Files that one question names.
const PATHS: usize = 256;
/// Items of one plan.
const TODOS: usize = 200;

/// Cuts what is too long.
pub(crate) fn clip(kind: &mut Kind) {
    match kind {
        Kind::SessionOpened(session) => {
            for text in [&mut session.id, &mut session.model, &mut session.software] {
                cut(text, LINE);
            }
        }
        Kind::TurnEnded(turn) => cut(&mut turn.message, MESSAGE),
        Kind::Message(delta) | Kind::Reasoning(delta) => {
            cut(&mut delta.item, LINE);
            cut(&mut delta.text, PIECE);
        }
        Kind::CommandStarted(command) => {
            cut(&mut command.item, LINE);
            cut(&mut command.command, DETAIL);
            cut(&mut command.folder, LINE);
        }
        Kind::CommandOutput(output) => {
            cut(&mut output.item, LINE);
            output.data.truncate(PIECE);
        }
        Kind::CommandEnded(ended) => cut(&mut ended.item, LINE),
        Kind::FileChange(change) => {
            cut(&mut change.diff, MESSAGE);
            for text in [&mut change.item, &mut change.change] {
                cut(text, LINE);
            }
            for text in [&mut change.path, &mut change.former_path] {
                cut(text, DETAIL);
            }
        }
        Kind::ToolCall(call) => {
            for text in [
                &mut call.item,
                &mut call.server,
                &mut call.tool,
                &mut call.status,
            ] {
                cut(text, LINE);
            }
            cut(&mut call.arguments, DETAIL);
            cut(&mut call.result, DETAIL);
        }
        Kind::TodoList(list) => {
            list.items.truncate(TODOS);
            for item in &mut list.items {
                cut(&mut item.text, LINE);
                cut(&mut item.status, LINE);
            }
        }
        Kind::Usage(usage) => cut(&mut usage.model, LINE),
        Kind::Retry(retry) => {
            if let Some(error) = &mut retry.error {
                cut(&mut error.message, LINE);
            }
        }
        Kind::Question(question) => clip_question(question),
        Kind::QuestionClosed(closed) => cut(&mut closed.choice, LINE),
        Kind::Error(error) => cut(&mut error.message, LINE),
        // Its bound was kept when it was checked, and half of it would be no JSON.
        Kind::Structured(_) | Kind::TurnBegan(_) => {}
    }
}

/// Cuts what is too long in a question. Ids of choices stay whole: the agent knows them.
pub(crate) fn clip_question(question: &mut Question) {
    cut(&mut question.title, LINE);
    cut(&mut question.detail, DETAIL);
    cut(&mut question.reason, LINE);
    cut(&mut question.folder, LINE);
    question.choices.truncate(CHOICES);
    for choice in &mut question.choices {
        cut(&mut choice.label, LINE);
        cut(&mut choice.rule, LINE);
    }
    question.paths.truncate(PATHS);
    for path in &mut question.paths {
        cut(path, DETAIL);
    }
}

/// Cuts a question to what a list of many needs.
pub(crate) fn shorten(question: &mut Question) {
    cut(&mut question.detail, LINE);
    cut(&mut question.folder, LINE);
    question.paths.truncate(8);
    for path in &mut question.paths {
        cut(path, LINE / 4);
    }
    for choice in &mut question.choices {
        cut(&mut choice.rule, LINE / 4);
        cut(&mut choice.label, LINE / 4);
    }
}

/// Cuts a text at a character.
fn cut(text: &mut String, bytes_max: usize) {
    text.truncate(text.floor_char_boundary(bytes_max));
}
