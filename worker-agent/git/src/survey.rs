//! Looking through a work tree without git: for what git cannot keep, and for what it cannot read.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::error::GitError;
use crate::note::SnapshotNote;

/// Most findings of one look; a work tree with more is told about by these.
const FINDINGS_MAX: usize = 1_000;
/// What an owner needs of a file, and of a folder.
const FILE_MODE: u32 = 0o400;
const FOLDER_MODE: u32 = 0o500;

/// What a look at a work tree has found; paths are relative to it.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// Neither files, folders nor links.
    pub(crate) specials: Vec<(PathBuf, &'static str)>,
    /// Folders with nothing in them.
    pub(crate) empty: Vec<PathBuf>,
    /// What its owner could not read before this look.
    pub(crate) made_readable: Vec<PathBuf>,
}

impl Survey {
    /// Looks at everything but what is in folders called `.git`, and gives the owner permission to
    /// read what the owner may not: no process of the agent is left that could mind.
    pub(crate) async fn take(work: &Path) -> Result<Self, GitError> {
        let (looked, folder) = (work.to_owned(), work.to_owned());
        let looking = tokio::task::spawn_blocking(move || Self::look(&looked));
        let looked = looking.await;
        looked
            .unwrap_or_else(|panicked| Err(io::Error::other(panicked)))
            .map_err(GitError::file("look through", folder))
    }

    fn look(work: &Path) -> io::Result<Self> {
        let mut survey = Self::default();
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            let is_root = folder.as_os_str().is_empty();
            let entries = match survey.entries(work, &folder) {
                Ok(entries) => entries,
                // Git says so too, and that decides.
                Err(_) if !is_root => continue,
                Err(error) => return Err(error),
            };
            let mut is_empty = true;
            for entry in entries {
                let entry = entry?;
                is_empty = false;
                if entry.file_name() == ".git" {
                    continue;
                }
                let path = folder.join(entry.file_name());
                let kind = entry.file_type()?;
                if kind.is_dir() {
                    folders.push(path);
                } else if kind.is_file() {
                    let mode = entry.metadata()?.permissions().mode();
                    if mode & FILE_MODE != FILE_MODE {
                        survey.make_readable(work, &path, mode | FILE_MODE);
                    }
                } else if !kind.is_symlink() && survey.specials.len() < FINDINGS_MAX {
                    let kind = match kind {
                        kind if kind.is_socket() => "a socket",
                        kind if kind.is_fifo() => "a pipe",
                        _ => "a device",
                    };
                    survey.specials.push((path, kind));
                }
            }
            if is_empty && !is_root && survey.empty.len() < FINDINGS_MAX {
                survey.empty.push(folder);
            }
        }
        Ok(survey)
    }

    fn entries(&mut self, work: &Path, folder: &Path) -> io::Result<std::fs::ReadDir> {
        let full = work.join(folder);
        let mode = full.symlink_metadata()?.permissions().mode();
        if mode & FOLDER_MODE != FOLDER_MODE {
            self.make_readable(work, folder, mode | FOLDER_MODE);
        }
        std::fs::read_dir(full)
    }

    fn make_readable(&mut self, work: &Path, path: &Path, mode: u32) {
        let permissions = std::fs::Permissions::from_mode(mode & 0o7777);
        // Where that fails, git cannot read it either, and says so.
        let given = std::fs::set_permissions(work.join(path), permissions);
        if given.is_ok() && self.made_readable.len() < FINDINGS_MAX {
            self.made_readable.push(path.to_owned());
        }
    }

    /// Every path about which there is something to say.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        let specials = self.specials.iter().map(|(path, _)| path);
        specials.chain(&self.empty).chain(&self.made_readable)
    }

    /// Says it, but for what `is_ignored`.
    pub(crate) fn notes(self, is_ignored: impl Fn(&Path) -> bool) -> Vec<SnapshotNote> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let specials = self.specials.iter().map(|(path, kind)| {
            let kind = *kind;
            let note = |path| SnapshotNote::Special { path, kind };
            (path, note(text(path)))
        });
        let empty = self.empty.iter().map(|path| {
            let note = |path| SnapshotNote::EmptyFolder { path };
            (path, note(text(path)))
        });
        let made_readable = self.made_readable.iter().map(|path| {
            let note = |path| SnapshotNote::MadeReadable { path };
            (path, note(text(path)))
        });
        specials
            .chain(empty)
            .chain(made_readable)
            .filter(|(path, _)| !is_ignored(path))
            .map(|(_, note)| note)
            .collect()
    }
}
