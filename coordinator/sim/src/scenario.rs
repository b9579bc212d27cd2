//! What will happen in a world, as explicit lists, so that parts of it can be left out.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Everything that will happen in a world that does not follow from the rest. All times are
/// milliseconds of simulated time since the world's beginning.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Scenario {
    /// Decides the small fates: delays of messages, lengths of pauses, moments of death.
    pub seed: u64,
    pub clocks: Clocks,
    /// Journal rows after which the coordinator writes a snapshot.
    pub snapshot_every: u64,
    pub plans: Vec<Plan>,
    pub workers: Vec<WorkerPlan>,
    pub happenings: Vec<Happening>,
    pub weather: Vec<Weather>,
    /// Where workers come from when there is work.
    #[serde(default)]
    pub pool: Option<PoolPlan>,
    /// When faults and operators stop; the world then has to come to rest.
    pub calm_ms: u64,
}

/// How long leases live.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Clocks {
    pub ttl_ms: u64,
    pub grace_ms: u64,
    pub heartbeat_ms: u64,
}

/// A plan that is submitted once, or again and again with the same key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Names it, also when others are left out.
    pub id: u32,
    pub at_ms: u64,
    pub repository: bool,
    pub integrate: Option<Integrate>,
    pub max_parallel: Option<u32>,
    pub tasks: Vec<TaskPlan>,
}

/// How a plan's work is integrated.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Integrate {
    /// What the final verify finds, in the order of its tries; the last one stays. Without any
    /// there is no final verify.
    pub verify: Vec<Found>,
    /// What comes of merging, in the order of its tries; the last one stays.
    pub merge: Vec<Merge>,
}

/// A task, and what its agents will do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TaskPlan {
    /// Names it within its plan, also when others are left out.
    pub id: u32,
    pub depends_on: Vec<u32>,
    pub priority: i16,
    /// Claims the path of this number; tasks that claim the same one exclude each other.
    pub path: Option<u32>,
    pub agent: Agent,
    /// Only workers with the label of this number can do it.
    #[serde(default)]
    pub label: Option<u32>,
    /// Occupies so many of a worker's processors.
    #[serde(default)]
    pub cpus: u64,
    pub retries: u32,
    pub timeout_ms: u64,
    /// What each attempt's agent does, in their order; the last one stays.
    pub attempts: Vec<Deed>,
    /// What each verify finds, in their order; the last one stays. Without any there is no verify.
    pub verify: Vec<Found>,
    /// What comes of merging its base, in the order of its tries; the last one stays.
    pub base: Vec<Merge>,
}

/// A kind of agent; not every worker has every one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Agent {
    Command,
    Codex,
}

/// What an agent does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Deed {
    /// How long it works on a worker of usual speed.
    pub work_ms: u64,
    pub end: DeedEnd,
}

/// How an agent ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum DeedEnd {
    /// It has made a change.
    Change,
    /// It ended well and has changed nothing.
    NoChange,
    /// It gave up, after edits.
    Fails,
    /// Its program cannot be started.
    Unavailable,
    /// It goes on until it is stopped.
    Hangs,
    /// It asks a person, waits for the answer, and has then made a change.
    Asks,
}

/// What a verify finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Found {
    Good,
    Bad,
    /// The checkout cannot be made.
    Broken,
}

/// What comes of a merge.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Merge {
    Clean,
    Conflict,
    /// Git fails beyond its retries.
    Error,
}

/// A worker and the machine it runs on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WorkerPlan {
    /// Names it, also when others are left out.
    pub id: u32,
    pub at_ms: u64,
    pub slots: u32,
    pub agents: Vec<Agent>,
    #[serde(default)]
    pub labels: Vec<u32>,
    /// Processors that it offers.
    #[serde(default)]
    pub cpus: u64,
    /// How much its clock is off, in millionths.
    pub drift_ppm: i64,
    /// Speed of its agents in percent of the usual.
    pub speed_percent: u64,
    /// How often it lies, in thousandths of its heartbeats; an honest one never does.
    pub lies_per_mille: u64,
    /// It is a machine of the pool's cluster, if there is a pool: it starts when a job runs on it.
    #[serde(default)]
    pub pooled: bool,
}

