//! One plan whose tasks leave what no repository should get: what can land lands, and what cannot
//! says why, where, and what to do.

use anyhow::{Result, ensure};
use muster_tests::Programs;
use muster_tests::repository::Repository;

use crate::repositories::{hosted, scripted, text};
use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[(
    "what_tasks_leave_lands_as_it_is_or_says_why_it_cannot",
    changes,
)];

const PLAN: &str = r"
name: changes
repo: ./user
defaults: { retries: 1 }
tasks:
  - name: commits
    run: |
      git checkout -q -b mine; printf x > x; git add x
      GIT_AUTHOR_NAME=Linus GIT_AUTHOR_EMAIL=l@example.org git commit -q -m 'By Linus'
      git checkout -q -b side HEAD~1; printf s > s; git add s; git commit -q -m Aside
      git checkout -q mine; git merge -q --no-ff -m Together side; git checkout -q --detach
      printf o > out.o; git add -f out.o; git commit -q -m Built; printf y > y
  - name: rewrites
    run: git commit -q --amend -m other; printf r > r
  - name: leftovers
    run: mkfifo pipe; mkdir empty; git init -q tool; printf t > tool/t; printf '<<<<<<< a\n' > marked
  - name: ruins
    run: rm -rf .git/objects; printf '[core]\n\tfsmonitor = touch /tmp/muster-ran\n' > .git/config; printf z > z; mkdir d; mv a d/a
  - name: nothing
    run: printf x > b; git commit -q -a -m x; git revert --no-edit HEAD
  - name: large
    run: head -c 3000000 /dev/urandom > big.bin
  - name: forbidden
    run: mkdir .GIT; printf x > .GIT/config; printf f > f
integrate: false
";

fn changes(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let at = Repository::at(cluster.folder(), &cluster.logs());
        at.shell(&scripted(
            "git init -q -b main user; cd user; printf '*.o\\n' > .gitignore; printf 1 > a
            printf 1 > b; git add -A; git commit -q -m one; git branch start",
        ))?;
        let plan = cluster.folder().join("changes.yaml");
        std::fs::write(&plan, PLAN)?;
        let call = cluster
            .call(["run", &plan.to_string_lossy(), "--slots", "3", "--json"])
            .var("MUSTER_CHANGE_LIMIT", "2MB");
        let output = call.run(&cluster.logs(), muster_tests::wait::LONG)?;
        let run = text(&output.last_json()?["run"])?;
        let status = cluster.status(&run)?;
        let states = status.states();
        let expected = [
            "commits succeeded",
            "forbidden failed",
            "large failed",
            "leftovers succeeded",
            "nothing succeeded",
            "rewrites succeeded",
            "ruins succeeded",
        ];
        let mut sorted = states.clone();
        sorted.sort();
        ensure!(sorted == expected, "{states:?}\n{}", output.err);

        // What cannot land is of a class, and its message names the file, the limit and the setting.
        let failure = |task: &str, attempts: usize| -> Result<(String, String)> {
            let list = status.attempts(task)?;
            ensure!(list.len() == attempts, "{task}: {list:?}");
            let failure = &list
                .last()
                .map(|last| last["failure"].clone())
                .unwrap_or_default();
            Ok((text(&failure["class"])?, text(&failure["message"])?))
        };
        let (class, message) = failure("large", 1)?;
        ensure!(class == "change_too_large", "{class}: {message}");
        for part in [
            "\"big.bin\" (3000 kB)",
            "limit of 2000 kB",
            "MUSTER_CHANGE_LIMIT",
        ] {
            ensure!(message.contains(part), "{part}: {message}");
        }
        let (class, message) = failure("forbidden", 2)?;
        ensure!(class == "agent_failed", "{class}: {message}");
        ensure!(message.contains(".GIT/config"), "{message}");
        let logs = |task: &str| -> Result<String> {
            let said = cluster.ask(["logs", &run, task])?.success()?;
            Ok(said.out + &said.err)
        };
        for task in ["large", "forbidden"] {
            let said = logs(task)?;
            let place = said
                .lines()
                .find(|line| line.contains("unfinished edits are kept on"));
            ensure!(place.is_some(), "{task}: {said}");
        }
        let kept = std::fs::read_dir(cluster.home().join("worker/0/kept"))?;
        let kept: Vec<_> = kept.flatten().map(|entry| entry.path()).collect();
        let has = |name: &str| {
            kept.iter()
                .any(|path| path.join("work").join(name).exists())
        };
        ensure!(has("big.bin") && has(".GIT/config"), "{kept:?}");

        // What is not hidden: everything that is different from what one might expect.
        for (task, parts) in [
            ("rewrites", &["do not begin at the base"][..]),
            (
                "leftovers",
                &[
                    "\"pipe\" is a pipe",
                    "\"empty\" is empty",
                    "\"tool\" is a repository of its own",
                    "marked:1",
                ],
            ),
            ("nothing", &["together they change nothing"]),
        ] {
            let said = logs(task)?;
            for part in parts {
                ensure!(said.contains(part), "{task}, {part}: {said}");
            }
        }
        ensure!(
            !std::path::Path::new("/tmp/muster-ran").exists(),
            "an agent's setting was obeyed"
        );

        let hosted = Repository::at(&hosted(cluster, &run)?, &cluster.logs());
        let base = Repository::at(&cluster.folder().join("user"), &cluster.logs())
            .git(["rev-parse", "HEAD"])?;
        // The agent commits as Muster, unless it says otherwise.
        let changed = |task: &str| {
            let branch = format!("refs/heads/muster/{run}/tasks/{task}");
            hosted.shell(&format!(
                "git --git-dir=. diff --name-status --no-renames {base} {branch}; \
                 git --git-dir=. log --format='%an %s' {base}..{branch} | sed '/^Muster/d' | sort"
            ))
        };
        for (task, expected) in [
            ("commits", "A\tout.o\nA\ts\nA\tx\nA\ty\nLinus By Linus\n"),
            ("rewrites", "A\tr\n"),
            ("leftovers", "A\tmarked\nA\ttool/t\n"),
            ("ruins", "D\ta\nA\td/a\nA\tz\n"),
        ] {
            let found = changed(task)?;
            ensure!(found == expected, "{task}:\n{found}");
        }
        Ok(())
    })
}
