//! What a worker holds, what it may say next, and when it must let go. Pure: no clock, no I/O.
//!
//! Three rules keep the worker's promises:
//!
//! - A lease's TTL counts from when the heartbeat was *sent* that its grant or renewal names, and
//!   work ends a margin before that, so that it is surely over when the coordinator reclaims it.
//! - A report is said only after it was stored, and again after each reconnect until acknowledged.
//! - Events are sent in order, within the coordinator's window, from what it last confirmed.

mod lease;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use muster_proto::v1::{
    AgentsFound, Answer, DeclaredAgent, Drain, EventAck, Grant, Heartbeat, LeaseAnswers, Report,
    ReportAck, ReportBatch, ReportVerdict, Verdict, Welcome, coordinator_message, report,
    worker_message,
};

use lease::{Batch, Lease, Position, Work};

use super::reserve::Reserve;
use super::window::EventWindow;
use crate::clock::Boottime;
use crate::failure::{class, failure};
use crate::outbox::is_final;

/// Share of its TTL that a lease's work ends before the TTL does: a sixth. Of a minute that is
/// ten seconds, enough for TERM, five seconds of grace and KILL.
const MARGIN_SHARE: u32 = 6;
/// Heartbeats whose sending time is remembered; a grant or renewal that names an older one has
/// been on its way for hours.
const HEARTBEATS_REMEMBERED: usize = 1024;
/// TTL of a grant that names none or a senseless one.
const TTL_MAX: Duration = Duration::from_secs(24 * 3_600);
/// Reports in one message.
const REPORTS_PER_BATCH: usize = 256;

/// Why a lease's processes must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopCause {
    /// The coordinator said so.
    Told,
    /// The lease ran out without a renewal.
    Expired,
}

/// What the shell is to do, in this order.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "most are messages, and none is kept"
)]
pub enum Output {
    /// Say this.
    Send(worker_message::Kind),
    /// Put these into the outbox, then call [`Machine::stored`].
    Store(Vec<Report>),
    /// Begin the work of a lease, which must be over at `deadline`.
    Start {
        grant: Box<Grant>,
        deadline: Boottime,
    },
    /// The work of a lease may go on until `deadline`.
    Renew { lease: u64, deadline: Boottime },
    /// End the processes of a lease and keep its edits; then report it as stopped.
    Stop { lease: u64, cause: StopCause },
    /// People answered questions of a lease; some perhaps before.
    Answers { lease: u64, answers: Vec<Answer> },
    /// Look for these declared agents, then call [`Machine::agents_found`].
    Look(Vec<DeclaredAgent>),
    /// Forget these reports.
    Acknowledged(Vec<u64>),
    /// Everything up to `number` is with the coordinator.
    EventsAcknowledged { lease: u64, number: u64 },
    /// Nothing is owed for this lease any more.
    Drop { lease: u64 },
}

/// Which events to send next.
///
/// With `last` the same as `after` it is a question: a message without events, which the
/// coordinator answers with the number of the last event that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextEvents {
    pub lease: u64,
    /// Number of the last event that was sent.
    pub after: u64,
    /// Number of the last event that may be sent.
    pub last: u64,
    /// Room in the window; an event larger than the whole window goes alone.
    pub bytes_max: u64,
}

#[derive(Clone, Debug)]
struct Pending {
    report: Report,
    stored: bool,
    sent: bool,
}

#[derive(Clone, Debug)]
struct Session {
    last_heartbeat: u64,
    sent_at: VecDeque<(u64, Boottime)>,
    event_window: EventWindow,
    report_window: usize,
    /// The first heartbeat that said that nothing is taken, and whether it was answered.
    drain_told: Option<u64>,
    drain_known: bool,
    /// It was told what agents were found.
    knows_agents: bool,
}

/// The worker's side of a session, and what outlives sessions.
#[derive(Debug)]
pub struct Machine {
    slots: u32,
    draining: bool,
    /// Its disk cannot be worked on.
    disk_trouble: Option<String>,
    /// Room on the disk for more.
    reserve: Reserve,
    /// When its machine goes away.
    ends_at: Option<Boottime>,
    leases: BTreeMap<u64, Lease>,
    reports: BTreeMap<u64, Pending>,
    next_report: u64,
    session: Option<Session>,
    /// What was found of agents on this host, once it was looked for.
    agents: Option<AgentsFound>,
    /// Lease whose events were sent last, so that no lease starves the others.
    last_served: u64,
}

