//! Disks of workers, and of both sides.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use muster_tests::Programs;
use muster_tests::cluster::Options;
use muster_tests::disk::{self, Mounted, Rule};
use muster_tests::wait::{SOON, until_true};

use super::{
    bitten, faulty, faulty_coordinator, faulty_worker, notes, once_each, plan, says, started,
    succeeded,
};
use crate::with_cluster;

pub(super) fn broken_outbox(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let (ledger, gates) = notes(cluster)?;
        cluster.serve()?;
        let (faults, worker, state) = faulty_worker(programs, cluster, "w", 2)?;
        let tasks = [("a", true), ("b", true), ("c", false)];
        let run = cluster.submit(&plan(cluster, &ledger, &gates, &tasks)?)?;
        started(&ledger, 2)?;
        let state = state.canonicalize()?;
        // The probe of the disk fails as well.
        faults.set(0, &Rule::fail(disk::SYNC, disk::EIO, &state))?;
        gates.open("a")?;
        bitten(&faults, 0, 4)?;
        let status = cluster.status(&run)?;
        ensure!(
            ["leased", "running"].contains(&status.task_state("a")?),
            "it was told: {}",
            status.json
        );
        ensure!(
            ledger.lines()?.len() == 2,
            "a task was begun: {:?}",
            ledger.lines()?
        );
        says(&worker.errors(), &["taking nothing new", "free some space"])?;
        faults.clear(0)?;
        started(&ledger, 3)?;
        gates.open("b")?;
        succeeded(cluster, &run)?;
        once_each(&ledger, &["a", "b", "c"])
    })
}

pub(super) fn never_recovers(programs: &Programs) -> Result<()> {
    with_cluster(programs, Some(Options::short_leases()), |cluster| {
        let (ledger, gates) = notes(cluster)?;
        cluster.serve()?;
        let described = cluster.worker("w", &cluster.address(), 1)?;
        let described = described.args(["--disk-patience", "5s"]);
        let (faults, mut worker, state) = faulty(programs, cluster, described, "w")?;
        let tasks = [("a", true), ("b", false)];
        let run = cluster.submit(&plan(cluster, &ledger, &gates, &tasks)?)?;
        started(&ledger, 1)?;
        faults.set(
            0,
            &Rule::fail(disk::SYNC, disk::EIO, &state.canonicalize()?),
        )?;
        gates.open("a")?;
        let complains = "its disk cannot be worked on: ";
        until_true("the coordinator knows of it", SOON, || {
            let known = cluster.worker_named("w")?;
            let trouble = known.and_then(|known| Some(known["trouble"].as_str()?.to_owned()));
            Ok(trouble.is_some_and(|trouble| trouble.starts_with(complains)))
        })?;
        for task in ["a", "b"] {
            let said = cluster.ask(["explain", &run, task])?.success()?;
            says(
                &said.out,
                &[
                    "takes nothing new: its disk",
                    "mend what those workers complain about",
                ],
            )?;
        }
        let listed = cluster.ask(["workers"])?.success()?;
        says(&listed.out, &["TROUBLE", complains])?;
        let status = worker.ended(SOON)?;
        ensure!(status.code() == Some(1), "{status}");
        says(&worker.errors(), &["has failed for 5 s", "is given up"])?;
        let _other = cluster.start_worker("x", 1)?;
        succeeded(cluster, &run)?;
        let status = cluster.status(&run)?;
        let attempts = status.attempts("a")?;
        ensure!(
            attempts.len() == 2 && attempts[0]["failure"]["class"] == "worker_lost",
            "{}",
            status.json
        );
        once_each(&ledger, &["a", "a", "b"])
    })
}

pub(super) fn short_writes(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let (ledger, gates) = notes(cluster)?;
        let short = |below: &Path| Rule {
            calls: disk::WRITE,
            short_bytes: 11,
            below: below.to_owned(),
            ..Rule::default()
        };
        let coordinators = faulty_coordinator(programs, cluster)?;
        coordinators.set(0, &short(&cluster.home()))?;
        cluster.serve()?;
        let (workers, _worker, state) = faulty_worker(programs, cluster, "w", 2)?;
        workers.set(0, &short(&state.canonicalize()?))?;
        let run = cluster.submit(&plan(
            cluster,
            &ledger,
            &gates,
            &[("a", false), ("b", false)],
        )?)?;
        succeeded(cluster, &run)?;
        ensure!(
            coordinators.counts(0)?.1 > 0 && workers.counts(0)?.1 > 0,
            "no write was short"
        );
        let said = cluster.ask(["logs", &run, "a"])?.success()?;
        says(&said.out, &["this is a"])?;
        // What was written can be read.
        cluster.kill_coordinator()?;
        coordinators.clear(0)?;
        cluster.serve()?;
        succeeded(cluster, &run)
    })
}

