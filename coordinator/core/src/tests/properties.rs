//! Random commands on a small world, against a model that knows only the events.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::world::*;
use crate::command::{GitStepFailure, Reply, Report, ReportAnswer, Target};
use crate::event::{Event, EventKind, MergeConflict, Outcome, Usage, Work};
use crate::failure::FailureClass;
use crate::ids::{LeaseId, QuestionId, RunId, TaskIx, TaskKey};
use crate::state::{Lease, RunImage, TaskState};
use crate::time::Span;
use crate::{Command, State, git_work, invariants};

const WORKERS: [&str; 3] = ["u", "v", "w"];

/// One step of a random history. Numbers choose among what there is, also among what is long gone.
#[derive(Clone, Debug)]
enum Op {
    Submit(u64),
    Hello {
        who: usize,
        newer: bool,
        forgets: u8,
    },
    Beat {
        who: usize,
        forgets: u8,
    },
    Close(usize),
    Report {
        lease: u64,
        what: u8,
        thief: bool,
    },
    Cancel {
        run: u64,
        task: Option<u32>,
    },
    Retry {
        run: u64,
        task: Option<u32>,
    },
    Answer(u64),
    Git {
        nth: usize,
        how: u8,
    },
    Archive(u64),
    Reload(usize),
    Pass(u32),
    Drain {
        who: usize,
        draining: bool,
    },
    Restart,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        2 => any::<u64>().prop_map(Op::Submit),
        2 => (0..3usize, any::<bool>(), any::<u8>())
            .prop_map(|(who, newer, forgets)| Op::Hello { who, newer, forgets: forgets % 8 }),
        8 => (0..3usize, any::<u8>())
            .prop_map(|(who, forgets)| Op::Beat { who, forgets: forgets % 8 }),
        1 => (0..3usize).prop_map(Op::Close),
        16 => (any::<u64>(), any::<u8>(), 0..20u8)
            .prop_map(|(lease, what, thief)| Op::Report { lease, what, thief: thief == 0 }),
        1 => (any::<u64>(), proptest::option::weighted(0.8, any::<u32>()))
            .prop_map(|(run, task)| Op::Cancel { run, task }),
        2 => (any::<u64>(), proptest::option::of(any::<u32>()))
            .prop_map(|(run, task)| Op::Retry { run, task }),
        1 => any::<u64>().prop_map(Op::Answer),
        4 => (0..4usize, any::<u8>()).prop_map(|(nth, how)| Op::Git { nth, how }),
        1 => any::<u64>().prop_map(Op::Archive),
        1 => (0..4usize).prop_map(Op::Reload),
        6 => prop_oneof![1u32..2_000, 1_000u32..90_000, 1u32..10_000_000].prop_map(Op::Pass),
        1 => (0..3usize, any::<bool>()).prop_map(|(who, draining)| Op::Drain { who, draining }),
        1 => Just(Op::Restart),
    ];
    proptest::collection::vec(op, 1..80)
}

/// A small random plan; the seed's bits decide.
fn random_plan(seed: u64, name: &str) -> Plan {
    let mut bits = seed;
    let mut next = |n: u64| {
        bits = bits
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (bits >> 33) % n
    };
    let count = 1 + next(6);
    let mut lines = vec![];
    for task in 0..count {
        let dependencies: Vec<String> = (0..task)
            .filter(|_| next(3) == 0)
            .map(|d| format!("t{d}"))
            .collect();
        lines.push(format!("t{task}: {}", dependencies.join(" ")));
    }
    let lines: Vec<&str> = lines.iter().map(|line| &**line).collect();
    let mut made = plan(&lines).named(name);
    for task in &mut made.0.tasks {
        task.priority = i16::try_from(next(2)).unwrap();
        task.profile.retries = u32::try_from(next(3)).unwrap();
        task.profile.verify = (next(3) == 0).then(verify);
        if next(4) == 0 {
            task.profile.requirement = needs("codex");
        }
        if next(4) == 0 {
            task.paths = vec![text(["src", "src/a", "doc", "."][next(4) as usize])];
        }
    }
    if next(5) == 0 {
        made.0.source = None;
    } else if next(2) == 0 {
        made = made.integrated((next(2) == 0).then(verify));
    }
    if next(3) == 0 {
        made = made.parallel(1 + u32::try_from(next(2)).unwrap());
    }
    made
}

