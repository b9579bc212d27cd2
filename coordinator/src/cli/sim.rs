//! `coordinator sim`.

mod options;
mod report;

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coordinator_sim::progress::{self, Progress};
use coordinator_sim::ranges::Ranges;
use coordinator_sim::runner::{self, Control, Failing, Story, Sweep, Swept};
use coordinator_sim::{Ended, Scenario, Unwatched, Violation, regressions};
use serde_json::{Map, Value, json};

use super::context::Context;
use super::error::{CliError, Exit, Kind, Result};
use super::interrupt::Interrupts;
use super::show::counted;
pub(crate) use options::Sim;
use report::{Broken, Figures, Shortest};

/// Worlds that may be tried to make one story shorter.
const SHRINK_TRIES: u32 = 20_000;
/// How long the shortest story of one violation is looked for.
const SHRINK_TIME: Duration = Duration::from_secs(20);
/// Failing seeds after which even `--keep-going` has enough.
const MOST_FAILURES: usize = 1_000;
/// How often a terminal sees the figures.
const LIVE: Duration = Duration::from_millis(250);

pub(crate) async fn sim(context: &Context, options: Sim) -> Result<Exit> {
    let mut desk = Desk {
        context,
        interrupts: Interrupts::listen()?,
        control: Arc::default(),
        interrupted: false,
    };
    if options.regressions {
        desk.regressions(&options).await
    } else if let Some(seed) = options.seed {
        let again = format!("coordinator sim --seed {seed} --story");
        desk.one(&options, Scenario::generate(seed), again).await
    } else if let Some(file) = &options.scenario {
        let scenario = read_scenario(file)?;
        let again = format!(
            "coordinator sim --scenario {} --story",
            super::summary::quoted(&file.to_string_lossy())
        );
        desk.one(&options, scenario, again).await
    } else if options.story {
        let error = CliError::user("a story is told of one world");
        Err(error.hint("name it with `--seed N` or `--scenario FILE`"))
    } else {
        desk.sweep(&options).await
    }
}

/// Where worlds are ordered, watched and stopped.
struct Desk<'c> {
    context: &'c Context,
    interrupts: Interrupts,
    control: Arc<Control>,
    interrupted: bool,
}

