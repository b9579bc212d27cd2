//! The life of runs and tasks from submission to the end.

use super::world::*;
use crate::command::{GitStepFailure, Rejection, Report, ReportAnswer, Target};
use crate::event::{LeaseEnd, MergeConflict, Outcome, RunOutcome, Usage, Work};
use crate::failure::FailureClass;
use crate::state::{AttemptEnd, RunPhase, TaskState};
use crate::time::Span;
use crate::{
    Command, Effect, EventKind, GitStep, WakeReason, effects, git_work, limits, next_wakeup,
    promote,
};

#[test]
fn a_run_of_one_task_succeeds() {
    let mut world = World::new();
    world.join("w", 1);
    let run = world.submit(plan(&["a"]));
    let lease = world.only();
    world.started(&lease);
    world.succeed(&lease);
    assert_eq!(
        kinds(&world.log).join(" "),
        "joined submitted ready granted work made closed succeeded ended"
    );
    assert!(matches!(
        world.phase(run),
        RunPhase::Ended {
            outcome: RunOutcome::Succeeded,
            integrated: None,
            ..
        }
    ));
    world.replayed();
}

#[test]
fn a_task_is_ready_the_moment_its_last_dependency_succeeds() {
    let mut world = World::new();
    world.join("w", 2);
    let run = world.submit(plan(&["a", "b", "c: a b"]));
    assert_eq!(world.at_work(), ["a", "b"]);
    let live = world.live();
    world.succeed(&live[0]);
    assert_eq!(world.states(run), "a=succeeded b=leased c=blocked");
    world.succeed(&live[1]);
    assert_eq!(world.states(run), "a=succeeded b=succeeded c=basing");
    let steps = git_work(&world.state);
    let [GitStep::Base { commits, base, .. }] = &steps[..] else {
        panic!("{steps:?}");
    };
    assert_eq!(base, &commit("base"));
    let commits: Vec<_> = commits.iter().map(|(_, commit)| commit.as_str()).collect();
    assert_eq!(commits, ["c-task#0-1", "c-task#1-1"]);
    world.merge_all();
    assert_eq!(world.at_work(), ["c"]);
    let base = world.state.base(world.key(run, "c"));
    assert_eq!(base, Some(&commit("merge(c-task#0-1+c-task#1-1)")));
}

#[test]
fn one_dependency_needs_no_merge_and_unchanged_ones_add_nothing() {
    let mut world = World::new();
    world.join("w", 2);
    let run = world.submit(plan(&["a", "b", "c: a b"]));
    let live = world.live();
    let nothing = Report::Succeeded {
        outcome: Outcome::NoChange,
        usage: Usage::default(),
        summary: "".into(),
    };
    assert_eq!(world.say(&live[0], nothing), ReportAnswer::Recorded);
    world.succeed(&live[1]);
    assert_eq!(world.at_work(), ["c"]);
    assert_eq!(
        world.state.base(world.key(run, "c")),
        Some(&commit("c-task#1-1"))
    );
}

#[test]
fn dependencies_that_do_not_merge_fail_the_task_without_an_attempt() {
    let mut world = World::new();
    world.join("w", 2);
    let run = world.submit(plan(&["a", "b", "c: a b", "d: c"]).retries(3));
    for lease in world.live() {
        world.succeed(&lease);
    }
    let steps = git_work(&world.state);
    let conflict = MergeConflict {
        tasks: vec![world.key(run, "a").task, world.key(run, "b").task],
        files: vec!["src/x.rs".into()],
        detail: "both changed it".into(),
    };
    world.act(&merged(&steps[0], Err(GitStepFailure::Conflict(conflict))));
    let RunPhase::Ended {
        outcome: RunOutcome::Failed(failure),
        ..
    } = world.phase(run)
    else {
        panic!("{:?}", world.phase(run));
    };
    assert_eq!(failure.class, FailureClass::BaseConflict);
    assert_eq!(
        &*failure.message,
        "task c failed: the dependencies do not merge: a and b meet in src/x.rs"
    );
    assert_eq!(
        world.states(run),
        "a=succeeded b=succeeded c=failed d=skipped"
    );
    assert_eq!(
        world.refused(&merged(&steps[0], Ok(()))),
        Rejection::StepStale
    );
}

