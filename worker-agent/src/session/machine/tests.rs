use muster_proto::v1::{
    self, EventAcks, GrantBatch, LeaseVerdict, Renewal, ReportAcks, StopLeases, coordinator_message,
};
use proptest::prelude::*;

use super::*;

const TTL: Duration = Duration::from_secs(60);

fn at(seconds: u64) -> Boottime {
    Boottime::from_millis(seconds * 1000)
}

fn welcome(verdicts: &[(u64, Verdict)]) -> Welcome {
    Welcome {
        verdicts: verdicts.iter().map(|v| verdict(v.0, v.1)).collect(),
        event_window_bytes: 100,
        report_window: 2,
        ..Welcome::default()
    }
}

fn verdict(lease: u64, verdict: Verdict) -> LeaseVerdict {
    LeaseVerdict {
        lease,
        verdict: verdict.into(),
    }
}

fn grant(lease: u64, heartbeat_seq: u64) -> Grant {
    Grant {
        lease,
        heartbeat_seq,
        ttl: TTL.try_into().ok(),
        ..Grant::default()
    }
}

fn grants(grants: Vec<Grant>) -> coordinator_message::Kind {
    coordinator_message::Kind::Grants(GrantBatch { grants })
}

fn renewal(seq: u64, verdicts: Vec<LeaseVerdict>) -> coordinator_message::Kind {
    coordinator_message::Kind::Renewal(Renewal { seq, verdicts })
}

fn acks(numbers: &[u64]) -> coordinator_message::Kind {
    coordinator_message::Kind::ReportAcks(ReportAcks {
        acks: numbers
            .iter()
            .map(|number| ReportAck {
                number: *number,
                verdict: ReportVerdict::Recorded.into(),
            })
            .collect(),
    })
}

fn passed() -> report::Kind {
    report::Kind::VerifyPassed(v1::Empty {})
}

/// A machine of four slots in a session whose first heartbeat was sent at second 0.
fn connected() -> Machine {
    let mut machine = Machine::new(4, 1);
    machine.welcomed(&welcome(&[]), at(0));
    machine
}

fn deadline_of_start(outputs: &[Output]) -> Option<Boottime> {
    outputs.iter().find_map(|output| match output {
        Output::Start { deadline, .. } => Some(*deadline),
        _ => None,
    })
}

fn given_back(outputs: &[Output]) -> Option<String> {
    outputs.iter().find_map(|output| match output {
        Output::Store(reports) => match &reports.first()?.kind {
            Some(report::Kind::GivenBack(failure)) => Some(failure.message.clone()),
            _ => None,
        },
        _ => None,
    })
}

fn sent_reports(outputs: &[Output]) -> Vec<u64> {
    let batches = outputs.iter().filter_map(|output| match output {
        Output::Send(worker_message::Kind::Reports(batch)) => Some(&batch.reports),
        _ => None,
    });
    batches.flatten().map(|report| report.number).collect()
}

#[test]
fn the_ttl_counts_from_when_the_heartbeat_was_sent() {
    let mut machine = connected();
    machine.heartbeat(at(10));
    let outputs = machine.received(grants(vec![grant(7, 1)]), at(20));
    assert_eq!(deadline_of_start(&outputs), Some(at(50)));
    let keep = vec![verdict(7, Verdict::Keep)];
    let outputs = machine.received(renewal(2, keep.clone()), at(45));
    let deadline = at(60);
    assert_eq!(outputs, [Output::Renew { lease: 7, deadline }]);
    // A late answer to an older heartbeat takes nothing away.
    assert_eq!(machine.received(renewal(1, keep), at(46)), []);
    assert_eq!(machine.wakeup(), Some(at(60)));
}

#[test]
fn a_grant_whose_time_has_passed_is_given_back() {
    let mut machine = connected();
    let outputs = machine.received(grants(vec![grant(7, 1)]), at(50));
    let message = given_back(&outputs).unwrap();
    assert!(message.contains("time had passed"), "{message}");
    assert_eq!(machine.held(), [7]);
}

#[test]
fn a_grant_that_names_a_heartbeat_of_another_session_is_given_back() {
    let mut machine = connected();
    machine.heartbeat(at(1));
    machine.welcomed(&welcome(&[]), at(2));
    let outputs = machine.received(grants(vec![grant(7, 2)]), at(3));
    assert!(given_back(&outputs).is_some());
}

