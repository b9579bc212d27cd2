//! What is printed.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::json;

use crate::Arguments;
use crate::verdict::Figures;
use crate::world::World;

/// Prints a line for people.
#[expect(clippy::print_stdout, reason = "it is what this program is for")]
pub(crate) fn say(json: bool, line: &str) {
    if !json {
        println!("{line}");
    }
}

/// Prints a line about a failure.
#[expect(clippy::print_stderr, reason = "there is nobody else to tell")]
pub(crate) fn complain(line: &str) {
    eprintln!("{line}");
}

/// Memory that a coordinator or worker may take at most, in KiB; hundreds of tasks need far less.
const RESIDENT_MAX: u64 = 400 * 1024;
/// File descriptors that one may have open at most; a coordinator keeps up to 512 transcripts open.
const DESCRIPTORS_MAX: u64 = 800;

/// Prints figures and failures; true if there is no failure.
pub(crate) fn print(arguments: &Arguments, world: &World, figures: &Figures) -> Result<bool> {
    let sizes = world.known().sizes.clone();
    for (name, grown) in &sizes {
        let peak = grown.peak;
        if peak.resident_kib > RESIDENT_MAX || peak.descriptors > DESCRIPTORS_MAX {
            world.fail(format!("growth: {name} reached {peak:?}"));
        }
    }
    let recoveries = recoveries(world, figures);
    let refused = pushes_refused(world);
    let known = world.known();
    let seconds = world.begun.elapsed().as_secs_f64();
    let sizes: BTreeMap<&String, serde_json::Value> = sizes
        .iter()
        .map(|(name, grown)| {
            let size = |size: crate::processes::Size| {
                json!({ "rss_kib": size.resident_kib, "fds": size.descriptors })
            };
            let value = json!({
                "start": size(grown.start), "peak": size(grown.peak), "end": size(grown.end),
            });
            (name, value)
        })
        .collect();
    let faults: u64 = known
        .counts
        .iter()
        .filter(|(what, _)| what.starts_with("fault "))
        .map(|(_, count)| count)
        .sum();
    let whole = json!({
        "seed": arguments.seed,
        "seconds": seconds,
        "faults": faults,
        "counts": known.counts,
        "runs": figures.runs,
        "tasks": figures.tasks,
        "attempts": figures.attempts,
        "failed_attempts": figures.failed,
        "leases": figures.leases,
        "pushes_refused": refused,
        "outlived_unguarded": figures.unguarded,
        "transcripts_compared": figures.transcripts,
        "coordinator_recovery_ms": recoveries,
        "sizes": sizes,
        "failures": known.failures,
    });
    if arguments.json {
        print_json(&whole)?;
    } else {
        say(false, &format!("{seconds:.1} s, {faults} faults"));
        table("faults, calls and ends", known.counts.iter());
        table("runs", figures.runs.iter());
        table("tasks", figures.tasks.iter());
        say(false, &format!("attempts: {}", figures.attempts));
        table("attempts that failed, by class", figures.failed.iter());
        table("leases, by their end", figures.leases.iter());
        say(
            false,
            &format!("transcripts compared: {}", figures.transcripts),
        );
        say(
            false,
            &format!("pushes refused, most of them late: {refused}"),
        );
        say(
            false,
            &format!(
                "attempts that outlived their lease, their supervisor, guard and worker all being hit: {}",
                figures.unguarded
            ),
        );
        let mut sorted = recoveries;
        sorted.sort_unstable();
        say(
            false,
            &format!(
                "coordinator killed or stopped until its successor's first grant: {} times, median \
                 {} ms, longest {} ms (the pause before the start included)",
                sorted.len(),
                sorted.get(sorted.len() / 2).copied().unwrap_or_default(),
                sorted.last().copied().unwrap_or_default()
            ),
        );
        for (name, size) in &sizes {
            say(false, &format!("{name}: {size}"));
        }
        for (failure, number) in known.failures.iter().zip(1..) {
            complain(&format!("FAILURE {number}: {failure}"));
        }
        let count = |counts: &BTreeMap<String, u64>| counts.values().sum::<u64>();
        let succeeded = figures.tasks.get("succeeded").copied().unwrap_or_default();
        let verdict = match known.failures.len() {
            0 => "no failure".to_owned(),
            1 => "1 FAILURE".to_owned(),
            number => format!("{number} FAILURES"),
        };
        say(
            false,
            &format!(
                "soak, seed {}: {faults} faults in {} s, {} runs and {} attempts checked, {} of {} \
                 tasks succeeded; {seconds:.0} s in all: \
                 {verdict}",
                arguments.seed,
                arguments.seconds,
                count(&figures.runs),
                figures.attempts,
                succeeded,
                count(&figures.tasks),
            ),
        );
    }
    Ok(known.failures.is_empty())
}

fn table<'a>(title: &str, rows: impl Iterator<Item = (&'a String, &'a u64)>) {
    say(false, &format!("{title}:"));
    for (what, count) in rows {
        say(false, &format!("  {count:6}  {what}"));
    }
}

#[expect(clippy::print_stdout, reason = "it is what this program is for")]
fn print_json(value: &serde_json::Value) -> Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}

/// For each death of a coordinator, the time until the next grant of any lease.
fn recoveries(world: &World, figures: &Figures) -> Vec<u64> {
    let mut grants = figures.grants.clone();
    grants.sort_unstable();
    let known = world.known();
    let next = |death: &crate::world::Death| {
        if death.started == 0 {
            return None;
        }
        let first = grants.partition_point(|grant| *grant < death.started);
        Some(grants.get(first)?.saturating_sub(death.died))
    };
    known.deaths.iter().filter_map(next).collect()
}

/// Counts the pushes that coordinators say they refused: mostly those of leases that were over.
fn pushes_refused(world: &World) -> usize {
    let log = std::fs::read(world.cluster.logs().join("coordinator.err")).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    log.matches("a push was refused").count()
}
