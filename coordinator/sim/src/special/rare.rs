//! Worlds for pairs of a state and a command that nothing but an aimed world comes to: liars and
//! leaving workers around one lease, and requests that meet a run on its way to the archive or back.

use super::Special;
use crate::scenario::{DeedEnd, Found, Link, Merge, Moment, Weather, WeatherKind, What, When};

/// Time after which a question that nobody answered has parked its task.
const PARKED_MS: u64 = 3_601_000;

impl Special<'_> {
    /// So many of a thousand words of the second worker are lies.
    fn lie_so_often(&mut self, lies_per_mille: u64) {
        for worker in self.scenario.workers.iter_mut().skip(1) {
            worker.lies_per_mille = lies_per_mille;
        }
    }

    /// All workers are of one speed.
    fn all_work_at(&mut self, percent: u64) {
        for worker in &mut self.scenario.workers {
            worker.speed_percent = percent;
        }
    }

    /// Supervisors are killed alone, and about then their workers are killed, stopped, cut off or
    /// told to stop.
    pub(super) fn orphans(&mut self) {
        self.all_work_at(100);
        for plan in &mut self.scenario.plans {
            for deed in plan.tasks.iter_mut().flat_map(|task| &mut task.attempts) {
                deed.work_ms = 90_000;
            }
        }
        for nth in 0..self.random.between(1, 4) as u32 {
            let ms = self.random.between(1_000, 80_000);
            let worker = self.random.below(2) as u32;
            let what = What::SupervisorKilled {
                worker,
                nth: self.random.below(3) as u32,
                detached: self.random.per_mille(850),
                ends_ms: self.random.wide(1, 200_000) - 1,
            };
            self.after(Moment::Started, nth, ms, what);
            let beside = match self.random.below(4) {
                0 => self.wish(),
                _ => self.fault(),
            };
            // Before it or behind it.
            let ms = (ms + self.random.wide(1, 10_000)).saturating_sub(self.random.wide(1, 10_000));
            self.after(Moment::Started, nth, ms, beside);
        }
    }

    /// A person asks the honest worker or the liar to take nothing new.
    fn drain_at(&mut self, moment: Moment, ms: u64, worker: u32, draining: bool) {
        self.after(moment, 0, ms, What::Drain { worker, draining });
    }

    /// Messages of the liar overtake each other: a hello may come before the end of the stream
    /// before it.
    fn delay_the_liar(&mut self) {
        let max_ms = self.scenario.clocks.ttl_ms / 2;
        self.scenario.weather.push(Weather {
            from_ms: 20_000,
            to_ms: 1_200_000,
            worker: Some(1),
            link: Link::ToCoordinator,
            kind: WeatherKind::Delay { max_ms },
        });
    }

    /// A liar has a verify, and a person may cancel it.
    pub(super) fn lying_verifies(&mut self) {
        self.lie_so_often(1_000);
        self.all_work_at(100);
        self.add(
            When::At { ms: 5_000 },
            What::Drain {
                worker: 1,
                draining: true,
            },
        );
        let verifying = if self.random.per_mille(650) {
            self.integrate(&[Found::Good], &[Merge::Clean]);
            self.drain_at(Moment::Integrating, 0, 0, true);
            self.drain_at(Moment::Integrating, 1, 1, false);
            Moment::FinalVerifying
        } else {
            for plan in &mut self.scenario.plans {
                for task in &mut plan.tasks {
                    task.verify = vec![Found::Good];
                }
            }
            // No verify is given out before only the liar takes any.
            self.after(Moment::Started, 0, 0, What::Hold { for_ms: 40_000 });
            self.drain_at(Moment::Made, 0, 0, true);
            self.drain_at(Moment::Made, 1, 1, false);
            Moment::Verifying
        };
        if self.random.per_mille(200) {
            // It keeps its lease and says hardly anything of it.
            self.lie_so_often(60);
            return;
        }
        if self.random.per_mille(500) {
            self.delay_the_liar();
        }
        if self.random.per_mille(500) {
            let ms = self.random.wide(1, 30_000);
            self.drain_at(verifying, ms, 1, true);
        }
        if self.random.per_mille(700) {
            let ms = self.random.wide(1, 30_000);
            self.after(verifying, 0, ms, What::CancelRun { plan: 0 });
        }
        for _ in 0..self.random.below(3) {
            let ms = self.random.wide(1, 60_000);
            let what = self.fault();
            self.after(verifying, 0, ms, what);
        }
    }

    /// A liar has asked, and people answer it.
    pub(super) fn lying_questions(&mut self) {
        self.lie_so_often(1_000);
        for plan in &mut self.scenario.plans {
            for task in &mut plan.tasks {
                task.timeout_ms = self.random.pick(&[60_000, 600_000]).unwrap_or(600_000);
            }
        }
        if let Some(honest) = self.scenario.workers.first_mut() {
            honest.at_ms = 600_000;
        }
        for nth in 0..8 {
            let ms = self.random.wide(1, 5_000);
            self.after(Moment::Asked, nth, ms, What::Answer { wrong: false });
        }
        if self.random.per_mille(300) {
            let what = self.wish();
            let ms = self.random.wide(1, 20_000);
            self.after(Moment::Answered, 0, ms, what);
        }
    }

    /// Every agent asks before it goes on, but not forever.
    pub(super) fn all_ask(&mut self) {
        for plan in &mut self.scenario.plans {
            for task in &mut plan.tasks {
                for deed in task.attempts.iter_mut().take(2) {
                    deed.end = DeedEnd::Asks;
                }
            }
        }
    }

    /// Nobody answers until tasks are parked; then people want something else of them, or answer.
    pub(super) fn parked(&mut self) {
        self.all_ask();
        self.scenario.calm_ms = self.scenario.calm_ms.max(2 * 3_600_000);
        for _ in 0..self.random.between(1, 4) {
            let what = match self.random.below(6) {
                0 | 1 => What::CancelTask {
                    plan: 0,
                    task: self.random.below(u64::from(self.tasks())) as u32,
                },
                2 | 3 => What::RetryRun { plan: 0 },
                4 => self.fault(),
                _ => self.wish(),
            };
            let ms = PARKED_MS + self.random.wide(1, 60_000);
            self.after(Moment::Asked, 0, ms, what);
        }
        for nth in 0..self.tasks() {
            let ms = PARKED_MS + self.random.wide(1, 120_000);
            self.after(Moment::Asked, nth, ms, What::Answer { wrong: false });
        }
    }

    /// Answers are long on their way to their agents, and meanwhile people want something else of
    /// the tasks, or their workers have troubles.
    pub(super) fn late_answers(&mut self) {
        self.all_ask();
        let max_ms = self.scenario.clocks.ttl_ms / 2;
        self.scenario.weather.push(Weather {
            from_ms: 10_000,
            to_ms: 1_200_000,
            worker: None,
            link: Link::ToWorker,
            kind: WeatherKind::Delay { max_ms },
        });
        for nth in 0..self.tasks() {
            let ms = self.random.wide(1, 5_000);
            self.after(Moment::Asked, nth, ms, What::Answer { wrong: false });
        }
        for nth in 0..self.random.between(1, 4) as u32 {
            let what = match self.random.below(6) {
                0..=2 => What::CancelTask {
                    plan: 0,
                    task: self.random.below(u64::from(self.tasks())) as u32,
                },
                3 => What::CancelRun { plan: 0 },
                4 => self.fault(),
                _ => self.wish(),
            };
            let ms = self.random.wide(1, max_ms / 2);
            self.after(Moment::Answered, nth, ms, what);
        }
    }

    /// A worker is told to leave just before a person wants its work no more.
    pub(super) fn leaves_and_cancels(&mut self) {
        let moment = match self.random.below(4) {
            0 => Moment::Started,
            1 => {
                for plan in &mut self.scenario.plans {
                    for task in &mut plan.tasks {
                        task.verify = vec![Found::Good];
                    }
                }
                Moment::Verifying
            }
            2 => {
                self.all_ask();
                for nth in 0..4 {
                    self.after(Moment::Asked, nth, 2_000, What::Answer { wrong: false });
                }
                Moment::Answered
            }
            _ => {
                self.integrate(&[Found::Good], &[Merge::Clean]);
                Moment::FinalVerifying
            }
        };
        let ms = self.random.wide(1, 7_000);
        for worker in 0..2 {
            let down_ms = self.random.wide(100, 20_000);
            self.after(moment, 0, ms, What::WorkerLeaves { worker, down_ms });
        }
        if self.random.per_mille(700) {
            let later = self.random.below(30);
            let what = match self.random.below(3) {
                0 => What::CancelTask { plan: 0, task: 0 },
                _ => What::CancelRun { plan: 0 },
            };
            self.after(moment, 0, ms + later, what);
        }
    }

    /// A run goes into the archive while requests for it are on their way to a slow disk.
    pub(super) fn late_requests(&mut self) {
        let sync_ms = self.random.between(800, 2_500);
        let for_ms = 1_200_000;
        self.add(When::At { ms: 0 }, What::SlowDisk { for_ms, sync_ms });
        self.all_work_at(100);
        for plan in &mut self.scenario.plans {
            for deed in plan.tasks.iter_mut().flat_map(|task| &mut task.attempts) {
                deed.work_ms = 60_000;
            }
        }
        self.after(Moment::Started, 1, 0, What::CancelRun { plan: 0 });
        // The first lease that is over is written first; the run goes behind the last one.
        let first = sync_ms * self.random.between(10, 19) / 10;
        let step = self.random.between(50, 300);
        for nth in 0..6 {
            let what = match self.random.below(3) {
                0 => What::RetryRun { plan: 0 },
                1 => What::CancelTask { plan: 0, task: 0 },
                _ => What::RetryTask { plan: 0, task: 0 },
            };
            self.after(Moment::Revoked, 0, first + nth * step, what);
        }
    }

    /// Several people retry an archived run whose final verify had failed: while some of them still
    /// read the archive, it is verified again.
    pub(super) fn twin_finals(&mut self) {
        self.integrate(&[Found::Bad, Found::Bad, Found::Good], &[Merge::Clean]);
        self.all_work_at(100);
        if self.random.per_mille(500) {
            self.after(Moment::Archived, 0, 1, What::Hold { for_ms: 20_000 });
        }
        for nth in 0..2 {
            for _ in 0..self.random.between(3, 6) {
                let ms = self.random.wide(1, 300);
                self.after(Moment::Archived, nth, ms, What::RetryRun { plan: 0 });
            }
            let ms = self.random.wide(1, 10_000);
            let what = self.wish();
            self.after(Moment::Merged, nth + 1, ms, what);
        }
    }

    /// A run goes on and is archived again while somebody still reads what the archive had before.
    pub(super) fn outgrown(&mut self) {
        self.all_work_at(100);
        self.after(Moment::Started, 0, 100, What::CancelRun { plan: 0 });
        for nth in 0..2 {
            for _ in 0..self.random.between(3, 6) {
                let ms = self.random.wide(1, 300);
                let what = match self.random.below(3) {
                    0 => What::RetryTask { plan: 0, task: 0 },
                    _ => What::RetryRun { plan: 0 },
                };
                self.after(Moment::Archived, nth, ms, what);
            }
            let ms = self.random.wide(1, 1_500);
            self.after(Moment::Reloaded, nth, ms, What::CancelRun { plan: 0 });
        }
    }

    /// The answer to a merge comes when nobody waits for it: its run or task is over, in one way or
    /// the other, or wants another merge.
    pub(super) fn late_merges(&mut self) {
        self.join();
        let kinds = [Merge::Clean, Merge::Conflict, Merge::Error];
        let any = self.random.pick(&kinds).unwrap_or(Merge::Clean);
        for plan in &mut self.scenario.plans {
            for task in &mut plan.tasks {
                task.base = vec![any];
            }
        }
        self.all_work_at(100);
        let waits_for_base = self.random.per_mille(500);
        let moment = if waits_for_base {
            Moment::Basing
        } else {
            self.leave_all_free();
            self.integrate(&[Found::Good], &[any]);
            Moment::Integrating
        };
        if self.random.per_mille(400) {
            // Longer than anybody waits, but no longer than a run takes to be archived.
            self.scenario.calm_ms = 4 * 3_600_000;
            let takes_ms = 3_600_000 + self.random.below(60_000);
            let for_ms = 4 * 3_600_000;
            self.add(When::At { ms: 0 }, What::SlowMerges { for_ms, takes_ms });
            self.first_works_for(takes_ms + 120_000);
            return;
        }
        let takes_ms = self.random.pick(&[3_000, 30_000]).unwrap_or(3_000);
        let for_ms = 20 * 60_000;
        self.add(When::At { ms: 0 }, What::SlowMerges { for_ms, takes_ms });
        let last = self.tasks().saturating_sub(1);
        // Late, so that the run is not in the archive when the answer comes.
        let ms = takes_ms - self.random.below(takes_ms / 4);
        let task = What::CancelTask {
            plan: 0,
            task: last,
        };
        let what = if waits_for_base && self.random.per_mille(500) {
            self.first_works_for(takes_ms + 30_000);
            task
        } else {
            What::CancelRun { plan: 0 }
        };
        self.after(moment, 0, ms, what);
        if self.random.per_mille(500) {
            let later = self.random.wide(1, takes_ms);
            self.after(moment, 0, ms + later, What::RetryRun { plan: 0 });
        }
    }

    /// The first task goes on for some time and nothing waits for it, so that its run stays live;
    /// at other times nothing keeps the run.
    fn first_works_for(&mut self, work_ms: u64) {
        if self.tasks() < 4 || self.random.per_mille(300) {
            return;
        }
        for plan in &mut self.scenario.plans {
            for task in &mut plan.tasks {
                task.depends_on.retain(|id| *id != 0);
            }
            for task in plan.tasks.iter_mut().take(1) {
                task.timeout_ms = work_ms * 2;
                for deed in &mut task.attempts {
                    deed.work_ms = work_ms;
                }
            }
        }
    }

    /// No task needs another one.
    fn leave_all_free(&mut self) {
        for plan in &mut self.scenario.plans {
            for task in &mut plan.tasks {
                task.depends_on.clear();
            }
        }
    }
}
