//! Carries a lease through its phases.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use muster_git::{Expected, GitError, ObjectId, RefName, Workspace};
use muster_proto::v1::{
    Empty, Failed, Failure, GitSource, Grant, Outcome, Usage, outcome, report, work,
};
use rustix::process::Signal;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::allowance::Allowance;
use super::environment::environment;
use super::folder::LeaseFolder;
use super::given::Given;
use super::launch::{self, Launched, Program, Ran};
use super::machine::{Happened, Next, Phase};
use super::meter::Metering;
use super::needs;
use super::publish::{self, Credential};
use super::scribe::Scribe;
use super::{FromLease, Orders, Site, Stop};
use crate::agent::{Place, agent_of};
use crate::clock::{self, Boottime};
use crate::departure::HandOver;
use crate::document::{Change, TaskDocument};
use crate::failure::{chain, class, failure};
use crate::identity::create_private;
use crate::mask::Hidden;
use crate::spool::{OUTPUT_BYTES_MAX, Spool};
use crate::supervisor::{End, ExitReport, StopCause, TERM_GRACE};

/// Tries of fetching and checking out, and the pause before the second; doubles.
const PREPARE_TRIES: u32 = 4;
const PREPARE_PAUSE: Duration = Duration::from_secs(1);
/// How long a result may take to be pushed: an outage of the coordinator's disk, not of a person.
const PUBLISH_LIMIT: Duration = Duration::from_secs(600);
/// How long a failed attempt's report waits for its edits to be kept.
const KEEP_LIMIT: Duration = Duration::from_secs(30);
/// Tries of keeping them, and the pause between two.
const KEEP_TRIES: u32 = 4;
const KEEP_PAUSE: Duration = Duration::from_millis(500);
/// With what batch systems end all processes of a machine at once, or tell them of its end.
const ENDING_SIGNALS: [i32; 2] = [Signal::TERM.as_raw(), Signal::USR1.as_raw()];
/// How long the worker may take to hear of it after its agent.
const NOTICE_PATIENCE: Duration = Duration::from_secs(1);
/// Longest summary on the wire.
const SUMMARY_BYTES_MAX: usize = 4_096;
/// Limit of work whose grant and document name none.
const TIMEOUT: Duration = Duration::from_secs(6 * 3_600);

/// The work of one lease.
pub(crate) struct Runner {
    pub(super) site: Arc<Site>,
    pub(super) grant: Arc<Grant>,
    pub(super) folder: LeaseFolder,
    pub(super) orders: watch::Receiver<Orders>,
    pub(super) began: Boottime,
    run_time: Duration,
    /// What nobody may see in anything that is told of this lease.
    pub(super) hidden: Hidden,
    /// What the agent said last of its work.
    summary: String,
    /// What the agent consumed.
    consumed: Usage,
    /// An attempt that changed nothing has failed.
    must_change: bool,
}

impl Runner {
    /// Takes a lease; `orders` renew and stop it.
    pub(crate) fn new(site: Arc<Site>, grant: Grant, orders: watch::Receiver<Orders>) -> Self {
        let folder = LeaseFolder::of(&site.leases, grant.lease);
        Self {
            site,
            grant: Arc::new(grant),
            folder,
            orders,
            began: clock::now(),
            run_time: Duration::ZERO,
            hidden: Hidden::default(),
            summary: String::new(),
            consumed: Usage::default(),
            must_change: false,
        }
    }

    /// Works until the lease was reported and holds nothing unpublished.
    pub(crate) async fn run(mut self) {
        let lease = self.grant.lease;
        let opened = match self.folder.create(&self.grant) {
            Ok(()) => Spool::open(&self.folder.events(), OUTPUT_BYTES_MAX).map_err(|e| chain(&e)),
            Err(error) => Err(format!("cannot create the attempt's folder: {error}")),
        };
        let spool = match opened {
            Ok(spool) => spool,
            Err(message) => {
                self.site.disk.suspect(&message);
                let failure = failure(class::WORKSPACE, &message, b"");
                let failed = Failed {
                    failure: Some(failure),
                    usage: None,
                };
                self.tell(report::Kind::Failed(failed)).await;
                self.folder.mark_published();
                return self.finished().await;
            }
        };
        let (scribe, writing) = Scribe::start(
            lease,
            spool,
            self.site.told.clone(),
            self.site.disk.clone(),
            self.hidden.clone(),
        );
        self.tell(report::Kind::Started(Empty {})).await;
        let is_attempt = matches!(
            self.grant.work.as_ref().and_then(|work| work.kind.as_ref()),
            Some(work::Kind::Attempt(_))
        );
        if is_attempt {
            self.attempt(&scribe).await;
        } else {
            let kind = self.verify(&scribe).await;
            self.tell(kind).await;
            self.folder.mark_published();
        }
        scribe.phase(Phase::Reported.name(), "").await;
        drop(scribe);
        // Fails only if the writer panicked.
        let _ = writing.await;
        self.finished().await;
    }

