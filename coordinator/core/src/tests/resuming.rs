//! Attempts that were cut off, and those that go on from them.

use super::world::*;
use crate::command::{Report, ReportAnswer, Target};
use crate::event::EventKind;
use crate::failure::FailureClass;
use crate::ids::{AttemptNo, RunId};
use crate::state::{Attempt, Lease};
use crate::time::Span;
use crate::{explain, limits};

/// Workers `w` here and `v` elsewhere, and a task `a` at work on `w` in the conversation `c1`.
fn at_work() -> (World, RunId, Lease) {
    let mut world = World::new();
    world.join("w", 1);
    let resuming = plan(&["a"]).retries(3);
    let run = world.submit(resuming.each(|task| task.profile.resumes = true));
    let lease = world.only();
    world.started(&lease);
    let opened = world.say(&lease, converses("c1"));
    assert_eq!(opened, ReportAnswer::Recorded);
    world.hello("v", 1, elsewhere(4));
    world.beat("v");
    (world, run, lease)
}

fn attempts(world: &World, run: RunId) -> &[Attempt] {
    world.state.task(world.key(run, "a")).unwrap().attempts()
}

/// The attempts that the newest one goes on from, and the conversation that it takes up.
fn goes_on(world: &World, run: RunId) -> (Vec<u32>, Option<String>) {
    let task = world.state.task(world.key(run, "a")).unwrap();
    let from = task.attempts().last().unwrap().continues;
    let line = task.line(from).map(|attempt| attempt.number.0).collect();
    let taken_up = task.conversation(from);
    (line, taken_up.map(|(_, opened)| opened.id.to_string()))
}

fn told(world: &World, run: RunId) -> String {
    explain::explain(&world.state, world.now, world.key(run, "a")).to_string()
}

#[test]
fn whoever_was_cut_off_goes_on_where_its_conversation_is() {
    for class in [
        FailureClass::WorkerLost,
        FailureClass::Transport,
        FailureClass::UsageLimit,
    ] {
        let (mut world, run, lease) = at_work();
        world.fail(&lease, class);
        world.pass_beating(Span::from_secs(10), &["v", "w"]);
        let next = world.only();
        assert_eq!(next.worker, worker("w"), "{class}");
        assert_eq!(goes_on(&world, run), (vec![1], Some("c1".into())));
        let placements = world.log.iter().filter_map(|event| match event.kind {
            EventKind::LeaseGranted { placement, .. } => {
                Some((placement.continues, placement.free, placement.available))
            }
            _ => None,
        });
        assert_eq!(
            placements.collect::<Vec<_>>(),
            [(false, 1, 1), (true, 1, 2)]
        );
        world.replayed();
    }
}

#[test]
fn whoever_does_not_remember_the_attempt_before_began_anew() {
    for (conversation, anew) in [("c1", false), ("c2", true)] {
        let (mut world, run, lease) = at_work();
        world.fail(&lease, FailureClass::WorkerLost);
        world.pass_beating(Span::from_secs(10), &["v", "w"]);
        let next = world.only();
        let began_anew = |world: &World| {
            let task = world.state.task(world.key(run, "a")).unwrap();
            task.began_anew(task.attempts().last().unwrap())
        };
        assert!(!began_anew(&world), "it has told of nothing yet");
        world.started(&next);
        world.say(&next, converses(conversation));
        assert_eq!(began_anew(&world), anew);
        world.say(&next, converses("put in short"));
        assert!(!began_anew(&world) || anew);
    }
}

#[test]
fn a_counted_failure_begins_anew_anywhere() {
    let (mut world, run, lease) = at_work();
    world.fail(&lease, FailureClass::AgentFailed);
    world.pass_beating(Span::from_secs(5), &["v", "w"]);
    assert_eq!(world.only().worker, worker("v"));
    assert_eq!(goes_on(&world, run), (vec![], None));
}

#[test]
fn an_agent_that_cannot_resume_begins_anew() {
    let mut world = World::new();
    world.join("w", 1);
    let run = world.submit(plan(&["a"]));
    let lease = world.only();
    world.say(&lease, converses("c1"));
    world.hello("v", 1, elsewhere(4));
    world.beat("v");
    world.fail(&lease, FailureClass::WorkerLost);
    world.pass_beating(Span::from_secs(5), &["v", "w"]);
    assert_eq!(world.only().worker, worker("v"));
    assert_eq!(goes_on(&world, run), (vec![], None));
}

