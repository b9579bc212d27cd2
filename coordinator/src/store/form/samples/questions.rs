//! Questions of agents, as they are written.

use std::sync::Arc;

use coordinator_core::question::{Answered, Asking, Choice, ChoiceEffect, PastQuestion, Question};
use coordinator_core::state::{Conversation, Task, TaskState};
use coordinator_core::{AttemptNo, EventKind, LeaseId, QuestionId, Timestamp};

use super::{RUN, at, run_image};

/// A question as the first form had it: nothing but its title.
pub(super) fn bare(title: &str) -> Asking {
    Asking {
        kind: "".into(),
        title: title.into(),
        detail: "".into(),
        reason: "".into(),
        folder: "".into(),
        choices: Box::default(),
    }
}

pub(super) fn question(answer: Option<&str>) -> Question {
    Question {
        id: QuestionId(5),
        number: 0,
        asking: Arc::new(bare("May I?")),
        asked_at: at(70),
        answer: answer.map(|choice| Answered {
            choice: choice.into(),
            text: "".into(),
            by: "".into(),
            at: Timestamp::default(),
        }),
    }
}

/// A question with everything that one can have.
pub(in crate::store) fn whole_question() -> Question {
    Question {
        id: QuestionId(6),
        number: 3,
        asking: Arc::new(Asking {
            kind: "command".into(),
            title: "May I run it?".into(),
            detail: "rm -r build\nls".into(),
            reason: "to begin anew".into(),
            folder: "src".into(),
            choices: ChoiceEffect::ALL
                .map(|effect| Choice {
                    id: effect.name().into(),
                    label: "Ja".into(),
                    effect,
                    rule: if effect == ChoiceEffect::AllowRule {
                        "rm:*".into()
                    } else {
                        "".into()
                    },
                })
                .into(),
        }),
        asked_at: at(71),
        answer: Some(Answered {
            choice: "deny".into(),
            text: "not now".into(),
            by: "ann".into(),
            at: at(72),
        }),
    }
}

/// Kinds of events that are younger than the first form.
pub(in crate::store) const LATER_KINDS: [&str; 3] =
    ["QuestionClosed", "ConversationOpened", "Pool"];

/// What the first form did not have of questions.
pub(in crate::store) fn later_kinds() -> Vec<EventKind> {
    let (run, lease, whole) = (RUN, LeaseId(99), whole_question());
    vec![
        EventKind::QuestionAsked {
            run,
            lease,
            question: whole.id,
            number: whole.number,
            asking: whole.asking,
        },
        EventKind::QuestionAnswered {
            run,
            question: whole.id,
            choice: "text".into(),
            text: "the second one".into(),
            by: "ann".into(),
        },
        EventKind::QuestionClosed {
            run,
            lease,
            question: whole.id,
            number: 3,
            choice: "text".into(),
            by: "policy".into(),
        },
        EventKind::ConversationOpened {
            run,
            lease,
            conversation: "0199-a".into(),
            software: "codex 0.30".into(),
        },
    ]
}

/// A task that asks, with an attempt that has asked and said all that one can.
pub(in crate::store) fn asking_task() -> Task {
    let mut task = run_image().run.tasks.swap_remove(3);
    let open = Question {
        id: QuestionId(7),
        answer: None,
        ..whole_question()
    };
    task.state = TaskState::Leased {
        attempt: AttemptNo(8),
        lease: LeaseId(99),
        awaiting: vec![whole_question(), open],
    };
    let last = task.history.as_mut().and_then(|h| h.attempts.last_mut());
    if let Some(attempt) = last {
        attempt.waiting_since = Some(at(71));
        attempt.continues = Some(AttemptNo(6));
        attempt.conversation = Some(Conversation {
            id: "0199-a".into(),
            software: "codex 0.30".into(),
            host: "node7".into(),
            nth: 2,
        });
        let past = |undelivered| PastQuestion {
            id: QuestionId(4),
            number: 2,
            title: "May I run it?".into(),
            choice: "allow_once".into(),
            text: "once".into(),
            by: "ann".into(),
            at: at(60),
            undelivered,
        };
        attempt.asked = vec![past(None), past(Some(whole_question().asking))];
    }
    task
}
