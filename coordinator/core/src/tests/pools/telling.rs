//! What people are told of work that waits for pools.

use super::*;
use crate::RunId;
use crate::explain::explain;

fn said(cluster: &Cluster, run: RunId) -> String {
    let told = explain(&cluster.0.state, cluster.0.now, cluster.0.key(run, "t0"));
    match told.help() {
        Some(help) => format!("{told} → {help}"),
        None => told.to_string(),
    }
}

/// A task that asks for the pool, with a worker of another one there.
fn asks_for_the_pool(policy: Policy) -> (Cluster, RunId) {
    let mut cluster = Cluster::new(policy);
    cluster.0.join("local", 2);
    let run = cluster.0.submit(independent(1).each(|task| {
        task.profile.requirement.pool = Some(text(POOL));
        task.profile.requirement.expected = Span::from_secs(600);
    }));
    (cluster, run)
}

#[test]
fn a_task_of_a_paused_pool_is_told_its_name_the_reason_and_how_it_goes_on() {
    let (mut cluster, run) = asks_for_the_pool(policy(3));
    let pause = PoolCommand::Pause {
        pool: text(POOL),
        reason: "3 starts in a row failed".into(),
        by: text("coordinator"),
    };
    cluster.pool(pause);
    assert_eq!(
        said(&cluster, run),
        "it waits: no connected worker fits: 1 without pool cluster; pool cluster, which would bring \
         one, is paused: 3 starts in a row failed → mend what its reason says, and let it go on: \
         `coordinator pool resume cluster`"
    );
    cluster.0.close("local");
    assert!(said(&cluster, run).starts_with(
        "it waits: no worker is connected; pool cluster, which would bring one, is paused: "
    ));
}

#[test]
fn a_task_of_a_pool_that_starts_workers_is_told_to_wait_and_not_to_start_some() {
    let (cluster, run) = asks_for_the_pool(policy(3));
    assert_eq!(
        said(&cluster, run),
        "it waits: no connected worker fits: 1 without pool cluster; pool cluster is to bring one → \
         wait; `coordinator pool show cluster` says how far its workers are"
    );
}

#[test]
fn a_task_that_takes_longer_than_the_pools_machines_stay_is_told_the_figures() {
    let (cluster, run) = asks_for_the_pool(Policy {
        walltime: Some(Span::from_secs(500)),
        ..policy(3)
    });
    assert_eq!(
        said(&cluster, run),
        "it waits: no connected worker fits: 1 without pool cluster; pool cluster brings none for it: \
         the time does not suffice: there are 440 s for work, and it takes 600 s, with 60 s for its \
         checkout and commit → give pool cluster a longer walltime in the configuration, or the task \
         a shorter `expected` in the plan"
    );
}

#[test]
fn a_pool_whose_workers_people_start_is_still_told_with_its_token() {
    let (cluster, run) = asks_for_the_pool(policy(0));
    assert_eq!(
        said(&cluster, run),
        "it waits: no connected worker fits: 1 without pool cluster → start a worker with a token \
         for pool cluster, or ask for less"
    );
}

#[test]
fn workers_that_go_away_too_soon_are_not_short_of_a_resource() {
    let (mut cluster, run) = asks_for_the_pool(policy(3));
    cluster.wanted();
    cluster.run(&[1]);
    let offer = Offer {
        pool: text(POOL),
        allocation: Some(AllocationId(1)),
        ..offer(2)
    };
    cluster.0.hello("w1", 1, offer);
    let Some(Command::Heartbeat(mut beat)) = cluster.0.heartbeat("w1", vec![]) else {
        panic!("no session");
    };
    beat.time_left = Some(Span::from_secs(300));
    cluster.0.act(&Command::Heartbeat(beat));
    assert_eq!(
        said(&cluster, run),
        "it waits: the fitting workers are busy: 1 without the time for it; the time does not \
         suffice: there are 300 s for work, and it takes 600 s, with 60 s for its checkout and \
         commit; pool cluster is to bring one → wait; `coordinator pool show cluster` says how far \
         its workers are"
    );
    // Full or not: no waiting helps.
    let Some(Command::Heartbeat(mut beat)) = cluster.0.heartbeat("w1", vec![]) else {
        panic!("no session");
    };
    (beat.time_left, beat.free_slots) = (Some(Span::from_secs(300)), 0);
    cluster.0.act(&Command::Heartbeat(beat));
    assert!(said(&cluster, run).contains("busy: 1 without the time for it; the time does not"));
    cluster.pool(PoolCommand::Configure {
        policies: BTreeMap::new(),
    });
    assert!(said(&cluster, run).ends_with(
        "; the task asks for pool cluster, which is not configured any more → put the section \
         `[pools.cluster]` back into the configuration and start the coordinator again, or ask for \
         another pool"
    ));
}

#[test]
fn a_pool_that_brings_nothing_does_not_claim_to_be_busy() {
    let other = || Policy {
        priority: 1,
        ..policy(3)
    };
    let mut cluster = Cluster::new(policy(3));
    cluster.pool(PoolCommand::Configure {
        policies: BTreeMap::from([(text(POOL), policy(3)), (text("first"), other())]),
    });
    let run = cluster.0.submit(independent(1));
    assert_eq!(cluster.wanted(), 1);
    let told = |cluster: &Cluster| -> Vec<String> {
        let run = cluster.0.state.run(run).unwrap();
        let requirement = &run.profiles[0].requirement;
        let told = prospects(&cluster.0.state, cluster.0.now, requirement);
        let told = told.iter();
        told.map(|(pool, prospect)| format!("{pool}: {prospect}"))
            .collect()
    };
    assert_eq!(
        told(&cluster),
        [
            "cluster: it starts none: what other pools bring will do",
            "first: 1 allocation is on its way"
        ]
    );
    // The first one's start has failed, and the other brings a worker meanwhile.
    cluster.see(&[1], |_| Seen::Refused {
        detail: "no account".into(),
    });
    assert_eq!(cluster.wanted(), 1);
    assert!(told(&cluster)[1].starts_with("first: its last start failed (no account)"));
    assert_eq!(told(&cluster)[0], "cluster: 1 allocation is on its way");
    assert!(
        said(&cluster, run).contains("pool cluster is to bring one"),
        "{}",
        said(&cluster, run)
    );
}

#[test]
fn work_behind_busy_workers_is_told_of_a_paused_pool_that_would_bring_more() {
    let mut cluster = Cluster::new(policy(3));
    cluster.0.join("local", 1);
    cluster.0.submit(independent(1));
    let run = cluster.0.submit(independent(1).named("second"));
    assert!(said(&cluster, run).ends_with("1 full → wait, or start more workers"));
    let pause = PoolCommand::Pause {
        pool: text(POOL),
        reason: "maintenance".into(),
        by: text("ann"),
    };
    cluster.pool(pause);
    assert!(said(&cluster, run).contains("would bring one, is paused: maintenance → "));
}