/// What must be true of the events alone.
#[derive(Default)]
struct Model {
    /// Leases that are open, with their work and whether their results still count.
    open: BTreeMap<LeaseId, (RunId, Work, bool)>,
    last_lease: u64,
    seqs: BTreeMap<Option<RunId>, u64>,
    succeeded: BTreeSet<TaskKey>,
}

impl Model {
    fn see(&mut self, event: &Event) {
        let seq = self.seqs.entry(event.kind.run()).or_default();
        *seq += 1;
        assert_eq!(event.seq, *seq, "gapless: {event:?}");
        match &event.kind {
            EventKind::LeaseGranted {
                run, lease, work, ..
            } => {
                assert!(lease.0 > self.last_lease, "lease ids grow");
                self.last_lease = lease.0;
                let same = (*run, *work);
                let task = |work: Work| match work {
                    Work::Attempt { task, .. } | Work::Verify { task, .. } => Some(task),
                    Work::FinalVerify => None,
                };
                let twice = self.open.values().any(|(run, work, live)| {
                    *live && *run == same.0 && task(*work) == task(same.1)
                });
                assert!(!twice, "two live leases for {work:?}");
                self.open.insert(*lease, (*run, *work, true));
            }
            EventKind::LeaseRevoked { lease, .. } => {
                self.open
                    .get_mut(lease)
                    .expect("only open leases are revoked")
                    .2 = false;
            }
            EventKind::LeaseClosed { lease, .. } => {
                self.open.remove(lease).expect("a lease closes once");
            }
            EventKind::AttemptSucceeded { lease, .. }
            | EventKind::AttemptFailed { lease, .. }
            | EventKind::VerifyPassed { lease, .. }
            | EventKind::VerifyFailed { lease, .. }
            | EventKind::VerifyLost { lease, .. }
            | EventKind::TaskParked { lease, .. } => {
                assert!(
                    self.open[lease].2,
                    "a late result is never applied: {event:?}"
                );
            }
            EventKind::TaskSucceeded { task, .. } => {
                assert!(self.succeeded.insert(*task), "a task succeeds once");
            }
            EventKind::TaskReopened { task, .. } => {
                assert!(
                    !self.succeeded.contains(task),
                    "what succeeded is never run again"
                );
            }
            EventKind::RunArchived { run } => {
                assert!(
                    self.open.values().all(|(of, ..)| of != run),
                    "a lease outlives its run"
                );
            }
            _ => {}
        }
    }
}

struct Play {
    world: World,
    model: Model,
    seen: usize,
    archive: Vec<Arc<RunImage>>,
    runs: u64,
    incarnations: [u64; 3],
    /// Sometimes the state goes through an image instead of the log.
    through_image: bool,
}

fn report(what: u8, lease: LeaseId) -> Report {
    let classes = FailureClass::ALL;
    match what % 16 {
        0..=2 => Report::Started,
        3..=6 => made(&format!("c{}", lease.0)),
        7 => Report::Succeeded {
            outcome: if what < 128 {
                Outcome::NoChange
            } else {
                Outcome::NoRepository
            },
            usage: Usage::default(),
            summary: "".into(),
        },
        8 | 9 => failed(classes[usize::from(what / 16) % classes.len()]),
        10 => Report::GivenBack {
            failure: failure(classes[usize::from(what / 16) % classes.len()]),
        },
        11..=13 => Report::VerifyPassed,
        14 => Report::Stopped,
        _ if what < 128 => asks(u32::from(what / 32), "q"),
        _ if what < 224 => closes(u32::from(what / 32) - 4, "yes", "agent"),
        _ => Report::ConversationOpened {
            id: format!("c{}", what / 32).into(),
            software: "codex 1".into(),
        },
    }
}

