//! What can go wrong when Muster runs git.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::names::{ObjectId, RefName};
use crate::version::{MINIMUM_VERSION, Version};

/// Why something asked of git was not done.
///
/// Expected answers are not errors: a merge conflict, a ref that has moved and a refused push are
/// values of the functions that can give them.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// No `git` in any folder of `PATH`.
    #[error("cannot find a git executable in PATH; install git {MINIMUM_VERSION} or newer")]
    NotFound,
    /// The executable is older than Muster needs.
    #[error("git at {} is version {found}, but Muster needs {MINIMUM_VERSION} or newer", executable.display())]
    TooOld {
        /// The executable that was asked.
        executable: PathBuf,
        /// The version it reported.
        found: Version,
    },
    /// The executable does not say which version it is.
    #[error("cannot read a version from what {} printed: {output:?}", executable.display())]
    UnknownVersion {
        /// The executable that was asked.
        executable: PathBuf,
        /// The beginning of what it printed.
        output: String,
    },
    /// The process could not be started or talked to; the command may have had effects.
    #[error("cannot run `{command}`")]
    Process {
        /// The arguments, without secrets.
        command: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The command took longer than it may; it was killed with its children and may have had effects.
    #[error("`{command}` was stopped after {} s", after.as_secs())]
    TimedOut {
        /// The arguments, without secrets.
        command: String,
        /// How long it ran.
        after: Duration,
    },
    /// The command printed more than the caller is ready to hold; it was killed.
    #[error("`{command}` printed more than {limit_bytes} bytes")]
    OutputTooLong {
        /// The arguments, without secrets.
        command: String,
        /// The bound that was passed.
        limit_bytes: usize,
    },
    /// The command said no.
    #[error("`{command}` failed ({}): {stderr}", exit_text(*exit_code))]
    Failed {
        /// The arguments, without secrets.
        command: String,
        /// The exit code; `None` when a signal ended it.
        exit_code: Option<i32>,
        /// The trimmed and bounded end of its standard error, without secrets.
        stderr: String,
    },
    /// The command succeeded but printed something that cannot be understood.
    #[error("cannot understand the output of `{command}`: {what}")]
    Unexpected {
        /// The arguments, without secrets.
        command: String,
        /// What was wrong with it.
        what: String,
    },
    /// A file or folder could not be used.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was being done, as in "create".
        action: &'static str,
        /// To which file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A text is not an object id.
    #[error("{text:?} is not an object id: it needs 40 or 64 lowercase hexadecimal digits")]
    InvalidObjectId {
        /// The beginning of the text.
        text: String,
    },
    /// A text may not name a ref.
    #[error("{name:?} cannot name a git ref: {reason}")]
    InvalidRefName {
        /// The beginning of the text.
        name: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// A name or address cannot stand in a commit.
    #[error("{text:?} cannot be the {part} of an author: {reason}")]
    InvalidIdentity {
        /// "name" or "email".
        part: &'static str,
        /// The beginning of the text.
        text: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// The address of a remote cannot be used.
    #[error("cannot use the remote address {url:?}: {reason}")]
    InvalidRemote {
        /// The address, without a password.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The repository does not have what the text names.
    #[error("{} has no commit called {revision:?}", repository.display())]
    UnknownRevision {
        /// The folder of the repository.
        repository: PathBuf,
        /// What was asked for.
        revision: String,
    },
    /// The two sides have no common history, so there is nothing to merge by.
    #[error("commits {ours} and {theirs} share no history")]
    Unrelated {
        /// The side merged into.
        ours: ObjectId,
        /// The side merged in.
        theirs: ObjectId,
    },
    /// The remote answered, but does not give the commit that was asked for.
    #[error("remote {url} does not have commit {commit} behind {name}")]
    CommitNotOnRemote {
        /// The address of the remote, without a password.
        url: String,
        /// The ref that was fetched.
        name: RefName,
        /// The commit that was looked for.
        commit: ObjectId,
    },
    /// A folder already holds something, and creating would overwrite it.
    #[error("{} already exists and is not empty", path.display())]
    Occupied {
        /// The folder.
        path: PathBuf,
    },
    /// A workspace was left half made, or is not one.
    #[error("{} is not a complete workspace: {reason}", path.display())]
    NotAWorkspace {
        /// The folder.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// What an agent left holds something that a commit cannot.
    #[error(
        "the result cannot be committed: {what}; remove it, rename it, or list it in .gitignore"
    )]
    Unkeepable {
        /// What git says about each, separated by semicolons.
        what: String,
    },
    /// There is more new content than a result may have.
    #[error(
        "the result has {} of new and changed files, above the limit of {}; the largest: {largest}. \
         List it in .gitignore or keep it elsewhere, or raise the limit of the worker: \
         --change-limit or MUSTER_CHANGE_LIMIT",
        megabytes(*bytes),
        megabytes(*limit_bytes)
    )]
    ChangeTooLarge {
        /// How much there is.
        bytes: u64,
        /// How much there may be.
        limit_bytes: u64,
        /// The largest files with their sizes.
        largest: String,
    },
}

/// Gives a size for people; at least one, so that nothing looks like nothing.
#[must_use]
pub fn megabytes(bytes: u64) -> String {
    if bytes < 10_000_000 {
        format!("{} kB", bytes.div_ceil(1_000))
    } else {
        format!("{} MB", bytes / 1_000_000)
    }
}

impl GitError {
    /// Tells whether the content of a work tree is the reason: repeating changes nothing.
    #[must_use]
    pub fn is_about_content(&self) -> bool {
        matches!(self, Self::Unkeepable { .. } | Self::ChangeTooLarge { .. })
    }

    /// Wraps what the operating system said about a file or folder.
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }

    /// Says whether the same call may succeed later without anybody changing anything.
    ///
    /// True for a process that could not be started or was too slow; a refusal by git itself is
    /// not looked into, because its text is for people.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Process { .. } | Self::TimedOut { .. })
    }
}

fn exit_text(exit_code: Option<i32>) -> String {
    exit_code.map_or_else(
        || "killed by a signal".to_owned(),
        |code| format!("exit code {code}"),
    )
}
