//! One value of everything that is written, for the golden files and the contract suite.

mod questions;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use coordinator_core::event::{
    LeaseEnd, MergeConflict, Outcome, Placement, RunOutcome, Usage, Work,
};
use coordinator_core::plan::{IntegrateSpec, Profile, RunSpec, Source, TaskSpec, VerifySpec};
use coordinator_core::state::{
    Attempt, AttemptEnd, CancelRequest, History, Image, KeyUse, Lease, Link, Parked, Run, RunImage,
    RunPhase, Task, TaskState, VerifyPhase, Worker,
};
use coordinator_core::time::Span;
use coordinator_core::worker::{Offer, Requirement};
use coordinator_core::{
    AllocationId, AttemptNo, CommitId, Epoch, Event, EventKind, Failure, FailureClass, Incarnation,
    LeaseId, QuestionId, RunId, TaskIx, TaskKey, Timestamp, WorkerId,
};

pub(in crate::store) use questions::{LATER_KINDS, asking_task, later_kinds};
use questions::{bare, question};

/// Defines what names a value's variant, and the list of all names. A variant that is missing
/// here breaks the build.
macro_rules! variants {
    ($names:ident, $name_of:ident, $enum:ident: $($variant:ident),* $(,)?) => {
        pub(in crate::store) const $names: &[&str] = &[$(stringify!($variant)),*];

        pub(in crate::store) fn $name_of(value: &$enum) -> &'static str {
            match value {
                $($enum::$variant { .. } => stringify!($variant),)*
            }
        }
    };
}

mod pools;

pub(in crate::store) use pools::{
    POOL_EVENTS, judged_events, pool_event_name, pool_events, pooled_image,
};

variants!(KINDS, kind_name, EventKind:
    CoordinatorStarted, WorkerJoined, WorkerDraining, WorkerForgotten, RunSubmitted,
    CancelRequested, IntegrationStarted, IntegrationMerged, RunEnded, RunArchived,
    IntegrationConflicted, RunReopened, RunReloaded, TaskBasing, TaskReady, TaskSucceeded,
    TaskFailed, TaskSkipped, TaskCancelled, TaskAborted, TaskReopened, LeaseGranted, WorkStarted,
    AttemptSucceeded, AttemptFailed, VerifyPassed, VerifyFailed, VerifyLost, LeaseRevoked,
    LeaseClosed, Pool, QuestionAsked, QuestionAnswered, QuestionClosed, ConversationOpened, TaskParked,
);
variants!(TASK_STATES, task_state_name, TaskState:
    Blocked, Basing, Ready, Leased, Verifying, Parked, Succeeded, Failed, Cancelled, Aborted,
    Skipped,
);
variants!(ATTEMPT_ENDS, attempt_end_name, AttemptEnd:
    Made, Succeeded, Failed, VerifyFailed, Cancelled, Parked, NeverStarted,
);
variants!(RUN_PHASES, run_phase_name, RunPhase: Active, Integrating, Verifying, Ended);

/// Classes of failure that are younger than the first form: its files do not hold them.
pub(crate) const LATER_CLASSES: [FailureClass; 16] = [
    FailureClass::DiskAllowance,
    FailureClass::SecretUnavailable,
    FailureClass::Authentication,
    FailureClass::RateLimit,
    FailureClass::ProviderCapacity,
    FailureClass::ProviderError,
    FailureClass::Transport,
    FailureClass::UsageLimit,
    FailureClass::InvalidRequest,
    FailureClass::ContextWindow,
    FailureClass::Refusal,
    FailureClass::AgentCrashed,
    FailureClass::AgentError,
    FailureClass::OutputInvalid,
    FailureClass::NoChange,
    FailureClass::Denied,
];

pub(in crate::store) const RUN: RunId = RunId(7);
pub(in crate::store) const EPOCH: Epoch = Epoch(3);

pub(in crate::store) fn at(ms: u64) -> Timestamp {
    Timestamp::from_ms(1_795_000_000_000 + ms)
}

fn task(task: u32) -> TaskKey {
    TaskKey {
        run: RUN,
        task: TaskIx(task),
    }
}

fn commit(text: &str) -> CommitId {
    CommitId::new(text)
}