impl Play {
    fn new(through_image: bool) -> Self {
        Self {
            world: World::new(),
            model: Model::default(),
            seen: 0,
            archive: vec![],
            runs: 0,
            incarnations: [1; 3],
            through_image,
        }
    }

    /// Runs one command; a refusal must change nothing.
    fn run(&mut self, command: &Command) -> Option<Reply> {
        let reply = self.world.try_act(command).ok().map(|(_, reply)| reply);
        for event in &self.world.log[self.seen..] {
            self.model.see(event);
        }
        self.seen = self.world.log.len();
        reply
    }

    fn held(&self, who: usize, forgets: u8) -> Vec<LeaseId> {
        let id = worker(WORKERS[who]);
        let leases = self.world.state.leases_of_worker(&id);
        let kept = leases
            .enumerate()
            .filter(|(nth, _)| u64::from(forgets) != *nth as u64);
        kept.map(|(_, lease)| lease.id).collect()
    }

    fn target(&self, run: u64, task: Option<u32>) -> Target {
        let run = RunId(run % (self.runs + 2));
        task.map_or(Target::Run(run), |task| {
            let task = TaskIx(task % 7);
            Target::Task(TaskKey { run, task })
        })
    }

    fn play(&mut self, op: &Op) {
        let by = text("me");
        match op {
            Op::Submit(seed) => {
                self.runs += 1;
                let name = format!("run-{}", self.runs);
                let command = Command::Submit {
                    spec: Arc::new(random_plan(*seed, &name).0),
                    key: seed
                        .is_multiple_of(3)
                        .then(|| text(&format!("key-{}", seed % 5))),
                    digest: text(&format!("digest-{}", seed % 2)),
                };
                self.run(&command);
            }
            Op::Hello {
                who,
                newer,
                forgets,
            } => {
                self.incarnations[*who] += u64::from(*newer);
                let held = self.held(*who, *forgets);
                let (name, incarnation) = (WORKERS[*who], self.incarnations[*who]);
                self.world
                    .hello_with(name, incarnation, offer(1 + *who as u32), held);
                self.run(&Command::Tick);
            }
            Op::Beat { who, forgets } => {
                let held = self.held(*who, *forgets);
                if let Some(command) = self.world.heartbeat(WORKERS[*who], held) {
                    self.run(&command);
                }
            }
            Op::Close(who) => {
                if self.world.state.worker(&worker(WORKERS[*who])).is_some() {
                    self.world.close(WORKERS[*who]);
                }
            }
            Op::Report { lease, what, thief } => self.report(*lease, *what, *thief),
            Op::Cancel { run, task } => {
                let (target, reason) = (self.target(*run, *task), "enough".into());
                self.run(&Command::Cancel { target, by, reason });
            }
            Op::Retry { run, task } => self.retry(self.target(*run, *task)),
            Op::Answer(question) => {
                let question = QuestionId(question % 8);
                self.run(&Command::Answer {
                    question,
                    choice: "yes".into(),
                    text: "".into(),
                    by,
                });
            }
            Op::Git { nth, how } => {
                let steps = git_work(&self.world.state);
                if let Some(wanted) = steps.get(*nth) {
                    let conflict = MergeConflict {
                        tasks: vec![TaskIx(0), TaskIx(99)],
                        files: vec!["f".into()],
                        detail: "".into(),
                    };
                    let result = match how % 8 {
                        0 => Err(GitStepFailure::Conflict(conflict)),
                        1 => Err(GitStepFailure::Error("no space".into())),
                        _ => Ok(()),
                    };
                    self.run(&merged(wanted, result));
                }
            }
            Op::Archive(run) => {
                let run = RunId(run % (self.runs + 2));
                if let Some(image) = self.world.state.run_image(run) {
                    let last_seq = image.run.last_seq;
                    if self.run(&Command::Archived { run, last_seq }).is_some() {
                        self.archive.push(Arc::new(image));
                    }
                }
            }
            Op::Reload(nth) => {
                if let Some(image) = self.archive.get(*nth).cloned()
                    && self.run(&Command::Reload { image }).is_some()
                {
                    self.archive.remove(*nth);
                }
            }
            Op::Pass(ms) => self.world.pass(Span::from_ms(u64::from(*ms))),
            Op::Drain { who, draining } => {
                let (worker, draining) = (worker(WORKERS[*who]), *draining);
                self.run(&Command::Drain {
                    worker,
                    draining,
                    by,
                });
            }
            Op::Restart => {
                if self.through_image {
                    let image = self.world.state.image();
                    let state = State::from_image(image.clone(), self.world.now).unwrap();
                    assert_eq!(state.image(), image);
                    self.world.state = state;
                } else {
                    self.world.restart();
                }
            }
        }
        self.run(&Command::Tick);
    }

