//! Pools that are not configured any more, and allocations that are another home's.

use super::*;

fn forget(anyway: bool) -> Command {
    Command::Pool(PoolCommand::Forget {
        pool: text(POOL),
        even_if_they_run: anyway,
        by: text("ann"),
    })
}

/// A cluster of which one allocation works and another one waits, and which is then taken out of the
/// configuration.
fn removed() -> Cluster {
    let mut cluster = Cluster::new(policy(10));
    cluster.0.submit(independent(3));
    assert_eq!(cluster.wanted(), 2);
    cluster.run(&[1]);
    cluster.join(1);
    assert_eq!(cluster.0.live().len(), 2);
    let policies = BTreeMap::new();
    cluster.pool(PoolCommand::Configure { policies });
    cluster
}

#[test]
fn a_pool_that_is_configured_is_not_forgotten() {
    let mut cluster = Cluster::new(policy(1));
    let refusal = cluster.0.refused(&forget(true)).to_string();
    assert!(refusal.contains("take its section out"), "{refusal}");
}

#[test]
fn a_pool_with_allocations_is_forgotten_only_when_that_is_said() {
    let mut cluster = removed();
    let refusal = cluster.0.refused(&forget(false));
    assert_eq!(refusal.code(), "NOT_NOW");
    assert!(refusal.to_string().contains("2 allocations"), "{refusal}");
    assert_eq!(cluster.inventory(), [1, 2]);

    cluster.0.act(&forget(true));
    assert_eq!(cluster.inventory(), [0; 0]);
    assert_eq!(cluster.0.refused(&forget(true)).code(), "UNKNOWN_POOL");
    assert_eq!(cluster.0.replayed().allocations().len(), 0);
    // No allocation that is still to come has the id of one that is gone.
    let policies = BTreeMap::from([(text(POOL), policy(10))]);
    cluster.pool(PoolCommand::Configure { policies });
    cluster.wanted();
    assert_eq!(cluster.inventory(), [3]);
}

#[test]
fn workers_of_a_forgotten_pool_finish_what_they_hold_and_get_nothing_more() {
    let mut cluster = removed();
    cluster.0.act(&forget(true));
    for lease in cluster.0.live() {
        cluster.0.started(&lease);
        cluster.0.succeed(&lease);
    }
    cluster.0.beat("w1");
    assert!(cluster.0.live().is_empty(), "though a third task waits");
    assert!(cluster.0.state.worker(&worker("w1")).unwrap().draining);
}

#[test]
fn why_a_pool_was_paused_is_forgotten_with_it() {
    let mut cluster = Cluster::new(policy(1));
    cluster.pool(PoolCommand::Pause {
        pool: text(POOL),
        reason: "it is moved".into(),
        by: text("ann"),
    });
    let policies = BTreeMap::new();
    cluster.pool(PoolCommand::Configure { policies });
    cluster.0.act(&forget(false));
    assert!(cluster.0.state.pool(POOL).is_none());
}

#[test]
fn a_pool_that_is_not_configured_any_more_is_not_called_unknown() {
    let mut cluster = removed();
    let refusal = cluster.0.refused(&Command::Pool(PoolCommand::Resume {
        pool: text(POOL),
        by: text("ann"),
    }));
    assert_eq!(refusal.code(), "NOT_NOW");
    let refusal = refusal.to_string();
    assert!(refusal.contains("not configured any more"), "{refusal}");
}

#[test]
fn a_copy_lets_all_allocations_go_and_keeps_what_a_pool_was_paused_for() {
    let mut cluster = Cluster::new(policy(10));
    cluster.0.submit(independent(3));
    cluster.wanted();
    cluster.run(&[1]);
    cluster.pool(PoolCommand::Pause {
        pool: text(POOL),
        reason: "the night".into(),
        by: text("ann"),
    });
    cluster.pool(PoolCommand::Disown);
    assert_eq!(cluster.inventory(), [0; 0]);
    let known = cluster.0.state.pool(POOL).unwrap();
    assert!(known.paused.is_some() && known.failures == 0);
    assert_eq!(cluster.pool(PoolCommand::Disown), []);
}
