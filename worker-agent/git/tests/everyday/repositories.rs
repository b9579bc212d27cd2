//! Odd repositories: what is not touched stays, and what is made lands.

use muster_git::{ObjectFormat, SnapshotNote};

use super::{Scene, assert_same, files, shell};

/// A task that changes one file and adds one.
const EDIT: &str = "printf 'more\\n' >> readme; printf 'new\\n' > added";

/// Checks that the attempt's checkout is what a plain clone has, that a task that changes nothing
/// makes no commit, and that one that changes something changes nothing else.
async fn works(scene: &Scene) {
    let clone = scene.checkout(scene.base).await;
    assert_same(&files(scene.work()), &clone);
    let untouched = scene.result().await;
    assert_eq!(untouched.commit, None, "{:?}", untouched.notes);
    scene.agent(EDIT);
    scene.lands_as_left().await;
    let changed = scene.origin(&format!(
        "git diff --name-only --no-renames {} landed",
        scene.base
    ));
    assert_eq!(changed, "added\nreadme");
}

#[tokio::test]
async fn files_of_any_name_kind_and_mode() {
    let scene = Scene::new(
        r#"init; printf '1\n' > readme
        for name in 'with space' 'new
line' "quo\"te'" '-dash' '--help' '$(id)' '*' '?[a]' ':(top)x' '\back' 'tab	x' '~' '#x' "$(printf 'latin-\351')" \
            README Readme 'e' 'E' "$(printf 'e\314\201')" "$(printf '\303\251')" .hidden ...; do
            printf 'content of %s' "$name" > "./$name"
        done
        mkdir -p 'a/b/c d' CASE; printf x > CASE/x; printf y > 'a/b/c d/-e'
        ln -s readme link; ln -s /etc/passwd outside; ln -s ../../.. up; ln -s nowhere dangling
        ln -s "$(printf 'odd\ntarget')" 'odd link'; ln -s a folder-link
        printf '#!/bin/sh\n' > tool; chmod 755 tool; : > empty; printf 'no newline' > end
        printf 'a\0b\377' > binary; printf 'a\rb\r\nc\n' > endings
        long=$(printf '%0200d' 1); mkdir "$long"; printf l > "$long/$long"
        commit one"#,
    )
    .await;
    works(&scene).await;
    scene.agent("git add -A; git commit -q -m mine; printf x >> 'with space'");
    scene.lands_as_left().await;
}

#[tokio::test]
async fn line_endings_and_encodings_are_those_of_a_plain_clone() {
    let scene = Scene::new(
        r#"init; printf '1\n' > readme
        printf 'a\r\nb\r\n' > was-crlf.txt; printf 'x\r\ny\nz\r\n' > mixed.txt; printf 'x\r\ny\n' > mixed.bat
        printf 'a\r\n' > raw.dat; printf '$Id$\n' > id.c; git add -A; git commit -q -m before
        printf '%s\n' '*.txt text' '*.bat text eol=crlf' '*.dat -text' '*.c ident' \
            '*.u16 working-tree-encoding=UTF-16LE' 'secret export-ignore' '*.sh text eol=lf' \
            '*.auto text=auto' > .gitattributes
        printf 'one\r\ntwo\r\n' > e.bat; printf 'l\n' > s.sh; printf 'k' > secret
        printf 'h\0\351\0\n\0' > wide.u16; printf 'u\n' > new.auto
        git add .gitattributes e.bat s.sh secret wide.u16 new.auto; git commit -q -m after"#,
    )
    .await;
    works(&scene).await;
    // Times that leave git no doubt, and times that leave it every doubt.
    for touched in ["touch -d '2001-01-01' *", "touch *"] {
        scene.agent(touched);
        scene.lands_as_left().await;
        let changed = scene.origin(&format!("git diff --name-only {} landed", scene.base));
        assert_eq!(changed, "added\nreadme", "{touched}");
    }
    scene.agent(
        r"printf 'three\r\n' >> e.bat; printf 'w\0\n\0' >> wide.u16; printf 'raw\r\n' >> raw.dat
        printf 'c\r\n' >> was-crlf.txt; printf 'dos\r\n' > fresh.auto; chmod 755 mixed.txt",
    );
    let taken = scene.result().await;
    let note = |path: &str| SnapshotNote::LineEndings {
        path: path.to_owned(),
    };
    assert!(
        taken.notes.contains(&note("was-crlf.txt")),
        "{:?}",
        taken.notes
    );
    assert!(
        taken.notes.contains(&note("fresh.auto")),
        "{:?}",
        taken.notes
    );
    assert_eq!(taken.notes.len(), 2, "{:?}", taken.notes);
    let (_, landed) = scene.landed().await;
    let mut expected = files(scene.work());
    let lf = [
        (&b"was-crlf.txt"[..], &b"a\nb\nc\n"[..]),
        (b"fresh.auto", b"dos\n"),
    ];
    for (path, bytes) in lf {
        expected.insert(path.to_vec(), ("file", bytes.to_vec()));
    }
    assert_same(&landed, &expected);
    // Only its mode was changed.
    let mixed = scene.origin(&format!(
        "git diff --raw {} landed -- mixed.txt",
        scene.base
    ));
    assert!(mixed.starts_with(":100644 100755"), "{mixed}");
    let ids: Vec<&str> = mixed.split(' ').skip(2).take(2).collect();
    assert_eq!(ids.first(), ids.last(), "{mixed}");
}