#[test]
fn a_failed_task_skips_exactly_its_dependents() {
    let mut world = World::new();
    world.join("w", 4);
    let run = world.submit(plan(&["a", "b", "c: a", "d: c b", "e: b"]));
    let live = world.live();
    world.fail(&live[0], FailureClass::AgentFailed);
    assert_eq!(
        world.states(run),
        "a=failed b=leased c=skipped d=skipped e=blocked"
    );
    let a = world.key(run, "a").task;
    for name in ["c", "d"] {
        let state = world.task_state(run, name);
        assert!(matches!(state, TaskState::Skipped { because, .. } if *because == a));
    }
    world.succeed(&live[1]);
    let e = world.only();
    world.succeed(&e);
    let RunPhase::Ended {
        outcome: RunOutcome::Failed(failure),
        ..
    } = world.phase(run)
    else {
        panic!("{:?}", world.phase(run));
    };
    assert_eq!(&*failure.message, "task a failed: it did not work");
}

#[test]
fn counted_failures_use_up_the_retries() {
    let mut world = World::new();
    world.join("w", 1);
    let run = world.submit(plan(&["a"]).retries(2));
    for number in 1..=3 {
        let lease = world.only();
        assert!(matches!(lease.work, Work::Attempt { attempt, .. } if attempt.0 == number));
        world.fail(&lease, FailureClass::AgentFailed);
        world.pass(Span::from_secs(10));
        world.beat("w");
    }
    assert_eq!(world.states(run), "a=failed");
}

#[test]
fn uncounted_failures_are_bounded_by_the_crash_limit() {
    let mut world = World::new();
    world.join("w", 1);
    let run = world.submit(plan(&["a"]).retries(0));
    for _ in 0..limits::CRASH_LIMIT {
        let lease = world.only();
        world.fail(&lease, FailureClass::WorkerLost);
        world.pass_beating(Span::from_secs(30), &["w"]);
    }
    assert_eq!(world.states(run), "a=failed");
    let attempts = world.state.task(world.key(run, "a")).unwrap().attempts();
    assert_eq!(attempts.len(), 5);
}

#[test]
fn a_verify_follows_the_attempt_and_its_failure_counts() {
    let mut world = World::new();
    world.join("w", 1);
    let run = world.submit(plan(&["a"]).verified().retries(1));
    let first = world.only();
    world.succeed(&first);
    assert_eq!(world.at_work(), ["(a)"]);
    let verify = world.only();
    world.fail(&verify, FailureClass::VerifyFailed);
    let task = world.state.task(world.key(run, "a")).unwrap();
    let history = task.history.as_ref().unwrap();
    assert_eq!((history.counted, history.crashes), (1, 0));
    assert!(matches!(
        history.attempts[0].end,
        Some(AttemptEnd::VerifyFailed { .. })
    ));
    world.pass_beating(Span::from_secs(10), &["w"]);
    assert_eq!(world.at_work(), ["a"]);
    let second = world.only();
    world.succeed(&second);
    let verify = world.only();
    world.succeed(&verify);
    assert_eq!(world.states(run), "a=succeeded");
    world.replayed();
}

#[test]
fn a_lost_verifier_repeats_the_verify_and_not_the_attempt() {
    let mut world = World::new();
    world.join("w", 1);
    let run = world.submit(plan(&["a"]).verified());
    let attempt = world.only();
    world.succeed(&attempt);
    for _ in 1..limits::VERIFY_CRASH_LIMIT {
        let verify = world.only();
        world.fail(&verify, FailureClass::Workspace);
        assert_eq!(world.states(run), "a=verifying");
        world.pass_beating(Span::from_secs(30), &["w"]);
    }
    let verify = world.only();
    world.fail(&verify, FailureClass::Workspace);
    assert_eq!(world.states(run), "a=failed");
}