fn failure(class: FailureClass) -> Failure {
    Failure {
        class,
        message: "tests failed: \"two\"\nof nine".into(),
        output: "…end of the output\u{0}\u{1b}[31m".into(),
        retry_after: None,
    }
}

fn usage() -> Usage {
    Usage {
        input_tokens: 1_200,
        output_tokens: 340,
        cost_micros: 56_000,
        run_ms: 61_500,
    }
}

fn requirement() -> Requirement {
    Requirement {
        agent: "codex".into(),
        declared: None,
        pool: Some("slurm".into()),
        labels: ["gpu".into(), "os=linux".into()].into(),
        resources: [("cpus".into(), 4), ("memory_mib".into(), 8_192)].into(),
        expected: Span::ZERO,
    }
}

fn verify() -> VerifySpec {
    VerifySpec {
        timeout: Span::from_secs(600),
        requirement: requirement(),
    }
}

fn profiles() -> Vec<Profile> {
    vec![
        Profile {
            requirement: requirement(),
            retries: 2,
            timeout: Span::from_secs(2_700),
            verify: Some(verify()),
            backoff: Span::from_secs(1),
            resumes: false,
            near: false,
        },
        Profile {
            requirement: Requirement {
                agent: "command".into(),
                ..Requirement::default()
            },
            retries: 0,
            timeout: Span::from_secs(60),
            verify: None,
            backoff: Span::from_secs(1),
            resumes: false,
            near: false,
        },
    ]
}

fn source() -> Source {
    Source {
        repository: "shop".into(),
        base: commit("5b2c"),
    }
}

fn spec() -> RunSpec {
    let mut profiles = profiles().into_iter();
    let (first, second) = (profiles.next().unwrap(), profiles.next().unwrap());
    let plain = |name: &str, depends_on: &[&str], profile: &Profile| TaskSpec {
        name: name.into(),
        depends_on: depends_on.iter().map(|name| Arc::from(*name)).collect(),
        priority: 0,
        paths: Vec::new(),
        profile: profile.clone(),
    };
    RunSpec {
        name: "add-auth-1".into(),
        plan: "add-auth".into(),
        source: Some(source()),
        integrate: Some(IntegrateSpec {
            verify: Some(verify()),
        }),
        max_parallel: NonZeroU32::new(16),
        tasks: vec![
            TaskSpec {
                priority: -5,
                paths: vec!["src/db".into()],
                ..plain("schema", &[], &first)
            },
            plain("lint", &["schema"], &second),
            plain("api", &["schema", "lint"], &first),
        ],
        submitted_by: "ann".into(),
    }
}

fn offer() -> Offer {
    Offer {
        pool: "local".into(),
        slots: 4,
        labels: ["os=linux".into()].into(),
        resources: [("cpus".into(), 16)].into(),
        agents: ["codex".into(), "command".into()].into(),
        host: "laptop".into(),
        allocation: None,
    }
}

fn conflict() -> MergeConflict {
    MergeConflict {
        tasks: vec![TaskIx(1), TaskIx(2)],
        files: vec!["src/db.rs".into(), "ä b.txt".into()],
        detail: "CONFLICT (content)".into(),
    }
}

/// Every kind of event; those of the run number on from 1.
pub(in crate::store) fn events() -> Vec<Event> {
    let (mut run_seq, mut own_seq) = (0, 40);
    kinds()
        .into_iter()
        .zip(0..)
        .map(|(kind, ms)| {
            let seq = match kind.run() {
                Some(_) => &mut run_seq,
                None => &mut own_seq,
            };
            *seq += 1;
            Event {
                seq: *seq,
                at: at(ms),
                kind,
            }
        })
        .collect()
}

fn kinds() -> Vec<EventKind> {
    let mut kinds = run_kinds();
    kinds.extend(task_kinds());
    kinds.extend(lease_kinds());
    kinds
}

