//! Disks that are full, broken, read-only or slow, under the coordinator and under workers.

mod cache;
mod coordinator;
mod worker;

use std::sync::OnceLock;

use anyhow::{Result, ensure};
use muster_tests::cluster::Cluster;
use muster_tests::disk::{self, Faults};
use muster_tests::files::{Gates, Ledger};
use muster_tests::process::Program;
use muster_tests::shim::Shim;
use muster_tests::wait::{SOON, until_true};
use muster_tests::{Process, Programs};

use crate::Scenario;

const PRELOADED: &[(&str, Scenario)] = &[
    (
        "disk::a_journal_that_is_full_for_a_moment_holds_the_run_up_and_loses_nothing",
        coordinator::full_for_a_moment,
    ),
    (
        "disk::a_refused_sync_of_the_journal_ends_the_coordinator_before_it_says_anything",
        coordinator::refused_sync,
    ),
    (
        "disk::a_run_whose_own_coordinator_cannot_write_ends_and_is_resumed",
        coordinator::embedded,
    ),
    (
        "disk::a_home_that_becomes_read_only_ends_the_coordinator_and_is_named",
        coordinator::read_only_at_work,
    ),
    (
        "disk::what_agents_print_is_kept_by_their_worker_while_transcripts_take_nothing",
        coordinator::full_transcripts,
    ),
    (
        "disk::a_worker_that_cannot_keep_its_word_does_not_give_it_and_takes_nothing_new",
        worker::broken_outbox,
    ),
    (
        "disk::a_worker_whose_disk_never_recovers_is_seen_to_and_its_work_goes_to_another",
        worker::never_recovers,
    ),
    (
        "disk::writes_that_take_a_few_bytes_at_a_time_change_nothing",
        worker::short_writes,
    ),
    (
        "disk::a_sync_that_stalls_for_less_than_a_lease_loses_none",
        worker::stalled_sync,
    ),
];

const MOUNTED: &[(&str, Scenario)] = &[
    (
        "disk::a_push_into_a_full_disk_leaves_nothing_behind_and_is_made_again",
        coordinator::full_repositories,
    ),
    (
        "disk::a_full_home_ends_the_coordinator_and_with_space_it_goes_on_where_it_was",
        coordinator::full_home,
    ),
    (
        "disk::a_first_start_on_a_full_disk_says_so_and_leaves_nothing",
        coordinator::first_start,
    ),
    (
        "disk::a_run_on_a_nearly_full_disk_is_refused_before_anything_is_made",
        coordinator::nearly_full_run,
    ),
    (
        "disk::a_home_on_a_read_only_disk_is_refused_by_name",
        coordinator::read_only_at_start,
    ),
    (
        "disk::an_agent_that_fills_its_workers_disk_costs_the_others_no_work",
        worker::full_worker,
    ),
    (
        "disk::an_agent_that_leaves_its_workers_disk_full_loses_none_of_its_edits",
        worker::left_full,
    ),
    (
        "disk::a_worker_that_starts_without_room_offers_nothing_says_why_and_waits_for_some",
        worker::no_room_at_start,
    ),
    (
        "disk::a_worker_whose_cache_is_on_a_full_disk_says_so_and_others_do_its_tasks",
        cache::full,
    ),
    (
        "disk::a_worker_takes_no_more_than_its_disk_keeps_room_for_and_says_so",
        worker::room_for_one,
    ),
    (
        "disk::a_cache_on_a_tiny_disk_makes_room_for_each_repository_by_itself",
        cache::tiny,
    ),
    (
        "disk::a_cache_gives_way_to_attempts_on_the_same_disk",
        cache::beside_attempts,
    ),
    (
        "disk::a_cache_that_is_deleted_under_its_worker_costs_no_edit",
        cache::deleted,
    ),
];

/// All scenarios, with the reason for which one cannot be run here.
pub(crate) fn scenarios(programs: &Programs) -> Vec<(&'static str, Option<String>, Scenario)> {
    let no_shim = shim(programs).err();
    let no_mounts = disk::no_mounts();
    let preloaded = PRELOADED
        .iter()
        .map(|(name, scenario)| (*name, no_shim.clone(), *scenario));
    let mounted = MOUNTED
        .iter()
        .map(|(name, scenario)| (*name, no_mounts.clone(), *scenario));
    let unreadable: (_, _, Scenario) = (
        "disk::a_home_that_cannot_be_read_is_refused_by_name",
        coordinator::powerless(programs).err(),
        coordinator::unreadable,
    );
    preloaded.chain(mounted).chain([unreadable]).collect()
}

/// Compiles the library once for all.
fn shim(programs: &Programs) -> Result<Shim, String> {
    static COMPILED: OnceLock<Result<(tempfile::TempDir, Shim), String>> = OnceLock::new();
    let compiled = COMPILED.get_or_init(|| {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let shim = Shim::compile(&programs.source, "disk", folder.path())?;
        Ok((folder, shim))
    });
    match compiled {
        Ok((_, shim)) => Ok(shim.clone()),
        Err(why) => Err(why.clone()),
    }
}

