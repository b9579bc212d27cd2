//! A folder with an origin repository, and short ways to make commits in it.

use std::path::{Path, PathBuf};

use muster_git::{
    Cache, CachedCommit, CommitTime, Git, Identity, Mode, ObjectFormat, ObjectId, RefName, Remote,
    Repository, Workspace,
};
use tempfile::TempDir;

pub(crate) struct World {
    pub(crate) folder: TempDir,
    pub(crate) git: Git,
    pub(crate) origin: Repository,
}

/// A file of a commit: its path and what becomes of it.
pub(crate) enum Put<'a> {
    Text(&'a str),
    Program(&'a str),
    Symlink(&'a str),
    Link(ObjectId),
    Gone,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with_format(ObjectFormat::Sha1).await
    }

    pub(crate) async fn with_format(format: ObjectFormat) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let git = Git::find().await.unwrap();
        let path = folder.path().join("origin.git");
        let origin = Repository::init_bare(&git, &path, format).await.unwrap();
        Self {
            folder,
            git,
            origin,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn remote(&self) -> Remote {
        Remote::new(self.origin.folder().to_str().unwrap()).unwrap()
    }

    /// Commits text files on top of the first parent.
    pub(crate) async fn commit(&self, parents: &[ObjectId], files: &[(&str, &str)]) -> ObjectId {
        let files: Vec<_> = files
            .iter()
            .map(|(path, text)| (*path, Put::Text(text)))
            .collect();
        self.commit_of(parents, &files).await
    }

    pub(crate) async fn commit_of(
        &self,
        parents: &[ObjectId],
        files: &[(&str, Put<'_>)],
    ) -> ObjectId {
        let index = tempfile::tempdir().unwrap();
        let index = index.path().join("index");
        let command = || self.origin.command().env("GIT_INDEX_FILE", &index);
        if let Some(parent) = parents.first() {
            command()
                .args(["read-tree", &parent.to_string()])
                .run_ok()
                .await
                .unwrap();
        }
        let mut entries = String::new();
        for (path, put) in files {
            let line = match put {
                Put::Text(text) | Put::Program(text) | Put::Symlink(text) => {
                    let mode = match put {
                        Put::Program(_) => "100755",
                        Put::Symlink(_) => "120000",
                        _ => "100644",
                    };
                    let hash = command()
                        .args(["hash-object", "-w", "--stdin"])
                        .stdin(*text);
                    let hash = hash.run_ok().await.unwrap().text();
                    format!("{mode} {hash}\t{path}\n")
                }
                Put::Link(commit) => format!("160000 {commit}\t{path}\n"),
                Put::Gone => format!("0 {}\t{path}\n", "0".repeat(40)),
            };
            entries.push_str(&line);
        }
        let update = command()
            .args(["update-index", "--index-info"])
            .stdin(entries);
        update.run_ok().await.unwrap();
        let tree = command().arg("write-tree").run_ok().await.unwrap().text();
        let tree = ObjectId::parse(&tree).unwrap();
        self.origin
            .commit_tree(tree, parents, "A commit", &ada(), time(1))
            .await
            .unwrap()
    }

    /// Points a ref of the origin to a commit.
    pub(crate) async fn set(&self, name: &str, commit: ObjectId) -> RefName {
        let name = RefName::parse(name).unwrap();
        let expected = muster_git::Expected::Any;
        let update = muster_git::RefUpdate {
            name: name.clone(),
            new: Some(commit),
            expected,
        };
        assert_eq!(
            self.origin.update_refs(&[update]).await.unwrap(),
            muster_git::Update::Done
        );
        name
    }

    pub(crate) async fn cached(&self, commit: ObjectId) -> CachedCommit {
        let name = self.set("refs/heads/main", commit).await;
        let cache = Cache::open(&self.git, &self.path("cache")).await.unwrap();
        cache
            .ensure_commit(&self.remote(), &name, commit)
            .await
            .unwrap()
    }

    pub(crate) async fn workspace(&self, commit: ObjectId) -> Workspace {
        let cached = self.cached(commit).await;
        Workspace::create(&cached, &self.path("attempt"), &ada())
            .await
            .unwrap()
    }

    /// Runs git as an agent would: in its work tree, obeying whatever configuration is there.
    pub(crate) async fn as_agent(&self, folder: &Path, arguments: &[&str]) -> String {
        let command = self
            .git
            .command(Mode::UserRepository)
            .env("GIT_CONFIG_GLOBAL", "/dev/null");
        command
            .directory(folder)
            .args(arguments)
            .run_ok()
            .await
            .unwrap()
            .text()
    }
}

/// Lists the paths of a tree with their modes.
pub(crate) async fn listing(repository: &Repository, tree: ObjectId) -> Vec<String> {
    let command = repository
        .command()
        .args(["ls-tree", "-r", "-z"])
        .arg(tree.to_string());
    let output = command.run_ok().await.unwrap();
    let entry = |entry: &str| {
        let (about, path) = entry.split_once('\t').unwrap();
        format!("{} {path}", about.split(' ').next().unwrap())
    };
    String::from_utf8_lossy(&output.stdout)
        .split_terminator('\0')
        .map(entry)
        .collect()
}

/// Reads a file of a commit.
pub(crate) async fn file(repository: &Repository, commit: ObjectId, path: &str) -> String {
    let command = repository
        .command()
        .args(["cat-file", "blob", &format!("{commit}:{path}")]);
    String::from_utf8(command.run_ok().await.unwrap().stdout).unwrap()
}

pub(crate) fn ada() -> Identity {
    Identity::new("Ada \"the\" Agent", "ada@muster.invalid").unwrap()
}

pub(crate) fn time(seconds: u64) -> CommitTime {
    CommitTime::from_unix_seconds(1_800_000_000 + seconds)
}
