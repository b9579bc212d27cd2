use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use muster_git::{Cache, Git, GitError, ObjectFormat, ObjectId, RefName, Remote, Workspace};
use tokio::task::JoinSet;

use crate::world::{World, ada, file, time};

#[tokio::test(flavor = "multi_thread")]
async fn fifty_workspaces_at_once_all_succeed() {
    for format in [ObjectFormat::Sha1, ObjectFormat::Sha256] {
        let world = World::with_format(format).await;
        let base = world.commit(&[], &[("a", "1"), ("d/b", "2")]).await;
        let mut commits = Vec::new();
        for number in 0..5 {
            let commit = world.commit(&[base], &[("n", &number.to_string())]).await;
            commits.push((
                world.set(&format!("refs/heads/b{number}"), commit).await,
                commit,
            ));
        }
        let mut creations = JoinSet::new();
        for number in 0..50_usize {
            let (name, commit) = commits[number % commits.len()].clone();
            let (git, remote) = (world.git.clone(), world.remote());
            let (root, folder) = (
                world.path("cache"),
                world.path(&format!("attempts/{number}")),
            );
            creations.spawn(async move {
                // A cache of its own, as another process would have.
                let cache = Cache::open(&git, &root).await?;
                let cached = cache.ensure_commit(&remote, &name, commit).await?;
                let workspace = Workspace::create(&cached, &folder, &ada()).await?;
                std::fs::write(workspace.work().join("own"), number.to_string()).unwrap();
                let taken = workspace.snapshot("Work", &ada(), time(3), commit).await?;
                let own = file(workspace.control(), taken.commit.unwrap(), "own").await;
                assert_eq!(own, number.to_string());
                Ok::<_, GitError>(())
            });
        }
        let results = creations.join_all().await;
        assert_eq!(results.len(), 50);
        for result in results {
            result.unwrap();
        }
    }
}

#[tokio::test]
async fn what_is_here_is_not_fetched_again() {
    let world = World::new().await;
    let commit = world.commit(&[], &[("a", "1")]).await;
    let cached = world.cached(commit).await;
    std::fs::rename(world.origin.folder(), world.path("away")).unwrap();
    let cache = Cache::open(&world.git, &world.path("cache")).await.unwrap();
    let name = RefName::parse("refs/heads/main").unwrap();
    let again = cache
        .ensure_commit(&world.remote(), &name, commit)
        .await
        .unwrap();
    assert_eq!(again.repository.folder(), cached.repository.folder());
    let other = ObjectId::parse(&"3".repeat(40)).unwrap();
    assert!(
        cache
            .ensure_commit(&world.remote(), &name, other)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_commit_behind_or_beside_the_ref_is_found() {
    let world = World::new().await;
    let old = world.commit(&[], &[("a", "1")]).await;
    let new = world.commit(&[old], &[("a", "2")]).await;
    let beside = world.commit(&[], &[("a", "3")]).await;
    let name = world.set("refs/muster/wip/r/t/1", new).await;
    let cache = Cache::open(&world.git, &world.path("cache")).await.unwrap();
    let remote = world.remote();
    for commit in [old, new, beside] {
        let cached = cache.ensure_commit(&remote, &name, commit).await.unwrap();
        assert!(
            cached
                .repository
                .exists(world.origin.tree_of(commit).await.unwrap())
                .await
                .unwrap()
        );
    }
    let missing = ObjectId::parse(&"3".repeat(40)).unwrap();
    let error = cache
        .ensure_commit(&remote, &name, missing)
        .await
        .unwrap_err();
    assert!(
        matches!(error, GitError::CommitNotOnRemote { .. }),
        "{error}"
    );
    let nowhere = Remote::new(world.path("nowhere").to_str().unwrap()).unwrap();
    let error = cache.ensure_commit(&nowhere, &name, old).await.unwrap_err();
    assert!(matches!(error, GitError::Failed { .. }), "{error}");
}

#[tokio::test]
async fn waiting_for_another_process_blocks_nobody_else() {
    let world = World::new().await;
    let commit = world.commit(&[], &[("a", "1")]).await;
    let name = world.set("refs/heads/main", commit).await;
    let cache = Cache::open(&world.git, &world.path("cache")).await.unwrap();
    let remote = world.remote();
    let cached = cache.ensure_commit(&remote, &name, commit).await.unwrap();
    let lock = cached.repository.folder().with_extension("lock");
    let holder = std::fs::File::open(lock).unwrap();
    holder.lock().unwrap();
    let next = world.commit(&[commit], &[("a", "2")]).await;
    let name = world.set("refs/heads/main", next).await;
    let mut waiting = Box::pin(cache.ensure_commit(&remote, &name, next));
    // One thread runs this test: it is free to do other work while the other waits.
    let mut free = Box::pin(cache.ensure_commit(&remote, &name, commit));
    tokio::select! {
        biased;
        early = &mut waiting => panic!("did not wait: {early:?}"),
        here = &mut free => assert_eq!(here.unwrap().commit, commit),
    }
    holder.unlock().unwrap();
    let done = tokio::time::timeout(Duration::from_secs(30), waiting)
        .await
        .unwrap();
    assert_eq!(done.unwrap().commit, next);
}

#[tokio::test]
async fn workspaces_are_never_created_over_something_or_opened_half_made() {
    let world = World::new().await;
    let commit = world.commit(&[], &[("a", "1")]).await;
    let cached = world.cached(commit).await;
    let folder = world.path("attempt");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("precious"), "").unwrap();
    let error = Workspace::create(&cached, &folder, &ada())
        .await
        .unwrap_err();
    assert!(matches!(error, GitError::Occupied { .. }), "{error}");
    let error = Workspace::open(&world.git, &folder).await.unwrap_err();
    assert!(matches!(error, GitError::NotAWorkspace { .. }), "{error}");
    std::fs::remove_file(folder.join("precious")).unwrap();
    let workspace = Workspace::create(&cached, &folder, &ada()).await.unwrap();
    std::fs::remove_file(folder.join("control.git/refs/muster/base")).unwrap();
    let error = Workspace::open(&world.git, &folder).await.unwrap_err();
    assert!(matches!(error, GitError::NotAWorkspace { .. }), "{error}");
    let locked = workspace.work().join("locked/deep");
    std::fs::create_dir_all(&locked).unwrap();
    std::fs::write(locked.join("file"), "").unwrap();
    std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o500)).unwrap();
    workspace.remove().await.unwrap();
    assert!(!folder.exists());
    assert!(cached.repository.exists(commit).await.unwrap());
}