    async fn finished(&self) {
        let lease = self.grant.lease;
        // A worker that does not listen any more is ending.
        let _ = self.site.told.send(FromLease::Finished { lease }).await;
    }

    pub(super) async fn tell(&self, mut kind: report::Kind) {
        let lease = self.grant.lease;
        let failure = match &mut kind {
            report::Kind::Failed(failed) => failed.failure.as_mut(),
            report::Kind::GivenBack(failure) => Some(failure),
            report::Kind::Succeeded(succeeded) => {
                succeeded.summary = self.hidden.text(&succeeded.summary);
                None
            }
            _ => None,
        };
        if let Some(failure) = failure {
            failure.message = self.hidden.text(&failure.message);
            failure.output = self.hidden.text(&failure.output);
        }
        let _ = self.site.told.send(FromLease::Report { lease, kind }).await;
    }

    async fn attempt(&mut self, scribe: &Scribe) {
        let mut phase = Phase::Preparing;
        scribe.phase(phase.name(), "").await;
        let mut workspace = None;
        let mut happened = self.prepared(&mut workspace).await;
        loop {
            let (next_phase, next) = phase.next(happened, self.usage());
            phase = next_phase;
            if phase != Phase::Reported {
                scribe.phase(phase.name(), "").await;
            }
            happened = match next {
                Next::Run => self.agent(workspace.as_ref(), scribe).await,
                Next::Publish => self.publish(workspace.as_deref(), scribe).await,
                Next::KeepThenReport(kind) => {
                    return self.keep(workspace.as_deref(), kind, scribe).await;
                }
                Next::SalvageThenReport(kind) => {
                    return self.salvage(workspace.as_deref(), kind, scribe).await;
                }
                Next::Report(mut kind) => {
                    if let report::Kind::Succeeded(succeeded) = &mut kind {
                        succeeded.summary = std::mem::take(&mut self.summary);
                    }
                    self.folder.mark_published();
                    return self.tell(kind).await;
                }
            };
        }
    }

    async fn prepared(&mut self, workspace: &mut Option<Arc<Workspace>>) -> Happened {
        match self.prepare().await {
            Ok(made) => {
                *workspace = made.map(Arc::new);
                Happened::Prepared
            }
            Err(happened) => happened,
        }
    }

    /// Makes the folder in which this lease's processes run, unless that fails, takes longer than
    /// the whole lease may, or the lease is to stop.
    pub(super) async fn prepare(&mut self) -> Result<Option<Workspace>, Happened> {
        let limit = self.limit(None);
        let preparing = prepare(&self.site, &self.grant, &self.folder);
        let preparing = tokio::time::timeout(limit, preparing);
        match until_stopped(&mut self.orders, preparing).await {
            Err(stop) => Err(Happened::Stopped(stop)),
            Ok(Ok(Ok(made))) => Ok(made),
            Ok(Ok(Err(failure))) => Err(Happened::Failed(failure)),
            Ok(Err(_)) => {
                let message = format!("the workspace was not ready within {limit:?}");
                Err(Happened::Failed(failure(class::WORKSPACE, &message, b"")))
            }
        }
    }

