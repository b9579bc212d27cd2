//! Prints what the core costs: time of a grant with its report, memory of a waiting task, time of a
//! replay. Run with `cargo run --release -p coordinator-core --example core_bench`.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a program that measures needs a clock and an output"
)]

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use coordinator_core::batch::Leases;
use coordinator_core::command::{Heartbeat, Hello, Report};
use coordinator_core::event::{Outcome, Usage};
use coordinator_core::plan::{Profile, RunSpec, Source, TaskSpec};
use coordinator_core::worker::{Offer, Requirement};
use coordinator_core::{
    Batch, Command, CommitId, Event, EventKind, Incarnation, Journal, LeaseId, Span, State,
    Timestamp, WorkerId, schedule, step,
};

const TASKS: usize = 100_000;
const WORKERS: usize = 64;
const SLOTS: u32 = 16;

fn main() {
    println!(
        "sizes: Task {} B, TaskState {} B, EventKind {} B, Event {} B",
        size_of::<coordinator_core::state::Task>(),
        size_of::<coordinator_core::state::TaskState>(),
        size_of::<EventKind>(),
        size_of::<Event>()
    );
    waiting("blocked (chains of 100)", 100);
    waiting("ready (no dependencies)", 1);
    let log = cycles("free tasks", 1);
    replay(&log);
    cycles("chains of 100", 100);
    blocked_classes();
}

/// A plan of chains: each task depends on the one before it in its chain.
fn spec(name: &str, chain: usize) -> Arc<RunSpec> {
    let profile = Profile {
        requirement: Requirement {
            agent: "command".into(),
            ..Requirement::default()
        },
        retries: 2,
        timeout: Span::from_secs(600),
        verify: None,
        backoff: Span::from_secs(1),
        resumes: false,
        near: false,
    };
    let tasks = (0..TASKS).map(|n| TaskSpec {
        name: format!("task-{n}").into(),
        depends_on: if n % chain == 0 {
            vec![]
        } else {
            vec![format!("task-{}", n - 1).into()]
        },
        priority: 0,
        paths: vec![],
        profile: profile.clone(),
    });
    Arc::new(RunSpec {
        name: name.into(),
        plan: "bench".into(),
        source: Some(Source {
            repository: "repo".into(),
            base: CommitId::new("0123456789012345678901234567890123456789"),
        }),
        integrate: None,
        max_parallel: None,
        tasks: tasks.collect(),
        submitted_by: "bench".into(),
    })
}

fn submit(state: &mut State, now: Timestamp, spec: &Arc<RunSpec>) -> Vec<Event> {
    let command = Command::Submit {
        spec: Arc::clone(spec),
        key: None,
        digest: "".into(),
    };
    step(state, now, &command).unwrap().events
}

fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

fn waiting(what: &str, chain: usize) {
    let spec = spec("memory", chain);
    let before = resident();
    let mut state = State::new();
    let begin = Instant::now();
    let events = submit(&mut state, Timestamp::from_ms(1), &spec);
    let took = begin.elapsed();
    drop(events);
    let grown = resident().saturating_sub(before);
    println!(
        "{what}: submitted in {took:.1?}; resident {} B a task (names shared with the plan)",
        grown / TASKS as u64
    );
}

fn join(state: &mut State, now: Timestamp) {
    for n in 0..WORKERS {
        let worker = WorkerId::new(&format!("worker-{n:03}"));
        let offer = Offer {
            slots: SLOTS,
            agents: [Arc::from("command")].into(),
            ..Offer::default()
        };
        let hello = Command::Hello(Hello {
            number: 0,
            worker,
            incarnation: Incarnation(1),
            session: 1,
            offer: Arc::new(offer),
            held: vec![],
            draining: false,
            time_left: None,
        });
        step(state, now, &hello).unwrap();
        beat(state, now, n, 1, vec![]);
    }
}

