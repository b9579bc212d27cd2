use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use muster_git::{GitError, ObjectFormat, ObjectId, Snapshot, SnapshotNote, Workspace};

use crate::world::{Put, World, ada, file, listing, time};

async fn snapshot(workspace: &Workspace) -> Snapshot {
    workspace
        .snapshot("Work", &ada(), time(2), workspace.base())
        .await
        .unwrap()
}

fn write(work: &Path, path: &str, text: &str) {
    let path = work.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn nested(path: &str) -> SnapshotNote {
    SnapshotNote::NestedRepository {
        path: path.to_owned(),
    }
}

#[tokio::test]
async fn everything_but_ignored_files_is_taken_in_whatever_it_is_called() {
    for format in [ObjectFormat::Sha1, ObjectFormat::Sha256] {
        let world = World::with_format(format).await;
        let files = [
            (".gitignore", "target/\n"),
            ("gone", "x"),
            ("kept", "x"),
            ("run", "x"),
        ];
        let base = world.commit(&[], &files).await;
        let workspace = world.workspace(base).await;
        let work = workspace.work();
        assert_eq!(std::fs::read_to_string(work.join("kept")).unwrap(), "x");
        std::fs::remove_file(work.join("gone")).unwrap();
        write(work, "target/big.o", "ignored");
        write(work, "-rf", "dash");
        write(work, "a \"b\"\n'c'", "quotes");
        write(work, ":(top)x", "magic");
        write(work, "dir/ü", "utf8");
        let odd = work.join(OsStr::from_bytes(b"\xff\xfe"));
        std::fs::write(odd, "bytes").unwrap();
        symlink("/etc/passwd", work.join("link")).unwrap();
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(work.join("run"), executable).unwrap();
        let taken = snapshot(&workspace).await;
        assert_eq!(taken.notes, []);
        assert_eq!(
            listing(workspace.control(), taken.tree).await,
            [
                "100644 -rf",
                "100644 .gitignore",
                "100644 :(top)x",
                "100644 a \"b\"\n'c'",
                "100644 dir/ü",
                "100644 kept",
                "120000 link",
                "100755 run",
                "100644 \u{fffd}\u{fffd}",
            ]
        );
        let commit = taken.commit.unwrap();
        assert_eq!(
            file(workspace.control(), commit, "link").await,
            "/etc/passwd"
        );
        let described = workspace.control().commit(commit).await.unwrap();
        assert_eq!(
            (described.parents, described.tree),
            (vec![base], taken.tree)
        );
    }
}

#[tokio::test]
async fn an_untouched_work_tree_gives_no_commit_and_a_repeat_gives_the_same_one() {
    let world = World::new().await;
    let base = world.commit(&[], &[("a", "1")]).await;
    let workspace = world.workspace(base).await;
    let untouched = snapshot(&workspace).await;
    assert_eq!(untouched.commit, None);
    assert_eq!(untouched.tree, world.origin.tree_of(base).await.unwrap());
    write(workspace.work(), "a", "2");
    let first = snapshot(&workspace).await;
    assert!(first.commit.is_some());
    assert_eq!(snapshot(&workspace).await, first);
    let reopened = Workspace::open(&world.git, workspace.folder())
        .await
        .unwrap();
    assert_eq!(snapshot(&reopened).await, first);
    write(workspace.work(), "a", "1");
    assert_eq!(snapshot(&workspace).await.commit, None);
}

#[tokio::test]
async fn commits_of_the_agent_are_included_by_content() {
    let world = World::new().await;
    let base = world.commit(&[], &[("a", "1"), ("b", "1")]).await;
    let workspace = world.workspace(base).await;
    let work = workspace.work();
    assert_eq!(world.as_agent(work, &["status", "--porcelain"]).await, "");
    assert_eq!(
        world.as_agent(work, &["rev-parse", "HEAD"]).await,
        base.to_string()
    );
    assert_eq!(world.as_agent(work, &["remote"]).await, "");
    write(work, "a", "2");
    world
        .as_agent(work, &["checkout", "-q", "-b", "mine"])
        .await;
    world
        .as_agent(work, &["commit", "-q", "-a", "-m", "Mine"])
        .await;
    let author = world
        .as_agent(work, &["log", "-1", "--format=%an <%ae>"])
        .await;
    assert_eq!(author, "Ada \"the\" Agent <ada@muster.invalid>");
    world.as_agent(work, &["gc", "--prune=now", "-q"]).await;
    write(work, "c", "1");
    let taken = snapshot(&workspace).await;
    let commit = taken.commit.unwrap();
    assert_eq!(file(workspace.control(), commit, "a").await, "2");
    assert_eq!(file(workspace.control(), commit, "c").await, "1");
    assert_eq!(
        workspace.control().commit(commit).await.unwrap().parents,
        [base]
    );
}

#[tokio::test]
async fn repositories_inside_the_tree_are_taken_in_as_plain_files() {
    let world = World::new().await;
    let base = world.commit(&[], &[("a", "1")]).await;
    let workspace = world.workspace(base).await;
    let work = workspace.work();
    for folder in ["full", "full/deep", "fresh one", "hollow"] {
        std::fs::create_dir_all(work.join(folder)).unwrap();
        world
            .as_agent(&work.join(folder), &["init", "-q", "."])
            .await;
    }
    for folder in ["full", "full/deep"] {
        write(work, &format!("{folder}/f"), "x");
        world
            .as_agent(&work.join(folder), &["config", "user.email", "a@b"])
            .await;
        world
            .as_agent(&work.join(folder), &["config", "user.name", "a"])
            .await;
        world.as_agent(&work.join(folder), &["add", "f"]).await;
        world
            .as_agent(&work.join(folder), &["commit", "-q", "-m", "x"])
            .await;
    }
    write(work, "fresh one/.gitignore", "out\n");
    write(work, "fresh one/out", "ignored");
    let expected = [
        "100644 a",
        "100644 fresh one/.gitignore",
        "100644 full/deep/f",
        "100644 full/f",
    ];
    let taken = snapshot(&workspace).await;
    assert_eq!(listing(workspace.control(), taken.tree).await, expected);
    for folder in ["full", "full/deep", "fresh one"] {
        assert!(
            taken.notes.contains(&nested(folder)),
            "{folder}: {:?}",
            taken.notes
        );
    }
    assert_eq!(snapshot(&workspace).await.tree, taken.tree);
    assert!(snapshot(&workspace).await.notes.contains(&nested("full")));
    write(work, "full/f", "y");
    std::fs::remove_file(work.join("full/deep/f")).unwrap();
    let taken = snapshot(&workspace).await;
    assert_eq!(
        file(workspace.control(), taken.commit.unwrap(), "full/f").await,
        "y"
    );
    assert_eq!(
        listing(workspace.control(), taken.tree).await,
        ["100644 a", "100644 fresh one/.gitignore", "100644 full/f"]
    );
}

#[tokio::test]
async fn a_forged_name_does_not_reach_outside_the_work_tree() {
    let world = World::new().await;
    let base = world.commit(&[], &[("a", "1")]).await;
    let workspace = world.workspace(base).await;
    let work = workspace.work();
    std::fs::create_dir_all(workspace.folder().join("victim/.git")).unwrap();
    let forged = "x\nerror: '../victim/' does not have a commit checked out\n";
    std::fs::create_dir_all(work.join(forged)).unwrap();
    world
        .as_agent(&work.join(forged), &["init", "-q", "."])
        .await;
    write(work, "b", "1");
    let taken = snapshot(&workspace).await;
    let paths = listing(workspace.control(), taken.tree).await;
    assert_eq!(paths, ["100644 a", "100644 b"]);
    let notes = format!("{:?}", taken.notes);
    assert!(!notes.contains("path: \"../victim\""), "{notes}");
}

#[tokio::test]
async fn submodules_stay_unless_the_agent_removes_or_replaces_them() {
    let world = World::new().await;
    let link = ObjectId::parse(&"5".repeat(40)).unwrap();
    let files = [
        ("a", Put::Text("1")),
        ("s/one", Put::Link(link)),
        ("s/two", Put::Link(link)),
    ];
    let base = world.commit_of(&[], &files).await;
    let workspace = world.workspace(base).await;
    let work = workspace.work();
    assert_eq!(snapshot(&workspace).await.commit, None);
    // As after `git submodule update --init` with commits of its own.
    world
        .as_agent(&work.join("s/one"), &["init", "-q", "."])
        .await;
    write(work, "s/one/f", "x");
    assert_eq!(snapshot(&workspace).await.commit, None);
    write(work, "s/two/f", "x");
    let taken = snapshot(&workspace).await;
    let path = "s/two".to_owned();
    let replaced = SnapshotNote::SubmoduleReplaced { path };
    assert!(taken.notes.contains(&replaced), "{:?}", taken.notes);
    let expected = ["100644 a", "160000 s/one", "100644 s/two/f"];
    assert_eq!(listing(workspace.control(), taken.tree).await, expected);
    std::fs::remove_dir_all(work.join("s")).unwrap();
    let taken = snapshot(&workspace).await;
    assert_eq!(listing(workspace.control(), taken.tree).await, ["100644 a"]);
}

#[tokio::test]
async fn a_work_tree_that_became_a_link_is_not_followed() {
    let world = World::new().await;
    let base = world.commit(&[], &[("a", "1")]).await;
    let workspace = world.workspace(base).await;
    std::fs::remove_dir_all(workspace.work()).unwrap();
    symlink("/etc", workspace.work()).unwrap();
    let error = workspace
        .snapshot("Work", &ada(), time(2), base)
        .await
        .unwrap_err();
    assert!(matches!(error, GitError::NotAWorkspace { .. }), "{error}");
}

#[tokio::test]
async fn what_a_killed_git_left_behind_does_not_stop_a_snapshot() {
    let world = World::new().await;
    let base = world.commit(&[], &[("a", "1")]).await;
    let workspace = world.workspace(base).await;
    std::fs::write(workspace.control().folder().join("index.lock"), "").unwrap();
    std::fs::write(workspace.work().join(".git/index.lock"), "").unwrap();
    write(workspace.work(), "a", "2");
    assert!(snapshot(&workspace).await.commit.is_some());
    // The agent's own repository may be gone altogether.
    std::fs::remove_dir_all(workspace.work().join(".git")).unwrap();
    assert!(snapshot(&workspace).await.commit.is_some());
}

#[tokio::test]
async fn things_that_are_not_files_are_passed_over() {
    let world = World::new().await;
    let base = world.commit(&[], &[("a", "1")]).await;
    let workspace = world.workspace(base).await;
    let socket = workspace.work().join("socket");
    let _socket = std::os::unix::net::UnixListener::bind(socket).unwrap();
    write(workspace.work(), "b", "1");
    let taken = snapshot(&workspace).await;
    assert_eq!(
        listing(workspace.control(), taken.tree).await,
        ["100644 a", "100644 b"]
    );
}
