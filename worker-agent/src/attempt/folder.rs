//! The folder of one lease.
//!
//! ```text
//! <lease>/grant          what the lease is for, without its credential
//! <lease>/events         spool of what happened
//! <lease>/context.json   for MUSTER_CONTEXT_FILE
//! <lease>/prompt         what its agent is asked to do, if that is long
//! <lease>/last-message   what its agent said last, if it keeps that
//! <lease>/tmp/           TMPDIR of its processes
//! <lease>/workspace/     its checkout; `work` in it is where they run
//! <lease>/launch-<n>/    folder of its n-th supervisor
//! <lease>/wip            the tree that its WIP ref holds, once there is one
//! <lease>/salvage        the commit that holds its unfinished edits, once there is one
//! <lease>/published      exists once nothing in the workspace is unpublished
//! ```

use std::io;
use std::path::{Path, PathBuf};

use muster_connect::private_file;
use muster_git::ObjectId;
use muster_proto::v1::Grant;
use prost::Message as _;

use crate::identity::create_private;

/// Begins the names of folders that are being deleted.
pub(crate) const DELETED: &str = "deleted-";
/// A commit id has 64 characters at most.
const COMMIT_BYTES_MAX: u64 = 128;
const GRANT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The folder of one lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeaseFolder {
    path: PathBuf,
}

impl LeaseFolder {
    /// Gives the folder of a lease among those of all leases.
    pub(crate) fn of(leases: &Path, lease: u64) -> Self {
        Self {
            path: leases.join(lease.to_string()),
        }
    }

    /// Lists the leases that have folders.
    pub(crate) fn list(leases: &Path) -> io::Result<Vec<u64>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(leases)? {
            if let Some(lease) = entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            {
                found.push(lease);
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Creates it and stores what the lease is for.
    pub(crate) fn create(&self, grant: &Grant) -> io::Result<()> {
        create_private(&self.path).map_err(io::Error::other)?;
        create_private(&self.tmp()).map_err(io::Error::other)?;
        // Whoever reads this later is a newer incarnation, for which the credential is dead.
        let grant_without_secret = Grant {
            credential: String::new(),
            ..grant.clone()
        };
        private_file::replace(&self.grant_path(), &grant_without_secret.encode_to_vec())?;
        private_file::replace(&self.context(), &grant.context)
    }

    /// Reads what the lease was for; `None` if its folder was not created completely.
    pub(crate) fn grant(&self) -> io::Result<Option<Grant>> {
        match private_file::read_bounded(&self.grant_path(), GRANT_BYTES_MAX) {
            Ok(bytes) => Grant::decode(bytes.as_slice())
                .map(Some)
                .map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn grant_path(&self) -> PathBuf {
        self.path.join("grant")
    }

    pub(crate) fn events(&self) -> PathBuf {
        self.path.join("events")
    }

    pub(crate) fn context(&self) -> PathBuf {
        self.path.join("context.json")
    }

    pub(crate) fn prompt(&self) -> PathBuf {
        self.path.join("prompt")
    }

    /// Where the persona's skills are.
    pub(crate) fn skills(&self) -> PathBuf {
        self.path.join("skills")
    }

    pub(crate) fn last_message(&self) -> PathBuf {
        self.path.join("last-message")
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.path.join("tmp")
    }

    pub(crate) fn workspace(&self) -> PathBuf {
        self.path.join("workspace")
    }

    pub(crate) fn launch(&self, number: u32) -> PathBuf {
        self.path.join(format!("launch-{number}"))
    }

    /// Numbers of the launches that were begun.
    pub(crate) fn launches(&self) -> io::Result<Vec<u32>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("launch-"));
            if let Some(number) = number.and_then(|number| number.parse().ok()) {
                found.push(number);
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    fn salvage_path(&self) -> PathBuf {
        self.path.join("salvage")
    }

    /// Gives the commit that was made of unfinished edits, by this incarnation or an earlier one.
    pub(crate) fn salvaged(&self) -> Option<ObjectId> {
        // A note that cannot be read costs no edits: they are committed once more.
        let bytes = private_file::read_bounded(&self.salvage_path(), COMMIT_BYTES_MAX).ok()?;
        ObjectId::parse(std::str::from_utf8(&bytes).ok()?.trim()).ok()
    }

    /// Notes the commit of unfinished edits before it is pushed. Its ref is created once: an
    /// incarnation that does not know whether it was must bring the same commit.
    pub(crate) fn note_salvage(&self, commit: ObjectId) -> io::Result<()> {
        private_file::replace(&self.salvage_path(), commit.to_string().as_bytes())
    }

    /// Tells whether nothing in the workspace is unpublished.
    pub(crate) fn is_published(&self) -> bool {
        self.path.join("published").exists()
    }

    /// Notes that nothing in the workspace is unpublished.
    ///
    /// A note that gets lost only means that edits are salvaged that need not be.
    pub(crate) fn mark_published(&self) {
        if let Err(error) = std::fs::write(self.path.join("published"), b"") {
            tracing::warn!(%error, folder = %self.path.display(), "cannot note what is published");
        }
    }

    /// Empties the folder for temporary files, of whose users none is left.
    pub(crate) fn empty_tmp(&self) -> io::Result<()> {
        remove_tree(&self.tmp())?;
        create_private(&self.tmp()).map_err(io::Error::other)
    }

    /// Notes the tree that the WIP ref holds now, or that it holds something else.
    ///
    /// A note that gets lost only means that edits are kept twice.
    pub(crate) fn note_wip(&self, tree: Option<ObjectId>) {
        let text = tree.map(|tree| tree.to_string()).unwrap_or_default();
        if let Err(error) = private_file::replace(&self.path.join("wip"), text.as_bytes()) {
            tracing::warn!(%error, folder = %self.path.display(), "cannot note what is kept");
            // An older one may name edits that are there no more.
            let _ = std::fs::remove_file(self.path.join("wip"));
        }
    }

    /// Gives the tree that the WIP ref holds, as far as that was noted.
    pub(crate) fn wip(&self) -> Option<ObjectId> {
        let bytes = private_file::read_bounded(&self.path.join("wip"), COMMIT_BYTES_MAX).ok()?;
        ObjectId::parse(std::str::from_utf8(&bytes).ok()?).ok()
    }

    /// Moves the workspace to a folder that outlives the lease's.
    pub(crate) fn keep_workspace(&self, kept: &Path, name: &str) -> io::Result<PathBuf> {
        create_private(kept).map_err(io::Error::other)?;
        let target = kept.join(name);
        std::fs::rename(self.workspace(), &target)?;
        Ok(target)
    }

    /// Deletes it; only for a caller who knows that it holds nothing unpublished.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let Some(name) = self.path.file_name().and_then(|name| name.to_str()) else {
            return Ok(());
        };
        // In one step, so that a half-deleted work tree is never taken for somebody's edits.
        let deleted = self.path.with_file_name(format!("{DELETED}{name}"));
        match std::fs::rename(&self.path, &deleted) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            renamed => renamed.and_then(|()| remove_tree(&deleted)),
        }
    }

    /// Deletes what [`LeaseFolder::remove`] was interrupted in.
    pub(crate) fn remove_deleted(leases: &Path) -> io::Result<()> {
        for entry in std::fs::read_dir(leases)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(DELETED) {
                remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }
}

fn remove_tree(folder: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        // An agent may have taken permissions away from its own folders.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            allow_deletion(folder)?;
            std::fs::remove_dir_all(folder)
        }
        removed => removed,
    }
}