impl Machine {
    /// Makes a machine for a worker of `slots` slots whose outbox goes on at `next_report`.
    pub fn new(slots: u32, next_report: u64) -> Self {
        Self {
            slots,
            draining: false,
            disk_trouble: None,
            reserve: Reserve::default(),
            ends_at: None,
            leases: BTreeMap::new(),
            reports: BTreeMap::new(),
            next_report,
            session: None,
            agents: None,
            last_served: 0,
        }
    }

    /// Takes a report that an earlier incarnation left in the outbox.
    ///
    /// A lease whose final report this is counts as held until it is acknowledged.
    pub fn restore_report(&mut self, report: Report) {
        if report.kind.as_ref().is_some_and(is_final) {
            self.lease(report.lease).work = Work::Reported;
        }
        self.next_report = self.next_report.max(report.number.saturating_add(1));
        let pending = Pending {
            report,
            stored: true,
            sent: false,
        };
        self.reports.insert(pending.report.number, pending);
    }

    /// Takes a lease whose folder an earlier incarnation left, with events up to `last`.
    pub fn restore_lease(&mut self, lease: u64, last: u64) {
        let lease = self.lease(lease);
        lease.finished = false;
        lease.events_stored = last;
        lease.forget_position();
    }

    fn lease(&mut self, lease: u64) -> &mut Lease {
        self.leases.entry(lease).or_insert_with(|| Lease {
            finished: true,
            ..Lease::new(Work::Over)
        })
    }

    /// Leases whose work or unacknowledged result the worker has.
    pub fn held(&self) -> Vec<u64> {
        let held = self.leases.iter().filter(|(_, lease)| lease.is_held());
        held.map(|(id, _)| *id).collect()
    }

    /// Leases whose work goes on or is being ended.
    pub fn working(&self) -> Vec<u64> {
        let working = self.leases.iter().filter(|(_, lease)| lease.takes_slot());
        working.map(|(id, _)| *id).collect()
    }

    /// Leases it could take now.
    pub fn free_slots(&self) -> u32 {
        let taken = self.slots_taken();
        if self.draining || self.disk_trouble.is_some() {
            0
        } else {
            let room = self.reserve.more(taken).unwrap_or(u32::MAX);
            self.slots.saturating_sub(taken).min(room)
        }
    }

    fn slots_taken(&self) -> u32 {
        let taken = self.leases.values().filter(|lease| lease.takes_slot());
        u32::try_from(taken.count()).unwrap_or(u32::MAX)
    }

    /// Keeps so many bytes of the disk for each lease.
    pub(crate) fn keep_room(&mut self, bytes: u64) {
        self.reserve = Reserve::new(bytes);
    }

    /// Takes how many bytes are free on the disk, and says it when that changes what it offers.
    pub(crate) fn disk_has(&mut self, free: u64, now: Boottime) -> Vec<Output> {
        let taken = self.slots_taken();
        let before = (self.free_slots(), self.reserve.shortage(taken).is_some());
        self.reserve.heard(free, taken);
        let after = (self.free_slots(), self.reserve.shortage(taken).is_some());
        match self.session {
            Some(_) if before != after => vec![self.heartbeat_message(now)],
            _ => Vec::new(),
        }
    }

    /// Tells how many bytes have to be free on the disk so that it can take another lease.
    pub(crate) fn room_wanted(&self) -> u64 {
        self.reserve.wanted(self.slots_taken())
    }

    /// Tells whether it takes nothing new.
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Takes nothing new from here on.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Offers no slot while the disk cannot be worked on, and says so when that changes.
    pub(crate) fn disk_is_in_trouble(
        &mut self,
        trouble: Option<&str>,
        now: Boottime,
    ) -> Vec<Output> {
        if self.disk_trouble.as_deref() == trouble {
            return Vec::new();
        }
        self.disk_trouble = trouble.map(str::to_owned);
        match self.session {
            Some(_) => vec![self.heartbeat_message(now)],
            None => Vec::new(),
        }
    }

    /// Takes what was found of agents, and says it when that is news.
    pub(crate) fn agents_found(&mut self, found: AgentsFound, now: Boottime) -> Vec<Output> {
        if self.agents.as_ref() == Some(&found) {
            return Vec::new();
        }
        self.agents = Some(found);
        match &mut self.session {
            Some(session) => {
                session.knows_agents = false;
                vec![self.heartbeat_message(now)]
            }
            None => Vec::new(),
        }
    }

