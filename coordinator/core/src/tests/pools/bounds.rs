//! What holds a pool back.

use super::*;

#[test]
fn what_is_to_end_counts_against_the_maximum_until_it_is_gone() {
    let mut cluster = Cluster::new(policy(1));
    let run = cluster.0.submit(independent(1));
    cluster.wanted();
    cluster.run(&[1]);
    cluster.0.cancel(crate::command::Target::Run(run));
    cluster.plan();
    cluster.pass(60, &[]);
    assert_eq!(cluster.ending(), [(1, EndCause::Idle)]);
    cluster.0.submit(independent(1).named("second"));
    assert_eq!(cluster.wanted(), 0, "its provider may not have ended it");
    cluster.gone(1);
    assert_eq!(cluster.wanted(), 1);
}

#[test]
fn a_worker_whose_allocation_is_gone_is_not_waited_for_after_a_restart() {
    let mut cluster = Cluster::new(policy(10));
    cluster.0.submit(independent(1));
    cluster.wanted();
    cluster.run(&[1]);
    let name = cluster.join(1);
    let lease = cluster.0.only();
    cluster.0.started(&lease);
    cluster.0.succeed(&lease);
    cluster.0.close(&name);
    cluster.pass(100, &[]);
    cluster.gone(1);
    cluster.0.restart();
    let policies = BTreeMap::from([(text(POOL), policy(10))]);
    cluster.pool(PoolCommand::Configure { policies });
    cluster.0.submit(independent(1).named("second"));
    assert_eq!(cluster.wanted(), 1);
}

#[test]
fn a_bound_of_failures_that_was_lowered_pauses_too() {
    let mut cluster = Cluster::new(Policy {
        failures_max: 9,
        ..policy(10)
    });
    cluster.0.submit(independent(1));
    for allocation in 1..=3 {
        cluster.wanted();
        cluster.see(&[allocation], |_| Seen::Refused { detail: "".into() });
        cluster.pass(60, &[]);
    }
    let policies = BTreeMap::from([(
        text(POOL),
        Policy {
            failures_max: 2,
            ..policy(10)
        },
    )]);
    cluster.pool(PoolCommand::Configure { policies });
    cluster.wanted();
    cluster.see(&[4], |_| Seen::Refused { detail: "".into() });
    assert!(cluster.0.state.pool(POOL).unwrap().paused.is_some());
}
