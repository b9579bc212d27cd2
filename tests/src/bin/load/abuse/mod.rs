//! Hostile clients, one kind after the other, beside an honest fleet that is to notice little.

mod connections;
mod plans;
mod sessions;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use muster_proto::v1;
use muster_tests::figures::{Machine, Taken, busy, percentile};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::AbuseMode;
use crate::fleet::{Fleet, Habit};
use crate::report::Report;
use crate::site::{Door, Sampler, Site, wide_plan};

/// What the coordinator may take more while it is abused, besides what it has admitted.
const RESIDENT_GROWTH_MAX_KIB: u64 = 256 * 1024;
/// What the tasks that it admitted may take, for each thousand of them: work that was accepted is kept
/// in memory, and is bounded by the limit on live tasks.
const ADMITTED_KIB_MAX: u64 = 1_500;
/// The part of their usual work that honest workers still do at least: one in so many.
const WORK_LEFT: f64 = 3.0;
/// The most that one honest heartbeat in a hundred may take: a fifth of the interval between two.
const BEAT_MAX: Duration = Duration::from_secs(2);
/// Descriptors it may have: its connections are bounded by three quarters of what it has.
const DESCRIPTORS_MAX: u64 = 16_500;
/// How long it is left alone before each abuse.
const CALM: Duration = Duration::from_secs(2);
/// How long an honest newcomer tries to get in.
const NEWCOMER: Duration = Duration::from_secs(10);

/// What one abuse is given.
#[derive(Clone)]
pub(crate) struct Ring {
    pub(crate) door: Arc<Door>,
    /// A run that the honest fleet works on.
    pub(crate) run: String,
    pub(crate) until: Instant,
    answers: Arc<Mutex<BTreeMap<String, u64>>>,
    /// Tasks that were admitted of this abuse and live at once.
    admitted: Arc<AtomicU64>,
}

impl Ring {
    pub(crate) fn goes_on(&self) -> bool {
        Instant::now() < self.until
    }

    pub(crate) async fn wait(&self) {
        tokio::time::sleep_until(self.until.into()).await;
    }

    /// Counts tasks that the coordinator has taken and now has to keep.
    pub(crate) fn admit(&self, tasks: u64) {
        self.admitted.fetch_add(tasks, Ordering::Relaxed);
    }

    /// Counts what the coordinator said.
    pub(crate) fn note(&self, answer: &str) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        // Different numbers are no different answers.
        let short: String = answer
            .chars()
            .take(110)
            .map(|letter| if letter.is_ascii_digit() { '#' } else { letter })
            .collect();
        if answers.len() < 50 || answers.contains_key(&short) {
            *answers.entry(short).or_insert(0) += 1;
        }
    }

    pub(crate) fn note_status(&self, status: &tonic::Status) {
        self.note(&format!("{:?}: {}", status.code(), status.message()));
    }

    fn answers(&self) -> Vec<(String, u64)> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut answers: Vec<_> = answers.clone().into_iter().collect();
        answers.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        answers.truncate(4);
        answers
    }
}

type Abuse = fn(Ring) -> Pin<Box<dyn Future<Output = Result<()>> + Send>>;

macro_rules! abuses {
    ($($module:ident :: $name:ident),* $(,)?) => {
        &[$((stringify!($name), |ring| Box::pin($module::$name(ring)))),*]
    };
}

const ABUSES: &[(&str, Abuse)] = abuses![
    connections::silent,
    connections::silent_behind_tls,
    connections::half_a_hello,
    connections::garbage,
    connections::slow_headers,
    connections::twenty_thousand,
    connections::bad_tokens,
    connections::wrong_roles,
    connections::unfinished_pushes,
    connections::git_garbage,
    sessions::deaf_watchers,
    sessions::deaf_workers,
    sessions::heartbeats,
    sessions::hellos,
    sessions::foreign_events,
    sessions::loud_worker,
    sessions::foreign_reports,
    plans::a_million_tasks,
    plans::giant_fields,
    plans::many_small,
    plans::hundred_thousand,
];

/// What honest clients saw for a while.
#[derive(Default)]
struct Probe {
    asked: Vec<Duration>,
    entered: Vec<Duration>,
    shut_out: usize,
    last_error: String,
}

struct Honest {
    done: f64,
    beats: Duration,
    grants: Duration,
    asked: Duration,
    entered: Duration,
    newcomers: usize,
    shut_out: usize,
    stale: usize,
    reconnects: usize,
    last_error: String,
}

