//! A worker's machine and its process around the real session machine: what its loop, its link,
//! its outbox and its wishes do.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use coordinator_core::command::Hello;
use coordinator_core::worker::Offer;
use coordinator_core::{AllocationId, Incarnation, WorkerId};
use muster_proto::v1::{self, worker_message};
use worker_agent::attempt::Stop;
use worker_agent::clock::Boottime;
use worker_agent::session::machine::{Machine, Output, StopCause};

use crate::coordinator::{Down, Up};
use crate::facts::Facts;
use crate::lease::{Folder, Runner};
use crate::liar::Liar;
use crate::scenario::{Agent, Link, WorkerPlan};
use crate::supervisor::Supervisor;
use crate::world::{Checked, Ev, ProcessTimer, World, tell};

/// Bounds the time from the hello to the welcome.
pub(crate) const WELCOME_MS: u64 = 30_000;
/// How long a worker that leaves tries to say what became of its leases.
pub(crate) const LEAVE_MS: u64 = 60_000;
/// How long events that are refused by the worker's own disk wait.
pub(crate) const STORE_AGAIN_MS: u64 = 1_000;
/// Longest pause between two tries to connect.
pub(crate) const PAUSE_MAX_MS: u64 = 6_000;
/// Bytes of an event.
pub(crate) const EVENT_BYTES: u64 = 100;

/// What survives the process and, unless it is lost, the machine's end.
#[derive(Default)]
pub(crate) struct Disk {
    pub(crate) incarnation: u64,
    pub(crate) outbox: BTreeMap<u64, v1::Report>,
    pub(crate) next_report: u64,
    pub(crate) folders: BTreeMap<u64, Folder>,
}

/// The worker's process.
pub(crate) struct Process {
    pub(crate) machine: Machine,
    pub(crate) incarnation: u64,
    pub(crate) conn: Option<usize>,
    pub(crate) is_up: bool,
    pub(crate) heard_at: u64,
    pub(crate) pauses: u32,
    pub(crate) hellos: u64,
    pub(crate) slots: u32,
    pub(crate) runners: BTreeMap<u64, Runner>,
    pub(crate) unstored: Vec<v1::Report>,
    pub(crate) stores_again: bool,
    pub(crate) wake_at: u64,
    pub(crate) leave_at: Option<u64>,
    pub(crate) ready: bool,
    pub(crate) down_ms: u64,
}

pub(crate) struct Freeze {
    pub(crate) nth: u64,
    /// Supervisors and agents stand still too.
    pub(crate) whole: bool,
}

/// What the next start of a worker's process offers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Offered {
    pub(crate) slots: u32,
    pub(crate) agents: Vec<Agent>,
    pub(crate) labels: Vec<u32>,
    pub(crate) cpus: u64,
}

impl Offered {
    pub(crate) fn of(plan: &WorkerPlan) -> Self {
        Self {
            slots: plan.slots,
            agents: plan.agents.clone(),
            labels: plan.labels.clone(),
            cpus: plan.cpus,
        }
    }
}

/// A machine.
pub(crate) struct Host {
    pub(crate) plan: WorkerPlan,
    pub(crate) id: WorkerId,
    /// Messages that its links carried.
    pub(crate) sent: u64,
    pub(crate) booted: u64,
    pub(crate) process: Option<Process>,
    pub(crate) liar: Option<Liar>,
    /// Number of the process; timers of an earlier one are void.
    pub(crate) life: u64,
    pub(crate) freeze: Option<Freeze>,
    pub(crate) freezes: u64,
    /// When everything moved again the last time.
    pub(crate) thawed_at: u64,
    pub(crate) waiting: Vec<Ev>,
    pub(crate) disk: Disk,
    pub(crate) supervisors: BTreeMap<u64, Supervisor>,
    pub(crate) offered: Offered,
    /// It was to offer something else at some time.
    pub(crate) reoffered: bool,
    pub(crate) disk_full_until: u64,
    /// Leases of disks that are no more.
    pub(crate) lost: Vec<u64>,
    pub(crate) ops: u64,
    /// The allocation whose credential it has, and the job of the cluster that it is.
    pub(crate) allocation: Option<AllocationId>,
    pub(crate) job: Option<u64>,
    /// Nothing passes from or to it until then, whatever the weather.
    pub(crate) cut_until: u64,
}

