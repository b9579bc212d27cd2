//! Pools: workers come when there is work and leave when there is none.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use muster_tests::cluster::{Cluster, Options};
use muster_tests::files::{Gates, Ledger};
use muster_tests::process::Program;
use muster_tests::wait::{LONG, SOON, until_true};
use muster_tests::{Programs, traces};
use serde_json::Value;

use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "a_pool_grows_to_its_maximum_and_back_to_nothing_and_says_why",
        there_and_back,
    ),
    (
        "a_killed_coordinator_finds_its_allocations_again_and_starts_none_twice",
        adopted,
    ),
    (
        "a_pool_whose_workers_fail_to_start_pauses_itself_and_goes_on_when_it_is_told_to",
        pauses_itself,
    ),
    (
        "a_run_with_a_coordinator_of_its_own_leaves_no_worker_of_its_pools",
        embedded,
    ),
    (
        "a_pool_taken_out_of_the_configuration_is_named_until_it_is_forgotten",
        taken_out,
    ),
];

const TASKS: usize = 12;

/// Adds pools to what a cluster's configuration says.
fn configure(cluster: &Cluster, pools: &str) -> Result<()> {
    let path = cluster.home().join("config.toml");
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    std::fs::write(&path, format!("{before}{pools}")).context("write the configuration")
}

const NEAR: &str = "[pools.near]\nkind = \"local\"\nmax = 3\nidle-timeout = \"3s\"\n";
const LAB: &str = "[pools.lab]\nkind = \"external\"\nlabels = [\"site=lab\"]\n";

/// Twelve tasks that note their start and wait before one door; `lab` says whether the last of them
/// asks for a label.
fn plan(cluster: &Cluster, ledger: &Ledger, gates: &Gates, lab: bool) -> Result<PathBuf> {
    cluster.seed()?;
    let mut plan =
        "name: many\nrepo: { from: ./seed }\ndefaults: { timeout: 5m }\ntasks:\n".to_owned();
    for nth in 1..=TASKS {
        let label = if lab && nth == TASKS {
            "    labels: [site=lab]\n"
        } else {
            ""
        };
        plan.push_str(&format!(
            "  - name: t{nth}\n{label}    run: |\n      {note}\n      {wait}\n      \
             echo {nth} > t{nth}.txt\n",
            note = ledger.note(),
            wait = gates.wait("go"),
        ));
    }
    cluster.write_plan("many.yaml", &plan)
}

fn pool(cluster: &Cluster, name: &str) -> Result<Value> {
    cluster
        .ask(["pool", "show", name, "--json"])?
        .success()?
        .json()
}

fn allocations(pool: &Value) -> Vec<&Value> {
    pool["allocations"]
        .as_array()
        .into_iter()
        .flatten()
        .collect()
}

fn ids(pool: &Value) -> BTreeSet<String> {
    let ids = allocations(pool).into_iter();
    ids.filter_map(|held| held["allocation"].as_str().map(str::to_owned))
        .collect()
}

/// Processes of the workers of a pool: they alone are given a token of it.
fn processes(cluster: &Cluster, name: &str) -> BTreeSet<u32> {
    let folder = cluster.home().join("pools").join(name);
    let tokens = format!("{}/A", folder.display());
    traces::mentioning(&tokens).into_iter().collect()
}

fn gone(cluster: &Cluster, name: &str) -> Result<()> {
    until_true("the pool has nothing any more", SOON, || {
        let pool = pool(cluster, name)?;
        Ok(allocations(&pool).is_empty() && processes(cluster, name).is_empty())
    })
}

fn all_once(ledger: &Ledger) -> Result<()> {
    let lines = ledger.lines()?;
    let once: std::collections::BTreeMap<String, usize> =
        (1..=TASKS).map(|nth| (format!("t{nth} 1"), 1)).collect();
    ensure!(lines == once, "starts of attempts: {lines:?}");
    Ok(())
}

fn text(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    Ok(cluster.ask(arguments.to_vec())?.success()?.out)
}

