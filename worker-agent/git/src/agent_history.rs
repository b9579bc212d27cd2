//! The commits that an agent made itself.
//!
//! Git is never run on the agent's repository, whose configuration may name programs. Its files are
//! data: where it stands is read from its refs, and its objects are linked into a repository of
//! Muster's own making, from which they are fetched with every check that git has. An object that is
//! damaged or missing costs the history, never the content.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode as FileMode, OFlags};

use crate::command::Mode;
use crate::error::{GitError, megabytes};
use crate::names::{ObjectId, RefName, quoted};
use crate::remote::{Refspec, Remote};
use crate::repository::{Expected, RefUpdate, Repository, Update, unexpected};
use crate::workspace::{Workspace, borrow_objects};

/// Longest file that holds one ref.
const REF_BYTES_MAX: u64 = 4 << 10;
/// Longest list of packed refs that is read: some 100 000 refs.
const PACKED_BYTES_MAX: u64 = 16 << 20;
/// Most branches, tags and stashes of an agent that are looked at.
const NAMED_MAX: usize = 100;
/// How much of the log of what was stashed is read, in bytes: some thousand times.
const LOG_BYTES_MAX: u64 = 1 << 20;
/// Where git names what was stashed last.
const STASH: &str = "refs/stash";
/// How the names begin of what an agent may have left.
const WANTED: [&str; 3] = ["refs/heads/", "refs/tags/", STASH];
/// Most files of objects that are linked; git packs what is more.
const OBJECT_FILES_MAX: usize = 1_000_000;
/// Where the agent's newest commit is kept in `control.git`.
const AGENT_REF: &str = "refs/muster/agent";
/// Where what it left beside that is kept there.
const BESIDE_REFS: &str = "refs/muster/beside";

/// Where a repository of the agent stands, read without git.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// At a commit, on a branch or not.
    At(ObjectId),
    /// Nobody can tell: it is gone, damaged, or has no commit.
    Unknown,
}

/// Reads the commit that a git folder has checked out.
pub(crate) fn head_of(git_dir: &Path) -> Head {
    read_head(git_dir).map_or(Head::Unknown, Head::At)
}

fn read_head(git_dir: &Path) -> Option<ObjectId> {
    let text = read_text(&git_dir.join("HEAD"), REF_BYTES_MAX)?;
    let text = text.trim();
    match text.strip_prefix("ref: ") {
        None => ObjectId::parse(text).ok(),
        Some(name) => {
            let name = RefName::parse(name.trim()).ok()?;
            let loose = read_text(&git_dir.join(name.as_str()), REF_BYTES_MAX);
            let loose = loose.and_then(|text| ObjectId::parse(text.trim()).ok());
            loose.or_else(|| {
                let packed = packed(git_dir);
                packed
                    .into_iter()
                    .find(|(found, _)| *found == name)
                    .map(|(_, commit)| commit)
            })
        }
    }
}

/// Lists what a git folder names besides what it has checked out, with what git calls it: branches,
/// tags, and what was stashed; the first hundred.
fn named(git_dir: &Path) -> Vec<(String, ObjectId)> {
    let mut found = stashed(git_dir);
    let mut folders = vec![PathBuf::from("refs/heads"), PathBuf::from("refs/tags")];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(git_dir.join(&folder)) else {
            continue;
        };
        for entry in entries.flatten() {
            let path = folder.join(entry.file_name());
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_folder && folders.len() < NAMED_MAX {
                folders.push(path);
            } else if found.len() < NAMED_MAX {
                let name = path.to_str().and_then(|name| RefName::parse(name).ok());
                let name = name.map(|name| name.to_string());
                found.extend(name.zip(id_in(&git_dir.join(&path))));
            }
        }
    }
    for (name, id) in packed(git_dir) {
        let is_wanted = WANTED.iter().any(|start| name.as_str().starts_with(start));
        let is_known = found
            .iter()
            .any(|(known, of)| known == name.as_str() || (name.as_str() == STASH && *of == id));
        if is_wanted && !is_known && found.len() < NAMED_MAX {
            found.push((name.to_string(), id));
        }
    }
    found.sort();
    found
}

/// Lists what was stashed, newest first: all but the newest stands in a log only.
fn stashed(git_dir: &Path) -> Vec<(String, ObjectId)> {
    let log = read_text(&git_dir.join("logs").join(STASH), LOG_BYTES_MAX).unwrap_or_default();
    let of_line = |line: &str| ObjectId::parse(line.split(' ').nth(1)?).ok();
    let mut ids: Vec<ObjectId> = log.lines().rev().filter_map(of_line).collect();
    let newest = id_in(&git_dir.join(STASH));
    if let Some(newest) = newest.filter(|newest| !ids.contains(newest)) {
        ids.insert(0, newest);
    }
    let ids = ids.into_iter().take(NAMED_MAX).enumerate();
    ids.map(|(number, id)| (format!("stash@{{{number}}}"), id))
        .collect()
}

fn id_in(path: &Path) -> Option<ObjectId> {
    ObjectId::parse(read_text(path, REF_BYTES_MAX)?.trim()).ok()
}

