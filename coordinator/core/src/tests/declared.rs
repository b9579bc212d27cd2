//! Agents that plans declare: they run where their program was found, and nowhere else.

use std::collections::BTreeMap;

use super::world::*;
use crate::effects::{Effect, effects};
use crate::explain::explain;
use crate::worker::{DeclaredAgent, Offer};
use crate::{Command, RunId, limits};

fn agent(name: &str, program: &str) -> DeclaredAgent {
    DeclaredAgent {
        kind: text("acp"),
        name: text(name),
        program: text(program),
    }
}

fn declaring(run: &str, agents: &[&DeclaredAgent]) -> Plan {
    let names: Vec<String> = (0..agents.len()).map(|n| format!("t{n}")).collect();
    let names: Vec<&str> = names.iter().map(|name| &**name).collect();
    let mut plan = plan(&names).named(run);
    for (task, agent) in plan.0.tasks.iter_mut().zip(agents) {
        task.profile.requirement.agent = agent.kind.clone();
        task.profile.requirement.declared = Some((*agent).clone());
    }
    plan
}

fn says(world: &mut World, name: &str, looked: &[(&DeclaredAgent, bool)]) {
    let leases = world.state.leases_of_worker(&worker(name));
    let held = leases.map(|lease| lease.id).collect();
    let Some(Command::Heartbeat(mut beat)) = world.heartbeat(name, held) else {
        panic!("{name} has no session");
    };
    let looked = looked.iter().map(|(agent, has)| ((*agent).clone(), *has));
    beat.looked = Some(looked.collect());
    world.act(&Command::Heartbeat(beat));
}

fn said(world: &World, run: RunId, task: &str) -> String {
    let told = explain(&world.state, world.now, world.key(run, task));
    match told.help() {
        Some(help) => format!("{told} → {help}"),
        None => told.to_string(),
    }
}

#[test]
fn a_declared_agent_waits_without_a_lease_for_a_worker_that_has_its_program() {
    let mut world = World::new();
    let opencode = agent("reviewer", "opencode");
    world.join("v", 1);
    world.join("w", 1);
    let run = world.submit(declaring("run", &[&opencode]));
    assert_eq!(
        world.state.declared_agents(),
        std::slice::from_ref(&opencode)
    );
    assert_eq!(
        said(&world, run, "t0"),
        "it waits: the fitting workers are busy: 2 asked whether they have its agent → \
         wait, or start more workers"
    );
    says(&mut world, "v", &[(&opencode, false)]);
    says(&mut world, "w", &[(&opencode, false)]);
    assert_eq!(world.states(run), "t0=ready");
    assert_eq!(
        said(&world, run, "t0"),
        "it waits: no connected worker fits: 2 without agent reviewer: the program `opencode` \
         (looked for on v, w) → install the program `opencode` where a worker runs, which finds it \
         within a minute, or start a worker with `--agent reviewer=COMMAND`"
    );
    says(&mut world, "w", &[(&opencode, true)]);
    assert_eq!(world.at_work(), ["t0"]);
    assert_eq!(world.only().worker, worker("w"));
}

#[test]
fn an_agent_that_nobody_gave_a_command_waits_for_a_worker_that_has_one() {
    let mut world = World::new();
    let bare = agent("acp", "");
    world.join("w", 1);
    let run = world.submit(declaring("run", &[&bare]));
    says(&mut world, "w", &[(&bare, false)]);
    assert_eq!(
        said(&world, run, "t0"),
        "it waits: no connected worker fits: 1 without agent acp: a command for it (looked for on w) \
         → declare it in the plan, `agents: {NAME: {kind: acp, command: [...]}}`, or start a worker \
         with `--agent acp=COMMAND`"
    );
    says(&mut world, "w", &[(&bare, true)]);
    assert_eq!(world.at_work(), ["t0"]);
}

#[test]
fn a_worker_that_joins_later_takes_what_the_others_lack() {
    let mut world = World::new();
    let opencode = agent("reviewer", "opencode");
    world.join("v", 1);
    let run = world.submit(declaring("run", &[&opencode]));
    says(&mut world, "v", &[(&opencode, false)]);
    world.join("w", 1);
    assert_eq!(world.states(run), "t0=ready");
    says(&mut world, "w", &[(&opencode, true)]);
    assert_eq!(world.only().worker, worker("w"));
}

#[test]
fn the_program_counts_and_not_whether_the_kinds_own_is_there() {
    let mut world = World::new();
    let mine = agent("mine", "/opt/claude");
    let bare = Offer {
        agents: labels(&["command"]),
        ..offer(1)
    };
    world.hello("w", 1, bare);
    world.submit(declaring("run", &[&mine]));
    says(&mut world, "w", &[(&mine, true)]);
    assert_eq!(world.at_work(), ["t0"]);
}

#[test]
fn what_a_worker_said_is_good_for_its_session_and_until_it_says_otherwise() {
    let mut world = World::new();
    let opencode = agent("reviewer", "opencode");
    world.join("w", 2);
    says(&mut world, "w", &[(&opencode, true)]);
    world.beat("w");
    let one = world.submit(declaring("one", &[&opencode]));
    assert_eq!(world.states(one), "t0=leased");
    says(&mut world, "w", &[(&opencode, false)]);
    let two = world.submit(declaring("two", &[&opencode]));
    assert_eq!(world.states(two), "t0=ready");
    says(&mut world, "w", &[(&opencode, true)]);
    assert_eq!(world.states(two), "t0=leased");
    world.hello("w", 1, offer(3));
    world.beat("w");
    let three = world.submit(declaring("three", &[&opencode]));
    assert_eq!(world.states(three), "t0=ready");
}

#[test]
fn after_a_restart_workers_are_asked_again_for_what_live_runs_name() {
    let mut world = World::new();
    let opencode = agent("reviewer", "opencode");
    let run = world.submit(declaring("run", &[&opencode]));
    world.join("w", 1);
    says(&mut world, "w", &[(&opencode, false)]);
    world.restart();
    assert_eq!(
        world.state.declared_agents(),
        std::slice::from_ref(&opencode)
    );
    world.hello("w", 1, offer(1));
    assert_eq!(world.beat("w"), []);
    says(&mut world, "w", &[(&opencode, true)]);
    assert_eq!(world.states(run), "t0=leased");
}

#[test]
fn workers_are_told_to_look_when_a_run_declares_agents_and_for_no_others() {
    let mut world = World::new();
    let opencode = agent("reviewer", "opencode");
    world.submit(plan(&["a"]).named("plain"));
    assert_eq!(effects(&world.state, &world.log), []);
    world.submit(declaring("run", &[&opencode]));
    assert_eq!(effects(&world.state, &world.log), [Effect::Look]);
}

#[test]
fn of_too_many_agents_those_named_last_are_looked_for() {
    let mut world = World::new();
    let count = limits::DECLARED_AGENTS + 1;
    let agents: Vec<_> = (0..count)
        .map(|n| agent(&format!("a{n:04}"), "p"))
        .collect();
    let all: Vec<&DeclaredAgent> = agents.iter().collect();
    world.submit(declaring("run", &all));
    assert_eq!(world.state.declared_agents(), agents[1..]);
    world.join("w", 1);
    let Some(Command::Heartbeat(mut beat)) = world.heartbeat("w", vec![]) else {
        panic!("no session");
    };
    let looked: BTreeMap<_, _> = agents.into_iter().map(|agent| (agent, true)).collect();
    beat.looked = Some(looked);
    assert_eq!(world.refused(&Command::Heartbeat(beat)).code(), "LIMIT");
}
