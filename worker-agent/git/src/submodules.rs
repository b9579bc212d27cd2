//! Submodules in the work tree of an agent.
//!
//! A submodule is kept as what it is: a commit's id at a path. Its files are not fetched, unless the
//! agent does so itself. Git is kept away from it, because it would run inside it with its
//! configuration; which commit it is at is read from its files.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use tokio::fs;

use crate::agent_history::{Head, head_of};
use crate::command::Mode;
use crate::error::GitError;
use crate::names::ObjectId;
use crate::note::SnapshotNote;
use crate::snapshot::{is_empty, push_entry};
use crate::workspace::{Gitlink, Workspace, gitlinks};

/// Longest `.gitmodules` that is read.
const GITMODULES_BYTES_MAX: u64 = 1 << 20;
/// Longest file that says where a submodule's git folder is.
const GITFILE_BYTES_MAX: u64 = 4 << 10;

impl Workspace {
    /// Decides about each submodule of `reference` without git, and gives those that stay or are
    /// new.
    ///
    /// One that is checked out is at the commit that it has checked out. One that the agent deleted,
    /// or replaced by files, leaves the index. One that the agent added counts if `.gitmodules`
    /// names it.
    pub(crate) async fn settle_submodules(
        &self,
        reference: ObjectId,
        notes: &mut BTreeSet<SnapshotNote>,
    ) -> Result<Vec<PathBuf>, GitError> {
        let links = if reference == self.base_tree {
            self.gitlinks.clone()
        } else {
            let listing = ["ls-tree", "-r", "-z"];
            gitlinks(self.control.command(), &listing, Some(reference)).await?
        };
        let (mut kept, mut gone, mut entries) = (Vec::new(), Vec::new(), Vec::new());
        let known: BTreeSet<&PathBuf> = links.iter().map(|link| &link.path).collect();
        for link in &links {
            let path = &link.path;
            let folder = self.work().join(path);
            let is_folder = fs::symlink_metadata(&folder)
                .await
                .is_ok_and(|found| found.is_dir());
            if is_folder && self.is_repository(path) {
                self.note_commit(path, Some(link), &mut entries, notes)
                    .await;
                kept.push(path.clone());
            } else if is_folder && is_empty(&folder).await {
                push_entry(&mut entries, &format!("160000 {}\t", link.commit), path);
                kept.push(path.clone());
            } else {
                if is_folder {
                    let path = path.to_string_lossy().into_owned();
                    notes.insert(SnapshotNote::SubmoduleReplaced { path });
                }
                gone.push(path.clone());
            }
        }
        for path in self.declared().await? {
            let is_new = !known.contains(&path) && self.is_repository(&path);
            if is_new && self.note_commit(&path, None, &mut entries, notes).await {
                kept.push(path);
            }
        }
        self.forget(&gone).await?;
        self.edit_index(entries).await?;
        Ok(kept)
    }

    /// Puts the commit that a submodule has checked out into the index; tells whether there is one.
    async fn note_commit(
        &self,
        path: &Path,
        before: Option<&Gitlink>,
        entries: &mut Vec<u8>,
        notes: &mut BTreeSet<SnapshotNote>,
    ) -> bool {
        let git_dir = self.git_dir_of(path).await;
        let at = match git_dir.map(|git_dir| head_of(&git_dir)) {
            Some(Head::At(commit)) if commit.format() == self.format => Some(commit),
            _ => None,
        };
        let shown = || path.to_string_lossy().into_owned();
        if before.is_some() {
            notes.insert(SnapshotNote::SubmoduleCheckedOut { path: shown() });
        }
        let Some(commit) = at.or(before.map(|link| link.commit)) else {
            return false;
        };
        if before.is_none_or(|link| link.commit != commit) {
            notes.insert(SnapshotNote::SubmoduleMoved {
                path: shown(),
                to: commit,
            });
        }
        push_entry(entries, &format!("160000 {commit}\t"), path);
        true
    }

    /// Finds the git folder of a submodule, if it is inside the work tree.
    async fn git_dir_of(&self, path: &Path) -> Option<PathBuf> {
        let folder = self.work().join(path);
        let dot_git = folder.join(".git");
        let found = fs::symlink_metadata(&dot_git).await.ok()?;
        let git_dir = if found.is_file() && found.len() <= GITFILE_BYTES_MAX {
            let text = fs::read_to_string(&dot_git).await.ok()?;
            folder.join(text.strip_prefix("gitdir: ")?.trim_end_matches('\n'))
        } else {
            dot_git
        };
        let (git_dir, work) = (
            fs::canonicalize(git_dir).await.ok()?,
            fs::canonicalize(self.work()).await.ok()?,
        );
        git_dir.starts_with(work).then_some(git_dir)
    }

    /// Lists the paths that `.gitmodules` names.
    async fn declared(&self) -> Result<Vec<PathBuf>, GitError> {
        let file = self.work().join(".gitmodules");
        let is_read = fs::symlink_metadata(&file)
            .await
            .is_ok_and(|found| found.is_file() && found.len() <= GITMODULES_BYTES_MAX);
        if !is_read {
            return Ok(Vec::new());
        }
        let command = self.control.git().command(Mode::Hermetic);
        let output = command
            .args(["config", "--no-includes", "-z", "--file"])
            .arg(&file)
            .args(["--get-regexp", r"^submodule\..*\.path$"])
            .run()
            .await?;
        // A file that git cannot read declares nothing.
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let path = |entry: &str| {
            let path = PathBuf::from(entry.split_once('\n')?.1);
            let is_inside = path
                .components()
                .all(|part| matches!(part, Component::Normal(name) if name != ".git"));
            is_inside.then_some(path)
        };
        Ok(text.split('\0').filter_map(path).collect())
    }
}
