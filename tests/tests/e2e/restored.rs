//! A home is lost and put back from a backup, while its workers go on.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use muster_tests::Programs;
use muster_tests::cluster::Cluster;
use muster_tests::files::{Gates, Ledger};
use muster_tests::process::Program;
use muster_tests::wait::{SOON, until_true};

use crate::deaths::{SHORT, gated_plan, started};
use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "a_home_restored_from_a_backup_goes_on_with_the_workers_of_the_lost_one",
        restored_home,
    ),
    (
        "a_stopped_coordinators_home_is_saved_and_put_back",
        stopped_home,
    ),
    ("backups_made_while_tasks_push_are_each_whole", busy_home),
];

/// What a task says when there is a backup already.
const AFTER_BACKUP: &str = "said-after-the-backup";

fn restored_home(programs: &Programs) -> Result<()> {
    with_cluster(programs, Some(SHORT), |cluster| {
        let (ledger, gates) = (
            Ledger::new(cluster.folder())?,
            Gates::new(cluster.folder())?,
        );
        cluster.serve()?;
        let _one = cluster.start_worker("one", 2)?;
        let _two = cluster.start_worker("two", 2)?;
        let plan = gated_plan(cluster, &ledger, &gates)?;
        let text = std::fs::read_to_string(&plan)?;
        let (word, wait) = (gates.wait("word"), gates.wait("d"));
        let says = format!("{word}\n      echo {AFTER_BACKUP}\n      {wait}");
        std::fs::write(&plan, text.replace(&wait, &says))?;
        let run = cluster.submit(&plan)?;
        gates.open("a")?;
        started(&ledger, 4)?;

        // `a` is accepted; `b`, `c` and `d` are at work.
        let backup = cluster.folder().join("backup");
        let backup_text = backup.to_string_lossy().into_owned();
        let saved = cluster.ask(["backup", &backup_text, "--json"])?.success()?;
        ensure!(
            saved.json()?["figures"]["live_runs"] == 1,
            "saved: {}",
            saved.out
        );

        // This output is acknowledged to its worker, and the backup does not have it.
        gates.open("word")?;
        let said = || -> Result<bool> {
            let log = cluster.ask(["logs", &run, "d"])?.success()?;
            Ok(log.out.contains(AFTER_BACKUP))
        };
        until_true("`d` has said its word", SOON, said)?;

        // What comes now is lost: two results, and two leases that workers will still hold.
        gates.open("b")?;
        gates.open("c")?;
        started(&ledger, 6)?;
        let before = leases(cluster, &run)?;
        cluster.kill_coordinator()?;
        std::fs::rename(cluster.home(), cluster.folder().join("lost"))?;
        let restored = cluster.ask(["restore", &backup_text])?.success()?;
        ensure!(
            restored.err.contains("restored and verified"),
            "{}",
            restored.err
        );
        cluster.serve()?;

        let known: BTreeSet<u64> = leases(cluster, &run)?.into_iter().collect();
        for gate in ["d", "e", "f"] {
            gates.open(gate)?;
        }
        let status = cluster.ended(&run)?;
        ensure!(status.state() == "succeeded", "{}", status.json);

        // What the backup knew to be at work was kept, what was lost was done once more, and the
        // lost life's later leases counted for nothing.
        let lines = ledger.lines()?;
        let starts = lines
            .iter()
            .map(|(line, count)| (line.as_str(), *count))
            .collect::<Vec<_>>();
        let wanted = [
            ("a 1", 1),
            ("b 1", 1),
            ("b 2", 1),
            ("c 1", 1),
            ("c 2", 1),
            ("d 1", 1),
        ];
        ensure!(
            wanted.iter().all(|start| starts.contains(start)),
            "starts of attempts: {lines:?}"
        );
        ensure!(status.attempts("d")?.len() == 1, "{}", status.task("d")?);
        let log = cluster.ask(["logs", &run, "d"])?.success()?;
        ensure!(
            log.out.matches(AFTER_BACKUP).count() == 1,
            "what a worker still held is not there again: {}",
            log.out
        );
        let after = leases(cluster, &run)?;
        let all: BTreeSet<u64> = after.iter().copied().collect();
        ensure!(
            all.len() == after.len(),
            "a lease was granted twice: {after:?}"
        );
        let lost: BTreeSet<u64> = before
            .iter()
            .copied()
            .filter(|id| !known.contains(id))
            .collect();
        ensure!(!lost.is_empty(), "no lease was lost: {before:?}, {known:?}");
        ensure!(
            lost.is_disjoint(&all),
            "an id of the lost life was given again: {lost:?}, {all:?}"
        );
        fsck(cluster, &status.json)
    })
}

