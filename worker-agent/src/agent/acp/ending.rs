//! How a turn ended, and what errors mean.

use muster_proto::v1::TurnEnd;
use serde_json::Value;

use crate::agent::conversation::{AgentError, ErrorClass, Turn};
use crate::agent::text::{self, LINE_BYTES_MAX};
use crate::supervisor::End;

/// The agent wants somebody to log in first.
const AUTHENTICATION_REQUIRED: i64 = -32_000;
const INVALID_REQUESTS: [i64; 3] = [-32_600, -32_601, -32_602];

/// Reads why the agent stopped; `message` is what it said last.
pub(super) fn turn(stop_reason: Option<&Value>, message: String) -> Turn {
    let failed = |class, message: &str| {
        Some(AgentError {
            class,
            message: message.to_owned(),
            http_status: None,
            retry_after: None,
        })
    };
    let (end, error) = match stop_reason.and_then(Value::as_str).unwrap_or_default() {
        // The protocol wants one: nobody knows what became of the turn.
        "" => (
            TurnEnd::Failed,
            failed(
                ErrorClass::AgentError,
                "the agent's answer to the prompt has no `stopReason`, so it does not keep to the protocol",
            ),
        ),
        "cancelled" => (TurnEnd::Interrupted, None),
        "refusal" => (
            TurnEnd::Failed,
            failed(ErrorClass::Refusal, "the agent refuses to go on"),
        ),
        "max_tokens" => (
            TurnEnd::Failed,
            failed(
                ErrorClass::AgentError,
                "the answer reached the model's limit of tokens",
            ),
        ),
        "max_turn_requests" => (
            TurnEnd::Failed,
            failed(
                ErrorClass::AgentError,
                "the agent reached its own limit of calls of the model",
            ),
        ),
        // What later versions add is no failure.
        _ => (TurnEnd::Completed, None),
    };
    Turn {
        end,
        message,
        structured: None,
        error,
    }
}

/// Makes the end of a turn of an error.
pub(super) fn failed(error: AgentError) -> Turn {
    Turn {
        end: TurnEnd::Failed,
        error: Some(error),
        ..Turn::default()
    }
}

/// Reads an error of JSON-RPC; `doing` says what was asked of the agent.
pub(super) fn error(error: &Value, doing: &str) -> AgentError {
    let code = error["code"].as_i64().unwrap_or_default();
    let data = &error["data"];
    let detail = ["details", "message"].map(|key| text::of(data, key));
    let detail = detail.into_iter().find(|detail| !detail.is_empty());
    let mut message = text::of(error, "message").to_owned();
    if let Some(detail) = detail.or(data.as_str())
        && !message.contains(detail)
    {
        message = format!("{message}: {detail}");
    }
    let status = ["status", "statusCode", "httpStatus"]
        .into_iter()
        .find_map(|key| data[key].as_u64())
        .and_then(|status| u16::try_from(status).ok())
        .or_else(|| status_in(&message));
    let class = match code {
        AUTHENTICATION_REQUIRED => ErrorClass::Authentication,
        code if INVALID_REQUESTS.contains(&code) => ErrorClass::InvalidRequest,
        _ => by_kind(text::of(data, "errorKind"))
            .or_else(|| by_words(&message))
            .or_else(|| status.map(ErrorClass::of_status))
            .unwrap_or(ErrorClass::AgentError),
    };
    AgentError {
        class,
        message: text::clip(&format!("{doing}: {message}"), LINE_BYTES_MAX),
        http_status: status,
        retry_after: None,
    }
}

/// Judges by the name that adapters give an error.
fn by_kind(kind: &str) -> Option<ErrorClass> {
    Some(match kind {
        "authentication_failed" | "authentication" => ErrorClass::Authentication,
        "billing_error" => ErrorClass::UsageLimit,
        "rate_limit" => ErrorClass::RateLimit,
        "overloaded" => ErrorClass::ProviderCapacity,
        "invalid_request" | "model_not_found" => ErrorClass::InvalidRequest,
        _ => return None,
    })
}

/// Judges by words: what most agents do with an error of their provider is to pass its text on.
fn by_words(message: &str) -> Option<ErrorClass> {
    let message = message.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    let classes: [(&[&str], ErrorClass); 6] = [
        (
            &[
                "prompt is too long",
                "context window",
                "context length",
                "context_length",
            ],
            ErrorClass::ContextWindow,
        ),
        (
            &["quota", "credit balance", "billing", "usage limit"],
            ErrorClass::UsageLimit,
        ),
        (
            &["rate limit", "rate_limit", "too many requests"],
            ErrorClass::RateLimit,
        ),
        (&["overloaded", "at capacity"], ErrorClass::ProviderCapacity),
        (
            &[
                "not logged in",
                "api key",
                "api_key",
                "unauthorized",
                "authenticat",
            ],
            ErrorClass::Authentication,
        ),
        (
            &[
                "econnrefused",
                "econnreset",
                "fetch failed",
                "network error",
                "socket hang up",
            ],
            ErrorClass::Transport,
        ),
    ];
    let found = classes.into_iter().find(|(words, _)| says(words));
    found.map(|(_, class)| class)
}

/// Finds the status of an HTTP answer in a text, where it stands as a word.
fn status_in(message: &str) -> Option<u16> {
    let words = message.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    let mut numbers = words
        .filter(|word| word.len() == 3)
        .filter_map(|word| word.parse().ok());
    numbers.find(|number| (400..600).contains(number))
}

/// Judges a program that ended in a turn, by its end and its last complaint.
pub(super) fn lost(end: &End, stderr: &str) -> AgentError {
    let complaint = stderr
        .lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty());
    let how = match end {
        End::Exited { code } => format!("ended with exit code {code}"),
        End::Signalled { signal } => format!("was killed by signal {signal}"),
        End::ExecFailed { .. } => "could not be started".to_owned(),
        End::Stopped { .. } | End::SupervisorLost { .. } => "was stopped".to_owned(),
    };
    let complaint = complaint.unwrap_or("it said nothing about it");
    let message = format!("the agent {how} before its turn was over: {complaint}");
    AgentError {
        class: ErrorClass::AgentCrashed,
        message: text::clip(&message, LINE_BYTES_MAX),
        http_status: None,
        retry_after: None,
    }
}
