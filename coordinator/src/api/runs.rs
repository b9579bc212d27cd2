//! Finding runs, live or archived.

use std::path::Path;
use std::sync::Arc;

use coordinator_core::state::{Run, RunImage};
use coordinator_core::{Command, Reply, RunId};
use muster_proto::v1;
use tokio::sync::Semaphore;
use tonic::Status;
use tracing::debug;

use super::feed::{Feed, Feeds};
use super::limits::{LOOKS, TRANSCRIPT_READS};
use super::status;
use super::view;
use crate::engine::{self, Handle, Readers};
use crate::store::Which;
use crate::transcript::{self, Transcripts};

/// Runs listed at once.
const LIST_MAX: usize = 500;
/// Tasks that the engine counts before it does something else.
const TASKS_COUNTED: usize = 50_000;

/// Finds and shows runs; cheap to clone.
#[derive(Clone)]
pub struct Runs {
    engine: Handle,
    readers: Readers,
    transcripts: Transcripts,
    feeds: Feeds,
    /// Places among those who read transcripts.
    transcript_reads: Arc<Semaphore>,
    /// Places among those for whom the engine looks through runs.
    looks: Arc<Semaphore>,
}

impl Runs {
    /// Makes the finder.
    #[must_use]
    pub fn new(engine: Handle, readers: Readers, transcripts: Transcripts, feeds: Feeds) -> Self {
        Self {
            engine,
            readers,
            transcripts,
            feeds,
            transcript_reads: Arc::new(Semaphore::new(TRANSCRIPT_READS)),
            looks: Arc::new(Semaphore::new(LOOKS)),
        }
    }

    /// Gives the engine.
    #[must_use]
    pub fn engine(&self) -> &Handle {
        &self.engine
    }

    /// Gives the store's readers.
    #[must_use]
    pub fn readers(&self) -> &Readers {
        &self.readers
    }

    /// Gives the transcripts.
    #[must_use]
    pub fn transcripts(&self) -> &Transcripts {
        &self.transcripts
    }

