//! The private checkout of one attempt.
//!
//! ```text
//! <folder>/work/          the checked-out tree, with an ordinary repository in work/.git
//! <folder>/control.git    a second repository, of which the agent knows nothing
//! ```
//!
//! Both repositories borrow objects from the cache and are otherwise private: configuration, hooks,
//! locks and garbage collection of one attempt cannot reach another. The agent may do with
//! `work/.git` what it likes; Muster never runs git on it, since its configuration may name
//! programs to run. What Muster commits and pushes goes through `control.git`.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::fs;
use tokio::sync::Mutex;

use crate::cache::CachedCommit;
use crate::command::{GitCommand, Mode};
use crate::error::GitError;
use crate::history::Identity;
use crate::names::{ObjectFormat, ObjectId, RefName};
use crate::push::{PushRef, RefPush};
use crate::remote::Remote;
use crate::repository::{Expected, RefUpdate, Repository, Update};

/// Most submodules that a workspace follows; what is beyond is treated as made by the agent.
const GITLINKS_MAX: usize = 10_000;
/// Longest path read from an index, in bytes.
const PATH_BYTES_MAX: usize = 64 << 10;
/// Permissions that a folder needs before its content can be deleted.
const FOLDER_MODE: u32 = 0o700;

/// The private checkout of one attempt.
#[derive(Debug)]
pub struct Workspace {
    folder: PathBuf,
    work: PathBuf,
    pub(crate) control: Repository,
    base: ObjectId,
    pub(crate) base_tree: ObjectId,
    pub(crate) format: ObjectFormat,
    /// The repository that objects are borrowed from.
    pub(crate) lender: PathBuf,
    /// Submodules of the base.
    pub(crate) gitlinks: Vec<Gitlink>,
    /// Most bytes of new content in one result.
    pub(crate) change_bytes_max: u64,
    /// Held by the one snapshot that may use the index: the repositories inside the tree that were
    /// taken in so far, as far as this process knows.
    pub(crate) nested: Mutex<BTreeSet<PathBuf>>,
}

impl Workspace {
    /// Creates a workspace in `folder`, which must be missing or empty, and checks `base` out.
    ///
    /// Commits that the agent makes itself carry `identity` unless it changes that. After an error
    /// the folder may hold a part of a workspace, which [`Workspace::open`] refuses. Files kept by
    /// Git LFS are checked out as pointers, because no filter program is run.
    pub async fn create(
        base: &CachedCommit,
        folder: &Path,
        identity: &Identity,
    ) -> Result<Self, GitError> {
        let folder = std::path::absolute(folder)
            .map_err(GitError::file("find the absolute path of", folder))?;
        occupy(&folder).await?;
        let (git, format) = (base.repository.git(), base.commit.format());
        let (work, control) = (folder.join("work"), folder.join("control.git"));
        for (target, kind) in [(&control, &["--bare"][..]), (&work, &[])] {
            git.command(Mode::Hermetic)
                .args(["init", "--quiet", "--template=", "--initial-branch=main"])
                .arg(format!("--object-format={}", format.as_str()))
                .args(kind)
                .arg("--end-of-options")
                .arg(target)
                .run_ok()
                .await?;
        }
        let private = work.join(".git");
        borrow_objects(&control, base.repository.folder()).await?;
        borrow_objects(&private, base.repository.folder()).await?;
        let control = Repository::hermetic(git, &control)?;
        with_work_tree(&control, &work)
            .args(["read-tree", "--reset", "-u"])
            .arg(base.commit.to_string())
            .run_ok()
            .await?;
        // The agent's repository sees the same files, so the same index is right for it.
        let index = private.join("index");
        fs::copy(control.folder().join("index"), &index)
            .await
            .map_err(GitError::file("write", &index))?;
        append(&private.join("config"), &user_section(identity)).await?;
        let head = private.join("HEAD");
        fs::write(&head, format!("{}\n", base.commit))
            .await
            .map_err(GitError::file("write", &head))?;
        // Last, because this ref is what makes the workspace complete.
        let complete = RefUpdate {
            name: base_ref()?,
            new: Some(base.commit),
            expected: Expected::Any,
        };
        let (Update::Done | Update::Refused { .. }) = control.update_refs(&[complete]).await?;
        Self::over(folder, control, base.commit).await
    }

    /// Puts unfinished edits into the work tree of a new workspace, as if the agent had just made them:
    /// `edits` is a commit whose tree they are, and that is in the cache. What is compared and committed
    /// stays on the base.
    ///
    /// After an error the work tree may hold a part of them.
    pub async fn take_up(&self, edits: ObjectId) -> Result<(), GitError> {
        with_work_tree(&self.control, &self.work)
            .args(["read-tree", "-m", "-u"])
            .arg(self.base.to_string())
            .arg(edits.to_string())
            .run_ok()
            .await?;
        Ok(())
    }

