//! What must not be left over: processes, slots, folders, locks, temporary files.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use muster_tests::wait::SOON;
use serde_json::Value;

use crate::evidence::Ledger;
use crate::load;
use crate::processes;
use crate::world::World;

/// What a worker's state folder holds between leases.
const OF_WORKERS: [&str; 6] = [
    "ca.pem",
    "cache",
    "identity.json",
    "leases",
    "lock",
    "outbox.log",
];
/// Findings of an audit that are printed; the folder is kept for the others.
const FINDINGS_SHOWN: usize = 20;
/// Where this machine's second hierarchy of control groups may be.
const CGROUPS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// Waits until every worker is connected, has all slots free, and has nothing left of any lease.
///
/// # Errors
/// A command fails, or it takes too long: the message says what was left.
pub(crate) fn wait_for_idle_workers(world: &World, patience: Duration) -> Result<()> {
    let begun = Instant::now();
    loop {
        let left = busy(world)?;
        if left.is_empty() {
            return Ok(());
        }
        anyhow::ensure!(!world.over(), "interrupted");
        anyhow::ensure!(
            begun.elapsed() < patience,
            "leak: after {patience:?} without faults there is still: {}",
            left.join("; ")
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn busy(world: &World) -> Result<Vec<String>> {
    let output = world.insist(&["workers", "--json"])?;
    let mut left: Vec<String> = load::workers(&output)?
        .iter()
        .filter(|worker| worker["state"] != "connected" || worker["leases"] != 0)
        .map(Value::to_string)
        .collect();
    for state in states(world) {
        let leases = state.join("leases");
        for entry in entries(&leases) {
            left.push(entry.display().to_string());
        }
    }
    Ok(left)
}

fn states(world: &World) -> Vec<PathBuf> {
    let parts = world.parts();
    let states = parts.workers.iter().map(|worker| worker.state.clone());
    states.collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

/// Looks for ended children that coordinator or workers have not waited for.
pub(crate) fn zombies(world: &World) {
    let parents: Vec<(String, rustix::process::Pid)> = {
        let parts = world.parts();
        std::iter::once(&parts.coordinator)
            .chain(parts.workers.iter().map(|worker| &worker.part))
            .filter_map(|part| Some((part.name.clone(), part.process.as_ref()?.id().ok()?)))
            .collect()
    };
    let dead = || {
        let below = processes::below();
        let found = below.into_iter().filter(|seen| seen.state == 'Z');
        found.filter_map(|seen| {
            let parent = parents.iter().find(|(_, pid)| seen.parent == Some(*pid))?;
            Some((seen.pid, format!("{} of {}", seen.shown(), parent.0)))
        })
    };
    // One that has ended just now is no leak: its parent gets some time for it.
    let mut left: Vec<_> = dead().collect();
    let begun = Instant::now();
    while !left.is_empty() && begun.elapsed() < SOON {
        std::thread::sleep(Duration::from_millis(50));
        let still: Vec<_> = dead().map(|(pid, _)| pid).collect();
        left.retain(|(pid, _)| still.contains(pid));
    }
    for (_, shown) in left {
        world.fail(format!("zombie: {shown}"));
    }
}

/// Looks for processes once every part has ended; none may be left.
pub(crate) fn processes(world: &World) {
    let begun = Instant::now();
    loop {
        let left = processes::below();
        for seen in &left {
            processes::bury(seen);
        }
        let left: Vec<_> = left.iter().filter(|seen| seen.state != 'Z').collect();
        if left.is_empty() {
            return;
        }
        if begun.elapsed() > Duration::from_secs(3) {
            for seen in left {
                let work = seen.work();
                world.fail(format!("orphan: {} of {work:?}", seen.shown()));
            }
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Looks for files and folders that nobody needs any more, once every part has ended.
pub(crate) fn files(world: &World, ledger: &Ledger) {
    for state in states(world) {
        for entry in entries(&state) {
            let name = entry.file_name().unwrap_or_default().to_string_lossy();
            if !OF_WORKERS.contains(&&*name) {
                world.fail(format!("leak: {} is left over", entry.display()));
            }
        }
        sweep(world, &state);
    }
    sweep(world, &world.cluster.home());
    let marks = ledger.values().flat_map(|noted| &noted.begins);
    for (_, mark) in marks {
        for cgroups in CGROUPS {
            let folder = Path::new(cgroups).join(format!("muster-{mark}"));
            if folder.exists() {
                world.fail(format!(
                    "leak: control group {} is left over",
                    folder.display()
                ));
            }
        }
    }
}

/// Finds what git or an atomic replacement leaves when it is killed.
fn sweep(world: &World, root: &Path) {
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let in_git = folder.join("HEAD").exists() && folder.join("objects").is_dir()
            || folder
                .ancestors()
                .any(|above| above.extension().is_some_and(|end| end == "git") && above != folder);
        for path in entries(&folder) {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let temporary = name.starts_with("tmp_")
                || name.starts_with(".tmp")
                || name.starts_with("incoming-")
                || name.ends_with(".tmp")
                || name.starts_with("deleted-");
            // Beside the repositories of the cache lie locks that are held, not left.
            let lock = in_git && name.ends_with(".lock");
            if temporary || lock {
                world.fail(format!("leak: {} is left over", path.display()));
            } else if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            }
        }
    }
}

/// Runs `audit` on the home and on the workers' folders.
///
/// # Errors
/// It cannot be run, or finds something.
pub(crate) fn audit(world: &World) -> Result<()> {
    let mut words = vec!["audit".to_owned(), "--json".to_owned()];
    for state in states(world) {
        words.push("--worker-state".to_owned());
        words.push(state.display().to_string());
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let output = world.call(&words).context("`audit` did not end")?;
    let findings: Vec<&str> = output
        .out
        .lines()
        .filter(|line| !line.contains("\"level\":\"note\""))
        .take(FINDINGS_SHOWN)
        .collect();
    anyhow::ensure!(
        output.code() == 0,
        "audit: exit code {}\n{}\n{}",
        output.code(),
        findings.join("\n"),
        output.err
    );
    Ok(())
}
