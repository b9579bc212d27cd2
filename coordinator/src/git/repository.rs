//! The bare repositories in the coordinator's home.

use std::io;
use std::path::{Path, PathBuf};

use muster_git::{Git, GitError, Mode, ObjectFormat, Repository};

use super::refs::{InvalidName, RefValue, valid_component};

/// Why a hosted repository could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{name:?} cannot name a repository")]
    Name { name: String, source: InvalidName },
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot make {} ready", path.display())]
    Git { path: PathBuf, source: GitError },
}

/// A bare repository at `<home>/repos/<name>.git`.
#[derive(Debug, Clone)]
pub struct HostedRepository {
    name: String,
    repository: Repository,
}

impl HostedRepository {
    /// Opens a repository, making it first if it is not there (whole).
    ///
    /// Locks that a killed git left on refs are removed, so this must be called only by the one
    /// coordinator of the home and before the repository is served. After an error it may be called
    /// again.
    pub async fn open_or_init(git: &Git, home: &Path, name: &str) -> Result<Self, Error> {
        valid_component(name).map_err(|source| Error::Name {
            name: name.to_owned(),
            source,
        })?;
        let folder = folder(home);
        let path = folder.join(format!("{name}.git"));
        let at = |action, path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io {
                action,
                path,
                source,
            }
        };
        std::fs::create_dir_all(&folder).map_err(at("create", &folder))?;
        let repository = Self::init(git, &path).await.map_err(|source| Error::Git {
            path: path.clone(),
            source,
        })?;
        remove_locks(&path).map_err(at("remove stale locks in", &path))?;
        Ok(Self {
            name: name.to_owned(),
            repository,
        })
    }

    async fn init(git: &Git, path: &Path) -> Result<Repository, GitError> {
        let repository = Repository::init_bare(git, path, ObjectFormat::Sha1).await?;
        // Nothing collects garbage on its own, not even under a person's hands: a commit without
        // a ref may be known to the journal already.
        repository.set_config("gc.auto", "0").await?;
        repository
            .set_config("core.logAllRefUpdates", "false")
            .await?;
        Ok(repository)
    }

    /// The name, as in `/git/<name>.git`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder of the bare repository.
    pub fn path(&self) -> &Path {
        self.repository.folder()
    }

    /// The repository for the coordinator's own merges and refs.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }
}

/// The folder under a coordinator's home that holds the hosted repositories.
pub fn folder(home: &Path) -> PathBuf {
    home.join("repos")
}

/// Whether commits become readable through new tips that only hidden refs reach so far.
///
/// Git itself lets a client point a ref at any commit whose id it knows, and that ref then shows
/// the commit. `hide` are the values of `transfer.hideRefs` of the one who pushes. The tips' objects
/// must be stored already, the refs not moved yet. Looks at commits only: one who knows the id of
/// another's tree or file can still have it, and ids of those are not told to anybody.
pub(super) async fn reaches_hidden(
    git: &Git,
    repository: &Path,
    hide: &[String],
    tips: &[RefValue],
) -> Result<bool, GitError> {
    let count = |exclude: &'static [&'static str]| {
        let mut count = git.command(Mode::Hermetic).git_dir(repository);
        for rule in hide {
            count = count.config("transfer.hideRefs", rule);
        }
        count
            .args(["rev-list", "--count"])
            .args(tips.iter().map(RefValue::as_str))
            .arg("--not")
            .args(exclude)
            .run_ok()
    };
    let (unseen, new) = tokio::try_join!(
        count(&["--exclude-hidden=uploadpack", "--all"]),
        count(&["--all"])
    )?;
    Ok(unseen.stdout != new.stdout)
}

/// Removes what a git process leaves behind when it is killed while it moves refs.
///
/// A ref lock that stays would refuse every later push to that ref.
fn remove_locks(repository: &Path) -> io::Result<()> {
    let mut folders = vec![repository.join("refs")];
    let mut stale = vec![
        repository.join("packed-refs.lock"),
        repository.join("HEAD.lock"),
    ];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if entry.path().extension().is_some_and(|end| end == "lock") {
                stale.push(entry.path());
            }
        }
    }
    for lock in stale {
        match std::fs::remove_file(&lock) {
            Ok(()) => tracing::warn!(path = %lock.display(), "removed a stale lock of git"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_repository_is_made_once_and_then_opened() {
        let git = Git::find().await.unwrap();
        let home = tempfile::tempdir().unwrap();
        let made = HostedRepository::open_or_init(&git, home.path(), "site")
            .await
            .unwrap();
        let marker = made.path().join("refs/marker");
        std::fs::write(&marker, "").unwrap();
        let opened = HostedRepository::open_or_init(&git, home.path(), "site")
            .await
            .unwrap();
        assert_eq!(opened.path(), home.path().join("repos/site.git"));
        assert!(marker.is_file());
        let config = std::fs::read_to_string(made.path().join("config")).unwrap();
        assert!(config.contains("fsync = committed,reference"), "{config}");
        assert_eq!(
            std::fs::read_dir(home.path().join("repos"))
                .unwrap()
                .count(),
            1
        );
    }

    #[tokio::test]
    async fn opening_removes_the_locks_of_a_killed_git() {
        let git = Git::find().await.unwrap();
        let home = tempfile::tempdir().unwrap();
        let made = HostedRepository::open_or_init(&git, home.path(), "site")
            .await
            .unwrap();
        let folder = made.path().join("refs/muster/wip/r/t");
        std::fs::create_dir_all(&folder).unwrap();
        let lock = folder.join("1.lock");
        std::fs::write(&lock, "").unwrap();
        HostedRepository::open_or_init(&git, home.path(), "site")
            .await
            .unwrap();
        assert!(!lock.exists() && folder.exists());
    }

    #[tokio::test]
    async fn a_name_that_leaves_the_folder_is_refused() {
        let git = Git::find().await.unwrap();
        let home = tempfile::tempdir().unwrap();
        for name in ["../x", "", ".new", "a/b"] {
            let result = HostedRepository::open_or_init(&git, home.path(), name).await;
            assert!(matches!(result, Err(Error::Name { .. })), "{name:?}");
        }
    }
}
