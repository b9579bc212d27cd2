//! Questions of agents, as people see and answer them.

use coordinator_core::question::{Asking, Choice, ChoiceEffect, Question};
use coordinator_core::{Command, QuestionId, RunId, State, TaskKey};
use muster_proto::v1;
use tonic::Status;

use super::runs::Runs;
use super::{convert, status};

/// Questions shown at once.
const QUESTIONS_SHOWN: usize = 100;

/// Lists what waits for a person, of a run or of all.
///
/// # Errors
/// The run is not live, or the engine has ended.
pub(super) async fn list(
    runs: &Runs,
    request: v1::ListQuestionsRequest,
) -> Result<v1::ListQuestionsResponse, Status> {
    let run = match request.run.as_str() {
        "" => None,
        // One that is archived asks nothing any more.
        name => Some(runs.read(name, |run, _| run.id).await?),
    };
    runs.engine()
        .query(move |state, _| listed(state, run))
        .await
        .map_err(status::of)
}

fn listed(state: &State, run: Option<RunId>) -> v1::ListQuestionsResponse {
    let mut questions = vec![];
    let mut more = 0_u32;
    for (key, question) in state.questions() {
        if run.is_some_and(|run| run != key.run) {
            continue;
        }
        if questions.len() < QUESTIONS_SHOWN {
            questions.extend(open(state, key, question));
        } else {
            more = more.saturating_add(1);
        }
    }
    v1::ListQuestionsResponse { questions, more }
}

fn open(state: &State, key: TaskKey, question: &Question) -> Option<v1::OpenQuestion> {
    let run = state.run(key.run)?;
    let task = run.task(key.task)?;
    let attempt = task.attempts().last()?;
    let agent = run
        .profile(key.task)
        .map(|profile| &profile.requirement.agent);
    Some(v1::OpenQuestion {
        id: question.id.to_string(),
        run: run.name.to_string(),
        task: task.name.to_string(),
        attempt: attempt.number.0,
        lease: attempt.lease.0,
        worker: attempt.worker.to_string(),
        agent: agent.map(ToString::to_string).unwrap_or_default(),
        asked_at: Some(convert::timestamp(question.asked_at)),
        question: Some(convert::question(question.number, &question.asking)),
        parked: attempt.end.is_some(),
    })
}

/// What the answer to a question is made of.
struct Asked {
    run: String,
    task: String,
    /// Absent if the question is closed; then the core says what became of it.
    asking: Option<std::sync::Arc<Asking>>,
}

/// Answers a question.
///
/// # Errors
/// There is no such question, it was answered or taken back before, or it does not offer that.
pub(super) async fn answer(
    runs: &Runs,
    request: v1::AnswerQuestionRequest,
    by: String,
) -> Result<v1::AnswerQuestionResponse, Status> {
    let id = parse(&request.id)?;
    let asked = runs
        .engine()
        .query(move |state, _| find(state, id))
        .await
        .map_err(status::of)?;
    let chosen = match &asked.asking {
        Some(asking) => choose(id, asking, &request)?.clone(),
        None => Choice {
            id: request.choice.as_str().into(),
            label: "".into(),
            effect: ChoiceEffect::Text,
            rule: "".into(),
        },
    };
    let command = Command::Answer {
        question: id,
        choice: chosen.id.clone(),
        text: request.text.into(),
        by: by.into(),
    };
    runs.engine().command(command).await.map_err(status::of)?;
    Ok(v1::AnswerQuestionResponse {
        id: id.to_string(),
        run: asked.run,
        task: asked.task,
        choice: Some(v1::Choice {
            id: chosen.id.into(),
            label: chosen.label.into(),
            effect: convert::effect(chosen.effect).into(),
            rule: chosen.rule.into(),
        }),
    })
}

/// Reads the id of a question: `Q7`, `q7` or `7`.
pub(super) fn parse(id: &str) -> Result<QuestionId, Status> {
    let digits = id.strip_prefix(['Q', 'q']).unwrap_or(id);
    let number = digits.parse().ok().filter(|_| !digits.starts_with('+'));
    number.map(QuestionId).ok_or_else(|| {
        let id = convert::clip(id, 64);
        Status::invalid_argument(format!("{id:?} is not the id of a question, such as Q7"))
    })
}

fn find(state: &State, id: QuestionId) -> Asked {
    let nothing = || Asked {
        run: String::new(),
        task: String::new(),
        asking: None,
    };
    state.question(id).map_or_else(nothing, |(key, question)| {
        let run = state.run(key.run);
        let task = run.and_then(|run| run.task(key.task));
        Asked {
            run: run.map(|run| run.name.to_string()).unwrap_or_default(),
            task: task.map(|task| task.name.to_string()).unwrap_or_default(),
            asking: Some(question.asking.clone()),
        }
    })
}

