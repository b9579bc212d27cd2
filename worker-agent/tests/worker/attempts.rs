//! What becomes of one lease.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use muster_proto::v1::{Outcome, outcome, report};
use serde_json::json;
use worker_agent::Wish;

use super::bench::{Bench, Worker, stopped, until};

fn failure(kind: report::Kind) -> (String, String, String) {
    let failure = match kind {
        report::Kind::Failed(failed) => failed.failure.unwrap(),
        report::Kind::GivenBack(failure) => failure,
        other => panic!("{other:?}"),
    };
    (failure.class, failure.message, failure.output)
}

fn outcome_of(kind: report::Kind) -> outcome::Kind {
    match kind {
        report::Kind::Succeeded(succeeded) => match succeeded.outcome {
            Some(Outcome { kind: Some(kind) }) => kind,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agents_edits_become_a_published_commit_and_its_folder_goes() {
    let bench = Bench::new().await;
    let worker = bench.worker();
    let script = r#"echo "hello $MUSTER_RUN/$MUSTER_TASK/$MUSTER_ATTEMPT"
        test "$MUSTER_BASE" = "$(git rev-parse HEAD)" && cat "$MUSTER_CONTEXT_FILE"
        touch "$TMPDIR/x"; echo edited > file; echo new > new"#;
    bench.fake.grant(bench.run(7, script)).await;
    let kind = bench.fake.last_word(7).await;
    let outcome::Kind::Commit(commit) = outcome_of(kind) else {
        panic!("no commit");
    };
    assert_eq!(
        bench.remote(&["rev-parse", "refs/muster/attempts/r/t/7"]),
        commit
    );
    assert_eq!(
        bench.remote(&["rev-parse", &format!("{commit}^")]),
        bench.base
    );
    assert_eq!(bench.remote_file(&commit, "file").unwrap(), "edited\n");
    assert_eq!(bench.remote_file(&commit, "new").unwrap(), "new\n");
    let message = bench.remote(&["log", "-1", "--format=%an <%ae>%n%B", &commit]);
    assert!(
        message.starts_with("Muster <muster@localhost>\nt\n"),
        "{message}"
    );
    assert!(
        message.contains("Muster-Run: r\nMuster-Task: t\nMuster-Attempt: 1"),
        "{message}"
    );
    bench.forgotten(7).await;
    let output = bench.fake.with(|state| state.output(7));
    assert_eq!(output, "hello r/t/1\n{\"prompt\":\"do it\"}");
    worker.wish(Wish::Drain);
    worker.ended().await.unwrap();
    let goodbye = bench.fake.with(|state| state.goodbye.clone());
    assert_eq!(goodbye.as_deref(), Some("drained"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_tree_is_reported_as_no_change() {
    let bench = Bench::new().await;
    let _worker = bench.worker();
    bench.fake.grant(bench.run(7, "echo base > file")).await;
    let outcome = outcome_of(bench.fake.last_word(7).await);
    assert!(matches!(outcome, outcome::Kind::NoChange(_)), "{outcome:?}");
    bench.forgotten(7).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_without_a_repository_works_in_an_empty_folder() {
    let bench = Bench::new().await;
    let _worker = bench.worker();
    let mut grant = bench.run(7, "ls -A; echo made > file");
    grant.source = None;
    bench.fake.grant(grant).await;
    let outcome = outcome_of(bench.fake.last_word(7).await);
    assert!(
        matches!(outcome, outcome::Kind::NoRepository(_)),
        "{outcome:?}"
    );
    bench.forgotten(7).await;
    assert_eq!(bench.fake.with(|state| state.output(7)), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_agent_is_reported_with_its_output_and_its_edits_are_kept() {
    let bench = Bench::new().await;
    let _worker = bench.worker();
    bench
        .fake
        .grant(bench.run(7, "echo half > file; echo oops >&2; exit 3"))
        .await;
    let (class, message, output) = failure(bench.fake.last_word(7).await);
    assert_eq!(
        (class.as_str(), message.as_str(), output.as_str()),
        ("agent_failed", "the agent ended with exit code 3", "oops\n")
    );
    assert_eq!(
        bench.remote_file("refs/muster/wip/r/t/7", "file").unwrap(),
        "half\n"
    );
    bench.forgotten(7).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_cannot_be_had_is_not_the_tasks_fault() {
    let bench = Bench::new().await;
    let _worker = bench.worker();
    let kind = |kind: &str, command: &[&str]| json!({"agent": {"name": "a", "kind": kind, "command": command}});
    bench
        .fake
        .grant(bench.attempt(7, &kind("command", &["/no/such/program"])))
        .await;
    let (class, message, _) = failure(bench.fake.last_word(7).await);
    assert_eq!(class, "agent_unavailable", "{message}");
    bench
        .fake
        .grant(bench.attempt(8, &kind("telepathy", &[])))
        .await;
    let (class, message, _) = failure(bench.fake.last_word(8).await);
    assert_eq!(class, "agent_unavailable");
    assert!(message.contains("telepathy"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn time_limits_end_an_agent_and_keep_its_edits() {
    let bench = Bench::new().await;
    let _worker = bench.worker();
    let mut grant = bench.run(7, "echo slow > file; echo begun; sleep 600");
    grant.timeout = Duration::from_millis(1500).try_into().ok();
    bench.fake.grant(grant).await;
    let document = json!({"run": "echo talking; sleep 600", "idle_timeout_ms": 700});
    bench.fake.grant(bench.attempt(8, &document)).await;
    let (class, _, output) = failure(bench.fake.last_word(7).await);
    assert_eq!((class.as_str(), output.as_str()), ("timed_out", "begun\n"));
    assert_eq!(
        bench.remote_file("refs/muster/wip/r/t/7", "file").unwrap(),
        "slow\n"
    );
    let (class, _, _) = failure(bench.fake.last_word(8).await);
    assert_eq!(class, "stalled");
}

#[tokio::test(flavor = "multi_thread")]
async fn work_in_progress_is_kept_while_the_agent_works() {
    let bench = Bench::new().await;
    let _worker = bench.worker();
    bench
        .fake
        .grant(bench.run(7, "echo one > file; sleep 600"))
        .await;
    let wip = || bench.remote_file("refs/muster/wip/r/t/7", "file");
    until("work in progress", || wip().filter(|text| text == "one\n")).await;
    bench.fake.stop(7).await;
    bench.fake.last_word(7).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_lease_ends_its_processes_and_salvages_its_edits() {
    let bench = Bench::new().await;
    let _worker = bench.worker();
    let pid_file = bench.folder.path().join("pid");
    let script = format!(
        "echo half > file; echo $$ > {}; sleep 600",
        pid_file.display()
    );
    bench.fake.grant(bench.run(7, &script)).await;
    let pid = until("the agent", || {
        let pid = std::fs::read_to_string(&pid_file).ok()?;
        pid.trim().parse::<u32>().ok()
    })
    .await;
    bench.fake.stop(7).await;
    assert_eq!(bench.fake.last_word(7).await, stopped());
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(
        bench
            .remote_file("refs/muster/salvage/r/t/7", "file")
            .unwrap(),
        "half\n"
    );
    assert_eq!(
        bench.remote_file("refs/muster/attempts/r/t/7", "file"),
        None
    );
    bench.forgotten(7).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_is_not_renewed_stops_by_itself_before_its_end() {
    let bench = Bench::new().await;
    bench.fake.with(|state| {
        state.ttl = Duration::from_millis(2400);
        state.renews = false;
    });
    let _worker = bench.worker();
    let began = std::time::Instant::now();
    bench
        .fake
        .grant(bench.run(7, "echo half > file; sleep 600"))
        .await;
    assert_eq!(bench.fake.last_word(7).await, stopped());
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(
        bench
            .remote_file("refs/muster/salvage/r/t/7", "file")
            .unwrap(),
        "half\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_commands_run_in_order_in_a_clean_checkout() {
    let bench = Bench::new().await;
    let _worker = bench.worker();
    bench
        .fake
        .grant(bench.verify(7, &["cat file", "test ! -e new; touch new", "ls"]))
        .await;
    let kind = bench.fake.last_word(7).await;
    assert!(matches!(kind, report::Kind::VerifyPassed(_)), "{kind:?}");
    bench
        .fake
        .grant(bench.verify(8, &["true", "echo bad; exit 4", "touch never"]))
        .await;
    let (class, message, output) = failure(bench.fake.last_word(8).await);
    assert_eq!(
        (class.as_str(), output.as_str()),
        ("verify_failed", "bad\n")
    );
    assert_eq!(message, "`echo bad; exit 4` ended with exit code 4");
    bench.forgotten(7).await;
    bench.forgotten(8).await;
    assert_eq!(
        bench.fake.with(|state| state.output(7)),
        "base\nfile\nnew\n"
    );
    assert_eq!(bench.remote(&["for-each-ref", "refs/muster"]), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_the_coordinator_does_not_have_is_a_workspace_failure() {
    let bench = Bench::new().await;
    let _worker = bench.worker();
    let mut grant = bench.run(7, "true");
    grant.source.as_mut().unwrap().commit = "a".repeat(40);
    bench.fake.grant(grant).await;
    let (class, _, _) = failure(bench.fake.last_word(7).await);
    assert_eq!(class, "workspace");
    bench.forgotten(7).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_has_the_values_that_the_operator_listed_and_nobody_sees_them() {
    let bench = Bench::new().await;
    let key = bench.folder.path().join("key");
    std::fs::write(&key, "file-value-1\n").unwrap();
    let mut options = bench.options();
    options.secrets = vec![
        "PATH_OF_WORKER=env:PATH".parse().unwrap(),
        format!("KEY={}", key.display()).parse().unwrap(),
    ];
    let _worker = Worker::start(options);
    let document = json!({
        "run": r#"test "$KEY" = file-value-1 && test "$P" = "$PATH" && echo "<$KEY>" && echo "$KEY" >&2
            exit 3"#,
        "secrets": {"KEY": {"file": key}}, "env_from": {"P": {"env": "PATH"}},
        "env": {"OPEN": "open"},
    });
    bench.fake.grant(bench.attempt(7, &document)).await;
    let (class, _, output) = failure(bench.fake.last_word(7).await);
    assert_eq!(
        (class.as_str(), output.as_str()),
        ("agent_failed", "<***>\n***\n")
    );
    bench.forgotten(7).await;
    assert!(bench.fake.with(|state| state.output(7)).contains("<***>"));
    let events = bench.fake.with(|state| format!("{:?}", state.events));
    assert!(!events.contains("file-value-1"), "{events}");

    // A verify has what `env` names, and no secret; one that the agent left in a file is hidden.
    let script = "test -z \"$KEY\" && test \"$P\" = \"$PATH\"; env; echo left: file-value-1";
    let mut verify = bench.verify(8, &[script]);
    let mut json: serde_json::Value = serde_json::from_slice(&verify.document).unwrap();
    json["secrets"] = document["secrets"].clone();
    json["env_from"] = document["env_from"].clone();
    verify.document = json.to_string().into_bytes();
    bench.fake.grant(verify).await;
    let kind = bench.fake.last_word(8).await;
    assert!(matches!(kind, report::Kind::VerifyPassed(_)), "{kind:?}");
    bench.forgotten(8).await;
    let output = bench.fake.with(|state| state.output(8));
    assert!(output.contains("P=***\n"), "{output}");
    assert!(output.contains("left: ***\n"), "{output}");
    let events = bench.fake.with(|state| format!("{:?}", state.events));
    assert!(!events.contains("file-value-1"), "{events}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_cannot_be_had_is_told_before_anything_runs() {
    let bench = Bench::new().await;
    let _worker = bench.worker();
    let document = json!({"run": "echo ran", "secrets": {"KEY": {"file": "/etc/passwd"}}});
    bench.fake.grant(bench.attempt(7, &document)).await;
    let (class, message, _) = failure(bench.fake.last_word(7).await);
    assert_eq!(class, "secret_unavailable", "{message}");
    assert!(message.contains("`--secret KEY=/etc/passwd`"), "{message}");
    bench.forgotten(7).await;
    assert_eq!(bench.fake.with(|state| state.output(7)), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_takes_more_disk_than_it_may_is_stopped_and_its_edits_are_kept() {
    let bench = Bench::new().await;
    let _worker = bench.worker();
    let document = json!({
        "run": r#"echo half > file; trap '' TERM; i=0
            while :; do head -c 1000000 /dev/zero | tr '\0' x > "$TMPDIR/$i"; i=$((i+1))
                test $i -lt 40 || i=0; done"#,
        "disk_bytes": 20_000_000,
    });
    bench.fake.grant(bench.attempt(7, &document)).await;
    let (class, message, _) = failure(bench.fake.last_word(7).await);
    assert_eq!(class, "disk_allowance", "{message}");
    assert!(
        message.contains("20000000 are allowed (`disk` of the task"),
        "{message}"
    );
    assert_eq!(
        bench.remote_file("refs/muster/wip/r/t/7", "file").unwrap(),
        "half\n"
    );
    bench.forgotten(7).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_that_the_wip_ref_holds_are_not_kept_again_if_nobody_takes_them() {
    let bench = Bench::new().await;
    let hook = bench.folder.path().join("demo.git/hooks/update");
    std::fs::create_dir_all(hook.parent().unwrap()).unwrap();
    let script = "#!/bin/sh\ncase \"$1\" in refs/muster/salvage/*) exit 1;; esac\n";
    std::fs::write(&hook, script).unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    let _worker = bench.worker();
    bench
        .fake
        .grant(bench.run(7, "echo half > file; sleep 600"))
        .await;
    until("the edit at its ref", || {
        bench.remote_file("refs/muster/wip/r/t/7", "file")
    })
    .await;
    bench.fake.stop(7).await;
    bench.forgotten(7).await;
    assert_eq!(bench.remote_file("refs/muster/salvage/r/t/7", "file"), None);
    assert!(!bench.state().join("kept").exists());
    let said = bench.fake.with(|state| format!("{:?}", state.events));
    assert!(said.contains("are kept at refs/muster/wip/r/t/7"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_stashes_is_kept_beside_its_result() {
    let bench = Bench::new().await;
    let _worker = bench.worker();
    let script = "git config user.name A; git config user.email a@localhost
        echo away > file; git stash -q";
    bench.fake.grant(bench.run(7, script)).await;
    let kind = outcome_of(bench.fake.last_word(7).await);
    assert!(matches!(kind, outcome::Kind::NoChange(_)), "{kind:?}");
    bench.forgotten(7).await;
    let kept = bench.remote_file("refs/muster/wip/r/t/7^1", "file");
    assert_eq!(kept.as_deref(), Some("away\n"));
    let said = bench.fake.with(|state| format!("{:?}", state.events));
    assert!(said.contains("stash@{0} is not in what"), "{said}");
    assert!(said.contains("at refs/muster/wip/r/t/7"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_message_of_an_agent_that_holds_a_secret_is_not_published() {
    let bench = Bench::new().await;
    let mut options = bench.options();
    options.secrets = vec!["PATH".parse().unwrap()];
    let _worker = Worker::start(options);
    let script = r#"git config user.name A; git config user.email a@localhost
        echo one > file; git commit -qam "with $SAID"; echo two > file; git commit -qam second"#;
    let document =
        json!({"run": script, "env": {"SAID": "nothing"}, "secrets": {"KEY": {"env": "PATH"}}});
    bench.fake.grant(bench.attempt(7, &document)).await;
    let outcome::Kind::Commit(commit) = outcome_of(bench.fake.last_word(7).await) else {
        panic!("no commit");
    };
    let count = |commit: &str| bench.remote(&["rev-list", "--count", commit]);
    assert_eq!(count(&commit), "3");
    let document = json!({"run": script, "secrets": {"SAID": {"env": "PATH"}}});
    bench.fake.grant(bench.attempt(8, &document)).await;
    let outcome::Kind::Commit(commit) = outcome_of(bench.fake.last_word(8).await) else {
        panic!("no commit");
    };
    assert_eq!(count(&commit), "2");
    assert_eq!(bench.remote_file(&commit, "file").unwrap(), "two\n");
    let said = bench.remote(&["log", "-1", "--format=%B", &commit]);
    assert!(said.starts_with("t\n"), "{said}");
}
