//! The world: one queue of things to come, and everything that they happen to.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use coordinator_core::state::{LeaseClocks, RunImage};
use coordinator_core::{Span, Timestamp};

use crate::carrier::Answer;
use crate::cluster::{Arrival, Cluster};
use crate::coordinator::{Coordinator, Down, GitDone, Up};
use crate::host::Host;
use crate::lease::LeaseTimer;
use crate::net::Conn;
use crate::operator::Operators;
use crate::random::{fate, mix};
use crate::reference::Reference;
use crate::remote::{GitAnswer, GitRequest, Remote};
use crate::scenario::{Moment, Scenario, What, When};
use crate::store::Store;
use crate::{Counts, Ended, Violation, Watch};

/// The wall clock at the world's beginning.
pub(crate) const WALL_MS: u64 = 1_700_000_000_000;
/// How long the world may take to come to rest once faults have stopped, besides the work itself.
const REST_MS: u64 = 4 * 3_600_000;
/// Things that may happen in one world: beyond it something goes in circles.
const STEPS_MAX: u64 = 2_000_000;

/// What becomes of a step.
pub(crate) type Checked = Result<(), Violation>;

/// Something to come.
#[derive(Debug)]
pub(crate) enum Ev {
    Happen(usize),
    Calm,
    /// Looks whether the world has come to rest.
    Rest,
    /// An operator's retry has read its run from the archive, as it was when the reading began: number
    /// of the request, and what was read.
    Found(usize, Arc<RunImage>),
    /// An operator's client sends a request, again if it must.
    Ask(usize),
    Submit(usize),
    /// The coordinator takes what waits.
    Batch(u64),
    /// A batch is committed, or the process dies of it.
    Committed(u64),
    StartCoordinator(u64),
    /// Merges are looked for, or made.
    GitWork(u64),
    GitDone(u64, Box<GitDone>),
    Project(u64),
    Unhold,
    ToCoordinator(usize, Box<Up>),
    ToWorker(usize, Box<Down>),
    ClosedAtCoordinator {
        conn: usize,
    },
    ClosedAtWorker {
        conn: usize,
    },
    LookForDead(usize),
    GitArrives(Box<GitRequest>),
    /// The refs of a push are about to move.
    GitMoves(Box<GitRequest>),
    GitAnswered(Box<GitAnswer>),
    StartWorker(usize, u64),
    /// A timer of the worker's process.
    Process(usize, u64, ProcessTimer),
    /// A timer of a lease's runner, in the worker's process.
    Lease(usize, u64, u64, LeaseTimer),
    /// A supervisor's own.
    Supervisor(usize, u64),
    /// What was frozen goes on.
    Thaw(usize, u64),
    Lie(usize, u64),
    PlanPools(u64),
    /// The pool's carrier looks.
    Carry(u64),
    /// The answer to one of its calls.
    Called(u64, u64, Box<Answer>),
    OrderArrives(Box<Arrival>),
    EndArrives(Vec<Box<str>>),
    ListTaken(u64, u64),
    ClusterLooks,
    JobStrikes(u64),
    JobEnds(u64),
    /// The old copy of a job on a machine, which had this number of process.
    CopyEnds(usize, u64),
}

/// Timers of a worker's process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ProcessTimer {
    Connect,
    NoWelcome(usize),
    Heartbeat(usize),
    Silence(usize),
    Wake,
    Store,
    Leave,
    /// Supervisors of an earlier start are gone: hello may be said.
    Ready,
}

struct Entry(Reverse<(u64, u64)>, Ev);

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

/// Tells a line of the story; what it says is not even put together when nobody listens.
macro_rules! tell {
    ($world:expr, $($line:tt)*) => {
        if $world.talks {
            $world.watch.line($world.now, format_args!($($line)*));
        }
    };
}
pub(crate) use tell;