fn run_kinds() -> Vec<EventKind> {
    let worker = WorkerId::new("laptop/0");
    let run = RUN;
    vec![
        EventKind::CoordinatorStarted { epoch: EPOCH },
        EventKind::WorkerJoined {
            worker: worker.clone(),
            incarnation: Incarnation(2),
            offer: Arc::new(offer()),
        },
        EventKind::WorkerDraining {
            worker: worker.clone(),
            draining: true,
            by: "ann".into(),
        },
        EventKind::WorkerForgotten { worker },
        EventKind::RunSubmitted {
            run,
            spec: Arc::new(spec()),
            key: Some("key-1".into()),
            digest: "d1".into(),
        },
        EventKind::CancelRequested {
            run,
            by: "ann".into(),
            reason: "wrong plan".into(),
        },
        EventKind::IntegrationStarted { run },
        EventKind::IntegrationMerged {
            run,
            commit: commit("77aa"),
        },
        EventKind::IntegrationConflicted {
            run,
            conflict: conflict(),
        },
        EventKind::RunEnded {
            run,
            outcome: RunOutcome::Succeeded,
        },
        EventKind::RunEnded {
            run,
            outcome: RunOutcome::Failed(failure(FailureClass::IntegrationConflict)),
        },
        EventKind::RunEnded {
            run,
            outcome: RunOutcome::Cancelled { by: "ann".into() },
        },
        EventKind::RunArchived { run },
        EventKind::RunReloaded {
            run,
            image: Arc::new(run_image()),
        },
        EventKind::RunReopened {
            run,
            generation: 1,
            by: "ann".into(),
        },
    ]
}

fn task_kinds() -> Vec<EventKind> {
    let mut kinds = vec![
        EventKind::TaskBasing { task: task(2) },
        EventKind::TaskReady {
            task: task(2),
            base: Some(commit("c0ffee")),
            not_before: at(90),
        },
        EventKind::TaskReady {
            task: task(1),
            base: None,
            not_before: at(91),
        },
        EventKind::TaskSucceeded {
            task: task(0),
            outcome: Outcome::Commit(commit("abc1")),
        },
        EventKind::TaskSucceeded {
            task: task(0),
            outcome: Outcome::NoChange,
        },
        EventKind::TaskSucceeded {
            task: task(0),
            outcome: Outcome::NoRepository,
        },
        EventKind::TaskFailed {
            task: task(1),
            failure: failure(FailureClass::AgentFailed),
        },
        EventKind::TaskSkipped {
            task: task(2),
            because: TaskIx(1),
        },
        EventKind::TaskCancelled {
            task: task(2),
            by: "ann".into(),
            reason: "".into(),
        },
        EventKind::TaskAborted {
            task: task(2),
            reason: "the run was cancelled".into(),
        },
        EventKind::TaskReopened {
            task: task(1),
            generation: 1,
            by: "ann".into(),
        },
    ];
    let first = FailureClass::ALL
        .into_iter()
        .filter(|class| !LATER_CLASSES.contains(class));
    kinds.extend(first.map(|class| EventKind::TaskFailed {
        task: task(1),
        failure: Failure::new(class, "of this class"),
    }));
    kinds
}

fn lease_kinds() -> Vec<EventKind> {
    let run = RUN;
    let lease = LeaseId(99);
    let granted = |work| EventKind::LeaseGranted {
        run,
        lease,
        work,
        worker: WorkerId::new("laptop/0"),
        incarnation: Incarnation(2),
        ttl: Span::from_secs(60),
        placement: Placement::default(),
    };
    let attempt = AttemptNo(1);
    let mut kinds = vec![
        granted(Work::Attempt {
            task: TaskIx(0),
            attempt,
        }),
        granted(Work::Verify {
            task: TaskIx(0),
            attempt,
        }),
        granted(Work::FinalVerify),
        EventKind::WorkStarted { run, lease },
        EventKind::AttemptSucceeded {
            run,
            lease,
            outcome: Outcome::Commit(commit("abc1")),
            usage: usage(),
            summary: "added the table".into(),
        },
        EventKind::AttemptFailed {
            run,
            lease,
            failure: failure(FailureClass::WorkerLost),
            usage: Usage::default(),
            retry_at: Some(at(5_000)),
            blames_host: None,
        },
        EventKind::VerifyPassed { run, lease },
        EventKind::VerifyFailed {
            run,
            lease,
            failure: failure(FailureClass::VerifyFailed),
            retry_at: None,
        },
        EventKind::VerifyLost {
            run,
            lease,
            failure: Failure::new(FailureClass::Preempted, "taken away"),
            retry_at: Some(at(6_000)),
        },
        EventKind::LeaseRevoked { run, lease },
    ];
    kinds.extend(
        [
            LeaseEnd::Confirmed,
            LeaseEnd::Expired,
            LeaseEnd::NeverStarted,
            LeaseEnd::Superseded,
        ]
        .map(|end| EventKind::LeaseClosed { run, lease, end }),
    );
    let question = QuestionId(5);
    kinds.extend([
        EventKind::QuestionAsked {
            run,
            lease,
            question,
            number: 0,
            asking: Arc::new(bare("May I?")),
        },
        EventKind::QuestionAnswered {
            run,
            question,
            choice: "yes".into(),
            text: "".into(),
            by: "ann".into(),
        },
        EventKind::TaskParked {
            run,
            lease,
            question,
        },
    ]);
    kinds
}

