//! The conversations with agents under any output of theirs.
#![no_main]

use libfuzzer_sys::fuzz_target;
use worker_agent::trial::hear;

const KINDS: [&str; 3] = ["codex", "claude", "acp"];

fuzz_target!(|bytes: &[u8]| {
    let Some((&which, stream)) = bytes.split_first() else {
        return;
    };
    let kind = KINDS[usize::from(which) % KINDS.len()];
    if let Err(broken) = hear(kind, stream) {
        panic!("{kind}: {broken}");
    }
});
