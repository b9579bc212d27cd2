//! Agents that ask, people that answer, and workers that die in the middle of a conversation.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use muster_tests::wait::{self, SOON};
use muster_tests::{Cluster, Programs};
use serde_json::Value;

use crate::deaths::SHORT;
use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "a_question_outlives_its_coordinator_and_its_answer_reaches_the_agent",
        answered_after_a_restart,
    ),
    (
        "of_two_answers_at_once_one_counts_and_the_other_is_told_so",
        answered_twice,
    ),
    (
        "a_question_of_an_attempt_that_has_ended_takes_no_answer",
        answered_too_late,
    ),
    (
        "an_attempt_goes_on_from_the_edits_of_one_whose_worker_was_killed_in_mid_turn",
        resumed,
    ),
];

/// One task whose agent asks before it writes what the answer was.
fn asking(cluster: &Cluster) -> Result<PathBuf> {
    seed(cluster)?;
    cluster.write_plan(
        "asking.yaml",
        "repo: { from: ./seed }\n\
         tasks:\n\
         \x20 - name: asks\n\
         \x20   agent: scripted\n\
         \x20   approvals: always\n\
         \x20   prompt: Write the answer down.\n\
         \x20   run: |\n\
         \x20     read -r prompt; echo session s1 model-1; echo ask command make all\n\
         \x20     read -r answer; echo \"$answer\" > answer; echo done\n",
    )
}

fn seed(cluster: &Cluster) -> Result<()> {
    std::fs::create_dir_all(cluster.folder().join("seed"))?;
    std::fs::write(cluster.folder().join("seed/README"), "seed\n")?;
    Ok(())
}

/// Ids of what is asked.
fn questions(cluster: &Cluster) -> Result<Vec<String>> {
    let asked = cluster.ask(["approvals", "--json"])?.success()?.json()?;
    let asked = asked["questions"].as_array().context("no questions")?;
    let ids = asked.iter().filter_map(|question| question["id"].as_str());
    Ok(ids.map(str::to_owned).collect())
}

fn the_question(cluster: &Cluster) -> Result<String> {
    wait::until("a question", SOON, || Ok(questions(cluster)?.pop()))
}

fn answer_of(cluster: &Cluster, run: &str) -> Result<String> {
    let diff = cluster.ask(["diff", run])?.success()?.out;
    let line = diff.lines().find_map(|line| line.strip_prefix("+answer "));
    line.map(str::to_owned)
        .with_context(|| format!("no answer in {diff}"))
}

fn answered_after_a_restart(programs: &Programs) -> Result<()> {
    with_cluster(programs, Some(SHORT), |cluster| {
        cluster.serve()?;
        let _worker = cluster.start_worker("one", 1)?;
        let run = cluster.submit(&asking(cluster)?)?;
        let id = the_question(cluster)?;
        let status = cluster.ask(["status"])?.success()?.out;
        let first = status.lines().find(|line| line.contains(&id));
        ensure!(first.is_some(), "status does not lead with {id}:\n{status}");
        cluster.kill_coordinator()?;
        cluster.serve()?;
        ensure!(questions(cluster)? == [id.as_str()], "the question is gone");
        let several = ["approve", "Q998", &id, "Q999", "--session"];
        let said = cluster.ask(several)?.expect(2)?;
        ensure!(
            said.out.contains(&id) || said.err.contains(&id),
            "{}",
            said.err
        );
        let open = "not answered: Q998, Q999";
        ensure!(said.err.contains(open), "{}", said.err);
        let status = cluster.ended(&run)?;
        ensure!(status.state() == "succeeded", "{}", status.json);
        ensure!(answer_of(cluster, &run)? == "1 session \"\"");
        ensure!(questions(cluster)?.is_empty());
        Ok(())
    })
}

