//! What the reference says of leases: who may have one, what a result needs, when one ends.

use coordinator_core::command::Report;
use coordinator_core::event::{LeaseEnd, Work};
use coordinator_core::{Failure, FailureClass, Incarnation, RunId, TaskKey, WorkerId};

use crate::reference::{
    Asked, CRASHES_MAX, Counted, DEFERRALS_MAX, DEPARTURES_MAX, Judged, Lease, Reference, Stands,
    class, class_is_timeout, cuts_off, ensure, known_final,
};

impl Reference {
    #[expect(clippy::too_many_arguments, reason = "the parts of one event")]
    pub(crate) fn granted(
        &mut self,
        asked: &Asked<'_>,
        run: RunId,
        id: u64,
        work: Work,
        worker: &WorkerId,
        incarnation: Incarnation,
        ttl_ms: u64,
    ) -> Judged {
        ensure(id > self.last_lease, "lease ids only grow", || {
            format!("{id} after {}", self.last_lease)
        })?;
        self.last_lease = id;
        let live = self.open.iter().filter_map(|id| self.leases.get(id));
        let live = live
            .filter(|lease| lease.run == run && !lease.revoked)
            .count();
        let known = self.runs.get(&run);
        let max = known.map_or(0, |run| run.max_parallel);
        ensure(
            u32::try_from(live).is_ok_and(|live| live < max),
            "no run has too many leases",
            || format!("{run} has {live} live leases"),
        )?;
        if let (Work::Attempt { task, attempt }, Some(known)) = (work, known) {
            let key = TaskKey { run, task };
            let fair = self.task(key).is_some_and(|task| {
                task.stands == Stands::Waiting
                    && self.ready(known, task)
                    && attempt.0 == task.attempts + 1
            });
            ensure(fair, "a task has one live lease", || {
                format!("{key} is given out as {id}")
            })?;
            let paths = self.task(key).map_or(&[][..], |task| &task.path);
            let mut busy = known.tasks.iter().filter(|task| {
                let at_work = !task.stands.is_final()
                    && !matches!(task.stands, Stands::Waiting | Stands::Parked);
                at_work && task.path.iter().any(|path| paths.contains(path))
            });
            ensure(
                busy.next().is_none(),
                "claimed paths exclude each other",
                || format!("{key} is given out as {id}"),
            )?;
        }
        match work {
            Work::Attempt { task, .. } => {
                let task = self.known(TaskKey { run, task })?;
                task.attempts += 1;
                task.made = false;
                task.verifies_lost = 0;
                task.stands = Stands::Leased(id);
                task.from = task.cut_off.take();
            }
            Work::Verify { task, attempt } => {
                let task = self.known(TaskKey { run, task })?;
                let fair = task.stands == Stands::Unverified && attempt.0 == task.attempts;
                task.stands = Stands::Verified(id);
                ensure(fair, "a verify is of the last attempt", || {
                    format!("{run} {id}")
                })?;
            }
            Work::FinalVerify => {
                let fair = known_final(self.runs.get(&run));
                ensure(fair, "the final verify is of a whole run", || {
                    format!("{run} {id}")
                })?;
            }
        }
        let ttl = coordinator_core::Span::from_ms(ttl_ms);
        self.open.insert(id);
        self.leases.insert(
            id,
            Lease {
                run,
                work,
                worker: worker.clone(),
                incarnation,
                open: true,
                revoked: false,
                started: false,
                told: false,
                begun: asked.at,
                ttl_ms,
                expires: asked.at + ttl + self.clocks.grace,
            },
        );
        Ok(())
    }

