//! What can go wrong around a supervisor.

use std::io;
use std::path::{Path, PathBuf};

/// Says what was being done, and to what, when it failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the attempt's folder could not be used.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file of the attempt's folder does not hold what it should.
    #[error("cannot understand {}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: serde_json::Error,
    },
    /// A file of the attempt's folder is larger than it can honestly be.
    #[error("{} is larger than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The largest size that is read.
        limit: u64,
    },
    /// The kernel refused something the supervisor cannot do without.
    #[error("cannot {doing}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The launch could never work.
    #[error("cannot launch: {0}")]
    InvalidLaunch(&'static str),
    /// Another supervisor holds the folder.
    #[error("{} is held by another supervisor", .0.display())]
    Held(PathBuf),
    /// The folder was used before; a folder serves one launch.
    #[error("{} has already been used for a launch", .0.display())]
    Used(PathBuf),
    /// The spool of output is damaged from this byte on; what came before is sound.
    #[error("{} is damaged at byte {offset}", path.display())]
    Damaged {
        /// The spool.
        path: PathBuf,
        /// Where the first damaged record begins.
        offset: u64,
    },
}

impl Error {
    pub(super) fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File {
            doing,
            path: path.to_owned(),
            source,
        }
    }

    pub(super) fn system<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System {
            doing,
            source: source.into(),
        }
    }
}
