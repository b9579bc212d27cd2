//! Writes the message of a grant, and finds where a lease's events belong.

use std::sync::Arc;

use coordinator_core::event::Work;
use coordinator_core::state::Run;
use coordinator_core::{AttemptNo, CommitId, EventKind, LeaseId, RunId, TaskIx, WorkerId};
use muster_git::RefName;
use muster_proto::v1;
use serde::Serialize;
use tokio::sync::Semaphore;
use tonic::Status;
use tracing::warn;

use super::convert;
use super::limits::LEASE_SEARCHES;
use super::status;
use super::summaries::{self, Summaries};
use crate::auth::Authenticator;
use crate::engine::grant::{GrantFacts, ResumeFacts};
use crate::engine::{Handle, Readers};
use crate::git::names;
use crate::git::repositories::Repositories;
use crate::store::{self, EVENTS_PER_READ_MAX, Reader, Which};
use crate::transcript::{Place, Transcripts};

/// Place in a run's specs behind those of its tasks: the integration's document.
#[must_use]
pub fn integrate_spec(tasks: usize) -> u32 {
    u32::try_from(tasks).unwrap_or(u32::MAX)
}

/// Makes grants.
#[derive(Clone)]
pub struct Grants {
    engine: Handle,
    readers: Readers,
    credentials: Arc<Authenticator>,
    repositories: Repositories,
    searches: Arc<Semaphore>,
    summaries: Summaries,
}

/// What `MUSTER_CONTEXT_FILE` holds: everything an attempt may want to know about its task.
#[derive(Serialize)]
struct Context<'a> {
    run: &'a str,
    task: Option<&'a str>,
    attempt: Option<u32>,
    prompt: Option<serde_json::Value>,
    dependencies: Vec<ContextDependency<'a>>,
    earlier_attempts: Vec<ContextAttempt<'a>>,
    /// The earlier attempt, cut off, that this one goes on from.
    goes_on_from: Option<ContextResume<'a>>,
    /// What the last counted or uncounted failure of this generation was.
    last_failure: Option<ContextFailure<'a>>,
}

#[derive(Serialize)]
struct ContextDependency<'a> {
    task: &'a str,
    commit: Option<&'a str>,
    summary: &'a str,
}

#[derive(Serialize)]
struct ContextAttempt<'a> {
    attempt: u32,
    r#ref: Option<&'a str>,
    commit: Option<&'a str>,
    failure: Option<ContextFailure<'a>>,
    /// What its agent did, of the last ones.
    did: Option<summaries::Did<'a>>,
}

#[derive(Serialize)]
struct ContextResume<'a> {
    attempt: u32,
    /// Its conversation, as its agent names it.
    conversation: Option<&'a str>,
    /// Its unfinished edits, which the workspace begins with.
    edits: Option<ContextEdits<'a>>,
    /// What people answered and its agent was not given any more.
    answered: Vec<ContextAnswer<'a>>,
}

#[derive(Serialize)]
struct ContextEdits<'a> {
    attempt: u32,
    r#ref: &'a str,
    commit: &'a str,
}

#[derive(Serialize)]
struct ContextAnswer<'a> {
    question: &'a str,
    choice: &'a str,
    text: &'a str,
    by: &'a str,
}

#[derive(Serialize)]
struct ContextFailure<'a> {
    class: &'static str,
    message: &'a str,
    output: &'a str,
}

impl<'a> From<&'a coordinator_core::Failure> for ContextFailure<'a> {
    fn from(failure: &'a coordinator_core::Failure) -> Self {
        Self {
            class: failure.class.name(),
            message: &failure.message,
            output: &failure.output,
        }
    }
}

impl Grants {
    /// Makes the writer of grants.
    #[must_use]
    pub fn new(
        engine: Handle,
        readers: Readers,
        credentials: Arc<Authenticator>,
        repositories: Repositories,
        transcripts: &Transcripts,
    ) -> Self {
        Self {
            engine,
            readers,
            credentials,
            repositories,
            searches: Arc::new(Semaphore::new(LEASE_SEARCHES)),
            summaries: Summaries::new(transcripts),
        }
    }

