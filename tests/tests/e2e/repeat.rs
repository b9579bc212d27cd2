//! A plan that has not changed is followed, or run again on purpose, but never begun twice.

use anyhow::{Context as _, Result, ensure};
use muster_tests::Programs;
use muster_tests::files::Gates;
use muster_tests::wait::{LONG, SOON, until_true};

use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "of_two_runs_of_one_plan_begun_at_once_one_goes_on_and_the_other_says_how_to_follow_it",
        at_once,
    ),
    (
        "an_unchanged_plan_is_attached_to_or_run_again_as_asked",
        asked,
    ),
];

fn at_once(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let gates = Gates::new(cluster.folder())?;
        let text = format!("tasks:\n  - name: waits\n    run: {}\n", gates.wait("open"));
        let plan = cluster.write_plan("plan.yaml", &text)?;
        let plan = plan.to_string_lossy().into_owned();
        let begin = |name: &str| {
            cluster
                .call(["run", &plan, "--slots", "2", "--json"])
                .start(&cluster.logs(), name)
        };
        let (mut one, mut two) = (begin("one")?, begin("two")?);
        until_true("one of them is refused", SOON, || {
            Ok(!one.runs()? || !two.runs()?)
        })?;
        let (mut first, mut second) = if one.runs()? { (one, two) } else { (two, one) };
        let refused = second.ended(SOON)?;
        ensure!(refused.code() == Some(2), "{refused}: {}", second.errors());
        for way_out in ["--attach", "--again"] {
            ensure!(second.errors().contains(way_out), "{}", second.errors());
        }
        until_true("the first has begun", SOON, || {
            Ok(first.printed().contains("\"waits\""))
        })?;
        let mut attached = cluster
            .call(["run", &plan, "--attach", "--json"])
            .start(&cluster.logs(), "attached")?;
        until_true("the other has attached", SOON, || {
            Ok(attached.printed().contains("\"waits\""))
        })?;
        gates.open("open")?;
        for process in [&mut first, &mut attached] {
            let ended = process.ended(LONG)?;
            ensure!(ended.success(), "{ended}: {}", process.errors());
        }
        let listed = cluster.ask(["status", "--json"])?.success()?.json()?;
        ensure!(
            listed["runs"]
                .as_array()
                .is_some_and(|runs| runs.len() == 1),
            "{listed}"
        );
        Ok(())
    })
}

fn asked(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let text = "tasks:\n  - { name: quick, run: 'exit 3' }\n";
        let plan = cluster.write_plan("plan.yaml", text)?;
        let plan = plan.to_string_lossy().into_owned();
        let run = |more: &[&str], code: i32| -> Result<String> {
            let arguments = ["run", &plan, "--json"]
                .into_iter()
                .chain(more.iter().copied());
            let output = cluster.ask(arguments)?.expect(code)?;
            let last = output.last_json()?;
            last["run"]
                .as_str()
                .map(str::to_owned)
                .context("no run was named")
        };
        // That it fails is an end like another.
        let first = run(&[], 10)?;
        let refused = cluster.ask(["run", &plan])?.expect(2)?;
        for said in [first.as_str(), "failed", "--attach", "--again", "retry"] {
            ensure!(refused.err.contains(said), "{said}: {}", refused.err);
        }
        ensure!(run(&["--attach"], 10)? == first);
        let second = run(&["--again"], 10)?;
        ensure!(second != first);
        ensure!(run(&["--attach"], 10)? == second, "the last one is meant");
        // A key of one's own means what it always meant.
        let keyed = run(&["--idempotency-key", "mine"], 10)?;
        ensure!(run(&["--idempotency-key", "mine"], 10)? == keyed);
        ensure!(![&first, &second].contains(&&keyed));
        // What was changed is new.
        std::fs::write(&plan, format!("# changed\n{text}"))?;
        let changed = run(&[], 10)?;
        ensure!(![first, second, keyed].contains(&changed));
        Ok(())
    })
}
