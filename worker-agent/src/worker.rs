//! The worker's loop: between the session machine, the disk, the link and the leases.

mod leaving;
mod looking;

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use muster_git::{Cache, Git, GitError, Identity as Author};
use muster_proto::v1::{
    AgentsFound, DeclaredAgent, Drain, EventBatch, Grant, LeaseEvents, Report, WorkerMessage,
    coordinator_message, worker_message,
};
use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::agent;
use crate::attempt::{self, FromLease, LeaseFolder, Orders, Runner, Site, Stop};
use crate::clock::{self, Boottime};
use crate::departure::Departure;
use crate::disk::{self, Disk};
use crate::failure::chain;
use crate::frames;
use crate::identity::{self, Identity, create_private};
use crate::options::{Ended, Options, Wish};
use crate::outbox::{self, Outbox};
use crate::session::link::{self, Access, Link, LinkEvent, Outgoing, Up};
use crate::session::machine::{Machine, Output};
use crate::spool::SpoolReader;

use leaving::Leaving;
use looking::look;

/// Messages between the loop and the link, and between the loop and its leases.
const WAITING_MAX: usize = 1_024;
/// What leases told that is stored with one sync.
const TOLD_AT_ONCE: usize = 64;
/// Bytes of events in one message: a part of the window, so that the next is under way before the
/// first is acknowledged.
const EVENT_BATCH_BYTES: u64 = 64 * 1024;
/// Longest wait before deadlines are looked at again: tokio's timers stand still while the host
/// sleeps, leases do not.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long a worker that leaves tries to say what became of its leases; its next start says the
/// rest.
const LEAVE_LIMIT: Duration = Duration::from_secs(60);

/// Runs a worker until it is drained, told to leave, or refused.
///
/// The folder of its state is its alone meanwhile. On an error its attempts have been stopped;
/// what they made and did not publish stays in that folder for the next start.
pub async fn run(options: Options, wishes: watch::Receiver<Wish>) -> Result<Ended, Error> {
    let host = identity::host_name();
    let identity = Identity::take(&options.state, &host, options.allocation.as_ref())?;
    let mut worker = Worker::prepare(&options, &identity, wishes).await?;
    tracing::info!(
        worker = identity.worker,
        incarnation = identity.incarnation,
        slots = options.slots,
        state = %identity.folder.display(),
        "worker starts"
    );
    let (events, mut link_events) = mpsc::channel(WAITING_MAX);
    let machine = Arc::clone(&worker.machine);
    let no_more = worker.no_more.clone();
    let own = |name: &str| std::env::var(name).ok();
    let offers = agent::offers(&own, &options.agents, agent::Asking::Nothing);
    let looking = worker.begin_looking(options.agents.clone());
    let link = Link::new(options, &identity, offers, machine, events, no_more);
    // Both end with this function, however that ends.
    let mut linking = JoinSet::new();
    linking.spawn(link.run());
    let mut watching = JoinSet::new();
    watching.spawn(looking);
    let disk = worker.site.disk.clone();
    watching.spawn(disk.watch(worker.site.cache.clone(), disk::LOOK_EVERY));
    let ended = worker.work(&mut link_events, &mut linking).await;
    if let Ok(ended) = &ended {
        worker.tell_the_end(*ended);
        worker.say_goodbye(*ended, &mut link_events).await;
    }
    worker.stop_everything().await;
    let owes_nothing = worker.lock().owes_nothing();
    drop(worker);
    if ended.is_ok() && owes_nothing {
        // Nobody may look into the folder any more.
        linking.shutdown().await;
        watching.shutdown().await;
        identity.leave();
    }
    ended
}

struct Worker {
    site: Arc<Site>,
    machine: Arc<Mutex<Machine>>,
    /// `None` while it is written to.
    outbox: Option<Outbox>,
    writing: JoinSet<Written>,
    /// Reports that are not in the outbox yet, and when to try again to put them there.
    unstored: Vec<Report>,
    store_again_at: Boottime,
    /// Reports that need not be kept any more.
    acknowledged: Vec<u64>,
    leases: BTreeMap<u64, Lease>,
    runners: JoinSet<()>,
    told: mpsc::Receiver<FromLease>,
    access: watch::Sender<Option<Access>>,
    outgoing: Option<Outgoing>,
    /// Declared agents that are looked for, and what was found.
    wanted: watch::Sender<Vec<DeclaredAgent>>,
    found: mpsc::Receiver<AgentsFound>,
    wishes: watch::Receiver<Wish>,
    idle_exit: Option<Duration>,
    idle_since: Boottime,
    departure: Departure,
    /// Why everything is stopped and given back, and by when.
    leaving: Option<Leaving>,
    /// When trouble with the disk began that has not ended.
    disk_fails_since: Option<Boottime>,
    disk_patience: Duration,
    /// Tells the link that no further session is wanted.
    no_more: CancellationToken,
}

