//! What tasks do to a repository: what they made lands, and what cannot land is told.

use muster_git::{GitError, SnapshotNote};

use super::{Scene, assert_same, files};

const BASE: &str = "init; printf '1\n' > a; printf 'b\n' > b; mkdir d; printf 'e\n' > d/e; \
    printf '#!/bin/sh\n' > run; printf 'out/\n*.o\n' > .gitignore; commit one; printf '2\n' >> a; commit two\n";

/// Each of these lands as it was left, as one commit of Muster's on the base.
#[tokio::test]
async fn whatever_a_task_does_to_files_lands_as_it_was_left() {
    let changes = [
        ("deletes", "rm a; rm -r d"),
        ("deletes everything", "rm -r a b d run .gitignore"),
        ("renames", "mv a c; mv d f; mv f/e f/g"),
        ("renames by case", "mv a A; mkdir D; mv d/e D/e"),
        ("changes modes", "chmod 755 run; chmod 700 a; chmod 444 b"),
        ("makes a folder of a file", "rm a; mkdir a; printf x > a/a"),
        ("makes a file of a folder", "rm -r d; printf x > d"),
        (
            "makes a link of a folder",
            "rm -r d; ln -s /etc d; rm a; ln -s nowhere a",
        ),
        (
            "makes a folder of a link",
            "ln -s d l; git add l; git commit -q -m l; rm l; mkdir l; printf x > l/x",
        ),
        (
            "there and back",
            "rm a; mkdir a; printf x > a/x; rm -r a; printf 'new\\n' > a",
        ),
        ("removes its .git", "rm -rf .git; printf x > x"),
        (
            "makes its .git a file",
            "rm -rf .git; printf 'gitdir: /etc\\n' > .git; printf x > x",
        ),
        (
            "makes its .git a link",
            "mv .git ../elsewhere; ln -s ../elsewhere .git; printf x > x",
        ),
        (
            "damages its .git",
            "printf 'ref: refs/heads/../../../x\\n' > .git/HEAD; printf x > .git/config; printf x > x",
        ),
        (
            "removes its objects",
            "printf x > x; git add x; git commit -qm x; rm -rf .git/objects",
        ),
        (
            "writes alternates",
            "mkdir -p ../o/pack; printf '/nonexistent\\n' > .git/objects/info/alternates; printf x > x",
        ),
        (
            "leaves locks",
            "touch .git/index.lock .git/HEAD.lock; printf x > x",
        ),
        (
            "stashes",
            "printf x > x; git add x; git stash -q; printf y > y",
        ),
        (
            "stages and changes again",
            "printf x > x; git add x; printf y > x",
        ),
        (
            "is in the middle of a merge",
            "git checkout -q -b o; printf o > a; git commit -qam o; git checkout -q -; git checkout -q -b p HEAD; printf p > a; git commit -qam p; git merge o || true",
        ),
        (
            "tells git to look away",
            "git update-index --assume-unchanged a; git update-index --skip-worktree b; printf x > a; printf y > b; mkdir -p .git/info; printf '*' > .git/info/exclude; printf z > z",
        ),
    ];
    for (name, script) in changes {
        let scene = Scene::new(BASE).await;
        scene.agent(script);
        let (taken, landed) = scene.landed().await;
        let left = files(scene.work());
        assert!(taken.commit.is_some(), "{name}");
        let names = |files: &super::Files| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&landed), names(&left), "{name}");
        assert_same(&landed, &left);
        let base = scene.base;
        scene.origin(&format!("git merge-base --is-ancestor {base} landed"));
    }
}

#[tokio::test]
async fn a_task_that_ends_where_it_began_has_changed_nothing() {
    for script in [
        "true",
        "touch *; printf x > x; rm x",
        "printf x > out.o; mkdir out; printf y > out/y",
        "git commit -q --allow-empty -m nothing",
        "printf x > a; git commit -qam x; git revert --no-edit HEAD",
        "git checkout -q -b other; git checkout -q --detach",
        "chmod 700 d; chmod 604 a",
    ] {
        let scene = Scene::new(BASE).await;
        scene.agent(script);
        assert_eq!(scene.result().await.commit, None, "{script}");
    }
}

