//! `coordinator land`: the integrated result of a run into the person's branch.
//!
//! Everything that speaks against it is looked for before anything is touched. What then changes the
//! branch is the person's own git with their own configuration and hooks.

use std::path::{Path, PathBuf};

use muster_git::{Git, GitCommand, Mode, ObjectId, RefName, Repository};
use serde_json::json;

use super::arguments::Land;
use super::context::{Context, Session};
use super::error::{CliError, Exit, Kind, Result};
use super::summary::quoted;
use super::{fetch, find, show};

mod foreground;
mod obstacles;

/// Files of a git folder that say what is under way.
const UNDER_WAY: [(&str, &str); 6] = [
    ("MERGE_HEAD", "a merge"),
    ("rebase-merge", "a rebase"),
    ("rebase-apply", "a rebase"),
    ("CHERRY_PICK_HEAD", "a cherry-pick"),
    ("REVERT_HEAD", "a revert"),
    ("BISECT_LOG", "a bisection"),
];
/// What leads out of it.
const FINISH_OR_ABORT: &str = "`git status` shows how to finish or to abort it";
/// Key of the person's git configuration that names branches not to be moved from here.
const PROTECTED: &str = "muster.protected";
/// Where branches are.
const HEADS: &str = "refs/heads/";
/// Files that a refusal names.
const FILES_MAX: usize = 10;

/// What became of the branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Landed {
    Already,
    FastForward,
    Merged,
}

impl Landed {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Already => "already",
            Self::FastForward => "fast_forward",
            Self::Merged => "merged",
        }
    }
}

pub(crate) async fn land(context: &Context, options: Land) -> Result<Exit> {
    let session = context.session().await?;
    let ended = bring(context, &session, &options).await;
    session.close().await;
    ended
}

async fn bring(context: &Context, session: &Session, options: &Land) -> Result<Exit> {
    let name = find::run(&session.client, options.run.as_deref()).await?;
    let run = find::get(&session.client, &name).await?;
    let (branch, commit) = fetch::integrated(&run)?;
    let git = Git::find().await?;
    make_if_fresh(&git, &options.repo).await?;
    let repository = fetch::open(&git, &options.repo).await?;
    let target = Target::find(&git, &options.repo, repository, options.into.as_deref()).await?;
    // A branch without a commit takes any history.
    if let Some(base) = run.base.as_ref().filter(|_| target.before.is_some()) {
        let known = target.repository.exists(ObjectId::parse(base)?).await?;
        if !known {
            return Err(CliError::user(format!(
                "{} does not have commit {}, from which run {name} started",
                options.repo.display(),
                show::short(base)
            ))
            .hint("`--repo PATH` names the repository that the run was made from")
            .hint(
                "a run of a folder (`repo: {from: …}`) has a history of its own: name a new folder \
                 with `--repo`",
            ));
        }
    }
    fetch::into_remotes(&session.client, &target.repository, &run, &branch, commit).await?;
    let landed = target.land(commit, &name).await?;
    let tip = target.tip().await?;
    if options.json {
        context.output.json(&json!({
            "run": name,
            "branch": target.branch,
            "commit": tip.to_string(),
            "result": landed.as_str(),
        }))?;
        return Ok(Exit::Success);
    }
    let branch = &target.branch;
    context.output.data(&match landed {
        Landed::Already => format!("{branch} has the result of run {name} already"),
        Landed::FastForward => format!("{branch} is at {tip} now, the result of run {name}"),
        Landed::Merged => format!("merged the result of run {name} into {branch}: {tip}"),
    })?;
    if let Some(before) = target.before.filter(|_| landed != Landed::Already) {
        context.output.say(&format!("before it was {before}"));
    }
    Ok(Exit::Success)
}

