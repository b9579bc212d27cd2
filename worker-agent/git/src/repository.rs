//! A repository on this disk: revisions, refs that move by compare-and-swap, commits.

use std::path::Path;
use std::sync::Arc;

use crate::command::{Git, GitCommand, Mode};
use crate::error::GitError;
use crate::history::{Commit, CommitTime, Identity};
use crate::names::{ObjectFormat, ObjectId, RefName, quoted};

/// Most commits that one call of [`Repository::log`] gives.
const LOG_COMMITS_MAX: usize = 1000;
/// How much of the log is held, in bytes; messages are written by agents.
const LOG_BYTES_MAX: usize = 8 << 20;

/// A repository on this disk; cheap to clone, holds nothing open.
#[derive(Clone, Debug)]
pub struct Repository {
    git: Git,
    folder: Arc<Path>,
    mode: Mode,
}

/// What a ref must be for an update to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Whatever it is, or is not.
    Any,
    /// It must not exist.
    Absent,
    /// It must be exactly this.
    Is(ObjectId),
}

/// One ref to be moved, created or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefUpdate {
    /// Which ref.
    pub name: RefName,
    /// What it becomes; `None` deletes it.
    pub new: Option<ObjectId>,
    /// What it must be before.
    pub expected: Expected,
}

/// How a set of ref updates ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Update {
    /// Every ref is as asked.
    Done,
    /// No ref was touched, because at least this one is not what was expected.
    Refused {
        /// The first ref that differs.
        name: RefName,
        /// What it was to be.
        expected: Expected,
        /// What it is.
        found: Option<ObjectId>,
    },
}

impl Repository {
    /// Creates a bare repository, or completes one whose creation was interrupted.
    ///
    /// New objects and refs reach the disk before a command returns, since others are told that
    /// they exist. The parent folder must exist.
    pub async fn init_bare(
        git: &Git,
        folder: &Path,
        format: ObjectFormat,
    ) -> Result<Self, GitError> {
        git.command(Mode::Hermetic)
            .args([
                "init",
                "--quiet",
                "--bare",
                "--template=",
                "--initial-branch=main",
            ])
            .arg(format!("--object-format={}", format.as_str()))
            .arg("--end-of-options")
            .arg(folder)
            .run_ok()
            .await?;
        let repository = Self::hermetic(git, folder)?;
        repository
            .set_config("core.fsync", "committed,reference")
            .await?;
        repository.set_config("core.fsyncMethod", "batch").await?;
        Ok(repository)
    }

    /// Opens a bare repository that belongs to Muster.
    pub async fn open_bare(git: &Git, folder: &Path) -> Result<Self, GitError> {
        let repository = Self::hermetic(git, folder)?;
        repository.object_format().await?;
        Ok(repository)
    }

    /// Opens the person's own repository that `folder` is, or lies in.
    ///
    /// Commands on it obey that person's configuration, hooks and signing.
    pub async fn open_user(git: &Git, folder: &Path) -> Result<Self, GitError> {
        let folder = std::path::absolute(folder)
            .map_err(GitError::file("find the absolute path of", folder))?;
        let found = git
            .command(Mode::UserRepository)
            .directory(&folder)
            .args(["rev-parse", "--absolute-git-dir"])
            .run_ok()
            .await?;
        let git_dir = found.path();
        Ok(Self {
            git: git.clone(),
            folder: git_dir.into(),
            mode: Mode::UserRepository,
        })
    }

    /// Takes a git folder of Muster's own without looking at it.
    pub(crate) fn hermetic(git: &Git, folder: &Path) -> Result<Self, GitError> {
        let folder = std::path::absolute(folder)
            .map_err(GitError::file("find the absolute path of", folder))?;
        Ok(Self {
            git: git.clone(),
            folder: folder.into(),
            mode: Mode::Hermetic,
        })
    }

    /// Gives the git folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Gives the executable that this repository is used through.
    #[must_use]
    pub fn git(&self) -> &Git {
        &self.git
    }

    /// Begins an invocation on this repository.
    pub fn command(&self) -> GitCommand {
        self.git.command(self.mode).git_dir(&self.folder)
    }

    /// Sets a value in the repository's own configuration file.
    pub async fn set_config(&self, key: &str, value: &str) -> Result<(), GitError> {
        self.command()
            .args(["config", "--local", key, value])
            .run_ok()
            .await?;
        Ok(())
    }

    /// Tells the hash function of the repository.
    pub async fn object_format(&self) -> Result<ObjectFormat, GitError> {
        let command = self.command().args(["rev-parse", "--show-object-format"]);
        let described = command.describe();
        match command.run_ok().await?.text().as_str() {
            "sha1" => Ok(ObjectFormat::Sha1),
            "sha256" => Ok(ObjectFormat::Sha256),
            other => Err(unexpected(described, format!("object format {other:?}"))),
        }
    }

