//! Waiting for the machine that has a conversation.

use super::super::world::{converses, elsewhere};
use super::*;

/// A task whose agent's conversation is on `w1`, an allocation's worker that is lost with it by now;
/// `spare` is elsewhere and free.
fn lost() -> (Cluster, crate::RunId) {
    let mut cluster = Cluster::new(policy(10));
    let run = cluster.0.submit(
        independent(1)
            .retries(3)
            .each(|task| task.profile.resumes = true),
    );
    cluster.wanted();
    cluster.run(&[1]);
    let name = cluster.join(1);
    let lease = cluster.0.only();
    cluster.0.started(&lease);
    cluster.0.say(&lease, converses("c1"));
    cluster.pass(90, &[&name]);
    cluster.0.close(&name);
    cluster.pass(70, &[]);
    cluster.0.hello("spare", 1, elsewhere(4));
    cluster.pass(10, &["spare"]);
    assert!(cluster.0.live().is_empty(), "it waits for its conversation");
    (cluster, run)
}

#[test]
fn nobody_waits_for_a_worker_whose_allocation_is_gone_or_was_requeued_or_is_to_end() {
    let gone = |cluster: &mut Cluster| cluster.gone(1);
    let requeued = |cluster: &mut Cluster| {
        cluster.see(&[1], |_| Seen::Queued {
            external: "job1".into(),
        })
    };
    let ending = |cluster: &mut Cluster| {
        let policies = BTreeMap::from([(text(POOL), policy(0))]);
        cluster.pool(PoolCommand::Configure { policies });
        cluster.plan()
    };
    type Way<'a> = &'a dyn Fn(&mut Cluster) -> Vec<PoolEvent>;
    let ways: [Way<'_>; 3] = [&gone, &requeued, &ending];
    for (nth, happens) in ways.into_iter().enumerate() {
        let (mut cluster, _) = lost();
        assert!(!happens(&mut cluster).is_empty());
        assert_eq!(cluster.0.only().worker, worker("spare"), "{nth}");
    }
}

#[test]
fn a_worker_whose_allocation_runs_on_is_waited_for_and_counts_as_nobodys_work() {
    let (mut cluster, run) = lost();
    assert_eq!(cluster.wanted(), 0);
    let told = crate::explain::explain(&cluster.0.state, cluster.0.now, cluster.0.key(run, "t0"));
    assert!(
        told.to_string().contains("w1 has the conversation"),
        "{told}"
    );
}
