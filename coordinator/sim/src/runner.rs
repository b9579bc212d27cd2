//! Many worlds at once: ranges of seeds over threads, and what a failing one is retold as.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::{self, Write as _};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use serde::{Deserialize, Serialize};

use crate::coverage::Reached;
use crate::random::mix;
use crate::ranges::Ranges;
use crate::shrink::{Shrunk, Tried, shrink};
use crate::{Ended, Scenario, Unwatched, Violation, Watch};

/// Rule that a world breaks by panicking.
pub const NO_PANIC: &str = "nothing panics";

/// Most seeds that a thread takes at once. What is between two writes of the progress is lost by a
/// kill; the first chunk is of one seed, so that an early one finds something, too.
const CHUNK: u64 = 32;

/// Lines of a story that are kept; a world that says more is cut off at its end.
const STORY_LINES: usize = 200_000;

/// Lets one world happen. A panic inside is a violation.
pub type World<'w> = dyn Fn(u64, &mut dyn Watch) -> Result<Ended, Violation> + Sync + 'w;

/// Lets the world of a seed happen. A panic in it is a violation of [`NO_PANIC`].
///
/// # Errors
/// The first thing that must never be.
pub fn world(seed: u64, watch: &mut dyn Watch) -> Result<Ended, Violation> {
    guarded(|| crate::run(&Scenario::generate(seed), watch))
}

/// Lets a scenario happen. A panic in it is a violation of [`NO_PANIC`].
///
/// # Errors
/// The first thing that must never be.
pub fn scenario(scenario: &Scenario, watch: &mut dyn Watch) -> Result<Ended, Violation> {
    guarded(|| crate::run(scenario, watch))
}

/// A seed whose world was not as it must be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failing {
    pub seed: u64,
    /// Simulated time.
    pub at_ms: u64,
    /// What must always be true.
    pub rule: String,
    /// How it was not.
    pub what: String,
}

impl Failing {
    /// Names the seed of a violation.
    #[must_use]
    pub fn new(seed: u64, violation: Violation) -> Self {
        Self {
            seed,
            at_ms: violation.at_ms,
            rule: violation.rule.to_owned(),
            what: violation.what,
        }
    }
}

/// Sums over worlds. The order in which they were run does not matter.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    pub worlds: u64,
    pub failed: u64,
    pub steps: u64,
    pub simulated_ms: u64,
    /// Of all traces: equal for equal seeds.
    pub digest: u64,
    /// What happened in them, by name.
    pub counts: BTreeMap<&'static str, u64>,
}

impl Tally {
    fn count(&mut self, seed: u64, ended: &Ended) {
        self.worlds += 1;
        self.steps += ended.steps;
        self.simulated_ms += ended.simulated_ms;
        let both = mix(seed).wrapping_add(ended.digest);
        self.digest = self.digest.wrapping_add(mix(both));
        for (name, count) in ended.counts.named() {
            *self.counts.entry(name).or_default() += count;
        }
    }

    fn add(&mut self, other: &Self) {
        self.worlds += other.worlds;
        self.failed += other.failed;
        self.steps += other.steps;
        self.simulated_ms += other.simulated_ms;
        self.digest = self.digest.wrapping_add(other.digest);
        for (name, count) in &other.counts {
            *self.counts.entry(name).or_default() += count;
        }
    }
}

/// Stops a sweep, and shows how far it is.
#[derive(Debug, Default)]
pub struct Control {
    stop: AtomicBool,
    so_far: Mutex<Tally>,
}

impl Control {
    /// Lets each thread finish its world and no more.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Gives the sums so far; worlds of a chunk that is in work are not in it yet.
    #[must_use]
    pub fn so_far(&self) -> Tally {
        lock(&self.so_far).clone()
    }

    /// Tells whether [`Control::stop`] was called.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Sweep {
    pub seeds: Ranges,
    pub threads: NonZeroUsize,
    /// Stops at so many failing seeds; threads finish the worlds that they are in.
    pub most_failures: usize,
    /// Counts which commands meet which states; costs time.
    pub coverage: bool,
}

/// What a sweep has seen.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Swept {
    pub done: Ranges,
    /// In the order of their seeds.
    pub failures: Vec<Failing>,
    pub tally: Tally,
    pub reached: Reached,
}

