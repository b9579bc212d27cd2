//! Runs come and go: submission, archive, reload.

use std::sync::Arc;

use super::Decision;
use crate::command::{Rejection, Reply};
use crate::event::EventKind;
use crate::ids::RunId;
use crate::limits;
use crate::plan::RunSpec;
use crate::state::{RunImage, State};
use crate::validate::{unusable_name, validate};

pub(super) fn submit(
    state: &State,
    spec: &Arc<RunSpec>,
    key: Option<&Arc<str>>,
    digest: &Arc<str>,
) -> Result<Decision, Rejection> {
    if let Some(used) = key.and_then(|key| state.keys.get(key)) {
        if used.digest != *digest {
            let run = Arc::clone(&used.name);
            return Err(Rejection::KeyReused { run });
        }
        let (run, fresh) = (used.run, false);
        return Ok(Decision::new(vec![], Reply::Submitted { run, fresh }));
    }
    room_for(state, spec.tasks.len())?;
    if let Some(reason) = unusable_name(&spec.name) {
        let text = format!("run name {:?} is not usable: {reason}", spec.name);
        return Err(Rejection::NotNow(text.into()));
    }
    if state.run_by_name(&spec.name).is_some() {
        return Err(Rejection::RunNameTaken(Arc::clone(&spec.name)));
    }
    if let Err(errors) = validate(spec)
        && let Some(first) = errors.into_iter().next()
    {
        return Err(Rejection::InvalidPlan(first));
    }
    let run = state.next_run;
    let submitted = EventKind::RunSubmitted {
        run,
        spec: Arc::clone(spec),
        key: key.cloned(),
        digest: Arc::clone(digest),
    };
    let fresh = true;
    Ok(Decision::new(
        vec![submitted],
        Reply::Submitted { run, fresh },
    ))
}

pub(super) fn archived(state: &State, run: RunId, last_seq: u64) -> Result<Decision, Rejection> {
    let entry = state.runs.get(&run).ok_or(Rejection::UnknownTarget)?;
    if !entry.run.is_ended() {
        return Err(Rejection::NotNow("the run has not ended".into()));
    }
    if entry.run.last_seq != last_seq {
        let text = "the run has gone on since it was put into the archive";
        return Err(Rejection::NotNow(text.into()));
    }
    if !entry.aux.leases.is_empty() {
        return Err(Rejection::NotNow("the run has open leases".into()));
    }
    Ok(Decision::done(vec![EventKind::RunArchived { run }]))
}

pub(super) fn reload(state: &State, image: &Arc<RunImage>) -> Result<Decision, Rejection> {
    let run = &image.run;
    if state.runs.contains_key(&run.id) {
        return Err(Rejection::NotNow("the run is live".into()));
    }
    if state.run_by_name(&run.name).is_some() {
        return Err(Rejection::RunNameTaken(Arc::clone(&run.name)));
    }
    room_for(state, run.tasks.len())?;
    if !run.is_ended() || run.id >= state.next_run {
        return Err(Rejection::NotNow("no archived run of this home".into()));
    }
    let mut archived = state.archived.iter();
    if archived.any(|(id, last)| *id == run.id && *last != run.last_seq) {
        let text = "the run has gone on since it was read from the archive; ask again";
        return Err(Rejection::NotNow(text.into()));
    }
    if let Err(reason) = crate::invariants::check_run(run) {
        let text = format!("the archived run does not hold together: {reason}");
        return Err(Rejection::NotNow(text.into()));
    }
    Ok(Decision::done(vec![EventKind::RunReloaded {
        run: run.id,
        image: Arc::clone(image),
    }]))
}

/// Refuses one more run of so many tasks when there are too many already.
fn room_for(state: &State, tasks: usize) -> Result<(), Rejection> {
    let refused = |limit, max| {
        let max = max as u64;
        Err(Rejection::Limit { limit, max })
    };
    if state.runs.len() >= limits::LIVE_RUNS {
        return refused("live runs", limits::LIVE_RUNS);
    }
    let live: usize = state.runs.values().map(|entry| entry.run.tasks.len()).sum();
    if live.saturating_add(tasks) > limits::LIVE_TASKS {
        return refused("tasks of live runs", limits::LIVE_TASKS);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::world::{World, plan};

    #[test]
    fn a_run_is_refused_that_would_make_too_many_live_tasks() {
        let mut world = World::new();
        world.submit(plan(&["a", "b", "c: a b"]));
        let left = limits::LIVE_TASKS - 3;
        assert_eq!(room_for(&world.state, left), Ok(()));
        let refused = room_for(&world.state, left + 1).unwrap_err();
        let text = "limit reached: tasks of live runs (at most 1000000)";
        assert_eq!(refused.to_string(), text);
    }
}