    /// Opens a workspace that an earlier process created completely.
    pub async fn open(git: &crate::command::Git, folder: &Path) -> Result<Self, GitError> {
        let folder = std::path::absolute(folder)
            .map_err(GitError::file("find the absolute path of", folder))?;
        let not = |reason: &str| GitError::NotAWorkspace {
            path: folder.clone(),
            reason: reason.to_owned(),
        };
        let control = folder.join("control.git");
        if !fs::try_exists(control.join("HEAD")).await.unwrap_or(false) {
            return Err(not("control.git is missing"));
        }
        let control = Repository::hermetic(git, &control)?;
        let base = control.read_ref(&base_ref()?).await?;
        let base = base.ok_or_else(|| not("its creation was interrupted"))?;
        Self::over(folder, control, base).await
    }

    async fn over(folder: PathBuf, control: Repository, base: ObjectId) -> Result<Self, GitError> {
        let lender = lender_of(control.folder()).await?;
        let base_tree = control.tree_of(base).await?;
        let gitlinks = gitlinks(control.command(), &["ls-tree", "-r", "-z"], Some(base)).await?;
        let (work, nested) = (folder.join("work"), Mutex::default());
        let format = base.format();
        Ok(Self {
            folder,
            work,
            control,
            base,
            base_tree,
            format,
            lender,
            gitlinks,
            change_bytes_max: u64::MAX,
            nested,
        })
    }

    /// Bounds the bytes of new and changed files in one snapshot; without this there is no bound.
    #[must_use]
    pub fn with_change_limit(self, bytes_max: u64) -> Self {
        Self {
            change_bytes_max: bytes_max,
            ..self
        }
    }

    /// Gives the folder of the checked-out tree, in which the agent works.
    #[must_use]
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// Gives the folder that holds everything of this workspace.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Gives the commit that was checked out.
    #[must_use]
    pub fn base(&self) -> ObjectId {
        self.base
    }

    /// Gives the repository of which the agent knows nothing, for diffs and history of snapshots.
    #[must_use]
    pub fn control(&self) -> &Repository {
        &self.control
    }

    /// Lets the agent's own repository run the hooks in a folder of its work tree, given relative to
    /// its root; without this it has none.
    ///
    /// Whatever commits there runs them, as a part of the agent. `control.git`, through which Muster
    /// commits and pushes, never does. To be called before the agent runs: afterwards the
    /// configuration is the agent's, and may be anything.
    pub async fn run_hooks_of(&self, folder: &str) -> Result<(), GitError> {
        let section = format!("[core]\n\thooksPath = \"{}\"\n", escaped(folder));
        append(&self.work.join(".git/config"), &section).await
    }

    /// Pushes a commit to one ref of a remote.
    ///
    /// See [`Remote::push`] for what is known after an error.
    pub async fn push(
        &self,
        remote: &Remote,
        commit: ObjectId,
        name: &RefName,
        expected: Expected,
    ) -> Result<RefPush, GitError> {
        let wanted = PushRef {
            name: name.clone(),
            new: Some(commit),
            expected,
        };
        let pushed = remote.push(&self.control, &[wanted]).await?;
        pushed.into_iter().next().ok_or_else(|| {
            crate::repository::unexpected("git push".to_owned(), "a ref has no verdict")
        })
    }

    /// Deletes the workspace with everything in it.
    ///
    /// Only for a caller who knows that nothing unpublished is left; nothing here checks that. After
    /// an error a part is left, and repeating is safe.
    pub async fn remove(self) -> Result<(), GitError> {
        let folder = self.folder;
        let removing = folder.clone();
        let removed = tokio::task::spawn_blocking(move || remove_tree(&removing)).await;
        removed
            .unwrap_or_else(|panicked| Err(io::Error::other(panicked)))
            .map_err(GitError::file("delete the folder", folder))
    }
}

/// Acts on `control.git` with the agent's files as its work tree.
pub(crate) fn with_work_tree(control: &Repository, work: &Path) -> GitCommand {
    control.command().env("GIT_WORK_TREE", work).directory(work)
}

/// A submodule: where it is, and at which commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gitlink {
    pub(crate) path: PathBuf,
    pub(crate) commit: ObjectId,
}