    /// Reads something of a run, wherever it is.
    ///
    /// # Errors
    /// `NOT_FOUND` when no run has that name.
    pub async fn read<T: Send + 'static>(
        &self,
        name: &str,
        read: impl Fn(&Run, bool) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let wanted = name.to_owned();
        let looks = self.looks.acquire().await;
        let (live, read) = self
            .engine
            .query(move |state, _| {
                let live = state.run_by_name(&wanted).map(|run| read(run, false));
                (live, read)
            })
            .await
            .map_err(status::of)?;
        drop(looks);
        match live {
            Some(live) => Ok(live),
            None => Ok(read(&self.archived(name).await?.run, true)),
        }
    }

    /// Gives an archived run.
    ///
    /// # Errors
    /// `NOT_FOUND` when no archived run has that name.
    pub async fn archived(&self, name: &str) -> Result<RunImage, Status> {
        let wanted = name.to_owned();
        self.readers
            .read(move |reader| match reader.archived(Which::Name(&wanted))? {
                Some(summary) => reader.archived_image(summary.run),
                None => Ok(None),
            })
            .await
            .map_err(status::of_read)?
            .ok_or_else(|| Status::not_found(format!("no run {name:?}; `status` lists the runs")))
    }

    /// Gives what the watchers of a run share.
    ///
    /// # Errors
    /// `NOT_FOUND` when no run has that name.
    pub(super) async fn feed(&self, name: &str) -> Result<Arc<Feed>, Status> {
        let live = engine::live_run(&self.engine, name)
            .await
            .map_err(status::of)?;
        let run = match live {
            Some(run) => Some(run),
            None => {
                let wanted = name.to_owned();
                let found = self
                    .readers
                    .read(move |reader| reader.archived(Which::Name(&wanted)))
                    .await
                    .map_err(status::of_read)?;
                found.map(|summary| summary.run)
            }
        };
        let known = || run.and_then(|run| self.feeds.known(run));
        if let Some(feed) = known() {
            return Ok(feed);
        }
        // Of thousands who come at once one asks for the names of all tasks.
        let _opening = self.feeds.opening().await;
        if let Some(feed) = known() {
            return Ok(feed);
        }
        let (run, name, tasks) = self
            .read(name, |run, _| {
                let tasks = run.tasks.iter().map(|task| task.name.clone()).collect();
                (run.id, run.name.clone(), tasks)
            })
            .await?;
        Ok(self.feeds.of(run, name, tasks))
    }

    /// Reads transcripts, whose folder is given, on a blocking thread.
    ///
    /// # Errors
    /// The transcripts' own.
    pub(super) async fn read_transcript<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Path) -> Result<T, transcript::Error> + Send + 'static,
    ) -> Result<T, Status> {
        let room = self.transcript_reads.clone().acquire_owned().await;
        let root = self.transcripts.root().to_owned();
        tokio::task::spawn_blocking(move || {
            let _room = room;
            read(&root)
        })
        .await
        .map_err(|error| status::internal(&error))?
        .map_err(|error| status::internal(&error))
    }

    /// Brings an archived run back, so that the command that follows finds it live. Nothing can
    /// come between the two: an ended run that is live would go to the archive again.
    ///
    /// # Errors
    /// The command's rejection; one of the reload means that the run is live by now.
    pub async fn revive_for(&self, image: RunImage, command: Command) -> Result<Reply, Status> {
        let image = Arc::new(image);
        let (reload, answer) = self
            .engine
            .both(Command::Reload { image }, command)
            .await
            .map_err(status::of)?;
        if let Err(error) = reload {
            debug!(%error, "a run to be brought back is live already");
        }
        answer.map_err(|rejection| status::of_rejection(&rejection))
    }

    /// Describes live runs, newest first. The engine is asked again and again for some of them, so
    /// that it does not count the tasks of the largest ones while others wait.
    async fn live(
        &self,
        mut before: Option<RunId>,
        limit: usize,
    ) -> Result<Vec<(RunId, v1::RunSummary)>, Status> {
        let mut found: Vec<(RunId, v1::RunSummary)> = Vec::new();
        loop {
            let missing = limit.saturating_sub(found.len());
            let _looks = self.looks.acquire().await;
            let (part, more) = self
                .engine
                .query(move |state, _| {
                    let older = |run: &&Run| before.is_none_or(|before| run.id < before);
                    let mut part = Vec::new();
                    let mut counted = 0;
                    for run in state.runs().rev().filter(older).take(missing) {
                        if counted >= TASKS_COUNTED {
                            return (part, true);
                        }
                        counted += run.tasks.len();
                        part.push((run.id, view::summary(run, false)));
                    }
                    (part, false)
                })
                .await
                .map_err(status::of)?;
            before = part.last().map(|(run, _)| *run).or(before);
            found.extend(part);
            if !more {
                return Ok(found);
            }
        }
    }

    /// Lists runs, newest first.
    ///
    /// # Errors
    /// A malformed page token.
    pub async fn list(
        &self,
        request: &v1::ListRunsRequest,
    ) -> Result<v1::ListRunsResponse, Status> {
        let before = match request.page_token.as_str() {
            "" => None,
            token => Some(RunId(token.parse().map_err(|_| {
                Status::invalid_argument("page_token: not one of ours")
            })?)),
        };
        let limit = match usize::try_from(request.limit).unwrap_or(LIST_MAX) {
            0 => LIST_MAX,
            limit => limit.min(LIST_MAX),
        };
        let mut runs = self.live(before, limit.saturating_add(1)).await?;
        let archived = self
            .readers
            // One more than is shown tells whether there is another page.
            .read(move |reader| reader.archived_runs(before, limit.saturating_add(1)))
            .await
            .map_err(status::of_read)?;
        for summary in archived {
            // A run that is being archived or was taken back shows as what it is now.
            if !runs.iter().any(|(run, _)| *run == summary.run) {
                runs.push((summary.run, view::archived_summary(&summary)));
            }
        }
        runs.sort_by_key(|(run, _)| std::cmp::Reverse(*run));
        let more = runs.len() > limit;
        runs.truncate(limit);
        let next_page_token = match runs.last() {
            Some((last, _)) if more => last.0.to_string(),
            _ => String::new(),
        };
        let runs = runs.into_iter().map(|(_, summary)| summary).collect();
        Ok(v1::ListRunsResponse {
            runs,
            next_page_token,
        })
    }
}