/// Makes a repository of a folder that is empty or not there yet: what a run of a folder lands in.
async fn make_if_fresh(git: &Git, folder: &Path) -> Result<()> {
    let is_fresh = match std::fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    if is_fresh {
        let command = git.command(Mode::UserRepository).args(["init", "--quiet"]);
        command.arg("--").arg(folder).run_ok().await?;
    }
    Ok(())
}

/// The branch to land in, and where it is checked out.
pub(crate) struct Target {
    git: Git,
    repository: Repository,
    /// Its short name.
    branch: String,
    /// The work tree in which it is checked out, if it is in this one.
    work_tree: Option<PathBuf>,
    before: Option<ObjectId>,
}

impl Target {
    pub(crate) async fn find(
        git: &Git,
        folder: &Path,
        repository: Repository,
        into: Option<&str>,
    ) -> Result<Self> {
        // In full: the short form of a branch is another if a tag has its name.
        let head = repository
            .command()
            .args(["symbolic-ref", "--quiet", "HEAD"])
            .run()
            .await?;
        let head = head.text().strip_prefix(HEADS).map(str::to_owned);
        let branch = match (into, &head) {
            (Some(branch), _) => branch.strip_prefix(HEADS).unwrap_or(branch).to_owned(),
            (None, Some(branch)) => branch.clone(),
            (None, None) => {
                // A rebase detaches HEAD for as long as it lasts.
                if let Some(what) = under_way(&repository) {
                    return Err(
                        CliError::user(format!("cannot land here: {what} is under way"))
                            .hint(FINISH_OR_ABORT),
                    );
                }
                return Err(
                    CliError::user("no branch is checked out here: HEAD is detached")
                        .hint("check one out, or name one with `--into BRANCH`"),
                );
            }
        };
        let is_head = head.as_deref() == Some(branch.as_str());
        let before = match RefName::parse(&format!("{HEADS}{branch}")) {
            Ok(name) if branch != "HEAD" => repository.read_ref(&name).await?,
            // Git takes some names that we do not.
            _ if is_head => repository.rev_parse("HEAD").await.ok(),
            _ => {
                return Err(CliError::user(format!("{branch:?} is no name of a branch"))
                    .hint("`git branch` lists yours"));
            }
        };
        if before.is_none() && !is_head {
            return Err(
                CliError::user(format!("there is no branch {branch:?}")).hint(format!(
                    "`git branch` lists yours, and `git branch {}` makes this one",
                    quoted(&branch)
                )),
            );
        }
        let mut target = Self {
            git: git.clone(),
            repository,
            branch,
            work_tree: None,
            before,
        };
        if is_head {
            // A bare repository has a HEAD and no work tree.
            let top = target
                .git
                .command(Mode::UserRepository)
                .directory(&absolute(folder)?)
                .args(["rev-parse", "--show-toplevel"])
                .run()
                .await?;
            if top.exit_code == Some(0) && !top.stdout.is_empty() {
                target.work_tree = Some(top.path());
            }
        }
        Ok(target)
    }

    /// Gives where the branch is now.
    pub(crate) async fn tip(&self) -> Result<ObjectId> {
        Ok(self
            .repository
            .rev_parse(&format!("refs/heads/{}", self.branch))
            .await?)
    }

    /// Brings a commit of this repository into the branch.
    ///
    /// A refusal has touched neither the branch nor the work tree.
    pub(crate) async fn land(&self, commit: ObjectId, run: &str) -> Result<Landed> {
        let Some(before) = self.before else {
            self.refuse_protected().await?;
            let Some(work_tree) = &self.work_tree else {
                return self.advance_elsewhere(commit, run).await;
            };
            self.refuse_uncommitted(work_tree).await?;
            self.refuse_files_in_the_way(work_tree, None, commit)
                .await?;
            return self.advance(work_tree, commit).await;
        };
        if self.repository.is_ancestor(commit, before).await? {
            return Ok(Landed::Already);
        }
        self.refuse_protected().await?;
        let forward = self.repository.is_ancestor(before, commit).await?;
        match &self.work_tree {
            Some(work_tree) => {
                self.refuse_what_is_under_way()?;
                self.refuse_uncommitted(work_tree).await?;
                if forward {
                    self.refuse_files_in_the_way(work_tree, Some(before), commit)
                        .await?;
                    self.advance(work_tree, commit).await
                } else {
                    let merged = self.refuse_conflicts(before, commit).await?;
                    self.refuse_files_in_the_way(work_tree, Some(before), merged)
                        .await?;
                    self.merge(work_tree, commit, run).await
                }
            }
            None if forward => self.advance_elsewhere(commit, run).await,
            None => Err(self
                .refused("it has moved on since the run started, and a merge needs its files")
                .hint(format!(
                    "check {} out in a work tree, then land there",
                    self.branch
                ))),
        }
    }

