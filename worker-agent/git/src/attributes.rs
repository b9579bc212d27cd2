//! What a repository's attributes do to files between the work tree and a commit.
//!
//! A work tree is checked out and committed as git does it: line endings and encodings as the
//! repository's `.gitattributes` say, but no filter program is ever run. Two things differ from
//! `git add --all`, for the same end, that what lands is what was made: a file that nobody has
//! touched stays as it is in the base, even if git would have stored it otherwise; and where bytes
//! were changed on the way, that is told.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use tokio::fs;

use crate::error::GitError;
use crate::names::ObjectId;
use crate::note::SnapshotNote;
use crate::workspace::{Workspace, with_work_tree};

/// How much of a list of changed files is held, in bytes: more than 500 000 files.
const CHANGED_BYTES_MAX: usize = 64 << 20;
/// Largest file that is compared with what was checked out; a larger one counts as changed.
const COMPARED_BYTES_MAX: u64 = 32 << 20;
/// How much of old content is held at a time, in bytes.
const BATCH_BYTES_MAX: u64 = 64 << 20;

/// A file whose entry in the index differs from the one of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Changed {
    pub(crate) path: PathBuf,
    /// What it was, if it was a file and is one.
    old: Option<ObjectId>,
    /// What it is, unless it is gone or a submodule.
    pub(crate) new: Option<ObjectId>,
    new_mode: String,
}

/// What the attributes of a file ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Asked {
    /// Line endings become LF in a commit.
    text: bool,
    /// They become CRLF in the work tree.
    crlf: bool,
    /// The work tree has it in another encoding.
    encoding: bool,
    /// Of this filter program.
    filter: Option<String>,
}

impl Workspace {
    /// Lists what differs between a tree and the index; `None` if that is too much to look into.
    pub(crate) async fn changed_since(
        &self,
        tree: ObjectId,
    ) -> Result<Option<Vec<Changed>>, GitError> {
        let command = self
            .control
            .command()
            .args(["diff-index", "--cached", "--raw", "-z", "--no-renames"])
            .args(["--no-abbrev", "--ignore-submodules=none"])
            .arg(tree.to_string())
            .stdout_limit(CHANGED_BYTES_MAX);
        let described = command.describe();
        let output = command.run_truncated().await?;
        match output.exit_code {
            _ if output.truncated => Ok(None),
            Some(0) => Ok(Some(parse_raw(&output.stdout))),
            exit_code => Err(GitError::Failed {
                command: described,
                exit_code,
                stderr: output.stderr,
            }),
        }
    }

    /// Puts back the entries of files that are on disk as they were checked out.
    ///
    /// Git stores a file anew when its time stamp leaves a doubt, and then converts line endings
    /// that the commit itself has never had converted: a task that changes nothing would change it.
    pub(crate) async fn restore_untouched(
        &self,
        changed: &[Changed],
    ) -> Result<BTreeSet<PathBuf>, GitError> {
        let files: Vec<&Changed> = changed.iter().filter(|file| file.old.is_some()).collect();
        let asked = self.asked_of(&files).await?;
        let mut candidates = Vec::new();
        for file in files {
            let asked = asked.get(&file.path).cloned().unwrap_or_default();
            let Some(old) = file.old.filter(|_| asked.text) else {
                continue;
            };
            let found = fs::symlink_metadata(self.work().join(&file.path)).await;
            let is_small =
                |found: &std::fs::Metadata| found.is_file() && found.len() <= COMPARED_BYTES_MAX;
            if found.as_ref().is_ok_and(is_small) {
                candidates.push((file, old, asked.crlf));
            }
        }
        let sizes = self
            .sizes_of(candidates.iter().map(|(_, old, _)| *old))
            .await?;
        let mut untouched = BTreeSet::new();
        let mut entries = Vec::new();
        let mut batch = Vec::new();
        let mut batch_bytes = 0;
        let mut sized = candidates.into_iter().zip(sizes).peekable();
        while let Some((candidate, size)) = sized.next() {
            if size <= COMPARED_BYTES_MAX {
                batch.push(candidate);
                batch_bytes += size;
            }
            if batch_bytes < BATCH_BYTES_MAX && sized.peek().is_some() {
                continue;
            }
            let contents = self
                .contents_of(batch.iter().map(|(_, old, _)| *old))
                .await?;
            for ((file, old, crlf), content) in batch.drain(..).zip(contents) {
                let on_disk = fs::read(self.work().join(&file.path)).await;
                let Ok(on_disk) = on_disk else { continue };
                if on_disk == content || (crlf && on_disk == with_crlf(&content)) {
                    let entry = format!("{} {old}\t", file.new_mode);
                    entries.extend_from_slice(entry.as_bytes());
                    entries.extend_from_slice(file.path.as_os_str().as_bytes());
                    entries.push(0);
                    untouched.insert(file.path.clone());
                }
            }
            batch_bytes = 0;
        }
        self.edit_index(entries).await?;
        Ok(untouched)
    }

