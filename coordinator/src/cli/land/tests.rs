use std::os::unix::fs::PermissionsExt as _;

use super::*;

/// A person's repository, and a result that was fetched into it.
struct World {
    folder: tempfile::TempDir,
    git: Git,
    base: ObjectId,
    result: ObjectId,
}

impl World {
    /// `main` is checked out at a base; the result adds `new.txt` and changes `a.txt`.
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let git = Git::find().await.unwrap();
        let mut world = Self {
            folder,
            git,
            base: ObjectId::parse(&"1".repeat(40)).unwrap(),
            result: ObjectId::parse(&"1".repeat(40)).unwrap(),
        };
        world
            .run(&["init", "--quiet", "--initial-branch=main"])
            .await;
        world.run(&["config", "user.name", "Ann"]).await;
        world
            .run(&["config", "user.email", "ann@example.org"])
            .await;
        world.run(&["config", "commit.gpgSign", "false"]).await;
        world.base = world.commit("a.txt", "base\n").await;
        world.run(&["switch", "--quiet", "-c", "result"]).await;
        world.commit("a.txt", "result\n").await;
        world.result = world.commit("new.txt", "new\n").await;
        world.run(&["switch", "--quiet", "main"]).await;
        world.run(&["branch", "--quiet", "-D", "result"]).await;
        world
    }

    async fn run(&self, arguments: &[&str]) -> String {
        self.git
            .command(Mode::UserRepository)
            .directory(self.folder.path())
            .args(arguments)
            .run_ok()
            .await
            .unwrap()
            .text()
    }

    async fn commit(&self, file: &str, text: &str) -> ObjectId {
        std::fs::write(self.folder.path().join(file), text).unwrap();
        self.run(&["add", file]).await;
        self.run(&["commit", "--quiet", "-m", file]).await;
        ObjectId::parse(&self.run(&["rev-parse", "HEAD"]).await).unwrap()
    }

    async fn target(&self, into: Option<&str>) -> Result<Target> {
        let repository = fetch::open(&self.git, self.folder.path()).await?;
        Target::find(&self.git, self.folder.path(), repository, into).await
    }

    async fn land(&self) -> Result<Landed> {
        self.target(None).await?.land(self.result, "r-1").await
    }

    /// Everything that a refusal must not change.
    async fn state(&self) -> (String, String, String) {
        (
            self.run(&["show-ref"]).await,
            self.run(&["status", "--porcelain"]).await,
            self.run(&["diff", "HEAD"]).await,
        )
    }

    fn read(&self, file: &str) -> Option<String> {
        std::fs::read_to_string(self.folder.path().join(file)).ok()
    }
}

async fn refused(world: &World, because: &str) {
    let before = world.state().await;
    let error = world.land().await.unwrap_err();
    assert!(error.to_string().contains(because), "{error}");
    assert_eq!(world.state().await, before);
}

#[tokio::test]
async fn a_branch_that_has_not_moved_is_moved_to_the_result_once() {
    let world = World::new().await;
    assert_eq!(world.land().await.unwrap(), Landed::FastForward);
    assert_eq!(
        world.target(None).await.unwrap().tip().await.unwrap(),
        world.result
    );
    assert_eq!(world.read("new.txt").as_deref(), Some("new\n"));
    assert_eq!(world.run(&["status", "--porcelain"]).await, "");
    assert_eq!(world.land().await.unwrap(), Landed::Already);
}

#[tokio::test]
async fn a_branch_that_has_moved_on_gets_a_merge() {
    let world = World::new().await;
    let own = world.commit("own.txt", "own\n").await;
    assert_eq!(world.land().await.unwrap(), Landed::Merged);
    let parents = world.run(&["log", "-1", "--format=%P"]).await;
    assert_eq!(parents, format!("{own} {}", world.result));
    assert_eq!(
        world.run(&["log", "-1", "--format=%an: %s"]).await,
        "Ann: Merge run r-1"
    );
    assert_eq!(world.read("a.txt").as_deref(), Some("result\n"));
}

#[tokio::test]
async fn uncommitted_changes_are_refused_and_kept() {
    let world = World::new().await;
    std::fs::write(world.folder.path().join("a.txt"), "mine\n").unwrap();
    refused(&world, "uncommitted changes: a.txt").await;
    assert_eq!(world.read("a.txt").as_deref(), Some("mine\n"));
}

