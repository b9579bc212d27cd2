//! Which attempt goes on from which, and where its agent's conversation is.

use std::sync::Arc;

use crate::ids::{AttemptNo, TaskIx, TaskKey, WorkerId};
use crate::index::WorkerEntry;
use crate::limits;
use crate::schedule::{heard, misfit};
use crate::state::{Attempt, AttemptEnd, Conversation, Run, State, Task, TaskState};
use crate::time::Timestamp;
use crate::worker::Requirement;

/// Gives the attempt that the next one of a task goes on from: the last one, if it ended through no
/// fault of its own and its agent can resume. Whatever failed by its own work is begun anew.
pub(crate) fn goes_on_from(run: &Run, ix: TaskIx) -> Option<AttemptNo> {
    if !run.profile(ix)?.resumes {
        return None;
    }
    let task = run.task(ix)?;
    let last = task.attempts().last()?;
    if last.generation != task.generation {
        return None;
    }
    match &last.end {
        Some(AttemptEnd::Failed(failure)) if failure.class.resumes() => Some(last.number),
        Some(AttemptEnd::Parked { .. }) => Some(last.number),
        // It never was.
        Some(AttemptEnd::NeverStarted) => last.continues,
        _ => None,
    }
}

impl Task {
    /// Gives an attempt and those before it that it goes on from, the newest first.
    pub fn line(&self, from: Option<AttemptNo>) -> impl Iterator<Item = &Attempt> {
        let find = |number: AttemptNo| {
            let place = usize::try_from(number.0.checked_sub(1)?).ok()?;
            self.attempts().get(place)
        };
        // An attempt goes on from an earlier one only, so this ends.
        let before = move |attempt: &&Attempt| attempt.continues.and_then(find);
        std::iter::successors(from.and_then(find), before)
    }

    /// Gives the conversation that an attempt going on from this one takes up, with the attempt
    /// that had it. One that was lost before it had opened a conversation of its own left the
    /// earlier one as it was.
    #[must_use]
    pub fn conversation(&self, from: Option<AttemptNo>) -> Option<(&Attempt, &Conversation)> {
        let mut line = self.line(from);
        line.find_map(|attempt| Some((attempt, attempt.conversation.as_ref()?)))
    }

    /// Tells whether the agent of an attempt that goes on from another one does not remember that one:
    /// the first conversation that it told of is its own.
    #[must_use]
    pub fn began_anew(&self, attempt: &Attempt) -> bool {
        let Some(own) = attempt.conversation.as_ref().filter(|own| own.nth == 1) else {
            return false;
        };
        let before = self.conversation(attempt.continues);
        attempt.continues.is_some() && before.is_none_or(|(_, before)| before.id != own.id)
    }
}

/// Where the conversation is that the next attempt of a task goes on with.
pub(crate) struct Home<'a> {
    pub(crate) worker: &'a WorkerId,
    host: Option<&'a Arc<str>>,
}

impl Home<'_> {
    /// Tells whether a worker has the conversation on its disk.
    pub(crate) fn is(&self, entry: &WorkerEntry) -> bool {
        let worker = &entry.worker;
        worker.id == *self.worker || self.host.is_some_and(|host| *host == worker.offer.host)
    }
}

/// Gives where the next attempt should run; `None` if it can go on anywhere, or begins anew.
pub(crate) fn home(run: &Run, ix: TaskIx) -> Option<Home<'_>> {
    let task = run.task(ix)?;
    let from = goes_on_from(run, ix)?;
    if let Some((attempt, conversation)) = task.conversation(Some(from)) {
        return Some(Home {
            worker: &attempt.worker,
            host: Some(&conversation.host),
        });
    }
    None
}

/// Gives until when a ready task waits for the worker or host that has its conversation; then it
/// goes to anyone. Whoever was preempted or reached a time limit does not come back.
pub(crate) fn waits_for_home(run: &Run, ix: TaskIx) -> Option<Timestamp> {
    let task = run.task(ix)?;
    let until = held_until(task)?;
    home(run, ix)?;
    let last = task.attempts().last()?;
    match &last.end {
        Some(AttemptEnd::Failed(failure)) if failure.class.leaves() => None,
        _ => Some(until),
    }
}

/// Gives until when a ready task would wait, if it had something to wait for.
pub(crate) fn held_until(task: &Task) -> Option<Timestamp> {
    match task.state {
        TaskState::Ready { since, not_before } => Some(since.max(not_before) + limits::RESUME_WAIT),
        _ => None,
    }
}

/// Finds a worker with the conversation that can take the work now.
pub(crate) fn at_home<'a>(
    state: &'a State,
    now: Timestamp,
    key: TaskKey,
    requirement: &Requirement,
) -> Option<&'a WorkerEntry> {
    let home = home(state.run(key.run)?, key.task)?;
    let fits = |entry: &&WorkerEntry| {
        entry.aux.listed.is_some()
            && heard(state, entry, now)
            && misfit(entry, requirement, now).is_none()
    };
    let own = state.workers.get(home.worker).filter(fits);
    own.or_else(|| {
        let available = state.index.available.iter();
        let mut entries = available.filter_map(|(_, id)| state.workers.get(id));
        entries.find(|entry| home.is(entry) && fits(entry))
    })
}
