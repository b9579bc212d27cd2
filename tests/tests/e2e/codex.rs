//! The real Codex, driven by real workers, with a provider that does what prompts say.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use muster_tests::fakes::{self, OpenAi};
use muster_tests::repository::Repository;
use muster_tests::wait::{self, LONG, SOON};
use muster_tests::{Cluster, Programs, traces};
use serde_json::Value;

use crate::mixed::{counted, kill_processes, records};
use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "codex_does_tasks_and_what_it_consumed_is_what_was_served",
        does_tasks,
    ),
    (
        "what_tasks_of_codex_par_consumed_is_what_was_served_and_what_they_do_not_say_is_said",
        executed,
    ),
    (
        "every_fault_of_the_provider_of_codex_ends_in_its_class",
        faults_have_classes,
    ),
    (
        "an_answer_of_codex_that_does_not_fit_its_schema_is_asked_for_again",
        repaired,
    ),
    (
        "a_turn_of_codex_that_never_ends_is_ended_and_nothing_of_it_lives_on",
        ended_in_time,
    ),
    (
        "cancelling_codex_ends_its_commands_in_a_sandbox_and_out_of_it",
        cancelled,
    ),
    (
        "a_repository_starts_no_program_through_codex_and_no_key_is_in_reach_of_its_commands",
        hostile_repository,
    ),
    ("a_codex_that_is_killed_in_mid_turn_is_told_as_that", killed),
    (
        "what_codex_consumed_is_what_was_served_though_it_is_killed_while_its_command_runs",
        killed_in_a_command,
    ),
    (
        "a_person_lets_codex_out_of_its_sandbox_once_or_does_not",
        approved,
    ),
    (
        "codex_does_not_leave_its_sandbox_if_nobody_is_to_be_asked",
        confined,
    ),
];

/// Secret, and looked for in everything that it must not reach.
const KEY: &str = "sk-e2e-5f2c9d";

/// A provider, and a worker whose Codex knows no other.
pub(crate) struct Stage {
    pub(crate) provider: OpenAi,
    pub(crate) home: PathBuf,
    pub(crate) mine: Repository,
    codex: PathBuf,
}

impl Stage {
    pub(crate) fn set(cluster: &Cluster, programs: &Programs) -> Result<Self> {
        let codex = muster_tests::agents::codex(&programs.source).map_err(anyhow::Error::msg)?;
        let provider = OpenAi::start()?;
        let home = cluster.folder().join("codex-home");
        provider.write_settings(&home)?;
        let mine = Repository::foreign(&cluster.folder().join("user/app"), &cluster.logs(), 30)?;
        Ok(Self {
            provider,
            home,
            mine,
            codex,
        })
    }

    /// Writes a plan of tasks for Codex, given as YAML.
    pub(crate) fn plan(&self, cluster: &Cluster, tasks: &str) -> Result<PathBuf> {
        let text = format!(
            "repo: {}\ndefaults: {{ agent: codex, timeout: 2m }}\ntasks:\n{tasks}",
            self.mine.path().display()
        );
        cluster.write_plan("codex.yaml", &text)
    }

    /// Runs a plan with a coordinator of its own; gives what it said last.
    pub(crate) fn run(&self, cluster: &Cluster, tasks: &str, code: i32) -> Result<Value> {
        let plan = self.plan(cluster, tasks)?;
        let plan = plan.to_string_lossy();
        let ran = cluster
            .call(["run", &plan, "--slots", "2", "--json"])
            .var("CODEX_BIN", self.codex.as_os_str())
            .var("CODEX_HOME", self.home.as_os_str())
            .var("OPENAI_API_KEY", KEY)
            .run(&cluster.logs(), Duration::from_secs(120))?
            .expect(code)?;
        ensure!(!ran.out.contains(KEY) && !ran.err.contains(KEY), "the key");
        ran.last_json()
    }

