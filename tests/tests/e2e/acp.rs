//! Agents that speak the Agent Client Protocol.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use muster_tests::fakes::{self, Anthropic};
use muster_tests::wait::{self, LONG};
use muster_tests::{Cluster, Programs, agents, traces};
use serde_json::{Value, json};

use crate::codex::nothing_lives;
use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[(
    "an_agent_of_the_agent_client_protocol_works_and_its_faults_have_their_classes",
    works_and_fails,
)];

/// What needs opencode, a real agent.
pub(crate) const REAL_SCENARIOS: &[(&str, Scenario)] = &[
    (
        "opencode_works_by_the_agent_client_protocol_and_its_cost_is_known",
        opencode_works,
    ),
    (
        "a_person_lets_opencode_run_a_command_and_cancelling_it_leaves_no_process",
        opencode_asks_and_is_cancelled,
    ),
];

/// Tells whether an attempt of a task has ended.
fn tried(task: &Value) -> bool {
    let attempts = task["attempts"].as_array();
    attempts.is_some_and(|all| all.iter().any(|one| !one["ended_at"].is_null()))
}

/// Says why opencode cannot be tried here.
pub(crate) fn missing(source: &Path) -> Option<String> {
    agents::opencode(source).err()
}

/// Writes a plan for opencode, which knows the made up provider and no other, and leaves nothing outside
/// of the test's folder.
fn opencode_plan(
    cluster: &Cluster,
    provider: &Anthropic,
    permission: &str,
    tasks: &str,
) -> Result<PathBuf> {
    let program = agents::opencode(&cluster.programs().source).map_err(anyhow::Error::msg)?;
    cluster.seed()?;
    let settings = json!({
        "model": "fake/fake-model",
        "small_model": "fake/fake-model",
        "autoupdate": false,
        "share": "disabled",
        "permission": {"bash": permission, "edit": permission},
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
    let own = cluster.folder().join("opencode");
    std::fs::create_dir_all(&own)?;
    let config = own.join("opencode.json");
    std::fs::write(&config, settings.to_string())?;
    let text = format!(
        r#"
name: opencode
repo: {{ from: ./seed }}
agents:
  opencode:
    kind: acp
    command: [{program}, acp]
    env:
      OPENCODE_CONFIG: {config}
      OPENCODE_DISABLE_MODELS_FETCH: "1"
      XDG_CACHE_HOME: {own}/cache
      XDG_CONFIG_HOME: {own}/config
      XDG_DATA_HOME: {own}/data
      XDG_STATE_HOME: {own}/state
defaults: {{ agent: opencode, timeout: 3m, retries: 0 }}
tasks:
{tasks}"#,
        program = program.display(),
        config = config.display(),
        own = own.display(),
    );
    cluster.write_plan("plan.yaml", &text)
}

fn opencode_works(programs: &Programs) -> Result<()> {
    let provider = Anthropic::start()?;
    with_cluster(programs, None, |cluster| {
        cluster.serve()?;
        let _worker = cluster.start_worker("w", 1)?;
        let plan = opencode_plan(
            cluster,
            &provider,
            "allow",
            "  - { name: edit, prompt: 'Please [[patch:b.txt]]', change: required }\n\
             \x20 - { name: wrong, prompt: 'Please [[fault:quota always]]' }\n",
        )?;
        let run = cluster.submit(&plan)?;
        let patience = Duration::from_secs(180);
        let status = cluster.until(&run, "each task was tried", patience, |status| {
            Ok(status.tasks().all(tried))
        })?;
        let attempt = |task: &str| -> Result<Value> {
            let attempts = status.attempts(task)?;
            Ok(attempts.first().cloned().unwrap_or_default())
        };
        let done = attempt("edit")?;
        ensure!(done["state"] == "succeeded", "{done}");
        ensure!(!done["commit"].is_null(), "{done}");
        let said = cluster.ask(["logs", &run, "edit", "--json"])?.success()?;
        ensure!(said.out.contains("b.txt"), "{}", said.out);
        let class = attempt("wrong")?["failure"]["class"].clone();
        ensure!(class == "usage_limit", "{class}");
        // It tells tokens of the last call of a turn only.
        let served = fakes::sum(&provider.served());
        let counted = done["usage"]["input_tokens"].as_u64().unwrap_or_default();
        ensure!(
            counted > 0 && counted <= served.input,
            "{counted}, {served:?}"
        );
        cluster
            .ask(["cancel", &run, "--reason", "seen enough"])?
            .success()?;
        Ok(())
    })
}

fn opencode_asks_and_is_cancelled(programs: &Programs) -> Result<()> {
    let provider = Anthropic::start()?;
    with_cluster(programs, None, |cluster| {
        cluster.serve()?;
        let _worker = cluster.start_worker("w", 1)?;
        let plan = opencode_plan(
            cluster,
            &provider,
            "ask",
            "  - name: asks\n    approvals: always\n    prompt: 'Please [[sh:echo hello > a.txt; tail -f /dev/null]]'\n",
        )?;
        let run = cluster.submit(&plan)?;
        let mut asked = Value::Null;
        wait::until_true("it asks", LONG, || {
            let listed = cluster.ask(["approvals", "--json"])?.success()?.json()?;
            asked = listed["questions"][0].clone();
            Ok(!asked.is_null())
        })?;
        let detail = asked.to_string();
        ensure!(detail.contains("echo hello > a.txt"), "{detail}");
        let runs = |name: &[u8]| -> Result<bool> {
            let all = traces::with_variable("MUSTER_RUN", &run)?;
            let mut commands = all
                .iter()
                .filter_map(|process| std::fs::read(format!("/proc/{process}/cmdline")).ok());
            Ok(commands.any(|words| words.starts_with(name)))
        };
        ensure!(!runs(b"tail\0")?, "it did not wait for an answer");
        let id = asked["id"].as_str().context("no id")?;
        cluster.ask(["approve", id])?.success()?;
        wait::until_true("the command runs", LONG, || runs(b"tail\0"))?;
        cluster.ask(["cancel", &run])?.success()?;
        let status = cluster.ended(&run)?;
        ensure!(status.state() == "cancelled", "{}", status.json);
        nothing_lives(&run)
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
        let patience = Duration::from_secs(60);
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