fn there_and_back(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        configure(cluster, &format!("{NEAR}{LAB}"))?;
        let (ledger, gates) = (
            Ledger::new(cluster.folder())?,
            Gates::new(cluster.folder())?,
        );
        cluster.serve()?;
        let listed = text(cluster, &["pool", "list"])?;
        ensure!(
            listed.contains("near") && listed.contains("external"),
            "{listed}"
        );
        ensure!(ids(&pool(cluster, "near")?).is_empty(), "before any work");
        let run = cluster.submit(&plan(cluster, &ledger, &gates, true)?)?;
        until_true("three tasks run", SOON, || Ok(ledger.lines()?.len() >= 3))?;
        let near = pool(cluster, "near")?;
        ensure!(ids(&near).len() == 3, "{near}");
        let workers = cluster.workers()?;
        let of = |worker: &Value| worker["allocation"].as_str().map(str::to_owned);
        let named: BTreeSet<String> = workers.iter().filter_map(of).collect();
        ensure!(named == ids(&near), "{workers:?}");

        let planned = text(cluster, &["pool", "plan"])?;
        for wanted in [
            "near: starts and ends nothing",
            "it starts no more: it has its maximum of 3 allocations",
            "it can never take 1 waiting task: its workers do not carry label site=lab",
        ] {
            ensure!(planned.contains(wanted), "{wanted:?} is not in\n{planned}");
        }
        let why = text(cluster, &["explain", &run, "t12"])?;
        for wanted in [
            "near: never: its workers do not carry label site=lab",
            "lab: people start its workers, and none that is free fits",
        ] {
            ensure!(why.contains(wanted), "{wanted:?} is not in\n{why}");
        }
        let waits = cluster.status(&run)?;
        let waits = waits
            .tasks()
            .find(|task| task["state"] == "ready" && task["name"] != "t12");
        let waits = waits
            .and_then(|task| task["name"].as_str())
            .context("none waits")?;
        let why = text(cluster, &["explain", &run, waits])?;
        ensure!(
            why.contains("near: it has its maximum of 3 allocations"),
            "{why}"
        );

        gates.open("go")?;
        cluster.until(&run, "all but one task are done", LONG, |status| {
            Ok(status.count("succeeded") == 11)
        })?;
        gone(cluster, "near")?;
        // What asks for a label has waited all the time: nobody has started anything for it.
        let told = cluster.ask([
            "token",
            "create",
            "--role",
            "worker",
            "--pool",
            "lab",
            "--out",
            "lab.token",
        ])?;
        told.success()?;
        let state = cluster.folder().join("lab");
        let worker = Program::new(&programs.worker_agent, cluster.folder())
            .args(["--coordinator", &cluster.address(), "--slots", "1"])
            .args(["--label", "site=lab", "--label", "name=lab"])
            .args(["--token-file", "lab.token"])
            .args([OsString::from("--state-dir"), state.into()])
            .var("HOME", cluster.folder());
        let _lab = cluster.start_described(&worker, "lab")?;
        let ended = cluster.ended(&run)?;
        ensure!(ended.state() == "succeeded", "{}", ended.json);
        all_once(&ledger)?;
        ensure!(
            pool(cluster, "near")?["failures"] == 0,
            "a pool that was left alone has not failed"
        );
        let unknown = cluster.ask(["pool", "show", "nar"])?;
        ensure!(
            unknown.code() != 0 && unknown.err.contains("pool list"),
            "{}",
            unknown.err
        );
        Ok(())
    })
}

fn adopted(programs: &Programs) -> Result<()> {
    with_cluster(programs, Some(Options::short_leases()), |cluster| {
        configure(cluster, NEAR)?;
        let (ledger, gates) = (
            Ledger::new(cluster.folder())?,
            Gates::new(cluster.folder())?,
        );
        cluster.serve()?;
        let run = cluster.submit(&plan(cluster, &ledger, &gates, false)?)?;
        until_true("three tasks run", SOON, || Ok(ledger.lines()?.len() >= 3))?;
        let (before, at_work) = (ids(&pool(cluster, "near")?), processes(cluster, "near"));
        ensure!(before.len() == 3, "{before:?}");
        cluster.kill_coordinator()?;
        ensure!(
            processes(cluster, "near").is_superset(&at_work),
            "workers outlive a killed coordinator"
        );
        cluster.serve()?;
        until_true("its workers are back", SOON, || {
            let workers = cluster.workers()?;
            let back = workers.iter().filter(|of| of["state"] == "connected");
            Ok(back.count() == 3)
        })?;
        let after = pool(cluster, "near")?;
        ensure!(ids(&after) == before, "{after}");
        gates.open("go")?;
        let ended = cluster.ended(&run)?;
        ensure!(ended.state() == "succeeded", "{}", ended.json);
        all_once(&ledger)?;
        gone(cluster, "near")?;
        let failures = &pool(cluster, "near")?["failures"];
        ensure!(*failures == 0, "{failures}");
        Ok(())
    })
}

