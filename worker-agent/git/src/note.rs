//! What people should know about a snapshot.

use std::fmt;

use crate::names::ObjectId;

/// How many digits of a commit id people are shown.
const SHORT_ID_DIGITS: usize = 12;

/// Something about a snapshot that people should know; prints as one sentence with the way out.
///
/// Bytes of paths that are not UTF-8 are replaced.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SnapshotNote {
    /// A repository inside the tree was taken in as plain files, without its history.
    NestedRepository {
        /// Its path.
        path: String,
    },
    /// A repository inside the tree is nested too deep or cannot be read, and was left out.
    LeftOut {
        /// Its path.
        path: String,
    },
    /// A file or folder could not be read, and is as it was in the snapshot before.
    Unreadable {
        /// What git says about it.
        message: String,
    },
    /// Nobody had the permission to read it, so that permission was given.
    MadeReadable {
        /// Its path.
        path: String,
    },
    /// It is neither a file, a folder nor a symbolic link, and git cannot keep it.
    Special {
        /// Its path.
        path: String,
        /// What it is, as in "a socket".
        kind: &'static str,
    },
    /// A folder with nothing in it, which git cannot keep.
    EmptyFolder {
        /// Its path.
        path: String,
    },
    /// Line endings were made what the repository's attributes ask for, which cannot be undone.
    LineEndings {
        /// Its path.
        path: String,
    },
    /// Its attributes name a filter program, which is never run here.
    FilterNotRun {
        /// Its path.
        path: String,
        /// Name of the filter.
        filter: String,
    },
    /// Conflict markers were left in a file.
    ConflictMarkers {
        /// Its path and line, as in `src/a.rs:12`.
        place: String,
    },
    /// A submodule is at another commit, which has to be in the submodule's own remote.
    SubmoduleMoved {
        /// Its path.
        path: String,
        /// The commit it is at now.
        to: ObjectId,
    },
    /// A submodule was checked out; edits in it that it has not committed are not kept.
    SubmoduleCheckedOut {
        /// Its path.
        path: String,
    },
    /// Files stand where a submodule was, and are part of the result in its place.
    SubmoduleReplaced {
        /// Its path.
        path: String,
    },
    /// The agent's own commits were not kept, only their content.
    HistoryLeft {
        /// Why.
        reason: String,
    },
    /// Commits on a branch of the agent, under a tag or stashed, but not in what it left checked out.
    LeftBeside {
        /// What git calls it, as in `refs/heads/x` or `stash@{0}`.
        name: String,
        /// Its commit.
        commit: ObjectId,
    },
}

impl fmt::Display for SnapshotNote {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NestedRepository { path } => write!(
                out,
                "{path:?} is a repository of its own: its files are part of the result, its history \
                 is not; declare it in .gitmodules to have it as a submodule"
            ),
            Self::LeftOut { path } => write!(
                out,
                "{path:?} is not part of the result: a repository that is nested too deep or cannot \
                 be read"
            ),
            Self::Unreadable { message } => write!(out, "not part of the result: {message}"),
            Self::MadeReadable { path } => write!(
                out,
                "{path:?} could not be read by its owner and was made readable; git keeps no \
                 permissions but the executable bit"
            ),
            Self::Special { path, kind } => {
                write!(
                    out,
                    "{path:?} is {kind}, which git cannot keep; it is left out"
                )
            }
            Self::EmptyFolder { path } => write!(
                out,
                "the folder {path:?} is empty, which git cannot keep; put a file into it"
            ),
            Self::LineEndings { path } => write!(
                out,
                "line endings of {path:?} were made LF, as .gitattributes asks for; mark it `-text` \
                 to keep its bytes"
            ),
            Self::FilterNotRun { path, filter } => write!(
                out,
                "{path:?} is committed byte for byte: its filter {filter:?} is not run by Muster"
            ),
            Self::ConflictMarkers { place } => {
                write!(out, "a conflict marker was left behind at {place}")
            }
            Self::SubmoduleMoved { path, to } => write!(
                out,
                "the submodule {path:?} is at {} now; Muster does not push it, so that commit has \
                 to be in the submodule's own remote",
                short(*to)
            ),
            Self::SubmoduleCheckedOut { path } => write!(
                out,
                "the submodule {path:?} was checked out; only its commit is part of the result, not \
                 edits in it"
            ),
            Self::SubmoduleReplaced { path } => write!(
                out,
                "the submodule {path:?} was not checked out, and the files that were put there take \
                 its place; if that is not meant, let the task begin with `git submodule update \
                 --init`"
            ),
            Self::HistoryLeft { reason } => write!(
                out,
                "the commits that the agent made are not kept, only their content: {reason}"
            ),
            Self::LeftBeside { name, commit } => write!(
                out,
                "{} on {name} is not in what the agent left checked out, and not part of the result",
                short(*commit)
            ),
        }
    }
}

fn short(commit: ObjectId) -> String {
    let mut id = commit.to_string();
    id.truncate(SHORT_ID_DIGITS);
    id
}

#[cfg(test)]
mod tests {
    use super::SnapshotNote;

    #[test]
    fn a_note_is_one_line_whatever_a_path_holds() {
        let path = "a\n\u{1b}[31mb".to_owned();
        let note = SnapshotNote::EmptyFolder { path }.to_string();
        assert_eq!(
            note,
            "the folder \"a\\n\\u{1b}[31mb\" is empty, which git cannot keep; put a file into it"
        );
    }
}
