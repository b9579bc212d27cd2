//! What kind of file system a folder lies on, as far as a journal cares.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Magic numbers of network file systems, as `statfs` gives them. On these, locks or shared memory
/// do not hold between hosts, or a sync does not reach a disk.
const NETWORK: [(u64, &str); 14] = [
    (0x6969, "nfs"),
    (0x517B, "smb"),
    (0xFE53_4D42, "smb2"),
    (0xFF53_4D42, "cifs"),
    (0x0BD0_0BD0, "lustre"),
    (0x4750_4653, "gpfs"),
    (0x00C3_6400, "ceph"),
    (0x1983_0326, "beegfs"),
    (0x5346_414F, "afs"),
    (0x6B41_4653, "afs"),
    (0x7375_7245, "coda"),
    (0x2003_0528, "orangefs"),
    (0xAAD7_AAEA, "panfs"),
    (0x0102_1997, "9p"),
];
const FUSE: u64 = 0x6573_5546;
/// FUSE file systems that keep their files on a local disk. Any other may be a network's.
const FUSE_LOCAL: [&str; 6] = [
    "fuseblk",
    "fuse.fuse-overlayfs",
    "fuse.gocryptfs",
    "fuse.encfs",
    "fuse.ntfs-3g",
    "fuse.mergerfs",
];

/// Names the network file system that an existing folder lies on; `None` for a local one.
///
/// # Errors
/// The folder cannot be looked at.
pub(crate) fn network(folder: &Path) -> io::Result<Option<String>> {
    let folder = fs::canonicalize(folder)?;
    let stat = rustix::fs::statfs(&folder)?;
    #[expect(clippy::cast_sign_loss, reason = "only the low 32 bits mean something")]
    let magic = stat.f_type as u64 & 0xFFFF_FFFF;
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    Ok(network_kind(magic, &folder, mounts))
}

/// Names the network file system that a magic number stands for; `None` for a local one.
fn network_kind(magic: u64, folder: &Path, mounts: impl FnOnce() -> String) -> Option<String> {
    if magic == FUSE {
        let kind = mount_kind(&mounts(), folder).unwrap_or_else(|| "fuse".to_owned());
        return (!FUSE_LOCAL.contains(&kind.as_str())).then_some(kind);
    }
    NETWORK
        .iter()
        .find(|(number, _)| *number == magic)
        .map(|(_, name)| (*name).to_owned())
}

/// Finds the type of the mount that holds a folder in the text of `mountinfo`.
fn mount_kind(mounts: &str, folder: &Path) -> Option<String> {
    mounts
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let point = unescape(before.split(' ').nth(4)?);
            let kind = after.split(' ').next()?;
            folder
                .starts_with(&point)
                .then(|| (point.as_os_str().len(), kind.to_owned()))
        })
        // Of equal mount points the later one lies on top, and `max_by_key` takes the last.
        .max_by_key(|(length, _)| *length)
        .map(|(_, kind)| kind)
}

/// Undoes the octal escapes of `mountinfo`.
fn unescape(point: &str) -> PathBuf {
    PathBuf::from(
        point
            .replace("\\040", " ")
            .replace("\\011", "\t")
            .replace("\\012", "\n")
            .replace("\\134", "\\"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 21 0:40 / /home rw - fuse.sshfs ann@host: rw
31 30 0:41 / /home/ann/a\\040b rw master:3 - fuse.fuse-overlayfs x rw
32 21 0:42 / /scratch rw - fuse.juicefs y rw
";

    fn kind(magic: u64, folder: &str) -> Option<String> {
        network_kind(magic, Path::new(folder), || MOUNTS.to_owned())
    }

    #[test]
    fn network_file_systems_are_known_by_their_magic_numbers() {
        assert_eq!(kind(0x6969, "/srv").as_deref(), Some("nfs"));
        assert_eq!(kind(0x0BD0_0BD0, "/srv").as_deref(), Some("lustre"));
        for local in [0xEF53, 0x0102_1994, 0x9123_683E, 0x5846_5342, 0x794C_7630] {
            assert_eq!(kind(local, "/srv"), None, "{local:#x}");
        }
    }

    #[test]
    fn fuse_is_a_network_unless_its_mount_is_known_to_be_local() {
        assert_eq!(kind(FUSE, "/home/ann").as_deref(), Some("fuse.sshfs"));
        assert_eq!(kind(FUSE, "/home/ann/a b/c"), None);
        assert_eq!(kind(FUSE, "/scratch/x").as_deref(), Some("fuse.juicefs"));
        let unknown = network_kind(FUSE, Path::new("/x"), String::new);
        assert_eq!(unknown.as_deref(), Some("fuse"));
    }
}