    /// Starts a coordinator and a worker that stay.
    pub(crate) fn serve(&self, cluster: &mut Cluster) -> Result<muster_tests::Process> {
        cluster.serve()?;
        let worker = cluster
            .worker("codex", &cluster.address(), 2)?
            .var("CODEX_BIN", self.codex.as_os_str())
            .var("CODEX_HOME", self.home.as_os_str())
            .var("OPENAI_API_KEY", KEY);
        cluster.start_described(&worker, "codex")
    }

    /// Waits until the provider was asked so often.
    fn asked(&self, times: usize) -> Result<()> {
        wait::until_true("the provider is asked", SOON, || {
            Ok(self.provider.served().len() >= times)
        })
    }
}

fn tokens(run: &Value) -> (u64, u64) {
    let attempts = run["task_list"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|task| task["attempts"].as_array().into_iter().flatten());
    attempts.fold((0, 0), |(input, output), attempt| {
        let usage = &attempt["usage"];
        let more = |key: &str| usage[key].as_u64().unwrap_or_default();
        (input + more("input_tokens"), output + more("output_tokens"))
    })
}

fn does_tasks(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let stage = Stage::set(cluster, programs)?;
        let last = stage.run(
            cluster,
            "  - { name: one, prompt: 'Please [[write:one.txt hello]]', verify: ['test -f one.txt'] }\n\
             \x20 - { name: two, prompt: '[[patch:two.txt]]', depends_on: [one] }\n\
             \x20 - { name: env, prompt: '[[sh:env > env.txt]]' }\n\
             \x20 - name: plain\n    agent: command\n    run: test -f two.txt && touch done.txt\n\
             \x20   depends_on: [two]\n\
             \x20 - { name: plan, prompt: '[[plan]]', change: optional }\n\
             \x20 - { name: review, codex: { review: { uncommitted: true } }, change: optional }\n",
            0,
        )?;
        ensure!(last["state"] == "succeeded", "{last}");
        let run = last["run"].as_str().context("no run")?.to_owned();
        let status = cluster.status(&run)?;
        let commit = last["integration"]["commit"]
            .as_str()
            .context("no commit")?;
        let hosted = cluster.hosted(status.json["repository"].as_str().unwrap_or_default())?;
        let git = Repository::at(&hosted, &cluster.logs());
        let shown = |file: &str| git.git(["show", &format!("{commit}:{file}")]);
        ensure!(shown("one.txt")?.trim() == "hello");
        ensure!(shown("two.txt")?.trim() == "patched");
        ensure!(shown("done.txt").is_ok());
        let env = shown("env.txt")?;
        ensure!(env.contains("PATH=") && !env.contains(KEY), "{env}");
        let served = fakes::sum(&stage.provider.served());
        ensure!(served.input > 0, "nothing was served");
        let told = tokens(&status.json);
        ensure!(
            told == (served.input, served.output),
            "told {told:?}, served {served:?}"
        );
        // Every conversation was one of its own.
        let mut threads: Vec<String> = stage
            .provider
            .served()
            .into_iter()
            .map(|call| call.conversation)
            .collect();
        threads.sort();
        threads.dedup();
        ensure!(threads.len() == 5, "{threads:?}");
        Ok(())
    })
}

fn executed(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let stage = Stage::set(cluster, programs)?;
        let at = stage.mine.path().display();
        let text = format!(
            "tasks:\n\
             \x20 - {{ name: one, cwd: {at}, prompt: 'Please [[write:one.txt hello]]' }}\n\
             \x20 - {{ name: two, cwd: {at}, prompt: '[[fault:400 always]]' }}\n"
        );
        let plan = cluster.write_plan("tasks.yaml", &text)?;
        let ran = cluster
            .call(["run", &plan.to_string_lossy(), "--json"])
            .var("CODEX_BIN", stage.codex.as_os_str())
            .var("CODEX_HOME", stage.home.as_os_str())
            .var("OPENAI_API_KEY", KEY)
            .run(&cluster.logs(), Duration::from_secs(120))?
            .expect(10)?;
        let run = ran.last_json()?["run"]
            .as_str()
            .context("no run")?
            .to_owned();
        let asked = cluster.ask(["usage", &run, "--json"])?.success()?;
        let usage = asked.json()?;
        let of = |task: &str, key: &str| {
            let mut groups = usage["groups"].as_array().into_iter().flatten();
            let group = groups.find(|group| group["task"] == task);
            group.and_then(|group| group[key].as_u64())
        };
        let keys = ["input_tokens", "cached_input_tokens", "output_tokens"];
        let told = keys.map(|key| of("one", key).unwrap_or_default());
        let served = fakes::sum(&stage.provider.served());
        ensure!(
            served.input > 0 && told == [served.input, served.cached, served.output],
            "told {told:?}, served {served:?}"
        );
        ensure!(of("one", "unknown_calls") == Some(0), "{usage}");
        ensure!(of("two", "unknown_calls") == Some(1), "{usage}");
        let shown = cluster.ask(["usage", &run])?.success()?;
        ensure!(shown.out.contains("+1?"), "{}", shown.out);
        ensure!(shown.err.contains("1 more call"), "{}", shown.err);
        Ok(())
    })
}

