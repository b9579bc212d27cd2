//! A coordinator's state with a clock and a log, and short words for what happens to it.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;

use crate::command::{
    GitStepFailure, Heartbeat, Hello, Rejection, Reply, Report, ReportAnswer, Target, Verdict,
};
use crate::event::{Event, EventKind, Outcome, Usage, Work};
use crate::failure::{Failure, FailureClass};
use crate::ids::{
    CommitId, Epoch, Incarnation, LeaseId, QuestionId, RunId, TaskIx, TaskKey, WorkerId,
};
use crate::plan::{IntegrateSpec, Profile, RunSpec, Source, TaskSpec, VerifySpec};
use crate::question::{Asking, Choice, ChoiceEffect};
use crate::state::{Lease, RunPhase, TaskState};
use crate::time::{Span, Timestamp};
use crate::worker::{Offer, Requirement};
use crate::{Command, GitStep, State, git_work, invariants, next_wakeup, schedule, step};

pub(crate) struct World {
    pub(crate) state: State,
    pub(crate) now: Timestamp,
    pub(crate) log: Vec<Event>,
    /// Log length after each batch.
    pub(crate) batches: Vec<usize>,
    session: u64,
    beats: u64,
}

/// A plan to be written down quickly.
pub(crate) struct Plan(pub(crate) RunSpec);

pub(crate) fn text(text: &str) -> Arc<str> {
    Arc::from(text)
}

pub(crate) fn worker(name: &str) -> WorkerId {
    WorkerId::new(name)
}

pub(crate) fn commit(text: &str) -> CommitId {
    CommitId::new(text)
}

pub(crate) fn needs(agent: &str) -> Requirement {
    Requirement {
        agent: text(agent),
        ..Requirement::default()
    }
}

pub(crate) fn verify() -> VerifySpec {
    VerifySpec {
        timeout: Span::from_secs(60),
        requirement: needs("command"),
    }
}

pub(crate) fn failure(class: FailureClass) -> Failure {
    Failure::new(class, "it did not work")
}

pub(crate) fn profile() -> Profile {
    Profile {
        requirement: needs("command"),
        retries: 0,
        timeout: Span::from_secs(600),
        verify: None,
        backoff: Span::from_secs(1),
        resumes: false,
        near: false,
    }
}

/// Makes a plan of tasks `"name"` or `"name: dependency dependency"`, with a repository.
pub(crate) fn plan(tasks: &[&str]) -> Plan {
    let task = |line: &&str| {
        let (name, dependencies) = line.split_once(':').unwrap_or((line, ""));
        TaskSpec {
            name: text(name),
            depends_on: dependencies.split_whitespace().map(text).collect(),
            priority: 0,
            paths: vec![],
            profile: profile(),
        }
    };
    Plan(RunSpec {
        name: text("run-1"),
        plan: text("plan"),
        source: Some(Source {
            repository: text("repo"),
            base: commit("base"),
        }),
        integrate: None,
        max_parallel: None,
        tasks: tasks.iter().map(task).collect(),
        submitted_by: text("me"),
    })
}

impl Plan {
    pub(crate) fn named(mut self, name: &str) -> Self {
        self.0.name = text(name);
        self
    }

    pub(crate) fn each(mut self, change: impl Fn(&mut TaskSpec)) -> Self {
        self.0.tasks.iter_mut().for_each(change);
        self
    }

    pub(crate) fn retries(self, retries: u32) -> Self {
        self.each(|task| task.profile.retries = retries)
    }

    pub(crate) fn verified(self) -> Self {
        self.each(|task| task.profile.verify = Some(verify()))
    }

    pub(crate) fn integrated(mut self, verify: Option<VerifySpec>) -> Self {
        self.0.integrate = Some(IntegrateSpec { verify });
        self
    }

    pub(crate) fn parallel(mut self, max: u32) -> Self {
        self.0.max_parallel = NonZeroU32::new(max);
        self
    }

    pub(crate) fn paths(mut self, task: usize, paths: &[&str]) -> Self {
        self.0.tasks[task].paths = paths.iter().map(|path| text(path)).collect();
        self
    }
}

