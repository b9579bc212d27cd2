//! Repositories and changes as people and agents make them: each scene is two small scripts.

mod changes;
mod repositories;

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use muster_git::{
    Expected, GitError, Identity, ObjectFormat, ObjectId, PushRef, RefName, Repository, Snapshot,
    Workspace,
};

use crate::world::{World, time};

/// What the path of a work tree holds: "file", "program" or "link", and its bytes.
pub(crate) type Files = BTreeMap<Vec<u8>, (&'static str, Vec<u8>)>;

/// A user's repository, a hosted one, and one attempt.
pub(crate) struct Scene {
    pub(crate) world: World,
    pub(crate) base: ObjectId,
    pub(crate) workspace: Workspace,
}

impl Scene {
    /// Makes `user` by a script, submits its `HEAD`, and begins an attempt on it.
    pub(crate) async fn new(script: &str) -> Self {
        Self::of(ObjectFormat::Sha1, script, "user", "HEAD").await
    }

    /// The same with the repository in another folder of the script's, or from another base.
    pub(crate) async fn of(format: ObjectFormat, script: &str, folder: &str, base: &str) -> Self {
        let world = World::with_format(format).await;
        shell(&world.path("."), &format!("{PRELUDE}{script}"));
        let base = submit(&world, folder, base).await.unwrap();
        let workspace = world.workspace(base).await;
        Self {
            world,
            base,
            workspace,
        }
    }

    pub(crate) fn work(&self) -> &Path {
        self.workspace.work()
    }

    /// Does what an agent does, by a script.
    pub(crate) fn agent(&self, script: &str) {
        shell(self.work(), script);
    }

    pub(crate) async fn try_result(&self) -> Result<Snapshot, GitError> {
        let by = Identity::new("Muster", "muster@localhost").unwrap();
        self.workspace.result("Work", &by, time(2)).await
    }

    pub(crate) async fn result(&self) -> Snapshot {
        self.try_result().await.unwrap()
    }

    /// Publishes the result and gives what a plain clone of it has on disk.
    pub(crate) async fn landed(&self) -> (Snapshot, Files) {
        let taken = self.result().await;
        let commit = taken.commit.unwrap_or(self.base);
        (taken, self.checkout(commit).await)
    }

    /// Pushes a commit, and gives what a plain clone of it has on disk.
    pub(crate) async fn checkout(&self, commit: ObjectId) -> Files {
        let name = RefName::parse("refs/heads/landed").unwrap();
        let remote = self.world.remote();
        let pushed = self.workspace.push(&remote, commit, &name, Expected::Any);
        let pushed = pushed.await.unwrap();
        assert!(pushed.outcome.is_done(), "{pushed:?}");
        shell(
            &self.world.path("."),
            "rm -rf landed; git clone -q --branch landed origin.git landed",
        );
        files(&self.world.path("landed"))
    }

    /// Asserts that nothing but what the agent left lands, byte by byte.
    pub(crate) async fn lands_as_left(&self) -> Snapshot {
        let (taken, landed) = self.landed().await;
        assert_same(&landed, &files(self.work()));
        taken
    }

    /// The same where a folder called `out` is ignored.
    pub(crate) async fn lands_as_left_but_ignored(&self) {
        let (_, landed) = self.landed().await;
        let mut left = files(self.work());
        left.retain(|path, _| !path.starts_with(b"out/"));
        assert_same(&landed, &left);
    }

    /// Asks git about the hosted repository.
    pub(crate) fn origin(&self, script: &str) -> String {
        shell(self.world.origin.folder(), script)
    }

    /// Lists the notes of a result as people read them.
    pub(crate) async fn notes(&self) -> String {
        let taken = self.result().await;
        let notes = taken.notes.iter().map(|note| format!("{note}\n"));
        notes.collect()
    }
}

/// Begins a script that makes a user's repository.
const PRELUDE: &str = "init() { git init -q -b main \"$@\" user; cd user; }\n\
    commit() { git add -A; git commit -q --allow-empty -m \"$1\"; }\n";

/// Pushes what a base of the user's repository names, as a submission does.
pub(crate) async fn submit(world: &World, folder: &str, base: &str) -> Result<ObjectId, GitError> {
    let user = Repository::open_user(&world.git, &world.path(folder)).await?;
    let commit = user.rev_parse(base).await?;
    let push = PushRef {
        name: RefName::parse("refs/muster/source/r").unwrap(),
        new: Some(commit),
        expected: Expected::Absent,
    };
    let pushed = world.remote().push(&user, &[push]).await?;
    assert!(
        pushed.iter().all(|ref_| ref_.outcome.is_done()),
        "{pushed:?}"
    );
    Ok(commit)
}

/// Runs a script of `sh` in a folder, with an author of its own and no settings of anybody.
pub(crate) fn shell(folder: &Path, script: &str) -> String {
    let output = Command::new("/bin/sh")
        .args(["-euc", script])
        .current_dir(folder)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", "/nonexistent")
        .env("LC_ALL", "C")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_COUNT", "2")
        .env("GIT_CONFIG_KEY_0", "protocol.file.allow")
        .env("GIT_CONFIG_VALUE_0", "always")
        .env("GIT_CONFIG_KEY_1", "advice.detachedHead")
        .env("GIT_CONFIG_VALUE_1", "false")
        .env("GIT_AUTHOR_NAME", "Grace")
        .env("GIT_AUTHOR_EMAIL", "grace@example.org")
        .env("GIT_COMMITTER_NAME", "Grace")
        .env("GIT_COMMITTER_EMAIL", "grace@example.org")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{script}\n{said}");
    String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned()
}

/// Reads every file below a folder but those of git folders; permissions other than the executable
/// bit do not count, nor do empty folders.
pub(crate) fn files(folder: &Path) -> Files {
    let mut found = Files::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(relative) = folders.pop() {
        for entry in std::fs::read_dir(folder.join(&relative)).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name() == ".git" {
                continue;
            }
            let path = relative.join(entry.file_name());
            let full = entry.path();
            let kind = entry.file_type().unwrap();
            let name = path.as_os_str().as_bytes().to_vec();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_symlink() {
                let target = std::fs::read_link(full).unwrap();
                found.insert(name, ("link", target.as_os_str().as_bytes().to_vec()));
            } else if kind.is_file() {
                let mode = entry.metadata().unwrap().permissions().mode();
                let kind = if mode & 0o100 == 0 { "file" } else { "program" };
                found.insert(name, (kind, std::fs::read(full).unwrap()));
            }
        }
    }
    found
}

pub(crate) fn assert_same(found: &Files, expected: &Files) {
    let names = |files: &Files| -> Vec<String> {
        let name = |name: &Vec<u8>| String::from_utf8_lossy(name).into_owned();
        files.keys().map(name).collect()
    };
    assert_eq!(names(found), names(expected));
    for (name, content) in expected {
        let found = found.get(name);
        let name = String::from_utf8_lossy(name);
        assert!(
            found == Some(content),
            "{name}: {found:?} is not {content:?}"
        );
    }
}