    /// Writes the message of a grant.
    ///
    /// # Errors
    /// The task's document cannot be read.
    pub async fn message(&self, mut facts: GrantFacts) -> Result<v1::Grant, Status> {
        let run_id = facts.run_id;
        let edits = self.unfinished(&facts).await?;
        let spec = match facts.task {
            Some((task, _)) => task.0,
            None => self
                .engine
                .query(move |state, _| state.run(run_id).map(|run| integrate_spec(run.tasks.len())))
                .await
                .map_err(status::of)?
                .ok_or_else(|| Status::not_found("the run is gone"))?,
        };
        let run = facts.run.clone();
        let document = self
            .readers
            .read(move |reader| reader.spec(&run, TaskIx(spec)))
            .await
            .map_err(status::of_read)?
            .ok_or_else(|| Status::internal("the task's document is not in the store"))?;
        let earlier = self.summaries.of(&facts).await;
        let context = context_of(&facts, edits.as_ref(), &earlier, &document)?;
        if let (Some(edits), Some(source)) = (&edits, &mut facts.source) {
            source.read_ref.clone_from(&edits.name);
            source.commit = edits.commit.clone();
        }
        let attempt = match facts.work {
            Work::Attempt { attempt, .. } => Some(attempt.0),
            Work::Verify { .. } | Work::FinalVerify => None,
        };
        let task = facts
            .task
            .as_ref()
            .map(|(_, name)| name.to_string())
            .unwrap_or_default();
        let source = facts.source.map(|source| {
            let own = |name: fn(&str, &str, u32) -> String| {
                attempt
                    .map(|number| name(&facts.run, &task, number))
                    .unwrap_or_default()
            };
            v1::GitSource {
                repository: source.repository.to_string(),
                read_ref: source.read_ref,
                commit: source.commit.to_string(),
                attempt_ref: own(names::attempt),
                wip_ref: own(names::wip),
                salvage_ref: own(names::salvage),
                base: source.base.to_string(),
            }
        });
        Ok(v1::Grant {
            lease: facts.lease.0,
            heartbeat_seq: facts.heartbeat_seq,
            ttl: Some(convert::duration(facts.ttl)),
            run: facts.run.to_string(),
            task,
            work: Some(convert::work(facts.work)),
            credential: self.credentials.credentials().lease(facts.lease.0),
            source,
            document,
            context,
            timeout: Some(convert::duration(facts.timeout)),
            resume: facts.resume.map(resume),
            earlier,
        })
    }

    /// Finds the unfinished edits that an attempt goes on from: the newest that were pushed. Nobody
    /// may move their ref any more, since the lease that could is over.
    ///
    /// # Errors
    /// The repository cannot be read now.
    async fn unfinished(&self, facts: &GrantFacts) -> Result<Option<Edits>, Status> {
        let (Some(resume), Some(source)) = (&facts.resume, &facts.source) else {
            return Ok(None);
        };
        let repository = self.repositories.open(&source.repository).await?;
        for (attempt, name) in &resume.edits {
            let parsed = RefName::parse(name).map_err(|error| status::internal(&error))?;
            let found = repository.read_ref(&parsed).await.map_err(|error| {
                warn!(run = %facts.run, error = %error, "failed to look for unfinished edits");
                Status::unavailable("unfinished edits cannot be looked for now")
            })?;
            if let Some(commit) = found {
                return Ok(Some(Edits {
                    attempt: *attempt,
                    name: name.clone(),
                    commit: CommitId::new(&commit.to_string()),
                }));
            }
        }
        Ok(None)
    }

