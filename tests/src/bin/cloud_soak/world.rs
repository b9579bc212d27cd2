//! The coordinator, its cloud, and what was asked of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use muster_tests::cluster::{Cluster, Options, Programs};
use muster_tests::dice::Dice;
use muster_tests::ec2::Cloud;
use muster_tests::files::Ledger;
use muster_tests::process::Output;
use serde_json::{Value, json};

use crate::{Arguments, say};

/// Short times, so that much happens.
const SETTINGS: &str = "idle-timeout = \"4s\"\npoll = \"2s\"\nburst = 10\njoin-timeout = \"20s\"\n";
/// Nobody should run out of them: instances are lost all the time.
const RETRIES: u32 = 30;

/// Ends a line of the ledger that a task writes last.
pub(crate) const DONE: &str = " done";

/// Everything that is soaked.
pub(crate) struct World {
    // Dropped first: its machines dial the coordinator.
    pub(crate) cloud: Cloud,
    pub(crate) cluster: Cluster,
    pub(crate) ledger: Ledger,
    /// Names of all runs, oldest first.
    pub(crate) runs: Vec<String>,
    /// Instances that met a fault of their own.
    pub(crate) hit: BTreeSet<String>,
    /// How often what was done or seen.
    pub(crate) counts: BTreeMap<String, u64>,
    dice: Dice,
    begun: Instant,
    interrupted: Arc<AtomicBool>,
}

impl World {
    /// Starts a coordinator with a pool that has no instance yet.
    pub(crate) fn new(
        programs: &Programs,
        arguments: &Arguments,
        interrupted: Arc<AtomicBool>,
    ) -> Result<Self> {
        let mut cluster = Cluster::new(programs, Some(Options::short_leases()))?;
        let variables = json!({ "slots": 1, "max": arguments.instances });
        let cloud = Cloud::beside(&mut cluster, SETTINGS, &variables)?;
        // Tasks of another user write to it.
        let shared = cluster.folder().join("shared");
        std::fs::create_dir(&shared)?;
        let ledger = Ledger::new(&shared)?;
        for (path, mode) in [
            (cluster.folder().to_owned(), 0o711),
            (shared.join("ledger"), 0o777),
            (shared, 0o777),
        ] {
            std::fs::set_permissions(path, Permissions::from_mode(mode))?;
        }
        cluster.serve()?;
        Ok(Self {
            cloud,
            cluster,
            ledger,
            runs: Vec::new(),
            hit: BTreeSet::new(),
            counts: BTreeMap::new(),
            dice: Dice::new(arguments.seed, 2),
            begun: Instant::now(),
            interrupted,
        })
    }

    /// Prints a line with its time.
    pub(crate) fn say(&self, line: &str) {
        say(&format!(
            "{:7.1}s  {line}",
            self.begun.elapsed().as_secs_f64()
        ));
    }

    /// Counts something, and prints it.
    pub(crate) fn note(&mut self, what: &str, detail: &str) {
        *self.counts.entry(what.to_owned()).or_default() += 1;
        self.say(format!("{what} {detail}").trim_end());
    }

    pub(crate) fn check_interrupt(&self) -> Result<()> {
        let interrupted = self.interrupted.load(Ordering::SeqCst);
        ensure!(!interrupted, "interrupted");
        Ok(())
    }

    /// Runs a command of `coordinator` that has to succeed.
    pub(crate) fn ask(&self, words: &[&str]) -> Result<Output> {
        self.cluster.ask(words.iter().copied())?.success()
    }

    /// Submits a run of some tasks.
    pub(crate) fn submit(&mut self) -> Result<()> {
        let number = self.runs.len() + 1;
        let tasks = self.dice.between(3, 9);
        let mut text =
            format!("name: r{number}\ndefaults: {{ pool: build, retries: {RETRIES} }}\ntasks:\n");
        for task in 1..=tasks {
            let seconds = ["0.1", "1", "3", "6"][self.dice.index(4).unwrap_or_default()];
            let (note, done) = (self.ledger.note(), self.ledger.note_as(DONE));
            writeln!(text, "  - name: r{number}-{task}")?;
            if task > 2 && self.dice.chance(30) {
                writeln!(text, "    depends_on: [r{number}-{}]", task - 2)?;
            }
            write!(
                text,
                "    run: |\n      {note}\n      sleep {seconds}\n      echo \"$MUSTER_ATTEMPT\" > {task}.txt\n      {done}\n"
            )?;
        }
        let plan = self.cluster.write_plan(&format!("r{number}.yaml"), &text)?;
        let run = self.cluster.submit(&plan)?;
        self.note("run submitted", &format!("{run}, {tasks} tasks"));
        self.runs.push(run);
        Ok(())
    }

    /// Counts the runs that have not ended.
    pub(crate) fn under_way(&self) -> Result<u64> {
        let listed = self
            .ask(&["status", "--json", "--limit", "100000"])?
            .json()?;
        let list = listed.as_array().or_else(|| listed["runs"].as_array());
        let ended = ["succeeded", "failed", "cancelled"];
        let live = list
            .context("no list of runs")?
            .iter()
            .filter(|run| !ended.contains(&run["state"].as_str().unwrap_or_default()));
        Ok(u64::try_from(live.count())?)
    }

    fn pool(&self) -> Result<Value> {
        let listed = self.ask(&["pool", "list", "--json"])?.json()?;
        let pool = listed["pools"].as_array().and_then(|pools| pools.first());
        pool.cloned().context("no pool")
    }

    /// Does what a person would who has read why the pool pauses: launches did fail, on purpose.
    pub(crate) fn resume_if_paused(&mut self) -> Result<()> {
        let pool = self.pool()?;
        if let Some(reason) = pool["paused"]["reason"].as_str() {
            self.note("pool paused and resumed", &format!("({reason})"));
            self.ask(&["pool", "resume", "build"])?;
        }
        Ok(())
    }

    /// Says what is left that costs money, or is thought to; `None` once there is nothing.
    pub(crate) fn left(&mut self) -> Result<Option<String>> {
        let desired = self.cloud.client().desired(&self.cloud.group)?;
        let running = self.cloud.running()?;
        let pool = self.pool()?;
        let known = pool["allocations"].as_array().map_or(0, Vec::len);
        if desired == 0 && running.is_empty() && known == 0 {
            return Ok(None);
        }
        Ok(Some(format!(
            "the group wants {desired}, has {running:?}; the coordinator knows {known}: {pool}"
        )))
    }

    /// Prints how often what was done.
    pub(crate) fn print_figures(&mut self) {
        let ever = self.cloud.hypervisor.ever().len();
        say("faults and what was seen:");
        for (what, count) in &self.counts {
            say(&format!("  {count:7}  {what}"));
        }
        for (fault, count) in self.cloud.moto.faltered() {
            say(&format!("  {count:7}  calls that met `{fault}`"));
        }
        say(&format!("  {ever:7}  instances that ever ran"));
    }
}