/// How a pool is run, and what its cluster does to it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PoolPlan {
    pub max: u32,
    pub idle_timeout_ms: u64,
    pub join_timeout_ms: u64,
    pub backlog: u32,
    pub burst: u32,
    pub failures_max: u32,
    pub quarantine: bool,
    /// How often the cluster is asked for its list.
    pub poll_ms: u64,
    /// What becomes of the first orders; later ones are taken.
    pub orders: Vec<OrderFate>,
    /// What becomes of the first jobs; later ones are good.
    pub jobs: Vec<JobFate>,
}

/// What becomes of an order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum OrderFate {
    Taken,
    Refused,
    /// It arrives, and nobody is told.
    AnswerLost,
    NeverArrives,
    /// It arrives so much later, and nobody is told.
    Late {
        ms: u64,
    },
}

/// What becomes of a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JobFate {
    /// How long it waits in the queue when a machine is free.
    pub starts_ms: u64,
    /// How long it goes on, or waits on, after its end was asked for.
    pub ends_ms: u64,
    pub kind: JobKind,
}

/// What a job does that others do not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum JobKind {
    Good,
    /// It stays in the queue until it is ended.
    NeverStarts,
    /// Two come of one order.
    Twice,
    /// So long after it began it is killed without a word.
    DiesYoung {
        after_ms: u64,
    },
    /// So long after it began it is started again elsewhere, and its first copy runs on for a while,
    /// cut off.
    Requeued {
        after_ms: u64,
        overlap_ms: u64,
    },
    /// So long after it was ordered lists leave it out for a while.
    Forgotten {
        after_ms: u64,
        for_ms: u64,
    },
    /// It runs, and its worker never does.
    NeverJoins,
}

/// Something that happens at a moment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Happening {
    pub when: When,
    pub what: What,
}

/// A moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum When {
    At {
        ms: u64,
    },
    /// So long after the nth time (from 0) that something of this kind was told to the world.
    After {
        moment: Moment,
        nth: u32,
        ms: u64,
    },
}

/// Kinds of moments at which a fault or an operator hurts most.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Moment {
    Submitted,
    Granted,
    Started,
    Published,
    Made,
    Failed,
    Expired,
    Verifying,
    Basing,
    Integrating,
    Ended,
    Archived,
    Revoked,
    Asked,
    Answered,
    Reloaded,
    /// An integration is merged and waits for its verify.
    Merged,
    FinalVerifying,
    /// A pool wants allocations.
    Wanted,
    /// An order for them has been sent.
    Ordered,
    JobBegan,
    /// An allocation is to end.
    AllocationEnding,
}

