//! People and their clients: they submit, cancel, retry, drain and answer, and ask again when
//! nobody has answered.

use std::collections::BTreeMap;
use std::sync::Arc;

use coordinator_core::command::Target;
use coordinator_core::pool::PoolCommand;
use coordinator_core::state::RunImage;
use coordinator_core::{Command, QuestionId, Rejection, Reply, RunId, TaskIx, TaskKey, WorkerId};

use crate::coordinator::{Asker, Request};
use crate::scenario::What;
use crate::world::{Checked, Ev, World, tell};

/// How long a client waits for an answer before it asks again.
const AGAIN_MS: u64 = 5_000;
/// How often it asks for things that can be asked for twice.
const TRIES: u32 = 3;

/// A request of an operator.
#[derive(Clone, Debug)]
struct Asked {
    what: Wish,
    tries: u32,
    answered: bool,
}

#[derive(Clone, Debug)]
enum Wish {
    /// The plan of this place; another one under its key.
    Submit(usize, bool),
    Cancel(Target),
    Retry(Target),
    Drain(WorkerId, bool),
    Answer(QuestionId),
    /// Pauses the pool, or lets it go on.
    Pool(bool),
}

/// What operators have asked and been told.
#[derive(Default)]
pub(crate) struct Operators {
    asked: Vec<Asked>,
    /// Runs by the place of their plan.
    pub(crate) runs: BTreeMap<usize, RunId>,
    drained: BTreeMap<WorkerId, bool>,
}