pub(crate) fn offer(slots: u32) -> Offer {
    Offer {
        pool: text("local"),
        slots,
        agents: ["command", "codex"]
            .iter()
            .map(|agent| text(agent))
            .collect(),
        host: text("here"),
        ..Offer::default()
    }
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            state: State::new(),
            now: Timestamp::from_ms(1_000_000),
            log: vec![],
            batches: vec![],
            session: 0,
            beats: 0,
        }
    }

    /// Runs one batch: the command, its consequences, a round of grants. Checks every invariant.
    pub(crate) fn try_act(&mut self, command: &Command) -> Result<(Vec<Event>, Reply), Rejection> {
        let result = step(&mut self.state, self.now, command);
        let (mut events, reply) = match result {
            Ok(step) => (step.events, Ok(step.reply)),
            Err(rejection) => (vec![], Err(rejection)),
        };
        events.extend(schedule(&mut self.state, self.now));
        self.log.extend(events.iter().cloned());
        self.batches.push(self.log.len());
        if let Err(what) = invariants::check(&self.state) {
            panic!("after {command:?}: {what}\n{:#?}", events);
        }
        reply.map(|reply| (events, reply))
    }

    pub(crate) fn act(&mut self, command: &Command) -> Vec<Event> {
        match self.try_act(command) {
            Ok((events, _)) => events,
            Err(rejection) => panic!("{command:?} is refused: {rejection}"),
        }
    }

    pub(crate) fn refused(&mut self, command: &Command) -> Rejection {
        self.try_act(command).expect_err("the command is refused")
    }

    pub(crate) fn submit(&mut self, plan: Plan) -> RunId {
        let command = Command::Submit {
            spec: Arc::new(plan.0),
            key: None,
            digest: text("digest"),
        };
        match self.try_act(&command) {
            Ok((_, Reply::Submitted { run, fresh: true })) => run,
            other => panic!("not submitted: {other:?}"),
        }
    }

    /// Opens a session in which the worker holds what the coordinator thinks it holds.
    pub(crate) fn hello(&mut self, name: &str, incarnation: u64, offer: Offer) {
        let leases = self.state.leases_of_worker(&worker(name));
        let held = leases.map(|lease| lease.id).collect();
        self.hello_with(name, incarnation, offer, held);
    }

    pub(crate) fn hello_with(
        &mut self,
        name: &str,
        incarnation: u64,
        offer: Offer,
        held: Vec<LeaseId>,
    ) -> Vec<(LeaseId, Verdict)> {
        self.session += 1;
        let hello = Hello {
            worker: worker(name),
            incarnation: Incarnation(incarnation),
            session: self.session,
            number: self.session,
            offer: Arc::new(offer),
            held,
            draining: false,
            time_left: None,
        };
        match self.try_act(&Command::Hello(hello)) {
            Ok((_, Reply::Welcome { verdicts })) => verdicts.into_iter().collect(),
            other => panic!("no welcome: {other:?}"),
        }
    }

    /// A worker that counts its hellos comes back.
    pub(crate) fn hello_numbered(&mut self, name: &str, number: u64, held: Vec<LeaseId>) {
        self.session = self.session.max(number - 1);
        self.hello_with(name, 1, offer(1), held);
    }

    /// A worker with room joins and says how much of it is free.
    pub(crate) fn join(&mut self, name: &str, slots: u32) {
        self.hello(name, 1, offer(slots));
        self.beat(name);
    }

    /// A heartbeat of a worker that holds what the coordinator thinks it holds.
    pub(crate) fn beat(&mut self, name: &str) -> Vec<Event> {
        let leases = self.state.leases_of_worker(&worker(name));
        let held: Vec<LeaseId> = leases.map(|lease| lease.id).collect();
        self.beat_with(name, held)
    }

    pub(crate) fn beat_with(&mut self, name: &str, held: Vec<LeaseId>) -> Vec<Event> {
        let command = self
            .heartbeat(name, held)
            .expect("the worker has a session");
        self.act(&command)
    }

    /// Makes a heartbeat in the worker's present session.
    pub(crate) fn heartbeat(&mut self, name: &str, held: Vec<LeaseId>) -> Option<Command> {
        let known = self.state.worker(&worker(name))?;
        let crate::state::Link::Up { session, .. } = known.link else {
            return None;
        };
        self.beats += 1;
        let used = u32::try_from(held.len()).unwrap();
        Some(Command::Heartbeat(Heartbeat {
            worker: worker(name),
            incarnation: known.incarnation,
            session,
            seq: self.beats,
            free_slots: known.offer.slots.saturating_sub(used),
            held,
            draining: false,
            time_left: None,
            looked: None,
        }))
    }

    pub(crate) fn close(&mut self, name: &str) {
        let known = self.state.worker(&worker(name)).unwrap();
        let crate::state::Link::Up { session, .. } = known.link else {
            return;
        };
        let incarnation = known.incarnation;
        self.act(&Command::SessionClosed {
            worker: worker(name),
            incarnation,
            session,
        });
    }

    /// Lets time pass, with every deadline handled when it is due.
    pub(crate) fn pass(&mut self, span: Span) {
        let end = self.now + span;
        let (mut last, mut repeats) = (Timestamp::default(), 0);
        while let Some((at, why)) = next_wakeup(&self.state).filter(|(at, _)| *at <= end) {
            repeats = if at > last { 0 } else { repeats + 1 };
            assert!(repeats < 100, "{why:?} is due again and again");
            last = last.max(at);
            self.now = self.now.max(at);
            self.act(&Command::Tick);
        }
        self.now = end;
        self.act(&Command::Tick);
    }

    /// Lets time pass while the workers go on beating.
    pub(crate) fn pass_beating(&mut self, span: Span, names: &[&str]) {
        let end = self.now + span;
        while self.now < end {
            let left = end.since(self.now).ms();
            self.pass(Span::from_ms(left.min(10_000)));
            for name in names {
                self.beat(name);
            }
        }
    }

    pub(crate) fn say(&mut self, lease: &Lease, report: Report) -> ReportAnswer {
        let command = Command::Report {
            worker: lease.worker.clone(),
            lease: lease.id,
            report,
        };
        match self.try_act(&command) {
            Ok((_, Reply::Report(answer))) => answer,
            other => panic!("no answer: {other:?}"),
        }
    }

    pub(crate) fn started(&mut self, lease: &Lease) {
        assert_eq!(self.say(lease, Report::Started), ReportAnswer::Recorded);
    }

    pub(crate) fn succeed(&mut self, lease: &Lease) {
        let report = match lease.work {
            Work::Attempt { task, attempt } => made(&format!("c-{task}-{attempt}")),
            Work::Verify { .. } | Work::FinalVerify => Report::VerifyPassed,
        };
        assert_eq!(self.say(lease, report), ReportAnswer::Recorded);
        self.beat(lease.worker.as_str());
    }

    pub(crate) fn fail(&mut self, lease: &Lease, class: FailureClass) {
        let report = failed(class);
        assert_eq!(self.say(lease, report), ReportAnswer::Recorded);
        self.beat(lease.worker.as_str());
    }

    /// The live leases in the order of their grants.
    pub(crate) fn live(&self) -> Vec<Lease> {
        let live = self.state.leases().filter(|lease| !lease.revoked);
        live.cloned().collect()
    }

    /// The one live lease.
    pub(crate) fn only(&self) -> Lease {
        let live = self.live();
        assert_eq!(live.len(), 1, "live: {live:?}");
        live[0].clone()
    }

    /// Names of the tasks that have live leases, in plan order; verifies in parentheses.
    pub(crate) fn at_work(&self) -> Vec<String> {
        let mut names: Vec<(RunId, String)> = vec![];
        for lease in self.live() {
            let name = |ix| {
                self.state
                    .run(lease.run)
                    .unwrap()
                    .task(ix)
                    .unwrap()
                    .name
                    .to_string()
            };
            names.push((
                lease.run,
                match lease.work {
                    Work::Attempt { task, .. } => name(task),
                    Work::Verify { task, .. } => format!("({})", name(task)),
                    Work::FinalVerify => "(final)".into(),
                },
            ));
        }
        names.sort();
        names.into_iter().map(|(_, name)| name).collect()
    }

    pub(crate) fn key(&self, run: RunId, name: &str) -> TaskKey {
        let run = self.state.run(run).unwrap();
        let found = run.indexed().find(|(_, task)| &*task.name == name);
        let (task, _) = found.unwrap_or_else(|| panic!("no task {name}"));
        TaskKey { run: run.id, task }
    }

    pub(crate) fn task_state(&self, run: RunId, name: &str) -> &TaskState {
        &self.state.task(self.key(run, name)).unwrap().state
    }

    /// States of all tasks as `name=state`.
    pub(crate) fn states(&self, run: RunId) -> String {
        let tasks = self.state.run(run).unwrap().tasks.iter();
        let states: Vec<String> = tasks
            .map(|task| format!("{}={}", task.name, task.state.name()))
            .collect();
        states.join(" ")
    }

    pub(crate) fn phase(&self, run: RunId) -> &RunPhase {
        &self.state.run(run).unwrap().phase
    }

    /// Makes every merge that is wanted.
    pub(crate) fn merge_all(&mut self) {
        for git_step in git_work(&self.state) {
            let command = merged(&git_step, Ok(()));
            self.act(&command);
        }
    }

    pub(crate) fn cancel(&mut self, target: Target) -> Vec<Event> {
        self.act(&Command::Cancel {
            target,
            by: text("me"),
            reason: "enough".into(),
        })
    }

    pub(crate) fn archived(&self, run: RunId) -> Command {
        let last_seq = self.state.run(run).unwrap().last_seq;
        Command::Archived { run, last_seq }
    }

    pub(crate) fn retry(&mut self, target: Target) -> usize {
        let command = Command::Retry {
            target,
            by: text("me"),
        };
        match self.try_act(&command) {
            Ok((_, Reply::Touched { tasks })) => tasks,
            other => panic!("not retried: {other:?}"),
        }
    }

    /// Replays the whole log and compares with the living state after each batch.
    pub(crate) fn replayed(&self) -> State {
        let mut state = State::new();
        for event in &self.log {
            state.replay(event).expect("the log replays");
        }
        assert_eq!(state.image(), self.state.image());
        state
    }

    /// Kills the coordinator and starts another one on the log.
    pub(crate) fn restart(&mut self) {
        let mut state = self.replayed();
        let epoch = Epoch(state.epoch().0 + 1);
        let events = state.start(self.now, epoch);
        self.log.extend(events);
        self.state = state;
        invariants::check(&self.state).expect("the state holds together after a restart");
    }
}

