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
