//! Every plan that users are given as an example, run with its outcome.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use muster_tests::cluster::Cluster;
use muster_tests::process::Process;
use muster_tests::{Programs, RunStatus};
use serde_json::Value;

use crate::{Scenario, codex_par, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[(
    "every_plan_that_is_given_as_an_example_runs_to_the_outcome_that_it_promises",
    all,
)];

/// All of them together take half a minute on two slow cores.
const DEADLINE: Duration = Duration::from_secs(120);

/// A line of `outcomes.txt`.
struct Outcome {
    code: i32,
    states: BTreeMap<String, u64>,
}

fn outcomes(text: &str) -> Result<BTreeMap<String, Outcome>> {
    let mut found = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let read = || -> Option<(String, Outcome)> {
            let (name, rest) = line.split_once(' ')?;
            let (code, counts) = rest.trim_start().split_once(' ')?;
            let states = counts.split(',').map(|count| {
                let (number, state) = count.trim().split_once(' ')?;
                Some((state.to_owned(), number.parse().ok()?))
            });
            let states = states.collect::<Option<_>>()?;
            let code = code.parse().ok()?;
            Some((name.to_owned(), Outcome { code, states }))
        };
        let (name, outcome) = read().with_context(|| format!("outcomes.txt says {line:?}"))?;
        found.insert(name, outcome);
    }
    Ok(found)
}

/// Copies a folder, so that the examples lie where no repository is.
fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

fn all(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let plans = cluster.folder().join("user/plans");
        copy(&programs.source.join("tests/plans"), &plans)?;
        let outcomes = outcomes(&std::fs::read_to_string(plans.join("outcomes.txt"))?)?;
        let mut there = Vec::new();
        for entry in std::fs::read_dir(&plans)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            there.extend(name.ends_with(".yaml").then_some(name));
        }
        there.sort();
        ensure!(
            there.iter().eq(outcomes.keys()),
            "tests/plans holds {there:?}, and its outcomes.txt is about {:?}",
            outcomes.keys()
        );

        cluster.serve()?;
        let codex = codex_par::stand_in(cluster.folder())?;
        let plain = cluster.worker("plain", &cluster.address(), 6)?;
        let plain = plain.var("CODEX_BIN", codex.as_os_str());
        let _plain = cluster.start_described(&plain, "plain")?;
        let gpu = cluster
            .worker("gpu", &cluster.address(), 2)?
            .args(["--label", "gpu", "--label", "disk=fast"])
            .args(["--resource", "gpus=1", "--resource", "memory_mib=4096"]);
        let _gpu = cluster.start_described(&gpu, "gpu")?;

        // All at once: most of them wait most of the time.
        let start = |name: &String| -> Result<(String, Process)> {
            let plan = plans.join(name);
            let run = cluster.call(["run", &plan.to_string_lossy(), "--json"]);
            Ok((name.clone(), run.start(&cluster.logs(), name)?))
        };
        let running = there.iter().map(start).collect::<Result<Vec<_>>>()?;
        let mut wrong = Vec::new();
        for (name, process) in running {
            let wanted = outcomes.get(&name).context("no outcome")?;
            if let Err(error) = as_promised(cluster, &name, process, wanted) {
                wrong.push(format!("{name}: {error:#}"));
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    })
}

fn as_promised(
    cluster: &Cluster,
    name: &str,
    mut process: Process,
    wanted: &Outcome,
) -> Result<()> {
    let code = process.ended(DEADLINE)?.code();
    ensure!(
        code == Some(wanted.code),
        "exit code {code:?}, not {}\n{}",
        wanted.code,
        process.errors()
    );
    let printed = process.printed();
    let last: Value = serde_json::from_str(printed.lines().last().unwrap_or_default())?;
    let run = last["run"].as_str().context("a result without run")?;
    let status = cluster.status(run)?;
    let mut states = BTreeMap::new();
    for task in status.tasks() {
        let state = task["state"].as_str().unwrap_or("?").to_owned();
        *states.entry(state).or_insert(0) += 1;
    }
    ensure!(states == wanted.states, "{states:?}");
    shows(name, &status)
}

/// Looks for what an example is there to show, where its states alone do not prove it.
fn shows(name: &str, status: &RunStatus) -> Result<()> {
    match name {
        "claims.yaml" => {
            let (menu, prices) = (span(status, "menu")?, span(status, "prices")?);
            ensure!(
                menu.1 <= prices.0 || prices.1 <= menu.0,
                "`menu` and `prices` ran at once: {menu:?}, {prices:?}"
            );
        }
        "workers.yaml" => {
            let (train, tune) = (span(status, "train")?, span(status, "tune")?);
            ensure!(
                train.1 <= tune.0 || tune.1 <= train.0,
                "two used the one graphics processor: {train:?}, {tune:?}"
            );
            ensure!(status.worker_of("train")? == status.worker_of("tune")?);
        }
        "retries.yaml" => {
            for (task, classes) in [
                ("flaky", &["agent_failed", "agent_failed"][..]),
                ("silent", &["stalled"]),
                ("slow", &["timed_out"]),
            ] {
                let attempts = status.attempts(task)?;
                let failed = attempts.iter().filter(|one| one["state"] == "failed");
                let found: Vec<_> = failed.map(|one| &one["failure"]["class"]).collect();
                ensure!(found == classes, "{task}: {found:?}");
            }
        }
        "branches.yaml" => ensure!(status.json["integration"].is_null(), "{}", status.json),
        "conflict.yaml" => ensure!(status.state() == "failed", "{}", status.json),
        _ => {}
    }
    Ok(())
}

/// When a task's attempt began and ended, as text that sorts by time.
fn span(status: &RunStatus, task: &str) -> Result<(String, String)> {
    let Some(attempt) = status.attempts(task)?.last() else {
        bail!("{task} has no attempt");
    };
    let at = |key: &str| {
        let text = attempt[key].as_str();
        text.map(str::to_owned)
            .with_context(|| format!("{task} has no {key}"))
    };
    Ok((at("granted_at")?, at("ended_at")?))
}
