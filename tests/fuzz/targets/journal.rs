//! A journal of any events, or an image of any kind, is taken whole or refused; it never breaks the
//! state.
#![no_main]

use coordinator::store::form;
use coordinator_core::{State, Timestamp, effects, invariants, schedule};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    // The first line is a run to begin with, or not.
    let run = lines.next().unwrap_or_default();
    let mut state = State::new();
    if let Ok(image) = form::decode_run(1, run) {
        let mut whole = state.image();
        whole.next_run = coordinator_core::RunId(image.run.id.0.saturating_add(1));
        whole.runs.push(image.run);
        if let Ok(with_run) = State::from_image(whole, Timestamp::from_ms(1)) {
            state = with_run;
        }
    }
    for body in lines {
        let Ok(batch) = form::decode_batch(1, body) else {
            continue;
        };
        for event in &batch.events {
            let before = state.clone();
            if state.replay(event).is_err() {
                assert!(state == before, "a refused event changed the state");
                return;
            }
        }
    }
    let image = state.image();
    if invariants::check(&state).is_ok() {
        let again = State::from_image(image.clone(), Timestamp::from_ms(1)).expect("its own image");
        assert!(again.image() == image, "an image differs from its state");
        let _ = schedule(&mut state, Timestamp::from_ms(2));
        let _ = effects(&[]);
    }
});