    /// Says of which changed files the commit has other bytes than the disk, and why.
    pub(crate) async fn conversions(
        &self,
        changed: &[Changed],
    ) -> Result<Vec<SnapshotNote>, GitError> {
        let files: Vec<&Changed> = changed.iter().filter(|file| file.new.is_some()).collect();
        let asked = self.asked_of(&files).await?;
        let mut notes = Vec::new();
        let mut converted = Vec::new();
        for file in files {
            let asked = asked.get(&file.path).cloned().unwrap_or_default();
            let path = file.path.to_string_lossy().into_owned();
            if let Some(filter) = asked.filter {
                notes.push(SnapshotNote::FilterNotRun { path, filter });
            } else if let Some(new) = file.new
                && asked.text
                && !asked.crlf
                && !asked.encoding
            {
                converted.push((file, new));
            }
        }
        let sizes = self.sizes_of(converted.iter().map(|(_, new)| *new)).await?;
        for ((file, _), size) in converted.into_iter().zip(sizes) {
            let found = fs::symlink_metadata(self.work().join(&file.path)).await;
            if found.is_ok_and(|found| found.is_file() && found.len() != size) {
                let path = file.path.to_string_lossy().into_owned();
                notes.push(SnapshotNote::LineEndings { path });
            }
        }
        Ok(notes)
    }

    /// Asks what the attributes of the work tree say about files.
    async fn asked_of(&self, files: &[&Changed]) -> Result<BTreeMap<PathBuf, Asked>, GitError> {
        if files.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut paths = Vec::new();
        for file in files {
            paths.extend_from_slice(file.path.as_os_str().as_bytes());
            paths.push(0);
        }
        let output = with_work_tree(&self.control, self.work())
            .args(["check-attr", "-z", "--stdin"])
            .args(["text", "crlf", "eol", "working-tree-encoding", "filter"])
            .stdin(paths)
            .stdout_limit(8 * CHANGED_BYTES_MAX)
            .run_ok()
            .await?;
        Ok(parse_attributes(&output.stdout))
    }

    /// Gives the sizes of objects in the order asked; 0 for one that is not there.
    pub(crate) async fn sizes_of(
        &self,
        objects: impl Iterator<Item = ObjectId>,
    ) -> Result<Vec<u64>, GitError> {
        let asked: String = objects.map(|object| format!("{object}\n")).collect();
        if asked.is_empty() {
            return Ok(Vec::new());
        }
        let command = self
            .control
            .command()
            .args(["cat-file", "--batch-check=%(objectsize)"])
            .stdin(asked);
        let output = command.stdout_limit(CHANGED_BYTES_MAX).run_ok().await?;
        let text = output.text();
        Ok(text.lines().map(|size| size.parse().unwrap_or(0)).collect())
    }

    /// Gives the contents of objects in the order asked.
    async fn contents_of(
        &self,
        objects: impl Iterator<Item = ObjectId>,
    ) -> Result<Vec<Vec<u8>>, GitError> {
        let asked: String = objects.map(|object| format!("{object}\n")).collect();
        if asked.is_empty() {
            return Ok(Vec::new());
        }
        let command = self
            .control
            .command()
            .args(["cat-file", "--batch=%(objectsize)"])
            .stdin(asked);
        let limit = usize::try_from(2 * BATCH_BYTES_MAX).unwrap_or(usize::MAX);
        let output = command.stdout_limit(limit).run_ok().await?;
        Ok(parse_batch(&output.stdout))
    }
}