#[test]
fn a_verify_that_lacks_something_on_one_worker_is_tried_on_the_others() {
    let mut world = World::new();
    world.join("able", 1);
    let run = world.submit(plan(&["a"]).verified());
    let attempt = world.only();
    // With more slots free it comes first.
    world.join("lacks-it", 2);
    world.succeed(&attempt);
    let verify = world.only();
    assert_eq!(verify.worker, worker("lacks-it"));
    world.fail(&verify, FailureClass::SecretUnavailable);
    assert_eq!(world.states(run), "a=verifying");
    world.pass_beating(Span::from_secs(30), &["able", "lacks-it"]);
    let verify = world.only();
    assert_eq!(verify.worker, worker("able"));
    world.succeed(&verify);
    assert_eq!(world.states(run), "a=succeeded");
    world.replayed();
}

#[test]
fn a_verify_that_no_worker_can_begin_fails_its_task_in_its_own_class() {
    let mut world = World::new();
    world.join("w", 1);
    let run = world.submit(plan(&["a"]).verified().retries(3));
    let attempt = world.only();
    world.succeed(&attempt);
    for _ in 0..limits::VERIFY_CRASH_LIMIT {
        let verify = world.only();
        world.fail(&verify, FailureClass::SecretUnavailable);
        world.pass_beating(Span::from_secs(60), &["w"]);
    }
    assert_eq!(world.states(run), "a=failed");
    let TaskState::Failed { failure, .. } = world.task_state(run, "a") else {
        panic!("{:?}", world.task_state(run, "a"));
    };
    assert_eq!(failure.class, FailureClass::SecretUnavailable);
    assert!(world.live().is_empty());
}

#[test]
fn succeeded_tasks_are_integrated_in_topological_order_and_verified() {
    let mut world = World::new();
    world.join("w", 2);
    let run = world.submit(plan(&["late: early", "early"]).integrated(Some(verify())));
    for _ in 0..2 {
        let lease = world.only();
        world.succeed(&lease);
    }
    let steps = git_work(&world.state);
    let [GitStep::Integration { commits, .. }] = &steps[..] else {
        panic!("{steps:?}");
    };
    let order: Vec<u32> = commits.iter().map(|(ix, _)| ix.0).collect();
    assert_eq!(order, [1, 0]);
    world.merge_all();
    assert_eq!(world.at_work(), ["(final)"]);
    let verify = world.only();
    world.succeed(&verify);
    let RunPhase::Ended {
        outcome: RunOutcome::Succeeded,
        integrated: Some(integrated),
        ..
    } = world.phase(run)
    else {
        panic!("{:?}", world.phase(run));
    };
    assert_eq!(integrated.as_str(), "merge(c-task#1-1+c-task#0-1)");
    world.replayed();
}

#[test]
fn an_integration_conflict_ends_the_run_and_can_be_retried() {
    let mut world = World::new();
    world.join("w", 2);
    let run = world.submit(plan(&["a", "b"]).integrated(None));
    for lease in world.live() {
        world.succeed(&lease);
    }
    let steps = git_work(&world.state);
    let conflict = MergeConflict {
        tasks: vec![world.key(run, "b").task],
        files: vec!["f".into()],
        detail: "".into(),
    };
    world.act(&merged(
        &steps[0],
        Err(GitStepFailure::Conflict(conflict.clone())),
    ));
    assert_eq!(world.state.run(run).unwrap().conflict, Some(conflict));
    assert_eq!(world.states(run), "a=succeeded b=succeeded");
    assert_eq!(world.retry(Target::Run(run)), 0);
    assert_eq!(
        world.refused(&merged(&steps[0], Ok(()))),
        Rejection::StepStale
    );
    world.merge_all();
    assert!(matches!(
        world.phase(run),
        RunPhase::Ended {
            outcome: RunOutcome::Succeeded,
            ..
        }
    ));
}

