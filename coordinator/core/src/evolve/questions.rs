//! Questions open and close, and attempts wait for them.

use std::sync::Arc;

use super::ready;
use crate::event::Actor;
use crate::ids::{LeaseId, QuestionId, TaskKey};
use crate::index::unanswered;
use crate::question::{Answered, PastQuestion, Question};
use crate::state::{AttemptEnd, Conversation, Parked, State, TaskState};
use crate::time::Timestamp;

impl State {
    /// Counts a question's number as given.
    pub(super) fn count_question(&mut self, question: QuestionId) {
        let next = QuestionId(question.0.saturating_add(1));
        self.next_question = self.next_question.max(next);
    }

    pub(super) fn ask(&mut self, lease: LeaseId, at: Timestamp, question: Question) {
        if let Some(key) = self.task_of(lease) {
            self.change_awaiting(key, at, |awaiting| awaiting.push(question));
        }
    }

    pub(super) fn answer(&mut self, id: QuestionId, at: Timestamp, answer: &Answered) {
        let Some(&key) = self.index.questions.get(&id) else {
            return;
        };
        let answered = |questions: &mut Vec<Question>| {
            let mut open = questions.iter_mut();
            if let Some(question) = open.find(|question| question.id == id) {
                question.answer = Some(answer.clone());
            }
        };
        let Some(TaskState::Parked(parked)) = self.task(key).map(|task| &task.state) else {
            self.change_awaiting(key, at, answered);
            return;
        };
        let mut parked = parked.clone();
        answered(&mut parked.questions);
        if unanswered(&parked.questions).is_some() {
            self.set_task(key, at, TaskState::Parked(parked));
            return;
        }
        self.amend_attempt(key, |attempt| {
            if let Some(AttemptEnd::Parked { answer: place, .. }) = &mut attempt.end {
                *place = Some(answer.choice.clone());
            }
        });
        // The answers have to reach the attempt that goes on.
        self.unindex_task(key);
        if let Some(task) = self.task_mut(key) {
            task.state = TaskState::Parked(parked);
        }
        self.index_task(key, at);
        self.set_task(key, at, ready(at, at));
    }

    pub(super) fn close_question(
        &mut self,
        lease: LeaseId,
        at: Timestamp,
        (id, number): (QuestionId, u32),
        choice: &str,
        by: &Actor,
    ) {
        let Some(key) = self.task_of(lease) else {
            return;
        };
        if self.hand_over(key, id) {
            return;
        }
        let mut past = PastQuestion {
            id,
            number,
            title: Box::default(),
            choice: choice.into(),
            text: Box::default(),
            by: Arc::clone(by),
            at,
            undelivered: None,
        };
        let open = self.question(id).map(|(_, question)| question);
        if let Some(question) = open {
            past.title = question.asking.title.clone();
            // Its worker does not know who it was.
            if let Some(answer) = &question.answer
                && answer.choice == past.choice
            {
                past.by = Arc::clone(&answer.by);
                past.text = answer.text.clone();
            }
        }
        self.index.past_questions.insert(id, key);
        self.amend_attempt(key, |attempt| attempt.asked.push(past));
        self.change_awaiting(key, at, |awaiting| awaiting.retain(|open| open.id != id));
    }

    /// Takes an answer to an earlier attempt's question for handed over; `false` if none waits for that.
    fn hand_over(&mut self, key: TaskKey, id: QuestionId) -> bool {
        let history = self.task_mut(key).and_then(|task| task.history.as_mut());
        let attempts = history
            .into_iter()
            .flat_map(|history| &mut history.attempts);
        let mut past = attempts.flat_map(|attempt| &mut attempt.asked);
        let waiting = past.find(|past| past.id == id && past.undelivered.is_some());
        waiting.is_some_and(|past| past.undelivered.take().is_some())
    }

    pub(super) fn open_conversation(&mut self, lease: LeaseId, id: &str, software: &str) {
        let Some(key) = self.task_of(lease) else {
            return;
        };
        let worker = self.lease(lease).map(|lease| &lease.worker);
        let worker = worker.and_then(|worker| self.worker(worker));
        let Some(host) = worker.map(|worker| Arc::clone(&worker.offer.host)) else {
            return;
        };
        self.amend_attempt(key, |attempt| {
            let before = attempt.conversation.as_ref().map_or(0, |opened| opened.nth);
            attempt.conversation = Some(Conversation {
                id: id.into(),
                software: software.into(),
                host,
                nth: before.saturating_add(1),
            });
        });
    }

    pub(super) fn park(&mut self, lease: LeaseId, at: Timestamp) {
        let Some(key) = self.task_of(lease) else {
            return;
        };
        let Some(worker) = self.lease(lease).map(|lease| lease.worker.clone()) else {
            return;
        };
        let state = self.task(key).map(|task| &task.state);
        if let Some(TaskState::Leased {
            attempt, awaiting, ..
        }) = state
            && let Some(oldest) = unanswered(awaiting).map(|question| question.id)
        {
            let parked = Parked {
                questions: awaiting.clone(),
                resume: *attempt,
                affinity: worker,
            };
            self.end_attempt(key, at, || AttemptEnd::Parked {
                question: oldest,
                answer: None,
            });
            self.set_task(key, at, TaskState::Parked(Box::new(parked)));
        }
    }

    /// Changes what a leased task waits for, and lets its clock stand or go on.
    fn change_awaiting(
        &mut self,
        key: TaskKey,
        at: Timestamp,
        change: impl FnOnce(&mut Vec<Question>),
    ) {
        let state = self.task(key).map(|task| &task.state);
        let Some(TaskState::Leased {
            attempt,
            lease,
            awaiting,
        }) = state
        else {
            return;
        };
        let (attempt, lease, mut awaiting) = (*attempt, *lease, awaiting.clone());
        change(&mut awaiting);
        let waits = unanswered(&awaiting).is_some();
        self.amend_attempt(key, |attempt| {
            if waits {
                attempt.waiting_since.get_or_insert(at);
            } else {
                attempt.go_on(at);
            }
        });
        let state = TaskState::Leased {
            attempt,
            lease,
            awaiting,
        };
        self.set_task(key, at, state);
        self.set_timeout(lease);
    }

    /// Lets the last attempt remember the questions that a task's next state does not carry any more.
    pub(super) fn forget_questions(&mut self, key: TaskKey, at: Timestamp, next: &TaskState) {
        let Some(task) = self.task(key).filter(|task| !task.questions().is_empty()) else {
            return;
        };
        let known = task.attempts().last().map_or(&[][..], |last| &last.asked);
        let carried = next.questions();
        let lost = task.questions().iter().filter(|question| {
            carried.iter().all(|kept| kept.id != question.id)
                && known.iter().all(|past| past.id != question.id)
        });
        let past: Vec<PastQuestion> = lost.map(|question| question.past(at)).collect();
        for past in past {
            self.index.past_questions.insert(past.id, key);
            self.amend_attempt(key, |attempt| attempt.asked.push(past));
        }
    }
}
