//! What the journal says, and what the hosted repository shows.

use muster_proto::v1;

use super::world::{Worker, World, done, git, made, made_commit, within};

const ONE: &str = "name: p\nrepo: .\ntasks:\n  - {name: a, run: 'true', agent: command}\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_cannot_succeed_with_a_commit_that_it_did_not_publish() {
    let world = World::start().await;
    let run = world.submit_with_repository(ONE, "key").await;
    let mut worker = Worker::join(&world, "w").await;
    let grant = worker.grant().await;
    let forged = made_commit(&"1".repeat(40));
    worker.report(vec![(grant.lease, forged)]).await;
    let run = world.get(&run).await;
    let attempt = &run.tasks[0].attempts[0];
    assert_eq!(attempt.state, "failed");
    assert_eq!(attempt.failure.as_ref().unwrap().class, "publish");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_commit_becomes_the_tasks_branch() {
    let world = World::start().await;
    let run = world.submit_with_repository(ONE, "key").await;
    let mut worker = Worker::join(&world, "w").await;
    let grant = worker.grant().await;
    let commit = world.publish(&grant);
    worker
        .report(vec![(grant.lease, made_commit(&commit))])
        .await;
    world
        .until(&run, |run| run.archived && run.state == "succeeded")
        .await;
    let branch = format!("{commit}\trefs/heads/muster/{run}/tasks/a");
    assert!(world.ls_remote().unwrap().contains(&branch));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_that_was_moved_by_hand_is_repaired_before_it_is_shown() {
    let world = World::start().await;
    let plan = ONE.to_owned() + "  - {name: b, run: 'true', agent: command}\n";
    let run = world.submit_with_repository(&plan, "key").await;
    let mut worker = Worker::join(&world, "w").await;
    let grants = worker.grants().await;
    let commit = world.publish(&grants[0]);
    worker
        .report(vec![(grants[0].lease, made_commit(&commit))])
        .await;
    let task = &grants[0].task;
    let branch = format!("refs/heads/muster/{run}/tasks/{task}");
    let shown = format!("{commit}\t{branch}");
    assert!(world.ls_remote().unwrap().contains(&shown));
    let base = git(&world.work(), &["rev-parse", "main"]);
    git(&world.hosted(), &["update-ref", &branch, &base]);
    let listed = world.ls_remote().unwrap();
    assert!(listed.contains(&shown), "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_that_cannot_be_moved_holds_up_its_own_run_and_only_for_so_long() {
    let world = World::start().await;
    let stuck = world.submit_with_repository(ONE, "stuck").await;
    let mut worker = Worker::join(&world, "w").await;
    let grant = worker.grant().await;
    let commit = world.publish(&grant);
    let folder = world
        .hosted()
        .join(format!("refs/heads/muster/{stuck}/tasks"));
    // A folder, since the lock of a git that was killed is taken away.
    std::fs::create_dir_all(folder.join("a.lock")).unwrap();
    std::fs::write(folder.join("a.lock/stays"), "").unwrap();
    worker
        .report(vec![(grant.lease, made_commit(&commit))])
        .await;
    world.until(&stuck, |run| run.state == "succeeded").await;

    let other = ONE.replace("repo: .\n", "");
    let other = world.submit(&other, "other").await.unwrap();
    let grant = worker.grant().await;
    worker.report(vec![(grant.lease, done())]).await;
    world.until(&other, |run| run.archived).await;
    assert!(world.ls_remote().is_ok());
    assert!(!world.get(&stuck).await.archived);

    std::fs::remove_dir_all(folder.join("a.lock")).unwrap();
    world.until(&stuck, |run| run.archived).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_starts_from_its_one_dependency_that_changed_something() {
    let world = World::start().await;
    let plan = ONE.to_owned()
        + "  - {name: b, run: 'true', agent: command}\n"
        + "  - {name: c, run: 'true', agent: command, depends_on: [a, b]}\n";
    let run = world.submit_with_repository(&plan, "key").await;
    let mut worker = Worker::join(&world, "w").await;
    let mut grants = worker.grants().await;
    grants.sort_by(|a, b| a.task.cmp(&b.task));
    let commit = world.publish(&grants[0]);
    let nothing = made(v1::outcome::Kind::NoChange(v1::Empty {}));
    let reports = vec![
        (grants[0].lease, made_commit(&commit)),
        (grants[1].lease, nothing),
    ];
    worker.report(reports).await;
    worker.beat(Vec::new()).await;
    let source = worker.grant().await.source.unwrap();
    assert_eq!(source.base, commit);
    let there = git(&world.hosted(), &["rev-parse", &source.read_ref]);
    assert_eq!(there, commit, "{} of {run}", source.read_ref);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_of_a_run_that_was_archived_before_the_start_is_repaired_before_it_is_shown() {
    let mut world = World::start().await;
    let run = world.submit_with_repository(ONE, "key").await;
    let mut worker = Worker::join(&world, "w").await;
    let grant = worker.grant().await;
    let commit = world.publish(&grant);
    worker
        .report(vec![(grant.lease, made_commit(&commit))])
        .await;
    world.until(&run, |run| run.archived).await;
    let branch = format!("refs/heads/muster/{run}/tasks/a");
    let base = git(&world.work(), &["rev-parse", "main"]);
    world.stop().await;
    git(&world.hosted(), &["update-ref", &branch, &base]);
    world.restart().await;
    let shown = format!("{commit}\t{branch}");
    let repaired = async {
        while !world.ls_remote().unwrap().contains(&shown) {
            tokio::task::yield_now().await;
        }
    };
    within(repaired).await;
}
