//! What must hold when everything has ended.

use std::collections::BTreeSet;

use anyhow::Result;

use crate::world::{DONE, World};

/// Looks at everything that is left, removes it, and gives what is not as it should be.
pub(crate) fn judge(world: &mut World) -> Result<Vec<String>> {
    let mut failures = Vec::new();
    let executed = world.ledger.lines()?;
    // `TASK ATTEMPT` of everything that the coordinator knows of.
    let mut known = BTreeSet::new();
    for run in world.runs.clone() {
        let status = world.cluster.status(&run)?;
        if status.state() != "succeeded" {
            failures.push(format!(
                "lost: {run} is {}: {}",
                status.state(),
                status.json
            ));
        }
        for task in status.tasks() {
            let name = task["name"].as_str().unwrap_or_default();
            let attempts = task["attempts"].as_array().map_or(&[][..], Vec::as_slice);
            let mut accepted = 0;
            for attempt in attempts {
                let number = attempt["number"].as_u64().unwrap_or_default();
                let line = format!("{name} {number}");
                let state = attempt["state"].as_str().unwrap_or("?");
                let class = attempt["failure"]["class"].as_str().unwrap_or_default();
                let end = format!("attempts {state} {class}");
                *world.counts.entry(end.trim_end().to_owned()).or_default() += 1;
                if state == "succeeded" {
                    accepted += 1;
                    if executed.get(&format!("{line}{DONE}")) != Some(&1) {
                        failures.push(format!(
                            "lost: {line} was accepted and has not run to its end"
                        ));
                    }
                }
                let worker = attempt["worker"].as_str().unwrap_or_default();
                if state != "succeeded" && !world.hit.iter().any(|id| worker.contains(id)) {
                    failures.push(format!("{line} failed where nothing was wrong: {attempt}"));
                }
                known.insert(line);
            }
            if task["state"] != "succeeded" || accepted != 1 {
                failures.push(format!("{name} was accepted {accepted} times: {task}"));
            }
        }
    }
    for (line, times) in &executed {
        if *times != 1 {
            failures.push(format!("twice: {line} ran {times} times"));
        }
        if !known.contains(line.strip_suffix(DONE).unwrap_or(line)) {
            failures.push(format!("hidden: {line} ran, and nobody knows of it"));
        }
    }
    let made = world
        .counts
        .keys()
        .any(|what| what.starts_with("interface"));
    if made && world.cloud.moto.faltered().is_empty() {
        failures.push("no call met a fault: nothing was tried".to_owned());
    }
    let audit = world.cluster.ask(["audit"])?;
    if audit.code() != 0 {
        failures.push(format!("the audit says: {}{}", audit.out, audit.err));
    }
    if let Err(error) = world.cloud.destroy() {
        failures.push(format!("cost: {error:#}"));
    }
    Ok(failures)
}