    async fn agent(&mut self, workspace: Option<&Arc<Workspace>>, scribe: &Scribe) -> Happened {
        let invoked = TaskDocument::parse(&self.grant.document)
            .map_err(|error| failure(class::AGENT_UNAVAILABLE, &chain(&error), b""))
            .and_then(|mut task| {
                let overrides = &self.site.agents;
                // Of the kind's own program it also says how that is started.
                let of_kind = || {
                    let brings_none = task.agent.command.is_empty();
                    overrides.get(&task.agent.kind).filter(|_| brings_none)
                };
                if let Some(command) = overrides.get(&task.agent.name).or_else(of_kind) {
                    task.agent.command.clone_from(command);
                }
                task.approvals = self.site.approvals.over(&task.approvals);
                if task.in_place {
                    let message = "this worker cannot work in a user's own folder";
                    return Err(failure(class::AGENT_UNAVAILABLE, message, b""));
                }
                let agent = agent_of(&task)?;
                let mut work = self.work_folder();
                if let Some(folder) = &task.folder {
                    work.push(folder);
                }
                let place = Place {
                    work,
                    last_message: self.folder.last_message(),
                    prompt: self.folder.prompt(),
                    own: &|name| std::env::var(name).ok(),
                };
                if let Some(failure) = needs::missing(&task, &place.work) {
                    return Err(failure);
                }
                let mut invocation = agent.invocation(&task, &place)?;
                // If it is not there any more and its agent only learns that when it asks for it, the
                // conversation says so itself.
                let session = self.earlier_session().map(str::to_owned);
                let session =
                    session.filter(|session| agent.resume(&mut invocation, &place, session));
                let mut given = self.given(&task, &task.secrets)?;
                given.masked.extend(invocation.masked);
                let profile = crate::agent::profile::expand(&task.agent_env, place.own)?;
                given.masked.extend(profile.masked);
                given.values.extend(profile.values);
                given.values.extend(invocation.env);
                self.hide(&task, &mut given);
                Ok((task, agent, (invocation.argv, session), given, place))
            });
        let (task, agent, (argv, session), given, place) = match invoked {
            Ok(invoked) => invoked,
            Err(failure) => return Happened::Failed(failure),
        };
        if let (Some(workspace), Some(hooks)) = (workspace, &task.hooks) {
            if let Err(error) = workspace.run_hooks_of(hooks).await {
                let error = chain(&error);
                self.site.disk.suspect_if_sign(&error);
                return Happened::Failed(failure(class::WORKSPACE, &error, b""));
            }
            let there = workspace.work().join(hooks).is_dir();
            scribe
                .note(if there {
                    format!("commits of this attempt run the hooks in {hooks}")
                } else {
                    format!("there is no folder {hooks} to run hooks of when this attempt commits")
                })
                .await;
        }
        let disk = self.allowance(&task);
        if disk.is_below_what_was_asked() {
            scribe.note(format!("of disk, {disk}")).await;
        }
        let done = CancellationToken::new();
        let _done_with_this = done.clone().drop_guard();
        let wip = match (workspace, &self.grant.source) {
            (Some(workspace), Some(source)) => {
                let site = Arc::clone(&self.site);
                let (workspace, grant) = (Arc::clone(workspace), Arc::clone(&self.grant));
                Some(tokio::spawn(site.keep_wip(
                    workspace,
                    grant,
                    source.clone(),
                    self.hidden.clone(),
                    done.clone(),
                )))
            }
            _ => None,
        };
        let named = argv.first().cloned().unwrap_or_default();
        let mut program = self.program(&task, 1, argv, &given);
        program.cwd.clone_from(&place.work);
        program.ends_at = self.began.after(self.limit(task.timeout_ms));
        program.idle = task.idle_timeout_ms.map(Duration::from_millis);
        let known = session.clone();
        match self.dialogue(&task, agent, &place, &program, (session, scribe)) {
            Ok(Some(dialogue)) => {
                self.note_what_is_known(known.as_deref(), scribe).await;
                program.dialogue = Some(dialogue);
            }
            Ok(None) => {}
            Err(failure) => return Happened::Failed(failure),
        }
        let talks = program.dialogue.is_some();
        program.meter = agent.meter(&task).map(|meter| Metering::new(meter, 0));
        let launched = self.launch(program, scribe).await;
        done.cancel();
        if let Some(wip) = wip {
            // Fails only if it panicked.
            let _ = wip.await;
        }
        self.empty_tmp().await;
        for name in agent.leftovers() {
            // Fails if it is not there, or not empty and therefore somebody's.
            let _ = std::fs::remove_dir(place.work.join(name));
        }
        match launched {
            Err(happened) => happened,
            Ok(Launched {
                report:
                    ExitReport {
                        end: End::ExecFailed { reason },
                        ..
                    },
                ..
            }) => Happened::Failed(needs::not_started(&named, &task, &reason)),
            Ok(Launched {
                spoken: Some(spoken),
                ..
            }) => match spoken.result {
                Ok(said) => {
                    self.summary = said.message;
                    let end = self.summary.floor_char_boundary(SUMMARY_BYTES_MAX);
                    self.summary.truncate(end);
                    self.must_change = task.change == Change::Required;
                    Happened::Done
                }
                Err(failure) => Happened::Failed(failure),
            },
            Ok(_) if talks => {
                let message = "the worker lost track of the agent's conversation";
                Happened::Failed(failure(class::WORKER_LOST, message, b""))
            }
            Ok(Launched { report, tail, .. }) => match agent.judge(&report.end, &tail) {
                Ok(()) => {
                    self.summary = agent.summary(&place);
                    Happened::Done
                }
                Err(failure) => Happened::Failed(failure),
            },
        }
    }