impl Host {
    pub(crate) fn new(plan: &WorkerPlan) -> Self {
        Self {
            id: WorkerId::new(&format!("w{}", plan.id)),
            sent: 0,
            booted: 0,
            process: None,
            liar: None,
            life: 0,
            freeze: None,
            freezes: 0,
            thawed_at: 0,
            waiting: vec![],
            disk: Disk {
                next_report: 1,
                ..Disk::default()
            },
            supervisors: BTreeMap::new(),
            offered: Offered::of(plan),
            reoffered: false,
            disk_full_until: 0,
            lost: vec![],
            ops: 10,
            allocation: None,
            job: None,
            cut_until: 0,
            plan: plan.clone(),
        }
    }

    /// It is the worker of a job of the cluster from now on.
    pub(crate) fn join(&mut self, allocation: AllocationId, job: u64) {
        self.id = WorkerId::new(&format!("w{}.{allocation}", self.plan.id));
        self.allocation = Some(allocation);
        self.job = Some(job);
    }

    fn offer(&self) -> Offer {
        let offer = crate::plan::offer(&self.offered);
        if self.allocation.is_none() {
            return offer;
        }
        Offer {
            pool: crate::carrier::POOL.into(),
            host: crate::cluster::node(self.plan.id),
            allocation: self.allocation,
            ..offer
        }
    }

    pub(crate) fn is_honest(&self) -> bool {
        self.plan.lies_per_mille == 0
    }

    pub(crate) fn runs(&self) -> bool {
        self.process.is_some() || self.liar.is_some()
    }

    /// Nothing of the worker's process moves.
    pub(crate) fn is_frozen(&self) -> bool {
        self.freeze.is_some()
    }

    /// Not even agents move.
    pub(crate) fn stands_still(&self) -> bool {
        self.freeze.as_ref().is_some_and(|freeze| freeze.whole)
    }

    /// Tells whether an agent's deadline passed while its machine slept and it is being ended now
    /// that the machine has woken up: no clock can end what does not run, before it runs.
    pub(crate) fn overslept(&self, supervisor: &Supervisor, now: u64) -> bool {
        let awake = now.saturating_sub(self.thawed_at);
        let deadline = self.when(supervisor.deadline);
        self.thawed_at > 0 && deadline <= self.thawed_at && awake <= crate::lease::TERM_GRACE_MS
    }

    /// Tells the clock of deadlines.
    pub(crate) fn boottime(&self, now: u64) -> Boottime {
        let passed = now.saturating_sub(self.booted);
        let rate = 1_000_000u64.saturating_add_signed(self.plan.drift_ppm);
        Boottime::from_millis(1_000 + passed * rate / 1_000_000)
    }

    /// Gives the first moment at which the clock of deadlines says so.
    pub(crate) fn when(&self, at: Boottime) -> u64 {
        let passed = at.as_millis().saturating_sub(1_000);
        let rate = 1_000_000u64.saturating_add_signed(self.plan.drift_ppm);
        self.booted + (passed * 1_000_000).div_ceil(rate)
    }
}

