//! Real agents that are cut off or fail: what the next attempt knows of it.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use muster_tests::fakes::{self, Anthropic, OpenAi, Served};
use muster_tests::wait::{self, LONG};
use muster_tests::{Cluster, Process, Programs, agents};

use crate::approvals::sum;
use crate::deaths::SHORT;
use crate::{Scenario, with_cluster};

pub(crate) const CLAUDE: &[(&str, Scenario)] = &[
    (
        "claude_goes_on_in_its_conversation_after_its_worker_was_killed_in_mid_turn",
        claude_resumed,
    ),
    (
        "claude_on_another_worker_begins_anew_with_a_summary",
        claude_anew,
    ),
];

pub(crate) const CODEX: &[(&str, Scenario)] = &[
    (
        "codex_goes_on_in_its_conversation_after_its_worker_was_killed_in_mid_turn",
        codex_resumed,
    ),
    (
        "codex_that_does_not_know_the_conversation_begins_anew_with_a_summary",
        codex_anew,
    ),
    (
        "an_attempt_after_one_that_failed_knows_why_and_begins_from_the_clean_base",
        after_a_failure,
    ),
];

/// A made up provider and the agent that knows no other.
enum Provider {
    Claude(Anthropic, PathBuf),
    Codex(OpenAi, PathBuf),
}

impl Provider {
    fn claude(programs: &Programs) -> Result<Self> {
        let program = agents::claude(&programs.source).map_err(anyhow::Error::msg)?;
        Ok(Self::Claude(Anthropic::start()?, program))
    }

    fn codex(programs: &Programs) -> Result<Self> {
        let program = agents::codex(&programs.source).map_err(anyhow::Error::msg)?;
        Ok(Self::Codex(OpenAi::start()?, program))
    }

    fn agent(&self) -> &'static str {
        match self {
            Self::Claude(..) => "claude",
            Self::Codex(..) => "codex",
        }
    }

    fn served(&self) -> Vec<Served> {
        match self {
            Self::Claude(provider, _) => provider.served(),
            Self::Codex(provider, _) => provider.served(),
        }
    }

    /// Gives what was asked last, as text.
    fn asked_last(&self) -> Result<String> {
        let mut bodies = match self {
            Self::Claude(provider, _) => provider.bodies(),
            Self::Codex(provider, _) => provider.bodies(),
        };
        // Some calls are for a title and the like.
        bodies.retain(|body| body.to_string().contains("[["));
        Ok(bodies.last().context("nothing was asked")?.to_string())
    }

    /// Starts a worker whose agent keeps its conversations in the worker's own folder.
    fn worker(&self, cluster: &Cluster, name: &str) -> Result<Process> {
        let mut worker = cluster
            .worker(name, &cluster.address(), 1)?
            .args(["--wip-interval", "1s"]);
        match self {
            Self::Claude(provider, program) => {
                worker = worker.var("CLAUDE_BIN", program);
                for (name, value) in provider.settings() {
                    worker = worker.var(&name, value);
                }
            }
            Self::Codex(provider, program) => {
                let home = cluster.folder().join(format!("codex-{name}"));
                provider.write_settings(&home)?;
                worker = worker
                    .var("CODEX_BIN", program)
                    .var("CODEX_HOME", home)
                    .var("OPENAI_API_KEY", "sk-made-up");
            }
        }
        cluster.start_described(&worker, name)
    }
}

/// Lets a worker's agent write a file and then wait in a command; gives the run once both are known.
fn cut_off(cluster: &Cluster, provider: &Provider) -> Result<String> {
    cluster.seed()?;
    let gate = cluster.folder().join("gate");
    let command = format!(
        "echo one > one.txt; test -e {gate} || {{ touch {gate}; tail -f /dev/null; }}",
        gate = gate.display()
    );
    let plan = cluster.write_plan(
        "plan.yaml",
        &format!(
            "repo: {{ from: ./seed }}\n\
             tasks:\n  - name: works\n    agent: {}\n    timeout: 2m\n    sandbox: full-access\n    \
             prompt: 'Please [[sh:{command}]]'\n",
            provider.agent()
        ),
    )?;
    let run = cluster.submit(&plan)?;
    wait::until_true("the command runs and is known", LONG, || {
        let said = cluster.ask(["logs", &run, "works", "--json"])?;
        Ok(gate.exists() && said.out.contains("echo one"))
    })?;
    wait::until_true("the edits are kept", LONG, || {
        let refs = cluster.hosted_refs(&cluster.status(&run)?)?;
        Ok(refs.iter().any(|name| name.contains("/wip/")))
    })?;
    Ok(run)
}

