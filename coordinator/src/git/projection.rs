//! Makes the branches say what the journal says.
//!
//! The journal's commit ids are the truth; `refs/heads/muster/…` are a projection that people
//! fetch. A branch moves by compare-and-swap from what it was last made to say; one that differs
//! was moved by somebody else, and is repaired, never believed. Whoever is about to show refs to a
//! person calls [`Projection::repair`] first.

use std::collections::BTreeMap;
use std::sync::Arc;

use coordinator_core::event::{Outcome, RunOutcome};
use coordinator_core::state::{Run, RunPhase, TaskState};
use coordinator_core::{CommitId, RunId, State, TaskIx};
use muster_git::{Expected, ObjectId, RefName, RefUpdate, Repository, Update};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::names;
use super::repositories::Repositories;
use crate::engine::Handle;

/// Refs moved by one git process.
const REFS_PER_UPDATE: usize = 1_000;

/// Why branches could not be moved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Engine(#[from] crate::engine::Error),
    #[error("failed to open repository {name}: {why}")]
    Repository { name: String, why: String },
    #[error(transparent)]
    Git(#[from] muster_git::GitError),
    #[error("{0} changes while it is being repaired")]
    Contended(RefName),
}

/// Projects the journal onto branches; cheap to clone.
#[derive(Clone)]
pub struct Projection {
    engine: Handle,
    repositories: Repositories,
    /// What each live run's branches were last made to say.
    said: Arc<Mutex<Said>>,
}

type Said = BTreeMap<RunId, BTreeMap<Head, CommitId>>;

/// A branch of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Head {
    Task(TaskIx),
    Integration,
}

/// The branches of one run that are to be looked at.
struct Wanted {
    id: RunId,
    run: Arc<str>,
    repository: Arc<str>,
    heads: Vec<Wish>,
}

struct Wish {
    head: Head,
    name: String,
    commit: CommitId,
    /// What it was last made to say.
    before: Option<CommitId>,
}

/// Which branches to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    /// Those that the journal has changed.
    Changed,
    /// All, since somebody else may have moved them.
    All,
}

impl Wanted {
    /// `None` for a run without a repository, or with nothing to look at.
    fn of(run: &Run, said: Option<&BTreeMap<Head, CommitId>>, which: Which) -> Option<Self> {
        let source = run.source.as_ref()?;
        let mut heads = Vec::new();
        let mut want = |head: Head, name: &dyn Fn() -> String, commit: &CommitId| {
            let before = said.and_then(|said| said.get(&head));
            if which == Which::All || before != Some(commit) {
                let (commit, before) = (commit.clone(), before.cloned());
                heads.push(Wish {
                    head,
                    name: name(),
                    commit,
                    before,
                });
            }
        };
        for (ix, task) in run.indexed() {
            if let TaskState::Succeeded {
                outcome: Outcome::Commit(commit),
                ..
            } = &task.state
            {
                want(
                    Head::Task(ix),
                    &|| names::task_head(&run.name, &task.name),
                    commit,
                );
            }
        }
        if let RunPhase::Ended {
            outcome: RunOutcome::Succeeded,
            integrated: Some(commit),
            ..
        } = &run.phase
        {
            want(
                Head::Integration,
                &|| names::integration_head(&run.name),
                commit,
            );
        }
        let (run, id) = (run.name.clone(), run.id);
        (!heads.is_empty()).then(|| Self {
            id,
            run,
            repository: source.repository.clone(),
            heads,
        })
    }

    fn all(state: &State, said: &Said, which: Which) -> Vec<Self> {
        state
            .runs()
            .filter_map(|run| Self::of(run, said.get(&run.id), which))
            .collect()
    }
}

impl Projection {
    /// Makes the projection.
    #[must_use]
    pub fn new(engine: Handle, repositories: Repositories) -> Self {
        Self {
            engine,
            repositories,
            said: Arc::default(),
        }
    }

    /// Projects whatever changes, until cancelled or the engine ends.
    pub async fn run(self, ending: CancellationToken) {
        let mut changed = self.engine.notices().projection();
        loop {
            changed.mark_unchanged();
            match self.settle(Which::Changed).await {
                Ok(ended) => {
                    for run in ended {
                        // A stopped engine archives after its next start.
                        drop(self.engine.archive(run).await);
                    }
                }
                Err(error) => {
                    warn!(error = %error, "failed to move branches; the next change tries again");
                }
            }
            tokio::select! {
                () = ending.cancelled() => return,
                more = changed.changed() => if more.is_err() { return },
            }
        }
    }

    /// Makes the branches of all live runs say what the journal says, also those that somebody
    /// else has moved, and waits for it.
    ///
    /// # Errors
    /// Git or the disk; what was not done is tried again next time.
    pub async fn repair(&self) -> Result<(), Error> {
        self.settle(Which::All).await.map(|_| ())
    }

