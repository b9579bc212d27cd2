//! Plan files, codex-par files among them: parsed, checked, drawn, lowered to the core's form.
#![no_main]

use std::collections::BTreeMap;

use coordinator::plan::{Admission, Graph, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let plan = match parse("plan.yaml", bytes, &BTreeMap::new()) {
        Ok(plan) => plan,
        Err(problems) => {
            assert!(!problems.to_string().is_empty());
            return;
        }
    };
    let graph = Graph::of(&plan);
    let _ = (graph.critical_path(), graph.text(80), graph.dot(), graph.mermaid(), graph.svg());
    let source = coordinator_core::plan::Source {
        repository: "r".into(),
        base: coordinator_core::CommitId::new("0123456789012345678901234567890123456789"),
    };
    let lowered = [None, Some(source)].into_iter().find_map(|source| {
        plan.lower(&Admission {
            run: "fuzzed-1",
            submitted_by: "fuzzer",
            source,
            folder_prefix: "",
            personas: Default::default(),
        })
        .ok()
    });
    let lowered = lowered.expect("a plan is wanted with a source or without");
    // What the checker lets pass, the core takes.
    coordinator_core::validate(&lowered.spec).expect("the core refuses what the checker let pass");
});
