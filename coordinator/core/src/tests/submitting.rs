//! Which runs are taken in, and what is remembered of them.

use std::sync::Arc;

use super::world::*;
use crate::state::KeyUse;
use crate::{Command, RunId, limits};

#[test]
fn beyond_the_bound_the_first_key_of_a_run_that_is_gone_is_forgotten() {
    let mut world = World::new();
    let submit = |key: &str| Command::Submit {
        spec: Arc::new(plan(&["a"]).named(key).0),
        key: Some(text(key)),
        digest: text("digest"),
    };
    world.act(&submit("0-of-a-live-run"));
    for nth in 0..limits::KEYS - 2 {
        let gone = KeyUse {
            run: RunId(1_000_000),
            name: text("gone"),
            digest: text("digest"),
        };
        let key = text(&format!("8-{nth:06}"));
        world.state.keys.insert(key, gone);
    }
    world.act(&submit("7-the-last-one-with-room"));
    assert_eq!(world.state.keys.len(), limits::KEYS);
    assert!(world.state.knows_key("8-000000"));
    world.act(&submit("9-one-too-many"));
    assert_eq!(world.state.keys.len(), limits::KEYS);
    let known = |key: &str| world.state.knows_key(key);
    assert!(!known("8-000000"));
    assert!(known("8-000001"));
    assert!(known("0-of-a-live-run"));
    assert!(known("7-the-last-one-with-room"));
    assert!(known("9-one-too-many"));
}