#[tokio::test]
async fn commits_of_an_agent_land_as_they_are_with_their_authors() {
    let scene = Scene::new(BASE).await;
    scene.agent(
        "git checkout -q -b mine; printf x > x; git add x; git commit -qm first
        git checkout -q -b side HEAD~1; printf s > s; git add s
        GIT_AUTHOR_NAME=Linus GIT_AUTHOR_EMAIL=l@example.org git commit -qm aside
        git checkout -q mine; git merge -q --no-ff -m together side; git checkout -q --detach
        printf y > y; git add y; git commit -qm last; git tag v1; git gc -q --prune=now",
    );
    scene.lands_as_left().await;
    let base = scene.base;
    let log = scene.origin(&format!(
        "git log --format='%an %s' --topo-order {base}..landed"
    ));
    let mut lines: Vec<&str> = log.lines().collect();
    lines.sort_unstable();
    let expected = ["Grace first", "Grace last", "Grace together", "Linus aside"];
    assert_eq!(lines, expected);
    let head = scene.origin("git rev-parse landed");
    assert_eq!(head, super::shell(scene.work(), "git rev-parse HEAD"));
    // What is not committed comes on top.
    scene.agent("printf z > z; printf more >> x");
    scene.lands_as_left().await;
    assert_eq!(
        scene.origin("git log -1 --format='%an %s' landed"),
        "Muster Work"
    );
    assert_eq!(scene.origin("git rev-parse landed~1"), head);
}

#[tokio::test]
async fn what_an_agent_commits_although_it_is_ignored_lands() {
    let scene = Scene::new(BASE).await;
    scene.agent(
        "printf o > built.o; mkdir out; printf p > out/p; git add -f built.o; git commit -qm built",
    );
    scene.landed().await;
    let names = scene.origin(&format!("git diff --name-only {} landed", scene.base));
    assert_eq!(names, "built.o");
    scene.agent("printf n > n; rm built.o; git add -f out/p; git commit -qam 'no more'");
    scene.landed().await;
    let names = scene.origin(&format!("git diff --name-only {} landed", scene.base));
    assert_eq!(names, "n\nout/p");
}

#[tokio::test]
async fn history_that_does_not_begin_at_the_base_is_told_and_its_content_lands() {
    for (script, reason) in [
        (
            "printf x > x; git add x; git commit -q --amend -m other",
            "do not begin at the base",
        ),
        (
            "git checkout -q --orphan fresh; printf x > x; git add x; git commit -qm fresh",
            "do not begin at the base",
        ),
        (
            "git reset -q --hard HEAD~1; printf x > x",
            "went back to a commit before its base",
        ),
        (
            "printf x > x; git add x; git commit -qm x; rm -f .git/objects/*/*",
            "git refuses them",
        ),
        (
            "printf x > x; git add x; git commit -qm x; for f in .git/objects/*/*; do chmod 644 $f; printf bad > $f; done",
            "git refuses them",
        ),
    ] {
        let scene = Scene::new(BASE).await;
        scene.agent(script);
        scene.lands_as_left().await;
        let notes = scene.notes().await;
        assert!(notes.contains(reason), "{script}: {notes}");
        let parent = scene.origin("git rev-parse landed~1");
        assert_eq!(parent, scene.base.to_string(), "{script}");
    }
}

#[tokio::test]
async fn commits_on_a_branch_that_is_not_checked_out_are_told() {
    let scene = Scene::new(BASE).await;
    scene.agent(
        "head=$(git rev-parse HEAD); git checkout -q -b feature/one; printf x > x; git add x
        git commit -qm x; git checkout -q --detach $head; printf y > y",
    );
    scene.lands_as_left().await;
    let notes = scene.notes().await;
    assert!(
        notes.contains("on refs/heads/feature/one is not in what"),
        "{notes}"
    );
    scene.agent("git pack-refs --all");
    let notes = scene.notes().await;
    assert!(
        notes.contains("on refs/heads/feature/one is not in what"),
        "{notes}"
    );
    scene.agent("git merge -q -m both feature/one");
    assert!(!scene.notes().await.contains("feature/one"));
    assert_eq!(scene.result().await.beside, None);
}