    /// Tells whether no process runs and no result waits to be said.
    pub fn holds_nothing(&self) -> bool {
        self.reports.is_empty() && !self.leases.values().any(Lease::is_held)
    }

    /// Tells whether nothing at all is owed: no lease, no report, no event, no unpublished edit.
    pub fn owes_nothing(&self) -> bool {
        self.reports.is_empty() && self.leases.is_empty()
    }

    /// Tells whether nothing is owed and nothing new can be under way: the coordinator has answered a
    /// heartbeat that said that nothing is taken. Without a session nobody grants anything.
    pub fn may_go(&self) -> bool {
        let session = self.session.as_ref();
        self.owes_nothing() && session.is_none_or(|session| session.drain_known)
    }

    /// Takes when the machine goes away, which heartbeats tell from here on.
    pub fn machine_ends(&mut self, at: Option<Boottime>) {
        self.ends_at = at;
    }

    /// How long the machine will still be there, if that is known.
    pub fn time_left(&self, now: Boottime) -> Option<Duration> {
        self.ends_at.map(|end| end.since(now))
    }

    /// Begins a session with the coordinator's answer to the hello.
    pub fn welcomed(&mut self, welcome: &Welcome, now: Boottime) -> Vec<Output> {
        self.disconnected();
        let interval = welcome.heartbeat_interval;
        let interval = interval.and_then(|interval| Duration::try_from(interval).ok());
        let interval = interval.unwrap_or_default();
        self.session = Some(Session {
            last_heartbeat: 0,
            sent_at: VecDeque::new(),
            event_window: EventWindow::new(welcome.event_window_bytes, interval),
            report_window: usize::try_from(welcome.report_window.max(1)).unwrap_or(1),
            drain_told: None,
            drain_known: false,
            knows_agents: false,
        });
        let mut outputs = Vec::new();
        for verdict in &welcome.verdicts {
            match verdict.verdict() {
                // No renewal: the first heartbeat follows at once, and its answer renews.
                Verdict::Keep => {}
                Verdict::Stop => self.stop(verdict.lease, StopCause::Told, &mut outputs),
                Verdict::Unspecified => {}
            }
        }
        outputs.push(self.heartbeat_message(now));
        self.send_reports(&mut outputs);
        outputs
    }

    /// Ends the session: what was not confirmed will be said again.
    pub fn disconnected(&mut self) {
        self.session = None;
        for pending in self.reports.values_mut() {
            pending.sent = false;
        }
        for lease in self.leases.values_mut() {
            lease.in_flight.clear();
            lease.events_sent = lease.events_acknowledged;
            lease.forget_position();
        }
    }

    /// Makes the next heartbeat and remembers when it was sent; `None` outside a session.
    pub fn heartbeat(&mut self, now: Boottime) -> Option<Heartbeat> {
        let (held_leases, free_slots) = (self.held(), self.free_slots());
        let draining = self.draining;
        let time_left = self.time_left(now);
        let trouble = self.disk_trouble.as_ref();
        let trouble = trouble.map(|what| format!("its disk cannot be worked on: {what}"));
        let taken = self.slots_taken();
        let short = || self.reserve.shortage(taken).filter(|_| taken < self.slots);
        let trouble = trouble.or_else(short);
        let session = self.session.as_mut()?;
        let agents = self.agents.as_ref().filter(|_| !session.knows_agents);
        session.knows_agents = self.agents.is_some();
        session.last_heartbeat += 1;
        if session.sent_at.len() == HEARTBEATS_REMEMBERED {
            session.sent_at.pop_front();
        }
        session.sent_at.push_back((session.last_heartbeat, now));
        if draining {
            session.drain_told.get_or_insert(session.last_heartbeat);
        }
        Some(Heartbeat {
            seq: session.last_heartbeat,
            held_leases,
            free_slots,
            draining,
            trouble: trouble.unwrap_or_default(),
            time_left: time_left.and_then(|left| left.try_into().ok()),
            agents: agents.cloned(),
        })
    }

    fn heartbeat_message(&mut self, now: Boottime) -> Output {
        let heartbeat = self.heartbeat(now).unwrap_or_default();
        Output::Send(worker_message::Kind::Heartbeat(heartbeat))
    }

