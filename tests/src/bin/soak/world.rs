//! Everything that runs during a soak, and what is known about it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use muster_tests::process::{Output, Program};
use muster_tests::proxy::Proxy;
use muster_tests::{Cluster, Process};
use rustix::process::Signal;

use crate::plan::Plan;
use crate::processes::{self, Size};

/// Longest time that a command of a person may take; a coordinator is never away for so long.
pub(crate) const CALL: Duration = Duration::from_secs(45);

/// How long a worker may take from its start until it has ended what an earlier one left.
const STARTING_MS: u64 = 3_000;

/// Longest that a lease lives after its last renewal, with what its supervisor takes to end it.
const LEASE_MS: u64 = 15_000;

/// A program that is started again whenever it has ended.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) program: Program,
    pub(crate) process: Option<Process>,
    /// When it is started again.
    pub(crate) down_until: Option<Instant>,
    /// When it is thawed.
    pub(crate) frozen_until: Option<Instant>,
    /// It was killed or told to end, so its end is no surprise.
    pub(crate) expected: Expected,
}

/// What is expected of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Running,
    /// It was told to end, and has to do so with exit code 0.
    Ending,
    Killed,
}

impl Part {
    pub(crate) fn new(name: &str, program: Program) -> Self {
        Self {
            name: name.to_owned(),
            program,
            process: None,
            down_until: None,
            frozen_until: None,
            expected: Expected::Running,
        }
    }

    /// Tells whether it can be hit.
    pub(crate) fn is_up(&self) -> bool {
        self.process.is_some() && self.frozen_until.is_none() && self.expected == Expected::Running
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            // It may have ended by itself, which is noticed elsewhere.
            let _ = process.signal(signal);
        }
    }
}

/// A worker and its way to the coordinator.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) part: Part,
    /// Every byte between it and the coordinator passes here; `None` if it is connected directly.
    pub(crate) link: Option<Proxy>,
    /// When it is no longer cut off.
    pub(crate) cut_until: Option<Instant>,
    /// It has not been removed.
    pub(crate) wanted: bool,
    /// Its state folder.
    pub(crate) state: PathBuf,
}

/// All programs that have to run.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) coordinator: Part,
    /// It is to run; false once the soak is done with it.
    pub(crate) coordinator_wanted: bool,
    pub(crate) workers: Vec<Worker>,
}

/// A run as its submitter knows it.
#[derive(Clone, Debug)]
pub(crate) struct Submitted {
    pub(crate) run: String,
    pub(crate) plan: Plan,
}

/// An attempt, by names: run, task, number.
pub(crate) type AttemptName = (String, String, String);

/// When a coordinator died, and when its successor was started, in milliseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Death {
    pub(crate) died: u64,
    /// 0 while there is none.
    pub(crate) started: u64,
}

/// A supervisor or its guard that was killed or frozen.
#[derive(Clone, Debug)]
pub(crate) struct KeeperHit {
    pub(crate) lease: u64,
    pub(crate) worker: String,
    /// It was the guard.
    pub(crate) guard: bool,
    /// When, in milliseconds since 1970.
    pub(crate) at: u64,
}

/// Size of something over time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grown {
    pub(crate) start: Size,
    pub(crate) peak: Size,
    pub(crate) end: Size,
}

/// What happened, as far as those who did it know.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) runs: Vec<Submitted>,
    /// Attempts of which a process was killed or frozen directly.
    pub(crate) hit: BTreeSet<AttemptName>,
    /// Runs and tasks that somebody asked to cancel.
    pub(crate) cancelled: BTreeSet<(String, Option<String>)>,
    pub(crate) deaths: Vec<Death>,
    pub(crate) keepers_hit: Vec<KeeperHit>,
    /// When workers could do nothing: name, from, until.
    pub(crate) workers_off: Vec<(String, u64, u64)>,
    /// How often what happened.
    pub(crate) counts: BTreeMap<String, u64>,
    pub(crate) sizes: BTreeMap<String, Grown>,
    /// Run, task and processes, where several attempts were seen at the same time.
    pub(crate) at_once: Vec<(String, String, String)>,
    pub(crate) failures: Vec<String>,
}

/// A soak.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) begun: Instant,
    pub(crate) seed: u64,
    pub(crate) ledger: PathBuf,
    faulting: AtomicBool,
    over: AtomicBool,
    parts: Mutex<Parts>,
    known: Mutex<Known>,
    log: Mutex<File>,
}

impl World {
    pub(crate) fn new(cluster: Cluster, parts: Parts, seed: u64) -> Result<Self> {
        let ledger = cluster.folder().join("ledger");
        std::fs::create_dir_all(&ledger)?;
        let log = File::create(cluster.folder().join("faults.log")).context("begin the log")?;
        Ok(Self {
            cluster,
            begun: Instant::now(),
            seed,
            ledger,
            faulting: AtomicBool::new(true),
            over: AtomicBool::new(false),
            parts: Mutex::new(parts),
            known: Mutex::new(Known::default()),
            log: Mutex::new(log),
        })
    }

    /// Tells whether faults still happen.
    pub(crate) fn faulting(&self) -> bool {
        self.faulting.load(Ordering::SeqCst)
    }

    pub(crate) fn stop_faults(&self) {
        self.faulting.store(false, Ordering::SeqCst);
    }

    /// Tells whether everything is to end.
    pub(crate) fn over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    pub(crate) fn end(&self) {
        self.stop_faults();
        self.over.store(true, Ordering::SeqCst);
    }

