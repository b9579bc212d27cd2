//! Supervisors and their agents: who ends, by itself or at a deadline, and who hears of it.

use worker_agent::clock::Boottime;

use crate::coordinator::Up;
use crate::host::Host;
use crate::lease::{Doing, LeaseTimer, TERM_GRACE_MS};
use crate::scenario::DeedEnd;
use crate::world::{Checked, Ev, World, tell};

/// The process that owns an agent's tree and deadline.
#[derive(Debug)]
pub(crate) struct Supervisor {
    pub(crate) deadline: Boottime,
    /// When the agent ends by itself.
    pub(crate) ends_at: Option<u64>,
    pub(crate) began: u64,
    pub(crate) speed: u64,
    pub(crate) edits: bool,
    /// When the tree is gone, once it is being ended.
    pub(crate) gone_at: Option<u64>,
    pub(crate) by_deadline: bool,
    /// It was killed, and this is what lives on.
    pub(crate) lost: Option<Lost>,
}

/// What a killed supervisor has left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lost {
    /// Something of the agent still runs, and nobody watches over it.
    pub(crate) detached: bool,
    /// How long that takes to end when it is killed.
    pub(crate) ends_ms: u64,
}

/// How the tree of a lease came to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Gone {
    ByItself,
    AtDeadline,
    /// Its supervisor ended it for another reason.
    Ended,
    /// Its supervisor was killed, and the worker has swept up.
    Lost,
}

/// How long a worker looks for what a killed supervisor has left, when nothing withstands it.
const SWEEP_MS: u64 = 40;

impl Host {
    /// Tells whether something runs on that nobody can end now: its supervisor was killed, and the
    /// worker does not move, has not come to it after its start, or has killed it in vain so far.
    pub(crate) fn is_out_of_reach(&self, supervisor: &Supervisor) -> bool {
        let unready = self.process.as_ref().is_none_or(|process| !process.ready);
        let helpless = unready || self.is_frozen() || supervisor.gone_at.is_some();
        supervisor.lost.is_some() && helpless
    }
}

