//! What the model knows of questions: asked once, answered once, closed once, each by somebody.

use coordinator_core::command::Report;
use coordinator_core::event::Work;
use coordinator_core::{Command, TaskKey, Timestamp};

use crate::reference::{Asked, Judged, PARK_MS, Reference, Stands, ensure};

/// A question.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) lease: u64,
    number: u32,
    at: Timestamp,
    answered: bool,
    closed: bool,
}

impl Reference {
    pub(crate) fn asks(
        &mut self,
        asked: &Asked<'_>,
        id: u64,
        question: u64,
        number: u32,
    ) -> Judged {
        let lease = self.live(id, "it asks")?.clone();
        let said = asked
            .reports(id, &lease)
            .any(|report| matches!(report, Report::Asked { number: said, .. } if *said == number));
        let known = Known {
            lease: id,
            number,
            at: asked.at,
            answered: false,
            closed: false,
        };
        let fresh = self.fresh(id, number) && self.questions.insert(question, known).is_none();
        ensure(said && fresh, "each question is asked once", || {
            format!("{question}, number {number} of lease {id}")
        })
    }

    pub(crate) fn answered(&mut self, asked: &Asked<'_>, id: u64) -> Judged {
        let said = asked.says(
            |command| matches!(command, Command::Answer { question, .. } if question.0 == id),
        );
        let Some(question) = self.questions.get_mut(&id) else {
            return Err(("events name what there is", format!("question {id}")));
        };
        let first = !std::mem::replace(&mut question.answered, true);
        let (fair, lease) = (said && first && !question.closed, question.lease);
        ensure(fair, "people answer, and each question once", || {
            format!("question {id}")
        })?;
        let waits = self.waiting(lease).next().is_some();
        let Some((run, work)) = self.leases.get(&lease).map(|lease| (lease.run, lease.work)) else {
            return Err(("events name what there is", format!("question {id}")));
        };
        if let Work::Attempt { task, .. } = work {
            let task = self.known(TaskKey { run, task })?;
            if task.stands == Stands::Parked && !waits {
                task.stands = Stands::Waiting;
            }
        }
        Ok(())
    }

    pub(crate) fn question_closed(
        &mut self,
        asked: &Asked<'_>,
        id: u64,
        question: u64,
        number: u32,
    ) -> Judged {
        let lease = self.live(id, "it closes a question")?.clone();
        let said = asked.reports(id, &lease).any(|report| {
            matches!(report, Report::QuestionClosed { number: said, .. } if *said == number)
        });
        let once = match self.questions.get_mut(&question) {
            Some(known) => {
                known.lease == id
                    && known.number == number
                    && !std::mem::replace(&mut known.closed, true)
            }
            None => {
                let fresh = self.fresh(id, number);
                let known = Known {
                    lease: id,
                    number,
                    at: asked.at,
                    answered: false,
                    closed: true,
                };
                self.questions.insert(question, known);
                fresh
            }
        };
        ensure(said && once, "each question is closed once", || {
            format!("{question}, number {number} of lease {id}")
        })
    }

    pub(crate) fn parked(&mut self, asked: &Asked<'_>, id: u64) -> Judged {
        let lease = self.live(id, "it is parked")?;
        lease.told = true;
        let lease = lease.clone();
        let fair = self
            .waiting(id)
            .any(|question| asked.at.since(question.at).ms() >= PARK_MS);
        ensure(fair, "questions are parked in time", || {
            format!("lease {id}")
        })?;
        if let Work::Attempt { task, .. } = lease.work {
            let run = lease.run;
            let task = self.known(TaskKey { run, task })?;
            task.stands = Stands::Parked;
            task.cut_off = Some(task.attempts);
        }
        Ok(())
    }

    /// Tells whether the lease has not asked this yet.
    fn fresh(&self, lease: u64, number: u32) -> bool {
        let mut known = self.questions.values();
        known.all(|known| known.lease != lease || known.number != number)
    }

    fn waiting(&self, lease: u64) -> impl Iterator<Item = &Known> {
        let known = self.questions.values();
        known.filter(move |known| known.lease == lease && !known.answered && !known.closed)
    }
}