#[tokio::test]
async fn an_untracked_file_in_the_way_is_kept() {
    let world = World::new().await;
    std::fs::write(world.folder.path().join("new.txt"), "mine\n").unwrap();
    refused(&world, "new.txt").await;
    assert_eq!(world.read("new.txt").as_deref(), Some("mine\n"));
}

#[tokio::test]
async fn a_merge_that_would_conflict_is_not_begun() {
    let world = World::new().await;
    world.commit("a.txt", "other\n").await;
    refused(&world, "would conflict in a.txt").await;
}

#[tokio::test]
async fn what_is_under_way_is_finished_first() {
    let world = World::new().await;
    let head = world.folder.path().join(".git/MERGE_HEAD");
    std::fs::write(head, format!("{}\n", world.base)).unwrap();
    refused(&world, "a merge is under way").await;
}

#[tokio::test]
async fn a_detached_head_is_no_branch_to_land_in() {
    let world = World::new().await;
    world.run(&["switch", "--quiet", "--detach"]).await;
    refused(&world, "HEAD is detached").await;
}

#[tokio::test]
async fn another_branch_moves_without_touching_the_files() {
    let world = World::new().await;
    world.run(&["branch", "stable"]).await;
    let target = world.target(Some("stable")).await.unwrap();
    assert_eq!(
        target.land(world.result, "r-1").await.unwrap(),
        Landed::FastForward
    );
    assert_eq!(target.tip().await.unwrap(), world.result);
    assert_eq!(world.read("new.txt"), None);
    assert!(world.target(Some("absent")).await.is_err());
}

#[tokio::test]
async fn a_branch_that_is_checked_out_elsewhere_is_not_moved_under_its_files() {
    let world = World::new().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let path = elsewhere.path().join("tree");
    let path = path.to_str().unwrap();
    world
        .run(&["worktree", "add", "--quiet", "-b", "stable", path])
        .await;
    let target = world.target(Some("stable")).await.unwrap();
    let error = target.land(world.result, "r-1").await.unwrap_err();
    assert!(error.to_string().contains("checked out in"), "{error}");
    assert_eq!(target.tip().await.unwrap(), world.base);
}

#[tokio::test]
async fn a_hook_that_says_no_leaves_everything_as_it_was() {
    let world = World::new().await;
    world.commit("own.txt", "own\n").await;
    let hook = world.folder.path().join(".git/hooks/pre-merge-commit");
    std::fs::create_dir_all(hook.parent().unwrap()).unwrap();
    std::fs::write(&hook, "#!/bin/sh\necho 'not on a friday' >&2\nexit 1\n").unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    refused(&world, "not on a friday").await;
}

