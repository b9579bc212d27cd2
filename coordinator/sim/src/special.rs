//! Worlds about one thing each: small ones in which everything is aimed at places that a standard
//! world seldom comes to.

mod rare;

use crate::random::{Random, mix};
use crate::scenario::{
    Agent, CrashPoint, Deed, DeedEnd, Found, Happening, Integrate, Merge, Moment, Scenario,
    TaskPlan, What, When,
};

/// How many of a thousand worlds are special.
const SHARE: u64 = 250;
const DAY_MS: u64 = 24 * 3_600_000;

/// Makes some worlds special ones; the others stay as they are.
/// Tells whether it did.
pub(crate) fn specialize(scenario: &mut Scenario) -> bool {
    let mut random = Random::new(mix(scenario.seed ^ 0x5bec_1a1e));
    if !random.per_mille(SHARE) {
        return false;
    }
    let mut special = Special { scenario, random };
    special.become_small();
    match special.random.below(35) {
        0..=2 => special.merges(),
        3 => special.merges_beyond_their_deadline(),
        4..=7 => special.finals(),
        8..=10 => special.questions(),
        11..=13 => special.twins(),
        14..=15 => special.days(),
        16..=20 => special.lying_verifies(),
        21..=22 => special.lying_questions(),
        23..=24 => special.leaves_and_cancels(),
        25 => special.late_requests(),
        26 => special.twin_finals(),
        27 => special.orphans(),
        28..=30 => special.late_merges(),
        31 => special.parked(),
        32..=33 => special.late_answers(),
        _ => special.outgrown(),
    }
    true
}

struct Special<'s> {
    scenario: &'s mut Scenario,
    random: Random,
}

