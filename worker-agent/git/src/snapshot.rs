//! Turning what an agent has left in its work tree into a commit.
//!
//! Everything in the work tree is hostile. Git is run with `control.git`, whose configuration names
//! no filter, hook or monitor. Submodules are kept away from git, because it would run `git status`
//! inside them, with *their* configuration. Repositories that the agent made inside the tree are
//! taken in as plain files, because a link to a commit that nobody else has would lose them.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use tokio::fs;

use crate::agent_history::{AgentHistory, last_line};
use crate::command::Output;
use crate::error::GitError;
use crate::history::{CommitTime, Identity};
use crate::names::{ObjectFormat, ObjectId};
use crate::note::SnapshotNote;
use crate::repository::object_id_from;
use crate::survey::Survey;
use crate::workspace::{Workspace, gitlinks, with_work_tree};

/// How deep repositories inside repositories are taken in; each level costs another pass.
const NESTING_MAX: usize = 8;
/// Most notes that a snapshot carries.
const NOTES_MAX: usize = 50;
/// How many things that cannot be taken in an error names.
const REFUSED_MAX: usize = 10;
/// How much of what git refuses to add is read, in bytes: some thousand files.
const REFUSALS_BYTES_MAX: usize = 1 << 20;
/// How much of a list of conflict markers is read, in bytes.
const MARKERS_BYTES_MAX: usize = 1 << 20;
/// What git says of a file that is not in the encoding that its attributes name.
const NOT_ENCODED: &str = "fatal: failed to encode";
/// A path that makes git treat the folder above it as an ordinary one; it never reaches a tree.
const PLACEHOLDER: &str = ".muster-placeholder";

/// What an agent's work tree looked like at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The tree of all files that are not ignored.
    pub tree: ObjectId,
    /// The commit of that tree; `None` if it is exactly the base's tree.
    pub commit: Option<ObjectId>,
    /// What is different from what one might expect; at most 50.
    pub notes: Vec<SnapshotNote>,
    /// A commit whose parents are what the agent has stashed, or left on other branches or under
    /// tags: with it they can be kept apart from the result. `None` if there is nothing, or it cannot
    /// be taken in; the notes tell.
    pub beside: Option<ObjectId>,
}

impl Snapshot {
    /// Names what could not be taken in, if anything.
    #[must_use]
    pub fn refused(&self) -> Option<String> {
        refused(&self.notes)
    }
}

fn refused<'a>(notes: impl IntoIterator<Item = &'a SnapshotNote>) -> Option<String> {
    let refused = notes.into_iter().filter_map(|note| match note {
        SnapshotNote::Unreadable { message } => Some(message.as_str()),
        SnapshotNote::LeftOut { path } => Some(path.as_str()),
        _ => None,
    });
    let refused: Vec<&str> = refused.take(REFUSED_MAX).collect();
    (!refused.is_empty()).then(|| refused.join("; "))
}

impl Workspace {
    /// Commits everything in the work tree that is not ignored, as it is now.
    ///
    /// The commit has the one given parent, whatever commits the agent made itself: those are
    /// included by content. Nothing is pushed and no ref names the commit. Repeating is cheap, since
    /// only files that changed are read, and safe; the same tree, parent, message, identity and time
    /// give the same id. Files that change meanwhile are taken in one of their states.
    pub async fn snapshot(
        &self,
        message: &str,
        identity: &Identity,
        time: CommitTime,
        parent: ObjectId,
    ) -> Result<Snapshot, GitError> {
        let mut known = self.nested.lock().await;
        let (tree, notes) = self.take(&mut known, self.base_tree).await?;
        let commit = if tree == self.base_tree {
            None
        } else {
            let control = &self.control;
            Some(
                control
                    .commit_tree(tree, &[parent], message, identity, time)
                    .await?,
            )
        };
        Ok(Snapshot {
            tree,
            commit,
            notes: notes.into_iter().take(NOTES_MAX).collect(),
            beside: None,
        })
    }

