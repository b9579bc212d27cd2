//! The clocks that one process sees, changed while it runs by the preloaded `tests/shims/clock.c`.
//!
//! What this reaches is all of Rust's standard library: the wall clock as tokens, certificates,
//! logs and the coordinator's start read it, and the monotonic clock of tokio's timers. It does not
//! reach CLOCK_BOOTTIME, which leases are counted with and which `rustix` reads without libc: that
//! one never jumps, and goes on while a machine sleeps, so it is the true one here as well.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::process::Program;
use crate::shim::Shim;

/// Clocks of the programs that were started with [`Clocks::variables`].
#[derive(Debug)]
pub struct Clocks {
    shim: Shim,
    control: PathBuf,
    file: File,
}

/// Why clocks cannot be changed on this machine, if so.
#[must_use]
pub fn missing(source: &Path) -> Option<String> {
    let folder = match tempfile::tempdir() {
        Ok(folder) => folder,
        Err(error) => return Some(format!("needs a temporary folder: {error}")),
    };
    Shim::compile(source, "clock", folder.path()).err()
}

impl Clocks {
    /// Makes true clocks whose control file `NAME.clock` lies in `folder`.
    ///
    /// # Errors
    /// The shim cannot be compiled or the file not be written.
    pub fn new(source: &Path, folder: &Path, name: &str) -> Result<Self> {
        let shim = Shim::compile(source, "clock", folder).map_err(anyhow::Error::msg)?;
        let control = folder.join(format!("{name}.clock"));
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&control)
            .with_context(|| format!("make {}", control.display()))?;
        file.write_all_at(&[0; 16], 0)?;
        Ok(Self {
            shim,
            control,
            file,
        })
    }

    /// The variables that let a program see these clocks.
    #[must_use]
    pub fn variables(&self) -> [(OsString, OsString); 2] {
        let control = self.control.clone().into_os_string();
        [
            ("LD_PRELOAD".into(), self.shim.preload()),
            ("MUSTER_TEST_CLOCK".into(), control),
        ]
    }

    /// Lets a program see these clocks.
    #[must_use]
    pub fn apply(&self, mut program: Program) -> Program {
        program.variables.extend(self.variables());
        program
    }

    /// Sets the wall clock to so many seconds after the true one, or before it if negative.
    ///
    /// # Errors
    /// The control file cannot be written.
    pub fn wall(&self, seconds: i64) -> Result<()> {
        self.write(0, seconds.saturating_mul(1_000_000_000))
    }

    /// Says how long the machine has slept in all: the monotonic clock does not count it. Only to
    /// be called while all programs stand still.
    ///
    /// # Errors
    /// The control file cannot be written.
    pub fn slept(&self, asleep: Duration) -> Result<()> {
        self.write(8, i64::try_from(asleep.as_nanos())?)
    }

    fn write(&self, at: u64, nanos: i64) -> Result<()> {
        let bytes = nanos.to_ne_bytes();
        self.file
            .write_all_at(&bytes, at)
            .with_context(|| format!("write {}", self.control.display()))
    }
}
