//! Disks that fail: rules for the preloaded library `tests/shims/disk.c`, which can be changed while
//! programs run, and small real disks for those who may mount them.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::process::Program;
use crate::shim::Shim;

/// `fsync` and `fdatasync`.
pub const SYNC: u64 = 1 << 0;
/// Writes and allocations.
pub const WRITE: u64 = 1 << 1;
/// Cutting files.
pub const CUT: u64 = 1 << 2;
/// Renaming, linking and removing.
pub const RENAME: u64 = 1 << 3;
/// Making files and folders.
pub const CREATE: u64 = 1 << 4;
/// Opening files for writing that are there.
pub const MODIFY: u64 = 1 << 5;
/// Reads.
pub const READ: u64 = 1 << 6;
/// What a full disk refuses.
pub const GROWING: u64 = WRITE | CREATE;
/// What a disk that became read-only refuses.
pub const CHANGING: u64 = WRITE | CUT | RENAME | CREATE | MODIFY;

/// No space left on device.
pub const ENOSPC: u64 = 28;
/// Input/output error.
pub const EIO: u64 = 5;
/// Read-only file system.
pub const EROFS: u64 = 30;
/// Disk quota exceeded.
pub const EDQUOT: u64 = 122;

/// Rules of one control file.
const RULES: usize = 8;
const TEXT: usize = 256;
const NUMBERS: usize = 16;
const RULE_BYTES: usize = NUMBERS * 8 + 3 * TEXT;
const AT_SEEN: u64 = 7 * 8;
const AT_BITTEN: u64 = 8 * 8;

/// What is to go wrong.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    /// Set of calls.
    pub calls: u64,
    /// The error they end with; 0 for none.
    pub error: u64,
    /// How long they take.
    pub delay: Duration,
    /// How many of them are spared first.
    pub after: u64,
    /// How many of them are hit; 0 for all.
    pub times: u64,
    /// How many bytes a write takes at most; 0 for all.
    pub short_bytes: u64,
    /// Beginning of the paths of the files.
    pub below: PathBuf,
    /// End of the paths of the files.
    pub ending: String,
    /// Short name of the program, 15 characters at the most; empty for any.
    pub program: String,
}

impl Rule {
    /// Lets `calls` on files below a folder end with an error.
    #[must_use]
    pub fn fail(calls: u64, error: u64, below: &Path) -> Self {
        Self {
            calls,
            error,
            below: below.to_owned(),
            ..Self::default()
        }
    }

    /// Lets syncs of files below a folder take their time.
    #[must_use]
    pub fn slow_sync(delay: Duration, below: &Path) -> Self {
        Self {
            calls: SYNC,
            delay,
            below: below.to_owned(),
            ..Self::default()
        }
    }
}

/// The rules of all programs that were [prepared](Faults::apply) with it.
#[derive(Debug)]
pub struct Faults {
    shim: Shim,
    control: PathBuf,
    file: File,
}