/// Reads `diff-index --raw -z`: ":mode mode id id status", then a path.
fn parse_raw(output: &[u8]) -> Vec<Changed> {
    let mut fields = output.split(|byte| *byte == 0);
    let mut changed = Vec::new();
    while let (Some(about), Some(path)) = (fields.next(), fields.next()) {
        let about = String::from_utf8_lossy(about);
        let mut about = about.trim_start_matches(':').split(' ');
        let (Some(old_mode), Some(new_mode), Some(old), Some(new)) =
            (about.next(), about.next(), about.next(), about.next())
        else {
            continue;
        };
        let are_files = old_mode.starts_with("100") && new_mode.starts_with("100");
        let is_content = new_mode.starts_with('1') && !new_mode.starts_with("16");
        changed.push(Changed {
            path: PathBuf::from(std::ffi::OsString::from_vec(path.to_vec())),
            old: ObjectId::from_hex(old.as_bytes()).filter(|_| are_files),
            new: ObjectId::from_hex(new.as_bytes()).filter(|_| is_content),
            new_mode: new_mode.to_owned(),
        });
    }
    changed
}

/// Reads `check-attr -z`: path, attribute and value in turn.
fn parse_attributes(output: &[u8]) -> BTreeMap<PathBuf, Asked> {
    let mut fields = output.split(|byte| *byte == 0);
    let mut found: BTreeMap<PathBuf, Asked> = BTreeMap::new();
    while let (Some(path), Some(name), Some(value)) = (fields.next(), fields.next(), fields.next())
    {
        if matches!(value, b"unspecified" | b"unset") {
            continue;
        }
        let path = PathBuf::from(std::ffi::OsString::from_vec(path.to_vec()));
        let asked = found.entry(path).or_default();
        match name {
            b"text" | b"crlf" => asked.text = true,
            b"eol" => {
                asked.text = true;
                asked.crlf = value == b"crlf";
            }
            b"working-tree-encoding" => asked.encoding = true,
            b"filter" => asked.filter = Some(String::from_utf8_lossy(value).into_owned()),
            _ => {}
        }
    }
    found
}

/// Reads `cat-file --batch=%(objectsize)`: a size in a line of its own, then so many bytes and a
/// line break.
fn parse_batch(mut output: &[u8]) -> Vec<Vec<u8>> {
    let mut contents = Vec::new();
    while let Some(end) = output.iter().position(|byte| *byte == b'\n') {
        let (line, rest) = output.split_at(end);
        let size = std::str::from_utf8(line)
            .ok()
            .and_then(|size| size.parse().ok());
        let rest = rest.get(1..).unwrap_or_default();
        match size {
            Some(size) => {
                contents.push(rest.get(..size).unwrap_or_default().to_vec());
                output = rest.get(size + 1..).unwrap_or_default();
            }
            // "<id> missing": no content equals what is on disk then.
            None => {
                contents.push(Vec::new());
                output = rest;
            }
        }
    }
    contents
}

/// Puts CR before every LF that has none, as a checkout does.
fn with_crlf(content: &[u8]) -> Vec<u8> {
    let mut converted = Vec::with_capacity(content.len());
    for byte in content {
        if *byte == b'\n' && converted.last() != Some(&b'\r') {
            converted.push(b'\r');
        }
        converted.push(*byte);
    }
    converted
}

/// Tells how many bytes of content differ, and which files have most of them, largest first.
pub(crate) fn largest(files: &mut [(PathBuf, u64)]) -> u64 {
    files.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
    files.iter().map(|(_, bytes)| bytes).sum()
}

/// Gives a path for people.
pub(crate) fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_read_by_their_sizes_whatever_they_hold() {
        let output = b"3\na\nb\n0\n\nabc missing\n2\n\n\n\n";
        let expected: [&[u8]; 4] = [b"a\nb", b"", b"", b"\n\n"];
        assert_eq!(parse_batch(output), expected);
    }

    #[test]
    fn only_lone_line_feeds_are_converted() {
        assert_eq!(with_crlf(b"a\nb\r\nc\n"), b"a\r\nb\r\nc\r\n");
    }

    #[test]
    fn attributes_that_are_unset_ask_for_nothing() {
        let output =
            b"a\0text\0auto\0a\0filter\0unset\0b\0eol\0crlf\0c\0text\0unset\0d\0filter\0lfs\0";
        let found = parse_attributes(output);
        let text = Asked {
            text: true,
            ..Asked::default()
        };
        assert_eq!(found.get(Path::new("a")), Some(&text));
        let crlf = Asked { crlf: true, ..text };
        assert_eq!(found.get(Path::new("b")), Some(&crlf));
        assert_eq!(found.get(Path::new("c")), None);
        let filter = found
            .get(Path::new("d"))
            .and_then(|asked| asked.filter.clone());
        assert_eq!(filter.as_deref(), Some("lfs"));
    }
}
