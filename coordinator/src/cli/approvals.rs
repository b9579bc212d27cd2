//! `coordinator approvals`: what agents ask.

use jiff::Timestamp;
use muster_proto::v1::{self, ChoiceEffect};
use serde_json::{Value, json};

use super::arguments::Approvals;
use super::context::{Context, Session};
use super::error::{Exit, Result};
use super::{find, show};
use crate::output::{Paint, harmless, one_line};

/// Columns of a line of a command, diff or arguments; longer ones are broken.
const DETAIL_WIDTH: usize = 74;

pub(crate) async fn approvals(context: &Context, options: Approvals) -> Result<Exit> {
    let session = context.session().await?;
    let shown = list(context, &session, &options).await;
    session.close().await;
    shown
}

async fn list(context: &Context, session: &Session, options: &Approvals) -> Result<Exit> {
    let run = match &options.run {
        Some(run) => find::run(&session.client, Some(run)).await?,
        None => String::new(),
    };
    let request = v1::ListQuestionsRequest { run };
    let listed = session.client.operator().list_questions(request).await?;
    let listed = listed.into_inner();
    if options.json {
        let questions: Vec<Value> = listed.questions.iter().map(described).collect();
        context
            .output
            .json(&json!({ "questions": questions, "more": listed.more }))?;
        return Ok(Exit::Success);
    }
    if listed.questions.is_empty() {
        context.output.say("no agent waits for an answer");
        return Ok(Exit::Success);
    }
    let paint = context.output.data_paint;
    let now = Timestamp::now();
    let blocks: Vec<String> = listed
        .questions
        .iter()
        .map(|question| block(question, now, paint))
        .collect();
    context.output.data(&blocks.join("\n"))?;
    if listed.more > 0 {
        let more = show::counted(listed.more as usize, "more question");
        context.output.say(&format!("and {more}"));
    }
    let first = listed.questions.first().map_or("ID", |first| &first.id);
    context.output.say(&format!(
        "answer with `{program} approve {first}` or `{program} deny {first}`",
        program = context.program
    ));
    Ok(Exit::Success)
}

/// Names an effect for programs.
const fn effect(effect: ChoiceEffect) -> &'static str {
    match effect {
        ChoiceEffect::Unspecified => "unspecified",
        ChoiceEffect::AllowOnce => "allow_once",
        ChoiceEffect::AllowSession => "allow_session",
        ChoiceEffect::AllowRule => "allow_rule",
        ChoiceEffect::Deny => "deny",
        ChoiceEffect::DenyAndStop => "deny_and_stop",
        ChoiceEffect::Text => "text",
    }
}

/// Describes a question for programs.
pub(super) fn described(open: &v1::OpenQuestion) -> Value {
    let asked = open.question.clone().unwrap_or_default();
    let choices: Vec<Value> = asked
        .choices
        .iter()
        .map(|choice| {
            json!({
                "id": choice.id,
                "label": choice.label,
                "effect": effect(choice.effect()),
                "rule": (!choice.rule.is_empty()).then_some(&choice.rule),
            })
        })
        .collect();
    json!({
        "id": open.id,
        "run": open.run,
        "task": open.task,
        "attempt": open.attempt,
        "lease": open.lease,
        "number": asked.number,
        "worker": open.worker,
        "agent": open.agent,
        "asked_at": show::machine_time(open.asked_at.as_ref()),
        "parked": open.parked,
        "kind": asked.kind,
        "title": asked.title,
        "detail": asked.detail,
        "reason": asked.reason,
        "folder": asked.folder,
        "choices": choices,
    })
}

/// Writes a question for a person to decide.
fn block(open: &v1::OpenQuestion, now: Timestamp, paint: Paint) -> String {
    let asked = open.question.clone().unwrap_or_default();
    let waits = show::time(open.asked_at.as_ref())
        .map(|at| format!(", waits for {}", show::duration(show::between(at, now))));
    let parked = if open.parked {
        ", gave up its slot"
    } else {
        ""
    };
    let mut text = format!(
        "{}  {} {}  {}\n",
        paint.yellow(&one_line(&open.id)),
        paint.bold(&harmless(&open.run)),
        paint.bold(&harmless(&open.task)),
        paint.dim(&format!(
            "{} on {}{}{parked}",
            one_line(&open.agent),
            one_line(&open.worker),
            waits.unwrap_or_default()
        )),
    );
    // Whole, with pictures for what is no letter: what is hidden here would be allowed unseen.
    text.push_str(&format!("    {}\n", harmless(&asked.title)));
    for line in asked.detail.lines() {
        for (nth, row) in rows(&harmless(line)).iter().enumerate() {
            let sign = if nth == 0 { '|' } else { '…' };
            text.push_str(&format!("    {}\n", paint.dim(&format!("{sign} {row}"))));
        }
    }
    for (what, value) in [("why", &asked.reason), ("in", &asked.folder)] {
        if !value.is_empty() {
            text.push_str(&format!("    {what}: {}\n", harmless(value)));
        }
    }
    for choice in &asked.choices {
        let rule = if choice.rule.is_empty() {
            String::new()
        } else {
            format!(" ({})", one_line(&choice.rule))
        };
        text.push_str(&format!(
            "    {} {}: {}{rule}\n",
            paint.dim("-"),
            one_line(&choice.id),
            one_line(&choice.label),
        ));
    }
    text
}

/// Breaks a line where the next character has no room.
fn rows(line: &str) -> Vec<String> {
    let mut rows = vec![String::new()];
    let mut width = 0;
    for character in line.chars() {
        let shown = match character {
            '\t' => "    ".to_owned(),
            character => character.to_string(),
        };
        let wide = console::measure_text_width(&shown);
        if width + wide > DETAIL_WIDTH {
            rows.push(String::new());
            width = 0;
        }
        width += wide;
        if let Some(row) = rows.last_mut() {
            row.push_str(&shown);
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::canned;

    #[test]
    fn a_question_shows_all_that_a_decision_needs_and_nothing_that_harms_a_terminal() {
        let open = canned::question();
        insta::assert_snapshot!(block(&open, canned::at(90), Paint::new(false)));
        let described = described(&open);
        assert_eq!(described["choices"][1]["effect"], "allow_rule");
        assert_eq!(described["choices"][1]["rule"], "rm:*");
        assert_eq!(described["choices"][0]["rule"], Value::Null);
    }

    #[test]
    fn the_whole_command_is_shown_however_long_it_is_and_whatever_is_in_it() {
        let command = format!("echo {}\rls && rm\t-r ~", "é宽".repeat(60));
        let mut open = canned::question();
        if let Some(question) = &mut open.question {
            question.detail = format!("{command}\n\nlast");
        }
        let text = block(&open, canned::at(90), Paint::new(false));
        let shown = text.lines().filter_map(|line| {
            let row = line.strip_prefix("    ")?;
            row.strip_prefix("| ").or(row.strip_prefix("… "))
        });
        let shown: Vec<&str> = shown.collect();
        let expected = command.replace('\r', "␍").replace('\t', "    ");
        assert_eq!(shown.concat(), format!("{expected}last"));
        let widest = shown
            .iter()
            .map(|row| console::measure_text_width(row))
            .max();
        assert!(widest <= Some(DETAIL_WIDTH), "{widest:?}");
    }

    #[test]
    fn effects_are_named_as_the_journal_names_them() {
        use coordinator_core::question::ChoiceEffect as Core;
        for known in Core::ALL {
            let on_the_wire = crate::api::convert::effect(known);
            assert_eq!(effect(on_the_wire), known.name());
        }
    }
}
