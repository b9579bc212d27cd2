//! Times, counts and names as people read them.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use muster_proto::v1;

use crate::output::Paint;

/// Digits of a commit that people compare.
const COMMIT_DIGITS: usize = 12;
/// States in the order in which counts name them.
pub(crate) const STATES: [&str; 11] = [
    "succeeded",
    "failed",
    "cancelled",
    "aborted",
    "skipped",
    "verifying",
    "leased",
    "parked",
    "ready",
    "basing",
    "blocked",
];

/// Reads a time of the wire.
pub(crate) fn time(at: Option<&prost_types::Timestamp>) -> Option<Timestamp> {
    let at = at?;
    Timestamp::new(at.seconds, at.nanos).ok()
}

/// Writes a time for programs: RFC 3339 in UTC, milliseconds.
pub(crate) fn machine_time(at: Option<&prost_types::Timestamp>) -> Option<String> {
    time(at).map(|at| format!("{at:.3}"))
}

/// Writes a time for a person: their own clock, to the second.
pub(crate) fn local_time(at: Timestamp) -> String {
    at.to_zoned(TimeZone::system())
        .strftime("%Y-%m-%d %H:%M:%S")
        .to_string()
}

/// Writes the time of the day for a person.
pub(crate) fn time_of_day(at: Timestamp) -> String {
    at.to_zoned(TimeZone::system())
        .strftime("%H:%M:%S")
        .to_string()
}

/// Gives the time between two moments; none if they are in the wrong order, as clocks can be.
pub(crate) fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// Writes a length of time with as much precision as its size deserves.
pub(crate) fn duration(length: Duration) -> String {
    let seconds = length.as_secs();
    match seconds {
        0..60 => format!("{seconds}.{}s", length.subsec_millis() / 100),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86400, seconds / 3600 % 24),
    }
}

/// Shortens a commit id.
pub(crate) fn short(commit: &str) -> &str {
    commit.get(..COMMIT_DIGITS).unwrap_or(commit)
}

/// Writes a number and what it counts.
pub(crate) fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// Paints the name of a state by what it means.
pub(crate) fn state(paint: Paint, state: &str) -> String {
    match state {
        "succeeded" | "integrated" | "connected" => paint.green(state),
        "failed" | "aborted" | "lost" | "conflict" => paint.red(state),
        "cancelled" | "skipped" | "parked" | "asks you" | "draining" => paint.yellow(state),
        "leased" | "running" | "verifying" | "active" | "integrating" | "merging" => {
            paint.cyan(state)
        }
        _ => paint.dim(state),
    }
}

/// Gives what a task does in one word, more exactly than its state.
pub(crate) fn state_word(task: &v1::Task) -> &str {
    let last = task.attempts.last().map(|attempt| attempt.state.as_str());
    match (task.state.as_str(), last) {
        ("leased", _) if !task.asks.is_empty() => "asks you",
        ("leased", Some("running")) => "running",
        ("leased", _) => "starting",
        ("verifying", Some("waiting_for_verify")) => "to verify",
        (state, _) => state,
    }
}

/// Gives the sign of a state: a word's shape for the corner of the eye.
pub(crate) fn state_sign(state: &str) -> &'static str {
    match state {
        "succeeded" | "integrated" => "✓",
        "failed" | "conflict" => "✗",
        "aborted" => "!",
        "running" | "active" | "integrating" | "merging" => "▸",
        "leased" | "starting" => "▹",
        "verifying" | "to verify" => "⋯",
        "parked" | "asks you" => "?",
        "ready" => "◦",
        "basing" => "~",
        "skipped" => "↷",
        "cancelled" => "⊘",
        _ => "·",
    }
}

/// Tells whether a task in that state will not change by itself.
pub(crate) fn is_final(state: &str) -> bool {
    matches!(
        state,
        "succeeded" | "failed" | "cancelled" | "aborted" | "skipped"
    )
}

/// Tells whether a run has ended.
pub(crate) fn has_ended(run: &v1::Run) -> bool {
    is_over(&run.state)
}

/// Tells whether a run in that state has ended.
pub(crate) fn is_over(state: &str) -> bool {
    matches!(state, "succeeded" | "failed" | "cancelled")
}

