//! Failures within the wire's bounds, and the names of their classes.

use muster_proto::v1::Failure;

/// Longest message of a failure on the wire.
const MESSAGE_BYTES_MAX: usize = 1_024;
/// Longest output of a failure on the wire.
pub(crate) const OUTPUT_BYTES_MAX: usize = 8_192;

/// Stable names of failure classes, as the coordinator knows them.
pub(crate) mod class {
    pub(crate) const AGENT_FAILED: &str = "agent_failed";
    pub(crate) const AGENT_UNAVAILABLE: &str = "agent_unavailable";
    pub(crate) const VERIFY_FAILED: &str = "verify_failed";
    pub(crate) const TIMED_OUT: &str = "timed_out";
    pub(crate) const STALLED: &str = "stalled";
    pub(crate) const WORKER_LOST: &str = "worker_lost";
    pub(crate) const PREEMPTED: &str = "preempted";
    pub(crate) const WALLTIME: &str = "walltime";
    pub(crate) const WORKSPACE: &str = "workspace";
    pub(crate) const PUBLISH: &str = "publish";
    pub(crate) const CHANGE_TOO_LARGE: &str = "change_too_large";
    pub(crate) const DISK_ALLOWANCE: &str = "disk_allowance";
    pub(crate) const NO_CHANGE: &str = "no_change";
    pub(crate) const OUTPUT_INVALID: &str = "output_invalid";
    pub(crate) const DENIED: &str = "denied";
    pub(crate) const SECRET_UNAVAILABLE: &str = "secret_unavailable";
}

/// Makes a failure: `message` becomes one bounded line, `output` its bounded end.
pub(crate) fn failure(class: &str, message: &str, output: &[u8]) -> Failure {
    Failure {
        class: class.to_owned(),
        message: one_line(message, MESSAGE_BYTES_MAX),
        output: tail(output, OUTPUT_BYTES_MAX),
        retry_after: None,
    }
}

/// Tells an error with everything that caused it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// Gives the beginning of a text without line breaks and other control characters.
pub(crate) fn one_line(text: &str, bytes_max: usize) -> String {
    let mut line = String::new();
    for character in text.chars() {
        let character = if character.is_control() {
            ' '
        } else {
            character
        };
        if line.len() + character.len_utf8() > bytes_max {
            break;
        }
        line.push(character);
    }
    line
}

fn tail(output: &[u8], bytes_max: usize) -> String {
    let start = output.len().saturating_sub(bytes_max);
    let text = String::from_utf8_lossy(output.get(start..).unwrap_or_default());
    // Bytes that are no text grow when they are replaced.
    let mut text = text.as_ref();
    while text.len() > bytes_max {
        let mut rest = text.chars();
        rest.next();
        text = rest.as_str();
    }
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_stays_within_the_wires_bounds_whatever_the_agent_wrote() {
        let failure = failure("c", &"é\n".repeat(5000), &[0xff; 20_000]);
        assert!(failure.message.len() <= MESSAGE_BYTES_MAX && !failure.message.contains('\n'));
        assert!(failure.output.len() <= OUTPUT_BYTES_MAX && failure.output.len() > 8_000);
    }

    #[test]
    fn the_output_of_a_failure_is_its_end() {
        let output = [b"begin".as_slice(), &[b'.'; 9000], b"end"].concat();
        let failure = failure("c", "m", &output);
        assert!(failure.output.ends_with("end") && !failure.output.contains("begin"));
    }
}
