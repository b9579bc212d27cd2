//! Scenarios from seeds.

use crate::random::Random;
use crate::scenario::{
    Agent, Clocks, CrashPoint, Deed, DeedEnd, Found, Happening, Integrate, Link, Merge, Moment,
    Plan, Scenario, TaskPlan, Weather, WeatherKind, What, When, WorkerPlan,
};

/// When a task's work takes usually long, and a deed that never ends is stopped.
const TIMEOUT_MS: u64 = 30 * 60_000;
/// Labels that there are.
const LABELS: u64 = 3;
/// Processors that a task occupies at most.
const CPUS_MOST: u64 = 4;
/// How long faults go on.
const FAULTS_MS: u64 = 25 * 60_000;

impl Scenario {
    /// Makes a scenario: a standard world, with everything that will happen in it.
    #[must_use]
    pub fn generate(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mood = Mood::of(&mut random);
        let clocks = clocks(&mut random);
        let count = random.between(1, 3);
        let plans: Vec<Plan> = (0..count)
            .map(|id| plan(&mut random, id as u32, &mood))
            .collect();
        let count = random.between(2, 5);
        let workers: Vec<WorkerPlan> = (0..count)
            .map(|id| worker(&mut random, id as u32, &mood))
            .collect();
        let mut happenings = vec![];
        if !mood.calm {
            for _ in 0..random.between(3, 16) {
                happenings.push(happening(&mut random, &plans, &workers, clocks, &mood));
            }
        }
        let mut skies = vec![];
        if mood.stormy {
            for _ in 0..random.between(1, 5) {
                skies.push(weather(&mut random, &workers, clocks));
            }
            if random.per_mille(400) {
                skies.extend(deaf_then_mute(&mut random, &workers, clocks));
            }
        }
        let last = plans.iter().map(|plan| plan.at_ms).max().unwrap_or(0);
        let mut scenario = Self {
            seed,
            clocks,
            snapshot_every: random.wide(4, 4_096),
            plans,
            workers,
            happenings,
            weather: skies,
            pool: None,
            calm_ms: FAULTS_MS.max(last),
        };
        if !crate::special::specialize(&mut scenario) {
            crate::pools::add(&mut scenario);
        }
        scenario
    }
}

/// What kind of world it is: most have all kinds of trouble, some only one.
struct Mood {
    calm: bool,
    stormy: bool,
    liars: bool,
    /// Weights: coordinator, disk, workers, operators.
    weights: [u64; 4],
    /// Most things happen at a bad moment instead of any.
    aimed: u64,
    failing: u64,
    /// How many of a thousand tasks need a label, and how many processors.
    needs: [u64; 2],
}

impl Mood {
    fn of(random: &mut Random) -> Self {
        let calm = random.per_mille(50);
        let mut weights = [4, 2, 6, 5];
        for weight in &mut weights {
            if random.per_mille(300) {
                *weight = random.pick(&[0, 1, 12]).unwrap_or(1);
            }
        }
        Self {
            calm,
            stormy: !calm && random.per_mille(600),
            liars: !calm && random.per_mille(250),
            weights,
            aimed: random.pick(&[0, 500, 500, 900]).unwrap_or(500),
            failing: random.pick(&[0, 100, 250, 500]).unwrap_or(100),
            needs: random
                .pick(&[[0, 0], [0, 0], [200, 0], [0, 800], [150, 400]])
                .unwrap_or_default(),
        }
    }
}

fn clocks(random: &mut Random) -> Clocks {
    let ttl_ms = random
        .pick(&[30_000, 60_000, 60_000, 120_000])
        .unwrap_or(60_000);
    Clocks {
        ttl_ms,
        grace_ms: ttl_ms / 4,
        heartbeat_ms: ttl_ms / 6,
    }
}

