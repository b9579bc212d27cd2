//! How a turn ended: what the program's last line of it, and the lines before, say.

use std::time::Duration;

use muster_proto::v1::TurnEnd;
use serde_json::Value;

use crate::agent::conversation::{AgentError, ErrorClass, Turn};
use crate::agent::text::{self, LINE_BYTES_MAX, MESSAGE_BYTES_MAX};
use crate::supervisor::End;

/// What earlier lines of a turn said that its last one does not.
#[derive(Debug, Default)]
pub(super) struct Hints {
    /// The program's own name of what went wrong.
    pub(super) kind: String,
    /// How long it waited before it tried again.
    pub(super) delay: Option<Duration>,
    /// The account has used up what it may.
    pub(super) limit: bool,
}

/// Reads the last line of a turn.
pub(super) fn turn(result: &Value, hints: &Hints) -> Turn {
    let said = text::of(result, "result");
    let is_error = result["is_error"].as_bool().unwrap_or_default();
    let subtype = text::of(result, "subtype");
    let reason = text::of(result, "terminal_reason");
    let (end, error) = if reason.starts_with("aborted") {
        (TurnEnd::Interrupted, None)
    // Who asked for the structure sees that there is none.
    } else if !is_error || reason == "structured_output_retry_exhausted" {
        (TurnEnd::Completed, None)
    } else {
        let errors = result["errors"].as_array().into_iter().flatten();
        let errors: Vec<&str> = errors.filter_map(Value::as_str).collect();
        let message = match (said, errors.as_slice()) {
            ("", []) => format!("the turn ended with {subtype}"),
            ("", errors) => errors.join("; "),
            (said, _) => said.to_owned(),
        };
        (TurnEnd::Failed, Some(error(result, hints, &message)))
    };
    let message = if error.is_some() { "" } else { said };
    Turn {
        end,
        message: text::clip(message, MESSAGE_BYTES_MAX),
        structured: result
            .get("structured_output")
            .filter(|answer| !answer.is_null())
            .cloned(),
        error,
    }
}

fn error(result: &Value, hints: &Hints, message: &str) -> AgentError {
    let status = result["api_error_status"].as_u64();
    let status = status.and_then(|status| u16::try_from(status).ok());
    let class = by_reason(text::of(result, "terminal_reason"))
        .or_else(|| (result["stop_reason"] == "refusal").then_some(ErrorClass::Refusal))
        .or_else(|| by_words(message))
        .or_else(|| hints.limit.then_some(ErrorClass::UsageLimit))
        .or_else(|| by_kind(&hints.kind, status))
        .or_else(|| status.map(ErrorClass::of_status))
        .or_else(|| by_cause(text::of(result, "api_error")))
        .unwrap_or(ErrorClass::AgentError);
    let waits = matches!(class, ErrorClass::RateLimit | ErrorClass::ProviderCapacity);
    AgentError {
        class,
        message: text::clip(message, LINE_BYTES_MAX),
        http_status: status,
        retry_after: hints.delay.filter(|_| waits),
    }
}

/// Judges by why the program's loop ended.
fn by_reason(reason: &str) -> Option<ErrorClass> {
    Some(match reason {
        "blocking_limit" | "prompt_too_long" | "rapid_refill_breaker" => ErrorClass::ContextWindow,
        "budget_exhausted" => ErrorClass::UsageLimit,
        "image_error" => ErrorClass::InvalidRequest,
        _ => return None,
    })
}

/// Judges by the program's own name of an error; `status` is the provider's.
fn by_kind(kind: &str, status: Option<u16>) -> Option<ErrorClass> {
    Some(match kind {
        "authentication_failed"
        | "oauth_org_not_allowed"
        | "account_on_hold"
        | "verification_required" => ErrorClass::Authentication,
        "billing_error" => ErrorClass::UsageLimit,
        "rate_limit" => ErrorClass::RateLimit,
        "overloaded" => ErrorClass::ProviderCapacity,
        "invalid_request" | "model_not_found" => ErrorClass::InvalidRequest,
        // It says so too of streams that broke and of providers without room.
        "server_error" => return status.map(ErrorClass::of_status),
        _ => return None,
    })
}

/// Judges by what broke a call that has no status.
fn by_cause(cause: &str) -> Option<ErrorClass> {
    Some(match cause {
        "connection_failed" | "stream_idle_timeout" | "computer_slept" => ErrorClass::Transport,
        "provider_credentials"
        | "gateway_signin_required"
        | "gateway_session_expired"
        | "api_key_auth_disabled"
        | "org_disabled_credential"
        | "invalid_credential_header" => ErrorClass::Authentication,
        "model_requires_usage_credits" | "long_context_credits_required" => ErrorClass::UsageLimit,
        _ => return None,
    })
}

/// Judges by words that providers and the program use where they have no better sign.
fn by_words(message: &str) -> Option<ErrorClass> {
    let message = message.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if says(&["prompt is too long", "context window", "context limit"]) {
        return Some(ErrorClass::ContextWindow);
    }
    if says(&[
        "credit balance is too low",
        "usage limit reached",
        "hit your limit",
    ]) {
        return Some(ErrorClass::UsageLimit);
    }
    if says(&["not logged in", "invalid api key", "please run /login"]) {
        return Some(ErrorClass::Authentication);
    }
    None
}

/// Judges a retry by what the program says of it.
pub(super) fn retried(line: &Value, hints: &Hints) -> AgentError {
    let status = line["error_status"]
        .as_u64()
        .and_then(|status| u16::try_from(status).ok());
    let kind = text::of(line, "error");
    let class = by_kind(kind, status).or_else(|| status.map(ErrorClass::of_status));
    let class = match class {
        Some(ErrorClass::RateLimit) if hints.limit => Some(ErrorClass::UsageLimit),
        class => class,
    };
    let message = match status {
        Some(status) => format!("the provider answered {status} ({kind})"),
        None => format!("the provider was not reached, or its stream broke ({kind})"),
    };
    AgentError {
        // It says no more of connections that fail.
        class: class.unwrap_or(ErrorClass::Transport),
        message: text::clip(&message, LINE_BYTES_MAX),
        http_status: status,
        retry_after: None,
    }
}

/// Judges a program that ended in a turn, by its end and its last complaint.
pub(super) fn lost(end: &End, stderr: &str) -> AgentError {
    let complaint = stderr
        .lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty());
    let complaint = complaint.unwrap_or("it said nothing about it");
    let how = match end {
        End::Exited { code } => format!("ended with exit code {code}"),
        End::Signalled { signal } => format!("was killed by signal {signal}"),
        End::ExecFailed { .. } => "could not be started".to_owned(),
        End::Stopped { .. } | End::SupervisorLost { .. } => "was stopped".to_owned(),
    };
    let message = format!("Claude Code {how} before its turn was over: {complaint}");
    AgentError {
        class: by_words(stderr).unwrap_or(ErrorClass::AgentCrashed),
        message: text::clip(&message, LINE_BYTES_MAX),
        http_status: None,
        retry_after: None,
    }
}
