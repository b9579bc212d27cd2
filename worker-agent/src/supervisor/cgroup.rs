//! A cgroup for one tree, where the host lets us have one.
//!
//! It is a bonus, never a need: a user's own processes are seldom in a cgroup that the user may
//! divide. Where it works, nothing in it can hide from KILL.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::launch::Mark;
use super::{Error, files};

/// Is a cgroup made for one tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes a child of this process's own cgroup and notes its path in the folder; `None` where
    /// that is not possible.
    pub(super) fn create(dir: &Path, mark: &Mark) -> Result<Option<Self>, Error> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let Some(own) = own_cgroup(&mounts, &groups) else {
            return Ok(None);
        };
        let path = own.join(format!("muster-{}", mark.as_str()));
        // The note comes first: a cgroup without one would never be found again.
        let note = dir.join(files::CGROUP);
        let Some(text) = path.to_str() else {
            return Ok(None);
        };
        fs::write(&note, text).map_err(Error::file("write", &note))?;
        let cgroup = Self(path);
        if fs::create_dir(&cgroup.0).is_ok() {
            // Kernels before 5.14 cannot kill a cgroup.
            if cgroup.0.join("cgroup.kill").exists() {
                return Ok(Some(cgroup));
            }
            cgroup.remove();
        }
        fs::remove_file(&note).map_err(Error::file("remove", &note))?;
        Ok(None)
    }

    /// Takes back what [`Cgroup::create`] did, for a tree that could not join it.
    pub(super) fn discard(&self, dir: &Path) {
        // A note that stays names a cgroup that is not there, which nobody minds.
        let _ = fs::remove_file(dir.join(files::CGROUP));
        self.remove();
    }

    /// Finds the cgroup that a supervisor of this folder made, if it is still there.
    pub(super) fn find(dir: &Path) -> Option<Self> {
        let path = PathBuf::from(fs::read_to_string(dir.join(files::CGROUP)).ok()?);
        let ours = path.file_name()?.to_str()?.starts_with("muster-");
        (ours && path.is_dir()).then_some(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Kills every process in it at once, also those that are being forked.
    pub(super) fn kill(&self) {
        // Failure shows itself: `is_empty` stays false.
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
    }

    /// Says whether no process is left in it or below it.
    pub(super) fn is_empty(&self) -> bool {
        match fs::read_to_string(self.0.join("cgroup.events")) {
            Ok(events) => events.lines().any(|line| line == "populated 0"),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    /// Removes it with whatever cgroups the agent made below. Leaves it if processes are in it.
    pub(super) fn remove(&self) {
        remove_below(&self.0);
    }
}

fn remove_below(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_below(&entry.path());
        }
    }
    // An empty folder that stays behind costs a few kilobytes of the kernel and harms nobody.
    let _ = fs::remove_dir(path);
}

/// Joins a cgroup; called by the process that is about to become the agent.
pub(super) fn join(cgroup: &Path) -> io::Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0")
}

/// Finds this process's cgroup2 folder from `/proc/self/mountinfo` and `/proc/self/cgroup`.
fn own_cgroup(mounts: &str, groups: &str) -> Option<PathBuf> {
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        if !kind.starts_with("cgroup2 ") {
            return None;
        }
        let fields: Vec<&str> = place.split(' ').collect();
        // In a container the mount may show only a part of the hierarchy.
        let (root, mount) = (fields.get(3)?, fields.get(4)?);
        let below = Path::new(group).strip_prefix(root).ok()?;
        Some(Path::new(mount).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
24 1 0:22 / /proc rw - proc proc rw
31 30 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
36 30 0:32 /box /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
";

    #[test]
    fn the_own_cgroup_is_found_below_the_mount() {
        let own = |groups| own_cgroup(MOUNTS, groups);
        assert_eq!(
            own("3:pids:/x\n0::/box/a/b\n"),
            Some("/sys/fs/cgroup/unified/a/b".into())
        );
        assert_eq!(own("0::/elsewhere\n"), None);
        assert_eq!(own("3:pids:/x\n"), None);
        assert_eq!(own_cgroup("", "0::/\n"), None);
    }

    #[test]
    fn a_note_that_names_another_cgroup_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("user.slice");
        fs::create_dir(&other).unwrap();
        fs::write(dir.path().join(files::CGROUP), other.to_str().unwrap()).unwrap();
        assert_eq!(Cgroup::find(dir.path()), None);
    }
}
