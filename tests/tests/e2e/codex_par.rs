//! A task file of codex-par, unchanged, with a script that stands in for codex.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use muster_tests::Programs;
use muster_tests::cluster::Cluster;
use muster_tests::repository::Repository;
use serde_json::Value;

use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "a_file_of_codex_par_runs_unchanged_and_leaves_its_files_where_asked",
        runs_unchanged,
    ),
    (
        "a_file_of_codex_par_works_on_a_copy_of_a_folder_that_is_no_repository",
        without_repository,
    ),
    (
        "a_task_for_codex_waits_and_is_explained_while_no_worker_has_codex",
        without_codex,
    ),
];

/// Does what words in its prompt say, and speaks as `codex exec --json` does.
const STAND_IN: &str = r#"#!/bin/sh
[ "$1" = exec ] || exit 2
while [ $# -gt 1 ]; do
    case $1 in -o) last=$2; shift ;; esac
    shift
done
prompt=$1
echo '{"type":"thread.started","thread_id":"0199"}'
echo '{"type":"item.started","item":{"id":"1","type":"command_execution","command":"/bin/sh -c '"'cat x'"'"}}'
echo "warning: a stand-in" >&2
case $prompt in
*FAIL*) echo '{"type":"turn.failed","error":{"message":"asked to fail"}}'; exit 3 ;;
esac
pwd -P >where.txt
printf '%s' "$prompt" >"$MUSTER_TASK.txt"
echo '{"type":"item.completed","item":{"id":"2","type":"agent_message","text":"Wrote it."}}'
echo '{"type":"turn.completed","usage":{"input_tokens":1200,"output_tokens":34}}'
printf 'Wrote it.' >"$last"
"#;

pub(crate) fn stand_in(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("codex-stand-in");
    std::fs::write(&path, STAND_IN)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// What `status --dir --json` says of a task.
fn meta<'a>(metas: &'a Value, task: &str) -> &'a Value {
    let metas = metas.as_array().map_or(&[][..], Vec::as_slice);
    metas
        .iter()
        .find(|meta| meta["name"] == task)
        .unwrap_or(&Value::Null)
}

fn board(cluster: &Cluster, out: &Path, code: i32) -> Result<Value> {
    let out = out.to_string_lossy();
    cluster
        .ask(["status", "--dir", &out, "--json"])?
        .expect(code)?
        .last_json()
}

