//! What each class of failure leads to.

use super::world::*;
use crate::TaskKey;
use crate::command::Report;
use crate::command::{ReportAnswer, Target};
use crate::event::Usage;
use crate::failure::{Failure, FailureClass};
use crate::limits;
use crate::state::TaskState;
use crate::time::Span;

/// Says that the attempt failed, with the provider's wish, and gives how long its task waits.
fn deferred(world: &mut World, key: TaskKey, class: FailureClass, wish: Option<Span>) -> Span {
    let lease = world.only();
    let report = Report::Failed {
        failure: Failure {
            retry_after: wish,
            ..failure(class)
        },
        usage: Usage::default(),
    };
    assert_eq!(world.say(&lease, report), ReportAnswer::Recorded);
    match world.state.task(key).unwrap().state {
        TaskState::Ready { not_before, .. } => {
            let left = not_before.since(world.now);
            world.pass_beating(left, &["w"]);
            left
        }
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn every_class_answers_whether_it_is_retried_and_whether_it_counts() {
    use FailureClass as C;
    for class in C::ALL {
        // Retried, counted, the provider's.
        let expected = match class {
            C::AgentFailed
            | C::VerifyFailed
            | C::TimedOut
            | C::Stalled
            | C::DiskAllowance
            | C::ContextWindow
            | C::Refusal
            | C::AgentCrashed
            | C::AgentError
            | C::OutputInvalid
            | C::NoChange => (true, true, false),
            C::WorkerLost
            | C::Preempted
            | C::Walltime
            | C::Workspace
            | C::Publish
            | C::AgentUnavailable => (true, false, false),
            C::RateLimit
            | C::ProviderCapacity
            | C::ProviderError
            | C::Transport
            | C::UsageLimit => (true, false, true),
            C::ChangeTooLarge => (false, true, false),
            C::BaseConflict
            | C::IntegrationConflict
            | C::NotPlaced
            | C::Internal
            | C::SecretUnavailable
            | C::Authentication
            | C::Denied
            | C::InvalidRequest => (false, false, false),
        };
        let found = (class.retryable(), class.counts(), class.is_providers());
        assert_eq!(found, expected, "{class}");
        assert_eq!(C::from_name(class.name()), Some(class));
    }
}

#[test]
fn a_failure_of_the_provider_uses_up_no_retry_and_waits_longer_each_time() {
    let mut world = World::new();
    world.join("w", 1);
    let run = world.submit(plan(&["a"]));
    let a = world.key(run, "a");
    let mut delays = vec![];
    for nth in 1..limits::PROVIDER_LIMIT {
        delays.push(deferred(&mut world, a, FailureClass::RateLimit, None));
        let history = world.state.task(a).unwrap().history.as_ref().unwrap();
        assert_eq!((history.counted, history.crashes), (0, 0));
        assert_eq!(history.deferrals, nth);
    }
    assert!(delays[0] >= Span::from_secs(5) && delays[0] <= Span::from_secs(10));
    assert!(delays[2] >= Span::from_secs(20), "{}", delays[2]);
    let most = delays.iter().max().unwrap();
    assert!(*most > limits::BACKOFF_MAX && *most <= limits::PROVIDER_BACKOFF_MAX);
    let last = world.only();
    world.fail(&last, FailureClass::RateLimit);
    assert_eq!(world.states(run), "a=failed");
    world.replayed();
    world.retry(Target::Task(a));
    let task = world.state.task(a).unwrap();
    assert_eq!(task.history.as_ref().unwrap().deferrals, 0);
}

#[test]
fn losses_and_failures_of_the_provider_are_counted_apart() {
    let mut world = World::new();
    world.join("w", 1);
    let run = world.submit(plan(&["a"]));
    let a = world.key(run, "a");
    for _ in 1..limits::CRASH_LIMIT {
        deferred(&mut world, a, FailureClass::Transport, None);
        deferred(&mut world, a, FailureClass::Workspace, None);
    }
    deferred(&mut world, a, FailureClass::ProviderError, None);
    let last = world.only();
    world.fail(&last, FailureClass::Workspace);
    assert_eq!(world.states(run), "a=failed");
}

#[test]
fn what_the_provider_asks_for_is_the_earliest_next_attempt_within_a_bound() {
    let mut world = World::new();
    world.join("w", 1);
    let run = world.submit(plan(&["a"]));
    let a = world.key(run, "a");
    let hour = Span::from_secs(3_600);
    let class = FailureClass::UsageLimit;
    assert_eq!(deferred(&mut world, a, class, Some(hour)), hour);
    let soon = deferred(&mut world, a, class, Some(Span::from_ms(1)));
    assert!(soon >= Span::from_secs(5), "{soon}");
    let never = Span::from_secs(10 * 365 * 24 * 3_600);
    let most = deferred(&mut world, a, class, Some(never));
    assert_eq!(most, limits::RETRY_AFTER_MAX);
}

#[test]
fn a_counted_failure_waits_as_the_provider_asks_too() {
    let mut world = World::new();
    world.join("w", 1);
    let run = world.submit(plan(&["a"]).retries(1));
    let a = world.key(run, "a");
    let wish = Some(Span::from_secs(50));
    let left = deferred(&mut world, a, FailureClass::AgentError, wish);
    assert_eq!(left, Span::from_secs(50));
}

#[test]
fn machines_that_go_away_wear_a_task_out_slowly_and_delay_it_little() {
    for class in [FailureClass::Walltime, FailureClass::Preempted] {
        let mut world = World::new();
        let run = world.submit(plan(&["a"]));
        let key = world.key(run, "a");
        world.join("w", 1);
        for _ in 1..limits::DEPARTURE_LIMIT {
            let waits = deferred(&mut world, key, class, None);
            assert!(waits <= Span::from_secs(1), "{waits}");
        }
        let lease = world.only();
        world.fail(&lease, class);
        assert_eq!(world.task_state(run, "a").name(), "failed");
    }
}
