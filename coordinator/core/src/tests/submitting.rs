//! Which runs are taken in, and what is remembered of them.

use std::sync::Arc;

use super::world::*;
use crate::command::Target;
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

#[test]
fn of_archived_runs_the_last_ones_are_remembered_whatever_their_numbers() {
    let mut world = World::new();
    let runs = ["one", "two"].map(|name| world.submit(plan(&["a"]).named(name)));
    let others = 1_000_000..1_000_000 + limits::ARCHIVED_REMEMBERED as u64 - 1;
    world.state.archived = others.map(|id| (RunId(id), 1)).collect();
    for run in runs {
        world.cancel(Target::Run(run));
        let archived = world.archived(run);
        world.act(&archived);
        assert_eq!(world.state.archived.len(), limits::ARCHIVED_REMEMBERED);
    }
    let remembered = world.state.archived.iter().map(|(run, _)| *run);
    let remembered: Vec<RunId> = remembered.collect();
    assert_eq!(remembered[0], RunId(1_000_001));
    assert!(remembered.ends_with(&runs));
}

#[test]
fn an_old_run_that_went_on_is_not_reloaded_from_its_past_though_many_newer_ones_were_archived() {
    let mut world = World::new();
    let run = world.submit(plan(&["a"]));
    let archive = |world: &mut World| {
        world.cancel(Target::Run(run));
        let image = Arc::new(world.state.run_image(run).unwrap());
        let archived = world.archived(run);
        world.act(&archived);
        Command::Reload { image }
    };
    let past = archive(&mut world);
    world.act(&past);
    world.retry(Target::Run(run));
    let newer = 1_000_000..1_000_000 + limits::ARCHIVED_REMEMBERED as u64;
    world.state.archived = newer.map(|id| (RunId(id), 1)).collect();
    let present = archive(&mut world);
    assert_eq!(world.refused(&past).code(), "NOT_NOW");
    world.act(&present);
}
