//! Workers that lose touch: their agents end before their tasks are given away, whatever clocks do.

use std::time::Duration;

use anyhow::Result;
use muster_tests::Programs;
use muster_tests::cluster::Options;
use muster_tests::cutoff::{Case, Coordinator, Length, Loss, measure};

use crate::Scenario;

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[(
    "a_worker_that_is_cut_off_stops_its_agents_before_their_tasks_are_given_away",
    cut_off,
)];

/// They need the shim that changes clocks.
pub(crate) const CLOCK_SCENARIOS: &[(&str, Scenario)] = &[
    (
        "a_worker_whose_wall_clock_jumps_or_whose_lid_is_closed_keeps_to_its_leases",
        clocks_of_workers,
    ),
    (
        "jumps_of_the_coordinators_wall_clock_change_no_lease_and_break_no_reconnect",
        clock_of_coordinator,
    ),
    (
        "agents_end_in_time_while_the_coordinators_host_sleeps",
        lid_of_coordinator,
    ),
];

const TERMS: Options = Options {
    lease_ttl: Duration::from_secs(4),
    lease_grace: Duration::from_secs(2),
    heartbeat_interval: Duration::from_millis(500),
};
const BOTH_LENGTHS: [Length; 2] = [Length::Shorter, Length::Longer];

fn case(loss: Loss, length: Length, wall_jumps: bool) -> Case {
    Case {
        loss,
        length,
        wall_jumps,
    }
}

fn measured(programs: &Programs, coordinator: Coordinator, cases: &[Case]) -> Result<()> {
    for figures in measure(programs, TERMS, coordinator, cases)? {
        crate::say(&figures.to_string());
    }
    Ok(())
}

fn cut_off(programs: &Programs) -> Result<()> {
    let losses = [Loss::BothWays, Loss::Up, Loss::Down];
    let cases = losses.map(|loss| BOTH_LENGTHS.map(|length| case(loss, length, false)));
    measured(programs, Coordinator::Undisturbed, cases.as_flattened())
}

fn clocks_of_workers(programs: &Programs) -> Result<()> {
    let cases = [
        case(Loss::None, Length::Shorter, true),
        case(Loss::BothWays, Length::Longer, true),
        case(Loss::Lid, Length::Shorter, false),
        case(Loss::Lid, Length::Longer, false),
    ];
    measured(programs, Coordinator::Undisturbed, &cases)
}

fn clock_of_coordinator(programs: &Programs) -> Result<()> {
    let cases = [
        case(Loss::None, Length::Shorter, false),
        case(Loss::BothWays, Length::Longer, false),
    ];
    measured(programs, Coordinator::WallJumps, &cases)
}

fn lid_of_coordinator(programs: &Programs) -> Result<()> {
    let case = case(Loss::None, Length::Shorter, false);
    measured(programs, Coordinator::Lid(Length::Longer), &[case])
}