impl World<'_> {
    fn wish_for(&mut self, what: Wish) {
        self.counts.requests += 1;
        self.operators.asked.push(Asked {
            what,
            tries: 0,
            answered: false,
        });
        let nth = self.operators.asked.len() - 1;
        self.ask_again(nth);
    }

    pub(crate) fn submit(&mut self, plan: usize, other: bool) {
        self.wish_for(Wish::Submit(plan, other));
    }

    /// Sends a request, and again until there is an answer.
    pub(crate) fn ask_again(&mut self, nth: usize) {
        let Some(asked) = self.operators.asked.get_mut(nth) else {
            return;
        };
        let submits = matches!(asked.what, Wish::Submit(..));
        if asked.answered || (asked.tries >= TRIES && !submits) {
            return;
        }
        asked.tries += 1;
        let what = asked.what.clone();
        self.push(self.now + AGAIN_MS, Ev::Ask(nth));
        if !self.coordinator.up {
            return;
        }
        let by: Arc<str> = "somebody".into();
        let command = match what {
            Wish::Submit(plan, other) => {
                let Some(plan) = self.scenario.plans.get(plan) else {
                    return;
                };
                let (spec, key, digest) = crate::plan::spec(plan, other);
                Command::Submit {
                    spec,
                    key: Some(key),
                    digest,
                }
            }
            Wish::Cancel(target) => Command::Cancel {
                target,
                by,
                reason: "not wanted".into(),
            },
            Wish::Retry(target) => {
                let run = match target {
                    Target::Run(run) => run,
                    Target::Task(task) => task.run,
                };
                let live = self.coordinator.state.run(run).is_some();
                if !live && let Some(image) = self.store.archive.get(&run) {
                    let image = Arc::clone(image);
                    // Reading takes its time, and others may be quicker meanwhile.
                    let roll = self.roll(31, nth as u64, self.now);
                    let takes = if roll.is_multiple_of(3) {
                        (roll >> 8) % 4_000
                    } else {
                        0
                    };
                    if takes > 0 {
                        self.push(self.now + takes, Ev::Found(nth, image));
                        return;
                    }
                    self.reload(nth, image);
                }
                Command::Retry { target, by }
            }
            Wish::Drain(worker, draining) => Command::Drain {
                worker,
                draining,
                by,
            },
            Wish::Answer(question) => Command::Answer {
                question,
                choice: "yes".into(),
                text: "".into(),
                by,
            },
            Wish::Pool(paused) => {
                let pool: Arc<str> = crate::carrier::POOL.into();
                Command::Pool(if paused {
                    let reason = "it is wanted so".into();
                    PoolCommand::Pause { pool, reason, by }
                } else {
                    PoolCommand::Resume { pool, by }
                })
            }
        };
        self.request(Request::Command(Asker::Operator(nth, true), command));
    }

    fn reload(&mut self, nth: usize, image: Arc<RunImage>) {
        let reload = Command::Reload { image };
        self.request(Request::Command(Asker::Operator(nth, false), reload));
    }

    /// A run that is to be retried was read from the archive.
    pub(crate) fn found(&mut self, nth: usize, image: Arc<RunImage>) {
        let asked = self.operators.asked.get(nth);
        let Some(Wish::Retry(target)) = asked.map(|asked| asked.what.clone()) else {
            return;
        };
        self.reload(nth, image);
        let by: Arc<str> = "somebody".into();
        let command = Command::Retry { target, by };
        self.request(Request::Command(Asker::Operator(nth, true), command));
    }

    /// The answer to a request comes.
    pub(crate) fn answered(&mut self, nth: usize, reply: Result<Reply, Rejection>) -> Checked {
        let Some(asked) = self.operators.asked.get_mut(nth) else {
            return Ok(());
        };
        asked.answered = true;
        let what = asked.what.clone();
        tell!(self, "{what:?} is answered: {reply:?}");
        if let Wish::Submit(plan, other) = what {
            let known = self.operators.runs.get(&plan).copied();
            match reply {
                Ok(Reply::Submitted { run, .. }) if !other => {
                    self.ensure(
                        known.is_none_or(|known| known == run),
                        "a submission under the same key makes no second run",
                        || format!("plan {plan} is {known:?} and {run}"),
                    )?;
                    self.operators.runs.insert(plan, run);
                }
                Err(Rejection::KeyReused { .. }) if other => {}
                reply => {
                    let what = format!("plan {plan} other {other}: {reply:?}");
                    return Err(self.violation("a submission is taken", what));
                }
            }
        }
        Ok(())
    }

    pub(crate) fn operate(&mut self, what: What) {
        let place = |id: u32| self.scenario.plans.iter().position(|plan| plan.id == id);
        let run = |id: u32| {
            let place = place(id)?;
            self.operators.runs.get(&place).copied()
        };
        let task = |plan: u32, id: u32| {
            let run = run(plan)?;
            let tasks = &self.scenario.plans.get(place(plan)?)?.tasks;
            let ix = tasks.iter().position(|task| task.id == id)?;
            let task = TaskIx(u32::try_from(ix).ok()?);
            Some(Target::Task(TaskKey { run, task }))
        };
        let wish = match what {
            What::SubmitAgain { plan, other } => {
                let known = run(plan).is_some();
                place(plan)
                    .filter(|_| known || !other)
                    .map(|place| Wish::Submit(place, other))
            }
            What::CancelRun { plan } => run(plan).map(|run| Wish::Cancel(Target::Run(run))),
            What::CancelTask { plan, task: id } => task(plan, id).map(Wish::Cancel),
            What::RetryRun { plan } => run(plan).map(|run| Wish::Retry(Target::Run(run))),
            What::RetryTask { plan, task: id } => task(plan, id).map(Wish::Retry),
            What::Drain { worker, draining } => {
                let mut hosts = self.hosts.iter().rev();
                let host = hosts.find(|host| host.plan.id == worker);
                host.map(|host| Wish::Drain(host.id.clone(), draining))
            }
            What::Hold { for_ms } => {
                self.coordinator.holding = true;
                self.push(self.now + for_ms, Ev::Unhold);
                None
            }
            What::Answer { wrong } => {
                let question = self.open_question();
                let question = if wrong {
                    Some(QuestionId(77))
                } else {
                    question
                };
                question.map(Wish::Answer)
            }
            What::PausePool { paused } => self.pool().map(|_| Wish::Pool(paused)),
            _ => None,
        };
        if let Some(Wish::Drain(worker, draining)) = &wish {
            self.operators.drained.insert(worker.clone(), *draining);
        }
        if let Some(wish) = wish {
            self.wish_for(wish);
        }
    }

    /// Drained workers may work again, and questions are answered.
    pub(crate) fn calm_operators(&mut self) {
        for asked in &mut self.operators.asked {
            asked.answered |= !matches!(asked.what, Wish::Submit(..));
        }
        let drained: Vec<WorkerId> = self.operators.drained.keys().cloned().collect();
        for worker in drained {
            self.wish_for(Wish::Drain(worker, false));
        }
    }

    /// Lets the pool go on whenever it has paused itself once the world is calm.
    pub(crate) fn resume_pool(&mut self) {
        let pool = self.coordinator.state.pool(crate::carrier::POOL);
        if pool.is_some_and(|pool| pool.paused.is_some() || !pool.quarantined.is_empty()) {
            self.wish_for(Wish::Pool(false));
        }
    }

    /// Answers what is asked once the world is calm.
    pub(crate) fn answer_questions(&mut self) {
        if let Some(question) = self.open_question() {
            self.wish_for(Wish::Answer(question));
        }
    }
}
