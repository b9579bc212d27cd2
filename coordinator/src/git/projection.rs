//! Makes the branches say what the journal says.
//!
//! The journal's commit ids are the truth; `refs/heads/muster/…` are a projection that people
//! fetch. Whoever is about to show refs to a person waits for [`Projection::show`] first, so a
//! branch that lags behind or was moved by hand is repaired before anybody sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coordinator_core::event::Outcome;
use coordinator_core::state::{Run, RunPhase, TaskState};
use coordinator_core::{CommitId, RunId};
use muster_git::{Expected, ObjectId, RefName, RefUpdate, Update};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::names;
use super::repositories::Repositories;
use crate::engine::{self, Handle, ReadError, Readers};

/// Refs moved by one git process.
const REFS_PER_UPDATE: usize = 1_000;

/// Pause before branches that could not be moved are tried again.
const PAUSE: Duration = Duration::from_secs(2);
/// Branches of ended runs that are remembered, to be repaired when they were moved by hand.
const REMEMBERED: usize = 20_000;

/// Archived runs that are read at once.
const RUNS_PER_PAGE: usize = 64;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Projects the journal onto branches; cheap to clone.
#[derive(Clone)]
pub struct Projection {
    engine: Handle,
    readers: Readers,
    repositories: Repositories,
    /// What each run's branches were last made to say.
    done: Arc<Mutex<BTreeMap<RunId, Said>>>,
    /// How often branches were moved since the start.
    moved: Arc<watch::Sender<u64>>,
}

/// The branches of one run as they were last made.
#[derive(Default)]
struct Said {
    repository: String,
    heads: BTreeMap<String, CommitId>,
    /// When they could not be moved.
    failed_at: Option<Instant>,
}

/// What became of all runs' branches.
#[derive(Default)]
struct Settled {
    /// Runs that have ended and whose branches are in place, so that they may be archived.
    ended: Vec<RunId>,
    /// Branches of some run could not be moved; it is tried again.
    is_behind: bool,
}

/// The branches of one run as the journal has them.
pub(crate) struct Wanted {
    run: RunId,
    pub(crate) repository: String,
    pub(crate) heads: BTreeMap<String, CommitId>,
}

impl Wanted {
    /// `None` for a run without a repository.
    pub(crate) fn of(run: &Run) -> Option<Self> {
        let source = run.source.as_ref()?;
        Some(Self {
            run: run.id,
            repository: source.repository.to_string(),
            heads: heads(run),
        })
    }
}

/// Gives the branches of a run that people see, as the journal has them.
#[must_use]
pub fn heads(run: &Run) -> BTreeMap<String, CommitId> {
    let mut heads = BTreeMap::new();
    if run.source.is_none() {
        return heads;
    }
    for task in &run.tasks {
        if let TaskState::Succeeded {
            outcome: Outcome::Commit(commit),
            ..
        } = &task.state
        {
            heads.insert(names::task_head(&run.name, &task.name), commit.clone());
        }
    }
    if let RunPhase::Ended {
        outcome: coordinator_core::event::RunOutcome::Succeeded,
        integrated: Some(commit),
        ..
    } = &run.phase
    {
        heads.insert(names::integration_head(&run.name), commit.clone());
    }
    heads
}

impl Projection {
    /// Makes the projection.
    #[must_use]
    pub fn new(engine: Handle, readers: Readers, repositories: Repositories) -> Self {
        Self {
            engine,
            readers,
            repositories,
            done: Arc::default(),
            moved: Arc::new(watch::Sender::new(0)),
        }
    }

    /// Gives the number that grows whenever branches were moved.
    #[must_use]
    pub fn moved(&self) -> watch::Receiver<u64> {
        self.moved.subscribe()
    }

    /// Projects whatever changes, until cancelled or the engine ends.
    pub async fn run(self, ending: CancellationToken) {
        let mut changed = self.engine.notices().projection();
        if let Err(error) = self.recall().await {
            warn!(%error, "branches of archived runs are not repaired when they are moved by hand");
        }
        loop {
            changed.mark_unchanged();
            let Ok(settled) = self.settle().await else {
                return;
            };
            for run in settled.ended {
                // A stopped engine archives after its next start.
                drop(self.engine.archive(run).await);
            }
            tokio::select! {
                () = ending.cancelled() => return,
                more = changed.changed() => if more.is_err() { return },
                () = tokio::time::sleep(PAUSE), if settled.is_behind => {}
            }
        }
    }

    /// Recalls what the branches of archived runs were made to say before this start, newest first,
    /// so that one that was moved by hand meanwhile is repaired too.
    async fn recall(&self) -> Result<(), ReadError> {
        let mut before = None;
        let mut recalled = 0;
        while recalled < REMEMBERED {
            let page = self
                .readers
                .read(move |reader| {
                    let mut page = Vec::new();
                    for summary in reader.archived_runs(before, RUNS_PER_PAGE)? {
                        let image = reader.archived_image(summary.run)?;
                        page.push((summary.run, image.and_then(|image| Wanted::of(&image.run))));
                    }
                    Ok(page)
                })
                .await?;
            let Some((oldest, _)) = page.last() else {
                break;
            };
            before = Some(*oldest);
            let mut done = self.done.lock().await;
            for (run, wanted) in page {
                if let Some(Wanted {
                    repository, heads, ..
                }) = wanted
                {
                    recalled += heads.len();
                    done.entry(run).or_insert(Said {
                        repository,
                        heads,
                        failed_at: None,
                    });
                }
            }
        }
        Ok(())
    }

