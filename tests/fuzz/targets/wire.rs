//! Messages of workers and operators: decoded, and converted into what the core takes.
#![no_main]

use coordinator::api::convert;
use coordinator_core::TaskIx;
use libfuzzer_sys::fuzz_target;
use muster_proto::v1::{self, report, worker_message};
use prost::Message as _;

fuzz_target!(|input: (u8, &[u8])| {
    let (which, bytes) = input;
    match which % 4 {
        0 => {
            if let Ok(message) = v1::WorkerMessage::decode(bytes) {
                worker(message);
            }
        }
        1 => drop(v1::SubmitRunRequest::decode(bytes).map(|request| {
            drop(coordinator::plan::parse("p", &request.plan, &Default::default()));
        })),
        2 => drop(v1::Grant::decode(bytes).map(|grant| {
            convert::work_of(grant.work.as_ref(), TaskIx(grant.lease as u32));
            grant.timeout.as_ref().map(convert::span);
        })),
        _ => drop(v1::AgentEvent::decode(bytes).map(|event| coordinator::transcript::is_last(&event))),
    }
});

fn worker(message: v1::WorkerMessage) {
    match message.kind {
        Some(worker_message::Kind::Hello(hello)) => {
            if let Ok(offer) = convert::offer_of(&hello, "pool") {
                assert!(offer.labels.len() <= hello.labels.len());
            }
        }
        Some(worker_message::Kind::Reports(batch)) => {
            for report in batch.reports {
                if let Some(report::Kind::Failed(failed)) = &report.kind {
                    let failure = convert::failure_of(failed.failure.clone());
                    assert!(failure.message.len() <= coordinator_core::limits::FAILURE_MESSAGE_BYTES);
                }
                let _ = convert::report_of(report);
            }
        }
        Some(_) | None => {}
    }
}
