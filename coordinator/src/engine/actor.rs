//! The engine's thread.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use coordinator_core::batch::{Closed, Leases};
use coordinator_core::state::{LeaseClocks, RunImage};
use coordinator_core::{
    Batch, Command, Effect, Epoch, Event, EventKind, LeaseId, Rejection, Reply, RunId, Span, State,
    Timestamp, WorkerId, next_wakeup,
};
use tokio::runtime;
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use super::clock::Clock;
use super::grant::{AnswerFacts, GrantFacts};
use super::notice::Notices;
use super::rows::Rows;
use super::{BATCH_MAX, Both, Handle, QUEUE, Request, ToSession};
use crate::store::{self, BatchSeq, Loaded, Progress, Store};

/// How the engine is set up.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Journal rows after which a snapshot is written: bounds the work of a restart.
    pub snapshot_every: u64,
    /// How often a row that could not be written is tried again, half a second apart, before the
    /// coordinator ends.
    pub append_retries: u32,
    /// How long leases live.
    pub clocks: LeaseClocks,
    /// When a run that could not be archived is tried again: a full disk is not emptied sooner.
    pub archive_pause: Span,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            snapshot_every: 4_096,
            append_retries: 10,
            clocks: LeaseClocks::default(),
            archive_pause: Span::from_ms(30_000),
        }
    }
}

