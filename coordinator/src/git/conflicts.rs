//! Where the work of tasks does not merge.
//!
//! Nothing of it is stored: the same commits always conflict in the same way, so whoever asks is
//! answered by merging them again. One question is answered at a time, and the last answer is kept,
//! since people ask the same again and again.

use std::collections::BTreeSet;
use std::sync::Arc;

use coordinator_core::TaskIx;
use muster_git::{
    ChangeKind, CommitTime, Conflict, Conflicts, Fold, GitError, Hunks, ObjectId, Repository,
    SubprocessMerger, fold,
};
use tokio::sync::Mutex;
use tonic::Status;

use super::merges::{identity, message};
use super::repositories::Repositories;
use crate::api::status;

/// Conflicts that are looked into.
pub(crate) const CONFLICTS_SHOWN: usize = 100;
/// Earlier tasks whose changes are looked through.
const EARLIER_TASKS_MAX: usize = 64;
/// Bytes of all hunks of an answer.
const HUNK_BYTES_MAX: usize = 512 << 10;

/// Commits that did not merge in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The hosted repository.
    pub repository: String,
    /// The run's name, as it stands in the messages of the merges.
    pub run: String,
    /// What they were merged into.
    pub base: ObjectId,
    /// Each task with its name and commit, in the order of the merges.
    pub commits: Vec<(TaskIx, String, ObjectId)>,
    /// Seconds since 1970 of the merges; the answer does not depend on it.
    pub seconds: u64,
    /// The tasks that may have a part in it; all if empty.
    pub suspects: Vec<TaskIx>,
}

/// Why two sides do not merge.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Position of the task that does not merge.
    pub index: usize,
    /// What was merged before it.
    pub onto: ObjectId,
    /// Each conflict with the earlier tasks that meet there, and its lines; at most 100.
    pub conflicts: Vec<Met>,
    /// How many more there are.
    pub more: usize,
}

/// One conflict, with who meets there.
#[derive(Clone, Debug)]
pub struct Met {
    /// What conflicts.
    pub conflict: Conflict,
    /// What git says of it, with names in place of commits.
    pub message: String,
    /// Positions of the earlier tasks that touched it.
    pub earlier: Vec<usize>,
    /// The lines on which they do not agree.
    pub hunks: Hunks,
}

/// A question with its answer.
type Answered = (Question, Option<Answer>);

/// Answers where work does not merge; cheap to clone.
#[derive(Clone)]
pub struct Explainer {
    repositories: Repositories,
    last: Arc<Mutex<Option<Answered>>>,
}

impl Explainer {
    /// Makes it.
    #[must_use]
    pub fn new(repositories: Repositories) -> Self {
        Self {
            repositories,
            last: Arc::default(),
        }
    }

    /// Merges again and tells where it ends; `None` if all of it merges.
    ///
    /// # Errors
    /// `INTERNAL` when git fails, as when a commit is gone.
    pub async fn ask(&self, question: Question) -> Result<Option<Answer>, Status> {
        let mut last = self.last.lock().await;
        if let Some((asked, answer)) = &*last
            && *asked == question
        {
            return Ok(answer.clone());
        }
        let repository = self.repositories.open(&question.repository).await?;
        let writing = self
            .repositories
            .writers()
            .enter(&question.repository)
            .await;
        let answer = answer(&repository, &question)
            .await
            .map_err(|error| status::internal(&error))?;
        writing.done();
        *last = Some((question, answer.clone()));
        Ok(answer)
    }
}

async fn answer(repository: &Repository, question: &Question) -> Result<Option<Answer>, GitError> {
    let merger = SubprocessMerger::new(repository.clone());
    let commits: Vec<(ObjectId, String)> = question
        .commits
        .iter()
        .map(|(_, task, commit)| (*commit, message(task, &question.run)))
        .collect();
    let time = CommitTime::from_unix_seconds(question.seconds);
    let folded = fold(&merger, question.base, &commits, &identity()?, time).await?;
    let Fold::Conflict {
        index,
        onto,
        conflicts,
    } = folded
    else {
        return Ok(None);
    };
    let suspects: Vec<(usize, ObjectId)> = question
        .commits
        .iter()
        .enumerate()
        .take(index)
        .filter(|(_, (ix, ..))| question.suspects.is_empty() || question.suspects.contains(ix))
        .map(|(at, (_, _, commit))| (at, *commit))
        .collect();
    let from = suspects.len().saturating_sub(EARLIER_TASKS_MAX);
    let suspects = suspects.get(from..).unwrap_or_default();
    let touched = touched(repository, question.base, suspects).await?;
    let task = question.commits.get(index).map_or("", |(_, task, _)| task);
    let mut met = Vec::new();
    let mut room = HUNK_BYTES_MAX;
    for conflict in conflicts.list.iter().take(CONFLICTS_SHOWN) {
        let mut hunks = Hunks {
            has_more: conflict.has_hunks(),
            ..Hunks::default()
        };
        if room > 0 {
            hunks = repository.hunks(&conflicts, conflict).await?;
            let mut kept = 0;
            for hunk in &hunks.list {
                let bytes = hunk.ours.len() + hunk.theirs.len();
                room = room.saturating_sub(bytes);
                kept += usize::from(room > 0);
            }
            hunks.has_more |= kept < hunks.list.len();
            hunks.list.truncate(kept);
        }
        met.push(Met {
            message: readable(&conflict.message, &conflicts, task),
            earlier: who_meets(&touched, conflict),
            conflict: conflict.clone(),
            hunks,
        });
    }
    Ok(Some(Answer {
        index,
        onto,
        more: conflicts.list.len() - met.len(),
        conflicts: met,
    }))
}