/// Everything there is.
pub(crate) struct World<'w> {
    pub(crate) scenario: &'w Scenario,
    pub(crate) watch: &'w mut dyn Watch,
    pub(crate) talks: bool,
    pub(crate) now: u64,
    queue: BinaryHeap<Entry>,
    pushed: u64,
    pub(crate) steps: u64,
    pub(crate) digest: u64,
    pub(crate) counts: Counts,
    pub(crate) coordinator: Coordinator,
    pub(crate) store: Store,
    pub(crate) remote: Remote,
    /// Number of the last event that is stored, for each lease.
    pub(crate) transcripts: BTreeMap<u64, u64>,
    pub(crate) conns: Vec<Conn>,
    pub(crate) hosts: Vec<Host>,
    pub(crate) cluster: Cluster,
    pub(crate) operators: Operators,
    pub(crate) reference: Reference,
    /// Happenings that wait for a moment, and how often it has been.
    aimed: BTreeMap<Moment, (u32, Vec<usize>)>,
    pub(crate) calm: bool,
}

impl<'w> World<'w> {
    pub(crate) fn new(scenario: &'w Scenario, watch: &'w mut dyn Watch) -> Self {
        let clocks = LeaseClocks {
            ttl: Span::from_ms(scenario.clocks.ttl_ms),
            grace: Span::from_ms(scenario.clocks.grace_ms),
        };
        let talks = watch.wants_lines();
        Self {
            talks,
            watch,
            now: 0,
            queue: BinaryHeap::new(),
            pushed: 0,
            steps: 0,
            digest: mix(scenario.seed),
            counts: Counts::default(),
            coordinator: Coordinator::new(clocks),
            store: Store::new(clocks),
            remote: Remote::default(),
            transcripts: BTreeMap::new(),
            conns: vec![],
            hosts: scenario.workers.iter().map(Host::new).collect(),
            cluster: Cluster::default(),
            operators: Operators::default(),
            reference: Reference::of(scenario),
            aimed: BTreeMap::new(),
            calm: false,
            scenario,
        }
    }

    /// Puts something into the queue; what is past comes next.
    pub(crate) fn push(&mut self, at: u64, ev: Ev) {
        self.pushed += 1;
        let entry = Entry(Reverse((at.max(self.now), self.pushed)), ev);
        self.queue.push(entry);
    }

    /// Gives a fate of something that has a number.
    pub(crate) fn roll(&self, what: u64, which: u64, nth: u64) -> u64 {
        fate(self.scenario.seed, 100 + what, which, nth)
    }

    /// Takes a number into the trace.
    pub(crate) fn trace(&mut self, number: u64) {
        self.digest = mix(self.digest ^ number);
    }

    pub(crate) fn violation(&self, rule: &'static str, what: String) -> Violation {
        Violation {
            at_ms: self.now,
            rule,
            what,
        }
    }

    /// Checks something that must be true.
    pub(crate) fn ensure(
        &self,
        holds: bool,
        rule: &'static str,
        what: impl FnOnce() -> String,
    ) -> Checked {
        if holds {
            Ok(())
        } else {
            Err(self.violation(rule, what()))
        }
    }

    /// Something of a kind was told to the world: what waits for it is set in motion.
    pub(crate) fn moment(&mut self, moment: Moment) {
        let Some((count, waiting)) = self.aimed.get_mut(&moment) else {
            return;
        };
        let nth = *count;
        *count += 1;
        let due: Vec<(usize, u64)> = waiting
            .iter()
            .filter_map(|which| match self.scenario.happenings.get(*which)?.when {
                When::After { nth: at, ms, .. } if at == nth => Some((*which, ms)),
                _ => None,
            })
            .collect();
        for (which, ms) in due {
            self.push(self.now + ms, Ev::Happen(which));
        }
    }