#[tokio::test]
async fn what_is_stashed_or_only_tagged_is_told_and_can_be_kept_beside_the_result() {
    let scene = Scene::new(BASE).await;
    scene.agent(
        "printf one > one; git add one; git stash -q; printf two > two; git add two; git stash -q
        git checkout -q --detach; printf x > tagged; git add tagged; git commit -qm x
        git tag -a -m v1 v1; git checkout -q --detach HEAD~1; git tag here",
    );
    let taken = scene.result().await;
    assert_eq!(taken.commit, None);
    let notes = scene.notes().await;
    for name in ["stash@{0}", "stash@{1}", "refs/tags/v1"] {
        assert!(notes.contains(&format!("on {name} is not in")), "{notes}");
    }
    assert_eq!(taken.notes.len(), 3, "{notes}");
    scene.checkout(taken.beside.unwrap()).await;
    let kept = scene.origin("for at in 1 2 3; do git ls-tree --name-only landed^$at; done");
    for file in ["one", "two", "tagged"] {
        assert!(kept.lines().any(|line| line == file), "{file}: {kept}");
    }
    scene.agent("git stash pop -q; git stash drop -q; git add -A; git merge -q --no-edit v1");
    assert_eq!(scene.result().await.beside, None, "{}", scene.notes().await);
}

#[tokio::test]
async fn objects_of_others_are_not_reached_through_an_agents_git_folder() {
    let scene = Scene::new(BASE).await;
    scene.agent(
        "git init -q -b main ../private; (cd ../private; printf secret > s; git add s; git commit -qm s)
        git -C ../private rev-parse HEAD > .git/HEAD
        printf '%s\\n' $PWD/../private/.git/objects > .git/objects/info/alternates; printf x > x",
    );
    let notes = scene.notes().await;
    assert!(notes.contains("git refuses them"), "{notes}");
    scene.agent("rm -r .git/objects; ln -s $PWD/../private/.git/objects .git/objects");
    assert_eq!(scene.result().await.notes, []);
    scene.agent(
        "rm .git/objects; mkdir .git/objects; for f in ../private/.git/objects/*; do \
        ln -s $PWD/$f .git/objects/; done",
    );
    let notes = scene.notes().await;
    assert!(notes.contains("git refuses them"), "{notes}");
}

#[tokio::test]
async fn conflict_markers_are_told_and_land() {
    let scene = Scene::new(BASE).await;
    scene.agent(
        "printf '<<<<<<< ours\\na\\n=======\\nb\\n>>>>>>> theirs\\n' > b; printf 'x \\n' > white
        printf 'Title\\n=======\\n' > doc.md",
    );
    let taken = scene.lands_as_left().await;
    let markers = |note: &&SnapshotNote| matches!(note, SnapshotNote::ConflictMarkers { .. });
    let notes: Vec<String> = taken
        .notes
        .iter()
        .filter(markers)
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        notes.first().unwrap(),
        "a conflict marker was left behind at b:1"
    );
    assert!(
        notes.iter().all(|note| !note.contains("white")),
        "{notes:?}"
    );
}

#[tokio::test]
async fn what_git_cannot_keep_is_told_unless_it_is_ignored() {
    let scene = Scene::new(BASE).await;
    scene.agent(
        "mkfifo pipe; mkdir -p hollow/deep out/hollow; mkfifo out/pipe; printf x > x
        python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"sock\")' || mkfifo sock
        mkdir kept; printf x > kept/x",
    );
    let (taken, landed) = scene.landed().await;
    assert!(landed.contains_key(&b"kept/x"[..]), "{landed:?}");
    let notes: Vec<String> = taken.notes.iter().map(ToString::to_string).collect();
    let text = notes.join("\n");
    assert!(
        text.contains("\"pipe\" is a pipe, which git cannot keep"),
        "{text}"
    );
    assert!(text.contains("\"sock\" is a "), "{text}");
    assert!(
        text.contains("the folder \"hollow/deep\" is empty"),
        "{text}"
    );
    assert_eq!(notes.len(), 3, "{text}");
}

