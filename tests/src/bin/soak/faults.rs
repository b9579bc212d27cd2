//! What is done to Muster, by chance but from a seed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use muster_tests::proxy::{Direction, End, Faults};
use rustix::process::{Pid, Signal};

use crate::processes::{self, Seen};
use crate::world::{Death, Expected, KeeperHit, Part, Parts, World, now_ms};
use muster_tests::dice::Dice;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    KillCoordinator,
    FreezeCoordinator,
    StopCoordinator,
    KillWorker,
    FreezeWorker,
    StopWorker,
    KillSupervisor,
    KillGuard,
    FreezeSupervisor,
    FreezeKeepers,
    KillAgent,
    FreezeAgent,
    KillGit,
    FreezeGit,
    CutBoth,
    CutUp,
    CutDown,
    Reset,
    KillWatcher,
    KillSubmit,
    PowerLoss,
}

impl Kind {
    const ALL: [(u64, Self); 21] = [
        (6, Self::KillCoordinator),
        (4, Self::FreezeCoordinator),
        (2, Self::StopCoordinator),
        (10, Self::KillWorker),
        (7, Self::FreezeWorker),
        (3, Self::StopWorker),
        (8, Self::KillSupervisor),
        (4, Self::KillGuard),
        (2, Self::FreezeSupervisor),
        (4, Self::FreezeKeepers),
        (6, Self::KillAgent),
        (5, Self::FreezeAgent),
        (14, Self::KillGit),
        (6, Self::FreezeGit),
        (7, Self::CutBoth),
        (3, Self::CutUp),
        (3, Self::CutDown),
        (3, Self::Reset),
        (5, Self::KillWatcher),
        (3, Self::KillSubmit),
        (1, Self::PowerLoss),
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::KillCoordinator => "kill coordinator",
            Self::FreezeCoordinator => "freeze coordinator",
            Self::StopCoordinator => "stop coordinator",
            Self::KillWorker => "kill worker",
            Self::FreezeWorker => "freeze worker",
            Self::StopWorker => "stop worker",
            Self::KillSupervisor => "kill supervisor",
            Self::KillGuard => "kill guard",
            Self::FreezeSupervisor => "freeze supervisor",
            Self::FreezeKeepers => "freeze guard and supervisor",
            Self::KillAgent => "kill agent",
            Self::FreezeAgent => "freeze agent",
            Self::KillGit => "kill git",
            Self::FreezeGit => "freeze git",
            Self::CutBoth => "cut worker off",
            Self::CutUp => "cut worker off upwards",
            Self::CutDown => "cut worker off downwards",
            Self::Reset => "reset connections",
            Self::KillWatcher => "kill watch",
            Self::KillSubmit => "kill submit",
            Self::PowerLoss => "kill everything",
        }
    }
}

/// How long a search for a process that comes and goes may take.
const SEARCH: Duration = Duration::from_millis(400);

/// A frozen process that is no part.
#[derive(Debug)]
struct Frozen {
    pid: Pid,
    until: Instant,
}

/// Makes faults and keeps everything running in spite of them.
#[derive(Debug)]
pub(crate) struct Director<'a> {
    world: &'a World,
    dice: Dice,
    every: Duration,
    frozen: Vec<Frozen>,
}

impl<'a> Director<'a> {
    pub(crate) fn new(world: &'a World, every: Duration) -> Self {
        Self {
            world,
            dice: Dice::new(world.seed, 1),
            every,
            frozen: Vec::new(),
        }
    }

    /// Works until the soak is over; once there are no more faults, all that was done is undone and
    /// everything is kept running.
    pub(crate) fn direct(mut self) {
        let mut next = Instant::now() + self.every;
        while !self.world.over() {
            let now = Instant::now();
            if !self.world.faulting() {
                self.undo_all(now);
            } else if now >= next {
                self.fault(now);
                next = (next + self.every).max(Instant::now());
            }
            self.undo(now);
            self.keep(now);
            std::thread::sleep(Duration::from_millis(20));
        }
        for frozen in &self.frozen {
            processes::signal(frozen.pid, Signal::CONT);
        }
    }

