//! Wire types to core types and back. The wire is hostile: every bound is checked here.

use std::collections::BTreeSet;
use std::sync::Arc;

use coordinator_core::command::{Report, ReportAnswer, Verdict};
use coordinator_core::event::{Outcome, Usage, Work};
use coordinator_core::question::{Asking, Choice, ChoiceEffect};
use coordinator_core::worker::Offer;
use coordinator_core::{
    AllocationId, AttemptNo, CommitId, Failure, FailureClass, LeaseId, Span, TaskIx, Timestamp,
    limits,
};
use muster_proto::v1;
use tonic::Status;

/// Bytes of an agent's summary that are journaled.
const SUMMARY_BYTES: usize = 4_096;
/// Bytes of the id of an agent's choice.
const CHOICE_ID_BYTES: usize = 256;
/// Labels, resources and agents one worker may name, each.
const OFFER_ITEMS: usize = 256;
/// Bytes of one name in an offer.
const OFFER_NAME_BYTES: usize = 200;

/// Cuts a text to at most so many bytes, at a character's border.
#[must_use]
pub fn clip(text: &str, bytes: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes)).unwrap_or(text)
}

/// Cuts a text to its last bytes, at a character's border.
#[must_use]
pub fn clip_start(text: &str, bytes: usize) -> &str {
    let from = text.len().saturating_sub(bytes);
    text.get(text.ceil_char_boundary(from)..).unwrap_or(text)
}

/// Makes a time for the wire.
#[must_use]
pub fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: i64::try_from(at.ms() / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(at.ms() % 1000).unwrap_or(0) * 1_000_000,
    }
}

/// Makes a duration for the wire.
#[must_use]
pub fn duration(span: Span) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(span.ms() / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(span.ms() % 1000).unwrap_or(0) * 1_000_000,
    }
}

/// Reads a duration; negative ones are zero.
#[must_use]
pub fn span(duration: &prost_types::Duration) -> Span {
    let seconds = u64::try_from(duration.seconds).unwrap_or(0);
    let nanos = u64::try_from(duration.nanos).unwrap_or(0);
    Span::from_ms(
        seconds
            .saturating_mul(1000)
            .saturating_add(nanos / 1_000_000),
    )
}

/// Reads how long a worker can work: until it begins to hand its work over.
#[must_use]
pub fn time_for_work(left: Option<&prost_types::Duration>, hand_over: Span) -> Option<Span> {
    let left = span(left?).ms();
    Some(Span::from_ms(left.saturating_sub(hand_over.ms())))
}

/// Makes work for the wire.
#[must_use]
pub fn work(work: Work) -> v1::Work {
    use v1::work::Kind;
    v1::Work {
        kind: Some(match work {
            Work::Attempt { attempt, .. } => Kind::Attempt(v1::AttemptWork { attempt: attempt.0 }),
            Work::Verify { attempt, .. } => Kind::Verify(v1::VerifyWork { attempt: attempt.0 }),
            Work::FinalVerify => Kind::FinalVerify(v1::Empty {}),
        }),
    }
}

/// Reads work of a task.
#[must_use]
pub fn work_of(work: Option<&v1::Work>, task: TaskIx) -> Option<Work> {
    use v1::work::Kind;
    Some(match work?.kind.as_ref()? {
        Kind::Attempt(of) => Work::Attempt {
            task,
            attempt: AttemptNo(of.attempt),
        },
        Kind::Verify(of) => Work::Verify {
            task,
            attempt: AttemptNo(of.attempt),
        },
        Kind::FinalVerify(_) => Work::FinalVerify,
    })
}

/// Makes a failure for the wire.
#[must_use]
pub fn failure(failure: &Failure) -> v1::Failure {
    v1::Failure {
        class: failure.class.name().to_owned(),
        message: failure.message.to_string(),
        output: failure.output.to_string(),
        retry_after: failure.retry_after.map(duration),
    }
}

/// Reads a worker's failure. A class that this version does not know counts as the agent's.
#[must_use]
pub fn failure_of(failure: Option<v1::Failure>) -> Failure {
    let failure = failure.unwrap_or_default();
    let class = FailureClass::from_name(&failure.class).unwrap_or(FailureClass::AgentFailed);
    Failure {
        class,
        message: clip(&failure.message, limits::FAILURE_MESSAGE_BYTES).into(),
        output: clip_start(&failure.output, limits::FAILURE_OUTPUT_BYTES).into(),
        retry_after: failure.retry_after.as_ref().map(span),
    }
}

/// Makes usage for the wire.
#[must_use]
pub fn usage(usage: Usage) -> v1::Usage {
    v1::Usage {
        input_tokens: usage.input_tokens,
        output_tokens: usage.output_tokens,
        cost_micros: usage.cost_micros,
        run_time: Some(duration(Span::from_ms(usage.run_ms))),
        ..v1::Usage::default()
    }
}