    /// Finds the transcript for a worker's events of a lease; `None` when the lease is not its own.
    ///
    /// # Errors
    /// The engine or the archive cannot be asked.
    pub async fn place(
        &self,
        worker: &WorkerId,
        events: &v1::LeaseEvents,
    ) -> Result<Option<Place>, Status> {
        let lease = LeaseId(events.lease);
        let (name, task) = (events.run.clone(), events.task.clone());
        let (work, owner) = (events.work, worker.clone());
        let found = self
            .engine
            .query(move |state, _| {
                if let Some(open) = state.lease(lease) {
                    return Some(Found::open(state.run(open.run)?, open, &owner));
                }
                Some(Found::ended(
                    state.run_by_name(&name)?,
                    &task,
                    work.as_ref(),
                    lease,
                    &owner,
                ))
            })
            .await
            .map_err(status::of)?;
        let found = match found {
            Some(found) => found,
            None => self.archived(worker, events).await?,
        };
        match found {
            Found::Nowhere => Ok(None),
            Found::At(place) => Ok(Some(place)),
            Found::IfGranted(run, place) => {
                let (work, owner) = (place.work, worker.clone());
                let _searches = self.searches.acquire().await;
                let granted = self
                    .readers
                    .read(move |reader| was_granted(reader, run, lease, work, &owner))
                    .await
                    .map_err(status::of_read)?;
                Ok(granted.then_some(place))
            }
        }
    }

    async fn archived(&self, worker: &WorkerId, events: &v1::LeaseEvents) -> Result<Found, Status> {
        let name = events.run.clone();
        let image = self
            .readers
            .read(move |reader| match reader.archived(Which::Name(&name))? {
                Some(summary) => reader.archived_image(summary.run),
                None => Ok(None),
            })
            .await
            .map_err(status::of_read)?;
        let lease = LeaseId(events.lease);
        Ok(image.map_or(Found::Nowhere, |image| {
            let work = events.work.as_ref();
            Found::ended(&image.run, &events.task, work, lease, worker)
        }))
    }
}

/// Unfinished edits of an attempt that was cut off.
struct Edits {
    attempt: AttemptNo,
    name: String,
    commit: CommitId,
}

/// Makes what an attempt goes on from for the wire.
fn resume(facts: ResumeFacts) -> v1::Resume {
    let (session, host, worker) = match facts.conversation {
        Some((opened, worker)) => (
            opened.id.into_string(),
            opened.host.to_string(),
            worker.to_string(),
        ),
        None => Default::default(),
    };
    let answered = facts.answered.into_iter().filter_map(|(lease, past)| {
        let asking = past.undelivered?;
        Some(v1::AnsweredQuestion {
            question: Some(convert::question(past.number, &asking)),
            answer: Some(v1::Answer {
                question: past.number,
                choice: past.choice.into(),
                text: past.text.into(),
                name: past.id.to_string(),
                by: past.by.to_string(),
            }),
            by: past.by.to_string(),
            lease: lease.0,
        })
    });
    v1::Resume {
        attempt: facts.attempt.0,
        session,
        host,
        worker,
        answered: answered.collect(),
    }
}

/// Where events of a lease belong.
enum Found {
    /// The lease is not the worker's.
    Nowhere,
    At(Place),
    /// There, if the run's history says that the worker was granted this lease for this work. The
    /// state forgets the leases of verifies, and a worker that makes one up must not spoil the
    /// transcript of a lease to come.
    IfGranted(RunId, Place),
}

/// Looks through a run's history for the grant of a lease.
fn was_granted(
    reader: &mut dyn Reader,
    run: RunId,
    wanted: LeaseId,
    wanted_work: Work,
    owner: &WorkerId,
) -> Result<bool, store::Error> {
    let mut from = 1;
    loop {
        let events = reader.run_events(run, from, EVENTS_PER_READ_MAX)?;
        let Some(last) = events.last() else {
            return Ok(false);
        };
        from = last.seq.saturating_add(1);
        for event in &events {
            if let EventKind::LeaseGranted {
                lease,
                worker,
                work,
                ..
            } = &event.kind
                && *lease == wanted
            {
                return Ok(worker == owner && *work == wanted_work);
            }
        }
    }
}

impl Found {
    fn open(run: &Run, lease: &coordinator_core::state::Lease, worker: &WorkerId) -> Self {
        if lease.worker != *worker {
            return Self::Nowhere;
        }
        let task = match lease.work {
            Work::Attempt { task, .. } | Work::Verify { task, .. } => {
                run.task(task).map(|task| task.name.clone())
            }
            Work::FinalVerify => Some(Arc::from("")),
        };
        task.map_or(Self::Nowhere, |task| {
            Self::At(Place {
                run: run.name.clone(),
                task,
                work: lease.work,
                lease: lease.id,
            })
        })
    }