fn task_states() -> Vec<TaskState> {
    let attempt = AttemptNo(2);
    vec![
        TaskState::Blocked { unmet: 2 },
        TaskState::Basing { since: at(1) },
        TaskState::Ready {
            since: at(1),
            not_before: at(2),
        },
        TaskState::Leased {
            attempt,
            lease: LeaseId(99),
            awaiting: vec![question(Some("yes"))],
        },
        TaskState::Verifying {
            attempt,
            verify: VerifyPhase::Waiting {
                since: at(3),
                not_before: at(4),
                lost: 1,
            },
        },
        TaskState::Verifying {
            attempt,
            verify: VerifyPhase::Leased {
                lease: LeaseId(100),
                lost: 0,
            },
        },
        TaskState::Parked(Box::new(Parked {
            questions: vec![question(None)],
            resume: attempt,
            affinity: WorkerId::new("laptop/0"),
        })),
        TaskState::Succeeded {
            outcome: Outcome::NoChange,
            at: at(5),
        },
        TaskState::Failed {
            failure: Box::new(failure(FailureClass::TimedOut)),
            at: at(6),
        },
        TaskState::Cancelled {
            by: "ann".into(),
            reason: "no longer needed".into(),
            at: at(7),
        },
        TaskState::Aborted {
            reason: "the run was cancelled".into(),
            at: at(8),
        },
        TaskState::Skipped {
            because: TaskIx(0),
            at: at(9),
        },
    ]
}

fn history() -> History {
    let ends = [
        None,
        Some(AttemptEnd::Made(Outcome::Commit(commit("abc1")))),
        Some(AttemptEnd::Succeeded(Outcome::NoRepository)),
        Some(AttemptEnd::Failed(failure(FailureClass::Stalled))),
        Some(AttemptEnd::VerifyFailed {
            outcome: Outcome::Commit(commit("abc2")),
            failure: failure(FailureClass::VerifyFailed),
        }),
        Some(AttemptEnd::Cancelled),
        Some(AttemptEnd::Parked {
            question: QuestionId(5),
            answer: Some("yes".into()),
        }),
        Some(AttemptEnd::NeverStarted),
    ];
    History {
        base: Some(commit("5b2c")),
        attempts: (1..)
            .zip(ends)
            .map(|(number, end)| Attempt {
                number: AttemptNo(number),
                generation: 0,
                lease: LeaseId(90 + u64::from(number)),
                worker: WorkerId::new("laptop/0"),
                granted_at: at(10),
                started_at: end.as_ref().map(|_| at(11)),
                ended_at: end.as_ref().map(|_| at(12)),
                end,
                paused: Span::from_ms(u64::from(number) - 1),
                waiting_since: None,
                asked: vec![],
                continues: None,
                conversation: None,
                usage: usage(),
                summary: "did it".into(),
            })
            .collect(),
        counted: 1,
        crashes: 2,
        deferrals: 0,
        departures: 0,
        last_failure: Some(failure(FailureClass::Stalled)),
    }
}