fn plan(random: &mut Random, id: u32, mood: &Mood) -> Plan {
    let at_ms = if id == 0 {
        1_000
    } else {
        random.wide(1_000, 600_000)
    };
    let repository = random.per_mille(850);
    let most = if random.per_mille(150) { 30 } else { 14 };
    let count = random.between(2, most);
    let edges = random.pick(&[0, 150, 300, 600]).unwrap_or(300);
    let mut tasks: Vec<TaskPlan> = vec![];
    for id in 0..count as u32 {
        let depends_on = (0..id)
            .rev()
            .take(6)
            .filter(|_| random.per_mille(edges))
            .collect();
        tasks.push(task(random, id, depends_on, mood));
    }
    let verify = |random: &mut Random| {
        let count = random.below(3);
        (0..count).map(|_| found(random, mood)).collect()
    };
    let integrate = random.per_mille(500).then(|| Integrate {
        verify: verify(random),
        merge: merges(random),
    });
    Plan {
        id,
        at_ms,
        repository,
        integrate,
        max_parallel: random.per_mille(250).then(|| random.between(1, 4) as u32),
        tasks,
    }
}

fn task(random: &mut Random, id: u32, depends_on: Vec<u32>, mood: &Mood) -> TaskPlan {
    let count = random.between(1, 4);
    let attempts = (0..count)
        .map(|_| Deed {
            work_ms: random.wide(1_000, 240_000),
            end: deed_end(random, mood),
        })
        .collect();
    let count = if random.per_mille(400) {
        random.between(1, 3)
    } else {
        0
    };
    TaskPlan {
        id,
        depends_on,
        priority: random.pick(&[0, 0, 0, 1, -1]).unwrap_or(0),
        path: random.per_mille(200).then(|| random.below(3) as u32),
        agent: if random.per_mille(150) {
            Agent::Codex
        } else {
            Agent::Command
        },
        label: random
            .per_mille(mood.needs[0])
            .then(|| random.below(LABELS) as u32),
        cpus: if random.per_mille(mood.needs[1]) {
            random.between(1, CPUS_MOST)
        } else {
            0
        },
        retries: random.below(4) as u32,
        timeout_ms: if random.per_mille(100) {
            random.wide(5_000, 120_000)
        } else {
            TIMEOUT_MS
        },
        attempts,
        verify: (0..count).map(|_| found(random, mood)).collect(),
        base: merges(random),
    }
}

fn deed_end(random: &mut Random, mood: &Mood) -> DeedEnd {
    if !random.per_mille(mood.failing) {
        return if random.per_mille(100) {
            DeedEnd::NoChange
        } else {
            DeedEnd::Change
        };
    }
    let bad = [
        DeedEnd::Fails,
        DeedEnd::Fails,
        DeedEnd::Fails,
        DeedEnd::Unavailable,
        DeedEnd::Hangs,
        DeedEnd::Asks,
    ];
    random.pick(&bad).unwrap_or(DeedEnd::Fails)
}

fn found(random: &mut Random, mood: &Mood) -> Found {
    if !random.per_mille(mood.failing) {
        return Found::Good;
    }
    random
        .pick(&[Found::Bad, Found::Bad, Found::Broken])
        .unwrap_or(Found::Bad)
}

fn merges(random: &mut Random) -> Vec<Merge> {
    if !random.per_mille(60) {
        return vec![Merge::Clean];
    }
    let bad = random
        .pick(&[Merge::Conflict, Merge::Error])
        .unwrap_or(Merge::Conflict);
    if random.per_mille(500) {
        vec![bad, Merge::Clean]
    } else {
        vec![bad]
    }
}

fn worker(random: &mut Random, id: u32, mood: &Mood) -> WorkerPlan {
    let honest = id == 0 || !mood.liars || random.per_mille(500);
    WorkerPlan {
        id,
        at_ms: if id < 2 { 0 } else { random.wide(1, 300_000) },
        slots: random.between(1, 6) as u32,
        agents: if id == 0 || random.per_mille(500) {
            vec![Agent::Command, Agent::Codex]
        } else {
            vec![Agent::Command]
        },
        labels: (0..LABELS as u32)
            .filter(|_| id == 0 || random.per_mille(500))
            .collect(),
        cpus: if id == 0 {
            random.between(CPUS_MOST, CPUS_MOST * 3)
        } else {
            random.below(CPUS_MOST * 2)
        },
        drift_ppm: if random.per_mille(500) {
            0
        } else {
            random.below(20_001) as i64 - 10_000
        },
        speed_percent: random.pick(&[100, 100, 100, 50, 300, 10]).unwrap_or(100),
        lies_per_mille: if honest {
            0
        } else {
            random.pick(&[50, 300, 1000]).unwrap_or(300)
        },
        pooled: false,
    }
}

