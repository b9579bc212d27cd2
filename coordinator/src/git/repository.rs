//! The bare repositories in the coordinator's home.

use std::io;
use std::path::{Path, PathBuf};

use tokio::process::Command;
use uuid::Uuid;

use super::refs::{InvalidName, ObjectId, valid_component};

/// Settings that every user of a hosted repository shares, written into its own `config`.
///
/// A ref that was acknowledged must survive a power cut, so refs and all objects are synced
/// (`committed`), in batches. Nothing collects garbage on its own: an unreferenced commit may be
/// known to the journal already.
const SETTINGS: [(&str, &str); 4] = [
    ("core.fsync", "committed"),
    ("core.fsyncMethod", "batch"),
    ("gc.auto", "0"),
    ("core.logAllRefUpdates", "false"),
];

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
    #[error("git cannot {action} {}: {stderr}", path.display())]
    Git {
        action: &'static str,
        path: PathBuf,
        stderr: String,
    },
}

/// A bare repository at `<home>/repos/<name>.git`.
#[derive(Debug, Clone)]
pub struct HostedRepository {
    name: String,
    path: PathBuf,
}

impl HostedRepository {
    /// Opens a repository, making it first if it is not there.
    ///
    /// Making is atomic: after an error or a crash there is either a whole repository or none.
    /// Locks that a killed git left on refs are removed, so this must be called only by the one
    /// coordinator of the home and before the repository is served.
    pub async fn open_or_init(home: &Path, name: &str) -> Result<Self, Error> {
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
        if path.join("HEAD").is_file() {
            remove_locks(&path).map_err(at("remove stale locks in", &path))?;
        } else {
            std::fs::create_dir_all(&folder).map_err(at("create", &folder))?;
            // The name is not servable: it starts with a dot.
            let fresh = folder.join(format!(".new-{}", Uuid::new_v4()));
            init(&fresh).await?;
            std::fs::rename(&fresh, &path).map_err(at("move the new repository to", &path))?;
        }
        Ok(Self {
            name: name.to_owned(),
            path,
        })
    }

    /// The name, as in `/git/<name>.git`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder of the bare repository.
    pub fn path(&self) -> &Path {
        &self.path
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
    repository: &Path,
    hide: &[String],
    tips: &[ObjectId],
) -> Result<bool, Error> {
    let count = |exclude: &'static [&'static str]| {
        let mut count = git();
        count.arg("-C").arg(repository);
        for rule in hide {
            count.arg("-c").arg(format!("transfer.hideRefs={rule}"));
        }
        count.args(["rev-list", "--count"]);
        count.args(tips.iter().map(ObjectId::as_str)).arg("--not");
        count.args(exclude);
        checked(count, "count new commits in", repository)
    };
    let (unseen, new) = tokio::try_join!(
        count(&["--exclude-hidden=uploadpack", "--all"]),
        count(&["--all"])
    )?;
    Ok(unseen != new)
}

async fn init(path: &Path) -> Result<(), Error> {
    let mut init = git();
    init.args([
        "init",
        "--quiet",
        "--bare",
        "--template=",
        "--initial-branch=main",
    ]);
    init.arg(path);
    checked(init, "create", path).await?;
    for (key, value) in SETTINGS {
        let mut config = git();
        config.arg("-C").arg(path).args(["config", key, value]);
        checked(config, "configure", path).await?;
    }
    Ok(())
}

fn git() -> Command {
    let mut git = Command::new("git");
    git.env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .env("HOME", "/nonexistent")
        .env("LC_ALL", "C")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    git
}

/// Runs git and gives what it wrote.
async fn checked(mut git: Command, action: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
    let output = git.output().await.map_err(|source| Error::Io {
        action: "run git for",
        path: path.to_owned(),
        source,
    })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Error::Git {
        action,
        path: path.to_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
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
        let home = tempfile::tempdir().unwrap();
        let made = HostedRepository::open_or_init(home.path(), "site")
            .await
            .unwrap();
        let marker = made.path().join("refs/marker");
        std::fs::write(&marker, "").unwrap();
        let opened = HostedRepository::open_or_init(home.path(), "site")
            .await
            .unwrap();
        assert_eq!(opened.path(), home.path().join("repos/site.git"));
        assert!(marker.is_file());
        let config = std::fs::read_to_string(made.path().join("config")).unwrap();
        assert!(config.contains("fsync = committed"), "{config}");
        assert_eq!(
            std::fs::read_dir(home.path().join("repos"))
                .unwrap()
                .count(),
            1
        );
    }

    #[tokio::test]
    async fn opening_removes_the_locks_of_a_killed_git() {
        let home = tempfile::tempdir().unwrap();
        let made = HostedRepository::open_or_init(home.path(), "site")
            .await
            .unwrap();
        let folder = made.path().join("refs/muster/wip/r/t");
        std::fs::create_dir_all(&folder).unwrap();
        let lock = folder.join("1.lock");
        std::fs::write(&lock, "").unwrap();
        HostedRepository::open_or_init(home.path(), "site")
            .await
            .unwrap();
        assert!(!lock.exists() && folder.exists());
    }

    #[tokio::test]
    async fn a_name_that_leaves_the_folder_is_refused() {
        let home = tempfile::tempdir().unwrap();
        for name in ["../x", "", ".new", "a/b"] {
            let result = HostedRepository::open_or_init(home.path(), name).await;
            assert!(matches!(result, Err(Error::Name { .. })), "{name:?}");
        }
    }
}