#[test]
fn a_full_or_draining_worker_gives_back() {
    let mut machine = connected();
    let all = (1..=5).map(|lease| grant(lease, 1)).collect();
    let outputs = machine.received(grants(all), at(1));
    assert!(given_back(&outputs).unwrap().contains("no free slot"));
    assert_eq!(machine.free_slots(), 0);
    machine.drain();
    let outputs = machine.received(grants(vec![grant(6, 1)]), at(1));
    assert!(given_back(&outputs).unwrap().contains("takes nothing new"));
}

#[test]
fn heartbeats_tell_how_long_the_machine_will_still_be_there() {
    let mut machine = connected();
    assert_eq!(machine.heartbeat(at(1)).unwrap().time_left, None);
    machine.machine_ends(Some(at(90)));
    let mut left = |seconds| {
        let left = machine.heartbeat(at(seconds)).unwrap().time_left;
        left.map(|left| left.seconds)
    };
    assert_eq!((left(30), left(200)), (Some(60), Some(0)));
}

#[test]
fn a_worker_that_is_to_leave_goes_once_its_coordinator_knows_that_it_takes_nothing() {
    let mut machine = connected();
    let drain = |leave| coordinator_message::Kind::Drain(Drain { leave });
    machine.received(drain(false), at(1));
    assert!(!machine.is_draining());
    let outputs = machine.received(drain(true), at(2));
    let [Output::Send(worker_message::Kind::Heartbeat(beat))] = &outputs[..] else {
        panic!("{outputs:?}");
    };
    assert!(beat.draining && beat.free_slots == 0 && beat.seq == 2);
    assert_eq!(machine.received(drain(true), at(2)), []);
    // The answer to a heartbeat from before; a grant may be on its way.
    machine.received(renewal(1, vec![]), at(3));
    assert!(machine.owes_nothing() && !machine.may_go());
    machine.received(renewal(2, vec![]), at(3));
    assert!(machine.may_go());
    // A new session has not heard of it yet.
    machine.disconnected();
    assert!(machine.may_go());
    machine.welcomed(&welcome(&[]), at(4));
    assert!(!machine.may_go());
    machine.received(renewal(1, vec![]), at(5));
    assert!(machine.may_go());
}

#[test]
fn a_worker_whose_disk_fails_offers_nothing_until_it_works_again() {
    let mut machine = connected();
    let free = |outputs: &[Output]| {
        outputs.iter().find_map(|output| match output {
            Output::Send(worker_message::Kind::Heartbeat(beat)) => Some(beat.free_slots),
            _ => None,
        })
    };
    let full = Some("it is full");
    assert_eq!(free(&machine.disk_is_in_trouble(full, at(1))), Some(0));
    assert_eq!(machine.disk_is_in_trouble(full, at(2)), []);
    let said = machine.heartbeat(at(2)).unwrap().trouble;
    assert_eq!(said, "its disk cannot be worked on: it is full");
    // One that was on its way.
    let outputs = machine.received(grants(vec![grant(7, 1)]), at(3));
    assert!(given_back(&outputs).unwrap().contains("disk"));
    assert_eq!(free(&machine.disk_is_in_trouble(None, at(4))), Some(4));
    let outputs = machine.received(grants(vec![grant(8, 4)]), at(5));
    assert!(deadline_of_start(&outputs).is_some());
}

#[test]
fn work_ends_a_margin_before_the_lease_does() {
    let mut machine = connected();
    machine.received(grants(vec![grant(7, 1)]), at(0));
    assert_eq!(machine.tick(at(49)), []);
    let cause = StopCause::Expired;
    assert_eq!(machine.tick(at(50)), [Output::Stop { lease: 7, cause }]);
    assert_eq!(machine.tick(at(51)), []);
    // A renewal that arrives too late does not revive it.
    let keep = vec![verdict(7, Verdict::Keep)];
    assert_eq!(machine.received(renewal(1, keep), at(52)), []);
}

