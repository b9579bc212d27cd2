//! Rude programs: each is contained, reported in the right class, and cleaned up.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use muster_tests::Programs;
use muster_tests::figures::Taken;
use muster_tests::traces::with_variable;
use muster_tests::wait::{SOON, until, until_true};

use crate::{Scenario, say, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "programs_that_misbehave_in_any_way_fail_in_their_class_and_leave_nothing",
        rude,
    ),
    (
        "values_from_the_worker_reach_tasks_that_may_have_them_and_are_seen_nowhere",
        secrets,
    ),
    (
        "a_thousand_megabytes_of_output_are_drained_and_cut_and_cost_nobody_memory",
        flood,
    ),
];

/// Says of each task what it is to end as: `succeeded`, or the class of its failure.
const RUDE: &str = r#"
name: rude
defaults: { timeout: 1m, env: { E2E_RUDE: 'MARK' } }
tasks:
  - name: daemon.succeeded
    run: (setsid sh -c 'trap "" HUP TERM; echo $$ > FOLDER/daemon; while :; do sleep 600; done' &); until test -s FOLDER/daemon; do sleep 0.1; done
  - name: twice-forked.succeeded
    run: |
      ln -s /bin/sleep FOLDER/hidden-sleep
      (setsid setsid env -i /bin/sh -c '(trap "" HUP TERM; echo started > FOLDER/hidden; exec FOLDER/hidden-sleep 600) </dev/null >/dev/null 2>&1 &' &)
      until test -s FOLDER/hidden; do sleep 0.1; done
  - name: deaf.timed_out
    timeout: 2s
    run: trap '' TERM INT HUP; while :; do sleep 1; done
  - name: polite.timed_out
    timeout: 2s
    run: trap 'echo saved; exit 0' TERM; while :; do sleep 0.1; done
  - name: silent.stalled
    idle_timeout: 1s
    run: echo working; sleep 600
  - name: reader.succeeded
    run: read -r line; test $? = 1 && test "$(cat | wc -c)" = 0 && echo nothing to read
  - name: prompt.agent_failed
    run: test -t 0 || test -t 1 || (exec 3</dev/tty) || { echo needs a terminal >&2; exit 4; }
  - name: bytes.succeeded
    run: printf 'a\377\376\000b \033[31mred\033]0;title\007 \033[2J\n'; printf '\200\342\202' >&2
  - name: hog.disk_allowance
    disk: 8 MB
    run: while :; do head -c 1000000 /dev/zero | tr '\0' x >> big; sleep 0.05; done
  - name: hog-in-tmp.disk_allowance
    disk: 8 MB
    run: trap '' TERM; while :; do head -c 1000000 /dev/zero | tr '\0' x >> "$TMPDIR/big"; sleep 0.05; done
  - name: killed.agent_failed
    run: kill -KILL $$
  - name: environment.succeeded
    env: { OWN: mine }
    run: env | sed 's/=.*//' | sort | tr '\n' ' '
"#;

