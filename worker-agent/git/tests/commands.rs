use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use muster_git::{Git, GitError, Mode};

use crate::world::World;

#[tokio::test]
async fn an_old_git_is_refused_with_both_versions() {
    let world = World::new().await;
    let script = world.path("git");
    let answer = |text: &str| {
        std::fs::write(&script, format!("#!/bin/sh\necho '{text}'\n")).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    answer("git version 2.39.5");
    let error = Git::at(&script).await.unwrap_err().to_string();
    assert!(
        error.contains("2.39.5") && error.contains("2.41.0"),
        "{error}"
    );
    answer("hello");
    assert!(matches!(
        Git::at(&script).await,
        Err(GitError::UnknownVersion { .. })
    ));
    let missing = Git::at(&world.path("nothing")).await.unwrap_err();
    assert!(matches!(missing, GitError::Process { .. }), "{missing}");
}

#[tokio::test]
async fn a_command_that_takes_too_long_is_stopped_with_its_children() {
    let world = World::new().await;
    let marker = world.path("alive");
    let script = format!("!trap '' TERM; echo $$ > {}; sleep 600", marker.display());
    let command = world
        .git
        .command(Mode::Hermetic)
        .config("alias.hang", script);
    let command = command.arg("hang").timeout(Duration::from_millis(300));
    let error = command.run().await.unwrap_err();
    assert!(
        matches!(error, GitError::TimedOut { .. }) && error.is_transient(),
        "{error}"
    );
    let process = std::fs::read_to_string(&marker).unwrap();
    let process = std::path::PathBuf::from(format!("/proc/{}", process.trim()));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    // A killed process may stay listed until it is reaped by whoever adopted it.
    let is_dead = || match std::fs::read_to_string(process.join("stat")) {
        Ok(stat) => stat.contains(") Z "),
        Err(_) => true,
    };
    while !is_dead() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{} is still alive",
            process.display()
        );
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn errors_show_the_arguments_but_no_secret() {
    let world = World::new().await;
    let command = world.git.command(Mode::Hermetic).secret("hunter2");
    let error = command
        .args(["no-such-command", "hunter2 x"])
        .run_ok()
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("no-such-command") && text.contains("exit code 1"),
        "{text}"
    );
    assert!(!text.contains("hunter2"), "{text}");
    let script = "!echo hunter2 >&2; exit 3";
    let command = world
        .git
        .command(Mode::Hermetic)
        .secret("hunter2")
        .config("alias.tell", script);
    let output = command.arg("tell").run().await.unwrap();
    assert_eq!((output.exit_code, output.stderr.as_str()), (Some(3), "***"));
}

#[tokio::test]
async fn output_is_bounded_and_standard_input_is_read() {
    let world = World::new().await;
    let endless = || {
        world
            .git
            .command(Mode::Hermetic)
            .config("alias.yes", "!yes")
            .arg("yes")
    };
    let output = endless().stdout_limit(1000).run_truncated().await.unwrap();
    assert!(output.truncated && output.stdout.len() == 1000);
    let error = endless().stdout_limit(1000).run().await.unwrap_err();
    assert!(
        matches!(
            error,
            GitError::OutputTooLong {
                limit_bytes: 1000,
                ..
            }
        ),
        "{error}"
    );
    let large = vec![b'x'; 1 << 20];
    let cat = world
        .git
        .command(Mode::Hermetic)
        .config("alias.cat", "!cat")
        .arg("cat");
    assert_eq!(
        cat.stdin(large.clone()).run_ok().await.unwrap().stdout,
        large
    );
    let noisy = world
        .git
        .command(Mode::Hermetic)
        .config("alias.noise", "!seq 100000 >&2");
    let output = noisy.arg("noise").run_ok().await.unwrap();
    assert!(output.stderr.len() <= 16 << 10 && output.stderr.ends_with("100000"));
}

#[tokio::test]
async fn a_person_keeps_configuration_and_hooks_where_muster_has_none() {
    let world = World::new().await;
    let checkout = world.path("checkout");
    std::fs::create_dir(&checkout).unwrap();
    world.as_agent(&checkout, &["init", "-q", "."]).await;
    world
        .as_agent(&checkout, &["config", "core.hooksPath", "my-hooks"])
        .await;
    let ask = async |mode| {
        let command = world.git.command(mode).git_dir(&checkout.join(".git"));
        command
            .args(["config", "core.hooksPath"])
            .run_ok()
            .await
            .unwrap()
            .text()
    };
    assert_eq!(ask(Mode::UserRepository).await, "my-hooks");
    assert_eq!(ask(Mode::Hermetic).await, "/dev/null");
    let environment = async |mode| {
        let command = world
            .git
            .command(mode)
            .config("alias.tell", "!env")
            .arg("tell");
        command.run_ok().await.unwrap().text()
    };
    let hermetic = environment(Mode::Hermetic).await;
    assert!(hermetic.contains("GIT_CONFIG_GLOBAL=/dev/null") && hermetic.contains("LC_ALL=C"));
    assert!(!hermetic.contains("CARGO"), "{hermetic}");
    let user = environment(Mode::UserRepository).await;
    assert!(user.contains("GIT_TERMINAL_PROMPT=0") && !user.contains("GIT_CONFIG_NOSYSTEM=1"));
}