pub(super) fn stalled_sync(programs: &Programs) -> Result<()> {
    let options = Options {
        lease_ttl: Duration::from_secs(6),
        lease_grace: Duration::from_secs(1),
        heartbeat_interval: Duration::from_millis(500),
    };
    with_cluster(programs, Some(options), |cluster| {
        let (ledger, gates) = notes(cluster)?;
        let faults = faulty_coordinator(programs, cluster)?;
        cluster.serve()?;
        let (workers, _worker, state) = faulty_worker(programs, cluster, "w", 3)?;
        let state = state.canonicalize()?;
        let tasks = [("a", true), ("b", true), ("c", true)];
        let run = cluster.submit(&plan(cluster, &ledger, &gates, &tasks)?)?;
        started(&ledger, 3)?;
        let slow = |below: &Path| Rule::slow_sync(Duration::from_millis(50), below);
        let stall = |seconds: u64, below: &Path| Rule {
            times: 1,
            ..Rule::slow_sync(Duration::from_secs(seconds), below)
        };
        faults.set(1, &slow(&cluster.home()))?;
        workers.set(1, &slow(&state))?;
        // First the worker's disk, for as long as its leases live. Then the coordinator's, which
        // renews nothing meanwhile: so for less by the worker's margin and its heartbeat.
        workers.set(0, &stall(6, &state))?;
        gates.open("a")?;
        bitten(&workers, 0, 1)?;
        faults.set(0, &stall(3, &cluster.home()))?;
        gates.open("b")?;
        bitten(&faults, 0, 1)?;
        gates.open("c")?;
        succeeded(cluster, &run)?;
        let status = cluster.status(&run)?;
        for task in ["a", "b", "c"] {
            ensure!(status.attempts(task)?.len() == 1, "{}", status.json);
        }
        once_each(&ledger, &["a", "b", "c"])
    })
}

pub(super) fn left_full(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        cluster.serve()?;
        let described = cluster.worker("w", &cluster.address(), 1)?;
        let state = described.folder.join("state");
        std::fs::create_dir(&state)?;
        let _disk = Mounted::small(&state, 48 << 20)?;
        let _worker = cluster.start_described(&described, "w")?;
        cluster.seed()?;
        let text = "name: left\nrepo: { from: ./seed }\ndefaults: { timeout: 5m }\ntasks:\n  - name: hog\n    \
                    run: |\n      echo an edit > edit.txt\n      cat /dev/zero > $TMPDIR/ballast\n      exit 3\n";
        let run = cluster.submit(&cluster.write_plan("left.yaml", text)?)?;
        let status = cluster.ended(&run)?;
        ensure!(status.state() == "failed", "{}", status.json);
        let attempt = &status.attempts("hog")?[0];
        ensure!(
            attempt["failure"]["class"] == "agent_failed",
            "{}",
            status.json
        );
        let refs = cluster.hosted_refs(&status)?;
        let kept = format!("refs/muster/wip/{run}/hog/1");
        ensure!(refs.contains(&kept), "no {kept} in {refs:?}");
        Ok(())
    })
}