#[test]
fn what_goes_on_waits_a_while_for_the_host_of_its_conversation() {
    let (mut world, run, lease) = at_work();
    world.pass(limits::LEASE_TTL + limits::LEASE_GRACE);
    assert!(world.state.lease(lease.id).is_none());
    world.close("w");
    world.pass_beating(Span::from_secs(2), &["v"]);
    assert_eq!(world.live(), []);
    let said = told(&world, run);
    assert!(
        said.starts_with("it waits: w has the conversation that it goes on with; in "),
        "{said}"
    );
    let left = crate::next_wakeup(&world.state).unwrap().0;
    assert!(left <= world.now + limits::RESUME_WAIT);
    world.pass_beating(Span::from_secs(50), &["v"]);
    assert_eq!(world.live(), []);
    world.pass_beating(Span::from_secs(15), &["v"]);
    let next = world.only();
    assert_eq!(next.worker, worker("v"));
    // It has the edits, and its worker decides what it can do without the conversation.
    assert_eq!(goes_on(&world, run), (vec![1], Some("c1".into())));
    world.replayed();
}

#[test]
fn another_worker_of_the_same_host_has_the_conversation_too() {
    let (mut world, _, _) = at_work();
    world.pass(limits::LEASE_TTL + limits::LEASE_GRACE);
    world.join("w2", 1);
    world.pass_beating(Span::from_secs(5), &["v", "w2"]);
    assert_eq!(world.only().worker, worker("w2"));
}

#[test]
fn whoever_has_the_conversation_gets_only_what_it_can_do() {
    let (mut world, run, lease) = at_work();
    let mut less = offer(1);
    less.agents.clear();
    world.say(&lease, Report::Stopped);
    world.hello("w", 2, less);
    world.pass_beating(Span::from_secs(50), &["v", "w"]);
    assert_eq!(world.live(), []);
    world.pass_beating(Span::from_secs(30), &["v", "w"]);
    assert_eq!(world.only().worker, worker("v"));
    assert_eq!(goes_on(&world, run), (vec![1], Some("c1".into())));
}

#[test]
fn other_tasks_are_not_kept_back_by_one_that_waits_for_its_host() {
    let (mut world, _, _) = at_work();
    world.pass(limits::LEASE_TTL + limits::LEASE_GRACE);
    let other = plan(&["b"]).named("other");
    world.submit(other.each(|task| task.profile.resumes = true));
    world.pass_beating(Span::from_secs(5), &["v"]);
    assert_eq!(world.at_work(), ["b"]);
}

#[test]
fn nobody_waits_for_a_worker_that_goes_away() {
    for class in [FailureClass::Preempted, FailureClass::Walltime] {
        let (mut world, run, lease) = at_work();
        world.fail(&lease, class);
        world.close("w");
        world.pass_beating(Span::from_secs(5), &["v"]);
        assert_eq!(world.only().worker, worker("v"));
        assert_eq!(goes_on(&world, run), (vec![1], Some("c1".into())));
    }
}

#[test]
fn nobody_waits_where_there_is_no_conversation() {
    let mut world = World::new();
    world.join("w", 1);
    let run = world.submit(plan(&["a"]).each(|task| task.profile.resumes = true));
    let lease = world.only();
    world.started(&lease);
    world.pass(limits::LEASE_TTL + limits::LEASE_GRACE);
    world.hello("v", 1, elsewhere(4));
    world.beat("v");
    world.pass_beating(Span::from_secs(5), &["v"]);
    assert_eq!(world.only().worker, worker("v"));
    assert_eq!(goes_on(&world, run), (vec![1], None));
}

