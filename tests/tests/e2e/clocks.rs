//! Wall clocks that are wrong where they are read, and the shim that makes them so.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use muster_tests::Programs;
use muster_tests::clocks::Clocks;
use muster_tests::cluster::Options;
use muster_tests::files::{Gates, Ledger};
use muster_tests::process::Program;
use muster_tests::wait::{SOON, until_true};

use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[
    ("a_process_sees_the_clocks_that_it_is_shown", shown_clocks),
    (
        "a_coordinator_that_starts_with_a_wrong_wall_clock_keeps_what_runs",
        wrong_at_start,
    ),
    (
        "workers_whose_wall_clocks_are_an_hour_wrong_do_their_tasks",
        wrong_at_workers,
    ),
];

/// Prints the wall clock twice, the monotonic clock and CLOCK_BOOTTIME in seconds.
const CODE: &str = r#"
#include <stdio.h>
#include <sys/time.h>
#include <time.h>
int main(void) {
    struct timespec mono, boot;
    struct timeval day;
    clock_gettime(CLOCK_MONOTONIC, &mono);
    clock_gettime(CLOCK_BOOTTIME, &boot);
    gettimeofday(&day, NULL);
    printf("%ld %ld %ld %ld\n", time(NULL), day.tv_sec, mono.tv_sec, boot.tv_sec);
    return 0;
}
"#;

fn shown_clocks(programs: &Programs) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let (code, path) = (folder.join("seen.c"), folder.join("seen"));
    std::fs::write(&code, CODE)?;
    let compiler = std::env::var_os("CC").unwrap_or_else(|| OsString::from("cc"));
    Program::new(Path::new(&compiler), folder)
        .args([Path::new("-o"), &path, &code])
        .run(folder, SOON)?
        .success()?;
    let clocks = Clocks::new(&programs.source, folder, "a")?;
    let plain = Program::new(&path, folder);
    let shown = clocks.apply(plain.clone());
    let seen = |program: &Program| -> Result<Vec<i64>> {
        let printed = program.run(folder, SOON)?.success()?.out;
        let numbers = printed.split_whitespace().map(str::parse);
        Ok(numbers.collect::<Result<_, _>>()?)
    };
    let asleep = 1_000_i64;
    for (wall, asleep) in [(0, 0), (3_600, asleep), (-3_600, asleep)] {
        clocks.wall(wall)?;
        clocks.slept(Duration::from_secs(asleep.unsigned_abs()))?;
        let (was, now) = (seen(&plain)?, seen(&shown)?);
        let shifts = [wall, wall, -asleep, 0];
        let right = was.iter().zip(&now).zip(shifts);
        let mut right = right.map(|((was, now), shift)| now - was - shift);
        ensure!(
            right.all(|off| (0..60).contains(&off)),
            "shifted by {shifts:?}: {was:?} became {now:?}"
        );
    }
    Ok(())
}

/// A start is when the coordinator reads the wall clock: for the time that all decisions are made
/// with, and for its certificate.
fn wrong_at_start(programs: &Programs) -> Result<()> {
    // No lease is to run out here.
    let terms = Options {
        lease_ttl: Duration::from_secs(60),
        ..Options::short_leases()
    };
    with_cluster(programs, Some(terms), |cluster| {
        let folder = cluster.folder().to_owned();
        let (ledger, gates) = (Ledger::new(&folder)?, Gates::new(&folder)?);
        let clocks = Clocks::new(&programs.source, &folder, "coordinator")?;
        cluster.coordinator_variables(clocks.variables());
        cluster.serve()?;
        let worker = cluster.start_worker("one", 1)?;
        let plan = format!(
            "tasks:\n  - name: t\n    run: {}; {}\n  - {{ name: u, depends_on: [t], run: {} }}\n",
            ledger.note(),
            gates.wait("end"),
            format_args!("'{}'", ledger.note()),
        );
        let run = cluster.submit(&cluster.write_plan("p.yaml", &plan)?)?;
        until_true("the agent works", SOON, || Ok(!ledger.lines()?.is_empty()))?;
        for (session, wall) in [(2, 3_600), (3, -3_600), (4, 0)] {
            cluster.kill_coordinator()?;
            clocks.wall(wall)?;
            cluster.serve()?;
            until_true("the worker has a session again", SOON, || {
                let said = worker.errors();
                let sessions = said.lines().filter(|line| line.contains("session begins"));
                Ok(sessions.count() == session)
            })?;
        }
        gates.open("end")?;
        let status = cluster.ended(&run)?;
        ensure!(status.state() == "succeeded", "{}", status.json);
        let lines = ledger.lines()?;
        let once = ["t 1", "u 1"].map(|line| (line.to_owned(), 1));
        ensure!(lines == once.into(), "starts of attempts: {lines:?}");
        // Times of the journal never go back, whatever the wall clock was at a start.
        let watched = cluster.ask(["watch", &run, "--json"])?.success()?;
        let mut last = jiff::Timestamp::MIN;
        let mut compared = 0;
        for line in watched.out.lines() {
            let event: serde_json::Value = serde_json::from_str(line)?;
            if let Some(at) = event["at"].as_str().filter(|_| event["work"].is_null()) {
                let at: jiff::Timestamp = at.parse()?;
                ensure!(at >= last, "{line} after {last}");
                last = at;
                compared += 1;
            }
        }
        ensure!(compared > 5, "only {compared} times in\n{}", watched.out);
        Ok(())
    })
}

fn wrong_at_workers(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        cluster.serve()?;
        cluster.seed()?;
        let mut workers = vec![];
        for (name, wall) in [("fast", 3_600), ("slow", -3_600)] {
            let clocks = Clocks::new(&programs.source, cluster.folder(), name)?;
            clocks.wall(wall)?;
            let worker = clocks.apply(cluster.worker(name, &cluster.address(), 1)?);
            let worker = cluster.start_described(&worker, name)?;
            let said = worker.errors();
            let at = said.split_whitespace().find_map(|word| word.parse().ok());
            let at: jiff::Timestamp = at.with_context(|| format!("no time in {said}"))?;
            let off = at.as_second() - jiff::Timestamp::now().as_second() - wall;
            ensure!(off.abs() < 600, "its clock is not wrong: {said}");
            workers.push((clocks, worker));
        }
        let task = |name: &str, on: &str, after: &str| {
            format!(
                "  - {{ name: {name}, run: \"date >> dates\", labels: [name={on}], depends_on: {after}, \
                 verify: [test -s dates] }}\n"
            )
        };
        let tasks = [
            task("a", "fast", "[]"),
            task("b", "slow", "[a]"),
            task("c", "fast", "[b]"),
        ];
        let plan = format!("repo: {{ from: ./seed }}\ntasks:\n{}", tasks.concat());
        let run = cluster.submit(&cluster.write_plan("p.yaml", &plan)?)?;
        let ended = cluster.ended(&run)?;
        ensure!(ended.state() == "succeeded", "{}", ended.json);
        cluster.ask(["audit"])?.success()?;
        Ok(())
    })
}