/// What happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum What {
    /// The coordinator dies, now or at its next step of that kind, and is started again.
    CoordinatorCrash {
        point: CrashPoint,
        down_ms: u64,
        /// How far the wall clock has jumped when it starts again.
        wall_jump_ms: i64,
    },
    /// The next commits fail; the first of them was written all the same, or not.
    CommitsFail {
        times: u32,
        written: bool,
    },
    /// The coordinator's disk takes nothing.
    DiskFull {
        for_ms: u64,
    },
    /// Each sync of the coordinator takes so long.
    SlowDisk {
        for_ms: u64,
        sync_ms: u64,
    },
    /// Each merge takes so long, and moving branches may.
    SlowMerges {
        for_ms: u64,
        takes_ms: u64,
    },
    /// The worker's process is killed and started again.
    WorkerKilled {
        worker: u32,
        down_ms: u64,
    },
    /// The supervisor of one of the agents that run on the worker is killed alone: the nth of them,
    /// counted around. The agent's own process dies with it.
    SupervisorKilled {
        worker: u32,
        nth: u32,
        /// The agent had started something that lives on until somebody kills it.
        detached: bool,
        /// How long that takes to end when it is killed.
        ends_ms: u64,
    },
    /// The worker's machine loses its power, with all processes, and starts again.
    HostReboot {
        worker: u32,
        down_ms: u64,
        disk_lost: bool,
    },
    /// SIGSTOP, of the worker alone or of its supervisors and agents too.
    Frozen {
        worker: u32,
        for_ms: u64,
        whole: bool,
    },
    /// The lid is closed: nothing runs, and only the clock of deadlines goes on.
    Suspended {
        worker: u32,
        for_ms: u64,
    },
    /// Both ends of the worker's stream see it break.
    Broken {
        worker: u32,
    },
    /// The worker's disk takes nothing.
    WorkerDiskFull {
        worker: u32,
        for_ms: u64,
    },
    /// The worker is told to end when it holds nothing, and is started again.
    WorkerDrains {
        worker: u32,
        down_ms: u64,
    },
    /// The worker is told to leave at once, and is started again.
    WorkerLeaves {
        worker: u32,
        down_ms: u64,
    },
    /// The worker is started with so many slots, and with all it has besides or only the first agent,
    /// no label and half of its processors, from its next start on.
    Offers {
        worker: u32,
        slots: u32,
        all_agents: bool,
    },
    /// An operator submits the plan again with its key, or something else with that key.
    SubmitAgain {
        plan: u32,
        other: bool,
    },
    CancelRun {
        plan: u32,
    },
    CancelTask {
        plan: u32,
        task: u32,
    },
    RetryRun {
        plan: u32,
    },
    RetryTask {
        plan: u32,
        task: u32,
    },
    Drain {
        worker: u32,
        draining: bool,
    },
    /// No new leases for a while.
    Hold {
        for_ms: u64,
    },
    /// An operator answers the oldest open question, or one that is not open.
    Answer {
        wrong: bool,
    },
    /// An operator pauses the pool, or lets it go on.
    PausePool {
        paused: bool,
    },
}

/// Where a coordinator dies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum CrashPoint {
    Now,
    /// After deciding, before anything is written.
    BeforeAppend,
    /// While writing: the row is not there afterwards.
    TornAppend,
    /// After the row is on disk, before anybody hears of it.
    AfterAppend,
    /// After the archive holds a run, before the journal says so.
    InArchive,
    /// While writing a snapshot: it is not there afterwards.
    TornSnapshot,
    /// After a snapshot is on disk, before the journal is truncated.
    AfterSnapshot,
}

/// Bad weather on the network for a while.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Weather {
    pub from_ms: u64,
    pub to_ms: u64,
    /// All workers' when absent.
    pub worker: Option<u32>,
    pub link: Link,
    pub kind: WeatherKind,
}

/// A way between a worker and the coordinator.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Link {
    /// Both ways of the session, and git.
    All,
    ToCoordinator,
    ToWorker,
    Git,
}

/// What the weather does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum WeatherKind {
    /// Nothing passes.
    Cut,
    /// Each message takes up to so much longer.
    Delay { max_ms: u64 },
    /// So many thousandths of the messages break their connection (or their push).
    Breaks { per_mille: u64 },
}

/// Names of the kinds of faults, for figures.
pub(crate) const FAULTS: [&str; 15] = [
    "coordinator_crashes",
    "commits_failing",
    "disks_full",
    "disks_slow",
    "merges_slow",
    "workers_killed",
    "machines_rebooted",
    "workers_frozen",
    "machines_suspended",
    "streams_broken",
    "worker_disks_full",
    "workers_drained",
    "workers_leaving",
    "offers_changed",
    "supervisors_killed",
];

