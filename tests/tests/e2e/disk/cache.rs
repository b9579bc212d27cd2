//! The cache of repositories: on a disk that is full, on a tiny one, and gone.

use std::path::Path;

use anyhow::{Result, ensure};
use muster_tests::Programs;
use muster_tests::cluster::Cluster;
use muster_tests::disk::Mounted;
use muster_tests::process::Program;
use muster_tests::wait::{SOON, until_true};

use super::{notes, once_each, plan, says, started, succeeded};
use crate::with_cluster;

/// A worker of one slot with a disk of its own for its cache.
fn with_cache(cluster: &Cluster, name: &str, bytes: u64) -> Result<(Program, Mounted)> {
    let described = cluster.worker(name, &cluster.address(), 1)?;
    let cache = described.folder.join("state/cache");
    std::fs::create_dir_all(&cache)?;
    let disk = Mounted::small(&cache, bytes)?;
    Ok((described, disk))
}

/// Gives the seed of repositories a file that cannot be made smaller.
fn large_seed(folder: &Path, bytes: usize) -> Result<()> {
    let mut noise = vec![0; bytes];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut noise)?;
    std::fs::create_dir_all(folder)?;
    Ok(std::fs::write(folder.join("noise.bin"), noise)?)
}

pub(super) fn full(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let (ledger, gates) = notes(cluster)?;
        cluster.serve()?;
        let (described, disk) = with_cache(cluster, "w", 32 << 20)?;
        // Notes fit, and hardly any repository does.
        let ballast = disk.fill()?;
        {
            let file = std::fs::File::options().write(true).open(&ballast)?;
            file.set_len(file.metadata()?.len() - (3 << 20))?;
        }
        let worker = cluster.start_described(&described, "w")?;
        let tasks = [("a", false), ("b", false)];
        let run = cluster.submit(&plan(cluster, &ledger, &gates, &tasks)?)?;
        until_true("the coordinator knows why", SOON, || {
            let known = cluster.worker_named("w")?;
            let trouble = known.and_then(|known| Some(known["trouble"].as_str()?.to_owned()));
            Ok(trouble.is_some_and(|trouble| trouble.contains("state/cache")))
        })?;
        let said = cluster.ask(["explain", &run, "a"])?.success()?;
        says(&said.out, &["takes nothing new: its disk", "state/cache"])?;
        says(&worker.errors(), &["taking nothing new"])?;
        // Others do the work meanwhile.
        {
            let _other = cluster.start_worker("x", 1)?;
            succeeded(cluster, &run)?;
        }
        let status = cluster.status(&run)?;
        for task in ["a", "b"] {
            ensure!(status.attempts(task)?.len() == 1, "{}", status.json);
        }
        once_each(&ledger, &["a", "b"])?;
        // With room it works by itself.
        std::fs::remove_file(ballast)?;
        let again = cluster.write_plan(
            "again.yaml",
            "name: again\nrepo: { from: ./seed }\ntasks:\n  - { name: c, run: echo c > c.txt }\n",
        )?;
        let run = cluster.submit(&again)?;
        succeeded(cluster, &run)
    })
}

pub(super) fn tiny(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        cluster.serve()?;
        // Each repository fits, and no two of them.
        let (described, _disk) = with_cache(cluster, "w", 40 << 20)?;
        let _worker = cluster.start_described(&described, "w")?;
        for name in ["one", "two", "three"] {
            large_seed(&cluster.folder().join(name), 20 << 20)?;
            let text = format!(
                "name: {name}\nrepo: {{ from: ./{name} }}\ndefaults: {{ timeout: 5m }}\ntasks:\n  - name: t\n    \
                 run: echo {name} > own.txt\n"
            );
            let run = cluster.submit(&cluster.write_plan(&format!("{name}.yaml"), &text)?)?;
            succeeded(cluster, &run)?;
            let status = cluster.status(&run)?;
            ensure!(status.attempts("t")?.len() == 1, "{}", status.json);
        }
        Ok(())
    })
}

pub(super) fn beside_attempts(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        cluster.serve()?;
        // Its limit is far above what the disk has, and all of it is the disk of the attempts, too.
        let described = cluster.worker("w", &cluster.address(), 1)?;
        std::fs::create_dir_all(described.folder.join("state"))?;
        let _disk = Mounted::small(&described.folder.join("state"), 40 << 20)?;
        let _worker = cluster.start_described(&described, "w")?;
        for name in ["one", "two", "three", "four", "five"] {
            large_seed(&cluster.folder().join(name), 6 << 20)?;
            let text = format!(
                "name: {name}\nrepo: {{ from: ./{name} }}\ntasks:\n  - {{ name: t, run: echo {name} > own.txt }}\n"
            );
            let run = cluster.submit(&cluster.write_plan(&format!("{name}.yaml"), &text)?)?;
            succeeded(cluster, &run)?;
            let status = cluster.status(&run)?;
            ensure!(status.attempts("t")?.len() == 1, "{}", status.json);
        }
        Ok(())
    })
}

pub(super) fn deleted(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let (ledger, gates) = notes(cluster)?;
        cluster.serve()?;
        let described = cluster.worker("w", &cluster.address(), 1)?;
        let cache = described.folder.join("state/cache");
        let worker = cluster.start_described(&described, "w")?;
        let tasks = [("a", true), ("b", false)];
        let run = cluster.submit(&plan(cluster, &ledger, &gates, &tasks)?)?;
        started(&ledger, 1)?;
        std::fs::remove_dir_all(&cache)?;
        gates.open("a")?;
        succeeded(cluster, &run).map_err(|error| error.context(worker.errors()))?;
        let status = cluster.status(&run)?;
        // What the agent had written is published by the attempt that wrote it.
        for task in ["a", "b"] {
            ensure!(status.attempts(task)?.len() == 1, "{}", status.json);
        }
        says(&worker.errors(), &["the cache has gone under an attempt"])?;
        once_each(&ledger, &["a", "b"])
    })
}