    fn refuse_what_is_under_way(&self) -> Result<()> {
        under_way(&self.repository).map_or(Ok(()), |what| {
            Err(self
                .refused(&format!("{what} is under way"))
                .hint(FINISH_OR_ABORT))
        })
    }

    /// Branches that the person's configuration names in `muster.protected` are never moved: names,
    /// or the beginning of names before a `*`.
    async fn refuse_protected(&self) -> Result<()> {
        let listed = self
            .repository
            .command()
            .args(["config", "--null", "--get-all", PROTECTED])
            .run()
            .await?;
        // 1 is how git says that there is no such key.
        if !matches!(listed.exit_code, Some(0 | 1)) {
            let problem = format!("cannot read {PROTECTED}: {}", listed.stderr);
            return Err(self.refused(&problem));
        }
        let patterns = listed.text();
        let named = patterns.split('\0').filter(|pattern| !pattern.is_empty());
        let mut matching = named.filter(|pattern| match pattern.split_once('*') {
            None => self.branch == **pattern,
            Some((start, end)) => self
                .branch
                .strip_prefix(start)
                .is_some_and(|rest| rest.ends_with(end)),
        });
        matching.next().map_or(Ok(()), |pattern| {
            Err(self
                .refused(&format!("it is protected: {PROTECTED} is {pattern:?}"))
                .hint(
                    "name another branch with `--into BRANCH`, and merge from there by your rules",
                )
                .hint(format!(
                    "`git config --show-origin --get-all {PROTECTED}` shows who says so"
                )))
        })
    }

    async fn refuse_uncommitted(&self, work_tree: &Path) -> Result<()> {
        let changed = self
            .in_tree(work_tree)
            .args(["status", "--porcelain", "--untracked-files=no"])
            .run_ok()
            .await?
            .text();
        if changed.is_empty() {
            return Ok(());
        }
        let files = changed.lines().filter_map(|line| line.get(3..));
        Err(self
            .refused(&format!("there are uncommitted changes: {}", some(files)))
            .hint("commit them, or put them aside with `git stash`"))
    }

    /// Merges without a work tree first: what conflicts there must not be begun here. Gives the tree
    /// that comes of it.
    async fn refuse_conflicts(&self, before: ObjectId, commit: ObjectId) -> Result<ObjectId> {
        let merged = self
            .repository
            .command()
            .args(["merge-tree", "--write-tree", "--name-only", "--no-messages"])
            .args([before.to_string(), commit.to_string()])
            .run()
            .await?;
        match merged.exit_code {
            Some(0) => Ok(ObjectId::parse(&merged.text())?),
            Some(1) => {
                let text = merged.text();
                let files = text.lines().skip(1);
                Err(self
                    .refused(&format!(
                        "it has moved on, and a merge would conflict in {}",
                        some(files)
                    ))
                    .hint(format!(
                        "the result is fetched already: merge it by hand with `git merge {commit}`"
                    )))
            }
            _ => Err(self.refused(&format!("the two cannot be merged: {}", merged.stderr))),
        }
    }