fn hostile_repository(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let stage = Stage::set(cluster, programs)?;
        let started = cluster.folder().join("started");
        let folder = stage.mine.path().join(".codex");
        std::fs::create_dir_all(&folder)?;
        std::fs::write(
            folder.join("config.toml"),
            format!(
                "[mcp_servers.evil]\ncommand = \"touch\"\nargs = [\"{}\"]\n",
                started.display()
            ),
        )?;
        stage.mine.git(["add", "."])?;
        stage.mine.git(["commit", "-qm", "settings"])?;
        let settings = std::fs::read_to_string(stage.home.join("config.toml"))?;
        let last = stage.run(
            cluster,
            "  - { name: one, prompt: '[[sh:cat $(dirname $MUSTER_CONTEXT_FILE)/launch-1/launch.json > seen.txt]]' }\n",
            0,
        )?;
        ensure!(last["state"] == "succeeded", "{last}");
        ensure!(!started.exists(), "the repository's program was started");
        let now = std::fs::read_to_string(stage.home.join("config.toml"))?;
        ensure!(now == settings, "Codex's settings were changed: {now}");
        let run = last["run"].as_str().context("no run")?;
        let seen = cluster.ask(["diff", run])?.success()?.out;
        ensure!(seen.contains("mark") && !seen.contains(KEY), "{seen}");
        Ok(())
    })
}

fn class(run: &Value, task: &str) -> Result<String> {
    let tasks = run["task_list"].as_array().context("no tasks")?;
    let task = tasks
        .iter()
        .find(|found| found["name"] == task)
        .with_context(|| format!("no task {task}"))?;
    let attempts = task["attempts"].as_array().context("no attempts")?;
    let last = attempts.last().context("no attempt")?;
    Ok(last["failure"]["class"]
        .as_str()
        .unwrap_or("none")
        .to_owned())
}

fn faults_have_classes(programs: &Programs) -> Result<()> {
    const FAULTS: [(&str, &str); 8] = [
        ("400", "invalid_request"),
        ("401", "authentication"),
        ("500", "provider_error"),
        ("drop", "transport"),
        ("refusal", "refusal"),
        ("context", "context_window"),
        ("quota", "usage_limit"),
        ("incomplete", "agent_error"),
    ];
    with_cluster(programs, None, |cluster| {
        let stage = Stage::set(cluster, programs)?;
        let _worker = stage.serve(cluster)?;
        let tasks: String = FAULTS
            .iter()
            .map(|(fault, _)| {
                format!("  - {{ name: f-{fault}, prompt: '[[fault:{fault} always]]' }}\n")
            })
            .collect();
        let plan = stage.plan(cluster, &tasks)?;
        let run = cluster.submit(&plan)?;
        let mut seen = std::collections::BTreeMap::new();
        // Some are tried again much later: the class of the first failure is what this is about.
        cluster.until(&run, "every task has failed once", LONG, |status| {
            for (fault, _) in FAULTS {
                let attempts = status.attempts(&format!("f-{fault}"))?;
                let failed = attempts
                    .iter()
                    .find_map(|attempt| attempt["failure"]["class"].as_str());
                if let Some(class) = failed {
                    seen.insert(fault, class.to_owned());
                }
            }
            Ok(seen.len() == FAULTS.len())
        })?;
        for (fault, class) in FAULTS {
            let found = seen.get(fault).map(String::as_str);
            ensure!(found == Some(class), "{fault}: {found:?}, not {class}");
        }
        Ok(())
    })
}