    fn report(&mut self, nth: u64, what: u8, thief: bool) {
        let open: Vec<LeaseId> = self.model.open.keys().copied().collect();
        // Mostly an open lease, now and then any other number.
        let lease = if nth.is_multiple_of(8) || open.is_empty() {
            LeaseId(nth / 8 % (self.model.last_lease + 2))
        } else {
            open[(nth / 8) as usize % open.len()]
        };
        let owner = self
            .world
            .state
            .lease(lease)
            .map(|lease| lease.worker.clone());
        let mine = owner.is_some() && !thief;
        let worker = if thief {
            worker("x")
        } else {
            owner.unwrap_or(worker("u"))
        };
        let report = report(what, lease);
        let live = mine && self.model.open.get(&lease).is_some_and(|(.., live)| *live);
        let before = self.world.log.len();
        let reply = self.run(&Command::Report {
            worker,
            lease,
            report: report.clone(),
        });
        let Some(Reply::Report(answer)) = reply else {
            panic!("a report is always answered");
        };
        let counts = live || (mine && report == Report::Stopped);
        if !counts {
            assert_ne!(answer, ReportAnswer::Recorded, "{lease}: {report:?}");
            assert_eq!(
                self.world.log.len(),
                before,
                "nothing comes of a stale report"
            );
        }
    }

    /// Compares what a retry reopens with what the rule says, worked out the slow way.
    fn retry(&mut self, target: Target) {
        let (run, task) = match target {
            Target::Run(run) => (run, None),
            Target::Task(key) => (key.run, Some(key.task)),
        };
        let expected = self.world.state.run(run).map(|run| {
            let lacking = |ix: TaskIx| {
                let state = &run.task(ix).unwrap().state;
                state.is_final() && !state.is_succeeded()
            };
            let all: BTreeSet<TaskIx> = run
                .indexed()
                .map(|(ix, _)| ix)
                .filter(|ix| lacking(*ix))
                .collect();
            let Some(task) = task else {
                return all;
            };
            let mut reopened = BTreeSet::from([task]);
            loop {
                let more: Vec<TaskIx> = run
                    .indexed()
                    .filter(|(ix, task)| {
                        !reopened.contains(ix)
                            && matches!(task.state, TaskState::Skipped { .. })
                            && task.dependencies.iter().any(|d| reopened.contains(d))
                            && task
                                .dependencies
                                .iter()
                                .all(|d| reopened.contains(d) || !lacking(*d))
                    })
                    .map(|(ix, _)| ix)
                    .collect();
                if more.is_empty() {
                    return reopened;
                }
                reopened.extend(more);
            }
        });
        let before = self.world.log.len();
        let by = text("me");
        if self.run(&Command::Retry { target, by }).is_some() {
            let reopened: BTreeSet<TaskIx> = self.world.log[before..]
                .iter()
                .filter_map(|event| match event.kind {
                    EventKind::TaskReopened { task, .. } => Some(task.task),
                    _ => None,
                })
                .collect();
            assert_eq!(Some(reopened), expected);
        }
    }