impl What {
    /// Gives the place of a fault's kind in [`FAULTS`]; `None` for what people do.
    pub(crate) const fn fault(&self) -> Option<usize> {
        Some(match self {
            Self::CoordinatorCrash { .. } => 0,
            Self::CommitsFail { .. } => 1,
            Self::DiskFull { .. } => 2,
            Self::SlowDisk { .. } => 3,
            Self::SlowMerges { .. } => 4,
            Self::WorkerKilled { .. } => 5,
            Self::HostReboot { .. } => 6,
            Self::Frozen { .. } => 7,
            Self::Suspended { .. } => 8,
            Self::Broken { .. } => 9,
            Self::WorkerDiskFull { .. } => 10,
            Self::WorkerDrains { .. } => 11,
            Self::WorkerLeaves { .. } => 12,
            Self::Offers { .. } => 13,
            Self::SupervisorKilled { .. } => 14,
            Self::SubmitAgain { .. }
            | Self::CancelRun { .. }
            | Self::CancelTask { .. }
            | Self::RetryRun { .. }
            | Self::RetryTask { .. }
            | Self::Drain { .. }
            | Self::Hold { .. }
            | Self::Answer { .. }
            | Self::PausePool { .. } => return None,
        })
    }
}

impl Scenario {
    /// Gives the number of removable parts: happenings, weather, plans, workers, and the pool.
    #[must_use]
    pub fn parts(&self) -> usize {
        let pool = usize::from(self.pool.is_some());
        self.happenings.len() + self.weather.len() + self.plans.len() + self.workers.len() + pool
    }

    /// Leaves parts out. What is left means the same as before.
    #[must_use]
    pub fn without(&self, range: Range<usize>) -> Self {
        let mut left = self.clone();
        let mut nth = 0;
        let mut stays = || {
            let stays = !range.contains(&nth);
            nth += 1;
            stays
        };
        left.happenings.retain(|_| stays());
        left.weather.retain(|_| stays());
        left.plans.retain(|_| stays());
        left.workers.retain(|_| stays());
        left.pool = left.pool.filter(|_| stays());
        left
    }

    /// Gives variants that are smaller in one thing each: fewer tasks, slots, retries and edges,
    /// shorter waits, straight clocks. None of them has a variant that leads back.
    #[must_use]
    pub fn simpler(&self) -> Vec<Self> {
        let mut variants = vec![];
        let mut offer = |change: &dyn Fn(&mut Self)| {
            let mut variant = self.clone();
            change(&mut variant);
            if variant != *self {
                variants.push(variant);
            }
        };
        for (nth, plan) in self.plans.iter().enumerate() {
            simpler_plan(nth, plan, &mut offer);
        }
        for nth in 0..self.workers.len() {
            let of = |change: fn(&mut WorkerPlan)| {
                move |scenario: &mut Self| {
                    scenario
                        .workers
                        .iter_mut()
                        .skip(nth)
                        .take(1)
                        .for_each(change);
                }
            };
            offer(&of(|worker| worker.slots = 1));
            offer(&of(|worker| worker.slots = worker.slots.div_ceil(2)));
            offer(&of(|worker| worker.drift_ppm = 0));
            offer(&of(|worker| worker.speed_percent = 100));
            offer(&of(|worker| worker.at_ms = 0));
            offer(&of(|worker| worker.lies_per_mille = 0));
            offer(&of(|worker| worker.labels.clear()));
            offer(&of(|worker| worker.cpus = 0));
        }
        for nth in 0..self.happenings.len() {
            offer(&|scenario| {
                scenario
                    .happenings
                    .iter_mut()
                    .skip(nth)
                    .take(1)
                    .for_each(shorten);
            });
        }
        for nth in 0..self.weather.len() {
            let of = |change: fn(&mut Weather)| {
                move |scenario: &mut Self| {
                    scenario
                        .weather
                        .iter_mut()
                        .skip(nth)
                        .take(1)
                        .for_each(change);
                }
            };
            offer(&of(|weather| {
                weather.to_ms = weather.from_ms + (weather.to_ms - weather.from_ms) / 2;
            }));
        }
        if let Some(pool) = &self.pool {
            crate::pools::simpler(pool, &mut offer);
        }
        offer(&|scenario| scenario.snapshot_every = 1_000_000);
        variants
    }
}