    pub(crate) fn made(&mut self, asked: &Asked<'_>, id: u64) -> Judged {
        let lease = self.live(id, "it has made something")?;
        lease.told = true;
        let lease = lease.clone();
        let mut reports = asked.reports(id, &lease);
        let fair = reports.any(|report| matches!(report, Report::Succeeded { .. }));
        ensure(fair, "results come from the lease's own worker", || {
            format!("lease {id}")
        })?;
        let Work::Attempt { task, .. } = lease.work else {
            return Err((
                "results come from the lease's own worker",
                format!("verify {id}"),
            ));
        };
        let run = lease.run;
        let task = self.known(TaskKey { run, task })?;
        let fair = task.stands == Stands::Leased(id);
        task.made = !task.verified;
        if task.verified {
            task.stands = Stands::Unverified;
        }
        ensure(fair, "a task has one winner", || {
            format!("lease {id} is not the task's")
        })
    }

    pub(crate) fn passed(&mut self, asked: &Asked<'_>, id: u64) -> Judged {
        let lease = self.live(id, "its verify has passed")?;
        lease.told = true;
        let lease = lease.clone();
        let mut reports = asked.reports(id, &lease);
        let fair = reports.any(|report| matches!(report, Report::VerifyPassed));
        ensure(fair, "results come from the lease's own worker", || {
            format!("lease {id}")
        })?;
        if let Work::Verify { task, attempt } = lease.work {
            let run = lease.run;
            let task = self.known(TaskKey { run, task })?;
            let fair = task.stands == Stands::Verified(id) && task.attempts == attempt.0;
            task.made = true;
            ensure(fair, "a verify is of the last attempt", || {
                format!("lease {id}")
            })?;
        }
        Ok(())
    }

    /// Finds what accounts for a failure.
    pub(crate) fn accounted(
        &self,
        asked: &Asked<'_>,
        id: u64,
        lease: &Lease,
        class: FailureClass,
    ) -> bool {
        let said = asked.reports(id, lease).any(|report| match report {
            Report::Failed { .. } | Report::GivenBack { .. } => true,
            Report::Stopped => class == FailureClass::WorkerLost,
            Report::Succeeded { .. } => class == FailureClass::Publish,
            _ => false,
        });
        let silent = class == FailureClass::WorkerLost && asked.at >= lease.expires;
        let dropped = class == FailureClass::WorkerLost
            && asked
                .let_go(id, lease)
                .is_some_and(|newer| newer >= lease.incarnation);
        let limit = match lease.work {
            Work::Attempt { task, .. } => {
                let run = lease.run;
                self.task(TaskKey { run, task })
                    .map_or(0, |task| task.timeout_ms)
            }
            Work::Verify { .. } | Work::FinalVerify => crate::plan::VERIFY_TIMEOUT_MS,
        };
        let late = asked.at.since(lease.begun).ms() >= limit;
        said || silent || dropped || (late && class_is_timeout(class))
    }

    pub(crate) fn failed(
        &mut self,
        asked: &Asked<'_>,
        id: u64,
        failure: &Failure,
        again: bool,
    ) -> Judged {
        let lease = self.live(id, "it fails")?;
        lease.told = true;
        let lease = lease.clone();
        let fair = self.accounted(asked, id, &lease, failure.class);
        ensure(fair, "something accounts for each failure", || {
            format!("lease {id} fails as {}", failure.class)
        })?;
        let Work::Attempt { task, .. } = lease.work else {
            return Err((
                "something accounts for each failure",
                format!("verify {id}"),
            ));
        };
        let run = lease.run;
        let key = TaskKey { run, task };
        let known = self.known(key)?;
        known.cut_off = cuts_off(failure.class).then_some(known.attempts);
        self.count(key, failure.class, again)
    }

    pub(crate) fn count(&mut self, key: TaskKey, of: FailureClass, again: bool) -> Judged {
        let (retryable, counted) = class(of);
        let task = self.known(key)?;
        let allowed = match counted {
            Counted::Own => {
                task.counted += 1;
                task.counted <= task.retries
            }
            Counted::Crash => {
                task.crashes += 1;
                task.crashes < CRASHES_MAX
            }
            Counted::Provider => {
                task.deferrals += 1;
                task.deferrals < DEFERRALS_MAX
            }
            Counted::Departure => {
                task.departures += 1;
                task.departures < DEPARTURES_MAX
            }
        };
        let expected = retryable && allowed;
        task.falls = !expected;
        task.made = false;
        if expected {
            task.stands = Stands::Waiting;
        }
        ensure(again == expected, "failures are counted right", || {
            format!("{key} is tried again: {again}, after {of}")
        })
    }

