//! End to end: real coordinators, real workers, real git, and `kill -9`.
//!
//! A test that needs what this machine does not have is listed as ignored, with the reason in its
//! name, and never as passed; therefore the harness is libtest-mimic.

mod abuse;
mod acp;
mod agents;
mod approvals;
mod changes;
mod claude;
mod clocks;
mod cluster;
mod cluster_faults;
mod codex;
mod codex_par;
mod codex_settings;
mod containers;
mod cutoff;
mod deaths;
mod deployed;
mod disk;
mod documents;
mod ec2;
mod examples;
mod failures;
mod first;
mod foreign;
mod going_on;
mod guide;
mod handover;
mod integration;
mod machines;
mod mixed;
mod pools;
mod programs;
mod ready;
mod repeat;
mod repositories;
mod restored;
mod several_hosts;
mod slurm;
mod straggler;
mod terminal;
mod terraform;
mod upgrade;
mod walk;
mod wire;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};
use muster_tests::cluster::{Cluster, Options, Programs};

/// Scenarios that take longer say so: together they are most of what testing takes.
const LONG_SCENARIO: Duration = Duration::from_secs(10);

type Scenario = fn(&Programs) -> Result<()>;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if arguments.test_threads.is_none() {
        // More than half of what a scenario takes is waiting, for leases to run out and the like.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        arguments.test_threads = Some(2 * cores);
    }
    let programs = Programs {
        coordinator: env!("CARGO_BIN_EXE_coordinator-under-test").into(),
        worker_agent: env!("CARGO_BIN_EXE_worker-agent-under-test").into(),
        forward: env!("CARGO_BIN_EXE_forward").into(),
        source: Path::new(env!("CARGO_MANIFEST_DIR")).join(".."),
    };
    let plain = [
        first::SCENARIOS,
        documents::SCENARIOS,
        examples::SCENARIOS,
        integration::SCENARIOS,
        codex_par::SCENARIOS,
        acp::SCENARIOS,
        agents::SCENARIOS,
        failures::SCENARIOS,
        foreign::SCENARIOS,
        handover::SCENARIOS,
        deaths::SCENARIOS,
        deployed::SCENARIOS,
        guide::SCENARIOS,
        straggler::SCENARIOS,
        repeat::SCENARIOS,
        restored::SCENARIOS,
        abuse::SCENARIOS,
        wire::SCENARIOS,
        repositories::SCENARIOS,
        changes::SCENARIOS,
        programs::SCENARIOS,
        ready::SCENARIOS,
        upgrade::SCENARIOS,
        terminal::SCENARIOS,
        approvals::SCENARIOS,
        pools::SCENARIOS,
    ];
    // Those that take longest come first, so that none is left alone at the end.
    let mut trials: Vec<Trial> = vec![];
    let without_clocks = muster_tests::clocks::missing(&programs.source);
    let without_codex = muster_tests::agents::codex(&programs.source).err();
    let with_needs = [
        (without_codex.clone(), codex::SCENARIOS),
        (without_codex.clone(), codex_settings::SCENARIOS),
        (without_codex, going_on::CODEX),
        (muster_tests::hosts::missing(), several_hosts::SCENARIOS),
        (claude::missing(&programs.source), claude::SCENARIOS),
        (claude::missing(&programs.source), going_on::CLAUDE),
        (mixed::missing(&programs.source), mixed::SCENARIOS),
        (acp::missing(&programs.source), acp::REAL_SCENARIOS),
        (muster_tests::slurm::missing(), slurm::SCENARIOS),
        (slurm::without_login(), slurm::LOGIN_SCENARIOS),
        (muster_tests::slurm::missing(), cluster::SCENARIOS),
        (slurm::without_login(), cluster::LOGIN_SCENARIOS),
        (muster_tests::slurm::missing(), cluster_faults::SCENARIOS),
        (
            cluster_faults::without_hosts(),
            cluster_faults::HOST_SCENARIOS,
        ),
        (machines::missing(&programs), machines::SCENARIOS),
        (walk::missing(&programs), walk::SCENARIOS),
        (ec2::missing(&programs), ec2::SCENARIOS),
        (
            ec2::missing(&programs).or_else(muster_tests::slurm::missing),
            ec2::THREE_KINDS_SCENARIOS,
        ),
        (containers::missing(), containers::SCENARIOS),
        (slurm::without_shellcheck(), slurm::SHELLCHECK_SCENARIOS),
        (muster_tests::hosts::missing(), wire::HOST_SCENARIOS),
        (without_clocks.clone(), clocks::SCENARIOS),
        (without_clocks, cutoff::CLOCK_SCENARIOS),
        (
            muster_tests::hosts::missing_filter(),
            cutoff::HOST_SCENARIOS,
        ),
        (
            muster_tests::hosts::missing_filter(),
            wire::PACKET_SCENARIOS,
        ),
    ];
    if muster_tests::hosts::missing_filter().is_some() {
        trials.extend(
            [cutoff::SCENARIOS, wire::PROXY_SCENARIOS]
                .into_iter()
                .flatten()
                .map(|(name, scenario)| trial(name, *scenario, &programs)),
        );
    }
    for (missing, scenarios) in with_needs {
        for (name, scenario) in scenarios {
            let name = missing
                .as_ref()
                .map_or((*name).to_owned(), |why| format!("{name} ({why})"));
            trials.push(trial(&name, *scenario, &programs).with_ignored_flag(missing.is_some()));
        }
    }
    let several = [documents::scenarios(), terraform::scenarios()];
    for (name, missing, scenario) in several.into_iter().flatten() {
        let name = missing
            .as_ref()
            .map_or(name.to_owned(), |why| format!("{name} ({why})"));
        trials.push(trial(&name, scenario, &programs).with_ignored_flag(missing.is_some()));
    }
    for (name, missing, scenario) in disk::scenarios(&programs) {
        let name = missing
            .as_ref()
            .map_or(name.to_owned(), |why| format!("{name} ({why})"));
        trials.push(trial(&name, scenario, &programs).with_ignored_flag(missing.is_some()));
    }
    trials.extend(
        plain
            .into_iter()
            .flatten()
            .map(|(name, scenario)| trial(name, *scenario, &programs)),
    );
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(name: &str, scenario: Scenario, programs: &Programs) -> Trial {
    let programs = programs.clone();
    let title = name.to_owned();
    Trial::test(name, move || {
        let begun = Instant::now();
        let outcome = scenario(&programs);
        let took = begun.elapsed();
        if took >= LONG_SCENARIO {
            say(&format!("{title}: {} s", took.as_secs()));
        }
        outcome.map_err(|error| Failed::from(format!("{error:#}")))
    })
}

/// Runs a test with a cluster of its own; when it fails, the end of what everybody printed is part
/// of the message.
fn with_cluster(
    programs: &Programs,
    options: Option<Options>,
    test: impl FnOnce(&mut Cluster) -> Result<()>,
) -> Result<()> {
    let mut cluster = Cluster::new(programs, options)?;
    test(&mut cluster).map_err(|error| anyhow::anyhow!("{error:#}\n{}", cluster.story()))
}

/// Shows a figure that is of interest also when all is well.
#[expect(
    clippy::print_stderr,
    reason = "what a test measured is its result as much as its verdict"
)]
fn say(line: &str) {
    eprintln!("{line}");
}