    /// Takes the work tree as the result of an agent that has ended.
    ///
    /// As [`Workspace::snapshot`], and besides: commits that the agent made on top of the base are
    /// kept as they are, with their authors, and what it did not commit is added on top as one more.
    /// Permissions that keep the owner from reading are given. It is an error if something that is
    /// not ignored cannot be taken in, or if there is more of it than the workspace may hold.
    pub async fn result(
        &self,
        message: &str,
        identity: &Identity,
        time: CommitTime,
    ) -> Result<Snapshot, GitError> {
        let mut known = self.nested.lock().await;
        self.check_work_tree().await?;
        let survey = Survey::take(self.work()).await?;
        let told = self.agent_history().await?;
        let control = &self.control;
        let (parent, parent_tree) = match told.history {
            AgentHistory::Kept(tip) => {
                self.remove_stale_lock().await?;
                // What the agent has committed is tracked, even if it is ignored.
                let tree = control.tree_of(tip).await?;
                // Without -u: no file is touched.
                let reset = with_work_tree(control, self.work()).args(["read-tree", "--reset"]);
                reset.arg(tree.to_string()).run_ok().await?;
                (tip, tree)
            }
            AgentHistory::None | AgentHistory::Left(_) => (self.base(), self.base_tree),
        };
        let (tree, taken_notes) = self.take(&mut known, parent_tree).await?;
        if let Some(what) = refused(&taken_notes) {
            return Err(GitError::Unkeepable { what });
        }
        let mut notes: Vec<SnapshotNote> = taken_notes.into_iter().collect();
        match told.history {
            AgentHistory::Left(reason) => notes.push(SnapshotNote::HistoryLeft { reason }),
            AgentHistory::Kept(_) if tree == self.base_tree => {
                let reason = "together they change nothing".to_owned();
                notes.push(SnapshotNote::HistoryLeft { reason });
            }
            AgentHistory::Kept(_) | AgentHistory::None => {}
        }
        let beside = told.beside.into_iter();
        notes.extend(beside.map(|(name, commit)| SnapshotNote::LeftBeside { name, commit }));
        if let Some(changed) = self.changed_since(self.base_tree).await? {
            self.check_size_of(&changed).await?;
            notes.extend(self.conversions(&changed).await?);
        }
        let ignored = self.ignored_among(survey.paths()).await?;
        notes.extend(survey.notes(|path| ignored.contains(path)));
        let commit = if tree == self.base_tree {
            None
        } else {
            notes.extend(self.conflict_markers(tree).await?);
            Some(if tree == parent_tree {
                parent
            } else {
                control
                    .commit_tree(tree, &[parent], message, identity, time)
                    .await?
            })
        };
        let beside = if told.kept.is_empty() {
            None
        } else {
            let message = format!("left beside the result of {message}");
            let made = control.commit_tree(self.base_tree, &told.kept, &message, identity, time);
            Some(made.await?)
        };
        notes.truncate(NOTES_MAX);
        Ok(Snapshot {
            tree,
            commit,
            notes,
            beside,
        })
    }

    /// Fills the index and writes its tree; what nobody has touched is as in `reference`.
    async fn take(
        &self,
        known: &mut BTreeSet<PathBuf>,
        reference: ObjectId,
    ) -> Result<(ObjectId, BTreeSet<SnapshotNote>), GitError> {
        self.check_work_tree().await?;
        self.remove_stale_lock().await?;
        let notes = self.fill_index(known, reference).await?;
        if let Some(changed) = self.changed_since(reference).await? {
            self.restore_untouched(&changed).await?;
        }
        let tree = object_id_from(self.control.command().arg("write-tree")).await?;
        Ok((tree, notes))
    }

