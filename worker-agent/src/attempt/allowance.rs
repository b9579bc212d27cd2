//! How much disk the processes of a lease may take: a size that is looked at again and again, not a
//! quota. A program can be over it for as long as a look and the pause before it take.

use std::collections::VecDeque;
use std::ffi::CString;
use std::fmt;
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
    bytes: u64,
    /// What the task says.
    asked: Option<u64>,
    folders: Vec<PathBuf>,
}

impl Allowance {
    /// Allows what was asked for, but never more than `bytes_max`, which the worker's operator set.
    pub(crate) fn new(asked: Option<u64>, bytes_max: u64, folders: Vec<PathBuf>) -> Self {
        Self {
            bytes: asked.unwrap_or(bytes_max).min(bytes_max),
            asked,
            folders,
        }
    }

    /// Tells whether the worker's maximum is what counts, though the task asks for more.
    pub(super) fn is_below_what_was_asked(&self) -> bool {
        self.asked.is_some_and(|asked| asked > self.bytes)
    }

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

/// Says how much is allowed, and by whom.
impl fmt::Display for Allowance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.bytes;
        match self.asked {
            Some(asked) if asked > bytes => write!(
                f,
                "{bytes} are allowed (`--disk-limit` of the worker, which is the most there; `disk` \
                 of the task asks for {asked})"
            ),
            Some(_) => write!(f, "{bytes} are allowed (`disk` of the task)"),
            None => write!(f, "{bytes} are allowed (`--disk-limit` of the worker)"),
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
    fn a_task_may_lower_the_workers_limit_and_not_raise_it() {
        let allowance = |asked| Allowance::new(asked, 50, Vec::new());
        for (asked, bytes, lowered, said) in [
            (None, 50, false, "(`--disk-limit` of the worker)"),
            (Some(8), 8, false, "(`disk` of the task)"),
            (Some(50), 50, false, "(`disk` of the task)"),
            (Some(51), 50, true, "`disk` of the task asks for 51)"),
        ] {
            let allowance = allowance(asked);
            assert_eq!(allowance.bytes, bytes);
            assert_eq!(allowance.is_below_what_was_asked(), lowered);
            let said_here = allowance.to_string();
            assert!(
                said_here.starts_with(&format!("{bytes} are allowed")),
                "{said_here}"
            );
            assert!(said_here.ends_with(said), "{said_here}");
        }
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