#[tokio::test]
async fn a_cache_that_was_being_made_when_git_was_killed_is_made_anew() {
    let world = World::new().await;
    let base = world.commit(&[], &[("a", "1")]).await;
    let name = world.set("refs/heads/b", base).await;
    let cache = Cache::open(&world.git, &world.path("cache")).await.unwrap();
    let remote = world.remote();
    cache.ensure_commit(&remote, &name, base).await.unwrap();
    let made = std::fs::read_dir(world.path("cache")).unwrap();
    let folder = made
        .map(|entry| entry.unwrap().path())
        .find(|path| path.is_dir())
        .unwrap();
    std::fs::remove_file(folder.join("muster-complete")).unwrap();
    std::fs::write(folder.join("config.lock"), "").unwrap();
    cache.ensure_commit(&remote, &name, base).await.unwrap();
    assert!(!folder.join("config.lock").exists());
}

#[tokio::test]
async fn what_a_killed_fetch_left_in_the_cache_hinders_nobody_and_goes() {
    let world = World::new().await;
    let base = world.commit(&[], &[("a", "1")]).await;
    let cached = world.cached(base).await;
    let folder = cached.repository.folder();
    let next = world.commit(&[base], &[("a", "2")]).await;
    let name = world.set("refs/heads/main", next).await;
    let left = [
        format!("refs/muster/incoming/{next}.lock"),
        format!("refs/muster/kept/{next}.lock"),
        "packed-refs.lock".to_owned(),
        "objects/pack/tmp_pack_x".to_owned(),
        "objects/pack/pack-1.keep".to_owned(),
    ]
    .map(|name| folder.join(name));
    let leave = || {
        for path in &left {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "fetch-pack 4711 on host").unwrap();
        }
    };
    let is_left = || left.iter().any(|path| path.exists());
    leave();
    let of_person = folder.join("objects/pack/pack-2.keep");
    std::fs::write(&of_person, "mine").unwrap();
    let cache = Cache::open(&world.git, &world.path("cache")).await.unwrap();
    assert!(!is_left(), "a start sweeps");
    leave();
    let fetched = cache.ensure_commit(&world.remote(), &name, next).await;
    assert_eq!(fetched.unwrap().commit, next);
    assert!(!is_left(), "a fetch sweeps");
    assert!(of_person.exists());
}

#[tokio::test]
async fn a_git_that_is_killed_when_it_is_asked_for_its_version_is_asked_again() {
    let world = World::new().await;
    let (fake, asked) = (world.path("git"), world.path("asked"));
    let script = format!(
        "#!/bin/sh\nif [ ! -e {0} ]; then : >{0}; kill -9 $$; fi\nexec {1} \"$@\"\n",
        asked.display(),
        world.git.executable().display(),
    );
    std::fs::write(&fake, script).unwrap();
    std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o700)).unwrap();
    let git = Git::at(&fake).await.unwrap();
    assert_eq!(git.version(), world.git.version());
    assert!(asked.exists());
}

/// A cache with a limit that nothing fits into, and workers whose state is in `state`.
async fn tight(world: &World) -> Cache {
    let cache = Cache::open(&world.git, &world.path("cache")).await.unwrap();
    let state = world.path("state");
    std::fs::create_dir_all(&state).unwrap();
    cache.with_limit(1, &state).await.unwrap()
}

/// Another remote with the same commit.
async fn copy(world: &World, name: &str) -> Remote {
    let path = world.path(name);
    let copied = std::process::Command::new("cp")
        .args([
            "-r",
            world.origin.folder().to_str().unwrap(),
            path.to_str().unwrap(),
        ])
        .status();
    assert!(copied.unwrap().success());
    Remote::new(path.to_str().unwrap()).unwrap()
}

