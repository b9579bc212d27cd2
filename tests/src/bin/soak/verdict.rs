//! Whether runs ended as they had to.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use coordinator_core::FailureClass;
use coordinator_core::limits::{CRASH_LIMIT, VERIFY_CRASH_LIMIT};
use serde_json::Value;

use crate::evidence::{self, Ledger, Told};
use crate::plan::{Fate, Task};
use crate::world::World;

/// How much later than the coordinator's clock a process on the same host may note something: both
/// read the same clock, but round differently.
const ROUNDING_MS: f64 = 20.0;

/// Figures of the runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) runs: BTreeMap<String, u64>,
    pub(crate) tasks: BTreeMap<String, u64>,
    pub(crate) attempts: u64,
    /// Attempts that failed, by class.
    pub(crate) failed: BTreeMap<String, u64>,
    /// Leases by how they ended.
    pub(crate) leases: BTreeMap<String, u64>,
    /// When each lease was granted, in milliseconds since 1970.
    pub(crate) grants: Vec<u64>,
    pub(crate) transcripts: u64,
    /// Attempts that outlived their lease because their supervisor, their guard and their worker were
    /// all hit.
    pub(crate) unguarded: u64,
}

/// Checks one run after the other.
#[derive(Debug)]
pub(crate) struct Judge<'a> {
    pub(crate) world: &'a World,
    pub(crate) ledger: &'a Ledger,
    pub(crate) figures: Figures,
    leases: BTreeSet<u64>,
}

/// One generation of a task, by its events.
#[derive(Clone, Debug, Default)]
struct Life {
    successes: u64,
    counted: u32,
    uncounted: u32,
}

impl<'a> Judge<'a> {
    pub(crate) fn new(world: &'a World, ledger: &'a Ledger) -> Self {
        Self {
            world,
            ledger,
            figures: Figures::default(),
            leases: BTreeSet::new(),
        }
    }

    fn fail(&self, run: &str, text: impl std::fmt::Display) {
        self.world.fail(format!("{run}: {text}"));
    }

    /// Checks a run against its plan, its ledger, its events and git.
    ///
    /// # Errors
    /// Something that is needed for a check cannot be had.
    pub(crate) fn run(&mut self, told: &Told) -> Result<()> {
        let run = told.submitted.run.as_str();
        let state = told.status.state();
        *self.figures.runs.entry(state.to_owned()).or_default() += 1;
        let lives = self.events(told);
        let empty = Life::default();
        for task in &told.submitted.plan.tasks {
            let life = lives.get(&task.name).unwrap_or(&empty);
            self.task(told, task, life)?;
            self.overlaps(told, task)?;
        }
        let planned = told.submitted.plan.tasks.len();
        if told.status.tasks().count() != planned {
            self.fail(run, format_args!("tasks: {planned} were planned"));
        }
        self.outcome(told)?;
        self.git(told)
    }