pub(crate) fn made(text: &str) -> Report {
    Report::Succeeded {
        outcome: Outcome::Commit(commit(text)),
        usage: Usage::default(),
        summary: "done".into(),
    }
}

/// A question with choices `yes`, `no` and, in words, `say`.
pub(crate) fn asking(title: &str) -> Asking {
    let choice = |id: &str, effect| Choice {
        id: id.into(),
        label: id.into(),
        effect,
        rule: "".into(),
    };
    Asking {
        kind: "command".into(),
        title: title.into(),
        detail: "rm -r build".into(),
        reason: "".into(),
        folder: "".into(),
        choices: [
            choice("yes", ChoiceEffect::AllowOnce),
            choice("no", ChoiceEffect::Deny),
            choice("say", ChoiceEffect::Text),
        ]
        .into(),
    }
}

pub(crate) fn asks(number: u32, title: &str) -> Report {
    let asking = Arc::new(asking(title));
    Report::Asked { number, asking }
}

pub(crate) fn closes(number: u32, choice: &str, by: &str) -> Report {
    Report::QuestionClosed {
        number,
        choice: choice.into(),
        by: by.into(),
        earlier: None,
    }
}

pub(crate) fn converses(id: &str) -> Report {
    Report::ConversationOpened {
        id: id.into(),
        software: "codex 0.30".into(),
    }
}

