use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use muster_git::{BinaryFiles, Expected, RefName, Workspace};

use crate::world::{Put, World, ada, time};

/// Writes a program that leaves a trace when it runs.
fn trap(world: &World) -> (PathBuf, PathBuf) {
    let (program, trace) = (world.path("trap"), world.path("trace"));
    std::fs::write(
        &program,
        format!("#!/bin/sh\necho \"$0 $@\" >> {}\n", trace.display()),
    )
    .unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    (program, trace)
}

/// Makes every setting that can start a program start this one.
fn poison(git_dir: &Path, program: &Path) {
    let program = program.display();
    let config = format!(
        "[core]\n\tfsmonitor = {program}\n\thooksPath = {}\n\tsshCommand = {program}\n\
         \tpager = {program}\n\teditor = {program}\n\talternateRefsCommand = {program}\n\
         [filter \"evil\"]\n\tclean = {program}\n\tsmudge = {program}\n\tprocess = {program}\n\
         \trequired = true\n[diff \"evil\"]\n\tcommand = {program}\n\ttextconv = {program}\n\
         [diff]\n\texternal = {program}\n[merge \"evil\"]\n\tdriver = {program}\n\
         [credential]\n\thelper = {program}\n[gpg]\n\tprogram = {program}\n\
         [commit]\n\tgpgSign = true\n",
        git_dir.join("hooks").display()
    );
    std::fs::write(git_dir.join("config"), config).unwrap();
    std::fs::create_dir_all(git_dir.join("hooks")).unwrap();
    for hook in [
        "pre-commit",
        "post-index-change",
        "reference-transaction",
        "pre-push",
    ] {
        std::fs::copy(program.to_string(), git_dir.join("hooks").join(hook)).unwrap();
    }
}

async fn exercise(world: &World, workspace: &Workspace) {
    let (identity, base) = (ada(), workspace.base());
    let taken = workspace
        .snapshot("Work", &identity, time(2), base)
        .await
        .unwrap();
    let commit = taken.commit.unwrap();
    workspace
        .control()
        .patch(base, commit, BinaryFiles::Whole, 1 << 20)
        .await
        .unwrap();
    workspace.control().changes(base, commit).await.unwrap();
    let name = RefName::parse("refs/muster/attempts/r/t/1").unwrap();
    let pushed = workspace
        .push(&world.remote(), commit, &name, Expected::Absent)
        .await
        .unwrap();
    assert!(pushed.outcome.is_done(), "{pushed:?}");
}

#[tokio::test]
async fn no_setting_of_the_agents_repository_runs_a_program() {
    let world = World::new().await;
    let base = world.commit(&[], &[("a.txt", "1")]).await;
    let workspace = world.workspace(base).await;
    let (program, trace) = trap(&world);
    let work = workspace.work();
    poison(&work.join(".git"), &program);
    std::fs::write(
        work.join(".gitattributes"),
        "* filter=evil diff=evil merge=evil\n",
    )
    .unwrap();
    std::fs::write(work.join("a.txt"), "2").unwrap();
    // The trap itself works: git run by the agent falls into it.
    let command = world
        .git
        .command(muster_git::Mode::UserRepository)
        .directory(work);
    command.args(["status"]).run().await.unwrap();
    assert!(trace.exists());
    std::fs::remove_file(&trace).unwrap();
    exercise(&world, &workspace).await;
    assert!(
        !trace.exists(),
        "{}",
        std::fs::read_to_string(&trace).unwrap()
    );
}

#[tokio::test]
async fn no_setting_of_a_submodule_or_nested_repository_runs_a_program() {
    let world = World::new().await;
    let inner = world.commit(&[], &[("f", "1")]).await;
    let base = world
        .commit_of(&[], &[("a", Put::Text("1")), ("sub", Put::Link(inner))])
        .await;
    let workspace = world.workspace(base).await;
    let (program, trace) = trap(&world);
    // As after `git submodule update --init`: only then would git look for changes inside it.
    world.set("refs/heads/inner", inner).await;
    let origin = world.origin.folder().to_str().unwrap();
    for folder in ["sub", "nested"] {
        let folder = workspace.work().join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        world.as_agent(&folder, &["init", "-q", "."]).await;
        world
            .as_agent(&folder, &["fetch", "-q", origin, "refs/heads/inner"])
            .await;
        world
            .as_agent(&folder, &["checkout", "-q", "FETCH_HEAD"])
            .await;
        // Of the same length, so that git would have to read it, through the filter.
        std::fs::write(folder.join("f"), "2").unwrap();
        std::fs::write(folder.join(".gitattributes"), "* filter=evil\n").unwrap();
        poison(&folder.join(".git"), &program);
    }
    let command = world.git.command(muster_git::Mode::UserRepository);
    command
        .directory(&workspace.work().join("sub"))
        .args(["status"])
        .run()
        .await
        .unwrap();
    assert!(trace.exists());
    std::fs::remove_file(&trace).unwrap();
    exercise(&world, &workspace).await;
    exercise(&world, &workspace).await;
    assert!(
        !trace.exists(),
        "{}",
        std::fs::read_to_string(&trace).unwrap()
    );
}

#[tokio::test]
async fn an_agents_own_commits_run_the_repositorys_hooks_only_if_that_was_asked_for() {
    let world = World::new().await;
    let (program, trace) = trap(&world);
    let script = std::fs::read_to_string(program).unwrap();
    let folder = r#"tools/ho"o\ks"#;
    let hooks = ["pre-commit", "post-commit", "reference-transaction"];
    let hooks: Vec<_> = hooks
        .iter()
        .map(|hook| format!("{folder}/{hook}"))
        .collect();
    let mut files: Vec<_> = hooks
        .iter()
        .map(|hook| (hook.as_str(), Put::Program(&script)))
        .collect();
    files.push(("a.txt", Put::Text("1")));
    let base = world.commit_of(&[], &files).await;
    let workspace = world.workspace(base).await;
    let commit = async || {
        world
            .as_agent(
                workspace.work(),
                &["commit", "-q", "--allow-empty", "-m", "x"],
            )
            .await;
        trace.exists()
    };
    assert!(!commit().await);
    workspace.run_hooks_of(folder).await.unwrap();
    assert!(commit().await);
    let ran = std::fs::read_to_string(&trace).unwrap();
    assert!(
        ran.contains("pre-commit") && ran.contains("post-commit"),
        "{ran}"
    );
    std::fs::remove_file(&trace).unwrap();
    std::fs::write(workspace.work().join("a.txt"), "2").unwrap();
    exercise(&world, &workspace).await;
    assert!(!trace.exists());
}
