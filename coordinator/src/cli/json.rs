//! The shapes that programs read. Keys are added, never renamed.

use muster_proto::v1;
use serde_json::{Map, Value, json};

use super::show::{counts, machine_time};

/// States that counts always name, so that a script can ask without looking first.
const ALWAYS: [&str; 5] = ["succeeded", "failed", "cancelled", "aborted", "skipped"];

/// Describes a run in short: the last line of `run --json`.
pub(crate) fn result(run: &v1::Run) -> Value {
    json!({
        "run": run.run,
        "plan": run.plan,
        "state": run.state,
        "tasks": task_counts(run),
        "integration": integration(run),
        "failure": run.failure.as_ref().map(failure),
    })
}

/// Describes a run whole: `status RUN --json`. Holds everything that [`result`] does.
pub(crate) fn run(run: &v1::Run) -> Value {
    let more = json!({
        "submitted_at": machine_time(run.submitted_at.as_ref()),
        "ended_at": machine_time(run.ended_at.as_ref()),
        "submitted_by": run.submitted_by,
        "repository": run.repository,
        "base": run.base,
        "last_seq": run.last_seq,
        "archived": run.archived,
        "critical_path": run.critical_path,
        "task_list": run.tasks.iter().map(task).collect::<Vec<_>>(),
    });
    let mut whole = result(run);
    if let (Value::Object(whole), Value::Object(more)) = (&mut whole, more) {
        whole.extend(more);
    }
    whole
}

/// Describes a run of a list.
pub(crate) fn summary(run: &v1::RunSummary) -> Value {
    let mut tasks: Map<String, Value> = ALWAYS
        .iter()
        .map(|state| ((*state).to_owned(), 0.into()))
        .collect();
    tasks.extend(
        run.tasks
            .iter()
            .map(|(state, count)| (state.clone(), (*count).into())),
    );
    json!({
        "run": run.run,
        "plan": run.plan,
        "state": run.state,
        "submitted_at": machine_time(run.submitted_at.as_ref()),
        "ended_at": machine_time(run.ended_at.as_ref()),
        "tasks": tasks,
        "archived": run.archived,
    })
}

fn task_counts(run: &v1::Run) -> Value {
    let mut tasks: Map<String, Value> = ALWAYS
        .iter()
        .map(|state| ((*state).to_owned(), 0.into()))
        .collect();
    tasks.extend(
        counts(&run.tasks)
            .into_iter()
            .map(|(state, count)| (state.to_owned(), count.into())),
    );
    tasks.into()
}

fn integration(run: &v1::Run) -> Value {
    match &run.integration {
        Some(of) if of.state != "none" && !of.branch.is_empty() => json!({
            "state": of.state,
            "branch": of.branch,
            "commit": of.commit,
            "conflict_tasks": of.conflict_tasks,
            "conflict_files": of.conflict_files,
            "detail": of.detail,
        }),
        _ => Value::Null,
    }
}

fn failure(failure: &v1::Failure) -> Value {
    json!({ "class": failure.class, "message": failure.message, "output": failure.output })
}

fn task(task: &v1::Task) -> Value {
    json!({
        "name": task.name,
        "state": task.state,
        "depends_on": task.depends_on,
        "generation": task.generation,
        "attempts": task.attempts.iter().map(attempt).collect::<Vec<_>>(),
        "failure": task.failure.as_ref().map(failure),
        "reason": task.reason,
        "commit": task.commit,
        "no_change": task.no_change,
        "agent": task.agent,
        "priority": task.priority,
    })
}

fn attempt(attempt: &v1::Attempt) -> Value {
    json!({
        "number": attempt.number,
        "worker": attempt.worker,
        "state": attempt.state,
        "granted_at": machine_time(attempt.granted_at.as_ref()),
        "started_at": machine_time(attempt.started_at.as_ref()),
        "ended_at": machine_time(attempt.ended_at.as_ref()),
        "failure": attempt.failure.as_ref().map(failure),
        "commit": attempt.commit,
        "usage": attempt.usage.as_ref().map(usage),
        "summary": attempt.summary,
        "lease": attempt.lease,
    })
}

