//! What people and programs ask of the coordinator.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use coordinator_core::command::Target;
use coordinator_core::event::Work;
use coordinator_core::state::{Link, Run};
use coordinator_core::{Command, Epoch, LeaseId, Reply, State, TaskKey, WorkerId};
use futures::{Stream, StreamExt as _};
use muster_connect::TokenId;
use muster_proto::v1::operator_service_server::OperatorService;
use muster_proto::v1::{self, ProtocolVersion};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::agents::Agents;
use super::conflicts;
use super::diff;
use super::frames::{self, Sent};
use super::limits::{FAREWELL, LOGS, TASKS_PER_PAGE, WATCHES};
use super::log;
use super::places::Connection;
use super::pools::{self, Pools};
use super::questions;
use super::runs::Runs;
use super::slow;
use super::submit::Submissions;
use super::tokens;
use super::troubles::Troubles;
use super::usage::Meter;
use super::watch::{self, Cursor, Wish};
use super::{convert, status, view};
use crate::auth::{Access, Authenticator, Identity, Unverified};
use crate::engine;
use crate::git::conflicts::Explainer;
use crate::git::mirror::Mirrors;
use crate::git::repositories::Repositories;

/// Responses of a stream that wait for a slow client.
const STREAM_QUEUE: usize = 2;
/// Batches of a watch's responses that wait for a slow client.
const WATCH_QUEUE: usize = 2;
/// How often a stream looks whether the token that it was asked for with was revoked.
const TOKEN_CHECK: Duration = Duration::from_secs(2);

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What a person is told about the coordinator.
#[derive(Clone, Debug)]
pub struct About {
    pub epoch: Epoch,
    pub address: String,
    pub mode: &'static str,
}

/// Serves operators.
pub struct Operators {
    runs: Runs,
    submissions: Submissions,
    repositories: Repositories,
    conflicts: Explainer,
    mirrors: Option<Mirrors>,
    auth: Arc<Authenticator>,
    about: About,
    troubles: Troubles,
    agents: Agents,
    meter: Option<Meter>,
    pools: Pools,
    /// Cancelled when an admin asks for the end.
    shutdown: CancellationToken,
    ending: CancellationToken,
    /// Places of watches.
    watches: Arc<Semaphore>,
    logs: Arc<Semaphore>,
}

impl Operators {
    /// Makes the service. `shutdown` is cancelled on request; streams end when `ending` is.
    #[must_use]
    pub fn new(
        runs: Runs,
        submissions: Submissions,
        repositories: Repositories,
        auth: Arc<Authenticator>,
        about: About,
        shutdown: CancellationToken,
        ending: CancellationToken,
    ) -> Self {
        Self {
            runs,
            submissions,
            conflicts: Explainer::new(repositories.clone()),
            mirrors: None,
            repositories,
            auth,
            about,
            troubles: Troubles::default(),
            agents: Agents::default(),
            meter: None,
            pools: Pools::default(),
            shutdown,
            ending,
            watches: Arc::new(Semaphore::new(WATCHES)),
            logs: Arc::new(Semaphore::new(LOGS)),
        }
    }

    /// Shows also what workers have found of agents.
    #[must_use]
    pub fn with_agents(mut self, agents: Agents) -> Self {
        self.agents = agents;
        self
    }

    /// Shows also what workers say is the matter with them.
    #[must_use]
    pub fn with_troubles(mut self, troubles: Troubles) -> Self {
        self.troubles = troubles;
        self
    }

    /// Shows also where the branches of runs are on mirrors.
    #[must_use]
    pub fn with_mirrors(mut self, mirrors: Mirrors) -> Self {
        self.mirrors = Some(mirrors);
        self
    }

    /// Tells also what was used of models.
    #[must_use]
    pub fn with_meter(mut self, meter: Meter) -> Self {
        self.meter = Some(meter);
        self
    }

    /// Tells also of the pools that are configured.
    #[must_use]
    pub fn with_pools(mut self, pools: Pools) -> Self {
        self.pools = pools;
        self
    }

    /// Finds what a command is about: the run, or one of its tasks.
    async fn target(&self, run: &str, task: &str) -> Result<Target, Status> {
        let task = task.to_owned();
        self.runs
            .read(run, move |run, _| target_in(run, &task))
            .await?
    }

    async fn touch(&self, command: Command) -> Result<u32, Status> {
        let reply = self.runs.engine().command(command).await;
        reply.map(|reply| touched(&reply)).map_err(status::of)
    }