    /// Checks the stream of events.
    fn events(&mut self, told: &Told) -> BTreeMap<String, Life> {
        let run = told.submitted.run.as_str();
        let mut lives: BTreeMap<String, Life> = BTreeMap::new();
        let mut open: BTreeMap<u64, String> = BTreeMap::new();
        for (event, expected) in told.events.iter().zip(1u64..) {
            let seq = event["seq"].as_u64().unwrap_or_default();
            if seq != expected {
                self.fail(
                    run,
                    format_args!("watch: event {seq} where {expected} has to be"),
                );
                break;
            }
            let task = event["task"].as_str().unwrap_or_default();
            let what = &event["event"]["ev"];
            let lease = what["lease"].as_u64().unwrap_or_default();
            let life = lives.entry(task.to_owned()).or_default();
            match event["kind"].as_str().unwrap_or_default() {
                "task_succeeded" => {
                    life.successes += 1;
                    if life.successes > 1 {
                        self.fail(run, format_args!("twice: {task} succeeded again at {seq}"));
                    }
                }
                "task_reopened" => *life = Life::default(),
                "attempt_failed" | "verify_failed" => {
                    let class = what["failure"]["class"].as_str().unwrap_or_default();
                    let counts = FailureClass::from_name(class).is_some_and(FailureClass::counts);
                    life.counted += u32::from(counts);
                    life.uncounted += u32::from(!counts);
                }
                "verify_lost" => life.uncounted += 1,
                "lease_granted" => {
                    self.figures.grants.extend(event["event"]["at"].as_u64());
                    if !self.leases.insert(lease) {
                        self.fail(run, format_args!("twice: lease {lease} was granted again"));
                    }
                    let other = open.iter().find(|(_, of)| of.as_str() == task);
                    if let Some((other, _)) = other {
                        self.fail(
                            run,
                            format_args!("overlap: {task} got lease {lease} while {other} lived"),
                        );
                    }
                    open.insert(lease, task.to_owned());
                }
                "lease_closed" => {
                    let end = what["end"].as_str().unwrap_or("?").to_owned();
                    *self.figures.leases.entry(end).or_default() += 1;
                    if open.remove(&lease).is_none() {
                        self.fail(
                            run,
                            format_args!("lease {lease} was closed without being open"),
                        );
                    }
                    self.closed(told, event);
                }
                _ => {}
            }
        }
        if !open.is_empty() {
            self.fail(run, format_args!("leases that never closed: {open:?}"));
        }
        let last = told.status.json["last_seq"].as_u64().unwrap_or_default();
        if u64::try_from(told.events.len()).unwrap_or_default() < last {
            let seen = told.events.len();
            self.fail(run, format_args!("watch: {seen} events of {last}"));
        }
        lives
    }

    /// A lease that is closed has no process.
    fn closed(&mut self, told: &Told, event: &Value) {
        let run = told.submitted.run.as_str();
        let (Some(task), Some(number)) = (event["task"].as_str(), event["attempt"].as_u64()) else {
            return;
        };
        let lease = event["event"]["ev"]["lease"].as_u64();
        let of_attempt = told
            .status
            .attempts(task)
            .unwrap_or_default()
            .iter()
            .any(|attempt| attempt["lease"].as_u64() == lease);
        let noted = self.ledger.get(&(run.to_owned(), task.to_owned(), number));
        let (Some(noted), true) = (noted, of_attempt) else {
            return;
        };
        let at = event["event"]["at"].as_u64().unwrap_or_default() as f64;
        let after = noted.last - at;
        if after > ROUNDING_MS && self.world.was_unguarded(lease.unwrap_or_default()) {
            self.figures.unguarded += 1;
        } else if after > ROUNDING_MS {
            self.fail(
                run,
                format_args!(
                    "outlived: {task} attempt {number} gave a sign of life {after:.0} ms after its \
                     lease was closed ({}): {}",
                    event["event"]["ev"]["end"], noted.last_by
                ),
            );
        }
    }

    /// Checks the final state of a task, and each of its attempts.
    fn task(&mut self, told: &Told, task: &Task, life: &Life) -> Result<()> {
        let run = told.submitted.run.as_str();
        let name = task.name.as_str();
        let said = told.status.task(name)?;
        let state = told.status.task_state(name)?;
        *self.figures.tasks.entry(state.to_owned()).or_default() += 1;
        let attempts = told.status.attempts(name)?;
        for attempt in attempts {
            self.attempt(told, task, attempt);
        }
        let not_done = |need: &String| told.status.task_state(need).ok() != Some("succeeded");
        let fits = match state {
            "succeeded" => {
                self.accepted(told, task, life)?;
                true
            }
            "failed" => {
                let class = said["failure"]["class"].as_str().unwrap_or_default();
                let counts = FailureClass::from_name(class).is_some_and(FailureClass::counts);
                if counts {
                    life.counted > task.retries
                } else {
                    life.uncounted >= CRASH_LIMIT.min(VERIFY_CRASH_LIMIT)
                }
            }
            "skipped" => task.needs.iter().any(not_done),
            "cancelled" | "aborted" => {
                let known = self.world.known();
                let asked = |task| known.cancelled.contains(&(run.to_owned(), task));
                asked(None) || asked(Some(name.to_owned()))
            }
            _ => false,
        };
        if !fits {
            self.fail(
                run,
                format_args!(
                    "state: {name} ({:?}, {} retries) is {state}, after {} counted and {} other \
                     failures: {said}",
                    task.fate, task.retries, life.counted, life.uncounted
                ),
            );
        }
        Ok(())
    }