    /// Of a lease that is over.
    fn ended(
        run: &Run,
        task: &str,
        work: Option<&v1::Work>,
        lease: LeaseId,
        worker: &WorkerId,
    ) -> Self {
        let ix = run.tasks.iter().position(|known| *known.name == *task);
        let ix = ix.and_then(|ix| u32::try_from(ix).ok()).map(TaskIx);
        let Some(work) = convert::work_of(work, ix.unwrap_or_default()) else {
            return Self::Nowhere;
        };
        let known = ix.and_then(|ix| run.task(ix));
        let task = match (work, known) {
            (Work::FinalVerify, _) => Arc::from(""),
            (Work::Attempt { .. } | Work::Verify { .. }, Some(task)) => task.name.clone(),
            (Work::Attempt { .. } | Work::Verify { .. }, None) => return Self::Nowhere,
        };
        let place = Place {
            run: run.name.clone(),
            task,
            work,
            lease,
        };
        let Work::Attempt { attempt, .. } = work else {
            return Self::IfGranted(run.id, place);
        };
        let mut attempts = known.map_or(&[][..], |task| task.attempts()).iter();
        let own = attempts.any(|tried| {
            tried.number == attempt && tried.lease == lease && tried.worker == *worker
        });
        if own { Self::At(place) } else { Self::Nowhere }
    }
}

fn context_resume<'a>(facts: &'a ResumeFacts, edits: Option<&'a Edits>) -> ContextResume<'a> {
    let conversation = facts.conversation.as_ref();
    ContextResume {
        attempt: facts.attempt.0,
        conversation: conversation.map(|(opened, _)| &*opened.id),
        edits: edits.map(|edits| ContextEdits {
            attempt: edits.attempt.0,
            r#ref: &edits.name,
            commit: edits.commit.as_str(),
        }),
        answered: facts
            .answered
            .iter()
            .map(|(_, past)| ContextAnswer {
                question: &past.title,
                choice: &past.choice,
                text: &past.text,
                by: &past.by,
            })
            .collect(),
    }
}

fn context_of(
    facts: &GrantFacts,
    edits: Option<&Edits>,
    summed_up: &[v1::EarlierAttempt],
    document: &[u8],
) -> Result<Vec<u8>, Status> {
    let prompt = serde_json::from_slice::<serde_json::Value>(document)
        .ok()
        .and_then(|mut document| document.get_mut("prompt").map(serde_json::Value::take));
    let context = Context {
        run: &facts.run,
        task: facts.task.as_ref().map(|(_, name)| &**name),
        attempt: match facts.work {
            Work::Attempt { attempt, .. } | Work::Verify { attempt, .. } => Some(attempt.0),
            Work::FinalVerify => None,
        },
        prompt,
        dependencies: facts
            .dependencies
            .iter()
            .map(|dependency| ContextDependency {
                task: &dependency.task,
                commit: dependency.commit.as_ref().map(CommitId::as_str),
                summary: &dependency.summary,
            })
            .collect(),
        earlier_attempts: facts
            .earlier
            .iter()
            .map(|earlier| ContextAttempt {
                attempt: earlier.attempt.0,
                r#ref: earlier.published.as_ref().map(|(name, _)| name.as_str()),
                commit: earlier
                    .published
                    .as_ref()
                    .map(|(_, commit)| commit.as_str()),
                failure: earlier.failure.as_ref().map(Into::into),
                did: summed_up
                    .iter()
                    .find(|summary| summary.attempt == earlier.attempt.0)
                    .map(Into::into),
            })
            .collect(),
        goes_on_from: facts
            .resume
            .as_ref()
            .map(|resume| context_resume(resume, edits)),
        last_failure: facts.last_failure.as_ref().map(Into::into),
    };
    serde_json::to_vec(&context).map_err(|error| Status::internal(error.to_string()))
}
