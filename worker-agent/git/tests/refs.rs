use muster_git::{
    BinaryFiles, Change, ChangeKind, Expected, GitError, ObjectFormat, ObjectId, RefName,
    RefUpdate, Repository, Update,
};

use crate::world::{Put, World};

fn name(text: &str) -> RefName {
    RefName::parse(text).unwrap()
}

fn update(name: &RefName, new: Option<ObjectId>, expected: Expected) -> RefUpdate {
    RefUpdate {
        name: name.clone(),
        new,
        expected,
    }
}

#[tokio::test]
async fn refs_move_together_or_not_at_all() {
    for format in [ObjectFormat::Sha1, ObjectFormat::Sha256] {
        let world = World::with_format(format).await;
        let (one, two) = (
            world.commit(&[], &[("a", "1")]).await,
            world.commit(&[], &[("a", "2")]).await,
        );
        let (a, b) = (name("refs/muster/x/a"), name("refs/muster/x/b"));
        let run = async |updates: &[RefUpdate]| world.origin.update_refs(updates).await.unwrap();
        assert_eq!(
            run(&[update(&a, Some(one), Expected::Absent)]).await,
            Update::Done
        );

        let both = [
            update(&b, Some(two), Expected::Absent),
            update(&a, Some(two), Expected::Is(two)),
        ];
        let refused = Update::Refused {
            name: a.clone(),
            expected: Expected::Is(two),
            found: Some(one),
        };
        assert_eq!(run(&both).await, refused);
        assert_eq!(
            world.origin.list_refs("refs/muster").await.unwrap(),
            [(a.clone(), one)]
        );

        let again = run(&[update(&a, Some(two), Expected::Absent)]).await;
        assert!(matches!(again, Update::Refused { found: Some(found), .. } if found == one));
        let gone = run(&[update(&b, None, Expected::Is(one))]).await;
        assert!(
            matches!(gone, Update::Refused { found: None, .. }),
            "{gone:?}"
        );

        let all = [
            update(&a, Some(two), Expected::Is(one)),
            update(&b, Some(one), Expected::Any),
            update(&name("refs/muster/x/c"), None, Expected::Absent),
        ];
        assert_eq!(run(&all).await, Update::Done);
        let refs = world.origin.list_refs("refs/muster/x/").await.unwrap();
        assert_eq!(refs, [(a.clone(), two), (b.clone(), one)]);

        assert_eq!(run(&[update(&a, None, Expected::Any)]).await, Update::Done);
        assert_eq!(world.origin.read_ref(&a).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_ref_cannot_point_to_what_is_not_there() {
    let world = World::new().await;
    let nothing = ObjectId::parse(&"1".repeat(40)).unwrap();
    let wanted = [update(&name("refs/x/y"), Some(nothing), Expected::Any)];
    let result = world.origin.update_refs(&wanted).await;
    assert!(matches!(result, Err(GitError::Failed { .. })));
}

#[tokio::test]
async fn reading_a_ref_does_not_find_others_below_or_beside_it() {
    let world = World::new().await;
    let one = world.commit(&[], &[("a", "1")]).await;
    world.set("refs/heads/a/b", one).await;
    world.set("refs/heads/ab", one).await;
    assert_eq!(
        world.origin.read_ref(&name("refs/heads/a")).await.unwrap(),
        None
    );
    assert_eq!(
        world.origin.list_refs("refs/heads/a").await.unwrap().len(),
        1
    );
    assert!(world.origin.list_refs("--all").await.is_err());
}

#[tokio::test]
async fn concurrent_updates_of_one_ref_have_one_winner() {
    let world = World::new().await;
    let target = name("refs/muster/attempts/r/t/1");
    let mut tries = tokio::task::JoinSet::new();
    for number in 0..8 {
        let commit = world.commit(&[], &[("a", &format!("{number}"))]).await;
        let (repository, target) = (world.origin.clone(), target.clone());
        tries.spawn(async move {
            let wanted = update(&target, Some(commit), Expected::Absent);
            repository.update_refs(&[wanted]).await.unwrap() == Update::Done
        });
    }
    let done = tries
        .join_all()
        .await
        .into_iter()
        .filter(|done| *done)
        .count();
    assert_eq!(done, 1);
}

#[tokio::test]
async fn revisions_that_people_type_are_found_or_named_as_unknown() {
    let world = World::new().await;
    let one = world.commit(&[], &[("a", "1")]).await;
    let two = world.commit(&[one], &[("a", "2")]).await;
    world.set("refs/heads/main", two).await;
    for (revision, commit) in [("main", two), ("HEAD", two), ("main~1", one)] {
        assert_eq!(world.origin.rev_parse(revision).await.unwrap(), commit);
    }
    assert_eq!(world.origin.rev_parse(&one.to_string()).await.unwrap(), one);
    for revision in ["", "nope", "--help", "-h", "main:a", "a\0b", "main\n"] {
        let error = world.origin.rev_parse(revision).await.unwrap_err();
        assert!(
            matches!(error, GitError::UnknownRevision { .. }),
            "{revision:?}: {error}"
        );
    }
    assert!(world.origin.exists(one).await.unwrap());
    assert!(
        !world
            .origin
            .exists(ObjectId::parse(&"1".repeat(40)).unwrap())
            .await
            .unwrap()
    );
    assert!(world.origin.is_ancestor(one, two).await.unwrap());
    assert!(!world.origin.is_ancestor(two, one).await.unwrap());
    let log = world.origin.log(two, None, 10).await.unwrap();
    assert_eq!(
        log.iter().map(|commit| commit.id).collect::<Vec<_>>(),
        [two, one]
    );
    assert_eq!(world.origin.log(two, Some(one), 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn changes_have_names_kinds_and_numbers() {
    let world = World::new().await;
    let long = "line\n".repeat(20);
    let old = [
        ("gone", "x\n"),
        ("long", long.as_str()),
        ("same", "x"),
        ("text", "a\nb\n"),
    ];
    let old = world.commit(&[], &old).await;
    let new = [
        ("gone", Put::Gone),
        ("long", Put::Gone),
        ("moved", Put::Text(&long)),
        ("pic", Put::Text("\0\x01")),
        ("text", Put::Text("a\nc\nd\n")),
    ];
    let new = world.commit_of(&[old], &new).await;
    let change = |path: &str, kind, lines| Change {
        path: path.as_bytes().to_vec(),
        kind,
        lines,
    };
    assert_eq!(
        world.origin.changes(old, new).await.unwrap(),
        [
            change("gone", ChangeKind::Deleted, Some((0, 1))),
            change(
                "moved",
                ChangeKind::Renamed {
                    from: b"long".to_vec()
                },
                Some((0, 0))
            ),
            change("pic", ChangeKind::Added, None),
            change("text", ChangeKind::Modified, Some((2, 1))),
        ]
    );
    let patch = async |binary, bytes_max| {
        let patch = world.origin.patch(old, new, binary, bytes_max).await;
        let patch = patch.unwrap();
        (String::from_utf8(patch.bytes).unwrap(), patch.truncated)
    };
    let (text, truncated) = patch(BinaryFiles::Named, 1 << 20).await;
    assert!(text.contains("rename from long") && !truncated, "{text}");
    assert!(text.contains("pic differ"), "{text}");
    let (text, _) = patch(BinaryFiles::Whole, 1 << 20).await;
    assert!(text.contains("GIT binary patch"), "{text}");
    let (text, truncated) = patch(BinaryFiles::Named, 40).await;
    assert!(text.len() == 40 && truncated, "{text}");
}

#[tokio::test]
async fn a_folder_that_is_no_repository_is_refused() {
    let world = World::new().await;
    assert!(
        Repository::open_bare(&world.git, &world.path("nothing"))
            .await
            .is_err()
    );
    assert!(
        Repository::open_user(&world.git, &world.path("nothing"))
            .await
            .is_err()
    );
    assert!(
        Repository::open_bare(&world.git, world.origin.folder())
            .await
            .is_ok()
    );
}
