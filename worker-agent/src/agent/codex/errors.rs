//! What Codex says went wrong, as classes.

use serde_json::Value;

use super::json::{head, text};
use crate::agent::conversation::{AgentError, ErrorClass};

/// Longest message that is kept.
const MESSAGE_BYTES_MAX: usize = 4_096;
/// What JSON-RPC calls a request that is not understood, or not accepted now.
const INVALID: [i64; 3] = [-32_600, -32_601, -32_602];

/// Reads an error of a turn.
pub(super) fn of_turn(error: &Value) -> AgentError {
    let said = text(error, "message");
    let details = text(error, "additionalDetails");
    let (class, http_status) = classify(error.get("codexErrorInfo"), said, details);
    let message = if details.is_empty() || said.contains(details) {
        said.to_owned()
    } else {
        format!("{said}: {details}")
    };
    AgentError {
        class,
        message: head(&message, MESSAGE_BYTES_MAX).to_owned(),
        http_status,
        retry_after: None,
    }
}

/// Tells whether an error of a turn stays however often Codex tries again. Only where the provider's
/// status or Codex's own name says so: words are too easily mistaken.
pub(super) fn is_final(error: &Value, read: &AgentError) -> bool {
    let name = error.get("codexErrorInfo").and_then(Value::as_str);
    let is_sure = read.http_status.is_some() || name.and_then(by_name).is_some();
    is_sure && read.class.is_final()
}

/// Reads the error with which a request was answered.
pub(super) fn of_request(what: &str, error: &Value) -> AgentError {
    let code = error.get("code").and_then(Value::as_i64);
    let class = match code {
        Some(code) if INVALID.contains(&code) => ErrorClass::InvalidRequest,
        _ => ErrorClass::AgentError,
    };
    let message = format!("codex does not {what}: {}", text(error, "message"));
    AgentError {
        class,
        message: head(&message, MESSAGE_BYTES_MAX).to_owned(),
        http_status: None,
        retry_after: None,
    }
}

/// Which try of how many a retry notice is about; zeros if it does not say.
pub(super) fn tries(message: &str) -> (u32, u32) {
    let numbers = message.split_whitespace().find_map(|word| {
        let (attempt, max) = word.trim_end_matches(':').split_once('/')?;
        Some((attempt.parse().ok()?, max.parse().ok()?))
    });
    numbers.unwrap_or_default()
}

fn classify(info: Option<&Value>, said: &str, details: &str) -> (ErrorClass, Option<u16>) {
    let known = match info {
        Some(Value::String(name)) => (by_name(name), None),
        Some(Value::Object(variant)) => {
            // One key, which says at which step; what failed is in the status.
            let status = variant
                .values()
                .find_map(|inner| inner.get("httpStatusCode")?.as_u64())
                .and_then(|status| u16::try_from(status).ok());
            let transport = variant.keys().any(|key| key.contains("Failed"))
                || variant.contains_key("responseStreamDisconnected");
            match status {
                Some(status) => (Some(ErrorClass::of_status(status)), Some(status)),
                // The stream broke because of what the details say.
                None if transport => match by_words(details) {
                    (ErrorClass::AgentError, _) => (Some(ErrorClass::Transport), None),
                    (class, status) => (Some(class), status),
                },
                None => (None, None),
            }
        }
        _ => (None, None),
    };
    match known {
        (Some(class), status) => (class, status),
        (None, _) => {
            let (class, status) = by_words(said);
            if class == ErrorClass::AgentError && !details.is_empty() {
                return by_words(details);
            }
            (class, status)
        }
    }
}

fn by_name(name: &str) -> Option<ErrorClass> {
    Some(match name {
        "contextWindowExceeded" => ErrorClass::ContextWindow,
        "usageLimitExceeded" | "sessionBudgetExceeded" => ErrorClass::UsageLimit,
        "rateLimitExceeded" => ErrorClass::RateLimit,
        "serverOverloaded" | "flexUnavailable" | "policyCapacityUnavailable" => {
            ErrorClass::ProviderCapacity
        }
        "internalServerError" => ErrorClass::ProviderError,
        "unauthorized" => ErrorClass::Authentication,
        "modelNotFound" | "badRequest" => ErrorClass::InvalidRequest,
        "cyberPolicy" | "misalignmentPolicyViolation" => ErrorClass::Refusal,
        // `other`, and what later versions add.
        _ => return None,
    })
}