#[test]
fn cancelling_a_run_revokes_its_leases_until_they_have_stopped() {
    let mut world = World::new();
    world.join("w", 1);
    let run = world.submit(plan(&["a", "b: a"]));
    let lease = world.only();
    world.started(&lease);
    let events = world.cancel(Target::Run(run));
    assert_eq!(
        kinds(&events).join(" "),
        "cancel revoked cancelled cancelled ended"
    );
    let stop = Effect::Stop {
        worker: worker("w"),
        lease: lease.id,
    };
    assert!(effects(&world.state, &events).contains(&stop));
    assert_eq!(world.say(&lease, made("late")), ReportAnswer::Stale);
    let archived = world.archived(run);
    assert_eq!(world.refused(&archived).code(), "NOT_NOW");
    assert_eq!(world.say(&lease, Report::Stopped), ReportAnswer::Recorded);
    assert_eq!(
        world.say(&lease, Report::Stopped),
        ReportAnswer::AlreadyRecorded
    );
    assert_eq!(world.say(&lease, made("later")), ReportAnswer::Stale);
    assert_eq!(world.refused(&archived).code(), "NOT_NOW", "it has gone on");
    let archived = world.archived(run);
    world.act(&archived);
    assert_eq!(world.state.runs().len(), 0);
    world.replayed();
}

#[test]
fn a_cancelled_task_skips_its_dependents_and_the_rest_goes_on() {
    let mut world = World::new();
    world.join("w", 1);
    let run = world.submit(plan(&["a", "b", "c: a"]));
    let key = world.key(run, "a");
    world.cancel(Target::Task(key));
    assert_eq!(world.states(run), "a=cancelled b=ready c=skipped");
    // The slot is the revoked lease's until its processes are gone.
    assert_eq!(world.live(), vec![]);
    let revoked = world.state.leases().next().unwrap().clone();
    world.say(&revoked, Report::Stopped);
    world.beat("w");
    let b = world.only();
    world.succeed(&b);
    assert!(matches!(
        world.phase(run),
        RunPhase::Ended {
            outcome: RunOutcome::Cancelled { .. },
            ..
        }
    ));
}

#[test]
fn work_that_takes_too_long_is_revoked_though_its_worker_lives() {
    let mut world = World::new();
    world.join("w", 1);
    let run = world.submit(plan(&["a"]));
    let lease = world.only();
    world.started(&lease);
    world.pass_beating(Span::from_secs(600 + 119), &["w"]);
    assert_eq!(world.states(run), "a=leased");
    world.pass_beating(Span::from_secs(2), &["w"]);
    let TaskState::Failed { failure, .. } = world.task_state(run, "a") else {
        panic!("{}", world.states(run));
    };
    assert_eq!(failure.class, FailureClass::TimedOut);
    assert!(world.state.lease(lease.id).unwrap().revoked);
    world.pass_beating(limits::LEASE_TTL + limits::LEASE_GRACE, &["w"]);
    assert_eq!(world.state.lease(lease.id), None);
}

#[test]
fn an_outcome_that_does_not_fit_the_run_is_a_failure() {
    let mut world = World::new();
    world.join("w", 1);
    let run = world.submit(plan(&["a"]));
    let lease = world.only();
    let report = Report::Succeeded {
        outcome: Outcome::NoRepository,
        usage: Usage::default(),
        summary: "".into(),
    };
    world.say(&lease, report);
    world.pass_beating(Span::from_secs(5), &["w"]);
    assert_eq!(world.states(run), "a=leased");
    assert_ne!(world.only().id, lease.id);
}