    /// Begins a watch and gives its responses, ready to be sent.
    ///
    /// # Errors
    /// Not for this sender, a malformed cursor, or no place for another watch.
    pub(super) fn watch(&self, request: Request<v1::WatchRunRequest>) -> Result<Sent, Status> {
        allowed(&request, Access::View)?;
        let token = Identity::of(request.extensions())?.token();
        let connection = request.extensions().get::<Connection>().cloned();
        let request = request.into_inner();
        let mut cursor = Cursor::parse(&request.cursor)?;
        let from_event = request.cursor.is_empty();
        if from_event {
            cursor.seq = request.after_seq;
        }
        let wish = Wish {
            run: request.run,
            cursor,
            from_event,
            agent_events: request.agent_events,
            follow_after_end: request.follow_after_end,
        };
        let place = self.watches.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "watches: {WATCHES} are open, and no more are served; try again later"
            ))
        })?;
        let (out, parts) = mpsc::channel(WATCH_QUEUE);
        let produce = watch::follow(self.runs.clone(), wish, out.clone(), connection.clone());
        self.produce(produce, out, (token, connection));
        Ok(Sent::new(parts, place))
    }

    /// Fills a stream of responses until the coordinator ends, or the token that asked for it.
    fn produce<T: Send + 'static>(
        &self,
        produce: impl Future<Output = ()> + Send + 'static,
        out: mpsc::Sender<Result<T, Status>>,
        (token, connection): (Option<TokenId>, Option<Connection>),
    ) {
        let (ending, auth) = (self.ending.clone(), self.auth.clone());
        tokio::spawn(async move {
            tokio::select! {
                gone = ended(&auth, token, TOKEN_CHECK) => {
                    slow::end(gone, &out, FAREWELL, connection.as_ref()).await;
                }
                () = ending.cancelled() => {
                    let stopping = Status::unavailable("the coordinator is stopping");
                    slow::end(stopping, &out, FAREWELL, connection.as_ref()).await;
                }
                () = produce => {}
            }
        });
    }
}

/// Waits until a token is revoked or has run out, and looks once in each `pace`.
pub(super) async fn ended(auth: &Authenticator, token: Option<TokenId>, pace: Duration) -> Status {
    let Some(token) = token else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(pace).await;
        match auth.tokens().is_live(token, jiff::Timestamp::now()) {
            // One that cannot be looked up now may still be good.
            Ok(()) | Err(Unverified::Store(_)) => {}
            Err(gone) => return Status::unauthenticated(gone.to_string()),
        }
    }
}

fn touched(reply: &Reply) -> u32 {
    match reply {
        Reply::Touched { tasks } => u32::try_from(*tasks).unwrap_or(u32::MAX),
        _ => 0,
    }
}

fn target_in(run: &Run, task: &str) -> Result<Target, Status> {
    if task.is_empty() {
        return Ok(Target::Run(run.id));
    }
    let ix = run.tasks.iter().position(|known| *known.name == *task);
    ix.and_then(|ix| u32::try_from(ix).ok())
        .map(|ix| {
            Target::Task(TaskKey {
                run: run.id,
                task: coordinator_core::TaskIx(ix),
            })
        })
        .ok_or_else(|| Status::not_found(format!("no task {task:?} in that run")))
}

fn allowed<T>(request: &Request<T>, access: Access) -> Result<String, Status> {
    let identity = Identity::of(request.extensions())?;
    identity.require(access)?;
    Ok(identity.to_string())
}

#[tonic::async_trait]
impl OperatorService for Operators {
    async fn get_info(
        &self,
        request: Request<v1::GetInfoRequest>,
    ) -> Result<Response<v1::GetInfoResponse>, Status> {
        allowed(&request, Access::View)?;
        if let Some(theirs) = &request.get_ref().version
            && !theirs.is_compatible()
        {
            return Err(status::incompatible(theirs));
        }
        let (workers, slots, runs) = self
            .runs
            .engine()
            .query(|state, _| {
                let up = state
                    .workers()
                    .filter(|worker| matches!(worker.link, Link::Up { .. }));
                let slots: Vec<u32> = up.map(|worker| worker.offer.slots).collect();
                (slots.len(), slots.iter().sum::<u32>(), state.runs().count())
            })
            .await
            .map_err(status::of)?;
        Ok(Response::new(v1::GetInfoResponse {
            version: Some(ProtocolVersion::current(crate::SOFTWARE)),
            epoch: self.about.epoch.0,
            address: self.about.address.clone(),
            workers_connected: u32::try_from(workers).unwrap_or(u32::MAX),
            live_runs: u32::try_from(runs).unwrap_or(u32::MAX),
            slots,
            mode: self.about.mode.to_owned(),
            home_id: self.auth.home_id().to_owned(),
        }))
    }

