//! Reports that are repeated, contradict each other, or come when little has happened.

use super::world::*;
use crate::command::{GitStepFailure, Report, ReportAnswer, Target};
use crate::event::{EventKind, LeaseEnd, MergeConflict, RunOutcome};
use crate::failure::FailureClass;
use crate::state::{Lease, RunPhase};
use crate::time::Span;
use crate::{Command, Reply, git_work, limits};

fn one() -> (World, crate::RunId, Lease) {
    let mut world = World::new();
    world.join("w", 1);
    let run = world.submit(plan(&["a"]).retries(1));
    let lease = world.only();
    (world, run, lease)
}

fn given_back() -> Report {
    Report::GivenBack {
        failure: failure(FailureClass::Preempted),
    }
}

#[test]
fn a_start_that_is_said_twice_is_recorded_once() {
    let (mut world, _, lease) = one();
    world.started(&lease);
    world.pass(Span::from_secs(5));
    assert_eq!(
        world.say(&lease, Report::Started),
        ReportAnswer::AlreadyRecorded
    );
    let starts = world.log.iter();
    let starts = starts.filter(|event| matches!(event.kind, EventKind::WorkStarted { .. }));
    assert_eq!(starts.count(), 1);
}

#[test]
fn the_repeat_of_a_failure_is_known_and_a_later_success_is_not_believed() {
    let (mut world, run, lease) = one();
    let report = failed(FailureClass::AgentFailed);
    assert_eq!(world.say(&lease, report.clone()), ReportAnswer::Recorded);
    for (repeat, answer) in [
        (report, ReportAnswer::AlreadyRecorded),
        (given_back(), ReportAnswer::AlreadyRecorded),
        (Report::Started, ReportAnswer::AlreadyRecorded),
        (Report::Stopped, ReportAnswer::AlreadyRecorded),
        (made("late"), ReportAnswer::Stale),
        (Report::VerifyPassed, ReportAnswer::Stale),
        (asks(7, "?"), ReportAnswer::AlreadyRecorded),
    ] {
        assert_eq!(world.say(&lease, repeat.clone()), answer, "{repeat:?}");
    }
    assert_eq!(world.states(run), "a=ready");
}

#[test]
fn the_repeat_of_a_success_is_known_and_a_later_failure_is_not_believed() {
    let (mut world, run, lease) = one();
    assert_eq!(world.say(&lease, made("c")), ReportAnswer::Recorded);
    for (repeat, answer) in [
        (made("c"), ReportAnswer::AlreadyRecorded),
        (Report::Started, ReportAnswer::AlreadyRecorded),
        (failed(FailureClass::AgentFailed), ReportAnswer::Stale),
        (given_back(), ReportAnswer::Stale),
    ] {
        assert_eq!(world.say(&lease, repeat.clone()), answer, "{repeat:?}");
    }
    assert_eq!(world.states(run), "a=succeeded");
}

#[test]
fn after_an_ordered_stop_nothing_but_the_stop_is_known() {
    let (mut world, run, lease) = one();
    world.cancel(Target::Run(run));
    assert_eq!(world.say(&lease, Report::Stopped), ReportAnswer::Recorded);
    for (repeat, answer) in [
        (Report::Stopped, ReportAnswer::AlreadyRecorded),
        (Report::Started, ReportAnswer::Stale),
        (made("late"), ReportAnswer::Stale),
        (failed(FailureClass::AgentFailed), ReportAnswer::Stale),
    ] {
        assert_eq!(world.say(&lease, repeat.clone()), answer, "{repeat:?}");
    }
}

#[test]
fn a_lease_given_back_after_its_work_began_is_a_departure() {
    let (mut world, run, lease) = one();
    world.started(&lease);
    assert_eq!(world.say(&lease, given_back()), ReportAnswer::Recorded);
    let task = world.state.task(world.key(run, "a")).unwrap();
    let history = task.history.as_ref().unwrap();
    assert_eq!(
        (history.counted, history.crashes, history.departures),
        (0, 0, 1)
    );
    let end = world.log.iter().find_map(|event| match event.kind {
        EventKind::LeaseClosed { end, .. } => Some(end),
        _ => None,
    });
    assert_eq!(end, Some(LeaseEnd::Confirmed));
}