    /// Tells which paths are ignored.
    async fn ignored_among(
        &self,
        paths: impl Iterator<Item = &PathBuf>,
    ) -> Result<BTreeSet<PathBuf>, GitError> {
        let mut asked = Vec::new();
        for path in paths {
            asked.extend_from_slice(path.as_os_str().as_bytes());
            asked.push(0);
        }
        if asked.is_empty() {
            return Ok(BTreeSet::new());
        }
        let command = with_work_tree(&self.control, self.work())
            .args(["check-ignore", "-z", "--stdin"])
            .stdin(asked);
        // Exit code 1 says that none is; any other answer makes no note less true.
        let output = command.run().await?;
        let paths = output.stdout.split(|byte| *byte == 0);
        let path = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_vec()));
        Ok(paths.map(path).collect())
    }

    /// Finds conflict markers in what was changed; the first fifty.
    async fn conflict_markers(&self, tree: ObjectId) -> Result<Vec<SnapshotNote>, GitError> {
        let command = self
            .control
            .command()
            // Nothing else is wrong with white space here.
            .config(
                "core.whitespace",
                "-blank-at-eol,-blank-at-eof,-space-before-tab",
            )
            .args([
                "diff-tree",
                "-r",
                "--check",
                "--no-renames",
                "--no-textconv",
            ])
            .args([self.base_tree.to_string(), tree.to_string()])
            .stdout_limit(MARKERS_BYTES_MAX);
        let output = command.run_truncated().await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let places = text
            .lines()
            .filter_map(|line| line.strip_suffix(": leftover conflict marker"));
        let note = |place: &str| SnapshotNote::ConflictMarkers {
            place: place.to_owned(),
        };
        Ok(places.map(note).take(NOTES_MAX).collect())
    }

    /// Refuses a work tree that was replaced by a link, which could point to anybody's files.
    async fn check_work_tree(&self) -> Result<(), GitError> {
        let work = self.work();
        let found = fs::symlink_metadata(work)
            .await
            .map_err(GitError::file("look at", work))?;
        if found.is_dir() {
            return Ok(());
        }
        let reason = "its work folder was replaced by something else".to_owned();
        Err(GitError::NotAWorkspace {
            path: self.folder().to_owned(),
            reason,
        })
    }

    /// Deletes the lock that a killed git left on the index; no other is alive while it is our turn.
    async fn remove_stale_lock(&self) -> Result<(), GitError> {
        let lock = self.control.folder().join("index.lock");
        match fs::remove_file(&lock).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(GitError::file("delete", lock)(error))
            }
            _ => Ok(()),
        }
    }

    /// Makes the index equal to the work tree; `known` repositories inside it are noted again.
    async fn fill_index(
        &self,
        known: &mut BTreeSet<PathBuf>,
        reference: ObjectId,
    ) -> Result<BTreeSet<SnapshotNote>, GitError> {
        let mut notes = BTreeSet::new();
        let kept = self.settle_submodules(reference, &mut notes).await?;
        self.check_size_of_new(&kept).await?;
        let mut nested: BTreeSet<PathBuf> = BTreeSet::new();
        let mut left_out: BTreeSet<PathBuf> = BTreeSet::new();
        for level in 0..=NESTING_MAX {
            let added = self.add_all(&kept).await?;
            let linked = self.links_but(&kept).await?;
            let refused = self.nested_among(&added);
            let found: BTreeSet<PathBuf> = linked.into_iter().chain(refused).collect();
            let new: BTreeSet<PathBuf> = found.difference(&nested).cloned().collect();
            if new.is_empty() || level == NESTING_MAX {
                left_out = self.with_content(&nested, found, &kept).await?;
                let refused = unreadable(&added).filter(|note| {
                    let SnapshotNote::Unreadable { message } = note else {
                        return true;
                    };
                    // Those with content are named anyway.
                    !message.ends_with("/' does not have a commit checked out")
                });
                notes.extend(refused);
                break;
            }
            self.open_up(&new).await?;
            nested.extend(new);
        }
        self.close_up(&nested).await?;
        self.forget(&left_out).await?;
        let path_text = |path: &PathBuf| path.to_string_lossy().into_owned();
        known.extend(nested);
        known.retain(|path| !left_out.contains(path) && self.is_repository(path));
        let taken_in = known.iter().map(path_text);
        notes.extend(taken_in.map(|path| SnapshotNote::NestedRepository { path }));
        let left_out = left_out.iter().map(path_text);
        notes.extend(left_out.map(|path| SnapshotNote::LeftOut { path }));
        Ok(notes)
    }

    /// Tells whether a folder of the work tree looks like a repository of its own.
    pub(crate) fn is_repository(&self, path: &Path) -> bool {
        self.work()
            .join(path)
            .join(".git")
            .symlink_metadata()
            .is_ok()
    }

    async fn add_all(&self, without: &[PathBuf]) -> Result<Output, GitError> {
        let mut pathspecs = b":(top)\0".to_vec();
        for path in without {
            pathspecs.extend_from_slice(b":(top,exclude,literal)");
            pathspecs.extend_from_slice(path.as_os_str().as_bytes());
            pathspecs.push(0);
        }
        let command = with_work_tree(&self.control, self.work())
            // What is converted is told from the result; here it would only hide what git refuses.
            .config("core.safecrlf", "false")
            .stderr_limit(REFUSALS_BYTES_MAX)
            .args(["add", "--all", "--ignore-errors"])
            .args(["--pathspec-from-file=-", "--pathspec-file-nul"])
            .stdin(pathspecs);
        let described = command.describe();
        let output = command.run().await?;
        // With --ignore-errors a full disk looks like one more file that could not be read.
        let disk_failed = output.stderr.contains("failed to insert into database")
            || output.stderr.contains("unable to write");
        match output.exit_code {
            Some(0 | 1) if !disk_failed => Ok(output),
            // The one thing about a file that git does not only skip it for.
            Some(128) if output.stderr.contains(NOT_ENCODED) => Err(GitError::Unkeepable {
                what: last_line(&output.stderr).to_owned(),
            }),
            exit_code => {
                let stderr = output.stderr;
                Err(GitError::Failed {
                    command: described,
                    exit_code,
                    stderr,
                })
            }
        }
    }

    /// Lists links to commits in the index that are none of `kept`.
    async fn links_but(&self, kept: &[PathBuf]) -> Result<Vec<PathBuf>, GitError> {
        let links = gitlinks(self.control.command(), &["ls-files", "-s", "-z"], None).await?;
        let mut paths: Vec<PathBuf> = links.into_iter().map(|link| link.path).collect();
        paths.retain(|path| !kept.contains(path));
        Ok(paths)
    }

    /// Finds the repositories without a commit that git refused to add.
    fn nested_among(&self, added: &Output) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for line in added.stderr.lines() {
            let named = line
                .strip_prefix("error: '")
                .and_then(|line| line.strip_suffix("/' does not have a commit checked out"));
            if let Some(path) = named {
                let path = PathBuf::from(path);
                // The text is only a hint, which a name with a line break can forge.
                let is_inside = path
                    .components()
                    .all(|part| matches!(part, Component::Normal(name) if name != ".git"));
                if is_inside && self.is_repository(&path) {
                    found.push(path);
                }
            }
        }
        found
    }

    /// Makes git treat nested repositories as ordinary folders in the next pass.
    async fn open_up(&self, folders: &BTreeSet<PathBuf>) -> Result<(), GitError> {
        let empty_blob = match self.format {
            ObjectFormat::Sha1 => "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",
            ObjectFormat::Sha256 => {
                "473a0f4c3be8a93681a267e3b1e9a7dcda1185436fe141f7749120a303721813"
            }
        };
        self.forget(folders).await?;
        let mut entries = Vec::new();
        for folder in folders {
            let entry = format!("100644 {empty_blob}\t");
            push_entry(&mut entries, &entry, &folder.join(PLACEHOLDER));
        }
        self.edit_index(entries).await
    }

    /// Keeps of some repositories those that hold a file which is not ignored; the others have
    /// nothing that could be lost.
    async fn with_content(
        &self,
        nested: &BTreeSet<PathBuf>,
        mut found: BTreeSet<PathBuf>,
        kept: &[PathBuf],
    ) -> Result<BTreeSet<PathBuf>, GitError> {
        if found.is_empty() {
            return Ok(found);
        }
        self.open_up(&nested.union(&found).cloned().collect())
            .await?;
        let listed = with_work_tree(&self.control, self.work())
            .args(["ls-files", "-z", "--others", "--exclude-standard"])
            .stdout_limit(REFUSALS_BYTES_MAX);
        let output = listed.run_truncated().await?;
        self.close_up(&found).await?;
        if output.truncated {
            return Ok(found);
        }
        let listed: Vec<&Path> = output
            .stdout
            .split(|byte| *byte == 0)
            .filter(|path| !path.is_empty())
            .map(|path| Path::new(std::ffi::OsStr::from_bytes(path)))
            .filter(|path| !kept.iter().any(|kept| path.starts_with(kept)))
            .collect();
        found.retain(|folder| listed.iter().any(|path| path.starts_with(folder)));
        Ok(found)
    }

    /// Removes placeholders that no pass has removed.
    async fn close_up(&self, folders: &BTreeSet<PathBuf>) -> Result<(), GitError> {
        self.forget(folders.iter().map(|folder| folder.join(PLACEHOLDER)))
            .await
    }

    /// Removes paths from the index; files are not touched.
    pub(crate) async fn forget(
        &self,
        paths: impl IntoIterator<Item = impl AsRef<Path>>,
    ) -> Result<(), GitError> {
        let removal = format!("0 {}\t", self.format.zero());
        let mut entries = Vec::new();
        for path in paths {
            push_entry(&mut entries, &removal, path.as_ref());
        }
        self.edit_index(entries).await
    }

    pub(crate) async fn edit_index(&self, entries: Vec<u8>) -> Result<(), GitError> {
        if entries.is_empty() {
            return Ok(());
        }
        let command = self
            .control
            .command()
            .args(["update-index", "-z", "--index-info"]);
        command.stdin(entries).run_ok().await?;
        Ok(())
    }
}

pub(crate) fn push_entry(entries: &mut Vec<u8>, entry: &str, path: &Path) {
    entries.extend_from_slice(entry.as_bytes());
    entries.extend_from_slice(path.as_os_str().as_bytes());
    entries.push(0);
}

pub(crate) async fn is_empty(folder: &Path) -> bool {
    match fs::read_dir(folder).await {
        Ok(mut entries) => matches!(entries.next_entry().await, Ok(None)),
        // What cannot be read is left as it was.
        Err(_) => true,
    }
}

/// Collects what git could not read.
fn unreadable(added: &Output) -> impl Iterator<Item = SnapshotNote> {
    added
        .stderr
        .lines()
        .filter_map(|line| {
            line.strip_prefix("error: ").or_else(|| {
                line.strip_prefix("warning: ")
                    .filter(|text| text.contains("open dir"))
            })
        })
        .filter(|text| *text != "adding files failed")
        .map(|text| SnapshotNote::Unreadable {
            message: text.to_owned(),
        })
}