    /// Finds the commit that a person's text names: a branch, a tag, an id, `HEAD~2`.
    pub async fn rev_parse(&self, revision: &str) -> Result<ObjectId, GitError> {
        let unknown = || GitError::UnknownRevision {
            repository: self.folder.to_path_buf(),
            revision: quoted(revision),
        };
        if revision.is_empty() || revision.contains('\0') {
            return Err(unknown());
        }
        let parse = async |text: &str| {
            let command = self
                .command()
                .args(["rev-parse", "--verify", "--quiet", "--end-of-options"])
                .arg(text);
            let output = command.run().await?;
            Ok::<_, GitError>(ObjectId::from_hex(output.text().as_bytes()))
        };
        if let Some(commit) = parse(&format!("{revision}^{{commit}}")).await? {
            return Ok(commit);
        }
        // What is looked for by its message takes all that follows as part of that.
        let named = parse(revision).await?.ok_or_else(unknown)?;
        let commit = parse(&format!("{named}^{{commit}}")).await?;
        commit.ok_or_else(unknown)
    }

    /// Tells whether an object is here; not whether everything it refers to is.
    pub async fn exists(&self, object: ObjectId) -> Result<bool, GitError> {
        let command = self
            .command()
            .args(["cat-file", "-e"])
            .arg(object.to_string());
        yes_or_no(command).await
    }

    /// Tells whether `ancestor` is `descendant` or can be reached from it.
    pub async fn is_ancestor(
        &self,
        ancestor: ObjectId,
        descendant: ObjectId,
    ) -> Result<bool, GitError> {
        let command = self
            .command()
            .args(["merge-base", "--is-ancestor"])
            .args([ancestor.to_string(), descendant.to_string()]);
        yes_or_no(command).await
    }

    /// Reads one ref.
    pub async fn read_ref(&self, name: &RefName) -> Result<Option<ObjectId>, GitError> {
        let refs = self.list_refs(name.as_str()).await?;
        Ok(refs
            .into_iter()
            .find(|(found, _)| found == name)
            .map(|(_, id)| id))
    }

    /// Lists the ref called `prefix` and every ref in the folder of that name, sorted by name;
    /// `refs` lists all.
    ///
    /// Refs whose names Muster would not accept are left out.
    pub async fn list_refs(&self, prefix: &str) -> Result<Vec<(RefName, ObjectId)>, GitError> {
        let prefix = prefix.trim_end_matches('/');
        if prefix != "refs" {
            RefName::parse(prefix)?;
        }
        let output = self
            .command()
            .args(["for-each-ref", "--format=%(objectname) %(refname)"])
            .arg(prefix)
            .run_ok()
            .await?;
        Ok(parse_ref_lines(&output.stdout, b' '))
    }

    /// Moves, creates and deletes refs: all of them, or none.
    ///
    /// [`Update::Refused`] means that nothing was changed. After an error nothing was changed
    /// either, unless the command was killed: then read the refs.
    pub async fn update_refs(&self, updates: &[RefUpdate]) -> Result<Update, GitError> {
        if updates.is_empty() {
            return Ok(Update::Done);
        }
        let zero = self.object_format().await?.zero();
        let input: Vec<u8> = updates
            .iter()
            .flat_map(|update| instruction(update, &zero))
            .collect();
        let command = self
            .command()
            .args(["update-ref", "--stdin", "-z"])
            .stdin(input);
        let described = command.describe();
        let output = command.run().await?;
        if output.exit_code == Some(0) {
            return Ok(Update::Done);
        }
        // Git's refusal is a text for people; what the refs are now is the truth.
        for update in updates {
            let found = self.read_ref(&update.name).await?;
            let holds = match update.expected {
                Expected::Any => true,
                Expected::Absent => found.is_none(),
                Expected::Is(id) => found == Some(id),
            };
            if !holds {
                let (name, expected) = (update.name.clone(), update.expected);
                return Ok(Update::Refused {
                    name,
                    expected,
                    found,
                });
            }
        }
        let (exit_code, stderr) = (output.exit_code, output.stderr);
        Err(GitError::Failed {
            command: described,
            exit_code,
            stderr,
        })
    }

    /// Gives the tree of a commit.
    pub async fn tree_of(&self, commit: ObjectId) -> Result<ObjectId, GitError> {
        let command = self
            .command()
            .args(["rev-parse", "--verify", "--end-of-options"])
            .arg(format!("{commit}^{{tree}}"));
        object_id_from(command).await
    }

