//! The bare repositories in the coordinator's home.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use muster_git::{Git, GitError, Mode, ObjectFormat, Repository};
use uuid::Uuid;

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
    #[error("{} has object ids of {}, and {} was asked for", path.display(), found.as_str(), wanted.as_str())]
    Format {
        path: PathBuf,
        found: ObjectFormat,
        wanted: ObjectFormat,
    },
}

/// How the name of a repository starts while it is being made; no name that is served does.
const UNFINISHED: &str = ".new-";

/// How the folders start in which git receives objects.
pub(crate) const INCOMING: &str = "tmp_objdir-";

/// How the names start under which git writes objects and packs before it renames them.
const HALF_WRITTEN: [&str; 4] = ["tmp_obj_", "tmp_pack_", "tmp_idx_", "tmp_rev_"];

/// How the content of a `.keep` file starts that git made for the time of a push.
const KEPT_BY_PUSH: &[u8] = b"receive-pack ";

/// Longest `.keep` file that is looked into; git's own has about 50 bytes.
const KEEP_BYTES_MAX: u64 = 4096;

/// A bare repository at `<home>/repos/<name>.git`.
#[derive(Debug, Clone)]
pub struct HostedRepository {
    name: String,
    repository: Repository,
}

impl HostedRepository {
    /// Opens a repository, making it first if it is not there.
    ///
    /// Making is atomic: after an error or a crash there is either a whole repository or none, and
    /// the call may be repeated; calls for one name must not run at the same time. A repository
    /// that is served already may be opened again.
    pub async fn open_or_init(
        git: &Git,
        home: &Path,
        name: &str,
        format: ObjectFormat,
    ) -> Result<Self, Error> {
        valid_component(name).map_err(|source| Error::Name {
            name: name.to_owned(),
            source,
        })?;
        let folder = folder(home);
        let path = folder.join(format!("{name}.git"));
        let failed = |source| Error::Git {
            path: path.clone(),
            source,
        };
        if !path.exists() {
            std::fs::create_dir_all(&folder).map_err(at("create", &folder))?;
            let fresh = folder.join(format!("{UNFINISHED}{}", Uuid::new_v4()));
            init(git, &fresh, format).await.map_err(failed)?;
            std::fs::rename(&fresh, &path).map_err(at("move a new repository to", &path))?;
        }
        let repository = Repository::open_bare(git, &path).await.map_err(failed)?;
        let found = repository.object_format().await.map_err(failed)?;
        if found != format {
            return Err(Error::Format {
                path,
                found,
                wanted: format,
            });
        }
        Ok(Self {
            name: name.to_owned(),
            repository,
        })
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

/// Makes an empty hosted repository; not atomic.
pub(crate) async fn init(git: &Git, path: &Path, format: ObjectFormat) -> Result<(), GitError> {
    let repository = Repository::init_bare(git, path, format).await?;
    // Nothing collects garbage on its own, not even under a person's hands: a commit without a ref
    // may be known to the journal already.
    repository.set_config("gc.auto", "0").await?;
    repository
        .set_config("core.logAllRefUpdates", "false")
        .await
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

/// Removes what git processes and a coordinator leave behind when they are killed.
///
/// A ref lock that stays would refuse every later push to that ref, and the `.keep` file of a push
/// every later push of the same pack, since git insists that both be equal and writes its process id
/// into it. Half-received packs, half-written objects and half-made repositories only take room.
/// Must be called while no git works in the repositories.
pub(super) fn clean(home: &Path) -> Result<(), Error> {
    let folder = folder(home);
    std::fs::create_dir_all(&folder).map_err(at("create", &folder))?;
    leftovers(home)?.iter().try_for_each(|path| remove(path))
}

/// Removes from one repository what git processes leave behind when they are killed; as [`clean`],
/// only while no git works in it.
pub(super) fn clean_one(repository: &Path) -> Result<(), Error> {
    leftovers_of(repository)?
        .iter()
        .try_for_each(|path| remove(path))
}

/// Lists what git processes and a coordinator leave behind when they are killed; while git works in
/// the repositories, also what belongs to it.
pub(crate) fn leftovers(home: &Path) -> Result<Vec<PathBuf>, Error> {
    let folder = folder(home);
    let mut found = Vec::new();
    if !folder.exists() {
        return Ok(found);
    }
    for path in entries(&folder)? {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        if name.starts_with(UNFINISHED) {
            found.push(path);
        } else if name.ends_with(".git") {
            found.extend(leftovers_of(&path)?);
        }
    }
    Ok(found)
}

pub(crate) fn leftovers_of(repository: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut folders = vec![repository.join("refs")];
    let mut stale: Vec<_> = ["packed-refs.lock", "HEAD.lock", "config.lock"]
        .map(|name| repository.join(name))
        .into_iter()
        .filter(|lock| lock.exists())
        .collect();
    while let Some(folder) = folders.pop() {
        for path in entries(&folder)? {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "lock") {
                stale.push(path);
            }
        }
    }
    let named = |path: &Path, beginnings: &[&str]| {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        beginnings
            .iter()
            .any(|beginning| name.starts_with(beginning))
    };
    for path in entries(&repository.join("objects"))? {
        if named(&path, &[INCOMING]) {
            stale.push(path);
        } else if path.is_dir() {
            let inside = entries(&path)?;
            stale.extend(
                inside
                    .into_iter()
                    .filter(|path| named(path, &HALF_WRITTEN) || is_of_push(path)),
            );
        }
    }
    Ok(stale)
}

/// Tells a `.keep` file of a push from one by which a person keeps a pack.
fn is_of_push(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "keep")
        && muster_connect::private_file::read_bounded(path, KEEP_BYTES_MAX)
            .is_ok_and(|content| content.starts_with(KEPT_BY_PUSH))
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = std::fs::read_dir(folder).map_err(at("read", folder))?;
    entries
        .map(|entry| Ok(entry.map_err(at("read", folder))?.path()))
        .collect()
}

fn remove(path: &Path) -> Result<(), Error> {
    tracing::warn!(path = %path.display(), "removing what a killed process left");
    let removed = if path.is_dir() {
        std::fs::remove_dir_all(path)
    } else {
        std::fs::remove_file(path)
    };
    removed.map_err(at("remove", path))
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn open(home: &Path, name: &str) -> Result<HostedRepository, Error> {
        let git = Git::find().await.unwrap();
        HostedRepository::open_or_init(&git, home, name, ObjectFormat::Sha1).await
    }

    #[tokio::test]
    async fn a_repository_is_made_once_and_then_opened() {
        let home = tempfile::tempdir().unwrap();
        let made = open(home.path(), "site").await.unwrap();
        let marker = made.path().join("refs/marker");
        std::fs::write(&marker, "").unwrap();
        let opened = open(home.path(), "site").await.unwrap();
        assert_eq!(opened.path(), home.path().join("repos/site.git"));
        assert!(marker.is_file());
        let config = std::fs::read_to_string(made.path().join("config")).unwrap();
        assert!(config.contains("fsync = committed,reference"), "{config}");
        assert_eq!(entries(&folder(home.path())).unwrap(), [opened.path()]);

        let git = Git::find().await.unwrap();
        let other = ObjectFormat::Sha256;
        let other = HostedRepository::open_or_init(&git, home.path(), "site", other).await;
        assert!(matches!(other, Err(Error::Format { .. })));
    }

    #[tokio::test]
    async fn cleaning_removes_what_killed_processes_left_and_nothing_else() {
        let home = tempfile::tempdir().unwrap();
        let made = open(home.path(), "site").await.unwrap();
        let refs = made.path().join("refs/muster/wip/r/t");
        let incoming = made.path().join("objects/tmp_objdir-incoming-x/pack");
        let unfinished = folder(home.path()).join(".new-x");
        for folder in [&refs, &incoming, &unfinished] {
            std::fs::create_dir_all(folder).unwrap();
        }
        let (lock, kept) = (refs.join("1.lock"), refs.join("2"));
        let packed = made.path().join("packed-refs.lock");
        let objects = made.path().join("objects");
        std::fs::create_dir_all(objects.join("ab")).unwrap();
        let half = [objects.join("ab/tmp_obj_x"), objects.join("pack/tmp_idx_x")];
        let whole = [objects.join("ab/cdef"), objects.join("pack/pack-2.pack")];
        for file in [&lock, &kept, &packed]
            .into_iter()
            .chain(&half)
            .chain(&whole)
        {
            std::fs::write(file, "").unwrap();
        }
        let (of_push, of_person) = (
            objects.join("pack/pack-1.keep"),
            objects.join("pack/pack-2.keep"),
        );
        std::fs::write(&of_push, "receive-pack 4711 on host\n").unwrap();
        std::fs::write(&of_person, "mine").unwrap();
        clean(home.path()).unwrap();
        let stale = [&lock, &packed, &incoming, &unfinished, &of_push];
        for gone in stale.into_iter().chain(&half) {
            assert!(!gone.exists(), "{}", gone.display());
        }
        for kept in [&kept, &of_person].into_iter().chain(&whole) {
            assert!(kept.exists(), "{}", kept.display());
        }
        open(home.path(), "site").await.unwrap();
    }

    #[tokio::test]
    async fn a_name_that_leaves_the_folder_is_refused() {
        let home = tempfile::tempdir().unwrap();
        for name in ["../x", "", ".new", "a/b"] {
            let result = open(home.path(), name).await;
            assert!(matches!(result, Err(Error::Name { .. })), "{name:?}");
        }
    }
}
