//! The worker's session machine under any messages of a coordinator.
#![no_main]

use libfuzzer_sys::fuzz_target;
use muster_proto::v1::{CoordinatorMessage, coordinator_message, report};
use prost::Message as _;
use worker_agent::clock::Boottime;
use worker_agent::session::machine::{Machine, Output};

const SLOTS: u32 = 3;

fuzz_target!(|bytes: &[u8]| {
    let mut machine = Machine::new(SLOTS, 1);
    let mut now = 1_000_u64;
    let mut rest = bytes;
    while let Some((&step, more)) = rest.split_first() {
        rest = more;
        now += u64::from(step) * 97;
        let at = Boottime::from_millis(now);
        let outputs = match step % 8 {
            0 => machine.tick(at),
            1 => {
                machine.disconnected();
                Vec::new()
            }
            2 => {
                machine.heartbeat(at);
                Vec::new()
            }
            3 => {
                let held = machine.held();
                let lease = held.get(usize::from(step / 8) % held.len().max(1));
                lease.map_or_else(Vec::new, |lease| {
                    machine.events_stored(*lease, u64::from(step));
                    machine.report(*lease, report::Kind::Stopped(Default::default()))
                })
            }
            _ => match CoordinatorMessage::decode_length_delimited(&mut rest) {
                Ok(CoordinatorMessage { kind: Some(coordinator_message::Kind::Welcome(welcome)) }) => {
                    machine.welcomed(&welcome, at)
                }
                Ok(CoordinatorMessage { kind: Some(kind) }) => machine.received(kind, at),
                Ok(CoordinatorMessage { kind: None }) => Vec::new(),
                Err(_) => return,
            },
        };
        for output in outputs {
            match output {
                Output::Store(reports) => {
                    let numbers: Vec<u64> = reports.iter().map(|report| report.number).collect();
                    machine.stored(&numbers, at);
                }
                Output::Start { grant, deadline } => {
                    assert!(deadline > at, "work begins on a lease that has no time");
                    assert!(machine.held().contains(&grant.lease));
                }
                Output::Renew { deadline, .. } => assert!(deadline.as_millis() > 0),
                Output::Send(_)
                | Output::Stop { .. }
                | Output::Acknowledged(_)
                | Output::EventsAcknowledged { .. }
                | Output::Answers { .. }
                | Output::Drop { .. } => {}
            }
        }
        assert!(machine.free_slots() <= SLOTS);
        if let Some(next) = machine.next_events() {
            assert!(next.after <= next.last);
            machine.events_sent(next.lease, next.last, 10, Boottime::from_millis(now));
        }
    }
});