/// What became of reports that were to be stored.
struct Written {
    outbox: Outbox,
    stored: Vec<u64>,
    result: Result<(), frames::Error>,
}

struct Lease {
    orders: watch::Sender<Orders>,
    grant: Grant,
    spool: SpoolReader,
}

impl Worker {
    async fn prepare(
        options: &Options,
        identity: &Identity,
        wishes: watch::Receiver<Wish>,
    ) -> Result<Self, Error> {
        let git = Git::find().await?;
        let cache = Cache::open(&git, &identity.shared).await?;
        let cache_bytes_max = options.cache_bytes_max;
        let cache = cache.with_limit(cache_bytes_max, &identity.folder).await?;
        let leases = identity.folder.join("leases");
        create_private(&leases)?;
        let (told_by, told) = mpsc::channel(WAITING_MAX);
        let (access, access_seen) = watch::channel(None);
        let site = Arc::new(Site {
            executable: options.executable.clone(),
            leases,
            kept: identity.folder.join(disk::KEPT),
            host: identity.host.clone(),
            git,
            cache,
            repositories: options.repositories.clone(),
            identity: Author::new("Muster", "muster@localhost")?,
            access: access_seen,
            told: told_by,
            disk: Disk::new(identity.folder.clone(), identity.shared.clone()),
            change_bytes_max: options.change_bytes_max,
            disk_bytes_max: options.disk_bytes_max,
            secrets: options.secrets.clone(),
            wip_interval: options.wip_interval,
            agents: options.agents.clone(),
            approvals: options.approvals.clone(),
        });
        if link::knows_another_coordinator(options, &identity.folder) {
            // Its leases have numbers that this one gives to others.
            attempt::find(&site).await?;
            set_aside(&identity.folder)?;
            create_private(&site.leases)?;
        }
        let outbox = Outbox::open(&identity.folder)?;
        let mut machine = Machine::new(options.slots, outbox.next_number());
        machine.machine_ends(options.ends_at);
        let trouble = site.disk.look_now();
        machine.disk_is_in_trouble(trouble.as_deref(), clock::now());
        machine.keep_room(options.disk_reserve_bytes);
        if let Ok(room) = disk::room(&identity.folder) {
            machine.disk_has(room.bytes, clock::now());
        }
        for report in outbox.pending() {
            machine.restore_report(report.clone());
        }
        let mut worker = Self {
            site: Arc::clone(&site),
            machine: Arc::new(Mutex::new(machine)),
            outbox: Some(outbox),
            writing: JoinSet::new(),
            unstored: Vec::new(),
            store_again_at: clock::now(),
            acknowledged: Vec::new(),
            leases: BTreeMap::new(),
            runners: JoinSet::new(),
            told,
            access,
            outgoing: None,
            wanted: watch::channel(Vec::new()).0,
            found: mpsc::channel(1).1,
            wishes,
            idle_exit: options.idle_exit,
            idle_since: clock::now(),
            departure: Departure::new(options.ends_at, options.hand_over),
            leaving: None,
            disk_fails_since: trouble.map(|_| clock::now()),
            disk_patience: options.disk_patience,
            no_more: CancellationToken::new(),
        };
        for found in attempt::find(&site).await? {
            let lease = found.grant.lease;
            worker.lock().restore_lease(lease, found.last_event());
            worker.add_lease(found.grant.clone(), &found.folder, clock::now());
            worker.runners.spawn(found.settle(Arc::clone(&site)));
        }
        Ok(worker)
    }