    /// Makes the branches of all live runs say what the journal says, and waits for it. A run
    /// whose branches cannot be moved holds up no other.
    async fn settle(&self) -> Result<Settled, engine::Error> {
        let mut done = self.done.lock().await;
        let (wanted, ended) = self
            .engine
            .query(|state, _| {
                let wanted: Vec<Wanted> = state.runs().filter_map(Wanted::of).collect();
                let ended: Vec<RunId> = state
                    .runs()
                    .filter(|run| run.is_ended())
                    .map(|run| run.id)
                    .collect();
                (wanted, ended)
            })
            .await?;
        forget_old(&mut done, &wanted);
        let mut settled = Settled {
            ended,
            is_behind: false,
        };
        for wanted in wanted {
            let said = done.entry(wanted.run).or_default();
            said.repository.clone_from(&wanted.repository);
            let missing: Vec<(String, CommitId)> = wanted
                .heads
                .iter()
                .filter(|(name, commit)| said.heads.get(*name) != Some(commit))
                .map(|(name, commit)| (name.clone(), commit.clone()))
                .collect();
            let rests = said.failed_at.is_some_and(|at| at.elapsed() < PAUSE);
            let moved = match rests {
                true => Err("it was tried just now".into()),
                false => self.project(&wanted.repository, &missing).await,
            };
            match moved {
                Ok(()) => {
                    said.heads.extend(missing);
                    said.failed_at = None;
                }
                Err(error) => {
                    if !rests {
                        said.failed_at = Some(Instant::now());
                    }
                    warn!(run = %wanted.run, %error, "failed to move branches; trying again");
                    settled.ended.retain(|ended| *ended != wanted.run);
                    settled.is_behind = true;
                }
            }
        }
        Ok(settled)
    }

    /// Settles, and repairs branches that were moved by hand since, for somebody who is about to
    /// look at them. What cannot be moved is left as it is: the journal's commit ids, which every
    /// answer names, are the truth.
    ///
    /// # Errors
    /// The engine has ended.
    pub async fn show(&self) -> Result<(), engine::Error> {
        self.settle().await?;
        let done = self.done.lock().await;
        let repositories: BTreeSet<&str> =
            done.values().map(|said| said.repository.as_str()).collect();
        for repository in repositories {
            if let Err(error) = self.repair(repository, &done).await {
                warn!(repository, %error, "failed to repair branches");
            }
        }
        Ok(())
    }

    async fn repair(&self, name: &str, done: &BTreeMap<RunId, Said>) -> Result<(), Error> {
        let repository = self.repositories.open(name).await?;
        let found: BTreeMap<String, String> = repository
            .list_refs(names::HEADS)
            .await?
            .into_iter()
            .map(|(name, id)| (name.as_str().to_owned(), id.to_string()))
            .collect();
        let moved: Vec<(String, CommitId)> = done
            .values()
            .filter(|said| said.repository == name)
            .flat_map(|said| &said.heads)
            .filter(|(name, commit)| found.get(*name).map(String::as_str) != Some(commit.as_str()))
            .map(|(name, commit)| (name.clone(), commit.clone()))
            .collect();
        if !moved.is_empty() {
            warn!(
                repository = name,
                branches = moved.len(),
                "branches were moved by hand"
            );
        }
        self.project(name, &moved).await
    }

    /// Moves branches by compare-and-swap from what is there now: what somebody else moves in
    /// between is seen, and the move is tried again later.
    async fn project(&self, name: &str, heads: &[(String, CommitId)]) -> Result<(), Error> {
        if heads.is_empty() {
            return Ok(());
        }
        let repository = self.repositories.open(name).await?;
        let writing = self.repositories.writers().enter(name).await;
        let found: BTreeMap<String, ObjectId> = repository
            .list_refs(names::HEADS)
            .await?
            .into_iter()
            .map(|(name, id)| (name.as_str().to_owned(), id))
            .collect();
        for chunk in heads.chunks(REFS_PER_UPDATE) {
            let updates = chunk
                .iter()
                .map(|(name, commit)| {
                    let expected = found
                        .get(name)
                        .map_or(Expected::Absent, |id| Expected::Is(*id));
                    let new = Some(ObjectId::parse(commit.as_str())?);
                    let name = RefName::parse(name)?;
                    Ok(RefUpdate {
                        name,
                        new,
                        expected,
                    })
                })
                .collect::<Result<Vec<_>, Error>>()?;
            if let Update::Refused { name, .. } = repository.update_refs(&updates).await? {
                return Err(format!("{name} could not be moved").into());
            }
        }
        writing.done();
        self.moved.send_modify(|moved| *moved += 1);
        Ok(())
    }
}

/// Forgets branches of the oldest runs that are not live any more, beyond a bound.
fn forget_old(done: &mut BTreeMap<RunId, Said>, live: &[Wanted]) {
    let mut remembered: usize = done.values().map(|said| said.heads.len()).sum();
    let live: BTreeSet<RunId> = live.iter().map(|wanted| wanted.run).collect();
    done.retain(|run, said| {
        let stays = remembered <= REMEMBERED || live.contains(run);
        if !stays {
            remembered -= said.heads.len();
        }
        stays
    });
}