/// Runs worlds. `keep` is told, in one thread at a time and each time that a chunk is done, what has
/// been done and has failed so far; its error ends the sweep.
///
/// # Errors
/// The first error of `keep`.
pub fn sweep<E: Send>(
    sweep: &Sweep,
    world: &World<'_>,
    control: &Control,
    keep: &mut (dyn FnMut(&Swept) -> Result<(), E> + Send),
) -> Result<Swept, E> {
    let chunks = Mutex::new(chunks(&sweep.seeds));
    let shared = Mutex::new((Swept::default(), keep, None));
    std::thread::scope(|scope| {
        for _ in 0..sweep.threads.get() {
            scope.spawn(|| {
                loop {
                    let chunk = lock(&chunks).next();
                    let Some(chunk) = chunk.filter(|_| !control.is_stopped()) else {
                        return;
                    };
                    let part = run_chunk(sweep, world, control, chunk);
                    let mut shared = lock(&shared);
                    let (swept, keep, error) = &mut *shared;
                    lock(&control.so_far).add(&part.tally);
                    swept.add(part);
                    if error.is_none()
                        && let Err(failed) = keep(swept)
                    {
                        *error = Some(failed);
                    }
                    if error.is_some() || swept.failures.len() >= sweep.most_failures {
                        control.stop();
                    }
                }
            });
        }
    });
    let (mut swept, _, error) = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
    swept.failures.sort_by_key(|failing| failing.seed);
    error.map_or(Ok(swept), Err)
}

/// Cuts ranges into chunks, without writing them all down.
fn chunks(seeds: &Ranges) -> impl Iterator<Item = Range<u64>> + Send + use<> {
    let mut ranges: VecDeque<Range<u64>> = seeds.iter().collect();
    let mut size = 1;
    std::iter::from_fn(move || {
        let range = ranges.front_mut()?;
        let begin = range.start;
        range.start = begin.saturating_add(size).min(range.end);
        size = (size * 2).min(CHUNK);
        let chunk = begin..range.start;
        if range.is_empty() {
            ranges.pop_front();
        }
        Some(chunk)
    })
}

fn run_chunk(sweep: &Sweep, world: &World<'_>, control: &Control, chunk: Range<u64>) -> Swept {
    let mut part = Swept::default();
    let begin = chunk.start;
    for seed in chunk {
        let ended = guarded(|| {
            if sweep.coverage {
                world(seed, &mut part.reached)
            } else {
                world(seed, &mut Unwatched)
            }
        });
        part.done.insert(begin..seed + 1);
        match ended {
            Ok(ended) => part.tally.count(seed, &ended),
            Err(violation) => {
                part.tally.worlds += 1;
                part.tally.failed += 1;
                part.failures.push(Failing::new(seed, violation));
            }
        }
        if control.is_stopped() || part.failures.len() >= sweep.most_failures {
            break;
        }
    }
    part
}

impl Swept {
    fn add(&mut self, part: Self) {
        part.done.iter().for_each(|range| self.done.insert(range));
        self.failures.extend(part.failures);
        self.tally.add(&part.tally);
        self.reached.add(&part.reached);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is inside is only ever added to, so it is whole even if an adder has panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The lines of a world.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Story {
    lines: Vec<String>,
    left_out: usize,
}

impl Story {
    /// Gives the lines, each with its time.
    #[must_use]
    pub fn lines(&self) -> &[String] {
        &self.lines
    }
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            writeln!(f, "{line}")?;
        }
        if self.left_out > 0 {
            writeln!(f, "… and {} lines more", self.left_out)?;
        }
        Ok(())
    }
}

impl Watch for Story {
    fn line(&mut self, at_ms: u64, line: fmt::Arguments<'_>) {
        if self.lines.len() >= STORY_LINES {
            self.left_out += 1;
            return;
        }
        let mut text = String::new();
        // A string takes everything.
        let _written = write!(text, "{:>8}.{:03} s  {line}", at_ms / 1_000, at_ms % 1_000);
        self.lines.push(text);
    }

    fn wants_lines(&self) -> bool {
        true
    }

    fn met(&mut self, _state: &'static str, _command: &'static str) {}
}

/// Looks for the shortest scenario that breaks the same rule, with at most `tries` worlds and for as
/// long as `time_left` says so.
pub fn shortest(
    failing: Scenario,
    rule: &str,
    tries: u32,
    time_left: &dyn Fn() -> bool,
) -> Shrunk<Scenario> {
    shrink(failing, tries, &mut |candidate| {
        if !time_left() {
            return Tried::Enough;
        }
        match scenario(candidate, &mut Unwatched) {
            Err(violation) if violation.rule == rule => Tried::Fails,
            Ok(_) | Err(_) => Tried::Passes,
        }
    })
}

thread_local! {
    /// Whether this thread is inside a world, whose panics are caught and retold.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Catches a panic, with its place, and keeps it from standard error.
fn guarded(run: impl FnOnce() -> Result<Ended, Violation>) -> Result<Ended, Violation> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |panicked| {
            if INSIDE.get() {
                PLACE.set(panicked.location().map(ToString::to_string));
            } else {
                usual(panicked);
            }
        }));
    });
    let outer = INSIDE.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(run));
    INSIDE.set(outer);
    result.unwrap_or_else(|payload| {
        let place = PLACE.take().unwrap_or_default();
        Err(Violation {
            at_ms: 0,
            rule: NO_PANIC,
            what: format!("{place}: {}", said(&*payload)),
        })
    })
}

fn said(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&'static str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without words")
}

#[cfg(test)]
mod tests;