#[tokio::test]
async fn a_repository_inside_the_tree_lands_as_files_and_is_told() {
    let scene = Scene::new(BASE).await;
    scene.agent(
        "git init -q tool; cd tool; printf t > t; git add t; git commit -qm t; git checkout -q -b x
        printf u > u; git worktree add -q ../beside; git init -q --bare ../bare.git",
    );
    let (taken, landed) = scene.landed().await;
    for path in [&b"tool/t"[..], b"tool/u", b"beside/t", b"bare.git/HEAD"] {
        let name = String::from_utf8_lossy(path).into_owned();
        assert!(landed.contains_key(path), "{name}: {landed:?}");
    }
    let text: Vec<String> = taken.notes.iter().map(ToString::to_string).collect();
    let text = text.join("\n");
    assert!(
        text.contains("\"tool\" is a repository of its own"),
        "{text}"
    );
    assert!(
        text.contains("\"beside\" is a repository of its own"),
        "{text}"
    );
}

#[tokio::test]
async fn a_repository_with_nothing_in_it_is_nothing_to_lose() {
    let scene = Scene::new(BASE).await;
    scene.agent(
        "git init -q nothing; git init -q folders; mkdir folders/x; git init -q folders/y
        git init -q ignoring; printf '*' > ignoring/.gitignore; printf i > ignoring/i
        git init -q emptied; cd emptied; printf e > e; git add e; git commit -qm e; rm e
        cd ..; git init -q full; printf f > full/f; printf w > work",
    );
    let (_, landed) = scene.landed().await;
    assert!(landed.contains_key(&b"work"[..]), "{landed:?}");
    assert!(landed.contains_key(&b"full/f"[..]), "{landed:?}");
    let inside = |path: &&Vec<u8>| {
        ["nothing", "folders", "ignoring", "emptied"]
            .iter()
            .any(|folder| path.starts_with(folder.as_bytes()))
    };
    assert_eq!(landed.keys().find(inside), None);
}

#[tokio::test]
async fn commits_that_hold_too_much_are_told_and_their_content_lands() {
    let Scene {
        world,
        base,
        workspace,
    } = Scene::new(BASE).await;
    let workspace = workspace.with_change_limit(1_000_000);
    let scene = Scene {
        world,
        base,
        workspace,
    };
    scene.agent(
        "head -c 2000000 /dev/urandom > big; git add big; git commit -qm big
        git rm -q big; printf s > small; git add small; git commit -qm small",
    );
    let taken = scene.lands_as_left().await;
    let notes = scene.notes().await;
    assert!(notes.contains("above the limit of 1000 kB"), "{notes}");
    let control = scene.workspace.control();
    let commit = control.commit(taken.commit.unwrap()).await.unwrap();
    assert_eq!(commit.parents, [scene.base]);
}

#[tokio::test]
async fn names_that_a_commit_may_not_have_are_refused_with_the_way_out() {
    for (script, name) in [
        ("mkdir .GIT; printf x > .GIT/config", ".GIT/config"),
        ("printf x > 'git~1'", "git~1"),
        ("mkdir d/.Git; printf x > d/.Git/x", "d/.Git/x"),
    ] {
        let scene = Scene::new(BASE).await;
        scene.agent(script);
        let error = scene.try_result().await.unwrap_err();
        assert!(error.is_about_content(), "{error}");
        let text = error.to_string();
        assert!(text.contains(name) && text.contains(".gitignore"), "{text}");
        scene.agent(&format!("printf '%s\\n' '{name}' >> .gitignore"));
        scene.result().await;
    }
}