pub(crate) async fn run(mode: &AbuseMode, crowd: &Handle) -> Result<Report> {
    let mut report = Report::new("abuse");
    let chosen: Vec<_> = ABUSES
        .iter()
        .filter(|(name, _)| mode.names.is_empty() || mode.names.iter().any(|wish| wish == name))
        .collect();
    if chosen.is_empty() {
        let names: Vec<_> = ABUSES.iter().map(|(name, _)| *name).collect();
        bail!("no abuse of that name; there are {}", names.join(", "));
    }
    let mut site = Site::start().await?;
    let start = site.taken()?;
    report.say_taken("coordinator at start", &start);
    let mut tasks = JoinSet::new();
    let work = Duration::from_millis(200);
    let habit = Habit {
        work,
        beat: Some(Duration::from_millis(500)),
    };
    let fleet = Fleet::new(site.door.clone(), habit);
    fleet.join("honest", mode.workers, &mut tasks);
    fleet.until_connected(mode.workers).await?;
    // Enough that they never have nothing to do.
    let wanted = mode.workers * 5 * chosen.len() * usize::try_from(mode.seconds + 4)?;
    let mut run = String::new();
    for _ in 0..wanted.div_ceil(20_000) {
        run = site
            .door
            .submit(wide_plan(20_000, "priority: 100, "))
            .await?;
    }
    let probe: Arc<Mutex<Probe>> = Arc::default();
    tasks.spawn(ask(site.door.clone(), Arc::clone(&probe)));
    tasks.spawn(enter(site.door.clone(), Arc::clone(&probe)));
    for (name, abuse) in chosen {
        one(
            &mut report,
            &mut site,
            (name, *abuse),
            &fleet,
            &probe,
            &run,
            (mode, crowd),
        )
        .await?;
    }
    tasks.abort_all();
    Ok(report)
}

async fn one(
    report: &mut Report,
    site: &mut Site,
    (name, abuse): (&str, Abuse),
    fleet: &Fleet,
    probe: &Arc<Mutex<Probe>>,
    run: &str,
    (mode, crowd): (&AbuseMode, &Handle),
) -> Result<()> {
    honest(fleet, probe, CALM);
    tokio::time::sleep(CALM).await;
    let calm = honest(fleet, probe, CALM);
    let (before, own_before) = (site.taken()?, Taken::by("self")?);
    let machine = Machine::now()?;
    let logged = site.logged()?;
    let sampler = Sampler::start(site.process.clone());
    let began = Instant::now();
    let ring = Ring {
        door: site.door.clone(),
        run: run.to_owned(),
        until: began + Duration::from_secs(mode.seconds),
        answers: Arc::default(),
        admitted: Arc::default(),
    };
    let patience = Duration::from_secs(mode.seconds + 60);
    let ended = tokio::time::timeout(patience, crowd.spawn(abuse(ring.clone()))).await;
    let took = began.elapsed();
    let during = honest(fleet, probe, took);
    let peak = sampler.stop();
    let (after, own_after) = (site.taken()?, Taken::by("self")?);
    let ours = after.processor - before.processor + own_after.processor - own_before.processor;
    let others = Machine::now()?.others_since(&machine, ours);
    match ended {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => report.expect(false, format!("{name}: {error:#}")),
        Ok(Err(error)) => report.expect(false, format!("{name}: the abuser failed: {error}")),
        Err(_) => report.expect(false, format!("{name}: it does not end")),
    }
    report.say(
        name,
        format!(
            "in {took:.1?}: tasks/s {:.0} -> {:.0}, heartbeat p99 {:.1?} -> {:.1?}, grant p99 {:.1?} -> \
             {:.1?}, question p99 {:.1?} -> {:.1?}, newcomer p99 {:.1?} -> {:.1?} ({} in, {} shut out); \
             resident {} -> {} -> {} MiB, descriptors {} -> {} -> {}, {} KiB logged; \
             coordinator {}, this program {}, others {:.0} % of the machine",
            calm.done,
            during.done,
            calm.beats,
            during.beats,
            calm.grants,
            during.grants,
            calm.asked,
            during.asked,
            calm.entered,
            during.entered,
            during.newcomers,
            during.shut_out,
            before.resident_kib / 1024,
            peak.resident_kib / 1024,
            after.resident_kib / 1024,
            before.descriptors,
            peak.descriptors,
            after.descriptors,
            (site.logged()?.saturating_sub(logged)) / 1024,
            busy(&before, &after, took),
            busy(&own_before, &own_after, took),
            others * 100.0,
        ),
    );
    for (answer, count) in ring.answers() {
        report.say(&format!("{name}, answered {count} times"), answer);
    }
    report.expect_in_time(
        others,
        during.done > calm.done / WORK_LEFT,
        format!(
            "{name}: honest workers did {:.1} tasks a second, {:.1} before",
            during.done, calm.done
        ),
    );
    report.expect_in_time(
        others,
        during.beats < BEAT_MAX,
        format!(
            "{name}: an honest heartbeat in a hundred took {:.1?}",
            during.beats
        ),
    );
    report.expect_in_time(
        others,
        during.newcomers > during.shut_out,
        format!(
            "{name}: {} newcomers got in, {} did not: {}",
            during.newcomers, during.shut_out, during.last_error
        ),
    );
    report.expect(
        during.stale == 0,
        format!("{name}: {} honest reports were called stale", during.stale),
    );
    report.expect(
        during.reconnects == 0,
        format!(
            "{name}: {} honest sessions broke: {}",
            during.reconnects, during.last_error
        ),
    );
    let admitted = ring.admitted.load(Ordering::Relaxed);
    let grown = peak.resident_kib.saturating_sub(before.resident_kib);
    report.expect(
        grown < RESIDENT_GROWTH_MAX_KIB + admitted * ADMITTED_KIB_MAX / 1_000,
        format!(
            "{name}: {} MiB more memory, with {admitted} tasks admitted",
            grown / 1024
        ),
    );
    report.expect(
        peak.descriptors < DESCRIPTORS_MAX,
        format!("{name}: {} descriptors", peak.descriptors),
    );
    if let Err(error) = site.check() {
        report.expect(false, format!("{name}: {error:#}"));
        bail!("{name}: {error:#}");
    }
    Ok(())
}

