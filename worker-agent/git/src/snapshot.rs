//! Turning what an agent has left in its work tree into a commit.
//!
//! Everything in the work tree is hostile. Git is run with `control.git`, whose configuration names
//! no filter, hook or monitor. Submodules are kept away from git, because it would run `git status`
//! inside them, with *their* configuration. Repositories that the agent made inside the tree are
//! taken in as plain files, because a link to a commit that nobody else has would lose them.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use tokio::fs;

use crate::command::Output;
use crate::error::GitError;
use crate::history::{CommitTime, Identity};
use crate::names::{ObjectFormat, ObjectId};
use crate::repository::object_id_from;
use crate::workspace::{Workspace, gitlinks, with_work_tree};

/// How deep repositories inside repositories are taken in; each level costs another pass.
const NESTING_MAX: usize = 8;
/// Most notes that a snapshot carries.
const NOTES_MAX: usize = 50;
/// A path that makes git treat the folder above it as an ordinary one; it never reaches a tree.
const PLACEHOLDER: &str = ".muster-placeholder";

/// What an agent's work tree looked like at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The tree of all files that are not ignored.
    pub tree: ObjectId,
    /// The commit of that tree; `None` if it is exactly the base's tree.
    pub commit: Option<ObjectId>,
    /// What is different from what one might expect; at most 50.
    pub notes: Vec<SnapshotNote>,
}

/// Something about a snapshot that people should know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SnapshotNote {
    /// A repository inside the tree was taken in as plain files, without its history.
    NestedRepository {
        /// Its path; bytes that are not UTF-8 are replaced.
        path: String,
    },
    /// A repository inside the tree is nested too deep or cannot be read, and was left out.
    LeftOut {
        /// Its path; bytes that are not UTF-8 are replaced.
        path: String,
    },
    /// A file or folder could not be read, and is as it was in the snapshot before.
    Unreadable {
        /// What git says about it.
        message: String,
    },
}

impl Workspace {
    /// Commits everything in the work tree that is not ignored, as it is now.
    ///
    /// The commit has the one given parent, whatever commits the agent made itself: those are
    /// included by content. Nothing is pushed and no ref names the commit. Repeating is cheap, since
    /// only files that changed are read, and safe; the same tree, parent, message, identity and time
    /// give the same id. Files that change meanwhile are taken in one of their states.
    pub async fn snapshot(
        &self,
        message: &str,
        identity: &Identity,
        time: CommitTime,
        parent: ObjectId,
    ) -> Result<Snapshot, GitError> {
        let mut known = self.nested.lock().await;
        self.check_work_tree().await?;
        self.remove_stale_lock().await?;
        let notes = self.fill_index(&mut known).await?;
        let tree = object_id_from(self.control.command().arg("write-tree")).await?;
        let commit = if tree == self.base_tree {
            None
        } else {
            let control = &self.control;
            Some(
                control
                    .commit_tree(tree, &[parent], message, identity, time)
                    .await?,
            )
        };
        Ok(Snapshot {
            tree,
            commit,
            notes: notes.into_iter().take(NOTES_MAX).collect(),
        })
    }

    /// Refuses a work tree that was replaced by a link, which could point to anybody's files.
    async fn check_work_tree(&self) -> Result<(), GitError> {
        let work = self.work();
        let found = fs::symlink_metadata(work)
            .await
            .map_err(GitError::file("look at", work))?;
        if found.is_dir() {
            return Ok(());
        }
        let reason = "its work folder was replaced by something else".to_owned();
        Err(GitError::NotAWorkspace {
            path: self.folder().to_owned(),
            reason,
        })
    }

