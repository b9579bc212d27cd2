//! Merging two commits in a bare repository, without a work tree.

use std::pin::Pin;

use crate::command::Output;
use crate::conflict::Conflicts;
use crate::error::GitError;
use crate::history::{CommitTime, Identity};
use crate::names::ObjectId;
use crate::repository::{Repository, unexpected};

/// A question to a [`Merger`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergeRequest {
    /// The side merged into; its attributes decide how files are merged.
    pub ours: ObjectId,
    /// The side merged in.
    pub theirs: ObjectId,
    /// What the merge commit says.
    pub message: String,
    /// Who authors and commits the merge.
    pub identity: Identity,
    /// When the merge is said to happen; a repeat with the same time gives the same commit id.
    pub time: CommitTime,
}

/// How a merge ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Merge {
    /// `ours` has everything of `theirs` already.
    AlreadyContains,
    /// `theirs` has everything of `ours`: this, which is `theirs`, is the merge.
    FastForward(ObjectId),
    /// A new commit with both as parents, `ours` first. No ref names it yet.
    Merged(ObjectId),
    /// People must decide. No commit was made.
    Conflict(Conflicts),
}

/// The answer of a [`Merger`] that is being worked out.
pub type MergeFuture<'a> = Pin<Box<dyn Future<Output = Result<Merge, GitError>> + Send + 'a>>;

/// Something that merges commits of one repository.
///
/// The same request must always give the same answer, on every host: the coordinator repeats merges
/// after a restart and compares ids.
pub trait Merger: Send + Sync {
    /// Merges; objects may be written, refs are not.
    fn merge<'a>(&'a self, request: &'a MergeRequest) -> MergeFuture<'a>;
}

/// Merges with one or more processes for each request.
#[derive(Clone, Debug)]
pub struct SubprocessMerger {
    repository: Repository,
}

impl SubprocessMerger {
    /// Merges in a bare repository.
    #[must_use]
    pub fn new(repository: Repository) -> Self {
        Self { repository }
    }

    async fn answer(&self, request: &MergeRequest) -> Result<Merge, GitError> {
        let (ours, theirs) = (request.ours, request.theirs);
        let bases = self.merge_bases(ours, theirs).await?;
        if bases.contains(&theirs) {
            return Ok(Merge::AlreadyContains);
        }
        if bases.contains(&ours) {
            return Ok(Merge::FastForward(theirs));
        }
        if bases.is_empty() {
            return Err(GitError::Unrelated { ours, theirs });
        }
        let command = self
            .repository
            .command()
            // Fixed, since a bare repository would otherwise take the attributes of its HEAD.
            .env("GIT_ATTR_SOURCE", ours.to_string())
            .args(["merge-tree", "--write-tree", "--messages", "-z"])
            .args([ours.to_string(), theirs.to_string()]);
        let described = command.describe();
        let output = command.run().await?;
        match output.exit_code {
            Some(0) => {
                let tree = output
                    .stdout
                    .split(|byte| *byte == 0)
                    .next()
                    .unwrap_or_default();
                let tree = ObjectId::from_hex(tree)
                    .ok_or_else(|| unexpected(described, "it does not begin with a tree"))?;
                let parents = [ours, theirs];
                let MergeRequest {
                    message,
                    identity,
                    time,
                    ..
                } = request;
                let commit = self
                    .repository
                    .commit_tree(tree, &parents, message, identity, *time)
                    .await?;
                Ok(Merge::Merged(commit))
            }
            Some(1) => Conflicts::parse(&output.stdout, ours, theirs)
                .map(Merge::Conflict)
                .ok_or_else(|| unexpected(described, "its list of conflicts is cut")),
            exit_code => {
                let Output { stderr, .. } = output;
                Err(GitError::Failed {
                    command: described,
                    exit_code,
                    stderr,
                })
            }
        }
    }

    /// Gives the best common ancestors; none if the histories are unrelated.
    async fn merge_bases(
        &self,
        ours: ObjectId,
        theirs: ObjectId,
    ) -> Result<Vec<ObjectId>, GitError> {
        if ours == theirs {
            return Ok(vec![ours]);
        }
        let command = self
            .repository
            .command()
            .args(["merge-base", "--all"])
            .args([ours.to_string(), theirs.to_string()]);
        let described = command.describe();
        let output = command.run().await?;
        if !matches!(output.exit_code, Some(0 | 1)) {
            let (exit_code, stderr) = (output.exit_code, output.stderr);
            return Err(GitError::Failed {
                command: described,
                exit_code,
                stderr,
            });
        }
        let lines = output
            .stdout
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        lines
            .map(ObjectId::from_hex)
            .collect::<Option<_>>()
            .ok_or_else(|| unexpected(described, "a line is no object id"))
    }
}

impl Merger for SubprocessMerger {
    fn merge<'a>(&'a self, request: &'a MergeRequest) -> MergeFuture<'a> {
        Box::pin(self.answer(request))
    }
}

/// How merging several commits in order ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fold {
    /// This has everything; it may be one of the given commits.
    Merged(ObjectId),
    /// One of the commits does not go together with what was merged before it.
    Conflict {
        /// Its position in the list.
        index: usize,
        /// The merge of the base and all commits before it.
        onto: ObjectId,
        /// What conflicts.
        conflicts: Conflicts,
    },
}

/// Merges `commits` into `base` one after another, each with its own message.
///
/// Stops at the first conflict. All merges share identity and time, so a repeat gives the same ids.
pub async fn fold(
    merger: &dyn Merger,
    base: ObjectId,
    commits: &[(ObjectId, String)],
    identity: &Identity,
    time: CommitTime,
) -> Result<Fold, GitError> {
    let mut onto = base;
    for (index, (theirs, message)) in commits.iter().enumerate() {
        let (message, identity) = (message.clone(), identity.clone());
        let request = MergeRequest {
            ours: onto,
            theirs: *theirs,
            message,
            identity,
            time,
        };
        match merger.merge(&request).await? {
            Merge::AlreadyContains => {}
            Merge::FastForward(commit) | Merge::Merged(commit) => onto = commit,
            Merge::Conflict(conflicts) => {
                return Ok(Fold::Conflict {
                    index,
                    onto,
                    conflicts,
                });
            }
        }
    }
    Ok(Fold::Merged(onto))
}
