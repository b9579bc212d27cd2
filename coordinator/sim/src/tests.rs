//! Worlds and scenarios.

use std::collections::BTreeSet;
use std::fmt;

use super::*;
use crate::scenario::{
    Deed, DeedEnd, Happening, JobFate, JobKind, Moment, OrderFate, PoolPlan, What, When, WorkerPlan,
};

#[derive(Default)]
struct Story {
    text: String,
}

impl Watch for Story {
    fn line(&mut self, at_ms: u64, line: fmt::Arguments<'_>) {
        self.text.push_str(&format!("{at_ms} {line}\n"));
    }

    fn wants_lines(&self) -> bool {
        true
    }

    fn met(&mut self, _state: &'static str, _command: &'static str) {}
}

fn fine(seed: u64) -> Ended {
    match run(&Scenario::generate(seed), &mut Unwatched) {
        Ok(ended) => ended,
        Err(violation) => panic!("seed {seed}: {violation}"),
    }
}

#[test]
fn worlds_of_many_seeds_are_as_they_must_be() {
    let mut counts = Counts::default();
    for seed in 0..200 {
        let ended = fine(seed);
        counts.expired += ended.counts.expired;
        counts.restarts += ended.counts.restarts;
        counts.lies += ended.counts.lies;
        counts.requests += ended.counts.requests;
    }
    // A simulator in which nothing goes wrong finds nothing.
    assert!(counts.expired > 20 && counts.restarts > 50, "{counts:?}");
    assert!(counts.lies > 500 && counts.requests > 500, "{counts:?}");
    let pools = (0..200).filter(|seed| Scenario::generate(*seed).pool.is_some());
    assert!(pools.count() > 20);
}

/// Seeds that once showed a defect of Muster, or of a model of its surroundings.
#[test]
fn seeds_that_were_once_bad_stay_good() {
    for seed in [180, 285, 1061, 2915, 102_418, 103_327, 115_340] {
        fine(seed);
    }
}

#[test]
fn the_same_seed_tells_the_same_story_to_the_byte() {
    for seed in [3, 7, 22, 180] {
        let scenario = Scenario::generate(seed);
        let (mut first, mut second) = (Story::default(), Story::default());
        let ended = run(&scenario, &mut first);
        assert_eq!(run(&scenario, &mut second), ended);
        assert_eq!(first.text, second.text);
        assert!(first.text.lines().count() > 20);
        // Looking on changes nothing.
        assert_eq!(run(&scenario, &mut Unwatched), ended);
    }
}

#[test]
fn other_seeds_tell_other_stories() {
    let digests: BTreeSet<u64> = (0..20).map(|seed| fine(seed).digest).collect();
    assert_eq!(digests.len(), 20);
}

#[test]
fn a_scenario_can_be_written_down_and_read_again() {
    for seed in 0..50 {
        let scenario = Scenario::generate(seed);
        let text = serde_json::to_string(&scenario).unwrap();
        assert_eq!(serde_json::from_str::<Scenario>(&text).unwrap(), scenario);
    }
}

#[test]
fn parts_can_be_left_out_one_by_one_and_all_together() {
    for seed in [1, 9, 22] {
        let scenario = Scenario::generate(seed);
        let parts = scenario.parts();
        for part in 0..parts {
            assert_eq!(scenario.without(part..part + 1).parts(), parts - 1);
        }
        let nothing = scenario.without(0..parts);
        assert_eq!(nothing.parts(), 0);
        assert!(run(&nothing, &mut Unwatched).is_ok());
        let less = scenario.without(0..parts / 2);
        assert!(run(&less, &mut Unwatched).is_ok(), "seed {seed}");
    }
}

#[test]
fn making_a_scenario_simpler_again_and_again_comes_to_an_end() {
    let mut scenario = Scenario::generate(5);
    let mut rounds = 0;
    while let Some(simpler) = scenario.simpler().into_iter().next() {
        assert_ne!(simpler, scenario);
        scenario = simpler;
        rounds += 1;
        assert!(rounds < 10_000);
    }
    assert!(rounds > 5);
    assert!(run(&scenario, &mut Unwatched).is_ok());
}