/// Why the engine ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    #[error("failed to load the journal")]
    Load(#[source] store::Error),
    #[error("the journal contradicts itself: {0}")]
    Journal(String),
    #[error("failed to write the journal")]
    Append(#[source] store::Error),
    #[error("the engine broke a promise of its own and ended; its message is above")]
    Panicked,
    #[error("failed to start the engine's thread")]
    Thread(#[source] std::io::Error),
    #[error("failed to start a thread that reads the journal")]
    ReaderThread(#[source] std::io::Error),
}

/// An engine that has started.
pub struct Started {
    pub handle: Handle,
    /// Number of this start.
    pub epoch: Epoch,
    /// Ends after [`Handle::stop`], or with the reason for which it could not go on.
    pub thread: JoinHandle<Result<(), Fatal>>,
}

/// Loads the journal and starts the engine's thread.
///
/// # Errors
/// The journal cannot be read, contradicts itself, or belongs to a newer coordinator.
pub fn start(mut store: Box<dyn Store>, options: Options) -> Result<Started, Fatal> {
    let epoch = store.claim_epoch().map_err(Fatal::Load)?;
    let loaded = store.load().map_err(Fatal::Load)?;
    let (mut state, last_at) = rebuild(&mut *store, &loaded)?;
    state.set_clocks(options.clocks);
    let clock = Clock::start(last_at);
    let (requests, inbox) = mpsc::channel(QUEUE);
    let notices = Arc::new(Notices::default());
    let handle = Handle {
        requests,
        notices: notices.clone(),
    };
    let mut actor = Actor {
        state,
        journal: Rows {
            store,
            epoch,
            next: loaded.next,
            retries: options.append_retries,
            since_snapshot: 0,
        },
        clock,
        snapshot_every: options.snapshot_every,
        notices,
        sessions: BTreeMap::new(),
        endings: BTreeMap::new(),
        archive_pause: options.archive_pause,
        holding: false,
        truncating: false,
        unfinished: false,
    };
    actor.begin()?;
    let thread = std::thread::Builder::new()
        .name("engine".into())
        .spawn(move || actor.run(inbox))
        .map_err(Fatal::Thread)?;
    Ok(Started {
        handle,
        epoch,
        thread,
    })
}

/// Rebuilds the state from the newest snapshot and the batches after it.
pub(crate) fn rebuild(store: &mut dyn Store, loaded: &Loaded) -> Result<(State, Timestamp), Fatal> {
    let (mut state, mut last_at) = match &loaded.snapshot {
        Some(snapshot) => {
            let state = State::from_image(snapshot.image.clone(), snapshot.at)
                .map_err(|error| Fatal::Journal(error.to_string()))?;
            (state, snapshot.at)
        }
        None => (State::new(), Timestamp::default()),
    };
    let mut contradiction = None;
    let replayed = store.replay(loaded.upto(), &mut |seq, batch| {
        last_at = last_at.max(batch.at);
        for event in &batch.events {
            if contradiction.is_none()
                && let Err(error) = state.replay(event)
            {
                contradiction = Some(format!("{seq}: {error}"));
            }
        }
    });
    replayed.map_err(Fatal::Load)?;
    match contradiction {
        Some(contradiction) => Err(Fatal::Journal(contradiction)),
        None => Ok((state, last_at)),
    }
}

struct Session {
    number: u64,
    out: mpsc::Sender<ToSession>,
}

struct Actor {
    state: State,
    journal: Rows,
    clock: Clock,
    snapshot_every: u64,
    notices: Arc<Notices>,
    sessions: BTreeMap<WorkerId, Session>,
    /// Runs that are to be archived as soon as they have ended and nothing of them is open, each
    /// not before a time.
    endings: BTreeMap<RunId, Timestamp>,
    archive_pause: Span,
    /// No new leases.
    holding: bool,
    /// Journal rows wait to be let go.
    truncating: bool,
    /// Housekeeping has more to do, so there is no waiting for requests.
    unfinished: bool,
}

/// Who waits for the replies of a batch, in the order of its commands.
enum Asker {
    One(oneshot::Sender<Result<Reply, Rejection>>),
    /// For two commands.
    Both(oneshot::Sender<Both>),
    /// For the hello of a session, which exists once it is accepted.
    Session {
        worker: WorkerId,
        session: Session,
        answer: oneshot::Sender<Result<Reply, Rejection>>,
    },
}

enum Next {
    Request(Request),
    Time,
    Closed,
}

/// Ends a batch as the coordinator's mood wants it.
fn close(batch: Batch<'_>, holding: bool) -> Closed<'_> {
    batch.close(if holding { Leases::Hold } else { Leases::Grant })
}

impl Actor {
    /// Journals the start and gives every open lease its full time.
    fn begin(&mut self) -> Result<(), Fatal> {
        let now = self.clock.now();
        let batch = Batch::start(&mut self.state, now, self.journal.epoch);
        let committed = batch.close(Leases::Grant).commit(&mut self.journal)?;
        self.release(&committed.effects, &committed.events);
        info!(
            epoch = self.journal.epoch.0,
            runs = self.state.runs().count(),
            leases = self.state.leases().count(),
            "the coordinator has started"
        );
        Ok(())
    }

    fn run(mut self, mut inbox: mpsc::Receiver<Request>) -> Result<(), Fatal> {
        let Ok(waiting) = runtime::Builder::new_current_thread().enable_time().build() else {
            return Err(Fatal::Thread(std::io::Error::other(
                "no timer for the engine",
            )));
        };
        loop {
            let first = match self.receive(&waiting, &mut inbox) {
                Next::Request(request) => Some(request),
                Next::Time => None,
                Next::Closed => return Ok(()),
            };
            if self.batch(first, &mut inbox)? {
                return Ok(());
            }
            self.unfinished = self.archive_ended()? | self.snapshot_if_due();
        }
    }

    fn receive(&self, waiting: &runtime::Runtime, inbox: &mut mpsc::Receiver<Request>) -> Next {
        if let Ok(request) = inbox.try_recv() {
            return Next::Request(request);
        }
        if self.unfinished {
            return Next::Time;
        }
        // Those that are due already only wait for a lease, whose end is a request.
        let now = self.clock.now();
        let archive = self.endings.values().filter(|at| **at > now).min();
        let wakeup = next_wakeup(&self.state).map(|(at, _)| at);
        let wait = wakeup
            .into_iter()
            .chain(archive.copied())
            .min()
            .map(|at| at.since(now));
        let received = waiting.block_on(async {
            match wait {
                Some(wait) => {
                    tokio::time::timeout(Duration::from_millis(wait.ms()), inbox.recv()).await
                }
                None => Ok(inbox.recv().await),
            }
        });
        match received {
            Ok(Some(request)) => Next::Request(request),
            Ok(None) => Next::Closed,
            Err(_) => Next::Time,
        }
    }

    /// Decides everything that waits, commits once, then answers. True when the engine is to end.
    fn batch(
        &mut self,
        first: Option<Request>,
        inbox: &mut mpsc::Receiver<Request>,
    ) -> Result<bool, Fatal> {
        let now = self.clock.now();
        let mut batch = Batch::open(&mut self.state, now);
        let mut askers = Vec::new();
        let mut queries = Vec::new();
        let mut stops = Vec::new();
        let mut acknowledgements = Vec::new();
        let mut next = first;
        let mut taken = 0;
        while let Some(request) = next.take() {
            match request {
                Request::Command { command, answer } => {
                    batch.take(&command);
                    askers.push(Asker::One(answer));
                }
                Request::Both { commands, answer } => {
                    batch.take(&commands.0);
                    batch.take(&commands.1);
                    askers.push(Asker::Both(answer));
                }
                Request::Open { hello, out, answer } => {
                    askers.push(Asker::Session {
                        worker: hello.worker.clone(),
                        session: Session {
                            number: hello.session,
                            out,
                        },
                        answer,
                    });
                    batch.take(&Command::Hello(hello));
                }
                Request::Query(query) => queries.push(query),
                Request::PutSpecs { run, specs, answer } => {
                    let stored = self.journal.store.put_specs(&run, &specs);
                    drop(answer.send(stored.map_err(Arc::new)));
                }
                Request::Archive { run } => {
                    self.endings.entry(run).or_default();
                }
                Request::Hold { holding, answer } => {
                    self.holding = holding;
                    acknowledgements.push(answer);
                }
                Request::Stop { answer } => stops.push(answer),
            }
            taken += 1;
            if taken < BATCH_MAX {
                next = inbox.try_recv().ok();
            }
        }
        let committed = close(batch, self.holding).commit(&mut self.journal)?;
        self.answer(askers, committed.replies);
        self.release(&committed.effects, &committed.events);
        for query in queries {
            query(&self.state, now);
        }
        let stopping = !stops.is_empty();
        for answer in acknowledgements.into_iter().chain(stops) {
            // Nobody may be waiting any more.
            let _gone = answer.send(());
        }
        Ok(stopping)
    }

    /// Hands the replies of a committed batch to whoever asked. One that has gone will see the
    /// effect all the same.
    fn answer(&mut self, askers: Vec<Asker>, replies: Vec<Result<Reply, Rejection>>) {
        let mut replies = replies.into_iter();
        for asker in askers {
            let Some(reply) = replies.next() else {
                return;
            };
            match asker {
                Asker::One(answer) => drop(answer.send(reply)),
                Asker::Both(answer) => {
                    if let Some(second) = replies.next() {
                        drop(answer.send((reply, second)));
                    }
                }
                Asker::Session {
                    worker,
                    session,
                    answer,
                } => {
                    if reply.is_ok() {
                        self.sessions.insert(worker.clone(), session);
                        self.answer_again(&worker);
                        let wanted = self.state.declared_agents();
                        if !wanted.is_empty() {
                            self.tell(&worker, ToSession::Look(wanted));
                        }
                    }
                    drop(answer.send(reply));
                }
            }
        }
    }

    /// Tells a worker's new session what people have answered and its agents have not got yet, since
    /// the message to an earlier session may have been lost.
    fn answer_again(&mut self, worker: &WorkerId) {
        let leases = self.state.leases_of_worker(worker);
        let answers = leases.flat_map(|lease| {
            let answered = self.state.answered(lease.id);
            answered.filter_map(|given| AnswerFacts::of(lease.id, given))
        });
        let answers: Vec<AnswerFacts> = answers.collect();
        if !answers.is_empty() {
            self.tell(worker, ToSession::Answers(answers));
        }
    }

    /// Tells the world what has been committed.
    fn release(&mut self, effects: &[Effect], events: &[Event]) {
        if events.is_empty() {
            return;
        }
        let mut grants: BTreeMap<WorkerId, Vec<GrantFacts>> = BTreeMap::new();
        let mut stops: BTreeMap<WorkerId, Vec<LeaseId>> = BTreeMap::new();
        let mut answers: BTreeMap<WorkerId, Vec<AnswerFacts>> = BTreeMap::new();
        let mut looks = false;
        for effect in effects {
            match effect {
                Effect::Grant { lease, worker } => {
                    if let Some(facts) = GrantFacts::collect(&self.state, *lease) {
                        grants.entry(worker.clone()).or_default().push(facts);
                    }
                }
                Effect::Stop { lease, worker } => {
                    stops.entry(worker.clone()).or_default().push(*lease);
                }
                Effect::Answer {
                    worker,
                    lease,
                    question,
                } => {
                    let answered = self.state.answered(*lease);
                    let given = answered.filter(|answered| answered.id == *question);
                    let facts = given.filter_map(|given| AnswerFacts::of(*lease, given));
                    answers.entry(worker.clone()).or_default().extend(facts);
                }
                Effect::Look => looks = true,
                Effect::GitWork => self.notices.announce_git_work(),
                Effect::RunEnded { .. } => self.notices.announce_projection(),
            }
        }
        if looks {
            let wanted = self.state.declared_agents();
            let workers: Vec<WorkerId> = self.sessions.keys().cloned().collect();
            for worker in workers {
                self.tell(&worker, ToSession::Look(wanted.clone()));
            }
        }
        for (worker, facts) in grants {
            self.tell(&worker, ToSession::Grants(facts));
        }
        for (worker, leases) in stops {
            self.tell(&worker, ToSession::Stop(leases));
        }
        for (worker, facts) in answers {
            self.tell(&worker, ToSession::Answers(facts));
        }
        let mut last: BTreeMap<RunId, u64> = BTreeMap::new();
        let mut refs_changed = false;
        let mut workers_changed = false;
        let mut pools_changed = false;
        for event in events {
            if let Some(run) = event.kind.run() {
                last.insert(run, event.seq);
            }
            match event.kind {
                EventKind::TaskSucceeded { .. }
                | EventKind::RunEnded { .. }
                | EventKind::RunReloaded { .. } => refs_changed = true,
                EventKind::WorkerJoined { .. }
                | EventKind::WorkerDraining { .. }
                | EventKind::WorkerForgotten { .. } => workers_changed = true,
                EventKind::Pool(_) | EventKind::LeaseClosed { .. } => pools_changed = true,
                _ => {}
            }
        }
        for (run, seq) in last {
            self.notices.announce_run(run, seq);
        }
        if refs_changed {
            self.notices.announce_projection();
        }
        if workers_changed {
            self.notices.announce_workers();
        }
        if pools_changed {
            self.notices.announce_pools();
        }
        self.notices.announce_commit();
    }

    /// Hands a message to a session. One that does not take it is dropped: its worker reconnects
    /// and its hello sorts out what it holds.
    fn tell(&mut self, worker: &WorkerId, message: ToSession) {
        let Some(session) = self.sessions.get(worker) else {
            return;
        };
        if let Err(error) = session.out.try_send(message) {
            warn!(worker = %worker, session = session.number, error = %error, "giving up a session that takes no messages");
            self.sessions.remove(worker);
        }
    }

    /// Moves ended runs of which nothing is open into the archive, one bounded step at a time, so
    /// that commits go in between. True while there is more to do.
    fn archive_ended(&mut self) -> Result<bool, Fatal> {
        let now = self.clock.now();
        let is_ready = |(run, at): &(&RunId, &Timestamp)| {
            **at <= now && self.state.leases_of_run(**run).next().is_none()
        };
        let Some(run) = self.endings.iter().find(is_ready).map(|(run, _)| *run) else {
            return Ok(false);
        };
        let Some(image) = self.state.run(run).filter(|run| run.is_ended()).cloned() else {
            // It was reopened; it is asked for again when it has ended.
            self.endings.remove(&run);
            return Ok(true);
        };
        let last_seq = image.last_seq;
        let image = RunImage { run: image };
        match self.journal.store.archive(&image) {
            Ok(Progress::More) => return Ok(true),
            Ok(Progress::Done) => {}
            Err(error) => {
                // The run stays in memory meanwhile, where nothing is lost.
                warn!(run = %image.run.name, error = %error, "failed to archive a run; trying again later");
                self.endings.insert(run, now + self.archive_pause);
                return Ok(true);
            }
        }
        self.endings.remove(&run);
        let mut batch = Batch::open(&mut self.state, now);
        batch.take(&Command::Archived { run, last_seq });
        let committed = close(batch, self.holding).commit(&mut self.journal)?;
        if let Some(Err(rejection)) = committed.replies.first() {
            warn!(run = %image.run.name, error = %rejection, "an archived run stays in memory");
        }
        self.release(&committed.effects, &committed.events);
        Ok(true)
    }

    /// Writes a snapshot when enough batches have passed, and lets go of journal rows behind it in
    /// bounded steps. True while there is more to do.
    fn snapshot_if_due(&mut self) -> bool {
        if self.journal.since_snapshot >= self.snapshot_every {
            self.journal.since_snapshot = 0;
            let last = BatchSeq(self.journal.next.0.saturating_sub(1));
            match self.journal.store.snapshot(last, &self.state.image()) {
                Ok(()) => self.truncating = true,
                // The journal is complete without it; only the next start takes longer.
                Err(error) => warn!(error = %error, "failed to write a snapshot"),
            }
        }
        if !self.truncating {
            return false;
        }
        match self.journal.store.truncate() {
            Ok(Progress::More) => true,
            Ok(Progress::Done) => {
                self.truncating = false;
                false
            }
            Err(error) => {
                warn!(error = %error, "failed to shorten the journal");
                self.truncating = false;
                false
            }
        }
    }
}