    fn ms(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.dice.between(least, most))
    }

    /// All that a fault needs is drawn before anything is looked at, so that the throws of the
    /// following faults do not depend on what there was.
    fn fault(&mut self, now: Instant) {
        let Some(kind) = self.dice.weighted(&Kind::ALL).copied() else {
            return;
        };
        let choice = self.dice.between(0, 1 << 20);
        // Most are short; some are longer than a lease lives.
        let long = self.dice.chance(25);
        let time = if long {
            self.ms(6_000, 14_000)
        } else {
            self.ms(100, 4_000)
        };
        let short = time.min(Duration::from_secs(5));
        let hit = match kind {
            Kind::KillCoordinator => self.end_coordinator(Signal::KILL, now + short / 2),
            Kind::StopCoordinator => self.end_coordinator(Signal::TERM, now + short / 2),
            Kind::FreezeCoordinator => {
                let mut parts = self.world.parts();
                freeze(&mut parts.coordinator, now + short)
            }
            Kind::KillWorker | Kind::FreezeWorker | Kind::StopWorker => {
                let mut parts = self.world.parts();
                let hit = pick_up(&mut parts, choice).and_then(|part| match kind {
                    Kind::KillWorker => end(part, Signal::KILL, now + time),
                    Kind::StopWorker => end(part, Signal::TERM, now + short),
                    _ => freeze(part, now + time),
                });
                if let (Some(name), false) = (&hit, kind == Kind::StopWorker) {
                    self.world.worker_off(name, time);
                }
                hit
            }
            Kind::CutBoth | Kind::CutUp | Kind::CutDown | Kind::Reset => {
                self.cut(kind, choice, now + time)
            }
            Kind::KillSupervisor | Kind::FreezeSupervisor => {
                self.process(kind, choice, now + time, Seen::is_supervisor)
            }
            Kind::KillGuard | Kind::FreezeKeepers => {
                self.process(kind, choice, now + time, Seen::is_guard)
            }
            Kind::KillAgent | Kind::FreezeAgent => {
                // Before it becomes the agent, a process does not say yet for whom it works.
                let of_attempt = |seen: &Seen| seen.work().is_some_and(|work| !work.run.is_empty());
                self.process(kind, choice, now + time, of_attempt)
            }
            Kind::KillGit | Kind::FreezeGit => {
                self.process(kind, choice, now + short, Seen::is_git)
            }
            Kind::KillWatcher => self.process(kind, choice, now, |seen| seen.is_command("watch")),
            Kind::KillSubmit => self.process(kind, choice, now, |seen| seen.is_command("submit")),
            Kind::PowerLoss => self.power_loss(now + short),
        };
        match hit {
            Some(hit) => {
                self.world.count(&format!("fault {}", kind.name()));
                let seconds = time.as_secs_f64();
                self.world
                    .note(&format!("{}: {hit} ({seconds:.1} s)", kind.name()));
            }
            None => self
                .world
                .note(&format!("{}: nothing there to hit", kind.name())),
        }
    }

    fn end_coordinator(&self, signal: Signal, until: Instant) -> Option<String> {
        let mut parts = self.world.parts();
        end(&mut parts.coordinator, signal, until)
    }

    fn cut(&self, kind: Kind, choice: u64, until: Instant) -> Option<String> {
        let mut parts = self.world.parts();
        let mut open: Vec<_> = parts
            .workers
            .iter_mut()
            .filter(|worker| worker.cut_until.is_none() && worker.link.is_some())
            .collect();
        let index = usize::try_from(choice).ok()?.checked_rem(open.len())?;
        let worker = open.get_mut(index)?;
        let link = worker.link.as_ref()?;
        match kind {
            Kind::CutBoth => link.set_both(Faults::STALLED),
            Kind::CutUp => link.set(Direction::Up, Faults::STALLED),
            Kind::CutDown => link.set(Direction::Down, Faults::STALLED),
            _ => {
                link.cut(End::Reset);
                return Some(worker.part.name.clone());
            }
        }
        worker.cut_until = Some(until);
        Some(worker.part.name.clone())
    }

    fn process(
        &mut self,
        kind: Kind,
        choice: u64,
        until: Instant,
        wanted: impl Fn(&Seen) -> bool,
    ) -> Option<String> {
        let begun = Instant::now();
        let mut seen = loop {
            let found = born();
            let wanted: Vec<&Seen> = found.iter().filter(|seen| wanted(seen)).collect();
            let index = usize::try_from(choice).ok()?.checked_rem(wanted.len());
            if let Some(seen) = index.and_then(|index| wanted.get(index)) {
                let below = |other: &&Seen| other.parent == Some(seen.pid) && other.is_supervisor();
                let mut hit = vec![(*seen).clone()];
                if kind == Kind::FreezeKeepers {
                    hit.extend(found.iter().find(below).cloned());
                }
                break hit;
            }
            if begun.elapsed() > SEARCH {
                return None;
            }
        };
        let freezes = matches!(
            kind,
            Kind::FreezeSupervisor | Kind::FreezeKeepers | Kind::FreezeAgent | Kind::FreezeGit
        );
        seen.retain(|seen| self.hit(seen, freezes, until));
        let shown: Vec<String> = seen.iter().map(Seen::shown).collect();
        (!shown.is_empty()).then(|| shown.join("; "))
    }

    /// Kills or freezes a process, and notes whom that hits; false if it is gone.
    fn hit(&mut self, seen: &Seen, freezes: bool, until: Instant) -> bool {
        if let Some(work) = seen.work() {
            let name = (work.run, work.task, work.attempt);
            self.world.known().hit.insert(name);
        }
        if let Some((lease, worker)) = seen.supervised() {
            let hit = KeeperHit {
                lease,
                worker,
                guard: seen.is_guard(),
                at: now_ms(),
            };
            self.world.known().keepers_hit.push(hit);
        }
        let signal = if freezes { Signal::STOP } else { Signal::KILL };
        let is_there = processes::signal(seen.pid, signal);
        if freezes && is_there {
            self.frozen.push(Frozen {
                pid: seen.pid,
                until,
            });
        }
        is_there
    }

    /// Kills everything that runs, apart from the people's own commands: a host without power.
    fn power_loss(&self, until: Instant) -> Option<String> {
        let mut parts = self.world.parts();
        let parts = &mut *parts;
        let all = std::iter::once(&mut parts.coordinator)
            .chain(parts.workers.iter_mut().map(|worker| &mut worker.part));
        for part in all {
            if part.process.is_some() {
                part.expected = Expected::Killed;
                part.down_until = Some(until);
                part.frozen_until = None;
                part.signal(Signal::KILL);
            }
        }
        let mut killed = BTreeSet::new();
        loop {
            // Again, for those that were begun while others were killed: no host loses power in steps.
            let before = killed.len();
            for seen in processes::below() {
                let spared = ["watch", "submit"].iter().any(|word| seen.is_command(word));
                if !spared && seen.state != 'Z' {
                    if let Some(work) = seen.work() {
                        let name = (work.run, work.task, work.attempt);
                        self.world.known().hit.insert(name);
                    }
                    processes::signal(seen.pid, Signal::KILL);
                    killed.insert(seen.pid.as_raw_pid());
                }
            }
            if killed.len() == before {
                return Some(format!("{before} processes"));
            }
        }
    }

    fn undo(&mut self, now: Instant) {
        self.frozen.retain(|frozen| {
            let thaws = now >= frozen.until;
            if thaws {
                processes::signal(frozen.pid, Signal::CONT);
            }
            !thaws
        });
        let mut parts = self.world.parts();
        let parts = &mut *parts;
        for worker in &mut parts.workers {
            if worker.cut_until.is_some_and(|until| now >= until) {
                worker.cut_until = None;
                if let Some(link) = &worker.link {
                    link.heal();
                }
                self.world
                    .note(&format!("{} is connected again", worker.part.name));
            }
        }
        let all = std::iter::once(&mut parts.coordinator)
            .chain(parts.workers.iter_mut().map(|worker| &mut worker.part));
        for part in all {
            if part.frozen_until.is_some_and(|until| now >= until) {
                part.frozen_until = None;
                part.signal(Signal::CONT);
                self.world.note(&format!("{} is thawed", part.name));
            }
        }
    }

    fn undo_all(&mut self, now: Instant) {
        for frozen in &mut self.frozen {
            frozen.until = now;
        }
        let mut parts = self.world.parts();
        let parts = &mut *parts;
        for worker in &mut parts.workers {
            worker.cut_until = worker.cut_until.map(|_| now);
        }
        let all = std::iter::once(&mut parts.coordinator)
            .chain(parts.workers.iter_mut().map(|worker| &mut worker.part));
        for part in all {
            part.frozen_until = part.frozen_until.map(|_| now);
            part.down_until = part.down_until.map(|_| now);
        }
    }

    /// Notices ends, and starts what has to run.
    fn keep(&self, now: Instant) {
        let mut parts = self.world.parts();
        let parts = &mut *parts;
        let wanted = parts.coordinator_wanted;
        keep_part(self.world, &mut parts.coordinator, wanted, now);
        for worker in &mut parts.workers {
            keep_part(self.world, &mut worker.part, worker.wanted, now);
        }
    }
}

