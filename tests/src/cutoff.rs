//! Workers that are cut off, wake from sleep, or see the wall clock jump: when their agents end,
//! and when the coordinator gives the task away.
//!
//! Any number of cases is measured at once on one cluster. Each has a worker of its own behind a
//! fault proxy, and a task that only this worker takes, whose first attempt never ends by itself; a
//! spare worker that is started later takes the tasks that are given away.

mod agent;
mod report;
mod timeline;
mod wire;

use std::path::PathBuf;
use std::rc::Rc;
use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};

use crate::clocks::Clocks;
use crate::cluster::{Cluster, Options, Programs};
use crate::hosts::Hosts;
use crate::process::Process;
use crate::proxy::Proxy;
use crate::run::RunStatus;
use wire::Wire;

pub use report::Figures;

/// How far wall clocks jump.
pub const JUMP_SECONDS: i64 = 3_600;

/// How a worker loses touch with its coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Not at all.
    None,
    /// Nothing passes either way.
    BothWays,
    /// The worker is heard no more, but hears.
    Up,
    /// The worker hears nothing, but is heard.
    Down,
    /// The lid of its laptop is closed: its processes stand still, its monotonic clock too, and
    /// nothing passes.
    Lid,
}

/// For how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Three eighths of the lease's TTL.
    Shorter,
    /// Until the task has been given away.
    Longer,
}

/// One worker and what happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// What is lost.
    pub loss: Loss,
    /// For how long.
    pub length: Length,
    /// Meanwhile its wall clock is set an hour forward, and then an hour back behind the true time.
    pub wall_jumps: bool,
}

impl Case {
    /// A word for it that names files, labels and tasks.
    #[must_use]
    pub fn name(&self) -> String {
        let loss = match self.loss {
            Loss::None => "none",
            Loss::BothWays => "both-ways",
            Loss::Up => "up",
            Loss::Down => "down",
            Loss::Lid => "lid",
        };
        let length = match self.length {
            Length::Shorter => "shorter",
            Length::Longer => "longer",
        };
        let wall = if self.wall_jumps { "-wall" } else { "" };
        format!("{loss}-{length}{wall}")
    }
}

/// Between which places everything is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// On one host, with a fault proxy before the coordinator.
    Proxies,
    /// Each worker on a host of its own, whose packets are dropped; [`crate::hosts::missing_filter`]
    /// says whether this can be had. Wall clocks do not jump there.
    Hosts,
}

/// What happens to the coordinator meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coordinator {
    /// Nothing.
    Undisturbed,
    /// Its wall clock is set an hour forward, and then an hour back behind the true time.
    WallJumps,
    /// Its host sleeps: for three eighths of the TTL, or for the TTL and the grace.
    Lid(Length),
}

struct Subject {
    case: Case,
    wire: Wire,
    worker: Process,
    /// Everything of the worker lies below it.
    folder: PathBuf,
    clocks: Option<Clocks>,
    agent: agent::Agent,
}

impl Subject {
    /// Tells whether it is made to reconnect while a clock is wrong.
    fn reconnects(&self, coordinator: Coordinator) -> bool {
        self.case.length == Length::Shorter
            && (self.case.wall_jumps || coordinator == Coordinator::WallJumps)
    }

    /// Sessions that the worker had so far.
    fn sessions(&self) -> usize {
        let said = self.worker.errors();
        said.lines()
            .filter(|line| line.contains("session begins"))
            .count()
    }
}

/// Measures cases on a cluster of their own, insists on what was promised, and gives the figures.
///
/// Shims are compiled where a case needs one; ask [`crate::clocks::missing`] first.
///
/// # Errors
/// A promise is broken, with the figures and what all processes said last; or the cluster cannot
/// be had.
pub fn measure(
    programs: &Programs,
    terms: Options,
    network: Network,
    coordinator: Coordinator,
    cases: &[Case],
) -> Result<Vec<Figures>> {
    let mut cluster = Cluster::new(programs, Some(terms))?;
    let mut stories = Vec::new();
    measure_on(
        &mut cluster,
        terms,
        network,
        coordinator,
        cases,
        &mut stories,
    )
    .map_err(|error| {
        let stories = stories.join("");
        anyhow::anyhow!("{error:#}\n{stories}{}", cluster.story())
    })
}

