//! How much new content a snapshot would take in, and when that is too much.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use crate::attributes::{Changed, largest, shown};
use crate::error::{GitError, megabytes};
use crate::workspace::{Workspace, with_work_tree};

/// How much of a list of new and changed files is held, in bytes: more than 500 000 files.
const LIST_BYTES_MAX: usize = 64 << 20;
/// How many files an error names.
const NAMED_MAX: usize = 3;

impl Workspace {
    /// Refuses before git stores anything, by the sizes on disk of what it would store.
    ///
    /// A repository inside the tree counts with everything in it but its own `.git`.
    pub(crate) async fn check_size_of_new(&self, without: &[PathBuf]) -> Result<(), GitError> {
        if self.change_bytes_max == u64::MAX {
            return Ok(());
        }
        let command = with_work_tree(&self.control, self.work())
            .args(["ls-files", "-z", "--others", "--modified"])
            .args(["--exclude-standard", "--deduplicate"])
            .stdout_limit(LIST_BYTES_MAX);
        // What cannot be listed whole is judged when it is stored.
        let output = command.run_truncated().await?;
        let listed: Vec<PathBuf> = output
            .stdout
            .split(|byte| *byte == 0)
            .filter(|path| !path.is_empty())
            .map(|path| {
                let path = path.strip_suffix(b"/").unwrap_or(path);
                PathBuf::from(OsString::from_vec(path.to_vec()))
            })
            .filter(|path| !without.contains(path))
            .collect();
        let work = self.work().to_owned();
        let sizing = tokio::task::spawn_blocking(move || {
            let sized = listed.into_iter().map(|path| {
                let bytes = bytes_below(&work.join(&path));
                (path, bytes)
            });
            sized.collect()
        });
        self.judge(sizing.await.unwrap_or_default())
    }

    /// Refuses by the sizes of what was stored, over all snapshots of this workspace.
    pub(crate) async fn check_size_of(&self, changed: &[Changed]) -> Result<(), GitError> {
        let stored = changed
            .iter()
            .filter_map(|file| Some((&file.path, file.new?)));
        let (paths, objects): (Vec<&PathBuf>, Vec<_>) = stored.unzip();
        let sizes = self.sizes_of(objects.into_iter()).await?;
        let paths = paths.into_iter().cloned();
        self.judge(paths.zip(sizes).collect())
    }

    fn judge(&self, mut files: Vec<(PathBuf, u64)>) -> Result<(), GitError> {
        let bytes = largest(&mut files);
        if bytes <= self.change_bytes_max {
            return Ok(());
        }
        let named = files
            .iter()
            .take(NAMED_MAX)
            .map(|(path, bytes)| format!("{:?} ({})", shown(path), megabytes(*bytes)));
        Err(GitError::ChangeTooLarge {
            bytes,
            limit_bytes: self.change_bytes_max,
            largest: named.collect::<Vec<_>>().join(", "),
        })
    }
}

/// Adds up the files at or below a path; what cannot be looked at counts nothing.
fn bytes_below(path: &Path) -> u64 {
    let mut bytes = 0;
    let mut left = vec![path.to_owned()];
    while let Some(path) = left.pop() {
        let Ok(found) = path.symlink_metadata() else {
            continue;
        };
        if found.is_dir() {
            let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
            let inside = entries.map(|entry| entry.path());
            left.extend(inside.filter(|path| !path.as_os_str().as_bytes().ends_with(b"/.git")));
        } else if found.is_file() {
            bytes += found.len();
        }
    }
    bytes
}