    /// Takes a message that is not the welcome.
    pub fn received(&mut self, message: coordinator_message::Kind, now: Boottime) -> Vec<Output> {
        let mut outputs = Vec::new();
        match message {
            // Only the first message is a welcome, and the shell has taken that one.
            coordinator_message::Kind::Welcome(_) => {}
            coordinator_message::Kind::Renewal(renewal) => {
                if let Some(session) = &mut self.session {
                    let told = session.drain_told.is_some_and(|told| told <= renewal.seq);
                    session.drain_known |= told;
                }
                for verdict in &renewal.verdicts {
                    match verdict.verdict() {
                        Verdict::Keep => self.renew(verdict.lease, renewal.seq, &mut outputs),
                        Verdict::Stop => self.stop(verdict.lease, StopCause::Told, &mut outputs),
                        Verdict::Unspecified => {}
                    }
                }
            }
            coordinator_message::Kind::Grants(batch) => {
                for grant in batch.grants {
                    self.granted(grant, now, &mut outputs);
                }
            }
            coordinator_message::Kind::ReportAcks(acks) => {
                self.reports_acknowledged(&acks.acks, &mut outputs);
            }
            coordinator_message::Kind::EventAcks(acks) => {
                for EventAck { lease, number } in acks.acks {
                    self.events_acknowledged(lease, number, now, &mut outputs);
                }
            }
            coordinator_message::Kind::Answers(answers) => {
                for LeaseAnswers { lease, answers } in answers.leases {
                    if self.leases.contains_key(&lease) {
                        outputs.push(Output::Answers { lease, answers });
                    }
                }
            }
            coordinator_message::Kind::LookFor(wanted) => {
                outputs.push(Output::Look(wanted.agents));
            }
            coordinator_message::Kind::Stop(stop) => {
                for lease in stop.leases {
                    self.stop(lease, StopCause::Told, &mut outputs);
                }
            }
            coordinator_message::Kind::Drain(Drain { leave: true }) => {
                if !self.draining {
                    self.drain();
                    outputs.push(self.heartbeat_message(now));
                }
            }
            // The coordinator keeps to it itself, and may take it back without a word: a grant
            // after it is meant.
            coordinator_message::Kind::Drain(_) => {}
        }
        outputs
    }

    /// Ends leases whose time is over.
    pub fn tick(&mut self, now: Boottime) -> Vec<Output> {
        let mut outputs = Vec::new();
        let expired = self
            .leases
            .iter()
            .filter_map(|(id, lease)| match lease.work {
                Work::Working { end, ttl } if now >= work_end(end, ttl) => Some(*id),
                _ => None,
            });
        for lease in expired.collect::<Vec<_>>() {
            self.stop(lease, StopCause::Expired, &mut outputs);
        }
        outputs
    }

    /// When [`Machine::tick`] next has something to do.
    pub fn wakeup(&self) -> Option<Boottime> {
        let ends = self.leases.values().filter_map(|lease| match lease.work {
            Work::Working { end, ttl } => Some(work_end(end, ttl)),
            _ => None,
        });
        ends.min()
    }

    /// Numbers a word about a lease; it is said once it is stored.
    ///
    /// What comes after the final word about a lease is ignored.
    pub fn report(&mut self, lease: u64, kind: report::Kind) -> Vec<Output> {
        let Some(state) = self.leases.get_mut(&lease) else {
            return Vec::new();
        };
        if !state.takes_slot() {
            return Vec::new();
        }
        if is_final(&kind) {
            state.work = Work::Reported;
        }
        vec![Output::Store(vec![self.number(lease, kind)])]
    }

    fn number(&mut self, lease: u64, kind: report::Kind) -> Report {
        let report = Report {
            number: self.next_report,
            lease,
            kind: Some(kind),
        };
        self.next_report += 1;
        let pending = Pending {
            report: report.clone(),
            stored: false,
            sent: false,
        };
        self.reports.insert(report.number, pending);
        report
    }

    /// Says reports that are now in the outbox, and that slots may have become free.
    pub fn stored(&mut self, numbers: &[u64], now: Boottime) -> Vec<Output> {
        let mut slots_changed = false;
        for number in numbers {
            if let Some(pending) = self.reports.get_mut(number) {
                pending.stored = true;
                slots_changed |= pending.report.kind.as_ref().is_some_and(is_final);
            }
        }
        let mut outputs = Vec::new();
        self.send_reports(&mut outputs);
        if slots_changed && self.session.is_some() {
            outputs.push(self.heartbeat_message(now));
        }
        outputs
    }

