//! A worker that lies: it says what it likes with a token that lets it join.

use std::sync::Arc;

use coordinator_core::command::{Heartbeat, Hello, Report};
use coordinator_core::event::{Outcome, Usage};
use coordinator_core::{Command, CommitId, Failure, FailureClass, Incarnation, LeaseId, WorkerId};
use muster_proto::v1;

use crate::coordinator::{Down, Up};
use crate::facts::Facts;
use crate::random::fate;
use crate::remote::{Credential, GitRequest, GitWhat, Ref};
use crate::wire::asking;
use crate::world::{Checked, Ev, World};

/// What a liar knows.
pub(crate) struct Liar {
    pub(crate) conn: Option<usize>,
    incarnation: u64,
    welcome: bool,
    seq: u64,
    granted: Vec<Facts>,
    lies: u64,
}

impl Liar {
    pub(crate) fn new(incarnation: u64) -> Self {
        Self {
            conn: None,
            incarnation,
            welcome: false,
            seq: 0,
            granted: vec![],
            lies: 0,
        }
    }
}

impl World<'_> {
    /// A liar takes its turn.
    pub(crate) fn lie(&mut self, host: usize, life: u64) -> Checked {
        let interval = self.scenario.clocks.heartbeat_ms;
        let newest = self.coordinator.told_lease;
        let seed = self.scenario.seed;
        let Some(known) = self.hosts.get_mut(host).filter(|host| host.life == life) else {
            return Ok(());
        };
        let id = u64::from(known.plan.id);
        let (share, worker) = (known.plan.lies_per_mille, known.id.clone());
        let mut offered = known.offered.clone();
        let Some(liar) = &mut known.liar else {
            return Ok(());
        };
        liar.lies += 1;
        let nth = liar.lies;
        let roll = |which: u64| fate(seed, 200 + which, id, nth);
        self.push(self.now + interval / 2, Ev::Lie(host, life));
        let Some(liar) = self.liar(host) else {
            return Ok(());
        };
        let lies = roll(0) % 1000 < share;
        // Any lease there is or was, its own more often.
        let own = liar.granted.len() as u64;
        let any = |which: u64| match roll(which) % 3 {
            0 if own > 0 => None,
            _ => Some(1 + roll(which + 1) % (newest + 3)),
        };
        let pick = |liar: &Liar, which: u64| {
            let own = usize::try_from(roll(which + 2) % own.max(1)).unwrap_or(0);
            any(which)
                .or_else(|| liar.granted.get(own).map(|facts| facts.lease))
                .unwrap_or(1)
        };
        let mut held: Vec<u64> = liar.granted.iter().map(|facts| facts.lease).collect();
        if lies && roll(1) % 2 == 0 {
            held.push(pick(liar, 10));
            held.retain(|lease| (lease + nth) % 3 > 0);
        }
        let lease = pick(liar, 20);
        let Some(conn) = liar.conn else {
            // It may claim to have been started again, or be late with a hello of an earlier start.
            let claim = if lies { roll(30) % 4 } else { 3 };
            liar.incarnation += u64::from(claim < 2);
            let incarnation = liar.incarnation.saturating_sub(u64::from(claim == 2));
            if lies {
                offered.slots *= 7;
                offered.cpus *= 7;
            }
            let hello = Hello {
                worker,
                incarnation: Incarnation(incarnation),
                session: 0,
                number: 0,
                offer: Arc::new(crate::plan::offer(&offered)),
                held: held.into_iter().map(LeaseId).collect(),
                draining: false,
                time_left: None,
            };
            liar.welcome = false;
            liar.seq = 0;
            let conn = self.open_conn(host, life, incarnation);
            if let Some(liar) = self.liar(host) {
                liar.conn = Some(conn);
            }
            self.say_up(conn, Up::Hello(hello));
            return Ok(());
        };
        if !liar.welcome {
            return Ok(());
        }
        liar.seq += 1 + if lies { roll(31) % 3 } else { 0 };
        let beat = v1::Heartbeat {
            seq: liar.seq,
            held_leases: held,
            free_slots: if lies { 9 } else { offered.slots },
            ..v1::Heartbeat::default()
        };
        self.say_up(conn, Up::Heartbeat(beat));
        if !lies {
            return Ok(());
        }
        self.counts.lies += 1;
        if roll(40) % 4 == 0 {
            self.lie_to_git(host, lease, roll(41));
        }
        if let Some(lie) = self.lie_of(host, &worker, lease, roll(50)) {
            self.say_up(conn, Up::Lie(lie));
        }
        let often = if share == 1_000 { 4 } else { 12 };
        if roll(60) % often == 0 {
            self.close_conn(conn, true, false);
            if let Some(liar) = self.liar(host) {
                liar.conn = None;
            }
        }
        Ok(())
    }

    fn liar(&mut self, host: usize) -> Option<&mut Liar> {
        self.hosts.get_mut(host)?.liar.as_mut()
    }

    fn lie_of(&self, host: usize, worker: &WorkerId, lease: u64, roll: u64) -> Option<Command> {
        let failed = |class| Report::Failed {
            failure: Failure::new(class, "so it says"),
            usage: Usage::default(),
        };
        let report = match roll % 16 {
            // Its stream names it, so it can speak for no other; what it says of itself may be wrong.
            0 => {
                return Some(Command::Heartbeat(Heartbeat {
                    worker: worker.clone(),
                    incarnation: Incarnation(roll >> 32),
                    session: (roll >> 8) % 10,
                    seq: (roll >> 16) % 100,
                    held: vec![LeaseId(lease)],
                    free_slots: 4,
                    draining: false,
                    time_left: None,
                    looked: None,
                }));
            }
            1 | 12 | 13 => Report::Started,
            2 | 3 => Report::Succeeded {
                outcome: Outcome::NoChange,
                usage: Usage::default(),
                summary: "done".into(),
            },
            4 => Report::Succeeded {
                outcome: Outcome::NoRepository,
                usage: Usage::default(),
                summary: "done".into(),
            },
            5 => {
                // Only what it has published itself gets past the edge.
                let worker = self.worker_id(host);
                let published = self.published(&worker, LeaseId(lease))?;
                Report::Succeeded {
                    outcome: Outcome::Commit(published?.clone()),
                    usage: Usage::default(),
                    summary: "done".into(),
                }
            }
            6 => Report::VerifyPassed,
            7 => failed(FailureClass::ALL[usize::try_from((roll >> 8) % 31).unwrap_or(0)]),
            8 => Report::GivenBack {
                failure: Failure::new(FailureClass::Preempted, "it leaves"),
            },
            9 => Report::Stopped,
            10 | 14 | 15 => match (roll >> 8) % 4 {
                0 | 1 => Report::Asked {
                    number: u32::try_from((roll >> 16) % 3).unwrap_or(0),
                    asking: Arc::new(asking("why?")),
                },
                2 => Report::QuestionClosed {
                    number: u32::try_from((roll >> 16) % 4).unwrap_or(0),
                    choice: "no".into(),
                    by: "policy".into(),
                    earlier: None,
                },
                _ => Report::ConversationOpened {
                    id: format!("c{}", (roll >> 16) % 3).into(),
                    software: "liar".into(),
                },
            },
            _ => failed(FailureClass::AgentFailed),
        };
        Some(Command::Report {
            worker: worker.clone(),
            lease: LeaseId(lease),
            report,
        })
    }

    fn lie_to_git(&mut self, host: usize, lease: u64, roll: u64) {
        let process = self.hosts.get(host).map_or(0, |host| host.life);
        let liar = self.hosts.get(host).and_then(|host| host.liar.as_ref());
        let granted = liar.and_then(|liar| {
            // It has the credentials of its own leases only.
            let nth = usize::try_from(roll % (liar.granted.len() as u64).max(1)).unwrap_or(0);
            liar.granted.get(nth).cloned()
        });
        let Some(facts) = granted else {
            return;
        };
        let victim = self.reference.attempt_of(lease);
        let own = facts.attempt();
        let aim = if roll >> 8 & 1 == 0 { own } else { victim };
        let Some((task, n)) = aim else {
            return;
        };
        let name = match (roll >> 16) % 3 {
            0 => Ref::Wip(task, n),
            1 => Ref::Salvage(task, n),
            _ => Ref::Attempt(task, n),
        };
        self.git(GitRequest {
            host,
            process,
            lease: facts.lease,
            op: 0,
            credential: Credential::Lease(facts.lease),
            what: GitWhat::Push {
                name,
                commit: CommitId::new(&format!("lie{}", roll % 1000)),
            },
            start: 0,
            old: None,
        });
    }

    pub(crate) fn heard_by_liar(&mut self, host: usize, conn: usize, message: Down) {
        let Some(liar) = self.liar(host).filter(|liar| liar.conn == Some(conn)) else {
            return;
        };
        match message {
            Down::Welcome(_) => liar.welcome = true,
            Down::Grants(facts) => liar.granted.extend(facts),
            // It hears and goes on.
            Down::Renewal(_) | Down::ReportAcks(_) | Down::EventAck(_) | Down::Answer(_) => {}
            Down::Stop(leases) => {
                if liar.lies % 2 == 0 {
                    liar.granted.retain(|facts| !leases.contains(&facts.lease));
                }
            }
        }
    }
}