    fn was_hit(&self, run: &str, task: &str, number: u64) -> bool {
        let name = (run.to_owned(), task.to_owned(), number.to_string());
        self.world.known().hit.contains(&name)
    }

    fn attempt(&mut self, told: &Told, task: &Task, attempt: &Value) {
        let run = told.submitted.run.as_str();
        let number = attempt["number"].as_u64().unwrap_or_default();
        self.figures.attempts += 1;
        let noted = self
            .ledger
            .get(&(run.to_owned(), task.name.clone(), number));
        if let Some(noted) = noted
            && noted.begins.len() > 1
        {
            self.fail(
                run,
                format_args!("twice: {} attempt {number} began twice", task.name),
            );
        }
        let Some(class) = attempt["failure"]["class"].as_str() else {
            return;
        };
        *self.figures.failed.entry(class.to_owned()).or_default() += 1;
        let hit = self.was_hit(run, &task.name, number);
        let fits = match FailureClass::from_name(class) {
            Some(FailureClass::AgentFailed) => {
                let ends = noted.map(|noted| noted.ends.as_slice()).unwrap_or_default();
                hit || ends.iter().any(|code| *code != 0)
            }
            Some(FailureClass::VerifyFailed) => {
                let bad = matches!(task.fate, Fate::BadUntil(last) if number <= u64::from(last));
                hit || bad
            }
            Some(FailureClass::TimedOut) => hit || task.fate == Fate::Hangs,
            Some(class) => class.retryable() && !class.counts(),
            None => false,
        };
        if !fits {
            self.fail(
                run,
                format_args!(
                    "class: {} attempt {number} ({:?}) failed without anybody's doing: {attempt}, \
                     and noted {noted:?}",
                    task.name, task.fate
                ),
            );
        }
    }

    /// The attempt that counts is one that could succeed, and was the only one.
    fn accepted(&self, told: &Told, task: &Task, life: &Life) -> Result<()> {
        let run = told.submitted.run.as_str();
        let name = task.name.as_str();
        if life.successes != 1 {
            let successes = life.successes;
            self.fail(run, format_args!("{name} succeeded {successes} times"));
        }
        let Some(number) = accepted_number(told, name)? else {
            let said = told.status.task(name)?;
            self.fail(
                run,
                format_args!("no attempt of {name} has its commit: {said}"),
            );
            return Ok(());
        };
        let could = match task.fate {
            Fate::Succeeds => true,
            Fate::FailsUntil(last) | Fate::BadUntil(last) => number > u64::from(last),
            Fate::Hangs => false,
        };
        let noted = self.ledger.get(&(run.to_owned(), name.to_owned(), number));
        let ended = noted.is_some_and(|noted| noted.ends == [0] && noted.begins.len() == 1);
        if !could || !ended {
            self.fail(
                run,
                format_args!(
                    "accepted: attempt {number} of {name} ({:?}) counts, but noted {noted:?}",
                    task.fate
                ),
            );
        }
        Ok(())
    }

