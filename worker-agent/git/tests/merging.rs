use muster_git::{
    ConflictFile, Fold, GitError, Merge, MergeRequest, Merger, SubprocessMerger, fold,
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

#[tokio::test]
async fn a_conflict_names_each_file_and_its_kind() {
    let world = World::new().await;
    let base = world
        .commit(&[], &[("a", "1\n"), ("b b", "1\n"), ("c", "1\n")])
        .await;
    let ours = [
        ("a", Put::Text("2\n")),
        ("b b", Put::Gone),
        ("é", Put::Text("7\n")),
    ];
    let ours = world.commit_of(&[base], &ours).await;
    let theirs = world
        .commit(&[base], &[("a", "3\n"), ("b b", "3\n"), ("é", "8\n")])
        .await;
    let merger = SubprocessMerger::new(world.origin.clone());
    let merge = merger.merge(&request(ours, theirs)).await.unwrap();
    let Merge::Conflict { files, messages } = merge else {
        panic!("{merge:?}")
    };
    let file = |path: &str, kind: &str| ConflictFile {
        path: path.into(),
        kind: kind.into(),
    };
    assert_eq!(
        files,
        [
            file("a", "contents"),
            file("b b", "modify/delete"),
            file("é", "contents")
        ]
    );
    assert_eq!(messages.len(), 3);
    assert!(messages[0].contains("Merge conflict in a"), "{messages:?}");
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
        index, onto, files, ..
    } = run(&[first, second, third]).await
    else {
        panic!("no conflict")
    };
    assert_eq!((index, onto), (2, both));
    assert_eq!(
        files,
        [ConflictFile {
            path: "a".to_owned(),
            kind: "contents".to_owned()
        }]
    );
}
