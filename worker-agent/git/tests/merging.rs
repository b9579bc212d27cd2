use muster_git::{
    Conflicts, Fold, GitError, Merge, MergeRequest, Merger, Stage, SubprocessMerger, fold,
};
use muster_git::{ObjectFormat, ObjectId};

use crate::world::{Put, World, ada, file, time};

fn request(ours: ObjectId, theirs: ObjectId) -> MergeRequest {
    let message = "Merge task b".to_owned();
    MergeRequest {
        ours,
        theirs,
        message,
        identity: ada(),
        time: time(7),
    }
}

#[tokio::test]
async fn a_repeated_merge_gives_the_same_commit_in_any_repository() {
    let mut ids = Vec::new();
    for _ in 0..2 {
        let world = World::new().await;
        let base = world.commit(&[], &[("a", "1\n"), ("b", "1\n")]).await;
        let ours = world.commit(&[base], &[("a", "2\n")]).await;
        let theirs = world.commit(&[base], &[("b", "2\n")]).await;
        let merger = SubprocessMerger::new(world.origin.clone());
        for _ in 0..2 {
            let merge = merger.merge(&request(ours, theirs)).await.unwrap();
            let Merge::Merged(merged) = merge else {
                panic!("{merge:?}")
            };
            let commit = world.origin.commit(merged).await.unwrap();
            assert_eq!(commit.parents, [ours, theirs]);
            assert_eq!(commit.message, "Merge task b");
            assert_eq!(commit.author_name, ada().name());
            assert_eq!(commit.committer_seconds, 1_800_000_007);
            assert_eq!(file(&world.origin, merged, "a").await, "2\n");
            assert_eq!(file(&world.origin, merged, "b").await, "2\n");
            ids.push(merged);
        }
    }
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[tokio::test]
async fn what_is_contained_already_needs_no_commit() {
    for format in [ObjectFormat::Sha1, ObjectFormat::Sha256] {
        let world = World::with_format(format).await;
        let base = world.commit(&[], &[("a", "1\n")]).await;
        let next = world.commit(&[base], &[("a", "2\n")]).await;
        let merger = SubprocessMerger::new(world.origin.clone());
        let merge = async |ours, theirs| merger.merge(&request(ours, theirs)).await.unwrap();
        assert_eq!(merge(next, base).await, Merge::AlreadyContains);
        assert_eq!(merge(next, next).await, Merge::AlreadyContains);
        assert_eq!(merge(base, next).await, Merge::FastForward(next));
    }
}

/// Merges two sides of one base, which must conflict.
async fn conflict_of(
    world: &World,
    base: &[(&str, Put<'_>)],
    ours: &[(&str, Put<'_>)],
    theirs: &[(&str, Put<'_>)],
) -> Conflicts {
    let base = world.commit_of(&[], base).await;
    let ours = world.commit_of(&[base], ours).await;
    let theirs = world.commit_of(&[base], theirs).await;
    let merger = SubprocessMerger::new(world.origin.clone());
    let merge = merger.merge(&request(ours, theirs)).await.unwrap();
    let Merge::Conflict(conflicts) = merge else {
        panic!("{merge:?}")
    };
    conflicts
}

fn kinds(conflicts: &Conflicts) -> Vec<(&str, &str)> {
    let list = conflicts.list.iter();
    list.map(|found| (found.path.as_str(), found.kind.as_str()))
        .collect()
}

#[tokio::test]
async fn a_conflict_names_each_file_its_kind_and_the_lines_of_both() {
    let world = World::new().await;
    let text = |text| Put::Text(text);
    let conflicts = conflict_of(
        &world,
        &[
            ("a", text("0\n1\n")),
            ("b b", text("1\n")),
            ("c", text("1\n")),
        ],
        &[
            ("a", text("0\n2\n")),
            ("b b", Put::Gone),
            ("é", text("7\n")),
        ],
        &[
            ("a", text("0\n3\n")),
            ("b b", text("3\n")),
            ("é", text("8\n")),
        ],
    )
    .await;
    assert_eq!(
        kinds(&conflicts),
        [
            ("a", "content"),
            ("b b", "modify_delete"),
            ("é", "both_added")
        ]
    );
    assert!(conflicts.list[0].message.contains("Merge conflict in a"));
    let hunks = |at: usize| world.origin.hunks(&conflicts, &conflicts.list[at]);
    let found = hunks(0).await.unwrap();
    let [hunk] = found.list.as_slice() else {
        panic!("{found:?}")
    };
    assert_eq!(
        (hunk.line, hunk.ours.as_str(), hunk.theirs.as_str()),
        (2, "2\n", "3\n")
    );
    assert!(!hunk.is_cut && !found.has_more);
    assert_eq!(hunks(1).await.unwrap().list, []);
    assert_eq!(hunks(2).await.unwrap().list[0].theirs, "8\n");
    // The deleted side has nothing there.
    let stages: Vec<Stage> = conflicts.list[1]
        .sides
        .iter()
        .map(|side| side.stage)
        .collect();
    assert_eq!(stages, [Stage::Base, Stage::Theirs]);
}

#[tokio::test]
async fn renames_name_the_old_path_and_the_new_ones() {
    let world = World::new().await;
    let long = "one\ntwo\nthree\nfour\nfive\n";
    let text = || Put::Text(long);
    let both = conflict_of(
        &world,
        &[("old", text())],
        &[("old", Put::Gone), ("left", text())],
        &[("old", Put::Gone), ("right", text())],
    )
    .await;
    assert_eq!(kinds(&both), [("old", "rename_rename")]);
    assert_eq!(both.list[0].others, ["left", "right"]);
    assert_eq!(both.list[0].sides.len(), 3);
    let deleted = conflict_of(
        &world,
        &[("old", text()), ("x", Put::Text("x"))],
        &[("old", Put::Gone), ("new", text())],
        &[("old", Put::Gone)],
    )
    .await;
    assert_eq!(kinds(&deleted), [("new", "rename_delete")]);
    assert_eq!(deleted.list[0].others, ["old"]);
    let other = "six\nseven\neight\nnine\nten\n";
    let meet = conflict_of(
        &world,
        &[("a", text()), ("b", Put::Text(other))],
        &[("a", Put::Gone), ("c", text())],
        &[("b", Put::Gone), ("c", Put::Text(other))],
    )
    .await;
    assert_eq!(kinds(&meet), [("c", "both_added")]);
}

#[tokio::test]
async fn what_is_no_text_conflicts_by_its_own_kind() {
    let world = World::new().await;
    let (first, second, third) = {
        let commit = async |text: &str| world.commit(&[], &[("s", text)]).await;
        (commit("1").await, commit("2").await, commit("3").await)
    };
    let text = |text| Put::Text(text);
    let submodule = conflict_of(
        &world,
        &[("sub", Put::Link(first))],
        &[("sub", Put::Link(second))],
        &[("sub", Put::Link(third))],
    )
    .await;
    assert_eq!(kinds(&submodule), [("sub", "submodule")]);
    let binary = conflict_of(
        &world,
        &[("pic", text("\0a"))],
        &[("pic", text("\0b"))],
        &[("pic", text("\0c"))],
    )
    .await;
    assert_eq!(kinds(&binary), [("pic", "binary")]);
    let symlink = conflict_of(
        &world,
        &[("link", Put::Symlink("a"))],
        &[("link", Put::Symlink("b"))],
        &[("link", Put::Symlink("c"))],
    )
    .await;
    assert_eq!(kinds(&symlink), [("link", "symlink")]);
    let kind = conflict_of(
        &world,
        &[("x", text("x\n"))],
        &[("x", Put::Symlink("a"))],
        &[("x", text("y\n"))],
    )
    .await;
    assert_eq!(kinds(&kind), [("x", "type_change")]);
    let mode = conflict_of(
        &world,
        &[("x", text("x\n"))],
        &[("run", text("true\n"))],
        &[("run", Put::Program("true\n"))],
    )
    .await;
    assert_eq!(kinds(&mode), [("run", "mode")]);
    assert_eq!(
        world.origin.hunks(&mode, &mode.list[0]).await.unwrap().list,
        []
    );
    let folder = conflict_of(
        &world,
        &[("x", text("x\n"))],
        &[("d", text("file\n"))],
        &[("d/inside", text("y\n"))],
    )
    .await;
    assert_eq!(kinds(&folder), [("d", "file_directory")]);
}

#[tokio::test]
async fn hostile_names_and_markers_are_only_text() {
    let world = World::new().await;
    let name = "a\tb\u{1b}[2J";
    let put = |text| Put::Text(text);
    let fake = ">>>>>>> 1111111111111111111111111111111111111111\n=======\n";
    let marks = (".gitattributes", put("* conflict-marker-size=30\n"));
    let conflicts = conflict_of(
        &world,
        &[(name, put("1\n")), marks],
        &[(name, put(fake))],
        &[(name, put("\u{1b}[31mred\n"))],
    )
    .await;
    assert_eq!(conflicts.list[0].path, name);
    let hunks = world.origin.hunks(&conflicts, &conflicts.list[0]).await;
    let hunks = hunks.unwrap();
    assert_eq!(hunks.list.len(), 1, "{hunks:?}");
    assert!(hunks.list[0].ours.starts_with(">>>>>>> 111"), "{hunks:?}");
}

#[tokio::test]
async fn attributes_of_our_side_choose_how_files_are_merged() {
    let world = World::new().await;
    let attributes = (".gitattributes", "LOG merge=union\n");
    let base = world.commit(&[], &[attributes, ("LOG", "start\n")]).await;
    let ours = world.commit(&[base], &[("LOG", "start\nours\n")]).await;
    let theirs = world.commit(&[base], &[("LOG", "start\ntheirs\n")]).await;
    let merger = SubprocessMerger::new(world.origin.clone());
    let merge = merger.merge(&request(ours, theirs)).await.unwrap();
    let Merge::Merged(merged) = merge else {
        panic!("{merge:?}")
    };
    assert_eq!(
        file(&world.origin, merged, "LOG").await,
        "start\nours\ntheirs\n"
    );
}

#[tokio::test]
async fn unrelated_histories_are_not_merged() {
    let world = World::new().await;
    let ours = world.commit(&[], &[("a", "1\n")]).await;
    let theirs = world.commit(&[], &[("b", "1\n")]).await;
    let merger = SubprocessMerger::new(world.origin.clone());
    let error = merger.merge(&request(ours, theirs)).await.unwrap_err();
    assert!(matches!(error, GitError::Unrelated { .. }), "{error}");
}

#[tokio::test]
async fn folding_stops_at_the_first_commit_that_does_not_fit() {
    let world = World::new().await;
    let base = world.commit(&[], &[("a", "1\n"), ("b", "1\n")]).await;
    let first = world.commit(&[base], &[("a", "2\n")]).await;
    let second = world.commit(&[base], &[("b", "2\n")]).await;
    let third = world.commit(&[base], &[("a", "3\n")]).await;
    let merger = SubprocessMerger::new(world.origin.clone());
    let named = |id| (id, format!("Merge {id}"));
    let run = async |commits: &[ObjectId]| {
        let commits: Vec<_> = commits.iter().map(|id| named(*id)).collect();
        fold(&merger, base, &commits, &ada(), time(9))
            .await
            .unwrap()
    };
    let Fold::Merged(both) = run(&[first, base, second]).await else {
        panic!("no merge")
    };
    assert_eq!(
        world.origin.commit(both).await.unwrap().parents,
        [first, second]
    );
    assert_eq!(run(&[]).await, Fold::Merged(base));
    let Fold::Conflict {
        index,
        onto,
        conflicts,
    } = run(&[first, second, third]).await
    else {
        panic!("no conflict")
    };
    assert_eq!((index, onto), (2, both));
    assert_eq!(kinds(&conflicts), [("a", "content")]);
}
