//! A cluster that runs the allocations of a pool on its machines: it takes orders, starts and ends
//! jobs, and lists them, each with the faults that the scenario has for it.

use std::collections::BTreeMap;
use std::sync::Arc;

use coordinator_core::pool::{OrderName, Sighted, Sighting};
use coordinator_core::state::Link;
use coordinator_core::{AllocationId, Timestamp, limits};

use crate::carrier::Answer;
use crate::host::{Disk, Host};
use crate::scenario::{JobFate, JobKind, PoolPlan, WorkerPlan};
use crate::world::{Checked, Ev, World, tell};

/// How long the cluster remembers what has ended.
const REMEMBERED_MS: u64 = 60_000;

/// An order on its way to the cluster.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) first: u64,
    pub(crate) count: u32,
    pub(crate) exclude: Vec<Arc<str>>,
    /// Start of the coordinator and number of its call, if it will hear of it.
    pub(crate) answers: Option<(u64, u64)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Queued { due: u64 },
    Running { host: usize, node: u32 },
    Ended { at: u64 },
}

/// A job, which is one allocation, or the second one that came of its order.
#[derive(Debug)]
pub(crate) struct Job {
    external: Box<str>,
    first: u64,
    index: u32,
    fate: JobFate,
    phase: Phase,
    exclude: Vec<Arc<str>>,
    /// The list leaves it out meanwhile.
    hidden: (u64, u64),
    begun: u32,
    /// Its end was asked for.
    ending: bool,
}

impl Job {
    fn allocation(&self) -> u64 {
        self.first + u64::from(self.index)
    }

    fn lives(&self) -> bool {
        !matches!(self.phase, Phase::Ended { .. })
    }

    /// Tells whether a list that is made now has it.
    fn is_listed(&self, now: u64) -> bool {
        let remembered = match self.phase {
            Phase::Ended { at } => now < at + REMEMBERED_MS,
            Phase::Queued { .. } | Phase::Running { .. } => true,
        };
        let (from, to) = self.hidden;
        remembered && !(from..to).contains(&now)
    }
}

/// The cluster; it outlives every coordinator.
#[derive(Default)]
pub(crate) struct Cluster {
    jobs: BTreeMap<u64, Job>,
    /// Jobs that were ever made.
    made: u64,
    /// Machines that are off, by the worker they run, and until when.
    off: BTreeMap<u32, u64>,
    /// When machines died with a worker that was connected and took work, and the coordinator's start
    /// that had it.
    struck: BTreeMap<AllocationId, (Timestamp, u64)>,
}

/// Names a machine of the cluster.
pub(crate) fn node(worker: u32) -> Arc<str> {
    format!("n{worker}").into()
}

