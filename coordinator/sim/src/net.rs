//! The network: streams that keep order but may be late, be cut off, or break; and the weather.

use crate::random::fate;
use crate::scenario::{Link, WeatherKind};
use crate::world::{Ev, World, tell};

/// How long an end of a stream waits for a sign of the other before it gives it up.
pub(crate) const DEAD_MS: u64 = 40_000;

/// A stream between a worker's process and the coordinator's.
#[derive(Clone, Debug)]
pub(crate) struct Conn {
    pub(crate) host: usize,
    /// Start of the coordinator and of the worker that it belongs to.
    pub(crate) coordinator: u64,
    pub(crate) process: u64,
    pub(crate) at_worker: bool,
    pub(crate) at_coordinator: bool,
    pub(crate) session: u64,
    /// The hello was accepted.
    pub(crate) welcome: bool,
    pub(crate) incarnation: u64,
    up_last: u64,
    down_last: u64,
    /// What was on its way when an end closed is lost from then on, or not at all.
    lost_from: u64,
}

/// What becomes of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Passage {
    At(u64),
    /// It breaks what carries it.
    Breaks,
}

fn concerns(link: Link, of: Link) -> bool {
    link == of || (link == Link::All && of != Link::All)
}

impl World<'_> {
    /// Decides what becomes of a message that is sent now.
    pub(crate) fn passage(&mut self, host: usize, link: Link) -> Passage {
        let Some(known) = self.hosts.get_mut(host) else {
            return Passage::Breaks;
        };
        known.sent += 1;
        let (nth, id) = (known.sent, u64::from(known.plan.id));
        let of = match link {
            Link::All | Link::ToCoordinator => 1,
            Link::ToWorker => 2,
            Link::Git => 3,
        };
        let roll = fate(self.scenario.seed, of, id, nth);
        let mut at = self.now + 1 + roll % 4;
        if self.now < known.cut_until {
            at = at.max(known.cut_until + (roll >> 8) % 500);
        }
        if self.calm {
            return Passage::At(at);
        }
        for weather in &self.scenario.weather {
            let here = weather.worker.is_none_or(|worker| u64::from(worker) == id);
            if !here || !concerns(weather.link, link) {
                continue;
            }
            if self.now < weather.from_ms || self.now >= weather.to_ms {
                continue;
            }
            match weather.kind {
                WeatherKind::Cut => at = at.max(weather.to_ms + (roll >> 8) % 500),
                WeatherKind::Delay { max_ms } => at += (roll >> 16) % max_ms.max(1),
                WeatherKind::Breaks { per_mille } => {
                    if (roll >> 32) % 1000 < per_mille {
                        return Passage::Breaks;
                    }
                }
            }
        }
        Passage::At(at)
    }

    /// Tells whether nothing passes on a way now.
    pub(crate) fn is_cut(&self, host: usize, link: Link) -> bool {
        let Some(known) = self.hosts.get(host) else {
            return true;
        };
        let cut = self.now < known.cut_until;
        cut || !self.calm
            && self.scenario.weather.iter().any(|weather| {
                weather.kind == WeatherKind::Cut
                    && weather.worker.is_none_or(|worker| worker == known.plan.id)
                    && concerns(weather.link, link)
                    && (weather.from_ms..weather.to_ms).contains(&self.now)
            })
    }

    /// Opens a stream from a worker; nothing of it has arrived yet.
    pub(crate) fn open_conn(&mut self, host: usize, process: u64, incarnation: u64) -> usize {
        self.conns.push(Conn {
            host,
            coordinator: self.coordinator.start,
            process,
            at_worker: true,
            at_coordinator: true,
            session: 0,
            welcome: false,
            incarnation,
            up_last: self.now,
            down_last: self.now,
            lost_from: u64::MAX,
        });
        self.conns.len() - 1
    }

    /// Gives when a message on a stream arrives; `None` when it breaks the stream instead.
    pub(crate) fn on_stream(&mut self, conn: usize, up: bool) -> Option<u64> {
        let host = self.conns.get(conn)?.host;
        let link = if up {
            Link::ToCoordinator
        } else {
            Link::ToWorker
        };
        let passage = self.passage(host, link);
        let Passage::At(at) = passage else {
            tell!(self, "the network breaks stream {conn}");
            self.break_conn(conn);
            return None;
        };
        let known = self.conns.get_mut(conn)?;
        let last = if up {
            &mut known.up_last
        } else {
            &mut known.down_last
        };
        // Order is kept: what was sent first arrives first.
        let at = at.max(*last);
        *last = at;
        Some(at)
    }

    /// Tells whether a message that arrives now was lost when one end closed.
    pub(crate) fn was_lost(&self, conn: &Conn) -> bool {
        self.now >= conn.lost_from
    }

    /// One end closes; the other learns of it behind everything that was sent before.
    pub(crate) fn close_conn(&mut self, conn: usize, by_worker: bool, silently: bool) {
        let seed = self.scenario.seed;
        let now = self.now;
        let Some(known) = self.conns.get_mut(conn) else {
            return;
        };
        let open = if by_worker {
            &mut known.at_worker
        } else {
            &mut known.at_coordinator
        };
        if !std::mem::take(open) {
            return;
        }
        let lost = fate(seed, 4, conn as u64, 0).is_multiple_of(3);
        if lost || silently {
            known.lost_from = known.lost_from.min(now);
        }
        let other_open = if by_worker {
            known.at_coordinator
        } else {
            known.at_worker
        };
        if !other_open || silently {
            return;
        }
        if let Some(at) = self.on_stream(conn, by_worker) {
            let ev = if by_worker {
                Ev::ClosedAtCoordinator { conn }
            } else {
                Ev::ClosedAtWorker { conn }
            };
            self.push(at, ev);
        }
    }

    /// Both ends learn at once that a stream is gone.
    pub(crate) fn break_conn(&mut self, conn: usize) {
        let now = self.now;
        if let Some(known) = self.conns.get_mut(conn) {
            known.lost_from = known.lost_from.min(now);
            self.push(now, Ev::ClosedAtWorker { conn });
            self.push(now, Ev::ClosedAtCoordinator { conn });
        }
    }

    /// Both ends have missed too many signs of life of a stream: each looks by itself.
    pub(crate) fn look_for_dead(&mut self, host: usize) {
        let cut = self.is_cut(host, Link::ToCoordinator) || self.is_cut(host, Link::ToWorker);
        let silent = self
            .hosts
            .get(host)
            .is_none_or(|host| !host.runs() || host.is_frozen());
        if !cut && !silent {
            return;
        }
        let open: Vec<usize> = (0..self.conns.len())
            .filter(|nth| {
                let conn = self.conns.get(*nth);
                conn.is_some_and(|conn| {
                    conn.host == host && (conn.at_coordinator || conn.at_worker)
                })
            })
            .collect();
        for conn in open {
            self.push(self.now, Ev::ClosedAtCoordinator { conn });
            if !silent {
                self.push(self.now, Ev::ClosedAtWorker { conn });
            }
        }
    }
}
