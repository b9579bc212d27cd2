//! People: those who submit and watch, and those who interfere.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use muster_tests::process::Output;
use serde_json::Value;

use crate::plan::{Plan, Setting};
use crate::world::{Expected, Submitted, World};
use muster_tests::dice::Dice;

/// Exit codes with which `watch` says how a run ended.
const RUN_ENDED: [i32; 4] = [0, 10, 11, 12];

/// Submits plans all the time and follows each run to its end.
pub(crate) struct Submitter {
    pub(crate) world: Arc<World>,
    pub(crate) repository: PathBuf,
    pub(crate) script: PathBuf,
    pub(crate) naked: bool,
    /// Runs that are under way at once.
    pub(crate) at_once: u64,
}

impl Submitter {
    /// Works until faults stop, and returns when every run has ended and was seen to end.
    pub(crate) fn submit_all(self) {
        let live = Arc::new(AtomicU64::new(0));
        let mut followers = Vec::new();
        let mut number = 0;
        while self.world.faulting() {
            if live.load(Ordering::SeqCst) < self.at_once {
                number += 1;
                live.fetch_add(1, Ordering::SeqCst);
                let setting = Setting {
                    repository: &self.repository,
                    script: &self.script,
                    ledger: &self.world.ledger,
                    naked: self.naked,
                };
                let plan = Plan::draw(self.world.seed, number, &setting);
                let (world, live) = (Arc::clone(&self.world), Arc::clone(&live));
                followers.push(std::thread::spawn(move || {
                    if let Err(error) = submit_and_follow(&world, plan, number) {
                        world.fail(format!("run {number}: {error:#}"));
                    }
                    live.fetch_sub(1, Ordering::SeqCst);
                }));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        for follower in followers {
            if follower.join().is_err() {
                self.world.fail("a thread of the soak panicked".to_owned());
            }
        }
    }
}

fn submit_and_follow(world: &World, plan: Plan, number: u64) -> Result<()> {
    let path = world
        .cluster
        .write_plan(&format!("{}.yaml", plan.name), &plan.text)?;
    let path = path.to_string_lossy().into_owned();
    // Names of runs come from it, and by those an audit knows the processes of its home: two soaks
    // of one seed at a time must not share any.
    let key = format!("soak-{}-{}-{number}", world.seed, std::process::id());
    let mut dice = Dice::new(world.seed, 1_000_000 + number);
    let arguments = ["submit", &path, "--idempotency-key", &key, "--json"];
    let Some(run) = submit(world, &arguments)? else {
        return Ok(());
    };
    world.note(&format!("{} is run {run}", plan.name));
    world.known().runs.push(Submitted {
        run: run.clone(),
        plan,
    });
    if dice.chance(25)
        && let Some(again) = submit(world, &arguments)?
    {
        world.count("plans submitted again");
        ensure!(
            again == run,
            "twice: the plan with key {key} is run {run} and, submitted again, {again}"
        );
    }
    follow(world, &run)
}

/// Submits until it is said that it was; `None` if the soak is over before.
fn submit(world: &World, arguments: &[&str]) -> Result<Option<String>> {
    while !world.over() {
        if let Some(output) = world.call(arguments)
            && output.code() == 0
        {
            let said = output.last_json()?;
            let run = said["run"].as_str().context("no run was named")?;
            return Ok(Some(run.to_owned()));
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    Ok(None)
}

/// Watches a run to its end, from where the last watch was whenever one is killed, and insists that
/// the events that were seen have no gap and no repetition.
fn follow(world: &World, run: &str) -> Result<()> {
    let mut cursor: Option<String> = None;
    let mut seqs: Vec<u64> = Vec::new();
    let mut part = 0;
    while !world.over() {
        part += 1;
        let mut words = vec!["watch", run, "--json"];
        if let Some(cursor) = &cursor {
            words.extend(["--cursor", cursor]);
        }
        let mut watch = world
            .cluster
            .call(words.iter().map(|word| (*word).to_owned()))
            .start(&world.cluster.logs(), &format!("watch-{run}-{part}"))?;
        while watch.runs()? && !world.over() {
            std::thread::sleep(Duration::from_millis(50));
        }
        if world.over() {
            break;
        }
        let status = watch.ended(Duration::from_secs(1))?;
        let printed = watch.printed();
        // The last line may be torn, if it was killed.
        let whole = printed.rsplit_once('\n').map_or("", |(whole, _)| whole);
        for line in whole.lines() {
            let event: Value = serde_json::from_str(line)
                .with_context(|| format!("watch of {run} printed {line:?}"))?;
            cursor = event["cursor"].as_str().map(str::to_owned).or(cursor);
            seqs.extend(event["seq"].as_u64());
        }
        if status.code().is_some_and(|code| RUN_ENDED.contains(&code)) {
            break;
        }
        let code = status
            .code()
            .map_or("killed".to_owned(), |code| code.to_string());
        world.count(&format!("watch ended early: {code}"));
        if status.code().is_some_and(|code| code != 4) {
            let errors = watch.errors();
            world.note(&format!("watch of {run} ended with {code}: {errors}"));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let gap = seqs
        .iter()
        .zip(1u64..)
        .find(|(seq, expected)| *seq != expected);
    ensure!(
        gap.is_none(),
        "watch: events of {run} that were seen have a gap or a repetition at {gap:?}"
    );
    Ok(())
}

/// Cancels, retries, drains, adds, removes, and looks at things.
pub(crate) struct Operator {
    pub(crate) world: Arc<World>,
    /// Workers that there are, about.
    pub(crate) workers: usize,
    /// Describes a new worker of that number.
    pub(crate) another: Box<dyn Fn(usize) -> Result<crate::world::Worker> + Send>,
}

impl Operator {
    /// Works until faults stop; then takes back every drain.
    pub(crate) fn interfere(self) {
        let mut dice = Dice::new(self.world.seed, 2);
        let mut drained: BTreeMap<String, Instant> = BTreeMap::new();
        while self.world.faulting() {
            self.act(&mut dice, &mut drained);
            let late = |since: &Instant| since.elapsed() > Duration::from_secs(6);
            drained.retain(|worker, since| !(late(since) && self.undo_drain(worker)));
            let pause = Instant::now() + Duration::from_millis(dice.between(500, 2_500));
            while self.world.faulting() && Instant::now() < pause {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        for worker in drained.keys() {
            while !self.world.over() && !self.undo_drain(worker) {
                std::thread::sleep(Duration::from_millis(300));
            }
        }
    }

    fn act(&self, dice: &mut Dice, drained: &mut BTreeMap<String, Instant>) {
        let (what, which, detail) = (dice.below(100), dice.below(1 << 20), dice.below(1 << 20));
        let Some((run, task)) = self.pick(which, detail) else {
            return;
        };
        match what {
            0..8 => {
                let task = (detail % 3 != 0).then_some(task.as_str());
                let name = task.map(str::to_owned);
                // Noted before, since it may be done without being confirmed.
                self.world.known().cancelled.insert((run.clone(), name));
                let mut words = vec!["cancel", run.as_str()];
                words.extend(task);
                self.world.call(&words);
            }
            8..28 => {
                let mut words = vec!["retry", run.as_str()];
                if detail % 2 == 0 {
                    words.push(&task);
                }
                self.world.call(&words);
            }
            28..38 => {
                if let Some(worker) = self.some_worker(which)
                    && self.asked(&["drain", &worker])
                {
                    drained.insert(worker, Instant::now());
                }
            }
            38..48 => self.add_worker(),
            48..58 => self.remove_worker(which),
            58..68 => {
                self.world.call(&["logs", &run, &task, "--json"]);
            }
            68..78 => {
                self.world.call(&["explain", &run, &task]);
            }
            78..84 => {
                self.world.call(&["diff", &run, &task, "--stat"]);
            }
            84..92 => {
                self.world.call(&["status", &run, "--json"]);
            }
            _ => {
                self.world.call(&["status"]);
            }
        }
    }

    /// Picks a task, of a younger run rather than of an old one.
    fn pick(&self, which: u64, detail: u64) -> Option<(String, String)> {
        let known = self.world.known();
        let recent = known.runs.len().min(8);
        let back = usize::try_from(which).ok()?.checked_rem(recent)?;
        let submitted = known.runs.iter().rev().nth(back)?;
        let tasks = &submitted.plan.tasks;
        let index = usize::try_from(detail).ok()?.checked_rem(tasks.len())?;
        Some((submitted.run.clone(), tasks.get(index)?.name.clone()))
    }

    fn asked(&self, words: &[&str]) -> bool {
        self.world
            .call(words)
            .is_some_and(|output| output.code() == 0)
    }

    fn some_worker(&self, which: u64) -> Option<String> {
        let listed = self.world.call(&["workers", "--json"])?;
        let workers = workers(&listed).ok()?;
        let index = usize::try_from(which).ok()?.checked_rem(workers.len())?;
        Some(workers.get(index)?["worker"].as_str()?.to_owned())
    }

    /// Gives a drained worker work again; true if that is done, or no longer possible.
    fn undo_drain(&self, worker: &str) -> bool {
        let output = self.world.call(&["drain", worker, "--undo"]);
        output.is_some_and(|output| output.code() == 0 || output.err.contains("no worker"))
    }

    fn add_worker(&self) {
        let mut parts = self.world.parts();
        let wanted = parts.workers.iter().filter(|worker| worker.wanted).count();
        if wanted >= self.workers + 2 {
            return;
        }
        if let Some(worker) = parts.workers.iter_mut().find(|worker| !worker.wanted) {
            worker.wanted = true;
            self.world
                .note(&format!("{} is added again", worker.part.name));
            return;
        }
        let number = parts.workers.len() + 1;
        drop(parts);
        match (self.another)(number) {
            Ok(worker) => {
                self.world.note(&format!("{} is added", worker.part.name));
                self.world.parts().workers.push(worker);
            }
            // Its token is made by a command, which needs the home for a moment.
            Err(error) => self.world.note(&format!("no worker is added: {error:#}")),
        }
    }

    fn remove_worker(&self, which: u64) {
        let mut parts = self.world.parts();
        let mut wanted: Vec<_> = parts
            .workers
            .iter_mut()
            .filter(|worker| worker.wanted && worker.part.is_up())
            .collect();
        if wanted.len() < self.workers {
            return;
        }
        let index = usize::try_from(which).unwrap_or_default() % wanted.len();
        if let Some(worker) = wanted.get_mut(index) {
            worker.wanted = false;
            worker.part.expected = Expected::Ending;
            worker.part.signal(rustix::process::Signal::TERM);
            self.world.note(&format!("{} is removed", worker.part.name));
        }
    }
}

/// Reads what `workers --json` printed.
pub(crate) fn workers(output: &Output) -> Result<Vec<Value>> {
    ensure!(output.code() == 0, "{}", output.err);
    let listed = output.json()?;
    let list = listed.as_array().or_else(|| listed["workers"].as_array());
    Ok(list.cloned().unwrap_or_default())
}