fn simpler_plan(nth: usize, plan: &Plan, offer: &mut impl FnMut(&dyn Fn(&mut Scenario))) {
    let with = |scenario: &mut Scenario, change: &dyn Fn(&mut Plan)| {
        scenario.plans.iter_mut().skip(nth).take(1).for_each(change);
    };
    offer(&|s| with(s, &|plan| plan.integrate = None));
    offer(&|s| with(s, &|plan| plan.max_parallel = None));
    offer(&|s| with(s, &|plan| plan.at_ms = 0));
    let many = plan.tasks.len() / 2;
    if many > 1 {
        offer(&|s| with(s, &|plan| leave_out(plan, |place| place >= many)));
        offer(&|s| with(s, &|plan| leave_out(plan, |place| place < many)));
    }
    for (place, task) in plan.tasks.iter().enumerate() {
        if plan.tasks.len() > 1 {
            offer(&|s| with(s, &|plan| leave_out(plan, |other| other == place)));
        }
        let task_with = |s: &mut Scenario, change: &dyn Fn(&mut TaskPlan)| {
            with(s, &|plan| {
                plan.tasks.iter_mut().skip(place).take(1).for_each(change);
            });
        };
        offer(&|s| task_with(s, &|task| task.depends_on.clear()));
        offer(&|s| task_with(s, &|task| task.verify.clear()));
        offer(&|s| task_with(s, &|task| task.base = vec![Merge::Clean]));
        offer(&|s| task_with(s, &|task| task.retries = 0));
        offer(&|s| task_with(s, &|task| task.path = None));
        offer(&|s| task_with(s, &|task| task.priority = 0));
        offer(&|s| task_with(s, &|task| task.label = None));
        offer(&|s| task_with(s, &|task| task.cpus = 0));
        for from in 1..task.attempts.len() {
            offer(&|s| task_with(s, &|task| task.attempts.truncate(from)));
        }
        offer(&|s| {
            task_with(s, &|task| {
                for deed in &mut task.attempts {
                    deed.work_ms = deed.work_ms.div_ceil(2);
                }
            });
        });
    }
}

fn leave_out(plan: &mut Plan, out: impl Fn(usize) -> bool) {
    let mut place = 0;
    plan.tasks.retain(|_| {
        place += 1;
        !out(place - 1)
    });
    let left: Vec<u32> = plan.tasks.iter().map(|task| task.id).collect();
    for task in &mut plan.tasks {
        task.depends_on.retain(|id| left.contains(id));
    }
}

fn shorten(happening: &mut Happening) {
    match &mut happening.when {
        When::At { .. } => {}
        When::After { ms, .. } => *ms /= 2,
    }
    match &mut happening.what {
        What::CoordinatorCrash {
            down_ms,
            wall_jump_ms,
            ..
        } => {
            *down_ms /= 2;
            *wall_jump_ms /= 2;
        }
        What::DiskFull { for_ms }
        | What::SlowDisk { for_ms, .. }
        | What::SlowMerges { for_ms, .. }
        | What::Frozen { for_ms, .. }
        | What::Suspended { for_ms, .. }
        | What::WorkerDiskFull { for_ms, .. }
        | What::Hold { for_ms } => *for_ms /= 2,
        What::WorkerKilled { down_ms, .. }
        | What::HostReboot { down_ms, .. }
        | What::WorkerDrains { down_ms, .. }
        | What::WorkerLeaves { down_ms, .. } => *down_ms /= 2,
        What::SupervisorKilled {
            detached, ends_ms, ..
        } => {
            if *ends_ms == 0 {
                *detached = false;
            }
            *ends_ms /= 2;
        }
        What::CommitsFail { times, .. } => *times = (*times).min(1),
        What::Broken { .. }
        | What::Offers { .. }
        | What::SubmitAgain { .. }
        | What::CancelRun { .. }
        | What::CancelTask { .. }
        | What::RetryRun { .. }
        | What::RetryTask { .. }
        | What::Drain { .. }
        | What::Answer { .. }
        | What::PausePool { .. } => {}
    }
}
