use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use coordinator_core::event::Placement;
use coordinator_core::state::Run;
use coordinator_core::{Event, EventKind, Failure, Span};
use serde::Serialize;

use super::*;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/store/form/golden")
        .join(name)
}

/// Compares what today's writer writes with a golden file, byte for byte. `UPDATE=1` writes files
/// that are not there; it never changes one, since a released form never changes.
fn check_golden(name: &str, written: &str) -> Vec<u8> {
    let path = golden(name);
    if std::env::var_os("UPDATE").is_some() && !path.exists() {
        std::fs::write(&path, written).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap();
    assert_eq!(kept, written, "{name}");
    kept.into_bytes()
}

fn pretty(form: &impl Serialize) -> String {
    serde_json::to_string_pretty(form).unwrap() + "\n"
}

fn batch() -> Batch {
    Batch {
        epoch: samples::EPOCH,
        at: samples::at(0),
        events: samples::events(),
    }
}

fn head() -> Head {
    Head::new(samples::at(41), &samples::image())
}

fn summary() -> Summary {
    Summary::of(&samples::run_image().run).unwrap()
}

#[test]
fn golden_batch_loads_and_is_written_alike() {
    let batch = batch();
    let body = encode_batch(batch.epoch, batch.at, &batch.events).unwrap();
    // One event a line; the file is otherwise the body as it is.
    let lines = String::from_utf8(body)
        .unwrap()
        .replace(r#"{"seq""#, "\n{\"seq\"");
    let kept = check_golden("v1-batch.json", &(lines + "\n"));
    assert_eq!(decode_batch(1, &kept).unwrap(), batch);
}

#[test]
fn golden_run_image_loads_and_is_written_alike() {
    let image = samples::run_image();
    let kept = check_golden("v1-run.json", &pretty(&run::RunV1::from(&image.run)));
    assert_eq!(decode_run(1, &kept).unwrap(), image);
    let body = encode_run(&image.run).unwrap();
    assert_eq!(decode_run(1, &body).unwrap(), image);
}

#[test]
fn golden_snapshot_loads_and_is_written_alike() {
    let head = head();
    let kept = check_golden("v1-snapshot.json", &pretty(&snapshot::HeadV1::from(&head)));
    assert_eq!(decode_head(1, &kept).unwrap(), head);
    let body = encode_head(&head).unwrap();
    let image = decode_head(1, &body)
        .unwrap()
        .with_runs(samples::image().runs);
    assert_eq!(image, samples::image());
}

#[test]
fn golden_summary_loads_and_is_written_alike() {
    let kept = check_golden(
        "v1-summary.json",
        &pretty(&run::SummaryV1::from(&summary())),
    );
    assert_eq!(decode_summary(1, &kept).unwrap(), summary());
    let body = encode_summary(&summary()).unwrap();
    assert_eq!(decode_summary(1, &body).unwrap(), summary());
}

#[test]
fn golden_files_hold_every_variant() {
    let set = |names: &[&'static str]| names.iter().copied().collect::<BTreeSet<_>>();
    let events = samples::events();
    let kinds: BTreeSet<_> = events
        .iter()
        .map(|event| samples::kind_name(&event.kind))
        .chain(samples::LATER_KINDS)
        .collect();
    assert_eq!(kinds, set(samples::KINDS));

    let tasks = samples::run_image().run.tasks;
    let states: BTreeSet<_> = tasks
        .iter()
        .map(|task| samples::task_state_name(&task.state))
        .collect();
    assert_eq!(states, set(samples::TASK_STATES));

    let ends: BTreeSet<_> = tasks
        .iter()
        .filter_map(|task| task.history.as_ref())
        .flat_map(|history| &history.attempts)
        .filter_map(|attempt| attempt.end.as_ref())
        .map(samples::attempt_end_name)
        .collect();
    assert_eq!(ends, set(samples::ATTEMPT_ENDS));
}

#[test]
fn runs_in_every_phase_survive_the_way_there_and_back() {
    let runs = samples::image().runs;
    let phases: BTreeSet<_> = runs
        .iter()
        .map(|run| samples::run_phase_name(&run.phase))
        .collect();
    assert_eq!(phases, samples::RUN_PHASES.iter().copied().collect());
    for run in runs {
        let body = encode_run(&run).unwrap();
        assert_eq!(decode_run(1, &body).unwrap(), RunImage { run });
    }
}

#[test]
fn events_alone_read_as_in_a_batch() {
    let events = samples::events();
    let bodies: Vec<_> = events
        .iter()
        .map(|event| event_json(event).unwrap())
        .collect();
    let array = format!("[{}]", bodies.join(","));
    assert_eq!(decode_events(1, array.as_bytes()).unwrap(), events);
}

#[test]
fn a_grant_keeps_why_its_worker_was_chosen_and_one_without_is_read_as_unknown() {
    let mut event = samples::events()
        .into_iter()
        .find(|event| matches!(event.kind, EventKind::LeaseGranted { .. }))
        .unwrap();
    let unknown = event_json(&event).unwrap();
    assert!(!unknown.contains("placement"), "{unknown}");
    let seen = Placement {
        free: 2,
        available: 3,
        passed: 1,
        continues: true,
        near: true,
    };
    if let EventKind::LeaseGranted { placement, .. } = &mut event.kind {
        *placement = seen;
    }
    let array = format!("[{}]", event_json(&event).unwrap());
    assert_eq!(decode_events(1, array.as_bytes()).unwrap(), [event]);
}

#[test]
fn failures_of_younger_classes_are_kept_too() {
    let (at, found) = samples::events()
        .into_iter()
        .find_map(|event| match event.kind {
            EventKind::TaskFailed { task, failure } => Some(((event.seq, event.at, task), failure)),
            _ => None,
        })
        .unwrap();
    for class in samples::LATER_CLASSES {
        let event = Event {
            seq: at.0,
            at: at.1,
            kind: EventKind::TaskFailed {
                task: at.2,
                failure: Failure {
                    class,
                    ..found.clone()
                },
            },
        };
        let array = format!("[{}]", event_json(&event).unwrap());
        assert_eq!(decode_events(1, array.as_bytes()).unwrap(), [event]);
    }
}

#[test]
fn what_a_provider_asked_for_and_how_often_it_or_machines_failed_are_kept() {
    let mut run = samples::run_image().run;
    let history = run
        .tasks
        .iter_mut()
        .find_map(|task| task.history.as_mut())
        .unwrap();
    history.deferrals = 7;
    history.departures = 9;
    run.profiles[0].near = true;
    history.last_failure.as_mut().unwrap().retry_after = Some(Span::from_secs(90));
    let body = encode_run(&run).unwrap();
    assert_eq!(decode_run(1, &body).unwrap(), RunImage { run });
}

#[test]
fn what_the_first_form_did_not_know_of_questions_is_kept_too() {
    let kinds = samples::later_kinds();
    let names: BTreeSet<_> = kinds.iter().map(samples::kind_name).collect();
    // Those of pools have a file of their own.
    for later in samples::LATER_KINDS.iter().filter(|kind| **kind != "Pool") {
        assert!(names.contains(later), "{later}");
    }
    let events: Vec<Event> = (1..)
        .zip(kinds)
        .map(|(seq, kind)| Event {
            seq,
            at: samples::at(seq),
            kind,
        })
        .collect();
    // One event a line; the file is otherwise the body as it is.
    let bodies: Vec<_> = events
        .iter()
        .map(|event| event_json(event).unwrap())
        .collect();
    let array = format!("[{}]\n", bodies.join(",\n"));
    let kept = check_golden("v1-questions.json", &array);
    assert_eq!(decode_events(1, &kept).unwrap(), events);

    let mut run = samples::run_image().run;
    run.profiles[0].resumes = true;
    run.tasks[3] = samples::asking_task();
    let kept = check_golden("v1-run-asking.json", &pretty(&run::RunV1::from(&run)));
    assert_eq!(decode_run(1, &kept).unwrap(), RunImage { run });
}

#[test]
fn which_declared_agent_a_task_needs_is_kept() {
    let mut batch = batch();
    let mut declared = 0;
    for event in &mut batch.events {
        if let EventKind::RunSubmitted { spec, .. } = &mut event.kind {
            for task in &mut std::sync::Arc::make_mut(spec).tasks {
                let requirement = &mut task.profile.requirement;
                requirement.declared = Some(coordinator_core::worker::DeclaredAgent {
                    kind: requirement.agent.clone(),
                    name: "mine".into(),
                    program: "tool".into(),
                });
                declared += 1;
            }
        }
    }
    assert!(declared > 0);
    let body = encode_batch(batch.epoch, batch.at, &batch.events).unwrap();
    assert_eq!(decode_batch(1, &body).unwrap(), batch);
}

#[test]
fn what_the_first_form_did_not_know_of_pools_is_kept_too() {
    let (happened, judged) = (samples::pool_events(), samples::judged_events());
    let all = happened.iter().chain(&judged);
    let names: BTreeSet<_> = all.map(samples::pool_event_name).collect();
    assert_eq!(names, samples::POOL_EVENTS.iter().copied().collect());
    let happened = happened.into_iter().map(EventKind::Pool);
    check_events("v1-pools.json", happened);
    let blamed = EventKind::AttemptFailed {
        run: samples::RUN,
        lease: coordinator_core::LeaseId(3),
        failure: Failure::new(coordinator_core::FailureClass::WorkerLost, "it fell silent"),
        usage: coordinator_core::event::Usage::default(),
        retry_at: None,
        blames_host: Some(true),
    };
    let judged = judged.into_iter().map(EventKind::Pool);
    check_events("v1-pools-judged.json", judged.chain([blamed]));

    let image = samples::pooled_image();
    let head = Head::new(samples::at(41), &image);
    let form = snapshot::HeadV1::from(&head);
    let kept = check_golden("v1-snapshot-pools.json", &pretty(&form));
    assert_eq!(decode_head(1, &kept).unwrap(), head);
    let run = &image.runs[0];
    let body = encode_run(run).unwrap();
    assert_eq!(decode_run(1, &body).unwrap(), RunImage { run: run.clone() });
    let body = encode_head(&head).unwrap();
    let runs = samples::pooled_image().runs;
    assert_eq!(decode_head(1, &body).unwrap().with_runs(runs), image);
}

/// Compares events alone with a golden file, a line each.
fn check_events(name: &str, kinds: impl IntoIterator<Item = EventKind>) {
    let events: Vec<Event> = (1..)
        .zip(kinds)
        .map(|(seq, kind)| Event {
            seq,
            at: samples::at(seq),
            kind,
        })
        .collect();
    let bodies: Vec<_> = events
        .iter()
        .map(|event| event_json(event).unwrap())
        .collect();
    let array = format!("[{}]\n", bodies.join(",\n"));
    let kept = check_golden(name, &array);
    assert_eq!(decode_events(1, &kept).unwrap(), events);
}

#[test]
fn how_the_start_of_an_allocation_went_is_kept() {
    let mut image = samples::pooled_image();
    let held = image.allocations.last_mut().unwrap();
    held.joined_at = Some(samples::at(13));
    (held.worked, held.proven) = (true, true);
    let head = Head::new(samples::at(41), &image);
    let form = snapshot::HeadV1::from(&head);
    let kept = check_golden("v1-snapshot-pools-judged.json", &pretty(&form));
    assert_eq!(decode_head(1, &kept).unwrap(), head);
}

#[test]
fn an_event_of_pools_of_an_unknown_kind_is_refused_as_newer() {
    let body = br#"{"epoch":1,"at":2,"events":[{"seq":1,"at":2,"ev":
        {"k":"pool","event":{"p":"pool_merged","pool":"gpu"}}}]}"#;
    let error = decode_batch(1, body).unwrap_err();
    assert!(matches!(error, Error::NewerEvent), "{error:?}");
}