    pub(crate) fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what is done, with the time.
    pub(crate) fn note(&self, text: &str) {
        let at = self.begun.elapsed().as_secs_f64();
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        // A log that cannot be written is no reason to end.
        let _ = writeln!(log, "{:.3} +{at:.3} {text}", now_ms() as f64 / 1_000.0);
    }

    pub(crate) fn count(&self, what: &str) {
        *self.known().counts.entry(what.to_owned()).or_default() += 1;
    }

    /// Notes that a worker can do nothing for some time.
    pub(crate) fn worker_off(&self, name: &str, time: Duration) {
        let now = now_ms();
        let until = now.saturating_add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        let off = (name.to_owned(), now, until);
        self.known().workers_off.push(off);
    }

    /// Tells whether all three keepers of a lease's processes were hit, its supervisor, its guard and
    /// its worker: then nobody is left who could end them in time.
    pub(crate) fn was_unguarded(&self, lease: u64) -> bool {
        let known = self.known();
        let of = |guard| {
            let mut hits = known.keepers_hit.iter();
            hits.find(move |hit| hit.lease == lease && hit.guard == guard)
        };
        let (Some(guard), Some(supervisor)) = (of(true), of(false)) else {
            return false;
        };
        let at = guard.at.max(supervisor.at);
        let mut off = known.workers_off.iter();
        // However short before: a worker that starts takes a moment until it looks. What hits it later
        // than any lease lives has nothing to do with it.
        off.any(|(worker, from, until)| {
            *worker == guard.worker && until + STARTING_MS >= at && *from <= at + LEASE_MS
        })
    }

    /// Notes a failure of Muster.
    pub(crate) fn fail(&self, what: String) {
        self.note(&format!("FAILURE {what}"));
        self.known().failures.push(what);
    }

    /// Calls a command as a person does; `None` if it did not end in time.
    pub(crate) fn call(&self, arguments: &[&str]) -> Option<Output> {
        let begun = Instant::now();
        let ended = self
            .cluster
            .call(arguments.iter().map(|word| (*word).to_owned()))
            .run(&self.cluster.logs(), CALL);
        let command = arguments.first().copied().unwrap_or_default();
        match ended {
            Ok(output) => {
                self.count(&format!("call {command}: exit {}", output.code()));
                if output.code() != 0 {
                    let took = begun.elapsed().as_secs_f64();
                    self.note(&format!(
                        "`{}` ended with {} after {took:.1} s: {}",
                        output.shown,
                        output.code(),
                        output.err.trim().replace('\n', " / ")
                    ));
                }
                Some(output)
            }
            Err(error) => {
                self.count(&format!("call {command}: did not end"));
                self.fail(format!("a command did not end: {error:#}"));
                None
            }
        }
    }

    /// Calls a command until it succeeds; only for a coordinator that is no longer disturbed.
    pub(crate) fn insist(&self, arguments: &[&str]) -> Result<Output> {
        let output = self
            .call(arguments)
            .with_context(|| format!("`{}` did not end", arguments.join(" ")))?;
        output.success()
    }

    /// Measures coordinator and workers, buries whom nobody else does, and looks for two attempts of
    /// one task at once; until the soak is over.
    pub(crate) fn observe(&self) {
        let mut zombies: BTreeMap<i32, u32> = BTreeMap::new();
        while !self.over() {
            let pids: Vec<(String, rustix::process::Pid)> = {
                let parts = self.parts();
                let all = std::iter::once(&parts.coordinator)
                    .chain(parts.workers.iter().map(|worker| &worker.part));
                all.filter_map(|part| Some((part.name.clone(), part.process.as_ref()?.id().ok()?)))
                    .collect()
            };
            for (name, pid) in pids {
                if let Some(size) = processes::size(pid) {
                    self.grown(name, size);
                }
            }
            let seen = processes::below();
            self.one_attempt_at_once(&seen);
            let mut still: BTreeMap<i32, u32> = BTreeMap::new();
            for process in seen.iter().filter(|process| process.state == 'Z') {
                let id = process.pid.as_raw_pid();
                let age = zombies.get(&id).copied().unwrap_or_default() + 1;
                // Whoever started it looks much more often; so it was inherited.
                if age > 10 {
                    processes::bury(process);
                }
                still.insert(id, age);
            }
            zombies = still;
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn grown(&self, name: String, size: Size) {
        let mut known = self.known();
        let grown = known.sizes.entry(name).or_insert(Grown {
            start: size,
            peak: size,
            end: size,
        });
        grown.end = size;
        grown.peak.resident_kib = grown.peak.resident_kib.max(size.resident_kib);
        grown.peak.descriptors = grown.peak.descriptors.max(size.descriptors);
    }

    fn one_attempt_at_once(&self, seen: &[processes::Seen]) {
        let mut marks: BTreeMap<(String, String), BTreeMap<String, &processes::Seen>> =
            BTreeMap::new();
        for process in seen {
            if let Some(work) = process.work().filter(|work| !work.task.is_empty()) {
                let of_task = marks.entry((work.run, work.task)).or_default();
                of_task.insert(work.mark, process);
            }
        }
        for ((run, task), of_task) in marks {
            // The first one may have ended while the second one was looked at.
            let alive: Vec<String> = of_task
                .values()
                .filter(|process| process.state != 'Z' && process.work().is_some())
                .map(|process| process.shown())
                .collect();
            if alive.len() > 1 {
                let text = alive.join("; ");
                self.note(&format!("several attempts of {run}/{task} live: {text}"));
                self.known().at_once.push((run, task, text));
            }
        }
    }
}

/// Gives the wall clock's milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| u64::try_from(since.as_millis()).ok())
        .unwrap_or_default()
}