fn usage(usage: &v1::Usage) -> Value {
    let seconds = usage.run_time.as_ref().map(|time| {
        let whole = u64::try_from(time.seconds).unwrap_or_default();
        let nanos = u32::try_from(time.nanos).unwrap_or_default();
        std::time::Duration::new(whole, nanos).as_secs_f64()
    });
    json!({
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cost_micros": usage.cost_micros,
        "run_seconds": seconds,
    })
}

/// Describes an event of `watch --json`. `seq` is that of the last journal event.
pub(crate) fn watched(
    run: &str,
    seq: u64,
    cursor: &str,
    item: &v1::watch_run_response::Item,
) -> Value {
    use v1::watch_run_response::Item;
    match item {
        Item::Journal(event) => json!({
            "seq": event.seq,
            "cursor": cursor,
            "run": run,
            "at": machine_time(event.at.as_ref()),
            "kind": event.kind,
            "task": event.task,
            "attempt": event.attempt,
            "text": event.text,
            // The coordinator's own words; text that is not JSON is given as text.
            "event": serde_json::from_str::<Value>(&event.json)
                .unwrap_or_else(|_| Value::String(event.json.clone())),
        }),
        Item::Agent(event) => {
            let mut value = json!({
                "seq": seq,
                "cursor": cursor,
                "run": run,
                "task": (!event.task.is_empty()).then_some(&event.task),
                "work": work(event.work.as_ref()),
                "attempt": attempt_of(event.work.as_ref()),
                "lease": event.lease,
            });
            if let (Value::Object(value), Some(of)) = (&mut value, &event.event) {
                if let Value::Object(more) = agent_event(of) {
                    value.extend(more);
                }
            }
            value
        }
    }
}

/// Describes something that an agent let happen.
pub(crate) fn agent_event(event: &v1::AgentEvent) -> Value {
    use v1::agent_event::Kind;
    let at = i64::try_from(event.at_ms)
        .ok()
        .and_then(|at| jiff::Timestamp::from_millisecond(at).ok())
        .map(|at| format!("{at:.3}"));
    let (kind, mut value) = match &event.kind {
        Some(Kind::Phase(phase)) => (
            "agent_phase",
            json!({ "phase": phase.name, "detail": phase.detail }),
        ),
        Some(Kind::Output(output)) => {
            let stream = match output.stream() {
                v1::Stream::Stderr => "stderr",
                v1::Stream::Stdout | v1::Stream::Unspecified => "stdout",
            };
            let text = String::from_utf8_lossy(&output.data);
            ("agent_output", json!({ "stream": stream, "output": text }))
        }
        Some(Kind::OutputTruncated(cut)) => {
            ("agent_output_truncated", json!({ "bytes": cut.bytes }))
        }
        Some(Kind::Note(note)) => ("agent_note", json!({ "note": note })),
        None => ("agent_unknown", json!({})),
    };
    if let Value::Object(value) = &mut value {
        value.insert("kind".to_owned(), kind.into());
        value.insert("number".to_owned(), event.number.into());
        value.insert("at".to_owned(), at.into());
    }
    value
}

fn work(work: Option<&v1::Work>) -> Option<&'static str> {
    use v1::work::Kind;
    match work?.kind.as_ref()? {
        Kind::Attempt(_) => Some("attempt"),
        Kind::Verify(_) => Some("verify"),
        Kind::FinalVerify(_) => Some("final_verify"),
    }
}

fn attempt_of(work: Option<&v1::Work>) -> Option<u32> {
    use v1::work::Kind;
    match work?.kind.as_ref()? {
        Kind::Attempt(attempt) => Some(attempt.attempt),
        Kind::Verify(verify) => Some(verify.attempt),
        Kind::FinalVerify(_) => None,
    }
}