#[tokio::test]
async fn a_task_that_corrects_line_endings_lands_that() {
    let scene = Scene::new(
        r"init; printf '1\n' > readme; printf 'a\r\nb\r\n' > dos.txt; commit one
        echo '*.txt text' > .gitattributes; commit two",
    )
    .await;
    scene.agent(r"printf 'a\nb\n' > dos.txt");
    scene.lands_as_left().await;
}

#[tokio::test]
async fn filters_of_attributes_are_never_run_and_lfs_pointers_stay() {
    let scene = Scene::new(
        r"init; printf '1\n' > readme
        printf '*.psd filter=lfs diff=lfs merge=lfs -text\n*.x filter=trap\n' > .gitattributes
        printf 'version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 12345\n' 7 > art.psd
        printf 'x\n' > a.x; commit one
        git config filter.trap.smudge 'touch /tmp/muster-filter-ran; cat'
        git config filter.trap.clean 'touch /tmp/muster-filter-ran; cat'
        git config filter.lfs.process 'false'; git config filter.lfs.required true",
    )
    .await;
    works(&scene).await;
    scene.agent("printf 'pixels' > new.psd; printf 'y\\n' >> a.x");
    let taken = scene.lands_as_left().await;
    let notes: Vec<String> = taken.notes.iter().map(ToString::to_string).collect();
    assert_eq!(
        notes,
        [
            "\"a.x\" is committed byte for byte: its filter \"trap\" is not run by Muster",
            "\"new.psd\" is committed byte for byte: its filter \"lfs\" is not run by Muster",
        ]
    );
    assert!(!std::path::Path::new("/tmp/muster-filter-ran").exists());
}

/// Makes `library`, and a repository with it at `lib`.
const WITH_SUBMODULE: &str = "git init -q -b main library; (cd library; printf 'l\n' > l; \
    git add l; git commit -q -m one; printf 'm\n' > l; git commit -q -am two); \
    init; printf '1\n' > readme; git submodule --quiet add ../library lib; commit one\n";

#[tokio::test]
async fn submodules_stay_at_their_commit_and_are_not_fetched() {
    let scene = Scene::new(WITH_SUBMODULE).await;
    works(&scene).await;
    let link = |commit: &str| scene.origin(&format!("git rev-parse {commit}:lib"));
    assert_eq!(link("landed"), link(&scene.base.to_string()));
    assert_eq!(
        std::fs::read_dir(scene.work().join("lib")).unwrap().count(),
        0
    );
}

#[tokio::test]
async fn a_submodule_that_an_agent_moves_lands_where_it_was_moved() {
    for commits in [false, true] {
        let scene = Scene::new(WITH_SUBMODULE).await;
        let library = scene.world.path("library");
        let old = shell(&library, "git rev-parse HEAD~1");
        scene.agent(&format!(
            "git config --file .gitmodules submodule.lib.url {0}; git submodule --quiet init
            git config submodule.lib.url {0}; git submodule --quiet update; git checkout -q .gitmodules
            cd lib; git checkout -q HEAD~1; printf 'not committed' > l",
            library.display()
        ));
        if commits {
            scene.agent("git add lib; git commit -q -m 'Go back'");
        }
        let (taken, _) = scene.landed().await;
        assert_eq!(scene.origin("git rev-parse landed:lib"), old);
        let notes = scene.notes().await;
        assert!(
            notes.contains("the submodule \"lib\" was checked out"),
            "{notes}"
        );
        assert!(commits || notes.contains(&old[..12]), "{notes}");
        let author = scene.origin("git log -1 --format=%an landed");
        assert_eq!(
            author,
            if commits { "Grace" } else { "Muster" },
            "{taken:?}"
        );
    }
}

