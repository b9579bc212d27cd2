//! Runs to test with.

use std::path::PathBuf;

use jiff::Timestamp;
use muster_proto::v1;

use super::summary::Place;

/// When the canned runs were submitted.
pub(crate) const SUBMITTED: i64 = 1_700_000_000;

/// Gives the moment so many seconds after the submission.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(SUBMITTED + seconds).unwrap()
}

pub(crate) fn place() -> Place {
    Place {
        of_folder: false,
        program: "coordinator".to_owned(),
        home: Some(PathBuf::from("/home/ann/.local/state/muster")),
    }
}

fn stamp(seconds: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp {
        seconds: SUBMITTED + seconds,
        nanos: 0,
    })
}

pub(crate) fn task(name: &str, state: &str) -> v1::Task {
    v1::Task {
        name: name.to_owned(),
        state: state.to_owned(),
        generation: 1,
        agent: "command".to_owned(),
        ..v1::Task::default()
    }
}

pub(crate) fn attempt(number: u32, state: &str, from: i64, to: Option<i64>) -> v1::Attempt {
    v1::Attempt {
        number,
        worker: "laptop-0".to_owned(),
        state: state.to_owned(),
        granted_at: stamp(from),
        started_at: stamp(from),
        ended_at: to.and_then(stamp),
        lease: u64::from(number),
        ..v1::Attempt::default()
    }
}

fn failure(class: &str, message: &str, output: &str) -> v1::Failure {
    v1::Failure {
        class: class.to_owned(),
        message: message.to_owned(),
        output: output.to_owned(),
        retry_after: None,
    }
}

/// An agent that asks before it deletes something.
pub(crate) fn question() -> v1::OpenQuestion {
    let choice = |id: &str, label: &str, effect: v1::ChoiceEffect, rule: &str| v1::Choice {
        id: id.to_owned(),
        label: label.to_owned(),
        effect: effect.into(),
        rule: rule.to_owned(),
    };
    let lines: Vec<String> = (1..=15).map(|nth| format!("rm -r build/{nth}")).collect();
    v1::OpenQuestion {
        id: "Q7".to_owned(),
        run: "add-auth-b7itx33".to_owned(),
        task: "api".to_owned(),
        attempt: 2,
        lease: 12,
        worker: "laptop-0".to_owned(),
        agent: "claude".to_owned(),
        asked_at: stamp(30),
        question: Some(v1::Question {
            number: 1,
            kind: "command".to_owned(),
            title: "May I run this?\u{1b}[31m".to_owned(),
            detail: lines.join("\n"),
            reason: "to build anew".to_owned(),
            folder: "app".to_owned(),
            choices: vec![
                choice("yes", "Yes", v1::ChoiceEffect::AllowOnce, ""),
                choice("always", "Always", v1::ChoiceEffect::AllowRule, "rm:*"),
                choice("no", "No, and say why", v1::ChoiceEffect::Deny, ""),
            ],
            paths: Vec::new(),
        }),
        parked: true,
    }
}

/// A run in the middle: one task done, one running, one in verify, one failed once, two to come.
pub(crate) fn live() -> v1::Run {
    v1::Run {
        run: "add-auth-b7itx33".to_owned(),
        plan: "add-auth".to_owned(),
        state: "active".to_owned(),
        submitted_at: stamp(0),
        submitted_by: "operator token 1".to_owned(),
        repository: Some("app-1a2b3c4d".to_owned()),
        base: Some("1".repeat(40)),
        critical_path: ["schema", "api", "report"].map(str::to_owned).to_vec(),
        integration: Some(v1::Integration {
            state: "pending".to_owned(),
            branch: "muster/add-auth-b7itx33/integration".to_owned(),
            ..v1::Integration::default()
        }),
        last_seq: 17,
        tasks: vec![
            v1::Task {
                commit: Some("a".repeat(40)),
                attempts: vec![attempt(1, "succeeded", 1, Some(9))],
                ..task("schema", "succeeded")
            },
            v1::Task {
                depends_on: vec!["schema".to_owned()],
                attempts: vec![
                    attempt(1, "failed", 9, Some(12)),
                    attempt(2, "running", 13, None),
                ],
                ..task("api", "leased")
            },
            v1::Task {
                attempts: vec![attempt(1, "verifying", 2, Some(8))],
                ..task("docs", "verifying")
            },
            task("lint", "ready"),
            v1::Task {
                depends_on: vec!["api".to_owned()],
                ..task("report", "blocked")
            },
        ],
        ..v1::Run::default()
    }
}

/// A run that has succeeded and is integrated.
pub(crate) fn succeeded() -> v1::Run {
    v1::Run {
        state: "succeeded".to_owned(),
        ended_at: stamp(75),
        tasks: vec![
            v1::Task {
                commit: Some("a".repeat(40)),
                attempts: vec![attempt(1, "succeeded", 1, Some(9))],
                ..task("schema", "succeeded")
            },
            v1::Task {
                no_change: true,
                attempts: vec![
                    attempt(1, "failed", 9, Some(12)),
                    attempt(2, "succeeded", 13, Some(70)),
                ],
                ..task("lint", "succeeded")
            },
        ],
        integration: Some(v1::Integration {
            state: "integrated".to_owned(),
            branch: "muster/add-auth-b7itx33/integration".to_owned(),
            commit: Some("c".repeat(40)),
            ..v1::Integration::default()
        }),
        ..live()
    }
}

/// A run that has failed in a verify; one task was skipped for it.
pub(crate) fn failed() -> v1::Run {
    let verify = failure(
        "verify_failed",
        "`cargo test` ended with exit code 101",
        "running 2 tests\n\x1b[31mtest api ... FAILED\x1b[0m\n\ntest result: FAILED\n",
    );
    v1::Run {
        state: "failed".to_owned(),
        ended_at: stamp(75),
        failure: Some(failure("task_failed", "task api failed", "")),
        integration: Some(v1::Integration {
            state: "none".to_owned(),
            ..v1::Integration::default()
        }),
        tasks: vec![
            v1::Task {
                attempts: vec![
                    attempt(1, "failed", 1, Some(9)),
                    attempt(2, "failed", 10, Some(40)),
                ],
                failure: Some(verify),
                ..task("api", "failed")
            },
            v1::Task {
                reason: "api did not succeed".to_owned(),
                ..task("report", "skipped")
            },
        ],
        ..live()
    }
}

/// A run whose tasks succeeded but do not merge.
pub(crate) fn conflicting() -> v1::Run {
    v1::Run {
        state: "failed".to_owned(),
        failure: Some(failure(
            "integration_conflict",
            "left and right do not merge",
            "",
        )),
        integration: Some(v1::Integration {
            state: "conflict".to_owned(),
            branch: "muster/add-auth-b7itx33/integration".to_owned(),
            conflict_tasks: vec!["left".to_owned(), "right".to_owned()],
            conflict_files: vec!["poem.txt".to_owned()],
            ..v1::Integration::default()
        }),
        ..succeeded()
    }
}