    /// Lets everything happen.
    pub(crate) fn run(mut self) -> Result<Ended, Violation> {
        for (nth, happening) in self.scenario.happenings.iter().enumerate() {
            match happening.when {
                When::At { ms } => self.push(ms, Ev::Happen(nth)),
                When::After { moment, .. } => {
                    self.aimed.entry(moment).or_default().1.push(nth);
                }
            }
        }
        self.push(0, Ev::StartCoordinator(0));
        let pool = self.scenario.pool.is_some();
        let workers = self.scenario.workers.iter().enumerate();
        for (nth, worker) in workers.filter(|(_, worker)| !(pool && worker.pooled)) {
            self.push(worker.at_ms + 1, Ev::StartWorker(nth, 0));
        }
        for (nth, plan) in self.scenario.plans.iter().enumerate() {
            self.push(plan.at_ms, Ev::Submit(nth));
        }
        for weather in &self.scenario.weather {
            for (nth, worker) in self.scenario.workers.iter().enumerate() {
                if weather.worker.is_none_or(|id| id == worker.id) {
                    self.push(weather.from_ms + crate::net::DEAD_MS, Ev::LookForDead(nth));
                }
            }
        }
        self.push(self.scenario.calm_ms, Ev::Calm);
        let mut rested = false;
        while let Some(Entry(Reverse((at, _)), ev)) = self.queue.pop() {
            self.now = at;
            self.steps += 1;
            if self.steps > STEPS_MAX {
                return Err(self.violation("the world comes to rest", "it goes in circles".into()));
            }
            if matches!(ev, Ev::Rest) {
                if self.is_at_rest() {
                    rested = true;
                    break;
                }
                let late = self.scenario.calm_ms + REST_MS + self.work_ms();
                if self.now > late {
                    return Err(self.unrest());
                }
                self.push(self.now + 5_000, Ev::Rest);
                continue;
            }
            self.happen(ev)?;
        }
        if !rested {
            return Err(
                self.violation("the world comes to rest", "nothing happens any more".into())
            );
        }
        self.check_end()?;
        let (steps, now) = (self.steps, self.now);
        self.trace(steps);
        self.trace(now);
        Ok(Ended {
            steps,
            simulated_ms: now,
            digest: self.digest,
            counts: self.counts,
        })
    }

    /// Gives how long all the work could take if each of it was done as often as it may be.
    fn work_ms(&self) -> u64 {
        let tasks = self.scenario.plans.iter().flat_map(|plan| &plan.tasks);
        tasks
            .map(|task| {
                let longest = task
                    .attempts
                    .iter()
                    .map(|deed| deed.work_ms)
                    .max()
                    .unwrap_or(0);
                (longest * 10).min(task.timeout_ms + 200_000) * u64::from(task.retries + 8)
            })
            .sum()
    }

    fn happen(&mut self, ev: Ev) -> Checked {
        let of = match &ev {
            Ev::Process(host, ..)
            | Ev::Lease(host, ..)
            | Ev::Supervisor(host, _)
            | Ev::Lie(host, _) => Some(*host),
            Ev::GitAnswered(answer) => Some(answer.host),
            Ev::ToWorker(conn, _) | Ev::ClosedAtWorker { conn } => {
                self.conns.get(*conn).map(|conn| conn.host)
            }
            _ => None,
        };
        let ev = match of {
            Some(host) => match self.unless_frozen(host, ev) {
                Some(ev) => ev,
                None => return Ok(()),
            },
            None => ev,
        };
        match ev {
            Ev::Happen(nth) => {
                let happening = self
                    .scenario
                    .happenings
                    .get(nth)
                    .map(|happening| happening.what);
                match happening {
                    Some(what) if !self.calm => self.befall(what),
                    _ => Ok(()),
                }
            }
            Ev::Calm => self.become_calm(),
            Ev::Rest => Ok(()),
            Ev::Found(nth, image) => {
                self.found(nth, image);
                Ok(())
            }
            Ev::Ask(nth) => {
                self.ask_again(nth);
                Ok(())
            }
            Ev::Submit(nth) => {
                self.submit(nth, false);
                Ok(())
            }
            Ev::Batch(start) => self.batch(start),
            Ev::Committed(start) => self.committed(start),
            Ev::StartCoordinator(start) => self.start_coordinator(start),
            Ev::GitWork(start) => {
                self.git_work(start);
                Ok(())
            }
            Ev::GitDone(start, done) => {
                self.git_done(start, *done);
                Ok(())
            }
            Ev::Project(start) => {
                self.project(start);
                Ok(())
            }
            Ev::Unhold => {
                self.coordinator.holding = false;
                self.wake_coordinator();
                Ok(())
            }
            Ev::ToCoordinator(conn, up) => self.heard_at_coordinator(conn, *up),
            Ev::ToWorker(conn, down) => self.heard_at_worker(conn, *down),
            Ev::ClosedAtCoordinator { conn } => {
                self.closed_at_coordinator(conn);
                Ok(())
            }
            Ev::ClosedAtWorker { conn } => self.closed_at_worker(conn),
            Ev::LookForDead(host) => {
                self.look_for_dead(host);
                Ok(())
            }
            Ev::GitArrives(request) => {
                self.git_arrives(*request);
                Ok(())
            }
            Ev::GitMoves(request) => self.git_moves(*request),
            Ev::GitAnswered(answer) => self.git_answered(&answer),
            Ev::StartWorker(host, life) => self.start_worker(host, life),
            Ev::Process(host, process, timer) => self.process_timer(host, process, timer),
            Ev::Lease(host, process, lease, timer) => self.lease_timer(host, process, lease, timer),
            Ev::Supervisor(host, lease) => self.supervisor_timer(host, lease),
            Ev::Thaw(host, nth) => self.thaw(host, nth),
            Ev::Lie(host, process) => self.lie(host, process),
            Ev::PlanPools(start) => {
                self.plan_pools(start);
                Ok(())
            }
            Ev::Carry(start) => self.carry(start),
            Ev::Called(start, nth, answer) => {
                self.called(start, nth, *answer);
                Ok(())
            }
            Ev::OrderArrives(order) => self.order_arrives(&order),
            Ev::EndArrives(externals) => {
                self.end_arrives(&externals);
                Ok(())
            }
            Ev::ListTaken(start, nth) => {
                self.list_taken(start, nth);
                Ok(())
            }
            Ev::ClusterLooks => {
                self.cluster_looks();
                Ok(())
            }
            Ev::JobStrikes(job) => {
                self.job_strikes(job);
                Ok(())
            }
            Ev::JobEnds(job) => {
                self.job_ends(job, true);
                Ok(())
            }
            Ev::CopyEnds(host, life) => {
                self.copy_ends(host, life);
                Ok(())
            }
        }
    }