/// Looks at what came of a run that was cut off.
fn went_on(cluster: &Cluster, provider: &Provider, run: &str, anew: bool) -> Result<()> {
    let status = cluster.ended(run)?;
    ensure!(status.state() == "succeeded", "{}", status.json);
    let [first, second] = status.attempts("works")? else {
        anyhow::bail!("not two attempts: {}", status.json);
    };
    ensure!(first["failure"]["class"] == "worker_lost", "{first}");
    ensure!(second["continues"] == 1, "{second}");
    ensure!(second["anew"] == anew, "{second}");
    let same = first["conversation"] == second["conversation"];
    ensure!(
        !first["conversation"].is_null() && same != anew,
        "{}",
        status.json
    );
    let diff = cluster.ask(["diff", run])?.success()?.out;
    ensure!(diff.contains("+one"), "{diff}");
    // Each call that was served is counted once, also the one whose command was cut off.
    let served = fakes::sum(&provider.served());
    let usage = cluster.ask(["usage", run, "--json"])?.success()?.json()?;
    let told = (sum(&usage, "input_tokens"), sum(&usage, "output_tokens"));
    ensure!(
        told == (served.input, served.output),
        "told {told:?}, served {served:?}"
    );
    let mut conversations: Vec<String> = provider
        .served()
        .into_iter()
        .filter(|call| call.scenario.starts_with("sh:"))
        .map(|call| call.conversation)
        .collect();
    conversations.sort();
    conversations.dedup();
    ensure!(
        conversations.len() == 1 + usize::from(anew),
        "{conversations:?}"
    );
    let prompt = provider.asked_last()?;
    let logs = cluster.ask(["logs", run, "works", "--attempt", "2"])?;
    let logs = logs.success()?;
    let logs = logs.out + &logs.err;
    let explained = cluster.ask(["explain", run, "works"])?.success()?.out;
    if anew {
        for part in [
            "# What was tried before",
            "> worker_lost: ",
            "> (end not known) ",
            "echo one > one.txt",
            "An earlier try at this task (attempt 1) was cut off",
        ] {
            ensure!(prompt.contains(part), "{part} is not in {prompt}");
        }
        ensure!(logs.contains("with a summary of"), "{logs}");
        ensure!(
            explained.contains("began with a summary of it"),
            "{explained}"
        );
    } else {
        ensure!(prompt.contains("You were cut off in attempt 1"), "{prompt}");
        ensure!(!prompt.contains("What was tried before"), "{prompt}");
        ensure!(logs.contains("goes on with session"), "{logs}");
        ensure!(!explained.contains("summary"), "{explained}");
    }
    Ok(())
}

fn resumed(programs: &Programs, provider: &Provider) -> Result<()> {
    with_cluster(programs, Some(SHORT), |cluster| {
        cluster.serve()?;
        let mut worker = provider.worker(cluster, "one")?;
        let run = cut_off(cluster, provider)?;
        worker.kill()?;
        let _worker = provider.worker(cluster, "one")?;
        went_on(cluster, provider, &run, false)
    })
}

fn anew(programs: &Programs, provider: &Provider) -> Result<()> {
    with_cluster(programs, Some(SHORT), |cluster| {
        cluster.serve()?;
        let mut worker = provider.worker(cluster, "one")?;
        let run = cut_off(cluster, provider)?;
        worker.kill()?;
        let _other = provider.worker(cluster, "two")?;
        went_on(cluster, provider, &run, true)
    })
}

fn claude_resumed(programs: &Programs) -> Result<()> {
    resumed(programs, &Provider::claude(programs)?)
}

fn claude_anew(programs: &Programs) -> Result<()> {
    anew(programs, &Provider::claude(programs)?)
}

fn codex_resumed(programs: &Programs) -> Result<()> {
    resumed(programs, &Provider::codex(programs)?)
}

fn codex_anew(programs: &Programs) -> Result<()> {
    anew(programs, &Provider::codex(programs)?)
}

fn after_a_failure(programs: &Programs) -> Result<()> {
    let provider = Provider::codex(programs)?;
    with_cluster(programs, None, |cluster| {
        cluster.serve()?;
        let _worker = provider.worker(cluster, "one")?;
        cluster.seed()?;
        let gate = cluster.folder().join("gate");
        // The second attempt looks at the work of the first one, which is not in its own tree.
        let look = "ls > seen.txt; git show $(grep -o \"[0-9a-f]\\\\{40\\\\}\" $MUSTER_CONTEXT_FILE) >> seen.txt";
        let verify = format!(
            "test -e {gate} || {{ touch {gate}; echo seen.txt is not good enough; exit 3; }}",
            gate = gate.display()
        );
        let plan = cluster.write_plan(
            "plan.yaml",
            &format!(
                "repo: {{ from: ./seed }}\n\
                 tasks:\n  - name: works\n    agent: codex\n    timeout: 2m\n    retries: 1\n    \
                 prompt: 'Please [[sh:{look}]]'\n    verify: ['{verify}']\n"
            ),
        )?;
        let run = cluster.submit(&plan)?;
        let status = cluster.ended(&run)?;
        ensure!(status.state() == "succeeded", "{}", status.json);
        let [first, second] = status.attempts("works")? else {
            anyhow::bail!("not two attempts: {}", status.json);
        };
        ensure!(first["failure"]["class"] == "verify_failed", "{first}");
        ensure!(second["continues"].is_null(), "{second}");
        let commit = first["commit"].as_str().context("no commit")?;
        let prompt = provider.asked_last()?;
        for part in [
            "## Attempt 1",
            "> seen.txt is not good enough",
            "(exit code 0) ",
            "You begin anew: nothing of the work of earlier attempts is in this work tree",
            commit,
        ] {
            ensure!(prompt.contains(part), "{part} is not in {prompt}");
        }
        let diff = cluster.ask(["diff", &run])?.success()?.out;
        ensure!(diff.contains(&format!("+commit {commit}")), "{diff}");
        let logs = cluster.ask(["logs", &run, "works", "--attempt", "2"])?;
        let logs = logs.success()?;
        let logs = logs.out + &logs.err;
        ensure!(logs.contains("with a summary of attempt 1"), "{logs}");
        Ok(())
    })
}