/// Codex calls much `other`; only its words tell what it was.
fn by_words(message: &str) -> (ErrorClass, Option<u16>) {
    if let Some(rest) = message
        .split("status ")
        .nth(1)
        .or(message.split("status: ").nth(1))
    {
        let digits = head(rest, 3);
        if let Ok(status) = digits.parse::<u16>()
            && (400..600).contains(&status)
        {
            return (ErrorClass::of_status(status), Some(status));
        }
    }
    let lower = message.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    let class = if has(&["content_filter", "refus", "safety"]) {
        ErrorClass::Refusal
    } else if has(&["rate limit"]) {
        ErrorClass::RateLimit
    } else if has(&["at capacity", "overloaded"]) {
        ErrorClass::ProviderCapacity
    } else if has(&["high demand"]) {
        // What Codex makes of any answer 500.
        ErrorClass::ProviderError
    } else if has(&["missing environment variable", "not logged in", "log in"]) {
        ErrorClass::Authentication
    } else if has(&[
        "stream disconnected",
        "stream closed",
        "error sending request",
    ]) || has(&["connection", "timed out", "timeout", "network"])
    {
        ErrorClass::Transport
    } else if lower.trim_start().starts_with("{\"error\"") || has(&["not supported"]) {
        // The body of an answer 400, as the provider wrote it.
        ErrorClass::InvalidRequest
    } else {
        ErrorClass::AgentError
    };
    (class, None)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn class(info: &Value, message: &str) -> (ErrorClass, Option<u16>) {
        let error = of_turn(&json!({"message": message, "codexErrorInfo": info}));
        (error.class, error.http_status)
    }

    #[test]
    fn every_error_that_was_seen_has_its_class() {
        use ErrorClass as E;
        let status = |key: &str, status: u16| json!({ key: {"httpStatusCode": status} });
        for (info, message, expected) in [
            (
                status("responseTooManyFailedAttempts", 429),
                "exceeded retry limit, last status: 429 Too Many Requests",
                (E::RateLimit, Some(429)),
            ),
            (
                status("httpConnectionFailed", 401),
                "unexpected status 401 Unauthorized",
                (E::Authentication, Some(401)),
            ),
            (
                json!({"responseStreamDisconnected": {"httpStatusCode": null}}),
                "Reconnecting... 1/1",
                (E::Transport, None),
            ),
            (
                json!("internalServerError"),
                "high demand",
                (E::ProviderError, None),
            ),
            (json!("contextWindowExceeded"), "", (E::ContextWindow, None)),
            (json!("usageLimitExceeded"), "", (E::UsageLimit, None)),
            (json!("rateLimitExceeded"), "", (E::RateLimit, None)),
            (json!("serverOverloaded"), "", (E::ProviderCapacity, None)),
            (json!("cyberPolicy"), "", (E::Refusal, None)),
            (
                json!("other"),
                "stream disconnected before completion: stream closed before response.completed",
                (E::Transport, None),
            ),
            (
                json!("other"),
                r#"{"error": {"message": "fake http 400"}}"#,
                (E::InvalidRequest, None),
            ),
            (
                json!("other"),
                "Missing environment variable: `KEY`.",
                (E::Authentication, None),
            ),
            (
                json!("other"),
                "Incomplete response returned, reason: content_filter",
                (E::Refusal, None),
            ),
            (
                json!("other"),
                "Incomplete response returned, reason: max_output_tokens",
                (E::AgentError, None),
            ),
            (
                json!("someLaterName"),
                "unexpected status 503 X",
                (E::ProviderCapacity, Some(503)),
            ),
            (json!({"later": 1}), "?", (E::AgentError, None)),
            (Value::Null, "", (E::AgentError, None)),
        ] {
            assert_eq!(class(&info, message), expected, "{info} {message}");
        }
    }

    #[test]
    fn a_retry_says_which_try_it_is() {
        assert_eq!(tries("Reconnecting... 2/5"), (2, 5));
        assert_eq!(tries("Reconnecting... 2/5: 429"), (2, 5));
        assert_eq!(tries("Reconnecting... 2/5 (last status: 429)"), (2, 5));
        assert_eq!(tries("either/or"), (0, 0));
        assert_eq!(tries(""), (0, 0));
    }

    #[test]
    fn a_request_that_is_not_accepted_names_what_was_asked() {
        let error = of_request("begin a turn", &json!({"code": -32600, "message": "no"}));
        assert_eq!(error.class, ErrorClass::InvalidRequest);
        assert_eq!(error.message, "codex does not begin a turn: no");
    }
}