impl World {
    fn hook(&self, name: &str, script: &str) {
        let hook = self.folder.path().join(".git/hooks").join(name);
        std::fs::create_dir_all(hook.parent().unwrap()).unwrap();
        std::fs::write(&hook, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Whether something is left of a merge that was not finished.
    fn is_half_done(&self) -> bool {
        let git = self.folder.path().join(".git");
        UNDER_WAY.iter().any(|(file, _)| git.join(file).exists())
    }
}

#[tokio::test]
async fn a_persons_hooks_run_around_a_merge() {
    let world = World::new().await;
    world.commit("own.txt", "own\n").await;
    world.hook("commit-msg", "echo 'Signed-off-by: a hook' >> \"$1\"");
    world.hook("post-merge", "echo \"squash=$1\" > .git/told");
    assert_eq!(world.land().await.unwrap(), Landed::Merged);
    let message = world.run(&["log", "-1", "--format=%B"]).await;
    assert!(message.starts_with("Merge run r-1"), "{message}");
    assert!(message.contains("Signed-off-by: a hook"), "{message}");
    assert_eq!(world.read(".git/told").as_deref(), Some("squash=0\n"));
}

#[tokio::test]
async fn a_post_merge_hook_also_runs_when_the_branch_only_moves() {
    let world = World::new().await;
    world.hook("post-merge", "echo ran > .git/told");
    assert_eq!(world.land().await.unwrap(), Landed::FastForward);
    assert_eq!(world.read(".git/told").as_deref(), Some("ran\n"));
}

#[tokio::test]
async fn hooks_that_refuse_leave_nothing_half_done() {
    for (hook, script) in [
        ("commit-msg", "echo 'no ticket in the message' >&2; exit 1"),
        (
            "pre-merge-commit",
            "echo changed > a.txt; echo 'no ticket in the message' >&2; exit 1",
        ),
        (
            "reference-transaction",
            "if [ \"$1\" = prepared ] && grep -q refs/heads/main; then echo 'no ticket in the message' >&2; exit 1; fi",
        ),
    ] {
        let world = World::new().await;
        world.commit("own.txt", "own\n").await;
        let before = world.state().await;
        world.hook(hook, script);
        let error = world.land().await.unwrap_err();
        std::fs::remove_dir_all(world.folder.path().join(".git/hooks")).unwrap();
        assert!(
            error.to_string().contains("no ticket in the message"),
            "{hook}: {error}"
        );
        assert_eq!(world.state().await, before, "{hook}");
        assert!(!world.is_half_done(), "{hook}");
    }
}

#[tokio::test]
async fn an_end_that_is_asked_for_in_the_middle_takes_the_merge_back() {
    let world = World::new().await;
    world.commit("own.txt", "own\n").await;
    let before = world.state().await;
    // As a terminal does it: everything that runs in the foreground gets the signal.
    let us = std::process::id();
    world.hook("commit-msg", &format!("kill -INT {us} $PPID\nsleep 600"));
    let error = world.land().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Interrupted, "{error}");
    assert!(error.to_string().contains("nothing has changed"), "{error}");
    assert_eq!(world.state().await, before);
    assert!(!world.is_half_done());
}

#[tokio::test]
async fn a_hook_that_refuses_what_is_fetched_is_named_and_nobody_elses_fault() {
    let world = World::new().await;
    world.hook(
        "reference-transaction",
        "[ \"$1\" = prepared ] && grep -q refs/remotes/ && exit 1; exit 0",
    );
    let repository = fetch::open(&world.git, world.folder.path()).await.unwrap();
    let from = muster_git::Remote::new(world.folder.path().to_str().unwrap()).unwrap();
    let name = |name| RefName::parse(name).unwrap();
    let refspec = muster_git::Refspec::to_ref(
        &name("refs/heads/main"),
        &name("refs/remotes/muster/r-1/integration"),
    );
    let error = from.fetch(&repository, &[refspec]).await.unwrap_err();
    let said = fetch::refused_here(&error).unwrap_or_default();
    assert!(said.contains("`reference-transaction`"), "{error} {said}");
}

#[tokio::test]
async fn a_merge_is_signed_by_whoever_signs_and_refused_without_the_key() {
    let world = World::new().await;
    world.commit("own.txt", "own\n").await;
    let key = world.folder.path().join(".git/key");
    let key = key.to_str().unwrap();
    world.run(&["config", "gpg.format", "ssh"]).await;
    world.run(&["config", "user.signingKey", key]).await;
    world.run(&["config", "commit.gpgSign", "true"]).await;
    let before = world.state().await;
    let error = world.land().await.unwrap_err();
    assert!(error.to_string().contains("key"), "{error}");
    assert_eq!(world.state().await, before);
    assert!(!world.is_half_done());

    let made = std::process::Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "ann", "-f", key])
        .status();
    assert!(made.unwrap().success());
    let public = world.read(".git/key.pub").unwrap();
    let signers = world.folder.path().join(".git/signers");
    std::fs::write(&signers, format!("ann@example.org {public}")).unwrap();
    let signers = signers.to_str().unwrap();
    world
        .run(&["config", "gpg.ssh.allowedSignersFile", signers])
        .await;
    assert_eq!(world.land().await.unwrap(), Landed::Merged);
    assert_eq!(
        world.run(&["log", "-1", "--format=%G? %GS"]).await,
        "G ann@example.org"
    );
}

#[tokio::test]
async fn a_branch_that_moves_meanwhile_is_not_moved_back() {
    let world = World::new().await;
    world.run(&["branch", "stable"]).await;
    let target = world.target(Some("stable")).await.unwrap();
    let theirs = world.commit("own.txt", "own\n").await;
    world.run(&["branch", "--force", "stable", "HEAD"]).await;
    let error = target.land(world.result, "r-1").await.unwrap_err();
    assert!(error.to_string().contains("stable"), "{error}");
    assert_eq!(target.tip().await.unwrap(), theirs);
}