fn usage_of(usage: Option<v1::Usage>) -> Usage {
    let usage = usage.unwrap_or_default();
    Usage {
        input_tokens: usage.input_tokens,
        output_tokens: usage.output_tokens,
        cost_micros: usage.cost_micros,
        run_ms: usage.run_time.as_ref().map_or(0, |time| span(time).ms()),
    }
}

/// Reads an object id: 40 or 64 lower-case hexadecimal digits.
///
/// # Errors
/// `INVALID_ARGUMENT` that names the field.
pub fn commit_of(hex: &str, field: &str) -> Result<CommitId, Status> {
    let well_formed = matches!(hex.len(), 40 | 64)
        && hex
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if well_formed {
        Ok(CommitId::new(hex))
    } else {
        Err(Status::invalid_argument(format!(
            "{field}: not the id of a commit"
        )))
    }
}

/// Reads a worker's report.
///
/// # Errors
/// `INVALID_ARGUMENT` when it says nothing, or something malformed.
pub fn report_of(report: v1::Report) -> Result<(LeaseId, Report), Status> {
    use v1::outcome::Kind as Made;
    use v1::report::Kind;
    let lease = LeaseId(report.lease);
    let kind = report
        .kind
        .ok_or_else(|| Status::invalid_argument("report without a kind"))?;
    let report = match kind {
        Kind::Started(_) => Report::Started,
        Kind::Succeeded(succeeded) => Report::Succeeded {
            outcome: match succeeded.outcome.and_then(|outcome| outcome.kind) {
                Some(Made::Commit(hex)) => {
                    Outcome::Commit(commit_of(&hex, "report.outcome.commit")?)
                }
                Some(Made::NoChange(_)) => Outcome::NoChange,
                Some(Made::NoRepository(_)) => Outcome::NoRepository,
                None => return Err(Status::invalid_argument("success without an outcome")),
            },
            usage: usage_of(succeeded.usage),
            summary: clip(&succeeded.summary, SUMMARY_BYTES).into(),
        },
        Kind::Failed(failed) => Report::Failed {
            failure: failure_of(failed.failure),
            usage: usage_of(failed.usage),
        },
        Kind::VerifyPassed(_) => Report::VerifyPassed,
        Kind::GivenBack(failure) => Report::GivenBack {
            failure: failure_of(Some(failure)),
        },
        Kind::Stopped(_) => Report::Stopped,
        Kind::Asked(question) => Report::Asked {
            number: question.number,
            asking: Arc::new(asking_of(question)?),
        },
        Kind::QuestionClosed(closed) => Report::QuestionClosed {
            number: closed.question,
            choice: clip(&closed.choice, limits::QUESTION_LINE_BYTES).into(),
            by: clip(&closed.by, limits::QUESTION_LINE_BYTES).into(),
            earlier: match closed.earlier.as_str() {
                "" => None,
                earlier => Some(super::questions::parse(earlier)?),
            },
        },
        Kind::SessionOpened(opened) => Report::ConversationOpened {
            id: opened.id.into(),
            software: clip(&opened.software, limits::QUESTION_LINE_BYTES).into(),
        },
    };
    Ok((lease, report))
}

/// Reads what an agent asks. A choice that cannot be named, or is named twice, is left out.
///
/// # Errors
/// `INVALID_ARGUMENT` when nothing is left to choose.
fn asking_of(question: v1::Question) -> Result<Asking, Status> {
    let mut known = BTreeSet::new();
    let choices: Box<[Choice]> = question
        .choices
        .into_iter()
        .filter(|choice| !choice.id.is_empty() && choice.id.len() <= CHOICE_ID_BYTES)
        .filter(|choice| known.insert(choice.id.clone()))
        .filter_map(|choice| {
            Some(Choice {
                effect: effect_of(choice.effect())?,
                id: choice.id.into(),
                label: one_line(&choice.label),
                rule: one_line(&choice.rule),
            })
        })
        .take(limits::CHOICES_PER_QUESTION)
        .collect();
    if choices.is_empty() {
        return Err(Status::invalid_argument("a question without choices"));
    }
    Ok(Asking {
        kind: one_line(&question.kind),
        title: one_line(&question.title),
        detail: clip(&question.detail, limits::QUESTION_DETAIL_BYTES).into(),
        reason: one_line(&question.reason),
        folder: one_line(&question.folder),
        choices,
    })
}

/// Makes one bounded line of a text.
fn one_line(text: &str) -> Box<str> {
    let line: String = clip(text, limits::QUESTION_LINE_BYTES)
        .chars()
        .map(|character| {
            if character.is_control() {
                ' '
            } else {
                character
            }
        })
        .collect();
    line.into()
}