fn stopped_home(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let plan = cluster.plan("first.yaml");
        let plan = plan.to_string_lossy();
        cluster.ask(["run", &*plan, "--json"])?.success()?;
        let listed = cluster.ask(["status", "--json"])?.success()?.json()?;
        let backup = cluster.folder().join("saved/backup");
        let backup = backup.to_string_lossy().into_owned();
        cluster.ask(["backup", &backup])?.success()?;

        let refused = cluster.ask(["backup", &backup])?;
        ensure!(
            refused.code() == 2 && refused.err.contains("is there already"),
            "{}",
            refused.err
        );
        let refused = cluster.ask(["restore", &backup])?;
        ensure!(
            refused.code() == 2 && refused.err.contains("--home PATH"),
            "{}",
            refused.err
        );
        std::fs::rename(cluster.home(), cluster.folder().join("lost"))?;
        cluster.ask(["restore", &backup])?.success()?;
        let restored = cluster.ask(["status", "--json"])?.success()?.json()?;
        ensure!(listed["runs"] == restored["runs"], "{listed}\n{restored}");
        let log = cluster.ask(["logs", "@last"])?.success()?;
        ensure!(!log.out.is_empty(), "no log");
        let status = cluster.ask(["status", "@last", "--json"])?.success()?;
        fsck(cluster, &status.json()?)
    })
}

fn busy_home(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let plan = cluster.plan("hundred.yaml");
        let plan = plan.to_string_lossy();
        let mut running = cluster
            .call(["run", &*plan, "--slots", "4", "--json"])
            .start(&cluster.logs(), "run")?;
        until_true("a journal is there", SOON, || {
            Ok(cluster.home().join("journal.db").exists())
        })?;
        let mut batches = Vec::new();
        while running.runs()? {
            let number = batches.len();
            let backup = cluster.folder().join(format!("backup-{number}"));
            let backup = backup.to_string_lossy().into_owned();
            let saved = cluster.ask(["backup", &backup, "--json"])?.success()?;
            // Restoring reads everything once more, and git walks all of it.
            let home = cluster.folder().join(format!("restored-{number}"));
            let home = home.to_string_lossy().into_owned();
            cluster
                .ask(["restore", &backup, "--home", &home])?
                .success()?;
            batches.extend(saved.json()?["figures"]["last_batch"].as_u64());
            std::fs::remove_dir_all(&backup)?;
            std::fs::remove_dir_all(&home)?;
        }
        ensure!(running.ended(SOON)?.success(), "{}", running.errors());
        ensure!(
            batches.len() >= 2 && batches.is_sorted() && batches.first() < batches.last(),
            "batches saved: {batches:?}"
        );
        Ok(())
    })
}

/// Lists the leases that were granted, in order.
fn leases(cluster: &Cluster, run: &str) -> Result<Vec<u64>> {
    let mut granted = Vec::new();
    let status = cluster.status(run)?;
    for task in ["a", "b", "c", "d", "e", "f"] {
        for attempt in status.attempts(task)? {
            granted.push(
                attempt["lease"]
                    .as_u64()
                    .or_else(|| attempt["lease"].as_str()?.parse().ok())
                    .with_context(|| format!("no lease in {attempt}"))?,
            );
        }
    }
    Ok(granted)
}

fn fsck(cluster: &Cluster, status: &serde_json::Value) -> Result<()> {
    let name = status["repository"].as_str().context("no repository")?;
    let path = cluster.hosted(name)?;
    Program::new(std::path::Path::new("git"), &path)
        .args(["fsck", "--strict", "--full", "--no-dangling"])
        .var("HOME", cluster.folder().join("user"))
        .var("GIT_DIR", path.clone())
        .run(&cluster.logs(), SOON)?
        .success()?;
    Ok(())
}
