//! Work that does not merge, work that lands, and branches that are copied elsewhere.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result, ensure};
use muster_tests::repository::Repository;
use muster_tests::{Cluster, Programs};
use serde_json::{Value, json};

use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "every_kind_of_conflict_is_told_with_its_lines_and_both_tasks",
        every_kind,
    ),
    (
        "a_base_that_cannot_be_made_is_told_with_its_lines_and_both_tasks",
        base_conflict,
    ),
    (
        "landing_obeys_the_persons_own_git_and_refuses_with_the_reason",
        landing,
    ),
    (
        "branches_are_copied_to_a_mirror_that_cannot_hold_up_a_run",
        mirrored,
    ),
];

/// What two tasks start from.
fn start(cluster: &Cluster) -> Result<Repository> {
    let path = cluster.folder().join("mine");
    std::fs::create_dir_all(&path)?;
    let mine = Repository::at(&path, &cluster.logs());
    mine.git(["init", "-q", "-b", "main"])?;
    mine.git(["config", "user.name", "Ann"])?;
    mine.git(["config", "user.email", "ann@example.org"])?;
    mine.write("text", "one\ntwo\nthree\n")?;
    mine.write("gone", "here\n")?;
    mine.write("old", "a file\nof some\nlines that\nis renamed\n")?;
    mine.write("moved", "another file\nof other\nlines that\nis moved\n")?;
    mine.write("kind", "a file\n")?;
    mine.shell("printf '\\000\\001' > pic; ln -s nowhere link")?;
    mine.git(["add", "."])?;
    mine.git(["commit", "-q", "-m", "start"])?;
    Ok(mine)
}

fn conflicts(run: &Value) -> Result<&Value> {
    let found = run["conflicts"].as_array().context("no conflicts")?;
    ensure!(found.len() == 1, "{run}");
    found.first().context("no conflict")
}

fn every_kind(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let mine = start(cluster)?;
        let plan = format!(
            "name: kinds\nrepo: {}\ndefaults: {{ timeout: 2m }}\ntasks:\n\
             \x20 - name: left\n    run: |\n\
             \x20     printf 'one\\nLEFT\\nthree\\n' > text; rm gone; mv old left-name; rm moved\n\
             \x20     printf '\\000\\002' > pic; ln -sfn left link; printf 'true\\n' > program\n\
             \x20     rm kind; ln -s text kind; echo file > both\n\
             \x20 - name: right\n    run: |\n\
             \x20     printf 'one\\n\\033[31mRIGHT\\nthree\\n' > text; echo more >> gone; mv old right-name\n\
             \x20     mv moved elsewhere; printf '\\000\\003' > pic; ln -sfn right link\n\
             \x20     printf 'true\\n' > program; chmod +x program; echo more >> kind\n\
             \x20     mkdir both; echo inside > both/file\n\
             integrate: {{ on_conflict: fail }}\n",
            mine.path().display()
        );
        let plan = cluster.write_plan("kinds.yaml", &plan)?;
        let ran = cluster
            .ask(["run", &plan.to_string_lossy(), "--json"])?
            .expect(11)?;
        let last = ran.last_json()?;
        let found = conflicts(&last)?;
        ensure!(
            found["task"] == "right" && found["onto_tasks"] == json!(["left"]),
            "{found}"
        );
        let files = found["files"].as_array().context("no files")?;
        let mut kinds = BTreeMap::new();
        for file in files {
            ensure!(file["tasks"] == json!(["left", "right"]), "{file}");
            kinds.insert(file["path"].as_str().unwrap_or_default(), &file["kind"]);
        }
        let wanted = [
            ("text", "content"),
            ("gone", "modify_delete"),
            ("old", "rename_rename"),
            ("elsewhere", "rename_delete"),
            ("pic", "binary"),
            ("link", "symlink"),
            ("program", "mode"),
            ("kind", "type_change"),
            ("both", "file_directory"),
        ];
        for (path, kind) in wanted {
            ensure!(
                kinds.get(path).is_some_and(|found| **found == kind),
                "{path} is no {kind}: {kinds:?}"
            );
        }
        let text = files
            .iter()
            .find(|file| file["path"] == "text")
            .context("no text")?;
        ensure!(
            text["hunks"]
                == json!([{
                    "line": 2,
                    "ours": "LEFT\n",
                    "theirs": "\u{1b}[31mRIGHT\n",
                    "cut": false,
                }]),
            "{text}"
        );

        // A person reads the same, without what would paint their terminal, and in `explain`, too.
        let run = last["run"].as_str().unwrap_or_default();
        for arguments in [vec!["status", run], vec!["explain", run, "right"]] {
            let said = cluster.ask(arguments)?.success()?.out;
            for wanted in ["LEFT", "RIGHT", "line 2, left", "line 2, right", "old, "] {
                ensure!(said.contains(wanted), "no {wanted:?} in {said}");
            }
            ensure!(!said.contains('\u{1b}'), "{said:?}");
        }

        // It does not land, and says why.
        let mut land = cluster.call(["land", run]);
        mine.path().clone_into(&mut land.folder);
        let before = mine.fingerprint()?;
        let refused = land.run(&cluster.logs(), muster_tests::wait::SOON)?;
        ensure!(
            refused.code() != 0 && refused.err.contains("does not merge"),
            "{}",
            refused.err
        );
        ensure!(mine.fingerprint()? == before, "something was touched");
        Ok(())
    })
}