fn rude(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        cluster.serve()?;
        let worker = cluster
            .worker("w", &cluster.address(), 6)?
            .var("E2E_OF_THE_WORKER", "private");
        let _worker = cluster.start_described(&worker, "w")?;
        let mark = cluster.folder().to_string_lossy().into_owned();
        let plan = RUDE.replace("MARK", &mark).replace("FOLDER", &mark);
        let run = cluster.submit(&cluster.write_plan("rude.yaml", &plan)?)?;
        let status = cluster.ended(&run)?;
        for task in status.tasks() {
            let name = task["name"].as_str().unwrap_or_default();
            let (_, wanted) = name.rsplit_once('.').context("a class")?;
            let found = match task["state"].as_str() {
                Some("failed") => {
                    let last = task["attempts"].as_array().and_then(|all| all.last());
                    last.and_then(|last| last["failure"]["class"].as_str())
                }
                state => state,
            };
            ensure!(found == Some(wanted), "{name}: {task}");
        }

        let left = || with_variable("E2E_RUDE", &mark);
        until_true("no process is left", SOON, || Ok(left()?.is_empty()))?;
        let hidden = muster_tests::traces::mentioning(&format!("{mark}/hidden-sleep"));
        ensure!(hidden.is_empty(), "{hidden:?} are left");

        let logs = |task: &str| -> Result<String> {
            Ok(cluster.ask(["logs", &run, task])?.success()?.out)
        };
        let said = logs("bytes.succeeded")?;
        ensure!(said.contains("red"), "{said:?}");
        ensure!(!said.contains('\u{1b}') && !said.contains('\0'), "{said:?}");
        let said = logs("polite.timed_out")?;
        ensure!(said.contains("saved"), "{said:?}");
        let said = logs("prompt.agent_failed")?;
        ensure!(said.contains("needs a terminal"), "{said:?}");
        let said = logs("environment.succeeded")?;
        let known = "E2E_RUDE HOME MUSTER_ATTEMPT MUSTER_CONTEXT_FILE MUSTER_MARK MUSTER_RUN \
                     MUSTER_TASK OWN PATH PWD TERM TMPDIR";
        for name in said.split_whitespace().filter(|word| is_variable(word)) {
            ensure!(
                known.split(' ').any(|known| known == name),
                "{name} of {said:?}"
            );
        }
        ensure!(said.contains(" OWN "), "{said:?}");
        let hog = status.task("hog.disk_allowance")?.to_string();
        ensure!(
            hog.contains("8000000 are allowed (`disk` of the task"),
            "{hog}"
        );
        until_true("no folder of a lease is left", SOON, || {
            Ok(entries(&cluster.folders(), "leases") == 0)
        })
    })
}

/// Tells whether a word looks like a variable's name, and not like a word of the log's own.
fn is_variable(word: &str) -> bool {
    word.len() > 2
        && word
            .chars()
            .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
}

/// Counts what is in the folders of a name, anywhere below others.
fn entries(below: &[&Path], name: &str) -> usize {
    let mut found = 0;
    let mut left: Vec<_> = below.iter().map(|folder| folder.to_path_buf()).collect();
    while let Some(folder) = left.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            if folder.file_name().is_some_and(|folder| folder == name) {
                found += 1;
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push(entry.path());
            }
        }
    }
    found
}

const TOKEN: &str = "e2e-token-Zk3vPq81";
const KEY: &str = "first-line-of-the-key-Xy72\nsecond-line-of-the-key-Qw15";

