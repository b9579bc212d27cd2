//! What is stored: batches, events, runs, summaries, snapshots.
#![no_main]

use coordinator::store::form;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    let (which, body) = input;
    let form = u32::from(which / 8 % 3);
    match which % 5 {
        0 => drop(form::decode_batch(form, body).map(|batch| {
            for event in &batch.events {
                form::event_json(event).expect("an event that was read is written");
            }
        })),
        1 => drop(form::decode_events(form, body)),
        2 => drop(form::decode_run(form, body).map(|image| {
            coordinator::store::Summary::of(&image.run);
        })),
        3 => drop(form::decode_summary(form, body)),
        _ => drop(form::decode_head(form, body)),
    }
});