pub(super) fn full_worker(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let (ledger, gates) = notes(cluster)?;
        cluster.serve()?;
        let described = cluster.worker("w", &cluster.address(), 2)?;
        let state = described.folder.join("state");
        std::fs::create_dir(&state)?;
        let _disk = Mounted::small(&state, 48 << 20)?;
        let worker = cluster.start_described(&described, "w")?;
        let note = ledger.note();
        let filled = cluster.folder().join("filled");
        cluster.seed()?;
        let text = format!(
            "name: hog\nrepo: {{ from: ./seed }}\ndefaults: {{ timeout: 5m }}\ntasks:\n  - name: hog\n    \
             run: |\n      {note}\n      cat /dev/zero > $TMPDIR/ballast || true\n      touch {filled}\n      \
             {wait}\n      rm $TMPDIR/ballast\n  - name: neighbour\n    run: |\n      {note}\n      {next}\n      \
             echo done > work.txt || touch work.txt\n  - name: later\n    run: |\n      {note}\n",
            filled = filled.display(),
            wait = gates.wait("hog"),
            next = gates.wait("neighbour"),
        );
        let run = cluster.submit(&cluster.write_plan("hog.yaml", &text)?)?;
        started(&ledger, 2)?;
        until_true("the disk is full", SOON, || Ok(filled.exists()))?;
        until_true("the worker says so", SOON, || {
            Ok(worker.errors().contains("taking nothing new"))
        })?;
        gates.open("neighbour")?;
        until_true("the commit cannot be made", SOON, || {
            Ok(worker.errors().contains("waiting for the disk"))
        })?;
        ensure!(
            ledger.lines()?.len() == 2,
            "a task was begun: {:?}",
            ledger.lines()?
        );
        gates.open("hog")?;
        succeeded(cluster, &run)?;
        once_each(&ledger, &["hog", "neighbour", "later"])
    })
}

pub(super) fn no_room_at_start(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let (ledger, gates) = notes(cluster)?;
        cluster.serve()?;
        let described = cluster.worker("w", &cluster.address(), 1)?;
        let state = described.folder.join("state");
        std::fs::create_dir(&state)?;
        let _disk = Mounted::small(&state, 48 << 20)?;
        let ballast = state.join("ballast");
        std::fs::write(&ballast, vec![1; 40 << 20])?;
        let run = cluster.submit(&plan(cluster, &ledger, &gates, &[("a", false)])?)?;
        let worker = cluster.start_described(&described, "w")?;
        until_true("the coordinator knows why", SOON, || {
            let known = cluster.worker_named("w")?;
            let trouble = known.and_then(|known| Some(known["trouble"].as_str()?.to_owned()));
            Ok(trouble.is_some_and(|trouble| trouble.contains("bytes are free")))
        })?;
        says(&worker.errors(), &["free space", "make room"])?;
        let said = cluster.ask(["explain", &run, "a"])?.success()?;
        says(&said.out, &["takes nothing new: its disk"])?;
        ensure!(
            ledger.lines()?.is_empty(),
            "it began: {:?}",
            ledger.lines()?
        );
        std::fs::remove_file(ballast)?;
        succeeded(cluster, &run)?;
        let status = cluster.status(&run)?;
        ensure!(status.attempts("a")?.len() == 1, "{}", status.json);
        once_each(&ledger, &["a"])
    })
}

pub(super) fn room_for_one(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let (ledger, gates) = notes(cluster)?;
        cluster.serve()?;
        let described = cluster.worker("w", &cluster.address(), 2)?;
        let state = described.folder.join("state");
        std::fs::create_dir(&state)?;
        let _disk = Mounted::small(&state, 200 << 20)?;
        let described = described.args(["--disk-reserve", "100MB"]);
        let _worker = cluster.start_described(&described, "w")?;
        let tasks = [("a", true), ("b", true)];
        let run = cluster.submit(&plan(cluster, &ledger, &gates, &tasks)?)?;
        started(&ledger, 1)?;
        until_true("the coordinator knows why", SOON, || {
            let known = cluster.worker_named("w")?;
            let trouble = known.and_then(|known| Some(known["trouble"].as_str()?.to_owned()));
            Ok(trouble.is_some_and(|trouble| trouble.contains("no room for another attempt")))
        })?;
        let begun = ledger.lines()?;
        let (first, second) = match begun.keys().any(|line| line.starts_with("a ")) {
            true => ("a", "b"),
            false => ("b", "a"),
        };
        let said = cluster.ask(["explain", &run, second])?.success()?;
        says(
            &said.out,
            &["no room for another attempt", "--disk-reserve"],
        )?;
        ensure!(ledger.lines()?.len() == 1, "{:?}", ledger.lines()?);
        gates.open(first)?;
        started(&ledger, 2)?;
        gates.open(second)?;
        succeeded(cluster, &run)?;
        once_each(&ledger, &["a", "b"])
    })
}