/// Lists the submodules that a command prints among other entries, each ended by NUL and beginning
/// with its mode; reads a listing of any length without holding it.
pub(crate) async fn gitlinks(
    command: GitCommand,
    listing: &[&str],
    of: Option<ObjectId>,
) -> Result<Vec<Gitlink>, GitError> {
    let command = command.args(listing).args(of.map(|id| id.to_string()));
    let described = command.describe();
    let mut found = Vec::new();
    let mut entry: Vec<u8> = Vec::new();
    let output = command
        .run_streaming(|chunk| {
            for piece in chunk.split_inclusive(|byte| *byte == 0) {
                entry.extend_from_slice(piece);
                if entry.len() > PATH_BYTES_MAX {
                    return ControlFlow::Break(());
                }
                if let Some(complete) = entry.strip_suffix(b"\0") {
                    found.extend(gitlink(complete).filter(|_| found.len() < GITLINKS_MAX));
                    entry.clear();
                }
            }
            ControlFlow::Continue(())
        })
        .await?;
    match output.exit_code {
        Some(0) => Ok(found),
        exit_code => Err(GitError::Failed {
            command: described,
            exit_code,
            stderr: output.stderr,
        }),
    }
}

/// Reads "160000 commit ID<tab>PATH" of `ls-tree` or "160000 ID 0<tab>PATH" of `ls-files`.
fn gitlink(entry: &[u8]) -> Option<Gitlink> {
    let entry = entry.strip_prefix(b"160000 ")?;
    let tab = entry.iter().position(|byte| *byte == b'\t')?;
    let (about, path) = entry.split_at_checked(tab)?;
    let commit = about
        .split(|byte| *byte == b' ')
        .find_map(ObjectId::from_hex)?;
    let path = OsString::from_vec(path.get(1..)?.to_vec());
    Some(Gitlink {
        path: path.into(),
        commit,
    })
}

fn base_ref() -> Result<RefName, GitError> {
    RefName::parse("refs/muster/base")
}

/// Creates the folder, or takes it if it is there and empty.
async fn occupy(folder: &Path) -> Result<(), GitError> {
    fs::create_dir_all(folder)
        .await
        .map_err(GitError::file("create the folder", folder))?;
    let mut entries = fs::read_dir(folder)
        .await
        .map_err(GitError::file("read the folder", folder))?;
    match entries.next_entry().await {
        Ok(None) => Ok(()),
        Ok(Some(_)) => Err(GitError::Occupied {
            path: folder.to_owned(),
        }),
        Err(error) => Err(GitError::file("read the folder", folder)(error)),
    }
}

/// Lets a repository read the objects of another.
pub(crate) async fn borrow_objects(git_dir: &Path, lender: &Path) -> Result<(), GitError> {
    let path = git_dir.join("objects/info/alternates");
    let objects = lender.join("objects");
    let bytes = objects.as_os_str().as_bytes();
    if bytes.contains(&b'\n') {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "its name has a line break");
        return Err(GitError::file("borrow objects from", objects)(error));
    }
    // An interrupted or minimal `init` may lack the folder.
    if let Some(info) = path.parent() {
        fs::create_dir_all(info)
            .await
            .map_err(GitError::file("create the folder", info))?;
    }
    fs::write(&path, [bytes, b"\n"].concat())
        .await
        .map_err(GitError::file("write", &path))
}

/// Reads which repository another borrows from, as [`borrow_objects`] noted it.
async fn lender_of(git_dir: &Path) -> Result<PathBuf, GitError> {
    let path = git_dir.join("objects/info/alternates");
    let bytes = fs::read(&path)
        .await
        .map_err(GitError::file("read", &path))?;
    let objects = bytes
        .split(|byte| *byte == b'\n')
        .next()
        .unwrap_or_default();
    let objects = Path::new(OsStr::from_bytes(objects));
    Ok(objects.parent().unwrap_or(objects).to_owned())
}

/// Writes who the agent commits as, in the form of git's configuration.
fn user_section(identity: &Identity) -> String {
    let (name, email) = (escaped(identity.name()), escaped(identity.email()));
    format!("[user]\n\tname = \"{name}\"\n\temail = \"{email}\"\n")
}

/// Writes a value of one line so that it may stand between quotes in git's configuration.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

async fn append(path: &Path, text: &str) -> Result<(), GitError> {
    let mut content = fs::read_to_string(path)
        .await
        .map_err(GitError::file("read", path))?;
    content.push_str(text);
    fs::write(path, content)
        .await
        .map_err(GitError::file("write", path))
}

/// Deletes a folder, also where an agent has taken permissions away from folders in it.
fn remove_tree(folder: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            allow_deletion(folder)?;
            std::fs::remove_dir_all(folder)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn allow_deletion(folder: &Path) -> io::Result<()> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(FOLDER_MODE))?;
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            // The type of the entry itself: a symbolic link is not followed.
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(())
}