    /// Gives what a commit says about itself.
    pub async fn commit(&self, id: ObjectId) -> Result<Commit, GitError> {
        let commits = self.log(id, None, 1).await?;
        commits
            .into_iter()
            .next()
            .ok_or_else(|| GitError::UnknownRevision {
                repository: self.folder.to_path_buf(),
                revision: id.to_string(),
            })
    }

    /// Gives the newest commits that `tip` has and `without` has not, newest first.
    ///
    /// At most `count_max` and never more than 1000; fewer if their messages are huge.
    pub async fn log(
        &self,
        tip: ObjectId,
        without: Option<ObjectId>,
        count_max: usize,
    ) -> Result<Vec<Commit>, GitError> {
        let command = self
            .command()
            .args([
                "rev-list",
                "--no-commit-header",
                "--encoding=UTF-8",
                Commit::FORMAT,
            ])
            .arg(format!("--max-count={}", count_max.min(LOG_COMMITS_MAX)))
            .arg(tip.to_string())
            .args(without.map(|commit| format!("^{commit}")))
            .stdout_limit(LOG_BYTES_MAX);
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
        Commit::parse_all(&output.stdout)
            .ok_or_else(|| unexpected(described, "a field of a commit makes no sense"))
    }

    /// Writes a commit with everything pinned, so that the same call gives the same id again.
    pub async fn commit_tree(
        &self,
        tree: ObjectId,
        parents: &[ObjectId],
        message: &str,
        identity: &Identity,
        time: CommitTime,
    ) -> Result<ObjectId, GitError> {
        let command = self
            .command()
            .config("i18n.commitEncoding", "UTF-8")
            .env("GIT_AUTHOR_NAME", identity.name())
            .env("GIT_AUTHOR_EMAIL", identity.email())
            .env("GIT_AUTHOR_DATE", time.for_git())
            .env("GIT_COMMITTER_NAME", identity.name())
            .env("GIT_COMMITTER_EMAIL", identity.email())
            .env("GIT_COMMITTER_DATE", time.for_git())
            .args(["commit-tree", "--no-gpg-sign"])
            .args(
                parents
                    .iter()
                    .flat_map(|parent| ["-p".to_owned(), parent.to_string()]),
            )
            .args(["-F", "-"])
            .arg(tree.to_string())
            // Git refuses messages with NUL; what an agent says must not stop its work.
            .stdin(format!(
                "{}\n",
                message.replace('\0', "\u{fffd}").trim_end()
            ));
        object_id_from(command).await
    }
}

/// Writes one line of a ref transaction.
fn instruction(update: &RefUpdate, zero: &str) -> Vec<u8> {
    let expected = match update.expected {
        Expected::Any => String::new(),
        Expected::Absent => zero.to_owned(),
        Expected::Is(id) => id.to_string(),
    };
    let name = &update.name;
    match (update.new, update.expected) {
        (Some(new), _) => format!("update {name}\0{new}\0{expected}\0"),
        // Deleting what must be absent is only a check.
        (None, Expected::Absent) => format!("verify {name}\0{expected}\0"),
        (None, Expected::Any | Expected::Is(_)) => format!("delete {name}\0{expected}\0"),
    }
    .into_bytes()
}

/// Reads lines of an id, a separator and a ref name; other lines are left out.
pub(crate) fn parse_ref_lines(output: &[u8], separator: u8) -> Vec<(RefName, ObjectId)> {
    output
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let at = line.iter().position(|byte| *byte == separator)?;
            let (id, name) = line.split_at_checked(at)?;
            let name = std::str::from_utf8(name.get(1..)?).ok()?;
            Some((RefName::parse(name).ok()?, ObjectId::from_hex(id)?))
        })
        .collect()
}

/// Runs a command whose exit code 1 means "no".
async fn yes_or_no(command: GitCommand) -> Result<bool, GitError> {
    let described = command.describe();
    let output = command.run().await?;
    match output.exit_code {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        exit_code => Err(GitError::Failed {
            command: described,
            exit_code,
            stderr: output.stderr,
        }),
    }
}

/// Runs a command that prints one object id.
pub(crate) async fn object_id_from(command: GitCommand) -> Result<ObjectId, GitError> {
    let described = command.describe();
    let text = command.run_ok().await?.text();
    ObjectId::from_hex(text.as_bytes())
        .ok_or_else(|| unexpected(described, format!("{:?} is no object id", quoted(&text))))
}

pub(crate) fn unexpected(command: String, what: impl Into<String>) -> GitError {
    GitError::Unexpected {
        command,
        what: what.into(),
    }
}
