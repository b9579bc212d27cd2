//! What was fetched from remotes, once for all workers of a host.
//!
//! One bare repository for each remote, below one folder. Attempts borrow its objects and never
//! write to it. Nothing is ever deleted from it while it is in use: an object that disappears would
//! tear a hole into every workspace that borrows it. Beyond its limit whole repositories go, those
//! that were used longest ago first.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tokio::fs;

use crate::command::Git;
use crate::error::GitError;
use crate::eviction::{self, Bound};
use crate::leftovers::{self, Swept};
use crate::lock::HostLock;
use crate::names::{ObjectFormat, ObjectId, RefName};
use crate::remote::{Refspec, Remote};
use crate::repository::{Expected, RefUpdate, Repository, Update};
use crate::workspace::Workspace;

/// How many hexadecimal digits of a hash tell remotes apart: 128 bits.
const KEY_DIGITS: usize = 32;
/// File in a repository that says that it was made completely.
pub(crate) const COMPLETE: &str = "muster-complete";

/// The cache of a host; cheap to clone. Several processes may use one folder.
#[derive(Clone, Debug)]
pub struct Cache {
    git: Git,
    root: PathBuf,
    bytes_max: u64,
    /// Where workspaces are that borrow.
    state: Option<PathBuf>,
}

/// A commit that the cache holds with everything it refers to.
///
/// It stays there for as long as this lives, and afterwards while a workspace of a registered worker
/// borrows from it.
#[derive(Clone, Debug)]
pub struct CachedCommit {
    /// The cache's repository for the remote.
    pub repository: Repository,
    /// The commit.
    pub commit: ObjectId,
    _in_use: Arc<HostLock>,
}

impl Cache {
    /// Uses the folder `root`, which is created if it is missing.
    pub async fn open(git: &Git, root: &Path) -> Result<Self, GitError> {
        let root =
            std::path::absolute(root).map_err(GitError::file("find the absolute path of", root))?;
        fs::create_dir_all(&root)
            .await
            .map_err(GitError::file("create the folder", &root))?;
        let cache = Self {
            git: git.clone(),
            root,
            bytes_max: u64::MAX,
            state: None,
        };
        cache.sweep().await?;
        Ok(cache)
    }

    /// Bounds the cache, and trims it now and after each fetch; without this there is no bound.
    ///
    /// Workspaces that borrow must be below `state`, or below a folder that another user of the
    /// same cache has named: what is borrowed from nowhere else may be deleted. What is in use is
    /// never deleted, so the cache may exceed its limit. On a disk that is full it goes on, and notes
    /// the folder before the first workspace borrows.
    pub async fn with_limit(mut self, bytes_max: u64, state: &Path) -> Result<Self, GitError> {
        let state = std::path::absolute(state)
            .map_err(GitError::file("find the absolute path of", state))?;
        let registered = eviction::register(&self.root, &state);
        (self.bytes_max, self.state) = (bytes_max, Some(state));
        match registered.and(self.trim().await) {
            Err(error) if is_full(&error) => {
                tracing::warn!(%error, "the cache's disk is full");
            }
            tidied => tidied?,
        }
        Ok(self)
    }

    /// Makes the cache's folder again if somebody has deleted it, with the note of who borrows.
    fn stand(&self) -> Result<(), GitError> {
        let root = &self.root;
        std::fs::create_dir_all(root).map_err(GitError::file("create the folder", root))?;
        match &self.state {
            Some(state) => eviction::register(root, state),
            None => Ok(()),
        }
    }

    /// Tells whether a workspace's repository to borrow from is there.
    pub async fn lends_to(&self, workspace: &Workspace) -> bool {
        let complete = workspace.lender.join(COMPLETE);
        exists(&complete).await.unwrap_or(true)
    }

    async fn trim(&self) -> Result<(), GitError> {
        match self.bytes_max {
            u64::MAX => Ok(()),
            bytes_max => self.trim_to(Bound::Holds(bytes_max)).await,
        }
    }

    /// Where it is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Gives way where its disk has fewer bytes free: what was used longest ago goes, unless something
    /// borrows from it. Without a limit ([`Cache::with_limit`]) nothing goes.
    ///
    /// Makes no error of too little to delete; the caller looks at the disk again.
    pub async fn make_room(&self, bytes_free: u64) -> Result<(), GitError> {
        if self.bytes_max == u64::MAX {
            return Ok(());
        }
        self.trimming(move |root| match eviction::free(root) {
            Ok(free) if free < bytes_free => eviction::trim(root, Bound::Free(bytes_free)),
            Ok(_) => Ok(()),
            // Somebody has deleted it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(GitError::file("look at", root)(error)),
        })
        .await
    }

