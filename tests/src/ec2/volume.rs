//! Volumes, which outlive the machines that they are attached to.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Sparse: what is not used takes nothing.
const BYTES: u64 = 4 * 1024 * 1024 * 1024;

/// A volume; its contents are gone with its value.
#[derive(Debug)]
pub(super) struct Volume {
    /// Its id.
    pub(super) id: String,
    /// Major and minor number of its device.
    pub(super) number: (u32, u32),
    device: PathBuf,
    file: PathBuf,
}

impl Volume {
    /// Makes an empty one, with its contents in a file of `folder`.
    pub(super) fn new(folder: &Path, id: &str) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let file = folder.join(id);
        File::create_new(&file)?.set_len(BYTES)?;
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(&file)
            .output()
            .context("run losetup")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "losetup: {said}");
        let device = PathBuf::from(String::from_utf8(output.stdout)?.trim());
        let number = rustix::fs::stat(&device)?.st_rdev;
        Ok(Self {
            id: id.to_owned(),
            number: (rustix::fs::major(number), rustix::fs::minor(number)),
            device,
            file,
        })
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // A machine that is just being killed may still have it mounted: it goes with that then.
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.device)
            .output();
        let _ = std::fs::remove_file(&self.file);
    }
}