fn pauses_itself(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        configure(
            cluster,
            "[pools.near]\nkind = \"local\"\nmax = 1\nfailures = 2\nidle-timeout = \"3s\"\n",
        )?;
        let (ledger, gates) = (
            Ledger::new(cluster.folder())?,
            Gates::new(cluster.folder())?,
        );
        gates.open("go")?;
        // The place of its workers' state is taken, so each ends at once.
        let folder = cluster.home().join("pools/near");
        for private in [cluster.home().join("pools"), folder.clone()] {
            std::fs::create_dir(&private)?;
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            std::fs::set_permissions(&private, mode)?;
        }
        let obstacle = folder.join("worker");
        std::fs::write(&obstacle, "")?;
        cluster.serve()?;
        let run = cluster.submit(&plan(cluster, &ledger, &gates, false)?)?;
        until_true("the pool has paused itself", SOON, || {
            Ok(!pool(cluster, "near")?["paused"].is_null())
        })?;
        let reason = pool(cluster, "near")?["paused"]["reason"].to_string();
        ensure!(
            reason.contains("2 starts in a row failed, the last one so:"),
            "{reason}"
        );
        let why = text(cluster, &["explain", &run, "t1"])?;
        ensure!(
            why.contains("near: it is paused: 2 starts in a row"),
            "{why}"
        );
        let told = text(cluster, &["status"])?;
        ensure!(told.contains("pool resume near"), "{told}");
        let shown = text(cluster, &["pool", "show", "near"])?;
        ensure!(shown.contains("paused"), "{shown}");
        std::fs::remove_file(&obstacle)?;
        ensure!(ledger.lines()?.is_empty(), "nothing has run");
        cluster.ask(["pool", "resume", "near"])?.success()?;
        let ended = cluster.ended(&run)?;
        ensure!(ended.state() == "succeeded", "{}", ended.json);
        all_once(&ledger)?;
        cluster
            .ask(["pool", "pause", "near", "--reason", "the night"])?
            .success()?;
        let paused = pool(cluster, "near")?;
        ensure!(paused["paused"]["reason"] == "the night", "{paused}");
        gone(cluster, "near")
    })
}

fn embedded(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        configure(
            cluster,
            "slots = 0\n[pools.near]\nkind = \"local\"\nmax = 3\nidle-timeout = \"1h\"\n",
        )?;
        let (ledger, gates) = (
            Ledger::new(cluster.folder())?,
            Gates::new(cluster.folder())?,
        );
        gates.open("go")?;
        let plan = plan(cluster, &ledger, &gates, false)?;
        let ended = cluster.ask(["run", &plan.to_string_lossy()])?.success()?;
        all_once(&ledger)?;
        ensure!(
            !ended.err.contains("could not be given back"),
            "{}",
            ended.err
        );
        let left = processes(cluster, "near");
        ensure!(left.is_empty(), "left: {left:?}");
        Ok(())
    })
}

fn taken_out(programs: &Programs) -> Result<()> {
    with_cluster(programs, Some(Options::short_leases()), |cluster| {
        let path = cluster.home().join("config.toml");
        let without = std::fs::read_to_string(&path).unwrap_or_default();
        let near = "[pools.near]\nkind = \"local\"\nmax = 3\nmin = 1\n";
        configure(cluster, near)?;
        cluster.serve()?;
        let joined = |cluster: &Cluster| {
            until_true("its worker is there", SOON, || {
                let workers = cluster.workers()?;
                Ok(workers.iter().any(|of| of["state"] == "connected"))
            })
        };
        joined(cluster)?;
        let refused = cluster.ask(["pool", "forget", "near"])?;
        ensure!(
            refused.code() != 0 && refused.err.contains("take its section out"),
            "{}",
            refused.err
        );
        cluster.kill_coordinator()?;
        std::fs::write(&path, &without)?;
        cluster.serve()?;
        let told = cluster.coordinator()?.errors();
        ensure!(
            told.contains("not configured any more") && told.contains("near"),
            "{told}"
        );
        joined(cluster)?;
        let listed = text(cluster, &["pool", "list"])?;
        ensure!(listed.contains("not configured"), "{listed}");
        let checked = cluster.ask(["doctor"])?.out;
        ensure!(
            checked.contains("near not configured any more"),
            "{checked}"
        );
        for refused in [&["pool", "resume", "near"][..], &["pool", "forget", "near"]] {
            let refused = cluster.ask(refused.to_vec())?;
            ensure!(
                refused.code() != 0 && refused.err.contains("section back"),
                "{}",
                refused.err
            );
        }
        ensure!(ids(&pool(cluster, "near")?).len() == 1, "it is still there");

        let forget = ["pool", "forget", "near", "--even-if-they-run", "--json"];
        let forgotten = cluster.ask(forget)?.success()?.json()?;
        ensure!(forgotten["externals"][0] == "A1", "{forgotten}");
        let listed = cluster.ask(["pool", "list", "--json"])?.success()?.json()?;
        ensure!(listed["pools"] == serde_json::json!([]), "{listed}");
        let left = processes(cluster, "near");
        ensure!(left.len() == 1, "nobody has ended it: {left:?}");

        // Its token opens nothing any more, so it leaves when it has to come back.
        cluster.kill_coordinator()?;
        cluster.serve()?;
        until_true("it has left", SOON, || {
            Ok(processes(cluster, "near").is_empty())
        })
    })
}