fn base_conflict(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let mine = start(cluster)?;
        let plan = format!(
            "name: base\nrepo: {}\ndefaults: {{ timeout: 2m }}\ntasks:\n\
             \x20 - {{ name: left, run: echo LEFT > text }}\n\
             \x20 - {{ name: aside, run: echo aside > aside }}\n\
             \x20 - {{ name: right, run: echo RIGHT > text }}\n\
             \x20 - {{ name: top, depends_on: [left, aside, right], run: 'true' }}\n",
            mine.path().display()
        );
        let plan = cluster.write_plan("base.yaml", &plan)?;
        let ran = cluster.ask(["run", &plan.to_string_lossy(), "--json"])?;
        ensure!(ran.code() != 0, "it succeeded");
        let last = ran.last_json()?;
        let found = conflicts(&last)?;
        ensure!(
            found["base_of"] == "top"
                && found["task"] == "right"
                && found["onto_tasks"] == json!(["left"]),
            "{found}"
        );
        let hunk = &found["files"][0]["hunks"][0];
        ensure!(
            hunk["ours"] == "LEFT\n" && hunk["theirs"] == "RIGHT\n",
            "{found}"
        );
        let run = last["run"].as_str().unwrap_or_default();
        let said = cluster.ask(["explain", run, "top"])?.success()?.out;
        ensure!(
            said.contains("on which top builds") && said.contains("LEFT"),
            "{said}"
        );
        let said = cluster.ask(["explain", run, "aside", "--json"])?;
        ensure!(said.success()?.json()?["conflicts"] == json!([]), "aside");
        Ok(())
    })
}