impl World<'_> {
    pub(crate) fn worker_id(&self, host: usize) -> WorkerId {
        let known = self.hosts.get(host);
        known.map_or_else(|| WorkerId::new("?"), |host| host.id.clone())
    }

    pub(crate) fn process_timer(&mut self, host: usize, life: u64, timer: ProcessTimer) -> Checked {
        let now = self.now;
        let Some(known) = self.hosts.get_mut(host) else {
            return Ok(());
        };
        if known.life != life {
            return Ok(());
        }
        let boottime = known.boottime(now);
        let Some(process) = &mut known.process else {
            return Ok(());
        };
        match timer {
            ProcessTimer::Ready => return self.make_ready(host, life),
            ProcessTimer::Connect => {
                if process.conn.is_none() {
                    self.connect(host);
                }
                return Ok(());
            }
            ProcessTimer::NoWelcome(conn) => {
                if process.conn == Some(conn) && !process.is_up {
                    self.close_conn(conn, true, false);
                    return self.lost_conn(host, conn);
                }
                return Ok(());
            }
            ProcessTimer::Heartbeat(conn) => {
                if process.conn != Some(conn) || !process.is_up {
                    return Ok(());
                }
                if let Some(beat) = process.machine.heartbeat(boottime) {
                    self.say_up(conn, Up::Heartbeat(beat));
                }
                let interval = self.scenario.clocks.heartbeat_ms;
                let timer = ProcessTimer::Heartbeat(conn);
                self.push(now + interval, Ev::Process(host, life, timer));
            }
            ProcessTimer::Silence(conn) => {
                if process.conn != Some(conn) {
                    return Ok(());
                }
                let limit = self.scenario.clocks.heartbeat_ms * 3 + 10_000;
                let heard = process.heard_at;
                if now >= heard + limit {
                    tell!(self, "w{} gives up a silent stream", known.plan.id);
                    self.close_conn(conn, true, false);
                    self.lost_conn(host, conn)?;
                } else {
                    self.push(heard + limit, Ev::Process(host, life, timer));
                    return Ok(());
                }
            }
            ProcessTimer::Wake => process.wake_at = u64::MAX,
            ProcessTimer::Store => process.stores_again = false,
            ProcessTimer::Leave => {}
        }
        self.after(host)
    }

    pub(crate) fn connect(&mut self, host: usize) {
        let Some(known) = self.hosts.get(host) else {
            return;
        };
        let Some(process) = &known.process else {
            return;
        };
        if !self.coordinator.up && !self.is_cut(host, Link::ToCoordinator) {
            self.connect_later(host);
            return;
        }
        let incarnation = process.incarnation;
        let hello = Hello {
            worker: known.id.clone(),
            incarnation: Incarnation(incarnation),
            session: 0,
            number: process.hellos + 1,
            offer: Arc::new(known.offer()),
            held: process
                .machine
                .held()
                .into_iter()
                .map(coordinator_core::LeaseId)
                .collect(),
            draining: process.machine.is_draining(),
            time_left: None,
        };
        let life = known.life;
        let conn = self.open_conn(host, life, incarnation);
        if let Some(process) = self.process(host) {
            process.conn = Some(conn);
            process.is_up = false;
            process.hellos += 1;
        }
        let timer = ProcessTimer::NoWelcome(conn);
        self.push(self.now + WELCOME_MS, Ev::Process(host, life, timer));
        self.say_up(conn, Up::Hello(hello));
    }

    pub(crate) fn connect_later(&mut self, host: usize) {
        let roll = self.hosts.get(host).map_or(0, |known| {
            crate::random::fate(self.scenario.seed, 50, u64::from(known.plan.id), known.sent)
        });
        let now = self.now;
        let Some(known) = self.hosts.get_mut(host) else {
            return;
        };
        let life = known.life;
        let Some(process) = &mut known.process else {
            return;
        };
        let most = (200u64 << process.pauses.min(5)).min(PAUSE_MAX_MS);
        process.pauses += 1;
        known.sent += 1;
        self.push(
            now + 1 + roll % most,
            Ev::Process(host, life, ProcessTimer::Connect),
        );
    }

    pub(crate) fn process(&mut self, host: usize) -> Option<&mut Process> {
        self.hosts.get_mut(host)?.process.as_mut()
    }

    /// Sends a message on a worker's stream.
    pub(crate) fn say_up(&mut self, conn: usize, message: Up) {
        if !self.conns.get(conn).is_some_and(|conn| conn.at_worker) {
            return;
        }
        if let Some(at) = self.on_stream(conn, true) {
            self.push(at, Ev::ToCoordinator(conn, Box::new(message)));
        }
    }

    /// Sends a message if there is a session.
    pub(crate) fn say_if_up(&mut self, host: usize, message: Up) {
        let conn = self
            .process(host)
            .filter(|process| process.is_up)
            .and_then(|p| p.conn);
        if let Some(conn) = conn {
            self.say_up(conn, message);
        }
    }

    pub(crate) fn closed_at_worker(&mut self, conn: usize) -> Checked {
        let Some(known) = self.conns.get_mut(conn) else {
            return Ok(());
        };
        let host = known.host;
        if !std::mem::take(&mut known.at_worker) {
            return Ok(());
        }
        if let Some(liar) = self.hosts.get_mut(host).and_then(|host| host.liar.as_mut())
            && liar.conn == Some(conn)
        {
            liar.conn = None;
            return Ok(());
        }
        self.lost_conn(host, conn)
    }

    pub(crate) fn lost_conn(&mut self, host: usize, conn: usize) -> Checked {
        let Some(process) = self.process(host) else {
            return Ok(());
        };
        if process.conn != Some(conn) {
            return Ok(());
        }
        process.conn = None;
        let was_up = std::mem::take(&mut process.is_up);
        if was_up {
            process.machine.disconnected();
            process.pauses = 0;
            let life = self.hosts.get(host).map_or(0, |host| host.life);
            self.push(self.now, Ev::Process(host, life, ProcessTimer::Connect));
        } else {
            self.connect_later(host);
        }
        Ok(())
    }

    /// A message of the coordinator arrives.
    pub(crate) fn heard_at_worker(&mut self, conn: usize, message: Down) -> Checked {
        let Some(known) = self.conns.get(conn) else {
            return Ok(());
        };
        if !known.at_worker || self.was_lost(known) {
            return Ok(());
        }
        let (host, life) = (known.host, known.process);
        let now = self.now;
        let Some(machine) = self.hosts.get_mut(host).filter(|host| host.life == life) else {
            return Ok(());
        };
        if machine.liar.is_some() {
            self.heard_by_liar(host, conn, message);
            return Ok(());
        }
        let Some(process) = &mut machine.process else {
            return Ok(());
        };
        if process.conn != Some(conn) {
            return Ok(());
        }
        process.heard_at = now;
        match message {
            Down::Welcome(welcome) => {
                process.is_up = true;
                process.pauses = 0;
                let beat = ProcessTimer::Heartbeat(conn);
                let interval = self.scenario.clocks.heartbeat_ms;
                self.push(now + interval, Ev::Process(host, life, beat));
                let silence = ProcessTimer::Silence(conn);
                self.push(now + interval, Ev::Process(host, life, silence));
                self.step(host, |machine, now| machine.welcomed(&welcome, now), &[])?;
                self.ask_again_of(host);
            }
            Down::Renewal(renewal) => self.received(host, Kind::Renewal(renewal), &[])?,
            Down::Grants(facts) => {
                let grants = facts.iter().map(grant).collect();
                let batch = v1::GrantBatch { grants };
                self.received(host, Kind::Grants(batch), &facts)?;
            }
            Down::ReportAcks(acks) => {
                self.received(host, Kind::ReportAcks(v1::ReportAcks { acks }), &[])?;
            }
            Down::EventAck(ack) => {
                let acks = v1::EventAcks { acks: vec![ack] };
                self.received(host, Kind::EventAcks(acks), &[])?;
            }
            Down::Stop(leases) => {
                self.received(host, Kind::Stop(v1::StopLeases { leases }), &[])?;
            }
            Down::Answer(lease) => self.got_answer(host, lease),
        }
        self.after(host)
    }

    pub(crate) fn received(&mut self, host: usize, kind: Kind, facts: &[Facts]) -> Checked {
        self.step(host, |machine, now| machine.received(kind, now), facts)
    }

    /// Lets the machine decide something, and does what follows from it.
    pub(crate) fn step(
        &mut self,
        host: usize,
        decide: impl FnOnce(&mut Machine, Boottime) -> Vec<Output>,
        facts: &[Facts],
    ) -> Checked {
        let now = self.now;
        let Some(known) = self.hosts.get_mut(host) else {
            return Ok(());
        };
        let boottime = known.boottime(now);
        let Some(process) = &mut known.process else {
            return Ok(());
        };
        let mut waiting: VecDeque<Output> = decide(&mut process.machine, boottime).into();
        while let Some(output) = waiting.pop_front() {
            self.carry_out(host, output, facts)?;
        }
        Ok(())
    }

    pub(crate) fn carry_out(&mut self, host: usize, output: Output, facts: &[Facts]) -> Checked {
        match output {
            Output::Send(kind) => {
                let message = match kind {
                    worker_message::Kind::Heartbeat(beat) => Up::Heartbeat(beat),
                    worker_message::Kind::Reports(batch) => {
                        self.check_stored(host, &batch.reports)?;
                        Up::Reports(batch.reports)
                    }
                    _ => return Ok(()),
                };
                self.say_if_up(host, message);
            }
            Output::Store(reports) => {
                if let Some(process) = self.process(host) {
                    process.unstored.extend(reports);
                }
            }
            Output::Start { grant, deadline } => {
                let facts = facts.iter().find(|facts| facts.lease == grant.lease);
                if let Some(facts) = facts {
                    self.start_lease(host, facts.clone(), deadline)?;
                }
            }
            Output::Renew { lease, deadline } => self.renew(host, lease, deadline),
            Output::Stop { lease, cause } => {
                if cause == StopCause::Expired {
                    tell!(self, "w{host} lets go of {lease}: its time is over");
                }
                self.stop_lease(host, lease, Stop::Salvage)?;
            }
            Output::Acknowledged(numbers) => {
                if let Some(known) = self.hosts.get_mut(host) {
                    for number in numbers {
                        known.disk.outbox.remove(&number);
                    }
                }
            }
            Output::EventsAcknowledged { .. } | Output::Answers { .. } | Output::Look(_) => {}
            Output::Drop { lease } => {
                self.check_edits(host, lease)?;
                if let Some(known) = self.hosts.get_mut(host) {
                    known.disk.folders.remove(&lease);
                    if let Some(process) = &mut known.process {
                        process.runners.remove(&lease);
                    }
                }
            }
        }
        Ok(())
    }

    /// What is said is on disk, so that the next start can say it again.
    pub(crate) fn check_stored(&self, host: usize, reports: &[v1::Report]) -> Checked {
        let outbox = self.hosts.get(host).map(|host| &host.disk.outbox);
        let missing = reports
            .iter()
            .find(|report| outbox.is_none_or(|outbox| !outbox.contains_key(&report.number)));
        self.ensure(
            missing.is_none(),
            "reports are stored before they are said",
            || {
                format!(
                    "report {} is not",
                    missing.map_or(0, |report| report.number)
                )
            },
        )
    }

    /// What the worker's loop does in each turn.
    pub(crate) fn after(&mut self, host: usize) -> Checked {
        self.step(host, |machine, now| machine.tick(now), &[])?;
        self.store_reports(host)?;
        self.send_events(host);
        self.look_for_end(host)?;
        let now = self.now;
        let Some(known) = self.hosts.get_mut(host) else {
            return Ok(());
        };
        let life = known.life;
        let at = known
            .process
            .as_ref()
            .and_then(|process| process.machine.wakeup());
        if let Some(at) = at {
            let at = known.when(at).max(now + 1);
            if let Some(process) = &mut known.process
                && at < process.wake_at
            {
                process.wake_at = at;
                self.push(at, Ev::Process(host, life, ProcessTimer::Wake));
            }
        }
        Ok(())
    }

    pub(crate) fn store_reports(&mut self, host: usize) -> Checked {
        let now = self.now;
        loop {
            let Some(known) = self.hosts.get_mut(host) else {
                return Ok(());
            };
            let life = known.life;
            let Some(process) = &mut known.process else {
                return Ok(());
            };
            if process.unstored.is_empty() || process.stores_again {
                return Ok(());
            }
            if now < known.disk_full_until {
                process.stores_again = true;
                let timer = ProcessTimer::Store;
                self.push(now + STORE_AGAIN_MS, Ev::Process(host, life, timer));
                return Ok(());
            }
            let reports = std::mem::take(&mut process.unstored);
            let numbers: Vec<u64> = reports.iter().map(|report| report.number).collect();
            for report in reports {
                known.disk.next_report = known.disk.next_report.max(report.number + 1);
                known.disk.outbox.insert(report.number, report);
            }
            self.step(host, |machine, now| machine.stored(&numbers, now), &[])?;
        }
    }

    pub(crate) fn send_events(&mut self, host: usize) {
        loop {
            let now = self.now;
            let Some(boottime) = self.hosts.get(host).map(|host| host.boottime(now)) else {
                return;
            };
            let Some(process) = self.process(host).filter(|process| process.is_up) else {
                return;
            };
            let Some(conn) = process.conn else {
                return;
            };
            let Some(next) = process.machine.next_events() else {
                return;
            };
            let room = (next.bytes_max / EVENT_BYTES).max(1);
            let last = next.last.min(next.after + room);
            let bytes = (last - next.after) * EVENT_BYTES;
            process
                .machine
                .events_sent(next.lease, last, bytes, boottime);
            self.say_up(conn, Up::Events(next.lease, next.after + 1, last));
        }
    }

    /// A person wants the worker to end.
    pub(crate) fn wish(&mut self, host: usize, leave: bool, down_ms: u64) -> Checked {
        let leave_at = self.now + LEAVE_MS;
        let Some(known) = self.hosts.get_mut(host) else {
            return Ok(());
        };
        if known.freeze.is_some() {
            return Ok(());
        }
        let life = known.life;
        let boottime = known.boottime(self.now);
        let Some(process) = &mut known.process else {
            return Ok(());
        };
        if !process.ready {
            return Ok(());
        }
        process.down_ms = down_ms;
        let mut beat = None;
        if !process.machine.is_draining() {
            process.machine.drain();
            beat = process.machine.heartbeat(boottime);
        }
        if let Some(beat) = beat {
            self.say_if_up(host, Up::Heartbeat(beat));
        }
        if leave {
            let leases = match self.process(host) {
                Some(process) if process.leave_at.is_none() => {
                    process.leave_at = Some(leave_at);
                    process.runners.keys().copied().collect()
                }
                _ => vec![],
            };
            self.push(leave_at, Ev::Process(host, life, ProcessTimer::Leave));
            for lease in leases {
                self.stop_lease(host, lease, Stop::Leave)?;
            }
        }
        self.after(host)
    }

    /// Ends the process when there is nothing more to do.
    pub(crate) fn look_for_end(&mut self, host: usize) -> Checked {
        let now = self.now;
        let Some(process) = self.process(host) else {
            return Ok(());
        };
        let owes_nothing = process.machine.owes_nothing();
        let ends = match process.leave_at {
            Some(at) => owes_nothing || now >= at,
            None => process.machine.is_draining() && owes_nothing,
        };
        if ends && process.ready {
            let down_ms = process.down_ms;
            if process.machine.holds_nothing() {
                self.say_if_up(host, Up::Goodbye);
            }
            self.kill(host, down_ms, false);
        }
        Ok(())
    }

    /// Tells whether nothing is left to do on a machine.
    pub(crate) fn host_rests(&self, host: &Host) -> bool {
        let Some(process) = &host.process else {
            let waits = host.plan.pooled && self.scenario.pool.is_some();
            return waits || !host.is_honest();
        };
        let at_rest = process.is_up && process.machine.owes_nothing();
        at_rest
            && host.supervisors.is_empty()
            && host.disk.folders.is_empty()
            && host.disk.outbox.is_empty()
    }
}

use muster_proto::v1::coordinator_message::Kind;

/// Writes the message of a grant.
pub(crate) fn grant(facts: &Facts) -> v1::Grant {
    let ttl = std::time::Duration::from_millis(facts.ttl_ms);
    v1::Grant {
        lease: facts.lease,
        heartbeat_seq: facts.heartbeat,
        ttl: ttl.try_into().ok(),
        ..v1::Grant::default()
    }
}
