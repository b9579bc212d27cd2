//! The coordinator's side of sessions: welcomes, messages, reports, transcripts.

use std::sync::Arc;

use coordinator_core::command::{Heartbeat, Report};
use coordinator_core::event::Outcome;
use coordinator_core::{Command, LeaseId, Rejection, Reply};
use muster_proto::v1;

use crate::coordinator::{Asker, Down, Request, Up, verdict};
use crate::wire::asking;
use crate::world::{Checked, Ev, World, tell};

impl World<'_> {
    pub(crate) fn welcome(&mut self, conn: usize, reply: Result<Reply, Rejection>) {
        let Ok(Reply::Welcome { verdicts }) = reply else {
            self.end_session(conn);
            return;
        };
        let Some(known) = self.conns.get_mut(conn) else {
            return;
        };
        known.welcome = true;
        let (host, session, gone) = (known.host, known.session, !known.at_coordinator);
        let incarnation = coordinator_core::Incarnation(known.incarnation);
        let held: Vec<LeaseId> = verdicts.keys().copied().collect();
        let worker = self.worker_id(host);
        if let Some(old) = self.coordinator.sessions.insert(worker.clone(), conn)
            && old != conn
        {
            self.end_session(old);
        }
        let welcome = v1::Welcome {
            epoch: self.coordinator.epoch.0,
            session,
            verdicts: verdicts.into_iter().map(verdict).collect(),
            event_window_bytes: 4_096,
            report_window: 16,
            ..v1::Welcome::default()
        };
        if gone {
            // Its stream had ended before its hello was answered.
            let closed = Command::SessionClosed {
                worker,
                incarnation,
                session,
            };
            self.request(Request::Command(Asker::Nobody, closed));
            return;
        }
        self.say(conn, Down::Welcome(welcome));
        for lease in held {
            // The first answer may have been lost.
            if self.coordinator.state.answered(lease).next().is_some() {
                self.say(conn, Down::Answer(lease.0));
            }
        }
    }

    /// The coordinator's side ends a stream.
    pub(crate) fn end_session(&mut self, conn: usize) {
        self.closed_at_coordinator(conn);
        // `closed_at_coordinator` has marked this end; the other one hears of it now.
        if let Some(known) = self.conns.get(conn)
            && known.at_worker
            && let Some(at) = self.on_stream(conn, false)
        {
            self.push(at, Ev::ClosedAtWorker { conn });
        }
    }

    /// The coordinator learns that a stream is gone.
    pub(crate) fn closed_at_coordinator(&mut self, conn: usize) {
        let Some(known) = self.conns.get_mut(conn) else {
            return;
        };
        if !std::mem::take(&mut known.at_coordinator) || known.coordinator != self.coordinator.start
        {
            return;
        }
        let known = known.clone();
        if !known.welcome {
            return;
        }
        let worker = self.worker_id(known.host);
        let command = Command::SessionClosed {
            worker,
            incarnation: coordinator_core::Incarnation(known.incarnation),
            session: known.session,
        };
        self.request(Request::Command(Asker::Nobody, command));
    }

    /// Sends a message to a worker.
    pub(crate) fn say(&mut self, conn: usize, message: Down) {
        if !self.conns.get(conn).is_some_and(|conn| conn.at_coordinator) {
            return;
        }
        if let Some(at) = self.on_stream(conn, false) {
            self.push(at, Ev::ToWorker(conn, Box::new(message)));
        }
    }

    /// A message of a worker arrives.
    pub(crate) fn heard_at_coordinator(&mut self, conn: usize, message: Up) -> Checked {
        let Some(known) = self.conns.get(conn) else {
            return Ok(());
        };
        let gone = known.coordinator != self.coordinator.start || !self.coordinator.up;
        if gone || !known.at_coordinator || self.was_lost(known) {
            return Ok(());
        }
        let (host, session, incarnation) = (known.host, known.session, known.incarnation);
        let worker = self.worker_id(host);
        match message {
            Up::Hello(mut hello) => {
                let allocation = hello.offer.allocation;
                let state = &self.coordinator.state;
                if allocation.is_some_and(|id| state.allocation(id).is_none()) {
                    tell!(self, "{worker} is not let in: its allocation has ended");
                    self.end_session(conn);
                    return Ok(());
                }
                hello.session = self.coordinator.next_session;
                self.coordinator.next_session += 1;
                if let Some(known) = self.conns.get_mut(conn) {
                    known.session = hello.session;
                }
                tell!(self, "{worker} says hello and holds {:?}", hello.held);
                self.request(Request::Command(Asker::Hello(conn), Command::Hello(hello)));
            }
            Up::Heartbeat(beat) => {
                let beat = Heartbeat {
                    worker,
                    incarnation: coordinator_core::Incarnation(incarnation),
                    session,
                    seq: beat.seq,
                    held: beat.held_leases.into_iter().map(LeaseId).collect(),
                    free_slots: beat.free_slots,
                    draining: beat.draining,
                    time_left: None,
                    looked: None,
                };
                let command = Command::Heartbeat(beat);
                self.request(Request::Command(Asker::Heartbeat(conn), command));
            }
            Up::Reports(reports) => self.request(Request::Reports(conn, reports)),
            Up::Events(lease, first, last) => return self.store_events(conn, lease, first, last),
            Up::Ask(lease) => {
                let opened = Command::Report {
                    worker: worker.clone(),
                    lease: LeaseId(lease),
                    report: Report::ConversationOpened {
                        id: format!("of {lease}").into(),
                        software: "simulated".into(),
                    },
                };
                self.request(Request::Command(Asker::Nobody, opened));
                let command = Command::Report {
                    worker,
                    lease: LeaseId(lease),
                    report: Report::Asked {
                        number: 1,
                        asking: Arc::new(asking(&format!("what about {lease}?"))),
                    },
                };
                self.request(Request::Command(Asker::Nobody, command));
            }
            Up::GotAnswer(lease) => {
                let command = Command::Report {
                    worker,
                    lease: LeaseId(lease),
                    report: Report::QuestionClosed {
                        number: 1,
                        choice: "yes".into(),
                        by: "".into(),
                        earlier: None,
                    },
                };
                self.request(Request::Command(Asker::Nobody, command));
            }
            Up::Goodbye => {
                if let Some(known) = self.conns.get(conn) {
                    let goodbye = Command::Goodbye {
                        worker,
                        incarnation: coordinator_core::Incarnation(known.incarnation),
                        session: known.session,
                    };
                    self.request(Request::Command(Asker::Nobody, goodbye));
                }
                self.end_session(conn);
            }
            Up::Lie(command) => self.request(Request::Command(Asker::Nobody, command)),
        }
        Ok(())
    }

    /// Reads a report, and compares a success with what was pushed.
    pub(crate) fn checked(
        &self,
        conn: usize,
        report: v1::Report,
        last: bool,
    ) -> Option<(Asker, Command)> {
        let known = self.conns.get(conn)?;
        let worker = self.worker_id(known.host);
        let (number, lease) = (report.number, LeaseId(report.lease));
        let mut report = crate::wire::report_of(report)?;
        if let Report::Succeeded {
            outcome: Outcome::Commit(commit),
            usage,
            ..
        } = &report
            && let Some(published) = self.published(&worker, lease)
            && published != Some(commit)
        {
            let text = "the worker reported a commit that it did not publish";
            report = Report::Failed {
                failure: coordinator_core::Failure::new(
                    coordinator_core::FailureClass::Publish,
                    text,
                ),
                usage: *usage,
            };
        }
        let command = Command::Report {
            worker,
            lease,
            report,
        };
        Some((Asker::Report(conn, number, last), command))
    }

    /// Events of a lease come, and are on disk before they are acknowledged.
    pub(crate) fn store_events(
        &mut self,
        conn: usize,
        lease: u64,
        first: u64,
        last: u64,
    ) -> Checked {
        let Some(known) = self.conns.get(conn) else {
            return Ok(());
        };
        let worker = self.worker_id(known.host);
        if self.store.is_full(self.now) {
            self.end_session(conn);
            return Ok(());
        }
        let number = if self.reference.was_granted(lease, &worker) {
            let honest = self
                .hosts
                .get(known.host)
                .is_some_and(|host| host.is_honest());
            let stored = self.transcripts.entry(lease).or_default();
            let before = *stored;
            if last > *stored {
                *stored = last;
            }
            self.ensure(
                !honest || first <= before + 1,
                "transcripts have no gaps",
                || format!("event {first} of lease {lease} follows {before}"),
            )?;
            self.transcripts.get(&lease).copied().unwrap_or(0)
        } else {
            last
        };
        self.say(conn, Down::EventAck(v1::EventAck { lease, number }));
        Ok(())
    }
}