    async fn advance(&self, work_tree: &Path, commit: ObjectId) -> Result<Landed> {
        let command = self
            .in_tree(work_tree)
            .args(["merge", "--ff-only", "--quiet"])
            .arg(commit.to_string());
        let advanced = foreground::run(command).await?;
        let kind = advanced.kind();
        let Err(error) = advanced.result else {
            return Ok(Landed::FastForward);
        };
        let said = match self.put_back(work_tree, commit).await {
            None if advanced.is_interrupted => self.half_written(work_tree).await,
            said => said,
        };
        let error = CliError::new(kind, error)
            .while_doing(format!("move branch {} to {commit}", self.branch));
        Err(match said {
            Some(said) => error.hint(said),
            None => error,
        })
    }

    /// Says how to go on after a git that was stopped while it wrote files, if it has written any.
    async fn half_written(&self, work_tree: &Path) -> Option<&'static str> {
        let command = self.in_tree(work_tree).args(["status", "--porcelain"]);
        let changed = command.run_ok().await.ok()?.text();
        (!changed.is_empty()).then_some(
            "git was stopped while it wrote files: `git status` shows which, and `git restore .` \
             puts back those that you had",
        )
    }

    /// Takes files back that were written for a branch which then could not be moved: git writes
    /// them first, and a hook or a lock may keep it from the rest.
    async fn put_back(&self, work_tree: &Path, commit: ObjectId) -> Option<&'static str> {
        const PUT_BACK: &str = "the files were put back; nothing has changed";
        const LEFT: &str = "the files could not be put back: `git status` shows what is left";
        let in_tree = |arguments: &[&str]| self.in_tree(work_tree).args(arguments);
        let is_at = async |tree: &str| {
            let asked = in_tree(&["diff-index", "--cached", "--quiet", tree]);
            asked
                .run()
                .await
                .ok()
                .map(|ended| ended.exit_code == Some(0))
        };
        let before = match self.before {
            Some(before) => before.to_string(),
            // The tree without a file.
            None => in_tree(&["mktree"]).run_ok().await.ok()?.text(),
        };
        if is_at(&before).await? || !is_at(&commit.to_string()).await? {
            return None;
        }
        // Two trees: a file that somebody has changed meanwhile stops it before it begins.
        let back = in_tree(&["read-tree", "-m", "-u", &commit.to_string(), &before]);
        Some(if back.run_ok().await.is_ok() {
            PUT_BACK
        } else {
            LEFT
        })
    }

    async fn merge(&self, work_tree: &Path, commit: ObjectId, run: &str) -> Result<Landed> {
        let command = self
            .in_tree(work_tree)
            .args(["merge", "--no-ff", "--no-edit", "--quiet", "-m"])
            .arg(format!("Merge run {run}"))
            .arg(commit.to_string());
        let merged = foreground::run(command).await?;
        let kind = merged.kind();
        let Err(error) = merged.result else {
            return Ok(Landed::Merged);
        };
        // A hook of theirs has said no, the disk is full, or they pressed Ctrl-C; the tree was clean
        // before.
        let begun = self.repository.folder().join("MERGE_HEAD").exists();
        let half_written = match begun || !merged.is_interrupted {
            true => None,
            false => self.half_written(work_tree).await,
        };
        let said = match half_written {
            Some(said) => said.to_owned(),
            None => self.take_back(work_tree).await,
        };
        Err(CliError::new(kind, error)
            .while_doing(format!("merge {commit} into branch {}", self.branch))
            .hint(said))
    }

    /// Ends a merge that was begun and not committed, and says what became of it.
    async fn take_back(&self, work_tree: &Path) -> String {
        const TAKEN_BACK: &str = "the merge was taken back; nothing has changed";
        if !self.repository.folder().join("MERGE_HEAD").exists() {
            return TAKEN_BACK.to_owned();
        }
        let run = async |arguments: &[&str]| {
            let ended = self.in_tree(work_tree).args(arguments).run_ok().await;
            ended.map(|output| output.text())
        };
        if run(&["merge", "--abort"]).await.is_ok() {
            return TAKEN_BACK.to_owned();
        }
        const LEFT: &str = "the merge could not be taken back: `git status` shows what is left";
        // Git does not undo over files that a hook has changed meanwhile; they are kept aside. A
        // hook that lets no ref be written fails commands that have put the files back already.
        let changed = async || run(&["stash", "create"]).await;
        let Ok(kept) = changed().await else {
            return LEFT.to_owned();
        };
        if !kept.is_empty() {
            drop(run(&["reset", "--quiet", "--hard"]).await);
        }
        let is_clean = changed().await.is_ok_and(|changed| changed.is_empty());
        if !is_clean || run(&["merge", "--quit"]).await.is_err() {
            return LEFT.to_owned();
        }
        match kept.as_str() {
            "" => TAKEN_BACK.to_owned(),
            kept => {
                format!("{TAKEN_BACK}, and `git show {kept}` has what a hook had changed in files")
            }
        }
    }

    /// Moves a branch that is checked out nowhere, or makes it.
    async fn advance_elsewhere(&self, commit: ObjectId, run: &str) -> Result<Landed> {
        let listed = self
            .repository
            .command()
            .args(["worktree", "list", "--porcelain", "-z"])
            .run_ok()
            .await?
            .text();
        let mut place = "";
        let head = format!("branch {HEADS}{}", self.branch);
        for line in listed.split('\0') {
            if let Some(path) = line.strip_prefix("worktree ") {
                place = path;
            }
            if line == head {
                return Err(self
                    .refused(&format!("it is checked out in {place}"))
                    .hint(format!(
                        "land there: `coordinator land {run} --repo {}`",
                        quoted(place)
                    )));
            }
        }
        // Whoever rebases a branch moves it at the end, and then must find it where it was.
        if let Some((what, folder)) = obstacles::holder_of(&self.repository, &self.branch).await? {
            let where_ = folder.display();
            return Err(self
                .refused(&format!("{what} of it is under way ({where_})"))
                .hint(FINISH_OR_ABORT));
        }
        let before = self.before.map_or_else(
            || "0".repeat(commit.to_string().len()),
            |before| before.to_string(),
        );
        self.repository
            .command()
            .args(["update-ref", "-m"])
            .arg(format!("land run {run}"))
            .arg(format!("{HEADS}{}", self.branch))
            .args([commit.to_string(), before])
            .run_ok()
            .await
            .map_err(|error| {
                CliError::new(Kind::User, error)
                    .while_doing(format!("move branch {} to {commit}", self.branch))
            })?;
        Ok(Landed::FastForward)
    }

    fn in_tree(&self, work_tree: &Path) -> GitCommand {
        self.git.command(Mode::UserRepository).directory(work_tree)
    }

    fn refused(&self, why: &str) -> CliError {
        CliError::user(format!("cannot land in branch {}: {why}", self.branch))
    }
}

/// Tells what is under way in a work tree.
fn under_way(repository: &Repository) -> Option<&'static str> {
    let folder = repository.folder();
    let mut signs = UNDER_WAY.iter();
    signs
        .find(|(file, _)| folder.join(file).exists())
        .map(|(_, what)| *what)
}

fn absolute(folder: &Path) -> Result<PathBuf> {
    std::path::absolute(folder).map_err(|error| {
        CliError::new(Kind::User, error).while_doing(format!("find {}", folder.display()))
    })
}

/// Names the first files of a list.
pub(crate) fn some<'a>(files: impl Iterator<Item = &'a str>) -> String {
    let files: Vec<&str> = files.filter(|file| !file.is_empty()).collect();
    let mut text = files
        .iter()
        .take(FILES_MAX)
        .copied()
        .collect::<Vec<_>>()
        .join(", ");
    if files.len() > FILES_MAX {
        text.push_str(&format!(" and {} more", files.len() - FILES_MAX));
    }
    text
}

#[cfg(test)]
mod tests;