#[test]
fn an_attempt_that_is_lost_early_leaves_the_earlier_conversation_to_the_next() {
    let (mut world, run, lease) = at_work();
    world.fail(&lease, FailureClass::WorkerLost);
    world.pass_beating(Span::from_secs(10), &["v", "w"]);
    let second = world.only();
    world.started(&second);
    world.fail(&second, FailureClass::WorkerLost);
    world.pass_beating(Span::from_secs(10), &["v", "w"]);
    let third = world.only();
    assert_eq!(third.worker, worker("w"));
    assert_eq!(goes_on(&world, run), (vec![2, 1], Some("c1".into())));
    // The newest conversation is the one to go on with.
    world.started(&third);
    world.say(&third, converses("c3"));
    world.fail(&third, FailureClass::WorkerLost);
    world.pass_beating(Span::from_secs(20), &["v", "w"]);
    assert_eq!(goes_on(&world, run), (vec![3, 2, 1], Some("c3".into())));
    world.replayed();
}

#[test]
fn work_given_back_by_a_machine_that_goes_away_goes_on_elsewhere_and_does_not_count() {
    for class in [FailureClass::Walltime, FailureClass::Preempted] {
        let (mut world, run, lease) = at_work();
        let given = Report::GivenBack {
            failure: failure(class),
        };
        assert_eq!(world.say(&lease, given), ReportAnswer::Recorded);
        // Nobody waits for the one that has the conversation: it does not come back.
        world.pass_beating(Span::from_secs(10), &["v"]);
        assert_eq!(world.only().worker, worker("v"), "{class}");
        assert_eq!(goes_on(&world, run), (vec![1], Some("c1".into())));
        let task = world.state.task(world.key(run, "a")).unwrap();
        let history = task.history.as_ref().unwrap();
        let counts = (history.counted, history.crashes, history.departures);
        assert_eq!(counts, (0, 0, 1), "{class}");
        world.replayed();
    }
}

#[test]
fn a_grant_that_came_to_nothing_does_not_break_the_line() {
    let (mut world, run, lease) = at_work();
    world.fail(&lease, FailureClass::WorkerLost);
    world.pass_beating(Span::from_secs(10), &["v", "w"]);
    let second = world.only();
    let given = Report::GivenBack {
        failure: failure(FailureClass::Preempted),
    };
    assert_eq!(world.say(&second, given), ReportAnswer::Recorded);
    world.pass_beating(Span::from_secs(10), &["v", "w"]);
    let third = world.only();
    assert_eq!(third.worker, worker("w"));
    assert_eq!(attempts(&world, run)[2].continues, Some(AttemptNo(1)));
}

#[test]
fn a_new_generation_begins_anew() {
    let (mut world, run, lease) = at_work();
    world.cancel(Target::Run(run));
    world.say(&lease, Report::Stopped);
    world.retry(Target::Run(run));
    world.pass_beating(Span::from_secs(5), &["v", "w"]);
    assert_eq!(goes_on(&world, run), (vec![], None));
    let lease = world.only();
    world.say(&lease, converses("c2"));
    for _ in 0..limits::CRASH_LIMIT {
        let lease = world.only();
        world.fail(&lease, FailureClass::WorkerLost);
        world.pass_beating(Span::from_secs(60), &["v", "w"]);
    }
    assert_eq!(world.states(run), "a=failed");
    world.retry(Target::Run(run));
    assert_eq!(goes_on(&world, run), (vec![], None));
}

#[test]
fn a_restart_keeps_what_an_attempt_goes_on_from() {
    let (mut world, run, lease) = at_work();
    world.fail(&lease, FailureClass::WorkerLost);
    world.restart();
    world.hello("v", 1, elsewhere(4));
    world.beat("v");
    world.pass_beating(Span::from_secs(5), &["v"]);
    assert_eq!(world.live(), []);
    world.hello("w", 1, offer(1));
    world.beat("w");
    let next = world.only();
    assert_eq!(next.worker, worker("w"));
    assert_eq!(goes_on(&world, run), (vec![1], Some("c1".into())));
}

#[test]
fn only_what_was_cut_off_is_gone_on_with() {
    for class in FailureClass::ALL {
        let cut_off = matches!(
            class,
            FailureClass::WorkerLost
                | FailureClass::Preempted
                | FailureClass::Walltime
                | FailureClass::RateLimit
                | FailureClass::ProviderCapacity
                | FailureClass::ProviderError
                | FailureClass::Transport
                | FailureClass::UsageLimit
        );
        assert_eq!(class.resumes(), cut_off, "{class}");
        let leaves = matches!(class, FailureClass::Preempted | FailureClass::Walltime);
        assert_eq!(class.leaves(), leaves, "{class}");
    }
}
