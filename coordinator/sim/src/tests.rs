//! Worlds and scenarios.

use std::collections::BTreeSet;
use std::fmt;

use super::*;

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
