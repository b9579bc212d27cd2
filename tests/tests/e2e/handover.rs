//! Machines that come and go: what runs on one that leaves goes on at another.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use muster_tests::cluster::{Cluster, Options};
use muster_tests::wait::{LONG, SOON, until_true};
use muster_tests::{Process, Programs};
use rustix::process::Signal;

use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "work_on_a_machine_that_is_taken_away_goes_on_elsewhere_from_where_it_was",
        noticed,
    ),
    (
        "work_on_a_machine_whose_time_is_over_goes_on_elsewhere_from_where_it_was",
        timed,
    ),
    ("a_worker_with_nothing_to_do_ends_well", idle),
];

const SHORT: Options = Options::short_leases();
/// What a hand-over of usual work may take.
const IN_TIME: Duration = Duration::from_secs(30);

/// An agent that can go on from its edits and a program that cannot; each has one try.
fn plan(cluster: &Cluster) -> Result<PathBuf> {
    cluster.seed()?;
    let mark = cluster.folder().to_string_lossy().into_owned();
    let plan = format!(
        r#"
name: moving
repo: {{ from: ./seed }}
defaults: {{ timeout: 5m, retries: 0, env: {{ E2E_MARK: {mark} }} }}
tasks:
  - name: talks
    agent: scripted
    prompt: Write two files.
    run: |
      read -r prompt; echo session s1 m
      if test -e one; then echo two > two; echo done; exit; fi
      echo one > one
      (setsid sh -c 'trap "" TERM HUP; while :; do sleep 1; done' &)
      touch {mark}/talks; read -r never
  - name: runs
    run: |
      if [ "$MUSTER_ATTEMPT" != 1 ]; then test ! -e draft && echo done > result; exit; fi
      echo draft > draft; touch {mark}/runs
      while :; do sleep 1; done
"#
    );
    cluster.write_plan("moving.yaml", &plan)
}

/// Has both tasks at work on a worker that was started with some arguments.
fn at_work(cluster: &mut Cluster, arguments: &[&str]) -> Result<(Process, String)> {
    cluster.serve()?;
    let one = cluster.worker("one", &cluster.address(), 2)?;
    // So that only the hand-over keeps the edits.
    let one = one.args(["--wip-interval", "10m"]);
    let one = cluster.start_described(&one.args(arguments), "one")?;
    let run = cluster.submit(&plan(cluster)?)?;
    let folder = cluster.folder().to_owned();
    until_true("both tasks are at work", SOON, || {
        Ok(folder.join("talks").exists() && folder.join("runs").exists())
    })?;
    Ok((one, run))
}

/// Insists that the worker ends well and leaves nothing, and that the run goes on elsewhere.
fn goes_on(cluster: &Cluster, one: &mut Process, run: &str, class: &str) -> Result<()> {
    let mark = cluster.folder().to_string_lossy().into_owned();
    let ended = one.ended(LONG)?;
    let said = one.errors();
    ensure!(ended.success(), "{ended}: {said}");
    let left = muster_tests::traces::with_variable("E2E_MARK", &mark)?;
    ensure!(left.is_empty(), "{left:?} live on: {said}");
    ensure!(said.contains("handed over 2 leases"), "{said}");
    let status = cluster.status(run)?;
    for task in ["talks", "runs"] {
        let attempts = status.attempts(task)?;
        ensure!(attempts.len() == 1, "{}", status.task(task)?);
        ensure!(attempts[0]["failure"]["class"] == class, "{}", attempts[0]);
    }
    let _two = cluster.start_worker("two", 2)?;
    let status = cluster.ended(run)?;
    ensure!(status.state() == "succeeded", "{}", status.json);
    for (task, continues) in [("talks", Some(1)), ("runs", None)] {
        let attempts = status.attempts(task)?;
        ensure!(attempts.len() == 2, "{}", status.task(task)?);
        ensure!(attempts[0]["worker"] != attempts[1]["worker"], "{status:?}");
        ensure!(attempts[1]["continues"].as_u64() == continues, "{status:?}");
    }
    let diff = cluster.ask(["diff", run])?.success()?.out;
    for (line, is_there) in [
        ("+one", true),
        ("+two", true),
        ("+done", true),
        ("+draft", false),
    ] {
        ensure!(diff.contains(line) == is_there, "{line}: {diff}");
    }
    Ok(())
}

fn noticed(programs: &Programs) -> Result<()> {
    with_cluster(programs, Some(SHORT), |cluster| {
        let (mut one, run) = at_work(cluster, &[])?;
        let since = Instant::now();
        one.signal(Signal::USR1)?;
        // As batch systems do in the end; it has more important things to do.
        one.signal(Signal::TERM)?;
        until_true("the worker ends", LONG, || Ok(!one.runs()?))?;
        let took = since.elapsed();
        ensure!(took < IN_TIME, "it took {took:?}");
        goes_on(cluster, &mut one, &run, "preempted")
    })
}

fn timed(programs: &Programs) -> Result<()> {
    with_cluster(programs, Some(SHORT), |cluster| {
        let unix = std::time::UNIX_EPOCH.elapsed()?.as_secs();
        // Time to start and to begin the work, and as much as a hand-over takes.
        let ends = unix + 15 + IN_TIME.as_secs();
        let ends_at = format!("@{ends}");
        let arguments = ["--ends-at", &ends_at, "--hand-over", "30s"];
        let (mut one, run) = at_work(cluster, &arguments)?;
        until_true("the worker ends", LONG, || Ok(!one.runs()?))?;
        let now = std::time::UNIX_EPOCH.elapsed()?.as_secs();
        ensure!(now < ends, "it ended {} s too late", now - ends);
        goes_on(cluster, &mut one, &run, "walltime")
    })
}

fn idle(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        cluster.serve()?;
        let one = cluster.worker("one", &cluster.address(), 1)?;
        let one = one.args(["--idle-exit", "3s"]).var("SLURM_JOB_ID", "77");
        let mut one = cluster.start_described(&one, "one")?;
        let worker = cluster.worker_named("one")?.context("not listed")?;
        let id = worker["worker"].as_str().unwrap_or_default();
        ensure!(id.contains("-77-"), "{worker}");
        let ended = one.ended(LONG)?;
        let said = one.errors();
        ensure!(ended.success(), "{ended}: {said}");
        ensure!(said.contains("--idle-exit"), "{said}");
        Ok(())
    })
}