fn secrets(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        cluster.serve()?;
        std::fs::create_dir(cluster.folder().join("code"))?;
        std::fs::write(cluster.folder().join("code/file"), "text\n")?;
        let key = cluster.folder().join("key.pem");
        std::fs::write(&key, format!("{KEY}\n"))?;
        let worker = cluster
            .worker("w", &cluster.address(), 2)?
            .args(["--secret", "DEPLOY=env:E2E_TOKEN", "--secret"])
            .args([format!("KEY={}", key.display())])
            .var("E2E_TOKEN", TOKEN);
        let mut worker = cluster.start_described(&worker, "w")?;
        let plan = format!(
            r#"
name: secrets
repo: {{ from: code }}
defaults: {{ timeout: 1m, retries: 2 }}
tasks:
  - name: has-them
    secrets: {{ DEPLOY: DEPLOY, KEY: {{ file: {key} }} }}
    env: {{ PUBLIC: shown, HOST_TOKEN: {{ env: E2E_TOKEN }} }}
    run: |
      printf %s "$DEPLOY" | head -c 9; sleep 0.3; printf %s "$DEPLOY" | tail -c +10; echo " token"
      echo "$KEY"; echo "$DEPLOY" >&2; echo "$KEY" | base64; echo "$DEPLOY" | fold -w 7
      printf '%s\n' "{{\"key\": \"$(echo "$KEY" | sed ':a;N;s/\n/\\n/;ba')\"}}"
      echo "$PUBLIC value"; echo done > done
    verify: ['test -z "$DEPLOY$KEY"', 'test -n "$HOST_TOKEN" && echo "verify $HOST_TOKEN"; env']
  - name: fails
    secrets: [DEPLOY]
    retries: 0
    run: echo "failed with $DEPLOY"; exit 1
  - {{ name: not-listed, run: 'true', secrets: [OTHER] }}
  - {{ name: any-file, run: 'true', secrets: {{ X: {{ file: /etc/passwd }} }} }}
integrate: false
"#,
            key = key.display(),
        );
        let run = cluster.submit(&cluster.write_plan("secrets.yaml", &plan)?)?;
        let status = cluster.ended(&run)?;
        ensure!(
            status.task_state("has-them")? == "succeeded",
            "{}",
            status.json
        );
        let said = cluster.ask(["logs", &run, "has-them"])?.success()?.out;
        ensure!(said.contains("*** token"), "{said}");
        ensure!(
            said.contains("\"***\"") && said.contains("shown value"),
            "{said}"
        );
        for (task, way_out) in [
            ("not-listed", "`--secret OTHER=FILE`"),
            ("any-file", "`--secret X=/etc/passwd`"),
        ] {
            let attempts = status.attempts(task)?;
            ensure!(attempts.len() == 1, "{attempts:?}");
            let failure = &attempts[0]["failure"];
            ensure!(failure["class"] == "secret_unavailable", "{failure}");
            ensure!(
                failure["message"].to_string().contains(way_out),
                "{failure}"
            );
        }
        let failure = status.attempts("fails")?[0]["failure"].to_string();
        ensure!(failure.contains("failed with ***"), "{failure}");

        worker.signal(rustix::process::Signal::TERM)?;
        worker.ended(SOON)?;
        let [folder, elsewhere] = cluster.folders();
        for value in [TOKEN, &KEY[..20], &KEY[30..50], "Zmlyc3QtbGluZS1v"] {
            let found = std::process::Command::new("grep")
                .args(["-rlaF", value])
                .args([folder, elsewhere])
                .output()?;
            let found = String::from_utf8_lossy(&found.stdout).into_owned();
            let found: Vec<_> = found
                .lines()
                .filter(|path| !path.ends_with("/key.pem"))
                .collect();
            ensure!(found.is_empty(), "{value} is in {found:?}");
        }
        Ok(())
    })
}

/// Memory that a gigabyte of output may cost anybody at most.
const COST_KIB_MAX: u64 = 128 << 10;

fn flood(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        cluster.serve()?;
        let worker = cluster.start_worker("w", 1)?;
        let ids = [
            worker.id()?.as_raw_nonzero().get(),
            cluster.coordinator()?.id()?.as_raw_nonzero().get(),
        ];
        let look =
            || -> Result<Vec<Taken>> { ids.iter().map(|id| Taken::by(&id.to_string())).collect() };
        let before = look()?;
        let plan = "tasks:\n  - { name: flood, timeout: 5m, \
                    run: \"yes 0123456789012345678901234567890 | head -c 1000000000; echo end\" }\n";
        let began = std::time::Instant::now();
        let run = cluster.submit(&cluster.write_plan("flood.yaml", plan)?)?;
        let status = cluster.ended(&run)?;
        ensure!(status.state() == "succeeded", "{}", status.json);
        let took = began.elapsed();
        let after = look()?;
        for (who, (before, after)) in ["worker", "coordinator"]
            .iter()
            .zip(before.iter().zip(&after))
        {
            let (from, to) = (before.resident_kib, after.resident_peak_kib);
            say(&format!(
                "1 GB of output in {took:.1?}: the {who} had {from} KiB before and {to} KiB at most"
            ));
            ensure!(to < from + COST_KIB_MAX, "{who}: {from} KiB, then {to} KiB");
        }
        // The report of a success may overtake the last of the output.
        let cut = until("the cut is told", SOON, || {
            let kept = cluster.ask(["logs", &run, "flood", "--json"])?;
            let kept = kept.success()?.out;
            let cut = kept.lines().rev().find(|line| line.contains("runcated"));
            say(&format!("{} bytes of logs, {cut:?}", kept.len()));
            Ok(cut.map(str::to_owned))
        })?;
        let dropped: u64 = cut
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|number| number.parse().ok())
            .filter(|number| *number < 1_000_000_004)
            .max()
            .unwrap_or_default();
        ensure!(dropped > 900_000_000, "{cut}");
        Ok(())
    })
}