impl Special<'_> {
    /// Leaves one plan of a few quick tasks and two workers, and nothing that happens to them.
    fn become_small(&mut self) {
        let random = &mut self.random;
        let scenario = &mut *self.scenario;
        scenario.happenings.clear();
        scenario.weather.clear();
        scenario.plans.truncate(1);
        scenario.workers.truncate(2);
        for plan in &mut scenario.plans {
            let count = random.between(2, 4) as u32;
            plan.at_ms = 10_000;
            plan.repository = true;
            plan.max_parallel = None;
            plan.integrate = None;
            plan.tasks = (0..count).map(|id| task(random, id)).collect();
        }
        for worker in &mut scenario.workers {
            worker.at_ms = 0;
            worker.slots = random.between(2, 4) as u32;
            worker.agents = vec![Agent::Command, Agent::Codex];
            worker.lies_per_mille = 0;
        }
    }

    fn add(&mut self, when: When, what: What) {
        self.scenario.happenings.push(Happening { when, what });
    }

    fn after(&mut self, moment: Moment, nth: u32, ms: u64, what: What) {
        self.add(When::After { moment, nth, ms }, what);
    }

    fn tasks(&self) -> u32 {
        let plan = self.scenario.plans.first();
        plan.map_or(0, |plan| u32::try_from(plan.tasks.len()).unwrap_or(0))
    }

    /// The last task needs all others, so its base is merged.
    fn join(&mut self) {
        let base = self.merge();
        for plan in &mut self.scenario.plans {
            let others: Vec<u32> = plan
                .tasks
                .iter()
                .rev()
                .skip(1)
                .map(|task| task.id)
                .collect();
            if let Some(last) = plan.tasks.last_mut() {
                last.depends_on = others;
                last.base.clone_from(&base);
            }
        }
    }

    fn merge(&mut self) -> Vec<Merge> {
        let kinds = [Merge::Clean, Merge::Clean, Merge::Conflict, Merge::Error];
        let mut any = || self.random.pick(&kinds).unwrap_or(Merge::Clean);
        vec![any(), any()]
    }

    fn integrate(&mut self, verify: &[Found], merge: &[Merge]) {
        for plan in &mut self.scenario.plans {
            plan.integrate = Some(Integrate {
                verify: verify.to_vec(),
                merge: merge.to_vec(),
            });
        }
    }

    /// The second worker lies.
    fn lie(&mut self) {
        let share = self.random.pick(&[100, 400, 1_000]).unwrap_or(400);
        for worker in self.scenario.workers.iter_mut().skip(1) {
            worker.lies_per_mille = share;
        }
    }

    fn wish(&mut self) -> What {
        let plan = 0;
        let count = u64::from(self.tasks());
        let task = self.random.below(count) as u32;
        match self.random.below(6) {
            0 => What::CancelRun { plan },
            5 => What::SubmitAgain { plan, other: false },
            1 => What::CancelTask { plan, task },
            2 | 3 => What::RetryRun { plan },
            _ => What::RetryTask { plan, task },
        }
    }

    fn fault(&mut self) -> What {
        let clocks = self.scenario.clocks;
        let random = &mut self.random;
        let worker = random.below(2) as u32;
        let down_ms = random.wide(100, clocks.ttl_ms);
        match random.below(10) {
            0 | 1 => What::WorkerKilled { worker, down_ms },
            2 | 3 => What::HostReboot {
                worker,
                down_ms,
                disk_lost: random.per_mille(600),
            },
            // The worker's own deadline passes, the coordinator's does not.
            4 => What::Frozen {
                worker,
                for_ms: random.between(clocks.ttl_ms * 8 / 10, clocks.ttl_ms + clocks.grace_ms),
                whole: false,
            },
            5 => What::Broken { worker },
            6 => What::WorkerLeaves { worker, down_ms },
            8 => What::SupervisorKilled {
                worker,
                nth: random.below(2) as u32,
                detached: random.per_mille(700),
                ends_ms: random.wide(1, 20_000) - 1,
            },
            7 => What::WorkerDiskFull {
                worker,
                for_ms: random.wide(1_000, 1_000_000),
            },
            _ => What::CoordinatorCrash {
                point: random
                    .pick(&[CrashPoint::Now, CrashPoint::AfterAppend])
                    .unwrap_or(CrashPoint::Now),
                down_ms: random.wide(50, clocks.ttl_ms),
                wall_jump_ms: 0,
            },
        }
    }

    /// Somebody asks for something while a merge is made.
    fn merges(&mut self) {
        self.join();
        let merge = self.merge();
        self.integrate(&[Found::Good], &merge);
        let takes_ms = self.random.pick(&[3_000, 30_000, 90_000]).unwrap_or(30_000);
        let for_ms = 20 * 60_000;
        self.add(When::At { ms: 0 }, What::SlowMerges { for_ms, takes_ms });
        self.wishes_at_merges(takes_ms);
    }

    fn wishes_at_merges(&mut self, takes_ms: u64) {
        let moments = [Moment::Basing, Moment::Integrating];
        let moment = self.random.pick(&moments).unwrap_or(Moment::Basing);
        let last = self.tasks().saturating_sub(1);
        for _ in 0..self.random.between(1, 6) {
            let what = match self.random.below(6) {
                0 => What::CancelTask {
                    plan: 0,
                    task: last,
                },
                1 => What::RetryTask {
                    plan: 0,
                    task: last,
                },
                2 | 3 => What::CancelRun { plan: 0 },
                4 => What::RetryRun { plan: 0 },
                _ => self.wish(),
            };
            let ms = self.random.below(takes_ms * 5 / 4);
            self.after(moment, 0, ms, what);
        }
    }

    /// Merges that take so long that nobody waits for them any more.
    fn merges_beyond_their_deadline(&mut self) {
        self.join();
        let merge = self.merge();
        self.integrate(&[Found::Good], &merge);
        self.scenario.workers.truncate(1);
        let takes_ms = self.random.between(3_500_000, 4_500_000);
        let for_ms = 4 * 3_600_000;
        self.scenario.calm_ms = for_ms;
        let moments = [Moment::Submitted, Moment::Integrating];
        let moment = self.random.pick(&moments).unwrap_or(Moment::Submitted);
        self.after(moment, 0, 0, What::SlowMerges { for_ms, takes_ms });
        if self.random.per_mille(400) {
            // The merge of the old generation ends when the new one's time is over.
            let ms = self.random.wide(1_000, 200_000);
            self.after(moment, 0, 60_000 + ms, What::CancelRun { plan: 0 });
            self.after(moment, 0, 61_000 + ms, What::RetryRun { plan: 0 });
        } else if self.random.per_mille(600) {
            self.wishes_at_merges(takes_ms);
        }
    }

    /// Faults and people aimed at final verifies.
    fn finals(&mut self) {
        let good = self.random.per_mille(700);
        let verify = if good {
            vec![Found::Good]
        } else {
            vec![Found::Bad, Found::Broken, Found::Good]
        };
        self.integrate(&verify, &[Merge::Clean]);
        let speed = self.random.pick(&[100, 30, 10]).unwrap_or(100);
        for worker in &mut self.scenario.workers {
            worker.speed_percent = speed;
        }
        if self.random.per_mille(450) {
            self.lie();
            // The honest one does the tasks, the other one verifies.
            let drain = |worker, draining| What::Drain { worker, draining };
            self.add(When::At { ms: 5_000 }, drain(1, true));
            self.after(Moment::Integrating, 0, 0, drain(0, true));
            self.after(Moment::Integrating, 0, 1, drain(1, false));
            if self.random.per_mille(600) {
                let ms = self.random.wide(1, 20_000);
                self.after(Moment::FinalVerifying, 0, ms, drain(1, true));
            }
        }
        if self.random.per_mille(300) {
            let for_ms = self.random.wide(1_000, 60_000);
            self.after(Moment::Integrating, 0, 0, What::Hold { for_ms });
        }
        if self.random.per_mille(150) {
            for plan in &mut self.scenario.plans {
                for task in &mut plan.tasks {
                    task.verify = vec![Found::Good];
                }
            }
            self.after(Moment::Started, 0, 0, What::Hold { for_ms: 60_000 });
            for task in 0..self.tasks() {
                self.after(Moment::Made, task, 1, What::RetryTask { plan: 0, task: 0 });
            }
        }
        for _ in 0..self.random.between(1, 7) {
            let what = if self.random.per_mille(450) {
                self.wish()
            } else {
                self.fault()
            };
            let moments = [
                Moment::Merged,
                Moment::FinalVerifying,
                Moment::FinalVerifying,
            ];
            let moment = self.random.pick(&moments).unwrap_or(Moment::Merged);
            let nth = self.random.below(2) as u32;
            let ms = self.random.wide(1, 20_000) - 1;
            self.after(moment, nth, ms, what);
        }
    }

    /// Faults and people aimed at questions and their answers.
    fn questions(&mut self) {
        self.all_ask();
        if self.random.per_mille(300) {
            let timeout_ms = self.random.between(15_000, 60_000);
            for plan in &mut self.scenario.plans {
                for task in &mut plan.tasks {
                    task.timeout_ms = timeout_ms;
                }
            }
        }
        if self.random.per_mille(400) {
            self.lie();
            if let Some(honest) = self.scenario.workers.first_mut() {
                honest.at_ms = 300_000;
            }
        }
        for nth in 0..self.random.between(1, 6) as u32 {
            let ms = self.random.wide(1, 20_000);
            let answers = if self.random.per_mille(300) { 2 } else { 1 };
            for _ in 0..answers {
                self.after(Moment::Asked, nth, ms, What::Answer { wrong: false });
            }
        }
        for _ in 0..self.random.between(1, 6) {
            let what = match self.random.below(3) {
                0 => self.wish(),
                _ => self.fault(),
            };
            let nth = self.random.below(3) as u32;
            let ms = self.random.wide(1, 20_000) - 1;
            self.after(Moment::Answered, nth, ms, what);
        }
    }

    /// Two people ask for the same at once, of runs that are in the archive or go there.
    fn twins(&mut self) {
        if self.random.per_mille(600) {
            let verify = if self.random.per_mille(500) {
                vec![Found::Bad, Found::Bad, Found::Good]
            } else {
                vec![]
            };
            let merge = self.merge();
            self.integrate(&verify, &merge);
        }
        if self.random.per_mille(500) {
            for plan in &mut self.scenario.plans {
                for task in plan.tasks.iter_mut().take(1) {
                    task.retries = 0;
                    for deed in task.attempts.iter_mut().take(1) {
                        deed.end = DeedEnd::Fails;
                    }
                }
            }
        }
        if self.random.per_mille(500) {
            let sync_ms = self.random.wide(10, 2_000);
            let for_ms = 1_200_000;
            let moments = [Moment::Submitted, Moment::Ended];
            let moment = self.random.pick(&moments).unwrap_or(Moment::Ended);
            self.after(moment, 0, 0, What::SlowDisk { for_ms, sync_ms });
        }
        if self.random.per_mille(300) {
            let for_ms = 30_000;
            self.after(Moment::Archived, 0, 0, What::Hold { for_ms });
        }
        if self.random.per_mille(300) {
            // The run is archived while the request is on its way.
            let (for_ms, sync_ms) = (1_200_000, 1_500);
            self.add(When::At { ms: 0 }, What::SlowDisk { for_ms, sync_ms });
            self.after(Moment::Started, 0, 0, What::CancelRun { plan: 0 });
            for _ in 0..3 {
                let ms = self.random.wide(1, 8_000);
                let what = self.random.pick(&[
                    What::RetryRun { plan: 0 },
                    What::RetryTask { plan: 0, task: 0 },
                ]);
                if let Some(what) = what {
                    self.after(Moment::Revoked, 0, ms, what);
                }
            }
        }
        for nth in 0..2 {
            let moments = [Moment::Ended, Moment::Archived, Moment::Archived];
            let moment = self.random.pick(&moments).unwrap_or(Moment::Archived);
            let ms = self.random.wide(1, 2_000) - 1;
            for _ in 0..self.random.between(2, 5) {
                let what = match self.random.below(4) {
                    0 => self.wish(),
                    1 => What::RetryTask { plan: 0, task: 0 },
                    _ => What::RetryRun { plan: 0 },
                };
                let later = if self.random.per_mille(600) {
                    0
                } else {
                    self.random.wide(1, 20_000)
                };
                self.after(moment, nth, ms + later, what);
            }
        }
        if self.random.per_mille(400) {
            let ms = self.random.wide(1, 10_000);
            self.after(Moment::Reloaded, 0, ms, What::CancelRun { plan: 0 });
        }
    }

    /// All workers are away for days.
    fn days(&mut self) {
        for plan in &mut self.scenario.plans {
            for task in &mut plan.tasks {
                task.verify = vec![Found::Good];
            }
        }
        self.integrate(&[Found::Good], &[Merge::Clean]);
        let away: (Moment, u64) = match self.random.below(6) {
            // They are away, and known to be, before there is any work.
            0 => {
                for plan in &mut self.scenario.plans {
                    plan.at_ms = 600_000;
                }
                (Moment::Submitted, 0)
            }
            1 => {
                self.first_ends(DeedEnd::Fails);
                (Moment::Failed, 0)
            }
            // Its question is parked by then.
            2 => {
                self.first_ends(DeedEnd::Asks);
                (Moment::Asked, 3_640_000)
            }
            3 => (Moment::Made, 0),
            4 => (Moment::Integrating, 0),
            _ => (Moment::Ended, 0),
        };
        for worker in self
            .scenario
            .workers
            .iter()
            .map(|worker| worker.id)
            .collect::<Vec<_>>()
        {
            let what = What::HostReboot {
                worker,
                down_ms: self.random.between(15 * DAY_MS, 16 * DAY_MS),
                disk_lost: false,
            };
            if away.0 == Moment::Submitted {
                self.add(When::At { ms: 5_000 }, what);
            } else {
                self.after(away.0, 0, away.1, what);
            }
        }
        self.scenario.calm_ms = 17 * DAY_MS;
    }

    fn first_ends(&mut self, end: DeedEnd) {
        for plan in &mut self.scenario.plans {
            for task in plan.tasks.iter_mut().take(1) {
                task.retries = 2;
                for deed in task.attempts.iter_mut().take(1) {
                    deed.end = end;
                }
            }
        }
    }
}

fn task(random: &mut Random, id: u32) -> TaskPlan {
    let deed = Deed {
        work_ms: random.wide(1_000, 15_000),
        end: DeedEnd::Change,
    };
    TaskPlan {
        id,
        depends_on: vec![],
        priority: 0,
        path: None,
        agent: Agent::Command,
        label: None,
        cpus: 0,
        retries: random.below(3) as u32,
        timeout_ms: 30 * 60_000,
        attempts: vec![deed; 3],
        verify: vec![],
        base: vec![Merge::Clean],
    }
}
