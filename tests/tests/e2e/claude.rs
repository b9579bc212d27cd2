//! Claude Code itself against a provider that is made up.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use muster_tests::cluster::Cluster;
use muster_tests::fakes::anthropic::BROKEN_OFF;
use muster_tests::fakes::{self, Anthropic, Served};
use muster_tests::wait::LONG;
use muster_tests::{Process, Programs, RunStatus, agents};
use serde_json::Value;

use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "claude_works_asks_answers_in_json_and_is_counted_to_the_token",
        works,
    ),
    ("each_fault_of_claudes_provider_ends_in_its_class", fails),
    (
        "what_a_person_allows_claude_for_its_session_or_by_a_rule_is_not_asked_again",
        asks,
    ),
];

/// Says why these tests cannot run here.
pub(crate) fn missing(source: &Path) -> Option<String> {
    agents::claude(source).err()
}

fn start(cluster: &Cluster, provider: &Anthropic) -> Result<Process> {
    let program = agents::claude(&cluster.programs().source).map_err(anyhow::Error::msg)?;
    let mut worker = cluster.worker("w", &cluster.address(), 2)?;
    worker = worker.var("CLAUDE_BIN", program);
    for (name, value) in provider.settings() {
        worker = worker.var(&name, value);
    }
    cluster.start_described(&worker, "w")
}

/// Adds up the tokens of a task's attempts: those of the input, and those of the output.
fn counted(status: &RunStatus, task: &str) -> Result<(u64, u64)> {
    let mut sum = (0, 0);
    for attempt in status.attempts(task)? {
        let of = |key: &str| attempt["usage"][key].as_u64().unwrap_or_default();
        sum.0 += of("input_tokens");
        sum.1 += of("output_tokens");
    }
    Ok(sum)
}

fn works(programs: &Programs) -> Result<()> {
    let provider = Anthropic::start()?;
    with_cluster(programs, None, |cluster| {
        cluster.serve()?;
        let _worker = start(cluster, &provider)?;
        let offered = cluster.worker_named("w")?.context("no worker")?;
        ensure!(offered.to_string().contains("claude"), "{offered}");
        cluster.seed()?;
        let plan = cluster.write_plan(
            "plan.yaml",
            r#"
name: claude
repo: { from: ./seed }
defaults: { agent: claude, timeout: 2m }
tasks:
  - { name: command, prompt: "Please [[write:a.txt hello]]", change: required }
  - { name: edit, prompt: "Please [[patch:b.txt]]", change: required }
  - name: answer
    prompt: 'Please [[badjson:1 {"verdict": "ok"}]]'
    output_schema:
      type: object
      properties: { verdict: { type: string } }
      required: [verdict]
      additionalProperties: false
  - { name: steps, change: optional, prompt: "Please [[loop:3]]" }
  - { name: outside, change: optional, prompt: "Please [[escalate:touch ../outside]]" }
"#,
        )?;
        let run = cluster.submit(&plan)?;
        let status = cluster.ended(&run)?;
        ensure!(status.state() == "succeeded", "{}", status.json);
        let served = provider.served();
        let sum = fakes::sum(&served);
        let mut seen = (0, 0);
        for task in ["command", "edit", "answer", "steps", "outside"] {
            let (input, output) = counted(&status, task)?;
            seen = (seen.0 + input, seen.1 + output);
        }
        ensure!(
            seen == (sum.input, sum.output),
            "{seen:?} counted, {sum:?} served: {served:#?}"
        );
        let said = cluster
            .ask(["logs", &run, "command", "--json"])?
            .success()?;
        for part in ["session", "printf"] {
            ensure!(said.out.contains(part), "{part} is not in {}", said.out);
        }
        Ok(())
    })
}