    /// The processes of each attempt are gone before those of the next, and before its verify.
    fn overlaps(&self, told: &Told, task: &Task) -> Result<()> {
        let run = told.submitted.run.as_str();
        let mut attempts = told.status.attempts(&task.name)?.iter();
        let unguarded = attempts.any(|attempt| {
            self.world
                .was_unguarded(attempt["lease"].as_u64().unwrap_or_default())
        });
        let seen = self.world.known().at_once.clone();
        for (_, _, text) in seen
            .iter()
            .filter(|(of, name, _)| of == run && *name == task.name && !unguarded)
        {
            self.fail(
                run,
                format_args!("overlap: several attempts of {} lived: {text}", task.name),
            );
        }
        let mut before: Option<(u64, f64, &str, u64)> = None;
        for attempt in told.status.attempts(&task.name)? {
            let number = attempt["number"].as_u64().unwrap_or_default();
            let key = (run.to_owned(), task.name.clone(), number);
            let Some(noted) = self.ledger.get(&key) else {
                continue;
            };
            let begins = noted.begins.iter().map(|(at, _)| *at);
            let first = begins.fold(f64::INFINITY, f64::min);
            let lease = attempt["lease"].as_u64().unwrap_or_default();
            if let Some((earlier, last, by, lease)) = before
                && last > first
                && !self.world.was_unguarded(lease)
            {
                self.fail(
                    run,
                    format_args!(
                        "overlap: {} attempt {earlier} lived {:.0} ms into attempt {number}: {by}",
                        task.name,
                        last - first
                    ),
                );
            }
            let verify = noted.verifies.iter().copied().fold(f64::INFINITY, f64::min);
            if noted.last > verify && !self.world.was_unguarded(lease) {
                self.fail(
                    run,
                    format_args!(
                        "overlap: {} attempt {number} lived {:.0} ms into its verify: {}",
                        task.name,
                        noted.last - verify,
                        noted.last_by
                    ),
                );
            }
            before = Some((number, noted.last, noted.last_by.as_str(), lease));
        }
        Ok(())
    }

    /// The run ended as its tasks did.
    fn outcome(&self, told: &Told) -> Result<()> {
        let run = told.submitted.run.as_str();
        let state = told.status.state();
        let cancelled = {
            let known = self.world.known();
            known.cancelled.iter().any(|(name, _)| name == run)
        };
        let all = told.status.tasks().all(|task| task["state"] == "succeeded");
        let class = told.status.json["failure"]["class"].as_str();
        let lost = told
            .events
            .iter()
            .filter(|event| event["kind"] == "verify_lost" && event["task"].is_null())
            .count();
        let hit = self.was_hit(run, "", 0) || {
            let known = self.world.known();
            known
                .hit
                .iter()
                .any(|(name, _, number)| name == run && number.is_empty())
        };
        let fits = match state {
            "succeeded" => all && !told.submitted.plan.conflicts,
            "cancelled" => cancelled,
            "failed" if all && told.submitted.plan.conflicts => {
                class == Some("integration_conflict")
            }
            "failed" if all => {
                hit || lost >= usize::try_from(VERIFY_CRASH_LIMIT).unwrap_or(usize::MAX)
            }
            "failed" => true,
            _ => false,
        };
        if !fits {
            self.fail(
                run,
                format_args!(
                    "state: the run is {state}; all tasks succeeded: {all}, somebody cancelled: \
                     {cancelled}, final verify lost {lost} times: {}",
                    told.status.json
                ),
            );
        }
        Ok(())
    }

