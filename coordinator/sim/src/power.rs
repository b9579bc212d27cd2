//! What befalls a worker's machine: stops, sleep, the end of its process, the loss of its power.

use std::collections::BTreeMap;

use worker_agent::session::machine::Machine;

use crate::host::{Disk, Freeze, Host, Offered, Process};
use crate::lease::Runner;
use crate::liar::Liar;
use crate::scenario::What;
use crate::world::{Checked, Ev, ProcessTimer, WALL_MS, World, tell};

impl World<'_> {
    /// Puts off what happens to a process that does not move; gives back what happens now.
    pub(crate) fn unless_frozen(&mut self, host: usize, ev: Ev) -> Option<Ev> {
        let supervisor = matches!(ev, Ev::Supervisor(..));
        let known = self.hosts.get_mut(host)?;
        match &known.freeze {
            Some(freeze) if freeze.whole || !supervisor => {
                known.waiting.push(ev);
                None
            }
            _ => Some(ev),
        }
    }

    pub(crate) fn trouble_at_worker(&mut self, host: usize, what: What) -> Checked {
        let pooled = self.hosts.get(host).is_some_and(|host| host.plan.pooled);
        if pooled && self.scenario.pool.is_some() {
            let runs = self.hosts.get(host).is_some_and(Host::runs);
            match what {
                What::HostReboot { down_ms, .. } => {
                    self.node_off(host, down_ms);
                    return Ok(());
                }
                // The job ends with its process, and the next one brings what the pool has.
                What::Offers { .. } => return Ok(()),
                _ if !runs => return Ok(()),
                _ => {}
            }
        }
        match what {
            What::WorkerKilled { down_ms, .. } => {
                self.kill(host, down_ms, false);
                Ok(())
            }
            What::SupervisorKilled {
                nth,
                detached,
                ends_ms,
                ..
            } => {
                self.kill_supervisor(host, nth, detached, ends_ms);
                Ok(())
            }
            What::HostReboot {
                down_ms, disk_lost, ..
            } => {
                self.power_off(host, down_ms, disk_lost);
                Ok(())
            }
            What::Frozen { for_ms, whole, .. } => {
                self.freeze(host, for_ms, whole);
                Ok(())
            }
            What::Suspended { for_ms, .. } => {
                self.freeze(host, for_ms, true);
                Ok(())
            }
            What::Broken { .. } => {
                if let Some(conn) = self
                    .hosts
                    .get(host)
                    .and_then(|host| host.process.as_ref()?.conn)
                {
                    self.break_conn(conn);
                }
                Ok(())
            }
            What::WorkerDiskFull { for_ms, .. } => {
                let until = self.now + for_ms;
                self.hosts.iter_mut().skip(host).take(1).for_each(|host| {
                    host.disk_full_until = until;
                });
                Ok(())
            }
            What::Offers {
                slots, all_agents, ..
            } => {
                if let Some(host) = self.hosts.get_mut(host) {
                    host.offered = Offered::of(&host.plan);
                    host.reoffered = true;
                    host.offered.slots = slots;
                    if !all_agents {
                        host.offered.agents.truncate(1);
                        host.offered.labels.clear();
                        host.offered.cpus /= 2;
                    }
                }
                Ok(())
            }
            What::WorkerDrains { down_ms, .. } => self.wish(host, false, down_ms),
            What::WorkerLeaves { down_ms, .. } => self.wish(host, true, down_ms),
            _ => Ok(()),
        }
    }

    /// What a fault left on a machine is put in order.
    pub(crate) fn calm_host(&mut self, host: usize) -> Checked {
        let Some(known) = self.hosts.get_mut(host) else {
            return Ok(());
        };
        known.disk_full_until = 0;
        // What its process has said may be older than what it would say now.
        let changed = known.reoffered;
        known.offered = Offered::of(&known.plan);
        if let Some(freeze) = &known.freeze {
            let nth = freeze.nth;
            self.thaw(host, nth)?;
        }
        let honest = self.hosts.get(host).is_some_and(Host::is_honest);
        if !honest {
            self.kill(host, 0, true);
        } else if changed {
            self.kill(host, 100, false);
        }
        Ok(())
    }

    pub(crate) fn freeze(&mut self, host: usize, for_ms: u64, whole: bool) {
        let until = self.now + for_ms;
        let Some(known) = self.hosts.get_mut(host) else {
            return;
        };
        if known.freeze.is_some() {
            return;
        }
        known.freezes += 1;
        let nth = known.freezes;
        known.freeze = Some(Freeze { nth, whole });
        self.push(until, Ev::Thaw(host, nth));
        self.push(self.now + crate::net::DEAD_MS, Ev::LookForDead(host));
    }

    pub(crate) fn thaw(&mut self, host: usize, nth: u64) -> Checked {
        let Some(known) = self.hosts.get_mut(host) else {
            return Ok(());
        };
        if known.freeze.as_ref().is_none_or(|freeze| freeze.nth != nth) {
            return Ok(());
        }
        tell!(self, "w{} goes on", known.plan.id);
        known.freeze = None;
        known.thawed_at = self.now;
        let waiting = std::mem::take(&mut known.waiting);
        let awake = known.supervisors.iter();
        let awake = awake.filter(|(_, supervisor)| {
            !known.overslept(supervisor, self.now) && !known.is_out_of_reach(supervisor)
        });
        let awake: Vec<u64> = awake.map(|(lease, _)| *lease).collect();
        for ev in waiting {
            self.push(self.now, ev);
        }
        for lease in awake {
            self.check_alone(host, lease)?;
        }
        Ok(())
    }

    /// The process is no more; supervisors see the end of their pipe.
    pub(crate) fn kill(&mut self, host: usize, down_ms: u64, for_good: bool) {
        let Some(known) = self.hosts.get_mut(host) else {
            return;
        };
        if !known.runs() {
            if for_good {
                known.life += 1;
            }
            return;
        }
        tell!(self, "the process of w{} ends", known.plan.id);
        if known.job.is_some() {
            return self.pooled_process_over(host, false);
        }
        let conn = known.process.as_ref().and_then(|process| process.conn);
        let conn = conn.or(known.liar.as_ref().and_then(|liar| liar.conn));
        known.process = None;
        known.liar = None;
        known.life += 1;
        let life = known.life;
        if let Some(freeze) = &known.freeze
            && !freeze.whole
        {
            // The next process is not stopped.
            known.freeze = None;
            known.waiting.clear();
        }
        if let Some(conn) = conn {
            self.close_conn(conn, true, false);
        }
        self.end_supervisors(host);
        if !for_good {
            self.push(self.now + down_ms.max(1), Ev::StartWorker(host, life));
        }
    }

    /// The machine loses its power.
    pub(crate) fn power_off(&mut self, host: usize, down_ms: u64, disk_lost: bool) {
        let Some(known) = self.hosts.get_mut(host) else {
            return;
        };
        let conn = known.process.as_ref().and_then(|process| process.conn);
        let conn = conn.or(known.liar.as_ref().and_then(|liar| liar.conn));
        let now = self.now;
        let leases: Vec<u64> = known.supervisors.keys().copied().collect();
        for lease in leases {
            known.stop_edits(lease, now);
        }
        known.supervisors.clear();
        known.process = None;
        known.liar = None;
        known.freeze = None;
        known.waiting.clear();
        known.life += 1;
        known.booted = now + down_ms.max(1);
        if disk_lost {
            known.lost.extend(known.disk.folders.keys().copied());
            known.disk = Disk {
                next_report: 1,
                ..Disk::default()
            };
        }
        let life = known.life;
        tell!(
            self,
            "the machine of w{} is off",
            self.hosts.get(host).map_or(0, |h| h.plan.id)
        );
        if let Some(conn) = conn {
            self.close_conn(conn, true, true);
        }
        self.push(now + crate::net::DEAD_MS, Ev::LookForDead(host));
        self.push(now + down_ms.max(1), Ev::StartWorker(host, life));
    }

    pub(crate) fn start_worker(&mut self, host: usize, life: u64) -> Checked {
        let wall = WALL_MS + self.now;
        let Some(known) = self.hosts.get_mut(host) else {
            return Ok(());
        };
        if known.life != life || known.runs() {
            return Ok(());
        }
        if known.stands_still() {
            known.waiting.push(Ev::StartWorker(host, life));
            return Ok(());
        }
        let incarnation = known.disk.incarnation.saturating_add(1).max(wall);
        known.disk.incarnation = incarnation;
        tell!(self, "w{} starts", known.plan.id);
        if !known.is_honest() {
            known.liar = Some(Liar::new(incarnation));
            self.push(self.now + 1, Ev::Lie(host, life));
            return Ok(());
        }
        let mut machine = Machine::new(known.offered.slots, known.disk.next_report);
        for report in known.disk.outbox.values() {
            machine.restore_report(report.clone());
        }
        known.process = Some(Process {
            machine,
            incarnation,
            conn: None,
            is_up: false,
            heard_at: self.now,
            pauses: 0,
            hellos: 0,
            slots: known.offered.slots,
            runners: BTreeMap::new(),
            unstored: vec![],
            stores_again: false,
            wake_at: u64::MAX,
            leave_at: None,
            ready: false,
            down_ms: 0,
        });
        self.push(self.now, Ev::Process(host, life, ProcessTimer::Ready));
        Ok(())
    }

    /// Says hello only when nothing of an earlier start runs any more.
    pub(crate) fn make_ready(&mut self, host: usize, life: u64) -> Checked {
        let now = self.now;
        let Some(known) = self.hosts.get_mut(host) else {
            return Ok(());
        };
        if !known.supervisors.is_empty() {
            let left: Vec<u64> = known.supervisors.keys().copied().collect();
            for lease in left {
                self.sweep(host, lease);
            }
            self.push(now + 200, Ev::Process(host, life, ProcessTimer::Ready));
            return Ok(());
        }
        let Some(process) = &mut known.process else {
            return Ok(());
        };
        process.ready = true;
        for (lease, folder) in &known.disk.folders {
            process.machine.restore_lease(*lease, folder.last);
            process
                .runners
                .insert(*lease, Runner::leftover(folder, now));
        }
        let leases: Vec<u64> = known.disk.folders.keys().copied().collect();
        for lease in leases {
            self.settle_leftover(host, lease)?;
        }
        self.push(now, Ev::Process(host, life, ProcessTimer::Connect));
        Ok(())
    }
}