/// A world of one worker that works on one task for a minute.
fn one_worker(happenings: Vec<Happening>) -> Scenario {
    let mut scenario = Scenario::generate(1);
    scenario.happenings = happenings;
    scenario.weather.clear();
    scenario.plans.truncate(1);
    scenario.workers.truncate(1);
    for plan in &mut scenario.plans {
        plan.integrate = None;
        plan.tasks.truncate(1);
        for task in &mut plan.tasks {
            task.verify.clear();
            task.retries = 0;
            task.timeout_ms = 1_800_000;
            task.attempts = vec![Deed {
                work_ms: 60_000,
                end: DeedEnd::Change,
            }];
        }
    }
    for worker in &mut scenario.workers {
        worker.at_ms = 0;
        worker.slots = 1;
        worker.speed_percent = 100;
        worker.lies_per_mille = 0;
    }
    scenario
}

fn after_start(ms: u64, what: What) -> Happening {
    let (moment, nth) = (Moment::Started, 0);
    Happening {
        when: When::After { moment, nth, ms },
        what,
    }
}

/// The line of the story that has all of these words, with its time.
fn told<'s>(story: &'s str, words: &[&str]) -> (u64, &'s str) {
    let mut lines = story.lines().filter_map(|line| line.split_once(' '));
    let line = lines.find(|(_, line)| words.iter().all(|word| line.contains(word)));
    let (at, line) = line.unwrap_or_else(|| panic!("no line with {words:?} in:\n{story}"));
    (at.parse().unwrap(), line)
}

#[test]
fn what_a_killed_supervisor_leaves_is_ended_before_its_worker_says_anything_of_it() {
    let killed = What::SupervisorKilled {
        worker: 0,
        nth: 0,
        detached: true,
        ends_ms: 9_000,
    };
    let mut story = Story::default();
    let scenario = one_worker(vec![after_start(10_000, killed)]);
    run(&scenario, &mut story).unwrap();
    let story = story.text;
    let (killed, _) = told(&story, &["the supervisor of 1", "is killed"]);
    let (gone, _) = told(&story, &["the agent of 1", "is gone"]);
    let (failed, line) = told(&story, &["attempt_failed L1"]);
    assert!(gone >= killed + 9_000 && failed >= gone, "{story}");
    assert!(line.contains("worker_lost"), "{line}");
}

#[test]
fn a_new_start_of_a_worker_ends_what_a_killed_supervisor_left_before_it_says_hello() {
    let killed = What::SupervisorKilled {
        worker: 0,
        nth: 0,
        detached: true,
        ends_ms: 9_000,
    };
    let gone = What::WorkerKilled {
        worker: 0,
        down_ms: 400_000,
    };
    let happenings = vec![after_start(10_000, killed), after_start(10_000, gone)];
    let mut story = Story::default();
    run(&one_worker(happenings), &mut story).unwrap();
    let story = story.text;
    // Nobody could end it meanwhile: the lease ends in silence, and what runs on is out of reach.
    let (expired, _) = told(&story, &["lease_closed L1", "Expired"]);
    let (gone, _) = told(&story, &["the agent of 1", "is gone"]);
    let hellos: Vec<u64> = story
        .lines()
        .filter(|line| line.contains("says hello"))
        .map(|line| line.split_once(' ').unwrap().0.parse().unwrap())
        .collect();
    assert!(expired < gone, "{story}");
    assert!(hellos[1] > gone, "{story}");
}