    /// Branches hold what counts, each task's work exactly once.
    fn git(&self, told: &Told) -> Result<()> {
        let run = told.submitted.run.as_str();
        let Some(name) = told.status.json["repository"].as_str() else {
            self.fail(run, "it has no repository");
            return Ok(());
        };
        let repository = self.world.cluster.hosted(name)?;
        let refs = evidence::refs(self.world, &repository)?;
        let mut wanted: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for task in &told.submitted.plan.tasks {
            let said = told.status.task(&task.name)?;
            let commit = said["commit"].as_str().filter(|commit| !commit.is_empty());
            let branch = format!("refs/heads/muster/{run}/tasks/{}", task.name);
            if said["state"] != "succeeded" {
                continue;
            }
            if let Some(commit) = commit
                && refs.get(&branch).map(String::as_str) != Some(commit)
            {
                let held = refs.get(&branch);
                self.fail(run, format_args!("ref: {branch} is {held:?}, not {commit}"));
            }
            if let (true, Some(number)) = (task.writes, accepted_number(told, &task.name)?) {
                let key = (run.to_owned(), task.name.clone(), number);
                let marks = self.ledger.get(&key).map(|noted| noted.begins.as_slice());
                let mark = marks.and_then(|marks| marks.first());
                let mark = mark.map_or("?", |(_, mark)| mark.as_str());
                let line = format!("good {} {number} {mark}", task.name);
                wanted.insert(task.name.clone(), vec![line]);
            }
        }
        for name in refs.keys() {
            self.attempt_ref(told, name);
        }
        let integration = &told.status.json["integration"];
        let commit = integration["commit"].as_str().unwrap_or_default();
        if told.status.state() != "succeeded" || commit.is_empty() {
            return Ok(());
        }
        let branch = format!("refs/heads/muster/{run}/integration");
        if refs.get(&branch).map(String::as_str) != Some(commit) {
            let held = refs.get(&branch);
            self.fail(run, format_args!("ref: {branch} is {held:?}, not {commit}"));
        }
        let held = evidence::work_files(self.world, &repository, commit)?;
        if held != wanted {
            self.fail(
                run,
                format_args!("work: the integrated branch holds {held:?}, not {wanted:?}"),
            );
        }
        Ok(())
    }

    /// Only attempts that there were have a ref.
    fn attempt_ref(&self, told: &Told, name: &str) {
        let run = told.submitted.run.as_str();
        let kinds = ["attempts", "wip", "salvage"];
        let rest = kinds
            .iter()
            .find_map(|kind| name.strip_prefix(&format!("refs/muster/{kind}/{run}/")));
        let Some((task, number)) = rest.and_then(|rest| rest.split_once('/')) else {
            return;
        };
        let attempts = told.status.attempts(task).unwrap_or_default();
        let known = attempts
            .iter()
            .any(|attempt| attempt["number"].as_u64() == number.parse().ok());
        if !known {
            self.fail(run, format_args!("ref: {name} is of no attempt"));
        }
    }

    /// What succeeded attempts printed is there, every line once and in order.
    ///
    /// # Errors
    /// A command fails.
    pub(crate) fn transcripts(&mut self, told: &Told) -> Result<()> {
        let run = told.submitted.run.as_str();
        for task in &told.submitted.plan.tasks {
            let Some(number) = accepted_number(told, &task.name)? else {
                continue;
            };
            if self.was_hit(run, &task.name, number) {
                continue;
            }
            let said = number.to_string();
            let words = ["logs", run, &task.name, "--attempt", &said, "--json"];
            let output = self.world.insist(&words)?;
            let mut printed = String::new();
            for line in output.out.lines() {
                let event: Value = serde_json::from_str(line)?;
                if event["stream"] == "stdout" {
                    printed.push_str(event["output"].as_str().unwrap_or_default());
                }
            }
            let mut lines = printed.lines();
            let whole = (1..=task.lines).all(|line| {
                let start = format!("{} {number} line {line} of many, ", task.name);
                lines
                    .next()
                    .is_some_and(|printed| printed.starts_with(&start))
            });
            self.figures.transcripts += 1;
            if !whole || lines.next().is_some() {
                let found = printed.lines().count();
                self.fail(
                    run,
                    format_args!(
                        "transcript: {} attempt {number} printed {} lines; {found} are there, or \
                         not in order",
                        task.name, task.lines
                    ),
                );
            }
        }
        Ok(())
    }
}

/// The number of the attempt that counts; `None` if the task has not succeeded.
fn accepted_number(told: &Told, task: &str) -> Result<Option<u64>> {
    let said = told.status.task(task)?;
    if said["state"] != "succeeded" {
        return Ok(None);
    }
    let attempts = told.status.attempts(task)?;
    let counts = attempts
        .iter()
        .rev()
        .find(|attempt| attempt["state"] == "succeeded" && attempt["commit"] == said["commit"]);
    Ok(counts.and_then(|attempt| attempt["number"].as_u64()))
}