    /// Lets go of the agent's temporary files before its work is committed, for which the disk may
    /// have no room otherwise.
    async fn empty_tmp(&self) {
        let folder = self.folder.clone();
        let emptied = tokio::task::spawn_blocking(move || folder.empty_tmp()).await;
        if let Ok(Err(error)) = emptied {
            tracing::warn!(lease = self.grant.lease, %error, "cannot delete temporary files");
        }
    }

    /// Describes a program of this lease that runs in its work tree.
    pub(super) fn program(
        &self,
        task: &TaskDocument,
        number: u32,
        argv: Vec<String>,
        given: &Given,
    ) -> Program {
        let own = |name: &str| std::env::var(name).ok();
        let ttl = self.grant.ttl.and_then(|ttl| Duration::try_from(ttl).ok());
        Program {
            argv,
            cwd: self.work_folder(),
            env: environment(own, &self.folder, &self.grant, task, &given.values),
            number,
            folder: self.folder.launch(number),
            // Half of the margin that work ends before its lease does.
            term_grace: TERM_GRACE.min(ttl.unwrap_or_default() / 12),
            ends_at: self.began.after(TIMEOUT),
            idle: None,
            disk: self.allowance(task),
            masked: given.masked.clone(),
            unseen: given.unseen.clone(),
            dialogue: None,
            meter: None,
        }
    }

    /// What a program of this lease may take on disk: what its task says, and never more than the
    /// worker's operator allows.
    fn allowance(&self, task: &TaskDocument) -> Allowance {
        Allowance::new(
            task.disk_bytes,
            self.site.disk_bytes_max,
            vec![self.work_folder(), self.folder.tmp()],
        )
    }

    /// Limit from start to finish: the grant's, else the document's.
    pub(super) fn limit(&self, document_ms: Option<u64>) -> Duration {
        let granted = self
            .grant
            .timeout
            .and_then(|limit| Duration::try_from(limit).ok());
        let granted = granted.filter(|limit| !limit.is_zero());
        granted
            .or(document_ms.map(Duration::from_millis))
            .unwrap_or(TIMEOUT)
    }

    pub(super) fn work_folder(&self) -> PathBuf {
        self.folder.workspace().join("work")
    }

