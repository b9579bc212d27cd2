//! Makes the branches say what the journal says.
//!
//! The journal's commit ids are the truth; `refs/heads/muster/…` are a projection that people
//! fetch. Whoever is about to show refs to a person waits for [`Projection::settle`] first, so a
//! branch that lags behind or was moved by hand is repaired before anybody sees it.

use std::collections::BTreeMap;
use std::sync::Arc;

use coordinator_core::event::Outcome;
use coordinator_core::state::{Run, RunPhase, TaskState};
use coordinator_core::{CommitId, RunId};
use muster_git::{Expected, ObjectId, RefName, RefUpdate, Update};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::names;
use super::repositories::Repositories;
use crate::api::runs::Runs;
use crate::engine::Handle;

/// Refs moved by one git process.
const REFS_PER_UPDATE: usize = 1_000;

/// Projects the journal onto branches; cheap to clone.
#[derive(Clone)]
pub struct Projection {
    engine: Handle,
    repositories: Repositories,
    /// What each live run's branches were last made to say.
    done: Arc<Mutex<BTreeMap<RunId, BTreeMap<String, CommitId>>>>,
}

/// The branches of one run as the journal has them.
struct Wanted {
    run: RunId,
    repository: String,
    heads: BTreeMap<String, CommitId>,
}

impl Wanted {
    /// `None` for a run without a repository.
    fn of(run: &Run) -> Option<Self> {
        let source = run.source.as_ref()?;
        let mut heads = BTreeMap::new();
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
        Some(Self {
            run: run.id,
            repository: source.repository.to_string(),
            heads,
        })
    }
}

impl Projection {
    /// Makes the projection.
    #[must_use]
    pub fn new(engine: Handle, repositories: Repositories) -> Self {
        Self {
            engine,
            repositories,
            done: Arc::default(),
        }
    }

    /// Projects whatever changes, until cancelled or the engine ends.
    pub async fn run(self, ending: CancellationToken) {
        let mut changed = self.engine.notices().projection();
        loop {
            changed.mark_unchanged();
            match self.settle().await {
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

    /// Makes the branches of all live runs say what the journal says, and waits for it. Gives the
    /// runs that have ended: their branches are in place, so they may be archived.
    ///
    /// # Errors
    /// Git or the disk; what was not done is tried again next time.
    pub async fn settle(&self) -> Result<Vec<RunId>, Box<dyn std::error::Error + Send + Sync>> {
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
        done.retain(|run, _| wanted.iter().any(|wanted| wanted.run == *run));
        for wanted in wanted {
            let said = done.entry(wanted.run).or_default();
            let missing: Vec<(String, CommitId)> = wanted
                .heads
                .iter()
                .filter(|(name, commit)| said.get(*name) != Some(commit))
                .map(|(name, commit)| (name.clone(), commit.clone()))
                .collect();
            self.project(&wanted.repository, &missing).await?;
            said.extend(missing);
        }
        Ok(ended)
    }

    /// Repairs the branches of one run, live or archived, whatever was done before.
    ///
    /// # Errors
    /// As [`Projection::settle`], or the run is not known.
    pub async fn repair(
        &self,
        runs: &Runs,
        run: &str,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let Some(wanted) = runs.read(run, |run, _| Wanted::of(run)).await? else {
            return Ok(());
        };
        let heads: Vec<(String, CommitId)> = wanted.heads.into_iter().collect();
        let _one_at_a_time = self.done.lock().await;
        self.project(&wanted.repository, &heads).await
    }

    async fn project(
        &self,
        repository: &str,
        heads: &[(String, CommitId)],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        if heads.is_empty() {
            return Ok(());
        }
        let repository = self.repositories.open(repository).await?;
        for chunk in heads.chunks(REFS_PER_UPDATE) {
            let updates = chunk
                .iter()
                .map(|(name, commit)| {
                    let new = ObjectId::parse(commit.as_str())?;
                    let name = RefName::parse(name)?;
                    Ok(RefUpdate {
                        name,
                        new: Some(new),
                        expected: Expected::Any,
                    })
                })
                .collect::<Result<Vec<_>, Box<dyn std::error::Error + Send + Sync>>>()?;
            if let Update::Refused { name, .. } = repository.update_refs(&updates).await? {
                return Err(format!("{name} could not be moved").into());
            }
        }
        Ok(())
    }
}
