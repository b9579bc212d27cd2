//! Agents that plans and configurations declare, and what workers have of them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use muster_tests::cluster::Cluster;
use muster_tests::{Programs, wait};

use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "a_task_whose_agent_no_worker_has_waits_without_an_attempt_until_one_has_it",
        waits_for_its_program,
    ),
    (
        "workers_tell_the_programs_and_versions_of_their_agents",
        programs_and_versions,
    ),
];

const SOON: Duration = Duration::from_secs(40);

fn executable(path: &Path, script: &str) -> Result<()> {
    std::fs::write(path, format!("#!/bin/sh\n{script}\n"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Waits until `explain` says all of these of a task.
fn until_explained(cluster: &Cluster, run: &str, task: &str, says: &[&str]) -> Result<()> {
    let what = format!("explain says {says:?} of {task}");
    wait::until_true(&what, SOON, || {
        let told = cluster.ask(["explain", run, task])?.success()?.out;
        Ok(says.iter().all(|say| told.contains(say)))
    })
}

fn untried(cluster: &Cluster, run: &str, task: &str) -> Result<()> {
    let status = cluster.status(run)?;
    ensure!(status.attempts(task)?.is_empty(), "{}", status.json);
    ensure!(status.task_state(task)? == "ready", "{}", status.json);
    Ok(())
}

fn waits_for_its_program(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let later = cluster.folder().join("later");
        let config = format!(
            "[agents.later]\nkind = \"command\"\ncommand = [\"{}\"]\n",
            later.display()
        );
        std::fs::create_dir_all(cluster.home())?;
        std::fs::write(cluster.home().join("config.toml"), config)?;
        cluster.serve()?;
        let _bare = cluster.start_worker("bare", 2)?;
        let plan = cluster.write_plan(
            "plan.yaml",
            r"
name: declared
agents:
  mine: { kind: command, command: [no-such-tool-anywhere] }
  my-claude: { kind: claude, command: [/nonexistent/claude] }
defaults: { timeout: 1m }
tasks:
  - { name: mine, agent: mine, prompt: do it }
  - { name: later, agent: later, prompt: do it }
  - { name: never, agent: my-claude, prompt: do it }
",
        )?;
        let run = cluster.submit(&plan)?;
        let says = [
            "agent mine",
            "`no-such-tool-anywhere`",
            "looked for on ",
            "`--agent mine=COMMAND`",
        ];
        until_explained(cluster, &run, "mine", &says)?;
        until_explained(cluster, &run, "never", &["/nonexistent/claude"])?;
        cluster.kill_coordinator()?;
        cluster.serve()?;
        until_explained(cluster, &run, "mine", &says)?;
        for task in ["mine", "later", "never"] {
            untried(cluster, &run, task)?;
        }
        // Somebody installs the program of one, and a worker joins that has the other by its operator's
        // word.
        executable(&later, "exit 0")?;
        let tool = cluster.folder().join("tool");
        executable(&tool, "exit 0")?;
        let equipped = cluster.worker("equipped", &cluster.address(), 1)?;
        let equipped = equipped.args(["--agent".to_owned(), format!("mine={}", tool.display())]);
        let _equipped = cluster.start_described(&equipped, "equipped")?;
        let status = cluster.until(&run, "what can run has run", SOON, |status| {
            Ok(["mine", "later"].iter().all(|task| {
                status
                    .task_state(task)
                    .is_ok_and(|state| state == "succeeded")
            }))
        })?;
        let [attempt] = status.attempts("mine")? else {
            anyhow::bail!("it was tried more than once: {}", status.json);
        };
        let equipped = cluster.worker_named("equipped")?.unwrap_or_default();
        ensure!(attempt["worker"] == equipped["worker"], "{}", status.json);
        untried(cluster, &run, "never")?;
        cluster
            .ask(["cancel", &run, "--reason", "seen enough"])?
            .success()?;
        Ok(())
    })
}

fn programs_and_versions(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        cluster.serve()?;
        let codex = cluster.folder().join("codex");
        // A program that takes its time keeps nobody from joining.
        executable(&codex, "sleep 1; echo codex-cli 0.1.2")?;
        let claude = cluster.folder().join("claude");
        executable(&claude, "echo '2.3.4 (Claude Code)'")?;
        let described = cluster
            .worker("w", &cluster.address(), 1)?
            .var("CODEX_BIN", &codex)
            .var("CLAUDE_BIN", &claude);
        let _worker = cluster.start_described(&described, "w")?;
        wait::until_true("both versions are known", SOON, || {
            let worker = cluster.worker_named("w")?.context("no worker")?;
            let listed = worker["programs"].as_array().cloned().unwrap_or_default();
            let of = |name: &str| {
                let found = listed.iter().find(|one| one["agent"] == name).cloned();
                found.unwrap_or_default()
            };
            Ok(of("codex")["version"] == "0.1.2"
                && of("codex")["program"] == codex.to_string_lossy().as_ref()
                && of("claude")["version"] == "2.3.4")
        })?;
        let text = cluster.ask(["workers"])?.success()?.out;
        ensure!(text.contains("codex 0.1.2, claude 2.3.4"), "{text}");
        Ok(())
    })
}
