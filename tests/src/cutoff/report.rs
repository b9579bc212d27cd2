//! What was measured, and what was promised.

use std::fmt;
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};

use super::{Case, Coordinator, JUMP_SECONDS, Length, Loss, since};
use crate::cluster::Options;

/// Sessions of a worker that was made to reconnect: once after each of two jumps.
pub(super) const RECONNECTS: usize = 2;

/// What was measured of one case. Times are seconds since the worker was cut off.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Which one.
    pub case: Case,
    /// What happened to the coordinator meanwhile.
    pub coordinator: Coordinator,
    /// Attempts that the coordinator counts.
    pub attempts: usize,
    /// Attempts that were started, as they noted themselves.
    pub starts: Vec<u32>,
    /// Sessions that the worker had.
    pub sessions: usize,
    /// Connections that it made for them, where that is known.
    pub connections: Option<u64>,
    /// When the last process of the first attempt ended, as the kernel tells.
    pub agent_end: Option<f64>,
    /// When it last did something.
    pub last_sign: f64,
    /// When the task was granted again, as the coordinator's journal has it.
    pub next_grant: Option<f64>,
    /// When the worker and its agents fell asleep and woke up.
    pub asleep: Option<(f64, f64)>,
    /// Whether processes whose wall clock was to jump have written both wrong times to their logs.
    pub walls_seen: Vec<bool>,
}

impl Figures {
    /// From the end of the agent to the next grant, or from its last sign before it fell asleep.
    #[must_use]
    pub fn gap(&self) -> Option<f64> {
        let end = match self.asleep {
            // It stands still from here until it wakes up.
            Some((slept, _)) => Some(slept),
            None => self.agent_end,
        };
        Some(self.next_grant? - end?)
    }

    /// For an agent that woke up after its task was given away: how long it went on.
    #[must_use]
    pub fn ran_after_waking(&self) -> Option<f64> {
        let (_, woke) = self.asleep?;
        Some(self.agent_end? - woke)
    }

    fn is_longer(&self) -> bool {
        self.case.length == Length::Longer || self.coordinator == Coordinator::Lid(Length::Longer)
    }

    /// Insists on what was promised.
    pub(super) fn check(&self, terms: Options, reconnects: bool) -> Result<()> {
        ensure!(
            self.walls_seen.iter().all(|seen| *seen),
            "a wall clock that was to jump did not"
        );
        if !self.is_longer() {
            ensure!(self.attempts == 1, "it was not one attempt");
            ensure!(self.starts == [1], "it was not one start");
            let sessions = if reconnects { 1 + RECONNECTS } else { 1 };
            // One more where answers stay away for so long that a new connection is tried.
            let most = sessions + 1;
            ensure!(
                (sessions..=most).contains(&self.sessions),
                "expected {sessions} sessions"
            );
            // The first fetches the certificate of the coordinator.
            let most = u64::try_from(most)? + 1;
            ensure!(
                self.connections
                    .is_none_or(|connections| connections <= most),
                "expected {most} connections"
            );
            return Ok(());
        }
        ensure!(self.attempts == 2, "it was not two attempts");
        ensure!(self.starts == [1, 2], "it was not two starts");
        ensure!(
            self.gap().is_some_and(|gap| gap > 0.0),
            "the agent had not ended when the task was given away"
        );
        if matches!(self.case.loss, Loss::BothWays | Loss::Up | Loss::Lid) {
            let least = terms.lease_ttl.as_secs_f64();
            ensure!(
                self.next_grant.is_some_and(|grant| grant >= least),
                "the task was given away before the TTL was over"
            );
        }
        if let Some(ran) = self.ran_after_waking() {
            // The grace of TERM was over with the lease; a busy machine takes its time.
            let most = Duration::from_secs(2).as_secs_f64();
            ensure!(ran < most, "the agent went on after it woke up");
        }
        Ok(())
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.case.name();
        let on = match self.coordinator {
            Coordinator::Undisturbed => String::new(),
            Coordinator::WallJumps => " (coordinator's wall clock jumps)".to_owned(),
            Coordinator::Lid(length) => format!(" (coordinator sleeps {length:?})").to_lowercase(),
        };
        write!(f, "{name}{on}: ")?;
        if self.next_grant.is_none() {
            return write!(
                f,
                "went on as the same attempt and process; {} attempt, {} session(s)",
                self.attempts, self.sessions
            );
        }
        let show =
            |time: Option<f64>| time.map_or("never".to_owned(), |time| format!("{time:.3} s"));
        if let Some((slept, woke)) = self.asleep {
            write!(f, "asleep from {slept:.3} s to {woke:.3} s, ")?;
        }
        write!(
            f,
            "last sign {:.3} s, agent's end {}, next grant {}, gap {}",
            self.last_sign,
            show(self.agent_end),
            show(self.next_grant),
            show(self.gap()),
        )?;
        match self.ran_after_waking() {
            Some(ran) => write!(f, ", ran {ran:.3} s after waking"),
            None => Ok(()),
        }
    }
}

/// Tells whether a log has lines of the wrong time: after a jump forward, and one back.
pub(super) fn saw_jumps(log: &str, begun: SystemTime, both: bool) -> bool {
    let nearly = JUMP_SECONDS as f64 * 0.9;
    let times = log.lines().filter_map(|line| {
        // The first word, or the first value of a line in JSON.
        let words = line.split([' ', '"']).take(5);
        let mut times = words.filter_map(|word| word.parse::<jiff::Timestamp>().ok());
        Some(since(begun, times.next()?.into()))
    });
    let times: Vec<f64> = times.collect();
    let forward = times.iter().any(|time| *time > nearly);
    let back = times.iter().any(|time| *time < -nearly);
    if both {
        forward && back
    } else {
        forward || back
    }
}