#[test]
fn work_waits_for_a_worker_with_its_label_and_enough_processors() {
    let mut scenario = one_worker(vec![]);
    let mut fitting = scenario.workers[0].clone();
    fitting.id = 7;
    fitting.at_ms = 50_000;
    fitting.labels = vec![2];
    fitting.cpus = 4;
    let task = &mut scenario.plans[0].tasks[0];
    task.label = Some(2);
    task.cpus = 4;
    scenario.workers[0].labels = vec![1];
    scenario.workers[0].cpus = 3;
    scenario.workers.push(fitting);
    let mut story = Story::default();
    run(&scenario, &mut story).unwrap();
    let (at, line) = told(&story.text, &["lease_granted L1"]);
    assert!(at >= 50_000 && line.contains("to w7"), "{at} {line}");
}

/// A world whose only machines are those of a cluster, each job with the next of these fates.
fn cluster(orders: Vec<OrderFate>, kinds: &[JobKind]) -> Scenario {
    let mut scenario = one_worker(vec![]);
    for worker in &mut scenario.workers {
        worker.pooled = true;
    }
    let other = WorkerPlan {
        id: 7,
        ..scenario.workers[0].clone()
    };
    scenario.workers.push(other);
    let job = |kind: &JobKind| JobFate {
        starts_ms: 1_000,
        ends_ms: 100,
        kind: *kind,
    };
    scenario.pool = Some(PoolPlan {
        max: 1,
        idle_timeout_ms: 10_000,
        join_timeout_ms: 20_000,
        backlog: 1,
        burst: 1,
        failures_max: 3,
        quarantine: true,
        poll_ms: 2_000,
        orders,
        jobs: kinds.iter().map(job).collect(),
    });
    scenario
}

#[test]
fn a_cluster_goes_from_nothing_to_what_the_work_needs_and_back() {
    let mut story = Story::default();
    run(&cluster(vec![], &[JobKind::Good]), &mut story).unwrap();
    let story = story.text;
    let (begun, _) = told(&story, &["j1 begins on"]);
    let (granted, line) = told(&story, &["lease_granted L1"]);
    assert!(line.contains(".A1:"), "{line}");
    let (archived, _) = told(&story, &["run_archived"]);
    let (ended, _) = told(&story, &["j1 ends"]);
    assert!(begun < granted && granted < archived && archived < ended);
    assert!(!story.contains("j2 begins"), "{story}");
}

#[test]
fn whatever_becomes_of_orders_and_jobs_the_work_is_done_and_nothing_is_left() {
    let kinds = [
        JobKind::NeverStarts,
        JobKind::Twice,
        JobKind::DiesYoung { after_ms: 20_000 },
        JobKind::Requeued {
            after_ms: 20_000,
            overlap_ms: 200_000,
        },
        JobKind::Forgotten {
            after_ms: 100,
            for_ms: 100_000,
        },
        JobKind::NeverJoins,
    ];
    let orders = [
        OrderFate::Taken,
        OrderFate::Refused,
        OrderFate::AnswerLost,
        OrderFate::NeverArrives,
        OrderFate::Late { ms: 25_000 },
    ];
    for order in orders {
        for kind in kinds {
            let world = run(&cluster(vec![order], &[kind]), &mut Unwatched);
            world.unwrap_or_else(|violation| panic!("{order:?} {kind:?}: {violation}"));
        }
    }
}

#[test]
fn a_job_that_is_started_again_elsewhere_does_its_work_though_its_old_copy_runs_on() {
    let requeued = JobKind::Requeued {
        after_ms: 20_000,
        overlap_ms: 200_000,
    };
    let mut story = Story::default();
    run(&cluster(vec![], &[requeued]), &mut story).unwrap();
    let story = story.text;
    let (again, _) = told(&story, &["j1 goes back into the queue"]);
    let begun = story.lines().filter(|line| line.contains("j1 begins on"));
    assert_eq!(begun.count(), 2);
    let (expired, _) = told(&story, &["lease_closed L1", "Expired"]);
    let (done, _) = told(&story, &["task_succeeded"]);
    assert!(again < expired && expired < done, "{story}");
}