/// What a worker on another host offers.
pub(crate) fn elsewhere(slots: u32) -> Offer {
    Offer {
        host: text("elsewhere"),
        ..offer(slots)
    }
}

/// Says yes or no.
pub(crate) fn answers(question: QuestionId, choice: &str) -> Command {
    Command::Answer {
        question,
        choice: choice.into(),
        text: "".into(),
        by: text("me"),
    }
}

pub(crate) fn failed(class: FailureClass) -> Report {
    Report::Failed {
        failure: failure(class),
        usage: Usage::default(),
    }
}

/// Answers a git step with a commit named after what it merges, or with a failure.
pub(crate) fn merged(git_step: &GitStep, result: Result<(), GitStepFailure>) -> Command {
    let name = |commits: &[(TaskIx, CommitId)]| {
        let commits: Vec<&str> = commits.iter().map(|(_, commit)| commit.as_str()).collect();
        commit(&format!("merge({})", commits.join("+")))
    };
    match git_step {
        GitStep::Base {
            task,
            generation,
            commits,
            ..
        } => Command::BaseMade {
            task: *task,
            generation: *generation,
            result: result.map(|()| name(commits)),
        },
        GitStep::Integration {
            run,
            generation,
            commits,
            ..
        } => Command::IntegrationMade {
            run: *run,
            generation: *generation,
            result: result.map(|()| name(commits)),
        },
    }
}

