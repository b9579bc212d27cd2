//! What tasks of a test leave in files outside of their repositories.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// A file to which each start of a task appends a line, so that a second start cannot hide.
#[derive(Clone, Debug)]
pub struct Ledger {
    path: PathBuf,
}

impl Ledger {
    /// Begins an empty one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn new(folder: &Path) -> Result<Self> {
        let path = folder.join("ledger");
        std::fs::write(&path, "")?;
        Ok(Self { path })
    }

    /// A line of shell that notes the start of an attempt.
    #[must_use]
    pub fn note(&self) -> String {
        self.note_as("")
    }

    /// As [`Ledger::note`], with something plain behind it.
    #[must_use]
    pub fn note_as(&self, what: &str) -> String {
        format!(
            "echo \"$MUSTER_TASK $MUSTER_ATTEMPT{what}\" >> {}",
            self.path.display()
        )
    }

    /// Counts the lines by their text, `TASK ATTEMPT`.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn lines(&self) -> Result<BTreeMap<String, usize>> {
        let text = std::fs::read_to_string(&self.path).context("read the ledger")?;
        let mut counts = BTreeMap::new();
        for line in text.lines() {
            *counts.entry(line.to_owned()).or_default() += 1;
        }
        Ok(counts)
    }
}

/// Doors that tasks wait before until the test opens them.
#[derive(Clone, Debug)]
pub struct Gates {
    folder: PathBuf,
}

impl Gates {
    /// Begins with all doors closed.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn new(folder: &Path) -> Result<Self> {
        let folder = folder.join("gates");
        std::fs::create_dir_all(&folder)?;
        Ok(Self { folder })
    }

    /// A line of shell that waits before a door.
    #[must_use]
    pub fn wait(&self, name: &str) -> String {
        format!(
            "until [ -e {} ]; do sleep 0.05; done",
            self.folder.join(name).display()
        )
    }

    /// Opens a door for good.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn open(&self, name: &str) -> Result<()> {
        std::fs::write(self.folder.join(name), "").with_context(|| format!("open gate {name}"))
    }
}
