//! Codex, Claude Code and a plain program in one plan, each with a provider that is made up.

use anyhow::{Context as _, Result, ensure};
use muster_tests::fakes::{self, Anthropic, OpenAi, Tokens};
use muster_tests::repository::Repository;
use muster_tests::wait::{self, LONG};
use muster_tests::{Cluster, Process, Programs, agents};
use serde_json::Value;

use crate::deaths::SHORT;
use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "codex_claude_and_a_program_make_one_verified_branch_and_every_token_is_counted_once",
        one_branch,
    ),
    (
        "a_person_answers_claude_and_codex_goes_on_in_its_conversation_after_its_worker_was_killed",
        answered_and_resumed,
    ),
];

/// Says why these tests cannot run here.
pub(crate) fn missing(source: &std::path::Path) -> Option<String> {
    agents::codex(source)
        .err()
        .or_else(|| agents::claude(source).err())
}

/// Both providers, and how a worker's agents reach them.
struct Stage {
    openai: OpenAi,
    anthropic: Anthropic,
    mine: Repository,
}

impl Stage {
    fn set(cluster: &Cluster) -> Result<Self> {
        let openai = OpenAi::start()?;
        openai.write_settings(&cluster.folder().join("codex-home"))?;
        let mine = Repository::foreign(&cluster.folder().join("user/app"), &cluster.logs(), 30)?;
        Ok(Self {
            openai,
            anthropic: Anthropic::start()?,
            mine,
        })
    }

    fn worker(&self, cluster: &Cluster) -> Result<Process> {
        let source = &cluster.programs().source;
        let found = |program: Result<_, String>| program.map_err(anyhow::Error::msg);
        let mut worker = cluster
            .worker("w", &cluster.address(), 2)?
            .args(["--wip-interval", "1s"])
            .var("CODEX_BIN", found(agents::codex(source))?)
            .var("CODEX_HOME", cluster.folder().join("codex-home"))
            .var("OPENAI_API_KEY", "sk-made-up")
            .var("CLAUDE_BIN", found(agents::claude(source))?);
        for (name, value) in self.anthropic.settings() {
            worker = worker.var(&name, value);
        }
        cluster.start_described(&worker, "w")
    }

    fn plan(&self, cluster: &Cluster, rest: &str) -> Result<std::path::PathBuf> {
        let text = format!(
            "repo: {}\ndefaults: {{ timeout: 3m }}\n{rest}",
            self.mine.path().display()
        );
        cluster.write_plan("mixed.yaml", &text)
    }

    fn served(&self) -> Tokens {
        let mut sum = fakes::sum(&self.openai.served());
        sum += fakes::sum(&self.anthropic.served());
        sum
    }
}

/// What the ledger has of a run.
fn counted(cluster: &Cluster, run: &str) -> Result<Tokens> {
    let usage = cluster
        .ask(["usage", run, "--by", "call", "--json"])?
        .success()?
        .json()?;
    let groups = usage["groups"].as_array().context("no groups")?;
    let sum = |key: &str| groups.iter().filter_map(|group| group[key].as_u64()).sum();
    Ok(Tokens {
        input: sum("input_tokens"),
        cached: sum("cached_input_tokens"),
        output: sum("output_tokens"),
        reasoning: sum("reasoning_tokens"),
    })
}

fn one_branch(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let stage = Stage::set(cluster)?;
        cluster.serve()?;
        let _worker = stage.worker(cluster)?;
        let plan = stage.plan(
            cluster,
            "tasks:\n\
             \x20 - { name: one, agent: codex, prompt: 'Please [[write:one.txt hello]]', verify: ['test -f one.txt'] }\n\
             \x20 - { name: two, agent: claude, depends_on: [one], prompt: 'Please [[write:two.txt there]]', verify: ['test -f one.txt'] }\n\
             \x20 - { name: three, agent: codex, prompt: '[[patch:three.txt]]' }\n\
             \x20 - { name: four, agent: claude, prompt: 'Please [[patch:four.txt]]' }\n\
             \x20 - { name: five, depends_on: [two, three, four], run: 'cat one.txt two.txt > five.txt' }\n\
             integrate: { verify: ['grep -q hello five.txt && grep -q there five.txt && test -f three.txt -a -f four.txt'] }\n",
        )?;
        let run = cluster.submit(&plan)?;
        let status = cluster.ended(&run)?;
        ensure!(status.state() == "succeeded", "{}", status.json);
        ensure!(
            status.json["integration"]["commit"].is_string(),
            "{}",
            status.json
        );
        let (told, served) = (counted(cluster, &run)?, stage.served());
        ensure!(
            served.input > 0 && told == served,
            "told {told:?}, served {served:?}"
        );
        Ok(())
    })
}

fn answered_and_resumed(programs: &Programs) -> Result<()> {
    with_cluster(programs, Some(SHORT), |cluster| {
        let stage = Stage::set(cluster)?;
        cluster.serve()?;
        let mut worker = stage.worker(cluster)?;
        let plan = stage.plan(
            cluster,
            "tasks:\n\
             \x20 - { name: asks, agent: claude, change: optional, approvals: always, prompt: 'Please [[write:asked.txt yes]]' }\n\
             \x20 - { name: long, agent: codex, prompt: 'Please [[sh:echo half > half.txt; tail -f /dev/null]]' }\n",
        )?;
        let run = cluster.submit(&plan)?;
        let id = wait::until("a question", LONG, || {
            let asked = cluster.ask(["approvals", "--json"])?.success()?.json()?;
            let ids = asked["questions"].as_array().context("no questions")?;
            Ok(ids
                .iter()
                .find_map(|question| question["id"].as_str().map(str::to_owned)))
        })?;
        cluster.ask(["approve", &id])?.success()?;
        wait::until_true("the edits of the long task are kept", LONG, || {
            let refs = cluster.hosted_refs(&cluster.status(&run)?)?;
            Ok(refs
                .iter()
                .any(|name| name.contains("/wip/") && name.contains("/long/")))
        })?;
        cluster.until(&run, "the answered task has succeeded", LONG, |status| {
            Ok(task(&status.json, "asks")?["state"] == "succeeded")
        })?;
        worker.kill()?;
        let _worker = stage.worker(cluster)?;
        // Of the next attempt it is known whether it goes on in the conversation that was cut off.
        let status = cluster.until(&run, "the long task goes on", LONG, |status| {
            let attempts = status.attempts("long")?;
            Ok(attempts.len() > 1 && attempts[1]["conversation"].is_string())
        })?;
        let attempts = status.attempts("long")?;
        let conversation = |attempt: &Value| attempt["conversation"].clone();
        ensure!(
            conversation(&attempts[0]) == conversation(&attempts[1]),
            "{}",
            status.json
        );
        cluster.ask(["cancel", &run])?.success()?;
        cluster.ended(&run)?;
        // Codex tells what a call has consumed once the commands that it asked for have ended, and
        // these never did; nothing is told twice for that.
        let told = counted(cluster, &run)?;
        let least = fakes::sum(&stage.anthropic.served());
        let most = stage.served();
        ensure!(
            least.input <= told.input && told.input <= most.input && told.cached <= most.cached,
            "told {told:?}, served {least:?} to {most:?}"
        );
        Ok(())
    })
}

fn task<'a>(status: &'a Value, name: &str) -> Result<&'a Value> {
    let mut tasks = status["task_list"].as_array().context("no tasks")?.iter();
    tasks
        .find(|task| task["name"] == name)
        .with_context(|| format!("no task {name}"))
}