/// Gives what honest clients saw since the last call.
fn honest(fleet: &Fleet, probe: &Arc<Mutex<Probe>>, over: Duration) -> Honest {
    let mut seen = fleet.take();
    let mut probe = std::mem::take(&mut *probe.lock().unwrap_or_else(PoisonError::into_inner));
    let p99 = |times: &mut Vec<Duration>| {
        times.sort();
        percentile(times, 99)
    };
    Honest {
        done: seen.done as f64 / over.as_secs_f64().max(0.001),
        beats: p99(&mut seen.beats),
        grants: p99(&mut seen.grants),
        asked: p99(&mut probe.asked),
        newcomers: probe.entered.len(),
        entered: p99(&mut probe.entered),
        shut_out: probe.shut_out,
        stale: seen.stale,
        reconnects: seen.reconnects,
        last_error: seen.last_error.unwrap_or(probe.last_error),
    }
}

/// Asks a small question again and again on one connection.
async fn ask(door: Arc<Door>, probe: Arc<Mutex<Probe>>) {
    let Ok(mut viewer) = door.viewer().await else {
        return;
    };
    loop {
        let begun = Instant::now();
        let answer = viewer.get_info(v1::GetInfoRequest::default()).await;
        {
            let mut probe = probe.lock().unwrap_or_else(PoisonError::into_inner);
            match answer {
                Ok(_) => probe.asked.push(begun.elapsed()),
                Err(status) => probe.last_error = status.to_string(),
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Comes in anew again and again, as a person's command does.
async fn enter(door: Arc<Door>, probe: Arc<Mutex<Probe>>) {
    loop {
        let begun = Instant::now();
        // A client tries again when it is turned away at the door.
        let entered = tokio::time::timeout(NEWCOMER, async {
            let mut last = String::new();
            loop {
                match door.operator().await {
                    Ok(mut operator) => {
                        match operator.get_info(v1::GetInfoRequest::default()).await {
                            Ok(_) => return last,
                            Err(status) => last = status.to_string(),
                        }
                    }
                    Err(error) => last = format!("{error:#}"),
                }
                probe
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .last_error
                    .clone_from(&last);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        {
            let mut probe = probe.lock().unwrap_or_else(PoisonError::into_inner);
            match entered {
                Ok(_) => probe.entered.push(begun.elapsed()),
                Err(_) => probe.shut_out += 1,
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