fn cached_names(world: &World) -> Vec<String> {
    let entries = std::fs::read_dir(world.path("cache")).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| Some(name.strip_suffix(".git")?.split_once('-')?.0.to_owned()))
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn what_was_used_longest_ago_leaves_a_full_cache_unless_it_is_in_use() {
    let world = World::new().await;
    let commit = world.commit(&[], &[("a", "1")]).await;
    let name = world.set("refs/heads/main", commit).await;
    let cache = tight(&world).await;
    let remote = |name: &'static str| copy(&world, name);
    let (one, two, three) = (
        remote("one").await,
        remote("two").await,
        remote("three").await,
    );
    drop(cache.ensure_commit(&one, &name, commit).await.unwrap());
    assert_eq!(cached_names(&world), ["one"], "what was just fetched stays");
    let held = cache.ensure_commit(&two, &name, commit).await.unwrap();
    assert_eq!(cached_names(&world), ["two"]);
    drop(cache.ensure_commit(&three, &name, commit).await.unwrap());
    assert_eq!(
        cached_names(&world),
        ["three", "two"],
        "somebody is about to borrow from two"
    );
    let folder = world.path("state/leases/7/workspace");
    let workspace = Workspace::create(&held, &folder, &ada()).await.unwrap();
    drop(held);
    drop(cache.ensure_commit(&one, &name, commit).await.unwrap());
    assert_eq!(
        cached_names(&world),
        ["one", "two"],
        "a workspace borrows from two"
    );
    // As edits are kept that could not be published: nothing unpublished is ever lost.
    let kept = world.path("state/kept/r-t-1-7");
    std::fs::create_dir_all(kept.parent().unwrap()).unwrap();
    std::fs::write(workspace.work().join("precious"), "edit").unwrap();
    std::fs::rename(&folder, &kept).unwrap();
    drop(cache.ensure_commit(&three, &name, commit).await.unwrap());
    assert_eq!(cached_names(&world), ["three", "two"]);
    let workspace = Workspace::open(&world.git, &kept).await.unwrap();
    let taken = workspace
        .snapshot("Work", &ada(), time(2), commit)
        .await
        .unwrap();
    assert!(taken.commit.is_some());
    workspace.remove().await.unwrap();
    drop(cache.ensure_commit(&one, &name, commit).await.unwrap());
    assert_eq!(cached_names(&world), ["one"]);
}

#[tokio::test]
async fn a_repository_that_is_used_again_outlives_one_that_is_not() {
    let world = World::new().await;
    let commit = world.commit(&[], &[("a", "1")]).await;
    let name = world.set("refs/heads/main", commit).await;
    let cache = Cache::open(&world.git, &world.path("cache")).await.unwrap();
    let (old, new) = (copy(&world, "old").await, copy(&world, "new").await);
    for remote in [&old, &new, &old] {
        drop(cache.ensure_commit(remote, &name, commit).await.unwrap());
    }
    let repositories = || {
        let entries = std::fs::read_dir(world.path("cache")).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.filter(|path| path.is_dir() && path.extension().is_some())
    };
    let bytes = |folder: &std::path::Path| -> u64 {
        let listed = std::process::Command::new("find")
            .args([folder.to_str().unwrap(), "-type", "f", "-printf", "%s\n"])
            .output()
            .unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        listed
            .lines()
            .map(|size| size.parse::<u64>().unwrap())
            .sum()
    };
    let all: u64 = repositories().map(|folder| bytes(&folder)).sum();
    cache
        .with_limit(all - 1, &world.path("state"))
        .await
        .unwrap();
    assert_eq!(cached_names(&world), ["old"]);
}

#[tokio::test]
async fn a_cache_gives_way_where_its_disk_has_too_little_room() {
    let world = World::new().await;
    let commit = world.commit(&[], &[("a", "1")]).await;
    let name = world.set("refs/heads/main", commit).await;
    let state = world.path("state");
    std::fs::create_dir_all(&state).unwrap();
    let cache = Cache::open(&world.git, &world.path("cache")).await.unwrap();
    let cache = cache.with_limit(u64::MAX - 1, &state).await.unwrap();
    let (one, two) = (copy(&world, "one").await, copy(&world, "two").await);
    drop(cache.ensure_commit(&one, &name, commit).await.unwrap());
    let in_use = cache.ensure_commit(&two, &name, commit).await.unwrap();
    cache.make_room(1).await.unwrap();
    assert_eq!(cached_names(&world), ["one", "two"], "there is room");
    // More than any disk has.
    cache.make_room(u64::MAX).await.unwrap();
    assert_eq!(cached_names(&world), ["two"]);
    drop(in_use);
    cache.make_room(u64::MAX).await.unwrap();
    assert!(cached_names(&world).is_empty());
    std::fs::remove_dir_all(world.path("cache")).unwrap();
    cache.make_room(u64::MAX).await.unwrap();
}