    /// Runs a program; an end that is not its own is told as what happened.
    pub(super) async fn launch(
        &mut self,
        program: Program,
        scribe: &Scribe,
    ) -> Result<Launched, Happened> {
        let failed = |class, message: &str, tail: &[u8]| {
            Err(Happened::Failed(failure(class, message, tail)))
        };
        if let Err(error) = create_private(&program.folder) {
            let error = chain(&error);
            self.site.disk.suspect(&error);
            return failed(class::WORKSPACE, &error, b"");
        }
        let (ends_at, idle) = (program.ends_at, program.idle);
        let has_meter = program.meter.is_some();
        let disk_limit = program.disk.to_string();
        let executable = self.site.executable.clone();
        let launched = launch::run(&executable, program, &mut self.orders, scribe).await;
        let launched = match launched {
            Ok(launched) => launched,
            Err(error) => {
                let error = chain(&error);
                self.site.disk.suspect_if_sign(&error);
                return failed(class::WORKSPACE, &error, b"");
            }
        };
        let ran_ms = launched.report.times.and_then(|times| times.ran_ms);
        self.run_time += Duration::from_millis(ran_ms.unwrap_or_default());
        if let Some(spoken) = &launched.spoken {
            self.consumed = spoken.usage;
        } else if has_meter {
            self.consumed = launched.metered;
        }
        match launched.ran {
            Ran::Stopped(stop) => Err(Happened::Stopped(stop)),
            Ran::TimedOut => {
                let limit = ends_at.since(self.began);
                let message = format!("not finished within its time limit of {limit:?}");
                failed(class::TIMED_OUT, &message, &launched.tail)
            }
            Ran::Stalled => {
                let limit = idle.unwrap_or_default();
                let message = format!("silent for its idle limit of {limit:?}");
                failed(class::STALLED, &message, &launched.tail)
            }
            Ran::OverDisk(bytes) => {
                let message = format!(
                    "its work tree and temporary files took {} of disk; {disk_limit}",
                    muster_git::megabytes(bytes)
                );
                failed(class::DISK_ALLOWANCE, &message, &launched.tail)
            }
            Ran::Ended => match launched.report.end {
                // The supervisor was first to see that the lease has run out.
                End::Stopped {
                    by: StopCause::Deadline,
                    ..
                } => Err(Happened::Stopped(Stop::Salvage)),
                End::Stopped {
                    by: StopCause::Signal,
                    ..
                } => Err(Happened::Stopped(self.taken_away())),
                End::Signalled { signal } if ENDING_SIGNALS.contains(&signal) => {
                    let notice = launch::stop_ordered(&mut self.orders);
                    match tokio::time::timeout(NOTICE_PATIENCE, notice).await {
                        Ok(stop) => Err(Happened::Stopped(stop)),
                        Err(_) => Ok(launched),
                    }
                }
                _ => Ok(launched),
            },
        }
    }

    /// Says why a lease stops whose supervisor somebody else told to end: nobody does that to one
    /// process alone, so the machine goes away, or the worker with all that is its.
    fn taken_away(&self) -> Stop {
        let ordered = self.orders.borrow().stop;
        ordered.unwrap_or(Stop::HandOver(HandOver {
            class: class::PREEMPTED,
            until: clock::now().after(KEEP_LIMIT),
        }))
    }

    async fn publish(&mut self, workspace: Option<&Workspace>, scribe: &Scribe) -> Happened {
        let outcome = |kind| Happened::Published(Outcome { kind: Some(kind) });
        let (Some(workspace), Some(source)) = (workspace, self.grant.source.clone()) else {
            return outcome(outcome::Kind::NoRepository(Empty {}));
        };
        let (site, grant) = (Arc::clone(&self.site), Arc::clone(&self.grant));
        let hidden = self.hidden.clone();
        let folder = self.folder.clone();
        let publishing = async {
            let told = (scribe, &hidden);
            let (commit, beside) = publish_result(&site, workspace, &grant, &source, told).await?;
            let lost = match beside {
                Some(beside) => {
                    !site
                        .keep_beside(workspace, &grant, &source, beside, told)
                        .await
                }
                None => false,
            };
            if lost {
                site.keep_aside(&folder, &grant, scribe).await;
            }
            Ok::<_, publish::Error>(commit)
        };
        let publishing = tokio::time::timeout(PUBLISH_LIMIT, publishing);
        tokio::pin!(publishing);
        let mut published = until_stopped(&mut self.orders, &mut publishing).await;
        if let Err(stop @ Stop::HandOver(hand_over)) = published {
            // The agent is done, and its result is worth more than a snapshot of it.
            let limit = hand_over.step_limit(clock::now());
            let rest = tokio::time::timeout(limit, &mut publishing).await;
            published = rest.map_err(|_| stop);
        }
        match published {
            Err(stop) => Happened::Stopped(stop),
            Ok(Ok(Ok(Some(commit)))) => outcome(outcome::Kind::Commit(commit.to_string())),
            Ok(Ok(Ok(None))) if self.must_change => {
                let message = "the agent said that it is done, but changed nothing; the task asks for \
                               a change";
                Happened::Failed(failure(class::NO_CHANGE, message, self.summary.as_bytes()))
            }
            Ok(Ok(Ok(None))) => outcome(outcome::Kind::NoChange(Empty {})),
            Ok(Ok(Err(error))) => Happened::Failed(failure(error.class(), &chain(&error), b"")),
            Ok(Err(_)) => {
                let message = format!("the result could not be pushed within {PUBLISH_LIMIT:?}");
                Happened::Failed(failure(class::PUBLISH, &message, b""))
            }
        }
    }