    /// A fault or a person.
    fn befall(&mut self, what: What) -> Checked {
        tell!(self, "it happens: {what:?}");
        let count = what
            .fault()
            .and_then(|kind| self.counts.by_fault.get_mut(kind));
        if let Some(count) = count {
            *count += 1;
        }
        match what {
            What::CoordinatorCrash { .. }
            | What::CommitsFail { .. }
            | What::DiskFull { .. }
            | What::SlowDisk { .. } => {
                self.counts.faults += 1;
                self.trouble_at_coordinator(what)
            }
            What::SlowMerges { for_ms, takes_ms } => {
                self.counts.faults += 1;
                self.remote.slow_until = self.now + for_ms;
                self.remote.merge_ms = takes_ms;
                Ok(())
            }
            What::WorkerKilled { worker, .. }
            | What::SupervisorKilled { worker, .. }
            | What::HostReboot { worker, .. }
            | What::Frozen { worker, .. }
            | What::Suspended { worker, .. }
            | What::Broken { worker }
            | What::WorkerDiskFull { worker, .. }
            | What::WorkerDrains { worker, .. }
            | What::WorkerLeaves { worker, .. }
            | What::Offers { worker, .. } => {
                // Of a machine of the cluster, the process of its last job.
                let host = self.hosts.iter().rposition(|host| host.plan.id == worker);
                match host {
                    Some(host) => {
                        self.counts.faults += 1;
                        self.trouble_at_worker(host, what)
                    }
                    None => Ok(()),
                }
            }
            What::SubmitAgain { .. }
            | What::CancelRun { .. }
            | What::CancelTask { .. }
            | What::RetryRun { .. }
            | What::RetryTask { .. }
            | What::Drain { .. }
            | What::Hold { .. }
            | What::Answer { .. }
            | What::PausePool { .. } => {
                self.operate(what);
                Ok(())
            }
        }
    }

    /// Faults stop, and what they left is put in order as its owner would.
    fn become_calm(&mut self) -> Checked {
        self.calm = true;
        tell!(self, "faults stop");
        self.store.full_until = 0;
        self.store.slow_until = 0;
        self.remote.slow_until = 0;
        self.store.failing = 0;
        self.coordinator.armed = None;
        self.coordinator.holding = false;
        for host in 0..self.hosts.len() {
            self.calm_host(host)?;
        }
        self.calm_cluster();
        self.calm_operators();
        self.wake_coordinator();
        self.push(self.now + 5_000, Ev::Rest);
        Ok(())
    }

    /// Gives the coordinator's time of a moment.
    pub(crate) fn timestamp(&self) -> Timestamp {
        self.coordinator.time(self.now)
    }
}