#[tokio::test]
async fn a_protected_branch_is_not_moved() {
    let world = World::new().await;
    for pattern in ["release/*", "main"] {
        world
            .run(&["config", "--add", "muster.protected", pattern])
            .await;
    }
    refused(&world, "it is protected: muster.protected is \"main\"").await;
    world.run(&["branch", "release/1"]).await;
    let release = world.target(Some("release/1")).await.unwrap();
    let error = release.land(world.result, "r-1").await.unwrap_err();
    assert!(error.to_string().contains("release/*"), "{error}");
    world.run(&["branch", "next"]).await;
    let next = world.target(Some("next")).await.unwrap();
    assert_eq!(
        next.land(world.result, "r-1").await.unwrap(),
        Landed::FastForward
    );
}

#[tokio::test]
async fn a_rebase_under_way_is_named_though_head_is_detached() {
    let world = World::new().await;
    world.run(&["switch", "--quiet", "-c", "topic"]).await;
    world.commit("own.txt", "own\n").await;
    let stopped = world
        .git
        .command(Mode::UserRepository)
        .directory(world.folder.path())
        .args(["rebase", "--quiet", "--exec", "false", "HEAD~1"])
        .run()
        .await
        .unwrap();
    assert_ne!(stopped.exit_code, Some(0));
    refused(&world, "a rebase is under way").await;
}

#[tokio::test]
async fn a_bare_repository_gets_what_needs_no_files() {
    let world = World::new().await;
    let other = tempfile::tempdir().unwrap();
    let bare = other.path().join("bare.git");
    let folder = world.folder.path().to_str().unwrap();
    let path = bare.to_str().unwrap();
    // Objects without a branch do not come with a clone.
    world
        .run(&["branch", "kept", &world.result.to_string()])
        .await;
    world
        .run(&["clone", "--quiet", "--bare", folder, path])
        .await;
    let target = async || {
        let repository = fetch::open(&world.git, &bare).await.unwrap();
        Target::find(&world.git, &bare, repository, Some("main"))
            .await
            .unwrap()
    };
    assert_eq!(
        target().await.land(world.result, "r-1").await.unwrap(),
        Landed::FastForward
    );
    assert_eq!(target().await.tip().await.unwrap(), world.result);

    let own = world.commit("own.txt", "own\n").await;
    world
        .run(&["push", "--quiet", "--force", path, "main"])
        .await;
    let error = target().await.land(world.result, "r-1").await.unwrap_err();
    assert!(error.to_string().contains("needs its files"), "{error}");
    assert_eq!(target().await.tip().await.unwrap(), own);
}

#[tokio::test]
async fn a_tag_with_the_name_of_the_branch_changes_nothing() {
    let world = World::new().await;
    world.run(&["tag", "main"]).await;
    world.run(&["config", "muster.protected", "main"]).await;
    refused(&world, "main: it is protected").await;
    world.run(&["config", "--unset", "muster.protected"]).await;
    assert_eq!(world.land().await.unwrap(), Landed::FastForward);
    let target = world.target(None).await.unwrap();
    assert_eq!(target.tip().await.unwrap(), world.result);
}

#[tokio::test]
async fn an_ignored_file_in_the_way_is_kept() {
    for moved in [false, true] {
        let world = World::new().await;
        if moved {
            world.commit("own.txt", "own\n").await;
        }
        let exclude = world.folder.path().join(".git/info/exclude");
        std::fs::write(exclude, "new.txt\n").unwrap();
        let place = world.folder.path().join("new.txt");
        std::fs::write(&place, "mine\n").unwrap();
        refused(&world, "in no commit: new.txt").await;
        assert_eq!(world.read("new.txt").as_deref(), Some("mine\n"));
        // A folder of ignored files.
        std::fs::remove_file(&place).unwrap();
        std::fs::create_dir(&place).unwrap();
        std::fs::write(place.join("mine"), "mine\n").unwrap();
        refused(&world, "in no commit: new.txt/mine").await;
        assert_eq!(world.read("new.txt/mine").as_deref(), Some("mine\n"));
        std::fs::remove_file(place.join("mine")).unwrap();
        world.land().await.unwrap();
        assert_eq!(world.read("new.txt").as_deref(), Some("new\n"));
    }
}