impl Desk<'_> {
    /// Does something long on a thread of its own. The first Ctrl-C asks it to end, a second one
    /// does not wait for it: then there is no result.
    async fn away<T: Send + 'static>(
        &mut self,
        live: &dyn Fn(),
        work: impl FnOnce(&Control) -> T + Send + 'static,
    ) -> Result<Option<T>> {
        let control = Arc::clone(&self.control);
        let mut working = tokio::task::spawn_blocking(move || work(&control));
        let mut tick = tokio::time::interval(LIVE);
        loop {
            tokio::select! {
                done = &mut working => {
                    let done = done.map_err(|error| {
                        CliError::internal(error).while_doing("run simulated worlds")
                    })?;
                    return Ok(Some(done));
                }
                _ = self.interrupts.next() => {
                    if self.interrupted {
                        return Ok(None);
                    }
                    self.interrupted = true;
                    self.control.stop();
                    self.context.output.say("ending after the worlds in work; Ctrl-C again does not wait");
                }
                _ = tick.tick() => live(),
            }
        }
    }

    async fn sweep(&mut self, options: &Sim) -> Result<Exit> {
        let output = self.context.output;
        let wanted = options.seeds.clone();
        let before = match &options.progress {
            Some(file) => Progress::read(file).map_err(no_progress)?,
            None => Progress::default(),
        };
        let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let sweep = Sweep {
            seeds: before.done.missing(&wanted),
            threads: options.threads.unwrap_or(cores),
            most_failures: if options.keep_going {
                MOST_FAILURES
            } else {
                usize::try_from(options.failures.get()).unwrap_or(usize::MAX)
            },
            coverage: options.coverage,
        };
        let to_run = sweep.seeds.len();
        let threads = sweep.threads.get();
        if !before.done.is_empty() {
            let done = before.done.within(&wanted).len();
            output.say(&format!("{done} seeds of {wanted} were run before"));
        }
        let begin = Instant::now();
        let control = Arc::clone(&self.control);
        let live = move || {
            if output.talk_is_terminal {
                let figures = Figures {
                    tally: control.so_far(),
                    took: begin.elapsed(),
                    threads,
                };
                output.talk(&live_line(&figures, to_run));
            }
        };
        let earlier = before.clone();
        let file = options.progress.clone();
        let swept = self.away(&live, move |control| {
            let mut keep = |swept: &Swept| match &file {
                Some(file) => together(&earlier, swept).write(file),
                None => Ok(()),
            };
            runner::sweep(&sweep, &runner::world, control, &mut keep)
        });
        let swept = swept.await?;
        if output.talk_is_terminal {
            output.talk("\r\x1b[2K");
        }
        let Some(swept) = swept else {
            return Ok(Exit::Interrupted);
        };
        let swept = swept.map_err(no_progress)?;
        let figures = Figures {
            tally: swept.tally.clone(),
            took: begin.elapsed(),
            threads,
        };
        let earlier: Vec<Failing> = before
            .failures
            .iter()
            .filter(|failing| wanted.contains(failing.seed))
            .cloned()
            .collect();
        let broken = self.retold(&swept.failures, &earlier).await?;
        let table = options.coverage.then(|| swept.reached.table());
        let done = together(&before, &swept).done;
        let left = done.missing(&wanted);

        if options.json {
            let mut object = Map::new();
            object.insert("seeds".to_owned(), pairs(&wanted));
            figures.json(&mut object);
            let violations: Vec<Value> = broken.iter().map(Broken::json).collect();
            object.insert("violations".to_owned(), json!(violations));
            object.insert("left".to_owned(), pairs(&left));
            if let Some(table) = &table {
                object.insert("coverage".to_owned(), report::coverage_json(table));
            }
            output.json(&object)?;
        } else {
            output.data(&figures.text())?;
            if let Some(table) = &table {
                output.data(&report::coverage_text(table, output.data_paint))?;
            }
            for broken in &broken {
                output.data(&broken.text(output.data_paint))?;
            }
            if broken.is_empty() && left.is_empty() {
                output.data(&format!("{wanted}: no violation"))?;
            }
        }
        if !left.is_empty() {
            let way = match &options.progress {
                Some(_) => "the same command goes on".to_owned(),
                None => format!("`coordinator sim --seeds {left}` goes on"),
            };
            let left = counted(usize::try_from(left.len()).unwrap_or(usize::MAX), "seed");
            output.say(&format!("{left} left; {way}"));
        }
        let complete = table.is_none_or(|table| table.is_complete());
        Ok(if !broken.is_empty() {
            Exit::Problems
        } else if self.interrupted {
            Exit::Interrupted
        } else if complete {
            Exit::Success
        } else {
            Exit::Problems
        })
    }

    /// Finds the shortest story of one seed for each broken rule; the others are only named.
    async fn retold(&mut self, failures: &[Failing], earlier: &[Failing]) -> Result<Vec<Broken>> {
        let mut told = BTreeSet::new();
        let mut broken = Vec::new();
        for failing in failures {
            let shortest = if told.insert(failing.rule.clone()) {
                let scenario = Scenario::generate(failing.seed);
                self.shortest(scenario, &failing.rule).await?
            } else {
                None
            };
            broken.push(Broken {
                failing: failing.clone(),
                shortest,
                again: format!("coordinator sim --seed {} --story", failing.seed),
            });
        }
        broken.extend(earlier.iter().map(|failing| Broken {
            failing: failing.clone(),
            shortest: None,
            again: format!("coordinator sim --seed {} --story", failing.seed),
        }));
        Ok(broken)
    }

    /// Looks for the shortest story; `None` when there was no time to.
    async fn shortest(&mut self, failing: Scenario, rule: &str) -> Result<Option<Shortest>> {
        if self.interrupted {
            return Ok(None);
        }
        // The sweep that found it was stopped, but this search goes on.
        self.control = Arc::default();
        self.context.output.say(&format!(
            "seed {} breaks \"{rule}\"; looking for the shortest story",
            failing.seed
        ));
        let rule = rule.to_owned();
        let found = self.away(&|| {}, move |control| {
            let begin = Instant::now();
            let of = failing.parts();
            let time_left = || begin.elapsed() < SHRINK_TIME && !control.is_stopped();
            let shrunk = runner::shortest(failing, &rule, SHRINK_TRIES, &time_left);
            let mut story = Story::default();
            let violation = runner::scenario(&shrunk.found, &mut story).err()?;
            Some(Shortest {
                scenario: shrunk.found,
                violation,
                story,
                of,
                tries: shrunk.tries,
                smallest: shrunk.smallest,
            })
        });
        Ok(found.await?.flatten())
    }

    async fn one(&mut self, options: &Sim, scenario: Scenario, again: String) -> Result<Exit> {
        let output = self.context.output;
        let seed = scenario.seed;
        let tells = options.story;
        let world = scenario.clone();
        let begin = Instant::now();
        let ran = self.away(&|| {}, move |_| run_one(&world, tells)).await?;
        let Some((ended, story)) = ran else {
            return Ok(Exit::Interrupted);
        };
        if tells {
            output.bytes(story.to_string().as_bytes())?;
        }
        let took = begin.elapsed();
        let broken = match ended {
            Ok(ended) => {
                let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
                let counts: Map<String, Value> = ended
                    .counts
                    .named()
                    .map(|(name, count)| (name.to_owned(), json!(count)))
                    .collect();
                if options.json {
                    output.json(&json!({
                        "seed": seed,
                        "steps": ended.steps,
                        "simulated_ms": ended.simulated_ms,
                        "digest": format!("{:016x}", ended.digest),
                        "counts": counts,
                        "violations": [],
                    }))?;
                } else {
                    let counts = ended.counts.named();
                    let counts: Vec<String> = counts.map(|(n, c)| format!("{n} {c}")).collect();
                    output.data(&format!(
                        "seed {seed}: no violation; {} steps in {} of simulated time, {ms} ms here\n\
                         {}\ndigest of the trace {:016x}",
                        ended.steps,
                        report::seconds(ended.simulated_ms),
                        counts.join(", "),
                        ended.digest
                    ))?;
                }
                return Ok(Exit::Success);
            }
            Err(violation) => {
                let failing = Failing::new(seed, violation);
                let shortest = if tells {
                    None
                } else {
                    self.shortest(scenario, &failing.rule.clone()).await?
                };
                Broken {
                    failing,
                    shortest,
                    again,
                }
            }
        };
        if options.json {
            output.json(&json!({ "seed": seed, "violations": [broken.json()] }))?;
        } else {
            output.data(&broken.text(output.data_paint))?;
        }
        Ok(Exit::Problems)
    }

    async fn regressions(&mut self, options: &Sim) -> Result<Exit> {
        let output = self.context.output;
        let list = regressions::all().map_err(CliError::internal)?;
        let total = list.len();
        let ran = self.away(&|| {}, move |control| {
            let worlds = list.into_iter().take_while(|_| !control.is_stopped());
            let ran = worlds.map(|world| {
                let ended = world.run();
                (world, ended)
            });
            ran.collect::<Vec<_>>()
        });
        let Some(ran) = ran.await? else {
            return Ok(Exit::Interrupted);
        };
        let mut broken = Vec::new();
        for (world, ended) in &ran {
            if let Err(violation) = ended {
                let failing = Failing::new(world.scenario.seed, violation.clone());
                let shortest = self.shortest(world.scenario.clone(), &failing.rule).await?;
                broken.push(Broken {
                    failing,
                    shortest,
                    again: "coordinator sim --regressions".to_owned(),
                });
            }
        }
        if options.json {
            let violations: Vec<Value> = broken.iter().map(Broken::json).collect();
            output.json(&json!({ "worlds": ran.len(), "violations": violations }))?;
        } else {
            for broken in &broken {
                output.data(&broken.text(output.data_paint))?;
            }
            let worlds = counted(ran.len(), "world");
            let failed = broken.len();
            output.data(&format!("{worlds} that failed once, {failed} fail now"))?;
        }
        Ok(if !broken.is_empty() {
            Exit::Problems
        } else if ran.len() < total {
            Exit::Interrupted
        } else {
            Exit::Success
        })
    }
}