fn effect_of(effect: v1::ChoiceEffect) -> Option<ChoiceEffect> {
    Some(match effect {
        v1::ChoiceEffect::Unspecified => return None,
        v1::ChoiceEffect::AllowOnce => ChoiceEffect::AllowOnce,
        v1::ChoiceEffect::AllowSession => ChoiceEffect::AllowSession,
        v1::ChoiceEffect::AllowRule => ChoiceEffect::AllowRule,
        v1::ChoiceEffect::Deny => ChoiceEffect::Deny,
        v1::ChoiceEffect::DenyAndStop => ChoiceEffect::DenyAndStop,
        v1::ChoiceEffect::Text => ChoiceEffect::Text,
    })
}

/// Makes the effect of a choice for the wire.
#[must_use]
pub fn effect(effect: ChoiceEffect) -> v1::ChoiceEffect {
    match effect {
        ChoiceEffect::AllowOnce => v1::ChoiceEffect::AllowOnce,
        ChoiceEffect::AllowSession => v1::ChoiceEffect::AllowSession,
        ChoiceEffect::AllowRule => v1::ChoiceEffect::AllowRule,
        ChoiceEffect::Deny => v1::ChoiceEffect::Deny,
        ChoiceEffect::DenyAndStop => v1::ChoiceEffect::DenyAndStop,
        ChoiceEffect::Text => v1::ChoiceEffect::Text,
    }
}

/// Makes what an agent asks for the wire.
#[must_use]
pub fn question(number: u32, asking: &Asking) -> v1::Question {
    v1::Question {
        number,
        kind: asking.kind.to_string(),
        title: asking.title.to_string(),
        detail: asking.detail.to_string(),
        reason: asking.reason.to_string(),
        folder: asking.folder.to_string(),
        choices: asking
            .choices
            .iter()
            .map(|choice| v1::Choice {
                id: choice.id.to_string(),
                label: choice.label.to_string(),
                effect: effect(choice.effect).into(),
                rule: choice.rule.to_string(),
            })
            .collect(),
        // Only policies look at them, on the worker.
        paths: Vec::new(),
    }
}

/// Makes a verdict on a lease for the wire.
#[must_use]
pub fn verdict(lease: LeaseId, verdict: Verdict) -> v1::LeaseVerdict {
    v1::LeaseVerdict {
        lease: lease.0,
        verdict: match verdict {
            Verdict::Keep => v1::Verdict::Keep,
            Verdict::Stop => v1::Verdict::Stop,
        }
        .into(),
    }
}

/// Makes an answer to a report for the wire.
#[must_use]
pub fn report_verdict(answer: ReportAnswer) -> v1::ReportVerdict {
    match answer {
        ReportAnswer::Recorded => v1::ReportVerdict::Recorded,
        ReportAnswer::AlreadyRecorded => v1::ReportVerdict::AlreadyRecorded,
        ReportAnswer::Stale => v1::ReportVerdict::Stale,
    }
}

/// Compares the pool that a worker names, if it does, with its token's.
///
/// # Errors
/// `PERMISSION_DENIED` that names both.
pub fn same_pool(named: &str, of_token: &str) -> Result<(), Status> {
    if named.is_empty() || named == of_token {
        return Ok(());
    }
    Err(Status::permission_denied(format!(
        "the token is for pool {of_token:?}, the worker names pool {:?}",
        clip(named, OFFER_NAME_BYTES)
    )))
}