#[tokio::test]
async fn an_ignored_file_where_a_folder_goes_is_kept() {
    let mut world = World::new().await;
    world.run(&["switch", "--quiet", "-c", "deeper"]).await;
    std::fs::create_dir_all(world.folder.path().join("build/deep")).unwrap();
    world.result = world.commit("build/deep/out", "out\n").await;
    world.run(&["switch", "--quiet", "main"]).await;
    let exclude = world.folder.path().join(".git/info/exclude");
    std::fs::write(exclude, "build\n").unwrap();
    std::fs::write(world.folder.path().join("build"), "mine\n").unwrap();
    refused(&world, "in no commit: build").await;
    assert_eq!(world.read("build").as_deref(), Some("mine\n"));
    // One that is in a commit may become a folder.
    std::fs::remove_file(world.folder.path().join("build")).unwrap();
    world.commit("file", "file\n").await;
    world.run(&["branch", "--force", "deeper", "HEAD"]).await;
    world.run(&["switch", "--quiet", "deeper"]).await;
    std::fs::remove_file(world.folder.path().join("file")).unwrap();
    std::fs::create_dir(world.folder.path().join("file")).unwrap();
    world.run(&["rm", "--quiet", "--cached", "file"]).await;
    world.result = world.commit("file/out", "out\n").await;
    world.run(&["switch", "--quiet", "main"]).await;
    assert_eq!(world.land().await.unwrap(), Landed::FastForward);
    assert_eq!(world.read("file/out").as_deref(), Some("out\n"));
}

#[tokio::test]
async fn a_branch_that_a_hook_keeps_from_moving_keeps_its_files() {
    let world = World::new().await;
    let before = world.state().await;
    world.hook(
        "reference-transaction",
        "if [ \"$1\" = prepared ] && grep -q refs/heads/main; then echo 'not now' >&2; exit 1; fi",
    );
    let error = world.land().await.unwrap_err();
    assert!(error.to_string().contains("not now"), "{error}");
    assert_eq!(world.state().await, before);
    assert_eq!(world.read("new.txt"), None);
}

#[tokio::test]
async fn a_branch_that_is_being_rebased_is_not_moved_under_the_rebase() {
    let world = World::new().await;
    let rebase = ["rebase", "--quiet", "--exec", "false", "--root"];
    let command = world.git.command(Mode::UserRepository);
    let stopped = command.directory(world.folder.path()).args(rebase);
    assert_ne!(stopped.run().await.unwrap().exit_code, Some(0));
    let target = world.target(Some("main")).await.unwrap();
    let error = target.land(world.result, "r-1").await.unwrap_err();
    assert!(error.to_string().contains("a rebase of it"), "{error}");
    assert_eq!(target.tip().await.unwrap(), world.base);
}

#[tokio::test]
async fn what_is_no_name_of_a_branch_is_not_offered_to_be_made() {
    let world = World::new().await;
    for name in ["", "-x", "HEAD", "a b", "a..b"] {
        let error = world.target(Some(name)).await.err().unwrap();
        let text = error.to_string();
        assert!(text.contains("is no name of a branch"), "{text}");
    }
    let error = world.target(Some("absent")).await.err().unwrap();
    assert!(error.to_string().contains("there is no branch"), "{error}");
}

#[tokio::test]
async fn a_bare_repository_without_a_commit_gets_its_branch() {
    let world = World::new().await;
    let other = tempfile::tempdir().unwrap();
    let bare = Repository::init_bare(&world.git, other.path(), muster_git::ObjectFormat::Sha1)
        .await
        .unwrap();
    let objects = world.folder.path().join(".git/objects");
    let alternates = bare.folder().join("objects/info/alternates");
    std::fs::write(alternates, objects.to_str().unwrap()).unwrap();
    let repository = fetch::open(&world.git, other.path()).await.unwrap();
    let target = Target::find(&world.git, other.path(), repository, None)
        .await
        .unwrap();
    let landed = target.land(world.result, "r-1").await.unwrap();
    assert_eq!(landed, Landed::FastForward);
    assert_eq!(target.tip().await.unwrap(), world.result);
}

#[tokio::test]
async fn a_hook_may_ask_on_the_terminal() {
    // Only the process group that a terminal listens to may read from it.
    let group = |stat: &str| stat.split(' ').nth(4).map(str::to_owned);
    let ours = group(&std::fs::read_to_string("/proc/self/stat").unwrap());
    for moved in [false, true] {
        let world = World::new().await;
        if moved {
            world.commit("own.txt", "own\n").await;
        }
        world.hook("post-merge", "cat /proc/self/stat > .git/told");
        world.land().await.unwrap();
        let told = world.read(".git/told").unwrap();
        assert_eq!(group(&told), ours, "{told}");
    }
}
