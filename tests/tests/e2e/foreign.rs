//! A hundred tasks on somebody's real repository.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use muster_tests::Programs;
use muster_tests::repository::Repository;

use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[(
    "a_hundred_tasks_on_a_foreign_repository_touch_nothing_of_it_before_land",
    hundred,
)];

const TASKS: usize = 100;

fn hundred(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let mine = Repository::foreign(&cluster.folder().join("mine"), &cluster.logs(), 400)?;
        mine.leave_edits()?;
        let start = mine.git(["rev-parse", "HEAD"])?;
        let mut plan = format!(
            "name: hundred\nrepo: {}\ndefaults: {{ timeout: 5m }}\ntasks:\n",
            mine.path().display()
        );
        for task in 1..=TASKS {
            // Most depend on nothing; each tenth on the nine before it.
            let before: Vec<_> = (task.saturating_sub(9)..task)
                .map(|of| format!("t{of}"))
                .collect();
            let after = if task % 10 == 0 {
                before.join(", ")
            } else {
                String::new()
            };
            plan.push_str(&format!(
                "  - name: t{task}\n    depends_on: [{after}]\n    run: mkdir -p out && git ls-files | \
                 wc -l > out/{task}.txt && echo {task} >> 'src/part{part}/file {file}.txt'\n",
                part = task % 17,
                file = task % 211,
            ));
        }
        plan.push_str("integrate:\n  verify: ['test $(ls out | wc -l) -eq 100']\n");
        let plan = cluster.write_plan("hundred.yaml", &plan)?;

        let before = mine.fingerprint()?;
        let output = cluster
            .ask(["run", &plan.to_string_lossy(), "--slots", "8", "--json"])?
            .success()?;
        let last = output.last_json()?;
        ensure!(last["tasks"]["succeeded"] == TASKS, "{last}");
        ensure!(
            difference(&before, &mine.fingerprint()?).is_empty(),
            "{:?}",
            difference(&before, &mine.fingerprint()?)
        );

        // With edits in the way nothing is landed, and nothing touched.
        let run = last["run"].as_str().unwrap_or_default();
        let mut land = cluster.call(["land", run]);
        mine.path().clone_into(&mut land.folder);
        let refused = land.run(&cluster.logs(), muster_tests::wait::SOON)?;
        ensure!(
            refused.code() == 2,
            "landed over edits: {} {}",
            refused.out,
            refused.err
        );
        ensure!(
            mine.git(["rev-parse", "HEAD"])? == start,
            "a refused land has moved HEAD"
        );
        ensure!(
            mine.git(["status", "--porcelain"])?.lines().count() == 3,
            "edits were touched"
        );

        mine.git(["stash", "-q", "-u"])?;
        land.run(&cluster.logs(), muster_tests::wait::SOON)?
            .success()?;
        let commit = last["integration"]["commit"].as_str().unwrap_or_default();
        ensure!(
            mine.git(["rev-parse", "main"])? == commit,
            "main is not the integrated commit"
        );
        ensure!(
            mine.git(["status", "--porcelain"])?.is_empty(),
            "the checkout is not main's"
        );
        ensure!(
            mine.shell("ls out | wc -l")?.trim() == "100",
            "not everything arrived"
        );
        // The executable bit, the symbolic link and history are as they were.
        mine.git(["merge-base", "--is-ancestor", &start, "main"])?;
        ensure!(
            mine.shell("bin/alias")?.trim() == "tool",
            "the link or its mode is lost"
        );
        Ok(())
    })
}

/// Files that came, went or changed.
fn difference(
    before: &BTreeMap<PathBuf, Vec<u8>>,
    after: &BTreeMap<PathBuf, Vec<u8>>,
) -> Vec<PathBuf> {
    let changed = before
        .iter()
        .filter(|(path, bytes)| after.get(*path) != Some(bytes));
    let came = after.iter().filter(|(path, _)| !before.contains_key(*path));
    changed.chain(came).map(|(path, _)| path.clone()).collect()
}