fn allow_deletion(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_found_again_without_its_credential() {
        use std::os::unix::fs::PermissionsExt as _;
        let leases = tempfile::tempdir().unwrap();
        let folder = LeaseFolder::of(leases.path(), 7);
        let grant = Grant {
            lease: 7,
            run: "r".into(),
            credential: "secret".into(),
            context: b"{}".to_vec(),
            ..Grant::default()
        };
        folder.create(&grant).unwrap();
        std::fs::create_dir(leases.path().join("other")).unwrap();
        std::fs::create_dir(folder.launch(2)).unwrap();
        assert_eq!(LeaseFolder::list(leases.path()).unwrap(), [7]);
        assert_eq!(folder.launches().unwrap(), [2]);
        let credential = String::new();
        let expected = Grant {
            credential,
            ..grant
        };
        assert_eq!(folder.grant().unwrap(), Some(expected));
        let mode = folder.context().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_folder_is_deleted_although_its_permissions_were_taken_away() {
        use std::os::unix::fs::PermissionsExt as _;
        let leases = tempfile::tempdir().unwrap();
        let folder = LeaseFolder::of(leases.path(), 7);
        folder.create(&Grant::default()).unwrap();
        let locked = folder.workspace().join("locked");
        std::fs::create_dir_all(&locked).unwrap();
        std::fs::write(locked.join("file"), b"x").unwrap();
        std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o500)).unwrap();
        folder.remove().unwrap();
        assert_eq!(std::fs::read_dir(leases.path()).unwrap().count(), 0);
    }

    #[test]
    fn temporary_files_go_and_their_folder_stays() {
        let leases = tempfile::tempdir().unwrap();
        let folder = LeaseFolder::of(leases.path(), 7);
        folder.create(&Grant::default()).unwrap();
        std::fs::create_dir(folder.tmp().join("build")).unwrap();
        std::fs::write(folder.tmp().join("build/large"), b"x").unwrap();
        folder.empty_tmp().unwrap();
        assert_eq!(std::fs::read_dir(folder.tmp()).unwrap().count(), 0);
    }

    #[test]
    fn an_interrupted_deletion_is_finished_and_is_no_lease() {
        let leases = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(leases.path().join("deleted-7/workspace")).unwrap();
        assert!(LeaseFolder::list(leases.path()).unwrap().is_empty());
        LeaseFolder::remove_deleted(leases.path()).unwrap();
        assert_eq!(std::fs::read_dir(leases.path()).unwrap().count(), 0);
    }
}