/// Reads what a worker offers; pool and allocation are its token's.
///
/// # Errors
/// `INVALID_ARGUMENT` that names the field which exceeds its bound.
pub fn offer_of(
    hello: &v1::Hello,
    pool: &str,
    allocation: Option<AllocationId>,
) -> Result<Offer, Status> {
    let name = |text: &str, field: &str| -> Result<Arc<str>, Status> {
        if text.is_empty() || text.len() > OFFER_NAME_BYTES || text.chars().any(char::is_control) {
            return Err(Status::invalid_argument(format!(
                "{field}: {text:?} is not usable"
            )));
        }
        Ok(Arc::from(text))
    };
    let bound = |count: usize, field: &str| {
        if count > OFFER_ITEMS {
            return Err(Status::invalid_argument(format!(
                "{field}: at most {OFFER_ITEMS}"
            )));
        }
        Ok(())
    };
    bound(hello.labels.len(), "hello.labels")?;
    bound(hello.resources.len(), "hello.resources")?;
    bound(hello.agents.len(), "hello.agents")?;
    if hello.slots == 0 || hello.slots > limits::SLOTS_PER_WORKER {
        return Err(Status::invalid_argument(format!(
            "hello.slots: 1 to {} are possible",
            limits::SLOTS_PER_WORKER
        )));
    }
    same_pool(&hello.pool, pool)?;
    Ok(Offer {
        pool: Arc::from(pool),
        slots: hello.slots,
        labels: hello
            .labels
            .iter()
            .map(|label| name(label, "hello.labels"))
            .collect::<Result<BTreeSet<_>, _>>()?,
        resources: hello
            .resources
            .iter()
            .map(|(key, amount)| Ok((name(key, "hello.resources")?, *amount)))
            .collect::<Result<_, Status>>()?,
        agents: hello
            .agents
            .iter()
            .map(|agent| name(&agent.name, "hello.agents"))
            .collect::<Result<BTreeSet<_>, _>>()?,
        host: name(&hello.host, "hello.host")?,
        allocation,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(clip("aé", 2), "a");
        assert_eq!(clip_start("éa", 2), "a");
        assert_eq!(clip("ab", 9), "ab");
    }

    #[test]
    fn an_unknown_class_of_failure_counts_as_the_agents() {
        let failure = failure_of(Some(v1::Failure {
            class: "new".into(),
            ..v1::Failure::default()
        }));
        assert_eq!(failure.class, FailureClass::AgentFailed);
    }

    #[test]
    fn a_question_goes_both_ways_and_what_cannot_be_chosen_is_left_out() {
        let choice = |id: &str, effect: v1::ChoiceEffect| v1::Choice {
            id: id.to_owned(),
            label: "L".into(),
            effect: effect.into(),
            rule: "r".into(),
        };
        let all = [
            v1::ChoiceEffect::AllowOnce,
            v1::ChoiceEffect::AllowSession,
            v1::ChoiceEffect::AllowRule,
            v1::ChoiceEffect::Deny,
            v1::ChoiceEffect::DenyAndStop,
            v1::ChoiceEffect::Text,
        ];
        let sent = v1::Question {
            number: 4,
            kind: "command".into(),
            title: "run it?".into(),
            detail: "a\nb".into(),
            reason: "why".into(),
            folder: "f".into(),
            choices: all
                .map(|effect| choice(effect.as_str_name(), effect))
                .into(),
            paths: Vec::new(),
        };
        let read = asking_of(sent.clone()).unwrap();
        assert_eq!(question(4, &read), sent);
        let odd = v1::Question {
            title: "two\nlines\u{1b}[31m".into(),
            choices: vec![
                choice("a", v1::ChoiceEffect::Unspecified),
                choice("", v1::ChoiceEffect::Deny),
                choice(&"x".repeat(257), v1::ChoiceEffect::Deny),
                choice("b", v1::ChoiceEffect::Deny),
                choice("b", v1::ChoiceEffect::AllowOnce),
            ],
            ..v1::Question::default()
        };
        let read = asking_of(odd).unwrap();
        assert_eq!(&*read.title, "two lines [31m");
        assert_eq!(read.choices.len(), 1);
        assert_eq!(read.choices[0].effect, ChoiceEffect::Deny);
        assert!(asking_of(v1::Question::default()).is_err());
    }

    #[test]
    fn what_a_provider_asked_for_goes_both_ways() {
        let sent = v1::Failure {
            class: "rate_limit".into(),
            retry_after: Some(duration(Span::from_ms(1_500))),
            ..v1::Failure::default()
        };
        let read = failure_of(Some(sent.clone()));
        assert_eq!(read.retry_after, Some(Span::from_ms(1_500)));
        assert_eq!(failure(&read), sent);
    }

    proptest::proptest! {
        #[test]
        fn whatever_a_worker_sends_is_read_or_refused(bytes: Vec<u8>, head in 0_u8..64) {
            use prost::Message as _;
            let tagged: Vec<u8> = [head].into_iter().chain(bytes.iter().copied()).collect();
            for bytes in [&bytes, &tagged] {
                if let Ok(report) = v1::Report::decode(bytes.as_slice()) {
                    drop(report_of(report));
                }
                if let Ok(hello) = v1::Hello::decode(bytes.as_slice()) {
                    drop(offer_of(&hello, "p", None));
                }
                if let Ok(usage) = v1::Usage::decode(bytes.as_slice()) {
                    usage_of(Some(usage));
                }
                if let Ok(work) = v1::Work::decode(bytes.as_slice()) {
                    let _ = work_of(Some(&work), TaskIx(u32::MAX));
                }
            }
        }

        #[test]
        fn any_span_and_time_have_a_form_on_the_wire(ms: u64, seconds: i64, nanos: i32) {
            let _ = (timestamp(Timestamp::from_ms(ms)), duration(Span::from_ms(ms)));
            let _ = span(&prost_types::Duration { seconds, nanos });
        }
    }

    #[test]
    fn only_whole_object_ids_are_commits() {
        assert!(commit_of(&"a".repeat(40), "f").is_ok());
        assert!(commit_of(&"a".repeat(64), "f").is_ok());
        for wrong in ["", "HEAD", &"A".repeat(40), &"a".repeat(41)] {
            assert!(commit_of(wrong, "f").is_err());
        }
    }
}
