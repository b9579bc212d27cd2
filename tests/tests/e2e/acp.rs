//! Agents that speak the Agent Client Protocol.

use anyhow::{Result, ensure};
use muster_tests::Programs;
use serde_json::Value;

use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[(
    "an_agent_of_the_agent_client_protocol_works_and_its_faults_have_their_classes",
    works_and_fails,
)];

fn works_and_fails(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        cluster.serve()?;
        let _worker = cluster.start_worker("w", 2)?;
        cluster.seed()?;
        let faults = [
            ("limited", "429", "rate_limit"),
            ("broken", "500", "provider_error"),
            ("stranger", "401", "authentication"),
            ("refused", "refusal", "refusal"),
            ("long", "context", "context_window"),
            ("crashed", "drop", "agent_crashed"),
            ("cut", "incomplete", "agent_error"),
        ];
        let mut text = format!(
            r#"
name: acp
repo: {{ from: ./seed }}
agents:
  double: {{ kind: acp, command: [{}] }}
defaults: {{ agent: double, timeout: 1m, retries: 0 }}
tasks:
  - {{ name: edit, prompt: "Please [[write:a.txt hello]]", change: required }}
  - {{ name: command, prompt: "Please [[sh:echo hi > b.txt]]", change: required }}
  - {{ name: idle, prompt: "Please [[say:nothing to do]]", change: required }}
  - name: answer
    prompt: 'Please [[badjson:1 {{"verdict": "ok"}}]]'
    output_schema: {{ type: object, required: [verdict] }}
"#,
            env!("CARGO_BIN_EXE_acp-double")
        );
        for (task, fault, _) in faults {
            text.push_str(&format!(
                "  - {{ name: {task}, prompt: 'Please [[fault:{fault} always]]' }}\n"
            ));
        }
        let plan = cluster.write_plan("plan.yaml", &text)?;
        let run = cluster.submit(&plan)?;
        // Some of these are tried again for long.
        let patience = std::time::Duration::from_secs(60);
        let status = cluster.until(&run, "each task was tried", patience, |status| {
            let tried = |task: &Value| {
                let attempts = task["attempts"].as_array();
                attempts.is_some_and(|all| all.iter().any(|one| !one["ended_at"].is_null()))
            };
            Ok(status.tasks().all(tried))
        })?;
        let first = |task: &str| -> Result<Value> {
            let attempts = status.attempts(task)?;
            Ok(attempts.first().cloned().unwrap_or_default())
        };
        for task in ["edit", "command", "answer"] {
            let attempt = first(task)?;
            ensure!(attempt["state"] == "succeeded", "{task}: {attempt}");
            let turns = if task == "answer" { 2 } else { 1 };
            ensure!(
                attempt["usage"]["input_tokens"] == 1_150 * turns,
                "{task}: {attempt}"
            );
            ensure!(
                attempt["usage"]["output_tokens"] == 50 * turns,
                "{task}: {attempt}"
            );
        }
        let mut wrong = Vec::new();
        let idle = [("idle", "", "no_change")];
        for (task, _, expected) in faults.into_iter().chain(idle) {
            let seen = &first(task)?["failure"]["class"];
            if seen != expected {
                wrong.push(format!("{task}: {seen}, not {expected}"));
            }
        }
        ensure!(wrong.is_empty(), "{wrong:?}\n{}", status.json);
        cluster
            .ask(["cancel", &run, "--reason", "seen enough"])?
            .success()?;
        Ok(())
    })
}