    /// Gives the runs that have ended: their branches are in place, so they may be archived.
    async fn settle(&self, which: Which) -> Result<Vec<RunId>, Error> {
        let mut said = self.said.lock().await;
        let known = std::mem::take(&mut *said);
        let (known, wanted, live, ended) = self
            .engine
            .query(move |state, _| {
                let wanted = Wanted::all(state, &known, which);
                let live: Vec<RunId> = state.runs().map(|run| run.id).collect();
                let ended = state.runs().filter(|run| run.is_ended()).map(|run| run.id);
                let ended: Vec<RunId> = ended.collect();
                (known, wanted, live, ended)
            })
            .await?;
        *said = known;
        said.retain(|run, _| live.binary_search(run).is_ok());
        for wanted in wanted {
            self.project(&wanted, which).await?;
            let of_run = said.entry(wanted.id).or_default();
            of_run.extend(
                wanted
                    .heads
                    .into_iter()
                    .map(|wish| (wish.head, wish.commit)),
            );
        }
        Ok(ended)
    }

    async fn project(&self, wanted: &Wanted, which: Which) -> Result<(), Error> {
        let name = &wanted.repository;
        let repository =
            self.repositories
                .open(name)
                .await
                .map_err(|status| Error::Repository {
                    name: name.to_string(),
                    why: status.message().to_owned(),
                })?;
        if which == Which::All {
            return repair(&repository, wanted).await;
        }
        for chunk in wanted.heads.chunks(REFS_PER_UPDATE) {
            let updates = chunk
                .iter()
                .map(|wish| {
                    let expected = match &wish.before {
                        Some(before) => Expected::Is(ObjectId::parse(before.as_str())?),
                        None => Expected::Absent,
                    };
                    update(wish, expected)
                })
                .collect::<Result<Vec<_>, Error>>()?;
            if let Update::Refused { .. } = repository.update_refs(&updates).await? {
                // It is not as we left it, or we have just started and do not know how we left it.
                return repair(&repository, wanted).await;
            }
        }
        Ok(())
    }
}

fn update(wish: &Wish, expected: Expected) -> Result<RefUpdate, Error> {
    let name = RefName::parse(&wish.name)?;
    let new = Some(ObjectId::parse(wish.commit.as_str())?);
    Ok(RefUpdate {
        name,
        new,
        expected,
    })
}

/// Looks at what is there, and moves what differs.
async fn repair(repository: &Repository, wanted: &Wanted) -> Result<(), Error> {
    let prefix = format!("refs/heads/muster/{}", wanted.run);
    let found: BTreeMap<String, ObjectId> = repository
        .list_refs(&prefix)
        .await?
        .into_iter()
        .map(|(name, commit)| (name.as_str().to_owned(), commit))
        .collect();
    let mut updates = Vec::new();
    for wish in &wanted.heads {
        let is = found.get(&wish.name).copied();
        if is == Some(ObjectId::parse(wish.commit.as_str())?) {
            continue;
        }
        if let (Some(is), Some(before)) = (is, &wish.before) {
            warn!(branch = wish.name, %is, was = %before, "a branch was moved by somebody else; moving it back");
        }
        updates.push(update(wish, is.map_or(Expected::Absent, Expected::Is))?);
    }
    for chunk in updates.chunks(REFS_PER_UPDATE) {
        if let Update::Refused { name, .. } = repository.update_refs(chunk).await? {
            return Err(Error::Contended(name));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use muster_git::{CommitTime, Git, Identity, ObjectFormat};

    use super::*;

    async fn repository(folder: &std::path::Path) -> (Repository, [ObjectId; 2]) {
        let git = Git::find().await.unwrap();
        let repository = Repository::init_bare(&git, &folder.join("r.git"), ObjectFormat::Sha1)
            .await
            .unwrap();
        let empty = repository
            .command()
            .args(["hash-object", "-t", "tree", "-w", "--stdin"])
            .run_ok()
            .await
            .unwrap();
        let tree = ObjectId::parse(&empty.text()).unwrap();
        let who = Identity::new("T", "t@example.invalid").unwrap();
        let when = CommitTime::from_unix_seconds(1);
        let one = repository
            .commit_tree(tree, &[], "one", &who, when)
            .await
            .unwrap();
        let two = repository
            .commit_tree(tree, &[one], "two", &who, when)
            .await
            .unwrap();
        (repository, [one, two])
    }

    fn wanted(commit: ObjectId, before: Option<ObjectId>) -> Wanted {
        let of = |id: ObjectId| CommitId::new(&id.to_string());
        Wanted {
            id: RunId(1),
            run: "r".into(),
            repository: "r".into(),
            heads: vec![Wish {
                head: Head::Integration,
                name: names::integration_head("r"),
                commit: of(commit),
                before: before.map(of),
            }],
        }
    }

    async fn branch(repository: &Repository) -> Option<ObjectId> {
        let name = RefName::parse(&names::integration_head("r")).unwrap();
        repository.read_ref(&name).await.unwrap()
    }

    #[tokio::test]
    async fn a_branch_that_is_missing_is_made_and_one_that_was_moved_is_moved_back() {
        let folder = tempfile::tempdir().unwrap();
        let (repository, [one, two]) = repository(folder.path()).await;
        repair(&repository, &wanted(one, None)).await.unwrap();
        assert_eq!(branch(&repository).await, Some(one));
        let name = RefName::parse(&names::integration_head("r")).unwrap();
        let by_hand = RefUpdate {
            name,
            new: Some(two),
            expected: Expected::Any,
        };
        assert!(matches!(
            repository.update_refs(&[by_hand]).await.unwrap(),
            Update::Done
        ));
        repair(&repository, &wanted(one, Some(one))).await.unwrap();
        assert_eq!(branch(&repository).await, Some(one));
    }
}
