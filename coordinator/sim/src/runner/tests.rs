//! Sweeps over toy worlds, and the real ones over threads.

use super::*;
use crate::Counts;

fn ended(seed: u64) -> Ended {
    Ended {
        steps: seed,
        simulated_ms: 2,
        digest: mix(seed),
        counts: Counts::default(),
    }
}

fn plan(seeds: Range<u64>, threads: usize) -> Sweep {
    Sweep {
        seeds: std::iter::once(seeds).collect(),
        threads: NonZeroUsize::new(threads).unwrap(),
        most_failures: usize::MAX,
        coverage: false,
    }
}

fn swept(plan: &Sweep, world: &World<'_>) -> Swept {
    let mut keep = |_: &Swept| Ok::<(), fmt::Error>(());
    sweep(plan, world, &Control::default(), &mut keep).unwrap()
}

#[test]
fn every_seed_is_run_once_whatever_the_number_of_threads() {
    let seen = Mutex::new(BTreeMap::<u64, u32>::new());
    let world = |seed: u64, _: &mut dyn Watch| {
        *lock(&seen).entry(seed).or_default() += 1;
        Ok(ended(seed))
    };
    let one = swept(&plan(10..1_000, 1), &world);
    let three = swept(&plan(10..1_000, 3), &world);
    assert_eq!(one, three);
    assert_eq!(one.tally.worlds, 990);
    assert_eq!(one.done.to_string(), "10..1000");
    let seen = lock(&seen);
    assert!(seen.len() == 990 && seen.values().all(|times| *times == 2));
}

#[test]
fn a_panic_in_a_world_is_a_violation_of_its_seed() {
    let world = |seed: u64, _: &mut dyn Watch| {
        assert_ne!(seed, 70, "seventy is too much");
        Ok(ended(seed))
    };
    let swept = swept(&plan(0..100, 2), &world);
    assert_eq!(swept.done.to_string(), "0..100");
    let [failing] = &swept.failures[..] else {
        panic!("{:?}", swept.failures)
    };
    assert_eq!((failing.seed, &*failing.rule), (70, NO_PANIC));
    assert!(failing.what.contains("seventy is too much"));
    assert!(failing.what.contains("tests.rs:"), "{}", failing.what);
}

#[test]
fn a_sweep_stops_at_its_most_failures_and_claims_only_what_was_run() {
    let seen = Mutex::new(Ranges::default());
    let world = |seed: u64, _: &mut dyn Watch| {
        lock(&seen).insert(seed..seed + 1);
        if seed % 100 == 99 {
            let rule = "not ninety-nine";
            let what = String::new();
            return Err(Violation {
                at_ms: 1,
                rule,
                what,
            });
        }
        Ok(ended(seed))
    };
    let sweep = Sweep {
        most_failures: 2,
        ..plan(0..100_000, 2)
    };
    let swept = swept(&sweep, &world);
    assert!((2..=3).contains(&swept.failures.len()));
    assert!(swept.done.len() < 2_000);
    assert_eq!(swept.done, *lock(&seen));
    assert_eq!(swept.tally.worlds, swept.done.len());
}

#[test]
fn what_is_kept_is_never_ahead_of_what_was_run() {
    let seen = Mutex::new(Ranges::default());
    let world = |seed: u64, _: &mut dyn Watch| {
        lock(&seen).insert(seed..seed + 1);
        Ok(ended(seed))
    };
    let mut kept = 0;
    let mut keep = |so_far: &Swept| {
        kept += 1;
        let seen = lock(&seen);
        assert!(so_far.done.iter().flatten().all(|seed| seen.contains(seed)));
        Ok::<(), fmt::Error>(())
    };
    let control = Control::default();
    sweep(&plan(0..1_000, 2), &world, &control, &mut keep).unwrap();
    // Chunks of 1, 2, 4, 8 and 16 seeds, then whole ones.
    assert_eq!(kept, 5 + (1_000 - 31_u64).div_ceil(CHUNK));
    assert_eq!(control.so_far().worlds, 1_000);
}

#[test]
fn a_keeper_that_cannot_keep_ends_the_sweep() {
    let world = |seed: u64, _: &mut dyn Watch| Ok(ended(seed));
    let mut keep = |_: &Swept| Err("disk full");
    let failed = sweep(
        &plan(0..u64::MAX, 2),
        &world,
        &Control::default(),
        &mut keep,
    );
    assert_eq!(failed.unwrap_err(), "disk full");
}

#[test]
fn a_stop_lets_go_in_the_middle_of_a_chunk() {
    let control = Control::default();
    let world = |seed: u64, _: &mut dyn Watch| {
        if seed == 5 {
            control.stop();
        }
        Ok(ended(seed))
    };
    let mut keep = |_: &Swept| Ok::<(), fmt::Error>(());
    let swept = sweep(&plan(0..u64::MAX, 1), &world, &control, &mut keep).unwrap();
    assert_eq!(swept.done.to_string(), "0..6");
}

#[test]
fn the_same_seed_has_the_same_story_to_the_byte_in_every_thread() {
    let tell = |seed| {
        let mut story = Story::default();
        let ended = world(seed, &mut story);
        (story.to_string(), ended)
    };
    let here: Vec<_> = (0..6).map(tell).collect();
    assert!(here.iter().all(|(story, _)| !story.is_empty()));
    let there = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|seed| scope.spawn(move || tell(seed))).collect();
        let told = threads.into_iter().map(|thread| thread.join().unwrap());
        told.collect::<Vec<_>>()
    });
    assert_eq!(here, there);
    // A world that is not listened to goes the same way.
    for (seed, (_, ended)) in (0..).zip(here) {
        assert_eq!(world(seed, &mut Unwatched), ended);
    }
}

#[test]
fn real_worlds_have_the_same_sums_in_one_thread_and_in_three() {
    let one = swept(&plan(0..80, 1), &world);
    let three = swept(&plan(0..80, 3), &world);
    assert_eq!(one, three);
    assert_ne!(one.tally.digest, 0);
}
