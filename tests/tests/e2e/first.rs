//! The first thing that a newcomer does.

use anyhow::{Result, ensure};
use muster_tests::Programs;
use muster_tests::repository::Repository;
use muster_tests::wait::LONG;
use serde_json::json;

use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "the_first_plan_runs_to_one_branch_that_passes_its_own_tests",
        first_plan,
    ),
    (
        "a_conflict_ends_a_run_with_its_own_code_and_names_both_tasks",
        conflict,
    ),
    (
        "a_wrong_plan_is_explained_at_its_place_and_stores_nothing",
        wrong_plan,
    ),
    (
        "a_run_that_its_own_coordinator_refuses_leaves_no_home_behind",
        refused_by_its_own,
    ),
    (
        "the_plans_of_the_repository_and_its_readme_are_right",
        plans,
    ),
    (
        "a_second_run_on_the_home_of_a_first_becomes_its_client",
        second_run,
    ),
];

fn first_plan(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let plan = cluster.plan("first.yaml");
        let output = cluster
            .ask(["run", &plan.to_string_lossy(), "--slots", "2", "--json"])?
            .success()?;
        let last = output.last_json()?;
        let run = last["run"].as_str().unwrap_or_default().to_owned();
        let branch = last["integration"]["branch"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let commit = last["integration"]["commit"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        ensure!(last["state"] == "succeeded", "{last}");
        ensure!(
            last["tasks"]["succeeded"] == 7 && last["tasks"]["failed"] == 0,
            "{last}"
        );
        ensure!(
            branch.contains(&run) && branch.ends_with("integration"),
            "{last}"
        );
        ensure!(commit.len() == 40, "{last}");
        // Every line before it is an event.
        let mut seqs = Vec::new();
        for line in output.out.lines().take(output.out.lines().count() - 1) {
            let event: serde_json::Value = serde_json::from_str(line)?;
            ensure!(event["seq"].is_u64(), "an event without seq: {line}");
            seqs.push(event["seq"].as_u64());
        }
        ensure!(!seqs.is_empty() && seqs.is_sorted(), "{seqs:?}");

        // The coordinator has ended with the run; the result is still there.
        let status = cluster.status(&run)?;
        for key in ["run", "state", "tasks", "integration"] {
            ensure!(
                status.json[key] == last[key],
                "{key}: {} and {}",
                status.json[key],
                last[key]
            );
        }
        let healed: Vec<_> = status
            .attempts("top")?
            .iter()
            .map(|attempt| {
                json!([
                    attempt["number"],
                    attempt["state"],
                    attempt["failure"]["class"]
                ])
            })
            .collect();
        ensure!(
            healed
                == [
                    json!([1, "failed", "verify_failed"]),
                    json!([2, "succeeded", null])
                ],
            "{healed:?}"
        );

        // All that is kept agrees, and all of it was looked at.
        let audit = cluster.ask(["audit", "--json"])?.success()?.last_json()?;
        let checked = &audit["checked"];
        ensure!(audit["clean"] == true && audit["notes"] == 0, "{audit}");
        let counted = [
            ("tasks", 7),
            ("runs", 1),
            ("archived", 1),
            ("open_leases", 0),
            ("repositories", 1),
            ("workers", 1),
            ("worker_leases", 0),
        ];
        for (what, count) in counted {
            ensure!(checked[what] == count, "{what}: {checked}");
        }
        // Each attempt and verify was leased once, and said something.
        ensure!(checked["leases"] == checked["transcripts"], "{checked}");

        // The branch is really there, and good.
        let mine = Repository::at(&cluster.folder().join("mine"), &cluster.logs());
        std::fs::create_dir(mine.path())?;
        mine.git(["init", "-q", "-b", "main"])?;
        let mut fetch = cluster.call(["fetch", &run]);
        mine.path().clone_into(&mut fetch.folder);
        fetch
            .run(&cluster.logs(), muster_tests::wait::SOON)?
            .success()?;
        let fetched = mine.git([
            "rev-parse",
            &format!("refs/remotes/muster/{run}/integration"),
        ])?;
        ensure!(fetched == commit, "fetched {fetched}, not {commit}");
        mine.git(["checkout", "-q", &commit])?;
        mine.shell("./test.sh")?;

        // A folder has no branch to land in, so its result lands in a repository of its own.
        let landed = Repository::at(&cluster.folder().join("landed"), &cluster.logs());
        let folder = landed.path().to_string_lossy().into_owned();
        cluster.ask(["land", &run, "--repo", &folder])?.success()?;
        ensure!(
            landed.git(["rev-parse", "HEAD"])? == commit,
            "something else was landed"
        );
        landed.shell("./test.sh")?;
        Ok(())
    })
}

fn conflict(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let plan = cluster.plan("conflict.yaml");
        let output = cluster
            .ask(["run", &plan.to_string_lossy(), "--json"])?
            .expect(11)?;
        let last = output.last_json()?;
        ensure!(
            last["state"] == "failed" && last["tasks"]["succeeded"] == 3,
            "{last}"
        );
        ensure!(
            last["integration"]["conflict_files"] == json!(["poem.txt"]),
            "{last}"
        );
        let mut tasks = last["integration"]["conflict_tasks"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        tasks.sort_by_key(ToString::to_string);
        ensure!(tasks == [json!("loud"), json!("quiet")], "{last}");
        // What was done is kept.
        let status = cluster.status(last["run"].as_str().unwrap_or_default())?;
        let refs = cluster.hosted_refs(&status)?;
        for task in ["loud", "quiet", "elsewhere"] {
            ensure!(
                refs.iter()
                    .any(|name| name.ends_with(&format!("/tasks/{task}"))),
                "{refs:?}"
            );
        }
        Ok(())
    })
}

