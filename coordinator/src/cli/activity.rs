//! What a model agent does, in lines for people.

use muster_proto::v1::{self, activity::Kind};

use serde_json::{Value, json};

use crate::output::one_line;

/// Describes it in one line; `None` for what is shown in another way, or only in the whole record.
pub(crate) fn line(activity: &v1::Activity) -> Option<String> {
    Some(match activity.kind.as_ref()? {
        Kind::SessionOpened(session) if session.resumed => {
            format!("· goes on with session {}", one_line(&session.id))
        }
        Kind::SessionOpened(session) => {
            let model = one_line(&session.model);
            format!("· session {} {model}", one_line(&session.id))
                .trim_end()
                .to_owned()
        }
        Kind::TurnBegan(_) => format!("· turn {}", activity.turn),
        Kind::TurnEnded(turn) => format!("· turn {} {}", activity.turn, end(turn.end())),
        Kind::CommandStarted(command) => format!("$ {}", one_line(&command.command)),
        Kind::CommandEnded(ended) if ended.declined => "· declined".to_owned(),
        Kind::CommandEnded(ended) => match ended.exit_code {
            Some(0) | None => return None,
            Some(code) => format!("· exit code {code}"),
        },
        Kind::FileChange(change) => {
            let declined = if change.declined { " (declined)" } else { "" };
            format!(
                "± {} {}{declined}",
                one_line(&change.change),
                one_line(&change.path)
            )
        }
        Kind::ToolCall(call) => {
            let tool = [&call.server, &call.tool].map(|part| one_line(part));
            format!("· {} {}", tool.join(" ").trim(), one_line(&call.status))
        }
        Kind::TodoList(list) => {
            let done = list.items.iter().filter(|item| item.status == "completed");
            format!("· plan: {} of {} done", done.count(), list.items.len())
        }
        Kind::Retry(retry) => {
            let why = retry.error.as_ref().map(|error| one_line(&error.message));
            format!("· tries again: {}", why.unwrap_or_default())
        }
        Kind::Question(question) => format!("? {}", one_line(&question.title)),
        Kind::QuestionClosed(closed) => {
            format!(
                "· question {}: {} ({})",
                closed.question,
                one_line(&closed.choice),
                one_line(&closed.by)
            )
        }
        Kind::Error(error) => format!("! {}: {}", one_line(&error.class), one_line(&error.message)),
        Kind::Structured(_) => "· answered in JSON".to_owned(),
        Kind::Message(_) | Kind::Reasoning(_) | Kind::CommandOutput(_) | Kind::Usage(_) => {
            return None;
        }
    })
}

fn end(end: v1::TurnEnd) -> &'static str {
    match end {
        v1::TurnEnd::Completed => "completed",
        v1::TurnEnd::Interrupted => "interrupted",
        v1::TurnEnd::Failed => "failed",
        v1::TurnEnd::Lost | v1::TurnEnd::Unspecified => "lost",
    }
}

/// Describes it for programs.
pub(crate) fn json(activity: &v1::Activity) -> Value {
    json!({ "turn": activity.turn, "line": line(activity) })
}