/// Counts the tasks on the longest chain of those that are still to succeed.
///
/// Chains through a task that can no longer succeed are over, too.
pub(crate) fn longest_chain_left(tasks: &[v1::Task]) -> usize {
    let places: BTreeMap<&str, usize> = tasks
        .iter()
        .enumerate()
        .map(|(place, task)| (task.name.as_str(), place))
        .collect();
    let is_left: Vec<bool> = tasks.iter().map(|task| !is_final(&task.state)).collect();
    let mut dependents: Vec<Vec<usize>> = vec![Vec::new(); tasks.len()];
    let mut unmet: Vec<usize> = vec![0; tasks.len()];
    for (place, task) in tasks
        .iter()
        .enumerate()
        .filter(|(place, _)| is_left[*place])
    {
        for on in &task.depends_on {
            if let Some(&on) = places.get(on.as_str()).filter(|on| is_left[**on]) {
                dependents[on].push(place);
                unmet[place] += 1;
            }
        }
    }
    // Each task is looked at after all that it waits for, so its length is known by then.
    let mut lengths: Vec<usize> = is_left.iter().map(|left| usize::from(*left)).collect();
    let mut next: Vec<usize> = (0..tasks.len())
        .filter(|place| unmet[*place] == 0)
        .collect();
    while let Some(place) = next.pop() {
        for &dependent in &dependents[place] {
            lengths[dependent] = lengths[dependent].max(lengths[place] + 1);
            unmet[dependent] -= 1;
            if unmet[dependent] == 0 {
                next.push(dependent);
            }
        }
    }
    lengths.into_iter().max().unwrap_or_default()
}

/// Counts tasks by state, in the order of [`STATES`]; states that no task is in are left out.
pub(crate) fn counts(tasks: &[v1::Task]) -> Vec<(&str, usize)> {
    let mut counts: Vec<(&str, usize)> = STATES
        .iter()
        .map(|state| {
            (
                *state,
                tasks.iter().filter(|task| task.state == *state).count(),
            )
        })
        .collect();
    for task in tasks {
        // A newer coordinator may know states that we do not.
        if !STATES.contains(&task.state.as_str()) {
            match counts.iter_mut().find(|(state, _)| *state == task.state) {
                Some((_, count)) => *count += 1,
                None => counts.push((&task.state, 1)),
            }
        }
    }
    counts.retain(|(_, count)| *count > 0);
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_as_precise_as_they_are_short() {
        let shown: Vec<String> = [0.04, 3.19, 59.99, 61.0, 3599.0, 3661.0, 90_061.0]
            .into_iter()
            .map(|seconds| duration(Duration::from_secs_f64(seconds)))
            .collect();
        assert_eq!(
            shown,
            ["0.0s", "3.1s", "59.9s", "1m01s", "59m59s", "1h01m", "1d01h"]
        );
    }

    #[test]
    fn states_that_this_program_does_not_know_are_counted_too() {
        let task = |state: &str| v1::Task {
            state: state.to_owned(),
            ..v1::Task::default()
        };
        let tasks = [
            task("dreaming"),
            task("failed"),
            task("succeeded"),
            task("dreaming"),
        ];
        assert_eq!(
            counts(&tasks),
            [("succeeded", 1), ("failed", 1), ("dreaming", 2)]
        );
    }

    #[test]
    fn the_longest_chain_is_that_of_what_is_left() {
        let task = |name: &str, state: &str, depends_on: &[&str]| v1::Task {
            name: name.to_owned(),
            state: state.to_owned(),
            depends_on: depends_on.iter().map(ToString::to_string).collect(),
            ..v1::Task::default()
        };
        let mut tasks = vec![
            // The longest chain of the plan comes first, and is done first.
            task("c", "succeeded", &["b"]),
            task("b", "succeeded", &["a"]),
            task("a", "succeeded", &[]),
            task("z", "blocked", &["y", "c"]),
            task("y", "leased", &["gone"]),
        ];
        assert_eq!(longest_chain_left(&tasks), 2);
        tasks.truncate(3);
        assert_eq!(longest_chain_left(&tasks), 0);
    }

    #[test]
    fn a_clock_that_runs_behind_gives_no_negative_time() {
        let (early, late) = (Timestamp::UNIX_EPOCH, Timestamp::from_second(5).unwrap());
        assert_eq!(between(early, late), Duration::from_secs(5));
        assert_eq!(between(late, early), Duration::ZERO);
    }
}