    fn send_reports(&mut self, outputs: &mut Vec<Output>) {
        let Some(session) = &self.session else {
            return;
        };
        let in_flight = self.reports.values().filter(|report| report.sent).count();
        let room = session.report_window.saturating_sub(in_flight);
        // In order and without gaps: "started" is said before the result.
        let ready = self.reports.values_mut().filter(|pending| !pending.sent);
        let ready = ready.take_while(|pending| pending.stored).take(room);
        let mut reports: Vec<Report> = ready
            .map(|pending| {
                pending.sent = true;
                pending.report.clone()
            })
            .collect();
        while !reports.is_empty() {
            let rest = reports.split_off(reports.len().min(REPORTS_PER_BATCH));
            let batch = ReportBatch { reports };
            outputs.push(Output::Send(worker_message::Kind::Reports(batch)));
            reports = rest;
        }
    }

    fn reports_acknowledged(&mut self, acks: &[ReportAck], outputs: &mut Vec<Output>) {
        let mut numbers = Vec::new();
        let mut done = Vec::new();
        for ack in acks {
            if ack.verdict() == ReportVerdict::Unspecified {
                continue;
            }
            // Only what was said in this session can be answered in it.
            if !self
                .reports
                .get(&ack.number)
                .is_some_and(|report| report.sent)
            {
                continue;
            }
            let Some(Pending { report, .. }) = self.reports.remove(&ack.number) else {
                continue;
            };
            numbers.push(report.number);
            if report.kind.as_ref().is_some_and(is_final)
                && let Some(lease) = self.leases.get_mut(&report.lease)
            {
                lease.work = Work::Over;
                done.push(report.lease);
            }
        }
        if !numbers.is_empty() {
            outputs.push(Output::Acknowledged(numbers));
        }
        for lease in done {
            self.drop_if_done(lease, outputs);
        }
        self.send_reports(outputs);
    }

    fn granted(&mut self, grant: Grant, now: Boottime, outputs: &mut Vec<Output>) {
        let lease = grant.lease;
        // Sent twice, or a lease that was over long ago: what is known about it stands.
        if self.leases.contains_key(&lease) {
            return;
        }
        let ttl = grant.ttl.and_then(|ttl| Duration::try_from(ttl).ok());
        let ttl = ttl.unwrap_or_default().min(TTL_MAX);
        let end = self
            .sent_at(grant.heartbeat_seq)
            .map(|sent| sent.after(ttl));
        let refusal = match end {
            _ if self.draining => Some((class::PREEMPTED, "the worker takes nothing new")),
            _ if self.disk_trouble.is_some() => Some((
                class::WORKSPACE,
                "the worker's disk cannot be worked on; it takes nothing new until it can",
            )),
            _ if self.free_slots() == 0 => {
                Some((class::WORKER_LOST, "the worker has no free slot"))
            }
            Some(end) if now < work_end(end, ttl) => None,
            _ => Some((
                class::WORKER_LOST,
                "the grant arrived when its time had passed",
            )),
        };
        match (refusal, end) {
            (None, Some(end)) => {
                self.leases
                    .insert(lease, Lease::new(Work::Working { end, ttl }));
                outputs.push(Output::Start {
                    grant: Box::new(grant),
                    deadline: work_end(end, ttl),
                });
            }
            (refusal, _) => {
                let (class, message) =
                    refusal.unwrap_or((class::WORKER_LOST, "the grant has no time"));
                let mut given_back = Lease::new(Work::Reported);
                given_back.finished = true;
                self.leases.insert(lease, given_back);
                let failure = failure(class, message, b"");
                let report = self.number(lease, report::Kind::GivenBack(failure));
                outputs.push(Output::Store(vec![report]));
            }
        }
    }

    fn sent_at(&self, seq: u64) -> Option<Boottime> {
        let mut sent_at = self.session.as_ref()?.sent_at.iter();
        sent_at.find(|(sent, _)| *sent == seq).map(|(_, at)| *at)
    }

    fn renew(&mut self, lease: u64, seq: u64, outputs: &mut Vec<Output>) {
        let Some(sent) = self.sent_at(seq) else {
            return;
        };
        if let Some(state) = self.leases.get_mut(&lease)
            && let Work::Working { end, ttl } = &mut state.work
            && *end < sent.after(*ttl)
        {
            *end = sent.after(*ttl);
            let deadline = work_end(*end, *ttl);
            outputs.push(Output::Renew { lease, deadline });
        }
    }