fn happening(
    random: &mut Random,
    plans: &[Plan],
    workers: &[WorkerPlan],
    clocks: Clocks,
    mood: &Mood,
) -> Happening {
    let total: u64 = mood.weights.iter().sum();
    let mut place = random.below(total.max(1));
    let mut kind = 0;
    for (nth, weight) in mood.weights.iter().enumerate() {
        if place < *weight {
            kind = nth;
            break;
        }
        place -= weight;
    }
    let what = match kind {
        0 => crash(random, clocks),
        1 => disk(random),
        2 => trouble(random, workers, clocks),
        _ => operator(random, plans, workers),
    };
    Happening {
        when: when(random, mood),
        what,
    }
}

const MOMENTS: [Moment; 14] = [
    Moment::Submitted,
    Moment::Granted,
    Moment::Started,
    Moment::Published,
    Moment::Made,
    Moment::Failed,
    Moment::Expired,
    Moment::Verifying,
    Moment::Basing,
    Moment::Integrating,
    Moment::Ended,
    Moment::Archived,
    Moment::Revoked,
    Moment::Asked,
];

fn when(random: &mut Random, mood: &Mood) -> When {
    if !random.per_mille(mood.aimed) {
        let ms = random.below(FAULTS_MS * 3 / 5);
        return When::At { ms };
    }
    let moment = random.pick(&MOMENTS).unwrap_or(Moment::Granted);
    let seldom = matches!(
        moment,
        Moment::Submitted
            | Moment::Expired
            | Moment::Integrating
            | Moment::Ended
            | Moment::Archived
            | Moment::Revoked
            | Moment::Asked
    );
    When::After {
        moment,
        nth: random.below(if seldom { 2 } else { 12 }) as u32,
        ms: if random.per_mille(500) {
            0
        } else {
            random.wide(1, 20_000)
        },
    }
}

fn crash(random: &mut Random, clocks: Clocks) -> What {
    let points = [
        CrashPoint::Now,
        CrashPoint::Now,
        CrashPoint::BeforeAppend,
        CrashPoint::TornAppend,
        CrashPoint::AfterAppend,
        CrashPoint::AfterAppend,
        CrashPoint::InArchive,
        CrashPoint::TornSnapshot,
        CrashPoint::AfterSnapshot,
    ];
    What::CoordinatorCrash {
        point: random.pick(&points).unwrap_or(CrashPoint::Now),
        down_ms: random.wide(50, clocks.ttl_ms * 3),
        wall_jump_ms: if random.per_mille(300) {
            random.below(7_200_000) as i64 - 3_600_000
        } else {
            0
        },
    }
}

fn disk(random: &mut Random) -> What {
    match random.below(3) {
        0 => What::CommitsFail {
            times: random.wide(1, 12) as u32,
            written: random.per_mille(500),
        },
        1 => What::DiskFull {
            for_ms: random.wide(200, 30_000),
        },
        _ => What::SlowDisk {
            for_ms: random.wide(1_000, 120_000),
            sync_ms: random.wide(4, 3_000),
        },
    }
}