fn answered_twice(programs: &Programs) -> Result<()> {
    with_cluster(programs, Some(SHORT), |cluster| {
        cluster.serve()?;
        let _worker = cluster.start_worker("one", 1)?;
        let run = cluster.submit(&asking(cluster)?)?;
        let id = the_question(cluster)?;
        let (yes, no) = std::thread::scope(|scope| {
            let yes = scope.spawn(|| cluster.ask(["approve", &id]));
            let no = scope.spawn(|| cluster.ask(["deny", &id]));
            (yes.join(), no.join())
        });
        let both = [yes, no].map(|said| said.map_err(|_| anyhow::anyhow!("panicked"))?);
        let [yes, no] = both;
        let (yes, no) = (yes?, no?);
        ensure!(
            (yes.code() == 0) != (no.code() == 0),
            "{}\n{}",
            yes.err,
            no.err
        );
        let (winner, loser) = if yes.code() == 0 {
            ("allow", &no)
        } else {
            ("deny", &yes)
        };
        ensure!(loser.err.contains(&id), "{}", loser.err);
        cluster.ended(&run)?;
        let answer = answer_of(cluster, &run)?;
        ensure!(answer.starts_with(&format!("1 {winner} ")), "{answer}");
        Ok(())
    })
}

fn answered_too_late(programs: &Programs) -> Result<()> {
    with_cluster(programs, Some(SHORT), |cluster| {
        cluster.serve()?;
        let _worker = cluster.start_worker("one", 1)?;
        let run = cluster.submit(&asking(cluster)?)?;
        let id = the_question(cluster)?;
        cluster.ask(["cancel", &run])?.success()?;
        cluster.ended(&run)?;
        let late = cluster.ask(["approve", &id])?.expect(2)?;
        ensure!(late.err.contains(&id), "{}", late.err);
        ensure!(questions(cluster)?.is_empty());
        Ok(())
    })
}

fn resumed(programs: &Programs) -> Result<()> {
    with_cluster(programs, Some(SHORT), |cluster| {
        seed(cluster)?;
        let note = cluster.folder().join("prompts");
        let plan = cluster.write_plan(
            "resumed.yaml",
            &format!(
                "repo: {{ from: ./seed }}\n\
                 tasks:\n\
                 \x20 - name: works\n\
                 \x20   agent: scripted\n\
                 \x20   prompt: Write two files.\n\
                 \x20   run: |\n\
                 \x20     read -r prompt; printf '%s\\n' \"$prompt\" >> {note}; echo session s1 m\n\
                 \x20     if test -e one; then echo usage m 10 0 1 0; echo two > two; echo done\n\
                 \x20     else echo usage m 100 0 1 0; echo one > one; read -r never; fi\n",
                note = note.display()
            ),
        )?;
        cluster.serve()?;
        let described = || -> Result<_> {
            let worker = cluster.worker("one", &cluster.address(), 1)?;
            Ok(worker.args(["--wip-interval", "1s"]))
        };
        let mut worker = cluster.start_described(&described()?, "one")?;
        let run = cluster.submit(&plan)?;
        let attempt_refs = |wanted: &str| -> Result<bool> {
            let status = cluster.status(&run)?;
            let refs = cluster.hosted_refs(&status)?;
            Ok(refs.iter().any(|name| name.contains(wanted)))
        };
        // Edits are kept while the agent works.
        wait::until_true("the edits are kept", wait::LONG, || attempt_refs("/wip/"))?;
        worker.kill()?;
        let _worker = cluster.start_described(&described()?, "one")?;
        let status = cluster.ended(&run)?;
        ensure!(status.state() == "succeeded", "{}", status.json);
        let diff = cluster.ask(["diff", &run])?.success()?.out;
        ensure!(diff.contains("+one") && diff.contains("+two"), "{diff}");
        let prompts = std::fs::read_to_string(&note)?;
        let told: Vec<&str> = prompts.lines().collect();
        ensure!(
            told.len() == 2 && told[1].contains("attempt 1"),
            "{prompts}"
        );
        let usage = cluster.ask(["usage", &run, "--json"])?.success()?.json()?;
        ensure!(sum(&usage, "input_tokens") == 110, "{usage}");
        Ok(())
    })
}

/// Adds up what the lines of a report say.
pub(crate) fn sum(usage: &Value, key: &str) -> u64 {
    let rows = usage["groups"].as_array().into_iter().flatten();
    rows.filter_map(|row| row[key].as_u64()).sum()
}