    pub(crate) fn verify_failed(
        &mut self,
        asked: &Asked<'_>,
        id: u64,
        failure: &Failure,
        again: bool,
    ) -> Judged {
        let lease = self.live(id, "its verify fails")?;
        lease.told = true;
        let lease = lease.clone();
        let timed_out = self.accounted(asked, id, &lease, FailureClass::TimedOut);
        ensure(timed_out, "something accounts for each failure", || {
            format!("the verify {id} fails as {}", failure.class)
        })?;
        match lease.work {
            Work::Verify { task, .. } => {
                let run = lease.run;
                self.count(TaskKey { run, task }, FailureClass::VerifyFailed, again)
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn verify_lost(
        &mut self,
        asked: &Asked<'_>,
        id: u64,
        failure: &Failure,
        again: bool,
    ) -> Judged {
        let lease = self.live(id, "its verify is lost")?;
        lease.told = true;
        let lease = lease.clone();
        let fair = self.accounted(asked, id, &lease, failure.class);
        ensure(fair, "something accounts for each failure", || {
            format!("the verify {id} is lost as {}", failure.class)
        })?;
        let lost = match lease.work {
            Work::Verify { task, .. } => {
                let run = lease.run;
                let task = self.known(TaskKey { run, task })?;
                task.verifies_lost += 1;
                task.falls = task.verifies_lost >= CRASHES_MAX;
                task.stands = Stands::Unverified;
                task.verifies_lost
            }
            _ => {
                let run = self.runs.get_mut(&lease.run);
                run.map_or(0, |run| {
                    run.verifies_lost += 1;
                    run.verifies_lost
                })
            }
        };
        ensure(
            again == (lost < CRASHES_MAX),
            "failures are counted right",
            || format!("the verify {id} is the {lost}th that is lost, again: {again}"),
        )
    }

    pub(crate) fn closed(&mut self, asked: &Asked<'_>, id: u64, end: LeaseEnd) -> Judged {
        let Some(lease) = self.leases.get_mut(&id).filter(|lease| lease.open) else {
            return Err(("only live leases count", format!("{id} is closed again")));
        };
        lease.open = false;
        self.open.remove(&id);
        let lease = lease.clone();
        let hello = asked.let_go(id, &lease);
        let mut reports = asked.reports(id, &lease);
        let fair = match end {
            LeaseEnd::Expired => asked.at >= lease.expires,
            LeaseEnd::Superseded => hello.is_some_and(|newer| newer > lease.incarnation),
            LeaseEnd::NeverStarted => {
                let given = reports.any(|report| matches!(report, Report::GivenBack { .. }));
                !lease.started && (given || hello.is_some())
            }
            LeaseEnd::Confirmed => {
                hello.is_some()
                    || reports.any(|report| {
                        !matches!(
                            report,
                            Report::Started
                                | Report::Asked { .. }
                                | Report::QuestionClosed { .. }
                                | Report::ConversationOpened { .. }
                        )
                    })
            }
        };
        ensure(
            fair,
            "leases end early only when nothing of them runs",
            || format!("{id} is closed as {end:?}"),
        )?;
        let settled = lease.told || lease.revoked;
        if end == LeaseEnd::NeverStarted && !settled {
            let run = lease.run;
            match lease.work {
                Work::Attempt { task, .. } => {
                    let task = self.known(TaskKey { run, task })?;
                    task.stands = Stands::Waiting;
                    // It never was.
                    task.cut_off = task.from;
                }
                Work::Verify { task, .. } => {
                    self.known(TaskKey { run, task })?.stands = Stands::Unverified;
                }
                Work::FinalVerify => {}
            }
            return Ok(());
        }
        ensure(settled, "a lease that ends has a result", || {
            format!("{id} as {end:?}")
        })
    }
}