fn runs_unchanged(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let codex = stand_in(cluster.folder())?;
        let app = Repository::foreign(&cluster.folder().join("user/app"), &cluster.logs(), 40)?;
        app.shell("mkdir -p services/api services/web && touch services/api/a services/web/b")?;
        app.git(["add", "services"])?;
        app.git(["commit", "-q", "-m", "Services"])?;
        let at = app.path().display();
        let text = format!(
            "tasks:
  - name: api
    cwd: {at}/services/api
    prompt: |
      Add the endpoint.
    model: gpt-5
    full_auto: true
    colour: blue
  - name: web
    cwd: {at}/services/web
    prompt: Use the endpoint.
    depends_on: [api]
  - name: broken
    cwd: {at}/services/web
    prompt: FAIL
  - name: never
    cwd: {at}/services/web
    prompt: Go on.
    depends_on: [broken]
"
        );
        let plan = cluster.write_plan("tasks.yaml", &text)?;
        let out = cluster.folder().join("out");
        let shown = out.to_string_lossy().into_owned();
        let ran = cluster
            .call([
                "run",
                &plan.to_string_lossy(),
                "--slots",
                "2",
                "--dir",
                &shown,
            ])
            .var("CODEX_BIN", codex.as_os_str())
            .run(&cluster.logs(), std::time::Duration::from_secs(60))?
            .expect(10)?;
        ensure!(ran.err.contains("colour"), "no warning: {}", ran.err);

        let read = |name: &str| std::fs::read_to_string(out.join(name));
        ensure!(read("outputs/api.md")? == "Wrote it.");
        ensure!(read("logs/api.jsonl")?.lines().count() == 4);
        ensure!(read("logs/api.stderr.log")? == "warning: a stand-in\n");
        ensure!(read("logs/broken.jsonl")?.contains("asked to fail"));
        ensure!(!out.join("outputs/never.md").exists());

        let metas = board(cluster, &out, 10)?;
        let api = meta(&metas, "api");
        let facts = [
            "status",
            "wave",
            "events_count",
            "input_tokens",
            "session_id",
            "exit_code",
        ]
        .map(|key| api[key].to_string());
        ensure!(
            facts == ["\"done\"", "0", "4", "1200", "\"0199\"", "0"],
            "{api}"
        );
        ensure!(api["prompt_preview"] == "Add the endpoint.\n", "{api}");
        let web = meta(&metas, "web");
        ensure!(web["status"] == "done" && web["wave"] == 1, "{web}");
        let broken = meta(&metas, "broken");
        ensure!(broken["status"] == "failed", "{broken}");
        ensure!(
            broken["error"]
                .as_str()
                .is_some_and(|why| why.contains("exit code 3")),
            "{broken}"
        );
        ensure!(meta(&metas, "never")["status"] == "cancelled", "{metas}");

        let tail = cluster.ask(["tail", "api", "--dir", &shown])?.success()?;
        for line in [
            "SESSION 0199",
            "READ    cat x",
            "TOKENS  1200 in, 34 out",
            "COMPLETE done",
        ] {
            ensure!(tail.out.lines().any(|said| said == line), "{}", tail.out);
        }
        let missing = cluster
            .ask(["tail", "../api", "--dir", &shown])?
            .expect(2)?;
        ensure!(missing.err.contains("no log of task"), "{}", missing.err);

        // The work is in the branches, each task's in the folder that it named.
        let run = metas[0]["run_id"].as_str().unwrap_or_default().to_owned();
        let diff = cluster.ask(["diff", &run, "web"])?.success()?;
        ensure!(diff.out.contains("services/web/web.txt"), "{}", diff.out);
        ensure!(!diff.out.contains("services/api"), "{}", diff.out);

        std::fs::write(out.join("run.meta.json"), "{}")?;
        cluster.ask(["clean", "--dir", &shown])?.success()?;
        ensure!(!out.join("outputs").exists() && !out.join("logs").exists());
        ensure!(out.join("run.meta.json").exists());
        Ok(())
    })
}

fn without_repository(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let codex = stand_in(cluster.folder())?;
        let folder = cluster.folder().join("user/notes");
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("old.txt"), "old\n")?;
        let plan = cluster.write_plan(
            "tasks.yaml",
            "tasks:\n  - name: only\n    cwd: user/notes\n    prompt: Say hello.\n",
        )?;
        let landed = cluster.folder().join("landed");
        let output = cluster
            .call(["run", &plan.to_string_lossy(), "--json"])
            .var("CODEX_BIN", codex.as_os_str())
            .run(&cluster.logs(), std::time::Duration::from_secs(60))?
            .success()?;
        let run = output.last_json()?["run"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        // The folder itself is as it was; what was made comes with `land`.
        ensure!(std::fs::read_dir(&folder)?.count() == 1);
        cluster
            .ask(["land", &run, "--repo", &landed.to_string_lossy()])?
            .success()?;
        ensure!(std::fs::read_to_string(landed.join("only.txt"))? == "Say hello.");
        ensure!(landed.join("old.txt").exists());
        Ok(())
    })
}

fn without_codex(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        cluster.serve()?;
        let worker = cluster.worker("plain", &cluster.address(), 1)?;
        let worker = worker.var("CODEX_BIN", "/nowhere/codex");
        let _worker = cluster.start_described(&worker, "plain")?;
        let folder = cluster.folder().join("user/notes");
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("old.txt"), "old\n")?;
        let plan = cluster.write_plan(
            "tasks.yaml",
            "tasks:\n  - name: only\n    cwd: user/notes\n    prompt: Say hello.\n",
        )?;
        let run = cluster.submit(&plan)?;
        let said = cluster.ask(["explain", &run, "only"])?.success()?;
        ensure!(said.out.contains("agent codex"), "{}", said.out);
        Ok(())
    })
}