impl World<'_> {
    /// A supervisor is killed, and its agent's own process dies with it; what that had detached goes
    /// on. The worker sees the end of the pipe when it next moves.
    pub(crate) fn kill_supervisor(&mut self, host: usize, nth: u32, detached: bool, ends_ms: u64) {
        let now = self.now;
        let Some(known) = self.hosts.get_mut(host) else {
            return;
        };
        let alive = known.supervisors.iter();
        let alive = alive.filter(|(_, supervisor)| supervisor.lost.is_none());
        let alive: Vec<u64> = alive.map(|(lease, _)| *lease).collect();
        let place = usize::try_from(nth).unwrap_or(0) % alive.len().max(1);
        let Some(lease) = alive.get(place).copied() else {
            return;
        };
        tell!(self, "the supervisor of {lease} on w{host} is killed");
        let life = known.life;
        if !detached {
            known.stop_edits(lease, now);
        }
        if let Some(supervisor) = known.supervisors.get_mut(&lease) {
            supervisor.lost = Some(Lost { detached, ends_ms });
            supervisor.edits &= detached;
            supervisor.ends_at = None;
            supervisor.gone_at = None;
        }
        self.push(now + 1, Ev::Lease(host, life, lease, LeaseTimer::Sweep));
    }

    /// The worker kills what a killed supervisor has left, until nothing is.
    pub(crate) fn sweep(&mut self, host: usize, lease: u64) {
        let known = self.hosts.get_mut(host);
        let Some(supervisor) = known.and_then(|known| known.supervisors.get_mut(&lease)) else {
            return;
        };
        let Some(lost) = supervisor.lost.filter(|_| supervisor.gone_at.is_none()) else {
            return;
        };
        let takes = if lost.detached { lost.ends_ms } else { 0 };
        let at = self.now + takes.max(SWEEP_MS);
        supervisor.gone_at = Some(at);
        self.push(at, Ev::Supervisor(host, lease));
    }

    /// A supervisor ends its tree: TERM, a grace, KILL.
    pub(crate) fn end_tree(&mut self, host: usize, lease: u64, by_deadline: bool) {
        let grace = TERM_GRACE_MS.min(self.scenario.clocks.ttl_ms / 12);
        let roll = self.roll(20, lease, 0);
        let takes = if roll.is_multiple_of(3) {
            1 + (roll >> 8) % grace
        } else {
            1 + (roll >> 8) % 20
        };
        let at = self.now + takes;
        let Some(known) = self.hosts.get_mut(host) else {
            return;
        };
        if let Some(supervisor) = known.supervisors.get_mut(&lease)
            && supervisor.gone_at.is_none()
            && supervisor.lost.is_none()
        {
            supervisor.gone_at = Some(at);
            supervisor.by_deadline = by_deadline;
            self.push(at, Ev::Supervisor(host, lease));
        }
    }

    /// The worker's process is gone: every supervisor ends its tree.
    pub(crate) fn end_supervisors(&mut self, host: usize) {
        let Some(known) = self.hosts.get(host) else {
            return;
        };
        let leases: Vec<u64> = known.supervisors.keys().copied().collect();
        for lease in leases {
            self.end_tree(host, lease, false);
            // A supervisor that waits for nothing looks at once.
            self.push(self.now + 1, Ev::Supervisor(host, lease));
        }
    }

    /// A supervisor looks at its clock.
    pub(crate) fn supervisor_timer(&mut self, host: usize, lease: u64) -> Checked {
        let now = self.now;
        let Some(known) = self.hosts.get_mut(host) else {
            return Ok(());
        };
        let boottime = known.boottime(now);
        let Some(supervisor) = known.supervisors.get(&lease) else {
            return Ok(());
        };
        if let Some(gone_at) = supervisor.gone_at {
            if now < gone_at {
                return Ok(());
            }
            let gone = match (supervisor.lost, supervisor.by_deadline) {
                (Some(_), _) => Gone::Lost,
                (None, true) => Gone::AtDeadline,
                (None, false) => Gone::Ended,
            };
            known.stop_edits(lease, now);
            known.supervisors.remove(&lease);
            tell!(self, "the agent of {lease} on w{host} is gone");
            return self.agent_gone(host, lease, gone);
        }
        if supervisor.lost.is_some() {
            return Ok(());
        }
        if boottime >= supervisor.deadline {
            tell!(
                self,
                "the supervisor of {lease} on w{host} ends it: its time is over"
            );
            self.end_tree(host, lease, true);
            return Ok(());
        }
        if supervisor.ends_at.is_some_and(|at| now >= at) {
            return self.agent_ends(host, lease);
        }
        let deadline = known.when(supervisor.deadline);
        let next = supervisor.ends_at.map_or(deadline, |at| at.min(deadline));
        self.push(next.max(now + 1), Ev::Supervisor(host, lease));
        Ok(())
    }

    /// The agent has come to its end, or to a question.
    pub(crate) fn agent_ends(&mut self, host: usize, lease: u64) -> Checked {
        let now = self.now;
        let asks = self
            .folder(host, lease)
            .and_then(|folder| folder.facts.deed);
        let asks = asks.is_some_and(|deed| deed.end == DeedEnd::Asks);
        let Some(known) = self.hosts.get_mut(host) else {
            return Ok(());
        };
        let alive = known.process.is_some();
        let answered = known
            .process
            .as_ref()
            .and_then(|process| process.runners.get(&lease))
            .is_some_and(|runner| runner.asks);
        if asks && !answered && alive {
            let deadline = known.supervisors.get_mut(&lease).map(|supervisor| {
                supervisor.ends_at = None;
                supervisor.deadline
            });
            if let Some(at) = deadline.map(|deadline| known.when(deadline)) {
                self.push(at.max(now + 1), Ev::Supervisor(host, lease));
            }
            if let Some(runner) = self.runner(host, lease) {
                runner.asks = true;
            }
            self.say_if_up(host, Up::Ask(lease));
            return Ok(());
        }
        known.stop_edits(lease, now);
        known.supervisors.remove(&lease);
        self.agent_gone(host, lease, Gone::ByItself)
    }

    /// Questions that have no answer are asked again in each session.
    pub(crate) fn ask_again_of(&mut self, host: usize) {
        let Some(process) = self.process(host) else {
            return;
        };
        let asking = process.runners.iter().filter(|(_, runner)| {
            runner.asks && runner.doing == Doing::Running && runner.stop.is_none()
        });
        let asking: Vec<u64> = asking.map(|(lease, _)| *lease).collect();
        for lease in asking {
            let waits = self.hosts.get(host).is_some_and(|host| {
                let supervisor = host.supervisors.get(&lease);
                supervisor.is_some_and(|supervisor| {
                    supervisor.ends_at.is_none() && supervisor.lost.is_none()
                })
            });
            if waits {
                self.say_if_up(host, Up::Ask(lease));
            }
        }
    }

    /// The answer to a question has come.
    pub(crate) fn got_answer(&mut self, host: usize, lease: u64) {
        let now = self.now;
        let asks = self.runner(host, lease).is_some_and(|runner| runner.asks);
        if !asks {
            return;
        }
        // Said again whenever the answer comes again: the first word may have been lost. Some say it
        // only then.
        let again = self.hosts.get(host).is_some_and(|host| {
            let supervisor = host.supervisors.get(&lease);
            supervisor.is_some_and(|supervisor| supervisor.ends_at.is_some())
        });
        if again || !lease.is_multiple_of(3) {
            self.say_if_up(host, Up::GotAnswer(lease));
        }
        if let Some(known) = self.hosts.get_mut(host)
            && let Some(supervisor) = known.supervisors.get_mut(&lease)
            && supervisor.ends_at.is_none()
            && supervisor.lost.is_none()
        {
            // It goes on for as long as it had worked before it asked.
            let goes_on = (now.saturating_sub(supervisor.began)).clamp(2_000, 30_000);
            supervisor.ends_at = Some(now + goes_on);
            self.push(now + goes_on, Ev::Supervisor(host, lease));
        }
    }

    /// The tree of a lease is gone, and its worker hears of it if there is one.
    pub(crate) fn agent_gone(&mut self, host: usize, lease: u64, gone: Gone) -> Checked {
        let frozen = self.hosts.get(host).is_some_and(Host::is_frozen);
        if frozen {
            let life = self.life(host);
            // The worker learns of it when it moves again.
            let told = Ev::Lease(host, life, lease, LeaseTimer::Gone(gone));
            self.unless_frozen(host, told);
            return Ok(());
        }
        self.told_gone(host, lease, gone)?;
        self.after(host)
    }
}