#[test]
fn a_verify_given_back_before_it_began_is_a_lost_verify() {
    let mut world = World::new();
    world.join("w", 1);
    let run = world.submit(plan(&["a"]).verified());
    let attempt = world.only();
    world.succeed(&attempt);
    let verify = world.only();
    assert_eq!(world.say(&verify, given_back()), ReportAnswer::Recorded);
    let lost = world.log.iter();
    let lost = lost.filter(|event| matches!(event.kind, EventKind::VerifyLost { .. }));
    assert_eq!(lost.count(), 1);
    assert_eq!(world.states(run), "a=verifying");
}

#[test]
fn cancelling_a_run_says_how_many_tasks_it_ended() {
    let mut world = World::new();
    let run = world.submit(plan(&["a", "b", "c: a"]));
    let command = Command::Cancel {
        target: Target::Run(run),
        by: text("me"),
        reason: "enough".into(),
    };
    match world.try_act(&command) {
        Ok((_, Reply::Touched { tasks })) => assert_eq!(tasks, 3),
        other => panic!("not cancelled: {other:?}"),
    }
}

#[test]
fn a_conflict_in_many_files_names_some_and_counts_the_rest() {
    let conflict_in = |count: usize| {
        let mut world = World::new();
        world.join("w", 2);
        let run = world.submit(plan(&["a", "b", "c: a b"]));
        for lease in world.live() {
            world.succeed(&lease);
        }
        let conflict = MergeConflict {
            tasks: vec![world.key(run, "a").task, world.key(run, "b").task],
            files: (0..count).map(|file| format!("f{file}").into()).collect(),
            detail: "both changed them".into(),
        };
        let steps = git_work(&world.state);
        world.act(&merged(&steps[0], Err(GitStepFailure::Conflict(conflict))));
        match world.phase(run) {
            RunPhase::Ended {
                outcome: RunOutcome::Failed(failure),
                ..
            } => failure.message.to_string(),
            other => panic!("{other:?}"),
        }
    };
    assert!(conflict_in(16).ends_with("f14, f15"));
    assert!(conflict_in(20).ends_with("f14, f15 and 4 more"));
}

#[test]
fn a_final_verify_that_is_lost_is_repeated_and_one_that_fails_ends_the_run() {
    let final_verify = || {
        let mut world = World::new();
        world.join("w", 1);
        let run = world.submit(plan(&["a"]).integrated(Some(verify())));
        let lease = world.only();
        world.succeed(&lease);
        world.merge_all();
        assert_eq!(world.at_work(), ["(final)"]);
        (world, run)
    };
    let (mut world, run) = final_verify();
    for lost in 1..=limits::VERIFY_CRASH_LIMIT {
        assert!(!world.state.run(run).unwrap().is_ended(), "{lost}");
        let verify = world.only();
        world.fail(&verify, FailureClass::Workspace);
        world.pass_beating(Span::from_secs(60), &["w"]);
    }
    assert!(world.state.run(run).unwrap().is_ended());

    let (mut world, run) = final_verify();
    let verify = world.only();
    world.fail(&verify, FailureClass::VerifyFailed);
    let RunPhase::Ended {
        outcome: RunOutcome::Failed(failure),
        ..
    } = world.phase(run)
    else {
        panic!("{:?}", world.phase(run))
    };
    assert_eq!(failure.class, FailureClass::VerifyFailed);
    assert_eq!(&*failure.message, "it did not work");
}

#[test]
fn a_verify_that_fails_under_another_name_says_which() {
    let mut world = World::new();
    world.join("w", 1);
    let run = world.submit(plan(&["a"]).verified());
    let attempt = world.only();
    world.succeed(&attempt);
    let verify = world.only();
    world.fail(&verify, FailureClass::TimedOut);
    let task = world.state.task(world.key(run, "a")).unwrap();
    let failure = task.history.as_ref().unwrap().last_failure.clone().unwrap();
    assert_eq!(failure.class, FailureClass::VerifyFailed);
    assert_eq!(
        &*failure.message,
        "the verify failed (timed_out): it did not work"
    );
}