fn landing(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let mine = start(cluster)?;
        let plan = format!(
            "name: land\nrepo: {}\ndefaults: {{ timeout: 2m }}\ntasks:\n\
             \x20 - {{ name: only, run: echo made > made }}\n",
            mine.path().display()
        );
        let plan = cluster.write_plan("land.yaml", &plan)?;
        let ran = cluster.ask(["run", &plan.to_string_lossy(), "--json"])?;
        let last = ran.success()?.last_json()?;
        ensure!(last["conflicts"] == json!([]), "{last}");
        let run = last["run"].as_str().unwrap_or_default().to_owned();
        let land = || {
            let mut land = cluster.call(["land", &run, "--json"]);
            mine.path().clone_into(&mut land.folder);
            land.run(&cluster.logs(), muster_tests::wait::SOON)
        };
        mine.git(["config", "muster.protected", "ma*"])?;
        let refused = land()?;
        ensure!(
            refused.code() != 0 && refused.err.contains("muster.protected"),
            "{}",
            refused.err
        );
        mine.git(["config", "--unset", "muster.protected"])?;

        // The branch has moved on; the merge passes the person's hook, and its message shows it.
        mine.write("own", "own\n")?;
        mine.git(["add", "own"])?;
        mine.git(["commit", "-q", "-m", "own"])?;
        let hook = mine.path().join(".git/hooks/commit-msg");
        std::fs::create_dir_all(hook.with_file_name(""))?;
        std::fs::write(&hook, "#!/bin/sh\necho 'Checked: yes' >> \"$1\"\n")?;
        std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755))?;
        let landed = land()?.success()?.json()?;
        ensure!(landed["result"] == "merged", "{landed}");
        let message = mine.git(["log", "-1", "--format=%B"])?;
        ensure!(message.contains("Checked: yes"), "{message}");
        ensure!(mine.path().join("made").exists(), "it did not land");
        let again = land()?.success()?.json()?;
        ensure!(again["result"] == "already", "{again}");
        Ok(())
    })
}

fn mirrored(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let mine = start(cluster)?;
        let path = cluster.folder().join("elsewhere.git");
        std::fs::create_dir_all(&path)?;
        let elsewhere = Repository::at(&path, &cluster.logs());
        elsewhere.git(["init", "-q", "--bare"])?;
        std::fs::create_dir_all(cluster.home())?;
        std::fs::write(
            cluster.home().join("config.toml"),
            format!(
                "[mirrors.\"mine-*\"]\nurl = \"file://{}\"\n",
                path.display()
            ),
        )?;
        let plan = format!(
            "name: mirror\nrepo: {}\ndefaults: {{ timeout: 2m }}\ntasks:\n\
             \x20 - {{ name: only, run: echo made > made }}\n",
            mine.path().display()
        );
        let plan = cluster.write_plan("mirror.yaml", &plan)?;
        let plan = plan.to_string_lossy().into_owned();
        let run = |cluster: &Cluster| {
            let ran = cluster.ask(["run", &plan, "--again", "--json"])?;
            ran.success()?.last_json()
        };
        let first = run(cluster)?;
        ensure!(first["mirror"]["state"] == "mirrored", "{first}");
        let name = first["run"].as_str().unwrap_or_default();
        let heads = |name: &str| {
            let pattern = format!("refs/heads/muster/{name}/");
            elsewhere.git([
                "for-each-ref",
                "--format=%(refname) %(objectname)",
                &pattern,
            ])
        };
        let there = heads(name)?;
        let commit = first["integration"]["commit"].as_str().unwrap_or_default();
        for wanted in [
            format!("refs/heads/muster/{name}/integration {commit}"),
            format!("refs/heads/muster/{name}/tasks/only "),
        ] {
            ensure!(there.contains(&wanted), "no {wanted} in {there}");
        }

        // One that protects its branches is told, and the run succeeds all the same.
        let hook = path.join("hooks/update");
        std::fs::create_dir_all(hook.with_file_name(""))?;
        std::fs::write(&hook, "#!/bin/sh\necho 'closed for today' >&2\nexit 1\n")?;
        std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755))?;
        let second = run(cluster)?;
        ensure!(second["state"] == "succeeded", "{second}");
        ensure!(second["mirror"]["state"] == "refused", "{second}");
        let why = second["mirror"]["detail"].as_str().unwrap_or_default();
        ensure!(why.contains("closed for today"), "{why}");
        let name = second["run"].as_str().unwrap_or_default();
        ensure!(heads(name)?.is_empty(), "it was pushed");
        // Opened to the branches again, the next start brings them.
        std::fs::remove_file(&hook)?;
        let third = run(cluster)?;
        ensure!(third["mirror"]["state"] == "mirrored", "{third}");
        ensure!(heads(name)?.contains("integration"), "it was forgotten");
        Ok(())
    })
}