fn keep_part(world: &World, part: &mut Part, wanted: bool, now: Instant) {
    if let Some(process) = &mut part.process
        && !process.runs().unwrap_or(false)
    {
        let status = process.ended(Duration::from_secs(1));
        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        let surprise = match part.expected {
            Expected::Running => true,
            Expected::Ending => status != "exit status: 0",
            Expected::Killed => false,
        };
        let errors = process.errors();
        if surprise {
            let from = errors.len().saturating_sub(2_000);
            world.fail(format!(
                "ended: {} ended by itself or not as asked ({:?}): {status}\n{}",
                part.name,
                part.expected,
                errors.get(from..).unwrap_or_default()
            ));
        }
        world.note(&format!("{} has ended: {status}", part.name));
        if part.name == "coordinator" {
            let died = now_ms();
            world.known().deaths.push(Death { died, started: 0 });
        }
        part.process = None;
        part.frozen_until = None;
        part.expected = Expected::Running;
    }
    let due = part.down_until.is_none_or(|until| now >= until);
    if part.process.is_none() && wanted && due {
        part.down_until = None;
        match part.program.start(&world.cluster.logs(), &part.name) {
            Ok(process) => part.process = Some(process),
            Err(error) => world.fail(format!("{} cannot be started: {error:#}", part.name)),
        }
        world.note(&format!("{} is started", part.name));
        if part.name == "coordinator"
            && let Some(death) = world.known().deaths.last_mut()
        {
            death.started = now_ms();
        }
    }
}

