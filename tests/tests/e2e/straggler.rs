//! Frontier scheduling: a slow task holds up its own chain and nothing else.

use anyhow::{Context as _, Result, ensure};
use muster_tests::{Programs, RunStatus};

use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[(
    "a_run_with_stragglers_takes_its_critical_path_not_its_waves",
    straggler,
)];

const CHAINS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
const WAVES: usize = 5;

fn straggler(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let plan = cluster.plan("straggler.yaml");
        let output = cluster
            .ask(["run", &plan.to_string_lossy(), "--slots", "8", "--json"])?
            .success()?;
        let run = output.last_json()?["run"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let status = cluster.status(&run)?;
        // What the attempts took on this machine just now is the measure, not what they should take.
        let mut took = Vec::new();
        let (mut first, mut last) = (f64::MAX, f64::MIN);
        for chain in CHAINS {
            let mut row = Vec::new();
            for wave in 1..=WAVES {
                let (from, to) = span(&status, &format!("{chain}{wave}"))?;
                first = first.min(from);
                last = last.max(to);
                row.push(to - from);
            }
            took.push(row);
        }
        let waves: f64 = (0..WAVES)
            .map(|wave| took.iter().map(|row| row[wave]).fold(0.0, f64::max))
            .sum();
        let critical = took.iter().map(|row| row.iter().sum()).fold(0.0, f64::max);
        let whole = last - first;
        ensure!(
            whole < (critical + waves) / 2.0,
            "it took {whole:.2} s; the critical path {critical:.2} s, the waves {waves:.2} s"
        );
        Ok(())
    })
}

/// When a task's attempt was granted and when it ended, in seconds.
fn span(status: &RunStatus, task: &str) -> Result<(f64, f64)> {
    let attempt = status.attempts(task)?.last().context("no attempt")?;
    let seconds = |key: &str| -> Result<f64> {
        let text = attempt[key]
            .as_str()
            .with_context(|| format!("{task} has no {key}"))?;
        let at: jiff::Timestamp = text.parse()?;
        Ok(at.as_duration().as_secs_f64())
    };
    Ok((seconds("granted_at")?, seconds("ended_at")?))
}