fn measure_on(
    cluster: &mut Cluster,
    terms: Options,
    network: Network,
    coordinator: Coordinator,
    cases: &[Case],
    stories: &mut Vec<String>,
) -> Result<Vec<Figures>> {
    let source = cluster.programs().source.clone();
    let of_coordinator = match coordinator {
        Coordinator::Undisturbed => None,
        Coordinator::WallJumps | Coordinator::Lid(_) => {
            Some(Clocks::new(&source, cluster.folder(), "coordinator")?)
        }
    };
    if let Some(clocks) = &of_coordinator {
        cluster.coordinator_variables(clocks.variables());
    }
    let folder = cluster.folder().to_owned();
    let hosts = match network {
        Network::Proxies => None,
        Network::Hosts => {
            let workers = (1..=cases.len()).map(wire::host);
            let names: Vec<String> = std::iter::once(wire::HEAD.to_owned())
                .chain(workers)
                .collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let hosts = Hosts::new(&names, &folder)?;
            cluster.run_behind(hosts.wrapper(wire::HEAD, &[], &[])?);
            Some(Rc::new(hosts))
        }
    };
    cluster.serve()?;
    let mut subjects = Vec::new();
    for (index, case) in (1..).zip(cases) {
        let name = case.name();
        let (wire, address, wrapper) = match &hosts {
            None => {
                let proxy = Proxy::start(cluster.address().parse()?)?;
                let address = proxy.address().to_string();
                (Wire::Proxy(proxy), address, Vec::new())
            }
            Some(hosts) => (
                Wire::Host(Rc::clone(hosts), index),
                format!("{}:{}", Hosts::address(0), cluster.port()),
                hosts.wrapper(&wire::host(index), &[], &[])?,
            ),
        };
        let mut program = cluster
            .worker(&name, &address, 1)?
            .args(["--label".to_owned(), format!("for={name}")]);
        program.wrapper = wrapper;
        let mut clocks = None;
        if case.wall_jumps || case.loss == Loss::Lid {
            let of_worker = Clocks::new(&source, &folder, &name)?;
            program = of_worker.apply(program);
            clocks = Some(of_worker);
        }
        subjects.push(Subject {
            case: *case,
            folder: program.folder.clone(),
            worker: program.start(&cluster.logs(), &format!("worker-{name}"))?,
            wire,
            clocks,
            agent: agent::Agent::new(&folder, &name),
        });
    }
    let plan = plan(&subjects);
    let run = cluster.submit(&cluster.write_plan("cutoff.yaml", &plan)?)?;
    for subject in &mut subjects {
        subject.agent.wait_until_at_work()?;
    }
    let mut spare = cluster.worker("spare", &cluster.address(), u32::try_from(cases.len())?)?;
    for case in cases {
        spare = spare.args(["--label".to_owned(), format!("for={}", case.name())]);
    }
    if let Some(hosts) = &hosts {
        spare.wrapper = hosts.wrapper(wire::HEAD, &[], &[])?;
    }
    let _spare = cluster.start_described(&spare, "spare")?;

    let passed = timeline::pass(
        cluster,
        terms,
        coordinator,
        of_coordinator.as_ref(),
        &mut subjects,
    );
    stories.extend(
        subjects
            .iter()
            .map(|subject| format!("--- {}: {}", subject.case.name(), subject.wire.story())),
    );
    let begun = passed?;
    let status = cluster.ended(&run)?;
    ensure!(status.state() == "succeeded", "{}", status.json);
    let figures = subjects
        .iter()
        .map(|subject| figures(cluster, subject, coordinator, begun, &status))
        .collect::<Result<Vec<_>>>()?;
    for (figures, subject) in figures.iter().zip(&subjects) {
        figures
            .check(terms, subject.reconnects(coordinator))
            .with_context(|| format!("{}\n{figures}", subject.case.name()))?;
    }
    Ok(figures)
}

fn plan(subjects: &[Subject]) -> String {
    let mut plan = "name: cutoff\ndefaults: { timeout: 5m }\ntasks:\n".to_owned();
    for Subject { case, agent, .. } in subjects {
        let name = case.name();
        plan.push_str(&format!(
            "  - name: {name}\n    labels: ['for={name}']\n    env: {{ {}: '{}' }}\n    run: |\n{}",
            agent::MARK,
            agent.mark(),
            agent.script(),
        ));
    }
    plan
}

fn figures(
    cluster: &mut Cluster,
    subject: &Subject,
    coordinator: Coordinator,
    begun: SystemTime,
    status: &RunStatus,
) -> Result<Figures> {
    let name = subject.case.name();
    let attempts = status.attempts(&name)?;
    let next_grant = match attempts.get(1).map(|attempt| &attempt["granted_at"]) {
        None => None,
        Some(at) => {
            let at: jiff::Timestamp = at.as_str().context("a grant without its time")?.parse()?;
            Some(since(begun, at.into()))
        }
    };
    let reconnects = subject.reconnects(coordinator);
    let mut walls_seen = Vec::new();
    if subject.case.wall_jumps {
        let said = subject.worker.errors();
        walls_seen.push(report::saw_jumps(&said, begun, reconnects));
    }
    if coordinator == Coordinator::WallJumps {
        let said = cluster.coordinator()?.errors();
        walls_seen.push(report::saw_jumps(&said, begun, reconnects));
    }
    let asleep = subject.agent.slept_at.zip(subject.agent.woke_at);
    Ok(Figures {
        case: subject.case,
        coordinator,
        attempts: attempts.len(),
        starts: subject.agent.starts()?,
        sessions: subject.sessions(),
        connections: subject.wire.connections(),
        agent_end: subject.agent.ended_at().map(|at| since(begun, at)),
        last_sign: since(begun, subject.agent.last_sign()?),
        next_grant,
        asleep: asleep.map(|(slept, woke)| (since(begun, slept), since(begun, woke))),
        walls_seen,
    })
}

/// Seconds from `begun` to `at`; negative if it was before.
fn since(begun: SystemTime, at: SystemTime) -> f64 {
    match at.duration_since(begun) {
        Ok(after) => after.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    }
}
