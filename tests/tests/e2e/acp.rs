//! Agents that speak the Agent Client Protocol.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use muster_tests::Programs;
use muster_tests::fakes::{self, Anthropic};
use serde_json::{Value, json};

use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[(
    "an_agent_of_the_agent_client_protocol_works_and_its_faults_have_their_classes",
    works_and_fails,
)];

/// What needs opencode, a real agent; the program is named by `OPENCODE_BIN`.
pub(crate) const REAL_SCENARIOS: &[(&str, Scenario)] = &[(
    "opencode_works_by_the_agent_client_protocol_and_its_cost_is_known",
    opencode_works,
)];

/// Tells whether an attempt of a task has ended.
fn tried(task: &Value) -> bool {
    let attempts = task["attempts"].as_array();
    attempts.is_some_and(|all| all.iter().any(|one| !one["ended_at"].is_null()))
}

fn opencode() -> Option<PathBuf> {
    let named = std::env::var_os("OPENCODE_BIN").map(PathBuf::from);
    named.filter(|named| named.is_file())
}

/// Says why opencode cannot be tried here.
pub(crate) fn missing() -> Option<String> {
    opencode()
        .is_none()
        .then(|| "skipped: no opencode found".to_owned())
}

fn opencode_works(programs: &Programs) -> Result<()> {
    let program = opencode().context("no opencode")?;
    let provider = Anthropic::start()?;
    with_cluster(programs, None, |cluster| {
        cluster.serve()?;
        let _worker = cluster.start_worker("w", 1)?;
        cluster.seed()?;
        let settings = json!({
            "model": "fake/fake-model",
            "autoupdate": false,
            "share": "disabled",
            "provider": {"fake": {
                "npm": "@ai-sdk/anthropic",
                "options": {"baseURL": format!("{}/v1", provider.url()), "apiKey": "made-up"},
                "models": {"fake-model": {
                    "name": "fake",
                    "limit": {"context": 200_000, "output": 8_192},
                    "cost": {"input": 1, "output": 1},
                }},
            }},
        });
        let config = cluster.folder().join("opencode.json");
        std::fs::write(&config, settings.to_string())?;
        let text = format!(
            r#"
name: opencode
repo: {{ from: ./seed }}
agents:
  opencode:
    kind: acp
    command: [{program}, acp]
    env: {{ OPENCODE_CONFIG: {config}, OPENCODE_DISABLE_MODELS_FETCH: "1" }}
defaults: {{ agent: opencode, timeout: 3m, retries: 0 }}
tasks:
  - {{ name: command, prompt: "Please [[write:a.txt hello]]" }}
  - {{ name: wrong, prompt: "Please [[fault:quota always]]" }}
"#,
            program = program.display(),
            config = config.display(),
        );
        let plan = cluster.write_plan("plan.yaml", &text)?;
        let run = cluster.submit(&plan)?;
        let patience = std::time::Duration::from_secs(180);
        let status = cluster.until(&run, "each task was tried", patience, |status| {
            Ok(status.tasks().all(tried))
        })?;
        let attempt = |task: &str| -> Result<Value> {
            let attempts = status.attempts(task)?;
            Ok(attempts.first().cloned().unwrap_or_default())
        };
        let done = attempt("command")?;
        ensure!(done["state"] == "succeeded", "{done}");
        ensure!(!done["commit"].is_null(), "{done}");
        let class = attempt("wrong")?["failure"]["class"].clone();
        ensure!(class == "usage_limit", "{class}");
        // It tells tokens of the last call of a turn only.
        let served = fakes::sum(&provider.served());
        let counted = done["usage"]["input_tokens"].as_u64().unwrap_or_default();
        ensure!(counted > 0 && counted <= served.input, "{done}, {served:?}");
        cluster
            .ask(["cancel", &run, "--reason", "seen enough"])?
            .success()?;
        Ok(())
    })
}

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
