//! Reports as the wire has them, read as the coordinator's edge reads them.

use coordinator_core::command::Report;
use coordinator_core::event::{Outcome, Usage};
use coordinator_core::question::{Asking, Choice, ChoiceEffect};
use coordinator_core::{CommitId, Failure, FailureClass, Span};
use muster_proto::v1;

fn failure_of(failure: Option<v1::Failure>) -> Failure {
    let failure = failure.unwrap_or_default();
    let class = FailureClass::from_name(&failure.class).unwrap_or(FailureClass::AgentFailed);
    Failure {
        retry_after: failure.retry_after.map(|wish| {
            let seconds = u64::try_from(wish.seconds).unwrap_or(0);
            Span::from_ms(seconds.saturating_mul(1_000))
        }),
        ..Failure::new(class, failure.message)
    }
}

/// Reads a report; `None` when it is malformed.
pub(crate) fn report_of(report: v1::Report) -> Option<Report> {
    use v1::outcome::Kind as Made;
    use v1::report::Kind;
    Some(match report.kind? {
        Kind::Started(_) => Report::Started,
        Kind::Succeeded(succeeded) => Report::Succeeded {
            outcome: match succeeded.outcome?.kind? {
                Made::Commit(commit) => Outcome::Commit(CommitId::new(&commit)),
                Made::NoChange(_) => Outcome::NoChange,
                Made::NoRepository(_) => Outcome::NoRepository,
            },
            usage: Usage::default(),
            summary: succeeded.summary.into(),
        },
        Kind::Failed(failed) => Report::Failed {
            failure: failure_of(failed.failure),
            usage: Usage::default(),
        },
        Kind::VerifyPassed(_) => Report::VerifyPassed,
        Kind::GivenBack(failure) => Report::GivenBack {
            failure: failure_of(Some(failure)),
        },
        Kind::Stopped(_) => Report::Stopped,
        // Simulated agents ask past their worker's outbox.
        Kind::Asked(_) | Kind::QuestionClosed(_) | Kind::SessionOpened(_) => return None,
    })
}

/// Makes a question that can be answered with `yes`.
pub(crate) fn asking(title: &str) -> Asking {
    let choice = |id: &str, effect| Choice {
        id: id.into(),
        label: id.into(),
        effect,
        rule: "".into(),
    };
    Asking {
        kind: "command".into(),
        title: title.into(),
        detail: "".into(),
        reason: "".into(),
        folder: "".into(),
        choices: [
            choice("yes", ChoiceEffect::AllowOnce),
            choice("no", ChoiceEffect::Deny),
        ]
        .into(),
    }
}

/// Makes a failure of a class.
pub(crate) fn failure(class: FailureClass, message: &str) -> v1::Failure {
    v1::Failure {
        class: class.name().to_owned(),
        message: message.to_owned(),
        output: String::new(),
        retry_after: None,
    }
}

/// Makes the outcome of an attempt.
pub(crate) fn outcome(kind: v1::outcome::Kind) -> v1::Outcome {
    v1::Outcome { kind: Some(kind) }
}