/// A run whose tasks stand in every state, with a history that ended in every way.
pub(in crate::store) fn run_image() -> RunImage {
    let tasks = (0..)
        .zip(task_states())
        .map(|(ix, state)| Task {
            name: format!("task-{ix}").into(),
            dependencies: (0..ix).map(TaskIx).take(2).collect(),
            dependents: [TaskIx(ix + 1)]
                .into_iter()
                .filter(|ix| ix.0 < 12)
                .collect(),
            height: 12 - ix,
            priority: if ix == 0 { -5 } else { 0 },
            profile: u16::from(ix > 0),
            paths: [Arc::from("src/db")]
                .into_iter()
                .filter(|_| ix == 0)
                .collect(),
            state,
            generation: ix % 2,
            history: (ix == 3).then(|| Box::new(history())),
        })
        .collect();
    RunImage {
        run: Run {
            id: RUN,
            name: "add-auth-1".into(),
            plan: "add-auth".into(),
            source: Some(source()),
            integrate: Some(IntegrateSpec {
                verify: Some(verify()),
            }),
            max_parallel: NonZeroU32::new(16),
            submitted_by: "ann".into(),
            submitted_at: at(0),
            key: Some("key-1".into()),
            digest: "d1".into(),
            profiles: profiles(),
            tasks,
            phase: RunPhase::Ended {
                outcome: RunOutcome::Failed(failure(FailureClass::IntegrationConflict)),
                integrated: Some(commit("77aa")),
                at: at(100),
            },
            generation: 1,
            last_seq: 4,
            cancel: Some(CancelRequest {
                by: "ann".into(),
                reason: "wrong plan".into(),
                at: at(50),
            }),
            conflict: Some(conflict()),
        },
    }
}

fn small_run(id: u64, phase: RunPhase) -> Run {
    Run {
        id: RunId(id),
        name: format!("small-{id}").into(),
        plan: "small".into(),
        source: None,
        integrate: None,
        max_parallel: None,
        submitted_by: "ann".into(),
        submitted_at: at(id),
        key: None,
        digest: "d2".into(),
        profiles: profiles(),
        tasks: vec![Task {
            name: "only".into(),
            dependencies: Box::default(),
            dependents: Box::default(),
            height: 0,
            priority: 0,
            profile: 1,
            paths: Box::default(),
            state: TaskState::Blocked { unmet: 0 },
            generation: 0,
            history: None,
        }],
        phase,
        generation: 0,
        last_seq: 1,
        cancel: None,
        conflict: None,
    }
}

/// An ended run with one task, and so many events in its history.
pub(in crate::store) fn ended_run(id: u64, last_seq: u64) -> RunImage {
    let phase = RunPhase::Ended {
        outcome: RunOutcome::Succeeded,
        integrated: None,
        at: at(1_000 + id),
    };
    RunImage {
        run: Run {
            last_seq,
            ..small_run(id, phase)
        },
    }
}

/// A state with something of everything.
pub(in crate::store) fn image() -> Image {
    let worker = |id: &str, link| Worker {
        id: WorkerId::new(id),
        incarnation: Incarnation(2),
        offer: Arc::new(offer()),
        draining: false,
        link,
    };
    let lease = |id, work, started_at| Lease {
        id: LeaseId(id),
        run: RUN,
        work,
        worker: WorkerId::new("laptop/0"),
        incarnation: Incarnation(2),
        granted_at: at(20),
        started_at,
        ttl: Span::from_secs(60),
        revoked: started_at.is_none(),
        expires_at: at(75_020),
    };
    let verifying = RunPhase::Verifying {
        commit: commit("77aa"),
        verify: VerifyPhase::Waiting {
            since: at(3),
            not_before: at(4),
            lost: 0,
        },
    };
    Image {
        epoch: EPOCH,
        last_seq: 41,
        next_run: RunId(11),
        next_lease: LeaseId(101),
        next_question: QuestionId(6),
        next_allocation: AllocationId(1),
        pools: BTreeMap::new(),
        allocations: vec![],
        workers: vec![
            worker("laptop/0", Link::Down { since: at(30) }),
            worker(
                "laptop/1",
                Link::Up {
                    session: 8,
                    heartbeat: 31,
                    heard_at: at(31),
                    free_slots: 3,
                    draining: true,
                },
            ),
        ],
        runs: vec![
            run_image().run,
            small_run(8, RunPhase::Active),
            small_run(9, RunPhase::Integrating { since: at(2) }),
            small_run(10, verifying),
        ],
        leases: vec![
            lease(
                99,
                Work::Attempt {
                    task: TaskIx(3),
                    attempt: AttemptNo(2),
                },
                Some(at(21)),
            ),
            lease(100, Work::FinalVerify, None),
        ],
        keys: BTreeMap::from([(
            Arc::from("key-1"),
            KeyUse {
                run: RUN,
                name: "add-auth-1".into(),
                digest: "d1".into(),
            },
        )]),
    }
}
