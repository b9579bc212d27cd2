//! What changed between two commits.

use crate::error::GitError;
use crate::names::ObjectId;
use crate::repository::{Repository, unexpected};

/// How much of the list of changed files is held, in bytes: some 100 000 files.
const CHANGES_BYTES_MAX: usize = 32 << 20;

/// What happened to a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// It is gone.
    Deleted,
    /// Its content or mode is different.
    Modified,
    /// It is something else now: a file, a symbolic link or a submodule.
    TypeChanged,
    /// It has another name, and perhaps other content.
    Renamed {
        /// The name it had, as git has it.
        from: Vec<u8>,
    },
}

/// One changed file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its path, as git has it; not always UTF-8.
    pub path: Vec<u8>,
    /// What happened to it.
    pub kind: ChangeKind,
    /// How many lines were added and deleted; `None` for binary files.
    pub lines: Option<(u64, u64)>,
}

/// What a patch holds of files that are not text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinaryFiles {
    /// That they differ.
    Named,
    /// What has changed, so that the patch can be applied.
    Whole,
}

/// A patch, perhaps cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// The unified diff, in the encoding of the files; not always UTF-8.
    pub bytes: Vec<u8>,
    /// Whether there was more than the allowed length.
    pub truncated: bool,
}

impl Repository {
    /// Lists the files that differ between two commits, with numbers of lines, renames found.
    pub async fn changes(&self, from: ObjectId, to: ObjectId) -> Result<Vec<Change>, GitError> {
        let command = self
            .diff_command(from, to, &["-M", "-z", "--raw", "--numstat"])
            .stdout_limit(CHANGES_BYTES_MAX);
        let described = command.describe();
        let output = command.run_ok().await?;
        parse_changes(&output.stdout)
            .ok_or_else(|| unexpected(described, "the two lists of files do not match"))
    }

    /// Gives the patch between two commits, cut at `bytes_max`.
    pub async fn patch(
        &self,
        from: ObjectId,
        to: ObjectId,
        binary: BinaryFiles,
        bytes_max: usize,
    ) -> Result<Patch, GitError> {
        let flags = ["-M", "-p", "--no-ext-diff", "--no-textconv", "--no-color"];
        let binary: &[&str] = match binary {
            BinaryFiles::Named => &[],
            BinaryFiles::Whole => &["--binary"],
        };
        let flags = [&flags[..], binary].concat();
        let command = self.diff_command(from, to, &flags).stdout_limit(bytes_max);
        let described = command.describe();
        let output = command.run_truncated().await?;
        if !output.truncated && output.exit_code != Some(0) {
            let (exit_code, stderr) = (output.exit_code, output.stderr);
            return Err(GitError::Failed {
                command: described,
                exit_code,
                stderr,
            });
        }
        Ok(Patch {
            bytes: output.stdout,
            truncated: output.truncated,
        })
    }

    /// Attributes come from the older side: the newer one must not choose what a reader sees.
    fn diff_command(
        &self,
        from: ObjectId,
        to: ObjectId,
        flags: &[&str],
    ) -> crate::command::GitCommand {
        self.command()
            .env("GIT_ATTR_SOURCE", from.to_string())
            .args(["diff-tree", "-r", "--ignore-submodules=none"])
            .args(flags)
            .args([from.to_string(), to.to_string()])
    }
}

/// Reads `--raw --numstat -z`: first a list of what happened, then one of numbers, in one order.
fn parse_changes(output: &[u8]) -> Option<Vec<Change>> {
    let mut fields = output
        .split(|byte| *byte == 0)
        .filter(|field| !field.is_empty())
        .peekable();
    let mut changes = Vec::new();
    while let Some(raw) = fields.next_if(|field| field.starts_with(b":")) {
        let status = *raw.rsplit(|byte| *byte == b' ').next()?.first()?;
        let path = fields.next()?.to_vec();
        let (path, kind) = match status {
            b'A' => (path, ChangeKind::Added),
            b'D' => (path, ChangeKind::Deleted),
            b'T' => (path, ChangeKind::TypeChanged),
            b'R' => (fields.next()?.to_vec(), ChangeKind::Renamed { from: path }),
            _ => (path, ChangeKind::Modified),
        };
        changes.push(Change {
            path,
            kind,
            lines: None,
        });
    }
    for change in &mut changes {
        // "added TAB deleted TAB path", or without the path and two more fields for a rename.
        let mut parts = fields.next()?.splitn(3, |byte| *byte == b'\t');
        let (added, deleted) = (number(parts.next()?), number(parts.next()?));
        if parts.next()?.is_empty() {
            fields.nth(1)?;
        }
        change.lines = added.zip(deleted);
    }
    Some(changes)
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{Change, ChangeKind, parse_changes};

    #[test]
    fn changes_are_read_with_their_numbers() {
        let output = b":100644 100644 a b M\0x\0:100644 100644 a b R090\0old\0new\0\
            :000000 100644 0 b A\0pic\0\x31\t2\tx\0\x33\t4\t\0old\0new\0-\t-\tpic\0";
        let change = |path: &str, kind, lines| Change {
            path: path.as_bytes().to_vec(),
            kind,
            lines,
        };
        assert_eq!(
            parse_changes(output).unwrap(),
            [
                change("x", ChangeKind::Modified, Some((1, 2))),
                change(
                    "new",
                    ChangeKind::Renamed {
                        from: b"old".to_vec()
                    },
                    Some((3, 4))
                ),
                change("pic", ChangeKind::Added, None),
            ]
        );
        assert_eq!(parse_changes(b""), Some(vec![]));
        assert_eq!(parse_changes(b":100644 100644 a b M\0x\0"), None);
    }
}