fn repaired(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let stage = Stage::set(cluster, programs)?;
        let schema = "{ type: object, properties: { ok: { type: boolean } }, required: [ok], \
                      additionalProperties: false }";
        let tasks = format!(
            "  - name: once\n    prompt: '[[badjson:1 {{\"ok\": true}}]]'\n    output_schema: {schema}\n\
             \x20 - name: never\n    prompt: '[[badjson:9 {{\"ok\": true}}]]'\n    output_schema: {schema}\n"
        );
        let last = stage.run(cluster, &tasks, 10)?;
        let run = last["run"].as_str().context("no run")?;
        let status = cluster.status(run)?;
        ensure!(status.task_state("once")? == "succeeded", "{}", status.json);
        ensure!(
            class(&status.json, "never")? == "output_invalid",
            "{}",
            status.json
        );
        let served = stage.provider.served();
        let calls = |word: &str| {
            served
                .iter()
                .filter(|call| call.scenario.starts_with(word))
                .count()
        };
        ensure!(
            calls("badjson:1") == 2 && calls("badjson:9") == 3,
            "{served:?}"
        );
        Ok(())
    })
}

/// Waits until no process of a run's agents is left.
pub(crate) fn nothing_lives(run: &str) -> Result<()> {
    wait::until_true("nothing of the run lives", SOON, || {
        Ok(traces::with_variable("MUSTER_RUN", run)?.is_empty())
    })
}

fn ended_in_time(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let stage = Stage::set(cluster, programs)?;
        let last = stage.run(
            cluster,
            "  - { name: hangs, prompt: '[[fault:hang always]]', timeout: 5s }\n",
            10,
        )?;
        let run = last["run"].as_str().context("no run")?;
        let status = cluster.status(run)?;
        ensure!(
            class(&status.json, "hangs")? == "timed_out",
            "{}",
            status.json
        );
        nothing_lives(run)
    })
}

/// What sandboxes leave in a folder that is everybody's.
fn hidden_in_tmp() -> Vec<PathBuf> {
    let names = [".agents", ".aws", ".codex", ".git"];
    let paths = names.map(|name| Path::new("/tmp").join(name));
    paths.into_iter().filter(|path| path.exists()).collect()
}

fn cancelled(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let stage = Stage::set(cluster, programs)?;
        let _worker = stage.serve(cluster)?;
        let before = hidden_in_tmp();
        let command = "(tail -f /dev/null & tail -f /dev/null) ; echo woke";
        let tasks = format!(
            "  - {{ name: inside, prompt: '[[sh:{command}]]' }}\n\
             \x20 - {{ name: outside, prompt: '[[sh:{command}]]', sandbox: full-access }}\n"
        );
        let run = cluster.submit(&stage.plan(cluster, &tasks)?)?;
        stage.asked(2)?;
        // A shell and two programs each, and those of codex itself.
        wait::until_true("the commands run", SOON, || {
            let all = traces::with_variable("MUSTER_RUN", &run)?;
            let tails = all.iter().filter(|process| {
                let words = std::fs::read(format!("/proc/{process}/cmdline"));
                words.is_ok_and(|words| words.starts_with(b"tail\0"))
            });
            Ok(tails.count() == 4)
        })?;
        cluster.ask(["cancel", &run])?.success()?;
        let status = cluster.ended(&run)?;
        ensure!(status.state() == "cancelled", "{}", status.json);
        nothing_lives(&run)?;
        ensure!(hidden_in_tmp() == before, "left: {:?}", hidden_in_tmp());
        Ok(())
    })
}

