//! How much disk the processes of a lease may take: a size that is looked at again and again, not a
//! quota. A program can be over it for as long as a look and the pause before it take.

use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, open, openat, openat2, statat,
};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

/// Shortest pause between two looks.
const PAUSE: Duration = Duration::from_secs(2);
/// A look may take this part of the time: many files are looked at less often.
const SHARE: u32 = 20;
/// Folders that wait to be looked into; what is beyond counts nothing.
const WAITING_MAX: usize = 200_000;
/// What the kernel counts blocks in.
const BLOCK_BYTES: u64 = 512;

/// What is looked at, and how much it may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Allowance {
    pub(crate) bytes: u64,
    pub(crate) folders: Vec<PathBuf>,
}

impl Allowance {
    /// Waits until the folders take more, and tells how much was found by then.
    pub(super) async fn exceeded(self) -> u64 {
        let cancel = CancellationToken::new();
        let _cancelled_with_this = cancel.clone().drop_guard();
        loop {
            tokio::time::sleep(PAUSE).await;
            let began = Instant::now();
            let (this, is_over) = (self.clone(), cancel.clone());
            let look = move || taken(&this.folders, this.bytes, &|| is_over.is_cancelled());
            // Fails only if it panicked.
            let found = tokio::task::spawn_blocking(look).await.unwrap_or_default();
            if found > self.bytes {
                return found;
            }
            tokio::time::sleep(began.elapsed() * SHARE).await;
        }
    }
}

/// Adds up what is on disk below folders, until it is more than `enough` or nobody wants to know.
///
/// Links are not followed and other file systems not entered, whatever changes meanwhile. A file
/// with several names counts in parts; holes count nothing, and neither does what was deleted and is
/// still open, or lies deeper than a path can name.
pub(super) fn taken(folders: &[PathBuf], enough: u64, is_over: &dyn Fn() -> bool) -> u64 {
    let mut bytes = 0;
    for folder in folders {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(root) = open(folder, flags, Mode::empty()) else {
            continue;
        };
        let Ok(device) = fstat(&root).map(|found| found.st_dev) else {
            continue;
        };
        let mut waiting: VecDeque<PathBuf> = [PathBuf::from(".")].into();
        while let Some(path) = waiting.pop_back() {
            if is_over() {
                return bytes;
            }
            let Ok(mut inside) = enter(&root, &path).and_then(Dir::new) else {
                continue;
            };
            while let Some(Ok(entry)) = inside.read() {
                let name: CString = entry.file_name().to_owned();
                if matches!(name.to_bytes(), b"." | b"..") {
                    continue;
                }
                let Ok(found) = inside
                    .fd()
                    .and_then(|fd| statat(fd, &name, AtFlags::SYMLINK_NOFOLLOW))
                else {
                    continue;
                };
                let size = u64::try_from(found.st_blocks).unwrap_or(0) * BLOCK_BYTES;
                let is_folder = FileType::from_raw_mode(found.st_mode).is_dir();
                if is_folder && found.st_dev == device && waiting.len() < WAITING_MAX {
                    let name = std::ffi::OsStr::from_bytes(name.to_bytes());
                    waiting.push_back(path.join(name));
                }
                let names = if is_folder { 1 } else { wide(found.st_nlink) };
                bytes += size / names.max(1);
                if bytes > enough {
                    return bytes;
                }
            }
        }
    }
    bytes
}

/// Widens a number whose type is another on each architecture.
fn wide(number: impl Into<u64>) -> u64 {
    number.into()
}

/// Opens a folder below another, through no link.
fn enter(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match openat2(root, path, flags, Mode::empty(), within) {
        // Some containers do not let it through; a link on the way then leads astray, which only
        // makes the sum wrong.
        Err(Errno::NOSYS | Errno::PERM) => openat(root, path, flags, Mode::empty()),
        opened => opened,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn all(folder: &Path) -> u64 {
        taken(&[folder.to_owned()], u64::MAX, &|| false)
    }

    #[test]
    fn files_count_once_and_links_lead_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("big"), vec![1; 3_000_000]).unwrap();
        let inside = folder.path().join("a/b");
        std::fs::create_dir_all(&inside).unwrap();
        std::fs::write(inside.join("file"), vec![1; 1_000_000]).unwrap();
        std::fs::hard_link(inside.join("file"), folder.path().join("again")).unwrap();
        symlink(outside.path(), inside.join("link")).unwrap();
        symlink(outside.path().join("big"), folder.path().join("big")).unwrap();
        symlink("..", inside.join("loop")).unwrap();
        let hole = std::fs::File::create(inside.join("hole")).unwrap();
        hole.set_len(1 << 40).unwrap();
        let found = all(folder.path());
        assert!((1_000_000..1_100_000).contains(&found), "{found}");
        // A folder that is a link itself is not looked into.
        symlink(outside.path(), folder.path().join("root")).unwrap();
        assert_eq!(all(&folder.path().join("root")), 0);
    }

    #[test]
    fn a_look_ends_when_it_has_found_enough_or_nobody_wants_to_know() {
        let folder = tempfile::tempdir().unwrap();
        for name in 0..20 {
            std::fs::write(folder.path().join(name.to_string()), vec![1; 100_000]).unwrap();
        }
        let folders = [folder.path().to_owned()];
        let found = taken(&folders, 300_000, &|| false);
        assert!((300_000..500_000).contains(&found), "{found}");
        assert_eq!(taken(&folders, u64::MAX, &|| true), 0);
        assert_eq!(taken(&[folder.path().join("gone")], 1, &|| false), 0);
    }

    #[test]
    fn a_tree_deeper_than_a_path_is_looked_at_as_far_as_a_path_goes() {
        let folder = tempfile::tempdir().unwrap();
        let script = "i=0; while [ $i -lt 60 ]; do n=$(printf '%0200d' $i); mkdir $n; cd -P $n; \
                      head -c 50000 /dev/zero | tr '\\0' x > f; i=$((i+1)); done";
        let made = std::process::Command::new("sh")
            .args(["-c", script])
            .current_dir(folder.path())
            .status()
            .unwrap();
        assert!(made.success());
        let found = all(folder.path());
        assert!(found > 15 * 50_000, "{found}");
        let removed = std::process::Command::new("rm")
            .args(["-rf", "--"])
            .arg(folder.path())
            .status()
            .unwrap();
        assert!(removed.success());
    }
}
