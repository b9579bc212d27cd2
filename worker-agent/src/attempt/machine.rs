//! The phases of an attempt, and what each turn of events leads to. Pure.
//!
//! ```text
//! Preparing ─▶ Running ─▶ Publishing ─▶ Reported
//!     │            │            │
//!     │            ├─ failed ───┴─▶ Keeping ─▶ Reported      edits go to the WIP ref
//!     └─ stopped ──┴─────────────▶ Salvaging ─▶ Reported     edits go to the salvage ref
//! ```
//!
//! Whatever happens, edits are kept before the folder goes, and there is exactly one report.

use muster_proto::v1::{Failed, Failure, Outcome, Succeeded, Usage, report};

use super::Stop;
use crate::failure::{class, failure};

/// Where an attempt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its workspace is being made.
    Preparing,
    /// Its agent runs.
    Running,
    /// Its commit is being made and pushed.
    Publishing,
    /// Its edits are being kept, and it is reported as this afterwards.
    Keeping,
    /// Its lease is over; its edits are being kept for people.
    Salvaging,
    /// It was reported.
    Reported,
}

impl Phase {
    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Running => "running",
            Self::Publishing => "publishing",
            Self::Keeping => "keeping",
            Self::Salvaging => "salvaging",
            Self::Reported => "reported",
        }
    }
}

/// What happened in a phase.
#[derive(Clone, Debug, PartialEq)]
pub enum Happened {
    /// The workspace is ready.
    Prepared,
    /// The agent did its work.
    Done,
    /// The result is published, or there is none to publish.
    Published(Outcome),
    /// It cannot succeed.
    Failed(Failure),
    /// The lease is to stop, and no process of it is left.
    Stopped(Stop),
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Start the agent.
    Run,
    /// Commit and push.
    Publish,
    /// Push edits to the WIP ref, then report this.
    KeepThenReport(report::Kind),
    /// Keep edits with the session's credential, then report this.
    SalvageThenReport(report::Kind),
    /// Report this; nothing is unpublished.
    Report(report::Kind),
}

impl Phase {
    /// Decides; `usage` is what the attempt has consumed so far.
    pub fn next(self, happened: Happened, usage: Usage) -> (Self, Next) {
        match (self, happened) {
            (_, Happened::Stopped(Stop::Salvage)) => {
                let stopped = report::Kind::Stopped(muster_proto::v1::Empty {});
                (Self::Salvaging, Next::SalvageThenReport(stopped))
            }
            (_, Happened::Stopped(stop)) => {
                let given_back = report::Kind::GivenBack(left(stop));
                (Self::Keeping, Next::KeepThenReport(given_back))
            }
            (_, Happened::Failed(failure)) => {
                let failed = report::Kind::Failed(Failed {
                    failure: Some(failure),
                    usage: Some(usage),
                });
                (Self::Keeping, Next::KeepThenReport(failed))
            }
            (Self::Preparing, Happened::Prepared) => (Self::Running, Next::Run),
            (Self::Running, Happened::Done) => (Self::Publishing, Next::Publish),
            (Self::Publishing, Happened::Published(outcome)) => {
                let succeeded = report::Kind::Succeeded(Succeeded {
                    outcome: Some(outcome),
                    usage: Some(usage),
                    summary: String::new(),
                });
                (Self::Reported, Next::Report(succeeded))
            }
            (phase, Happened::Prepared | Happened::Done | Happened::Published(_)) => {
                let message = format!(
                    "the worker lost track of the attempt while {}",
                    phase.name()
                );
                let failed = report::Kind::Failed(Failed {
                    failure: Some(failure(class::WORKER_LOST, &message, b"")),
                    usage: Some(usage),
                });
                (Self::Keeping, Next::KeepThenReport(failed))
            }
        }
    }
}

/// Tells why a lease is given back by a worker that leaves.
pub(super) fn left(stop: Stop) -> Failure {
    match stop {
        Stop::HandOver(hand_over) => failure(hand_over.class, hand_over.message(), b""),
        Stop::Leave | Stop::Salvage => {
            failure(class::PREEMPTED, "the worker was told to leave", b"")
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::v1::{Empty, outcome};

    use super::*;
    use crate::clock::Boottime;
    use crate::departure::HandOver;

    const PHASES: [Phase; 3] = [Phase::Preparing, Phase::Running, Phase::Publishing];

    fn no_change() -> Outcome {
        Outcome {
            kind: Some(outcome::Kind::NoChange(Empty {})),
        }
    }

    #[test]
    fn success_is_expressed_only_after_publishing() {
        for phase in PHASES {
            let (_, next) = phase.next(Happened::Published(no_change()), Usage::default());
            let succeeded = matches!(next, Next::Report(report::Kind::Succeeded(_)));
            assert_eq!(succeeded, phase == Phase::Publishing, "{phase:?}");
        }
    }

    #[test]
    fn the_way_to_success_has_three_steps() {
        let usage = Usage::default();
        let (phase, next) = Phase::Preparing.next(Happened::Prepared, usage);
        assert_eq!((phase, next), (Phase::Running, Next::Run));
        let (phase, next) = phase.next(Happened::Done, usage);
        assert_eq!((phase, next), (Phase::Publishing, Next::Publish));
    }

    #[test]
    fn in_every_phase_a_stop_keeps_edits_and_claims_no_result() {
        for phase in PHASES {
            let stopped = phase.next(Happened::Stopped(Stop::Salvage), Usage::default());
            let expected = Next::SalvageThenReport(report::Kind::Stopped(Empty {}));
            assert_eq!(stopped, (Phase::Salvaging, expected));
            let (_, next) = phase.next(Happened::Stopped(Stop::Leave), Usage::default());
            let Next::KeepThenReport(report::Kind::GivenBack(failure)) = next else {
                panic!("{next:?}");
            };
            assert_eq!(failure.class, "preempted");
            let hand_over = HandOver {
                class: "walltime",
                until: Boottime::from_millis(1),
            };
            let stop = Happened::Stopped(Stop::HandOver(hand_over));
            let (_, next) = phase.next(stop, Usage::default());
            let Next::KeepThenReport(report::Kind::GivenBack(failure)) = next else {
                panic!("{next:?}");
            };
            assert_eq!(failure.class, "walltime");
        }
    }

    #[test]
    fn in_every_phase_a_failure_keeps_edits_and_is_reported() {
        for phase in PHASES {
            let failure = failure("agent_failed", "m", b"o");
            let (_, next) = phase.next(Happened::Failed(failure.clone()), Usage::default());
            let Next::KeepThenReport(report::Kind::Failed(failed)) = next else {
                panic!("{next:?}");
            };
            assert_eq!(failed.failure, Some(failure));
        }
    }
}
