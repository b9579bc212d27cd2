//! Tasks that fail, and what that means for the others.

use anyhow::{Result, ensure};
use muster_tests::Programs;
use muster_tests::files::Ledger;
use serde_json::json;

use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "a_failing_task_skips_exactly_its_dependents_and_retry_reopens_exactly_those",
        skip_and_retry,
    ),
    (
        "a_failed_verify_counts_and_its_output_reaches_the_next_attempt",
        verify_heals,
    ),
    ("a_cancelled_run_ends_its_agents_and_says_so", cancel),
];

fn skip_and_retry(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        cluster.serve()?;
        let _worker = cluster.start_worker("w", 4)?;
        let ledger = Ledger::new(cluster.folder())?;
        let healed = cluster.folder().join("healed");
        let note = ledger.note();
        let plan = cluster.write_plan(
            "plan.yaml",
            &format!(
                r"
name: failing
defaults: {{ timeout: 1m }}
tasks:
  - {{ name: fetch, run: '{note}' }}
  - name: broken
    depends_on: [fetch]
    retries: 1
    run: |
      {note}
      test -e {healed} || {{ echo the disk is full >&2; exit 3; }}
  - {{ name: dependent, depends_on: [broken], run: '{note}' }}
  - {{ name: farther, depends_on: [dependent, fetch], run: '{note}' }}
  - {{ name: unrelated, run: '{note}' }}
  - {{ name: sibling, depends_on: [fetch], run: '{note}' }}
",
                healed = healed.display()
            ),
        )?;
        let run = cluster.submit(&plan)?;
        let failed = cluster.ended(&run)?;
        ensure!(failed.state() == "failed", "{}", failed.json);
        let mut states = failed.states();
        states.sort();
        ensure!(
            states
                == [
                    "broken failed",
                    "dependent skipped",
                    "farther skipped",
                    "fetch succeeded",
                    "sibling succeeded",
                    "unrelated succeeded",
                ],
            "{states:?}"
        );
        ensure!(
            failed.attempts("broken")?.len() == 2,
            "{}",
            failed.task("broken")?
        );
        let explained = cluster
            .ask(["explain", &run, "farther", "--json"])?
            .success()?
            .json()?;
        ensure!(explained["state"] == "skipped", "{explained}");
        ensure!(
            explained["reasons"].to_string().contains("broken"),
            "{explained}"
        );
        let said = cluster.ask(["logs", &run, "broken"])?.success()?;
        ensure!(said.out.contains("the disk is full"), "{}", said.out);

        std::fs::write(&healed, "")?;
        cluster.ask(["retry", &run])?.success()?;
        let again = cluster.ended(&run)?;
        ensure!(again.state() == "succeeded", "{}", again.json);
        ensure!(again.count("succeeded") == 6, "{}", again.json);
        let lines = ledger.lines()?;
        let starts = |task: &str| -> usize {
            lines
                .iter()
                .filter(|(line, _)| line.starts_with(&format!("{task} ")))
                .map(|(_, n)| n)
                .sum()
        };
        let counts = json!({
            "fetch": starts("fetch"), "unrelated": starts("unrelated"), "sibling": starts("sibling"),
            "broken": starts("broken"), "dependent": starts("dependent"), "farther": starts("farther"),
        });
        let expected = json!({
            "fetch": 1, "unrelated": 1, "sibling": 1, "broken": 3, "dependent": 1, "farther": 1,
        });
        ensure!(counts == expected, "{counts}");
        Ok(())
    })
}

fn verify_heals(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let plan = cluster.plan("verify-heals.yaml");
        let last = cluster
            .ask(["run", &plan.to_string_lossy(), "--json"])?
            .success()?
            .last_json()?;
        let run = last["run"].as_str().unwrap_or_default().to_owned();
        let status = cluster.status(&run)?;
        let attempts = status.attempts("greet")?;
        ensure!(attempts.len() == 2, "{attempts:?}");
        ensure!(
            attempts[0]["failure"]["class"] == "verify_failed",
            "{}",
            attempts[0]
        );
        let said = attempts[0]["failure"]["output"].to_string();
        ensure!(
            said.contains("greeting.txt must say hello"),
            "{}",
            attempts[0]
        );
        let said = cluster
            .ask(["logs", &run, "greet", "--attempt", "1", "--verify"])?
            .success()?;
        ensure!(
            said.out.contains("greeting.txt must say hello"),
            "{}",
            said.out
        );
        Ok(())
    })
}

fn cancel(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        cluster.serve()?;
        let _worker = cluster.start_worker("w", 2)?;
        let mark = cluster.folder().to_string_lossy().into_owned();
        let plan = format!(
            "tasks:\n  - name: endless\n    env: {{ E2E_MARK: {mark} }}\n    \
             run: while :; do sleep 1; done\n  - {{ name: after, depends_on: [endless], run: 'true' }}\n"
        );
        let run = cluster.submit(&cluster.write_plan("plan.yaml", &plan)?)?;
        let marked = || muster_tests::traces::with_variable("E2E_MARK", &mark);
        let soon = muster_tests::wait::SOON;
        muster_tests::wait::until_true("the agent runs", soon, || Ok(!marked()?.is_empty()))?;
        cluster
            .ask(["cancel", &run, "--reason", "no longer wanted"])?
            .success()?;
        let status = cluster.ended(&run)?;
        ensure!(status.state() == "cancelled", "{}", status.json);
        muster_tests::wait::until_true("the agent is gone", soon, || Ok(marked()?.is_empty()))?;
        ensure!(
            cluster.ask(["watch", &run])?.code() == 12,
            "the exit code of a cancelled run"
        );
        Ok(())
    })
}