/// Lists processes that run and are what they say they are.
fn born() -> Vec<Seen> {
    let all = processes::below();
    let pids = |is: fn(&Seen) -> bool| -> Vec<Pid> {
        let found = all.iter().filter(|seen| is(seen));
        found.map(|seen| seen.pid).collect()
    };
    let (guards, supervisors) = (pids(Seen::is_guard), pids(Seen::is_supervisor));
    // One below its like is a supervisor or an agent that has not become its program yet: hitting it
    // would be hitting an attempt that nobody could name.
    let is_unborn = |seen: &Seen| {
        let is_below = |pids: &[Pid]| seen.parent.is_some_and(|parent| pids.contains(&parent));
        seen.is_guard() && is_below(&guards) || seen.is_supervisor() && is_below(&supervisors)
    };
    let born = all
        .iter()
        .filter(|seen| seen.state != 'Z' && !is_unborn(seen));
    born.cloned().collect()
}

fn end(part: &mut Part, signal: Signal, until: Instant) -> Option<String> {
    if !part.is_up() {
        return None;
    }
    part.expected = if signal == Signal::KILL {
        Expected::Killed
    } else {
        Expected::Ending
    };
    part.down_until = Some(until);
    part.signal(signal);
    Some(part.name.clone())
}

fn freeze(part: &mut Part, until: Instant) -> Option<String> {
    if !part.is_up() {
        return None;
    }
    part.frozen_until = Some(until);
    part.signal(Signal::STOP);
    Some(part.name.clone())
}

fn pick_up(parts: &mut Parts, choice: u64) -> Option<&mut Part> {
    let mut up: Vec<&mut Part> = parts
        .workers
        .iter_mut()
        .map(|worker| &mut worker.part)
        .filter(|part| part.is_up())
        .collect();
    let index = usize::try_from(choice).ok()?.checked_rem(up.len())?;
    Some(up.swap_remove(index))
}
