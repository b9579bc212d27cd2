//! What git itself would not notice, or would notice too late, when a branch is about to move.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use muster_git::{ObjectId, Repository};

use super::{Result, Target, some};

/// Files of a git folder that name the branch on which work is under way, and what that is.
const HOLDERS: [(&str, &str); 3] = [
    ("rebase-merge/head-name", "a rebase"),
    ("rebase-apply/head-name", "a rebase"),
    ("BISECT_START", "a bisection"),
];
/// Most files in the way that are looked for.
const IN_THE_WAY_MAX: usize = 1_000;
/// How much of a list of files is held, in bytes: more than 500 000 files.
const LISTED_BYTES_MAX: usize = 64 << 20;

/// Tells what is under way on a branch, in whatever work tree, and where.
pub(super) async fn holder_of(
    repository: &Repository,
    branch: &str,
) -> Result<Option<(&'static str, PathBuf)>> {
    let common = repository
        .command()
        .args(["rev-parse", "--path-format=absolute", "--git-common-dir"])
        .run_ok()
        .await?
        .path();
    let linked = std::fs::read_dir(common.join("worktrees"));
    let linked = linked.into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = linked.map(|entry| entry.path()).collect();
    folders.push(common);
    for folder in folders {
        for (file, what) in HOLDERS {
            let held = std::fs::read_to_string(folder.join(file)).unwrap_or_default();
            if held.trim().trim_start_matches("refs/heads/") == branch {
                return Ok(Some((what, folder)));
            }
        }
    }
    Ok(None)
}

/// What a change of trees adds and removes.
#[derive(Debug, Default)]
struct Change {
    added: Vec<PathBuf>,
    removed: BTreeSet<PathBuf>,
}

impl Target {
    /// Refuses to write over files that are in no commit.
    ///
    /// Git keeps those that it knows nothing of, but takes an ignored one for something that can be
    /// made again: it would be lost without a word.
    pub(super) async fn refuse_files_in_the_way(
        &self,
        work_tree: &Path,
        before: Option<ObjectId>,
        after: ObjectId,
    ) -> Result<()> {
        let change = self.change(before, after).await?;
        let mut in_the_way: BTreeSet<PathBuf> = BTreeSet::new();
        for path in &change.added {
            if in_the_way.len() >= IN_THE_WAY_MAX {
                break;
            }
            for part in path.ancestors().filter(|part| !part.as_os_str().is_empty()) {
                let Ok(found) = work_tree.join(part).symlink_metadata() else {
                    continue;
                };
                if !found.is_dir() {
                    if !change.removed.contains(part) {
                        in_the_way.insert(part.to_owned());
                    }
                } else if part == path {
                    in_the_way.extend(self.untracked_in(work_tree, path).await?);
                }
            }
        }
        if in_the_way.is_empty() {
            return Ok(());
        }
        let shown: Vec<String> = in_the_way
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        Err(self
            .refused(&format!(
                "the result has files where yours are that are in no commit: {}",
                some(shown.iter().map(String::as_str))
            ))
            .hint("move yours away, or commit them"))
    }

    async fn change(&self, before: Option<ObjectId>, after: ObjectId) -> Result<Change> {
        let command = self.repository.command();
        let command = match before {
            Some(before) => command
                .args(["diff-tree", "-r", "-z", "--raw", "--no-renames"])
                .args(["--diff-filter=AD", "--no-ext-diff"])
                .args([before.to_string(), after.to_string()]),
            None => command
                .args([
                    "ls-tree",
                    "-r",
                    "-z",
                    "--format=:- %(objectmode)%x00%(path)",
                ])
                .arg(after.to_string()),
        };
        let listed = command.stdout_limit(LISTED_BYTES_MAX).run_ok().await?;
        let mut fields = listed.stdout.split(|byte| *byte == 0);
        let mut change = Change::default();
        while let (Some(about), Some(path)) = (fields.next(), fields.next()) {
            let about = String::from_utf8_lossy(about);
            let path = PathBuf::from(OsStr::from_bytes(path));
            match about.split(' ').nth(1) {
                Some("000000") => {
                    change.removed.insert(path);
                }
                // A folder is where a submodule goes.
                Some("160000") | None => {}
                Some(_) => change.added.push(path),
            }
        }
        Ok(change)
    }

    /// Lists the files of a folder that are in no commit.
    async fn untracked_in(&self, work_tree: &Path, folder: &Path) -> Result<Vec<PathBuf>> {
        let mut pathspec = b":(top,literal)".to_vec();
        pathspec.extend_from_slice(folder.as_os_str().as_bytes());
        let listed = self
            .in_tree(work_tree)
            .args(["ls-files", "--others", "-z", "--"])
            .arg(OsStr::from_bytes(&pathspec))
            .stdout_limit(LISTED_BYTES_MAX)
            .run_ok()
            .await?;
        let paths = listed.stdout.split(|byte| *byte == 0);
        let paths = paths.filter(|path| !path.is_empty()).take(IN_THE_WAY_MAX);
        Ok(paths
            .map(|path| PathBuf::from(OsStr::from_bytes(path)))
            .collect())
    }
}