fn run_one(scenario: &Scenario, tells: bool) -> (std::result::Result<Ended, Violation>, Story) {
    let mut story = Story::default();
    let ended = if tells {
        runner::scenario(scenario, &mut story)
    } else {
        runner::scenario(scenario, &mut Unwatched)
    };
    (ended, story)
}

/// Adds what a sweep has done to what was done before it.
fn together(before: &Progress, swept: &Swept) -> Progress {
    let mut all = before.clone();
    swept.done.iter().for_each(|range| all.done.insert(range));
    all.failures.extend(swept.failures.iter().cloned());
    all
}

fn read_scenario(file: &Path) -> Result<Scenario> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        CliError::new(Kind::User, error).while_doing(format!("read {}", file.display()))
    })?;
    serde_json::from_str(&text).map_err(|error| {
        CliError::new(Kind::User, error)
            .while_doing(format!("read a scenario from {}", file.display()))
            .hint("`coordinator sim --json` prints those that fail, under .violations[].shortest.scenario")
    })
}

fn no_progress(error: progress::Error) -> CliError {
    let foreign = matches!(error, progress::Error::Foreign { .. });
    let damaged = matches!(error, progress::Error::Form { .. });
    let error = CliError::new(Kind::User, error);
    if foreign {
        error.hint(
            "what another simulator has run says nothing about this one: name another file, or \
             delete this one to begin again",
        )
    } else if damaged {
        error.hint("name another file, or delete this one to begin again")
    } else {
        error
    }
}

/// Writes ranges for programs.
fn pairs(ranges: &Ranges) -> Value {
    let pairs: Vec<(u64, u64)> = ranges
        .iter()
        .map(|range| (range.start, range.end))
        .collect();
    json!(pairs)
}

fn live_line(figures: &Figures, wanted: u64) -> String {
    let tally = &figures.tally;
    let failed = match tally.failed {
        0 => String::new(),
        failed => format!(", {failed} failed"),
    };
    format!(
        "\r\x1b[2K{} of {wanted} worlds, {:.0}/s, {} steps{failed}",
        tally.worlds,
        figures.per_second(),
        tally.steps
    )
}
