//! Codex, Claude Code and a plain program in one plan, each with a provider that is made up.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use muster_tests::fakes::{self, Anthropic, OpenAi, Tokens};
use muster_tests::repository::Repository;
use muster_tests::wait::{self, LONG};
use muster_tests::{Cluster, Process, Programs, agents, traces};
use rustix::process::{Pid, Signal, kill_process};
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
pub(crate) fn missing(source: &Path) -> Option<String> {
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

    /// Waits until Codex has made so many calls and knows what they consumed.
    fn calls_have_ended(&self, cluster: &Cluster, calls: usize) -> Result<()> {
        let sessions = cluster.folder().join("codex-home/sessions");
        wait::until_true("the calls of Codex have ended", LONG, || {
            let known = records(&sessions)?;
            Ok(known >= calls && known == self.openai.served().len())
        })
    }

    fn served(&self) -> Tokens {
        let mut sum = fakes::sum(&self.openai.served());
        sum += fakes::sum(&self.anthropic.served());
        sum
    }
}

/// Kills the processes of a run's agents.
pub(crate) fn kill_processes(run: &str) -> Result<()> {
    // The supervisor is not among them: it has the worker's environment.
    let processes = traces::with_variable("MUSTER_RUN", run)?;
    ensure!(!processes.is_empty(), "no agent");
    for process in processes {
        let process = i32::try_from(process).ok().and_then(Pid::from_raw);
        // One of them may have gone with another.
        let _ = kill_process(process.context("no process")?, Signal::KILL);
    }
    Ok(())
}

/// Counts the calls that are written down in Codex's own files below a folder.
pub(crate) fn records(folder: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        count += if path.is_dir() {
            records(&path)?
        } else {
            let text = std::fs::read_to_string(&path)?;
            text.matches("\"token_usage_record\"").count()
        };
    }
    Ok(count)
}

/// What the ledger has of a run.
pub(crate) fn counted(cluster: &Cluster, run: &str) -> Result<Tokens> {
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
             \x20 - { name: long, agent: codex, retries: 1, prompt: 'Please [[sh:echo half > half.txt; tail -f /dev/null]]' }\n",
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
        // Once in a conversation that began with its attempt, and once in one that was gone on with: Codex
        // gives notice of what a call has consumed after the commands that it asked for have ended, and
        // these never do.
        for attempt in 1..=2 {
            stage.calls_have_ended(cluster, attempt)?;
            worker.kill()?;
            worker = stage.worker(cluster)?;
            // Of the next attempt it is known whether it goes on in the conversation that was cut off.
            let status = cluster.until(&run, "the long task goes on", LONG, |status| {
                let attempts = status.attempts("long")?;
                Ok(attempts.len() > attempt && attempts[attempt]["conversation"].is_string())
            })?;
            let attempts = status.attempts("long")?;
            let conversation = |attempt: &Value| attempt["conversation"].clone();
            ensure!(
                conversation(&attempts[0]) == conversation(&attempts[attempt]),
                "{}",
                status.json
            );
        }
        stage.calls_have_ended(cluster, 3)?;
        kill_processes(&run)?;
        // Begun anew, and interrupted.
        stage.calls_have_ended(cluster, 4)?;
        cluster.ask(["cancel", &run])?.success()?;
        cluster.ended(&run)?;
        let (told, served) = (counted(cluster, &run)?, stage.served());
        ensure!(
            served.input > 0 && told == served,
            "told {told:?}, served {served:?}"
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