    /// Deletes the lock that a killed git left on the index; no other is alive while it is our turn.
    async fn remove_stale_lock(&self) -> Result<(), GitError> {
        let lock = self.control.folder().join("index.lock");
        match fs::remove_file(&lock).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(GitError::file("delete", lock)(error))
            }
            _ => Ok(()),
        }
    }

    /// Makes the index equal to the work tree; `known` repositories inside it are noted again.
    async fn fill_index(
        &self,
        known: &mut BTreeSet<PathBuf>,
    ) -> Result<BTreeSet<SnapshotNote>, GitError> {
        let kept = self.settle_submodules().await?;
        let mut notes = BTreeSet::new();
        let mut nested: BTreeSet<PathBuf> = BTreeSet::new();
        let mut left_out: BTreeSet<PathBuf> = BTreeSet::new();
        for level in 0..=NESTING_MAX {
            let added = self.add_all(&kept).await?;
            let linked = self.links_but(&kept).await?;
            let refused = self.nested_among(&added);
            let found: BTreeSet<PathBuf> = linked.into_iter().chain(refused).collect();
            let new: BTreeSet<PathBuf> = found.difference(&nested).cloned().collect();
            if new.is_empty() || level == NESTING_MAX {
                notes.extend(unreadable(&added));
                left_out = found;
                break;
            }
            self.open_up(&new).await?;
            nested.extend(new);
        }
        self.close_up(&nested).await?;
        self.forget(&left_out).await?;
        let path_text = |path: &PathBuf| path.to_string_lossy().into_owned();
        known.extend(nested);
        known.retain(|path| !left_out.contains(path) && self.is_repository(path));
        let taken_in = known.iter().map(path_text);
        notes.extend(taken_in.map(|path| SnapshotNote::NestedRepository { path }));
        let left_out = left_out.iter().map(path_text);
        notes.extend(left_out.map(|path| SnapshotNote::LeftOut { path }));
        Ok(notes)
    }

    /// Decides about each submodule of the base without git, and gives those that stay as they are.
    ///
    /// A submodule that the agent deleted, or replaced by files, leaves the index.
    async fn settle_submodules(&self) -> Result<Vec<PathBuf>, GitError> {
        let (mut kept, mut gone) = (Vec::new(), Vec::new());
        for path in &self.gitlinks {
            let folder = self.work().join(path);
            let is_submodule = match fs::symlink_metadata(&folder).await {
                Ok(found) if found.is_dir() => self.is_repository(path) || is_empty(&folder).await,
                _ => false,
            };
            if is_submodule {
                kept.push(path.clone());
            } else {
                gone.push(path.clone());
            }
        }
        self.forget(&gone).await?;
        Ok(kept)
    }

    /// Tells whether a folder of the work tree looks like a repository of its own.
    fn is_repository(&self, path: &Path) -> bool {
        self.work()
            .join(path)
            .join(".git")
            .symlink_metadata()
            .is_ok()
    }

    async fn add_all(&self, without: &[PathBuf]) -> Result<Output, GitError> {
        let mut pathspecs = b":(top)\0".to_vec();
        for path in without {
            pathspecs.extend_from_slice(b":(top,exclude,literal)");
            pathspecs.extend_from_slice(path.as_os_str().as_bytes());
            pathspecs.push(0);
        }
        let command = with_work_tree(&self.control, self.work())
            .args(["add", "--all", "--ignore-errors"])
            .args(["--pathspec-from-file=-", "--pathspec-file-nul"])
            .stdin(pathspecs);
        let described = command.describe();
        let output = command.run().await?;
        // With --ignore-errors a full disk looks like one more file that could not be read.
        let disk_failed = output.stderr.contains("failed to insert into database")
            || output.stderr.contains("unable to write");
        match output.exit_code {
            Some(0 | 1) if !disk_failed => Ok(output),
            exit_code => {
                let stderr = output.stderr;
                Err(GitError::Failed {
                    command: described,
                    exit_code,
                    stderr,
                })
            }
        }
    }

    /// Lists links to commits in the index that are none of `kept`.
    async fn links_but(&self, kept: &[PathBuf]) -> Result<Vec<PathBuf>, GitError> {
        let mut links = gitlinks(self.control.command(), &["ls-files", "-s", "-z"], None).await?;
        links.retain(|link| !kept.contains(link));
        Ok(links)
    }

    /// Finds the repositories without a commit that git refused to add.
    fn nested_among(&self, added: &Output) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for line in added.stderr.lines() {
            let named = line
                .strip_prefix("error: '")
                .and_then(|line| line.strip_suffix("/' does not have a commit checked out"));
            if let Some(path) = named {
                let path = PathBuf::from(path);
                // The text is only a hint, which a name with a line break can forge.
                let is_inside = path
                    .components()
                    .all(|part| matches!(part, Component::Normal(name) if name != ".git"));
                if is_inside && self.is_repository(&path) {
                    found.push(path);
                }
            }
        }
        found
    }

    /// Makes git treat nested repositories as ordinary folders in the next pass.
    async fn open_up(&self, folders: &BTreeSet<PathBuf>) -> Result<(), GitError> {
        let empty_blob = match self.format {
            ObjectFormat::Sha1 => "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",
            ObjectFormat::Sha256 => {
                "473a0f4c3be8a93681a267e3b1e9a7dcda1185436fe141f7749120a303721813"
            }
        };
        self.forget(folders).await?;
        let mut entries = Vec::new();
        for folder in folders {
            let entry = format!("100644 {empty_blob}\t");
            push_entry(&mut entries, &entry, &folder.join(PLACEHOLDER));
        }
        self.edit_index(entries).await
    }

    /// Removes placeholders that no pass has removed.
    async fn close_up(&self, folders: &BTreeSet<PathBuf>) -> Result<(), GitError> {
        self.forget(folders.iter().map(|folder| folder.join(PLACEHOLDER)))
            .await
    }

    /// Removes paths from the index; files are not touched.
    async fn forget(
        &self,
        paths: impl IntoIterator<Item = impl AsRef<Path>>,
    ) -> Result<(), GitError> {
        let removal = format!("0 {}\t", self.format.zero());
        let mut entries = Vec::new();
        for path in paths {
            push_entry(&mut entries, &removal, path.as_ref());
        }
        self.edit_index(entries).await
    }

    async fn edit_index(&self, entries: Vec<u8>) -> Result<(), GitError> {
        if entries.is_empty() {
            return Ok(());
        }
        let command = self
            .control
            .command()
            .args(["update-index", "-z", "--index-info"]);
        command.stdin(entries).run_ok().await?;
        Ok(())
    }
}

fn push_entry(entries: &mut Vec<u8>, entry: &str, path: &Path) {
    entries.extend_from_slice(entry.as_bytes());
    entries.extend_from_slice(path.as_os_str().as_bytes());
    entries.push(0);
}

async fn is_empty(folder: &Path) -> bool {
    match fs::read_dir(folder).await {
        Ok(mut entries) => matches!(entries.next_entry().await, Ok(None)),
        // What cannot be read is left as it was.
        Err(_) => true,
    }
}

/// Collects what git could not read.
fn unreadable(added: &Output) -> impl Iterator<Item = SnapshotNote> {
    added
        .stderr
        .lines()
        .filter_map(|line| {
            line.strip_prefix("error: ").or_else(|| {
                line.strip_prefix("warning: ")
                    .filter(|text| text.contains("open dir"))
            })
        })
        .filter(|text| *text != "adding files failed")
        .map(|text| SnapshotNote::Unreadable {
            message: text.to_owned(),
        })
}
