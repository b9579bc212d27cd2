//! Prints what planning pools costs: 1,000 allocations at work and coming, and 10,000 ready tasks of
//! one, ten and a hundred kinds of need. Run with
//! `cargo run --release -p coordinator-core --example pool_bench`.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a program that measures needs a clock and an output"
)]

use std::sync::Arc;
use std::time::Instant;

use coordinator_core::command::{Heartbeat, Hello};
use coordinator_core::plan::{Profile, RunSpec, TaskSpec};
use coordinator_core::pool::{Policy, PoolCommand, Seen, outlook};
use coordinator_core::worker::{Offer, Requirement};
use coordinator_core::{
    AllocationId, Command, Incarnation, Span, State, Timestamp, WorkerId, schedule, step,
};

const POOL: &str = "cluster";
const ALLOCATIONS: u32 = 1_000;
/// Of these, so many have their worker already.
const JOINED: u64 = 500;
const TASKS: usize = 10_000;
const ROUNDS: u32 = 50;

fn main() {
    for kinds in [1, 10, 100] {
        let (state, now) = world(kinds);
        let begin = Instant::now();
        let mut wanted = 0;
        for _ in 0..ROUNDS {
            let outlooks = outlook(&state, now);
            wanted = outlooks[0].start.as_ref().map_or(0, |start| start.count);
        }
        println!(
            "{ALLOCATIONS} allocations, {TASKS} ready tasks of {kinds} kinds: {:.2?} a plan, which wants {wanted} more",
            begin.elapsed() / ROUNDS
        );
    }
}

fn policy() -> Policy {
    Policy {
        priority: 0,
        min: 0,
        max: 2 * ALLOCATIONS,
        template: Offer {
            pool: POOL.into(),
            slots: 4,
            ..Offer::default()
        },
        agents: None,
        workers: 1,
        idle_timeout: Span::from_secs(300),
        backlog: 2 * ALLOCATIONS,
        burst: 2 * ALLOCATIONS,
        join_timeout: Span::from_secs(600),
        walltime: Some(Span::from_secs(3_600)),
        failures_max: 3,
        quarantine: true,
        stays: false,
    }
}

fn act(state: &mut State, now: Timestamp, command: &Command) {
    step(state, now, command).unwrap();
    schedule(state, now);
}

/// A pool with allocations of which half work, and tasks that wait.
fn world(kinds: usize) -> (State, Timestamp) {
    let mut state = State::new();
    let now = Timestamp::from_ms(1);
    let pool = |state: &mut State, command| act(state, now, &Command::Pool(command));
    let busy = spec("busy", 4 * ALLOCATIONS as usize, 1);
    pool(
        &mut state,
        PoolCommand::Configure {
            policies: [(POOL.into(), policy())].into(),
        },
    );
    act(&mut state, now, &submit(&busy));
    pool(&mut state, PoolCommand::Plan);
    let running = (1..=JOINED).map(|id| {
        let seen = Seen::Running {
            external: format!("{id}").into(),
            host: format!("n{id}").into(),
        };
        (AllocationId(id), seen)
    });
    let allocations = running.collect();
    pool(&mut state, PoolCommand::Observe { allocations });
    for id in 1..=JOINED {
        join(&mut state, now, id);
    }
    let waiting = spec("waiting", TASKS, kinds);
    act(&mut state, now, &submit(&waiting));
    (state, now)
}

fn join(state: &mut State, now: Timestamp, id: u64) {
    let worker = WorkerId::new(&format!("n{id}"));
    let offer = Offer {
        pool: POOL.into(),
        slots: 4,
        agents: ["command".into()].into(),
        host: format!("n{id}").into(),
        allocation: Some(AllocationId(id)),
        ..Offer::default()
    };
    let hello = Hello {
        worker: worker.clone(),
        incarnation: Incarnation(1),
        session: id,
        number: 1,
        offer: Arc::new(offer),
        held: vec![],
        draining: false,
        time_left: Some(Span::from_secs(3_600)),
    };
    act(state, now, &Command::Hello(hello));
    let beat = Heartbeat {
        worker,
        incarnation: Incarnation(1),
        session: id,
        seq: 1,
        held: vec![],
        free_slots: 4,
        draining: false,
        time_left: Some(Span::from_secs(3_600)),
        looked: None,
    };
    act(state, now, &Command::Heartbeat(beat));
}

fn submit(spec: &Arc<RunSpec>) -> Command {
    Command::Submit {
        spec: Arc::clone(spec),
        key: None,
        digest: "".into(),
    }
}

fn spec(name: &str, tasks: usize, kinds: usize) -> Arc<RunSpec> {
    let tasks = (0..tasks).map(|n| TaskSpec {
        name: format!("task-{n}").into(),
        depends_on: vec![],
        priority: 0,
        paths: vec![],
        profile: Profile {
            requirement: Requirement {
                agent: "command".into(),
                // Kinds differ in what they are expected to take.
                expected: Span::from_secs(u64::try_from(n % kinds).unwrap()),
                ..Requirement::default()
            },
            retries: 2,
            timeout: Span::from_secs(600),
            verify: None,
            backoff: Span::from_secs(1),
            resumes: false,
            near: false,
        },
    });
    Arc::new(RunSpec {
        name: name.into(),
        plan: "bench".into(),
        source: None,
        integrate: None,
        max_parallel: None,
        tasks: tasks.collect(),
        submitted_by: "bench".into(),
    })
}