pub(crate) fn kinds(events: &[Event]) -> Vec<&'static str> {
    events.iter().map(|event| kind_name(&event.kind)).collect()
}

pub(crate) fn labels(list: &[&str]) -> BTreeSet<Arc<str>> {
    list.iter().map(|label| text(label)).collect()
}

fn kind_name(kind: &EventKind) -> &'static str {
    match kind {
        EventKind::CoordinatorStarted { .. } => "started",
        EventKind::WorkerJoined { .. } => "joined",
        EventKind::WorkerDraining { .. } => "draining",
        EventKind::WorkerForgotten { .. } => "forgotten",
        EventKind::Pool(event) => event.name(),
        EventKind::RunSubmitted { .. } => "submitted",
        EventKind::CancelRequested { .. } => "cancel",
        EventKind::IntegrationStarted { .. } => "integrating",
        EventKind::IntegrationMerged { .. } => "merged",
        EventKind::IntegrationConflicted { .. } => "conflict",
        EventKind::RunEnded { .. } => "ended",
        EventKind::RunReopened { .. } => "run-reopened",
        EventKind::RunArchived { .. } => "archived",
        EventKind::RunReloaded { .. } => "reloaded",
        EventKind::TaskBasing { .. } => "basing",
        EventKind::TaskReady { .. } => "ready",
        EventKind::TaskSucceeded { .. } => "succeeded",
        EventKind::TaskFailed { .. } => "failed",
        EventKind::TaskSkipped { .. } => "skipped",
        EventKind::TaskCancelled { .. } => "cancelled",
        EventKind::TaskAborted { .. } => "aborted",
        EventKind::TaskReopened { .. } => "reopened",
        EventKind::LeaseGranted { .. } => "granted",
        EventKind::WorkStarted { .. } => "work",
        EventKind::AttemptSucceeded { .. } => "made",
        EventKind::AttemptFailed { .. } => "attempt-failed",
        EventKind::VerifyPassed { .. } => "verified",
        EventKind::VerifyFailed { .. } => "verify-failed",
        EventKind::VerifyLost { .. } => "verify-lost",
        EventKind::LeaseRevoked { .. } => "revoked",
        EventKind::LeaseClosed { .. } => "closed",
        EventKind::QuestionAsked { .. } => "asked",
        EventKind::QuestionAnswered { .. } => "answered",
        EventKind::QuestionClosed { .. } => "closed_question",
        EventKind::ConversationOpened { .. } => "conversation",
        EventKind::TaskParked { .. } => "parked",
    }
}