#[tokio::test]
async fn an_encoding_that_a_file_does_not_have_is_refused_with_its_name() {
    let scene = Scene::new(
        "init; printf '*.u16 working-tree-encoding=UTF-16LE\\n' > .gitattributes; commit one",
    )
    .await;
    scene.agent("printf 'abc' > odd.u16; printf x > x");
    let error = scene.try_result().await.unwrap_err();
    assert!(error.is_about_content(), "{error}");
    assert!(error.to_string().contains("odd.u16"), "{error}");
}

#[tokio::test]
async fn too_much_is_refused_before_and_after_it_is_stored() {
    const LIMIT: u64 = 3_000_000;
    let Scene {
        world,
        base,
        workspace,
    } = Scene::new(BASE).await;
    let workspace = workspace.with_change_limit(LIMIT);
    let scene = Scene {
        world,
        base,
        workspace,
    };
    scene.agent(
        "head -c 2500000 /dev/urandom > big.bin; mkdir out; head -c 9000000 /dev/zero > out/x",
    );
    scene.lands_as_left_but_ignored().await;
    let expected = |text: &str| {
        assert!(text.contains("above the limit of 3000 kB"), "{text}");
        assert!(
            text.contains("\"big.bin\" (2500 kB), \"more.bin\""),
            "{text}"
        );
        assert!(
            text.contains("--change-limit or MUSTER_CHANGE_LIMIT"),
            "{text}"
        );
    };
    // Each alone would do; together they do not, whether or not one is stored already.
    scene.agent("head -c 600000 /dev/urandom > more.bin");
    let error = scene.try_result().await.unwrap_err();
    assert!(matches!(error, GitError::ChangeTooLarge { .. }), "{error}");
    expected(&error.to_string());
    scene.agent("git add more.bin; git commit -qm more");
    expected(&scene.try_result().await.unwrap_err().to_string());
    scene.agent("git init -q inner; head -c 5000000 /dev/zero > inner/huge");
    let error = scene.try_result().await.unwrap_err().to_string();
    assert!(error.contains("\"inner\" (5000 kB)"), "{error}");
}

#[tokio::test]
async fn many_new_files_land() {
    let scene = Scene::new(BASE).await;
    scene.agent(
        "mkdir many; cd many; i=0
        while [ $i -lt 5 ]; do mkdir $i; (cd $i; seq 1 1000 | split -l 1 -a 3 - f); i=$((i+1)); done",
    );
    scene.lands_as_left().await;
}

/// Who may not read a file is told by the kernel to everybody but root, so root becomes somebody
/// else for this.
#[test]
fn what_its_owner_may_not_read_is_made_readable_and_lands() {
    const NAME: &str = "everyday::changes::what_its_owner_may_not_read_is_made_readable_and_lands";
    if rustix::process::geteuid().is_root() {
        let own = std::env::current_exe().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("tests");
        std::fs::copy(own, &copy).unwrap();
        super::shell(folder.path(), "chmod 755 .; mkdir -m 1777 tmp");
        let script = format!(
            "TMPDIR=$PWD/tmp setpriv --reuid=65534 --regid=65534 --clear-groups ./tests --exact {NAME}"
        );
        let said = super::shell(folder.path(), &script);
        assert!(said.contains("1 passed"), "{said}");
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let scene = Scene::new(BASE).await;
        scene.agent(
            "printf x > locked; mkdir -p dark/er out; printf y > dark/er/y; printf z > out/z
            chmod 000 locked out/z a; chmod 000 dark/er dark",
        );
        let (taken, landed) = scene.landed().await;
        assert_same(&landed, &{
            let mut expected = files(scene.work());
            expected.remove(&b"out/z"[..]);
            expected
        });
        assert!(landed.contains_key(&b"dark/er/y"[..]));
        let text: Vec<String> = taken.notes.iter().map(ToString::to_string).collect();
        let text = text.join("\n");
        for name in ["locked", "dark", "dark/er", "a"] {
            let note = format!("{name:?} could not be read by its owner");
            assert!(text.contains(&note), "{name}: {text}");
        }
        assert_eq!(taken.notes.len(), 4, "{text}");
    });
}