impl Faults {
    /// Makes a control file without rules in `folder`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn new(shim: &Shim, folder: &Path) -> Result<Self> {
        let control = folder.join("disk-faults");
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&control)
            .with_context(|| format!("make {}", control.display()))?;
        file.set_len((RULES * RULE_BYTES) as u64)?;
        Ok(Self {
            shim: shim.clone(),
            control,
            file,
        })
    }

    /// Lets a program, and whatever it starts, follow the rules.
    #[must_use]
    pub fn apply(&self, program: Program) -> Program {
        let mut program = program;
        program.variables.extend(self.variables());
        program
    }

    /// The variables that let a program follow the rules.
    #[must_use]
    pub fn variables(&self) -> [(OsString, OsString); 2] {
        [
            ("LD_PRELOAD".into(), self.shim.preload()),
            (
                "MUSTER_DISK_CONTROL".into(),
                self.control.clone().into_os_string(),
            ),
        ]
    }

    /// Begins a rule, in place of what was at `index`; its counts begin anew.
    ///
    /// # Errors
    /// There are not so many rules, or a text is too long.
    pub fn set(&self, index: usize, rule: &Rule) -> Result<()> {
        self.clear(index)?;
        let mut record = Vec::with_capacity(RULE_BYTES);
        let delay = u64::try_from(rule.delay.as_micros())?;
        let numbers = [
            0,
            rule.calls,
            rule.error,
            delay,
            rule.after,
            rule.times,
            rule.short_bytes,
        ];
        for number in numbers.into_iter().chain([0; NUMBERS - 7]) {
            record.extend_from_slice(&number.to_ne_bytes());
        }
        let below = rule.below.to_str().context("a path that is no text")?;
        for text in [below, &rule.ending, &rule.program] {
            ensure!(text.len() < TEXT, "too long for a rule: {text}");
            record.extend_from_slice(text.as_bytes());
            record.resize(record.len() + TEXT - text.len(), 0);
        }
        let at = offset(index);
        self.file.write_all_at(&record, at)?;
        // Last, so that no program sees half a rule.
        self.file.write_all_at(&1_u64.to_ne_bytes(), at)?;
        Ok(())
    }

    /// Ends a rule; its counts stay.
    ///
    /// # Errors
    /// There are not so many rules.
    pub fn clear(&self, index: usize) -> Result<()> {
        ensure!(index < RULES, "there are {RULES} rules");
        self.file
            .write_all_at(&0_u64.to_ne_bytes(), offset(index))?;
        Ok(())
    }

    /// Tells how many calls a rule was for, and how many of them it hit.
    ///
    /// # Errors
    /// The control file cannot be read.
    pub fn counts(&self, index: usize) -> Result<(u64, u64)> {
        let read = |at: u64| -> Result<u64> {
            let mut bytes = [0; 8];
            self.file.read_exact_at(&mut bytes, offset(index) + at)?;
            Ok(u64::from_ne_bytes(bytes))
        };
        Ok((read(AT_SEEN)?, read(AT_BITTEN)?))
    }
}

fn offset(index: usize) -> u64 {
    (index * RULE_BYTES) as u64
}

/// Why small disks cannot be mounted on this machine, if so.
#[must_use]
pub fn no_mounts() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root, to mount a small disk".to_owned());
    }
    let tried = tempfile::tempdir()
        .map_err(anyhow::Error::from)
        .and_then(|folder| Mounted::small(folder.path(), 64 * 1024));
    tried
        .err()
        .map(|error| format!("needs a disk of its own: {error:#}"))
}

/// A disk of its own; unmounted when dropped.
#[derive(Debug)]
pub struct Mounted {
    at: PathBuf,
}

impl Mounted {
    /// Mounts a disk of `bytes` at an empty folder.
    ///
    /// # Errors
    /// The system refuses.
    pub fn small(at: &Path, bytes: u64) -> Result<Self> {
        let size = format!("size={bytes},mode=0700");
        mount(&["-t", "tmpfs", "-o", &size, "muster-test"], at)?;
        Ok(Self { at: at.to_owned() })
    }

    /// Makes a folder with all that is in it a read-only disk.
    ///
    /// # Errors
    /// The system refuses.
    pub fn read_only(at: &Path) -> Result<Self> {
        mount(&["--bind", &at.to_string_lossy()], at)?;
        let mounted = Self { at: at.to_owned() };
        mount(&["-o", "remount,bind,ro"], at)?;
        Ok(mounted)
    }

    /// Fills the disk to its last byte with a file, which frees the space again when it is removed; what
    /// was given back since the last time too.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn fill(&self) -> Result<PathBuf> {
        use std::io::Write as _;
        let path = self.at.join("ballast");
        let mut file = File::options().create(true).append(true).open(&path)?;
        let block = vec![0xA5; 64 * 1024];
        for length in [block.len(), 4_096, 1] {
            let part = block.get(..length).unwrap_or_default();
            while file.write(part).is_ok_and(|written| written > 0) {}
        }
        Ok(path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: a process that is about to end may still be in it.
        let _ = Command::new("umount").arg("-l").arg(&self.at).output();
    }
}

fn mount(arguments: &[&str], at: &Path) -> Result<()> {
    let output = Command::new("mount")
        .args(arguments)
        .arg(at)
        .output()
        .context("run mount")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "mount {arguments:?} at {}: {said}",
        at.display()
    );
    Ok(())
}