    async fn trim_to(&self, bound: Bound) -> Result<(), GitError> {
        self.trimming(move |root| eviction::trim(root, bound)).await
    }

    /// Deletes all that nobody borrows from, after whoever deletes something now.
    async fn empty(&self) -> Result<(), GitError> {
        let lock = HostLock::acquire(&eviction::lock(&self.root)).await?;
        let emptied = self
            .trimming(|root| eviction::trim_alone(root, Bound::Holds(0)))
            .await;
        drop(lock);
        emptied
    }

    /// Does that on a thread of its own.
    async fn trimming(
        &self,
        trim: impl FnOnce(&Path) -> Result<(), GitError> + Send + 'static,
    ) -> Result<(), GitError> {
        let root = self.root.clone();
        let trimming = tokio::task::spawn_blocking(move || trim(&root));
        trimming.await.unwrap_or_else(|panicked| {
            let error = std::io::Error::other(panicked);
            Err(GitError::file("trim the cache", &self.root)(error))
        })
    }

    /// Removes what killed gits have left in repositories in which nobody works now.
    async fn sweep(&self) -> Result<(), GitError> {
        let root = self.root.clone();
        let swept = tokio::task::spawn_blocking(move || {
            let entries = std::fs::read_dir(&root).map_err(GitError::file("list", &root))?;
            for entry in entries {
                let folder = entry.map_err(GitError::file("list", &root))?.path();
                let is_complete = folder.join(COMPLETE).exists();
                if is_complete && let Some(_lock) = HostLock::try_acquire(&lock_of(&folder))? {
                    leftovers::sweep(&folder)?;
                }
            }
            Ok(())
        });
        swept.await.unwrap_or_else(|panicked| {
            Err(GitError::file("sweep", &self.root)(std::io::Error::other(
                panicked,
            )))
        })
    }

    /// Makes sure that `commit`, which `name` points to or has behind it, is here; fetches only if
    /// it is not.
    ///
    /// Processes that want something of the same remote wait for each other. A fetch that was
    /// interrupted leaves nothing that is mistaken for a complete one.
    pub async fn ensure_commit(
        &self,
        remote: &Remote,
        name: &RefName,
        commit: ObjectId,
    ) -> Result<CachedCommit, GitError> {
        let key = key(remote, commit.format());
        let folder = self.root.join(format!("{key}.git"));
        let repository = Repository::hermetic(&self.git, &folder)?;
        let kept = RefName::parse(&format!("refs/muster/kept/{commit}"))?;
        self.stand()?;
        let cached = CachedCommit {
            repository,
            commit,
            _in_use: Arc::new(HostLock::acquire_shared(&in_use_of(&folder)).await?),
        };
        if exists(&folder.join(COMPLETE)).await? && cached.is_kept(&kept).await? {
            note_use(&folder);
            return Ok(cached);
        }
        let lock = HostLock::acquire(&lock_of(&folder)).await?;
        self.ensure_repository(&folder, commit.format()).await?;
        if !cached.is_kept(&kept).await? {
            let swept = Swept::begin(&folder)?;
            if let Err(error) = cached.fetch(remote, name, &kept).await {
                if !is_full(&error) {
                    return Err(error);
                }
                // This one is in use; all that nobody borrows from makes room for it.
                leftovers::sweep(&folder)?;
                self.empty().await?;
                cached.fetch(remote, name, &kept).await?;
            }
            swept.done();
        }
        note_use(&folder);
        drop(lock);
        // What is here is here; that there is too much of other things is no reason to fail.
        if let Err(error) = self.trim().await {
            tracing::warn!(%error, "cannot keep the cache within its limit");
        }
        Ok(cached)
    }

    /// Creates the repository of a remote unless it is complete; the caller holds its lock.
    async fn ensure_repository(&self, folder: &Path, format: ObjectFormat) -> Result<(), GitError> {
        let complete = folder.join(COMPLETE);
        if exists(&complete).await? {
            return Ok(());
        }
        // A git that was killed while it made this one may have left a lock that nobody would ever
        // let go; nothing borrows from what is incomplete.
        match fs::remove_dir_all(folder).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            removed => removed.map_err(GitError::file("remove", folder))?,
        }
        Repository::init_bare(&self.git, folder, format).await?;
        fs::write(&complete, b"")
            .await
            .map_err(GitError::file("write", &complete))
    }
}

