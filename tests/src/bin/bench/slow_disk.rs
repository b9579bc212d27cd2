//! The same measurements on a disk whose syncs take longer, in one run, as a ratio: what group
//! commit is for.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use muster_tests::disk::{Faults, Rule};
use muster_tests::shim::Shim;

use crate::Arguments;
use crate::measure::HOME_PREFIX;

/// Measures hops and throughput as the disk is, and with every sync below homes delayed.
pub(crate) fn compare(arguments: &Arguments, delay: Duration) -> Result<Vec<String>> {
    let folder = tempfile::tempdir()?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let shim = Shim::compile(&source, "disk", folder.path()).map_err(anyhow::Error::msg)?;
    let faults = Faults::new(&shim, folder.path())?;
    let homes = std::env::temp_dir().join(HOME_PREFIX);
    let mut lines = Vec::new();
    for part in ["hops", "throughput"] {
        faults.clear(0)?;
        let quick = figures(part, &faults)?;
        faults.set(0, &Rule::slow_sync(delay, &homes))?;
        let slow = figures(part, &faults)?;
        let (syncs, _) = faults.counts(0)?;
        ensure!(syncs > 0, "no sync was delayed");
        for ((name, quick), (_, slow)) in quick.iter().zip(&slow) {
            let ratio = slow / quick.max(f64::MIN_POSITIVE);
            lines.push(format!(
                "{name}: {quick:.0} as the disk is, {slow:.0} with {delay:?} a sync: {ratio:.2} times as much"
            ));
        }
        let tasks = match part {
            "hops" => arguments.hops,
            _ => arguments.tasks,
        };
        let tasks_a_sync = u64::try_from(tasks)? / syncs.max(1);
        lines.push(format!(
            "{part}: {syncs} syncs for {tasks} tasks, {tasks_a_sync} whole tasks a sync"
        ));
    }
    Ok(lines)
}

/// Lets a process of its own measure a part.
fn figures(part: &str, faults: &Faults) -> Result<Vec<(String, f64)>> {
    let program = std::env::current_exe().context("find this program")?;
    let output = Command::new(program)
        .args(["--part", part, "--figures"])
        .args(std::env::args_os().skip(1))
        .envs(faults.variables())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(
        output.status.success(),
        "the part {part} failed: {}",
        output.status
    );
    let text = String::from_utf8_lossy(&output.stdout);
    let figure = |line: &str| -> Result<(String, f64)> {
        let (name, value) = line
            .split_once(' ')
            .with_context(|| format!("{part}: {line}"))?;
        let value = value.parse().with_context(|| format!("{part}: {line}"))?;
        Ok((name.to_owned(), value))
    };
    text.lines().map(figure).collect()
}