    /// Pushes edits to the WIP ref while the lease lives, reports, and salvages what is not there.
    async fn keep(&mut self, workspace: Option<&Workspace>, kind: report::Kind, scribe: &Scribe) {
        let (Some(workspace), Some(source)) = (workspace, self.grant.source.clone()) else {
            self.folder.mark_published();
            return self.tell(kind).await;
        };
        // Without a session there is nobody to report to either, so there is no hurry.
        let site = Arc::clone(&self.site);
        let _ = until_stopped(&mut self.orders, site.access()).await;
        let grant = &self.grant;
        let pushing = async {
            let mut tries = 1;
            loop {
                match site.push_wip(workspace, grant, &source).await {
                    // The snapshot that was cut off when the agent ended may still hold the ref.
                    Err(error) if tries < KEEP_TRIES && !error.is_about_content() => {
                        let error = self.hidden.text(&chain(&error));
                        tracing::info!(lease = grant.lease, error, "keeping edits once more");
                        tries += 1;
                        tokio::time::sleep(KEEP_PAUSE).await;
                    }
                    ended => return ended,
                }
            }
        };
        let limit = match self.orders.borrow().stop {
            Some(Stop::HandOver(hand_over)) => hand_over.step_limit(clock::now()).min(KEEP_LIMIT),
            _ => KEEP_LIMIT,
        };
        match tokio::time::timeout(limit, pushing).await {
            Ok(Ok((kept, refused))) => {
                if let Some(commit) = kept {
                    let name = &source.wip_ref;
                    scribe
                        .note(format!("edits are kept as {commit} at {name}"))
                        .await;
                }
                if refused.is_some() {
                    // What that commit cannot hold is there and nowhere else.
                    site.keep_aside(&self.folder, grant, scribe).await;
                } else {
                    self.folder.mark_published();
                }
                self.tell(kind).await;
            }
            pushed => {
                let error = pushed.map_or_else(
                    |_| "it took too long".to_owned(),
                    |pushed| pushed.err().map(|error| chain(&error)).unwrap_or_default(),
                );
                let error = self.hidden.text(&error);
                tracing::warn!(
                    lease = self.grant.lease,
                    error,
                    "cannot keep edits at their ref"
                );
                self.tell(kind).await;
                let (grant, folder) = (&self.grant, &self.folder);
                self.site
                    .salvage(folder, workspace, grant, &source, scribe)
                    .await;
            }
        }
    }

    /// Keeps the edits of a lease that is over, and says that its processes are gone: after the
    /// edits are safe if that is quick, since this frees the task for another attempt.
    async fn salvage(
        &mut self,
        workspace: Option<&Workspace>,
        kind: report::Kind,
        scribe: &Scribe,
    ) {
        let (Some(workspace), Some(source)) = (workspace, self.grant.source.clone()) else {
            self.folder.mark_published();
            return self.tell(kind).await;
        };
        let (grant, folder) = (&self.grant, &self.folder);
        let salvaging = self.site.salvage(folder, workspace, grant, &source, scribe);
        tokio::pin!(salvaging);
        let done = tokio::time::timeout(KEEP_LIMIT, &mut salvaging).await;
        self.tell(kind).await;
        if done.is_err() {
            salvaging.await;
        }
    }

    fn usage(&self) -> Usage {
        Usage {
            run_time: self.run_time.try_into().ok(),
            ..self.consumed
        }
    }
}