impl CachedCommit {
    /// Tells whether a finished fetch has left the ref that vouches for the commit.
    async fn is_kept(&self, kept: &RefName) -> Result<bool, GitError> {
        Ok(self.repository.read_ref(kept).await? == Some(self.commit))
    }

    /// Fetches, and vouches for the commit only after git has checked that nothing is missing.
    async fn fetch(&self, remote: &Remote, name: &RefName, kept: &RefName) -> Result<(), GitError> {
        let incoming = RefName::parse(&format!("refs/muster/incoming/{}", self.commit))?;
        let by_name = remote
            .fetch(&self.repository, &[Refspec::to_ref(name, &incoming)])
            .await;
        let tip = match &by_name {
            Ok(()) => self.repository.read_ref(&incoming).await?,
            Err(_) => None,
        };
        let is_behind = match tip {
            Some(tip) if self.repository.exists(self.commit).await? => {
                self.repository.is_ancestor(self.commit, tip).await?
            }
            Some(_) | None => false,
        };
        if !is_behind {
            // The ref has moved elsewhere or is gone; most servers also give a commit by its id.
            let by_id = Refspec::commit_to_ref(self.commit, &incoming);
            if let Err(error) = remote.fetch(&self.repository, &[by_id]).await {
                by_name?;
                tracing::debug!(%error, commit = %self.commit, "the remote gives no commit by id");
                return Err(GitError::CommitNotOnRemote {
                    url: remote.display_url(),
                    name: name.clone(),
                    commit: self.commit,
                });
            }
        }
        let vouch = RefUpdate {
            name: kept.clone(),
            new: Some(self.commit),
            expected: Expected::Any,
        };
        let forget = RefUpdate {
            name: incoming,
            new: None,
            expected: Expected::Any,
        };
        let (Update::Done | Update::Refused { .. }) =
            self.repository.update_refs(&[vouch, forget]).await?;
        Ok(())
    }
}

/// Tells whether the disk has no room for what failed; git says so in the system's words.
fn is_full(error: &GitError) -> bool {
    let words = ["No space left on device", "Disk quota exceeded"];
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        let said = error.to_string();
        if words.iter().any(|words| said.contains(words)) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Notes that a repository was used now; a note that fails makes it go a little sooner.
fn note_use(folder: &Path) {
    let file = std::fs::File::options()
        .write(true)
        .open(folder.join(COMPLETE));
    let _ = file.and_then(|file| file.set_modified(SystemTime::now()));
}

/// The lock that whoever is about to borrow from a repository shares.
pub(crate) fn in_use_of(folder: &Path) -> PathBuf {
    folder.with_extension("use")
}

/// The lock beside a repository.
pub(crate) fn lock_of(folder: &Path) -> PathBuf {
    folder.with_extension("lock")
}

async fn exists(path: &Path) -> Result<bool, GitError> {
    fs::try_exists(path)
        .await
        .map_err(GitError::file("look for", path))
}

/// Names the repository of a remote: readable, and different for different remotes and formats.
fn key(remote: &Remote, format: ObjectFormat) -> String {
    let url = remote.place();
    let hash = blake3::hash(format!("{}\n{url}", format.as_str()).as_bytes()).to_hex();
    let last = url
        .trim_end_matches('/')
        .rsplit(['/', ':'])
        .next()
        .unwrap_or_default();
    let readable: String = last
        .trim_end_matches(".git")
        .chars()
        .filter(|character| character.is_ascii_alphanumeric() || "-_".contains(*character))
        .take(32)
        .collect();
    format!("{readable}-{}", hash.get(..KEY_DIGITS).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::key;
    use crate::names::ObjectFormat;
    use crate::remote::{Auth, Remote};

    #[test]
    fn remotes_have_readable_keys_of_their_own() {
        let key = |url| key(&Remote::new(url).unwrap(), ObjectFormat::Sha1);
        assert!(key("https://h/git/demo.git").starts_with("demo-"));
        assert_ne!(
            key("https://h/git/demo.git"),
            key("https://h2/git/demo.git")
        );
        assert!(!key("https://h/..").contains('.'));
    }

    #[test]
    fn a_coordinator_on_another_port_has_the_same_repositories() {
        let key = |address, path| {
            let auth = Auth {
                token: "t".to_owned(),
                ca_file: None,
            };
            key(
                &Remote::coordinator(address, path, auth).unwrap(),
                ObjectFormat::Sha1,
            )
        };
        let one = key("127.0.0.1:7733", "git/demo-1.git");
        assert_eq!(one, key("localhost:40001", "git/demo-1.git"));
        assert_ne!(one, key("127.0.0.1:7733", "git/demo-2.git"));
    }
}
