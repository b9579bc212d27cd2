//! The coordinator's process around the real core: what its engine, its sessions and its
//! reconcilers do, on simulated time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use coordinator_core::batch::{Committed, Leases};
use coordinator_core::command::Hello;
use coordinator_core::state::{LeaseClocks, RunImage};
use coordinator_core::{
    Batch, Command, CommitId, Effect, Epoch, Event, EventKind, LeaseId, QuestionId, Rejection,
    Reply, RunId, State, Timestamp, WorkerId, next_wakeup,
};
use muster_proto::v1;

use crate::carrier::Carrier;
use crate::facts::Facts;
use crate::remote::{GitRequest, GitResult, Ref};
use crate::scenario::{CrashPoint, What};
use crate::store::{Pen, Written};
use crate::world::{Checked, Ev, WALL_MS, World, tell};

/// A message of a worker.
#[derive(Clone, Debug)]
pub(crate) enum Up {
    Hello(Hello),
    Heartbeat(v1::Heartbeat),
    Reports(Vec<v1::Report>),
    /// Numbers of events of a lease: first and last.
    Events(u64, u64, u64),
    Ask(u64),
    /// The agent of a lease has its answer.
    GotAnswer(u64),
    Goodbye,
    /// What only a liar says.
    Lie(Command),
}

/// A message of the coordinator.
#[derive(Clone, Debug)]
pub(crate) enum Down {
    Welcome(v1::Welcome),
    Renewal(v1::Renewal),
    Grants(Vec<Facts>),
    ReportAcks(Vec<v1::ReportAck>),
    EventAck(v1::EventAck),
    Stop(Vec<u64>),
    Answer(u64),
}

/// A merge that was made.
#[derive(Debug)]
pub(crate) struct GitDone {
    pub(crate) command: Command,
    pub(crate) keep: Option<(Ref, CommitId)>,
}

/// Who waits for an answer.
#[derive(Clone, Debug)]
pub(crate) enum Asker {
    Nobody,
    Hello(usize),
    Heartbeat(usize),
    /// One report of a batch of them.
    Report(usize, u64, bool),
    Operator(usize, bool),
}

pub(crate) enum Request {
    Command(Asker, Command),
    Reports(usize, Vec<v1::Report>),
    Git(Box<GitRequest>),
    Archive(RunId),
}

/// A batch on its way to the disk.
pub(crate) struct Pending {
    pub(crate) written: Written,
    pub(crate) commands: Vec<Command>,
    pub(crate) askers: Vec<Asker>,
    pub(crate) committed: Option<Committed>,
    pub(crate) first_row: usize,
    pub(crate) queries: Vec<GitRequest>,
    pub(crate) at: Timestamp,
}

pub(crate) struct Coordinator {
    pub(crate) clocks: LeaseClocks,
    pub(crate) state: State,
    pub(crate) up: bool,
    /// Number of this process; messages to an earlier one are lost.
    pub(crate) start: u64,
    pub(crate) epoch: Epoch,
    pub(crate) began: (u64, Timestamp),
    pub(crate) wall_offset: i64,
    pub(crate) inbox: Vec<Request>,
    pub(crate) pending: Option<Pending>,
    pub(crate) batch_at: u64,
    pub(crate) sessions: BTreeMap<WorkerId, usize>,
    pub(crate) next_session: u64,
    pub(crate) endings: BTreeSet<RunId>,
    pub(crate) holding: bool,
    pub(crate) since_snapshot: u64,
    pub(crate) git_busy: bool,
    pub(crate) git_nth: u64,
    pub(crate) armed: Option<(CrashPoint, u64, i64)>,
    pub(crate) batches: u64,
    /// Highest numbers that anybody was ever told.
    pub(crate) told_lease: u64,
    pub(crate) told_run: u64,
    pub(crate) carrier: Carrier,
    /// Orders that were placed by all its processes.
    pub(crate) ordered: u64,
}