/// Finds the choice that is meant.
fn choose<'a>(
    id: QuestionId,
    asking: &'a Asking,
    request: &v1::AnswerQuestionRequest,
) -> Result<&'a Choice, Status> {
    let offers = || {
        let choices: Vec<&str> = asking.choices.iter().map(|choice| &*choice.id).collect();
        choices.join(", ")
    };
    let wanted = request.choice.as_str();
    if !wanted.is_empty() {
        // People type what they read, which is the label.
        let labelled = || {
            let mut choices = asking.choices.iter();
            choices.find(|choice| choice.label.eq_ignore_ascii_case(wanted))
        };
        return asking.choice(wanted).or_else(labelled).ok_or_else(|| {
            Status::invalid_argument(format!(
                "{id} does not offer {:?}: its choices are {}",
                convert::clip(wanted, 200),
                offers()
            ))
        });
    }
    let (found, what) = match request.effect() {
        v1::ChoiceEffect::Unspecified => {
            let words = || {
                let text = asking.choice_with(ChoiceEffect::Text);
                text.filter(|_| !request.text.is_empty())
            };
            let found = asking.choice_with(ChoiceEffect::AllowOnce).or_else(words);
            (found, "a plain yes")
        }
        v1::ChoiceEffect::AllowOnce => (
            asking.choice_with(ChoiceEffect::AllowOnce),
            "to allow it once",
        ),
        v1::ChoiceEffect::AllowSession => (
            asking.choice_with(ChoiceEffect::AllowSession),
            "to allow it for the rest of the conversation",
        ),
        v1::ChoiceEffect::AllowRule => (
            asking.choice_with(ChoiceEffect::AllowRule),
            "to allow it by a rule",
        ),
        v1::ChoiceEffect::Deny => (asking.choice_with(ChoiceEffect::Deny), "a plain no"),
        v1::ChoiceEffect::DenyAndStop => (
            asking.choice_with(ChoiceEffect::DenyAndStop),
            "to deny it and end the turn",
        ),
        v1::ChoiceEffect::Text => (asking.choice_with(ChoiceEffect::Text), "an answer in words"),
    };
    found.ok_or_else(|| {
        Status::invalid_argument(format!(
            "{id} does not offer {what}: its choices are {}",
            offers()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(choices: &[(&str, ChoiceEffect)]) -> Asking {
        Asking {
            kind: "input".into(),
            title: "which?".into(),
            detail: "".into(),
            reason: "".into(),
            folder: "".into(),
            choices: choices
                .iter()
                .map(|(id, effect)| Choice {
                    id: (*id).into(),
                    label: format!("The {id}").into(),
                    effect: *effect,
                    rule: "".into(),
                })
                .collect(),
        }
    }

    fn chosen(
        asking: &Asking,
        choice: &str,
        effect: v1::ChoiceEffect,
        text: &str,
    ) -> Result<String, String> {
        let request = v1::AnswerQuestionRequest {
            id: "Q1".into(),
            choice: choice.into(),
            effect: effect.into(),
            text: text.into(),
        };
        choose(QuestionId(1), asking, &request)
            .map(|choice| choice.id.to_string())
            .map_err(|status| status.message().to_owned())
    }

    #[test]
    fn an_answer_is_found_by_id_label_or_effect() {
        use v1::ChoiceEffect as E;
        let all = [
            ("a", ChoiceEffect::AllowOnce),
            ("s", ChoiceEffect::AllowSession),
            ("r", ChoiceEffect::AllowRule),
            ("d", ChoiceEffect::Deny),
            ("x", ChoiceEffect::DenyAndStop),
            ("t", ChoiceEffect::Text),
        ];
        let all = asking(&all);
        for (choice, effect, expected) in [
            ("s", E::Unspecified, "s"),
            ("the D", E::Unspecified, "d"),
            ("", E::Unspecified, "a"),
            ("", E::AllowOnce, "a"),
            ("", E::AllowSession, "s"),
            ("", E::AllowRule, "r"),
            ("", E::Deny, "d"),
            ("", E::DenyAndStop, "x"),
            ("", E::Text, "t"),
        ] {
            assert_eq!(chosen(&all, choice, effect, "").unwrap(), expected);
        }
    }

    #[test]
    fn what_is_not_offered_is_refused_with_what_is() {
        use v1::ChoiceEffect as E;
        let words = asking(&[("say", ChoiceEffect::Text)]);
        assert_eq!(chosen(&words, "", E::Unspecified, "this").unwrap(), "say");
        for (choice, effect, what) in [
            ("", E::Unspecified, "a plain yes"),
            ("", E::Deny, "a plain no"),
            ("", E::AllowOnce, "to allow it once"),
            ("", E::AllowRule, "to allow it by a rule"),
            ("", E::DenyAndStop, "to deny it and end the turn"),
            ("no", E::Unspecified, "\"no\""),
        ] {
            let refused = chosen(&words, choice, effect, "").unwrap_err();
            assert_eq!(
                refused,
                format!("Q1 does not offer {what}: its choices are say")
            );
        }
        let yes = asking(&[("y", ChoiceEffect::AllowOnce)]);
        for (effect, what) in [
            (
                E::AllowSession,
                "to allow it for the rest of the conversation",
            ),
            (E::Text, "an answer in words"),
        ] {
            let refused = chosen(&yes, "", effect, "").unwrap_err();
            assert!(refused.contains(what), "{refused}");
        }
    }

    #[test]
    fn ids_are_read_as_people_write_them() {
        for id in ["Q7", "q7", "7"] {
            assert_eq!(parse(id).unwrap(), QuestionId(7));
        }
        for wrong in ["", "Q", "L7", "Q-7", "Q+7", "7Q", "99999999999999999999"] {
            let refused = parse(wrong).unwrap_err();
            let expected = format!("{wrong:?} is not the id of a question, such as Q7");
            assert_eq!(refused.message(), expected);
        }
    }
}
