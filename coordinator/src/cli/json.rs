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
        "usage": super::usage::json(run.usage.as_ref()),
        "mirror": run.mirror.as_ref().map(|mirror| json!({
            "url": mirror.url,
            "state": mirror.state,
            "detail": mirror.detail,
        })),
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
        "asks": (!task.asks.is_empty()).then_some(&task.asks),
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
        "continues": (attempt.continues > 0).then_some(attempt.continues),
        "anew": (attempt.continues > 0).then_some(attempt.anew),
        "conversation": (!attempt.conversation.is_empty()).then_some(&attempt.conversation),
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
            let more = event.event.as_ref().map(agent_event);
            if let (Value::Object(value), Some(Value::Object(more))) = (&mut value, more) {
                value.extend(more);
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
        Some(Kind::Activity(activity)) => ("agent_activity", super::activity::json(activity)),
        Some(Kind::Capture(capture)) => {
            let direction = match capture.direction() {
                v1::Direction::ToAgent => "to_agent",
                v1::Direction::FromAgent | v1::Direction::Unspecified => "from_agent",
            };
            let value = json!({ "bytes": capture.bytes, "direction": direction });
            ("agent_capture", value)
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::canned;

    #[test]
    fn the_result_of_a_run_has_the_keys_that_scripts_rely_on() {
        let value = result(&canned::succeeded());
        assert_eq!(value["run"], "add-auth-b7itx33");
        assert_eq!(value["state"], "succeeded");
        let tasks = json!({
            "succeeded": 2, "failed": 0, "cancelled": 0, "aborted": 0, "skipped": 0,
        });
        assert_eq!(value["tasks"], tasks);
        assert_eq!(
            value["integration"]["branch"],
            "muster/add-auth-b7itx33/integration"
        );
        assert_eq!(value["integration"]["commit"], "c".repeat(40));
        assert_eq!(result(&canned::failed())["integration"], Value::Null);
        assert_eq!(
            result(&canned::conflicting())["integration"]["commit"],
            Value::Null
        );
    }

    #[test]
    fn a_whole_run_holds_all_that_its_result_does() {
        let canned = canned::failed();
        let whole = run(&canned);
        for (key, value) in result(&canned).as_object().unwrap() {
            assert_eq!(whole.get(key), Some(value), "{key}");
        }
        insta::assert_snapshot!(serde_json::to_string_pretty(&whole).unwrap());
    }

    #[test]
    fn each_watched_event_carries_the_journals_number_and_a_cursor() {
        use v1::watch_run_response::Item;
        let journal = Item::Journal(v1::JournalEvent {
            seq: 5,
            kind: "lease_granted".to_owned(),
            task: Some("api".to_owned()),
            attempt: Some(1),
            json: "{\"k\":1}".to_owned(),
            ..v1::JournalEvent::default()
        });
        let value = watched("r", 5, "5", &journal);
        assert_eq!((&value["seq"], &value["cursor"]), (&json!(5), &json!("5")));
        assert_eq!(value["event"], json!({ "k": 1 }));

        let agent = Item::Agent(v1::TaskAgentEvent {
            task: "api".to_owned(),
            lease: 9,
            work: Some(v1::Work {
                kind: Some(v1::work::Kind::Verify(v1::VerifyWork { attempt: 2 })),
            }),
            event: Some(v1::AgentEvent {
                number: 3,
                at_ms: 1_700_000_000_000,
                kind: Some(v1::agent_event::Kind::Output(v1::Output {
                    stream: v1::Stream::Stderr.into(),
                    data: b"caf\xc3\xa9\n".to_vec(),
                })),
            }),
        });
        let expected = json!({
            "seq": 5, "cursor": "5;9:3", "run": "r", "task": "api", "work": "verify", "attempt": 2,
            "lease": 9, "kind": "agent_output", "number": 3, "at": "2023-11-14T22:13:20.000Z",
            "stream": "stderr", "output": "café\n",
        });
        assert_eq!(watched("r", 5, "5;9:3", &agent), expected);
    }
}