#[tokio::test]
async fn a_submodule_that_an_agent_adds_or_removes_is_one_in_the_result() {
    let scene = Scene::new(WITH_SUBMODULE).await;
    let library = scene.world.path("library");
    scene.agent(&format!(
        "git submodule --quiet add {} second; git rm -q lib",
        library.display()
    ));
    scene.landed().await;
    let tree = scene.origin("git ls-tree --name-only -r landed; git ls-tree landed second");
    let head = shell(&library, "git rev-parse HEAD");
    let expected = format!(".gitmodules\nreadme\nsecond\n160000 commit {head}\tsecond");
    assert_eq!(tree, expected);
    scene.agent("git commit -qm 'Another library'; git submodule --quiet deinit -f second");
    scene.landed().await;
    assert_eq!(
        scene.origin("git ls-tree landed second"),
        format!("160000 commit {head}\tsecond")
    );
}

#[tokio::test]
async fn the_base_may_be_a_tag_a_commit_or_an_expression() {
    let script = "init; printf '1\n' > readme; commit one; git tag -a -m v1 v1; \
        for number in 2 3 4; do printf \"$number\n\" > n; commit $number; done; \
        git tag light; git tag -a -m nested deep v1; git checkout -q --detach HEAD~1";
    for (base, expected) in [
        ("v1", "main~3"),
        ("deep", "main~3"),
        ("light", "main"),
        ("HEAD", "main~1"),
        ("main~3", "main~3"),
        ("main^{/3}", "main~1"),
        (":/3", "main~1"),
        ("refs/tags/v1", "main~3"),
    ] {
        let scene = Scene::of(ObjectFormat::Sha1, script, "user", base).await;
        let user = scene.world.path("user");
        let expected = shell(&user, &format!("git rev-parse {expected}"));
        assert_eq!(scene.base.to_string(), expected, "{base}");
        works(&scene).await;
    }
}

#[tokio::test]
async fn repositories_of_many_shapes_can_be_the_base() {
    let one = "init; printf '1\n' > readme; commit one;";
    let shapes = [
        (
            "bare",
            "cd ..; git clone -q --bare user bare.git",
            "bare.git",
        ),
        (
            "a linked worktree",
            "git worktree add -q ../linked -b side; cd ../linked; printf x > x; commit x",
            "linked",
        ),
        (
            "detached",
            "printf x > x; commit two; git checkout -q --detach HEAD~1",
            "user",
        ),
        (
            "a bare clone with alternates",
            "cd ..; git clone -q --shared user borrowing; cd borrowing; printf x > x; commit x",
            "borrowing",
        ),
        (
            "sparse",
            "mkdir -p in out; printf i > in/i; printf o > out/o; commit two; git sparse-checkout set in",
            "user",
        ),
        (
            "sparse with an index of folders",
            "mkdir -p in out; printf i > in/i; printf o > out/o; commit two; git sparse-checkout set --sparse-index in",
            "user",
        ),
        (
            "a folder inside",
            "mkdir -p sub/deep; printf s > sub/deep/s; commit two",
            "user/sub/deep",
        ),
        (
            "replaced commits",
            "printf x > x; commit two; printf y > y; commit three; git replace --graft HEAD",
            "user",
        ),
        (
            "packed refs",
            "git branch side; git pack-refs --all; git gc -q",
            "user",
        ),
        (
            "reftable",
            "cd ..; rm -rf user; git init -q --ref-format=reftable -b main user; cd user; printf '1\n' > readme; commit one",
            "user",
        ),
        (
            "without history in common",
            "git checkout -q --orphan fresh; printf f > f; commit fresh",
            "user",
        ),
        (
            "hooks that refuse everything",
            "mkdir -p .git/hooks; for hook in pre-push pre-commit reference-transaction post-checkout; do printf '#!/bin/sh\nexit 1\n' > .git/hooks/$hook; chmod 755 .git/hooks/$hook; done",
            "user",
        ),
    ];
    for (name, script, folder) in shapes {
        let scene = Scene::of(
            ObjectFormat::Sha1,
            &format!("{one}{script}"),
            folder,
            "HEAD",
        )
        .await;
        let cloned = scene.checkout(scene.base).await;
        assert!(!cloned.is_empty(), "{name}");
        works(&scene).await;
    }
}

#[tokio::test]
async fn a_repository_with_sha256_works_as_any_other() {
    let script = "init --object-format=sha256; printf '1\n' > readme; commit one";
    let scene = Scene::of(ObjectFormat::Sha256, script, "user", "HEAD").await;
    works(&scene).await;
    scene.agent("git add -A; git commit -qm mine; printf x > x; git add x; git commit -qm more");
    scene.lands_as_left().await;
    let authors = scene.origin("git log -2 --format=%an landed");
    assert_eq!(authors, "Grace\nGrace");
}

#[tokio::test]
async fn ten_thousand_files_are_checked_out_and_one_change_lands() {
    let scene = Scene::new(
        "init; printf '1\n' > readme; i=0
        while [ $i -lt 100 ]; do mkdir d$i; (cd d$i; seq 1 100 | split -l 1 -a 3 - f); i=$((i+1)); done
        commit one",
    )
    .await;
    works(&scene).await;
}