#[test]
fn a_stop_is_carried_out_once_whichever_message_brings_it() {
    let mut machine = connected();
    machine.received(grants(vec![grant(7, 1), grant(8, 1), grant(9, 1)]), at(0));
    let stop = |lease| Output::Stop {
        lease,
        cause: StopCause::Told,
    };
    let told = coordinator_message::Kind::Stop(StopLeases {
        leases: vec![7, 99],
    });
    assert_eq!(machine.received(told.clone(), at(1)), [stop(7)]);
    assert_eq!(machine.received(told, at(1)), []);
    let told = renewal(1, vec![verdict(8, Verdict::Stop)]);
    assert_eq!(machine.received(told, at(1)), [stop(8)]);
    let outputs = machine.welcomed(&welcome(&[(9, Verdict::Stop)]), at(2));
    assert!(outputs.contains(&stop(9)));
}

#[test]
fn reports_are_said_after_they_are_stored_in_order_and_within_the_window() {
    let mut machine = connected();
    machine.received(
        grants((1..=3).map(|lease| grant(lease, 1)).collect()),
        at(0),
    );
    for lease in 1..=3 {
        let outputs = machine.report(lease, passed());
        assert_eq!(sent_reports(&outputs), [0; 0]);
    }
    assert_eq!(sent_reports(&machine.stored(&[2], at(1))), [0; 0]);
    assert_eq!(sent_reports(&machine.stored(&[1, 3], at(1))), [1, 2]);
    let outputs = machine.received(acks(&[1]), at(2));
    assert_eq!(sent_reports(&outputs), [3]);
    assert!(outputs.contains(&Output::Acknowledged(vec![1])));
    // After a reconnect whatever was not acknowledged is said again.
    assert_eq!(
        sent_reports(&machine.welcomed(&welcome(&[]), at(3))),
        [2, 3]
    );
}

#[test]
fn a_lease_reports_its_end_once() {
    let mut machine = connected();
    machine.received(grants(vec![grant(7, 1)]), at(0));
    assert_eq!(machine.report(7, passed()).len(), 1);
    assert_eq!(machine.report(7, passed()), []);
    assert_eq!(machine.report(99, passed()), []);
}

#[test]
fn a_lease_is_dropped_when_its_result_and_its_events_are_acknowledged_and_it_is_finished() {
    let drop = Output::Drop { lease: 7 };
    let mut machine = connected();
    machine.received(grants(vec![grant(7, 1)]), at(0));
    machine.events_stored(7, 2);
    machine.report(7, passed());
    machine.stored(&[1], at(1));
    let events = coordinator_message::Kind::EventAcks(EventAcks {
        acks: vec![EventAck {
            lease: 7,
            number: 2,
        }],
    });
    assert!(!machine.received(events, at(1)).contains(&drop));
    assert!(!machine.received(acks(&[1]), at(1)).contains(&drop));
    assert!(!machine.owes_nothing());
    assert_eq!(machine.finished(7), [drop]);
    assert!(machine.owes_nothing());
}

#[test]
fn events_keep_to_the_window_and_leases_take_turns() {
    let mut machine = connected();
    machine.received(grants(vec![grant(7, 1), grant(8, 1)]), at(0));
    machine.events_stored(7, 10);
    machine.events_stored(8, 1);
    let next = machine.next_events().unwrap();
    assert_eq!(
        (next.lease, next.after, next.last, next.bytes_max),
        (7, 0, 10, 100)
    );
    machine.events_sent(7, 4, 60, at(1));
    let next = machine.next_events().unwrap();
    assert_eq!((next.lease, next.after, next.bytes_max), (8, 0, 40));
    machine.events_sent(8, 1, 40, at(1));
    assert_eq!(machine.next_events(), None);
    let events = coordinator_message::Kind::EventAcks(EventAcks {
        acks: vec![EventAck {
            lease: 7,
            number: 4,
        }],
    });
    machine.received(events, at(1));
    let next = machine.next_events().unwrap();
    assert_eq!((next.lease, next.after, next.bytes_max), (7, 4, 60));
    // What was sent and not confirmed is sent again; what the coordinator has is not.
    machine.welcomed(&welcome(&[(7, Verdict::Keep)]), at(2));
    assert_eq!(sent_next(&mut machine), (7, 4, 4));
    assert_eq!(sent_next(&mut machine), (8, 0, 0));
    assert_eq!(machine.next_events(), None);
    machine.received(event_ack(7, 6), at(2));
    assert_eq!(sent_next(&mut machine), (7, 6, 10));
    machine.received(event_ack(8, 0), at(2));
    assert_eq!(sent_next(&mut machine), (8, 0, 1));
}