    async fn prepare_run(
        &self,
        request: Request<v1::PrepareRunRequest>,
    ) -> Result<Response<v1::PrepareRunResponse>, Status> {
        allowed(&request, Access::Operate)?;
        self.submissions
            .prepare(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn submit_run(
        &self,
        request: Request<v1::SubmitRunRequest>,
    ) -> Result<Response<v1::SubmitRunResponse>, Status> {
        let by = allowed(&request, Access::Operate)?;
        self.submissions
            .submit(request.into_inner(), &by)
            .await
            .map(Response::new)
    }

    async fn get_run(
        &self,
        request: Request<v1::GetRunRequest>,
    ) -> Result<Response<v1::GetRunResponse>, Status> {
        allowed(&request, Access::View)?;
        let v1::GetRunRequest {
            run,
            limit,
            page_token,
        } = request.into_inner();
        let from: usize = match page_token.as_str() {
            "" => 0,
            token => token
                .parse()
                .map_err(|_| Status::invalid_argument("page_token: not one of ours"))?,
        };
        let limit = match usize::try_from(limit).unwrap_or(TASKS_PER_PAGE) {
            0 => TASKS_PER_PAGE,
            limit => limit.min(TASKS_PER_PAGE),
        };
        let upto = from.saturating_add(limit);
        let (mut run, more) = self
            .runs
            .read(&run, move |run, archived| {
                (
                    view::page(run, archived, from..upto),
                    run.tasks.len() > upto,
                )
            })
            .await?;
        run.mirror = self
            .mirrors
            .as_ref()
            .and_then(|mirrors| view::mirror(mirrors, &run));
        if let Some(meter) = self.meter.as_ref().filter(|_| from == 0) {
            run.usage = meter.of_run(&run.run, run.ended_at.is_some()).await;
        }
        let next_page_token = if more {
            upto.to_string()
        } else {
            String::new()
        };
        Ok(Response::new(v1::GetRunResponse {
            run: Some(run),
            next_page_token,
        }))
    }

    async fn list_runs(
        &self,
        request: Request<v1::ListRunsRequest>,
    ) -> Result<Response<v1::ListRunsResponse>, Status> {
        allowed(&request, Access::View)?;
        self.runs.list(request.get_ref()).await.map(Response::new)
    }

    type WatchRunStream = Streamed<v1::WatchRunResponse>;

    async fn watch_run(
        &self,
        request: Request<v1::WatchRunRequest>,
    ) -> Result<Response<Self::WatchRunStream>, Status> {
        let sent = self.watch(request)?;
        Ok(Response::new(Box::pin(frames::messages(sent))))
    }

    type ReadLogStream = Streamed<v1::ReadLogResponse>;

    async fn read_log(
        &self,
        request: Request<v1::ReadLogRequest>,
    ) -> Result<Response<Self::ReadLogStream>, Status> {
        allowed(&request, Access::View)?;
        let token = Identity::of(request.extensions())?.token();
        let connection = request.extensions().get::<Connection>().cloned();
        let request = request.into_inner();
        let place = self.logs.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "logs: {LOGS} are being sent, and no more are served; try again later"
            ))
        })?;
        let log = log::find(&self.runs, &request).await?;
        let (out, inbox) = mpsc::channel(STREAM_QUEUE);
        let produce = log::send(
            self.runs.clone(),
            log,
            (LeaseId(request.after_lease), request.after),
            request.follow,
            out.clone(),
            connection.clone(),
        );
        self.produce(produce, out, (token, connection));
        let responses = ReceiverStream::new(inbox).map(move |response| {
            // A log has its place until its last response was taken.
            let _place = &place;
            response
        });
        Ok(Response::new(Box::pin(responses)))
    }

    async fn get_diff(
        &self,
        request: Request<v1::GetDiffRequest>,
    ) -> Result<Response<v1::GetDiffResponse>, Status> {
        allowed(&request, Access::View)?;
        diff::of(&self.runs, &self.repositories, request.get_ref())
            .await
            .map(Response::new)
    }

    async fn get_conflicts(
        &self,
        request: Request<v1::GetConflictsRequest>,
    ) -> Result<Response<v1::GetConflictsResponse>, Status> {
        allowed(&request, Access::View)?;
        conflicts::of(&self.runs, &self.conflicts, request.get_ref())
            .await
            .map(Response::new)
    }

    async fn explain_task(
        &self,
        request: Request<v1::ExplainTaskRequest>,
    ) -> Result<Response<v1::ExplainTaskResponse>, Status> {
        allowed(&request, Access::View)?;
        let v1::ExplainTaskRequest { run, task } = request.get_ref();
        let told = super::explain::of(&self.runs, run, task, self.troubles.told());
        let mut told = told.await?;
        self.pools.add_troubles(&mut told.pools);
        Ok(Response::new(told))
    }

    async fn get_usage(
        &self,
        request: Request<v1::GetUsageRequest>,
    ) -> Result<Response<v1::GetUsageResponse>, Status> {
        allowed(&request, Access::View)?;
        let meter = self.meter.as_ref();
        let meter = meter.ok_or_else(|| Status::unavailable("usage is not counted here"))?;
        meter.usage(request.into_inner()).await.map(Response::new)
    }

    async fn cancel(
        &self,
        request: Request<v1::CancelRequest>,
    ) -> Result<Response<v1::CancelResponse>, Status> {
        let by = allowed(&request, Access::Operate)?;
        let v1::CancelRequest { run, task, reason } = request.into_inner();
        if engine::live_run(self.runs.engine(), &run)
            .await
            .map_err(status::of)?
            .is_none()
        {
            self.runs.archived(&run).await?;
            return Err(Status::failed_precondition(format!("run {run} has ended")));
        }
        let target = self.target(&run, &task).await?;
        let reason = convert::clip(&reason, coordinator_core::limits::TEXT_BYTES).into();
        let tasks = self
            .touch(Command::Cancel {
                target,
                by: by.into(),
                reason,
            })
            .await?;
        Ok(Response::new(v1::CancelResponse { tasks }))
    }

    async fn retry(
        &self,
        request: Request<v1::RetryRequest>,
    ) -> Result<Response<v1::RetryResponse>, Status> {
        let by = allowed(&request, Access::Operate)?;
        let v1::RetryRequest { run, task } = request.into_inner();
        let target = self.target(&run, &task).await?;
        let by = by.into();
        let command = Command::Retry { target, by };
        let live = engine::live_run(self.runs.engine(), &run)
            .await
            .map_err(status::of)?;
        let tried = match live {
            Some(_) => self.runs.engine().command(command.clone()).await,
            None => Err(coordinator_core::Rejection::UnknownTarget.into()),
        };
        let reply = match tried {
            // It is in the archive, or went there in this moment.
            Err(engine::Error::Rejected(coordinator_core::Rejection::UnknownTarget)) => {
                let image = self.runs.archived(&run).await?;
                self.runs.revive_for(image, command).await?
            }
            tried => tried.map_err(status::of)?,
        };
        let tasks = touched(&reply);
        Ok(Response::new(v1::RetryResponse { tasks }))
    }

    async fn list_questions(
        &self,
        request: Request<v1::ListQuestionsRequest>,
    ) -> Result<Response<v1::ListQuestionsResponse>, Status> {
        allowed(&request, Access::View)?;
        let listed = questions::list(&self.runs, request.into_inner()).await?;
        Ok(Response::new(listed))
    }

    async fn answer_question(
        &self,
        request: Request<v1::AnswerQuestionRequest>,
    ) -> Result<Response<v1::AnswerQuestionResponse>, Status> {
        let by = allowed(&request, Access::Operate)?;
        let answered = questions::answer(&self.runs, request.into_inner(), by).await?;
        Ok(Response::new(answered))
    }

    async fn list_workers(
        &self,
        request: Request<v1::ListWorkersRequest>,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        allowed(&request, Access::View)?;
        let workers = {
            let troubles = self.troubles.told();
            let agents = self.agents.told();
            let query = move |state: &State, _| workers(state, &troubles, agents);
            self.runs.engine().query(query).await
        };
        Ok(Response::new(v1::ListWorkersResponse {
            workers: workers.map_err(status::of)?,
        }))
    }

    async fn drain_worker(
        &self,
        request: Request<v1::DrainWorkerRequest>,
    ) -> Result<Response<v1::DrainWorkerResponse>, Status> {
        let by = allowed(&request, Access::Operate)?;
        let v1::DrainWorkerRequest { worker, undo } = request.into_inner();
        let worker = WorkerId::new(&worker);
        let command = Command::Drain {
            worker,
            draining: !undo,
            by: by.into(),
        };
        self.runs
            .engine()
            .command(command)
            .await
            .map_err(status::of)?;
        Ok(Response::new(v1::DrainWorkerResponse {}))
    }

    async fn list_pools(
        &self,
        request: Request<v1::ListPoolsRequest>,
    ) -> Result<Response<v1::ListPoolsResponse>, Status> {
        allowed(&request, Access::View)?;
        let (engine, readers) = (self.runs.engine(), self.runs.readers());
        let listed = self.pools.list(engine, readers, &request.get_ref().pool);
        listed.await.map(Response::new)
    }

    async fn plan_pools(
        &self,
        request: Request<v1::PlanPoolsRequest>,
    ) -> Result<Response<v1::PlanPoolsResponse>, Status> {
        allowed(&request, Access::View)?;
        pools::plan(self.runs.engine()).await.map(Response::new)
    }

    async fn pause_pool(
        &self,
        request: Request<v1::PausePoolRequest>,
    ) -> Result<Response<v1::PausePoolResponse>, Status> {
        let by = allowed(&request, Access::Operate)?;
        let paused = pools::pause(self.runs.engine(), request.into_inner(), &by);
        paused.await.map(Response::new)
    }

    async fn resume_pool(
        &self,
        request: Request<v1::ResumePoolRequest>,
    ) -> Result<Response<v1::ResumePoolResponse>, Status> {
        let by = allowed(&request, Access::Operate)?;
        let resumed = pools::resume(self.runs.engine(), request.into_inner(), &by);
        resumed.await.map(Response::new)
    }

    async fn forget_pool(
        &self,
        request: Request<v1::ForgetPoolRequest>,
    ) -> Result<Response<v1::ForgetPoolResponse>, Status> {
        let by = allowed(&request, Access::Administer)?;
        let forgotten = pools::forget(self.runs.engine(), request.into_inner(), &by);
        forgotten.await.map(Response::new)
    }

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        allowed(&request, Access::Administer)?;
        let created = tokens::create(&self.auth, request.into_inner());
        created.await.map(Response::new)
    }

    async fn list_tokens(
        &self,
        request: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensResponse>, Status> {
        allowed(&request, Access::Administer)?;
        tokens::list(&self.auth).await.map(Response::new)
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenResponse>, Status> {
        allowed(&request, Access::Administer)?;
        let revoked = tokens::revoke(&self.auth, request.get_ref());
        revoked.await.map(Response::new)
    }

    async fn shutdown(
        &self,
        request: Request<v1::ShutdownRequest>,
    ) -> Result<Response<v1::ShutdownResponse>, Status> {
        allowed(&request, Access::Administer)?;
        self.runs.engine().hold(true).await.map_err(status::of)?;
        if request.get_ref().now {
            self.shutdown.cancel();
        }
        Ok(Response::new(v1::ShutdownResponse {}))
    }
}

fn workers(
    state: &State,
    troubles: &BTreeMap<WorkerId, String>,
    mut agents: BTreeMap<WorkerId, Vec<v1::WorkerAgent>>,
) -> Vec<v1::Worker> {
    state
        .workers()
        .map(|worker| {
            let held: Vec<_> = state.leases_of_worker(&worker.id).collect();
            let tasks = held
                .iter()
                .filter_map(|lease| {
                    let run = state.run(lease.run)?;
                    let task = match lease.work {
                        Work::Attempt { task, .. } | Work::Verify { task, .. } => run.task(task),
                        Work::FinalVerify => None,
                    };
                    Some(match task {
                        Some(task) => format!("{}/{}", run.name, task.name),
                        None => run.name.to_string(),
                    })
                })
                .collect();
            let (link, heard_at) = match worker.link {
                Link::Up {
                    heard_at, draining, ..
                } => (
                    if draining || worker.draining {
                        "draining"
                    } else {
                        "connected"
                    },
                    heard_at,
                ),
                // Nothing that it held is missing: it has finished, or was never given anything.
                Link::Down { since } if held.is_empty() => ("away", since),
                Link::Down { since } => ("lost", since),
            };
            v1::Worker {
                worker: worker.id.to_string(),
                host: worker.offer.host.to_string(),
                pool: worker.offer.pool.to_string(),
                state: link.to_owned(),
                slots: worker.offer.slots,
                leases: u32::try_from(held.len()).unwrap_or(u32::MAX),
                labels: worker
                    .offer
                    .labels
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
                resources: worker
                    .offer
                    .resources
                    .iter()
                    .map(|(name, amount)| (name.to_string(), *amount))
                    .collect(),
                agents: worker
                    .offer
                    .agents
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
                heard_at: Some(convert::timestamp(heard_at)),
                incarnation: worker.incarnation.0,
                tasks,
                trouble: troubles.get(&worker.id).cloned().unwrap_or_default(),
                programs: agents.remove(&worker.id).unwrap_or_default(),
                allocation: worker
                    .offer
                    .allocation
                    .map(|id| id.to_string())
                    .unwrap_or_default(),
                gone: link == "away"
                    && worker
                        .offer
                        .allocation
                        .is_some_and(|id| state.allocation(id).is_none()),
            }
        })
        .collect()
}