    fn lock(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add_lease(
        &mut self,
        mut grant: Grant,
        folder: &LeaseFolder,
        deadline: Boottime,
    ) -> watch::Receiver<Orders> {
        let stop = None;
        let (orders, orders_seen) = watch::channel(Orders {
            deadline,
            stop,
            answers: Arc::default(),
        });
        // Only what names the lease is needed here, and prompts are large.
        grant.document.clear();
        grant.context.clear();
        let lease = Lease {
            orders,
            spool: SpoolReader::new(&folder.events()),
            grant,
        };
        self.leases.insert(lease.grant.lease, lease);
        orders_seen
    }

    /// Gives what looks for agents as long as it is polled.
    fn begin_looking(&mut self, overrides: agent::Overrides) -> impl Future<Output = ()> + use<> {
        let (wanted, wanted_seen) = watch::channel(Vec::new());
        let (tell, found) = mpsc::channel(1);
        (self.wanted, self.found) = (wanted, found);
        look(wanted_seen, tell, overrides)
    }

    async fn work(
        &mut self,
        link_events: &mut mpsc::Receiver<LinkEvent>,
        link: &mut JoinSet<link::Error>,
    ) -> Result<Ended, Error> {
        // A wish from before the start counts.
        self.wished();
        let mut told = Vec::with_capacity(TOLD_AT_ONCE);
        let mut trouble = self.site.disk.trouble();
        let mut free = self.site.disk.free();
        loop {
            if let Some(ended) = self.ended() {
                return Ok(ended);
            }
            self.gives_up()?;
            let wake = self.lock().wakeup();
            let wait = wake.map_or(LOOK_AGAIN, |at| at.since(clock::now()).min(LOOK_AGAIN));
            let waiting_events = self.lock().next_events().is_some();
            let events = self
                .outgoing
                .as_ref()
                .map(|outgoing| outgoing.events.clone());
            let room = async {
                match events {
                    Some(events) if waiting_events => events.reserve_owned().await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(error) = link.join_next() => return Err(match error {
                    Ok(error) => Error::Refused(error),
                    Err(_) => Error::LinkLost,
                }),
                Some(event) = link_events.recv() => self.heard(event).await,
                heard = self.told.recv_many(&mut told, TOLD_AT_ONCE) => {
                    for told in told.drain(..heard) {
                        self.told(told).await;
                    }
                }
                Ok(permit) = room => self.send_events(permit).await,
                Some(found) = self.found.recv() => {
                    self.step(|machine, now| machine.agents_found(found, now)).await;
                }
                Ok(()) = self.wishes.changed() => self.wished(),
                Some(written) = self.writing.join_next() => self.written(written).await?,
                Ok(()) = trouble.changed() => {
                    let what = trouble.borrow_and_update().clone();
                    if what.is_none() || self.disk_fails_since.is_none() {
                        self.disk_fails_since = what.as_ref().map(|_| clock::now());
                    }
                    self.step(|machine, now| machine.disk_is_in_trouble(what.as_deref(), now)).await;
                }
                Ok(()) = free.changed() => {
                    let bytes = *free.borrow_and_update();
                    self.step(|machine, now| machine.disk_has(bytes, now)).await;
                }
                () = tokio::time::sleep(wait) => {}
            }
            self.step(|machine, now| machine.tick(now)).await;
            self.site.disk.want(self.lock().room_wanted());
            self.write_outbox();
        }
    }

    /// Lets the machine decide something, and does what follows from it.
    async fn step(&mut self, decide: impl FnOnce(&mut Machine, Boottime) -> Vec<Output>) {
        let mut waiting = VecDeque::new();
        {
            let mut machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
            let outputs = decide(&mut machine, clock::now());
            self.say(outputs, &mut waiting);
        }
        while let Some(output) = waiting.pop_front() {
            self.carry_out(output).await;
        }
    }

    /// Says what is to be said while the machine is still locked, so that heartbeats keep their
    /// order; keeps the rest.
    fn say(&self, outputs: Vec<Output>, rest: &mut VecDeque<Output>) {
        for output in outputs {
            match (output, &self.outgoing) {
                (Output::Send(kind), Some(outgoing)) => outgoing.say(kind),
                (Output::Send(_), None) => {}
                (output, _) => rest.push_back(output),
            }
        }
    }

    async fn carry_out(&mut self, output: Output) {
        match output {
            Output::Send(_) => {}
            Output::Store(reports) => self.unstored.extend(reports),
            Output::Start { grant, deadline } => self.start(*grant, deadline),
            Output::Renew { lease, deadline } => {
                self.order(lease, |orders| orders.deadline = deadline);
            }
            Output::Stop { lease, cause } => {
                tracing::info!(lease, ?cause, "a lease is to stop");
                self.order(lease, |orders| {
                    orders.stop.get_or_insert(Stop::Salvage);
                });
            }
            Output::Answers { lease, answers } => self.order(lease, |orders| {
                let known = Arc::make_mut(&mut orders.answers);
                for answer in answers {
                    known.entry(answer.question).or_insert(answer);
                }
            }),
            Output::Look(wanted) => {
                self.wanted.send_replace(wanted);
            }
            Output::Acknowledged(numbers) => self.acknowledged.extend(numbers),
            Output::EventsAcknowledged { lease, number } => {
                if let Some(lease) = self.leases.get_mut(&lease) {
                    lease.spool.acknowledged(number);
                }
            }
            Output::Drop { lease } => {
                self.leases.remove(&lease);
                let folder = LeaseFolder::of(&self.site.leases, lease);
                tokio::task::spawn_blocking(move || {
                    if let Err(error) = folder.remove() {
                        tracing::warn!(lease, %error, "cannot delete a lease's folder");
                    }
                });
            }
        }
    }

    fn start(&mut self, grant: Grant, deadline: Boottime) {
        let lease = grant.lease;
        tracing::info!(lease, run = grant.run, task = grant.task, "a lease begins");
        let folder = LeaseFolder::of(&self.site.leases, lease);
        let orders = self.add_lease(grant.clone(), &folder, deadline);
        let runner = Runner::new(Arc::clone(&self.site), grant, orders);
        self.runners.spawn(runner.run());
        if let Some(leaving) = &mut self.leaving {
            leaving.given_back.push(lease);
            let stop = leaving.stop;
            self.order(lease, |orders| orders.stop = Some(stop));
        }
    }

    fn order(&self, lease: u64, change: impl FnOnce(&mut Orders)) {
        if let Some(lease) = self.leases.get(&lease) {
            lease.orders.send_modify(change);
        }
    }

    async fn heard(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Up(up) => {
                let Up {
                    welcome,
                    access,
                    outgoing,
                } = *up;
                tracing::info!(
                    session = welcome.session,
                    epoch = welcome.epoch,
                    "session begins"
                );
                self.outgoing = Some(outgoing);
                self.access.send_replace(Some(access));
                self.step(|machine, now| machine.welcomed(&welcome, now))
                    .await;
            }
            LinkEvent::Message(kind) => {
                match &kind {
                    coordinator_message::Kind::Drain(Drain { leave: true }) => tracing::info!(
                        "the coordinator wants this worker to end once it holds nothing"
                    ),
                    coordinator_message::Kind::Drain(_) => {
                        tracing::info!("the coordinator gives this worker nothing new");
                    }
                    _ => {}
                }
                self.step(|machine, now| machine.received(kind, now)).await;
            }
            LinkEvent::Down => {
                self.outgoing = None;
                self.access.send_replace(None);
                self.lock().disconnected();
            }
        }
    }

    async fn told(&mut self, told: FromLease) {
        match told {
            FromLease::Report { lease, kind } => {
                self.step(|machine, _| machine.report(lease, kind)).await;
            }
            FromLease::Events { lease, last } => self.lock().events_stored(lease, last),
            FromLease::Finished { lease } => self.step(|machine, _| machine.finished(lease)).await,
        }
        // Finished runners need not be remembered.
        while self.runners.try_join_next().is_some() {}
    }

    /// Puts reports into the outbox while everything else goes on: a slow disk must not keep
    /// renewals waiting. Reports that the disk refuses are tried again.
    fn write_outbox(&mut self) {
        let may_store = !self.unstored.is_empty() && clock::now() >= self.store_again_at;
        if !may_store && self.acknowledged.is_empty() {
            return;
        }
        let Some(mut outbox) = self.outbox.take() else {
            return;
        };
        let acknowledged = std::mem::take(&mut self.acknowledged);
        let reports = match may_store {
            true => self.unstored.clone(),
            false => Vec::new(),
        };
        self.writing.spawn_blocking(move || {
            if let Err(error) = outbox.acknowledged(&acknowledged) {
                // They are said again after a restart, and answered as already recorded.
                tracing::warn!(error = chain(&error), "cannot clear the outbox");
            }
            let stored = reports.iter().map(|report| report.number).collect();
            let result = match reports.is_empty() {
                true => Ok(()),
                false => outbox.store(&reports),
            };
            Written {
                outbox,
                stored,
                result,
            }
        });
    }

    /// Says reports that are in the outbox now.
    async fn written(&mut self, written: Result<Written, JoinError>) -> Result<(), Error> {
        let Written {
            outbox,
            stored,
            result,
        } = written.map_err(|_| Error::OutboxLost)?;
        self.outbox = Some(outbox);
        match result {
            Ok(()) => {
                self.unstored
                    .retain(|report| !stored.contains(&report.number));
                self.step(|machine, now| machine.stored(&stored, now)).await;
            }
            Err(error) => {
                let error = chain(&error);
                tracing::error!(error, "cannot store a report; trying again");
                self.site.disk.suspect(&error);
                self.store_again_at = clock::now().after(LOOK_AGAIN);
            }
        }
        Ok(())
    }

    async fn send_events(&mut self, permit: mpsc::OwnedPermit<WorkerMessage>) {
        let Some(next) = self.lock().next_events() else {
            return;
        };
        let bytes_max = next.bytes_max.min(EVENT_BATCH_BYTES);
        let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        let Some(lease) = self.leases.get_mut(&next.lease) else {
            self.step(|machine, _| machine.events_lost(next.lease))
                .await;
            return;
        };
        let is_question = next.last == next.after;
        let read = match is_question {
            true => Ok(Vec::new()),
            false => lease.spool.read(next.after, next.last, bytes_max),
        };
        let events = match read {
            Ok(events) if is_question || !events.is_empty() => events,
            read => {
                let error = read.err().map(|error| chain(&error)).unwrap_or_default();
                tracing::error!(
                    lease = next.lease,
                    error,
                    "cannot read events; they are lost"
                );
                self.step(|machine, _| machine.events_lost(next.lease))
                    .await;
                return;
            }
        };
        let last = events.last().map_or(next.after, |event| event.number);
        let grant = &lease.grant;
        let events = LeaseEvents {
            lease: next.lease,
            run: grant.run.clone(),
            task: grant.task.clone(),
            work: grant.work,
            events,
        };
        let bytes = events.encoded_len() as u64;
        let leases = vec![events];
        permit.send(WorkerMessage {
            kind: Some(worker_message::Kind::Events(EventBatch { leases })),
        });
        self.lock()
            .events_sent(next.lease, last, bytes, clock::now());
    }

    /// Gives up if it holds leases and its disk has failed for so long: nothing can be published and
    /// no word be given, and somebody else could do the work.
    fn gives_up(&self) -> Result<(), Error> {
        let since = self.disk_fails_since;
        let fails_for = since.map(|since| clock::now().since(since));
        if fails_for.is_none_or(|time| time < self.disk_patience) || self.lock().holds_nothing() {
            return Ok(());
        }
        let what = self.site.disk.trouble().borrow().clone();
        Err(Error::Disk {
            patience: self.disk_patience,
            what: what.unwrap_or_default(),
        })
    }

    /// Stops what still runs, and waits until its processes are gone.
    async fn stop_everything(&mut self) {
        self.access.send_replace(None);
        for lease in self.leases.values() {
            lease.orders.send_modify(|orders| {
                orders.stop.get_or_insert(Stop::Leave);
            });
        }
        self.told.close();
        let there = self.lock().time_left(clock::now());
        let limit = there.map_or(STOP_LIMIT, |there| STOP_LIMIT.min(there / 2));
        let all_stopped = async { while self.runners.join_next().await.is_some() {} };
        // What goes on beyond this are pushes that cannot be made, and supervisors that end their
        // trees whether the worker waits or not.
        let _ = tokio::time::timeout(limit, all_stopped).await;
        self.runners.abort_all();
    }
}

/// Moves what belongs to another coordinator out of the way; a person may want it.
fn set_aside(folder: &Path) -> Result<(), frames::Error> {
    let other = folder.join(format!("other-coordinator-{}", clock::wall_millis()));
    let fail = |source| frames::Error::File {
        doing: "set aside what belongs to another coordinator in",
        path: folder.to_owned(),
        source,
    };
    tracing::warn!(to = %other.display(), "leases of another coordinator are set aside");
    std::fs::create_dir(&other).map_err(fail)?;
    for name in ["leases", outbox::NAME] {
        match std::fs::rename(folder.join(name), other.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail(error)),
            _ => {}
        }
    }
    Ok(())
}

/// How long stopped attempts may take to end when the worker ends: TERM, grace, KILL.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Why a worker ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its folder or id could not be had.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// Git is missing or too old, or its cache cannot be used.
    #[error(transparent)]
    Git(#[from] GitError),
    /// Its outbox or a spool cannot be used.
    #[error(transparent)]
    Files(#[from] frames::Error),
    /// What an earlier start left cannot be dealt with.
    #[error(transparent)]
    Leftover(#[from] attempt::LeftoverError),
    /// The coordinator refuses it for good.
    #[error(transparent)]
    Refused(link::Error),
    /// Its disk could not be worked on for too long while it held leases.
    #[error(
        "the disk of the worker's state has failed for {} s ({what}), so what it held is given up \
         and goes to others; make space there or mend it, then start the worker again: it has kept \
         the edits",
        patience.as_secs()
    )]
    Disk {
        /// How long.
        patience: Duration,
        /// How.
        what: String,
    },
    /// The task that talks to the coordinator ended in a panic.
    #[error("the session's task has ended unexpectedly")]
    LinkLost,
    /// The task that writes the outbox ended in a panic.
    #[error("the outbox's task has ended unexpectedly")]
    OutboxLost,
}