fn refused_by_its_own(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        cluster.seed()?;
        let text = "name: small\nrepo: { from: ./seed }\ntasks:\n  - { name: a, run: 'true' }\n";
        let plan = cluster.write_plan("small.yaml", text)?;
        let plan = plan.to_string_lossy().into_owned();
        let (absent, long) = (cluster.folder().join("state/muster"), "k".repeat(300));
        // Found out only by the coordinator: the first before, the second after a run is looked for.
        let refused = [
            vec!["run", &plan, "--slots", "1", "--idempotency-key", &long],
            vec!["run", "--slots", "1", "--resume", "nosuch-aaaaaaa"],
        ];
        for arguments in &refused {
            let call = cluster.call(arguments.clone()).var("MUSTER_HOME", &absent);
            let said = call.run(&cluster.logs(), LONG)?;
            ensure!((1..=99).contains(&said.code()), "{}", said.err);
            ensure!(
                said.err.contains("started a coordinator"),
                "it was found out elsewhere: {}",
                said.err
            );
            let left = cluster.folder().join("state");
            ensure!(!left.exists(), "{} is left behind", left.display());
        }
        // A configuration is somebody's; a home that holds runs is everybody's.
        let config = cluster.home().join("config.toml");
        std::fs::write(&config, "")?;
        cluster.ask(refused[0].clone())?;
        let left = std::fs::read_dir(cluster.home())?.count();
        ensure!(left == 1 && config.exists(), "{left} files are left");
        cluster.ask(["run", &plan, "--slots", "1"])?.success()?;
        let refused = cluster.ask(refused[0].clone())?;
        ensure!((1..=99).contains(&refused.code()), "{}", refused.err);
        let listed = cluster.ask(["status", "--json"])?.success()?.json()?;
        let runs = listed["runs"].as_array().map(Vec::len);
        ensure!(runs == Some(1), "{listed}");
        Ok(())
    })
}

fn wrong_plan(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let text = "name: wrong\ntasks:\n  - name: a\n    run: 'true'\n    depend_on: [b]\n";
        let plan = cluster.write_plan("wrong.yaml", text)?;
        let path = plan.to_string_lossy().into_owned();
        let output = cluster.ask(["plan", "check", &path])?;
        ensure!(
            (1..=99).contains(&output.code()),
            "exit code {}",
            output.code()
        );
        ensure!(
            output.err.contains(&format!("{path}:5:5: ")),
            "{}",
            output.err
        );
        ensure!(
            output.err.contains("depends_on"),
            "no suggestion: {}",
            output.err
        );
        let refused = cluster.ask(["run", &path])?;
        ensure!(
            (1..=99).contains(&refused.code()),
            "exit code {}",
            refused.code()
        );
        let listed = cluster.ask(["status", "--json"])?.success()?.json()?;
        ensure!(listed["runs"] == json!([]), "{listed}");
        Ok(())
    })
}

fn plans(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let readme = std::fs::read_to_string(programs.source.join("README.md"))?;
        let blocks = readme.split("```yaml\n").skip(1);
        let mut plans = Vec::new();
        for (index, block) in blocks.enumerate() {
            let text = block.split("```").next().unwrap_or_default();
            plans.push(cluster.write_plan(&format!("readme-{index}.yaml"), text)?);
        }
        ensure!(!plans.is_empty(), "the README shows no plan");
        for entry in std::fs::read_dir(programs.source.join("tests/plans"))? {
            let path = entry?.path();
            plans.extend(
                path.extension()
                    .is_some_and(|kind| kind == "yaml")
                    .then_some(path),
            );
        }
        for plan in plans {
            cluster
                .ask(["plan", "check", &plan.to_string_lossy()])?
                .success()?;
        }
        Ok(())
    })
}

fn second_run(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let gates = muster_tests::files::Gates::new(cluster.folder())?;
        let slow = format!("tasks:\n  - name: waits\n    run: {}\n", gates.wait("open"));
        let slow = cluster.write_plan("slow.yaml", &slow)?;
        let quick =
            cluster.write_plan("quick.yaml", "tasks:\n  - { name: quick, run: 'true' }\n")?;
        let mut first = cluster
            .call(["run", &slow.to_string_lossy(), "--slots", "2", "--json"])
            .start(&cluster.logs(), "first")?;
        muster_tests::wait::until_true(
            "the first run has begun",
            muster_tests::wait::SOON,
            || Ok(first.printed().contains("\"waits\"")),
        )?;
        let second = cluster
            .ask(["run", &quick.to_string_lossy(), "--json"])?
            .success()?;
        ensure!(
            second.last_json()?["state"] == "succeeded",
            "{}",
            second.out
        );
        ensure!(
            first.runs()?,
            "the first run has ended with the second: {}",
            first.errors()
        );
        gates.open("open")?;
        let ended = first.ended(muster_tests::wait::SOON)?;
        ensure!(ended.success(), "the first run: {ended}");
        Ok(())
    })
}