impl World<'_> {
    pub(crate) fn pool(&self) -> Option<&PoolPlan> {
        self.scenario.pool.as_ref()
    }

    /// An order comes to the cluster.
    pub(crate) fn order_arrives(&mut self, order: &Arrival) -> Checked {
        let now = self.now;
        let again = self.cluster.jobs.values();
        // What the list left out may well be taken for lost.
        let mut again = again.filter(|job| {
            let forgotten = matches!(job.fate.kind, JobKind::Forgotten { .. });
            job.first == order.first && job.is_listed(now) && !forgotten
        });
        let again = again.next().map(|job| job.external.clone());
        self.ensure(again.is_none(), "an order is placed once", || {
            format!("order {} is placed again beside {again:?}", order.first)
        })?;
        let next = self.store.shadow.next_allocation().0;
        self.ensure(order.first < next, "persist, then speak", || {
            format!(
                "order {} is placed, the journal has none of it",
                order.first
            )
        })?;
        let mut externals = vec![];
        for index in 0..order.count {
            let fate = self.job_fate();
            let twice = fate.kind == JobKind::Twice;
            for copy in 0..=u32::from(twice) {
                self.cluster.made += 1;
                let job = self.cluster.made;
                let external: Box<str> = format!("j{job}").into();
                tell!(
                    self,
                    "the cluster has A{} as {external}: {:?}",
                    order.first + u64::from(index),
                    fate.kind
                );
                if copy == 0 {
                    externals.push((index, external.clone()));
                }
                let due = now + fate.starts_ms;
                let hidden = match fate.kind {
                    JobKind::Forgotten { after_ms, for_ms } => {
                        (now + after_ms, now + after_ms + for_ms)
                    }
                    _ => (0, 0),
                };
                self.cluster.jobs.insert(
                    job,
                    Job {
                        external,
                        first: order.first,
                        index,
                        fate,
                        phase: Phase::Queued { due },
                        exclude: order.exclude.clone(),
                        hidden,
                        begun: 0,
                        ending: false,
                    },
                );
                self.push(due, Ev::ClusterLooks);
            }
        }
        if let Some((start, nth)) = order.answers {
            let at = now + 1 + self.roll(60, start, nth) % 500;
            let answer = Answer::Ordered(order.first, externals);
            self.push(at, Ev::Called(start, nth, Box::new(answer)));
        }
        Ok(())
    }

    fn job_fate(&self) -> JobFate {
        let usual = JobFate {
            starts_ms: 500,
            ends_ms: 200,
            kind: JobKind::Good,
        };
        if self.calm {
            return usual;
        }
        let nth = usize::try_from(self.cluster.made).unwrap_or(usize::MAX);
        let fates = self.pool().map_or(&[][..], |pool| &pool.jobs);
        fates.get(nth).copied().unwrap_or(usual)
    }

    /// Starts jobs whose time has come on machines that are free.
    pub(crate) fn cluster_looks(&mut self) {
        let now = self.now;
        let calm = self.calm;
        let waiting = self.cluster.jobs.iter().filter(|(_, job)| {
            let stuck = job.fate.kind == JobKind::NeverStarts && !calm;
            matches!(job.phase, Phase::Queued { due } if due <= now) && !stuck
        });
        let waiting: Vec<u64> = waiting.map(|(nth, _)| *nth).collect();
        for nth in waiting {
            if let Some(node) = self.free_node(nth) {
                self.begin_job(nth, &node);
            }
        }
    }

    /// Finds a machine on which no job runs and no old copy of one.
    fn free_node(&self, nth: u64) -> Option<WorkerPlan> {
        let job = self.cluster.jobs.get(&nth)?;
        let nodes = self.scenario.workers.iter().filter(|plan| plan.pooled);
        let free = nodes.filter(|plan| {
            let off = self.cluster.off.get(&plan.id).copied().unwrap_or(0);
            let runs = self
                .cluster
                .jobs
                .values()
                .any(|job| matches!(job.phase, Phase::Running { node, .. } if node == plan.id));
            let copy = self.hosts.iter();
            let mut copy = copy.filter(|host| host.plan.id == plan.id && host.runs());
            !runs
                && off <= self.now
                && copy.next().is_none()
                && !job.exclude.contains(&node(plan.id))
        });
        let free: Vec<&WorkerPlan> = free.collect();
        let roll = self.roll(61, nth, u64::from(job.begun));
        let chosen = usize::try_from(roll % (free.len() as u64).max(1)).ok()?;
        free.get(chosen).map(|plan| (*plan).clone())
    }

    fn begin_job(&mut self, nth: u64, plan: &WorkerPlan) {
        let now = self.now;
        let Some(job) = self.cluster.jobs.get_mut(&nth) else {
            return;
        };
        let allocation = job.allocation();
        let mut fresh = Host::new(plan);
        fresh.join(AllocationId(allocation), nth);
        let known = self.hosts.iter().position(|host| host.id == fresh.id);
        let host = known.unwrap_or(self.hosts.len());
        if known.is_none() {
            self.hosts.push(fresh);
        }
        let Some(machine) = self.hosts.get_mut(host) else {
            return;
        };
        machine.join(AllocationId(allocation), nth);
        machine.booted = now;
        machine.thawed_at = 0;
        machine.cut_until = 0;
        machine.disk_full_until = 0;
        let life = machine.life;
        job.phase = Phase::Running {
            host,
            node: plan.id,
        };
        let begun = job.begun;
        job.begun += 1;
        let (kind, external) = (job.fate.kind, job.external.clone());
        tell!(self, "{external} begins on {}", node(plan.id));
        self.moment(crate::scenario::Moment::JobBegan);
        if kind != JobKind::NeverJoins {
            let boots = 50 + self.roll(62, nth, u64::from(begun)) % 2_000;
            self.push(now + boots, Ev::StartWorker(host, life));
        }
        if begun == 0
            && let JobKind::DiesYoung { after_ms } | JobKind::Requeued { after_ms, .. } = kind
        {
            self.push(now + after_ms, Ev::JobStrikes(nth));
        }
    }

    /// A job dies, or is started again though its first copy still runs.
    pub(crate) fn job_strikes(&mut self, nth: u64) {
        let Some(job) = self.cluster.jobs.get_mut(&nth) else {
            return;
        };
        let Phase::Running { host, .. } = job.phase else {
            return;
        };
        if self.calm {
            return;
        }
        let JobKind::Requeued { overlap_ms, .. } = job.fate.kind else {
            let allocation = AllocationId(job.allocation());
            self.note_struck(allocation, host);
            self.job_ends(nth, true);
            return;
        };
        let due = self.now + job.fate.starts_ms;
        job.phase = Phase::Queued { due };
        tell!(self, "{} goes back into the queue", job.external);
        self.push(due, Ev::ClusterLooks);
        if let Some(copy) = self.hosts.get_mut(host).filter(|_| overlap_ms > 0) {
            copy.cut_until = self.now + overlap_ms;
            let life = copy.life;
            self.push(self.now + overlap_ms, Ev::CopyEnds(host, life));
            self.push(self.now + crate::net::DEAD_MS, Ev::LookForDead(host));
        } else {
            self.machine_over(host, true);
        }
    }

    fn note_struck(&mut self, allocation: AllocationId, host: usize) {
        let worker = self.worker_id(host);
        let known = self.coordinator.state.worker(&worker);
        let works = known.is_some_and(|known| {
            let up = matches!(
                known.link,
                Link::Up {
                    draining: false,
                    ..
                }
            );
            up && known.offer.allocation == Some(allocation)
        });
        if works && self.coordinator.up {
            let struck = (self.timestamp(), self.coordinator.start);
            self.cluster.struck.insert(allocation, struck);
        }
    }

    /// Tells whether an allocation died soon after its worker had joined and before any work of it went
    /// well, as far as the coordinator of today can know.
    pub(crate) fn died_young(&self, id: AllocationId) -> bool {
        let state = &self.store.shadow;
        let Some(held) = state.allocation(id).filter(|held| !held.proven) else {
            return false;
        };
        let mut workers = state.workers_of(id);
        let drained = workers.any(|worker| worker.draining);
        let (Some((at, start)), Some(since)) = (self.cluster.struck.get(&id), held.joined_at)
        else {
            return false;
        };
        !drained && *start == self.coordinator.start && at.since(since) < limits::YOUNG
    }

    /// The old copy of a job that was started again elsewhere ends.
    pub(crate) fn copy_ends(&mut self, host: usize, life: u64) {
        let copy = self.hosts.get(host);
        if copy.is_some_and(|copy| copy.life == life && copy.cut_until > 0) {
            self.machine_over(host, true);
            self.cluster_looks();
        }
    }

    /// Nothing of a job runs any more.
    pub(crate) fn job_ends(&mut self, nth: u64, silently: bool) {
        let now = self.now;
        let Some(job) = self.cluster.jobs.get_mut(&nth).filter(|job| job.lives()) else {
            return;
        };
        let was = std::mem::replace(&mut job.phase, Phase::Ended { at: now });
        tell!(self, "{} ends", job.external);
        if let Phase::Running { host, .. } = was {
            self.machine_over(host, silently);
        }
        self.cluster_looks();
    }

    /// All processes of a job on a machine are gone, and what they had written there.
    fn machine_over(&mut self, host: usize, silently: bool) {
        let now = self.now;
        let Some(known) = self.hosts.get_mut(host) else {
            return;
        };
        let conn = known.process.as_ref().and_then(|process| process.conn);
        let leases: Vec<u64> = known.supervisors.keys().copied().collect();
        for lease in leases {
            known.stop_edits(lease, now);
        }
        known.supervisors.clear();
        known.process = None;
        known.freeze = None;
        known.waiting.clear();
        known.cut_until = 0;
        known.life += 1;
        known.lost.extend(known.disk.folders.keys().copied());
        known.disk = Disk {
            next_report: 1,
            incarnation: known.disk.incarnation,
            ..Disk::default()
        };
        if let Some(conn) = conn {
            self.close_conn(conn, true, silently);
        }
        self.push(now + crate::net::DEAD_MS, Ev::LookForDead(host));
    }

    /// The worker's process of a job has ended, and the job with it.
    pub(crate) fn pooled_process_over(&mut self, host: usize, silently: bool) {
        let Some(nth) = self.hosts.get(host).and_then(|host| host.job) else {
            return;
        };
        let job = self.cluster.jobs.get(&nth);
        if job.is_some_and(|job| matches!(job.phase, Phase::Running { host: at, .. } if at == host))
        {
            self.job_ends(nth, silently);
        } else if self.hosts.get(host).is_some_and(Host::runs) {
            self.machine_over(host, silently);
        }
    }

    /// A machine of the cluster loses its power for a while.
    pub(crate) fn node_off(&mut self, host: usize, down_ms: u64) {
        let Some(known) = self.hosts.get(host) else {
            return;
        };
        let back = self.now + down_ms;
        self.cluster.off.insert(known.plan.id, back);
        self.pooled_process_over(host, true);
        self.push(back, Ev::ClusterLooks);
    }

    /// The end of jobs is asked for.
    pub(crate) fn end_arrives(&mut self, externals: &[Box<str>]) {
        let asked = self.cluster.jobs.iter();
        let asked = asked.filter(|(_, job)| externals.contains(&job.external) && job.lives());
        let asked: Vec<(u64, u64)> = asked.map(|(nth, job)| (*nth, job.fate.ends_ms)).collect();
        for (nth, ends_ms) in asked {
            if let Some(job) = self.cluster.jobs.get_mut(&nth) {
                job.ending = true;
            }
            let ends_ms = if self.calm { 0 } else { ends_ms };
            self.push(self.now + ends_ms, Ev::JobEnds(nth));
        }
    }

    /// What the cluster lists now.
    pub(crate) fn list(&self) -> Vec<Sighting> {
        let jobs = self.cluster.jobs.values();
        let listed = jobs.filter(|job| job.is_listed(self.now));
        let sightings = listed.map(|job| Sighting {
            external: job.external.clone(),
            name: OrderName {
                home: "home".into(),
                pool: crate::carrier::POOL.into(),
                first: AllocationId(job.first),
            },
            index: job.index,
            state: match job.phase {
                Phase::Queued { .. } | Phase::Running { .. } if self.is_unsure(job) => {
                    Sighted::Unknown
                }
                Phase::Running { .. } if job.ending => Sighted::Ending,
                // Of every other one that never starts it says so.
                Phase::Queued { .. }
                    if job.fate.kind == JobKind::NeverStarts && job.allocation() % 2 == 0 =>
                {
                    Sighted::Held {
                        reason: "held".into(),
                    }
                }
                Phase::Queued { .. } => Sighted::Queued,
                Phase::Running { node: on, .. } => Sighted::Running {
                    host: (*node(on)).into(),
                },
                Phase::Ended { .. } => Sighted::Ended {
                    detail: "it has ended".into(),
                },
            },
        });
        sightings.collect()
    }

    /// Tells whether the cluster does not know now how it goes with a job.
    fn is_unsure(&self, job: &Job) -> bool {
        let roll = self.roll(67, job.allocation(), self.now);
        !self.calm && roll.is_multiple_of(12)
    }

    /// Faults of the cluster stop.
    pub(crate) fn calm_cluster(&mut self) {
        for job in self.cluster.jobs.values_mut() {
            job.hidden = (0, 0);
        }
        self.cluster.off.clear();
        let copies = self.hosts.iter().enumerate();
        let copies = copies.filter(|(_, host)| host.cut_until > 0);
        let copies: Vec<usize> = copies.map(|(nth, _)| nth).collect();
        for host in copies {
            self.machine_over(host, true);
        }
        self.cluster_looks();
    }

    /// Gives the jobs that there are.
    pub(crate) fn live_jobs(&self) -> impl Iterator<Item = &str> {
        let jobs = self.cluster.jobs.values().filter(|job| job.lives());
        jobs.map(|job| &*job.external)
    }

    /// Tells how many live jobs were made for an allocation.
    pub(crate) fn copies(&self, allocation: u64) -> usize {
        let jobs = self.cluster.jobs.values();
        let of = jobs.filter(|job| job.allocation() == allocation && job.lives());
        of.count()
    }

    /// Gives the allocation of a job.
    pub(crate) fn allocation_of(&self, external: &str) -> Option<u64> {
        let jobs = self.cluster.jobs.values();
        let mut jobs = jobs.filter(|job| *job.external == *external);
        jobs.next().map(Job::allocation)
    }

    /// Tells whether a job lives and was never left out of a list.
    pub(crate) fn surely_lives(&self, external: &str) -> bool {
        let mut jobs = self.cluster.jobs.values();
        jobs.any(|job| {
            let forgotten = matches!(job.fate.kind, JobKind::Forgotten { .. });
            *job.external == *external && job.lives() && !forgotten
        })
    }
}
