//! Workers that lose touch: their agents end before their tasks are given away, whatever clocks do.

use std::time::Duration;

use anyhow::Result;
use muster_tests::Programs;
use muster_tests::cluster::Options;
use muster_tests::cutoff::{Case, Coordinator, Length, Loss, Network, measure};

use crate::Scenario;

/// Where packets cannot be dropped between hosts, the bytes of connections are held back instead.
pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[(
    "a_worker_that_is_cut_off_stops_its_agents_before_their_tasks_are_given_away",
    cut_off,
)];

/// They need the shim that changes clocks.
pub(crate) const CLOCK_SCENARIOS: &[(&str, Scenario)] = &[(
    "wall_clocks_that_jump_and_lids_that_close_change_no_lease_and_break_no_reconnect",
    wrong_clocks,
)];

/// They need hosts, and a packet filter on them.
pub(crate) const HOST_SCENARIOS: &[(&str, Scenario)] = &[(
    "packets_dropped_both_ways_or_one_way_stop_agents_in_time",
    dropped_packets,
)];

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
    for figures in measure(programs, TERMS, Network::Proxies, coordinator, cases)? {
        crate::say(&figures.to_string());
    }
    Ok(())
}

fn all_cuts() -> Vec<Case> {
    let losses = [Loss::BothWays, Loss::Up, Loss::Down];
    let cases = losses.map(|loss| BOTH_LENGTHS.map(|length| case(loss, length, false)));
    cases.as_flattened().to_vec()
}

fn cut_off(programs: &Programs) -> Result<()> {
    measured(programs, Coordinator::Undisturbed, &all_cuts())
}

fn dropped_packets(programs: &Programs) -> Result<()> {
    let undisturbed = Coordinator::Undisturbed;
    for figures in measure(programs, TERMS, Network::Hosts, undisturbed, &all_cuts())? {
        crate::say(&format!("between hosts: {figures}"));
    }
    Ok(())
}

/// Everybody's wall clock jumps, at once; the program `cutoff` tells them apart.
fn wrong_clocks(programs: &Programs) -> Result<()> {
    let cases = [
        case(Loss::None, Length::Shorter, true),
        case(Loss::None, Length::Shorter, false),
        case(Loss::BothWays, Length::Longer, true),
        case(Loss::Lid, Length::Shorter, false),
        case(Loss::Lid, Length::Longer, false),
    ];
    measured(programs, Coordinator::WallJumps, &cases)
}