fn trouble(random: &mut Random, workers: &[WorkerPlan], clocks: Clocks) -> What {
    let ids: Vec<u32> = workers.iter().map(|worker| worker.id).collect();
    let worker = random.pick(&ids).unwrap_or(0);
    // Around the time a lease lives, both sides of it.
    let for_ms = if random.per_mille(500) {
        random.wide(100, clocks.ttl_ms * 4)
    } else {
        random.between(clocks.ttl_ms / 2, clocks.ttl_ms * 2)
    };
    let down_ms = random.wide(100, clocks.ttl_ms * 3);
    match random.below(11) {
        0 | 1 => What::WorkerKilled { worker, down_ms },
        2 => What::HostReboot {
            worker,
            down_ms,
            disk_lost: random.per_mille(250),
        },
        3 | 4 => What::Frozen {
            worker,
            for_ms,
            whole: random.per_mille(400),
        },
        5 => What::Suspended { worker, for_ms },
        6 => What::Broken { worker },
        7 => match random.below(2) {
            0 => What::WorkerDiskFull { worker, for_ms },
            _ => What::Offers {
                worker,
                slots: random.between(1, 6) as u32,
                all_agents: random.per_mille(800),
            },
        },
        8 => What::WorkerDrains { worker, down_ms },
        9 => What::SupervisorKilled {
            worker,
            nth: random.below(4) as u32,
            detached: random.per_mille(700),
            ends_ms: random.wide(1, 20_000) - 1,
        },
        _ => What::WorkerLeaves { worker, down_ms },
    }
}

fn operator(random: &mut Random, plans: &[Plan], workers: &[WorkerPlan]) -> What {
    let ids: Vec<u32> = plans.iter().map(|plan| plan.id).collect();
    let plan = random.pick(&ids).unwrap_or(0);
    let tasks = plans
        .iter()
        .find(|one| one.id == plan)
        .map_or(0, |plan| plan.tasks.len());
    let task = random.below(tasks as u64) as u32;
    let ids: Vec<u32> = workers.iter().map(|worker| worker.id).collect();
    let worker = random.pick(&ids).unwrap_or(0);
    match random.below(12) {
        0 => What::SubmitAgain {
            plan,
            other: random.per_mille(300),
        },
        1 | 2 => What::CancelRun { plan },
        3 | 4 => What::CancelTask { plan, task },
        5 | 6 => What::RetryRun { plan },
        7 | 8 => What::RetryTask { plan, task },
        9 => What::Drain {
            worker,
            draining: random.per_mille(700),
        },
        10 => What::Hold {
            for_ms: random.wide(100, 120_000),
        },
        _ => What::Answer {
            wrong: random.per_mille(300),
        },
    }
}

/// A worker hears late what answered it, and nothing of what it says after that arrives: the worst
/// that can happen to somebody who counts time from when an answer came.
fn deaf_then_mute(random: &mut Random, workers: &[WorkerPlan], clocks: Clocks) -> [Weather; 2] {
    let ids: Vec<u32> = workers.iter().map(|worker| worker.id).collect();
    let worker = random.pick(&ids);
    let from_ms = random.below(FAULTS_MS / 3);
    let late_ms = random.between(clocks.ttl_ms * 3 / 10, clocks.ttl_ms * 65 / 100);
    let heard_ms = random.below(late_ms.min(clocks.heartbeat_ms * 2));
    let weather = |link, from_ms, to_ms| Weather {
        from_ms,
        to_ms,
        worker,
        link,
        kind: WeatherKind::Cut,
    };
    [
        weather(Link::ToWorker, from_ms, from_ms + late_ms),
        weather(
            Link::ToCoordinator,
            from_ms + heard_ms,
            from_ms + late_ms + clocks.ttl_ms * 2,
        ),
    ]
}

fn weather(random: &mut Random, workers: &[WorkerPlan], clocks: Clocks) -> Weather {
    let ids: Vec<u32> = workers.iter().map(|worker| worker.id).collect();
    let from_ms = random.below(FAULTS_MS / 2);
    let for_ms = random.wide(500, clocks.ttl_ms * 5);
    let kind = match random.below(4) {
        0 | 1 => WeatherKind::Cut,
        2 => WeatherKind::Delay {
            max_ms: random.wide(50, clocks.ttl_ms),
        },
        _ => WeatherKind::Breaks {
            per_mille: random.wide(10, 500),
        },
    };
    let links = [
        Link::All,
        Link::All,
        Link::ToCoordinator,
        Link::ToWorker,
        Link::Git,
    ];
    Weather {
        from_ms,
        to_ms: from_ms + for_ms,
        worker: if random.per_mille(200) {
            None
        } else {
            random.pick(&ids)
        },
        link: random.pick(&links).unwrap_or(Link::All),
        kind,
    }
}