/// Gives the paths that each of some commits touched since the base, the old names of what it
/// renamed with the new ones.
pub(crate) async fn touched<T: Copy>(
    repository: &Repository,
    base: ObjectId,
    commits: &[(T, ObjectId)],
) -> Result<Vec<(T, BTreeSet<String>)>, GitError> {
    let mut touched = Vec::new();
    for (what, commit) in commits {
        let mut paths = BTreeSet::new();
        for change in repository.changes(base, *commit).await? {
            if let ChangeKind::Renamed { from } = change.kind {
                paths.insert(text(&from));
            }
            paths.insert(text(&change.path));
        }
        touched.push((*what, paths));
    }
    Ok(touched)
}

/// A way to have a part in a conflict, by the paths that somebody touched.
type Way<'a> = dyn Fn(&BTreeSet<String>) -> bool + 'a;

/// Finds those who have a part in a conflict, of all who touched something.
///
/// Who renames a folder meets what others put into it without having touched that: if nobody touched
/// the file itself, then it is who touched its neighbours, or anybody who can be.
pub(crate) fn who_meets<T: Copy>(touched: &[(T, BTreeSet<String>)], conflict: &Conflict) -> Vec<T> {
    let ways: [&Way<'_>; 3] = [
        &|paths| meets(paths, conflict),
        &|paths| paths.iter().any(|path| is_beside(path, conflict)),
        &|_| true,
    ];
    let found = |way: &Way<'_>| -> Vec<T> {
        let mut found = Vec::new();
        for (who, paths) in touched {
            if way(paths) {
                found.push(*who);
            }
        }
        found
    };
    let mut ways = ways.into_iter().map(found);
    ways.find(|found| !found.is_empty()).unwrap_or_default()
}

/// Tells whether a path is in the folder of one of the paths of a conflict.
fn is_beside(path: &str, conflict: &Conflict) -> bool {
    conflict.paths().any(|of| {
        of.rsplit_once('/')
            .and_then(|(folder, _)| path.strip_prefix(folder))
            .is_some_and(|rest| rest.starts_with('/'))
    })
}

/// Writes a path as conflicts name it: bytes that are not UTF-8 are replaced.
fn text(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// Tells whether somebody who touched these paths has a part in a conflict. A file meets a folder by
/// what is inside it.
fn meets(touched: &BTreeSet<String>, conflict: &Conflict) -> bool {
    conflict.paths().any(|path| {
        let folder = format!("{path}/");
        touched.contains(path)
            || touched
                .range(folder.clone()..)
                .next()
                .is_some_and(|inside| inside.starts_with(&folder))
    })
}

/// Puts names in place of the commits that git's words hold.
pub(crate) fn readable(message: &str, conflicts: &Conflicts, task: &str) -> String {
    message
        .replace(&format!("~{}", conflicts.ours), "")
        .replace(&format!("~{}", conflicts.theirs), "")
        .replace(&conflicts.ours.to_string(), "what was merged before")
        .replace(&conflicts.theirs.to_string(), &format!("task {task}"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use muster_git::Git;

    use super::*;

    #[tokio::test]
    async fn who_renames_a_folder_meets_who_puts_a_file_into_it() {
        let folder = tempfile::tempdir().unwrap();
        let shell = |script: &str| {
            let ended = Command::new("/bin/sh")
                .args(["-ec", script])
                .current_dir(folder.path())
                .output()
                .unwrap();
            assert!(ended.status.success(), "{ended:?}");
            String::from_utf8(ended.stdout).unwrap().trim().to_owned()
        };
        shell(
            "git init -q -b main; git config user.name Ann; git config user.email ann@example.org
            git config commit.gpgSign false; mkdir d; echo f > d/f; git add .; git commit -qm base
            git switch -qc other main; echo o > o; git add .; git commit -qm other
            git switch -qc left main; git mv d e; git commit -qm left
            git switch -qc right main; echo n > d/new; git add .; git commit -qm right",
        );
        let commit =
            |name: &str| ObjectId::parse(&shell(&format!("git rev-parse {name}"))).unwrap();
        let task = |index, name: &str| (TaskIx(index), name.to_owned(), commit(name));
        let question = Question {
            repository: "r".to_owned(),
            run: "run".to_owned(),
            base: commit("main"),
            commits: vec![task(0, "other"), task(1, "left"), task(2, "right")],
            seconds: 1,
            suspects: Vec::new(),
        };
        let git = Git::find().await.unwrap();
        let repository = Repository::open_bare(&git, &folder.path().join(".git"))
            .await
            .unwrap();
        let found = answer(&repository, &question).await.unwrap().unwrap();
        assert_eq!(found.index, 2);
        let earlier: Vec<_> = found.conflicts.iter().map(|met| &met.earlier).collect();
        assert_eq!(earlier, [&vec![1]], "{found:?}");
    }
}
