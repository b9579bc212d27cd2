//! `coordinator approve` and `coordinator deny`.

use muster_proto::v1::{self, ChoiceEffect};
use serde_json::{Value, json};
use tonic::Code;

use super::arguments::{Approve, Deny};
use super::context::{Context, Session};
use super::error::{CliError, Exit, Kind, Result};
use crate::output::one_line;

/// What is said to one question or several.
struct Word {
    choice: String,
    effect: ChoiceEffect,
    text: String,
}

pub(crate) async fn approve(context: &Context, options: Approve) -> Result<Exit> {
    let effect = if options.session {
        ChoiceEffect::AllowSession
    } else if options.rule {
        ChoiceEffect::AllowRule
    } else {
        ChoiceEffect::Unspecified
    };
    let word = Word {
        choice: options.choice.unwrap_or_default(),
        effect,
        text: options.text,
    };
    say(context, &options.ids, &word, options.json).await
}

pub(crate) async fn deny(context: &Context, options: Deny) -> Result<Exit> {
    let effect = if options.stop {
        ChoiceEffect::DenyAndStop
    } else {
        ChoiceEffect::Deny
    };
    let word = Word {
        choice: String::new(),
        effect,
        text: options.text,
    };
    say(context, &options.ids, &word, options.json).await
}

async fn say(context: &Context, ids: &[String], word: &Word, as_json: bool) -> Result<Exit> {
    let session = context.session().await?;
    let said = answer(context, &session, ids, word, as_json).await;
    session.close().await;
    said
}

/// Answers one after the other, also when some of them take no answer; the worst refusal is the result.
async fn answer(
    context: &Context,
    session: &Session,
    ids: &[String],
    word: &Word,
    as_json: bool,
) -> Result<Exit> {
    let mut answered = vec![];
    let mut refusals = Refusals::default();
    for id in ids {
        let request = v1::AnswerQuestionRequest {
            id: id.clone(),
            choice: word.choice.clone(),
            effect: word.effect.into(),
            text: word.text.clone(),
        };
        match session.client.operator().answer_question(request).await {
            Ok(said) => {
                let said = said.into_inner();
                if !as_json {
                    context.output.say(&told(&said));
                }
                answered.push(described(&said));
            }
            Err(status) => {
                let error = refused(status, &context.program);
                if ids.len() > 1 {
                    let error = error.while_doing(format!("answer {id}"));
                    error.report(context.output);
                    refusals.note(id, &error);
                } else {
                    return Err(error);
                }
            }
        }
    }
    if as_json {
        let refused = &refusals.ids;
        let all = json!({ "answered": answered, "refused": refused });
        context.output.json(&all)?;
    }
    if session.is_own() && !as_json && !answered.is_empty() {
        let hint = "nothing runs here now; go on with: PROGRAM run --resume";
        context
            .output
            .say(&hint.replace("PROGRAM", &context.program));
    }
    refusals.end()
}

/// The questions among several that took no answer.
#[derive(Default)]
struct Refusals {
    ids: Vec<String>,
    worst: Option<Kind>,
}

impl Refusals {
    fn note(&mut self, id: &str, error: &CliError) {
        self.ids.push(one_line(id));
        let kinds = self.worst.into_iter().chain([error.kind()]);
        self.worst = kinds.max_by_key(|kind| kind.code());
    }

    /// Says which are open still, with the exit code of the worst refusal.
    fn end(self) -> Result<Exit> {
        let Some(kind) = self.worst else {
            return Ok(Exit::Success);
        };
        let message = format!("not answered: {}", self.ids.join(", "));
        Err(CliError::new(kind, anyhow::Error::msg(message)))
    }
}

fn refused(status: tonic::Status, program: &str) -> CliError {
    let hint = match status.code() {
        Code::NotFound => Some(format!("`{program} approvals` lists what is asked")),
        Code::InvalidArgument => Some(format!(
            "`{program} approvals` shows the choices; `--choice` names one of them"
        )),
        _ => None,
    };
    let error = CliError::from(status);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

fn told(said: &v1::AnswerQuestionResponse) -> String {
    let choice = said.choice.clone().unwrap_or_default();
    let label = if choice.label.is_empty() {
        choice.id
    } else {
        choice.label
    };
    if said.task.is_empty() {
        return format!("{}: {} (as before)", said.id, one_line(&label));
    }
    format!(
        "{} of {} {}: {}",
        said.id,
        one_line(&said.run),
        one_line(&said.task),
        one_line(&label)
    )
}

fn described(said: &v1::AnswerQuestionResponse) -> Value {
    json!({
        "id": said.id,
        "run": said.run,
        "task": said.task,
        "choice": said.choice.as_ref().map(|choice| &choice.id),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_confirmed_with_what_it_does() {
        let said = v1::AnswerQuestionResponse {
            id: "Q7".to_owned(),
            run: "add-auth-1".to_owned(),
            task: "api".to_owned(),
            choice: Some(v1::Choice {
                id: "allow".to_owned(),
                label: "Yes, once".to_owned(),
                ..v1::Choice::default()
            }),
        };
        assert_eq!(told(&said), "Q7 of add-auth-1 api: Yes, once");
        assert_eq!(described(&said)["choice"], "allow");
        let again = v1::AnswerQuestionResponse {
            run: String::new(),
            task: String::new(),
            choice: Some(v1::Choice {
                id: "allow".to_owned(),
                ..v1::Choice::default()
            }),
            ..said
        };
        assert_eq!(told(&again), "Q7: allow (as before)");
    }

    #[test]
    fn those_of_several_that_took_no_answer_are_named_with_the_code_of_the_worst() {
        assert_eq!(Refusals::default().end().unwrap(), Exit::Success);
        let mut refusals = Refusals::default();
        for (id, status) in [
            ("Q14", tonic::Status::not_found("no question Q14")),
            ("Q15", tonic::Status::unavailable("gone")),
            ("Q16", tonic::Status::not_found("no question Q16")),
        ] {
            refusals.note(id, &refused(status, "coordinator"));
        }
        let error = refusals.end().unwrap_err();
        assert_eq!(error.kind(), Kind::Connection);
        assert_eq!(error.message(), "not answered: Q14, Q15, Q16");
    }

    #[test]
    fn a_refusal_says_where_to_look() {
        let missing = refused(tonic::Status::not_found("no question Q9"), "coordinator");
        let shown = format!("{missing:?}");
        assert!(shown.contains("coordinator approvals"), "{shown}");
        let odd = refused(
            tonic::Status::invalid_argument("not offered"),
            "coordinator",
        );
        let shown = format!("{odd:?}");
        assert!(shown.contains("--choice"), "{shown}");
    }
}