/// Rules for a coordinator that is yet to be started.
fn faulty_coordinator(programs: &Programs, cluster: &mut Cluster) -> Result<Faults> {
    let shim = shim(programs).map_err(anyhow::Error::msg)?;
    let faults = Faults::new(&shim, cluster.folder())?;
    cluster.coordinator_variables(faults.variables());
    Ok(faults)
}

/// A worker whose disk follows rules.
fn faulty_worker(
    programs: &Programs,
    cluster: &Cluster,
    name: &str,
    slots: u32,
) -> Result<(Faults, Process, std::path::PathBuf)> {
    let described = cluster.worker(name, &cluster.address(), slots)?;
    faulty(programs, cluster, described, name)
}

/// Starts a worker whose disk follows rules.
fn faulty(
    programs: &Programs,
    cluster: &Cluster,
    described: Program,
    name: &str,
) -> Result<(Faults, Process, std::path::PathBuf)> {
    let shim = shim(programs).map_err(anyhow::Error::msg)?;
    let folder = cluster.folder().join(format!("faults-{name}"));
    std::fs::create_dir_all(&folder)?;
    let faults = Faults::new(&shim, &folder)?;
    let state = described.folder.join("state");
    let worker = cluster.start_described(&faults.apply(described), name)?;
    Ok((faults, worker, state))
}

/// Where tasks note their starts, and where they wait.
fn notes(cluster: &Cluster) -> Result<(Ledger, Gates)> {
    let folder = cluster.folder();
    Ok((Ledger::new(folder)?, Gates::new(folder)?))
}

/// A run whose tasks have begun.
struct AtWork {
    ledger: Ledger,
    gates: Gates,
    run: String,
    worker: Process,
}

/// Starts a coordinator and a worker of two slots, and waits until a plan's two tasks run.
fn at_work(cluster: &mut Cluster, tasks: &[(&str, bool); 2]) -> Result<AtWork> {
    let (ledger, gates) = notes(cluster)?;
    cluster.serve()?;
    let worker = cluster.start_worker("w", 2)?;
    let run = cluster.submit(&plan(cluster, &ledger, &gates, tasks)?)?;
    started(&ledger, tasks.len())?;
    Ok(AtWork {
        ledger,
        gates,
        run,
        worker,
    })
}

/// A plan of tasks that note their start, wait before their door if they have one, print a line
/// and leave a file.
fn plan(
    cluster: &Cluster,
    ledger: &Ledger,
    gates: &Gates,
    tasks: &[(&str, bool)],
) -> Result<std::path::PathBuf> {
    cluster.seed()?;
    let mut text =
        "name: disk\nrepo: { from: ./seed }\ndefaults: { timeout: 5m }\ntasks:\n".to_owned();
    for (name, gated) in tasks {
        let wait = if *gated {
            gates.wait(name)
        } else {
            "true".to_owned()
        };
        text.push_str(&format!(
            "  - name: {name}\n    run: |\n      {note}\n      {wait}\n      echo this is {name}\n      \
             echo {name} > {name}.txt\n",
            note = ledger.note(),
        ));
    }
    cluster.write_plan("disk.yaml", &text)
}

/// Insists that each task was begun once, in whichever attempt: a lease that never came to its
/// worker is an attempt that began nothing.
fn once_each(ledger: &Ledger, tasks: &[&str]) -> Result<()> {
    let lines = ledger.lines()?;
    let begun: Vec<&str> = lines
        .iter()
        .flat_map(|(line, count)| std::iter::repeat_n(line, *count))
        .filter_map(|line| line.split(' ').next())
        .collect();
    let mut expected = tasks.to_vec();
    expected.sort_unstable();
    ensure!(begun == expected, "starts of attempts: {lines:?}");
    Ok(())
}

fn started(ledger: &Ledger, count: usize) -> Result<()> {
    until_true(&format!("{count} attempts run"), SOON, || {
        Ok(ledger.lines()?.len() >= count)
    })
}

fn bitten(faults: &Faults, rule: usize, count: u64) -> Result<()> {
    until_true(&format!("the disk has refused {count} times"), SOON, || {
        Ok(faults.counts(rule)?.1 >= count)
    })
}

fn succeeded(cluster: &Cluster, run: &str) -> Result<()> {
    let status = cluster.ended(run)?;
    ensure!(status.state() == "succeeded", "{}", status.json);
    Ok(())
}

/// Waits for the end of a coordinator and gives what it said.
fn ended_by_itself(cluster: &mut Cluster) -> Result<String> {
    let process = cluster.coordinator()?;
    let status = process.ended(SOON)?;
    let said = process.errors();
    ensure!(status.code() == Some(1), "{status}\n{said}");
    Ok(said)
}

fn says(text: &str, wanted: &[&str]) -> Result<()> {
    for wanted in wanted {
        ensure!(text.contains(wanted), "nothing of {wanted:?} in:\n{text}");
    }
    Ok(())
}