    fn stop(&mut self, lease: u64, cause: StopCause, outputs: &mut Vec<Output>) {
        if let Some(state) = self.leases.get_mut(&lease)
            && matches!(state.work, Work::Working { .. })
        {
            state.work = Work::Stopping;
            outputs.push(Output::Stop { lease, cause });
        }
    }

    /// Notes that events up to `last` are on disk.
    pub fn events_stored(&mut self, lease: u64, last: u64) {
        if let Some(lease) = self.leases.get_mut(&lease) {
            lease.events_stored = lease.events_stored.max(last);
        }
    }

    /// Notes that a lease's folder holds nothing unpublished and gets no more events.
    pub fn finished(&mut self, lease: u64) -> Vec<Output> {
        let mut outputs = Vec::new();
        if let Some(state) = self.leases.get_mut(&lease) {
            state.finished = true;
        }
        self.drop_if_done(lease, &mut outputs);
        outputs
    }

    fn events_acknowledged(
        &mut self,
        lease: u64,
        number: u64,
        now: Boottime,
        outputs: &mut Vec<Output>,
    ) {
        if let Some(state) = self.leases.get_mut(&lease) {
            let through = state.acknowledge(number);
            if let Some(session) = &mut self.session {
                for Batch { bytes, sent_at, .. } in through {
                    let took = now.since(sent_at);
                    session.event_window.acknowledged(bytes, took);
                }
            }
            let number = state.events_acknowledged;
            outputs.push(Output::EventsAcknowledged { lease, number });
        }
        self.drop_if_done(lease, outputs);
    }

    fn drop_if_done(&mut self, lease: u64, outputs: &mut Vec<Output>) {
        if self.leases.get(&lease).is_some_and(Lease::is_done) {
            self.leases.remove(&lease);
            outputs.push(Output::Drop { lease });
        }
    }

    /// Which events fit into the window now, or what is to be asked first; leases take turns.
    pub fn next_events(&self) -> Option<NextEvents> {
        let window = &self.session.as_ref()?.event_window;
        let in_flight: u64 = self.leases.values().map(Lease::bytes_in_flight).sum();
        let bytes_max = window.room(in_flight)?;
        let after = self.leases.range(self.last_served.saturating_add(1)..);
        let turns = after.chain(self.leases.range(..=self.last_served));
        let mut waiting = turns.filter(|(_, lease)| match lease.position {
            Position::Unknown => true,
            Position::Asked => false,
            Position::Known => lease.events_sent < lease.events_stored,
        });
        waiting.next().map(|(id, lease)| NextEvents {
            lease: *id,
            after: lease.events_sent,
            last: match lease.position {
                Position::Known => lease.events_stored,
                Position::Unknown | Position::Asked => lease.events_sent,
            },
            bytes_max,
        })
    }

    /// Notes that events up to `last`, of `bytes` together, were sent, or a question without any.
    ///
    /// A batch that exceeds the window's room is taken all the same: events are not cut.
    pub fn events_sent(&mut self, lease: u64, last: u64, bytes: u64, now: Boottime) {
        self.last_served = lease;
        if let Some(state) = self.leases.get_mut(&lease)
            && state.position == Position::Unknown
        {
            state.position = Position::Asked;
        } else if let Some(state) = self.leases.get_mut(&lease)
            && last > state.events_sent
        {
            state.events_sent = last;
            state.in_flight.push_back(Batch {
                last,
                bytes,
                sent_at: now,
            });
        }
    }

    /// Notes that a lease's events cannot be read: those on disk are given up.
    pub fn events_lost(&mut self, lease: u64) -> Vec<Output> {
        let mut outputs = Vec::new();
        if let Some(state) = self.leases.get_mut(&lease) {
            state.position = Position::Known;
            state.events_stored = state.events_sent;
            if state.in_flight.is_empty() {
                state.events_acknowledged = state.events_sent;
            }
        }
        self.drop_if_done(lease, &mut outputs);
        outputs
    }
}

/// Moment at which work under a lease must be over.
fn work_end(end: Boottime, ttl: Duration) -> Boottime {
    let margin = u64::try_from((ttl / MARGIN_SHARE).as_millis()).unwrap_or(u64::MAX);
    Boottime::from_millis(end.as_millis().saturating_sub(margin))
}

#[cfg(test)]
mod tests;