impl Coordinator {
    pub(crate) fn new(clocks: LeaseClocks) -> Self {
        Self {
            clocks,
            state: State::new(),
            up: false,
            start: 0,
            epoch: Epoch(0),
            began: (0, Timestamp::default()),
            wall_offset: 0,
            inbox: vec![],
            pending: None,
            batch_at: u64::MAX,
            sessions: BTreeMap::new(),
            next_session: 1,
            endings: BTreeSet::new(),
            holding: false,
            since_snapshot: 0,
            git_busy: false,
            git_nth: 0,
            armed: None,
            batches: 0,
            told_lease: 0,
            told_run: 0,
            carrier: Carrier::default(),
            ordered: 0,
        }
    }

    /// Tells the coordinator's time: its clock at its start plus what has passed since.
    pub(crate) fn time(&self, now: u64) -> Timestamp {
        let (began, at) = self.began;
        at + coordinator_core::Span::from_ms(now.saturating_sub(began))
    }

    pub(crate) fn moment_of(&self, at: Timestamp) -> u64 {
        let (began, start) = self.began;
        began + at.since(start).ms()
    }
}

impl World<'_> {
    pub(crate) fn trouble_at_coordinator(&mut self, what: What) -> Checked {
        match what {
            What::CoordinatorCrash {
                point,
                down_ms,
                wall_jump_ms,
            } => {
                if !self.coordinator.up {
                    return Ok(());
                }
                if point == CrashPoint::Now {
                    return self.crash(down_ms, wall_jump_ms);
                }
                self.coordinator.armed = Some((point, down_ms, wall_jump_ms));
            }
            What::CommitsFail { times, written } => {
                self.store.failing = times;
                self.store.written = written;
            }
            What::DiskFull { for_ms } => self.store.full_until = self.now + for_ms,
            What::SlowDisk { for_ms, sync_ms } => {
                self.store.slow_until = self.now + for_ms;
                self.store.sync_ms = sync_ms;
            }
            _ => {}
        }
        Ok(())
    }

    /// The coordinator's process ends without a word.
    pub(crate) fn crash(&mut self, down_ms: u64, wall_jump_ms: i64) -> Checked {
        tell!(self, "the coordinator dies");
        self.coordinator.up = false;
        self.coordinator.armed = None;
        self.coordinator.start += 1;
        let inbox = std::mem::take(&mut self.coordinator.inbox);
        let asked = inbox.into_iter().filter_map(|request| match request {
            Request::Git(request) => Some(*request),
            _ => None,
        });
        let waiting = self.coordinator.pending.as_mut();
        let waiting = waiting.map(|pending| std::mem::take(&mut pending.queries));
        for request in asked.chain(waiting.into_iter().flatten()) {
            self.git_answer(&request, GitResult::Unreachable, 1);
        }
        self.coordinator.sessions.clear();
        self.coordinator.endings.clear();
        self.coordinator.holding = false;
        self.coordinator.git_busy = false;
        self.coordinator.batch_at = u64::MAX;
        self.coordinator.wall_offset += wall_jump_ms;
        self.store.die(self.now);
        let live = match self.coordinator.pending.take() {
            Some(pending) => {
                if pending.written.row && self.store.rows.len() > pending.first_row {
                    self.digest_batch(&pending)?;
                }
                None
            }
            None => Some(self.coordinator.state.image()),
        };
        self.follow()?;
        if let Some(live) = live {
            self.ensure(
                live == self.store.shadow.image(),
                "replay equals live",
                || "the journal gives another state than the one that died".into(),
            )?;
        }
        let silently = self.roll(1, self.coordinator.start, 0).is_multiple_of(4);
        for conn in 0..self.conns.len() {
            self.close_conn(conn, false, silently);
        }
        let start = self.coordinator.start;
        self.push(self.now + down_ms.max(1), Ev::StartCoordinator(start));
        Ok(())
    }

    pub(crate) fn follow(&mut self) -> Checked {
        let followed = self.store.follow();
        followed.map_err(|what| self.violation("the journal can be replayed", what))
    }

    pub(crate) fn start_coordinator(&mut self, start: u64) -> Checked {
        if start != self.coordinator.start || self.coordinator.up {
            return Ok(());
        }
        if self.store.is_full(self.now) {
            tell!(self, "the coordinator cannot start: the disk is full");
            self.push(self.now + 1_000, Ev::StartCoordinator(start));
            return Ok(());
        }
        if start > 0 {
            self.counts.restarts += 1;
        }
        let epoch = self.store.claim();
        let clocks = self.coordinator.clocks;
        let rebuilt = self.store.rebuild(clocks);
        let (state, last_at) =
            rebuilt.map_err(|what| self.violation("a start finds what was kept", what))?;
        self.ensure(
            state.image() == self.store.shadow.image(),
            "replay equals live",
            || "snapshot and rows give another state than all rows".into(),
        )?;
        let image = state.image();
        let (told_lease, told_run) = (self.coordinator.told_lease, self.coordinator.told_run);
        self.ensure(
            image.next_lease.0 > told_lease,
            "persist, then speak",
            || {
                format!(
                    "lease {told_lease} was told, the next is {}",
                    image.next_lease
                )
            },
        )?;
        self.ensure(image.next_run.0 > told_run, "persist, then speak", || {
            format!("run {told_run} was told, the next is {}", image.next_run)
        })?;
        let wall = (WALL_MS + self.now).saturating_add_signed(self.coordinator.wall_offset);
        let at = last_at.max(Timestamp::from_ms(wall));
        let coordinator = &mut self.coordinator;
        coordinator.state = state;
        coordinator.epoch = epoch;
        coordinator.began = (self.now, at);
        coordinator.up = true;
        coordinator.next_session = 1;
        coordinator.since_snapshot = 0;
        tell!(self, "the coordinator starts as {epoch} at {at}");
        self.reference.restarted(at, clocks);
        let World {
            coordinator,
            store,
            now,
            watch,
            ..
        } = self;
        crate::coverage::observe_start(&coordinator.state, *watch);
        let batch = Batch::start(&mut coordinator.state, at, epoch);
        crate::coverage::observe_due(batch.state(), at, *watch);
        let first_row = store.rows.len();
        let mut pen = Pen {
            store,
            now: *now,
            armed: None,
            written: nothing(*now),
        };
        let committed = batch.close(Leases::Grant).commit(&mut pen).ok();
        let written = pen.written;
        coordinator.pending = Some(Pending {
            written,
            commands: vec![],
            askers: vec![],
            committed,
            first_row,
            queries: vec![],
            at,
        });
        let start = self.coordinator.start;
        self.push(written.done_at, Ev::Committed(start));
        self.push(self.now + 20, Ev::Project(start));
        self.push(self.now + 10, Ev::GitWork(start));
        self.start_pool();
        Ok(())
    }

    /// Puts something into the engine's queue.
    pub(crate) fn request(&mut self, request: Request) {
        if !self.coordinator.up {
            return;
        }
        self.coordinator.inbox.push(request);
        self.schedule_batch(self.now);
    }

    /// Lets the engine look again, if something is due.
    pub(crate) fn wake_coordinator(&mut self) {
        if self.coordinator.up {
            self.schedule_batch(self.now);
        }
    }

    pub(crate) fn schedule_batch(&mut self, at: u64) {
        let at = at.max(self.now);
        if self.coordinator.pending.is_none() && at < self.coordinator.batch_at {
            self.coordinator.batch_at = at;
            let start = self.coordinator.start;
            self.push(at, Ev::Batch(start));
        }
    }

    /// Decides everything that waits, and begins to write it.
    pub(crate) fn batch(&mut self, start: u64) -> Checked {
        let coordinator = &mut self.coordinator;
        if start != coordinator.start || !coordinator.up || coordinator.pending.is_some() {
            return Ok(());
        }
        if self.now < coordinator.batch_at {
            // An earlier plan; a later one replaced it.
            return Ok(());
        }
        coordinator.batch_at = u64::MAX;
        let requests = std::mem::take(&mut coordinator.inbox);
        let mut queries = vec![];
        let mut asked: Vec<(Asker, Command)> = vec![];
        for request in requests {
            match request {
                Request::Command(asker, command) => asked.push((asker, command)),
                Request::Reports(conn, reports) => {
                    let last = reports.len();
                    for (nth, report) in reports.into_iter().enumerate() {
                        asked.extend(self.checked(conn, report, nth + 1 == last));
                    }
                }
                Request::Git(request) => queries.push(*request),
                Request::Archive(run) => {
                    self.coordinator.endings.insert(run);
                }
            }
        }
        self.decide(asked, queries)
    }

    pub(crate) fn decide(
        &mut self,
        asked: Vec<(Asker, Command)>,
        queries: Vec<GitRequest>,
    ) -> Checked {
        let at = self.timestamp();
        let World {
            coordinator,
            store,
            now,
            watch,
            ..
        } = self;
        let mut batch = Batch::open(&mut coordinator.state, at);
        let (mut askers, mut commands) = (vec![], Vec::with_capacity(asked.len()));
        for (asker, command) in asked {
            crate::coverage::observe(batch.state(), &command, *watch);
            batch.take(&command);
            askers.push(asker);
            commands.push(command);
        }
        crate::coverage::observe_due(batch.state(), at, *watch);
        let leases = if coordinator.holding {
            Leases::Hold
        } else {
            Leases::Grant
        };
        let first_row = store.rows.len();
        let mut pen = Pen {
            armed: coordinator.armed.map(|(point, ..)| point),
            written: nothing(*now),
            store,
            now: *now,
        };
        let committed = batch.close(leases).commit(&mut pen).ok();
        let mut written = pen.written;
        if committed.is_some() {
            // It speaks on the batch's word that the row is there.
            written.dies = false;
        }
        self.counts.commands += commands.len() as u64;
        self.coordinator.pending = Some(Pending {
            written,
            commands,
            askers,
            committed,
            first_row,
            queries,
            at,
        });
        self.check_agents(first_row)?;
        if written.done_at > self.now {
            let start = self.coordinator.start;
            self.push(written.done_at, Ev::Committed(start));
            return Ok(());
        }
        let start = self.coordinator.start;
        self.committed(start)
    }

    /// The batch is on disk, or the process dies of it.
    pub(crate) fn committed(&mut self, start: u64) -> Checked {
        if start != self.coordinator.start || !self.coordinator.up {
            return Ok(());
        }
        let Some(pending) = self.coordinator.pending.take() else {
            return Ok(());
        };
        if pending.written.dies {
            self.coordinator.pending = Some(pending);
            let (down_ms, jump) = match self.coordinator.armed {
                Some((_, down_ms, jump)) => (down_ms, jump),
                None => (2_000, 0),
            };
            return self.crash(down_ms, jump);
        }
        self.digest_batch(&pending)?;
        self.follow()?;
        self.check_state(&pending.commands, pending.first_row)?;
        let Some(committed) = pending.committed else {
            return Ok(());
        };
        if !committed.events.is_empty() {
            self.coordinator.since_snapshot += 1;
        }
        self.answer(pending.askers, committed.replies)?;
        self.release(&committed.effects, &committed.events);
        for query in pending.queries {
            self.git_query(query);
        }
        if self.archive_ended()? || self.snapshot_if_due()? || !self.coordinator.up {
            return Ok(());
        }
        self.look_again();
        Ok(())
    }

    pub(crate) fn look_again(&mut self) {
        if !self.coordinator.inbox.is_empty() {
            self.schedule_batch(self.now);
        }
        if let Some((at, _)) = next_wakeup(&self.coordinator.state) {
            let at = self.coordinator.moment_of(at);
            self.schedule_batch(at);
        }
    }

    /// Shows a batch that is in the journal to everything that judges it.
    pub(crate) fn digest_batch(&mut self, pending: &Pending) -> Checked {
        self.coordinator.batches += 1;
        let rows: Vec<_> = self
            .store
            .rows
            .iter()
            .skip(pending.first_row)
            .cloned()
            .collect();
        let events: &[Event] = rows.first().map_or(&[], |row| &row.events);
        self.counts.events += events.len() as u64;
        for event in events {
            self.trace(event.seq ^ (event.at.ms() << 20));
            for byte in event.kind.name().bytes().take(8) {
                self.digest = self.digest.rotate_left(7) ^ u64::from(byte);
            }
            tell!(self, "journal: {}", crate::story::event(event));
        }
        let replies = pending
            .committed
            .as_ref()
            .map(|committed| &*committed.replies);
        let judged = self
            .reference
            .judge(pending.at, &pending.commands, replies, events);
        judged.map_err(|(rule, what)| self.violation(rule, what))?;
        self.check_merges(&pending.commands, events)?;
        self.check_events(events)
    }

    pub(crate) fn answer(
        &mut self,
        askers: Vec<Asker>,
        replies: Vec<Result<Reply, Rejection>>,
    ) -> Checked {
        let mut acks = vec![];
        for (asker, reply) in askers.into_iter().zip(replies) {
            match asker {
                Asker::Nobody => {}
                Asker::Hello(conn) => self.welcome(conn, reply),
                Asker::Heartbeat(conn) => match reply {
                    Ok(Reply::Renewed { seq, verdicts }) => {
                        let verdicts = verdicts.into_iter().map(verdict).collect();
                        self.say(conn, Down::Renewal(v1::Renewal { seq, verdicts }));
                    }
                    Ok(_) => {}
                    Err(_) => self.end_session(conn),
                },
                Asker::Report(conn, number, last) => {
                    let verdict = match reply {
                        Ok(Reply::Report(answer)) => report_verdict(answer),
                        _ => v1::ReportVerdict::Stale,
                    };
                    if number > 0 {
                        acks.push(v1::ReportAck {
                            number,
                            verdict: verdict.into(),
                        });
                    }
                    if last && !acks.is_empty() {
                        self.say(conn, Down::ReportAcks(std::mem::take(&mut acks)));
                    }
                }
                Asker::Operator(nth, last) => {
                    if let Ok(Reply::Submitted { run, .. }) = &reply {
                        self.coordinator.told_run = self.coordinator.told_run.max(run.0);
                    }
                    if last {
                        self.answered(nth, reply)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Tells the world what has been committed.
    pub(crate) fn release(&mut self, effects: &[Effect], events: &[Event]) {
        let mut grants: BTreeMap<&WorkerId, Vec<Facts>> = BTreeMap::new();
        let mut stops: BTreeMap<&WorkerId, Vec<u64>> = BTreeMap::new();
        for effect in effects {
            match effect {
                Effect::Grant { lease, worker } => {
                    self.coordinator.told_lease = self.coordinator.told_lease.max(lease.0);
                    if let Some(facts) = self.facts(*lease) {
                        grants.entry(worker).or_default().push(facts);
                    }
                }
                Effect::Stop { lease, worker } => stops.entry(worker).or_default().push(lease.0),
                Effect::Answer { lease, worker, .. } => {
                    if let Some(conn) = self.coordinator.sessions.get(worker).copied() {
                        self.say(conn, Down::Answer(lease.0));
                    }
                }
                Effect::GitWork => {
                    let start = self.coordinator.start;
                    self.push(self.now + 1, Ev::GitWork(start));
                }
                // Seen among the events; and no plan of a world declares agents.
                Effect::RunEnded { .. } | Effect::Look => {}
            }
        }
        for (worker, facts) in grants {
            if let Some(conn) = self.coordinator.sessions.get(worker).copied() {
                self.say(conn, Down::Grants(facts));
            }
        }
        for (worker, leases) in stops {
            if let Some(conn) = self.coordinator.sessions.get(worker).copied() {
                self.say(conn, Down::Stop(leases));
            }
        }
        let mut projects = false;
        for event in events {
            if let Some(moment) = crate::story::moment(&event.kind) {
                self.moment(moment);
            }
            if matches!(event.kind, EventKind::Pool(_)) {
                self.look_at_pool(self.now + 1);
            }
            projects |= matches!(
                event.kind,
                EventKind::TaskSucceeded { .. }
                    | EventKind::RunEnded { .. }
                    | EventKind::RunReloaded { .. }
            );
        }
        if projects {
            let start = self.coordinator.start;
            let pause = 1 + self.roll(2, self.coordinator.batches, 0) % 100;
            let pause = if self.now < self.remote.slow_until {
                pause + self.roll(4, self.coordinator.batches, 0) % self.remote.merge_ms.max(1)
            } else {
                pause
            };
            self.push(self.now + pause, Ev::Project(start));
        }
    }

    /// Moves one ended run into the archive; true when a batch was begun or the process has died.
    pub(crate) fn archive_ended(&mut self) -> Result<bool, crate::Violation> {
        let state = &self.coordinator.state;
        let ready = |run: &&RunId| state.leases_of_run(**run).next().is_none();
        let Some(run) = self.coordinator.endings.iter().find(ready).copied() else {
            return Ok(false);
        };
        self.coordinator.endings.remove(&run);
        let Some(ended) = state.run(run).filter(|run| run.is_ended()) else {
            return Ok(false);
        };
        if self.store.is_full(self.now) {
            // It stays in memory; its branches are looked at again some time.
            let start = self.coordinator.start;
            self.push(self.now + 60_000, Ev::Project(start));
            return Ok(false);
        }
        let image = RunImage { run: ended.clone() };
        let (last_seq, held) = (ended.last_seq, self.store.last.get(&run).copied());
        self.ensure(held == Some(last_seq), "the archive is complete", || {
            format!("{run} ends with event {last_seq}, the journal with {held:?}")
        })?;
        self.store.archive.insert(run, Arc::new(image));
        tell!(self, "the archive has {run}");
        if let Some((CrashPoint::InArchive, down_ms, jump)) = self.coordinator.armed {
            self.crash(down_ms, jump)?;
            return Ok(true);
        }
        let command = Command::Archived { run, last_seq };
        self.decide(vec![(Asker::Nobody, command)], vec![])?;
        Ok(true)
    }

    pub(crate) fn snapshot_if_due(&mut self) -> Result<bool, crate::Violation> {
        let due = self.coordinator.since_snapshot >= self.scenario.snapshot_every;
        if !due || self.store.is_full(self.now) {
            return Ok(false);
        }
        self.coordinator.since_snapshot = 0;
        let armed = self.coordinator.armed;
        if let Some((CrashPoint::TornSnapshot, down_ms, jump)) = armed {
            self.crash(down_ms, jump)?;
            return Ok(true);
        }
        let image = self.coordinator.state.image();
        self.store.snapshot(image);
        tell!(self, "a snapshot is written");
        if let Some((CrashPoint::AfterSnapshot, down_ms, jump)) = armed {
            self.crash(down_ms, jump)?;
            return Ok(true);
        }
        self.store.truncate();
        Ok(false)
    }

    /// Gives the oldest open question.
    pub(crate) fn open_question(&self) -> Option<QuestionId> {
        let question = self.coordinator.state.questions().next();
        question.map(|(_, question)| question.id)
    }
}

/// Nothing to write.
pub(crate) fn nothing(now: u64) -> Written {
    Written {
        done_at: now,
        row: false,
        dies: false,
    }
}

/// Gives the nth of a list whose last one stays.
pub(crate) fn nth_of<T: Copy>(list: &[T], nth: u32) -> Option<T> {
    let nth = usize::try_from(nth).ok()?;
    list.get(nth).or(list.last()).copied()
}

pub(crate) fn verdict(
    (lease, is): (LeaseId, coordinator_core::command::Verdict),
) -> v1::LeaseVerdict {
    use coordinator_core::command::Verdict;
    v1::LeaseVerdict {
        lease: lease.0,
        verdict: match is {
            Verdict::Keep => v1::Verdict::Keep,
            Verdict::Stop => v1::Verdict::Stop,
        }
        .into(),
    }
}

pub(crate) fn report_verdict(answer: coordinator_core::command::ReportAnswer) -> v1::ReportVerdict {
    use coordinator_core::command::ReportAnswer;
    match answer {
        ReportAnswer::Recorded => v1::ReportVerdict::Recorded,
        ReportAnswer::AlreadyRecorded => v1::ReportVerdict::AlreadyRecorded,
        ReportAnswer::Stale => v1::ReportVerdict::Stale,
    }
}