#[test]
fn a_worker_cannot_claim_a_class_that_is_the_coordinators() {
    let mut world = World::new();
    world.join("w", 1);
    let run = world.submit(plan(&["a"]));
    let lease = world.only();
    world.fail(&lease, FailureClass::Internal);
    let task = world.state.task(world.key(run, "a")).unwrap();
    let last = task
        .history
        .as_ref()
        .unwrap()
        .last_failure
        .as_ref()
        .unwrap();
    assert_eq!(last.class, FailureClass::Workspace);
    assert_eq!(world.states(run), "a=ready");
}

#[test]
fn work_given_back_before_it_began_counts_nothing() {
    let mut world = World::new();
    world.join("w", 1);
    let run = world.submit(plan(&["a"]));
    let lease = world.only();
    let back = Report::GivenBack {
        failure: failure(FailureClass::Preempted),
    };
    assert_eq!(world.say(&lease, back), ReportAnswer::Recorded);
    let closed = world.log.iter().any(|event| {
        matches!(
            event.kind,
            EventKind::LeaseClosed {
                end: LeaseEnd::NeverStarted,
                ..
            }
        )
    });
    assert!(closed);
    let task = world.state.task(world.key(run, "a")).unwrap();
    let history = task.history.as_ref().unwrap();
    assert_eq!((history.counted, history.crashes), (0, 0));
    world.beat("w");
    assert_eq!(world.live(), vec![]);
    world.pass(limits::BACKOFF_FIRST);
    assert_eq!(world.at_work(), ["a"]);
}

#[test]
fn the_same_key_gives_the_same_run_and_another_plan_is_refused() {
    let mut world = World::new();
    let submit = |name: &str, digest: &str| Command::Submit {
        spec: std::sync::Arc::new(plan(&["a"]).named(name).0),
        key: Some(text("key")),
        digest: text(digest),
    };
    let (_, first) = world.try_act(&submit("one", "x")).unwrap();
    let (events, second) = world.try_act(&submit("two", "x")).unwrap();
    assert_eq!(events, []);
    assert_ne!(first, second);
    assert_eq!(world.state.runs().len(), 1);
    assert_eq!(world.refused(&submit("two", "y")).code(), "KEY_REUSED");
    let other = Command::Submit {
        spec: std::sync::Arc::new(plan(&["a"]).named("one").0),
        key: None,
        digest: text("x"),
    };
    assert_eq!(world.refused(&other).code(), "RUN_NAME_TAKEN");
}

#[test]
fn a_run_without_a_repository_needs_no_commits() {
    let mut world = World::new();
    world.join("w", 2);
    let mut without = plan(&["a", "b", "c: a b"]).integrated(None).verified();
    without.0.source = None;
    let run = world.submit(without);
    let attempts_and_verifies = 6;
    for _ in 0..attempts_and_verifies {
        let lease = world.live()[0].clone();
        let report = match lease.work {
            Work::Attempt { .. } => Report::Succeeded {
                outcome: Outcome::NoRepository,
                usage: Usage::default(),
                summary: "".into(),
            },
            _ => Report::VerifyPassed,
        };
        assert_eq!(world.say(&lease, report), ReportAnswer::Recorded);
        world.beat("w");
    }
    assert_eq!(world.states(run), "a=succeeded b=succeeded c=succeeded");
    assert!(matches!(
        world.phase(run),
        RunPhase::Ended {
            integrated: None,
            ..
        }
    ));
}

#[test]
fn a_delay_that_has_passed_wakes_nobody_while_new_leases_are_held_back() {
    let mut world = World::new();
    world.join("w", 1);
    world.submit(plan(&["a"]).retries(1));
    let lease = world.only();
    world.fail(&lease, FailureClass::AgentFailed);
    let Some((at, WakeReason::Delay)) = next_wakeup(&world.state) else {
        panic!("the retry waits for its delay");
    };
    promote(&mut world.state, at);
    assert!(next_wakeup(&world.state).is_none_or(|(next, _)| next > at));
    assert!(world.live().is_empty());
}
