//! Which seeds have been run, on disk, so that a long search can be cut off and taken up again.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ranges::Ranges;
use crate::runner::Failing;

/// Names this simulator: another one would not let the same happen for the same seed.
#[must_use]
pub const fn fingerprint() -> &'static str {
    concat!(
        env!("CARGO_PKG_VERSION"),
        "-",
        env!("SIMULATOR_FINGERPRINT")
    )
}

/// A file of progress could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read the progress in {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("write the progress to {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is no file of progress: {reason}", path.display())]
    Form { path: PathBuf, reason: String },
    /// What it says is true of another simulator.
    #[error("{} was written by simulator {theirs}, and this is {}", path.display(), fingerprint())]
    Foreign { path: PathBuf, theirs: String },
}

/// What a file of progress says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Seeds that were run to their end, those that failed included.
    pub done: Ranges,
    pub failures: Vec<Failing>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    simulator: String,
    done: Vec<(u64, u64)>,
    failed: Vec<Failing>,
}

impl Progress {
    /// Reads a file; one that is not there says that nothing is done.
    ///
    /// # Errors
    /// It cannot be read, is damaged, or was written by another simulator.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => {
                let path = path.to_owned();
                return Err(Error::Read { path, source });
            }
        };
        let no_progress = |reason: String| Error::Form {
            path: path.to_owned(),
            reason,
        };
        let form: Form =
            serde_json::from_str(&text).map_err(|error| no_progress(error.to_string()))?;
        if form.simulator != fingerprint() {
            return Err(Error::Foreign {
                path: path.to_owned(),
                theirs: form.simulator,
            });
        }
        if let Some((start, end)) = form.done.iter().find(|(start, end)| start >= end) {
            return Err(no_progress(format!("{start}..{end} is no range")));
        }
        Ok(Self {
            done: form.done.into_iter().map(|(a, b)| a..b).collect(),
            failures: form.failed,
        })
    }

    /// Writes the file anew; after a crash it holds either what it held before, or all of this.
    ///
    /// # Errors
    /// The file, or one beside it whose name ends in `.new`, cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let form = Form {
            simulator: fingerprint().to_owned(),
            done: self
                .done
                .iter()
                .map(|range| (range.start, range.end))
                .collect(),
            failed: self.failures.clone(),
        };
        let replace = || -> io::Result<()> {
            let text = serde_json::to_string(&form)?;
            let mut beside = path.as_os_str().to_owned();
            beside.push(".new");
            let beside = PathBuf::from(beside);
            let mut file = File::create(&beside)?;
            file.write_all(text.as_bytes())?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&beside, path)
        };
        replace().map_err(|source| Error::Write {
            path: path.to_owned(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("progress");
        (folder, path)
    }

    fn some() -> Progress {
        Progress {
            done: [0..10, 20..30].into_iter().collect(),
            failures: vec![Failing {
                seed: 7,
                at_ms: 12,
                rule: "one winner".to_owned(),
                what: "two".to_owned(),
            }],
        }
    }

    #[test]
    fn what_was_written_is_read_again_and_nothing_is_left_beside_it() {
        let (folder, path) = file();
        assert_eq!(Progress::read(&path).unwrap(), Progress::default());
        some().write(&path).unwrap();
        assert_eq!(Progress::read(&path).unwrap(), some());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_writer_left_beside_the_file_is_not_believed() {
        let (_folder, path) = file();
        some().write(&path).unwrap();
        fs::write(path.with_extension("new"), "{\"simulator\":").unwrap();
        assert_eq!(Progress::read(&path).unwrap(), some());
        some().write(&path).unwrap();
    }

    #[test]
    fn another_simulators_progress_is_refused_by_name() {
        let (_folder, path) = file();
        some().write(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace(fingerprint(), "0.0.9-feed")).unwrap();
        let refused = Progress::read(&path).unwrap_err().to_string();
        assert!(refused.contains("0.0.9-feed") && refused.contains(fingerprint()));
    }

    #[test]
    fn a_damaged_file_is_refused_wherever_it_is_cut() {
        let (_folder, path) = file();
        some().write(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        for end in 0..text.trim_end().len() {
            fs::write(&path, &text[..end]).unwrap();
            assert!(
                matches!(Progress::read(&path), Err(Error::Form { .. })),
                "{end}"
            );
        }
        fs::write(&path, text.replace("[20,30]", "[30,20]")).unwrap();
        assert!(matches!(Progress::read(&path), Err(Error::Form { .. })));
    }
}