/// Waits for something unless the lease is to stop before.
async fn until_stopped<T>(
    orders: &mut watch::Receiver<Orders>,
    what: impl Future<Output = T>,
) -> Result<T, Stop> {
    let mut orders = orders.clone();
    tokio::select! {
        biased;
        stop = launch::stop_ordered(&mut orders) => Err(stop),
        done = what => Ok(done),
    }
}

/// Makes the folder in which the lease's processes run: a checkout, or an empty one.
async fn prepare(
    site: &Site,
    grant: &Grant,
    folder: &LeaseFolder,
) -> Result<Option<Workspace>, Failure> {
    let Some(source) = &grant.source else {
        let empty = folder.workspace().join("work");
        create_private(&empty).map_err(|error| failure(class::WORKSPACE, &chain(&error), b""))?;
        return Ok(None);
    };
    let mut pause = PREPARE_PAUSE;
    let mut tries = 0;
    loop {
        match checkout(site, grant, source, folder).await {
            Ok(workspace) => return Ok(Some(workspace)),
            Err(error) => {
                tries += 1;
                let error = chain(&error);
                site.disk.suspect_if_sign(&error);
                if tries == PREPARE_TRIES {
                    return Err(failure(class::WORKSPACE, &error, b""));
                }
                tracing::warn!(
                    lease = grant.lease,
                    error,
                    "cannot prepare yet; trying again"
                );
                // What was made of it is in the way of the next try.
                let half_made = folder.workspace();
                let _ = tokio::fs::remove_dir_all(half_made).await;
            }
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}

async fn checkout(
    site: &Site,
    grant: &Grant,
    source: &GitSource,
    folder: &LeaseFolder,
) -> Result<Workspace, GitError> {
    let commit = ObjectId::parse(&source.commit)?;
    let name = RefName::parse(&source.read_ref)?;
    let remote = site
        .remote(source, Credential::Lease(&grant.credential))
        .await?;
    let cached = site.cache.ensure_commit(&remote, &name, commit).await?;
    for earlier in &grant.earlier {
        let (name, commit) = (&earlier.r#ref, &earlier.commit);
        if let (Ok(name), Ok(commit)) = (RefName::parse(name), ObjectId::parse(commit)) {
            // For an agent that wants to look at it; nothing depends on it.
            let _ = site.cache.ensure_commit(&remote, &name, commit).await;
        }
    }
    if grant.resume.is_none() || source.base == source.commit {
        let made = Workspace::create(&cached, &folder.workspace(), &site.identity).await?;
        return Ok(made.with_change_limit(site.change_bytes_max));
    }
    // The commit is that of unfinished edits, which have the base behind them.
    let base = ObjectId::parse(&source.base)?;
    let base = site.cache.ensure_commit(&remote, &name, base).await?;
    let made = Workspace::create(&base, &folder.workspace(), &site.identity).await?;
    made.take_up(commit).await?;
    Ok(made.with_change_limit(site.change_bytes_max))
}

/// Commits and pushes; `None` if there is nothing to publish. Gives also a commit of what the agent
/// left beside it, which is nowhere but here.
async fn publish_result(
    site: &Site,
    workspace: &Workspace,
    grant: &Grant,
    source: &GitSource,
    (scribe, hidden): (&Scribe, &Hidden),
) -> Result<(Option<ObjectId>, Option<ObjectId>), publish::Error> {
    let snapshot = loop {
        match site.result(workspace, grant, hidden).await {
            Ok(snapshot) => break snapshot,
            // The work is done and must not be done again because a disk is full for a while.
            Err(error) if site.disk.suspect_if_sign(&chain(&error)) => {
                let error = hidden.text(&chain(&error));
                tracing::warn!(
                    lease = grant.lease,
                    error,
                    "cannot commit yet; waiting for the disk"
                );
                site.disk.usable().await;
            }
            Err(error) => return Err(error.into()),
        }
    };
    for note in &snapshot.notes {
        scribe.note(note.to_string()).await;
    }
    let Some(commit) = snapshot.commit else {
        return Ok((None, snapshot.beside));
    };
    let name = RefName::parse(&source.attempt_ref)?;
    let credential = Credential::Lease(&grant.credential);
    let target = (&name, Expected::Absent);
    site.push(workspace, source, credential, commit, target)
        .await?;
    Ok((Some(commit), snapshot.beside))
}
