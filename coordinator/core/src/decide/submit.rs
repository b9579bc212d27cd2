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
    if state.runs.len() >= limits::LIVE_RUNS {
        return Err(too_many_runs());
    }
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
    if state.runs.len() >= limits::LIVE_RUNS {
        return Err(too_many_runs());
    }
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

fn too_many_runs() -> Rejection {
    Rejection::Limit {
        limit: "live runs",
        max: limits::LIVE_RUNS as u64,
    }
}