fn beat(state: &mut State, now: Timestamp, n: usize, seq: u64, held: Vec<LeaseId>) {
    let beat = Command::Heartbeat(Heartbeat {
        worker: WorkerId::new(&format!("worker-{n:03}")),
        incarnation: Incarnation(1),
        session: 1,
        seq,
        free_slots: SLOTS - u32::try_from(held.len()).unwrap(),
        held,
        draining: false,
        time_left: None,
        looked: None,
    });
    step(state, now, &beat).unwrap();
}

/// A journal that costs nothing.
struct Nowhere;

impl Journal for Nowhere {
    type Error = Infallible;

    fn append(&mut self, _now: Timestamp, _events: &[Event]) -> Result<(), Infallible> {
        Ok(())
    }
}

fn committed(batch: Batch<'_>) -> Vec<Event> {
    let committed = batch.close(Leases::Grant).commit(&mut Nowhere).unwrap();
    assert!(committed.replies.iter().all(Result::is_ok));
    committed.events
}

/// Works off a run: rounds in which every worker reports all it holds, one report a batch.
fn cycles(what: &str, chain: usize) -> Vec<Event> {
    let mut state = State::new();
    let mut now = Timestamp::from_ms(1);
    let mut log = submit(&mut state, now, &spec("cycles", chain));
    join(&mut state, now);
    log.extend(schedule(&mut state, now));
    let (mut done, mut seq) = (0u64, 1);
    let begin = Instant::now();
    while done < TASKS as u64 {
        now = now + Span::from_ms(10);
        seq += 1;
        for n in 0..WORKERS {
            let worker = WorkerId::new(&format!("worker-{n:03}"));
            let held: Vec<LeaseId> = state.leases_of_worker(&worker).map(|l| l.id).collect();
            for lease in held {
                let mut batch = Batch::open(&mut state, now);
                for report in [
                    Report::Started,
                    Report::Succeeded {
                        outcome: Outcome::Commit(CommitId::new("abc")),
                        usage: Usage::default(),
                        summary: "".into(),
                    },
                ] {
                    let worker = worker.clone();
                    let command = Command::Report {
                        worker,
                        lease,
                        report,
                    };
                    batch.take(&command);
                }
                done += 1;
                log.extend(committed(batch));
            }
            beat(&mut state, now, n, seq, vec![]);
            log.extend(schedule(&mut state, now));
        }
    }
    let took = begin.elapsed();
    println!(
        "{what}: {:.2} µs a cycle of grant, start, result (each its own batch)",
        took.as_secs_f64() * 1e6 / TASKS as f64
    );
    log
}

fn replay(log: &[Event]) {
    // The log begins with the submission; workers' events are made again, as a journal has them.
    let mut state = State::new();
    join(&mut state, Timestamp::from_ms(1));
    let begin = Instant::now();
    for event in log {
        state.replay(event).unwrap();
    }
    let took = begin.elapsed();
    println!(
        "replay of {} events: {took:.1?}, {:.2} µs an event",
        log.len(),
        took.as_secs_f64() * 1e6 / log.len() as f64
    );
    let image = state.image();
    let begin = Instant::now();
    let restored = State::from_image(image, Timestamp::from_ms(1)).unwrap();
    println!("from an image, checked: {:.1?}", begin.elapsed());
    drop(restored);
}

/// A hundred thousand ready tasks that no worker can take must not slow down the others.
fn blocked_classes() {
    let mut state = State::new();
    let now = Timestamp::from_ms(1);
    let mut blocked = (*spec("blocked", 1)).clone();
    for task in &mut blocked.tasks {
        task.profile.requirement.agent = "elsewhere".into();
    }
    submit(&mut state, now, &Arc::new(blocked));
    join(&mut state, now);
    let rounds = 10_000u32;
    let begin = Instant::now();
    for _ in 0..rounds {
        step(&mut state, now, &Command::Tick).unwrap();
        assert!(schedule(&mut state, now).is_empty());
    }
    println!(
        "{TASKS} tasks of a blocked class, {WORKERS} idle workers: {:.2} µs a batch",
        begin.elapsed().as_secs_f64() * 1e6 / f64::from(rounds)
    );
}