fn killed(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let stage = Stage::set(cluster, programs)?;
        let _worker = stage.serve(cluster)?;
        let tasks =
            "  - { name: dies, prompt: '[[fault:hang 1 then write:a.txt b]]', retries: 1 }\n";
        let run = cluster.submit(&stage.plan(cluster, tasks)?)?;
        stage.asked(1)?;
        kill_processes(&run)?;
        let status = cluster.ended(&run)?;
        ensure!(status.state() == "succeeded", "{}", status.json);
        let first = &status.attempts("dies")?[0]["failure"]["class"];
        ensure!(first == "agent_crashed", "{}", status.json);
        Ok(())
    })
}

fn killed_in_a_command(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let stage = Stage::set(cluster, programs)?;
        let _worker = stage.serve(cluster)?;
        let tasks = "  - { name: dies, prompt: '[[sh:echo half > a.txt; tail -f /dev/null]]', retries: 1 }\n";
        let run = cluster.submit(&stage.plan(cluster, tasks)?)?;
        for attempt in 1..=2 {
            wait::until_true("the call has ended", LONG, || {
                let sessions = stage.home.join("sessions");
                let known = sessions.exists() && records(&sessions)? == attempt;
                Ok(known && stage.provider.served().len() == attempt)
            })?;
            kill_processes(&run)?;
        }
        let status = cluster.ended(&run)?;
        ensure!(
            class(&status.json, "dies")? == "agent_crashed",
            "{}",
            status.json
        );
        let (told, served) = (
            counted(cluster, &run)?,
            fakes::sum(&stage.provider.served()),
        );
        ensure!(
            served.input > 0 && told == served,
            "told {told:?}, served {served:?}"
        );
        ensure!(tokens(&status.json) == (served.input, served.output));
        Ok(())
    })
}

fn approved(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let stage = Stage::set(cluster, programs)?;
        let _worker = stage.serve(cluster)?;
        let outside = |name: &str| stage.home.join(name);
        let tasks: String = ["yes", "no"]
            .iter()
            .map(|name| {
                let command = format!("touch {} && echo made", outside(name).display());
                format!(
                    "  - {{ name: '{name}', prompt: '[[escalate:{command}]]', \
                     approvals: outside, change: optional }}\n"
                )
            })
            .collect();
        let run = cluster.submit(&stage.plan(cluster, &tasks)?)?;
        let mut open = Vec::new();
        wait::until_true("both ask", SOON, || {
            let listed = cluster.ask(["approvals", "--json"])?.success()?.json()?;
            open = listed["questions"].as_array().cloned().unwrap_or_default();
            Ok(open.len() == 2)
        })?;
        for question in &open {
            let id = question["id"].as_str().context("no id")?;
            ensure!(question["kind"] == "command", "{question}");
            ensure!(question["reason"] == "it must write outside", "{question}");
            let detail = question["detail"].as_str().unwrap_or_default();
            ensure!(detail.starts_with("touch "), "{question}");
            if question["task"] == "yes" {
                cluster.ask(["approve", id])?.success()?;
            } else {
                cluster
                    .ask(["deny", id, "--text", "stay inside"])?
                    .success()?;
            }
        }
        let status = cluster.ended(&run)?;
        ensure!(status.state() == "succeeded", "{}", status.json);
        ensure!(outside("yes").exists(), "allowed, but not done");
        ensure!(!outside("no").exists(), "done, but not allowed");
        let said = status.attempts("yes")?[0]["summary"].to_string();
        ensure!(said.contains("made"), "{said}");
        Ok(())
    })
}

fn confined(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let stage = Stage::set(cluster, programs)?;
        let [asked, done] = ["asked", "done"].map(|name| stage.home.join(name));
        let tasks = format!(
            "  - {{ name: asks, prompt: '[[escalate:touch {}]]', change: optional }}\n\
             \x20 - {{ name: does, prompt: '[[sh:touch {}]]', change: optional }}\n",
            asked.display(),
            done.display()
        );
        stage.run(cluster, &tasks, 0)?;
        ensure!(!asked.exists() && !done.exists(), "a sandbox was left");
        Ok(())
    })
}