    /// From now on everybody behaves; then every run must end.
    fn behave(&mut self) {
        for (who, name) in WORKERS.into_iter().enumerate() {
            self.incarnations[who] += 1;
            self.world
                .hello_with(name, self.incarnations[who], offer(4), vec![]);
            let (worker, draining, by) = (worker(name), false, text("me"));
            self.run(&Command::Drain {
                worker,
                draining,
                by,
            });
        }
        for _ in 0..400 {
            if self.world.state.runs().all(crate::state::Run::is_ended) {
                return;
            }
            for name in WORKERS {
                let id = worker(name);
                let leases: Vec<Lease> = self.world.state.leases_of_worker(&id).cloned().collect();
                for lease in leases {
                    self.finish(&lease);
                }
                let command = self
                    .world
                    .heartbeat(name, vec![])
                    .expect("it has a session");
                self.run(&command);
            }
            for wanted in git_work(&self.world.state) {
                self.run(&merged(&wanted, Ok(())));
            }
            let questions: Vec<QuestionId> = self
                .world
                .state
                .questions()
                .map(|(_, question)| question.id)
                .collect();
            for question in questions {
                self.run(&Command::Answer {
                    question,
                    choice: "yes".into(),
                    text: "".into(),
                    by: text("me"),
                });
            }
            self.world.pass(Span::from_secs(5));
        }
        let open: Vec<String> = self
            .world
            .state
            .runs()
            .map(|run| self.world.states(run.id))
            .collect();
        panic!("some run never ends: {open:#?}");
    }

    fn finish(&mut self, lease: &Lease) {
        let repository = self.world.state.run(lease.run).unwrap().source.is_some();
        let report = match lease.work {
            _ if lease.revoked => Report::Stopped,
            Work::Attempt { .. } if repository => made(&format!("c{}", lease.id.0)),
            Work::Attempt { .. } => Report::Succeeded {
                outcome: Outcome::NoRepository,
                usage: Usage::default(),
                summary: "".into(),
            },
            Work::Verify { .. } | Work::FinalVerify => Report::VerifyPassed,
        };
        let answer = self.world.say(lease, report);
        assert_eq!(answer, ReportAnswer::Recorded);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_state_holds_together_and_replays(
        ops in ops(),
        through_image in any::<bool>(),
    ) {
        let mut play = Play::new(through_image);
        for op in &ops {
            play.play(op);
        }
        play.world.replayed();
        let image = play.world.state.image();
        let state = State::from_image(image.clone(), play.world.now).unwrap();
        prop_assert_eq!(state.image(), image);
        play.behave();
        play.world.replayed();
    }

    #[test]
    fn a_log_with_an_event_left_out_is_refused(ops in ops(), cut in any::<proptest::sample::Index>()) {
        let mut play = Play::new(false);
        for op in &ops {
            play.play(op);
        }
        let mut log = play.world.log.clone();
        if log.is_empty() {
            return Ok(());
        }
        let left_out = log.remove(cut.index(log.len()));
        let mut state = State::new();
        let refused = log.iter().any(|event| state.replay(event).is_err());
        let last = log.iter().all(|event| event.kind.run() != left_out.kind.run()
            || event.seq < left_out.seq);
        prop_assert!(refused || last, "{left_out:?} is not missed");
    }

    #[test]
    fn every_batch_of_the_log_ends_in_a_state_that_holds_together(ops in ops()) {
        let mut play = Play::new(false);
        for op in ops.iter().filter(|op| !matches!(op, Op::Restart)) {
            play.play(op);
        }
        let mut state = State::new();
        let mut batches = play.world.batches.iter().peekable();
        for (nth, event) in play.world.log.iter().enumerate() {
            state.replay(event).unwrap();
            while batches.next_if(|end| **end <= nth + 1).is_some() {}
            if play.world.batches.contains(&(nth + 1)) {
                prop_assert_eq!(invariants::check(&state), Ok(()));
            }
        }
    }
}