fn asks(programs: &Programs) -> Result<()> {
    let provider = Anthropic::start()?;
    with_cluster(programs, None, |cluster| {
        cluster.serve()?;
        let _worker = start(cluster, &provider)?;
        cluster.seed()?;
        let plan = cluster.write_plan(
            "plan.yaml",
            r#"
name: asks
repo: { from: ./seed }
defaults: { agent: claude, timeout: 2m, approvals: always }
tasks:
  - { name: rule, prompt: "Please [[each:touch a.txt then touch a.txt]]" }
  - { name: session, prompt: "Please [[each:touch b.txt then touch b.txt]]" }
  - { name: once, prompt: "Please [[each:touch c.txt then touch c.txt]]" }
"#,
        )?;
        let run = cluster.submit(&plan)?;
        let mut asked = std::collections::BTreeMap::new();
        // Whoever asks again waits for an answer, and the run with it.
        let status = cluster.until(&run, "it ends", LONG, |status| {
            let open = cluster.ask(["approvals", "--json"])?.success()?.json()?;
            for question in open["questions"].as_array().into_iter().flatten() {
                let id = question["id"].as_str().context("no id")?;
                let task = question["task"].as_str().context("no task")?.to_owned();
                let times = asked.entry(task.clone()).or_insert(0);
                *times += 1;
                let chosen = match (task.as_str(), *times) {
                    ("rule", 1) => cluster.ask(["approve", id, "--rule"])?,
                    ("session", 1) => cluster.ask(["approve", id, "--session"])?,
                    ("once", 1 | 2) => cluster.ask(["approve", id])?,
                    _ => anyhow::bail!("asked too often: {question}"),
                };
                chosen.success()?;
            }
            Ok(status.ended())
        })?;
        ensure!(status.state() == "succeeded", "{}", status.json);
        let expected = [("once", 2), ("rule", 1), ("session", 1)];
        let asked: Vec<(&str, i32)> = asked
            .iter()
            .map(|(task, times)| (&**task, *times))
            .collect();
        ensure!(asked == expected, "{asked:?}");
        let diff = cluster.ask(["diff", &run])?.success()?.out;
        for file in ["a.txt", "b.txt", "c.txt"] {
            ensure!(diff.contains(file), "{file} is not in {diff}");
        }
        // What was allowed is written down nowhere.
        ensure!(!diff.contains(".claude"), "{diff}");
        Ok(())
    })
}

fn fails(programs: &Programs) -> Result<()> {
    let provider = Anthropic::start()?;
    with_cluster(programs, None, |cluster| {
        cluster.serve()?;
        let _worker = start(cluster, &provider)?;
        cluster.seed()?;
        let cases = [
            // The program itself tries once more before it gives up; what passes is then tried again.
            ("limited", "429 2", "rate_limit", true),
            ("broken", "500 2", "provider_error", true),
            ("full", "overloaded 2", "provider_capacity", true),
            ("dropped", "drop 3", "transport", true),
            ("poor", "quota 1", "usage_limit", true),
            ("refused", "refusal always", "refusal", false),
            ("long", "context always", "context_window", false),
            ("cut", "incomplete always", "agent_error", false),
            ("wrong", "400 always", "invalid_request", false),
            ("stranger", "401 always", "authentication", false),
        ];
        let mut text =
            "name: faults\nrepo: { from: ./seed }\ndefaults: { agent: claude, timeout: 2m, retries: 0 }\ntasks:\n"
                .to_owned();
        for (task, fault, ..) in cases {
            text.push_str(&format!(
                "  - {{ name: {task}, change: optional, prompt: 'Please [[fault:{fault}]]' }}\n"
            ));
        }
        text.push_str(
            "  - { name: endless, timeout: 10s, prompt: 'Please [[fault:hang always]]' }\n",
        );
        let plan = cluster.write_plan("plan.yaml", &text)?;
        let run = cluster.submit(&plan)?;
        let status = cluster.ended(&run)?;
        let class = |task: &str| -> Result<Value> {
            let attempts = status.attempts(task)?;
            Ok(attempts
                .first()
                .map_or(Value::Null, |first| first["failure"]["class"].clone()))
        };
        let mut wrong = Vec::new();
        for (task, _, expected, passes) in cases {
            let (seen, state) = (class(task)?, status.task_state(task)?);
            if seen != expected || (state == "succeeded") != passes {
                wrong.push(format!("{task}: {state} after {seen}, not {expected}"));
            }
        }
        ensure!(wrong.is_empty(), "{wrong:?}\n{}", status.json);
        ensure!(class("endless")? == "timed_out", "{}", status.json);
        let served = provider.served();
        let mut left = served.len();
        for (task, fault) in cases
            .map(|(task, fault, ..)| (task, fault))
            .into_iter()
            .chain([("endless", "hang always")])
        {
            let scenario = format!("fault:{fault}");
            let calls = served.iter().filter(|call| call.scenario == scenario);
            let (broken, whole): (Vec<Served>, Vec<Served>) = calls
                .cloned()
                .partition(|call| call.tokens == Some(BROKEN_OFF));
            left -= broken.len() + whole.len();
            // What had come of an answer when its connection broke, or when time was up, may still lie
            // unread: then the agent itself has not heard of it.
            let mut possible = vec![fakes::sum(&whole)];
            for call in &broken {
                let mut more = possible[possible.len() - 1];
                more += call.tokens.unwrap_or_default();
                possible.push(more);
            }
            let counted = counted(&status, task)?;
            ensure!(
                possible
                    .iter()
                    .any(|sum| counted == (sum.input, sum.output)),
                "{task}: {counted:?} counted, {possible:?} served: {served:#?}"
            );
        }
        ensure!(left == 0, "served to no task: {served:#?}");
        Ok(())
    })
}