#[test]
fn what_a_restored_coordinator_has_lost_is_sent_again_and_held_until_it_has_it() {
    let mut machine = connected();
    machine.received(grants(vec![grant(7, 1)]), at(0));
    machine.events_stored(7, 9);
    assert_eq!(sent_next(&mut machine), (7, 0, 9));
    machine.received(event_ack(7, 9), at(1));
    machine.disconnected();
    // All is acknowledged, but by whom is open until the next coordinator has said so.
    machine.report(7, passed());
    machine.stored(&[1], at(1));
    machine.finished(7);
    machine.welcomed(&welcome(&[]), at(2));
    machine.received(acks(&[1]), at(2));
    assert_eq!(sent_next(&mut machine), (7, 9, 9));
    let outputs = machine.received(event_ack(7, 5), at(2));
    assert!(outputs.contains(&Output::EventsAcknowledged {
        lease: 7,
        number: 5
    }));
    assert_eq!(sent_next(&mut machine), (7, 5, 9));
    let outputs = machine.received(event_ack(7, 9), at(2));
    assert!(outputs.contains(&Output::Drop { lease: 7 }));
    assert!(machine.owes_nothing());
}

fn event_ack(lease: u64, number: u64) -> coordinator_message::Kind {
    let acks = vec![EventAck { lease, number }];
    coordinator_message::Kind::EventAcks(EventAcks { acks })
}

/// Sends what is next; gives its lease and the events that it goes on behind and up to.
fn sent_next(machine: &mut Machine) -> (u64, u64, u64) {
    let next = machine.next_events().unwrap();
    machine.events_sent(next.lease, next.last, 10, at(1));
    (next.lease, next.after, next.last)
}

#[test]
fn what_an_earlier_incarnation_reported_is_held_until_acknowledged() {
    let mut machine = Machine::new(1, 5);
    machine.restore_report(Report {
        number: 5,
        lease: 7,
        kind: Some(passed()),
    });
    machine.restore_lease(7, 3);
    machine.restore_lease(6, 2);
    assert_eq!((machine.held(), machine.free_slots()), (vec![7], 1));
    assert_eq!(sent_reports(&machine.welcomed(&welcome(&[]), at(0))), [5]);
    machine.finished(6);
    machine.finished(7);
    machine.received(acks(&[5]), at(1));
    assert!(machine.holds_nothing() && !machine.owes_nothing());
    assert!(machine.next_events().is_some());
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Heartbeat,
    Renew { back: u64, lease: u64, stop: bool },
    Grant { back: u64, lease: u64 },
    Finish(u64),
    Store,
    AckReports(u64),
    Events(u64),
    SendEvents,
    AckEvents { lease: u64, number: u64 },
    Reconnect,
    Disconnect,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let lease = 1..8u64;
    let step = prop_oneof![
        (0..30u64).prop_map(Step::Wait),
        Just(Step::Heartbeat),
        (0..4u64, lease.clone(), prop::bool::weighted(0.2))
            .prop_map(|(back, lease, stop)| Step::Renew { back, lease, stop }),
        (0..4u64, lease.clone()).prop_map(|(back, lease)| Step::Grant { back, lease }),
        lease.clone().prop_map(Step::Finish),
        Just(Step::Store),
        (0..12u64).prop_map(Step::AckReports),
        lease.clone().prop_map(Step::Events),
        Just(Step::SendEvents),
        (lease, 0..20u64).prop_map(|(lease, number)| Step::AckEvents { lease, number }),
        Just(Step::Reconnect),
        Just(Step::Disconnect),
    ];
    prop::collection::vec(step, 0..120)
}

