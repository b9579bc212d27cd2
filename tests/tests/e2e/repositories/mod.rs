//! One run on a repository with something of everything, one on a heavy history, and fifty
//! workspaces at once.

use anyhow::{Context as _, Result, ensure};
use muster_tests::repository::Repository;
use muster_tests::{Cluster, Programs, history};

use crate::{Scenario, say, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "a_repository_with_something_of_everything_lands_only_what_tasks_made",
        everything,
    ),
    (
        "a_hundred_megabytes_of_history_are_worked_on_like_any_other",
        heavy,
    ),
    ("fifty_workspaces_at_once_and_none_fails", fifty),
];

/// Makes `user` with a linked worktree `linked` beside it, in the folder it runs in.
const MAKE: &str = r#"
git init -q -b main library; (cd library; printf 'l\n' > l; git add l; git commit -q -m one)
git init -q -b main user; cd user
printf 'a\r\nb\r\n' > was-crlf.txt; git add -A; git commit -q -m before
printf '%s\n' '*.txt text' '*.bat text eol=crlf' '*.psd filter=lfs diff=lfs merge=lfs -text' \
    '*.u16 working-tree-encoding=UTF-16LE' '*.c ident' '*.x filter=trap' > .gitattributes
printf 'version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 12345\n' 7 > art.psd
printf 'one\r\n' > e.bat; printf 'h\0\n\0' > wide.u16; printf '$Id$\n' > id.c; printf 'x\n' > a.x
printf '1\n' > 'with space'; printf 2 > 'new
line'; printf 3 > 'quo"te'; printf 4 > -dash; printf 5 > "$(printf 'latin-\351')"; printf 6 > e; printf 7 > E
ln -s e link; ln -s /etc/passwd outside; ln -s nowhere dangling
printf '#!/bin/sh\n' > tool; chmod 755 tool; mkdir -p hooks sub/deep; printf s > sub/deep/s
printf '#!/bin/sh\ntouch %s/hook-ran\nexit 1\n' "$(dirname "$PWD")" > hooks/pre-push
for hook in pre-commit post-checkout reference-transaction pre-receive update post-merge; do cp hooks/pre-push hooks/$hook; done
chmod 755 hooks/*; printf 'out/\n' > .gitignore
git add .gitattributes .gitignore art.psd e.bat wide.u16 id.c a.x 'with space' 'new
line' 'quo"te' ./-dash latin* e E link outside dangling tool hooks sub
git submodule --quiet add ../library lib; git commit -q -m everything
git tag -a -m 'version one' v1; printf 'later\n' > later; git add later; git commit -q -m later
git worktree add -q --detach ../linked main
git config core.hooksPath hooks; git config filter.trap.smudge "pwd >> $PWD/../filter-ran; cat"
git config filter.trap.clean "pwd >> $PWD/../filter-ran; cat"; rm -f ../filter-ran
"#;

const PLAN: &str = r"
name: everything
repo: ./linked/sub
base: v1
tasks:
  - name: edits
    run: printf 'three\r\n' >> e.bat; printf 'w\0\n\0' >> wide.u16; printf more >> 'with space'
  - name: renames
    run: git mv tool tool2; git commit -q -m 'Rename the tool'; chmod 644 tool2
  - name: replaces
    run: rm link; mkdir link; printf x > link/x; rm -r -- -dash
  - name: nothing
    run: touch *; test ! -e later; test -z $(ls lib)
  - name: last
    depends_on: [edits, renames, replaces, nothing]
    run: test -e tool2; printf 'all\n' > all; printf 'y\n' >> a.x
integrate: { verify: ['test -e all', 'test -d link'] }
";

/// The same, done by hand in a plain clone.
const BY_HAND: &str = r"
printf 'three\r\n' >> e.bat; printf 'w\0\n\0' >> wide.u16; printf more >> 'with space'
git mv tool tool2; chmod 644 tool2; rm link; mkdir link; printf x > link/x; rm -r -- -dash
printf 'all\n' > all; printf 'y\n' >> a.x
git add e.bat wide.u16 'with space' tool2 link all a.x; git rm -q --cached -- -dash
git write-tree
";

fn everything(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let at = Repository::at(cluster.folder(), &cluster.logs());
        at.shell(&scripted(MAKE))?;
        let user = Repository::at(&cluster.folder().join("user"), &cluster.logs());
        let before = user.fingerprint()?;
        let plan = cluster.write_plan("everything.yaml", PLAN)?;
        let output = cluster
            .ask(["run", &plan.to_string_lossy(), "--slots", "3", "--json"])?
            .success()?;
        let last = output.last_json()?;
        let run = text(&last["run"])?;
        let commit = text(&last["integration"]["commit"])?;
        ensure!(
            user.fingerprint()? == before,
            "the user's repository was written to"
        );
        ensure!(!cluster.folder().join("hook-ran").exists(), "a hook ran");
        // A person's own filters run when their own git looks for changes that are not committed.
        let linked = cluster.folder().join("linked").display().to_string();
        let ran = std::fs::read_to_string(cluster.folder().join("filter-ran")).unwrap_or_default();
        ensure!(
            ran.lines().all(|place| place == linked),
            "a filter ran in {ran}"
        );

        let hosted = hosted(cluster, &run)?;
        let clone = format!("git clone -q --no-checkout {} by-hand", hosted.display());
        at.shell(&clone)?;
        let by_hand = Repository::at(&cluster.folder().join("by-hand"), &cluster.logs());
        let base = user.git(["rev-parse", "v1^{commit}"])?;
        by_hand.git(["checkout", "-q", "--detach", &base])?;
        let expected = by_hand.shell(BY_HAND)?;
        let tree = format!("{commit}^{{tree}}");
        let found = by_hand.shell(&format!(
            "git fetch -q origin {commit}; git rev-parse {tree}"
        ))?;
        let differs = by_hand.shell(&format!(
            "git diff --raw {} {}",
            expected.trim(),
            found.trim()
        ))?;
        ensure!(found == expected, "what landed differs:\n{differs}");
        let log = by_hand.shell(&format!("git log --format=%s {base}..{commit}"))?;
        ensure!(
            log.contains("Rename the tool"),
            "the task's own commit is not there: {log}"
        );
        Ok(())
    })
}

fn heavy(programs: &Programs) -> Result<()> {
    const MEGABYTES: usize = 100;
    with_cluster(programs, None, |cluster| {
        let begun = std::time::Instant::now();
        history::make(&cluster.folder().join("user"), MEGABYTES)?;
        let made = begun.elapsed();
        let text_of_plan = "name: heavy\nrepo: ./user\ntasks:\n  - name: one\n    run: printf x > x\n  \
                    - name: two\n    depends_on: [one]\n    run: test -e x; printf y > y\n";
        let plan = cluster.folder().join("heavy.yaml");
        std::fs::write(&plan, text_of_plan)?;
        let begun = std::time::Instant::now();
        let output = cluster
            .ask(["run", &plan.to_string_lossy(), "--json"])?
            .success()?;
        let took = begun.elapsed();
        let last = output.last_json()?;
        ensure!(last["tasks"]["succeeded"] == 2, "{last}");
        let doctor = cluster.ask(["doctor", "--json"])?.json()?;
        let checks = doctor["checks"].as_array().context("no checks")?;
        let used = checks.iter().find(|check| check["check"] == "disk use");
        let used = &used.context("doctor says nothing of disk use")?["bytes"];
        for part in ["repositories", "caches"] {
            let bytes = used[part].as_u64().unwrap_or_default();
            let expected = (MEGABYTES as u64) << 20;
            ensure!((expected..expected * 2).contains(&bytes), "{part}: {used}");
        }
        ensure!(used["journal"].as_u64() > Some(0), "{used}");
        say(&format!(
            "{MEGABYTES} MB of history: made in {made:.1?}, two tasks on it in {took:.1?}"
        ));
        Ok(())
    })
}

fn fifty(programs: &Programs) -> Result<()> {
    const AT_ONCE: usize = 50;
    with_cluster(programs, None, |cluster| {
        let folder = cluster.folder().join("there");
        std::fs::create_dir(&folder)?;
        std::fs::create_dir(cluster.folder().join("code"))?;
        std::fs::write(cluster.folder().join("code/a"), "1\n")?;
        // Nobody goes on before all are there.
        let there = folder.display();
        let mut plan =
            "name: fifty\nrepo: { from: ./code }\ndefaults: { timeout: 4m, retries: 0 }\n\
                        integrate: false\ntasks:\n"
                .to_owned();
        for number in 0..AT_ONCE {
            plan.push_str(&format!(
                "  - name: t{number}\n    run: |\n      : > {there}/{number}\n      \
                 until [ $(ls {there} | wc -l) -ge {AT_ONCE} ]; do sleep 0.2; done\n      \
                 printf {number} > n{number}\n"
            ));
        }
        let path = cluster.folder().join("fifty.yaml");
        std::fs::write(&path, plan)?;
        let slots = AT_ONCE.to_string();
        let output = cluster
            .ask(["run", &path.to_string_lossy(), "--slots", &slots, "--json"])?
            .success()?;
        let last = output.last_json()?;
        ensure!(last["tasks"]["succeeded"] == AT_ONCE, "{last}");
        let status = cluster.status(&text(&last["run"])?)?;
        for task in status.tasks() {
            let attempts = task["attempts"].as_array().map_or(0, Vec::len);
            ensure!(attempts == 1, "{task}");
        }
        Ok(())
    })
}

/// Gives the hosted repository of a run.
pub(crate) fn hosted(cluster: &Cluster, run: &str) -> Result<std::path::PathBuf> {
    let status = cluster.status(run)?;
    cluster.hosted(&text(&status.json["repository"])?)
}

pub(crate) fn text(value: &serde_json::Value) -> Result<String> {
    let text = value
        .as_str()
        .with_context(|| format!("{value} is no text"))?;
    Ok(text.to_owned())
}

/// Gives a script an author and permission for submodules in folders.
pub(crate) fn scripted(script: &str) -> String {
    let author = "export GIT_AUTHOR_NAME=Grace GIT_AUTHOR_EMAIL=grace@example.org \
                  GIT_COMMITTER_NAME=Grace GIT_COMMITTER_EMAIL=grace@example.org \
                  GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=protocol.file.allow GIT_CONFIG_VALUE_0=always";
    format!("set -eu; {author}\n{script}")
}
