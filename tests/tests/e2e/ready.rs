//! A worker that looks at its machine before it leases anything.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use muster_tests::Programs;
use muster_tests::process::{Output, Program};
use muster_tests::wait::SOON;

use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "a_machine_is_checked_for_a_worker_and_nothing_is_leased",
        checked,
    ),
    (
        "a_worker_that_no_wait_would_help_ends_at_its_start_and_says_what_would",
        no_git,
    ),
];

/// Gives verdict and finding of one check.
fn check(output: &Output, name: &str) -> Result<(String, String)> {
    let listed = output.json()?;
    let all = listed["checks"].as_array().context("no checks")?;
    let found = all.iter().find(|check| check["check"] == name);
    let found = found.with_context(|| format!("no check {name} in {listed}"))?;
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    if text("verdict") == "fail" {
        ensure!(!text("advice").is_empty(), "no way out of {found}");
    }
    Ok((text("verdict"), text("found")))
}

fn checked(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        cluster.serve()?;
        let worker = cluster.worker("w", &cluster.address(), 1)?;
        let state = worker.folder.join("state");
        let (described, logs) = (worker.clone(), cluster.logs());
        let asked = |more: &[&str]| -> Result<Output> {
            let worker = described.clone().args(["--check", "--json"]);
            worker.args(more.iter().copied()).run(&logs, SOON)
        };
        let plan = "tasks:\n  - { name: t, run: 'true' }\n";
        let run = cluster.submit(&cluster.write_plan("p.yaml", plan)?)?;
        let well = asked(&[])?.success()?;
        for name in ["git", "state", "token", "coordinator", "clock"] {
            ensure!(check(&well, name)?.0 == "ok", "{}", well.out);
        }
        ensure!(check(&well, "token")?.1.contains("pool"), "{}", well.out);
        ensure!(check(&well, "sandbox")?.0 == "warn", "{}", well.out);
        ensure!(!state.exists(), "it made a folder");
        ensure!(cluster.workers()?.is_empty(), "it joined");
        let status = cluster.status(&run)?;
        ensure!(status.attempts("t")?.is_empty(), "it leased a task");

        // While a worker with the same folder is at work it changes nothing for it.
        let _worker = cluster.start_worker("w", 1)?;
        ensure!(cluster.ended(&run)?.state() == "succeeded", "no work");
        asked(&[])?.success()?;
        ensure!(cluster.workers()?.len() == 1, "it joined");

        let tight = asked(&["--disk-limit", "900000GB"])?.success()?;
        ensure!(check(&tight, "free space")?.0 == "warn", "{}", tight.out);
        let missing = asked(&["--agent", "codex=/nowhere/codex"])?.expect(1)?;
        ensure!(
            check(&missing, "agents")?.1.contains("/nowhere/codex"),
            "{}",
            missing.out
        );
        let token = worker.folder.join("token");
        let of = |token: &Path, state: &Path| {
            Program::new(&worker.path, &worker.folder)
                .args(["--check", "--json", "--coordinator", &cluster.address()])
                .args(["--token-file".as_ref(), token.as_os_str()])
                .args(["--state-dir".as_ref(), state.as_os_str()])
                .run(&cluster.logs(), SOON)
        };
        let nowhere = of(&cluster.folder().join("nowhere.token"), &state)?.expect(1)?;
        let found = check(&nowhere, "token")?;
        ensure!(
            found.0 == "fail" && found.1.contains("nowhere.token"),
            "{}",
            nowhere.out
        );
        ensure!(check(&nowhere, "git")?.0 == "ok", "{}", nowhere.out);
        let other = asked(&["--pool", "other"])?.expect(1)?;
        ensure!(check(&other, "token")?.0 == "fail", "{}", other.out);

        std::fs::copy(cluster.token("viewer")?, &token)?;
        let viewer = of(&token, &state)?.expect(1)?;
        ensure!(
            viewer.out.contains("not a worker's join token")
                && viewer.out.contains("coordinator token create"),
            "{}",
            viewer.out
        );
        // What no worker could have for its state.
        let newer = cluster.folder().join("newer");
        std::fs::create_dir(&newer)?;
        let of_newer = r#"{"worker":"w","incarnation":1,"format":9,"written_by":"9.0"}"#;
        std::fs::write(newer.join("identity.json"), of_newer)?;
        let newer = of(&token, &newer)?.expect(1)?;
        let found = check(&newer, "state")?;
        ensure!(
            found.0 == "fail" && found.1.contains("Muster 9.0"),
            "{}",
            newer.out
        );

        cluster.kill_coordinator()?;
        let gone = asked(&[])?.expect(1)?;
        ensure!(check(&gone, "coordinator")?.0 == "fail", "{}", gone.out);
        ensure!(check(&gone, "git")?.0 == "ok", "{}", gone.out);
        Ok(())
    })
}

fn no_git(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        cluster.serve()?;
        let worker = cluster.worker("w", &cluster.address(), 1)?;
        let nothing: PathBuf = cluster.folder().join("nothing");
        std::fs::create_dir(&nothing)?;
        let ended = worker
            .var("PATH", &nothing)
            .run(&cluster.logs(), SOON)?
            .expect(2)?;
        ensure!(
            ended.err.contains("git:") && ended.err.contains("install git 2.41"),
            "{}",
            ended.err
        );
        ensure!(cluster.workers()?.is_empty(), "it joined");
        Ok(())
    })
}
