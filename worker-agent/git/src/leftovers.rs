//! What a git that was killed leaves in the cache.

use std::ffi::OsStr;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::error::GitError;

/// Files beside the refs and objects that git writes under a lock.
const LOCKS: [&str; 4] = [
    "packed-refs.lock",
    "HEAD.lock",
    "config.lock",
    "shallow.lock",
];
/// How the names begin under which git writes objects and packs before it renames them.
const HALF_WRITTEN: &str = "tmp_";
/// How a file begins that keeps a pack for the time of a fetch.
const KEPT_BY_FETCH: &[u8] = b"fetch-pack ";

/// Keeps a repository of the cache free of what killed gits leave: removes it now, and again when
/// it is dropped without [`done`](Self::done).
///
/// Whoever has this holds the host's lock of the repository. The only other git that can be alive
/// then was begun by a worker that has been killed: nobody waits for it, and it would make nothing
/// but what the holder makes too.
#[derive(Debug)]
pub(crate) struct Swept<'a> {
    folder: &'a Path,
    is_done: bool,
}

impl<'a> Swept<'a> {
    pub(crate) fn begin(folder: &'a Path) -> Result<Self, GitError> {
        sweep(folder)?;
        Ok(Self {
            folder,
            is_done: false,
        })
    }

    /// All gits have ended by themselves.
    pub(crate) fn done(mut self) {
        self.is_done = true;
    }
}

impl Drop for Swept<'_> {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        if let Err(error) = sweep(self.folder) {
            tracing::warn!(%error, "what a killed git left is not removed yet");
        }
    }
}

/// Removes leftovers; the caller holds the repository's lock.
pub(crate) fn sweep(folder: &Path) -> Result<(), GitError> {
    for path in leftovers(folder).map_err(GitError::file("look for leftovers in", folder))? {
        tracing::info!(path = %path.display(), "removing what a killed git left");
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed.map_err(GitError::file("delete", &path))?,
        }
    }
    Ok(())
}

fn leftovers(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let locks = LOCKS.map(|name| folder.join(name));
    let mut found: Vec<PathBuf> = locks.into_iter().filter(|path| path.exists()).collect();
    let mut folders = vec![folder.join("refs"), folder.join("objects")];
    while let Some(folder) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else if is_leftover(&path) {
                found.push(path);
            }
        }
    }
    Ok(found)
}

fn is_leftover(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    let end = path.extension().and_then(OsStr::to_str);
    match end {
        Some("lock") => true,
        Some("keep") => is_of_fetch(path),
        _ => name.as_encoded_bytes().starts_with(HALF_WRITTEN.as_bytes()),
    }
}

/// Tells a `.keep` file of a fetch from one of a person.
fn is_of_fetch(path: &Path) -> bool {
    let mut start = Vec::new();
    std::fs::File::open(path).is_ok_and(|file| {
        let bytes = u64::try_from(KEPT_BY_FETCH.len()).unwrap_or_default();
        file.take(bytes).read_to_end(&mut start).is_ok() && start == KEPT_BY_FETCH
    })
}