fn packed(git_dir: &Path) -> Vec<(RefName, ObjectId)> {
    let text = read_text(&git_dir.join("packed-refs"), PACKED_BYTES_MAX).unwrap_or_default();
    let line = |line: &str| {
        let (id, name) = line.split_once(' ')?;
        Some((RefName::parse(name).ok()?, ObjectId::parse(id).ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// Reads a small file, unless it is a link or a pipe.
fn read_text(path: &Path, bytes_max: u64) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = std::fs::File::from(rustix::fs::open(path, flags, FileMode::empty()).ok()?);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = String::new();
    file.take(bytes_max).read_to_string(&mut text).ok()?;
    Some(text)
}

/// What became of the agent's own commits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AgentHistory {
    /// It made none, or nobody can tell.
    None,
    /// They lead from the base to this one, and `control.git` has them.
    Kept(ObjectId),
    /// They cannot be kept, for this reason.
    Left(String),
}

/// The agent's commits, and what it left beside them.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) history: AgentHistory,
    /// Names and commits that are not behind what it left checked out.
    pub(crate) beside: Vec<(String, ObjectId)>,
    /// Those of them that `control.git` has.
    pub(crate) kept: Vec<ObjectId>,
}

impl Told {
    const NOTHING: Self = Self {
        history: AgentHistory::None,
        beside: Vec::new(),
        kept: Vec::new(),
    };
}

impl Workspace {
    /// Fetches what the agent committed, if it begins at the base, and what it stashed or left on
    /// other branches and under tags.
    ///
    /// Only while no process of the agent is left. After an error the workspace is as before.
    pub(crate) async fn agent_history(&self) -> Result<Told, GitError> {
        let git_dir = self.work().join(".git");
        // Behind a link could be anybody's repository.
        let is_folder = |path: &Path| path.symlink_metadata().is_ok_and(|found| found.is_dir());
        if !is_folder(&git_dir) || !is_folder(&git_dir.join("objects")) {
            return Ok(Told::NOTHING);
        }
        let tip = match head_of(&git_dir) {
            Head::At(tip) => tip,
            Head::Unknown => self.base(),
        };
        if tip.format() != self.format {
            let reason = "its repository has another object format".to_owned();
            return Ok(Told {
                history: AgentHistory::Left(reason),
                ..Told::NOTHING
            });
        }
        let mut named = named(&git_dir);
        named.retain(|(_, id)| *id != tip && *id != self.base() && id.format() == self.format);
        let is_own = tip != self.base();
        if !is_own && named.is_empty() {
            return Ok(Told::NOTHING);
        }
        let imported = match self.import(&git_dir).await {
            // The result needs nothing of it.
            Err(_) if !is_own => {
                return Ok(Told {
                    beside: named,
                    ..Told::NOTHING
                });
            }
            imported => imported?,
        };
        let told = self.told(&imported, tip, named).await;
        remove(imported.folder()).await?;
        told
    }

    async fn told(
        &self,
        imported: &Repository,
        tip: ObjectId,
        named: Vec<(String, ObjectId)>,
    ) -> Result<Told, GitError> {
        let history = if tip == self.base() {
            AgentHistory::None
        } else {
            match self.fetch_tip(imported, tip).await {
                Ok(history) => history,
                // Text of git on the agent's objects; the content does not depend on it.
                Err(GitError::Failed { stderr, .. }) => {
                    AgentHistory::Left(format!("git refuses them: {}", last_line(&stderr)))
                }
                Err(error) => return Err(error),
            }
        };
        let mut told = Told {
            history,
            ..Told::NOTHING
        };
        let mut commits = Vec::new();
        for (name, id) in named {
            // A tag may be an object of its own, before a commit or before something else.
            let peeled = imported.rev_parse(&format!("{id}^{{commit}}")).await.ok();
            let commit = peeled.unwrap_or(id);
            let behind = async |tip| imported.is_ancestor(commit, tip).await.unwrap_or(false);
            if behind(tip).await || behind(self.base()).await {
                continue;
            }
            if peeled.is_some() && !commits.contains(&commit) {
                commits.push(commit);
            }
            told.beside.push((name, commit));
        }
        match self.fetch_beside(imported, &commits).await {
            Ok(true) => told.kept = commits,
            // They are damaged or too large, and stay where they are.
            Ok(false) | Err(GitError::Failed { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(told)
    }

    /// Makes a repository with the agent's objects and a configuration of ours.
    async fn import(&self, git_dir: &Path) -> Result<Repository, GitError> {
        let import = self.folder().join("import.git");
        let (objects, into) = (git_dir.join("objects"), import.clone());
        remove(&import).await?;
        let git = self.control.git();
        git.command(Mode::Hermetic)
            .args(["init", "--quiet", "--bare", "--template="])
            .arg(format!("--object-format={}", self.format.as_str()))
            .arg("--end-of-options")
            .arg(&import)
            .run_ok()
            .await?;
        let linking = tokio::task::spawn_blocking(move || link_objects(&objects, &into));
        linking
            .await
            .unwrap_or_else(|panicked| Err(io::Error::other(panicked)))
            .map_err(GitError::file("link the agent's objects into", &import))?;
        let imported = Repository::hermetic(git, &import)?;
        borrow_objects(&import, &self.lender).await?;
        Ok(imported)
    }

    /// Brings commits from there to refs of `control.git`, with every check that git has.
    async fn fetch_checked_from(
        &self,
        imported: &Repository,
        commits: &[(ObjectId, RefName)],
    ) -> Result<(), GitError> {
        let mut refspecs = Vec::new();
        for (number, (commit, into)) in commits.iter().enumerate() {
            let branch = RefName::parse(&format!("refs/heads/agent-{number}"))?;
            let file = imported.folder().join(branch.as_str());
            tokio::fs::write(&file, format!("{commit}\n"))
                .await
                .map_err(GitError::file("write", &file))?;
            refspecs.push(Refspec::to_ref(&branch, into));
        }
        let remote = Remote::new(&imported.folder().to_string_lossy())?;
        remote.fetch_checked(&self.control, &refspecs).await
    }

    /// Fetches what was left beside the result; `false` if it is too large.
    async fn fetch_beside(
        &self,
        imported: &Repository,
        commits: &[ObjectId],
    ) -> Result<bool, GitError> {
        if commits.is_empty() {
            return Ok(true);
        }
        let numbered = commits.iter().enumerate();
        let named = numbered.map(|(number, commit)| {
            Ok((*commit, RefName::parse(&format!("{BESIDE_REFS}/{number}"))?))
        });
        let named = named.collect::<Result<Vec<_>, GitError>>()?;
        self.fetch_checked_from(imported, &named).await?;
        Ok(self.bytes_since_base(commits).await? <= self.change_bytes_max)
    }

    async fn fetch_tip(
        &self,
        imported: &Repository,
        tip: ObjectId,
    ) -> Result<AgentHistory, GitError> {
        let agent = RefName::parse(AGENT_REF)?;
        self.fetch_checked_from(imported, &[(tip, agent.clone())])
            .await?;
        let begins_at_base = self.control.is_ancestor(self.base(), tip).await?;
        let bytes = if begins_at_base {
            self.bytes_since_base(&[tip]).await?
        } else {
            0
        };
        if begins_at_base && bytes <= self.change_bytes_max {
            return Ok(AgentHistory::Kept(tip));
        }
        let forget = RefUpdate {
            name: agent,
            new: None,
            expected: Expected::Any,
        };
        let (Update::Done | Update::Refused { .. }) = self.control.update_refs(&[forget]).await?;
        if begins_at_base {
            return Ok(AgentHistory::Left(format!(
                "they hold {} of data, above the limit of {}",
                megabytes(bytes),
                megabytes(self.change_bytes_max)
            )));
        }
        let reason = if self.control.is_ancestor(tip, self.base()).await? {
            "it went back to a commit before its base"
        } else {
            "they do not begin at the base of the task"
        };
        Ok(AgentHistory::Left(reason.to_owned()))
    }
}

impl Workspace {
    /// Tells how many bytes on disk the objects take that lead from the base to some commits.
    async fn bytes_since_base(&self, tips: &[ObjectId]) -> Result<u64, GitError> {
        if self.change_bytes_max == u64::MAX {
            return Ok(0);
        }
        let command = self
            .control
            .command()
            .args(["rev-list", "--objects", "--disk-usage"])
            .args(tips.iter().map(ToString::to_string))
            .arg(format!("^{}", self.base()));
        let described = command.describe();
        let text = command.run_ok().await?.text();
        text.parse()
            .map_err(|_| unexpected(described, format!("{:?} is no size", quoted(&text))))
    }
}

/// Links loose objects and packs, and nothing else: no list of further object folders, no index
/// over packs, no graph.
fn link_objects(from: &Path, import: &Path) -> io::Result<()> {
    let into = import.join("objects");
    let mut left = OBJECT_FILES_MAX;
    for folder in std::fs::read_dir(from)? {
        let folder = folder?;
        let name = folder.file_name();
        let name = name.to_string_lossy();
        let is_loose = name.len() == 2 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !folder.file_type()?.is_dir() || !(is_loose || name == "pack") {
            continue;
        }
        let target = into.join(&*name);
        std::fs::create_dir_all(&target)?;
        for file in std::fs::read_dir(folder.path())? {
            let file = file?;
            let end = file.path().extension().map(std::ffi::OsStr::to_owned);
            let is_wanted = is_loose || end.is_some_and(|end| end == "pack" || end == "idx");
            // Links and pipes are never opened.
            if is_wanted && file.file_type()?.is_file() {
                left = left
                    .checked_sub(1)
                    .ok_or_else(|| io::Error::other("there are too many"))?;
                std::fs::hard_link(file.path(), target.join(file.file_name()))?;
            }
        }
    }
    Ok(())
}

async fn remove(folder: &Path) -> Result<(), GitError> {
    match tokio::fs::remove_dir_all(folder).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(GitError::file("delete the folder", folder)(error))
        }
        _ => Ok(()),
    }
}

pub(crate) fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or_default()
}