#[test]
fn what_was_found_of_agents_is_said_at_once_and_again_only_in_the_next_session() {
    let mut machine = Machine::new(4, 1);
    let found = |version: &str| AgentsFound {
        offers: vec![v1::AgentOffer {
            version: version.into(),
            ..v1::AgentOffer::default()
        }],
        ..AgentsFound::default()
    };
    let said = |outputs: &[Output]| -> Vec<Option<AgentsFound>> {
        let beats = outputs.iter().filter_map(|output| match output {
            Output::Send(worker_message::Kind::Heartbeat(beat)) => Some(beat.agents.clone()),
            _ => None,
        });
        beats.collect()
    };
    assert_eq!(machine.agents_found(found(""), at(0)), []);
    assert_eq!(
        said(&machine.welcomed(&welcome(&[]), at(1))),
        [Some(found(""))]
    );
    assert_eq!(machine.heartbeat(at(2)).unwrap().agents, None);
    assert_eq!(
        said(&machine.agents_found(found("1.0"), at(3))),
        [Some(found("1.0"))]
    );
    assert_eq!(machine.agents_found(found("1.0"), at(4)), []);
    assert_eq!(
        said(&machine.welcomed(&welcome(&[]), at(5))),
        [Some(found("1.0"))]
    );
    let wanted = vec![DeclaredAgent {
        name: "mine".into(),
        ..DeclaredAgent::default()
    }];
    let look = v1::LookFor {
        agents: wanted.clone(),
    };
    let outputs = machine.received(coordinator_message::Kind::LookFor(look), at(6));
    assert_eq!(outputs, [Output::Look(wanted)]);
}

/// What a careful observer of the wire and the disk knows.
#[derive(Default)]
struct Observer {
    /// End of each lease whose processes may run, counted from the heartbeats it saw.
    running: BTreeMap<u64, Boottime>,
    unsaid: Vec<u64>,
    stored: Vec<u64>,
    in_flight: Vec<u64>,
    heartbeats: Vec<Boottime>,
    sent_events: BTreeMap<u64, u64>,
}

impl Observer {
    fn see(&mut self, outputs: &[Output], now: Boottime) {
        for output in outputs {
            match output {
                Output::Send(worker_message::Kind::Heartbeat(heartbeat)) => {
                    self.heartbeats.push(now);
                    assert_eq!(heartbeat.seq, self.heartbeats.len() as u64);
                    for lease in self.running.keys() {
                        assert!(heartbeat.held_leases.contains(lease));
                    }
                }
                Output::Send(worker_message::Kind::Reports(batch)) => {
                    for report in &batch.reports {
                        assert!(self.stored.contains(&report.number), "said before stored");
                        assert!(!self.in_flight.contains(&report.number), "said twice");
                        self.in_flight.push(report.number);
                    }
                    assert!(self.in_flight.len() <= 2, "window");
                }
                Output::Send(_) => panic!("nothing else is sent by itself"),
                Output::Store(reports) => {
                    for report in reports {
                        self.unsaid.push(report.number);
                        self.running.remove(&report.lease);
                    }
                }
                Output::Start { grant, deadline } => {
                    assert!(now < *deadline, "started after its time");
                    assert!(self.running.insert(grant.lease, *deadline).is_none());
                    assert!(self.running.len() <= 4, "slots");
                }
                Output::Look(_) => panic!("nobody asked for it"),
                Output::Renew { lease, deadline } => {
                    let end = self.running.get_mut(lease).expect("renewed while it runs");
                    assert!(*end < *deadline);
                    *end = *deadline;
                }
                Output::Stop { lease, .. } => {
                    assert!(self.running.contains_key(lease));
                    self.running.insert(*lease, Boottime::from_millis(u64::MAX));
                }
                Output::Acknowledged(numbers) => {
                    self.in_flight.retain(|number| !numbers.contains(number));
                }
                Output::Drop { lease } => assert!(!self.running.contains_key(lease)),
                Output::EventsAcknowledged { .. } => {}
                Output::Answers { .. } => panic!("nobody was asked"),
            }
        }
    }

    fn new_session(&mut self) {
        self.heartbeats.clear();
        self.in_flight.clear();
        self.sent_events.clear();
    }
}