#[test]
fn event_of_an_unknown_kind_is_refused_as_newer() {
    let body = br#"{"epoch":1,"at":2,"events":[{"seq":1,"at":2,"ev":{"k":"run_paused","run":7}}]}"#;
    let error = decode_batch(1, body).unwrap_err();
    assert!(matches!(error, Error::NewerEvent), "{error:?}");
    assert!(error.to_string().contains("written by a newer Muster"));
}

#[test]
fn unknown_failure_class_is_refused_as_newer_by_the_name_of_its_field() {
    let body = br#"{"epoch":1,"at":2,"events":[{"seq":1,"at":2,"ev":
        {"k":"task_failed","run":7,"task":0,"failure":{"class":"bored","message":"m"}}}]}"#;
    let error = decode_batch(1, body).unwrap_err();
    assert_eq!(
        error.to_string(),
        "failure.class \"bored\" is unknown: written by a newer Muster"
    );
}

#[test]
fn unknown_field_is_refused_rather_than_lost() {
    let body = br#"{"epoch":1,"at":2,"events":[{"seq":1,"at":2,"ev":
        {"k":"run_archived","run":7,"where":"s3"}}]}"#;
    let error = decode_batch(1, body).unwrap_err();
    assert!(
        matches!(error, Error::Json { what: "batch", .. }),
        "{error:?}"
    );
}

#[test]
fn form_of_a_higher_number_is_refused_as_newer() {
    let error = decode_run(FORM + 1, b"{}").unwrap_err();
    assert!(matches!(error, Error::NewerForm { .. }), "{error:?}");
}

#[test]
fn index_outside_the_run_is_refused_by_the_name_of_its_field() {
    let with = |change: fn(&mut Run)| {
        let mut run = samples::run_image().run;
        change(&mut run);
        decode_run(1, &encode_run(&run).unwrap())
            .unwrap_err()
            .to_string()
    };
    assert!(with(|run| run.profiles.truncate(1)).starts_with("tasks.profile is 1"));
    assert!(with(|run| run.tasks.truncate(11)).starts_with("tasks.dependents is 11"));
}

#[test]
fn equal_profiles_are_written_once() {
    let body = event_json(&samples::events()[4]).unwrap();
    assert_eq!(body.matches(r#""retries":2"#).count(), 1, "{body}");
}