proptest! {
    #[test]
    fn no_order_of_messages_makes_it_break_its_promises(steps in steps()) {
        let mut machine = Machine::new(4, 1);
        let mut observer = Observer::default();
        let mut now = at(0);
        let mut is_connected = false;
        for step in steps {
            let back = |observer: &Observer, back: u64| {
                (observer.heartbeats.len() as u64).saturating_sub(back)
            };
            let outputs = match step {
                Step::Wait(seconds) => {
                    now = now.after(Duration::from_secs(seconds));
                    vec![]
                }
                Step::Heartbeat => {
                    let heartbeat = machine.heartbeat(now);
                    prop_assert_eq!(heartbeat.is_some(), is_connected);
                    heartbeat
                        .map(|h| Output::Send(worker_message::Kind::Heartbeat(h)))
                        .into_iter()
                        .collect()
                }
                Step::Renew { back: steps, lease, stop } => {
                    let answer = if stop { Verdict::Stop } else { Verdict::Keep };
                    let seq = back(&observer, steps);
                    machine.received(renewal(seq, vec![verdict(lease, answer)]), now)
                }
                Step::Grant { back: steps, lease } => {
                    machine.received(grants(vec![grant(lease, back(&observer, steps))]), now)
                }
                Step::Finish(lease) => {
                    let mut outputs = machine.report(lease, passed());
                    outputs.extend(machine.finished(lease));
                    outputs
                }
                Step::Store => {
                    let numbers = std::mem::take(&mut observer.unsaid);
                    observer.stored.extend(&numbers);
                    machine.stored(&numbers, now)
                }
                Step::AckReports(number) => machine.received(acks(&[number]), now),
                Step::Events(lease) => {
                    let last = machine.leases.get(&lease).map_or(0, |l| l.events_stored + 1);
                    machine.events_stored(lease, last);
                    vec![]
                }
                Step::SendEvents => {
                    if let Some(next) = machine.next_events() {
                        prop_assert!(is_connected && next.bytes_max <= 100);
                        // Without gaps in a session, and never again what was sent in it.
                        let sent = observer.sent_events.get(&next.lease);
                        match (next.after == next.last, sent) {
                            // Asked once, before anything else.
                            (true, sent) => {
                                prop_assert!(sent.is_none());
                                observer.sent_events.insert(next.lease, 0);
                                machine.events_sent(next.lease, next.last, 0, at(1));
                            }
                            (false, sent) => {
                                prop_assert!(next.after < next.last);
                                prop_assert!(sent.is_none_or(|sent| next.after >= *sent));
                                observer.sent_events.insert(next.lease, next.after + 1);
                                machine.events_sent(next.lease, next.after + 1, 30, at(1));
                            }
                        }
                    }
                    vec![]
                }
                Step::AckEvents { lease, number } => {
                    let acks = vec![EventAck { lease, number }];
                    machine.received(coordinator_message::Kind::EventAcks(EventAcks { acks }), now)
                }
                Step::Reconnect => {
                    is_connected = true;
                    observer.new_session();
                    let mut window = welcome(&[]);
                    window.report_window = 2;
                    machine.welcomed(&window, now)
                }
                Step::Disconnect => {
                    is_connected = false;
                    observer.new_session();
                    machine.disconnected();
                    vec![]
                }
            };
            observer.see(&outputs, now);
            let outputs = machine.tick(now);
            observer.see(&outputs, now);
            for (lease, end) in &observer.running {
                prop_assert!(now < *end, "lease {lease} runs after its end");
            }
        }
        // A coordinator that answers everything is owed nothing in the end.
        observer.new_session();
        let outputs = machine.welcomed(&welcome(&[]), now);
        observer.see(&outputs, now);
        for lease in 1..8 {
            let outputs = machine.report(lease, passed());
            observer.see(&outputs, now);
            machine.finished(lease);
        }
        let numbers = std::mem::take(&mut observer.unsaid);
        observer.stored.extend(&numbers);
        let outputs = machine.stored(&numbers, now);
        observer.see(&outputs, now);
        while let Some(number) = observer.in_flight.first().copied() {
            let outputs = machine.received(acks(&[number]), now);
            observer.see(&outputs, now);
        }
        while let Some(next) = machine.next_events() {
            machine.events_sent(next.lease, next.last, 10, at(1));
            let acks = vec![EventAck { lease: next.lease, number: next.last }];
            machine.received(coordinator_message::Kind::EventAcks(EventAcks { acks }), now);
        }
        prop_assert!(machine.owes_nothing());
    }
}
